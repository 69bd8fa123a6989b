"""Edit a graph and the modules beside it: the verbs all passes share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

COMPRESSION = "compression"
"""The submodule of a net that holds its pruners and quantizers, apart from the model's own modules."""


def site(node: Node) -> str:
    """The name people know a tensor by: a parameter's path, or the path of the module that yields the activation."""
    return str(node.meta.get("site", node.name))


def insert_after(gm: GraphModule, node: Node, path: str, module: nn.Module) -> Node:
    """Call `module`, stored at `path` (or the one already there), on `node` and hand its output to all users of
    `node`."""
    if not has_module(gm, path):
        add_module(gm, path, module.to(node.meta.get("device", "cpu")))
    with gm.graph.inserting_after(_last_of_group(node)):
        new = gm.graph.create_node("call_module", path, (node,), {}, name=path.split(".", 1)[-1].replace(".", "_"))
    new.meta.update(node.meta)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    return new


def insert_function_after(gm: GraphModule, node: Node, function: Any, args: tuple[Any, ...], name: str) -> Node:
    """Call `function(node, *args)` under `name` and hand its output to all users of `node`."""
    with gm.graph.inserting_after(node):
        new = gm.graph.create_node("call_function", function, (node, *args), {}, name)
    new.meta.update(node.meta)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    return new


def insert_function_before(gm: GraphModule, node: Node, function: Any, args: tuple[Any, ...], name: str) -> Node:
    """Call `function(*args)` under `name` just before `node`, which does not use it yet."""
    with gm.graph.inserting_before(node):
        return gm.graph.create_node("call_function", function, args, {}, name)


def insert_constants(gm: GraphModule, before: Node, path: str, tensors: dict[str, torch.Tensor]) -> list[Node]:
    """Store constants as buffers of the module at `path` and read each with a `get_attr` node just before `before`."""
    home = container(gm, path)
    nodes = []
    for name, tensor in tensors.items():
        free = _free_name(home, name, tensor)
        home.register_buffer(free, tensor)
        target = f"{path}.{free}".removeprefix(".")
        with gm.graph.inserting_before(before):
            node = gm.graph.create_node("get_attr", target, name=target.replace(".", "_"))
        node.meta.update(tensor_meta=torch.fx.passes.shape_prop._extract_tensor_metadata(tensor), constant=True)
        nodes.append(node)
    return nodes


def _free_name(home: nn.Module, name: str, tensor: torch.Tensor) -> str:
    # A shared quantizer stores its constants once; whatever else has the name is the model's own.
    known = home._buffers.get(name)
    if (
        known is not None
        and (known.dtype, known.device) == (tensor.dtype, tensor.device)
        and torch.equal(known, tensor)
    ):
        return name
    return _free_name(home, f"{name}_constant", tensor) if hasattr(home, name) else name


def replace(node: Node, function: Any, args: tuple[Any, ...]) -> None:
    """Make `node` a call of `function`, under its name and with its users."""
    node.op, node.target, node.args, node.kwargs = "call_function", function, args, {}


def drop_dead_code(gm: GraphModule) -> bool:
    """Remove what nothing uses, but not operators that write in place: somebody may read what they wrote to."""
    return gm.graph.eliminate_dead_code(lambda node: node.is_impure() or writes_in_place(gm, node))


def writes_in_place(gm: GraphModule, node: Node) -> bool:
    """Whether `node` changes one of its inputs."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_module":
        return bool(getattr(gm.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method" or node.op == "call_function":
        told = bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None
        return told or name.endswith("_") or name in _INPLACE_OPERATORS
    return False


_INPLACE_OPERATORS = frozenset(
    {
        "iadd",
        "isub",
        "imul",
        "itruediv",
        "ifloordiv",
        "imod",
        "ipow",
        "iand",
        "ior",
        "ixor",
        "ilshift",
        "irshift",
        "setitem",
    }
)


def bypass(gm: GraphModule, node: Node) -> None:
    """Remove a node of one input, giving its users that input."""
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    gm.graph.erase_node(node)


def module_of(gm: GraphModule, node: Any) -> nn.Module | None:
    """The module that `node` calls, or None."""
    return submodule(gm, str(node.target)) if isinstance(node, Node) and node.op == "call_module" else None


def submodule(gm: nn.Module, path: str) -> nn.Module:
    """The module at `path`, found without the checks that `get_submodule` makes at every step. Raises KeyError if there
    is none."""
    for part in path.split(".") if path else ():
        gm = gm._modules[part]  # type: ignore[assignment]
    return gm


def tensor_at(gm: GraphModule, path: str) -> torch.Tensor:
    """The parameter or buffer that a `get_attr` node reads."""
    owner, _, name = path.rpartition(".")
    value: torch.Tensor = getattr(gm.get_submodule(owner), name)
    return value


def has_module(gm: nn.Module, path: str) -> bool:
    """Whether a submodule stands at `path`."""
    for part in path.split("."):
        if part not in gm._modules:
            return False
        gm = gm._modules[part]  # type: ignore[assignment]
    return True


def container(gm: nn.Module, path: str) -> nn.Module:
    """The module at `path`, with empty ones made on the way where there are none."""
    for part in path.split(".") if path else ():
        if part not in gm._modules:
            gm.add_module(part, nn.Module())
        gm = gm._modules[part]  # type: ignore[assignment]
    return gm


def add_module(gm: nn.Module, path: str, module: nn.Module) -> None:
    """Store `module` at `path`."""
    owner, _, name = path.rpartition(".")
    container(gm, owner).add_module(name, module)


def modules_of_type(gm: nn.Module, *types: type[nn.Module]) -> Iterator[tuple[str, Any]]:
    """Path and module of every submodule of these types."""
    return ((path, m) for path, m in gm.named_modules() if isinstance(m, types))


def _last_of_group(node: Node) -> Node:
    # Inputs stand together at the head of a graph; nothing may come between them.
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node

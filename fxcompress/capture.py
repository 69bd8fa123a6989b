"""Capture a model into graphs: weights as `get_attr` nodes, activations as edges, modes and signature kept.

Weight-owning modules are opened, all other `torch.nn` modules stay calls. `self.training` is a value of the graph;
where Python branches on it, the model is captured once per mode (`Captured.guards` names the flags,
`Captured.variants` the graphs).
"""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node, Proxy, Tracer
from torch.fx.node import has_side_effect
from torch.fx.proxy import TraceError

from fxcompress.errors import CaptureError, InputError
from fxcompress.mirror import mirror

WEIGHT_OWNING = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    nn.Embedding,
)  # fmt: skip
OPENED = (*WEIGHT_OWNING, nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""`torch.nn` modules whose forward is captured; the others stay calls."""


@dataclass(frozen=True)
class Captured:
    """A model as graphs over a tree of shallow copies of its modules (same parameters, same buffers, same types)."""

    root: nn.Module
    guards: tuple[str, ...]
    variants: Mapping[tuple[bool, ...], Graph]


def capture(model: nn.Module, inputs: Mapping[str, Any]) -> Captured:
    """Capture `model` for calls with the arguments `inputs` (by parameter name).

    Raises CaptureError if the model cannot be captured as a whole.
    """
    root = mirror(model)
    guards: list[str] = []
    traced: list[tuple[_Tracer, Graph]] = []
    for mode in dict.fromkeys((model.training, not model.training)):
        tracer = _Tracer(root, inputs, mode)
        traced.append((tracer, _trace(tracer, root)))
        guards += [flag for flag in tracer.branched if flag not in guards]
        if not guards:
            break
    variants = {tuple(t.mode for _ in guards): graph for t, graph in traced}
    return Captured(root, tuple(guards), variants)


def bind(model: nn.Module, example_inputs: Any) -> dict[str, Any]:
    """Example inputs (a tensor, a tuple of positional or a dict of keyword ones) as `{parameter: value}`.

    Raises CaptureError if they do not fit the signature of the model's forward.
    """
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    args, kwargs = ((), example_inputs) if isinstance(example_inputs, dict) else (args, {})
    signature = inspect.signature(model.forward)
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise CaptureError(
            f"the example inputs do not fit '{type(model).__name__}.forward{signature}': {error}; "
            "pass a tensor, a tuple of positional inputs or a dict of keyword inputs"
        ) from None


def require_equal(value: Any, captured: Any, name: str) -> None:
    """Refuse a call that gives a non-tensor argument another value than the one captured. Raises InputError."""
    if value is not captured and (isinstance(value, torch.Tensor) or value != captured):
        raise InputError(
            f"argument '{name}' was {captured!r} when the model was captured and is {_brief(value)} now; "
            f"compress with example inputs that hold '{name}' as you will call the net"
        )


has_side_effect(require_equal)


class _Flag:
    """Stands for a module's `training` flag while tracing."""

    def __init__(self, path: str) -> None:
        self.path = path


class _Proxy(Proxy):
    """A proxy on which `y += x` writes to `y`, as it does on a tensor, so that other names of `y` see it."""


def _writing(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift"):
    setattr(_Proxy, f"__i{_name}__", _writing(getattr(operator, f"i{_name}")))


class _Tracer(Tracer):
    """Symbolic tracing that opens weight-owning modules and keeps `training` symbolic."""

    def __init__(self, root: nn.Module, inputs: Mapping[str, Any], mode: bool) -> None:
        super().__init__(autowrap_functions=(), param_shapes_constant=False)
        self.inputs, self.mode = inputs, mode
        self.branched: list[str] = []
        self.grad_enabled, self.autocast = torch.is_grad_enabled(), _autocast_devices()
        self.paths = {id(t): name for name, t in (*root.named_parameters(), *root.named_buffers())}
        self.counts: dict[str, int] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        from_torch = type(m).__module__.startswith("torch.nn.modules")
        return from_torch and not isinstance(m, OPENED)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if isinstance(attr_val, _Flag):
            path = f"{attr_val.path}.training".removeprefix(".")
        elif isinstance(attr_val, torch.Tensor) and id(attr_val) in self.paths:
            path = self.paths[id(attr_val)]
        else:
            return attr_val
        if path not in parameter_proxy_cache:
            parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {})
        return parameter_proxy_cache[path]

    def proxy(self, node: Node) -> Proxy:
        return _Proxy(node, self)

    def to_bool(self, obj: Proxy) -> bool:
        target = str(obj.node.target)
        if obj.node.op == "get_attr" and (target == "training" or target.endswith(".training")):
            self.branched += [] if target in self.branched else [target]
            return self.mode
        return super().to_bool(obj)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, *rest: Any, **more: Any
    ) -> Node:
        self._follow_modes()
        # The graph's own names: the module path that made the node, so that both variants agree on them.
        site = self._site(kind, target) if kind.startswith("call") else str(target)
        named = re.sub(r"\W", "_", site) if kind != "placeholder" else name
        node = super().create_node(kind, target, args, kwargs, named, *rest, **more)
        node.meta["site"] = site
        if kind == "placeholder":
            self.counts.setdefault(site, 0)
        return node

    def _follow_modes(self) -> None:
        """Note a change of gradient mode as a node; refuse regions of autocast, which would be lost."""
        if torch.is_grad_enabled() != self.grad_enabled:
            self.grad_enabled = torch.is_grad_enabled()
            super().create_node("call_function", torch._C._set_grad_enabled, (self.grad_enabled,), {})
        if _autocast_devices() != self.autocast:
            raise CaptureError(
                "the model's forward enters torch.autocast, which a graph cannot hold; put autocast around the call"
            )

    def _site(self, kind: str, target: Any) -> str:
        owner, cls = next(reversed(self.module_stack.values()), ("", None))
        operation = target if isinstance(target, str) else getattr(target, "__name__", "call").strip("_")
        is_modules_own = kind == "call_module" or (isinstance(cls, type) and issubclass(cls, WEIGHT_OWNING))
        site = owner if is_modules_own else f"{owner}.{operation}".removeprefix(".")
        self.counts[site] = self.counts.get(site, -1) + 1
        return f"{site}_{self.counts[site]}" if self.counts[site] else site

    def _proxy_placeholder(
        self, name: str, concrete_args: Any, sig: inspect.Signature, fn_for_analysis: Callable[..., Any]
    ) -> Any:
        proxy = super()._proxy_placeholder(name, None, sig, fn_for_analysis)
        parameter = sig.parameters[name.lstrip("*")]
        value = self.inputs.get(parameter.name, parameter.default)
        if name.startswith("*") or value is parameter.empty or _holds_tensors(value):
            return proxy
        self.create_proxy("call_function", require_equal, (proxy, value, name), {})
        return value


def _autocast_devices() -> tuple[bool, ...]:
    return tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))


def _trace(tracer: _Tracer, root: nn.Module) -> Graph:
    with _symbolic_flags(root), _no_random_numbers(), torch.enable_grad():
        tracer.grad_enabled = True
        try:
            graph = tracer.trace(root)
            _keep_constants(root)
            return graph
        except CaptureError:
            raise
        except Exception as error:
            path = next(reversed(tracer.module_stack.values()), ("",))[0]
            raise CaptureError(_explain(error, path, root)) from error


def _explain(error: Exception, path: str, root: nn.Module) -> str:
    cls = type(root.get_submodule(path)).__name__
    place = f"module '{path}' ({cls})" if path else f"the model's own forward ({cls})"
    if isinstance(error, TraceError):
        cause = f"its Python code needs the value of a tensor or of a shape: {error}"
    else:
        cause = f"{type(error).__name__}: {error}"
    return (
        f"cannot capture {place}: {cause}. Models with control flow on values or shapes are not captured yet; "
        "move such code out of the module you compress"
    )


@contextmanager
def _symbolic_flags(root: nn.Module) -> Iterator[None]:
    """Hide every `training` flag where `nn.Module.__getattr__` finds a sentinel, which the tracer turns into a value.

    A flag is a plain attribute, so tracing would never see it read. Only the mirror is touched.
    """
    flags = {module: module.__dict__.pop("training") for module in root.modules()}
    for path, module in root.named_modules():
        module._buffers["training"] = _Flag(path)
    try:
        yield
    finally:
        for module, flag in flags.items():
            del module._buffers["training"]
            module.__dict__["training"] = flag


@contextmanager
def _no_random_numbers() -> Iterator[None]:
    """Refuse a forward that draws while it is captured: every call of the net would see that one draw."""
    state = torch.get_rng_state()
    try:
        yield
        if not torch.equal(state, torch.get_rng_state()):
            raise CaptureError(
                "the model's forward draws random numbers that depend on no input (such as torch.rand(1)), and would "
                "be captured with one draw for ever; draw them from an input (torch.rand_like(x)) or in a dropout"
            )
    finally:
        torch.set_rng_state(state)


def _keep_constants(root: nn.Module) -> None:
    """Tensors made in forward move with the net, but are no part of its state."""
    for name, value in list(root.__dict__.items()):
        if name.startswith("_tensor_constant"):
            del root.__dict__[name]
            root.register_buffer(name, value, persistent=False)


def refuse_unsuitable(model: Any) -> None:
    """Raise CaptureError if `model` is nothing to capture: no module, scripted, compressed, or with hooks on itself."""
    if not isinstance(model, nn.Module):
        raise CaptureError(f"expected a torch.nn.Module, got {_brief(model)}; pass the model itself")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(f"'{model.original_name}' is a scripted module; pass the eager model it was made from")
    if isinstance(model, GraphModule) and hasattr(model, "schedule"):
        raise CaptureError("the model is already compressed; pass the original model and one spec with all rules")
    if isinstance(model, nn.Module) and (model._forward_hooks or model._forward_pre_hooks or model._backward_hooks):
        raise CaptureError(
            "the model has hooks on itself, which would be lost; register them on the net after compress"
        )


def _holds_tensors(value: Any) -> bool:
    leaves = torch.utils._pytree.tree_leaves(value)
    return any(isinstance(leaf, torch.Tensor) for leaf in leaves)


def _brief(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)

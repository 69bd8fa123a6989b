"""The runner: what it checks after each pass, what its messages say, when its hook is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers import Fc, canonical, rows, seeded
from torch.fx import GraphModule

from fxcompress.errors import PassError
from fxcompress.module import CompressedModule
from fxcompress.pipeline import run
from fxcompress.render import render


def nothing(gm: GraphModule) -> None:
    """Check nothing."""


def nothing_changed(gm: GraphModule) -> bool:
    """Rewrite nothing."""
    return False


def rename_output(gm: GraphModule) -> bool:
    """Double the output."""
    output = gm.graph.output_node()
    with gm.graph.inserting_before(output):
        output.args = (gm.graph.call_function(torch.mul, (output.args[0], 2)),)
    return True


def refuse(message: str) -> Callable[[GraphModule], None]:
    """A check that fails."""

    def check(gm: GraphModule) -> None:
        raise PassError(message)

    return check


@dataclass(frozen=True)
class Fake:
    """A pass made of three functions."""

    name: str
    rewrite: Callable[[GraphModule], bool] = nothing_changed
    requires: Callable[[GraphModule], None] = nothing
    ensures: Callable[[GraphModule], None] = nothing


def net() -> CompressedModule:
    return canonical(seeded(Fc), rows())


def test_runs_in_order_recompiles_and_says_whether_anything_changed() -> None:
    gm = net()
    expected = gm(rows()) * 4
    assert run(gm, [Fake("double", rename_output), Fake("idle"), Fake("again", rename_output)]) is True
    assert torch.equal(gm(rows()), expected)
    assert run(gm, [Fake("idle")]) is False
    assert run(gm, []) is False


def test_the_hook_sees_each_pass_once_it_has_stood_its_checks() -> None:
    seen: list[tuple[str, int]] = []
    passes = [Fake("double", rename_output), Fake("idle"), Fake("bad", ensures=refuse("no")), Fake("late")]
    with pytest.raises(PassError):
        run(net(), passes, lambda p, gm: seen.append((p.name, len(gm.graph.nodes))))
    assert seen == [("double", 6), ("idle", 6)]


def test_a_failed_requirement_names_the_pass_those_before_it_and_shows_the_graph() -> None:
    gm = net()
    with pytest.raises(PassError) as error:
        run(gm, [Fake("one"), Fake("two"), Fake("three", rename_output, refuse("'fc' is missing"))])
    first, _, graph = str(error.value).partition("\n")
    assert first == "pass 'three' failed after ['one', 'two']: 'fc' is missing"
    assert graph == render(gm) == render(net())


def test_a_failed_promise_is_checked_on_the_result() -> None:
    def ensures(gm: GraphModule) -> None:
        if "mul" in render(gm):
            raise PassError("there is a product")

    with pytest.raises(
        PassError, match=r"pass 'double' failed after \[\]: there is a product\n(.*\n)*%mul = mul\(%fc, 2\)"
    ):
        run(net(), [Fake("double", rename_output, ensures=ensures)])


def test_an_error_that_is_not_ours_is_named_by_its_type_and_kept_as_the_cause() -> None:
    def rewrite(gm: GraphModule) -> bool:
        return bool({}["scale"])

    with pytest.raises(PassError, match=r"pass 'broken' failed after \[\]: KeyError: 'scale'") as error:
        run(net(), [Fake("broken", rewrite)])
    assert isinstance(error.value.__cause__, KeyError)


def test_a_pass_that_hides_a_change_is_refused() -> None:
    lie = Fake("shy", lambda gm: not rename_output(gm))
    with pytest.raises(
        PassError, match=r"pass 'shy' failed after \['idle'\]: it says changed=False, the graph says other"
    ):
        run(net(), [Fake("idle"), lie])


def test_a_pass_that_boasts_a_change_is_refused() -> None:
    with pytest.raises(PassError, match=r"pass 'boastful' failed .* it says changed=True, the graph says otherwise"):
        run(net(), [Fake("double", rename_output), Fake("boastful", lambda gm: True)])


def test_a_graph_that_breaks_lint_is_refused() -> None:
    def use_before_definition(gm: GraphModule) -> bool:
        gm.graph.find_nodes(op="get_attr", target="fc.weight")[0].prepend(gm.graph.output_node())
        return True

    with pytest.raises(
        PassError, match=r"pass 'shuffle' failed after \[\]: RuntimeError: .*before it has been defined"
    ):
        run(net(), [Fake("shuffle", use_before_definition)])


def test_a_call_of_a_module_that_is_not_there_is_refused() -> None:
    def call_nowhere(gm: GraphModule) -> bool:
        output = gm.graph.output_node()
        with gm.graph.inserting_before(output):
            output.args = (gm.graph.create_node("call_module", "nowhere", output.args),)
        return True

    with pytest.raises(
        PassError, match=r"pass 'lost' failed after \[\]: .*nowhere(.*\n)*%nowhere = nowhere:missing\(%fc\)"
    ):
        run(net(), [Fake("lost", call_nowhere)])

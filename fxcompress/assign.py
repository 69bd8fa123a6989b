"""Assign the rules of a spec to the weights and activations of a model, before anything is rewritten."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch.fx import Node

from fxcompress.errors import SpecError
from fxcompress.groups import Group
from fxcompress.operators import CONVOLUTIONS, TRANSPOSED, is_product, shape_of
from fxcompress.patterns import Blocks, Grouped
from fxcompress.rules import Prune, Quantize
from fxcompress.sites import Kind, Site
from fxcompress.spec import Spec


@dataclass(frozen=True)
class Assignment:
    """Which rule, by its index, acts on which tensor: `{(op, kind): {tensor: rule index}}`."""

    spec: Spec
    rules: Mapping[tuple[str, Kind], Mapping[str, int]]

    def prunes(self, kind: Kind, names: Iterable[str]) -> dict[str, Prune]:
        """The rules that prune those of `names` each by itself."""
        chosen = self._of("prune", kind, names)
        return {name: r for name, r in chosen if isinstance(r, Prune) and not (kind == "weight" and r.by_channel)}

    @property
    def by_channel(self) -> set[int]:
        """The rules, by index, that prune channels of weights."""
        return {i for i in self.rules["prune", "weight"].values() if self.prune_rule(i).by_channel}

    def channel_groups(self, groups: Iterable[Group]) -> dict[int, list[Group]]:
        """By rule (its index), the groups of channels that it prunes: those all of whose weights it selects.

        Raises SpecError if a rule for channels prunes none.
        """
        chosen = self.rules["prune", "weight"]
        rules = self.by_channel
        found: dict[int, list[Group]] = {index: [] for index in sorted(rules)}
        split: dict[int, tuple[Group, list[str]]] = {}
        for group in groups:
            of = {chosen.get(weight, -1) for weight in group.weights}
            for index in of & rules:
                if of == {index}:
                    found[index].append(group)
                else:
                    split.setdefault(index, (group, [w for w in group.weights if chosen.get(w) != index]))
        for index, mine in found.items():
            if not mine:
                raise SpecError(self._prunes_no_channel(index, split.get(index)))
        return found

    def prune_rule(self, index: int) -> Prune:
        """A rule that prunes, by its index."""
        rule = self.spec.rules[index]
        assert isinstance(rule, Prune)
        return rule

    def _prunes_no_channel(self, index: int, split: tuple[Group, list[str]] | None) -> str:
        if split is None:
            why = "the channels of all weights it selects are outputs of the model, or are mixed by what reads them"
            fix = "select others with 'match', or write pattern: unstructured"
        else:
            group, others = split
            mine = [w for w in group.weights if w not in others]
            theirs = ", ".join(map(repr, others[:5]))
            why = f"the channels of '{mine[0]}' go with those of {theirs}, which it does not select"
            fix = "select all of them, or leave all out"
        return f"rule {index + 1} '{self.spec.rules[index]}' can prune no channels: {why}; {fix}"

    def quantizes(self, kind: Kind, names: Iterable[str]) -> dict[str, Quantize]:
        """The quantize rules of those of `names` that have one."""
        return {name: rule for name, rule in self._of("quantize", kind, names) if isinstance(rule, Quantize)}

    def _of(self, op: str, kind: Kind, names: Iterable[str]) -> Iterator[tuple[str, Prune | Quantize]]:
        chosen = self.rules[op, kind]
        return ((name, self.spec.rules[chosen[name]]) for name in names if name in chosen)


def assign(spec: Spec, sites: list[Site]) -> Assignment:
    """Select the sites of every rule.

    Raises SpecError if a rule selects nothing, or two rules set the same thing on one tensor differently.
    """
    kinds: tuple[Kind, Kind] = ("weight", "activation")
    rules: dict[tuple[str, Kind], dict[str, int]] = {(op, kind): {} for op in ("prune", "quantize") for kind in kinds}
    for index, rule in enumerate(spec.rules):
        for kind in rule.target:
            able = [s for s in sites if s.kind == kind and (s.prunable if rule.op == "prune" else s.quantizable)]
            chosen = [s for s in able if _selects(rule, s)]
            if not chosen:
                raise SpecError(_selects_nothing(index, rule, kind, able))
            for site in chosen:
                _refuse_no_blocks(index, rule, site)
                _refuse_pattern(index, rule, site)
                _put(rules[rule.op, kind], site, index, spec)
    return Assignment(spec, rules)


def _selects(rule: Prune | Quantize, site: Site) -> bool:
    if rule.match and not rule.match.matches(site.names, site.types):
        return False
    return not (rule.exclude and rule.exclude.matches(site.names, site.types))


def _refuse_no_blocks(index: int, rule: Prune | Quantize, site: Site) -> None:
    if not isinstance(rule, Quantize) or rule.block is None:
        return
    shape = shape_of(site.node)
    if len(shape) != 2 or site.axis != 0 or shape[1] % rule.block:
        raise SpecError(
            f"rule {index + 1} '{rule}' wants blocks of {rule.block} inputs, and weight '{site.name}' "
            f"({'/'.join(site.types)}) has the shape {shape}; select linear layers whose inputs are a multiple of "
            f"{rule.block} with 'match' or 'exclude', or change 'block'"
        )


def _refuse_pattern(index: int, rule: Prune | Quantize, site: Site) -> None:
    """Refuse what the pattern, the criterion or the sizes of a rule cannot do with a tensor."""
    if not isinstance(rule, Prune):
        return
    problem, shape = "", shape_of(site.node)
    grouped, blocks = Grouped.of(rule.pattern), Blocks.of(rule.pattern)
    if site.kind == "weight" and (grouped or blocks):
        axis = site.axis
        wanted = (1, grouped.of_each) if grouped else (blocks.outputs, blocks.inputs) if blocks else (1, 1)
        if axis not in (0, 1) or shape[axis] % wanted[0] or shape[1 - axis] % wanted[1]:
            problem = f"has the shape {shape}, which its pattern does not divide"
    if site.kind == "weight" and rule.rewind is not None and site.node.op != "get_attr":
        problem = "is computed from parameters and cannot go back"
    if site.kind == "activation" and rule.sizes == "centre" and not _is_of_convolution(site.node):
        problem = f"has the shape {shape} and comes out of no convolution, so it has no centre"
    if problem:
        raise SpecError(
            f"rule {index + 1} '{rule}': {site.kind} '{site.name}' ({'/'.join(site.types)}) {problem}; select others "
            "with 'match' or 'exclude'"
        )


def _is_of_convolution(node: Node) -> bool:
    """Whether the unit that ends with `node` begins with a convolution."""
    while not is_product(node) and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node.target in CONVOLUTIONS | TRANSPOSED


def _put(chosen: dict[str, int], site: Site, index: int, spec: Spec) -> None:
    earlier = chosen.get(site.name)
    if earlier is not None and spec.rules[earlier] != spec.rules[index]:
        raise SpecError(
            f"rule {earlier + 1} '{spec.rules[earlier]}' and rule {index + 1} '{spec.rules[index]}' set "
            f"{spec.rules[index].op} on {site.kind} '{site.name}' differently; give one of them an 'exclude' that "
            "names it"
        )
    chosen.setdefault(site.name, index)


def _selects_nothing(index: int, rule: Prune | Quantize, kind: Kind, able: list[Site]) -> str:
    what = "pruned" if rule.op == "prune" else "quantized"
    there = ", ".join(f"'{s.name}' ({'/'.join(t for t in s.types if t)})" for s in able[:20])
    more = f" and {len(able) - 20} more" if len(able) > 20 else ""
    mend = (
        f"; mend 'match' or 'exclude': there are {there}{more}"
        if able
        else f"; the model has no {kind} that can be {what}"
    )
    return f"rule {index + 1} '{rule}' selects no {kind}{mend}"

"""Hypothesis strategies for specs and the text they are written in."""

from __future__ import annotations

from hypothesis import strategies as st

from fxcompress.fields import MAX_BITS, Match
from fxcompress.rules import Prune, Quantize
from fxcompress.spec import Spec

TARGETS = st.sampled_from(["weight", "activation", ("weight", "activation"), ["activation", "weight"]])
PERCENTS = st.integers(0, 1000).map(lambda tenths: f"{tenths / 10:g}%")
EPOCHS = st.integers(0, 9990).map(lambda tenths: f"{tenths / 10:g}ep")
STEPS = st.integers(0, 10**6)
TIMES = st.none() | PERCENTS | EPOCHS | STEPS
PATTERNS = st.text(min_size=1, max_size=8) | st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3)
MATCHES = st.builds(Match, type=PATTERNS) | st.builds(Match, name=PATTERNS, type=st.none() | PATTERNS)
SPARSITIES = st.floats(0, 1)
BITS = st.integers(2, MAX_BITS)
WINDOWS = st.integers(1, 2048)


@st.composite
def prunes(draw: st.DrawFn) -> Prune:
    """Any prune rule."""
    fields: dict[str, object] = {"target": draw(TARGETS), "sparsity": draw(SPARSITIES), "window": draw(WINDOWS)}
    fields |= {"match": draw(st.none() | MATCHES), "exclude": draw(st.none() | MATCHES)}
    if draw(st.booleans()):
        return Prune(**fields, ramp="one-shot", start=draw(TIMES))
    if draw(st.booleans()):
        return Prune(**fields, steps=draw(st.integers(1, 6)), start=draw(TIMES))
    start, end = sorted(draw(st.tuples(STEPS, STEPS)))
    return Prune(**fields, steps=draw(st.integers(2, 6)), start=start, end=end)


@st.composite
def long_prunes(draw: st.DrawFn) -> Prune:
    """Prune rules with what only files say: patterns, criteria, scopes, ramps and what follows them."""
    fields: dict[str, object] = {"target": "weight", "start": 10, "match": draw(st.none() | MATCHES)}
    fields |= draw(st.sampled_from([
        {"pattern": "2:4"}, {"pattern": "channel", "sparsity": 0.5}, {"pattern": "4x1", "sparsity": 0.25},
        {"sparsity": 0.5, "scope": "global", "floor": 0.1}, {"criterion": "zeros"}, {"sparsity": 0.5},
        {"sparsity": 0.3, "composition": "p(q(x))"},
        {"target": "activation", "sparsity": 0.5, "sizes": "centre"},
    ]))  # fmt: skip
    if fields["target"] == "activation" or "criterion" in fields or "2:4" in fields.values():
        return Prune(**fields)
    fields["criterion"] = draw(st.sampled_from(["magnitude", "gradient", "movement", "random", "math:fabs"]))
    fields |= draw(st.sampled_from([
        {"ramp": "one-shot"}, {"ramp": "linear", "end": "5ep"}, {"ramp": "polynomial", "power": 2.5, "steps": 3},
        {"interval": 5}, {"interval": 5, "until": 90}, {"sequence": "front-to-back", "end": 40},
        {"release": "90%"}, {"rewind": 5}, {"gradient": "dense"},
    ]))  # fmt: skip
    return Prune(**fields)


def quantizes() -> st.SearchStrategy[Quantize]:
    """Any quantize rule."""
    return st.builds(
        Quantize,
        target=st.sampled_from(["weight", ("weight", "activation")]),
        bits=BITS,
        start=TIMES,
        per_channel=st.sampled_from([None, True, False]),
        symmetric=st.sampled_from([None, True, False]),
        signed=st.sampled_from([None, True, False]),
        scale=st.sampled_from(["float", "power-of-two", "learned"]),
        range=st.sampled_from(["min-max", "moving-average", "mse", "entropy", {"quantile": [0.001, 1]}]),
        window=WINDOWS,
        first_last_bits=BITS,
        match=st.none() | MATCHES,
        exclude=st.none() | MATCHES,
    )


def specs() -> st.SearchStrategy[Spec]:
    """Any spec; times may be in any order, as they may in a list."""
    return st.builds(
        Spec, rules=st.lists(prunes() | long_prunes() | quantizes() | short_rules(), min_size=1, max_size=4)
    )


def short_rules(starts: st.SearchStrategy[object] = TIMES) -> st.SearchStrategy[Prune | Quantize]:
    """Rules the notation can say."""
    return st.builds(Prune, target=TARGETS, sparsity=SPARSITIES, start=starts) | st.builds(
        Quantize, target=TARGETS, bits=BITS, start=starts
    )


def untimed_specs() -> st.SearchStrategy[Spec]:
    """Specs whose rules have no times."""
    return st.builds(Spec, rules=st.lists(short_rules(st.none()), min_size=1, max_size=5))


@st.composite
def ordered_specs(draw: st.DrawFn) -> Spec:
    """Specs with and without starts, the starts rising in whole percent from 1% on."""
    percents = sorted(draw(st.lists(st.integers(1, 100), max_size=5, unique=True)))
    rules = [draw(short_rules(st.just(f"{percent}%"))) for percent in percents]
    for _ in range(draw(st.integers(0 if rules else 1, 3))):
        rules.insert(draw(st.integers(0, len(rules))), draw(short_rules(st.none())))
    return Spec(rules=rules)

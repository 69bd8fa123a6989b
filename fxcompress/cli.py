"""The command line `fxcompress`: a table of subcommands over what the Python interface does."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxcompress.errors import FxCompressError

if TYPE_CHECKING:  # imports torch, which takes seconds
    from fxcompress.module import CompressedModule

DISAGREES = 1
FAILED = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """A subcommand: its name, a line of help, what adds its arguments, and what runs it and returns an exit code or
    None for 0."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit code, or 2 after one line of error on standard error."""
    chosen = make_parser().parse_args(arguments)
    try:
        return int(chosen.run(chosen) or 0)
    except FxCompressError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands in `COMMANDS`."""
    parser = argparse.ArgumentParser(
        prog="fxcompress", description="Quantization and pruning, scheduled during training."
    )
    parser.add_argument("--version", action="version", version=f"fxcompress {metadata.version('fxcompress')}")
    subcommands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        own = subcommands.add_parser(
            command.name,
            help=command.help,
            description=command.help,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.add_arguments(own)
        own.set_defaults(run=command.run)
    return parser


def _add_demo(parser: argparse.ArgumentParser) -> None:
    from fxcompress.demo import Options

    default = Options()
    parser.add_argument(
        "--spec", default=default.spec, help="what is done and when: notation, or the path of a spec file"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="the first seed")
    parser.add_argument("--seeds", type=int, default=default.seeds, help="how many seeds, counted up from --seed")
    parser.add_argument("--epochs", type=int, default=default.epochs, help="passes over the training images")
    parser.add_argument("--batch-size", type=int, default=default.batch_size, help="images in a training step")
    parser.add_argument(
        "--checkpoint-every",
        type=int,
        default=default.checkpoint_every,
        help="training steps between checkpoints, besides one an epoch",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=default.out,
        help="folder for the files; a demo that was interrupted there goes on where it was",
    )


def _run_demo(chosen: argparse.Namespace) -> None:
    from fxcompress.demo import Options, run_demo

    names = ("spec", "seed", "seeds", "epochs", "batch_size", "checkpoint_every", "out")
    run_demo(Options(**{name: getattr(chosen, name) for name in names}))


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", help="notation, or the path of a spec file")
    parser.add_argument(
        "--steps", type=int, help="optimizer steps of the training; needed unless the spec gives every time in steps"
    )
    parser.add_argument("--steps-per-epoch", type=int, help="optimizer steps of an epoch, for times such as 115ep")
    parser.add_argument("--picture", type=Path, help="write the timeline to this .png, .svg or .pdf file too")


def _run_plan(chosen: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from fxcompress.picture import write_picture
    from fxcompress.rules import Prune
    from fxcompress.spec import Spec
    from fxcompress.timing import plan
    from fxcompress.tracks import bars, tracks

    spec = Spec.of(chosen.spec)
    phases = plan(spec, chosen.steps, chosen.steps_per_epoch)
    length = chosen.steps or max((act.step for phase in phases for act in phase.acts_of()), default=1)
    if chosen.picture:
        write_picture(tracks(phases), length, chosen.picture)
    table = Table(title=f"{spec} over {chosen.steps} steps" if chosen.steps else str(spec))
    for column in ("rule", "what", "target", "after step", "to"):
        table.add_column(column)
    for phase in phases:
        rule = phase.rule
        to = ", ".join(f"{100 * s:.1f} %" for s in rule.levels()) if isinstance(rule, Prune) else f"{rule.bits} bits"
        number = str(phase.rule_index + 1)
        table.add_row(number, rule.op, phase.target, ", ".join(map(str, phase.steps)), to)
        for action, acts in groupby(phase.more, attrgetter("action")):
            table.add_row(number, action, phase.target, ", ".join(str(a.step) for a in acts), "")
    console = Console(highlight=False)
    console.print(table)
    console.print("\n".join(bars(tracks(phases), length)))


def _add_net(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="module:function, which returns the model that was compressed")
    parser.add_argument("net", type=Path, help="what fxcompress.save wrote of the trained net")
    parser.add_argument(
        "--inputs", type=Path, help="an .npz or .pt file of inputs, instead of the net's example inputs"
    )


def _load_net(chosen: argparse.Namespace) -> tuple[CompressedModule, Any]:
    """The net, and the inputs to run it on; but first see that the page may be written."""
    from fxcompress import load
    from fxcompress.files import writable
    from fxcompress.loading import inputs_from, model_from

    if chosen.html:
        writable(chosen.html)
    inputs = inputs_from(chosen.inputs) if chosen.inputs else None
    model, example_inputs = model_from(chosen.model)
    return load(chosen.net, model, example_inputs), inputs


def _add_verify(parser: argparse.ArgumentParser) -> None:
    _add_net(parser)
    parser.add_argument("file", type=Path, help="the ONNX file")
    parser.add_argument("--html", type=Path, help="write the comparison to this file too, with plots")


def _run_verify(chosen: argparse.Namespace) -> int:
    from fxcompress import verify

    net, inputs = _load_net(chosen)
    found = verify(net, chosen.file, inputs)
    if chosen.html:
        found.to_html(chosen.html)
    print(found)
    return 0 if found.ok else DISAGREES


def _add_report(parser: argparse.ArgumentParser) -> None:
    _add_net(parser)
    parser.add_argument("--html", type=Path, help="write the page to this file too")
    parser.add_argument("--file", type=Path, help="the ONNX file, to be verified for the page")


def _run_report(chosen: argparse.Namespace) -> None:
    from fxcompress import report, verify, write_report

    net, inputs = _load_net(chosen)
    report(net)
    if chosen.html:
        verification = verify(net, chosen.file, inputs) if chosen.file else None
        write_report(net, chosen.html, inputs=inputs, verification=verification)


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help="module:function, which returns a dict with what fxcompress.search takes")
    parser.add_argument("spec", help="rules without times: notation, or the path of a spec file")
    parser.add_argument("--trials", type=int, default=30, help="of the whole study")
    parser.add_argument("--storage", default="search.journal", help="a file, or the URL of a database")
    parser.add_argument("--name", default="search", help="of the study in its storage")
    parser.add_argument("--sampler", default="tpe", help="tpe or random")
    parser.add_argument("--objectives", nargs="+", default=["metric"], help="metric, bytes, bops, latency")
    parser.add_argument("--minimize", action="store_true", help="a smaller metric is better")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of each trial's trainings")
    parser.add_argument("--start", default="5%", help="when the first event may act")
    parser.add_argument("--end", default="80%", help="by when all have acted")
    parser.add_argument("--orders", default="any", help="any, or given: that of the spec")
    parser.add_argument("--sparsity", type=float, nargs=2, help="the range that rules that prune choose from")
    parser.add_argument("--bits", type=int, nargs="+", help="what rules that quantize choose from")
    parser.add_argument("--compositions", action="store_true", help="choose q(p(x)) or p(q(x)) too")
    parser.add_argument(
        "--out", type=Path, default=Path("search"), help="folder for the best spec, ranking and picture"
    )


def _run_search(chosen: argparse.Namespace) -> None:
    from fxcompress import Space, search
    from fxcompress.loading import task_from

    pair = tuple(chosen.sparsity) if chosen.sparsity else None
    bits = tuple(chosen.bits) if chosen.bits else None
    space = Space(chosen.spec, chosen.start, chosen.end, chosen.orders, pair, bits, chosen.compositions)
    options = {name: getattr(chosen, name) for name in ("trials", "objectives", "seeds", "sampler", "storage", "name")}
    found = search(space, **{**options, "maximize": not chosen.minimize, **task_from(chosen.task)})
    print(found)
    print("written:", ", ".join(map(str, found.write(chosen.out))))


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    """For a subcommand without arguments."""


def _run_schema(chosen: argparse.Namespace) -> None:
    from fxcompress.spec import Spec

    print(json.dumps(Spec.json_schema(), indent=2))


COMMANDS = (
    Command(
        "demo", "Train, compress, export and compare a small residual network on real digits.", _add_demo, _run_demo
    ),
    Command("plan", "Print when each rule of a spec acts, without a model.", _add_plan, _run_plan),
    Command(
        "verify",
        "Compare an ONNX file, run in the runtimes there are, with the net it was made from; 1 if they disagree.",
        _add_verify,
        _run_verify,
    ),
    Command("report", "Print what stands where in a saved net, and write it as a page.", _add_report, _run_report),
    Command(
        "search", "Find the best order and times of a spec's rules for a task, with Optuna.", _add_search, _run_search
    ),
    Command("schema", "Print the JSON schema of spec files, for editors.", _add_nothing, _run_schema),
)

if __name__ == "__main__":
    sys.exit(main())

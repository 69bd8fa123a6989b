"""The demo: a residual network on real digits, trained in float and compressed, exported, measured and compared."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxcompress as fxc
from fxcompress.demo import data as demo_data
from fxcompress.demo.data import DemoError
from fxcompress.demo.measure import accuracy, accuracy_of_file, export_float, masked, milliseconds, zeros
from fxcompress.demo.net import DigitsNet
from fxcompress.demo.table import render_results
from fxcompress.demo.train import Pace, Training, make_optimizer, write_whole
from fxcompress.notation import to_yaml
from fxcompress.runtime import saturates
from fxcompress.spec import Spec
from fxcompress.verify import Verification

BATCH = 64
"""Images in a batch where latency and agreement are measured."""


@dataclass(frozen=True)
class Options:
    """What `fxcompress demo` can be told; the defaults are its own."""

    spec: str = "P0.5(w,f) -> Q8(w,f)"
    seed: int = 0
    seeds: int = 3
    epochs: int = 20
    batch_size: int = 64
    checkpoint_every: int = 20
    out: Path = Path("runs/demo")

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("seeds", 1), ("epochs", 1), ("batch_size", 2), ("checkpoint_every", 1)):
            if getattr(self, name) < least:
                raise DemoError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be {least} or more")


def run_demo(options: Options) -> dict[str, Any]:
    """Train, export and measure a float and a compressed net for every seed; return what `results.json` holds.

    Whatever was interrupted in `options.out` goes on where it was. Raises DemoError if that folder holds another demo,
    SpecError if the spec does not fit the network or the length of the training.
    """
    started = time.perf_counter()
    spec = Spec.of(options.spec)
    _prepare_folder(options, spec)
    with _one_thread(), _quiet_exporter():
        seeds = [_Seed(seed, options, spec).run() for seed in range(options.seed, options.seed + options.seeds)]
        for name in ("float.onnx", "compressed.onnx"):
            shutil.copyfile(options.out / f"seed{options.seed}" / name, options.out / name)
    results = {
        "spec": str(spec),
        "options": {**asdict(options), "out": str(options.out)},
        "seeds": seeds,
        "seconds": round(time.perf_counter() - started, 1),
    }
    _write_text(options.out / "results.json", json.dumps(results, indent=2) + "\n")
    print(render_results(results))
    print(f"files in {options.out}: {', '.join(sorted(p.name for p in options.out.iterdir()))}")
    return results


class _Seed:
    """Everything that is done for one seed, in a folder of its own."""

    def __init__(self, seed: int, options: Options, spec: Spec) -> None:
        self.seed, self.options, self.spec = seed, options, spec
        self.folder = options.out / f"seed{seed}"
        self.folder.mkdir(exist_ok=True)
        self.data = demo_data.load(seed)
        self.images = self.data.test_images[:BATCH]

    def run(self) -> dict[str, Any]:
        """Train both nets from the same weights for the same steps, export and measure them."""
        torch.manual_seed(self.seed)
        model = DigitsNet()
        net, optimizer = self._compressed(copy.deepcopy(model))
        self._train("float", model, make_optimizer(model))
        self._train("compressed", net, optimizer)
        float_file, file = self.folder / "float.onnx", self.folder / "compressed.onnx"
        export_float(model, float_file, self.images)
        verification = fxc.export_onnx(net, file, self.images)
        if self.seed == self.options.seed:
            _write_text(self.options.out / "report.txt", f"{_report(net)}\n\n{verification}\n")
        return {
            "seed": self.seed,
            "accuracy": {
                "float": accuracy(model, self.data),
                "compressed": accuracy(net, self.data),
                "onnxruntime": accuracy_of_file(file, self.data),
            },
            "zeros": zeros(net, self.data.test_images),
            "masked": masked(net),
            "bytes": {"float": float_file.stat().st_size, "compressed": file.stat().st_size},
            "milliseconds": milliseconds({"float": float_file, "compressed": file}, self.images),
            "agreement": _agreement(verification),
            "masks": {"bytes": verification.mask_bytes, "time_share": verification.mask_time_share},
        }

    def _compressed(self, model: nn.Module) -> tuple[fxc.CompressedModule, torch.optim.Optimizer]:
        optimizer = make_optimizer(model)
        steps = self.data.steps(self.options.batch_size) * self.options.epochs
        example = self.data.train_images[: self.options.batch_size]
        target = "onnxruntime-avx2" if saturates() else "onnxruntime"
        net = fxc.compress(model, self.spec, example, total_steps=steps, optimizer=optimizer, target=target)
        return net, optimizer

    def _train(self, name: str, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        pace = Pace(self.options.epochs, self.options.batch_size, self.options.checkpoint_every)
        Training(name, net, optimizer, self.data, pace, self.folder).fit()


def _agreement(found: Verification) -> dict[str, Any]:
    return {
        "tensors": len(found.tensors),
        "equal_tensors": sum(min(t.equal) == 1 for t in found.tensors),
        "largest_step": max((max(t.largest) for t in found.tensors), default=0),
        "unexplained": sum(t.unexplained[0] for t in found.tensors),
        "outputs_equal": min(o.equal[1] for o in found.outputs),
        "outputs_largest": max(o.largest[1] for o in found.outputs),
        "outputs_unit": found.outputs[0].unit,
        "left_in_float": list(found.float_operators),
        "ok": found.ok,
    }


def _report(net: fxc.CompressedModule) -> str:
    with redirect_stdout(StringIO()):
        return str(fxc.report(net))


def _prepare_folder(options: Options, spec: Spec) -> None:
    """Make the folder, or check that what stands in it was made with the same settings."""
    settings = {"spec": str(spec), "seed": options.seed, "epochs": options.epochs, "batch_size": options.batch_size}
    file = options.out / "settings.json"
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        there = json.loads(file.read_text()) if file.exists() else settings
        differing = [f"{k} {there.get(k)!r}, not {v!r}" for k, v in settings.items() if there.get(k) != v]
        if differing:
            raise DemoError(
                f"'{options.out}' holds a demo with {'; '.join(differing)}; "
                "name another folder with --out, or delete that one"
            )
        _write_text(file, json.dumps(settings, indent=2) + "\n")
        _write_text(options.out / "spec.yaml", to_yaml(spec.to_dict()["rules"]))
    except (OSError, ValueError) as error:
        raise DemoError(f"cannot use '{options.out}': {error}; name another folder with --out") from error


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda part: part.write_text(text))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in an order that no number of cores changes; a net this small is no slower, and waits for no busy core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence PyTorch's exporter about packages that the demo does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""What tests/test_distributed.py runs on several ranks: `python -m torch.distributed.run ... distributing.py TASK FOLDER`."""

from __future__ import annotations

import copy
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fxcompress as fxc
from fxcompress.errors import FxCompressError
from fxcompress.grid import Grid
from fxcompress.joined import join
from fxcompress.pruner import Pruner
from fxcompress.quantizer import Plan, Quantizer
from fxcompress.ranges import Calibration
from fxcompress.rules import Prune

STEPS = 16
HALF = 5  # within windows of every spec that is resumed here
BATCH = 8


def rule(op: str, target: Any, start: Any, **more: Any) -> dict[str, Any]:
    return {"op": op, "target": target, "start": start, **more}


def noise(values: Tensor) -> Tensor:
    """Scores that every process draws for itself."""
    return torch.rand(values.shape, generator=torch.Generator().manual_seed(os.getpid()))


PRUNED, QUANTIZED = ["weight", "activation"], ["weight", "activation"]
SPECS: dict[str, Any] = {
    "joint": "P0.5(w,f) -> Q8(w,f)",
    "histograms": {
        "rules": [
            rule("quantize", "activation", "40%", bits=8, range={"quantile": [0.01, 0.99]}),
            rule("quantize", "weight", "40%", bits=8, range="mse"),
        ]
    },
    "averages": {"rules": [rule("quantize", QUANTIZED, "50%", bits=8, range="moving-average", window=4)]},
    "gradients": {"rules": [rule("prune", "weight", "25%", sparsity=0.5, criterion="movement", end="75%", window=2)]},
    "channels": {
        "rules": [
            rule(
                "prune",
                "weight",
                "25%",
                sparsity=0.5,
                criterion="gradient",
                pattern="channel",
                end="75%",
                scope="global",
            )
        ]
    },
    "drawn": {"rules": [rule("prune", "weight", "50%", sparsity=0.5, criterion="distributing:noise")]},
    "rewound": {"rules": [rule("prune", "weight", "25%", sparsity=0.5, end="50%", rewind=1)]},
    "at once": {"rules": [rule("prune", "weight", 0, sparsity=0.5, ramp="one-shot")]},
    "calibrated": "Q8(w,f)",
    # Late, since each rounding that flips moves the scales, and these all that follows.
    "learned": {"rules": [rule("quantize", QUANTIZED, "80%", bits=4, scale="learned", first_last_bits=4)]},
}


class Net(nn.Module):
    """Two blocks and a head, so that blocks can be sharded each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
        self.head = nn.Linear(72, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).flatten(1))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """This rank's part of what all ranks train on at a step."""
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(BATCH, 3, 6, 6, generator=generator), torch.randint(4, (BATCH,), generator=generator)
    if not dist.is_initialized():
        return x, y
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    return x[mine], y[mine]


class Run:
    """One training: the net, what wraps it, its optimizer, and the losses of the joined batches so far."""

    def __init__(self, spec: str, how: str = "alone", seed: int = 0) -> None:
        torch.manual_seed(seed)
        model = Net()
        optimizer = make_optimizer(model) if spec == "learned" else None
        example = batch(99)[0][:1]
        self.net = self.wrapped = fxc.compress(model, SPECS[spec], example, total_steps=STEPS, optimizer=optimizer)
        if how in ("blocks", "parts"):
            fully_shard(self.net.first)
            fully_shard(self.net.second)
        if how in ("fsdp", "blocks"):
            fully_shard(self.net)
        if how == "ddp":
            self.wrapped = DistributedDataParallel(self.net, find_unused_parameters=spec == "learned")
        if how == "ddp around":
            self.wrapped = DistributedDataParallel(nn.Sequential(self.net))
        self.optimizer = optimizer or make_optimizer(self.net)
        self.net.schedule.attach(self.optimizer)
        self.losses: list[float] = []

    def train(self, until: int = STEPS) -> Run:
        for step in range(self.net.schedule.steps, until):
            x, y = batch(step)
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.wrapped(x), y)
            loss.backward()
            self.optimizer.step()
            mean = loss.detach().clone()
            if dist.is_initialized():
                dist.all_reduce(mean)
                mean /= dist.get_world_size()
            self.losses.append(float(mean))
        return self

    def found(self) -> dict[str, Any]:
        """What to compare: the whole state of the net, and the losses."""
        state = (
            get_model_state_dict(self.net, options=StateDictOptions(full_state_dict=True))
            if dist.is_initialized()
            else self.net.state_dict()
        )
        return {"state": {k: v.clone() for k, v in state.items()}, "losses": self.losses}


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def note(folder: Path, name: str, found: Any) -> None:
    torch.save(found, folder / f"{name}.{dist.get_rank()}.pt")


# Tasks


def ddp(folder: Path) -> None:
    """Every spec; where it acts at step 0, on weights that only DDP makes equal."""
    for spec in SPECS:
        note(folder, f"ddp {spec}", Run(spec, "ddp", seed=dist.get_rank() if spec == "at once" else 0).train().found())


def fsdp(folder: Path) -> None:
    """Parameters split over ranks, as one group or by block."""
    for spec in ("joint", "gradients", "channels", "rewound", "histograms"):
        note(folder, f"fsdp {spec}", Run(spec, "fsdp").train().found())
    note(folder, "blocks joint", Run("joint", "blocks").train().found())
    run = Run("joint", "fsdp").train()
    refused(folder, "sharded", lambda: fxc.save(run.net, folder / "net.fxc"))
    refused(folder, "report", lambda: fxc.report(run.net))
    refused(folder, "export", lambda: fxc.export_onnx(run.net, folder / "net.onnx", batch(0)[0]))
    refused(folder, "parts", lambda: Run("joint", "parts"))


def resume(folder: Path) -> None:
    """Saved by the first rank in the midst of windows, and gone on with by new processes' nets."""
    for spec in ("joint", "histograms", "averages", "gradients"):
        run = Run(spec, "ddp").train(HALF)
        run.net.schedule.join()
        state = [copy.deepcopy((run.net.state_dict(), run.optimizer.state_dict()))] if dist.get_rank() == 0 else [None]
        note(folder, f"whole {spec}", run.train().found())
        dist.broadcast_object_list(state)
        again = Run(spec, "ddp", seed=1)
        again.net.load_state_dict(state[0][0])
        again.optimizer.load_state_dict(state[0][1])
        note(folder, f"resumed {spec}", again.train().found())


def seen(folder: Path) -> None:
    """Observers of a rank's own values, put together; one of them saw nothing on the second rank."""
    values = observed(dist.get_rank())
    kinds = {"min-max": "min-max", "mse": "mse", "moving-average": "moving-average", "unseen": "moving-average"}
    modules = {name: Quantizer(Plan(Grid(8, False, False), Calibration(kind))) for name, kind in kinds.items()}
    for name, module in modules.items():
        if name != "unseen" or dist.get_rank() == 0:
            module.observer(values)
    pruner = Pruner((4,))
    pruner.observing = True
    pruner(values[:, :4])
    watched = Pruner((4,), (4,), Prune(sparsity=0.5, target="weight", criterion="movement"))
    watched.sensitivity.copy_(values[0, :4])
    join([*modules.values(), pruner, watched], None)
    found = {f"{n} {key}": value for n, m in modules.items() for key, value in m.observer.named_buffers()}
    note(folder, "seen", {**found, "magnitude": pruner.magnitude, "sensitivity": watched.sensitivity})


def calibrated(folder: Path) -> None:
    """Post-training quantization, each rank on batches of its own."""
    run = Run("calibrated")
    fxc.calibrate(run.net, [batch(step)[0] for step in range(3)], correct_bias=True)
    note(folder, "calibrated", run.found())


def refusals(folder: Path) -> None:
    """What cannot go right, and a net of each rank's own."""
    refused(folder, "around", lambda: Run("joint", "ddp around").train())
    own = ("joint", "averages")[dist.get_rank() % 2]
    refused(folder, "different", lambda: Run(own).train())
    run = Run(own)
    run.net.schedule.group = dist.new_subgroups(group_size=1)[0]
    with counted() as calls:
        run.net.schedule.attach(run.optimizer)
        for step in range(STEPS):
            run.net(batch(step)[0]).sum().backward()
            run.optimizer.step()
    note(folder, "own", {"calls": calls, "pending": len(run.net.schedule.pending())})


def counts(folder: Path) -> None:
    """How many collectives the schedule needs at each step."""
    run = Run("joint", "ddp")
    per_step = []
    for step in range(STEPS):
        x, y = batch(step)
        run.optimizer.zero_grad()
        nn.functional.cross_entropy(run.wrapped(x), y).backward()
        with counted() as calls:
            run.optimizer.step()
        per_step.append(len(calls))
    note(folder, "counts", {"per step": per_step, "events": sorted({e.step for e in run.net.schedule.events})})


def dcp_save(folder: Path) -> None:
    """Half of a training, as a checkpoint of all ranks."""
    for how in ("fsdp", "ddp"):
        run = Run("joint", how).train(HALF)
        run.net.schedule.join()
        model, optimizer = get_state_dict(run.net, run.optimizer)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder / how)
        note(folder, f"saved {how}", run.found())
        note(folder, f"whole {how}", run.train().found())


def dcp_load(folder: Path) -> None:
    """The other half on another number of ranks, read in each way."""
    for how in ("fsdp", "ddp"):
        for way in ("set", "load", "train"):
            run = Run("joint", how, seed=1)
            model, optimizer = get_state_dict(run.net, run.optimizer)
            state = {"model": run.net.state_dict() if way != "set" else model, "optimizer": optimizer}
            dcp.load(state, checkpoint_id=folder / how)
            set_optimizer_state_dict(run.net, run.optimizer, state["optimizer"])
            if way == "set":
                set_model_state_dict(run.net, state["model"])
            elif way == "load":
                run.net.load_state_dict(state["model"])
            else:
                run.net.train()  # what was read stands in the net's own tensors
            note(folder, f"read {how} {way}", {**run.found(), **flags(run.net)})
            note(folder, f"resumed {how} {way}", run.train().found())


def elastic(folder: Path) -> None:
    """One rank dies in mid-ramp the first time; torchrun starts all again, and they go on from the last checkpoint."""
    kept = checkpointed(folder / "kept", dies=os.environ["TORCHELASTIC_RESTART_COUNT"] == "0")
    note(folder, "restarted", kept.found())
    note(folder, "whole", checkpointed(folder / "whole", dies=False).found())


def checkpointed(folder: Path, dies: bool) -> Run:
    run = Run("joint", "ddp")
    model, optimizer = get_state_dict(run.net, run.optimizer)
    state = {"model": model, "optimizer": optimizer}
    if (folder / "last").exists():
        dcp.load(state, checkpoint_id=folder / (folder / "last").read_text())
        set_state_dict(run.net, run.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    for step in range(run.net.schedule.steps, STEPS):
        run.train(step + 1)
        if step % 3 == 2:
            run.net.schedule.join()
            model, optimizer = get_state_dict(run.net, run.optimizer)
            dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder / f"{step}")
            (folder / "last").write_text(f"{step}") if dist.get_rank() == 0 else None
            dist.barrier()
        if dies and step == 7 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    return run


# What they share


def observed(rank: int) -> Tensor:
    """Values of different reach on each rank."""
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(rank)) * (1 + 3 * rank)


def flags(net: nn.Module) -> dict[str, Any]:
    """What a forward reads of pruners and quantizers."""
    compressors = [m for m in net.modules() if isinstance(m, (Pruner, Quantizer))]
    return {"enabled": [m.is_enabled for m in compressors], "observing": [m.observing for m in compressors]}


def refused(folder: Path, name: str, does: Callable[[], Any]) -> None:
    """Note the error on every rank."""
    try:
        does()
        note(folder, name, "no error")
    except FxCompressError as error:
        note(folder, name, str(error))


@contextmanager
def counted() -> Iterator[list[str]]:
    """The collectives that are called meanwhile, by name."""
    calls: list[str] = []
    functions = {name: getattr(dist, name) for name in ("all_reduce", "broadcast", "barrier")}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return functions[name](*args, **kwargs)

        return call

    for name in functions:
        setattr(dist, name, counting(name))
    try:
        yield calls
    finally:
        for name, function in functions.items():
            setattr(dist, name, function)


TASKS: dict[str, Callable[[Path], None]] = {
    f.__name__: f for f in (ddp, fsdp, resume, seen, calibrated, refusals, counts, dcp_save, dcp_load, elastic)
}

if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.path.insert(0, str(Path(__file__).parent))
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    for task in sys.argv[2].split(","):
        TASKS[task](Path(sys.argv[1]))
    dist.destroy_process_group()

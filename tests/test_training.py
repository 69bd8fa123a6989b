"""Trainers of others move the schedule, save a run and go on with it to the bit."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers import LIGHTNING
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments

import fxcompress as fxc

pytestmark = pytest.mark.filterwarnings(*LIGHTNING)
JOINT = "P0.5(w,f) -> Q8(w,f)"
LEARNED = {
    "rules": [
        {"op": "prune", "target": "weight", "sparsity": 0.5, "start": "10%"},
        {"op": "quantize", "target": ["weight", "activation"], "bits": 8, "scale": "learned", "start": "70%"},
    ]
}
STEPS = 16  # of which half are trained before a run is interrupted, in the midst of ramps and windows
X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
Y = X[:, :4].argmax(1)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A process of accelerate's own for each test, and a folder for what trainers leave."""
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    AcceleratorState._reset_state(reset_partial_state=True)
    with torch.random.fork_rng():
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Classifier(nn.Module):
    """A model that computes its loss, as transformers' do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.body(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def assert_same(net: nn.Module, other: nn.Module) -> None:
    """Check all state: of the model, of the compression and of the schedule."""
    theirs = other.state_dict()
    assert [*net.state_dict()] == [*theirs]
    assert [name for name, value in net.state_dict().items() if not torch.equal(value, theirs[name])] == []


# Lightning


class Module(lightning.LightningModule):
    """The net, and an optimizer made where Lightning asks for it; before where scales are learned."""

    def __init__(self, spec: Any = JOINT) -> None:
        super().__init__()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.first = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) if spec is LEARNED else None
        self.net: Any = fxc.compress(model, spec, X[:2], total_steps=STEPS, optimizer=self.first)

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = self.net.schedule.attached or torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.net.schedule.attach(optimizer)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Remembering(DataLoader[Any]):
    """A loader that goes on in the middle of an epoch."""

    seen = 0
    skip = 0

    def __iter__(self) -> Any:
        skip, self.skip = self.skip, 0
        for index, batch in enumerate(super().__iter__()):
            if index >= skip:
                self.seen = index + 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skip = state["seen"]


class SaveAt(lightning.Callback):
    """Saves a checkpoint after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint("midway.ckpt")


def fit(module: Any, epochs: int, loader: Any = None, checkpoint: str | None = None, **kwargs: Any) -> Any:
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **kwargs,
    )  # fmt: skip
    trainer.fit(module, loader or DataLoader(TensorDataset(X, Y), batch_size=16), ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize("spec", [JOINT, LEARNED], ids=["joint", "learned"])
def test_lightning_resumes_to_the_bit(spec: Any) -> None:
    whole, half, resumed = Module(spec), Module(spec), Module(spec)
    fit(whole, 4)
    fit(half, 2).save_checkpoint("half.ckpt")
    assert half.net.schedule.steps == 8 and half.net.schedule.pending()
    fit(resumed, 4, checkpoint="half.ckpt")
    assert resumed.net.schedule.steps == STEPS and not resumed.net.schedule.pending()
    assert_same(resumed, whole)


def test_lightning_resumes_within_an_epoch_with_a_loader_that_remembers() -> None:
    whole, resumed = Module(), Module()
    fit(whole, 4, Remembering(TensorDataset(X, Y), batch_size=16), callbacks=[SaveAt(6)])
    fit(resumed, 4, Remembering(TensorDataset(X, Y), batch_size=16), "midway.ckpt", callbacks=[SaveAt(0)])
    assert resumed.net.schedule.steps == STEPS
    assert_same(resumed, whole)


def test_lightning_accumulates_gradients() -> None:
    module = Module()
    fit(module, 4, accumulate_grad_batches=2)
    assert module.net.schedule.steps == 8


def test_lightning_fits_twice() -> None:
    module = Module()
    fit(module, 2)
    fit(module, 2)
    assert module.net.schedule.steps == STEPS


# Hugging Face Trainer


def trainer_of(kind: str, spec: Any = JOINT, **options: Any) -> Any:
    torch.manual_seed(0)
    if kind == "tied":
        config = BertConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        model, text = BertForMaskedLM(config), Y.view(8, 8)
        rows: Any = [{"input_ids": row, "labels": row} for row in text]
        example = {"input_ids": text[:2], "labels": text[:2]}
    else:
        model, rows = Classifier(), [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
        example = {"x": X[:2], "labels": Y[:2]}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    net = fxc.compress(model, spec, example, total_steps=STEPS, optimizer=optimizer)
    options = {"max_steps": STEPS, "per_device_train_batch_size": 4, "save_steps": 6, **options}
    arguments = TrainingArguments(
        "out", use_cpu=True, report_to="none", disable_tqdm=True, logging_strategy="no", **options
    )
    return Trainer(net, arguments, train_dataset=rows, eval_dataset=rows, optimizers=(optimizer, None))


@pytest.mark.parametrize(
    ("kind", "spec"), [("plain", JOINT), ("plain", LEARNED), ("tied", JOINT)], ids=["plain", "learned", "tied"]
)
def test_hugging_face_trainer_resumes_to_the_bit(kind: str, spec: Any) -> None:
    whole = trainer_of(kind, spec)
    whole.train()
    for steps in (6, 12):
        resumed = trainer_of(kind, spec)
        resumed.train(resume_from_checkpoint=f"out/checkpoint-{steps}")
        assert resumed.model.schedule.steps == STEPS and not resumed.model.schedule.pending()
        assert_same(resumed.model, whole.model)


@pytest.mark.parametrize("options", [{"gradient_accumulation_steps": 2}, {"bf16": True}], ids=str)
def test_hugging_face_trainer_moves_the_schedule_once_a_step(options: Any) -> None:
    trainer = trainer_of("plain", save_strategy="no", **options)
    trainer.train()
    assert trainer.state.global_step == trainer.model.schedule.steps == STEPS


def test_hugging_face_trainer_evaluates_and_takes_the_best() -> None:
    trainer = trainer_of("plain", eval_strategy="steps", eval_steps=4, save_steps=4, load_best_model_at_end=True)
    trainer.train()
    best = int(trainer.state.best_model_checkpoint.rpartition("-")[2])
    assert trainer.model.schedule.steps == best
    assert trainer.evaluate()["eval_loss"] == trainer.state.best_metric


# Accelerate


def accelerated(stop: int = STEPS, load: bool = False, accumulate: int = 1, precision: str = "no") -> Any:
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    net: Any = fxc.compress(model, JOINT, X[:2], total_steps=STEPS, optimizer=optimizer)
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate)
    batches = DataLoader(TensorDataset(X, Y), batch_size=16 // accumulate)
    wrapped, stepped, loader = accelerator.prepare(net, optimizer, batches)
    if load:
        accelerator.load_state("state")
    while net.schedule.steps < stop:
        for x, y in loader:
            with accelerator.accumulate(wrapped):
                before = net.schedule.steps
                accelerator.backward(nn.functional.cross_entropy(wrapped(x), y))
                stepped.step()
                stepped.zero_grad()
                assert net.schedule.steps - before == accelerator.sync_gradients
    accelerator.save_state("state")
    return net


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_resumes_to_the_bit(accumulate: int, precision: str) -> None:
    whole = accelerated(accumulate=accumulate, precision=precision)
    half = accelerated(8, accumulate=accumulate, precision=precision)
    assert half.schedule.pending()
    resumed = accelerated(load=True, accumulate=accumulate, precision=precision)
    assert not resumed.schedule.pending()
    assert_same(resumed, whole)


# What trainers write


class Tied(nn.Module):
    """A weight and a buffer under two names each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.register_buffer("one", torch.ones(1))
        self.register_buffer("two", self.one)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * self.one) * self.two  # type: ignore[no-any-return]


def tied_net() -> Any:
    return fxc.compress(Tied(), JOINT.replace(",f", ""), X[:2], total_steps=10)


def test_a_state_has_no_two_names_for_one_memory() -> None:
    net = tied_net()
    for twin in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net)), nn.Sequential(net)):
        save_file(twin.state_dict(), "net.safetensors")
    fresh = nn.Sequential(tied_net())
    fresh.load_state_dict(load_file("net.safetensors"))
    assert_same(fresh[0], net)
    assert fresh[0].a.weight is fresh[0].b.weight


def test_a_state_is_the_nets_own_memory_but_for_further_names() -> None:
    net = tied_net()
    state, variables = net.state_dict(), net.state_dict(keep_vars=True)
    assert state["a.weight"].data_ptr() == net.a.weight.data_ptr() != state["b.weight"].data_ptr()
    assert variables["a.weight"] is variables["b.weight"] is net.a.weight
    assert variables["one"] is variables["two"] is net.one

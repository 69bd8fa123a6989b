"""The report as a page: all of it inside, every tensor with its values, the graph to look through."""

from __future__ import annotations

import copy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ConvBnRelu, image, seeded

import fxcompress as fxc
from fxcompress.cli import main
from fxcompress.errors import ExportError, ScheduleError
from fxcompress.value_histograms import value_histograms


class Page(HTMLParser):
    """Tags, links and ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [str(given["href"])] if tag == "a" else []
        self.ids += [str(given["id"])] if tag == "li" and "id" in given else []
        self.loads += [str(v) for k, v in attrs if k in ("src",) or (k == "href" and tag == "link")]
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def trained() -> Any:
    model = seeded(ConvBnRelu)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    net = fxc.compress(model, "P0.5(w)@20%..60% -> Q8(w,f)@80%", image(), total_steps=10, optimizer=optimizer)
    for _ in range(10):
        optimizer.zero_grad()
        net.train()(image()).square().mean().backward()
        optimizer.step()
    return net.eval()


def test_the_page_has_everything_inside_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    net = trained()
    found = fxc.export_onnx(net, tmp_path / "net.onnx")
    fxc.write_report(net, tmp_path / "net.html", verification=found)
    text = (tmp_path / "net.html").read_text()
    page = Page(text)
    assert page.loads == [] and page.open == []
    assert page.links and {link.removeprefix("#") for link in page.links if link.startswith("#g")} <= set(page.ids)
    for wanted in ("P0.5(w)", "learning rate", "conv.weight", "MACs", "Verification", "graph 1:", "agree"):
        assert wanted in text, wanted
    assert len(text) < 500_000


def test_reporting_leaves_the_net_as_it_is(tmp_path: Path) -> None:
    net = trained().train()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    fxc.write_report(net, tmp_path / "net.html", inputs=image() * 9)
    assert net.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert "None was given" in (tmp_path / "net.html").read_text()


def test_histograms_count_every_value_and_what_is_clipped() -> None:
    net = trained()
    calm, loud = value_histograms(net), value_histograms(net, image() * 9)
    assert set(calm) == {name for name, m in net.named_modules() if name.endswith("_quantizer")}
    path = next(name for name in calm if name.endswith("x_quantizer"))
    assert sum(calm[path].counts) == calm[path].total == image().numel()
    assert calm[path].clipped == 0 < loud[path].clipped
    assert loud[path].high > loud[path].grid_high == calm[path].grid_high
    assert calm["compression.conv.weight_quantizer"] == loud["compression.conv.weight_quantizer"]


def test_the_command_line_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    net = trained()
    fxc.export_onnx(net, tmp_path / "net.onnx")
    fxc.save(net, tmp_path / "net.fxc")
    (tmp_path / "mine.py").write_text("from helpers import ConvBnRelu as make\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["report", "mine:make", str(tmp_path / "net.fxc"), "--html", str(tmp_path / "net.html")]
    assert main([*command, "--file", str(tmp_path / "net.onnx")]) == 0
    assert "conv.weight" in capsys.readouterr().out
    assert "agree" in (tmp_path / "net.html").read_text()


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=r"expected what fxcompress.compress returns, got ConvBnRelu"):
        fxc.write_report(seeded(ConvBnRelu), tmp_path / "a.html")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="has no folder to stand in"):
        fxc.write_report(trained(), tmp_path / "no" / "a.html")

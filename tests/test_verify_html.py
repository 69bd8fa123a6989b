"""The page of a verification: well-formed, complete, escaped, and with nothing to load."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fxcompress.comparison import (
    OFF,
    ON,
    OVERFLOW,
    TIE,
    OutputComparison,
    OutputInRuntime,
    TensorComparison,
    TensorInRuntime,
    Verification,
)
from fxcompress.errors import ExportError
from fxcompress.plots import Bar, chart, histogram
from fxcompress.verify_html import html_of_verification

EQUAL = {0: 1000}


class Page(HTMLParser):
    """Checks that every element is closed, and keeps texts, attributes and the classes of bars."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def comparison(name: str, off: TensorInRuntime | None = None, on: TensorInRuntime | None = None) -> TensorComparison:
    either = [one or TensorInRuntime(runtime, EQUAL, EQUAL, {}) for one, runtime in ((off, OFF), (on, ON))]
    return TensorComparison(name, name.partition(".")[0], 1000, tuple(either))


@pytest.fixture
def found() -> Verification:
    tie = TensorInRuntime(OFF, {0: 998, 1: 2}, {0: 998, 1: 2}, {TIE: 2})
    fault = TensorInRuntime(ON, {-300: 10, 0: 985, 7: 5}, {-300: 10, 0: 985, 7: 5}, {OVERFLOW: 15})
    output = OutputComparison("output", (OutputInRuntime(OFF, 1.0, 0.0), OutputInRuntime(ON, 0.5, 3.0)), "steps", 0.0)
    return Verification(
        path="folder/net.onnx",
        file_bytes=12345,
        runtimes=(OFF, ON),
        tensors=(
            comparison("x.quantized"),
            comparison("stem.quantized", off=tie),
            comparison("head.quantized", on=fault),
        ),
        outputs=(output,),
        float_operators=("Conv stem",),
        integer_operators={"QLinearConv": 2},
        mask_bytes=0,
        mask_time_share=0.0,
        changed_constants=(),
        notes=("a note",),
    )


def test_the_page_has_every_tensor_the_verdict_and_the_first_difference(found: Verification) -> None:
    page = Page(html_of_verification(found))
    text = "\n".join(page.texts)
    for name in (
        "x.quantized",
        "stem.quantized",
        "head.quantized",
        "QLinearConv",
        "Conv stem",
        "a note",
        "bias overflow",
    ):
        assert name in text
    assert "not ok: ONNX Runtime computes otherwise" in text
    assert f"first difference: 'stem' (stem.quantized) in {OFF}: rounding tie, 2 of 1000" in text
    assert f"first fault: 'head' (head.quantized) in {ON}: bias overflow, 15 of 1000" in text
    assert page.tags.count("svg") == 2 + 2  # one plot a runtime, one histogram a tensor that differs
    assert page.tags.count("tr") == 1 + 2 * 3


def test_the_page_loads_nothing(found: Verification) -> None:
    text = html_of_verification(found)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    assert {"src", "href", "srcset", "data"} & {name for name, _ in Page(text).attributes} == set()
    assert not {"link", "img", "iframe", "object"} & set(Page(text).tags)


def test_columns_sort_by_number(found: Verification) -> None:
    values = re.findall(r'<td class="number" data-value="([^"]*)">', html_of_verification(found))
    assert len(values) == 6 * 5  # order, elements, differ, largest, end to end
    assert "300" in values and all(float(value) >= 0 for value in values)


def test_names_are_escaped(found: Verification) -> None:
    hostile = '<script>alert("x")</script>&.quantized'
    changed = dataclasses.replace(
        found,
        path="a<b>.onnx",
        notes=("<img>",),
        tensors=(*found.tensors, comparison(hostile, found.tensors[1].runtimes[0])),
    )
    page = Page(html_of_verification(changed))
    assert page.tags.count("script") == 1 and "img" not in page.tags and "b" not in page.tags
    assert hostile in page.texts
    assert ("data-value", hostile) in page.attributes


def test_the_page_appears_whole_or_not_at_all(
    found: Verification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    found.to_html(path)
    first = path.read_text()
    assert first == html_of_verification(found)

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("fxcompress.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        dataclasses.replace(found, notes=()).to_html(path)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"] and path.read_text() == first
    with pytest.raises(ExportError, match="has no folder to stand in"):
        found.to_html(tmp_path / "nowhere" / "page.html")


def test_a_histogram_counts_every_element_once() -> None:
    labels = re.findall(r"<title>(.*?)</title>", histogram({-1: 3, 0: 10, 2: 1}))
    assert labels == ["-1 steps: 3 of 14", "+0 steps: 10 of 14", "+1 steps: 0 of 14", "+2 steps: 1 of 14"]
    wide = re.findall(r"steps: (\d+) of 60", histogram(dict.fromkeys(range(-100, 500, 10), 1)))
    assert sum(map(int, wide)) == 60 and len(wide) <= 41


def test_bars_are_as_tall_as_the_logarithm_of_their_share() -> None:
    bars = [Bar(1.0, "all"), Bar(1e-3, "a thousandth"), Bar(0.0, "none"), Bar(1e-9, "hardly any")]
    heights = [float(h) for h in re.findall(r'height="([\d.]+)"><title>', chart(bars, 100, 60))]
    assert heights == [60, 30, 0, 2.4]

"""Pictures and tables of the pruning benchmarks, from invented runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import lightning_perf as lp
from benchmarks import channel_accuracy, guide_parts, pruning_accuracy
from benchmarks.channel_latency import net_of
from benchmarks.image_runs import IMAGE
from lightning_perf.report import FINAL_ACCURACY, Report, Run
from lightning_perf_recipes.image_classification.module import ImageClassifier

pytest.importorskip("matplotlib")
PAGE = "before\n{start}old{end}\nafter\n{start2}kept{end}\n"


def invented(variants: tuple[str, ...], title: str) -> Report:
    """Three seeds of each; the more is taken out, the worse."""
    runs = []
    for place, name in enumerate(variants):
        part = name.rpartition(" ")[2]
        macs = 3e7 / (int(part) if part.isdigit() else 1)
        for seed in range(3):
            quantities = {"final_metric": 0.9 - 0.001 * place - 0.002 * seed, "macs": macs, "parameters": 2.7e5}
            runs.append(Run(name, seed, quantities=quantities))
    rows = [FINAL_ACCURACY, channel_accuracy.MACS, channel_accuracy.PARAMETERS]
    return Report(title, "dense", runs, rows, notes=["a <note> & more"])


def texts(picture: Path) -> list[str]:
    return [
        "".join(one.itertext()).strip() for one in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_zeros(tmp_path: Path) -> None:
    report = invented(pruning_accuracy.VARIANTS, "t")
    pruning_accuracy.draw(report, tmp_path / "a.svg")
    first = (tmp_path / "a.svg").read_bytes()
    pruning_accuracy.draw(report, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes() == first
    there = texts(tmp_path / "a.svg")
    assert {"80", "90", "95", "dense", "MagnitudePruning", "weights that are zero, %"} <= set(there)
    lines = pruning_accuracy.section(report).splitlines()
    assert lines[0] == "| | 80% zeros | 90% zeros | 95% zeros |"
    assert lines[2] == "| MagnitudePruning | 89.70% (-0.10) | 89.40% (-0.40) | 89.10% (-0.70) |"
    assert "Dense: 89.80%, 3 seeds; in brackets points above it, over common seeds." in lines
    assert "- GOAL 90%, 3 seeds: drop <= 0.3 points: 0.40: NOT met" in lines


def test_a_part_of_the_variants(tmp_path: Path) -> None:
    """What has no run has no cell and no mark."""
    report = invented(("dense", "ours 0.9"), "t")
    pruning_accuracy.draw(report, tmp_path / "a.svg")
    assert not any("Lightning" in one for one in texts(tmp_path / "a.svg"))
    assert pruning_accuracy.section(report).splitlines()[2] == "| MagnitudePruning |  | 89.70% (-0.10) |  |"


def test_channels_with_and_without_latency(tmp_path: Path) -> None:
    report = invented(channel_accuracy.VARIANTS, "t")
    channel_accuracy.draw(report, tmp_path / "a.svg", tmp_path)
    assert "MACs of an image, million" in texts(tmp_path / "a.svg")
    assert not any("eager" in one for one in texts(tmp_path / "a.svg"))
    seconds = {name: [0.01, 0.02, 0.03] for name in channel_accuracy.VARIANTS}
    (tmp_path / "channel_latency_of_a.json").write_text(json.dumps({"seconds": seconds}))
    channel_accuracy.draw(report, tmp_path / "a.svg", tmp_path)
    assert "ms of a batch of 32, eager, 1 thread" in texts(tmp_path / "a.svg")
    lines = channel_accuracy.section(report).splitlines()
    assert lines[2] == "| dense | 30.00 M | 270.0 k | 89.80%, 3 seeds |  |"
    assert lines[3] == "| ChannelPruning, MACs/2 | 15.00 M | 270.0 k | 89.70%, 3 seeds | -0.10 |"
    assert "- GOAL MACs/4, 3 seeds: not below narrow: +0.20 points: met" in lines


@pytest.mark.parametrize("name", ["pruning_accuracy", "channel_accuracy"])
def test_every_protocol_has_its_section(name: str, tmp_path: Path) -> None:
    """The whole one first; without a report the page shows nothing."""
    page = tmp_path / "page.md"
    start, other = (guide_parts.start_of(f"{one} --table") for one in (name, "another"))
    page.write_text(PAGE.format(start=start, start2=other, end=guide_parts.END))
    drawn: list[str] = []
    draw: Callable[[Report, Path], None] = lambda report, path: drawn.append(path.name)  # noqa: E731
    guide_parts.publish(name, page, draw, lambda report: "rows", tmp_path)
    assert page.read_text() == PAGE.replace("old", "").format(start=start, start2=other, end=guide_parts.END)
    for stem, title in ((f"{name}_6000", "part"), (name, "whole"), (f"{name}_other", "no")):
        invented(("dense",), title).to_json(tmp_path / f"{stem}.json")
    guide_parts.publish(name, page, draw, lambda report: "rows", tmp_path)
    assert drawn == [f"{name}.svg", f"{name}_6000.svg"]
    assert re.findall("## (.*)", page.read_text()) == ["whole", "part"]
    assert (
        f"![part]({name}_6000.svg)\n\nrows\n\n- a <note> & more\n- [Raw](../../benchmarks/results/{name}_6000.json)."
        in (page.read_text())
    )
    page.write_text("no mark")
    with pytest.raises(ValueError, match="needs once"):
        guide_parts.publish(name, page, draw, lambda report: "rows", tmp_path)


@pytest.mark.parametrize(("name", "page"), [("pruning_accuracy", "pruning"), ("channel_accuracy", "channel_pruning")])
def test_the_guides_have_the_marks(name: str, page: str) -> None:
    text = (guide_parts.GUIDES / f"{page}.md").read_text(encoding="utf-8")
    assert text.count(guide_parts.start_of(f"{name} --table")) == 1


@pytest.mark.parametrize("net", [channel_accuracy.narrow(4), ImageClassifier().net])
def test_a_net_from_its_shapes(net: torch.nn.Module) -> None:
    shapes = {name: [*value.shape] for name, value in net.state_dict().items()}
    inner = {"blocks.0.conv1.weight": [5], "blocks.0.bn1.weight": [5], "blocks.0.bn1.bias": [5]}
    again = net_of(shapes)
    assert lp.count_macs(again, IMAGE) == lp.count_macs(net, IMAGE)
    for name in inner:
        shapes[name][0] = 5
    shapes["blocks.0.bn1.running_mean"], shapes["blocks.0.bn1.running_var"] = [5], [5]
    shapes["blocks.0.conv2.weight"][1] = 5
    width = net.blocks[0].conv1.weight.shape[0]  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
    gone = 2 * 28 * 28 * 9 * width * (width - 5)
    assert lp.count_macs(net_of(shapes), IMAGE) == lp.count_macs(net, IMAGE) - gone

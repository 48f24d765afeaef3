"""Pictures: what a reader looks for is in them, and the same graph gives the same file."""

from __future__ import annotations

import dataclasses
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from graphnet.errors import GraphError
from graphnet.ir.builders import convnet, mlp, resnet, transformer
from graphnet.ir.draw import GREY, ORANGE, draw, to_dot
from graphnet.ir.graph import Graph

BUILT: dict[str, Callable[[], Graph]] = {
    "mlp": lambda: mlp([6, 8, 3]),
    "convnet": lambda: convnet((3, 8, 8), channels=(4,), hidden=(5,)),
    "resnet": lambda: resnet((3, 8, 8), stages=(4, 8), blocks=1),
    "transformer": lambda: transformer(9, width=8, depth=2, heads=4, kv_heads=2, context=6, tied=True),
}


def _texts(path: Path) -> list[str]:
    """Text of an SVG; matplotlib draws letters as paths and writes the words beside them as comments."""
    return [text.strip() for text in re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("name", BUILT)
def test_every_op_is_in_the_picture_and_it_is_the_same_each_time(name: str, tmp_path: Path) -> None:
    graph = BUILT[name]()
    first = draw(graph, tmp_path / "one.svg", engine="matplotlib")
    second = draw(BUILT[name](), tmp_path / "sub" / "two.svg", engine="matplotlib")
    assert first.read_bytes() == second.read_bytes()
    ET.parse(first)
    texts = _texts(first)
    assert set(graph.ops) <= set(texts)
    assert f"{graph.name}, version 0" in texts


def test_counts_newborns_dormant_and_frozen_units_are_shown(tmp_path: Path) -> None:
    graph = mlp([6, 8, 3])
    group = graph.groups["fc1"]
    graph = graph.resized({"fc1": dataclasses.replace(group, ids=(*range(6), 8, 9), dormant=(6, 7), next_id=10)})
    path = graph.draw(tmp_path / "net.svg", newborns={"fc1": {8, 9}}, title="a < b & c", engine="matplotlib")
    texts = _texts(path)
    assert "8 neurons (2 dormant)" in texts
    assert "+2" in texts
    assert "of these, newborn" in texts
    assert ORANGE in path.read_text(encoding="utf-8")
    plain = draw(graph, tmp_path / "plain.svg", engine="matplotlib")
    assert ORANGE not in plain.read_text(encoding="utf-8")
    assert GREY not in plain.read_text(encoding="utf-8")
    frozen = draw(BUILT["transformer"](), tmp_path / "frozen.svg", engine="matplotlib")
    assert frozen.read_text(encoding="utf-8").count(GREY) == 1 + 3  # in the legend, and two tables and the tied head
    assert "entries: 9 (frozen)" in " ".join(_texts(frozen)).replace(" features", "")


def test_a_group_keeps_its_colour() -> None:
    dot = to_dot(BUILT["resnet"]())
    colour = {
        key: re.search(rf'"{re.escape(key)}/0" .*fillcolor="(#\w+)"', dot).group(1)  # type: ignore[union-attr]
        for key in ("conv1", "layer1.0.conv1", "layer1.0.conv2")
    }
    assert colour["conv1"] == colour["layer1.0.conv2"] != colour["layer1.0.conv1"]


def test_a_png_can_be_looked_at(tmp_path: Path) -> None:
    pixels = matplotlib.image.imread(draw(mlp([6, 8, 3]), tmp_path / "net.png", engine="matplotlib"))
    assert pixels.shape[0] > 500
    assert pixels.min() < 0.3 < pixels.mean()  # ink, on a light page


def test_a_deep_graph_is_drawn(tmp_path: Path) -> None:
    path = draw(mlp([4, *[3] * 150, 2]), tmp_path / "deep.png", engine="matplotlib")
    assert path.stat().st_size > 0


def test_the_source_for_graphviz_names_everything_once() -> None:
    graph = BUILT["transformer"]()
    dot = to_dot(graph, title='a "title" with \\')
    assert 'label="a \\"title\\" with \\\\"' in dot
    for name, node in graph.nodes.items():
        assert dot.count(f'\n  "{name}" [label=') == 1
        for producer, _ in node.inputs:
            assert f'"{producer}" -> "{name}"' in dot
    assert dot == to_dot(graph, title='a "title" with \\')
    assert "+1 newborn" in to_dot(mlp([4, 3, 2]), newborns={"fc1": {2}})


def test_graphviz_is_asked_for_by_name_only_where_it_is(tmp_path: Path) -> None:
    if shutil.which("dot") is None:
        with pytest.raises(GraphError, match="not installed"):
            draw(mlp([4, 3, 2]), tmp_path / "net.svg", engine="graphviz")
    else:
        ET.parse(draw(mlp([4, 3, 2]), tmp_path / "net.svg", engine="graphviz"))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("net.pdf", {}, r"\.svg or \.png"),
        ("net", {}, r"\.svg or \.png"),
        ("net.svg", {"engine": "neato"}, "'neato' is not one of"),
        ("net.svg", {"newborns": {"fc9": {0}}}, "'fc9', which is no unit group"),
        ("net.svg", {"newborns": {"fc1": {9}}}, r"units \[9\]"),
        ("taken/net.svg", {}, "cannot be written"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name: str, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(GraphError, match=words):
        draw(mlp([4, 3, 2]), tmp_path / name, **options)

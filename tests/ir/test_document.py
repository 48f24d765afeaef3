"""Documents and graphs are inverse; a document that does not fit says where."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import graphnet as gn
from graphnet.errors import GraphError, SchemaError
from graphnet.ir.builders import convnet, mlp, resnet, transformer
from graphnet.ir.document import load
from graphnet.ir.graph import Graph
from graphnet.schemas.base import write_document

BUILT: dict[str, Callable[[], Graph]] = {
    "mlp": lambda: mlp([6, 8, 3], norm="group", dropout=0.1, activation={"op": "leaky_relu", "slope": 0.2}),
    "convnet": lambda: convnet((3, 8, 8), channels=(4,), hidden=(5,), norm="batch"),
    "resnet": lambda: resnet((3, 8, 8), stages=(4, 8), blocks=1),
    "transformer": lambda: transformer(9, width=8, depth=1, heads=4, kv_heads=2, context=6, tied=True),
}


def _same(one: Graph, two: Graph) -> None:
    assert str(one) == str(two)
    assert one.ops == two.ops
    assert one.groups == two.groups
    assert one.nodes == two.nodes
    assert (one.version, one.dynamic) == (two.version, two.dynamic)


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("suffix", [None, ".yaml", ".json"])
def test_a_graph_survives_its_document(name: str, suffix: str | None, tmp_path: Path) -> None:
    graph = BUILT[name]()
    document: Any = graph.to_document()
    if suffix is not None:
        write_document(document, tmp_path / f"net{suffix}")
        document = tmp_path / f"net{suffix}"
    _same(load(document), graph)


def test_an_edited_graph_keeps_its_unit_ids() -> None:
    graph = mlp([4, 5, 2])
    group = graph.groups["fc1"]
    edited = graph.resized({"fc1": dataclasses.replace(group, ids=(4, 0, 7), dormant=(2,), next_id=9)})
    document = edited.to_document()
    assert document["groups"] == {"fc1": {"ids": [[4, 4], [0, 0], [7, 7]], "next_id": 9, "dormant": [[2, 2]]}}
    _same(load(document), edited)
    shrunk = graph.resized({"fc1": dataclasses.replace(group, ids=(0, 1, 2))})  # the next id is 5 all the same
    assert load(shrunk.to_document()).groups["fc1"].next_id == 5


def test_inputs_and_outputs_may_be_left_out() -> None:
    graph = load(
        {"inputs": {"x": {"shape": [4]}}, "ops": [{"name": "a", "op": "linear", "out": 3}, {"name": "b", "op": "relu"}]}
    )
    assert graph.ops["b"].inputs == ("a",)
    assert graph.outputs == (("b", 0),)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"ops": []}, GraphError, "'head', which does not exist"),
        ({"kind": "policy"}, SchemaError, "kind"),
        ({"schema_version": 9}, SchemaError, "schema_version"),
        ({"colour": 1}, SchemaError, "colour"),
        ({"inputs": {"x": {"shape": [""]}}}, SchemaError, "shape"),
        ({"inputs": {"x": {"shape": [-3]}}}, GraphError, "at least 1"),
        ({"ops": [{"name": "a", "op": "lineer", "out": 3}]}, SchemaError, "linear"),
        ({"ops": [{"name": "a", "op": "linear", "out": "many"}]}, SchemaError, "out"),
        ({"ops": [{"name": "a", "op": "linear", "out": 0}]}, SchemaError, "out"),
        ({"ops": [{"name": "a b", "op": "relu"}]}, SchemaError, "name"),
        ({"ops": [{"name": "a", "op": "conv2d", "out": 3, "kernel": [3, 0]}]}, SchemaError, "kernel"),
        ({"groups": {"fc9": {"ids": [[0, 2]], "next_id": 3}}}, GraphError, "fc9"),
        ({"groups": {"fc1": {"ids": [[0, 9]], "next_id": 10}}}, GraphError, "3 units but 10 ids"),
        ({"groups": {"fc1": {"ids": [[0, 2]], "next_id": 2}}}, GraphError, "next_id"),
        ({"groups": {"fc1": {"ids": [[2, 0]], "next_id": 4}}}, SchemaError, "first <= last"),
        ({"groups": {"fc1": {"ids": [[0, 1], [0, 0]], "next_id": 4}}}, GraphError, "must differ"),
    ],
)
def test_a_wrong_document_says_where(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        load(mlp([4, 3, 2]).to_document() | change)


def test_a_network_whose_last_op_was_removed_is_written_and_read(tmp_path: Path) -> None:
    net = gn.Network(gn.load({
        "kind": "architecture", "schema_version": 1, "name": "short", "inputs": {"x": {"shape": [3]}},
        "ops": [{"name": "act", "op": "relu"}],
    }))  # fmt: skip
    with net.edit() as edit:
        edit.remove("act")
    document = net.graph.to_document()
    assert document["ops"] == []
    assert gn.load(document).to_document() == document
    x = torch.randn(2, 3)
    assert torch.equal(gn.load_network(net.save(tmp_path / "short.gn"))(x), x)


def test_a_document_without_ops_must_name_its_outputs() -> None:
    with pytest.raises(gn.SchemaError, match="there are no ops: give at least one"):
        gn.load(
            {"kind": "architecture", "schema_version": 1, "name": "none", "inputs": {"x": {"shape": [3]}}, "ops": []}
        )

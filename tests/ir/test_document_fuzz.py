"""Whatever a document holds, `load` gives a valid graph or a GraphnetError that says something."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphnet as gn
from graphnet.errors import GraphError, GraphnetError, SchemaError
from graphnet.ir.builders import convnet, mlp, resnet, transformer
from graphnet.ir.document import load
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup
from graphnet.ir.ops import OPS
from graphnet.schemas.base import dump_yaml

ODD = [
    0, -1, 1, 2, 3, 7, 10**12, 10**30, 2**63, 0.5, float("nan"), float("inf"), True, None, "", "x", "output", "fc1",
    "a.b", "..", "é", [], [0], [1, 2], ["x"], [["x"]], {}, {"op": "relu"}, "x:1", "x:-1", "x:99999999999",
]  # fmt: skip


def _sources() -> list[dict[str, Any]]:
    edited = mlp([6, 4, 3], norm="batch")
    group = edited.groups["fc1"]
    narrow = UnitGroup(
        "fc1", (2, 0, 5), group.kind, group.role, None, group.output, group.coupled, group.contracted, (3,), 1, 7
    )
    graphs = [
        mlp([6, 8, 3], norm="group", dropout=0.1), edited.resized({"fc1": narrow}),
        convnet((3, 8, 8), channels=(4, 6), hidden=(5,), classes=2, norm="batch"),
        resnet((3, 8, 8), stages=(4, 8), blocks=1, classes=2),
        transformer(11, width=8, depth=1, heads=4, kv_heads=2, context=6, tied=True, norm="rms"),
    ]  # fmt: skip
    documents = [graph.to_document() for graph in graphs]
    documents.append(
        {
            "inputs": {"x": {"shape": [4, 12]}},
            "ops": [
                {"name": "fc", "op": "linear", "out": 12},
                {"name": "r", "op": "reshape", "shape": [4, 3, -1]},
                {"name": "p", "op": "permute", "order": [1, 3, 2]},
                {"name": "t", "op": "transpose", "first": 2, "second": 3},
                {"name": "s", "op": "split", "dim": 3, "sizes": [1, 3]},
                {"name": "c", "op": "concat", "dim": 3, "inputs": ["s:1", "s:0"]},
                {"name": "f", "op": "flatten", "start": 2},
                {"name": "m", "op": "mean", "dim": 1},
                {"name": "act", "op": "rand_smooth_leaky"},
                {"name": "head", "op": "linear", "out": 3},
            ],
            "outputs": ["head", "s"],
        }
    )
    return documents


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path in a document but the root's."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in [(*path, key), *_places(inner, (*path, key))]]


def _at(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        document = document[key]
    return document


def _mutate(document: dict[str, Any], rng: random.Random) -> None:
    places = _places(document)
    kind = rng.randrange(10)
    if kind >= 7:  # a number, changed a little: the mutation that most often leaves the document valid
        kind = 5
        places = [place for place in places if isinstance(_at(document, place), int)] or places
    place = rng.choice(places)
    parent, last = _at(document, place[:-1]), place[-1]
    if kind == 0:
        del parent[last]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(["out", "kernel", "extra", "inputs", "tied", "groups", "depthwise"])] = rng.choice(ODD)
    elif kind == 2 and isinstance(parent, list):
        parent.insert(last, copy.deepcopy(parent[last]))
    elif kind == 3 and isinstance(parent, list):
        rng.shuffle(parent)
    elif kind == 4:
        ops = document.get("ops")
        if isinstance(ops, list) and ops and isinstance(target := rng.choice(ops), dict):
            target["op"] = rng.choice(list(OPS))
    elif kind == 5 and isinstance(parent[last], int) and not isinstance(parent[last], bool):
        parent[last] = parent[last] + rng.choice([-1, 1, 2]) if rng.random() < 0.7 else parent[last] * 2
    else:
        parent[last] = copy.deepcopy(rng.choice(ODD))


def _check(source: Any) -> bool:
    """Load; a graph must survive the round trip and describe itself. Tells whether it was valid."""
    try:
        graph = load(source)
    except GraphnetError as error:
        if not str(error).strip():
            raise AssertionError("an error without words") from error
        return False
    assert isinstance(graph, Graph)
    again = load(graph.to_document())
    assert str(again) == str(graph)
    assert again.to_document() == graph.to_document()
    assert graph.nx.number_of_nodes() == len(graph.nodes) + len(graph.groups)
    return True


@pytest.mark.parametrize("part", range(10))
def test_a_mutated_document_is_refused_or_gives_a_valid_graph(part: int) -> None:
    rng = random.Random(part)
    valid = 0
    for document in _sources():
        for _ in range(20):
            mutated = copy.deepcopy(document)
            for _ in range(rng.choice([1, 1, 1, 2, 4])):
                if _places(mutated):
                    _mutate(mutated, rng)
            valid += _check(mutated)
    assert valid > 4  # some mutations do no harm: else the fuzzer tests the schema only


class Attention(nn.Module):
    """Embeddings, fused attention under a mask, a convolution and slices."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm, self.qkv, self.out = (
            nn.Embedding(7, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 18),
            nn.Linear(6, 6),
        )
        self.positions, self.conv, self.act = (
            nn.Parameter(torch.randn(1, 5, 6)),
            nn.Conv1d(6, 4, 3, padding=1),
            nn.PReLU(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.tokens(x) + self.positions[:, : x.shape[1]]
        b, t, _ = h.shape
        q, k, v = self.qkv(self.norm(h)).reshape(b, t, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-1, -2)).masked_fill(torch.tril(torch.ones(t, t)) == 0, float("-inf")).softmax(-1)
        h = h + self.out((weights @ v).transpose(1, 2).reshape(b, t, -1))
        first = torch.cat([h, h * 2], -1).chunk(2, -1)[0]
        pooled = self.act(self.conv(first.transpose(1, 2))).mean(-1)
        return pooled.unsqueeze(1).expand(-1, 2, -1), F.pad(h, (0, 0, 1, 1)).roll(1, 1)


class Image(nn.Module):
    """Convolutions both ways, group norm, GLU, a rearrangement of pixels and an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.up = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.ConvTranspose2d(8, 4, 2, 2),
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.gelu(self.norm(self.conv(x)))
        h = self.up(F.glu(torch.cat([h, h.flip(-1)], 1), 1))
        h = F.adaptive_avg_pool2d(F.pixel_unshuffle(h, 2)[:, :4], 2)
        found = torch.einsum("bi,oi->bo", h.flatten(1), self.head.weight) + self.head.bias
        return found, torch.where(h > 0, h, h * 0.1).amax(1)


def test_a_mutated_document_of_an_import_is_refused_or_gives_a_valid_graph() -> None:
    rng = random.Random(0)
    valid = made = 0
    for model, x in ((Attention(), torch.randint(0, 7, (2, 5))), (Image(), torch.randn(2, 3, 8, 8))):
        document = gn.from_torch(model, (x,)).graph.to_document()
        for _ in range(250):
            mutated = copy.deepcopy(document)
            for _ in range(rng.choice([1, 1, 1, 2])):
                _mutate(mutated, rng)
            if not _check(mutated):
                continue
            valid += 1
            try:
                gn.Network(load(mutated))  # arguments that a rule does not read may be of no program all the same
                made += 1
            except GraphError:
                pass
    assert valid >= made > 40


def test_garbled_text_is_refused_or_gives_a_valid_graph(tmp_path: Path) -> None:
    rng = random.Random(1)
    texts = [dump_yaml(document) for document in _sources()]
    path = tmp_path / "net.yaml"
    for text in texts:
        for _ in range(20):
            start = rng.randrange(len(text))
            cut = {
                0: text[:start],
                1: text[:start] + rng.choice("{}[]:-&*!|>%@`\"'\t#?,\x00\x07é") + text[start:],
                2: text[:start] + text[start + rng.randrange(1, 40) :],
                3: text.replace(rng.choice(["inputs", "op:", "name", "\n", "  "]), rng.choice(["", "x", "-"]), 1),
            }[rng.randrange(4)]
            path.write_text(cut, encoding="utf-8")
            _check(path)


@pytest.mark.parametrize(
    "op",
    [
        {"name": "fc", "op": "linear", "out": 10**12},
        {"name": "c", "op": "reshape", "shape": [-1, 10**12]},
        {"name": "c", "op": "embedding", "count": 10**12, "dim": 4},
        {"name": "c", "op": "positions", "length": 10**12},
    ],
    ids=lambda op: str(op["op"]),
)
def test_a_huge_size_is_refused_before_anything_is_made(op: dict[str, Any]) -> None:
    with pytest.raises(GraphError):
        load({"inputs": {"x": {"shape": [4, 6]}}, "ops": [op]})


def test_many_large_groups_are_refused() -> None:
    ops = [{"name": f"fc{index}", "op": "linear", "out": 3_000_000} for index in range(10)]
    with pytest.raises(GraphError, match="in all groups"):
        load({"inputs": {"x": {"shape": [4]}}, "ops": ops})


def test_huge_runs_of_ids_are_refused() -> None:
    document = mlp([4, 3, 2]).to_document() | {"groups": {"fc1": {"ids": [[0, 10**12]], "next_id": 10**12 + 1}}}
    with pytest.raises(SchemaError, match="most of one group"):
        load(document)


def test_a_deep_network_loads() -> None:
    ops: list[dict[str, Any]] = [{"name": "fc", "op": "linear", "out": 4}]
    for index in range(1500):  # deeper than Python's recursion limit
        ops.append({"name": f"fc{index}", "op": "linear", "out": 4})
        ops.append({"name": f"add{index}", "op": "add", "inputs": [ops[-2]["name"], f"fc{index}"]})
    assert _check({"inputs": {"x": {"shape": [4]}}, "ops": ops})

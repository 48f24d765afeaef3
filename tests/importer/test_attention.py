"""Attention in every way that models write it: heads and head sizes pruned and grown, equal to the masked model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphnet as gn
from graphnet.errors import FrozenGroupError


class Separate(nn.Module):
    """Queries, keys and values by layers of their own; fewer heads of keys, which serve several queries each."""

    def __init__(self, how: str, shared: int, *, heads: int = 4, size: int = 3, values: int = 3) -> None:
        super().__init__()
        self.how, self.heads, self.shared, self.size, self.values = how, heads, shared, size, values
        self.emb, self.head = nn.Linear(5, 12), nn.Linear(12, 2)
        self.q, self.k = nn.Linear(12, heads * size), nn.Linear(12, shared * size)
        self.v, self.o = nn.Linear(12, shared * values, bias=False), nn.Linear(heads * values, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, self.size).transpose(1, 2)
        k = self.k(x).view(b, t, self.shared, self.size).transpose(1, 2)
        v = self.v(x).view(b, t, self.shared, self.values).transpose(1, 2)
        y: Tensor = getattr(self, self.how)(q, k, v).transpose(1, 2).reshape(b, t, -1)
        return self.head(x + self.o(y))

    def grouped(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def repeated(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        each = self.heads // self.shared
        return self.plain(q, k.repeat_interleave(each, 1), v.repeat_interleave(each, 1))

    def expanded(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, g, t, _ = k.shape
        k, v = (x[:, :, None].expand(b, g, self.heads // g, t, -1).reshape(b, self.heads, t, -1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v)

    def contracted(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, _, t, d = q.shape
        q = q.reshape(b, self.shared, self.heads // self.shared, t, d)
        weights = (torch.einsum("bgrtd,bgsd->bgrts", q, k) * self.size**-0.5).softmax(-1)
        return torch.einsum("bgrts,bgsd->bgrtd", weights, v).reshape(b, self.heads, t, -1)


class Projection(nn.Module):
    """A linear layer with its weight the other way round."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 3), nn.Parameter(torch.randn(outputs) / 9)

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view((*x.size()[:-1], self.outputs))


class Fused(nn.Module):
    """One projection for queries, keys and values, taken apart in one of several ways; products by hand."""

    def __init__(self, how: str, layer: Callable[[int, int], nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.how, self.heads, self.size = how, 3, 4
        self.emb, self.qkv, self.o, self.head = nn.Linear(5, 12), layer(12, 36), layer(12, 12), nn.Linear(12, 2)

    def parts(self, y: Tensor) -> Any:
        b, t, _ = y.shape
        if self.how == "split":
            return (x.view(b, t, self.heads, self.size).transpose(1, 2) for x in y.split(12, 2))
        if self.how == "chunk":
            return (x.view(b, t, self.heads, -1).transpose(1, 2) for x in y.chunk(3, -1))
        if self.how == "reshape":
            return y.reshape(b, t, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        if self.how == "heads first":  # as GPT-NeoX
            return y.view(b, t, self.heads, 3 * self.size).transpose(1, 2).chunk(3, -1)
        if self.how == "heads, then three":  # as BLOOM
            return y.view(b, t, self.heads, 3, self.size).permute(3, 0, 2, 1, 4).unbind(0)
        y = y.view(b, t, 3, self.heads, self.size)
        return (y[:, :, at].transpose(1, 2) for at in range(3))

    def weights(self, scores: Tensor) -> Tensor:
        t = scores.shape[-1]
        return scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        b, t, _ = x.shape
        q, k, v = self.parts(self.qkv(x))
        y = self.weights(q @ k.transpose(-2, -1) / self.size**0.5) @ v
        return self.head(x + self.o(y.transpose(1, 2).reshape(b, t, self.heads * self.size)))


class RelativeTables(Fused):
    """A learned bias for each head and distance, from an embedding (T5) and from an indexed table (Swin)."""

    def __init__(self) -> None:
        super().__init__("chunk")
        self.buckets, self.table = nn.Embedding(9, 3), nn.Parameter(torch.randn(9, 3))
        self.register_buffer("index", torch.randint(0, 9, (16,)))

    def weights(self, scores: Tensor) -> Tensor:
        t = scores.shape[-1]
        distance = (torch.arange(t)[None] - torch.arange(t)[:, None]).clamp(-4, 4) + 4
        learned = self.buckets(distance).permute(2, 0, 1)[None]
        index: Any = self.index
        indexed = self.table[index].view(4, 4, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        return (scores + learned + indexed).softmax(-1)


class Rotary(Separate):
    """Queries and keys turned by angles that a table of frequencies gives."""

    def __init__(self) -> None:
        super().__init__("turned", 4, size=4)
        self.register_buffer("frequencies", 10.0 ** -(torch.arange(0, 4, 2) / 4), persistent=False)

    def turned(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        frequencies: Any = self.frequencies
        angles = torch.outer(torch.arange(q.shape[-2], dtype=q.dtype), frequencies.to(q.dtype))
        cos, sin = (f(torch.cat([angles, angles], -1))[None, None] for f in (torch.cos, torch.sin))

        def turn(x: Tensor) -> Tensor:
            one, two = x.chunk(2, -1)
            return x * cos + torch.cat([-two, one], -1) * sin

        return F.scaled_dot_product_attention(turn(q), turn(k), v)


class Around(nn.Module):
    """A module of torch's own, between linear layers."""

    def __init__(self, inner: nn.Module, call: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.emb, self.inner, self.head = nn.Linear(5, 12), inner, nn.Linear(12, 2)
        self.call = call or (lambda inner, x, *more: inner(x, *more))

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.head(self.call(self.inner, self.emb(x), *more))


class Across(nn.Module):
    """Attention of one sequence to another, of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 8), nn.Linear(5, 6)
        self.attn = nn.MultiheadAttention(12, 3, kdim=8, vdim=6, batch_first=True)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.attn(self.q(x), self.k(y), self.v(y))[0])


class Decoder(nn.Module):
    """torch's decoder layer, on its own memory."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = nn.Linear(5, 12), nn.Linear(12, 2)
        self.layer = nn.TransformerDecoderLayer(12, 3, 10, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.layer(self.emb(x), self.emb(y)))


def multi(call: Callable[..., Tensor], **options: Any) -> Callable[[], nn.Module]:
    return lambda: Around(nn.MultiheadAttention(12, 3, **options), call)


def itself(attn: Any, x: Tensor) -> Tensor:
    return attn(x, x, x, need_weights=False)[0]


def weighed(attn: Any, x: Tensor) -> Tensor:
    return attn(x, x, x)[0]


def padded(attn: Any, x: Tensor, mask: Tensor) -> Tensor:
    return attn(x, x, x, key_padding_mask=mask, need_weights=False)[0]


def masked(attn: Any, x: Tensor, mask: Tensor) -> Tensor:
    return attn(x, x, x, attn_mask=mask)[0]


def layer(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(12, 3, 10, batch_first=True, **options)


def rows() -> tuple[Any, ...]:
    return (torch.randn(2, 4, 5),)


def two() -> tuple[Any, ...]:
    return torch.randn(2, 4, 5), torch.randn(2, 6, 5)


def padding() -> tuple[Any, ...]:
    return torch.randn(2, 4, 5), torch.tensor([[False, False, True, True], [False, False, False, True]])


def causal() -> tuple[Any, ...]:
    return torch.randn(2, 4, 5), torch.ones(4, 4).triu(1).bool()


SLOW = pytest.mark.slow
Q = ("q.kv_heads", "q.queries_per_kv", "q.head_dim", "v.head_dim")
IN = ("inner.in_proj.heads", "inner.in_proj.head_dim")
LAYER = ("inner.self_attn.in_proj.heads", "inner.self_attn.in_proj.head_dim", "inner.linear1")

CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]], tuple[str, ...], Any]] = {
    "heads": (lambda: Separate("plain", 4, values=5), rows, ("q.heads", "q.head_dim", "v.head_dim"), None),
    "grouped": (lambda: Separate("grouped", 2), rows, Q, None),
    "one head of keys": (lambda: Separate("grouped", 1), rows, ("q.queries_per_kv", "q.head_dim", "v"), SLOW),
    "broadcast": (lambda: Separate("plain", 1), rows, ("q.heads", "q.head_dim", "v"), None),
    "repeated": (lambda: Separate("repeated", 2), rows, Q, SLOW),
    "expanded": (lambda: Separate("expanded", 2), rows, Q, SLOW),
    "contracted": (lambda: Separate("contracted", 2), rows, ("q.heads", "q.head_dim", "v.head_dim"), SLOW),
    "split": (lambda: Fused("split", Projection), rows, ("qkv.heads", "qkv.head_dim", "qkv.head_dim1"), None),
    "chunk": (lambda: Fused("chunk"), rows, ("qkv.heads", "qkv.head_dim", "qkv.head_dim1"), SLOW),
    "reshape": (lambda: Fused("reshape"), rows, ("qkv.heads", "qkv.head_dim"), SLOW),
    "heads first": (lambda: Fused("heads first"), rows, ("qkv.heads", "qkv.head_dim", "qkv.head_dim1"), None),
    "heads, then three": (lambda: Fused("heads, then three"), rows, ("qkv.heads", "qkv.head_dim"), SLOW),
    "indexed": (lambda: Fused("indexed", Projection), rows, ("qkv.heads", "qkv.head_dim"), SLOW),
    "relative tables": (RelativeTables, rows, ("qkv.heads", "qkv.head_dim", "qkv.head_dim1"), None),
    "rotary": (Rotary, rows, ("q.heads", "q.head_dim", "v.head_dim"), None),
    "multi-head": (multi(itself), rows, IN, SLOW),
    "multi-head, batch first": (multi(itself, batch_first=True), rows, IN, SLOW),
    "multi-head, no bias": (multi(itself, batch_first=True, bias=False), rows, IN, None),
    "multi-head, weights": (multi(weighed, batch_first=True, dropout=0.2), rows, IN, SLOW),
    "multi-head, further keys": (multi(itself, add_bias_kv=True, add_zero_attn=True), rows, IN, SLOW),
    "multi-head, padding": (multi(padded, batch_first=True), padding, IN, SLOW),
    "multi-head, mask": (multi(masked, batch_first=True), causal, IN, SLOW),
    "multi-head, across": (Across, two, ("attn.q_proj.heads", "attn.q_proj.head_dim", "attn.v_proj.head_dim"), SLOW),
    "encoder layer": (lambda: Around(layer()), rows, LAYER, None),
    "encoder layer, norm first": (lambda: Around(layer(norm_first=True, bias=False)), rows, LAYER, SLOW),
    "encoder": (lambda: Around(nn.TransformerEncoder(layer(), 2)), rows, ("inner.layers.1.linear1",), SLOW),
    "decoder layer": (Decoder, two, ("layer.multihead_attn.in_proj.heads", "layer.linear1"), SLOW),
}


@pytest.mark.parametrize("case", [pytest.param(case, marks=CASES[case][3] or ()) for case in CASES])
def test_heads_and_head_sizes_are_exact(case: str, exercise: Callable[..., Any], share_free: Any) -> None:
    """Both modes; every group pruned by half (equal to masked) and grown by a quarter (equal where claimed)."""
    make, inputs, named, _ = CASES[case]
    given = inputs()
    other = (torch.randn(5, 4, 5), *given[1:]) if case.endswith("mask") else None
    report = exercise(make(), given, other=other)
    assert share_free(report.net) == 1.0
    assert set(named) <= set(report.pruned) & set(report.masked)
    refused = {name.partition(" ")[2] for name in report.refused}
    assert refused == ({"q.head_dim"} if case == "rotary" else set())  # no frequency for a new unit
    assert {name for name in named if "heads" in name or "linear1" in name} - refused <= set(report.preserved)


def test_the_keys_of_a_rotary_embedding_do_not_grow_and_say_why() -> None:
    net = gn.from_torch(Rotary(), rows())
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(FrozenGroupError, match="'frequencies' holds a value for each unit"), net.edit() as edit:
        edit.grow("q.head_dim", 1)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_fast_path_of_an_encoder_layer_is_the_plain_one_after_an_edit() -> None:
    """In evaluation mode, without gradients, torch runs the layer as one kernel; the network runs its parts."""
    model = Around(nn.TransformerEncoder(layer(), 2)).eval()
    x = torch.randn(3, 4, 5)
    with torch.inference_mode():
        fast = model(x)
    net = gn.from_torch(model, rows())
    assert not net.training
    with torch.no_grad():
        assert torch.allclose(net(x), fast, atol=1e-6)
        with net.edit() as edit:
            edit.grow("inner.layers.0.self_attn.in_proj.heads", 1, preserves="function")
            edit.grow("inner.layers.1.linear1", 3, preserves="function")
        assert torch.allclose(net(x), fast, atol=1e-6)
    assert net.get_parameter("inner.layers.0.self_attn.in_proj_weight").shape == (48, 12)
    assert torch.allclose(net(x), fast, atol=1e-6)


def test_whole_heads_go_with_every_slice_of_theirs() -> None:
    """The middle head of a fused projection: its rows of queries, keys and values, and its columns of the output."""
    model = Fused("heads first")
    net = gn.from_torch(model, rows())
    with net.edit() as edit:
        edit.prune("qkv.heads", units=[1])
    kept = torch.tensor([*range(12), *range(24, 36)])
    assert torch.equal(net.get_parameter("qkv.weight"), model.get_parameter("qkv.weight")[kept])
    kept = torch.tensor([*range(4), *range(8, 12)])
    assert torch.equal(net.get_parameter("o.weight"), model.get_parameter("o.weight")[:, kept])

"""Every operation of the vocabulary has a rule of its own, and models made of them are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphnet.compilers.importer.typed import LAYERS
from graphnet.ir.ops.aten.call import family_of
from graphnet.ir.ops.aten.opaque import Opaque
from graphnet.ir.ops.aten.pointwise import is_pointwise

VOCABULARY = {
    "contractions": "linear.default addmm.default matmul.default mm.default bmm.default baddbmm.default einsum.default "
    "scaled_dot_product_attention.default",
    "convolutions": "conv1d.default conv2d.default conv3d.default conv_transpose1d.default conv_transpose2d.input",
    "norms": "batch_norm.default layer_norm.default group_norm.default instance_norm.default rms_norm.default "
    "softmax.int log_softmax.int",
    "tables": "embedding.default",
    "arithmetic": "add.Tensor sub.Tensor mul.Tensor div.Tensor neg.default pow.Tensor_Scalar rsqrt.default "
    "sqrt.default exp.default abs.default clamp.default maximum.default where.self",
    "activations": "relu.default gelu.default silu.default sigmoid.default tanh.default hardtanh.default "
    "hardswish.default hardsigmoid.default prelu.default glu.default cos.default sin.default leaky_relu.default "
    "elu.default softplus.default mish.default",
    "pooling": "max_pool1d.default max_pool2d.default avg_pool1d.default avg_pool2d.default "
    "adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_max_pool2d.default mean.dim mean.default "
    "sum.dim_IntList amax.default var.correction upsample_nearest2d.vec upsample_bilinear2d.vec",
    "shapes": "view.default reshape.default flatten.using_ints unflatten.int transpose.int permute.default t.default "
    "expand.default repeat.default unsqueeze.default squeeze.dim contiguous.default cat.default stack.default "
    "split.Tensor split_with_sizes.default chunk.default slice.Tensor select.int unbind.int index.Tensor "
    "gather.default index_select.default pad.default roll.default flip.default pixel_shuffle.default "
    "pixel_unshuffle.default channel_shuffle.default cumsum.default tril.default",
    "constants": "arange.start zeros.default ones.default full.default rand.default randn.default",
    "masks": "eq.Tensor ne.Scalar lt.Tensor le.Scalar gt.Scalar ge.Tensor logical_and.default logical_not.default "
    "bitwise_and.Tensor masked_fill.Scalar",
    "casts": "to.dtype type_as.default detach.default clone.default",
    "random": "dropout.default feature_dropout.default alpha_dropout.default bernoulli.default rand_like.default",
    "recurrent": "lstm.input gru.input rnn_tanh.input lstm_cell.default gru_cell.default",
}
"""The ATen calls that models of all kinds are traced to, by what they do."""


@pytest.mark.parametrize("kind", VOCABULARY)
def test_every_call_of_the_vocabulary_has_a_rule(kind: str) -> None:
    for name in VOCABULARY[kind].split():
        family = family_of(f"aten.{name}")
        known = name.partition(".")[0] in LAYERS or is_pointwise(f"aten.{name}") or family not in (None, Opaque)
        assert known, name


class Products(nn.Module):
    """addmm, mm, matmul, bmm, baddbmm and einsum, with parameters and with features on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.weight = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(8, 12) / 3)
        self.mix, self.extra = nn.Parameter(torch.randn(12, 10) / 3), nn.Parameter(torch.randn(10, 6) / 3)
        self.out = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addmm(self.bias, x, self.weight).relu()
        x = torch.einsum("bi,ij->bj", torch.mm(x, self.mix).tanh(), self.extra)
        pairs = x.view(-1, 3, 2)
        both = torch.baddbmm(torch.bmm(pairs, pairs.transpose(1, 2)), pairs, torch.matmul(pairs.mT, pairs) @ pairs.mT)
        return self.out(both.softmax(-1).flatten(1))


class Signals(nn.Module):
    """One-dimensional convolutions, transposed too, with norms, pooling and means."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv1d(2, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.up, self.groups = nn.ConvTranspose1d(8, 6, 2, stride=2), nn.GroupNorm(2, 6)
        self.b, self.instance = nn.Conv1d(6, 4, 1), nn.InstanceNorm1d(4, affine=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(self.norm(self.a(x)).relu(), 2)
        x = F.avg_pool1d(self.groups(self.up(x)).relu(), 2)
        x = self.instance(self.b(x))
        return self.head(torch.cat([F.adaptive_avg_pool1d(x, 1).squeeze(-1), x.amax(-1)], 1))


class Arithmetic(nn.Module):
    """Elementwise calls and their in-place forms."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        c = (a + b) * (a - b) / (1 + b**2) - torch.neg(a) + torch.rsqrt(1 + a.pow(2)) - 0.5 * a
        c.add_(b).mul_(2.0).sub_(1.0).div_(3.0).neg_()
        c += a
        c *= b
        d = c.abs().add_(1.0).rsqrt_().pow_(2)
        return self.head(torch.where(d > 0.5, d.clamp(max=0.9), c.sigmoid()))


class Activations(nn.Module):
    """Every activation, one after the other, with slopes that are learned for all channels and for each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(4, 6), nn.Linear(6, 2)
        self.one, self.each = nn.PReLU(), nn.PReLU(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(F.silu(F.gelu(self.a(x)) + 0.1) * 3).cos() + torch.sin(x.sum(-1, keepdim=True))
        x = self.b(F.glu(F.hardtanh(x).tanh(), -1))
        return self.head(F.hardsigmoid(self.each(self.one(x))) + F.leaky_relu(x) + F.elu(x).sigmoid().relu())


class Shapes(nn.Module):
    """Calls that move elements; a dimension whose positions are picked or ordered stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(2, 4, 1), nn.Linear(12, 6)
        self.register_buffer("order", torch.tensor([2, 0, 1, 3]))
        self.head = nn.Linear(11, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.a(x), 2).roll(1, -1)[..., 1:5]  # [batch, 2, 8, 4]
        x = F.pad(self.b(x), (0, 1)).permute(0, 2, 3, 1).contiguous().transpose(1, 2)  # [batch, 5, 8, 4]
        x = x.reshape(x.shape[0], 5, -1)[:, [0, 2]].unsqueeze(1).squeeze(1)  # [batch, 2, 32]
        first, second = x.unflatten(-1, (8, 4)).select(2, 3).unbind(1)
        both = torch.stack([first, second.expand_as(first)], 1).repeat(1, 2, 1)  # [batch, 4, 4]
        picked = both.index_select(1, self.order).gather(1, self.order.view(1, 4, 1).expand(x.shape[0], 4, 4))
        one, rest = picked.mean(1).split([1, 3], -1)
        y = self.c(torch.cat([one, *rest.chunk(3, -1), both.flatten(1)[:, :8]], 1)).relu()
        return self.head(torch.cat([y, first.view(-1, 4), one], -1))


class Masks(nn.Module):
    """Ranges, comparisons, masks, casts, dropout and asserts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.drop = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Dropout(0.3)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, index: Tensor, keep: Tensor) -> Tensor:
        assert index.shape[1] > 1, "a sequence"
        time = torch.arange(index.shape[1])
        causal = (time[:, None] >= time[None, :]) & keep[:, None, :].bool()
        x = self.drop(self.a(self.embed(index))).to(torch.float64)
        scores = (x @ x.transpose(1, 2)).masked_fill(~causal, -1e4)
        x = torch.softmax(scores, -1).type_as(x) @ x
        x = x * (index != 0).unsqueeze(-1) * (keep > 0)[..., None].to(x.dtype)
        return self.head(self.norm(x).max(1)[0])


class Recurrent(nn.Module):
    """Recurrent layers between others; a hidden state is returned too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 6)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.mix, self.gru, self.head = nn.Linear(10, 7), nn.GRU(7, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, (hidden, _) = self.lstm(self.b(self.a(x).relu()))
        return self.head(self.gru(self.mix(x))[0]), hidden


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]], set[str]]] = {
    "products": (Products, lambda: (torch.randn(3, 8),), {"addmm", "mm", "einsum.part1"}),
    "signals": (Signals, lambda: (torch.randn(3, 2, 8),), {"a", "b"}),
    "arithmetic": (Arithmetic, lambda: (torch.randn(3, 5),), {"a"}),
    "activations": (Activations, lambda: (torch.randn(3, 5),), {"a.part", "b"}),
    "shapes": (Shapes, lambda: (torch.randn(2, 3, 4, 4),), {"c"}),
    "masks": (Masks, lambda: (torch.randint(0, 9, (3, 5)), torch.ones(3, 5).triu()), {"embed"}),
    "recurrent": (Recurrent, lambda: (torch.randn(2, 3, 4),), {"a", "b", "mix", "gru"}),
}


@pytest.mark.parametrize("case", CASES)
def test_models_made_of_the_vocabulary_are_exact(case: str, exercise: Callable[..., Any]) -> None:
    make, inputs, free = CASES[case]
    report = exercise(make(), inputs())
    assert free <= {name for name in report.masked if report.net.graph.groups[name].frozen is None}, report.free
    for name, group in report.net.graph.groups.items():
        assert group.frozen is None or "(op '" in str(group.frozen), name

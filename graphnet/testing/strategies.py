"""Hypothesis strategies: random graphs of every kind that matters, networks, batches, optimizers and edits.

Sizes are small, and no two widths of a network are related by chance alone: integers are never evidence, so equal
widths of unrelated groups are drawn as often as different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import Optimizer

from graphnet.edit.edit import Edit
from graphnet.ir.builders import convnet, mlp, resnet, transformer
from graphnet.ir.graph import Graph
from graphnet.ir.layout import Layout, atom, const, join, times
from graphnet.ir.ops import OPS, Op
from graphnet.ir.ops.io import Input
from graphnet.runtime.network import Network

__all__ = [
    "RandomEdit",
    "batches",
    "concat_nets",
    "convnets",
    "edits",
    "graphs",
    "layouts",
    "mlps",
    "optimizers",
    "random_network",
    "residual_nets",
    "sample",
    "train",
    "transformers",
    "unets",
    "wave_loss",
]

ACTIVATIONS = ("relu", "gelu", "tanh", "silu", "elu", "leaky_relu", "sigmoid", "softplus")
MakeOptimizer = Callable[[Any], Optimizer]

_widths = st.integers(2, 7)


def op(kind: str, name: str, *inputs: str, **attributes: Any) -> Op:
    """One op of a graph by the name of its kind."""
    return OPS[kind](name=name, inputs=inputs, **attributes)


# -- layouts and maps -----------------------------------------------------------------------------------------


def layouts(names: Sequence[str] = ("A", "B", "C"), depth: int = 2) -> st.SearchStrategy[Layout]:
    """Layouts over these unit groups: sums of products, nested sums included."""
    leaf = st.one_of(st.sampled_from([atom(name) for name in names]), st.integers(1, 3).map(const))
    if depth == 0:
        return leaf
    inner = layouts(names, depth - 1)
    some = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(inner, some.map(lambda parts: join(*parts)), some.map(lambda parts: times(*parts)))


# -- graphs ---------------------------------------------------------------------------------------------------


def mlps(*, norms: Sequence[str | None] = (None, "batch", "layer", "rms", "group")) -> st.SearchStrategy[Graph]:
    """Multilayer perceptrons of one to three hidden layers."""
    return st.builds(
        lambda widths, activation, norm: mlp(widths, activation=activation, norm=norm),
        st.lists(_widths, min_size=3, max_size=5),
        st.sampled_from(ACTIVATIONS),
        st.sampled_from(list(norms)),
    )


@st.composite
def convnets(draw: st.DrawFn) -> Graph:
    """Convolutions with pooling, flattened channel-major into fully connected layers."""
    channels = draw(st.lists(_widths, min_size=1, max_size=2))
    return convnet(
        (draw(st.integers(1, 3)), 4, 4),
        channels=channels,
        hidden=draw(st.lists(_widths, max_size=1)),
        classes=draw(_widths),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        norm=draw(st.sampled_from([None, "batch", "group"])),
        pool=draw(st.sampled_from([None, 2])),
    )


def residual_nets() -> st.SearchStrategy[Graph]:
    """Residual networks: streams tied by additions, projections where the width changes."""
    return st.builds(
        lambda stages, activation, norm: resnet(
            (2, 4, 4), stages=stages, blocks=1, classes=3, activation=activation, norm=norm
        ),
        st.lists(_widths, min_size=1, max_size=2),
        st.sampled_from(ACTIVATIONS),
        st.sampled_from([None, "batch"]),
    )


@st.composite
def concat_nets(draw: st.DrawFn) -> Graph:
    """Two convolution branches concatenated, then a depthwise and a grouped convolution, flattened either way."""
    a, b = draw(_widths), draw(_widths)
    depthwise, grouped = draw(st.booleans()), draw(st.booleans())
    act = draw(st.sampled_from(ACTIVATIONS))
    ops: list[Op] = [
        Input(name="x", shape=(2, 3, 3)),
        op("conv2d", "left", "x", out=a, kernel=3, padding=1),
        op("conv2d", "right", "x", out=b, kernel=1),
        op(act, "act_left", "left"),
        op("concat", "both", "act_left", "right"),
    ]
    last = "both"
    if depthwise:
        ops.append(op("conv2d", "depth", last, out=a + b, kernel=3, padding=1, depthwise=True))
        ops.append(op(act, "act_depth", "depth"))
        last = "act_depth"
    if grouped:
        ops += [
            op("conv2d", "wide", last, out=2 * draw(st.integers(1, 3)), kernel=1),
            op("conv2d", "grouped", "wide", out=2 * draw(st.integers(1, 3)), kernel=3, padding=1, groups=2),
            op(act, "act_grouped", "grouped"),
        ]
        last = "act_grouped"
    if draw(st.booleans()):  # channels last: the flattened dimension is 9*(A + B)
        ops.append(op("permute", "last", last, order=(2, 3, 1)))
        last = "last"
    ops += [op("flatten", "flat", last), op("linear", "fc", "flat", out=draw(_widths)), op(act, "act", "fc")]
    return Graph.from_ops([*ops, op("linear", "head", "act", out=3)], ["head"], name="concat")


@st.composite
def unets(draw: st.DrawFn) -> Graph:
    """A short U: features of the way down are concatenated to those of the way up, and added to them further up."""
    a, b = draw(_widths), draw(_widths)
    act, norm = draw(st.sampled_from(ACTIVATIONS)), draw(st.booleans())
    ops: list[Op] = [Input(name="x", shape=(2, 3, 3)), op("conv2d", "down", "x", out=a, kernel=3, padding=1)]
    ops.append(op("batch_norm" if norm else "identity", "norm", "down"))
    ops += [
        op(act, "act1", "norm"),
        op("conv2d", "deep", "act1", out=b, kernel=3, padding=1),
        op(act, "act2", "deep"),
        op("concat", "skip", "act2", "act1"),
        op("conv2d", "up", "skip", out=a, kernel=3, padding=1),
        op("add", "sum", "up", "act1"),
        op(act, "act3", "sum"),
        op("conv2d", "out", "act3", out=2, kernel=1),
    ]
    return Graph.from_ops(ops, ["out"], name="unet")


@st.composite
def transformers(draw: st.DrawFn) -> Graph:
    """One block of a decoder, with or without grouped queries and tied embeddings."""
    heads = draw(st.sampled_from([2, 4]))
    return transformer(
        draw(st.integers(5, 9)),
        width=heads * draw(st.integers(1, 2)),
        depth=1,
        heads=heads,
        kv_heads=draw(st.sampled_from([None, 2 if heads == 4 else 1])),
        context=6,
        hidden=draw(_widths),
        norm=draw(st.sampled_from(["layer", "rms"])),
        tied=draw(st.booleans()),
        causal=draw(st.booleans()),
    )


def graphs() -> st.SearchStrategy[Graph]:
    """Graphs of every kind."""
    return st.one_of(mlps(), convnets(), residual_nets(), concat_nets(), unets(), transformers())


# -- networks and data ----------------------------------------------------------------------------------------


def random_network(graph: Graph, seed: int = 0, *, dtype: torch.dtype = torch.float64) -> Network:
    """A network whose norms have random scales, shifts and statistics, so that none of them is the identity."""
    net = Network(graph, seed=seed).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, spec in graph.tensors.items():
            tensor = net.tensor(name)
            if spec.kind in ("scale", "statistic") and spec.newborn == 1.0:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
            elif spec.kind in ("shift", "statistic", "bias"):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    return net


def sample(graph: Graph, seed: int = 0, size: int = 4, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Inputs that fit a graph; dynamic dimensions have 5 positions."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for entry in graph.inputs:
        shape = (size, *(n if isinstance(n, int) else 5 for n in entry.shape))
        if entry.dtype == "int64":
            inputs.append(torch.randint(entry.high or 2, shape, generator=generator))
        else:
            inputs.append(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
    return tuple(inputs)


def batches(graph: Graph) -> st.SearchStrategy[tuple[Tensor, ...]]:
    """Random inputs that fit a graph."""
    return st.integers(0, 2**31).map(lambda seed: sample(graph, seed))


def wave_loss(output: Any, target: Any = None) -> Tensor:
    """A smooth scalar of any output that no symmetry leaves unchanged; the target is not looked at."""
    total = torch.zeros((), dtype=torch.float64)
    for tensor in output if isinstance(output, tuple) else (output,):
        waves = torch.cos(torch.arange(tensor.numel(), dtype=torch.float64)).reshape(tensor.shape)
        total = total + (tensor * waves).mean() + 0.5 * tensor.square().mean()
    return total


def optimizers(*, momentum: bool = True) -> st.SearchStrategy[MakeOptimizer]:
    """Functions that make an optimizer of given parameters: SGD with momentum, Adam and AdamW with their switches."""
    decay = st.sampled_from([0.0, 0.05])
    foreach = st.sampled_from([False, True])
    sgd = st.builds(
        lambda m, w, f, n: lambda p: torch.optim.SGD(p, 0.05, m, weight_decay=w, foreach=f, nesterov=n and m > 0),
        st.sampled_from([0.9] if momentum else [0.0, 0.9]), decay, foreach, st.booleans(),
    )  # fmt: skip
    adam = st.builds(
        lambda kind, a, w, f, s: lambda p: kind(p, 0.01, amsgrad=a, weight_decay=w, foreach=f, maximize=s),
        st.sampled_from([torch.optim.Adam, torch.optim.AdamW]), st.booleans(), decay, foreach, st.booleans(),
    )  # fmt: skip
    return st.one_of(sgd, adam)


def train(net: Network, optimizer: Optimizer, steps: int, *, seed: int = 0) -> None:
    """Take some optimizer steps on random batches, with gradients left in place."""
    for step in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(wave_loss(net(*sample(net.graph, seed * 1000 + step))))
        optimizer.step()


# -- edits ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomEdit:
    """One operator on one group.

    Attributes
    ----------
    operator : {"grow", "prune", "retire", "recruit"}
    group : str
    count : int
        How many units; cut to what the group allows when it is applied.
    init, state : str
        Of a growth.
    """

    operator: str
    group: str
    count: int
    init: str
    state: str

    def apply(self, edit: Edit) -> tuple[int, ...]:
        """Run the operator; returns the ids of the units, none where the group allows none."""
        group = edit.graph.groups[self.group]
        # a factor of a product cannot become 1: the product would be another layout, which validation refuses
        least = max(group.minimum, 2 if "." in self.group else 1)
        spare, dormant = max(group.size - least, 0), len(group.dormant)
        if self.operator == "grow":
            return edit.grow(self.group, self.count, init=self.init, state=self.state)
        if self.operator == "recruit":
            count = min(self.count, dormant)
            return edit.recruit(self.group, highest=count, score="random", state=self.state) if count else ()
        count = min(self.count, spare)
        if not count:
            return ()
        operator = edit.prune if self.operator == "prune" else edit.retire
        return operator(self.group, lowest=count, score="random")


def edits(
    graph: Graph, *, operators: Sequence[str] = ("grow", "prune", "retire", "recruit"), max_size: int = 4
) -> st.SearchStrategy[list[RandomEdit]]:
    """Sequences of edits of the groups that may be edited."""
    names = sorted(name for name, group in graph.groups.items() if group.frozen is None)
    one = st.builds(
        RandomEdit, st.sampled_from(list(operators)), st.sampled_from(names), st.integers(1, 3),
        st.sampled_from(["kaiming", "copy-std"]), st.sampled_from(["cold", "aged", "transplant"]),
    )  # fmt: skip
    return st.lists(one, min_size=1, max_size=max_size)

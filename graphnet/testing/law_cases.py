"""The cases of the law matrix: what may stand between the layer that writes a group and those that read it."""

from __future__ import annotations

from typing import Any

from graphnet.ir.builders import convnet, mlp, resnet, transformer
from graphnet.ir.graph import Graph
from graphnet.ir.ops import OPS, Op
from graphnet.testing.law_registry import case

__all__: list[str] = []


def _op(kind: str, name: str, *inputs: str, **attributes: Any) -> Op:
    return OPS[kind](name=name, inputs=inputs, **attributes)


def _image(*ops: Op, end: str) -> Graph:
    """Ops over an image, then a linear layer over everything."""
    head = [_op("flatten", "flat", end), _op("linear", "head", "flat", out=3)]
    return Graph.from_ops([_op("input", "x", shape=(2, 5, 5)), *ops, *head], ["head"])


for _norm, _label, _group in (
    (None, "–", "fc1"), ("batch", "batch", "fc1"), ("layer", "layer", "fc1"), ("rms", "RMS", "fc1"),
    ("group", "group, inside", "fc1.part1"), ("group", "group, a new one", "fc1.part"),
):  # fmt: skip

    @case("linear", _label, _group)
    def _linear(norm: Any = _norm) -> Graph:
        return mlp([5, 6, 6, 3], activation="gelu", norm=norm)


@case("linear, ReLU", "–", "fc1")
def _relu() -> Graph:
    return mlp([5, 6, 4, 3])


@case("linear, sigmoid", "–", "fc1")
def _sigmoid() -> Graph:
    return mlp([5, 6, 4, 3], activation="sigmoid")


@case("linear, norm after the consumer", "–", "fc1")
def _normed_consumer() -> Graph:
    ops = [
        _op("input", "x", shape=(5,)), _op("linear", "fc1", "x", out=6), _op("gelu", "act1", "fc1"),
        _op("linear", "fc2", "act1", out=4), _op("layer_norm", "norm2", "fc2"), _op("gelu", "act2", "norm2"),
        _op("linear", "head", "act2", out=3),
    ]  # fmt: skip
    return Graph.from_ops(ops, ["head"])


@case("gated linear", "–", "gate")
def _gated() -> Graph:
    ops = [
        _op("input", "x", shape=(5,)), _op("linear", "gate", "x", out=6), _op("linear", "up", "x", out=6),
        _op("silu", "act", "gate"), _op("mul", "mixed", "act", "up"), _op("linear", "head", "mixed", out=3),
    ]  # fmt: skip
    return Graph.from_ops(ops, ["head"])


for _norm, _label in ((None, "–"), ("batch", "batch")):

    @case("conv → conv", _label, "conv1")
    def _conv(norm: Any = _norm) -> Graph:
        return convnet((2, 4, 4), channels=(4, 5), hidden=(), activation="gelu", norm=norm, pool=None, classes=3)

    @case("conv → flatten → linear", _label, "conv2")
    def _flat(norm: Any = _norm) -> Graph:
        return convnet((2, 4, 4), channels=(3, 4), hidden=(), activation="gelu", norm=norm, pool=2, classes=3)


@case("conv → conv", "group, inside", "one.part1")
def _group_norm() -> Graph:
    return _image(
        _op("conv2d", "one", "x", out=6, kernel=3, padding=1), _op("group_norm", "norm", "one", groups=2),
        _op("gelu", "act", "norm"), _op("conv2d", "two", "act", out=3, kernel=1), end="two",
    )  # fmt: skip


@case("linear → reshape → conv", "–", "fc.part")
def _to_image() -> Graph:
    ops = [
        _op("input", "x", shape=(5,)), _op("linear", "fc", "x", out=4 * 9), _op("gelu", "act", "fc"),
        _op("reshape", "map", "act", shape=(4, 3, 3)), _op("conv2d", "two", "map", out=5, kernel=2),
        _op("flatten", "flat", "two"), _op("linear", "head", "flat", out=3),
    ]  # fmt: skip
    return Graph.from_ops(ops, ["head"])


@case("concat", "–", "left")
def _concat() -> Graph:
    return _image(
        _op("conv2d", "left", "x", out=4, kernel=3, padding=1), _op("gelu", "act", "left"),
        _op("conv2d", "right", "x", out=3, kernel=1), _op("concat", "both", "act", "right"),
        _op("conv2d", "two", "both", out=4, kernel=1), end="two",
    )  # fmt: skip


@case("depthwise conv", "–", "one")
def _depthwise() -> Graph:
    return _image(
        _op("conv2d", "one", "x", out=4, kernel=1), _op("gelu", "act1", "one"),
        _op("conv2d", "depth", "act1", out=4, kernel=3, padding=1, depthwise=True), _op("gelu", "act2", "depth"),
        _op("conv2d", "two", "act2", out=3, kernel=1), end="two",
    )  # fmt: skip


@case("grouped conv, inputs of a group", "–", "one.group_inputs")
def _grouped() -> Graph:
    return _image(
        _op("conv2d", "one", "x", out=6, kernel=1), _op("gelu", "act1", "one"),
        _op("conv2d", "two", "act1", out=4, kernel=3, padding=1, groups=2), end="two",
    )  # fmt: skip


@case("residual stream", "batch", "conv1")
def _residual() -> Graph:
    return resnet((2, 4, 4), stages=(4,), blocks=1, classes=3, activation="gelu")


@case("residual stream, reads itself", "–", "stem")
def _itself() -> Graph:
    ops = [
        _op("input", "x", shape=(5,)), _op("linear", "stem", "x", out=4), _op("linear", "mix", "stem", out=4),
        _op("add", "sum", "stem", "mix"), _op("gelu", "act", "sum"), _op("linear", "head", "act", out=3),
    ]  # fmt: skip
    return Graph.from_ops(ops, ["head"])


def _block(**options: Any) -> Graph:
    return transformer(7, width=8, depth=1, heads=2, context=6, hidden=6, **options)


for _norm, _label in (("layer", "layer"), ("rms", "RMS")):

    @case("residual stream of a transformer", _label, "tok")
    def _stream(norm: Any = _norm) -> Graph:
        return _block(norm=norm)


for _name, _group in (
    ("attention, heads", "q_proj.heads"), ("attention, key features", "q_proj.head_dim"),
    ("attention, value features", "v_proj.head_dim"), ("transformer, hidden layer", "fc1"),
):  # fmt: skip

    @case(_name, "–", f"blocks.0.{_group}")
    def _attention() -> Graph:
        return _block()


@case("attention, shared key-value heads", "–", "blocks.0.q_proj.kv_heads")
def _shared_heads() -> Graph:
    return transformer(7, width=8, depth=1, heads=4, kv_heads=2, context=6, hidden=6)


@case("output", "–", "head")
def _output() -> Graph:
    return mlp([5, 6, 3], activation="gelu")


@case("tied embedding", "–", "tok")
def _tied() -> Graph:
    ops = [
        _op("input", "x", shape=(3,), dtype="int64", high=5), _op("embedding", "tok", "x", count=5, dim=4),
        _op("tanh", "act", "tok"), _op("linear", "head", "act", out=5, bias=False, tied="tok"),
    ]  # fmt: skip
    return Graph.from_ops(ops, ["head"])

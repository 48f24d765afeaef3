"""The ready-made networks have the promised names and shapes, and refuse arguments that make no sense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from graphnet.errors import GraphError
from graphnet.ir.builders import convnet, mlp, resnet, transformer


def test_an_mlp_names_its_layers() -> None:
    graph = mlp([784, 256, 128, 10], norm="batch", dropout=0.2, activation="gelu", name="net")
    assert list(graph.ops) == [
        "x", "fc1", "norm1", "act1", "drop1", "fc2", "norm2", "act2", "drop2", "head", "output",
    ]  # fmt: skip
    assert graph.name == "net"
    assert graph.ops["act1"].op == "gelu"
    assert graph.groups["head"].output


def test_an_activation_may_have_attributes() -> None:
    graph = mlp([4, 3, 2], activation={"op": "rand_smooth_leaky", "lower": 0.2, "upper": 0.2})
    assert graph.ops["act1"].model_dump()["upper"] == 0.2


def test_the_default_convnet_is_that_of_the_study() -> None:
    graph = convnet()
    shapes = {name: graph.shape(spec) for name, spec in graph.tensors.items() if name.endswith("weight")}
    assert shapes == {
        "conv1.weight": (32, 3, 3, 3), "conv2.weight": (64, 32, 3, 3), "fc1.weight": (512, 4096),
        "fc2.weight": (512, 512), "fc3.weight": (256, 512), "head.weight": (10, 256),
    }  # fmt: skip
    assert list(graph.ops)[:8] == ["x", "conv1", "act_c1", "pool1", "conv2", "act_c2", "pool2", "flatten"]


def test_a_resnet_couples_each_stage_and_projects_between_them() -> None:
    graph = resnet((3, 16, 16), stages=(4, 8), blocks=2, classes=5)
    assert graph.group("layer1.1.conv2").name == "conv1"
    assert graph.group("layer2.1.conv2").name == graph.group("layer2.0.downsample.conv").name == "layer2.0.conv2"
    assert "layer1.0.downsample.conv" not in graph.ops
    assert [str(dim) for dim in graph.dims("layer2.1.add")[2:]] == ["8", "8"]
    assert len(resnet((3, 16, 16), stages=(4, 8), blocks=(1, 3)).ops) > len(
        resnet((3, 16, 16), stages=(4, 8), blocks=(1, 2)).ops
    )


def test_a_transformer_has_one_stream_and_shared_key_heads() -> None:
    graph = transformer(11, width=16, depth=2, heads=4, kv_heads=2, context=8, norm="rms", dropout=0.1)
    stream = {graph.group(name).name for name in ("tok", "blocks.0.o_proj", "blocks.1.fc2", "pos")}
    assert stream == {"tok"}
    assert graph.groups["tok"].role == "stream"
    assert graph.groups["blocks.0.q_proj.kv_heads"].size == 2
    assert graph.groups["blocks.1.fc1"].size == 64
    assert {"blocks.0.drop1", "blocks.0.drop2", "norm"} <= set(graph.ops)
    assert "head.weight" in graph.tensors
    tied = transformer(11, width=16, depth=1, heads=4, context=8, tied=True)
    assert "head.weight" not in tied.tensors
    assert tied.groups["head"].frozen is not None


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: mlp([6, 5, 3], norm="layer"), (2, 3)),
        (lambda: mlp([6, 3]), (2, 3)),
        (lambda: mlp([6, 8, 3], norm="group", activation="tanh"), (2, 3)),
        (lambda: convnet((1, 8, 8), channels=(4,), hidden=(), classes=3, pool=None, norm="group"), (2, 3)),
        (lambda: resnet((3, 8, 8), stages=(4, 6), blocks=1, classes=3, norm=None), (2, 3)),
        (lambda: transformer(9, width=8, depth=1, heads=2, context=7), (2, 5, 9)),
    ],
)
def test_each_builder_runs(build: Callable[[], Any], shape: tuple[int, ...], lowered: Callable[..., Any]) -> None:
    _, module, inputs = lowered(build(), dynamic={"time": 5})
    assert module(*inputs).shape == torch.Size(shape)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: mlp([4]), "at least the input and the output"),
        (lambda: mlp(784), "list of integers"),  # type: ignore[arg-type]
        (lambda: mlp([4, 0, 2]), r"widths\[1\]"),
        (lambda: mlp([4, 2.5, 2]), r"widths\[1\].*2\.5"),  # type: ignore[list-item]
        (lambda: mlp([4, True, 2]), "True"),
        (lambda: mlp([4, 3, 2], activation="swish"), "'swish' is not one of .*gelu"),
        (lambda: mlp([4, 3, 2], activation=3), "activation"),  # type: ignore[arg-type]
        (lambda: mlp([4, 3, 2], activation={"op": "leaky_relu", "slope": 9}), "act1"),
        (lambda: mlp([4, 3, 2], norm="batchnorm"), "'batchnorm' is not one of"),  # type: ignore[arg-type]
        (lambda: mlp([4, 3, 2], dropout=1.0), "dropout"),
        (lambda: mlp([4, 3, 2], name=""), "name"),
        (lambda: convnet((32, 32)), "channels, height, width"),
        (lambda: convnet(kernel=4), "odd"),
        (lambda: convnet(channels=()), "at least 1"),
        (lambda: convnet((3, 2, 2), channels=(4, 4, 4)), "does not fit"),
        (lambda: convnet(classes=0), "classes"),
        (lambda: resnet(blocks=(1, 2)), "names 2 stages"),
        (lambda: resnet(norm="layer"), "'layer'"),  # type: ignore[arg-type]
        (lambda: transformer(0), "vocabulary"),
        (lambda: transformer(9, width=10, heads=4), "divided among 4 heads"),
        (lambda: transformer(9, heads=4, kv_heads=3), "share 3"),
        (lambda: transformer(9, norm="batch"), "'batch' is not one of layer, rms"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(GraphError, match=words):
        build()

"""The reference evaluator knows every op, and the lowering agrees with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from graphnet.errors import GraphError
from graphnet.ir.builders import convnet, mlp, resnet, transformer
from graphnet.ir.document import load
from graphnet.ir.graph import Graph
from graphnet.ir.ops import OPS
from graphnet.ir.reference import REFERENCES, evaluate

VECTOR, SEQUENCE, SIGNAL, IMAGE = [6], [5, 6], [4, 9], [4, 7, 6]
CASES: dict[str, tuple[list[int], list[dict[str, Any]]]] = {
    "linear": (VECTOR, [{"out": 3}, {"out": 3, "bias": False}]),
    "projection": (SEQUENCE, [{"out": 3}, {"out": 3, "bias": False}]),
    "conv1d": (SIGNAL, [{"out": 6, "kernel": 3, "stride": 2, "padding": 1}, {"out": 6, "kernel": 2, "groups": 2}]),
    "conv2d": (
        IMAGE,
        [
            {"out": 3, "kernel": [3, 2], "stride": 2, "padding": 1, "dilation": 2},
            {"out": 6, "kernel": 3, "groups": 2},
            {"out": 8, "kernel": 2, "depthwise": True}, {"out": 4, "kernel": 2, "groups": 4, "bias": False},
        ],
    ),
    "relu": (VECTOR, [{}]), "gelu": (VECTOR, [{}, {"approximate": "tanh"}]), "silu": (VECTOR, [{}]),
    "tanh": (VECTOR, [{}]), "sigmoid": (VECTOR, [{}]), "leaky_relu": (VECTOR, [{}, {"slope": 0.3}]),
    "elu": (VECTOR, [{}, {"alpha": 0.4}]), "softplus": (VECTOR, [{}, {"beta": 3.0}]), "identity": (VECTOR, [{}]),
    "rand_smooth_leaky": (VECTOR, [{}, {"c": 1.0, "p": 2.0, "lower": 0.2, "upper": 0.2}]),
    "dropout": (VECTOR, [{"p": 0.4}]),
    "blend": (
        VECTOR, [{"first": "relu", "second": "gelu"}, {"first": "identity", "second": "elu", "learned": False}],
    ),
    "batch_norm": (IMAGE, [{}, {"affine": False, "eps": 0.1}]),
    "layer_norm": (SEQUENCE, [{}, {"bias": False, "eps": 0.1}]),
    "rms_norm": (SEQUENCE, [{}, {"eps": 0.1}]), "group_norm": (IMAGE, [{"groups": 2}, {"groups": 4, "eps": 0.1}]),
    "max_pool": (IMAGE, [{"kernel": 2}, {"kernel": 3, "stride": 2, "padding": 1}]),
    "avg_pool": (IMAGE, [{"kernel": 2}, {"kernel": 3, "stride": 1, "padding": 1}]),
    "adaptive_avg_pool": (IMAGE, [{}, {"size": 4}]), "mean": (IMAGE, [{"dim": 1}, {"dim": -1}]),
    "flatten": (IMAGE, [{}, {"start": 2}]), "reshape": (IMAGE, [{"shape": [2, -1, 3]}]),
    "permute": (IMAGE, [{"order": [3, 1, 2]}]), "transpose": (IMAGE, [{"first": 1, "second": 3}]),
    "split": (IMAGE, [{"sizes": [1, 3]}, {"dim": 3, "sizes": [2, 1, 3]}]),
    "positions": (SEQUENCE, [{"length": 8}]),
    "attention": (
        [5, 8], [{"heads": 2}, {"heads": 4, "causal": True, "scale": 0.3}],
    ),
    "concat": (IMAGE, [{}, {"dim": 3}]), "add": (IMAGE, [{}]), "mul": (IMAGE, [{}]),
}  # fmt: skip
READS = {"attention": 3, "concat": 2, "add": 3, "mul": 2}


def _close(graph: Graph, lowered: Callable[..., Any], **options: Any) -> None:
    root, module, inputs = lowered(graph, **options)
    found = module(*inputs)
    expected = evaluate(graph, root.state_dict(), inputs)
    for one, two in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        assert two.dtype == np.float64
        np.testing.assert_allclose(one.detach().numpy(), two, rtol=1e-10, atol=1e-10)


def test_every_registered_op_has_a_definition_and_a_case() -> None:
    defined = {name for name, kind in OPS.items() if any(base in REFERENCES for base in kind.__mro__)}
    ours = {name for name, kind in OPS.items() if kind.__module__.startswith("graphnet.")}
    ours -= {name for name, kind in OPS.items() if kind.traced}  # an imported network is compared with its model
    assert ours - defined == {"input", "output"}
    assert ours - set(CASES) == {"input", "output", "embedding"}  # embedding: in the transformer below


@pytest.mark.parametrize(
    ("kind", "attributes"), [(kind, case) for kind, (_, cases) in CASES.items() for case in cases], ids=str
)
def test_the_lowering_of_an_op_equals_its_definition(
    kind: str, attributes: dict[str, Any], lowered: Callable[..., Any]
) -> None:
    shape = CASES[kind][0]
    names = ["x", "y", "z"][: READS.get(kind, 1)]
    ports = len(attributes["sizes"]) if kind == "split" else 1
    document = {
        "inputs": {name: {"shape": shape} for name in names},
        "ops": [{"name": "op", "op": kind, "inputs": names, **attributes}],
        "outputs": ["op", "op:1"][:ports] if kind == "split" else ["op"],
    }
    _close(load(document), lowered)


@pytest.mark.parametrize(
    "build",
    [
        lambda: mlp([6, 8, 3], norm="group", dropout=0.3),
        lambda: convnet((3, 8, 8), channels=(4,), hidden=(5,), norm="batch"),
        lambda: resnet((3, 8, 8), stages=(4, 6), blocks=1),
        lambda: transformer(9, width=8, depth=1, heads=4, context=6),
        lambda: transformer(9, width=8, depth=1, heads=4, kv_heads=2, context=6, tied=True, norm="rms"),
    ],
)
def test_the_lowering_of_a_network_equals_its_definition(
    build: Callable[[], Graph], lowered: Callable[..., Any]
) -> None:
    _close(build(), lowered, dynamic={"time": 5})


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_far_out_activations_agree_to_rounding(beta: float) -> None:
    """Softplus becomes linear in torch where beta x passes 20: a difference of 2e-9, which a tolerance may hide."""
    graph = load({"inputs": {"x": {"shape": [9]}}, "ops": [{"name": "op", "op": "softplus", "beta": beta}]})
    x = torch.tensor([[-60.0, -20.0, 0.0, 6.5, 6.8, 19.9, 20.1, 22.0, 80.0]], dtype=torch.float64)
    (found,) = evaluate(graph, {}, [x])
    np.testing.assert_allclose(found, OPS["softplus"](name="op", inputs=("x",), beta=beta).build({})(x).numpy(), 1e-14)


def test_a_reshape_keeps_a_dynamic_dimension(lowered: Callable[..., Any]) -> None:
    graph = load(
        {
            "inputs": {"x": {"shape": ["time", 6]}},
            "ops": [{"name": "r", "op": "reshape", "shape": ["time", 2, -1]}, {"name": "h", "op": "linear", "out": 2}],
        }
    )
    for time in (1, 4):
        _close(graph, lowered, dynamic={"time": time})


def test_a_wrong_weight_is_seen(lowered: Callable[..., Any]) -> None:
    graph = mlp([6, 8, 3])
    root, module, inputs = lowered(graph)
    tensors = {name: tensor.clone() for name, tensor in root.state_dict().items()}
    tensors["fc1.weight"][0, 0] += 0.1
    found = evaluate(graph, tensors, inputs)[0]
    assert np.abs(found - module(*inputs).detach().numpy()).max() > 1e-6


def test_inputs_may_be_given_by_name_or_alone() -> None:
    graph = mlp([2, 1, 1])
    tensors = {"fc1.weight": [[1.0, 1.0]], "fc1.bias": [0.0], "head.weight": [[2.0]], "head.bias": [1.0]}
    x = torch.tensor([[1.0, 2.0]])
    for inputs in (x, [x], {"x": x}, x.numpy()):
        assert evaluate(graph, tensors, inputs)[0].tolist() == [[7.0]]


def test_what_is_missing_or_does_not_fit_is_refused() -> None:
    graph = mlp([2, 1, 1])
    tensors = {"fc1.weight": [[1.0, 1.0]], "fc1.bias": [0.0], "head.weight": [[2.0]], "head.bias": [1.0]}
    with pytest.raises(GraphError, match=r"needs the tensor 'head\.bias'"):
        evaluate(graph, {key: value for key, value in tensors.items() if key != "head.bias"}, np.ones((1, 2)))
    with pytest.raises(GraphError, match=r"shape \[2\], the graph says \[1\]"):
        evaluate(graph, tensors | {"head.bias": [1.0, 2.0]}, np.ones((1, 2)))
    with pytest.raises(GraphError, match=r"input 'x' has shape \[1, 3\]"):
        evaluate(graph, tensors, np.ones((1, 3)))
    with pytest.raises(GraphError, match="needs the input 'x'"):
        evaluate(graph, tensors, {})

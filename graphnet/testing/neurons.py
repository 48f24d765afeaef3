"""An oracle for dense and convolutional networks: neuron by neuron, over the edges of ``graph.expand()``.

A unit's value is the sum over the edges that lead to it of what the unit at the other end gives, times the edge's own
weights; no weight is read as a tensor. So it agrees with the network only where the graph's units, their order and
their connections are those of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import networkx as nx
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphnet.errors import GraphError
from graphnet.ir.expand import UnitNode, _keys, _origin
from graphnet.ir.graph import Graph
from graphnet.ir.infer import Node
from graphnet.ir.ops import Op
from graphnet.ir.ops.activation import Activation
from graphnet.ir.ops.arithmetic import Add, Mul
from graphnet.ir.ops.conv import Conv1d, Conv2d
from graphnet.ir.ops.dense import LinearOp
from graphnet.ir.ops.io import Input, Output
from graphnet.ir.ops.norm import BatchNorm
from graphnet.ir.ops.pool import AdaptiveAvgPool, AvgPool, MaxPool
from graphnet.ir.ops.shape import Concat, Flatten
from graphnet.ir.reference import REFERENCES, Call
from graphnet.runtime.network import Network
from graphnet.testing.compare import tolerance_of
from graphnet.testing.counting import COUNTS
from graphnet.testing.data import dtype_of, sample
from graphnet.testing.laws import check_output, output_of

__all__ = ["check_neurons", "neurons"]

Value: TypeAlias = NDArray[np.float64]
"""What one unit gives: ``[batch, positions ...]``."""

_EDGES = 20_000


@dataclass(frozen=True)
class _Layer:
    """One op to evaluate."""

    graph: Graph
    name: str
    node: Node
    edges: nx.DiGraph
    sources: Sequence[UnitNode]
    targets: Sequence[UnitNode]
    tensors: Mapping[str, Value]

    def slot(self, ending: str) -> Value | None:
        """A vector with one number for each unit."""
        for spec in self.node.tensors:
            if spec.name.endswith(f".{ending}"):
                return self.tensors[spec.shared or spec.name]
        return None


Rule: TypeAlias = Callable[..., list[Value]]
RULES: dict[type[Op], Rule] = {}


def _rule(*kinds: type[Op]) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return add


def neurons(graph: Graph, tensors: Mapping[str, Any], inputs: Sequence[Any]) -> tuple[Value, ...] | None:
    """Evaluate a graph neuron by neuron, in evaluation mode.

    Parameters
    ----------
    tensors : mapping of str to tensor
        As in a state dict.
    inputs : sequence of array
        ``[batch, units, positions ...]`` each.

    Returns
    -------
    tuple of array or None
        The outputs; None for a graph with other ops than linear layers, convolutions, activations, sums, products,
        concats, batch norms and pools, with a depthwise multiplier above one, or of more than 20,000 edges.

    Examples
    --------
    >>> import graphnet as gn
    >>> net = gn.Network(gn.mlp([2, 3, 1]), seed=0)
    >>> x = torch.ones(1, 2)
    >>> (found,) = neurons(net.graph, net.state_dict(), [x])
    >>> bool(np.allclose(found, net(x).detach().numpy(), atol=1e-6))
    True
    """
    rules = {name: _rule_of(node.op) for name, node in graph.nodes.items()}
    if any(rule is None for name, rule in rules.items() if not isinstance(graph.nodes[name].op, Input | Output)):
        return None
    if not all(_first_units(graph, name) for name in graph.nodes):
        return None
    try:
        edges = graph.expand(tensors=tensors, limit=_EDGES)
    except GraphError:
        return None
    arrays = {name: torch.as_tensor(tensors[name]).detach().double().numpy() for name in graph.tensors}
    ids = {name: group.ids for name, group in graph.groups.items()}
    given = iter(inputs)
    values: dict[str, list[Value]] = {}
    keys: dict[str, list[UnitNode]] = {}
    for name, node in graph.nodes.items():
        if isinstance(node.op, Output):
            continue
        keys[name] = _keys(graph.dims(name)[1], _origin(graph, name), ids)
        if isinstance(node.op, Input):
            values[name] = list(np.moveaxis(np.asarray(next(given), dtype=np.float64), 1, 0))
            continue
        read = [producer for producer, _ in node.inputs]
        layer = _Layer(graph, name, node, edges, keys[read[0]], keys[name], arrays)
        if _rows_read_apart(node.op, keys[name]):
            return None
        rule = rules[name]
        assert rule is not None
        values[name] = rule(layer, *(values[producer] for producer in read))
    return tuple(np.stack(values[name], axis=1) for name, _ in graph.outputs)


def _rule_of(op: Op) -> Rule | None:
    return next((RULES[kind] for kind in type(op).__mro__ if kind in RULES), None)


def _rows_read_apart(op: Op, targets: Sequence[UnitNode]) -> bool:
    """Whether rows of one unit read different channels: a multiplier's units stand once for each channel."""
    grouped = isinstance(op, Conv1d | Conv2d) and (op.depthwise or op.groups != 1)
    return grouped and len(set(targets)) < len(targets)


def _first_units(graph: Graph, name: str) -> bool:
    """Whether an op gives units in the first dimension behind the batch: features alone, or channels of an image."""
    op, dims = graph.nodes[name].op, graph.nodes[name].outputs
    if isinstance(op, Input):
        return next(one.dtype for one in graph.inputs if one.name == name).startswith("float")
    if isinstance(op, LinearOp):
        return len(dims[0]) == 2
    if isinstance(op, Flatten):
        return op.start == 1
    return not isinstance(op, Concat) or op.dim == 1


def check_neurons(net: Network, *inputs: Tensor) -> bool:
    """The network gives what its graph gives neuron by neuron, over the edges of ``expand()``.

    Parameters
    ----------
    inputs : Tensor
        By default a sample that fits.

    Returns
    -------
    bool
        False for a network of other ops than :func:`neurons` knows.
    """
    inputs = inputs or sample(net.graph, dtype=dtype_of(net))
    found = neurons(net.graph, {name: net.tensor(name) for name in net.graph.tensors}, inputs)
    if found is None:
        return False
    output = output_of(net, inputs)
    output = output if isinstance(output, tuple) else (output,)
    expected = tuple(torch.from_numpy(part) for part in found)
    check_output(net, inputs, expected, output, "neuron by neuron", tolerance_of("lowering", output))
    COUNTS.held("neurons")
    return True


# -- the ops ------------------------------------------------------------------------------------------------------


def _incoming(layer: _Layer, target: UnitNode) -> list[tuple[UnitNode, Value]]:
    """The units that a layer reads for one of its units, each with the weights of the edge."""
    found = []
    for source, _, data in layer.edges.in_edges(target, data=True):
        found += [(source, values) for op, values in zip(data["ops"], data["values"], strict=True) if op == layer.name]
    return found


def _by_unit(layer: _Layer, read: Sequence[Value]) -> dict[UnitNode, list[Value]]:
    """What each unit gives, at each of the positions at which it stands."""
    found: dict[UnitNode, list[Value]] = {}
    for key, value in zip(layer.sources, read, strict=True):
        found.setdefault(key, []).append(value)
    return found


@_rule(LinearOp)
def _linear(layer: _Layer, read: Sequence[Value]) -> list[Value]:
    given, bias = _by_unit(layer, read), layer.slot("bias")
    found, seen = [], dict[UnitNode, int]()
    for row, target in enumerate(layer.targets):
        turn = seen[target] = seen.get(target, -1) + 1  # of a unit with several rows
        total = np.zeros(len(read[0]))
        for source, weights in _incoming(layer, target):
            places = np.atleast_1d(weights).reshape(-1, len(given[source]))[turn]
            for weight, value in zip(places, given[source], strict=True):
                total = total + weight * value
        found.append(total if bias is None else total + bias[row])
    return found


@_rule(Conv1d, Conv2d)
def _conv(layer: _Layer, read: Sequence[Value]) -> list[Value]:
    op: Any = layer.node.op
    given, bias = _by_unit(layer, read), layer.slot("bias")
    sizes = op.kernel_sizes()
    pads = ((0, 0), *((op.padding, op.padding) for _ in sizes))
    padded = {key: [np.pad(value, pads) for value in values] for key, values in given.items()}
    shape = [
        (size + 2 * op.padding - op.dilation * (kernel - 1) - 1) // op.stride + 1
        for size, kernel in zip(read[0].shape[1:], sizes, strict=True)
    ]
    found, seen = [], dict[UnitNode, int]()
    for row, target in enumerate(layer.targets):
        turn = seen[target] = seen.get(target, -1) + 1
        total = np.zeros((len(read[0]), *shape))
        for source, weights in _incoming(layer, target):
            kernels = weights.reshape(-1, len(padded[source]), *sizes)
            for kernel, value in zip(kernels[turn], padded[source], strict=True):
                for at in product(*(range(size) for size in sizes)):
                    window = tuple(
                        slice(op.dilation * first, op.dilation * first + op.stride * (count - 1) + 1, op.stride)
                        for first, count in zip(at, shape, strict=True)
                    )
                    total = total + kernel[at] * value[(slice(None), *window)]
        found.append(total if bias is None else total + bias[row])
    return found


@_rule(Activation, MaxPool, AvgPool, AdaptiveAvgPool)
def _alone(layer: _Layer, read: Sequence[Value]) -> list[Value]:
    """An op that looks at one unit at a time: its definition, on each."""
    op = layer.node.op
    rule: Any = next(REFERENCES[kind] for kind in type(op).__mro__ if kind in REFERENCES)
    short = {spec.name.rpartition(".")[2]: layer.tensors[spec.shared or spec.name] for spec in layer.node.tensors}
    return [rule(op, Call(layer.node, short, {}), value[:, None])[:, 0] for value in read]


@_rule(BatchNorm)
def _batch_norm(layer: _Layer, read: Sequence[Value]) -> list[Value]:
    op: Any = layer.node.op
    mean, variance = layer.slot("running_mean"), layer.slot("running_var")
    scale, shift = layer.slot("weight"), layer.slot("bias")
    assert mean is not None
    assert variance is not None
    found = []
    for unit, value in enumerate(read):
        value = (value - mean[unit]) / np.sqrt(variance[unit] + op.eps)
        value = value if scale is None else value * scale[unit]
        found.append(value if shift is None else value + shift[unit])
    return found


@_rule(Flatten)
def _flatten(layer: _Layer, read: Sequence[Value]) -> list[Value]:
    return [column for value in read for column in value.reshape(len(value), -1).T]


@_rule(Concat)
def _concat(layer: _Layer, *read: Sequence[Value]) -> list[Value]:
    return [value for values in read for value in values]


@_rule(Add)
def _add(layer: _Layer, *read: Sequence[Value]) -> list[Value]:
    return [sum(values[1:], start=values[0]) for values in zip(*read, strict=True)]


@_rule(Mul)
def _mul(layer: _Layer, *read: Sequence[Value]) -> list[Value]:
    return [np.prod(np.stack(values), axis=0) for values in zip(*read, strict=True)]

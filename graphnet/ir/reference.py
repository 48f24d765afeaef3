"""The reference evaluator: what a graph computes, op by op and unit by unit, in float64.

Written in numpy from the definitions of the ops, it shares no code with their lowering to torch: it is what a lowered
network is checked against, and it is slow. It evaluates as a network in evaluation mode does (no dropout, running
statistics in batch norm).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, erf, floor, pi, sqrt
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from graphnet.errors import GraphError
from graphnet.ir.graph import Graph
from graphnet.ir.infer import BATCH, Node
from graphnet.ir.layout import Layout
from graphnet.ir.ops import activation, arithmetic, attention, blend, conv, dense, io, norm, pool, shape
from graphnet.ir.ops.base import Op, SizeValue

__all__ = ["REFERENCES", "evaluate", "reference"]

Array: TypeAlias = Any  # NDArray, whose operators have lost their element type


@dataclass(frozen=True, slots=True)
class Call:
    """One op to evaluate: its node, its tensors under their short names, its size arguments as integers."""

    node: Node
    tensors: Mapping[str, Array]
    sizes: Mapping[str, SizeValue]

    def size(self, key: str) -> int:
        """A size argument that is one integer."""
        value = self.sizes[key]
        assert isinstance(value, int)
        return value


Rule: TypeAlias = Callable[..., "Array | tuple[Array, ...]"]

REFERENCES: dict[type[Op], Rule] = {}
"""How each op is evaluated: ``rule(op, call, *inputs)``."""


def reference(kind: type[Op]) -> Callable[[Rule], Rule]:
    """Register the definition of an op (function decorator); it gets the op, a :class:`Call` and the inputs."""

    def add(rule: Rule) -> Rule:
        REFERENCES[kind] = rule
        return rule

    return add


def evaluate(graph: Graph, tensors: Mapping[str, Any], inputs: Any) -> tuple[NDArray[np.float64], ...]:
    """Evaluate a graph.

    Parameters
    ----------
    graph : Graph
    tensors : mapping of str to tensor or array
        Every tensor in :attr:`Graph.tensors`, as in a state dict; others are not looked at.
    inputs : array, sequence of arrays or mapping of input name to array
        With the batch in dimension 0.

    Returns
    -------
    tuple of float64 arrays
        The outputs, in order.

    Raises
    ------
    GraphError
        A tensor or an input is missing or has another shape, or an op has no definition here.

    Examples
    --------
    >>> from graphnet.ir.builders import mlp
    >>> tensors = {"fc1.weight": [[1.0, -2.0]], "fc1.bias": [0.5], "head.weight": [[3.0]], "head.bias": [1.0]}
    >>> evaluate(mlp([2, 1, 1]), tensors, np.array([[1.0, 0.0], [0.0, 1.0]]))[0].tolist()
    [[5.5], [1.0]]
    """
    stored = {name: _stored(graph, name, tensors) for name in graph.tensors}
    given, dynamic = _inputs(graph, inputs)
    sizes = {**graph.sizes, **dynamic}
    values: dict[tuple[str, int], Array] = {}
    for name, node in graph.nodes.items():
        if isinstance(node.op, io.Output):
            break
        if isinstance(node.op, io.Input):
            values[name, 0] = given[name]
            continue
        rule = next((REFERENCES[kind] for kind in type(node.op).__mro__ if kind in REFERENCES), None)
        if rule is None:
            raise GraphError(
                f"op {name!r} ({node.op.op}) has no reference definition: "
                "register one with graphnet.ir.reference.reference"
            )
        short = {spec.name.rpartition(".")[2]: stored[spec.shared or spec.name] for spec in node.tensors}
        numbers = {
            key: layout.size(sizes) if isinstance(layout, Layout) else [part.size(sizes) for part in layout]
            for key, layout in node.sizes.items()
        }
        found = rule(node.op, Call(node, short, numbers), *(values[read] for read in node.inputs))
        for port, value in enumerate(found if isinstance(found, tuple) else (found,)):
            values[name, port] = value
    return tuple(values[read].astype(np.float64) for read in graph.outputs)


def _array(value: Any) -> Array:
    return value.detach().cpu().double().numpy() if isinstance(value, torch.Tensor) else np.asarray(value, np.float64)


def _stored(graph: Graph, name: str, tensors: Mapping[str, Any]) -> Array:
    if name not in tensors:
        raise GraphError(f"the reference evaluator needs the tensor {name!r}, which is not given")
    value, wanted = _array(tensors[name]), graph.shape(graph.tensors[name])
    if value.shape != wanted:
        raise GraphError(f"tensor {name!r} has shape {list(value.shape)}, the graph says {list(wanted)}")
    return value


def _inputs(graph: Graph, inputs: Any) -> tuple[dict[str, Array], dict[str, int]]:
    """The inputs by name, and the sizes of the dynamic dimensions that they show."""
    names = [op.name for op in graph.inputs]
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    elif isinstance(inputs, list | tuple):
        given = dict(zip(names, inputs, strict=False))
    else:
        given = {names[0]: inputs}
    values: dict[str, Array] = {}
    bound: dict[str, int] = {}
    for op in graph.inputs:
        if op.name not in given:
            raise GraphError(f"the reference evaluator needs the input {op.name!r}, which is not given")
        value = _array(given[op.name])
        wanted = (BATCH, *op.shape)
        if len(value.shape) != len(wanted) or any(
            size != (entry if isinstance(entry, int) else bound.setdefault(entry, size))
            for entry, size in zip(wanted, value.shape, strict=True)
        ):
            raise GraphError(f"input {op.name!r} has shape {list(value.shape)}, the graph says {list(wanted)}")
        values[op.name] = value.astype(np.int64) if op.dtype == "int64" else value
    return values, {f"<{name}>": size for name, size in bound.items()}


# -- layers with weights --------------------------------------------------------------------------------------


@reference(dense.LinearOp)
def _linear(op: dense.LinearOp, call: Call, x: Array) -> Array:
    weight = call.tensors["weight"]
    out = np.zeros((*x.shape[:-1], weight.shape[0]))
    for unit, source in np.ndindex(*weight.shape):
        out[..., unit] += weight[unit, source] * x[..., source]
    return out + call.tensors["bias"] if op.bias else out


@reference(dense.Projection)
def _projection(op: dense.Projection, call: Call, x: Array) -> Array:
    weight = call.tensors["weight"]
    out = np.zeros((*x.shape[:-1], weight.shape[1]))
    for source, unit in np.ndindex(*weight.shape):
        out[..., unit] += weight[source, unit] * x[..., source]
    return out + call.tensors["bias"] if op.bias else out


@reference(dense.Embedding)
def _embedding(op: dense.Embedding, call: Call, x: Array) -> Array:
    return call.tensors["weight"][x]


@reference(dense.Positions)
def _positions(op: dense.Positions, call: Call, x: Array) -> Array:
    return x + call.tensors["weight"][None, : x.shape[1]]


@reference(conv._Conv)
def _conv(op: conv._Conv, call: Call, x: Array) -> Array:
    weight = call.tensors["weight"]
    units, each, *kernel = weight.shape
    grouping = x.shape[1] if op.depthwise else op.groups
    padded = np.pad(x, [(0, 0), (0, 0), *[(op.padding, op.padding)] * len(kernel)])
    reach = [op.dilation * (k - 1) + 1 for k in kernel]
    spatial = [(size - span) // op.stride + 1 for size, span in zip(padded.shape[2:], reach, strict=True)]
    out = np.zeros((x.shape[0], units, *spatial))
    for unit, source in product(range(units), range(each)):
        channel = unit // (units // grouping) * each + source
        for tap in np.ndindex(*kernel):
            window = tuple(
                slice(at * op.dilation, at * op.dilation + (count - 1) * op.stride + 1, op.stride)
                for at, count in zip(tap, spatial, strict=True)
            )
            out[:, unit] += weight[(unit, source, *tap)] * padded[(slice(None), channel, *window)]
    return out + _channels(call.tensors["bias"], out) if op.bias else out


def _channels(values: Array, like: Array) -> Array:
    return values.reshape(1, -1, *[1] * (like.ndim - 2))


@reference(attention.Attention)
def _attention(op: attention.Attention, call: Call, q: Array, k: Array, v: Array) -> Array:
    heads, shared = call.size("heads"), call.size("shared_heads")
    dim, value = q.shape[2] // heads, v.shape[2] // shared
    out = np.zeros((*q.shape[:2], heads * value))
    for head in range(heads):
        source = head // (heads // shared)
        queries = q[:, :, head * dim : (head + 1) * dim]
        keys = k[:, :, source * dim : (source + 1) * dim]
        score = np.einsum("btd,bsd->bts", queries, keys) * (1 / sqrt(dim) if op.scale is None else op.scale)
        if op.causal:
            after = np.arange(k.shape[1])[None, :] > np.arange(q.shape[1])[:, None]
            score = np.where(after, -np.inf, score)
        weights = np.exp(score - score.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("bts,bsd->btd", weights, v[:, :, source * value : (source + 1) * value])
        out[:, :, head * value : (head + 1) * value] = mixed
    return out


# -- norms ----------------------------------------------------------------------------------------------------


@reference(norm.BatchNorm)
def _batch_norm(op: norm.BatchNorm, call: Call, x: Array) -> Array:
    mean, variance = (_channels(call.tensors[f"running_{which}"], x) for which in ("mean", "var"))
    out = (x - mean) / np.sqrt(variance + op.eps)
    if not op.affine:
        return out
    return out * _channels(call.tensors["weight"], x) + _channels(call.tensors["bias"], x)


@reference(norm.LayerNorm)
def _layer_norm(op: norm.LayerNorm, call: Call, x: Array) -> Array:
    out = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + op.eps)
    return out * call.tensors["weight"] + (call.tensors["bias"] if op.bias else 0.0)


@reference(norm.RMSNorm)
def _rms_norm(op: norm.RMSNorm, call: Call, x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + op.eps) * call.tensors["weight"]


@reference(norm.GroupNorm)
def _group_norm(op: norm.GroupNorm, call: Call, x: Array) -> Array:
    out = np.empty_like(x)
    each = x.shape[1] // call.size("groups")
    for first in range(0, x.shape[1], each):
        part = x[:, first : first + each]
        axes = tuple(range(1, part.ndim))
        mean, variance = part.mean(axes, keepdims=True), part.var(axes, keepdims=True)
        out[:, first : first + each] = (part - mean) / np.sqrt(variance + op.eps)
    return out * _channels(call.tensors["weight"], x) + _channels(call.tensors["bias"], x)


# -- activations ----------------------------------------------------------------------------------------------


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -x))


@reference(activation.ReLU)
def _relu(op: activation.ReLU, call: Call, x: Array) -> Array:
    return np.where(x > 0, x, 0.0)


@reference(activation.GELU)
def _gelu(op: activation.GELU, call: Call, x: Array) -> Array:
    if op.approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(erf, otypes=[np.float64])(x / sqrt(2)))


@reference(activation.SiLU)
def _silu(op: activation.SiLU, call: Call, x: Array) -> Array:
    return x * _sigmoid(x)


@reference(activation.Tanh)
def _tanh(op: activation.Tanh, call: Call, x: Array) -> Array:
    return np.tanh(x)


@reference(activation.Sigmoid)
def _sigmoid_op(op: activation.Sigmoid, call: Call, x: Array) -> Array:
    return _sigmoid(x)


@reference(activation.LeakyReLU)
def _leaky_relu(op: activation.LeakyReLU, call: Call, x: Array) -> Array:
    return np.where(x > 0, x, op.slope * x)


@reference(activation.ELU)
def _elu(op: activation.ELU, call: Call, x: Array) -> Array:
    return np.where(x > 0, x, op.alpha * np.expm1(np.minimum(x, 0.0)))


@reference(activation.Softplus)
def _softplus(op: activation.Softplus, call: Call, x: Array) -> Array:
    return np.where(op.beta * x > op.linear_above, x, np.logaddexp(0.0, op.beta * x) / op.beta)


@reference(blend.Blend)
def _blend(op: blend.Blend, call: Call, x: Array) -> Array:
    one, two = (
        REFERENCES[blend.BLENDED[kind]](blend.BLENDED[kind](op=kind, name=kind), call, x)
        for kind in (op.first, op.second)
    )
    return (1.0 - call.tensors["mix"]) * one + call.tensors["mix"] * two


@reference(activation.Identity)
@reference(activation.Dropout)
def _identity(op: Op, call: Call, x: Array) -> Array:
    return x


@reference(activation.RandSmoothLeaky)
def _rand_smooth_leaky(op: activation.RandSmoothLeaky, call: Call, x: Array) -> Array:
    slope = (op.lower + op.upper) / 2
    return slope * x + (1 - slope) * x * _sigmoid(op.c * x / op.p)


# -- arithmetic and shapes ------------------------------------------------------------------------------------


@reference(arithmetic.Add)
def _add(op: arithmetic.Add, call: Call, *xs: Array) -> Array:
    return np.asarray(sum(xs[1:], start=xs[0]))


@reference(arithmetic.Mul)
def _mul(op: arithmetic.Mul, call: Call, *xs: Array) -> Array:
    out = xs[0]
    for x in xs[1:]:
        out = out * x
    return out


@reference(shape.Flatten)
def _flatten(op: shape.Flatten, call: Call, x: Array) -> Array:
    return x.reshape(*x.shape[: op.start], -1)


@reference(shape.Reshape)
def _reshape(op: shape.Reshape, call: Call, x: Array) -> Array:
    sizes = call.sizes["shape"]
    assert isinstance(sizes, list)
    return x.reshape(x.shape[0], *sizes)


@reference(shape.Permute)
def _permute(op: shape.Permute, call: Call, x: Array) -> Array:
    return x.transpose(0, *op.order)


@reference(shape.Transpose)
def _transpose(op: shape.Transpose, call: Call, x: Array) -> Array:
    return x.swapaxes(op.first, op.second)


@reference(shape.Concat)
def _concat(op: shape.Concat, call: Call, *xs: Array) -> Array:
    return np.concatenate(xs, axis=op.dim)


@reference(shape.Split)
def _split(op: shape.Split, call: Call, x: Array) -> tuple[Array, ...]:
    parts, first = [], 0
    sizes = call.sizes["sizes"]
    assert isinstance(sizes, list)
    for size in sizes:
        parts.append(x[tuple([slice(None)] * op.dim + [slice(first, first + size)])])
        first += size
    return tuple(parts)


# -- pooling --------------------------------------------------------------------------------------------------


def _windows(size: int, op: pool._Pool) -> list[tuple[int, int]]:
    stride = op.stride or op.kernel
    count = (size + 2 * op.padding - op.kernel) // stride + 1
    return [(at * stride, at * stride + op.kernel) for at in range(count)]


def _pool(x: Array, windows: Sequence[Sequence[tuple[int, int]]], take: Callable[..., Array]) -> Array:
    out = np.empty((*x.shape[:2], *map(len, windows)))
    for at in np.ndindex(*out.shape[2:]):
        part = tuple(slice(*spans[index]) for spans, index in zip(windows, at, strict=True))
        axes = tuple(range(2, x.ndim))
        out[(slice(None), slice(None), *at)] = take(x[(slice(None), slice(None), *part)], axis=axes)
    return out


def _padded(x: Array, op: pool._Pool, value: float) -> Array:
    return np.pad(x, [(0, 0), (0, 0), *[(op.padding, op.padding)] * (x.ndim - 2)], constant_values=value)


@reference(pool.MaxPool)
def _max_pool(op: pool.MaxPool, call: Call, x: Array) -> Array:
    return _pool(_padded(x, op, -np.inf), [_windows(size, op) for size in x.shape[2:]], np.max)


@reference(pool.AvgPool)
def _avg_pool(op: pool.AvgPool, call: Call, x: Array) -> Array:
    return _pool(_padded(x, op, 0.0), [_windows(size, op) for size in x.shape[2:]], np.mean)


@reference(pool.AdaptiveAvgPool)
def _adaptive_avg_pool(op: pool.AdaptiveAvgPool, call: Call, x: Array) -> Array:
    windows = [
        [(floor(at * size / op.size), ceil((at + 1) * size / op.size)) for at in range(op.size)] for size in x.shape[2:]
    ]
    return _pool(x, windows, np.mean)


@reference(pool.Mean)
def _mean(op: pool.Mean, call: Call, x: Array) -> Array:
    return x.mean(axis=op.dim)

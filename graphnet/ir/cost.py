"""What a graph costs: floating point operations, parameters and bytes, from layouts alone; no tensor is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import torch

from graphnet.errors import GraphError
from graphnet.ir.graph import Graph
from graphnet.ir.infer import BATCH
from graphnet.ir.ops.base import Dims, Shape
from graphnet.ir.ops.io import Input, Output

__all__ = ["OPTIMIZER_SLOTS", "Cost", "OpCost", "cost"]

OPTIMIZER_SLOTS: Mapping[str, int] = MappingProxyType(
    {
        "sgd": 0, "momentum": 1, "nesterov": 1, "adagrad": 1, "rmsprop": 1, "asgd": 1, "muon": 1,
        "adam": 2, "adamw": 2, "adamax": 2, "nadam": 2, "radam": 2, "adadelta": 2, "rprop": 2, "amsgrad": 3,
    }
)  # fmt: skip
"""Numbers that an optimizer keeps for each parameter element, with its usual settings."""


@dataclass(frozen=True, slots=True)
class OpCost:
    """The part of a cost that one op causes; a tied tensor counts for the op that owns it."""

    flops: int
    params: int
    activation_bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What one version of a network costs.

    Attributes
    ----------
    flops : int
        Floating point operations of one forward pass over the batch, as ``torch.utils.flop_counter`` counts them:
        two for each multiply-add of matrix products, convolutions and attention, none for anything else.
    params : int
        Elements of all parameters; a tied one counts once.
    param_bytes, buffer_bytes : int
        Bytes of parameters and of buffers (running statistics and their int64 counters).
    activation_bytes : int
        Bytes of the outputs of every op in one forward pass over the batch, network inputs left out. Views count as
        if they were copies, and nothing is freed: an upper estimate of what a backward pass needs.
    optimizer_bytes : int
        Bytes of the optimizer's state: its slots for each parameter element, step counters left out.
    per_op : mapping of str to OpCost
    units : mapping of str to int
        Units of each group that were counted.
    batch : int
    optimizer : str
    """

    flops: int
    params: int
    param_bytes: int
    buffer_bytes: int
    activation_bytes: int
    optimizer_bytes: int
    per_op: Mapping[str, OpCost]
    units: Mapping[str, int]
    batch: int
    optimizer: str

    def __str__(self) -> str:
        rows = {
            f"FLOPs (forward, batch {self.batch})": self.flops,
            "parameters": self.params,
            "parameter bytes": self.param_bytes,
            "buffer bytes": self.buffer_bytes,
            "activation bytes": self.activation_bytes,
            f"optimizer bytes ({self.optimizer})": self.optimizer_bytes,
        }
        wide = max(map(len, rows))
        return "\n".join(f"{label:<{wide}}  {value:>18,}" for label, value in rows.items())


def cost(
    graph: Graph,
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    optimizer: str = "adam",
    dormant: bool = False,
) -> Cost:
    """Count what a graph costs.

    Parameters
    ----------
    graph : Graph
    input_shape : sequence of int, or mapping of input name to sequence, optional
        Shapes of the inputs without the batch; they bind the dimensions that change from batch to batch and may be
        left out where there are none.
    batch : int
        Examples in the batch.
    dtype : torch.dtype
        Of parameters, activations and optimizer state.
    optimizer : str
        A name in :data:`OPTIMIZER_SLOTS`.
    dormant : bool
        Count dormant units as if they were live: what a masked dense backbone executes and stores.

    Raises
    ------
    GraphError
        A dynamic dimension is not bound, a shape does not fit, the optimizer is not known.

    Examples
    --------
    >>> from graphnet.ir.builders import mlp
    >>> found = cost(mlp([784, 256, 10]), batch=2)
    >>> found.flops, found.params, found.optimizer_bytes
    (813056, 203530, 1628240)
    """
    slots = OPTIMIZER_SLOTS.get(optimizer)
    if slots is None:
        raise GraphError(f"cost: optimizer {optimizer!r} is not one of {', '.join(OPTIMIZER_SLOTS)}")
    units = {
        name: group.size + (len(group.dormant) if dormant else 0) for name, group in graph.groups.items()
    }  # fmt: skip
    sizes = units | _bind(graph, input_shape, _whole("batch", batch))
    width = dtype.itemsize
    per_op: dict[str, OpCost] = {}
    buffer_bytes = 0

    def shape(dims: Dims) -> Shape:
        return tuple(layout.size(sizes) for layout in dims)

    for name, node in graph.nodes.items():
        if isinstance(node.op, Input | Output):
            continue
        inputs = [shape(graph.dims(producer, port)) for producer, port in node.inputs]
        outputs = [shape(dims) for dims in node.outputs]
        params = 0
        for spec in node.tensors:
            if spec.shared is None and spec.buffer:
                buffer_bytes += prod(shape(spec.dims)) * (8 if spec.kind == "counter" else width)
            elif spec.shared is None:
                params += prod(shape(spec.dims))
        per_op[name] = OpCost(node.op.flops(inputs, outputs), params, sum(map(prod, outputs)) * width)
    total = sum(entry.params for entry in per_op.values())
    return Cost(
        flops=sum(entry.flops for entry in per_op.values()), params=total, param_bytes=total * width,
        buffer_bytes=buffer_bytes, activation_bytes=sum(entry.activation_bytes for entry in per_op.values()),
        optimizer_bytes=slots * total * width, per_op=MappingProxyType(per_op), units=MappingProxyType(units),
        batch=batch, optimizer=optimizer,
    )  # fmt: skip


def _bind(
    graph: Graph, given: Sequence[int] | Mapping[str, Sequence[int]] | None, batch: int
) -> dict[str, int]:  # fmt: skip
    """Sizes of the dynamic dimensions, from the shapes of the inputs."""
    inputs = {op.name: op.shape for op in graph.inputs}
    shapes: Mapping[str, Sequence[int]]
    if given is None:
        shapes = {}
    elif isinstance(given, Mapping):
        shapes = given
    elif len(inputs) == 1:
        shapes = {next(iter(inputs)): given}
    else:
        raise GraphError(f"cost: the graph has inputs {sorted(inputs)}: give input_shape as a mapping by name")
    bound: dict[str, int] = {f"<{BATCH}>": batch}
    for name, sizes in shapes.items():
        if name not in inputs:
            raise GraphError(f"cost: input_shape names {name!r}; the inputs are {sorted(inputs)}")
        if not _is_list(sizes):
            raise GraphError(f"cost: input_shape of {name!r} must be a list of sizes, not {sizes!r}")
        wanted = inputs[name]
        if len(sizes) != len(wanted):
            raise GraphError(
                f"cost: input {name!r} has shape {list(wanted)} without the batch, input_shape gives {list(sizes)}"
            )
        for entry, size in zip(wanted, sizes, strict=True):
            _whole(f"input_shape of {name!r}", size)
            expected = entry if isinstance(entry, int) else bound.setdefault(f"<{entry}>", size)
            if size != expected:
                raise GraphError(
                    f"cost: input {name!r} has shape {list(wanted)}, input_shape gives {list(sizes)}: "
                    f"{entry!r} is {expected} already"
                )
    missing = [key for key in graph.dynamic if key not in bound]
    if missing:
        where = next(name for name, shape in inputs.items() if missing[0].strip("<>") in shape)
        raise GraphError(
            f"cost: the dimension(s) {', '.join(missing)} change from batch to batch; bind them with "
            f"input_shape, a size for each of {list(inputs[where])} (input {where!r})"
        )
    return bound


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _whole(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise GraphError(f"cost: {what} must hold integers of at least 1, not {value!r}")
    return value

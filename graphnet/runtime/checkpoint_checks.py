"""Whether the tensors of a checkpoint are those that its graph calls for, before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from graphnet.edit.plan import extended_sizes
from graphnet.errors import CheckpointError
from graphnet.ir.graph import Graph
from graphnet.ir.ops.base import TensorSpec
from graphnet.runtime.values import Reader

__all__ = ["Checks"]


class _Birth(Protocol):
    @property
    def param(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def tensor(self) -> str: ...


class Checks:
    """Checks of what a file holds of one graph.

    Parameters
    ----------
    graph : Graph
    reader : Reader
        Notes which tensors were called for.
    prefix : str
        Before the names of the graph's tensors in the file.
    """

    def __init__(self, graph: Graph, reader: Reader, prefix: str = "") -> None:
        self.graph, self.reader, self.prefix = graph, reader, prefix

    def tensors(self, reserve: Sequence[str], constant: Iterable[str]) -> None:
        """Every stored tensor is there with its shape, and the weights of dormant units where there are any.

        Raises
        ------
        CheckpointError
            Says which is not.
        """
        graph, sizes, constant = self.graph, extended_sizes(self.graph), set(constant)
        for name in constant:
            self.spec(name, parameter=True)
        for name in reserve:
            self.shape(f"reserve/{name}", tuple(layout.size(sizes) for layout in self.spec(name).dims))
        for name, spec in graph.tensors.items():
            self.shape(f"tensor/{name}", graph.shape(spec))
            kept = self.reader.tensors[f"{self.prefix}tensor/{name}"]
            if not (spec.buffer or name in constant or kept.is_floating_point() or kept.is_complex()):
                raise CheckpointError(f"parameter {name!r} is to be trained and has dtype {kept.dtype}")
            resting = any(graph.groups[k].dormant for d in spec.dims for k in d.atoms() if k in graph.groups)
            if resting != (name in reserve):
                what = "missing" if resting else "not called for"
                raise CheckpointError(f"the weights that {name!r} has of dormant units are {what}")

    def average(self, place: int) -> None:
        """An averaged model's tensors are there with the shapes of the graph's."""
        for name, spec in self.graph.tensors.items():
            self.shape(f"average/{place}/tensor/{name}", self.graph.shape(spec))

    def gradients(self, names: Iterable[str]) -> None:
        """Gradients have the shape and dtype of their parameters."""
        for name in names:
            self.shape(f"gradient/{name}", self.graph.shape(self.spec(name, parameter=True)))
            held = self.reader.tensors
            if held[f"{self.prefix}gradient/{name}"].dtype != held[f"{self.prefix}tensor/{name}"].dtype:
                raise CheckpointError(f"the gradient of {name!r} has another dtype than the parameter")

    def optimizer(
        self, kind: str, groups: Sequence[Sequence[str]], state: Mapping[str, Any], births: Iterable[_Birth]
    ) -> None:
        """An optimizer's parameters are the graph's, and it has state and ages of no other."""
        held = [name for group in groups for name in group]
        for name in held:
            self.spec(name, parameter=True)
        if len(set(held)) != len(held) or not set(state) <= set(held):
            raise CheckpointError(f"{kind} holds a parameter twice, or state of one that it does not hold")
        self.reader.decode(dict(state))
        for birth in births:
            shape = self.graph.shape(self.spec(birth.param, parameter=True))
            if birth.dim >= len(shape) or birth.param not in held:
                raise CheckpointError(f"{kind}: {birth.param!r} has no {birth.what} of dimension {birth.dim}")
            self.shape(birth.tensor, (shape[birth.dim],), prefix="")

    def shape(self, key: str, shape: tuple[int, ...], *, prefix: str | None = None) -> None:
        """A tensor is there with a shape."""
        key = (self.prefix if prefix is None else prefix) + key
        found = self.reader.tensors.get(key)
        if found is None:
            raise CheckpointError(f"the checkpoint lacks the tensor {key!r}")
        self.reader.used.add(key)
        if tuple(found.shape) != shape:
            raise CheckpointError(f"{key!r} has shape {list(found.shape)}; the graph gives it {list(shape)}")

    def spec(self, name: str, *, parameter: bool = False) -> TensorSpec:
        """A stored tensor of the graph."""
        spec = self.graph.tensors.get(name)
        if spec is None or (parameter and spec.buffer):
            raise CheckpointError(f"the graph has no {'parameter' if parameter else 'tensor'} {name!r}")
        return spec

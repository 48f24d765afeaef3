"""Sizes in emitted code: what is known stands as a number, what changes from batch to batch is read off the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import add, mul
from typing import Any

from torch import fx

from graphnet.errors import GraphError
from graphnet.ir.expressions import value_of
from graphnet.ir.graph import Graph
from graphnet.ir.layout import Factor, Layout

__all__ = ["SizeWriter"]


class SizeWriter:
    """Writes sizes of layouts into a ``torch.fx`` graph, each dynamic dimension once.

    Parameters
    ----------
    code : torch.fx.Graph
    graph : Graph
    inputs : mapping of str to torch.fx.Node
        The placeholder of each input.
    """

    def __init__(self, code: fx.Graph, graph: Graph, inputs: Mapping[str, fx.Node]) -> None:
        self._code, self._graph, self._inputs = code, graph, inputs
        self._read: dict[str, fx.Node] = {}
        self._places = {
            layout.single: (name, dim)
            for name in reversed(list(inputs))
            for dim, layout in reversed(list(enumerate(graph.dims(name))))
            if layout.single in graph.dynamic
        }

    def extent(self, layout: Layout | str) -> Any:
        """The size of a layout, or the value of a size expression: an integer or a node."""
        if isinstance(layout, str):
            return value_of(layout, lambda name: self._dynamic(f"<{name}>"), self._code_call)
        return reduce(self._sum, (reduce(self._product, map(self._factor, term), 1) for term in layout.terms))

    def device(self) -> fx.Node:
        """The device of the first input."""
        if "device" not in self._read:
            first = next(iter(self._inputs.values()))
            self._read["device"] = self._code.call_function(getattr, (first, "device"))
        return self._read["device"]

    def _factor(self, factor: Factor) -> Any:
        if isinstance(factor, int):
            return factor
        if isinstance(factor, Layout):
            return self.extent(factor)
        return self._dynamic(factor) if factor in self._graph.dynamic else self._graph.sizes[factor]

    def _dynamic(self, key: str) -> Any:
        if key in self._read:
            return self._read[key]
        if key in self._places:
            name, dim = self._places[key]
            self._read[key] = self._code.call_method("size", (self._inputs[name], dim))
            return self._read[key]
        expression = key.strip("<>")
        if expression.isidentifier():
            raise GraphError(f"no input has the dimension {expression!r}, which a size of the program speaks of")
        return self.extent(expression)

    def _code_call(self, function: Any, *values: Any) -> fx.Node:
        return self._code.call_function(function, values)

    def _product(self, one: Any, two: Any) -> Any:
        if isinstance(one, int) and isinstance(two, int):
            return one * two
        return two if one == 1 else one if two == 1 else self._code_call(mul, one, two)

    def _sum(self, one: Any, two: Any) -> Any:
        if isinstance(one, int) and isinstance(two, int):
            return one + two
        return self._code_call(add, one, two)

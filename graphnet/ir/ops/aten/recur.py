"""Recurrent layers and cells in one call: the units of the hidden state, and the gates that each of them has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from graphnet.ir.layout import Layout, const, times
from graphnet.ir.ops.aten.opaque import Opaque
from graphnet.ir.ops.base import Context, Dims, Role, Shape, register

__all__ = ["Recurrent"]

_GATES: Mapping[str, int] = MappingProxyType({"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1})


@dataclass(frozen=True, slots=True)
class _Layer:
    """The operands that one layer in one direction reads: weights for its input and its state, biases, projection."""

    inputs: int
    state: int
    biases: tuple[int, ...]
    projection: int | None


@register
class Recurrent(Opaque):
    """LSTM, GRU and plain recurrent layers and cells; a unit is one of the hidden state, with all of its gates.

    The rows of a weight are ``gates * units``, in torch's order of gates; the state has one size in every layer and
    direction of a call, so that a unit stands in all of them.
    """

    op: Literal["recurrent"] = "recurrent"  # type: ignore[assignment]

    targets: ClassVar[tuple[str, ...]] = tuple(name + end for name in _GATES for end in ("", "_cell"))
    unit_kind: ClassVar[str] = "neurons"

    @property
    def _cell(self) -> bool:
        return self.function.endswith("_cell")

    @property
    def _kind(self) -> str:
        return self.function.removesuffix("_cell")

    @property
    def _directions(self) -> int:
        return 1 if self._cell else 1 + bool(self.arg("bidirectional"))

    def _states(self) -> list[int] | None:
        """The operands that hold the states at the start: hidden, and of an LSTM the cells."""
        found = self.operands("hx") if self._kind == "lstm" else [self.operand("hx")]
        known = [at for at in found if at is not None]
        return known if len(known) == len(found) == (2 if self._kind == "lstm" else 1) else None

    def _layers(self) -> list[_Layer] | None:
        """What each layer and direction reads, in order; None where the call has another form."""
        if self._cell:
            biases = tuple(at for name in ("b_ih", "b_hh") if (at := self.operand(name)) is not None)
            one, two = self.operand("w_ih"), self.operand("w_hh")
            return None if one is None or two is None else [_Layer(one, two, biases, None)]
        if not self.target.endswith(".input"):
            return None
        found = self.operands("params")
        known = [at for at in found if at is not None]
        count = int(self.arg("num_layers")) * self._directions
        last = 4 if self.arg("has_biases") else 2
        each, rest = divmod(len(known), count)
        if len(known) != len(found) or rest or each - last not in (0, 1):
            return None
        return [
            _Layer(part[0], part[1], tuple(part[2:last]), part[last] if each > last else None)
            for part in (known[at : at + each] for at in range(0, len(known), each))
        ]

    def rule(self, ctx: Context, *inputs: Dims) -> Dims | tuple[Dims, ...]:
        at, states, layers = self.operand("input"), self._states(), self._layers()
        if at is None or states is None or layers is None:
            return super().rule(ctx, *inputs)
        x, shown = inputs[at], inputs[states[0]][-1]  # what the layer shows: the hidden state, or its projection
        units = inputs[states[-1]][-1]
        batch = x[0] if self._cell or self.arg("batch_first") else x[1]
        if not self._cell:
            ctx.freeze(x[1] if self.arg("batch_first") else x[0], "a recurrent layer goes along it")
        for state in states:
            dims = inputs[state]
            for dim in dims[:-2]:
                ctx.freeze(dim, "it counts the layers of a recurrent layer")
            ctx.unify(batch, dims[-2])
            ctx.use(state, [*(None for _ in dims[:-1]), "write"], "table")
        if layers[0].projection is None:
            ctx.unify(shown, units)
        elif ctx.number(shown) >= ctx.number(units):
            raise ctx.error(
                f"a projection of {ctx.number(units)} units onto {ctx.number(shown)}: torch takes one onto fewer; "
                "keep more units, or fewer of the projection"
            )
        else:
            ctx.hint(shown, "projection")
        ctx.hint(units, "hidden")
        below, directions, gates = x[-1], self._directions, _GATES[self._kind]
        each = const(1) if gates == 1 else ctx.unknown(gates)
        for place, layer in enumerate(layers):
            self._layer(ctx, inputs, layer, below, shown, units, times(each, units))
            if (place + 1) % directions == 0:
                below = shown if directions == 1 else times(const(directions), shown)
        ctx.freeze(each, "they are the gates of a recurrent layer")
        if self._cell:
            hidden, cells = (batch, shown), (batch, units)
            return (hidden, cells) if self._kind == "lstm" else hidden
        count = const(len(layers))
        return ((*x[:-1], below), *((count, batch, dim) for dim in (shown, units)[: len(states)]))

    def _layer(
        self, ctx: Context, inputs: Sequence[Dims], layer: _Layer, below: Layout, shown: Layout, units: Layout,
        rows: Layout,
    ) -> None:  # fmt: skip
        weight: list[Role | None] = ["write", "read"]
        for at, columns in ((layer.inputs, below), (layer.state, shown)):
            ctx.unify(inputs[at][0], rows)
            ctx.unify(inputs[at][1], columns)
            ctx.use(at, weight, "weight")
        for at in layer.biases:
            ctx.unify(inputs[at][0], rows)
            ctx.use(at, ["write"], "bias")
        if layer.projection is not None:
            ctx.unify(inputs[layer.projection][0], shown)
            ctx.unify(inputs[layer.projection][1], units)
            ctx.use(layer.projection, weight, "weight")

    def flops(self, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
        at, layers = self.operand("input"), self._layers()
        if at is None or layers is None:
            return 0
        steps = 1
        for size in inputs[at][:-1]:
            steps *= size
        read = [operand for one in layers for operand in (one.inputs, one.state, one.projection) if operand is not None]
        return sum(2 * steps * inputs[operand][0] * inputs[operand][1] for operand in read)

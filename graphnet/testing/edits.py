"""Hypothesis strategies of edits: a registry of generators, one for each operator of :class:`graphnet.Edit`.

A generator draws one call of its operator for a graph, or gives None where the graph allows none::

    @edit_strategy("split")
    def _split(draw, graph):
        group = draw(groups_of(graph, output=False))
        return EditCall("split", (group, draw(st.integers(1, 2))), incumbents=False)

From there on the operator is part of :func:`edits`, of :class:`~graphnet.testing.SurgeryMachine` and of
``make test-long``. A call that the operator refuses is not a mistake of the generator: the laws check then that
nothing was changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

from hypothesis import assume
from hypothesis import strategies as st

from graphnet.edit.edit import Edit
from graphnet.edit.host import Snapshot
from graphnet.errors import GraphnetError
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup
from graphnet.testing.data import probe_batch, random_network, wave_loss

__all__ = [
    "DATA",
    "EDITS",
    "EditCall",
    "Given",
    "edit_calls",
    "edit_strategy",
    "edits",
    "groups_of",
    "some_group",
    "spare",
]


class Given(Enum):
    """What a call gets when it is run: a batch that fits, the loss, a snapshot from before."""

    BATCH = "probe_batch(edit)"
    LOSS = "wave_loss"
    SNAPSHOT = "snapshot"


DATA: Mapping[str, Given] = {"batch": Given.BATCH, "loss": Given.LOSS}
"""Options of an operator that takes data."""


@dataclass(frozen=True)
class EditCall:
    """One call of an operator, as a value.

    Attributes
    ----------
    operator : str
        A method of :class:`graphnet.Edit`.
    args : tuple
    options : mapping
        Arguments; a :class:`Given` stands for what is not known before the call.
    incumbents : bool
        Whether units that stay keep their values and their optimizer state bit for bit.
    gradients : bool
        Whether, where the function is preserved, they keep their gradients too. New wires need not: a layer of zeros
        that gets another reader gives zero as before, and gets that reader's gradient.
    """

    operator: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    incumbents: bool = True
    gradients: bool = True

    @property
    def needs_data(self) -> bool:
        """Whether it is given a batch, a loss or a snapshot, which a journal does not hold."""
        return any(isinstance(value, Given) for value in (*self.args, *self.options.values()))

    def apply(self, edit: Edit, snapshot: Snapshot | None = None) -> Any:
        """Run the operator; without a ``snapshot`` it gets one of the network as it is before the edit."""

        def given(value: Any) -> Any:
            if value is Given.BATCH:
                return probe_batch(edit)
            if value is Given.LOSS:
                return wave_loss
            if value is Given.SNAPSHOT:
                return snapshot if snapshot is not None else _snapshot_of(edit)
            return value

        options = {key: given(value) for key, value in self.options.items()}
        return getattr(edit, self.operator)(*(given(value) for value in self.args), **options)

    def code(self) -> str:
        """The call as a line of Python, on ``edit``."""
        parts = [_shown(value) for value in self.args]
        parts += [f"{key}={_shown(value)}" for key, value in self.options.items()]
        return f"edit.{self.operator}({', '.join(parts)})"

    def __repr__(self) -> str:
        return self.code()


def _shown(value: Any) -> str:
    return value.value if isinstance(value, Given) else repr(value)


def _snapshot_of(edit: Edit) -> Snapshot:
    host: Any = edit.plan.host
    snapshot: Snapshot = host.snapshot()
    return snapshot


Generator: TypeAlias = Callable[[st.DrawFn, Graph], "EditCall | None"]

EDITS: dict[str, Generator] = {}
"""The generators by the name of their operator."""


def edit_strategy(operator: str) -> Callable[[Generator], Generator]:
    """Register how calls of an operator are drawn (function decorator)."""

    def add(generator: Generator) -> Generator:
        EDITS[operator] = generator
        return generator

    return add


# -- what generators share ------------------------------------------------------------------------------------


def groups_of(graph: Graph, *, output: bool = True, where: Callable[[UnitGroup], bool] | None = None) -> Any:
    """A strategy of the names of groups that may be edited; rejects the example where there is none.

    Parameters
    ----------
    output : bool
        Also those that a model output reads.
    where : callable, optional
        Only groups for which it is true.
    """
    names = [
        name
        for name, group in sorted(graph.groups.items())
        if group.frozen is None and (output or not group.output) and (where is None or where(group))
    ]
    return st.sampled_from(names) if names else st.nothing()


def spare(graph: Graph, group: str) -> int:
    """How many units may leave a group: a factor of a product cannot become 1, which would be another layout."""
    held = graph.groups[group]
    return max(held.size - max(held.minimum, 2 if "." in group else 1), 0)


def some_group(draw: st.DrawFn, graph: Graph, **options: Any) -> str | None:
    """The name of an editable group, or None where there is none."""
    strategy = groups_of(graph, **options)
    return None if strategy.is_empty else draw(strategy)


# -- strategies -----------------------------------------------------------------------------------------------


@st.composite
def edit_calls(draw: st.DrawFn, graph: Graph, operators: Sequence[str] | None = None) -> EditCall:
    """One call of one of these operators, for a graph; by default of every operator that has a generator."""
    names = list(EDITS) if operators is None else list(operators)
    first = draw(st.sampled_from(names))
    for name in (first, *(name for name in names if name != first)):
        call = EDITS[name](draw, graph)
        if call is not None:
            return call
    assume(False)
    raise AssertionError("assume has raised")


@st.composite
def edits(
    draw: st.DrawFn, graph: Graph, *, operators: Sequence[str] | None = None, min_size: int = 1, max_size: int = 4
) -> list[EditCall]:
    """Sequences of calls, each for the graph that those before it leave; up to any length.

    The calls are tried one by one on a network of their own; those that it refuses are left out. On another network
    of the same graph a call may be refused, since a score picks other units there.
    """
    net = random_network(graph, 0)
    calls: list[EditCall] = []
    for _ in range(draw(st.integers(min_size, max_size))):
        call = draw(edit_calls(net.graph, operators))
        try:
            with net.edit() as edit:
                call.apply(edit)
        except GraphnetError:
            continue
        calls.append(call)
    assume(len(calls) >= min_size)
    return calls

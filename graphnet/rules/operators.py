"""Structural steps, and operators of the user's own: performed by the edit's method, or by a registered function.

On a sketch the same method runs on zeros. What depends on data is then not known, and the step is unpredictable.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from graphnet.edit.registry import Registry
from graphnet.errors import EditError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.ir.ops import OPS
from graphnet.rules.arguments import arguments_of, takes
from graphnet.rules.outcome import Change
from graphnet.rules.sketch import UnpredictableError, sketch_batch, sketch_loss
from graphnet.rules.steps import STEPS, Done, Runner, Stage
from graphnet.schemas.structure import Deepen, Insert, Kernel, Operator, Redirect, Remove, Replace, Tie, Untie

__all__ = ["OPERATORS", "EditRunner", "OperatorRunner", "operator"]

OPERATORS: Registry[Callable[..., Any]] = Registry("operator")

F = TypeVar("F", bound=Callable[..., Any])

_WIRING = (Insert, Redirect, Remove)
"""What these promise depends on the steps around them, so their promise is checked of the whole edit."""


def operator(name: str) -> Callable[[F], F]:
    """Register a function of a plan as an operator that rules may name (decorator).

    It is called with the plan (:class:`graphnet.edit.plan.Plan`), the name of the op or group that the step is ``on``,
    and the step's arguments by keyword. ``batch``, ``loss`` and ``preserves`` are given where it takes them. It
    describes the edit on the plan and changes no tensor.

    Examples
    --------
    >>> from dataclasses import replace
    >>> @operator("drop-first")
    ... def drop_first(plan, group, *, count: int = 1):
    ...     units = plan.graph.editable(group)
    ...     plan.advance(replace(units, ids=units.ids[count:]))
    >>> "drop-first" in OPERATORS
    True
    """
    if not isinstance(name, str) or not name:
        raise GraphnetError(f"an operator is registered under a name, not under {name!r}")

    def add(function: F) -> F:
        OPERATORS.register(name)(function)
        return function

    return add


class _Structural(Runner):
    """A step that is one call on the edit, with the same call on a sketch."""

    def _call(self, stage: Stage, call: Callable[[Mapping[str, Any]], Any], parameters: Collection[str]) -> Any:
        """Call with the data that there is: on a sketch without any first, then with data that cannot be looked at."""
        data = stage.data
        if data is not None:
            given = {"batch": data.batch, "loss": data.loss}
            return call({name: value for name, value in given.items() if name in parameters})
        needs = {"batch", "loss"} & set(parameters)
        try:
            with stage.edit.nested():
                return call({})
        except EditError as error:
            if isinstance(error, UnpredictableError) or not needs:
                raise
            first = str(error)
        stand_ins = {"batch": sketch_batch, "loss": sketch_loss}
        try:
            return call({name: stand_ins[name] for name in sorted(needs)})
        except EditError as error:
            if isinstance(error, UnpredictableError) or str(error) == first:
                raise  # the same with data and without: that is not what is missing
            raise UnpredictableError(f"without data: {error}") from error


@STEPS.register(Insert, Redirect, Remove, Replace, Deepen, Kernel, Tie, Untie)
class EditRunner(_Structural):
    """A step that is an operator of the edit."""

    def __init__(self, step: Any, where: str) -> None:
        self.step = step
        if isinstance(step, Insert) and step.op not in OPS:
            near = get_close_matches(step.op, OPS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(OPS))}"
            raise GraphnetError(f"{where}: there is no op {step.op!r}{hint}")
        self.parameters: Collection[str] = takes(self.step.do)
        self._nodes = [field for field, kind in step.REFERS.items() if kind != "new" and field != "like"]
        self._makes = next((field for field, kind in step.REFERS.items() if kind == "new"), None)

    def refers(self, names: Collection[str]) -> bool:
        """Whether it names a node of the match."""
        return any(name in names for field in self._nodes for name in _names_in(getattr(self.step, field)))

    def run(self, stage: Stage) -> Iterable[Done | str]:
        """Call the edit's method."""
        step, names = self.step, stage.names
        given = arguments_of(step, names, stage.moment.step)
        label = getattr(step, self._makes) if self._makes is not None else None
        if label is not None:
            given["name"] = fresh_name(stage, label)
        promised = stage.moment.preserves
        if "preserves" in self.parameters and not isinstance(step, _WIRING) and stage.data is not None:
            given["preserves"] = promised
        method = getattr(stage.edit, step.do)
        before = stage.graph
        done = self._call(stage, lambda data: method(**given, **data), self.parameters)
        if label is not None:
            names[label] = done if isinstance(done, str) else done[-1]
        nodes = [names.get(n, n) for field in self._nodes for n in _names_in(getattr(step, field))]
        edge = " -> ".join(given["edge"]) if "edge" in given else nodes[0]
        place = given["name"] if label is not None else edge
        yield Done((Change(step.do, place),), tuple(node_key(stage.graph, before, name) for name in nodes))


@STEPS.register(Operator)
class OperatorRunner(_Structural):
    """A step that is a registered function."""

    def __init__(self, step: Operator, where: str) -> None:
        self.step = step
        if step.name not in OPERATORS:
            close = get_close_matches(step.name, OPERATORS, n=2)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise GraphnetError(
                f"{where}: no operator is registered as {step.name!r} (with gn.rules.operator({step.name!r})){hint}"
            )
        self.function = OPERATORS.get(step.name)
        parameters = inspect.signature(self.function).parameters
        self.parameters = set(parameters)
        further = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
        wrong = [name for name in step.args if name not in parameters]
        if wrong and not further:
            raise GraphnetError(f"{where}: the operator {step.name!r} does not take {', '.join(wrong)}")

    def refers(self, names: Collection[str]) -> bool:
        """Whether it is on a node of the match."""
        return self.step.on is not None and self.step.on in names

    def run(self, stage: Stage) -> Iterable[Done | str]:
        """Call the function with the plan."""
        step, before = self.step, stage.graph
        on = () if step.on is None else (stage.names.get(step.on, step.on),)
        given = dict(step.args)
        if "preserves" in self.parameters and stage.data is not None:
            given["preserves"] = stage.moment.preserves
        try:
            self._call(
                stage, lambda data: stage.edit.apply(self.function, *on, **given, **data), self.parameters
            )  # fmt: skip
        except GraphnetError:
            raise
        except Exception as error:
            if stage.data is None:
                raise UnpredictableError(f"{step.name} on zeros: {type(error).__name__}: {error}") from error
            raise
        changes = changes_between(step.name, before, stage.graph) or (Change(step.name, *(on or ("*",))),)
        yield Done(changes, tuple(node_key(stage.graph, before, name) for name in on))


def changes_between(operator: str, before: Graph, after: Graph) -> tuple[Change, ...]:
    """The groups that an operator gave other units."""
    return tuple(
        Change(operator, name, group.size, after.groups[name].size)
        for name, group in before.groups.items()
        if name in after.groups and group.ids != after.groups[name].ids
    )


def fresh_name(stage: Stage, label: str) -> str:
    """The label, or the label with the first number that makes it new: to the graph, also as the stem of names."""
    taken = {*stage.graph.nodes, *stage.graph.groups, *stage.edit.plan.loose}
    number, found = 1, label
    while any(name == found or name.startswith((f"{found}_", f"{found}.")) for name in taken):
        number += 1
        found = f"{label}{number}"
    return found


def node_key(graph: Graph, before: Graph, name: str) -> str:
    """How conflicts name an op or a group."""
    is_op = name in graph.nodes or name in before.nodes or name not in before.groups
    return f"op:{name}" if is_op else f"units:{name}"


def _names_in(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, tuple) else (value.source, value.target)

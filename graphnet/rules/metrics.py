"""What guards read: the loop's metrics, values of units by id, and metrics that are registered as functions.

Values of units are kept by unit id, so that they go on through edits: a unit that stays keeps its value, one that
goes takes its value along, a newborn has none until the next report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from graphnet.edit.host import Batch, Loss
from graphnet.edit.registry import Registry
from graphnet.errors import CheckpointError, EditError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.ir.groups import UnitGroup

if TYPE_CHECKING:
    from graphnet.runtime.network import Network

__all__ = ["METRICS", "Look", "MetricFunction", "Metrics", "Readings", "UnitValues", "check_metrics", "metric"]

Metrics: TypeAlias = Mapping[str, Any]
"""Numbers by name; for a metric of units a mapping from group to a mapping from unit id (or values in unit order)."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a registered metric may look at; it must change nothing.

    Attributes
    ----------
    net : Network
    step : int
        Optimizer steps taken.
    group : UnitGroup or None
        The units that it is asked of (``of:`` in the guard).
    batch, loss : optional
        What ``policy.step`` was given.
    metrics : mapping of str to float
        The loop's own metrics of this step.
    """

    net: Network
    step: int
    group: UnitGroup | None
    batch: Batch | None
    loss: Loss | None
    metrics: Mapping[str, float]


MetricFunction: TypeAlias = Callable[[Look], Any]
"""Gives a number; of units also a mapping from unit id to number, or numbers in the order of the group's units."""

METRICS: Registry[MetricFunction] = Registry("metric")


def metric(name: str) -> Callable[[MetricFunction], MetricFunction]:
    """Register a function as a metric that guards may name (decorator).

    Examples
    --------
    >>> @metric("width of the widest")
    ... def widest(look: Look) -> float:
    ...     return max(group.size for group in look.net.graph.groups.values())
    >>> "width of the widest" in METRICS
    True
    """
    if not isinstance(name, str) or not name:
        raise GraphnetError(f"a metric is registered under a name, not under {name!r}")
    return METRICS.register(name)


class Readings(Mapping[str, float]):
    """The metrics of one step: those that were given, and registered ones, computed when first read.

    Iterating gives the names that were given.
    """

    def __init__(self, given: Mapping[str, float], compute: Callable[[str], float | None] | None = None) -> None:
        self._given, self._compute = given, compute
        self._computed: dict[str, float | None] = {}

    @property
    def given(self) -> Mapping[str, float]:
        """Those that were given, and no others."""
        return self._given

    def __getitem__(self, name: str) -> float:
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return float(found)

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or the default."""
        given = self._given.get(name)
        if given is not None:
            return given
        if self._compute is None or name not in METRICS:
            return default
        if name not in self._computed:
            self._computed[name] = self._compute(name)
        found = self._computed[name]
        return default if found is None else found

    def __contains__(self, name: object) -> bool:
        return name in self._given or (isinstance(name, str) and self.get(name) is not None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


class UnitValues:
    """The last value of each metric of units, by group and unit id."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, dict[int, float]]] = {}
        self._tidy: Graph | None = None  # of which no value is known for units that are gone

    def update(self, metric: str, group: str, values: Mapping[int, float]) -> None:
        """Take the values of some units; those of others stay."""
        self._values.setdefault(metric, {}).setdefault(group, {}).update(values)
        self._tidy = None

    def of(self, metric: str, group: UnitGroup) -> dict[int, float]:
        """Values of a group's live units, in their order; those without one are left out."""
        known = self._values.get(metric, {}).get(group.name, {})
        return {unit: known[unit] for unit in group.ids if unit in known}

    def forget(self, graph: Graph) -> None:
        """Drop the values of units that are gone for good."""
        if graph is self._tidy:
            return
        self._tidy = graph
        for groups in self._values.values():
            for name in [name for name in groups if name not in graph.groups]:
                del groups[name]
            for name, values in groups.items():
                group = graph.groups[name]
                if len(values) > group.size:
                    there = {*group.ids, *group.dormant}
                    groups[name] = {unit: value for unit, value in values.items() if unit in there}

    def follow(self, origins: Mapping[str, str]) -> None:
        """Units of groups that go on under another name take their values along."""
        self._tidy = None
        for metric, groups in self._values.items():
            kept = {name: values for name, values in groups.items() if name not in origins.values()}
            self._values[metric] = kept | {new: groups[old] for new, old in origins.items() if old in groups}

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain data: for each metric and group a list of ``[unit, value]``."""
        return {
            metric: {name: [[unit, value] for unit, value in values.items()] for name, values in groups.items()}
            for metric, groups in self._values.items()
        }

    def load_state_dict(self, state: Any) -> None:
        """Go on from :meth:`state_dict`; a :class:`CheckpointError` where it is none, and nothing is changed."""
        self._tidy = None
        try:
            self._values = {
                str(metric): {
                    str(name): {int(unit): float(value) for unit, value in values} for name, values in groups.items()
                }
                for metric, groups in state.items()
            }
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"this is not a state of unit metrics (policy.state_dict()): {error!r}") from error


def check_metrics(
    metrics: Metrics | None, graph: Graph
) -> tuple[dict[str, float], dict[str, dict[str, dict[int, float]]]]:
    """Metrics as floats, and those of units by id.

    Raises
    ------
    GraphnetError
        One is no number; values of units do not fit their group.
    """
    numbers: dict[str, float] = {}
    units: dict[str, dict[str, dict[int, float]]] = {}
    if metrics is not None and type(metrics) is not dict and not isinstance(metrics, Mapping):
        raise GraphnetError(f"metrics are a mapping from a name to a number, not {metrics!r}")
    for name, value in (metrics or {}).items():
        if not isinstance(name, str):
            raise GraphnetError(f"a metric has a name, not {name!r}")
        if type(value) is float:  # nearly all: this is done at every optimizer step
            numbers[name] = value
        elif isinstance(value, Mapping):
            units[name] = {}
            for group, values in value.items():
                try:
                    found = graph.group(group)
                except GraphnetError as error:
                    raise GraphnetError(f"metric {name!r}: {error}") from error
                if isinstance(values, int | float):
                    numbers[f"{name}.{found.name}"] = float(values)
                else:
                    units[name][found.name] = by_unit(f"metric {name!r} of {found.name!r}", values, found)
        else:
            numbers[name] = as_number(f"metric {name!r}", value)
    return numbers, units


def by_unit(what: str, values: Any, group: UnitGroup) -> dict[int, float]:
    """Values by unit id: a mapping from it, or one value for each unit in the group's order.

    Raises
    ------
    GraphnetError
        Another number of values, an id that the group never had, or no numbers.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().tolist()
    if isinstance(values, Mapping):
        strange = [unit for unit in values if not isinstance(unit, int) or not 0 <= unit < group.next_id]
        if strange:
            raise GraphnetError(f"{what}: {strange[0]!r} is the id of none of its units")
        return {int(unit): as_number(what, value) for unit, value in values.items()}
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, Sequence) or isinstance(listed, str) or len(listed) != group.size:
        raise GraphnetError(
            f"{what}: give a mapping from unit id to number, or one number for each of its {group.size} units"
        )
    return {unit: as_number(what, value) for unit, value in zip(group.ids, listed, strict=True)}


def as_number(what: str, value: Any) -> float:
    """A float; NaN and infinities pass, and make the guard that reads them false."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise GraphnetError(f"{what} must be a number, not {value!r}") from error


def compute(name: str, look: Look) -> float | dict[int, float] | str:
    """Call a registered metric: a number, values by unit id, or why there is none.

    Raises
    ------
    GraphnetError
        The function failed, or gave neither.
    """
    try:
        found = METRICS.get(name)(look)
    except EditError as error:  # what it measures is not there: say so, and do not stop the training
        return f"metric {name!r}: {error}"
    except Exception as error:
        raise GraphnetError(f"the registered metric {name!r} failed: {type(error).__name__}: {error}") from error
    if look.group is not None and not isinstance(found, int | float):
        scalar = isinstance(found, torch.Tensor) and found.dim() == 0
        if not scalar:
            return by_unit(f"metric {name!r} of {look.group.name!r}", found, look.group)
    return as_number(f"metric {name!r}", found)


def finite(name: str, value: float) -> float | str:
    """The value, or why it is none to compare."""
    return value if isfinite(value) else f"{name} is {value}"

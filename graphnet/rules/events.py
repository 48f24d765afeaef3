"""What happened during a run, by name: rules applied, edits, task and epoch boundaries, the loop's own events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from graphnet.errors import CheckpointError, GraphnetError
from graphnet.schemas.timing import RESERVED_EVENTS

__all__ = ["EventLog", "check_events"]

_FROM_METRICS = tuple(name for name in RESERVED_EVENTS if name != "edit")


@dataclass(slots=True)
class EventLog:
    """How often each event was seen, and when last.

    Attributes
    ----------
    counts, last : mapping of str to int
        By event: how many times, and the optimizer step of the last time.
    noted : int
        Events seen since the log was made; no part of its state.
    """

    counts: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    noted: int = 0
    _values: dict[str, float] = field(default_factory=dict)
    _version: int | None = None

    def note(self, event: str, step: int) -> None:
        """An event was seen."""
        self.noted += 1
        self.counts[event] = self.counts.get(event, 0) + 1
        self.last[event] = step

    def observe(self, step: int, version: int, metrics: Mapping[str, float]) -> None:
        """Note a new version, and each change of a metric that counts tasks or epochs; the first value is none."""
        if self._version is not None and version != self._version:
            self.note("edit", step)
        self._version = version
        for name in _FROM_METRICS:
            value = metrics.get(name)
            if value is None or not isfinite(value):
                continue
            if self._values.get(name, value) != value:
                self.note(name, step)
            self._values[name] = value

    def edited(self, step: int, version: int) -> None:
        """The policy itself made a version."""
        self._version = version
        self.note("edit", step)

    def since(self, event: str, step: int) -> int:
        """Optimizer steps since an event; since step 0 where it was never seen."""
        return step - self.last.get(event, 0)

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "counts": dict(self.counts), "last": dict(self.last), "values": dict(self._values),
            "version": self._version,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; a :class:`CheckpointError` where it is none, and nothing is changed."""
        try:
            counts = {str(name): int(count) for name, count in state["counts"].items()}
            last = {str(name): int(step) for name, step in state["last"].items()}
            values = {str(name): float(value) for name, value in state["values"].items()}
            version = None if state["version"] is None else int(state["version"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"this is not a state of events (policy.state_dict()): {error!r}") from error
        self.counts, self.last, self._values, self._version = counts, last, values, version


def check_events(events: Iterable[str]) -> tuple[str, ...]:
    """Events by name.

    Raises
    ------
    GraphnetError
        They are not a list of names.
    """
    if events == ():
        return ()
    named = isinstance(events, Iterable) and not isinstance(events, str)
    found = tuple(events) if named else ()
    if not named or not all(isinstance(event, str) and event for event in found):
        raise GraphnetError(f"policy.step: events are a list of names, not {events!r}")
    return found

"""What a policy remembers of each rule, and of the direction in which each group's size went last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from graphnet.ir.graph import Graph
from graphnet.rules.outcome import CostChange, Outcome, Status, Teller

__all__ = ["Directions", "RuleMemory"]

_REMEMBERED = 100  # reasons of matches for each rule


@dataclass(slots=True)
class RuleMemory:
    """What is remembered of one rule; the counts of statuses and the time are not part of a checkpoint.

    An attempt that came to nothing is kept as it is and put into words when :meth:`stats` asks for them, since there
    is one for every rule at every step. Guards tell another number each time, so of a match whose guard is false the
    last reason counts.

    Attributes
    ----------
    fires : int
    applied_at : int or None
    rest : Teller or None
        How the rule ends for the time being: before the step ``until``, and as long as ``cost`` and ``noted`` are what
        they were.
    until : float
    due : float
        The same for the schedule and the cooldowns of a rule that is due: they need not be asked before this step.
    cost : CostChange or None
        That of the network when the rule was last looked at: the same object as long as the network is the same.
    noted : int
        Events seen by then.
    """

    fires: int = 0
    applied_at: int | None = None
    rest: Teller | None = None
    until: float = -1.0
    due: float = -1.0
    cost: CostChange | None = None
    noted: int = -1
    seconds: float = 0.0
    _attempts: dict[Status, int] = field(default_factory=dict)
    _last: dict[Status, Outcome] = field(default_factory=dict)
    _refused: dict[tuple[tuple[tuple[str, str], ...], str], tuple[str, int]] = field(default_factory=dict)
    _found: object = None
    _status: Status | None = None
    _latest: Outcome | None = None
    _times: int = 0
    _known: dict[str, Any] | None = None  # fields of the latest outcome, while the rule rests

    def keep(self, rest: Teller | None, due: bool, until: float, cost: CostChange, noted: int) -> None:
        """Take what the rule came to as its answer for the time being; ``until`` is that of its timer."""
        self.until = -1.0 if rest is None else min(until, rest.until)
        self.due = until if due and rest is not None else -1.0  # one that was applied has a cooldown now
        self.rest, self.cost, self.noted, self._known = rest, cost, noted, None

    def again(self, step: int) -> Outcome | None:
        """The last outcome once more, counted; None where the last one was not like it."""
        latest = self._latest
        if latest is None or latest.teller is not self.rest:
            return None
        known = self._known
        if known is None:
            words = ("reason", "matches")  # of the step at which somebody read it
            known = self._known = {name: value for name, value in latest.__dict__.items() if name not in words}
        known["step"] = step
        self._latest = outcome = Outcome.of_fields(known)
        self._times += 1
        return outcome

    def count(self, outcome: Outcome, seconds: float) -> None:
        """Take note of an attempt."""
        self.seconds += seconds
        teller = outcome.teller
        if teller is None:
            self._settle()
            self._add(outcome, 1)
        elif teller.status is self._status and teller.found is self._found:
            self._latest = outcome
            self._times += 1
        else:
            self._settle()
            self._status, self._found, self._latest, self._times = teller.status, teller.found, outcome, 1

    def _settle(self) -> None:
        """Count the attempts that ended like the last one."""
        if self._latest is not None:
            self._add(self._latest, self._times)
            self._status = self._found = self._latest = None

    def _add(self, outcome: Outcome, times: int) -> None:
        status = outcome.status
        self._attempts[status] = self._attempts.get(status, 0) + times
        self._last[status] = outcome
        for match in outcome.matches:
            if match.status == "applied":
                continue
            where = match.nodes, match.status if match.status == "guard false" else match.reason
            if where in self._refused or len(self._refused) < _REMEMBERED:
                self._refused[where] = match.reason, self._refused.get(where, ("", 0))[1] + times

    def stats(self) -> dict[str, Any]:
        """Hits, misses with their reasons, and the time."""
        self._settle()
        return {
            "hits": self._attempts.get("applied", 0),
            "misses": {
                status: {"count": count, "reason": self._last[status].reason}
                for status, count in self._attempts.items()
                if status != "applied"
            },
            "matches": [
                {"nodes": dict(nodes), "reason": reason, "count": count}
                for (nodes, _), (reason, count) in self._refused.items()
            ],
            "seconds": self.seconds,
        }


class Directions:
    """Which way each group's size went last; refuses edits that turn round too soon, or grow too much.

    Parameters
    ----------
    hysteresis : int
        Optimizer steps for which a group that grew does not shrink, and the reverse.
    max_growth : float or None
        The share by which one edit may grow a group.
    """

    def __init__(self, hysteresis: int, max_growth: float | None) -> None:
        self.hysteresis, self.max_growth = hysteresis, max_growth
        self._last: dict[str, tuple[int, int]] = {}

    def refusal(self, name: str, before: int, after: int, step: int) -> str | None:
        """Why a group may not go from one size to the other now, or None."""
        most, wait = self.max_growth, self.hysteresis
        if most is not None and after > before * (1 + most):
            return f"{name!r} would grow from {before} to {after} units, by more than max_growth={most:g} of them"
        direction, at = self._last.get(name, (0, 0))
        if direction * (after - before) < 0 and step - at < wait:
            did = "grew" if direction > 0 else "shrank"
            return f"{name!r} {did} at step {at}: hysteresis={wait} keeps it from turning round before step {at + wait}"
        return None

    def until(self, step: int) -> float:
        """The next step at which a group that is kept from turning round no longer is."""
        return min((at + self.hysteresis for _, at in self._last.values() if at + self.hysteresis > step), default=inf)

    def note(self, before: Graph, after: Graph, step: int) -> None:
        """Take note of which groups an edit grew and which it shrank."""
        for name, group in after.groups.items():
            was = before.groups.get(name)
            if was is not None and was.size != group.size:
                self._last[name] = (1 if group.size > was.size else -1, step)

    def state_dict(self) -> dict[str, list[int]]:
        """Everything as plain data."""
        return {name: list(turn) for name, turn in self._last.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._last = {str(name): (int(sign), int(at)) for name, (sign, at) in state.items()}

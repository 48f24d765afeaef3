"""When a rule is due: on which optimizer steps, epochs, milestones or events of those since the policy last ran."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

from graphnet.errors import CheckpointError
from graphnet.rules.events import EventLog
from graphnet.rules.registry import Compilers
from graphnet.schemas.scalars import whole
from graphnet.schemas.timing import At, Cycles, Every, Milestones, On, Schedule

__all__ = ["SCHEDULES", "Clock", "Timer"]


@dataclass(slots=True)  # not frozen, which takes three times as long to make: there is one for each step
class Clock:
    """Where the training stands.

    Attributes
    ----------
    step, previous : int
        This optimizer step, and the one at which the policy ran last: what lies between them counts as now.
    epoch, previous_epoch : int or None
        The same for epochs, read off ``metrics["epoch"]``.
    metrics : mapping of str to float
    events : EventLog
        What was seen so far, at this call too.
    """

    step: int
    previous: int
    epoch: int | None = None
    previous_epoch: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    events: EventLog = field(default_factory=EventLog)


class Timer(ABC):
    """A compiled schedule: called once for each call of the policy, with how often the rule has been applied.

    Attributes
    ----------
    until : float
        What it said last, due or not, holds before this optimizer step, if neither the network nor the events seen
        have changed: so the policy need not ask again.
    """

    schedule: Schedule
    counts = False
    """Whether it must see every call."""

    def __init__(self) -> None:
        self.until = -1.0

    def __call__(self, clock: Clock, fires: int) -> str | None:
        """Why the rule is not due; None where it is."""
        self.until = -1.0
        reason = self.waiting(clock)  # first: a timer that counts must see every call
        schedule = self.schedule
        if schedule.max_fires is not None and fires >= schedule.max_fires:
            return self._idle(inf, f"it has been applied {fires} times, the most that it may be")
        if clock.step < schedule.start:
            return self._idle(schedule.start, f"it starts at step {schedule.start}")
        if schedule.stop is not None:
            if max(clock.previous + 1, schedule.start) >= schedule.stop:
                return self._idle(inf, f"it ended before step {schedule.stop}")
            self.until = min(self.until, schedule.stop)
        return reason

    def _idle(self, until: float, reason: str) -> str:
        """The reason, which holds until a step."""
        if not self.counts:
            self.until = until
        return reason

    @abstractmethod
    def waiting(self, clock: Clock) -> str | None:
        """Why it is not due by its own kind."""

    def state(self) -> Any:
        """What it remembers, as plain data."""
        return None

    def load(self, state: Any) -> None:  # noqa: B027 - most timers have no memory
        """Go on from a state."""


SCHEDULES: Compilers[Timer] = Compilers("the schedule")


@SCHEDULES.register(At)
class AtTimer(Timer):
    """Due at listed steps."""

    def __init__(self, schedule: At) -> None:
        super().__init__()
        self.schedule: At = schedule
        stop = schedule.stop
        self._steps = sorted({s for s in schedule.steps if s >= schedule.start and (stop is None or s < stop)})

    def waiting(self, clock: Clock) -> str | None:
        """Why it is not due."""
        if any(clock.previous < step <= clock.step for step in self._steps):
            return None
        later = [step for step in self._steps if step > clock.step]
        if later:
            return self._idle(later[0], f"next due at step {later[0]}")
        if not self._steps:
            return self._idle(inf, "none of its steps is within its bounds")
        return self._idle(inf, f"the last of its steps was {self._steps[-1]}")


@SCHEDULES.register(Every)
class EveryTimer(Timer):
    """Due at equal distances, or at those that a schedule gives."""

    def __init__(self, schedule: Every) -> None:
        super().__init__()
        self.schedule: Every = schedule
        self._period = whole(schedule.steps.at(0)) if schedule.steps.kind == "constant" else None
        self._tick = schedule.start  # of a period that changes: the last tick that is not after the clock

    def waiting(self, clock: Clock) -> str | None:
        """Why it is not due."""
        schedule = self.schedule
        if self._period is not None:
            if self._period == 1 and schedule.start <= clock.step > clock.previous:
                self.until = inf  # due at every step: up to ``stop``, which is looked at by every timer
                return None
            found = _ticks("step", clock.step, clock.previous, self._period, schedule.start, schedule.stop)
            return None if found is None else self._idle(*found)
        if clock.step < schedule.start:
            return f"it starts at step {schedule.start}"
        last = clock.step if schedule.stop is None else min(clock.step, schedule.stop - 1)
        while (following := self._tick + max(1, whole(schedule.steps.at(self._tick)))) <= last:
            self._tick = following
        return None if self._tick > clock.previous else self._idle(following, f"next due at step {following}")


@SCHEDULES.register(Cycles)
class CyclesTimer(Timer):
    """Due at the start of each cycle."""

    def __init__(self, schedule: Cycles) -> None:
        super().__init__()
        self.schedule: Cycles = schedule

    def waiting(self, clock: Clock) -> str | None:
        """Why it is not due."""
        schedule = self.schedule
        if schedule.steps_per_cycle is not None:
            period = schedule.steps_per_cycle
            end = schedule.start + schedule.cycles * period
            found = _ticks("step", clock.step, clock.previous, period, schedule.start, end)
            return None if found is None else self._idle(*found)
        assert schedule.epochs is not None
        if clock.epoch is None or clock.previous_epoch is None:
            return "cycles of epochs need metrics={'epoch': ...}, the epoch counted from 0"
        epochs = schedule.epochs
        found = _ticks("epoch", clock.epoch, clock.previous_epoch, epochs, 0, schedule.cycles * epochs)
        return None if found is None else found[1]


@SCHEDULES.register(Milestones)
class MilestonesTimer(Timer):
    """Due when the metric first reaches the next value."""

    counts = True

    def __init__(self, schedule: Milestones) -> None:
        super().__init__()
        self.schedule: Milestones = schedule
        sign = 1 if schedule.mode == "rise" else -1
        self._values = sorted(set(schedule.values), key=lambda value: sign * value)
        self._sign, self._reached = sign, 0

    def waiting(self, clock: Clock) -> str | None:
        """Why it is not due."""
        name = self.schedule.metric
        if self._reached == len(self._values):
            return f"{name} has reached the last of its milestones, {self._values[-1]:g}"
        value = clock.metrics.get(name)
        if value is None or not isfinite(value):
            return f"there is no metric {name!r}" if value is None else f"{name} is {value}"
        before = self._reached
        while self._reached < len(self._values) and self._sign * (value - self._values[self._reached]) >= 0:
            self._reached += 1
        return None if self._reached > before else f"{name} is {value:.4g}, the next milestone {self._values[before]:g}"

    def state(self) -> Any:
        """How many were reached."""
        return self._reached

    def load(self, state: Any) -> None:
        """Go on from a state."""
        if isinstance(state, bool) or not isinstance(state, int) or not 0 <= state <= len(self._values):
            raise CheckpointError(f"this is not the state of milestones: {state!r}")
        self._reached = state


@SCHEDULES.register(On)
class OnTimer(Timer):
    """Due so many steps after an event."""

    counts = True

    def __init__(self, schedule: On) -> None:
        super().__init__()
        self.schedule: On = schedule
        self._seen = 0
        self._due: list[int] = []

    def waiting(self, clock: Clock) -> str | None:
        """Why it is not due."""
        schedule, event = self.schedule, self.schedule.event
        count = clock.events.counts.get(event, 0)
        if count // schedule.every > self._seen // schedule.every:
            happened = clock.events.last[event]
            self._due.append(happened + whole(schedule.delay.at(happened)))
        self._seen = count
        ready = [step for step in self._due if step <= clock.step]
        if ready:
            self._due = [step for step in self._due if step > clock.step]
            return None
        if self._due:
            return f"next due at step {min(self._due)}, after {event!r}"
        if schedule.every > 1 and count:
            return f"{event!r} has been seen {count} times; it is due at every {schedule.every}th"
        return f"it waits for {event!r}"

    def state(self) -> Any:
        """Events seen, and those whose delay is not over."""
        return {"seen": self._seen, "due": list(self._due)}

    def load(self, state: Any) -> None:
        """Go on from a state."""
        try:
            seen, due = int(state["seen"]), [int(step) for step in state["due"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"this is not the state of a schedule on an event: {error!r}") from error
        self._seen, self._due = seen, due


def _ticks(what: str, now: int, previous: int, period: int, start: int, stop: int | None) -> tuple[float, str] | None:
    """None where start, start + period, ... before stop has a member after ``previous`` and up to ``now``.

    Else the next member (infinity for none), and why it is not due.
    """
    if now < start:
        return start, f"it starts at {what} {start}"
    last = now if stop is None else min(now, stop - 1)
    tick = start + (last - start) // period * period
    if tick > previous:
        return None
    following = tick + period
    if stop is not None and following >= stop:
        return inf, f"it ended before {what} {stop}"
    return following, f"next due at {what} {following}"

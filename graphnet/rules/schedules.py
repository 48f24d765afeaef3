"""When a rule is due: on which optimizer steps, or epochs, of those since the policy last ran."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from graphnet.rules.registry import Compilers
from graphnet.schemas.policy import At, Cycles, Every

__all__ = ["SCHEDULES", "Clock", "Timer"]


@dataclass(frozen=True, slots=True)
class Clock:
    """Where the training stands.

    Attributes
    ----------
    step, previous : int
        This optimizer step, and the one at which the policy ran last: what lies between them counts as now.
    epoch, previous_epoch : int or None
        The same for epochs, read off ``metrics["epoch"]``.
    """

    step: int
    previous: int
    epoch: int | None = None
    previous_epoch: int | None = None


Timer: TypeAlias = Callable[[Clock, int], str | None]
"""Why a rule that has been applied so many times is not due; None where it is."""

SCHEDULES: Compilers[Timer] = Compilers("the schedule")


@SCHEDULES.register(At)
def at(schedule: At) -> Timer:
    """Due at listed steps."""
    steps = sorted(set(schedule.steps))

    def timer(clock: Clock, fires: int) -> str | None:
        if any(clock.previous < step <= clock.step for step in steps):
            return None
        later = [step for step in steps if step > clock.step]
        return f"next due at step {later[0]}" if later else f"the last of its steps was {steps[-1]}"

    return timer


@SCHEDULES.register(Every)
def every(schedule: Every) -> Timer:
    """Due at equal distances."""

    def timer(clock: Clock, fires: int) -> str | None:
        if schedule.max_fires is not None and fires >= schedule.max_fires:
            return f"it has been applied {fires} times, the most that it may be"
        return _ticks("step", clock.step, clock.previous, schedule.steps, schedule.start, schedule.stop)

    return timer


@SCHEDULES.register(Cycles)
def cycles(schedule: Cycles) -> Timer:
    """Due at the start of each cycle."""
    steps, epochs = schedule.steps_per_cycle, schedule.epochs

    def timer(clock: Clock, fires: int) -> str | None:
        if steps is not None:
            return _ticks("step", clock.step, clock.previous, steps, 0, schedule.cycles * steps)
        assert epochs is not None
        if clock.epoch is None or clock.previous_epoch is None:
            return "cycles of epochs need metrics={'epoch': ...}, the epoch counted from 0"
        return _ticks("epoch", clock.epoch, clock.previous_epoch, epochs, 0, schedule.cycles * epochs)

    return timer


def _ticks(what: str, now: int, previous: int, period: int, start: int, stop: int | None) -> str | None:
    """Due where start, start + period, ... before stop has a member after ``previous`` and up to ``now``."""
    if now < start:
        return f"it starts at {what} {start}"
    last = now if stop is None else min(now, stop - 1)
    tick = start + (last - start) // period * period
    if tick > previous:
        return None
    following = tick + period
    return f"next due at {what} {following}" if stop is None or following < stop else f"it ended before {what} {stop}"

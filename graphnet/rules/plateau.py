"""The plateau guard: whether a metric has stopped getting better."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import exp, inf, isfinite
from typing import Any, ClassVar

from graphnet.errors import CheckpointError
from graphnet.rules.guards import GUARDS, Check, Verdict, View
from graphnet.schemas.guards import Plateau

__all__ = ["PlateauCheck"]


@GUARDS.register(Plateau)
class PlateauCheck(Check):
    """Holds while the smoothed metric has improved by less than a share over the window.

    ``(L[t-w] - L[t]) / |L[t-w]| < min_delta`` with ``L`` the exponential moving average of the metric, of time
    constant ``w / 4`` steps. The window is kept in at most 64 samples.
    """

    SAMPLES: ClassVar[int] = 64
    watches = True
    effort = 1
    names = frozenset()

    def __init__(self, guard: Plateau) -> None:
        self.guard = guard
        self._average: float | None = None
        self._last = 0
        self._samples: list[tuple[int, float]] = []
        self._since: int | None = None
        self._gained: float | None = None  # over the window, as of the last observation
        self._trouble: str | None = None

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Advance the average; a metric that is left out or not finite leaves it as it is."""
        guard = self.guard
        value = metrics.get(guard.metric)
        self._trouble = None
        if value is None:
            return
        if not isfinite(value):
            self._trouble, self._since = f"{guard.metric} is {value}", None
            return
        if self._average is None:
            self._average = value
        else:
            weight = 1.0 - exp(-4.0 * (step - self._last) / guard.window)
            self._average += weight * (value - self._average)
        self._last = step
        if not self._samples or step - self._samples[-1][0] >= guard.window / self.SAMPLES:
            self._samples.append((step, self._average))
        while len(self._samples) > 1 and self._samples[1][0] <= step - guard.window:
            del self._samples[0]
        self._gained = improvement = self._improvement()
        if improvement is None or improvement >= guard.min_delta.at(step):
            self._since = None
        elif self._since is None:
            self._since = step

    def _improvement(self) -> float | None:
        """Relative improvement over the window; None while the window is not full."""
        if self._average is None or self._samples[0][0] > self._last - self.guard.window:
            return None
        then = self._samples[0][1]
        gained = then - self._average if self.guard.mode == "min" else self._average - then
        return gained / abs(then) if then else (0.0 if gained == 0 else inf * gained)

    def verdict(self, view: View) -> Verdict:
        """Whether it holds now, and why."""
        guard = self.guard
        if self._trouble is not None:
            return Verdict(False, self._trouble)
        if self._average is None:
            return Verdict(False, f"no {guard.metric!r} has been given to the policy")
        improvement = self._gained
        if improvement is None:
            seen = self._last - self._samples[0][0]
            return Verdict(False, partial(_short, guard, seen))
        least = guard.min_delta.at(view.step)
        held = None if self._since is None else self._last - self._since
        holds = held is not None and held >= guard.patience
        return Verdict(holds, partial(_told, guard, improvement, least, held))

    def state(self) -> Any:
        """The average, its samples and since when it holds."""
        return {
            "average": self._average,
            "last": self._last,
            "samples": [list(sample) for sample in self._samples],
            "since": self._since,
            "trouble": self._trouble,
        }

    def load(self, state: Any) -> None:
        """Go on from a state."""
        try:
            average, since, trouble = state["average"], state["since"], state["trouble"]
            last, samples = int(state["last"]), [(int(at), float(value)) for at, value in state["samples"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"this is not the state of a plateau guard: {error!r}") from error
        if (average is None) != (not samples):
            raise CheckpointError("this is not the state of a plateau guard: an average without samples")
        self._average, self._since, self._trouble, self._last, self._samples = average, since, trouble, last, samples
        self._gained = self._improvement()


def _short(guard: Plateau, seen: int, step: int) -> str:
    return f"{guard.metric} has been seen for {seen} of the {guard.window} steps of its window"


def _told(guard: Plateau, improvement: float, least: float, held: int | None, step: int) -> str:
    text = f"{guard.metric} improved by {improvement:.3g} over {guard.window} steps"
    if held is None:
        return f"{text}, no less than {least:g}"
    return f"{text}, less than {least:g}" + (f" for {held} of {guard.patience} steps" if held < guard.patience else "")

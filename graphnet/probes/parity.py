"""Parity of two cohorts, and how long newborns take to reach it.

Parity is ``R = mean over newborns / (mean over incumbents + eps)`` of activation rate or gradient. Times to parity
are right-censored (an edit ends the observation), so their median is Kaplan and Meier's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import log
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphnet.errors import GraphnetError

__all__ = ["EPSILON", "Curve", "Duration", "Parity", "Point", "median_time", "parity", "time_to_parity"]

EPSILON = 1e-12
"""What is added to the incumbents' mean, unless asked otherwise."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Newborns against incumbents, or kept against pruned units, of one group.

    Attributes
    ----------
    group : str
    newborns, incumbents : int
        How many units each cohort has.
    newborn_activation, incumbent_activation, newborn_gradient, incumbent_gradient : float or None
        Means over the cohort; None for an empty one.
    ratio_activation, ratio_gradient : float or None
        ``newborn / (incumbent + eps)``; None where a cohort is empty.
    log_activation, log_gradient : float or None
        ``ln`` of the ratio; None where a cohort is empty or its mean is 0.
    censored : bool
        Every newborn's gradient is exactly 0, as after a birth with zero outgoing weights: measure again after a step.
    """

    group: str
    newborns: int
    incumbents: int
    newborn_activation: float | None
    incumbent_activation: float | None
    newborn_gradient: float | None
    incumbent_gradient: float | None
    ratio_activation: float | None
    ratio_gradient: float | None
    log_activation: float | None
    log_gradient: float | None
    censored: bool

    def record(self) -> dict[str, Any]:
        """The fields of a probe record in a run's ``metrics.jsonl``."""
        return {
            "group": self.group,
            "newborn_activation": self.newborn_activation,
            "incumbent_activation": self.incumbent_activation,
            "newborn_gradient": self.newborn_gradient,
            "incumbent_gradient": self.incumbent_gradient,
            "log_parity_activation": self.log_activation,
            "log_parity_gradient": self.log_gradient,
            "censored": self.censored,
            "newborns": self.newborns,
            "incumbents": self.incumbents,
        }


def parity(
    group: str,
    newborn_activation: NDArray[np.float64],
    incumbent_activation: NDArray[np.float64],
    newborn_gradient: NDArray[np.float64],
    incumbent_gradient: NDArray[np.float64],
    *,
    eps: float = EPSILON,
) -> Parity:
    """Compare two cohorts by their units' statistics, each ``[units of the cohort]``."""
    activation = _mean(newborn_activation), _mean(incumbent_activation)
    gradient = _mean(newborn_gradient), _mean(incumbent_gradient)
    return Parity(
        group,
        newborns=int(newborn_gradient.size),
        incumbents=int(incumbent_gradient.size),
        newborn_activation=activation[0],
        incumbent_activation=activation[1],
        newborn_gradient=gradient[0],
        incumbent_gradient=gradient[1],
        ratio_activation=_ratio(*activation, eps),
        ratio_gradient=_ratio(*gradient, eps),
        log_activation=_log_ratio(*activation, eps),
        log_gradient=_log_ratio(*gradient, eps),
        censored=bool(newborn_gradient.size) and not newborn_gradient.any(),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if values.size else None


def _ratio(newborn: float | None, incumbent: float | None, eps: float) -> float | None:
    if newborn is None or incumbent is None or incumbent + eps == 0:
        return None
    return newborn / (incumbent + eps)


def _log_ratio(newborn: float | None, incumbent: float | None, eps: float) -> float | None:
    ratio = _ratio(newborn, incumbent, eps)
    return log(ratio) if ratio and incumbent else None


@dataclass(frozen=True, slots=True)
class Point:
    """Parity at one age; ``gradient`` and ``activation`` are ratios, None where they could not be measured."""

    age: int
    gradient: float | None
    activation: float | None = None


@dataclass(slots=True)
class Curve:
    """Parity of one cohort as it ages.

    Attributes
    ----------
    points : list of Point
        In order of age (optimizer steps since birth).
    end : int or None
        The age at which the next edit ended the observation; None while it goes on.
    """

    points: list[Point] = field(default_factory=list)
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Duration:
    """A time that may be right-censored.

    Attributes
    ----------
    age : int
        When parity was first measured, or until when it was not.
    observed : bool
        Whether parity was reached.
    """

    age: int
    observed: bool


def time_to_parity(
    curve: Curve | Sequence[tuple[int, float | None]], *, rule: Literal["half", "halfway"] = "half"
) -> Duration:
    """The first measured age at which newborns reach gradient parity.

    Parameters
    ----------
    curve : Curve, or sequence of (age, gradient ratio)
    rule : {"half", "halfway"}
        ``half``: the ratio is at least 1/2. ``halfway``: it is at least halfway from its first value to 1; points
        that were censored (None, or a gradient of exactly 0) give no first value.

    Returns
    -------
    Duration
        Right-censored at the curve's end, or at its last point where it has none.

    Raises
    ------
    GraphnetError
        The curve is empty or its ages fall, or the rule is not known.

    Examples
    --------
    >>> time_to_parity([(0, 0.1), (10, 0.4), (20, 0.6)])
    Duration(age=20, observed=True)
    """
    if rule not in ("half", "halfway"):
        raise GraphnetError(f"time_to_parity: rule is 'half' or 'halfway', not {rule!r}")
    if isinstance(curve, Curve):
        points, end = [(point.age, point.gradient) for point in curve.points], curve.end
    else:
        points, end = list(curve), None
    ages = [age for age, _ in points]
    if end is None and not ages:
        raise GraphnetError("time_to_parity: the curve has no points")
    if ages != sorted(ages):
        raise GraphnetError(f"time_to_parity: points must be in order of age, not {ages[:8]}")
    first = next((ratio for _, ratio in points if ratio), 0.0)
    level = 0.5 if rule == "half" else (1.0 + first) / 2.0
    for age, ratio in points:
        if ratio is not None and ratio >= level:
            return Duration(age, True)
    return Duration(max(ages[-1:], default=0) if end is None else end, False)


def median_time(durations: Iterable[Duration]) -> int | None:
    """Kaplan and Meier's median of right-censored times: the first age at which at most half are left.

    Returns
    -------
    int or None
        None where more than half survive to the end, or there are no durations.

    Notes
    -----
    A time censored at the age of an event counts as at risk for it. Source: Kaplan and Meier, "Nonparametric
    estimation from incomplete observations" (J. Am. Stat. Assoc. 53, 1958).

    Examples
    --------
    >>> median_time([Duration(1, True), Duration(2, False), Duration(3, True), Duration(4, True)])
    3
    """
    times = list(durations)
    survival = Fraction(1)
    for age in sorted({time.age for time in times if time.observed}):
        at_risk = sum(time.age >= age for time in times)
        events = sum(time.observed and time.age == age for time in times)
        survival *= Fraction(at_risk - events, at_risk)
        if 2 * survival <= 1:
            return age
    return None

"""The measures of the study on checkpoint accuracies, and the statistics over seeds.

ACC, TAA, Delta, TAOA and early-task TAA are as in Lillo & Cheney (2026, arXiv 2605.15435). Where a statistic
does not exist (an interval of one run), the value is None and never NaN.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from graphnet.errors import DataError

__all__ = [
    "Estimate",
    "WelchTest",
    "acc",
    "delta",
    "early_task_taa",
    "mean_interval",
    "taa",
    "taoa",
    "welch_test",
]


@dataclass(frozen=True)
class Estimate:
    """A mean over runs with its confidence interval.

    Attributes
    ----------
    mean
        Mean over the runs, in the unit of the values.
    half_width
        Half the width of the interval; None for a single run.
    n
        Number of runs.
    confidence
        Level of the interval.
    """

    mean: float
    half_width: float | None
    n: int
    confidence: float = 0.95

    @property
    def interval(self) -> tuple[float, float] | None:
        """Lower and upper end; None for a single run."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)


@dataclass(frozen=True)
class WelchTest:
    """Welch's unequal-variances t-test of two samples.

    Attributes
    ----------
    difference
        Mean of the first sample minus mean of the second.
    t, degrees, p
        Statistic, Welch-Satterthwaite degrees of freedom and two-sided p-value; all None where the test does
        not exist: a sample of one, or two samples without any spread.
    """

    difference: float
    t: float | None
    degrees: float | None
    p: float | None


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    r"""Mean and Student-t confidence interval, :math:`\bar x \pm t_{n-1} s / \sqrt n`.

    Parameters
    ----------
    values
        One number for each run, `[runs]`.
    confidence
        Level in (0, 1).

    Raises
    ------
    DataError
        If there is no value, one is not finite, `confidence` is out of range, or scipy is missing.

    Examples
    --------
    >>> estimate = mean_interval([0.90, 0.92, 0.94])
    >>> round(estimate.mean, 3), round(estimate.half_width, 4)
    (0.92, 0.0497)
    >>> mean_interval([0.9]).interval is None
    True
    """
    sample = _finite("values", values, (1,))
    if not 0 < confidence < 1:
        raise DataError(f"a confidence level lies in (0, 1), got {confidence!r}")
    mean = float(sample.mean())
    if len(sample) == 1:
        return Estimate(mean, None, 1, confidence)
    quantile = float(_scipy_stats().t.ppf((1 + confidence) / 2, len(sample) - 1))
    half_width = quantile * float(sample.std(ddof=1)) / math.sqrt(len(sample))
    return Estimate(mean, half_width, len(sample), confidence)


def welch_test(first: ArrayLike, second: ArrayLike) -> WelchTest:
    """Two-sided Welch t-test that two samples have the same mean (Welch, 1947).

    Parameters
    ----------
    first, second
        One number for each run, `[runs]`; the lengths may differ.

    Raises
    ------
    DataError
        If a sample is empty, a value is not finite, or scipy is missing.

    Examples
    --------
    >>> round(welch_test([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]).p, 3)
    0.221
    """
    a, b = _finite("first", first, (1,)), _finite("second", second, (1,))
    difference = float(a.mean() - b.mean())
    # By range, not by variance: the mean of equal numbers may be off by a rounding.
    if min(len(a), len(b)) < 2 or (np.ptp(a) == 0 and np.ptp(b) == 0):
        return WelchTest(difference, None, None, None)
    first_part, second_part = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    error = first_part + second_part
    t = difference / math.sqrt(error)
    # Shares of the squared error, not squares of the parts: those underflow where runs hardly differ.
    degrees = 1 / ((first_part / error) ** 2 / (len(a) - 1) + (second_part / error) ** 2 / (len(b) - 1))
    return WelchTest(difference, t, degrees, 2 * float(_scipy_stats().t.sf(abs(t), degrees)))


def acc(checkpoints: ArrayLike) -> float:
    """ACC: accuracy at the last checkpoint.

    Parameters
    ----------
    checkpoints
        Accuracies in [0, 1]: `[checkpoints]`, or for class-incremental runs `[tasks, tasks]` with row `i`
        holding the accuracy on every task after learning task `i`. Then ACC is the mean of the last row.

    Raises
    ------
    DataError
        If the array is empty, of another form, or an accuracy that counts is not in [0, 1].

    Examples
    --------
    >>> acc([0.5, 0.7, 0.9])
    0.9
    """
    return float(_per_checkpoint(checkpoints)[-1])


def taa(checkpoints: ArrayLike) -> float:
    """TAA: mean accuracy over the checkpoints; class-incremental, of the mean over the tasks seen so far.

    Parameters
    ----------
    checkpoints
        As for :func:`acc`. Of row `i` only the first `i + 1` entries count; later ones, of tasks not seen
        yet, may be anything, NaN included.

    Raises
    ------
    DataError
        As for :func:`acc`.

    Examples
    --------
    >>> taa([[1.0, 0.0], [0.5, 0.7]])
    0.8
    """
    return float(_per_checkpoint(checkpoints).mean())


def delta(ticket: float, cycle: float) -> float:
    """Delta: accuracy of the retrained ticket minus accuracy at the end of the cycles.

    Raises
    ------
    DataError
        If an accuracy is not in [0, 1].
    """
    values = _accuracies("ticket and cycle", [ticket, cycle], (1,))
    return float(values[0] - values[1])


def taoa(batch_accuracies: ArrayLike) -> float:
    """TAOA: mean online accuracy over the whole stream.

    Parameters
    ----------
    batch_accuracies
        Accuracy on each batch before it is learned: `[batches]`, or `[tasks, batches]`.

    Raises
    ------
    DataError
        If the array is empty or an accuracy is not in [0, 1].
    """
    return float(_accuracies("batch accuracies", batch_accuracies, (1, 2)).mean())


def early_task_taa(task_accuracies: Sequence[ArrayLike], portion: float) -> float:
    """Early-task TAA: mean accuracy over the first part of each task, averaged over tasks.

    Parameters
    ----------
    task_accuracies
        For each task its accuracies in order, `[checkpoints]`; tasks may differ in length and count the same.
    portion
        Which part of a task is early, in (0, 1]: its first ``ceil(portion * checkpoints)`` entries.

    Raises
    ------
    DataError
        If there is no task, a task is empty, an accuracy is not in [0, 1], or `portion` is out of range.

    Examples
    --------
    >>> early_task_taa([[0.25, 0.75, 1.0, 1.0], [0.0, 1.0]], portion=0.5)
    0.25
    """
    if not 0 < portion <= 1:
        raise DataError(f"the early portion of a task lies in (0, 1], got {portion!r}")
    tasks = [_accuracies(f"task {i}", task, (1,)) for i, task in enumerate(task_accuracies)]
    if not tasks:
        raise DataError("early-task accuracy needs at least one task, got none")
    # The decimal as written: 0.1 of 10 checkpoints is 1, not ceil(1.0000000000000002).
    return float(np.mean([task[: math.ceil(Fraction(str(portion)) * len(task))].mean() for task in tasks]))


def _per_checkpoint(checkpoints: ArrayLike) -> NDArray[np.float64]:
    """One accuracy for each checkpoint, `[checkpoints]`."""
    values = _array("checkpoints", checkpoints)
    if values.ndim != 2:
        return _accuracies("checkpoints", values, (1,))
    if values.shape[0] != values.shape[1] or values.size == 0:
        raise DataError(
            f"class-incremental checkpoints are [tasks, tasks], one row after each task; got {list(values.shape)}"
        )
    rows = [_accuracies(f"checkpoint {i}", row[: i + 1], (1,)).mean() for i, row in enumerate(values)]
    return np.asarray(rows, dtype=np.float64)


def _accuracies(name: str, values: ArrayLike, dimensions: tuple[int, ...]) -> NDArray[np.float64]:
    array = _finite(name, values, dimensions)
    if array.min() < 0 or array.max() > 1:
        raise DataError(f"{name}: accuracies are shares in [0, 1], found {array.min():g} to {array.max():g}")
    return array


def _finite(name: str, values: ArrayLike, dimensions: tuple[int, ...]) -> NDArray[np.float64]:
    array = _array(name, values)
    if array.ndim not in dimensions or array.size == 0:
        raise DataError(f"{name}: expected a non-empty array of {dimensions} dimensions, got shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise DataError(f"{name}: every value must be finite, found {array[~np.isfinite(array)][0]}")
    return array


def _array(name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        return cast("NDArray[np.float64]", np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: expected numbers in rows of equal length ({error})") from error


def _scipy_stats() -> Any:
    try:
        return importlib.import_module("scipy.stats")
    except ImportError as error:
        raise DataError(
            f"confidence intervals and tests need the library 'scipy', which cannot be imported ({error}); "
            "install it with: pip install graphnet-engine[study]"
        ) from error

"""Statistics over seeds and the study's measures, against values worked out elsewhere."""

from __future__ import annotations

import statistics as standard

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from graphnet.errors import DataError
from graphnet.study.statistics import (
    acc,
    delta,
    early_task_taa,
    mean_interval,
    taa,
    taoa,
    welch_test,
)

NAN = float("nan")
samples = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def test_interval_of_a_table_value() -> None:
    # n = 4: s = 1.2909944, t_{0.975, 3} = 3.1824463 (any table), so 3.1824463 * s / 2 = 2.0542603.
    estimate = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert estimate.mean == 2.5
    assert estimate.half_width == pytest.approx(2.0542603, abs=1e-6)
    assert estimate.interval == pytest.approx((0.4457397, 4.5542603), abs=1e-6)
    assert (estimate.n, estimate.confidence) == (4, 0.95)


@given(samples, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_agrees_with_scipy(values: list[float], confidence: float) -> None:
    estimate = mean_interval(values, confidence)
    assert estimate.mean == pytest.approx(standard.fmean(values), abs=1e-9)
    spread = scipy.stats.sem(values)
    if spread > 1e-9:
        assert estimate.interval == pytest.approx(
            scipy.stats.t.interval(confidence, len(values) - 1, np.mean(values), spread), abs=1e-9
        )


def test_one_run_has_a_mean_and_no_interval() -> None:
    estimate = mean_interval([0.75])
    assert (estimate.mean, estimate.half_width, estimate.interval, estimate.n) == (0.75, None, None, 1)


@given(samples, samples)
def test_welch_agrees_with_scipy(first: list[float], second: list[float]) -> None:
    if min(standard.variance(first), standard.variance(second)) < 1e-6:
        return  # scipy warns of cancellation there
    result, expected = welch_test(first, second), scipy.stats.ttest_ind(first, second, equal_var=False)
    assert result.t == pytest.approx(expected.statistic, rel=1e-6, abs=1e-9)
    assert result.degrees == pytest.approx(expected.df, rel=1e-6)
    assert result.p == pytest.approx(expected.pvalue, rel=1e-5, abs=1e-12)
    mirrored = welch_test(second, first)
    assert mirrored.difference == -result.difference
    assert mirrored.p == pytest.approx(result.p)


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0, 3.0]), ([1.0, 2.0], [3.0]), ([0.1] * 3, [0.7] * 5)])
def test_welch_without_spread_or_with_one_run_gives_no_p(first: list[float], second: list[float]) -> None:
    result = welch_test(first, second)
    assert (result.t, result.degrees, result.p) == (None, None, None)
    assert result.difference == pytest.approx(np.mean(first) - np.mean(second))


def test_one_constant_sample_is_enough_spread() -> None:
    assert welch_test([0.5, 0.5], [0.1, 0.2, 0.3]).p == pytest.approx(0.0351, abs=1e-4)  # t = 5.196 on 2 degrees


def test_measures_of_one_task() -> None:
    assert acc([0.5, 0.75, 1.0]) == 1.0
    assert taa([0.5, 0.75, 1.0]) == 0.75
    assert delta(ticket=0.75, cycle=0.5) == 0.25
    assert delta(ticket=0.5, cycle=0.75) == -0.25
    assert taoa([[0.0, 1.0], [1.0, 1.0]]) == taoa([0.0, 1.0, 1.0, 1.0]) == 0.75


def test_class_incremental_counts_only_the_tasks_seen() -> None:
    # Rows: after task 0 it is at 1; after task 1 they are at 0.5 and 1; after task 2 at 0, 0.5 and 1.
    matrix = [[1.0, NAN, 0.3], [0.5, 1.0, NAN], [0.0, 0.5, 1.0]]
    assert acc(matrix) == 0.5
    assert taa(matrix) == pytest.approx((1.0 + 0.75 + 0.5) / 3)


def test_early_part_is_rounded_up_and_tasks_count_alike() -> None:
    tasks = [[0.0, 0.5, 1.0, 1.0, 1.0], [1.0]]
    assert early_task_taa(tasks, 0.2) == 0.5  # first of five, first of one
    assert early_task_taa(tasks, 0.21) == pytest.approx((0.25 + 1) / 2)  # two of five
    assert early_task_taa(tasks, 1) == pytest.approx((0.7 + 1) / 2)


def test_early_part_of_a_decimal_share_is_exact() -> None:
    # 0.07 * 100 is 7.000000000000001 in floating point: rounding that up would take an eighth checkpoint.
    assert early_task_taa([[0.0] * 7 + [1.0] * 93], 0.07) == 0.0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mean_interval([]), "non-empty"),
        (lambda: mean_interval([0.1, NAN]), "finite"),
        (lambda: mean_interval([0.1, 0.2], confidence=95), "confidence"),
        (lambda: mean_interval([[0.1], [0.2]]), "shape"),
        (lambda: mean_interval(["a"]), "numbers"),
        (lambda: welch_test([], [1.0]), "first"),
        (lambda: acc([0.5, 95.0]), r"\[0, 1\]"),
        (lambda: acc([[0.5, 0.5]]), "one row after each task"),
        (lambda: taa([[0.5, 0.5], [0.5]]), "equal length"),
        (lambda: taa([[0.5, NAN], [NAN, 0.5]]), "checkpoint 1"),
        (lambda: delta(NAN, 0.5), "finite"),
        (lambda: taoa([]), "non-empty"),
        (lambda: early_task_taa([], 0.5), "at least one task"),
        (lambda: early_task_taa([[0.5], []], 0.5), "task 1"),
        (lambda: early_task_taa([[0.5]], 0.0), "portion"),
        (lambda: early_task_taa([[0.5]], 1.5), "portion"),
    ],
)
def test_bad_input_is_refused(call: object, says: str) -> None:
    with pytest.raises(DataError, match=says):
        call()  # type: ignore[operator]

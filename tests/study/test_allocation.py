"""Allocation: the published vectors, and the laws for any layers."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphnet.errors import SchemaError
from graphnet.study.allocation import BIASES, bias_weights, interpolate, prune_schedule, seed_widths, targets

HEAD_WIDTHS = [512, 512, 256]
HEAD_MASSES = [4096 * 512, 512 * 512, 512 * 256]  # the ConvNet's head: 4096 -> 512 -> 512 -> 256


@pytest.mark.parametrize(
    ("bias", "compactness", "expected"),
    [
        ("neutral", 0.5, [256, 256, 128]),
        ("neutral", 0.2, [102, 103, 52]),
        ("fc1-protect", 0.2, [105, 106, 22]),
        ("fc3-protect", 0.5, [241, 242, 256]),  # the last layer hits its cap
    ],
)
def test_targets_of_the_methods_page(bias: str, compactness: float, expected: list[int]) -> None:
    assert targets(HEAD_WIDTHS, HEAD_MASSES, compactness, bias) == expected


def test_full_compactness_keeps_every_unit_under_every_bias() -> None:
    for bias in BIASES:
        assert targets(HEAD_WIDTHS, HEAD_MASSES, 1.0, bias) == HEAD_WIDTHS


def test_a_decimal_compactness_is_not_lost_to_binary_rounding() -> None:
    # 0.29 * 100 is 28.999999999999996 in floating point: a floor of that would give 28.
    assert targets([100], [100], 0.29) == [29]


@st.composite
def layers(draw: st.DrawFn) -> tuple[list[int], list[int], float, list[float]]:
    widths = draw(st.lists(st.integers(1, 300), min_size=1, max_size=5))
    fan_ins = [draw(st.integers(1, 300)) for _ in widths]
    compactness = draw(st.integers(1, 1000)) / 1000
    bias = [draw(st.integers(1, 30)) / 10 for _ in widths]
    return widths, [w * f for w, f in zip(widths, fan_ins, strict=True)], compactness, bias


@given(layers())
def test_targets_stay_within_widths_and_budget(case: tuple[list[int], list[int], float, list[float]]) -> None:
    widths, masses, compactness, bias = case
    units = targets(widths, masses, compactness, bias)
    assert all(1 <= u <= d for u, d in zip(units, widths, strict=True))
    spent = sum(Fraction(u * w, d) for u, d, w in zip(units, widths, masses, strict=True))
    if 1 not in units:  # only the minimum of one unit may pass the budget
        assert spent <= Fraction(str(compactness)) * sum(masses)


@given(layers())
def test_targets_waste_less_than_one_unit_of_each_layer(
    case: tuple[list[int], list[int], float, list[float]],
) -> None:
    widths, masses, compactness, bias = case
    units = targets(widths, masses, compactness, bias)
    spent = sum(Fraction(u * w, d) for u, d, w in zip(units, widths, masses, strict=True))
    one_of_each = sum(Fraction(w, d) for d, w in zip(widths, masses, strict=True))
    assert Fraction(str(compactness)) * sum(masses) - spent < one_of_each


@given(layers())
def test_neutral_targets_are_within_one_unit_of_the_share(
    case: tuple[list[int], list[int], float, list[float]],
) -> None:
    widths, masses, compactness, _ = case
    for u, d in zip(targets(widths, masses, compactness), widths, strict=True):
        assert abs(u - Fraction(str(compactness)) * d) <= 1


@given(layers(), st.integers(2, 9))
def test_scaling_every_bias_changes_nothing(case: tuple[list[int], list[int], float, list[float]], factor: int) -> None:
    widths, masses, compactness, bias = case
    tenths = [round(b * 10) for b in bias]
    assert targets(widths, masses, compactness, tenths) == targets(
        widths, masses, compactness, [b * factor for b in tenths]
    )


@pytest.mark.parametrize(
    ("name", "three", "one", "four"),
    [
        ("neutral", (1, 1, 1), (1,), (1, 1, 1, 1)),
        ("fc1-protect", (1.5, 1.5, 0.6), (1.5,), (1.5, 1.5, 1.5, 0.6)),
        ("fc3-protect", (0.6, 0.6, 1.5), (1.5,), (0.6, 0.6, 0.6, 1.5)),
        ("ends-skewed", (1.2, 0.6, 1.2), (1.2,), (1.2, 0.6, 0.6, 1.2)),
    ],
)
def test_named_biases(name: str, three: tuple[float, ...], one: tuple[float, ...], four: tuple[float, ...]) -> None:
    assert bias_weights(name, 3) == three
    assert bias_weights(name, 1) == one
    assert bias_weights(name, 4) == four


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([4], [8], 0.0), "compactness"),
        (([4], [8], 1.01), "compactness"),
        (([4], [8], float("nan")), "compactness"),
        (([4, 4], [8], 0.5), "one number for each layer"),
        (([], [], 0.5), "one number for each layer"),
        (([0], [8], 0.5), "layer 0"),
        (([4], [8], 0.5, "fc2-protect"), "fc1-protect"),
        (([4], [8], 0.5, [1.0, 1.0]), "2 numbers for 1 layers"),
        (([4], [8], 0.5, [0.0]), "positive"),
    ],
)
def test_targets_refuse_what_makes_no_sense(arguments: tuple[object, ...], says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        targets(*arguments)  # type: ignore[arg-type]


def test_seed_is_a_tenth_at_least_one_and_never_above_the_target() -> None:
    assert seed_widths([512, 512, 256, 5], [105, 106, 22, 3]) == [51, 51, 22, 1]
    with pytest.raises(SchemaError, match="layer 1"):
        seed_widths([10, 10], [5, 11])
    with pytest.raises(SchemaError, match="share"):
        seed_widths([10], [5], share=0)


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 400)), min_size=1, max_size=4), st.integers(1, 40))
def test_growth_never_shrinks_ends_at_the_target_and_is_even(pairs: list[tuple[int, int]], cycles: int) -> None:
    seed, final = [s for s, _ in pairs], [s + extra for s, extra in pairs]
    rows = interpolate(seed, final, cycles)
    assert len(rows) == cycles
    assert rows[-1] == final
    for before, after in zip([seed, *rows], rows, strict=False):
        for low, high, s, f in zip(before, after, seed, final, strict=True):
            assert abs((high - low) - Fraction(f - s, cycles)) <= 1  # a straight line, to rounding
            assert high >= low


def test_interpolate_refuses_a_seed_above_the_target() -> None:
    with pytest.raises(SchemaError, match="layer 1: growth cannot start from 26 units and end at 22"):
        interpolate([5, 26], [6, 22], 5)
    with pytest.raises(SchemaError, match="cycle"):
        interpolate([1], [2], 0)


@given(st.integers(0, 600), st.integers(0, 600), st.integers(1, 30))
def test_pruning_reaches_the_target_at_the_last_cycle_in_even_steps(full: int, target: int, cycles: int) -> None:
    active, steps = full, []
    for cycle in range(cycles):
        steps.append(prune_schedule(active, target, cycle, cycles))
        active -= steps[-1]
    assert active == min(full, target)
    assert max(steps) - min(steps) <= 1


def test_pruning_catches_up_and_stops() -> None:
    assert prune_schedule(10, 3, 0, 5) == 2  # a fifth of 7, rounded up
    assert prune_schedule(10, 4, 4, 5) == 6  # the last cycle removes all that is left
    assert prune_schedule(10, 4, 9, 5) == 6  # and so does a cycle past the end
    assert prune_schedule(3, 4, 0, 5) == 0
    for wrong in ((-1, 0, 0, 1), (1, -1, 0, 1), (1, 0, -1, 1), (1, 0, 0, 0)):
        with pytest.raises(SchemaError):
            prune_schedule(*wrong)

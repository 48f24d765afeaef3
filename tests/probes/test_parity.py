"""Parity of cohorts, and the censored median of the time to it."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from graphnet.errors import GraphnetError
from graphnet.ir.builders import mlp
from graphnet.probes import Curve, Duration, Point, Probe, median_time, probe, time_to_parity
from graphnet.runtime.network import Network

X = torch.randn(32, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 3


def probed(net: Network) -> Probe:
    return probe(net, (X, Y), F.cross_entropy)


def network() -> Network:
    return Network(mlp([6, 8, 3]), seed=1).double()


def test_parity_is_the_ratio_of_the_cohorts_means() -> None:
    found = probed(network())
    units = found.groups["fc1"]
    parity = found.parity("act1", [1, 5])  # the group, by an op that holds it
    others = [0, 2, 3, 4, 6, 7]
    assert parity.newborn_gradient == pytest.approx(units.gradient[[1, 5]].mean(), rel=1e-15)
    assert parity.incumbent_gradient == pytest.approx(units.gradient[others].mean(), rel=1e-15)
    ratio = units.activation[[1, 5]].mean() / units.activation[others].mean()
    assert parity.ratio_activation == pytest.approx(ratio, rel=1e-9)  # eps is 1e-12
    assert parity.log_activation == pytest.approx(math.log(ratio), abs=1e-9)
    assert (parity.newborns, parity.incumbents, parity.censored) == (2, 6, False)
    wide = found.parity("fc1", [1, 5], eps=1.0)
    assert wide.ratio_gradient == pytest.approx(parity.newborn_gradient / (parity.incumbent_gradient + 1.0), rel=1e-15)


def test_a_duplicate_cohort_has_parity_zero_and_swapped_cohorts_flip_its_sign() -> None:
    found = probed(network())
    same = found.parity("fc1", [0, 3, 4], [0, 3, 4], eps=0.0)
    assert (same.log_activation, same.log_gradient) == (0.0, 0.0)
    one, other = found.parity("fc1", [0, 1], [5, 6, 7], eps=0.0), found.parity("fc1", [5, 6, 7], [0, 1], eps=0.0)
    assert one.log_gradient == pytest.approx(-other.log_gradient, rel=1e-12)
    assert one.log_activation == pytest.approx(-other.log_activation, rel=1e-12)
    assert abs(one.log_gradient) > 0.01


def test_replicated_units_are_at_parity() -> None:
    """Units with the same weights in and out cannot differ."""
    net = network()
    with torch.no_grad():
        net.fc1.weight[4:] = net.fc1.weight[:4]
        net.fc1.bias[4:] = net.fc1.bias[:4]
        net.head.weight[:, 4:] = net.head.weight[:, :4]
    parity = probed(net).parity("fc1", [4, 5, 6, 7], eps=0.0)
    assert parity.log_gradient == pytest.approx(0.0, abs=1e-12)
    assert parity.log_activation == pytest.approx(0.0, abs=1e-12)


def test_newborns_without_outgoing_weights_are_censored_until_a_step() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.attach(optimizer)
    with net.edit() as edit:
        born = edit.grow("fc1", 3, init="zero-outgoing")
    first = probed(net).parity("fc1", born)
    assert first.censored
    assert first.newborn_gradient == 0.0
    assert first.ratio_gradient == 0.0
    assert first.log_gradient is None
    assert first.log_activation is not None  # forward-active, backward-starved
    F.cross_entropy(net(X), Y).backward()
    optimizer.step()
    again = probed(net).parity("fc1", born)
    assert not again.censored
    assert again.log_gradient is not None
    assert again.log_gradient < 0.0


def test_an_empty_cohort_has_no_parity() -> None:
    found = probed(network())
    everyone = found.parity("fc1", range(8))
    assert (everyone.incumbents, everyone.ratio_gradient, everyone.log_gradient) == (0, None, None)
    nobody = found.parity("fc1", [])
    assert (nobody.newborns, nobody.censored, nobody.newborn_gradient) == (0, False, None)
    assert json.loads(json.dumps(nobody.record()))["log_parity_gradient"] is None


# -- time to parity ----------------------------------------------------------------------------------------------


def test_time_to_half_parity() -> None:
    curve = Curve([Point(0, 0.0), Point(5, 0.49), Point(10, 0.5), Point(20, 0.9)], end=30)
    assert time_to_parity(curve) == Duration(10, True)  # at least one half
    assert time_to_parity([(0, 0.1), (5, None), (7, 0.4)]) == Duration(7, False)  # until the last point
    assert time_to_parity(Curve([Point(0, 0.1)], end=30)) == Duration(30, False)  # until the edit


def test_time_to_halfway_between_birth_and_parity() -> None:
    points = [(0, 0.4), (5, 0.69), (10, 0.7), (20, 0.9)]
    assert time_to_parity(points, rule="halfway") == Duration(10, True)  # (0.4 + 1)/2
    # A censored birth (gradient exactly 0) is no first value.
    assert time_to_parity([(0, 0.0), (1, 0.4), *points[1:]], rule="halfway") == Duration(10, True)


def test_a_curve_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(GraphnetError, match="no points"):
        time_to_parity([])
    with pytest.raises(GraphnetError, match="order of age"):
        time_to_parity([(5, 0.1), (1, 0.2)])
    with pytest.raises(GraphnetError, match="halfway"):
        time_to_parity([(5, 0.1)], rule="third")  # type: ignore[arg-type]


def test_the_median_counts_censored_times() -> None:
    observed = [Duration(age, True) for age in (1, 2, 3, 4, 5)]
    assert median_time(observed) == 3
    # Freireich's leukemia trial, 6-MP arm (in Kaplan-Meier textbooks): the median is 23 weeks.
    events = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    censored = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    trial = [Duration(age, True) for age in events] + [Duration(age, False) for age in censored]
    assert median_time(trial) == 23
    assert median_time([Duration(5, False)] * 3) is None
    assert median_time([]) is None
    assert median_time([Duration(5, True), Duration(9, False)]) == 5  # exactly half are left
    assert median_time([Duration(5, True), Duration(9, False), Duration(9, False)]) is None
    assert median_time([Duration(5, True), Duration(5, False), Duration(5, False)]) is None  # at risk until then


@given(st.lists(st.integers(0, 50), min_size=1, max_size=25))
def test_without_censoring_the_median_is_the_lower_median(ages: list[int]) -> None:
    lower = int(np.quantile(ages, 0.5, method="inverted_cdf"))
    assert median_time([Duration(age, True) for age in ages]) == lower


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=20))
def test_censoring_an_observation_never_makes_the_median_earlier(times: list[tuple[int, bool]]) -> None:
    """Of one more time the event is turned into a censoring, one after the other."""
    durations = [Duration(age, seen) for age, seen in times]
    medians = [median_time(durations)]
    for at, duration in enumerate(durations):
        durations[at] = Duration(duration.age, False)
        medians.append(median_time(durations))
    never = 1_000
    assert all((a if a is not None else never) <= (b if b is not None else never) for a, b in pairwise(medians))

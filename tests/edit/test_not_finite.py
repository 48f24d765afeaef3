"""Data or weights that are not finite: refused in words, or left alone where nothing reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import graphnet as gn
from graphnet.edit.initialisers import INITIALISERS
from graphnet.edit.operators.replace import REPLACEMENTS
from graphnet.edit.scores import SCORES
from graphnet.edit.splitters import SPLITTERS
from graphnet.probes import effective_rank, growth_bottleneck, stable_rank
from graphnet.testing import state_of

NAN, INF = float("nan"), float("inf")
READ_NO_DATA = {"magnitude", "l1", "l2", "fpgm", "random"}
BATCH = {"batch": (torch.full((8, 4), NAN), torch.zeros(8, dtype=torch.long)), "loss": F.cross_entropy}


def network(*, broken: str | None = None, value: float = NAN) -> gn.Network:
    net = gn.Network(gn.mlp([4, 6, 5, 3]), seed=0)
    if broken is not None:
        with torch.no_grad():
            net.tensor(broken)[0, 0] = value
    return net


def attempt(net: gn.Network, change: Callable[[gn.Edit], object]) -> gn.GraphnetError | None:
    """The refusal, which must have changed nothing; None where the edit was committed."""
    before = state_of(net)
    try:
        with net.edit() as edit:
            change(edit)
    except gn.GraphnetError as error:
        after = state_of(net)
        assert before.keys() == after.keys()
        assert all(torch.equal(one.nan_to_num(7.0), after[name].nan_to_num(7.0)) for name, one in before.items())
        return error
    return None


@pytest.mark.parametrize("score", list(SCORES))
def test_a_score_of_a_batch_that_is_not_finite_is_refused(score: str) -> None:
    refused = attempt(network(), lambda edit: edit.prune("fc1", lowest=1, score=score, **BATCH))
    assert (refused is None) == (score in READ_NO_DATA)


@pytest.mark.parametrize("broken", [None, "fc1.weight", "fc2.weight"])
@pytest.mark.parametrize("init", list(INITIALISERS))
def test_newborns_of_an_initialiser_that_reads_what_is_not_finite_are_refused(init: str, broken: str | None) -> None:
    net = network(broken=broken)
    given: dict[str, Any] = BATCH if broken is None else {**BATCH, "batch": (torch.randn(8, 4), BATCH["batch"][1])}
    if attempt(net, lambda edit: edit.grow("fc1", 2, init=init, **given)) is None and broken is None:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in net.state_dict().values())


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("by", list(REPLACEMENTS))
def test_a_replacement_of_weights_that_are_not_finite(by: str, value: float) -> None:
    net = gn.Network(gn.convnet((3, 8, 8), channels=(4, 6), hidden=(8,), classes=3, norm="batch"), seed=0)
    options = {"rank": 2} if by in NEED else {}
    for name in ("conv2", "fc1", "act1", "norm1"):
        if f"{name}.weight" in net.graph.tensors:
            with torch.no_grad():
                net.tensor(f"{name}.weight").view(-1)[0] = value
        refused = attempt(net, lambda edit, name=name: edit.replace(name, by=by, **options))  # type: ignore[misc]
        if name == NEED.get(by):
            assert "is not finite" in str(refused)


NEED = {"separable": "conv2", "low-rank": "fc1"}
"""Replacements by singular vectors, and a layer that each is for."""


@pytest.mark.parametrize("by", list(SPLITTERS))
def test_a_split_by_a_batch_that_is_not_finite(by: str) -> None:
    refused = attempt(network(), lambda edit: edit.split("fc1", units=[0], by=by, **BATCH))
    assert refused is None or "not finite" in str(refused)


@pytest.mark.parametrize("value", [NAN, INF])
def test_probes_refuse_features_that_are_not_finite(value: float) -> None:
    for measure in (effective_rank, stable_rank):
        with pytest.raises(gn.GraphnetError, match="not finite"):
            measure(torch.full((5, 3), value))
    x, y = torch.full((8, 4), value), torch.zeros(8, dtype=torch.long)
    with pytest.raises(gn.GraphnetError, match="not finite"):
        growth_bottleneck(network(), "fc1", (x, y), F.cross_entropy)


def test_a_probe_refuses_features_whose_squares_are_not_finite() -> None:
    net = network().double()
    x, y = torch.full((8, 4), 1e160, dtype=torch.float64), torch.ones(8, 3, dtype=torch.float64)
    with pytest.raises(gn.GraphnetError, match="the squares of what 'fc2' reads are not finite"):
        growth_bottleneck(net, "fc1", (x, y), lambda output, target: (output * 1e-170 * target).sum())

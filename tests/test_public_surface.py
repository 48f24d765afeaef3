"""The names that examples, documentation and users rely on."""

from __future__ import annotations

import subprocess
import sys

import pytest

import graphnet as gn


@pytest.mark.parametrize("name", gn.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(gn, name) is not None
    assert name in dir(gn)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'grwo'"):
        _ = gn.grwo  # type: ignore[attr-defined]


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import sys, graphnet; assert 'torch' not in sys.modules; graphnet.mlp; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_rule_applies_to_a_network() -> None:
    net = gn.Network(gn.mlp([4, 8, 2]))
    outcome = net.apply(gn.Rule(name="widen", steps=[{"do": "grow", "units": "fc1", "count": 3}]))
    assert isinstance(outcome, gn.Outcome)
    assert outcome.status == "applied"
    assert net.graph.groups["fc1"].size == 11


def test_apply_still_visits_modules() -> None:
    net, seen = gn.Network(gn.mlp([4, 8, 2])), []
    assert net.apply(lambda module: seen.append(type(module).__name__)) is net
    assert "Linear" in seen


@pytest.mark.parametrize("what", [3, None, "fc1"])
def test_apply_refuses_anything_else(what: object) -> None:
    with pytest.raises(gn.EditError, match="apply takes a Rule"):
        gn.Network(gn.mlp([4, 8, 2])).apply(what)


@pytest.mark.parametrize("seed", [-1, 2**63, "0", 1.0, True, None])
def test_a_bad_seed_is_an_edit_error(seed: object) -> None:
    with pytest.raises(gn.EditError, match="a seed is a whole number"):
        gn.Network(gn.mlp([4, 8, 2]), seed=seed)  # type: ignore[arg-type]

"""Deepening behind every activation: done, or refused with what to do instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graphnet as gn
from graphnet.ir.ops import OPS
from graphnet.ir.ops.activation import Activation
from graphnet.ir.ops.blend import BLENDED
from graphnet.testing import random_network

OPTIONS: dict[str, dict[str, Any]] = {"blend": {"first": "relu", "second": "tanh"}}
KINDS = sorted(kind for kind, op in OPS.items() if issubclass(op, Activation))
X = torch.linspace(-2, 2, 20, dtype=torch.float64).reshape(5, 4)


def network(kind: str) -> gn.Network:
    ops = [
        {"op": "linear", "name": "fc1", "inputs": ["x"], "out": 6},
        {"op": kind, "name": "act", "inputs": ["fc1"], **OPTIONS.get(kind, {})},
        {"op": "linear", "name": "head", "inputs": ["act"], "out": 2},
    ]
    document = {
        "kind": "architecture", "name": "net", "inputs": {"x": {"shape": [4]}}, "ops": ops, "outputs": ["head"],
    }  # fmt: skip
    return random_network(gn.load(document), 0).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_branch_goes_behind_any_activation(kind: str) -> None:
    net = network(kind)
    before = net(X)
    with net.edit() as edit:
        edit.deepen("act", form="residual", preserves="function")
    torch.testing.assert_close(net(X), before, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_an_identity_layer_is_refused_where_the_activation_cannot_be_blended_in(kind: str) -> None:
    net = network(kind)
    before = net(X)
    nonlinear = kind not in ("identity", "dropout", "blend")  # else the layer gets no activation
    if nonlinear and kind not in BLENDED:
        with pytest.raises(gn.EditError, match=rf"'{kind}' cannot be blended in"), net.edit() as edit:
            edit.deepen("act")
        assert net.version == 0
        with net.edit() as edit:
            edit.deepen("act", activation="relu", preserves="function")
    else:
        with net.edit() as edit:
            edit.deepen("act", preserves="function")
    torch.testing.assert_close(net(X), before, rtol=1e-12, atol=1e-14)

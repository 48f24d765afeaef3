"""Every argument of every operator, given values of the wrong kind: it works, or it is an error of ours."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import graphnet as gn
from graphnet.testing import check_bits, random_network, state_of

X = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4)
Y = torch.tensor([0, 1, 1, 0])
DATA = {"batch": (X, Y), "loss": lambda output, y: F.cross_entropy(output.reshape(len(y), -1), y % output.shape[-1])}

# Calls that work, to put one odd argument into at a time.
CALLS: dict[str, list[dict[str, Any]]] = {
    "grow": [{"group": "fc1", "count": 2, **DATA}],
    "prune": [{"group": "fc1", "lowest": 1, **DATA}],
    "retire": [{"group": "fc1", "lowest": 1}],
    "recruit": [{"group": "fc1", "highest": 1, "batch": (X, Y)}],
    "reset": [{"group": "fc1", "lowest": 1, **DATA}],
    "shrink_and_perturb": [{}],
    "rewind": [{"group": "fc1", "snapshot": None}],
    "insert": [{"kind": "linear", "name": "new", "inputs": "act1", "before": "fc2", "init": "zeros"}],
    "redirect": [{"edge": "act1 -> fc2", "to": "fc1"}],
    "remove": [{"name": "act1"}],
    "deepen": [{"after": "act1"}],
    "replace": [
        {"name": "fc2", "by": "low-rank", "rank": 2}, {"name": "act1", "by": "blend", "to": "gelu"},
        {"name": "act1", "by": "gelu"},
    ],
    "kernel": [{"name": "fc1", "kernel": 3}],
    "tie": [{"name": "fc2", "to": "fc1"}],
    "untie": [{"name": "fc1"}],
    "split": [{"group": "fc1", "units": [0]}, {"group": "fc1", "highest": 1, "by": "steepest", **DATA}],
    "merge": [{"group": "fc1", "pairs": [(0, 1)]}],
    "permute": [{"group": "fc1", "order": [1, 0, 2, 3, 4, 5]}, {"group": "fc1", "by": "magnitude"}],
}  # fmt: skip

ODD: list[Any] = [
    float("nan"), 10**30, True, "no such thing", b"b", {0}, [], [(0, 99)], {1: 1}, object(), np.array([0, 1]),
    np.int64(2), (2.0, 10**40),
]  # fmt: skip


def start(operator: str) -> gn.Network:
    net = random_network(gn.mlp([4, 6, 5, 3]), 0)
    optimizer = torch.optim.Adam(net.parameters())
    net.attach(optimizer)
    net(X).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    if operator == "recruit":
        with net.edit() as edit:
            edit.retire("fc1", units=[0, 1])
    return net


def arguments(operator: str) -> list[str]:
    parameters = inspect.signature(getattr(gn.Edit, operator)).parameters.values()
    return [one.name for one in parameters if one.name != "self" and one.kind is not one.VAR_KEYWORD]


def test_every_operator_is_here() -> None:
    public = {name for name, value in vars(gn.Edit).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert set(CALLS) == public - {"apply", "nested"}


@pytest.mark.parametrize("operator", CALLS)
def test_an_odd_argument_works_or_is_an_error_of_ours_and_changes_nothing(operator: str) -> None:
    net = start(operator)
    snapshot = net.snapshot()
    before, refused = state_of(net), 0
    for call in CALLS[operator]:
        call = {**call, **({"snapshot": snapshot} if operator == "rewind" else {})}
        for argument in [*arguments(operator), *(set(call) - set(arguments(operator)))]:
            for value in ODD:
                try:
                    with warnings.catch_warnings(), net.edit() as edit:
                        warnings.simplefilter("ignore")
                        getattr(edit, operator)(**{**call, argument: value})
                except gn.GraphnetError:
                    refused += 1
                    check_bits(before, state_of(net), f"{operator}({argument}={value!r}) was refused")
                except Exception as error:
                    raise AssertionError(
                        f"{operator}({argument}={value!r}): {type(error).__name__}: {error}"
                    ) from error
                else:
                    net(X).square().sum().backward()
                    assert all(bool(p.isfinite().all()) for p in net.parameters())
                    net = start(operator)
                    before = state_of(net)
    assert refused

"""What every test of the importer checks: same output, every free group pruned and grown, masked equals pruned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import graphnet as gn
from graphnet.errors import EditError

EXACT = 1e-9
"""Relative: everything here runs in float64, and a sum over fewer terms may round otherwise."""


@dataclass
class Report:
    """What was done to an imported network."""

    net: Any
    pruned: list[str] = field(default_factory=list)
    masked: list[str] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)
    preserved: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def free(self) -> list[str]:
        return [name for name, group in self.net.graph.groups.items() if group.frozen is None]


def leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def gap(one: Any, two: Any) -> float:
    """The largest difference, relative to the largest value."""
    worst = 0.0
    for a, b in zip(leaves(one), leaves(two), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if a.is_floating_point():
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)))
        else:
            assert torch.equal(a, b)
    return worst


def masked(net: Any, group: str, units: list[int]) -> Any:
    """A copy in which everything that produces or consumes these units is zero."""
    twin, graph = copy.deepcopy(net), net.graph
    at = graph.groups[group].positions(units)
    with torch.no_grad():
        for spec in graph.users[group]:
            tensor = twin.tensor(spec.shared or spec.name)
            for dim, (layout, role) in enumerate(zip(spec.dims, spec.roles, strict=True)):
                if group in set(layout.atoms()) and role in ("read", "write") and not spec.buffer:
                    rows = np.flatnonzero(np.isin(layout.owners(group, graph.sizes), at))
                    tensor.index_fill_(dim, torch.from_numpy(rows), 0.0)
    return twin


def step(net: Any, inputs: tuple[Any, ...]) -> None:
    """One training step with Adam that reaches every parameter that takes part."""
    net.train()
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad])
    loss = sum(leaf.double().square().mean() for leaf in leaves(net(*inputs)) if leaf.requires_grad)
    loss.backward()
    optimizer.step()
    assert all(torch.isfinite(leaf).all() for leaf in leaves(net(*inputs)) if leaf.is_floating_point())
    net.eval()


def widened(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Another batch of another size."""
    return tuple(torch.cat([x, x.flip(0), x[:1]]) if isinstance(x, Tensor) else x for x in inputs)


@pytest.fixture
def exercise() -> Callable[..., Report]:
    """Import a model, check it, and prune every free group by half and grow it by a quarter."""

    def run(
        model: nn.Module,
        inputs: tuple[Any, ...],
        *,
        other: tuple[Any, ...] | None = None,
        train: bool = True,
        groups: Callable[[str], bool] = lambda name: True,
    ) -> Report:
        model.double()
        inputs = tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
        modes = [module.training for module in model.modules()]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        net = gn.from_torch(model, inputs)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert list(net.state_dict()) == list(model.state_dict())
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert [n for n, _ in net.named_parameters()] == [n for n, _ in model.named_parameters()]
        assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in model.parameters()]
        batch = widened(inputs) if other is None else other
        batch = tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in batch)
        for training in (False, True) if train else (False,):
            model.train(training)
            net.train(training)
            twins = copy.deepcopy(model), copy.deepcopy(net)  # batch statistics move
            torch.manual_seed(3)
            expected = twins[0](*batch)
            torch.manual_seed(3)
            found = twins[1](*batch)
            assert pytree.tree_structure(found) == pytree.tree_structure(expected)
            assert gap(expected, found) <= EXACT, f"training={training}"
            moved = dict(twins[1].named_buffers())
            for name, buffer in twins[0].named_buffers():  # running statistics, of batches of the same size
                assert gap(buffer, moved[name]) <= EXACT, f"{name}, training={training}"
        model.eval()
        net.eval()
        report, base = Report(net), net(*batch)
        for name, group in net.graph.groups.items():
            if group.frozen is not None or not groups(name):
                continue
            _prune(report, net, name, batch)
            _grow(report, net, name, batch, base)
        return report

    return run


def _run(net: Any, batch: tuple[Any, ...], training: bool) -> Any:
    """The output of a copy, whose statistics may move."""
    with torch.no_grad():
        return copy.deepcopy(net).train(training)(*batch)


def _steady(net: Any, batch: tuple[Any, ...]) -> bool:
    """Whether training draws no random numbers: a width less would draw others."""
    before = torch.get_rng_state()
    _run(net, batch, True)
    return torch.equal(before, torch.get_rng_state())


def _prune(report: Report, net: Any, name: str, batch: tuple[Any, ...]) -> None:
    group = net.graph.groups[name]
    units = list(group.ids[1::2])
    if not units:
        return
    twin = copy.deepcopy(net)
    try:
        with twin.edit() as edit:
            edit.prune(name, units=units)
    except EditError as error:
        report.refused[f"prune {name}"] = str(error)
        assert gap(net(*batch), twin(*batch)) == 0
        return
    report.pruned.append(name)
    if not group.output and group.coupled is None:
        hidden = masked(net, name, units)
        for training in (False, True) if _steady(net, batch) else (False,):
            assert gap(_run(hidden, batch, training), _run(twin, batch, training)) <= EXACT, f"{name}, {training}"
        report.masked.append(name)
    step(twin, batch)


def _grow(report: Report, net: Any, name: str, batch: tuple[Any, ...], base: Any) -> None:
    group = net.graph.groups[name]
    twin = copy.deepcopy(net)
    try:
        with twin.edit() as edit:
            edit.grow(name, max(1, group.size // 4))
    except EditError as error:
        report.refused[f"grow {name}"] = str(error)
        assert gap(base, twin(*batch)) == 0
        return
    report.grown.append(name)
    if twin.history.latest.steps[0].preserves == "function":
        assert gap(base, twin(*batch)) <= EXACT, f"grow {name}"
        if _steady(net, batch):
            assert gap(_run(net, batch, True), _run(twin, batch, True)) <= EXACT, f"grow {name} in training"
        report.preserved.append(name)
    step(twin, batch)


@pytest.fixture
def share_free() -> Callable[[Any], float]:
    """The share of parameters that some free group holds."""

    def share(net: Any) -> float:
        free = {name for name, group in net.graph.groups.items() if group.frozen is None}
        total = held = 0
        for name, spec in net.graph.tensors.items():
            if spec.buffer:
                continue
            count = net.tensor(name).numel()
            total += count
            held += count * any(key in free for layout in spec.dims for key in layout.atoms())
        return held / total

    return share


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)

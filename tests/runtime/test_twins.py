"""Copies of a model's structure are what ``copy.deepcopy`` makes, and nothing of an import is shared with the model."""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphnet as gn
from graphnet.errors import ImportModelError
from graphnet.runtime.twins import twin_of


class Odd(nn.Module):
    """Attributes of many kinds: shared and empty tables, a way back to the parent, a view, a module in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.again = self.first
        self.seen: dict[str, int] = {}
        self.first.seen = self.seen
        self.norm.table = {"parent": [self], "empty": []}
        self.loose = [nn.Linear(4, 2), "text", (1, 2.0)]
        self.register_buffer("view", self.norm.running_mean[:2], persistent=False)
        self.scaled = self.first.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.first(x))
        return out


def same(one: Any, two: Any, known: dict[int, Any]) -> None:
    """Compare two object graphs: values, types, and which things are one."""
    if id(one) in known:
        assert known[id(one)] is two
        return
    known[id(one)] = two
    assert type(one) is type(two)
    if isinstance(one, Tensor):
        assert one is not two
        assert torch.equal(one, two)
        assert one.stride() == two.stride()
    elif isinstance(one, nn.Module):
        assert one is not two
        same(vars(one), vars(two), known)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        assert one is not two
        for key in one:
            same(one[key], two[key], known)
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            same(a, b, known)
    elif isinstance(one, weakref.ref):
        assert one() is two()
    else:
        assert one == two


def test_a_twin_is_a_deep_copy_on_the_same_parameters() -> None:
    model = nn.Sequential(Odd(), nn.Conv2d(1, 2, 1), nn.ModuleDict({"a": nn.LSTM(2, 3)})).eval()
    model[0].train()
    twin = twin_of(model)
    assert [id(parameter) for parameter in twin.parameters()] == [id(parameter) for parameter in model.parameters()]
    parameters = {id(parameter): parameter for parameter in model.parameters()}
    model[0].scaled = model[0].scaled.detach()  # what copy.deepcopy refuses otherwise
    same(copy.deepcopy(model, dict(parameters)), twin, parameters)


def test_tensors_that_share_memory_do_so_in_the_twin() -> None:
    twin = twin_of(Odd())
    twin.norm.running_mean.fill_(3.0)
    assert torch.equal(twin.view, torch.full((2,), 3.0))


def test_a_class_that_copies_itself_does_so() -> None:
    class Own(nn.Module):
        def __deepcopy__(self, memo: dict[int, Any]) -> Own:
            other = Own()
            other.copied = True
            return other

    class Stated(nn.Linear):
        def __setstate__(self, state: dict[str, Any]) -> None:
            super().__setstate__(state | {"set": True})

    twin = twin_of(nn.Sequential(Own(), Stated(2, 2)))
    assert twin[0].copied
    assert twin[1].set


def test_what_cannot_be_copied_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.file = (one for one in range(3))
    with pytest.raises(ImportModelError, match="cannot be copied"):
        twin_of(model)
    assert copy.copy(model).file is model.file


def test_weights_that_a_model_keeps_elsewhere_are_not_the_networks() -> None:
    kept: list[Tensor] = []

    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_exporting():
                kept.append(self.one.weight.t())
            return self.two(self.one(x).relu())

    model = Keeping()
    net = gn.from_torch(model, (torch.randn(2, 3),))
    assert len(kept) >= 1
    with torch.no_grad():
        net.one.weight.zero_()
        net.two.weight.zero_()
    assert torch.equal(kept[0].t(), model.one.weight)
    assert model.two.weight.abs().sum() > 0


def test_a_parameter_that_is_overwritten_with_other_bits_is_refused() -> None:
    class Negating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 4)
            with torch.no_grad():
                self.one.weight.zero_()

        def forward(self, x: Tensor) -> Tensor:
            self.one.weight.data.neg_()  # of zeros: equal, and other bits
            return self.one(x)

    with pytest.raises(ImportModelError, match="overwrites its own parameter"):
        gn.from_torch(Negating(), (torch.randn(2, 3),))


class _Beside(nn.Module):
    """A layer, and a parameter that nothing reads."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self.one, self.beside = nn.Linear(3, 2), parameter

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.one(x)
        return out


@pytest.mark.parametrize(
    ("parameter", "why"),
    [
        (torch.eye(3).to_sparse(), "sparse_coo"),
        (torch.eye(3).to_sparse_csr(), "sparse_csr"),
        (torch.empty(3, device="meta"), "meta device"),
    ],
)
def test_parameters_that_cannot_be_compared_are_refused_for_what_they_are(parameter: Tensor, why: str) -> None:
    with pytest.raises(ImportModelError, match=why):
        gn.from_torch(_Beside(nn.Parameter(parameter)), (torch.randn(2, 3),))


@pytest.mark.parametrize(
    "parameter",
    [
        torch.tensor(1.5),
        torch.ones(3, dtype=torch.bfloat16),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.ones(1).expand(3),
        torch.randn(4, 6)[::2, ::3],
    ],
)
def test_parameters_of_many_kinds_are_compared(parameter: Tensor) -> None:
    net = gn.from_torch(_Beside(nn.Parameter(parameter)), (torch.randn(2, 3),))
    assert torch.equal(net.beside, parameter)


def test_an_unchecked_import_runs_the_model_only_where_a_trace_needs_to_know_what_it_returns() -> None:
    ran: list[int] = []

    def made() -> nn.Module:
        @dataclass
        class Answer:
            value: Tensor

        class Answering(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one = nn.Linear(3, 2)

            def forward(self, x: Tensor) -> Answer:
                if type(x) is Tensor:  # not while it is traced
                    ran.append(1)
                return Answer(self.one(x))

        return Answering()

    x = torch.randn(2, 3)
    for check, runs in ((False, 1), (True, None)):
        ran.clear()
        model = made()  # its answer is a class that torch has not seen
        net = gn.from_torch(model, (x,), check=check)
        assert runs is None or len(ran) == runs
        assert torch.equal(net(x).value, model(x).value)
    ran.clear()
    gn.from_torch(nn.Sequential(nn.Linear(3, 2), Counting(ran)), (x,), check=False)
    assert not ran
    with pytest.raises(ImportModelError, match=r"does not run on the example.*shapes cannot be multiplied"):
        gn.from_torch(nn.Linear(4, 2), (x,), check=False)


class Counting(nn.Module):
    def __init__(self, ran: list[int]) -> None:
        super().__init__()
        self.ran = ran

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor:  # not while it is traced
            self.ran.append(1)
        return x.relu()

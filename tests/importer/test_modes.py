"""Training and evaluation: one reading where both programs are the same, and never where they are not."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphnet as gn
from graphnet.errors import ImportModelError

capture = importlib.import_module("graphnet.compilers.importer.capture")


class Base(nn.Module):
    """Two layers with something between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act, self.other = nn.Linear(4, 6), nn.Linear(6, 2), nn.Sigmoid(), nn.Sigmoid()
        self.register_buffer("one", torch.ones(6))
        self.register_buffer("two", torch.full((6,), 2.0))

    def between(self, x: Tensor) -> Tensor:
        return self.act(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


class OtherCall(Base):
    def between(self, x: Tensor) -> Tensor:
        return x.sin() if self.training else x.cos()


class OtherNumber(Base):
    def between(self, x: Tensor) -> Tensor:
        return x * (2 if self.training else 3)


class OtherKeyword(Base):
    def between(self, x: Tensor) -> Tensor:
        return torch.add(x, x, alpha=1.5 if self.training else 2.5)


class OtherKindOfNumber(Base):
    def between(self, x: Tensor) -> Tensor:
        return (x > 0) * (True if self.training else 1) * x


class OtherTypeOfNumber(Base):
    def between(self, x: Tensor) -> Tensor:
        return x * (2 if self.training else 2.0)


class OtherOperand(Base):
    def between(self, x: Tensor) -> Tensor:
        one, two = x.sin(), x.cos()
        return one - two if self.training else two - one


class OtherBuffer(Base):
    def between(self, x: Tensor) -> Tensor:
        return x * (self.one if self.training else self.two)


class OtherConstant(Base):
    def between(self, x: Tensor) -> Tensor:
        return x * (torch.tensor(1.5) if self.training else torch.tensor(2.5))


class OtherModule(Base):
    def between(self, x: Tensor) -> Tensor:
        return (self.act if self.training else self.other)(x)


class OtherResult(Base):
    def forward(self, x: Tensor) -> Any:
        x = self.between(self.a(x))
        y = self.b(x)
        return (y, y) if self.training else (y, x[:, :2])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The programs that are read."""
    found: list[Any] = []
    original = capture._Reader.program

    def program(self: Any) -> Any:
        found.append(original(self))
        return found[-1]

    monkeypatch.setattr(capture._Reader, "program", program)
    return found


def exact(model: nn.Module) -> None:
    """In both modes, imported without a check."""
    model.double()
    x = torch.randn(3, 4).double()
    net = gn.from_torch(model, (x,), check=False)
    for training in (True, False):
        model.train(training)
        net.train(training)
        torch.testing.assert_close(net(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("make", [Base, lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))])
def test_a_model_that_is_the_same_in_both_modes_is_read_once(make: Callable[[], nn.Module], read: list[Any]) -> None:
    exact(make())
    assert len(read) == 1


@pytest.mark.parametrize(
    "make",
    [OtherCall, OtherNumber, OtherKeyword, OtherKindOfNumber, OtherTypeOfNumber,
     OtherOperand, OtherBuffer, OtherConstant, OtherModule,
     OtherResult],
)  # fmt: skip
def test_a_model_that_differs_is_read_in_both_modes(make: Callable[[], nn.Module], read: list[Any]) -> None:
    exact(make())
    assert len(read) == 2


def test_a_choice_by_size_in_one_mode_is_a_condition() -> None:
    for training in (True, False):

        class Chooses(Base):
            mode = training

            def between(self, x: Tensor) -> Tensor:
                return x.sin() if self.training is self.mode and x.shape[0] > 7 else x.cos()

        net = gn.from_torch(Chooses(), (torch.randn(3, 4),), check=False)
        assert [str(condition) for condition in net.calling.conditions] == ["batch <= 7"]
        with pytest.raises(ImportModelError, match="would do something else for batch = 9"):
            net(torch.randn(9, 4))


@pytest.mark.parametrize("mode", [True, False])
def test_a_result_that_is_put_together_otherwise_in_one_mode_is_refused(mode: bool) -> None:
    class Packs(Base):
        def forward(self, x: Tensor) -> Any:
            y = self.b(self.a(x))
            return {"y": y} if self.training is mode else [y]

    with pytest.raises(ImportModelError, match="puts them together otherwise"):
        gn.from_torch(Packs(), (torch.randn(3, 4),), check=False)


@pytest.mark.parametrize("mode", [True, False])
def test_a_size_that_one_mode_fixes_is_not_free(mode: bool) -> None:
    class Fixes(Base):
        def between(self, x: Tensor) -> Tensor:
            assert self.training is not mode or x.shape[1] == 5
            return self.act(x)

    with pytest.raises(ImportModelError, match="another shape or type in training"):
        gn.from_torch(Fixes(), (torch.randn(3, 5, 4),), check=False)

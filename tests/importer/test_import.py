"""What an import keeps, follows, and refuses."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - the plain module is what users pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphnet as gn
from graphnet.edit.plan import Step
from graphnet.errors import EditError, FrozenGroupError, ImportModelError


class Two(nn.Module):
    """Two linear layers, and whatever a subclass does between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 3)

    def between(self, x: Tensor) -> Tensor:
        return x.relu()

    def forward(self, x: Tensor) -> Any:
        return self.b(self.between(self.a(x)))


class InPlace(nn.Module):
    """In-place calls on whole tensors, one of them on what a residual sum reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.b, self.c = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.a(x)))
        y = self.b(x)
        y += self.c(x)
        y.mul_(2).clamp_(max=1.5)
        return F.leaky_relu_(y)


class ThroughViews(Two):
    """Writes through views of a tensor that is read afterwards."""

    def between(self, x: Tensor) -> Tensor:
        x[:, 0] = 0.5
        x[:, 1:3] *= 2
        x.view(-1, 2, 3)[:, 1].add_(1.0)
        rows = x.t()
        rows[2].zero_()
        return x


class Modes(Two):
    """Everything that may differ between training and evaluation: noise, dropout by flag, an extra layer, a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(6, 6)

    def between(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.3, self.training)
        if self.training:
            keep = x.new_empty(x.shape[0], 1).bernoulli_(0.5)
            x = x / 0.5 * keep + torch.randn_like(x) * 0.1
            x = self.extra(x) + x
        return x * (0.5 if self.training else 1.0)


class FrozenNorm(nn.BatchNorm2d):
    """Stays in evaluation mode."""

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(False)
        return self


class Norms(nn.Module):
    """A norm that never trains, one without statistics, an instance norm, and norms with fixed scales."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.frozen, self.b = nn.Conv2d(3, 6, 3), FrozenNorm(6), nn.Conv2d(6, 4, 1)
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)
        self.instance, self.volume = nn.InstanceNorm2d(4, affine=True), nn.BatchNorm3d(4)
        self.plain = nn.GroupNorm(2, 4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(self.batch(self.b(self.frozen(self.a(x)).relu())))
        return self.plain(self.volume(x.unsqueeze(2)).squeeze(2))


class Recurrent(nn.Module):
    """An LSTM between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.rnn, self.b, self.c = (
            nn.Linear(3, 4),
            nn.GRU(4, 5, batch_first=True),
            nn.Linear(5, 4),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.rnn(self.a(x))[0][:, -1]).relu())


class Adapted(nn.Linear):
    """A linear layer with a low-rank adapter inside, its own weight fixed."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))
        self.drop = nn.Dropout(0.2)
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.drop(x) @ self.down.T @ self.up.T * 0.5


class Adapters(Two):
    """Two adapted layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Adapted(8, 6), Adapted(6, 3)


class WeightNorm(Two):
    """Weight norm, as a parametrization and as the hook of old."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Linear(8, 6))


def image() -> tuple[Any, ...]:
    return (torch.randn(3, 3, 5, 5),)


def row() -> tuple[Any, ...]:
    return (torch.randn(3, 8),)


@pytest.mark.parametrize(
    ("make", "inputs", "free"),
    [
        (InPlace, image, ["a", "b"]),
        (ThroughViews, row, []),
        (Modes, row, ["a"]),
        (Norms, image, ["a"]),
        (Recurrent, lambda: (torch.randn(3, 4, 3),), ["a", "rnn", "b"]),
        (Adapters, row, ["a"]),
        (WeightNorm, row, ["a"]),
    ],
)
def test_constructs_are_exact_in_both_modes(
    make: Callable[[], nn.Module], inputs: Callable[[], tuple[Any, ...]], free: list[str], exercise: Callable[..., Any]
) -> None:
    report = exercise(make(), inputs())
    assert set(free) <= set(report.pruned)


def test_frozen_groups_are_listed_with_op_and_reason() -> None:
    net = gn.from_torch(Recurrent(), (torch.randn(2, 4, 3),))
    groups = net.graph.groups
    assert str(groups["rnn.weight_hh_l0.dim0.fixed"].frozen) == "they are the gates of a recurrent layer (op 'rnn')"
    with pytest.raises(FrozenGroupError, match="gates of a recurrent layer"), net.edit() as edit:
        edit.prune("rnn.weight_hh_l0.dim0.fixed", lowest=1)
    assert all(groups[name].frozen is None for name in ("a", "rnn", "b"))


def test_an_op_without_a_rule_freezes_what_it_touches_and_no_more() -> None:
    class Spectrum(Two):
        def between(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x) * 2, n=6)

    net = gn.from_torch(nn.Sequential(Spectrum(), nn.Linear(3, 2)), row())
    assert "aten.fft_rfft.default has no layout rule" in str(net.graph.groups["0.a"].frozen)
    assert net.graph.groups["0.b"].frozen is None


# -- calling -------------------------------------------------------------------------------------------------------


@dataclass
class Pair:
    """A result of two parts."""

    hidden: Tensor
    logits: Tensor


class Called(Two):
    """Optional and nested arguments, and a dataclass as the result."""

    def forward(self, x: Tensor, more: Any = None, *, scale: float = 1.0, twice: bool = False) -> Any:
        hidden = self.a(x).relu() * scale
        for other in (more or {}).get("others", []):
            hidden = hidden + self.a(other)
        return Pair(hidden, self.b(hidden * 2 if twice else hidden))


def test_a_call_may_be_written_in_any_way_and_gives_what_the_model_gives() -> None:
    model = Called().eval()
    x, more = torch.randn(2, 8), {"others": [torch.randn(2, 8), torch.randn(2, 8)]}
    net = gn.from_torch(model, (x, more), {"twice": True})
    assert net.training is False
    expected = model(x, more, twice=True)
    for found in (net(x, more, twice=True), net(x=x, more=more, twice=True), net(x, more, scale=1.0, twice=True)):
        assert isinstance(found, Pair)
        assert torch.equal(found.logits, expected.logits)
    with pytest.raises(ImportModelError, match="imported for calls with other arguments"):
        net(x, twice=True)
    with pytest.raises(ImportModelError, match="imported with the argument True"):
        net(x, more, twice=1)
    with pytest.raises(ImportModelError, match="cannot be called like this"):
        net(x, more, thrice=True)


def test_a_shape_that_was_not_traced_is_refused_and_says_so() -> None:
    net = gn.from_torch(nn.Conv2d(3, 4, 3), (torch.randn(1, 3, 8, 8),))
    assert net(torch.randn(5, 3, 8, 8)).shape == (5, 4, 6, 6)
    with pytest.raises(
        ImportModelError, match=r"shape \[1, 3, 9, 8\]; the model was traced for \[batch .now 1., 3, 8, 8\]"
    ):
        net(torch.randn(1, 3, 9, 8))
    with pytest.raises(ImportModelError, match="a tensor, not a float"):
        net(1.0)
    open_net = gn.from_torch(
        nn.Conv2d(3, 4, 3, padding=1), (torch.randn(2, 3, 8, 8),),
        dynamic_shapes=({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},),
    )  # fmt: skip
    assert open_net(torch.randn(1, 3, 9, 12)).shape == (1, 4, 9, 12)


def test_the_plain_module_is_called_as_the_model_and_needs_no_graphnet() -> None:
    model = Called().eval()
    x, more = torch.randn(2, 8), {"others": [torch.randn(2, 8)]}
    net = gn.from_torch(model, (x, more))
    with net.edit() as edit:
        edit.prune("a", keep=3)
    plain = net.to_torch()
    found = plain(x, more=more)
    assert isinstance(found, Pair)
    assert torch.equal(found.logits, net(x, more).logits)
    data = pickle.dumps(plain)
    assert b"graphnet" not in data
    assert torch.equal(pickle.loads(data)(x, more).logits, found.logits)
    assert list(plain.state_dict()) == list(model.state_dict())


# -- what is kept --------------------------------------------------------------------------------------------------


class Held(nn.Module):
    """Buffers that are saved and that are not, tensors that nothing reads, and one tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.a = nn.Linear(6, 3), nn.Linear(8, 6)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("gain", torch.rand(6))
        self.register_buffer("shift", torch.rand(6), persistent=False)
        self.constant = torch.rand(6)
        self.again = self.a
        self.twin = nn.Linear(6, 3)
        self.twin.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) * self.gain + self.shift * self.constant
        return self.b(x) + self.again(torch.ones(len(x), 8, dtype=x.dtype)).mean() + self.twin(x)


def test_tensors_keep_names_order_ties_and_values() -> None:
    model = Held()
    net = gn.from_torch(model, row())
    assert list(net.state_dict()) == list(model.state_dict())
    assert all(torch.equal(one, net.state_dict()[name]) for name, one in model.state_dict().items())
    assert net.b.weight is net.twin.weight
    assert net.a.weight is net.again.weight
    assert not {id(p) for p in model.parameters()} & {id(p) for p in net.parameters()}
    assert "no op reads the tensor" in str(net.graph.groups["unused.weight.dim0"].frozen)
    assert "cannot grow" in str(net.graph.groups["a"])
    with pytest.raises(FrozenGroupError, match="nothing says a new unit's"), net.edit() as edit:
        edit.grow("a", 1)
    with net.edit() as edit:
        edit.prune("a", lowest=2)
    assert net.b.weight is net.twin.weight
    assert net.gain.shape == net.shift.shape == (4,)
    assert "shift" not in net.state_dict()
    copied = copy.deepcopy(net)
    x = row()[0]
    assert torch.equal(copied(x), net(x))
    again = pickle.loads(pickle.dumps(net))
    assert torch.equal(again(x), net(x))


def test_tensors_that_stand_alone_go_where_the_network_goes() -> None:
    class Scaled(Two):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.rand(6))
            self.register_buffer("offset", torch.rand(6))

        def between(self, x: Tensor) -> Tensor:
            return (x * self.gain + self.offset).relu()

    model = Scaled()
    net = gn.from_torch(model, row()).double()
    x = row()[0].double()
    assert torch.equal(net(x), model.double()(x))
    with net.edit() as edit:
        edit.prune("a", lowest=2)
    assert net.offset.dtype == torch.float64
    assert net.offset.shape == net.gain.shape == (4,)


def test_modes_of_modules_are_kept() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))
    model[1].eval()
    net = gn.from_torch(model, row())
    assert [net.get_submodule(name).training for name in "0123"] == [True, False, True, True]
    assert [module.training for module in model] == [True, False, True, True]


def test_a_shared_import_goes_on_with_the_models_own_optimizer() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    x, y = torch.randn(16, 8), torch.randint(0, 3, (16,))

    def train(net: Any, optimizer: Any, scheduler: Any, steps: int) -> None:
        for at in range(steps):
            torch.manual_seed(at)
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            scheduler.step()

    train(model, optimizer, scheduler, 4)
    other = copy.deepcopy(model)
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-2, amsgrad=True)
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    later = torch.optim.lr_scheduler.ExponentialLR(theirs, 0.9)
    later.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    net = gn.from_torch(model, (x,), share=True)
    assert all(one is two for one, two in zip(model.parameters(), net.parameters(), strict=True))
    assert net.get_submodule("1").running_mean is model[1].running_mean
    net.attach(optimizer)
    train(net, optimizer, scheduler, 5)
    train(other, theirs, later, 5)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in other.state_dict().items())
    with net.edit() as edit:
        edit.grow("0", 3, preserves="function")
    train(net, optimizer, scheduler, 2)
    assert optimizer.state[net.get_parameter("0.weight")]["exp_avg"].shape == (9, 8)


# -- claims --------------------------------------------------------------------------------------------------------


def test_a_claim_that_the_example_disproves_changes_nothing() -> None:
    net = gn.from_torch(Two().eval(), row())
    state = {name: value.clone() for name, value in net.state_dict().items()}

    def scale(plan: Any, by: float) -> None:
        plan.staged("b.weight").write([None, None], plan.value("b.weight") * by)
        plan.steps.append(Step("scale", None, {"by": by}, preserves="function"))

    with pytest.raises(EditError, match="on the stored example the output"), net.edit() as edit:
        edit.apply(scale, 1.5)
    assert net.version == 0
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    with net.edit() as edit:
        edit.apply(scale, 1.0)
    assert net.version == 1
    net.double()  # and the example with it
    with net.edit() as edit:
        edit.grow("a", 2, preserves="function")


def test_a_model_that_draws_random_numbers_in_evaluation_cannot_be_checked_on_an_example() -> None:
    class Always(Two):
        def between(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5)

    net = gn.from_torch(Always(), row())
    state = torch.random.get_rng_state()
    with net.edit() as edit:
        edit.grow("a", 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert net.history.latest.steps[0].preserves == "function"


# -- refusals ------------------------------------------------------------------------------------------------------


class Counting(Two):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def between(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return x * self.calls


class OtherResult(Two):
    def forward(self, x: Tensor) -> Any:
        hidden = self.a(x)
        return (self.b(hidden), hidden) if self.training else self.b(hidden)


class OnData(Two):
    def between(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class DataSized(Two):
    def between(self, x: Tensor) -> Tensor:
        return x[x[:, 0] > 0]


class Branching(Two):
    def between(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,))


class Named(Two):
    def __init__(self) -> None:
        super().__init__()
        self.graph = nn.Linear(6, 6)

    def between(self, x: Tensor) -> Tensor:
        return self.graph(x)


class Spare(Two):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.b(self.a(x))


@pytest.mark.parametrize(
    ("make", "args", "said"),
    [
        (Counting, row, r"overwrites its own buffer 'calls'"),
        (OtherResult, row, r"returns 2 value\(s\) in training and 1 in evaluation"),
        (OnData, row, "cannot be traced.*data-dependent"),
        (DataSized, row, "a size depends on the data"),
        (Branching, row, "the program uses cond"),
        (Named, row, "'graph' among its modules or tensors"),
        (Spare, lambda: (torch.randn(2, 8), torch.randn(2, 3)), "does not use its input"),
        (Two, lambda: (torch.randn(2, 7),), "does not run on the example"),
        (Two, lambda: (torch.randn(2, 8), 3), "cannot be called like this"),
        (Two, lambda: 3, "a tuple of what the model is called with"),
        (lambda: nn.DataParallel(Two()), row, r"import model\.module"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), row, "has no shape yet"),
        (lambda: gn.from_torch(Two(), row()), row, "a graphnet network already"),
        (lambda: "model", row, "takes a torch.nn.Module"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_a_reason(
    make: Callable[[], Any], args: Callable[[], Any], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make()
    training = [m.training for m in model.modules()] if isinstance(model, nn.Module) else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImportModelError, match=said):
            gn.from_torch(model, args())
    assert training is None or [m.training for m in model.modules()] == training
    assert capfd.readouterr().out == ""


def test_hooks_are_followed_once_and_said() -> None:
    model = Two()
    model.a.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.warns(UserWarning, match="forward hooks on a"):
        net = gn.from_torch(model, row())
    x = row()[0]
    assert torch.equal(net(x), model(x))


def test_an_edit_error_reaches_the_user_and_leaves_the_network() -> None:
    net = gn.from_torch(Two(), row())
    with pytest.raises(EditError), net.edit() as edit:
        edit.prune("a", lowest=6)
    assert net.version == 0


def test_a_weight_has_no_dimension_that_changes_from_batch_to_batch(exercise: Callable[..., Any]) -> None:
    """torch.export takes the 2 of the view for a part of the row's length, which it was in the example."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.Linear(2, 7), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(1, 7, dtype=x.dtype)
            for step in x.view(-1, 3, 2).unbind(1):
                state = (self.cell(step) + state).tanh()
            return self.head(state)

    report = exercise(Steps(), (torch.randn(3, 6),))
    assert not report.refused
    for spec in report.net.graph.tensors.values():
        assert report.net.graph.shape(spec) == tuple(report.net.tensor(spec.name).shape)


def test_what_is_summed_over_is_not_broadcast(exercise: Callable[..., Any]) -> None:
    """A product takes one column of a weight with one unit of a part, as Mamba does: that unit cannot become two."""

    class Rank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.head = nn.Linear(6, 9), nn.Linear(8, 4)
            self.step = nn.Parameter(torch.randn(4, 1))

        def forward(self, x: Tensor) -> Tensor:
            rank, rest = self.both(x).split([1, 8], -1)
            return (self.step @ rank.unsqueeze(-1)).squeeze(-1) + self.head(rest)

    report = exercise(Rank(), (torch.randn(3, 6),))
    assert not report.refused
    parts = {group.size: group.frozen for name, group in report.net.graph.groups.items() if name.startswith("both")}
    assert parts[8] is None
    assert parts[1] is not None

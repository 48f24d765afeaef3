"""Recurrent layers and cells: the units of the hidden state are edited with all of their gates, exactly."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import graphnet as gn
from graphnet.edit.initialisers import INITIALISERS
from graphnet.errors import EditError

KINDS: dict[str, Callable[..., nn.Module]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}
CELLS: dict[str, Callable[..., nn.Module]] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "tanh": nn.RNNCell}
FORMS = [
    *itertools.product(("lstm", "gru"), (1, 2), (False, True), (0,)),
    ("lstm", 2, True, 2),
    ("lstm", 1, False, 2),
    ("tanh", 2, True, 0),
    ("relu", 1, False, 0),
]


class Sequence(nn.Module):
    """A recurrent layer between two linear ones; ``last`` reads the state at the end too."""

    def __init__(
        self, kind: str, layers: int, both: bool, projected: int, *, last: bool = False, **options: Any
    ) -> None:
        super().__init__()
        self.first = options.get("batch_first", False)
        self.last, self.before = last, nn.Linear(3, 4)
        extra = {"proj_size": projected} if projected else {}
        self.rnn = KINDS[kind](4, 6, num_layers=layers, bidirectional=both, **extra, **options)
        shown = projected or 6
        self.after, self.end = nn.Linear(shown * (1 + both), 2), nn.Linear(shown, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        y, state = self.rnn(x if self.first else x.transpose(0, 1))
        y = self.after(y).mean(1 if self.first else 0)
        return y + self.end((state[0] if isinstance(state, tuple) else state)[-1]) if self.last else y


class Steps(nn.Module):
    """A cell that is called for each step."""

    def __init__(self, kind: str, bias: bool) -> None:
        super().__init__()
        self.before, self.cell, self.after = nn.Linear(3, 4), CELLS[kind](4, 6, bias=bias), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.before(x).unbind(1):
            state = self.cell(step, state)
        return self.after(state[0] if isinstance(state, tuple) else state)


class Coder(nn.Module):
    """A decoder that goes on from the encoder's state; the encoder starts from a learned one."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 1, 5))
        self.encoder, self.decoder = nn.GRU(3, 5, batch_first=True), nn.GRU(2, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        _, state = self.encoder(x, self.start.expand(-1, x.shape[0], -1).contiguous())
        return self.head(self.decoder(y, state)[0])


def row() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 3),)


@pytest.mark.parametrize(("kind", "layers", "both", "projected"), FORMS)
def test_layers_are_pruned_and_grown_exactly(
    kind: str, layers: int, both: bool, projected: int, exercise: Callable[..., Any]
) -> None:
    free = {"before", "rnn.hidden" if both and not projected else "rnn"}
    free |= {"rnn.projection" if both else "rnn1"} if projected else set()
    for options in ({"batch_first": True}, {"bias": False, "last": True}):
        report = exercise(Sequence(kind, layers, both, projected, **options), row())
        assert free <= set(report.masked) & set(report.preserved), (report.masked, report.preserved)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cells_are_pruned_and_grown_exactly(kind: str, bias: bool, exercise: Callable[..., Any]) -> None:
    report = exercise(Steps(kind, bias), row())
    assert {"before", "cell"} <= set(report.masked) & set(report.preserved)


def test_a_state_that_is_handed_on_makes_one_group(exercise: Callable[..., Any]) -> None:
    report = exercise(Coder(), (torch.randn(2, 4, 3), torch.randn(2, 3, 2)))
    (name,) = {name for name, group in report.net.graph.groups.items() if group.frozen is None and not group.output}
    held = {spec.name for spec in report.net.graph.users[name]}
    assert {"start", "encoder.weight_hh_l0", "decoder.weight_hh_l0", "head.weight"} <= held
    assert name in report.masked
    assert name in report.preserved


@pytest.mark.parametrize("kind", KINDS)
def test_units_are_permuted_split_and_merged_with_all_of_their_gates(kind: str) -> None:
    model = Sequence(kind, 2, True, 0, batch_first=True).double().eval()
    x = torch.randn(4, 3, 3).double()
    net = gn.from_torch(model, (x,))
    ids = net.graph.groups["rnn.hidden"].ids
    with net.edit() as edit:
        edit.permute("rnn.hidden", order=ids[::-1], preserves="function")
    assert torch.equal(net.rnn.weight_hh_l0, model.rnn.weight_hh_l0.unflatten(0, (-1, 6)).flip(1, 2).flatten(0, 1))
    torch.testing.assert_close(net(x), model(x), rtol=1e-12, atol=1e-12)
    with net.edit() as edit:
        (born,) = edit.split("rnn.hidden", units=[ids[1]], preserves="function")
    torch.testing.assert_close(net(x), model(x), rtol=1e-12, atol=1e-12)
    with net.edit() as edit:
        edit.merge("rnn.hidden", pairs=[(ids[1], born)], preserves="function")
    assert net.rnn.weight_ih_l1.shape == model.rnn.weight_ih_l1.shape
    torch.testing.assert_close(net(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("init", sorted(INITIALISERS))
def test_no_initialiser_claims_more_of_a_recurrent_layer_than_is_true(init: str) -> None:
    model = Sequence("gru", 1, False, 0, batch_first=True).double().eval()
    x, y = torch.randn(8, 3, 3).double(), torch.randn(8, 2).double()
    net = gn.from_torch(model, (x,))
    try:
        with net.edit() as edit:
            edit.grow("rnn", 2, init=init, batch=(x, y), loss=nn.functional.mse_loss)
    except EditError:
        assert net.version == 0
        torch.testing.assert_close(net(x), model(x), rtol=0, atol=0)
        return
    if net.history.latest.steps[0].preserves == "function":
        torch.testing.assert_close(net(x), model(x), rtol=1e-12, atol=1e-12)
        other = torch.randn(5, 3, 3).double() * 3
        torch.testing.assert_close(net(other), model(other), rtol=1e-12, atol=1e-12)


def test_a_pruned_layer_is_a_layer_of_its_new_size() -> None:
    model = Sequence("lstm", 2, True, 3, last=True).double()
    x = torch.randn(4, 3, 3).double()
    net = gn.from_torch(model, (x,))
    with net.edit() as edit:
        edit.prune("rnn", lowest=2)
        edit.prune("rnn.projection", lowest=1)
        edit.grow("before", 1)
    smaller = Sequence("lstm", 2, True, 2, last=True).double()
    smaller.before, smaller.rnn = nn.Linear(3, 5), nn.LSTM(5, 4, num_layers=2, bidirectional=True, proj_size=2)
    smaller.double().load_state_dict(net.state_dict())
    torch.testing.assert_close(smaller(x), net(x), rtol=1e-12, atol=1e-12)
    plain = net.to_torch()
    torch.testing.assert_close(plain(x), net(x), rtol=0, atol=0)
    exported = torch.export.export(plain.eval(), (x,), strict=False).module()
    torch.testing.assert_close(exported(x), smaller.eval()(x), rtol=1e-12, atol=1e-12)


def test_training_goes_on_after_an_edit_as_in_a_copy_that_was_born_so() -> None:
    model = Sequence("lstm", 1, False, 0, batch_first=True).double()
    x, y = torch.randn(8, 3, 3).double(), torch.randn(8, 2).double()
    net = gn.from_torch(model, (x,))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    net.attach(optimizer)

    def train(steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
        return float(loss)

    before = train(5)
    with net.edit() as edit:
        edit.grow("rnn", 4, preserves="function")
    moments = optimizer.state[net.rnn.weight_hh_l0]["exp_avg"]
    assert moments.shape == (40, 10)
    assert bool(moments.unflatten(0, (4, 10))[:, :6, :6].any())
    assert not bool(moments.unflatten(0, (4, 10))[:, 6:].any())
    assert train(60) < before


@pytest.mark.parametrize(("kind", "layers", "both", "projected"), FORMS)
def test_operations_are_counted_as_torch_counts_them(kind: str, layers: int, both: bool, projected: int) -> None:
    model, x = Sequence(kind, layers, both, projected, last=True).double().eval(), row()[0].double()
    net = gn.from_torch(model, (x,))
    with FlopCounterMode(display=False) as counter:  # it knows nothing of the kernel for a float32 LSTM
        model(x)
    assert net.graph.cost(batch=2).flops == counter.get_total_flops()


def test_every_tensor_says_what_it_does_with_the_units() -> None:
    graph = gn.from_torch(Coder(), (torch.randn(2, 4, 3), torch.randn(2, 3, 2))).graph
    said = {name: (spec.kind, spec.roles) for name, spec in graph.tensors.items()}
    assert said["start"] == ("table", ("slot", "slot", "write"))
    for layer in ("encoder", "decoder"):
        assert said[f"{layer}.weight_ih_l0"] == said[f"{layer}.weight_hh_l0"] == ("weight", ("write", "read"))
        assert said[f"{layer}.bias_ih_l0"] == said[f"{layer}.bias_hh_l0"] == ("bias", ("write",))
    assert not any(spec.shared for node in graph.nodes.values() for spec in node.tensors)


def test_units_along_the_batch_are_those_of_the_state() -> None:
    class Columns(nn.Module):
        """What a layer takes for samples are the units of another."""

        def __init__(self) -> None:
            super().__init__()
            self.before, self.cell, self.after = nn.Linear(3, 4), nn.GRUCell(1, 5), nn.Linear(5, 2)
            self.start = nn.Parameter(torch.randn(4, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.cell(self.before(x).mean((0, 1))[:, None], self.start))

    graph = gn.from_torch(Columns(), row()).graph
    assert {"before.weight", "start"} <= {spec.name for spec in graph.users["before"]}


def test_a_projection_keeps_fewer_units_than_it_is_made_of() -> None:
    model = Sequence("lstm", 1, True, 3).double()
    x = torch.randn(4, 3, 3).double()
    net = gn.from_torch(model, (x,))
    for group, count in (("rnn", 3), ("rnn", 1)):
        with pytest.raises(EditError, match="a projection of"), net.edit() as edit:
            edit.prune(group, keep=count)
    with pytest.raises(EditError, match="a projection of 6 units onto 6"), net.edit() as edit:
        edit.grow("rnn.projection", 3)
    torch.testing.assert_close(net(x), model(x), rtol=0, atol=0)
    with net.edit() as edit:
        edit.prune("rnn.projection", keep=1)
        edit.prune("rnn", keep=2)
    with pytest.raises(gn.GraphnetError), net.edit() as edit:
        edit.prune("rnn", keep=1)
    assert net(x).shape == (4, 2)


def test_a_state_given_by_the_caller_has_a_size_that_stays() -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            y, state = self.rnn(x, state)
            return self.head(y), state

    net = gn.from_torch(Stateful(), (torch.randn(2, 4, 3), torch.zeros(1, 2, 5)))
    frozen = [group for name, group in net.graph.groups.items() if name.startswith("rnn")]
    assert frozen
    assert all(group.frozen is not None for group in frozen)
    twin = copy.deepcopy(net)
    for group in frozen:
        with pytest.raises(gn.GraphnetError, match="cannot be edited"), twin.edit() as edit:
            edit.prune(group.name, lowest=1)

"""Optimizers whose updates mix units, or whose gradients are sparse: what holds exactly, and the stated bounds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import LBFGS, SGD, Adafactor, Adam, AdamW, Muon, SparseAdam

import graphnet as gn
from graphnet.edit.action import write_block
from graphnet.runtime.factored import settle
from graphnet.testing import random_network, sample, state_of, train, wave_loss
from graphnet.testing.compare import check_bits, positions, survivors, take, twin_of

SEQUENCE = {
    "name": "conv1d",
    "inputs": {"x": {"shape": [3, 8]}},
    "ops": [
        {"name": "c1", "op": "conv1d", "out": 5, "kernel": 3, "padding": 1},
        {"name": "a1", "op": "gelu"},
        {"name": "c2", "op": "conv1d", "out": 4, "kernel": 3, "padding": 1},
        {"name": "flat", "op": "flatten"},
        {"name": "head", "op": "linear", "out": 3},
    ],
}
GRAPHS: dict[str, Any] = {
    "mlp": lambda: gn.mlp([4, 6, 5, 3], activation="gelu"),
    "conv1d": lambda: gn.load(SEQUENCE),
    "conv2d": lambda: gn.convnet((2, 4, 4), channels=(4, 6), hidden=(5,), norm="batch", activation="gelu"),
}
GROUPS = {"mlp": ("fc1", "fc2"), "conv1d": ("c1", "c2"), "conv2d": ("conv1", "conv2")}


def blocks(old: gn.Graph, new: gn.Graph) -> dict[str, tuple[Any, Any]]:
    ids = survivors(old, new)
    return {n: (positions(old, n, ids), positions(new, n, ids)) for n, s in new.tensors.items() if not s.buffer}


def same_gradients(net: gn.Network, twin: gn.Network, *, newborn: float = 1.0) -> None:
    """Random gradients, the same for the units that stay; newborn ones times a factor."""
    for name, (before, after) in blocks(twin.graph, net.graph).items():
        one, two = twin.get_parameter(name), net.get_parameter(name)
        one.grad, two.grad = torch.randn_like(one), newborn * torch.randn_like(two)
        write_block(two.grad, after, take(one.grad, before))


# -- Adafactor ----------------------------------------------------------------------------------------------------


def estimate(state: dict[str, Tensor]) -> Tensor:
    """The second moments that Adafactor takes from what it keeps."""
    if "variance" in state:
        return state["variance"]
    return state["row_var"] @ state["col_var"] / state["row_var"].mean(dim=-2, keepdim=True)


def adafactor(graph: str, **options: Any) -> tuple[gn.Network, Adafactor]:
    net = random_network(GRAPHS[graph](), 0)
    optimizer = Adafactor(net.parameters(), **({"lr": 0.05, "weight_decay": 0.05} | options))
    net.attach(optimizer)
    train(net, optimizer, 4)
    return net, optimizer


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("foreach", [False, True])
def test_adafactors_second_moments_of_what_stays_are_unchanged(graph: str, foreach: bool) -> None:
    net, optimizer = adafactor(graph, foreach=foreach)
    twin = twin_of(net)
    first, second = GROUPS[graph]
    with net.edit() as edit:
        edit.prune(first, units=[1, 3])
        edit.grow(first, 3, init="kaiming")
        edit.prune(second, units=[0])
        edit.grow(second, 2, init="kaiming")
    for name, (before, after) in blocks(twin.graph, net.graph).items():
        was = estimate(twin.attached[0].state[twin.get_parameter(name)])
        held = optimizer.state[net.get_parameter(name)]
        torch.testing.assert_close(take(estimate(held), after), take(was, before), rtol=1e-12, atol=0, msg=name)
        assert all((value > 0).all() for key, value in held.items() if key != "step")
    train(net, optimizer, 2)  # shapes are those that Adafactor wants


@pytest.mark.parametrize("graph", GRAPHS)
def test_growth_leaves_adafactors_factors_alone_and_a_newborn_gets_their_mean(graph: str) -> None:
    net, optimizer = adafactor(graph)
    name = {"mlp": "fc2.weight", "conv1d": "c2.weight", "conv2d": "conv2.weight"}[graph]
    before, bits = {k: v.clone() for k, v in optimizer.state[net.get_parameter(name)].items()}, state_of(net)
    first, second = GROUPS[graph]
    with net.edit() as edit:
        born = {first: edit.grow(first, 3, state="aged"), second: edit.grow(second, 2, state="cold")}
    after = optimizer.state[net.get_parameter(name)]
    for key, value in before.items():
        if key == "step":
            continue
        kept = after[key]
        for dim, size in enumerate(value.shape):
            if kept.shape[dim] > size:
                mean = kept.narrow(dim, 0, size).mean(dim, keepdim=True)
                rest = kept.narrow(dim, size, kept.shape[dim] - size)
                torch.testing.assert_close(rest, mean.expand_as(rest), rtol=1e-12, atol=0)
            kept = kept.narrow(dim, 0, size)
        assert torch.equal(kept, value), key
    with net.edit() as edit:
        for group, units in born.items():
            edit.prune(group, units=units)
    check_bits(bits, {k: v for k, v in state_of(net).items() if k in bits}, "grown and pruned again")


def test_after_a_row_has_gone_the_column_means_are_those_of_the_rows_that_stay() -> None:
    net, optimizer = adafactor("mlp")
    whole = estimate(optimizer.state[net.fc2.weight])
    with net.edit() as edit:
        edit.prune("fc1", units=[0, 4])
        edit.prune("fc2", units=[2])
    left = whole[[0, 1, 3, 4]][:, [1, 2, 3, 5]]
    held = optimizer.state[net.fc2.weight]
    torch.testing.assert_close(held["row_var"], left.mean(1, keepdim=True), rtol=1e-10, atol=0)
    torch.testing.assert_close(held["col_var"], left.mean(0, keepdim=True), rtol=1e-10, atol=0)


def test_replicas_have_the_second_moments_of_their_gradients() -> None:
    """A copy's gradients are its share of the donor's: so is the estimate, squared; outgoing ones are the donor's."""
    net, optimizer = adafactor("mlp")
    rows, columns = (estimate(optimizer.state[p]).clone() for p in (net.fc1.weight, net.fc2.weight))
    fc2 = net.fc2.weight.detach().clone()
    with net.edit() as edit:
        edit.grow("fc1", 4, init="net2wider", split="random", state="scaled")
    donors = [next(d for d in range(6) if torch.equal(row, net.fc1.weight[d])) for row in net.fc1.weight]
    shares = torch.stack([(net.fc2.weight[:, i] / fc2[:, d]).mean() for i, d in enumerate(donors)]).detach()
    assert len({round(float(share), 6) for share in shares}) > 4
    wide = estimate(optimizer.state[net.fc1.weight])
    torch.testing.assert_close(wide, rows[donors] * shares[:, None] ** 2, rtol=1e-10, atol=0)
    torch.testing.assert_close(estimate(optimizer.state[net.fc2.weight]), columns[:, donors], rtol=1e-10, atol=0)


def test_a_slice_that_a_policy_wrote_in_part_is_completed() -> None:
    found = settle({"variance": torch.tensor([[1.0, 3.0], [-1.0, 5.0]])})["variance"]
    assert found.tolist() == [[1.0, 3.0], [3.0, 5.0]]


@pytest.mark.parametrize("edit_of", ["grow", "prune"])
@pytest.mark.parametrize("seed", range(3))
def test_adafactors_stated_bound(edit_of: str, seed: int) -> None:
    """With N elements before and N' after, an update is c f times what it was, f from sqrt(N/N') to sqrt(N'/N).

    c is one number for the whole tensor: of norms, for the weights and by clipping. It holds where the mean square of
    the gradients of newborn (or pruned) rows and columns is at most that of the others.
    """
    torch.manual_seed(seed)
    small, wide = {"fc1": 6, "fc2": 5}, {"fc1": 9, "fc2": 7}
    start = small if edit_of == "grow" else wide
    net = random_network(gn.mlp([4, start["fc1"], start["fc2"], 3]), seed)
    optimizer = Adafactor(net.parameters(), lr=0.05, d=1e6)  # clipping apart, c is the ratio of the weights' norms
    net.attach(optimizer)
    strength = torch.full((wide["fc2"], wide["fc1"]), 0.5, dtype=torch.float64)
    strength[: small["fc2"], : small["fc1"]] = 1.0  # rows and columns beyond the small network's: half the gradient

    def draw() -> Tensor:
        return strength * (torch.randint(0, 2, strength.shape) * 2 - 1)

    def step(of: gn.Network, gradient: Tensor) -> Tensor:
        for p in of.parameters():
            p.grad = torch.zeros_like(p)
        rows, columns = of.fc2.weight.shape
        of.fc2.weight.grad = gradient[:rows, :columns].clone()
        before = of.fc2.weight.detach().clone()
        of.attached[0].step()
        return of.fc2.weight.detach() - before

    for _ in range(3):
        step(net, draw())
    twin = twin_of(net)
    with net.edit() as edit:
        for group in ("fc1", "fc2"):
            if edit_of == "grow":
                edit.grow(group, wide[group] - small[group], init="kaiming")
            else:
                edit.prune(group, units=range(small[group], wide[group]))
    norm = [float(one.fc2.weight.detach().square().mean().sqrt()) for one in (net, twin)]
    gradient = draw()
    one, two = step(net, gradient), step(twin, gradient)
    factor = (one[:5, :6] / two[:5, :6]) / (norm[0] / norm[1])
    bound = (wide["fc1"] * wide["fc2"] / (small["fc1"] * small["fc2"])) ** 0.5
    assert 1 / bound - 1e-9 <= float(factor.min()) <= float(factor.max()) <= bound + 1e-9
    assert not torch.equal(factor, torch.ones_like(factor))  # it is approximate


# -- Muon ---------------------------------------------------------------------------------------------------------

SPECTRAL = 1.25
"""No singular value of a Newton-Schulz output is above: 1.2025, the polynomial's maximum on [0, 1], and rounding."""


def muon(**options: Any) -> tuple[gn.Network, Muon, AdamW]:
    net = random_network(gn.mlp([4, 16, 12, 3]), 0)
    optimizer = Muon([p for p in net.parameters() if p.dim() == 2], **({"lr": 0.05, "weight_decay": 0.0} | options))
    other = AdamW([p for p in net.parameters() if p.dim() == 1])
    net.attach(optimizer)
    net.attach(other)
    for step in range(3):
        train(net, optimizer, 1, seed=step)
        other.step()
    return net, optimizer, other


def shape_factor(weight: Tensor) -> float:
    return max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5


def moved(net: gn.Network) -> dict[str, Tensor]:
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net.attached[0].step()
    return {name: p.detach() - before[name] for name, p in net.named_parameters() if p.dim() == 2}


def test_muons_momentum_is_carried_and_padded_with_zeros() -> None:
    net, optimizer, _ = muon()
    before = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in net.named_parameters() if p.dim() == 2}
    old = net.graph
    with net.edit() as edit:
        edit.grow("fc1", 3, init="kaiming")
        edit.prune("fc2", units=[1])
    for name, (was, now) in blocks(old, net.graph).items():
        if name in before:
            buffer = optimizer.state[net.get_parameter(name)]["momentum_buffer"]
            assert torch.equal(take(buffer, now), take(before[name], was))
            write_block(buffer, now, torch.zeros_like(take(buffer, now)))
            assert not buffer.any()


def test_muon_with_silent_newborns_is_what_it_was_but_for_the_shape_factor() -> None:
    """Newborn rows whose gradients are zero add nothing to the matrix; what remains is rounding in bfloat16."""
    net, _, _ = muon()
    twin = twin_of(net)
    with net.edit() as edit:
        edit.grow("fc1", 3, init="kaiming")
    same_gradients(net, twin, newborn=0.0)
    ratio = {n: shape_factor(net.get_parameter(n)) / shape_factor(twin.get_parameter(n)) for n in ("fc1.weight",)}
    one, two = moved(net), moved(twin)
    for name, factor in ratio.items():
        gap = one[name][:16] - factor * two[name]
        assert float(gap.abs().max()) <= 2**-5 * float(two[name].abs().max()) * factor
        assert not one[name][16:].any()
    assert ratio["fc1.weight"] > 1.05


@pytest.mark.parametrize("newborn", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("adjust", ["original", None])
def test_muons_stated_bound(newborn: float, adjust: str | None) -> None:
    """The updates of two versions differ by at most 1.25 lr (k + k') in spectral norm, k the shape factors."""
    net, optimizer, _ = muon(adjust_lr_fn=adjust)
    twin = twin_of(net)
    with net.edit() as edit:
        edit.grow("fc1", 5, init="kaiming")
        edit.prune("fc2", units=[0, 4])
    same_gradients(net, twin, newborn=newborn)
    one, two = moved(net), moved(twin)
    for name, (was, now) in blocks(twin.graph, net.graph).items():
        if name not in one:
            continue
        lr = optimizer.param_groups[0]["lr"]
        bound = SPECTRAL * lr * (shape_factor(net.get_parameter(name)) + shape_factor(twin.get_parameter(name)))
        gap = take(one[name], now) - take(two[name], was)
        assert float(torch.linalg.matrix_norm(gap, 2)) <= bound
        assert float(torch.linalg.matrix_norm(two[name], 2)) <= SPECTRAL * lr * shape_factor(twin.get_parameter(name))
        assert gap.any()


def test_a_new_vector_does_not_join_muon() -> None:
    net, _, _ = muon()
    (muons, adamws) = net._attached.values()
    assert muons.accepts(net.fc1.weight)
    assert not muons.accepts(net.fc1.bias)
    assert adamws.accepts(net.fc1.weight)
    assert adamws.accepts(net.fc1.bias)


@pytest.mark.parametrize("named", [False, True])
def test_new_parameters_join_an_optimizer_that_takes_them(named: bool) -> None:
    """A new matrix joins Muon and a new vector the other one, as their neighbours did, and both are trained."""
    net = random_network(gn.mlp([4, 6, 5, 3]), 0)
    pairs = [(name, p) if named else p for name, p in net.named_parameters()]
    matrices = [p for p in pairs if (p[1] if named else p).dim() == 2]  # type: ignore[index, union-attr]
    vectors = [p for p in pairs if (p[1] if named else p).dim() == 1]  # type: ignore[index, union-attr]
    optimizers = [Muon(matrices, lr=0.05), AdamW(vectors)]
    for optimizer in optimizers:
        net.attach(optimizer)

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        wave_loss(net(*sample(net.graph))).backward()
        for optimizer in optimizers:
            optimizer.step()

    step()
    with net.edit() as edit:
        edit.deepen("act1", activation="relu", name="middle")
    (note,) = net.history.latest.optimizer_notes
    assert "Muon" in note
    new = {name: p for name, p in net.named_parameters() if name.startswith("middle")}
    assert {p.dim() for p in new.values()} == {1, 2}
    for name, p in new.items():
        group = optimizers[0 if p.dim() == 2 else 1].param_groups[0]
        assert any(held is p for held in group["params"])
        assert not named or group["param_names"][-1] == name
        assert not named or len(group["param_names"]) == len(group["params"])
    before = {name: p.detach().clone() for name, p in new.items()}
    step()
    assert all(not torch.equal(p, before[name]) for name, p in new.items())
    with net.edit() as edit:
        edit.remove("middle")
    for optimizer in optimizers:
        (group,) = optimizer.param_groups
        assert all(any(held is p for p in net.parameters()) for held in group["params"])
        assert not named or len(group["param_names"]) == len(group["params"])
    step()


# -- SparseAdam ---------------------------------------------------------------------------------------------------

WORDS = {
    "name": "words",
    "inputs": {"x": {"shape": [3], "dtype": "int64", "high": 7}},
    "ops": [
        {"name": "tok", "op": "embedding", "count": 7, "dim": 5},
        {"name": "flat", "op": "flatten"},
        {"name": "head", "op": "linear", "out": 2},
    ],
}


def words(steps: int) -> tuple[gn.Network, SparseAdam, Adam]:
    net = gn.Network(gn.load(WORDS), seed=0).double()
    net.tok.sparse = True
    sparse, rest = SparseAdam(net.tok.parameters(), lr=0.05), Adam(net.head.parameters(), lr=0.05)
    net.attach(sparse)
    net.attach(rest)
    for step in range(steps):
        learn(net, step)
    return net, sparse, rest


def gradients(net: gn.Network, step: int) -> None:
    for optimizer in net.attached:
        optimizer.zero_grad()
    torch.manual_seed(step)
    wave_loss(net(torch.randint(0, 5, (2, 3)))).backward()  # words 5 and 6 do not occur


def learn(net: gn.Network, step: int) -> None:
    gradients(net, step)
    for optimizer in net.attached:
        optimizer.step()


def test_a_sparse_gradient_and_its_state_follow() -> None:
    net, sparse, rest = words(3)
    gradients(net, 9)
    twin = copy.deepcopy(net)
    other = SparseAdam(twin.tok.parameters(), lr=0.05)
    other.load_state_dict(copy.deepcopy(sparse.state_dict()))
    twin.tok.weight.grad = net.tok.weight.grad.clone()
    with net.edit() as edit:
        edit.prune("tok", units=[1])
        edit.grow("tok", 2, init="kaiming")
    kept = [0, 2, 3, 4]
    gradient, was = net.tok.weight.grad, twin.tok.weight.grad
    assert gradient is not None
    assert was is not None
    assert gradient.is_sparse
    assert gradient.shape == (7, 6)
    assert torch.equal(gradient.coalesce().indices(), was.coalesce().indices())
    assert torch.equal(gradient.to_dense()[:, :4], was.to_dense()[:, kept])
    sparse.step()
    other.step()
    assert torch.equal(net.tok.weight[:, :4], twin.tok.weight[:, kept])
    assert torch.equal(
        sparse.state[net.tok.weight]["exp_avg_sq"][:, :4], other.state[twin.tok.weight]["exp_avg_sq"][:, kept]
    )
    rest.step()
    learn(net, 10)


def test_a_sparse_gradient_that_changes_during_an_edit_is_noticed() -> None:
    net, _, _ = words(1)
    gradients(net, 3)
    with pytest.raises(gn.EditError, match="was changed while the edit was open"), net.edit() as edit:  # noqa: PT012
        edit.grow("tok", 1)
        gradients(net, 4)


def test_a_sparse_gradient_that_is_scaled_in_place_during_an_edit_is_noticed() -> None:
    net, _, _ = words(1)
    gradients(net, 3)
    gradient = net.tok.weight.grad
    assert gradient is not None
    assert gradient.is_sparse
    with pytest.raises(gn.EditError, match="was changed while the edit was open"), net.edit() as edit:  # noqa: PT012
        edit.grow("tok", 1)
        gradient.mul_(2.0)


def test_aged_under_sparse_adam_is_an_elementwise_step_count() -> None:
    net, _, _ = words(0)
    weight = net.tok.weight.detach().clone()
    m, v, age = torch.zeros_like(weight), torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(60):
        if step in (4, 20, 21):
            with net.edit() as edit:
                edit.prune("tok", units=edit.graph.groups["tok"].ids[:1])
                edit.grow("tok", 2, init="kaiming", state="aged")
            weight = torch.cat([weight[:, 1:], net.tok.weight.detach()[:, -2:]], 1)
            m, v, age = (torch.cat([t[:, 1:], torch.zeros(7, 2, dtype=t.dtype)], 1) for t in (m, v, age))
        gradients(net, step)
        assert net.tok.weight.grad is not None
        gradient = net.tok.weight.grad.coalesce()
        rows, g = gradient.indices()[0], gradient.values()
        age += 1
        m[rows] = 0.9 * m[rows] + 0.1 * g
        v[rows] = 0.999 * v[rows] + 0.001 * g * g
        scale = 0.05 * (1 - 0.999 ** age[rows]).sqrt() / (1 - 0.9 ** age[rows])
        weight[rows] -= scale * m[rows] / (v[rows].sqrt() + 1e-8)
        for optimizer in net.attached:
            optimizer.step()
        torch.testing.assert_close(net.tok.weight.detach(), weight, rtol=1e-12, atol=1e-14)


# -- what a version says ------------------------------------------------------------------------------------------


def test_a_version_says_which_updates_are_approximate(tmp_path: Path) -> None:
    net, _, _ = muon()
    with net.edit() as edit:
        edit.grow("fc1", 1)
    (note,) = net.history.latest.optimizer_notes
    assert note.startswith("Muon: approximate for the units that stay: the update of a matrix is orthogonalised")
    assert net.history.latest.record()["optimizer_notes"] == [note]
    assert gn.load_network(net.save(tmp_path / "muon.gn")).history.latest.optimizer_notes == (note,)
    plain = random_network(GRAPHS["mlp"](), 0)
    plain.attach(SGD(plain.parameters(), lr=0.1))
    with plain.edit() as edit:
        edit.grow("fc1", 1)
    assert plain.history.latest.optimizer_notes == ()


def test_a_version_says_that_speed_meets_a_cold_start() -> None:
    net = random_network(GRAPHS["mlp"](), 0)
    net.attach(Adam(net.parameters()))
    for state, said in (("cold", 1), ("aged", 0)):
        with net.edit() as edit:
            edit.grow("fc1", 1, state=state, speed=(5.0, 10))
        notes = net.history.latest.optimizer_notes
        assert len(notes) == said
        assert all("cold start" in note for note in notes)


@pytest.mark.parametrize("options", [{"speed": (2.0, 3)}, {"rate": "adapted"}, {"rewarm": 5}])
def test_lbfgs_has_no_updates_to_scale(options: dict[str, Any]) -> None:
    net = random_network(GRAPHS["mlp"](), 0)
    net.attach(LBFGS(net.parameters()))
    with pytest.raises(gn.EditError, match=rf"{next(iter(options))}: .*LBFGS"), net.edit() as edit:
        edit.grow("fc1", 1, **options)
    assert net.version == 0


@pytest.mark.parametrize("kind", ["Adafactor", "Muon", "LBFGS"])
def test_no_multipliers_keep_a_mixing_optimizer_on_its_path(kind: str) -> None:
    net = random_network(GRAPHS["mlp"](), 0)
    net.attach(getattr(torch.optim, kind)([p for p in net.parameters() if kind != "Muon" or p.dim() == 2]))
    if kind == "Muon":
        net.attach(SGD([p for p in net.parameters() if p.dim() == 1], lr=0.1))
    with pytest.raises(gn.EditError, match="depends on others"), net.edit() as edit:
        edit.grow("fc2", 2, init="net2wider", state="scaled", state_options={"trajectory": True})
    with net.edit() as edit:
        edit.grow("fc2", 2, init="net2wider", state="scaled")


@pytest.mark.parametrize("kind", ["Adafactor", "Muon", "SparseAdam"])
def test_checkpoints_hold_their_state(kind: str, tmp_path: Path) -> None:
    def build(net: gn.Network) -> list[Any]:
        if kind == "SparseAdam":
            net.tok.sparse = True
            return [SparseAdam(net.tok.parameters(), lr=0.05), Adam(net.head.parameters())]
        if kind == "Muon":
            both = [[p for p in net.parameters() if p.dim() == d] for d in (2, 1)]
            return [Muon(both[0], lr=0.05), AdamW(both[1])]
        return [Adafactor(net.parameters(), lr=0.05)]

    def step(of: gn.Network, number: int) -> None:
        if kind == "SparseAdam":
            learn(of, number)
        else:
            for optimizer in of.attached:
                optimizer.zero_grad()
            train(of, of.attached[0], 1, seed=number)
            for optimizer in of.attached[1:]:
                optimizer.step()

    net = gn.Network(gn.load(WORDS), seed=0).double() if kind == "SparseAdam" else random_network(GRAPHS["mlp"](), 0)
    group = "tok" if kind == "SparseAdam" else "fc1"
    for optimizer in build(net):
        net.attach(optimizer)
    for number in range(5):
        step(net, number)
        if number == 2:
            with net.edit() as edit:
                edit.grow(group, 2, init="kaiming", state="aged", speed=(2.0, 9), rewarm=7, rate="adapted")
    checkpoint = gn.load_checkpoint(net.save(tmp_path / "c"))
    again = checkpoint.network()
    checkpoint.resume(again, *build(again))
    for one in (net, again):
        for number in range(5, 8):
            step(one, number)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


def test_an_untrained_state_is_nothing_to_carry() -> None:
    net = random_network(GRAPHS["mlp"](), 0)
    optimizer = Adafactor(net.parameters())
    net.attach(optimizer)
    with net.edit() as edit:
        edit.grow("fc1", 2)
    assert not optimizer.state
    assert sample(net.graph)

"""Parametrized tensors (``torch.nn.utils.parametrize``): an edit moves what they are computed from, or is refused.

The oracle of most tests is the same network without parametrizations under the same edits: weights must be equal.
"""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - users do it
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import graphnet as gn
from graphnet.runtime import intact, originals, parametrized
from graphnet.testing import random_network, train
from graphnet.testing.atomicity import TRACED, commit_with_error, points
from graphnet.testing.edits import EditCall, edit_calls
from graphnet.testing.graphs import graphs

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Doubled(nn.Module):
    """Elementwise, and without an inverse."""

    def forward(self, original: Tensor) -> Tensor:
        return 2 * original


class Sinh(nn.Module):
    """Elementwise and curved, with an inverse."""

    def forward(self, original: Tensor) -> Tensor:
        return original.sinh()

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.asinh()


class Tripled(nn.Module):
    def forward(self, original: Tensor) -> Tensor:
        return 3 * original

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / 3


class Exp(nn.Module):
    """Positive weights only."""

    def forward(self, original: Tensor) -> Tensor:
        return original.exp()

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.log()


class Masked(nn.Module):
    """A buffer of the weight's shape."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, original: Tensor) -> Tensor:
        return original * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.clone()


class Scaled(nn.Module):
    """A parameter of its own, with one entry a column."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)

    def forward(self, original: Tensor) -> Tensor:
        return original * self.scale

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.scale


class LowRank(nn.Module):
    """An adapter: two parameters whose product is added."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(2, weight.shape[1], dtype=weight.dtype))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], 2, dtype=weight.dtype))

    def forward(self, original: Tensor) -> Tensor:
        return original + self.up @ self.down


class Mixed(nn.Module):
    """Every entry depends on those before it."""

    def forward(self, original: Tensor) -> Tensor:
        return original.cumsum(0)


class Upper(nn.Module):
    """What an entry is depends on where it stands."""

    def forward(self, original: Tensor) -> Tensor:
        return original.triu()


class Told(nn.Module):
    """Depends on something that is not one of its tensors."""

    factor = 1.0

    def forward(self, original: Tensor) -> Tensor:
        return original * self.factor


class Fickle(nn.Module):
    """Its inverse knows the weight that it was made for."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second

    def right_inverse(self, weight: Tensor) -> Any:
        return (weight, torch.zeros_like(weight)) if weight.shape == (6, 4) else (weight,)


class Counting(nn.Module):
    """Keeps something of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, original: Tensor) -> Tensor:
        self.calls += 1
        return 3 * original


class Noisy(nn.Module):
    def forward(self, original: Tensor) -> Tensor:
        return original + torch.randn_like(original)


Register = Callable[[Any], Any]


def adding(make: Callable[[Tensor], nn.Module], attribute: str = "weight") -> Register:
    def register(module: nn.Module) -> nn.Module:
        tensor = getattr(module, attribute).detach()
        if isinstance(make(tensor), Exp):
            tensor.abs_().add_(0.1)
        return register_parametrization(module, attribute, make(tensor))

    return register


def half_masked(weight: Tensor) -> nn.Module:
    return Masked((torch.arange(weight.numel()).reshape(weight.shape) % 3 != 0).to(weight))


KINDS: dict[str, Register] = {
    "Sinh": adding(lambda _: Sinh()),
    "Masked": adding(half_masked),
    "Masked by truth": adding(lambda w: Masked(torch.ones_like(w, dtype=torch.bool))),
    "_WeightNorm": weight_norm,
    "Sinh of Tripled, Masked": lambda module: adding(lambda _: Sinh())(
        adding(half_masked)(adding(lambda _: Tripled())(module))
    ),
}
"""All of these can grow along rows, and by zeros along columns; those but weight norm follow everything."""

OTHERS: dict[str, Register] = {
    "Doubled": adding(lambda _: Doubled()),
    "Exp": adding(lambda _: Exp()),
    "Scaled": adding(lambda w: Scaled(torch.linspace(0.5, 2, w.shape[1], dtype=w.dtype))),
    "LowRank": adding(LowRank),
}
"""These follow where units go or change places."""

EXACT = ("Masked", "Masked by truth", "_WeightNorm", "Doubled", "Scaled")
"""Of the others the same numbers give other last bits at other places: vector instructions round in their own way."""


def made(
    kinds: dict[str, Register], make: Callable[..., torch.optim.Optimizer] | None = None, seed: int = 0, steps: int = 2
) -> tuple[gn.Network, torch.optim.Optimizer]:
    net = random_network(gn.mlp([4, 6, 5, 3], activation="tanh"), seed)
    for layer, kind in kinds.items():
        kind(net.get_submodule(layer))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01) if make is None else make(net.parameters())
    net.attach(optimizer)
    for _ in range(steps):
        step(net, optimizer)
    return net, optimizer


def step(net: gn.Network, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(X).square().mean().backward()
    optimizer.step()


def parts(net: gn.Network, layer: str = "") -> dict[str, Tensor]:
    """What parametrized tensors are computed from, the objects themselves."""
    held = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {name: tensor for name, tensor in held.items() if ".parametrizations." in name and name.startswith(layer)}


def facts(net: gn.Network, optimizer: torch.optim.Optimizer, only: str = "") -> dict[str, Tensor]:
    found = {name: tensor.detach().clone() for name, tensor in net.state_dict().items() if name.startswith(only)}
    for name, parameter in net.named_parameters():
        if name.startswith(only):
            for key, value in optimizer.state[parameter].items():
                found[f"{name} {key}"] = value.clone()
            if parameter.grad is not None:
                found[f"{name} grad"] = parameter.grad.clone()
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def plain(net: gn.Network) -> gn.Network:
    """The network without parametrizations, with the same weights."""
    return net.at(net.version)


def assert_units_stay(
    before: dict[str, Tensor], after: dict[str, Tensor], layer: str, old: list[int], new: list[int]
) -> int:
    """The entries of units in everything of a layer's weight have the same bits, at other places.

    There are six of them, and no other dimension of the layer has six entries.
    """
    checked = 0
    for name, value in before.items():
        if name.startswith(f"{layer}.parametrizations.weight"):
            dim = value.shape.index(6) if 6 in value.shape else None
            if dim is None:
                assert torch.equal(after[name], value), name
            else:
                mine = after[name].index_select(dim, torch.tensor(new))
                assert torch.equal(mine, value.index_select(dim, torch.tensor(old))), name
                checked += 1
    assert before.keys() == after.keys()
    return checked


# -- units that stay -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        (kind, layer)
        for kind in [*KINDS, *OTHERS]
        for layer in ("fc1", "fc2")
        if (kind, layer) != ("_WeightNorm", "fc2")
    ],
)
def test_what_stays_keeps_its_bits_when_units_go(kind: str, layer: str) -> None:
    net, optimizer = made({layer: (KINDS | OTHERS)[kind]})
    oracle, before, objects = plain(net), facts(net, optimizer), parts(net)
    held = [*optimizer.param_groups[0]["params"]]
    for one in (net, oracle):
        with one.edit(seed=1) as edit:
            edit.prune("fc1", units=[1, 4])
    kept = [0, 2, 3, 5]
    assert assert_units_stay(before, facts(net, optimizer), layer, kept, [0, 1, 2, 3]) >= 4
    assert all(parts(net)[name] is tensor for name, tensor in objects.items())
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], held, strict=True))
    weight = net.get_submodule(layer).weight
    torch.testing.assert_close(weight, oracle.get_submodule(layer).weight, rtol=1e-14, atol=1e-15)
    exact = torch.equal(weight, oracle.get_submodule(layer).weight)
    assert exact or kind not in EXACT
    assert exact == (net.history.latest.optimizer_notes == ())
    torch.testing.assert_close(net(X), oracle(X), rtol=1e-13, atol=1e-14)
    step(net, optimizer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layer", "dim"), [("fc1", 0), ("fc2", 1)])
def test_what_stays_keeps_its_bits_when_units_come(kind: str, layer: str, dim: int) -> None:
    net, optimizer = made({layer: KINDS[kind]})
    before, objects, output = facts(net, optimizer), parts(net), net(X)
    with net.edit() as edit:
        edit.grow("fc1", 2, preserves="function")
    after = facts(net, optimizer)
    assert assert_units_stay(before, after, layer, [*range(6)], [*range(6)]) >= 3
    assert all(parts(net)[name] is tensor for name, tensor in objects.items())
    torch.testing.assert_close(net(X), output, rtol=1e-12, atol=1e-14)
    for name, value in after.items():
        if name.startswith(f"{layer}.parametrizations") and name.rpartition(" ")[2] in (
            "exp_avg",
            "exp_avg_sq",
            "grad",
        ):
            born = value.narrow(dim, 6, 2) if value.shape[dim] == 8 else None
            assert born is None or not born.any(), name
    step(net, optimizer)
    step(net, optimizer)


@pytest.mark.parametrize("kind", KINDS)
def test_newborns_have_the_originals_of_their_values(kind: str) -> None:
    net, _ = made({"fc1": KINDS[kind]})
    oracle = plain(net)
    for one in (net, oracle):
        with one.edit(seed=5) as edit:
            edit.grow("fc1", 3, init="kaiming", state="cold")
    torch.testing.assert_close(net.fc1.weight, oracle.fc1.weight, rtol=1e-14, atol=1e-15)
    assert torch.equal(net.fc1.weight[:6], oracle.fc1.weight[:6]) or kind not in EXACT
    assert bool(net.fc1.weight[6:].any(dim=1).all())
    for name, mask in net.named_buffers():
        if name.endswith("mask"):
            assert bool(mask[6:].all())  # newborns are not masked


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS, "_SpectralNorm"])
@pytest.mark.parametrize("layer", ["fc1", "fc2"])
def test_units_that_change_places_change_nothing_else(kind: str, layer: str) -> None:
    """The permute oracle: what is computed stays, and every part must have moved for that."""
    net, optimizer = made({layer: {**KINDS, **OTHERS, "_SpectralNorm": spectral_norm}[kind]})
    net.eval()
    before, output, order = facts(net, optimizer), net(X), [3, 0, 5, 1, 4, 2]
    with net.edit() as edit:
        edit.permute("fc1", order=order)
    torch.testing.assert_close(net(X), output, rtol=1e-12, atol=1e-14)
    assert assert_units_stay(before, facts(net, optimizer), layer, order, [*range(6)]) >= 3
    broken = 0
    for name, tensor in parts(net, layer).items():
        if 6 in tensor.shape and tensor.unique().numel() > 1:
            kept = tensor.detach().clone()
            with torch.no_grad():
                tensor.copy_(kept.roll(1, kept.shape.index(6)))
                changed = net(X)
                tensor.copy_(kept)
            assert not torch.allclose(changed, output, rtol=1e-6), name
            broken += 1
    assert broken


@pytest.mark.parametrize("kind", KINDS)
def test_growing_and_pruning_the_newborns_leaves_every_bit(kind: str) -> None:
    net, optimizer = made({"fc1": KINDS[kind], "fc2": KINDS[kind]})
    before = facts(net, optimizer)
    with net.edit() as edit:
        ids = edit.grow("fc1", 2)
    with net.edit() as edit:
        edit.prune("fc1", units=ids)
    assert_same(facts(net, optimizer), before)


def change(edit: gn.Edit, group: str, what: str, chance: random.Random) -> None:
    ids = edit.graph.groups[group].ids
    if what in ("grow", "both"):
        edit.grow(group, chance.randint(1, 3), state=chance.choice(["cold", "aged", "transplant"]))
    if what in ("prune", "both") and len(ids) > 2:
        edit.prune(group, units=chance.sample(ids, 2))
    if what == "permute":
        edit.permute(group, order=chance.sample(ids, len(ids)))
    if what == "reset":
        edit.reset(group, units=[chance.choice(ids)])
    if what == "retire" and len(ids) > 2:
        edit.retire(group, units=[chance.choice(ids)])
    if what == "recruit" and edit.graph.groups[group].dormant:
        edit.recruit(group, units=edit.graph.groups[group].dormant[:1])


@pytest.mark.parametrize("seed", range(6))
def test_random_edits_give_the_weights_of_a_plain_network(seed: int) -> None:
    chance = random.Random(seed)
    kinds = [*KINDS.values()]
    choose = [kind for kind in kinds if kind is not weight_norm]
    net, optimizer = made(
        {"fc1": chance.choice(kinds), "fc2": chance.choice(choose), "head": chance.choice(choose)}, seed=seed
    )
    adding(lambda _: Sinh(), "bias")(net.fc1)
    optimizer.param_groups[0]["params"][:] = [*net.parameters()]
    for _ in range(6):
        twin = plain(net)
        group = chance.choice(["fc1", "fc2"])
        what = chance.choice(["grow", "prune", "permute", "reset", "both", "retire", "recruit"])

        state = chance.getstate()
        for one in (net, twin):
            chance.setstate(state)
            with one.edit(seed=seed) as edit:
                change(edit, group, what, chance)
        for name in net.graph.tensors:
            torch.testing.assert_close(net.tensor(name), twin.tensor(name), rtol=1e-13, atol=1e-14, msg=name)
        torch.testing.assert_close(net(X), twin(X), rtol=1e-12, atol=1e-14)
        step(net, optimizer)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_networks_follow_random_edits_or_refuse_them(data: st.DataObject) -> None:
    """Whatever a plain network makes of an edit, a parametrized one makes too, or says that it cannot."""
    net = random_network(data.draw(graphs()), 0)
    ties = {name for node in net.graph.nodes.values() for spec in node.tensors if spec.shared
            for name in (spec.name, spec.shared)}  # fmt: skip
    for name, spec in net.graph.tensors.items():
        path, _, attribute = name.rpartition(".")
        layer = net.get_submodule(path)
        if spec.buffer or name in ties or type(layer) is nn.Module or not data.draw(st.booleans()):
            continue
        kinds = [lambda _: Sinh(), lambda _: Doubled(), lambda _: Tripled(), half_masked]
        if len(spec.dims) > 1 and data.draw(st.booleans()):
            weight_norm(layer, attribute)
        else:
            adding(data.draw(st.sampled_from(kinds)), attribute)(layer)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    for _ in range(4):
        train(net, optimizer, 1)
        twin, call = plain(net), data.draw(edit_calls(net.graph))
        said = [tried(one, call) for one in (twin, net)]
        if said[0] is not None:
            assert said[1] is not None
        elif said[1] is not None:
            assert "is parametrized" in said[1]
        else:
            for name in net.graph.tensors:
                torch.testing.assert_close(net.tensor(name), twin.tensor(name), rtol=1e-12, atol=1e-13, msg=name)
            held = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
            assert held == {id(parameter) for parameter in net.parameters()}


def tried(net: gn.Network, call: EditCall) -> str | None:
    try:
        with net.edit(seed=3) as edit:
            call.apply(edit)
    except gn.GraphnetError as error:
        return str(error)
    return None


# -- the optimizer -------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.5),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["Sinh", "_WeightNorm"])
def test_given_the_same_gradients_the_next_update_is_the_same(kind: str, optimizer: str) -> None:
    net, mine = made({"fc1": KINDS[kind]}, OPTIMIZERS[optimizer])
    twin, theirs = made({"fc1": KINDS[kind]}, OPTIMIZERS[optimizer])
    with net.edit() as edit:
        edit.grow("fc1", 2, state="cold")
        edit.prune("fc1", units=[0, 3])
    kept, mine_parts, their_parts = [1, 2, 4, 5], parts(net), parts(twin)
    for (name, part), other in zip(mine_parts.items(), their_parts.values(), strict=True):
        other.grad = torch.randn(other.shape, dtype=other.dtype, generator=torch.Generator().manual_seed(7))
        part.grad = torch.zeros_like(part)
        part.grad[:4] = other.grad[kept]
        for key, value in mine.state[part].items():
            if isinstance(value, Tensor) and value.dim():
                assert torch.equal(value[:4], theirs.state[other][key][kept]), (name, key)
                neutral = {"step_size": 0.01, "sum": 0.5}.get(key, 0.0)
                wanted = part.detach()[4:] if key == "ax" else torch.full_like(value[4:], neutral)
                assert torch.equal(value[4:], wanted), (name, key)
    mine.step()
    theirs.step()
    for part, other in zip(mine_parts.values(), their_parts.values(), strict=True):
        assert torch.equal(part[:4], other[kept])


@pytest.mark.parametrize("kind", ["Sinh", "_WeightNorm"])
def test_the_first_step_of_an_aged_newborn_is_the_learning_rate(kind: str) -> None:
    net, optimizer = made({"fc1": KINDS[kind]}, lambda p: torch.optim.Adam(p, lr=0.01, eps=0.0), steps=9)
    with net.edit() as edit:
        edit.grow("fc1", 2, state="aged", init="kaiming")
    before = {name: part.detach().clone() for name, part in parts(net).items()}
    optimizer.zero_grad()
    for part in net.parameters():
        part.grad = torch.randn_like(part)
    optimizer.step()
    for name, part in parts(net).items():
        moved = (part.detach() - before[name]).abs()
        torch.testing.assert_close(moved[6:], torch.full_like(moved[6:], 0.01), rtol=1e-9, atol=0.0)
        assert bool((moved[:6] != 0.01).all())
    with net.edit() as edit:  # ages move with their units
        edit.permute("fc1", order=[7, 6, 5, 4, 3, 2, 1, 0])
    births = net._attached["0"].updates.births
    for part in parts(net).values():
        assert births[part].birth[0].tolist()[:2] == [9, 9]
        assert (births[part].birth[0][2:] < 0).all()


@pytest.mark.parametrize("kind", ["Sinh", "Masked", "_WeightNorm"])
def test_training_without_units_equals_training_with_them_masked(kind: str) -> None:
    net, mine = made({"fc1": KINDS[kind], "head": KINDS["Sinh"]})
    masked, theirs = made({"fc1": KINDS[kind], "head": KINDS["Sinh"]})
    gate = torch.ones(6, dtype=torch.float64)
    gate[[1, 4]] = 0
    masked.act1.register_forward_hook(lambda module, given, output: output * gate)
    with net.edit() as edit:
        edit.prune("fc1", units=[1, 4])
    for _ in range(5):
        step(net, mine)
        step(masked, theirs)
    for (name, part), other in zip(parts(net, "fc1").items(), parts(masked, "fc1").values(), strict=True):
        torch.testing.assert_close(part, other[[0, 2, 3, 5]], rtol=1e-10, atol=1e-13, msg=name)
    torch.testing.assert_close(net(X), masked(X), rtol=1e-10, atol=1e-13)


def test_a_rewind_to_the_same_values_clears_the_state_of_originals() -> None:
    net, optimizer = made({"fc1": weight_norm})
    assert optimizer.state[net.fc1.parametrizations.weight.original1]
    with net.edit() as edit:
        edit.rewind("fc1", net.snapshot())
    assert not any(part in optimizer.state for part in parts(net).values())
    step(net, optimizer)


@pytest.mark.parametrize("frozen", ["original0", "original1"])
def test_originals_of_several_optimizers_and_frozen_ones(frozen: str) -> None:
    net = random_network(gn.mlp([4, 6, 5, 3], activation="tanh"), 0)
    weight_norm(net.fc1)
    still = net.fc1.parametrizations.weight.get_parameter(frozen).requires_grad_(False)
    other = net.fc1.parametrizations.weight.get_parameter("original1" if frozen == "original0" else "original0")
    rest = [parameter for parameter in net.parameters() if parameter is not still and parameter is not other]
    first, second = torch.optim.SGD([other], lr=0.1, momentum=0.9), torch.optim.Adam(rest, lr=0.01)
    net.attach(first)
    net.attach(second)
    for _ in range(2):
        net(X).square().mean().backward()
        first.step(), second.step()
    before = {name: part.detach().clone() for name, part in parts(net).items()}
    moment = first.state[other]["momentum_buffer"].clone()
    with net.edit() as edit:
        edit.grow("fc1", 2, state="aged")
        edit.prune("fc1", units=[1])
    for name, part in parts(net).items():
        assert torch.equal(part[:5], before[name][[0, 2, 3, 4, 5]])
    assert torch.equal(first.state[other]["momentum_buffer"][:5], moment[[0, 2, 3, 4, 5]])
    assert still.shape[0] == 7
    first.zero_grad(), second.zero_grad()
    net(X).square().mean().backward()
    first.step(), second.step()


def test_originals_that_took_different_numbers_of_steps_have_no_common_age() -> None:
    net, optimizer = made({"fc1": weight_norm})
    optimizer.zero_grad()
    net.fc1.parametrizations.weight.original0.grad = torch.ones(6, 1, dtype=torch.float64)
    optimizer.step()  # of one of the two
    said = "different numbers of steps"
    with unchanged(net, optimizer), pytest.raises(gn.EditError, match=said), net.edit() as edit:
        edit.grow("fc1", 1, state="aged")
    with net.edit() as edit:
        edit.grow("fc1", 1, state="cold")


def test_gradients_in_flight_move_with_their_units() -> None:
    net, optimizer = made({"fc1": weight_norm, "fc2": KINDS["Sinh"]})
    optimizer.zero_grad()
    net(X).square().mean().backward()
    before = {name: part.grad.clone() for name, part in parts(net).items() if part.grad is not None}
    with net.edit() as edit:
        edit.permute("fc1", order=[5, 4, 3, 2, 1, 0])
    for name, part in parts(net).items():
        assert part.grad is not None
        assert torch.equal(part.grad, before[name].flip(0 if name.startswith("fc1") else 1))


def test_a_loss_from_before_an_edit_raises_our_error() -> None:
    net, _ = made({"fc1": weight_norm})
    loss = net(X).square().mean()
    with net.edit() as edit:
        edit.prune("fc1", units=[0])
    with pytest.raises(gn.EditError, match="from before an edit"):
        loss.backward()


def test_hooks_on_originals_stay() -> None:
    net, optimizer = made({"fc1": weight_norm})
    shapes: list[tuple[int, ...]] = []
    net.fc1.parametrizations.weight.original1.register_hook(lambda grad: shapes.append(tuple(grad.shape)))
    with net.edit() as edit:
        edit.prune("fc1", units=[0])
    step(net, optimizer)
    assert shapes == [(5, 4)]


@pytest.mark.parametrize("kind", ["Sinh", "_WeightNorm"])
def test_an_average_follows(kind: str) -> None:
    net, optimizer = made({"fc1": KINDS[kind]})
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    net.attach(average)
    for _ in range(3):
        average.update_parameters(net)
        step(net, optimizer)
    copied: Any = average.module
    before = {name: part.detach().clone() for name, part in parts(copied).items()}
    with net.edit() as edit:
        edit.grow("fc1", 2, init="kaiming")
        edit.prune("fc1", units=[2])
    for name, part in parts(copied).items():
        assert torch.equal(part[:5], before[name][[0, 1, 3, 4, 5]])
        assert torch.equal(part[5:], parts(net)[name][5:])  # newborns start at the live value
    average.update_parameters(net)
    assert average(X).shape == (8, 3)


def test_an_average_from_before_the_parametrization_is_told() -> None:
    net, _ = made({})
    net.attach(AveragedModel(net))
    adding(lambda _: Doubled())(net.fc1)
    with pytest.raises(gn.EditError, match=r"has no 'fc1.parametrizations.weight.original'"), net.edit() as edit:
        edit.prune("fc1", units=[0])


FILES = {*TRACED, *(str(module.__file__) for module in (originals, parametrized, intact))}


# -- all or nothing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structural", [False, True])
def test_an_error_in_a_commit_leaves_every_bit(structural: bool) -> None:
    def act(edit: gn.Edit) -> None:
        edit.grow("fc1", 2, init="kaiming")
        edit.prune("fc1", units=[1])
        if structural:
            edit.deepen("act2")

    def case() -> tuple[gn.Network, torch.optim.Optimizer]:
        net, optimizer = made({"fc1": weight_norm, "fc2": KINDS["Sinh"]})
        with net.edit() as edit:
            edit.grow("fc1", 1, state="aged")
        step(net, optimizer)
        return net, optimizer

    reference = commit_with_error(case()[0], act, files=FILES)
    assert reference.raised is None
    net, optimizer = case()
    objects = {id(tensor) for tensor in (*net.parameters(), *net.buffers())}
    before, output = facts(net, optimizer), net(X)
    births = {kind: dict(table.birth) for kind, table in net._attached["0"].updates.births.items()}
    for point in points(reference, 10, 14):
        run = commit_with_error(net, act, at=point, files=FILES)
        assert type(run.raised).__name__ == "InjectedError"
        if net.version == 2:
            break  # it was published
        assert_same(facts(net, optimizer), before)
        assert all(part.training for part in net.modules())
        assert {id(tensor) for tensor in (*net.parameters(), *net.buffers())} == objects
        now = {kind: dict(table.birth) for kind, table in net._attached["0"].updates.births.items()}
        assert now.keys() == births.keys()
        assert all(torch.equal(vector, births[p][dim]) for p, one in now.items() for dim, vector in one.items())
        assert torch.equal(net(X), output)
    assert point >= reference.swapping


@contextmanager
def unchanged(net: gn.Network, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    before, version, training = facts(net, optimizer), net.version, [part.training for part in net.modules()]
    yield
    assert net.version == version
    assert_same(facts(net, optimizer), before)
    assert [part.training for part in net.modules()] == training


REFUSED: dict[str, tuple[dict[str, Register], Callable[[gn.Edit], object], str]] = {
    "columns of weight norm go": (
        {"fc2": weight_norm}, lambda e: e.prune("fc1", lowest=2), "units that stay would change.*run over units that",
    ),
    "columns of weight norm come": (
        {"fc2": weight_norm}, lambda e: e.grow("fc1", 2, init="kaiming", preserves=None) and _fill(e),
        "right_inverse does not give|units that stay would change",
    ),
    "rows of zeros come": (
        {"fc2": weight_norm}, lambda e: (e.grow("fc2", 2), e.plan.staged("fc2.weight").write(
            [_at(5, 6), None], torch.zeros(2, 6, dtype=torch.float64))), "are not numbers|no finite original",
    ),
    "spectral norm loses rows": ({"fc1": spectral_norm}, lambda e: e.prune("fc1", lowest=2), "largest singular value"),
    "spectral norm gets rows": ({"fc1": spectral_norm}, lambda e: e.grow("fc1", 2), "largest singular value"),
    "orthogonal": ({"fc1": orthogonal}, lambda e: e.prune("fc1", lowest=2), "not orthogonal"),
    "no inverse": ({"fc1": OTHERS["Doubled"]}, lambda e: e.grow("fc1", 1), "has no right_inverse"),
    "another inverse": ({"fc1": adding(lambda _: Fickle())}, lambda e: e.grow("fc1", 1), "not give the 2 originals"),
    "no original of zero": ({"fc2": OTHERS["Exp"]}, lambda e: e.grow("fc1", 1), "no finite original"),
    "no original below zero": ({"fc1": OTHERS["Exp"]}, lambda e: e.grow("fc1", 3), "not numbers|no finite original"),
    "entries of its own": ({"fc2": OTHERS["Scaled"]}, lambda e: e.grow("fc1", 1), "scale', whose entries differ"),
    "mixed": ({"fc1": adding(lambda _: Mixed())}, lambda e: e.prune("fc1", lowest=1), "do not follow"),
    "by place": ({"fc1": adding(lambda _: Upper())}, lambda e: e.prune("fc1", lowest=1), "do not follow"),
    "random": ({"fc1": adding(lambda _: Noisy())}, lambda e: e.prune("fc1", lowest=1), "do not follow|each time"),
    "survivors written": (
        {"fc2": KINDS["Sinh"]}, lambda e: e.grow("fc1", 2, init="net2wider"), "other values to units that stay",
    ),
    "state of survivors written": (
        {"fc1": KINDS["Sinh"]}, lambda e: e.grow("fc1", 2, init="net2wider", state="scaled"), "state='scaled'",
    ),
    "what survivors read is added up": (
        {"fc2": KINDS["Sinh"]}, lambda e: e.merge("fc1", pairs=[(0, 1)]), "units that stay other values",
    ),
    "moments of survivors are added up": (
        {"fc1": KINDS["Sinh"]}, lambda e: e.merge("fc1", pairs=[(0, 1)]), "of units that stay other values",
    ),
    "columns are divided": (
        {"fc2": KINDS["Sinh"]}, lambda e: e.split("fc1", highest=2), "units that stay other values|other values to",
    ),
    "everything shrinks": (
        {"fc1": KINDS["Sinh"]}, lambda e: e.shrink_and_perturb("fc1"), "other values to units that stay",
    ),
    "values of a snapshot": (
        {"fc1": KINDS["Sinh"]}, lambda e: e.rewind("fc1", e.plan.host.snapshot()) and _change(e),
        "other values to units that stay",
    ),
}  # fmt: skip


def _at(*positions: int) -> Any:
    return torch.tensor(positions).numpy()


def _change(edit: gn.Edit) -> None:
    weight = edit.plan.staged("fc1.weight")
    weight.write([None, None], weight.value() + 1)


def _fill(edit: gn.Edit) -> None:
    weight = edit.plan.staged("fc2.weight")
    weight.write([None, _at(6, 7)], torch.ones(5, 2, dtype=torch.float64))


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_follow_is_refused_and_changes_nothing(case: str) -> None:
    kinds, act, why = REFUSED[case]
    net, optimizer = made(kinds)
    (layer,) = kinds
    said = rf"(?s)'{layer}.weight' is parametrized \(\w+\), and .*({why}).*remove_parametrizations"
    with unchanged(net, optimizer), pytest.raises(gn.EditError, match=said), net.edit() as edit:
        act(edit)
    step(net, optimizer)


@pytest.mark.parametrize("kind", KINDS)
def test_the_low_memory_mode_is_refused(kind: str) -> None:
    net, optimizer = made({"fc1": KINDS[kind]})
    with (
        unchanged(net, optimizer),
        pytest.raises(gn.EditError, match=r"'fc1.weight' is parametrized .*low_memory=True does not move what"),
        net.edit(low_memory=True) as edit,
    ):
        edit.prune("fc1", lowest=2)


@pytest.mark.parametrize("kind", [*KINDS, "_SpectralNorm"])
@pytest.mark.parametrize("averages", [False, True])
def test_going_back_restores_every_bit(kind: str, averages: bool) -> None:
    net, optimizer = made({"fc1": weight_norm, "fc2": {**KINDS, "_SpectralNorm": spectral_norm}[kind]})
    if averages:
        net.attach(AveragedModel(net))
        net.averaged[0].update_parameters(net)
    with net.edit() as edit:
        edit.permute("fc1", order=[1, 0, 2, 3, 4, 5])
    net.fc1.parametrizations.weight.original0.requires_grad_(averages)
    kept, before, objects = net.keep(), facts(net, optimizer), parts(net)
    copied = [facts(one.module, optimizer) for one in net.averaged]
    with net.edit() as edit:
        edit.prune("fc1", units=[1, 2]) if kind != "_SpectralNorm" and kind != "_WeightNorm" else edit.deepen("act2")
    step(net.eval(), optimizer)
    net.train().rollback(kept.version)
    after = {name: value for name, value in facts(net, optimizer).items() if not name.endswith(" grad")}
    assert_same(after, {name: value for name, value in before.items() if not name.endswith(" grad")})
    for one, values in zip(net.averaged, copied, strict=True):
        assert_same(facts(one.module, optimizer), values)
    assert all(parts(net)[name] is tensor for name, tensor in objects.items())
    assert net.fc1.parametrizations.weight.original0.requires_grad == averages
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in net.parameters()}
    assert torch.equal(net.at(net.version).eval()(X), net.eval()(X))
    step(net.train(), optimizer)


def test_going_back_to_other_parametrizations_is_refused(tmp_path: Path) -> None:
    net, optimizer = made({"fc1": weight_norm})
    kept, output = net.keep(), net(X)
    step(net, optimizer)
    with net.edit() as edit:
        edit.grow("fc2", 1)
    adding(lambda _: Doubled())(net.get_submodule("fc2"))
    with unchanged(net, optimizer), pytest.raises(gn.EditError, match=r"'fc2.weight' is parametrized .*it was not\."):
        net.rollback(kept.version)
    remove_parametrizations(net.get_submodule("fc2"), "weight", leave_parametrized=False)
    adding(half_masked)(net.get_submodule("fc1"))
    with pytest.raises(gn.EditError, match=r"'fc1.weight' is parametrized .*in another way"):
        net.rollback(kept.version)
    remove_parametrizations(net.get_submodule("fc1"), "weight", leave_parametrized=True)
    with pytest.raises(gn.EditError, match=r"'fc1.weight' was parametrized when version 0 was kept"):
        net.rollback(kept.version)
    with pytest.raises(gn.CheckpointError, match=r"version 0 is kept with parametrizations.*net.forget\(0\)"):
        net.save(tmp_path / "run.gn")
    assert torch.equal(net.at(0)(X), output)
    net.at(0).rollback(0)
    net.rollback(0, reset_optimizers=True)
    assert torch.equal(net(X), output)


def test_going_back_to_what_gives_something_else_is_refused() -> None:
    net, optimizer = made({})
    told = Told()
    register_parametrization(net.get_submodule("fc1"), "weight", told)
    kept = net.keep()
    told.factor = 2.0
    with unchanged(net, optimizer), pytest.raises(gn.EditError, match="it is not what it was then"):
        net.rollback(kept.version)
    told.factor = 1.0
    net.rollback(kept.version)


@pytest.mark.parametrize(
    ("layer", "act", "why"),
    [
        ("fc1", lambda edit: edit.remove("fc1"), "remove, rename or replace its layer"),
        ("fc3", lambda edit: edit.tie("fc4", "fc3"), "tie another tensor to it"),
        ("fc4", lambda edit: edit.tie("fc4", "fc3"), "remove, rename or replace its layer"),
    ],
)
def test_a_layer_that_goes_or_is_tied_is_refused(layer: str, act: Callable[[gn.Edit], object], why: str) -> None:
    net = random_network(gn.mlp([4, 4, 5, 5, 5, 3], activation="tanh"), 0)
    adding(lambda _: Sinh())(net.get_submodule(layer))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    step(net, optimizer)
    said = rf"'{layer}.weight' is parametrized \(Sinh\), and .*{why}.*remove_parametrizations"
    with unchanged(net, optimizer), pytest.raises(gn.EditError, match=said), net.edit() as edit:
        act(edit)


def test_a_tensor_that_is_read_without_a_layer_is_refused() -> None:
    """There the forward pass holds the tensor itself, and sees no parametrization."""
    net = random_network(gn.transformer(11, width=8, depth=1, heads=2, context=6), 0)
    register_parametrization(net.get_submodule("pos"), "weight", Sinh())
    with pytest.raises(gn.EditError, match=r"'pos.weight' is parametrized \(Sinh\), and the forward pass"), net.edit():
        pass
    remove_parametrizations(net.get_submodule("pos"), "weight", leave_parametrized=False)
    with net.edit() as edit:
        edit.grow("blocks.0.fc1", 2)


def test_a_new_layer_joins_the_group_of_originals() -> None:
    net = random_network(gn.mlp([4, 6, 5, 3], activation="tanh"), 0)
    for layer in (net.fc1, net.fc2, net.head):
        weight_norm(layer)
        adding(lambda _: Sinh(), "bias")(layer)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    with net.edit() as edit:
        edit.deepen("act2", name="more")
    held = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    assert held == {id(parameter) for parameter in net.parameters()}


def test_a_small_row_is_not_lost_beside_a_large_one() -> None:
    """What is rounding for one row is another row's whole weight."""
    net, _ = made({"fc2": weight_norm})
    originals_of = net.fc2.parametrizations.weight
    with torch.no_grad():
        originals_of.original0.copy_(torch.tensor([[1e8], [1e-9], [1.0], [1.0], [1.0]]))
        originals_of.original1[:, 5] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    with pytest.raises(gn.EditError, match="units that stay would change"), net.edit() as edit:
        edit.prune("fc1", units=[5])
    with torch.no_grad():
        originals_of.original1[:, 5] = 0.0
    with net.edit() as edit:
        edit.prune("fc1", units=[5])


def test_a_part_that_is_used_elsewhere_is_refused() -> None:
    net, optimizer = made({"fc1": KINDS["Masked"]})
    net.head.register_buffer("same", net.fc1.parametrizations.weight[0].mask)
    said = r"mask'.*is used elsewhere too"
    with unchanged(net, optimizer), pytest.raises(gn.EditError, match=said), net.edit() as edit:
        edit.prune("fc1", lowest=1)


def test_a_vector_that_could_follow_either_dimension_is_refused() -> None:
    """In a square matrix only values say which dimension a vector follows, and those of a mask of ones do not."""
    net = random_network(gn.mlp([4, 5, 5, 3], activation="tanh"), 0)
    register_parametrization(net.fc2, "weight", Masked(torch.ones(5, dtype=torch.int64)))
    with pytest.raises(gn.EditError, match=r"it cannot be told which dimension of .*mask'"), net.edit() as edit:
        edit.prune("fc1", units=[0])
    net.fc2.parametrizations.weight[0].mask = torch.arange(1, 6)
    output = net(X)
    with net.edit() as edit:
        edit.permute("fc1", order=[4, 3, 2, 1, 0])
        edit.permute("fc2", order=[1, 0, 2, 3, 4])
    assert net.fc2.parametrizations.weight[0].mask.tolist() == [5, 4, 3, 2, 1]
    torch.testing.assert_close(net(X), output, rtol=1e-12, atol=1e-14)


def test_originals_changed_while_an_edit_is_open_are_noticed() -> None:
    net, optimizer = made({"fc1": weight_norm})

    def act(edit: gn.Edit) -> None:
        edit.prune("fc1", units=[0])
        step(net, optimizer)

    with pytest.raises(gn.EditError, match="changed"), net.edit() as edit:
        act(edit)
    assert net.version == 0


def test_what_changes_while_an_edit_is_open_is_noticed() -> None:
    net, _ = made({})
    told = Told()
    register_parametrization(net.get_submodule("fc1"), "weight", told)

    def act(edit: gn.Edit) -> None:
        edit.prune("fc1", lowest=1, score="magnitude")  # which has read it
        told.factor = 2.0

    with pytest.raises(gn.EditError, match="changed during the edit"), net.edit() as edit:
        act(edit)
    told.factor = 1.0
    with net.edit() as edit:
        edit.prune("fc1", units=[0])


def test_a_tied_tensor_counts_under_its_owner() -> None:
    net = random_network(gn.transformer(11, width=8, depth=1, heads=2, context=6, tied=True), 0)
    owner = next(spec.shared for node in net.graph.nodes.values() for spec in node.tensors if spec.shared is not None)
    register_parametrization(net.get_submodule(owner.rpartition(".")[0]), "weight", Doubled())
    with pytest.raises(gn.EditError, match=owner), net.edit() as edit:
        edit.grow("tok", 2)


def test_the_way_that_the_error_names_works() -> None:
    net, _ = made({"fc2": weight_norm})
    output = net(X)
    remove_parametrizations(net.get_submodule("fc2"), "weight", leave_parametrized=True)
    net.detach(net.attached[0])
    net.attach(torch.optim.Adam(net.parameters(), lr=0.01))
    with net.edit() as edit:
        edit.grow("fc1", 2, preserves="function")
    weight_norm(net.fc2)
    torch.testing.assert_close(net(X), output, rtol=1e-12, atol=1e-14)


# -- beside it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["_WeightNorm", "_SpectralNorm", "_Orthogonal", "Doubled"])
def test_an_edit_beside_it_changes_no_bit_of_it(kind: str) -> None:
    register = {"_WeightNorm": weight_norm, "_SpectralNorm": spectral_norm, "_Orthogonal": orthogonal, **OTHERS}[kind]
    net, optimizer = made({"head": register})
    net.eval()
    before, output = facts(net, optimizer, "head"), net(X)
    net.train()
    with net.edit() as edit:
        edit.grow("fc1", 3, preserves="function")
        edit.permute("fc1", order=list(reversed(edit.graph.groups["fc1"].ids)))
    assert_same(facts(net, optimizer, "head"), before)
    assert all(part.training for part in net.modules())
    net.eval()
    torch.testing.assert_close(net(X), output, rtol=1e-12, atol=1e-14)
    net.train()
    step(net, optimizer)
    assert is_parametrized(net.head, "weight")
    assert not torch.equal(net.head.bias, before["head.bias"])


@pytest.mark.parametrize("averaged", [False, True])
def test_layers_that_stay_are_the_same_objects_when_ops_change(averaged: bool) -> None:
    net, optimizer = made({"fc1": weight_norm, "fc2": KINDS["Sinh"], "head": spectral_norm})
    if averaged:
        net.attach(AveragedModel(net))
    oracle, before, objects = plain(net), facts(net, optimizer), parts(net)
    modules = {name: net.get_submodule(name) for name in ("fc1", "fc2", "head", "fc1.parametrizations.weight")}
    net.eval()
    for one in (net, oracle.eval()):
        with one.edit(seed=3) as edit:
            edit.grow("fc1", 2)
            edit.deepen("act2", name="more")
            edit.prune("fc1", units=[2])
    net.train()
    assert all(net.get_submodule(name) is module for name, module in modules.items())
    assert all(parts(net)[name] is tensor for name, tensor in objects.items())
    after = facts(net, optimizer)
    kept = {name: value for name, value in after.items() if name in before}
    assert assert_units_stay(before, kept, "fc1", [0, 1, 3, 4, 5], [*range(5)]) >= 6
    assert assert_units_stay(before, kept, "fc2", [0, 1, 3, 4, 5], [*range(5)]) >= 3
    assert len(optimizer.param_groups[0]["params"]) == len(list(net.parameters()))
    with torch.no_grad():
        for name in net.graph.tensors:
            torch.testing.assert_close(net.eval().tensor(name), oracle.tensor(name), rtol=1e-13, atol=1e-14, msg=name)
    torch.testing.assert_close(net(X), oracle(X), rtol=1e-12, atol=1e-14)
    for averages in net.averaged:
        assert averages(X).shape == (8, 3)
    step(net.train(), optimizer)


def test_a_plan_reads_it_as_in_evaluation_mode() -> None:
    net, optimizer = made({"head": spectral_norm})
    before = facts(net, optimizer)
    with net.plan() as edit:
        edit.grow("fc2", 2)
        assert edit.cost.params[1] > edit.cost.params[0]
    assert_same(facts(net, optimizer), before)


def test_hooks_of_parametrizations_are_not_called_by_an_edit() -> None:
    net, optimizer = made({"fc1": weight_norm})
    called: list[int] = []
    net.fc1.parametrizations.weight[0].register_forward_hook(lambda *_: called.append(1))
    net.fc1.parametrizations.weight.register_forward_pre_hook(lambda *_: called.append(2))
    step(net, optimizer)
    once = len(called)
    with net.edit() as edit:
        edit.prune("fc1", units=[0])
    assert len(called) == 2 * once  # the one time that the weight is read
    assert once == 2


def test_trials_leave_buffers_alone() -> None:
    net, _ = made({"fc1": adding(lambda _: Counting())})
    before = int(net.fc1.parametrizations.weight[0].calls)
    with net.edit() as edit:
        edit.prune("fc1", units=[0])
    assert int(net.fc1.parametrizations.weight[0].calls) == before + 1  # the one time that the weight is read


@pytest.mark.parametrize("read", ["snapshot", "keep", "at"])
def test_reading_a_network_in_training_changes_nothing(read: str) -> None:
    """A step of the iteration of ``spectral_norm`` is taken each time that its weight is computed in training."""
    net, optimizer = made({"head": spectral_norm})
    before = facts(net, optimizer)
    {"snapshot": net.snapshot, "keep": net.keep, "at": lambda: net.at(0)}[read]()
    assert_same(facts(net, optimizer), before)
    assert all(part.training for part in net.modules())


def test_inside_cached_the_new_weight_is_used() -> None:
    net, _ = made({"fc1": weight_norm})
    with parametrize.cached():
        assert net(X).shape == (8, 3)
        with net.edit() as edit:
            edit.prune("fc1", units=[0])
        inside = net(X)
    assert torch.equal(inside, net(X))


def test_rounding_is_said() -> None:
    """The sum of squares along a weight's columns may be taken in another order."""
    net = random_network(gn.mlp([4, 37, 5, 3], activation="tanh"), 0)
    weight_norm(net.fc2)
    before = net.fc2.weight.detach().clone()
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1)).tolist()
    with net.edit() as edit:
        edit.permute("fc1", order=order)
    same = torch.equal(net.fc2.weight, before[:, order])
    assert same == (not net.history.latest.optimizer_notes)
    torch.testing.assert_close(net.fc2.weight, before[:, order], rtol=1e-14, atol=0.0)
    assert same or "fc2.weight: units that stay keep their values to rounding" in net.history.latest.optimizer_notes[0]


# -- other networks ------------------------------------------------------------------------------------------------


def test_convolutions_and_a_parametrized_bias() -> None:
    net = random_network(gn.convnet((3, 8, 8), channels=[6, 5], hidden=[7], classes=4), 0).to(
        memory_format=torch.channels_last
    )
    convs = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    weight_norm(net.get_submodule(convs[0]))
    adding(lambda _: Sinh())(net.get_submodule(convs[1]))
    adding(lambda _: Sinh(), "bias")(net.head)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    for _ in range(2):
        net(images).square().mean().backward()
        optimizer.step()
    oracle = plain(net)
    for one in (net, oracle):
        with one.edit(seed=2) as edit:
            edit.grow(convs[0], 2)
            edit.prune(convs[0], units=[1])
            edit.prune(convs[1], units=[0, 2])
    net.eval(), oracle.eval()
    torch.testing.assert_close(net(images), oracle(images), rtol=1e-12, atol=1e-13)
    assert net.get_submodule(convs[1]).parametrizations.weight.original.is_contiguous(memory_format=torch.channels_last)


def test_a_layer_of_one_unit_grows() -> None:
    net = random_network(gn.mlp([4, 1, 3], activation="tanh"), 0)
    weight_norm(net.fc1)
    adding(lambda _: Sinh())(net.head)
    output = net(X)
    with net.edit() as edit:
        edit.grow("fc1", 2, preserves="function")
    assert [tuple(part.shape) for part in parts(net).values()] == [(3, 1), (3, 4), (3, 3)]
    torch.testing.assert_close(net(X), output, rtol=1e-12, atol=1e-14)


def test_an_imported_model_that_is_parametrized_later() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    net = gn.from_torch(model, (X,))
    weight_norm(net.get_submodule("0"))
    adding(lambda _: Sinh())(net.get_submodule("2"))
    output = net(X)
    with net.edit() as edit:
        edit.grow("0", 2, preserves="function")
    torch.testing.assert_close(net(X), output, rtol=1e-12, atol=1e-14)
    with net.edit() as edit:
        edit.prune("0", lowest=3)
    assert [tuple(part.shape) for part in parts(net).values()] == [(5, 1), (5, 4), (3, 5)]
    assert net(X).shape == (8, 3)


def test_an_imported_model_that_was_parametrized_is_edited_and_saved(tmp_path: Path) -> None:
    """There the parametrization is part of the graph, as ops."""
    model = nn.Sequential(weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)).double()
    net = gn.from_torch(model, (X,))
    with net.edit() as edit:
        edit.prune("0", units=[0, 2])
    assert [tuple(part.shape) for part in parts(net).values()] == [(4, 1), (4, 4)]
    assert torch.equal(net.tensor("0.parametrizations.weight.original1"), model[0].parametrizations.weight.original1[
        [1, 3, 4, 5]])  # fmt: skip
    again = gn.load_network(net.save(tmp_path / "run.gn"))
    assert torch.equal(again(X), net(X))
    assert torch.equal(pickle.loads(pickle.dumps(net))(X), net(X))


def test_copies_and_files(tmp_path: Path) -> None:
    """A deep copy is one; a pickle is refused by torch, a checkpoint by us."""
    net, _ = made({"head": weight_norm, "fc1": KINDS["Masked"]})
    again, output = copy.deepcopy(net), net(X)
    assert torch.equal(again(X), output)
    with again.edit() as edit:
        edit.grow("fc1", 2, preserves="function")
    torch.testing.assert_close(again(X), output, rtol=1e-12, atol=1e-14)
    assert torch.equal(net(X), output)
    with net.edit() as edit:
        edit.prune("fc1", units=[3])
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(net)
    with pytest.raises(gn.CheckpointError, match="parametrization"):
        net.save(tmp_path / "run.gn")
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(plain(net)(X), net(X))


@pytest.mark.parametrize("incoming", [True, False])
def test_newborns_of_a_layer_that_is_masked_altogether_are_not(incoming: bool) -> None:
    """A mask of zeros says that newborns, too, would do nothing: the next best is a mask of ones."""
    net = gn.Network(gn.mlp([4, 6, 5, 3]), seed=0)
    layer = net.get_submodule("fc1" if incoming else "fc2")
    register_parametrization(layer, "weight", Masked(torch.zeros_like(layer.weight)))  # type: ignore[arg-type]
    with net.edit() as edit:
        edit.grow("fc1", 2, init="kaiming")
    (mask,) = (value for name, value in net.named_buffers() if name.endswith("mask"))
    born = mask[6:] if incoming else mask[:, 6:]
    assert bool((born == 1).all())
    assert float(mask.sum()) == born.numel()
    weight: Tensor = layer.weight  # type: ignore[assignment]
    assert bool((weight[6:] if incoming else weight[:, 6:]).abs().sum() > 0)

"""What a careless or hostile user does: odd arguments, a network changed by hand, steps inside an open edit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune

import graphnet as gn
from graphnet.ir.ops import OPS
from graphnet.testing import check_bits, check_lowering, random_network, sample, state_of

X = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4)
BATCH = (X, torch.tensor([0, 1, 2, 0]))


def small(norm: Any = None) -> gn.Network:
    return random_network(gn.mlp([4, 6, 5, 3], norm=norm), 0)


# -- arguments ----------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    1.5, float("nan"), -1, 10**30, True, "no such thing", "", b"b", {0}, [], [1], {"a": 1}, {1: 1}, object(),
    range(2), np.array([0, 1]), np.int64(2), torch.tensor([0, 1]), 1j, int,
]  # fmt: skip


def odd_name(value: Any) -> str:
    return f"{type(value).__name__}-{value}"[:24]


def _either(action: Callable[[], object]) -> None:
    """Works, or is refused by an error of ours: anything else is raised on."""
    with suppress(gn.GraphnetError):
        action()


def _edit(operator: str, **arguments: Any) -> Callable[[], object]:
    def action() -> None:
        net = small()
        if operator == "recruit":
            with net.edit() as edit:
                edit.retire("fc1", units=[0, 1])
        before = state_of(net)
        try:
            with net.edit() as edit:
                getattr(edit, operator)("fc1", **arguments)
        except gn.GraphnetError:
            check_bits(before, state_of(net), "a refused edit")
            raise
        assert all(bool(p.isfinite().all()) for p in net.parameters())

    return action


GROW = {"count": 1, "batch": BATCH, "loss": F.cross_entropy}
LOWEST = {"lowest": 1, "batch": BATCH, "loss": F.cross_entropy}
CALLS: dict[str, Callable[[Any], Callable[[], object]]] = {
    "grow.count": lambda v: _edit("grow", count=v),
    "grow.init": lambda v: _edit("grow", **GROW, init=v),
    "grow.state": lambda v: _edit("grow", **GROW, state=v),
    "grow.preserves": lambda v: _edit("grow", **GROW, preserves=v),
    "grow.speed": lambda v: _edit("grow", **GROW, speed=v),
    "grow.state_options": lambda v: _edit("grow", **GROW, state_options=v),
    "grow.incoming": lambda v: _edit("grow", **GROW, incoming=v),
    "grow.noise": lambda v: _edit("grow", **GROW, init="net2wider", noise=v),
    "grow.split": lambda v: _edit("grow", **GROW, init="net2wider", split=v),
    "grow.scale": lambda v: _edit("grow", **GROW, init="gradmax", scale=v),
    "grow.lift": lambda v: _edit("grow", **GROW, init="gradmax", lift=v),
    "grow.batch": lambda v: _edit("grow", **{**GROW, "init": "gradmax", "batch": v}),
    "grow.loss": lambda v: _edit("grow", **{**GROW, "init": "gradmax", "loss": v}),
    "grow.trajectory": lambda v: _edit(
        "grow", **GROW, init="net2wider", state="scaled", state_options={"trajectory": v}
    ),
    "prune.units": lambda v: _edit("prune", units=v),
    "prune.lowest": lambda v: _edit("prune", lowest=v),
    "prune.keep": lambda v: _edit("prune", keep=v),
    "prune.score": lambda v: _edit("prune", **LOWEST, score=v),
    "prune.preserves": lambda v: _edit("prune", **LOWEST, preserves=v),
    "prune.norm": lambda v: _edit("prune", **LOWEST, norm=v),
    "prune.tau": lambda v: _edit("prune", **LOWEST, score="activation-frequency", tau=v),
    "prune.form": lambda v: _edit("prune", **LOWEST, score="taylor", form=v),
    "retire.units": lambda v: _edit("retire", units=v),
    "recruit.units": lambda v: _edit("recruit", units=v),
    "recruit.highest": lambda v: _edit("recruit", highest=v, batch=BATCH),
    "recruit.state_options": lambda v: _edit("recruit", units=[0], state_options=v),
    "edit.apply": lambda v: lambda: _apply(v),
    "rewind.group": lambda v: lambda: _rewind(v, clear_state=True),
    "rewind.clear_state": lambda v: lambda: _rewind("fc1", clear_state=v),
    "history": lambda v: lambda: small().history[v],
    "birth_versions": lambda v: lambda: small().history.birth_versions(v),
    "expand": lambda v: lambda: small().graph.expand(v),
    "expand.limit": lambda v: lambda: small().graph.expand("fc1", limit=v),
    "probe.net": lambda v: lambda: gn.probe(v, BATCH, F.cross_entropy),
    "probe.batch": lambda v: lambda: gn.probe(small(), v, F.cross_entropy),
    "probe.loss": lambda v: lambda: gn.probe(small(), BATCH, v),
    "mlp.norm": lambda v: lambda: gn.mlp([4, 6, 3], norm=v),
    "mlp.widths": lambda v: lambda: gn.mlp(v),
    "resnet.blocks": lambda v: lambda: gn.resnet((3, 4, 4), stages=(2, 2), blocks=v),
    "transformer.depth": lambda v: lambda: gn.transformer(7, width=4, heads=2, depth=v),
    "transformer.tied": lambda v: lambda: gn.transformer(7, width=4, heads=2, depth=1, tied=v),
    "transformer.causal": lambda v: lambda: gn.transformer(7, width=4, heads=2, depth=1, causal=v),
}


def _apply(operator: Any) -> None:
    with small().edit() as edit:
        edit.apply(operator)


def _rewind(group: Any, **options: Any) -> None:
    net = small()
    snapshot = net.snapshot()
    with net.edit() as edit:
        edit.rewind(group, snapshot, **options)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("value", ODD, ids=odd_name)
@pytest.mark.filterwarnings("ignore")
def test_an_odd_argument_works_or_is_an_error_of_ours(call: str, value: Any) -> None:
    if call == "edit.apply" and callable(value):
        return  # what the caller's own operator raises is the caller's
    _either(CALLS[call](value))


@pytest.mark.parametrize("value", [v for v in ODD if not isinstance(v, str)], ids=odd_name)
def test_a_picture_needs_a_path(value: Any) -> None:
    with pytest.raises(gn.GraphError):
        gn.mlp([2, 2, 2]).draw(value)


@pytest.mark.parametrize("init", ["kaiming", "copy-std", "zero-outgoing", "gradmax"])
@pytest.mark.parametrize("score", ["gradient", "gate", "taylor"])
def test_weights_that_are_not_numbers_are_refused(init: str, score: str) -> None:
    net = small()
    with torch.no_grad():
        net.fc1.weight.fill_(float("nan"))
    _either(_on(net, lambda e: e.grow("fc1", 1, init=init, batch=BATCH, loss=F.cross_entropy)))
    _either(_on(net, lambda e: e.prune("fc1", lowest=1, score=score, batch=BATCH, loss=F.cross_entropy)))


def _on(net: gn.Network, action: Callable[[gn.Edit], object]) -> Callable[[], None]:
    def run() -> None:
        with net.edit() as edit:
            action(edit)

    return run


def test_a_loss_that_returns_nothing_is_refused() -> None:
    for score in ("gradient", "gate", "taylor"):
        with pytest.raises(gn.EditError, match="the loss must be a scalar tensor"), small().edit() as edit:
            edit.prune("fc1", lowest=1, score=score, batch=BATCH, loss=lambda *_: None)  # type: ignore[arg-type,return-value]


# -- a network changed by hand --------------------------------------------------------------------------------------


def _set(path: str, make: Callable[[gn.Network], Any]) -> Callable[[gn.Network], None]:
    def change(net: gn.Network) -> None:
        module, _, attribute = path.rpartition(".")
        setattr(net.get_submodule(module), attribute, make(net))

    return change


class Mixed(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.cumsum(0)


def _resize(net: gn.Network) -> None:
    net.head.weight.data = torch.zeros(3, 8, dtype=torch.float64)


CHANGES: dict[str, tuple[Callable[[gn.Network], object], str]] = {
    "parametrized": (lambda n: parametrize.register_parametrization(n.fc1, "weight", Mixed()), "'fc1.weight'"),
    "orthogonal": (lambda n: parametrizations.orthogonal(n.fc2), "'fc2.weight'"),
    "parametrized bias": (lambda n: parametrize.register_parametrization(n.fc1, "bias", Mixed()), "'fc1.bias'"),
    "old weight norm": (lambda n: torch.nn.utils.weight_norm(n.fc1), "'fc1.weight'"),
    "spectral norm": (lambda n: torch.nn.utils.spectral_norm(n.fc1), "'fc1.weight'"),
    "pruned by torch": (lambda n: torch_prune.l1_unstructured(n.fc1, "weight", amount=0.5), "'fc1.weight'"),
    "a layer": (_set("fc1", lambda _: nn.Linear(4, 6).double()), "'fc1' was replaced"),
    "a sequence": (_set("fc1", lambda _: nn.Sequential(nn.Linear(4, 6))), "'fc1' was replaced"),
    "an activation": (_set("act1", lambda _: nn.Tanh()), "'act1' was replaced"),
    "no layer": (lambda n: delattr(n, "fc2"), "'fc2' was replaced or removed"),
    "no bias": (_set("fc1.bias", lambda _: None), "'fc1.bias'"),
    "wider": (_set("fc1.weight", lambda _: nn.Parameter(torch.zeros(9, 4).double())), r"\[9, 4\]"),
    "resized in place": (_resize, r"'head.weight' has shape \[3, 8\]"),
    "a tie": (_set("fc3.weight", lambda n: n.fc2.weight), "'fc2.weight' and 'fc3.weight' are one tensor"),
    "meta": (lambda n: n.to("meta"), "meta device"),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("operator", ["grow", "prune"])
@pytest.mark.filterwarnings("ignore")
def test_a_network_changed_by_hand_is_refused(what: str, operator: str) -> None:
    net = random_network(gn.mlp([4, 6, 5, 5, 8, 3] if what == "a tie" else [4, 6, 5, 3]), 0)
    change, message = CHANGES[what]
    change(net)
    with pytest.raises(gn.EditError, match=message), net.edit() as edit:
        edit.grow("fc1", 1) if operator == "grow" else edit.prune("fc1", units=[0])
    assert net.version == 0


def test_a_network_changed_inside_the_edit_is_refused() -> None:
    net = small()

    def act(edit: gn.Edit) -> None:
        edit.grow("fc1", 1)
        net.fc1 = nn.Linear(4, 6).double()

    with pytest.raises(gn.EditError, match="'fc1' was replaced"):
        _on(net, act)()


def test_a_broken_tie_is_refused() -> None:
    net = gn.Network(gn.transformer(7, width=8, depth=1, heads=2, context=6, tied=True))
    net.head.weight = nn.Parameter(net.tok.weight.detach().clone())
    with pytest.raises(gn.EditError, match=r"'head\.weight' is tied to 'tok\.weight'"), net.edit() as edit:
        edit.grow("tok", 2, init="copy-std")


def test_a_parameter_of_the_same_shape_may_be_replaced() -> None:
    net = small()
    net.fc1.weight = nn.Parameter(torch.ones(6, 4, dtype=torch.float64))
    with net.edit() as edit:
        edit.prune("fc1", units=[0])
    assert torch.equal(net.fc1.weight, torch.ones(5, 4, dtype=torch.float64))
    check_lowering(net)


# -- inside an open edit --------------------------------------------------------------------------------------------


INSIDE: dict[str, Callable[[gn.Network, torch.optim.Optimizer], object]] = {
    "step": lambda net, optimizer: optimizer.step(),
    "backward": lambda net, optimizer: net(X).square().mean().backward(),
    "write": lambda net, optimizer: nn.init.ones_(net.fc1.weight),
    "convert": lambda net, optimizer: net.float(),
    "zero_grad": lambda net, optimizer: optimizer.zero_grad(),
    "moments": lambda net, optimizer: optimizer.state[net.fc1.weight]["exp_avg"].zero_(),
}


@pytest.mark.parametrize("act", INSIDE)
def test_what_changes_a_tensor_inside_an_edit_is_refused(act: str) -> None:
    # The plan has read the old values: committing it would lose the change, or mix types.
    net = small("batch")
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    net.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()
    edit = _on(net, lambda e: (e.grow("fc1", 1), INSIDE[act](net, optimizer)))
    with pytest.raises(gn.EditError, match="was changed while the edit was open"):
        edit()
    assert net.version == 0
    assert tuple(net.fc1.weight.shape) == (6, 4)


@pytest.mark.parametrize("metrics", [5, "loss", [1.0], {"loss": "a"}])
def test_odd_metrics_of_a_policy_are_refused(metrics: Any) -> None:
    rule = {
        "name": "grow",
        "match": {"nodes": {"h": {"kind": "units", "role": "hidden"}}},
        "steps": [{"do": "grow", "units": "h", "count": 1}],
        "schedule": {"kind": "every", "steps": 1},
    }
    policy = gn.load_policy({"kind": "policy", "schema_version": 1, "rules": [rule]})
    with pytest.raises(gn.GraphnetError, match="metric"):
        policy.step(small(), step=1, metrics=metrics)


# -- the function ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["net2wider", "zero-outgoing"])
def test_a_square_layer_used_twice_is_written_once(init: str) -> None:
    # "b" writes and reads one group, and "c" shares its weight: a use that is listed twice was divided twice.
    op = OPS
    graph = gn.Graph.from_ops(
        [
            op["input"](name="x", shape=(4,)),
            op["linear"](name="a", inputs=("x",), out=6),
            op["linear"](name="b", inputs=("a",), out=6),
            op["tanh"](name="t", inputs=("b",)),
            op["linear"](name="c", inputs=("t",), out=6, tied="b"),
            op["linear"](name="head", inputs=("c",), out=3),
        ],
        ["head"],
    )
    net = random_network(graph, 1)
    inputs = sample(graph)
    before = net(*inputs)
    with net.edit() as edit:
        edit.grow("a", 2, init=init, preserves="function")
    torch.testing.assert_close(net(*inputs), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", [10**12, 0, None, 1.5, [], True])
def test_a_checkpoint_is_named_by_a_path(path: object) -> None:
    with pytest.raises(gn.CheckpointError):
        gn.load_network(path)  # type: ignore[arg-type]


def test_a_kind_that_is_an_array_is_a_schema_error() -> None:
    with pytest.raises(gn.SchemaError, match="at kind"):
        gn.load({"kind": np.array([1, 2])})


def test_loading_with_assign_changes_what_the_network_computes() -> None:
    graph = gn.transformer(11, width=8, depth=1, heads=2, context=5)
    one, two = gn.Network(graph, seed=0).eval(), gn.Network(graph, seed=1).eval()
    tokens = torch.arange(5)[None]
    one.load_state_dict(two.state_dict(), assign=True)
    assert torch.equal(one(tokens), two(tokens))


@pytest.mark.parametrize("name", ["fc9.weight", "fc1", "fc1.weigth", "", 3, None])
def test_a_tensor_that_is_not_there_is_a_graph_error(name: object) -> None:
    with pytest.raises(gn.GraphError):
        gn.Network(gn.mlp([4, 8, 2])).tensor(name)  # type: ignore[arg-type]

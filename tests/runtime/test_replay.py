"""A journal, replayed, gives the graph that it was written from; with its seeds, the tensors too (law 9)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import graphnet as gn
from graphnet.edit.plan import Plan
from graphnet.runtime.replay import replay, replay_graph

GRAPHS: dict[str, Callable[[], gn.Graph]] = {
    "mlp": lambda: gn.mlp([4, 6, 5, 3]),
    "convnet": lambda: gn.convnet((1, 8, 8), channels=[3, 4], hidden=[5], classes=2, norm="batch"),
    "resnet": lambda: gn.resnet((2, 4, 4), stages=[3, 4], blocks=1, classes=2),
}
INITIALISERS = ("zero-outgoing", "kaiming", "copy-std", "net2wider")
STATES = ("cold", "aged", "transplant")


def as_json(net: gn.Network) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(json.dumps(net.history.journal()))
    return found


def edit_at_random(edit: gn.Edit, data: st.DataObject) -> None:
    """One random operator that needs no data, on a random group."""
    groups = edit.graph.groups
    name = data.draw(st.sampled_from(sorted(n for n, g in groups.items() if g.frozen is None and not g.output)))
    group = groups[name]
    spare = group.size - group.minimum
    choices = ["grow", *(["prune", "retire"] if spare else []), *(["recruit"] if group.dormant else [])]
    what = data.draw(st.sampled_from(choices))
    if what == "grow":
        init, state = data.draw(st.sampled_from(INITIALISERS)), data.draw(st.sampled_from(STATES))
        options = {"split": "random", "noise": 0.1} if init == "net2wider" else {}
        speed = data.draw(st.sampled_from([None, (2.0, 3)]))
        first = {"first_moments": True} if state == "transplant" else None
        edit.grow(
            name, data.draw(st.integers(1, 3)), init=init, state=state, speed=speed, state_options=first, **options
        )
    elif what == "recruit":
        units = data.draw(st.lists(st.sampled_from(group.dormant), min_size=1, unique=True))
        edit.recruit(name, units=units, state=data.draw(st.sampled_from(STATES)))
    else:
        count = data.draw(st.integers(1, min(spare, 3)))
        by = data.draw(st.sampled_from(["units", "magnitude", "random", "keep"]))
        if by == "units":
            getattr(edit, what)(name, units=data.draw(st.permutations(group.ids))[:count])
        elif by == "keep":
            getattr(edit, what)(name, keep=group.size - count, score="magnitude", norm="l2")
        else:
            getattr(edit, what)(name, lowest=count, score=by)


@given(data=st.data())
def test_graphs_and_tensors_are_replayed(data: st.DataObject) -> None:
    net = gn.Network(GRAPHS[data.draw(st.sampled_from(sorted(GRAPHS)))](), seed=data.draw(st.integers(0, 5)))
    first = copy.deepcopy(net)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    for _ in range(data.draw(st.integers(0, 4))):
        with net.edit(seed=data.draw(st.none() | st.integers(0, 2**62))) as edit:
            for _ in range(data.draw(st.integers(1, 3))):
                edit_at_random(edit, data)
    journal = as_json(net)

    graph = replay_graph(first.graph.to_document(), journal)
    assert graph.groups == net.graph.groups
    assert graph.to_document() == net.graph.to_document()

    again = replay(first, journal)
    assert again.graph.groups == net.graph.groups
    found = again.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in net.state_dict().items())
    for name in net.graph.tensors:
        here, there = net.reserve_of(name), again.reserve_of(name)
        assert (here is None) == (there is None)
        assert here is None or there is None or torch.equal(here, there)
    assert [r["steps"] for r in as_json(again)] == [r["steps"] for r in journal]
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in before.items())  # the copy was edited


@given(data=st.data())
def test_a_replay_can_begin_in_the_middle(data: st.DataObject) -> None:
    net = gn.Network(GRAPHS["mlp"]())
    middle = data.draw(st.integers(0, 3))
    for version in range(4):
        if version == middle:
            then = copy.deepcopy(net)
        with net.edit() as edit:
            edit_at_random(edit, data)
    assert replay_graph(then.graph, as_json(net)).groups == net.graph.groups
    found = replay(then, as_json(net)).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in net.state_dict().items())


def test_an_edit_of_values_alone_is_a_version_too() -> None:
    net = gn.Network(GRAPHS["mlp"]())
    with net.edit() as edit:
        edit.rewind("fc1", net.snapshot())
    with net.edit() as edit:
        edit.grow("fc1", 1)
    assert [version.number for version in net.history] == [0, 1, 2]
    assert replay_graph(GRAPHS["mlp"](), as_json(net)).version == 2


def test_a_step_holds_everything_that_it_was_given_but_data() -> None:
    net = gn.Network(GRAPHS["mlp"]())
    with net.edit() as edit:
        edit.grow("fc1", 1, init="net2wider", state="transplant", state_options={"first_moments": True}, speed=(2.0, 3))
        edit.retire("fc2", units=[1])
        edit.recruit("fc2", units=[1], state="cold", speed=(2.0, 3))
    steps = as_json(net)[1]["steps"]
    assert steps[0]["arguments"] == {
        "count": 1, "init": "net2wider", "state": "transplant", "state_options": {"first_moments": True},
        "speed": [2.0, 3],
    }  # fmt: skip
    assert steps[2]["arguments"] == {"units": [1], "state": "cold", "speed": [2.0, 3]}
    assert [step["dormant"] for step in steps] == [False, True, True]
    assert replay_graph(GRAPHS["mlp"](), as_json(net)).groups == net.graph.groups


# -- what does not fit --------------------------------------------------------------------------------------------


@pytest.fixture
def journal() -> list[dict[str, Any]]:
    net = gn.Network(GRAPHS["mlp"]())
    for _ in range(2):
        with net.edit() as edit:
            edit.grow("fc1", 2)
        with net.edit() as edit:
            edit.retire("fc1", lowest=2)
        with net.edit() as edit:
            edit.recruit("fc1", units=edit.graph.groups["fc1"].dormant[:1])
    return as_json(net)


Damage = Callable[[list[dict[str, Any]]], object]
DAMAGES: dict[str, tuple[str, Damage]] = {
    "a record is missing": ("at version 3", lambda j: j.pop(2)),
    "another parent": ("at version 2", lambda j: j[2].update(parent=0)),
    "out of order": ("at version 2", lambda j: j.insert(1, j.pop(2))),
    "ids given before": ("version 4, step 1.*below 8", lambda j: j[4]["steps"][0].update(born=[3, 9])),
    "units are gone": ("version 2, step 1.*not there", lambda j: j[2]["steps"][0].update(dropped=[77, 78])),
    "not dormant": ("version 3, step 1.*not dormant", lambda j: j[3]["steps"][0].update(born=[0])),
    "a unit too few": ("version 4: 'fc1' would have 8 units", lambda j: j[4]["steps"][0].update(born=[8])),
    "gone for good": ("version 2: 'fc1' would have 0 dormant", lambda j: j[2]["steps"][0].update(dormant=False)),
    "a step is missing": ("version 1: 'fc1' would have 6 units", lambda j: j[1].update(steps=[])),
    "no such group": ("version 1, step 1.*fc9", lambda j: j[1]["steps"][0].update(group="fc9")),
    "every unit goes": ("version 2, step 1", lambda j: j[2]["steps"][0].update(dropped=list(range(8)))),
    "an id twice": ("version 1, step 1.*twice", lambda j: j[1]["steps"][0].update(born=[6, 6])),
    "no version": ("record 2", lambda j: j[2].pop("version")),
    "no record": ("record 1", lambda j: j.__setitem__(1, "text")),
    "no ids": ("record 1", lambda j: j[1]["steps"][0].update(born="abc")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_journal_that_does_not_fit_says_where(name: str, journal: list[dict[str, Any]]) -> None:
    assert replay_graph(GRAPHS["mlp"](), journal).version == 6
    message, damage = DAMAGES[name]
    damage(journal)
    net = gn.Network(GRAPHS["mlp"]())
    for run in (lambda: replay_graph(net.graph, journal), lambda: replay(net, journal)):
        with pytest.raises(gn.GraphnetError, match=message):
            run()
    assert net.version == 0


@pytest.mark.parametrize("journal", [{}, "text"])
def test_what_is_no_list_is_no_journal(journal: Any) -> None:
    with pytest.raises(gn.EditError, match="list of records"):
        replay_graph(GRAPHS["mlp"](), journal)


def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(output, y)


def own(plan: Plan) -> None:
    """An operator of the caller's that records nothing."""


BATCH = (torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3)
NEEDY: dict[str, tuple[str, Callable[[gn.Edit, gn.Network], object]]] = {
    "gradmax": (
        r"step 2 \(grow 'fc1'\).*needs data",
        lambda e, n: e.grow("fc1", 1, init="gradmax", batch=BATCH, loss=loss),
    ),
    "gradient": (
        r"step 2 \(prune 'fc2'\).*needs data",
        lambda e, n: e.prune("fc2", lowest=1, score="gradient", batch=BATCH, loss=loss),
    ),
    "activity": (
        r"step 2 \(retire 'fc2'\).*needs data",
        lambda e, n: e.retire("fc2", lowest=1, score="activation-frequency", batch=BATCH),
    ),
    "recruit": (r"step 2 \(recruit 'fc1'\).*needs data", lambda e, n: e.recruit("fc1", highest=1, batch=BATCH)),
    "rewind": (r"step 2 \(rewind 'fc2'\).*needed a snapshot", lambda e, n: e.rewind("fc2", n.snapshot())),
    "own": (r"step 2 \(own\).*none of grow", lambda e, n: e.apply(own)),
}


@pytest.mark.parametrize("name", NEEDY)
def test_steps_that_needed_data_are_named(name: str) -> None:
    net = gn.Network(GRAPHS["mlp"]())
    first = copy.deepcopy(net)
    message, step = NEEDY[name]
    with net.edit() as edit:
        edit.grow("fc1", 1)
    with net.edit() as edit:
        edit.retire("fc1", lowest=1)
        step(edit, net)
    with pytest.raises(gn.EditError, match="version 2, " + message):
        replay(first, as_json(net))
    assert first.version == 0
    assert replay_graph(first.graph, as_json(net)).groups == net.graph.groups


def test_training_in_between_is_noticed_where_it_changes_the_choice() -> None:
    net = gn.Network(GRAPHS["mlp"]())
    first = copy.deepcopy(net)
    with torch.no_grad():
        net.tensor("fc1.weight").copy_(net.tensor("fc1.weight").flip(0) * torch.arange(1, 7)[:, None])
    with net.edit() as edit:
        edit.prune("fc1", lowest=2)
    with pytest.raises(gn.EditError, match=r"version 1, step 1 \(prune 'fc1'\).*trained"):
        replay(first, as_json(net))

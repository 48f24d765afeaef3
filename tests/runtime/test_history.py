"""History is a graph of versions: kept versions come back bit for bit, and what is edited after that is a branch."""

from __future__ import annotations

import copy
import json
import os
import pickle  # noqa: TID251 - that a network with kept versions survives it is what is tested
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

import graphnet as gn
from graphnet.edit.plan import Plan
from graphnet.ir.ops import OPS
from graphnet.runtime import rollback, structure
from graphnet.runtime.checkpoint import load_checkpoint
from graphnet.runtime.history import History, Version
from graphnet.runtime.replay import replay_graph
from graphnet.testing import check_bits, edit_calls, graphs, optimizers, random_network, sample, train, wave_loss


def small() -> gn.Network:
    return random_network(gn.mlp([4, 6, 5, 3], norm="batch", activation="tanh"), 0)


def everything(net: gn.Network) -> dict[str, Tensor]:
    """Tensors, weights of dormant units, optimizer state and ages, by what they are."""
    found = {name: net.tensor(name).detach().clone() for name in net.graph.tensors}
    found |= {f"reserve {n}": v.clone() for n in net.graph.tensors if (v := net.reserve_of(n)) is not None}
    names = {net.tensor(name): name for name in net.graph.tensors}
    for key, attached in net._attached.items():
        found[f"{key} steps"] = torch.tensor(attached.updates.steps)
        for parameter, held in attached.optimizer.state.items():
            found |= {f"{key} {names[parameter]} {k}": torch.as_tensor(v).clone() for k, v in held.items()}
        for parameter, births in attached.updates.births.items():
            for kind in ("birth", "rate", "until", "multiplier"):
                found |= {f"{key} {names[parameter]} {kind} {d}": v.clone() for d, v in births.table(kind).items()}
    for index, model in enumerate(net.averaged):
        found |= {f"average {index} {n}": t.detach().clone() for n, t in model.module.state_dict().items()}
    return found


def units(graph: gn.Graph) -> dict[str, Any]:
    return {name: (group.ids, group.dormant) for name, group in graph.groups.items()}


OPERATORS = ("grow", "prune", "retire", "recruit", "rewind", "reset", "insert", "remove", "redirect")


def change(net: gn.Network, data: st.DataObject) -> None:
    """Any edit; one that is refused changes nothing."""
    call = data.draw(edit_calls(net.graph, OPERATORS))
    with suppress(gn.GraphnetError), net.edit() as edit:
        call.apply(edit)


def insert_layer(plan: Plan) -> None:
    """A layer and a residual sum after ``fc1``: ops and parameters that were not there."""
    size = plan.graph.groups["fc1"].size
    plan.restructure(
        [
            OPS["linear"](name="extra", inputs=("act1",), out=size),
            OPS["add"](name="sum", inputs=("act1", "extra")),
            plan.graph.ops["fc2"].model_copy(update={"inputs": ("sum",)}),
        ],
        tensors={
            "extra.weight": torch.full((size, size), 0.01, dtype=torch.float64),
            "extra.bias": torch.zeros(size, dtype=torch.float64),
        },
    )


def drop_norm(plan: Plan) -> None:
    """The norm after ``fc1`` goes."""
    plan.restructure([plan.graph.ops["act1"].model_copy(update={"inputs": ("fc1",)})], remove=["norm1"])


# -- going back -------------------------------------------------------------------------------------------------------


@given(st.data())
def test_a_kept_version_comes_back_bit_for_bit(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    net = random_network(graph, data.draw(st.integers(0, 9)))
    optimizer = data.draw(optimizers())(net.parameters())
    net.attach(optimizer)
    train(net, optimizer, 2)
    for _ in range(data.draw(st.integers(0, 2))):
        change(net, data)
        train(net, optimizer, 1)
    kept, before, at = net.keep(), everything(net), units(net.graph)
    for _ in range(data.draw(st.integers(1, 3))):
        change(net, data)
        train(net, optimizer, 1)
    last, parameters = net.version, dict(net.named_parameters())
    version = net.rollback(kept.version)
    check_bits(before, everything(net), "a kept version")
    assert units(net.graph) == at
    assert (version.number, version.parent, net.version) == (last + 1, kept.version, last + 1)
    assert all(parameters.get(name, parameter) is parameter for name, parameter in net.named_parameters())
    train(net, optimizer, 1)
    change(net, data)
    assert [v.number for v in net.history.branches] == ([net.version] if last == kept.version else [last, net.version])


@pytest.mark.parametrize("forward", [True, False], ids=["ops came", "ops went"])
def test_ops_that_came_and_went_come_and_go_back(forward: bool) -> None:
    net = small()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    net.attach(optimizer)
    average = AveragedModel(net)
    net.attach(average)
    train(net, optimizer, 2)
    average.update_parameters(net)
    held = dict(net.named_parameters())
    seen: list[int] = []
    net.fc1.register_forward_hook(lambda *_: seen.append(1))
    if not forward:
        with net.edit() as edit:
            edit.apply(insert_layer)
            edit.apply(drop_norm)
        train(net, optimizer, 2)
        average.update_parameters(net)
    kept, before = net.keep(), everything(net)
    x = sample(net.graph)
    output = net.eval()(*x)
    net.train()
    with net.edit() as edit:
        if forward:
            edit.apply(insert_layer)
            edit.apply(drop_norm)
        else:
            edit.apply(lambda plan: plan.restructure(
                [plan.graph.ops["fc2"].model_copy(update={"inputs": ("act1",)})], remove=["sum", "extra"]
            ))  # fmt: skip
        edit.grow("fc1", 3, init="kaiming")
    train(net, optimizer, 2)
    average.update_parameters(net)
    net.rollback(kept.version)
    check_bits(before, everything(net), "a kept version of other ops")
    assert torch.equal(net.eval()(*x), output)
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in net.named_children() for n in _names(net, n)]
    assert net.fc1.weight is held["fc1.weight"]
    assert {id(p) for p in net.parameters()} == {id(p) for p in optimizer.param_groups[0]["params"]}
    assert sorted(net.graph.ops) == sorted(kept.graph.ops)
    seen.clear()
    train(net, optimizer, 1)
    assert seen  # the layer that stayed is the same object, with its hooks
    assert net.history.diff(kept.version).same_ops
    assert replay_graph(net.history[0].graph, net.history.journal()).to_document() == net.graph.to_document()


def _names(net: gn.Network, child: str) -> list[str]:
    return [f"{child}.{name}" for name, _ in net.get_submodule(child).named_parameters()]


def test_training_goes_on_as_it_did_from_there() -> None:
    net = small()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    with net.edit() as edit:
        edit.grow("fc1", 2, init="kaiming", state="aged", speed=(3.0, 50))
    train(net, optimizer, 3)
    net.keep()
    train(net, optimizer, 4)
    expected = everything(net)
    with net.edit() as edit:
        edit.prune("fc1", lowest=4)
    train(net, optimizer, 2)
    net.rollback(1)
    train(net, optimizer, 4)
    check_bits(expected, everything(net), "training from a kept version")
    net.rollback(1)  # what was kept is still what it was
    train(net, optimizer, 4)
    check_bits(expected, everything(net), "training from a kept version, twice")


def test_a_loss_from_before_a_rollback_raises_our_error() -> None:
    net = small()
    net.keep()
    loss = wave_loss(net(*sample(net.graph)))
    part = net.fc1(sample(net.graph)[0]).sum()
    net.rollback(0)
    for stale in (loss, part):
        with pytest.raises(gn.EditError, match="before an edit"):
            stale.backward()
    assert all(p.grad is None for p in net.parameters())


def test_ids_of_another_branch_are_not_given_again() -> None:
    net = small()
    net.keep()
    with net.edit() as edit:
        first = edit.grow("fc1", 2)
    net.rollback(0)
    with net.edit() as edit:
        second = edit.grow("fc1", 2)
    assert set(first).isdisjoint(second)
    assert net.history.diff(1, 3).groups_changed["fc1"].born == second
    assert net.history.diff(1, 3).groups_changed["fc1"].dropped == first


def test_constant_parameters_and_dormant_units_come_back() -> None:
    net = small()
    net.fc1.weight.requires_grad_(False)
    with net.edit() as edit:
        edit.retire("fc2", units=[1, 3])
    net.keep()
    net.fc1.weight.requires_grad_(True)
    with net.edit() as edit:
        edit.recruit("fc2", units=[1])
        edit.prune("fc2", units=[0])
    net.rollback(1)
    assert not net.fc1.weight.requires_grad
    assert net.graph.groups["fc2"].dormant == (1, 3)
    weight = small().fc2.weight
    with net.edit() as edit:
        edit.recruit("fc2", units=[3])
    assert torch.equal(net.fc2.weight[2], weight[3])


def test_two_optimizers_and_lbfgs() -> None:
    net = small()
    first = torch.optim.SGD(net.fc1.parameters(), lr=0.1, momentum=0.9)
    rest = [p for name, p in net.named_parameters() if not name.startswith("fc1.")]
    second = torch.optim.LBFGS(rest, lr=0.1, max_iter=2)
    net.attach(first)
    net.attach(second)

    def step() -> None:
        def closure() -> Tensor:
            net.zero_grad()
            loss = wave_loss(net(*sample(net.graph)))
            loss.backward()
            return loss

        closure()
        first.step()
        second.step(closure)

    step()
    net.keep()
    momentum = first.state[net.fc1.weight]["momentum_buffer"].clone()
    with net.edit() as edit:
        edit.grow("fc2", 1)
    step()
    net.rollback(0)
    assert torch.equal(first.state[net.fc1.weight]["momentum_buffer"], momentum)
    assert not second.state  # as any edit, going back clears what LBFGS remembers
    step()


def test_what_cannot_be_gone_back_to_is_refused_and_changes_nothing() -> None:
    net = small()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.keep()
    net.attach(optimizer)
    train(net, optimizer, 1)
    with net.edit() as edit:
        edit.grow("fc1", 1)
    before, version = everything(net), net.version
    cases: list[tuple[Any, str]] = [
        (0, "Adam had at version 0 is not known"), (1, "tensors of version 1 are not kept.*kept in memory: 0"),
        (7, "no version 7"), ("0", "no version '0'"), (True, "no version True"), (None, "no version None"),
    ]  # fmt: skip
    for number, message in cases:
        with pytest.raises(gn.EditError, match=message):
            net.rollback(number)
    with net.edit() as edit, pytest.raises(gn.EditError, match="an edit is open"):
        net.rollback(0)
    with torch.inference_mode(), pytest.raises(gn.EditError, match="inference mode"):
        net.rollback(0)
    net.fc1.register_parameter("mine", None)
    net.fc1.bias, bias = None, net.fc1.bias
    with pytest.raises(gn.EditError, match=r"'fc1\.bias'"):
        net.rollback(0)
    net.fc1.bias = bias
    check_bits(before, everything(net), "a refused rollback")
    assert net.version == version
    net.rollback(0, reset_optimizers=True)
    assert not optimizer.state
    train(net, optimizer, 1)


def test_other_parameter_groups_are_noticed() -> None:
    net = small()
    optimizer = torch.optim.SGD(net.fc1.parameters(), lr=0.1)
    net.attach(optimizer)
    net.keep()
    optimizer.add_param_group({"params": [p for n, p in net.named_parameters() if not n.startswith("fc1.")]})
    with pytest.raises(gn.EditError, match="other parameter groups"):
        net.rollback(0)


def test_keeping_is_bounded_and_can_be_let_go() -> None:
    net = small()
    optimizer = torch.optim.Adam(net.parameters())
    net.attach(optimizer)
    train(net, optimizer, 1)
    kept = net.keep()
    params = sum(p.numel() * p.element_size() for p in net.parameters())
    buffers = sum(b.numel() * b.element_size() for b in net.buffers())
    assert kept.bytes == 3 * params + buffers + 4 * len(list(net.parameters()))  # weights, two moments, the steps
    net.on_commit(lambda version: net.keep(last=2))
    for _ in range(4):
        with net.edit() as edit:
            edit.grow("fc1", 1)
    assert sorted(net.kept) == [3, 4]
    net.forget(3, 99)
    assert sorted(net.kept) == [4]
    with pytest.raises(TypeError):
        net.kept[0] = kept  # type: ignore[index]
    for wrong in (0, -1, 1.5, "2", True):
        with pytest.raises(gn.EditError, match="last is how many"):
            net.keep(last=wrong)  # type: ignore[arg-type]


def test_callbacks_hear_of_a_rollback() -> None:
    net = small()
    net.keep()
    heard: list[tuple[int, str]] = []
    net.on_commit(lambda version: heard.append((version.number, version.steps[0].operator)))
    net.rollback(0)
    assert heard == [(1, "rollback")]


class InjectedError(BaseException):
    """Raised at one bytecode of a rollback."""


def test_an_error_at_any_bytecode_leaves_the_old_state_or_the_new_one() -> None:
    def make() -> gn.Network:
        net = small()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        net.attach(optimizer)
        train(net, optimizer, 1)
        net.keep()
        with net.edit() as edit:
            edit.apply(insert_layer)
            edit.grow("fc1", 2, state="aged")
        train(net, optimizer, 1)
        return net

    traced = {module.__file__ for module in (rollback, structure)}

    def leave(net: gn.Network, at: int) -> tuple[int, BaseException | None]:
        count = 0

        def local(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal count
            if event == "opcode":
                count += 1
                if count == at:
                    raise InjectedError
            return local

        def outer(frame: FrameType, event: str, _: Any) -> Any:
            if frame.f_code.co_filename not in traced:
                return None
            frame.f_trace_opcodes = True
            return local

        raised: BaseException | None = None
        sys.settrace(outer)
        try:
            net.rollback(0)
        except BaseException as error:
            raised = error.with_traceback(None)
        finally:
            sys.settrace(None)
        return count, raised

    def state(net: gn.Network) -> dict[str, Any]:
        names = [name for name, _ in net.named_parameters()]
        held = [id(p) for p in net.attached[0].param_groups[0]["params"]]
        return {"tensors": everything(net), "names": names, "held": [held.index(id(p)) for p in net.parameters()]}

    def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
        a, b = one["tensors"], two["tensors"]
        return one["names"] == two["names"] and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

    reference = make()
    total, raised = leave(reference, -1)
    assert raised is None
    new = state(reference)
    net, outcomes = make(), [0, 0]
    old = state(net)
    handler = signal.getsignal(signal.SIGINT)
    for at in range(1, total + 1, max(1, total // 150)):
        _, raised = leave(net, at)
        signal.signal(signal.SIGINT, handler)
        assert isinstance(raised, InjectedError)
        now = state(net)
        if same(now, old):
            assert net.version == 1
            outcomes[0] += 1
        else:
            assert same(now, new), f"bytecode {at} of {total}: a mixture"
            assert net.version == 2
            outcomes[1] += 1
            net = make()
    assert outcomes[0] > 100
    train(net, net.attached[0], 1)  # type: ignore[arg-type]


# -- versions of their own -------------------------------------------------------------------------------------------


def test_at_gives_a_network_of_its_own() -> None:
    net = small()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    net.keep()
    x = sample(net.graph)
    net.eval()
    first = net(*x)
    with net.edit() as edit:
        edit.grow("fc1", 2, init="kaiming")
        edit.retire("fc2", units=[0])
    now = net(*x)
    before = everything(net)
    old, current = net.at(0), net.at(1)
    assert torch.equal(old(*x), first)
    assert torch.equal(current(*x), now)
    assert (old.version, current.version) == (0, 1)
    assert [v.number for v in old.history] == [0]
    assert not old.training
    assert current.graph.groups["fc2"].dormant == (0,)
    own = torch.optim.SGD(old.parameters(), lr=0.1)
    old.attach(own)
    train(old, own, 1)
    with old.edit() as edit:
        edit.grow("fc1", 1)
    with current.edit() as edit:
        edit.recruit("fc2", units=[0])
    check_bits(before, everything(net), "the network that it was taken of")
    assert torch.equal(net.at(0)(*x), first)
    net.forget(0)
    with pytest.raises(gn.EditError, match="version 0 are not kept"):
        net.at(0)
    with pytest.raises(gn.EditError, match="no version 2"):
        net.at(2)


def test_a_fork_shares_the_history_and_goes_its_own_way() -> None:
    net = small()
    net.keep()
    with net.edit() as edit:
        edit.grow("fc1", 1)
    twin = net.fork()
    assert twin.history.versions == net.history.versions
    assert twin.kept[0] is net.kept[0]
    with twin.edit() as edit:
        edit.prune("fc1", lowest=2)
    with net.edit() as edit:
        edit.grow("fc2", 1)
    assert (net.version, twin.version) == (2, 2)
    assert net.graph.diff(twin.graph).groups_changed["fc1"].size == (7, 5)
    twin.rollback(0)
    assert net.version == 2


def test_copies_and_pickles_keep_what_was_kept() -> None:
    net = small()
    net.keep()
    with net.edit() as edit:
        edit.grow("fc1", 1)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        twin.rollback(0)
        check_bits(dict(net.at(0).state_dict()), dict(twin.state_dict()), "a copy's kept version")


# -- from checkpoints -------------------------------------------------------------------------------------------------


def run(folder: Path) -> tuple[gn.Network, dict[int, dict[str, Tensor]]]:
    """A run that saves a checkpoint at each of four versions, one of them of other ops."""
    net = small()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    states = {}
    for number in range(4):
        if number:
            with net.edit() as edit:
                if number == 2:
                    edit.apply(insert_layer)
                else:
                    edit.grow("fc1", 2, init="kaiming", state="aged")
        train(net, optimizer, 2)
        net.save(folder / f"{number}.gn")
        states[number] = everything(net)
    return net, states


def test_versions_come_from_checkpoints_bit_for_bit(tmp_path: Path) -> None:
    net, states = run(tmp_path)
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    for number in (2, 0, 1, 3):
        twin = net.at(number, tmp_path)
        check_bits({k: v for k, v in states[number].items() if k in twin.graph.tensors}, dict(twin.state_dict()), "at")
        assert twin.version == number
        net.rollback(number, path=tmp_path / f"{number}.gn")
        check_bits(states[number], everything(net), f"rolled back to {number}")
        train(net, net.attached[0], 1)  # type: ignore[arg-type]
    assert [v.parent for v in net.history] == [None, 0, 1, 2, 2, 0, 1, 3]
    again = gn.load_network(net.save(tmp_path / "last.gn"))
    assert [v.graph.to_document() for v in again.history] == [v.graph.to_document() for v in net.history]
    assert again.history.journal() == net.history.journal()


def test_a_file_of_another_version_or_network_is_refused(tmp_path: Path) -> None:
    net, _ = run(tmp_path)
    with pytest.raises(gn.CheckpointError, match=r"holds the tensors of versions \[1\], not of 2"):
        net.at(2, tmp_path / "1.gn")
    other = random_network(gn.mlp([4, 6, 5, 3], norm="batch"), 1)
    other.save(tmp_path / "other.gn")
    with other.edit() as edit:
        edit.grow("fc1", 1)
    other.save(tmp_path / "other1.gn")
    with pytest.raises(gn.CheckpointError, match="not that of this network"):
        net.rollback(1, path=tmp_path / "other1.gn")
    (tmp_path / "2.gn").unlink()
    with pytest.raises(gn.CheckpointError, match=r"(?s)no checkpoint in .* holds version 2 .*versions \[3\]"):
        net.rollback(2, path=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(gn.CheckpointError, match="has no files"):
        net.at(1, tmp_path / "empty")
    assert net.version == 3


def test_kept_versions_are_in_the_checkpoint(tmp_path: Path) -> None:
    net = small()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    train(net, optimizer, 2)
    net.keep()
    before = everything(net)
    with net.edit() as edit:
        edit.apply(insert_layer)
        edit.retire("fc2", units=[1])
    train(net, optimizer, 1)
    net.keep()
    checkpoint = load_checkpoint(net.save(tmp_path / "run.gn"))
    assert checkpoint.kept == (0, 1)
    again = checkpoint.network()
    own = torch.optim.Adam(again.parameters(), lr=0.01)
    checkpoint.resume(again, own)
    assert sorted(again.kept) == [0, 1]
    again.rollback(0)
    check_bits(before, everything(again), "a kept version from a checkpoint")
    check_bits(before, _after(net.rollback, net, 0), "the same in the process that saved it")


def _after(act: Callable[[int], object], net: gn.Network, number: int) -> dict[str, Tensor]:
    act(number)
    return everything(net)


# -- the graph of versions --------------------------------------------------------------------------------------------


def history(parents: list[int | None]) -> History:
    graph = gn.mlp([4, 3, 2])
    found = History()
    for number, parent in enumerate(parents):
        found = found.following(Version(number, parent, graph))
    return found


def numbers(versions: Any) -> list[int]:
    return [version.number for version in versions]


def test_ancestors_branches_and_paths() -> None:
    #      0 - 1 - 2 - 5
    #           \- 3 - 4 - 6
    found = history([None, 0, 1, 1, 3, 2, 4])
    assert numbers(found.ancestors()) == [4, 3, 1, 0]
    assert numbers(found.ancestors(5)) == [2, 1, 0]
    assert numbers(found.ancestors(0)) == []
    assert numbers(found.branches) == [5, 6]
    assert numbers(found.children(1)) == [2, 3]
    assert numbers(found.path(5, 4)) == [5, 2, 1, 3, 4]
    assert numbers(found.path(4, 5)) == [4, 3, 1, 2, 5]
    assert numbers(found.path(0, 6)) == [0, 1, 3, 4, 6]
    assert numbers(found.path(6, 3)) == [6, 4, 3]
    assert numbers(found.path(2, 2)) == [2]
    assert numbers(found.until(3)) == [0, 1, 2, 3]
    assert 4 in found
    assert 7 not in found
    for wrong in (7, -1, "1", None, True):
        with pytest.raises(gn.GraphnetError, match="there is no version"):
            found.path(0, wrong)  # type: ignore[arg-type]


@given(st.data())
def test_a_path_is_the_shortest_way(data: st.DataObject) -> None:
    import networkx as nx

    size = data.draw(st.integers(1, 12))
    parents = [None, *(data.draw(st.integers(0, number - 1)) for number in range(1, size))]
    found, tree = history(parents), nx.Graph()
    tree.add_nodes_from(range(size))
    tree.add_edges_from((number, parent) for number, parent in enumerate(parents) if parent is not None)
    one, two = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    assert numbers(found.path(one, two)) == nx.shortest_path(tree, one, two)
    assert numbers(found.ancestors(one)) == nx.shortest_path(tree, one, 0)[1:]
    assert set(numbers(found.branches)) == set(range(size)) - set(parents)


def test_a_history_takes_no_version_that_does_not_follow() -> None:
    found, graph = history([None, 0]), gn.mlp([4, 3, 2])
    for number, parent in ((1, 0), (0, 0), (2, None), (2, 9)):
        with pytest.raises(gn.GraphnetError):
            found.following(Version(number, parent, graph))


def test_birth_versions_follow_the_branch_that_is_current() -> None:
    net = small()
    with net.edit() as edit:
        edit.grow("fc1", 1)  # 6
    net.keep()
    with net.edit() as edit:
        edit.grow("fc1", 1)  # 7, on a branch that is left
    net.rollback(1)
    with net.edit() as edit:
        edit.grow("fc1", 1)  # 8
        edit.retire("fc1", units=[0])
    with net.edit() as edit:
        edit.recruit("fc1", units=[0])
        edit.apply(insert_layer)
    assert net.history.birth_versions("fc1") == {0: 5, **dict.fromkeys(range(1, 6), 0), 6: 1, 8: 4}
    with pytest.raises(gn.GraphnetError, match="no unit group 'fc9' in version 5"):
        net.history.birth_versions("fc9")


def test_a_version_reads_as_one_line() -> None:
    net = small()
    net.keep()
    with net.edit() as edit:
        edit.grow("fc1", 1)
    net.rollback(0)
    assert str(net.history).splitlines() == [
        "version 0: as built; 105 parameters", "version 1 from 0: grow fc1; 117 parameters",
        "version 2 from 0: rollback; 105 parameters",
    ]  # fmt: skip


def test_older_versions_are_built_when_they_are_asked_for(tmp_path: Path) -> None:
    net = small()
    for _ in range(6):
        with net.edit() as edit:
            edit.grow("fc1", 1)
    path = net.save(tmp_path / "run.gn")
    again = load_checkpoint(path).network()
    late = [callable(version.__dict__["graph"]) for version in again.history]
    assert late == [True] * 6 + [False]
    second = again.save(tmp_path / "again.gn")  # writing again builds none either
    assert [callable(version.__dict__["graph"]) for version in again.history] == late
    assert again.history[3].graph.groups["fc1"].size == 9
    documents = [v.graph.to_document() for v in load_checkpoint(second).history]
    assert documents == [v.graph.to_document() for v in net.history]


def test_one_record_for_each_structure(tmp_path: Path) -> None:
    net = small()
    net.keep()
    for number in range(6):
        with net.edit() as edit:
            edit.grow("fc1", 1)
            if number == 3:
                edit.apply(insert_layer)
            if number == 5:
                edit.apply(lambda plan: plan.restructure(
                    [plan.graph.ops["fc2"].model_copy(update={"inputs": ("act1",)})], remove=["sum", "extra"]
                ))  # fmt: skip
    net.rollback(0)
    from graphnet.runtime.sealed import read_sealed

    _, document = read_sealed(net.save(tmp_path / "run.gn"))
    assert [entry["structure"] for entry in document["versions"]] == [0, 0, 0, 0, 1, 1, 0, 0]
    assert len(document["structures"]) == 2
    history = gn.load_network(tmp_path / "run.gn").history
    for here, there in zip(net.history, history, strict=True):
        assert json.dumps(here.graph.to_document()) == json.dumps(there.graph.to_document())


def test_saving_over_a_checkpoint_of_a_kept_version_keeps_it(tmp_path: Path) -> None:
    net = small()
    net.keep()
    before = everything(net)
    with net.edit() as edit:
        edit.prune("fc1", lowest=3)
    path = net.save(tmp_path / "run.gn")
    assert os.listdir(tmp_path) == ["run.gn"]
    net.forget(0)
    net.rollback(0, path=path)
    check_bits(before, everything(net), "a kept version from a file of a later one")


def test_a_versions_flops_are_those_of_its_graph_whenever_they_are_asked_for() -> None:
    net = small()
    first = net.graph
    with net.edit() as edit:
        edit.grow("fc1", 3)
    again = pickle.loads(pickle.dumps(net))
    wanted = [first.cost().flops, net.graph.cost().flops]
    assert wanted[0] < wanted[1]
    for history in (again.history, net.history, net.history):
        assert [version.flops for version in history] == wanted
    assert net.history.latest.record()["flops"] == wanted[1]

"""Committing tensor by tensor: the same result bit for bit, the same all-or-nothing, and a bounded peak of memory."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from contextlib import suppress
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

import graphnet as gn
from graphnet.edit.action import gather
from graphnet.ir.ops import OPS
from graphnet.runtime import low_memory, swaps, transaction
from graphnet.runtime.low_memory import Inverse
from graphnet.testing import (
    check_bits,
    edit_calls,
    graphs,
    optimizers,
    random_network,
    sample,
    state_of,
    train,
    wave_loss,
)

OPERATORS = ("grow", "prune", "retire", "recruit", "rewind", "reset", "insert", "remove", "redirect")


def everything(net: gn.Network) -> dict[str, Tensor]:
    found = {name: tensor.detach().clone() for name, tensor in state_of(net).items()}
    found |= {f"grad {n}": p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    return found


# -- the same result --------------------------------------------------------------------------------------------------


@given(st.data())
def test_both_modes_come_to_the_same(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    seed, make = data.draw(st.integers(0, 9)), data.draw(optimizers())
    nets = []
    for _ in range(2):
        net = random_network(graph, seed)
        optimizer = make(net.parameters())
        net.attach(optimizer)
        train(net, optimizer, 2)
        nets.append((net, optimizer))
    for _ in range(data.draw(st.integers(1, 3))):
        calls = [data.draw(edit_calls(nets[0][0].graph, OPERATORS)) for _ in range(data.draw(st.integers(1, 2)))]
        refused = []
        for index, (net, _) in enumerate(nets):
            with suppress(gn.GraphnetError), net.edit(low_memory=bool(index)) as edit:
                for call in calls:
                    call.apply(edit)
            refused.append(net.version)
        assert refused[0] == refused[1]
        check_bits(everything(nets[0][0]), everything(nets[1][0]), "a low-memory commit")
        assert nets[0][0].graph.to_document() == nets[1][0].graph.to_document()
        assert nets[0][0].history.latest.bytes_moved == nets[1][0].history.latest.bytes_moved
        for net, optimizer in nets:
            train(net, optimizer, 1)
    check_bits(everything(nets[0][0]), everything(nets[1][0]), "training after a low-memory commit")


def test_lbfgs_and_gradients_in_flight() -> None:
    net = random_network(gn.mlp([4, 6, 5, 3]), 0)
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=2)
    net.attach(optimizer)
    train(net, optimizer, 1)
    wave_loss(net(*sample(net.graph))).backward()
    before = net.fc1.weight.grad.clone()
    with net.edit(low_memory=True) as edit:
        edit.prune("fc1", units=[1])
    assert torch.equal(net.fc1.weight.grad, before[[0, 2, 3, 4, 5]])
    assert not optimizer.state
    train(net, optimizer, 1)


def test_an_average_is_refused() -> None:
    net = random_network(gn.mlp([4, 6, 3]), 0)
    net.attach(AveragedModel(net))
    with pytest.raises(gn.EditError, match="averaged model"), net.edit(low_memory=True) as edit:
        edit.grow("fc1", 1)
    assert net.version == 0


# -- all or nothing ---------------------------------------------------------------------------------------------------


class InjectedError(BaseException):
    """Raised at one bytecode of a commit."""


class Case:
    """A trained network with everything that an edit touches, and an edit that drops, adds and overwrites."""

    def __init__(self) -> None:
        self.net = random_network(gn.mlp([4, 6, 5, 3], norm="batch", activation="tanh"), 0)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.01)
        self.net.attach(self.optimizer)
        train(self.net, self.optimizer, 2)
        self.snapshot = self.net.snapshot()
        with self.net.edit() as edit:
            edit.grow("fc1", 1, init="kaiming", speed=(2.0, 50))
            edit.retire("fc2", units=[1])
        train(self.net, self.optimizer, 1)
        self.net.fc1.weight.grad[0, 0] = float("nan")  # what is put back is put back bit for bit

    def describe(self, edit: gn.Edit) -> None:
        edit.grow("fc1", 2, init="net2wider", state="aged")
        edit.prune("fc1", units=[0, 3])
        edit.recruit("fc2", units=[1], state="aged", speed=(3.0, 9))
        edit.rewind("head", self.snapshot)

    def facts(self) -> dict[str, Any]:
        tables = self.net._attached["0"].updates.births
        return {
            "tensors": everything(self.net),
            "version": self.net.version,
            "parameters": [id(p) for p in self.net.parameters()],
            "state": sorted(n for n, p in self.net.named_parameters() if p in self.optimizer.state),
            "births": sorted(
                (n, k, d) for n, p in self.net.named_parameters() if p in tables
                for k in ("birth", "rate", "until", "multiplier") for d in tables[p].table(k)
            ),
        }  # fmt: skip


def same(one: dict[str, Any], two: dict[str, Any], *, identities: bool) -> bool:
    keys = one.keys() - {"tensors"} - (set() if identities else {"parameters"})
    a, b = one["tensors"], two["tensors"]
    equal = a.keys() == b.keys() and all(a[k].equal(b[k]) or a[k].nan_to_num(7).equal(b[k].nan_to_num(7)) for k in a)
    return equal and all(one[key] == two[key] for key in keys)


TRACED = {module.__file__ for module in (low_memory, swaps, transaction)}


def leave(case: Case, at: int) -> tuple[int, int, BaseException | None]:
    """Commit and raise at one bytecode of the traced modules; how many there are, and in the swaps."""
    context = case.net.edit(low_memory=True)
    edit = context.__enter__()
    case.describe(edit)
    count, first = 0, -1

    def local(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count, first
        if event == "opcode":
            count += 1
            if first < 0 and frame.f_code is transaction.commit.__code__:
                first = count
            if count == at:
                raise InjectedError
        return local

    def outer(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        frame.f_trace_opcodes = True
        return local

    raised: BaseException | None = None
    sys.settrace(outer)
    try:
        context.__exit__(None, None, None)
    except BaseException as error:
        raised = error.with_traceback(None)
    finally:
        sys.settrace(None)
    return count, first, raised


def sweep(points: int) -> tuple[int, int]:
    reference = Case()
    total, first, raised = leave(reference, -1)
    assert raised is None
    new = reference.facts()
    case = Case()
    old, outcomes = case.facts(), [0, 0]
    for at in sorted({*range(1, first, 97), *range(first, total + 1, max(1, (total - first) // points))}):
        _, _, raised = leave(case, at)
        assert isinstance(raised, InjectedError), f"bytecode {at} of {total}: {raised!r}"
        raised = None
        now = case.facts()
        if same(now, old, identities=True):
            outcomes[0] += 1
            continue
        assert same(now, new, identities=False), f"bytecode {at} of {total}: a mixture"
        outcomes[1] += 1
        case = Case()
        old = case.facts()
    train(case.net, case.optimizer, 1)
    with case.net.edit(low_memory=True) as edit:
        case.describe(edit)
    train(case.net, case.optimizer, 1)
    return outcomes[0], outcomes[1]


@pytest.mark.filterwarnings("ignore")
def test_an_error_at_any_bytecode_leaves_the_old_state_or_the_new_one() -> None:
    old, _ = sweep(60)
    assert old > 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_error_at_every_tenth_bytecode() -> None:
    old, _ = sweep(3000)
    assert old > 2000


def test_no_memory_for_the_last_tensor_puts_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    old, seen = case.facts(), []

    def full(mini: Any, *rest: Any) -> Any:
        seen.extend(mini.tensors)
        if len(seen) == 4:
            raise MemoryError("no more")
        return swaps.swaps_of(mini, *rest)

    def commit() -> None:
        with case.net.edit(low_memory=True) as edit:
            case.describe(edit)

    with monkeypatch.context() as patch:
        patch.setattr(low_memory, "swaps_of", full)
        with pytest.raises(MemoryError):
            commit()
    assert len(seen) == 4
    assert same(case.facts(), old, identities=True)
    commit()
    assert case.net.version == 2


# -- the way back -----------------------------------------------------------------------------------------------------


def test_an_inverse_tells_zeros_by_their_sign() -> None:
    old = torch.tensor([-0.0, 1.0, float("nan"), 2.0, 3.0, 4.0, 5.0, 6.0])
    new = old.clone()
    new[0] = 0.0
    held = Inverse.of(old, new, [None])
    assert isinstance(held, Inverse)
    assert held.written is not None
    assert held.written[0].tolist() == [0], "the NaN is what it was"
    assert torch.equal(held.rebuild(new).view(torch.int32), old.view(torch.int32))


@given(st.data())
def test_an_inverse_rebuilds_every_bit(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=0, max_size=4))
    dtype = data.draw(st.sampled_from([
        torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool,
        torch.complex64,
    ]))  # fmt: skip
    old = (torch.rand(shape) * 200 - 100).to(dtype)
    if dtype.is_floating_point and old.numel():
        old.view(-1)[0] = data.draw(st.sampled_from([float("nan"), -0.0, float("inf"), 1.0]))
    if len(shape) == 4 and data.draw(st.booleans()):
        old = old.contiguous(memory_format=torch.channels_last)
    sources: list[Any] = []
    for size in shape:
        positions = [*range(size), -1, -1, *([0] if data.draw(st.booleans()) else [])]
        order = data.draw(st.permutations(positions))
        kept = order[: data.draw(st.integers(1, len(order)))]
        sources.append(data.draw(st.sampled_from([None, np.array(kept, dtype=np.int64)])))
    new = gather(old, sources)
    new = new.clone() if new is old else new
    for _ in range(data.draw(st.integers(0, 3))):
        if new.numel():
            at = data.draw(st.integers(0, new.numel() - 1))
            new.flatten()[at] = 0
            new[torch.unravel_index(torch.tensor(at), new.shape)] = data.draw(st.sampled_from([0, -0.0, 1]))
    held = Inverse.of(old, new, sources)
    again = held.rebuild(new) if isinstance(held, Inverse) else held
    assert again.dtype == old.dtype
    assert again.shape == old.shape
    assert again.contiguous().numpy(force=True).tobytes() == old.contiguous().numpy(force=True).tobytes() \
        if dtype is not torch.bfloat16 else torch.equal(again.view(torch.int16), old.view(torch.int16))  # fmt: skip


# -- memory -----------------------------------------------------------------------------------------------------------


class Live(TorchDispatchMode):
    """Bytes of the storages that torch operations made and that are still alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor):
                self.note(tensor)
        return found

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.seen or storage.nbytes() == 0:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self.seen[key] = weakref.finalize(storage, self.gone, key, size)

    def gone(self, key: int, size: int) -> None:
        self.now -= size
        self.seen.pop(key, None)


def big() -> tuple[gn.Network, torch.optim.Adam]:
    torch.manual_seed(0)
    net = gn.Network(gn.mlp([64, *[96] * 8, 10]))
    optimizer = torch.optim.Adam(net.parameters())
    net.attach(optimizer)
    net(torch.randn(2, 64)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return net, optimizer


def held(net: gn.Network, optimizer: torch.optim.Adam) -> int:
    tensors = [*net.parameters(), *(v for s in optimizer.state.values() for v in s.values())]
    return sum(t.untyped_storage().nbytes() for t in tensors)


def peak_of(mode: bool, change: str) -> tuple[int, int, gn.edit.forecast.PlannedCost]:
    """The most bytes beside the larger of before and after, and what was predicted."""
    net, optimizer = big()
    before = held(net, optimizer)
    context = net.edit(low_memory=mode)
    edit = context.__enter__()
    for name in net.graph.groups:
        if name.startswith("fc"):
            edit.grow(name, 24) if change == "grow" else edit.prune(name, units=list(range(24)))
    cost = edit.cost
    gc.collect()
    # storages that were there count from the start, so that letting them go is seen
    live = Live()
    for tensor in [*net.parameters(), *(v for s in optimizer.state.values() for v in s.values())]:
        live.note(tensor)
    del tensor
    assert live.now == before
    with live:
        context.__exit__(None, None, None)
    return live.peak - max(before, held(net, optimizer)), before, cost


@pytest.mark.parametrize("change", ["grow", "prune"])
def test_the_peak_is_bounded_by_the_largest_tensor_with_its_state(change: str) -> None:
    plain, total, cost = peak_of(False, change)
    low, _, _ = peak_of(True, change)
    largest = 3 * 4 * 120 * 120  # the weight of a hidden layer with Adam's two moments, at the larger size
    assert low <= 1.5 * largest  # and a chunk that is compared, an index, blocks that newborns get
    assert plain > 0.5 * total
    assert low < plain / 3
    assert cost.low_memory_bytes <= largest + 2 * 8 * 120  # and the births of its rows and columns
    assert cost.transient_bytes > 0.5 * total


def test_nothing_is_left_behind() -> None:
    net, _ = big()
    pointers = {n: p.data_ptr() for n, p in net.named_parameters()}
    with net.edit(low_memory=True) as edit:
        edit.prune("fc1", units=[0])
    assert edit.plan._tensors == {} or all(not staged.changed for staged in edit.plan._tensors.values())
    assert {n for n, p in net.named_parameters() if p.data_ptr() != pointers[n]} == {
        "fc1.weight", "fc1.bias", "fc2.weight",
    }  # fmt: skip
    twin = copy.deepcopy(net)
    assert twin.version == 1


def test_ops_that_come_and_go() -> None:
    nets = [random_network(gn.mlp([4, 6, 5, 3], norm="batch"), 0) for _ in range(2)]
    for index, net in enumerate(nets):
        optimizer = torch.optim.Adam(net.parameters())
        net.attach(optimizer)
        train(net, optimizer, 1)
        with net.edit(low_memory=bool(index)) as edit:
            edit.apply(lambda plan: plan.restructure(
                [OPS["linear"](name="extra", inputs=("act1",), out=6), OPS["add"](name="sum", inputs=("act1", "extra")),
                 plan.graph.ops["fc2"].model_copy(update={"inputs": ("sum",)})],
                tensors={"extra.weight": torch.eye(6, dtype=torch.float64), "extra.bias": torch.ones(6).double()},
            ))  # fmt: skip
            edit.prune("fc1", units=[0])
            edit.apply(lambda plan: plan.restructure(
                [plan.graph.ops["act2"].model_copy(update={"inputs": ("fc2",)})], remove=["norm2"]
            ))  # fmt: skip
        train(net, optimizer, 1)
    check_bits(everything(nets[0]), everything(nets[1]), "ops that come and go")

"""Two processes under ``DistributedDataParallel`` over gloo: edits on both, agreement or an error on both.

Both processes run the scenarios of the first half of this file, each of which says what it saw, and the tests of the
second half read that.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import weight_norm

import graphnet as gn
from graphnet.ir.ops import OPS
from graphnet.testing import random_network, state_of

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo")

Seen = dict[str, Any]


# -- what both processes do -------------------------------------------------------------------------------------------


def data(step: int) -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def start(rank: int) -> tuple[gn.Network, Any, torch.optim.Adam]:
    net = random_network(gn.mlp([4, 6, 5, 3], activation="tanh"), 0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    return net, net.distributed() if rank >= 0 else net, optimizer


def steps(model: Any, optimizer: torch.optim.Optimizer, first: int, count: int, rank: int) -> None:
    """Training on the rank's half of each batch; a negative rank takes the whole."""
    for step in range(first, first + count):
        batch = data(step) if rank < 0 else data(step)[4 * rank : 4 * rank + 4]
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()


def facts(net: gn.Network) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(state_of(net).items()):
        total.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return f"{net.version} {total.hexdigest()}"


def insert_layer(plan: Any) -> None:
    plan.restructure(
        [
            OPS["linear"](name="extra", inputs=("act1",), out=6), OPS["add"](name="sum", inputs=("act1", "extra")),
            plan.graph.ops["fc2"].model_copy(update={"inputs": ("sum",)}),
        ],
        tensors={"extra.weight": torch.full((6, 6), 0.1).double(), "extra.bias": torch.zeros(6).double()},
    )  # fmt: skip


def training(rank: int) -> Seen:
    """Three edits on the way: growth, pruning, and ops that come; then back to a kept version."""
    net, model, optimizer = start(rank)
    steps(model, optimizer, 0, 3, rank)
    with net.edit() as edit:
        edit.grow("fc1", 2, init="kaiming", state="aged")
    steps(model, optimizer, 3, 3, rank)
    net.keep()
    with net.edit() as edit:
        edit.prune("fc1", lowest=2)
        edit.apply(insert_layer)
    steps(model, optimizer, 6, 3, rank)
    late = {name: value.tolist() for name, value in net.state_dict().items()}
    net.rollback(1)
    steps(model, optimizer, 9, 2, rank)
    return {"facts": facts(net), "late": late, "last": {n: v.tolist() for n, v in net.state_dict().items()}}


def attempt(net: gn.Network, act: Callable[[gn.Edit], object], **options: Any) -> Seen:
    before = facts(net)
    try:
        with net.edit(**options) as edit:
            act(edit)
        said = "committed"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    return {"said": said, "unchanged": facts(net) == before}


def disagreements(rank: int) -> Seen:
    net, model, optimizer = start(rank)
    steps(model, optimizer, 0, 2, rank)
    seen: Seen = {}
    batch = (data(50 + rank), None)

    def fail(edit: gn.Edit) -> None:
        edit.grow("fc1", 1)
        if rank == 1:
            raise ValueError("the disk of this process is full")

    def loss(output: Tensor, target: Any) -> Tensor:
        return output.square().mean()

    seen["seed"] = attempt(net, lambda e: e.grow("fc1", 2, init="kaiming"), seed=rank)
    seen["count"] = attempt(net, lambda e: e.grow("fc1", 2 + rank))
    seen["nothing"] = attempt(net, lambda e: e.grow("fc1", 2) if rank else None)
    seen["failed"] = attempt(net, fail)
    seen["refused"] = attempt(net, lambda e: e.grow("fc1", 1, init="no such" if rank else "kaiming"))
    seen["batch"] = attempt(net, lambda e: e.grow("fc1", 1, init="gradmax", batch=batch, loss=loss))
    seen["low memory"] = attempt(net, lambda e: e.grow("fc1", 2, init="kaiming"), seed=rank, low_memory=True)
    if rank == 1:
        optimizer.state[net.fc2.bias]["exp_avg"][0] += 1e-9
    seen["state"] = attempt(net, lambda e: e.grow("fc1", 1))
    if rank == 1:
        optimizer.state[net.fc2.bias]["exp_avg"].copy_(torch.zeros(5))
    else:
        optimizer.state[net.fc2.bias]["exp_avg"].copy_(torch.zeros(5))
    if rank == 1:
        net.fc1 = torch.nn.Linear(4, 6).double()
    seen["changed by hand"] = attempt(net, lambda e: e.grow("fc1", 1))
    return seen


def agreements(rank: int) -> Seen:
    net, model, optimizer = start(rank)
    steps(model, optimizer, 0, 2, rank)
    seen: Seen = {"none": attempt(net, lambda e: None)}
    seen["low memory"] = attempt(net, lambda e: e.grow("fc1", 2, init="kaiming"), low_memory=True)
    with model.no_sync():  # gradients of this process alone are in flight, and move with their units
        model(data(rank)[:4]).square().mean().backward()
    seen["in flight"] = attempt(net, lambda e: e.prune("fc1", units=[1]))
    model(data(rank)[4:]).square().mean().backward()
    optimizer.step()
    seen["facts"] = facts(net)
    wrapper = model.inner
    model(data(0)[:4])
    seen["kept while no edit"] = model.inner is wrapper
    net.load_state_dict(net.state_dict(), assign=True)  # other parameters under the same names
    seen["made anew for other parameters"] = model.inner is not wrapper
    return seen


def compressed(rank: int) -> Seen:
    """A communication hook is registered again after an edit."""
    net, model, optimizer = start(rank)
    heard: list[int] = []

    def hook(state: list[int], bucket: Any) -> Any:
        state.append(bucket.buffer().numel())
        work = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True).get_future()
        return work.then(lambda done: done.value()[0])

    hook.__annotations__.clear()  # torch reads them, and these are text
    model.register_comm_hook(heard, hook)
    steps(model, optimizer, 0, 2, rank)
    with net.edit() as edit:
        edit.grow("fc1", 2)
    first = len(heard)
    steps(model, optimizer, 2, 1, rank)
    return {"before": sum(heard[:first]), "after": heard[-1], "facts": facts(net)}


def late(rank: int) -> Seen:
    """A commit that fails on one process is undone on the other, and an edit that only one makes ends."""
    net, model, optimizer = start(rank)
    steps(model, optimizer, 0, 2, rank)
    seen: Seen = {}
    clear = torch.clear_autocast_cache

    def broken() -> None:
        if torch.clear_autocast_cache is broken:  # once: it is called again on the way back
            torch.clear_autocast_cache = clear
            raise OSError("no luck here")

    for low in (False, True):
        if rank == 1:
            torch.clear_autocast_cache = broken
        seen[f"low memory {low}"] = attempt(net, lambda e: e.prune("fc1", lowest=2), low_memory=low)
    steps(model, optimizer, 2, 1, rank)
    seen["still alike"] = attempt(net, lambda e: e.grow("fc1", 1))
    del model
    alone = net.distributed(patience=2.0)
    seen["alone"] = attempt(net, lambda e: e.grow("fc1", 1)) if rank == 0 else {}
    del alone
    return seen


def plain_wrapper(rank: int) -> Seen:
    net = random_network(gn.mlp([4, 6, 5, 3]), 0)
    seen: Seen = {"before": attempt(net, lambda e: e.grow("fc1", 1))}
    wrapper = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.attach(optimizer)
    steps(wrapper, optimizer, 0, 1, rank)
    seen["wrapped"] = attempt(net, lambda e: e.grow("fc1", 1))
    seen["rollback"] = ""
    kept = net.keep()
    try:
        net.rollback(kept.version)
    except gn.EditError as error:
        seen["rollback"] = str(error)
    steps(wrapper, optimizer, 1, 1, rank)
    del wrapper
    seen["dropped"] = attempt(net, lambda e: e.grow("fc1", 1))
    wrapper = DistributedDataParallel(net)
    steps(wrapper, optimizer, 2, 1, rank)
    seen["facts"] = facts(net)
    return seen


def sharded(rank: int) -> Seen:
    """FSDP2 on this process alone."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    # every process makes every group
    groups = [dist.new_group([member]) for member in range(dist.get_world_size())]
    net = random_network(gn.mlp([4, 6, 3]), 0)
    mesh = DeviceMesh.from_group(groups[rank], "cpu")
    fully_shard(net, mesh=mesh)
    kind = type(net.fc1.weight).__name__
    try:
        with net.edit() as edit:
            edit.grow("fc1", 1)
        said = "committed"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    with torch.no_grad():
        width = net(data(0)).shape
    return {"kind": kind, "said": said, "version": net.version, "runs": list(width)}


def parametrized(rank: int) -> Seen:
    """Layers under weight norm: their originals are what is trained, moved and compared."""
    net = random_network(gn.mlp([4, 6, 5, 3], activation="tanh"), 0)
    weight_norm(net.fc1), weight_norm(net.head)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    model = net.distributed() if rank >= 0 else net
    steps(model, optimizer, 0, 2, rank)
    with net.edit() as edit:
        edit.grow("fc1", 2, init="kaiming", state="aged")
        edit.prune("fc1", units=[1])
    steps(model, optimizer, 2, 3, rank)
    last = {name: value.tolist() for name, value in net.state_dict().items()}
    if rank == 1:
        optimizer.state[net.fc1.parametrizations.weight.original1]["exp_avg"][0] += 1e-9
    return {"facts": facts(net), "last": last, "state": attempt(net, lambda e: e.grow("fc1", 1)) if rank >= 0 else {}}


SCENARIOS = (training, disagreements, agreements, plain_wrapper, sharded, compressed, parametrized, late)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    seen = {scenario.__name__: scenario(rank) for scenario in SCENARIOS}
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


# -- what came of it --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    folder = tmp_path_factory.mktemp("ranks")
    script = subprocess.run(
        [sys.executable, __file__, str(folder)], capture_output=True, text=True, timeout=900, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    assert script.returncode == 0, script.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_both_go_through_the_same_edits_as_one_process_on_the_whole_batch(ranks: list[Seen]) -> None:
    assert ranks[0]["training"]["facts"] == ranks[1]["training"]["facts"]
    alone = training(-1)
    for moment in ("late", "last"):
        for name, value in alone[moment].items():
            there = torch.tensor(ranks[0]["training"][moment][name], dtype=torch.float64)
            torch.testing.assert_close(there, torch.tensor(value, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_originals_of_parametrized_layers_are_trained_moved_and_compared(ranks: list[Seen]) -> None:
    alone = parametrized(-1)
    for name, value in alone["last"].items():
        there = torch.tensor(ranks[0]["parametrized"]["last"][name], dtype=torch.float64)
        torch.testing.assert_close(there, torch.tensor(value, dtype=torch.float64), rtol=1e-9, atol=1e-12)
        assert ranks[1]["parametrized"]["last"][name] == ranks[0]["parametrized"]["last"][name]
    for seen in ranks:
        assert "disagree about the state of the optimizers" in seen["parametrized"]["state"]["said"]
        assert seen["parametrized"]["state"]["unchanged"]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("seed", "disagree about the plan"),
        ("count", "disagree about the plan of this edit (process 0 against process 1)"),
        ("nothing", "disagree about the plan"),
        ("failed", "process 1: ValueError: the disk of this process is full"),
        ("refused", "process 1: EditError: there is no initialiser"),
        ("batch", "disagree about the values of newborns"),
        ("low memory", "disagree about the plan"),
        ("state", "disagree about the state of the optimizers"),
        ("changed by hand", "process 1: EditError: 'fc1' was replaced"),
    ],
)
def test_where_they_differ_every_process_raises_and_nothing_changes(
    what: str, message: str, ranks: list[Seen]
) -> None:  # fmt: skip
    first, second = (rank["disagreements"][what] for rank in ranks)
    assert first["unchanged"]
    assert second["unchanged"]
    assert first["said"].startswith("EditError")
    assert message in first["said"]
    # a process that failed by itself raises its own error, the other one says which
    own = message.removeprefix("process 1: ")
    assert second["said"].startswith(own) if own != message else second["said"] == first["said"]


def test_gradients_of_one_process_alone_are_no_disagreement(ranks: list[Seen]) -> None:
    for rank in ranks:
        seen = rank["agreements"]
        assert seen["none"] == {"said": "committed", "unchanged": True}
        assert seen["low memory"]["said"] == "committed"
        assert seen["in flight"]["said"] == "committed"
        assert seen["kept while no edit"]
        assert seen["made anew for other parameters"]
    assert ranks[0]["agreements"]["facts"] == ranks[1]["agreements"]["facts"]


def test_a_wrapper_that_the_network_did_not_make_is_noticed(ranks: list[Seen]) -> None:
    for rank in ranks:
        seen = rank["plain_wrapper"]
        assert seen["before"]["said"] == "committed"
        assert "net.distributed()" in seen["wrapped"]["said"]
        assert seen["wrapped"]["unchanged"]
        assert "net.distributed()" in seen["rollback"]
        assert seen["dropped"]["said"] == "committed"
    assert ranks[0]["plain_wrapper"]["facts"] == ranks[1]["plain_wrapper"]["facts"]


def test_communication_hooks_go_on_after_an_edit(ranks: list[Seen]) -> None:
    first, second = (rank["compressed"] for rank in ranks)
    assert first == second
    size = 4 * 6 + 6 + 6 * 5 + 5 + 5 * 3 + 3
    assert first["before"] >= 2 * size  # DistributedDataParallel may hear each gradient in a bucket of its own
    assert first["after"] > 0


def test_a_commit_that_fails_on_one_process_is_undone_on_the_other(ranks: list[Seen]) -> None:
    for low in (False, True):
        first, second = (rank["late"][f"low memory {low}"] for rank in ranks)
        assert second == {"said": "OSError: no luck here", "unchanged": True}
        assert first["unchanged"]
        assert "process 1: OSError: no luck here" in first["said"]
    assert [rank["late"]["still alike"]["said"] for rank in ranks] == ["committed"] * 2


def test_an_edit_that_only_one_process_makes_ends(ranks: list[Seen]) -> None:
    seen = ranks[0]["late"]["alone"]
    assert seen["unchanged"]
    assert seen["said"].startswith("EditError: not every process came to this edit within 2 s")


def test_sharded_parameters_are_refused(ranks: list[Seen]) -> None:
    for rank in ranks:
        seen = rank["sharded"]
        assert seen["kind"] == "DTensor"
        assert seen["said"].startswith("EditError: tensor 'fc1.weight' is sharded (DTensor)")
        assert (seen["version"], seen["runs"]) == (0, [8, 3])


def test_without_a_process_group_there_is_nothing_to_distribute() -> None:
    with pytest.raises(gn.EditError, match="init_process_group"):
        random_network(gn.mlp([4, 6, 3]), 0).distributed()


def main(folder: str) -> int:
    """Both processes, from one that has imported everything."""
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            try:
                worker(rank, folder)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

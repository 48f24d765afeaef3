"""A checkpoint loses nothing: training goes on from it bit for bit."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import graphnet as gn
from graphnet.edit.plan import Plan, Step
from graphnet.runtime.checkpoint import load_checkpoint, load_network, save
from graphnet.runtime.sealed import read_sealed

CheckpointError = gn.CheckpointError


# -- a training run with edits, whose every bit is compared -----------------------------------------------------------


def _sgd(net: gn.Network) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)


def _adam(net: gn.Network) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=0.01, amsgrad=True)


def _adamw(net: gn.Network) -> torch.optim.Optimizer:
    head = list(net.get_submodule("head").parameters())
    rest = [p for p in net.parameters() if all(p is not h for h in head)]
    return torch.optim.AdamW([{"params": rest, "lr": 0.02}, {"params": head, "weight_decay": 0.1}], lr=0.01)


OPTIMIZERS: dict[str, Callable[[gn.Network], torch.optim.Optimizer]] = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}


@dataclass
class Run:
    net: gn.Network
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.StepLR
    step: int = 0

    @classmethod
    def start(cls, kind: str, graph: gn.Graph | None = None) -> Run:
        torch.manual_seed(11)
        np.random.seed(12)  # noqa: NPY002
        random.seed(13)
        net = gn.Network(graph or gn.mlp([5, 12, 8, 3], dropout=0.25), seed=4)
        optimizer = OPTIMIZERS[kind](net)
        net.attach(optimizer)
        return cls(net, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 4, gamma=0.7))

    def save(self, path: Path) -> Path:
        return self.net.save(path, extra={"step": self.step}, state={"scheduler": self.scheduler})

    @classmethod
    def resume(cls, kind: str, path: Path) -> Run:
        checkpoint = load_checkpoint(path)
        net = checkpoint.network()
        optimizer = OPTIMIZERS[kind](net)
        for group in optimizer.param_groups:
            group["lr"] = 123.0  # everything comes from the checkpoint
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 99)
        checkpoint.resume(net, optimizer, state={"scheduler": scheduler})
        return cls(net, optimizer, scheduler, checkpoint.extra["step"])

    def train(self, steps: int) -> Run:
        for _ in range(steps):
            x = torch.randn(7, 5)
            y = torch.from_numpy(np.random.randint(0, 3, 7))  # noqa: NPY002
            loss = torch.nn.functional.cross_entropy(self.net(x), y) * (1 + random.random())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.step += 1
            self.edit()
        return self

    def edit(self) -> None:
        groups = self.net.graph.groups
        with self.net.edit() as edit:
            if self.step % 4 == 1:
                edit.grow("fc1", 2, init="kaiming", state="aged")
                edit.grow("fc2", 1, init="net2wider", state="transplant", split="random")
            if self.step % 4 == 2:
                edit.retire("fc2", lowest=2, score="random")
            if self.step % 4 == 3 and len(groups["fc2"].dormant) > 1:
                edit.recruit("fc2", units=groups["fc2"].dormant[:1], state="aged")
                edit.prune("fc1", lowest=2)

    def facts(self) -> dict[str, Any]:
        """Everything that training reads, as plain data and tensors."""
        net, (attached,) = self.net, self.net._attached.values()
        found: dict[str, Any] = {f"tensor {name}": net.tensor(name).detach() for name in net.graph.tensors}
        found |= {f"reserve {name}": net.reserve_of(name) for name in net.graph.tensors}
        names = {net.tensor(name): name for name in net.graph.tensors}
        for parameter, state in self.optimizer.state.items():
            found |= {f"state {names[parameter]} {key}": value for key, value in state.items()}
        for parameter, births in attached.updates.births.items():
            for what in ("birth", "rate", "until", "multiplier"):
                found |= {f"{what} {names[parameter]} {d}": v for d, v in births.table(what).items()}
        found["groups"] = [
            {k: v for k, v in g.items() if k != "params"} | {"params": sorted(names[p] for p in g["params"])}
            for g in self.optimizer.param_groups
        ]
        found["journal"] = [{k: v for k, v in record.items() if k != "seconds"} for record in net.history.journal()]
        found["graphs"] = [version.graph.to_document() for version in net.history]
        found["counts"] = (
            self.step,
            attached.updates.steps,
            attached.updates.horizon,
            net._seed,
            self.scheduler.state_dict(),
        )
        found["random"] = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist())  # noqa: NPY002
        return {
            key: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value) for key, value in found.items()
        }

    def digest(self) -> str:
        total = hashlib.sha256()
        for key, value in sorted(self.facts().items()):
            total.update(key.encode())
            total.update(value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
        return total.hexdigest()


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, Tensor):
            assert value.dtype == right[key].dtype, key
            assert torch.equal(value, right[key]), key
        elif key == "random":
            assert value[0] == right[key][0]
            assert torch.equal(value[1], right[key][1])
            assert value[2] == right[key][2]
        elif key in ("journal", "graphs"):
            assert json.dumps(value) == json.dumps(right[key]), key
        else:
            assert value == right[key], key


def scramble() -> None:
    """Other random states, as a fresh process would have."""
    torch.manual_seed(999)
    np.random.seed(998)  # noqa: NPY002
    random.seed(997)


# -- going on bit for bit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    run = Run.start(kind).train(15)
    groups = run.net.graph.groups
    assert groups["fc2"].dormant  # what is to survive is there to be lost
    assert kind == "sgd" or any(n.startswith("birth") for n in run.facts())
    path = run.save(tmp_path / "run.gn")
    at_save = run.facts()
    expected = run.train(15).facts()
    scramble()
    again = Run.resume(kind, path)
    assert_same(at_save, again.facts())
    assert_same(expected, again.train(15).facts())


def test_saving_changes_nothing(tmp_path: Path) -> None:
    run = Run.start("adam").train(6)
    before = run.facts()
    run.save(tmp_path / "run.gn")
    assert_same(before, run.facts())


@pytest.mark.parametrize(
    "graph",
    [
        gn.convnet((1, 8, 8), channels=[4, 6], hidden=[8], classes=3, norm="batch", dropout=0.2),
        gn.resnet((3, 8, 8), stages=[4, 6], blocks=1, classes=3),
        gn.transformer(11, width=8, depth=1, heads=2, context=6, tied=True, dropout=0.1),
    ],
    ids=lambda graph: graph.name,
)
def test_every_kind_of_network_comes_back(graph: gn.Graph, tmp_path: Path) -> None:
    net = gn.Network(graph, seed=1)
    groups = [name for name, g in graph.groups.items() if g.frozen is None and not g.output and g.size > g.minimum]
    with net.edit() as edit:
        edit.grow(groups[0], 1, init="kaiming")
    with net.edit() as edit:
        edit.retire(groups[-1], lowest=1, score="random")
    net.save(tmp_path / "net.gn")
    torch.manual_seed(5)
    again = load_network(tmp_path / "net.gn")
    assert int(torch.randint(1000, ())) == int(torch.randint(1000, (), generator=torch.Generator().manual_seed(5)))
    assert again.graph.to_document() == net.graph.to_document()
    shape = [4, *(size if isinstance(size, int) else 6 for size in graph.inputs[0].shape)]
    x = torch.randint(0, 11, shape) if graph.inputs[0].dtype == "int64" else torch.randn(shape)
    results = []
    for one in (net, again):
        torch.manual_seed(3)
        out = one(x)
        out.square().mean().backward()
        results.append([out, *(p.grad for p in one.parameters()), *one.buffers()])
    assert len(results[0]) == len(results[1])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    ids = []
    for one in (net, again):  # the next edit draws the same random numbers, and the dormant unit has its weights
        with one.edit() as edit:
            ids.append(
                (
                    edit.prune(groups[0], lowest=1, score="random"),
                    edit.recruit(groups[-1], units=one.graph.groups[groups[-1]].dormant),
                )
            )
    assert ids[0] == ids[1]
    assert all(torch.equal(a, again.state_dict()[key]) for key, a in net.state_dict().items())


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    net = gn.Network(gn.transformer(11, width=8, depth=1, heads=2, context=6, tied=True))
    tensors, _ = read_sealed(net.save(tmp_path / "net.gn"))
    assert sum(t.shape == (11, 8) for name, t in tensors.items() if name.startswith("tensor/")) == 1
    again = load_network(tmp_path / "net.gn")
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in again.named_parameters()]


def test_modes_gradient_flags_dtypes_and_memory_formats_are_kept(tmp_path: Path) -> None:
    net = gn.Network(gn.convnet((2, 8, 8), channels=[4], hidden=[8], classes=3, norm="batch", dropout=0.5))
    net.to(dtype=torch.float64, memory_format=torch.channels_last)
    dropout = next(m for m in net.modules() if isinstance(m, torch.nn.Dropout))
    dropout.eval()
    first = next(net.parameters())
    first.requires_grad_(False)
    second = list(net.parameters())[1]
    second.data = second.data.bfloat16()
    again = load_network(net.save(tmp_path / "net.gn"))
    assert [m.training for m in again.modules()] == [m.training for m in net.modules()]
    here, there = dict(net.named_parameters()), dict(again.named_parameters())
    assert [(n, p.dtype, p.requires_grad, p.stride()) for n, p in here.items()] == [
        (n, p.dtype, p.requires_grad, p.stride()) for n, p in there.items()
    ]
    assert any(not p.is_contiguous() for p in there.values())


def test_history_can_be_inspected(tmp_path: Path) -> None:
    run = Run.start("adam").train(8)
    history = load_network(run.save(tmp_path / "run.gn")).history
    assert [v.graph.to_document() for v in history] == [v.graph.to_document() for v in run.net.history]
    assert history.journal() == run.net.history.journal()
    assert history.birth_versions("fc1") == run.net.history.birth_versions("fc1")


def test_a_second_generation_is_the_same(tmp_path: Path) -> None:
    run = Run.start("adamw").train(9)
    again = Run.resume("adamw", run.save(tmp_path / "a.gn"))
    third = Run.resume("adamw", again.save(tmp_path / "b.gn"))
    assert_same(run.facts(), third.facts())


def test_an_optimizer_that_is_attached_already_is_restored_too(tmp_path: Path) -> None:
    run = Run.start("adam").train(9)
    checkpoint = load_checkpoint(run.save(tmp_path / "run.gn"))
    net = checkpoint.network()
    optimizer = _adam(net)
    net.attach(optimizer, horizon=3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4)
    checkpoint.resume(net, optimizer, state={"scheduler": scheduler})
    assert_same(run.facts(), Run(net, optimizer, scheduler, 9).facts())


def test_speed_and_multipliers_survive(tmp_path: Path) -> None:
    def grown() -> Run:
        run = Run.start("adam").train(2)
        with run.net.edit() as edit:
            edit.grow("fc1", 2, init="kaiming", speed=(5.0, 8))
        return run

    run = grown().train(2)
    assert any(name.startswith("rate") for name in run.facts())
    path = run.save(tmp_path / "run.gn")
    expected = run.train(8).facts()
    assert_same(expected, Run.resume("adam", path).train(8).facts())


def test_gradients_in_flight_are_kept_on_request(tmp_path: Path) -> None:
    net = gn.Network(gn.mlp([3, 4, 2]))
    net(torch.randn(5, 3)).sum().backward()
    kept = load_network(net.save(tmp_path / "a.gn", gradients=True))
    dropped = load_network(net.save(tmp_path / "b.gn"))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), kept.parameters(), strict=True))  # type: ignore[arg-type]
    assert all(p.grad is None for p in dropped.parameters())


def test_versions_of_other_structure_are_kept_as_documents(tmp_path: Path) -> None:
    """A network whose history holds graphs that are not resizings of one another."""
    net = gn.Network(gn.mlp([3, 4, 2]))
    other = gn.load(net.graph.to_document())  # equal, but inferred anew: no shared layouts
    with net.edit() as edit:
        edit.grow("fc1", 1)
    history = net.history
    versions = (gn.runtime.history.Version(0, None, other), *history.versions[1:])
    net._current = gn.runtime.network.replace(net._current, history=gn.runtime.history.History(versions))
    again = load_network(net.save(tmp_path / "net.gn"))
    assert [v.graph.to_document() for v in again.history] == [v.graph.to_document() for v in net.history]


def test_values_of_every_kind_come_back(tmp_path: Path) -> None:
    extra = {
        "plain": [1, -2.5, "text", None, True, 10**30], "tuple": (1, (2, [3])),
        "keys": {1: "a", (2, 3): "b", "!x": "c"},
        "counter": Counter({3: 2, 5: 1}), "nested": {"a": {"b": [{}, []]}}, "inf": [float("inf"), -float("inf")],
        "scalar": np.float32(0.1), "integer": np.int16(7), "empty": (),
    }  # fmt: skip
    arrays = {
        "array": np.arange(6.0).reshape(2, 3).T,
        "tensor": torch.randn(2, 3).t(),
        "bf16": torch.randn(3).bfloat16(),
        "nothing": torch.empty(0, 4),
    }
    found = load_checkpoint(
        save(gn.Network(gn.mlp([2, 2])), tmp_path / "a.gn", extra=extra | arrays | {"nan": float("nan")})
    ).extra
    assert {key: found[key] for key in extra} == extra
    assert [type(found[k]) for k in ("counter", "scalar", "integer", "tuple")] == [Counter, np.float32, np.int16, tuple]
    assert np.isnan(found["nan"])
    for key, value in arrays.items():
        assert type(found[key]) is type(value)
        assert found[key].dtype == value.dtype
        assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(np.array(value) if key == "array" else value))


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 2, 5]),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o, [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], [3]
        ),
    ],
    ids=["multistep", "cosine", "lambda", "plateau", "onecycle", "sequential"],
)
def test_schedulers_go_on(make: Callable[[torch.optim.Optimizer], Any], tmp_path: Path) -> None:
    def steps(scheduler: Any, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
        rates = []
        for _ in range(count):
            optimizer.step()
            scheduler.step(*([1.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    net = gn.Network(gn.mlp([2, 3, 2]))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)
    net.attach(optimizer)
    scheduler = make(optimizer)
    steps(scheduler, optimizer, 4)
    path = net.save(tmp_path / "a.gn", state={"scheduler": scheduler})
    expected = steps(scheduler, optimizer, 12)
    checkpoint = load_checkpoint(path)
    net = checkpoint.network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)
    scheduler = make(optimizer)
    checkpoint.resume(net, optimizer, state={"scheduler": scheduler})
    assert steps(scheduler, optimizer, 12) == expected


# -- what resume and save refuse --------------------------------------------------------------------------------------


def test_resume_refuses_what_does_not_belong(tmp_path: Path) -> None:
    run = Run.start("adam").train(5)
    checkpoint = load_checkpoint(run.save(tmp_path / "run.gn"))
    net = checkpoint.network()
    adam = _adam(net)
    scheduler = {"scheduler": torch.optim.lr_scheduler.StepLR(adam, 4)}
    before = torch.get_rng_state()
    some = torch.optim.Adam(list(net.parameters())[:2])
    cases: list[tuple[str, gn.Network, tuple[Any, ...], dict[str, Any]]] = [
        ("1 optimizers", net, (), scheduler),
        ("scheduler", net, (adam,), {}),
        ("scheduler", net, (adam,), scheduler | {"more": scheduler}),
        ("not SGD", net, (_sgd(net),), scheduler),
        ("not AdamW", net, (_adamw(net),), scheduler),
        ("groups of", net, (some,), scheduler),
        ("groups of", net, (_adam(checkpoint.network()),), scheduler),
        ("another graph", gn.Network(gn.mlp([5, 12, 8, 3])), (adam,), scheduler),
    ]
    for message, network, optimizers, state in cases:
        with pytest.raises(CheckpointError, match=message):
            checkpoint.resume(network, *optimizers, state=state)
    assert net.attached == ()
    assert not adam.state
    assert torch.equal(before, torch.get_rng_state())


def test_save_refuses_what_it_would_lose(tmp_path: Path) -> None:
    net = gn.Network(gn.mlp([2, 3, 2]))
    path = net.save(tmp_path / "a.gn")
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"extra\.a\[1\]: a set"):
        net.save(path, extra={"a": [1, {2}]})
    with pytest.raises(CheckpointError, match="state_dict"):
        net.save(path, state={"scheduler": 3})
    with pytest.raises(CheckpointError, match="a folder"):
        net.save(tmp_path)
    with pytest.raises(CheckpointError, match="not written"):
        net.save(path / "below.gn")
    other = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*net.parameters(), *other.parameters()], lr=0.1)
    net.attach(optimizer)
    with pytest.raises(CheckpointError, match="2 parameters that are not of this network"):
        net.save(path)
    net = gn.Network(gn.mlp([2, 3, 2]))
    net.add_module("mine", other)
    with pytest.raises(CheckpointError, match=r"mine\.bias"):
        net.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.gn"]


def test_arguments_of_an_operator_of_ones_own_do_not_stop_a_checkpoint(tmp_path: Path) -> None:
    def mine(plan: Plan) -> None:
        plan.steps.append(Step("mine", None, {"what": {1, 2}}))

    net = gn.Network(gn.mlp([2, 3, 2]))
    with net.edit() as edit:
        edit.apply(mine)
    (step,) = load_network(net.save(tmp_path / "a.gn")).history.latest.steps
    assert step.arguments == {"what": "{1, 2}"}

"""A checkpoint loses nothing, is never half there, and says what is wrong with a file that it does not read."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import graphnet as gn
from graphnet.edit.plan import Plan, Step
from graphnet.runtime.checkpoint import load_checkpoint, load_network, save
from graphnet.runtime.sealed import read_sealed, write_sealed

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


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Run.start("adam").train(7).save(tmp_path_factory.mktemp("whole") / "run.gn")


def load_bytes(content: bytes, folder: Path) -> None:
    path = folder / "damaged.gn"
    path.write_bytes(content)
    load_network(path)


def test_any_safetensors_reader_opens_it(whole: Path) -> None:
    tensors = safetensors.torch.load_file(whole)
    net = load_network(whole)
    assert torch.equal(tensors["tensor/fc1.weight"], net.tensor("fc1.weight"))
    assert json.loads(bytes(tensors["document"].numpy()))["seed"] == 4


def test_flipped_bits_are_found(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    chance = random.Random(1)
    places = [
        *range(8),
        *(chance.randrange(header) for _ in range(250)),
        *(chance.randrange(len(content)) for _ in range(250)),
    ]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        with pytest.raises(CheckpointError, match=r"damaged|truncated|no checkpoint|torch\.save"):
            load_bytes(bytes(damaged), tmp_path)


def test_the_message_says_which_part_is_damaged(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    at = content.index(b'"dtype":"F32"') + 9
    with pytest.raises(CheckpointError, match="header is damaged"):
        load_bytes(content[:at] + b"I" + content[at + 1 :], tmp_path)
    with pytest.raises(CheckpointError, match="tensors or the document are damaged"):
        load_bytes(content[: header + 50] + bytes([content[header + 50] ^ 1]) + content[header + 51 :], tmp_path)


def test_truncated_and_grown_files_are_found(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    for length in [*range(12), *range(12, len(content), 211), len(content) - 1]:
        with pytest.raises(CheckpointError, match="truncated"):
            load_bytes(content[:length], tmp_path)
    with pytest.raises(CheckpointError, match="5 bytes too many"):
        load_bytes(content + b"hello", tmp_path)


def test_foreign_files_are_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)
    foreign = {
        r"torch\.save": buffer.getvalue(),
        "no graphnet checkpoint": safetensors.torch.save({"a": torch.ones(3)}, {"format": "pt"}),
        "no checkpoint": safetensors.torch.save({"a": torch.ones(3)}),
        "truncated": b"",
        "no checkpoint, or": b'{"kind": "architecture", "name": "net"}' * 9,
    }
    for message, content in foreign.items():
        with pytest.raises(CheckpointError, match=message):
            load_bytes(content, tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_network(tmp_path / "missing.gn")
    with pytest.raises(CheckpointError, match="a folder"):
        load_network(tmp_path)
    for strange in ("a\0b", "/dev/null/x", "x" * 5000):
        with pytest.raises(CheckpointError):
            load_network(strange)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="no ordinary file"):
            load_network(tmp_path / "pipe")


def sealed_header(header: dict[str, Any], data: bytes, **metadata: str) -> bytes:
    """A file with right digests and a header of any content."""
    named = {"format": "graphnet-checkpoint", "format_version": "1", "data_sha256": hashlib.sha256(data).hexdigest()}
    full = {"__metadata__": named | {"header_sha256": "0" * 64} | metadata, **header}
    text = json.dumps(full, separators=(",", ":")).encode()
    text = text.replace(b"0" * 64, hashlib.sha256(text).hexdigest().encode())
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ("install a newer one", sealed_header({}, b"", format_version="2")),
        ("no format version", sealed_header({}, b"", format_version="one")),
        ("no document", sealed_header({}, b"")),
        ("cannot be read", sealed_header({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 4]}}, b"1234")),
        (
            "cannot be read",
            sealed_header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"1234"),
        ),
        ("truncated", sealed_header({"a": {"dtype": "F32", "shape": [2**58], "data_offsets": [0, 2**60]}}, b"1234")),
        ("cannot be read", sealed_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, b"")),
        ("cannot be read", sealed_header({"a": 3}, b"")),
        ("cannot be read", sealed_header({"document": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, b"[NaN")),
        (
            "cannot be read",
            sealed_header(
                {"document": {"dtype": "U8", "shape": [200_000], "data_offsets": [0, 200_000]}}, b"[" * 200_000
            ),
        ),
        ("not a mapping", sealed_header({"document": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"[]")),
        ("problem", sealed_header({"document": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"{}")),
        ("no checkpoint", (2**62).to_bytes(8, "little") + b"x" * 100),
        ("truncated", (99_000_000).to_bytes(8, "little") + b"x" * 100),
    ],
)
def test_claims_that_the_file_does_not_hold_are_refused(message: str, content: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_bytes(content, tmp_path)


Forge = Callable[[dict[str, Tensor], dict[str, Any]], object]


def _graph(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["versions"][0]["graph"]
    return found


FORGERIES: dict[str, tuple[str, Forge]] = {
    "tensor missing": ("lacks the tensor 'tensor/fc1.bias'", lambda t, d: t.pop("tensor/fc1.bias")),
    "state missing": ("lacks the tensor 'value/", lambda t, d: t.pop(next(n for n in t if n.startswith("value/")))),
    "reserve missing": ("lacks the tensor 'reserve", lambda t, d: t.pop("reserve/fc2.bias")),
    "birth missing": ("lacks the tensor 'birth", lambda t, d: t.pop(next(n for n in t if n.startswith("birth/")))),
    "reserve unlisted": (
        "dormant units are missing",
        lambda t, d: (d["reserve"].remove("fc2.bias"), t.pop("reserve/fc2.bias")),
    ),
    "shape": ("shape", lambda t, d: t.update({"tensor/fc1.bias": torch.zeros(3)})),
    "dtype": ("is to be trained", lambda t, d: t.update({"tensor/fc1.bias": t["tensor/fc1.bias"].long()})),
    "stray": ("belong to nothing", lambda t, d: t.update({"tensor/extra": torch.zeros(3)})),
    "path above": ("belong to nothing", lambda t, d: t.update({"../../../tmp/evil": torch.zeros(3)})),
    "path absolute": ("belong to nothing", lambda t, d: t.update({"/etc/evil": torch.zeros(3)})),
    "module path": ("no parameter '../x'", lambda t, d: d["constant"].append("../x")),
    "key missing": ("seed", lambda t, d: d.pop("seed")),
    "key unknown": ("found an unknown key", lambda t, d: d.update(more=1)),
    "no versions": ("versions", lambda t, d: d.update(versions=[])),
    "first graph": ("first version has no graph", lambda t, d: d["versions"][0].update(graph=None)),
    "order": ("does not follow", lambda t, d: d["versions"][2].update(number=1)),
    "parent": ("does not follow", lambda t, d: d["versions"][2].update(parent=0)),
    "version missing": ("does not follow", lambda t, d: d["versions"].pop(2)),
    "last version missing": ("shape", lambda t, d: d["versions"].pop()),
    "ids": ("do not lie below", lambda t, d: d["versions"][1]["groups"]["fc1"].update(ids=[[0, 900]])),
    "many ids": (
        "claims more than",
        lambda t, d: d["versions"][1]["groups"]["fc1"].update(ids=[[0, 2**50]], next_id=2**52),
    ),
    "ids twice": ("twice", lambda t, d: d["versions"][1]["groups"]["fc1"].update(ids=[[0, 5], [5, 6]])),
    "no group": (
        "no unit group",
        lambda t, d: d["versions"][1]["groups"].update(fc9=d["versions"][1]["groups"]["fc1"]),
    ),
    "huge layer": ("units", lambda t, d: _graph(d)["ops"][0].update(out=10**12)),
    "unknown op": ("op", lambda t, d: _graph(d)["ops"][0].update(op="os.system")),
    "op name": ("cannot be built", lambda t, d: d.update(json.loads(json.dumps(d).replace("act1", "forward")))),
    "unknown tag": ("does not write", lambda t, d: d["extra"].update(a={"!code": "1"})),
    "tag twice": ("does not write", lambda t, d: d["extra"].update(a={"!tuple": [], "!dict": []})),
    "unhashable": ("does not write", lambda t, d: d["extra"].update(a={"!dict": [[[1], 2]]})),
    "state of another": ("does not hold", lambda t, d: d["optimizers"][0]["groups"][0]["params"].pop()),
    "param twice": ("twice", lambda t, d: d["optimizers"][0]["groups"][0]["params"].append("fc1.bias")),
    "params option": (
        "mapping of their names",
        lambda t, d: d["optimizers"][0]["groups"][0]["options"].update(params=[1]),
    ),
    "birth dim": ("dimension 7", lambda t, d: d["optimizers"][0]["births"][0].update(dim=7)),
    "step": ("steps|operator", lambda t, d: d["versions"][1].update(steps=[{"operator": 3}])),
    "channels last": ("dimensions", lambda t, d: d["channels_last"].append("tensor/fc1.weight")),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_files_with_right_digests_and_wrong_content_are_refused(name: str, whole: Path, tmp_path: Path) -> None:
    message, forge = FORGERIES[name]
    tensors, document = read_sealed(whole)
    forge(tensors, document)
    path = write_sealed(tmp_path / "forged.gn", tensors, document)
    with pytest.raises(CheckpointError, match=message):
        load_network(path)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(item, dict | list):
            yield from places(item)


def test_no_document_raises_anything_but_a_checkpoint_error(whole: Path, tmp_path: Path) -> None:
    """Change one random place of the document, digests being right: it loads whole, or it is refused."""
    tensors, document = read_sealed(whole)
    text = json.dumps({k: v for k, v in document.items() if k != "rng"} | {"rng": None})
    rng = document["rng"]
    tensors = {name: t for name, t in tensors.items() if f'"{name}"' not in json.dumps(rng)}
    chance = random.Random(5)
    strange = [
        None,
        -1,
        0,
        2**70,
        1.5,
        "",
        "x",
        "fc1.bias",
        [],
        {},
        [[]],
        True,
        {"!tensor": "tensor/fc1.bias"},
        {"!float": []},
    ]
    refused = 0
    for _ in range(300):
        changed = json.loads(text)
        owner, key = chance.choice(list(places(changed)))
        if chance.random() < 0.2 and isinstance(owner, dict):
            del owner[key]
        else:
            owner[key] = chance.choice(strange)
        path = write_sealed(tmp_path / "forged.gn", tensors, changed)
        try:
            checkpoint = load_checkpoint(path)
            net = checkpoint.network()
            optimizer = _adam(net)
            checkpoint.resume(net, optimizer, state={"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 4)})
        except CheckpointError:
            refused += 1
    assert 100 < refused < 300


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["fsync", "replace", "chmod"])
def test_a_write_that_fails_leaves_the_old_file(function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.start("adam").train(3)
    path = run.save(tmp_path / "run.gn")
    before = path.read_bytes()
    run.train(2)

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(CheckpointError, match="No space left"):
            run.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.gn"]
    assert load_checkpoint(run.save(path)).extra == {"step": 5}


def test_links_and_permissions_stay(tmp_path: Path) -> None:
    net = gn.Network(gn.mlp([2, 2]))
    target = net.save(tmp_path / "deep" / "er" / "real.gn")
    target.chmod(0o640)
    link = tmp_path / "latest.gn"
    link.symlink_to(target)
    net.save(link)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert load_network(link).version == 0


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    import platform

    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f".a.gn.{platform.node()}.{dead.pid}.0123abcd.tmp"
    alive = tmp_path / f".a.gn.{platform.node()}.{os.getpid()}.0123abcd.tmp"
    other = tmp_path / f".b.gn.{platform.node()}.{dead.pid}.0123abcd.tmp"
    for path in (left, alive, other):
        path.write_bytes(b"half")
    gn.Network(gn.mlp([2, 2])).save(tmp_path / "a.gn")
    assert not left.exists()
    assert alive.exists()
    assert other.exists()


# -- kill -9 ----------------------------------------------------------------------------------------------------------


def serve(path: Path) -> None:
    """For each line read, fork a process that trains on and checkpoints after every step, until it is killed."""
    torch.set_num_threads(1)
    Run.start("adam").train(4)  # what torch imports on first use is paid once
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            run = Run.resume("adam", path) if path.exists() else Run.start("adam")
            while True:
                run.train(1).save(path)
        print(child, flush=True)
        os.waitpid(child, 0)


def kill_and_resume(path: Path, kills: int) -> None:
    server = subprocess.Popen(
        [sys.executable, __file__, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    found: dict[int, str] = {}
    chance = random.Random(2)
    for _ in range(kills):
        print("go", file=server.stdin, flush=True)
        child = int(server.stdout.readline())
        since = path.stat().st_mtime_ns if path.exists() else 0
        while not path.exists() or path.stat().st_mtime_ns == since:
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.08))
        os.kill(child, signal.SIGKILL)
        run = Run.resume("adam", path)
        found[run.step] = run.digest()
        run.train(3)
        found[run.step] = run.digest()
    server.stdin.close()
    assert server.wait(timeout=30) == 0
    server.stdout.close()
    run = Run.start("adam")
    assert len(found) > kills
    for step in sorted(found):
        assert found[step] == run.train(step - run.step).digest(), f"step {step}"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    kill_and_resume(tmp_path / "run.gn", 10)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_a_hundred_times(tmp_path: Path) -> None:
    kill_and_resume(tmp_path / "run.gn", 100)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))

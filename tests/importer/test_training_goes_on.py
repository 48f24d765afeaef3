"""An optimizer with warm state, a scheduler and an EMA attached after import: training goes on bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import graphnet as gn


class Convolutional(nn.Module):
    """Convolutions, batch norm with statistics, a residual sum, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.drop((x + self.block(x)).mean((2, 3))))


class Transformer(nn.Module):
    """A tied embedding and head around a transformer layer, with dropout inside and out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(11, 12), nn.Parameter(torch.randn(6, 12) * 0.1)
        self.layer = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.1, batch_first=True)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(self.embed(x) + self.positions))).flatten(0, 1)


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 3, 6, 6), torch.randint(0, 4, (5,))


def words() -> tuple[Tensor, Tensor]:
    return torch.randint(0, 11, (3, 6)), torch.randint(0, 11, (18,))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "convolutional": (Convolutional, images),
    "transformer": (Transformer, words),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda model: torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0, "lr": 3e-3},
        ],
        lr=1e-2,
    ),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
}


class Loop:
    """A training loop with everything that has state."""

    def __init__(self, model: nn.Module, make: Callable[[Any], torch.optim.Optimizer], data: Iterator[Any]) -> None:
        self.model: Any = model
        self.data = data
        self.optimizer = make(model)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=0.05, total_steps=12)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

    def run(self, steps: int) -> None:
        self.model.train()
        for _ in range(steps):
            x, y = next(self.data)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.scheduler.step()
            self.average.update_parameters(self.model)

    def state(self) -> dict[str, Any]:
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "average": dict(self.average.state_dict()),
            "random": torch.get_rng_state(),
        }


def same(one: Any, two: Any) -> bool:
    """Whether two nested states are one, bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return callable(one) or bool(one == two)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_training_goes_on_as_it_would_have(name: str, optimizer: str) -> None:
    make, batch = MODELS[name]
    batches = [batch() for _ in range(8)]

    def loop() -> Loop:
        torch.manual_seed(1)
        return Loop(make(), OPTIMIZERS[optimizer], iter(batches))

    plain = loop()
    plain.run(8)
    expected = plain.state()

    taken = loop()
    taken.run(4)
    net = gn.from_torch(taken.model, (batches[0][0],), share=True)
    for what in (taken.optimizer, taken.scheduler, taken.average):
        net.attach(what)
    taken.model = net
    taken.run(4)
    found = taken.state()
    for part, value in expected.items():
        assert same(value, found[part]), part
    other = copy.deepcopy(found["model"])
    next(iter(other.values())).view(-1)[0] += 1e-7
    assert not same(found["model"], other)  # the comparison sees a bit


def test_an_edit_carries_what_was_attached() -> None:
    """Growth after the import leaves what the incumbents had, in the optimizer and in the average."""
    taken = Loop(Transformer(), OPTIMIZERS["adamw"], iter([words() for _ in range(6)]))
    taken.run(3)
    net = gn.from_torch(taken.model, (words()[0],), share=True)
    for what in (taken.optimizer, taken.scheduler, taken.average):
        net.attach(what)
    weight = net.get_parameter("layer.linear1.weight")
    moment = taken.optimizer.state[weight]["exp_avg"].clone()
    mean = dict(taken.average.named_parameters())["module.layer.linear1.weight"].detach().clone()
    averaged = taken.average(words()[0]).detach()
    with net.edit() as edit:
        edit.grow("layer.linear1", 4, preserves="function")
    assert torch.equal(taken.optimizer.state[weight]["exp_avg"][:16], moment)
    assert torch.equal(dict(taken.average.named_parameters())["module.layer.linear1.weight"][:16], mean)
    assert taken.average(words()[0]).shape == averaged.shape
    taken.model = net
    taken.run(3)


def test_an_average_of_another_model_is_refused() -> None:
    net = gn.from_torch(Transformer(), (words()[0],))
    with pytest.raises(gn.EditError, match="AveragedModel\\(net\\)"):
        net.attach(AveragedModel(Convolutional()))


class Named(nn.Module):
    """Called with a keyword, returns a dictionary; its modules stand in another order than they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.first, self.norm = nn.Linear(6, 3), nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        hidden = self.norm(self.first(x)).relu()
        return {"hidden": hidden, "y": self.head(hidden) * scale}


def test_a_checkpoint_of_an_import_goes_on_as_the_model_is_called(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, scale = torch.randn(5, 4), torch.tensor([2.0])

    def fresh() -> Any:
        return gn.from_torch(Named(), (x,), {"scale": scale})

    def step(net: Any, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        net(x, scale=scale)["y"].square().mean().backward()
        optimizer.step()

    net = fresh()
    optimizer = torch.optim.Adam(net.parameters())
    net.attach(optimizer)
    with net.edit() as edit:
        edit.grow("first", 3)
    step(net, optimizer)
    net.save(tmp_path / "run.gn")
    other = fresh()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    checkpoint = gn.load_checkpoint(tmp_path / "run.gn")
    again = checkpoint.network(like=other)
    resumed = torch.optim.Adam(again.parameters())
    checkpoint.resume(again, resumed)
    assert list(again.state_dict()) == list(net.state_dict())
    for each, following in ((net, optimizer), (again, resumed)):
        step(each, following)
        with each.edit(seed=3) as edit:
            edit.prune("first", lowest=2)
            edit.grow("first", 1)
        step(each, following)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
    assert again.to_torch()(x, scale=scale).keys() == {"hidden", "y"}
    with pytest.raises(gn.GraphnetError, match="has shape"):
        again(torch.randn(5, 3), scale=scale)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert other.version == 0


def test_a_checkpoint_is_not_taken_for_one_of_another_model(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    gn.from_torch(nn.Linear(4, 2), (x,)).save(tmp_path / "run.gn")
    for like in (gn.from_torch(nn.Linear(4, 3), (x,)), nn.Linear(4, 2), gn.Network(gn.mlp([4, 2]), seed=0)):
        with pytest.raises(gn.CheckpointError, match=r"another network|is a network"):
            gn.load_network(tmp_path / "run.gn", like=like)  # type: ignore[arg-type]

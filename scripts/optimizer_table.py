"""Measure what an edit does to every optimizer of torch.optim, and write the table of docs/optimizers.md.

Run it after a change of optimizer rules: `python scripts/optimizer_table.py`. With `--check` it writes nothing and
fails where a verdict (not a measured number) differs from the page. Everything is in float64.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

import graphnet as gn
from graphnet.edit.action import write_block
from graphnet.runtime.optimizer_rules import rule_for
from graphnet.testing.compare import positions, survivors, take, twin_of
from graphnet.testing.data import random_network, wave_loss

PAGE = Path(__file__).resolve().parent.parent / "docs" / "optimizers.md"
BEGIN = "<!-- Written by scripts/optimizer_table.py: change the rules, then run the script. -->"
END = "<!-- End of the table. -->"
LR, INITIAL = 0.01, 0.25
STEPS = 20
WITHIN = 1e-10

Make = Callable[[Any], Optimizer]


def two_groups(kind: Any, parameters: Any, **options: Any) -> Optimizer:
    """Decay and a rate of their own for every other parameter."""
    held = list(parameters)
    groups = [{"params": held[::2], "weight_decay": 0.1}, {"params": held[1::2], "lr": 2 * LR, "weight_decay": 0.0}]
    made: Optimizer = kind([group for group in groups if group["params"]], LR, **options)
    return made


CASES: dict[str, Make] = {
    "SGD": lambda p: optim.SGD(p, LR, momentum=0.9, nesterov=True, weight_decay=0.05),
    "Adam": lambda p: optim.Adam(p, LR, amsgrad=True),
    "AdamW": lambda p: optim.AdamW(p, LR, weight_decay=0.1),
    "NAdam": lambda p: optim.NAdam(p, LR, weight_decay=0.1, decoupled_weight_decay=True),
    "RAdam": lambda p: optim.RAdam(p, LR, weight_decay=0.1),
    "Adamax": lambda p: optim.Adamax(p, LR),
    "RMSprop": lambda p: optim.RMSprop(p, LR, centered=True, momentum=0.9),
    "Adagrad": lambda p: optim.Adagrad(p, LR, initial_accumulator_value=INITIAL),
    "Adadelta": lambda p: optim.Adadelta(p, LR),
    "Rprop": lambda p: optim.Rprop(p, LR),
    "ASGD": lambda p: optim.ASGD(p, LR, lambd=0.01, t0=0.0),
    "SparseAdam": lambda p: optim.SparseAdam(p, LR),
    "SGD, foreach": lambda p: optim.SGD(p, LR, momentum=0.9, nesterov=True, weight_decay=0.05, foreach=True),
    "Adam, foreach": lambda p: optim.Adam(p, LR, amsgrad=True, foreach=True),
    "AdamW, foreach": lambda p: optim.AdamW(p, LR, weight_decay=0.1, foreach=True),
    "NAdam, foreach": lambda p: optim.NAdam(p, LR, weight_decay=0.1, decoupled_weight_decay=True, foreach=True),
    "RAdam, foreach": lambda p: optim.RAdam(p, LR, weight_decay=0.1, foreach=True),
    "Adamax, foreach": lambda p: optim.Adamax(p, LR, foreach=True),
    "RMSprop, foreach": lambda p: optim.RMSprop(p, LR, centered=True, momentum=0.9, foreach=True),
    "Adagrad, foreach": lambda p: optim.Adagrad(p, LR, initial_accumulator_value=INITIAL, foreach=True),
    "Adadelta, foreach": lambda p: optim.Adadelta(p, LR, foreach=True),
    "Rprop, foreach": lambda p: optim.Rprop(p, LR, foreach=True),
    "ASGD, foreach": lambda p: optim.ASGD(p, LR, lambd=0.01, t0=0.0, foreach=True),
    "SGD, two groups": lambda p: two_groups(optim.SGD, p, momentum=0.9),
    "AdamW, two groups": lambda p: two_groups(optim.AdamW, p, amsgrad=True),
    "SGD, fused": lambda p: optim.SGD(p, LR, momentum=0.9, fused=True),
    "Adam, fused": lambda p: optim.Adam(p, LR, amsgrad=True, fused=True),
    "AdamW, fused": lambda p: optim.AdamW(p, LR, weight_decay=0.1, fused=True),
    "Adagrad, fused": lambda p: optim.Adagrad(p, LR, initial_accumulator_value=INITIAL, fused=True),
    "Adafactor": lambda p: optim.Adafactor(p, LR),
    "Muon": lambda p: optim.Muon(p, LR),
    "LBFGS": lambda p: optim.LBFGS(p, LR, max_iter=3),
}

WORDS = {
    "name": "words",
    "inputs": {"x": {"shape": [3], "dtype": "int64", "high": 5}},
    "ops": [
        {"name": "fc1", "op": "embedding", "count": 5, "dim": 8},
        {"name": "flat", "op": "flatten"},
        {"name": "fc2", "op": "linear", "out": 6},
        {"name": "act", "op": "gelu"},
        {"name": "head", "op": "linear", "out": 3},
    ],
}


@dataclass(frozen=True)
class Row:
    """One line of the table; measured numbers are not verdicts."""

    optimizer: str
    state: str
    update: str
    measured: str
    run: str
    drift: str
    newborn: str
    first: str

    def verdicts(self) -> tuple[str, ...]:
        """What a run must give again."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.name not in ("measured", "drift"))


HEADINGS = Row(
    "optimizer",
    "state of what stays",
    "its next update",
    "largest change",
    f"{STEPS} steps",
    "largest difference",
    "a newborn starts with",
    "its first update / lr: fresh, cold, aged",
)


def measure(name: str) -> Row:
    """Every column for one optimizer."""
    state, gap = next_update(name)
    coupled = rule_for(CASES[name]([nn.Parameter(torch.zeros(2, 2))])).couples is not None
    if state == "cleared":
        update, measured = "of a fresh start", "–"
    else:
        fused, measured = "fused" in name, "0" if gap == 0.0 else f"{gap:.1e}"
        exact = gap <= (1e-15 if fused else 0.0)
        update = "approximate" if not exact else "to 1 ulp" if fused else "bit for bit"
        if not coupled and not exact:
            raise SystemExit(f"{name}: the next update of what stays changed by {gap:.3g}")
    drift = whole_run(name)
    run = f"within {WITHIN:.0e}" if drift <= WITHIN else "approximate"
    first = ", ".join("–" if value is None else f"{value:.3g}" for value in first_updates(name))
    return Row(name, state, update, measured, run, f"{drift:.1e}", newborn(name), first)


# -- networks -----------------------------------------------------------------------------------------------------


def network(name: str) -> gn.Network:
    """A small network whose first group is `fc1`; for SparseAdam that is an embedding."""
    if name == "SparseAdam":
        net = gn.Network(gn.load(WORDS), seed=0).double()
        net.fc1.sparse = True
        return net
    return random_network(gn.mlp([4, 8, 6, 3], activation="gelu"), 0)


def attached(name: str, net: gn.Network) -> list[Optimizer]:
    """The optimizer of a case, and SGD for what it does not take."""
    parameters = list(net.parameters())
    mine = parameters
    if name == "SparseAdam":
        mine = [net.fc1.weight]
    elif name == "Muon":
        mine = [p for p in parameters if p.dim() == 2]
    rest = [p for p in parameters if all(p is not held for held in mine)]
    optimizers = [CASES[name](mine), *([optim.SGD(rest, LR)] if rest else [])]
    for optimizer in optimizers:
        net.attach(optimizer)
    return optimizers


def inputs(net: gn.Network, step: int) -> Tensor:
    """A batch."""
    generator = torch.Generator().manual_seed(step)
    if net.graph.inputs[0].dtype == "int64":
        return torch.randint(0, 5, (6, 3), generator=generator)
    return torch.randn(6, 4, generator=generator, dtype=torch.float64)


def learn(net: gn.Network, optimizers: Sequence[Optimizer], step: int, dead: Sequence[int] = ()) -> None:
    """One training step; gradients of dead units of `fc1` are zero."""

    def closure() -> Tensor:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = wave_loss(net(inputs(net, 0 if isinstance(optimizers[0], optim.LBFGS) else step)))
        loss.backward()
        for _, dim, parameter, at in slices(net, dead):
            assert parameter.grad is not None
            silence(parameter.grad, dim, at)
        return loss

    if isinstance(optimizers[0], optim.LBFGS):
        optimizers[0].step(closure)
        return
    closure()
    for optimizer in optimizers:
        optimizer.step()


def silence(gradient: Tensor, dim: int, at: Tensor) -> None:
    """Put a slice of a gradient to zero, a sparse one's entries too."""
    if gradient.is_sparse:
        gradient._values().index_fill_(dim, at, 0.0)
    else:
        gradient.index_fill_(dim, at, 0.0)


def slices(net: gn.Network, units: Sequence[int]) -> Iterator[tuple[str, int, nn.Parameter, Tensor]]:
    """Where units of `fc1` lie; positions are ids here."""
    for name, spec in net.graph.tensors.items():
        for dim, layout in enumerate(spec.dims):
            owner = torch.from_numpy(layout.owners("fc1", net.graph.sizes))
            at = torch.nonzero(torch.isin(owner, torch.tensor(list(units), dtype=owner.dtype))).flatten()
            if at.numel():
                yield name, dim, net.get_parameter(name), at


# -- measurements -------------------------------------------------------------------------------------------------


def edit_both(net: gn.Network) -> None:
    """Growth and pruning in one edit."""
    with net.edit() as edit:
        edit.prune("fc1", units=[2])
        edit.grow("fc1", 2, init="kaiming", state="cold")
        edit.grow("fc2", 1, init="kaiming", state="cold")


def next_update(name: str) -> tuple[str, float]:
    """What became of the state of what stays, and by how much its next update changed, given the same gradients."""
    torch.manual_seed(0)
    net = network(name)
    optimizers = attached(name, net)
    for step in range(4):
        learn(net, optimizers, step)
    twin = twin_of(net)
    edit_both(net)
    ids = survivors(twin.graph, net.graph)
    places = {n: (positions(twin.graph, n, ids), positions(net.graph, n, ids)) for n in net.graph.tensors}
    kept = "bit for bit"
    for tensor, (before, after) in places.items():
        one, two = twin.get_parameter(tensor), net.get_parameter(tensor)
        was, now = twin.attached[0].state.get(one, {}), net.attached[0].state.get(two, {})
        if was and not now:
            kept = "cleared"
            continue
        for key, value in was.items():
            if isinstance(value, Tensor) and value.shape == one.shape and value.dim():
                same = torch.equal(take(value, before), take(now[key], after))
            elif key in ("row_var", "col_var"):
                same, kept = True, "second moments to 1e-12"
                gap = take(factored(now), after) / take(factored(was), before) - 1.0
                if float(gap.abs().max()) > 1e-12:
                    raise SystemExit(f"{name}: second moments of {tensor} changed by {float(gap.abs().max()):.3g}")
            else:
                same = value is None or bool(torch.as_tensor(value == now[key]))
            if not same:
                raise SystemExit(f"{name}: {key} of {tensor} changed")
        one.grad, two.grad = torch.randn_like(one), torch.randn_like(two)
        write_block(two.grad, after, take(one.grad, before))
        if tensor == "fc1.weight" and name == "SparseAdam":
            one.grad, two.grad = one.grad.to_sparse(1), two.grad.to_sparse(1)
    return kept, change(net, twin, places)


def factored(state: dict[str, Tensor]) -> Tensor:
    """Adafactor's estimate of the second moments."""
    return state["row_var"] @ state["col_var"] / state["row_var"].mean(-2, keepdim=True)


def change(net: gn.Network, twin: gn.Network, places: dict[str, Any]) -> float:
    """By how much the first optimizer's update of what stays differs, as a share of the largest update of a tensor."""
    updates: list[dict[str, Tensor]] = []
    for of in (twin, net):
        before = {name: p.detach().clone() for name, p in of.named_parameters()}
        optimizer = of.attached[0]
        if isinstance(optimizer, optim.LBFGS):
            optimizer.step(lambda of=of: linear(of))  # type: ignore[misc]
        else:
            optimizer.step()
        updates.append({name: p.detach() - before[name] for name, p in of.named_parameters()})
    largest = 0.0
    for name, (before, after) in places.items():
        one, two = take(updates[0][name], before), take(updates[1][name], after)
        if one.any():
            largest = max(largest, float((one - two).abs().max() / one.abs().max()))
    return largest


def linear(net: gn.Network) -> Tensor:
    """The loss whose gradients are those that are there."""
    return sum(((p.detach() * p.grad).sum() for p in net.parameters() if p.grad is not None), start=torch.zeros(()))


def whole_run(name: str) -> float:
    """The largest difference of weights between training without units and training with them masked."""
    torch.manual_seed(0)
    net = network(name)
    masked = copy.deepcopy(net)
    if name == "SparseAdam":
        masked.fc1.sparse = True
    optimizers, others = attached(name, net), attached(name, masked)
    dead: list[int] = []
    for step in range(STEPS):
        if step == 5:
            dead = [1, 4, 6]
            with net.edit() as edit:
                edit.prune("fc1", units=dead)
            if name == "LBFGS":
                others[0].state.clear()
        for _, dim, parameter, at in slices(masked, dead):
            parameter.data.index_fill_(dim, at, 0.0)
        learn(net, optimizers, step)
        learn(masked, others, step, dead)
    ids = survivors(masked.graph, net.graph)
    largest = 0.0
    for tensor in net.graph.tensors:
        one = take(masked.tensor(tensor).detach(), positions(masked.graph, tensor, ids))
        two = take(net.tensor(tensor).detach(), positions(net.graph, tensor, ids))
        largest = max(largest, float((one - two).abs().max() / one.abs().max()))
    return largest


def newborn(name: str) -> str:
    """What newborn rows hold, by state key."""
    torch.manual_seed(0)
    net = network(name)
    optimizers = attached(name, net)
    for step in range(4):
        learn(net, optimizers, step)
    group = optimizers[0].param_groups[0]
    group["lr"] = 2 * LR  # as it is at the time of the edit
    with net.edit() as edit:
        edit.grow("fc1", 3, init="kaiming", state="cold")
    found: dict[str, list[str]] = {}
    weight = net.fc1.weight.detach()
    state = dict(optimizers[0].state[net.fc1.weight])
    if name == "Adafactor":
        state |= {"variance": optimizers[0].state[net.fc1.bias]["variance"]}
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[0] == 1:
            continue
        dim = 1 if name == "SparseAdam" else 0  # the units are the columns of an embedding
        born, kept = value.narrow(dim, 8, 3), value.narrow(dim, 0, 8)
        candidates = {
            "0": torch.zeros_like(born),
            "`lr`": torch.full_like(born, 2 * LR),
            "`initial_accumulator_value`": torch.full_like(born, INITIAL),
            "its weight": weight[8:] if weight[8:].shape == born.shape else torch.full_like(born, torch.nan),
            "the mean of the others": kept.mean(dim, keepdim=True).expand_as(born),
        }
        said = next((word for word, filled in candidates.items() if torch.allclose(born, filled, rtol=1e-12)), None)
        if said is None:
            raise SystemExit(f"{name}: newborn {key} is {born}")
        found.setdefault(said, []).append(f"`{key}`")
    if name == "Adafactor":
        found["the mean of the others"].insert(1, "`col_var`")
    return "; ".join(f"{', '.join(keys)}: {word}" for word, keys in found.items()) or "nothing"


def first_updates(name: str) -> tuple[float | None, float | None, float | None]:
    """A newborn's first update under gradients of 1, in units of lr: as a fresh optimizer's first, cold, aged."""
    if name in ("Adafactor", "Muon", "LBFGS", "SparseAdam"):
        return None, None, None
    found: list[float | None] = []
    for state in (None, "cold", "aged"):
        net = random_network(gn.mlp([4, 8, 3], activation="gelu"), 0)
        with torch.no_grad():
            for p in net.parameters():
                p.zero_()
        (optimizer,) = attached(name, net)
        for step in range(1 if state is None else 30):
            if step == 29:
                for p in net.parameters():
                    if rule_for(optimizer).ageing is not None:
                        optimizer.state[p]["step"].fill_(100_000.0)
                        if "mu_product" in optimizer.state[p]:
                            optimizer.state[p]["mu_product"].fill_(0.0)
                with net.edit() as edit:
                    edit.grow("fc1", 2, init="kaiming", state=state)  # type: ignore[arg-type]
                net.fc1.weight.data.zero_()
            for p in net.parameters():
                p.grad = torch.ones_like(p)
            before = net.fc1.weight.detach().clone()
            optimizer.step()
        moved = (before - net.fc1.weight.detach())[0 if state is None else 8 :]
        found.append(float(moved.mean()) / LR)
    return found[0], found[1], found[2]


# -- the page -----------------------------------------------------------------------------------------------------


def rows() -> list[Row]:
    """The measured table."""
    return [measure(name) for name in CASES]


def line(row: Row) -> str:
    """One line of Markdown."""
    return f"| {' | '.join(str(getattr(row, f.name)) for f in fields(row))} |"


def render(table: Sequence[Row]) -> str:
    """The text between the markers."""
    return "\n".join([BEGIN, "", line(HEADINGS), "|" + "---|" * len(fields(Row)), *map(line, table), "", END])


def parsed(text: str) -> list[Row]:
    """The table that a page holds."""
    lines = text[text.index(BEGIN) : text.index(END)].splitlines()
    cells = [[cell.strip() for cell in one.strip("|").split(" | ")] for one in lines if one.startswith("| ")]
    return [Row(*found) for found in cells[1:]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, or with `--check` only say whether a verdict differs; return 1 if one does."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a verdict differs")
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)  # scalars such as NAdam's mu_product have torch's default type
    try:
        table = rows()
    finally:
        torch.set_default_dtype(torch.float32)
    text = PAGE.read_text(encoding="utf-8")
    there = [row.verdicts() for row in parsed(text)]
    if options.check:
        wrong = [row for row, held in zip(table, there, strict=False) if row.verdicts() != held]
        for row in wrong:
            print(f"differs: {line(row)}")
        return 1 if wrong or len(there) != len(table) else 0
    before, after = text[: text.index(BEGIN)], text[text.index(END) + len(END) :]
    PAGE.write_text(before + render(table) + after, encoding="utf-8")
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

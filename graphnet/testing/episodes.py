"""Random lives of networks: trained, edited, checked, line by line, so that a failure is a script to run.

One episode draws a graph, a network with random tensors and an optimizer, and up to 30 edits; after each of them the
laws of an edit are checked, and one or another law of the network. :mod:`graphnet.testing.long` runs them by the
thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from graphnet.errors import EditError
from graphnet.ir.graph import Graph
from graphnet.runtime.network import Network
from graphnet.testing.compare import twin_of
from graphnet.testing.counting import COUNTS
from graphnet.testing.data import dtype_of, sample
from graphnet.testing.edits import EditCall, edit_calls, some_group, spare
from graphnet.testing.graphs import graphs
from graphnet.testing.laws import EDIT_LAWS, output_of
from graphnet.testing.optimizers import optimizers, supported_optimizers
from graphnet.testing.oracles import can_drop
from graphnet.testing.programs import program_maps, programs
from graphnet.testing.scripts import Story

__all__ = ["define_change", "episode", "is_finite", "program_episode", "some_order"]

_STABLE = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop")
"""Optimizers whose path rounding does not change by much, for the law on masking."""

_RARELY = 9
"""One in so many and one edits is a transaction of several operators; one is interrupted."""

_LARGEST = 60_000
"""Parameters past which an episode ends: growth outruns pruning in some."""


def episode(
    draw: st.DrawFn,
    *,
    length: int = 30,
    kinds: st.SearchStrategy[Graph] | None = None,
    operators: Sequence[str] | None = None,
) -> None:
    """One random life of a network; raises :class:`~graphnet.testing.scripts.LawError` where a law does not hold."""
    story = Story()
    graph = draw(graphs() if kinds is None else kinds)
    COUNTS.graphs[graph.name] += 1
    story.graph(graph)
    story.run(f"net = random_network(graph, seed={draw(st.integers(0, 999))})")
    still = draw(st.integers(0, 3)) == 0  # not trained between edits, so that its journal can be replayed
    spec = draw(optimizers(kinds=supported_optimizers()))
    COUNTS.optimizers[spec.kind] += 1
    story.run(f"attach(net, {spec.kind!r}{''.join(f', {key}={value!r}' for key, value in spec.options.items())})")
    story.run("snapshot = net.snapshot()")
    if draw(st.booleans()):
        story.run(f"train(net, net.attached, {draw(st.integers(1, 3))})")
    if still:
        story.run("import copy\nfirst = copy.deepcopy(net)")
    try:
        replayed = _live(draw, story, draw(st.integers(1, length)), operators, spec.kind, still)
    finally:
        COUNTS.lives[story["net"].version] += 1
    if replayed and story["net"].version:
        story.run("check_replay(first, net)")


def _live(
    draw: st.DrawFn, story: Story, length: int, operators: Sequence[str] | None, optimizer: str, still: bool
) -> bool:
    """Edit, check and train so many times; whether a journal can give the network again."""
    replayed = still
    for step in range(2 * length):  # refused edits do not count
        net: Network = story["net"]
        if net.version >= length:
            break
        if not is_finite(net) or sum(parameter.numel() for parameter in net.parameters()) > _LARGEST:
            return False
        calls = _calls(draw, net, story["snapshot"], operators)
        replayed = replayed and not any(call.needs_data for call in calls)
        laws = [law for law in EDIT_LAWS if law not in _not_implied(calls, still)]
        define_change(story, calls)
        interrupted = not still and draw(st.integers(0, _RARELY)) == 0
        if interrupted:
            story.run("twin = twin_of(net)")
        if not story.run(f"check_edit(net, change, {laws})"):
            COUNTS.refused.update(dict.fromkeys((call.operator for call in calls), 1))
            story.forget(3 if interrupted else 2)
            continue
        if interrupted:
            story.run(f"check_atomicity(twin, change, early=1, late=2, seed={draw(st.integers(0, 999))})")
        if not still:
            if draw(st.integers(0, 2)) == 0:
                story.run(f"train(net, net.attached, 1, seed={step + 1})")
            if not is_finite(net):
                return False
        if draw(st.booleans()):
            _another_law(draw, story, optimizer, still)
    return replayed


def _calls(draw: st.DrawFn, net: Network, snapshot: Any, operators: Sequence[str] | None) -> list[EditCall]:
    """One call of an operator, or sometimes two or three for one transaction, each for the graph that it will see."""
    if draw(st.integers(0, _RARELY)):
        return [draw(edit_calls(net.graph, operators))]
    calls: list[EditCall] = []
    trial = twin_of(net)
    for _ in range(draw(st.integers(2, 3))):
        call = draw(edit_calls(trial.graph, operators))
        try:
            with trial.edit() as edit:
                call.apply(edit, snapshot)
        except Exception:  # a refusal, or a mistake: the law of the edit will say which, with a script
            return [*calls, call]
        calls.append(call)
    return calls


def _not_implied(calls: Sequence[EditCall], still: bool) -> set[str]:
    """Laws that these edits do not claim, or that would train the network."""
    left_out = {"next-update"} if still else set()
    if not all(call.incumbents for call in calls):
        left_out |= {"gradients", "incumbents", "next-update"}
    if not all(call.gradients for call in calls):
        left_out |= {"gradients"}
    return left_out


def define_change(story: Story, calls: Sequence[EditCall]) -> None:
    """Define ``change(edit)``."""
    body = "\n".join(f"    {call.code()}" for call in calls)
    story.run(f"\n\ndef change(edit):\n{body}\n\n")


_HUGE = 1e60


def is_finite(net: Network) -> bool:
    """Whether tensors and outputs are, and not huge: of training that has diverged nothing can be said."""
    if not all(bool(torch.isfinite(net.tensor(name)).all()) for name in net.graph.tensors):
        return False
    output = output_of(net, sample(net.graph, 1, dtype=dtype_of(net)))
    parts = output if isinstance(output, tuple) else (output,)
    return all(bool((part.abs() < _HUGE).all()) for part in parts)


def some_order(draw: st.DrawFn, size: int) -> list[int]:
    """An order of so many units."""
    return list(draw(st.permutations(range(size))))


def _another_law(draw: st.DrawFn, story: Story, optimizer: str, still: bool) -> None:
    graph: Graph = story["net"].graph
    group = some_group(draw, graph)
    laws: dict[str, Callable[[str], str | None]] = {
        "functor": lambda group: f"check_functors(net, {draw(st.integers(0, 999))})",
        "permute oracle": lambda group: f"check_permute(net, {group!r})" if graph.groups[group].size > 1 else None,
        "drop oracle": lambda group: _drop(draw, graph, group),
        "rules twice": lambda group: "check_rules_twice(net.graph)",
        "neurons": lambda group: "check_neurons(net)",
    }
    if not still:
        laws |= {
            "round trip": lambda group: f"check_round_trip(net, {group!r}, {draw(st.integers(1, 3))})",
            "permutation": lambda group: (
                f"check_permutation(net, {group!r}, {some_order(draw, graph.groups[group].size)})"
            ),
            "masked": lambda group: _masked(draw, graph, group) if optimizer in _STABLE else None,
        }
    at = draw(st.integers(0, len(laws) - 1))
    if group is None:
        return
    for name in [*list(laws)[at:], *list(laws)[:at]]:  # the first that has a meaning for this group
        code = laws[name](group)
        if code is not None:
            story.run(code)
            return


def _drop(draw: st.DrawFn, graph: Graph, group: str) -> str | None:
    if not can_drop(graph, group) or not spare(graph, group):
        return None
    count = draw(st.integers(1, spare(graph, group)))
    held = graph.groups[group]
    places = sorted(some_order(draw, held.size)[:count])
    if not _can_lose(graph, group, [held.ids[at] for at in places]):
        return None
    return f"check_drop(net, {group!r}, {places})"


def _masked(draw: st.DrawFn, graph: Graph, group: str) -> str | None:
    if not can_drop(graph, group) or not spare(graph, group):
        return None
    ids = list(draw(st.permutations(graph.groups[group].ids)))[: draw(st.integers(1, spare(graph, group)))]
    if not _can_lose(graph, group, ids):
        return None
    return f"check_masked(net, {group!r}, {ids}, steps=2)"


def _can_lose(graph: Graph, group: str, units: Sequence[int]) -> bool:
    """Whether the layouts stay without some units: one that is left may pass for a dimension that is broadcast."""
    held = graph.groups[group]
    try:
        graph.resized({group: replace(held, ids=tuple(unit for unit in held.ids if unit not in units))})
    except EditError:
        return False
    return True


def program_episode(draw: st.DrawFn) -> Mapping[str, Any]:
    """One random program of ops that move elements, with both of its oracles; returns the maps that were tried."""
    graph = draw(programs())
    story = Story()
    story.graph(graph)
    story.run("check_rules_twice(graph)")
    story.run("check_colours(graph)")
    maps = draw(program_maps(graph))
    story.run(f"check_naturality(graph, {maps!r})")
    return maps

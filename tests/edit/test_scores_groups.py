"""Scores of coupled groups: over all stored slices of a unit, whatever the layouts, against a plain reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import graphnet as gn
from graphnet.edit.plan import Plan, Step
from graphnet.edit.scores import SCORES, score_units
from graphnet.edit.scores.base import Scoring
from graphnet.ir.ops.base import Op
from graphnet.ir.ops.io import Input
from graphnet.testing import graphs, random_network, sample, wave_loss
from graphnet.testing.graphs import op

WEIGHT_SCORES = ("magnitude", "l1", "l2", "fpgm", "slimming")
AGGREGATES = ("pool", "sum", "mean", "max", "first")


def scores(net: gn.Network, name: str, group: str, *inputs: Tensor, **options: Any) -> Tensor:
    """What a registered score gives; the batch is the inputs."""
    plan = Plan(net, net.graph, torch.Generator().manual_seed(0))
    batch = (inputs if len(inputs) > 1 else inputs[0], None) if inputs else None
    return score_units(name, Scoring(plan, net.graph.group(group), batch, wave_loss), options)


def slices(net: gn.Network, group: str, which: str) -> list[list[np.ndarray]]:
    """For each member, for each unit, its elements as a vector: what a tensor keeps if only that unit is left."""
    graph, found, seen = net.graph, [], set()
    for node in graph.nodes.values():
        for spec in node.tensors:
            name = spec.shared or spec.name
            for dim, (layout, role) in enumerate(zip(spec.dims, spec.roles, strict=True)):
                producer = role == "write" and spec.kind in ("weight", "table")
                other = (role == "read" and spec.kind in ("weight", "table")) or (role, spec.kind) == ("slot", "scale")
                if which == "scales":
                    wanted = (role, spec.kind) == ("slot", "scale")
                else:
                    wanted = producer or (which == "all" and other)
                if not wanted or group not in set(layout.atoms()) or (name, dim) in seen:
                    continue
                seen.add((name, dim))
                value = net.tensor(name).detach().numpy()
                others = layout.index({group: np.array([], dtype=np.int64)}, graph.sizes)
                units = []
                for unit in range(graph.groups[group].size):
                    kept = layout.index({group: np.array([unit])}, graph.sizes)
                    units.append(np.take(value, np.setdiff1d(kept, others), axis=dim).ravel())
                found.append(units)
    return found


def one(name: str, units: list[np.ndarray], norm: str = "l1") -> np.ndarray:
    """A score of one member by its formula, unit by unit."""
    values = []
    for j, w in enumerate(units):
        if name == "magnitude":
            values.append(np.mean(np.abs(w)) if norm == "l1" else np.sqrt(np.mean(w * w)))
        elif name in ("l1", "slimming"):
            values.append(np.sum(np.abs(w)))
        elif name == "l2":
            values.append(np.sqrt(np.sum(w * w)))
        else:
            values.append(sum(np.sqrt(np.sum((w - v) ** 2)) for i, v in enumerate(units) if i != j))
    return np.array(values)


def reference(name: str, found: list[list[np.ndarray]], aggregate: str, normalise: bool) -> np.ndarray:
    if aggregate == "pool":
        total = one(name, [np.concatenate(parts) for parts in zip(*found, strict=True)])
    else:
        each = np.stack([one(name, units) for units in found])
        total = {"sum": each.sum(0), "mean": each.mean(0), "max": each.max(0), "first": each[0]}[aggregate]
    return total / total.mean() if normalise and total.mean() else total


@given(st.data())
def test_weight_scores_equal_a_plain_reference_on_random_graphs(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    net = random_network(graph, 3)
    names = sorted(n for n, g in graph.groups.items() if g.frozen is None)
    if not names:
        return
    group = data.draw(st.sampled_from(names))
    aggregate, normalise = data.draw(st.sampled_from(AGGREGATES)), data.draw(st.booleans())
    which = data.draw(st.sampled_from(["producers", "all"]))
    for name in WEIGHT_SCORES:
        options: dict[str, Any] = {"aggregate": aggregate, "normalise": normalise}
        found = slices(net, group, "scales" if name == "slimming" else which)
        if name != "slimming":
            options["members"] = which
        if not found:
            with pytest.raises(gn.EditError, match="use another score"):
                scores(net, name, group, **options)
            continue
        expected = reference(name, found, aggregate, normalise)
        np.testing.assert_allclose(scores(net, name, group, **options).numpy(), expected, rtol=1e-10, err_msg=name)


def permuted(net: gn.Network, group: str, order: list[int]) -> None:
    def permute(plan: Plan) -> None:
        old = plan.graph.groups[group]
        plan.advance(replace(old, ids=tuple(old.ids[at] for at in order)))
        plan.steps.append(Step("permute", group, {}))

    with net.edit() as edit:
        edit.apply(permute)


@given(st.data())
@settings(max_examples=20)
def test_scores_follow_a_permutation_of_the_units(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    net, inputs = random_network(graph, 3), sample(graph, 5)
    names = sorted(n for n, g in graph.groups.items() if g.frozen is None and g.size > 1 and not g.output)
    if not names:
        return
    group = data.draw(st.sampled_from(names))
    order = data.draw(st.permutations(range(graph.groups[group].size)))
    cases: list[tuple[str, dict[str, Any]]] = [
        *((n, {"members": "all", "aggregate": data.draw(st.sampled_from(AGGREGATES))}) for n in WEIGHT_SCORES[:4]),
        ("slimming", {}), ("taylor", {"members": "all"}), ("fisher", {"members": "all"}), ("fisher", {"form": "group"}),
        ("activation-frequency", {}), ("apoz", {"tau": 0.1}), ("redo", {}), ("contribution", {"adaptable": True}),
        ("contribution", {"at": "consumers", "mean_corrected": True}), ("gradient", {}), ("gate", {}),
    ]  # fmt: skip

    def every() -> list[Tensor | str]:
        found: list[Tensor | str] = []
        for name, options in cases:
            try:
                found.append(scores(net, name, group, *inputs, **options))
            except gn.EditError as error:
                # torch's group norm refuses a batch of one sample where a group is a single number
                known = ("use another score", "no norm with a scale", "more than 1 value per channel")
                if not any(part in str(error) for part in known):
                    raise
                found.append(str(error))
        return found

    before = every()
    permuted(net, group, list(order))
    for (name, options), one_, two in zip(cases, before, every(), strict=True):
        if isinstance(one_, str):
            assert isinstance(two, str), (name, options)
        else:
            assert isinstance(two, Tensor), (name, options, two)
            torch.testing.assert_close(two, one_[list(order)], rtol=1e-8, atol=1e-12, msg=f"{name} {options}")


# -- layouts, by hand -----------------------------------------------------------------------------------------


def test_a_flattened_convolution_sums_the_columns_of_each_channel() -> None:
    net = random_network(gn.convnet((2, 4, 4), channels=(3,), hidden=(5,), norm="batch"), 0)
    rows = net.conv1.weight.detach().abs().sum((1, 2, 3))
    columns = net.fc1.weight.detach().abs().reshape(5, 3, -1).sum((0, 2))
    gamma = net.norm_c1.weight.detach().abs()
    torch.testing.assert_close(scores(net, "l1", "conv1", members="all"), rows + gamma + columns)
    torch.testing.assert_close(
        scores(net, "l1", "conv1", members="all", aggregate="max"), torch.stack([rows, gamma, columns]).amax(0)
    )
    torch.testing.assert_close(scores(net, "l1", "conv1", members="all", aggregate="first"), rows)
    mean = scores(net, "l1", "conv1", members="all", aggregate="mean", normalise=True)
    torch.testing.assert_close(mean, (rows + gamma + columns) / (rows + gamma + columns).mean())


def concat(last: bool) -> gn.Network:
    ops: list[Op] = [
        Input(name="x", shape=(2, 3, 3)),
        op("conv2d", "left", "x", out=3, kernel=3, padding=1),
        op("conv2d", "right", "x", out=2, kernel=1),
        op("concat", "both", "left", "right", "left"),
        *([op("permute", "moved", "both", order=(2, 3, 1))] if last else [op("identity", "moved", "both")]),
        op("flatten", "flat", "moved"),
        op("linear", "fc", "flat", out=4),
    ]
    return random_network(gn.Graph.from_ops(ops, ["fc"]), 0)


@pytest.mark.parametrize("last", [False, True])
def test_a_concat_that_holds_a_group_twice(last: bool) -> None:
    net = concat(last)
    weight = net.fc.weight.detach().abs()
    columns = weight.reshape(4, 9, 8).sum((0, 1)) if last else weight.reshape(4, 8, 9).sum((0, 2))
    left = net.left.weight.detach().abs().sum((1, 2, 3)) + columns[:3] + columns[5:]
    torch.testing.assert_close(scores(net, "l1", "left", members="all"), left)
    right = net.right.weight.detach().abs().sum((1, 2, 3)) + columns[3:5]
    torch.testing.assert_close(scores(net, "l1", "right", members="all"), right)
    read = net.fc.weight.detach().reshape(4, 9, 8).transpose(1, 2) if last else net.fc.weight.detach().reshape(4, 8, 9)
    rows = torch.cat([torch.stack([read[:, unit], read[:, 5 + unit]]).flatten()[None] for unit in range(3)])
    rows = torch.cat([net.left.weight.detach().flatten(1), rows], dim=1)
    torch.testing.assert_close(scores(net, "fpgm", "left", members="all"), torch.cdist(rows, rows).sum(1))


def test_heads_and_head_sizes_of_attention() -> None:
    graph = gn.transformer(7, width=8, depth=1, heads=4, kv_heads=2, context=6, hidden=5)
    net = random_network(graph, 0)
    names = {name.split(".")[-1]: name for name, g in graph.groups.items() if g.frozen is None}
    q, k, v, o = (
        next(net.tensor(n).detach().abs() for n in graph.tensors if n.endswith(f"{part}_proj.weight"))
        for part in "qkvo"
    )
    kv = q.reshape(2, 2, 2, 8).sum((1, 2, 3)) + k.reshape(2, 2, 8).sum((1, 2)) + v.reshape(2, 2, 8).sum((1, 2))
    heads = next(name for name in names.values() if name.endswith("kv_heads"))
    torch.testing.assert_close(scores(net, "l1", heads), kv)
    torch.testing.assert_close(scores(net, "l1", heads, members="all"), kv + o.reshape(8, 2, 2, 2).sum((0, 2, 3)))
    per_kv = next(name for name in names.values() if name.endswith("queries_per_kv"))
    torch.testing.assert_close(scores(net, "l1", per_kv), q.reshape(2, 2, 2, 8).sum((0, 2, 3)))
    queries, values = "blocks.0.q_proj.head_dim", "blocks.0.v_proj.head_dim"
    shared = q.reshape(4, 2, 8).sum((0, 2)) + k.reshape(2, 2, 8).sum((0, 2))
    torch.testing.assert_close(scores(net, "l1", queries, members="all"), shared)
    mixed = v.reshape(2, 2, 8).sum((0, 2)) + o.reshape(8, 4, 2).sum((0, 1))
    torch.testing.assert_close(scores(net, "l1", values, members="all"), mixed)
    # what o_proj reads of a head, column by column
    read: list[Tensor] = []
    handle = net.eval().get_submodule("blocks.0.o_proj").register_forward_hook(lambda _, x, __: read.append(x[0]))
    inputs = sample(graph, 3)
    net(*inputs)
    handle.remove()
    columns = read[0].detach().abs().mean((0, 1)) * o.sum(0)
    found = scores(net, "contribution", heads, *inputs, at="consumers")
    torch.testing.assert_close(found, columns.reshape(2, 4).sum(1))
    with pytest.raises(gn.EditError, match="no stored weight reads"):
        scores(net, "contribution", queries, *inputs)


def test_grouped_and_depthwise_convolutions() -> None:
    ops: list[Op] = [
        Input(name="x", shape=(2, 5, 5)),
        op("conv2d", "wide", "x", out=6, kernel=1),
        op("conv2d", "depth", "wide", out=6, kernel=3, padding=1, depthwise=True),
        op("conv2d", "grouped", "depth", out=4, kernel=3, groups=2),
        op("conv2d", "out", "grouped", out=2, kernel=1),
    ]
    graph = gn.Graph.from_ops(ops, ["out"])
    net = random_network(graph, 0)
    grouping, each = "wide.groups", "wide.group_inputs"
    assert (graph.groups[grouping].size, graph.groups[each].size) == (2, 3)
    wide, depth, grouped = (net.tensor(f"{n}.weight").detach().abs() for n in ("wide", "depth", "grouped"))
    rows = wide.sum((1, 2, 3)) + depth.sum((1, 2, 3))
    torch.testing.assert_close(scores(net, "l1", each), rows.reshape(2, 3).sum(0))
    torch.testing.assert_close(
        scores(net, "l1", each, members="all"), rows.reshape(2, 3).sum(0) + grouped.sum((0, 2, 3))
    )
    blocks = rows.reshape(2, 3).sum(1) + grouped.reshape(2, -1).sum(1)
    torch.testing.assert_close(scores(net, "l1", grouping), blocks)
    # x_c of the grouped convolution: channel (g, i) meets the kernels of its own group only
    (x,) = sample(graph, 1, 5)
    read = net.depth(net.wide(x)).detach().abs().mean((0, 2, 3)).reshape(2, 3)
    met = torch.stack([grouped[:2].sum((0, 2, 3)), grouped[2:].sum((0, 2, 3))])
    torch.testing.assert_close(scores(net, "contribution", each, x, at="consumers"), (read * met).sum(0))


def test_tied_weights_count_once() -> None:
    graph = gn.transformer(7, width=4, depth=1, heads=2, context=6, hidden=5, tied=True, norm="rms")
    net = random_network(graph, 0)
    tables = [n for n, s in graph.tensors.items() if s.kind == "table" and graph.shape(s)[0] == 7]
    stream = graph.group(tables[0].rpartition(".")[0]).name
    parts = slices(net, stream, "all")
    torch.testing.assert_close(
        scores(net, "l1", stream, members="all").numpy(),
        np.sum([one("l1", units) for units in parts], axis=0),
    )
    assert sum(units[0].size == 7 for units in parts) == 1


def test_a_residual_stream_has_every_writer() -> None:
    net = random_network(gn.resnet((2, 4, 4), stages=[3], blocks=2, classes=3), 0)
    stream = next(name for name, g in net.graph.groups.items() if g.role == "stream")
    writers = [h.tensor for h in Plan(net, net.graph, torch.Generator()).holders(stream, roles=("write",))]
    weights = [net.tensor(name).detach() for name in writers if name.endswith("weight")]
    assert len(weights) == 3
    each = torch.stack([w.abs().mean((1, 2, 3)) for w in weights])
    for aggregate, expected in (
        ("sum", each.sum(0)),
        ("mean", each.mean(0)),
        ("max", each.amax(0)),
        ("first", each[0]),
    ):
        torch.testing.assert_close(scores(net, "magnitude", stream, aggregate=aggregate), expected)


# -- FPGM -----------------------------------------------------------------------------------------------------


def fpgm_of(rows: Tensor) -> Tensor:
    net = random_network(gn.mlp([rows.shape[1], rows.shape[0], 2]), 0)
    with torch.no_grad():
        net.fc1.weight.copy_(rows)
    return scores(net, "fpgm", "fc1")


def test_fpgm_by_hand() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]], dtype=torch.float64)
    expected = torch.tensor([5.0 + 8.0, 5.0 + 5.0, 8.0 + 5.0], dtype=torch.float64)
    torch.testing.assert_close(fpgm_of(rows), expected, rtol=1e-14, atol=0)
    # signs matter: |w|^p would put these two at distance 0
    opposite = fpgm_of(torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64))
    torch.testing.assert_close(opposite, torch.full((2,), 8.0**0.5, dtype=torch.float64), rtol=1e-14, atol=0)


def test_fpgm_of_units_that_are_close_together() -> None:
    """Far from zero and from others, 1e-9 apart: products alone would lose every digit."""
    rows = 1000.0 + torch.tensor([[0.0, 0.0], [3e-9, 4e-9], [0.0, 0.0], [5.0, 12.0]], dtype=torch.float64)
    distances = (rows[:, None] - rows[None]).square().sum(2).sqrt()
    torch.testing.assert_close(fpgm_of(rows), distances.sum(1), rtol=1e-14, atol=0)
    torch.testing.assert_close(fpgm_of(rows[:3]), distances[:3, :3].sum(1), rtol=1e-5, atol=0)
    assert fpgm_of(rows[[0, 2]]).tolist() == [0.0, 0.0]


def test_a_duplicate_among_equidistant_units_is_lowest_and_an_outlying_pair_is_not() -> None:
    rows = torch.cat([torch.eye(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)[2:3]])
    found = fpgm_of(rows)
    torch.testing.assert_close(found[2], found[5], rtol=1e-14, atol=0)
    assert bool((found[[0, 1, 3, 4]] > 1.1 * found[2]).all())
    outliers = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.0]], dtype=torch.float64)
    assert int(fpgm_of(outliers).argmin()) == 2  # the geometric median, not the duplicates


# -- slimming -------------------------------------------------------------------------------------------------


def test_slimming_reads_every_norm_of_the_group() -> None:
    net = random_network(gn.resnet((2, 4, 4), stages=[3], blocks=2, classes=3, norm="batch"), 0)
    stream = next(name for name, g in net.graph.groups.items() if g.role == "stream")
    with torch.no_grad():
        net.norm1.weight[1] *= -1.0
    gammas = torch.stack(
        [
            net.tensor(h.tensor).detach().abs()
            for h in Plan(net, net.graph, torch.Generator()).holders(stream, roles=("slot",))
            if h.kind == "scale"
        ]
    )
    assert len(gammas) > 1
    torch.testing.assert_close(scores(net, "slimming", stream), gammas.sum(0))
    torch.testing.assert_close(scores(net, "slimming", stream, aggregate="first"), gammas[0])


def test_slimming_without_a_scale_says_so() -> None:
    with pytest.raises(gn.EditError, match="no norm with a scale"):
        scores(random_network(gn.mlp([3, 4, 2]), 0), "slimming", "fc1")
    ops: list[Op] = [
        Input(name="x", shape=(3,)), op("linear", "fc", "x", out=4), op("batch_norm", "norm", "fc", affine=False),
        op("linear", "head", "norm", out=2),
    ]  # fmt: skip
    with pytest.raises(gn.EditError, match="no norm with a scale"):
        scores(random_network(gn.Graph.from_ops(ops, ["head"]), 0), "slimming", "fc")


# -- what every score promises ----------------------------------------------------------------------------------


def test_rescaling_a_relu_unit_moves_magnitude_and_not_taylor() -> None:
    net = random_network(gn.mlp([5, 6, 3]), 0)
    (x,) = sample(net.graph, 1, 20)
    before = {name: scores(net, name, "fc1", x) for name in ("magnitude", "taylor", "gate", "contribution")}
    with torch.no_grad():
        net.fc1.weight[1] *= 4.0
        net.fc1.bias[1] *= 4.0
        net.head.weight[:, 1] /= 4.0
    for name, was in before.items():
        now = scores(net, name, "fc1", x)
        if name == "magnitude":
            assert float(now[1]) == pytest.approx(4 * float(was[1]))
        else:
            torch.testing.assert_close(now, was)


def broken(net: gn.Network, value: float) -> None:
    with torch.no_grad():
        net.fc1.weight[1, 0] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", sorted(set(SCORES) - {"random", "slimming"}))
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    net = random_network(gn.mlp([5, 6, 3], activation="gelu"), 0)
    broken(net, value)
    (x,) = sample(net.graph, 1, 4)
    with pytest.raises(gn.EditError, match=r"cannot be ranked"), net.edit() as edit:
        edit.prune("fc1", lowest=1, score=name, batch=(x, None), loss=wave_loss)
    assert net.version == 0


def test_a_score_of_another_shape_is_refused() -> None:
    made: dict[str, Callable[[Scoring], Any]] = {
        "test-wrong-shape": lambda scoring: torch.zeros(scoring.group.size + 1),
        "test-no-tensor": lambda scoring: [0.0] * scoring.group.size,
    }
    net = random_network(gn.mlp([5, 6, 3]), 0)
    for name, function in made.items():
        if name not in SCORES:
            SCORES.register(name)(function)
        with pytest.raises(gn.EditError, match="for the 6 units"), net.edit() as edit:
            edit.prune("fc1", lowest=1, score=name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"score": "l1", "aggregate": "prod"}, {"score": "l1", "members": "consumers"}, {"score": "l2", "normalise": 1},
        {"score": "fisher"}, {"score": "fpgm", "norm": "l1"}, {"score": "apoz"}, {"score": "slimming"},
        {"score": "contribution"}, {"score": "redo"}, {"below": "low"}, {"below": float("nan")}, {"below": True},
        {"below": 1e9}, {"compensate": "some", "units": [0]}, {"compensate": True, "units": [0]},
    ],
)  # fmt: skip
def test_wrong_options_are_edit_errors(wrong: dict[str, Any]) -> None:
    net = random_network(gn.mlp([5, 6, 3]), 0)
    given_ = wrong if {"below", "units"} & wrong.keys() else {**wrong, "lowest": 1}
    with pytest.raises(gn.EditError), net.edit() as edit:
        edit.prune("fc1", **given_)
    assert net.version == 0


def test_every_pair_of_options_is_accepted_by_name() -> None:
    net = random_network(gn.mlp([4, 5, 3], norm="batch"), 0)
    for name, aggregate, normalise in itertools.product(WEIGHT_SCORES, AGGREGATES, (False, True)):
        with net.edit() as edit:
            edit.prune("fc1", lowest=1, score=name, aggregate=aggregate, normalise=normalise)
            edit.grow("fc1", 1)
    assert net.graph.groups["fc1"].size == 5

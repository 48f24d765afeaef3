"""Each law holds of what is right and names what is wrong."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import graphnet as gn
from graphnet.edit.plan import Plan, Step
from graphnet.runtime.network import Network
from graphnet.testing import (
    COUNTS,
    EDIT_LAWS,
    TOLERANCES,
    EditCall,
    attach,
    check_atomicity,
    check_bits,
    check_close,
    check_edit,
    check_functors,
    check_incumbents,
    check_lowering,
    check_masked,
    check_next_update,
    check_permutation,
    check_preservation,
    check_replay,
    check_round_trip,
    check_score,
    check_valid,
    edit_calls,
    graphs,
    random_network,
    sample,
    state_of,
    tolerance_of,
    train,
    twin_of,
)
from graphnet.testing.compare import take
from graphnet.testing.counting import Counts

GRAPH = gn.mlp([4, 6, 5, 3], norm="batch", activation="tanh")


def trained(graph: gn.Graph = GRAPH, kind: str = "Adam", steps: int = 2, **options: Any) -> Network:
    net = random_network(graph, 0)
    attach(net, kind, **({"lr": 0.01} | options))
    train(net, net.attached, steps)
    return net


def grow(edit: gn.Edit) -> None:
    edit.grow("fc1", 2, init="kaiming", state="aged")


# -- laws of an edit --------------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=20)
def test_edits_of_every_kind_obey(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    net = trained(graph, data.draw(st.sampled_from(["SGD", "Adam", "RMSprop"])), data.draw(st.integers(0, 2)))
    for _ in range(data.draw(st.integers(1, 3))):
        call = data.draw(edit_calls(net.graph))
        laws = ["valid", "lowering", "preserved"]
        laws += ["incumbents", "next-update"] if call.incumbents else []
        laws += ["gradients"] if call.incumbents and call.gradients else []
        check_edit(net, call.apply, laws)


def write_all(plan: Plan, name: str, value: torch.Tensor, claim: Any = "none") -> None:
    plan.staged(name).write([None] * value.dim(), value)
    plan.steps.append(Step("write", None, {}, preserves=claim))


def nudge(edit: gn.Edit, claim: Any = "none", name: str = "fc2.weight", by: float = 1e-9) -> None:
    value = edit.plan.value(name) + by
    edit.apply(write_all, name, value, claim)


def test_an_optimizer_that_an_edit_has_emptied_is_copied_with_its_network() -> None:
    """Muon takes matrices only; with the last of them it holds nothing, and the network goes on."""
    graph = gn.load({
        "inputs": {"x": {"shape": [4, 6, 6]}},
        "ops": [
            {"name": "lin", "op": "linear", "inputs": ["x"], "out": 6},
            {"name": "act", "op": "gelu", "inputs": ["lin"]},
            {"name": "conv", "op": "conv2d", "inputs": ["act"], "out": 2, "kernel": 1},
        ],
        "outputs": ["conv"],
    })  # fmt: skip
    net = trained(graph, "Muon")
    with net.edit() as edit:
        edit.remove("lin")
    muon, rest = net.attached
    assert [group["params"] for group in muon.param_groups] == [[]]
    twin = twin_of(net)
    train(twin, twin.attached, 1)
    assert check_edit(net, lambda edit: edit.kernel("conv", 3))
    assert len(rest.param_groups[0]["params"]) == 2


def test_a_layer_of_zeros_that_gets_another_reader_gets_its_gradient() -> None:
    """Proven to preserve the function, and still no edit that leaves all gradients alone; the strategies know."""
    net = trained(gn.mlp([4, 5, 2], activation="elu"))
    with net.edit() as edit:
        edit.deepen("act1", form="residual", name="deeper")

    def wire(edit: gn.Edit) -> None:
        edit.insert("add", "more", inputs=["deeper", "deeper_out"], before="head", preserves="function")

    assert check_edit(copy.deepcopy(net), wire, ["preserved", "incumbents"])
    with pytest.raises(AssertionError, match=r"the gradient of deeper_out\.weight"):
        check_edit(net, wire, ["gradients"])
    calls: list[EditCall] = []

    @settings(max_examples=40, database=None, derandomize=True)
    @given(edit_calls(net.graph, ["insert", "redirect", "remove"]))
    def draw(call: EditCall) -> None:
        calls.append(call)

    draw()
    assert all(not call.gradients for call in calls if "add" in call.args or call.operator != "insert")
    assert any(call.gradients for call in calls)


def test_a_network_without_parameters_goes_on() -> None:
    """Edits may take the last one; the laws say what they can of the rest."""
    graph = gn.load({
        "inputs": {"x": {"shape": [4]}},
        "ops": [{"name": "lin", "op": "linear", "out": 4}, {"name": "act", "op": "gelu"}],
        "outputs": ["act"],
    })  # fmt: skip
    net = trained(graph)
    assert check_edit(net, lambda edit: edit.remove("lin"))
    assert not list(net.parameters())
    train(net, net.attached, 1)
    assert check_edit(net, lambda edit: edit.insert("identity", "same", inputs="x", before="act"))
    assert net.history.latest.preserves == "function"


def test_a_unit_that_left_and_came_back_in_one_edit_has_not_stayed() -> None:
    """It lost its gradient and its optimizer state, as one does that sleeps; its neighbours lose nothing."""

    def nap(edit: gn.Edit) -> None:
        edit.retire("fc1", units=[0, 2])
        edit.recruit("fc1", units=[0], state="cold")

    net = trained()
    assert check_edit(net, nap, ["valid", "incumbents"])
    assert not net.fc1.weight.grad[net.graph.groups["fc1"].ids.index(0)].any()


def test_a_broken_promise_is_named_with_what_differs() -> None:
    with pytest.raises(AssertionError, match=r"write says preserves='function', but the function: output 0 differs by"):
        check_preservation(trained(), lambda edit: nudge(edit, "function"))
    check_preservation(trained(), lambda edit: nudge(edit, "none"))  # no promise, nothing to break


def test_changed_incumbents_are_named() -> None:
    with pytest.raises(AssertionError, match=r"write: units that stay: fc2\.weight differs by up to 1e-09 at \["):
        check_incumbents(trained(), nudge)
    check_incumbents(trained(), grow)


def test_changed_gradients_are_named() -> None:
    """A newborn with outgoing weights that cancel: the same function for a while, other gradients."""
    net = trained(gn.mlp([4, 6, 3], activation="tanh"))

    def lie(edit: gn.Edit) -> None:
        with torch.no_grad():
            nudge(edit, "function", "head.weight", 1e-14)

    check_edit(net, lie, ["gradients"])
    # the same outputs on the probe, but through another bias than before
    scaled = trained(gn.mlp([4, 6, 3], activation="relu"))

    def rescale(edit: gn.Edit) -> None:
        plan = edit.plan
        for name, factor in (("fc1.weight", 2.0), ("fc1.bias", 2.0), ("head.weight", 0.5)):
            value = plan.value(name) * factor
            plan.staged(name).write([None] * value.dim(), value)
        plan.steps.append(Step("rescale", None, {}, preserves="function"))

    check_preservation(twin_of(scaled), lambda edit: rescale(edit))
    with pytest.raises(AssertionError, match=r"rescale: the gradient of \S+ for units that stay differs"):
        check_edit(scaled, rescale, ["gradients"])


def test_an_update_that_differs_is_named() -> None:
    net = trained()

    def age(edit: gn.Edit) -> None:
        grow(edit)
        for slot, staged in edit.plan.slots("fc2.weight").values():
            if slot.key[-1] == "exp_avg_sq":
                staged.write([None, None], staged.value() * 1.5)

    with pytest.raises(AssertionError, match=r"grow: the next update of units that stay: fc2\.weight"):
        check_next_update(net, age)
    check_next_update(trained(), grow)


def test_an_error_of_another_kind_is_a_violation() -> None:
    def broken(edit: gn.Edit) -> None:
        raise KeyError("fc9")

    with pytest.raises(AssertionError, match="bad input gives a GraphnetError, not KeyError: 'fc9'"):
        check_edit(trained(), broken)


def test_a_refused_edit_must_change_nothing() -> None:
    net = trained()
    assert not check_edit(net, lambda edit: edit.prune("fc1", lowest=99))

    def meddle(edit: gn.Edit) -> None:
        with torch.no_grad():
            net.fc1.weight[0, 0] += 1.0
        raise gn.EditError("no")

    with pytest.raises(AssertionError, match=r"a refused edit \(no\): fc1\.weight differs by up to 1 at \[0, 0\]"):
        check_edit(net, meddle)


def test_a_mistake_of_an_operator_is_no_refusal() -> None:
    def mistaken(plan: Plan) -> None:
        plan._tensors.clear()
        staged = plan.staged("fc1.weight")
        staged.newborn = 0.0
        staged.base = torch.zeros(3, 3, dtype=torch.float64)
        staged._patches.append(replace_patch(staged))
        plan.steps.append(Step("mistaken", None, {}))

    def replace_patch(staged: Any) -> Any:
        staged.write([None, None], torch.zeros(3, 3))
        return staged._patches.pop()

    with pytest.raises(AssertionError, match="by a mistake of an operator"):
        check_edit(trained(), lambda edit: edit.apply(mistaken))


def test_unknown_laws_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no laws \['gravity'\]"):
        check_edit(trained(), grow, ["gravity"])


def test_every_law_counts_itself_once() -> None:
    COUNTS.clear()
    net = trained()
    assert check_edit(net, lambda edit: edit.grow("fc1", 1, init="zero-outgoing"))
    assert COUNTS.laws == dict.fromkeys(EDIT_LAWS, 1)
    assert COUNTS.edits == {"grow": 1}
    assert not check_edit(net, lambda edit: edit.prune("fc1", lowest=99))
    assert COUNTS.laws["refused unchanged"] == 1
    assert COUNTS.checks == len(EDIT_LAWS) + 1
    again = Counts.from_data(COUNTS.as_data())
    again.add(COUNTS)
    assert again.checks == 2 * COUNTS.checks
    assert again.operators["grow", "incumbents"] == 2
    assert "incumbents" in again.table()
    COUNTS.clear()
    assert COUNTS.checks == 0


# -- laws of a network ------------------------------------------------------------------------------------------------


def test_a_network_that_is_not_valid() -> None:
    net = trained()
    check_valid(net)
    other = trained()
    other.attached[0].param_groups[0]["params"].pop()
    with pytest.raises(AssertionError, match=r"no attached optimizer holds head\.bias"):
        check_valid(other)
    net.attached[0].param_groups[0]["params"].append(net.fc1.weight)
    with pytest.raises(AssertionError, match="a parameter is held twice"):
        check_valid(net)
    stray = trained()
    stray.attached[0].param_groups[0]["params"].append(torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(AssertionError, match="hold 1 parameters that the network has not"):
        check_valid(stray)
    resized = trained()
    resized.fc1.bias.data = torch.zeros(7, dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"fc1\.bias has shape \[7\], the graph says \[6\]"):
        check_valid(resized)


def test_a_lowering_that_is_wrong() -> None:
    net = trained()
    check_lowering(net)
    net.act1.forward = torch.sin
    with pytest.raises(AssertionError, match="lowering against the reference evaluator: output 0 differs"):
        check_lowering(net)


@given(st.integers(0, 99))
@settings(max_examples=5)
def test_the_functor_law_on_stored_tensors(seed: int) -> None:
    check_functors(random_network(gn.transformer(7, width=8, depth=1, heads=4, kv_heads=2, context=6), 0), seed)


def test_a_round_trip_that_does_not_come_back() -> None:
    net = trained()
    assert check_round_trip(net, "fc1", 2)
    assert not check_round_trip(trained(gn.mlp([3, 4, 2])), "fc1", 2, init="corrected")  # refused: no norm
    with pytest.raises(AssertionError, match="round trip of 1 units of 'fc1'"):
        check_round_trip(trained(gn.mlp([3, 4, 2])), "fc1", 1, init="net2wider")  # divides its donor's columns


def test_a_permutation() -> None:
    net = trained(gn.convnet((2, 4, 4), channels=(3,), hidden=(4,), classes=2, norm="batch"))
    check_permutation(net, "conv1", [2, 0, 1])
    check_permutation(net, "head", [1, 0])  # an output: its order changes, and nothing else
    net.act_c1.forward = lambda x: x * torch.arange(1.0, 4.0, dtype=x.dtype)[:, None, None]
    with pytest.raises(AssertionError, match="permuting 'conv1': the function"):
        check_permutation(net, "conv1", [2, 0, 1])


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_masked_equals_compact(kind: str) -> None:
    net = trained(gn.convnet((2, 4, 4), channels=(3, 4), hidden=(5,), classes=2, norm="batch"), kind)
    check_masked(net, "conv2", [0, 2], steps=4)
    assert net.graph.groups["conv2"].ids == (1, 3)


def test_what_is_not_compact() -> None:
    net = trained(gn.mlp([4, 6, 3], activation="tanh"))
    net.fc1.register_forward_hook(lambda module, inputs, output: output * output.shape[1])  # sees the width
    with pytest.raises(AssertionError, match="masked equals compact, 2 units of 'fc1'"):
        check_masked(net, "fc1", [0, 1])
    with pytest.raises(ValueError, match="coupled or an output"):
        check_masked(trained(gn.mlp([4, 6, 3], norm="layer")), "fc1", [0])


def test_a_replay() -> None:
    net = random_network(GRAPH, 0)
    first = copy.deepcopy(net)
    for change in (grow, lambda edit: edit.prune("fc2", lowest=2), lambda edit: edit.retire("fc1", lowest=1)):
        with net.edit() as edit:
            change(edit)
    check_replay(first, net)
    with torch.no_grad():
        net.fc1.bias[0] += 1.0
    with pytest.raises(AssertionError, match=r"replay: fc1\.bias differs"):
        check_replay(first, net)


def test_a_score_is_of_the_unit() -> None:
    net = trained()
    assert check_score(net, "magnitude", "fc1", [5, 4, 3, 2, 1, 0])
    assert not check_score(net, "random", "fc1", [5, 4, 3, 2, 1, 0])


def test_atomicity_at_some_points() -> None:
    net = trained()

    def change(edit: gn.Edit) -> None:
        grow(edit)
        edit.prune("fc2", lowest=1)

    check_atomicity(net, change, early=4, late=12)


def test_a_commit_that_leaves_a_mixture() -> None:
    """A hook of an optimizer's state table that does not come back: something that the undo log does not know."""
    net = trained()
    seen = net.fc1.register_buffer

    class Leaky(dict[str, Any]):
        def update(self, *args: Any, **options: Any) -> None:
            super().update(*args, **options)
            with torch.no_grad():
                net.head.bias[0] += 1.0  # a side effect

    optimizer = net.attached[0]
    optimizer.state[net.fc1.weight] = Leaky(optimizer.state[net.fc1.weight])
    with pytest.raises(AssertionError, match="left a mixture"):
        check_atomicity(net, grow, early=0, late=60)
    assert seen


# -- comparing --------------------------------------------------------------------------------------------------------


def test_every_bound_has_every_type() -> None:
    kinds = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
    assert all(set(table) == kinds for table in TOLERANCES.values())
    assert tolerance_of("function", torch.zeros(1)) == TOLERANCES["function"][torch.float32]
    assert tolerance_of("function", (torch.zeros(1).double(), torch.zeros(1).bfloat16())) == 1e-1
    assert tolerance_of("function", torch.zeros(1, dtype=torch.int64)) == 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(data=st.data())
@settings(max_examples=8)
def test_laws_hold_at_other_types(dtype: torch.dtype, data: st.DataObject) -> None:
    net = random_network(data.draw(graphs(composed=False)), 3, dtype=dtype)
    assert all(not p.is_floating_point() or p.dtype == dtype for p in net.parameters())
    call = data.draw(edit_calls(net.graph, ["grow", "prune"]))
    check_edit(net, call.apply, ["valid", "lowering", "preserved", "incumbents"] if call.incumbents else ["valid"])


def test_bits_and_closeness() -> None:
    one = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    check_bits(one, {name: value.clone() for name, value in one.items()}, "same")
    other = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    other["a"][1, 2] = 0.5
    with pytest.raises(AssertionError, match=r"here: a differs by up to 0.5 at \[1, 2\]"):
        check_bits(one, other, "here")
    with pytest.raises(AssertionError, match=r"only one side has \['b'\]"):
        check_bits(one, {"a": one["a"]}, "here")
    with pytest.raises(AssertionError, match=r"a is torch.float32\[2, 3\], then torch.float64\[2, 3\]"):
        check_bits({"a": one["a"]}, {"a": one["a"].double()}, "here")
    with pytest.raises(AssertionError, match="output 1 differs by"):
        check_close((one["a"], one["b"]), (one["a"], one["b"] + 1), "here")
    with pytest.raises(AssertionError, match=r"shape \[2, 3\], then \[2\]"):
        check_close(one["a"], one["b"], "here")
    with pytest.raises(AssertionError, match="differs by nan"):
        check_close(one["b"], one["b"] * float("nan"), "here")


def test_a_twin_is_a_copy_with_its_optimizer() -> None:
    net = trained(kind="NAdam")
    with net.edit() as edit:
        edit.grow("fc1", 1, init="kaiming", speed=(2.0, 5))
    twin = twin_of(net)
    check_bits(state_of(net), state_of(twin), "twin")
    train(net, net.attached, 2)
    train(twin, twin.attached, 2)
    check_bits(state_of(net), state_of(twin), "twin, trained alike")
    train(twin, twin.attached, 1)
    assert not torch.equal(net.fc1.weight, twin.fc1.weight)


def test_take() -> None:
    import numpy as np

    block = take(torch.arange(6).reshape(2, 3), [np.array([1]), np.array([2, 0])])
    assert block.tolist() == [[5, 3]]
    assert sample(GRAPH, 1)[0].shape == (4, 4)


def test_replacing_a_group_by_hand_keeps_ids() -> None:
    net = random_network(GRAPH, 0)

    def reverse(plan: Plan) -> None:
        old = plan.graph.groups["fc1"]
        plan.advance(replace(old, ids=old.ids[::-1]))
        plan.steps.append(Step("reverse", "fc1", {}, preserves="function"))

    assert check_edit(net, lambda edit: edit.apply(reverse))
    assert net.graph.groups["fc1"].ids == (5, 4, 3, 2, 1, 0)

"""Layouts as they are found in networks: which groups there are, and how dimensions are made of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from graphnet.errors import GraphError
from graphnet.ir.document import load
from graphnet.ir.graph import Graph
from graphnet.ir.layout import const, join, times
from graphnet.ir.reference import evaluate
from graphnet.ir.unify import Unifier


def _graph(shape: list[int], *ops: dict[str, Any], outputs: list[str] | None = None) -> Graph:
    return load({"inputs": {"x": {"shape": shape}}, "ops": list(ops), "outputs": outputs or [ops[-1]["name"]]})


def _op(name: str, op: str, *inputs: str, **attributes: Any) -> dict[str, Any]:
    return {"name": name, "op": op, **({"inputs": list(inputs)} if inputs else {}), **attributes}


def _dim(graph: Graph, op: str, dim: int, port: int = 0) -> str:
    return str(graph.dims(op, port)[dim])


def _fits(graph: Graph, lowered: Callable[..., Any]) -> None:
    root, module, inputs = lowered(graph)
    found = module(*inputs)
    (expected,) = evaluate(graph, root.state_dict(), inputs)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_a_fused_qkv_that_is_split_is_a_sum_of_heads_by_head_size(lowered: Callable[..., Any]) -> None:
    graph = _graph(
        [5, 8],
        _op("qkv", "linear", out=24), _op("s", "split", dim=2, sizes=[8, 8, 8]),
        _op("attn", "attention", "s", "s:1", "s:2", heads=2), _op("out", "linear", out=8),
    )  # fmt: skip
    heads, dim, value = "qkv.heads", "qkv.head_dim", "qkv.head_dim1"
    assert _dim(graph, "qkv", 2) == f"2*{heads}*{dim} + {heads}*{value}"
    assert str(graph.tensors["out.weight"].dims[1]) == f"{heads}*{value}"
    assert graph.groups[heads].size == 2
    assert graph.groups[heads].kind == "heads"
    _fits(graph, lowered)


def test_a_fused_qkv_that_is_reshaped_couples_heads_of_all_three(lowered: Callable[..., Any]) -> None:
    graph = _graph(
        [5, 8],
        _op("qkv", "linear", out=24), _op("r", "reshape", shape=[5, 3, 2, 4]),
        _op("s", "split", dim=2, sizes=[1, 1, 1]),
        _op("q", "reshape", "s:0", shape=[5, 8]), _op("k", "reshape", "s:1", shape=[5, 8]),
        _op("v", "reshape", "s:2", shape=[5, 8]),
        _op("attn", "attention", "q", "k", "v", heads=2), _op("out", "linear", out=8),
    )  # fmt: skip
    assert _dim(graph, "qkv", 2) == "3*qkv.heads*qkv.head_dim"
    _fits(graph, lowered)


def test_equal_chunks_are_independent_until_something_couples_them() -> None:
    graph = _graph(
        [6], _op("fc", "linear", out=8), _op("s", "split", sizes=[4, 4]),
        _op("a", "relu", "s"), _op("b", "relu", "s:1"),
        outputs=["a", "b"],
    )  # fmt: skip
    assert _dim(graph, "fc", 1) == "fc.part + fc.part1"
    gated = _graph([6], _op("fc", "linear", out=8), _op("s", "split", sizes=[4, 4]), _op("m", "mul", "s", "s:1"))
    assert _dim(gated, "fc", 1) == "2*fc.part"


def test_grouped_query_attention_shares_its_key_heads(lowered: Callable[..., Any]) -> None:
    graph = _graph(
        [5, 8],
        _op("q", "linear", "x", out=8), _op("k", "linear", "x", out=4), _op("v", "linear", "x", out=4),
        _op("attn", "attention", "q", "k", "v", heads=4, kv_heads=2), _op("out", "linear", out=3),
    )  # fmt: skip
    assert _dim(graph, "q", 2) == "q.kv_heads*q.queries_per_kv*q.head_dim"
    assert _dim(graph, "k", 2) == "q.kv_heads*q.head_dim"
    assert _dim(graph, "v", 2) == "q.kv_heads*v.head_dim"
    _fits(graph, lowered)


def test_a_channel_shuffle_keeps_one_product(lowered: Callable[..., Any]) -> None:
    graph = _graph(
        [4, 3, 3],
        _op("c", "conv2d", out=6, kernel=1), _op("r", "reshape", shape=[2, 3, 3, 3]),
        _op("p", "permute", order=[2, 1, 3, 4]), _op("f", "reshape", shape=[6, 3, 3]),
        _op("d", "conv2d", out=2, kernel=1),
    )  # fmt: skip
    assert _dim(graph, "c", 1) == "c.part*c.part1"
    assert _dim(graph, "f", 1) == "c.part1*c.part"
    assert str(graph.tensors["d.weight"].dims[1]) == "c.part1*c.part"
    _fits(graph, lowered)


def test_a_concat_that_is_shuffled_divides_what_it_joined(lowered: Callable[..., Any]) -> None:
    graph = _graph(
        [4, 3, 3],
        _op("a", "conv2d", "x", out=3, kernel=1), _op("b", "conv2d", "x", out=3, kernel=1),
        _op("cat", "concat", "a", "b"), _op("r", "reshape", shape=[2, 3, 3, 3]),
        _op("p", "permute", order=[2, 1, 3, 4]), _op("f", "reshape", shape=[6, 3, 3]),
        _op("d", "conv2d", out=2, kernel=1),
    )  # fmt: skip
    assert _dim(graph, "cat", 1) == "2*a"  # the shuffle pairs the units of a with those of b
    assert _dim(graph, "f", 1) == "a*2"
    assert graph.group("b").name == "a"
    _fits(graph, lowered)


def test_flattening_says_where_channels_stand(lowered: Callable[..., Any]) -> None:
    ops = [_op("c", "conv2d", out=5, kernel=1), _op("f", "flatten"), _op("h", "linear", out=2)]
    assert _dim(_graph([4, 3, 3], *ops), "f", 1) == "c*9"
    last = _graph([4, 3, 3], ops[0], _op("p", "permute", order=[2, 3, 1]), *ops[1:])
    assert _dim(last, "f", 1) == "9*c"
    _fits(last, lowered)


def test_a_concat_flattened_channels_last_is_a_nested_sum(lowered: Callable[..., Any]) -> None:
    graph = _graph(
        [2, 4, 4],
        _op("a", "conv2d", "x", out=3, kernel=1), _op("b", "conv2d", "x", out=5, kernel=1),
        _op("cat", "concat", "a", "b"), _op("p", "permute", order=[2, 3, 1]), _op("f", "flatten"),
        _op("h", "linear", out=2),
    )  # fmt: skip
    assert _dim(graph, "f", 1) == "16*(a + b)"
    _fits(graph, lowered)


def test_factorings_without_a_common_refinement_freeze_only_what_they_touch() -> None:
    graph = _graph(
        [6],
        _op("a", "linear", "x", out=12), _op("a1", "reshape", shape=[3, 4]), _op("a2", "permute", order=[2, 1]),
        _op("a3", "permute", order=[2, 1]), _op("a4", "flatten"),
        _op("b", "linear", "x", out=12), _op("b1", "reshape", shape=[4, 3]), _op("b2", "flatten"),
        _op("sum", "add", "a4", "b2"), _op("free", "linear", out=7), _op("head", "linear", out=2),
    )  # fmt: skip
    assert _dim(graph, "a", 1) == _dim(graph, "b", 1) == "12"
    assert "no common refinement" in (graph.groups["a"].frozen or "")
    assert "sum" in (graph.groups["b"].frozen or "")
    assert graph.groups["free"].frozen is None


def test_residual_writers_are_one_group() -> None:
    graph = _graph([6], _op("a", "linear", "x", out=4), _op("b", "linear", "a", out=4), _op("s", "add", "a", "b"))
    assert set(graph.groups) == {"a"}
    assert graph.groups["a"].role == "output"
    assert graph.group("b") is graph.groups["a"]


def test_adding_a_fixed_input_freezes_with_the_reason() -> None:
    graph = _graph([4], _op("a", "linear", "x", out=4), _op("s", "add", "a", "x"), _op("h", "linear", out=2))
    assert "fixed dimension of 4" in (graph.groups["a"].frozen or "")


def test_positions_and_causal_attention_fix_the_order_of_time() -> None:
    swapped = [_op("fc", "linear", out=6), _op("t", "transpose", first=1, second=2)]
    free = _graph([4, 8], *swapped, _op("attn", "attention", "t", "t", "t", heads=2), _op("h", "linear", out=2))
    assert "softmax" in (free.groups["fc"].coupled or "")
    causal = _graph([4, 8], *swapped, _op("attn", "attention", "t", "t", "t", heads=2, causal=True))
    assert "causal mask" in (causal.groups["fc"].frozen or "")
    placed = _graph([4, 8], *swapped, _op("pos", "positions", length=9))
    assert "vector of its own" in (placed.groups["fc"].frozen or "")


def test_unifying_twice_changes_nothing() -> None:
    unifier = Unifier()
    twelve, six, two = unifier.fresh(12), unifier.fresh(6), unifier.fresh(2)
    first, second = unifier.split(twelve, 6)
    unifier.unify(first, six)
    unifier.factor(second, 2)
    unifier.unify(unifier.factor(six, 2)[0], two)
    before = unifier.changes
    unifier.unify(first, six)
    unifier.unify(unifier.factor(six, 2)[0], two)
    resolved = unifier.resolve(twelve)
    unifier.unify(twelve, resolved)
    assert unifier.resolve(twelve) == resolved
    assert unifier.changes - before <= 2  # factoring again binds its own two new atoms, and nothing old


def test_a_factored_dimension_is_the_first_factor_by_the_second() -> None:
    unifier = Unifier()
    twelve = unifier.fresh(12)
    lead, rest = unifier.factor(twelve, 3)
    assert (unifier.size(lead), unifier.size(rest)) == (3, 4)
    assert unifier.resolve(twelve) == times(lead, rest)


def test_the_fewest_units_that_one_of_two_may_have_hold_for_both() -> None:
    for swapped in (False, True):
        unifier = Unifier()
        pair = unifier.fresh(4, minimum=2), unifier.fresh(4, minimum=3)
        unifier.unify(*(reversed(pair) if swapped else pair))
        (key,) = unifier.resolve(pair[0]).atoms()
        assert unifier.info[key].minimum == 3


def test_a_cut_inside_one_of_several_equal_parts() -> None:
    unifier = Unifier()
    four = unifier.fresh(4)
    dim = times(const(3), four)
    first, rest = unifier.split(dim, 6)
    assert (unifier.size(first), unifier.size(rest)) == (6, 6)
    halves = list(unifier.resolve(four).atoms())
    assert len(halves) == 2, "each of the three is cut at its middle"
    assert list(join(first, rest).atoms()) == 3 * halves


def test_dimensions_of_another_size_do_not_unify() -> None:
    unifier = Unifier()
    with pytest.raises(GraphError, match=r"3 .* against 4"):
        unifier.unify(unifier.fresh(3), unifier.fresh(4))
    with pytest.raises(GraphError, match="cannot cut"):
        unifier.split(unifier.fresh(3), 3)
    with pytest.raises(GraphError, match="equal parts"):
        unifier.factor(unifier.fresh(5), 2)


def test_long_chains_of_bindings_resolve() -> None:
    unifier = Unifier()
    chain = [unifier.fresh(4) for _ in range(5000)]
    for one, two in pairwise(chain):
        unifier.unify(one, two)
    assert len({unifier.resolve(layout) for layout in chain}) == 1

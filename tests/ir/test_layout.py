"""Layouts are values with a normal form, and index maps act on them as a functor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphnet.ir.layout import NEWBORN, IndexArray, Layout, atom, const, join, times

NAMES = ("A", "B", "C")

layouts = st.recursive(
    st.one_of(st.integers(1, 4).map(const), st.sampled_from(NAMES).map(atom)),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: join(*parts)),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: times(*parts)),
    ),
    max_leaves=6,
)
sizes = st.fixed_dictionaries({name: st.integers(1, 4) for name in NAMES})


@st.composite
def maps(draw: st.DrawFn, old: dict[str, int]) -> dict[str, IndexArray]:
    """For some atoms an index map from their old size to a new one, newborns included."""
    names = draw(st.sets(st.sampled_from(NAMES)))
    return {
        name: np.array(draw(st.lists(st.integers(NEWBORN, old[name] - 1), min_size=1, max_size=5)), dtype=np.int64)
        for name in sorted(names)
    }


def _act(layout: Layout, sources: dict[str, IndexArray], old: dict[str, int], values: IndexArray) -> IndexArray:
    index = layout.index(sources, old)
    return np.where(index < 0, NEWBORN, values[index])


@given(layouts, sizes)
def test_the_identity_moves_nothing(layout: Layout, old: dict[str, int]) -> None:
    assert layout.index({}, old).tolist() == list(range(layout.size(old)))
    identity = {name: np.arange(size) for name, size in old.items()}
    assert layout.index(identity, old).tolist() == list(range(layout.size(old)))


@given(st.data(), layouts, sizes)
def test_acting_by_f_then_g_is_acting_by_their_composition(
    data: st.DataObject, layout: Layout, old: dict[str, int]
) -> None:
    f = data.draw(maps(old))
    middle = old | {name: len(source) for name, source in f.items()}
    g = data.draw(maps(middle))
    both = dict(f)
    for name, source in g.items():
        first = f.get(name, np.arange(old[name]))
        both[name] = np.where(source < 0, NEWBORN, first[source])
    values = np.arange(layout.size(old), dtype=np.int64)
    twice = _act(layout, g, middle, _act(layout, f, old, values))
    assert twice.tolist() == _act(layout, both, old, values).tolist()


@given(st.data(), layouts, sizes)
def test_the_index_has_the_new_size_and_points_into_the_old(
    data: st.DataObject, layout: Layout, old: dict[str, int]
) -> None:
    f = data.draw(maps(old))
    index = layout.index(f, old)
    assert len(index) == layout.size(old | {name: len(source) for name, source in f.items()})
    assert index.min() >= NEWBORN
    assert index.max() < layout.size(old)


@given(layouts, layouts, layouts, sizes)
def test_joining_is_associative_and_adds_sizes(a: Layout, b: Layout, c: Layout, old: dict[str, int]) -> None:
    assert join(join(a, b), c) == join(a, b, c) == join(a, join(b, c))
    assert join(a, b, c).size(old) == a.size(old) + b.size(old) + c.size(old)


@given(st.data(), layouts, layouts, layouts, sizes)
def test_multiplying_is_associative_and_multiplies_sizes(
    data: st.DataObject, a: Layout, b: Layout, c: Layout, old: dict[str, int]
) -> None:
    left, flat, right = times(times(a, b), c), times(a, b, c), times(a, times(b, c))
    assert left.size(old) == flat.size(old) == right.size(old) == a.size(old) * b.size(old) * c.size(old)
    f = data.draw(maps(old))  # the same positions move in the same way, however the product is written
    assert left.index(f, old).tolist() == flat.index(f, old).tolist() == right.index(f, old).tolist()


@given(layouts, layouts)
def test_one_is_neutral(a: Layout, b: Layout) -> None:
    assert times(const(1), a) == a == times(a, const(1))
    assert times(a, const(1), b) == times(a, b)


@given(st.data(), layouts, layouts, layouts, sizes)
def test_a_leading_sum_is_distributed(
    data: st.DataObject, a: Layout, b: Layout, c: Layout, old: dict[str, int]
) -> None:
    product, summed = times(join(a, b), c), join(times(a, c), times(b, c))
    f = data.draw(maps(old))  # runs may be counted in another way, the positions are the same
    assert product.index(f, old).tolist() == summed.index(f, old).tolist()
    assert str(times(join(atom("A"), atom("B")), atom("C"))) == "A*C + B*C"


def test_a_sum_behind_a_factor_stays_nested() -> None:
    layout = times(const(16), join(atom("A"), atom("B")))
    assert str(layout) == "16*(A + B)"
    assert layout != join(times(const(16), atom("A")), times(const(16), atom("B")))
    sizes = {"A": 1, "B": 1}
    assert times(const(2), join(atom("A"), atom("B"))).index({"B": np.array([0, 0])}, sizes).tolist() == [
        0,
        1,
        1,
        2,
        3,
        3,
    ]


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (join(atom("A"), atom("A")), "2*A"),
        (join(const(2), const(3)), "5"),
        (times(const(2), const(3), atom("A")), "6*A"),
        (times(atom("A"), const(2), const(3)), "A*6"),
        (join(const(1), atom("A")), "1 + A"),
        (times(), "1"),
    ],
)
def test_the_normal_form_reads_as_expected(layout: Layout, text: str) -> None:
    assert str(layout) == text


@given(layouts, sizes)
def test_renaming_away_and_back_is_the_identity(layout: Layout, old: dict[str, int]) -> None:
    away = layout.rename({"A": "P", "B": "Q"})
    assert not {"A", "B"} & set(away.atoms())
    assert away.rename({"P": "A", "Q": "B"}) == layout
    assert away.size({"P": old["A"], "Q": old["B"], "C": old["C"]}) == layout.size(old)


def test_each_part_of_a_concat_moves_by_itself() -> None:
    layout, sizes = join(atom("A"), atom("B"), atom("C")), {"A": 2, "B": 1, "C": 3}
    assert layout.index({"C": np.array([2, -1])}, sizes).tolist() == [0, 1, 2, 5, -1]
    assert layout.index({"A": np.array([-1, 0])}, sizes).tolist() == [-1, 0, 2, 3, 4, 5]


def test_a_product_is_in_row_major_order() -> None:
    layout, sizes = times(atom("A"), atom("B")), {"A": 2, "B": 3}
    assert layout.index({"B": np.array([2, -1])}, sizes).tolist() == [2, -1, 5, -1]
    assert layout.index({"A": np.array([1, -1])}, sizes).tolist() == [3, 4, 5, -1, -1, -1]
    assert layout.owners("A", sizes).tolist() == [0, 0, 0, 1, 1, 1]
    assert layout.owners("B", sizes).tolist() == [0, 1, 2, 0, 1, 2]


def test_a_block_tells_what_stands_before_and_after() -> None:
    layout = times(const(3), atom("A"), const(4))
    assert layout.block("A", {"A": 5}) == (3, 4)
    assert layout.block("B", {"A": 5}) is None
    assert times(atom("A"), atom("A")).block("A", {"A": 5}) is None


def test_nothing_is_smaller_than_one() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        const(0)

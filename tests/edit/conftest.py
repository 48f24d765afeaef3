"""What the tests of edits share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import assume
from hypothesis import strategies as st

import graphnet as gn
from graphnet.edit.newborns import visible

DrawGroup: TypeAlias = Callable[[st.DataObject, gn.Graph], gn.UnitGroup]


def read(graph: gn.Graph, group: str) -> bool:
    """Whether something reads a group through a stored weight."""
    return any(
        role == "read" and group in set(layout.atoms())
        for spec in graph.users[group]
        for layout, role in zip(spec.dims, spec.roles, strict=True)
    )


@pytest.fixture(scope="session")
def draw_group() -> DrawGroup:
    """Draw a group of a graph that may be edited and may grow; a graph without one is passed over.

    Groups that nothing depends on (an output of a split that nothing reads) are left out.
    """

    def draw(data: st.DataObject, graph: gn.Graph) -> gn.UnitGroup:
        free = {name: g for name, g in graph.groups.items() if g.frozen is None and g.no_growth is None}
        names = sorted(name for name, g in free.items() if visible(g) is not None or read(graph, name))
        assume(names)
        return graph.groups[data.draw(st.sampled_from(names))]

    return draw

"""Kept versions in a checkpoint, and the kept version that a checkpoint of one is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field
from torch import Tensor

from graphnet.edit.rates import NEUTRAL, AgeSlot
from graphnet.errors import CheckpointError
from graphnet.ir.graph import Graph
from graphnet.runtime.births import Births
from graphnet.runtime.checkpoint_checks import Checks
from graphnet.runtime.history import History
from graphnet.runtime.kept import Kept, KeptOptimizer
from graphnet.runtime.values import Reader, Writer
from graphnet.schemas.base import Frozen

if TYPE_CHECKING:
    from graphnet.runtime.network import Network

__all__ = ["BirthEntry", "KeptEntry", "KeptOptimizerEntry", "read_births", "read_kept", "write_births", "write_kept"]


class BirthEntry(Frozen):
    """One vector of :class:`~graphnet.runtime.births.Births`, and the tensor of the file that holds it."""

    param: str
    what: AgeSlot
    dim: int = Field(ge=0)
    tensor: str


class KeptOptimizerEntry(Frozen):
    """The state that an optimizer had; ``position`` is its place among the attached ones."""

    position: int = Field(ge=0)
    kind: str
    groups: tuple[tuple[str, ...], ...]
    state: dict[str, dict[str, Any]]
    births: tuple[BirthEntry, ...]
    steps: int


class KeptEntry(Frozen):
    """A kept version; its tensors are ``kept/VERSION/tensor/NAME`` and ``kept/VERSION/reserve/NAME``.

    ``averages`` are the places of averaged models among the attached ones, whose tensors are
    ``kept/VERSION/average/PLACE/tensor/NAME``.
    """

    version: int
    constant: tuple[str, ...]
    reserve: tuple[str, ...]
    optimizers: tuple[KeptOptimizerEntry, ...]
    averages: tuple[int, ...] = ()


# -- writing --------------------------------------------------------------------------------------------------------


def write_kept(net: Network, writer: Writer) -> Iterator[dict[str, Any]]:
    """An entry for each kept version; its tensors go into the writer."""
    positions = {key: position for position, key in enumerate(net._attached)}
    places = {key: place for place, key in enumerate(net._averages)}
    for number, kept in net.kept.items():
        if kept.parts:
            raise CheckpointError(
                f"version {number} is kept with parametrizations (of {sorted(kept.parts)[:8]}), which are code of "
                f"their own and not part of a checkpoint: let go of it with net.forget({number})"
            )
        prefix = f"kept/{number}/"
        for name, tensor in kept.tensors.items():
            writer.put(f"{prefix}tensor/{name}", tensor)
        for name, tensor in kept.reserve.items():
            writer.put(f"{prefix}reserve/{name}", tensor)
        averages = {places[key]: held for key, held in kept.averages.items() if key in places}
        for place, average in averages.items():
            for name, tensor in average.items():
                writer.put(f"{prefix}average/{place}/tensor/{name}", tensor)
        yield {
            "version": number,
            "constant": sorted(kept.constant),
            "reserve": list(kept.reserve),
            "optimizers": [
                {
                    "position": positions[held.key],
                    "kind": held.kind,
                    "groups": [list(names) for names in held.groups],
                    "state": {
                        name: writer.encode(dict(entries), f"{held.kind}.state[{name!r}] of version {number}")
                        for name, entries in held.state.items()
                    },
                    "births": write_births(held.births, f"{prefix}{held.key}", writer),
                    "steps": held.steps,
                }
                for held in kept.optimizers
                if held.key in positions
            ],
            "averages": list(averages),
        }


def write_births(births: Mapping[str, Births], key: str, writer: Writer) -> list[dict[str, Any]]:
    """An entry for each vector that is known of the ages of slices; ``key`` makes the names in the file unique."""
    return [
        {"param": name, "what": what, "dim": dim, "tensor": writer.put(f"{what}/{key}/{dim}/{name}", vector)}
        for name, table in births.items()
        for what in NEUTRAL
        for dim, vector in table.table(what).items()
    ]


# -- reading --------------------------------------------------------------------------------------------------------


def check_kept(entries: Sequence[KeptEntry], history: History, reader: Reader) -> None:
    """Check kept versions against their graphs.

    Raises
    ------
    CheckpointError
        Says what does not fit.
    """
    if len({entry.version for entry in entries}) != len(entries):
        raise CheckpointError("a version is kept twice")
    for entry in entries:
        if entry.version not in history:
            raise CheckpointError(f"version {entry.version} is kept, which is not in the history")
        checks = Checks(history[entry.version].graph, reader, f"kept/{entry.version}/")
        checks.tensors(entry.reserve, entry.constant)
        for held in entry.optimizers:
            checks.optimizer(held.kind, held.groups, held.state, held.births)
        for place in entry.averages:
            checks.average(place)


def read_kept(entry: KeptEntry, graph: Graph, reader: Reader) -> Kept:
    """A kept version as :meth:`Network.keep` gave it."""
    prefix = f"kept/{entry.version}/"
    return Kept(
        graph,
        {name: reader.get(f"{prefix}tensor/{name}") for name in graph.tensors},
        {name: reader.get(f"{prefix}reserve/{name}") for name in entry.reserve},
        frozenset(entry.constant),
        tuple(
            KeptOptimizer(
                str(held.position), held.kind, held.groups, reader.decode(held.state),
                read_births(held.births, reader), held.steps,
            )
            for held in entry.optimizers
        ),
        {
            f"average {place}": {name: reader.get(f"{prefix}average/{place}/tensor/{name}") for name in graph.tensors}
            for place in entry.averages
        },
    )  # fmt: skip


def read_births(entries: Sequence[BirthEntry], reader: Reader) -> dict[str, Births]:
    """The inverse of :func:`write_births`."""
    found: dict[str, Births] = {}
    for entry in entries:
        tensor: Tensor = reader.get(entry.tensor)
        found.setdefault(entry.param, Births()).table(entry.what)[entry.dim] = tensor
    return found

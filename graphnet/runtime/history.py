"""History: the versions of a network, each with what made it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from graphnet.edit.plan import Preserves, Step, weakest
from graphnet.errors import GraphnetError
from graphnet.ir.graph import Graph

__all__ = ["History", "Version"]


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a network.

    Attributes
    ----------
    number : int
    parent : int or None
    graph : Graph
    steps : tuple of Step
        The operators that made it, in order; none for the first version.
    seed : int
        The seed of the edit's random numbers.
    params : int
        Number of parameters.
    flops : int or None
        Of one forward pass of one sample; None where the input has dynamic dimensions.
    seconds : float
        Wall time of the edit.
    bytes_moved : int
        Bytes of the tensors that the commit replaced, optimizer state included.
    """

    number: int
    parent: int | None
    graph: Graph
    steps: tuple[Step, ...] = ()
    seed: int = 0
    params: int = 0
    flops: int | None = None
    seconds: float = 0.0
    bytes_moved: int = 0

    @property
    def preserves(self) -> Preserves:
        """What held of the function over all steps."""
        return weakest(*(step.preserves for step in self.steps))

    def record(self) -> dict[str, Any]:
        """The version as plain data, for a journal; the graph is left out."""
        return {
            "version": self.number,
            "parent": self.parent,
            "seed": self.seed,
            "preserves": self.preserves,
            "params": self.params,
            "flops": self.flops,
            "seconds": self.seconds,
            "bytes_moved": self.bytes_moved,
            "units": {name: group.size for name, group in self.graph.groups.items() if group.frozen is None},
            "dormant": {name: len(group.dormant) for name, group in self.graph.groups.items() if group.dormant},
            "steps": [asdict(step) | {"arguments": dict(step.arguments)} for step in self.steps],
        }


@dataclass(frozen=True, slots=True)
class History:
    """The versions of a network in the order of their making; immutable."""

    versions: tuple[Version, ...] = field(default_factory=tuple)

    def __len__(self) -> int:
        return len(self.versions)

    def __iter__(self) -> Iterator[Version]:
        return iter(self.versions)

    def __getitem__(self, number: int) -> Version:
        for version in self.versions:
            if isinstance(number, int) and version.number == number:
                return version
        raise GraphnetError(f"there is no version {number}; the history has {[v.number for v in self.versions]}")

    @property
    def latest(self) -> Version:
        """The newest version."""
        return self.versions[-1]

    def following(self, version: Version) -> History:
        """The history with one more version."""
        return History((*self.versions, version))

    def journal(self) -> list[dict[str, Any]]:
        """Every version as plain data."""
        return [version.record() for version in self.versions]

    def birth_versions(self, group: str) -> Mapping[int, int]:
        """For each unit of the newest version's group the version in which it joined the live units last."""
        if not isinstance(group, str) or group not in self.versions[0].graph.groups:
            raise GraphnetError(f"there is no unit group {group!r} in the first version's graph")
        born: dict[int, int] = dict.fromkeys(self.versions[0].graph.groups[group].ids, self.versions[0].number)
        for version in self.versions[1:]:
            for step in version.steps:
                if step.group == group:
                    born.update(dict.fromkeys(step.born, version.number))
        live = self.latest.graph.groups[group].ids
        return {unit: born.get(unit, self.versions[0].number) for unit in live}

    def newborns(self) -> Mapping[str, Sequence[int]]:
        """Ids that joined in the newest version, by group."""
        found: dict[str, list[int]] = {}
        for step in self.latest.steps:
            if step.group is not None and step.born:
                found.setdefault(step.group, []).extend(step.born)
        return found

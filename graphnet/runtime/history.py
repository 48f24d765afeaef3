"""History: the versions of a network, each with what made it and which version it was made from.

Versions are a graph of their own: numbers are unique and rise, each version names its parent, and rolling back makes
a new version whose parent is the one rolled back to. So an edit after that begins a branch, and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from graphnet.edit.plan import Preserves, Step, weakest
from graphnet.errors import GraphnetError
from graphnet.ir.graph import Graph

if TYPE_CHECKING:
    from graphnet.ir.diff import GraphDiff

__all__ = ["History", "Version"]


class _LateGraph:
    """A version's graph; one that a checkpoint holds is built when it is first asked for."""

    def __get__(self, version: Version | None, owner: type[Version]) -> Graph:
        if version is None:
            raise AttributeError("a version's graph has no default")
        held: Graph | Callable[[], Graph] = version.__dict__["graph"]
        if not isinstance(held, Graph):
            held = version.__dict__["graph"] = held()
        return held

    def __set__(self, version: Version, held: Graph | Callable[[], Graph]) -> None:
        version.__dict__["graph"] = held


class _LateCount:
    """A number that is counted when it is first asked for, where a function stands for it."""

    def __set_name__(self, owner: type[Version], name: str) -> None:
        self._name = name

    def __get__(self, version: Version | None, owner: type[Version]) -> int | None:
        if version is None:
            return None  # the default
        held: int | Callable[[], int | None] | None = version.__dict__[self._name]
        if callable(held):
            held = version.__dict__[self._name] = held()
        return held

    def __set__(self, version: Version, held: int | Callable[[], int | None] | None) -> None:
        version.__dict__[self._name] = held


@dataclass(frozen=True)
class Version:
    """One version of a network.

    Attributes
    ----------
    number : int
    parent : int or None
        The version that it was made from; None for the first.
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
    optimizer_notes : tuple of str
        What is not exact about the next updates of an attached optimizer, and why: ``approximate`` where an update
        mixes units. None of them where every element keeps the update that it would have had.
    provenance : mapping or None
        Who asked for the edit, where a policy did: rule, optimizer step, matches, costs before and after.
    """

    number: int
    parent: int | None
    graph: _LateGraph = _LateGraph()
    steps: tuple[Step, ...] = ()
    seed: int = 0
    params: int = 0
    flops: _LateCount = _LateCount()
    seconds: float = 0.0
    bytes_moved: int = 0
    optimizer_notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Version:
        return self

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
            "optimizer_notes": list(self.optimizer_notes),
            "units": {name: group.size for name, group in self.graph.groups.items() if group.frozen is None},
            "dormant": {name: len(group.dormant) for name, group in self.graph.groups.items() if group.dormant},
            "provenance": None if self.provenance is None else dict(self.provenance),
            "steps": [asdict(step) | {"arguments": dict(step.arguments)} for step in self.steps],
        }

    def __str__(self) -> str:
        steps = ", ".join(f"{step.operator} {step.group}" if step.group else step.operator for step in self.steps)
        origin = "" if self.parent is None else f" from {self.parent}"
        return f"version {self.number}{origin}: {steps or 'as built'}; {self.params:,} parameters"


@dataclass(frozen=True, slots=True)
class History:
    """The versions of a network in the order of their making; immutable."""

    versions: tuple[Version, ...] = field(default_factory=tuple)

    def __len__(self) -> int:
        return len(self.versions)

    def __iter__(self) -> Iterator[Version]:
        return iter(self.versions)

    def __contains__(self, number: object) -> bool:
        return any(version.number == number for version in self.versions)

    def __getitem__(self, number: int) -> Version:
        if isinstance(number, int) and not isinstance(number, bool):
            for version in self.versions:
                if version.number == number:
                    return version
        raise GraphnetError(f"there is no version {number!r}; the history has {_numbers(self.versions)}")

    def __deepcopy__(self, memo: dict[int, Any]) -> History:
        return self

    def __str__(self) -> str:
        return "\n".join(str(version) for version in self.versions)

    @property
    def latest(self) -> Version:
        """The newest version, which is the network's current one."""
        return self.versions[-1]

    def following(self, version: Version) -> History:
        """The history with one more version.

        Raises
        ------
        GraphnetError
            Its number does not rise, or its parent is not there.
        """
        if self.versions and version.number <= self.latest.number:
            raise GraphnetError(f"version {version.number} cannot follow version {self.latest.number}")
        if version.parent is None if self.versions else version.parent is not None:
            raise GraphnetError(f"version {version.number} has the parent {version.parent}")
        if version.parent is not None:
            self[version.parent]
        return History((*self.versions, version))

    def journal(self) -> list[dict[str, Any]]:
        """Every version as plain data."""
        return [version.record() for version in self.versions]

    # -- the graph of versions ------------------------------------------------------------------------------------

    def ancestors(self, number: int | None = None) -> tuple[Version, ...]:
        """The versions that one was made from, its parent first; of the newest one by default.

        Raises
        ------
        GraphnetError
            There is no such version.
        """
        return self._lineage(self.latest.number if number is None else number)[1:]

    def _lineage(self, number: int) -> tuple[Version, ...]:
        by_number = {version.number: version for version in self.versions}
        found = [self[number]]
        while found[-1].parent is not None:
            found.append(by_number[found[-1].parent])
        return tuple(found)

    def children(self, number: int) -> tuple[Version, ...]:
        """The versions that were made from one."""
        self[number]
        return tuple(version for version in self.versions if version.parent == number)

    @property
    def branches(self) -> tuple[Version, ...]:
        """The newest version of each branch: those that no other was made from."""
        parents = {version.parent for version in self.versions}
        return tuple(version for version in self.versions if version.number not in parents)

    def path(self, first: int, last: int) -> tuple[Version, ...]:
        """The versions between two, both included: back to the newest one that both come from, then on to the last."""
        up, down = self._lineage(first), self._lineage(last)
        common = {version.number for version in down}
        rise = next(at for at, version in enumerate(up) if version.number in common)
        fall = next(at for at, version in enumerate(down) if version.number == up[rise].number)
        return (*up[: rise + 1], *reversed(down[:fall]))

    def until(self, number: int) -> History:
        """The history as it was when a version was the newest."""
        last = self[number].number
        return History(tuple(version for version in self.versions if version.number <= last))

    def diff(self, first: int, last: int | None = None) -> GraphDiff:
        """What differs between two versions' graphs; the newest is the second by default.

        Raises
        ------
        GraphnetError
            There is no such version.
        """
        return self[first].graph.diff((self.latest if last is None else self[last]).graph)

    # -- units ----------------------------------------------------------------------------------------------------

    def birth_versions(self, group: str) -> Mapping[int, int]:
        """For each unit of the newest version's group the version in which it joined the live units last.

        Raises
        ------
        GraphnetError
            The newest version has no such group.
        """
        from graphnet.ir.diff import matching_groups

        if not isinstance(group, str) or group not in self.latest.graph.groups:
            raise GraphnetError(f"there is no unit group {group!r} in version {self.latest.number}")
        name: str | None = group
        open_units = set(self.latest.graph.groups[group].ids)
        born: dict[int, int] = {}
        lineage = self._lineage(self.latest.number)
        for version, parent in pairwise(lineage):
            if any(step.changes for step in version.steps):
                name = matching_groups(parent.graph, version.graph).get(str(name))
                joined = open_units - set(parent.graph.groups[name].ids if name else ())
            else:  # no graph is needed, which a checkpoint would have to build first
                joined = {unit for step in version.steps if step.group == name for unit in step.born} & open_units
            born |= dict.fromkeys(joined, version.number)
            open_units -= joined
            if name is None or not open_units:
                break
        born |= dict.fromkeys(open_units, lineage[-1].number)
        return {unit: born[unit] for unit in self.latest.graph.groups[group].ids}

    def newborns(self) -> Mapping[str, Sequence[int]]:
        """Ids that joined in the newest version, by group."""
        found: dict[str, list[int]] = {}
        for step in self.latest.steps:
            if step.group is not None and step.born:
                found.setdefault(step.group, []).extend(step.born)
        return found


def _numbers(versions: Sequence[Version]) -> str:
    shown = [str(version.number) for version in versions]
    return ", ".join(shown if len(shown) <= 20 else [*shown[:8], "...", *shown[-8:]])

"""How many times each law was checked, and for which operators: every law of this package counts itself.

One law verified on one instance (a graph with tensors, and an edit where the law speaks of one) is one check, however
many tensors, holders or bytecodes it compares.

Examples
--------
>>> import graphnet as gn
>>> from graphnet.testing import COUNTS, check_lowering, random_network
>>> before = COUNTS.checks
>>> check_lowering(random_network(gn.mlp([3, 4, 2])))
>>> COUNTS.checks - before
1
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["COUNTS", "Counts"]


@dataclass(slots=True)
class Counts:
    """Checks that held, by law and by operator.

    Attributes
    ----------
    laws : Counter of str
        Checks of each law.
    operators : Counter of (str, str)
        Checks of each ``(operator, law)``; an edit of several operators counts for each of them here, and once in
        ``laws``.
    edits, refused : Counter of str
        Edits that were committed and that were refused, by operator.
    methods : Counter of (str, str)
        Committed edits by operator and by how it was to be done: an initialiser, a score, a splitter, a kind of op.
    lives : Counter of int
        Networks by how many edits were committed on each, one after another.
    graphs, optimizers : Counter of str
        Those networks by the kind of their graph and by the optimizer that was attached.
    rules : Counter of str
        Rules of :class:`~graphnet.testing.SurgeryMachine` that ran to their end.
    """

    laws: Counter[str] = field(default_factory=Counter)
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)
    edits: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    methods: Counter[tuple[str, str]] = field(default_factory=Counter)
    lives: Counter[int] = field(default_factory=Counter)
    graphs: Counter[str] = field(default_factory=Counter)
    optimizers: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)

    @property
    def checks(self) -> int:
        """Checks in all."""
        return self.laws.total()

    def held(self, law: str, operators: Sequence[str] = ()) -> None:
        """Count one check of a law, on an edit by these operators."""
        self.laws[law] += 1
        for operator in dict.fromkeys(operators):
            self.operators[operator, law] += 1

    def committed(self, steps: Iterable[Any]) -> None:
        """Count an edit that was committed, by its operators and their methods."""
        for operator in operators_of(steps := tuple(steps)):
            self.edits[operator] += 1
        for step in steps:
            for key in _METHODS:
                if isinstance(value := step.arguments.get(key), str):
                    self.methods[step.operator, f"{key}={value}"] += 1

    def add(self, other: Counts) -> None:
        """Add the counts of another process."""
        for mine, others in zip(self._counters(), other._counters(), strict=True):
            mine += others  # in place

    def clear(self) -> None:
        """Start from nothing."""
        for counter in self._counters():
            counter.clear()

    def as_data(self) -> dict[str, Any]:
        """The counts as JSON holds them: a table for each counter, as rows of key and count."""
        named = zip(self._names(), self._counters(), strict=True)
        return {name: [[key, count] for key, count in counter.items()] for name, counter in named}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Counts:
        """The inverse of :meth:`as_data`."""
        found = cls()
        for name, counter in zip(cls._names(), found._counters(), strict=True):
            counter.update({tuple(key) if isinstance(key, list) else key: count for key, count in data[name]})
        return found

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        return tuple(one.name for one in fields(cls))

    def _counters(self) -> list[Counter[Any]]:
        return [getattr(self, name) for name in self._names()]

    def table(self) -> str:
        """Two tables for people: checks by law, and edits and checks by operator."""
        lines = ["", f"{'law':<24}{'checks':>10}", *(f"{law:<24}{n:>10,}" for law, n in self.laws.most_common())]
        lines.append(f"{'in all':<24}{self.checks:>10,}")
        lines += ["", f"{'operator':<24}{'committed':>10}{'refused':>10}{'checks':>10}"]
        for operator in sorted({*self.edits, *self.refused}, key=lambda name: (-self.edits[name], name)):
            checks = sum(count for (name, _), count in self.operators.items() if name == operator)
            lines.append(f"{operator:<24}{self.edits[operator]:>10,}{self.refused[operator]:>10,}{checks:>10,}")
        return "\n".join(lines)


_METHODS = ("kind", "form", "by", "init", "score", "state")
"""Arguments of a step that say how its operator does its work."""

COUNTS = Counts()
"""The counts of this process."""


def operators_of(steps: Iterable[Any]) -> tuple[str, ...]:
    """The operators of a version's steps, in order, each once."""
    return tuple(dict.fromkeys(step.operator for step in steps))

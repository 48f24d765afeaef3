"""The page that a long run of the laws writes: what was checked, how often, on what."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from graphnet.testing.counting import Counts

__all__ = ["LongRun", "page"]

_SPAN = 5
"""Lengths of edit sequences that share a row."""


@dataclass(frozen=True)
class LongRun:
    """A run of :mod:`graphnet.testing.long`.

    Attributes
    ----------
    counts : Counts
    seconds : float
    workers, seed, length : int
        As on the command line.
    failed : int
        Workers that found a law that does not hold, or broke off.
    """

    counts: Counts
    seconds: float
    workers: int
    seed: int
    length: int
    failed: int

    def summary(self) -> str:
        """One line."""
        lives = self.counts.lives
        made = sum(edits * count for edits, count in lives.items())
        return (
            f"{self.counts.checks:,} checks in {self.seconds:,.0f} s on {self.workers} workers, {self.failed} of them "
            f"failed; {made:,} edits of {lives.total():,} networks, up to {max(lives, default=0)} on one"
        )


def page(run: LongRun) -> str:
    """The page, as Markdown."""
    counts = run.counts
    laws = [(law, f"{count:,}") for law, count in counts.laws.most_common()]
    operators = [
        (f"`{name}`", f"{counts.edits[name]:,}", f"{counts.refused[name]:,}", f"{_checks(counts, name):,}")
        for name, _ in counts.edits.most_common()
    ]
    methods = [
        (f"`{name}`", ", ".join(f"{how} {count:,}" for how, count in _methods(counts, name)))
        for name, _ in counts.edits.most_common()
        if _methods(counts, name)
    ]
    parts = [
        "# The long run of the laws",
        "Written by `python -m graphnet.testing.long --page docs/long-run.md`: random networks and optimizers, edits "
        f"in sequences of up to {run.length} on one network with training in between, and after every edit the "
        "[laws](testing.md#the-laws). One law that held on one edit or one network is one check, however many tensors "
        "it compares.",
        f"**{counts.checks:,} checks, {run.failed or 'no'} violation{'s' if run.failed > 1 else ''}**, in "
        f"{run.seconds / 60:,.0f} minutes on {run.workers} processes (seed {run.seed}, torch "
        f"{torch.__version__.partition('+')[0]}, Python {platform.python_version()}, float64).",
        "## By law",
        _table(("law", "checks"), laws),
        "## By operator",
        _table(("operator", "edits", "refused", "checks"), operators),
        "Every refused edit was checked to have changed nothing. By the way in which it was done:",
        _table(("operator", "edits"), methods),
        "## By network",
        _table((f"edits on one network, of {run.length} at most", "networks"), _lengths(counts.lives)),
        _table(("graph", "networks"), _rows(counts.graphs)),
        _table(("optimizer", "networks"), _rows(counts.optimizers)),
    ]
    return "\n\n".join(parts) + "\n"


def _checks(counts: Counts, operator: str) -> int:
    return sum(count for (name, _), count in counts.operators.items() if name == operator)


def _methods(counts: Counts, operator: str) -> list[tuple[str, int]]:
    return [(how, count) for (name, how), count in counts.methods.most_common() if name == operator]


def _lengths(lives: Counter[int]) -> list[tuple[str, str]]:
    """Rows for spans of lengths: 0, 1 to 5, 6 to 10 ..."""
    spans: Counter[int] = Counter()
    for length, count in lives.items():
        spans[-(-length // _SPAN)] += count
    named = {0: "none", **{span: f"{(span - 1) * _SPAN + 1} to {span * _SPAN}" for span in spans if span}}
    return [(named[span], f"{spans[span]:,}") for span in sorted(spans)]


def _rows(counter: Counter[str]) -> list[tuple[str, str]]:
    return [(name, f"{count:,}") for name, count in counter.most_common()]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

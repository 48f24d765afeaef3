"""Check laws by the hundred thousand: ``python -m graphnet.testing.long --checks 100000 --workers 2``.

Random lives of random networks (:mod:`graphnet.testing.episodes`), edits in sequences of up to 30, and random programs
of shape ops. Prints how many checks of which law, on which operators, and how long it took; ``--page FILE`` writes the
same as a page of Markdown. Where a law does not hold it prints the smallest example that it finds, as a script, and
exits with 1; so does a run of many checks in which no edit of some operator was committed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st

from graphnet.testing.counting import COUNTS, Counts
from graphnet.testing.edits import EDITS
from graphnet.testing.episodes import episode, program_episode
from graphnet.testing.long_page import LongRun, page
from graphnet.testing.scripts import LawError

__all__ = ["main", "run"]

_LIVES, _PROGRAMS = 20, 5
"""Examples of one seed; the first is the simplest there is."""
_ENOUGH = 10_000
"""Checks by which every operator must have been committed."""
_REPORT = 120.0
"""Seconds between two lines on how far it is."""


def run(checks: int, *, seed: int = 0, length: int = 30) -> Counts:
    """Run episodes until so many checks were made in this process.

    Raises
    ------
    LawError
        A law does not hold.
    """
    start = COUNTS.checks
    shared = settings(
        deadline=None, database=None, report_multiple_bugs=False, print_blob=False,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    batch, said = 0, time.monotonic()
    first: list[LawError] = []

    def told(example: Callable[[], object]) -> None:
        """Run an example; say at once what the first violation is: making it smaller takes minutes."""
        try:
            example()
        except LawError as error:
            if not first:
                first.append(error)
                print(f"found, and made smaller now: {error}", file=sys.stderr, flush=True)
            raise

    while COUNTS.checks - start < checks:  # not within an example: Hypothesis wants to draw the same twice

        @with_seed(seed * 1_000_003 + batch)
        @settings(shared, max_examples=_PROGRAMS)
        @given(st.data())
        def moves(data: st.DataObject) -> None:
            told(lambda: program_episode(cast(st.DrawFn, data.draw)))

        @with_seed(seed * 1_000_003 + batch)
        @settings(shared, max_examples=_LIVES)
        @given(st.data())
        def lives(data: st.DataObject) -> None:
            told(lambda: episode(cast(st.DrawFn, data.draw), length=length))

        moves()
        lives()
        batch += 1
        if time.monotonic() - said > _REPORT:
            said = time.monotonic()
            print(f"seed {seed}: {COUNTS.checks - start:,} of {checks:,} checks", file=sys.stderr, flush=True)
    return COUNTS


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m graphnet.testing.long", description=__doc__)
    parser.add_argument("--checks", type=int, default=100_000, help="law checks in all")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--length", type=int, default=30, help="most edits of one network")
    parser.add_argument("--seed", type=int, default=0, help="of the random examples")
    parser.add_argument("--page", type=Path, help="also write the tables here, as Markdown")
    parser.add_argument("--as-worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.as_worker:
        return _work(given.checks, given.seed, given.length)
    started = time.perf_counter()
    total, failed = _gather(given.checks, given.workers, given.seed, given.length)
    found = LongRun(total, time.perf_counter() - started, given.workers, given.seed, given.length, failed)
    untouched = sorted(set(EDITS) - set(total.edits))
    print(f"{total.table()}\n\n{found.summary()}")
    if untouched:
        print(f"no edit of {', '.join(untouched)} was committed")
    if given.page is not None and not failed:
        given.page.write_text(page(found), encoding="utf-8")
        print(f"written: {given.page}")
    lacking = bool(untouched) and given.checks >= _ENOUGH
    return 1 if failed or lacking or total.checks < given.checks else 0


def _gather(checks: int, workers: int, seed: int, length: int) -> tuple[Counts, int]:
    """Run the workers; their counts together, and how many of them found something or broke off."""
    command = [sys.executable, "-m", "graphnet.testing.long", "--as-worker", "--checks", str(-(-checks // workers))]
    command += ["--length", str(length)]
    total, failed = Counts(), 0
    running = []
    for number in range(workers):
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe that nobody reads would fill up
        arguments = [*command, "--seed", str(seed * workers + number)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running.append((subprocess.Popen(arguments, stdout=output, text=True, env=environment), output))
    for worker, output in running:
        failed += worker.wait() != 0
        output.seek(0)
        *others, last = output.read().strip().splitlines() or [""]
        output.close()
        try:
            total.add(Counts.from_data(json.loads(last)))
        except (json.JSONDecodeError, KeyError, TypeError):
            others.append(last)
        if others:
            print("\n".join(others))
    return total, failed


def _work(checks: int, seed: int, length: int) -> int:
    torch.set_num_threads(1)
    status = 0
    try:
        run(checks, seed=seed, length=length)
    except LawError as error:
        print(error, file=sys.stderr, flush=True)
        status = 1
    print(json.dumps(COUNTS.as_data()))
    return status


if __name__ == "__main__":
    sys.exit(main())

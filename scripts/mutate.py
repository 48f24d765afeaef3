"""Mutation testing: break the surgery code in named ways and see that the default tests notice every one.

Each fault replaces one short text of one file by another. `python scripts/mutate.py` applies them one at a time in
copies of the committed tree, runs the test that noticed it last time, then those that should notice and the other
default tests only where none has, and writes docs/mutation.md. A fault whose text is not found exactly once stops it
before anything is run: the code has changed, and the fault must be written anew. The faults are in scripts/faults.py.

    python scripts/mutate.py                      every fault, two at a time, and the page
    python scripts/mutate.py --log runs/faults    the same, and outcomes that are in the file already are taken from it
    python scripts/mutate.py --only kron_transposed newborn_ids_reused
    python scripts/mutate.py --working            of the working tree, with what is not committed
    python scripts/mutate.py --check              only whether every text is found
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "mutation.md"
REST = (
    "tests/ir",
    "tests/edit",
    "tests/runtime",
    "tests/testing",
    "tests/rules",
    "tests/probes",
    "tests/study",
    "tests",
)
SKIPPED = (".venv", ".git", "__pycache__", "*.so", "typed", "site", "runs", "build", "dist", ".hypothesis", ".*_cache",
           "*.egg-info")  # fmt: skip

ENDLESS = "a test did not end"
"""What is said of a fault under which a test goes on for ever."""

HEAD = """\
<!-- Written by scripts/mutate.py; edit scripts/faults.py, then run the script. -->

# Mutation testing

Tests that pass say little unless they can fail. `make mutate` breaks the code that edits networks in named ways, one
at a time, in copies of the committed tree. On each it runs the tests that should notice, and all other default tests
(`make test`) where those did not: every fault must make a test fail.

Tests that draw random examples draw ten here, the same ones at every run and a third of what `make test` draws, so that
a fault which only a rare example shows would survive. What fails under a fault must pass without it. A fault is a text
that occurs once in its file and what takes its place; all of them are in `scripts/faults.py`.

"""


@dataclass(frozen=True)
class Outcome:
    """What the tests made of one fault; ``digest`` is that of the fault as it was then."""

    name: str
    digest: str
    killed_by: str | None
    seconds: float


def digest_of(fault: Fault) -> str:
    """What tells a fault from what it was before it was edited."""
    return hashlib.sha256("\0".join((fault.file, fault.old, fault.new)).encode()).hexdigest()[:16]


def problems(faults: Sequence[Fault], root: Path) -> list[str]:
    """Faults whose text is not found exactly once, tests that are not there, and names that are used twice."""
    found = []
    for fault in faults:
        count = (root / fault.file).read_text().count(fault.old)
        if count != 1:
            found.append(f"{fault.name}: its text occurs {count} times in {fault.file}: {fault.old!r}")
        for test in fault.tests:
            path, _, function = test.partition("::")
            file = root / path
            if not file.exists() or f"def {function.partition('[')[0]}" not in file.read_text():
                found.append(f"{fault.name}: there is no {test}")
    names = [fault.name for fault in faults]
    return found + [f"{name}: named twice" for name in sorted({name for name in names if names.count(name) > 1})]


def copy_tree(target: Path, *, working: bool) -> None:
    """A copy of the committed tree, or the working one, linked so that `graphnet` is imported from it."""
    if working:
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*SKIPPED), dirs_exist_ok=True)
    else:
        archive = subprocess.run(["git", "archive", "HEAD"], check=True, cwd=ROOT, capture_output=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(target, filter="data")
    subprocess.run([sys.executable, str(target / "scripts" / "link_source.py")], check=True, cwd=target)
    compiled = (
        "typed/graphnet",
        "graphnet",
        "schemas",
        "compilers",
    )  # by hash: a broken file may be as old and as long
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", *compiled]
    subprocess.run(command, check=True, cwd=target)


class Worker:
    """A copy of the tree, and the process whose forks run tests in it."""

    def __init__(self, tree: Path, *, working: bool) -> None:
        tree.mkdir()
        copy_tree(tree, working=working)
        environment = os.environ | {
            "PYTHONPATH": str(tree / "typed"), "HYPOTHESIS_PROFILE": "few", "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0",
        }  # fmt: skip
        self.tree = tree
        self._runner = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forked_tests.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tree, env=environment,
        )  # fmt: skip

    def test(self, tests: Sequence[str]) -> str | None:
        """The test that failed; None where all passed.

        Hypothesis draws the same few examples at every run, a third of what `make test` draws.
        """
        assert self._runner.stdin is not None
        assert self._runner.stdout is not None
        options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--no-header", *tests]
        self._runner.stdin.write(json.dumps(options) + "\n")
        self._runner.stdin.flush()
        answer = json.loads(self._runner.stdout.readline())
        status, output = answer["status"], answer["output"]
        if status == 0 or (status == 4 and "not found" in output):  # a test that noticed before may have gone
            return None
        if status == -14:
            return ENDLESS
        lines = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        if status not in (1, 2) or not lines:
            raise SystemExit(f"pytest did not run (exit status {status}):\n{output[-3000:]}")
        return str(lines[0].removeprefix("FAILED ").removeprefix("ERROR ").partition(" - ")[0])

    def attempt(self, fault: Fault, *, narrow: bool, before: str | None = None) -> Outcome:
        """Break the tree, run the tests, the one that noticed before first, and mend it again."""
        path, started = self.tree / fault.file, time.perf_counter()
        whole = path.read_text()
        path.write_text(whole.replace(fault.old, fault.new))
        try:
            killed = None if before is None else self.test([before])
            if killed is None:
                killed = self.test(fault.tests)
            if killed is None and not narrow:
                killed = self.test(REST)
        finally:
            path.write_text(whole)
        return Outcome(fault.name, digest_of(fault), killed, time.perf_counter() - started)

    def close(self) -> None:
        """End the process."""
        self._runner.kill()
        self._runner.wait()


def try_all(
    faults: Sequence[Fault],
    workers: int,
    note: Callable[[Outcome], None],
    *,
    working: bool,
    narrow: bool,
    earlier: Sequence[Outcome] = (),
) -> None:
    """Every fault, several at a time, each worker in a copy of its own; ``note`` hears of each outcome.

    A test that also fails where nothing is broken has noticed nothing: neither now nor earlier.
    """
    with tempfile.TemporaryDirectory(prefix="graphnet-mutants-") as folder:
        free: SimpleQueue[Worker] = SimpleQueue()
        made = [Worker(Path(folder) / str(number), working=working) for number in range(workers)]
        try:
            for worker in made:
                free.put(worker)
            if wrong := problems(faults, made[0].tree):
                raise SystemExit("\n".join(wrong))
            noticed: dict[str, list[Outcome]] = {}
            before = last_time(PAGE.read_text()) if PAGE.exists() else {}

            def by_test(outcome: Outcome) -> None:
                if outcome.killed_by is not None and outcome.killed_by != ENDLESS:
                    noticed.setdefault(outcome.killed_by, []).append(outcome)

            for outcome in earlier:
                by_test(outcome)

            def one(fault: Fault) -> None:
                worker = free.get()
                try:
                    outcome = worker.attempt(fault, narrow=narrow, before=before.get(fault.name))
                finally:
                    free.put(worker)
                word = f"killed by {outcome.killed_by}" if outcome.killed_by else "SURVIVED"
                print(f"{outcome.seconds:6.1f} s  {fault.name}: {word}", flush=True)
                note(outcome)
                by_test(outcome)

            with ThreadPoolExecutor(workers) as pool:
                for _ in pool.map(one, faults):
                    pass
            for file in sorted({test.partition("::")[0] for test in noticed}):
                while mine := sorted(test for test in noticed if test.partition("::")[0] == file):
                    failing = made[0].test(mine)
                    if failing is None:
                        break
                    print(f"{failing} fails where nothing is broken", file=sys.stderr)
                    if failing not in noticed:
                        raise SystemExit(f"what noticed faults in {file} cannot be checked")
                    for outcome in noticed.pop(failing):
                        note(replace(outcome, killed_by=None))
        finally:
            for worker in made:
                worker.close()


def page(outcomes: Sequence[Outcome]) -> str:
    """The page of the documentation."""
    by_name = {outcome.name: outcome for outcome in outcomes}
    killed = sum(outcome.killed_by is not None for outcome in outcomes)
    lines = [HEAD + f"{killed} of {len(outcomes)} faults are noticed.", ""]
    lines += ["| fault | file | what is wrong | first test that fails |", "|---|---|---|---|"]
    for fault in FAULTS:
        if (outcome := by_name.get(fault.name)) is not None:
            test = f"`{outcome.killed_by.removeprefix('tests/')}`" if outcome.killed_by else "**none**"
            test = test.replace("|", "\\|")
            what = fault.what.replace("*", "\\*")
            lines.append(f"| `{fault.name}` | `{fault.file}` | {what} | {test} |")
    return "\n".join(lines) + "\n"


def last_time(page: str) -> dict[str, str]:
    """The test that noticed each fault, as the page has it."""
    found = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[0].startswith("`") and cells[3].startswith("`"):
            found[cells[0].strip("`")] = f"tests/{cells[3].strip('`')}".replace("\\|", "|")
    return found


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of faults; the page is not written")
    parser.add_argument("--check", action="store_true", help="only whether every text is found exactly once")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--working", action="store_true", help="copy the working tree, not the committed one")
    parser.add_argument("--narrow", action="store_true", help="run no other tests than those named with a fault")
    parser.add_argument("--log", type=Path, help="a JSON file of outcomes, taken up where it ends")
    given = parser.parse_args()
    if given.check:
        wrong = problems(FAULTS, ROOT)
        print("\n".join(wrong) if wrong else f"{len(FAULTS)} faults, every text found once")
        return 2 if wrong else 0
    chosen = [fault for fault in FAULTS if given.only is None or fault.name in given.only]
    if given.only is not None and (unknown := set(given.only) - {fault.name for fault in chosen}):
        print(f"there are no faults {sorted(unknown)}", file=sys.stderr)
        return 2
    digests = {fault.name: digest_of(fault) for fault in FAULTS}
    held = json.loads(given.log.read_text()) if given.log is not None and given.log.exists() else []
    done = {entry["name"]: Outcome(**entry) for entry in held if digests.get(entry["name"]) == entry["digest"]}
    done = {name: outcome for name, outcome in done.items() if outcome.killed_by is not None}
    lock = Lock()

    def note(outcome: Outcome) -> None:
        with lock:
            done[outcome.name] = outcome
            if given.log is not None:
                given.log.parent.mkdir(parents=True, exist_ok=True)
                given.log.write_text(json.dumps([asdict(one) for one in done.values()], indent=1))

    started = time.perf_counter()
    open_ = [fault for fault in chosen if fault.name not in done]
    earlier = list(done.values()) if given.only is None else []
    if open_ or earlier:
        try_all(open_, given.workers, note, working=given.working, narrow=given.narrow, earlier=earlier)
    outcomes = [done[fault.name] for fault in chosen]
    survivors = [outcome.name for outcome in outcomes if outcome.killed_by is None]
    print(
        f"{len(outcomes) - len(survivors)} of {len(outcomes)} killed in {time.perf_counter() - started:.0f} s"
        + (f"; survived: {survivors}" if survivors else "")
    )
    if given.only is None and not given.narrow:
        PAGE.write_text(page(outcomes))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())

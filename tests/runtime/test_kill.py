"""SIGKILL at random moments: what is resumed is the last whole checkpoint, and goes on bit for bit.

``scripts/kill.py`` trains, edits, saves, kills and compares; it counts what the kills hit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "kill.py"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def killed(kills: int, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", str(kills), "--json", "-", *options],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout, done.stderr
    counts: dict[str, Any] = json.loads(done.stdout)
    assert counts["wrong"] == []
    assert done.returncode == 0, done.stderr
    assert counts["kills"] == kills
    return counts


def test_killed_at_random_moments_a_run_goes_on_bit_for_bit() -> None:
    counts = killed(10, "--kinds", "1", "--ticks", "44")
    assert counts["resumes compared bit for bit"] >= 3
    assert counts["kills during save"] >= 3
    assert counts["runs that ended"] >= 1


@pytest.mark.slow
def test_killed_two_hundred_times() -> None:
    """Three kinds of run; half of the kills fall into a save on purpose."""
    counts = killed(200)
    assert counts["resumes compared bit for bit"] >= 100
    assert counts["kills during save"] >= 80
    assert counts["half-written files left, each refused"] >= 20
    assert counts["saves that were killed, the one before stands"] >= 20
    assert counts["saves that were killed and had been renamed"] >= 1

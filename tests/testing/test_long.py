"""The long run: it counts, it prints, and it stops at what is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import strategies as st

import graphnet as gn
from graphnet.edit.plan import Plan, Step
from graphnet.testing import COUNTS, EDITS, Counts, EditCall, LawError, edit_strategy
from graphnet.testing import long as module
from graphnet.testing.long_page import LongRun, page


def test_it_prints_checks_by_law_and_operator(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "graphnet.testing.long", "--checks", "150", "--workers", "1", "--length", "6"]
    command += ["--page", str(tmp_path / "page.md")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    total = re.search(r"([\d,]+) checks in \d+ s on 1 workers, 0 of them failed", run.stdout)
    assert total is not None
    assert int(total[1].replace(",", "")) >= 150
    assert re.search(r"^grow +\d+ +\d+ +\d+$", run.stdout, re.MULTILINE)
    assert re.search(r"^lowering +\d+$", run.stdout, re.MULTILINE)
    text = (tmp_path / "page.md").read_text()
    assert f"**{total[1]} checks, no violation**" in text
    assert re.search(r"^\| `grow` \| [\d,]+ \| [\d,]+ \| [\d,]+ \|$", text, re.MULTILINE)


def test_the_tables_say_what_was_counted() -> None:
    counts = Counts()
    step = Step("grow", "fc1", {"init": "kaiming", "count": 2})
    counts.committed([step, step, Step("permute", "fc1", {})])
    counts.held("valid", ["grow", "permute"])
    counts.held("naturality")
    counts.lives.update([0, 1, 5, 6, 30])
    text = page(LongRun(counts, 61.0, 2, 7, 30, 0))
    assert "**2 checks, no violation**, in 1 minutes on 2 processes (seed 7," in text
    assert "| `grow` | 1 | 0 | 1 |" in text  # an edit of two growths is one edit
    assert "| `grow` | init=kaiming 2 |" in text
    assert re.findall(r"^\| (none|\d+ to \d+) \| (\d) \|$", text, re.MULTILINE) == [
        ("none", "1"), ("1 to 5", "2"), ("6 to 10", "1"), ("26 to 30", "1"),
    ]  # fmt: skip


def test_an_operator_that_was_never_committed_fails_a_run_of_many_checks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    counts = Counts()
    counts.laws["valid"] = 20_000
    counts.edits.update(dict.fromkeys(EDITS, 5))
    monkeypatch.setattr(module, "_gather", lambda *arguments: (counts, 0))
    assert module.main(["--checks", "20000"]) == 0
    del counts.edits["tie"]
    assert module.main(["--checks", "100"]) == 0
    assert module.main(["--checks", "20000"]) == 1
    assert "no edit of tie was committed" in capsys.readouterr().out
    assert module.main(["--checks", "20001", "--page", str(tmp_path / "page.md")]) == 1  # fewer than were asked for
    assert (tmp_path / "page.md").exists()
    monkeypatch.setattr(module, "_gather", lambda *arguments: (counts, 1))
    (tmp_path / "page.md").unlink()
    assert module.main(["--checks", "100", "--page", str(tmp_path / "page.md")]) == 1
    assert not (tmp_path / "page.md").exists()  # of a run that found a violation there is no page


def test_a_worker_reports_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    COUNTS.clear()
    assert module.main(["--as-worker", "--checks", "20", "--length", "2"]) == 0
    counts = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert sum(count for _, count in counts["laws"]) >= 20
    assert Counts.from_data(counts) == COUNTS


def test_what_is_wrong_stops_it(capsys: pytest.CaptureFixture[str]) -> None:
    def lie(plan: Plan) -> None:
        for name in plan.graph.tensors:
            value = plan.value(name)
            if value.is_floating_point():
                plan.staged(name).write([None] * value.dim(), value * 1.5 + 0.1)
        plan.steps.append(Step("lie", None, {}, preserves="function"))

    @edit_strategy("lie")
    def _lie(draw: st.DrawFn, graph: gn.Graph) -> EditCall | None:
        return EditCall("lie", incumbents=False)

    gn.Edit.lie = lambda edit: edit.apply(lie)  # type: ignore[attr-defined]
    try:
        with pytest.raises(LawError, match="lie says preserves='function', but the function"):
            module.run(100_000, length=4)
    finally:
        del EDITS["lie"]
        del gn.Edit.lie  # type: ignore[attr-defined]

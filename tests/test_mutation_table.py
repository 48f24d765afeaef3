"""The faults of mutation testing can be applied, and the page about them lists each with a test that notices it."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def mutate(root: Path) -> ModuleType:
    """The script, with the faults that it imports."""
    loaded = None
    for name in ("faults", "mutate"):
        spec = importlib.util.spec_from_file_location(name, root / "scripts" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    assert loaded is not None
    return loaded


def test_every_fault_can_be_applied(mutate: ModuleType, root: Path) -> None:
    """Its text stands once in its file, its tests are there, and what comes of it is another program."""
    assert mutate.problems(mutate.FAULTS, root) == []
    whole = {file: (root / file).read_text() for file in {fault.file for fault in mutate.FAULTS}}
    trees = {file: ast.dump(ast.parse(text)) for file, text in whole.items()}
    for fault in mutate.FAULTS:
        broken = ast.parse(whole[fault.file].replace(fault.old, fault.new))  # a fault that is no Python is none
        assert ast.dump(broken) != trees[fault.file], fault.name
        assert fault.file.startswith(("graphnet/", "compilers/"))


def test_what_is_wrong_with_a_fault_is_named(mutate: ModuleType, root: Path) -> None:
    one = mutate.FAULTS[0]
    gone = mutate.Fault(one.name, one.file, "", "this text stands nowhere", "", ("tests/test_mutation_table.py::no",))
    said = [line.removeprefix(f"{one.name}: ") for line in mutate.problems([one, gone], root)]
    assert [text.partition(":")[0].split()[0] for text in said] == ["its", "there", "named"], said


def test_the_page_lists_every_fault_with_the_test_that_notices(mutate: ModuleType, root: Path) -> None:
    page = (root / "docs" / "mutation.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| (.+) \| `(.+)` \|$", page, re.M)
    found = [(name, file, what.replace("\\*", "*")) for name, file, what, _ in rows]
    assert found == [(fault.name, fault.file, fault.what) for fault in mutate.FAULTS], "run: make mutate"
    assert len(found) >= 60
    assert f"{len(found)} of {len(found)} faults are noticed." in page


@pytest.mark.slow
def test_a_fault_that_nothing_notices_is_said_to_survive(
    mutate: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, old = "graphnet/edit/slices.py", ".reshape(plan.graph.sizes[group], per)"
    tests = ("tests/edit/test_slices.py",)
    seen = mutate.Fault("seen", file, "", old, ".reshape(per, plan.graph.sizes[group]).T", tests)
    unseen = mutate.Fault("unseen", file, "", old, ".reshape(plan.graph.sizes[group], -1)", tests)
    monkeypatch.setattr(mutate, "FAULTS", (seen, unseen))
    monkeypatch.setattr(sys, "argv", ["mutate.py", "--narrow", "--workers", "1", "--working"])
    assert mutate.main() == 1
    assert "1 of 2 killed" in capsys.readouterr().out

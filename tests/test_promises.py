"""The table of what a training loop can rely on names tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def test_every_test_that_the_page_names_is_there() -> None:
    rows = [line for line in (ROOT / "docs" / "training.md").read_text().splitlines() if line.startswith("| ")]
    named = [pair for row in rows for pair in NAMED.findall(row)]
    assert len(named) >= 25
    for file, name in named:
        tree = ast.parse((ROOT / "tests" / "runtime" / file).read_text())
        assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body), f"{file}::{name}"

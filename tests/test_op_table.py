"""The page of ops says what the op registry says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from graphnet.ir.ops import OPS


@pytest.fixture(scope="module")
def table(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("op_table", root / "scripts" / "op_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(table: ModuleType, op: str) -> str:
    return next(line for line in table.render().splitlines() if line.startswith(f"| `{op}` |"))


def test_the_page_is_current(table: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["--check"]) == 0, f"{capsys.readouterr().out}run: {sys.executable} scripts/op_table.py"


def test_a_page_that_is_out_of_date_is_found_and_written(
    table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "PAGE", tmp_path / "ops.md")
    assert table.main(["--check"]) == 1
    assert not table.PAGE.exists()
    assert table.main([]) == 0
    table.PAGE.write_text(table.PAGE.read_text().replace("`relu`", "`rectify`"))
    assert table.main(["--check"]) == 1


def test_every_op_of_the_package_has_one_row(table: ModuleType) -> None:
    """Ops that tests register are not the package's."""
    own = [name for name, cls in OPS.items() if cls.__module__.startswith("graphnet.")]
    rows = re.findall(r"^\| `(\w+)` \|", table.render(), re.MULTILINE)
    assert sorted(rows) == sorted(own)


@pytest.mark.parametrize(
    ("op", "said"),
    [
        ("linear", ["`out`", "`bias: true`", "`tied: null`", "| counted |"]),
        ("layer_norm", ["couples: layer norm takes mean and variance along it", "| no | none |"]),
        ("conv2d", ["freezes: a convolution slides along it"]),  # said by a method that the rule calls
        ("add", ["freezes: its one unit is broadcast"]),  # said by a function that the rule calls
        ("attention", ["contracts: queries and keys are multiplied along it", "freezes: a causal mask"]),
        ("sigmoid", ["| no | none |"]),
        ("relu", ["|  | yes | none |"]),
    ],
)
def test_a_row_says_what_the_class_does(table: ModuleType, op: str, said: list[str]) -> None:
    missing = [part for part in said if part not in row(table, op)]
    assert not missing, row(table, op)

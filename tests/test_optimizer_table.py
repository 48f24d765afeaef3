"""The table of optimizers says what a run of its measurements gives."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.optim import Optimizer


@pytest.fixture(scope="module")
def table(root: Path) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("optimizer_table", root / "scripts" / "optimizer_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    torch.set_default_dtype(torch.float64)
    yield module
    torch.set_default_dtype(torch.float32)
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def page(table: ModuleType) -> dict[str, Any]:
    return {row.optimizer: row for row in table.parsed(table.PAGE.read_text())}


def test_every_optimizer_of_torch_has_a_row(table: ModuleType, page: dict[str, Any]) -> None:
    classes = {n for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, Optimizer)}
    assert {name.partition(",")[0] for name in page} == classes - {"Optimizer"}
    assert list(page) == list(table.CASES)


ELEMENTWISE = (
    "SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Rprop", "ASGD",
)  # fmt: skip
NAMES = (
    *ELEMENTWISE, "SparseAdam", *(f"{name}, foreach" for name in ELEMENTWISE), "SGD, two groups", "AdamW, two groups",
    "SGD, fused", "Adam, fused", "AdamW, fused", "Adagrad, fused", "Adafactor", "Muon", "LBFGS",
)  # fmt: skip


def test_every_kernel_of_torch_has_a_row(page: dict[str, Any]) -> None:
    """A class of torch that takes `fused` or `foreach` stands in the table with it."""
    assert set(page) == set(NAMES)
    for name in {name.partition(",")[0] for name in page}:
        taken = set(inspect.signature(getattr(torch.optim, name)).parameters) & {"fused", "foreach"}
        if name not in ("Adafactor", "Muon"):  # whose updates mix units whatever the kernel
            assert {f"{name}, {kernel}" for kernel in taken} <= set(page)


@pytest.mark.parametrize("name", NAMES)
def test_the_verdicts_on_the_page_are_those_of_a_run(table: ModuleType, page: dict[str, Any], name: str) -> None:
    assert table.measure(name).verdicts() == page[name].verdicts(), f"run: {sys.executable} scripts/optimizer_table.py"


def test_the_verdicts_are_what_the_package_promises(page: dict[str, Any]) -> None:
    """Elementwise: bit for bit, and whole runs within 1e-10; the three that mix units say so."""
    mixing = {"Adafactor", "Muon", "LBFGS"}
    for name, row in page.items():
        if name not in mixing:
            assert row.state == "bit for bit"
            assert row.update == ("to 1 ulp" if "fused" in name else "bit for bit")
            assert row.run == "within 1e-10"
            assert float(row.drift) <= 1e-10
        else:
            assert row.update in ("approximate", "of a fresh start")
    assert page["Adam"].first == "1, 3.16, 1"


def test_a_page_that_differs_is_found_and_written(
    table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a table of two rows, so that it is quick."""
    monkeypatch.setattr(table, "CASES", {name: table.CASES[name] for name in ("SGD", "Rprop")})
    monkeypatch.setattr(table, "PAGE", tmp_path / "optimizers.md")
    table.PAGE.write_text(f"before\n{table.render([])}\nafter\n")
    assert table.main(["--check"]) == 1
    assert table.main([]) == 0
    assert table.main(["--check"]) == 0
    text = table.PAGE.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    sgd, rprop = table.parsed(text)
    wrong = replace(rprop, newborn=rprop.newborn.replace("`lr`", "0"))
    table.PAGE.write_text(text.replace(table.line(rprop), table.line(wrong)))
    assert table.main(["--check"]) == 1
    number = replace(sgd, measured="1e-3")  # a measured number may differ from machine to machine
    table.PAGE.write_text(text.replace(table.line(sgd), table.line(number)))
    assert table.main(["--check"]) == 0
    torch.set_default_dtype(torch.float64)

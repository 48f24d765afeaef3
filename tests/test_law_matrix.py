"""The law matrix: what initialisers and operators claim on each kind of layers holds, and the page says so."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import graphnet as gn
from graphnet.edit.initialisers import INITIALISERS
from graphnet.edit.operators.replace import REPLACEMENTS
from graphnet.edit.scores import SCORES
from graphnet.edit.splitters import SPLITTERS
from graphnet.testing import EDITS
from graphnet.testing import law_matrix as laws
from graphnet.testing import law_structure as structure

OWN = tuple(laws.OPERATORS), tuple(laws.CASES)
"""Those of the package; pages and tests register more."""

SOME = ("linear", "conv → flatten → linear", "residual stream of a transformer (layer)", "output", "tied embedding")
STRUCTURAL = ("linear (batch)", "conv → conv", "tied embedding")


def tried_by_default(name: str, case: str) -> bool:
    """Whether the default run has a cell: what takes longer is tried on some cases only."""
    family = laws.OPERATORS[name].family
    if family == "Pruning one unit by its score":
        return case == "linear"
    if family in (structure.NEW, structure.FEWER, structure.WIRES, structure.OTHER, structure.VALUES):
        return case in STRUCTURAL
    quick = ("grow kaiming", "grow copy-std", "split net2wider", "merge duplicates", "permute")
    if name in quick or family == "Growth for one place" or name.endswith("without outgoing weights"):
        return True
    return case in SOME


VERDICTS = {
    "linear": "eeeeec", "linear (batch)": "ereeee", "linear (layer)": "ccccrc", "linear, ReLU": "ereeec",
    "linear, sigmoid": "eceeec", "linear, norm after the consumer": "eeeeee", "gated linear": "eeeerc",
    "conv → conv": "eeeeec", "conv → conv (batch)": "ereeee", "conv → flatten → linear": "eeeeec",
    "conv → conv (group, inside)": "ccccrc", "linear → reshape → conv": "eeeeec", "concat": "eeeeec",
    "depthwise conv": "eeeerc", "residual stream (batch)": "ereerc", "residual stream, reads itself": "eeeerc",
    "residual stream of a transformer (layer)": "ccccrc", "attention, heads": "eeeerc",
    "attention, key features": "ceccrc", "attention, value features": "eeeerc",
    "transformer, hidden layer": "eeeeec", "attention, shared key-value heads": "eeeerc", "output": "ccccrc",
    "tied embedding": "rrrrrr",
}  # fmt: skip
"""Exact, changes or refused, for each exact initialiser in the order below: what must stay true."""

EXACT = ("zero-outgoing", "zero-incoming", "pair-cancel", "net2wider", "gradmax", "variance-transfer")


@pytest.fixture(scope="module")
def script(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("law_matrix", root / "scripts" / "law_matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", sorted(VERDICTS))
def test_initialisers_that_can_be_exact(case: str) -> None:
    rows = laws.law_matrix(operators=[f"grow {init}" for init in EXACT], cases=[case], promises=case in SOME)
    assert "".join(row.verdict[0] for row in rows) == VERDICTS[case], [(row.operator, row.reason) for row in rows]


@pytest.mark.parametrize("case", OWN[1])
def test_claims_hold_and_the_page_says_what_is_measured(script: ModuleType, case: str) -> None:
    operators = [n for n in OWN[0] if tried_by_default(n, case) and n.removeprefix("grow ") not in EXACT]
    rows = laws.law_matrix(operators=operators, cases=[case], promises=case in (*SOME, *STRUCTURAL))
    assert len(rows) == sum(has_meaning(name, case) for name in operators)
    assert not script.differences(rows, script.PAGE.read_text(encoding="utf-8")), "run scripts/law_matrix.py"


def has_meaning(name: str, case: str) -> bool:
    applies = laws.OPERATORS[name].applies
    return applies is None or applies(laws.CASES[case])


@pytest.mark.slow
def test_the_whole_matrix(script: ModuleType) -> None:
    rows = laws.law_matrix(operators=OWN[0], cases=OWN[1])
    assert len(rows) == sum(has_meaning(name, case) for name in OWN[0] for case in OWN[1])
    text = script.PAGE.read_text(encoding="utf-8")
    assert not script.differences(rows, text)
    assert script.verdicts(script.render(rows)) == script.verdicts(text)


def test_every_operator_initialiser_splitter_score_and_replacement_is_in_the_matrix() -> None:
    assert {name.split(" ")[0].strip(",") for name in OWN[0]} == set(EDITS)
    for registry, stem in ((INITIALISERS, "grow "), (SCORES, "prune by "), (SPLITTERS, "split ")):
        own = {name for name in registry if registry.get(name).__module__.startswith("graphnet.")}
        assert own <= {name.removeprefix(stem) for name in OWN[0] if name.startswith(stem)}
    said = " ".join(OWN[0])
    assert all(kind in said for kind in REPLACEMENTS)


def test_every_case_names_every_operator_that_has_a_meaning_for_it(script: ModuleType) -> None:
    stated = script.verdicts(script.PAGE.read_text(encoding="utf-8"))
    cases = {(case.name, case.norm): key for key, case in laws.CASES.items() if key in OWN[1]}
    wanted = {
        (*at, name.removeprefix("grow ")) for at, key in cases.items() for name in OWN[0] if has_meaning(name, key)
    }
    assert set(stated) == wanted, "run scripts/law_matrix.py"


# -- the matrix itself finds what is wrong ------------------------------------------------------------------------


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    """Add an operator for one test."""
    added: list[str] = []

    def add(name: str, apply: Callable[..., Any], **options: Any) -> None:
        laws.operator(name, "test", **options)(apply)
        added.append(name)

    yield add
    for name in added:
        del laws.OPERATORS[name]


def test_a_false_claim_is_found(register: Callable[..., None]) -> None:
    def lie(edit: gn.Edit, on: laws.Case, data: Any, **promise: Any) -> None:
        edit.grow(on.group, 2, init="kaiming")
        edit.plan.steps[-1] = replace(edit.plan.steps[-1], preserves="function", note="")

    register("lie", lie)
    with pytest.raises(AssertionError, match="claims the function, and the output changes by"):
        laws.law_matrix(operators=["lie"], cases=["linear"])


def test_a_promise_that_is_not_looked_at_is_found(register: Callable[..., None]) -> None:
    def deaf(edit: gn.Edit, on: laws.Case, data: Any, **promise: Any) -> None:
        edit.grow(on.group, 2, init="kaiming")

    def stubborn(edit: gn.Edit, on: laws.Case, data: Any, **promise: Any) -> None:
        if promise:
            raise gn.EditError("no promises")
        edit.grow(on.group, 2)

    register("deaf", deaf)
    register("stubborn", stubborn)
    with pytest.raises(AssertionError, match="taken where it is not claimed"):
        laws.law_matrix(operators=["deaf"], cases=["linear"])
    with pytest.raises(AssertionError, match="refused where it holds"):
        laws.law_matrix(operators=["stubborn"], cases=["linear"])


def test_a_page_that_is_wrong_is_found(script: ModuleType) -> None:
    rows = laws.law_matrix(operators=["grow zero-outgoing", "grow kaiming"], cases=["linear", "output"])
    page = script.render(rows)
    assert script.verdicts(page) == {
        ("linear", "–", "zero-outgoing"): "exact", ("output", "–", "zero-outgoing"): "changes",
        ("linear", "–", "kaiming"): "changes", ("output", "–", "kaiming"): "changes",
    }  # fmt: skip
    assert page.endswith("1. … is read by a model output\n2. random outgoing weights add to the consumers")
    assert not script.differences(rows, page)
    assert len(script.differences(rows, page.replace("exact", "refused"))) == 1
    assert len(script.differences(rows, "")) == 4

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, Field

from graphnet.errors import SchemaError
from graphnet.schemas.base import (
    Cosine,
    Exponential,
    Frozen,
    Linear,
    Scalar,
    Steps,
    check_version,
    dump_yaml,
    parse,
    parse_text,
    problem,
    read_document,
    to_data,
    write_document,
)


class Leaf(Frozen):
    kind: Literal["leaf"] = "leaf"
    size: int
    rate: float = 1.0
    on: bool = False
    shape: tuple[int, ...] = ()
    amount: Scalar | None = None
    missing: float | None = Field(default=None, allow_inf_nan=True)


class Branch(Frozen):
    kind: Literal["branch"] = "branch"
    branch: str = "x"
    of: tuple[Tree, ...] = ()
    named: dict[str, Tree] = Field(default_factory=dict)


Tree = Annotated[Leaf | Branch, Field(discriminator="kind")]
Branch.model_rebuild()


def message(data: Any, model: Any = Branch) -> str:
    with pytest.raises(SchemaError) as caught:
        parse(model, data, source="net.yaml")
    return str(caught.value)


def text_message(text: str, source: str = "net.yaml") -> str:
    with pytest.raises(SchemaError) as caught:
        parse_text(text, source)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("size", "8", "at size: found '8'; expected an integer"),
        ("size", True, "at size: found true; expected an integer"),
        ("size", 8.0, "at size: found 8.0; expected an integer"),
        ("rate", "0.5", "at rate: found '0.5'; expected a number"),
        ("rate", False, "at rate: found false; expected a number"),
        ("rate", math.nan, "at rate: found nan; expected a finite number"),
        ("rate", math.inf, "at rate: found inf; expected a finite number"),
        ("on", 1, "at on: found 1; expected true or false"),
        ("shape", [3, "x"], "at shape[1]: found 'x'; expected an integer"),
        ("shape", 3, "at shape: found 3; expected a list"),
        ("amount", "8", "at amount: found '8'; expected a number, or a schedule"),
        ("amount", True, "at amount: found true; expected a number, or a schedule"),
    ],
)
def test_sloppy_values_are_refused(field: str, value: object, line: str) -> None:
    assert line in message({"size": 1, field: value}, Leaf)


def test_natural_values_are_taken() -> None:
    leaf = parse(Leaf, {"size": 8, "rate": 1, "shape": [1, 2], "missing": math.nan})
    assert (leaf.size, leaf.rate, leaf.shape) == (8, 1.0, (1, 2))
    assert leaf.missing is not None
    assert math.isnan(leaf.missing)


def test_every_problem_is_listed_with_its_path() -> None:
    text = message(
        {
            "of": [
                {"kind": "leaf", "size": 1},
                {"kind": "branch", "named": {"a b": {"kind": "leaf", "sice": 2}}},
            ]
        }
    )
    assert text.splitlines() == [
        "net.yaml: 2 problems",
        "  at of[1].named['a b'].size: found nothing; expected this required key",
        "  at of[1].named['a b'].sice: found an unknown key; expected one of amount, kind, missing, on, "
        "rate, shape, size; did you mean 'size'?",
    ]


def test_a_key_named_like_its_union_tag_keeps_its_path() -> None:
    assert "at of[0].branch: found 3; expected text" in message({"of": [{"kind": "branch", "branch": 3}]})


def test_a_misspelt_kind_gets_a_suggestion() -> None:
    assert "at of[0].kind: found 'laef'; expected one of branch, leaf; did you mean 'leaf'?" in message(
        {"of": [{"kind": "laef"}]}
    )
    assert "at of[0].kind: found nothing; expected one of branch, leaf" in message({"of": [{}]})


def test_building_in_python_fails_with_the_same_error() -> None:
    with pytest.raises(SchemaError, match=r"Leaf: 1 problem\n  at size: found 'x'; expected an integer"):
        Leaf(size="x")  # type: ignore[arg-type]


def test_a_validator_can_point_below_itself() -> None:
    assert problem("wrong", "of", 1).context == {"text": "wrong", "at": ["of", 1]}
    line = "at amount.values: found 1; expected one more than boundaries, 2"
    assert line in message({"size": 1, "amount": {"kind": "steps", "values": [1], "boundaries": [5]}}, Leaf)


def test_a_long_list_of_problems_is_cut() -> None:
    assert message({"of": [{"kind": "leaf"}] * 50}).splitlines()[-1] == "  and 30 more"


def test_documents_that_contain_themselves_are_refused() -> None:
    loop: dict[str, Any] = {"kind": "branch"}
    loop["of"] = [loop]
    message(loop)
    with pytest.raises(SchemaError, match="more than 64 levels"):
        read_document(loop)


def test_a_validator_that_runs_out_of_depth_ends_in_the_one_error() -> None:
    """Models are the user's too: one that walks plain data by itself meets data deeper than Python's stack."""

    def walk(value: Any) -> Any:
        return [walk(item) for item in value]

    deep: list[Any] = []
    for _ in range(sys.getrecursionlimit()):
        deep = [deep]
    with pytest.raises(SchemaError, match=r"^net\.yaml: cannot be read as a document: maximum recursion depth"):
        parse(Annotated[Any, AfterValidator(walk)], deep, source="net.yaml")  # type: ignore[arg-type]


WRAPS: dict[str, Callable[[Any], Any]] = {
    "list": lambda inner: [inner],
    "tuple": lambda inner: (inner,),
    "mapping": lambda inner: {"a": inner},
    "key": lambda inner: {(inner,): 1} if isinstance(inner, (int, tuple)) else {"a": inner},
    "frozen set": lambda inner: frozenset([inner]),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("depth", [1_000, 20_000], ids=["at the limit", "far past it"])
@pytest.mark.parametrize(
    "place",
    [
        lambda value: parse(Leaf, {"kind": value, "size": 1}),  # one of a few texts
        lambda value: parse(Leaf, {"size": value}),
        lambda value: Leaf(size=value),
        lambda value: check_version({"kind": value}, "policy"),
        lambda value: check_version({"schema_version": value}, "policy"),
        lambda value: to_data({"kind": {value: 1}} if isinstance(value, tuple | frozenset) else {"kind": [value]}),
    ],
    ids=["choice", "field", "constructor", "kind", "version", "key"],
)
def test_a_value_deeper_than_the_stack_ends_in_the_one_error(
    place: Callable[[Any], Any], depth: int, wrap: Callable[[Any], Any]
) -> None:
    """Words for a value come from its text, and the text of such a value is more than Python can make."""
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    with pytest.raises(SchemaError) as caught:
        place(value)
    assert len(str(caught.value)) < 1_000


def test_a_value_that_is_no_text_is_no_misspelling() -> None:
    assert "did you mean 'leaf'?" in message({"kind": "lea", "size": 1}, Leaf)
    assert "at kind: found a list of 1; expected 'leaf'" in message({"kind": ["leaf"], "size": 1}, Leaf)
    assert "did you mean" not in message({"kind": ["leaf"], "size": 1}, Leaf)


def test_a_value_without_text_is_shown_by_its_type() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(SchemaError, match="at size: found a Shy that cannot be shown; expected an integer"):
        Leaf(size=Shy())  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Linear(start=8, end=0, steps=4), {-1: 8, 0: 8, 1: 6, 4: 0, 9: 0}),
        (Linear(start=0, end=1, steps=10, begin=5), {5: 0, 10: 0.5, 15: 1}),
        (Cosine(start=1, end=0, steps=4), {0: 1, 1: (1 + math.sqrt(0.5)) / 2, 2: 0.5, 4: 0, 5: 0}),
        (Exponential(start=1, end=0.01, steps=2), {0: 1, 1: 0.1, 2: 0.01, 3: 0.01}),
        (Steps(values=(3, 2, 1), boundaries=(10, 20)), {0: 3, 9: 3, 10: 2, 19: 2, 20: 1, 99: 1}),
    ],
)
def test_schedules(schedule: Any, values: dict[int, float]) -> None:
    assert {step: schedule.at(step) for step in values} == pytest.approx(values)
    low, high = schedule.bounds()
    assert (low, high) == pytest.approx((min(values.values()), max(values.values())))


def test_a_number_is_a_constant_schedule_and_is_written_as_the_number() -> None:
    leaf = parse(Leaf, {"size": 1, "amount": 8})
    assert leaf.amount is not None
    assert leaf.amount.at(123) == 8
    assert to_data(leaf)["amount"] == 8
    assert isinstance(to_data(leaf)["amount"], int)


def test_a_misspelt_schedule_gets_a_suggestion() -> None:
    assert "at amount.kind: found 'liner'; expected one of constant, cosine, exponential, linear, steps; did you" in (
        message({"size": 1, "amount": {"kind": "liner"}}, Leaf)
    )


# ---------------------------------------------------------------------------------------------------- text in


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E3", 1e3), ("5.0e+6", 5e6), (".5", 0.5), ("-1.", -1.0), ("+2", 2), ("010", 10),
        ("0x1F", 31), ("0o17", 15), ("-.inf", -math.inf), ("on", "on"), ("off", "off"), ("yes", "yes"),
        ("No", "No"), ("y", "y"), ("true", True), ("False", False), ("null", None), ("~", None), ("'1'", "1"),
        ('"true"', "true"), ("1_000", "1_000"), ("12:30", "12:30"), ("2020-01-01", "2020-01-01"),
        ("1e", "1e"),
    ],
)  # fmt: skip
def test_yaml_scalars_follow_version_1_2(text: str, value: object) -> None:
    found = parse_text(f"a: {text}")["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: found the key 'a' again; it is already on line 1"),
        ("a:\n  1: 2\n", "line 2, column 3: found the key 1; expected text (quote it: '1')"),
        ("true: 2\n", "line 1, column 1: found the key true; expected text"),
        ("a: !!python/object:os.system x\n", "line 1, column 4: found the tag"),
        ("a: !!int '3'\n", "line 1, column 4: found the tag"),
        ("a: &x [*x]\n", "line 1, column 8: found the alias *x inside itself"),
        ("a: *x\n", "line 1, column 4: found the alias *x with no anchor"),
        ("a: {<<: 3}\n", "line 1, column 5: found a merge key"),
        ("a: 1\n---\nb: 1\n", "line 2, column 1: found a second document"),
        ("a: [1,\nb\n", "not YAML"),
        ("a: b: c\n", "line 1, column 5: not YAML"),
        ("a: \x01\n", "line 1: not YAML"),
        ("", "line 1, column 1: found nothing; expected a mapping"),
        ("- a\n", "found a list of 1; expected a mapping"),
        ("just text\n", "found 'just text'; expected a mapping"),
        ("a: " + "[" * 65 + "]" * 65, "found more than 64 levels"),
        ("a: " + "[" * 100_000, "found more than 64 levels"),
        ("a: " + "9" * 5000, "found a number with too many digits"),
    ],
)
def test_bad_yaml_names_line_and_column(text: str, line: str) -> None:
    found = text_message(text)
    assert found.startswith("net.yaml: ")
    assert line in found


def test_aliases_are_read_but_a_bomb_is_refused() -> None:
    assert parse_text("a: &x [1, 2]\nb: *x\n") == {"a": [1, 2], "b": [1, 2]}
    levels = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "found more than 1000000 values, aliases expanded" in text_message("\n".join(levels))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' appears twice in one object"),
        ('{"a":\n }', "line 2, column 2: not JSON"),
        ("[1]", "found a list of 1; expected a mapping"),
        ('{"a":' * 70 + "1" + "}" * 70, "more than 64 levels deep"),
        ("[" * 100_000, "more than 64 levels deep"),
        ('{"a": ' + "9" * 5000 + "}", "4300 digits"),
    ],
)
def test_bad_json(text: str, line: str) -> None:
    assert line in text_message(text, "net.json")


def test_a_list_at_the_top_can_have_a_key() -> None:
    assert parse_text("- 1\n- 2\n", list_key="rules") == {"rules": [1, 2]}


def test_unreadable_files(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: caf\xe9\n")
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(16 * 2**20 + 1)
    (tmp_path / "folder.yaml").mkdir()
    for source, line in [
        (latin, "line 2, column 7: not UTF-8 text"),
        (large, "is over 16 MiB"),
        (tmp_path / "folder.yaml", "cannot be read"),
        (tmp_path / "none.yaml", "cannot be read: No such file"),
        (str(tmp_path / "net.toml"), "the name ends in '.toml'; expected .yaml, .yml or .json"),
        ("nul\0.yaml", "cannot be read"),
        ("kind: policy\nrules: []\n", "use parse_text"),
    ]:
        with pytest.raises(SchemaError) as caught:
            read_document(source)
        assert line in str(caught.value)


def test_versions_and_kinds() -> None:
    assert check_version({}, "policy") == 1
    assert check_version({"schema_version": 1, "kind": "policy"}, "policy") == 1
    with pytest.raises(SchemaError, match=r"at schema_version: found 2; .* upgrade graphnet"):
        check_version({"schema_version": 2}, "policy")
    for version in (0, "1", True, None, 1.0):
        with pytest.raises(SchemaError, match="at schema_version"):
            check_version({"schema_version": version}, "policy")
    with pytest.raises(SchemaError, match="at kind: found 'polcy'; expected 'policy'; did you mean 'policy'"):
        check_version({"kind": "polcy"}, "policy")


# --------------------------------------------------------------------------------------------------- text out

# A lone surrogate is no text; the writer refuses it, as a test below says.
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(
        ["on", "1e3", "0x1", "010", ".5", "~", "", "<<", "null", "a\nb\n", " a", "a: b", "- a", "#", "1_0"]
    ),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_yaml_reads_back_what_was_written(data: dict[str, Any]) -> None:
    found = parse_text(dump_yaml(data))
    assert found == data
    assert repr(found) == repr(data)  # 1 == 1.0 == True, but they are not the same document


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_any_text_gives_data_or_a_schema_error(text: str) -> None:
    for source in ("x.yaml", "x.json"):
        try:
            assert isinstance(parse_text(text, source), dict)
        except SchemaError as error:
            assert str(error).startswith(source)  # noqa: PT017 - that nothing else is raised is the test


@pytest.mark.parametrize("name", ["tree.yaml", "tree.yml", "tree.json"])
def test_a_document_is_written_and_read_back(tmp_path: Path, name: str) -> None:
    tree = Branch(of=(Leaf(size=3, amount=Linear(start=1, end=2, steps=3)), Branch(branch="on")))
    path = tmp_path / name
    write_document(tree, path)
    assert parse(Branch, read_document(path)) == tree
    write_document({"kind": "branch"}, path)
    assert read_document(path) == {"kind": "branch"}
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("value", ["\ud800", {1, 2}, object()])
@pytest.mark.parametrize("name", ["tree.yaml", "tree.json"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / name
    write_document({"a": 1}, path)
    with pytest.raises(SchemaError, match="cannot be written"):
        write_document({"a": value}, path)
    assert read_document(path) == {"a": 1}
    assert os.listdir(tmp_path) == [name]


def test_a_dump_is_tidy() -> None:
    data = to_data(Branch(of=(Leaf(size=3),)))
    assert json.dumps(data) == (
        '{"kind": "branch", "branch": "x", "of": [{"kind": "leaf", "size": 3, "rate": 1.0, "on": false}]}'
    )

"""`lint`: what each rule would match now, why others would not, and what came nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

import graphnet as gn
from graphnet.cli import app
from graphnet.ir.graph import Graph
from graphnet.rules.lint import Finding, lint
from graphnet.rules.matching import match
from graphnet.schemas.policy import Rule


def rule(pattern: Any, name: str = "r", **step: Any) -> Rule:
    return Rule(name=name, match=pattern, steps=[{"do": "grow", "units": "fc1", "count": 1, **step}])  # type: ignore[arg-type]


def look(pattern: Any, graph: Graph, **step: Any) -> Finding:
    (found,) = lint([rule(pattern, **step)], graph)
    return found


@pytest.fixture
def graph() -> Graph:
    return gn.convnet((3, 8, 8), channels=[4, 6], hidden=[5], classes=2, pool=None)


def test_a_rule_that_matches_lists_its_matches(graph: Graph) -> None:
    found = look("a:relu -> b:conv2d", graph)
    assert [dict(each.nodes) for each in found.matches] == [{"a": "act_c1", "b": "conv2"}]
    assert (found.reason, found.nodes, found.near, found.problems) == ("", (), (), ())
    assert found.pattern == "a:relu -> b:conv2d"


def test_each_node_is_counted_by_itself_with_the_conditions_that_fail(graph: Graph) -> None:
    found = look("a:relu -> b:conv2d[kernel>=5, out>=6]", graph)
    assert (
        found.reason
        == "none of 2 conv2d ops meets kernel>=5, out>=6 (conv2: kernel is 3; conv1: kernel is 3, out is 4)"
    )
    a, b = found.nodes
    assert (a.candidates, a.fitting, a.failed, a.nearest) == (3, 3, (), ())
    assert (b.candidates, b.fitting, b.failed) == (2, 0, (("kernel>=5", 2), ("out>=6", 1)))
    assert b.nearest == ("conv2: kernel is 3", "conv1: kernel is 3, out is 4")
    assert str(b).startswith(
        "b:conv2d[kernel>=5, out>=6]: 0 of 2 fit (kernel>=5 fails at 2; out>=6 fails at 1; nearest"
    )


@pytest.mark.parametrize(
    ("pattern", "part", "count", "example"),
    [
        ("a:relu -> b:conv2d[kernel>=5]", "kernel>=5", 1, "a=act_c1, b=conv2 (kernel is 3)"),
        ("units h[role=stream, size>=6]", "role=stream", 1, "h=conv2 (role is hidden)"),
        ("units h[name=conv9]", "h's name=conv9", 4, "h=conv1"),
        ("a:linear -> b:conv2d", "b's type conv2d", 2, "a=fc1, b=act1 (act1 is relu)"),
        ("a:linear -> b:conv2d[kernel=3]", "b's type conv2d and its conditions", 2, "a=fc1, b=act1 (act1 is relu)"),
        ("a:conv2d -[:1]-> b:relu", "what is said of 'a -[:1]-> b'", 2, "a=conv1, b=act_c1"),
        ("a:conv2d -> ...{5,} -> b:relu", "what is said of 'a -> ...{5,} -> b'", 2, "a=conv1, b=act_c1"),
        ("a:conv2d -> b:relu -> c:conv2d; a -> c", "'a -> c'", 1, "a=conv1, b=act_c1, c=conv2"),
        ("a:conv2d -> b:relu; not a -> c:relu[tags!=x]; not b -> d:conv2d", "'not b -> d:conv2d'", 0, ""),
        ("a:conv2d -> b:relu; not b -> op c", "'not b -> op c'", 2, "a=conv1, b=act_c1"),
    ],
)  # fmt: skip
def test_what_alone_stands_against_a_match(graph: Graph, pattern: str, part: str, count: int, example: str) -> None:
    found = look(pattern, graph)
    near = {each.part: each for each in found.near}
    if count == 0:  # another part of the pattern is enough to rule it out
        assert found.matches or part not in near
        return
    assert not found.matches
    assert near[part].count == count
    assert near[part].examples[0] == example
    assert f"without {part} it would match at {count} place" in str(near[part])


def test_a_frozen_group_is_named_as_a_near_miss() -> None:
    graph = gn.transformer(7, width=4, depth=1, heads=2, context=6, hidden=5)
    found = look("units h[name=tok.*]", graph)
    near = {each.part: each for each in found.near}
    assert near["h's frozen=false"].examples == ("h=tok.entries (frozen is true)",)


def test_a_near_miss_is_what_the_relaxed_pattern_matches(graph: Graph) -> None:
    found = look("a:relu -> b:linear[out>=9]", graph)
    near = next(each for each in found.near if each.part == "out>=9")
    assert near.count == len(match("a:relu -> b:linear", graph)) == 1


def test_problems_name_the_step_and_the_guard(graph: Graph) -> None:
    wrong = Rule(
        name="r", match="units h", when={"kind": "not", "of": {"kind": "age", "of": "fc8", "above": 3}},
        steps=[{"do": "grow", "units": "h", "count": 1}, {"do": "grow", "units": "fc9", "count": 1},
               {"do": "prune", "units": "fc*", "fraction": 0.5}],
    )  # type: ignore[arg-type]  # fmt: skip
    (found,) = lint([wrong], graph)
    assert len(found.matches) == 4
    assert found.named == ("fc1",)
    assert any(each.startswith("step 2 (grow): there is no unit group or op 'fc9'") for each in found.problems)
    assert any(each.startswith("guard age: there is no unit group or op 'fc8'") for each in found.problems)


def test_ops_that_steps_name_are_looked_for(graph: Graph) -> None:
    steps = [
        {"do": "insert", "name": "extra", "op": "identity", "inputs": ["act_c1"], "before": ["conv2"]},
        {"do": "remove", "node": "extra"},
        {"do": "redirect", "edge": "act_c1 -> conv9", "to": "act_c1"},
        {"do": "remove", "node": "act_c9"},
    ]
    (found,) = lint([Rule(name="r", steps=steps)], graph)  # type: ignore[arg-type]
    assert found.named == ("act_c1", "conv2")
    assert [each for each in found.problems if "there is no op" in each] == [
        "step 3 (redirect): there is no op 'conv9'; did you mean 'conv2' or 'conv1'?",
        "step 4 (remove): there is no op 'act_c9'; did you mean 'act_c2' or 'act_c1'?",
    ]


def test_a_wrong_pattern_is_a_problem_and_the_rest_is_looked_at(graph: Graph) -> None:
    one, two = lint([rule("a:conv3 -> b:relu", "one"), rule("a:conv2d", "two")], graph)
    assert any("rule 'one', node 'a': there is no op 'conv3'" in problem for problem in one.problems)
    assert len(two.matches) == 2


def test_every_part_of_a_rule_that_cannot_be_done_is_told(graph: Graph) -> None:
    wrong = gn.Rule(
        name="w", match="units h[sizze>3] ~> op a",
        steps=[{"do": "grow", "units": "h", "count": 1, "init": "gradmaxx"},
               {"do": "operator", "name": "zzz", "on": "h"},
               {"do": "insert", "name": "n", "op": "reluu", "inputs": ["a"]}],
    )  # fmt: skip
    (found,) = lint([wrong], graph)
    assert len(found.problems) == 4
    for part in ("did you mean 'size'?", "step 1 (grow): there is no initialiser 'gradmaxx'; did you mean 'gradmax'?",
                 "step 2 (operator): no operator is registered as 'zzz' (with gn.rules.operator('zzz'))",
                 "step 3 (insert): there is no op 'reluu'; did you mean 'relu'?"):  # fmt: skip
        assert any(part in problem for problem in found.problems), (part, found.problems)


def test_an_event_that_no_rule_makes_is_noted_and_is_no_problem(graph: Graph) -> None:
    grow = [{"do": "grow", "units": "fc1", "count": 1}]
    when = {"kind": "any", "of": [{"kind": "since", "event": "task", "above": 1}, {"kind": "event", "event": "bell"}]}
    rules = [gn.Rule(name="widen", steps=grow, when=when), gn.Rule(name="b", steps=grow, schedule={"kind": "on",
             "event": "widne"}), gn.Rule(name="c", steps=grow, schedule={"kind": "on", "event": "widen"})]  # fmt: skip
    first, second, third = lint(rules, graph)
    assert (first.problems, second.problems, third.problems, third.notes) == ((), (), (), ())
    assert first.notes == (
        "guard event: the event 'bell' is no rule's name, so it comes from policy.step(..., events=['bell'])",
    )
    assert second.notes[0].endswith("events=['widne']); did you mean 'widen'?")


def test_nothing_is_changed(graph: Graph) -> None:
    before = graph.to_document()
    lint([rule("units h[size>=100]"), rule("a:relu -> b:conv2d", "s")], graph)
    assert graph.to_document() == before


# -- the command -------------------------------------------------------------------------------------------------------


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["lint", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path, graph: Graph) -> tuple[Path, Path]:
    policy, network = tmp_path / "policy.yaml", tmp_path / "net.yaml"
    rules = [
        {"name": "wide", "match": "units h[role=hidden]", "steps": [{"do": "grow", "units": "h", "count": 1}]},
        {
            "name": "large",
            "match": "a:relu -> b:conv2d[kernel>=5]",
            "steps": [{"do": "grow", "units": "fc1", "count": 1}],
        },
    ]
    policy.write_text(yaml.safe_dump({"kind": "policy", "schema_version": 1, "rules": rules}))
    network.write_text(yaml.safe_dump(graph.to_document()))
    return policy, network


def test_the_command_says_what_matches_and_why_not(files: tuple[Path, Path]) -> None:
    found = call(*files)
    assert found.exit_code == 0, found.output
    assert "wide\n  units h[role=hidden]\n  3 matches\n    h=conv1\n    h=conv2\n    h=fc1\n" in found.stdout
    assert "no match: none of 2 conv2d ops meets kernel>=5 (conv1: kernel is 3; conv2: kernel is 3)" in found.stdout
    assert "without kernel>=5 it would match at 1 place: a=act_c1, b=conv2 (kernel is 3)" in found.stdout
    assert found.stdout.endswith("2 rules: 1 without a match, 0 with problems\n")
    short = call(*files, "--matches", "1")
    assert "3 matches, the first 1\n    h=conv1\n" in short.stdout
    assert "h=fc1" not in short.stdout


def test_its_status_says_whether_something_is_wrong(files: tuple[Path, Path], tmp_path: Path) -> None:
    policy, network = files
    assert call(policy, network, "--strict").exit_code == 1
    wrong = yaml.safe_load(policy.read_text())
    wrong["rules"][0]["steps"][0]["units"] = "fc9"
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    found = call(tmp_path / "wrong.yaml", network)
    assert found.exit_code == 1
    assert "problem: step 1 (grow): there is no unit group or op 'fc9'" in " ".join(found.stdout.split())
    wrong["rules"][0]["match"] = "units h["
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    broken = call(tmp_path / "wrong.yaml", network)
    assert broken.exit_code == 2
    assert "at rules[0].match: found the end; expected an attribute" in broken.stderr


def test_a_checkpoint_is_looked_at_as_it_is_now(files: tuple[Path, Path], tmp_path: Path, graph: Graph) -> None:
    net = gn.Network(graph, seed=0)
    with net.edit() as edit:
        edit.prune("fc1", lowest=4)
    path = net.save(tmp_path / "net.ckpt")
    (tmp_path / "one.yaml").write_text(
        yaml.safe_dump([{"name": "r", "match": "units h[size=1]", "steps": [{"do": "grow", "units": "h", "count": 1}]}])
    )
    found = call(tmp_path / "one.yaml", path)
    assert found.exit_code == 0, found.output
    assert "1 match\n    h=fc1" in found.stdout
    assert call(tmp_path / "one.yaml", tmp_path / "absent.ckpt").exit_code == 2

"""What stands between a rule and an edit besides its guard: other rules, other matches, directions, sizes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import graphnet as gn
from graphnet.edit.edit import Edit
from graphnet.rules import Outcome, Policy, load_policy
from graphnet.rules.execution import Limits, Place, perform_steps
from graphnet.rules.outcome import Change
from graphnet.rules.sketch import sketch_edit
from graphnet.rules.steps import Done, Moment, Runner

HIDDEN = "units h[role=hidden]"


def network(*sizes: int) -> gn.Network:
    return gn.Network(gn.mlp(list(sizes or (3, 6, 5, 2))), seed=0)


def rule(name: str, do: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {"name": name, "steps": [do], **parts}


def grow(units: str = "fc1", count: int = 1) -> dict[str, Any]:
    return {"do": "grow", "units": units, "count": count}


def prune(units: str = "fc1", count: int = 1) -> dict[str, Any]:
    return {"do": "prune", "units": units, "lowest": count}


def run(policy: Policy, net: gn.Network, steps: Any) -> list[tuple[int, str, str]]:
    found = [o for step in steps for o in policy.step(net, step=step)]
    return [(o.step or 0, o.rule, o.status) for o in found if o.status in ("applied", "rejected")]


def test_a_rule_loses_only_the_matches_that_another_rule_took() -> None:
    policy = load_policy([rule("first", grow("fc1"), priority=1), rule("all", grow("h"), match=HIDDEN)])
    first, second = policy.step(network(), step=0)
    assert first.reason == "grow fc1 6 -> 7"
    assert second.applied
    assert second.reason == (
        "grow fc2 5 -> 6; 1 of 2 matches rejected: 'fc1' was edited at this step by rule 'first', which goes first"
    )
    assert [(dict(m.nodes)["h"], m.status) for m in second.matches] == [("fc1", "rejected"), ("fc2", "applied")]


def test_the_next_step_is_another_matter() -> None:
    policy = load_policy([rule("a", grow()), rule("b", grow())])
    net = network()
    assert run(policy, net, range(2)) == [
        (0, "a", "applied"), (0, "b", "rejected"), (1, "a", "applied"), (1, "b", "rejected"),
    ]  # fmt: skip


def test_structural_and_unit_rules_conflict_over_ops_and_groups() -> None:
    deepen = {"name": "deepen", "match": "act:relu[name=act1] -> fc:linear",
              "steps": [{"do": "deepen", "after": "act"}], "priority": 1}  # fmt: skip
    again = {**deepen, "name": "again", "match": "act:relu[name=act1] -> any b"}
    found = load_policy([deepen, again, rule("grow", grow("fc2"))]).step(network(), step=0)
    assert [o.status for o in found] == ["applied", "rejected", "applied"]
    assert found[1].reason == "'act1' was edited at this step by rule 'deepen', which goes first"


def test_two_matches_of_one_group_edit_it_once() -> None:
    """The hidden units of an MLP are in the op that writes them and in the one that reads them."""
    policy = load_policy([rule("twice", grow("h"), match="units h[name=fc1] ~> op a")])
    (found,) = policy.step(network(), step=0)
    assert found.reason.startswith(
        "grow fc1 6 -> 7; 2 of 3 matches rejected: 'fc1' is edited at this step by the match"
    )
    assert [m.status for m in found.matches] == ["applied", "rejected", "rejected"]


def test_at_most_so_many_matches_are_taken_in_graph_order() -> None:
    policy = load_policy([rule("one", grow("h"), match=HIDDEN, at_most=1)])
    (found,) = policy.step(network(), step=0)
    assert found.reason == "grow fc1 6 -> 7"
    assert [m.status for m in found.matches] == ["applied", "no match"]
    assert found.matches[1].reason == "at_most=1: matches before it go first"


def test_the_guard_of_each_match_is_told() -> None:
    when = {"kind": "metric", "metric": "gain", "of": "h", "above": 1.0}
    policy = load_policy([rule("gain", grow("h"), match=HIDDEN, when=when)])
    (found,) = policy.step(network(), step=0, metrics={"gain": {"fc1": 0.5, "fc2": 2.0}})
    assert [(m.status, m.reason) for m in found.matches] == [
        ("guard false", "the mean gain of fc1 is 0.5, not above 1"), ("applied", "grow fc2 5 -> 6"),
    ]  # fmt: skip
    assert str(found.matches[1]) == "[h=fc2] applied (grow fc2 5 -> 6)"
    assert found.record()["matches"][0]["nodes"] == {"h": "fc1"}


def test_a_group_that_grew_does_not_shrink_until_the_hysteresis_is_over() -> None:
    rules = [
        rule("grow", grow(), schedule={"kind": "at", "steps": [0, 20]}),
        rule("prune", prune(), schedule={"kind": "every", "steps": 3, "start": 3}),
        rule("elsewhere", prune("fc2"), schedule={"kind": "at", "steps": [3]}),
    ]
    policy = load_policy({"rules": rules, "hysteresis": 8})
    net = network()
    found = run(policy, net, range(13))
    assert found == [
        (0, "grow", "applied"), (3, "prune", "rejected"), (3, "elsewhere", "applied"), (6, "prune", "rejected"),
        (9, "prune", "applied"), (12, "prune", "applied"),
    ]  # fmt: skip
    state = json.loads(json.dumps(policy.state_dict()))
    resumed = load_policy({"rules": rules, "hysteresis": 8})
    resumed.load_state_dict(state)
    later = load_policy({"rules": rules, "hysteresis": 8})
    later.load_state_dict(state)
    assert [o.status for o in later.dry_run(net, [19, 20])] == ["applied", "rejected"]
    assert run(resumed, net, [19]) == [(19, "prune", "applied")]  # the tick of 18
    (refused,) = [o for o in resumed.step(net, step=20) if o.rule == "grow"]
    assert refused.reason == ("'fc1' shrank at step 19: hysteresis=8 keeps it from turning round before step 27")


def test_a_rule_that_swaps_units_has_no_direction() -> None:
    swap = {"name": "swap", "steps": [prune(), grow()], "schedule": {"kind": "every", "steps": 2}}
    policy = load_policy({"rules": [swap, rule("prune", prune(), schedule={"kind": "at", "steps": [1]})],
                          "hysteresis": 10})  # fmt: skip
    assert run(policy, network(), range(3)) == [(0, "swap", "applied"), (1, "prune", "applied"), (2, "swap", "applied")]


def test_one_edit_may_not_grow_a_group_by_more_than_a_share() -> None:
    policy = load_policy({"rules": [rule("grow", grow("h", 2), match=HIDDEN)], "max_growth": 0.35})
    (found,) = policy.step(network(), step=0)  # 2 of 6 are 33%, 2 of 5 are 40%
    assert found.reason == (
        "grow fc1 6 -> 8; 1 of 2 matches rejected: "
        "'fc2' would grow from 5 to 7 units, by more than max_growth=0.35 of them"
    )
    twice = {"name": "twice", "steps": [grow(), grow(), grow()]}
    (found,) = load_policy({"rules": [twice], "max_growth": 0.35}).step(network(), step=0)
    assert found.status == "rejected"  # three steps of one edit count together
    assert "from 6 to 9" in found.reason


def test_stats_tell_the_matches_that_came_to_nothing() -> None:
    policy = load_policy([rule("first", grow("fc1"), priority=1), rule("all", grow("h"), match=HIDDEN)])
    net = network()
    for step in range(3):
        policy.step(net, step=step)
    assert policy.stats()["all"]["matches"] == [
        {"nodes": {"h": "fc1"}, "reason": "'fc1' was edited at this step by rule 'first', which goes first", "count": 3}
    ]


def test_names_of_events_are_no_names_of_rules() -> None:
    for name in ("edit", "task", "epoch"):
        with pytest.raises(gn.SchemaError, match="is an event of its own"):
            load_policy([rule(name, grow())])


def owed(net: gn.Network) -> int:
    return sum(len(step.born) for version in net.history for step in version.steps if step.operator == "reset")


@pytest.mark.parametrize("every", [1, 7])
def test_a_share_for_every_step_adds_up_to_whole_units(every: int) -> None:
    """Continual backprop: floor(sum of rate times eligible units), however often the policy is stepped."""
    reset = {"do": "reset", "units": "fc1", "per_step": 0.02, "score": "magnitude"}
    policy = load_policy([rule("replace", reset)])
    net = network(3, 10, 2)
    for step in range(0, 120, every):
        policy.step(net, step=step)
    steps = 1 + (119 // every) * every
    assert owed(net) == int(0.02 * 10 * steps + 1e-9)


def test_newborns_are_not_eligible_and_what_is_owed_is_resumed() -> None:
    reset = {"do": "reset", "units": "h", "per_step": 0.05, "score": "magnitude"}
    document = {"rules": [rule("replace", reset, match=HIDDEN)], "immunity": 30}
    policy, net, total = load_policy(document), network(3, 10, 2), 0.0
    for step in range(60):
        if step == 33:
            state = json.loads(json.dumps(policy.state_dict()))
            policy = load_policy(document)
            policy.load_state_dict(state)
        young = policy._ages.immune(net.graph.groups["fc1"], step, 30)
        total += 0.05 * (10 - len(young))
        before = net.graph.groups["fc1"].ids
        (found,) = policy.step(net, step=step)
        if found.applied:
            assert not (set(before) - set(net.graph.groups["fc1"].ids)) & young
    assert owed(net) == int(total + 1e-9) > 5
    assert "is owed" in found.reason or found.applied


def outcomes(policy: Policy, net: gn.Network, steps: Any) -> list[Outcome]:
    return [o for step in steps for o in policy.step(net, step=step) if o.status in ("applied", "rejected")]


def test_the_dry_run_predicts_conflicts_hysteresis_and_what_is_owed() -> None:
    document = {
        "rules": [
            rule("grow", grow("h"), match=HIDDEN, schedule={"kind": "every", "steps": 5}),
            rule("prune", prune("h"), match=HIDDEN, schedule={"kind": "every", "steps": 3, "start": 2}),
            rule("replace", {"do": "reset", "units": "h", "per_step": 0.03, "score": "random"}, match=HIDDEN),
            rule("echo", {"do": "permute", "units": "fc2", "by": "random"}, priority=3,
                 schedule={"kind": "on", "event": "prune", "delay": 2}),
        ],
        "hysteresis": 4, "max_growth": 0.3, "immunity": 3,
    }  # fmt: skip
    net, policy = network(), load_policy(document)
    planned = policy.dry_run(net, range(40))
    found = outcomes(policy, net, range(40))
    assert planned == found
    assert {o.rule for o in found if o.applied} == {"grow", "prune", "replace", "echo"}
    assert any(o.status == "rejected" for o in found)


class Claiming(Runner):
    """Touches the ops that it is told, one after the other, for each match."""

    def __init__(self, table: dict[str, list[str]]) -> None:
        self.table = table

    def refers(self, names: Any) -> bool:
        return True

    def run(self, stage: Any) -> Any:
        for name in self.table[stage.names["a"]]:
            yield Done((Change("touch", name),), (f"op:{name}",))


def test_what_a_refused_match_touched_is_free_again() -> None:
    table = {"one": ["fc1"], "two": ["fc2", "fc1"], "three": ["fc2"]}
    places, graph = [Place({"a": name}) for name in table], network().graph
    begun: list[Edit] = []

    def begin() -> Edit:
        begun.append(sketch_edit(graph, lambda name: torch.float32))
        return begun[-1]

    moment = Moment(0, None, lambda group, born: frozenset())
    done = perform_steps([Claiming(table)], places, begin, moment, Limits())
    assert done is not None
    assert [place.status for place in places] == ["applied", "rejected", "applied"]
    assert "'fc1' is edited at this step by the match a=one" in places[1].reason
    assert {key: place and place.binding["a"] for key, place in done.touched.items()} == {
        "op:fc1": "one", "op:fc2": "three",
    }  # fmt: skip
    assert [change.group for change in done.changes] == ["fc1", "fc2"]
    assert len(done.stages) == 2
    assert len(begun) == 1

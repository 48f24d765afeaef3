from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import graphnet as gn
from graphnet.errors import CheckpointError
from graphnet.rules import Outcome, Policy, Rule, load_policy
from graphnet.schemas.policy import load_policy_document

HIDDEN = {"nodes": {"h": {"kind": "units", "role": "hidden"}}}

MIXED: dict[str, Any] = {
    "rules": [
        {
            "name": "grow",
            "match": HIDDEN,
            "steps": [{"do": "grow", "units": "h", "fraction": 0.5, "init": "kaiming"}],
            "schedule": {"kind": "every", "steps": 3, "max_fires": 4},
        },
        {
            "name": "prune",
            "match": HIDDEN,
            "when": {"kind": "age", "of": "h", "above": 1},
            "steps": [{"do": "prune", "units": "h", "lowest": 2}, {"do": "prune", "units": "fc1", "lowest": 1}],
            "schedule": {"kind": "every", "steps": 4, "start": 2},
            "priority": 1,
        },
        {
            "name": "sleep",
            "steps": [{"do": "retire", "units": "fc2", "count": 1, "score": "random"}],
            "schedule": {"kind": "at", "steps": [5, 11]},
        },
    ],
    "budgets": {"params": 150, "optimizer_bytes": 1200, "transient_bytes": 9000},
    "cooldown": 1,
    "immunity": 4,
    "seed": 3,
}


def network(*sizes: int) -> gn.Network:
    return gn.Network(gn.mlp(list(sizes or (3, 6, 5, 2))), seed=0)


def train(net: gn.Network, policy: Policy, steps: Any, **options: Any) -> list[Outcome]:
    """Run a policy in a training loop; the loss is a metric."""
    torch.manual_seed(1)
    x = torch.randn(8, 3)
    optimizer = net.attached[0] if net.attached else torch.optim.Adam(net.parameters(), lr=0.01)
    if not net.attached:
        net.attach(optimizer)
    outcomes = []
    for step in steps:
        loss = net(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        outcomes += policy.step(net, step=step, metrics={"loss": loss.item()}, **options)
    return outcomes


def events(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.status in ("applied", "rejected")]


def test_of_rules_that_touch_one_group_the_first_by_priority_wins_and_the_others_say_why() -> None:
    grow = {"do": "grow", "units": "fc1", "fraction": 0.5}
    policy = load_policy([{"name": "a", "steps": [grow]}, {"name": "b", "steps": [{**grow, "units": "fc2"}]},
                          {"name": "c", "steps": [grow], "priority": 1}])  # fmt: skip
    found = policy.step(network(3, 4, 4, 2), step=0)
    assert [(o.rule, o.status, o.reason, o.version) for o in found] == [
        ("c", "applied", "grow fc1 4 -> 6", 1),
        ("a", "rejected", "'fc1' was edited at this step by rule 'c', which goes first", 1),
        ("b", "applied", "grow fc2 4 -> 6", 2),
    ]
    assert isinstance(found[1].error, gn.EditError)


def test_newborns_are_not_removed_by_a_score_until_they_are_old_enough() -> None:
    rules = [
        {"name": "grow", "steps": [{"do": "grow", "units": "fc1", "count": 3, "init": "zero-outgoing"}],
         "schedule": {"kind": "at", "steps": [0]}},
        {"name": "prune", "steps": [{"do": "prune", "units": "fc1", "lowest": {"kind": "steps", "values": [2, 3],
          "boundaries": [5]}}], "schedule": {"kind": "at", "steps": [1, 9, 10]}},
    ]  # fmt: skip
    net = network(3, 4, 2)
    with torch.no_grad():
        net.fc1.weight.fill_(10.0)
    policy = load_policy({"rules": rules, "immunity": 10})
    policy.step(net, step=0)
    with torch.no_grad():
        net.fc1.weight[4:] = 0.001  # newborns score lowest
    assert policy.step(net, step=1)[1].applied
    assert {4, 5, 6} <= set(net.graph.groups["fc1"].ids)
    (_, found) = policy.step(net, step=9)
    assert found.status == "rejected"
    assert found.reason == "prune 'fc1': 3 of 5 units cannot go: it keeps at least 1 and 3 are newborns still immune"
    assert policy.step(net, step=10)[1].applied
    assert not {4, 5, 6} & set(net.graph.groups["fc1"].ids)


def test_units_born_in_the_same_transaction_are_immune() -> None:
    steps = [{"do": "grow", "units": "fc1", "count": 2}, {"do": "prune", "units": "fc1", "lowest": 2}]
    net = network(3, 4, 2)
    policy = load_policy({"rules": [{"name": "swap", "steps": steps}], "immunity": 5})
    with torch.no_grad():
        net.fc1.weight.fill_(10.0)
    assert policy.step(net, step=0)[0].applied
    assert {4, 5} <= set(net.graph.groups["fc1"].ids)


def test_a_unit_that_is_retired_and_recruited_at_once_is_a_newborn() -> None:
    steps = [
        {"do": "retire", "units": "fc1", "count": 3},
        {"do": "recruit", "units": "fc1", "count": 3, "select": "random"},
        {"do": "prune", "units": "fc1", "lowest": 2},
    ]
    net = network(3, 4, 2)
    policy = load_policy({"rules": [{"name": "shake", "steps": steps}], "immunity": 2})
    assert "3 are newborns still immune" in policy.step(net, step=0)[0].reason
    policy = load_policy({"rules": [{"name": "shake", "steps": steps[:2]}], "immunity": 2})
    assert policy.step(net, step=1)[0].applied
    (found,) = policy.step(net, step=2)
    assert found.reason == "retire 'fc1': 3 of 4 units cannot go: it keeps at least 1 and 3 are newborns still immune"


def test_units_that_the_user_grows_between_steps_are_newborns_too() -> None:
    net = network(3, 2, 2)
    rules = [{"name": "prune", "steps": [{"do": "prune", "units": "fc1", "lowest": 3}],
              "schedule": {"kind": "at", "steps": [5, 11]}}]  # fmt: skip
    policy = load_policy({"rules": rules, "immunity": 10})
    policy.step(net, step=0)
    with net.edit() as edit:
        edit.grow("fc1", 3)
    found = [policy.step(net, step=step)[0] for step in range(1, 12)]
    assert [(o.step, o.status) for o in found if o.status != "not due"] == [(5, "rejected"), (11, "applied")]


def test_the_dry_run_predicts_the_events_and_touches_nothing() -> None:
    net, policy = network(), load_policy(MIXED)
    optimizer = torch.optim.Adam(net.parameters())
    net.attach(optimizer)
    tensors = {name: (tensor.clone(), tensor._version) for name, tensor in net.state_dict().items()}
    state = policy.state_dict()
    planned = policy.dry_run(net, range(20))
    assert policy.state_dict() == state
    assert net.version == 0
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, tensors[name][0])
        assert tensor._version == tensors[name][1]
    assert {o.status for o in planned} == {"applied", "rejected"}
    found = events(train(net, policy, range(20)))
    assert planned == found
    assert policy.dry_run(net, range(20, 30)) == events(train(net, policy, range(20, 30)))


def test_a_dry_run_takes_metrics_as_a_function_of_the_step() -> None:
    grow = {"name": "r", "when": {"kind": "metric", "metric": "loss", "below": 0.5},
            "steps": [{"do": "grow", "units": "fc1", "count": 1}]}  # fmt: skip
    net, policy = network(), load_policy([grow])
    assert policy.dry_run(net, range(10)) == []
    assert [o.step for o in policy.dry_run(net, range(10), metrics=lambda step: {"loss": 1 - step / 10})] == [
        6,
        7,
        8,
        9,
    ]


@pytest.mark.parametrize("do", ["prune", "reset"])
@pytest.mark.parametrize("preserves", ["function", "approximate"])
def test_a_dry_run_knows_which_promise_a_group_cannot_keep(do: str, preserves: str) -> None:
    rule = {"name": "r", "steps": [{"do": do, "units": "fc1", "lowest": 1}], "preserves": preserves}
    for norm, status in (("layer", "rejected"), (None, "applied")):  # whose weights tell, and not the structure
        net = gn.Network(gn.mlp([6, 8, 6, 3], norm=norm), seed=0)
        planned = load_policy([rule]).dry_run(net, range(1))
        assert [outcome.status for outcome in planned] == [status]
        if status == "rejected":
            assert "is coupled" in planned[0].reason
            assert planned == load_policy([rule]).step(net, step=0)


def test_a_policy_resumes_from_its_state_as_if_it_had_not_stopped() -> None:
    data = {**MIXED, "rules": [*MIXED["rules"], {
        "name": "stall",
        "when": {"kind": "not", "of": {"kind": "any", "of": [
            {"kind": "plateau", "metric": "loss", "window": 4, "min_delta": 0.05}, {"kind": "metric", "metric": "loss",
            "above": 100}]}},
        "steps": [{"do": "grow", "units": "fc2", "count": 1}], "schedule": {"kind": "every", "steps": 2}}]}  # fmt: skip
    whole_net, whole = network(), load_policy(data)
    expected = train(whole_net, whole, range(20))
    net, first = network(), load_policy(data)
    begun = train(net, first, range(9))
    resumed = load_policy(data)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert begun + train(net, resumed, range(9, 20)) == expected
    assert resumed.state_dict() == whole.state_dict()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, whole_net.state_dict()[name])


def test_a_state_of_another_policy_is_refused_and_changes_nothing() -> None:
    policy = load_policy(MIXED)
    policy.step(network(), step=0)
    state = policy.state_dict()
    broken = [
        {}, {**state, "format": 1}, {**state, "events": {}}, {**state, "units": 3}, {**state, "directions": {"a": 1}},
        {**state, "rules": {}}, {**state, "step": "x"}, {**state, "ages": {"live": 3}},
        {**state, "rules": {**state["rules"], "grow": {"fires": 1}}},
    ]  # fmt: skip
    for each in broken:
        with pytest.raises(CheckpointError):
            policy.load_state_dict(each)
        assert policy.state_dict() == state
    plateau = [{"name": "r", "when": {"kind": "all", "of": [{"kind": "plateau", "metric": "loss", "window": 2}]},
                "steps": [{"do": "grow", "units": "fc1", "count": 1}]}]  # fmt: skip
    other = load_policy(plateau)
    for guard in (None, [], [{"average": 1.0}]):
        with pytest.raises(CheckpointError):
            other.load_state_dict(
                {**other.state_dict(), "rules": {"r": {"fires": 0, "applied_at": None, "guard": guard, "timer": None}}}
            )


def test_the_initial_snapshot_is_taken_at_the_first_step_and_named_in_the_state() -> None:
    steps = [{"do": "prune", "units": "fc1", "lowest": 1}, {"do": "rewind", "units": "*", "snapshot": "initial"}]
    rules = [{"name": "imp", "steps": steps, "schedule": {"kind": "at", "steps": [3, 5]}}]
    net, policy = network(), load_policy(rules)
    policy.step(net, step=0)
    first = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert policy.dry_run(net, range(1, 6)) != []
    (found,) = policy.step(net, step=3)
    assert found.reason == "prune fc1 6 -> 5; rewind * 0 -> 0"
    left = list(net.graph.groups["fc1"].ids)
    assert torch.equal(net.fc1.weight, first["fc1.weight"][left])
    assert torch.equal(net.head.bias, first["head.bias"])
    resumed = load_policy(rules)
    resumed.load_state_dict(policy.state_dict())
    (lost,) = resumed.step(net, step=5)
    assert lost.status == "rejected"
    assert "taken before the checkpoint" in lost.reason
    resumed.load_state_dict(policy.state_dict())
    resumed.keep("initial", policy.snapshots["initial"])
    assert resumed.step(net, step=5)[0].applied


def test_stats_say_how_often_why_not_and_how_long() -> None:
    policy = load_policy(MIXED)
    train(network(), policy, range(20))
    stats = policy.stats()
    assert set(stats) == {"grow", "prune", "sleep"}
    for entry in stats.values():
        attempts = entry["hits"] + sum(miss["count"] for miss in entry["misses"].values())
        assert attempts == 20
        assert all(miss["reason"] for miss in entry["misses"].values())
        assert entry["seconds"] > 0
    assert stats["sleep"]["hits"] + stats["sleep"]["misses"].get("rejected", {"count": 0})["count"] <= 2


def test_python_mappings_and_files_make_the_same_policy(tmp_path: Path) -> None:
    mapping = {"name": "wider", "steps": [{"do": "grow", "units": "fc1", "count": 2}],
               "schedule": {"kind": "every", "steps": 2}}  # fmt: skip
    (tmp_path / "p.yaml").write_text(json.dumps([mapping]), encoding="utf-8")
    rule = Rule.model_validate(mapping)
    sources = [[mapping], [rule], {"rules": [mapping]}, tmp_path / "p.yaml", load_policy_document([mapping])]
    for source in sources:
        policy = load_policy(source)  # type: ignore[arg-type]
        assert policy.rules == (rule,)
        net = network()
        assert [o.applied for step in range(3) for o in policy.step(net, step=step)] == [True, False, True]


def test_one_policy_runs_one_network() -> None:
    policy, first, other = load_policy(MIXED), network(), network()
    policy.step(first, step=0)
    with pytest.raises(gn.GraphnetError, match="already runs another network"):
        policy.step(other, step=1)
    with pytest.raises(gn.GraphnetError, match=r"gn\.Network"):
        load_policy(MIXED).step(torch.nn.Linear(2, 2), step=0)  # type: ignore[arg-type]


def test_flops_of_open_inputs_need_a_batch() -> None:
    net = gn.Network(gn.transformer(11, width=8, depth=1, heads=2, context=5), seed=0)
    name = next(n for n, g in net.graph.groups.items() if g.frozen is None and g.role == "hidden")
    rules = [{"name": "r", "steps": [{"do": "grow", "units": name, "count": 1}]}]
    data = {"rules": rules, "budgets": {"flops": 1e9}}
    refused = load_policy(data).step(net, step=0)[0]
    if len(net.graph.dynamic) > 1:
        assert refused.status == "rejected"
        assert "batch=(x, y)" in refused.reason
    tokens = torch.zeros(2, 5, dtype=torch.long)
    assert load_policy(data).step(net, step=0, batch=(tokens, tokens))[0].applied


STRUCTURAL: dict[str, Any] = {
    "rules": [
        {"name": "branch", "match": "src:relu -> dst:conv2d[kernel>=3]; not src -> add", "at_most": 1, "steps": [
            {"do": "insert", "name": "branch", "op": "conv2d", "inputs": ["src"], "like": "src", "init": "zeros"},
            {"do": "insert", "name": "sum", "op": "add", "inputs": ["src", "branch"]},
            {"do": "redirect", "edge": "src -> dst", "to": "sum"}],
         "schedule": {"kind": "every", "steps": 3, "start": 1, "max_fires": 2}, "preserves": "function"},
        {"name": "deepen", "match": "a:relu -> b:linear", "steps": [{"do": "deepen", "after": "a"}],
         "schedule": {"kind": "on", "event": "branch", "delay": 1}},
        {"name": "separate", "match": "c:conv2d[kernel>=3, groups=1, depthwise!=true] -> relu", "at_most": 1,
         "steps": [{"do": "replace", "node": "c", "by": "separable", "attrs": {"rank": 1}}],
         "schedule": {"kind": "at", "steps": [5]}, "priority": 1},
        {"name": "swish", "match": "a:relu", "steps": [{"do": "replace", "node": "a", "by": "silu"}],
         "schedule": {"kind": "at", "steps": [8]}},
        {"name": "widen", "match": "units h[role=hidden] ~[writes]~> a:conv2d",
         "steps": [{"do": "grow", "units": "h", "count": 1, "init": "kaiming"},
                   {"do": "reset", "units": "h", "lowest": 1, "score": "random"}],
         "schedule": {"kind": "every", "steps": 2}},
    ],
    "budgets": {"params": 3500}, "hysteresis": 2, "immunity": 3,
}  # fmt: skip


def conv_network() -> gn.Network:
    return gn.Network(gn.convnet((3, 6, 6), channels=[4, 4, 4], hidden=[6], classes=2, pool=None), seed=0)


SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import test_policy as t
net, policy = t.network(), t.load_policy(t.MIXED)
found = t.train(net, policy, range(20))
weights = {k: v.tolist() for k, v in net.state_dict().items()}
print(json.dumps([[o.record() for o in found], net.history.latest.record()["units"], weights, policy.state_dict()]))
for document, make in ((t.MIXED, t.network), (t.STRUCTURAL, t.conv_network)):
    for _ in range(2):
        net, policy = make(), t.load_policy(document)
        net.attach(t.torch.optim.Adam(net.parameters()))
        planned = [o.record() for o in policy.dry_run(net, range(12))]
        found = [o.record() for step in range(12) for o in policy.step(net, step=step)]
        events = [each for each in found if each["status"] in ("applied", "rejected")]
        weights = {k: v.tolist() for k, v in net.state_dict().items()}
        print(json.dumps([planned, events, net.graph.to_document(), weights]))
"""


def test_the_same_seed_gives_the_same_run_whatever_the_hash_seed() -> None:
    runs = []
    for hash_seed in ("0", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)]
        runs.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert runs[0] == runs[1]
    first, *further = runs[0].splitlines()
    applied = [o for o in json.loads(first)[0] if o["status"] == "applied"]
    assert len(applied) > 5
    units, units_again, structure, structure_again = further
    assert units == units_again
    assert structure == structure_again
    for each in (units, structure):
        planned, events, *_ = json.loads(each)
        assert planned == events
    assert any(event["status"] == "rejected" for event in json.loads(structure)[1])
    assert {e["rule"] for e in json.loads(structure)[1] if e["status"] == "applied"} == {
        "branch", "deepen", "separate", "swish", "widen",
    }  # fmt: skip
    other = load_policy({**MIXED, "seed": 4})
    net = network()
    train(net, other, range(20))
    assert {k: v.tolist() for k, v in net.state_dict().items()} != json.loads(first)[2]

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphnet.schemas.experiment as ge
from graphnet.errors import SchemaError
from graphnet.schemas.base import dump_yaml, parse, parse_text, to_data, write_document

EXAMPLE = """\
kind: experiment
name: cifar
data: {name: cifar10, limit_train: 5000, validation: 0.1}
backbones:
  - name: convnet
    model: {builder: convnet, classes: 10, activation: {name: rand-smooth-leaky, args: {c: 3, p: 5}}}
    editable: [fc1, fc2, fc3]
  - {name: own, model: net.yaml, editable: [a, b, c]}
methods:
  - {method: dense}
  - {method: prune}
  - {method: prune, label: late, rewind: snapshot, snapshot_epoch: 2, score: taylor}
  - {method: grow}
  - method: grow
    label: two-speed
    init: {name: net2wider, args: {noise: 1e-3}}
    state: aged
    interventions: {two_speed: {rate: 5}, moment_transplant: {}}
compactness: [0.2, 0.5]
bias: fc1-protect
seeds: 3
train:
  cycles: 5
  epochs_per_cycle: 40
  batch_size: 64
  optimizer: {name: adamw, lr: 1e-3, betas: [0.9, 0.99], weight_decay: 0.01}
  lr_schedule: cosine
ticket: {init: rewind, epochs: 100}
probes: {age_curve_every: 50}
checkpoints: {every_epochs: 10}
workers: 2
precision: float64
output: runs/cifar
"""
DATA = parse_text(EXAMPLE)


def message(path: tuple[str | int, ...], value: Any) -> str:
    data = copy.deepcopy(DATA)
    at: Any = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(SchemaError) as caught:
        ge.load_experiment_document(data)
    return str(caught.value)


def test_the_example_reads_as_it_is_meant() -> None:
    experiment = ge.load_experiment_document(DATA)
    assert experiment.labels() == ("dense", "prune", "late", "grow", "two-speed")
    assert experiment.seeds == (0, 1, 2)
    assert experiment.bias_factors("convnet") == (1.5, 1.5, 0.6)
    assert experiment.train.optimizer == ge.AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    assert experiment.backbones[1].model == ge.Architecture(path="net.yaml")
    last = experiment.methods[-1]
    assert isinstance(last, ge.GrowMethod)
    assert last.interventions.two_speed == ge.TwoSpeed(rate=5, steps=1955)  # the paper's steps by default
    assert last.init.args == {"noise": 1e-3}


def test_the_defaults_are_the_protocols() -> None:
    grow = ge.GrowMethod()
    assert (grow.select, grow.tau, grow.seed_share, grow.init.name) == (
        "activation-frequency",
        0.05,
        0.1,
        "recruit",
    )
    assert (ge.PruneMethod().score.name, ge.PruneMethod().rewind) == ("magnitude", "init")
    assert ge.ConvNet().hidden == (512, 512, 256)
    assert ge.Training().optimizer == ge.Sgd(lr=0.01)


@pytest.mark.parametrize("name", ["experiment.yaml", "experiment.json"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    experiment = ge.load_experiment_document(DATA)
    write_document(experiment, tmp_path / name)
    assert ge.load_experiment_document(tmp_path / name) == experiment
    assert parse(ge.Experiment, parse_text(dump_yaml(to_data(experiment)))) == experiment


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("methods",), [], "at methods: found a list of 0"),
        (
            ("methods", 0, "method"),
            "dence",
            "at methods[0].method: found 'dence'; expected one of dense, grow, prune; did you mean 'dense'?",
        ),
        (("methods", 2, "label"), None, "at methods[2].label: found 'prune' a second time"),
        (
            ("methods", 2, "rewind"),
            "init",
            "at methods[2].snapshot_epoch: expected with rewind: snapshot, and only then",
        ),
        (("methods", 2, "snapshot_epoch"), 41, "at methods[2].snapshot_epoch: found 41; expected at most 40"),
        (
            ("methods", 3, "seed_share"),
            0.3,
            "at methods[3].seed_share: found 0.3, above the lowest compactness 0.2",
        ),
        (("methods", 3, "select"), "gradiant", "at methods[3].select: found 'gradiant'"),
        (("methods", 3, "select"), "gradiant", "did you mean 'gradient'?"),
        (
            ("methods", 4, "interventions", "twospeed"),
            {},
            "at methods[4].interventions.twospeed: found an unknown key",
        ),
        (("methods", 4, "interventions", "twospeed"), {}, "did you mean 'two_speed'?"),
        (("backbones", 1, "name"), "convnet", "at backbones[1].name: found 'convnet' a second time"),
        (
            ("backbones", 0, "editable"),
            ["fc1", "fc1", "fc3"],
            "at backbones[0].editable[1]: found 'fc1' a second time",
        ),
        (
            ("backbones", 0, "editable"),
            ["fc1"],
            "at bias: found 3 factors for the 1 editable groups of backbone 'convnet'",
        ),
        (("backbones", 0, "model", "hiden"), [3], "at backbones[0].model.hiden: found an unknown key"),
        (
            ("backbones", 0, "model"),
            {"builder": "mlp", "sizes": [784]},
            "at backbones[0].model.sizes: found a list of 1",
        ),
        (
            ("backbones", 0, "model"),
            {"builder": "architecture"},
            "exactly one of path, document; found none of them",
        ),
        (("backbones", 0, "model"), 3, "at backbones[0].model: found 3; expected a mapping"),
        (("bias",), "fc2-protect", "at bias: found 'fc2-protect'; expected one of neutral, fc1-protect"),
        (("bias",), [1.0, 1.0], "at bias: found 2 factors for the 3 editable groups"),
        (("bias",), [1.0, -1.0, 1.0], "at bias[1]: found -1.0; expected greater than 0"),
        (("compactness",), [0.0], "at compactness[0]: found 0.0; expected greater than 0"),
        (("compactness",), [0.5, 1.5], "at compactness[1]: found 1.5; expected less than or equal to 1"),
        (("compactness",), [0.5, 0.5], "at compactness[1]: found 0.5 a second time"),
        (("seeds",), 0, "at seeds: found 0; expected a number of seeds from 1 to 10000"),
        (("seeds",), [1, 2, 1], "at seeds[2]: found 1 a second time"),
        (("seeds",), "3", "at seeds: found '3'; expected a list"),
        (("train", "cycles"), 0, "at train.cycles: found 0; expected greater than 0"),
        (
            ("train", "optimizer", "name"),
            "adamv",
            "at train.optimizer.name: found 'adamv'; expected one of adam, adamw, sgd",
        ),
        (
            ("train", "optimizer", "momentum"),
            0.9,
            "at train.optimizer.momentum: found an unknown key; expected one of betas",
        ),
        (
            ("train", "optimizer"),
            {"name": "sgd", "lr": 0.1, "nesterov": True},
            "at train.optimizer.momentum: found nesterov",
        ),
        (("precision",), "float16", "at precision: found 'float16'; expected 'float32' or 'float64'"),
        (("data", "validation"), 1.0, "at data.validation: found 1.0; expected less than 1"),
        (("schema_version",), 2, "upgrade graphnet"),
        (("kind",), "policy", "at kind: found 'policy'; expected 'experiment'"),
    ],
)
def test_errors_name_the_place_and_what_was_expected(path: tuple[str | int, ...], value: Any, line: str) -> None:
    text = message(path, value)
    assert line in text
    assert text.count("\n  at ") <= 1


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.sampled_from(["", "mlp", "grow", "neutral", "sgd", "\ud800", "x" * 300]),
    st.text(max_size=5),
    st.lists(st.floats() | st.text(max_size=2), max_size=3),
    st.dictionaries(st.sampled_from(["name", "builder", "method", "path", "x"]), st.text(max_size=3), max_size=3),
    st.dictionaries(st.integers(), st.none(), max_size=1),
)


@given(st.data())
def test_a_mutated_experiment_is_valid_or_a_schema_error(data: st.DataObject) -> None:
    mutated = copy.deepcopy(DATA)
    for _ in range(data.draw(st.integers(1, 3))):
        at: Any = mutated
        for _ in range(data.draw(st.integers(0, 4))):
            inner = [v for v in (at.values() if isinstance(at, dict) else at) if isinstance(v, (dict, list)) and v]
            if not inner:
                break
            at = data.draw(st.sampled_from(inner))
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if keys:
            key = data.draw(st.sampled_from(keys))
            if data.draw(st.booleans()):
                at[key] = data.draw(JUNK)
            else:
                del at[key]
    try:
        experiment = ge.load_experiment_document(mutated)
    except SchemaError as error:
        assert str(error)  # noqa: PT017 - that nothing else is raised is the test
    else:
        assert ge.load_experiment_document(to_data(experiment)) == experiment

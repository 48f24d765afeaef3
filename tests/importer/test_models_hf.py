"""Models of the transformers library, from small random configurations: nothing is downloaded."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

tf.logging.set_verbosity_error()
_FILE = Path(__file__).resolve().parents[2] / "scripts" / "model_table.py"
_SPEC = importlib.util.spec_from_file_location("model_table", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
table = importlib.util.module_from_spec(_SPEC)
sys.modules["model_table"] = table
_SPEC.loader.exec_module(table)

QUICK = ("ResNet", "ConvNeXt", "ViT", "BERT", "GPT-2", "Llama, grouped queries", "RegNet-Y")
FURTHER_QUICK = ("ALBERT", "DeiT")

RELOAD = """
import sys
sys.modules["graphnet"] = None  # an import of it fails
import torch
from torch.utils import _pytree as pytree
kept = torch.load(sys.argv[1], weights_only=False)
def check(found):
    found = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]
    for one, two in zip(kept["expected"], found, strict=True):
        assert (one - two).abs().max() <= 1e-9 * one.abs().max().clamp_min(1e-30)
with torch.no_grad():
    check(torch.load(sys.argv[2], weights_only=False)(*kept["inputs"]))
    check(torch.export.load(sys.argv[3]).module()(*kept["inputs"]))
print("equal")
"""


def first_of_each_kind(seen: set[str]) -> Callable[[str], bool]:
    """Whether a group is the first whose name differs from those before in more than numbers."""

    def first(group: str) -> bool:
        kind = re.sub(r"\d+", "#", group)
        return not (kind in seen or seen.add(kind))  # type: ignore[func-returns-value]

    return first


def check_refusals(report: Any) -> None:
    """What is refused says why: a convolution's groups, a table of frequencies, tied weights both at zero."""
    for key, why in report.refused.items():
        prune = key.startswith("prune")
        known = ("at least 2",) if prune else ("cannot grow", "tied weights")
        assert any(part in why for part in known), (key, why)


def check_row(name: str, net: Any) -> None:
    """The page says of this model what is so."""
    rows = table.read(table.PAGE.read_text(encoding="utf-8"))
    assert rows[name].lasting == table.described(net).lasting, f"run: {sys.executable} {_FILE} '{name}'"


def goes_out(net: Any, inputs: tuple[Any, ...], folder: Path) -> None:
    """Pruned, saved in both forms, and loaded by a process that has no graphnet, it gives the same."""
    name = next(n for n, g in net.graph.groups.items() if g.frozen is None and not g.output and g.size > g.minimum + 1)
    with net.edit() as edit:
        edit.prune(name, lowest=1)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    inputs = tuple(torch.cat([x, x.flip(0)]) for x in inputs)
    with torch.no_grad():
        expected = [leaf for leaf in torch.utils._pytree.tree_leaves(net(*inputs)) if isinstance(leaf, torch.Tensor)]
    files = [str(folder / file) for file in ("kept.pt", "plain.pt", "exported.pt2")]
    torch.save({"expected": expected, "inputs": inputs}, files[0])
    torch.save(net.to_torch(), files[1])
    torch.export.save(net.to_export(inputs), files[2])
    done = subprocess.run([sys.executable, "-c", RELOAD, *files], capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in table.MAIN]
)
def test_a_model_is_exact(name: str, exercise: Callable[..., Any]) -> None:
    """Same output in both modes; the named groups pruned by half and grown by a quarter; as the page says."""
    example = table.MAIN[name]
    report = exercise(*table.build(example), groups=lambda group: group in example.named)
    assert table.share(report.net) == example.share
    assert set(example.named) == set(report.pruned)
    check_refusals(report)
    check_row(name, report.net)


@pytest.mark.slow
@pytest.mark.parametrize("name", table.MAIN)
def test_every_group_of_a_model_is_exact_and_it_goes_out(
    name: str, exercise: Callable[..., Any], tmp_path: Path
) -> None:  # fmt: skip
    model, inputs = table.build(table.MAIN[name])
    report = exercise(model, inputs)
    groups = report.net.graph.groups
    least = {name for name in report.free if groups[name].size - len(groups[name].ids[1::2]) < groups[name].minimum}
    assert set(report.free) - least == set(report.pruned)  # the others cannot be halved, and say so
    check_refusals(report)
    goes_out(report.net, inputs, tmp_path)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FURTHER_QUICK else pytest.mark.slow) for name in table.FURTHER]
)
def test_a_further_model_is_exact_or_refused(name: str, exercise: Callable[..., Any]) -> None:
    """A group of each kind; a model that is not imported is refused with the reason on the page."""
    model, inputs = table.build(table.FURTHER[name])
    rows = table.read(table.PAGE.read_text(encoding="utf-8"))
    if rows[name].refused:
        assert table.measure(name).refused == rows[name].refused
        return
    if not table.FURTHER[name].double:
        net = table.gn.from_torch(model, inputs)
        assert round(table.share(net), 2) == table.FURTHER[name].share
        check_row(name, net)
        return
    report = exercise(model, inputs, groups=first_of_each_kind(set()))
    assert round(table.share(report.net), 2) == table.FURTHER[name].share  # a scalar is in no group
    check_refusals(report)
    check_row(name, report.net)


def test_a_pruned_model_goes_out_and_comes_back_without_graphnet(tmp_path: Path) -> None:
    model, inputs = table.build(table.MAIN["ViT"])
    goes_out(table.gn.from_torch(model.double(), (inputs[0].double(),)), inputs, tmp_path)


def test_a_rotary_table_gives_no_value_for_a_new_unit(exercise: Callable[..., Any]) -> None:
    name = "model.layers.0.self_attn.q_proj.head_dim"
    report = exercise(*table.build(table.MAIN["Llama, grouped queries"]), groups=lambda group: group == name)
    assert report.pruned == [name]
    assert "cannot grow: the buffer 'model.rotary_emb.inv_freq'" in report.refused[f"grow {name}"]


def test_a_page_is_read_as_it_was_written() -> None:
    rows = table.read(table.PAGE.read_text(encoding="utf-8"))
    assert rows.keys() == table.EXAMPLES.keys()
    assert table.render(rows) == table.PAGE.read_text(encoding="utf-8"), f"run: {sys.executable} {_FILE}"

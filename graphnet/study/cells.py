"""The cells of a study: one network trained by one method, at one compactness, from one seed.

Everything here is known before anything is trained: which cells there are, the graph that each starts from, and
the units that each ends with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from graphnet.errors import SchemaError
from graphnet.ir.builders import convnet, mlp
from graphnet.ir.document import load
from graphnet.ir.graph import Graph
from graphnet.schemas.base import read_document
from graphnet.schemas.experiment import Architecture, Backbone, ConvNet, Dense, Experiment, Method, Mlp
from graphnet.schemas.policy import Choice
from graphnet.study import allocation

__all__ = ["Cell", "cells_of", "editable_groups", "full_graph", "resolve", "target_units", "unit_masses"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a study.

    Attributes
    ----------
    backbone : str
    method : str
        ``dense``, ``prune``, ``grow``.
    label : str
        The method's name in the report.
    compactness : float or None
        None where the method keeps all units.
    seed : int
    """

    backbone: str
    method: str
    label: str
    compactness: float | None
    seed: int

    @property
    def name(self) -> str:
        """The cell's folder under ``cells/``."""
        share = "1.0" if self.compactness in (None, 1.0) else f"{self.compactness:g}"
        return "--".join((_safe(self.backbone), _safe(self.label), f"c{share}", f"s{self.seed}"))

    def described(self) -> dict[str, Any]:
        """The cell as plain data."""
        return {
            "backbone": self.backbone, "method": self.method, "label": self.label,
            "compactness": 1.0 if self.compactness is None else self.compactness, "seed": self.seed,
        }  # fmt: skip

    def settings(self, experiment: Experiment) -> tuple[Backbone, Method]:
        """The parts of the experiment that this cell runs."""
        backbone = next(b for b in experiment.backbones if b.name == self.backbone)
        return backbone, experiment.methods[experiment.labels().index(self.label)]


def cells_of(experiment: Experiment) -> tuple[Cell, ...]:
    """Every cell; a dense network has one for each backbone and seed, whatever the compactness.

    Raises
    ------
    SchemaError
        Two cells would share a folder, because their names differ in signs that a folder cannot hold.
    """
    cells = [
        Cell(backbone.name, method.method, label, compactness, seed)
        for backbone in experiment.backbones
        for seed in experiment.seeds
        for method, label in zip(experiment.methods, experiment.labels(), strict=True)
        for compactness in ((None,) if isinstance(method, Dense) else experiment.compactness)
    ]
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.name, cell)
        if other is not cell:
            raise SchemaError(
                f"backbone {other.backbone!r} with method {other.label!r} and backbone {cell.backbone!r} with method "
                f"{cell.label!r} would both be kept in the folder {cell.name!r}: rename one, in letters and digits"
            )
    return tuple(cells)


def resolve(experiment: Experiment, base: Path) -> Experiment:
    """The experiment with every architecture written out, so that it depends on no other file.

    Parameters
    ----------
    base : Path
        The folder that paths of architectures start from.
    """
    backbones = []
    for backbone in experiment.backbones:
        model = backbone.model
        if isinstance(model, Architecture) and model.path is not None:
            document = read_document(base / model.path, list_key=None)
            backbone = backbone.model_copy(update={"model": Architecture(document=document)})
        backbones.append(backbone)
    return experiment.model_copy(update={"backbones": tuple(backbones)})


def full_graph(backbone: Backbone) -> Graph:
    """The backbone with all its units."""
    model = backbone.model
    if isinstance(model, Mlp):
        graph = mlp(model.sizes, activation=_activation(model.activation), name=backbone.name)
        return graph if model.bias else _without_bias(graph)
    if isinstance(model, ConvNet):
        return convnet(
            model.input_shape, channels=model.channels, hidden=model.hidden, classes=model.classes,
            activation=_activation(model.activation), name=backbone.name,
        )  # fmt: skip
    if model.document is None:
        raise SchemaError(f"backbone {backbone.name!r}: its architecture has to be read first, with resolve()")
    return load(model.document)


def editable_groups(graph: Graph, backbone: Backbone) -> tuple[str, ...]:
    """The names of the groups that the methods edit, in the order of the experiment.

    Raises
    ------
    SchemaError
        Two entries name one group.
    GraphError, FrozenGroupError
        A name is unknown, or structure fixes the group's size.
    """
    names = tuple(graph.editable(name).name for name in backbone.editable)
    for at, name in enumerate(names):
        if name in names[:at]:
            raise SchemaError(f"backbone {backbone.name!r}: editable names the unit group {name!r} twice")
    return names


def unit_masses(graph: Graph, groups: tuple[str, ...]) -> list[int]:
    """Elements of the weights that write each group."""
    masses = dict.fromkeys(groups, 0)
    for spec in graph.tensors.values():
        if spec.kind != "weight" or spec.shared is not None:
            continue
        for layout, role in zip(spec.dims, spec.roles, strict=True):
            for group in set(layout.atoms()) & set(groups):
                if role == "write":
                    masses[group] += prod(graph.shape(spec))
    for group, mass in masses.items():
        if mass == 0:
            raise SchemaError(f"editable: no weight writes the unit group {group!r}, so compactness has no share of it")
    return [masses[group] for group in groups]


def target_units(experiment: Experiment, cell: Cell, graph: Graph, groups: tuple[str, ...]) -> dict[str, int]:
    """How many units the cell ends with in each editable group; the same for every method."""
    widths = [graph.groups[group].size for group in groups]
    if cell.compactness is None:
        return dict(zip(groups, widths, strict=True))
    bias = experiment.bias_factors(cell.backbone)
    units = allocation.targets(widths, unit_masses(graph, groups), cell.compactness, bias)
    for group, count in zip(groups, units, strict=True):
        if count < graph.groups[group].minimum:
            raise SchemaError(
                f"backbone {cell.backbone!r}: compactness {cell.compactness:g} leaves {count} units in {group!r}, "
                f"which keeps at least {graph.groups[group].minimum}"
            )
    return dict(zip(groups, units, strict=True))


def _activation(choice: Choice) -> Mapping[str, Any]:
    return {"op": choice.name, **choice.args}


def _without_bias(graph: Graph) -> Graph:
    document = graph.to_document()
    for op in document["ops"]:
        if op["op"] == "linear":
            op["bias"] = False
    return load(document)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name)

"""Pictures of the networks before and after the cycles, for the report."""

from __future__ import annotations

import tempfile
from html import escape
from pathlib import Path

from graphnet.errors import GraphnetError
from graphnet.ir.document import load
from graphnet.study.report.figures import picture_of
from graphnet.study.report.markup import fold, level_name, otherwise
from graphnet.study.report.run import Cell, Run

__all__ = ["graphs"]

_MOST_PICTURE = 1_500_000
"""Characters of one graph's picture; a larger one is left out of the page."""


def graphs(run: Run) -> str:
    """The graph before and after the cycles, of one seed of each method."""
    parts, problems = [], []
    for b, backbone in enumerate(run.backbones()):
        for m, label in enumerate(run.labels()):
            cells = [c for c in run.cells if c.key.backbone == backbone and c.key.label == label]
            drawn = next((c for c in cells if (c.folder / "graph_after.json").is_file()), cells[0] if cells else None)
            if drawn is None or (drawn.method == "dense" and len(run.labels()) > 1):
                continue
            figures, wrong = _before_and_after(drawn, f"graph-{b}-{m}")
            problems += wrong
            if figures:
                where = f"{backbone}, {label}, compactness {level_name(drawn.key.compactness)}, seed {drawn.seed}"
                parts.append(fold(where, f'<div class="pair">{"".join(figures)}</div>'))
    note = (
        "<p>Boxes are operations, pills the groups of units that they write, with their size. One seed of each "
        "method; "
        "the structure after the cycles is the one that the ticket retrains.</p>"
    )
    said = "".join(f'<p class="missing">{escape(problem)}</p>' for problem in dict.fromkeys(problems))
    return (note + "".join(parts) if parts else otherwise("", "No graph was stored.")) + said


def _before_and_after(cell: Cell, name: str) -> tuple[list[str], list[str]]:
    figures, problems = [], []
    for moment in ("before", "after"):
        path = cell.folder / f"graph_{moment}.json"
        if not path.is_file():
            early = moment == "after" and cell.status != "done"
            reason = ": the run has not come to its end." if early else "."
            problems.append(f"{cell.name} has no graph_{moment}.json{reason}")
            continue
        try:
            graph = load(path)
            sizes = ", ".join(f"{g.name} {g.size}" for g in graph.groups.values() if g.frozen is None and not g.output)
            text = f"Graph {moment} the cycles, {cell.name}: {len(graph.ops)} operations; units: {sizes}."
            with tempfile.TemporaryDirectory() as folder:
                drawn = graph.draw(
                    Path(folder) / "graph.svg", title=f"{moment.capitalize()} the cycles", engine="matplotlib"
                )  # fmt: skip
                svg = picture_of(drawn, f"{name}-{moment}", text)
        except GraphnetError as error:
            problems.append(f"{cell.name}: graph_{moment}.json cannot be drawn: {error}")
            continue
        if len(svg) > _MOST_PICTURE:
            problems.append(f"{cell.name}: the picture of graph_{moment}.json is too large for this page; draw it with "
                            f"graphnet show --svg.")  # fmt: skip
            continue
        figures.append(f"<figure>{svg}</figure>")
    return figures, problems

"""The report's sections in their order; each gives its HTML, or a sentence that says what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Literal

from graphnet.study.report import aggregate as numbers
from graphnet.study.report import pictures, tables, words
from graphnet.study.report.figures import MARKS, Line, Style, mark_sign, panel, styles, swatch
from graphnet.study.report.markup import fold, html_table, level_name, otherwise
from graphnet.study.report.run import PHASES, Phase, Run

__all__ = ["Section", "sections"]

SIGNALS = ("activation", "gradient")
_SHIFT = 0.05
"""Cycles between the intervals of two curves at the same cycle."""
_MOMENTS = {
    "post": "newborns at birth (post)", "end": "newborns at the cycle’s end (end)",
    "exit": "kept over pruned, before pruning (exit)", "survivors": "survivors, after over before pruning",
}  # fmt: skip
_MOST_LINES = 6
"""Above so many curves in one panel of birth parity, each moment gets its own panel."""


@dataclass(frozen=True)
class Section:
    """A part of the page: the anchor, the heading, and its HTML."""

    anchor: str
    title: str
    html: str


def sections(run: Run) -> list[Section]:
    """Every section of the report."""
    looks = styles(run.methods())
    table, tests = tables.welch(run, looks)
    scores = [tables.scores(run, backbone, looks) for backbone in run.backbones() if run.select(backbone)]
    parts: list[tuple[str, str, str]] = [
        ("about", "What was run", words.what_was_run(run)),
        ("found", "What came out", words.findings(run, tests)),
        ("scores", "Accuracy", otherwise("".join(scores) and _BOLD + "".join(scores), "No training run has begun.")),
        ("tests", "Growth against pruning", otherwise(table and fold("Every test", table, opened=len(tests) <= 16), (
            "There is nothing to test yet: no compactness has a finished grow run and a finished prune run."))),
        ("curves", "Accuracy over training", _curves(run, looks)),
        ("equal-cost", "Accuracy at equal cost", otherwise(
            "".join(tables.equal_cost(run, b, looks) for b in run.backbones()),
            "Accuracy at equal cost needs finished runs with epoch records that hold flops_total.")),
        ("cost", "Cost", _costs(run, looks)),
        ("birth-parity", "Parity at birth", _birth(run, looks)),
        ("age-parity", "Parity against age", _age(run, looks)),
        ("units", "Units over time", _units(run, looks)),
        ("graphs", "The network before and after", pictures.graphs(run)),
        ("edits", "Every edit", otherwise(
            "".join(fold(f"Edits on {b}", table) for b in run.backbones() if (table := tables.edits(run, b, looks))),
            "No edit has been recorded.")),
        ("environment", "Environment and settings", _environment(run)),
        ("measures", "What the measures mean", _measures()),
    ]  # fmt: skip
    return [Section(*part) for part in parts]


_BOLD = (
    '<p class="note">Bold: the best method at that compactness, and its difference from the runner-up has p &lt; '
    "0.05 "
    "(Welch). Nothing bold: no method is separated from the next. Underlined words are explained "
    '<a href="#measures">at the end</a>.</p>'
)


def _legend(run: Run, looks: Mapping[str, Style], labels: Sequence[str] | None = None, extra: str = "") -> str:
    items = "".join(
        f"<li>{swatch(looks[label])}{escape(label)}</li>" for label in run.labels() if labels is None or label in labels
    )
    return f'<ul class="legend" aria-label="Legend">{items}{extra}</ul>'


def _grid(panels: Sequence[str]) -> str:
    return f'<div class="panels">{"".join(panels)}</div>'


def _per_level(
    run: Run, draw: Callable[[str, float, str], Sequence[str]], *, opened: int = 1
) -> Iterator[str]:  # fmt: skip
    """Panels for each backbone and compactness under a summary; the first ``opened`` of a backbone are open.

    ``draw`` gets backbone, compactness and a name for the ids of its panels.
    """
    for b, backbone in enumerate(run.backbones()):
        shown = 0
        for k, level in enumerate(run.levels(backbone)):
            panels = draw(backbone, level, f"b{b}c{k}")
            if panels:
                summary = f"{backbone}, compactness {level_name(level)}"
                yield fold(summary, _grid(panels), opened=shown < opened)
                shown += 1


# -------------------------------------------------------------------------------------------------------- curves


def _boundaries(run: Run) -> list[float]:
    if run.experiment is None:
        return []
    train = run.experiment.train
    return [float(k * train.epochs_per_cycle) for k in range(1, train.cycles)]


def _last(lines: Sequence[Line], *, unit: str = "") -> str:
    ends = [f"{line.label} ends at {line.curve.y[-1] * (100 if unit == '%' else 1):.4g}{unit}" for line in lines]
    return "; ".join(ends)


def _curves(run: Run, looks: Mapping[str, Style]) -> str:
    def draw(phase: Phase) -> Callable[[str, float, str], list[str]]:
        def panels(backbone: str, level: float, name: str) -> list[str]:
            found = []
            axes: tuple[tuple[Literal["epoch", "flops_total"], str], ...] = (
                ("epoch", "Epoch"), ("flops_total", "Training FLOPs spent (log scale)"),
            )  # fmt: skip
            for against, x_label in axes:
                lines = [
                    Line(label, curve, looks[label])
                    for label in run.labels()
                    if (cells := run.select(backbone, level, label))
                    and (curve := numbers.curves(run, cells, phase, against))
                ]
                if not lines:
                    continue
                what = "cycles" if phase == "cycle" else "ticket"
                title = f"Test accuracy against {'epochs' if against == 'epoch' else 'training FLOPs'}, {what}"
                alone = all(line.curve.n == 1 for line in lines)
                text = (
                    f"{backbone}, compactness {level_name(level)}: {title}; mean over seeds. {_last(lines, unit='%')}."
                )
                found.append(
                    panel(
                        f"{phase}-{against}-{name}",
                        title + (" (one seed)" if alone else ""),
                        text,
                        lines,
                        x_label=x_label,
                        y_label="Test accuracy (%)",
                        percent=True,
                        whole_x=against == "epoch",
                        boundaries=_boundaries(run) if against == "epoch" and phase == "cycle" else (),
                        x_from_zero=against == "epoch",
                        x_log_si=against == "flops_total",
                    )
                )
            return found

        return panels

    cycle, ticket = ("".join(_per_level(run, draw(phase))) for phase in PHASES)
    if not cycle and not ticket:
        return otherwise("", "No epoch has been recorded.")
    note = (
        "<p>Lines are means over seeds, bands their 95 % intervals, cut at the frame where few "
        "seeds make them wide. Dotted vertical lines mark the edits. Against "
        "epochs every method runs equally long; against FLOPs the line ends where the method has spent its total.</p>"
    )
    html = note + _legend(run, looks)
    html += f"<h3>While the structure changes</h3>{otherwise(cycle, 'No cycle has been recorded.')}"
    html += f"<h3>Retraining the ticket</h3>{otherwise(ticket, 'No ticket has been trained.')}"
    return html


def _costs(run: Run, looks: Mapping[str, Style]) -> str:
    cycle = "".join(
        tables.costs(run, backbone, "cycle", looks) + tables.worth(run, backbone, looks) for backbone in run.backbones()
    )
    ticket = "".join(tables.costs(run, backbone, "ticket", looks) for backbone in run.backbones())
    if not cycle:
        return otherwise("", "Costs need at least one finished cycle phase.")
    return cycle + (fold("Cost of retraining the tickets", ticket) if ticket else "")


# -------------------------------------------------------------------------------------------------------- parity


def _birth(run: Run, looks: Mapping[str, Style]) -> str:
    seen: set[str] = set()
    moments: set[str] = set()

    def draw(backbone: str, level: float, name: str) -> list[str]:
        found = []
        for signal in SIGNALS:
            lines = []
            for label in run.labels():
                for moment, curve in numbers.parity_by_cycle(run.select(backbone, level, label), signal).items():
                    seen.add(label)
                    moments.add(moment)
                    lines.append((moment, Line(label, curve, looks[label], "marks", MARKS[moment])))
            lines = [(m, replace(line, shift=_SHIFT * (i - (len(lines) - 1) / 2))) for i, (m, line) in enumerate(lines)]
            parts = {"": [line for _, line in lines]}
            if len(lines) > _MOST_LINES:
                parts = {m: [line for moment, line in lines if moment == m] for m in MARKS}
            for moment, chosen in parts.items():
                if not chosen:
                    continue
                title = f"Log-parity of the {signal}" + (f", {moment}" if moment else "")
                ends = "; ".join(f"{line.label}: {line.curve.y[-1]:.2f}" for line in chosen)
                text = f"{backbone}, compactness {level_name(level)}: {title} by cycle; at the last cycle {ends}."
                found.append(
                    panel(
                        f"birth-{signal}{moment}-{name}",
                        title,
                        text,
                        chosen,
                        x_label="Cycle",
                        y_label="ln R (natural log)",
                        whole_x=True,
                        reference=(0.0, "parity"),
                    )
                )
        return found

    folds = "".join(_per_level(run, draw))
    if not folds:
        return otherwise("", "Parity at birth was not measured: no probe record has the moment post, end or exit.")
    signs = "".join(
        f'<li><span class="sign">{mark_sign(MARKS[m])}</span>{_MOMENTS[m]}</li>' for m in MARKS if m in moments
    )
    missing = []
    for signal in SIGNALS:
        none, total = numbers.undefined_parities(run.cells, signal)
        if none:
            missing.append(f"{none} of {total} measurements of the {signal} have no ratio")
    left = (
        f'<p class="note">{escape(words.listing(missing))} (a group without any signal, or nobody to compare with) '
        f"and "
        "are left out of the means.</p>"
        if missing
        else ""
    )
    note = (
        '<p>Do newborns carry as much signal as the incumbents? <a class="term" href="#m-parity">0 is parity</a>; '
        "below "
        'it, the first named has less. For grow: <a class="term" href="#m-newborn">newborns over incumbents</a>; for '
        'prune: units kept over units pruned. <a class="term" href="#m-moment">Markers</a> say when it was measured; '
        "bars are 95 % intervals over seeds.</p>"
    )
    return note + _legend(run, looks, sorted(seen), signs) + folds + left


def _age(run: Run, looks: Mapping[str, Style]) -> str:
    seen: set[str] = set()
    marked = False

    def draw(backbone: str, level: float, name: str) -> list[str]:
        nonlocal marked
        found = []
        for signal in SIGNALS:
            lines = [
                Line(label, curve, looks[label])
                for label in run.labels()
                if (curve := numbers.age_curves(run.select(backbone, level, label), signal))
            ]
            if not lines:
                continue
            seen.update(line.label for line in lines)
            marked = marked or any(any(line.curve.censored) for line in lines)
            title = f"{signal.capitalize()} of newborns over incumbents, against age"
            text = f"{backbone}, compactness {level_name(level)}: {title}. {_last(lines)}."
            found.append(
                panel(
                    f"age-{signal}-{name}",
                    title,
                    text,
                    lines,
                    x_label="Age (optimizer steps since birth)",
                    y_label="Ratio R (log scale)",
                    reference=(1.0, "parity"),
                    y_log=True,
                )
            )
        return found

    folds = "".join(_per_level(run, draw))
    if not folds:
        return otherwise(
            "",
            "Parity against age was not measured: no probe record has the moment age. Set "
            "<code>probes.age_curve_every</code> in the experiment to record it.",
        )
    sign = (
        '<li><span class="sign">○</span>some cohorts have no signal (mean 0) here and are left out</li>'
        if marked
        else ""
    )
    note = (
        "<p>How newborns catch up as they get older, until the next edit: the ratio of their mean signal to the "
        "incumbents’, as a geometric mean over layers, cycles and seeds, with its 95 % interval over seeds.</p>"
    )
    table = "".join(tables.times(run, backbone, looks) for backbone in run.backbones())
    return note + _legend(run, looks, sorted(seen), sign) + folds + fold("Time to half parity", table, opened=True)


# --------------------------------------------------------------------------------------------- units and pictures


def _units(run: Run, looks: Mapping[str, Style]) -> str:
    dotted = False

    def draw(backbone: str, level: float, name: str) -> list[str]:
        nonlocal dotted
        found = []
        groups = tables.editable(run, backbone, run.select(backbone, level))
        for index, group in enumerate(groups):
            lines, ends = [], []
            for label in run.labels():
                cells = run.select(backbone, level, label)
                live = numbers.units_over_time(run, cells, "cycle", group, "units")
                if live is None:
                    continue
                lines.append(Line(label, live, looks[label], "step"))
                ends.append(f"{label} {live.y[0]:g} to {live.y[-1]:g}")
            if lines:
                title = f"Live units of {group}"
                text = f"{backbone}, compactness {level_name(level)}: {title} by epoch; {'; '.join(ends)}."
                found.append(
                    panel(
                        f"units-{index}-{name}",
                        title,
                        text,
                        lines,
                        x_label="Epoch",
                        y_label="Live units",
                        boundaries=_boundaries(run),
                        whole_x=True,
                        y_from_zero=True,
                    )
                )
        return found

    folds = "".join(_per_level(run, draw))
    table = "".join(tables.units(run, backbone, looks) for backbone in run.backbones())
    if not folds and not table:
        return otherwise("", "No epoch record holds the units of a group.")
    note = "<p>Lines lie on one another where methods have the same number of units.</p>"
    return note + _legend(run, looks) + folds + (fold("Targets and final units", table) if table else "")


# ------------------------------------------------------------------------------------------- environment, measures


def _environment(run: Run) -> str:
    html = otherwise(tables.environment(run.environment), "The environment was not recorded.")
    path = run.folder / "experiment.yaml"
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        html += fold("The experiment, as it was resolved", f"<pre>{escape(text)}</pre>")
    failed = [cell for cell in run.cells if cell.status == "failed"]
    if failed:
        rows = [[escape(cell.name), escape(str(cell.about.get("error", "no reason was recorded")))] for cell in failed]
        html += html_table("Training runs that failed", ["Run", "Why"], rows)
    if run.problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in run.problems)
        html += fold(f"What could not be read ({len(run.problems)})", f"<ul>{items}</ul>", opened=True)
    return html


def _measures() -> str:
    items = []
    for anchor, word, section, meaning in words.MEASURES:
        link = f' <a href="#{section}">Shown here.</a>' if section else ""
        items.append(f'<dt id="{anchor}">{escape(word)}</dt><dd>{meaning}{link}</dd>')
    source = (
        "<p>The measures are those of Lillo &amp; Cheney, “On the Stability of Growth in Structural Plasticity” "
        "(2026, "
        "arXiv 2605.15435); the costs are this engine’s addition.</p>"
    )
    return source + f"<dl>{''.join(items)}</dl>"

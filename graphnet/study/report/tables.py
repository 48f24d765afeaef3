"""Tables of the report as HTML: scores, tests, costs, accuracy at equal cost, edits, the environment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

from graphnet.study.report import aggregate as numbers
from graphnet.study.report.aggregate import MEASURES, Measure
from graphnet.study.report.figures import Style
from graphnet.study.report.markup import (
    DASH,
    html_table,
    level_name,
    named,
    or_dash,
    percent,
    points,
    seconds,
    si,
    term,
)  # fmt: skip
from graphnet.study.report.run import Cell, Phase, Run, number
from graphnet.study.statistics import welch_test

__all__ = [
    "costs", "editable", "edits", "environment", "equal_cost", "pairs", "scores", "times", "units", "welch", "worth",
]  # fmt: skip

HEADINGS: Mapping[Measure, str] = {
    "cycle acc": "ACC", "cycle taa": "TAA", "ticket acc": "ACC", "ticket taa": "TAA",
    "delta acc": "ACC", "delta taa": "TAA",
}  # fmt: skip
LONG: Mapping[Measure, str] = {
    "cycle acc": "Cycle ACC", "cycle taa": "Cycle TAA", "ticket acc": "Ticket ACC", "ticket taa": "Ticket TAA",
    "delta acc": "Δ ACC", "delta taa": "Δ TAA",
}  # fmt: skip
ALPHA = 0.05


# ---------------------------------------------------------------------------------------------------- main table


def scores(run: Run, backbone: str, looks: Mapping[str, Style]) -> str:
    """Method x compactness, Cycle and Ticket: ACC, TAA and their difference."""
    rows = []
    for level in _levels_with_dense(run, backbone):
        samples = {
            label: numbers.scores(run, run.select(backbone, level, label))
            for label in run.labels()
            if (run.methods()[label] == "dense") == (level is None) and run.select(backbone, level, label)
        }
        winners = {
            measure: found[0]
            for measure in MEASURES[:4]
            if level is not None
            and (found := numbers.best({label: sample[measure] for label, sample in samples.items()}))
            and found[1].p is not None
            and found[1].p < ALPHA
        }
        for label, sample in samples.items():
            cells = []
            for measure in MEASURES:
                text = percent(numbers.estimate(sample[measure]), signed=measure.startswith("delta"))
                cells.append(f"<strong>{text}</strong>" if winners.get(measure) == label else text)
            count = len(sample["cycle acc"])
            tickets = len(sample["ticket acc"])
            n = str(count) if tickets in (0, count) else f"{count} / {tickets}"
            shown = "all units" if level is None else level_name(level)
            rows.append([shown, named(label, looks[label]), n, *cells])
    above = (
        '<tr><td colspan="3"></td>'
        f'<th scope="colgroup" colspan="2">{term("Cycle", "m-cycle")}</th>'
        f'<th scope="colgroup" colspan="2">{term("Ticket", "m-ticket")}</th>'
        f'<th scope="colgroup" colspan="2">{term("Δ = Ticket − Cycle", "m-delta")}</th></tr>'
    )
    head = [
        term("Compactness", "m-compactness"), "Method", term("n", "m-ci"),
        *[term(HEADINGS[m], f"m-{m.split()[1]}") for m in MEASURES],
    ]  # fmt: skip
    caption = f"{escape(backbone)}: test accuracy in %, mean ± 95 % interval over n seeds (Δ in percentage points)"
    return html_table(caption, head, rows, head_columns=2, above=above)


def _levels_with_dense(run: Run, backbone: str) -> list[float | None]:
    dense = any(c.method == "dense" for c in run.cells if c.key.backbone == backbone)
    edited = [c for c in run.cells if c.key.backbone == backbone and c.method != "dense"]
    return [*([None] if dense else []), *(run.levels(backbone) if edited else [])]


def pairs(run: Run) -> list[tuple[str, str]]:
    """Each grow method with each prune method."""
    methods = run.methods()
    grow = [label for label, method in methods.items() if method == "grow"]
    prune = [label for label, method in methods.items() if method == "prune"]
    return [(g, p) for g in grow for p in prune]


def welch(run: Run, looks: Mapping[str, Style]) -> tuple[str, list[tuple[Measure, float, float]]]:
    """Grow against prune: the table, and (measure, difference, p) of each test that exists."""
    rows, found = [], []
    for backbone in run.backbones():
        for level in run.levels(backbone):
            for grow, prune in pairs(run):
                ours = numbers.scores(run, run.select(backbone, level, grow))
                theirs = numbers.scores(run, run.select(backbone, level, prune))
                for measure in MEASURES[:4]:
                    if not ours[measure] or not theirs[measure]:
                        continue
                    test = welch_test(ours[measure], theirs[measure])
                    counts = f"{len(ours[measure])}, {len(theirs[measure])}"
                    cells = [counts, points(test.difference, signed=True), DASH, DASH, DASH]
                    if test.p is not None and test.t is not None and test.degrees is not None:
                        found.append((measure, test.difference, test.p))
                        shown = "&lt; 0.001" if test.p < 0.001 else f"{test.p:.3f}"
                        ahead = grow if test.difference > 0 else prune
                        verdict = f"{escape(ahead)} ahead" if test.p < ALPHA else "not separated"
                        cells[2:] = [f"{test.t:.2f}".replace("-", "−"), f"{test.degrees:.1f}", shown, verdict]
                    else:
                        cells.append("no test")
                    versus = f"{named(grow, looks[grow])} − {named(prune, looks[prune])}"
                    rows.append([f"{escape(backbone)}, {level_name(level)}", versus, LONG[measure], *cells])
    if not rows:
        return "", []
    head = [
        "Backbone, compactness", "Grow − prune", "Measure", "n", "Difference", "t",
        '<abbr title="degrees of freedom">df</abbr>', "p", f"At p &lt; {ALPHA:g}",
    ]  # fmt: skip
    caption = f"{term('Welch’s t-tests', 'm-welch')}, two-sided; differences in percentage points"
    return html_table(caption, head, rows, head_columns=3), found


# -------------------------------------------------------------------------------------------------------- costs


def costs(run: Run, backbone: str, phase: Phase, looks: Mapping[str, Style]) -> str:
    """What training a phase cost, each figure a mean over the seeds that finished it."""
    rows = []
    for level, label, cells in _groups(run, backbone):
        if not any(run.finished(cell, phase) for cell in cells):
            continue

        def mean(field: str, cells: Sequence[Cell] = cells) -> float | None:
            values = numbers.final(run, cells, phase, field)
            return fmean(values) if values else None

        wall, edit = mean("wall_seconds"), mean("edit_seconds")
        share = f' <span class="pm">({100 * edit / wall:.2g} %)</span>' if edit and wall else ""
        rows.append([
            level, named(label, looks[label]), str(sum(run.finished(cell, phase) for cell in cells)),
            or_dash(mean("flops_total"), si), or_dash(mean("flops_total_nominal"), si), or_dash(wall, seconds),
            DASH if edit is None else seconds(edit) + share, or_dash(mean("params"), si),
            or_dash(mean("param_steps"), si), or_dash(mean("optimizer_bytes"), lambda v: si(v, "B")),
        ])  # fmt: skip
    if not rows:
        return ""
    head = [
        term("Compactness", "m-compactness"), "Method", "n", term("FLOPs executed", "m-flops"),
        term("FLOPs nominal", "m-flops"), "Training time", term("Edit time", "m-edit"), "Parameters at the end",
        term("Parameter-steps", "m-psteps"), term("Optimizer memory", "m-memory"),
    ]  # fmt: skip
    what = "the cycles" if phase == "cycle" else "retraining the ticket"
    return html_table(f"{escape(backbone)}: what {what} cost, mean over n seeds", head, rows, head_columns=2)


def worth(run: Run, backbone: str, looks: Mapping[str, Style]) -> str:
    """What the cycles' cost bought: accuracy, and accuracy weighted or divided by cost."""
    rows = []
    for level, label, cells in _groups(run, backbone):
        found = numbers.scores(run, cells)
        executed = numbers.final(run, cells, "cycle", "flops_total")
        if not executed or not found["cycle acc"]:
            continue
        efficiency = fmean(found["cycle acc"]) * 100 / (fmean(executed) / 1e12) if fmean(executed) else None
        rows.append([
            level, named(label, looks[label]), str(len(found["cycle acc"])), or_dash(fmean(executed), si),
            percent(numbers.estimate(found["cycle acc"])), percent(numbers.estimate(found["cycle taa"])),
            percent(numbers.estimate(numbers.cost_weighted_taa(run, cells, "cycle"))),
            or_dash(efficiency, si),
        ])  # fmt: skip
    if not rows:
        return ""
    head = [
        term("Compactness", "m-compactness"), "Method", "n", term("FLOPs executed", "m-flops"),
        term("ACC", "m-acc"), term("TAA", "m-taa"), term("TAA weighted by cost", "m-wtaa"),
        term("ACC % per TFLOP", "m-percost"),
    ]  # fmt: skip
    caption = f"{escape(backbone)}: accuracy in % for that cost, mean ± 95 % interval over n seeds"
    return html_table(caption, head, rows, head_columns=2)


def _groups(run: Run, backbone: str) -> list[tuple[str, str, list[Cell]]]:
    """(compactness as text, label, its cells) for each row of a table, dense first."""
    found = []
    for level in _levels_with_dense(run, backbone):
        for label in run.labels():
            if (run.methods()[label] == "dense") != (level is None):
                continue
            cells = run.select(backbone, level, label)
            if cells:
                found.append(("all units" if level is None else level_name(level), label, cells))
    return found


def equal_cost(run: Run, backbone: str, looks: Mapping[str, Style]) -> str:
    """Test accuracy at the same executed training FLOPs: quarter, half and all of the cheapest method's."""
    rows = []
    for level in run.levels(backbone):
        groups = {label: run.select(backbone, level, label) for label in run.labels()}
        totals = [
            fmean(values)
            for label, cells in groups.items()
            if run.methods()[label] != "dense" and (values := numbers.final(run, cells, "cycle", "flops_total"))
        ]
        if not totals:
            continue
        for share, name in ((0.25, "a quarter"), (0.5, "half"), (1.0, "all")):
            budget = share * min(totals)
            samples = {
                label: numbers.equal_cost(run, cells, "cycle", budget) for label, cells in groups.items() if cells
            }
            found = numbers.best({k: v for k, v in samples.items() if run.methods()[k] != "dense"})
            sure = found is not None and found[1].p is not None and found[1].p < ALPHA
            for label, sample in samples.items():
                text = percent(numbers.estimate(sample))
                bold = sure and found is not None and found[0] == label
                rows.append([
                    level_name(level), f"{si(budget)} ({name})", named(label, looks[label]), str(len(sample)),
                    f"<strong>{text}</strong>" if bold else text,
                ])  # fmt: skip
    if not rows:
        return ""
    head = [term("Compactness", "m-compactness"), term("FLOPs spent", "m-equal"), "Method", "n", "Accuracy (%)"]
    caption = f"{escape(backbone)}: test accuracy at equal training FLOPs, as shares of the cheapest method's total"
    return html_table(caption, head, rows, head_columns=3)


# ------------------------------------------------------------------------------------- units, edits, environment


def units(run: Run, backbone: str, looks: Mapping[str, Style]) -> str:
    """Units of each editable group at the start and the end of the cycles, and the target."""
    rows = []
    for level, label, cells in _groups(run, backbone):
        for group in editable(run, backbone, cells):
            ends, dormant = [], []
            for cell in cells:
                found = [
                    (u, number((r.get("dormant") or {}).get(group)))
                    for r in cell.of("epoch", "cycle")
                    if (u := number((r.get("units") or {}).get(group))) is not None
                ]
                if found and run.finished(cell, "cycle"):
                    ends.append(found[-1][0])
                    dormant.append(found[-1][1] or 0)
            targets = {cell.targets().get(group) for cell in cells} - {None}
            wanted = ", ".join(sorted(str(t) for t in targets))
            hit = "" if not targets or not ends else ("yes" if set(ends) == targets else "<strong>no</strong>")
            rows.append([
                level, named(label, looks[label]), escape(group), wanted or DASH, _many(ends), _many(dormant),
                hit or DASH,
            ])  # fmt: skip
    if not rows:
        return ""
    head = [
        term("Compactness", "m-compactness"), "Method", "Unit group", "Target", "Units at the end",
        term("Dormant at the end", "m-dormant"), "Target met",
    ]  # fmt: skip
    return html_table(f"{escape(backbone)}: units of each editable group", head, rows, head_columns=3)


def _many(values: Sequence[float]) -> str:
    found = sorted(set(values))
    if not found:
        return DASH
    return f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


def editable(run: Run, backbone: str, cells: Iterable[Cell]) -> list[str]:
    """The groups that methods edit on a backbone: the experiment's, or those that have targets or edits."""
    if run.experiment:
        for each in run.experiment.backbones:
            if each.name == backbone:
                return list(each.editable)
    found: dict[str, None] = {}
    for cell in cells:
        found.update(dict.fromkeys(cell.targets()))
        found.update(dict.fromkeys(str(r["group"]) for r in cell.of("edit") if r.get("group")))
    return list(found)


def edits(run: Run, backbone: str, looks: Mapping[str, Style]) -> str:
    """Every edit of the cycles, seeds averaged."""
    rows = []
    for level, label, cells in _groups(run, backbone):
        found: dict[tuple[int, str, str], list[Mapping[str, Any]]] = defaultdict(list)
        order: dict[tuple[int, str, str], None] = {}
        for cell in cells:
            for record in cell.of("edit"):
                key = (
                    int(number(record.get("cycle")) or 0), str(record.get("operator", "?")),
                    str(record.get("group") or "all"),
                )  # fmt: skip
                order.setdefault(key)
                found[key].append(record)
        for key in sorted(order, key=lambda each: each[0]):
            records = found[key]

            def mean(field: str, records: Sequence[Mapping[str, Any]] = records) -> float | None:
                values = [v for r in records if (v := number(r.get(field))) is not None]
                return fmean(values) if values else None

            born = fmean(len(r.get("born") or ()) for r in records)
            dropped = fmean(len(r.get("dropped") or ()) for r in records)
            change = " ".join(t for t in (f"+{born:g}" if born else "", f"−{dropped:g}" if dropped else "") if t)
            rows.append([
                level, named(label, looks[label]), str(key[0]), escape(key[1]), escape(key[2]), str(len(records)),
                change or "0", or_dash(mean("params_after"), si),
                or_dash(mean("shock_kl"), lambda v: f"{v:.3g}".replace("-", "−")),
                or_dash(mean("shock_loss"), lambda v: f"{v:+.3g}".replace("-", "−")),
                or_dash(mean("seconds"), seconds),
            ])  # fmt: skip
    if not rows:
        return ""
    head = [
        term("Compactness", "m-compactness"), "Method", "Cycle", "Operator", "Unit group", "n", "Units",
        "Parameters after", term("Shock, KL (nats)", "m-shock"), term("Shock, loss", "m-shock"),
        term("Time", "m-edit"),
    ]  # fmt: skip
    return html_table(f"{escape(backbone)}: edits, mean over n seeds", head, rows, head_columns=5)


def times(run: Run, backbone: str, looks: Mapping[str, Style]) -> str:
    """How long newborns took to reach half the incumbents' mean gradient."""
    rows = []
    for level, label, cells in _groups(run, backbone):
        found = numbers.times_to_parity(cells)
        if found is not None:
            median = f"more than {found.horizon:g}" if found.median is None else f"{found.median}"
            rows.append([
                level, named(label, looks[label]), str(found.cohorts), str(found.reached),
                str(found.cohorts - found.reached), median,
            ])  # fmt: skip
    if not rows:
        return ""
    head = [
        term("Compactness", "m-compactness"), "Method", "Cohorts followed", "Reached", term("Censored", "m-censored"),
        "Median age (steps)",
    ]  # fmt: skip
    caption = f"{escape(backbone)}: age at which newborns first have half of the incumbents’ mean gradient"
    return html_table(caption, head, rows, head_columns=2)


def environment(found: Mapping[str, Any]) -> str:
    """Versions, machine and date, as recorded."""
    rows = [[escape(key), escape(value)] for key, value in _flat(found)]
    return html_table("Where the run was made", ["What", "Value"], rows, head_columns=2) if rows else ""


def _flat(found: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in found.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield name.replace("_", " "), text

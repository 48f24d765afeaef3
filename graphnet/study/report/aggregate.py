"""From the records of single runs to what the report shows: scores, curves, parity and costs over seeds.

Every mean is over seeds, each seed counting once; a seed's own value comes first (its mean over layers or cycles).
Only finished phases enter scores and costs, so that a run that is still going is not averaged with a finished one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from graphnet.probes.parity import median_time, time_to_parity
from graphnet.study.report.run import PHASES, Cell, Phase, Record, Run, number
from graphnet.study.statistics import Estimate, WelchTest, acc, mean_interval, taa, welch_test

__all__ = [
    "MEASURES", "Curve", "Measure", "TimeToParity", "age_curves", "best", "checkpoint_accuracies", "cost_weighted_taa",
    "curves", "equal_cost", "estimate", "final", "parity_by_cycle", "scores", "times_to_parity", "undefined_parities",
    "units_over_time",
]  # fmt: skip

Measure = Literal["cycle acc", "cycle taa", "ticket acc", "ticket taa", "delta acc", "delta taa"]
MEASURES: tuple[Measure, ...] = ("cycle acc", "cycle taa", "ticket acc", "ticket taa", "delta acc", "delta taa")
Scores = Mapping[Measure, Sequence[float]]


@dataclass(frozen=True)
class Curve:
    """A mean over seeds along an axis.

    Attributes
    ----------
    x, y : tuple of float
    half_width : tuple of float or None
        Half the 95 % interval at each point; None where there is only one seed.
    n : int
        Seeds.
    censored : tuple of bool
        For curves against age: whether some cohort has no ratio here, and is not in the mean.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    half_width: tuple[float | None, ...]
    n: int
    censored: tuple[bool, ...] = ()


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """Mean and 95 % interval of the values that exist; None where none does."""
    sample = [value for value in values if value is not None]
    return mean_interval(sample) if sample else None


def checkpoint_accuracies(cell: Cell, phase: Phase) -> list[float]:
    """Test accuracy at the end of each cycle, in [0, 1]."""
    found = [(record.get("cycle", 0), number(record.get("accuracy"))) for record in cell.of("checkpoint", phase)]
    return [value for _, value in sorted(found, key=lambda pair: pair[0]) if value is not None]


def scores(run: Run, cells: Iterable[Cell]) -> dict[Measure, list[float]]:
    """ACC and TAA of both phases, and their difference, one value for each seed that finished them."""
    found: dict[Measure, list[float]] = {measure: [] for measure in MEASURES}
    for cell in cells:
        values: dict[str, float] = {}
        for phase in PHASES:
            accuracies = checkpoint_accuracies(cell, phase) if run.finished(cell, phase) else []
            if accuracies:
                values |= {f"{phase} acc": acc(accuracies), f"{phase} taa": taa(accuracies)}
        for name in ("acc", "taa"):
            if f"ticket {name}" in values and f"cycle {name}" in values:
                values[f"delta {name}"] = values[f"ticket {name}"] - values[f"cycle {name}"]
        for measure in MEASURES:
            if measure in values:
                found[measure].append(values[measure])
    return found


def best(samples: Mapping[str, Sequence[float]]) -> tuple[str, WelchTest] | None:
    """The label with the highest mean, and its test against the runner-up; None with fewer than two labels."""
    ranked = sorted((label for label in samples if samples[label]), key=lambda label: -fmean(samples[label]))
    if len(ranked) < 2:
        return None
    return ranked[0], welch_test(samples[ranked[0]], samples[ranked[1]])


# -------------------------------------------------------------------------------------------------------- curves


def _by_seed(run: Run, cells: Sequence[Cell], phase: Phase) -> list[dict[int, Record]]:
    """Epoch records of each seed by epoch; seeds that finished the phase, or all of them where none has."""
    finished = [cell for cell in cells if run.finished(cell, phase)]
    found = []
    for cell in finished or cells:
        epochs = {int(epoch): r for r in cell.of("epoch", phase) if (epoch := number(r.get("epoch"))) is not None}
        if epochs:
            found.append(epochs)
    return found


def _mean_curve(points: Iterable[tuple[Sequence[float], Sequence[float]]]) -> Curve | None:
    """A curve from (x of each seed, y of each seed) pairs."""
    xs, ys, widths, most = [], [], [], 0
    for x, y in points:
        found = mean_interval(y)
        xs.append(fmean(x))
        ys.append(found.mean)
        widths.append(found.half_width)
        most = max(most, found.n)
    return Curve(tuple(xs), tuple(ys), tuple(widths), most) if xs else None


def curves(
    run: Run, cells: Sequence[Cell], phase: Phase, against: Literal["epoch", "flops_total"]
) -> Curve | None:  # fmt: skip
    """Test accuracy against epochs or training FLOPs, at the epochs that every seed has evaluated."""
    seeds = _by_seed(run, cells, phase)
    points = []
    for epoch in sorted(set.intersection(*map(set, seeds))) if seeds else []:
        x = [number(seed[epoch].get(against)) for seed in seeds]
        y = [number(seed[epoch].get("test_accuracy")) for seed in seeds]
        if all(v is not None for v in (*x, *y)):
            points.append(([v for v in x if v is not None], [v for v in y if v is not None]))
    return _mean_curve(points)


def units_over_time(
    run: Run, cells: Sequence[Cell], phase: Phase, group: str, field: Literal["units", "dormant"]
) -> Curve | None:
    """Live units of a group (or dormant ones) against epochs; those of epoch 1 from the start."""
    seeds = _by_seed(run, cells, phase)
    points = []
    for epoch in sorted(set.intersection(*map(set, seeds))) if seeds else []:
        found = [number((seed[epoch].get(field) or {}).get(group)) for seed in seeds]
        y = [value for value in found if value is not None]
        if len(y) == len(seeds):
            points.append(([float(epoch)], y))
    return _mean_curve([([0.0], points[0][1]), *points] if points else [])


# -------------------------------------------------------------------------------------------------------- parity


def _per_seed(
    cells: Sequence[Cell], signal: str, moments: tuple[str, ...], at: str
) -> dict[tuple[str, int], list[list[float]]]:
    """Log-parities by (moment, value of the field ``at``): for each seed one list, over layers (and cycles)."""
    found: dict[tuple[str, int], list[list[float]]] = defaultdict(list)
    for cell in cells:
        own: dict[tuple[str, int], list[float]] = defaultdict(list)
        for record in cell.of("probe"):
            where, value = number(record.get(at)), number(record.get(f"log_parity_{signal}"))
            if record.get("moment") in moments and where is not None and value is not None:
                own[str(record["moment"]), int(where)].append(value)
        for key, values in own.items():
            found[key].append(values)
    return found


def parity_by_cycle(cells: Sequence[Cell], signal: str) -> dict[str, Curve]:
    """Log-parity against the cycle for each moment that was measured; mean over layers, then over seeds."""
    moments = ("post", "end", "exit", "survivors")
    found = _per_seed(cells, signal, moments, "cycle")
    result = {}
    for moment in moments:
        cycles = sorted(cycle for name, cycle in found if name == moment)
        curve = _mean_curve(([float(c)], [fmean(v) for v in found[moment, c]]) for c in cycles)
        if curve is not None:
            result[moment] = curve
    return result


def undefined_parities(cells: Sequence[Cell], signal: str) -> tuple[int, int]:
    """How many birth-parity records have no ratio, and how many there are."""
    records = [r for cell in cells for r in cell.of("probe") if r.get("moment") in ("post", "end", "exit")]
    return sum(number(r.get(f"log_parity_{signal}")) is None for r in records), len(records)


def age_curves(cells: Sequence[Cell], signal: str) -> Curve | None:
    """Ratio newborn over incumbent against age in steps: the geometric mean over layers and cycles, then seeds.

    ``half_width`` is in natural logarithms: multiply and divide by its exponential.
    """
    if not any(record.get("moment") == "age" for cell in cells for record in cell.of("probe")):
        return None
    found: dict[float, list[list[float]]] = defaultdict(list)
    for (_, age), values in _per_seed(cells, signal, ("post", "age"), "age").items():
        found[float(age)] += values
    curve = _mean_curve(([age], [fmean(v) for v in found[age]]) for age in sorted(found))
    if curve is None:
        return None
    silent = {
        number(record.get("age"))
        for cell in cells
        for record in cell.of("probe")
        if record.get("moment") in ("post", "age") and number(record.get(f"log_parity_{signal}")) is None
    }
    return Curve(curve.x, tuple(map(math.exp, curve.y)), curve.half_width, curve.n, tuple(a in silent for a in curve.x))


@dataclass(frozen=True)
class TimeToParity:
    """How long cohorts of newborns took until their mean gradient was half that of the incumbents.

    Attributes
    ----------
    cohorts : int
        Births that were followed: one for each seed, cycle and group.
    reached : int
        Of these, how many reached it before the next edit; the others are censored.
    median : int or None
        Kaplan and Meier's median age in optimizer steps; None where more than half never reached it.
    horizon : float
        Age of the oldest record.
    """

    cohorts: int
    reached: int
    median: int | None
    horizon: float


def times_to_parity(cells: Sequence[Cell]) -> TimeToParity | None:
    """First age at which a cohort's gradient ratio is at least one half."""
    cohorts: dict[tuple[str, object, object], list[tuple[int, float | None]]] = defaultdict(list)
    followed: set[tuple[str, object, object]] = set()
    for cell in cells:
        for record in cell.of("probe"):
            age, value = number(record.get("age")), number(record.get("log_parity_gradient"))
            if record.get("moment") not in ("post", "age", "end") or age is None:
                continue
            key = (cell.name, record.get("cycle"), record.get("group"))
            cohorts[key].append((int(age), None if value is None else math.exp(value)))
            if record["moment"] == "age":
                followed.add(key)
    if not followed:
        return None
    durations = [time_to_parity(sorted(cohorts[key], key=lambda point: point[0])) for key in sorted(followed, key=str)]
    return TimeToParity(
        len(durations), sum(d.observed for d in durations), median_time(durations),
        max(age for key in followed for age, _ in cohorts[key]),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- costs


def final(run: Run, cells: Sequence[Cell], phase: Phase, field: str) -> list[float]:
    """The last value of an epoch field for each seed that finished the phase; optimizer bytes: the largest."""
    pick: Callable[[Sequence[float]], float] = max if field == "optimizer_bytes" else lambda values: values[-1]
    found = []
    for cell in cells:
        values = [v for r in cell.of("epoch", phase) if (v := number(r.get(field))) is not None]
        if values and run.finished(cell, phase):
            found.append(pick(values))
    return found


def cost_weighted_taa(run: Run, cells: Sequence[Cell], phase: Phase) -> list[float]:
    """Checkpoint accuracies weighted by the training FLOPs of the cycle that each ends, one value a seed."""
    found = []
    for cell in cells:
        totals: dict[int, float] = {}
        for record in cell.of("epoch", phase):
            cycle, total = number(record.get("cycle")), number(record.get("flops_total"))
            if cycle is not None and total is not None:
                totals[int(cycle)] = max(total, totals.get(int(cycle), 0.0))
        ends = [totals[cycle] for cycle in sorted(totals)]
        weights = [end - before for before, end in zip([0.0, *ends], ends, strict=False)]
        accuracies = checkpoint_accuracies(cell, phase)
        if run.finished(cell, phase) and accuracies and len(accuracies) == len(weights) and sum(weights) > 0:
            pairs = zip(accuracies, weights, strict=True)
            found.append(sum(accuracy * weight for accuracy, weight in pairs) / sum(weights))
    return found


def equal_cost(run: Run, cells: Sequence[Cell], phase: Phase, budget: float) -> list[float]:
    """Test accuracy of each seed at the last evaluation that its training FLOPs stay within the budget."""
    found = []
    for cell in cells:
        within = [
            accuracy
            for record in cell.of("epoch", phase)
            if (total := number(record.get("flops_total"))) is not None
            and total <= budget * (1 + 1e-9)
            and (accuracy := number(record.get("test_accuracy"))) is not None
        ]
        if within and run.finished(cell, phase):
            found.append(within[-1])
    return found

"""The report says what the records say, survives what is missing, and is one page that loads nothing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from graphnet.errors import DataError
from graphnet.study.report import aggregate, figures, write_report
from graphnet.study.report.markup import seconds, si
from graphnet.study.report.run import read_run
from graphnet.study.statistics import mean_interval
from graphnet.study.summary import summarise

MakeRun = Callable[..., Path]
VOID = {"meta", "br", "link", "img", "input", "hr"}
SMALL: dict[str, Any] = {"levels": (0.2,), "seeds": 2, "cycles": 2, "epochs": 1}


class Page(HTMLParser):
    """A page read with the standard library: text, ids, links, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.sources: list[str] = []
        self.figures: list[dict[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags[tag] += 1
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if tag == "a" and "href" in given else []
        self.sources += [str(given[key]) for key in ("src", "srcset", "data", "action") if key in given]
        if tag == "svg" and "swatch" not in (given.get("class") or ""):
            self.figures.append(given)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_a_finished_run_fills_every_section(made_up_run: MakeRun) -> None:
    folder = made_up_run(seeds=3)
    html = write_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert "All 15 training runs are finished." in page.text  # 1 dense and 2 x 2 edited, 3 seeds
    assert 'class="missing"' not in html
    # Curves: 2 phases x 2 axes; parity: 2 signals at birth and against age; units: 2 groups. Each at 2 levels.
    # Graphs: before and after for prune and grow.
    assert len(page.figures) == 2 * (2 * 2 + 2 + 2 + 2) + 2 * 2


def test_the_page_is_complete_in_itself(made_up_run: MakeRun) -> None:
    folder = made_up_run(**SMALL)
    html = write_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0
    assert page.sources == []
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not addresses

    # Ids are unique, and every link stays on the page and finds its target.
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    assert [link for link in page.links if not link.startswith("#") or link[1:] not in page.ids] == []
    # Every picture has a text, every table a caption and headers.
    for figure in page.figures:
        assert figure["role"] == "img"
        assert len(str(figure["aria-label"])) > 30
    tables = re.findall(r"<table>.*?</table>", html, flags=re.S)
    assert tables
    for table in tables:
        assert "<caption>" in table
        assert 'scope="col"' in table
        assert 'scope="row"' in table
    # The same folder gives the same page.
    assert write_report(folder).read_text(encoding="utf-8") == html


def test_the_table_agrees_with_the_studys_summary(made_up_run: MakeRun) -> None:
    folder = made_up_run(seeds=3, without=["probe", "edit", "graph"])
    html = write_report(folder).read_text(encoding="utf-8")
    run = read_run(folder)
    rows = summarise(folder).rows
    assert len(rows) == 5
    for row in rows:
        cells = [c for c in run.cells if (c.key.label, c.key.compactness) == (row.label, row.compactness)]
        found = aggregate.scores(run, cells)
        assert row.ticket_acc is not None
        assert row.delta is not None
        for measure, wanted in (
            ("cycle acc", row.cycle_acc), ("cycle taa", row.cycle_taa), ("ticket acc", row.ticket_acc),
            ("delta acc", row.delta),
        ):  # fmt: skip
            estimate = mean_interval(found[measure])  # type: ignore[index]
            assert estimate.mean == pytest.approx(wanted.mean, abs=1e-12)
            assert estimate.half_width == pytest.approx(wanted.half_width, abs=1e-12)
        assert f"{100 * row.cycle_acc.mean:.2f} <span" in html


def set_accuracies(folder: Path, values: dict[str, list[float]]) -> None:
    """Give the last checkpoint of each phase, of each label, these accuracies by seed."""
    for cell in (folder / "cells").iterdir():
        about = json.loads((cell / "cell.json").read_text())
        if about["label"] not in values:
            continue
        lines = [json.loads(line) for line in (cell / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            if line["kind"] == "checkpoint":
                line["accuracy"] = values[about["label"]][about["seed"]]
        (cell / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_bold_means_a_significant_lead(made_up_run: MakeRun) -> None:
    folder = made_up_run(levels=(0.2,), seeds=3, cycles=1, epochs=1, without=["probe", "edit", "graph"])
    set_accuracies(folder, {"prune": [0.90, 0.91, 0.92], "grow": [0.80, 0.81, 0.82]})
    html = write_report(folder).read_text(encoding="utf-8")
    assert html.count("<strong>91.00") >= 4  # cycle and ticket, ACC and TAA
    assert "<strong>81.00" not in html
    assert "grow ahead" not in html
    assert "prune ahead" in html
    set_accuracies(folder, {"prune": [0.90, 0.91, 0.92], "grow": [0.89, 0.91, 0.92]})
    html = write_report(folder).read_text(encoding="utf-8")
    assert "<strong>91.00" not in html.partition('id="equal-cost"')[0]
    assert "prune ahead" not in html


def test_one_seed_has_no_interval(made_up_run: MakeRun) -> None:
    folder = made_up_run(levels=(0.2,), seeds=1, cycles=2, epochs=1, without=["graph"])
    html = write_report(folder).read_text(encoding="utf-8")
    scores = html.partition('id="scores"')[2].partition('id="tests"')[0]
    assert 'class="pm"' not in scores
    assert "one seed" in html
    assert "no test" in html
    assert "needs at least two finished seeds" in html


def test_what_is_missing_is_named(made_up_run: MakeRun) -> None:
    kinds = ["epoch", "probe", "edit", "graph", "checkpoint"]
    text = page_of(made_up_run(**SMALL, without=kinds)).text
    for said in (
        "No epoch has been recorded.", "Parity at birth was not measured", "Parity against age was not measured",
        "No edit has been recorded.", "No graph was stored.", "There is nothing to test yet",
        "Costs need at least one finished cycle phase.",
    ):  # fmt: skip
        assert said in text


@pytest.mark.parametrize("kind", ["epoch", "checkpoint"])
def test_one_kind_that_is_missing_leaves_the_others(made_up_run: MakeRun, kind: str) -> None:
    page = page_of(made_up_run(**SMALL, without=[kind, "edit", "graph"]))
    assert "No edit has been recorded." in page.text
    assert len(page.figures) >= 4


def test_a_run_that_is_under_way_gets_a_partial_report(made_up_run: MakeRun) -> None:
    folder = made_up_run(**SMALL)
    cells = sorted((folder / "cells").iterdir())
    for cell, status in zip(cells[:2], ("running", "failed"), strict=True):
        about = json.loads((cell / "cell.json").read_text())
        (cell / "cell.json").write_text(json.dumps(about | {"status": status, "error": "the disk is full"}))
        (cell / "graph_after.json").unlink()
    lines = (cells[0] / "metrics.jsonl").read_text().splitlines()
    (cells[0] / "metrics.jsonl").write_text("\n".join(lines[:3]) + '\n{"kind": "epo')
    (cells[5] / "metrics.jsonl").unlink()
    text = page_of(folder).text
    assert "This is a partial report" in text
    assert "4 of 6 training runs are finished, 1 are under way or were interrupted and 1 failed" in text
    assert "the disk is full" in text
    assert "cut short" in text
    assert "has no metrics.jsonl yet" in text


def test_a_phase_that_is_not_finished_stays_out_of_the_table(made_up_run: MakeRun) -> None:
    folder = made_up_run(**SMALL)
    cell = folder / "cells" / "mlp--grow--c0.2--s0"
    (cell / "cell.json").write_text(json.dumps(json.loads((cell / "cell.json").read_text()) | {"status": "running"}))
    run = read_run(folder)
    found = aggregate.scores(run, run.select("mlp", 0.2, "grow"))
    assert len(found["cycle acc"]) == 2  # all its cycles are there
    assert len(found["ticket acc"]) == 1


def test_an_experiment_that_has_not_begun(made_up_run: MakeRun, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    (folder / "cells").mkdir(parents=True)
    (folder / "experiment.yaml").write_text((made_up_run(**SMALL) / "experiment.yaml").read_text())
    text = page_of(folder).text
    assert "0 of 6 training runs are finished and 6 have not begun" in text
    assert "No training run has begun." in text


@pytest.mark.parametrize("damage", ["missing", "kind: [", "kind: experiment\nname: 3\n"])
def test_a_damaged_experiment_is_said_and_the_rest_shown(made_up_run: MakeRun, damage: str) -> None:
    folder = made_up_run(**SMALL, without=["probe", "edit", "graph"])
    if damage == "missing":
        (folder / "experiment.yaml").unlink()
    else:
        (folder / "experiment.yaml").write_text(damage)
    page = page_of(folder)
    assert "what was asked for is not known" in page.text
    assert len(page.figures) > 4


@pytest.mark.parametrize("text", ["{", "[]", '{"backbone": "mlp"}', '{"backbone": 1, "label": 2, "seed": null}'])
def test_a_damaged_cell_is_left_out(made_up_run: MakeRun, text: str) -> None:
    folder = made_up_run(**SMALL)
    (folder / "cells" / "mlp--grow--c0.2--s0" / "cell.json").write_text(text)
    run = read_run(folder)
    assert len(run.cells) == 5
    assert [problem for problem in run.problems if "cell mlp--grow--c0.2--s0 is left out" in problem]


def test_names_are_text_and_not_markup(made_up_run: MakeRun) -> None:
    label = '<b>grow</b> & $x_1$ "q"'
    folder = made_up_run(**SMALL, methods=[{"method": "prune"}, {"method": "grow", "label": label}], backbone="<i>mlp")
    html = write_report(folder).read_text(encoding="utf-8")
    assert "<b>grow</b>" not in html
    assert "<i>" not in html
    assert label in Page(html).text


def test_no_run_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(DataError, match=r"experiment\.yaml and the folder cells"):
        write_report(tmp_path)


def test_equal_cost_is_read_off_within_the_budget(made_up_run: MakeRun) -> None:
    folder = made_up_run(**SMALL)
    run = read_run(folder)
    cells = run.select("mlp", 0.2, "prune")
    first = [next(cell.of("epoch", "cycle")) for cell in cells]
    budget = first[0]["flops_total"]
    wanted = [record["test_accuracy"] for record in first]
    assert aggregate.equal_cost(run, cells, "cycle", budget) == wanted
    assert aggregate.equal_cost(run, cells, "cycle", 0.5 * budget) == []
    everything = aggregate.equal_cost(run, cells, "cycle", 1e30)
    assert everything == [list(cell.of("epoch", "cycle"))[-1]["test_accuracy"] for cell in cells]


def test_cost_weights_are_the_cycles_own_flops(made_up_run: MakeRun) -> None:
    folder = made_up_run(**SMALL)
    run = read_run(folder)
    (cell,) = [c for c in run.select("mlp", 0.2, "grow") if c.seed == 0]
    totals = [record["flops_total"] for record in cell.of("epoch", "cycle")]
    early, late = aggregate.checkpoint_accuracies(cell, "cycle")
    wanted = (early * totals[0] + late * (totals[1] - totals[0])) / totals[1]
    assert aggregate.cost_weighted_taa(run, [cell], "cycle") == [pytest.approx(wanted)]
    (dense,) = [c for c in run.select("mlp", 0.2, "dense") if c.seed == 0]  # every cycle costs the same
    even = fmean(aggregate.checkpoint_accuracies(dense, "cycle"))
    assert aggregate.cost_weighted_taa(run, [dense], "cycle") == [pytest.approx(even)]


def test_parity_is_averaged_over_layers_then_seeds(made_up_run: MakeRun) -> None:
    run = read_run(made_up_run(**SMALL))
    cells = run.select("mlp", 0.2, "grow")
    curve = aggregate.parity_by_cycle(cells, "activation")["post"]
    means = [
        fmean(r["log_parity_activation"] for r in cell.of("probe") if (r["moment"], r["cycle"]) == ("post", 2))
        for cell in cells
    ]
    assert curve.x == (1.0, 2.0)
    assert curve.y[1] == pytest.approx(fmean(means))
    assert curve.half_width[1] == pytest.approx(mean_interval(means).half_width)


def test_time_to_parity_counts_censored_cohorts(made_up_run: MakeRun) -> None:
    run = read_run(made_up_run(**SMALL))
    found = aggregate.times_to_parity(run.select("mlp", 0.2, "grow"))
    assert found is not None
    assert found.cohorts == 2 * 2 * 2  # seeds, cycles, groups
    assert found.median is None  # the made-up ratio stays below one half
    assert aggregate.times_to_parity(run.select("mlp", 0.2, "prune")) is None


def test_methods_keep_their_colours() -> None:
    small = figures.styles({"prune": "prune", "grow": "grow"})
    large = figures.styles({"dense": "dense", "ours": "grow", "prune": "prune", "grow": "grow", "set": "prune"})
    assert small["prune"].light == large["prune"].light
    assert small["grow"].light == large["ours"].light
    assert len({style.light for style in large.values()}) == 5
    many = figures.styles({f"grow {i}": "grow" for i in range(20)})
    assert len({(style.light, str(style.dash)) for style in many.values()}) >= 16


def test_numbers_as_text() -> None:
    assert [si(value) for value in (0, 0.5, 12, 1234, 2.5e13)] == ["0", "0.5", "12", "1.23 k", "25 T"]
    assert [seconds(value) for value in (0.004, 3.25, 61, 3700)] == ["4 ms", "3.25 s", "1 min 1 s", "1 h 1 min"]

"""The report of a study: one HTML page that needs nothing but itself.

It is written from the run folder alone, so it can be written again at any time, by anyone, and while the study is
still running. Figures are inline SVG; there is no script and nothing is fetched.
"""

from __future__ import annotations

import os
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from graphnet.study.report.figures import styles
from graphnet.study.report.run import Run, read_run
from graphnet.study.report.sections import sections
from graphnet.study.report.words import progress

__all__ = ["write_report"]


def write_report(run_dir: Path | str) -> Path:
    """Write ``report.html`` into a run folder.

    Kinds of records that are missing are named in the report and never stop it; a run that is still going or has
    failed gets a partial report that says so. The same folder gives the same page, byte for byte.

    Parameters
    ----------
    run_dir : path
        The folder that :func:`graphnet.study.run` wrote.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    DataError
        The folder is no run folder, cannot be written, or matplotlib or scipy (the extra ``study``) is missing.
    """
    run = read_run(run_dir)
    page = _page(run)
    target = run.folder / "report.html"
    part = target.with_name(".report.html.part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, target)
    return target


def _page(run: Run) -> str:
    own = files("graphnet.study.report")
    parts = sections(run)
    state, sentence = progress(run)
    title = run.experiment.name if run.experiment and run.experiment.name else run.folder.resolve().name
    return Template(own.joinpath("template.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        state=state,
        progress=sentence,
        style=own.joinpath("style.css").read_text(encoding="utf-8") + _method_colours(run),
        contents="".join(f'<li><a href="#{part.anchor}">{escape(part.title)}</a></li>' for part in parts),
        body="".join(
            f'<section id="{part.anchor}" aria-labelledby="h-{part.anchor}">'
            f'<h2 id="h-{part.anchor}">{escape(part.title)}</h2>{part.html}</section>'
            for part in parts
        ),
    )


def _method_colours(run: Run) -> str:
    looks = styles(run.methods()).values()
    light = "".join(f"{look.colour}:{look.light};" for look in looks)
    dark = "".join(f"{look.colour}:{look.dark};" for look in looks)
    return (
        f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n@media print{{:root{{{light}}}}}\n"
    )

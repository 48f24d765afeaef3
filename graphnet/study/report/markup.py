"""Small parts of the page: numbers as text, links to explanations, tables that a phone can show."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape

from graphnet.study.report.figures import Style, swatch
from graphnet.study.statistics import Estimate

__all__ = [
    "DASH", "fold", "html_table", "interval", "level_name", "named", "or_dash", "otherwise", "percent", "points",
    "seconds", "si", "term",
]  # fmt: skip

DASH = '<span class="none" title="not recorded">—</span>'
_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def si(value: float, unit: str = "", digits: int = 3) -> str:
    """A number with an SI prefix.

    Examples
    --------
    >>> si(12_345_678, "FLOP"), si(950), si(0)
    ('12.3 MFLOP', '950', '0')
    """
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor:
            text = f"{value / factor:.{digits}g}" if abs(value) < 1000 * factor else f"{value / factor:.0f}"
            return f"{text} {prefix}{unit}".strip()
    return f"{value:.{digits}g} {unit}".strip()


def seconds(value: float) -> str:
    """A duration.

    Examples
    --------
    >>> seconds(0.0123), seconds(75), seconds(7300)
    ('12.3 ms', '1 min 15 s', '2 h 1 min')
    """
    if value < 1:
        return f"{1000 * value:.3g} ms"
    if value < 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def points(value: float, *, signed: bool = False) -> str:
    """A share as per cent, with a true minus sign."""
    return f"{100 * value:{'+' if signed else ''}.2f}".replace("-", "−")


def interval(found: Estimate | None, form: Callable[[float], str], width: Callable[[float], str]) -> str:
    """``mean ± half width`` in HTML, the mean alone for a single seed."""
    if found is None:
        return DASH
    spread = "" if found.half_width is None else f' <span class="pm">± {width(found.half_width)}</span>'
    return f"{form(found.mean)}{spread}"


def percent(found: Estimate | None, *, signed: bool = False) -> str:
    """A share as per cent with its interval."""
    return interval(found, lambda v: points(v, signed=signed), lambda v: f"{100 * v:.2f}")


def term(word: str, anchor: str) -> str:
    """A word linked to its explanation at the end of the page."""
    return f'<a class="term" href="#{anchor}">{escape(word)}</a>'


def named(label: str, style: Style) -> str:
    """A method's label with its line."""
    return f'<span class="method">{swatch(style)}{escape(label)}</span>'


def html_table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, head_columns: int = 1, above: str = ""
) -> str:
    """A table that scrolls sideways on a narrow screen.

    ``head`` and ``rows`` are HTML; the first ``head_columns`` cells of a row are headers. A row header that is equal
    to the one above it, with all before it equal too, spans the rows. ``above`` is a row over the head.
    """
    body = [list(row) for row in rows]
    out = [f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(_plain(caption), quote=True)}">']
    out += [f"<table><caption>{caption}</caption><thead>{above}<tr>"]
    out += [f'<th scope="col"{_left(i, head_columns)}>{cell}</th>' for i, cell in enumerate(head)]
    out.append("</tr></thead><tbody>")
    for index, row in enumerate(body):
        before = body[index - 1] if index else None
        new = before is None or (head_columns > 1 and before[: head_columns - 1] != row[: head_columns - 1])
        out.append('<tr class="first">' if new else "<tr>")
        for column, cell in enumerate(row):
            if column >= head_columns:
                out.append(f"<td>{cell}</td>")
                continue
            same = before is not None and before[: column + 1] == row[: column + 1]
            if column < head_columns - 1 and same:
                continue
            span = 1
            if column < head_columns - 1:
                while index + span < len(body) and body[index + span][: column + 1] == row[: column + 1]:
                    span += 1
            many = f' rowspan="{span}"' if span > 1 else ""
            scope = "rowgroup" if span > 1 else "row"
            out.append(f'<th scope="{scope}"{many}>{cell}</th>')
        out.append("</tr>")
    out.append("</tbody></table></div>")
    return "".join(out)


def _left(index: int, head_columns: int) -> str:
    return ' class="left"' if index < head_columns else ""


def _plain(html: str) -> str:
    return re.sub(r"<[^>]*>", "", html)


def level_name(level: float) -> str:
    """A compactness as text."""
    return f"{level:g}"


def or_dash(value: float | None, form: Callable[[float], str]) -> str:
    """A value in its form, or the sign for one that was not recorded."""
    return DASH if value is None else form(value)


def fold(summary: str, html: str, *, opened: bool = False) -> str:
    """A part that the reader opens."""
    return f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>{html}</details>"


def otherwise(html: str, missing: str) -> str:
    """The part, or the sentence that says what is missing."""
    return html or f'<p class="missing">{missing}</p>'

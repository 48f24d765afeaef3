"""Figures as inline SVG: small, deterministic, readable in light and dark and without colour.

A method keeps its colour, dash and marker in every figure. Text stays text and takes the page's font and colour;
the colours of methods are CSS variables with a light and a dark value.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphnet.errors import DataError
from graphnet.study.report.aggregate import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MARKS", "Line", "Style", "inline", "mark_sign", "panel", "picture_of", "styles", "swatch"]

# Okabe & Ito's colours, which people with colour-blindness tell apart, in the order in which methods take them:
# light page, dark page.
PALETTE: tuple[tuple[str, str], ...] = (
    ("#0072b2", "#4da9e0"), ("#c44e00", "#f08a4b"), ("#00805f", "#35c79b"), ("#a8487f", "#e08bbd"),
    ("#9a6f00", "#e0b040"), ("#5b4bb5", "#a597f0"), ("#8a4b2a", "#cf9270"), ("#3f7a1f", "#8fc46a"),
)  # fmt: skip
GREY = ("#6b6b6b", "#a3a3a3")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_MARKERS = "osD^vPX*"
_MARK_SIGNS = dict(zip(_MARKERS, "●■◆▲▼✚✖★", strict=True))
MARKS: Mapping[str, str] = {"post": "o", "end": "^", "exit": "s", "survivors": "D"}
"""Markers of the moments at which parity is measured."""

# Colours that stand for the page's own until the SVG is written.
_INK, _FAINT = "#010203", "#020304"


@dataclass(frozen=True)
class Style:
    """How a method is drawn: ``colour`` is its CSS variable, ``light`` and ``dark`` what that stands for."""

    index: int
    light: str
    dark: str
    dash: Any
    marker: str

    @property
    def colour(self) -> str:
        """The CSS variable."""
        return f"--method-{self.index}"


@dataclass(frozen=True)
class Line:
    """One curve of a panel.

    ``kind`` is ``line``, ``step`` (a value holds since the point before) or ``marks`` (a marker at every point).
    ``shift`` moves it along x, so that intervals at one place do not hide one another.
    """

    label: str
    curve: Curve
    style: Style
    kind: Literal["line", "step", "marks"] = "line"
    marker: str | None = None
    shift: float = 0.0


def styles(methods: Mapping[str, str]) -> dict[str, Style]:
    """A style for each label: grow blue, prune vermilion, dense grey, further ones in the palette's order."""
    taken: dict[str, Style] = {}
    wanted = {"grow": 0, "prune": 1}
    free = [i for i in range(len(PALETTE)) if i not in {wanted[m] for m in wanted if m in methods.values()}]
    used: set[str] = set()
    extra = 0
    for index, (label, method) in enumerate(methods.items()):
        first = method not in used
        used.add(method)
        if method == "dense" and first:
            pair, turn = GREY, 2
        elif method in wanted and first:
            pair, turn = PALETTE[wanted[method]], wanted[method]
        else:
            pair, turn = PALETTE[free[extra % len(free)]], extra // len(free) + 2
            extra += 1
        taken[label] = Style(
            index, *pair, _DASHES[turn % len(_DASHES)], _MARKERS[index % len(_MARKERS)]
        )  # fmt: skip
    return taken


def swatch(style: Style) -> str:
    """A little line in a method's colour and dash, for legends and tables."""
    dash = "" if isinstance(style.dash, str) else ",".join(f"{2 * part:g}" for part in style.dash[1])
    array = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        '<svg class="swatch" viewBox="0 0 28 10" aria-hidden="true">'
        f'<line x1="1" y1="5" x2="27" y2="5" stroke="var({style.colour})" stroke-width="3"{array}/></svg>'
    )


def mark_sign(marker: str) -> str:
    """The character that looks like a marker, for legends."""
    return _MARK_SIGNS.get(marker, "●")


def panel(
    name: str,
    title: str,
    description: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    boundaries: Sequence[float] = (),
    reference: tuple[float, str] | None = None,
    y_log: bool = False,
    percent: bool = False,
    whole_x: bool = False,
    x_from_zero: bool = False,
    y_from_zero: bool = False,
    x_log_si: bool = False,
) -> str:
    """One small chart as ``<figure>``.

    Parameters
    ----------
    name : str
        Unique on the page; prefixes the ids in the SVG.
    title : str
        Caption under the chart.
    description : str
        Text alternative: what the chart shows and its last values.
    lines : sequence of Line
    boundaries : sequence of float
        Where edits take place, as vertical lines.
    reference : (value, text), optional
        A horizontal line with its name.

    Raises
    ------
    DataError
        matplotlib, of the extra ``study``, is missing.
    """
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

    settings = {
        "svg.hashsalt": f"graphnet {name}", "svg.fonttype": "none", "text.parse_math": False,
        "font.family": "sans-serif", "font.size": 10, "axes.linewidth": 0.8, "path.simplify_threshold": 0.5,
        "axes.unicode_minus": True, "axes.formatter.useoffset": False, "axes.formatter.use_mathtext": False,
    }  # fmt: skip
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **settings, "backend": "svg"}):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            _draw(axes, line, ratio=y_log, share=percent)
        low, high = _limits(lines, y_log)
        axes.set_ylim((max(low, -0.01), min(high, 1.01)) if percent else (low, high))
        _dress(axes, x_label, y_label, boundaries, reference, y_log)
        if percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}")
        else:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}".replace("-", "−"))
        if whole_x:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if x_from_zero:
            axes.set_xlim(left=0)
        if y_from_zero:
            axes.set_ylim(bottom=0)
        if x_log_si:
            axes.set_xscale("log")
            wide = math.log10(axes.get_xlim()[1] / axes.get_xlim()[0]) > 1.7  # more labels would touch
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if wide else (1.0, 2.0, 5.0), numticks=8))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_minor_locator(NullLocator())
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = inline(written.getvalue(), name, description)
    for line in lines:
        svg = svg.replace(line.style.light, f"var({line.style.colour})")
    return f'<figure class="panel">{svg}<figcaption>{escape(title)}</figcaption></figure>'


def _draw(axes: Axes, line: Line, *, ratio: bool, share: bool) -> None:
    curve, style = line.curve, line.style
    marker = line.marker or (style.marker if line.kind == "marks" or len(curve.x) == 1 else None)
    where: Any = "steps-pre" if line.kind == "step" else "default"
    x = [value + line.shift for value in curve.x]
    axes.plot(
        x, curve.y, color=style.light, linestyle=style.dash, linewidth=1.8, drawstyle=where,
        marker=marker, markersize=5, solid_capstyle="round",
    )  # fmt: skip
    known = [(x, y, half) for x, y, half in zip(x, curve.y, curve.half_width, strict=True) if half is not None]
    if known and any(half > 0 for _, _, half in known):
        xs, ys, halves = zip(*known, strict=True)
        if ratio:
            low = [y * math.exp(-h) for y, h in zip(ys, halves, strict=True)]
            high = [y * math.exp(h) for y, h in zip(ys, halves, strict=True)]
        else:
            low = [y - h for y, h in zip(ys, halves, strict=True)]
            high = [y + h for y, h in zip(ys, halves, strict=True)]
        if share:  # no accuracy lies outside
            low, high = [max(v, 0.0) for v in low], [min(v, 1.0) for v in high]
        if line.kind == "marks":
            axes.vlines(xs, low, high, color=style.light, linewidth=1.0, alpha=0.8)
        else:
            axes.fill_between(
                xs, low, high, color=style.light, alpha=0.18, linewidth=0,
                step="pre" if line.kind == "step" else None,
            )  # fmt: skip
    ended = [(x, y) for x, y, c in zip(curve.x, curve.y, curve.censored, strict=False) if c]
    if ended:
        axes.plot(
            *zip(*ended, strict=True),
            linestyle="none",
            marker="o",
            markersize=8,
            markerfacecolor="none",
            color=style.light,
        )


def _limits(lines: Sequence[Line], ratio: bool) -> tuple[float, float]:
    """Limits that show every mean; intervals may widen them by the means' range, so that means stay readable."""
    means, ends = [], []
    for line in lines:
        for y, half in zip(line.curve.y, line.curve.half_width, strict=True):
            value = math.log(y) if ratio else y
            means.append(value)
            ends += [value - (half or 0.0), value + (half or 0.0)]
    low, high = min(means), max(means)
    room = max(0.5 * (high - low), 0.02 * max(abs(low), abs(high)), 1e-9)
    pad = 0.04 * (high - low) + 1e-9
    limits = max(min(ends), low - room) - pad, min(max(ends), high + room) + pad
    return (math.exp(limits[0]), math.exp(limits[1])) if ratio else limits


def _dress(
    axes: Axes,
    x_label: str,
    y_label: str,
    boundaries: Sequence[float],
    reference: tuple[float, str] | None,
    y_log: bool,
) -> None:
    if y_log:
        from matplotlib.ticker import FixedLocator, NullLocator

        axes.set_yscale("log")
        low, high = axes.get_ylim()
        low, high = min(low, 0.8), max(high, 1.25)
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(FixedLocator(_ratio_ticks(low, high)))
        axes.yaxis.set_minor_locator(NullLocator())
    for boundary in boundaries:
        axes.axvline(boundary, color=_FAINT, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    if reference is not None:
        value, text = reference
        low, high = axes.get_ylim()
        if not low <= value <= high:
            axes.set_ylim(min(low, value), max(high, value))
        axes.axhline(value, color=_INK, linewidth=0.9, zorder=1)
        axes.annotate(
            text, (1, value), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
            ha="left", va="center", fontsize=8.5, color=_INK, annotation_clip=False,
        )  # fmt: skip
    axes.grid(axis="y", color=_FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_INK)
    axes.tick_params(colors=_INK, which="both")
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.margins(x=0.03)


def _ratio_ticks(low: float, high: float) -> list[float]:
    """Round ratios between two limits, at most about eight of them."""
    steps = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    for chosen in (steps, (1.0, 2.0, 3.0, 5.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**decade for decade in decades for step in chosen]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= 8:
            break
    return inside


def inline(svg: str, name: str, description: str, *, paper: bool = False) -> str:
    """Make an SVG file part of a page.

    Ids are prefixed with ``name``, those that nothing refers to are dropped, so that pictures on one page do not
    disturb one another; the file's header, metadata and global style sheet go; numbers are cut to 2 decimals.

    Parameters
    ----------
    svg : str
        The file's text.
    name : str
        Unique on the page.
    description : str
        Text alternative.
    paper : bool
        The picture brings its own colours and needs a white ground.
    """
    start = svg.find("<svg")
    body = svg[start:]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.S)
    body = re.sub(r"<defs>\s*</defs>", "", body)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r"<title>.*?</title>", "", body, flags=re.S)  # a name for each node: read aloud one by one
    used = set(re.findall(r"url\(#([^)]+)\)", body)) | set(re.findall(r'href="#([^"]+)"', body))
    body = re.sub(
        r'\s+id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body
    )  # fmt: skip
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(
        r'( d| points| transform| x| y)="([^"]*)"',
        lambda m: f'{m[1]}="' + re.sub(r"-?\d+\.\d{3,}", _short, m[2]).replace("\n", " ") + '"',
        body,
    )
    body = body.replace(_INK, "currentColor").replace(_FAINT, "var(--faint)")
    body = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r"\n\s*", "\n", body)
    kind = "picture paper" if paper else "picture"
    head = f'<svg class="{kind}" role="img" aria-label="{escape(description, quote=True)}"'
    body = re.sub(r"<svg\b", head, body, count=1)
    opening, _, rest = body.partition(">")
    if not paper:
        opening = re.sub(r'\s(width|height)="[^"]*"', "", opening)
    return f"{opening}>{rest}".strip()


def _short(found: re.Match[str]) -> str:
    value = float(found[0])
    if abs(value) < 1:  # factors of a scale are small
        return f"{value:.4g}" if abs(value) > 1e-4 else "0"
    return f"{value:.2f}".rstrip("0").rstrip(".")


def picture_of(path: Path, name: str, description: str) -> str:
    """A drawn SVG file as part of a page, on white."""
    return inline(path.read_text(encoding="utf-8"), name, description, paper=True)


def _matplotlib() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise DataError(
            f"the report's figures need the library 'matplotlib', which cannot be imported ({error}); "
            "install it with: pip install graphnet-engine[study]"
        ) from error
    return mpl

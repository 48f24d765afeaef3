"""Write docs/laws.md, what each operator keeps of the function: `python scripts/law_matrix.py [--check]`.

Every cell between the markers is measured by :mod:`graphnet.testing.law_matrix`. `--check` writes nothing and fails
where a verdict on the page is not what is measured.
"""

from __future__ import annotations

import argparse
import html
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from graphnet.testing.law_matrix import Row, law_matrix

PAGE = Path(__file__).resolve().parent.parent / "docs" / "laws.md"
START, END = "<!-- law matrix: written by scripts/law_matrix.py -->", "<!-- end of the law matrix -->"

CELL = re.compile(r"^(exact|approximate|changes|refused)")

# What a reason says of one network, and not of its kind: it is left out, so that like reasons are one.
SPECIFIC: tuple[tuple[str, str], ...] = (
    (r"^[a-z_]+ '[^']*'(?: with [a-z]+=\S+)?: ", ""),  # the call
    (r"(?:[\w.]+: ([^;()]*);? ?)(?=[^()]*\))", r"\1; "),  # the op that computes along a group
    (r"written by \w[\w.]*(?:, [\w.]+)+", "written by several"),
    (r"loss on the batch [\d.e+-]+, then [\d.e+-]+ \(predicted change [\d.e+-]+\)", "the loss on the batch falls"),
    (r"predicted change of the loss on the batch [\d.e+-]+", "the predicted change of the loss is negative"),
    (r"; on the batch the output changed by [\d.e+-]+ of its maximum", ""),
    (r"(?:, of '[^']*' by [\d.e+-]+)+|(?:, '[^']*' by [\d.e+-]+)+", ""),
    (r"(gamma|first-order gain) [\d.e+-]+", r"\1"),
    (r"rank \d+ of \d+: [\d.e+-]+ of", "below the full rank a part of"),
    (r"is lost at [^(]*\(", "is lost at … ("),
    (r"^[a-z0-9-]+(?: by [a-z0-9]+)?: (?=\S+ )", ""),  # the initialiser or score
    (r"(?<![=\w])'[^']*'", "…"),
    (r"\[[^\]]*\]", "[…]"),
)


def general(reason: str) -> str:
    """Return a reason without the names and numbers of the network that it was met on."""
    text = " ".join(reason.split())
    for pattern, plain in SPECIFIC:
        text = re.sub(pattern, plain, text)
    for inside in [*re.findall(r"\(([^()]*;[^()]*)\)", text), *([text] if " norm takes" in text else [])]:
        parts = dict.fromkeys(re.sub(r"^[\w.]+: ", "", part.strip()) for part in inside.split(";") if part.strip())
        text = text.replace(inside, "; ".join(parts))
    return text.strip()


def cell(row: Row, reasons: list[str]) -> str:
    """Return one cell: the verdict, the measured change where it is no rounding error, the number of the reason."""
    if row.verdict == "exact":
        return "exact"
    measured = (
        "" if row.error is None or row.error < 1e-9 else f" {row.error:.0e}".replace("e-0", "e-").replace("e+0", "e+")
    )
    reason = general(row.reason)
    if reason not in reasons:
        reasons.append(reason)
    return f"{row.verdict}{measured} <sup>{reasons.index(reason) + 1}</sup>"


def render(rows: Sequence[Row]) -> str:
    """Return the tables, one for each family of operators, and the list of reasons that their cells number."""
    parts, reasons = [], list[str]()
    for family in dict.fromkeys(row.family for row in rows):
        mine = [row for row in rows if row.family == family]
        names = list(dict.fromkeys(row.operator for row in mine))
        shown = [name.removeprefix("grow ") for name in names]
        lines = [f"## {family}", "", f"| layers | norm | {' | '.join(f'`{name}`' for name in shown)} |"]
        lines.append("|---|---|" + "---|" * len(names))
        found = {(row.case, row.norm, row.operator): cell(row, reasons) for row in mine}
        for case, norm in dict.fromkeys((row.case, row.norm) for row in mine):
            cells = [found.get((case, norm, name), "") for name in names]
            lines.append(f"| {case} | {norm} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    listed = [f"{number}. {html.escape(reason, quote=False)}" for number, reason in enumerate(reasons, start=1)]
    return "\n\n".join([*parts, *(["## Reasons", "\n".join(listed)] if listed else [])])


def verdicts(text: str) -> dict[tuple[str, str, str], str]:
    """Return the verdicts that a page states, by case, norm and operator (without `grow`)."""
    found: dict[tuple[str, str, str], str] = {}
    names: list[str] = []
    for line in text.splitlines():
        cells = [part.strip() for part in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if cells[:2] == ["layers", "norm"]:
            names = [name.strip("`") for name in cells[2:]]
        elif names and len(cells) == len(names) + 2 and not cells[0].startswith("---"):
            for name, part in zip(names, cells[2:], strict=True):
                if match := CELL.match(part):
                    found[cells[0], cells[1], name] = match[1]
    return found


def differences(rows: Iterable[Row], text: str) -> list[str]:
    """Return what a page says otherwise than these rows."""
    stated = verdicts(text)
    lines = []
    for row in rows:
        said = stated.get((row.case, row.norm, row.operator.removeprefix("grow ")))
        if said != row.verdict:
            lines.append(f"{row.operator} on {row.case} ({row.norm}): the page says {said}, measured is {row.verdict}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or with `--check` only say where it is wrong; return 1 if it is."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a verdict is wrong")
    options = parser.parse_args(arguments)
    rows = law_matrix()
    text = PAGE.read_text(encoding="utf-8")
    if options.check:
        wrong = differences(rows, text)
        print("\n".join(wrong))
        return 1 if wrong else 0
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{START}\n\n{render(rows)}\n\n{END}{after}", encoding="utf-8")
    print(f"written: {PAGE} ({len(rows)} cells)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

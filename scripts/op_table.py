"""Write docs/ops.md, the table of ops, from the op registry: `python scripts/op_table.py [--check]`.

Everything on the page is read from the op classes: attributes and defaults from their fields, the layout rule from
their docstrings, couplings and freezes from the calls that their rules make. `--check` writes nothing and fails where
the page is out of date.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FunctionType

from graphnet.ir.ops import (
    OPS,
    Op,
    activation,
    arithmetic,
    aten,
    attention,
    blend,
    conv,
    dense,
    io,
    norm,
    pool,
    shape,
    stored,
)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "ops.md"

FAMILIES = (
    ("Inputs and outputs", io, False),
    ("Linear layers and tables", dense, False),
    ("Convolutions", conv, False),
    ("Attention", attention, True),
    ("Norms", norm, True),
    ("Activations", activation, True),
    ("Arithmetic", arithmetic, True),
    ("Blends", blend, True),
    ("Pooling and means", pool, True),
    ("Shape", shape, True),
)
"""Heading, module, and whether zero at zero means anything for its ops (not where a bias decides)."""

IMPORTED = (
    stored, aten.contract, aten.convolve, aten.recur, aten.normalise, aten.pointwise, aten.view, aten.arrange,
    aten.reduce, aten.lookup, aten.create, aten.opaque,
)  # fmt: skip
"""Modules of the ops that `gn.from_torch` makes."""

IMPORTED_HEAD = """\
## Imported programs

What `gn.from_torch` makes of the ATen calls of a traced model where they are none of the layers above: see
[Importing a model](importing.md). Calls that are not named here and are not elementwise become an `opaque` op, which
freezes exactly the dimensions that it touches.

| op | ATen functions | layouts | couples, contracts, freezes | 0 to 0 | FLOPs |
|---|---|---|---|---|---|
"""

NOTES = {
    "Inputs and outputs": """
A document writes these under `inputs` and `outputs`, not among its `ops`: see [Documents](documents.md#architecture).
"""
}

SAID = {"couple": "couples", "contract": "contracts", "sum_over": "contracts", "freeze": "freezes"}
"""What a layout rule may call on its context, and the page's word for it."""

HEAD = """\
<!-- Written by scripts/op_table.py from the op registry; edit the op classes, then run the script. -->

# Ops

What an architecture document may name under `op`. An op without `inputs` reads the op before it.

| column | says |
|---|---|
| attributes | keys of the entry beside `name`, `op` and `inputs`; those without a default are required |
| layouts | what the op does to the dimensions of what it reads: see [Layouts](layouts.md) |
| couples, contracts, freezes | dimensions along which it takes a statistic; over which it sums without a weight; \
whose size cannot change; with the reason that errors give, and what that means for a unit group is in \
[Concepts](concepts.md#when-an-edit-is-not-possible) |
| 0 to 0 | whether zero maps to zero; a dash where weights decide |
| FLOPs | whether they are counted; as in torch's counter, matrix products, convolutions and attention are, and \
nothing else |

An op of your own is one class: [Adding an op](adding-an-op.md).
"""


def ops_of(module: object) -> list[type[Op]]:
    """Return the registered op classes that a module defines, in its order."""
    name = getattr(module, "__name__", "")
    return [cls for cls in OPS.values() if cls.__module__ == name]


def attributes(cls: type[Op]) -> str:
    """Return an op's attributes, with defaults as they are written in YAML."""
    shown = []
    for name, field in cls.model_fields.items():
        if name not in Op.model_fields:
            default = "" if field.is_required() else f": {json.dumps(field.default)}"
            shown.append(f"`{name}{default}`")
    return ", ".join(shown)


def words(cls: type[Op]) -> str:
    """Return an op's docstring in one line of Markdown."""
    text = " ".join((inspect.getdoc(cls) or "").split())
    return text.replace("``", "`").replace("|", "\\|")


def claims(cls: type[Op]) -> str:
    """Return what an op's layout rule couples, contracts and freezes, with its own reasons."""
    found: dict[str, list[str]] = {said: [] for said in dict.fromkeys(SAID.values())}
    for function in rule_functions(cls):
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SAID:
                reason = node.args[1]
                if cls.traced and not isinstance(reason, ast.Constant):
                    continue  # said by the op's own fields
                if not (isinstance(reason, ast.Constant) and isinstance(reason.value, str)):
                    raise SystemExit(f"{cls.__name__}: the reason it gives to {node.func.attr}() is not plain text")
                found[SAID[node.func.attr]].append(reason.value)
    return "; ".join(f"{said}: {', '.join(sorted(set(reasons)))}" for said, reasons in found.items() if reasons)


def rule_functions(cls: type[Op]) -> Iterator[FunctionType]:
    """Yield `infer` and every method and function of the op's module that it calls, directly or not."""
    scope = vars(sys.modules[cls.__module__])
    waiting, seen = ["infer", "rule"], set()
    while waiting:
        name = waiting.pop()
        function = getattr(cls, name, None) or scope.get(name)
        if name in seen or not isinstance(function, FunctionType) or function.__module__ != cls.__module__:
            continue
        seen.add(name)
        yield function
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        waiting += [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
        waiting += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]


def render() -> str:
    """Return the text of the page."""
    parts = [HEAD]
    for heading, module, judged in FAMILIES:
        rows = [
            "| op | attributes | layouts | couples, contracts, freezes | 0 to 0 | FLOPs |",
            "|---|---|---|---|---|---|",
        ]
        for cls in ops_of(module):
            zero = ("yes" if cls.zero_at_zero else "no") if judged else "–"
            counted = "counted" if cls.flops is not Op.flops else "none"
            cells = (f"`{cls.model_fields['op'].default}`", attributes(cls), words(cls), claims(cls), zero)
            rows.append(f"| {' | '.join((*cells, counted))} |")
        parts.append(f"## {heading}\n{NOTES.get(heading, '')}\n" + "\n".join(rows) + "\n")
    rows = []
    for cls in (found for module in IMPORTED for found in ops_of(module)):
        targets = getattr(cls, "targets", ())
        shown = ", ".join(f"`{name}`" for name in targets) or "–"
        counted = "counted" if cls.flops is not Op.flops else "none"
        cells = (f"`{cls.model_fields['op'].default}`", shown, words(cls), claims(cls), "–", counted)
        rows.append(f"| {' | '.join(cells)} |")
    parts.append(IMPORTED_HEAD + "\n".join(rows) + "\n")
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or with `--check` only say whether it is out of date; return 1 if it is."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    options = parser.parse_args(arguments)
    text = render()
    stale = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text
    if stale and not options.check:
        PAGE.write_text(text, encoding="utf-8")
    if stale:
        print(f"{'out of date' if options.check else 'written'}: {PAGE}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

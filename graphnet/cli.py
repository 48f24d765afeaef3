"""The command line: ``graphnet run | report | show | cost | schema | lint | replay``.

A mistake in a file or an argument ends a command with one message on standard error and the status 1 or 2, never
with a traceback (``--debug`` shows it). What a command needs is imported when it runs, so that help comes at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from graphnet.errors import GraphError, GraphnetError, SchemaError

if TYPE_CHECKING:
    from graphnet.ir.graph import Graph
    from graphnet.rules.lint import Finding
    from graphnet.schemas.experiment import Experiment
    from graphnet.schemas.policy import Policy

__all__ = ["app", "main"]

GraphReference = Annotated[str, typer.Argument(
    metavar="GRAPH", help="An architecture document, or a checkpoint; FILE@N is version N of a checkpoint's history.",
)]  # fmt: skip

INTERRUPTED = 130
_WIDE = 160
"""Columns where the output is no terminal, so that a table in a file is not cut."""


class _Commands(TyperGroup):
    """Turns errors that a user can mend into a message and a status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GraphnetError as error:
            if ctx.params.get("debug"):
                raise
            _complain(str(error))
            raise typer.Exit(2 if isinstance(error, SchemaError) else 1) from None
        except KeyboardInterrupt:
            again = ": run again to resume" if ctx.invoked_subcommand == "run" else ""
            _complain(f"interrupted{again}")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False,
    help="Neural networks that change their structure while they train.",
)  # fmt: skip

DocumentFile = Annotated[Path, typer.Argument(metavar="FILE", help="A YAML or JSON document.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]


def main() -> None:
    """Entry point of the program."""
    app(prog_name="graphnet")


def _version(wanted: bool) -> None:
    if wanted:
        from graphnet import __version__

        typer.echo(f"graphnet {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Neural networks that change their structure while they train."""


@app.command()
def run(
    file: DocumentFile,
    output: Annotated[Path | None, typer.Option(help="The run folder; by default the document's output, "
                                                "else runs/NAME.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that train side by side.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Refuse a folder that holds a part of this study "
                                        "already, instead of going on with it.")] = False,
    progress: Annotated[bool, typer.Option(" /--no-progress", help="Show no progress bars.")] = True,
) -> None:  # fmt: skip
    """Run an experiment, or what is left of it; print its table and the path of its report."""
    kind = _read(file).get("kind")
    if kind != "experiment":
        raise SchemaError(
            f"{file}: at kind: found {kind!r}; `graphnet run` runs documents of kind 'experiment'"
            + (f"; to look at this one: graphnet show {file}" if kind in ("architecture", "policy") else "")
        )
    from graphnet import study
    from graphnet.study.report import write_report

    found = study.run(
        file, output=output, resume=not fresh, workers=workers, progress=progress and sys.stderr.isatty()
    )  # fmt: skip
    _console().print(found.summary)
    typer.echo(f"report: {write_report(found.folder)}")


@app.command()
def report(folder: RunFolder) -> None:
    """Write the report of a run again; a run that is not finished gets a partial one."""
    from graphnet.study.report import write_report

    typer.echo(f"report: {write_report(folder)}")


@app.command()
def show(
    reference: Annotated[str, typer.Argument(metavar="FILE", help="A document, or a checkpoint; FILE@N is version N of "
        "a checkpoint's history.")],
    svg: Annotated[Path | None, typer.Option(help="Draw an architecture into this .svg or .png file.")] = None,
) -> None:  # fmt: skip
    """Print what a file says: an architecture's ops and unit groups, a policy's rules, an experiment's cells."""
    file = Path(reference)
    kind = "architecture" if _is_version(reference) or _is_checkpoint(file) else _read(file).get("kind")
    if svg is not None and kind != "architecture":
        raise SchemaError(f"--svg draws architectures; {file} is of kind {kind!r}")
    if kind == "architecture":
        graph = _graph_of(reference)
        _show_architecture(graph)
        if svg is not None:
            typer.echo(f"picture: {graph.draw(svg)}")
    elif kind == "policy":
        from graphnet.schemas.policy import load_policy_document

        _show_policy(load_policy_document(file))
    elif kind == "experiment":
        from graphnet.schemas.experiment import load_experiment_document

        _show_experiment(load_experiment_document(file), file.parent)
    else:
        raise SchemaError(f"{file}: at kind: found {kind!r}; expected one of architecture, experiment, policy")


@app.command()
def cost(
    file: GraphReference,
    input_shape: Annotated[list[str] | None, typer.Option(metavar="[NAME=]SIZES", help="Shape of an input without the "
        "batch, such as 3,32,32; one size more in front is the batch. Needed where sizes are dynamic.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Examples in a batch; 1 by default.")] = None,
    optimizer: Annotated[str, typer.Option(help="Whose state is counted.")] = "adam",
) -> None:  # fmt: skip
    """Print parameters, FLOPs and bytes of an architecture, op by op and in all."""
    graph = _graph_of(file)
    shapes, batch = _shapes(graph, input_shape or [], batch)
    found = graph.cost(shapes, batch=batch, optimizer=optimizer)
    table = _table(f"{graph.name}: one forward pass, batch of {batch}", "op", "kind", *_NUMBERS)
    for name, each in found.per_op.items():
        table.add_row(
            Text(name), graph.ops[name].op, f"{each.flops:,}", f"{each.params:,}", f"{each.activation_bytes:,}"
        )  # fmt: skip
    table.add_section()
    table.add_row("total", "", f"{found.flops:,}", f"{found.params:,}", f"{found.activation_bytes:,}", style="bold")
    console = _console()
    console.print(table)
    console.print(
        f"parameters {_bytes(found.param_bytes)}, buffers {_bytes(found.buffer_bytes)}, "
        f"state of {optimizer} {_bytes(found.optimizer_bytes)} (32-bit numbers)"
    )


_NUMBERS = ("FLOPs", "parameters", "activation bytes")


@app.command()
def diff(
    before: GraphReference,
    after: GraphReference,
    svg: Annotated[Path | None, typer.Option(help="Draw the difference into this .svg or .png file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON instead.")] = False,
) -> None:
    """Print what differs between two architectures or versions: ops, edges, units, parameters and FLOPs."""
    found = _graph_of(before).diff(_graph_of(after))
    typer.echo(json.dumps(found.record(), indent=2) if as_json else str(found))
    if svg is not None:
        typer.echo(f"picture: {found.draw(svg)}", err=as_json)


@app.command()
def schema(
    name: Annotated[str, typer.Argument(metavar="NAME", help="architecture, policy or experiment")],
    output: Annotated[Path | None, typer.Option(help="Write it into this file instead.")] = None,
) -> None:
    """Print the JSON Schema of a kind of document, for editors."""
    from graphnet.schemas.catalog import json_schema

    text = json.dumps(json_schema(name), indent=2, ensure_ascii=False)
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise GraphnetError(f"{output} cannot be written: {error}") from error


@app.command()
def lint(
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="A policy.")],
    network: Annotated[str, typer.Argument(metavar="NETWORK", help="An architecture, or a checkpoint.")],
    strict: Annotated[bool, typer.Option("--strict", help="Status 1 where a rule matches nowhere, too.")] = False,
    shown: Annotated[int, typer.Option("--matches", min=0, help="Matches of each rule that are listed.")] = 10,
) -> None:  # fmt: skip
    """Say what each rule of a policy would match in a network now, and why others would not."""
    from graphnet.rules.lint import lint as look
    from graphnet.schemas.policy import load_policy_document

    findings = look(load_policy_document(policy), _graph_of(network))
    console = _console()
    for finding in findings:
        console.print(_finding(finding, shown), soft_wrap=True)
    idle = sum(bool(finding.pattern) and not finding.matches for finding in findings)
    wrong = sum(bool(finding.problems) for finding in findings)
    count = "1 rule" if len(findings) == 1 else f"{len(findings)} rules"
    console.print(f"{count}: {idle} without a match, {wrong} with problems")
    if wrong or (strict and idle):
        raise typer.Exit(1)


@app.command()
def replay(
    folder: RunFolder,
    cell: Annotated[str | None, typer.Option(help="Only the cell of this name, a folder in RUN/cells.")] = None,
) -> None:
    """Replay the journal of each cell from its first graph and compare with its last; status 1 where they differ."""
    from graphnet.errors import DataError

    cells = folder / "cells"
    names = sorted(path.name for path in cells.iterdir() if path.is_dir()) if cells.is_dir() else []
    if not names:
        raise DataError(f"{folder} is no run folder: expected the folder cells with a folder for each cell in it")
    if cell is not None and cell not in names:
        raise DataError(f"{folder} has no cell {cell!r}; its cells are {', '.join(names)}")
    table = _table(f"{folder}: journals replayed", "cell", "versions", "verdict")
    verdicts = []
    for name in names if cell is None else [cell]:
        verdict, versions, why = _replay_cell(cells / name)
        verdicts.append(verdict)
        style = {"same": "green", "differs": "bold red"}.get(verdict, "yellow")
        table.add_row(Text(name), versions, Text(f"{verdict}{': ' if why else ''}{why}", style=style))
    console = _console()
    console.print(table)
    console.print(", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)))
    if "differs" in verdicts:
        raise typer.Exit(1)


# --------------------------------------------------------------------------------------------------------- showing


def _show_architecture(graph: Graph) -> None:
    ops = _table(f"{graph.name}, version {graph.version}: ops", "op", "kind", "reads", "gives (batch first)")
    for name, node in graph.nodes.items():
        reads = ", ".join(producer if port == 0 else f"{producer}:{port}" for producer, port in node.inputs)
        shapes = "  ".join("[" + ", ".join(map(str, dims)) + "]" for dims in node.outputs)
        ops.add_row(Text(name), node.op.op, Text(reads), Text(shapes))
    groups = _table("unit groups", "group", "units", "dormant", "kind", "marks")
    for group in graph.groups.values():
        marks = Text("")
        for mark, why, style in (
            ("frozen", group.frozen, "red"), ("output", "", "cyan") if group.output else ("", None, ""),
            ("coupled", group.coupled, "yellow"), ("cannot grow", group.no_growth, "magenta"),
        ):  # fmt: skip
            if why is not None and mark:
                marks.append(("\n" if marks else "") + mark, style=style)
                marks.append(f": {why}" if why else "")
        groups.add_row(Text(group.name), f"{group.size:,}", f"{len(group.dormant):,}" if group.dormant else "",
                       group.kind, marks)  # fmt: skip
    console = _console()
    console.print(ops)
    console.print(groups)
    params = sum(op.params for op in graph.cost(_nominal(graph)).per_op.values())
    console.print(f"{params:,} parameters in {len(graph.ops)} ops")


def _nominal(graph: Graph) -> dict[str, tuple[int, ...]]:
    """A shape for each input, with 1 for dimensions that change from batch to batch."""
    return {op.name: tuple(size if isinstance(size, int) else 1 for size in op.shape) for op in graph.inputs}


def _show_policy(policy: Policy) -> None:
    table = _table(f"{policy.name or 'policy'}: rules", "rule", "where", "when", "schedule", "steps", "preserves")
    for rule in policy.rules:
        where = ""
        if rule.match is not None:
            where = str(rule.match).replace("; ", "\n")
        if rule.at_most is not None:
            where += f"\nat most {rule.at_most}"
        steps = "\n".join(_brief(step, "do") for step in rule.steps)
        schedule = _brief(rule.schedule) + (f"\npriority {rule.priority}" if rule.priority else "")
        table.add_row(
            Text(rule.name), Text(where), Text(_brief(rule.when)), Text(schedule), Text(steps), rule.preserves or "",
        )  # fmt: skip
    console = _console()
    console.print(table)
    budgets = _brief(policy.budgets, "")
    if budgets:
        console.print(Text(f"budgets: {budgets}"))
    limits = _brief(policy, "", but=("kind", "schema_version", "name", "description", "rules", "budgets"))
    if limits:
        console.print(Text(f"limits: {limits}"))


def _finding(finding: Finding, shown: int) -> Text:
    text = Text(finding.rule, style="bold")
    lines: list[tuple[str, str]] = [(f"  {finding.pattern}" if finding.pattern else "  no pattern", "dim")]
    if finding.named:
        lines.append((f"  names {', '.join(finding.named)}", ""))
    lines += [(f"  problem: {problem}", "red") for problem in finding.problems]
    lines += [(f"  note: {note}", "yellow") for note in finding.notes]
    if finding.matches:
        more = f", the first {shown}" if len(finding.matches) > shown else ""
        lines.append((f"  {len(finding.matches)} match{'es' if len(finding.matches) > 1 else ''}{more}", "green"))
        lines += [(f"    {found}", "") for found in finding.matches[:shown]]
    elif finding.reason:
        lines.append((f"  no match: {finding.reason}", "yellow"))
        lines += [(f"    {part}", "") for part in (*finding.nodes, *finding.near)]
    for line, style in lines:
        text.append(f"\n{line}", style=f"not bold {style}".strip())
    return text


def _brief(value: Any, head: str = "kind", but: Sequence[str] = ()) -> str:
    """A model in one line: its kind, then what differs from the defaults, in the order of the model."""
    fields = type(value).model_fields
    given = {key: getattr(value, key) for key in fields if key != head and key not in but}
    parts = [
        f"{key} {_plain(item)}"
        for key, item in given.items()
        if item != fields[key].get_default(call_default_factory=True)
    ]
    return " ".join(filter(None, [str(getattr(value, head, "")) if head else "", ", ".join(parts)]))


def _plain(value: Any) -> str:
    from graphnet.schemas.models import Frozen

    if isinstance(value, Frozen):
        written = value.model_dump(mode="json", exclude_defaults=True, by_alias=True)
        return f"({_brief(value)})" if isinstance(written, Mapping) else _plain(written)
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) + ")"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _show_experiment(experiment: Experiment, base: Path) -> None:
    from graphnet.study.cells import cells_of, editable_groups, full_graph, resolve, target_units

    experiment = resolve(experiment, base)
    table = _table(
        f"{experiment.name or 'experiment'}: cells", "backbone", "method", "compactness", "units at the end", "seeds"
    )  # fmt: skip
    graphs = {backbone.name: full_graph(backbone) for backbone in experiment.backbones}
    groups = {b.name: editable_groups(graphs[b.name], b) for b in experiment.backbones}
    cells = cells_of(experiment)
    rows: dict[tuple[str, str, float | None], list[Any]] = {}
    for cell in cells:
        rows.setdefault((cell.backbone, cell.label, cell.compactness), []).append(cell)
    for (backbone, label, level), each in rows.items():
        units = target_units(experiment, each[0], graphs[backbone], groups[backbone])
        table.add_row(
            Text(backbone), Text(label), "all units" if level is None else f"{level:g}",
            Text(", ".join(f"{group} {count}" for group, count in units.items())),
            f"{len(each)} ({', '.join(str(cell.seed) for cell in each[:12])}{' ...' if len(each) > 12 else ''})",
        )  # fmt: skip
    train = experiment.train
    console = _console()
    console.print(table)
    console.print(Text(
        f"{len(cells)} cells on {experiment.data.name}: {train.cycles} cycles of {train.epochs_per_cycle} epochs, "
        f"{train.optimizer.name} at {train.optimizer.lr:g}, batches of {train.batch_size}"
        + (", then the ticket" if experiment.ticket.enabled else "")
    ))  # fmt: skip


# --------------------------------------------------------------------------------------------------------- helpers


def _graph_of(reference: str) -> Graph:
    """The graph of a document, or of a version of a checkpoint."""
    from graphnet.ir.document import load

    name, version = reference, ""
    if _is_version(reference):
        name, _, version = reference.rpartition("@")
    if not _is_checkpoint(Path(name)):
        if version:
            raise GraphError(f"{reference}: {name} is no checkpoint, so that it has no version {version}")
        return load(Path(name))
    from graphnet.runtime.checkpoint import load_checkpoint

    history = load_checkpoint(name).history
    if version and not version.isdecimal():
        raise GraphError(f"{reference}: after @ stands the number of a version, not {version!r}")
    return history[int(version)].graph if version else history.latest.graph


def _is_version(reference: str) -> bool:
    return "@" in reference and not Path(reference).exists()


def _is_checkpoint(path: Path) -> bool:
    """Whether a file begins as safetensors do: a length that text cannot spell, then a mapping."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        return False
    return len(start) == 9 and int.from_bytes(start[:8], "little") < 1 << 32 and start[8:] == b"{"


def _replay_cell(folder: Path) -> tuple[str, str, str]:
    """Verdict, number of versions and reason for one cell."""
    from graphnet.ir.document import load
    from graphnet.runtime.replay import replay_graph
    from graphnet.study.records import read_records

    missing = [n for n in ("graph_before.json", "journal.jsonl", "graph_after.json") if not (folder / n).is_file()]
    if missing:
        return "not finished", "", f"{', '.join(missing)} missing"
    try:
        records = read_records(folder / "journal.jsonl")
        journal = [record for record in records if record.get("phase", "cycle") == "cycle"]  # tickets begin again
        found = replay_graph(load(folder / "graph_before.json"), journal).to_document()
        wanted = load(folder / "graph_after.json").to_document()
    except GraphnetError as error:
        return "differs", "", str(error)
    different = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
    why = f"{', '.join(different)} of the graph are not those of graph_after.json" if different else ""
    return ("differs" if different else "same"), str(len(journal)), why


def _shapes(graph: Graph, given: Sequence[str], batch: int | None) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes by input without the batch, and the batch, from ``[name=]sizes`` texts."""
    inputs = {op.name: op.shape for op in graph.inputs}
    shapes: dict[str, tuple[int, ...]] = {}
    for text in given:
        name, sign, sizes = text.rpartition("=")
        if not sign:
            if len(inputs) > 1:
                raise GraphError(f"--input-shape {text}: say which input, as NAME=SIZES; inputs: {', '.join(inputs)}")
            name = next(iter(inputs))
        if name not in inputs:
            raise GraphError(f"--input-shape {text}: there is no input {name!r}; expected one of {', '.join(inputs)}")
        try:
            shape = tuple(int(size) for size in sizes.replace("x", ",").split(","))
        except ValueError:
            raise GraphError(f"--input-shape {text}: expected whole numbers with commas, such as 3,32,32") from None
        if len(shape) == len(inputs[name]) + 1:
            if batch not in (None, shape[0]):
                raise GraphError(f"--input-shape {text}: its batch {shape[0]} is not --batch {batch}; give one of them")
            batch, shape = shape[0], shape[1:]
        shapes[name] = shape
    return shapes, batch or 1


def _read(file: Path) -> dict[str, Any]:
    from graphnet.schemas.base import read_document

    return read_document(file)


def _bytes(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name in (*_NUMBERS, "units", "dormant", "versions") else "left")
    return table


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=_WIDE)
    return console


def _complain(message: str) -> None:
    """One message on standard error, in red where that is a terminal."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text(f"error: {message}", style="red"))


if __name__ == "__main__":
    main()

"""Layout inference: one topological pass of the ops' rules, then a second that must change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphnet.errors import GraphError
from graphnet.ir.expressions import evaluate, names
from graphnet.ir.groups import UnitGroup
from graphnet.ir.layout import Layout, atom, const, join
from graphnet.ir.ops.base import Dims, Op, Role, TensorSpec
from graphnet.ir.ops.io import Input
from graphnet.ir.roles import Use, assign_roles, constant_ops, stored_behind
from graphnet.ir.unify import Unifier

__all__ = ["BATCH", "MAX_TOTAL", "MAX_UNITS", "Inference", "Node", "infer"]

BATCH = "batch"
MAX_UNITS = 4_000_000
"""Most units of one group, so that a document with a wrong number cannot fill the memory."""
MAX_TOTAL = 20_000_000
"""Most units of all groups together."""
_NOMINAL = (1_000_003, 10_007, 10_009, 10_037, 10_039, 10_061, 10_067, 10_069)
"""Sizes that stand for dynamic dimensions while layouts are inferred: primes, so that nothing divides them."""


@dataclass(frozen=True, slots=True)
class Node:
    """An op in its graph: what it reads and what was inferred of it.

    Attributes
    ----------
    op : Op
        Attributes, with sizes as they are in this version.
    inputs : tuple of (str, int)
        Producer and its output port, for each operand.
    outputs : tuple of Dims
        Layouts of each output.
    tensors : tuple of TensorSpec
    sizes : mapping
        Size arguments as layouts.
    coupled, contracted : tuple of (Layout, str)
        Dimensions along which the op takes a statistic, or sums with no weight; with the reason.
    """

    op: Op
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[Dims, ...] = ()
    tensors: tuple[TensorSpec, ...] = ()
    sizes: Mapping[str, Layout | tuple[Layout, ...]] = field(default_factory=dict)
    coupled: tuple[tuple[Layout, str], ...] = ()
    contracted: tuple[tuple[Layout, str], ...] = ()


@dataclass(slots=True)
class Inference:
    """The result: nodes with layouts over group names, groups, and the dynamic dimensions with nominal sizes."""

    nodes: dict[str, Node]
    groups: dict[str, UnitGroup]
    dynamic: dict[str, int]


class _Context:
    """Implements :class:`graphnet.ir.ops.base.Context` for one graph; rules are run twice on it."""

    def __init__(self, describe: Callable[[str], str], *, lenient: bool = False) -> None:
        self.unifier = Unifier(lenient=lenient)
        self.dynamic: dict[str, Layout] = {}
        self.owners: dict[str, str] = {}
        self.describe = describe
        self.memo: dict[tuple[str, int], Any] = {}
        self.hints: dict[str, tuple[str, str | None, str]] = {}
        self.outs: list[Layout] = []
        self.pins: dict[str, dict[str, Any]] = {}
        self.records: dict[str, dict[str, list[Any]]] = {}
        self.op: Op | None = None
        self.calls = 0
        self.total = 0

    def begin(self, op: Op) -> None:
        self.op, self.unifier.op, self.calls = op, op.name, 0
        self.records[op.name] = {"tensors": [], "sizes": [], "coupled": [], "contracted": [], "uses": [], "sums": []}

    @property
    def _record(self) -> dict[str, list[Any]]:
        assert self.op is not None
        return self.records[self.op.name]

    def _once(self, make: Callable[[], Any]) -> Any:
        assert self.op is not None
        key = (self.op.name, self.calls)
        self.calls += 1
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def units(
        self, size: int, *, role: str | None = None, minimum: int = 1, label: str | None = None
    ) -> Layout:  # fmt: skip
        assert self.op is not None
        op = self.op

        def make() -> Layout:
            self.total += size
            if size > MAX_UNITS or self.total > MAX_TOTAL:
                limit = f"{MAX_UNITS:,} units" if size > MAX_UNITS else f"{MAX_TOTAL:,} units in all groups"
                raise self.error(f"a group of {size:,} units: graphnet names every unit, {limit} at most")
            layout = self.unifier.fresh(size, role=role, minimum=minimum)
            key = layout.single
            assert key is not None
            self.hints[key] = (op.name, label or role, op.unit_kind)
            return layout

        layout: Layout = self._once(make)
        return layout

    def unknown(self, size: int) -> Layout:
        layout: Layout = self._once(lambda: self.unifier.fresh(size))
        return layout

    def extent(self, expression: str) -> Layout:
        if expression in self.dynamic:
            return self.dynamic[expression]

        def make() -> Layout:
            nominal = {name: self.unifier.size(layout) for name, layout in self.dynamic.items()}
            size = evaluate(expression, nominal)
            if size < 1:
                raise self.error(f"a dimension of size {expression} may be empty")
            if not names(expression):
                return const(size)
            return self.unifier.fresh(size, dynamic=expression, derived=True)

        layout: Layout = self._once(make)
        return layout

    def hint(self, layout: Layout, role: str) -> None:
        known = self.unifier.info
        found = {key for key in self.unifier.resolve(layout).atoms() if known[key].dynamic is None}
        info = known[found.pop()] if len(found) == 1 else None
        if info is not None and info.role is None:
            info.role = role

    def cut(self, layout: Layout, at: int) -> tuple[Layout, Layout] | None:
        parts = self._once(lambda: self.unifier.cut(layout, at))
        return None if parts is None else (self.unifier.resolve(parts[0]), self.unifier.resolve(parts[1]))

    def use(
        self, operand: int, roles: Sequence[Role | None], kind: Any, newborn: float = 0.0, *, inner: bool = False
    ) -> None:
        self._record["uses"].append(Use(operand, tuple(roles), kind, newborn, inner))

    def sum_over(self, layout: Layout, reason: str, *operands: int) -> None:
        self._record["sums"].append((layout, reason, operands))

    def unify(self, left: Layout, right: Layout) -> None:
        try:
            self.unifier.unify(left, right)
        except GraphError as error:
            raise self.error(str(error)) from None

    def factor(self, layout: Layout, lead: int) -> tuple[Layout, Layout]:
        first, second = self._once(lambda: self.unifier.factor(layout, lead))
        return self.unifier.resolve(first), self.unifier.resolve(second)

    def split(self, layout: Layout, sizes: Sequence[int]) -> list[Layout]:
        def make() -> list[Layout]:
            parts, rest = [], layout
            for size in sizes[:-1]:
                part, rest = self.unifier.split(rest, size)
                parts.append(part)
            return [*parts, rest]

        parts: list[Layout] = [self.unifier.resolve(part) for part in self._once(make)]
        self.unify(layout, join(*parts))
        return [self.unifier.resolve(part) for part in parts]

    def align(self, left: Sequence[Layout], right: Sequence[Layout]) -> None:
        try:
            self.unifier.align(left, right)
        except GraphError as error:
            raise self.error(str(error)) from None

    def freeze(self, layout: Layout, reason: str) -> None:
        self.unifier.freeze(layout, reason)

    def couple(self, layout: Layout, reason: str) -> None:
        self._record["coupled"].append((layout, reason))

    def contract(self, layout: Layout, reason: str) -> None:
        self._record["contracted"].append((layout, reason))

    def output(self, layout: Layout) -> None:
        self.outs.append(layout)

    def size(self, key: str, layout: Layout | Sequence[Layout]) -> None:
        self._record["sizes"].append((key, layout))

    def pin(self, key: str, value: Any) -> None:
        assert self.op is not None
        self.pins.setdefault(self.op.name, {})[key] = value

    def tensor(
        self, name: str, kind: Any, *dims: tuple[Layout, Role], newborn: float = 0.0,
        buffer: bool = False, shared: str | None = None,
    ) -> None:  # fmt: skip
        assert self.op is not None
        full = f"{self.op.path}.{name}" if name else self.op.path
        if shared is None and full in self.owners and self.owners[full] != self.op.name:
            shared = full  # a layer that is called again
        elif shared is None:
            self.owners[full] = self.op.name
        spec = TensorSpec(
            full, tuple(layout for layout, _ in dims), tuple(role for _, role in dims),
            kind, newborn, buffer, shared,
        )  # fmt: skip
        self._record["tensors"].append(spec)

    def number(self, layout: Layout) -> int:
        return self.unifier.size(self.unifier.resolve(layout))

    def length(self, layout: Layout) -> int | None:
        resolved = self.unifier.resolve(layout)
        if any(self.unifier.info[key].dynamic for key in resolved.atoms()):
            return None
        return self.unifier.size(resolved)

    def fixed(self, layout: Layout) -> bool:
        return all(self.unifier.info[key].dynamic for key in self.unifier.resolve(layout).atoms())

    def error(self, message: str) -> GraphError:
        assert self.op is not None
        prefix = f"op {self.op.name!r}: "
        message = message.removeprefix(prefix)
        return GraphError(f"{prefix}{message}\n{self.describe(self.op.name)}")

    def dims(self, shapes: Sequence[Dims]) -> str:
        return ", ".join(f"[{', '.join(self.unifier.show(self.unifier.resolve(d)) for d in dims)}]" for dims in shapes)


def infer(
    ops: Sequence[Op], edges: Mapping[str, tuple[tuple[str, int], ...]], *, twice: bool = True
) -> Inference:  # fmt: skip
    """Infer layouts and unit groups of ops in topological order.

    ``twice`` runs every rule again and checks that nothing changes: a rule that is not stable is a bug. Where the same
    ops have been seen to be stable, at other widths, once is enough; so it is where no rule bound a layout, if all are
    graphnet's own: they would find what they found.

    Raises
    ------
    GraphError
        Dimensions that must agree do not, or a rule is not stable.
    """
    shapes: dict[str, tuple[Dims, ...]] = {}

    def describe(name: str) -> str:
        lines = [f"  {_line(op, edges[op.name])}" for op in ops if op.name == name or op.name in dict(edges[name])]
        known = [f"    {op}:{port} is {ctx.dims([shapes[op][port]])}" for op, port in edges[name] if op in shapes]
        return "\n".join(["  here:", *lines, *known])

    ctx = _Context(describe, lenient=any(op.traced for op in ops))
    unifier = ctx.unifier
    dynamic = ctx.dynamic

    def dimension(entry: int | str) -> Layout:
        if isinstance(entry, int):
            if entry < 1:
                raise ctx.error(f"an input dimension is at least 1, not {entry}")
            return const(entry)
        if entry not in dynamic:
            if len(dynamic) >= len(_NOMINAL):
                raise ctx.error(f"more than {len(_NOMINAL) - 1} dynamic dimensions")
            dynamic[entry] = unifier.fresh(_NOMINAL[len(dynamic)], dynamic=entry)
        return dynamic[entry]

    for second in (False, True) if twice else (False,):
        before = unifier.changes
        ctx.outs.clear()
        for op in ops:
            ctx.begin(op)
            if isinstance(op, Input):
                shapes[op.name] = (tuple(dimension(entry) for entry in op.full_shape),)
                continue
            reads = [tuple(unifier.resolve(dim) for dim in shapes[producer][port]) for producer, port in edges[op.name]]
            out = op.infer(ctx, *reads)
            several = bool(out) and isinstance(out[0], tuple)
            shapes[op.name] = out if several else (out,)  # type: ignore[assignment]
            _tie(ctx, op)
            for use in ctx.records[op.name]["uses"]:
                if use.operand >= len(reads) or len(use.roles) != len(reads[use.operand]):
                    raise ctx.error(f"it reads operand {use.operand} with {len(use.roles)} dimensions")
        if second and unifier.changes != before:
            raise GraphError(
                "layout inference is not stable: running every rule again changed a layout; an op's rule is wrong"
            )
        if not unifier.changes and all(type(op).__module__.startswith("graphnet.") for op in ops):
            break
    return _collect(ctx, ops, edges, shapes, dynamic)


def _tie(ctx: _Context, op: Op) -> None:
    for spec in ctx.records[op.name]["tensors"]:
        if spec.shared is None:
            continue
        owner = ctx.owners.get(spec.shared, "")
        found = [s for s in ctx.records.get(owner, {}).get("tensors", ()) if s.name == spec.shared]
        if not found or found[0].shared is not None:
            raise ctx.error(f"it shares the tensor {spec.shared!r}, which no earlier op owns")
        if len(found[0].dims) != len(spec.dims):
            raise ctx.error(f"it shares {spec.shared!r}, which has another number of dimensions")
        for one, two in zip(found[0].dims, spec.dims, strict=True):
            ctx.unify(one, two)


def _line(op: Op, reads: Sequence[tuple[str, int]]) -> str:
    inputs = ", ".join(name if port == 0 else f"{name}:{port}" for name, port in reads)
    return f"{op.name} = {op.op}({inputs})"


def _collect(
    ctx: _Context,
    ops: Sequence[Op],
    edges: Mapping[str, tuple[tuple[str, int], ...]],
    shapes: Mapping[str, tuple[Dims, ...]],
    dynamic: Mapping[str, Layout],
) -> Inference:
    unifier = ctx.unifier
    traced = any(op.traced for op in ops)
    constant = constant_ops(ops, edges) if traced else frozenset()
    if traced:
        _finish_traced(ctx, ops, edges, shapes, constant)
    names, kinds = _name_groups(ctx, sorted(ops, key=lambda op: op.name in constant), shapes)
    names |= {layout.single or "": f"<{entry}>" for entry, layout in dynamic.items()}
    derived = _name_derived(ctx, names)

    known: dict[Layout, Layout] = {}

    def final(layout: Layout) -> Layout:
        found = known.get(layout)
        if found is None:
            found = known[layout] = unifier.resolve(layout).rename(names)
        return found

    nodes: dict[str, Node] = {}
    for op in ops:
        record = ctx.records[op.name]
        pins = ctx.pins.get(op.name)
        nodes[op.name] = Node(
            op.model_copy(update=pins) if pins else op,
            edges[op.name],
            tuple(tuple(final(dim) for dim in dims) for dims in shapes[op.name]),
            tuple(
                TensorSpec(
                    s.name, tuple(final(d) for d in s.dims), s.roles, s.kind, s.newborn, s.buffer, s.shared
                )
                for s in record["tensors"]
            ),
            {
                key: final(layout) if isinstance(layout, Layout) else tuple(final(part) for part in layout)
                for key, layout in record["sizes"]
            },
            tuple((final(layout), reason) for layout, reason in record["coupled"]),
            tuple((final(layout), reason) for layout, reason in record["contracted"]),
        )  # fmt: skip
    groups = _make_groups(ctx, nodes, names, kinds, {a for layout in ctx.outs for a in final(layout).atoms()})
    sizes = {f"<{entry}>": unifier.size(layout) for entry, layout in dynamic.items()} | derived
    for node in nodes.values():
        for spec in node.tensors:
            for key in (key for layout in spec.dims for key in layout.atoms() if key in sizes):
                raise GraphError(
                    f"op {node.op.name!r}: its tensor {spec.name!r} would have the dynamic dimension {key}, whose size "
                    "changes from batch to batch: move that dimension elsewhere first (transpose)"
                )
    return Inference(nodes, groups, sizes)


def _name_derived(ctx: _Context, names: dict[str, str]) -> dict[str, int]:
    """Names of dimensions whose size is an expression and that nothing refined, with their nominal sizes."""
    found: dict[str, int] = {}
    for key, info in ctx.unifier.info.items():
        if info.derived and key not in ctx.unifier.bound:
            names[key] = f"<{info.dynamic}>"
            found[names[key]] = info.size
    return found


def _finish_traced(
    ctx: _Context,
    ops: Sequence[Op],
    edges: Mapping[str, tuple[tuple[str, int], ...]],
    shapes: Mapping[str, tuple[Dims, ...]],
    constant: frozenset[str],
) -> None:
    """What an imported program leaves open: roles of tensors that stand alone, and dimensions that none holds."""
    resolve = ctx.unifier.resolve
    _freeze_unheld(ctx, ops)
    sources = {op.name: ctx.records[op.name]["tensors"][0] for op in ops if op.source and op.name in constant}
    uses = {op.name: ctx.records[op.name]["uses"] for op in ops}
    for name, specs in assign_roles(ops, edges, uses, shapes, sources, resolve).items():
        ctx.records[name]["tensors"][:] = specs
    for op in ops:
        record = ctx.records[op.name]
        for layout, reason, operands in record["sums"]:
            held: set[str] = set()
            for operand in operands:
                for name in stored_behind(edges[op.name][operand][0], edges, constant, sources):
                    held.update(key for dim in sources[name].dims for key in resolve(dim).atoms())
            if not set(resolve(layout).atoms()) <= held:
                record["contracted"].append((layout, reason))


def _freeze_unheld(ctx: _Context, ops: Sequence[Op]) -> None:
    """A dimension of no stored tensor has no units that an edit could move."""
    unifier = ctx.unifier
    held: set[str] = set()
    for record in ctx.records.values():
        for spec in record["tensors"]:
            held.update(key for dim in spec.dims for key in unifier.resolve(dim).atoms())
    loose = [
        key
        for key, info in unifier.info.items()
        if key not in unifier.bound and key not in held and info.dynamic is None
    ]
    for key in loose:
        origin = ctx.hints.get(key)
        unifier.op = origin[0] if origin else ops[-1].name
        unifier.freeze(atom(key), "no stored tensor holds it")


def _no_growth(nodes: Mapping[str, Node]) -> dict[str, str]:
    """Groups of which a constant holds a value for each unit, which nothing says for a new one."""
    found: dict[str, str] = {}
    for node in nodes.values():
        tables = [spec for spec in node.tensors if spec.buffer and spec.kind == "table"] if node.op.source else []
        for spec in tables:
            for key in {key for dim in spec.dims for key in dim.atoms()}:
                found.setdefault(
                    key, f"the buffer {spec.name!r} holds a value for each unit, and nothing says a new unit's"
                )
    return found


def _name_groups(
    ctx: _Context, ops: Sequence[Op], shapes: Mapping[str, tuple[Dims, ...]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Names and kinds of the atoms that are left: each after the first op that writes it."""
    unifier = ctx.unifier
    names: dict[str, str] = {}
    kinds: dict[str, str] = {}
    taken: set[str] = set()
    for op in ops:
        for dims in shapes[op.name]:
            for dim in dims:
                layout = unifier.resolve(dim)
                for key in layout.atoms():
                    info = unifier.info[key]
                    if key in names or info.dynamic:
                        continue
                    name = op.name if layout.single else f"{op.name}.{info.role or 'part'}"
                    base, count = name, 1
                    while name in taken:
                        name, count = f"{base}{count}", count + 1
                    taken.add(name)
                    names[key] = name
                    heads = info.role in ("heads", "kv_heads")
                    kinds[name] = "heads" if heads else "features" if info.role == "head_dim" else op.unit_kind
    return names, kinds


def _make_groups(
    ctx: _Context,
    nodes: Mapping[str, Node],
    names: Mapping[str, str],
    kinds: Mapping[str, str],
    outs: set[str],
) -> dict[str, UnitGroup]:
    unifier = ctx.unifier
    coupled: dict[str, list[str]] = {}
    contracted: dict[str, list[str]] = {}
    stream: set[str] = set()
    for name, node in nodes.items():
        for table, entries in ((coupled, node.coupled), (contracted, node.contracted)):
            for layout, reason in entries:
                for atom_name in layout.atoms():
                    table.setdefault(atom_name, []).append(f"{name}: {reason}")
        if node.op.op == "add":
            stream.update(a for dims in node.outputs for dim in dims for a in dim.atoms())
    groups: dict[str, UnitGroup] = {}
    fixed = _no_growth(nodes)
    for key, name in names.items():
        info = unifier.info[key]
        if info.dynamic:
            continue
        kind = kinds[name]
        role = "output" if name in outs else "heads" if kind == "heads" else "stream" if name in stream else "hidden"
        groups[name] = UnitGroup(
            name, tuple(range(info.size)), kind, role, None, name in outs,
            "; ".join(coupled.get(name, ())) or None, "; ".join(contracted.get(name, ())) or None,
            minimum=info.minimum, next_id=info.size, no_growth=fixed.get(name),
        )  # fmt: skip
    for key, (op, hint, kind) in ctx.hints.items():
        layout, name = unifier.resolve(atom(key)), op if hint is None else f"{op}.{hint}"
        size = layout.constant
        if size is not None and name not in groups:
            why = unifier.reason(key)
            frozen = str(why) if why else "the structure fixes it"
            groups[name] = UnitGroup(name, tuple(range(size)), kind, "hidden", frozen, next_id=size)
        elif size is None and unifier.lenient:  # of an imported program: what it fixes of a dimension shows too
            for size, why in unifier.fixed_factors(key):
                part, count = f"{name}.fixed", 1
                while part in groups:
                    part, count = f"{name}.fixed{count}", count + 1
                groups[part] = UnitGroup(part, tuple(range(size)), "units", "hidden", str(why), next_id=size)
    return groups

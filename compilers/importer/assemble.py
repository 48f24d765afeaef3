"""From a merged program to a graph: names, layers where calls are layers, calls elsewhere, tensors that stand alone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from graphnet.compilers.importer.encode import encode, prepared, sizes_of
from graphnet.compilers.importer.modes import SWITCH
from graphnet.compilers.importer.program import Meta, Mode, Program, Ref, Source, Step, refs_in
from graphnet.compilers.importer.tensors import Held, TensorTable
from graphnet.compilers.importer.typed import Layer, match_layer, match_plain
from graphnet.errors import GraphError, ImportModelError
from graphnet.ir.graph import OUTPUT, Graph
from graphnet.ir.ops.aten.call import target_of
from graphnet.ir.ops.base import OPS, Op
from graphnet.ir.ops.io import Input, Output
from graphnet.ir.ops.stored import Stored

__all__ = ["Assembled", "assemble"]

_UNFIT = re.compile(r"[^A-Za-z0-9_.]")
_WRITERS = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "bilinear", "conv1d", "conv2d", "conv3d",
            "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "embedding", "lstm", "gru",
            "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")  # fmt: skip


_LAYERS = (nn.Linear, nn.Bilinear, nn.Embedding, nn.RNNBase, nn.modules.conv._ConvNd)
"""Modules that are one layer, whatever a parametrization or an adapter puts inside them."""


@dataclass(frozen=True, slots=True)
class Assembled:
    """A model as a graph.

    Attributes
    ----------
    graph : Graph
    table : TensorTable
        The model's tensors; each has the path under which the graph holds it.
    outputs : tuple
        What the model returns, flat: the number of a graph output, or ``(value,)`` for a constant.
    """

    graph: Graph
    table: TensorTable
    outputs: tuple[Any, ...]


def assemble(model: nn.Module, program: Program, name: str) -> Assembled:
    """Build the graph of a program.

    Raises
    ------
    ImportModelError
        Something cannot be represented; says what and where.
    """
    generic: set[str] = set()
    opaque: dict[str, str] = {}
    while True:
        made = _Assembly(model, program, generic, opaque)
        ops, outputs = made.run()
        if not made.graph_outputs:
            raise ImportModelError("the model returns no tensor that depends on what it reads")
        try:
            graph = Graph.from_ops(ops, name=_UNFIT.sub("_", name) or "network")
        except GraphError as error:
            step = made.step_of(str(error))
            if step is None or step.name in opaque:
                raise ImportModelError(f"the traced program makes no valid graph: {error}") from error
            if step.name in made.layers and step.name not in generic:
                generic.add(step.name)
            else:
                opaque[step.name] = f"{step.target}: {str(error).splitlines()[0]}"
            continue
        return Assembled(graph, made.table, outputs)


@dataclass(slots=True)
class _Assembly:
    model: nn.Module
    program: Program
    generic: set[str]
    opaque: dict[str, str]
    table: TensorTable = field(init=False)
    layers: dict[str, Layer] = field(default_factory=dict)
    refs: dict[Ref, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    names: dict[str, Step] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    stored: list[Op] = field(default_factory=list)
    late: list[Op] = field(default_factory=list)
    graph_outputs: list[str] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    leaves: set[str] = field(default_factory=set)
    layerlike: set[str] = field(default_factory=set)
    kinds: dict[str, str] = field(default_factory=dict)
    constant: set[str] = field(default_factory=set)
    metas: dict[str, tuple[Meta, ...]] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    behind: dict[str, Held] = field(default_factory=dict)  # the tensor of which a value is a part or another view
    _homes: set[str] = field(default_factory=set)
    _above: set[str] | None = None  # paths above tensors
    homes_of: dict[str, str] = field(default_factory=dict)

    def run(self) -> tuple[list[Op], tuple[Any, ...]]:
        self.table = TensorTable(self.model, self.program)
        self._read_modules()
        self.program = _without_dead(self.program)
        self.metas = {key: (source.meta,) for key, source in self.program.sources.items()}
        self.metas |= {step.name: step.metas for step in self.program.steps}
        self.held = {
            key: self.table.find(source.kind, source.key)
            for key, source in self.program.sources.items()
            if source.kind != "input"
        }
        steps = [
            prepared(replace(step, path=self.homes_of.get(step.path, step.path)), self.meta)
            for step in self.program.steps
        ]
        self._find_constant(steps)
        self._find_layers(steps)
        inputs = [self._input(source) for source in self.program.sources.values() if source.kind == "input"]
        if not inputs:
            raise ImportModelError("the model reads no tensor: give an example input that is one")
        for step in steps:
            self._step(step)
        self._store_rest()
        outputs = self._outputs()
        used = {ref.partition(":")[0] for op in self.ops for ref in op.inputs} | {
            ref.partition(":")[0] for ref in self.graph_outputs
        }
        unread = [op.name for op in inputs if op.name not in used]
        if unread:
            raise ImportModelError(
                f"the model does not use its input(s) {', '.join(unread)}: leave them out of the example"
            )
        output = Output(name=OUTPUT, inputs=tuple(self.graph_outputs))
        return [*inputs, *self.stored, *self.ops, *self.late, output], outputs

    def step_of(self, message: str) -> Step | None:
        """The step whose op an error names."""
        for found in re.findall(r"op '([^']+)'", message):
            if found in self.names:
                return self.names[found]
        return None

    def meta(self, ref: Ref) -> Meta:
        return self.metas[ref.step][ref.port]

    # -- modules and names --------------------------------------------------------------------------------------------

    def _read_modules(self) -> None:
        reserved = [
            name
            for name in {*(path.partition(".")[0] for path in self.table.order), *dict(self.model.named_children())}
            if hasattr(fx.GraphModule, name) or name in ("graph", "code")
        ]
        if reserved:
            raise ImportModelError(
                f"the model has {reserved[0]!r} among its modules or tensors, a name that torch.fx keeps for itself: "
                "rename it"
            )
        first: dict[int, str] = {}
        for path, module in self.model.named_modules(remove_duplicate=False):
            self.homes_of[path] = first.setdefault(id(module), path)
            if path:
                self.paths.add(path)
                if not any(True for _ in module.children()):
                    self.leaves.add(path)
                if path in self.leaves or isinstance(module, _LAYERS):
                    self.layerlike.add(path)
                self.kinds[path] = type(module).__name__

    def _fresh(self, wanted: str) -> str:
        wanted = _UNFIT.sub("_", wanted) or "op"
        name, count = wanted, 1
        while name in self.taken or name == OUTPUT or (count > 1 and name in self.paths):
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        return name

    def _pure_name(self, step: Step) -> str:
        """A name for a call that needs no module."""
        if step.path in self.layerlike and step.function in _WRITERS and _UNFIT.sub("_", step.path) not in self.taken:
            return self._fresh(step.path.replace(".", "_") if self._inside(step.path) else step.path)
        if step.function in _WRITERS:
            for ref in step.reads():
                held = self.behind.get(ref.step)
                if held is not None and held.value.dim() > 1:
                    stem = held.names[0].removesuffix(".weight").removesuffix("_weight")
                    free = stem not in self.paths or stem in self.layerlike
                    if stem != held.names[0] and free and (stem not in self.taken or ref.step not in self.held):
                        return self._fresh(stem)
        return self._apart(step.name)

    def _apart(self, wanted: str, *, take: bool = True) -> str:
        """A name that no module of the model has."""
        name, count = wanted, 1
        while name in self.paths or self.table.at(name) is not None or (not take and name in self.taken):
            count += 1
            name = f"{wanted}_{count}"
        return self._fresh(name) if take else name

    def _module_name(self, step: Step) -> dict[str, Any]:
        """Name and path at which a module without tensors may stand: the model's own, or a new one beside it."""
        own = step.path in self.leaves and not self._has_tensors(step.path)
        if (own or (step.path in self.layerlike and step.function in _WRITERS)) and step.path not in self.taken:
            return self._named(step.path)
        if not step.path:
            return self._named(self._apart(step.name, take=False))
        parent = step.path
        while parent and (parent in self.homes or parent in self.leaves):
            parent = parent.rpartition(".")[0]
        return self._named(self._apart(f"{parent}.{step.name}" if parent else step.name, take=False))

    def _named(self, path: str) -> dict[str, Any]:
        """The name of an op whose module stands at a path, and the path where that is not the name."""
        name = self._fresh(path.replace(".", "_") if self._inside(path) else path)
        return {"name": name} if name == path else {"name": name, "module": path}

    def _inside(self, path: str) -> bool:
        """Whether a path lies inside a layer that holds tensors."""
        parents = path.split(".")[:-1]
        return any(".".join(parents[: depth + 1]) in self.homes for depth in range(len(parents)))

    @property
    def homes(self) -> set[str]:
        """Paths of the layers that hold tensors."""
        return self._homes

    def _has_tensors(self, path: str) -> bool:
        if self._above is None:
            parts = [name.split(".") for held in self.table.held for name in held.names]
            self._above = {".".join(part[:depth]) for part in parts for depth in range(1, len(part))}
        return path in self._above

    # -- what is a layer ----------------------------------------------------------------------------------------------

    def _find_constant(self, steps: list[Step]) -> None:
        self.constant = {key for key, source in self.program.sources.items() if source.kind != "input"}
        self.behind = dict(self.held)
        for step in steps:
            reads = {ref.step for ref in step.reads()}
            if reads <= self.constant:
                self.constant.add(step.name)
                if len(reads) == 1 and (held := self.behind.get(next(iter(reads)))) is not None:
                    self.behind[step.name] = held

    def _find_layers(self, steps: list[Step]) -> None:
        """Calls that are layers, and whose tensors no other kind of call reads."""
        for step in steps:
            if step.name in self.generic or step.name in self.opaque or step.only is not None:
                continue
            layer = match_layer(step, self.meta)
            if layer is not None and self._stands(step, layer):
                self.layers[step.name] = layer
        while True:
            alone = self._read_otherwise(steps)
            dropped = [
                name
                for name, layer in self.layers.items()
                if any(id(self.held[ref.step]) in alone for ref in layer.tensors.values())
            ]
            if not dropped:
                paths = {step.name: step.path for step in steps}
                self._homes = {paths[name] for name in self.layers}
                self._homes |= {
                    step.path for step in steps if step.path in self.layerlike and step.function in _WRITERS
                }
                return
            for name in dropped:
                del self.layers[name]

    def _stands(self, step: Step, layer: Layer) -> bool:
        if not step.path or layer.reads.step in self.constant:
            return False
        for attribute, ref in layer.tensors.items():
            held = self.held.get(ref.step)
            if held is None or f"{step.path}.{attribute}" not in held.names or held.pinned is not None:
                return False
        if any(ref.step in self.constant and ref not in layer.tensors.values() for ref in step.reads()):
            return False
        for attribute in layer.extra:
            own = self.table.at(f"{step.path}.{attribute}")
            if own is None or own.parameter:
                return False
        return True

    def _read_otherwise(self, steps: list[Step]) -> set[int]:
        """Tensors that are read by calls that are no layers, or by layers of different modules that cannot be tied."""
        found: set[int] = set()
        homes: dict[int, set[str]] = {}
        tieable: dict[int, bool] = {}
        for step in steps:
            layer = self.layers.get(step.name)
            mine = set() if layer is None else {ref.step for ref in layer.tensors.values()}
            for ref in step.reads():
                if ref.step in self.held and ref.step not in mine:
                    found.add(id(self.held[ref.step]))
            if layer is not None:
                for attribute, ref in layer.tensors.items():
                    key = id(self.held[ref.step])
                    homes.setdefault(key, set()).add(step.path)
                    fits = attribute == "weight" and layer.op in ("linear", "embedding")
                    tieable[key] = tieable.get(key, True) and fits
        for ref in refs_in(self.program.outputs):
            if ref.step in self.held:
                found.add(id(self.held[ref.step]))
        return found | {key for key, paths in homes.items() if len(paths) > 1 and not tieable[key]}

    # -- ops ----------------------------------------------------------------------------------------------------------

    def _input(self, source: Source) -> Op:
        name = self._fresh(source.key)
        self.refs[Ref(source.name)] = name
        shape = source.meta.shape
        batched = bool(shape) and shape[0] == "batch"
        dtype = source.meta.dtype
        if dtype.is_floating_point:
            kind = "float"
        elif dtype.is_complex:
            kind = "complex"
        else:
            kind = {torch.bool: "bool", torch.int32: "int32"}.get(dtype, "int64")
        return Input(name=name, shape=shape[1:] if batched else shape, dtype=kind, batched=batched)  # type: ignore[arg-type]

    def _operand(self, ref: Ref) -> str:
        if ref not in self.refs:
            held = self.held[ref.step]
            if held.owner is None:
                self._store(held, self.program.sources[ref.step].kind == "parameter")
            for key, other in self.held.items():
                if other is held:
                    self.refs[Ref(key)] = self.stored_names[id(held)]
        return self.refs[ref]

    @property
    def stored_names(self) -> dict[int, str]:
        return {id(self.table.at(op.path)): op.name for op in self.stored if isinstance(op, Stored) and op.tied is None}

    def _store(self, held: Held, read: bool = True) -> None:
        path = held.names[0]
        held.owner = path
        self.stored.append(self._stored_op(path, held, read=True))
        for alias in held.names[1:]:
            self.stored.append(self._stored_op(alias, held, read=False, tied=path))

    def _stored_op(self, path: str, held: Held, *, read: bool, tied: str | None = None) -> Stored:
        value = held.value
        clean = _UNFIT.sub("_", path)
        name = self._fresh(path)
        return Stored(
            name=name, module=path if name != path or clean != path else None,
            shape=sizes_of(Meta(tuple(value.shape), value.dtype)),
            dtype=str(value.dtype).removeprefix("torch."), buffer=not held.parameter, persistent=held.persistent,
            trainable=value.requires_grad, tied=tied, read=read, pinned=held.pinned,
        )  # fmt: skip

    def _step(self, step: Step) -> None:
        layer = self.layers.get(step.name)
        if layer is not None:
            op = self._layer(step, layer)
        else:
            op = self._plain(step) or self._call(step)
        self.ops.append(op)
        self.names[op.name] = step
        for port in range(len(step.metas)):
            self.refs[Ref(step.name, port)] = op.name if port == 0 else f"{op.name}:{port}"

    def _layer(self, step: Step, layer: Layer) -> Op:
        fields: dict[str, Any] = dict(layer.fields) | self._named(step.path)
        for attribute, ref in layer.tensors.items():
            held = self.held[ref.step]
            path = f"{step.path}.{attribute}"
            if held.owner is None:
                held.owner = path
            elif held.owner != path:
                fields["tied"] = held.owner.removesuffix(".weight")
        for attribute in layer.extra:
            own = self.table.at(f"{step.path}.{attribute}")
            assert own is not None
            own.owner = own.owner or f"{step.path}.{attribute}"
        return OPS[layer.op](inputs=(self._operand(layer.reads),), **fields)

    def _plain(self, step: Step) -> Op | None:
        if step.name in self.generic or step.name in self.opaque or step.only is not None or step.target == SWITCH:
            return None
        plain = match_plain(step, self.meta)
        if plain is None or any(ref.step in self.constant for ref in plain.reads):
            return None
        self.layers.setdefault(step.name, Layer(plain.op, plain.reads[0], {}, {}))
        inputs = tuple(self._operand(ref) for ref in plain.reads)
        cls = OPS[plain.op]
        builds = cls.build is not Op.build
        names = self._module_name(step) if builds else {"name": self._pure_name(step)}
        return cls(inputs=inputs, **names, **plain.fields)

    def _call(self, step: Step) -> Op:
        for ref in step.reads():
            self._operand(ref)
        moded = (
            step.target == SWITCH
            or _has_mode((step.args, step.kwargs))
            or (step.only == "train" and (torch.Tag.nondeterministic_seeded in target_of(step.target).tags))
        )
        names = self._module_name(step) if moded else {"name": self._pure_name(step)}
        return encode(step, self.refs, names, reason=self.opaque.get(step.name), metas=self.meta)

    def _store_rest(self) -> None:
        """Tensors that nothing reads, and further names of those that layers hold."""
        stored = {op.path for op in self.stored}
        layered = {f"{op.path}.weight" for op in self.ops if op.op in ("linear", "embedding")}
        for held in self.table.held:
            if held.owner is None:
                path = held.names[0]
                held.owner = path
                self.stored.append(self._stored_op(path, held, read=False))
                rest = held.names[1:]
            elif held.owner in stored:
                rest = []
            else:
                rest = [name for name in held.names if name != held.owner and name not in layered]
            for alias in rest:
                self.late.append(self._stored_op(alias, held, read=False, tied=held.owner))

    def _outputs(self) -> tuple[Any, ...]:
        found: list[Any] = []
        for value in self.program.outputs:
            if isinstance(value, Ref):
                found.append(len(self.graph_outputs))
                self.graph_outputs.append(self._operand(value))
            elif isinstance(value, int | float | bool | str) or value is None:
                found.append((value,))
            else:
                raise ImportModelError(f"the model returns a {type(value).__name__} ({value}): not followed")
        return tuple(found)


def _has_mode(value: Any) -> bool:
    if isinstance(value, Mode):
        return True
    if isinstance(value, dict):
        return any(map(_has_mode, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_mode, value))


def _without_dead(program: Program) -> Program:
    """The program without calls that no output needs."""
    needed = {ref.step for ref in refs_in(program.outputs)}
    kept: list[Step] = []
    for step in reversed(program.steps):
        if step.name in needed:
            kept.append(step)
            needed.update(ref.step for ref in step.reads())
    return replace(program, steps=kept[::-1])

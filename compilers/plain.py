"""The plain lowering: a graph becomes a ``torch.fx.GraphModule`` of ordinary torch modules.

Modules hold the tensors and are shared between versions; the emitted code is made again only when an op carries
a size argument (:func:`carries_sizes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphnet.compilers.sizes import SizeWriter
from graphnet.errors import GraphError
from graphnet.ir.graph import Graph
from graphnet.ir.layout import Layout
from graphnet.ir.ops.aten.call import STRAY, said
from graphnet.ir.ops.base import Emitter, Op
from graphnet.ir.ops.io import Input, Output

__all__ = ["attach_module", "build_modules", "carries_sizes", "lower", "rebind", "refresh_modules", "same_code", "tie"]


def build_modules(graph: Graph, root: nn.Module) -> None:
    """Build the torch module of every op that has one, and add it to ``root`` under the op's dotted name.

    Tied parameters become one object. Parameters get torch's own initial values, in topological order.
    """
    built: set[str] = set()
    for name, node in graph.nodes.items():
        path, sizes = node.op.path, graph.op_sizes(name)
        if path in built:  # a layer that is called twice
            continue
        module, tensor = node.op.build(sizes), node.op.build_tensor(sizes)
        if tensor is not None:
            attach_tensor(root, path, tensor, persistent=getattr(node.op, "persistent", True))
        if module is not None:
            attach_module(root, path, module)
        if module is not None or tensor is not None:
            built.add(path)
    tie(graph, root)


def attach_tensor(root: nn.Module, name: str, tensor: Tensor, *, persistent: bool = True) -> None:
    """Add a parameter, or a buffer where it is none, under a dotted name, with plain containers in between."""
    *parents, leaf = name.split(".")
    for parent in parents:
        child = root._modules.get(parent)
        if child is None:
            child = nn.Module()
            root.add_module(parent, child)
        root = child
    if hasattr(root, leaf):
        raise GraphError(f"tensor {name!r}: the name {leaf!r} is already an attribute of a torch module; rename it")
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(leaf, tensor)
    else:
        root.register_buffer(leaf, tensor, persistent=persistent)


def attach_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module under a dotted name, with plain containers in between."""
    *parents, leaf = name.split(".")
    for parent in parents:
        child = getattr(root, parent, None)
        if child is None:
            child = nn.Module()
            root.add_module(parent, child)
        root = child
    held = root._modules.get(leaf)
    if type(held) is nn.Module:  # a container that tensors inside it have made
        for parameter, tensor in held._parameters.items():
            module.register_parameter(parameter, tensor)
        for buffer, value in held._buffers.items():
            module.register_buffer(buffer, value, persistent=buffer not in held._non_persistent_buffers_set)
        for child_name, child in held._modules.items():
            module.add_module(child_name, child)
        root._modules[leaf] = module
        return
    if leaf in root._modules or hasattr(root, leaf):
        raise GraphError(f"op {name!r}: the name {leaf!r} is already an attribute of a torch module; rename the op")
    root.add_module(leaf, module)


def tie(graph: Graph, root: nn.Module) -> None:
    """Make every tied tensor the same object as its owner's."""
    for node in graph.nodes.values():
        for spec in node.tensors:
            if spec.shared is not None:
                module, _, attribute = spec.name.rpartition(".")
                owner, _, original = spec.shared.rpartition(".")
                setattr(root.get_submodule(module), attribute, getattr(root.get_submodule(owner), original))


def refresh_modules(graph: Graph, root: nn.Module) -> None:
    """Set the sizes that torch modules show (``out_features`` ...) to those of this version."""
    for name, node in graph.nodes.items():
        if not node.op.module_sizes:
            continue
        sizes = graph.op_sizes(name)
        module = root.get_submodule(node.op.path)
        for key, attribute in node.op.module_sizes.items():
            if key in sizes:
                value = sizes[key]
                shown = tuple(value) if isinstance(value, list) else value
                if getattr(module, attribute) != shown:
                    setattr(module, attribute, shown)


def carries_sizes(graph: Graph) -> bool:
    """Whether the emitted code holds sizes, so that it must be made again after a width edit."""
    return any(node.op.relower for node in graph.nodes.values())


def same_code(before: Graph, after: Graph) -> bool:
    """Whether a width edit leaves the emitted code as it is: no op whose code holds sizes has to do with what changed.

    Where an op only might have to do with it (its attributes name a group) the answer is no.
    """
    changed = {key for key, size in after.sizes.items() if before.sizes.get(key) != size}
    for name, node in after.nodes.items():
        if not node.op.relower:
            continue
        old = before.nodes.get(name)
        if old is None or old.op != node.op or before.op_sizes(name) != after.op_sizes(name):
            return False
        dims = [dim for producer, port in node.inputs for dim in after.dims(producer, port)]
        dims += [dim for output in node.outputs for dim in output]
        if not changed.isdisjoint(key for dim in dims for key in dim.atoms()):
            return False
        said = repr(node.op)
        if any(key in said for key in changed):
            return False
    return True


def _emitted(op: Op, emitter: Emitter, args: Sequence[fx.Node]) -> fx.Node | tuple[fx.Node, ...]:
    try:
        return op.emit(emitter, *args)
    except STRAY as error:
        if not op.traced:
            raise
        raise GraphError(f"op {op.name!r}: its arguments are those of no program ({said(error)})") from error


def lower(
    graph: Graph,
    root: nn.Module,
    *,
    taps: Sequence[str] = (),
    gates: Mapping[str, Tensor] | None = None,
    find: Callable[[str], Any] | None = None,
) -> fx.GraphModule:
    """Lower a graph onto the modules of ``root``.

    Parameters
    ----------
    graph : Graph
    root : nn.Module
        Holds the ops' modules (:func:`build_modules`); the result shares them.
    taps : sequence of str
        Ops whose outputs are returned too; ``op:1`` is a further output of one with several.
    gates : mapping of op to Tensor, optional
        What an op's output is multiplied by, broadcast, before anything reads it.
    find : callable, optional
        What stands at a dotted name, in place of ``root``: for a graph whose modules are not in a tree yet.

    Returns
    -------
    torch.fx.GraphModule
        Returns the network's output (a tuple where there are several); with taps, ``(output, {op: tensor before
        its gate}, {op: tensor after it})``.
    """
    code = fx.Graph()
    values: dict[tuple[str, int], fx.Node] = {}
    raw: dict[str, fx.Node] = {}
    inputs = {op.name: code.placeholder(op.name.replace(".", "_")) for op in graph.inputs}
    holder = _Holder(root, gates or {})

    writer = SizeWriter(code, graph, inputs)

    def length(layout: Layout) -> int | None:
        return None if any(key in graph.dynamic for key in layout.atoms()) else layout.size(graph.sizes)

    for name, node in graph.nodes.items():
        args = tuple(values[ref] for ref in node.inputs)
        if isinstance(node.op, Input):
            values[name, 0] = inputs[name]
        elif isinstance(node.op, Output):
            result: Any = args[0] if len(args) == 1 else args
            if taps:
                tapped = {tap: values[_output(tap)] for tap in taps}
                result = (result, {tap: raw.get(tap, value) for tap, value in tapped.items()}, tapped)
            code.output(result)
        else:
            dims = [graph.dims(producer, port) for producer, port in node.inputs]
            emitter = Emitter(
                code, node.op.path, graph.op_sizes(name), dims, node.outputs, length, writer.extent, writer.device
            )  # fmt: skip
            out = _emitted(node.op, emitter, args)
            values.update({(name, port): one for port, one in enumerate(out if isinstance(out, tuple) else (out,))})
        if gates and name in gates:
            raw[name] = values[name, 0]
            values[name, 0] = code.call_function(torch.mul, (values[name, 0], code.get_attr(holder.gate(name))))
    source: nn.Module | dict[str, Any] = holder.root
    if find is not None:
        source = {str(node.target): find(str(node.target)) for node in code.nodes if node.op in _REFERS}
    return fx.GraphModule(source, code, class_name=_class_name(graph.name))


def rebind(program: fx.GraphModule, root: nn.Module) -> None:
    """Point a lowered program, whose modules are those of ``root``, at the tensors that stand there now."""
    for node in program.graph.nodes:
        if node.op == "get_attr":
            path, _, attribute = str(node.target).rpartition(".")
            home, held = program.get_submodule(path), getattr(root.get_submodule(path), attribute)
            tables: tuple[dict[str, Any], ...] = (home._parameters, home._buffers)
            for table in tables:
                if attribute in table:
                    table[attribute] = held


_REFERS = ("call_module", "get_attr")


def _output(tap: str) -> tuple[str, int]:
    name, _, port = tap.partition(":")
    return name, int(port or 0)


class _Holder:
    """The module tree that fx copies references from; gates are added beside a borrowed tree, not to it."""

    def __init__(self, root: nn.Module, gates: Mapping[str, Tensor]) -> None:
        if not gates:
            self.root = root
            return
        self.root = nn.Module()
        for name, child in root.named_children():
            self.root.add_module(name, child)
        self._names = {op: f"gate_{index}" for index, op in enumerate(gates)}
        for op, gate in gates.items():
            self.root.register_buffer(self._names[op], gate, persistent=False)

    def gate(self, op: str) -> str:
        return self._names[op]


def _class_name(name: str) -> str:
    words = "".join(part.capitalize() for part in name.replace("-", "_").split("_") if part.isidentifier())
    return words or "Lowered"

"""Leaving graphnet: a lowered network as a ``torch.export`` program or an ONNX file, checked against itself.

The batch and every other dynamic dimension stay dynamic. What is written is run on an example and compared with the
network before it is handed over.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from graphnet.errors import GraphError
from graphnet.ir.graph import Graph

__all__ = ["dynamic_shapes", "example_inputs", "plain_module", "portable", "to_export", "to_onnx"]


def plain_module(program: fx.GraphModule, *, training: bool = False) -> fx.GraphModule:
    """A copy of a lowered network as a plain ``torch.fx.GraphModule``, which needs no graphnet to run or unpickle."""
    found = copy.deepcopy(program)
    found.train(training)
    return found


def portable(program: fx.GraphModule) -> fx.GraphModule:
    """Make a lowered network one that can be pickled, in place.

    A ``GraphModule`` is unpickled by tracing its code again, and such a trace takes the mode of a module, and what is
    computed from buffers alone, for constants. So each module that is read for its mode is *called* for it, which a
    trace keeps as a call, and what depends on it is picked by ``((train,) * mode + (evaluation,))[0]``, which a trace
    can follow where it cannot follow a tuple's index. Buffers from which alone something is computed pass through an
    identity.
    """
    code = program.graph
    for node in [*code.nodes]:
        if node.op == "call_function" and node.target is getattr and node.args[1:] == ("training",):
            _called_for_mode(program, node)
    constant: set[fx.Node] = set()
    folded: set[fx.Node] = set()
    for node in code.nodes:
        reads = node.all_input_nodes
        if node.op == "get_attr" and not isinstance(_held(program, node), nn.Parameter | nn.Module):
            constant.add(node)
        elif node.op.startswith("call_f") and reads and all(one in constant for one in reads):
            constant.add(node)
            folded.update(one for one in reads if one.op == "get_attr")
    if folded:
        name = "as_data"
        while hasattr(program, name):
            name += "_"
        program.add_module(name, nn.Identity())
        for node in [one for one in code.nodes if one in folded]:
            users = [*node.users]
            with code.inserting_after(node):
                data = code.call_module(name, (node,))
            for user in users:
                user.replace_input_with(node, data)
    code.lint()
    program.recompile()
    return program


def _held(program: fx.GraphModule, node: fx.Node) -> Any:
    path, _, name = str(node.target).rpartition(".")
    return getattr(program.get_submodule(path), name)


def _called_for_mode(program: fx.GraphModule, node: fx.Node) -> None:
    """Replace a node that reads a module's mode by a call of that module, which gives it."""
    code, holder = program.graph, node.args[0]
    assert isinstance(holder, fx.Node)
    module = program.get_submodule(str(holder.target))
    module.forward = partial(getattr, module, "training")
    with code.inserting_before(node):
        mode = code.call_module(str(holder.target))
    for user in [*node.users]:
        pair: Any = user.args[0]
        evaluation, train = pair
        with code.inserting_before(user):
            first = code.call_function(operator.mul, ((train,), mode))
            both = code.call_function(operator.add, (first, (evaluation,)))
        user.args = (both, 0)
    code.erase_node(node)
    if not holder.users:
        code.erase_node(holder)


def example_inputs(graph: Graph, *, batch: int = 2, length: int = 8, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of the right shape and dtype: standard normal numbers, or integers below what the op allows.

    Parameters
    ----------
    batch, length : int
        Sizes of the batch and of other dynamic dimensions.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for op in graph.inputs:
        sizes = {"batch": batch}
        shape = tuple(entry if isinstance(entry, int) else sizes.get(entry, length) for entry in op.full_shape)
        if op.dtype == "bool":
            found.append(torch.ones(shape, dtype=torch.bool))
        elif op.dtype in ("int64", "int32"):
            drawn = torch.randint(0, op.high or 2, shape, generator=generator)
            found.append(drawn if op.dtype == "int64" else drawn.int())
        elif op.dtype == "complex":
            found.append(torch.randn(shape, dtype=torch.complex64, generator=generator))
        else:
            found.append(torch.randn(shape, generator=generator))
    return tuple(found)


def dynamic_shapes(graph: Graph) -> tuple[Any, ...]:
    """For each input its dynamic dimensions, as ``torch.export`` wants them; a name is one dimension everywhere."""
    return tuple(
        {at: torch.export.Dim.DYNAMIC for at, entry in enumerate(op.full_shape) if isinstance(entry, str)}
        for op in graph.inputs
    )


def to_export(
    program: fx.GraphModule,
    example: Sequence[Any],
    shapes: Sequence[Mapping[int, Any]] | Mapping[str, Any] | None = None,
    named: Mapping[str, Any] | None = None,
) -> torch.export.ExportedProgram:
    """Export a lowered network, in evaluation mode, with ``torch.export``.

    Parameters
    ----------
    example : sequence
        Inputs; batch at least 2, since 1 is taken for a constant.
    shapes : sequence of mapping, or mapping by name, optional
        Dynamic dimensions of each input (:func:`dynamic_shapes`).
    named : mapping, optional
        Further inputs by name.

    Raises
    ------
    GraphError
        torch cannot export it, or the program gives other values.
    """
    module, given = plain_module(program), dict(named or {})
    dynamic = dict(shapes) if isinstance(shapes, Mapping) else _shapes(shapes)
    try:
        exported = torch.export.export(module, tuple(example), given, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch raises many kinds
        raise GraphError(f"torch.export cannot export the network: {type(error).__name__}: {error}") from error
    with torch.no_grad():
        _compare("torch.export", module(*example, **given), exported.module()(*example, **given), 1e-6)
    return exported


def to_onnx(
    program: fx.GraphModule,
    path: str | Path,
    example: Sequence[Tensor],
    shapes: Sequence[Mapping[int, Any]] | None = None,
    *,
    others: Sequence[Sequence[Tensor]] = (),
    tolerance: float = 1e-4,
) -> Path:
    """Write a lowered network, in evaluation mode, as an ONNX file through torch's dynamo exporter.

    Parameters
    ----------
    path : path
        Written as a whole or not at all.
    others : sequence of inputs
        Further examples, of other batch sizes, on which the file is run too before it is put in place.
    tolerance : float
        How far its outputs may be from the network's, relative to the largest element.

    Raises
    ------
    GraphError
        The packages are missing (``pip install graphnet-engine[onnx]``), torch cannot export the network, or the
        file gives other values.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise GraphError("ONNX needs packages of its own: pip install 'graphnet-engine[onnx]'") from error
    target = Path(path)
    module = plain_module(program)
    partial = target.with_name(f".{target.name}.partial")
    try:
        try:
            found = torch.onnx.export(
                module, tuple(example), dynamo=True, dynamic_shapes=_shapes(shapes), verbose=False, optimize=True
            )
            assert found is not None
            found.save(str(partial))
        except Exception as error:  # torch raises many kinds
            raise GraphError(f"the network cannot be written as ONNX: {type(error).__name__}: {error}") from error
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        for inputs in (example, *others):
            given = dict(zip(names, (x.detach().cpu().numpy() for x in inputs), strict=True))
            got = tuple(torch.from_numpy(out) for out in session.run(None, given))
            with torch.no_grad():
                _compare("onnxruntime", module(*inputs), got, tolerance)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _shapes(shapes: Sequence[Mapping[int, Any]] | None) -> Any:
    return None if shapes is None else tuple(dict(one) for one in shapes)


def _compare(what: str, expected: Any, found: Any, tolerance: float) -> None:
    one, two = ([leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)] for out in (expected, found))
    if len(one) != len(two):
        raise GraphError(f"{what} gives {len(two)} outputs, the network {len(one)}")
    for a, b in zip(one, two, strict=True):
        if a.shape != b.shape:
            raise GraphError(f"{what} gives shape {list(b.shape)}, the network {list(a.shape)}")
        scale = max(float(a.double().abs().max()), 1e-12) if a.numel() else 1.0
        gap = float((a.double() - b.double()).abs().max()) / scale if a.numel() else 0.0
        if not gap <= tolerance:
            raise GraphError(f"{what} gives other values: {gap:.3g} of the maximum away, {tolerance:g} allowed")

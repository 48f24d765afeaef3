"""Networks made from PyTorch models: ``gn.from_torch``."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from graphnet.compilers.exporters import dynamic_shapes, example_inputs, portable, to_export, to_onnx
from graphnet.compilers.importer import import_model
from graphnet.compilers.importer.assemble import Assembled
from graphnet.compilers.importer.conditions import Condition
from graphnet.compilers.importer.leaving import as_called
from graphnet.compilers.importer.program import Program
from graphnet.compilers.plain import rebind, tie
from graphnet.edit.host import Batch, Evaluation, Loss
from graphnet.errors import ImportModelError
from graphnet.ir.builders import mlp
from graphnet.ir.graph import Graph
from graphnet.ir.ops.stored import Stored
from graphnet.runtime.import_checks import check_import, first_run, sizes_of_one
from graphnet.runtime.meta import on_meta
from graphnet.runtime.network import Network
from graphnet.runtime.twins import twin_of

__all__ = ["Calling", "ImportedNetwork", "from_torch"]

_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}


@dataclass(frozen=True, slots=True)
class Calling:
    """How a model is called, and how its result is put together.

    Attributes
    ----------
    signature : inspect.Signature
        Of its forward, without annotations.
    spec : TreeSpec
        How the inputs make up ``(args, kwargs)``.
    leaves : tuple
        The inputs in order: None for a tensor, ``(value,)`` for what was a constant when the model was traced.
    outputs : tuple
        The result in order: the number of a graph output, or ``(value,)``.
    out_spec : TreeSpec
    conditions : tuple of Condition
        What the sizes of a call must be like.
    """

    signature: inspect.Signature
    spec: Any
    leaves: tuple[Any, ...]
    outputs: tuple[Any, ...]
    out_spec: Any
    conditions: tuple[Condition, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Calling:
        return self

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The tensors of a call, in the order of the graph's inputs.

        Raises
        ------
        ImportModelError
            The model was traced for another kind of call.
        """
        given, spec = pytree.tree_flatten(bound(self.signature, args, kwargs))
        if spec != self.spec:
            raise ImportModelError(
                "the network was imported for calls with other arguments: it takes those of the example, "
                f"{_names(self.spec, self.leaves)}; import the model again with an example of this call"
            )
        tensors = []
        for leaf, value in zip(self.leaves, given, strict=True):
            if leaf is None:
                tensors.append(value)
            elif type(value) is not type(leaf[0]) or value != leaf[0]:
                raise ImportModelError(
                    f"the network was imported with the argument {leaf[0]!r}, which is part of what it computes; it is "
                    f"called with {value!r}: import the model again with that"
                )
        return tuple(tensors)

    def rebuild(self, output: Any) -> Any:
        """The model's result from the graph's outputs."""
        flat = output if isinstance(output, tuple) else (output,)
        values = [flat[entry] if isinstance(entry, int) else entry[0] for entry in self.outputs]
        return pytree.tree_unflatten(values, self.out_spec)


def _names(spec: Any, leaves: Sequence[Any]) -> str:
    return f"{sum(leaf is None for leaf in leaves)} tensor(s)"


class ImportedNetwork(Network):
    """A network made from a PyTorch model; it is called as the model is and returns what the model returns."""

    _calling: Calling

    @property
    def calling(self) -> Calling:
        """How the model is called."""
        return self._calling

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the current version with the arguments of the model."""
        tensors = self._calling.flatten(args, kwargs)
        if not torch.compiler.is_compiling():
            check_inputs(self.graph, tensors, self._calling.conditions)
        return self._calling.rebuild(super().forward(*tensors))

    def evaluate(
        self, graph: Graph, tensors: Mapping[str, Tensor], batch: Batch, loss: Loss | None = None, **options: Any
    ) -> Evaluation:
        """Run a graph with these tensors on a batch; the loss gets what the model returns."""
        wrapped: Loss | None = None
        if loss is not None:
            given = loss

            def wrapped(output: Any, target: Any) -> Tensor:
                return given(self._calling.rebuild(output), target)

        return super().evaluate(graph, tensors, batch, wrapped, **options)

    def to_torch(self) -> fx.GraphModule:
        """A copy of the current version as a plain module that is called, and returns, as the model did."""
        calling, plain = self._calling, portable(super().to_torch())
        for node in self.graph.nodes.values():
            if isinstance(node.op, Stored) and node.op.buffer and not node.op.persistent:
                path, _, attribute = node.op.path.rpartition(".")
                plain.get_submodule(path)._non_persistent_buffers_set.add(attribute)
        _order(plain, list(self.state_dict()))
        return as_called(
            plain, calling.signature, calling.spec, calling.leaves, calling.outputs, calling.out_spec,
            [op.full_shape for op in self.graph.inputs], calling.conditions,
        )  # fmt: skip

    def to_export(self, example: Sequence[Tensor] | None = None) -> torch.export.ExportedProgram:
        """The current version, in evaluation mode, as a ``torch.export`` program that is called as the model was.

        ``example`` holds the tensors of a call in order; without it, those that the model was imported with.
        """
        calling, given = self._calling, iter(self._given(example))
        inputs = [op.full_shape for op in self.graph.inputs]
        dims = iter([{at: Dim.DYNAMIC for at, entry in enumerate(shape) if isinstance(entry, str)} for shape in inputs])
        values = [next(given) if leaf is None else leaf[0] for leaf in calling.leaves]
        args, kwargs = pytree.tree_unflatten(values, calling.spec)
        shapes = pytree.tree_unflatten([next(dims) if leaf is None else None for leaf in calling.leaves], calling.spec)
        plain = self.to_torch()
        named = inspect.signature(plain.forward).bind(*shapes[0], **shapes[1]).arguments
        return to_export(plain, args, named, kwargs)

    def to_onnx(self, path: str | Path, example: Sequence[Tensor] | None = None) -> Path:
        """Write the current version, in evaluation mode, as ONNX; inputs and outputs are flat, in the model's order.

        ``example`` holds the tensors of a call in order; without it, those that the model was imported with. The file
        is run with onnxruntime, on two batch sizes, before it is put in place.
        """
        given = self._given(example)
        others = [tuple(torch.cat([x, x[:1]]) if "batch" in op.full_shape[:1] else x
                        for x, op in zip(given, self.graph.inputs, strict=True))]  # fmt: skip
        program = portable(super().to_torch())
        return to_onnx(program, path, given, dynamic_shapes(self.graph), others=others)

    def _given(self, example: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
        """An example whose dynamic dimensions are at least 2: torch.export takes 1 for a constant."""
        found = tuple(self._example or example_inputs(self.graph)) if example is None else tuple(example)
        if len(found) != len(self.graph.inputs):
            raise ImportModelError(f"the model is called with {len(self.graph.inputs)} tensors, not {len(found)}")
        for op in self.graph.inputs:
            at = self.graph.inputs.index(op)
            for dim, entry in enumerate(op.full_shape):
                value = found[at]
                if isinstance(entry, str) and value.dim() > dim and value.shape[dim] == 1:
                    found = (*found[:at], value.repeat_interleave(2, dim), *found[at + 1 :])
        return found

    def _take_after(self, other: Network) -> None:
        super()._take_after(other)
        assert isinstance(other, ImportedNetwork)
        self._calling = other._calling
        _order(self, list(other.state_dict()))
        rebind(self._current.program, self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self._example is not None:  # where the network goes, its example goes
            self._example = tuple(fn(value) for value in self._example)
        return self


def check_inputs(graph: Graph, tensors: Sequence[Tensor], conditions: Sequence[Condition] = ()) -> None:
    """Check the shapes of a call against the graph's inputs, and against what the model's choices were made on.

    Raises
    ------
    ImportModelError
        A dimension differs from the example's that was fixed when the model was traced, two that must agree differ,
        or the model would have chosen otherwise for these sizes.
    """
    sizes: dict[str, int] = {}
    for op, value in zip(graph.inputs, tensors, strict=True):
        if not isinstance(value, Tensor):
            raise ImportModelError(f"input {op.name!r} is a tensor, not a {type(value).__name__}")
        wanted = op.full_shape
        fits = len(wanted) == value.dim() and all(
            size == (entry if isinstance(entry, int) else sizes.setdefault(entry, size))
            for entry, size in zip(wanted, value.shape, strict=True)
        )
        if not fits:
            shown = ", ".join(f"{entry} (now {sizes[entry]})" if entry in sizes else str(entry) for entry in wanted)
            raise ImportModelError(
                f"input {op.name!r} has shape {list(value.shape)}; the model was traced for [{shown}]: where a number "
                "stands, import it with an example of that size, or with dynamic_shapes"
            )
    for condition in conditions:
        if not condition.holds(sizes):
            shown = ", ".join(f"{name} = {size}" for name, size in sizes.items())
            raise ImportModelError(
                f"the model was traced where {condition} ({condition.where}), and would do something else for {shown}: "
                "import it with an example of that size"
            )


def bound(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Arguments in one form for every way of writing a call; arguments at their default are left out."""
    try:
        found = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ImportModelError(f"the model cannot be called like this: {error}") from None
    for name, parameter in signature.parameters.items():
        if name in found.arguments and parameter.default is not inspect.Parameter.empty:
            value = found.arguments[name]
            plain = value is None or isinstance(value, bool | int | float | str)
            if value is parameter.default or (
                plain and type(value) is type(parameter.default) and value == parameter.default
            ):
                del found.arguments[name]
    return tuple(found.args), dict(found.kwargs)


def _signature(model: nn.Module) -> inspect.Signature:
    try:
        found = inspect.signature(model.forward)
    except (TypeError, ValueError) as error:
        raise ImportModelError(f"the model's forward has no signature: {error}") from None
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in found.parameters.values()]
    return inspect.Signature(plain)


def from_torch(
    model: nn.Module,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    share: bool = False,
    dynamic_shapes: Any = None,
    check: bool = True,
    seed: int = 0,
) -> ImportedNetwork:
    """Make a network from a PyTorch model; the model itself is not changed.

    Parameters
    ----------
    model : nn.Module
    args : tuple
        Example inputs, as the model is called with them; a single tensor may stand for itself.
    kwargs : mapping, optional
        Example keyword arguments.
    share : bool
        Hold the model's own parameters and buffers instead of copies, so that an optimizer, a scheduler or an EMA that
        holds them can be attached and goes on as it was. The model then follows every change of values, and no longer
        works once an edit has changed a shape.
    dynamic_shapes : optional
        Which dimensions may change from batch to batch, as :func:`torch.export.export` takes it; by default the batch,
        and every dimension of inputs with less than four.
    check : bool
        Run the model on the example, see that this overwrites none of its parameters, and compare the network with it,
        in training and evaluation mode.
    seed : int
        Seeds every edit that is not given a seed of its own.

    Returns
    -------
    ImportedNetwork

    Raises
    ------
    ImportModelError
        The model cannot be imported; says which construct stands in the way.

    Examples
    --------
    >>> import torch, graphnet as gn
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> net = gn.from_torch(model, (torch.zeros(3, 4),))
    >>> [name for name, group in net.graph.groups.items() if group.frozen is None]
    ['0', '2']
    >>> list(net.state_dict()) == list(model.state_dict())
    True
    """
    positional, named = _example(model, args, kwargs)
    signature = _signature(model)
    _warn_of_hooks(model)
    positional, named = bound(signature, positional, named)
    twin = twin_of(model)
    copies: dict[int, Tensor] = {}

    def imported() -> tuple[Assembled, Program]:
        return import_model(twin, positional, named, dynamic=dynamic_shapes, name=type(model).__name__)

    if check:
        copies, _ = _register_outputs(twin, positional, named)
    try:
        assembled, program = imported()
    except ImportModelError:
        if check or not _register_outputs(twin, positional, named)[1]:  # which says it where the model does not run
            raise
        assembled, program = imported()
    leaves, spec = pytree.tree_flatten((positional, named))
    calling = Calling(
        signature,
        spec,
        tuple(None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves),
        assembled.outputs,
        program.out_spec,
        program.conditions,
    )
    example = tuple(leaf.detach().clone() for leaf in leaves if isinstance(leaf, Tensor))
    if len(example) != len(assembled.graph.inputs):
        raise ImportModelError(
            f"the example holds {len(example)} tensors, the traced program reads {len(assembled.graph.inputs)}"
        )
    net = _network(model, assembled, calling, copies, share=share, seed=seed)
    del copies
    if check:
        check_import(net, twin, positional, named)
        shapes = [op.full_shape for op in assembled.graph.inputs]
        more = sizes_of_one(net, twin, positional, named, shapes)
        net._calling = replace(calling, conditions=(*calling.conditions, *more))
    _copy_modes(model, net)
    net.verify_on(*example)
    return net


def _example(model: Any, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(model, nn.Module):
        raise ImportModelError(f"from_torch takes a torch.nn.Module, not a {type(model).__name__}")
    if isinstance(model, Network):
        raise ImportModelError("this is a graphnet network already")
    if torch.is_inference_mode_enabled():
        raise ImportModelError("what is made in torch.inference_mode can never be trained: import the model outside it")
    for wrapper, inner in _WRAPPERS.items():
        if type(model).__name__ == wrapper:
            raise ImportModelError(f"the model is wrapped in {wrapper}: import model.{inner}, and wrap the network")
    lazy = [name for name, value in model.named_parameters() if torch.nn.parameter.is_lazy(value)]
    if lazy:
        raise ImportModelError(f"tensor {lazy[0]!r} has no shape yet: run the model once before importing it")
    scripted = [path for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        what = f"the TorchScript module {scripted[0]!r}" if scripted[0] else "a TorchScript module"
        raise ImportModelError(f"{what} cannot be traced: import the module that it was made from")
    _check_names(model)
    if isinstance(args, Tensor):
        args = (args,)
    if isinstance(args, Mapping) and kwargs is None:
        args, kwargs = (), args
    if not isinstance(args, tuple | list):
        raise ImportModelError(f"the example is a tuple of what the model is called with, not a {type(args).__name__}")
    if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs)):
        raise ImportModelError("kwargs is a mapping from the name of an argument to its value")
    return tuple(args), dict(kwargs or {})


@functools.cache
def _taken_names() -> frozenset[str]:
    """Attributes of a network, which no module or tensor of a model may be called."""
    return frozenset((*dir(ImportedNetwork), *vars(Network(mlp([1, 1]), seed=0)), "_calling"))


def _check_names(model: nn.Module) -> None:
    own = (*model._modules, *model._parameters, *model._buffers)
    clashing = [name for name in own if name in _taken_names()]
    if clashing:
        raise ImportModelError(
            f"the model has {clashing[0]!r} among its modules or tensors, a name that a network keeps for itself: "
            "rename it, or put the model inside another module"
        )


def _warn_of_hooks(model: nn.Module) -> None:
    found = []
    for path, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            found.append(f"forward hooks on {path or 'the model'}")
        if module._backward_hooks or module._backward_pre_hooks:
            found.append(f"backward hooks on {path or 'the model'}")
    if found:
        warnings.warn(
            f"from_torch: {', '.join(found[:4])}{' ...' if len(found) > 4 else ''}: what forward hooks compute is "
            "traced once and becomes part of the network; what else they do, and backward hooks, are left out",
            UserWarning,
            stacklevel=3,
        )


def _register_outputs(
    twin: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[int, Tensor], list[type]]:  # fmt: skip
    """Let torch.export take results of dataclasses apart, and find out whether the model runs at all.

    Returns
    -------
    copies : dict of int to Tensor
        Copies of parameters, by their ``id``, that running it has made and that are free to be used.
    registered : list of type
        Classes of results that torch did not know.
    """
    output, copies = first_run(twin, args, kwargs)
    registered: list[type] = []

    def visit(value: Any) -> None:
        kind = type(value)
        if is_dataclass(value) and kind not in pytree.SUPPORTED_NODES:
            torch.export.register_dataclass(kind)
            registered.append(kind)
        if isinstance(value, Mapping):
            for item in value.values():
                visit(item)
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)
        elif is_dataclass(value):
            for name in kind.__dataclass_fields__:
                visit(getattr(value, name))

    visit(output)
    return copies, registered


def _network(
    model: nn.Module, assembled: Assembled, calling: Calling, copies: dict[int, Tensor], *, share: bool, seed: int
) -> ImportedNetwork:  # fmt: skip
    net = on_meta(lambda: ImportedNetwork(assembled.graph, seed=seed))
    net._calling = calling
    values = assembled.table.values()
    for name, spec in assembled.graph.tensors.items():
        path, _, attribute = name.rpartition(".")
        home = net.get_submodule(path)
        value = values[name]
        if share and assembled.table.order.__contains__(name):
            value = _own(model, name)
        if isinstance(value, nn.Parameter) and not spec.buffer:
            if not share:
                copy_of = copies.pop(id(value), None)
                value = nn.Parameter(_copied(value) if copy_of is None else copy_of, requires_grad=value.requires_grad)
            home._parameters[attribute] = value
        else:
            home._buffers[attribute] = value if share else _copied(value)
    tie(assembled.graph, net)
    _order(net, assembled.table.order)
    rebind(net._current.program, net)
    return net


def _own(model: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    found = getattr(model.get_submodule(path), attribute)
    assert isinstance(found, Tensor)
    return found


def _copied(value: Tensor) -> Tensor:
    return value.detach().clone(memory_format=torch.preserve_format)


def _order(net: nn.Module, names: Sequence[str]) -> None:
    """Put modules and tensors in the order of the model's state dict."""
    place: dict[str, int] = {}
    for at, name in enumerate(names):
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            place.setdefault(".".join(parts[:depth]), at)
    last = len(names)
    for path, module in net.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for table in (module._modules, module._parameters, module._buffers):
            order = sorted(table, key=lambda key: place.get(prefix + key, last))
            held = dict(table)
            table.clear()
            table.update({key: held[key] for key in order})


def _copy_modes(model: nn.Module, net: nn.Module) -> None:
    """Set every module's mode to that of the model's module at its path, or at the nearest path above."""
    modes = {path: module.training for path, module in model.named_modules()}
    for path, module in net.named_modules():
        while path not in modes:
            path = path.rpartition(".")[0]
        module.training = modes[path]

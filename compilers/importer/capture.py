"""From a module to programs: torch.export in training and in evaluation mode, torch.fx where that refuses."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import operator
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from graphnet.compilers.importer.conditions import Condition, conditions_of, environment_of
from graphnet.compilers.importer.program import Meta, Program, Ref, Size, Source, Step, size_text
from graphnet.errors import ImportModelError

__all__ = ["Captured", "capture"]

_WHOLE = 2**60


@dataclass(slots=True)
class Captured:
    """A model's programs in both modes, and how its inputs are laid out.

    Attributes
    ----------
    train, evaluation : Program
    """

    train: Program
    evaluation: Program


def capture(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Any, *, tied: bool = False
) -> Captured:
    """Capture what a model computes, without changing it.

    Parameters
    ----------
    model : nn.Module
        A copy whose mode may be changed.
    args, kwargs
        An example of what it is called with.
    dynamic : tree or None
        As ``dynamic_shapes`` of torch.export; None: the batch, and every dimension of inputs of less than four.
    tied : bool
        Take the first dimension of every input for one and the same.

    Raises
    ------
    ImportModelError
        Neither torch.export nor torch.fx can trace the model; says why.
    """
    problems: list[str] = []
    for by_fx in (False, True):
        try:
            module = _by_fx(model) if by_fx else model
        except Exception as error:
            problems.append(f"torch.fx: {_short(error)}")
            continue
        for example, named, shapes in _attempts(args, dict(kwargs), dynamic, tied):
            try:
                module.train(True)
                first = _export(module, example, named, shapes)
                reader = _Reader(first, module)
                train = reader.program()
                module.train(False)
                second = _export(module, example, named, shapes)
                if _same_program(first, second):  # most have no layer with a mode
                    evaluation = replace(train, conditions=_conditions(second, reader.names))
                else:
                    evaluation = _Reader(second, module).program()
                _check_sizes((train, evaluation), (args, dict(kwargs)))
                return Captured(train, evaluation)
            except ImportModelError:
                raise
            except Exception as error:  # torch raises many kinds
                problems.append(f"torch.export: {_short(error)}")
    unknown = next((found[1] for problem in problems if (found := _UNKNOWN_OUTPUT.search(problem))), None)
    if unknown is not None:
        raise ImportModelError(_returned(unknown.rpartition(".")[2]))
    branches = any("GuardOnDataDependent" in problem for problem in problems)
    why = ": what it does depends on the values of a tensor (an if, a loop or a shape)" if branches else ""
    raise ImportModelError(f"the model cannot be traced{why}. " + "; ".join(dict.fromkeys(problems)))


_UNKNOWN_OUTPUT = re.compile(r"Found <class '([^']+)'> in output, which is not a known type")


def _returned(kind: str) -> str:
    """What to do about a model that returns an object of a class that torch cannot take apart."""
    if "Cache" in kind:
        return (
            f"the model returns a {kind}, the cache of a decoder that generates. Training has no use for it: set "
            "model.config.use_cache = False, or give kwargs={'use_cache': False}"
        )
    return (
        f"the model returns a {kind}, whose tensors torch does not find: return tensors, tuples, dicts or dataclasses, "
        "or register it with torch.utils._pytree.register_pytree_node"
    )


def _check_sizes(programs: Sequence[Program], given: Any) -> None:
    """Whether the choices that the model made on the traced example, whose batch may be doubled, hold on the given one.

    Raises
    ------
    ValueError
        They do not.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
    for program in programs:
        inputs = [source for source in program.sources.values() if source.kind == "input"]
        sizes: dict[str, int] = {}
        for source, tensor in zip(inputs, tensors, strict=True):
            for entry, size in zip(source.meta.shape, tensor.shape, strict=True):
                if isinstance(entry, str):
                    sizes[entry] = size
                elif entry != size:
                    raise ValueError(f"{entry} and {size} positions of an input give other programs")
        for condition in program.conditions:
            if not condition.holds(sizes):
                raise ValueError(f"the model chooses by {condition} ({condition.where})")


def _short(error: Exception) -> str:
    """The kind of an error and its first words, without torch's advice on how to debug torch."""
    text = " ".join(str(error).split())
    for advice in (" (Size-like symbols", " For more information, run with", " This can be attempted when the Proxy"):
        text = text.partition(advice)[0]
    return f"{type(error).__name__}: {text[:400]}"


def _by_fx(model: nn.Module) -> nn.Module:
    return fx.GraphModule(model, fx.Tracer().trace(model))


def _attempts(
    args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any, tied: bool
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], Any]]:  # fmt: skip
    """Examples with dimensions that may change, from the most to none."""

    def doubled(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == 1:
            return torch.cat([value, value])
        return value

    def free(value: Any, most: bool) -> Any:
        if not isinstance(value, Tensor):
            return None
        every = most and value.dim() < 4
        found = {dim: Dim.AUTO if every or dim == 0 else Dim.STATIC for dim in range(value.dim())}
        return found | ({0: batch} if tied and found else {})

    batch = Dim("batch")
    double = pytree.tree_map(doubled, args), pytree.tree_map(doubled, kwargs)
    if dynamic is not None:
        yield args, kwargs, dynamic
        yield *double, dynamic
        return
    for example, named in (double, (args, kwargs)):
        for most in (True, False):
            shapes = pytree.tree_map(lambda value, most=most: free(value, most), (example, named))
            yield example, named, _Shapes(*shapes)
    yield args, kwargs, None


@dataclass(slots=True)
class _Shapes:
    """Dynamic dimensions of each argument, in the form of a call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def named(self, model: nn.Module) -> dict[str, Any]:
        """By the names of the model's arguments, as torch.export takes them."""
        return dict(inspect.signature(model.forward).bind(*self.args, **self.kwargs).arguments)


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> ExportedProgram:
    with warnings.catch_warnings(), _quiet(), _named_keywords(model, kwargs), torch.enable_grad():
        warnings.simplefilter("ignore")
        if isinstance(shapes, _Shapes):
            shapes = shapes.named(model)
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


@contextlib.contextmanager
def _named_keywords(model: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Give what ``**kwargs`` takes names of its own, without which torch.export knows no dynamic dimensions of it."""
    signature = inspect.signature(model.forward)
    catching = [p for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    caught = [name for name in kwargs if name not in signature.parameters]
    if not catching or not caught or "forward" in vars(model):
        yield
        return
    original = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    own = [parameter for parameter in signature.parameters.values() if parameter is not catching[0]]
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in caught]
    forward.__signature__ = signature.replace(parameters=[*own, *named])  # type: ignore[attr-defined]
    model.__dict__["forward"] = forward
    try:
        yield
    finally:
        del model.__dict__["forward"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export prints and logs what it also raises."""
    before = logging.root.manager.disable
    sink = io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    finally:
        logging.disable(before)


def _conditions(exported: ExportedProgram, names: Mapping[str, str]) -> tuple[Condition, ...]:
    """What the model chose by sizes; ``names`` are those of the program's symbols."""
    for node in exported.graph.nodes:
        if node.op != "placeholder":
            return ()
        environment = environment_of(node.meta.get("val"))
        if environment is not None:
            return conditions_of(environment, names)
    return ()


def _out_spec(exported: ExportedProgram) -> Any:
    return exported.module_call_graph[0].signature.out_spec  # call_spec makes a class each time


def _same_program(one: ExportedProgram, two: ExportedProgram) -> bool:
    """Whether two exports of a model hold the same calls on the same tensors, of the same shapes and modules.

    Where that is not plain (a graph inside a call, a constant of its own) the answer is no.
    """
    ours, theirs = one.graph_signature.input_specs, two.graph_signature.input_specs
    if ours != theirs or _out_spec(one) != _out_spec(two) or len(one.graph.nodes) != len(two.graph.nodes):
        return False
    for table, other in ((one.state_dict, two.state_dict), (one.constants, two.constants)):
        if table.keys() != other.keys() or any(table[key] is not other[key] for key in table):
            return False
    for a, b in zip(one.graph.nodes, two.graph.nodes, strict=True):
        if a.op == "get_attr" or a.op != b.op or a.name != b.name or a.target != b.target or _path(a) != _path(b):
            return False
        if not _same(a.args, b.args) or not _same(a.kwargs, b.kwargs):
            return False
        if not _same_value(a.meta.get("val"), b.meta.get("val")):
            return False
    return True


_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


def _same(a: Any, b: Any) -> bool:
    """Whether two nodes of programs whose nodes so far have the same names are given the same."""
    if isinstance(a, fx.Node):
        return isinstance(b, fx.Node) and a.name == b.name
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(map(_same, a.values(), b.values()))
    return type(a) is type(b) and isinstance(a, _PLAIN) and a == b


def _same_value(a: Any, b: Any) -> bool:
    """Whether two traced values have the same type and, in the programs' symbols, the same sizes."""
    if isinstance(a, Tensor):
        return (
            isinstance(b, Tensor)
            and a.dtype == b.dtype
            and a.dim() == b.dim()
            and all(map(_same_value, a.shape, b.shape))
        )
    if isinstance(a, torch.SymInt | torch.SymFloat | torch.SymBool):
        return type(a) is type(b) and bool(a.node.expr == b.node.expr)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(_same_value, a, b))
    return type(a) is type(b) and isinstance(a, _PLAIN) and a == b


class _Reader:
    """Reads an exported program."""

    def __init__(self, exported: ExportedProgram, module: nn.Module) -> None:
        self.exported = exported
        self.graph = exported.graph_module
        self.names: dict[str, str] = {}
        self.texts: dict[Any, Size] = {}
        self.symbols: dict[str, int] = {}
        self.sources: dict[str, Source] = {}
        self.steps: list[Step] = []
        self.table: dict[str, Step] = {}
        self.taken: set[str] = set()
        self.module = module

    def program(self) -> Program:
        placeholders = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        env: dict[fx.Node, Any] = {}
        specs = {spec.arg.name: spec for spec in self.exported.graph_signature.input_specs}
        self._name_symbols([n for n in placeholders if specs[n.name].kind is InputKind.USER_INPUT])
        for node in placeholders:
            env[node] = self._source(node, specs[node.name])
        outputs = self._run(self.graph, env)
        conditions = _conditions(self.exported, self.names)
        return Program(self.sources, self.steps, outputs, _out_spec(self.exported), dict(self.symbols), conditions)

    # -- inputs -----------------------------------------------------------------------------------------------------

    def _name_symbols(self, nodes: Sequence[fx.Node]) -> None:
        for node in nodes:
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                continue
            for dim, size in enumerate(value.shape):
                if isinstance(size, int):
                    continue
                expression = size.node.expr
                if not expression.is_symbol or expression.name in self.names:
                    continue
                wanted = "batch" if dim == 0 else "length" if value.dim() < 4 and dim == 1 else f"dim{dim}"
                name, count = wanted, 1
                while name in self.symbols:
                    name, count = f"{wanted}{count + 1}", count + 1
                self.names[expression.name] = name
                hint = size.node.hint
                self.symbols[name] = int(hint) if hint is not None else 2

    def _source(self, node: fx.Node, spec: Any) -> Any:
        value = node.meta.get("val")
        if spec.kind is InputKind.USER_INPUT:
            if not isinstance(value, Tensor):
                return value  # a constant argument: it was traced with its value
            meta = self._meta(value)
            if any(isinstance(size, str) and not size.isidentifier() for size in meta.shape):
                raise ValueError("an input's size is tied to another's by a formula")
            self.sources[node.name] = Source(node.name, "input", node.name, meta)
            return Ref(node.name)
        key = str(spec.target)
        kind, held = "constant", self.exported.constants.get(key)
        if spec.kind is InputKind.PARAMETER:
            kind, held = "parameter", self.exported.state_dict[key]
        elif spec.kind is InputKind.BUFFER:
            kind = "buffer"
            held = self.exported.state_dict[key] if spec.persistent else self.exported.constants[key]
        if not isinstance(held, Tensor):
            raise ImportModelError(f"the program reads {key!r}, a {type(held).__name__}, which is no tensor")
        persistent = spec.persistent is not False and kind != "constant"
        self.sources[node.name] = Source(node.name, kind, key, self._meta(value), held, persistent)  # type: ignore[arg-type]
        return Ref(node.name)

    # -- steps ------------------------------------------------------------------------------------------------------

    def _run(
        self, module: fx.GraphModule, env: dict[fx.Node, Any], *, detach: bool = False, path: str = ""
    ) -> list[Any]:
        for node in module.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                found = [self._value(item, env) for item in pytree.tree_leaves(node.args[0])]
                return [self._detached(value, path) if detach else value for value in found]
            if node.op == "get_attr":
                env[node] = self._attribute(module, node)
            else:
                env[node] = self._call(module, node, env)
        return []

    def _attribute(self, module: fx.GraphModule, node: fx.Node) -> Any:
        held: Any = module
        for part in str(node.target).split("."):
            held = getattr(held, part)
        if isinstance(held, Tensor):
            name = self._fresh(node.name)
            self.sources[name] = Source(name, "constant", str(node.target), self._meta(held), held, False)
            return Ref(name)
        return held

    def _call(self, module: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        value = node.meta.get("val")
        target = node.target
        args = tuple(self._value(arg, env) for arg in node.args)
        kwargs = {key: self._value(arg, env) for key, arg in node.kwargs.items()}
        if target is operator.getitem:
            return args[0][args[1]]
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return self._size(value)
        if not isinstance(target, torch._ops.OpOverload):
            return self._higher(node, args, env)
        name = str(target)
        if name.startswith(("aten._assert", "aten.sym_", "aten._local_scalar", "aten.item")) or value is None:
            return None
        if isinstance(value, int | float | bool):
            return value
        metas = tuple(self._meta(item) for item in pytree.tree_leaves(value))
        listed = not isinstance(value, Tensor)
        if not listed and self._is_idle(name, args, kwargs, metas[0]):
            return args[0]
        step = Step(self._fresh(node.name), name, args, kwargs, metas, listed, _path(node))
        self._add(step)
        return [Ref(step.name, port) for port in range(len(metas))] if listed else Ref(step.name)

    def _is_idle(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], meta: Meta) -> bool:
        """Whether a call gives its operand as it is."""
        if not args or not isinstance(args[0], Ref):
            return False
        like = self._meta_of(args[0])
        if name == "aten.slice.Tensor":
            start, end = (args[at] if len(args) > at else None for at in (2, 3))
            return (
                start in (None, 0) and isinstance(end, int | None) and (end is None or end > _WHOLE) and len(args) < 5
            )
        if name in ("aten.to.dtype", "aten.to.dtype_layout", "aten.to.device", "aten.type_as.default"):
            copied = kwargs.get("copy", args[3] if len(args) > 3 else False)
            keeps = kwargs.get("memory_format") is None
            return like == meta and not copied and keeps
        return name == "aten.expand.default" and like == meta

    def _meta_of(self, ref: Ref) -> Meta:
        if ref.step in self.sources:
            return self.sources[ref.step].meta
        return self.table[ref.step].metas[ref.port]

    def _higher(self, node: fx.Node, args: tuple[Any, ...], env: dict[fx.Node, Any]) -> Any:
        name = str(node.target)
        if name == "wrap_with_set_grad_enabled":
            enabled, body, operands = args[0], args[1], args[2:]
            return self._inline(body, operands, detach=not enabled, path=_path(node))
        if name == "wrap_with_autocast":
            return self._inline(args[4], args[5:], detach=False, path=_path(node))
        raise ImportModelError(f"the program uses {name}, which an import cannot follow (in module {_path(node)!r})")

    def _inline(self, body: fx.GraphModule, operands: Sequence[Any], *, detach: bool, path: str) -> list[Any]:
        inner: dict[fx.Node, Any] = {}
        places = [node for node in body.graph.nodes if node.op == "placeholder"]
        inner.update(zip(places, operands, strict=True))
        return self._run(body, inner, detach=detach, path=path)

    def _detached(self, value: Any, path: str) -> Any:
        if not isinstance(value, Ref):
            return value
        meta = self._meta_of(value)
        if not meta.dtype.is_floating_point:
            return value
        step = Step(self._fresh("detach"), "aten.detach.default", (value,), {}, (meta,), False, path)
        self._add(step)
        return Ref(step.name)

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        self.table[step.name] = step

    # -- values -----------------------------------------------------------------------------------------------------

    def _value(self, value: Any, env: dict[fx.Node, Any]) -> Any:
        if isinstance(value, fx.Node):
            return env[value]
        if isinstance(value, list | tuple):
            return [self._value(item, env) for item in value]
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return self._size(value)
        return value

    def _size(self, value: Any) -> Any:
        expression = value.node.expr
        if expression.is_number:
            number = expression
            return int(number) if isinstance(value, torch.SymInt) else float(number)
        known = self.texts.get(expression)
        if known is None:
            known = self.texts[expression] = Size(size_text(expression, self.names))
        return known

    def _meta(self, value: Any) -> Meta:
        shape: list[int | str] = []
        for size in value.shape:
            known = self._size(size) if isinstance(size, torch.SymInt) else int(size)
            if known == 0:
                raise ImportModelError("the program makes an empty tensor, which an import cannot follow")
            shape.append(known.text if isinstance(known, Size) else known)
        return Meta(tuple(shape), value.dtype)

    def _fresh(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.taken or name in self.sources:
            name, count = f"{wanted}_{count}", count + 1
        self.taken.add(name)
        return name


def _path(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    if path.startswith("_empty") or path == "L['self']":
        return ""
    return path.split("@")[0]

"""The way out of an import: a lowered network that is called as the model was and returns what the model returned."""

from __future__ import annotations

import operator
from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import fx

from graphnet.compilers.importer.conditions import RELATIONS, Condition
from graphnet.errors import ImportModelError
from graphnet.ir.expressions import value_of

__all__ = ["as_called"]


def as_called(
    program: fx.GraphModule,
    signature: Signature,
    spec: Any,
    leaves: Sequence[Any],
    outputs: Sequence[Any],
    out_spec: Any,
    shapes: Sequence[Sequence[int | str]] = (),
    conditions: Sequence[Condition] = (),
) -> fx.GraphModule:
    """Give a lowered network, which reads and returns flat tensors, the call of the model that it was made from.

    Parameters
    ----------
    program : torch.fx.GraphModule
        Changed in place.
    signature : Signature
        Of the model's forward.
    spec, leaves
        How ``(args, kwargs)`` are made up, and which of their leaves are tensors (None) or constants.
    outputs, out_spec
        Which graph output or constant each leaf of the result is, and how they are put together.
    shapes, conditions
        Dimensions of each tensor that it reads, and what must hold of those that have names.

    Returns
    -------
    torch.fx.GraphModule
        Plain torch: it can be pickled, and runs without graphnet.

    Raises
    ------
    ImportModelError
        An input or a result is made up in a way that plain code cannot write.
    """
    code = program.graph
    old = [node for node in code.nodes if node.op == "placeholder"]
    args, kwargs = spec.children()
    wanted = _arguments(signature, args, kwargs)
    with code.inserting_before(next(iter(code.nodes))):
        given = [code.placeholder(name, default_value=default) for name, default, _ in wanted]
        flat: list[fx.Node] = []
        for node, (_, _, each) in zip(given, wanted, strict=True):
            flat += _taken_apart(code, node, each)
        for node, leaf in zip(flat, leaves, strict=True):
            if leaf is not None:
                _expect(code, node, leaf[0])
        for name, default in _defaults(signature, wanted):
            _expect(code, code.placeholder(name, default_value=default), default)
        tensors = [node for node, leaf in zip(flat, leaves, strict=True) if leaf is None]
        _demand(code, tensors, shapes, conditions)
    for before, after in zip(old, tensors, strict=True):
        before.replace_all_uses_with(after)
        code.erase_node(before)
    last = next(node for node in code.nodes if node.op == "output")
    found = last.args[0] if isinstance(last.args[0], tuple) else (last.args[0],)
    values = [found[entry] if isinstance(entry, int) else entry[0] for entry in outputs]
    with code.inserting_before(last):
        result = _put_together(code, out_spec, values)
    last.args = (result,)
    code.eliminate_dead_code(
        is_impure_node=lambda node: node.op != "call_function" or node.target is not operator.getitem
    )
    code.lint()
    program.recompile()
    return program


def _arguments(signature: Signature, args: Any, kwargs: Any) -> list[tuple[str, Any, Any]]:
    """Name, default and structure of each argument that the example gave."""
    positional = args.children()
    by_name = dict(zip(kwargs.context, kwargs.children(), strict=True))
    found: list[tuple[str, Any, Any]] = []
    for name, parameter in signature.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            continue
        if parameter.kind is Parameter.VAR_POSITIONAL:
            if positional:
                found.append((f"*{name}", Parameter.empty, positional[:]))
            positional.clear()
            continue
        if positional and parameter.kind is not Parameter.KEYWORD_ONLY:
            found.append((name, Parameter.empty, positional.pop(0)))
        elif name in by_name:
            found.append((name, Parameter.empty, by_name.pop(name)))
    found += [(name, Parameter.empty, each) for name, each in by_name.items()]
    return found


def _defaults(signature: Signature, wanted: Sequence[tuple[str, Any, Any]]) -> list[tuple[str, Any]]:
    """Arguments that the example left at a plain default, where the plain module can take them too."""
    names = {name for name, _, _ in wanted}
    by_name = any(name.startswith("*") for name in names)
    return [
        (name, parameter.default)
        for name, parameter in signature.parameters.items()
        if name not in names
        and parameter.default is not Parameter.empty
        and (parameter.default is None or isinstance(parameter.default, bool | int | float | str))
        and (not by_name or parameter.kind is Parameter.KEYWORD_ONLY)
    ]


def _expect(code: fx.Graph, node: fx.Node, value: Any) -> None:
    """Let a call with another constant than the one that was traced fail, rather than compute something else."""
    same = code.call_function(operator.eq, (node, value))
    code.call_function(torch._assert, (same, f"{node.target}: this module was made for {value!r}"))


def _demand(
    code: fx.Graph, tensors: Sequence[fx.Node], shapes: Sequence[Sequence[int | str]], conditions: Sequence[Condition]
) -> None:
    """Let a call fail for whose sizes the model would have done something else."""
    places: dict[str, tuple[fx.Node, int]] = {}
    for node, shape in zip(tensors, shapes, strict=bool(shapes)):
        for dim, entry in enumerate(shape):
            if isinstance(entry, str):
                places.setdefault(entry, (node, dim))

    def value(expression: str) -> Any:
        return value_of(
            expression,
            lambda name: code.call_method("size", places[name]),
            lambda function, *values: code.call_function(function, values),
        )

    for one in conditions:
        holds = code.call_function(RELATIONS[one.relation], (value(one.left), value(one.right)))
        code.call_function(torch._assert, (holds, f"this module was made for sizes where {one}"))


def _taken_apart(code: fx.Graph, node: fx.Node, spec: Any) -> list[fx.Node]:
    if isinstance(spec, list):  # of an argument that takes any number
        parts = [(code.call_function(operator.getitem, (node, at)), child) for at, child in enumerate(spec)]
        return [leaf for part, child in parts for leaf in _taken_apart(code, part, child)]
    if spec.is_leaf():
        return [node]
    if spec.type not in (list, tuple, dict):
        raise ImportModelError(f"an input is a {spec.type.__name__}, which plain code cannot take apart")
    keys = spec.context if spec.type is dict else range(spec.num_children)
    found = []
    for key, child in zip(keys, spec.children(), strict=True):
        found += _taken_apart(code, code.call_function(operator.getitem, (node, key)), child)
    return found


def _put_together(code: fx.Graph, spec: Any, values: list[Any]) -> Any:
    if spec.is_leaf():
        return values.pop(0)
    parts = [_put_together(code, child, values) for child in spec.children()]
    if spec.type in (list, tuple):
        return spec.type(parts)
    if spec.type is dict:
        return dict(zip(spec.context, parts, strict=True))
    if spec.type is namedtuple:
        return code.call_function(spec.context, tuple(parts))
    names = _fields(spec)
    if names is None:
        raise ImportModelError(f"the model returns a {spec.type.__name__}, which plain code cannot put together")
    return code.call_function(spec.type, (), dict(zip(names, parts, strict=True)))


def _fields(spec: Any) -> list[str] | None:
    """Names of what a class is called with, in the order of its leaves."""
    context = spec.context
    if isinstance(context, list | tuple) and len(context) == 2 and all(isinstance(part, list) for part in context):
        context = context[0]
    named = isinstance(context, list | tuple) and all(isinstance(name, str) for name in context)
    if not named or not (is_dataclass(spec.type) or issubclass(spec.type, Mapping)):
        return None
    return list(context) if len(context) == spec.num_children else None

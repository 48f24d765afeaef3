"""A captured program as plain values: sources, calls, outputs; free of torch.fx and of symbolic shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import sympy
import torch
from torch import Tensor

from graphnet.errors import ImportModelError

__all__ = ["Meta", "Mode", "Program", "Ref", "Size", "Source", "Step", "refs_in", "replace_refs", "size_text"]

Entry: TypeAlias = "int | str"


@dataclass(frozen=True, slots=True)
class Ref:
    """A value: which source or step makes it, and which of its outputs it is."""

    step: str
    port: int = 0


@dataclass(frozen=True, slots=True)
class Size:
    """A size expression of the dimensions that change from batch to batch."""

    text: str


@dataclass(frozen=True, slots=True)
class Mode:
    """A value that differs between training and evaluation."""

    train: Any
    evaluation: Any


@dataclass(frozen=True, slots=True)
class Meta:
    """Shape and type of a tensor; a size that changes from batch to batch is an expression."""

    shape: tuple[Entry, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Source:
    """What a program reads: an input, or a tensor of the model.

    Attributes
    ----------
    name : str
    kind : str
    key : str
        Name in the state dict, or of the argument.
    meta : Meta
    value : Tensor or None
        The model's tensor.
    persistent : bool
        Whether a buffer is in the state dict.
    """

    name: str
    kind: Literal["input", "parameter", "buffer", "constant"]
    key: str
    meta: Meta
    value: Tensor | None = None
    persistent: bool = True


@dataclass(slots=True)
class Step:
    """One call.

    Attributes
    ----------
    name : str
    target : str
        ``aten.add.Tensor``.
    args, kwargs
        With :class:`Ref`, :class:`Size` and :class:`Mode` in place of values.
    metas : tuple of Meta
        Of each output.
    listed : bool
        Whether it returns several values, or a list.
    path : str
        The module in which it was called.
    only : str or None
        ``train`` or ``evaluation`` where it is called in one mode alone.
    """

    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    metas: tuple[Meta, ...]
    listed: bool
    path: str
    only: Literal["train", "evaluation"] | None = None
    _reads: tuple[Ref, ...] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def function(self) -> str:
        """Name without namespace and overload."""
        return self.target.split(".")[1]

    def reads(self) -> tuple[Ref, ...]:
        """Every value that it reads, in order, repeats included."""
        if self._reads is None:  # arguments are never changed: a step with others is another
            self._reads = tuple(refs_in((self.args, self.kwargs)))
        return self._reads


@dataclass(slots=True)
class Program:
    """What a model computes in one mode.

    Attributes
    ----------
    sources : dict of str to Source
        In the order of the captured program.
    steps : list of Step
    outputs : list
        A :class:`Ref`, or a constant that the model returns as it is.
    out_spec : Any
        How outputs make up what the model returns.
    symbols : mapping of str to int
        Dimensions that change from batch to batch, with the example's sizes.
    conditions : tuple of Condition
        What must hold of those sizes.
    """

    sources: dict[str, Source]
    steps: list[Step]
    outputs: list[Any]
    out_spec: Any
    symbols: Mapping[str, int] = field(default_factory=dict)
    conditions: tuple[Any, ...] = ()

    def meta(self, ref: Ref) -> Meta:
        """Shape and type of a value."""
        if ref.step in self.sources:
            return self.sources[ref.step].meta
        return self._table()[ref.step].metas[ref.port]

    def _table(self) -> dict[str, Step]:
        return {step.name: step for step in self.steps}


def refs_in(value: Any) -> Iterator[Ref]:
    """Every :class:`Ref` inside a nested value."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, Mode):
        yield from refs_in((value.train, value.evaluation))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from refs_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from refs_in(item)


def replace_refs(value: Any, change: Callable[[Ref], Any]) -> Any:
    """A nested value with every :class:`Ref` replaced."""
    if isinstance(value, Ref):
        return change(value)
    if isinstance(value, Mode):
        return Mode(replace_refs(value.train, change), replace_refs(value.evaluation, change))
    if isinstance(value, list):
        return [replace_refs(item, change) for item in value]
    if isinstance(value, tuple):
        return tuple(replace_refs(item, change) for item in value)
    if isinstance(value, dict):
        return {key: replace_refs(item, change) for key, item in value.items()}
    return value


def size_text(expression: Any, names: Mapping[str, str]) -> str:
    """A sympy expression of sizes as text.

    Raises
    ------
    ImportModelError
        It depends on the data, or uses a function that size expressions do not have.
    """

    def text(node: Any) -> str:
        if isinstance(node, sympy.Integer):
            return str(int(node)) if int(node) >= 0 else f"({int(node)})"
        if isinstance(node, sympy.Symbol):
            if node.name not in names:
                raise ImportModelError(
                    f"a size depends on the data ({node}): what the program computes would have another structure from "
                    "batch to batch"
                )
            return names[node.name]
        kind, args = type(node).__name__, node.args
        if isinstance(node, sympy.Add):
            return "(" + " + ".join(map(text, sorted(args, key=lambda arg: not arg.is_number))) + ")"
        if isinstance(node, sympy.Mul):
            return "*".join(map(text, sorted(args, key=lambda arg: arg.is_number)))
        if kind in ("FloorDiv", "CleanDiv"):
            return f"({text(args[0])} // ({text(args[1])}))"
        if kind in ("Mod", "PythonMod"):
            return f"({text(args[0])} % ({text(args[1])}))"
        if kind in ("Max", "Min"):
            return f"{kind.lower()}({', '.join(map(text, args))})"
        if kind in ("FloatTrueDiv", "IntTrueDiv"):
            return f"({text(args[0])} / ({text(args[1])}))"
        if kind == "ToFloat":
            return text(args[0])
        if isinstance(node, sympy.Pow) and node.exp == 2:
            return f"{text(node.base)}*{text(node.base)}"
        raise ImportModelError(f"a size is computed by {node}, which size expressions do not have")

    return (
        text(expression).removeprefix("(").removesuffix(")") if isinstance(expression, sympy.Add) else text(expression)
    )

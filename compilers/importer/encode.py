"""A step of a captured program as an op: arguments as plain data, and the family that has its rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from graphnet.compilers.importer.modes import SWITCH
from graphnet.compilers.importer.program import Meta, Mode, Ref, Size, Step
from graphnet.errors import ImportModelError
from graphnet.ir.ops.aten.arrange import Divide, PixelShuffle, Slice
from graphnet.ir.ops.aten.call import Call, family_of, schema_of, target_of
from graphnet.ir.ops.aten.convolve import Convolve
from graphnet.ir.ops.aten.normalise import Normalise
from graphnet.ir.ops.aten.opaque import Opaque
from graphnet.ir.ops.aten.pointwise import NEUTRAL, Noise, Pointwise, Switch, is_pointwise
from graphnet.ir.ops.aten.view import Repeat, Squeeze
from graphnet.ir.ops.base import Op

__all__ = ["encode", "prepared", "sizes_of"]

_DROPPED = ("layout", "pin_memory")
_MEMORY = {
    torch.contiguous_format: "contiguous_format",
    torch.channels_last: "channels_last",
    torch.channels_last_3d: "channels_last_3d",
    torch.preserve_format: "preserve_format",
}
_SWITCHED = ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout")


def sizes_of(meta: Meta) -> tuple[int | str, ...]:
    """Sizes of a tensor as ops keep them: one unit is fixed."""
    return tuple("1" if size == 1 else size for size in meta.shape)


def prepared(step: Step, metas: Callable[[Ref], Meta]) -> Step:
    """A step in the form that families know: creations without an operand, explicit scales."""
    function = step.function
    if function.startswith("new_"):
        size, rest = step.args[1], step.args[2:]
        kept = {"dtype": step.metas[0].dtype} | {key: value for key, value in step.kwargs.items() if key == "device"}
        overload = {"new_zeros": "zeros", "new_ones": "ones", "new_full": "full", "new_empty": "empty"}.get(function)
        if overload is not None:
            name = "memory_format" if overload == "empty" else "default"
            return replace(step, target=f"aten.{overload}.{name}", args=(size, *rest[:1]) if rest else (size,),
                           kwargs={"device": torch.device("cpu")} | kept)  # fmt: skip
    if function == "scaled_dot_product_attention" and _argument(step, "scale") is None:
        width = metas(step.args[0]).shape[-1]
        if isinstance(width, int):
            return replace(step, kwargs=step.kwargs | {"scale": 1.0 / math.sqrt(width)})
    if function == "to" and step.target != "aten.to.dtype":
        kept = {"dtype": step.metas[0].dtype}
        return replace(step, target="aten.to.dtype", args=(step.args[0],), kwargs=kept)
    if step.only == "train" and function in _SWITCHED:
        args = tuple(Mode(True, False) if value is True else value for value in step.args)
        return replace(step, args=args)
    return step


def _argument(step: Step, name: str) -> Any:
    for at, (key, keyword, default) in enumerate(schema_of(step.target)):
        if key == name:
            if name in step.kwargs:
                return step.kwargs[name]
            return step.args[at] if not keyword and at < len(step.args) else default
    return None


def encode(
    step: Step,
    refs: dict[Ref, str],
    names: Mapping[str, Any],
    *,
    metas: Callable[[Ref], Meta],
    reason: str | None = None,
) -> Op:
    """The op of a step.

    Parameters
    ----------
    refs : mapping of Ref to str
        What ops call each value.
    names : mapping
        The op's name, and the path of its module where that is another.
    metas : callable
        Shape and type of a value.
    reason : str, optional
        Why it must be opaque.

    Raises
    ------
    ImportModelError
        An argument cannot be kept as data.
    """
    if step.target == SWITCH:
        return Switch(**names, inputs=tuple(refs[ref] for ref in step.args))
    writer = _Writer(refs, step)
    args = tuple(writer.write(value) for value in step.args)
    kwargs = {key: writer.write(value) for key, value in step.kwargs.items() if key not in _DROPPED}
    fields: dict[str, Any] = {
        **names, "inputs": tuple(writer.inputs), "target": step.target, "args": args, "kwargs": kwargs,
        "shape": tuple(size for meta in step.metas for size in sizes_of(meta)),
        "ranks": tuple(len(meta.shape) for meta in step.metas),
    }  # fmt: skip
    if step.only == "train" and torch.Tag.nondeterministic_seeded in target_of(step.target).tags:
        if step.target in NEUTRAL:
            return Noise(**fields)
        if step.function not in _SWITCHED:
            raise ImportModelError(
                f"only training draws random numbers by {step.target} (in module {step.path!r}): not followed"
            )
    if reason is not None:
        return Opaque(**fields, reason=reason)
    family = family_of(step.target)
    if family is None:
        family = Pointwise if is_pointwise(step.target) else Opaque
    return family(**(fields | _details(family, step, metas)))


def _details(family: type[Call], step: Step, metas: Any) -> dict[str, Any]:
    """What a family keeps beside the arguments."""
    if family is Squeeze:
        shape = metas(step.args[0]).shape
        given = step.args[1] if len(step.args) > 1 else list(range(len(shape)))
        dims = [dim % len(shape) for dim in (given if isinstance(given, list) else [given])] if shape else []
        return {"dropped": tuple(dim for dim in dims if shape[dim] == 1)}
    if family is Repeat:
        own, out = metas(step.args[0]).shape, step.metas[0].shape
        lead = len(out) - len(own)
        if step.function == "repeat_interleave":
            dim = _argument(step, "dim")
            if not isinstance(dim, int):
                return {"counts": ()}
            counts: list[Any] = ["1"] * len(out)
            counts[dim % len(out)] = _count(step.args[1])
            return {"counts": tuple(counts)}
        given = step.args[1]
        counts = [*(["1"] * (len(out) - len(given))), *(_count(count) for count in given)]
        assert lead >= 0
        return {"counts": tuple(counts)}
    if family is Convolve:
        x, weight = metas(_argument(step, "input")).shape, metas(_argument(step, "weight")).shape
        channels = x[1] if len(x) == len(weight) else x[0]
        groups = _argument(step, "groups")
        if groups == 1:
            return {}
        return {"grouping": "depthwise" if groups == channels else "several", "groups": groups}
    if family is Divide and step.function != "unbind":
        shape = metas(step.args[0]).shape
        at = _argument(step, "dim") % len(shape)
        parts = [[*sizes_of(meta)[:at], meta.shape[at], *sizes_of(meta)[at + 1 :]] for meta in step.metas]
        return {"shape": tuple(size for part in parts for size in part)}  # a part of one unit may grow
    if family is Slice:
        shape = metas(step.args[0]).shape
        total = shape[_argument(step, "dim") % len(shape)]
        start, end = _argument(step, "start"), _argument(step, "length" if step.function == "narrow" else "end")
        skip = None if step.function == "narrow" else _argument(step, "step")
        found = Slice.known_range(step.function, start, end, skip, total if isinstance(total, int) else None)
        return dict(zip(("offset", "length"), found, strict=True))
    if family is Normalise and step.function == "group_norm":
        return {"groups": _argument(step, "num_groups")}
    if family is PixelShuffle and step.function.endswith("channel_shuffle"):
        return {"groups": _argument(step, "groups")}
    return {}


def _count(value: Any) -> int | str:
    if isinstance(value, Size):
        return value.text
    return "1" if value == 1 else int(value)


class _Writer:
    def __init__(self, refs: dict[Ref, str], step: Step) -> None:
        self.refs, self.step = refs, step
        self.inputs: list[str] = []
        self.seen: dict[str, int] = {}

    def write(self, value: Any) -> Any:
        if isinstance(value, Ref):
            name = self.refs[value]
            if name not in self.seen:
                self.seen[name] = len(self.inputs)
                self.inputs.append(name)
            return {"in": self.seen[name]}
        if isinstance(value, Size):
            return {"size": value.text}
        if isinstance(value, Mode):
            return {"mode": [self.write(value.train), self.write(value.evaluation)]}
        if isinstance(value, list | tuple):
            return [self.write(item) for item in value]
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": True}
        if isinstance(value, torch.memory_format):
            return {"memory": _MEMORY[value]}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}
        if isinstance(value, complex):
            return {"complex": [str(value.real), str(value.imag)]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise ImportModelError(
            f"{self.step.target} (in module {self.step.path!r}) is called with a {type(value).__name__}, which cannot "
            "be kept as data"
        )

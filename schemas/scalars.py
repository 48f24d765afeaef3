"""Numbers that may be schedules: wherever a document takes a :data:`Scalar`, a plain number or a curve does.

A schedule gives a value for every optimizer step by ``.at(step)`` and its range by ``.bounds()``. A plain
number is read as a :class:`Constant` and written back as the number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_serializer, model_validator

from graphnet.schemas.models import Frozen, problem

__all__ = ["AnySchedule", "Constant", "Cosine", "Exponential", "Linear", "Period", "Scalar", "Span", "Steps", "whole"]


class _Schedule(Frozen):
    def at(self, step: float) -> float:
        """Return the value at `step` (optimizer steps; before 0 counts as 0)."""
        return self._at(max(step, 0))

    def bounds(self) -> tuple[float, float]:
        """Return the lowest and the highest value that the schedule takes."""
        return self._bounds()

    def _at(self, step: float) -> float:
        raise NotImplementedError

    def _bounds(self) -> tuple[float, float]:
        raise NotImplementedError


class Constant(_Schedule):
    """The same value at every step; written in a document as the plain number."""

    kind: Literal["constant"] = "constant"
    value: int | float = Field(union_mode="left_to_right")

    @model_serializer(mode="plain")
    def _as_number(self) -> int | float:
        return self.value

    def at(self, step: float) -> float:
        """Return the value, whatever the step."""
        return self.value

    def _at(self, step: float) -> float:
        return self.value

    def _bounds(self) -> tuple[float, float]:
        return self.value, self.value


class _Ramp(_Schedule):
    start: float
    end: float
    steps: int = Field(gt=0, description="optimizer steps from start to end")
    begin: int = Field(default=0, ge=0, description="the step at which the change begins")

    def _progress(self, step: float) -> float:
        return min(max((step - self.begin) / self.steps, 0.0), 1.0)

    def _bounds(self) -> tuple[float, float]:
        return min(self.start, self.end), max(self.start, self.end)


class Linear(_Ramp):
    """From `start` to `end` in a straight line, then `end`."""

    kind: Literal["linear"] = "linear"

    def _at(self, step: float) -> float:
        t = self._progress(step)
        return (1 - t) * self.start + t * self.end


class Cosine(_Ramp):
    """From `start` to `end` along half a cosine (Loshchilov & Hutter 2017, 1608.03983), then `end`."""

    kind: Literal["cosine"] = "cosine"

    def _at(self, step: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * self._progress(step))) / 2


class Exponential(_Ramp):
    """From `start` to `end` by equal ratios, then `end`; both are above zero."""

    kind: Literal["exponential"] = "exponential"
    start: float = Field(gt=0)
    end: float = Field(gt=0)

    def _at(self, step: float) -> float:
        t = self._progress(step)
        return float(self.start ** (1 - t) * self.end**t)


class Steps(_Schedule):
    """`values[i]` from step `boundaries[i - 1]` up to but without `boundaries[i]`."""

    kind: Literal["steps"] = "steps"
    values: tuple[float, ...] = Field(min_length=1)
    boundaries: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Steps:
        if len(self.values) != len(self.boundaries) + 1:
            raise problem(
                f"found {len(self.values)}; expected one more than boundaries, {len(self.boundaries) + 1}",
                "values",
            )
        if any(b <= a for a, b in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise problem("boundaries must increase", "boundaries")
        return self

    def _at(self, step: float) -> float:
        return self.values[sum(step >= boundary for boundary in self.boundaries)]

    def _bounds(self) -> tuple[float, float]:
        return min(self.values), max(self.values)


def _number_is_constant(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"kind": "constant", "value": value}
    if not isinstance(value, (Mapping, _Schedule)):
        raise problem("expected a number, or a schedule such as {kind: linear, start: 8, end: 1, steps: 1000}")
    return value


AnySchedule: TypeAlias = Annotated[Constant | Linear | Cosine | Exponential | Steps, Field(discriminator="kind")]
Scalar: TypeAlias = Annotated[
    AnySchedule, BeforeValidator(_number_is_constant, json_schema_input_type=float | AnySchedule)
]
"""A number or a schedule of one. Either way the value has ``.at(step)`` and ``.bounds()``."""


def whole(value: float) -> int:
    """Round half up, so that what a schedule gives does not depend on whether it is even.

    Examples
    --------
    >>> whole(2.5), whole(3.5), whole(3.4)
    (3, 4, 3)
    """
    return math.floor(value + 0.5)


def _span(value: Scalar) -> Scalar:
    return _steps_from(value, 0)


def _period(value: Scalar) -> Scalar:
    return _steps_from(value, 1)


def _steps_from(value: Scalar, least: int) -> Scalar:
    low, high = value.bounds()
    if low < least or (value.kind == "constant" and high != int(high)):
        raise problem(f"expected a whole number of steps, at least {least}, or a schedule of it; found {low:g}")
    return value


Span: TypeAlias = Annotated[Scalar, AfterValidator(_span)]
"""A number of optimizer steps, 0 or more; a schedule's value is rounded where it is used."""
Period: TypeAlias = Annotated[Scalar, AfterValidator(_period)]
"""A number of optimizer steps, 1 or more."""

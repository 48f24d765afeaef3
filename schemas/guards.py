"""Whether a rule applies: conditions on metrics, costs, ages and parity, joined by all, any and not.

A :data:`Guard` is judged at a step of the run; each threshold may be a schedule.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from graphnet.schemas.models import Frozen, Name, problem
from graphnet.schemas.scalars import Scalar

__all__ = [
    "Age",
    "All",
    "Always",
    "Any_",
    "Cost",
    "Dormant",
    "Guard",
    "Metric",
    "Not",
    "Parity",
    "Plateau",
]


class Always(Frozen):
    """Holds."""

    kind: Literal["always"] = "always"


class All(Frozen):
    """Holds when each of `of` holds."""

    kind: Literal["all"] = "all"
    of: tuple[Guard, ...] = Field(min_length=1)


class Any_(Frozen):  # noqa: N801 - `Any` is typing's
    """Holds when one of `of` holds."""

    kind: Literal["any"] = "any"
    of: tuple[Guard, ...] = Field(min_length=1)


class Not(Frozen):
    """Holds when `of` does not."""

    kind: Literal["not"] = "not"
    of: Guard


class Plateau(Frozen):
    """Holds when `metric` has improved by less than `min_delta`, relative, over `window` steps."""

    kind: Literal["plateau"] = "plateau"
    metric: Name
    window: int = Field(gt=0, description="optimizer steps looked back")
    min_delta: Scalar = Field(default=1e-3, validate_default=True)
    patience: int = Field(default=0, ge=0, description="further steps for which it must hold")
    mode: Literal["min", "max"] = "min"


class _Bounds(Frozen):
    above: Scalar | None = None
    below: Scalar | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> _Bounds:
        if self.above is None and self.below is None:
            raise problem("expected above, below or both; found neither")
        return self


class Metric(_Bounds):
    """Holds when the reported `metric` is above or below a threshold."""

    kind: Literal["metric"] = "metric"
    metric: Name


class Cost(_Bounds):
    """Holds when a cost of the current version is above or below a threshold."""

    kind: Literal["cost"] = "cost"
    metric: Literal["params", "flops", "optimizer_bytes", "activation_bytes"]


class Parity(_Bounds):
    """Holds when newborns have reached parity with incumbents, or are `max_age` steps old."""

    kind: Literal["parity"] = "parity"
    of: Name = Field(description="a node of the pattern, or a group's name or glob")
    signal: Literal["gradient", "activation"] = "gradient"
    max_age: int | None = Field(default=None, gt=0, description="optimizer steps after which it holds anyway")


class Age(_Bounds):
    """Holds when the optimizer steps since units last joined the group are above or below a threshold."""

    kind: Literal["age"] = "age"
    of: Name = Field(description="a node of the pattern, or a group's name or glob")


class Dormant(_Bounds):
    """Holds when the share of the group's units that are dormant (retired) is above or below a threshold."""

    kind: Literal["dormant"] = "dormant"
    of: Name = Field(description="a node of the pattern, or a group's name or glob")


Guard: TypeAlias = Annotated[
    Always | All | Any_ | Not | Plateau | Metric | Cost | Parity | Age | Dormant, Field(discriminator="kind")
]
for _guard in (All, Any_, Not):
    _guard.model_rebuild()

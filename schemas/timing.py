"""When a rule is due: at given steps, every so many, or at the start of each cycle.

Each kind of :data:`Schedule` also keeps a rule that has applied waiting for its `cooldown`.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from graphnet.schemas.models import Frozen, problem, require_one

__all__ = ["At", "Cycles", "Every", "Schedule"]


class _When(Frozen):
    cooldown: int = Field(default=0, ge=0, description="optimizer steps without another try after one applied")


class At(_When):
    """Due at these optimizer steps."""

    kind: Literal["at"] = "at"
    steps: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)


class Every(_When):
    """Due at `start`, `start + steps`, ... before `stop`, until it has been applied `max_fires` times."""

    kind: Literal["every"] = "every"
    steps: int = Field(gt=0)
    start: int = Field(default=0, ge=0)
    stop: int | None = None
    max_fires: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Every:
        if self.stop is not None and self.stop <= self.start:
            raise problem(f"found {self.stop}; expected more than start, {self.start}", "stop")
        return self


class Cycles(_When):
    """Due at the start of each of `cycles` cycles, each so many steps or epochs long."""

    kind: Literal["cycles"] = "cycles"
    cycles: int = Field(gt=0)
    steps_per_cycle: int | None = Field(default=None, gt=0)
    epochs: int | None = Field(default=None, gt=0, description="epochs per cycle")

    @model_validator(mode="after")
    def _check(self) -> Cycles:
        require_one(self, "steps_per_cycle", "epochs")
        return self


Schedule: TypeAlias = Annotated[At | Every | Cycles, Field(discriminator="kind")]

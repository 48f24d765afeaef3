"""What an attempt to apply a rule came to: a status, always with a reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from graphnet.errors import GraphnetError

__all__ = ["Change", "CostChange", "Costs", "Outcome", "Status"]

Status: TypeAlias = Literal["not due", "guard false", "no match", "rejected", "applied"]


@dataclass(frozen=True, slots=True)
class Costs:
    """What one version costs, predicted from its graph.

    Attributes
    ----------
    params : int
        Of live units.
    flops : int or None
        Of one forward pass of one example; None where the size of an input is not known (give ``batch=``).
    optimizer_bytes : int
        State of the attached optimizers, step counters left out; 0 where none is attached.
    activation_bytes : int or None
        Outputs of every op for one example; None where ``flops`` is.
    """

    params: int
    flops: int | None
    optimizer_bytes: int
    activation_bytes: int | None


@dataclass(frozen=True, slots=True)
class CostChange:
    """Costs before and after an attempt; the same where nothing was applied."""

    before: Costs
    after: Costs


@dataclass(frozen=True, slots=True)
class Change:
    """What one step did to one group: its operator and the live units before and after it."""

    operator: str
    group: str
    before: int
    after: int

    def __str__(self) -> str:
        return f"{self.operator} {self.group} {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt to apply a rule ended.

    Attributes
    ----------
    rule : str
        The rule's name.
    status : str
        ``not due``, ``guard false``, ``no match``, ``rejected`` or ``applied``.
    reason : str
        Why; for an applied rule what was done.
    version : int
        The network's version after the attempt.
    cost : CostChange
    step : int or None
        The optimizer step of the attempt.
    changes : tuple of Change
        What was done, in order; empty unless applied.
    error : GraphnetError or None
        What rejected the rule (a :class:`~graphnet.errors.BudgetError` for a budget); not compared.
    """

    rule: str
    status: Status
    reason: str
    version: int
    cost: CostChange
    step: int | None = None
    changes: tuple[Change, ...] = ()
    error: GraphnetError | None = field(default=None, compare=False, repr=False)

    @property
    def applied(self) -> bool:
        """Whether the network was edited."""
        return self.status == "applied"

    def record(self) -> dict[str, Any]:
        """The outcome as plain data, for a log."""
        return {
            "rule": self.rule,
            "status": self.status,
            "reason": self.reason,
            "version": self.version,
            "step": self.step,
            "changes": [asdict(change) for change in self.changes],
            "cost": asdict(self.cost),
        }

    def __str__(self) -> str:
        at = "" if self.step is None else f"step {self.step}: "
        return f"{at}{self.rule}: {self.status} ({self.reason})"

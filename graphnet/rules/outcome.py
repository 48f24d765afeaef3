"""What an attempt to apply a rule came to: a status, always with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from graphnet.errors import GraphnetError

__all__ = ["Change", "CostChange", "Costs", "MatchOutcome", "Outcome", "Status", "Teller"]

Status: TypeAlias = Literal["not due", "guard false", "no match", "rejected", "applied"]

_new = object.__new__


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
    """What one step did in one place.

    Attributes
    ----------
    operator : str
    group : str
        The unit group, or the op, that it was done to.
    before, after : int or None
        The group's live units before and after it; None for an op.
    """

    operator: str
    group: str
    before: int | None = None
    after: int | None = None

    def __str__(self) -> str:
        units = "" if self.before is None else f" {self.before} -> {self.after}"
        return f"{self.operator} {self.group}{units}"


@dataclass(frozen=True, slots=True)
class MatchOutcome:
    """What one match of a rule's pattern came to.

    Attributes
    ----------
    nodes : tuple of (str, str)
        For each node of the pattern the op or unit group that it matched.
    status : str
        ``guard false``, ``no match`` (nothing to do), ``rejected`` or ``applied``.
    reason : str
    """

    nodes: tuple[tuple[str, str], ...]
    status: Status
    reason: str

    def __str__(self) -> str:
        where = ", ".join(f"{node}={name}" for node, name in self.nodes)
        return f"[{where}] {self.status} ({self.reason})"


class Teller(Protocol):
    """Words an outcome when somebody reads it: most are never read, and a policy is asked at every step."""

    @property
    def status(self) -> Status:
        """How the attempt ended."""

    @property
    def found(self) -> object:
        """What it speaks of: the same object as long as the matches are the same."""

    @property
    def until(self) -> float:
        """The step before which it ends so again, if neither the network nor the events seen have changed."""

    def reason(self, step: int) -> str:
        """Why the rule was not applied at a step."""

    def matches(self, step: int) -> tuple[MatchOutcome, ...]:
        """What became of each match."""


@dataclass(frozen=True)
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
    matches : tuple of MatchOutcome
        What became of each match of the rule's pattern; empty without a pattern, or where the rule was not due.
    error : GraphnetError or None
        What rejected the rule (a :class:`~graphnet.errors.BudgetError` for a budget); not compared.
    teller : Teller or None
        Words ``reason`` and ``matches`` when they are first read; not compared.
    """

    rule: str
    status: Status
    reason: str
    version: int
    cost: CostChange
    step: int | None = None
    changes: tuple[Change, ...] = ()
    matches: tuple[MatchOutcome, ...] = field(default_factory=tuple)  # no default on the class: see __getattr__
    error: GraphnetError | None = field(default=None, compare=False, repr=False)
    teller: Teller | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def told_by(teller: Teller, rule: str, version: int, cost: CostChange, step: int) -> Outcome:
        """An outcome that changed nothing; ``reason`` and ``matches`` are worded when they are first read."""
        known = {
            "rule": rule, "status": teller.status, "version": version, "cost": cost, "step": step, "changes": (),
            "error": None, "teller": teller,
        }  # fmt: skip
        return Outcome.of_fields(known)

    @staticmethod
    def of_fields(known: Mapping[str, Any]) -> Outcome:
        """One of all its fields but those that its teller words, past the constructor: there is one for each step."""
        found = _new(Outcome)
        found.__dict__.update(known)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Everything in words, for copies and pickles."""
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"teller": None}

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A field that has not been worded yet."""
            if name not in ("reason", "matches") or self.__dict__.get("teller") is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            found = getattr(self.teller, name)(self.step)
            self.__dict__[name] = found
            return found

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
            "matches": [
                {"nodes": dict(match.nodes), "status": match.status, "reason": match.reason} for match in self.matches
            ],
            "cost": asdict(self.cost),
        }

    def __str__(self) -> str:
        at = "" if self.step is None else f"step {self.step}: "
        return f"{at}{self.rule}: {self.status} ({self.reason})"

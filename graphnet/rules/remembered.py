"""What a policy knows of a run besides what each of its rules remembers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from graphnet.edit.host import Batch
from graphnet.errors import CheckpointError, GraphnetError
from graphnet.probes.utility import Utility
from graphnet.rules.ages import Ages
from graphnet.rules.events import EventLog
from graphnet.rules.metrics import UnitValues
from graphnet.rules.steps import BY_METRIC
from graphnet.runtime.network import Network
from graphnet.schemas.choices import Choice
from graphnet.schemas.guards import Utility as UtilityGuard
from graphnet.schemas.policy import Rule

__all__ = ["Remembered", "reads_utility"]


@dataclass(slots=True)
class Remembered:
    """What a policy knows of the run besides what each rule remembers.

    Attributes
    ----------
    ages : Ages
    events : EventLog
    units : UnitValues
    owed : dict of (str, str) to float
        By rule and group: units that are owed a reset, the share of every optimizer step added up.
    utility : Utility or None
        Running utilities, where a rule reads them.
    trouble : str or None
        Why they could not be measured on the last batch.
    """

    ages: Ages = field(default_factory=Ages)
    events: EventLog = field(default_factory=EventLog)
    units: UnitValues = field(default_factory=UnitValues)
    owed: dict[tuple[str, str], float] = field(default_factory=dict)
    utility: Utility | None = None
    trouble: str | None = None

    def follow(self, origins: Mapping[str, str]) -> None:
        """What is known of groups that go on under another name goes with them; ages follow by themselves."""
        if origins:
            self.units.follow(origins)
            for (rule, old), value in list(self.owed.items()):
                for new in [new for new, was in origins.items() if was == old]:
                    del self.owed[rule, old]
                    self.owed[rule, new] = value

    def measure_utility(self, net: Network, batch: Batch | None) -> None:
        """Take one more batch into the running utilities, where a rule reads them.

        A batch on which they are not finite, or that does not fit, is left out: rules that ask for them say so, and the
        training goes on.
        """
        self.trouble = None
        if self.utility is not None and batch is not None:
            try:
                self.utility.update(net, batch)
            except GraphnetError as error:
                self.trouble = str(error)

    def state_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "ages": self.ages.state_dict(),
            "events": self.events.state_dict(),
            "units": self.units.state_dict(),
            "owed": [[rule, group, value] for (rule, group), value in self.owed.items()],
            "utility": None if self.utility is None else self.utility.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises
        ------
        CheckpointError
            It is no such state.
        """
        self.ages.load_state_dict(state["ages"])
        self.events.load_state_dict(state["events"])
        self.units.load_state_dict(state["units"])
        self.owed = {(str(rule), str(group)): float(value) for rule, group, value in state["owed"]}
        kept = state["utility"]
        if (kept is None) != (self.utility is None):
            raise CheckpointError("the state is of a policy that reads other metrics: its running utilities differ")
        if self.utility is not None:
            self.utility.load_state_dict(kept)


def reads_utility(rules: Iterable[Rule]) -> bool:
    """Whether a rule asks for the running utilities, in a guard or to choose units."""
    return any(_reads(rule.when) or any(_chooses(step) for step in rule.steps) for rule in rules)


def _reads(guard: Any) -> bool:
    inner = getattr(guard, "of", ())
    parts = () if isinstance(inner, str) or inner is None else inner if isinstance(inner, tuple) else (inner,)
    return isinstance(guard, UtilityGuard) or any(_reads(part) for part in parts)


def _chooses(step: Any) -> bool:
    choices = [value for name in type(step).model_fields if isinstance(value := getattr(step, name), Choice)]
    return any(choice.name == BY_METRIC and choice.args.get("metric") == "utility" for choice in choices)

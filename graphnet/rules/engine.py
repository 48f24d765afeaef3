"""A compiled rule: it drafts what it would do on a sketch of the network, and performs it as one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import Any

from graphnet.errors import EditError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.rules.costs import Accountant, check_budgets, check_transient
from graphnet.rules.execution import Limits, Performed, Place, perform_steps
from graphnet.rules.guards import Verdict, View, compile_guard
from graphnet.rules.lineage import born_in, renamed_groups
from graphnet.rules.matching import Matches
from graphnet.rules.outcome import Change, CostChange, MatchOutcome, Status
from graphnet.rules.patterns import Binding, compile_match, groups_named
from graphnet.rules.schedules import SCHEDULES
from graphnet.rules.sketch import UnpredictableError, sketch_edit
from graphnet.rules.steps import STEPS, Moment, Runner
from graphnet.runtime.network import Network
from graphnet.schemas.policy import Reset, Rewind, Rule
from graphnet.schemas.scalars import Cosine, Exponential, Linear, Steps

__all__ = ["CompiledRule", "Draft", "Waiting", "nothing", "performed", "troubles"]

_SHOWN = 3  # reasons of one kind in one message


@dataclass(frozen=True, slots=True)
class Draft:
    """What a rule would do, or did.

    Attributes
    ----------
    status, reason : str
        As in an outcome; ``applied`` stands for "may be performed" until it has been.
    graph : Graph
        The graph as it would be, with the ids of pruned units guessed.
    places : tuple of Place
        The matches, those that were refused too.
    changes : tuple of Change
        What its steps do, in order.
    born : mapping of group to ids
        Units that join the live ones; a guess where a score recruits them, until it has been performed.
    touched : tuple of str
        Ops and groups that are changed, as ``op:NAME`` and ``units:NAME``.
    origins : mapping of str to str
        Groups that go on under another name, with their old one.
    predicted : bool
        Whether the graph is known; not where a step depends on data.
    error : GraphnetError or None
    again : bool
        Whether some matches were refused on the live network, and others are left to be drafted without them.
    """

    status: Status
    reason: str
    graph: Graph
    places: tuple[Place, ...] = ()
    changes: tuple[Change, ...] = ()
    born: Mapping[str, Collection[int]] = field(default_factory=dict)
    touched: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    predicted: bool = True
    error: GraphnetError | None = None
    again: bool = False

    @property
    def matches(self) -> tuple[MatchOutcome, ...]:
        """What became of each match; a rule without a pattern has none."""
        return tuple(place.outcome() for place in self.places if place.binding)

    def rejected(self, graph: Graph, error: GraphnetError) -> Draft:
        """The draft of a rule that was refused, with all its matches."""
        for place in self.places:
            if place.status == "applied":
                place.end("rejected", str(error), error)
        return Draft("rejected", str(error), graph, self.places, error=error.with_traceback(None))

    def without(self, graph: Graph, places: Collection[Place], error: GraphnetError) -> Draft:
        """The draft of a rule of which some matches were refused where it was performed."""
        left = [place for place in self.places if place.status == "applied" and place not in places]
        if not left:
            return self.rejected(graph, error)
        for place in places:
            place.end("rejected", str(error), error)
        return replace(self, status="rejected", reason=str(error), graph=graph, again=True)


class Waiting:
    """Why a rule that is due does nothing: no match, or none whose guard holds. It words that when asked.

    Attributes
    ----------
    status : str
    found : Matches
        The same object as long as the graph is.
    verdicts : sequence of Verdict
        One for each match, or a single one for all of them.
    until : float
        The step before which it stays so, if neither the network nor the events seen have changed.
    """

    __slots__ = ("found", "status", "until", "verdicts")

    def __init__(self, found: Matches, verdicts: Sequence[Verdict]) -> None:
        self.found, self.verdicts = found, verdicts
        self.status: Status = "guard false" if verdicts else "no match"
        self.until = inf
        for verdict in verdicts:
            if verdict.until < self.until:
                self.until = verdict.until

    def reason(self, step: int) -> str:
        """Why, in words."""
        return _distinct([verdict.reason(step) for verdict in self.verdicts]) if self.verdicts else self.found.reason

    def matches(self, step: int) -> tuple[MatchOutcome, ...]:
        """What became of each match; a rule without a pattern has none."""
        if not self.verdicts:
            return ()
        reasons = [verdict.reason(step) for verdict in self.verdicts]
        if len(reasons) < len(self.found):
            reasons *= len(self.found)
        told = zip(self.found, reasons, strict=True)
        return tuple(MatchOutcome(tuple(match.nodes.items()), self.status, why) for match, why in told if match.nodes)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A draft that came to nothing, and for how long it would again.

    Attributes
    ----------
    draft : Draft
    ended : tuple of Place
        The matches whose guard held, as they ended.
    bindings : list of Binding
        What they matched.
    costs : CostChange
        Those of the network then: the same object as long as it and what it trains with are the same.
    until : float
        The step before which ages and limits stay.
    """

    draft: Draft
    ended: tuple[Place, ...]
    bindings: list[Binding]
    costs: CostChange
    until: float

    def again(self, places: Sequence[Place], passing: Sequence[Place]) -> Draft:
        """The draft for the same matches, found anew."""
        for place, before in zip(passing, self.ended, strict=True):
            place.end(before.status, before.reason, before.error)
        return replace(self.draft, places=tuple(places))


class CompiledRule:
    """A rule as matcher, guard, timer and runners.

    Parameters
    ----------
    rule : Rule

    Raises
    ------
    GraphnetError
        The rule names something that is not registered, or gives it arguments that it does not take.
    """

    def __init__(self, rule: Rule) -> None:
        where = f"rule {rule.name!r}"
        self.rule, self.name = rule, rule.name
        self.matcher = compile_match(rule.match, where)
        self.guard = compile_guard(rule.when)
        self.timer = SCHEDULES.compile(rule.schedule, where)
        self.runners: list[Runner] = []
        for i, step in enumerate(rule.steps):
            place = f"{where}, step {i + 1} ({step.do})"
            self.runners.append(STEPS.compile(step, place, place))
        self.watches = self.guard.watches
        nodes = frozenset() if rule.match is None else frozenset(rule.match.nodes)
        self._graph: Graph | None = None  # of the matches found last
        self._found = Matches(())
        self._once = self.guard.names is not None and self.guard.names.isdisjoint(nodes)
        self._steady = all(_is_steady(step) for step in rule.steps)
        self._refusal: _Refusal | None = None
        self._shares = [(s.units, s.per_step) for s in rule.steps if isinstance(s, Reset) and s.per_step is not None]

    @property
    def owes(self) -> bool:
        """Whether it resets a share of units at every step."""
        return bool(self._shares)

    def owing(self, graph: Graph, step: int) -> list[tuple[str, float]]:
        """Groups that the rule resets a share of at every step, with the share at this step."""
        found: dict[str, float] = {}
        for units, share in self._shares:
            try:
                matches = self.matcher.find(graph)
                names = {name for match in matches for name in groups_named(graph, units, match.nodes)}
            except GraphnetError:  # the rule itself says why, when it is tried
                continue
            found |= {name: share.at(step) for name in graph.groups if name in names}
        return list(found.items())

    def look(self, view: View) -> Waiting | list[Place] | Draft:
        """The matches, each with the guard's verdict; or why there is nothing to do, which most calls come to.

        A draft is that of a rule whose matches are too many.
        """
        graph = view.graph
        if graph is not self._graph:
            try:
                self._found, self._graph = self.matcher.find(graph), graph
            except EditError as error:
                return Draft("rejected", str(error), graph, error=error.with_traceback(None))
        found = self._found
        if not found.found:
            return Waiting(found, ())
        guard = self.guard
        view.shared.clear()
        if self._once:
            view.binding = found.found[0].nodes
            verdict = guard.verdict(view)
            if not verdict.holds:
                return Waiting(found, (verdict,))
            return [Place(match.nodes) for match in found.found]
        verdicts = []
        for match in found.found:
            view.binding = match.nodes
            verdicts.append(guard.verdict(view))
        if not any(verdict.holds for verdict in verdicts):
            return Waiting(found, verdicts)
        places = [Place(match.nodes) for match in found.found]
        for place, verdict in zip(places, verdicts, strict=True):
            if not verdict.holds:
                place.end("guard false", verdict.reason(view.step))
        return places

    def draft(
        self,
        view: View,
        places: Sequence[Place],
        moment: Callable[[], Moment],
        accountant: Accountant,
        limits: Limits,
    ) -> Draft:
        """What the rule would do to a graph now, at the places that :meth:`look` found; no tensor is read."""
        graph = view.graph
        passing = [place for place in places if place.status == "applied"]
        at_most = self.rule.at_most
        for place in passing[at_most:] if at_most is not None else ():
            place.end("no match", f"at_most={at_most}: matches before it go first")
        passing = passing[:at_most]
        known, costs = self._refusal, accountant.unchanged(graph)
        bindings = [place.binding for place in passing]
        stays = known is not None and view.step < known.until and known.costs is costs
        if known is not None and stays and known.bindings == bindings:
            return known.again(places, passing)
        draft = self._drafted(view, places, passing, moment, accountant, limits)
        if draft.status != "applied" and self._steady and not limits.taken:
            self._refusal = _Refusal(draft, tuple(passing), bindings, costs, limits.until())
        return draft

    def _drafted(
        self,
        view: View,
        places: Sequence[Place],
        passing: Sequence[Place],
        moment: Callable[[], Moment],
        accountant: Accountant,
        limits: Limits,
    ) -> Draft:
        graph, budgets = view.graph, view.budgets
        try:
            done = perform_steps(self.runners, passing, lambda: sketch_edit(graph, accountant.dtype), moment(), limits)
        except UnpredictableError as error:
            return Draft("applied", str(error), graph, tuple(places), predicted=False, error=error)
        if done is None or not any(place.status == "applied" for place in passing):
            return nothing(graph, places, passing)
        after = replace(done.edit.graph, version=graph.version + 1)
        steps, changes = done.edit.plan.steps, tuple(done.changes)
        draft = Draft(
            "applied", "", after, tuple(places), changes, born_in(steps), tuple(done.touched), renamed_groups(steps)
        )
        try:
            check_budgets(budgets, accountant.costs(graph), accountant.costs(after))
            if budgets.transient_bytes is not None:
                check_transient(budgets, accountant.peak(graph, done.stages))
        except EditError as error:
            return draft.rejected(graph, error)
        return replace(draft, reason=reason_of(draft.places, draft.changes))

    def seed(self, net: Network, policy_seed: int, step: int) -> int:
        """The seed of the edit's random numbers: that of a step where one is given, else of network and policy."""
        given = [seed for each in self.rule.steps if (seed := getattr(each, "seed", None)) is not None]
        mixed: tuple[Any, ...] = (self.rule.name, step, *given)
        if not given:
            mixed = (*mixed, "policy", policy_seed, net.history.versions[0].seed, net.version)
        digest = hashlib.blake2b(repr(mixed).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


def _is_steady(step: Any) -> bool:
    """Whether what a step would do depends on the network alone, and not on when it is done."""
    if isinstance(step, Rewind) or (isinstance(step, Reset) and step.per_step is not None):
        return False
    values = (getattr(step, name) for name in type(step).model_fields)
    return not any(isinstance(value, Linear | Cosine | Exponential | Steps) for value in values)


def troubles(rule: Rule) -> list[str]:
    """Everything in a rule that this version cannot execute; :class:`CompiledRule` raises the first."""
    where = f"rule {rule.name!r}"
    parts: list[Callable[[], object]] = [
        lambda: compile_match(rule.match, where),
        lambda: compile_guard(rule.when),
        lambda: SCHEDULES.compile(rule.schedule, where),
    ]
    for i, step in enumerate(rule.steps):
        place = f"{where}, step {i + 1} ({step.do})"
        parts.append(partial(STEPS.compile, step, place, place))
    found = []
    for part in parts:
        try:
            part()
        except GraphnetError as error:
            found.append(str(error))
    return found


def reason_of(places: Sequence[Place], changes: Sequence[Change]) -> str:
    """What was done, and how many matches were refused."""
    refused = [place for place in places if place.status == "rejected"]
    more = f"; {len(refused)} of {len(places)} matches rejected: {_some(refused)}" if refused else ""
    return "; ".join(map(str, changes)) + more


def nothing(graph: Graph, places: Sequence[Place], passing: Sequence[Place]) -> Draft:
    """The draft of a rule of which nothing is left: rejected, where a match was, also in an earlier try."""
    refused = [place for place in places if place.status == "rejected"]
    shown = refused or list(passing)
    status: Status = "rejected" if refused else "no match"
    return Draft(status, _some(shown), graph, tuple(places), error=shown[0].error if refused else None)


def _some(places: Sequence[Place]) -> str:
    return _distinct([place.reason for place in places])


def _distinct(reasons: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(reasons))
    more = f"; and {len(distinct) - _SHOWN} more" if len(distinct) > _SHOWN else ""
    return "; ".join(distinct[:_SHOWN]) + more


def performed(draft: Draft, done: Performed, net: Network) -> Draft:
    """The draft once it is a version of the network."""
    steps = net.history.latest.steps
    return replace(
        draft, graph=net.graph, changes=tuple(done.changes), born=born_in(steps), touched=tuple(done.touched),
        origins=renamed_groups(steps),
        reason=reason_of(draft.places, done.changes), predicted=True, error=None,
    )  # fmt: skip

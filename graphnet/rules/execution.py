"""Performing a rule's steps on its matches: names, conflicts between matches, and what became of each.

A step is done on every match before the next step begins. A match that is refused is left out, so that either all of
its steps are done or none: in its first step what it did is taken back, later the rest begins again without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from graphnet.edit.edit import Edit
from graphnet.errors import EditError, GraphError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.rules.outcome import Change, MatchOutcome, Status
from graphnet.rules.patterns import Binding
from graphnet.rules.sketch import UnpredictableError
from graphnet.rules.steps import Data, Done, Moment, Runner, Stage

__all__ = ["Limits", "Performed", "Place", "RefusedError", "perform_steps"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What stands against an edit besides the steps themselves.

    Attributes
    ----------
    taken : mapping of str to str
        Ops and groups (``op:NAME``, ``units:NAME``) that were edited at this step, with the rule that did.
    refuse : callable
        Why the size of a group may not change so (name, before, after), or None.
    until : callable
        The step before which ages and sizes stand against the same edits, as long as the network stays.
    """

    taken: Mapping[str, str] = field(default_factory=dict)
    refuse: Callable[[str, int, int], str | None] = field(default=lambda name, before, after: None)
    until: Callable[[], float] = field(default=lambda: -1.0)


@dataclass(slots=True)
class Place:
    """One match, and what became of it."""

    binding: Binding
    status: Status = "applied"
    reason: str = ""
    error: GraphnetError | None = None
    names: dict[str, str] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Forget a try."""
        self.names, self.changes, self.idle = dict(self.binding), [], []

    def end(self, status: Status, reason: str, error: GraphnetError | None = None) -> None:
        """It goes no further."""
        self.status, self.reason, self.changes = status, reason, []
        self.error = None if error is None else error.with_traceback(None)

    def outcome(self) -> MatchOutcome:
        """What became of it."""
        return MatchOutcome(tuple(self.binding.items()), self.status, self.reason)


@dataclass(slots=True)
class Performed:
    """What the steps came to.

    Attributes
    ----------
    edit : Edit
    touched : dict of str to Place or None
        Ops and groups, with the place that changed them; None for a step that names no node of the match.
    stages : list of (Graph, tuple of str)
        The graph after each step in each place, with the tensors that were rewritten so far.
    changes : list of Change
        What was done, in order.
    """

    edit: Edit
    touched: dict[str, Place | None] = field(default_factory=dict)
    stages: list[tuple[Graph, tuple[str, ...]]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def copy(self) -> Performed:
        """As it is now."""
        return Performed(self.edit, dict(self.touched), list(self.stages), list(self.changes))


class _ConflictError(EditError):
    """Two places touch one node."""

    def __init__(self, name: str, first: Place, loser: Place) -> None:
        where = ", ".join(f"{node}={value}" for node, value in first.binding.items())
        super().__init__(f"{name!r} is edited at this step by the match {where}, which goes first")
        self.loser = loser


class RefusedError(Exception):
    """Places that cannot go on, with the error; on a live network the edit is given up, and may begin without them."""

    def __init__(self, places: Sequence[Place], error: GraphnetError) -> None:
        super().__init__(str(error))
        self.places, self.error = tuple(places), error


def perform_steps(
    runners: Sequence[Runner],
    places: Sequence[Place],
    begin: Callable[[], Edit],
    moment: Moment,
    limits: Limits,
    data: Data | None = None,
) -> Performed | None:
    """Perform steps on every place, leaving out those that are refused; None where all are.

    Parameters
    ----------
    places : sequence of Place
        Those whose guard holds; a place that is refused says why.
    begin : callable
        Opens a new edit; called again when a place is left out.
    data : Data or None
        None for a sketch.

    Raises
    ------
    RefusedError
        A place is refused on a live network.
    UnpredictableError
        What a step would do cannot be told from the sketch.
    """
    alive = list(places)
    while alive:
        for place in alive:
            place.begin()
        try:
            done = _attempt(runners, alive, begin(), moment, limits, data)
        except RefusedError as refused:
            if data is not None:
                raise
            _end(refused)
            alive = [place for place in alive if place.status == "applied"]
            continue
        alive = [place for place in alive if place.status == "applied"]
        if not alive:
            return None
        for place in alive:
            if not place.changes:
                place.end("no match", f"nothing to do: {'; '.join(dict.fromkeys(place.idle)) or 'no step names it'}")
            else:
                place.reason = "; ".join(map(str, place.changes))
        return done
    return None


def _end(refused: RefusedError) -> None:
    """What becomes of places that a sketch refuses.

    Raises
    ------
    UnpredictableError
        Their error, where it only says that a sketch cannot tell.
    """
    if isinstance(refused.error, UnpredictableError):
        raise refused.error from None
    status: Status = "no match" if isinstance(refused.error, GraphError) else "rejected"
    for place in refused.places:
        place.end(status, str(refused.error), refused.error)


def _attempt(
    runners: Sequence[Runner], places: Sequence[Place], edit: Edit, moment: Moment, limits: Limits, data: Data | None
) -> Performed:
    found = Performed(edit)
    first = edit.graph
    alive = list(places)
    for number, runner in enumerate(runners):
        for at, place in enumerate(alive):
            refers = runner.refers(place.names)
            if at > 0 and not refers:
                continue  # it names no node of the match, and has been done once for all of them
            stage = Stage(edit, place.names, moment, data)
            if data is not None or number > 0 or not refers:
                _run(runner, stage, found, place, alive, limits, refers)
                continue
            kept = found.copy()
            try:
                with edit.nested(validate=False):
                    _run(runner, stage, found, place, alive, limits, refers)
            except RefusedError as refused:
                if any(one is not place for one in refused.places):
                    raise
                found = kept
                _end(refused)
        alive = [place for place in alive if place.status == "applied"]
        if not alive:
            break
    _check_sizes(found, first, alive, limits)
    return found


def _run(
    runner: Runner, stage: Stage, found: Performed, place: Place, places: Sequence[Place], limits: Limits, refers: bool
) -> None:
    """Perform one step in one place, or for all where it names no node of theirs.

    Raises
    ------
    RefusedError
        The place that cannot go on.
    """
    edit = stage.edit
    before = edit.graph
    rewritten = found.stages[-1][1] if found.stages else ()
    try:
        for done in runner.run(stage):
            if isinstance(done, str):
                place.idle.append(done)
                continue
            _claim(found, done, before, edit.graph, place if refers else None, places, limits)
            place.changes.extend(done.changes)
            found.changes.extend(done.changes)
            rewritten = (*rewritten, *done.rewritten)
            found.stages.append((edit.graph, rewritten))
            before = edit.graph
    except _ConflictError as error:
        raise RefusedError([error.loser], error) from error
    except GraphnetError as error:
        raise RefusedError([place] if refers else places, error) from error


def _claim(
    found: Performed,
    done: Done,
    before: Graph,
    after: Graph,
    place: Place | None,
    places: Sequence[Place],
    limits: Limits,
) -> None:
    """Note what a step touched; an :class:`EditError` where that is another's at this step."""
    for key in dict.fromkeys((*done.nodes, *_changed(before, after))):
        name = key.partition(":")[2]
        if key in limits.taken:
            raise EditError(f"{name!r} was edited at this step by rule {limits.taken[key]!r}, which goes first")
        other = found.touched.get(key)
        if other is None or place is None:
            found.touched[key] = other or place
        elif other is not place:
            ahead = next(each for each in places if each is other or each is place)
            raise _ConflictError(name, ahead, place if ahead is other else other)


def _changed(before: Graph, after: Graph) -> list[str]:
    """Ops and groups that differ; an op whose sizes follow a group is not changed by it."""
    if before is after:
        return []
    found = [
        f"units:{name}"
        for name, group in before.groups.items()
        if name in after.groups and (group.ids != after.groups[name].ids or group.dormant != after.groups[name].dormant)
    ]
    for name, node in before.nodes.items():
        then = after.nodes.get(name)
        if then is None or then.op.op != node.op.op or then.inputs != node.inputs:
            found.append(f"op:{name}")
    return found + [f"op:{name}" for name in after.nodes if name not in before.nodes]


def _check_sizes(found: Performed, first: Graph, places: Sequence[Place], limits: Limits) -> None:
    """Refuse the place that changes a group's size against the limits."""
    after = found.edit.graph
    for name, group in first.groups.items():
        if name not in after.groups or after.groups[name].size == group.size:
            continue
        reason = limits.refuse(name, group.size, after.groups[name].size)
        if reason is not None:
            place = found.touched.get(f"units:{name}")
            raise RefusedError(places if place is None else [place], EditError(reason))

"""Finding layouts: union-find over atoms whose terms *refine* each other.

Every dimension starts as an unknown atom. Ops state that two dimensions agree (:meth:`Unifier.unify`), that one
is a product (:meth:`Unifier.factor`), a concatenation (:meth:`Unifier.split`), or fixed
(:meth:`Unifier.freeze`). Where a product or a sum meets an atom, the atom is replaced *everywhere* by that
product or sum. Integers are never evidence: a size says how large a factor is, never which one it is. Two
dimensions with no common refinement (``3*4`` against ``4*3``) are frozen, and only what they touch is.

Every atom has a size at all times and a refinement only makes smaller atoms, so unification ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from graphnet.errors import GraphError
from graphnet.ir.layout import Factor, Layout, Term, atom, const, join, term_size, times

__all__ = ["AtomInfo", "Frozen", "Unifier"]


@dataclass(frozen=True, slots=True)
class Frozen:
    """Why a dimension cannot change.

    Attributes
    ----------
    op : str
        The op that fixes it.
    reason : str
        The reason, as a clause.
    """

    op: str
    reason: str

    def __str__(self) -> str:
        return f"{self.reason} (op {self.op!r})"


@dataclass(slots=True)
class AtomInfo:
    """What is known of one atom while layouts are inferred."""

    size: int
    role: str | None = None
    minimum: int = 1
    dynamic: str | None = None
    derived: bool = False

    @property
    def indivisible(self) -> bool:
        """Whether it is a dimension that changes from batch to batch, of its own right."""
        return self.dynamic is not None and not self.derived


class Unifier:
    """The state of one layout inference.

    ``changes`` counts bindings, so that running every rule twice can be checked to change nothing. With ``lenient``
    a dimension that changes from batch to batch is left alone where what it stands in is frozen: the sizes of an
    imported program fit by themselves. A *derived* atom is such a dimension whose size is an expression of others
    (``batch*16``); it may be refined to the product or sum that it is.
    """

    def __init__(self, *, lenient: bool = False) -> None:
        self.lenient = lenient
        self.info: dict[str, AtomInfo] = {}
        self.bound: dict[str, Layout] = {}
        self.links: dict[str, tuple[str, ...]] = {}
        self.reasons: dict[str, Frozen] = {}
        self.sizes: dict[str, int] = {}
        self.changes = 0
        self.op = "?"

    # -- atoms ------------------------------------------------------------------------------------------------

    def fresh(
        self, size: int, *, role: str | None = None, minimum: int = 1, dynamic: str | None = None, derived: bool = False
    ) -> Layout:
        """A new unknown of a known size."""
        key = f"?{len(self.info)}"
        self.info[key] = AtomInfo(size, role, minimum, dynamic, derived)
        self.sizes[key] = size
        return atom(key)

    def resolve(self, layout: Layout) -> Layout:
        """The layout with every bound atom replaced, to the end."""
        terms = layout.terms
        if len(terms) == 1 and len(terms[0]) <= 1:  # by far the most frequent: written out, since it is run so often
            key = terms[0][0] if terms[0] else None
            if type(key) is str:
                return self._resolved_atom(key) or layout
            return layout
        if not self.bound or not any(key in self.bound for key in layout.atoms()):
            return layout
        return layout.substitute(self._resolved_atom)

    def _resolved_atom(self, key: str) -> Layout | None:
        found = self.bound.get(key)
        if found is None:
            return None
        single = found.single
        if single is not None and single not in self.bound:
            return found
        waiting = [key]  # a stack, since a deep network binds a long chain
        while waiting:
            target = self.bound[waiting[-1]]
            chained = [other for other in target.atoms() if not self._settled(other)]
            if chained:
                waiting.extend(chained)
            else:
                self.bound[waiting.pop()] = target.substitute(self.bound.get)
        return self.bound[key]

    def _settled(self, key: str) -> bool:
        """Whether an atom is free, or bound to free atoms only."""
        return key not in self.bound or not any(other in self.bound for other in self.bound[key].atoms())

    def size(self, layout: Layout) -> int:
        """Number of positions now."""
        return layout.size(self.sizes)

    def _bind(self, key: str, layout: Layout) -> None:
        self.changes += 1
        self.bound[key] = layout
        self.links[key] = tuple(layout.atoms())
        mine = self.info[key]
        for other in layout.atoms():
            theirs = self.info[other]
            if theirs.dynamic is None and mine.dynamic is not None and (layout.single is not None or not mine.derived):
                theirs.dynamic, theirs.derived = mine.dynamic, mine.derived
            if layout.single is not None:
                theirs.role = theirs.role or mine.role
                theirs.minimum = max(theirs.minimum, mine.minimum)

    # -- freezing ---------------------------------------------------------------------------------------------

    def freeze(self, layout: Layout, reason: str) -> None:
        """Fix a dimension at its size; every atom in it becomes its integer, with the reason kept."""
        for key in list(self.resolve(layout).atoms()):
            self._freeze_atom(key, reason)

    def _freeze_atom(self, key: str, reason: str) -> None:
        if key in self.bound:
            self.freeze(self.bound[key], reason)
            return
        info = self.info[key]
        if info.dynamic is not None and self.lenient:
            return
        if info.dynamic is not None:
            raise GraphError(
                f"op {self.op!r} fixes the dynamic dimension {info.dynamic!r} ({reason}): "
                "a dimension whose size changes from batch to batch cannot be mixed with units"
            )
        self.reasons[key] = Frozen(self.op, reason)
        self._bind(key, const(info.size))

    def reason(self, key: str) -> Frozen | None:
        """Why an atom ended as an integer (the first reason found along its bindings), or None."""
        pending = [key]
        while pending:
            current = pending.pop()
            if current in self.reasons:
                return self.reasons[current]
            pending.extend(self.links.get(current, ()))
        return None

    def fixed_factors(self, key: str) -> list[tuple[int, Frozen]]:
        """Sizes of the parts of an atom that ended as integers, each with why, where others did not."""
        found: list[tuple[int, Frozen]] = []
        pending, seen = [key], set()
        while pending:
            current = pending.pop(0)
            if current in seen:
                continue
            seen.add(current)
            why = self.reasons.get(current)
            if why is not None:
                found.append((self.info[current].size, why))
            else:
                pending.extend(self.links.get(current, ()))
        return found

    # -- unification ------------------------------------------------------------------------------------------

    def unify(self, left: Layout, right: Layout) -> None:
        """State that two dimensions are the same, refining both.

        Raises
        ------
        GraphError
            Their sizes differ.
        """
        left, right = self.resolve(left), self.resolve(right)
        if left == right:
            return
        if self.size(left) != self.size(right):
            raise GraphError(
                f"op {self.op!r}: dimensions that must agree differ: {self.size(left)} ({self.show(left)}) "
                f"against {self.size(right)} ({self.show(right)})"
            )
        one, two = deque(left.terms), deque(right.terms)
        while one and two:
            first, second = self._next(one), self._next(two)
            a, b = term_size(first, self.sizes), term_size(second, self.sizes)
            if a == b:
                self._unify_terms(first, second)
                continue
            long, short, rest = (first, second, one) if a > b else (second, first, two)
            parts = self._split(Layout((long,)), min(a, b))
            if parts is None:
                for term in (first, second, *one, *two):
                    self.freeze(Layout((term,)), f"no common refinement of {self.show(left)} and {self.show(right)}")
                return
            self.unify(parts[0], self.resolve(Layout((short,))))
            rest.extendleft(reversed(self.resolve(parts[1]).terms))

    def _next(self, queue: deque[Term]) -> Term:
        """The next summand, re-resolved: earlier steps may have refined its atoms."""
        resolved = self.resolve(Layout((queue.popleft(),)))
        queue.extendleft(reversed(resolved.terms[1:]))
        return resolved.terms[0]

    def _unify_terms(self, first: Term, second: Term) -> None:
        one, two = deque(first), deque(second)
        while one and two:
            a, b = one.popleft(), two.popleft()
            if (isinstance(a, str) and a in self.bound) or (isinstance(b, str) and b in self.bound):
                # refined meanwhile: start again from the resolved remainder
                self.unify(times(*(_lift(f) for f in (a, *one))), times(*(_lift(f) for f in (b, *two))))
                return
            size_a, size_b = self._factor_size(a), self._factor_size(b)
            if size_a == size_b:
                self._unify_factors(a, b)
                continue
            if isinstance(a, Layout) or isinstance(b, Layout):  # a sum leads: distribute it, walk the sums
                self.unify(times(*(_lift(f) for f in (a, *one))), times(*(_lift(f) for f in (b, *two))))
                return
            long, short, rest, other = (a, b, one, two) if size_a > size_b else (b, a, two, one)
            size = min(size_a, size_b)
            if size == 1 and any(long in tuple(_lift(factor).atoms()) for factor in other):
                # one * X against X: dividing X would leave the same question for ever
                self.freeze(_lift(short), "a dimension of one unit has no counterpart")
                rest.appendleft(long)
                continue
            parts = self._factor(long, size)
            if parts is None:
                touched = (a, b, *one, *two)
                for factor in touched:
                    self.freeze(_lift(factor), "no common refinement of two factorings")
                return
            lead, trail = parts
            rest.extendleft(reversed([*self.resolve(trail).terms[0]] if len(trail.terms) == 1 else [trail]))
            self.unify(lead, _lift(short))
        for factor in (*one, *two):  # whatever is left has size 1
            if isinstance(factor, str):
                self.freeze(atom(factor), "a dimension of one unit has no counterpart")

    def _unify_factors(self, a: Factor, b: Factor) -> None:
        if isinstance(a, str):
            self._equate(a, _lift(b))
        elif isinstance(b, str):
            self._equate(b, _lift(a))
        elif isinstance(a, int) and isinstance(b, int):
            return
        else:
            self.unify(_lift(a), _lift(b))

    def _equate(self, key: str, layout: Layout) -> None:
        layout = self.resolve(layout)
        if layout.single == key:
            return
        if layout.constant is not None:
            self._freeze_atom(key, f"it must agree with a fixed dimension of {layout.constant}")
            return
        if key in set(layout.atoms()):  # key * (atoms of size 1): those have no counterpart
            for other in list(layout.atoms()):
                if other != key:
                    self.freeze(atom(other), "a dimension of one unit has no counterpart")
            return
        other_key = layout.single
        mine = self.info[key]
        if (
            other_key is not None
            and not self.info[other_key].indivisible
            and (mine.indivisible or (mine.role is not None and self.info[other_key].role is None))
        ):
            self._bind(other_key, atom(key))
        elif mine.indivisible:
            self.freeze(layout, f"it must agree with the dynamic dimension {mine.dynamic!r}")
        else:
            self._bind(key, layout)

    def _factor_size(self, factor: Factor) -> int:
        return self.size(_lift(factor))

    # -- refinement -------------------------------------------------------------------------------------------

    def cut(self, layout: Layout, at: int) -> tuple[Layout, Layout] | None:
        """Cut a dimension as :meth:`split` does; None, and nothing frozen, where that falls inside a block."""
        parts = self._split(self.resolve(layout), at)
        return None if parts is None else (self.resolve(parts[0]), self.resolve(parts[1]))

    def split(self, layout: Layout, at: int) -> tuple[Layout, Layout]:
        """Cut a dimension into its first ``at`` positions and the rest, refining what stands there.

        A cut inside an indivisible block freezes that block.
        """
        layout = self.resolve(layout)
        total = self.size(layout)
        if not 0 < at < total:
            raise GraphError(f"op {self.op!r}: cannot cut a dimension of {total} at {at}")
        parts = self._split(layout, at)
        if parts is None:
            self.freeze(layout, f"position {at} falls inside an indivisible block")
            parts = const(at), const(total - at)
        return self.resolve(parts[0]), self.resolve(parts[1])

    def _split(self, layout: Layout, at: int) -> tuple[Layout, Layout] | None:
        """Cut a dimension where that is possible; None where the cut falls inside an indivisible block."""
        done: list[Layout] = []
        queue = deque(layout.terms)
        while at:
            term = self._next(queue)
            size = term_size(term, self.sizes)
            if size <= at:
                done.append(Layout((term,)))
                at -= size
                continue
            parts = self._split_term(term, at)
            if parts is None:
                return None
            done.append(parts[0])
            queue.extendleft(reversed(parts[1].terms))
            at = 0
        return join(*done), join(*(Layout((term,)) for term in queue))

    def _split_term(self, term: Term, at: int) -> tuple[Layout, Layout] | None:
        head, tail = term[0], times(const(1), *(_lift(factor) for factor in term[1:]))
        unit = self.size(tail)
        if isinstance(head, int):
            count, remainder = divmod(at, unit)
            if remainder == 0:
                return times(const(count), tail), times(const(head - count), tail)
            pieces = self._split(tail, remainder)
            if pieces is None:
                return None
            whole, after = self.resolve(tail), head - count - 1
            first = [times(const(count), whole)] if count else []
            last = [times(const(after), whole)] if after else []
            return join(*first, pieces[0]), join(pieces[1], *last)
        assert isinstance(head, str), "a leading sum is distributed by the normal form"
        info = self.info[head]
        if at % unit or info.indivisible:
            return None
        sizes = at // unit, info.size - at // unit
        one, two = (const(1) if size == 1 and info.minimum > 1 else self.fresh(size) for size in sizes)
        self._bind(head, join(one, two))
        return times(one, tail), times(two, tail)

    def factor(self, layout: Layout, lead: int) -> tuple[Layout, Layout]:
        """Write a dimension as ``lead_layout * rest`` with the first of size ``lead``, refining what stands there."""
        layout = self.resolve(layout)
        total = self.size(layout)
        if lead < 1 or total % lead:
            raise GraphError(f"op {self.op!r}: a dimension of {total} cannot be divided into {lead} equal parts")
        if lead == 1:
            return const(1), layout
        if lead == total:
            if layout.single is not None:  # at one unit it would read as no factor at all
                self.info[layout.single].minimum = max(self.info[layout.single].minimum, 2)
            return layout, const(1)
        first, second = self.fresh(lead, minimum=2), self.fresh(total // lead, minimum=2)
        self.unify(layout, times(first, second))
        return self.resolve(first), self.resolve(second)

    def _factor(self, factor: Factor, size: int) -> tuple[Layout, Layout] | None:
        """Divide one factor into a leading part of ``size`` and the rest; None where it does not divide."""
        total = self._factor_size(factor)
        if total % size:
            return None
        if isinstance(factor, int):
            return const(size), const(total // size)
        if isinstance(factor, str):
            if self.info[factor].indivisible:
                return None
            minimum = self.info[factor].minimum
            lead = self.fresh(size, minimum=minimum)
            rest = self.fresh(total // size, minimum=minimum)
            self._bind(factor, times(lead, rest))
            return lead, rest
        return None  # a sum inside a product has no leading factor of its own

    def align(self, left: Iterable[Layout], right: Iterable[Layout]) -> None:
        """State that two sequences of dimensions are the same elements in row-major order (a reshape)."""
        self.unify(times(*left), times(*right))

    def show(self, layout: Layout) -> str:
        """The layout with sizes in place of unknown names, for messages."""
        return str(layout.rename({key: f"[{self.sizes[key]}]" for key in set(layout.atoms())}))


def _lift(factor: Factor) -> Layout:
    if isinstance(factor, Layout):
        return factor
    return const(factor) if isinstance(factor, int) else atom(factor)

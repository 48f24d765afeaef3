"""Layouts: how one tensor dimension is made of unit groups.

A layout is a *sum of ordered products* of unit groups and plain integers: ``C`` (channels), ``C*64`` (channels
flattened channel-major over 64 positions), ``49*C`` (channels-last), ``H*D`` (heads by head size), ``A + B``
(a concat), ``3`` (fixed). Sums may nest inside products: ``16*(A + B)``. An index map on the groups acts on a
layout (sums concatenate, products are Kronecker), hence on every tensor dimension that has it.

Layouts are immutable values in a normal form:

- products are flat, adjacent integers are multiplied, a factor 1 is dropped, and a *leading* sum is distributed
  (``(A + B)*S`` is ``A*S + B*S`` in the same order; ``16*(A + B)`` is not ``16*A + 16*B`` and stays nested);
- sums are flat and runs of equal terms are counted (``A + A`` is ``2*A``, ``2 + 3`` is ``5``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEWBORN", "Factor", "IndexArray", "Layout", "Term", "atom", "const", "join", "times"]

IndexArray: TypeAlias = NDArray[np.int64]
Factor: TypeAlias = "int | str | Layout"
Term: TypeAlias = tuple[Factor, ...]

NEWBORN = -1
"""The source of a position that comes from no old position."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One dimension as a sum of products; build it with :func:`const`, :func:`atom`, :func:`join`, :func:`times`.

    Attributes
    ----------
    terms : tuple of tuple
        The summands in order; each is a tuple of factors (integers, atom names, nested sums). The empty tuple
        is the integer 1.
    """

    terms: tuple[Term, ...]

    def atoms(self) -> Iterator[str]:
        """Every atom, in order of appearance, repeats included."""
        for term in self.terms:
            for factor in term:
                if isinstance(factor, str):
                    yield factor
                elif isinstance(factor, Layout):
                    yield from factor.atoms()

    @property
    def single(self) -> str | None:
        """The atom, when the layout is one atom and nothing else."""
        terms = self.terms
        if len(terms) == 1 and len(terms[0]) == 1:
            factor = terms[0][0]
            return factor if isinstance(factor, str) else None
        return None

    @property
    def constant(self) -> int | None:
        """The integer, when the layout has no atom."""
        if len(self.terms) != 1:
            return None
        (term,) = self.terms
        if not term:
            return 1
        return term[0] if len(term) == 1 and isinstance(term[0], int) else None

    def size(self, sizes: Mapping[str, int]) -> int:
        """Number of positions, given the size of every atom."""
        terms = self.terms
        if len(terms) == 1 and len(terms[0]) == 1:  # an atom or an integer
            return factor_size(terms[0][0], sizes)
        return sum(term_size(term, sizes) for term in self.terms)

    def substitute(self, replace: Callable[[str], Layout | None]) -> Layout:
        """The normal form after replacing atoms; ``None`` keeps an atom."""
        if not any(True for _ in self.atoms()):
            return self
        summands = []
        for term in self.terms:
            factors = []
            for factor in term:
                if isinstance(factor, int):
                    factors.append(const(factor))
                elif isinstance(factor, str):
                    new = replace(factor)
                    factors.append(atom(factor) if new is None else new)
                else:
                    factors.append(factor.substitute(replace))
            summands.append(times(*factors))
        return join(*summands)

    def rename(self, names: Mapping[str, str]) -> Layout:
        """The layout with atoms renamed."""
        return self.substitute(lambda key: atom(names[key]) if key in names else None)

    def index(self, sources: Mapping[str, IndexArray], sizes: Mapping[str, int]) -> IndexArray:
        """The action of index maps on this dimension.

        Parameters
        ----------
        sources : mapping of atom to array
            For each new unit its old position, or :data:`NEWBORN`; an atom left out is unchanged.
        sizes : mapping of atom to int
            The *old* size of every atom.

        Returns
        -------
        array of int64
            For each new position of the dimension its old position, or :data:`NEWBORN`.
        """
        parts: list[IndexArray] = []
        offset = 0
        for term in self.terms:
            part = _term_index(term, sources, sizes)
            parts.append(np.where(part < 0, NEWBORN, part + offset))
            offset += term_size(term, sizes)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def owners(self, name: str, sizes: Mapping[str, int]) -> IndexArray:
        """For each position the unit of one group that it belongs to, or :data:`NEWBORN` where it has none."""
        units = np.arange(sizes[name], dtype=np.int64)
        parts = []
        for term in self.terms:
            owner: IndexArray = np.full(1, NEWBORN, dtype=np.int64)
            for factor in term:
                if factor == name:
                    inner = units
                elif isinstance(factor, Layout):
                    inner = factor.owners(name, sizes)
                else:
                    inner = np.full(factor_size(factor, sizes), NEWBORN, dtype=np.int64)
                owner = np.where(inner[None, :] >= 0, inner[None, :], owner[:, None]).reshape(-1)
            parts.append(owner)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def block(self, name: str, sizes: Mapping[str, int]) -> tuple[int, int] | None:
        """``(pre, post)`` when the dimension is ``pre * name * post`` with one occurrence of the atom, else None."""
        if len(self.terms) != 1 or sum(1 for key in self.atoms() if key == name) != 1:
            return None
        (term,) = self.terms
        for position, factor in enumerate(term):
            if factor == name:
                return term_size(term[:position], sizes), term_size(term[position + 1 :], sizes)
        return None

    def __str__(self) -> str:
        return " + ".join("*".join(_show(factor) for factor in term) or "1" for term in self.terms)


def const(value: int) -> Layout:
    """A dimension of fixed size (>= 1)."""
    if value < 1:
        raise ValueError(f"a layout is at least 1, not {value}")
    return Layout(((value,) if value > 1 else (),))


def atom(name: str) -> Layout:
    """A dimension that is exactly one unit group."""
    return Layout(((name,),))


def join(*parts: Layout) -> Layout:
    """The concatenation of dimensions, in order."""
    if len(parts) == 1:
        return parts[0]
    runs: list[tuple[int, Term]] = []
    for part in parts:
        for term in part.terms:
            count, body = _counted(term)
            if runs and runs[-1][1] == body:
                runs[-1] = (runs[-1][0] + count, body)
            else:
                runs.append((count, body))
    return Layout(tuple(((count, *body) if count > 1 else body) for count, body in runs))


def times(*parts: Layout) -> Layout:
    """The ordered (row-major) product of dimensions: the first factor is the outermost; of none, 1."""
    if not parts:
        return const(1)
    if len(parts) == 1:
        return parts[0]
    first, rest = parts[0], parts[1:]
    tail: list[Factor] = []
    for part in rest:
        if len(part.terms) == 1:
            tail.extend(part.terms[0])
        else:
            tail.append(part)
    return (
        join(*(Layout((_flat_product((*term, *tail)),)) for term in first.terms))
        if len(first.terms) > 1
        else _product(first.terms[0], tail)
    )


def _product(head: Term, tail: Iterable[Factor]) -> Layout:
    factors = _flat_product((*head, *tail))
    if factors and isinstance(factors[0], Layout):  # a sum has become the leading factor: distribute it
        return join(*(Layout((_flat_product((*term, *factors[1:])),)) for term in factors[0].terms))
    return Layout((factors,))


def _flat_product(factors: Iterable[Factor]) -> Term:
    merged: list[Factor] = []
    for factor in factors:
        if isinstance(factor, int):
            if factor == 1:
                continue
            if merged and isinstance(merged[-1], int):
                merged[-1] = merged[-1] * factor
                continue
        merged.append(factor)
    return tuple(merged)


def _counted(term: Term) -> tuple[int, Term]:
    if term and isinstance(term[0], int):
        return term[0], term[1:]
    return 1, term


def _show(factor: Factor) -> str:
    return f"({factor})" if isinstance(factor, Layout) else str(factor)


def factor_size(factor: Factor, sizes: Mapping[str, int]) -> int:
    """Size of one factor of a product."""
    if isinstance(factor, int):
        return factor
    return sizes[factor] if isinstance(factor, str) else factor.size(sizes)


def term_size(term: Term, sizes: Mapping[str, int]) -> int:
    """Size of one product."""
    return prod(factor_size(factor, sizes) for factor in term)


def _term_index(term: Term, sources: Mapping[str, IndexArray], sizes: Mapping[str, int]) -> IndexArray:
    index: IndexArray = np.zeros(1, dtype=np.int64)
    for factor in term:
        size = factor_size(factor, sizes)
        if isinstance(factor, str):
            inner = sources.get(factor)
            if inner is None:
                inner = np.arange(size, dtype=np.int64)
        elif isinstance(factor, int):
            inner = np.arange(size, dtype=np.int64)
        else:
            inner = factor.index(sources, sizes)
        combined = index[:, None] * size + inner[None, :]
        combined[(index[:, None] < 0) | (inner[None, :] < 0)] = NEWBORN
        index = combined.reshape(-1)
    return index

"""Ops of imported programs: families of ATen calls, each with a layout rule.

A call keeps its target, its arguments as plain data, and the sizes of its outputs; sizes that follow from layouts are
computed again at each lowering. Importing this package registers every family.
"""

from __future__ import annotations

from graphnet.ir.ops.aten import (
    arrange,
    contract,
    convolve,
    create,
    lookup,
    normalise,
    opaque,
    pointwise,
    recur,
    reduce,
    view,
)
from graphnet.ir.ops.aten.call import FAMILIES, Call, family_of

__all__ = [
    "FAMILIES",
    "Call",
    "arrange",
    "contract",
    "convolve",
    "create",
    "family_of",
    "lookup",
    "normalise",
    "opaque",
    "pointwise",
    "recur",
    "reduce",
    "view",
]

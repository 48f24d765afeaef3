"""The exceptions that reach a user.

Every error raised for bad input derives from :class:`GraphnetError`, so ``except gn.GraphnetError`` catches
whatever graphnet refuses. A message says what is wrong, where it is, and what would fix it.
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "CheckpointError",
    "DataError",
    "EditError",
    "FrozenGroupError",
    "GraphError",
    "GraphnetError",
    "ImportModelError",
    "SchemaError",
]


class GraphnetError(Exception):
    """Base of every error that graphnet raises on purpose."""


class SchemaError(GraphnetError):
    """A document does not fit its schema: names the path inside it, what was found, what was expected."""


class GraphError(GraphnetError):
    """A graph is not valid: names the op, the dimension and the group, and shows that part of the graph."""


class EditError(GraphnetError):
    """An edit cannot be made as asked; nothing was changed."""


class FrozenGroupError(EditError):
    """An edit names a unit group whose size the structure fixes."""


class BudgetError(EditError):
    """An edit would pass a cost limit; nothing was changed."""


class CheckpointError(GraphnetError):
    """A checkpoint is missing, truncated, damaged, foreign or newer than this version reads."""


class ImportModelError(GraphnetError):
    """A PyTorch model cannot be imported, with the construct that stands in the way."""


class DataError(GraphnetError):
    """A dataset is missing or its files are damaged: says which file is expected where."""

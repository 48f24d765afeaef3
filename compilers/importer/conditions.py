"""Choices that a model made on sizes while it was traced: what the program computes holds only where they come out."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy
import torch

from graphnet.compilers.importer.program import size_text
from graphnet.errors import ImportModelError
from graphnet.ir.expressions import evaluate

__all__ = ["RELATIONS", "Condition", "conditions_of", "environment_of"]

RELATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TORCH = str(Path(torch.__file__).parent)
_OPEN = (f"{_TORCH}/nn/", f"{_TORCH}/functional.py")
"""Parts of torch that choose what to compute, as a model does, rather than how an operation is carried out."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What held of the sizes when the model was traced.

    Attributes
    ----------
    left, relation, right : str
        Size expressions, and a key of :data:`RELATIONS`.
    where : str
        The line of code that asked.
    """

    left: str
    relation: str
    right: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.left} {self.relation} {self.right}"

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it holds of these sizes."""
        return bool(RELATIONS[self.relation](evaluate(self.left, sizes), evaluate(self.right, sizes)))


def conditions_of(environment: Any, names: Mapping[str, str]) -> tuple[Condition, ...]:
    """The choices that the model's own code made on sizes.

    Parameters
    ----------
    environment : ShapeEnv
        Of the exported program. Its guards say which line of code asked: those of torch's operations (whether memory
        is contiguous, where a slice ends) do not change what is computed.
    names : mapping
        Names of its symbols.

    Raises
    ------
    ImportModelError
        A choice is no comparison of two sizes.
    """
    found: dict[Condition, None] = {}
    for guard in environment.guards:
        frame = guard.sloc.framework_loc
        filename, function = getattr(frame, "filename", ""), getattr(frame, "name", "")
        inner = filename.startswith(_TORCH) and not filename.startswith(_OPEN)
        if inner or not filename or function.startswith("_verify"):
            continue
        expression = environment.simplify(guard.expr.xreplace(environment.replacements))
        where = f"{filename}:{getattr(frame, 'lineno', '?')}"
        for part in expression.args if isinstance(expression, sympy.And) else (expression,):
            if part in (sympy.true, True):
                continue
            relation = str(getattr(part, "rel_op", None))
            if relation not in RELATIONS:
                raise ImportModelError(f"a choice depends on sizes by {part} ({where}), which an import cannot keep")
            left, right = (size_text(side, names) for side in part.args)
            found.setdefault(Condition(left, relation, right, where))
    return tuple(found)


def environment_of(value: Any) -> Any:
    """The shape environment behind a traced tensor, None where every size is a number."""
    sizes = value.shape if isinstance(value, torch.Tensor) else ()
    found: Any = next((size for size in sizes if isinstance(size, torch.SymInt)), None)
    return None if found is None else found.node.shape_env

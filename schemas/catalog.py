"""Which kinds of document there are, and the JSON Schema of each.

Models are imported when they are asked for, so that a kind whose model needs the op registry (architecture)
can stand in the table without `graphnet.schemas` importing it.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import Any, Final

from pydantic import TypeAdapter

from graphnet.errors import SchemaError

__all__ = ["DOCUMENTS", "json_schema"]

DOCUMENTS: Final[dict[str, tuple[str, str]]] = {
    "architecture": ("graphnet.schemas.architecture", "architecture_model"),
    "experiment": ("graphnet.schemas.experiment", "Experiment"),
    "policy": ("graphnet.schemas.policy", "Policy"),
}
"""Kind -> (module, name in it of the model, or of a function without arguments that makes the model)."""


def json_schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema of documents of `kind`, for editors.

    Raises
    ------
    SchemaError
        There is no such kind.

    Examples
    --------
    >>> json_schema("policy")["title"]
    'Policy'
    """
    if kind not in DOCUMENTS:
        close = get_close_matches(kind, DOCUMENTS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SchemaError(f"there is no document kind {kind!r}; expected one of {', '.join(DOCUMENTS)}{hint}")
    module, attribute = DOCUMENTS[kind]
    model = getattr(import_module(module), attribute)
    adapter: TypeAdapter[Any] = TypeAdapter(model if isinstance(model, type) else model())
    schema = adapter.json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

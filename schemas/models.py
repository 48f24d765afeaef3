"""What the models of documents are made of: frozen values that know no other keys and convert nothing.

A model is a :class:`Frozen`, or a :class:`Document` where it is the top of a document. Its validators raise
:func:`problem`, which points at the place below the value. Building one in Python with wrong values ends in
the same :class:`graphnet.errors.SchemaError` that a document does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, dataclass_transform

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
)
from pydantic_core import CoreSchema, PydanticCustomError

from graphnet.schemas.parsing import explain

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass  # noqa: TID251 - for its type only
else:
    ModelMetaclass = type(BaseModel)

__all__ = ["Document", "Frozen", "Name", "problem", "require_one"]

_FIRST: Final = frozenset({"schema_version", "kind", "do", "op", "method", "builder"})

Name: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=200)]
"""A name that a document gives or refers to."""


def _make_numbers_strict(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool"):
            schema.setdefault("strict", True)
        for key, value in schema.items():
            if key not in ("metadata", "serialization"):
                _make_numbers_strict(value)
    elif isinstance(schema, (list, tuple)):
        for value in schema:
            _make_numbers_strict(value)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
class _FrozenMeta(ModelMetaclass):
    """Lets a model built in Python fail with a document's error; pydantic itself never comes here."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - a metaclass's self is a class
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise explain(error, cls, cls.__name__) from None


class Frozen(BaseModel, metaclass=_FrozenMeta):
    """A frozen value with no unknown keys.

    Numbers and booleans are strict: an int is taken for a float, but ``"8"``, ``8.0`` and ``True`` are not
    taken for an int. NaN and infinities are refused unless a field says ``Field(allow_inf_nan=True)``. A list
    is taken for a tuple. Building one in Python with wrong values raises `SchemaError`, as a document does.
    A dump puts the key that says what it is first, and leaves out what is empty by default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _make_numbers_strict(schema)
        return schema

    @model_serializer(mode="wrap")
    def _tidy(self, handler: Any) -> Any:
        data = handler(self)
        fields = type(self).model_fields
        order = sorted(data, key=lambda key: key not in _FIRST)
        return {key: data[key] for key in order if not self._is_absent(key, data[key], fields.get(key))}

    def _is_absent(self, key: str, value: Any, field: Any) -> bool:
        return (
            value in (None, {}, [])
            and field is not None
            and bool(getattr(self, key) == field.get_default(call_default_factory=True))
        )


class Document(Frozen):
    """The top of a document: each kind adds its own ``kind`` literal."""

    schema_version: Literal[1] = 1
    name: str | None = None


def problem(text: str, *at: str | int) -> PydanticCustomError:
    """Return the exception for a validator to raise, pointing at `at` below the value being validated.

    Examples
    --------
    >>> str(problem("two rules have this name", "rules", 1, "name"))
    'two rules have this name'
    """
    return PydanticCustomError("graphnet", "{text}", {"text": text, "at": list(at)})


def require_one(value: Frozen, *fields: str) -> None:
    """Raise unless exactly one of `fields` is given."""
    given = [field for field in fields if getattr(value, field) is not None]
    if len(given) != 1:
        found = " and ".join(given) if given else "none of them"
        raise problem(f"expected exactly one of {', '.join(fields)}; found {found}")

"""Plain data to models, and every problem told at once: path, what was found, what was expected.

:func:`parse` checks data against a model; :func:`load_document` reads a document, checks its version and
parses it. Whatever is wrong ends in one :class:`graphnet.errors.SchemaError`, which :func:`explain` words
from pydantic's own report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from graphnet.errors import SchemaError
from graphnet.schemas.text import read_document, show_path, show_value

__all__ = ["MAX_LISTED", "SCHEMA_VERSION", "check_version", "explain", "load_document", "parse"]

SCHEMA_VERSION: Final = 1
"""The newest document version that this graphnet reads."""

MAX_LISTED: Final = 20  # problems shown in one message

_EXPECTED: Final = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "an integer",
    "list_type": "a list",
    "model_attributes_type": "a mapping",
    "model_type": "a mapping",
    "string_type": "text",
    "tuple_type": "a list",
}

T = TypeVar("T")


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def parse(model: type[T] | TypeAdapter[T], data: Any, *, source: str = "document") -> T:
    """Return `data` as a value of `model`.

    Parameters
    ----------
    model
        A pydantic model, any type that pydantic understands (a union too), or a `pydantic.TypeAdapter`.
    data
        Plain data, as `read_document` gives.
    source
        What the message calls the document: a file name, or ``rule 'grow_hidden'``.

    Raises
    ------
    SchemaError
        Lists each problem: the path in the document, what was found, what was expected, a likely correction.

    Examples
    --------
    >>> from graphnet.schemas.scalars import Linear
    >>> parse(Linear, {"kind": "linear", "start": 1, "end": 0, "steps": 10}).at(5)
    0.5
    >>> parse(Linear, {"kind": "linear", "start": 1, "ende": 0, "steps": 10})
    Traceback (most recent call last):
    graphnet.errors.SchemaError: document: 2 problems
      at end: found nothing; expected this required key
      at ende: found an unknown key; expected one of begin, end, kind, start, steps; did you mean 'end'?
    """
    adapter: TypeAdapter[T] = model if isinstance(model, TypeAdapter) else _adapter(cast("Any", model))
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        raise explain(error, adapter, source) from None
    except (RecursionError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise SchemaError(f"{source}: cannot be read as a document: {error}") from error


def load_document(
    model: type[T] | TypeAdapter[T],
    source: Path | str | Mapping[str, Any],
    *,
    kind: str,
    list_key: str | None = None,
) -> T:
    """Read, check the version and parse: what ``gn.load_policy`` and its like are made of."""
    data = read_document(source, list_key=list_key)
    where = f"{kind} document" if isinstance(source, Mapping) else str(source)
    check_version(data, kind, source=where)
    return parse(model, data, source=where)


def check_version(data: Mapping[str, Any], kind: str, *, source: str | None = None) -> int:
    """Return the document's schema version (1 where it has none), having checked it and the document's kind.

    Raises
    ------
    SchemaError
        The version is newer than this graphnet reads, or is no version, or the document is of another kind.
    """
    source = source or f"{kind} document"
    found = data.get("kind", kind)
    if not isinstance(found, str) or found != kind:
        raise SchemaError(f"{source}: at kind: found {show_value(found)}; expected '{kind}'{_suggest(found, [kind])}")
    version = data.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise SchemaError(f"{source}: at schema_version: found {show_value(version)}; expected {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise SchemaError(
            f"{source}: at schema_version: found {show_value(version)}; this graphnet reads up to version "
            f"{SCHEMA_VERSION}: upgrade graphnet (pip install --upgrade graphnet-engine) to read it"
        )
    return version


def explain(error: ValidationError, model: Any, source: str) -> SchemaError:
    """Return pydantic's report on a value of `model` as one error, a line for each problem."""
    problems = error.errors(include_url=False)
    inner = {p["loc"][:n] for p in problems for n in range(len(p["loc"]))}
    lines: dict[str, list[str]] = {}  # "at path: found x" -> what was expected, one for each branch of a plain union
    for each in problems:
        if each["type"] == "too_short" and each["loc"] in inner:
            continue  # pydantic counts only the valid items; the invalid ones are listed themselves
        path, text = _describe(each, model)
        head, _, tail = text.partition("; expected ")
        expected = lines.setdefault(f"  at {path}: {head}", [])
        if tail not in expected:
            expected.append(tail)
    shown = [head + ("; expected " + " or ".join(e) if any(e) else "") for head, e in lines.items()]
    count = f"{len(shown)} problem{'s' if len(shown) > 1 else ''}"
    if len(shown) > MAX_LISTED:
        shown[MAX_LISTED:] = [f"  and {len(shown) - MAX_LISTED} more"]
    return SchemaError("\n".join([f"{source}: {count}", *shown]))


def _describe(found: Any, model: Any) -> tuple[str, str]:
    """Return path and text of one pydantic problem."""
    kind, loc, context = found["type"], found["loc"], found.get("ctx", {})
    schema = model.core_schema if isinstance(model, TypeAdapter) else model.__pydantic_core_schema__
    path, last, parent = _locate(schema, loc)
    value = found["input"]
    if kind == "missing":
        return show_path(path), "found nothing; expected this required key"
    if kind == "extra_forbidden":
        known = sorted(parent or ())
        return show_path(path), f"found an unknown key; expected one of {', '.join(known)}{_suggest(loc[-1], known)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = str(context["discriminator"]).strip("'")
        choices = sorted(map(str, last.get("choices", ())))
        tag = context.get("tag")
        shown = "nothing" if tag is None else show_value(tag)
        return show_path([*path, key]), f"found {shown}; expected one of {', '.join(choices)}{_suggest(tag, choices)}"
    if kind == "literal_error":
        choices = [c for c in last.get("expected", ()) if isinstance(c, str)]
        return show_path(path), f"found {show_value(value)}; expected {context['expected']}{_suggest(value, choices)}"
    if kind == "graphnet":
        text = context["text"]
        found_too = "" if "found " in text or isinstance(value, Mapping) else f"found {show_value(value)}; "
        return show_path([*path, *context["at"]]), text if context["at"] else found_too + text
    if kind == "invalid_key":
        return show_path(path[:-1]), f"found the key {show_value(value)}; expected text"
    message = _EXPECTED.get(kind) or found["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return show_path(path), f"found {show_value(value)}; expected {message[:1].lower() + message[1:]}"


def _locate(schema: Any, loc: Sequence[str | int]) -> tuple[list[str | int], dict[str, Any], set[str] | None]:
    """Follow `loc` through pydantic's schema: path without union tags, schema there, last model's keys.

    pydantic puts the tag of a discriminated union into `loc` among keys and indices; only the schema can tell
    the tag ``metric`` from the key ``metric``.
    """
    definitions: dict[str, Any] = {}
    path: list[str | int] = []
    keys: set[str] | None = None

    def unwrap(node: Any) -> dict[str, Any]:
        while isinstance(node, dict):
            if node["type"] == "definitions":
                definitions.update({d["ref"]: d for d in node["definitions"]})
            if node["type"] == "definition-ref":
                node = definitions.get(node["schema_ref"], {"type": "any"})
            elif node["type"] == "json-or-python":
                node = node["python_schema"]
            elif isinstance(node.get("schema"), dict):
                node = node["schema"]
            else:
                return node
        return {"type": "any"}

    node = unwrap(schema)
    for part in loc:
        kind = node["type"]
        if kind == "model-fields":
            keys = set(node["fields"])
            path.append(part)
            node = unwrap(node["fields"].get(part))
        elif kind == "tagged-union":
            node = unwrap(node["choices"].get(part))
        elif kind == "list":
            path.append(part)
            node = unwrap(node.get("items_schema"))
        elif kind == "tuple":
            path.append(part)
            items = node["items_schema"]
            variadic = node.get("variadic_item_index")
            index = part if isinstance(part, int) else 0
            node = unwrap(items[index if variadic is None or index < variadic else variadic] if items else None)
        elif kind == "dict":
            if part == "[key]":
                continue
            path.append(part)
            node = unwrap(node.get("values_schema"))
        elif kind != "union":  # a plain union labels its branches; the branch is not part of the path
            path.append(part)
            node = unwrap(None)
    return path, node, keys


def _suggest(found: Any, choices: Sequence[str]) -> str:
    if not isinstance(found, str):  # nothing else is a misspelling, and the text of a deep value may not exist
        return ""
    close = get_close_matches(found.lower(), list(choices), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""

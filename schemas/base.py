"""What every document shares: frozen models, one error for all problems, safe YAML and JSON, schedules.

Text is read into plain data by :func:`read_document` (a file or a mapping) or :func:`parse_text`; plain data
is checked against a model by :func:`parse`. Whatever is wrong ends in one
:class:`graphnet.errors.SchemaError` that lists every problem with its path inside the document.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    TypeAlias,
    TypeVar,
    cast,
    dataclass_transform,
)

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from graphnet.errors import SchemaError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass  # noqa: TID251 - for its type only
else:
    ModelMetaclass = type(BaseModel)

__all__ = [
    "SCHEMA_VERSION",
    "Constant",
    "Cosine",
    "Document",
    "Exponential",
    "Frozen",
    "Linear",
    "Scalar",
    "Steps",
    "check_version",
    "dump_yaml",
    "load_document",
    "parse",
    "parse_text",
    "problem",
    "read_document",
    "to_data",
    "write_document",
]

SCHEMA_VERSION: Final = 1
"""The newest document version that this graphnet reads."""

MAX_BYTES: Final = 16 * 2**20
MAX_DEPTH: Final = 64
MAX_NODES: Final = (
    1_000_000  # values after aliases are expanded; a 16 MiB file without aliases stays near this
)
MAX_LISTED: Final = 20  # problems shown in one message

_INT: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONSTANTS: Final[dict[str, bool | None]] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip

_FIRST: Final = frozenset({"schema_version", "kind", "do", "op", "method", "builder"})
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


# ----------------------------------------------------------------------------------------------------- models


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
            raise _explain(error, cls, cls.__name__) from None


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


# -------------------------------------------------------------------------------------------------- schedules


class _Schedule(Frozen):
    def at(self, step: float) -> float:
        """Return the value at `step` (optimizer steps; before 0 counts as 0)."""
        return self._at(max(step, 0))

    def bounds(self) -> tuple[float, float]:
        """Return the lowest and the highest value that the schedule takes."""
        return self._bounds()

    def _at(self, step: float) -> float:
        raise NotImplementedError

    def _bounds(self) -> tuple[float, float]:
        raise NotImplementedError


class Constant(_Schedule):
    """The same value at every step; written in a document as the plain number."""

    kind: Literal["constant"] = "constant"
    value: int | float = Field(union_mode="left_to_right")

    @model_serializer(mode="plain")
    def _as_number(self) -> int | float:
        return self.value

    def _at(self, step: float) -> float:
        return self.value

    def _bounds(self) -> tuple[float, float]:
        return self.value, self.value


class _Ramp(_Schedule):
    start: float
    end: float
    steps: int = Field(gt=0, description="optimizer steps from start to end")
    begin: int = Field(default=0, ge=0, description="the step at which the change begins")

    def _progress(self, step: float) -> float:
        return min(max((step - self.begin) / self.steps, 0.0), 1.0)

    def _bounds(self) -> tuple[float, float]:
        return min(self.start, self.end), max(self.start, self.end)


class Linear(_Ramp):
    """From `start` to `end` in a straight line, then `end`."""

    kind: Literal["linear"] = "linear"

    def _at(self, step: float) -> float:
        t = self._progress(step)
        return (1 - t) * self.start + t * self.end


class Cosine(_Ramp):
    """From `start` to `end` along half a cosine (Loshchilov & Hutter 2017, 1608.03983), then `end`."""

    kind: Literal["cosine"] = "cosine"

    def _at(self, step: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * self._progress(step))) / 2


class Exponential(_Ramp):
    """From `start` to `end` by equal ratios, then `end`; both are above zero."""

    kind: Literal["exponential"] = "exponential"
    start: float = Field(gt=0)
    end: float = Field(gt=0)

    def _at(self, step: float) -> float:
        t = self._progress(step)
        return float(self.start ** (1 - t) * self.end**t)


class Steps(_Schedule):
    """`values[i]` from step `boundaries[i - 1]` up to but without `boundaries[i]`."""

    kind: Literal["steps"] = "steps"
    values: tuple[float, ...] = Field(min_length=1)
    boundaries: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Steps:
        if len(self.values) != len(self.boundaries) + 1:
            raise problem(
                f"found {len(self.values)}; expected one more than boundaries, {len(self.boundaries) + 1}",
                "values",
            )
        if any(b <= a for a, b in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise problem("boundaries must increase", "boundaries")
        return self

    def _at(self, step: float) -> float:
        return self.values[sum(step >= boundary for boundary in self.boundaries)]

    def _bounds(self) -> tuple[float, float]:
        return min(self.values), max(self.values)


def _number_is_constant(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"kind": "constant", "value": value}
    if not isinstance(value, (Mapping, _Schedule)):
        raise problem(
            "expected a number, or a schedule such as {kind: linear, start: 8, end: 1, steps: 1000}"
        )
    return value


AnySchedule: TypeAlias = Annotated[
    Constant | Linear | Cosine | Exponential | Steps, Field(discriminator="kind")
]
Scalar: TypeAlias = Annotated[
    AnySchedule, BeforeValidator(_number_is_constant, json_schema_input_type=float | AnySchedule)
]
"""A number or a schedule of one. Either way the value has ``.at(step)`` and ``.bounds()``."""


# --------------------------------------------------------------------------------------------- data to models


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
        raise _explain(error, adapter, source) from None
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
    if found != kind:
        raise SchemaError(
            f"{source}: at kind: found {_show(found)}; expected '{kind}'{_suggest(found, [kind])}"
        )
    version = data.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise SchemaError(f"{source}: at schema_version: found {_show(version)}; expected {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise SchemaError(
            f"{source}: at schema_version: found {_show(version)}; this graphnet reads up to version "
            f"{SCHEMA_VERSION}: upgrade graphnet (pip install --upgrade graphnet-engine) to read it"
        )
    return version


def _explain(error: ValidationError, model: Any, source: str) -> SchemaError:
    problems = error.errors(include_url=False)
    inner = {p["loc"][:n] for p in problems for n in range(len(p["loc"]))}
    lines: dict[
        str, list[str]
    ] = {}  # "at path: found x" -> what was expected, one for each branch of a plain union
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
        return _text(path), "found nothing; expected this required key"
    if kind == "extra_forbidden":
        known = sorted(parent or ())
        return _text(
            path
        ), f"found an unknown key; expected one of {', '.join(known)}{_suggest(loc[-1], known)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = str(context["discriminator"]).strip("'")
        choices = sorted(map(str, last.get("choices", ())))
        tag = context.get("tag")
        shown = "nothing" if tag is None else _show(tag)
        return _text(
            [*path, key]
        ), f"found {shown}; expected one of {', '.join(choices)}{_suggest(tag, choices)}"
    if kind == "literal_error":
        choices = [c for c in last.get("expected", ()) if isinstance(c, str)]
        return _text(path), f"found {_show(value)}; expected {context['expected']}{_suggest(value, choices)}"
    if kind == "graphnet":
        text = context["text"]
        found_too = "" if "found " in text or isinstance(value, Mapping) else f"found {_show(value)}; "
        return _text([*path, *context["at"]]), text if context["at"] else found_too + text
    if kind == "invalid_key":
        return _text(path[:-1]), f"found the key {_show(value)}; expected text"
    message = _EXPECTED.get(kind) or found["msg"].removeprefix("Value error, ").removeprefix(
        "Input should be "
    )
    return _text(path), f"found {_show(value)}; expected {message[:1].lower() + message[1:]}"


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
            node = unwrap(
                items[index if variadic is None or index < variadic else variadic] if items else None
            )
        elif kind == "dict":
            if part == "[key]":
                continue
            path.append(part)
            node = unwrap(node.get("values_schema"))
        elif kind != "union":  # a plain union labels its branches; the branch is not part of the path
            path.append(part)
            node = unwrap(None)
    return path, node, keys


def _text(path: Sequence[str | int]) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[\w-]+", part):
            text += f".{part}" if text else part
        else:
            text += f"[{_show(part)}]"
    return text or "the top"


def _show(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping" + (f" with {', '.join(map(str, list(value)[:4]))}" if value else " with no keys")
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _suggest(found: Any, choices: Sequence[str]) -> str:
    close = get_close_matches(str(found).lower(), list(choices), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


# ----------------------------------------------------------------------------------------------- text to data


def read_document(source: Path | str | Mapping[str, Any], *, list_key: str | None = None) -> dict[str, Any]:
    """Return the document at `source` as plain data.

    Parameters
    ----------
    source
        The path of a ``.yaml``, ``.yml`` or ``.json`` file, or a mapping, which is copied. A str is always a
        path: YAML text goes to `parse_text`.
    list_key
        Where given, a file that holds a list is read as a mapping with the list under this key.

    Raises
    ------
    SchemaError
        The file cannot be read, is no UTF-8, is over 16 MiB, or is not a YAML or JSON mapping with text keys,
        at most 64 deep. Names the line and column where the text is at fault.
    """
    if isinstance(source, Mapping):
        return cast("dict[str, Any]", _plain(source, "document", [], [0]))
    if not isinstance(source, (str, Path)):
        raise SchemaError(f"document: found {type(source).__name__}; expected a path or a mapping")
    if isinstance(source, str) and "\n" in source:
        raise SchemaError(
            "document: a str is read as a path, and this one has several lines; use parse_text for text"
        )
    path = Path(source)
    _suffix(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise SchemaError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(raw) > MAX_BYTES:
        raise SchemaError(f"{path}: is over {MAX_BYTES // 2**20} MiB, the most that a document may be")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise SchemaError(f"{path}: line {line}, column {column}: not UTF-8 text: {error.reason}") from error
    return parse_text(text, str(path), list_key=list_key)


def parse_text(text: str, source: str = "document", *, list_key: str | None = None) -> dict[str, Any]:
    """Return YAML text as plain data, or JSON text where `source` ends in ``.json``.

    YAML is read by version 1.2's rules: ``1e-3``, ``1E3``, ``5.0e+6`` and ``.5`` are floats, ``on``, ``off``,
    ``yes`` and ``no`` are text. Refused, each with line and column: tags, duplicate keys, keys that are not
    text, merge keys, a second document, more than 64 levels, and aliases that contain themselves or expand
    past a million values.

    Examples
    --------
    >>> parse_text("{lr: 1e-3, nesterov: on}")
    {'lr': 0.001, 'nesterov': 'on'}
    """
    if len(text) > MAX_BYTES:
        raise SchemaError(f"{source}: is over {MAX_BYTES // 2**20} MiB, the most that a document may be")
    if source.lower().endswith(".json"):
        data = _parse_json(text, source)
    else:
        data = _YamlReader(text, source).read()
    if isinstance(data, list) and list_key is not None:
        return {list_key: data}
    if not isinstance(data, dict):
        what = "nothing" if data is None else _show(data)
        raise SchemaError(f"{source}: line 1, column 1: found {what}; expected a mapping of keys to values")
    return data


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".yaml", ".yml", ".json"):
        ending = f"ends in {path.suffix!r}" if path.suffix else "has no ending"
        raise SchemaError(f"{path}: the name {ending}; expected .yaml, .yml or .json")
    return suffix


def _parse_json(text: str, source: str) -> Any:
    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(
                key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i])
            )
            raise SchemaError(f"{source}: the key {_show(twice)} appears twice in one object")
        return found

    try:
        data = json.loads(text, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        raise SchemaError(
            f"{source}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
        ) from error
    except RecursionError:
        raise SchemaError(f"{source}: is more than {MAX_DEPTH} levels deep") from None
    except ValueError as error:  # an integer of thousands of digits
        raise SchemaError(f"{source}: {error}") from error
    return _plain(data, source, [], [0])


def _plain(value: Any, source: str, path: list[str | int], count: list[int]) -> Any:
    """Copy mappings and lists, having checked keys, depth and size; the model judges other values."""
    count[0] += 1
    if len(path) > MAX_DEPTH or count[0] > MAX_NODES:
        limit = (
            f"more than {MAX_DEPTH} levels deep" if len(path) > MAX_DEPTH else f"more than {MAX_NODES} values"
        )
        raise SchemaError(f"{source}: is {limit}, at {_text(path[:6])}...")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise SchemaError(f"{source}: at {_text(path)}: found the key {_show(key)}; expected text")
        return {key: _plain(item, source, [*path, key], count) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, source, [*path, i], count) for i, item in enumerate(value)]
    return value


def _resolve(text: str) -> Any:
    """Return the value of a plain YAML scalar, by the core schema of YAML 1.2."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.replace(".", "").lower())
    return text


class _YamlReader:
    """Builds plain data from YAML events, so that no tag, type or unbounded alias is ever acted on."""

    def __init__(self, text: str, source: str) -> None:
        self._text, self._source = text, source
        self._anchors: dict[
            str | None, tuple[Any, int] | None
        ] = {}  # value and size; None while it is being read
        self._nodes = 0

    def read(self) -> Any:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            events = iter(yaml.parse(self._text, Loader=loader))
            next(events)
            if isinstance(next(events), yaml.StreamEndEvent):
                return None
            value, _ = self._value(next(events), events, 0)
            next(events)
            extra = next(events)
            if not isinstance(extra, yaml.StreamEndEvent):
                raise self._error("a second document; expected one document in a file", extra)
            return value
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
            text = "; ".join(part for part in (error.problem, error.context) if part)
            raise SchemaError(f"{self._source}: {where}not YAML: {text}") from error
        except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
            at = getattr(error, "position", None)
            where = f"line {self._text.count(chr(10), 0, at) + 1}: " if isinstance(at, int) else ""
            reason = " ".join(str(error).split())
            raise SchemaError(f"{self._source}: {where}not YAML: {reason}") from error

    def _error(self, text: str, event: Any) -> SchemaError:
        mark = event.start_mark
        return SchemaError(f"{self._source}: line {mark.line + 1}, column {mark.column + 1}: found {text}")

    def _value(self, event: Any, events: Iterator[Any], depth: int) -> tuple[Any, int]:
        """Return the value that starts with `event`, and how many values it holds with aliases expanded."""
        if depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} levels", event)
        if isinstance(event, yaml.AliasEvent):
            known = self._anchors.get(event.anchor)
            if known is None:
                why = (
                    "inside itself"
                    if event.anchor in self._anchors
                    else "with no anchor of that name before it"
                )
                raise self._error(f"the alias *{event.anchor} {why}", event)
            self._count(known[1], event)
            return known
        if event.tag is not None:
            raise self._error(f"the tag {event.tag}; expected plain values: tags are not read", event)
        self._count(1, event)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            value, size = self._scalar(event), 1
        elif isinstance(event, yaml.SequenceStartEvent):
            value, size = self._sequence(events, depth)
        else:
            value, size = self._mapping(events, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, size
        return value, size

    def _count(self, size: int, event: Any) -> None:
        self._nodes += size
        if self._nodes > MAX_NODES:
            raise self._error(f"more than {MAX_NODES} values, aliases expanded", event)

    def _scalar(self, event: Any) -> Any:
        if not event.implicit[0]:
            return event.value
        try:
            return _resolve(event.value)
        except ValueError:
            raise self._error("a number with too many digits", event) from None

    def _sequence(self, events: Iterator[Any], depth: int) -> tuple[list[Any], int]:
        items: list[Any] = []
        total = 1
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            item, size = self._value(event, events, depth + 1)
            items.append(item)
            total += size
        return items, total

    def _mapping(self, events: Iterator[Any], depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        total = 1
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key, _ = self._value(event, events, depth + 1)
            if not isinstance(key, str):
                raise self._error(
                    f"the key {_show(key)}; expected text (quote it: '{_key_text(event)}')", event
                )
            if key == "<<" and event.implicit[0]:
                raise self._error("a merge key; expected the keys written out", event)
            if key in found:
                raise self._error(f"the key {_show(key)} again; it is already on line {lines[key]}", event)
            found[key], size = self._value(next(events), events, depth + 1)
            lines[key] = event.start_mark.line + 1
            total += size + 1
        return found, total


def _key_text(event: Any) -> str:
    return str(event.value) if isinstance(event, yaml.ScalarEvent) else "..."


# ----------------------------------------------------------------------------------------------- data to text


def to_data(document: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """Return a model or mapping as plain data that `read_document` and `parse` take back."""
    if isinstance(document, BaseModel):
        return document.model_dump(mode="json")
    return cast("dict[str, Any]", _plain(document, "document", [], [0]))


class _Dumper(yaml.SafeDumper):
    """Quotes what our own reader would not read back as the same text, and writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # list items stand under their key, which is easier to read


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    plain = isinstance(_resolve(value[:64]), str) and value != "<<" and "\x85" not in value
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Return plain data as YAML text, keys in their order, which `parse_text` reads back equal.

    Raises
    ------
    SchemaError
        A value is none of mapping, list, text, number, boolean and null.
    """
    _check_writable(data, [])
    try:
        return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SchemaError(f"document: cannot be written as YAML: {error}") from error


def _check_writable(value: Any, path: list[str | int]) -> None:
    if isinstance(value, Mapping) and len(path) <= MAX_DEPTH:
        for key, item in value.items():
            if not isinstance(key, str):
                raise SchemaError(f"document: at {_text(path)}: found the key {_show(key)}; expected text")
            _check_writable(key, path)
            _check_writable(item, [*path, key])
    elif isinstance(value, (list, tuple)) and len(path) <= MAX_DEPTH:
        for i, item in enumerate(value):
            _check_writable(item, [*path, i])
    elif isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise SchemaError(
                f"document: at {_text(path)}: {_show(value)} cannot be written: not Unicode text"
            )
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise SchemaError(
            f"document: at {_text(path)}: {_show(value)} cannot be written; expected at most {MAX_DEPTH} "
            "levels of mappings and lists, with text, numbers, true, false and null in them"
        )


def write_document(document: BaseModel | Mapping[str, Any], path: Path | str) -> None:
    """Write a model or mapping to `path`, as YAML or JSON by its ending, replacing the file in one step.

    Raises
    ------
    SchemaError
        The ending is unknown, a value cannot be written, or the folder cannot be written to.
    """
    path = Path(path)
    suffix = _suffix(path)
    data = to_data(document)
    _check_writable(data, [])
    temporary: str | None = None
    try:
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n" if suffix == ".json" else dump_yaml(data)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, TypeError, ValueError) as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise SchemaError(f"{path}: cannot be written: {error}") from error

"""Documents as text: YAML and JSON read into plain data, and plain data written back.

:func:`read_document` takes a file or a mapping, :func:`parse_text` a text; :func:`dump_yaml` and
:func:`write_document` go the other way. Reading never acts on a tag, a type or an unbounded alias.
:func:`show_path` and :func:`show_value` print a place and a value in a message about them.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import yaml
from pydantic import BaseModel

from graphnet.errors import SchemaError

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_NODES",
    "dump_yaml",
    "parse_text",
    "read_document",
    "show_path",
    "show_value",
    "to_data",
    "write_document",
]

MAX_BYTES: Final = 16 * 2**20
MAX_DEPTH: Final = 64
MAX_NODES: Final = 1_000_000  # values after aliases are expanded; a 16 MiB file without aliases stays near this

_INT: Final = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONSTANTS: Final[dict[str, bool | None]] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


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
        raise SchemaError("document: a str is read as a path, and this one has several lines; use parse_text for text")
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
        what = "nothing" if data is None else show_value(data)
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
            twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
            raise SchemaError(f"{source}: the key {show_value(twice)} appears twice in one object")
        return found

    try:
        data = json.loads(text, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        raise SchemaError(f"{source}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from error
    except RecursionError:
        raise SchemaError(f"{source}: is more than {MAX_DEPTH} levels deep") from None
    except ValueError as error:  # an integer of thousands of digits
        raise SchemaError(f"{source}: {error}") from error
    return _plain(data, source, [], [0])


def _plain(value: Any, source: str, path: list[str | int], count: list[int]) -> Any:
    """Copy mappings and lists, having checked keys, depth and size; the model judges other values."""
    count[0] += 1
    if len(path) > MAX_DEPTH or count[0] > MAX_NODES:
        limit = f"more than {MAX_DEPTH} levels deep" if len(path) > MAX_DEPTH else f"more than {MAX_NODES} values"
        raise SchemaError(f"{source}: is {limit}, at {show_path(path[:6])}...")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise SchemaError(f"{source}: at {show_path(path)}: found the key {show_value(key)}; expected text")
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
        self._anchors: dict[str | None, tuple[Any, int] | None] = {}  # value and size; None while it is being read
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
                why = "inside itself" if event.anchor in self._anchors else "with no anchor of that name before it"
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
                raise self._error(f"the key {show_value(key)}; expected text (quote it: '{_key_text(event)}')", event)
            if key == "<<" and event.implicit[0]:
                raise self._error("a merge key; expected the keys written out", event)
            if key in found:
                raise self._error(f"the key {show_value(key)} again; it is already on line {lines[key]}", event)
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
                raise SchemaError(f"document: at {show_path(path)}: found the key {show_value(key)}; expected text")
            _check_writable(key, path)
            _check_writable(item, [*path, key])
    elif isinstance(value, (list, tuple)) and len(path) <= MAX_DEPTH:
        for i, item in enumerate(value):
            _check_writable(item, [*path, i])
    elif isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise SchemaError(
                f"document: at {show_path(path)}: {show_value(value)} cannot be written: not Unicode text"
            )
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise SchemaError(
            f"document: at {show_path(path)}: {show_value(value)} cannot be written; expected at most {MAX_DEPTH} "
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


# ------------------------------------------------------------------------------------------------ in messages


def show_path(path: Sequence[str | int]) -> str:
    """Return the place in a document as it is written in a message, ``rules[1].name``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[\w-]+", part):
            text += f".{part}" if text else part
        else:
            text += f"[{show_value(part)}]"
    return text or "the top"


def show_value(value: Any) -> str:
    """Return a value as it is written in a message: short, a list by its length, a mapping by its first keys."""
    if isinstance(value, Mapping):
        keys = (key if isinstance(key, str) else _text(key) for key in list(value)[:4])
        return "a mapping" + (f" with {', '.join(keys)}" if value else " with no keys")
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else _text(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(value: Any) -> str:
    """Return the value's own text; of one that has none, such as a value too deep for Python's stack, its type."""
    try:
        return repr(value)
    except Exception:
        return f"a {type(value).__name__} that cannot be shown"

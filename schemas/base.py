"""The door to what every document shares; the rooms behind it are these modules.

| module    | what it holds                                                                 |
|-----------|-------------------------------------------------------------------------------|
| `models`  | `Frozen` and `Document`, what models are made of; `problem` for validators     |
| `scalars` | schedules, and `Scalar`: a number or a schedule                               |
| `parsing` | plain data to models; one `SchemaError` that lists every problem              |
| `text`    | YAML and JSON to plain data and back                                          |

Import from here: the names stay when the modules change.
"""

from __future__ import annotations

from graphnet.schemas.models import Document, Frozen, problem
from graphnet.schemas.parsing import MAX_LISTED, SCHEMA_VERSION, check_version, load_document, parse
from graphnet.schemas.scalars import AnySchedule, Constant, Cosine, Exponential, Linear, Scalar, Steps
from graphnet.schemas.text import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    dump_yaml,
    parse_text,
    read_document,
    to_data,
    write_document,
)

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_LISTED",
    "MAX_NODES",
    "SCHEMA_VERSION",
    "AnySchedule",
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

"""The documents of graphnet: frozen pydantic models, YAML and JSON in and out, JSON Schema for editors."""

from __future__ import annotations

if __name__ != "graphnet.schemas":
    raise ImportError("import graphnet.schemas: the folder schemas/ is installed inside the package graphnet")

from graphnet.schemas.base import (
    Document,
    Frozen,
    Scalar,
    dump_yaml,
    load_document,
    parse,
    parse_text,
    read_document,
    to_data,
    write_document,
)
from graphnet.schemas.catalog import DOCUMENTS, json_schema
from graphnet.schemas.experiment import Experiment, load_experiment_document
from graphnet.schemas.policy import Policy, Rule, load_policy_document

__all__ = [
    "DOCUMENTS",
    "Document",
    "Experiment",
    "Frozen",
    "Policy",
    "Rule",
    "Scalar",
    "dump_yaml",
    "json_schema",
    "load_document",
    "load_experiment_document",
    "load_policy_document",
    "parse",
    "parse_text",
    "read_document",
    "to_data",
    "write_document",
]

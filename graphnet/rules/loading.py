"""Policies from files, mappings and rules in Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphnet.rules.fluent import RuleBuilder, as_rule
from graphnet.rules.policy import Policy
from graphnet.schemas.base import parse
from graphnet.schemas.policy import Policy as PolicyDocument
from graphnet.schemas.policy import Rule, load_policy_document

__all__ = ["load_policy"]


def load_policy(source: Path | str | Mapping[str, Any] | list[Any] | Rule | RuleBuilder | PolicyDocument) -> Policy:
    """Make a policy of a YAML or JSON file, a mapping, a rule or a list of rules, or a document.

    A rule in a list is a :class:`Rule`, a mapping, or one under construction (:func:`graphnet.rule`).

    Raises
    ------
    SchemaError
        The document cannot be read or is no policy; lists every problem.
    GraphnetError
        A rule names something that is not registered, or gives it arguments that it does not take.
    """
    if isinstance(source, PolicyDocument):
        return Policy(source)
    if isinstance(source, Rule | RuleBuilder):
        source = [source]
    if isinstance(source, list | tuple):
        given = [as_rule(rule) for rule in source]
        rules = [rule if isinstance(rule, Rule) else parse(Rule, rule, source="rule") for rule in given]
        return Policy(PolicyDocument(rules=tuple(rules)))
    where = "policy" if isinstance(source, Mapping) else str(source)
    return Policy(load_policy_document(source), source=where)

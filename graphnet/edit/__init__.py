"""Edits: unit maps and their action on tensors, operators, initialisers, scores, optimizer state policies."""

from __future__ import annotations

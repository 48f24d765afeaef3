"""Scores of units, registered by name; pruning takes the lowest."""

from __future__ import annotations

from graphnet.edit.scores import activity, weights
from graphnet.edit.scores.base import SCORES, Score, score

__all__ = ["SCORES", "Score", "activity", "score", "weights"]

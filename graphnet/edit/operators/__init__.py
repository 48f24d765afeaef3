"""Operators: functions that describe one kind of edit on a plan."""

from __future__ import annotations

from graphnet.edit.operators.dormancy import recruit, retire
from graphnet.edit.operators.grow import grow
from graphnet.edit.operators.prune import choose, prune
from graphnet.edit.operators.rewind import rewind

__all__ = ["choose", "grow", "prune", "recruit", "retire", "rewind"]

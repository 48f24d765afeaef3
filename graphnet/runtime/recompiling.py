"""Networks under ``torch.compile``: every version may be compiled as often as the first one could.

An edit changes shapes, so that a compiled network is compiled again. torch counts those compilations for one function
and silently runs it uncompiled once there were ``torch._dynamo.config.recompile_limit`` (8) of them, whatever became
of the older ones; so each commit raises the limits by what they were.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["allow_recompiling"]

_LIMITS = ("recompile_limit", "accumulated_recompile_limit")

_before: dict[str, int] = {}


def allow_recompiling() -> None:
    """Raise torch's limits of compilations, where anything was compiled at all, for one more version."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return
    for name in _LIMITS:
        limit = getattr(dynamo.config, name, None)
        if isinstance(limit, int):
            setattr(dynamo.config, name, limit + _before.setdefault(name, limit))

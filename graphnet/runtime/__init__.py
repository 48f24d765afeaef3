"""The stateful side: the network, its optimizers, its history, its checkpoints."""

from __future__ import annotations

"""Initialisers of newborn units, registered by name."""

from __future__ import annotations

from graphnet.edit.initialisers import baselines, gradmax, net2wider
from graphnet.edit.initialisers.base import INITIALISERS, Initialiser, initialiser

__all__ = ["INITIALISERS", "Initialiser", "baselines", "gradmax", "initialiser", "net2wider"]

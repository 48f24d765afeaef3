"""The registry of initialisers: functions that fill the slices of newborn units."""

from __future__ import annotations

from typing import Protocol

from graphnet.edit.newborns import Claim, Newborns
from graphnet.edit.registry import Registry

__all__ = ["INITIALISERS", "Initialiser", "initialiser"]


class Initialiser(Protocol):
    """Fills every incoming and outgoing slice of the newborns and says what holds of the function.

    Options are keyword-only parameters after the newborns.
    """

    def __call__(self, newborns: Newborns) -> Claim:
        """Write the slices."""


INITIALISERS: Registry[Initialiser] = Registry("initialiser")
initialiser = INITIALISERS.register

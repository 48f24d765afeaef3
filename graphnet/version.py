"""The version of this package, for records that say what wrote them."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"

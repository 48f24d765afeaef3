"""The ground floor: graphs of ops and unit groups, their layouts, validation, documents, cost."""

from __future__ import annotations

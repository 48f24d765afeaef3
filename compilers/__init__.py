"""Compilers: from a graph to something that runs."""

from __future__ import annotations

if __name__ != "graphnet.compilers":
    raise ImportError("import graphnet.compilers, not compilers: this folder is installed inside the package graphnet")

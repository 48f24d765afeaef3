"""Writes the JSON Schema files in `schemas/json/`: ``python -m graphnet.schemas.generate [--check]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from graphnet.schemas.catalog import DOCUMENTS, json_schema

__all__ = ["FOLDER", "main", "render", "stale"]

FOLDER = Path(__file__).resolve().parent / "json"


def render(kind: str) -> str:
    """Return the text of the JSON Schema file of documents of `kind`."""
    return json.dumps(json_schema(kind), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def stale(folder: Path = FOLDER) -> list[Path]:
    """Return the files in `folder` that are missing or differ from what would be written."""
    paths = {kind: folder / f"{kind}.schema.json" for kind in DOCUMENTS}
    return [
        path for kind, path in paths.items() if not path.is_file() or path.read_text(encoding="utf-8") != render(kind)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with ``--check`` only say which are out of date; return 1 if some are."""
    parser = argparse.ArgumentParser(prog="python -m graphnet.schemas.generate", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files are (default: beside this module)")
    options = parser.parse_args(arguments)
    paths = stale(options.folder)
    for path in paths:
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(render(path.name.removesuffix(".schema.json")), encoding="utf-8")
        print(f"{'out of date' if options.check else 'written'}: {path}")
    return 1 if options.check and paths else 0


if __name__ == "__main__":
    sys.exit(main())

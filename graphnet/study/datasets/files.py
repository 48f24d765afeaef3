"""Finding files under a root, with errors that say which file is expected where.

A dataset is a list of files, each under one of several spellings, in one of several folders. :func:`locate`
returns the first folder that has them all.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graphnet.errors import DataError

__all__ = ["HOW_TO_POINT", "import_extra", "locate", "read_bytes", "require_root"]

HOW_TO_POINT = (
    "Set the environment variable GRAPHNET_DATA, or the dataset's `root:`, to the folder that holds the data "
    "(nothing is downloaded)."
)


def import_extra(module: str, purpose: str) -> Any:
    """Import a library of the ``study`` extra, or raise DataError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{purpose} needs the library {module.partition('.')[0]!r}, which cannot be imported ({error}); "
            "install it with: pip install graphnet-engine[study]"
        ) from error


def require_root(name: str, root: Path | None, expected: str) -> Path:
    """Return `root` if it is there, else raise DataError that says what it should hold."""
    if root is None:
        raise DataError(
            f"dataset {name!r} is read from files and no folder is named; expected in it: {expected}. {HOW_TO_POINT}"
        )
    if not root.exists():
        raise DataError(
            f"dataset {name!r}: the folder {root} does not exist; expected in it: {expected}. {HOW_TO_POINT}"
        )
    return root


def locate(name: str, folders: Sequence[Path], files: Sequence[Sequence[str]]) -> list[Path]:
    """Find every file of a dataset in one folder.

    Parameters
    ----------
    name
        The dataset, for errors.
    folders
        Folders in order of preference.
    files
        For each file, the spellings under which it may be stored.

    Returns
    -------
    list of Path
        One path for each file, all from the same folder.

    Raises
    ------
    DataError
        Names the first file that the most complete folder lacks, and every path tried for it.
    """
    best: list[Path | None] = [None] * len(files)
    for folder in folders:
        found = [next((folder / s for s in spellings if (folder / s).is_file()), None) for spellings in files]
        complete = [path for path in found if path is not None]
        if len(complete) == len(files):
            return complete
        if len(complete) > sum(path is not None for path in best):
            best = found
    missing = [spellings for path, spellings in zip(best, files, strict=True) if path is None]
    tried = "".join(f"\n  {folder / spelling}" for folder in folders for spelling in missing[0])
    others = f" (nor {len(missing) - 1} more: {', '.join(s[0] for s in missing[1:])})" if len(missing) > 1 else ""
    raise DataError(f"dataset {name!r}: the file {missing[0][0]} was not found{others}. Tried:{tried}\n{HOW_TO_POINT}")


def read_bytes(path: Path, open_file: Callable[[Path], Any], limit: int) -> bytes:
    """Read at most ``limit + 1`` bytes.

    In pieces, so that a false header cannot make us allocate more than is there.

    Raises
    ------
    DataError
        If the file cannot be read or decompressed.
    """
    pieces: list[bytes] = []
    wanted = limit + 1
    try:
        with open_file(path) as stream:
            while wanted > 0 and (piece := stream.read(min(wanted, 1 << 20))):
                pieces.append(piece)
                wanted -= len(piece)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; it may be truncated or damaged, copy it again") from error
    return b"".join(pieces)

"""The files of a run folder: append-only records while cells run, tables at the end, and reading both back.

A record is one JSON object on one line, flushed when it is written, so a killed run loses at most the line that was
being written. A checkpoint stores the length of each record file; resuming cuts the file back to it, so nothing is
ever recorded twice.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graphnet.errors import CheckpointError, DataError
from graphnet.study.datasets.files import import_extra

__all__ = ["RecordFile", "exclusive", "read_cells", "read_json", "read_records", "write_json", "write_tables"]

CELL_COLUMNS = ("cell", "backbone", "method", "label", "compactness", "seed")


class RecordFile:
    """A file of records that only grows; :meth:`cut` takes back what came after a checkpoint.

    Parameters
    ----------
    path : Path
        Created where it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab")

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record and hand it to the operating system; numbers that are not finite become null."""
        line = json.dumps(_finite(record), allow_nan=False, separators=(", ", ": "))
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def cut(self, length: int) -> None:
        """Take back every record past a length.

        Raises
        ------
        CheckpointError
            The file is shorter: records that the checkpoint counts on are gone.
        """
        size = self._file.seek(0, os.SEEK_END)
        if size < length:
            raise CheckpointError(
                f"{self.path} holds {size} bytes, and its checkpoint was taken at {length}: records were removed; "
                "delete the cell's folder to run the cell again"
            )
        self._file.truncate(length)
        self._file.seek(length)

    def close(self) -> None:
        """Make sure that every record is on the disk, and close the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def read_records(path: Path | str, *kinds: str) -> list[dict[str, Any]]:
    """Read a record file, or only the records of some kinds; a last line that is not finished is left out.

    Raises
    ------
    DataError
        The file is missing, or a line before the last is damaged.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = RecordFile(Path(folder) / "metrics.jsonl")
    ...     file.append({"kind": "epoch", "epoch": 1})
    ...     file.append({"kind": "probe", "log_parity_gradient": float("-inf")})
    ...     file.close()
    ...     read_records(file.path, "probe")
    [{'kind': 'probe', 'log_parity_gradient': None}]
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], 1):  # after the last newline there is nothing, or half a record
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is no record ({error})") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}: line {number} is no record, which would be a JSON object")
        if not kinds or record.get("kind") in kinds:
            records.append(record)
    return records


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file in one step: a reader sees the old file or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(_finite(data), file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    DataError
        It is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """``cell.json`` of every cell of a run, with the cell's folder name as ``cell``, in order of name."""
    return [{"cell": path.parent.name, **read_json(path)} for path in sorted((folder / "cells").glob("*/cell.json"))]


def write_tables(folder: Path) -> tuple[Path, Path]:
    """Gather the records of every finished cell into ``metrics.parquet`` (epochs) and ``events.parquet`` (the rest).

    Every row names its cell; values that are lists or mappings are JSON text.

    Raises
    ------
    DataError
        pyarrow, of the extra ``study``, is missing.
    """
    epochs: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    for cell in read_cells(folder):
        if cell["status"] != "done":
            continue
        where = {key: cell[key] for key in CELL_COLUMNS}
        for record in read_records(folder / "cells" / cell["cell"] / "metrics.jsonl"):
            (epochs if record["kind"] == "epoch" else events).append(where | record)
    return _parquet(folder / "metrics.parquet", epochs), _parquet(folder / "events.parquet", events)


def _parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    arrow = import_extra("pyarrow", "the tables of a study")
    parquet = import_extra("pyarrow.parquet", "the tables of a study")
    columns = dict.fromkeys(key for row in rows for key in row)
    table = arrow.table({key: [_scalar(row.get(key)) for row in rows] for key in columns})
    temporary = path.with_name(f".{path.name}.part")
    parquet.write_table(table, temporary)
    os.replace(temporary, path)
    return path


def _scalar(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, Mapping | list | tuple) else value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock file, so that two processes never write the same records.

    The operating system lets go of it when the process ends, however it ends. Where it has no such locks
    (Windows), nothing is locked.

    Raises
    ------
    CheckpointError
        Another process holds it, and ``wait`` is false.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise CheckpointError(
                f"{path.parent} is in use: another process runs this study; wait for it, or choose another output"
            ) from None
        yield

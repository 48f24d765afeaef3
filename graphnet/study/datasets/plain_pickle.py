"""Read a pickle of plain data and numpy arrays without running anything it asks for.

CIFAR is distributed as Python pickles, and a pickle is a program. Here the names it may mention are mapped to
inert stand-ins that only record their arguments; arrays are rebuilt afterwards from the recorded bytes. No
function or class of numpy, or of anything else, is reachable from the file.
"""

from __future__ import annotations

import io
import math
import pickle  # noqa: TID251 - the one reader of pickles: CIFAR is distributed as such
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from graphnet.errors import DataError

__all__ = ["load_plain_pickle"]

_SIZE_LIMIT = 1 << 30  # bytes; the largest CIFAR file has 155 million
_DTYPES: dict[str, np.dtype[Any]] = {"u1": np.dtype("u1"), "i4": np.dtype("<i4"), "i8": np.dtype("<i8")}


class _RefusedError(Exception):
    """The pickle asks for something outside plain data."""


class _Record:
    """What the file says about one dtype or array; a pickle may set its state once, and nothing else."""

    __slots__ = ("arguments", "kind", "state")

    def __init__(self, kind: str, arguments: tuple[Any, ...]) -> None:
        self.kind = kind
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        if self.kind == "buffer" or self.state is not None:
            raise _RefusedError("state set twice")
        self.state = state


class _StandIn:
    """A name that the pickle may mention; calling it records the call, and nothing can be set on it."""

    __slots__ = ("_kind",)
    _kind: str

    def __init__(self, kind: str) -> None:
        object.__setattr__(self, "_kind", kind)

    def __call__(self, *arguments: Any) -> Any:
        if self._kind == "encode":  # how Python 3 writes bytes under pickle protocol 2
            text, encoding = arguments
            if encoding not in ("latin1", b"latin1") or not isinstance(text, str):
                raise _RefusedError(f"an encoding other than latin1: {encoding!r}")
            return text.encode("latin1")
        if self._kind == "type":
            raise _RefusedError("a direct construction of an array")
        return _Record(self._kind, arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _RefusedError(f"setting the attribute {name!r}")

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("setting the state of a name")


_NAMES = {
    ("numpy", "dtype"): "dtype",
    ("numpy", "ndarray"): "type",
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy.core.numeric", "_frombuffer"): "buffer",
    ("numpy._core.numeric", "_frombuffer"): "buffer",
    ("_codecs", "encode"): "encode",
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        kind = _NAMES.get((module, name))
        if kind is None:
            raise _RefusedError(f"the name {module}.{name}")
        return _StandIn(kind)


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle of dicts, lists, numbers, strings and integer arrays.

    Parameters
    ----------
    path
        The file. Text of Python 2 stays bytes, as in ``pickle.load(..., encoding="bytes")``.

    Returns
    -------
    object
        The data; arrays of uint8, int32 and int64 as numpy arrays.

    Raises
    ------
    DataError
        If the file is damaged, too large, or asks for anything but plain data (nothing of it has then run).
    """
    try:
        size = path.stat().st_size
        if size > _SIZE_LIMIT:
            raise DataError(f"{path} has {size} bytes, more than the {_SIZE_LIMIT} that a dataset file may have")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    try:
        _check_memo(content)
        return _rebuild(_PlainUnpickler(io.BytesIO(content), encoding="bytes").load(), depth=0)
    except _RefusedError as error:
        raise DataError(
            f"{path} is refused: the pickle asks for {error}, and a dataset may hold only plain data and "
            "integer arrays. Nothing of it was run; get the file from its original source"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything: the file is the program
        raise DataError(f"{path} is not a readable pickle ({error!r}); it may be truncated, copy it again") from error


def _check_memo(content: bytes) -> None:
    """Refuse a memo index that no file of this length needs: a table of that size would be allocated."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= (argument or 0) <= len(content):
            raise _RefusedError(f"the memo index {argument}")


def _rebuild(value: Any, depth: int) -> Any:
    """Replace records by arrays in the two levels that a dataset has: a dict, and the values in it."""
    if isinstance(value, _Record):
        return _array(value)
    if isinstance(value, dict) and depth == 0:
        return {key: _rebuild(item, depth + 1) for key, item in value.items()}
    if isinstance(value, _StandIn):
        raise _RefusedError("a bare name where data belongs")
    return value


def _array(record: _Record) -> np.ndarray[Any, Any]:
    if record.kind == "array" and isinstance(record.state, tuple) and len(record.state) == 5:
        _, shape, dtype, fortran, content = record.state
    elif record.kind == "buffer" and len(record.arguments) == 4:
        content, dtype, shape, order = record.arguments
        fortran = order in ("F", b"F")
    else:
        raise _RefusedError(f"an incomplete {record.kind}")
    element = _dtype(dtype)
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise _RefusedError(f"the array shape {shape!r}")
    if not isinstance(content, bytes | bytearray) or len(content) != math.prod(shape) * element.itemsize:
        raise _RefusedError(f"an array of shape {shape} whose bytes do not fill it")
    return np.frombuffer(content, element).reshape(shape, order="F" if fortran else "C").copy()


def _dtype(record: Any) -> np.dtype[Any]:
    if isinstance(record, _Record) and record.kind == "dtype" and record.arguments:
        code = record.arguments[0]
        code = code.decode("latin1") if isinstance(code, bytes) else code
        order = record.state[1] if isinstance(record.state, tuple) and len(record.state) > 1 else "|"
        if isinstance(code, str) and code in _DTYPES and order in ("<", "|", b"<", b"|"):
            return _DTYPES[code]
        raise _RefusedError(f"an array of type {code!r}, byte order {order!r}")
    raise _RefusedError("an array without a type")

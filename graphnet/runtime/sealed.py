"""One file of tensors and one JSON document, sealed by digests and written atomically.

The file is a safetensors file, so that any safetensors reader opens it. Its metadata name the format, its version
and two SHA-256 digests: of everything after the header (``data_sha256``), and of the header with its own digest
written as zeros (``header_sha256``). The document is UTF-8 JSON in a ``uint8`` tensor named ``document``. Nothing
in it is a pickle or a path.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from graphnet.errors import CheckpointError

__all__ = ["DOCUMENT", "FORMAT", "FORMAT_VERSION", "read_sealed", "write_sealed"]

FORMAT = "graphnet-checkpoint"
FORMAT_VERSION = 2
DOCUMENT = "document"

_DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.bool: "BOOL",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_MAX_HEADER = 100_000_000  # safetensors' own limit
_ZEROS = b"0" * 64
_FAILURES = (OSError, ValueError, TypeError, RuntimeError, RecursionError, MemoryError, safetensors.SafetensorError)


# -- writing ------------------------------------------------------------------------------------------------------


def write_sealed(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> Path:
    """Write a file so that its name always stands for a whole one: the one before, or this one.

    Parameters
    ----------
    path : path-like
        Missing folders are made. A link is followed and stays a link.
    tensors : mapping of str to Tensor
        On the CPU, contiguous, sharing no memory with one another.
    document : mapping
        What JSON holds; no NaN or infinity.

    Raises
    ------
    CheckpointError
        The file cannot be written; the one that was there is as it was.
    """
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise CheckpointError(f"{target} is a folder: a checkpoint is one file, name a file in it")
        text = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
        content = {**tensors, DOCUMENT: torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        _replace(target, content)
    except _FAILURES as error:
        raise CheckpointError(f"the checkpoint {path} was not written: {error}") from error
    return Path(path)


def _replace(target: Path, content: Mapping[str, Tensor]) -> None:
    """Write beside the target, flush to the disk, then rename: the only step that changes the target."""
    own = f"{_prefix(target)}{os.getpid()}.{secrets.token_hex(4)}.tmp"
    temporary = target.with_name(own)
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write(file, content)
            file.flush()
            os.fsync(file.fileno())
        mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
        temporary.chmod(mode)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write(file: BinaryIO, content: Mapping[str, Tensor]) -> None:
    """The file in one pass over the tensors; then the header again, with the digests.

    Not :func:`safetensors.torch.save_file`, whose own temporary file stays where the process is killed.
    """
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT, "format_version": str(FORMAT_VERSION),
            "data_sha256": _ZEROS.decode(), "header_sha256": _ZEROS.decode(),
        },
    }  # fmt: skip
    if sys.byteorder != "little":
        raise ValueError("this machine stores numbers with the highest byte first, and the file does not")
    ordered = sorted(content.items(), key=lambda item: (-item[1].element_size(), item[0]))  # each is aligned
    end = 0
    for name, tensor in ordered:
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{name!r} has dtype {tensor.dtype}, which safetensors does not know")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER:
        raise ValueError(f"the header has {len(text):,} bytes; safetensors takes {_MAX_HEADER:,}")
    file.write(len(text).to_bytes(8, "little") + text)
    digest = hashlib.sha256()
    for _, tensor in ordered:
        part = tensor.reshape(-1).view(torch.uint8).numpy().data
        digest.update(part)
        file.write(part)
    text = _with_digest(text, "data_sha256", digest.hexdigest())
    text = _with_digest(text, "header_sha256", hashlib.sha256(text).hexdigest())
    file.seek(8)
    file.write(text)


def _with_digest(header: bytes, key: str, digest: str) -> bytes:
    before, after = _around(header, key)
    return before + digest.encode() + after


def _around(header: bytes, key: str) -> tuple[bytes, bytes]:
    """The header before and after the 64 characters of a digest.

    The key in quotation marks cannot occur in a name or a value, where JSON escapes the marks.
    """
    mark = f'"{key}":"'.encode()
    before, found, after = header.partition(mark)
    if not found or mark in after or len(after) < 65 or after[64:65] != b'"':
        raise ValueError(f"the header has no {key}")
    return before + found, after[64:]


def _prefix(target: Path) -> str:
    return f".{target.name}.{platform.node()}."


def _sweep(target: Path) -> None:
    """Remove what writers of this file left that were killed before they could rename."""
    if os.name != "posix":
        return
    pattern = re.compile(re.escape(_prefix(target)) + r"(\d+)\.[0-9a-f]{8}\.tmp")
    for entry in os.scandir(target.parent):
        match = pattern.fullmatch(entry.name)
        if match is not None and not _alive(int(match[1])):
            with suppress(OSError):
                os.unlink(entry.path)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only asks
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


# -- reading ------------------------------------------------------------------------------------------------------


def read_sealed(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file whole, check it, and give its tensors (on the CPU) and its document.

    Memory is taken for what the file holds, never for what it claims to hold.

    Raises
    ------
    CheckpointError
        The file is missing, truncated, damaged, foreign or newer; says which.
    """
    try:
        header, body = _read(path)
        _check_data(path, header["__metadata__"], body)
        tensors = safetensors.torch.load(b"".join(body))
        text = tensors.pop(DOCUMENT, None)
        if text is None or text.dtype != torch.uint8 or text.dim() != 1:
            raise CheckpointError(f"{path} has no document: it was not written by graphnet")
        document = json.loads(bytes(text.numpy()).decode(), parse_constant=_no_constant)
        if not isinstance(document, dict):
            raise CheckpointError(f"{path}: the document is not a mapping")
        return tensors, document
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except (*_FAILURES, AssertionError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], tuple[bytes, bytes, bytes]]:
    """The checked header, and the file in three parts: length, header, data."""
    if not isinstance(path, str | os.PathLike):  # a number would be taken for an open file
        raise CheckpointError(f"a checkpoint is named by its path, not by {path!r}")
    if os.path.isdir(path):
        raise CheckpointError(f"{path} is a folder: a checkpoint is one file")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise CheckpointError(f"{path} is no ordinary file")
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        # 0x80 opens a pickle, but is also the lowest byte of many lengths: only an impossible length makes it one
        if prefix[:4] == b"PK\x03\x04" or (prefix[:1] == b"\x80" and length > _MAX_HEADER):
            raise CheckpointError(
                f"{path} was written by torch.save or pickle, which graphnet never opens; load it with torch and "
                "give its state dict to a network"
            )
        if len(prefix) < 8 or (length <= _MAX_HEADER and length > status.st_size - 8):
            raise CheckpointError(f"{path} is truncated: {status.st_size} bytes do not hold its header")
        if length > _MAX_HEADER:
            raise CheckpointError(f"{path} is no checkpoint, or its first bytes are damaged")
        raw = file.read(length)
        header = _check_header(path, raw)
        held, claimed = status.st_size - 8 - length, _claimed(header)
        if held != claimed:
            what = f"is truncated: {claimed - held}" if held < claimed else f"has grown: {held - claimed}"
            raise CheckpointError(f"{path} {what} bytes {'are missing' if held < claimed else 'too many'}")
        return header, (prefix, raw, file.read(claimed))


def _check_header(path: str | os.PathLike[str], raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
        metadata = header["__metadata__"]
        kind = metadata.get("format")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no checkpoint, or its header is damaged") from error
    if kind != FORMAT:
        raise CheckpointError(f"{path} is a safetensors file, but no graphnet checkpoint (or its header is damaged)")
    try:
        before, after = _around(raw, "header_sha256")
    except ValueError as error:
        raise CheckpointError(f"{path}: the header is damaged: {error}") from error
    if hashlib.sha256(before + _ZEROS + after).hexdigest() != metadata.get("header_sha256"):
        raise CheckpointError(f"{path}: the header is damaged: its SHA-256 is not the one that was written")
    version = metadata.get("format_version", "")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise CheckpointError(f"{path}: {version!r} is no format version")
    if int(version) < FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, from before graphnet was released; this one reads {FORMAT_VERSION}: "
            "write it again"
        )
    if int(version) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this graphnet reads {FORMAT_VERSION}: install a newer one"
        )
    return dict(header)


def _claimed(header: Mapping[str, Any]) -> int:
    ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    return max([0, *ends])


def _check_data(path: str | os.PathLike[str], metadata: Mapping[str, str], body: tuple[bytes, bytes, bytes]) -> None:
    if hashlib.sha256(body[2]).hexdigest() != metadata.get("data_sha256"):
        raise CheckpointError(f"{path}: the tensors or the document are damaged: their SHA-256 is not the one written")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")

"""Character-level text: ``tinyshakespeare`` from its folder, ``text`` from any UTF-8 file."""

from __future__ import annotations

from pathlib import Path

from graphnet.errors import DataError
from graphnet.study.datasets.base import TextDataset, TextOptions
from graphnet.study.datasets.build import build_text
from graphnet.study.datasets.files import locate, require_root
from graphnet.study.datasets.registry import dataset

__all__ = ["load_text", "load_tinyshakespeare"]


@dataset("tinyshakespeare", TextOptions)
def load_tinyshakespeare(root: Path | None, options: TextOptions) -> TextDataset:
    """Load the tiny Shakespeare text (Karpathy, 2015): 1.1 million characters, 65 of them different."""
    root = require_root("tinyshakespeare", root, f"tinyshakespeare/{options.file}")
    folders = [root / "tinyshakespeare", root / "tiny_shakespeare", root]
    [path] = locate("tinyshakespeare", folders, [(options.file,)])
    return build_text("tinyshakespeare", _read(path), f"text file {path.name}", options)


@dataset("text", TextOptions)
def load_text(root: Path | None, options: TextOptions) -> TextDataset:
    """Load any text: `root` is the file itself, or the folder that holds `options.file`."""
    root = require_root("text", root, options.file)
    path = root if root.is_file() else locate("text", [root, root / "text"], [(options.file,)])[0]
    return build_text("text", _read(path), f"text file {path.name}", options)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} cannot be decoded") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error

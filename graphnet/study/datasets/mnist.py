"""MNIST and Fashion-MNIST from their four IDX files, plain or gzip, under the original names.

IDX: two zero bytes, a type byte (8 for uint8), the number of dimensions, each dimension as a big-endian
uint32, then the values.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from graphnet.errors import DataError
from graphnet.study.datasets.base import Dataset, ImageOptions
from graphnet.study.datasets.build import build_images
from graphnet.study.datasets.files import locate, read_bytes, require_root
from graphnet.study.datasets.registry import dataset

__all__ = ["load_fashion_mnist", "load_mnist", "read_idx"]

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_HEADER_LIMIT = 16  # bytes: the magic number and three dimensions
_SIZE_LIMIT = 1 << 32  # bytes; MNIST's largest file has 47 million


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an IDX file of unsigned bytes.

    Parameters
    ----------
    path
        The file; gzip is recognised by its first bytes, not by its name.
    dimensions
        The number of dimensions expected: 3 for images, 1 for labels.

    Returns
    -------
    Tensor
        uint8, in the shape that the header states.

    Raises
    ------
    DataError
        If the magic number is wrong, or the file is shorter or longer than its header states.
    """
    start = read_bytes(path, _open_plain, 1)
    opener = _open_gzip if start == b"\x1f\x8b" else _open_plain
    header_size = 4 + 4 * dimensions
    header = read_bytes(path, opener, _HEADER_LIMIT)[:header_size]
    magic = bytes((0, 0, 8, dimensions))
    if header[:4] != magic:
        raise DataError(
            f"{path} is not an IDX file of {dimensions}-dimensional unsigned bytes: expected the magic "
            f"number 0x{magic.hex()}, found 0x{header[:4].hex()}"
        )
    if len(header) < header_size:
        raise DataError(f"{path} is truncated: its header has {len(header)} of {header_size} bytes; copy it again")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    expected = header_size + math.prod(shape)
    if expected > _SIZE_LIMIT:
        raise DataError(f"{path}: its header states {expected} bytes, more than the {_SIZE_LIMIT} of any such file")
    content = read_bytes(path, opener, expected)
    if len(content) != expected:
        fault = "is truncated" if len(content) < expected else "has bytes past its end"
        found = f"{len(content)}" if len(content) < expected else "more"
        raise DataError(
            f"{path} {fault}: its header states {' x '.join(map(str, shape))} values, which is {expected} "
            f"bytes in all, found {found}; copy it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header_size).reshape(shape).copy())


@dataset("mnist")
def load_mnist(root: Path | None, options: ImageOptions) -> Dataset:
    """Load MNIST (LeCun et al., 1998): 60,000 + 10,000 digits, `[1, 28, 28]`."""
    return _load("mnist", root, ("mnist", "MNIST/raw", "mnist/raw", "MNIST"), options)


@dataset("fashion-mnist")
def load_fashion_mnist(root: Path | None, options: ImageOptions) -> Dataset:
    """Load Fashion-MNIST (Xiao et al., 2017, arXiv 1708.07747): MNIST's form, ten kinds of clothing."""
    folders = ("fashion-mnist", "FashionMNIST/raw", "fashion-mnist/raw", "fashion_mnist", "FashionMNIST")
    return _load("fashion-mnist", root, folders, options)


def _load(name: str, root: Path | None, folders: tuple[str, ...], options: ImageOptions) -> Dataset:
    root = require_root(name, root, f"{folders[0]}/{_FILES[0]} (plain or .gz) and its three siblings")
    places = [root / folder for folder in folders]
    # Both datasets use the same file names: a root that holds the files themselves must say by its own name
    # which of the two it is.
    if ("fashion" in str(root.resolve()).lower()) == (name == "fashion-mnist"):
        places.append(root)
    spellings = [(f, f"{f}.gz", f.replace("-idx", ".idx"), f"{f.replace('-idx', '.idx')}.gz") for f in _FILES]
    train_images, train_labels, test_images, test_labels = locate(name, places, spellings)
    parts = []
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        x, y = read_idx(images, 3), read_idx(labels, 1)
        if len(x) != len(y):
            raise DataError(f"{images} holds {len(x)} images but {labels} holds {len(y)} labels; the counts must agree")
        parts.append((x.unsqueeze(1), y.to(torch.int64)))
    return build_images(name, parts[0], parts[1], 10, f"IDX files in {train_images.parent.name}", options)


def _open_plain(path: Path) -> object:
    return path.open("rb")


def _open_gzip(path: Path) -> object:
    return gzip.open(path, "rb")

"""CIFAR-10 and CIFAR-100 in the three forms in which they are passed around: Python pickle, binary, parquet.

The first form of which any file is found under the root is read. Images are `[3, 32, 32]`; CIFAR-100 uses its
100 fine labels (Krizhevsky, 2009).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from graphnet.errors import DataError
from graphnet.study.datasets.base import Dataset, ImageOptions
from graphnet.study.datasets.build import build_images
from graphnet.study.datasets.files import HOW_TO_POINT, locate, require_root
from graphnet.study.datasets.image_parquet import find_parquet, read_image_parquet
from graphnet.study.datasets.plain_pickle import load_plain_pickle
from graphnet.study.datasets.registry import dataset

__all__ = ["load_cifar10", "load_cifar100"]

_PIXELS = 3 * 32 * 32
Part = tuple[Tensor, Tensor]  # images uint8 [n, 3, 32, 32], labels int64 [n]
Found = tuple[list[Part], str]  # training and test part, and the source in words


@dataclass(frozen=True)
class _Family:
    """What differs between CIFAR-10 and CIFAR-100."""

    name: str
    classes: int
    pickle_folder: str
    pickle_files: tuple[tuple[str, ...], tuple[str, ...]]  # training, test
    pickle_labels: bytes
    binary_folder: str
    label_bytes: int  # in front of each binary record; the last one is the label
    parquet_label: str

    @property
    def folders(self) -> tuple[str, ...]:
        dashed = self.name.replace("cifar", "cifar-")
        return (self.name, dashed)


_CIFAR10 = _Family(
    name="cifar10",
    classes=10,
    pickle_folder="cifar-10-batches-py",
    pickle_files=(tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",)),
    pickle_labels=b"labels",
    binary_folder="cifar-10-batches-bin",
    label_bytes=1,
    parquet_label="label",
)
_CIFAR100 = _Family(
    name="cifar100",
    classes=100,
    pickle_folder="cifar-100-python",
    pickle_files=(("train",), ("test",)),
    pickle_labels=b"fine_labels",
    binary_folder="cifar-100-binary",
    label_bytes=2,
    parquet_label="fine_label",
)


@dataset("cifar10")
def load_cifar10(root: Path | None, options: ImageOptions) -> Dataset:
    """Load CIFAR-10: 50,000 + 10,000 images of 10 classes."""
    return _load(_CIFAR10, root, options)


@dataset("cifar100")
def load_cifar100(root: Path | None, options: ImageOptions) -> Dataset:
    """Load CIFAR-100 with its fine labels: 50,000 + 10,000 images of 100 classes."""
    return _load(_CIFAR100, root, options)


def _load(family: _Family, root: Path | None, options: ImageOptions) -> Dataset:
    root = require_root(
        family.name,
        root,
        f"{family.pickle_folder}/ (pickle), {family.binary_folder}/ (binary) or {family.name}/train-*.parquet",
    )
    parents = [root, *(root / folder for folder in family.folders)]
    for read in _FORMS:
        found = read(family, parents)
        if found is not None:
            (train, test), source = found
            return build_images(family.name, train, test, family.classes, source, options)
    tried = "".join(f"\n  {place}" for place in _places(family, parents))
    raise DataError(f"dataset {family.name!r}: no file of it was found in any form. Tried:{tried}\n{HOW_TO_POINT}")


def _places(family: _Family, parents: list[Path]) -> list[str]:
    pickled, binary = family.pickle_files[0][0], f"{family.pickle_files[0][0]}.bin"
    return [
        *(str(folder / pickled) for folder in _subfolders(parents, family.pickle_folder)),
        *(str(folder / binary) for folder in _subfolders(parents, family.binary_folder)),
        *(str(folder / "train-*.parquet") for folder in _parquet_folders(parents)),
    ]


def _subfolders(parents: list[Path], folder: str) -> list[Path]:
    return [*(parent / folder for parent in parents), *parents[1:], parents[0]]


def _parquet_folders(parents: list[Path]) -> list[Path]:
    # `plain_text` and `data` are what data hubs add; the root itself comes last.
    named = [place for parent in parents[1:] for place in (parent, parent / "plain_text", parent / "data")]
    return [*named, parents[0]]


def _find(family: _Family, folders: list[Path], suffix: str) -> tuple[list[Path], list[Path]] | None:
    """Training and test files if any of them is there; DataError if only some are."""
    train, test = ([f"{file}{suffix}" for file in files] for files in family.pickle_files)
    if not any((folder / file).is_file() for folder in folders for file in (*train, *test)):
        return None
    found = locate(family.name, folders, [(file,) for file in (*train, *test)])
    return found[: len(train)], found[len(train) :]


def _read_pickles(family: _Family, parents: list[Path]) -> Found | None:
    found = _find(family, _subfolders(parents, family.pickle_folder), "")
    if found is None:
        return None
    parts = [_concatenate([_read_pickle(path, family.pickle_labels) for path in paths]) for paths in found]
    return parts, "pickle files"


def _read_pickle(path: Path, label_key: bytes) -> Part:
    content = load_plain_pickle(path)
    if not isinstance(content, dict):
        raise DataError(
            f"{path} must hold a dict with 'data' and {label_key.decode()!r}, found a {type(content).__name__}"
        )
    # Files written again by Python 3 have text keys.
    entries = {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}
    data, labels = entries.get(b"data"), entries.get(label_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        raise DataError(f"{path}: 'data' must be a uint8 array [n, {_PIXELS}]")
    if isinstance(labels, np.ndarray):
        labels = labels.ravel().tolist()
    # The upper bound keeps a huge integer from overflowing the tensor; the class range is checked later.
    if not isinstance(labels, list) or not all(type(label) is int and abs(label) < 1 << 31 for label in labels):
        raise DataError(f"{path}: {label_key.decode()!r} must be a list of whole numbers, one for each image")
    return _pair(path, torch.from_numpy(data), torch.tensor(labels, dtype=torch.int64))


def _read_binaries(family: _Family, parents: list[Path]) -> Found | None:
    found = _find(family, _subfolders(parents, family.binary_folder), ".bin")
    if found is None:
        return None
    parts = [_concatenate([_read_binary(path, family.label_bytes) for path in paths]) for paths in found]
    return parts, "binary files"


def _read_binary(path: Path, label_bytes: int) -> Part:
    record = label_bytes + _PIXELS
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(content) == 0 or len(content) % record:
        raise DataError(
            f"{path} is truncated or of another form: {len(content)} bytes are not a whole number of records "
            f"of {record} bytes ({label_bytes} label and {_PIXELS} pixels)"
        )
    records = torch.from_numpy(content.reshape(-1, record))
    return _pair(path, records[:, label_bytes:], records[:, label_bytes - 1].to(torch.int64))


def _read_parquets(family: _Family, parents: list[Path]) -> Found | None:
    found = find_parquet(family.name, _parquet_folders(parents))
    if found is None:
        return None
    shards = [[read_image_parquet(path, family.parquet_label, (32, 32)) for path in paths] for paths in found]
    formats = set().union(*(shard.formats for part in shards for shard in part))
    # Compression costs a little accuracy against the original images, so the source says so.
    source = f"parquet files, {' and '.join(sorted(formats))} images"
    if "JPEG" in formats:
        source += " (lossy: accuracies are a little below those on the original)"
    return [_concatenate([(shard.images, shard.labels) for shard in part]) for part in shards], source


def _pair(path: Path, data: Tensor, labels: Tensor) -> Part:
    if len(data) != len(labels):
        raise DataError(f"{path} holds {len(data)} images but {len(labels)} labels; the counts must agree")
    return data.reshape(-1, 3, 32, 32), labels


def _concatenate(parts: list[Part]) -> Part:
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


_FORMS: tuple[Callable[[_Family, list[Path]], Found | None], ...] = (
    _read_pickles,
    _read_binaries,
    _read_parquets,
)

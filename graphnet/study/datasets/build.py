"""How raw images or a text become a dataset.

Loaders hand over 8-bit images or a string. Splits, subsets, standardisation and the fingerprint are
made here, in the same way for every source.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from graphnet.errors import DataError
from graphnet.study.datasets.base import Dataset, ImageOptions, TextDataset, TextOptions, blocks, encode
from graphnet.study.datasets.sampling import stratified_indices

__all__ = ["build_images", "build_text"]

_CHUNK = 4096  # images converted at a time when counting pixel values, to keep the int64 copy small


def build_images(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: int,
    source: str,
    options: ImageOptions,
) -> Dataset:
    """Make a dataset of 8-bit images: check, hold out, limit, fingerprint, standardise.

    Parameters
    ----------
    name
        The dataset's name.
    train, test
        Images uint8 `[n, channels, height, width]` and labels int64 `[n]`.
    classes
        Number of classes; labels must lie in `0 .. classes - 1`.
    source
        Where the data came from, in words.
    options
        See :class:`ImageOptions`.

    Raises
    ------
    DataError
        If images and labels disagree in number, a part is empty, a label is out of range, or training and
        test images differ in shape.
    """
    for part, (x, y) in {"training": train, "test": test}.items():
        _check_part(name, part, x, y, classes)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"dataset {name!r}: training images have shape {tuple(train[0].shape[1:])} and test images "
            f"{tuple(test[0].shape[1:])}; the files belong to different datasets"
        )
    parts = {"train": train, "test": test}
    if options.validation:
        count = max(1, round(options.validation * len(train[1])))
        if count >= len(train[1]):
            raise DataError(
                f"dataset {name!r}: a validation share of {options.validation} leaves none of the "
                f"{len(train[1])} training samples"
            )
        held_out = torch.zeros(len(train[1]), dtype=torch.bool)
        held_out[stratified_indices(train[1], count, options.seed)] = True
        parts["validation"] = (train[0][held_out], train[1][held_out])
        parts["train"] = (train[0][~held_out], train[1][~held_out])
    for part, limit in (("train", options.limit_train), ("test", options.limit_test)):
        x, y = parts[part]
        if limit is not None and limit < len(y):
            chosen = stratified_indices(y, limit, options.seed)
            parts[part] = (x[chosen], y[chosen])
    fingerprint = _fingerprint({f"{part}_{key}": t for part in parts for key, t in zip("xy", parts[part], strict=True)})
    mean, deviation = _channel_statistics(parts["train"][0])
    ready = {part: (x.to(torch.float32).sub_(mean).div_(deviation), y) for part, (x, y) in parts.items()}
    validation = ready.get("validation")
    result = Dataset(
        name=name,
        train_x=ready["train"][0],
        train_y=ready["train"][1],
        test_x=ready["test"][0],
        test_y=ready["test"][1],
        validation_x=None if validation is None else validation[0],
        validation_y=None if validation is None else validation[1],
        classes=classes,
        shape=tuple(train[0].shape[1:]),
        source=source,
        fingerprint=fingerprint,
    )
    return result.flat() if options.flatten else result


def build_text(name: str, text: str, source: str, options: TextOptions) -> TextDataset:
    """Make a character dataset of one text, split by position.

    Raises
    ------
    DataError
        If a part of the text is too short for one window of `options.length` characters.
    """
    vocabulary = tuple(sorted(set(text)))
    ids = encode(text, vocabulary)
    first_test = len(ids) - round(options.test_share * len(ids))
    first_validation = first_test - round(options.validation * first_test)
    train_ids, validation_ids, test_ids = ids.tensor_split([first_validation, first_test])
    train_x, train_y = blocks(train_ids, options.length, "train")
    test_x, test_y = blocks(test_ids, options.length, "test")
    validation = blocks(validation_ids, options.length, "validation") if options.validation else None
    parts = {"train": train_ids, "validation": validation_ids, "test": test_ids}
    return TextDataset(
        name=name,
        train_x=train_x[: options.limit_train],
        train_y=train_y[: options.limit_train],
        test_x=test_x[: options.limit_test],
        test_y=test_y[: options.limit_test],
        validation_x=None if validation is None else validation[0],
        validation_y=None if validation is None else validation[1],
        classes=len(vocabulary),
        shape=(options.length,),
        source=source,
        fingerprint=_fingerprint(
            {
                "vocabulary": torch.tensor([ord(c) for c in vocabulary]),
                **parts,
                "train_x": train_x[: options.limit_train],
                "test_x": test_x[: options.limit_test],
            }
        ),
        vocabulary=vocabulary,
        train_ids=train_ids,
        test_ids=test_ids,
    )


def _check_part(name: str, part: str, x: Tensor, y: Tensor, classes: int) -> None:
    if x.dtype != torch.uint8 or x.dim() != 4:
        raise DataError(
            f"dataset {name!r}: {part} images must be uint8 [n, channels, height, width], got {x.dtype} {list(x.shape)}"
        )
    if y.dtype != torch.int64 or y.dim() != 1:
        raise DataError(f"dataset {name!r}: {part} labels must be int64 [n], got {y.dtype} {list(y.shape)}")
    if len(x) != len(y):
        raise DataError(f"dataset {name!r}: {len(x)} {part} images but {len(y)} labels; the counts must agree")
    if x.numel() == 0:
        raise DataError(f"dataset {name!r}: the {part} part is empty")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"dataset {name!r}: {part} labels must lie in 0..{classes - 1} for {classes} classes, "
            f"found {low if low < 0 else high}"
        )


def _channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, `[channels, 1, 1]`, float32.

    From exact integer counts of the 256 values, so they do not depend on the order of summation or the
    machine. A constant channel gets deviation 1.
    """
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.int64)
        for piece in torch.split(images[:, channel], _CHUNK):
            counts += torch.bincount(piece.flatten().to(torch.int64), minlength=256)
        total = int(counts.sum())
        first = sum(value * count for value, count in enumerate(counts.tolist()))
        second = sum(value * value * count for value, count in enumerate(counts.tolist()))
        means.append(first / total)
        deviations.append(math.sqrt(total * second - first * first) / total or 1.0)
    return torch.tensor(means).reshape(-1, 1, 1), torch.tensor(deviations).reshape(-1, 1, 1)


def _fingerprint(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()

"""Images in parquet files as data hubs store them: a struct column `img` and an integer label."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphnet.errors import DataError
from graphnet.study.datasets.files import HOW_TO_POINT, import_extra

__all__ = ["ImageShard", "find_parquet", "read_image_parquet"]

_SHARD = re.compile(r"-(\d+)-of-(\d+)\.parquet$")


@dataclass(frozen=True, eq=False)
class ImageShard:
    """The rows of one file.

    Attributes
    ----------
    images
        uint8 `[n, 3, height, width]`.
    labels
        int64 `[n]`.
    formats
        How the images were stored: ``JPEG``, ``PNG`` or both.
    """

    images: Tensor
    labels: Tensor
    formats: frozenset[str]


def find_parquet(name: str, folders: Sequence[Path]) -> tuple[list[Path], list[Path]] | None:
    """Find the training and test shards in the first folder that has any.

    Raises
    ------
    DataError
        If that folder lacks one part, or a shard that the file names announce (``-00000-of-00002``).
    """
    for folder in folders:
        parts = [sorted(folder.glob(f"{part}-*.parquet")) for part in ("train", "test")]
        if not any(parts):
            continue
        for part, paths in zip(("train", "test"), parts, strict=True):
            if not paths:
                raise DataError(f"dataset {name!r}: {folder} has no {part}-*.parquet. {HOW_TO_POINT}")
            _check_shards(name, folder, part, paths)
        return parts[0], parts[1]
    return None


def _check_shards(name: str, folder: Path, part: str, paths: list[Path]) -> None:
    numbers = [match.groups() for path in paths if (match := _SHARD.search(path.name))]
    for total in {total for _, total in numbers}:
        there = {int(number) for number, of in numbers if of == total}
        missing = [number for number in range(int(total)) if number not in there]
        if missing:
            raise DataError(
                f"dataset {name!r}: shard {folder / f'{part}-{missing[0]:05d}-of-{total}.parquet'} "
                f"is missing ({len(there)} of {int(total)} found)"
            )


def read_image_parquet(path: Path, label: str, size: tuple[int, int]) -> ImageShard:
    """Read one shard.

    Parameters
    ----------
    path
        The parquet file.
    label
        Name of the integer label column.
    size
        Height and width that every image must have, in pixels.

    Raises
    ------
    DataError
        If the file is damaged, a column is missing or of another type, an image cannot be decoded or has
        another size, or pyarrow or Pillow is missing.
    """
    arrow: Any = import_extra("pyarrow", f"reading {path.name}")
    parquet: Any = import_extra("pyarrow.parquet", f"reading {path.name}")
    pictures: Any = import_extra("PIL.Image", f"decoding the images of {path.name}")
    images: list[Tensor] = []
    formats: set[str] = set()
    labels: list[int | None] = []
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(arrow, path, file.schema_arrow, label)
            for batch in file.iter_batches(1024, columns=["img", label]):
                for entry in batch.column("img").to_pylist():
                    content = entry["bytes"] if entry else None
                    picture, stored_as = _decode(pictures, path, len(images), content, size)
                    images.append(picture)
                    formats.add(stored_as)
                labels.extend(batch.column(label).to_pylist())
    except (arrow.lib.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a readable parquet file ({error}); it may be truncated, copy it again"
        ) from error
    if not images:
        raise DataError(f"{path} has no rows")
    if None in labels:
        raise DataError(f"{path}: row {labels.index(None)} has no {label!r}")
    return ImageShard(torch.stack(images), torch.tensor(labels, dtype=torch.int64), frozenset(formats))


def _check_columns(arrow: Any, path: Path, schema: Any, label: str) -> None:
    """Refuse a file whose columns are not `img: struct<bytes: binary>` and an integer label."""
    columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
    types = arrow.types
    for column in ("img", label):
        if len(schema.get_all_field_indices(column)) != 1:
            raise DataError(f"{path}: expected one column {column!r}, found the columns {columns}")
    image = schema.field("img").type
    position = image.get_field_index("bytes") if types.is_struct(image) else -1
    if position < 0 or not (types.is_binary(image[position].type) or types.is_large_binary(image[position].type)):
        raise DataError(f"{path}: column 'img' must be a struct with binary `bytes`, found {image}")
    if not types.is_integer(schema.field(label).type):
        raise DataError(f"{path}: column {label!r} must be of an integer type, found {schema.field(label).type}")


def _decode(pictures: Any, path: Path, row: int, content: bytes | None, size: tuple[int, int]) -> tuple[Tensor, str]:
    if not content:
        raise DataError(f"{path}: row {row} has no image bytes")
    try:
        with pictures.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
            if picture.size != (size[1], size[0]):  # read from the header, before anything is decoded
                raise DataError(
                    f"{path}: the image of row {row} is {picture.size[1]} x {picture.size[0]} pixels, "
                    f"expected {size[0]} x {size[1]}"
                )
            stored_as = str(picture.format)
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, pictures.DecompressionBombError) as error:
        raise DataError(f"{path}: the image of row {row} is not a readable JPEG or PNG ({error})") from error
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), stored_as

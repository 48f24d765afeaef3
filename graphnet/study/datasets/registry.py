"""The registry of datasets: a name, a loader, and the options the loader takes.

A loader is ``loader(root, options) -> Dataset``; `options` is a frozen dataclass whose fields are the keyword
options of :func:`load_dataset`, so an option that a dataset does not have is an error that names the ones it
has.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from graphnet.errors import DataError
from graphnet.study.datasets.base import Dataset, ImageOptions, TextDataset, TextOptions

__all__ = ["dataset", "dataset_names", "load_dataset"]

Options = TypeVar("Options", ImageOptions, TextOptions)
Loader = Callable[[Path | None, Options], Dataset]


@dataclasses.dataclass(frozen=True)
class _Entry:
    load: Callable[[Path | None, Any], Dataset]
    options: type[ImageOptions] | type[TextOptions]


_REGISTRY: dict[str, _Entry] = {}


@overload
def dataset(name: str) -> Callable[[Loader[ImageOptions]], Loader[ImageOptions]]: ...


@overload
def dataset(name: str, options: type[Options]) -> Callable[[Loader[Options]], Loader[Options]]: ...


def dataset(name: str, options: type[Any] = ImageOptions) -> Callable[[Loader[Any]], Loader[Any]]:
    """Register a loader under `name`.

    Parameters
    ----------
    name
        What :func:`load_dataset` calls it.
    options
        The dataclass of keyword options: :class:`ImageOptions` or :class:`TextOptions`.

    Raises
    ------
    DataError
        If the name is taken.

    Examples
    --------
    >>> import torch
    >>> from graphnet.study.datasets import ImageOptions, build_images, dataset, load_dataset
    >>> @dataset("two-dots")
    ... def two_dots(root, options):
    ...     x, y = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1), torch.tensor([0, 1])
    ...     return build_images("two-dots", (x, y), (x, y), 2, "made here", options)
    >>> load_dataset("two-dots", flatten=True).train_x.tolist()
    [[-1.0], [1.0]]
    """

    def register(load: Loader[Any]) -> Loader[Any]:
        if name in _REGISTRY:
            raise DataError(f"a dataset named {name!r} is registered already; choose another name")
        _REGISTRY[name] = _Entry(load, options)
        return load

    return register


def dataset_names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_REGISTRY))


@overload
def load_dataset(
    name: Literal["text", "tinyshakespeare"], root: str | os.PathLike[str] | None = None, **options: Any
) -> TextDataset: ...


@overload
def load_dataset(name: str, root: str | os.PathLike[str] | None = None, **options: Any) -> Dataset: ...


def load_dataset(name: str, root: str | os.PathLike[str] | None = None, **options: Any) -> Dataset:
    """Load a dataset from local files.

    Parameters
    ----------
    name
        One of :func:`dataset_names`: ``digits`` needs no files; ``mnist``, ``fashion-mnist``, ``cifar10``,
        ``cifar100``, ``tinyshakespeare`` and ``text`` are read from `root`.
    root
        The folder that holds the dataset's folder, or that folder itself; by default the environment variable
        ``GRAPHNET_DATA``.
    **options
        Fields of :class:`ImageOptions` (`limit_train`, `limit_test`, `validation`, `flatten`, `seed`) or, for
        text, of :class:`TextOptions`.

    Returns
    -------
    Dataset
        Standardised float32 images `[n, channels, height, width]` and int64 labels `[n]`; a
        :class:`TextDataset` for text.

    Raises
    ------
    DataError
        If the name or an option is unknown, a file is missing or damaged, or a library of the ``study`` extra
        is missing.

    Examples
    --------
    >>> data = load_dataset("digits", limit_train=100)
    >>> tuple(data.train_x.shape), data.classes
    ((100, 1, 8, 8), 10)
    """
    entry = _REGISTRY.get(name)
    if entry is None:
        close = difflib.get_close_matches(name, _REGISTRY, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise DataError(f"no dataset is named {name!r}{hint}; there are: {', '.join(dataset_names())}")
    known = [field.name for field in dataclasses.fields(entry.options)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise DataError(f"dataset {name!r} has no option {unknown[0]!r}; it takes: {', '.join(known)}")
    chosen = root if root is not None else os.environ.get("GRAPHNET_DATA") or None
    return entry.load(None if chosen is None else Path(chosen).expanduser(), entry.options(**options))

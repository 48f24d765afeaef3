"""What a dataset is, and how raw images or text become one.

Loaders hand over 8-bit images or a string; subsets, splits, standardisation and the fingerprint are made
here, the same way for every source.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from graphnet.errors import DataError

__all__ = ["Dataset", "ImageOptions", "TextDataset", "TextOptions", "blocks", "encode"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Dataset:
    """Training and test samples, ready for a network.

    Attributes
    ----------
    name
        The name it was loaded by.
    train_x, test_x
        Inputs `[n, *shape]`: float32 images, standardised per channel with the training part's mean and
        standard deviation, or int64 character ids.
    train_y, test_y
        Targets: int64 labels `[n]`, or the next characters `[n, length]`.
    validation_x, validation_y
        The share of the training samples that was held out, or None.
    classes
        Number of classes; of characters for text.
    shape
        Shape of one sample.
    source
        Where the data came from, in words.
    fingerprint
        sha256 (hex) over the stored values of every part before standardisation, with shapes and labels:
        equal fingerprints mean equal data on any machine. Flattening does not change it.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    shape: tuple[int, ...]
    source: str
    fingerprint: str
    validation_x: Tensor | None = None
    validation_y: Tensor | None = None

    def flat(self) -> Dataset:
        """The same samples as vectors: inputs `[n, features]`, sharing storage.

        Examples
        --------
        >>> from graphnet.study.datasets import load_dataset
        >>> load_dataset("digits").flat().shape
        (64,)
        """
        return dataclasses.replace(
            self,
            train_x=self.train_x.flatten(1),
            test_x=self.test_x.flatten(1),
            validation_x=None if self.validation_x is None else self.validation_x.flatten(1),
            shape=(math.prod(self.shape),),
        )

    def __repr__(self) -> str:
        held_out = "" if self.validation_y is None else f", validation={len(self.validation_y)}"
        return (
            f"{type(self).__name__}({self.name!r}, train={len(self.train_y)}{held_out}, "
            f"test={len(self.test_y)}, shape={self.shape}, classes={self.classes}, "
            f"fingerprint={self.fingerprint[:12]!r})"
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TextDataset(Dataset):
    """Characters of one text; the first part trains, the last part tests.

    `train_x` and `train_y` are the windows of :meth:`blocks` at the length asked for.

    Attributes
    ----------
    vocabulary
        The characters of the whole text, sorted; a character's id is its position.
    train_ids, test_ids
        int64 `[characters]`, each part as one stream.
    """

    vocabulary: tuple[str, ...]
    train_ids: Tensor
    test_ids: Tensor

    def flat(self) -> Dataset:
        """Itself: a window of characters is a vector already."""
        return self

    def encode(self, text: str) -> Tensor:
        """Character ids of `text`, int64 `[len(text)]`.

        Raises
        ------
        DataError
            If a character is not in the vocabulary.
        """
        return encode(text, self.vocabulary)

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of character ids; the inverse of :meth:`encode`.

        Raises
        ------
        DataError
            If an id is outside the vocabulary.
        """
        values = ids.flatten().tolist() if isinstance(ids, Tensor) else list(ids)
        wrong = [value for value in values if not 0 <= value < len(self.vocabulary)]
        if wrong:
            raise DataError(f"character id {wrong[0]} is outside the vocabulary 0..{len(self.vocabulary) - 1}")
        return "".join(self.vocabulary[value] for value in values)

    def blocks(self, length: int, part: Literal["train", "test"] = "train") -> tuple[Tensor, Tensor]:
        """Consecutive windows and, for each position, the character that follows.

        Parameters
        ----------
        length
            Characters in a window.
        part
            Which part of the text.

        Returns
        -------
        inputs, targets
            int64 `[windows, length]` each; windows do not overlap, and a shorter rest is left out.

        Raises
        ------
        DataError
            If `length` is below 1, or no window fits.
        """
        if part not in ("train", "test"):
            raise DataError(f"a text has the parts 'train' and 'test', got {part!r}")
        return blocks(self.train_ids if part == "train" else self.test_ids, length, part)


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Options of image datasets.

    Attributes
    ----------
    limit_train, limit_test
        At most this many samples, with the classes in proportion; None for all.
    validation
        Share of the training samples in [0, 1) to hold out, with the classes in proportion; taken before
        `limit_train`.
    flatten
        Give vectors instead of images.
    seed
        Decides which samples the three options above choose.
    """

    limit_train: int | None = None
    limit_test: int | None = None
    validation: float = 0.0
    flatten: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check_limits(self.limit_train, self.limit_test)
        _check_share("validation", self.validation)


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Options of text datasets.

    Attributes
    ----------
    length
        Characters in a window.
    file
        Name of the text file inside the dataset's folder.
    test_share
        Share of the text in (0, 1), from its end, that tests.
    validation
        Share of the training text in [0, 1), from its end, to hold out.
    limit_train, limit_test
        At most this many windows, from the start of each part; None for all.
    """

    length: int = 64
    file: str = "input.txt"
    test_share: float = 0.1
    validation: float = 0.0
    limit_train: int | None = None
    limit_test: int | None = None

    def __post_init__(self) -> None:
        _check_limits(self.limit_train, self.limit_test)
        _check_share("validation", self.validation)
        _check_share("test_share", self.test_share)
        if self.test_share == 0:
            raise DataError("option 'test_share' must be above 0: a text needs a part to test on")


def encode(text: str, vocabulary: tuple[str, ...]) -> Tensor:
    """Positions of the characters of `text` in `vocabulary`, int64 `[len(text)]`."""
    position = {character: index for index, character in enumerate(vocabulary)}
    try:
        return torch.tensor([position[character] for character in text], dtype=torch.int64)
    except KeyError as error:
        raise DataError(
            f"the character {error.args[0]!r} is not among the {len(vocabulary)} of the vocabulary"
        ) from error


def blocks(ids: Tensor, length: int, part: str) -> tuple[Tensor, Tensor]:
    """Windows of a stream of ids and the ids that follow, int64 `[windows, length]`; `part` is for errors."""
    if length < 1:
        raise DataError(f"a window needs at least 1 character, got length {length}")
    windows = (len(ids) - 1) // length
    if windows < 1:
        raise DataError(
            f"the {part} part has {len(ids)} characters, too few for one window of {length} and the character after it"
        )
    stop = windows * length
    return ids[:stop].reshape(windows, length), ids[1 : stop + 1].reshape(windows, length)


def _check_limits(*limits: object) -> None:
    for option, limit in zip(("limit_train", "limit_test"), limits, strict=True):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise DataError(f"option {option!r} must be a whole number of at least 1, or None for all; got {limit!r}")


def _check_share(option: str, share: object) -> None:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise DataError(f"option {option!r} must be a share in [0, 1), got {share!r}")

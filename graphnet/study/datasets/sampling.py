"""Which samples, in which order: seeded stratified subsets and resumable mini-batches.

Both draw from generators seeded by a hash of what they depend on, so no random state has to be stored to
resume and the global random state is neither read nor moved.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from graphnet.errors import DataError

__all__ = ["BatchStream", "stratified_indices"]


def _permutation(n: int, *key: object) -> Tensor:
    """A permutation of ``range(n)`` that depends on `key` only."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
    return torch.randperm(n, generator=generator)


@dataclass(frozen=True)
class BatchStream:
    """Mini-batches of sample indices whose order in epoch `k` depends only on `(seed, k)`.

    Parameters
    ----------
    n
        Number of samples.
    batch_size
        Samples in a batch; the last batch of an epoch may be smaller.
    seed
        Any integer.
    drop_last
        Leave out a smaller last batch.

    Raises
    ------
    DataError
        If `n` or `batch_size` is below 1, or if `drop_last` would leave no batch.

    Examples
    --------
    >>> stream = BatchStream(n=5, batch_size=2, seed=0)
    >>> [len(batch) for batch in stream.epoch(0)]
    [2, 2, 1]
    >>> bool((stream.epoch(3)[1] == stream.epoch(3, start=1)[0]).all())
    True
    """

    n: int
    batch_size: int
    seed: int
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch_size < 1:
            raise DataError(
                f"mini-batches need n >= 1 samples and batch_size >= 1, got n={self.n}, batch_size={self.batch_size}"
            )
        if self.drop_last and self.n < self.batch_size:
            raise DataError(
                f"drop_last leaves no batch: {self.n} samples are fewer than one batch of {self.batch_size}; "
                f"use a batch_size of at most {self.n}, or drop_last=False"
            )

    def __len__(self) -> int:
        """Number of batches in one epoch."""
        return self.n // self.batch_size if self.drop_last else -(-self.n // self.batch_size)

    def epoch(self, k: int, start: int = 0) -> list[Tensor]:
        """The batches of epoch `k` from batch `start` on: int64 index tensors, `[batch]` each.

        Raises
        ------
        DataError
            If `k` is negative or `start` is not in `0 .. len(self)`.
        """
        if k < 0 or not 0 <= start <= len(self):
            raise DataError(f"epoch must be >= 0 and start in 0..{len(self)}, got epoch {k}, start {start}")
        order = _permutation(self.n, "batches", self.seed, k)
        return list(torch.split(order, self.batch_size))[start : len(self)]


def stratified_indices(labels: Tensor, count: int, seed: int) -> Tensor:
    """Choose `count` samples with the classes in the proportions of `labels`.

    Shares are rounded by largest remainder, ties to the smaller class; within a class a larger `count`
    extends a smaller one.

    Parameters
    ----------
    labels
        int64 `[samples]`.
    count
        How many; all samples if there are fewer.
    seed
        Any integer.

    Returns
    -------
    Tensor
        Ascending int64 indices, `[min(count, samples)]`.

    Raises
    ------
    DataError
        If `count` is below 1.

    Examples
    --------
    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> labels[stratified_indices(labels, 3, seed=0)].tolist()
    [0, 0, 1]
    """
    if count < 1:
        raise DataError(f"a subset needs at least 1 sample, got {count}")
    total = len(labels)
    count = min(count, total)
    classes, sizes = torch.unique(labels, return_counts=True)
    quotas = {c: divmod(count * size, total) for c, size in zip(classes.tolist(), sizes.tolist(), strict=True)}
    spare = count - sum(whole for whole, _ in quotas.values())
    favoured = set(sorted(quotas, key=lambda c: (-quotas[c][1], c))[:spare])
    chosen = []
    for c, (whole, _) in quotas.items():
        members = (labels == c).nonzero().flatten()
        order = _permutation(len(members), "stratified", seed, c)
        chosen.append(members[order[: whole + (c in favoured)]])
    return torch.cat(chosen).sort().values

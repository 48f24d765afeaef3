"""The 8x8 handwritten digits that ship with scikit-learn: no files needed, the default of studies."""

from __future__ import annotations

from pathlib import Path

import torch

from graphnet.study.datasets.base import Dataset, ImageOptions
from graphnet.study.datasets.build import build_images
from graphnet.study.datasets.files import import_extra
from graphnet.study.datasets.registry import dataset
from graphnet.study.datasets.sampling import stratified_indices

__all__ = ["load_digits"]

_TEST_SAMPLES = 360  # a fifth of 1,797, as scikit-learn's own examples hold out
_SPLIT_SEED = 0  # fixed: the split is part of the dataset, not a setting


@dataset("digits")
def load_digits(root: Path | None, options: ImageOptions) -> Dataset:
    """Load 1,437 training and 360 test digits, `[1, 8, 8]`, with values 0 to 16 before standardisation."""
    bunch = import_extra("sklearn.datasets", "dataset 'digits'").load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    tested = torch.zeros(len(labels), dtype=torch.bool)
    tested[stratified_indices(labels, _TEST_SAMPLES, _SPLIT_SEED)] = True
    return build_images(
        "digits",
        (images[~tested], labels[~tested]),
        (images[tested], labels[tested]),
        classes=10,
        source="scikit-learn load_digits (Alpaydin & Kaynak, 1998), fixed stratified split",
        options=options,
    )

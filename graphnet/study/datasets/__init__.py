"""Datasets by name, read from local files: ``load_dataset("digits")``.

Nothing is ever downloaded. ``digits`` ships with scikit-learn; every other dataset is read from the folder
that ``root=`` or the environment variable ``GRAPHNET_DATA`` names. A loader is one decorated function
(:func:`dataset`) in the file of its source family.
"""

from __future__ import annotations

from graphnet.study.datasets import cifar, digits, mnist, text
from graphnet.study.datasets.base import Dataset, ImageOptions, TextDataset, TextOptions
from graphnet.study.datasets.build import build_images, build_text
from graphnet.study.datasets.registry import dataset, dataset_names, load_dataset
from graphnet.study.datasets.sampling import BatchStream, stratified_indices

__all__ = [
    "BatchStream",
    "Dataset",
    "ImageOptions",
    "TextDataset",
    "TextOptions",
    "build_images",
    "build_text",
    "cifar",
    "dataset",
    "dataset_names",
    "digits",
    "load_dataset",
    "mnist",
    "stratified_indices",
    "text",
]

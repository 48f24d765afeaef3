"""Datasets: every file form read back, everything bad refused with a useful message, streams that resume."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import pickle  # noqa: TID251 - writes the files, good and malicious, that the restricted reader is tried on
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from graphnet.errors import DataError
from graphnet.study.datasets import (
    BatchStream,
    Dataset,
    ImageOptions,
    TextDataset,
    build_images,
    dataset,
    dataset_names,
    load_dataset,
    stratified_indices,
)
from graphnet.study.datasets.plain_pickle import load_plain_pickle

IDX_NAMES = {
    ("train", "x"): "train-images-idx3-ubyte",
    ("train", "y"): "train-labels-idx1-ubyte",
    ("test", "x"): "t10k-images-idx3-ubyte",
    ("test", "y"): "t10k-labels-idx1-ubyte",
}


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAPHNET_DATA", raising=False)


def raw(n: int, shape: tuple[int, ...], classes: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(seed)
    return numbers.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % classes


def standardised(x: np.ndarray, train: np.ndarray) -> Tensor:
    """The definition, in float64: per channel, with the training part's statistics."""
    mean = train.astype(np.float64).mean((0, 2, 3), keepdims=True)
    deviation = train.astype(np.float64).std((0, 2, 3), keepdims=True)
    return torch.from_numpy((x - mean) / deviation).float()


def assert_holds(data: Dataset, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> None:
    torch.testing.assert_close(data.train_x, standardised(train[0], train[0]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(data.test_x, standardised(test[0], train[0]), rtol=1e-5, atol=1e-5)
    assert data.train_y.tolist() == train[1].tolist()
    assert data.test_y.tolist() == test[1].tolist()
    assert data.train_y.dtype == torch.int64


# ---- digits, options, registry


def test_digits_need_no_files_and_are_always_the_same() -> None:
    data, again = load_dataset("digits"), load_dataset("digits", root="/nowhere")
    assert (len(data.train_y), len(data.test_y), data.shape, data.classes) == (1437, 360, (1, 8, 8), 10)
    assert data.fingerprint == again.fingerprint
    assert torch.equal(data.train_x, again.train_x)
    # Stratified: each class keeps its share of the 1,797, to one sample.
    everything = torch.cat([data.train_y, data.test_y]).bincount()
    assert (data.test_y.bincount() - everything * 360 / 1797).abs().max() < 1
    # No sample is in both parts and none is lost: the samples of load_digits are all different.
    rows = torch.cat([data.flat().train_x, data.flat().test_x])
    assert len(torch.unique(rows, dim=0)) == 1797


def test_training_part_is_standardised() -> None:
    data = load_dataset("digits", limit_train=200)
    assert data.train_x.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train_x.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_flat_keeps_the_samples() -> None:
    data = load_dataset("digits", validation=0.1)
    flat = load_dataset("digits", validation=0.1, flatten=True)
    assert flat.shape == (64,)
    assert torch.equal(flat.train_x, data.train_x.flatten(1))
    assert data.flat().validation_x is not None
    assert data.flat().validation_x.shape == (144, 64)
    assert flat.fingerprint == data.fingerprint


def test_limits_and_validation_are_stratified_disjoint_and_seeded() -> None:
    data = load_dataset("digits", limit_train=100, limit_test=50, validation=0.25)
    assert data.validation_y is not None
    assert data.validation_x is not None
    assert (len(data.train_y), len(data.validation_y), len(data.test_y)) == (100, 359, 50)
    assert data.train_y.bincount().min() >= 9
    assert data.test_y.bincount().max() <= 6
    both = torch.cat([data.flat().train_x, data.validation_x.flatten(1)])
    assert len(torch.unique(both, dim=0)) == 459
    other = load_dataset("digits", limit_train=100, limit_test=50, validation=0.25, seed=1)
    assert other.fingerprint != data.fingerprint
    assert load_dataset("digits", limit_train=10_000).fingerprint == load_dataset("digits").fingerprint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"limit_train": 0}, "limit_train"),
        ({"limit_test": 2.5}, "limit_test"),
        ({"validation": 1.0}, "validation"),
        ({"validation": 0.9999}, "leaves none"),
        ({"limit": 5}, "no option 'limit'; it takes: limit_train"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        load_dataset("digits", **options)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"did you mean 'fashion-mnist'.*cifar10, cifar100, digits"):
        load_dataset("fashion-mnst")
    assert set(dataset_names()) >= {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "text"}


def test_a_name_is_registered_once() -> None:
    with pytest.raises(DataError, match="registered already"):
        dataset("digits")(lambda root, options: load_dataset("digits"))


@pytest.mark.parametrize("library", ["sklearn", "pyarrow"])
def test_a_missing_library_says_what_to_install(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "cifar10", {"train": raw(2, (3, 32, 32)), "test": raw(2, (3, 32, 32))})
    for module in [m for m in sys.modules if m == library or m.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)  # how the import system marks what cannot be imported
    with pytest.raises(DataError, match=rf"{library}.*pip install graphnet-engine\[study\]"):
        load_dataset("digits" if library == "sklearn" else "cifar10", tmp_path)


def test_images_that_do_not_fit_are_refused() -> None:
    x, y = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    good = (x, y)
    cases: list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], str]] = [
        ((x.float(), y), good, "uint8"),
        ((x, y.int()), good, "int64"),
        ((x, y[:3]), good, "4 training images but 3 labels"),
        ((x[:0], y[:0]), good, "empty"),
        ((x, y + 1), good, r"0\.\.1 for 2 classes, found 2"),
        (good, (x, y - 1), "test labels.*found -1"),
        (good, (x[..., :1], y), "shape"),
    ]
    for train, test, says in cases:
        with pytest.raises(DataError, match=says):
            build_images("mine", train, test, 2, "here", ImageOptions())
    # A constant image has no spread: it becomes zeros, not NaN.
    assert build_images("mine", good, good, 2, "here", ImageOptions()).train_x.abs().max() == 0


def test_a_fingerprint_follows_every_value() -> None:
    x, y = raw(6, (1, 2, 2), classes=2)
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    changed = images.clone()
    changed[3, 0, 1, 1] ^= 1
    prints = {
        build_images("mine", train, test, 2, "here", ImageOptions()).fingerprint
        for train, test in [
            ((images, labels), (images, labels)),
            ((changed, labels), (images, labels)),
            ((images, labels), (changed, labels)),
            ((images, 1 - labels), (images, labels)),
            ((images.reshape(6, 1, 1, 4), labels), (images.reshape(6, 1, 1, 4), labels)),
        ]
    }
    assert len(prints) == 5


# ---- IDX


def idx_bytes(values: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_idx(folder: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]], packed: bool = False) -> None:
    folder.mkdir(parents=True)
    for (part, which), name in IDX_NAMES.items():
        x, y = parts[part]
        content = idx_bytes(x[:, 0] if which == "x" else y)
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("mnist", "."),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_files_are_read_from_the_usual_folders(name: str, folder: str, packed: bool, tmp_path: Path) -> None:
    parts = {"train": raw(20, (1, 5, 4), seed=1), "test": raw(10, (1, 5, 4), seed=2)}
    root = tmp_path / "root"
    write_idx(root / folder, parts, packed)
    assert_holds(load_dataset(name, root), parts["train"], parts["test"])


def test_the_environment_names_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"train": raw(20, (1, 5, 4)), "test": raw(10, (1, 5, 4))}
    write_idx(tmp_path / "mnist", parts)
    monkeypatch.setenv("GRAPHNET_DATA", str(tmp_path))
    assert_holds(load_dataset("mnist"), parts["train"], parts["test"])


def test_mnist_in_the_root_itself_is_not_taken_for_fashion(tmp_path: Path) -> None:
    root = tmp_path / "digits-here"
    write_idx(root, {"train": raw(4, (1, 2, 2)), "test": raw(4, (1, 2, 2))})
    with pytest.raises(DataError, match="not found"):
        load_dataset("fashion-mnist", root)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "tinyshakespeare", "text"])
def test_missing_data_says_where_it_is_expected_and_how_to_point_to_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder is named.*GRAPHNET_DATA.*`root:`"):
        load_dataset(name)
    with pytest.raises(DataError, match=r"nowhere does not exist.*GRAPHNET_DATA"):
        load_dataset(name, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"(?s)Tried:\n  .*GRAPHNET_DATA") as caught:
        load_dataset(name, tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_one_missing_file_is_named_with_the_paths_tried(tmp_path: Path) -> None:
    write_idx(tmp_path / "mnist", {"train": raw(4, (1, 2, 2)), "test": raw(4, (1, 2, 2))})
    gone = tmp_path / "mnist" / IDX_NAMES["test", "y"]
    gone.unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte was not found\.") as caught:
        load_dataset("mnist", tmp_path)
    assert str(gone) in str(caught.value)
    assert f"{gone}.gz" in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content[:-1], "truncated"),
        (lambda content: content[:9], "header has 9 of 16 bytes"),
        (lambda content: b"", "magic number 0x00000803, found 0x$"),
        (lambda content: content + b"\0", "past its end"),
        (
            lambda content: b"\0\0\x0d\3" + content[4:],
            "expected the magic number 0x00000803, found 0x00000d03",
        ),
        (lambda content: content[:4] + b"\xff" * 12 + content[16:], "states.*bytes, more than"),
        (lambda content: content[:4] + b"\0\0\xff\xff" + content[8:], "truncated"),
        (lambda content: gzip.compress(content)[:-12], "damaged"),
        (lambda content: gzip.compress(content[:-1]), "truncated"),
    ],
)
def test_damaged_idx_files_are_refused(damage: Callable[[bytes], bytes], says: str, tmp_path: Path) -> None:
    write_idx(tmp_path / "mnist", {"train": raw(4, (1, 2, 2)), "test": raw(4, (1, 2, 2))})
    path = tmp_path / "mnist" / IDX_NAMES["train", "x"]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=says) as caught:
        load_dataset("mnist", tmp_path)
    assert str(path) in str(caught.value)


def test_idx_counts_and_labels_are_checked(tmp_path: Path) -> None:
    (x, y), test = raw(4, (1, 2, 2)), raw(4, (1, 2, 2))
    write_idx(tmp_path / "a" / "mnist", {"train": (x, y[:3]), "test": test})
    with pytest.raises(DataError, match=r"4 images but .* 3 labels"):
        load_dataset("mnist", tmp_path / "a")
    write_idx(tmp_path / "b" / "mnist", {"train": (x, y + 7), "test": test})
    with pytest.raises(DataError, match=r"0\.\.9 for 10 classes, found 10"):
        load_dataset("mnist", tmp_path / "b")


# ---- CIFAR: pickle


def cifar_parts(classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        "train": raw(max(20, classes), (3, 32, 32), classes, seed=3),
        "test": raw(10, (3, 32, 32), classes, seed=4),
    }


def write_pickles(folder: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]], protocol: int, fine: bool) -> None:
    folder.mkdir(parents=True)
    files = (
        {"train": ["train"], "test": ["test"]}
        if fine
        else {
            "train": [f"data_batch_{i}" for i in range(1, 6)],
            "test": ["test_batch"],
        }
    )
    for part, names in files.items():
        x, y = parts[part]
        for name, xs, ys in zip(names, np.array_split(x, len(names)), np.array_split(y, len(names)), strict=True):
            content = {b"data": xs.reshape(len(xs), -1), b"fine_labels" if fine else b"labels": ys.tolist()}
            if fine:
                content[b"coarse_labels"] = [0] * len(ys)
            (folder / name).write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("fine", [False, True])
def test_cifar_pickles_of_every_protocol(protocol: int, fine: bool, tmp_path: Path) -> None:
    parts = cifar_parts(100 if fine else 10)
    write_pickles(tmp_path / ("cifar-100-python" if fine else "cifar-10-batches-py"), parts, protocol, fine)
    data = load_dataset("cifar100" if fine else "cifar10", tmp_path)
    assert_holds(data, parts["train"], parts["test"])
    assert data.classes == (100 if fine else 10)


def python2_pickle(values: np.ndarray, labels: list[int]) -> bytes:
    """A CIFAR batch as Python 2 wrote it (protocol 2, 8-bit strings), opcode by opcode."""
    content = values.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01"
        + b"M"
        + struct.pack("<H", values.shape[0])
        + b"M"
        + struct.pack("<H", values.shape[1])
        + b"\x86"
        + b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89T"
        + struct.pack("<I", len(content))
        + content
        + b"tb"
    )
    listed = b"](" + b"".join(b"K" + bytes((label,)) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + listed + b"u."


def test_the_original_python_2_form_is_read(tmp_path: Path) -> None:
    x, y = raw(3, (3072,))
    (tmp_path / "batch").write_bytes(python2_pickle(x, y.tolist()))
    content = load_plain_pickle(tmp_path / "batch")
    assert (content[b"data"] == x).all()
    assert content[b"labels"] == [0, 1, 2]


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = {
        "fortran": np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)),
        "long": np.array([-1, 1 << 40]),
        "int": np.array([[7]], dtype=np.int32),
    }
    for protocol in (2, 4, 5):
        (tmp_path / "file").write_bytes(pickle.dumps(arrays, protocol))
        content = load_plain_pickle(tmp_path / "file")
        keys = {key if isinstance(key, str) else key.decode(): value for key, value in content.items()}
        for name, array in arrays.items():
            assert keys[name].dtype == array.dtype
            assert (keys[name] == array).all()


class Calls:
    """Pickles as a call of `function`, which is how a malicious file runs code."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def malicious(marker: Path) -> dict[str, bytes]:
    """Pickles that would leave `marker` behind, exhaust memory, or reach past plain data."""
    command = f"touch {marker}"
    state = b"cnumpy\nndarray\nN}U\x04evilK\x01s\x86b."
    return {
        "system": pickle.dumps({b"data": Calls(os.system, command)}),
        "system, in the batch's list": pickle.dumps({b"data": [1, [Calls(os.system, command)]]}),
        "exec": pickle.dumps(Calls(exec, f"open({str(marker)!r}, 'w')")),
        "open": pickle.dumps(Calls(open, str(marker), "w")),
        "INST opcode": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.",
        "numpy's own loader": b"\x80\x02cnumpy\nload\n(U\x01xtR.",
        "a huge array from numpy": pickle.dumps(Calls(np.ndarray, (1 << 40,))),
        "an array of objects": pickle.dumps({b"data": np.array([Calls(os.system, command)], dtype=object)}),
        "an array of floats": pickle.dumps({b"data": np.zeros(3)}),
        "a big-endian array": pickle.dumps({b"data": np.zeros(3, dtype=">i8")}),
        "a codec": pickle.dumps(Calls(codecs.encode, "text", "rot13")),
        "state on a name": b"\x80\x02" + state,
        "a bare name": pickle.dumps({b"data": np.ndarray}),
        "a false shape": python2_pickle(np.zeros((2, 4), np.uint8), []).replace(b"M\x02\x00", b"M\xff\xff"),
        "a persistent id": b"\x80\x02U\x01xQ.",
        "an extension code": b"\x80\x02\x82\x01.",
        "a huge memo index": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "deep nesting": b"\x80\x02" + b"(" * 10 + b"]" + b"\x85" * 200_000 + b".",
        "a truncated file": pickle.dumps({b"data": np.zeros(9, np.uint8)})[:-9],
        "no pickle": b"\x89PNG\r\n",
        "nothing": b"",
    }


REASONS = {
    "system": r"refused: .* the name (posix|nt)\.system",
    "system, in the batch's list": r"refused: .* the name (posix|nt)\.system",
    "exec": r"refused: .* the name builtins\.exec",
    "open": r"refused: .* the name _?io\.open",
    "INST opcode": r"refused: .* the name os\.system",
    "dotted name": r"refused: .* the name numpy\.ndarray\.dump",
    "numpy's own loader": r"refused: .* the name numpy\.load",
    "a huge array from numpy": "refused: .* a direct construction of an array",
    "an array of objects": r"refused: .* the name (posix|nt)\.system",
    "an array of floats": "refused: .* an array of type 'f8'",
    "a big-endian array": "refused: .* byte order '>'",
    "a codec": "refused: .* an encoding other than latin1: 'rot13'",
    "state on a name": "refused: .* setting the state of a name",
    "a bare name": "refused: .* a bare name where data belongs",
    "a false shape": "refused: .* whose bytes do not fill it",
    "a persistent id": "not a readable pickle",
    "an extension code": "not a readable pickle",
    "a huge memo index": "refused: .* the memo index 2147483647",
    "deep nesting": "must hold a dict",
    "a truncated file": "not a readable pickle",
    "no pickle": "not a readable pickle",
    "nothing": "not a readable pickle",
}


@pytest.mark.parametrize("case", sorted(REASONS))
def test_malicious_and_damaged_pickles_are_refused_and_not_run(case: str, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    folder = tmp_path / "cifar-10-batches-py"
    write_pickles(folder, cifar_parts(10), 2, fine=False)
    (folder / "data_batch_1").write_bytes(malicious(marker)[case])
    with pytest.raises(DataError, match=f"data_batch_1.*{REASONS[case]}"):
        load_dataset("cifar10", tmp_path)
    assert not marker.exists()
    assert set(malicious(marker)) == set(REASONS)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "must hold a dict"),
        ({b"labels": [0]}, "'data' must be a uint8 array"),
        ({b"data": np.zeros((1, 3071), np.uint8), b"labels": [0]}, "'data' must be a uint8 array"),
        ({b"data": np.zeros((1, 3072), np.uint8)}, "'labels' must be a list"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [0.5]}, "'labels' must be a list"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1 << 70]}, "'labels' must be a list"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "2 images but 1 labels"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, r"0\.\.9 for 10 classes, found 10"),
    ],
)
def test_pickles_of_another_content_are_refused(content: object, says: str, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_pickles(folder, cifar_parts(10), 2, fine=False)
    (folder / "data_batch_3").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(DataError, match=says):
        load_dataset("cifar10", tmp_path)


# ---- CIFAR: binary


def write_binaries(folder: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]], fine: bool) -> None:
    folder.mkdir(parents=True)
    files = (
        {"train": ["train.bin"], "test": ["test.bin"]}
        if fine
        else {
            "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
            "test": ["test_batch.bin"],
        }
    )
    for part, names in files.items():
        x, y = parts[part]
        labels = np.stack([255 - y, y], 1) if fine else y[:, None]  # coarse labels differ from the fine ones
        records = np.concatenate([labels.astype(np.uint8), x.reshape(len(x), -1)], 1)
        for name, piece in zip(names, np.array_split(records, len(names)), strict=True):
            (folder / name).write_bytes(piece.tobytes())


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("inside", ["", "cifar{}"])
def test_cifar_binaries(fine: bool, inside: str, tmp_path: Path) -> None:
    parts = cifar_parts(100 if fine else 10)
    folder = tmp_path / inside.format(100 if fine else 10)
    write_binaries(folder / ("cifar-100-binary" if fine else "cifar-10-batches-bin"), parts, fine)
    assert_holds(load_dataset("cifar100" if fine else "cifar10", tmp_path), parts["train"], parts["test"])


def test_damaged_and_missing_binaries(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    write_binaries(folder, cifar_parts(10), fine=False)
    path = folder / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_2\.bin is truncated.*records of 3073 bytes"):
        load_dataset("cifar10", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"data_batch_2\.bin was not found"):
        load_dataset("cifar10", tmp_path)


# ---- CIFAR: parquet


def image_bytes(pixels: np.ndarray, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, form)
    return stream.getvalue()


def image_table(part: tuple[np.ndarray, np.ndarray], label: str = "label", form: str = "PNG") -> pa.Table:
    rows = [{"bytes": image_bytes(x, form), "path": f"{i}.png"} for i, x in enumerate(part[0])]
    return pa.table({"img": rows, label: part[1].tolist()})


def write_parquet(
    folder: Path,
    parts: dict[str, tuple[np.ndarray, np.ndarray]],
    label: str = "label",
    form: str = "PNG",
    shards: int = 1,
) -> None:
    folder.mkdir(parents=True)
    for part, (x, y) in parts.items():
        pieces = zip(np.array_split(x, shards), np.array_split(y, shards), strict=True)
        for i, piece in enumerate(pieces):
            pq.write_table(image_table(piece, label, form), folder / f"{part}-{i:05d}-of-{shards:05d}.parquet")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("name", "folder"),
    [("cifar10", "cifar10"), ("cifar10", "cifar-10/plain_text"), ("cifar100", "cifar100"), ("cifar100", ".")],
)
def test_cifar_parquet(name: str, folder: str, shards: int, tmp_path: Path) -> None:
    fine = name == "cifar100"
    parts = cifar_parts(100 if fine else 10)
    root = tmp_path / "root"
    write_parquet(root / folder, parts, "fine_label" if fine else "label", shards=shards)
    data = load_dataset(name, root)
    assert_holds(data, parts["train"], parts["test"])
    assert "PNG" in data.source


def test_jpeg_images_are_read_and_the_source_says_they_are_lossy(tmp_path: Path) -> None:
    shades = np.linspace(0, 255, 20).astype(np.uint8)
    x = np.broadcast_to(shades[:, None, None, None], (20, 3, 32, 32)).copy()  # JPEG keeps a flat grey
    part = (x, np.arange(20) % 10)
    write_parquet(tmp_path / "cifar10", {"train": part, "test": part}, form="JPEG")
    data = load_dataset("cifar10", tmp_path)
    torch.testing.assert_close(data.train_x, standardised(x, x), rtol=0, atol=0.02)  # a grey level is 0.013
    assert "JPEG" in data.source
    assert "lossy" in data.source


def bad_tables() -> dict[str, tuple[pa.Table, str]]:
    x, y = raw(2, (3, 32, 32))
    rows = [{"bytes": image_bytes(p), "path": ""} for p in x]
    wide = [{"bytes": image_bytes(raw(1, (3, 32, 33))[0][0]), "path": ""}, rows[1]]
    bomb = [
        rows[0],
        {
            "bytes": image_bytes(x[0])[:16] + struct.pack(">II", 60000, 60000) + image_bytes(x[0])[24:],
            "path": "",
        },
    ]
    return {
        "no image column": (
            pa.table({"image": rows, "label": y.tolist()}),
            "expected one column 'img'.*image: struct",
        ),
        "no label column": (image_table((x, y), "fine_label"), "expected one column 'label'"),
        "image is no struct": (pa.table({"img": [b"1", b"2"], "label": y.tolist()}), "must be a struct"),
        "bytes are text": (
            pa.table({"img": [{"bytes": "1", "path": ""}] * 2, "label": y.tolist()}),
            "must be a struct with binary",
        ),
        "labels are text": (pa.table({"img": rows, "label": ["cat", "dog"]}), "integer type, found string"),
        "a label is missing": (pa.table({"img": rows, "label": [1, None]}), "row 1 has no 'label'"),
        "an image is missing": (
            pa.table({"img": [rows[0], None], "label": y.tolist()}),
            "row 1 has no image bytes",
        ),
        "an image is damaged": (
            pa.table({"img": [{"bytes": b"\xff\xd8\xff", "path": ""}, rows[1]], "label": y.tolist()}),
            "row 0 is not a readable",
        ),
        "another format": (
            pa.table({"img": [rows[0], {"bytes": image_bytes(x[1], "BMP"), "path": ""}], "label": y.tolist()}),
            "row 1 is not a readable JPEG or PNG",
        ),
        "another size": (
            pa.table({"img": wide, "label": y.tolist()}),
            "row 0 is 32 x 33 pixels, expected 32 x 32",
        ),
        "a huge size": (pa.table({"img": bomb, "label": y.tolist()}), "row 1"),
        "a label out of range": (
            pa.table({"img": rows, "label": [1, 10]}),
            r"0\.\.9 for 10 classes, found 10",
        ),
        "no rows": (image_table((x, y)).slice(0, 0), "no rows"),
    }


@pytest.mark.parametrize("case", sorted(bad_tables()))
def test_bad_parquet_files_are_refused(case: str, tmp_path: Path) -> None:
    table, says = bad_tables()[case]
    write_parquet(tmp_path / "cifar10", {"train": raw(2, (3, 32, 32)), "test": raw(2, (3, 32, 32))})
    pq.write_table(table, tmp_path / "cifar10" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=says):
        load_dataset("cifar10", tmp_path)


def test_truncated_and_missing_shards(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    write_parquet(folder, {"train": raw(4, (3, 32, 32)), "test": raw(4, (3, 32, 32))}, shards=2)
    path = folder / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet is not a readable parquet file"):
        load_dataset("cifar10", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet is missing \(1 of 2 found\)"):
        load_dataset("cifar10", tmp_path)
    for shard in folder.glob("test-*"):
        shard.unlink()
    write_parquet(tmp_path / "again", {"train": raw(4, (3, 32, 32))})
    with pytest.raises(DataError, match=r"no test-\*\.parquet"):
        load_dataset("cifar10", tmp_path / "again")


# ---- text


def test_text_splits_by_position_and_windows_predict_the_next_character(tmp_path: Path) -> None:
    text = "abcdefghij" * 10
    (tmp_path / "input.txt").write_text(text)
    data = load_dataset("text", tmp_path, length=4, test_share=0.2)
    assert isinstance(data, TextDataset)
    assert data.vocabulary == tuple("abcdefghij")
    assert data.decode(data.train_ids) + data.decode(data.test_ids) == text
    assert (len(data.train_ids), len(data.test_ids), data.classes, data.shape) == (80, 20, 10, (4,))
    assert data.decode(data.train_x[1]) == "efgh"
    assert data.decode(data.train_y[1]) == "fghi"
    assert data.train_x.shape == (19, 4)  # the 80th character is only ever a target: (80 - 1) // 4
    x, y = data.blocks(19, "test")
    assert (x.shape, data.decode(y[0])[-1]) == ((1, 19), "j")
    assert data.flat() is data


def test_text_validation_and_limits_come_from_the_training_part(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("".join(chr(200 + i) for i in range(100)))
    data = load_dataset("text", tmp_path / "t.txt", length=5, validation=0.5, limit_train=2, limit_test=1)
    assert data.validation_x is not None
    assert (len(data.train_x), len(data.validation_x), len(data.test_x)) == (2, 8, 1)
    assert data.train_x.max() < data.validation_x.min()
    assert data.validation_x.max() < data.test_x.min()


@given(st.text(min_size=1, max_size=30, alphabet="xyz \né"))
def test_decode_inverts_encode(text: str) -> None:
    data = _alphabet()
    assert data.decode(data.encode(text)) == text
    assert data.decode(data.encode(text).tolist()) == text


def _alphabet() -> TextDataset:
    from graphnet.study.datasets import TextOptions, build_text

    return build_text("alphabet", "xyz \né" * 9, "here", TextOptions(length=2))


def test_bad_text_is_refused(tmp_path: Path) -> None:
    data = _alphabet()
    with pytest.raises(DataError, match="'q' is not among the 6"):
        data.encode("xq")
    for ids in ([6], [-1]):
        with pytest.raises(DataError, match=r"outside the vocabulary 0\.\.5"):
            data.decode(ids)
    for length in (0, 1000):
        with pytest.raises(DataError, match="window"):
            data.blocks(length)
    with pytest.raises(DataError, match="parts 'train' and 'test'"):
        data.blocks(2, "dev")  # type: ignore[arg-type]
    (tmp_path / "input.txt").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match="not UTF-8 text: byte 3"):
        load_dataset("text", tmp_path)
    (tmp_path / "input.txt").write_text("")
    with pytest.raises(DataError, match="too few"):
        load_dataset("text", tmp_path)
    with pytest.raises(DataError, match="test_share"):
        load_dataset("text", tmp_path, test_share=0)
    with pytest.raises(DataError, match="no option 'flatten'"):
        load_dataset("text", tmp_path, flatten=True)


# ---- sampling


@given(
    n=st.integers(1, 60),
    batch=st.integers(1, 20),
    seed=st.integers(-5, 1 << 70),
    k=st.integers(0, 9),
    drop=st.booleans(),
)
def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch_only(
    n: int, batch: int, seed: int, k: int, drop: bool
) -> None:
    if drop and n < batch:
        return
    stream = BatchStream(n, batch, seed, drop)
    before = torch.random.get_rng_state()
    batches = stream.epoch(k)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(batches) == len(stream)
    order = torch.cat(batches).tolist()
    assert len(set(order)) == len(order) == (n // batch * batch if drop else n)
    assert all(len(b) == batch for b in batches[:-1])
    again = BatchStream(n, batch, seed, drop).epoch(k, start=len(stream) // 2)
    assert torch.cat([*batches[: len(stream) // 2], *again]).tolist() == order


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(BatchStream(50, 50, seed).epoch(k)[0].tolist()) for seed in range(5) for k in range(5)}
    assert len(orders) == 25  # (1, 0) is not (0, 1) either


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: BatchStream(0, 1, 0), "n >= 1"),
        (lambda: BatchStream(1, 0, 0), "batch_size >= 1"),
        (lambda: BatchStream(3, 4, 0, drop_last=True), "leaves no batch"),
        (lambda: BatchStream(3, 2, 0).epoch(-1), "epoch"),
        (lambda: BatchStream(3, 2, 0).epoch(0, start=3), "start"),
        (lambda: stratified_indices(torch.tensor([0]), 0, 0), "at least 1"),
    ],
)
def test_bad_sampling_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(DataError, match=says):
        make()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 3))
def test_a_stratified_subset_keeps_proportions_within_one(values: list[int], count: int, seed: int) -> None:
    labels = torch.tensor(values)
    chosen = stratified_indices(labels, count, seed)
    count = min(count, len(labels))
    assert len(chosen) == count
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    for c in set(values):
        assert abs(int((labels[chosen] == c).sum()) - count * values.count(c) / len(values)) < 1


def test_a_stratified_subset_gives_the_spare_place_to_the_largest_remainder() -> None:
    labels = torch.tensor([0] * 7 + [1] * 3)
    assert labels[stratified_indices(labels, 2, 0)].tolist() == [0, 1]  # shares 1.4 and 0.6


# ---- real files, where there are any

REAL = os.environ.get("GRAPHNET_DATA")


@pytest.mark.skipif(REAL is None, reason="GRAPHNET_DATA names no folder of datasets")
@pytest.mark.parametrize(
    ("name", "train", "test", "shape"),
    [
        ("mnist", 60_000, 10_000, (1, 28, 28)),
        ("fashion-mnist", 60_000, 10_000, (1, 28, 28)),
        ("cifar10", 50_000, 10_000, (3, 32, 32)),
        ("cifar100", 50_000, 10_000, (3, 32, 32)),
    ],
)
def test_real_images(name: str, train: int, test: int, shape: tuple[int, ...]) -> None:
    assert REAL is not None
    if not list(Path(REAL).glob(f"*{name.replace('cifar', 'cifar*')}*")):
        pytest.skip(f"{name} is not in the folder")
    data = load_dataset(name, REAL)
    assert (len(data.train_y), len(data.test_y), data.shape) == (train, test, shape)
    assert torch.unique(data.train_y).tolist() == list(range(data.classes))
    assert data.train_x.mean().item() == pytest.approx(0, abs=1e-3)


@pytest.mark.skipif(REAL is None, reason="GRAPHNET_DATA names no folder of datasets")
def test_real_text() -> None:
    assert REAL is not None
    data = load_dataset("tinyshakespeare", REAL)
    assert data.classes == 65
    assert data.decode(data.train_ids[:14]) == "First Citizen:"

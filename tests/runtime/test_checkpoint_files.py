"""Files that are damaged, foreign, newer, forged or half written: each is a CheckpointError that says what is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

import graphnet as gn
from graphnet.runtime.checkpoint import kept_in, load_checkpoint, load_network
from graphnet.runtime.sealed import FORMAT_VERSION, read_sealed, write_sealed
from graphnet.testing import check_bits, state_of

CheckpointError = gn.CheckpointError


def trained() -> tuple[gn.Network, torch.optim.Adam, torch.optim.lr_scheduler.StepLR]:
    """A network with everything that a checkpoint holds: moments, ages, dormant units, a kept version, a branch."""
    torch.manual_seed(0)
    net = gn.Network(gn.mlp([5, 12, 8, 3]), seed=4)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4)
    for edit_of in (None, "grow", "retire", "back", "prune"):
        with net.edit() as edit:
            if edit_of == "grow":
                edit.grow("fc1", 2, init="kaiming", state="aged")
            if edit_of == "retire":
                edit.retire("fc2", units=[1, 5])
            if edit_of == "prune":
                edit.prune("fc1", units=[0])
        if edit_of == "back":
            net.rollback(1)
            with net.edit() as edit:
                edit.retire("fc2", units=[1, 5])
                edit.grow("fc1", 1, state="aged")
        optimizer.zero_grad()
        net(torch.randn(7, 5)).square().mean().backward()
        optimizer.step()
        scheduler.step()
        if net.version == 1:
            net.keep()
    return net, optimizer, scheduler


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net, _, scheduler = trained()
    path = tmp_path_factory.mktemp("whole") / "run.gn"
    return net.save(path, extra={"step": 7}, state={"scheduler": scheduler})


@pytest.fixture(scope="module")
def slim(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without random states, which are most of the bytes."""
    net, _, scheduler = trained()
    path = tmp_path_factory.mktemp("slim") / "run.gn"
    return net.save(path, extra={"step": 7}, state={"scheduler": scheduler}, rng=False)


def load_bytes(content: bytes, folder: Path) -> None:
    path = folder / "damaged.gn"
    path.write_bytes(content)
    load_network(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def test_any_safetensors_reader_opens_it(whole: Path) -> None:
    tensors = safetensors.torch.load_file(whole)
    net = load_network(whole)
    assert torch.equal(tensors["tensor/fc1.weight"], net.tensor("fc1.weight"))
    assert json.loads(bytes(tensors["document"].numpy()))["seed"] == 4


# -- damage -----------------------------------------------------------------------------------------------------------


def regions(content: bytes) -> dict[str, range]:
    """Every kind of place in a file."""
    header = int.from_bytes(content[:8], "little") + 8
    data = json.loads(content[8:header])
    first, last = data["document"]["data_offsets"]
    digests = {key: content.index(data["__metadata__"][key].encode()) for key in ("data_sha256", "header_sha256")}
    return {
        "length": range(8),
        "header": range(8, header),
        "data digest": range(digests["data_sha256"], digests["data_sha256"] + 64),
        "header digest": range(digests["header_sha256"], digests["header_sha256"] + 64),
        "document": range(header + first, header + last),
        "tensors": range(header, len(content)),
    }


@pytest.mark.parametrize("region", ["length", "header", "data digest", "header digest", "document", "tensors"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_found_wherever_it_is(region: str, slim: Path, folder: Path, data: st.DataObject) -> None:
    content = bytearray(slim.read_bytes())
    places = regions(bytes(content))[region]
    flips = data.draw(st.lists(st.tuples(st.sampled_from(places), st.integers(0, 7)), min_size=1, max_size=3))
    for place, bit in flips:
        content[place] ^= 1 << bit
    if bytes(content) == slim.read_bytes():
        return  # flipped twice
    with pytest.raises(CheckpointError, match=r"damaged|truncated|no checkpoint|torch\.save|has grown"):
        load_bytes(bytes(content), folder)


@given(data=st.data())
def test_spans_that_are_cut_doubled_or_moved_are_found(slim: Path, folder: Path, data: st.DataObject) -> None:
    content = slim.read_bytes()
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    span, at = content[first:last], data.draw(st.integers(0, len(content)))
    changed = data.draw(st.sampled_from([
        content[:first],
        content[first:],
        content[:first] + content[last:],
        content[:at] + span + content[at:],
        content[:first] + bytes(last - first) + content[last:],
        content[:first] + span[::-1] + content[last:],
        content[:at] + data.draw(st.binary(max_size=9)) + content[at:],
    ]))  # fmt: skip
    if changed == content:
        return
    with pytest.raises(CheckpointError):
        load_bytes(changed, folder)


@given(content=st.binary(max_size=200), length=st.integers(0, 2**64 - 1))
@example(content=b"", length=0)
@example(content=b"{}", length=2)
@example(content=b'{"__metadata__":{"format":"graphnet-checkpoint"}}', length=49)
def test_no_bytes_raise_anything_else(content: bytes, length: int, folder: Path) -> None:
    for whole_content in (content, length.to_bytes(8, "little") + content):
        with pytest.raises(CheckpointError):
            load_bytes(whole_content, folder)


def test_the_message_says_which_part_is_damaged(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    header = int.from_bytes(content[:8], "little") + 8
    at = content.index(b'"dtype":"F32"') + 9
    with pytest.raises(CheckpointError, match="header is damaged"):
        load_bytes(content[:at] + b"I" + content[at + 1 :], tmp_path)
    with pytest.raises(CheckpointError, match="tensors or the document are damaged"):
        load_bytes(content[: header + 50] + bytes([content[header + 50] ^ 1]) + content[header + 51 :], tmp_path)


def test_truncated_and_grown_files_are_found(slim: Path, tmp_path: Path) -> None:
    content = slim.read_bytes()
    for length in [*range(12), *range(12, len(content), 211), len(content) - 1]:
        with pytest.raises(CheckpointError, match="truncated"):
            load_bytes(content[:length], tmp_path)
    with pytest.raises(CheckpointError, match="5 bytes too many"):
        load_bytes(content + b"hello", tmp_path)


def test_foreign_files_are_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)
    foreign = {
        r"torch\.save": buffer.getvalue(),
        "no graphnet checkpoint": safetensors.torch.save({"a": torch.ones(3)}, {"format": "pt"}),
        "no checkpoint": safetensors.torch.save({"a": torch.ones(3)}),
        "truncated": b"",
        "no checkpoint, or": b'{"kind": "architecture", "name": "net"}' * 9,
    }
    for message, content in foreign.items():
        with pytest.raises(CheckpointError, match=message):
            load_bytes(content, tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_network(tmp_path / "missing.gn")
    with pytest.raises(CheckpointError, match="a folder"):
        load_network(tmp_path)
    for strange in ("a\0b", "/dev/null/x", "x" * 5000):
        with pytest.raises(CheckpointError):
            load_network(strange)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="no ordinary file"):
            load_network(tmp_path / "pipe")


# -- claims -----------------------------------------------------------------------------------------------------------


def sealed_header(header: dict[str, Any], data: bytes, **metadata: str) -> bytes:
    """A file with right digests and a header of any content."""
    named = {
        "format": "graphnet-checkpoint", "format_version": str(FORMAT_VERSION),
        "data_sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    full = {"__metadata__": named | {"header_sha256": "0" * 64} | metadata, **header}
    text = json.dumps(full, separators=(",", ":")).encode()
    text = text.replace(b"0" * 64, hashlib.sha256(text).hexdigest().encode())
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], first: int, last: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ("install a newer one", sealed_header({}, b"", format_version=str(FORMAT_VERSION + 1))),
        ("write it again", sealed_header({}, b"", format_version="1")),
        ("no format version", sealed_header({}, b"", format_version="one")),
        ("no document", sealed_header({}, b"")),
        ("cannot be read", sealed_header({"a": entry("F32", [2**60], 0, 4)}, b"1234")),
        ("cannot be read", sealed_header({"a": entry("F32", [2**40, 2**40], 0, 4)}, b"1234")),
        ("truncated", sealed_header({"a": entry("F32", [2**58], 0, 2**60)}, b"1234")),
        ("cannot be read", sealed_header({"a": entry("F32", [1], -4, 0)}, b"")),
        ("cannot be read", sealed_header({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, b"x" * 12)),
        ("cannot be read", sealed_header({"a": 3}, b"")),
        ("cannot be read", sealed_header({"document": entry("U8", [4], 0, 4)}, b"[NaN")),
        ("cannot be read", sealed_header({"document": entry("U8", [200_000], 0, 200_000)}, b"[" * 200_000)),
        ("no document", sealed_header({"document": entry("F32", [1], 0, 4)}, b"1234")),
        ("not a mapping", sealed_header({"document": entry("U8", [2], 0, 2)}, b"[]")),
        ("problem", sealed_header({"document": entry("U8", [2], 0, 2)}, b"{}")),
        ("no checkpoint", (2**62).to_bytes(8, "little") + b"x" * 100),
        ("no checkpoint", (100_000_001).to_bytes(8, "little") + b"x" * 100),
        ("truncated", (99_000_000).to_bytes(8, "little") + b"x" * 100),
    ],
)
def test_claims_that_the_file_does_not_hold_are_refused(message: str, content: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_bytes(content, tmp_path)


def test_a_huge_claim_takes_no_memory(tmp_path: Path) -> None:
    claims = [
        (2**62).to_bytes(8, "little"),
        (99_000_000).to_bytes(8, "little"),
        sealed_header({"a": entry("F32", [2**38], 0, 2**40)}, b"1234"),
    ]
    tracemalloc.start()
    for content in claims:
        with pytest.raises(CheckpointError):
            load_bytes(content, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@given(data=st.data())
def test_any_header_with_right_digests_loads_whole_or_is_refused(
    slim: Path, folder: Path, data: st.DataObject
) -> None:  # fmt: skip
    content = slim.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.pop("__metadata__")
    name = data.draw(st.sampled_from(sorted(header)))
    sizes = st.one_of(st.integers(-2, 50), st.sampled_from([2**31, 2**62, 2**64, len(body), len(body) + 1]))
    what = data.draw(st.sampled_from(["dtype", "shape", "offsets", "drop", "rename", "junk", "metadata"]))
    if what == "dtype":
        header[name]["dtype"] = data.draw(
            st.sampled_from(["F64", "F16", "BF16", "I64", "BOOL", "U8", "F8_E5M2", "X", 3])
        )
    elif what == "shape":
        header[name]["shape"] = data.draw(st.lists(sizes, max_size=3))
    elif what == "offsets":
        header[name]["data_offsets"] = data.draw(st.lists(sizes, max_size=3))
    elif what == "drop":
        del header[name]
    elif what == "rename":
        to = data.draw(
            st.sampled_from(["../../evil", "/etc/passwd", "", "tensor/", "document", "tensor/fc1.bias", "\0"])
        )
        header[to] = header.pop(name)
    elif what == "junk":
        header[name] = data.draw(st.sampled_from([None, [], {}, "x", {"dtype": "F32"}]))
    else:
        metadata = {k: v for k, v in metadata.items() if k != data.draw(st.sampled_from(sorted(metadata)))}
    changed = sealed_header(header, body, **{k: v for k, v in metadata.items() if not k.endswith("sha256")})
    before = set(os.listdir(folder.parent))
    with contextlib.suppress(CheckpointError):
        load_bytes(changed, folder)
    assert set(os.listdir(folder.parent)) == before


# -- forgeries --------------------------------------------------------------------------------------------------------

Forge = Callable[[dict[str, Tensor], dict[str, Any]], object]


def _graph(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["structures"][0]
    return found


def _last(document: dict[str, Any], group: str) -> dict[str, Any]:
    """The units of a group in the newest version."""
    found: dict[str, Any] = next(
        e["groups"][group] for e in reversed(document["versions"]) if group in e["groups"]
    )  # fmt: skip
    return found


FORGERIES: dict[str, tuple[str, Forge]] = {
    "tensor missing": ("lacks the tensor 'tensor/fc1.bias'", lambda t, d: t.pop("tensor/fc1.bias")),
    "state missing": ("lacks the tensor 'value/", lambda t, d: t.pop(next(n for n in t if n.startswith("value/")))),
    "reserve missing": ("lacks the tensor 'reserve", lambda t, d: t.pop("reserve/fc2.bias")),
    "birth missing": ("lacks the tensor 'birth", lambda t, d: t.pop(next(n for n in t if n.startswith("birth/")))),
    "reserve unlisted": (
        "dormant units are missing",
        lambda t, d: (d["reserve"].remove("fc2.bias"), t.pop("reserve/fc2.bias")),
    ),
    "shape": ("shape", lambda t, d: t.update({"tensor/fc1.bias": torch.zeros(3)})),
    "transposed": ("shape", lambda t, d: t.update({"tensor/fc1.weight": t["tensor/fc1.weight"].T.contiguous()})),
    "dtype": ("is to be trained", lambda t, d: t.update({"tensor/fc1.bias": t["tensor/fc1.bias"].long()})),
    "stray": ("belong to nothing", lambda t, d: t.update({"tensor/extra": torch.zeros(3)})),
    "path above": ("belong to nothing", lambda t, d: t.update({"../../../elsewhere/evil": torch.zeros(3)})),
    "path absolute": ("belong to nothing", lambda t, d: t.update({"/etc/evil": torch.zeros(3)})),
    "path asked for": ("lacks the tensor '/etc/passwd'", lambda t, d: d["extra"].update(a={"!tensor": "/etc/passwd"})),
    "path of a birth": (
        r"lacks the tensor '\.\./x'",
        lambda t, d: d["optimizers"][0]["births"][0].update(tensor="../x"),
    ),
    "module path": ("no parameter '../x'", lambda t, d: d["constant"].append("../x")),
    "key missing": ("seed", lambda t, d: d.pop("seed")),
    "key unknown": ("found an unknown key", lambda t, d: d.update(more=1)),
    "no versions": ("versions", lambda t, d: d.update(versions=[])),
    "no structure": ("structure 0 of 0", lambda t, d: d.update(structures=[])),
    "another structure": ("structure 7 of 1", lambda t, d: d["versions"][-1].update(structure=7)),
    "order": ("does not follow", lambda t, d: d["versions"][2].update(number=1)),
    "no parent": ("does not follow", lambda t, d: d["versions"][2].update(parent=None)),
    "a parent to come": ("does not follow", lambda t, d: d["versions"][2].update(parent=4)),
    "two first versions": ("does not follow", lambda t, d: d["versions"][0].update(parent=0)),
    "version missing": ("does not follow", lambda t, d: d["versions"].pop(1)),
    "last version missing": ("shape", lambda t, d: d["versions"].pop()),
    "ids": ("do not lie below", lambda t, d: _last(d, "fc1").update(ids=[[0, 900]])),
    "ids backwards": ("do not lie below", lambda t, d: _last(d, "fc1").update(ids=[[9, 3]])),
    "many ids": ("claims more than", lambda t, d: _last(d, "fc1").update(ids=[[0, 2**50]], next_id=2**52)),
    "ids twice": ("twice", lambda t, d: _last(d, "fc1").update(ids=[[0, 5], [5, 6]])),
    "no group": ("no unit group", lambda t, d: d["versions"][-1]["groups"].update(fc9=_last(d, "fc1"))),
    "huge layer": ("units", lambda t, d: _graph(d)["ops"][0].update(out=10**12)),
    "unknown op": ("op", lambda t, d: _graph(d)["ops"][0].update(op="os.system")),
    "no graph": ("problem|structure", lambda t, d: d.update(structures=[{}])),
    "op name": ("cannot be built", lambda t, d: d.update(json.loads(json.dumps(d).replace("act1", "forward")))),
    "unknown tag": ("does not write", lambda t, d: d["extra"].update(a={"!code": "1"})),
    "tag twice": ("does not write", lambda t, d: d["extra"].update(a={"!tuple": [], "!dict": []})),
    "unhashable": ("does not write", lambda t, d: d["extra"].update(a={"!dict": [[[1], 2]]})),
    "state of another": ("does not hold", lambda t, d: d["optimizers"][0]["groups"][0]["params"].pop()),
    "param twice": ("twice", lambda t, d: d["optimizers"][0]["groups"][0]["params"].append("fc1.bias")),
    "params option": (
        "mapping of their names",
        lambda t, d: d["optimizers"][0]["groups"][0]["options"].update(params=[1]),
    ),
    "birth dim": ("dimension 7", lambda t, d: d["optimizers"][0]["births"][0].update(dim=7)),
    "step": ("steps|operator", lambda t, d: d["versions"][1].update(steps=[{"operator": 3}])),
    "channels last": ("dimensions", lambda t, d: d["channels_last"].append("tensor/fc1.weight")),
    "kept of no version": ("not in the history", lambda t, d: d["kept"][0].update(version=99)),
    "kept twice": ("kept twice", lambda t, d: d["kept"].append(d["kept"][0])),
    "kept tensor missing": (
        "lacks the tensor 'kept/1/tensor/head.bias'",
        lambda t, d: t.pop("kept/1/tensor/head.bias"),
    ),
    "kept shape": ("shape", lambda t, d: t.update({"kept/1/tensor/head.bias": torch.zeros(9)})),
    "kept state": ("does not hold", lambda t, d: d["kept"][0]["optimizers"][0].update(groups=[[]])),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_files_with_right_digests_and_wrong_content_are_refused(name: str, slim: Path, tmp_path: Path) -> None:
    message, forge = FORGERIES[name]
    tensors, document = read_sealed(slim)
    forge(tensors, document)
    path = write_sealed(tmp_path / "forged.gn", tensors, document)
    with pytest.raises(CheckpointError, match=message):
        load_network(path)


def test_a_forged_older_version_is_refused_when_it_is_asked_for(slim: Path, tmp_path: Path) -> None:
    tensors, document = read_sealed(slim)
    units = document["versions"][2]["groups"]["fc2"]
    units["ids"] = [[0, 3], [3, 7]]
    history = load_network(write_sealed(tmp_path / "forged.gn", tensors, document)).history
    with pytest.raises(CheckpointError, match=r"version 2 is not valid.*twice"):
        _ = history[2].graph
    assert history.latest.graph.groups["fc1"].size == 14


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(item, dict | list):
            yield from places(item)


STRANGE: list[Any] = [
    None, -1, 0, 2**70, 1.5, "", "x", "fc1.bias", "../x", [], {}, [[]], True, {"!tensor": "tensor/fc1.bias"},
    {"!float": []}, [[0, 2**60]],
]  # fmt: skip


@given(data=st.data())
def test_any_document_with_right_digests_loads_whole_or_is_refused(
    slim: Path, folder: Path, data: st.DataObject
) -> None:  # fmt: skip
    tensors, document = read_sealed(slim)
    for _ in range(data.draw(st.integers(1, 2))):
        owner, key = data.draw(st.sampled_from(list(places(document))))
        if isinstance(owner, dict) and data.draw(st.booleans()):
            owner.pop(key, None)
        else:
            owner[key] = data.draw(st.sampled_from(STRANGE))
    path = write_sealed(folder / "forged.gn", tensors, document)
    try:
        checkpoint = load_checkpoint(path)
        net = checkpoint.network()
        optimizer = torch.optim.Adam(net.parameters())
        checkpoint.resume(net, optimizer, state={"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 4)})
        for version in net.history:
            _ = version.graph
        net.rollback(1)
    except (CheckpointError, gn.EditError):  # an edit: a kept version that does not fit the optimizer
        return
    with net.edit() as edit:
        edit.grow("fc1", 1)


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["fsync", "replace", "chmod"])
def test_a_write_that_fails_leaves_the_old_file(function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, _, _ = trained()
    path = net.save(tmp_path / "run.gn", extra={"step": 3})
    before = path.read_bytes()

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(CheckpointError, match="No space left"):
            net.save(path, extra={"step": 5})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.gn"]
    assert load_checkpoint(net.save(path, extra={"step": 5})).extra == {"step": 5}


def test_links_and_permissions_stay(tmp_path: Path) -> None:
    net = gn.Network(gn.mlp([2, 2]))
    target = net.save(tmp_path / "deep" / "er" / "real.gn")
    target.chmod(0o640)
    link = tmp_path / "latest.gn"
    link.symlink_to(target)
    net.save(link)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert load_network(link).version == 0


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    import platform

    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f".a.gn.{platform.node()}.{dead.pid}.0123abcd.tmp"
    alive = tmp_path / f".a.gn.{platform.node()}.{os.getpid()}.0123abcd.tmp"
    other = tmp_path / f".b.gn.{platform.node()}.{dead.pid}.0123abcd.tmp"
    for path in (left, alive, other):
        path.write_bytes(b"half")
    gn.Network(gn.mlp([2, 2])).save(tmp_path / "a.gn")
    assert not left.exists()
    assert alive.exists()
    assert other.exists()


# -- every door -------------------------------------------------------------------------------------------------------

Door = Callable[[gn.Network, Path], object]


def _keyed(network: gn.Network, path: Path) -> object:
    return kept_in(path, network.history, network.version)


DOORS: dict[str, Door] = {
    "gn.load_network": lambda network, path: gn.load_network(path),
    "gn.load_checkpoint": lambda network, path: gn.load_checkpoint(str(path)),
    "net.at": lambda network, path: network.at(network.version, path),
    "net.at, of a folder": lambda network, path: network.at(network.version, path.parent),
    "net.rollback": lambda network, path: network.rollback(network.version, path=path, reset_optimizers=True),
    "kept_in": _keyed,
}


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def _newer(content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    return sealed_header(header, content[8 + length :], format_version=str(FORMAT_VERSION + 1))


def _traversing(content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    del header["__metadata__"]
    header["../../../elsewhere/evil"] = header.pop("tensor/fc1.bias")
    return sealed_header(header, body)


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "truncated": ("truncated", lambda content: content[: len(content) * 2 // 3]),
    "empty": ("truncated", lambda content: b""),
    "bit flipped": ("damaged", _flipped),
    "foreign": ("no checkpoint", lambda content: safetensors.torch.save({"a": torch.ones(3)})),
    "pickled": (r"torch\.save", lambda content: b"PK\x03\x04" + content),
    "newer": ("install a newer one", _newer),
    "path traversing": (r"lacks the tensor|belong to nothing", _traversing),
    "as it was": ("", lambda content: content),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_function_that_reads_a_file_refuses_what_is_wrong(
    damage: str, door: str, slim: Path, tmp_path: Path
) -> None:  # fmt: skip
    message, change = DAMAGES[damage]
    path = tmp_path / "checkpoints" / "run.gn"
    path.parent.mkdir()
    path.write_bytes(change(slim.read_bytes()))
    net, optimizer, _ = trained()
    before, version = state_of(net), net.version
    if not message:
        DOORS[door](net, path)
        return
    with pytest.raises(CheckpointError, match=message):
        DOORS[door](net, path)
    assert net.version == version
    assert net.attached == (optimizer,)
    check_bits(before, state_of(net), "a file that was refused")
    assert os.listdir(tmp_path) == ["checkpoints"]
    assert os.listdir(path.parent) == ["run.gn"]


def test_a_damaged_newest_file_in_a_folder_gives_way_to_the_one_before(slim: Path, tmp_path: Path) -> None:
    net, _, _ = trained()
    older, newer = tmp_path / "a.gn", tmp_path / "b.gn"
    older.write_bytes(slim.read_bytes())
    newer.write_bytes(_flipped(slim.read_bytes()))
    (tmp_path / ".a.gn.host.1.0123abcd.tmp").write_bytes(slim.read_bytes()[:500])
    os.utime(older, (1, 1))
    again = net.at(net.version, tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in net.state_dict().items())


def test_the_averages_of_kept_versions_go_through_a_file(tmp_path: Path) -> None:
    """Going back after a resume gives what going back without one gives."""
    net, _, _ = trained()
    average = AveragedModel(net, avg_fn=get_ema_avg_fn(0.9))
    net.attach(average)
    for _ in range(2):
        average.update_parameters(net)
        net.get_parameter("fc1.weight").data.mul_(1.5)
    number = net.keep().version
    net.get_parameter("fc1.weight").data.mul_(2)
    average.update_parameters(net)
    with net.edit() as edit:
        edit.grow("fc1", 1)
    path = net.save(tmp_path / "run.gn", state={"average": average})
    checkpoint = load_checkpoint(path)
    again = checkpoint.network()
    optimizer, other = torch.optim.Adam(again.parameters()), AveragedModel(again, avg_fn=get_ema_avg_fn(0.9))
    again.attach(other)
    checkpoint.resume(again, optimizer, state={"average": other})
    for one in (net, again):
        one.rollback(number)
    assert not torch.equal(average.module.fc1.weight, net.fc1.weight)
    check_bits(dict(average.module.state_dict()), dict(other.module.state_dict()), "averages")
    tensors, document = read_sealed(path)
    tensors.pop(f"kept/{number}/average/0/tensor/fc1.bias")
    with pytest.raises(CheckpointError, match="lacks the tensor 'kept"):
        load_network(write_sealed(tmp_path / "forged.gn", tensors, document))

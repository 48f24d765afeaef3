"""Leaving graphnet: plain modules, torch.export and ONNX of networks that were edited."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - users do pickle plain modules
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import graphnet as gn
from graphnet.compilers import exporters
from graphnet.ir.graph import Graph

GRAPHS: dict[str, Graph] = {
    "mlp": gn.mlp([4, 8, 2]),
    "resnet": gn.resnet((3, 8, 8), stages=(4, 6), blocks=1, classes=3),
    "transformer": gn.transformer(
        11, width=8, depth=1, heads=2, context=16, hidden=12, kv_heads=1, norm="rms", tied=True
    ),
}


def edited(name: str) -> gn.Network:
    net = gn.Network(GRAPHS[name], seed=0)
    group = next(key for key, one in net.graph.groups.items() if not (one.frozen or one.output or one.size < 3))
    with net.edit() as edit:
        edit.prune(group, lowest=1)
    return net


@pytest.mark.parametrize("name", GRAPHS)
def test_an_exported_program_keeps_batch_and_time_dynamic(name: str) -> None:
    net = edited(name)
    exported = net.to_export()
    other = exporters.example_inputs(net.graph, batch=5, length=11, seed=4)
    net.eval()
    assert torch.allclose(exported.module()(*other), net(*other), atol=1e-6)


@pytest.mark.parametrize("name", GRAPHS)
def test_onnx_gives_what_the_network_gives(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    net = edited(name)
    path = net.to_onnx(tmp_path / "net.onnx")
    assert [one.name for one in tmp_path.iterdir()] == ["net.onnx"]
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    other = exporters.example_inputs(net.graph, batch=7, length=3, seed=4)
    given = {one.name: x.numpy() for one, x in zip(session.get_inputs(), other, strict=True)}
    net.eval()
    assert torch.allclose(torch.from_numpy(session.run(None, given)[0]), net(*other), atol=1e-4)


def test_an_onnx_file_with_other_values_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    net, real = edited("mlp"), torch.onnx.export

    def other_network(module: torch.nn.Module, *args: object, **options: object) -> object:
        module = copy.deepcopy(module)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(1.0)
        return real(module, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.onnx, "export", other_network)
    with pytest.raises(gn.GraphError, match="gives other values"):
        net.to_onnx(tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_plain_module_runs_where_graphnet_is_not_installed(tmp_path: Path) -> None:
    net = edited("resnet").eval()
    x = exporters.example_inputs(net.graph)[0]
    (tmp_path / "plain.pickle").write_bytes(pickle.dumps(net.to_torch().eval()))
    torch.save((x, net(x).detach()), tmp_path / "expected.pt")
    code = (
        "import sys, pickle, torch\n"
        "torch.set_num_threads(1)\n"
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'graphnet': raise ImportError('graphnet is not here')\n"
        "sys.meta_path.insert(0, Wall())\n"
        "module = pickle.load(open('plain.pickle', 'rb'))\n"
        "x, expected = torch.load('expected.pt')\n"
        "assert torch.equal(module(x), expected)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_what_torch_cannot_export_is_an_error_of_ours() -> None:
    net = edited("mlp")
    with pytest.raises(gn.GraphError, match=r"torch\.export cannot export"):
        net.to_export([torch.randn(2, 5)])

"""Imported networks that leave: plain modules elsewhere, torch.export, ONNX, quantisation, the model's own class."""

from __future__ import annotations

import pickle  # noqa: TID251 - users do pickle plain modules
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphnet as gn


class Block(nn.Module):
    """A residual block of images whose width is an argument, with a squeeze and dropout."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.back, self.drop = nn.Conv2d(inner, width, 1), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.back(self.norm(self.conv(x)).relu()))


class Images(nn.Module):
    """A model whose class can be built with other sizes."""

    def __init__(self, width: int = 8, inner: tuple[int, ...] = (6, 10), hidden: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width, size) for size in inner)
        self.hidden, self.head = nn.Linear(width, hidden), nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = block(x)
        x = x.mean((2, 3))
        if self.training:
            x = x * (1 + 0.1 * torch.randn_like(x))
        return {"features": x, "logits": self.head(self.hidden(x).relu())}


class Words(nn.Module):
    """A decoder of one layer, with heads, a mask and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, index: Tensor, keep: Tensor | None = None) -> Tensor:
        x = self.norm(self.embed(index))
        q, k, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        mask = torch.ones(index.shape[1], index.shape[1], dtype=torch.bool).tril()
        mask = mask if keep is None else mask & keep[:, None, None, :]
        x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return self.head(x + self.down(nn.functional.gelu(self.up(x))))


CASES: dict[str, tuple[Any, tuple[Any, ...], tuple[Any, ...], list[str]]] = {
    "images": (Images, (torch.randn(1, 3, 6, 6),), (torch.randn(5, 3, 6, 6),), ["blocks.0.conv", "hidden", "stem"]),
    "words": (
        Words,
        (torch.randint(0, 11, (2, 5)), torch.ones(2, 5, dtype=torch.bool)),
        (torch.randint(0, 11, (3, 7)), torch.ones(3, 7).tril(4).bool()),
        ["up", "q.heads"],
    ),
}


def edited(case: str) -> Any:
    make, example, _, groups = CASES[case]
    torch.manual_seed(0)
    net = gn.from_torch(make(), example)
    with net.edit() as edit:
        for name in groups:
            edit.prune(name, lowest=1)
        edit.grow(groups[0], 2)
    net.eval()
    return net


def leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("case", CASES)
def test_a_plain_module_runs_in_a_process_without_graphnet(case: str, tmp_path: Path) -> None:
    net, other = edited(case), CASES[case][2]
    (tmp_path / "plain.pickle").write_bytes(pickle.dumps(net.to_torch()))
    torch.manual_seed(1)
    expected = {"eval": leaves(net(*other))}
    net.train()
    torch.manual_seed(1)
    expected["train"] = leaves(net(*other))
    torch.save((other, expected), tmp_path / "expected.pt")
    code = (
        "import sys, pickle, torch\n"
        "torch.set_num_threads(1)\n"  # as here: on another number a convolution rounds otherwise
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('graphnet', 'networkx', 'pydantic'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Wall())\n"
        "module = pickle.load(open('plain.pickle', 'rb'))\n"
        "inputs, expected = torch.load('expected.pt')\n"
        "for mode, wanted in expected.items():\n"
        "    module.train(mode == 'train')\n"
        "    torch.manual_seed(1)\n"
        "    found = module(*inputs)\n"
        "    found = list(found.values()) if isinstance(found, dict) else [found]\n"
        "    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), mode\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize("case", CASES)
def test_an_exported_program_is_called_as_the_model(case: str, tmp_path: Path) -> None:
    net, other = edited(case), CASES[case][2]
    path = tmp_path / "net.pt2"
    torch.export.save(net.to_export(), path)
    again = torch.export.load(path).module()
    found, wanted = again(*other), net(*other)
    assert isinstance(found, type(wanted))  # torch.export has a dict of its own
    for one, two in zip(leaves(found), leaves(wanted), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_onnx_gives_what_the_imported_network_gives(case: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    net, other = edited(case), CASES[case][2]
    path = net.to_onnx(tmp_path / "net.onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {one.name: x.numpy() for one, x in zip(session.get_inputs(), other, strict=True)}
    for one, two in zip(session.run(None, given), leaves(net(*other)), strict=True):
        assert torch.allclose(torch.from_numpy(one), two, atol=1e-4)


def test_the_state_dict_fits_the_models_class_with_the_new_sizes() -> None:
    net = edited("images")
    sizes = {name: group.size for name, group in net.graph.groups.items()}
    model = Images(sizes["stem"], (sizes["blocks.0.conv"], sizes["blocks.1.conv"]), sizes["hidden"]).eval()
    assert model.load_state_dict(net.state_dict()) == nn.modules.module._IncompatibleKeys([], [])
    x = torch.randn(3, 3, 6, 6)
    for name, value in model(x).items():
        assert torch.allclose(net(x)[name], value, atol=1e-6), name
    assert sizes["stem"] == 7
    assert sizes["blocks.0.conv"] == 7


def test_layers_stay_layers_at_their_names_for_quantisation() -> None:
    model, net = Images(), edited("images")
    plain = net.to_torch()
    kinds = (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.Dropout)
    wanted = {name: type(one) for name, one in model.named_modules() if isinstance(one, kinds)}
    assert {name: type(one) for name, one in plain.named_modules() if isinstance(one, kinds)} == wanted
    assert plain.get_submodule("hidden").out_features == 11
    # what torchao does: every linear layer that a filter on module and name accepts gets a weight of another type
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear) and name == "hidden":
            module.weight = nn.Parameter(module.weight.detach().to(torch.float16).float(), requires_grad=False)
    x = torch.randn(2, 3, 6, 6)
    changed, before = plain(x)["logits"], net(x)["logits"]
    assert torch.allclose(changed, before, atol=1e-2)
    assert not torch.equal(changed, before)


def test_a_plain_module_can_be_quantised_by_torch() -> None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("no quantised kernels on this processor")
    plain, x = edited("images").to_torch().eval(), torch.randn(2, 3, 6, 6)
    with pytest.warns(DeprecationWarning, match="torch.ao.quantization is deprecated"):
        small = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})
    assert type(small.get_submodule("hidden")) is torch.ao.nn.quantized.dynamic.Linear
    assert torch.allclose(small(x)["logits"], plain(x)["logits"], atol=0.1)

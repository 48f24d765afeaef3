"""Importing a model and pruning half of every width, against Torch-Pruning's dependency graph and pruner.

Both prune the same models by the magnitude of weights, every width by half at once, outputs left alone; Torch-Pruning
is told the number of heads of fused projections, which ours finds by itself. Times are processor time on one thread,
medians of rounds in rotated order, garbage collected before each. Everything that a user waits for is in one of
the columns:

- ``import``: all that `gn.from_torch(..., check=False)` does beside `torch.export`, of which both programs have been
  made before: they are merged, layouts inferred, modules and code made. Torch-Pruning has no counterpart of most of it;
- ``edit``: `net.edit()` with a `prune` for every group, the graph validated, new tensors, the commit;
- ``TP build``, ``TP step``: their dependency graph (from a copy of the model, which is not counted) and their pruning;
- the first ``ratio``: import and edit over build and step. ``control`` is a second measurement of import and edit over
  the first, and should read 1;
- ``export``: `torch.export`, in both modes (Torch-Pruning does without);
- ``between``, and its ratio: an import in which the export runs in between, and is not counted. It takes longer than
  ``import``, since half a second of other work has emptied the processor's caches;
- ``check``, and its ratio: what `check=True`, the default, adds to that: network and model are compared on the example
  in training and evaluation mode, and in evaluation mode at one position of every dimension that may change.

Nothing timed comes right after its own like: before the timed runs of a round Torch-Pruning runs once without being
timed, and their order rotates. A tensor of 28 MiB is made and freed first, as in any process that has trained: before
that the C library returns every large block to the system, and whoever makes whole tensors on the way pays for fresh
pages (Torch-Pruning takes about a quarter longer on the MLP). ``--fresh`` leaves that out.

Whether a pruned network is right is told from values alone, in float64, on the same architecture made smaller: every
tensor that is left must be a block of the original one, and the network must give what the original gives with all
other units zero, layer norms taking their statistics over the units that are left. `kept` is the share of parameters
that is left: about a quarter where every width was halved.

Torch-Pruning comes with the extra `benchmark` (`pip install 'graphnet-engine[benchmark]'`); it needs torch and numpy
alone.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import graphnet as gn

ROUNDS = 5
capture = importlib.import_module("graphnet.compilers.importer.capture")


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


class Block(nn.Module):
    """Two convolutions beside a skip."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


def resnet18() -> nn.Module:
    widths = (64, 128, 256, 512)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for at, width in enumerate(widths):
        layers += [Block(inputs, width, 1 if at == 0 else 2), Block(width, width, 1)]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.causal = heads, width // heads, causal
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.scale = self.head_dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
        return self.proj(x.transpose(1, 2).reshape(b, t, -1))


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads, causal)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A small vision transformer for 32 x 32 images: 64 patches, positions added, mean of tokens."""

    def __init__(self, width: int = 192, depth: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.layers(x)).mean(1))


class GPT(nn.Module):
    """GPT-2's architecture of linear layers, the head a layer of its own."""

    def __init__(self, depth: int = 12, width: int = 768, heads: int = 12, vocabulary: int = 50257) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(1024, width)
        self.layers = nn.Sequential(*(Layer(width, heads, causal=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.layers(x)))


def gpt2(**sizes: Any) -> nn.Module:
    config = transformers.GPT2Config(use_cache=False, tie_word_embeddings=False, **sizes)
    return transformers.GPT2LMHeadModel(config)


def image() -> Tensor:
    return torch.randn(2, 3, 32, 32)


def words(high: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, high, (2, 16))


@dataclass(frozen=True)
class Case:
    """A model to time, the same made smaller to check, and inputs of each."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    small: Callable[[], nn.Module]
    less: Callable[[], Tensor]
    classes: tuple[int, ...]


CASES = {
    "MLP 784-512-512-10": Case(mlp, lambda: torch.randn(2, 784), mlp, lambda: torch.randn(2, 784), (10,)),
    "ResNet-18 for CIFAR": Case(resnet18, image, resnet18, image, (10,)),
    "ViT 192x12": Case(ViT, image, lambda: ViT(depth=2), image, (10,)),
    "GPT-2 small of nn.Linear": Case(
        GPT, words(50257), lambda: GPT(2, 96, 4, 500), words(500), (50257, 500)
    ),
    "GPT-2 small of transformers": Case(
        gpt2, words(50257), lambda: gpt2(n_layer=2, n_embd=96, n_head=4, vocab_size=500), words(500), (50257, 500)
    ),
}  # fmt: skip


def edit(net: Any) -> None:
    """Prune half of every group that is free and not an output."""
    with net.edit() as edit:
        for group in list(net.graph.groups.values()):
            if group.frozen is None and not group.output:
                edit.prune(group.name, keep=0.5)


def build(model: nn.Module, x: Tensor, classes: tuple[int, ...]) -> Any:
    """Torch-Pruning's pruner, set up as its examples are."""
    heads = {module.qkv: module.num_heads for module in model.modules() if isinstance(module, Attention)}
    last = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features in classes]
    example = {"input_ids": x} if isinstance(model, transformers.PreTrainedModel) else x
    return torch_pruning.pruner.BasePruner(
        model, example, importance=torch_pruning.importance.MagnitudeImportance(p=1), pruning_ratio=0.5,
        ignored_layers=last, num_heads=heads,
    )  # fmt: skip


def finish(model: nn.Module, pruner: Any) -> None:
    """What its examples set by hand after pruning."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.num_heads = pruner.num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)


# -- times ---------------------------------------------------------------------------------------------------------


class Exports:
    """What becomes of ``torch.export`` inside an import: timed apart and kept, or taken from what was kept."""

    def __init__(self, kept: Iterable[Any] = ()) -> None:
        self.apart, self.original = 0.0, capture._export
        self.made: list[Any] = []
        self.kept = list(kept)

    def __enter__(self) -> Exports:
        def export(*args: Any) -> Any:
            if self.kept:
                return self.kept.pop(0)
            started = time.process_time()
            try:
                self.made.append(self.original(*args))
                return self.made[-1]
            finally:
                gc.collect()
                self.apart += time.process_time() - started

        capture._export = export
        return self

    def __exit__(self, *_: object) -> None:
        capture._export = self.original


@dataclass
class Prepared:
    """A copy of a model, to work on in place, and its exported programs."""

    model: nn.Module
    programs: list[Any]
    found: dict[str, float]


def prepare(model: nn.Module, x: Tensor) -> Prepared:
    """Import a copy, which says how long its export takes, and an import with that in between."""
    model = copy.deepcopy(model)
    gc.collect()
    with Exports() as exports:
        started = time.process_time()
        gn.from_torch(model, (x,), share=True, check=False)
        between = time.process_time() - started - exports.apart
    return Prepared(model, exports.made, {"export": exports.apart, "between": between})


def ours(prepared: Prepared, x: Tensor) -> dict[str, float]:
    found = {}
    gc.collect()
    with Exports(prepared.programs):
        started = time.process_time()
        net = gn.from_torch(prepared.model, (x,), share=True, check=False)
        found["import"] = time.process_time() - started
    started = time.process_time()
    edit(net)
    found["edit"] = time.process_time() - started
    return found


def checked(model: nn.Module, x: Tensor) -> dict[str, float]:
    gc.collect()
    with Exports() as exports:
        started = time.process_time()
        gn.from_torch(model, (x,))
        return {"with check": time.process_time() - started - exports.apart}


def theirs(model: nn.Module, x: Tensor, classes: tuple[int, ...]) -> dict[str, float]:
    model = copy.deepcopy(model)
    gc.collect()
    started = time.process_time()
    pruner = build(model, x, classes)
    built = time.process_time()
    pruner.step()
    return {"build": built - started, "step": time.process_time() - built}


def times(case: Case, rounds: int) -> dict[str, float]:
    """Median seconds of each part."""
    torch.manual_seed(0)
    model, x = case.make().eval(), case.inputs()
    collected: dict[str, list[float]] = {}
    for turn in range(-1, rounds):
        one, two = prepare(model, x), prepare(model, x)
        runs: list[Callable[[], dict[str, float]]] = [
            lambda one=one: ours(one, x),
            lambda: theirs(model, x, case.classes),
            lambda two=two: {f"{key} again": value for key, value in ours(two, x).items()},
        ]
        found = one.found | checked(model, x)
        theirs(model, x, case.classes)  # so that nothing timed comes right after its own like
        at = turn % len(runs)
        for run in (*runs[at:], *runs[:at]):
            found |= run()
        del one, two, runs
        if turn >= 0:  # the first does not count
            for key, value in found.items():
                collected.setdefault(key, []).append(value)
    return {key: statistics.median(values) for key, values in collected.items()}


# -- correctness ---------------------------------------------------------------------------------------------------


class LiveNorm(nn.Module):
    """A layer norm over some of its features; the others are zero."""

    def __init__(self, norm: nn.LayerNorm, live: Tensor) -> None:
        super().__init__()
        self.norm, self.live = norm, live

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.norm.weight[self.live], self.norm.bias[self.live]
        normed = F.layer_norm(x[..., self.live], (len(self.live),), weight, bias, self.norm.eps)
        return torch.zeros_like(x).index_copy(-1, self.live, normed)


def kept(original: Tensor, left: Tensor) -> list[Tensor]:
    """For each dimension which positions are left; the values say so, which are all different.

    Raises
    ------
    ValueError
        What is left is no block of the original.
    """
    first = torch.nonzero(original == left.flatten()[0])
    if original.dim() != left.dim() or len(first) != 1:
        raise ValueError("a value is not of the original")
    found = []
    for dim in range(original.dim()):
        line, rest = original.movedim(dim, -1), left.movedim(dim, -1)
        at = [int(first[0, d]) for d in range(original.dim()) if d != dim]
        one, two = line[tuple(at)], rest[(0,) * len(at)]
        match = torch.nonzero(two[:, None] == one[None, :])
        if len(match) != len(two):
            raise ValueError("a value is not of the original")
        found.append(match[:, 1])
    block = original
    for dim, positions in enumerate(found):
        block = block.index_select(dim, positions)
    if not torch.equal(block, left):
        raise ValueError("what is left is no block of the original")
    return found


def masked(model: nn.Module, left: dict[str, Tensor]) -> nn.Module:
    """The model with everything zero that is not left."""
    twin = copy.deepcopy(model)
    norms = {name: module for name, module in twin.named_modules() if isinstance(module, nn.LayerNorm)}
    with torch.no_grad():
        for name, tensor in twin.state_dict().items():
            if not tensor.is_floating_point() or name.endswith("running_var"):
                continue
            for dim, positions in enumerate(kept(tensor, left[name])):
                gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
                gone[positions] = False
                tensor.index_fill_(dim, torch.nonzero(gone).flatten(), 0.0)
    for name, norm in norms.items():
        parent, _, leaf = name.rpartition(".")
        positions = kept(model.get_submodule(name).weight, left[f"{name}.weight"])[0]
        setattr(twin.get_submodule(parent), leaf, LiveNorm(norm, positions))
    return twin


def verdict(model: nn.Module, x: Tensor, run: Callable[[], Any], left: dict[str, Tensor]) -> str:
    """Whether a pruned network is the model with the rest masked, and how much of it is left."""
    share = sum(value.numel() for value in left.values()) / sum(value.numel() for value in model.state_dict().values())
    try:
        found = run()
    except Exception as error:
        return f"does not run ({type(error).__name__}); kept {share:.2f}"
    try:
        expected = out(masked(model, left)(x))
    except ValueError as error:
        return f"no: {error}; kept {share:.2f}"
    gap = float((out(found) - expected).abs().max() / expected.abs().max())
    return f"{'yes' if gap <= 1e-6 else 'NO'} ({gap:.0e}); kept {share:.2f}"


def out(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else value.logits


def correctness(case: Case) -> tuple[str, str]:
    torch.manual_seed(0)
    model, x = case.small().double().eval(), case.less()
    x = x.double() if x.is_floating_point() else x
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.dim() == 1 and value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if name.endswith("running_var") else torch.randn_like(value))
            elif value.is_floating_point():
                value.mul_(1 + 1e-3 * torch.rand_like(value))  # so that no two are equal, as some are in float32
        net = gn.from_torch(model, (x,))
        edit(net)
        mine = verdict(model, x, lambda: net(x), dict(net.state_dict()))
        other = copy.deepcopy(model)
    try:
        pruner = build(other, x, case.classes)
        pruner.step()
        finish(other, pruner)
    except Exception as error:
        return mine, f"fails: {type(error).__name__}: {error}"[:60]
    with torch.no_grad():
        return mine, verdict(model, x, lambda: other(x), dict(other.state_dict()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="0: only whether the results are right")
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--fresh", action="store_true", help="free no large tensor first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if not options.fresh:
        torch.zeros(7 << 20)
    title = f"seconds of processor time on one thread, medians of {options.rounds} rotated rounds"
    table = Table(title=title)
    timed = (
        "import",
        "edit",
        "TP build",
        "TP step",
        "ratio",
        "control",
        "export",
        "between",
        "ratio",
        "check",
        "ratio",
    )
    for column in ("model", *timed):
        table.add_column(column, justify="left" if column == "model" else "right")
    right = Table(title="equal to the masked model (float64, 1e-6), and the share of the state that is kept")
    for column in ("model", "graphnet", f"Torch-Pruning {torch_pruning.__version__}"):
        right.add_column(column)
    for name, case in CASES.items():
        if options.only not in name:
            continue
        if options.rounds:
            t = times(case, options.rounds)
            mine, again = t["import"] + t["edit"], t["import again"] + t["edit again"]
            other, between, whole = t["build"] + t["step"], t["between"] + t["edit"], t["with check"] + t["edit"]
            shown = [t[key] for key in ("import", "edit", "build", "step")]
            ratios = [mine / other, again / mine]
            rest = [f"{t['export']:.3f}", f"{t['between']:.4f}", f"{between / other:.2f}"]
            rest += [f"{t['with check'] - t['between']:.4f}", f"{whole / other:.2f}"]
            table.add_row(name, *(f"{value:.4f}" for value in shown), *(f"{value:.2f}" for value in ratios), *rest)
        right.add_row(name, *correctness(case))
    console = Console(width=132)
    if options.rounds:
        console.print(table)
    console.print(right)


if __name__ == "__main__":
    main()

"""Write docs/models.md: what an import of each model gives, what can be edited of it, and how long that takes.

Run it after a change of the importer or of a layout rule: `python scripts/model_table.py [NAME ...]` measures the
models named (all of them without names) and leaves the other rows as they are; `--check` measures and writes nothing,
and fails where a row says something else than the page, times apart. Times are processor time on one thread.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import nn

import graphnet as gn
from graphnet.errors import ImportModelError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
COLUMNS = ("model", "ops", "free", "not growable", "frozen", "share", "export, s", "import, ms", "edit, ms")
TIMES = 3
"""How many of the last columns are times."""

Inputs = Callable[[], tuple[Any, ...]]


@dataclass(frozen=True)
class Example:
    """A model from a small random configuration, and inputs for it.

    Attributes
    ----------
    make, inputs : callable
    named : tuple of str
        Groups that must be free, among others.
    share : float
        Parameters of which some dimension belongs to a free group.
    double : bool
        Whether its ops exist in float64, in which models are exercised.
    """

    make: Callable[[], nn.Module]
    inputs: Inputs
    named: tuple[str, ...] = ()
    share: float = 1.0
    double: bool = True


def image(size: int, channels: int = 3) -> Inputs:
    return lambda: (torch.randn(1, channels, size, size),)


def tokens(length: int = 9, high: int = 30) -> Inputs:
    return lambda: (torch.randint(3, high, (1, length)),)


def pair() -> tuple[Any, ...]:
    return torch.randint(3, 30, (1, 9)), torch.ones(1, 9, dtype=torch.int64), torch.randint(3, 30, (1, 7))


def decoder(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 30, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 16, "use_cache": False, **more,
    }  # fmt: skip


def encoder(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 30, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 10,
        "max_position_embeddings": 16, "num_labels": 3, **more,
    }  # fmt: skip


def vision(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 10, "image_size": 8,
        "patch_size": 4, "num_labels": 3, **more,
    }  # fmt: skip


MAIN: dict[str, Example] = {
    "ResNet, basic": Example(
        lambda: tf.ResNetForImageClassification(
            tf.ResNetConfig(embedding_size=6, hidden_sizes=[8, 12], depths=[2, 1], layer_type="basic")
        ),
        image(16),
        ("resnet.encoder.stages.0.layers.0.layer.0.convolution",),
    ),
    "ResNet": Example(
        lambda: tf.ResNetForImageClassification(
            tf.ResNetConfig(embedding_size=6, hidden_sizes=[8, 12], depths=[2, 1], layer_type="bottleneck")
        ),
        image(16),
        tuple(f"resnet.encoder.stages.0.layers.0.layer.{at}.convolution" for at in (0, 2)),
    ),
    "ConvNeXt": Example(
        lambda: tf.ConvNextForImageClassification(
            tf.ConvNextConfig(hidden_sizes=[6, 8], depths=[1, 2], num_stages=2, num_labels=3, drop_path_rate=0.3)
        ),
        image(16),
        ("convnext.encoder.stages.1.layers.0.pwconv1", "convnext.encoder.stages.1.downsampling_layer.1"),
    ),
    "ViT": Example(
        lambda: tf.ViTForImageClassification(
            tf.ViTConfig(**vision(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2))
        ),
        image(8),
        ("vit.embeddings.patch_embeddings.projection", "vit.layers.0.mlp.fc1"),
    ),
    "BERT": Example(
        lambda: tf.BertForSequenceClassification(tf.BertConfig(**encoder())),
        tokens(),
        ("bert.encoder.layer.0.attention.self.query.heads", "bert.encoder.layer.1.intermediate.dense"),
    ),
    "GPT-2": Example(
        lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(vocab_size=30, n_positions=16, n_embd=12, n_layer=2, n_head=3, use_cache=False)
        ),
        tokens(),
        ("transformer.h.0.mlp.c_fc", "transformer.h.0.attn.c_attn.heads", "transformer.wte"),
    ),
    "Llama": Example(
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**decoder(num_key_value_heads=4))),
        tokens(),
        ("model.layers.0.self_attn.q_proj.heads", "model.layers.1.mlp.gate_proj"),
    ),
    "Llama, grouped queries": Example(
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**decoder(num_key_value_heads=2))),
        tokens(),
        (
            "model.layers.0.self_attn.q_proj.kv_heads", "model.layers.0.self_attn.q_proj.queries_per_kv",
            "model.layers.0.self_attn.q_proj.head_dim", "model.layers.1.self_attn.v_proj.head_dim",
        ),
    ),
    "MobileNetV2": Example(
        lambda: tf.MobileNetV2ForImageClassification(
            tf.MobileNetV2Config(depth_multiplier=0.1, min_depth=4, depth_divisible_by=4, image_size=16, num_labels=3)
        ),
        image(16),
        ("mobilenet_v2.layer.0.expand_1x1.convolution", "mobilenet_v2.layer.2.reduce_1x1.convolution"),
    ),
    "RegNet-Y": Example(
        lambda: tf.RegNetForImageClassification(
            tf.RegNetConfig(embedding_size=6, hidden_sizes=[8, 12], depths=[1, 2], groups_width=4, num_labels=3)
        ),
        image(16),
        ("regnet.encoder.stages.1.layers.0.layer.0.convolution.groups", "regnet.embedder.embedder.convolution"),
    ),
    "Swin": Example(
        lambda: tf.SwinForImageClassification(
            tf.SwinConfig(
                image_size=16, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 4], window_size=4, num_labels=3,
                drop_path_rate=0.3, hidden_dropout_prob=0.1,
            )
        ),
        image(16),
        ("swin.encoder.layers.0.blocks.1.attention.q_proj.heads", "swin.encoder.layers.0.downsample.reduction"),
    ),
}  # fmt: skip
"""The models that every group is edited of."""

FURTHER: dict[str, Example] = {
    "DistilBERT": Example(
        lambda: tf.DistilBertForSequenceClassification(
            tf.DistilBertConfig(vocab_size=30, dim=12, n_layers=2, n_heads=3, hidden_dim=10, max_position_embeddings=16)
        ),
        tokens(),
    ),
    "RoBERTa": Example(
        lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**encoder(type_vocab_size=1))), tokens()
    ),
    "ALBERT": Example(
        lambda: tf.AlbertForSequenceClassification(tf.AlbertConfig(**encoder(embedding_size=8))), tokens()
    ),
    "ELECTRA": Example(
        lambda: tf.ElectraForSequenceClassification(tf.ElectraConfig(**encoder(embedding_size=8))), tokens()
    ),
    "T5": Example(
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(
                vocab_size=30, d_model=12, d_kv=4, d_ff=10, num_layers=2, num_heads=3, use_cache=False,
                relative_attention_num_buckets=8, relative_attention_max_distance=12,
            )
        ),
        pair,
    ),
    "BART": Example(
        lambda: tf.BartForConditionalGeneration(
            tf.BartConfig(
                vocab_size=30, d_model=12, encoder_layers=1, decoder_layers=1, encoder_attention_heads=3,
                decoder_attention_heads=3, encoder_ffn_dim=10, decoder_ffn_dim=10, max_position_embeddings=16,
                use_cache=False,
            )
        ),
        pair,
    ),
    "OPT": Example(
        lambda: tf.OPTForCausalLM(
            tf.OPTConfig(
                vocab_size=30, hidden_size=12, word_embed_proj_dim=12, ffn_dim=10, num_hidden_layers=2,
                num_attention_heads=3, max_position_embeddings=16, use_cache=False,
            )
        ),
        tokens(),
    ),
    "GPT-NeoX": Example(
        lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**decoder())), tokens()
    ),
    "Mistral": Example(
        lambda: tf.MistralForCausalLM(tf.MistralConfig(**decoder(num_key_value_heads=2, sliding_window=4))), tokens()
    ),
    "Qwen2": Example(
        lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**decoder(num_key_value_heads=2))), tokens()
    ),
    "Gemma": Example(
        lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**decoder(num_key_value_heads=2, head_dim=4))), tokens()
    ),
    "Phi": Example(
        lambda: tf.PhiForCausalLM(tf.PhiConfig(**decoder())), tokens()
    ),
    "Falcon": Example(
        lambda: tf.FalconForCausalLM(tf.FalconConfig(**decoder(alibi=False))), tokens()
    ),
    "BLOOM": Example(
        lambda: tf.BloomForCausalLM(
            tf.BloomConfig(vocab_size=30, hidden_size=12, n_layer=2, n_head=3, use_cache=False)
        ),
        tokens(),
    ),
    "DeiT": Example(lambda: tf.DeiTForImageClassification(tf.DeiTConfig(**vision())), image(8)),
    "BEiT": Example(
        lambda: tf.BeitForImageClassification(
            tf.BeitConfig(**vision(use_relative_position_bias=True, drop_path_rate=0.2, out_indices=[1]))
        ),
        image(8),
    ),
    "SegFormer": Example(
        lambda: tf.SegformerForSemanticSegmentation(
            tf.SegformerConfig(
                num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 12], patch_sizes=[3, 3],
                strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=3,
            )
        ),
        image(16),
    ),
    "EfficientNet": Example(
        lambda: tf.EfficientNetForImageClassification(
            tf.EfficientNetConfig(
                image_size=16, width_coefficient=0.25, depth_coefficient=0.4, hidden_dim=320, num_labels=3,
                kernel_sizes=[3, 5], in_channels=[32, 16], out_channels=[16, 24], depthwise_padding=[], strides=[1, 2],
                num_block_repeats=[1, 1], expand_ratios=[1, 4],
            )
        ),
        image(16),
    ),
    "MobileViT": Example(
        lambda: tf.MobileViTForImageClassification(
            tf.MobileViTConfig(
                image_size=32, hidden_sizes=[12, 12, 12], neck_hidden_sizes=[4, 6, 8, 8, 8, 8, 16],
                num_attention_heads=3, num_labels=3, expand_ratio=2.0,
            )
        ),
        image(32),
    ),
    "PoolFormer": Example(
        lambda: tf.PoolFormerForImageClassification(
            tf.PoolFormerConfig(
                depths=[1, 1], hidden_sizes=[8, 12], patch_sizes=[3, 3], strides=[2, 2], padding=[1, 1], num_labels=3,
                num_encoder_blocks=2, drop_path_rate=0.2,
            )
        ),
        image(16),
    ),
    "CLIP": Example(
        lambda: tf.CLIPModel(
            tf.CLIPConfig(
                text_config={
                    "vocab_size": 30, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 1,
                    "num_attention_heads": 3, "max_position_embeddings": 16, "eos_token_id": 2,
                },
                vision_config=vision(num_hidden_layers=1),
                projection_dim=8,
            )
        ),
        lambda: (torch.randint(3, 30, (2, 9)), torch.randn(2, 3, 8, 8)),
    ),
    "wav2vec 2.0": Example(
        lambda: tf.Wav2Vec2ForCTC(
            tf.Wav2Vec2Config(
                vocab_size=12, hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=10,
                conv_dim=[8, 8], conv_kernel=[5, 3], conv_stride=[3, 2], num_feat_extract_layers=2,
                num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, mask_time_prob=0.0,
            )
        ),
        lambda: (torch.randn(2, 100),),
    ),
    "Mixtral": Example(
        lambda: tf.MixtralForCausalLM(
            tf.MixtralConfig(**decoder(num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1))
        ),
        tokens(),
        share=0.41,  # the experts are one op of its own, whose parameters are frozen
        double=False,
    ),
    "Mamba": Example(
        lambda: tf.MambaForCausalLM(
            tf.MambaConfig(vocab_size=30, hidden_size=8, state_size=4, num_hidden_layers=1, use_cache=False)
        ),
        tokens(),
    ),
}  # fmt: skip
"""Models that are tried too, a group of each kind edited."""

EXAMPLES = MAIN | FURTHER


# -- rows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What the page says of a model.

    Attributes
    ----------
    cells : tuple of str
        Of the first table, times apart.
    times : tuple of str
    kinds, restricted : str
        Of the second table.
    refused : str
        Why it is not imported.
    """

    cells: tuple[str, ...] = ()
    times: tuple[str, ...] = ()
    kinds: str = ""
    restricted: str = ""
    refused: str = ""

    @property
    def lasting(self) -> Row:
        """Everything but times, and the number of ops: a cast that float32 does without is one in float64."""
        return replace(self, cells=self.cells[1:], times=())


def described(net: Any) -> Row:
    """What a row says of an imported network, times apart."""
    groups = net.graph.groups
    free = [group for group in groups.values() if group.frozen is None]
    bounded = sum(group.no_growth is not None for group in free)
    counts = (len(net.graph.nodes), len(free), bounded, len(groups) - len(free))
    return Row((*map(str, counts), f"{share(net):.2f}"), (), kinds(net), restricted(net))


def share(net: Any) -> float:
    """Parameters of which some dimension belongs to a free group, over all."""
    free = {name for name, group in net.graph.groups.items() if group.frozen is None}
    total = held = 0
    for name, spec in net.graph.tensors.items():
        if not spec.buffer:
            count = net.tensor(name).numel()
            total += count
            held += count * any(key in free for layout in spec.dims for key in layout.atoms())
    return held / total


def kinds(net: Any) -> str:
    """What the free groups of a network are, in words."""
    found = Counter(_kind(group) for group in net.graph.groups.values() if group.frozen is None)
    return ", ".join(
        f"{count} {kind.removesuffix('s') if count == 1 else kind}" for kind, count in sorted(found.items())
    )


def _kind(group: Any) -> str:
    last = group.name.rpartition(".")[2]
    if group.output:
        return "outputs"
    if group.kind == "heads" or last.startswith("queries_per_kv"):
        return "heads"
    if last.startswith("head_dim"):
        return "head sizes"
    return "streams" if group.role == "stream" else str(group.kind)


def restricted(net: Any) -> str:
    """The reasons for which groups cannot be edited, or not grown, with how many there are; names of ops left out."""
    found: Counter[str] = Counter()
    for group in net.graph.groups.values():
        if group.frozen is not None:
            found[_general(group.frozen)] += 1
        elif group.no_growth is not None:
            found[f"cannot grow: {_general(group.no_growth)}"] += 1
    return "; ".join(f"{count} {reason}" for reason, count in sorted(found.items()))


def _general(reason: str) -> str:
    plain = re.sub(r" ?\(op '[^']*'\)|(?<=the buffer) '[^']*'", "", reason)
    return plain.replace("|", "\\|")


def edit_time(net: Any, turns: int = 3) -> float:
    """Median seconds of processor time of an edit that takes one unit out of a group."""
    spent = []
    names = [n for n, g in net.graph.groups.items() if g.frozen is None and not g.output and g.size > g.minimum + 1]
    for name in names[:turns] + names[-turns:]:
        twin = copy.deepcopy(net)
        twin.verify_on()
        started = time.process_time()
        with twin.edit() as edit:
            edit.prune(name, lowest=1)
        spent.append(time.process_time() - started)
    return statistics.median(spent)


class Apart:
    """Seconds of processor time spent in ``torch.export.export``."""

    def __enter__(self) -> Apart:
        self.seconds, self.original = 0.0, torch.export.export

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return self.original(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - started

        torch.export.export = timed  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        torch.export.export = self.original  # type: ignore[assignment]


def build(example: Example) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model and its inputs, the same each time."""
    torch.manual_seed(0)
    return example.make().eval(), example.inputs()


def measure(name: str) -> Row:
    """Everything that the page says of a model."""
    model, inputs = build(EXAMPLES[name])
    with Apart() as apart:
        started = time.process_time()
        try:
            net = gn.from_torch(model, inputs)
        except ImportModelError as error:
            return Row(refused=" ".join(str(error).split()).replace("|", "\\|"))
        spent = time.process_time() - started - apart.seconds
    times = (f"{apart.seconds:.1f}", f"{spent * 1e3:.0f}", f"{edit_time(net) * 1e3:.0f}")
    return replace(described(net), times=times)


# -- the page ------------------------------------------------------------------------------------------------------

HEAD = """# Models

Models of the transformers library from small random configurations, imported as they are (`gn.from_torch`). Nothing
is downloaded.

| column | says |
|---|---|
| ops | nodes of the graph |
| free | unit groups that can be grown and pruned; *not growable*: those of them that can only be pruned |
| frozen | groups that cannot be edited; the reasons are below |
| share | of the parameters, those of which some dimension belongs to a free group |
| export, s | `torch.export` in training and in evaluation mode |
| import, ms | everything else of the import, the comparison with the model included |
| edit, ms | one edit that prunes a unit, the median over groups at both ends of the model |

Times are processor time on one core, for these small models; `benchmarks/bench_importer.py` has large ones.
"""

MAIN_HEAD = """## Every group edited

Each free group is pruned by half (where it may become so small), and by itself grown by a quarter, in float64: pruned
equals the model with those units masked, to 1e-9 of its output (where no norm, softmax or mean is taken along them);
grown equals the model where the edit claims so; gradients and a step of Adam are finite; and the pruned network equals
itself after it went out through `to_torch` and `torch.export`, was saved, and was loaded in a process without graphnet.
"""

FURTHER_HEAD = """## A group of each kind edited

The same, of these models for the first group of each kind.
"""

KINDS_HEAD = """## What can be edited, and what cannot

Free groups by kind: channels, neurons and features are hidden widths; a stream is a residual sum with everything that
reads and writes it; heads and head sizes are the two factors of an attention's projections. Outputs can be pruned,
and grown by name. Then how many groups cannot be edited or not grown, and why.
"""


def render(rows: Mapping[str, Row]) -> str:
    """The text of the page."""
    parts = [HEAD]
    for head, models in ((MAIN_HEAD, MAIN), (FURTHER_HEAD, FURTHER)):
        lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        lines += [
            _line(name, *rows[name].cells, *rows[name].times) for name in models if name in rows and rows[name].cells
        ]
        parts.append(head + "\n" + "\n".join(lines) + "\n")
    refused = [f"- {name}: {rows[name].refused}" for name in EXAMPLES if name in rows and rows[name].refused]
    if refused:
        parts.append("Refused, with the reason that `ImportModelError` gives:\n\n" + "\n".join(refused) + "\n")
    lines = ["| model | free groups | not free, or bounded |", "|---|---|---|"]
    lines += [
        _line(name, rows[name].kinds, rows[name].restricted) for name in EXAMPLES if name in rows and rows[name].cells
    ]
    parts.append(KINDS_HEAD + "\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| – |")


def read(text: str) -> dict[str, Row]:
    """The rows of a page."""
    rows: dict[str, Row] = {}
    for line in text.splitlines():
        name, colon, reason = line.removeprefix("- ").partition(": ")
        if line.startswith("- ") and colon and name in EXAMPLES:
            rows[name] = Row(refused=reason)
        if not line.startswith("| "):
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells[0] not in EXAMPLES:
            continue
        name, rest = cells[0], ["" if cell == "–" else cell for cell in cells[1:]]
        known = rows.get(name, Row())
        if len(cells) == len(COLUMNS):
            rows[name] = replace(known, cells=tuple(rest[:-TIMES]), times=tuple(rest[-TIMES:]))
        else:
            rows[name] = replace(known, kinds=rest[0], restricted=rest[1])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure models and write the page; with `--check` only say whether it is out of date, and return 1 if so."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", help="models; all of them without names")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tf.logging.set_verbosity_error()
    stale = []
    gn.from_torch(nn.Linear(2, 2), (torch.zeros(3, 2),))  # what only the first import takes time for
    for name in options.names or EXAMPLES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = measure(name)
        print(name, *(row.cells or (row.refused,)), *row.times, flush=True)
        rows = read(PAGE.read_text(encoding="utf-8")) if PAGE.is_file() else {}
        if name not in rows or rows[name].lasting != row.lasting:
            stale.append(name)
        if not options.check:
            PAGE.write_text(render(rows | {name: row}), encoding="utf-8")
    if stale:
        print(f"out of date: {', '.join(stale)}" if options.check else f"written: {PAGE}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

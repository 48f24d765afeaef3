"""Ready-made networks: multilayer perceptron, convolutional network, residual network, transformer.

Every builder returns a validated :class:`graphnet.Graph`; the network's input is ``x`` and its last layer ``head``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any, Literal, TypeAlias

from graphnet.errors import GraphError, SchemaError
from graphnet.ir.graph import Graph
from graphnet.ir.ops import OPS, Op
from graphnet.ir.ops.activation import Activation, Dropout
from graphnet.ir.ops.arithmetic import Add
from graphnet.ir.ops.attention import Attention
from graphnet.ir.ops.conv import Conv2d
from graphnet.ir.ops.dense import Embedding, LinearOp, Positions
from graphnet.ir.ops.io import Input
from graphnet.ir.ops.norm import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from graphnet.ir.ops.pool import AdaptiveAvgPool, MaxPool
from graphnet.ir.ops.shape import Flatten

__all__ = ["ActivationLike", "convnet", "mlp", "resnet", "transformer"]

ActivationLike: TypeAlias = str | Mapping[str, Any]
"""An activation: the name of its op, or its entry in a document (``{"op": "leaky_relu", "slope": 0.1}``)."""

_MOST_BLOCKS = 1_000
"""Most blocks in all: a number by mistake is refused rather than built for hours."""

_GROUPS = 8
"""Most groups that ``norm="group"`` makes."""


def mlp(
    widths: Sequence[int],
    *,
    activation: ActivationLike = "relu",
    norm: Literal["batch", "layer", "rms", "group"] | None = None,
    dropout: float = 0.0,
    name: str = "mlp",
) -> Graph:
    """Build a multilayer perceptron: ``fc1``, ``act1``, ..., ``head`` over the input ``x[B, widths[0]]``.

    Parameters
    ----------
    widths : sequence of int
        Input, hidden layers in order, output.
    activation : str or mapping
        What follows each hidden layer (``act1`` ...).
    norm : str, optional
        A norm between each hidden layer and its activation (``norm1`` ...). ``group`` takes the greatest common
        divisor of the width and 8 as its number of groups.
    dropout : float
        Probability of zeroing a hidden unit in training (``drop1`` ...); 0 leaves the op out.

    Raises
    ------
    GraphError
        Which argument is wrong, and how.

    Examples
    --------
    >>> graph = mlp([784, 256, 10])
    >>> list(graph.ops)
    ['x', 'fc1', 'act1', 'head', 'output']
    >>> graph.group("fc1").size
    256
    """
    sizes = _counts("mlp", "widths", widths)
    if len(sizes) < 2:
        raise GraphError(f"mlp: widths must name at least the input and the output, not {list(sizes)}")
    chain = _Chain("mlp", Input(name="x", shape=(sizes[0],)))
    _hidden_layers(chain, sizes[1:-1], activation, norm, _share("mlp", "dropout", dropout))
    chain.add(LinearOp, "head", out=sizes[-1])
    return chain.graph(name)


def convnet(
    input_shape: Sequence[int] = (3, 32, 32),
    *,
    channels: Sequence[int] = (32, 64),
    hidden: Sequence[int] = (512, 512, 256),
    classes: int = 10,
    kernel: int = 3,
    activation: ActivationLike = "relu",
    norm: Literal["batch", "group"] | None = None,
    pool: int | None = 2,
    dropout: float = 0.0,
    name: str = "convnet",
) -> Graph:
    """Build a convolutional trunk with fully connected layers on top.

    The ops are ``conv1``, ``act_c1``, ``pool1``, ``conv2``, ..., ``flatten``, ``fc1``, ``act1``, ..., ``head``.
    Defaults are the CIFAR network of "On the Stability of Growth in Structural Plasticity" (arXiv 2605.15435).

    Parameters
    ----------
    input_shape : (int, int, int)
        Channels, height and width of an image.
    channels, hidden : sequence of int
        Widths of the convolutions and of the hidden fully connected layers.
    classes : int
        Width of the output.
    kernel : int
        Side of every convolution's kernel; odd, padded so that the image keeps its size.
    norm : str, optional
        A norm between each layer and its activation (``norm_c1`` ..., ``norm1`` ...).
    pool : int, optional
        Side and stride of the maximum pool after each convolution; None leaves it out.
    dropout : float
        Probability of zeroing a hidden unit of a fully connected layer in training (``drop1`` ...); 0 leaves it out.

    Raises
    ------
    GraphError
        Which argument is wrong, and how.

    Examples
    --------
    >>> graph = convnet()
    >>> graph.shape(graph.tensors["fc1.weight"])
    (512, 4096)
    >>> str(graph.tensors["fc1.weight"].dims[1])
    'conv2*64'
    """
    chain = _Chain("convnet", Input(name="x", shape=_image("convnet", input_shape)))
    window = None if pool is None else _count("convnet", "pool", pool)
    _odd("convnet", kernel)
    for index, width in enumerate(_counts("convnet", "channels", channels, least=1), 1):
        chain.add(Conv2d, f"conv{index}", out=width, kernel=kernel, padding=kernel // 2)
        chain.norm(f"norm_c{index}", norm, width, choices=("batch", "group"))
        chain.activation(f"act_c{index}", activation)
        if window is not None:
            chain.add(MaxPool, f"pool{index}", kernel=window)
    chain.add(Flatten, "flatten")
    widths = _counts("convnet", "hidden", hidden)
    _hidden_layers(chain, widths, activation, norm, _share("convnet", "dropout", dropout))
    chain.add(LinearOp, "head", out=_count("convnet", "classes", classes))
    return chain.graph(name)


def resnet(
    input_shape: Sequence[int] = (3, 32, 32),
    *,
    stages: Sequence[int] = (16, 32, 64),
    blocks: int | Sequence[int] = 2,
    classes: int = 10,
    activation: ActivationLike = "relu",
    norm: Literal["batch", "group"] | None = "batch",
    name: str = "resnet",
) -> Graph:
    """Build a residual network of basic blocks in the form used on CIFAR (He et al. 2016, arXiv 1512.03385).

    A stem ``conv1``, then stages ``layer1``, ``layer2`` ... whose blocks ``layer1.0`` ... hold ``conv1``, ``norm1``,
    ``act1``, ``conv2``, ``norm2``, ``add`` and ``act2``; every stage after the first halves the image. Where a block
    changes width or size its shortcut is a projection (``downsample.conv``, ``downsample.norm``). Then a global
    average pool ``pool``, ``flatten`` and ``head``.

    Parameters
    ----------
    input_shape : (int, int, int)
        Channels, height and width of an image.
    stages : sequence of int
        Channels of each stage.
    blocks : int or sequence of int
        Blocks in each stage.
    classes : int
        Width of the output.
    norm : str, optional
        The norm after each convolution; convolutions have a bias only without one.

    Raises
    ------
    GraphError
        Which argument is wrong, and how.

    Examples
    --------
    >>> graph = resnet((3, 32, 32), stages=(16, 32), blocks=1, classes=10)
    >>> graph.group("layer2.0.conv2").role
    'stream'
    >>> graph.group("layer2.0.conv2") == graph.group("layer2.0.downsample.conv")
    True
    """
    chain = _Chain("resnet", Input(name="x", shape=_image("resnet", input_shape)))
    widths = _counts("resnet", "stages", stages, least=1)
    counts = (blocks,) * len(widths) if isinstance(blocks, int) else blocks
    depths = _counts("resnet", "blocks", counts)
    _layers("resnet", "blocks", sum(depths))
    if len(depths) != len(widths):
        raise GraphError(f"resnet: blocks names {len(depths)} stages, stages names {len(widths)}")

    def conv(at: str, norm_at: str, width: int, *, kernel: int = 3, stride: int = 1) -> None:
        chain.add(
            Conv2d, at, out=width, kernel=kernel, stride=stride, padding=kernel // 2, bias=norm is None
        )  # fmt: skip
        chain.norm(norm_at, norm, width, choices=("batch", "group"))

    conv("conv1", "norm1", widths[0])
    chain.activation("act1", activation)
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
        for block in range(depth):
            at, entry, stride = f"layer{stage}.{block}", chain.last, 2 if stage > 1 and block == 0 else 1
            conv(f"{at}.conv1", f"{at}.norm1", width, stride=stride)
            chain.activation(f"{at}.act1", activation)
            conv(f"{at}.conv2", f"{at}.norm2", width)
            branch = chain.last
            chain.last = entry
            if stride != 1:  # the first stage has the width of the stem
                conv(f"{at}.downsample.conv", f"{at}.downsample.norm", width, kernel=1, stride=stride)
            chain.add(Add, f"{at}.add", inputs=(branch, chain.last))
            chain.activation(f"{at}.act2", activation)
    chain.add(AdaptiveAvgPool, "pool", size=1)
    chain.add(Flatten, "flatten")
    chain.add(LinearOp, "head", out=_count("resnet", "classes", classes))
    return chain.graph(name)


def transformer(
    vocabulary: int,
    *,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    kv_heads: int | None = None,
    context: int = 128,
    hidden: int | None = None,
    norm: Literal["layer", "rms"] = "layer",
    activation: ActivationLike = "gelu",
    dropout: float = 0.0,
    tied: bool = False,
    causal: bool = True,
    name: str = "transformer",
) -> Graph:
    """Build a decoder with pre-norm blocks and learned positions, for tokens ``x[B, time]`` of type int64.

    The ops are ``tok``, ``pos``, then for each block ``blocks.0.norm1``, ``q_proj``, ``k_proj``, ``v_proj``, ``attn``,
    ``o_proj``, ``add1``, ``norm2``, ``fc1``, ``act``, ``fc2``, ``add2``, then ``norm`` and ``head``. The output is
    ``[B, time, vocabulary]``; ``time`` may change from batch to batch, up to ``context``.

    Parameters
    ----------
    vocabulary : int
        Number of tokens.
    width, depth, heads : int
        Features of the residual stream, blocks, attention heads (``heads`` divides ``width``).
    kv_heads : int, optional
        Key-value heads that the query heads share (grouped-query attention); as many as ``heads`` by default.
    context : int
        The most positions.
    hidden : int, optional
        Feed-forward units of a block; ``4 * width`` by default.
    dropout : float
        Probability of zeroing an element of a branch before it is added (``drop1``, ``drop2``); 0 leaves it out.
    tied : bool
        Whether ``head`` shares the weight of ``tok``.
    causal : bool
        Whether a position sees only itself and those before it.

    Raises
    ------
    GraphError
        Which argument is wrong, and how.

    Examples
    --------
    >>> graph = transformer(65, width=32, depth=1, heads=4, context=16)
    >>> str(graph.tensors["blocks.0.q_proj.weight"].dims[0])
    'blocks.0.q_proj.heads*blocks.0.q_proj.head_dim'
    >>> graph.group("blocks.0.fc1").size
    128
    """
    tokens = _count("transformer", "vocabulary", vocabulary)
    width, depth = _count("transformer", "width", width), _count("transformer", "depth", depth)
    heads, context = _count("transformer", "heads", heads), _count("transformer", "context", context)
    shared = heads if kv_heads is None else _count("transformer", "kv_heads", kv_heads)
    if width % heads:
        raise GraphError(f"transformer: width {width} cannot be divided among {heads} heads")
    if heads % shared:
        raise GraphError(f"transformer: {heads} heads cannot share {shared} key-value heads equally")
    _layers("transformer", "depth", depth)
    units = 4 * width if hidden is None else _count("transformer", "hidden", hidden)
    p = _share("transformer", "dropout", dropout)
    kinds = ("layer", "rms")
    chain = _Chain("transformer", Input(name="x", shape=("time",), dtype="int64", high=tokens))
    chain.add(Embedding, "tok", count=tokens, dim=width)
    chain.add(Positions, "pos", length=context)
    for block in range(depth):
        at, stream = f"blocks.{block}", chain.last
        chain.norm(f"{at}.norm1", norm, width, choices=kinds, needed=True)
        normed = chain.last
        for which, count in (("q", heads), ("k", shared), ("v", shared)):
            chain.add(LinearOp, f"{at}.{which}_proj", inputs=(normed,), out=width // heads * count)
        chain.add(
            Attention, f"{at}.attn", inputs=tuple(f"{at}.{which}_proj" for which in "qkv"), heads=heads,
            kv_heads=None if shared == heads else shared, causal=_flag("transformer", "causal", causal),
        )  # fmt: skip
        chain.add(LinearOp, f"{at}.o_proj", out=width)
        chain.dropout(f"{at}.drop1", p)
        chain.add(Add, f"{at}.add1", inputs=(stream, chain.last))
        stream = chain.last
        chain.norm(f"{at}.norm2", norm, width, choices=kinds, needed=True)
        chain.add(LinearOp, f"{at}.fc1", out=units)
        chain.activation(f"{at}.act", activation)
        chain.add(LinearOp, f"{at}.fc2", out=width)
        chain.dropout(f"{at}.drop2", p)
        chain.add(Add, f"{at}.add2", inputs=(stream, chain.last))
    chain.norm("norm", norm, width, choices=kinds, needed=True)
    chain.add(LinearOp, "head", out=tokens, bias=False, tied="tok" if _flag("transformer", "tied", tied) else None)
    return chain.graph(name)


class _Chain:
    """Ops under construction; each reads the one before it unless told otherwise."""

    def __init__(self, builder: str, first: Op) -> None:
        self.builder = builder
        self.ops: list[Op] = [first]
        self.last = first.name

    def add(self, kind: type[Op], name: str, *, inputs: tuple[str, ...] | None = None, **attributes: Any) -> None:
        """Append an op and make it the last."""
        try:
            self.ops.append(kind(name=name, inputs=inputs or (self.last,), **attributes))
        except SchemaError as error:
            raise GraphError(f"{self.builder}: op {name!r}: {error}") from None
        self.last = name

    def activation(self, name: str, activation: ActivationLike) -> None:
        """Append an activation given by name or by its entry in a document."""
        entry = {"op": activation} if isinstance(activation, str) else activation
        if not isinstance(entry, Mapping):
            raise GraphError(
                f"{self.builder}: activation is the name of an op or a mapping with its attributes, not {activation!r}"
            )
        known = sorted(key for key, kind in OPS.items() if issubclass(kind, Activation) and kind is not Dropout)
        kind = entry.get("op")
        if kind not in known:
            raise GraphError(f"{self.builder}: activation {kind!r} is not one of {', '.join(known)}")
        attributes: dict[str, Any] = {
            str(key): value for key, value in entry.items() if key not in ("op", "name", "inputs")
        }
        self.add(OPS[kind], name, **attributes)

    def norm(
        self, name: str, norm: str | None, width: int, *, choices: tuple[str, ...], needed: bool = False
    ) -> None:  # fmt: skip
        """Append a norm over ``width`` units; None appends nothing."""
        if norm is None and not needed:
            return
        if not isinstance(norm, str) or norm not in choices:
            raise GraphError(f"{self.builder}: norm {norm!r} is not one of {', '.join(choices)}")
        if norm == "group":
            self.add(GroupNorm, name, groups=gcd(width, _GROUPS))
        else:
            kinds: dict[str, type[Op]] = {"batch": BatchNorm, "layer": LayerNorm, "rms": RMSNorm}
            self.add(kinds[norm], name)

    def dropout(self, name: str, p: float) -> None:
        """Append dropout; none where p is 0."""
        if p:
            self.add(Dropout, name, p=p)

    def graph(self, name: str) -> Graph:
        """Build the graph; the last op is its output."""
        if not _is_text(name):
            raise GraphError(f"{self.builder}: name must be a text that is not empty, not {name!r}")
        return Graph.from_ops(self.ops, [self.last], name=name)


def _hidden_layers(
    chain: _Chain, widths: Sequence[int], activation: ActivationLike, norm: str | None, dropout: float
) -> None:  # fmt: skip
    for index, width in enumerate(widths, 1):
        chain.add(LinearOp, f"fc{index}", out=width)
        chain.norm(f"norm{index}", norm, width, choices=("batch", "layer", "rms", "group"))
        chain.activation(f"act{index}", activation)
        chain.dropout(f"drop{index}", dropout)


def _count(builder: str, what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise GraphError(f"{builder}: {what} must be an integer of at least 1, not {value!r}")
    return value


def _layers(builder: str, what: str, count: int) -> None:
    if count > _MOST_BLOCKS:
        raise GraphError(f"{builder}: {what} of {count:,} in all; a builder makes at most {_MOST_BLOCKS:,}")


def _flag(builder: str, what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise GraphError(f"{builder}: {what} is True or False, not {value!r}")
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _counts(builder: str, what: str, values: Any, *, least: int = 0) -> tuple[int, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise GraphError(f"{builder}: {what} must be a list of integers, not {values!r}")
    if len(values) < least:
        raise GraphError(f"{builder}: {what} must hold at least {least} integer(s)")
    return tuple(_count(builder, f"{what}[{index}]", value) for index, value in enumerate(values))


def _share(builder: str, what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise GraphError(f"{builder}: {what} must be a number from 0 up to, not including, 1, not {value!r}")
    return float(value)


def _image(builder: str, shape: Any) -> tuple[int, ...]:
    sizes = _counts(builder, "input_shape", shape)
    if len(sizes) != 3:
        raise GraphError(f"{builder}: input_shape must be (channels, height, width), not {sizes}")
    return sizes


def _odd(builder: str, kernel: Any) -> None:
    if _count(builder, "kernel", kernel) % 2 == 0:
        raise GraphError(f"{builder}: kernel must be odd, so that the padded image keeps its size, not {kernel}")

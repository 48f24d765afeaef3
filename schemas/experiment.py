"""Experiment documents: dense, pruned and grown networks at matched data, optimizer and compactness.

The defaults are those of the protocol of Lillo & Cheney 2026 (2605.15435) where it states one, and ours where
it is silent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag, model_validator

from graphnet.schemas.base import Document, Frozen, load_document, problem
from graphnet.schemas.policy import Choice, Name, Named, require_one

__all__ = [
    "Adam", "AdamW", "Architecture", "Backbone", "Bias", "Checkpoints", "ConvNet", "Data", "Dense",
    "Evaluation", "Experiment",
    "GrowMethod", "Interventions", "Method", "Mlp", "Model", "MomentTransplant", "Optimizer",
    "Probes", "PruneMethod", "Sgd", "Ticket", "Training", "TwoSpeed", "load_experiment_document",
]  # fmt: skip

Positive: TypeAlias = Annotated[int, Field(gt=0)]
OpenShare: TypeAlias = Annotated[float, Field(gt=0, le=1)]

BIAS_FACTORS: dict[str, tuple[float, ...]] = {
    "fc1-protect": (1.5, 1.5, 0.6),
    "fc3-protect": (0.6, 0.6, 1.5),
    "ends-skewed": (1.2, 0.6, 1.2),
}
"""Factor of each of three editable groups (2605.15435); `neutral` is 1 for any number of them."""


def _check_differ(names: Sequence[Any], *at: str | int, field: str | None = None) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            tail = (field,) if field else ()
            raise problem(f"found {name!r} a second time; expected values that differ", *at, i, *tail)


# ----------------------------------------------------------------------------------------- data and backbones


class Data(Frozen):
    """Which dataset, from where, and how much of it."""

    name: Name
    root: str | None = Field(default=None, description="its folder; GRAPHNET_DATA where absent")
    limit_train: int | None = Field(default=None, gt=0, description="use only so many training examples")
    limit_test: int | None = Field(default=None, gt=0)
    validation: float = Field(default=0.0, ge=0, lt=1, description="share of the training set held out")


class Mlp(Frozen):
    """A multilayer perceptron; `sizes` are input, hidden layers and output."""

    builder: Literal["mlp"] = "mlp"
    sizes: tuple[Positive, ...] = Field(min_length=2)
    activation: Named = Choice(name="relu")
    bias: bool = True


class ConvNet(Frozen):
    """The protocol's network: 3x3 convolutions with 2x2 pooling, then fully connected layers."""

    builder: Literal["convnet"] = "convnet"
    input_shape: tuple[Positive, Positive, Positive] = Field(
        default=(3, 32, 32), description="[channels, height, width]"
    )
    channels: tuple[Positive, ...] = Field(default=(32, 64), min_length=1)
    hidden: tuple[Positive, ...] = (512, 512, 256)
    classes: Positive = 10
    activation: Named = Choice(name="relu")


class Architecture(Frozen):
    """An architecture, by `path` (relative to the experiment's file) or written out as `document`."""

    builder: Literal["architecture"] = "architecture"
    path: Name | None = None
    document: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _check(self) -> Architecture:
        require_one(self, "path", "document")
        return self


def _path_is_architecture(value: Any) -> Any:
    if isinstance(value, str):
        return {"builder": "architecture", "path": value}
    return value


AnyModel: TypeAlias = Annotated[Mlp | ConvNet | Architecture, Field(discriminator="builder")]
Model: TypeAlias = Annotated[AnyModel, BeforeValidator(_path_is_architecture, json_schema_input_type=str | AnyModel)]


class Backbone(Frozen):
    """A network, and the unit groups of it that the methods edit."""

    name: Name
    model: Model
    editable: tuple[Name, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Backbone:
        _check_differ(self.editable, "editable")
        return self


# ---------------------------------------------------------------------------------------------------- methods


class _Labelled(Frozen):
    label: Name | None = Field(default=None, description="its name in the report; the method's where absent")


class Dense(_Labelled):
    """All units from the start."""

    method: Literal["dense"] = "dense"


class PruneMethod(_Labelled):
    """Start full; at each cycle remove the lowest units, rewind the survivors, train."""

    method: Literal["prune"] = "prune"
    score: Named = Choice(name="magnitude")
    rewind: Literal["init", "snapshot", "none"] = "init"
    snapshot_epoch: int | None = Field(default=None, ge=1, description="the snapshot is taken after so many epochs")

    @model_validator(mode="after")
    def _check(self) -> PruneMethod:
        if (self.rewind == "snapshot") != (self.snapshot_epoch is not None):
            raise problem("expected with rewind: snapshot, and only then", "snapshot_epoch")
        return self


class TwoSpeed(Frozen):
    """Newborn updates are scaled by `rate` for `steps` steps after birth (2605.15435)."""

    rate: float = Field(default=5.0, gt=0)
    steps: int = Field(default=1955, gt=0, description="optimizer steps")


class MomentTransplant(Frozen):
    """Newborns get an active donor's optimizer moments (2605.15435): the second only, or both."""

    moments: Literal["second", "both"] = "second"


class Interventions(Frozen):
    """What is done for newborns beyond their birth."""

    two_speed: TwoSpeed | None = None
    moment_transplant: MomentTransplant | None = None


class GrowMethod(_Labelled):
    """Start from a seed of active units; at each cycle add units, without rewinding."""

    method: Literal["grow"] = "grow"
    select: Literal["activation-frequency", "gradient", "gate", "random"] = "activation-frequency"
    tau: float = Field(default=0.05, description="a post-activation above it counts as active")
    seed_share: OpenShare = 0.1
    init: Named = Field(
        default=Choice(name="recruit"), description="`recruit` from a masked backbone, or an initialiser"
    )
    state: Literal["cold", "aged", "transplant", "scaled"] = "cold"
    interventions: Interventions = Interventions()


Method: TypeAlias = Annotated[Dense | PruneMethod | GrowMethod, Field(discriminator="method")]


# --------------------------------------------------------------------------------------------------- training


class _Optimizer(Frozen):
    lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class Sgd(_Optimizer):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _check(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise problem("found nesterov with momentum 0; expected a momentum above 0", "momentum")
        return self


class Adam(_Optimizer):
    """Adam (Kingma & Ba 2015, 1412.6980); the decay is coupled to the gradient."""

    name: Literal["adam"] = "adam"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)


class AdamW(_Optimizer):
    """Adam with decoupled decay (Loshchilov & Hutter 2019, 1711.05101)."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)


Optimizer: TypeAlias = Annotated[Sgd | Adam | AdamW, Field(discriminator="name")]


class Training(Frozen):
    """The schedule that every method shares: `cycles` of `epochs_per_cycle` epochs."""

    cycles: Positive = 5
    epochs_per_cycle: Positive = 20
    batch_size: Positive = 128
    optimizer: Optimizer = Sgd(lr=0.01)
    lr_schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="cosine goes to zero over the whole horizon"
    )


class Ticket(Frozen):
    """Retrain the final structure alone, from new weights or rewound ones."""

    enabled: bool = True
    init: Literal["reinitialise", "rewind"] = "reinitialise"
    epochs: int | None = Field(default=None, gt=0, description="the whole schedule's where absent")


class Probes(Frozen):
    """Measurements on a side batch."""

    parity: bool = True
    tau: float = 0.05
    age_curve_every: int | None = Field(
        default=None, gt=0, description="optimizer steps between points; none where absent"
    )
    batch: Positive = Field(default=256, description="examples in the side batch")


class Evaluation(Frozen):
    """How often, and in what batches, the test set is scored; the end of each cycle always is."""

    every_epochs: Positive = 1
    batch_size: Positive = 1024


class Checkpoints(Frozen):
    """How often a run is saved so that it can resume; the end of each cycle where absent."""

    every_epochs: int | None = Field(default=None, gt=0)


def _count_is_range(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 < value <= 10_000:
            raise problem("expected a number of seeds from 1 to 10000, or a list of seeds")
        return tuple(range(value))
    return value


def _bias(value: Any) -> Any:
    names = ("neutral", *BIAS_FACTORS)
    if value in names if isinstance(value, str) else isinstance(value, (list, tuple)):
        return value
    raise problem(f"expected one of {', '.join(names)}, or a list with one factor for each editable group")


Seeds: TypeAlias = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**63)], ...],
    Field(min_length=1),
    BeforeValidator(_count_is_range, json_schema_input_type=Positive | list[int]),
]
BiasName: TypeAlias = Literal["neutral", "fc1-protect", "fc3-protect", "ends-skewed"]
Factors: TypeAlias = tuple[Annotated[float, Field(gt=0)], ...]
Bias: TypeAlias = Annotated[
    Annotated[BiasName, Tag("name")] | Annotated[Factors, Tag("factors")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "factors"),
    BeforeValidator(_bias, json_schema_input_type=BiasName | list[float]),
]


class Experiment(Document):
    """Every method on every backbone, compactness and seed.

    Examples
    --------
    >>> experiment = Experiment(
    ...     data=Data(name="mnist"),
    ...     backbones=[Backbone(name="mlp", model=Mlp(sizes=[784, 256, 256, 10]), editable=["fc1", "fc2"])],
    ...     methods=[Dense(), PruneMethod(), GrowMethod(label="ours", init="gradmax")],
    ...     seeds=3,
    ... )
    >>> experiment.seeds, experiment.labels(), experiment.bias_factors("mlp")
    ((0, 1, 2), ('dense', 'prune', 'ours'), (1.0, 1.0))
    """

    kind: Literal["experiment"] = "experiment"
    data: Data
    backbones: tuple[Backbone, ...] = Field(min_length=1)
    methods: tuple[Method, ...] = Field(min_length=1)
    compactness: tuple[OpenShare, ...] = Field(default=(0.2, 0.3, 0.4, 0.5), min_length=1)
    bias: Bias = "neutral"
    seeds: Seeds = tuple(range(10))
    train: Training = Training()
    ticket: Ticket = Ticket()
    probes: Probes = Probes()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    workers: Positive = Field(default=1, description="processes")
    threads: Positive = Field(default=1, description="threads of each process")
    precision: Literal["float32", "float64"] = "float32"
    output: Name | None = Field(default=None, description="folder of the run; chosen by the runner where absent")

    def labels(self) -> tuple[str, ...]:
        """Return the name of each method in reports."""
        return tuple(method.label or method.method for method in self.methods)

    def bias_factors(self, backbone: str) -> tuple[float, ...]:
        """Return the bias of each editable group of the backbone of that name, in order."""
        count = next(len(b.editable) for b in self.backbones if b.name == backbone)
        if isinstance(self.bias, str):
            return BIAS_FACTORS.get(self.bias, (1.0,) * count)
        return self.bias

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        _check_differ([b.name for b in self.backbones], "backbones", field="name")
        _check_differ(self.labels(), "methods", field="label")
        _check_differ(self.compactness, "compactness")
        _check_differ(self.seeds, "seeds")
        for backbone in self.backbones:
            factors = self.bias_factors(backbone.name)
            if len(factors) != len(backbone.editable):
                raise problem(
                    f"found {len(factors)} factors for the {len(backbone.editable)} editable groups of "
                    f"backbone {backbone.name!r}; expected one for each, or neutral",
                    "bias",
                )
        for i, method in enumerate(self.methods):
            if isinstance(method, GrowMethod) and method.seed_share > min(self.compactness):
                raise problem(
                    f"found {method.seed_share:g}, above the lowest compactness {min(self.compactness):g}; "
                    "expected a seed no larger than what it grows into",
                    "methods", i, "seed_share",
                )  # fmt: skip
            if isinstance(method, PruneMethod) and method.snapshot_epoch is not None:
                horizon = self.train.epochs_per_cycle
                if method.snapshot_epoch > horizon:
                    raise problem(
                        f"found {method.snapshot_epoch}; expected at most {horizon}, one cycle's epochs",
                        "methods", i, "snapshot_epoch",
                    )  # fmt: skip
        return self


def load_experiment_document(source: Path | str | Mapping[str, Any]) -> Experiment:
    """Return the experiment in a file or a mapping.

    Raises
    ------
    SchemaError
        The document cannot be read or is no experiment; lists every problem.
    """
    return load_document(Experiment, source, kind="experiment")

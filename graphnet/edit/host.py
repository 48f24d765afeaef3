"""What an edit needs of the network that it edits (implemented by :class:`graphnet.Network`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

from graphnet.ir.graph import Graph
from graphnet.ir.layout import Layout

__all__ = ["Batch", "Evaluation", "Host", "Loss", "OptimizerKind", "Slot", "SlotKey", "Snapshot"]

Batch: TypeAlias = "tuple[Any, ...]"
"""Inputs, or inputs and target: ``(x, y)``; a tuple of inputs in place of ``x`` where there are several."""

Loss: TypeAlias = Callable[..., Tensor]
"""``loss(output, target)``, a scalar."""

OptimizerKind: TypeAlias = Literal["adam", "sgd", "coupled", "cleared"]
"""``adam``: each element's update stays what it is when all its gradients are multiplied by one positive number;
``sgd``: it does not. ``coupled``: an update depends on other elements too; ``cleared``: and an edit clears the
state."""

SlotKey: TypeAlias = tuple[str, ...]
"""``("grad", tensor)``; ``("state" | "means", optimizer, tensor, key)``; ``("birth" | "rate" ..., optimizer, tensor,
dim)`` (:data:`graphnet.edit.states.NEUTRAL`); ``("average" | "carried", average, tensor)``."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor that follows a parameter through every edit: its gradient, a moment, the birth of its rows.

    Attributes
    ----------
    key : tuple of str
    tensor : str
        The parameter's name.
    base : Tensor
    dims : tuple of Layout
    newborn : float or "weight"
        What a newborn slot holds unless a state policy writes it; ``weight``: what the parameter itself holds there.
    power : float
        How the slot scales with the gradient: 1 for a first moment, 2 for a second one, 0 for neither.
    magnitude : bool
        Whether it measures the size of gradients or updates.
    axes : tuple of int, optional
        Which dimensions of the parameter ``dims`` are, -1 where it is none; None for all of them, in order.
    """

    key: SlotKey
    tensor: str
    base: Tensor
    dims: tuple[Layout, ...]
    newborn: float | Literal["weight"] = 0.0
    power: float = 0.0
    magnitude: bool = False
    axes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one evaluation of a network on a batch gave.

    Attributes
    ----------
    output : Any
    loss : Tensor or None
    activations, gradients : mapping of op to Tensor
        The tapped outputs and the loss's gradient with respect to each.
    parameters : mapping of tensor name to Tensor
        The loss's gradient with respect to the parameters asked for.
    """

    output: Any
    loss: Tensor | None
    activations: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The tensors of a network at one moment, with the graph that says which unit each slice belongs to."""

    graph: Graph
    tensors: Mapping[str, Tensor]
    reserve: Mapping[str, Tensor] = field(default_factory=dict)


class Host(Protocol):
    """The network behind an edit."""

    def live(self, name: str) -> Tensor:
        """A stored tensor, detached; not to be changed."""

    def slots(self, name: str) -> Sequence[Slot]:
        """Everything that follows this tensor."""

    def step_of(self, optimizer: str, name: str) -> int | None:
        """The optimizer's step count of a parameter; None when it has not stepped or keeps no count."""

    def steps_taken(self, optimizer: str) -> int:
        """Steps that the optimizer has taken since it was attached."""

    def optimizer_kind(self, optimizer: str) -> OptimizerKind:
        """How its updates depend on gradients."""

    def optimizers_of(self, name: str) -> Sequence[str]:
        """The attached optimizers that hold a parameter, by key."""

    def reserve_of(self, name: str) -> Tensor | None:
        """The weights of dormant units beside the live ones, over the extended layouts of a tensor."""

    def evaluate(
        self,
        graph: Graph,
        tensors: Mapping[str, Tensor],
        batch: Batch,
        loss: Loss | None = None,
        *,
        taps: Sequence[str] = (),
        parameters: Sequence[str] = (),
        gates: Mapping[str, Tensor] | None = None,
        each_sample: Callable[[Mapping[str, Tensor]], None] | None = None,
    ) -> Evaluation:
        """Run a graph with these tensors on a batch, in evaluation mode, changing nothing.

        With ``each_sample`` the gradients of the ``parameters`` are taken for one sample at a time and handed to it,
        ``[samples, *shape]`` by name, some samples a call; the evaluation then holds the mean loss alone.
        """

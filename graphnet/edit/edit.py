"""The edit that a user holds in ``with net.edit() as edit``: operators by name, on one plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from graphnet.edit import operators
from graphnet.edit.host import Batch, Loss, Snapshot
from graphnet.edit.plan import Plan, Preserves, Step
from graphnet.errors import EditError
from graphnet.ir.graph import Graph

__all__ = ["Edit"]

T = TypeVar("T")


class Edit:
    """One transaction. Operators describe; the network commits when the ``with`` block ends without an error.

    Each operator sees the network as the ones before it leave it. An operator that raises leaves the plan in no
    usable state: the transaction is then refused as a whole, even if the error is caught inside the block.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._failed: str | None = None
        self._open = True

    @property
    def graph(self) -> Graph:
        """The graph as it will be."""
        return self._plan.graph

    @property
    def plan(self) -> Plan:
        """The plan, for operators of your own."""
        return self._plan

    def grow(
        self,
        group: str,
        count: int,
        *,
        init: str = "zero-outgoing",
        state: str = "aged",
        preserves: Preserves | None = None,
        batch: Batch | None = None,
        loss: Loss | None = None,
        speed: tuple[float, int] | None = None,
        state_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[int, ...]:
        """Add newborn units at the end of a group.

        Parameters
        ----------
        group : str
            A unit group, or an op that writes one.
        count : int
        init : str
            Initialiser: ``zero-outgoing`` (function preserved), ``kaiming``, ``copy-std``, ``net2wider``,
            ``gradmax``; ``options`` are its own.
        state : str
            State policy: ``aged``, ``cold``, ``transplant``, ``scaled``; ``state_options`` are its own.
        preserves : {"function", "approximate", "none"}, optional
            A promise: refused where it does not hold. Without it the version's record says what held.
        batch, loss : optional
            ``(x, y)`` and ``f(output, y)``, for initialisers that need data.
        speed : (float, int), optional
            Two-Speed: what the newborns' updates are multiplied by, and for how many optimizer steps.

        Returns
        -------
        tuple of int
            Ids of the newborns.

        Raises
        ------
        EditError
            Nothing was changed; says why.
        FrozenGroupError
            Structure fixes the group's size.
        """
        return self._do(
            operators.grow, group, count, init=init, state=state, preserves=preserves, batch=batch, loss=loss,
            speed=speed, options=options, state_options=state_options,
        )  # fmt: skip

    def prune(
        self,
        group: str,
        *,
        units: Sequence[int] | None = None,
        lowest: int | None = None,
        keep: float | int | None = None,
        score: str = "magnitude",
        preserves: Preserves | None = None,
        batch: Batch | None = None,
        loss: Loss | None = None,
        **options: Any,
    ) -> tuple[int, ...]:
        """Remove units for good: by id, the ``lowest`` so many by a score, or all but the best ``keep``.

        Parameters
        ----------
        keep : float or int, optional
            A share (``0.5``) or a count.
        score : str
            ``magnitude``, ``activation-frequency``, ``gradient``, ``gate``, ``taylor``, ``random``.

        Returns
        -------
        tuple of int
            Ids of the units that went.
        """
        return self._do(
            operators.prune, group, units=units, lowest=lowest, keep=keep, score=score, preserves=preserves,
            batch=batch, loss=loss, options=options,
        )  # fmt: skip

    def retire(
        self,
        group: str,
        *,
        units: Sequence[int] | None = None,
        lowest: int | None = None,
        keep: float | int | None = None,
        score: str = "magnitude",
        batch: Batch | None = None,
        loss: Loss | None = None,
        **options: Any,
    ) -> tuple[int, ...]:
        """Make units dormant: they leave the forward pass and keep their ids and weights.

        A dormant unit costs memory and no compute; gradients, decay and momentum do not reach it. Its optimizer
        state is dropped.
        """
        return self._do(
            operators.retire, group, units=units, lowest=lowest, keep=keep, score=score, batch=batch, loss=loss,
            options=options,
        )  # fmt: skip

    def recruit(
        self,
        group: str,
        *,
        units: Sequence[int] | None = None,
        highest: int | None = None,
        score: str = "activation-frequency",
        state: str = "aged",
        batch: Batch | None = None,
        loss: Loss | None = None,
        speed: tuple[float, int] | None = None,
        state_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[int, ...]:
        """Bring dormant units back with the weights that they had: by id, or the ``highest`` so many by a score.

        Scores read what a dormant unit would do while the rest of the network runs as it is: its activation, or
        the gradient that would reach it. ``state`` and ``speed`` are as in :meth:`grow`.
        """
        return self._do(
            operators.recruit, group, units=units, highest=highest, score=score, state=state, batch=batch, loss=loss,
            speed=speed, options=options, state_options=state_options,
        )  # fmt: skip

    def rewind(
        self, group: str | Sequence[str] | None, snapshot: Snapshot, *, clear_state: bool = True
    ) -> tuple[str, ...]:
        """Give survivors the values of a snapshot: the tensors that a group writes, or every tensor for None.

        Parameters
        ----------
        clear_state : bool
            Also drop the optimizer's state of those tensors.

        Returns
        -------
        tuple of str
            Names of the tensors.
        """
        return self._do(operators.rewind, group, snapshot, clear_state=clear_state)

    def apply(self, operator: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run an operator of your own: a function of the plan.

        Where it appends no :class:`~graphnet.edit.plan.Step` to ``plan.steps``, one with its name is recorded.
        """
        if not callable(operator):
            raise EditError(f"apply takes an operator, a function of the plan; not {operator!r}")
        steps = len(self._plan.steps)
        found = self._do(operator, *args, **options)
        if len(self._plan.steps) == steps:
            name = getattr(operator, "__name__", type(operator).__name__)
            self._plan.steps.append(Step(name, None, {}, note="an operator of the caller's, which recorded no step"))
        return found

    def _do(self, operator: Callable[..., T], *args: Any, **options: Any) -> T:
        if not self._open:
            raise EditError("this edit has ended: open another with net.edit()")
        if self._failed is not None:
            raise EditError(f"this edit failed before ({self._failed}) and will not be committed")
        try:
            return operator(self._plan, *args, **options)
        except BaseException as error:
            self._failed = f"{type(error).__name__}: {error}"
            raise

"""The edit that a user holds in ``with net.edit() as edit``: operators by name, on one plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from graphnet.edit import operators
from graphnet.edit.forecast import PlannedCost, forecast
from graphnet.edit.host import Batch, Loss, Snapshot
from graphnet.edit.plan import Plan, Preserves, Step
from graphnet.edit.rates import Rate
from graphnet.edit.texts import check_texts
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

    @property
    def steps(self) -> tuple[Step, ...]:
        """What the operators so far did, as the version's record will have it."""
        return tuple(self._plan.steps)

    @property
    def cost(self) -> PlannedCost:
        """Parameters, FLOPs and bytes of the network as it will be, and the memory that the commit takes."""
        return forecast(self._plan)

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
        rate: Rate = None,
        rewarm: int | None = None,
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
            Initialiser: ``zero-outgoing``, ``zero-incoming``, ``pair-cancel``, ``net2wider``, ``gradmax`` (function
            preserved), ``variance-transfer`` (preserved under a norm), ``kaiming``, ``copy-std``, ``tiny``,
            ``firefly``, ``nest``; ``options`` are its own.
        state : str
            State policy: ``aged``, ``cold``, ``transplant``, ``scaled``; ``state_options`` are its own.
        preserves : {"function", "approximate", "none"}, optional
            A promise: refused where it does not hold. Without it the version's record says what held.
        batch, loss : optional
            ``(x, y)`` and ``f(output, y)``, for initialisers that need data.
        speed : (float, int), optional
            Two-Speed: what the newborns' updates are multiplied by, and for how many optimizer steps.
        rate : "adapted" or ("adapted", floor), optional
            Rate adaptation: the newborns' updates are multiplied by the norm of their weights over that of the oldest
            ones, for good (:func:`graphnet.edit.rates.set_rates`).
        rewarm : int, optional
            Warm the newborns' updates up, linearly, over so many optimizer steps. With ``speed`` and ``rate`` the
            factors are multiplied.

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
            speed=speed, rate=rate, rewarm=rewarm, options=options, state_options=state_options,
        )  # fmt: skip

    def prune(
        self,
        group: str,
        *,
        units: Sequence[int] | None = None,
        lowest: int | None = None,
        keep: float | int | None = None,
        below: float | None = None,
        score: str = "magnitude",
        preserves: Preserves | None = None,
        compensate: operators.Compensate = False,
        batch: Batch | None = None,
        loss: Loss | None = None,
        **options: Any,
    ) -> tuple[int, ...]:
        """Remove units for good: by id, the ``lowest`` so many by a score, or all but the best ``keep``.

        Parameters
        ----------
        keep : float or int, optional
            A share (``0.5``) or a count.
        below : float, optional
            A threshold: every unit whose score is at most this goes; there may be none.
        score : str
            A registered score: ``magnitude``, ``l1``, ``l2``, ``fpgm``, ``slimming``, ``fisher``, ``obd``, ``taylor``,
            ``gradient``, ``gate``, ``activation-frequency``, ``apoz``, ``redo``, ``contribution``, ``random``;
            ``options`` are its own.
        compensate : bool or "all"
            Put what the units give on average over ``batch`` into the biases of their consumers (into the running
            mean of a batch norm that follows one without). ``all`` refuses where a consumer has neither.

        Returns
        -------
        tuple of int
            Ids of the units that went.
        """
        return self._do(
            operators.prune, group, units=units, lowest=lowest, keep=keep, below=below, score=score,
            preserves=preserves, compensate=compensate, batch=batch, loss=loss, options=options,
        )  # fmt: skip

    def retire(
        self,
        group: str,
        *,
        units: Sequence[int] | None = None,
        lowest: int | None = None,
        keep: float | int | None = None,
        below: float | None = None,
        score: str = "magnitude",
        batch: Batch | None = None,
        loss: Loss | None = None,
        **options: Any,
    ) -> tuple[int, ...]:
        """Make units dormant: they leave the forward pass and keep their ids and weights.

        A dormant unit costs memory and no compute; gradients, decay and momentum do not reach it. Its optimizer
        state is dropped. Units are chosen as in :meth:`prune`.
        """
        return self._do(
            operators.retire, group, units=units, lowest=lowest, keep=keep, below=below, score=score, batch=batch,
            loss=loss, options=options,
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
        rate: Rate = None,
        rewarm: int | None = None,
        state_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[int, ...]:
        """Bring dormant units back with the weights that they had: by id, or the ``highest`` so many by a score.

        Scores read what a dormant unit would do while the rest of the network runs as it is: its activation, or
        the gradient that would reach it. ``state``, ``speed``, ``rate`` and ``rewarm`` are as in
        :meth:`grow`.
        """
        return self._do(
            operators.recruit, group, units=units, highest=highest, score=score, state=state, batch=batch, loss=loss,
            speed=speed, rate=rate, rewarm=rewarm, options=options, state_options=state_options,
        )  # fmt: skip

    def reset(
        self,
        group: str,
        *,
        units: Sequence[int] | None = None,
        lowest: int | None = None,
        below: float | None = None,
        score: str = "contribution",
        init: str = "kaiming",
        outgoing: Literal["zero", "init"] = "zero",
        state: str = "aged",
        preserves: Preserves | None = None,
        compensate: operators.Compensate = False,
        batch: Batch | None = None,
        loss: Loss | None = None,
        speed: tuple[float, int] | None = None,
        rate: Rate = None,
        rewarm: int | None = None,
        init_options: dict[str, Any] | None = None,
        state_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[int, ...]:
        """Start units afresh where they stand: fresh incoming weights, bias and outgoing weights zero, norms reset.

        They are other units from then on, with ids of their own and an age of zero; the optimizer holds nothing of
        the old ones. Resets of continual backprop (Dohare et al., Nature 2024) and of ReDo (Sokar et al., ICML 2023,
        arXiv 2302.12902) are ``score="contribution", compensate=True`` and ``score="redo", below=tau``.

        Parameters
        ----------
        units, lowest, below : optional
            Which: by id, the lowest so many by a score, or every unit whose score is at most a threshold (there may
            be none).
        score : str
            As in :meth:`prune`; ``options`` are its own.
        init : str
            An initialiser, as in :meth:`grow`; ``init_options`` are its own.
        outgoing : {"zero", "init"}
            Outgoing weights are zero whatever the initialiser has, or as it has them (``net2wider``, ``gradmax``).
        compensate : bool or "all"
            As in :meth:`prune`: what the old units gave on average goes into the consumers' biases.
        state, speed, rate, rewarm, batch, loss
            As in :meth:`grow`.

        Returns
        -------
        tuple of int
            Ids of the newborns, in the order of their positions.
        """
        return self._do(
            operators.reset, group, units=units, lowest=lowest, below=below, score=score, init=init, outgoing=outgoing,
            state=state, preserves=preserves, compensate=compensate, batch=batch, loss=loss, speed=speed,
            rate=rate, rewarm=rewarm, options=options, init_options=init_options, state_options=state_options,
        )  # fmt: skip

    def shrink_and_perturb(
        self, group: str | None = None, *, shrink: float = 0.5, noise: float = 0.01
    ) -> tuple[str, ...]:  # fmt: skip
        """Scale weights and biases by ``shrink`` and add ``noise`` times a standard normal; norms stay as they are.

        Source: Ash and Adams (NeurIPS 2020, arXiv 1910.08475). The optimizer's state is kept. In front of a batch
        norm shrinking does not change the function and raises the effective learning rate.

        Parameters
        ----------
        group : str or None
            The weights and biases that this group's units are written by; None for all.

        Returns
        -------
        tuple of str
            Names of the tensors.
        """
        return self._do(operators.shrink_and_perturb, group, shrink=shrink, noise=noise)

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

    def insert(
        self,
        kind: str,
        name: str,
        *,
        inputs: str | Sequence[str],
        before: str | Sequence[str] | None = None,
        like: str | None = None,
        init: str = "default",
        beside: str | None = None,
        preserves: Preserves | None = None,
        batch: Batch | None = None,
        **attributes: Any,
    ) -> str:
        """Insert an op.

        Parameters
        ----------
        kind : str
            An op of the registry: ``linear``, ``conv2d``, ``relu``, ``batch_norm``, ``add`` ...
        name : str
            Of the new op.
        inputs : str or sequence of str
            What it reads.
        before : str or sequence of str, optional
            Readers of ``inputs[0]`` that read the new op from now on. Without it nothing reads the op until an edge
            is redirected to it (:meth:`redirect`) in the same edit.
        like : str, optional
            The op whose width it takes; by default the first input's.
        init : {"default", "zeros", "identity", "kaiming"}
            Its weights: torch's own initial values, zeros, or the identity (linear, convolution; batch norm with
            ``batch=``, exact in evaluation mode).
        beside : str, optional
            A parameter whose optimizer and parameter group the new ones join; by default the nearest of their kind.
        **attributes
            Of the op, as in an architecture document; a convolution has kernel 3 and keeps its size by default.

        Returns
        -------
        str
            The name.

        Raises
        ------
        EditError
            The graph would not be valid, or the function is not provably preserved where that was promised.

        Examples
        --------
        >>> import graphnet as gn
        >>> net = gn.Network(gn.mlp([4, 8, 2]))
        >>> with net.edit() as edit:
        ...     name = edit.insert("linear", "extra", inputs="act1", before="head", init="identity")
        >>> net.history.latest.preserves
        'function'
        """
        return self._do(
            operators.insert, kind, name, inputs=inputs, before=before, like=like, init=init, beside=beside,
            preserves=preserves, batch=batch, attributes=attributes,
        )  # fmt: skip

    def redirect(self, edge: str | Sequence[str], to: str, *, preserves: Preserves | None = None) -> None:
        """Let an op read another: ``edge`` is ``"source -> target"`` or ``(source, target)``.

        Ops that were inserted in this edit and that ``to`` needs come into the network with it.
        """
        self._do(operators.redirect, edge, to, preserves=preserves)

    def remove(self, name: str, *, keep: str | None = None, preserves: Preserves | None = None) -> tuple[str, ...]:
        """Remove an op; its readers go on with what it read (``keep`` says with which, where it reads several).

        Ops from which no output is reached any more go too. Optimizer state of what goes is dropped.

        Returns
        -------
        tuple of str
            Names of the ops that went.
        """
        return self._do(operators.remove, name, keep=keep, preserves=preserves)

    def deepen(
        self,
        after: str,
        *,
        form: str = "identity",
        layer: str | None = None,
        kernel: int = 3,
        activation: str | None = "same",
        norm: str | None = None,
        name: str | None = None,
        beside: str | None = None,
        preserves: Preserves | None = None,
        batch: Batch | None = None,
    ) -> tuple[str, ...]:
        """Insert a layer behind an op, without changing the function.

        Parameters
        ----------
        form : {"identity", "residual"}
            ``identity``: a layer whose weight is the identity, then its activation (Net2DeeperNet: Chen, Goodfellow
            and Shlens, ICLR 2016, arXiv 1511.05641); where the activation is not idempotent it is blended in from
            the identity. ``residual``: two layers on a branch, the second of them zero, added to the op.
        layer : {"linear", "conv1d", "conv2d"}, optional
            By default what fits.
        activation : str or None
            An activation op, ``"same"`` as the nearest before it, or none.
        norm : {"batch_norm", "layer_norm", "rms_norm"}, optional
            In the new layer; a batch norm in an identity layer is exact, in evaluation mode, with ``batch=``.
        name : str, optional
            The stem of the new ops' names.

        Returns
        -------
        tuple of str
            Names of the new ops.
        """
        return self._do(
            operators.deepen, after, form=form, layer=layer, kernel=kernel, activation=activation, norm=norm, name=name,
            beside=beside, preserves=preserves, batch=batch,
        )  # fmt: skip

    def replace(
        self, name: str, *, by: str, preserves: Preserves | None = None, batch: Batch | None = None, **options: Any
    ) -> None:
        """Replace an op by another, with its weights carried where that is defined.

        Parameters
        ----------
        by : str
            ``separable`` (convolution by depthwise and pointwise, ``rank=``), ``low-rank`` (linear by two,
            ``rank=``), ``blend`` (activation by a mixture that starts as itself, ``to=``, exact), or the op of
            another activation or norm, with its attributes in ``options``.
        """
        self._do(operators.replace_op, name, by=by, preserves=preserves, batch=batch, options=options)

    def kernel(self, name: str, kernel: int, *, preserves: Preserves | None = None) -> None:
        """Give a convolution a larger kernel, whose new taps are zero (exact), or a smaller one."""
        self._do(operators.resize_kernel, name, kernel, preserves=preserves)

    def tie(self, name: str, to: str, *, preserves: Preserves | None = None) -> None:
        """Let a linear layer use the weight of another op (a head and its embedding)."""
        self._do(operators.tie, name, to, preserves=preserves)

    def untie(self, name: str, *, preserves: Preserves | None = None) -> None:
        """Give a linear layer a copy of the weight that it shared; exact."""
        self._do(operators.untie, name, preserves=preserves)

    def split(
        self,
        group: str,
        *,
        units: Sequence[int] | None = None,
        highest: int | None = None,
        by: str = "net2wider",
        copies: int = 1,
        score: str | None = None,
        state: str = "scaled",
        preserves: Preserves | None = None,
        batch: Batch | None = None,
        loss: Loss | None = None,
        speed: tuple[float, int] | None = None,
        rate: Rate = None,
        rewarm: int | None = None,
        score_options: dict[str, Any] | None = None,
        state_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[int, ...]:
        """Split units: each keeps its id and gets newborn copies, with which it shares its outgoing weights.

        Parameters
        ----------
        units : sequence of int, optional
            Which, by id.
        highest : int, optional
            How many: those with the highest ``score``; without one the most profitable by ``firefly`` or
            ``steepest``, and the largest ``magnitude`` by ``net2wider``.
        by : str
            ``net2wider`` (exact copies; ``shares="equal"`` or ``"random"``, ``noise=``), ``firefly`` (w + v and w - v
            with v learned on the batch; ``size=``, ``steps=``, ``learning_rate=``) or ``steepest`` (w + eps*v and
            w - eps*v
            along the lowest eigenvector of the splitting matrix; ``epsilon=``, ``beta=``); ``options`` are its own.
        copies : int
            Newborns for each unit; more than one by ``net2wider`` only.
        state : str
            ``scaled`` gives every copy the optimizer state that its gradients would have made; others as in
            :meth:`grow`.
        score_options : dict, optional
            Of the score.
        preserves, batch, loss, speed, rate, rewarm
            As in :meth:`grow`.

        Returns
        -------
        tuple of int
            Ids of the newborns: for each unit in group order its copies.

        Raises
        ------
        EditError
            Nothing was changed; says why, for instance that splitting a unit would not lower the loss.

        Examples
        --------
        >>> import graphnet as gn
        >>> net = gn.Network(gn.mlp([4, 8, 2]))
        >>> with net.edit() as edit:
        ...     born = edit.split("fc1", units=[3, 5])
        >>> born, net.history.latest.preserves
        ((8, 9), 'function')
        """
        return self._do(
            operators.split, group, units=units, highest=highest, by=by, copies=copies, score=score, state=state,
            preserves=preserves, batch=batch, loss=loss, speed=speed, rate=rate, rewarm=rewarm, options=options,
            score_options=score_options, state_options=state_options,
        )  # fmt: skip

    def merge(
        self,
        group: str,
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        threshold: float | None = None,
        scaled: bool = False,
        state: operators.MergeState = "combined",
        preserves: Preserves | None = None,
    ) -> tuple[int, ...]:
        """Merge units that do the same into one, and add up the weights with which the consumers read them.

        Exact where incoming weights and norm slots agree (to 1e-12 of their norm); otherwise approximate, and the
        record says how far they are apart.

        Parameters
        ----------
        pairs : sequence of (int, int), optional
            Ids: which unit stays, which goes into it. One may take several.
        threshold : float, optional
            Instead: every unit goes into the first one before it that is at most this far away, relative to its own
            norm; 0 finds exact duplicates.
        scaled : bool
            Units may differ by a positive factor, which the consumer's weights take up. Where every op between
            writers and readers keeps a factor (relu, leaky_relu, pooling; no norm), refused elsewhere.
        state : {"combined", "survivor"}
            What the optimizer holds for the survivor: what it would hold if it had been one unit (first moments on
            the way in are added, square roots of second ones too, outgoing ones averaged), or what it held.

        Returns
        -------
        tuple of int
            Ids of the units that went, in group order.

        Raises
        ------
        EditError
            Nothing was changed; says why, for instance that no two units are that close.
        """
        return self._do(
            operators.merge, group, pairs=pairs, threshold=threshold, scaled=scaled, state=state, preserves=preserves
        )

    def permute(
        self,
        group: str,
        *,
        order: Sequence[int] | None = None,
        by: str | None = None,
        outputs: bool = False,
        preserves: Preserves | None = None,
        batch: Batch | None = None,
        loss: Loss | None = None,
        **options: Any,
    ) -> tuple[int, ...]:
        """Put the units of a group in another order, in every tensor that holds them; preserves the function.

        Parameters
        ----------
        order : sequence of int, optional
            Every id of the group, once.
        by : str, optional
            Instead: a score, highest first; ``options`` are its own.
        outputs : bool
            Allow a group that a model output reads, whose outputs then come in another order.

        Returns
        -------
        tuple of int
            Ids in the new order.
        """
        return self._do(
            operators.permute, group, order=order, by=by, outputs=outputs, preserves=preserves, batch=batch, loss=loss,
            options=options,
        )  # fmt: skip

    @contextmanager
    def nested(self, *, validate: bool = True) -> Iterator[Edit]:
        """Try operators inside this edit: where the block raises, the plan is as it was before the block.

        Parameters
        ----------
        validate : bool
            Whether the graph is checked at the end of the block, and not only when the edit is committed.

        Raises
        ------
        Whatever the block raises; this edit can go on after it, and be committed.

        Examples
        --------
        >>> import graphnet as gn
        >>> net = gn.Network(gn.mlp([4, 8, 2]))
        >>> with net.edit() as edit:
        ...     ids = edit.grow("fc1", 2)
        ...     try:
        ...         with edit.nested():
        ...             gone = edit.prune("fc1", lowest=3)
        ...             edit.grow("no such group", 1)
        ...     except gn.GraphnetError:
        ...         pass
        >>> net.graph.groups["fc1"].size
        10
        """
        self._check_usable()
        saved = self._plan.savepoint()
        try:
            yield self
            self._check_usable()
            if validate:
                self._plan.validate()
        except BaseException:
            self._plan.restore(saved)
            self._failed = None
            raise

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
        self._check_usable()
        try:
            if getattr(operator, "__module__", "").startswith(operators.__name__):
                check_texts(operator, args, options)
            return operator(self._plan, *args, **options)
        except BaseException as error:
            self._failed = f"{type(error).__name__}: {error}"
            raise

    def _check_usable(self) -> None:
        if not self._open:
            raise EditError("this edit has ended: open another with net.edit()")
        if self._failed is not None:
            raise EditError(f"this edit failed before ({self._failed}) and will not be committed")

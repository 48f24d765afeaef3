"""Training on several processes with ``DistributedDataParallel``: a wrapper that follows edits, and edits that agree.

Each process has a network and an optimizer of its own; torch keeps the gradients alike and nothing else. So every
process makes the same edit, and the commit compares, over all of them, what was planned, the values that newborns
get and the state of the optimizers: where they differ, every process raises and nothing is changed anywhere.

``DistributedDataParallel`` remembers the parameters as they were when it was made. After an edit it must be made
again, or gradients are no longer exchanged, without a word; the wrapper here does that before the next forward pass.
"""

from __future__ import annotations

import gc
import hashlib
import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from graphnet.edit.forecast import touched
from graphnet.edit.plan import Plan
from graphnet.edit.rates import NEUTRAL
from graphnet.errors import EditError

if TYPE_CHECKING:
    from graphnet.runtime.kept import Kept
    from graphnet.runtime.network import Network

__all__ = ["Agreement", "Distributed"]


class Distributed(nn.Module):
    """A network under ``DistributedDataParallel`` that can be edited; made by :meth:`Network.distributed`.

    Call it in place of the network in the training loop; edit the network itself, on every process alike. After an
    edit the inner wrapper is made anew before the next forward pass, which every process must run.

    Parameters
    ----------
    net : Network
    patience : float
        For how many seconds a process waits in an edit for the others to come to the same one.
    **options
        Of ``DistributedDataParallel``.

    Attributes
    ----------
    module : Network

    Raises
    ------
    EditError
        ``torch.distributed`` is not initialised, or torch was built without gloo, over which processes compare edits.
    """

    module: Network

    def __init__(self, net: Network, *, patience: float = 300.0, **options: Any) -> None:
        super().__init__()
        if not (dist.is_available() and dist.is_initialized()):
            raise EditError(
                "torch.distributed is not initialised: call torch.distributed.init_process_group(...) on every "
                "process first"
            )
        if not dist.is_gloo_available():
            raise EditError("this torch has no gloo, over which the processes compare their edits")
        if isinstance(patience, bool) or not isinstance(patience, int | float) or not 0 < patience < 1e8:
            raise EditError(f"patience is a number of seconds above 0, not {patience!r}")
        self.module = net
        self.patience = timedelta(seconds=patience)
        # A group of its own: an edit that only one process makes must not meet another one's gradients.
        self.group = dist.new_group(
            dist.get_process_group_ranks(options.get("process_group") or dist.group.WORLD),
            backend="gloo",
            use_local_synchronization=True,
        )
        self._options = options
        self._hooks: list[tuple[Any, Callable[..., Any]]] = []
        self._made: tuple[list[nn.Parameter], DistributedDataParallel] | None = None
        self.stale = False  # a commit was begun: even one that was undone leaves no exchange of gradients behind
        self._all: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()

    @property
    def inner(self) -> DistributedDataParallel:
        """The wrapper of the parameters that the network has now; made where there is none yet."""
        parameters = list(self.module.parameters())
        made = self._made
        if made is None or self.stale or not _same(made[0], parameters):
            self._drop()
            inner = DistributedDataParallel(self.module, **self._options)
            for state, hook in self._hooks:
                inner.register_comm_hook(state, hook)
            self._all.add(inner)
            self._made = made = parameters, inner
            self.stale = False
        return made[1]

    def _drop(self) -> None:
        """Let go of the old wrapper first: its reducer would go on hearing of the parameters that stay."""
        if self._made is not None:
            old = weakref.ref(self._made[1])
            self._made = None
            if old() is not None:
                gc.collect()

    def forward(self, *inputs: Any) -> Any:
        """The network's output; gradients of its backward are the mean over the processes."""
        return self.inner(*inputs)

    def no_sync(self) -> AbstractContextManager[None]:
        """Gradients are not exchanged inside, as :meth:`DistributedDataParallel.no_sync`."""
        context: AbstractContextManager[None] = self.inner.no_sync()
        return context

    def register_comm_hook(self, state: object, hook: Callable[..., Any]) -> None:
        """As :meth:`DistributedDataParallel.register_comm_hook`; the hook is registered again after every edit."""
        self.inner.register_comm_hook(state, hook)
        self._hooks.append((state, hook))


def _same(before: list[nn.Parameter], now: list[nn.Parameter]) -> bool:
    return len(before) == len(now) and all(one is other for one, other in zip(before, now, strict=True))


def _check_no_other_wrapper(net: Network, own: Distributed | None) -> None:
    """Refuse an edit under a wrapper of the caller's own.

    Nothing in a network points to what wraps it, so that the wrapper is looked for among all objects (about 10 ms,
    once for an edit, and only where processes train together).

    Raises
    ------
    EditError
        There is one.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    mine = {id(parameter) for parameter in net.parameters()}
    for first in (True, False):
        others = [
            thing
            for thing in gc.get_objects()
            if issubclass(type(thing), DistributedDataParallel) and (own is None or thing not in own._all)
        ]
        if not any(id(p) in mine for other in others for p in other.parameters()):
            return
        del others
        if first:
            gc.collect()  # it may be one that was dropped and not yet freed
    raise EditError(
        "the network is wrapped in a DistributedDataParallel, which would go on with the parameters of before the "
        "edit, and the processes would drift apart without a word: wrap it with net.distributed() instead, or drop "
        "that wrapper (del it) before the edit and wrap the network again after it"
    )


# -- agreement --------------------------------------------------------------------------------------------------------


class Agreement:
    """Whether every process makes the same edit.

    They exchange what each is about to commit, and then whether it could, so that it is committed on all or on none.

    Raises
    ------
    EditError
        On leaving the block, from :meth:`reach` or :meth:`confirm`: the processes differ, another one failed or did
        not come; on a process that failed by itself its own error is raised.
    """

    def __init__(self, net: Network) -> None:
        self.net = net
        self.wrapper = net._distributed() if net._distributed is not None else None
        self.awaited = self.wrapper is not None
        _check_no_other_wrapper(net, self.wrapper)

    def __enter__(self) -> Agreement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        if not self.awaited or kind is GeneratorExit:  # a block that was never ended is no answer
            return
        if error is None:
            self._exchange({"plan": "nothing is edited"})
        else:
            with suppress(EditError):
                self._exchange({"failed": f"{kind and kind.__name__}: {error}"[:500]})

    def reach(self, plan: Plan, seed: int, *, keep: bool = True) -> None:
        """Compare what is about to be committed; without ``keep`` no value stays built that was not."""
        if self.awaited:
            self._exchange({
                "plan": _digest(json.dumps(_described(plan, seed), sort_keys=True, default=repr).encode()),
                "values of newborns": _digest(*_values(plan, keep)),
                "state of the optimizers": _digest(*_state(self.net)),
            })  # fmt: skip
            self._begun()

    def reach_back(self, kept: Kept) -> None:
        """Compare what is about to be gone back to."""
        if self.awaited:
            parameters = [kept.tensors[n] for n, spec in kept.graph.tensors.items() if not spec.buffer]
            self._exchange({
                "plan": f"back to version {kept.version}",
                "values of newborns": _digest(*parameters),
                "state of the optimizers": _digest(*_leaves([(one.state, one.steps) for one in kept.optimizers])),
            })  # fmt: skip
            self._begun()

    def _begun(self) -> None:
        assert self.wrapper is not None
        self.wrapper.stale = True
        self.awaited = True  # for whether it could be done

    def confirm(self) -> None:
        """The last step of a commit before it is published: where it failed on one process, it is undone on all."""
        if self.awaited:
            self._exchange({})

    def _exchange(self, said: dict[str, str]) -> None:
        self.awaited = False
        assert self.wrapper is not None
        group = self.wrapper.group
        every: list[dict[str, str]] = [{} for _ in range(dist.get_world_size(group))]
        try:
            dist.monitored_barrier(group, timeout=self.wrapper.patience, wait_all_ranks=True)
            dist.all_gather_object(every, said, group=group)
        except RuntimeError as error:
            raise EditError(
                f"not every process came to this edit within {self.wrapper.patience.total_seconds():g} s (patience= of "
                f"net.distributed()), so that nothing was changed here: {error}"
            ) from error
        failed = [f"process {rank}: {one['failed']}" for rank, one in enumerate(every) if "failed" in one]
        if failed:
            raise EditError(f"the edit failed elsewhere, so that nothing was changed here: {'; '.join(failed)}")
        for key in dict.fromkeys(key for one in every for key in one):
            held = [one.get(key) for one in every]
            if any(one != held[0] for one in held):
                raise EditError(
                    f"the processes disagree about the {key} of this edit ({_parties(held)}), so that nothing was "
                    f"changed: {_ADVICE.get(key, 'every process must make the same edit')}"
                )


_ADVICE = {
    "values of newborns": "give all the same seed, and the same batch to initialisers and scores that read one",
    "state of the optimizers": "every process must have taken the same steps, with gradients that were exchanged",
    "plan": "every process must make the same edit",
}


def _parties(held: list[str | None]) -> str:
    groups: dict[str | None, list[str]] = {}
    for rank, one in enumerate(held):
        groups.setdefault(one, []).append(str(rank))
    return " against ".join("process " + ", ".join(ranks) for ranks in groups.values())


def _described(plan: Plan, seed: int) -> dict[str, Any]:
    steps = [[step.operator, step.group, step.born, step.dropped, step.preserves] for step in plan.steps]
    return {"seed": seed, "steps": steps, "graph": plan.graph.to_document()}


def _values(plan: Plan, keep: bool) -> Iterator[Tensor]:
    """Parameters as they will be; buffers differ between processes and are those of the first one after the edit."""
    changed = set(touched(plan))
    for name, spec in plan.graph.tensors.items():
        if not spec.buffer and (name in changed or plan.origin(name) is None):
            yield plan.value(name)
            if not keep:
                plan.staged(name)._cache = None


def _state(net: Network) -> Iterator[bytes | Tensor]:
    names = {parameter: name for name, parameter in net.named_parameters()}
    for attached in net._attached.values():
        held = {names[p]: p for p in attached.parameters() if p in names}
        options = [{k: v for k, v in group.items() if k != "params"} for group in attached.optimizer.param_groups]
        yield from _leaves([attached.updates.steps, options])
        for _, parameter in sorted(held.items()):
            yield from _leaves(attached.optimizer.state.get(parameter, {}))
            births = attached.updates.births.get(parameter)
            if births is not None:
                yield from _leaves({kind: births.table(kind) for kind in NEUTRAL})


def _leaves(value: Any) -> Iterator[bytes | Tensor]:
    """What can be compared in state: tensors, numbers and text, in containers; nothing of other objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from _leaves(value[key])
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for one in value:
            yield from _leaves(one)
    elif value is None or isinstance(value, bool | int | float | complex | str):
        yield repr(value).encode()


def _digest(*parts: bytes | Tensor) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(b"|")
        if isinstance(part, Tensor):
            plain = part.detach().cpu().contiguous()
            total.update(f"{plain.dtype}{list(plain.shape)}".encode())
            part = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
        total.update(part)
    return total.hexdigest()

"""Law 8: a transaction that fails anywhere leaves the old state or the new one, never a mixture.

An error is raised at chosen bytecodes of the modules that plan and commit, by tracing them.
"""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor

import graphnet.edit.plan
import graphnet.runtime.network
import graphnet.runtime.resize
import graphnet.runtime.structure
import graphnet.runtime.swaps
import graphnet.runtime.transaction
import graphnet.runtime.updates
from graphnet.runtime.network import Network
from graphnet.runtime.transaction import commit
from graphnet.testing.compare import state_of, twin_of
from graphnet.testing.counting import COUNTS, operators_of
from graphnet.testing.laws import Change

__all__ = ["InjectedError", "Picture", "Run", "check_atomicity", "commit_with_error", "picture_of", "points"]

TRACED = frozenset(
    str(module.__file__)
    for module in (
        graphnet.runtime.network,
        graphnet.runtime.structure,
        graphnet.runtime.swaps,
        graphnet.runtime.transaction,
        graphnet.runtime.resize,
        graphnet.runtime.updates,
        graphnet.edit.plan,
    )
)
"""Files of the modules at whose bytecodes an error is raised."""


class InjectedError(BaseException):
    """Raised at one bytecode of a commit; not an ``Exception``, so that nothing handles it by accident."""


@dataclass(frozen=True)
class Picture:
    """Everything that a commit may change, for comparing; identities of objects say more within one network.

    Attributes
    ----------
    values : mapping of str to Tensor
    structure : mapping
        What can be compared between twins: units, module sizes, which state there is.
    identities : tuple
        Ids of the graph, versions, parameters and what the optimizers hold.
    """

    values: dict[str, Tensor]
    structure: dict[str, Any]
    identities: tuple[Any, ...]

    def differs(self, other: Picture, *, identities: bool = True) -> str | None:
        """What differs, in words; None where nothing does."""
        for key, value in self.structure.items():
            if value != other.structure[key]:
                return f"{key}: {str(value)[:200]} against {str(other.structure[key])[:200]}"
        if identities and self.identities != other.identities:
            return "the graph, a version, a parameter or what an optimizer holds is another object"
        if self.values.keys() != other.values.keys():
            return f"only one side has {sorted(self.values.keys() ^ other.values.keys())}"
        for name, tensor in self.values.items():
            if not torch.equal(tensor, other.values[name]):
                return f"the bits of {name}"
        return None


def picture_of(net: Network) -> Picture:
    """A picture of a network, its optimizers and its history as they are now."""
    named = dict(net.named_parameters())
    held = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in net.attached]
    tables = [attached.updates.births for attached in net._attached.values()]
    structure = {
        "version": net.version,
        "units": {name: (group.ids, group.dormant) for name, group in net.graph.groups.items()},
        "ops": {name: (node.op.op, node.inputs) for name, node in net.graph.nodes.items()},
        "modules": {name: repr(module) for name, module in net.named_modules() if name},
        "state": [sorted(name for name, p in named.items() if p in one.state) for one in net.attached],
        "births": [
            sorted((name, kind, dim) for name, p in named.items() if p in table
                   for kind in ("birth", "rate", "until", "multiplier") for dim in table[p].table(kind))
            for table in tables
        ],
        "versions": len(net.history),
        "code": net.code,
        "hooks": sum(len(module._forward_hooks) for module in net.modules()),
    }  # fmt: skip
    identities = (
        id(net.graph),
        tuple(id(version) for version in net.history),
        tuple(id(p) for p in named.values()),
        tuple(tuple(id(p) for p in one) for one in held),
    )
    return Picture(state_of(net), structure, identities)


@dataclass(frozen=True)
class Run:
    """One commit under tracing.

    Attributes
    ----------
    bytecodes : int
        How many were run in the traced modules while the edit ended.
    swapping : int
        The number of the first one of the pointer swaps; -1 where it did not get there.
    raised : BaseException or None
    """

    bytecodes: int
    swapping: int
    raised: BaseException | None


def commit_with_error(
    net: Network, change: Change, act: Callable[[], object] | None = None, at: int = -1, files: Iterable[str] = TRACED
) -> Run:
    """Make an edit and, at one bytecode of its commit, call a function that raises.

    Parameters
    ----------
    act : callable, optional
        By default raises :class:`InjectedError`.
    at : int
        The bytecode's number, from 1; -1 for none.
    """
    context = net.edit()
    edit = context.__enter__()
    try:
        change(edit)
    except BaseException as error:
        if not context.__exit__(type(error), error, error.__traceback__):
            raise
    traced, count, swapping = frozenset(files), 0, -1

    def local(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count, swapping
        if event == "opcode":
            count += 1
            if swapping < 0 and frame.f_code is commit.__code__:
                swapping = count
            if count == at:
                (act or _inject)()
        return local

    def outer(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in traced:
            return None
        frame.f_trace_opcodes = True
        return local

    raised: BaseException | None = None
    before, gradients = sys.gettrace(), torch.is_grad_enabled()
    sys.settrace(outer)
    try:
        context.__exit__(None, None, None)
    except BaseException as error:
        raised = error.with_traceback(None)
    finally:
        sys.settrace(before)
        torch.set_grad_enabled(gradients)  # only tracing can raise between a block's last bytecode and its exit
    return Run(count, swapping, raised)


def _inject() -> None:
    raise InjectedError


def points(run: Run, early: int, late: int, *, seed: int = 0) -> list[int]:
    """Bytecodes before the first swap and from it on: so many of each, half of them evenly spaced and half drawn."""
    chosen: set[int] = set()
    for first, last, wanted in ((1, run.swapping, early), (run.swapping, run.bytecodes + 1, late)):
        span = range(first, last)
        if not span or not wanted:
            continue
        drawn = random.Random(seed).sample(span, min((wanted + 1) // 2, len(span)))
        chosen |= {*span[:: max(1, 2 * len(span) // wanted)], *drawn}
    return sorted(chosen)


def check_atomicity(
    net: Network, change: Change, *, early: int = 2, late: int = 4, at: Sequence[int] = (), seed: int = 0
) -> None:
    """Law 8: an error at any moment of a commit leaves everything as it was, or the new version whole.

    Parameters
    ----------
    net : Network
        In place: it is as it was, or what the change made it.
    change : callable
        ``change(edit)`` calls operators; it must be one that the network commits.
    early, late : int
        About how many bytecodes are tried before the pointer swaps and from there on.
    at : sequence of int, optional
        These bytecodes, in place of drawn ones.

    Raises
    ------
    AssertionError
        Says at which bytecode, and what differs.
    """
    twin = twin_of(net)
    reference = commit_with_error(twin, change)
    if reference.raised is not None:
        raise AssertionError(f"the change is not committed: {reference.raised}") from reference.raised
    new, old = picture_of(twin), picture_of(net)
    operators = operators_of(twin.history.latest.steps)
    handler = signal.getsignal(signal.SIGINT)
    for point in at or points(reference, early, late, seed=seed):
        run = commit_with_error(net, change, at=point)
        if handler is not None:
            _restore(handler)
        place = f"an error at bytecode {point} of {reference.bytecodes}"
        if run.raised is None:
            raise AssertionError(f"{place} was swallowed")
        if not isinstance(run.raised, InjectedError):
            raise AssertionError(f"{place} came out as {type(run.raised).__name__}: {run.raised}")
        now = picture_of(net)
        changed = now.differs(old)
        if changed is None:
            continue
        mixed = now.differs(new, identities=False)
        if mixed is not None:
            raise AssertionError(
                f"{place} left a mixture: against the old state {changed}; against the new one {mixed}"
            )
        break  # the version was published; there is no way back to go on from
    COUNTS.held("atomicity", operators)


def _restore(handler: Any) -> None:
    """Put the handler of interrupts back: the error may have come between changing it and noting that."""
    try:
        signal.signal(signal.SIGINT, handler)
    except ValueError:  # not the main thread, where nobody changed it
        return

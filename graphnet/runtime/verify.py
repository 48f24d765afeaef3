"""Holding an edit to its word: what claims to preserve the function is run on an example before it is committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graphnet.edit.host import Evaluation
from graphnet.edit.plan import Plan, weakest
from graphnet.edit.view import HostView
from graphnet.errors import EditError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.ir.ops.aten.call import Call, target_of
from graphnet.ir.ops.base import Op

__all__ = ["TOLERANCE", "check_function", "gap"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far outputs may move, relative to the largest element: rounding at another width, and not more."""
_COARSE = 5e-2


def check_function(plan: Plan, example: Sequence[Any]) -> None:
    """Run the network before and after a planned edit on an example.

    Where the edit says that nothing changes, outputs are compared: it catches what layouts and rules cannot see, such
    as a norm written by hand, or a literal division by a width. Where ops came, went or read something else, the
    network must still run: an op of an imported program may need the type that a cast before it gave.

    Parameters
    ----------
    plan : Plan
    example : sequence
        The network's inputs.

    Raises
    ------
    EditError
        The outputs differ, or the network no longer runs; nothing was changed.
    """
    claimed = weakest(*(step.preserves for step in plan.steps)) == "function"
    if not claimed and _wiring(plan.base) == _wiring(plan.graph):
        return
    host = plan.host.behind if isinstance(plan.host, HostView) else plan.host
    batch = (tuple(example),) if len(example) > 1 else (example[0],)
    live = {name: host.live(name) for name in plan.base.tensors}

    def run(graph: Graph, tensors: Mapping[str, Tensor], chance: int) -> Evaluation:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(chance)
            return host.evaluate(graph, tensors, batch)

    steps = ", ".join(dict.fromkeys(step.operator for step in plan.steps))
    try:
        after = run(plan.graph, plan.values(), 0)
    except GraphnetError:
        raise
    except Exception as error:
        raise EditError(
            f"the edit ({steps}) would leave a network that does not run on the example ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}). Nothing was changed"
        ) from error
    if not claimed:
        return
    before = run(plan.base, live, 0)
    if any(_draws(node.op) for node in plan.base.nodes.values()) and gap(before.output, run(plan.base, live, 1).output):
        return  # it draws random numbers in evaluation mode too, so that outputs cannot be compared
    far = gap(before.output, after.output)
    if far is not None:
        raise EditError(
            f"the edit ({steps}) was to preserve the function, but on the stored example the output {far}: some op "
            "depends on a width in a way that the graph does not show (a hand-written norm, a division by a number of "
            "units). Nothing was changed; make the edit without that promise if the change is what you want"
        )


def _wiring(graph: Graph) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What each op is and what it reads."""
    return {name: (node.op.op, node.op.inputs) for name, node in graph.nodes.items()}


def _draws(op: Op) -> bool:
    """Whether an op of an imported program may draw random numbers."""
    return isinstance(op, Call) and torch.Tag.nondeterministic_seeded in target_of(op.target).tags


def gap(before: Any, after: Any) -> str | None:
    """How two outputs differ, in words; None where they agree up to rounding."""
    one, two = _leaves(before), _leaves(after)
    if len(one) != len(two):
        return f"has {len(two)} parts in place of {len(one)}"
    for a, b in zip(one, two, strict=True):
        if a.shape != b.shape:
            return f"has shape {list(b.shape)} in place of {list(a.shape)}"
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return "has other integers"
            continue
        scale = max(float(a.double().abs().max()), 1e-12) if a.numel() else 1.0
        change = float((a.double() - b.double()).abs().max()) / scale if a.numel() else 0.0
        if not torch.equal(a.isnan(), b.isnan()):
            return "is not a number in other places"
        if not bool(a.isnan().any()) and not change <= TOLERANCE.get(a.dtype, _COARSE):
            return f"changes by {change:.3g} of its maximum"
    return None


def _leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]

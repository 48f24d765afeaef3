"""The law matrix: what each operator keeps of the function, on each kind of layer, measured.

:func:`law_matrix` commits every registered operator on every registered case and compares what the network gives
before and after with what the version's record claims. A claim that does not hold is an :class:`AssertionError`, and
so is a promise of the function that is refused where it would hold, or taken where it does not.

===============  =================================================================================================
``exact``        claimed, promised and measured: at most 1e-12 of the largest output, in float64, evaluation mode
``approximate``  claimed to be small where the operator's options are
``changes``      no claim; a promise is refused with the reason
``refused``      not possible here, with the reason
===============  =================================================================================================

Operators and cases of your own are added with :func:`operator` and :func:`case`.

Examples
--------
>>> from graphnet.testing.law_matrix import law_matrix
>>> (row,) = law_matrix(operators=["grow zero-outgoing"], cases=["linear"])
>>> row.verdict, row.error < 1e-12
('exact', True)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

import graphnet.testing.law_cases
import graphnet.testing.law_structure
import graphnet.testing.law_units  # noqa: F401 - they register themselves
from graphnet.errors import EditError
from graphnet.runtime.network import Network
from graphnet.testing.law_registry import CASES, OPERATORS, Case, Operator, case, operator
from graphnet.testing.strategies import random_network, sample, wave_loss

__all__ = ["CASES", "OPERATORS", "TOLERANCE", "Case", "Operator", "Row", "case", "law_matrix", "law_row", "operator"]

TOLERANCE = 1e-12
"""The largest change of the output that counts as exact, relative to its largest element."""

Verdict: TypeAlias = Literal["exact", "approximate", "changes", "refused"]


@dataclass(frozen=True, slots=True)
class Row:
    """One cell of the matrix.

    Attributes
    ----------
    operator, family, case, norm : str
    verdict : {"exact", "approximate", "changes", "refused"}
    error : float or None
        The largest change of an output over the largest output; None where it was refused or has another shape.
    reason : str
    """

    operator: str
    family: str
    case: str
    norm: str
    verdict: Verdict
    error: float | None
    reason: str


def law_matrix(
    *, operators: Iterable[str] | None = None, cases: Iterable[str] | None = None, promises: bool = True
) -> list[Row]:
    """Run operators on cases, all of them by default.

    Parameters
    ----------
    promises : bool
        Also ask for the promise of the function, on a second network.

    Raises
    ------
    AssertionError
        A claim does not hold.
    """
    return [
        law_row(OPERATORS[name], CASES[key], promises=promises)
        for key in (CASES if cases is None else cases)
        for name in (OPERATORS if operators is None else operators)
        if (applies := OPERATORS[name].applies) is None or applies(CASES[key])
    ]


def law_row(one: Operator, on: Case, *, promises: bool = True) -> Row:
    """Run one operator on one case and check what its record claims."""
    where = f"{one.name} on {on.name} (norm {on.norm})"
    net, data, inputs = _prepared(one, on)
    before = _outputs(net, inputs)
    version = net.version
    try:
        with net.edit(seed=7) as edit:
            one.apply(edit, on, data)
    except EditError as error:
        if net.version != version or _change(before, _outputs(net, inputs)) != 0.0:
            raise AssertionError(f"{where}: it was refused and changed the network") from error
        return Row(one.name, one.family, on.name, on.norm, "refused", None, str(error))
    steps = net.history.latest.steps
    claim = net.history.latest.preserves
    change = _change(before, _outputs(net, inputs))
    if all(not bool(tensor.std() > 1e-3) for tensor in before):
        raise AssertionError(f"{where}: the network's output hardly depends on its input, so that nothing is tested")
    if claim == "function" and (change is None or not change <= TOLERANCE):
        raise AssertionError(f"{where}: it claims the function, and the output changes by {change}")
    reason = "; ".join(step.note for step in steps if step.note and step.preserves != "function")
    if claim != "function" and not reason:
        raise AssertionError(f"{where}: it claims {claim!r} and does not say why")
    if one.promises and promises:
        _check_promise(one, on, where, kept=claim == "function")
    verdicts: dict[str, Verdict] = {"function": "exact", "approximate": "approximate", "none": "changes"}
    return Row(one.name, one.family, on.name, on.norm, verdicts[claim], change, reason)


def _prepared(one: Operator, on: Case) -> tuple[Network, dict[str, Any], tuple[Tensor, ...]]:
    net = random_network(on.build(), 1)
    inputs = sample(net.graph, 2, 24)
    net.eval()
    data = {"batch": (inputs[0] if len(inputs) == 1 else inputs, None), "loss": wave_loss}
    if one.prepare is not None:
        try:
            with net.edit(seed=3) as edit:
                one.prepare(edit, on, data)
        except EditError:  # then the operator itself will say why
            pass
    return net, data, inputs


def _check_promise(one: Operator, on: Case, where: str, *, kept: bool) -> None:
    net, data, _ = _prepared(one, on)
    try:
        with net.edit(seed=7) as edit:
            one.apply(edit, on, data, preserves="function")
    except EditError as error:
        if kept:
            raise AssertionError(f"{where}: the promise of the function is refused where it holds: {error}") from error
        return
    if not kept:
        raise AssertionError(f"{where}: the promise of the function is taken where it is not claimed")


def _outputs(net: Network, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = net(*inputs)
    return found if isinstance(found, tuple) else (found,)


def _change(before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> float | None:
    if any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
        return None
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(before, after, strict=True))

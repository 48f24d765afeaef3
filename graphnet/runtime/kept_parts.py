"""Going back to a kept version where tensors are parametrized: what they are computed from goes back."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from graphnet.errors import EditError
from graphnet.runtime.nearness import far, rounding
from graphnet.runtime.originals import averaged, said
from graphnet.runtime.parametrized import Parametrized, compute, read, refusal

if TYPE_CHECKING:
    from graphnet.runtime.kept import Kept
    from graphnet.runtime.network import Network

__all__ = ["parts_of_then"]


def parts_of_then(net: Network, kept: Kept, parametrized: Collection[str], *, reset: bool) -> list[Parametrized]:
    """The tensors of a network that go back to a kept version by what they are computed from.

    Parameters
    ----------
    net : Network
    kept : Kept
    parametrized : collection of str
        The tensors of the network that are.
    reset : bool
        Whether optimizers start again.

    Raises
    ------
    EditError
        One was parametrized then and is not any more, or the other way round, or in another way.
    """
    followed = [held for held in kept.optimizers if held.key in net._attached and not reset]
    trained = {part for held in followed for group in held.groups for part in group}
    for name in kept.parts:
        if name not in parametrized and (parametrized or not trained.isdisjoint(kept.parts[name])):
            raise EditError(
                f"tensor {name!r} was parametrized when version {kept.version} was kept, and is not any more: register "
                "that again before going back, or take the network as it was: net.at(version)"
            )
    found = []
    for name in sorted(parametrized):
        then = kept.parts.get(name)
        if then is None:
            raise refusal(net, name, f"when version {kept.version} was kept it was not")
        spec = net.graph.tensors[name]
        one = read(net, name, spec.dims, net.graph.shape(spec))
        if {part.name for part in one.parts} != set(then):
            raise refusal(net, name, f"when version {kept.version} was kept it was so in another way")
        wanted = kept.tensors[name]
        try:
            given = compute(one.held, {part.key: then[part.name].to(part.tensor.device) for part in one.parts})
            apart = far(given, wanted.to(given.device)) if given.shape == wanted.shape else float("inf")
        except Exception as error:
            raise refusal(net, name, f"from what was kept it cannot be computed ({said(error)})") from error
        if not apart <= rounding(wanted.dtype):
            raise refusal(net, name, f"from what was kept with version {kept.version} it is not what it was then")
        for average in net._averages.values():
            for part in one.parts:
                averaged(average.copy, part)
        found.append(one)
    return found

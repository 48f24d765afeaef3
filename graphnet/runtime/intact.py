"""Whether a network still is what its graph says: checked before every edit.

A network is an ordinary ``nn.Module``, so a user may replace a layer, a parameter or a tie, resize a tensor, or
register a parametrization. An edit would then move the wrong tensors, or the wrong way, so it is refused. A
parametrized tensor (weight norm, spectral norm ...) is no obstacle to an edit that does not touch it; one that moves
it moves what it is computed from (:mod:`graphnet.runtime.originals`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import cached, is_parametrized

from graphnet.errors import EditError
from graphnet.ir.graph import Graph
from graphnet.runtime.parametrized import list_of, refusal
from graphnet.runtime.resize import check_unsharded

__all__ = ["check_intact", "check_unparametrized", "steady"]


def check_intact(graph: Graph, root: nn.Module, program: fx.GraphModule) -> frozenset[str]:
    """Check the modules and tensors of a network against its graph and what its forward pass runs.

    Parameters
    ----------
    graph : Graph
    root : nn.Module
        Holds the ops' modules.
    program : torch.fx.GraphModule
        What :func:`graphnet.compilers.plain.lower` made of them.

    Returns
    -------
    frozenset of str
        The tensors that are parametrized.

    Raises
    ------
    EditError
        A module was replaced or removed, a tensor is missing, resized, sharded, on the meta device, or tied in another
        way than the graph says; names it and says what to do.
    """
    for node in program.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            name = str(node.target)
            if node.op == "get_attr" and _is_parametrized(root, name):
                raise refusal(root, name, "the forward pass, which reads it without its layer, goes on without that")
            if not _is_parametrized(root, name) and _at(root, name) is not _at(program, name):
                raise EditError(
                    f"{name!r} was replaced or removed since the network was built, and the forward pass still runs "
                    "the old one: copy values into the layer that is there, or build a new network"
                )
    owners: dict[int, str] = {}
    parametrized: set[str] = set()
    for name, node in graph.nodes.items():
        for spec in node.tensors:
            if _is_parametrized(root, spec.name):
                parametrized.add(spec.shared or spec.name)
                continue
            tensor = _stored(root, name, spec.name, buffer=spec.buffer)
            if spec.shared is not None:
                if _is_parametrized(root, spec.shared) or tensor is not _at(root, spec.shared):
                    raise EditError(
                        f"tensor {spec.name!r} is tied to {spec.shared!r} in the graph, and was replaced by another: "
                        f"set it to the same parameter again"
                    )
                continue
            other = owners.setdefault(id(tensor), spec.name)
            if other != spec.name:
                raise EditError(
                    f"tensors {other!r} and {spec.name!r} are one tensor, which the graph does not say: state the tie "
                    "in the graph (tied: NAME), or give each its own"
                )
            expected = graph.shape(spec)
            if tuple(tensor.shape) != expected:
                raise EditError(
                    f"tensor {spec.name!r} has shape {list(tensor.shape)} and the graph says {list(expected)}: it was "
                    "resized outside graphnet; put a tensor of that shape back, and use net.edit() to resize"
                )
            if tensor.is_meta:
                raise EditError(f"tensor {spec.name!r} is on the meta device and has no values to edit")
            check_unsharded(spec.name, tensor)
    return frozenset(parametrized)


def check_unparametrized(root: nn.Module, parametrized: Collection[str], touched: Iterable[str], what: str) -> None:
    """Refuse what cannot be done to a tensor that is computed from others.

    Raises
    ------
    EditError
        Names the tensor, says why and what to do.
    """
    for name in touched:
        if name in parametrized:
            raise refusal(root, name, what)


@contextmanager
def steady(root: nn.Module) -> Iterator[None]:
    """Parametrized tensors are computed once inside, as in evaluation mode, so that reading them changes nothing.

    Otherwise each read would give another tensor, and one of ``spectral_norm`` would take a step of its iteration.
    """
    parts = [
        part
        for held in root.modules()
        if "parametrizations" in held._modules and is_parametrized(held)
        for part in _parametrizations(held).modules()
    ]
    if not parts:
        yield
        return
    training = [part for part in parts if part.training]
    try:
        for part in training:
            part.training = False
        with cached():
            yield
    finally:
        for part in training:
            part.training = True


def _parametrizations(module: nn.Module) -> nn.Module:
    held: Any = module.parametrizations
    assert isinstance(held, nn.Module)
    return held


def _is_parametrized(root: nn.Module, name: str) -> bool:
    return list_of(root, name) is not None


def _at(root: nn.Module, name: str) -> Any:
    """What stands at a dotted name; None where nothing does."""
    found: Any = root
    for part in name.split(".") if name else ():
        inner = found._modules.get(part) if isinstance(found, nn.Module) else None
        found = getattr(found, part, None) if inner is None else inner
    return found


def _stored(root: nn.Module, op: str, name: str, *, buffer: bool) -> Tensor:
    path, _, attribute = name.rpartition(".")
    module = _at(root, path)
    if isinstance(module, nn.Module):
        tensor = (module._buffers if buffer else module._parameters).get(attribute)
        if tensor is not None:
            return tensor
    kind = "buffer" if buffer else "parameter"
    raise EditError(
        f"op {op!r} has no {kind} {name!r} any more: it was removed, or is computed from others (weight_norm, "
        "spectral_norm, torch.nn.utils.prune): undo that before the edit"
    )

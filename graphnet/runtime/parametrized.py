"""What a parametrized tensor (``torch.nn.utils.parametrize``) is computed from, and which units that follows.

A parametrized weight is a function of originals and of the buffers and parameters of the parametrization's modules:
its parts. Which dimension of a part follows which dimension of the weight is found by trial on other values: where
the units along a dimension of the weight change places in the parts, they must change places in the weight that is
computed from them, and nothing else may happen. A weight that mixes its units in another way has no such dimension.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from graphnet.edit.action import gather
from graphnet.edit.host import Slot
from graphnet.edit.rates import NEUTRAL
from graphnet.errors import EditError
from graphnet.ir.layout import IndexArray, Layout, const
from graphnet.runtime.gradients import dense
from graphnet.runtime.nearness import far

if TYPE_CHECKING:
    from graphnet.runtime.optimizers import Attached

__all__ = [
    "Parametrized",
    "Part",
    "compute",
    "invert",
    "kinds_of",
    "list_of",
    "part_dims",
    "read",
    "refusal",
    "twin_of",
]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_COARSE = 5e-2
_MOST = 64
"""So many ways in which parts may follow a dimension are tried."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What :func:`_find` gave, with what that depends on."""

    of: Any
    axes: tuple[tuple[int, ...], ...]
    stuck: Mapping[int, str]

    def fits(self, parts: Sequence[Part], shape: Sequence[int]) -> bool:
        """Whether parts have the sizes of what they follow."""
        return all(
            axis < 0 or size == shape[axis]
            for part, mine in zip(parts, self.axes, strict=True)
            for axis, size in zip(mine, part.tensor.shape, strict=True)
        )


_FOUND: WeakKeyDictionary[nn.Module, _Found] = WeakKeyDictionary()
"""By list of parametrizations."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something that a parametrized weight is computed from.

    Attributes
    ----------
    name : str
        In the network, such as ``fc1.parametrizations.weight.original0``.
    key : str
        In the list of parametrizations: ``original0``, or ``0.mask`` for a buffer or parameter of a module.
    tensor : Tensor
    axes : tuple of int
        For each of its dimensions the dimension of the weight that it follows, or -1.
    """

    name: str
    key: str
    tensor: Tensor
    axes: tuple[int, ...] = ()

    @property
    def original(self) -> bool:
        """Whether ``right_inverse`` gives it."""
        return "." not in self.key

    def sources(self, flat: Sequence[IndexArray | None]) -> list[IndexArray | None]:
        """The maps of its own dimensions, from those of the weight's."""
        return [flat[axis] if axis >= 0 else None for axis in self.axes]


@dataclass(frozen=True, slots=True)
class Parametrized:
    """A parametrized tensor.

    Attributes
    ----------
    name : str
        As the graph calls it.
    held : nn.Module
        The list of its parametrizations.
    parts : tuple of Part
    stuck : mapping of int to str
        Dimensions along which it cannot be moved, and why.
    """

    name: str
    held: nn.Module
    parts: tuple[Part, ...]
    stuck: Mapping[int, str]

    def slots(self, dims: Sequence[Layout], attached: Mapping[str, Attached]) -> Iterator[Slot]:
        """Gradients, optimizer state and ages of the parts, as they follow the weight's dimensions."""
        aged: set[tuple[str, ...]] = set()
        for part in self.parts:
            mine = part_dims(part, dims)
            if part.tensor.is_leaf and part.tensor.grad is not None:
                yield Slot(("grad", part.name), self.name, dense(part.tensor.grad), mine, power=1.0, axes=part.axes)
            for holder in attached.values():
                if not holder.holds(part.tensor):
                    continue
                for slot in holder.slots(part.tensor, part.name, mine):
                    if slot.key[0] not in NEUTRAL:
                        axes = tuple(part.axes[at] for at in (slot.axes or range(len(slot.dims))))
                        newborn = 0.0 if slot.newborn == "weight" else slot.newborn  # the part's own, set with it
                        yield replace(slot, tensor=self.name, axes=axes, newborn=newborn)
                        continue
                    (dim,) = slot.axes or (0,)
                    key = (slot.key[0], holder.key, self.name, str(part.axes[dim]))
                    if part.axes[dim] >= 0 and key not in aged:
                        aged.add(key)
                        yield replace(slot, key=key, tensor=self.name, axes=(part.axes[dim],))

    def held_by(self, holder: Attached) -> list[Part]:
        """The parts that an optimizer trains."""
        return [part for part in self.parts if holder.holds(part.tensor)]


def list_of(root: nn.Module, name: str) -> Any:
    """The parametrizations of a tensor; None where it has none."""
    path, _, attribute = name.rpartition(".")
    found: Any = root
    for step in path.split(".") if path else ():
        inner = found._modules.get(step) if isinstance(found, nn.Module) else None
        found = getattr(found, step, None) if inner is None else inner
    if not isinstance(found, nn.Module) or "parametrizations" not in found._modules:
        return None
    held: Any = found.parametrizations
    return held[attribute] if is_parametrized(found, attribute) else None


def kinds_of(held: Any) -> list[str]:
    """The classes of the parametrizations in a list, by name."""
    return [type(function).__name__ for function in held]


def refusal(root: nn.Module, name: str, what: str) -> EditError:
    """The error of an edit that a parametrized tensor cannot follow: names it, says why and what to do."""
    held, (path, _, attribute) = list_of(root, name), name.rpartition(".")
    kinds = ", ".join(kinds_of(held)) if held is not None else "where it is tied"
    return EditError(
        f"tensor {name!r} is parametrized ({kinds}), and {what}. Remove it with "
        f"torch.nn.utils.parametrize.remove_parametrizations(net.get_submodule({path!r}), {attribute!r}, "
        "leave_parametrized=True), edit, and register it again"
    )


def read(root: nn.Module, name: str, dims: Sequence[Layout], shape: Sequence[int]) -> Parametrized:
    """Find what a parametrized tensor is computed from, and what of it follows which dimension.

    Parameters
    ----------
    root : nn.Module
    name : str
        Of a tensor that :func:`list_of` finds parametrizations of.
    dims : sequence of Layout
        Of the weight.
    shape : sequence of int
        Of the weight.
    """
    held = list_of(root, name)
    path, _, attribute = name.rpartition(".")
    start = f"{path}.parametrizations.{attribute}" if path else f"parametrizations.{attribute}"
    tensors = [*held.named_parameters(remove_duplicate=False), *held.named_buffers(remove_duplicate=False)]
    parts = sorted((Part(f"{start}.{key}", key, tensor) for key, tensor in tensors), key=_order)
    # the way in which parts follow stays what it is when units come and go: it is looked for once
    signature = (
        tuple((id(one), type(one)) for one in held.modules()),
        tuple((part.key, part.tensor.dtype) for part in parts),
        dims,
    )
    stuck: Mapping[int, str]
    known = _FOUND.get(held)
    if (
        known is not None
        and known.of == (signature, _values(parts) if known.stuck else None)
        and known.fits(parts, shape)
    ):
        axes, stuck = known.axes, known.stuck
    else:
        axes, stuck = _find(held, parts, dims)
        _FOUND[held] = _Found((signature, _values(parts) if stuck else None), axes, stuck)
    return Parametrized(
        name, held, tuple(replace(part, axes=mine) for part, mine in zip(parts, axes, strict=True)), stuck
    )


def _values(parts: Sequence[Part]) -> tuple[tuple[int, int], ...]:
    """What differs once a part has other values: with those it may be seen what follows a dimension."""
    tensors = [part.tensor for part in parts]
    return tuple((one.data_ptr(), -1 if one.is_inference() else one._version) for one in tensors)


def _order(part: Part) -> tuple[bool, int]:
    """Originals first, in the order in which ``right_inverse`` gives them."""
    return not part.original, int(part.key.removeprefix("original") or 0) if part.original else 0


def part_dims(part: Part, dims: Sequence[Layout]) -> tuple[Layout, ...]:
    """The layouts of a part."""
    shape = part.tensor.shape
    return tuple(dims[axis] if axis >= 0 else const(size) for axis, size in zip(part.axes, shape, strict=True))


# -- computing it -----------------------------------------------------------------------------------------------------


def twin_of(held: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
    """A copy of a list of parametrizations in evaluation mode, without hooks, with other tensors in it.

    Raises
    ------
    Exception
        Of whatever kind: a parametrization is code of its user.
    """
    memo: dict[int, Any] = {}
    buffers = dict(held.named_buffers(remove_duplicate=False))
    for key, tensor in (*held.named_parameters(remove_duplicate=False), *buffers.items()):
        given = tensors.get(key)
        if given is None:
            given = tensor.detach().clone() if key in buffers else tensor.detach()
        memo[id(tensor)] = given
    twin = copy.deepcopy(held, memo)
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return twin.eval()


def compute(held: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
    """The weight that these parts give, in evaluation mode; the others are as they are.

    Raises
    ------
    Exception
        Of whatever kind.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        found = twin_of(held, tensors)()
    assert isinstance(found, Tensor)
    return found


def invert(held: nn.Module, tensors: Mapping[str, Tensor], value: Tensor) -> list[Tensor] | None:
    """The originals of a value, by every ``right_inverse``; None where one is not defined.

    Raises
    ------
    Exception
        Of whatever kind.
    """
    found: Any = value
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for module in reversed(list(twin_of(held, tensors))):
            function = getattr(module, "right_inverse", None)
            if function is None:
                return None
            try:
                found = function(found)
            except NotImplementedError:
                return None
    return [found] if isinstance(found, Tensor) else list(found)


# -- what follows which dimension ------------------------------------------------------------------------------------


def _find(held: nn.Module, parts: Sequence[Part], dims: Sequence[Layout]) -> tuple[Any, dict[int, str]]:
    axes = [[-1] * part.tensor.dim() for part in parts]
    moving = [dim for dim, layout in enumerate(dims) if any(True for _ in layout.atoms())]
    generator = torch.Generator().manual_seed(0)
    stuck: dict[int, str] = {}
    try:
        shape, shaken, weight = _other_values(held, parts, generator)
    except Exception as error:
        why = f"it cannot be computed on other values ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        return tuple(map(tuple, axes)), dict.fromkeys(moving, why)
    if len(shape) != len(dims):
        return tuple(map(tuple, axes)), dict.fromkeys(moving, "it has another number of dimensions than the graph says")
    for dim in moving:
        found = _single(held, parts, shape, dim) if shape[dim] == 1 else None
        if found is None:
            found = _following(held, parts, shape, dim, shaken, weight, generator)
        if isinstance(found, str):
            stuck[dim] = found
            continue
        for at, mine in enumerate(found):
            if mine >= 0 and axes[at][mine] >= 0:
                stuck[dim] = f"{parts[at].name!r} would follow two of its dimensions at once"
            elif mine >= 0:
                axes[at][mine] = dim
    return tuple(map(tuple, axes)), stuck


def _other_values(
    held: nn.Module, parts: Sequence[Part], generator: torch.Generator
) -> tuple[torch.Size, dict[str, Tensor], Tensor]:
    """Values near the real ones, without their zeros and repetitions, and the weight that they give."""
    shape = compute(held, {}).shape
    for added in (0.1, 0.0):  # where a domain ends at zero nothing may be added
        shaken = {part.key: _shaken(part.tensor.detach(), generator, added) for part in parts}
        try:
            weight = compute(held, shaken)
        except Exception:
            if not added:
                raise
            continue
        if bool(torch.isfinite(weight).all()):
            return shape, shaken, weight
    raise ValueError("the weight is not finite")


def _shaken(tensor: Tensor, generator: torch.Generator, added: float) -> Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        return tensor.reshape(-1)[order].reshape(tensor.shape)
    drawn = torch.rand(tensor.shape, generator=generator).to(tensor.device)
    if tensor.dtype == torch.bool:
        return drawn < 0.5
    size = float(tensor.abs().max()) if tensor.numel() else 0.0
    return (tensor * (1.0 + 0.5 * drawn) + added * (size or 1.0) * (drawn - 0.5)).to(tensor.dtype)


def _following(
    held: nn.Module, parts: Sequence[Part], shape: torch.Size, dim: int, shaken: Mapping[str, Tensor], weight: Tensor,
    generator: torch.Generator,
) -> tuple[int, ...] | str:  # fmt: skip
    """For each part which of its dimensions follows one of the weight's, or -1; or why that cannot be said."""
    options: list[list[int]] = []
    for part in parts:
        whole = part.tensor.shape == shape
        same = [at for at, size in enumerate(part.tensor.shape) if size == shape[dim]]
        same.sort(key=lambda at: at != dim)
        options.append([dim] if whole and part.original else [*same, -1])
    tried = list(itertools.islice(itertools.product(*options), _MOST + 1))
    if len(tried) > _MOST:
        return "it is computed from too many tensors of like shapes"
    order = torch.randperm(shape[dim], generator=generator)
    if torch.equal(order, torch.arange(shape[dim])):
        order = order.roll(1)
    source = order.numpy().astype(np.int64)
    wanted = gather(weight, [source if at == dim else None for at in range(len(shape))])
    passing = []
    for choice in tried:
        moved = {
            part.key: gather(shaken[part.key], [source if at == mine else None for at in range(shaken[part.key].dim())])
            for part, mine in zip(parts, choice, strict=True)
        }
        if _gives(held, moved, wanted):
            passing.append(choice)
    if not passing:
        return "where its units change places, its values do not follow"
    for other in passing[1:]:
        for part, mine, instead in zip(parts, passing[0], other, strict=True):
            if mine != instead and part.tensor.shape != shape:
                return f"it cannot be told which dimension of {part.name!r} follows its dimension {dim}"
    return passing[0]


def _gives(held: nn.Module, tensors: Mapping[str, Tensor], wanted: Tensor) -> bool:
    try:
        found = compute(held, tensors)
    except Exception:  # of whatever kind: then these are not the places
        return False
    return found.shape == wanted.shape and far(found, wanted) <= _TOLERANCE.get(wanted.dtype, _COARSE)


def _single(held: nn.Module, parts: Sequence[Part], shape: torch.Size, dim: int) -> tuple[int, ...] | str:
    """The same along a dimension of one unit, where nothing can change places: from what ``right_inverse`` makes."""
    single = f"its dimension {dim} has a single unit, and it cannot be told what follows that"
    if any(not part.original and 1 in part.tensor.shape for part in parts):
        return single
    try:
        made = invert(held, {}, compute(held, {}).repeat_interleave(2, dim))
    except Exception:
        return single
    originals = [part for part in parts if part.original]
    if made is None and len(originals) == 1 and originals[0].tensor.shape == shape:
        return tuple(dim if part.original else -1 for part in parts)
    if made is None or len(made) != len(originals):
        return single
    found, given = [], iter(made)
    for part in parts:
        mine = next(given) if part.original else part.tensor
        longer = [at for at, size in enumerate(part.tensor.shape) if mine.dim() == part.tensor.dim() and
                  mine.shape[at] == 2 * size]  # fmt: skip
        found.append(longer[0] if longer else -1)
    return tuple(found)

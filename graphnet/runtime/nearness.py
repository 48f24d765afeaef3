"""How near a tensor that was computed is to the one that is wanted."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["chosen", "equal", "far", "rounding"]


def chosen(mask: Tensor | None, one: Tensor, other: Tensor) -> Tensor:
    """One tensor where a mask is set (None: everywhere), elsewhere the other."""
    return one if mask is None else torch.where(mask, one, other)


def equal(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors hold the same numbers; what is no number equals what is none."""
    if one is two or torch.equal(one, two):
        return True
    return one.shape == two.shape and bool(((one == two) | ((one != one) & (two != two))).all())


def far(found: Tensor, wanted: Tensor, mask: Tensor | None = None) -> float:
    """The largest difference where a mask is set, in units of what stands along with it.

    That is the largest entry of its row or of its column (in general: of its slice along each dimension), whichever
    is smaller: what is rounding for one row may be another row's whole weight.
    """
    counted = chosen(mask, found, wanted)
    if equal(counted, wanted):
        return 0.0
    gap, size = (counted - wanted).abs(), wanted.abs()
    scale = size.amax()
    if size.dim() > 1:
        for dim in range(size.dim()):
            scale = torch.minimum(scale, size.amax([at for at in range(size.dim()) if at != dim], keepdim=True))
    return float(torch.where(gap == 0, torch.zeros_like(gap), gap / scale).max())


def rounding(dtype: torch.dtype, times: int = 1) -> float:
    """How far two ways of computing the same may be apart."""
    eps = torch.finfo(dtype).eps
    return times * eps * (32 if eps < 1e-6 else 2)

"""Giving a parameter other data of another shape while it stays the same object.

``parameter.data = new`` is not enough: a loss that outlives the edit keeps the old gradient accumulator, and its
backward would raise from inside autograd or, after a prune, leave a gradient of the wrong shape. So the old
accumulator gets a hook that raises our error, and the cached node is dropped by taking the data through an empty
tensor of another dtype.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from graphnet.errors import EditError

__all__ = ["check_settable", "check_unsharded", "refuse", "set_data"]


def refuse(*_: Any) -> None:
    """Raise; a hook for autograd nodes that an edit has made stale."""
    raise EditError(
        "backward through a forward pass from before an edit: the parameters have other shapes now. "
        "Call backward before the edit, or run the forward pass again"
    )


def set_data(parameter: Tensor, data: Tensor, refusals: list[RemovableHandle]) -> None:
    """Give a parameter (or buffer) new data; its gradient is dropped and a backward from before raises.

    The object, its hooks and every reference to it stay valid. ``refusals`` gets the handle of the hook that
    raises: who puts the old data back removes it, so that a backward from before works again.

    Raises
    ------
    EditError
        The parameter is an inference tensor or a sharded one, whose data cannot be set.
    """
    if parameter.requires_grad:
        with torch.enable_grad():
            node = parameter.expand_as(parameter).grad_fn
        assert node is not None
        accumulator = node.next_functions[0][0]
        assert accumulator is not None
        handle, hook = _refusal()
        refusals.append(handle)  # before the hook is there: whatever is raised in between, it can be taken back
        accumulator.register_prehook(hook)
        parameter.grad = None
        other = torch.float32 if parameter.dtype == torch.float64 else torch.float64
        parameter.data = torch.empty(0, dtype=other, device=parameter.device)
    parameter.data = data


def _refusal() -> tuple[RemovableHandle, Callable[..., None]]:
    """A hook that raises until its handle is removed."""
    hooks: OrderedDict[int, Callable[..., None]] = OrderedDict()
    handle = RemovableHandle(hooks)
    hooks[handle.id] = refuse

    def hook(*_: Any) -> None:
        for one in hooks.values():
            one()

    return handle, hook


def check_settable(name: str, tensor: Tensor) -> None:
    """Refuse tensors whose data cannot be set.

    Raises
    ------
    EditError
        Says which tensor and why.
    """
    if tensor.is_inference():
        raise EditError(
            f"tensor {name!r} was made in inference mode and cannot be edited: build the network outside it"
        )
    if tensor.device.type == "cpu" and tensor.is_shared():  # type: ignore[no-untyped-call]
        raise EditError(
            f"tensor {name!r} is in shared memory (share_memory()): other processes would go on with the old one. Edit "
            "before sharing it, or edit a copy (copy.deepcopy(net)) and share that"
        )
    check_unsharded(name, tensor)


def check_unsharded(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is one process's part of a larger one.

    Raises
    ------
    EditError
        Says which tensor and what to do.
    """
    if type(tensor).__name__ == "DTensor":
        raise EditError(
            f"tensor {name!r} is sharded (DTensor): assigning its data is silently ignored by torch; edit the network "
            "before sharding it, or gather its full state"
        )
    if getattr(tensor, "_fsdp_flattened", False):
        raise EditError(
            f"tensor {name!r} is a part of a flat one of FullyShardedDataParallel, which does not take another shape: "
            "edit the network before wrapping it"
        )

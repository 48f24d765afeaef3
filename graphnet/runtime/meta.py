"""Building modules on the meta device, where they take no memory and draw no random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from graphnet.runtime.transaction import deferred_interrupts

__all__ = ["on_meta"]

T = TypeVar("T")

_FILLS = frozenset((
    nn.init.constant_, nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_, Tensor.fill_, Tensor.normal_,
    Tensor.uniform_, Tensor.zero_,
))  # fmt: skip
"""What gives a tensor its values: on the meta device there are none, and most of the time would go to not writing."""


class _Unfilled(TorchFunctionMode):
    """Leaves out what would fill tensors of the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS:
            filled = args[0] if args else kwargs.get("tensor")
            if isinstance(filled, Tensor) and filled.is_meta:
                return filled
        elif func in (torch.zeros, torch.ones) and kwargs.get("device") is None and kwargs.get("out") is None:
            func = torch.empty
        return func(*args, **kwargs)


def on_meta(build: Callable[[], T]) -> T:
    """Call a function with the meta device as torch's default.

    An interrupt waits until it has returned: one that came while the default is being changed would leave it changed
    for the rest of the process.
    """
    with deferred_interrupts(), torch.device("meta"), _Unfilled():
        return build()

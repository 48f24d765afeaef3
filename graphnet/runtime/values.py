"""Values of a checkpoint as JSON and back: what state dicts, hyperparameters and random states are made of.

What JSON has no form for becomes a mapping with one tag (``{"!tuple": [1, 2]}``); a tensor is stored in the file
and named (``{"!tensor": "value/3"}``).
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphnet.errors import CheckpointError

__all__ = ["Reader", "Writer"]

_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


@dataclass(slots=True)
class Writer:
    """Collects the tensors of a checkpoint while its values are written.

    Attributes
    ----------
    tensors : dict of str to Tensor
        Copies on the CPU, by name in the file.
    channels_last : list of str
        Names of those that are laid out channels-last.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    channels_last: list[str] = field(default_factory=list)

    def put(self, name: str, tensor: Tensor) -> str:
        """Store a tensor under a name.

        Raises
        ------
        CheckpointError
            The tensor is sparse, sharded or without data.
        """
        if tensor.is_meta or tensor.layout != torch.strided or type(tensor.data) is not Tensor:
            what = f"{type(tensor).__name__}, {tensor.layout}, {tensor.device}"
            raise CheckpointError(f"tensor {name!r} ({what}) cannot be kept: it has no plain data")
        kept = tensor.detach()
        if kept.dim() == 4 and not kept.is_contiguous() and kept.is_contiguous(memory_format=torch.channels_last):
            self.channels_last.append(name)
        self.tensors[name] = torch.empty_like(kept, device="cpu", memory_format=torch.contiguous_format).copy_(kept)
        return name

    def encode(self, value: Any, where: str) -> Any:
        """A value as JSON; its tensors are stored.

        Raises
        ------
        CheckpointError
            It holds something else than numbers, text, tensors, arrays and containers of them; says where.
        """
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, Tensor):
            name = self.put(f"value/{len(self.tensors)}", value)
            return {"!tensor": name} if value.device.type == "cpu" else {"!tensor": name, "on": "device"}
        if isinstance(value, np.generic):
            return {"!number": self.encode(np.asarray(value), where)}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            return {"!array": self.put(f"value/{len(self.tensors)}", torch.from_numpy(np.array(value, order="C")))}
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"!float": repr(float(value))}
        if isinstance(value, list):
            return [self.encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
        if type(value) is tuple:
            return {"!tuple": self.encode(list(value), where)}
        if isinstance(value, Counter):
            return {"!counter": self._pairs(value, where)}
        if isinstance(value, Mapping) and type(value) in (dict, OrderedDict):
            if all(isinstance(key, str) and not key.startswith("!") for key in value):
                return {key: self.encode(item, f"{where}.{key}") for key, item in value.items()}
            return {"!dict": self._pairs(value, where)}
        raise CheckpointError(
            f"{where}: a {type(value).__name__} cannot be kept in a checkpoint; it holds numbers, text, tensors, "
            "arrays, and lists, tuples and dicts of them"
        )

    def _pairs(self, value: Mapping[Any, Any], where: str) -> list[Any]:
        places = [(key, item, f"{where}[{key!r}]") for key, item in value.items()]
        return [[self.encode(key, place), self.encode(item, place)] for key, item, place in places]


@dataclass(slots=True)
class Reader:
    """Gives the tensors of a checkpoint, and values made of them.

    Attributes
    ----------
    tensors : mapping of str to Tensor
    channels_last : frozenset of str
    device : torch.device
        Where tensors go that were not on the CPU.
    """

    tensors: Mapping[str, Tensor]
    channels_last: frozenset[str] = frozenset()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    used: set[str] = field(default_factory=set)

    def get(self, name: str, device: torch.device | None = None) -> Tensor:
        """A copy of a tensor.

        Raises
        ------
        CheckpointError
            It is not in the file, or cannot be put on the device.
        """
        found = self.tensors.get(name)
        if found is None:
            raise CheckpointError(f"the checkpoint lacks the tensor {name!r}")
        self.used.add(name)
        if name in self.channels_last and found.dim() != 4:
            raise CheckpointError(f"tensor {name!r} cannot be channels-last: it has {found.dim()} dimensions")
        layout = torch.channels_last if name in self.channels_last else torch.contiguous_format
        try:
            return found.to(device or torch.device("cpu"), memory_format=layout, copy=True)
        except (RuntimeError, AssertionError) as error:
            raise CheckpointError(f"tensor {name!r} cannot be put on {device}: {error}") from error

    def decode(self, value: Any) -> Any:
        """The inverse of :meth:`Writer.encode`.

        Raises
        ------
        CheckpointError
            The value was not written by it.
        """
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        tags = [key for key in value if key.startswith("!")]
        if not tags:
            return {key: self.decode(item) for key, item in value.items()}
        tag, held = tags[0], value[tags[0]]
        if tag == "!tensor" and isinstance(held, str) and set(value) <= {"!tensor", "on"}:
            return self.get(held, self.device if value.get("on") == "device" else None)
        if len(value) == 1:
            if tag == "!array" and isinstance(held, str):
                return self.get(held).numpy()
            if tag == "!float" and held in ("inf", "-inf", "nan"):
                return _FLOATS[held]
            if tag == "!tuple" and isinstance(held, list):
                return tuple(self.decode(held))
            if tag == "!number":
                return self._number(held)
            if tag in ("!dict", "!counter"):
                return self._mapping(held, Counter() if tag == "!counter" else {})
        raise CheckpointError(f"the checkpoint holds a value that graphnet does not write: {str(value)[:100]}")

    def _number(self, held: Any) -> Any:
        array = self.decode(held)
        if not isinstance(array, np.ndarray) or array.shape != ():
            raise CheckpointError("the checkpoint holds a number that graphnet does not write")
        return array[()]

    def _mapping(self, held: Any, into: dict[Any, Any]) -> dict[Any, Any]:
        if not isinstance(held, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in held):
            raise CheckpointError("the checkpoint holds a mapping that graphnet does not write")
        try:
            into.update({self.decode(key): self.decode(item) for key, item in held})
        except TypeError as error:
            raise CheckpointError(f"the checkpoint holds a mapping that graphnet does not write: {error}") from error
        return into

"""Holding an import to its word: network and model are run side by side on the example, forwards and backwards."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphnet.compilers.importer.conditions import Condition
from graphnet.errors import ImportModelError

__all__ = ["check_import", "difference", "first_run", "sizes_of_one"]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_LOOSER = 100.0
"""How much further gradients may be apart than outputs: they are sums of many more terms."""


def first_run(
    twin: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, dict[int, Tensor]]:  # fmt: skip
    """Run a copy of the model on the example, in evaluation mode, with copies of the parameters that they share.

    Returns
    -------
    output
    copies : dict of int to Tensor
        By the ``id`` of a parameter the copy of it, where the run has left no reference to that.

    Raises
    ------
    ImportModelError
        It does not run, or overwrites a parameter.
    """
    twin.eval()
    own = dict(twin.named_parameters())
    copies = {id(value): nn.Parameter(value.detach().clone(), value.requires_grad) for value in own.values()}
    made = {key: value.detach() for key, value in copies.items()}
    try:
        with torch.no_grad(), _forked(twin), _holding(twin, copies):
            output = twin(*_copied(args), **_copied(dict(kwargs)))
    except Exception as error:
        raise ImportModelError(f"the model does not run on the example: {type(error).__name__}: {error}") from error
    written = [name for name, value in own.items() if not _same(value.detach(), copies.pop(id(value)).detach())]
    if written:
        raise ImportModelError(
            f"the model overwrites its own parameter {written[0]!r} in its forward pass: what it computes would "
            "depend on how often it was called; do that outside the model"
        )
    return output, {key: value for key, value in made.items() if _alone(value)}


@contextlib.contextmanager
def _holding(module: nn.Module, others: Mapping[int, nn.Parameter]) -> Iterator[None]:
    """Let a module hold other parameters, by the ``id`` of its own, as :func:`torch.func.functional_call` does."""
    places = [
        (part._parameters, name, value)
        for part in module.modules()
        for name, value in part._parameters.items()
        if value is not None
    ]
    try:
        for table, name, value in places:
            table[name] = others[id(value)]
        yield
    finally:
        for table, name, value in places:
            table[name] = value


def _alone(value: Tensor) -> bool:
    """Whether nothing but this tensor refers to its memory: the model may have kept a part of it somewhere."""
    if not _is_plain(value):
        return False
    storage = value.untyped_storage()  # counted with it; torch has no public name for the count
    return torch._C._storage_Use_Count(storage._cdata) == 2  # noqa: TID251


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor is nothing but numbers in memory."""
    lazy = value.is_conj() or value.is_neg()
    return type(value) is Tensor and value.layout is torch.strided and not (value.is_quantized or lazy)


def _same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors hold the same, bit for bit."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if one.layout is not torch.strided or one.is_meta:
        return True  # it is refused for that
    if not (_is_plain(one) and _is_plain(two)):
        return torch.equal(one, two) or bool(((one == two) | ((one != one) & (two != two))).all())
    first, second = (value.contiguous().reshape(-1).view(torch.uint8) for value in (one, two))
    if one.device.type != "cpu":
        return torch.equal(first, second)
    wide = np.int64 if first.numel() % 8 == 0 else np.uint8  # several times faster than by torch, and than in floats
    return bool((first.numpy().view(wide) == second.numpy().view(wide)).all())


def check_import(net: nn.Module, twin: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Compare network and model on the example, in both modes; where a trace may lose gradients, compare those too.

    Parameters
    ----------
    net : Network
        Its buffers and modes are what they were afterwards.
    twin : nn.Module
        A copy of the model, whose mode may change.

    Raises
    ------
    ImportModelError
        They differ; says by how much.
    """
    kept = [(buffer, buffer.detach().clone()) for module in (net, twin) for buffer in module.buffers()]
    before = {name: module.training for name, module in net.named_modules()}
    for module in twin.modules():  # left out of the network, with a warning
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    try:
        ran = []
        for training in (False, True):
            twin.train(training)
            net.train(training)
            try:
                expected = _run(twin, args, kwargs)
            except Exception:
                if training:
                    continue  # a batch of one, for a batch norm
                raise
            try:
                found = _run(net, args, kwargs)
            except Exception as error:
                raise ImportModelError(f"the traced program does not run: {type(error).__name__}: {error}") from error
            worst = difference(expected, found)
            if worst is not None:
                mode = "training" if training else "evaluation"
                raise ImportModelError(
                    f"in {mode} mode the imported network's output differs from the model's by {worst:.3g} on the "
                    "example: its forward does something that a trace does not show (a random choice, a state of its "
                    "own)"
                )
            ran.append(training)
        if any(parameter.requires_grad for parameter in twin.parameters()):
            twin.train(ran[-1])
            net.train(ran[-1])
            _check_gradients(net, twin, args, kwargs)
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
        for name, module in net.named_modules():
            module.training = before[name]


def sizes_of_one(
    net: nn.Module, twin: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], shapes: Sequence[Any]
) -> tuple[Condition, ...]:
    """What a trace cannot show: at one position, a dimension may be squeezed away or broadcast. So one is tried.

    Parameters
    ----------
    shapes : sequence
        The dimensions of each tensor among the inputs; those with a name may change.

    Returns
    -------
    tuple of Condition
        That a dimension is not 1, where the network then gives something else than the model.
    """
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    tensors = [at for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    found = []
    for name in dict.fromkeys(entry for shape in shapes for entry in shape if isinstance(entry, str)):
        cut = list(leaves)
        for at, shape in zip(tensors, shapes, strict=True):
            for dim, entry in enumerate(shape):
                cut[at] = cut[at].narrow(dim, 0, 1) if entry == name else cut[at]
        if all(one is two for one, two in zip(cut, leaves, strict=True)):
            continue
        one_args, one_kwargs = pytree.tree_unflatten(cut, spec)
        twin.eval()
        net.eval()
        try:
            expected = _run(twin, one_args, one_kwargs)
        except Exception:  # the model does not take it either
            continue
        try:
            same = difference(expected, _run(net, one_args, one_kwargs)) is None
        except Exception:
            same = False
        if not same:
            found.append(Condition(name, "!=", "1", "tried on the example"))
    return tuple(found)


def _check_gradients(net: nn.Module, twin: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Compare gradients, if the model has functions of its own, hooks on tensors, or reaches other parameters."""
    with _hooks_counted() as count:
        expected = _run(twin, args, kwargs, grad=True)
    reached, own = _reached(expected, twin)
    found = _run(net, args, kwargs, grad=True)
    if reached == _reached(found, net)[0] and not own and not count[0]:
        return
    del expected
    other = copy.deepcopy(twin)
    _backward(_run(other, args, kwargs, grad=True))
    wanted = {name: parameter.grad for name, parameter in other.named_parameters()}
    parameters = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    total = _weighted(found)
    got: Sequence[Any] = [None] * len(parameters)
    if total is not None:
        got = torch.autograd.grad(total, [*parameters.values()], allow_unused=True)
    for name, gradient in zip(parameters, got, strict=True):
        one, two = wanted.get(name), gradient
        zero = torch.zeros_like(parameters[name])
        pair = [zero if value is None else value.to_dense() for value in (one, two)]
        gap = difference(pair[0], pair[1], _LOOSER)
        if gap is not None:
            what = f"functions of its own ({', '.join(sorted(own))})" if own else "a hook, or a part without gradients"
            raise ImportModelError(
                f"the gradient of {name!r} differs from the model's by {gap:.3g} of its maximum on the example: the "
                f"model's backward pass has something that a trace of the forward pass does not show, {what}"
            )


def _reached(output: Any, module: nn.Module) -> tuple[set[str], set[str]]:
    """The parameters that a result's gradient reaches, and the names of functions that are not torch's own."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    pending = [leaf.grad_fn for leaf in _tensors(output) if leaf.grad_fn is not None]
    reached: set[str] = set()
    own: set[str] = set()
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            own.add(type(node).__name__.removesuffix("Backward"))
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in names:
            reached.add(names[id(variable)])
        pending += [edge for edge, _ in node.next_functions if edge is not None]
    return reached, own


@contextlib.contextmanager
def _hooks_counted() -> Iterator[list[int]]:
    """Count the hooks that a forward pass puts on its tensors."""
    count = [0]
    original: Any = Tensor.register_hook

    @functools.wraps(original)
    def counting(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return original(self, *args, **kwargs)

    Tensor.register_hook = counting  # type: ignore[method-assign]
    try:
        yield count
    finally:
        Tensor.register_hook = original  # type: ignore[method-assign]


def _weighted(output: Any) -> Tensor | None:
    """A sum of a result's elements with fixed random weights, None where nothing has a gradient."""
    generator = torch.Generator().manual_seed(0)
    total = None
    for leaf in _tensors(output):
        if leaf.requires_grad:
            weights = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
            part = (torch.view_as_real(leaf).sum(-1) if leaf.is_complex() else leaf).double()
            part = (part * weights.to(part.device)).sum()
            total = part if total is None else total + part
    return total


def _backward(output: Any) -> None:
    total = _weighted(output)
    if total is not None:
        torch.autograd.backward(total)


def _run(module: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], *, grad: bool = False) -> Any:
    assert isinstance(module, nn.Module)
    with torch.set_grad_enabled(grad), _forked(module):
        torch.manual_seed(0)
        return module(*_copied(args), **_copied(dict(kwargs)))


def _copied(value: Any) -> Any:
    """Arguments that the model may overwrite."""
    return pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else copy.deepcopy(x), value)


def _forked(module: nn.Module) -> Any:
    """Keep the random numbers of every device that a module is on."""
    devices = sorted({value.device.index or 0 for value in module.parameters() if value.is_cuda})
    return torch.random.fork_rng(devices=devices)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def difference(one: Any, two: Any, looser: float = 1.0) -> float | None:
    """The largest relative difference of two results, where it is more than rounding; else None."""
    worst = 0.0
    found = False
    for a, b in zip(pytree.tree_leaves(one), pytree.tree_leaves(two), strict=True):
        if not isinstance(a, Tensor):
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if not (a.is_floating_point() or a.is_complex()):
            if not torch.equal(a, b):
                return float("inf")
            continue
        limit = _TOLERANCE.get(a.dtype, 1e-5) * looser
        wide = torch.complex128 if a.is_complex() else torch.float64
        a, b = a.detach().to(wide), b.detach().to(wide)
        if a.numel() == 0:
            continue
        same = torch.isfinite(a) & torch.isfinite(b)
        if not torch.equal(torch.nan_to_num(a)[~same], torch.nan_to_num(b)[~same]):
            return float("inf")
        a, b = a[same], b[same]
        if a.numel() == 0:
            continue
        gap = float((a - b).abs().max()) / max(float(a.abs().max()), 1e-30)
        worst = max(worst, gap)
        found = found or gap > limit
    return worst if found else None

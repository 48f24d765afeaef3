"""Calls that write in place, made into calls that do not.

A call that overwrites the whole of a tensor becomes one that gives a new value, which later readers read. Where it
writes through a view, the views' base gets the new value by the matching scatter, and other views of it are taken
again. A write into a tensor of the model (a counter, a running average of the model's own) is refused: what the model
computes would depend on how often it was called.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from graphnet.compilers.importer.program import Program, Ref, Size, Step, refs_in, replace_refs
from graphnet.errors import ImportModelError
from graphnet.ir.ops.aten.call import schema_of, target_of
from graphnet.ir.ops.aten.view import PermuteCall

__all__ = ["functionalise"]

_SHAPES = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as", "reshape_as")
_ORDERS = ("transpose", "permute", "t", "swapaxes", "swapdims", "mT", "numpy_T")
_COUNTERPARTS = {
    "aten.zero_.default": "aten.zeros_like.default",
    "aten.fill_.Scalar": "aten.full_like.default",
    "aten.bernoulli_.float": "aten.bernoulli.p",
    "aten.normal_.default": "aten.normal_functional.default",
    "aten.pow_.Scalar": "aten.pow.Tensor_Scalar",
    "aten.pow_.Tensor": "aten.pow.Tensor_Tensor",
    "aten.float_power_.Scalar": "aten.float_power.Tensor_Scalar",
    "aten.float_power_.Tensor": "aten.float_power.Tensor_Tensor",
    "aten.floor_divide_.Tensor": "aten.floor_divide.default",
    "aten.ldexp_.default": "aten.ldexp.Tensor",
}
"""What gives the value that a call writes, where it is not named like the call."""
_SAME = ("alias", "detach", "contiguous", "to", "_to_copy")


def functionalise(program: Program) -> Program:
    """The program without in-place calls.

    Raises
    ------
    ImportModelError
        A write that cannot be followed; says where.
    """
    if not any(_written(step.target) is not None for step in program.steps):
        return program
    return _Pass(program).run()


@cache
def _written(target: str) -> str | None:
    """Name of the argument that a call overwrites."""
    for argument in target_of(target)._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            return str(argument.name)
    return None


@cache
def _aliases(target: str) -> bool:
    """Whether a call's output may share memory with an operand."""
    schema = target_of(target)._schema
    return any(output.alias_info is not None for output in schema.returns) and any(
        argument.alias_info is not None for argument in schema.arguments
    )


def _viewed(step: Step) -> Ref | None:
    """The operand that a call's output may share memory with."""
    if not _aliases(step.target):
        return None
    return next((value for value in step.args if isinstance(value, Ref)), None)


@dataclass(slots=True)
class _View:
    """One value as a view: of what, by which step."""

    base: Ref
    step: Step


class _Pass:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.steps: list[Step] = []
        self.now: dict[Ref, Ref] = {}
        """For each value of the captured program, the value that stands for it now."""
        self.views: dict[Ref, _View] = {}
        """For each view of the captured program: what it is a view of."""
        self.metas = {step.name: step.metas for step in program.steps}
        self.count = 0

    def run(self) -> Program:
        last = self._last_uses()
        for at, step in enumerate(self.program.steps):
            name = _written(step.target)
            if name is None:
                self._keep(step)
            elif not self._is_count(step):
                self._write(step, at, last)
        outputs = [replace_refs(value, self._current) for value in self.program.outputs]
        return replace(self.program, steps=self.steps, outputs=outputs)

    def _last_uses(self) -> dict[Ref, int]:
        last: dict[Ref, int] = {}
        for at, step in enumerate(self.program.steps):
            for ref in step.reads():
                last[ref] = at
        for ref in refs_in(self.program.outputs):
            last[ref] = len(self.program.steps)
        return last

    def _current(self, ref: Ref) -> Ref:
        return self.now.get(ref, ref)

    def _keep(self, step: Step) -> None:
        viewed = _viewed(step)
        if viewed is not None:
            for port in range(len(step.metas)):
                self.views[Ref(step.name, port)] = _View(viewed, step)
        self.steps.append(replace(step, args=replace_refs(step.args, self._current),
                                  kwargs=replace_refs(step.kwargs, self._current)))  # fmt: skip

    def _is_count(self, step: Step) -> bool:
        """The counter of a batch norm, which its layer keeps by itself."""
        first = step.args[0]
        source = self.program.sources.get(first.step) if isinstance(first, Ref) else None
        return source is not None and source.kind == "buffer" and source.key.endswith("num_batches_tracked")

    # -- writing ----------------------------------------------------------------------------------------------------

    def _write(self, step: Step, at: int, last: dict[Ref, int]) -> None:
        name = _written(step.target)
        first = step.args[0]
        direct = name == schema_of(step.target)[0][0]
        if not direct:
            first = step.kwargs.get(str(name))
        if not isinstance(first, Ref):
            raise ImportModelError(
                f"the program writes in place by {step.target} (in module {step.path!r}): not followed"
            )
        base, chain = self._chain(first)
        source = self.program.sources.get(base.step)
        if source is not None and source.kind != "input":
            raise ImportModelError(
                f"the model overwrites its own {source.kind} {source.key!r} ({step.target} in module {step.path!r}): "
                "what it computes would depend on how often it was called; keep such state outside the model"
            )
        if not direct:
            raise ImportModelError(
                f"the program writes in place by {step.target} (in module {step.path!r}): not followed"
            )
        value = self._functional(step)
        self.now[first] = self.now[Ref(step.name)] = value
        related = [ref for ref in self._members(base) if ref != first and last.get(ref, -1) > at]
        later = [ref for ref in related if self._chain(ref)[1][: len(chain)] != chain or not chain]
        inner = [ref for ref in related if ref not in later]
        if chain and (later or last.get(base, -1) > at):
            new = value
            for view in reversed(chain):
                new = self._scatter(view, new)
                self.now[self._origin(view)] = new
        for ref in self._ordered(related):
            if ref in inner or (later and ref != base and self.views.get(ref) is not None):
                self._retake(ref)

    def _members(self, base: Ref) -> set[Ref]:
        found = {base}
        for ref in self.views:
            if self._chain(ref)[0] == base:
                found.add(ref)
        return found

    def _ordered(self, refs: Iterable[Ref]) -> list[Ref]:
        order = {step.name: at for at, step in enumerate(self.program.steps)}
        return sorted(refs, key=lambda ref: (order.get(ref.step, -1), ref.port))

    def _origin(self, view: _View) -> Ref:
        return view.base

    def _chain(self, ref: Ref) -> tuple[Ref, list[_View]]:
        chain: list[_View] = []
        while ref in self.views:
            chain.append(self.views[ref])
            ref = self.views[ref].base
        return ref, chain[::-1]

    def _functional(self, step: Step) -> Ref:
        if step.function == "copy_":
            return self._copied(step)
        _, function, overload = step.target.split(".")
        target = f"aten.{function.rstrip('_')}.{overload}"
        target = _COUNTERPARTS.get(step.target, target)
        try:
            target_of(target)
        except ValueError:
            raise ImportModelError(
                f"the program writes in place by {step.target} (in module {step.path!r}), which has no counterpart "
                "that does not"
            ) from None
        meta = step.metas[0]
        defaults = [default for _, keyword, default in schema_of(step.target) if not keyword]
        wanted = sum(not keyword for _, keyword, _ in schema_of(target))
        args = (*step.args, *defaults[len(step.args) : wanted])  # a counterpart may have no defaults of its own
        made = Step(
            self._name(step.name), target, replace_refs(args, self._current),
            replace_refs(step.kwargs, self._current), (meta,), False, step.path,
        )  # fmt: skip
        self._add(made)
        return Ref(made.name)

    def _copied(self, step: Step) -> Ref:
        """What a tensor holds after another was copied into it."""
        meta, source = self._meta(self._current(step.args[0])), self._current(step.args[1])
        if self._meta(source).dtype != meta.dtype:
            own = replace(self._meta(source), dtype=meta.dtype)
            cast = Step(self._name("to"), "aten.to.dtype", (source, meta.dtype), {}, (own,), False, step.path)
            self._add(cast)
            source = Ref(cast.name)
        if self._meta(source).shape != meta.shape:
            size = [entry if isinstance(entry, int) else Size(entry) for entry in meta.shape]
            wide = Step(self._name("expand"), "aten.expand.default", (source, size), {}, (meta,), False, step.path)
            self._add(wide)
            source = Ref(wide.name)
        return source

    def _scatter(self, view: _View, new: Ref) -> Ref:
        """The base of a view after the view was given a new value."""
        base, step = self._current(view.base), view.step
        meta, function = self._meta(base), step.function
        if function in _SAME:
            return new
        if function == "slice" and self._meta(new).shape == meta.shape:
            return new
        if function in ("slice", "select"):
            args = (base, new, *step.args[1:])
            made = Step(self._name("scatter"), f"aten.{function}_scatter.default", args, {}, (meta,), False, step.path)
        elif function in _SHAPES:
            size = [entry if isinstance(entry, int) else Size(entry) for entry in meta.shape]
            made = Step(self._name("view"), "aten.reshape.default", (new, size), {}, (meta,), False, step.path)
        elif function in _ORDERS:
            order = self._order(step, len(meta.shape))
            inverse = [order.index(dim) for dim in range(len(order))]
            made = Step(self._name("permute"), "aten.permute.default", (new, inverse), {}, (meta,), False, step.path)
        else:
            raise ImportModelError(
                f"the program writes in place through {step.target} (in module {step.path!r}): not followed"
            )
        self._add(made)
        return Ref(made.name)

    def _order(self, step: Step, rank: int) -> list[int]:
        op = PermuteCall(name="order", inputs=("x",), target=step.target, args=tuple(
            {"in": 0} if isinstance(arg, Ref) else arg for arg in step.args), ranks=(rank,))  # fmt: skip
        return op.order(rank)

    def _retake(self, ref: Ref) -> None:
        view = self.views[ref]
        step = view.step
        made = replace(
            step, name=self._name(step.name), args=replace_refs(step.args, self._current),
            kwargs=replace_refs(step.kwargs, self._current),
        )  # fmt: skip
        self._add(made)
        for port in range(len(step.metas)):
            self.now[Ref(step.name, port)] = Ref(made.name, port)

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        self.metas[step.name] = step.metas

    def _meta(self, ref: Ref) -> Any:
        if ref.step in self.program.sources:
            return self.program.sources[ref.step].meta
        return self.metas[ref.step][ref.port]

    def _name(self, wanted: str) -> str:
        self.count += 1
        return f"{wanted.rstrip('_')}_w{self.count}"

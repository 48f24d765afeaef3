"""One program for training and evaluation: the two are aligned, and what differs follows the mode."""

from __future__ import annotations

from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

import torch

from graphnet.compilers.importer.program import Meta, Mode, Program, Ref, Size, Source, Step, refs_in, replace_refs
from graphnet.errors import ImportModelError
from graphnet.ir.ops.aten.call import schema_of

__all__ = ["SWITCH", "merge"]

SWITCH = "graphnet.switch.default"
"""Target of a step that gives its first operand in training and its second in evaluation."""


def merge(train: Program, evaluation: Program) -> Program:
    """Merge a model's programs.

    Raises
    ------
    ImportModelError
        They read other inputs, or return other things; says what.
    """
    if [source.key for source in train.sources.values() if source.kind == "input"] != [
        source.key for source in evaluation.sources.values() if source.kind == "input"
    ]:
        raise ImportModelError("the model reads other inputs in training than in evaluation")
    if len(train.outputs) != len(evaluation.outputs) or train.out_spec != evaluation.out_spec:
        raise ImportModelError(
            f"the model returns {len(train.outputs)} value(s) in training and {len(evaluation.outputs)} in evaluation, "
            "or puts them together otherwise: wrap it so that it returns the same in both modes"
        )
    if evaluation.steps is train.steps:  # read once, since both exports hold the same calls
        return replace(train, conditions=_conditions(train, evaluation))
    return _Merge(train, evaluation).run()


def _conditions(train: Program, evaluation: Program) -> tuple[Any, ...]:
    return tuple(dict.fromkeys((*train.conditions, *evaluation.conditions)))


class _Merge:
    def __init__(self, train: Program, evaluation: Program) -> None:
        self.train, self.evaluation = train, evaluation
        self.steps: list[Step] = []
        self.sources = dict(train.sources)
        self.ours: dict[Ref, Ref] = {}
        """For each value of the evaluation program, the value of the merged one."""
        self.switches: dict[tuple[Ref, Ref], Ref] = {}
        self.taken = {step.name for step in train.steps} | set(train.sources)
        self.metas: dict[str, tuple[Meta, ...]] = {name: (source.meta,) for name, source in train.sources.items()}
        self.metas |= {step.name: step.metas for step in train.steps}

    def run(self) -> Program:
        by_key = {(source.kind, source.key): name for name, source in self.sources.items()}
        for name, source in self.evaluation.sources.items():
            found = by_key.get((source.kind, source.key))
            if found is not None and not _same_tensor(self.sources[found], source):
                found = self._fresh(name)
                self.sources[found] = replace(source, name=found, key=found)
                self.metas[found] = (source.meta,)
            if found is None:
                found = self._fresh(name)
                self.sources[found] = replace(source, name=found)
                self.metas[found] = (source.meta,)
            self.ours[Ref(name)] = Ref(found)
        one, two = self.train.steps, self.evaluation.steps
        matcher = SequenceMatcher(None, [_key(step) for step in one], [_key(step) for step in two], autojunk=False)
        for kind, first, last, start, end in matcher.get_opcodes():
            if kind == "equal":
                for step, other in zip(one[first:last], two[start:end], strict=True):
                    self._pair(step, other)
                continue
            for step in one[first:last]:
                self.steps.append(replace(step, only="train"))
            for step in two[start:end]:
                self._alone(step)
        outputs = [self._value(a, b) for a, b in zip(self.train.outputs, self.evaluation.outputs, strict=True)]
        conditions = _conditions(self.train, self.evaluation)
        return replace(self.train, steps=self.steps, outputs=outputs, sources=self.sources, conditions=conditions)

    def _pair(self, step: Step, other: Step) -> None:
        for port in range(len(step.metas)):
            self.ours[Ref(other.name, port)] = Ref(step.name, port)
        (mine, named), (theirs, others) = _aligned(step, other)
        args = tuple(self._value(a, b) for a, b in zip(mine, theirs, strict=True))
        kwargs = {key: self._value(named[key], others[key]) for key in named}
        self.steps.append(replace(step, args=args, kwargs=kwargs))

    def _alone(self, step: Step) -> None:
        name = self._fresh(step.name)
        args = replace_refs(step.args, lambda ref: self.ours[ref])
        kwargs = replace_refs(step.kwargs, lambda ref: self.ours[ref])
        self.steps.append(replace(step, name=name, args=args, kwargs=kwargs, only="evaluation"))
        self.metas[name] = step.metas
        for port in range(len(step.metas)):
            self.ours[Ref(step.name, port)] = Ref(name, port)

    def _fresh(self, wanted: str) -> str:
        name, count = f"{wanted}_eval", 1
        while name in self.taken:
            name, count = f"{wanted}_eval{count}", count + 1
        self.taken.add(name)
        return name

    def _value(self, train: Any, evaluation: Any) -> Any:
        """A value of the merged program for what both programs have in one place."""
        if isinstance(train, Ref) and isinstance(evaluation, Ref):
            ours = self.ours[evaluation]
            return train if train == ours else self._switch(train, ours)
        if isinstance(train, list) and isinstance(evaluation, list) and len(train) == len(evaluation):
            return [self._value(a, b) for a, b in zip(train, evaluation, strict=True)]
        if type(train) is type(evaluation) and train == evaluation:
            return train
        if any(True for _ in refs_in((train, evaluation))) or isinstance(train, Size) or isinstance(evaluation, Size):
            raise ImportModelError("training and evaluation differ in which tensors a call reads")
        return Mode(train, evaluation)

    def _switch(self, train: Ref, evaluation: Ref) -> Ref:
        if (train, evaluation) in self.switches:
            return self.switches[train, evaluation]
        meta = self.metas[train.step][train.port]
        if meta != self.metas[evaluation.step][evaluation.port]:
            raise ImportModelError("a value has another shape or type in training than in evaluation")
        name = self._fresh("switch")
        made = {step.name: step for step in self.steps}
        path = made[train.step].path if train.step in made else ""
        self.steps.append(Step(name, SWITCH, (train, evaluation), {}, (meta,), False, path))
        self.metas[name] = (meta,)
        self.switches[train, evaluation] = Ref(name)
        return Ref(name)


def _same_tensor(one: Source, two: Source) -> bool:
    """Whether sources of one key are one tensor: torch.export counts constants, and calls two by one name."""
    if one.kind != "constant" or one.value is two.value:
        return True
    a, b = one.value, two.value
    assert a is not None
    assert b is not None
    return one.meta == two.meta and a.device == b.device and torch.equal(a, b)


def _aligned(one: Step, two: Step) -> tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]:
    """The arguments of two calls of one function, with defaults where only one of them says something."""
    if len(one.args) == len(two.args) and one.kwargs.keys() == two.kwargs.keys():
        return (one.args, one.kwargs), (two.args, two.kwargs)
    schema = schema_of(one.target)
    positional = [name for name, keyword, _ in schema if not keyword]
    defaults = {name: default for name, _, default in schema}
    count = max(len(one.args), len(two.args))
    keys = [key for key in defaults if key in one.kwargs or key in two.kwargs]
    found = []
    for step in (one, two):
        args = (*step.args, *(step.kwargs.get(name, defaults[name]) for name in positional[len(step.args) : count]))
        found.append(
            (args, {key: step.kwargs.get(key, defaults[key]) for key in keys if key not in positional[:count]})
        )
    return tuple(found)


def _key(step: Step) -> tuple[Any, ...]:
    """What two calls that are the same one in both modes have in common."""
    return step.target, step.path, tuple(meta.shape for meta in step.metas)

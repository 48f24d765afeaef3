"""What a version costs, and what an edit costs while it is made, predicted from graphs; and the budgets on both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch.optim import Optimizer

from graphnet.edit.host import Batch
from graphnet.edit.plan import extended_sizes
from graphnet.errors import BudgetError
from graphnet.ir.graph import Graph
from graphnet.ir.ops.base import TensorSpec
from graphnet.rules.outcome import CostChange, Costs
from graphnet.runtime.evaluate import split_batch
from graphnet.runtime.network import Network
from graphnet.runtime.optimizers import rule_for
from graphnet.schemas.policy import Budgets

__all__ = ["Accountant", "check_budgets", "check_transient"]

_KEPT_IF = {"momentum_buffer": "momentum", "max_exp_avg_sq": "amsgrad", "grad_avg": "centered"}
"""State that an optimizer keeps only where an option of its parameter group is set."""


@dataclass(frozen=True, slots=True)
class _PerElement:
    """Bytes for each element of one stored tensor."""

    value: int
    state: int
    gradient: int
    parameter: bool


class Accountant:
    """Predicts costs of a network's versions; reads shapes, dtypes and optimizer options, and no tensor's values."""

    def __init__(self, net: Network) -> None:
        self._net = net
        self._known: list[tuple[Graph, Costs]] = []  # of the last few graphs
        self._table: Mapping[str, _PerElement] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._key: object = None
        self._seen: tuple[object, ...] = ()
        self._sample: torch.Tensor | None = None  # of the parameters: its type and place are looked at every step
        self._unchanged: tuple[Graph, CostChange] | None = None

    def refresh(self, batch: Batch | None) -> None:
        """Read again what is attached, and the sizes of the inputs off a batch."""
        net, sample = self._net, self._sample
        graph = net.graph
        seen = (graph, net.attached, None if sample is None else (sample.dtype, sample.device))
        open_sizes = batch is not None and len(graph.dynamic) > 1
        if not open_sizes and _same(seen, self._seen):
            return
        self._sample = next((p for p in net.parameters() if p.is_floating_point()), None)
        self._seen = (*seen[:2], None if self._sample is None else (self._sample.dtype, self._sample.device))
        self._unchanged = None
        if batch is not None and open_sizes:
            inputs, _ = split_batch(self._net.graph, batch)
            names = [op.name for op in self._net.graph.inputs]
            self._shapes = {name: tuple(x.shape[1:]) for name, x in zip(names, inputs, strict=True)}
        optimizers = tuple(id(each) for each in self._net.attached)
        key = (optimizers, tuple(self._net.graph.tensors), tuple(self._shapes.items()), self._dtype())
        if key != self._key:
            self._key, self._known, self._table = key, [], _per_element(self._net)

    def costs(self, graph: Graph) -> Costs:
        """The costs of a version of this network."""
        for known, costs in self._known:
            if known is graph:
                return costs
        params = state = 0
        for name, spec in graph.tensors.items():
            each = self._of(name, spec)
            if each.parameter:
                count = prod(graph.shape(spec))
                params += count
                state += count * each.state
        flops = activation = None
        if len(graph.dynamic) <= 1 or self._shapes:
            found = graph.cost(self._shapes or None, dtype=self._dtype())
            flops, activation = found.flops, found.activation_bytes
        costs = Costs(params, flops, state, activation)
        self._known = [*self._known[-3:], (graph, costs)]
        return costs

    def peak(self, before: Graph, stages: Iterable[tuple[Graph, tuple[str, ...]]]) -> int:
        """The most :meth:`transient_bytes` of the graphs that an edit goes through."""
        return max([self.transient_bytes(before, after, rewritten) for after, rewritten in stages], default=0)

    def transient_bytes(self, before: Graph, after: Graph, rewritten: Iterable[str] = ()) -> int:
        """Bytes at the peak of an edit: old and new versions of every tensor that it touches coexist.

        Counts each touched tensor twice, at both sizes, with its gradient and optimizer state, and the reserves of
        dormant units. Tensors that come or go with their op count at the one size that they have. Ages and step
        counters are left out.
        """
        anew = set(rewritten)
        total = 0
        for name in dict.fromkeys((*before.tensors, *after.tensors)):
            there = [(graph, graph.tensors[name]) for graph in (before, after) if name in graph.tensors]
            if len(there) == 2 and name not in anew and not _moves(name, before, after):
                continue
            for graph, spec in there:
                each = self._of(name, spec)
                total += prod(graph.shape(spec)) * (each.value + each.state + each.gradient)
                held = {key for layout in spec.dims for key in layout.atoms()} & graph.groups.keys()
                if any(graph.groups[key].dormant for key in held):
                    sizes = extended_sizes(graph)
                    total += prod(layout.size(sizes) for layout in spec.dims) * each.value
        return total

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor by its name; of one that is not there yet, that of the parameters."""
        return self._net.tensor(name).dtype if name in self._net.graph.tensors else self._dtype()

    def _of(self, name: str, spec: TensorSpec) -> _PerElement:
        """What a tensor takes; one that is not there yet takes what the greediest parameter does."""
        found = self._table.get(name)
        if found is not None:
            return found
        width = self._dtype().itemsize
        if spec.buffer:
            return _PerElement(width, 0, 0, False)
        known = [each for each in self._table.values() if each.parameter]
        return _PerElement(width, max((each.state for each in known), default=0), width, True)

    def unchanged(self, graph: Graph) -> CostChange:
        """The costs of a version, before and after nothing was done to it."""
        if self._unchanged is None or self._unchanged[0] is not graph:
            costs = self.costs(graph)
            self._unchanged = graph, CostChange(costs, costs)
        return self._unchanged[1]

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are."""
        return torch.device("cpu") if self._sample is None else self._sample.device

    def _dtype(self) -> torch.dtype:
        return torch.float32 if self._sample is None else self._sample.dtype


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    """Whether graph and optimizers are the same objects, and the parameters of the same type."""
    return len(one) == len(other) and one[0] is other[0] and one[1:] == other[1:]


def _moves(name: str, before: Graph, after: Graph) -> bool:
    """Whether a tensor that stays changes its units, or its shape."""
    then, now = before.tensors[name], after.tensors[name]
    if before.shape(then) != after.shape(now):
        return True
    for one, other in zip(then.dims, now.dims, strict=True):
        for old, new in zip(one.atoms(), other.atoms(), strict=False):
            here, there = before.groups.get(old), after.groups.get(new)
            if here is not None and there is not None and (here.ids, here.dormant) != (there.ids, there.dormant):
                return True
    return False


def _per_element(net: Network) -> dict[str, _PerElement]:
    slots = {
        id(parameter): _slots(optimizer, group)
        for optimizer in net.attached
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    table = {}
    for name, spec in net.graph.tensors.items():
        tensor = net.tensor(name)
        width = tensor.element_size()
        table[name] = _PerElement(
            width, width * slots.get(id(tensor), 0), width if tensor.requires_grad else 0, not spec.buffer
        )
    return table


def _slots(optimizer: Optimizer, group: Mapping[str, object]) -> int:
    """Numbers that an optimizer keeps for each element once it has stepped."""
    return sum(key not in _KEPT_IF or bool(group.get(_KEPT_IF[key])) for key in rule_for(optimizer).slots)


def check_budgets(budgets: Budgets, before: Costs, after: Costs) -> None:
    """Refuse a version that is over a limit, unless the edit brings it down towards the limit.

    Raises
    ------
    BudgetError
        Names the limit, and what it is before and after.
    """
    for name in ("params", "flops", "optimizer_bytes"):
        limit = getattr(budgets, name)
        if limit is None:
            continue
        was, now = getattr(before, name), getattr(after, name)
        if now is None or was is None:
            raise BudgetError(
                f"the budget of {limit:,.0f} {name} cannot be checked: an input's size changes from batch to batch; "
                "give policy.step a batch=(x, y)"
            )
        if now > limit and now > was:
            raise BudgetError(f"{name} would go from {was:,} to {now:,}, over the budget of {limit:,.0f}")


def check_transient(budgets: Budgets, needed: int) -> None:
    """Refuse an edit that needs more memory while it is made; a :class:`BudgetError` says how much."""
    limit = budgets.transient_bytes
    if limit is not None and needed > limit:
        raise BudgetError(f"the edit would need {needed:,} transient_bytes, over the budget of {limit:,.0f}")

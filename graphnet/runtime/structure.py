"""The modules and parameter groups of a network whose ops come, go and change.

A layer that stays is the same object before and after, with its hooks; a parameter that stays is the same object
too. Everything is built first, and what changes is one table or attribute at a time, so that a commit can put it
back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from graphnet.compilers.plain import attach_module
from graphnet.edit.plan import Result
from graphnet.errors import EditError, GraphError
from graphnet.ir.graph import Graph
from graphnet.runtime.meta import on_meta
from graphnet.runtime.optimizers import Attached
from graphnet.runtime.transaction import Swap

__all__ = ["Structure"]

_TABLES = ("_modules", "_parameters", "_buffers")


@dataclass(slots=True)
class Structure:
    """What a structural edit makes of a network's modules.

    Attributes
    ----------
    tensors : dict
        Every stored tensor of the new graph by name: the objects that stay, and new ones.
    dropped : list
        Parameters and buffers that go.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    dropped: list[Tensor] = field(default_factory=list)
    _swaps: list[Swap] = field(default_factory=list)
    _tables: dict[int, dict[str, dict[str, Any]]] = field(default_factory=dict)
    _root: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def build(cls, result: Result, before: Graph, root: nn.Module) -> Structure:
        """Build new modules and parameters; nothing of the network changes.

        Raises
        ------
        EditError
            The name of a new op is taken by an attribute of the network.
        """
        assert result.origins is not None
        made = cls()
        by_origin = {name: _at(root, name) for name in before.tensors}
        kept = set(result.origins.values())
        made.dropped = [tensor for name, tensor in by_origin.items() if name not in kept]
        for name, spec in result.graph.tensors.items():
            if name in result.fresh:
                value = result.fresh[name].detach().clone()
                made.tensors[name] = value if spec.buffer else nn.Parameter(value, requires_grad=_is_float(value))
            else:
                made.tensors[name] = by_origin[result.origins[name]]
        shadow = nn.Module()
        for name, node in result.graph.nodes.items():
            fresh = on_meta(partial(node.op.build, result.graph.op_sizes(name)))
            if fresh is None:
                continue
            old = _at(root, result.renamed.get(name, name)) if result.renamed.get(name, name) in before.nodes else None
            stored = {spec.name: made.tensors[spec.shared or spec.name] for spec in node.tensors}
            module = made._merged(name, old if isinstance(old, nn.Module) else None, fresh, stored, root.training)
            try:
                attach_module(shadow, name, module)
            except GraphError as error:
                raise EditError(str(error)) from error
        mine = {name.partition(".")[0] for name in before.nodes}
        extra = {key: child for key, child in root._modules.items() if key not in mine}
        made._root = made._tree(root, shadow, set(result.graph.nodes), "") | extra
        for key in made._root:
            if key not in root._modules and hasattr(root, key):
                raise EditError(f"op {key!r}: the name is an attribute of the network already; give the op another")
        made._set(root, {"_modules": made._root})
        return made

    def find(self, name: str) -> Any:
        """What will stand at a dotted name: a module or a tensor."""
        found: Any = None
        table: dict[str, Any] = self._root
        for part in name.split("."):
            if part not in table:
                raise GraphError(f"nothing will stand at {name!r}")
            found = table[part]
            if isinstance(found, nn.Module):
                tables = self._tables.get(id(found)) or {key: found.__dict__[key] for key in _TABLES}
                table = {key: value for one in _TABLES for key, value in tables.get(one, found.__dict__[one]).items()}
        return found

    def tensor(self, name: str) -> Tensor:
        """A stored tensor of the new graph, or what a parametrized one is computed from."""
        found: Tensor = self.tensors[name] if name in self.tensors else self.find(name)
        return found

    def swaps(self) -> Iterator[Swap]:
        """The changes of modules, in order."""
        yield from self._swaps

    # -- modules ----------------------------------------------------------------------------------------------------

    def _merged(
        self, path: str, old: nn.Module | None, fresh: nn.Module, stored: Mapping[str, Tensor], training: bool
    ) -> nn.Module:
        """The module of an op: the old one made like the fresh one where they are of one class, else the fresh one."""
        own = {name[len(path) + 1 :]: tensor for name, tensor in stored.items() if name.rpartition(".")[0] == path}
        parameters: dict[str, Any] = dict.fromkeys(fresh._parameters) | {
            key: own[key] for key in (*fresh._parameters, *own) if isinstance(own.get(key), nn.Parameter)
        }
        buffers: dict[str, Any] = {
            key: own.get(key, value) for key, value in fresh._buffers.items() if key not in parameters
        }
        children: dict[str, Any] = {}
        for key, child in fresh._modules.items():
            before = None if old is None else old._modules.get(key)
            children[key] = None if child is None else self._merged(f"{path}.{key}", before, child, stored, training)
        held = old._modules.get("parametrizations") if old is not None and is_parametrized(old) else None
        if isinstance(held, nn.ModuleDict):  # what is computed from others stays so, and is no parameter
            parameters = {key: value for key, value in parameters.items() if key not in held}
            buffers = {key: value for key, value in buffers.items() if key not in held}
            children["parametrizations"] = held
        if old is None or type_before_parametrizations(old) is not type(fresh):
            if held is not None:
                raise EditError(f"the layer at {path!r} is parametrized, and this edit would make it anew")
            fresh.train(training)
            for key, table in (("_parameters", parameters), ("_buffers", buffers), ("_modules", children)):
                fresh.__dict__[key] = table
            return fresh
        self._set(old, {"_parameters": parameters, "_buffers": buffers, "_modules": children})
        plain = {
            key: value
            for key, value in fresh.__dict__.items()
            if not key.startswith("_") and key != "training" and not _same(old.__dict__.get(key), value)
        }
        hidden = {key: value for key, value in fresh.__dict__.items() if key.startswith("_reversed_padding")}
        changed = plain | {key: value for key, value in hidden.items() if old.__dict__.get(key) != value}
        if changed:
            self._update(old, changed)
        return old

    def _tree(self, old: nn.Module, shadow: nn.Module, ops: set[str], path: str) -> dict[str, Any]:
        """The children of a container, with the containers that were there kept as the same objects."""
        children: dict[str, Any] = {}
        for key, child in shadow._modules.items():
            name = f"{path}.{key}" if path else key
            there = old._modules.get(key)
            if name in ops or child is None:
                children[key] = child
            elif there is None or type(there) is not nn.Module or there._parameters or there._buffers:
                child.__dict__["_modules"] = self._tree(nn.Module(), child, ops, name)
                children[key] = child
            else:
                self._set(there, {"_modules": self._tree(there, child, ops, name)})
                children[key] = there
        return children

    def _set(self, module: nn.Module, tables: Mapping[str, dict[str, Any]]) -> None:
        """Plan that a module gets other tables of children, parameters and buffers, where they differ."""
        self._tables[id(module)] = dict(tables)
        differing = {
            key: table
            for key, table in tables.items()
            if list(table) != list(module.__dict__[key])
            or any(table[name] is not module.__dict__[key][name] for name in table)
        }
        if differing:
            self._update(module, differing)

    def _update(self, module: nn.Module, values: Mapping[str, Any]) -> None:
        own = module.__dict__
        before = {key: own[key] for key in values if key in own}
        added = [key for key in values if key not in own]

        def undo() -> None:
            own.update(before)
            for key in added:
                own.pop(key, None)

        self._swaps.append(Swap(lambda: own.update(values), undo))

    # -- optimizers -------------------------------------------------------------------------------------------------

    def optimizer_swaps(self, result: Result, attached: Mapping[str, Attached]) -> Iterator[Swap]:
        """New parameters join the group of a neighbour, in its optimizer; those that go leave, with their state.

        Raises
        ------
        EditError
            A new parameter has no neighbour that an attached optimizer holds.
        """
        joining: dict[int, list[Tensor]] = {}
        groups = {id(group): group for holder in attached.values() for group in holder.optimizer.param_groups}
        for name in result.fresh:
            parameter = self.tensors[name]
            if not attached or not isinstance(parameter, nn.Parameter) or not parameter.requires_grad:
                continue
            for group in self._groups_for(name, result, attached):
                joining.setdefault(id(group), []).append(parameter)
        gone = {id(tensor) for tensor in self.dropped}
        called = {id(self.tensors[name]): name for name in result.fresh}
        for key, group in groups.items():
            params = group["params"]
            following = [held for held in params if id(held) not in gone] + joining.get(key, [])
            if len(following) != len(params) or any(a is not b for a, b in zip(following, params, strict=True)):
                yield _list_swap(params, following)
                if "param_names" in group:  # of an optimizer that was built from named parameters
                    pairs = zip(group["param_names"], params, strict=True)
                    names = [known for known, held in pairs if id(held) not in gone]
                    yield _list_swap(group["param_names"], names + [called[id(new)] for new in joining.get(key, [])])
        for holder in attached.values():
            for tensor in self.dropped:
                for table in (holder.optimizer.state, holder.updates.births):
                    if tensor in table:
                        yield _entry_removal(table, tensor)

    def _groups_for(self, name: str, result: Result, attached: Mapping[str, Attached]) -> list[dict[str, Any]]:
        def held(other: str) -> list[dict[str, Any]]:
            trained = self._trained(other)
            return [
                group
                for holder in attached.values()
                if other not in result.fresh and holder.accepts(self.tensors[name])
                for group in holder.optimizer.param_groups
                if any(id(param) in trained for param in group["params"])
            ]

        named = result.beside.get(name)
        if named is not None:
            if named not in self.tensors or not held(named):
                raise EditError(
                    f"new parameter {name!r} is to join {named!r}, which no attached optimizer holds that takes "
                    f"parameters of {self.tensors[name].dim()} dimensions"
                )
            return held(named)
        for other in neighbours(result.graph, name):
            if found := held(other):
                return found
        raise EditError(
            f"no attached optimizer holds a parameter near the new {name!r}, so that it would never be trained: name "
            "one with beside={new: neighbour}"
        )

    def _trained(self, name: str) -> set[int]:
        """What an optimizer holds of a tensor: itself, or what it is computed from, by id."""
        path, _, attribute = name.rpartition(".")
        layer = self.find(path) if path and name in self.tensors else None
        if isinstance(layer, nn.Module) and is_parametrized(layer, attribute):
            held: Any = layer.parametrizations
            return {id(part) for part in held[attribute].parameters()}
        return {id(self.tensors[name])} if name in self.tensors else set()


def neighbours(graph: Graph, name: str) -> list[str]:
    """Parameters by distance from a new one: those of its op, then of ops around it; its own kind first."""
    owner = next(node for node in graph.nodes.values() if any(spec.name == name for spec in node.tensors))
    kind = graph.tensors[name].kind
    readers: dict[str, list[str]] = {key: [] for key in graph.nodes}
    for key, node in graph.nodes.items():
        for producer, _ in node.inputs:
            readers[producer].append(key)
    found: list[tuple[int, bool, int, str]] = []
    seen, queue = {owner.op.name}, deque([(owner.op.name, 0)])
    while queue:
        op, distance = queue.popleft()
        for spec in graph.nodes[op].tensors:
            if not spec.buffer:
                found.append((0 if spec.kind == kind else 1, distance > 0, distance, spec.shared or spec.name))
        for other in (*(producer for producer, _ in graph.nodes[op].inputs), *readers[op]):
            if other not in seen:
                seen.add(other)
                queue.append((other, distance + 1))
    return list(dict.fromkeys(key for *_, key in sorted(found, key=lambda one: one[:3]) if key != name))


def _list_swap(params: list[Any], following: list[Any]) -> Swap:
    before = list(params)

    def put(values: list[Any]) -> Callable[[], None]:
        def assign() -> None:
            params[:] = values

        return assign

    return Swap(put(following), put(before))


def _entry_removal(table: Any, key: Tensor) -> Swap:
    value = table[key]

    def undo() -> None:
        table[key] = value

    return Swap(lambda: table.pop(key, None), undo)


def _at(root: Any, name: str) -> Any:
    found = root
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _is_float(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(two, Tensor):
        return one is two
    return type(one) is type(two) and bool(one == two)

"""Checkpoints: a network, its history, its optimizers and the random numbers, so that training goes on bit for bit.

``save`` writes one file (:mod:`graphnet.runtime.sealed`); ``load_network`` gives the network back, ``load_checkpoint``
everything: :meth:`Checkpoint.network`, then :meth:`Checkpoint.resume` with the optimizers and schedulers that you
built as at the start. A file is checked whole before anything is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from graphnet.errors import CheckpointError, GraphnetError
from graphnet.ir.graph import Graph
from graphnet.runtime.checkpoint_checks import Checks
from graphnet.runtime.checkpoint_document import CheckpointDocument, write_document
from graphnet.runtime.checkpoint_history import read_history
from graphnet.runtime.checkpoint_kept import check_kept, read_births, read_kept
from graphnet.runtime.history import History
from graphnet.runtime.kept import Kept, KeptOptimizer, assemble
from graphnet.runtime.network import Network
from graphnet.runtime.resuming import Restore, set_random_states
from graphnet.runtime.sealed import read_sealed, write_sealed
from graphnet.runtime.values import Reader, Writer
from graphnet.schemas.base import parse

__all__ = ["Checkpoint", "kept_in", "load_checkpoint", "load_network", "save"]


def save(
    net: Network,
    path: str | Path,
    *,
    extra: Mapping[str, Any] | None = None,
    state: Mapping[str, Any] | None = None,
    rng: bool = True,
    gradients: bool = False,
) -> Path:
    """Write a checkpoint of a network and its attached optimizers, atomically.

    The file appears under its name whole or not at all; one that was there stays until then, even if the process
    is killed.

    Parameters
    ----------
    net : Network
    path : str or Path
        One file.
    extra : mapping, optional
        Values of your own (epoch, metrics): numbers, text, tensors, arrays, and containers of them.
    state : mapping, optional
        What has a ``state_dict``, by name: learning-rate schedulers, gradient scalers, samplers.
    rng : bool
        Keep the random states of torch, CUDA, numpy and Python.
    gradients : bool
        Keep gradients too, for saving between two backward passes of one step.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    CheckpointError
        Something cannot be kept, or the file cannot be written.

    Examples
    --------
    >>> import tempfile, torch, graphnet as gn
    >>> from graphnet.runtime.checkpoint import load_checkpoint, save
    >>> net = gn.Network(gn.mlp([4, 8, 2]), seed=0)
    >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    >>> net.attach(optimizer)
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = save(net, f"{folder.name}/run.gn", extra={"epoch": 3})
    >>> checkpoint = load_checkpoint(path)
    >>> again = checkpoint.network()
    >>> optimizer = torch.optim.Adam(again.parameters())
    >>> checkpoint.resume(again, optimizer)
    >>> optimizer.param_groups[0]["lr"], checkpoint.extra
    (0.01, {'epoch': 3})
    >>> folder.cleanup()
    """
    writer = Writer()
    document = write_document(net, writer, extra=extra, state=state, rng=rng, gradients=gradients)
    return write_sealed(path, writer.tensors, document)


def load_network(
    path: str | Path, map_location: str | torch.device = "cpu", *, like: Network | None = None
) -> Network:  # fmt: skip
    """The network of a checkpoint, with its history and dormant units; optimizers: :func:`load_checkpoint`.

    Parameters
    ----------
    path : str or Path
    map_location : str or torch.device
        Where its tensors go.
    like : Network, optional
        Of an import: the model imported again (:func:`graphnet.from_torch`), for a checkpoint keeps no Python objects.
        What comes back is called, and returns, as that model does, and checks edits on the same example. Without it
        the network takes the flat inputs of its graph. Its tensors are not read, and it stays as it is.

    Raises
    ------
    CheckpointError
        The file is missing, truncated, damaged, foreign or newer, or of another network than ``like``; says which.
    """
    return load_checkpoint(path).network(map_location, like=like)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check a checkpoint.

    Raises
    ------
    CheckpointError
        The file is missing, truncated, damaged, foreign or newer; says which.
    """
    tensors, data = read_sealed(path)
    try:
        document: CheckpointDocument = parse(CheckpointDocument, data, source="its document")
        reader = Reader(tensors, frozenset(document.channels_last))
        history = read_history(document.structures, document.versions, reader)
        checkpoint = Checkpoint(Path(path), history, reader.decode(document.extra), document, tensors)
        checkpoint._check()
        return checkpoint
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except GraphnetError as error:
        raise CheckpointError(f"{path} is not valid: {error}") from error


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds, read and checked; made by :func:`load_checkpoint`.

    Attributes
    ----------
    path : Path
    history : History
        Every version of the network with its graph.
    extra : mapping
        What was given to :func:`save`.
    """

    path: Path
    history: History
    extra: Mapping[str, Any]
    _document: CheckpointDocument
    _tensors: Mapping[str, Tensor]

    @property
    def graph(self) -> Graph:
        """The graph of the newest version."""
        return self.history.latest.graph

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Class names of the optimizers, in the order in which they were attached."""
        return tuple(entry.kind for entry in self._document.optimizers)

    def network(self, map_location: str | torch.device = "cpu", *, like: Network | None = None) -> Network:
        """Build the network; no random number is drawn. Each call gives one of its own.

        Parameters
        ----------
        map_location, like
            As for :func:`load_network`.

        Raises
        ------
        CheckpointError
            Its tensors cannot be put there, or it is of another network than ``like``.
        """
        device = _device(map_location)
        if like is not None:
            self._check_like(like)
        document, graph = self._document, self.graph
        reader = self._reader(device)
        net = self._assembled(
            graph, self.history, lambda name: reader.get(f"tensor/{name}", device), frozenset(document.constant),
            {name: reader.get(f"reserve/{name}", device) for name in document.reserve}, like,
        )  # fmt: skip
        for name in document.gradients:
            net.tensor(name).grad = reader.get(f"gradient/{name}", device)
        cpu = self._reader(torch.device("cpu"))
        net._kept = {entry.version: read_kept(entry, self.history[entry.version].graph, cpu) for entry in document.kept}
        for name, part in net.named_modules():
            part.training = name not in document.evaluation
        return net

    def resume(
        self, net: Network, *optimizers: Optimizer, state: Mapping[str, Any] | None = None, rng: bool = True
    ) -> None:
        """Give optimizers, schedulers and random numbers the state that they had; call it right before training.

        Parameters
        ----------
        net : Network
            From :meth:`network`, not edited since.
        *optimizers : torch.optim.Optimizer
            Built from ``net.parameters()`` with the same groups, in the order in which they were attached. They
            are attached here; hyperparameters come from the checkpoint.
        state : mapping, optional
            What was given to :func:`save` under the same names.
        rng : bool
            Restore the random states too, where the checkpoint has them.

        Raises
        ------
        CheckpointError
            Something does not belong to this checkpoint, or is left out. Optimizers are as they were.
        """
        if net.graph.to_document() != self.graph.to_document():
            raise CheckpointError("resume takes the network of this checkpoint; this one has another graph")
        entries, owners = self._document.optimizers, dict(state or {})
        if len(optimizers) != len(entries) or set(owners) != set(self._document.state):
            held = ", ".join(self.optimizers) or "none was attached"
            raise CheckpointError(
                f"the checkpoint holds {len(entries)} optimizers ({held}) and state for "
                f"{sorted(self._document.state)}; given are {len(optimizers)} optimizers and state for {sorted(owners)}"
            )
        names = {name: net.tensor(name) for name, spec in net.graph.tensors.items() if not spec.buffer}
        device = next((tensor.device for tensor in names.values()), torch.device("cpu"))
        reader = self._reader(device)
        pending = [Restore(net, o, entry, names, reader) for o, entry in zip(optimizers, entries, strict=True)]
        decoded = {name: reader.decode(self._document.state[name]) for name in owners}
        for restore in pending:
            restore.apply()
        for name, value in decoded.items():
            with _reported(f"state[{name!r}] could not be restored"):
                owners[name].load_state_dict(value)
        if rng and self._document.rng is not None:
            with _reported("the random states could not be restored"):
                set_random_states(self._reader(torch.device("cpu")).decode(self._document.rng))

    @property
    def kept(self) -> tuple[int, ...]:
        """The versions that :meth:`version` gives: those that were kept, and the newest."""
        return tuple({*(entry.version for entry in self._document.kept), self.history.latest.number})

    def version(self, number: int) -> Kept:
        """A version whose tensors the checkpoint holds, with the optimizers' state of then.

        Raises
        ------
        CheckpointError
            It does not hold them; says which it does.
        """
        reader, document = self._reader(torch.device("cpu")), self._document
        for entry in document.kept:
            if entry.version == number != self.history.latest.number:
                return read_kept(entry, self.history[number].graph, reader)
        if number != self.history.latest.number:
            raise CheckpointError(f"{self.path} holds the tensors of versions {list(self.kept)}, not of {number!r}")
        return Kept(
            self.graph,
            {name: reader.get(f"tensor/{name}") for name in self.graph.tensors},
            {name: reader.get(f"reserve/{name}") for name in document.reserve},
            frozenset(document.constant),
            tuple(
                KeptOptimizer(
                    str(position), entry.kind, tuple(group.params for group in entry.groups),
                    reader.decode(entry.state), read_births(entry.births, reader), entry.steps,
                )
                for position, entry in enumerate(document.optimizers)
            ),
        )  # fmt: skip

    def _assembled(
        self, graph: Graph, history: History, get: Callable[[str], Tensor], constant: frozenset[str],
        reserve: Mapping[str, Tensor], like: Network | None = None,
    ) -> Network:  # fmt: skip
        try:
            net = assemble(
                Network if like is None else type(like), graph, history, self._document.seed, get,
                constant=constant, reserve=reserve,
            )  # fmt: skip
            if like is not None:
                net._take_after(like)
            return net
        except CheckpointError:
            raise
        except GraphnetError as error:
            raise CheckpointError(f"{self.path}: the network cannot be built: {error}") from error

    def _check_like(self, like: Network) -> None:
        if not isinstance(like, Network):
            raise CheckpointError(f"like= is a network, as gn.from_torch gives it, not a {type(like).__name__}")
        ours, theirs = (history.versions[0].graph.to_document() for history in (self.history, like.history))
        if ours != theirs:
            raise CheckpointError(
                f"{self.path} began as another network than like=: import the model as it was built when training "
                "began, on an example of the same kind"
            )

    def _reader(self, device: torch.device) -> Reader:
        return Reader(self._tensors, frozenset(self._document.channels_last), device)

    # -- checking ---------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Every tensor is there with the shape that the graph gives it, and no other is.

        Raises
        ------
        CheckpointError
            Says which is not.
        """
        document, graph = self._document, self.graph
        reader = Reader(self._tensors, frozenset(document.channels_last))
        if unknown := set(document.channels_last) - set(self._tensors):
            raise CheckpointError(f"tensors {sorted(unknown)[:4]} are listed and are not there")
        checks = Checks(graph, reader)
        checks.tensors(document.reserve, document.constant)
        checks.gradients(document.gradients)
        for entry in document.optimizers:
            checks.optimizer(entry.kind, [group.params for group in entry.groups], entry.state, entry.births)
            for group in entry.groups:
                options = reader.decode(group.options)
                if not isinstance(options, dict) or "params" in options:
                    raise CheckpointError(f"{entry.kind}: the hyperparameters are not a mapping of their names")
            reader.decode(entry.defaults)
        check_kept(document.kept, self.history, reader)
        for value in (document.extra, document.state, document.rng, *(s for v in document.versions for s in v.steps)):
            reader.decode(value)
        if stray := sorted(set(self._tensors) - reader.used):
            raise CheckpointError(f"tensors {stray[:4]} belong to nothing in the document")


def kept_in(path: str | Path, history: History, number: int) -> Kept:
    """A version of a network from a checkpoint of it, or from a folder that has one.

    Parameters
    ----------
    path : str or Path
        Of several checkpoints in a folder the one that was written last is taken.
    history : History
        Of the network; the checkpoint's must be the same up to that version.
    number : int

    Raises
    ------
    CheckpointError
        The file does not hold that version, or it is of another network.
    """
    if not Path(path).is_dir():
        checkpoint = load_checkpoint(path)
        kept = checkpoint.version(number)
        if _outline(checkpoint.history, number) != _outline(history, number):
            raise CheckpointError(f"{path} holds another version {number}: its history is not that of this network")
        return kept
    files = [entry for entry in Path(path).iterdir() if entry.is_file() and not entry.name.startswith(".")]
    reasons = []
    for file in sorted(files, key=lambda entry: entry.stat().st_mtime_ns, reverse=True):
        try:
            return kept_in(file, history, number)
        except CheckpointError as error:
            reasons.append(str(error))
    said = "\n  ".join(reasons) or "it has no files"
    raise CheckpointError(f"no checkpoint in {path} holds version {number} of this network:\n  {said}")


def _outline(history: History, number: int) -> list[tuple[Any, ...]]:
    """What tells one history from another, without building a graph."""
    return [
        (v.number, v.parent, v.seed, v.params, [(s.operator, s.group, s.born, s.dropped) for s in v.steps])
        for v in history.until(number)
    ]


def _device(map_location: str | torch.device) -> torch.device:
    try:
        return torch.device(map_location)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"map_location is a device such as 'cpu' or 'cuda:0', not {map_location!r}") from error


@contextmanager
def _reported(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{what}: {type(error).__name__}: {error}") from error

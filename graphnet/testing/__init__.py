"""What tests of graphnet and of your own operators share: strategies, laws, oracles, and a machine that uses them.

================================  =====================================================================================
:func:`check_laws`                holds an operator, initialiser, score, state policy or optimizer to the laws
:class:`SurgeryMachine`           a stateful test: training, edits, saves, loads, copies and compiles in random order
``check_...``                     the laws and oracles one by one: each raises ``AssertionError`` with what differs
:func:`graphs`, :func:`edits` ... hypothesis strategies
:data:`COUNTS`                    how many times each law was checked
================================  =====================================================================================

Nothing in the package imports this module; it needs ``hypothesis``.

Examples
--------
>>> import graphnet as gn
>>> from graphnet.testing import check_edit, check_lowering, check_round_trip, random_network
>>> net = random_network(gn.mlp([4, 8, 2], norm="batch"), seed=1)
>>> check_lowering(net)
>>> check_round_trip(net, "fc1", 3)
True
>>> check_edit(net, lambda edit: edit.grow("fc1", 2, preserves="function"))
True
"""

from __future__ import annotations

from graphnet.testing.atomicity import check_atomicity
from graphnet.testing.checking import KINDS, check_laws
from graphnet.testing.compare import TOLERANCES, check_bits, check_close, state_of, tolerance_of, twin_of
from graphnet.testing.counting import COUNTS, Counts
from graphnet.testing.laws import (
    EDIT_LAWS,
    check_edit,
    check_functor,
    check_functors,
    check_incumbents,
    check_lowering,
    check_masked,
    check_next_update,
    check_permutation,
    check_preservation,
    check_preserved,
    check_replay,
    check_round_trip,
    check_score,
    check_unchanged,
    check_valid,
)
from graphnet.testing.machine import SurgeryMachine
from graphnet.testing.neurons import check_neurons, neurons
from graphnet.testing.oracles import check_drop, check_permute, check_rules_twice
from graphnet.testing.programs import check_colours, check_naturality, programs
from graphnet.testing.scripts import LawError
from graphnet.testing.strategies import (
    EDITS,
    EditCall,
    Given,
    OptimizerSpec,
    attach,
    batches,
    concat_nets,
    convnets,
    dags,
    edit_calls,
    edit_strategy,
    edits,
    graphs,
    groups_of,
    layouts,
    mlps,
    multi_nets,
    optimizers,
    probe_batch,
    random_network,
    residual_nets,
    sample,
    shared_nets,
    shuffled_nets,
    train,
    transformers,
    unets,
    wave_loss,
)

__all__ = [
    "COUNTS",
    "EDITS",
    "EDIT_LAWS",
    "KINDS",
    "TOLERANCES",
    "Counts",
    "EditCall",
    "Given",
    "LawError",
    "OptimizerSpec",
    "SurgeryMachine",
    "attach",
    "batches",
    "check_atomicity",
    "check_bits",
    "check_close",
    "check_colours",
    "check_drop",
    "check_edit",
    "check_functor",
    "check_functors",
    "check_incumbents",
    "check_laws",
    "check_lowering",
    "check_masked",
    "check_naturality",
    "check_neurons",
    "check_next_update",
    "check_permutation",
    "check_permute",
    "check_preservation",
    "check_preserved",
    "check_replay",
    "check_round_trip",
    "check_rules_twice",
    "check_score",
    "check_unchanged",
    "check_valid",
    "concat_nets",
    "convnets",
    "dags",
    "edit_calls",
    "edit_strategy",
    "edits",
    "graphs",
    "groups_of",
    "layouts",
    "mlps",
    "multi_nets",
    "neurons",
    "optimizers",
    "probe_batch",
    "programs",
    "random_network",
    "residual_nets",
    "sample",
    "shared_nets",
    "shuffled_nets",
    "state_of",
    "tolerance_of",
    "train",
    "transformers",
    "twin_of",
    "unets",
    "wave_loss",
]

"""What tests of graphnet and of your own operators share: hypothesis strategies, and the laws of edits as functions.

The laws raise :class:`AssertionError` with what differs and by how much. Nothing in the package imports this module;
it needs ``hypothesis``.

Examples
--------
>>> import graphnet as gn
>>> from graphnet.testing import check_lowering, check_round_trip, random_network
>>> net = random_network(gn.mlp([4, 8, 2], norm="batch"), seed=1)
>>> check_lowering(net)
>>> check_round_trip(net, "fc1", 3)
"""

from __future__ import annotations

from graphnet.testing.laws import (
    check_bits,
    check_close,
    check_functor,
    check_laws,
    check_lowering,
    check_permutation,
    check_preserved,
    check_round_trip,
    state_of,
)
from graphnet.testing.strategies import (
    RandomEdit,
    batches,
    concat_nets,
    convnets,
    edits,
    graphs,
    layouts,
    mlps,
    optimizers,
    random_network,
    residual_nets,
    sample,
    train,
    transformers,
    unets,
    wave_loss,
)

__all__ = [
    "RandomEdit",
    "batches",
    "check_bits",
    "check_close",
    "check_functor",
    "check_laws",
    "check_lowering",
    "check_permutation",
    "check_preserved",
    "check_round_trip",
    "concat_nets",
    "convnets",
    "edits",
    "graphs",
    "layouts",
    "mlps",
    "optimizers",
    "random_network",
    "residual_nets",
    "sample",
    "state_of",
    "train",
    "transformers",
    "unets",
    "wave_loss",
]

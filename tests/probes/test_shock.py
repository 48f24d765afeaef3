"""Function shock: zero where the function is preserved, and what scipy says elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax
from scipy.stats import entropy

from graphnet.errors import GraphnetError
from graphnet.ir.builders import convnet, mlp
from graphnet.probes import function_shock, outputs
from graphnet.runtime.network import Network

X = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(9) % 4


def network() -> Network:
    return Network(mlp([6, 8, 4], dropout=0.5), seed=1).double()


def test_outputs_are_those_of_evaluation_mode() -> None:
    net = Network(convnet((2, 4, 4), channels=(3,), hidden=(5,), classes=3, norm="batch", dropout=0.5), seed=1)
    net.get_submodule("norm1").eval()
    x = torch.randn(4, 2, 4, 4)
    state, random = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    found = outputs(net, x)
    assert torch.equal(random, torch.get_rng_state())
    assert [name for name, module in net.named_modules() if not module.training] == ["norm1"]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert not found.requires_grad
    assert torch.equal(found, outputs(net, (x,)))
    assert torch.equal(found, net.eval()(x))


def test_an_edit_that_preserves_the_function_has_no_shock() -> None:
    net = network()
    before = outputs(net, X)
    with net.edit() as edit:
        edit.grow("fc1", 4, init="zero-outgoing", preserves="function")
    shock = function_shock(before, net, X, Y, F.cross_entropy)
    assert shock.kl < 1e-15
    assert abs(shock.delta_loss) < 1e-15
    assert shock.max_relative < 1e-12


def test_a_prune_has_the_shock_that_scipy_gives() -> None:
    net = network()
    before = outputs(net, X)
    with net.edit() as edit:
        edit.prune("fc1", lowest=3)
    after = outputs(net, X)
    shock = function_shock(before, net, X, Y, F.cross_entropy)
    p, q = softmax(before.numpy(), axis=-1), softmax(after.numpy(), axis=-1)
    assert shock.kl == pytest.approx(entropy(p, q, axis=-1).mean(), rel=1e-10)
    assert shock.kl > 1e-4
    assert shock.kl != pytest.approx(entropy(q, p, axis=-1).mean(), rel=1e-6)  # the direction matters
    delta = -np.log(q[range(9), Y]).mean() + np.log(p[range(9), Y]).mean()
    assert shock.delta_loss == pytest.approx(delta, rel=1e-10)
    change = (after - before).abs().max() / before.abs().max()
    assert shock.max_relative == pytest.approx(change.item(), rel=1e-12)
    assert function_shock(before, after) == function_shock(before, net, X)
    assert function_shock(before, after).delta_loss is None


def test_a_sequence_counts_every_position() -> None:
    before, after = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    p, q = softmax(before.numpy(), axis=-1), softmax(after.numpy(), axis=-1)
    assert function_shock(before, after).kl == pytest.approx(entropy(p, q, axis=-1).mean(), rel=1e-12)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(GraphnetError, match="agree"):
        function_shock(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(GraphnetError, match="inputs x"):
        function_shock(torch.zeros(2, 3), network())
    with pytest.raises(GraphnetError, match="list"):
        function_shock([0.0], torch.zeros(1))  # type: ignore[arg-type]

"""What other tools hang on a network stays through edits: hooks, memory formats, accumulation, pickles, modes."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import prune as masks

import graphnet as gn
from graphnet.testing import check_bits, check_lowering, random_network, sample, state_of, train, wave_loss


def small() -> gn.Network:
    return random_network(gn.mlp([4, 6, 5, 3], activation="tanh"), 0)


def adam(net: gn.Network) -> torch.optim.Adam:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    net.attach(optimizer)
    return optimizer


def grow(edit: gn.Edit) -> None:
    edit.grow("fc1", 2)


def prune(edit: gn.Edit) -> None:
    edit.prune("fc1", units=[0])


def deepen(edit: gn.Edit) -> None:
    edit.deepen("act1", form="residual")


def refused(edit: gn.Edit) -> None:
    edit.grow("fc1", 2)
    raise gn.EditError("not this one")


EDITS: dict[str, Callable[[gn.Edit], None]] = {"grow": grow, "prune": prune, "deepen": deepen, "refused": refused}


# -- hooks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("change", EDITS)
def test_every_kind_of_hook_is_called_as_often_and_with_the_new_shapes(change: str, low_memory: bool) -> None:
    net = small()
    seen: list[tuple[str, tuple[int, ...]]] = []

    def note(what: str, at: int = -1) -> Callable[..., None]:
        """Remember the shape of one of the arguments, or of the first tensor in it."""

        def hook(*given: Any) -> None:
            value = given[at][0] if isinstance(given[at], tuple) else given[at]
            seen.append((what, tuple(value.shape)))

        return hook

    net.fc1.register_forward_pre_hook(note("before forward"))
    net.fc1.register_forward_hook(note("forward"))
    net.fc1.register_full_backward_pre_hook(note("before backward"))
    net.fc1.register_full_backward_hook(note("backward"))
    net.fc1.weight.register_hook(note("gradient"))
    net.fc1.weight.register_post_accumulate_grad_hook(note("accumulated"))
    net.register_forward_hook(note("network"))
    net.register_state_dict_post_hook(lambda module, state, prefix, local: seen.append(("state dict", ())))
    x = sample(net.graph)[0].requires_grad_()

    def called() -> list[tuple[str, tuple[int, ...]]]:
        seen.clear()
        wave_loss(net(x)).backward()
        net.state_dict()
        return sorted(seen)

    first = called()
    assert len(first) == 8
    try:
        with net.edit(low_memory=low_memory) as edit:
            EDITS[change](edit)
    except gn.EditError:
        assert change == "refused"
    size = net.graph.groups["fc1"].size
    assert size == {"grow": 8, "prune": 5, "deepen": 6, "refused": 6}[change]
    expected = dict.fromkeys(("forward", "before backward", "backward"), (4, size))
    expected |= dict.fromkeys(("gradient", "accumulated"), (size, 4))
    assert called() == sorted((what, expected.get(what, shape)) for what, shape in first)


# -- gradients in flight ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low_memory", [False, True])
def test_gradients_accumulate_across_an_edit(low_memory: bool) -> None:
    """Bit for bit what the two halves come to: those of before where units stay, zero for newborns, those of after."""
    net = small()
    optimizer = adam(net)
    train(net, optimizer, 2)
    optimizer.zero_grad()
    x = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wave_loss(net(x[:5])).backward()
    before = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    with net.edit(low_memory=low_memory) as edit:
        edit.prune("fc1", units=[1, 4])
        edit.grow("fc1", 1, init="kaiming")
    alone = net.fork()
    wave_loss(alone(x[5:])).backward()
    wave_loss(net(x[5:])).backward()
    kept = [0, 2, 3, 5]
    carried = {
        "fc1.weight": (before["fc1.weight"][kept], 0), "fc1.bias": (before["fc1.bias"][kept], 0),
        "fc2.weight": (before["fc2.weight"][:, kept], 1), "fc2.bias": (before["fc2.bias"], None),
        "head.weight": (before["head.weight"], None), "head.bias": (before["head.bias"], None),
    }  # fmt: skip
    others = dict(alone.named_parameters())
    for name, parameter in net.named_parameters():
        first, dim = carried[name]
        if dim is not None:
            first = torch.cat([first, torch.zeros_like(first.narrow(dim, 0, 1))], dim)
        assert torch.equal(parameter.grad, first + others[name].grad), name  # type: ignore[operator,arg-type]
    optimizer.step()


# -- memory formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low_memory", [False, True])
def test_channels_last_is_kept_with_its_gradients_and_state(low_memory: bool) -> None:
    graph = gn.convnet((3, 8, 8), channels=[4, 6], hidden=[8], classes=3, activation="tanh")
    plain, last = random_network(graph, 0), random_network(graph, 0).to(memory_format=torch.channels_last)
    own, optimizer = adam(plain), adam(last)
    for net, one in ((plain, own), (last, optimizer)):
        train(net, one, 2)
        with net.edit(low_memory=low_memory) as edit:
            edit.prune("conv1", units=[1])
            edit.grow("conv1", 3, init="kaiming")
            edit.grow("conv2", 2, init="copy-std")
        assert net.conv2.weight.shape == (8, 6, 3, 3)
        train(net, one, 2)
    for name in ("conv1.weight", "conv2.weight"):
        weight = last.tensor(name)
        held = [weight, weight.grad, *(optimizer.state[weight][key] for key in ("exp_avg", "exp_avg_sq"))]
        for tensor in held:
            assert isinstance(tensor, Tensor)
            assert tensor.is_contiguous(memory_format=torch.channels_last), name
            assert not tensor.is_contiguous(), name
    for name in graph.tensors:
        torch.testing.assert_close(last.tensor(name), plain.tensor(name), rtol=1e-9, atol=1e-11)


# -- pickles ----------------------------------------------------------------------------------------------------------


def test_torch_save_keeps_the_whole_network() -> None:
    net = small()
    optimizer = adam(net)
    train(net, optimizer, 2)
    with net.edit() as edit:
        edit.grow("fc1", 2, init="kaiming")
        edit.retire("fc2", lowest=1)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert again.attached == ()  # an optimizer is saved by itself; a checkpoint has both
    bare = net.fork()
    bare.zero_grad()
    again.zero_grad()
    check_bits(state_of(bare), state_of(again), "torch.save")
    assert [v.number for v in again.history] == [0, 1]
    own = adam(again)
    with again.edit() as edit:
        edit.recruit("fc2", units=again.graph.groups["fc2"].dormant)
    train(again, own, 1)
    check_lowering(again)


def test_the_state_dict_of_an_optimizer_goes_on_after_an_edit() -> None:
    net = small()
    optimizer = adam(net)
    train(net, optimizer, 2)
    with net.edit() as edit:
        edit.grow("fc1", 2, init="kaiming", state="cold")
    twin = net.fork()
    own = adam(twin)
    own.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share its tensors
    train(net, optimizer, 2)
    train(twin, own, 2)
    check_bits(dict(net.state_dict()), dict(twin.state_dict()), "a loaded optimizer")


# -- modes and what else is refused -----------------------------------------------------------------------------------


def test_an_edit_without_gradients_switches_nothing() -> None:
    net = small()
    net.fc2.weight.requires_grad_(False)
    optimizer = adam(net)
    net.eval()
    with torch.no_grad(), net.edit() as edit:
        edit.grow("fc1", 2)
        edit.deepen("act2", form="residual")
    assert not net.training
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == {"fc2.weight"}
    wave_loss(net(*sample(net.graph))).backward()
    assert net.fc1.weight.grad is not None
    assert net.fc2.weight.grad is None
    optimizer.step()


def test_what_was_built_in_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        net = small()
    before = dict(net.state_dict())
    with pytest.raises(gn.EditError, match="made in inference mode"), net.edit() as edit:
        edit.grow("fc1", 1)
    assert net.version == 0
    check_bits(before, dict(net.state_dict()), "a refused edit")


def test_shared_memory_is_refused_and_a_copy_of_it_is_not() -> None:
    net = small()
    net.share_memory()
    with pytest.raises(gn.EditError, match=r"'fc1\.weight' is in shared memory"), net.edit() as edit:
        edit.grow("fc1", 1)
    assert net.version == 0
    mine = net.fork()
    with mine.edit() as edit:
        edit.grow("fc1", 1)
    assert mine.fc1.weight.shape == (7, 4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_masks_and_weight_norm_of_the_older_kind_are_refused() -> None:
    for change in (
        lambda layer: masks.l1_unstructured(layer, "weight", 2),
        nn.utils.weight_norm,
    ):
        net = small()
        change(net.fc1)
        with pytest.raises(gn.EditError, match="undo that before the edit"), net.edit() as edit:
            edit.grow("fc2", 1)


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("original", [False, True])
def test_flattened_parameters_are_refused(original: bool, tmp_path: Path) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = small()
        wrapped = FullyShardedDataParallel(net, use_orig_params=original, device_id=torch.device("cpu"))
        with pytest.raises(gn.EditError, match=r"FullyShardedDataParallel|no parameter 'fc1"), net.edit() as edit:
            edit.grow("fc1", 1)
        assert wrapped(*sample(net.graph)).shape == (4, 3)
    finally:
        dist.destroy_process_group()

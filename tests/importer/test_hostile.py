"""What an import must not do: change the model, lose a gradient, follow a choice that the data did not make."""

from __future__ import annotations

import copy
import hashlib
import pickle  # noqa: TID251 - the plain module is what users pickle
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils import checkpoint

import graphnet as gn
from graphnet.errors import GraphnetError, ImportModelError

Forward = Callable[..., Any]


def made(forward: Forward, **modules: Any) -> nn.Module:
    """A model of this forward function, with these modules and tensors; by default two linear layers ``a``, ``b``."""
    model = type("Made", (nn.Module,), {"forward": forward})()
    for name, value in (modules or {"a": nn.Linear(8, 12), "b": nn.Linear(12, 3)}).items():
        setattr(model, name, value)
    return model


def row(size: int = 4) -> Tensor:
    return torch.randn(size, 8)


def equal(one: Any, two: Any) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(torch.utils._pytree.tree_leaves(one), torch.utils._pytree.tree_leaves(two), strict=True)
        if isinstance(a, Tensor)
    )


# -- the model is left alone ---------------------------------------------------------------------------------------


def fingerprint(model: nn.Module) -> list[Any]:
    """Everything about a model that an import might disturb, and torch's own state."""
    found: list[Any] = [torch.random.get_rng_state().numpy().tobytes(), torch.is_grad_enabled()]
    found.append((torch.get_default_dtype(), torch.is_autocast_enabled("cpu")))
    for path, module in model.named_modules(remove_duplicate=False):
        own = vars(module)
        plain = {key: value for key, value in own.items() if isinstance(value, int | float | str | bool | tuple)}
        hooks = {key: list(value) for key, value in own.items() if key.endswith("_hooks") and value}
        found.append((path, id(module), type(module), sorted(own), repr(plain), hooks))
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, value in tensors:
        data = hashlib.sha256(value.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        gradient = None if value.grad is None else (id(value.grad), value.grad.tolist())
        found.append(
            (name, id(value), value._version, value.requires_grad, value.data_ptr(), value.stride(), data, gradient)
        )
    return found


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 3))
    model[0].weight.requires_grad_(False)
    model[1].eval()
    model[3].register_forward_hook(lambda module, args, output: output * 2)
    model[3].register_full_backward_hook(lambda module, given, out: None)
    model[3].bias.register_hook(lambda gradient: gradient * 3)
    model(row()).sum().backward()
    return model


def twice(x: nn.Module) -> nn.Module:
    return nn.Sequential(x, nn.ReLU(), x)


UNCHANGED: dict[str, Callable[[], nn.Module]] = {
    "modes, hooks, gradients": hooked,
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 6)), nn.Linear(6, 3)),
    "orthogonal": lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 3)),
    "spectral norm, refused": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 6)), nn.Linear(6, 3)),
    "shared": lambda: twice(nn.Linear(8, 8)),
    "max norm, refused": lambda: nn.Sequential(nn.Flatten(0), Rows(), nn.Linear(6, 3)),
    "counts, refused": lambda: made(counting, a=nn.Linear(8, 3), n=nn.Buffer(torch.zeros(()))),
    "raises, refused": lambda: made(raising, a=nn.Linear(8, 3)),
}


class Rows(nn.Module):
    """An embedding that shortens its own rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6, max_norm=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x.abs().long().clamp(max=8))


def counting(self: Any, x: Tensor) -> Tensor:
    self.n += 1
    return self.a(x) * self.n


def raising(self: Any, x: Tensor) -> Tensor:
    if self.training:
        raise RuntimeError("not for training")
    return self.a(x)


@pytest.mark.parametrize("case", UNCHANGED)
def test_an_import_leaves_the_model_as_it_was(case: str) -> None:
    model, x = UNCHANGED[case](), row()
    before, given = fingerprint(model), x.clone()
    refused = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            gn.from_torch(model, (x,))
        except ImportModelError:
            refused = True
    assert refused == case.endswith("refused")
    assert fingerprint(model) == before
    assert torch.equal(x, given)
    assert x._version == 0


@pytest.mark.parametrize("context", [torch.no_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
def test_an_import_does_not_depend_on_where_it_is_made(context: Callable[[], AbstractContextManager[Any]]) -> None:
    model, x = made(lambda self, x: self.b(self.a(x).relu())), row()
    with context():
        net = gn.from_torch(model, x)
    assert torch.equal(net(x), model(x))
    assert all(parameter.requires_grad for parameter in net.parameters())
    with torch.inference_mode(), pytest.raises(ImportModelError, match="inference_mode"):
        gn.from_torch(model, x)


# -- gradients -----------------------------------------------------------------------------------------------------


class StraightThrough(torch.autograd.Function):
    """The sign, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Frugal(torch.autograd.Function):
    """SiLU that keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = x.sigmoid()
        return gradient * gate * (1 + x * (1 - gate))


def scaled_back(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient * 0.1)
    return self.b(x)


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda self, x: self.b(StraightThrough.apply(self.a(x))), r"functions of its own \(StraightThrough\)"),
        (scaled_back, "a hook"),
    ],
)
def test_a_backward_pass_that_a_trace_would_lose_is_refused(forward: Forward, said: str) -> None:
    with pytest.raises(ImportModelError, match=f"the gradient of 'a.weight' differs.*{said}"):
        gn.from_torch(made(forward), row())


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.b(Frugal.apply(self.a(x))),
        lambda self, x: self.b(checkpoint.checkpoint(self.a, x, use_reentrant=False).relu()),
        lambda self, x: self.b(self.a(x) + (self.a(x).round() - self.a(x)).detach()),
    ],
)
def test_a_backward_pass_that_is_that_of_the_trace_is_kept(forward: Forward) -> None:
    model, x = made(forward), row()
    net = gn.from_torch(model, x)
    for one in (model, net):
        one(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(net.get_parameter(name).grad, parameter.grad, rtol=1e-5), name


# -- choices on sizes ----------------------------------------------------------------------------------------------


def by_parity(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    return self.b(x.relu() if x.shape[0] % 2 == 0 else x.tanh())


def test_a_choice_on_a_size_holds_for_the_sizes_that_make_it() -> None:
    model = made(by_parity)
    net = gn.from_torch(model, row(4))
    assert torch.equal(net(x := row(6)), model(x))
    with pytest.raises(ImportModelError, match=r"traced where .*batch.* == 0 .*something else for batch = 3"):
        net(row(3))
    plain = pickle.loads(pickle.dumps(net.to_torch()))
    assert torch.equal(plain(x), model(x))
    with pytest.raises(AssertionError, match="made for sizes where"):
        plain(row(3))


def test_a_batch_of_one_that_is_squeezed_away_is_refused() -> None:
    model = made(lambda self, x: self.b(self.a(x)).squeeze()).eval()
    net = gn.from_torch(model, row(4))
    assert torch.equal(net(x := row(2)), model(x))
    with pytest.raises(ImportModelError, match="batch != 1"):
        net(row(1))
    kept = gn.from_torch(made(lambda self, x: self.b(self.a(x)).squeeze(-1)), row(4))
    assert kept(row(1)).shape == (1, 3)


def test_an_example_of_one_is_not_taken_for_two() -> None:
    model = made(lambda self, x: self.b(self.a(x).relu() if len(x) > 1 else self.a(x)))
    net = gn.from_torch(model, x := row(1))
    assert torch.equal(net(x), model(x))
    with pytest.raises(ImportModelError, match="shape"):
        net(row(2))


# -- calls ---------------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["one", "two"])


def any_number(self: Any, *xs: Tensor, scale: float = 1.0, **more: Tensor) -> Pair:
    total = sum(self.a(x) for x in (*xs, *more.values())) * scale
    return Pair(self.b(total), total)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [(2, ()), (1, ("p", "q")), (0, ("p",))],
)
def test_any_number_of_inputs(args: int, kwargs: tuple[str, ...]) -> None:
    model = made(any_number)
    net = gn.from_torch(model, tuple(row() for _ in range(args)), {name: row() for name in kwargs})
    xs, more = tuple(row(7) for _ in range(args)), {name: row(7) for name in kwargs}
    plain = net.to_torch()
    for found in (net(*xs, **more), plain(*xs, **more), plain(*xs, scale=1.0, **more)):
        assert isinstance(found, Pair)
        assert equal(found, model(*xs, **more))
    with pytest.raises(ImportModelError, match="other arguments"):
        net(*xs, row(7), **more)
    with pytest.raises(AssertionError, match=r"made for 1\.0"):
        plain(*xs, scale=2.0, **more)


def test_a_plain_module_expects_the_constants_that_it_was_made_for() -> None:
    model = made(lambda self, x, scale, shift=None, *, flip=False: self.b(self.a(x) * scale))
    plain = gn.from_torch(model, (x := row(), 2.0)).to_torch()
    for found in (plain(x, 2.0), plain(x, 2.0, None), plain(x, scale=2.0, flip=False)):
        assert torch.equal(found, model(x, 2.0))
    for call in (lambda: plain(x, 3.0), lambda: plain(x, 2.0, 1.0), lambda: plain(x, 2.0, flip=True)):
        with pytest.raises(AssertionError, match="this module was made for"):
            call()


def test_inputs_whose_batches_nothing_ties_are_one_batch() -> None:
    model = made(lambda self, x, y: self.b(self.a(x) + self.a(y.reshape(x.shape[0], -1, 8)).mean(1, keepdim=True)))
    net = gn.from_torch(model, (torch.randn(2, 5, 8), torch.randn(2, 4, 8)))
    xs = torch.randn(3, 6, 8), torch.randn(3, 4, 8)
    assert torch.equal(net(*xs), model(*xs))


# -- plain modules that are pickled --------------------------------------------------------------------------------


def moded(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    if self.training:
        x = x * torch.bernoulli(torch.full((x.shape[0], 1), 0.5)) + self.c(x)
    return self.b(x * (0.5 if self.training else 1.0) + self.shift.exp() * 2)


def test_a_pickled_module_follows_its_mode_and_its_buffers() -> None:
    parts = {"a": nn.Linear(8, 12), "b": nn.Linear(12, 3), "c": nn.Linear(12, 12), "shift": nn.Buffer(torch.rand(12))}
    model, x = made(moded, **parts), row()
    net = gn.from_torch(model, x)
    plain = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(net.to_torch().eval()))))
    copied = copy.deepcopy(net.to_torch())
    with torch.no_grad():
        for one in (model, plain, copied):
            one.shift.fill_(0.7)
    for training in (False, True):
        found = []
        for one in (model, plain, copied):
            one.train(training)
            torch.manual_seed(0)
            found.append(one(x))
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


# -- rules that were wrong -----------------------------------------------------------------------------------------


def sandwich(between: Callable[[Tensor], Tensor], width: int, **more: nn.Module) -> nn.Module:
    return made(lambda self, x: self.b(between(self.a(x))), a=nn.Linear(8, 12), b=nn.Linear(width, 3), **more)


EXACT: dict[str, Callable[[], nn.Module]] = {
    "one operand twice, einsum": lambda: sandwich(lambda x: torch.einsum("bi,bj->bij", x, x).flatten(1), 144),
    "one operand twice, bmm": lambda: sandwich(lambda x: (x.view(-1, 3, 4) @ x.view(-1, 3, 4).mT).flatten(1), 9),
    "one operand twice, bilinear": lambda: made(
        lambda self, x: self.b(F.bilinear(self.a(x), self.a(x), self.w)), a=nn.Linear(8, 5),
        w=nn.Parameter(torch.randn(4, 5, 5)), b=nn.Linear(4, 3),
    ),
    "in-place powers": lambda: sandwich(lambda x: x.sigmoid().pow_(2).float_power_(0.5).to(x.dtype), 12),
    "channel dropout": lambda: sandwich(lambda x: F.dropout1d(x.view(-1, 12, 1), 0.3, False).flatten(1), 12),
    "larger of two": lambda: sandwich(lambda x: torch.max(x[:, :6], x[:, 6:]), 6),
    "complex": lambda: sandwich(lambda x: torch.complex(x, x.relu()).mul(1 + 2j).abs(), 12),
    "weight norm of the whole": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Linear(8, 12), dim=None), nn.Tanh(), nn.Linear(12, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EXACT)
def test_constructs_that_rules_once_missed(case: str, exercise: Callable[..., Any]) -> None:
    report = exercise(EXACT[case](), (row(),))
    assert len(report.free) > 1
    assert set(report.free) <= {*report.pruned}


def coupled(kind: Callable[[], nn.Module]) -> dict[str, Any]:
    model = made(
        lambda self, x: self.b(self.norm(self.a(x).view(-1, 3, 4)).flatten(1)),
        a=nn.Linear(8, 12), norm=kind(), b=nn.Linear(12, 3),
    )  # fmt: skip
    net = gn.from_torch(model, row())
    return {name: group.coupled for name, group in net.graph.groups.items() if name.startswith("a")}


@pytest.mark.parametrize("kind", [lambda: nn.BatchNorm1d(3), lambda: nn.GroupNorm(3, 3), lambda: nn.InstanceNorm1d(3)])
def test_a_norm_couples_the_positions_that_hold_units(kind: Callable[[], nn.Module]) -> None:
    found = [why for why in coupled(kind).values() if why is not None]
    assert any("along it" in str(why) for why in found), found


def test_a_sum_couples_the_units_that_it_adds_up() -> None:
    net = gn.from_torch(sandwich(lambda x: x.view(-1, 3, 4).cos().sum(1), 4), row())
    found = {group.size: str(group.coupled) for name, group in net.graph.groups.items() if name.startswith("a")}
    assert "it is summed over" in found[3]  # a unit that is zero adds cos(0)
    assert found[4] == "None"


def test_a_layer_under_weight_norm_is_coupled_along_the_length_of_its_weight() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), parametrizations.weight_norm(nn.Linear(6, 3)))
    groups = gn.from_torch(model, row()).graph.groups
    assert "the length of a weight is taken along it" in str(groups["0"].coupled)


def test_a_model_of_fixed_batch_and_free_length() -> None:
    model = made(lambda self, x: self.b(self.a(x).relu()[:4].sum(0) + len(x)))
    net = gn.from_torch(model, torch.randn(5, 2, 8))
    assert net(x := torch.randn(5, 7, 8)).shape == model(x).shape


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["graph", "history", "version", "edit", "tensor", "attach", "calling", "_current"])
def test_a_name_that_a_network_keeps_is_refused(name: str) -> None:
    model = made(lambda self, x: self.b(self._modules[name](x)), b=nn.Linear(12, 3))
    model._modules[name] = nn.Linear(8, 12)
    with pytest.raises(ImportModelError, match=f"{name!r} among its modules or tensors.*rename it"):
        gn.from_torch(model, row())


class KeyCache:
    """What a decoder that generates would return, in a class that is no pytree."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: made(lambda self, x: self.a(x), a=torch.jit.script(nn.Linear(8, 3))), "the TorchScript module 'a'"),
        (lambda: made(lambda self, x: self.a(x), a=nn.Linear(8, 3, device="meta")), "does not run on the example"),
        (lambda: made(lambda self, x: {self.a(x)}, a=nn.Linear(8, 3)), "returns a set, .* return tensors, tuples"),
        (lambda: made(lambda self, x: KeyCache(self.a(x)), a=nn.Linear(8, 3)), "returns a KeyCache, .*use_cache"),
        (lambda: made(lambda self, x: None, a=nn.Linear(8, 3)), "does not use its input"),
        (lambda: made(lambda self, x: self.a(x) * x.sum().item(), a=nn.Linear(8, 3)), "depends on the data"),
    ],
)
def test_further_refusals(make: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(ImportModelError, match=said):
        gn.from_torch(make(), row())


# -- edits with wrong arguments ------------------------------------------------------------------------------------


def wrong_edits() -> Iterator[tuple[str, Callable[[Any], Any]]]:
    nan = float("nan")
    for name in ("a", "norm", "nothing", "", "input", "x", "a.weight", "head", None, 3, ["a"], object()):
        for count in (0, -1, 2.5, nan, "3", None, 10**9, True):
            yield f"grow {name!r} {count!r}", lambda edit, name=name, count=count: edit.grow(name, count)
        for given in (
            {"units": [99]}, {"units": [0, 0]}, {"units": "ab"}, {"units": []}, {"units": [1.5]}, {"units": [None]},
            {"keep": 0}, {"keep": -1}, {"keep": 1.5}, {"keep": nan}, {"keep": "half"}, {"lowest": 0}, {"lowest": 99},
            {"lowest": -2}, {"lowest": nan}, {"lowest": 1, "keep": 1}, {}, {"lowest": 1, "score": "no such"},
        ):  # fmt: skip
            yield f"prune {name!r} {given!r}", lambda edit, name=name, given=given: edit.prune(name, **given)
    for options in (
        {"init": "no such"}, {"init": 3}, {"state": "no such"}, {"preserves": "everything"}, {"init": "gradmax"},
        {"batch": 3}, {"init": "gradmax", "batch": (torch.randn(2, 5),), "loss": lambda *_: None}, {"seed": "x"},
        {"noise": 1},
    ):  # fmt: skip
        yield f"grow a {options!r}"[:60], lambda edit, options=options: edit.grow("a", 1, **options)


def test_edits_with_wrong_arguments_are_refused_and_change_nothing() -> None:
    model = nn.Sequential()
    for name, layer in {"a": nn.Linear(8, 6), "norm": nn.BatchNorm1d(6), "head": nn.Linear(6, 3)}.items():
        model.add_module(name, layer)
    net = gn.from_torch(model, x := row())
    net.eval()
    before, output = {name: value.clone() for name, value in net.state_dict().items()}, net(x)
    stray = []
    for what, act in wrong_edits():
        twin = copy.deepcopy(net)
        try:
            with twin.edit() as edit:
                act(edit)
        except GraphnetError:
            if twin.version != 0 or not torch.equal(twin(x), output):
                stray.append(f"{what}: refused, but something changed")
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                stray.append(f"{what}: {type(error).__name__}: {error}")
        except Exception as error:
            stray.append(f"{what}: {type(error).__name__}: {error}")
        else:
            for name, value in twin.named_parameters():  # what is taken must be whole
                assert torch.isfinite(value).all(), (what, name)
            twin(x)
    assert not stray, "\n".join(stray)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())

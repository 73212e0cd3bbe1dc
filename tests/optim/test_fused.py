"""The fused step against the unfused one, and everything that must survive switching it on and off."""

from __future__ import annotations

import copy
import doctest
import importlib
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from lightning_perf.optim import fusable, fused
from lightning_perf.optim.fused import make_fused, sparse_gradient_parameters, why_not_fused

Make = Callable[[list[nn.Parameter]], Optimizer]

CASES: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "adam": (Adam, {"lr": 1e-2}),
    "adam-decay": (Adam, {"lr": 1e-2, "weight_decay": 0.1}),
    "adam-amsgrad": (Adam, {"lr": 1e-2, "amsgrad": True}),
    "adam-decoupled": (Adam, {"lr": 1e-2, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "adam-tensor-lr": (Adam, {"lr": torch.tensor(1e-2)}),
    "adamw": (AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "adamw-amsgrad-maximize": (AdamW, {"lr": 1e-2, "amsgrad": True, "maximize": True}),
    "adamw-foreach": (AdamW, {"lr": 1e-2, "foreach": True}),
    "sgd": (SGD, {"lr": 1e-2}),
    "sgd-decay-maximize": (SGD, {"lr": 1e-3, "weight_decay": 0.1, "maximize": True}),
    "sgd-momentum": (SGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}),
    "sgd-nesterov": (SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    "sgd-dampening-alone": (SGD, {"lr": 1e-2, "dampening": 0.1}),
    "adagrad": (Adagrad, {"lr": 1e-1}),
    "adagrad-decay": (Adagrad, {"lr": 1e-1, "weight_decay": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    "adagrad-maximize": (Adagrad, {"lr": 1e-2, "maximize": True}),
}


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((5, 7), (5,), (3, 2, 2, 2), (1, 1), (0, 3))
    drawn = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    drawn[2] = drawn[2].to(memory_format=torch.channels_last)
    return [nn.Parameter(tensor) for tensor in drawn]


def gradients(step: int) -> list[Tensor]:
    """One gradient per parameter, laid out as backward would."""
    generator = torch.Generator().manual_seed(1000 + step)
    return [torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator)) for p in parameters()]


def train(optimizer: Optimizer, steps: range, *, without: Callable[[int, int], bool] = lambda i, step: False) -> None:
    held = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        for index, (parameter, gradient) in enumerate(zip(held, gradients(step), strict=True)):
            parameter.grad = None if without(index, step) else gradient
        optimizer.step()


def assert_close(left: list[nn.Parameter], right: list[nn.Parameter]) -> None:
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def took_fused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of torch's kernels that ran from now on."""
    ran: list[str] = []
    for name in ("_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_"):
        kernel = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, _n=name, _k=kernel, **k: (ran.append(_n), _k(*a, **k))[1])
    return ran


def test_examples() -> None:
    assert doctest.testmod(fused).failed == 0


@pytest.mark.parametrize("case", CASES)
def test_same_trajectory(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, kwargs = CASES[case]
    plain, ours = parameters(), parameters()
    train(cls(plain, **kwargs), range(50))
    ran = took_fused(monkeypatch)
    optimizer = cls(ours, **kwargs)
    handle = make_fused(optimizer)
    assert (handle.changed, handle.reason) == (True, None)
    train(optimizer, range(50))
    assert len(ran) == 50
    assert_close(ours, plain)
    assert not torch.equal(ours[0], parameters()[0])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.bfloat16, 0.06), (torch.float16, 0.01)], ids=str
)
def test_other_dtypes(case: str, dtype: torch.dtype, tolerance: float) -> None:
    """Against float64, on more numbers than fit a vector register; torch 2.13's own fused SGD fails this in halves."""
    cls, kwargs = CASES[case]
    generator = torch.Generator().manual_seed(0)
    start, *steps = (torch.randn(1003, generator=generator).to(dtype) for _ in range(6))
    exact, ours = nn.Parameter(start.double()), nn.Parameter(start.clone())
    optimizers = (cls([exact], **kwargs), cls([ours], **kwargs))
    assert make_fused(optimizers[1]).changed == (cls is not SGD or dtype is torch.float64)
    for gradient in steps:
        for parameter, optimizer in zip((exact, ours), optimizers, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
            optimizer.step()
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", ["adamw", "adam-amsgrad", "sgd-nesterov", "sgd-momentum", "adagrad-decay"])
def test_switched_on_and_off_in_the_middle(case: str) -> None:
    cls, kwargs = CASES[case]
    plain, ours = parameters(), parameters()
    train(cls(plain, **kwargs), range(30))
    optimizer = cls(ours, **kwargs)
    train(optimizer, range(10))
    handle = make_fused(optimizer)
    train(optimizer, range(10, 20))
    handle.undo()
    train(optimizer, range(20, 30))
    assert_close(ours, plain)


@pytest.mark.parametrize("case", CASES)
def test_gradients_that_are_none(case: str) -> None:
    """Some come late, some never, some pause; a bare fused SGD with momentum dies here."""
    cls, kwargs = CASES[case]

    def without(index: int, step: int) -> bool:
        return index == 3 or (index == 1 and step < 5) or (index == 0 and step in (7, 8))

    plain, ours = parameters(), parameters()
    before, after = cls(plain, **kwargs), cls(ours, **kwargs)
    make_fused(after)
    train(before, range(20), without=without)
    train(after, range(20), without=without)
    assert_close(ours, plain)
    assert {len(state) for state in before.state.values()} == {len(state) for state in after.state.values()}
    assert before.state_dict()["state"].keys() == after.state_dict()["state"].keys()


@pytest.mark.parametrize("case", ["adamw", "sgd-momentum", "sgd", "adagrad"])
def test_gradients_in_another_memory_order(case: str) -> None:
    """What torch.autograd.grad returns may be transposed or expanded; a bare fused step computes nonsense from it."""
    cls, kwargs = CASES[case]
    plain, ours = parameters()[:3], parameters()[:3]
    optimizers = cls(plain, **kwargs), cls(ours, **kwargs)
    make_fused(optimizers[1])
    for step in range(10):
        for held, optimizer in zip((plain, ours), optimizers, strict=True):
            given = gradients(step)[:3]
            held[0].grad = given[0].t().contiguous().t()
            held[1].grad = given[1][:1].expand(5)
            held[2].grad = given[2].contiguous()
            seen = [p.grad for p in held]
            optimizer.step()
            assert all(p.grad is gradient for p, gradient in zip(held, seen, strict=True))
    assert_close(ours, plain)


@pytest.mark.parametrize("case", ["adamw", "sgd-momentum", "adagrad"])
def test_state_in_another_memory_order(case: str) -> None:
    """A checkpoint of contiguous weights goes on with channels-last ones, and a change of layout goes unharmed."""
    cls, kwargs = CASES[case]
    source = [nn.Parameter(p.detach().contiguous()) for p in parameters()]
    optimizer = cls(source, **kwargs)
    train(optimizer, range(5))
    saved = copy.deepcopy(optimizer.state_dict())
    plain, ours = parameters(), parameters()
    optimizers = cls(plain, **kwargs), cls(ours, **kwargs)
    make_fused(optimizers[1])
    for held, optimizer in zip((plain, ours), optimizers, strict=True):
        train(optimizer, range(1))
        with torch.no_grad():
            for parameter, value in zip(held, source, strict=True):
                parameter.copy_(value)
        optimizer.load_state_dict(copy.deepcopy(saved))
        train(optimizer, range(5, 10))
        held[2].data = held[2].data.contiguous()
        train(optimizer, range(10, 15))
    assert_close(ours, plain)


def test_sizes_of_one_need_no_copy() -> None:
    """A depthwise kernel may be contiguous and channels-last at once, with strides that differ in words only."""
    parameter = nn.Parameter(torch.randn(4, 1, 3, 3).to(memory_format=torch.channels_last))
    gradient = torch.randn(4, 1, 3, 3)
    assert gradient.stride() != parameter.stride()
    laid_out = fused._laid_out_like(gradient, parameter)
    assert laid_out.stride() == parameter.stride()
    assert laid_out.data_ptr() == gradient.data_ptr()
    assert torch.equal(laid_out, gradient)


@pytest.mark.parametrize("keyword", [True, False])
@pytest.mark.parametrize("case", ["adamw", "sgd-nesterov", "adagrad"])
def test_closure(case: str, keyword: bool) -> None:
    """The gradients appear inside the step, in a layout that has to be looked after."""
    cls, kwargs = CASES[case]
    weights = []
    for switched in (False, True):
        weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        optimizer = cls([weight], **kwargs)
        if switched:
            make_fused(optimizer)

        def closure(weight: nn.Parameter = weight) -> Tensor:
            assert torch.is_grad_enabled()
            loss = (weight - 2).pow(2).sum()
            weight.grad = torch.autograd.grad(loss, weight)[0].t().contiguous().t()
            return loss

        losses = []
        for _ in range(5):
            loss: Any = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
            losses.append(loss.item())
        weights.append((losses, weight.detach()))
    assert weights[0][0] == pytest.approx(weights[1][0], rel=1e-5)
    torch.testing.assert_close(weights[0][1], weights[1][1])


def test_a_closure_that_raises_leaves_no_old_gradient_behind() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    optimizer = AdamW([weight])
    handle = make_fused(optimizer)
    weight.grad = torch.ones(3, 2).t()
    handle._prepare()  # as far as a step gets that dies in the kernel
    fresh = torch.full((2, 3), 2.0)
    weight.grad = fresh
    optimizer.step()
    assert weight.grad is fresh
    with pytest.raises(RuntimeError, match="from the closure"):
        optimizer.step(lambda: (_ for _ in ()).throw(RuntimeError("from the closure")))
    optimizer.step()
    assert optimizer.state[weight]["step"] == 2


@pytest.mark.parametrize("own", [{}, {"foreach": True}, {"fused": None, "foreach": False}])
def test_flags_are_the_users_in_checkpoints_and_after_undo(own: dict[str, bool | None]) -> None:
    optimizer, never = AdamW(parameters(), **own), AdamW(parameters(), **own)
    handle = make_fused(optimizer)
    train(optimizer, range(3))
    train(never, range(3))
    assert optimizer.param_groups[0]["fused"] is True
    assert optimizer.param_groups[0]["foreach"] is False
    assert optimizer.state_dict()["param_groups"] == never.state_dict()["param_groups"]
    handle.undo()
    handle.undo()
    assert optimizer.defaults == never.defaults
    assert optimizer.state_dict()["param_groups"] == never.state_dict()["param_groups"]
    hooks = [value for name, value in vars(optimizer).items() if name.endswith("_hooks")]
    assert len(hooks) == 6
    assert not any(hooks)


@pytest.mark.parametrize("case", ["adamw", "sgd-momentum", "adagrad"])
def test_resume_equals_the_uninterrupted_run(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, kwargs = CASES[case]
    through, first, second = parameters(), parameters(), parameters()
    whole = cls(through, **kwargs)
    make_fused(whole)
    train(whole, range(20))

    half = cls(first, **kwargs)
    make_fused(half)
    train(half, range(10))
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    with torch.no_grad():
        for parameter, value in zip(second, first, strict=True):
            parameter.copy_(value)
    resumed = cls(second, **kwargs)
    make_fused(resumed)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.param_groups[0]["fused"] is True
    ran = took_fused(monkeypatch)
    train(resumed, range(10, 20))
    assert len(ran) == 10
    assert all(torch.equal(one, other) for one, other in zip(second, through, strict=True))
    assert resumed.state_dict()["param_groups"] == cls(parameters(), **kwargs).state_dict()["param_groups"]


@pytest.mark.parametrize("cls", [Adam, AdamW, SGD, Adagrad])
def test_a_checkpoint_never_marks_the_optimizer_as_unscaling(cls: type[Optimizer]) -> None:
    """The mark makes gradient clipping under bf16-mixed raise."""
    optimizer = cls(parameters())
    make_fused(optimizer)
    train(optimizer, range(2))
    plain = cls(parameters())
    plain.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one in (optimizer, plain, copy.deepcopy(optimizer)):
        assert not getattr(one, "_step_supports_amp_scaling", False)
    assert plain.param_groups[0]["fused"] is None


def test_a_checkpoint_of_a_constructed_fused_optimizer_keeps_its_flag() -> None:
    native = AdamW(parameters(), fused=True)
    train(native, range(2))
    optimizer = AdamW(parameters())
    handle = make_fused(optimizer)
    optimizer.load_state_dict(native.state_dict())
    train(optimizer, range(2, 4))
    handle.undo()
    assert optimizer.param_groups[0]["fused"] is True


class KeepsEverything(AdamW):
    """An optimizer that pickles its hooks, which torch's do not."""

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))


@pytest.mark.parametrize("cls", [AdamW, SGD, Adagrad, KeepsEverything])
@pytest.mark.parametrize("way", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_work(cls: type[Optimizer], way: Callable[[Optimizer], Optimizer]) -> None:
    optimizer = cls(parameters())
    handle = make_fused(optimizer)
    train(optimizer, range(3))
    twin = way(optimizer)
    train(twin, range(3, 6))
    train(optimizer, range(3, 6))
    assert_close(twin.param_groups[0]["params"], optimizer.param_groups[0]["params"])
    handle.undo()
    train(twin, range(6, 7))
    assert optimizer.param_groups[0]["fused"] is None


def test_groups_added_later(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.float32,) * 3 + (torch.complex64,)]
    optimizer = SGD(weights[:1], lr=0.5)
    handle = make_fused(optimizer)
    optimizer.add_param_group({"params": weights[1:2]})
    optimizer.add_param_group({"params": weights[2:3], "fused": False})
    optimizer.add_param_group({"params": weights[3:]})
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    ran = took_fused(monkeypatch)
    optimizer.step()
    assert len(ran) == 2
    assert [group["fused"] for group in optimizer.param_groups] == [True, True, False, None]
    assert all(torch.equal(weight.detach(), torch.full_like(weight, 0.5)) for weight in weights)
    assert handle.reason is not None
    assert "fused=False was asked for" in handle.reason
    assert "complex64" in handle.reason
    assert [group["fused"] for group in optimizer.state_dict()["param_groups"]] == [None, None, False, None]
    optimizer.load_state_dict(optimizer.state_dict())
    assert [group["fused"] for group in optimizer.param_groups] == [True, True, False, None]
    handle.undo()
    assert [group["fused"] for group in optimizer.param_groups] == [None, None, False, None]


def test_groups_added_just_before_a_save_or_a_load() -> None:
    one, other, third = parameters()[:3]
    optimizer = AdamW([one])
    handle = make_fused(optimizer)
    optimizer.add_param_group({"params": [other]})
    assert optimizer.param_groups[1]["fused"] is True
    assert [group["fused"] for group in optimizer.state_dict()["param_groups"]] == [None, None]
    optimizer.add_param_group({"params": [third]})
    optimizer.load_state_dict(AdamW([{"params": [p]} for p in (one, other, third)]).state_dict())
    assert [group["fused"] for group in optimizer.param_groups] == [True, True, True]
    handle.undo()
    assert [group["fused"] for group in optimizer.param_groups] == [None, None, None]


def test_rebuilt_groups() -> None:
    """Finetuning callbacks replace the list of groups by copies."""
    optimizer = AdamW(parameters())
    handle = make_fused(optimizer)
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
    train(optimizer, range(2))
    assert optimizer.state_dict()["param_groups"][0]["fused"] is None
    handle.undo()
    assert optimizer.param_groups[0]["fused"] is None


def test_a_group_that_says_no_is_left_alone() -> None:
    one, other = parameters()[:2]
    optimizer = AdamW([{"params": [one], "fused": False}, {"params": [other]}])
    handle = make_fused(optimizer)
    assert handle.changed
    assert handle.reason == "AdamW: fused=False was asked for"
    assert [group["fused"] for group in optimizer.param_groups] == [False, True]
    refused = make_fused(AdamW([nn.Parameter(torch.zeros(1))], fused=False))
    assert (refused.changed, refused.reason) == (False, "AdamW: fused=False was asked for")


def test_already_fused() -> None:
    native = AdamW(parameters(), fused=True)
    handle = make_fused(native)
    assert (handle.changed, handle.reason) == (False, "already fused")
    handle.undo()
    assert native.param_groups[0]["fused"] is True
    optimizer = AdamW(parameters())
    make_fused(optimizer)
    assert make_fused(optimizer).reason == "already fused"


class OwnStep(AdamW):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class OwnState(Adam):
    def _init_group(self, *args: Any) -> Any:
        return super()._init_group(*args)  # type: ignore[misc]


class OnlyDefaults(Adam):
    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.5)


class Manifold(nn.Parameter):
    pass


def vector(**kwargs: Any) -> nn.Parameter:
    return nn.Parameter(torch.ones(4, **kwargs))


def with_gradients_of_another_dtype() -> nn.Parameter:
    parameter = vector(dtype=torch.bfloat16)
    parameter.grad_dtype = torch.float32
    return parameter


def twice() -> Optimizer:
    parameter = vector()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SGD([parameter, parameter], lr=0.1)


REFUSALS: dict[str, tuple[Callable[[], Optimizer], str]] = {
    "another class": (lambda: torch.optim.NAdam([vector()]), "NAdam: torch has a fused step for Adam, AdamW, SGD and"),
    "own step": (lambda: OwnStep([vector()]), "OwnStep overrides step of Adam"),
    "own state": (lambda: OwnState([vector()]), "OwnState overrides _init_group of Adam"),
    "differentiable": (lambda: Adam([vector()], differentiable=True), "differentiable=True"),
    "capturable": (lambda: Adam([vector()], capturable=True), "capturable=True"),
    "dampening": (lambda: SGD([vector()], momentum=0.9, dampening=0.1), "dampening=0.1"),
    "tensor setting": (lambda: SGD([vector()], weight_decay=torch.tensor(0.1)), "weight_decay is a tensor"),
    "tensor betas": (lambda: Adam([vector()], betas=(torch.tensor(0.9), torch.tensor(0.99))), "betas is a tensor"),
    "complex": (lambda: Adam([vector(dtype=torch.complex64)]), r"of shape \(4,\) has dtype torch.complex64"),
    "half on a CPU": (
        lambda: SGD([vector(dtype=torch.float16)], lr=1),
        r"fused SGD is wrong on CPUs \(pytorch#191763\)",
    ),
    "float8": (lambda: Adam([nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn))]), "has dtype torch.float8_e4m3fn"),
    "gradient dtype": (lambda: Adam([with_gradients_of_another_dtype()]), "gradients of another"),
    "device": (lambda: Adam([vector(device="meta")]), "is on device meta"),
    "layout": (lambda: SGD([nn.Parameter(torch.eye(2).to_sparse())]), "has layout torch.sparse_coo"),
    "gaps": (lambda: Adam([torch.ones(4, 6)[:, ::2].requires_grad_()]), r"without gaps \(strides \(6, 2\)\)"),
    "subclass": (lambda: Adam([Manifold(torch.ones(2))]), "is a Manifold"),
    "lazy": (lambda: SGD([nn.LazyLinear(2).weight]), "of shape unknown is a UninitializedParameter"),
    "twice": (twice, "a parameter is in its group twice"),
    "named": (lambda: Adam([("w", vector(dtype=torch.complex64))]), "parameter 'w' has dtype"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals(refusal: str) -> None:
    make, words = REFUSALS[refusal]
    optimizer = make()
    before = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    handle = make_fused(optimizer)
    assert not handle.changed
    assert handle.reason is not None
    assert handle.reason == why_not_fused(optimizer)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(handle.reason)
    handle.undo()
    assert [
        {key: group[key] for key in old} for group, old in zip(optimizer.param_groups, before, strict=True)
    ] == before
    assert not optimizer._optimizer_step_pre_hooks


def test_a_subclass_with_torchs_step_is_taken() -> None:
    assert why_not_fused(OnlyDefaults([vector()])) is None


def test_no_kernel_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: "adagrad" not in name)
    assert why_not_fused(Adam([vector()])) is None
    assert "is on device cpu, for which torch has no fused_adagrad" in str(why_not_fused(Adagrad([vector()])))
    monkeypatch.delattr(fusable._foreach_utils, "_get_fused_kernels_supported_devices")
    assert why_not_fused(Adagrad([vector()])) is None
    assert "is on device meta" in str(why_not_fused(Adam([vector(device="meta")])))


def test_sparse_gradients_are_known_beforehand() -> None:
    module = nn.ModuleDict(
        {
            "a": nn.Embedding(4, 2, sparse=True),
            "b": nn.EmbeddingBag(4, 2, sparse=True, mode="sum"),
            "c": nn.Embedding(4, 2),
            "d": nn.Linear(2, 2),
        }
    )
    module["e"] = nn.Embedding(4, 2, sparse=True)
    module["e"].weight = module["a"].weight
    sparse = sparse_gradient_parameters(module)
    assert [id(parameter) for parameter in sparse] == [id(module["a"].weight), id(module["b"].weight)]
    together = SGD(module.parameters(), lr=0.1)
    assert make_fused(together, sparse=sparse).reason == "SGD: a parameter of shape (4, 2) gets sparse gradients"
    apart = SGD([{"params": sparse}, {"params": module["d"].parameters()}], lr=0.1)
    handle = make_fused(apart, sparse=sparse)
    assert handle.changed
    assert [group["fused"] for group in apart.param_groups] == [None, True]


@pytest.mark.parametrize("cls", [SGD, Adagrad])
def test_sparse_gradients_that_nobody_announced(cls: type[Optimizer]) -> None:
    """Training goes on as it would have without us, and the reason is told."""
    weights = []
    for switched in (False, True):
        torch.manual_seed(0)
        module = nn.Embedding(4, 2, sparse=True)
        optimizer = cls(module.parameters(), lr=0.1)
        handle = make_fused(optimizer) if switched else None
        for step in range(3):
            optimizer.zero_grad()
            module(torch.tensor([step, 1])).sum().backward()
            if switched and step == 0:
                with pytest.warns(UserWarning, match=f"switched off .*: {cls.__name__}: a gradient is sparse"):
                    optimizer.step()
            else:
                optimizer.step()
        weights.append(module.weight.detach())
        if handle is not None:
            assert handle.reason == f"{cls.__name__}: a gradient is sparse"
            assert optimizer.param_groups[0]["fused"] is None
    assert torch.equal(*weights)


def test_a_parameter_that_becomes_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.ones(4, 6))
    optimizer = AdamW([weight])
    make_fused(optimizer)
    weight.grad = torch.ones(4, 6)
    optimizer.step()
    weight.data = torch.ones(6, 8).t()[::2, :]
    weight.grad = torch.ones(4, 6)
    ran = took_fused(monkeypatch)
    with pytest.warns(UserWarning, match="without gaps"):
        optimizer.step()
    assert not ran
    assert torch.allclose(weight.detach(), weight.detach()[0, 0].expand(4, 6))


def test_steps_move_to_the_parameters_device_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernel of a GPU wants the counter there; checkpoints and the unfused step want it on the CPU."""
    moved: list[torch.device] = []
    as_tensor = torch.as_tensor

    def watched(value: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        moved.append(device)
        return as_tensor(value, dtype=dtype, device=device)

    optimizer = AdamW(parameters())
    train(optimizer, range(2))
    for state in optimizer.state.values():
        state["step"] = state["step"].double()
    make_fused(optimizer)
    monkeypatch.setattr(torch, "as_tensor", watched)
    train(optimizer, range(2, 4))
    assert moved == [torch.device("cpu")] * 5
    assert {(state["step"].item(), state["step"].dtype) for state in optimizer.state.values()} == {(4.0, torch.float32)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_on_cuda(case: str) -> None:
    cls, kwargs = CASES[case]
    plain, ours = ([nn.Parameter(p.detach().cuda()) for p in parameters()] for _ in range(2))
    optimizers = cls(plain, **kwargs), cls(ours, **kwargs)
    make_fused(optimizers[1])
    for held, optimizer in zip((plain, ours), optimizers, strict=True):
        for step in range(20):
            for parameter, gradient in zip(held, gradients(step), strict=True):
                parameter.grad = gradient.cuda()
            optimizer.step()
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for state in optimizers[1].state_dict()["state"].values():
        assert "step" not in state or state["step"].is_cpu


def test_dynamo_lays_wrappers_over_the_classes() -> None:
    """After a first ``torch.compile``, every optimizer class has an ``_init_group`` of Dynamo's: still torch's own."""
    torch.compile(torch.nn.Linear(1, 1), backend="eager")(torch.zeros(1, 1))
    importlib.import_module("torch._dynamo.eval_frame").TorchPatcher.patch()
    assert make_fused(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])).changed

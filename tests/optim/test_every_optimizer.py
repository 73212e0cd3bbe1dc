"""What every row of the registry promises, torch's and ours alike; a new row is tested the moment it exists."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_perf.optim.registry import build, list_optimizers
from lightning_perf.optim.rows import OptimizerRow

ROWS = list_optimizers()
OURS = [row for row in ROWS if row.path.startswith("lightning_perf.")]
DENSE = [row for row in ROWS if row.name != "sparse_adam"]

# Learning rates for a bowl that is crossed in 400 steps; a row that is not here does it with 0.05.
BOWL = {"adadelta": 20.0, "adagrad": 0.5, "asgd": 0.5, "muon": 0.2, "prodigy": 1.0}

rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
dense = pytest.mark.parametrize("row", DENSE, ids=lambda row: row.name)
ours = pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)


class Net(nn.Module):
    """An embedding, matrices, a filter, norms: every kind of parameter."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 6, sparse=sparse)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)

    def loss(self, step: int) -> Tensor:
        if self.embed.sparse:
            return (self.embed(torch.arange(step % 3, 7)) - 1).square().mean()
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(7, (4, 8), generator=generator)
        x = self.norm(self.conv(self.embed(tokens).mT)).mT
        return nn.functional.cross_entropy(self.head(torch.tanh(self.hidden(x))).mean(1), tokens[:, 0] % 5)


def trained(row: OptimizerRow) -> tuple[Net, Optimizer]:
    sparse = row.name == "sparse_adam"
    module = Net(sparse)
    return module, build(row.name, module.embed.parameters() if sparse else module.parameters())


def train(module: Net, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        module.loss(step).backward()
        optimizer.step()


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def minimum_of(optimizer: Optimizer, parameters: list[nn.Parameter]) -> list[Tensor]:
    if hasattr(optimizer, "evaluation_weights"):
        return [x for _, x in optimizer.evaluation_weights()]  # type: ignore[attr-defined]
    return [parameter.detach() for parameter in parameters]


@dense
def test_reaches_a_known_minimum(row: OptimizerRow) -> None:
    """The bottom of a bowl of unequal curvatures, from far away, with lr falling to zero."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((8, 8), (6,), (4, 3, 3))]
    targets = [torch.empty(p.shape).uniform_(0.5, 1.5) for p in parameters]
    curvatures = [torch.empty(p.shape).uniform_(0.5, 2.0) for p in parameters]
    decay = None if row.name in ("rprop",) else 0.0
    optimizer = build(row.name, parameters, lr=BOWL.get(row.name, 0.05), weight_decay=decay)
    scheduler = LambdaLR(optimizer, lambda step: min(1.0, 2 - 2 * step / 400))
    for _ in range(400):
        optimizer.zero_grad()
        gaps = [c * (p - t).square() for p, t, c in zip(parameters, targets, curvatures, strict=True)]
        sum(gap.sum() for gap in gaps).backward()  # type: ignore[union-attr]
        optimizer.step()
        scheduler.step()
    for found, target in zip(minimum_of(optimizer, parameters), targets, strict=True):
        assert (found - target).abs().max() < 0.05


@rows
def test_continues_bit_exactly_after_a_restore(row: OptimizerRow) -> None:
    """State goes through a file that ``weights_only`` can read, and the rest of the run is bit for bit the same."""
    module, optimizer = trained(row)
    train(module, optimizer, range(12))
    file = io.BytesIO()
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(module, optimizer, range(12, 24))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, resumed = trained(row)
    again.load_state_dict(saved["module"])
    resumed.load_state_dict(saved["optimizer"])
    train(again, resumed, range(12, 24))
    assert_same(weights(again), weights(module))


@rows
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_copies_and_pickles(row: OptimizerRow, copied: Any) -> None:
    module, optimizer = trained(row)
    train(module, optimizer, range(3))
    again, other = copied((module, optimizer))
    train(module, optimizer, range(3, 6))
    train(again, other, range(3, 6))
    assert_same(weights(again), weights(module))


@rows
def test_schedulers_move_every_learning_rate_after_a_restore(row: OptimizerRow) -> None:
    def made() -> tuple[Net, Optimizer, LambdaLR]:
        module = Net(sparse=row.name == "sparse_adam")
        parameters = [module.embed.weight] if row.name == "sparse_adam" else list(module.parameters())
        groups = [{"params": [parameter], "lr": 0.1 * (index + 1)} for index, parameter in enumerate(parameters)]
        optimizer = build(row.name, groups)
        return module, optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step))

    module, optimizer, scheduler = made()
    train(module, optimizer, range(1))
    scheduler.step()
    again, resumed, other = made()
    again.load_state_dict(module.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(scheduler.state_dict())
    for each in (scheduler, other):
        each.step()
    rates = [group["lr"] for group in resumed.param_groups]
    assert rates == [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.1 * (index + 1) / 3 for index in range(len(rates))])
    before = weights(again)
    train(again, resumed, range(1, 2))
    train(module, optimizer, range(1, 2))
    assert_same(weights(again), weights(module))
    for group in resumed.param_groups:
        group["lr"] = 0.0
        group["weight_decay"] = 0.0
    still = {name: value.clone() for name, value in again.named_parameters()}
    train(again, resumed, range(2, 3))
    # An average moves on at lr = 0, Rprop's lr is only its first step size, and ASGD uses the lr of the step before.
    if not row.name.startswith("schedule_free") and row.name not in ("rprop", "asgd"):
        for name, value in again.named_parameters():
            torch.testing.assert_close(value.detach(), still[name].detach(), rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(before[name], value) for name, value in weights(again).items())


@dense
def test_frozen_and_late_parameters(row: OptimizerRow) -> None:
    """Without a gradient a parameter stays and has no state; with a late first one it starts as if it had just begun."""
    module = Net()
    module.hidden.requires_grad_(False)
    optimizer = build(row.name, module.parameters(), weight_decay=None if row.name == "rprop" else 0.1)
    before = weights(module.hidden)
    train(module, optimizer, range(4))
    assert_same(weights(module.hidden), before)
    assert row not in OURS or not optimizer.state.get(module.hidden.weight)
    module.hidden.requires_grad_(True)
    train(module, optimizer, range(4, 6))
    assert not torch.equal(module.hidden.weight, before["weight"])
    assert torch.isfinite(module.hidden.weight).all()


@pytest.mark.parametrize("row", [row for row in OURS if row.name != "prodigy"], ids=lambda row: row.name)
def test_a_late_parameter_takes_the_first_step_of_a_new_one(row: OptimizerRow) -> None:
    """Bias corrections and averages of ours count the steps of each parameter."""
    early, late, fresh = (nn.Parameter(torch.ones(4, 4)) for _ in range(3))
    optimizer, other = build(row.name, [early, late]), build(row.name, [fresh])
    gradient = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        early.grad = gradient.clone()
        optimizer.step()
    for _ in range(3):
        late.grad, fresh.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        other.step()
    torch.testing.assert_close(late, fresh)


@dense
def test_tied_weights_move_once(row: OptimizerRow) -> None:
    tied = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 5, bias=False))
    tied[1].weight = tied[0].weight
    optimizer = build(row.name, tied.parameters())
    single = nn.Parameter(tied[0].weight.detach().clone())
    other = build(row.name, [single])
    for _ in range(3):
        optimizer.zero_grad()
        tied(torch.arange(5)).square().mean().backward()
        single.grad = tied[0].weight.grad.clone()  # type: ignore[union-attr]
        optimizer.step()
        other.step()
    assert tied[1].weight is tied[0].weight
    assert torch.equal(tied[0].weight, single)


@rows
def test_sparse_gradients_are_stepped_or_refused(row: OptimizerRow) -> None:
    """No optimizer reads a sparse gradient as if it were dense; a refusal names the way out in ours."""
    module = Net(sparse=True)
    optimizer = build(row.name, module.embed.parameters())
    before = weights(module.embed)
    module.loss(1).backward()
    if row in OURS:
        with pytest.raises(RuntimeError, match=r"sparse gradient for a parameter of shape \(7, 6\).*sparse=False"):
            optimizer.step()
        return
    if row.name not in ("adagrad", "sparse_adam"):
        with pytest.raises((RuntimeError, ValueError), match="sparse"):
            optimizer.step()
        return
    optimizer.step()
    assert not torch.equal(module.embed.weight, before["weight"])
    assert torch.equal(module.embed.weight[0], before["weight"][0])  # row 0 had no gradient


@dense
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(row: OptimizerRow, dtype: torch.dtype) -> None:
    """Parameters keep their dtype, and so does the state."""
    module = Net().to(dtype)
    optimizer = build(row.name, module.parameters())
    before = weights(module)
    train(module, optimizer, range(3))
    for name, parameter in module.named_parameters():
        assert parameter.dtype == dtype
        assert torch.isfinite(parameter).all()
        assert dtype == torch.bfloat16 or name == "conv.bias" or not torch.equal(parameter, before[name])
    if row in OURS:
        shaped = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
        assert {value.dtype for value in shaped} == {dtype}


@dense
def test_a_closure_runs_once_with_gradients(row: OptimizerRow) -> None:
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = build(row.name, [weight])
    calls: list[Tensor] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        calls.append(loss)
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1
    assert not torch.equal(weight, torch.ones(3, 3))


@dense
def test_groups_can_be_added(row: OptimizerRow) -> None:
    module = Net()
    optimizer = build(row.name, module.head.parameters())
    module.loss(0).backward()
    optimizer.step()
    optimizer.add_param_group({"params": list(module.hidden.parameters()), "lr": 1e-3})
    before = weights(module.hidden)
    train(module, optimizer, range(1, 3))
    assert optimizer.param_groups[1]["lr"] == 1e-3
    assert not torch.equal(module.hidden.weight, before["weight"])


@ours
def test_memory_layouts_do_not_change_the_numbers(row: OptimizerRow) -> None:
    """Channels-last parameters, gradients in another order, state that was saved in another order, gaps, one by one."""
    torch.manual_seed(0)
    start, gradients = torch.randn(4, 3, 2, 2), [torch.randn(4, 3, 2, 2) for _ in range(4)]

    def run(parameter: nn.Parameter, layout: Any, restore_as: Any = None) -> Tensor:
        optimizer = build(row.name, [parameter])
        for index, gradient in enumerate(gradients):
            parameter.grad = layout(gradient)
            optimizer.step()
            if restore_as is not None and index == 1:
                state = optimizer.state_dict()
                for entries in state["state"].values():
                    for key, value in entries.items():
                        if torch.is_tensor(value) and value.ndim == 4:
                            entries[key] = restore_as(value)
                optimizer.load_state_dict(state)
        return parameter.detach()

    def channels_last(tensor: Tensor) -> Tensor:
        return tensor.clone(memory_format=torch.channels_last)

    def contiguous(tensor: Tensor) -> Tensor:
        return tensor.clone(memory_format=torch.contiguous_format)

    expected = run(nn.Parameter(start.clone()), contiguous)
    with_gaps = nn.Parameter(torch.zeros(4, 3, 2, 4)[..., :2].copy_(start))
    assert not with_gaps.is_contiguous()
    cases = [
        run(nn.Parameter(channels_last(start)), channels_last),
        run(nn.Parameter(channels_last(start)), contiguous),
        run(nn.Parameter(start.clone()), channels_last),
        run(nn.Parameter(channels_last(start)), channels_last, restore_as=contiguous),
        run(with_gaps, contiguous),
    ]
    for found in cases:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@ours
def test_complex_parameters_are_stepped_as_pairs(row: OptimizerRow) -> None:
    torch.manual_seed(0)
    start, gradients = (
        torch.randn(3, 2, dtype=torch.complex64),
        [torch.randn(3, 2, dtype=torch.complex64) for _ in "123"],
    )
    parameter, pair = nn.Parameter(start.clone()), nn.Parameter(torch.view_as_real(start).reshape(-1).clone())
    optimizer, other = build(row.name, [parameter]), build(row.name, [pair])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        pair.grad = torch.view_as_real(gradient).reshape(-1).clone()
        optimizer.step()
        other.step()
    torch.testing.assert_close(torch.view_as_real(parameter.detach()).reshape(-1), pair.detach())


@ours
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1.0}, "lr=-1.0 must be"),
        ({"betas": (0.9, 1.5, 0.9)}, "betas="),
        ({"weight_decay": -1.0}, "weight_decay="),
    ],
)
def test_wrong_numbers(row: OptimizerRow, options: dict[str, Any], words: str) -> None:
    if "betas" in options and "betas" not in row.defaults:
        options, words = {"momentum": 1.5}, "momentum=1.5 must"
    with pytest.raises(ValueError, match=words):
        row.load()([nn.Parameter(torch.zeros(2))], **options)


@ours
@pytest.mark.gpu
def test_on_a_gpu_as_on_a_cpu(row: OptimizerRow) -> None:
    """Ten steps from the same gradients, foreach and fused kernels included."""
    torch.manual_seed(0)
    start = [torch.randn(shape, dtype=torch.float64) for shape in ((8, 8), (300,), (4, 3, 3))]
    gradients = [[torch.randn_like(each) for each in start] for _ in range(10)]
    results = []
    for device in ("cpu", "cuda"):
        parameters = [nn.Parameter(each.to(device)) for each in start]
        optimizer = build(row.name, parameters)
        for step in gradients:
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = gradient.to(device)
            optimizer.step()
        results.append([parameter.detach().cpu() for parameter in parameters])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-9)

"""The table of optimizers and its constructor; every row is built, stepped and checked from the table itself."""

from __future__ import annotations

import copy
import doctest
import inspect
import math

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, Muon, Optimizer

from lightning_perf.optim import registry
from lightning_perf.optim.fused import why_not_fused
from lightning_perf.optim.param_groups import infer_groups
from lightning_perf.optim.registry import build, get_optimizer, list_optimizers

ROWS = list_optimizers()
NAMES = [row.name for row in ROWS]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Embedding(16, 16, sparse=True)


def loss_of(module: nn.Module, name: str) -> torch.Tensor:
    weight = module.get_parameter("weight")
    if name == "sparse_adam":
        return (module(torch.arange(16)) - 1.0).square().mean()
    return (weight - 1.0).square().mean()


def test_examples() -> None:
    assert doctest.testmod(registry).failed == 0


def test_every_torch_optimizer_but_two_is_there() -> None:
    exported = {
        getattr(torch.optim, name) for name in torch.optim.__all__ if inspect.isclass(getattr(torch.optim, name))
    }
    classes = {row.load() for row in ROWS}
    assert exported - {Optimizer, LBFGS, Muon} == {cls for cls in classes if cls.__module__.startswith("torch.")}


@pytest.mark.parametrize("name", NAMES)
def test_row_is_true(name: str) -> None:
    """With its defaults the optimizer lowers a loss, resumes, and has the state and the fused step the row claims."""
    row, module = get_optimizer(name), net()
    optimizer = build(name, module.parameters())
    before = loss_of(module, name).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(module, name).backward()
        optimizer.step()
    assert loss_of(module, name).item() < before
    state = [value for value in optimizer.state[module.get_parameter("weight")].values() if torch.is_tensor(value)]
    held = sum(value.numel() * value.element_size() for value in state if value.numel() > 1) / 256
    if name == "soap":  # the matrices of both sides come on top
        assert held == row.state_bytes + 8 * 2
    elif name != "adafactor":  # its state depends on the shapes
        assert held == row.state_bytes
    assert (why_not_fused(optimizer) is None) == row.fused
    again = build(name, module.parameters())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert row.defaults["lr"] == optimizer.param_groups[0]["lr"]
    assert set(row.defaults) <= set(optimizer.defaults)
    assert row.source.startswith("https://")
    assert row.lr_free == (name == "prodigy")
    assert row.lr_free <= (row.defaults["lr"] == 1.0)


def test_names_of_classes_are_accepted() -> None:
    found = {cls: get_optimizer(cls).name for cls in ("AdamW", "SGD", "SparseAdam", "ASGD", "NAdam", "RMSprop")}
    assert found == {
        "AdamW": "adamw",
        "SGD": "sgd",
        "SparseAdam": "sparse_adam",
        "ASGD": "asgd",
        "NAdam": "nadam",
        "RMSprop": "rmsprop",
    }


def test_patterns() -> None:
    assert [row.name for row in list_optimizers("ada*")] == [
        "adadelta",
        "adafactor",
        "adagrad",
        "adam",
        "adamax",
        "adamw",
    ]
    assert sorted(NAMES) == NAMES
    with pytest.raises(ValueError, match=r"'tiger\*'; known are adadelta, .*sparse_adam"):
        list_optimizers("tiger*")


def test_unknown_name_lists_the_known_and_the_closest() -> None:
    with pytest.raises(ValueError, match=r"'adamq'; known are adadelta, .*sparse_adam\. Did you mean 'adam"):
        get_optimizer("adamq")


def test_nadamw_decouples_the_decay() -> None:
    assert build("nadamw", net().parameters()).defaults["decoupled_weight_decay"] is True
    assert build("nadam", net().parameters()).defaults["decoupled_weight_decay"] is False


def test_sgd_follows_the_documented_update() -> None:
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    options = {"nesterov": True, "momentum": 0.5}
    optimizer = build("sgd", [weight], lr=0.1, weight_decay=0.01, options=options)
    theta, buffer = 2.0, None
    for gradient in (1.0, -3.0, 0.5):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        g = gradient + 0.01 * theta
        buffer = g if buffer is None else 0.5 * buffer + g
        theta -= 0.1 * (g + 0.5 * buffer)
    assert weight.item() == pytest.approx(theta, rel=1e-12)


def test_arguments_win_over_the_row_and_groups_over_arguments() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = infer_groups(module, weight_decay=0.3, groups={"1.*": {"lr": 0.7}})
    optimizer = build("adamw", groups, lr=0.2, weight_decay=0.4, options={"betas": [0.8, 0.9]})
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.7, 0.3),
        (0.7, 0.0),
        (0.2, 0.3),
        (0.2, 0.0),
    ]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}


def test_lists_of_a_yaml_file_become_tuples() -> None:
    optimizer = build("adamax", net().parameters(), options={"betas": [0.8, 0.9]})
    assert optimizer.defaults["betas"] == (0.8, 0.9)


def test_a_group_without_names_can_be_added_later() -> None:
    optimizer = build("adamw", infer_groups(nn.Linear(2, 2), weight_decay=0.1))
    assert [group["names"] for group in optimizer.param_groups] == [["weight"], ["bias"]]
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    assert len(optimizer.param_groups) == 3


def test_the_callers_groups_are_not_changed() -> None:
    groups = infer_groups(nn.Linear(2, 2), weight_decay=0.1)
    before = [dict(group) for group in groups]
    build("adamw", groups)
    assert all(group.keys() == old.keys() for group, old in zip(groups, before, strict=True))


@pytest.mark.parametrize("lr", [0, -1e-3, math.nan, math.inf, True, "1e-3"])
def test_wrong_learning_rate(lr: float) -> None:
    with pytest.raises(ValueError, match=f"lr={lr!r} must be a finite number above 0; give one, such as 1e-3"):
        build("adamw", net().parameters(), lr=lr)


@pytest.mark.parametrize("decay", [-0.1, math.nan])
def test_wrong_weight_decay(decay: float) -> None:
    with pytest.raises(ValueError, match=f"weight_decay={decay!r} must be a finite number of at least 0"):
        build("adamw", net().parameters(), weight_decay=decay)


@pytest.mark.parametrize("name", ["rprop", "sparse_adam"])
def test_weight_decay_is_never_dropped(name: str) -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="has no weight decay"):
        build(name, [weight], weight_decay=0.1)
    with pytest.raises(ValueError, match=r"group 'mine'.*has no weight decay"):
        build(name, [{"params": [weight], "name": "mine", "weight_decay": 0.1}])
    none_asked = build(name, [{"params": [weight], "weight_decay": 0.0}], weight_decay=0.0)
    assert "weight_decay" not in none_asked.param_groups[0]


def test_unknown_options() -> None:
    with pytest.raises(ValueError, match="Unknown option 'momentum' of adamw; AdamW has betas, eps, amsgrad"):
        build("adamw", net().parameters(), options={"momentum": 0.9})
    with pytest.raises(ValueError, match="lr is an argument of its own"):
        build("adamw", net().parameters(), options={"lr": 0.9})
    with pytest.raises(ValueError, match="Unknown option 'momentun' in group 0 of sgd; SGD has lr, momentum"):
        build("sgd", [{"params": [nn.Parameter(torch.zeros(1))], "momentun": 0.1}])


def test_settings_of_a_moved_scheduler_stay() -> None:
    weight = nn.Parameter(torch.zeros(1))
    group = {"params": [weight], "lr": 0.0, "initial_lr": 0.1, "max_lr": 0.2, "max_momentum": 0.9}
    assert build("sgd", [group]).param_groups[0]["max_lr"] == 0.2


def test_no_parameters() -> None:
    with pytest.raises(ValueError, match="adamw got no parameters"):
        build("adamw", [])

"""Rounding against loops over numbers, and against torch's own kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_perf.quantization.rounding import (
    activation_parameters,
    extent,
    round_activation,
    round_to_own_range,
    round_weight,
)
from lightning_perf.quantization.schemes import SCHEMES, get_scheme


def by_hand(value: float, scale: float, zero: int, lowest: int, highest: int) -> float:
    """Quantize and dequantize one number."""
    return (min(max(round(value / scale) + zero, lowest), highest) - zero) * scale


def test_activation_equals_loops_over_numbers() -> None:
    x = torch.linspace(-3, 9, 97)
    scale, zero = activation_parameters(torch.tensor(-2.0), torch.tensor(6.0))
    assert (scale.item(), zero.item()) == (pytest.approx(8 / 255), 64)
    expected = [by_hand(value, scale.item(), 64, 0, 255) for value in x.tolist()]
    torch.testing.assert_close(round_activation(x, scale.item(), 64), torch.tensor(expected))


@pytest.mark.parametrize(("low", "high"), [(-2.0, 6.0), (0.5, 6.0), (-3.0, -1.0)])
def test_activation_equals_the_kernel_of_torch(low: float, high: float) -> None:
    """Values to the bit, gradients too; the kernel is what accelerators run."""
    torch.manual_seed(0)
    x = (torch.randn(4096) * 4).requires_grad_()
    scale, zero = activation_parameters(torch.tensor(low), torch.tensor(high))
    mine = round_activation(x, scale.item(), int(zero.item()))
    (gradient,) = torch.autograd.grad(mine.square().sum(), x)
    theirs = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)
    (expected,) = torch.autograd.grad(theirs.square().sum(), x)
    assert torch.equal(mine, theirs)
    assert torch.equal(gradient, expected)
    assert 0 < (gradient == 0).sum() < 4096, "some values are outside of the range, and not all"


def test_zero_is_exact() -> None:
    """Padding and the zeros of pruned weights and of relu stay zeros."""
    scale, zero = activation_parameters(torch.tensor(-1.234), torch.tensor(5.678))
    assert round_activation(torch.zeros(3), scale.item(), int(zero.item())).tolist() == [0, 0, 0]
    weight = torch.tensor([[0.0, 0.3, -1.7], [0.0, 0.0, 0.0]])
    rounded = round_weight(weight, get_scheme("int8"))
    assert (rounded == 0).tolist() == (weight == 0).tolist()
    assert torch.isfinite(rounded).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_weight_equals_loops_over_channels(axis: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 4, 2)
    expected = weight.clone()
    for channel in range(weight.shape[axis]):
        part = expected.select(axis, channel)
        scale = max(abs(value) for value in part.flatten().tolist()) / 127
        part.copy_(part.clone().apply_(lambda value, s=scale: by_hand(value, s, 0, -127, 127)))
    torch.testing.assert_close(round_weight(weight, get_scheme("int8"), axis), expected)


def test_groups_of_four_bits_equal_loops() -> None:
    torch.manual_seed(0)
    weight = torch.randn(2, 64)
    expected = weight.clone()
    for row in expected:
        for group in row.split(32):
            scale = max(abs(value) for value in group.tolist()) / 7
            group.copy_(torch.tensor([by_hand(value, scale, 0, -7, 7) for value in group.tolist()]))
    rounded = round_weight(weight, get_scheme("int4"))
    torch.testing.assert_close(rounded, expected)
    assert len(rounded[0, :32].unique()) <= 15


def test_float8_equals_the_nearest_of_all_its_values() -> None:
    """All 254 finite values of e4m3, listed by their bits."""
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    every = every[every.isfinite()]
    torch.manual_seed(0)
    weight = torch.randn(1, 50)
    scale = weight.abs().max() / 448
    nearest = every[((weight / scale).T - every).abs().argmin(1)] * scale
    torch.testing.assert_close(round_weight(weight, get_scheme("float8")), nearest[None])


@pytest.mark.parametrize("name", [name for name, row in SCHEMES.items() if row.activations == "dynamic"])
def test_dynamic_rounding_follows_the_input(name: str) -> None:
    x = torch.tensor([-1.0, 0.5, 2.0])
    scheme = get_scheme(name)
    torch.testing.assert_close(round_to_own_range(x * 1000, scheme), round_to_own_range(x, scheme) * 1000)
    if scheme.number == "integer":
        expected = [by_hand(value, 3 / 255, 85, 0, 255) for value in x.tolist()]
        torch.testing.assert_close(round_to_own_range(x, scheme), torch.tensor(expected))
    assert round_to_own_range(torch.empty(0, 3), scheme).shape == (0, 3)


@pytest.mark.parametrize("name", SCHEMES)
def test_gradients_of_weights_pass(name: str) -> None:
    weight = torch.randn(4, 64, requires_grad=True)
    factor = torch.randn(4, 64)
    (round_weight(weight, get_scheme(name)) * factor).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, factor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_in_float32_and_gives_back_the_type(dtype: torch.dtype) -> None:
    x = torch.linspace(-2, 6, 300, dtype=dtype)
    rounded = round_activation(x, 8 / 255, 64)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, round_activation(x.float(), 8 / 255, 64).to(dtype))
    weight = round_weight(x.view(3, 100), get_scheme("int8"))
    assert torch.equal(weight, round_weight(x.view(3, 100).float(), get_scheme("int8")).to(dtype))


@pytest.mark.parametrize(
    "layout", [lambda x: x, lambda x: x.to(memory_format=torch.channels_last), lambda x: x[::2, 1:]]
)
def test_extent_in_any_layout(layout: object) -> None:
    x: Tensor = layout(torch.randn(4, 3, 5, 6))  # type: ignore[operator]
    assert [end.item() for end in extent(x)] == [x.min().item(), x.max().item()]


def test_unknown_scheme_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="scheme='int3' is not known; choose one of int8, int8-dynamic"):
        get_scheme("int3")

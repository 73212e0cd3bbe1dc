"""Compressed gradients against arithmetic written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_perf.strategies.compression import (
    BLOCK,
    bytes_on_the_wire,
    dequantize,
    mean_of_payloads,
    pack,
    padded,
    quantize,
    quantize_with_feedback,
    unpack,
)
from lightning_perf.strategies.compression_hooks import Int8Hook


def naive(values: list[float]) -> tuple[list[int], float]:
    """One block: the largest magnitude becomes 127."""
    scale = max(abs(value) for value in values) / 127
    return [round(value / scale) if scale else 0 for value in values], scale


def test_a_block_is_what_the_definition_says() -> None:
    values = torch.randn(3 * BLOCK, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1e-6, 1.0, 1e6]
    ).repeat_interleave(BLOCK)
    values[2 * BLOCK :] = 0
    codes, scales = quantize(values)
    for index in range(3):
        block = values[index * BLOCK : (index + 1) * BLOCK].tolist()
        expected, scale = naive(block)
        assert scales[index].item() == pytest.approx(scale, rel=1e-6)
        found = codes[index * BLOCK : (index + 1) * BLOCK].tolist()
        assert found == expected
    error = (dequantize(codes, scales) - values).abs().view(3, -1).amax(1)
    assert (error <= scales / 2 * 1.001).all()


def test_packing_loses_nothing_and_has_the_size_of_the_formula() -> None:
    values = torch.randn(4 * BLOCK)
    codes, scales = quantize(values)
    payload = pack(codes, scales)
    assert all(torch.equal(one, other) for one, other in zip(unpack(payload), (codes, scales), strict=True))
    assert payload.numel() == bytes_on_the_wire("int8", [4 * BLOCK], 2)


def test_the_mean_is_that_of_the_decoded_values() -> None:
    parts = [torch.randn(2 * BLOCK) for _ in range(3)]
    sent = [pack(*quantize(part)) for part in parts]
    expected = torch.stack([dequantize(*quantize(part)) for part in parts]).mean(0)
    assert torch.allclose(mean_of_payloads(sent), expected, rtol=1e-6)


def test_error_feedback_loses_nothing_over_time() -> None:
    """What was sent in all steps and what is still owed add up to the gradients; without feedback it would drift."""
    generator = torch.Generator().manual_seed(1)
    residual = torch.zeros(BLOCK)
    given, sent, without = torch.zeros(3, BLOCK)
    for _ in range(50):
        gradient = torch.randn(BLOCK, generator=generator) * 0.01
        gradient[0] = 10.0  # one large value makes the others round to almost nothing
        given += gradient
        sent += dequantize(*unpack(quantize_with_feedback(gradient.clone(), residual)))
        without += dequantize(*quantize(gradient))
    assert torch.allclose(sent + residual, given, atol=1e-3)
    assert (sent - given).abs().max() < 10 / 127
    assert (without - given).abs()[1:].mean() > 2 * (sent - given).abs()[1:].mean()


def test_an_infinite_gradient_is_seen_and_forgotten() -> None:
    residual = torch.zeros(2 * BLOCK)
    gradient = torch.ones(2 * BLOCK)
    gradient[3] = float("inf")
    decoded = dequantize(*unpack(quantize_with_feedback(gradient, residual)))
    assert not decoded[:BLOCK].isfinite().all()
    assert decoded[BLOCK:].isfinite().all()
    assert residual.isfinite().all()


@pytest.mark.parametrize(
    ("compression", "world_size", "expected"),
    [(None, 2, 4000), (None, 4, 6000), ("bf16", 2, 2000), ("bf16", 4, 3000), ("int8", 2, 1040), ("int8", 4, 3120)],
)
def test_bytes_by_hand(compression: str | None, world_size: int, expected: float) -> None:
    """1000 elements: four blocks of 260 bytes."""
    assert padded(1000) == 1024
    assert bytes_on_the_wire(compression, [1000], world_size) == expected


class Bucket:
    """As much of DDP's bucket as a hook needs."""

    def __init__(self, index: int, parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        self.index, self.parameters, self.gradients = lambda: index, lambda: parameters, lambda: gradients
        self.buffer = lambda: gradients[0]


class Alone:
    """An exchange of one process."""

    def start(self, bucket: Any, message: torch.Tensor, finish: Callable[[list[torch.Tensor]], Any]) -> Any:
        return finish([message])


def test_residuals_stay_with_their_parameters_through_buckets() -> None:
    """Two steps in one bucket, then two in two: sent and owed add up to what was given, and staging is made once."""
    module = torch.nn.Linear(40, 10)
    hook, generator = Int8Hook(Alone(), module), torch.Generator().manual_seed(2)  # pyright: ignore[reportArgumentType]
    parameters = list(module.parameters())
    given, sent = ([torch.zeros_like(one) for one in parameters] for _ in range(2))
    made = []
    for step in range(4):
        gradients = [torch.randn(one.shape, generator=generator) for one in parameters]
        for total, one in zip(given, gradients, strict=True):
            total += one
        buckets = [(parameters, gradients)]
        if step >= 2:
            buckets = [([parameters[index]], [gradients[index]]) for index in (1, 0)]
        for index, bucket in enumerate(buckets):
            hook.reduce(None, Bucket(index, *bucket))  # pyright: ignore[reportArgumentType]
        for total, one in zip(sent, gradients, strict=True):
            total += one
        made.append(list(hook._buckets.values()))
    owed = hook.state_dict()
    for name, all_given, all_sent in zip(("weight", "bias"), given, sent, strict=True):
        assert torch.allclose(all_sent + owed[name], all_given, atol=1e-5)
        assert owed[name].abs().max() > 0
    assert [len(one) for one in made] == [1, 1, 2, 2]
    assert made[0][0] is made[1][0]
    assert all(one is other for one, other in zip(made[2], made[3], strict=True))


def test_what_is_owed_of_unused_parameters_waits() -> None:
    """Two layers, of which backwards use one or both: owed and applied add up to what was given; DDP drops the rest."""
    module, generator = torch.nn.ModuleList([torch.nn.Linear(7, 3) for _ in range(2)]), torch.Generator().manual_seed(4)
    hook = Int8Hook(Alone(), module, some_unused=True)  # pyright: ignore[reportArgumentType]
    parameters = list(module.parameters())
    given, applied = ([torch.zeros_like(one) for one in parameters] for _ in range(2))
    for used in ((0, 1), (0,), (1,), (1,), (0, 1), (1,), (0,)):
        before = hook.state_dict()
        module.zero_grad()
        rows = torch.randn(5, 7, generator=generator)
        sum(module[index](rows).square().sum() for index in used).backward()  # pyright: ignore
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in parameters]
        for index in used:
            for place in (2 * index, 2 * index + 1):
                given[place] += gradients[place]
        hook.reduce(None, Bucket(0, parameters, gradients))  # pyright: ignore[reportArgumentType]
        for name, index in (("0", 0), ("1", 1)):
            if index not in used:
                assert all(torch.equal(hook.state_dict()[key], one) for key, one in before.items() if key[0] == name)
            else:
                for place in (2 * index, 2 * index + 1):
                    applied[place] += gradients[place]
    owed = hook.state_dict()
    for (name, _), all_given, all_applied in zip(module.named_parameters(), given, applied, strict=True):
        assert torch.allclose(all_applied + owed[name], all_given, atol=1e-4)
        assert owed[name].abs().max() > 0
    hook.release()
    assert not any(one._post_accumulate_grad_hooks for one in parameters)

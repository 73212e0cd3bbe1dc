"""Formulas of kernels that this machine may not have, from shapes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import flop_counter

from lightning_perf.profiling.flop_formulas import FORMULAS, Work, has_formula, looks_costly, name_of, work_of

aten = torch.ops.aten


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def call(operator: Any, *args: Any, out: Any = None, **kwargs: Any) -> Work | None:
    return work_of(operator.default, args, kwargs, out)


def test_every_row_is_an_operator_of_this_torch() -> None:
    """A renamed operator would silently count nothing."""
    for name in FORMULAS:
        namespace, _, operator = name.partition("::")
        assert hasattr(getattr(torch.ops, namespace), operator), name


B, H, Q, K, D, V = 2, 6, 5, 7, 4, 3
SCORES, VALUES = 2 * B * H * Q * K * D, 2 * B * H * Q * K * V
FORWARD, BACKWARD = Work(SCORES + VALUES), Work(2 * (SCORES + VALUES), SCORES)


@pytest.mark.parametrize(
    "kind", ["flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu"]
)
@pytest.mark.parametrize("key_heads", [H, 2])
def test_attention_of_every_backend_costs_the_same(kind: str, key_heads: int) -> None:
    """Grouped queries too: every query head is computed, whoever shares its keys."""
    query, key, value = meta(B, H, Q, D), meta(B, key_heads, K, D), meta(B, key_heads, K, V)
    forward = getattr(aten, f"_scaled_dot_product_{kind}")
    backward = getattr(aten, f"_scaled_dot_product_{kind}_backward")
    assert call(forward, query, key, value) == FORWARD
    assert call(backward, meta(B, H, Q, V), query, key, value) == BACKWARD


def test_the_kernels_below_take_another_layout() -> None:
    """Torch's own formula takes (batch, length, heads, size) for (batch, heads, length, size) here."""
    query, key, value = meta(B, Q, H, D), meta(B, K, H, D), meta(B, K, H, V)
    assert call(aten._flash_attention_forward, query, key, value, None, None, Q, K) == FORWARD
    assert call(aten._efficient_attention_forward, query, key, value, None, None, None, Q, K) == FORWARD
    grad = meta(B, Q, H, V)
    assert call(aten._flash_attention_backward, grad, query, key, value, grad, meta(1), None, None, Q, K) == BACKWARD
    assert call(aten._efficient_attention_backward, grad, query, key, value, None, grad, None, None, Q, K) == BACKWARD


def test_sequences_in_a_row() -> None:
    lengths, offsets = [3, 5, 1], torch.tensor([0, 3, 8, 9])
    packed = meta(9, H, D)
    pairs = 2 * H * sum(length * length for length in lengths)
    flash = call(aten._flash_attention_forward, packed, packed, packed, offsets, offsets, 5, 5)
    assert flash == Work(pairs * 2 * D)
    one = packed[None]
    efficient = call(aten._efficient_attention_backward, one, one, one, one, None, one, offsets, offsets, 5, 5)
    assert efficient == Work(2 * pairs * 2 * D, pairs * D)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("bidirectional", "projection"), [(False, 0), (True, 0), (False, 2)])
def test_recurrent_networks_of_cudnn(packed: bool, bidirectional: bool, projection: int) -> None:
    t, n, i, h, layers = 6, 2, 5, 3, 2
    network = torch.nn.LSTM(i, h, layers, bidirectional=bidirectional, proj_size=projection)
    weights = [weight.to("meta") for weight in network.parameters()]
    directions, out = 1 + bidirectional, projection or h
    steps = t * n
    macs = sum(
        directions * steps * (4 * h * (size + out) + (h * projection))
        for size in (i, *[directions * out] * (layers - 1))
    )
    x = meta(steps, i) if packed else meta(t, n, i)
    names = {"input": x, "weight": weights}
    assert work_of(aten._cudnn_rnn.default, (), names, None) == Work(2 * macs)
    for wants_weights in (True, False):
        masked = {**names, "output_mask": [True, True, True, wants_weights]}
        assert work_of(aten._cudnn_rnn_backward.default, (), masked, None) == Work(2 * macs * (1 + wants_weights))


def test_convolutions_of_cudnn() -> None:
    x, w = meta(2, 4, 8, 8), meta(6, 2, 3, 3)
    assert call(aten.cudnn_convolution, x, w, out=meta(2, 6, 6, 6)) == Work(2 * 2 * 36 * 6 * 2 * 9)
    w = meta(4, 3, 3, 3)
    assert call(aten.cudnn_convolution_transpose, x, w, out=meta(2, 6, 10, 10)) == Work(2 * 2 * 64 * 4 * 3 * 9)


def test_low_precision_products() -> None:
    a, b = meta(3, 4), meta(4, 5)
    assert call(aten._scaled_mm, a, b, meta(1), meta(1)) == Work(2 * 3 * 4 * 5)
    assert call(aten._int_mm, a, b) == Work(2 * 3 * 4 * 5)


def test_products_of_groups_of_experts() -> None:
    """Every row is multiplied by one expert's matrix, however the rows are spread."""
    rows, k, n, experts = 12, 4, 5, 3
    one = Work(2 * rows * k * n)
    assert call(aten._grouped_mm, meta(rows, k), meta(experts, k, n), out=meta(rows, n)) == one
    assert call(aten._grouped_mm, meta(k, rows), meta(rows, n), out=meta(experts, k, n)) == one
    assert call(aten._grouped_mm, meta(experts, 4, k), meta(experts, k, n), out=meta(experts, 4, n)) == one


@pytest.mark.parametrize(
    ("operator", "shapes", "out"),
    [
        (aten.mm, [(3, 4), (4, 5)], (3, 5)),
        (aten.addmm, [(5,), (3, 4), (4, 5)], (3, 5)),
        (aten.bmm, [(2, 3, 4), (2, 4, 5)], (2, 3, 5)),
        (aten.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], (2, 3, 5)),
    ],
)
def test_where_torch_counts_right_we_agree(operator: Any, shapes: list[Any], out: Any) -> None:
    args = [meta(*shape) for shape in shapes]
    assert call(operator, *args, out=meta(*out)) == Work(
        flop_counter.flop_registry[operator](*args, out_val=meta(*out))
    )


def test_torchs_registry_stands_behind_ours() -> None:
    from torch._higher_order_ops.flex_attention import flex_attention

    assert has_formula(flex_attention)
    assert work_of(flex_attention, (meta(B, H, Q, D), meta(B, H, K, D), meta(B, H, K, V)), {}, None) == FORWARD


@pytest.mark.parametrize(
    ("operator", "costly"),
    [
        (aten._cdist_forward, True),
        (aten._fft_r2c, True),
        (aten.linalg_cholesky_ex, True),
        (aten._trilinear, True),
        (aten.mkldnn_linear, True),
        (aten._linalg_check_errors, False),
        (aten.linalg_vector_norm, False),
        (aten._convert_indices_from_coo_to_csr, False),
        (aten.upsample_bilinear2d, False),
        (aten._thnn_fused_lstm_cell, False),
        (aten.relu, False),
        (torch.ops.prims.mul, False),
        (torch.ops.quantized.linear, True),
    ],
    ids=str,
)
def test_costly_by_name(operator: Any, costly: bool) -> None:
    assert looks_costly(getattr(operator, operator.overloads()[0])) is costly


def test_names() -> None:
    assert name_of(aten.mm.out) == "aten::mm"
    assert name_of(aten.addmm_.default) == "aten::addmm"
    assert not has_formula(aten.relu.default)

"""Layers with stored integers: what a converted module is made of.

A layer keeps its class, in front of which stands one that dequantizes the stored weight wherever ``forward`` reads it. All
of it is plain eager code over ``torch.ops.quantized_decomposed``, which torch.export, the ONNX exporter and Inductor know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_perf.quantization.kinds import owner_of
from lightning_perf.quantization.layers import rounded_inputs, unmake
from lightning_perf.quantization.rounding import HIGH, LOW, round_to_own_range
from lightning_perf.quantization.schemes import Scheme
from lightning_perf.quantization.swapping import Role, register, swap

_STORE = "_lightning_perf_stored"


@dataclass(frozen=True)
class Store:
    """How one converted layer stores and rounds.

    Args:
        names: parameters of ``forward`` that are rounded.
        inputs: scale and zero point of each, for a static scheme.
        dynamic: the scheme that rounds inputs to their own range.
        output: scale and zero point of the output, if it is rounded as well.
        axis: of the output channels.
        largest: integer of a weight.
        group: weights that share a scale; None: a channel does.
        dtype: of the weights in ``forward``.
    """

    names: tuple[str, ...]
    inputs: dict[str, tuple[float, int]]
    dynamic: Scheme | None
    output: tuple[float, int] | None
    axis: int
    largest: int
    group: int | None
    dtype: torch.dtype

    def input(self, name: str, x: Any) -> Any:
        """An input, quantized and dequantized."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return round_to_own_range(x, self.dynamic) if self.dynamic else quantize_dequantize(x, *self.inputs[name])


def _stored_forward(own: Callable[..., Any], module: Any, *args: Any, **kwargs: Any) -> Any:
    """The layer's own forward between the roundings of its inputs and of its output."""
    store: Store = module.__dict__[_STORE]
    args, kwargs = rounded_inputs(store.names, store.input, args, kwargs)
    if own is nn.MultiheadAttention.forward:
        return attention(module, *args, **kwargs)
    output = own(module, *args, **kwargs)
    return output if store.output is None else quantize_dequantize(output, *store.output)


def quantize_dequantize(x: Tensor, scale: float, zero: int) -> Tensor:
    """``x`` through uint8 and back."""
    ops = torch.ops.quantized_decomposed
    integers = ops.quantize_per_tensor(x.float(), scale, zero, LOW, HIGH, torch.uint8)
    return ops.dequantize_per_tensor(integers, scale, zero, LOW, HIGH, torch.uint8).to(x.dtype)


def give_integers(child: nn.Module, weights: dict[str, tuple[Tensor, Tensor]], store: Store) -> None:
    """Turn a prepared layer into one that stores ``weights``: what is stored and the scale of each, by name."""
    unmake(child)
    owners: dict[nn.Module, list[str]] = {child: []}
    for key, (rows, scale) in weights.items():
        owner, attribute = owner_of(child, key)
        delattr(owner, attribute)
        name = f"{attribute}_{'float8' if rows.dtype == torch.float8_e4m3fn else 'int8'}"
        owner.register_buffer(name, rows)
        flat = store.group is None and rows.dtype == torch.int8
        owner.register_buffer(f"{attribute}_scale", scale.reshape(-1) if flat else scale)
        if flat:
            zeros = torch.zeros(scale.numel(), dtype=torch.int64)
            owner.register_buffer(f"{attribute}_zero_point", zeros, persistent=False)
        owners.setdefault(owner, []).append(attribute)
    for owner, attributes in owners.items():
        extra = ("_flat_weights",) if isinstance(owner, nn.RNNBase) else ()
        own = store if owner is child else replace(store, names=(), inputs={}, dynamic=None, output=None)
        owner.__dict__[_STORE] = own
        owner.__dict__.pop("_flat_weights", None)
        swap(owner, STORED, (*attributes, *extra))


def attention(
    layer: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``nn.MultiheadAttention.forward`` without its one-kernel path for inference, which no runtime quantizes."""
    swaps = layer.batch_first and query.dim() == 3
    if swaps:
        same_key, same_value = key is query, value is key
        query = query.transpose(0, 1)
        key = query if same_key else key.transpose(0, 1)
        value = key if same_value else value.transpose(0, 1)
    separate = not layer._qkv_same_embed_dim
    output, weights = F.multi_head_attention_forward(
        query,
        key,
        value,
        layer.embed_dim,
        layer.num_heads,
        None if separate else layer.in_proj_weight,
        layer.in_proj_bias,
        layer.bias_k,
        layer.bias_v,
        layer.add_zero_attn,
        layer.dropout,
        layer.out_proj.weight,
        layer.out_proj.bias,
        training=layer.training,
        key_padding_mask=key_padding_mask,
        need_weights=need_weights,
        attn_mask=attn_mask,
        use_separate_proj_weight=separate,
        q_proj_weight=layer.q_proj_weight if separate else None,
        k_proj_weight=layer.k_proj_weight if separate else None,
        v_proj_weight=layer.v_proj_weight if separate else None,
        average_attn_weights=average_attn_weights,
        is_causal=is_causal,
    )
    return output.transpose(0, 1) if swaps else output, weights


def _dequantized(owner: nn.Module, attribute: str) -> Tensor:
    store: Store = owner.__dict__[_STORE]
    scale = owner.get_buffer(f"{attribute}_scale")
    if f"{attribute}_float8" in owner._buffers:
        return (owner.get_buffer(f"{attribute}_float8").float() * scale).to(store.dtype)
    integers = owner.get_buffer(f"{attribute}_int8")
    if store.group is not None:
        return (integers.float() * scale).flatten(1).to(store.dtype)
    zero, top = owner.get_buffer(f"{attribute}_zero_point"), store.largest
    dequantize = torch.ops.quantized_decomposed.dequantize_per_channel
    return dequantize(integers, scale, zero, store.axis, -top, top, torch.int8).to(store.dtype)


def _flat_weights(owner: nn.RNNBase) -> list[Any]:
    return [getattr(owner, name) for name in owner._flat_weights_names]


def _readers(attributes: tuple[str, ...]) -> dict[str, Any]:
    """Properties that dequantize what ``forward`` reads."""
    members: dict[str, Any] = {}
    for attribute in attributes:
        if attribute == "_flat_weights":  # torch sets it anew whenever a recurrent layer moves
            members[attribute] = property(_flat_weights, lambda owner, value: None)
        else:
            members[attribute] = property(_reader(attribute))
    return members


def _reader(attribute: str) -> Callable[[nn.Module], Tensor]:
    return lambda owner: _dequantized(owner, attribute)


STORED = register(Role("stored", _stored_forward, _readers))

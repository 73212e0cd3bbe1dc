"""FLOPs of torch's operators, from the shapes of their arguments: one row per kind of operator.

A multiply and an add are two FLOPs; only products are counted, so additions of a bias, activations and norms are not.
Torch's own counter lacks or miscounts what is marked (torch) here. Operators that are no row of this table are looked up
in torch's registry, so a formula given to ``torch.utils.flop_counter.register_flop_formula`` holds here too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils import flop_counter

Arguments: TypeAlias = Mapping[str, Any]


class Work(NamedTuple):
    """FLOPs of one call: what the gradient or output needs, and what the kernel computes a second time."""

    model: int
    recomputed: int = 0


Formula: TypeAlias = Callable[[Arguments, Any], Work]


def work_of(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Work | None:
    """FLOPs of one call of ``operator``, or None where no formula is known.

    Args:
        operator: what a ``TorchDispatchMode`` is given: an overload such as ``torch.ops.aten.mm.default``.
        args: its positional arguments.
        kwargs: its keyword arguments.
        out: what it returned.

    Example::

        >>> a, b = torch.empty(3, 4), torch.empty(4, 5)
        >>> work_of(torch.ops.aten.mm.default, (a, b), {}, a @ b)
        Work(model=120, recomputed=0)
    """
    formula = FORMULAS.get(name_of(operator))
    if formula is not None:
        return formula(_bind(operator, args, kwargs), out)
    registered = flop_counter.flop_registry.get(getattr(operator, "_overloadpacket", operator))
    return Work(int(registered(*args, **kwargs, out_val=out))) if registered is not None else None


@cache
def name_of(operator: Any) -> str:
    """``aten::mm`` for every overload of ``mm`` and for ``mm_``; the plain name of a higher-order operator."""
    schema = getattr(operator, "_schema", None)
    return schema.name.removesuffix("_") if schema is not None else str(operator)


def has_formula(operator: Any) -> bool:
    """Whether :func:`work_of` knows this operator."""
    return name_of(operator) in FORMULAS or getattr(operator, "_overloadpacket", operator) in flop_counter.flop_registry


@cache
def looks_costly(operator: Any) -> bool:
    """Whether an operator without a formula may hide many FLOPs: told from its name, or because torch does not own it."""
    namespace, _, name = name_of(operator).rpartition("::")
    if namespace == "aten":
        return _COSTLY.search(name) is not None
    return namespace not in _FREE_NAMESPACES


_FREE_NAMESPACES = {"prim", "prims", "profiler", "c10d", "_c10d_functional", "_dtensor", "streams"}
_COSTLY = re.compile(
    r"(?:^|_)(?:mm|addmm|matmul|linear|trilinear|conv(?:[123]d)?|convolution|depthwise[23]d|attention|rnn|lstm|gru|cdist"
    r"|pdist|fft|linalg|cholesky|lu|qr|svd|eig|inverse|solve|householder|ormqr|geqrf)(?:$|_)"
    r"(?!.*(?:errors|norm|cross|cell|cell_backward|cell_backward_impl)$)"
)


def _bind(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the operator's schema."""
    return {**dict(zip(_parameters(operator), args, strict=False)), **kwargs}


@cache
def _parameters(operator: Any) -> tuple[str, ...]:
    return tuple(argument.name for argument in operator._schema.arguments)


def _stored(matrix: Tensor) -> int:
    """Elements that take part in a product: all of a dense matrix, the stored ones of a sparse one."""
    if matrix.layout == torch.strided:
        return matrix.numel()
    return (matrix._values() if matrix.layout == torch.sparse_coo else matrix.values()).numel()


def _product(left: str, right: str) -> Formula:
    """``left @ right``, batched or not: every element of ``left`` meets every column of ``right``."""

    def formula(a: Arguments, out: Any) -> Work:
        one, other = a[left], a[right]
        if one.layout == torch.strided and other.layout != torch.strided:
            return Work(2 * _stored(other) * one.shape[-2])
        return Work(2 * _stored(one) * other.shape[-1])

    return formula


def _matrix_vector(matrix: str) -> Formula:
    return lambda a, out: Work(2 * a[matrix].numel())


def _grouped_product(a: Arguments, out: Any) -> Work:
    """Products of groups of rows with a matrix each; two flat operands are cut along the dimension summed over."""
    left, right = a["self"], a["mat2"]
    if left.ndim == right.ndim == 2:
        return Work(2 * left.numel() * right.shape[-1])
    return Work(2 * out.numel() * left.shape[-1])


def _convolution_macs(source: Tensor, weight: Tensor, target: Tensor, transposed: bool) -> int:
    """Every weight meets every position of the output (transposed: of the input); groups are in the weight's shape."""
    positions = (source if transposed else target).shape[2:]
    return source.shape[0] * prod(positions) * prod(weight.shape)


def _convolution(source: str, transposed: bool | None = None) -> Formula:
    def formula(a: Arguments, out: Tensor) -> Work:
        turned = bool(a["transposed"]) if transposed is None else transposed
        return Work(2 * _convolution_macs(a[source], a["weight"], out, turned))

    return formula


def _convolution_backward(a: Arguments, out: Any) -> Work:
    """(torch) The gradients of input and weight cost a forward pass each, with groups and transposed too."""
    macs = _convolution_macs(a["input"], a["weight"], a["grad_output"], bool(a["transposed"]))
    return Work(2 * macs * sum(bool(wanted) for wanted in a["output_mask"][:2]))


class _Attention(NamedTuple):
    """Shapes of one attention: batch times query heads, lengths, sizes of a head."""

    heads: int
    queries: int
    keys: int
    key_size: int
    value_size: int

    def work(self, backward: bool) -> Work:
        """Two products forward, four backward; every fused backward computes the scores once more."""
        pairs = 2 * self.heads * self.queries * self.keys
        forward = pairs * (self.key_size + self.value_size)
        return Work(2 * forward, pairs * self.key_size) if backward else Work(forward)


def _total(parts: Iterable[Work]) -> Work:
    parts = list(parts)
    return Work(sum(part.model for part in parts), sum(part.recomputed for part in parts))


def _attention(backward: bool) -> Formula:
    """(torch) Scaled dot product attention on (batch, heads, length, size); a causal mask is not deducted."""

    def formula(a: Arguments, out: Any) -> Work:
        shapes = (_shapes(a[name]) for name in ("query", "key", "value"))
        return _total(
            _Attention(prod(heads), length, keys, size, value_size).work(backward)
            for (*heads, length, size), (*_, keys, _), (*_, value_size) in zip(*shapes, strict=True)
        )

    return formula


def _shapes(tensor: Tensor) -> list[Sequence[int]]:
    """The shape of a tensor, or those of the tensors nested in it."""
    return tensor._nested_tensor_size().tolist() if tensor.is_nested else [tensor.shape]


def _lengths(offsets: Tensor) -> list[int]:
    return offsets.diff().tolist()


def _packed_attention(query_offsets: str, key_offsets: str, backward: bool) -> Formula:
    """(torch) The kernels below: (batch, length, heads, size), or all sequences in a row with offsets."""

    def formula(a: Arguments, out: Any) -> Work:
        query, key, value = a["query"], a["key"], a["value"]
        sizes = query.shape[-1], value.shape[-1]
        offsets = a.get(query_offsets)
        if offsets is None:
            shapes = _Attention(query.shape[0] * query.shape[-2], query.shape[1], key.shape[1], *sizes)
            return shapes.work(backward)
        others = a.get(key_offsets)
        lengths = zip(_lengths(offsets), _lengths(offsets if others is None else others), strict=True)
        return _total(_Attention(query.shape[-2], q, k, *sizes).work(backward) for q, k in lengths)

    return formula


def _tokens(sequences: Tensor) -> list[int]:
    """Lengths of the sequences of a batch; a nested tensor holds sequences of different lengths."""
    return [length for *batch, length, _ in _shapes(sequences) for _ in range(prod(batch))]


def _native_attention(a: Arguments, out: Any) -> Work:
    """(torch) nn.MultiheadAttention in evaluation: projections and attention in one operator."""
    width, queries, keys = a["embed_dim"], _tokens(a["query"]), _tokens(a["key"])
    projections = sum(queries) * (width + a["proj_weight"].shape[0]) * width + 2 * sum(keys) * width * width
    scores = sum(2 * q * k * width for q, k in zip(queries, keys, strict=True))
    return Work(2 * (projections + scores))


def _encoder_layer(a: Arguments, out: Any) -> Work:
    """(torch) nn.TransformerEncoderLayer in evaluation: one operator."""
    lengths = _tokens(a["src"])
    weights = sum(a[name].numel() for name in ("qkv_weight", "proj_weight", "ffn_weight_1", "ffn_weight_2"))
    scores = sum(2 * length * length * a["embed_dim"] for length in lengths)
    return Work(2 * (sum(lengths) * weights + scores))


def _recurrent_layer(weights: tuple[str, str], passes: int) -> Formula:
    """(torch) One layer and direction of oneDNN: at every step both weights; backward computes both gradients."""

    def formula(a: Arguments, out: Any) -> Work:
        steps = prod(a["input"].shape[:-1])
        return Work(2 * passes * steps * sum(a[name].numel() for name in weights))

    return formula


def _recurrent_network(backward: bool) -> Formula:
    """(torch) All layers and directions of cuDNN or MIOpen; packed input has its steps in a row.

    Backward, the gradient of the input is always computed and that of the weights where asked for.
    """

    def formula(a: Arguments, out: Any) -> Work:
        steps = prod(a["input"].shape[:-1])
        forward = 2 * steps * sum(weight.numel() for weight in a["weight"] if weight.ndim == 2)
        return Work(forward * (1 + bool(a["output_mask"][3])) if backward else forward)

    return formula


_FLASH = ("cum_seq_q", "cum_seq_k")
_EFFICIENT = ("cu_seqlens_q", "cu_seqlens_k")

FORMULAS: dict[str, Formula] = {
    "aten::mm": _product("self", "mat2"),
    "aten::addmm": _product("mat1", "mat2"),
    "aten::_addmm_activation": _product("mat1", "mat2"),
    "aten::bmm": _product("self", "mat2"),
    "aten::baddbmm": _product("batch1", "batch2"),
    "aten::addbmm": _product("batch1", "batch2"),
    "aten::_int_mm": _product("self", "mat2"),
    "aten::_scaled_mm": _product("self", "mat2"),
    "aten::_grouped_mm": _grouped_product,
    "aten::_scaled_grouped_mm": _grouped_product,
    "aten::mv": _matrix_vector("self"),
    "aten::addmv": _matrix_vector("mat"),
    "aten::dot": _matrix_vector("self"),
    "aten::vdot": _matrix_vector("self"),
    "aten::convolution": _convolution("input"),
    "aten::_convolution": _convolution("input"),
    "aten::convolution_overrideable": _convolution("input"),
    "aten::cudnn_convolution": _convolution("self", transposed=False),
    "aten::cudnn_convolution_relu": _convolution("self", transposed=False),
    "aten::cudnn_convolution_add_relu": _convolution("self", transposed=False),
    "aten::cudnn_convolution_transpose": _convolution("self", transposed=True),
    "aten::mkldnn_convolution": _convolution("self", transposed=False),
    "aten::_slow_conv2d_forward": _convolution("self", transposed=False),
    "aten::convolution_backward": _convolution_backward,
    "aten::convolution_backward_overrideable": _convolution_backward,
    "aten::_flash_attention_forward": _packed_attention(*_FLASH, backward=False),
    "aten::_flash_attention_backward": _packed_attention(*_FLASH, backward=True),
    "aten::_efficient_attention_forward": _packed_attention(*_EFFICIENT, backward=False),
    "aten::_efficient_attention_backward": _packed_attention(*_EFFICIENT, backward=True),
    "aten::_native_multi_head_attention": _native_attention,
    "aten::_transformer_encoder_layer_fwd": _encoder_layer,
    "aten::mkldnn_rnn_layer": _recurrent_layer(("weight0", "weight1"), passes=1),
    "aten::mkldnn_rnn_layer_backward": _recurrent_layer(("weight1", "weight2"), passes=2),
    "aten::_cudnn_rnn": _recurrent_network(backward=False),
    "aten::_cudnn_rnn_backward": _recurrent_network(backward=True),
    "aten::miopen_rnn": _recurrent_network(backward=False),
    "aten::miopen_rnn_backward": _recurrent_network(backward=True),
}
for _kind in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"):
    FORMULAS[f"aten::_scaled_dot_product_{_kind}"] = _attention(backward=False)
    FORMULAS[f"aten::_scaled_dot_product_{_kind}_backward"] = _attention(backward=True)
FORMULAS["aten::_scaled_dot_product_fused_attention_overrideable"] = _attention(backward=False)
FORMULAS["aten::_scaled_dot_product_fused_attention_overrideable_backward"] = _attention(backward=True)

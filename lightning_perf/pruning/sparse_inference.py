"""Copies of a pruned module for inference, in formats that make use of the zeros where these are worth something."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_perf._copying import deep_copy
from lightning_perf.pruning.masks import keep_n_of_m


class CsrLinear(nn.Module):
    """A linear layer whose weight is stored by rows without its zeros.

    Example::

        >>> layer = CsrLinear(nn.Linear(4, 2))
        >>> layer(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            self.register_buffer("weight", dense.weight.detach().to_sparse_csr())
        self.register_buffer("bias", None if dense.bias is None else dense.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for features in the last dimension."""
        flat = x.reshape(-1, x.size(-1))
        # One sample is a vector: that kernel takes half the time of a matrix with one column.
        rows = torch.mv(self.weight, flat[0])[None] if len(flat) == 1 else (self.weight @ flat.t()).t()
        rows = rows if self.bias is None else rows + self.bias
        return rows.reshape(*x.shape[:-1], rows.size(-1))


def csr_copy(module: nn.Module, *, min_sparsity: float = 0.9) -> nn.Module:
    """A copy for inference whose sparse linear layers skip their zeros (CPU, float32).

    At batch 1 it pays from about 95 % zeros on: at 90 % a layer of 1024 x 1024 took longer than the dense one, at batch
    64 half as long (``python -m benchmarks.csr_inference`` measures it on your machine). Convolutions have no such kernel
    and stay dense, and so does the output projection of attention, whose layer reads the weight itself.

    Args:
        module: a pruned module; it is not changed.
        min_sparsity: share of zeros from which on a layer is converted; for single samples rather 0.95.

    Returns:
        The copy, in evaluation mode, with other types of layers and other keys.

    Raises:
        ValueError: no linear layer has so many zeros.

    Example::

        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        >>> _ = net[0].weight.data.mul_(torch.rand(64, 64) > 0.95)
        >>> type(csr_copy(net)[0]).__name__
        'CsrLinear'
    """

    def convert(layer: nn.Linear) -> nn.Module | None:
        return CsrLinear(layer) if float((layer.weight == 0).float().mean()) >= min_sparsity else None

    clone, count = _with_linear_layers(module, convert)
    if count == 0:
        raise ValueError(
            f"{type(module).__name__} has no linear layer with at least {min_sparsity:.0%} zeros; prune further, or lower "
            "min_sparsity (at batch 1 expect no speed below about 0.95)."
        )
    return clone


def semi_structured_copy(module: nn.Module) -> nn.Module:
    """A copy for inference whose 2:4 linear layers use the sparse tensor cores of a GPU (compute capability 8.0 or later).

    Args:
        module: pruned with ``pattern="2:4"``, on a CUDA device, in float16 or bfloat16; it is not changed.

    Returns:
        The copy, in evaluation mode. Only sizes that the hardware takes are converted (rows and columns in multiples of 64).

    Raises:
        RuntimeError: the module is on a CPU, where no processor has an instruction for 2:4.
        ValueError: no linear layer is 2:4, of a fitting size and type.

    Example::

        >>> semi_structured_copy(nn.Linear(64, 64))
        Traceback (most recent call last):
        RuntimeError: ...
    """
    device = next(module.parameters()).device
    if device.type != "cuda":
        raise RuntimeError(
            f"the module is on {device}: 2:4 is a format of the sparse tensor cores of NVIDIA GPUs since Ampere, and no "
            "CPU has an instruction for it. Move the module to a GPU; on a CPU, csr_copy serves from about 95 % zeros on."
        )
    from torch.sparse import to_sparse_semi_structured

    def convert(layer: nn.Linear) -> nn.Module | None:
        weight = layer.weight
        fits = all(size % 64 == 0 for size in weight.shape) and weight.dtype in (torch.float16, torch.bfloat16)
        if not fits or not is_n_of_m(weight, 2, 4, 1):
            return None
        layer.weight = nn.Parameter(to_sparse_semi_structured(weight.detach()), requires_grad=False)
        return layer

    clone, count = _with_linear_layers(module, convert)
    if count == 0:
        raise ValueError(
            f"{type(module).__name__} has no linear layer in float16 or bfloat16 that is 2:4 with sizes in multiples of 64; "
            "train with MagnitudePruning(pattern='2:4') and convert with .half() or .bfloat16()."
        )
    return clone


def is_n_of_m(weight: Tensor, n: int, m: int, dim: int) -> bool:
    """Whether of every ``m`` neighbours along ``dim`` at most ``n`` are not zero.

    Example::

        >>> is_n_of_m(torch.tensor([[1.0, 0.0, 0.0, 2.0]]), 2, 4, 1)
        True
    """
    if weight.size(dim) % m:
        return False
    kept = keep_n_of_m(weight.detach().abs().float(), n, m, dim)
    return not bool((weight.detach() != 0)[~kept].any())


def _with_linear_layers(module: nn.Module, convert: Callable[[nn.Linear], nn.Module | None]) -> tuple[nn.Module, int]:
    """A copy in which every plain linear layer is what ``convert`` makes of it; and how many it has changed."""
    clone = deep_copy(module).eval().requires_grad_(False)
    if type(clone) is nn.Linear:
        made = convert(clone)
        return (clone, 0) if made is None else (made, 1)
    count = 0
    for parent in list(clone.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:  # a subclass may compute something else, or be read from outside
                made = convert(child)
                if made is not None:
                    setattr(parent, name, made)
                    count += 1
                    if made is not child and isinstance(parent, nn.TransformerEncoderLayer):
                        parent.activation_relu_or_gelu = 0  # no fused kernel, which reads the weights itself
    return clone, count

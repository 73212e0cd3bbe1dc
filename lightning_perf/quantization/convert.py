"""From a prepared module to one that runtimes understand: quantize-dequantize pairs, folded float weights, or ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class LayerRange:
    """What a runtime's own quantizer needs to know of one layer.

    Args:
        weight_scale: of the (folded) weight, one per output channel; per group (out, groups) under int4.
        axis: of the output channels in the weight.
        input: smallest and largest value of the input, zero included; None where activations are not rounded statically.
        output: the same of the output, behind the batch norm that is folded in; None where it was not seen.
        zero_point: of the input, in uint8 steps; None as above.
        input_scale: of the input; None as above.
        feeds_addition: whether the output goes into an addition, as residual connections have it.

    Example::

        >>> LayerRange(Tensor([0.1]), 0, (0.0, 2.55), None, 0, 0.01).input
        (0.0, 2.55)
    """

    weight_scale: Tensor
    axis: int
    input: tuple[float, float] | None
    output: tuple[float, float] | None
    zero_point: int | None = None
    input_scale: float | None = None
    feeds_addition: bool = False


Outputs = Literal["none", "additions", "all"]


def to_qdq(module: nn.Module, *, outputs: Outputs | Callable[[str], bool] = "none") -> nn.Module:
    """A copy whose layers hold integer weights and quantize and dequantize their inputs, for export and compilers.

    The copy is in evaluation mode and computes what the prepared module computes there, to the rounding of float32. Weights are
    int8 buffers ``weight_int8`` with ``weight_scale`` beside them, dequantized in ``forward`` by
    ``torch.ops.quantized_decomposed``; batch norms are folded into the layers before them. Layers with no known range stay
    in float. Subclasses keep their own ``forward`` and hooks. The given module is not changed and shares no storage.

    Args:
        module: a prepared module, after training or calibration.
        outputs: which layers quantize their output as well: ``none``; those that feed an ``additions``, which runtimes need
            to fuse residual connections; ``all``; or a function of the layer's name. It is an additional rounding, which
            the prepared module does not have.

    Raises:
        ValueError: the module is not prepared, a weight is not finite, or ``outputs`` is unknown.
    """
    raise NotImplementedError


def folded_float(module: nn.Module) -> nn.Module:
    """A float copy in evaluation mode with rounded weights and folded batch norms, for runtimes that quantize themselves.

    Every weight holds a multiple of its scale, so that a symmetric per-channel quantizer finds the same integers again.

    Raises:
        ValueError: the module is not prepared, or a weight is not finite.
    """
    raise NotImplementedError


def ranges(module: nn.Module) -> dict[str, LayerRange]:
    """Ranges of every quantized layer by its qualified name, those of the copies above.

    Raises:
        ValueError: the module is not prepared, or a weight is not finite.
    """
    raise NotImplementedError

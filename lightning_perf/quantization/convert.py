"""From a prepared module to one that runtimes understand: quantize-dequantize pairs, folded float weights, or ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_perf._copying import deep_copy
from lightning_perf.quantization.folding import factor_and_shift, scaled, shifted
from lightning_perf.quantization.kinds import owner_of, weight_of
from lightning_perf.quantization.layers import Layer, has_torchs_forward, records
from lightning_perf.quantization.prepare import find_norms_again, unprepare
from lightning_perf.quantization.qdq import Store, give_integers
from lightning_perf.quantization.rounding import activation_parameters, stored_weight


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
        computed: shape of the weight where a forward of the user's own may compute another one of it, of which the scale
            says nothing; None where torch's forward takes the weight as it is.
        followed_by: name of the batch norm that was seen behind the layer, by which exporters that fold it call the two.

    Example::

        >>> LayerRange(torch.tensor([0.1]), 0, (0.0, 2.55), None, 0, 0.01).input
        (0.0, 2.55)
    """

    weight_scale: Tensor
    axis: int
    input: tuple[float, float] | None
    output: tuple[float, float] | None
    zero_point: int | None = None
    input_scale: float | None = None
    feeds_addition: bool = False
    computed: tuple[int, ...] | None = None
    followed_by: str | None = None


Outputs = Literal["none", "additions", "all"]


def to_qdq(module: nn.Module, *, outputs: Outputs | Callable[[str], bool] = "none") -> nn.Module:
    """A copy whose layers hold integer weights and quantize and dequantize their inputs, for export and compilers.

    The copy is in evaluation mode and computes what the prepared module computes there, to the rounding of float32.
    Weights are int8 buffers ``weight_int8`` with ``weight_scale`` beside them, dequantized in ``forward`` by
    ``torch.ops.quantized_decomposed``; batch norms are folded into the layers before them. Layers with no known range
    stay in float. Subclasses keep their own ``forward`` and hooks. The given module is not changed and shares no storage.

    Args:
        module: a prepared module, after training or calibration.
        outputs: which layers quantize their output as well: ``none``; those that feed an ``additions``, which runtimes need
            to fuse residual connections; ``all``; or a function of the layer's name. It is an additional rounding, which
            the prepared module does not have.

    Raises:
        ValueError: the module is not prepared, a weight is not finite, or ``outputs`` is unknown.

    Example::

        >>> from lightning_perf.quantization.prepare import prepare
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> _ = prepare(net, "int8-weight-only")
        >>> sorted(to_qdq(net).state_dict())
        ['0.bias', '0.weight_int8', '0.weight_scale']
    """
    wants_output = _chooser(outputs)
    twin, layers = _copied(module)
    for name, child, layer in layers:
        integers = _integers(name, child, layer)
        factor = _fold_into(twin, child, layer)
        ends = _span(layer, layer.output)
        store = Store(
            names=layer.kind.inputs if layer.scheme.activations != "none" else (),
            inputs={key: _numbers(_span(layer, slot)) for key, slot in layer.slots.items()},
            dynamic=layer.scheme if layer.scheme.activations == "dynamic" else None,
            output=_numbers(ends) if ends is not None and wants_output(layer) else None,
            axis=layer.kind.axis,
            largest=layer.scheme.largest,
            group=layer.scheme.group,
            dtype=weight_of(child, layer.kind.weights(child)[0]).dtype,
        )
        stored = {key: scaled(rows, scale, factor, layer.kind.axis) for key, (rows, scale) in integers.items()}
        give_integers(child, stored, store)
    return twin


def folded_float(module: nn.Module) -> nn.Module:
    """A float copy in evaluation mode with rounded weights and folded batch norms, for runtimes that quantize themselves.

    Every weight holds multiples of its scale up to the largest integer, so that a symmetric per-channel quantizer finds the
    same integers again.

    Raises:
        ValueError: the module is not prepared, or a weight is not finite.

    Example::

        >>> from lightning_perf.quantization.prepare import prepare
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> _ = prepare(net, "int8-weight-only")
        >>> type(folded_float(net)[0]) is nn.Linear
        True
    """
    twin, layers = _copied(module)
    rounded: dict[tuple[int, str, int], nn.Parameter] = {}  # tied weights stay tied to those that are rounded alike
    originals: list[nn.Parameter] = []  # kept alive, so that no other weight gets their id
    for name, child, layer in layers:
        integers = _integers(name, child, layer)
        factor = _fold_into(twin, child, layer)
        for key, (rows, scale) in integers.items():
            rows, scale = scaled(rows, scale, factor, layer.kind.axis)
            owner, attribute = owner_of(child, key)
            weight = getattr(owner, attribute)
            values = (rows.float() * scale).reshape(weight.shape).to(weight.dtype)
            alike = id(weight), layer.scheme.name, layer.kind.axis
            replacement = rounded.get(alike) if factor is None else None
            if replacement is None:
                replacement = nn.Parameter(values, weight.requires_grad)
            if factor is None:
                originals.append(weight)
                rounded[alike] = replacement
            setattr(owner, attribute, replacement)
    return unprepare(twin)


def ranges(module: nn.Module) -> dict[str, LayerRange]:
    """Ranges of every quantized layer by its qualified name, those of the copies above.

    A layer with several weights has an entry for each, such as ``attention.in_proj_weight``. Only weights that see the
    layer's input have its range.

    Raises:
        ValueError: the module is not prepared, or a weight is not finite.

    Example::

        >>> from lightning_perf.quantization.prepare import prepare
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> _ = prepare(net, "int8-weight-only")
        >>> ranges(net)["0"].weight_scale.shape
        torch.Size([2])
    """
    found: dict[str, LayerRange] = {}
    for name, child, layer in _quantized(module):
        integers = _integers(name, child, layer)
        factor = None if layer.norm is None else factor_and_shift(layer.norm)[0]
        slots = list(layer.slots.values())
        for index, (key, (rows, scale)) in enumerate(integers.items()):
            _, scale = scaled(rows, scale, factor, layer.kind.axis)
            slot = slots[min(index, len(slots) - 1)] if slots and not key.startswith("out_proj") else None
            span = _span(layer, slot)
            input_scale, zero = _numbers(span) if span is not None else (None, None)
            shape = scale.shape[:2] if layer.scheme.group else (-1,)
            found[name if len(integers) == 1 else f"{name}.{key}"] = LayerRange(
                scale.reshape(shape),
                layer.kind.axis,
                span,
                _span(layer, layer.output) if len(integers) == 1 else None,
                zero,
                input_scale,
                layer.feeds_addition,
                None if has_torchs_forward(child) else tuple(weight_of(child, key).shape),
                layer.followed_by,
            )
    return found


def _quantized(module: nn.Module) -> list[tuple[str, nn.Module, Layer]]:
    found = list(records(module))
    if not found:
        raise ValueError(
            f"{type(module).__name__} is not prepared for quantization; train it with QuantizationAwareTraining or pass it "
            "to lightning_perf.quantize first."
        )
    if not any(layer.known for _, _, layer in found):
        raise ValueError(
            f"no range of {type(module).__name__} is known, so that all of it would stay in float; train it with "
            "QuantizationAwareTraining beyond its start, or calibrate it with lightning_perf.quantize."
        )
    find_norms_again(module)
    return [entry for entry in found if entry[2].rounds]


def _copied(module: nn.Module) -> tuple[nn.Module, list[tuple[str, nn.Module, Layer]]]:
    _quantized(module)
    twin = deep_copy(module).eval()
    return twin, _quantized(twin)


@torch.no_grad()
def _integers(name: str, child: nn.Module, layer: Layer) -> dict[str, tuple[Tensor, Tensor]]:
    """Weights of a layer as what is stored of them, in the shape that the scale broadcasts to, and their scales."""
    result = {}
    for key in layer.kind.weights(child):
        weight = weight_of(child, key).detach()
        if not weight.isfinite().all():
            raise ValueError(
                f"{key} of layer {name!r} is not finite and cannot be quantized; look at how training diverged."
            )
        rows, scale = stored_weight(weight, layer.scheme, layer.kind.axis)
        result[key] = rows.to(torch.float8_e4m3fn if layer.scheme.number == "float8" else torch.int8), scale
    return result


@torch.no_grad()
def _fold_into(root: nn.Module, child: nn.Module, layer: Layer) -> Tensor | None:
    """Take the batch norm behind a layer out of ``root`` and put its shift into the layer's bias; returns its factor."""
    norm = layer.norm
    if norm is None:
        return None
    factor, shift = factor_and_shift(norm)
    dtype = weight_of(child, layer.kind.weights(child)[0]).dtype
    child.bias = nn.Parameter(shifted(getattr(child, "bias", None), factor, shift, dtype))
    for parent in list(root.modules()):
        for name, inner in list(parent._modules.items()):
            if inner is norm:
                parent._modules[name] = nn.Identity()
    return factor


def _span(layer: Layer, slot: int | None) -> tuple[float, float] | None:
    return None if slot is None else layer.shared.ranges.span(layer.shared.ranges.names[slot])


def _numbers(span: tuple[float, float] | None) -> tuple[float, int]:
    assert span is not None
    scale, zero = activation_parameters(torch.tensor(span[0]), torch.tensor(span[1]))
    return scale.item(), int(zero.item())


def _chooser(outputs: Outputs | Callable[[str], bool]) -> Callable[[Layer], bool]:
    if callable(outputs):
        return lambda layer: outputs(layer.name)
    choices: dict[str, Callable[[Layer], bool]] = {
        "none": lambda layer: False,
        "additions": lambda layer: layer.feeds_addition,
        "all": lambda layer: True,
    }
    if outputs not in choices:
        raise ValueError(f"outputs={outputs!r} is unknown; it is one of {', '.join(choices)}, or a function of a name.")
    return choices[outputs]

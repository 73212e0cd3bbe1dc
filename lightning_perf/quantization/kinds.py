"""Which layers can be quantized, as rows: their weights, the axis of their output channels, their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from lightning_perf.quantization.schemes import Scheme

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Kind:
    """A row: layers of ``types`` and their subclasses.

    Args:
        name: what messages call it.
        family: what schemes call it.
        types: classes of torch.
        axis: of the output channels in every weight.
        inputs: parameters of ``forward`` that are rounded where activations are.
        weights: names of the weights that a layer has; the default is ``weight``.
    """

    name: str
    family: str
    types: tuple[type[nn.Module], ...]
    axis: int = 0
    inputs: tuple[str, ...] = ()
    weights: Callable[[nn.Module], tuple[str, ...]] = lambda layer: ("weight",)

    def __reduce__(self) -> tuple[Callable[[str], Kind], tuple[str]]:
        return kind_named, (self.name,)


def _attention_weights(layer: nn.Module) -> tuple[str, ...]:
    inner = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return (*(name for name in inner if layer._parameters.get(name) is not None), "out_proj.weight")


def _recurrent_weights(layer: nn.Module) -> tuple[str, ...]:
    if isinstance(layer, nn.RNNBase):
        return tuple(name for name in layer._flat_weights_names if name.startswith("weight"))
    return ("weight_ih", "weight_hh")


KINDS = (
    Kind("convolution", "convolution", _CONVOLUTIONS, inputs=("input",)),
    Kind("transposed convolution", "convolution", _TRANSPOSED, axis=1, inputs=("input",)),
    Kind("linear", "linear", (nn.Linear,), inputs=("input",)),
    Kind("embedding", "embedding", (nn.Embedding, nn.EmbeddingBag)),
    Kind("attention", "attention", (nn.MultiheadAttention,), 0, ("query", "key", "value"), _attention_weights),
    Kind("recurrent", "recurrent", (nn.RNNBase, nn.RNNCellBase), weights=_recurrent_weights),
)


def kind_named(name: str) -> Kind:
    """The row of that name, such as ``convolution``."""
    return next(kind for kind in KINDS if kind.name == name)


def kind_of(layer: nn.Module) -> Kind | None:
    """The row of a layer; None if it is no layer that can be quantized."""
    return next((kind for kind in KINDS if isinstance(layer, kind.types)), None)


def reason_against(layer: nn.Module, kind: Kind, scheme: Scheme) -> str | None:
    """Why a layer must stay in float under a scheme, in words that follow "because"; None if it need not."""
    if kind.family not in scheme.layers:
        return f"scheme {scheme.name} covers {', '.join(scheme.layers)} only"
    if "forward" in vars(layer):
        return "its forward was replaced on the instance"
    if getattr(layer, "_compiled_call_impl", None) is not None:
        return "it is compiled already; compile after quantization"
    if any(nn.parameter.is_lazy(parameter) for parameter in layer.parameters()):
        return "it is lazy and has no weights yet; run it once before"
    weights = kind.weights(layer)
    if nn.utils.parametrize.is_parametrized(layer) or not weights:
        return "its weight is computed by a parametrization"
    return _reason_of_weights(layer, kind, scheme)


def _reason_of_weights(layer: nn.Module, kind: Kind, scheme: Scheme) -> str | None:
    values = [weight_of(layer, name) for name in kind.weights(layer)]
    if any(not isinstance(value, nn.Parameter) for value in values):
        return "its weight is not a parameter (weight norm or pruning of torch computes it)"
    if any(not value.is_floating_point() for value in values):
        return f"its weight is {values[0].dtype}"
    if getattr(layer, "sparse", False):
        return "its gradients are sparse"
    if getattr(layer, "max_norm", None) is not None:
        return "max_norm writes to its weight in forward"
    if kind.name == "transposed convolution" and getattr(layer, "groups", 1) != 1:
        return "output channels of a grouped transposed convolution do not lie along one axis"
    if scheme.group is not None and values[0].shape[1] % scheme.group:
        return f"its {values[0].shape[1]} inputs do not divide into groups of {scheme.group}"
    return None


def weight_of(layer: nn.Module, name: str) -> nn.Parameter:
    """A weight of a layer or of a part of it, such as ``out_proj.weight``."""
    owner, attribute = owner_of(layer, name)
    return getattr(owner, attribute)


def owner_of(layer: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a weight, and its name there."""
    path, _, attribute = name.rpartition(".")
    return layer.get_submodule(path) if path else layer, attribute


def unquantized_reason(module: nn.Module) -> str | None:
    """Why a module with weights of its own is in float though no row is its; None if it has no weights to speak of."""
    if isinstance(module, NORMS):
        return None
    own = module.named_parameters(recurse=False)
    matrices = [name for name, value in own if not nn.parameter.is_lazy(value) and value.dim() > 1]
    if not matrices:
        return None
    return f"{type(module).__name__} computes with {', '.join(matrices)} itself"

"""Which parameters of a module are weights worth pruning, and why each of the others is left out."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
#: Layers by type, and how the names of their weights begin.
_LAYERS: tuple[tuple[tuple[type[nn.Module], ...], tuple[str, ...]], ...] = (
    ((_ConvNd, nn.Linear, nn.Bilinear), ("weight",)),
    ((nn.MultiheadAttention,), ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")),
    ((nn.RNNBase, nn.RNNCellBase), ("weight_",)),
)
_COMPILED = "_orig_mod."


@dataclass(frozen=True)
class Target:
    """A weight to prune: its qualified name and the module that owns it, from which it is read anew at each use."""

    name: str
    owner: nn.Module
    attribute: str

    @property
    def weight(self) -> nn.Parameter:
        """The parameter."""
        weight = self.owner._parameters[self.attribute]
        assert weight is not None
        return weight

    @property
    def input_dimension(self) -> int:
        """The dimension along which N:M groups lie: input features or channels."""
        return 0 if isinstance(self.owner, _ConvTransposeNd) else 1


@dataclass
class Targets:
    """The weights to prune by name, and the names of what is left out by reason."""

    found: dict[str, Target] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def why_not(self) -> str:
        """What is left out, in one sentence part, each reason with the first names.

        Example::

            >>> find_targets(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))).why_not()
            'biases (0.bias, 1.bias), normalization (1.weight)'
        """
        return ", ".join(f"{reason} ({_first(names)})" for reason, names in self.left_out.items())


def find_targets(module: nn.Module, ignore: Sequence[str] = (), *, group: int = 1, trainable: bool = True) -> Targets:
    """The weights of convolutions, linear layers, attention projections and recurrent layers of ``module``.

    Everything goes by identity: a weight with two names is found once, under the first. Left out, each with its reason:
    biases, parameters of normalization, embeddings and what is tied to one, frozen parameters, what a lazy module has not
    made yet, parametrized weights, parameters of other modules, and what ``ignore`` names.

    Args:
        module: the module.
        ignore: patterns (``fnmatch``) of qualified names of parameters or modules; a module stands for all inside it.
        group: the size along the input dimension must be a multiple of this (the M of N:M).
        trainable: leave frozen weights out.

    Raises:
        ValueError: a pattern that matches nothing; nothing to prune.

    Example::

        >>> targets = find_targets(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)))
        >>> list(targets.found), targets.left_out
        (['0.weight'], {'biases': ['0.bias', '1.bias'], 'normalization': ['1.weight']})
    """
    embeddings = _embeddings(module)
    ignored = ignored_by(module, ignore)
    targets, seen = Targets(), set[int]()
    for name, owner, attribute, parameter in _parameters(module):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        reason = _reason(owner, attribute, parameter, embeddings)
        if reason is None and trainable and not parameter.requires_grad:
            reason = "frozen"
        if id(parameter) in ignored:
            reason = f"ignored by {ignored[id(parameter)]!r}"
        if reason is None:
            target = Target(name, owner, attribute)
            if parameter.ndim > target.input_dimension and parameter.size(target.input_dimension) % group == 0:
                targets.found[name] = target
                continue
            reason = f"no multiple of {group} inputs"
        targets.left_out.setdefault(reason, []).append(name)
    if not targets.found:
        raise ValueError(
            f"{type(module).__name__} has no weight to prune; left out: {targets.why_not() or 'nothing, it is empty'}. "
            "Convolutions, linear, attention and recurrent layers have some: leave these out of ignore=, and trainable."
        )
    return targets


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    for prefix, owner in module.named_modules():
        for attribute, parameter in owner._parameters.items():
            if parameter is not None:
                name = f"{prefix}.{attribute}" if prefix else attribute
                yield name.replace(_COMPILED, ""), owner, attribute, parameter


def _reason(owner: nn.Module, attribute: str, parameter: nn.Parameter, embeddings: dict[int, str]) -> str | None:
    """Why a parameter is not pruned; None if it is."""
    if isinstance(owner, _EMBEDDINGS):
        return "embeddings"
    if id(parameter) in embeddings:
        return f"tied to the embedding {embeddings[id(parameter)]}"
    if attribute.startswith("bias") or attribute.endswith("bias") or attribute.startswith(("bias_", "in_proj_bias")):
        return "biases"
    if isinstance(owner, _NORMS) or "norm" in type(owner).__name__.lower():
        return "normalization"
    if isinstance(owner, ParametrizationList):
        return "parametrized, so computed from other tensors"
    starts = next((starts for types, starts in _LAYERS if isinstance(owner, types)), None)
    if starts is None or not attribute.startswith(starts):
        return f"not a weight of a layer, but {attribute!r} of {type(owner).__name__}"
    if attribute.startswith(("weight_g", "weight_v", "weight_orig")) and isinstance(owner, _LAYERS[0][0]):
        return "parametrized, so computed from other tensors"
    if is_lazy(parameter):
        return "without a shape yet (lazy modules)"
    return "of no real floating-point type" if not parameter.is_floating_point() else None


def _embeddings(module: nn.Module) -> dict[int, str]:
    """Names of the embeddings' weights by identity."""
    return {id(p): name for name, owner, _, p in _parameters(module) if isinstance(owner, _EMBEDDINGS)}


def ignored_by(module: nn.Module, patterns: Sequence[str]) -> dict[int, str]:
    """The pattern that takes out a parameter, by identity; every name of a tied or aliased one counts."""
    if isinstance(patterns, str):
        raise ValueError(f"ignore={patterns!r} must be a list of patterns, such as [{patterns!r}].")
    parameters = [(name.replace(_COMPILED, ""), p) for name, p in module.named_parameters(remove_duplicate=False)]
    ignored: dict[int, str] = {}
    for pattern in patterns:
        hits = [p for name, p in parameters if any(fnmatch.fnmatchcase(part, pattern) for part in _prefixes(name))]
        if not hits:
            raise ValueError(
                f"ignore={pattern!r} matches no parameter and no module of {type(module).__name__}; there are "
                f"{_first([name for name, _ in parameters], 6)}. Patterns are qualified names, such as 'net.0' or '*.head'."
            )
        for parameter in hits:
            ignored.setdefault(id(parameter), pattern)
    return ignored


def _prefixes(name: str) -> Iterator[str]:
    """The name itself and every module that it lies in: ``a.b.weight``, ``a.b``, ``a``."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _first(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more

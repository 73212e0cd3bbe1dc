"""Parameter groups inferred from a module: which parameters decay, and which get settings of their own.

The kind of module that owns a parameter decides before its name and shape do, and everything goes by identity, so that
a tied weight is in one group once and a module registered under two names counts once.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# Layers whose weights decay whatever their shape or name looks like.
_LAYERS = (_ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_BIAS = re.compile(r"bias$|(?:^|_)bias_")
_POSITION_OR_TOKEN = re.compile(r"(?:^|_)pos(?:$|_|ition|emb|enc)|(?:^|_)tokens?$")
_RESERVED = ("params", "name", "names", "param_names")


@dataclass
class _Entry:
    """One parameter with every qualified name it has, and whether it decays."""

    parameter: Tensor
    names: list[str] = field(default_factory=list)
    decays: bool = True


def infer_groups(
    module: nn.Module,
    *,
    weight_decay: float,
    groups: Mapping[str, Mapping[str, object]] | None = None,
    parameters: Iterable[Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Split the parameters of ``module`` into groups with and without weight decay, and into the user's own.

    No decay for: parameters of normalization layers (torch's, and classes with "norm" in their name), biases, all with
    at most one dimension, weights of embeddings (and what is tied to one), what a ``no_weight_decay()`` of the module
    or of a submodule names, and learned positions and tokens (a parameter outside torch's layers with three or more
    dimensions and a leading 1, or named like ``pos_embed`` or ``cls_token``).

    Args:
        module: The module.
        weight_decay: Decay of the groups that have some.
        groups: Pattern of qualified names (``fnmatch``) -> overrides such as ``{"lr": 1e-4}``. The first pattern that
            matches one of a parameter's names wins. An override of ``weight_decay`` holds for all that match.
        parameters: Take only these, as selected by the user; frozen ones among them stay in, for the user may mean to
            thaw them later. Default: every parameter of the module with ``requires_grad``.

    Returns:
        Groups for a torch optimizer, in an order that depends on the module alone, each with ``params``, ``name``,
        ``param_names``, ``weight_decay`` and its overrides. Empty groups are left out.

    Raises:
        ValueError: nothing to optimize; a pattern that gets no parameter; a parameter of a lazy module; a negative
            decay; an override that is not a mapping, or of a reserved key.

    Source: the rules of timm's ``param_groups_weight_decay``, with module types in front and patterns that must match
    as in torchtitan.

    Example::
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
        >>> [(group["name"], group["param_names"]) for group in infer_groups(net, weight_decay=0.1)]
        [('decay', ['0.weight']), ('no_decay', ['0.bias', '1.weight', '1.bias'])]
    """
    if not weight_decay >= 0 or weight_decay == float("inf"):
        raise ValueError(f"weight_decay={weight_decay!r} must be a finite number of at least 0, such as 0.01.")
    patterns = {pattern: _checked(pattern, overrides) for pattern, overrides in (groups or {}).items()}
    entries = _selected(_entries(module), parameters)
    if not entries:
        raise ValueError(
            f"{type(module).__name__} has no parameter to optimize: none of those asked for has requires_grad=True; "
            "leave at least one trainable."
        )
    for entry in entries:
        if is_lazy(entry.parameter):
            raise ValueError(
                f"Parameter {entry.names[0]!r} belongs to a lazy module and has no shape yet; run one batch through the "
                "module (for example in setup or configure_model) before the optimizer is built."
            )
    found = _split(entries, patterns, weight_decay)
    _check_patterns_used(patterns, found, module)
    placed = [id(parameter) for group in found for parameter in group["params"]]
    assert len(placed) == len(set(placed)) == len(entries)
    return found


def describe_groups(groups: Iterable[Mapping[str, Any]]) -> str:
    """A table of parameter groups: name, tensors, parameters, weight decay, learning rate, first names.

    Works for the groups of any torch optimizer, whether or not :func:`infer_groups` made them.

    Example::
        >>> print(describe_groups(infer_groups(nn.Linear(3, 2), weight_decay=0.1)))
        group     tensors  parameters  weight decay  lr  first names
        decay     1        6           0.1           -   weight
        no_decay  1        2           0             -   bias
    """
    rows = [("group", "tensors", "parameters", "weight decay", "lr", "first names")]
    for index, group in enumerate(groups):
        names = list(group.get("param_names") or group.get("names") or [])
        rows.append(
            (
                str(group.get("name", index)),
                str(len(group["params"])),
                f"{sum(parameter.numel() for parameter in group['params']):,}",
                _number(group.get("weight_decay")),
                _number(group.get("lr")),
                ", ".join(names[:3]) + (", ..." if len(names) > 3 else ""),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _number(value: object) -> str:
    return "-" if value is None else f"{float(value):g}"  # type: ignore[arg-type]


def _checked(pattern: str, overrides: object) -> dict[str, object]:
    if not isinstance(overrides, Mapping):
        raise ValueError(f"groups[{pattern!r}]={overrides!r} must map settings to values, such as {{'lr': 1e-4}}.")
    for key in _RESERVED:
        if key in overrides:
            raise ValueError(f"groups[{pattern!r}] sets {key!r}, which is filled in by the grouping; leave it out.")
    lr = overrides.get("lr", 1.0)
    if isinstance(lr, int | float) and not 0 < lr < float("inf"):
        raise ValueError(
            f"groups[{pattern!r}] has lr={lr!r}; it must be a finite number above 0 "
            "(to freeze parameters, set requires_grad=False on them)."
        )
    return dict(overrides)


def _entries(module: nn.Module) -> dict[int, _Entry]:
    """Every parameter of the module by identity, in the order of ``named_parameters``."""
    entries: dict[int, _Entry] = {}
    modules = dict(module.named_modules(remove_duplicate=False))
    spared: set[int] = set()
    for prefix, owner in modules.items():
        own = {name: parameter for name, parameter in owner._parameters.items() if parameter is not None}
        for name, parameter in own.items():
            entry = entries.setdefault(id(parameter), _Entry(parameter))
            entry.names.append(f"{prefix}.{name}" if prefix else name)
            entry.decays &= not _without_decay(*_owner_of(owner, prefix, name, modules), parameter)
        spared |= _spared_by(owner)
    for identity in spared & set(entries):
        entries[identity].decays = False
    return entries


def _owner_of(owner: nn.Module, prefix: str, name: str, modules: Mapping[str, nn.Module]) -> tuple[nn.Module, str]:
    """The module and the name under which a parameter is used: torch moves parametrized ones into a list."""
    if isinstance(owner, ParametrizationList):
        parent, _, tensor = prefix.rpartition(".")
        return modules[parent.rpartition(".")[0]], tensor
    return owner, name


def _without_decay(owner: nn.Module, name: str, parameter: Tensor) -> bool:
    if isinstance(owner, _NORMS + _EMBEDDINGS) or _BIAS.search(name):
        return True
    if is_lazy(parameter):
        return False
    if parameter.ndim <= 1:
        return True
    if isinstance(owner, _LAYERS):
        return False
    if re.search("norm", type(owner).__name__, re.IGNORECASE):
        return True
    return (parameter.ndim >= 3 and parameter.shape[0] == 1) or bool(_POSITION_OR_TOKEN.search(name))


def _spared_by(owner: nn.Module) -> set[int]:
    """The parameters named by the module's own ``no_weight_decay()``, a convention of timm and others."""
    tell = getattr(owner, "no_weight_decay", None)
    if not callable(tell):
        return set()
    patterns = [str(pattern) for pattern in tell()]  # type: ignore[union-attr]
    return {
        id(parameter)
        for name, parameter in owner.named_parameters(remove_duplicate=False)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def _selected(entries: dict[int, _Entry], parameters: Iterable[Tensor] | None) -> list[_Entry]:
    if parameters is None:
        return [entry for entry in entries.values() if entry.parameter.requires_grad]
    wanted = {id(parameter): parameter for parameter in parameters}
    chosen = [entry for identity, entry in entries.items() if identity in wanted]
    # What the user optimizes besides the module has no name here, only a shape.
    strangers = [parameter for identity, parameter in wanted.items() if identity not in entries]
    for index, parameter in enumerate(strangers):
        chosen.append(_Entry(parameter, [f"outside_module.{index}"], decays=is_lazy(parameter) or parameter.ndim > 1))
    if not any(entry.parameter.requires_grad for entry in chosen):
        return []
    return chosen


def _split(
    entries: Iterable[_Entry], patterns: Mapping[str, Mapping[str, object]], weight_decay: float
) -> list[dict[str, Any]]:
    table: dict[tuple[str | None, bool], dict[str, Any]] = {}
    for pattern in (*patterns, None):
        for decays in (True, False):
            label = "decay" if decays else "no_decay"
            overrides = patterns[pattern] if pattern is not None else {}
            table[pattern, decays] = {
                "params": [],
                "name": label if pattern is None else f"{pattern} ({label})",
                "param_names": [],
                "weight_decay": weight_decay if decays else 0.0,
                **overrides,
            }
            if "weight_decay" in overrides:
                table[pattern, decays]["name"] = pattern
    for entry in entries:
        pattern = next((p for p in patterns if any(fnmatch.fnmatchcase(name, p) for name in entry.names)), None)
        decays = entry.decays or (pattern is not None and "weight_decay" in patterns[pattern])
        group = table[pattern, decays]
        group["params"].append(entry.parameter)
        group["param_names"].append(entry.names[0])
    return [group for group in table.values() if group["params"]]


def _check_patterns_used(
    patterns: Mapping[str, Mapping[str, object]], found: Iterable[Mapping[str, Any]], module: nn.Module
) -> None:
    used = {group["name"] for group in found}
    for pattern in patterns:
        if used.isdisjoint({pattern, f"{pattern} (decay)", f"{pattern} (no_decay)"}):
            names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
            matched = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
            why = (
                f"what it matches, such as {matched[0]!r}, went to an earlier pattern or is not trained"
                if matched
                else f"names look like {', '.join(repr(name) for name in names[:3])}"
            )
            raise ValueError(f"groups[{pattern!r}] gets no parameter: {why}; correct the pattern or leave it out.")

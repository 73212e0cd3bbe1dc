"""Prepare a module for quantization, and take it back: which layers, under which scheme, and why not the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from lightning_perf.quantization.kinds import KINDS, NORMS, Kind, kind_of, reason_against, unquantized_reason
from lightning_perf.quantization.layers import (
    BLOCK,
    LAYER,
    NORM,
    Layer,
    Preparation,
    make,
    prepared,
    records,
    unmake,
)
from lightning_perf.quantization.observers import Ranges
from lightning_perf.quantization.schemes import SCHEMES, Scheme, get_scheme
from lightning_perf.quantization.swapping import role_of

FLOAT = "float"
_BLOCKS = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def prepare(
    module: nn.Module,
    scheme: str = "int8",
    *,
    ignore: Sequence[str] = (),
    overrides: Mapping[str, str] | None = None,
) -> Preparation:
    """Swap the classes of all layers that ``scheme`` covers, in place.

    The module then computes with rounded weights, and with rounded inputs of layers as soon as their ranges are known.
    Parameters, buffers, ``state_dict``, hooks and the layers' own ``forward`` stay. A module prepared alike is left alone.

    Args:
        module: any module; it need not be traceable.
        scheme: a name of :data:`~lightning_perf.quantization.schemes.SCHEMES`.
        ignore: qualified names to leave in float, with ``*`` and ``?``; a name covers everything below it.
        overrides: such names -> another scheme, or ``"float"``; the first match wins.

    Returns:
        the switches and ranges that all its layers share.

    Raises:
        ValueError: an unknown scheme, a pattern that matches no layer or none that is left, a layer that is ignored and has
            a scheme, no layer that can be quantized, or a module that is prepared differently.

    Example::

        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> prepare(net, ignore=["2"]).left
        {'2': 'it is ignored'}
        >>> sorted(net.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
        True
        >>> type(unprepare(net)[0]) is nn.Linear
        True
    """
    default = get_scheme(scheme)
    if isinstance(ignore, str):
        raise ValueError(f"ignore={ignore!r} must be a list of names; use ignore=[{ignore!r}].")
    for pattern, value in (overrides or {}).items():
        if value not in (FLOAT, *SCHEMES):
            raise ValueError(
                f"overrides for {pattern!r}: scheme={value!r} is not known; choose one of {FLOAT}, {', '.join(SCHEMES)}."
            )
    chosen, left = _choose(module, default, ignore, overrides or {})
    existing = preparation(module)
    if existing is not None:
        mine = {name: layer.scheme.name for name, _, layer in records(module)}
        if mine != {name: row.name for name, (_, _, row) in chosen.items()}:
            raise ValueError(
                f"{type(module).__name__} is prepared already, for scheme {existing.scheme.name} with {len(mine)} layers, "
                f"and not as asked now (scheme={scheme!r}, ignore={list(ignore)}, overrides={dict(overrides or {})}); use "
                "lightning_perf.unprepare(module) first."
            )
        return existing
    if not chosen:
        kinds = ", ".join(kind.name for kind in KINDS if kind.family in default.layers)
        why = "".join(f" {name} stays in float, because {reason}." for name, reason in list(left.items())[:5])
        raise ValueError(
            f"{type(module).__name__} has no layer that scheme={scheme!r} can quantize ({kinds}).{why} Use another scheme, "
            "or leave quantization out."
        )
    return _swap_all(module, default, chosen, left)


def unprepare(module: nn.Module) -> nn.Module:
    """Give every layer its own class back, in place; ranges are forgotten, weights stay. Returns the module.

    Example::

        >>> import lightning_perf as lp
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> lp.unprepare(net) is net
        True
    """
    for child in prepared(module):
        unmake(child)
    return module


def preparation(module: nn.Module) -> Preparation | None:
    """What the layers of a prepared module share; None if it is not prepared.

    It travels with deep copies and pickles of the module.
    """
    return next((layer.shared for _, _, layer in records(module)), None)


def has_ranges(module: nn.Module) -> bool:
    """Whether a module is prepared and knows the range of an activation, from training or calibration.

    Example::

        >>> has_ranges(nn.Sequential(nn.Linear(4, 2)))
        False
    """
    shared = preparation(module)
    return shared is not None and any(shared.ranges.known)


def fold(layer: Layer, norm: nn.Module) -> None:
    """Pair a layer with the batch norm that follows it."""
    layer.norm, layer.unfolded = norm, None
    if role_of(norm) is None:
        make(norm, NORM, layer)


def find_norms_again(module: nn.Module) -> None:
    """Pair layers with what took the place of their batch norms, as a conversion to ``SyncBatchNorm`` and back does."""
    children = set(module.modules())
    for _, _, layer in records(module):
        norm = layer.norm
        if norm is None or norm in children:
            continue
        heir = next((child for child in children if isinstance(child, NORMS) and _same_statistics(child, norm)), None)
        if heir is None:
            layer.part("its batch norm is no longer part of the module")
        else:
            fold(layer, heir)


def _same_statistics(one: nn.Module, other: nn.Module) -> bool:
    shared = "weight" if getattr(other, "weight", None) is not None else "running_mean"
    return getattr(one, shared) is getattr(other, shared)


def state_of(module: nn.Module) -> dict[str, Any]:
    """Ranges, pairs and counts of a prepared module as tensors and plain containers."""
    shared = preparation(module)
    if shared is None:
        return {}
    names = {child: name for name, child in module.named_modules()}
    layers = [layer for _, _, layer in records(module)]
    return {
        "scheme": shared.scheme.name,
        "ranges": shared.ranges.state(),
        "norms": {layer.name: names[layer.norm] for layer in layers if layer.norm in names},
        "unfolded": {layer.name: layer.unfolded for layer in layers if layer.unfolded},
        "additions": [layer.name for layer in layers if layer.feeds_addition],
        "macs": dict(shared.macs),
        "head": shared.head,
        "watched": dict(shared.watched),
        "inactive": {layer.name: layer.reason for layer in layers if not layer.active},
        "confirmed": [layer.name for layer in layers if layer.confirmed],
    }


def load_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Take up what :func:`state_of` returned for a module with the same names."""
    shared = preparation(module)
    if shared is None or not state:
        return
    shared.ranges.load(state["ranges"])
    shared.head = state["head"]
    shared.macs, shared.watched = dict(state["macs"]), dict(state["watched"])
    children = dict(module.named_modules())
    for name, _, layer in records(module):
        layer.active, layer.reason = name not in state["inactive"], state["inactive"].get(name)
        layer.confirmed = name in state["confirmed"]
        layer.unfolded, layer.feeds_addition = state["unfolded"].get(name), name in state["additions"]
        norm = state["norms"].get(name)
        if layer.norm is not None and (norm is None or children.get(norm) is not layer.norm):
            unmake(layer.norm)
            layer.norm = None
        if norm in children:
            fold(layer, children[norm])


Chosen = dict[str, tuple[nn.Module, Kind, Scheme]]


def _choose(
    module: nn.Module, default: Scheme, ignore: Sequence[str], overrides: Mapping[str, str]
) -> tuple[Chosen, dict[str, str]]:
    chosen: Chosen = {}
    left: dict[str, str] = {}
    unused = {**dict.fromkeys(ignore, "ignore"), **dict.fromkeys(overrides, "overrides")}
    shadowed: dict[str, str] = {}
    for name, child, kind in _candidates(module):
        if kind is None:
            reason = unquantized_reason(child)
            if reason is not None:
                left[name] = reason
            continue
        ignored = [pattern for pattern in ignore if _matches(name, pattern)]
        named = [pattern for pattern in overrides if _matches(name, pattern)]
        scheme = _agreed(name, default, ignored, named, overrides)
        for pattern in (*ignored, *named[:1]):
            unused.pop(pattern, None)
        shadowed.update(dict.fromkeys(named[1:], named[0] if named else ""))
        if scheme is None:
            left[name] = "it is ignored" if ignored else "overrides keep it in float"
            continue
        reason = reason_against(child, kind, scheme)
        if reason is None:
            chosen[name] = child, kind, scheme
        else:
            left[name] = reason
    for pattern, argument in unused.items():
        if pattern in shadowed:
            raise ValueError(
                f"overrides: {pattern!r} gives no layer its scheme, since the first match wins and {shadowed[pattern]!r} "
                "comes first; put the narrower one first."
            )
        raise ValueError(
            f"{argument}: {pattern!r} matches no layer that could be quantized; the layers are "
            f"{', '.join(name for name, _, kind in _candidates(module) if kind is not None) or 'none'}."
        )
    return chosen, left


def _agreed(
    name: str, default: Scheme, ignored: Sequence[str], named: Sequence[str], overrides: Mapping[str, str]
) -> Scheme | None:
    """The scheme of a layer by the patterns that match it; None: float."""
    scheme = overrides[named[0]] if named else default.name
    if ignored and named and scheme != FLOAT:
        raise ValueError(
            f"layer {name!r} is named by ignore ({ignored[0]!r}) and by overrides ({named[0]!r}: {scheme!r}); a layer stays "
            "in float or has a scheme, not both. Take it out of one of them."
        )
    return None if ignored or scheme == FLOAT else get_scheme(scheme)


def _candidates(module: nn.Module) -> Iterator[tuple[str, nn.Module, Kind | None]]:
    """Every module but what lies inside of a layer, such as the output projection of an attention."""
    inside: set[nn.Module] = set()
    for name, child in module.named_modules():
        if child in inside:
            continue
        kind = kind_of(child)
        if kind is not None:
            inside.update(child.modules())
        yield name, child, kind


def _matches(name: str, pattern: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: end + 1]), pattern) for end in range(len(parts)))


def _swap_all(module: nn.Module, default: Scheme, chosen: Chosen, left: dict[str, str]) -> Preparation:
    slots = list(_slots(chosen))
    shared = Preparation(default, Ranges(slots), left)
    index = {name: slot for slot, name in enumerate(slots)}
    for name, (child, kind, scheme) in chosen.items():
        inputs = kind.inputs if scheme.activations == "static" else ()
        layer = Layer(name, kind, scheme, shared, {key: index[_input(name, key)] for key in inputs})
        layer.output = index.get(_output(name))
        make(child, LAYER, layer)
    for child in list(module.modules()):
        if isinstance(child, _BLOCKS) and any(role_of(inner) == LAYER.name for inner in child.modules()):
            make(child, BLOCK, None)
    return shared


def _slots(chosen: Chosen) -> Iterable[str]:
    for name, (_, kind, scheme) in chosen.items():
        if scheme.activations == "static" and kind.inputs:
            yield from (_input(name, key) for key in kind.inputs)
            yield _output(name)


def _input(name: str, key: str) -> str:
    return f"{name}<{key}"


def _output(name: str) -> str:
    return f"{name}>"

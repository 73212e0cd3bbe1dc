"""Which parameters Muon takes: the hidden matrices of a module, told by kind of layer and position before any batch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_perf.optim.muon import as_stack

_ROUTED = (nn.Linear, _ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_HEAD = re.compile(r"(?:^|\.)(?!multi_head)(?:\w+_)?(?:head|classifier|output_proj|fc_out)(?:\.|$)")
_SMALLEST_SIDE = 4
_LONGEST_SHAPE = 128
_GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3}


def muon_groups(module: nn.Module, groups: Iterable[Mapping[str, Any]], *, split: bool = True) -> list[dict[str, Any]]:
    """Tell in ``groups`` which parameters are Muon's, as its ``matrices`` wants it.

    Muon takes weights of Linear, convolution (filters flattened, groups of a grouped one as blocks), attention (packed
    query, key and value as three blocks) and recurrent layers (packed gates as blocks, each of them a map of its own).
    AdamW keeps: everything else, so embeddings and what is tied to one, norms, biases, bare and parametrized parameters;
    the first layer (unless an embedding comes before it) and the last, by order of registration; layers called head,
    classifier, output_proj, fc_out or some_head; and degenerate shapes: a side below 4, or an aspect above 128.

    Registration is not execution. Where a module registers its layers in another order than it calls them, or has
    several inputs or outputs, say so: a ``matrices`` in a group (an override for a pattern of names) wins.

    Args:
        module: The module.
        groups: Groups such as :func:`lightning_perf.optim.infer_groups` returns; they are not changed.
        split: Split a group with members of both kinds in two; otherwise all groups stay as they are.

    Raises:
        ValueError: in the optimizer, for an override that does not fit.

    Source: the rules of https://github.com/KellerJordan/Muon and of timm's routing, by kinds of layers instead of names.

    Example::
        >>> net = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 8), nn.Linear(8, 3))
        >>> for group in muon_groups(net, [{"params": list(net.parameters()), "name": "all"}]):
        ...     print(group["name"], [tuple(p.shape) for p in group["params"]], group["matrices"])
        all (muon) [(8, 8)] [1]
        all [(8, 9), (8,), (8,), (3, 8), (3,)] [0, 0, 0, 0, 0]
    """
    ready = [dict(group) for group in groups]
    found = hidden_matrices(module, [p for group in ready for p in group["params"]])
    finished = []
    for group in ready:
        given = group.get("matrices")
        if given is not None:
            counts = [given] * len(group["params"]) if isinstance(given, int) else list(given)
        else:
            counts = [found.get(id(parameter), 0) for parameter in group["params"]]
        mixed = any(counts) and not all(counts)
        for wanted in (True, False) if split and mixed else (None,):
            part = _part(group, counts, wanted)
            if "name" in group and any(part["matrices"]) and split:
                part["name"] = f"{group['name']} (muon)"
            finished.append(part)
    return finished


def hidden_matrices(module: nn.Module, parameters: Iterable[Tensor]) -> dict[int, int]:
    """How many matrices each hidden parameter holds, by ``id``; what is not Muon's is missing.

    Args:
        module: The module.
        parameters: What is optimized: the last layer is the last one with a parameter among these.

    Example::
        >>> net = nn.Sequential(nn.Embedding(9, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 9))
        >>> [hidden_matrices(net, net.parameters()).get(id(p), 0) for p in net.parameters()]
        [0, 3, 0, 1, 0, 0, 0]
    """
    optimized = {id(parameter) for parameter in parameters}
    found: dict[int, int] = {}
    layers: list[tuple[str, nn.Module]] = []
    embedded: set[int] = set()
    for name, layer in module.named_modules():
        if isinstance(layer, _EMBEDDINGS):
            embedded |= {id(parameter) for parameter in layer.parameters(recurse=False)}
            layers.append((name, layer))
        elif isinstance(layer, _ROUTED):
            layers.append((name, layer))
            for key, parameter in layer.named_parameters(recurse=False):
                count = _matrices(layer, key, parameter)
                if id(parameter) in optimized and count:
                    found[id(parameter)] = count
    for identity in embedded | _ends(layers, optimized) | _heads(module):
        found.pop(identity, None)
    return found


def _matrices(layer: nn.Module, key: str, parameter: Tensor) -> int:
    """How many matrices a layer's parameter holds; 0 for what is none."""
    count = 0
    if isinstance(layer, nn.MultiheadAttention):
        count = {"in_proj_weight": 3, "q_proj_weight": 1, "k_proj_weight": 1, "v_proj_weight": 1}.get(key, 0)
    elif isinstance(layer, nn.RNNBase | nn.RNNCellBase):
        if key.startswith(("weight_ih", "weight_hh")):
            count = _GATES.get(getattr(layer, "mode", type(layer).__name__), 1)
        elif key.startswith("weight_hr"):
            count = 1
    elif key == "weight":
        count = layer.groups if isinstance(layer, _ConvNd) else 1
    if not count or parameter.is_complex() or parameter.ndim < 2 or parameter.size(0) % count:
        return 0
    rows, columns = as_stack(parameter, count).shape[1:] if count < parameter.size(0) else (1, 1)
    short, long = min(rows, columns), max(rows, columns)
    return count if short >= _SMALLEST_SIDE and long <= _LONGEST_SHAPE * short else 0


def _ends(layers: list[tuple[str, nn.Module]], optimized: set[int]) -> set[int]:
    """The weights that face the input and the output."""
    ends: set[int] = set()
    if layers and not isinstance(layers[0][1], _EMBEDDINGS):
        ends |= {id(p) for key, p in layers[0][1].named_parameters(recurse=False) if _faces_input(key)}
    for _, layer in reversed(layers):
        own = [p for p in layer.parameters(recurse=False) if id(p) in optimized]
        if own and isinstance(layer, nn.Linear | _ConvNd):
            return ends | {id(parameter) for parameter in own}
    return ends


def _faces_input(key: str) -> bool:
    """Of a recurrent layer only the first input weights do, not what maps the hidden state to itself."""
    return not key.startswith("weight_") or key.startswith("weight_ih_l0") or key == "weight_ih"


def _heads(module: nn.Module) -> set[int]:
    return {id(p) for name, p in module.named_parameters(remove_duplicate=False) if _HEAD.search(name)}


def _part(group: Mapping[str, Any], counts: list[int], wanted: bool | None) -> dict[str, Any]:
    """The members of ``group`` that Muon takes (or leaves), or all of them."""
    chosen = [index for index, count in enumerate(counts) if wanted is None or bool(count) is wanted]
    part = {**group, "params": [group["params"][index] for index in chosen]}
    for key in ("names", "param_names"):
        if key in group:
            part[key] = [group[key][index] for index in chosen]
    part["matrices"] = [counts[index] for index in chosen]
    return part

"""One traced copy of a module, from which any number of cuts are read off.

The dependency graph is Torch-Pruning's (Fang et al., "DepGraph", https://arxiv.org/abs/2301.12900). It cuts for good, and a
trace costs a forward pass and a walk along its graph; here what a cut has changed is put back, so that one trace serves all.
Its search for what goes together compares every operation that it meets with all that it has met, and where a view or a
concatenation was misread it goes round in a circle with ever higher indices, for minutes. Here each index of an operation is
followed once, and a channel that is not there ends the search.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_perf._optional import require
from lightning_perf.pruning.cut import Cut, Size
from lightning_perf.pruning.shapes import tensors_of

Chosen = Mapping[str, Sequence[int]]  # root layer -> output channels that go

# What Torch-Pruning reads of an operation once the graph is there: sizes and dimensions, no tensors.
_READ = (
    "_saved_dim", "_saved_self_sizes", "_saved_self_sym_sizes", "_saved_split_size", "_saved_split_sizes",
)  # fmt: skip
_ROOTS = (nn.modules.conv._ConvNd, nn.Linear)


class Trace:
    """The dependency graph of a module, on a copy of it that belongs to the trace.

    Args:
        clone: a copy in evaluation mode; afterwards it holds positions in place of weights.
        loss: runs the copy and returns a loss with its graph.

    Attributes:
        outputs: layers whose group reaches the loss itself, and cannot be cut.

    Example (``pip install 'lightning-perf[prune]'``)::

        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> trace = Trace(net, lambda net: net(torch.ones(3, 4)).square().sum())
        >>> [(name, len(scores)) for name, scores, layers in trace.groups()]
        [('2', 2), ('0', 3)]
        >>> trace.cut({"0": [1]}).keep["2.weight"]
        {1: tensor([0, 2])}
    """

    def __init__(self, clone: nn.Module, loss: Callable[[nn.Module], Tensor]) -> None:
        self._prune = require("torch_pruning", extra="prune", purpose="finding channels that depend on each other")
        for parameter in clone.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        self._clone, self._graph = clone, self._prune.DependencyGraph()
        self._graph.build_dependency(clone, None, forward_fn=lambda clone, _: loss(clone), verbose=False)
        _let_go(self._graph)
        self._widest = _widest(clone, self._graph)
        self.outputs: set[str] = set()
        self._groups = list(self._scored())
        self._shapes = {name: tensor.shape for name, tensor in tensors_of(clone)}
        self._sizes = {name: sizes_of(layer) for name, layer in clone.named_modules()}
        self._tied = _names_by_identity(clone)
        # Every entry holds its own position, so what is left tells where it was. Exact in float64.
        clone.double()
        with torch.no_grad():
            for _, tensor in tensors_of(clone):
                tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
        self._put_back = _snapshot(clone, self._graph)

    def groups(self) -> Iterator[tuple[str, Tensor | str, list[str]]]:
        """Every group of channels: the layer whose outputs they are; a score of each, or why there is none; all layers
        of which outputs would go."""
        yield from self._groups

    def cut(self, chosen: Chosen) -> Cut:
        """The cut that takes out ``chosen`` and all that depends on it.

        Raises:
            ValueError: what is left of a tensor is no rectangle of it, or tied tensors are torn apart.
        """
        try:
            for name, channels in chosen.items():
                self._group(self._clone.get_submodule(name), channels).prune()
            return self._read()
        finally:
            self._put_back()

    def _scored(self) -> Iterator[tuple[str, Tensor | str, list[str]]]:
        graph, seen = self._graph, set[str]()
        names = {layer: name for name, layer in self._clone.named_modules()}
        importance = self._prune.importance.GroupMagnitudeImportance(p=2)
        for root in [layer for layer in graph.module2node if isinstance(layer, _ROOTS)]:
            if names[root] in seen:
                continue
            layers = [names[root]]
            try:
                group = self._group(root, range(graph.get_out_channels(root)))
                layers = [
                    names[item.dep.target.module]
                    for item in group
                    if item.dep.target.module in names and graph.is_out_channel_pruning_fn(item.dep.handler)
                ]
                if any(isinstance(item.dep.target.module, graph.ops._OutputOp) for item in group):
                    self.outputs.add(names[root])
                scores = importance(group)
            except Exception as error:  # what was misread may end in anything: the reason to leave it alone
                yield names[root], first_line(error), layers
            else:
                yield names[root], "no layer scores it" if scores is None else scores.detach().cpu(), layers
            seen.update(layers)

    def _group(self, root: nn.Module, channels: Iterable[int]) -> Any:
        """Torch-Pruning's group of what has to go with output channels of a layer.

        Raises:
            ValueError: the search leads to a channel that is not there.
        """
        dependency, graph, node = self._prune.dependency, self._graph, self._graph.module2node[root]
        dependency.index_mapping.update_index_mapping(graph)
        take_out = graph.get_pruner_of_module(root).prune_out_channels
        first = dependency.Dependency(take_out, take_out, source=node, target=node)
        indices = {channel: self._prune._helpers._HybridIndex(idx=channel, root_idx=channel) for channel in channels}
        found = {(node, take_out): (first, indices)}
        waiting = [(first, list(indices.values()))]
        while waiting:
            came, fresh = waiting.pop()
            for onward in came.target.dependencies:
                if not onward.is_triggered_by(came.handler):
                    continue
                mapped = fresh
                for mapping in onward.index_mapping:
                    mapped = mapped if mapping is None else mapping(mapped)
                known = found.setdefault((onward.target, onward.handler), (onward, {}))[1]
                new = {one.idx: one for one in mapped if one.idx not in known}
                if new:
                    self._check_indices(onward, new)
                    known.update(new)
                    waiting.append((onward, list(new.values())))
        group = dependency.Group()
        group._DG = graph
        for member, members in found.values():
            if members:
                group.add_dep(member, list(members))
                group[-1].root_idxs = [one.root_idx for one in members.values()]
        return group

    def _check_indices(self, dependency: Any, indices: Iterable[int]) -> None:
        graph, node, highest = self._graph, dependency.target, max(indices)
        out = graph.is_out_channel_pruning_fn(dependency.handler)
        count = graph.get_out_channels(node) if out else graph.get_in_channels(node)
        if highest >= (self._widest if count is None else count):
            raise ValueError("a view or a concatenation was misread: it leads to channels that are not there")

    def _read(self) -> Cut:
        clone = self._clone
        after = dict([*clone.named_parameters(remove_duplicate=False), *clone.named_buffers(remove_duplicate=False)])
        keep: dict[str, dict[int, Tensor]] = {}
        for names in self._tied:
            parts = [_kept_indices(after[name], self._shapes[names[0]]) for name in names]
            if any(not _equal(part, parts[0]) for part in parts):
                raise ValueError(f"{' and '.join(names)} are one tensor, of which they would keep different parts")
            if parts[0]:
                keep[names[0]] = parts[0]
        sizes = {
            name: changed
            for name, layer in clone.named_modules()
            if (changed := {key: size for key, size in sizes_of(layer).items() if self._sizes[name].get(key) != size})
        }
        return Cut(keep, sizes)


def leaves_of(loss: Tensor) -> set[int]:
    """The parameters that the graph of a loss leads to, by identity."""
    found, seen, waiting = set[int](), set[Any](), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        waiting.extend(onward for onward, _ in node.next_functions)
    return found


def _let_go(graph: Any) -> None:
    """Let the activations of the traced step go, which the operations of its graph would keep for as long as the trace."""
    for node in graph.module2node.values():
        noted = {name: getattr(node.grad_fn, name) for name in _READ if hasattr(node.grad_fn, name)}
        node.grad_fn = SimpleNamespace(**noted)
        if "grad_fn" in vars(node.module):
            node.module.grad_fn = node.grad_fn


def sizes_of(layer: nn.Module) -> dict[str, Size]:
    """Whole numbers and tuples of them among a layer's public attributes: ``out_channels``, ``normalized_shape``."""
    return {
        key: value
        for key, value in vars(layer).items()
        if (type(value) is int or (isinstance(value, tuple) and all(type(one) is int for one in value)))
        and not key.startswith("_")
    }


def _widest(clone: nn.Module, graph: Any) -> int:
    """The most channels that any operation can have: of a layer, or of a concatenation."""
    layers = [max(tensor.shape, default=0) for _, tensor in tensors_of(clone)]
    sizes = [getattr(layer, "concat_sizes", None) or [0] for layer in graph.module2node]
    return max([*layers, *(sum(size or 0 for size in one) for one in sizes)])


def first_line(error: BaseException) -> str:
    """Class and first line of an error.

    Example::

        >>> first_line(ValueError("no such shape"))
        'ValueError: no such shape'
    """
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"


def _snapshot(clone: nn.Module, graph: Any) -> Callable[[], None]:
    """What a cut changes: attributes of layers and of the graph's own operations, and the graph; returns the way back.

    Torch-Pruning puts new tensors in place of old ones and new numbers into attributes and lists; it fills no tensor anew.
    """
    nodes = [(node, node.module) for node in graph.module2node.values()]
    layers = {
        id(one): one for one in (*clone.modules(), *(module for _, module in nodes)) if isinstance(one, nn.Module)
    }
    attributes = [(layer, _copied(vars(layer))) for layer in layers.values()]
    mappings = [(dependency, list(dependency.index_mapping)) for node, _ in nodes for dependency in node.dependencies]
    tables = {name: _copied(vars(graph)[name]) for name in ("module2node", "_param_to_name", "_pruning_history")}

    def put_back() -> None:
        for layer, before in attributes:
            vars(layer).clear()
            vars(layer).update(_copied(before))
        for node, module in nodes:
            node.module = module
        for dependency, mapping in mappings:
            dependency.index_mapping = list(mapping)
        vars(graph).update({name: copy.copy(table) for name, table in tables.items()})

    return put_back


def _copied(attributes: Any) -> Any:
    """A copy of a container, and of the plain containers in it."""
    if isinstance(attributes, list):
        return list(attributes)
    return {key: copy.copy(one) if type(one) in (dict, list) else one for key, one in attributes.items()}


def _names_by_identity(module: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def _kept_indices(positions: Tensor, shape: torch.Size) -> dict[int, Tensor]:
    """Which indices of each dimension are left, on the CPU, from original positions; only dimensions that lost some."""
    positions = positions.detach().cpu()
    if positions.shape == shape or positions.ndim == 0:
        return {}
    if positions.numel() == 0:
        raise ValueError(f"nothing would be left of a tensor of shape {tuple(shape)}")
    coordinates = torch.unravel_index(positions.round().long(), shape)
    keep, expected = {}, torch.zeros(positions.shape, dtype=torch.long)
    for dim, along in enumerate(coordinates):
        kept = along.movedim(dim, 0).reshape(along.size(dim), -1)[:, 0]
        view = [-1 if other == dim else 1 for other in range(positions.ndim)]
        stride = int(torch.tensor(shape[dim + 1 :]).prod()) if dim + 1 < len(shape) else 1
        expected = expected + kept.view(view) * stride
        if len(kept) != shape[dim]:
            keep[dim] = kept
    if not torch.equal(expected, positions.round().long()):
        raise ValueError(f"what would be left of a tensor of shape {tuple(shape)} is no rectangle of it")
    return keep


def _equal(left: Mapping[int, Tensor], right: Mapping[int, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[dim], right[dim]) for dim in left)

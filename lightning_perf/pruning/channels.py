"""Which channels can be taken out together, found by tracing and proved by running; and how many it takes to meet a target.

The dependency graph is Torch-Pruning's (Fang et al., "DepGraph", https://arxiv.org/abs/2301.12900). It is used on copies
only, and nothing is believed that was not run: a group of channels counts as prunable if taking channels out of it gives
the same loss as setting them to zero. That rules out wrongly traced views, outputs, normalization over channels and scales
computed from a width, each with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_perf._optional import require
from lightning_perf.pruning.cut import Cut, Size, tensors_of
from lightning_perf.pruning.targets import ignored_by

Loss = Callable[[nn.Module], Tensor]
Chosen = Mapping[str, Sequence[int]]  # root layer -> output channels that go

_TOLERANCE = 1e-5
_ROOTS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass
class Channels:
    """Groups of channels of a module that go together, by the name of the layer whose outputs they are.

    Args:
        module: is copied, never changed.
        loss: runs a copy on a batch and returns a loss with its graph; the same for equal copies.
        ignore: patterns of qualified names; a layer that owns one of these tensors keeps its outputs.
        round_to: channels that stay in a group are a multiple of this, and at least as many.
        duplicate: makes a copy of the module.

    Example (``pip install 'lightning-perf[prune]'``)::

        >>> net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> x = torch.ones(3, 4)
        >>> channels = Channels(net, lambda net: net(x).square().sum()).find()
        >>> {name: len(scores) for name, scores in channels.scores.items()}, list(channels.left_out)
        ({'0': 32}, ['2'])
    """

    module: nn.Module
    loss: Loss
    ignore: Sequence[str] = ()
    round_to: int = 8
    duplicate: Callable[[nn.Module], nn.Module] = copy.deepcopy
    scores: dict[str, Tensor] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def find(self) -> Channels:
        """Trace the module, score its groups, and run each with fewer channels; returns itself."""
        prune = _torch_pruning()
        ignored = ignored_by(self.module, self.ignore)
        owners = {
            name: ignored[id(p)]
            for name, layer in self.module.named_modules()
            for p in layer._parameters.values()
            if p is not None and id(p) in ignored
        }
        clone, graph = self._traced()
        names = {layer: name for name, layer in clone.named_modules()}
        importance = prune.importance.GroupMagnitudeImportance(p=2)
        for group in graph.get_all_groups(root_module_types=_ROOTS):
            name = names[group[0].dep.target.module]
            held = next((owners[names[item.dep.target.module]] for item in group
                         if names.get(item.dep.target.module) in owners
                         and graph.is_out_channel_pruning_fn(item.dep.handler)), None)  # fmt: skip
            scores = None if held else importance(group)
            reason = f"ignored by {held!r}" if held else self._why_not(name, scores)
            if reason is None and scores is not None:
                self.scores[name] = scores.detach().cpu()
            else:
                self.left_out[name] = reason or "without a score"
        return self

    def choose(self, share: float) -> dict[str, list[int]]:
        """The channels to take out if the lowest ``share`` of all, by their part of their group's mean, were to go."""
        relative = {name: scores / scores.mean().clamp_min(1e-12) for name, scores in self.scores.items()}
        flat = torch.cat(list(relative.values())).sort().values
        threshold = flat[min(int(share * len(flat)), len(flat) - 1)]
        chosen = {}
        for name, scores in relative.items():
            stay = max(self.round_to, round(int((scores >= threshold).sum()) / self.round_to) * self.round_to)
            if stay < len(scores):
                chosen[name] = sorted(scores.argsort(stable=True)[: len(scores) - stay].tolist())
        return chosen

    def cut(self, chosen: Chosen) -> Cut:
        """The cut that takes out ``chosen`` and all that depends on it.

        Raises:
            ValueError: what is left of a tensor is no rectangle of it, or tied tensors are torn apart.
        """
        clone, graph = self._traced()
        before = {name: tensor.shape for name, tensor in tensors_of(clone)}
        noted = {name: _sizes(layer) for name, layer in clone.named_modules()}
        tied = _names_by_identity(clone)
        # Every entry holds its own position, so what is left tells where it was. Exact in float64.
        clone.double()
        with torch.no_grad():
            for _, tensor in tensors_of(clone):
                tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
        for name, channels in chosen.items():
            layer = clone.get_submodule(name)
            pruner = graph.get_pruner_of_module(layer)
            graph.get_pruning_group(layer, pruner.prune_out_channels, list(channels)).prune()
        after = dict([*clone.named_parameters(remove_duplicate=False), *clone.named_buffers(remove_duplicate=False)])
        keep: dict[str, dict[int, Tensor]] = {}
        for names in tied:
            parts = [_kept_indices(after[name], before[names[0]]) for name in names]
            if any(not _equal(part, parts[0]) for part in parts):
                raise ValueError(f"{' and '.join(names)} are one tensor, of which they would keep different parts")
            if parts[0]:
                keep[names[0]] = parts[0]
        sizes = {
            name: changed
            for name, layer in clone.named_modules()
            if (changed := {key: size for key, size in _sizes(layer).items() if noted[name].get(key) != size})
        }
        return Cut(keep, sizes)

    def members(self) -> dict[str, dict[int, Tensor]]:
        """By name of a tensor and dimension, the channel that each index goes with: counted from 1 over all groups; 0: none.

        Every channel has a number of its own in binary, and one cut a digit tells the numbers of whatever goes with it. No
        digit is one for all of a group: the lower digits count from 0, the upper ones are the group's, turned round for
        odd channels.

        Raises:
            ValueError: no group can be cut; an index goes with several channels, or a cut of them is impossible.
        """
        self.require_some()
        groups = {name: len(scores) for name, scores in self.scores.items()}
        low, high = (max(groups.values()) - 1).bit_length(), len(groups).bit_length()
        numbers = {
            name: [channel | (group ^ -(channel & 1) % (1 << high)) << low for channel in range(count)]
            for group, (name, count) in enumerate(groups.items(), start=1)
        }
        shapes = {name: tensor.shape for name, tensor in tensors_of(self.module)}
        found: dict[str, dict[int, Tensor]] = {}
        for digit in range(low + high):
            chosen = {name: [i for i, one in enumerate(ones) if one >> digit & 1] for name, ones in numbers.items()}
            for name, keep in self.cut({name: gone for name, gone in chosen.items() if gone}).keep.items():
                for dim, kept in keep.items():
                    gone = torch.ones(shapes[name][dim], dtype=torch.long).index_fill_(0, kept, 0)
                    found.setdefault(name, {}).setdefault(dim, torch.zeros_like(gone)).add_(gone << digit)
        table = torch.zeros(1 << (low + high), dtype=torch.long)
        every = torch.tensor([one for ones in numbers.values() for one in ones])
        table[every] = torch.arange(1, len(every) + 1)
        members = {name: {dim: table[read] for dim, read in dims.items()} for name, dims in found.items()}
        for name, dims in members.items():
            for dim, channels in dims.items():
                counts = channels.bincount(minlength=len(every) + 1)[1:].split(list(groups.values()))
                if bool(((found[name][dim] > 0) != (channels > 0)).any()) or any(
                    one.unique().numel() > 1 for one in counts
                ):
                    raise ValueError(f"dimension {dim} of {name} does not part into channels")
        return members

    def require_some(self) -> None:
        """Whether any group can be cut.

        Raises:
            ValueError: none; the message has the reasons.
        """
        if not self.scores:
            raise ValueError(f"no group of channels can be cut; left out: {_reasons(self.left_out)}.")

    def check(self, cut: Cut) -> str | None:
        """Why a cut may not be made: it raises, or its loss is not that of zeros in its place; None if it may."""
        zeroed, smaller = self._copy(), self._copy()
        cut.zero(zeroed)
        cut.zero(smaller)
        cut.apply(smaller)
        try:
            there, here = (float(self.loss(one).detach()) for one in (zeroed, smaller))
        except Exception as error:
            return f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
        if not abs(there - here) <= _TOLERANCE * max(1.0, abs(there)):
            return f"the loss is {here:.6g} without the channels and {there:.6g} with zeros in their place"
        return None

    def _why_not(self, name: str, scores: Tensor | None) -> str | None:
        if scores is None:
            return "Torch-Pruning gives its channels no score"
        if len(scores) < 2 * self.round_to:
            return f"{len(scores)} channels, and round_to={self.round_to} leaves none to take"
        order = scores.argsort().tolist()
        most = len(order) - self.round_to
        for count in (self.round_to, len(order) // 2 // self.round_to * self.round_to, most):
            try:
                cut = self.cut({name: sorted(order[:count])})
            except Exception as error:
                return f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
            reason = self.check(cut)
            if reason is not None:
                return reason
        return None

    def _copy(self) -> nn.Module:
        return self.duplicate(self.module).eval()

    def _traced(self) -> tuple[nn.Module, Any]:
        clone = self._copy()
        for parameter in clone.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        graph = _torch_pruning().DependencyGraph()
        graph.build_dependency(clone, None, forward_fn=lambda clone, _: self.loss(clone), verbose=False)
        return clone, graph


def meet(channels: Channels, target: float, measure: Callable[[Cut], float]) -> tuple[Cut, float]:
    """The smallest cut that brings ``measure`` (1 for the whole module) down to ``target``, and what it measures.

    Raises:
        ValueError: the target is out of reach; the message has the best point and what stopped it.
    """
    channels.require_some()
    low, high = 0.0, 1.0
    best = channels.cut(channels.choose(1.0))
    reached = measure(best)
    if reached > target:
        raise ValueError(
            f"target={target:g} cannot be met: with every group at its smallest it is {reached:.3g}. Left out: "
            f"{_reasons(channels.left_out) or 'nothing; lower round_to'}."
        )
    seen: dict[str, tuple[Cut, float]] = {}
    for _ in range(10):
        middle = (low + high) / 2
        chosen = channels.choose(middle)
        key = repr(chosen)
        if key not in seen:
            cut = channels.cut(chosen)
            seen[key] = cut, measure(cut)
        cut, value = seen[key]
        if value <= target:
            best, reached, high = cut, value, middle
        else:
            low = middle
    return best, reached


def _reasons(left_out: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in left_out.items())


def _sizes(layer: nn.Module) -> dict[str, Size]:
    """Whole numbers and tuples of them among a layer's public attributes: ``out_channels``, ``normalized_shape``."""
    return {
        key: value
        for key, value in vars(layer).items()
        if (type(value) is int or (isinstance(value, tuple) and all(type(one) is int for one in value)))
        and not key.startswith("_")
    }


def _names_by_identity(module: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        names.setdefault(id(tensor), []).append(name)
    return list(names.values())


def _kept_indices(positions: Tensor, shape: torch.Size) -> dict[int, Tensor]:
    """Which indices of each dimension are left, from a tensor of original positions; only dimensions that lost some."""
    if positions.shape == shape or positions.ndim == 0:
        return {}
    if positions.numel() == 0:
        raise ValueError(f"nothing would be left of a tensor of shape {tuple(shape)}")
    coordinates = torch.unravel_index(positions.detach().round().long(), shape)
    keep, expected = {}, torch.zeros(positions.shape, dtype=torch.long)
    for dim, along in enumerate(coordinates):
        kept = along.movedim(dim, 0).reshape(along.size(dim), -1)[:, 0]
        view = [-1 if other == dim else 1 for other in range(positions.ndim)]
        stride = int(torch.tensor(shape[dim + 1 :]).prod()) if dim + 1 < len(shape) else 1
        expected = expected + kept.view(view) * stride
        if len(kept) != shape[dim]:
            keep[dim] = kept
    if not torch.equal(expected, positions.detach().round().long()):
        raise ValueError(f"what would be left of a tensor of shape {tuple(shape)} is no rectangle of it")
    return keep


def _equal(left: Mapping[int, Tensor], right: Mapping[int, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[dim], right[dim]) for dim in left)


def _torch_pruning() -> Any:
    return require("torch_pruning", extra="prune", purpose="finding channels that depend on each other")

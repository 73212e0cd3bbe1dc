"""Which channels can be taken out together, found by tracing and proved by running; and how many it takes to meet a target.

The dependency graph is Torch-Pruning's (Fang et al., "DepGraph", https://arxiv.org/abs/2301.12900). It is used on copies
only, and nothing is believed that was not run: a group of channels counts as prunable if taking channels out of it gives
the same loss as setting them to zero. That rules out wrongly traced views, outputs, normalization over channels and scales
computed from a width, each with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_perf._copying import deep_copy
from lightning_perf.pruning.cut import Cut
from lightning_perf.pruning.shapes import tensors_of
from lightning_perf.pruning.targets import ignored_by
from lightning_perf.pruning.trace import Chosen, Trace, first_line
from lightning_perf.pruning.ways import Given, difference

Loss = Callable[[nn.Module], Tensor]

_TOLERANCE = 1e-5


@dataclass
class Channels:
    """Groups of channels of a module that go together, by the name of the layer whose outputs they are.

    Args:
        module: is copied, never changed.
        loss: runs a copy on a batch and returns a loss with its graph; the same for equal copies.
        ignore: patterns of qualified names; a layer that owns one of these tensors keeps its outputs.
        round_to: channels that stay in a group are a multiple of this, and at least as many.
        duplicate: makes a copy of the module.
        saved: names of the tensors that a checkpoint holds, if it leaves some out.

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
    duplicate: Callable[[nn.Module], nn.Module] = deep_copy
    saved: Collection[str] | None = None
    scores: dict[str, Tensor] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    _ways: Callable[[nn.Module], Given] = lambda clone: {}
    _open: Collection[str] = ()

    def find(self) -> Channels:
        """Trace the module, score its groups, and run each with fewer channels; returns itself."""
        ignored = ignored_by(self.module, self.ignore)
        owners = {
            name: ignored[id(p)]
            for name, layer in self.module.named_modules()
            for p in layer._parameters.values()
            if p is not None and id(p) in ignored
        }
        for name, scores, layers in self.trace.groups():
            held = next((owners[layer] for layer in layers if layer in owners), None)
            reason = f"ignored by {held!r}" if held else self._why_not(name, scores)
            if reason is None and isinstance(scores, Tensor):
                self.scores[name] = scores
            else:
                self.left_out[name] = str(reason)
        return self

    def sift(self, ways: Callable[[nn.Module], Given], agree: Callable[[Any], Any] = lambda found: found) -> Channels:
        """Leave out groups whose cut breaks another way into the module than the step that was traced; returns itself.

        Args:
            ways: enters a copy in every other way; one that already raises with the whole module says nothing.
            agree: makes what one process finds the finding of all.
        """
        self._ways = ways
        self._open = agree([name for name, given in ways(self._copy()).items() if not isinstance(given, Exception)])
        if self.scores and agree(self._broken_by(self.choose(1.0))) is not None:
            for name in list(self.scores):
                reason = agree(self._broken_by({name: self._lowest(name)}))
                if reason is not None:
                    self.left_out[name] = reason
                    del self.scores[name]
        return self

    def breaks(self, cut: Cut) -> str | None:
        """Why a cut may not be made, though the traced step goes through: another way into the module does not."""
        if not self._open:
            return None
        zeroed, smaller = self._zeroed_and_smaller(cut)
        there, here = self._ways(zeroed), self._ways(smaller)
        return next(filter(None, (difference(name, there, here) for name in self._open)), None)

    def _broken_by(self, chosen: Chosen) -> str | None:
        try:
            return self.breaks(self.cut(chosen))
        except ValueError as error:
            return first_line(error)

    def _lowest(self, name: str) -> list[int]:
        scores = self.scores[name]
        return sorted(scores.argsort(stable=True)[: len(scores) - self.round_to].tolist())

    @cached_property
    def trace(self) -> Trace:
        """The dependency graph."""
        return Trace(self._copy(), self.loss)

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
        return self.trace.cut(chosen)

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
            raise ValueError(
                f"no group of channels can be cut; left out: {reasons(self.left_out)}. Use a smaller round_to or fewer "
                "patterns in ignore= where they are the reason; for zeros in place of channels use MagnitudePruning."
            )

    def check(self, cut: Cut, loss: Loss | None = None) -> str | None:
        """Why a cut may not be made: it raises, or its loss is not that of zeros in its place; None if it may.

        Args:
            cut: to be made.
            loss: another one than that of the trace, which needs no graph.
        """
        zeroed, smaller = self._zeroed_and_smaller(cut)
        try:
            there, here = (float((loss or self.loss)(one).detach()) for one in (zeroed, smaller))
        except Exception as error:  # whatever the module raises where its shapes are fixed
            return f"without its channels the step raises {first_line(error)}"
        if not abs(there - here) <= _TOLERANCE * max(1.0, abs(there)):
            return f"the loss is {here:.6g} without the channels and {there:.6g} with zeros in their place"
        return None

    def _zeroed_and_smaller(self, cut: Cut) -> tuple[nn.Module, nn.Module]:
        zeroed, smaller = self._copy(), self._copy()
        cut.zero(zeroed)
        cut.zero(smaller)
        cut.apply(smaller)
        return zeroed, smaller

    def _why_not(self, name: str, scores: Tensor | str) -> str | None:
        if isinstance(scores, str):
            return f"Torch-Pruning gives its channels no score ({scores})"
        if len(scores) < 2 * self.round_to:
            return f"{len(scores)} channels, and round_to={self.round_to} leaves none to take"
        if name in self.trace.outputs:
            return "the loss is computed from its outputs"
        order = scores.argsort().tolist()
        most = len(order) - self.round_to
        for count in dict.fromkeys((most, len(order) // 2 // self.round_to * self.round_to, self.round_to)):
            try:
                cut = self.cut({name: sorted(order[:count])})
            except Exception as error:  # Torch-Pruning's, or a cut that leaves no tensor
                return f"taking {count} of {len(order)} channels out raises {first_line(error)}"
            reason = self._unsaved(cut) or self.check(cut)
            if reason is not None:
                return reason
        return None

    def _unsaved(self, cut: Cut) -> str | None:
        missing = [name for name in cut.keep if self.saved is not None and name not in self.saved]
        return f"{missing[0]} is in no checkpoint, so that none could tell what is left of it" if missing else None

    def _copy(self) -> nn.Module:
        return self.duplicate(self.module).eval()


def meet(channels: Channels, target: float, measure: Callable[[Cut], float], *, trials: int = 10) -> tuple[Cut, float]:
    """The smallest cut that brings ``measure`` (1 for the whole module) down to ``target``, and what it measures.

    The share of channels that go is halved in ``trials`` times; what was measured is not measured again.

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
            f"{reasons(channels.left_out) or 'nothing'}. Pass a higher target, or a smaller round_to than "
            f"{channels.round_to}."
        )
    seen: dict[str, tuple[Cut, float]] = {}
    for _ in range(trials):
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


def reasons(left_out: Mapping[str, str]) -> str:
    """Why layers keep their outputs, each reason once with the layers that it holds for.

    Example::

        >>> reasons({"a": "3 channels", "b": "an output", "c": "3 channels"})
        'a, c: 3 channels; b: an output'
    """
    layers: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        layers.setdefault(reason, []).append(name)
    return "; ".join(f"{_first(names)}: {reason}" for reason, names in layers.items())


def _first(names: Sequence[str], most: int = 4) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")

"""Masks over the weights of a module: grown to a sparsity, held after every step, and saved as packed bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_perf.pruning.criteria import CRITERIA, add_movement_, magnitude, random_score
from lightning_perf.pruning.cut import Cut, kept_part
from lightning_perf.pruning.hold import Holder
from lightning_perf.pruning.masks import keep_highest, keep_towards_n_of_m, pack, parse_pattern, unpack
from lightning_perf.pruning.targets import Target

SCOPES = ("global", "layer")


class Pruner:
    """Prune some weights of a module in place, never more than asked for, and keep them zero.

    What was pruned once stays pruned. Nothing is added to the module; masks live here.

    Args:
        targets: the weights, by name.
        pattern: ``"unstructured"`` or N:M, such as ``"2:4"``.
        scope: whether unstructured weights of all layers compete (``"global"``) or each layer gets the same sparsity
            (``"layer"``). Groups of N:M are decided one by one either way.
        criterion: a name of :data:`CRITERIA`.
        seed: of the criterion ``"random"``.

    Raises:
        ValueError: an unknown pattern, scope or criterion.

    Example::

        >>> from lightning_perf.pruning.targets import find_targets
        >>> layer = torch.nn.Linear(4, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, -4.0, 3.0, 2.0]]))
        >>> pruner = Pruner(find_targets(layer).found)
        >>> pruner.adopt(pruner.decide(0.5))
        >>> layer.weight.data
        tensor([[ 0., -4.,  3.,  0.]])
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        *,
        pattern: str = "unstructured",
        scope: str = "global",
        criterion: str = "magnitude",
        seed: int = 0,
    ) -> None:
        for what, value, known in (("scope", scope, SCOPES), ("criterion", criterion, CRITERIA)):
            if value not in known:
                raise ValueError(f"{what}={value!r} is unknown; pass one of {', '.join(map(repr, known))}.")
        self.targets = dict(targets)
        self.seed = seed
        self._n_of_m = parse_pattern(pattern)
        self._scope, self._criterion = scope, criterion
        self._kept: dict[str, Tensor] = {}
        self._movement: dict[str, Tensor] = {}
        self._holder = Holder({})
        self._held: list[tuple[Target, Tensor]] = []

    @property
    def total(self) -> int:
        """Weights that are subject to pruning."""
        return sum(target.weight.numel() for target in self.targets.values())

    @property
    def pruned(self) -> int:
        """Weights that are pruned by now."""
        return sum(int((~mask).sum()) for mask in self._kept.values())

    @torch.no_grad()
    def decide(self, sparsity: float) -> dict[str, Tensor]:
        """Masks (True: stays) for a sparsity over all targets; nothing is changed."""
        kept = {name: self._mask(name) for name in self.targets}
        scores = {name: self._score(name, target.weight) for name, target in self.targets.items()}
        if self._n_of_m is not None:
            n, m = self._n_of_m
            dims = {name: target.input_dimension for name, target in self.targets.items()}
            return keep_towards_n_of_m(scores, kept, dims, n, m, min(1.0, sparsity / (1 - n / m)))
        if self._scope == "global":
            return keep_highest(scores, kept, _count(kept, sparsity))
        decided = {}
        for name, mask in kept.items():
            one = {name: mask}
            decided.update(keep_highest({name: scores[name]}, one, _count(one, sparsity)))
        return decided

    def adopt(self, kept: Mapping[str, Tensor]) -> None:
        """Take masks over, and set what they prune to zero.

        Raises:
            ValueError: a weight has another shape than its mask.
        """
        for name, target in self.targets.items():
            if kept[name].shape != target.weight.shape:
                raise ValueError(
                    f"{name} is of shape {tuple(target.weight.shape)} now, and its mask of {tuple(kept[name].shape)}; leave "
                    "weights that change their shape while the module trains out of pruning with ignore=."
                )
        self._held = [(target, target.weight) for target in self.targets.values()]
        self._kept = {name: kept[name].to(target.weight.device) for name, target in self.targets.items()}
        self._holder = Holder({target.weight: self._kept[name] for name, target in self.targets.items()})
        self.hold((target.weight, target.weight) for target in self.targets.values())

    def follow(self) -> bool:
        """Keep the masks for parameters that have taken the place of others under their names; whether there are any."""
        if all(target.weight is weight for target, weight in self._held):
            return False
        self.adopt(self._kept)
        return True

    def hold(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set to zero what is pruned, in every ``(parameter, tensor shaped like it)``."""
        self._holder.hold(pairs)

    def hold_optimizer(self, optimizer: Optimizer) -> None:
        """Set to zero what is pruned, in an optimizer's parameters and in its state for them."""
        self._holder.hold_step(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        """To be called after every step of an optimizer: count movement, hold weights and state."""
        if self._criterion == "movement":
            self._count_movement(optimizer)
        self._holder.hold_step(optimizer)

    def cut(self, cut: Cut) -> None:
        """Follow weights of which whole channels were taken out."""
        parts = {name: cut.keep.get(name, {}) for name in self.targets}
        self._movement = {name: kept_part(score, parts[name]) for name, score in self._movement.items()}
        if self._kept:
            self.adopt({name: kept_part(mask, parts[name]) for name, mask in self._kept.items()})

    def state_dict(self) -> dict[str, Any]:
        """Masks as packed bits, scores of movement and the seed: tensors and plain containers."""
        return {
            "masks": {name: pack(mask) for name, mask in self._kept.items()},
            "shapes": {name: list(target.weight.shape) for name, target in self.targets.items()},
            "movement": {name: score.clone() for name, score in self._movement.items()},
            "seed": self.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned.

        Raises:
            ValueError: the masks are those of other weights.
        """
        self.check_state(state)
        self.seed = int(state["seed"])
        self._movement = {
            name: score.to(self.targets[name].weight.device, copy=True)
            for name, score in state["movement"].items()
            if name in self.targets
        }
        self._kept, self._holder, self._held = {}, Holder({}), []
        if state["masks"]:
            shapes = {name: target.weight.shape for name, target in self.targets.items()}
            self.adopt({name: unpack(state["masks"][name], shape) for name, shape in shapes.items()})

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Whether a saved state is one of these weights.

        Raises:
            ValueError: it is not; the first difference is named.
        """
        saved = {name: list(shape) for name, shape in state["shapes"].items()}
        ours = {name: list(target.weight.shape) for name, target in self.targets.items()}
        for name in [*ours, *saved]:
            if saved.get(name) != ours.get(name):
                raise ValueError(
                    f"the checkpoint holds masks for other weights: {name} is {_shape(saved, name)} there and "
                    f"{_shape(ours, name)} here. Resume with the same module, ignore= and pattern=."
                )

    def _mask(self, name: str) -> Tensor:
        weight = self.targets[name].weight
        if name not in self._kept:
            return torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        return self._kept[name].to(weight.device)

    def _score(self, name: str, weight: Tensor) -> Tensor:
        if self._criterion == "random":
            return random_score(name, weight, self.seed)
        if self._criterion == "movement":
            score = self._movement.get(name)
            return torch.zeros(weight.shape, device=weight.device) if score is None else score.to(weight.device)
        return magnitude(weight)

    def _count_movement(self, optimizer: Optimizer) -> None:
        stepped = {p for group in optimizer.param_groups for p in group["params"]}
        for name, target in self.targets.items():
            weight = target.weight
            if weight not in stepped or weight.grad is None:
                continue
            score = self._movement.get(name)
            if score is None or score.device != weight.device:
                zeros = torch.zeros(weight.shape, device=weight.device)
                self._movement[name] = score = zeros if score is None else score.to(weight.device)
            add_movement_(score, weight, weight.grad)


def _count(kept: Mapping[str, Tensor], sparsity: float) -> int:
    """Entries to prune for a sparsity: rounded, and never fewer than are pruned already."""
    total = sum(mask.numel() for mask in kept.values())
    return max(round(sparsity * total), sum(int((~mask).sum()) for mask in kept.values()))


def _shape(shapes: Mapping[str, list[int]], name: str) -> str:
    return f"of shape {tuple(shapes[name])}" if name in shapes else "not pruned"

"""Distillation from the module in float: a frozen copy sees every batch, and the rounded module should say the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_perf.host import call_step, capture_rng, restore_rng
from lightning_perf.host.dry_run import silent_copy
from lightning_perf.quantization.prepare import unprepare


class Teacher:
    """A frozen float copy of a module, in evaluation mode, and the distance of the module from it.

    It runs the module's own ``training_step`` on the same batch with the same random draws, logs nothing, and is compared at
    the output of the layer that came last in the first step.

    Args:
        weights: a ``state_dict`` to start from; None takes the module's weights when it first sees the module.
    """

    def __init__(self, weights: Mapping[str, Tensor] | None) -> None:
        self._weights = weights
        self._copy: Any = None
        self._batch: tuple[Any, int] = (None, 0)

    def see(self, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The batch at hand; the copy is made at the first one."""
        self._batch = batch, batch_idx
        if self._copy is None:
            self._copy = silent_copy(pl_module)
            unprepare(self._copy)
            if self._weights is not None:
                self._copy.load_state_dict(self._weights)
            self._copy.eval().requires_grad_(False)

    def state(self) -> dict[str, Tensor]:
        """The weights of the copy."""
        weights = self._weights or {} if self._copy is None else self._copy.state_dict()
        return {name: value.detach().cpu().clone() for name, value in weights.items()}

    def taught(self, trainer: Any, module: nn.Module, head: str, step: Callable[[], Any]) -> Any:
        """The outcome of ``step`` with the distance at ``head`` added to its loss."""
        before = capture_rng()
        mine, output = _output_of(module.get_submodule(head), step)
        after = capture_rng()
        restore_rng(before)
        batch, index = self._batch

        def teach() -> Any:
            with torch.no_grad(), trainer.precision_plugin.train_step_context():
                return call_step(self._copy.training_step, batch, index)

        theirs, _ = _output_of(self._copy.get_submodule(head), teach)
        restore_rng(after)
        if mine is None or theirs is None or mine.shape != theirs.shape:
            return output
        return _added(output, distance(mine, theirs))

    def __getstate__(self) -> dict[str, Any]:
        return {"_weights": self.state(), "_copy": None, "_batch": (None, 0)}


def distance(mine: Tensor, theirs: Tensor) -> Tensor:
    """Squared error as a part of the squares of ``theirs``.

    Example::

        >>> distance(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0])).item()
        0.20000000298023224
    """
    theirs = theirs.float()
    return (mine.float() - theirs).square().sum() / theirs.square().sum().clamp(min=1e-12)


def _output_of(layer: nn.Module, step: Callable[[], Any]) -> tuple[Tensor | None, Any]:
    seen: list[Any] = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        outcome = step()
    finally:
        handle.remove()
    return (seen[-1] if seen and isinstance(seen[-1], Tensor) else None), outcome


def _added(output: Any, extra: Tensor) -> Any:
    if isinstance(output, Tensor):
        return output + extra
    if isinstance(output, Mapping) and "loss" in output:
        return {**output, "loss": output["loss"] + extra}
    return output

"""The callback behind ``quantize``: the module's own ``validation_step`` is what calibration runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_perf.host import PerfCallback, at_step_door
from lightning_perf.quantization.prepare import preparation
from lightning_perf.quantization.watch import Watch


class Quantize(PerfCallback):
    """Watches the first step of a prepared module in a validation; it is not meant to be given to a Trainer by hand."""

    essential = True
    _of_the_run = ("_modules",)

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._modules = [module]

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand at the validation step."""
        self.undo(trainer).push(at_step_door(trainer, "validation_step", self._step))

    def _step(self, step: Callable[[], Any]) -> Any:
        shared = preparation(self._modules[0])
        if shared is None or shared.watched["evaluation"]:
            return step()
        with Watch(self._modules[0], "evaluation"):
            return step()

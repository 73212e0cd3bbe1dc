"""Channels-last memory format for convolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_perf.host import PerfCallback, Stage, at_module_door, at_step_door
from lightning_perf.host.step_door import StepName

_FORMATS: tuple[tuple[tuple[type[nn.Module], ...], torch.memory_format], ...] = (
    ((nn.Conv2d, nn.ConvTranspose2d), torch.channels_last),
    ((nn.Conv3d, nn.ConvTranspose3d), torch.channels_last_3d),
)
_REFUSED_VIEW = "view size is not compatible"


class _ViewGuard(TorchFunctionMode):
    """Let ``x.view(...)`` of a channels-last activation succeed on a contiguous copy, and remember that it happened."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if _REFUSED_VIEW not in str(error) or not args or not isinstance(args[0], torch.Tensor):
                raise
            self.refused = True
            return func(args[0].contiguous(), *args[1:], **kwargs)


class ChannelsLast(PerfCallback):
    """Store the weights of 2-D and 3-D convolutions channels-last, so that their activations are too.

    Shapes, values, parameters and ``state_dict`` keys stay as they are; only strides change, and the rounding with
    them (relative 1e-6 in float32). A module without such convolutions, or one that is compiled (Inductor chooses
    layouts itself), is left alone, and the callback says so. A module that calls ``.view`` on an activation, which
    only the contiguous layout allows, gets its first step computed right and its layout back.

    Source: the channels-last tutorial of PyTorch. Deviation: only weights of convolutions are converted, by module
    type, not every 4-dimensional tensor, and inputs are left to the first convolution.

    Example::

        >>> import lightning_perf as lp
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[lp.ChannelsLast()], logger=False, enable_checkpointing=False)
    """

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand at the module door."""

        def convert(module: Any, checkpoint: Mapping[str, Any]) -> None:
            self._convert(trainer, module)

        self.undo(trainer).push(at_module_door(trainer, Stage.MEMORY_FORMAT, convert))

    def _convert(self, trainer: Any, module: nn.Module) -> None:
        weights = _convolution_weights(module)
        if not weights:
            self.say(f"{type(module).__name__} has no 2-D or 3-D convolution; nothing was changed.")
            return
        if _is_compiled(module):
            self.say("the module is compiled and Inductor chooses layouts itself; nothing was changed.")
            return
        changed = [
            (weight, memory_format)
            for weight, memory_format in weights
            if not weight.is_contiguous(memory_format=memory_format)
        ]
        _relayout(changed)
        count = len(weights)
        self.say(f"{count} convolution{'s' if count > 1 else ''} stored channels-last.")

        def put_back() -> None:
            _relayout([(weight, torch.contiguous_format) for weight, _ in changed])

        undo = self.undo(trainer)
        undo.push(put_back)
        for name in get_args(StepName):
            self._guard_first(trainer, name, put_back)

    def _guard_first(self, trainer: Any, name: StepName, put_back: Callable[[], None]) -> None:
        def first(step: Callable[[], Any]) -> Any:
            leave()
            with _ViewGuard() as guard:
                output = step()
            if guard.refused:
                put_back()
                self.say(
                    "the module calls .view on an activation, which only the contiguous layout allows; the layout "
                    "was put back. Use .flatten or .reshape in the module to gain from ChannelsLast."
                )
            return output

        leave = at_step_door(trainer, name, first)
        self.undo(trainer).push(leave)


def _convolution_weights(module: nn.Module) -> list[tuple[nn.Parameter, torch.memory_format]]:
    """Weights of 2-D and 3-D convolutions with the format they gain from; a parametrized weight is not a Parameter."""
    found: dict[int, tuple[nn.Parameter, torch.memory_format]] = {}
    for child in module.modules():
        for types, memory_format in _FORMATS:
            weight = child._parameters.get("weight")
            if isinstance(child, types) and weight is not None and not nn.parameter.is_lazy(weight):
                found[id(weight)] = (weight, memory_format)
    return list(found.values())


def _relayout(weights: list[tuple[nn.Parameter, torch.memory_format]]) -> None:
    for weight, memory_format in weights:
        weight.data = weight.data.contiguous(memory_format=memory_format)
        if weight.grad is not None:
            weight.grad = weight.grad.contiguous(memory_format=memory_format)


def _is_compiled(module: nn.Module) -> bool:
    if getattr(module, "_compiler_ctx", None) is not None:  # torch.compile(LightningModule), unwrapped by Lightning
        return True
    return any(
        isinstance(child, torch._dynamo.eval_frame.OptimizedModule) or child._compiled_call_impl is not None
        for child in module.modules()
    )

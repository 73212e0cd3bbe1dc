"""Channels-last memory format for convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
        self._copies: list[tuple[torch.Tensor, int]] = []

    @property
    def refused(self) -> bool:
        """Whether a view was refused."""
        return bool(self._copies)

    def written(self) -> bool:
        """Whether somebody wrote through such a view, which the activation itself does not see."""
        return any(copy._version != version for copy, version in self._copies)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if _REFUSED_VIEW not in str(error) or not args or not isinstance(args[0], torch.Tensor):
                raise
            copy = args[0].contiguous()
            self._copies.append((copy, copy._version))
            return func(copy, *args[1:], **kwargs)


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

    _of_the_run = ("_changed",)

    def __init__(self) -> None:
        super().__init__()
        self._changed: list[tuple[nn.Parameter, torch.memory_format]] = []

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand at the module door."""
        self._changed = []

        def convert(module: Any, checkpoint: Mapping[str, Any]) -> None:
            self._convert(trainer, module)

        self.undo(trainer).push(at_module_door(trainer, Stage.MEMORY_FORMAT, convert))

    def _convert(self, trainer: Any, module: nn.Module) -> None:
        weights = _convolution_weights(module)
        shared = _sharing_storage([weight for weight, _ in weights])
        if shared:
            weights = [(weight, memory_format) for weight, memory_format in weights if id(weight) not in shared]
            self.say(
                f"{len(shared)} convolutions share their storage with another tensor; their layout was left alone."
            )
        if not weights:
            if shared:
                return
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
            self._changed = []
            _relayout([(weight, torch.contiguous_format) for weight, _ in changed], trainer.strategy.optimizers)

        self._changed = changed
        undo = self.undo(trainer)
        undo.push(put_back)
        for name in get_args(StepName):
            self._guard_first(trainer, name, put_back)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook, after a restore: a fused step needs its state in the layout of the weights."""
        _relayout(self._changed, trainer.strategy.optimizers)

    def _guard_first(self, trainer: Any, name: StepName, put_back: Callable[[], None]) -> None:
        def first(step: Callable[[], Any]) -> Any:
            leave()
            with _ViewGuard() as guard:
                output = step()
            if guard.written():
                raise RuntimeError(
                    "the module writes through .view of an activation, which ChannelsLast cannot carry over; use .reshape "
                    "or .flatten in the module, or leave ChannelsLast out."
                )
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


def _relayout(weights: list[tuple[nn.Parameter, torch.memory_format]], optimizers: Iterable[Any] = ()) -> None:
    """Put weights, their gradients and their optimizer state into a layout; fused kernels need all three alike."""
    states = [optimizer.state for optimizer in optimizers]
    for weight, memory_format in weights:
        weight.data = weight.data.contiguous(memory_format=memory_format)
        if weight.grad is not None:
            weight.grad = weight.grad.contiguous(memory_format=memory_format)
        for state in states:
            for key, value in state[weight].items() if weight in state else ():
                if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                    state[weight][key] = value.contiguous(memory_format=memory_format)


def _sharing_storage(weights: list[nn.Parameter]) -> set[int]:
    """Ids of weights whose storage other tensors use too: moving one of them would tear them apart."""
    owners: dict[int, int] = {}
    for weight in weights:
        owners[weight.untyped_storage().data_ptr()] = owners.get(weight.untyped_storage().data_ptr(), 0) + 1
    return {
        id(weight)
        for weight in weights
        if owners[weight.untyped_storage().data_ptr()] > 1
        or weight.untyped_storage().nbytes() != weight.numel() * weight.element_size()
        or (weight.is_shared() and not weight.is_cuda)
    }


def _is_compiled(module: nn.Module) -> bool:
    if getattr(module, "_compiler_ctx", None) is not None:  # torch.compile(LightningModule), unwrapped by Lightning
        return True
    return any(
        isinstance(child, torch._dynamo.eval_frame.OptimizedModule) or child._compiled_call_impl is not None
        for child in module.modules()
    )

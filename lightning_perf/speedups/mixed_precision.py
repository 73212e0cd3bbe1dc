"""bfloat16 autocast where the machine computes it natively."""

from __future__ import annotations

from typing import Any, Literal

from lightning_perf import hardware
from lightning_perf.host import OptimizerSetup, PerfCallback, at_optimizer_door, is_a, namespace_of


class AutoMixedPrecision(PerfCallback):
    """Switch the Trainer to ``bf16-mixed`` where the machine computes bfloat16 natively; say why not elsewhere.

    ``Trainer(precision="bf16-mixed")`` obeys on every machine; on a CPU without bfloat16 instructions a convolution net
    then trains ten times slower. This callback changes numerics (autocast to bfloat16), so it is not part of
    ``lightning_perf.lossless()``: compare the final metric. A precision that the user chose is left alone.

    Args:
        precision: the only kind so far.

    Raises:
        ValueError: for another precision.

    Example::

        >>> import lightning_perf as lp
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[lp.AutoMixedPrecision()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, precision: Literal["bf16-mixed"] = "bf16-mixed") -> None:
        if precision != "bf16-mixed":
            raise ValueError(
                f"precision={precision!r} is not known to AutoMixedPrecision, which knows 'bf16-mixed'; "
                "give other precisions to the Trainer."
            )
        super().__init__(precision=precision)

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Replace the precision plugin of the strategy before it is connected."""
        strategy = trainer.strategy
        chosen = trainer.precision
        if chosen == "bf16-mixed":
            return
        if chosen != "32-true" or not _is_plain_precision(strategy.precision_plugin):
            self.say(f"the Trainer's precision is {chosen!r}, chosen by the user; left alone.")
            return
        if not (is_a(strategy, "SingleDeviceStrategy") or is_a(strategy, "DDPStrategy")):
            self.say(f"{type(strategy).__name__} has precision plugins of its own; give precision to the Trainer.")
            return
        device = strategy.root_device.type
        native = hardware.bfloat16_is_native(device)
        if not native:
            reason = "does not say whether it computes" if native is None else "emulates"
            self.say(f"stays in 32-true: this {device} {reason} bfloat16, which would be slower, not faster.")
            return
        plugin = namespace_of(trainer).plugins.precision.MixedPrecision("bf16-mixed", device)
        before = strategy.precision_plugin
        strategy.precision_plugin = plugin
        self.undo(trainer).push(setattr, strategy, "precision_plugin", before)
        self.undo(trainer).push(at_optimizer_door(trainer, lambda setup: self._allow_clipping(trainer, setup), order=2))
        self.say(f"precision 32-true -> bf16-mixed on {device}.")

    def _allow_clipping(self, trainer: Any, setup: OptimizerSetup) -> None:
        """Lightning refuses to clip for ``AdamW(fused=True)`` (#21435), though bfloat16 has no scaler to fear."""
        for optimizer in setup.optimizers:
            if trainer.gradient_clip_val and getattr(optimizer, "_step_supports_amp_scaling", False):
                optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
                self.undo(trainer).push(setattr, optimizer, "_step_supports_amp_scaling", True)


def _is_plain_precision(plugin: Any) -> bool:
    return type(plugin).__name__ == "Precision"

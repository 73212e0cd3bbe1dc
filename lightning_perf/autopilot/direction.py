"""Which direction of a metric is better: as the caller says, as what monitors it says, else told from its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from lightning_perf.host import is_a

Mode: TypeAlias = Literal["min", "max"]

_ERRORS = (
    "loss logloss cost error err mae mse rmse nrmse mape wmape smape mase msle rmsle mre deviance residual regret hinge "
    "hamming brier ece crps ade fde epe lost latency"
)
_LANGUAGE = "perplexity ppl nll nelbo ce bce entropy bits bpb bpc bpd wer cer mer ter eer"
_DISTANCES = "distance dist divergence distortion kl kld fid kid lpips perceptual chamfer hausdorff wasserstein"
_LOWER_IS_BETTER = frozenset(f"{_ERRORS} {_LANGUAGE} {_DISTANCES}".split(" "))
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


@dataclass(frozen=True)
class Direction:
    """``min`` or ``max``, and who says so.

    Example::

        >>> str(Direction("min", "as mode says"))
        'lower is better, as mode says'
    """

    mode: Mode
    source: str

    @property
    def better(self) -> Literal["lower", "higher"]:
        """The word of a report's quantity."""
        return "lower" if self.mode == "min" else "higher"

    def __str__(self) -> str:
        return f"{self.better} is better, {self.source}"


def direction_of(metric: str | None, mode: str | None, monitored: Mapping[str, Mode] | None = None) -> Direction:
    """The direction of ``metric``: ``mode``, else what ``monitored`` holds for it, else a guess from its name.

    Example::

        >>> str(direction_of("val_score", None))
        "higher is better, guessed from the name; say mode='min' if it is not"
        >>> str(direction_of("val_score", None, {"val_score": "min"}))
        'lower is better, as what monitors it in the Trainer says'
    """
    if mode is not None:
        return Direction(cast(Mode, mode), "as mode says")
    if metric is not None and monitored is not None and metric in monitored:
        return Direction(monitored[metric], "as what monitors it in the Trainer says")
    found = better(metric)
    other = "max" if found == "min" else "min"
    return Direction(found, f"guessed from the name; say mode={other!r} if it is not")


def monitored_modes(trainer: Any) -> dict[str, Mode]:
    """Metrics that the user's own callbacks and schedulers monitor, with the mode that they were given.

    Checkpoints and early stopping come before a ``ReduceLROnPlateau``, whose schedulers exist only in a fit.
    """
    plateaus = [(one.monitor, getattr(one.scheduler, "mode", None)) for one in trainer.lr_scheduler_configs]
    callbacks = [(getattr(one, "monitor", None), getattr(one, "mode", None)) for one in trainer.callbacks]
    found: dict[str, Mode] = {}
    for name, mode in (*callbacks, *plateaus):
        if isinstance(name, str) and mode in ("min", "max"):
            found.setdefault(name, cast(Mode, mode))
    return found


def modes_of_own_trainer(module: Any) -> dict[str, Mode]:
    """What the Trainer that ``module`` is attached to monitors; nothing where there is none."""
    trainer = own_trainer(module)
    return {} if trainer is None else monitored_modes(trainer)


def own_trainer(module: Any) -> Any:
    """The Trainer that a LightningModule was last given to; None without."""
    if not is_a(module, "LightningModule"):
        return None
    try:
        trainer = module.trainer
    except RuntimeError:  # Lightning's answer for a module that is attached to none
        return None
    return trainer if is_a(trainer, "Trainer") else None


def check_mode(mode: str | None) -> None:
    """Refuse what is no direction.

    Raises:
        ValueError: ``mode`` is none of ``"min"``, ``"max"`` and None.
    """
    if mode not in (None, "min", "max"):
        raise ValueError(
            f"mode={mode!r} is unknown; it is 'max', 'min' or None (what monitors the metric says, else its name)."
        )


def better(metric: str | None) -> Mode:
    """``min`` for losses, errors and distances, told from the words of the name; ``max`` for everything else.

    Example::

        >>> better("val_loss"), better("val/MeanSquaredError"), better("val_bits_per_byte"), better("val_acc")
        ('min', 'min', 'min', 'max')
    """
    words = {word.lower() for word in _WORD.findall(metric or "")}
    return "min" if words & _LOWER_IS_BETTER else "max"

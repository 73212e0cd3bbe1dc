"""Bit-exact resume: the one owner of random number state."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from lightning_perf.host import (
    PerfCallback,
    at_loader_door,
    at_optimizer_door,
    capture_rng,
    loader_generators,
    restore_rng,
)


class ExactResume(PerfCallback):
    """Save every random number generator with each checkpoint and restore it, so that a resumed run repeats exactly.

    Lightning saves no random state. With this callback, a run resumed from a checkpoint taken at the end of a training
    epoch equals the uninterrupted one bit for bit, given the same number of threads and ranks; where these differ, it
    says so. Saved per rank: torch (CPU and the rank's CUDA device), numpy, Python, and the generators that training
    loaders own. Restored at the moment the training loader draws its order, and again after the last ``on_train_start``.

    Limits: weights-only checkpoints hold no callback state; a checkpoint from the middle of an epoch starts the epoch's
    order of samples anew (Lightning does); draws inside ``on_train_epoch_start`` hooks come in another order.

    Example::

        >>> import lightning_perf as lp
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[lp.ExactResume()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        super().__init__()
        self._resumable = True
        self._saved: dict[str, Any] | None = None
        self._after_iterator: dict[str, Any] | None = None

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand at the loader door of a fit."""
        self._saved = self._after_iterator = None
        self._resumable = True
        if stage != "fit":
            return
        if not trainer.strategy.restore_checkpoint_after_setup:
            # What is restored after the optimizers exist is a tuner's own checkpoint, not the one that is resumed.
            self.undo(trainer).push(at_optimizer_door(trainer, lambda setup: setattr(self, "_resumable", False)))
        at_loader_door(
            trainer,
            self.undo(trainer),
            before_iterator=lambda: self._restore(trainer),
            after_iterator=self._remember,
            on_start=self._restore_again,
        )
        self.say("random state goes into every checkpoint.")

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook, called on all ranks: add the state of every rank to this callback's state."""
        mine = {"rng": capture_rng(), "generators": [g.get_state() for g in loader_generators(trainer)]}
        checkpoint.setdefault("callbacks", {})[self.state_key] = {
            # After an exception the other ranks may not come: waiting for them would lose the checkpoint.
            "ranks": [mine] if trainer.interrupted else _gather(mine, trainer.world_size),
            "threads": torch.get_num_threads(),
        }

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: keep the state until the training loader is set up."""
        if not self._resumable or str(getattr(trainer.state.fn, "value", trainer.state.fn)) != "fit":
            return
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None:
            self.say("the checkpoint holds no random state (saved without ExactResume); the resumed run will differ.")
            return
        ranks, threads = state["ranks"], state["threads"]
        if len(ranks) != trainer.world_size:
            self.say(
                f"the checkpoint was saved by {len(ranks)} ranks and {trainer.world_size} resume it; the run will not "
                "repeat bit for bit. Resume with the same number of ranks."
            )
            return
        if threads != torch.get_num_threads():
            self.say(
                f"the checkpoint was saved with {threads} threads and {torch.get_num_threads()} resume it; sums may "
                f"round differently. Call torch.set_num_threads({threads}) before."
            )
        self._saved = ranks[trainer.global_rank]

    def _restore(self, trainer: Any) -> None:
        if self._saved is None:
            return
        restore_rng(self._saved["rng"])
        for generator, state in zip(loader_generators(trainer), self._saved["generators"], strict=False):
            generator.set_state(state.cpu())

    def _remember(self) -> None:
        if self._saved is not None:
            self._saved = None
            self._after_iterator = capture_rng()

    def _restore_again(self) -> None:
        if self._after_iterator is not None:
            restore_rng(self._after_iterator)
            self._after_iterator = None


def _gather(state: dict[str, Any], world_size: int) -> list[dict[str, Any]]:
    """The states of all ranks, in order, on every rank."""
    if world_size == 1 or not (dist.is_available() and dist.is_initialized()):
        return [state]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, state)
    return gathered

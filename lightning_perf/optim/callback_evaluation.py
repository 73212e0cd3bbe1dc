"""Evaluation weights in a fit: in place wherever it evaluates and saves, out of the way wherever it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_perf.host import (
    MisconfigurationException,
    Undo,
    at_evaluation_door,
    at_weights_door,
    dry_passes,
    follow_optimizers,
    is_a,
    loaders_exist,
    offer_shadows,
)
from lightning_perf.host.optimizer_door import raw
from lightning_perf.optim.averaging import Averages, Ema, EvaluationWeights, fingerprint
from lightning_perf.optim.batch_norm import batch_norms, forget_statistics, statistics_from

Say = Callable[[str], None]


class FitEvaluation:
    """The evaluation weights of one fit and the training weights behind them.

    In place: in validation and the sanity check (around all their hooks), in every checkpoint's ``state_dict``, in
    ``on_train_end`` hooks, and in the module when ``fit`` is over, also by an exception. Between these, the training
    weights are back bit for bit. A checkpoint holds both: ``state_dict`` what is evaluated, so that it loads into the
    plain module, and the callback's state what training goes on from.

    Args:
        decay: of an exponential moving average of the weights; ``None`` to use what the optimizers average themselves.
        recalibrate: training batches on which the statistics of batch norms are gathered anew with averaged weights.
        say: prints a line.
    """

    def __init__(self, decay: float | None, recalibrate: int, say: Say) -> None:
        self._ema = Ema(decay) if decay is not None else None
        self._recalibrate = recalibrate
        self._say = say
        self._statistics: tuple[tuple[int, int], list[tuple[Tensor, Tensor]]] | None = None
        self._active = False
        self._weights = EvaluationWeights(self._averaged)
        self._names: dict[Tensor, str] = {}
        self._resumed = False
        self._loaded: Mapping[str, Any] | None = None
        self._evaluated: dict[str, int] | None = None
        self._trainer: Any = None
        self._undo: Undo | None = None

    @property
    def active(self) -> bool:
        """Whether somebody averages in this fit."""
        return self._active

    def adopt(self, trainer: Any, optimizers: Sequence[Optimizer], undo: Undo) -> None:
        """Find out who averages in this fit, and stand at the doors if somebody does.

        Raises:
            MisconfigurationException: an average of what is averaged already; a strategy that shards parameters.
        """
        own = [optimizer for optimizer in optimizers if isinstance(optimizer, Averages)]
        if own and self._ema is not None:
            raise MisconfigurationException(
                f"ema={self._ema.decay} averages weights that {type(own[0]).__name__} averages already; leave ema out."
            )
        self._active = bool(own) or self._ema is not None
        if not self._active:
            return
        who = f"ema={self._ema.decay}" if self._ema is not None else type(own[0]).__name__
        if trainer.strategy.restore_checkpoint_after_setup:
            raise MisconfigurationException(
                f"{who} exchanges the weights for evaluation, which {type(trainer.strategy).__name__} keeps in shards; use "
                "DDP or a single device, or an optimizer without averaged weights."
            )
        self._trainer = trainer
        undo.push(self._finish)
        undo.push(at_weights_door(trainer, self._detached, around=self._weights.in_place))
        at_evaluation_door(trainer, undo, around=self._weights.in_place, at_end=self._weights.enter)
        self._say(f"{who}: validation, checkpoints and the end of fit see averaged weights.")
        self._warn_of_neighbours(trainer, who)
        if batch_norms(trainer.lightning_module) and not self._recalibrate:
            self._say("batch norms keep the statistics of the training weights; recalibrate=20 gathers them anew.")

    def start(self, pl_module: Any, undo: Undo) -> None:
        """Put a resumed run's training weights in place and follow the optimizers; called in ``on_fit_start``.

        By then Lightning's finders are done, whose trial steps must not enter an average.
        """
        self._names = {t: name for name, t in (*pl_module.named_parameters(), *pl_module.named_buffers())}
        self._undo = undo
        if self._ema is not None:
            ema = self._ema
            undo.push(follow_optimizers(self._trainer, lambda optimizer: ema.follow(optimizer).remove))
            undo.push(offer_shadows(self._trainer, self._ema.averages))
        self._take_up()

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to train on: the training weights by name, and the moving average."""
        if self._undo is None:  # on_fit_start has not come yet; a finder saves and restores around its trial
            return dict(self._loaded or {})
        with self._weights.in_place():
            training = self._weights.training_weights()
            aside = {name: training[p] for p, name in self._names.items() if p in training}
            evaluated = self._evaluated or self._fingerprints()
        state: dict[str, Any] = {"training_weights": aside, "evaluated": evaluated}
        if self._ema is not None:
            state["ema"] = self._ema.state_dict(self._names)
        return state

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Keep what a checkpoint held for :meth:`start`; in the middle of a fit (a finder's restore) use it at once."""
        self._resumed, self._loaded = True, state
        if self._undo is not None:
            self._take_up()

    def _take_up(self) -> None:
        state, self._loaded = self._loaded, None
        if state is None:
            if self._resumed and self.active:
                self._say("the checkpoint was saved without averaged weights; averaging starts from its weights.")
            return
        if self._ema is not None and "ema" in state:
            self._ema.load_state_dict(state["ema"], self._names)
        saved = state.get("training_weights", {})
        points = {p: name for p, name in self._names.items() if name in saved}
        if any(fingerprint(p) != state["evaluated"][name] for p, name in points.items()):
            self._say(
                "the weights in the checkpoint are not those it was saved with; training goes on from them, and not from "
                "the training weights saved beside them."
            )
            return
        for parameter, name in points.items():
            parameter.data.copy_(saved[name])

    def _fingerprints(self) -> dict[str, int]:
        return {self._names[p]: fingerprint(p) for p in self._weights.training_weights() if p in self._names}

    def _averaged(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Optimizers may be set anew while the fit runs; an average of one that is gone would be of old weights.
        own = [one for one in map(raw, self._trainer.strategy.optimizers) if isinstance(one, Averages)]
        for one in own if self._ema is None else [self._ema]:
            yield from one.evaluation_weights()
        # The averaged weights are in place by now, each since it was yielded.
        if self._recalibrate:
            yield from self._recalibrated()

    def _recalibrated(self) -> list[tuple[Tensor, Tensor]]:
        """Running statistics of batch norms, gathered once per step on batches of the training loader."""
        trainer = self._trainer
        module = trainer.lightning_module
        # A sanity check comes before the loader exists; after an exception, ranks and loaders may be gone.
        if trainer.interrupted or not loaders_exist(trainer) or not self._weights.training_weights():
            return []
        now = (trainer.global_step, trainer.fit_loop.total_batch_idx)
        if self._statistics is None or self._statistics[0] != now:
            clone = dry_passes(trainer, module, self._recalibrate, watch=forget_statistics)
            self._statistics = now, list(statistics_from(clone, module))
        return self._statistics[1]

    def _detached(self, state: dict[str, Any]) -> dict[str, Any]:
        """Copies of what is about to be exchanged again."""
        storages = {p.untyped_storage().data_ptr() for p in self._weights.training_weights()}
        return {
            key: value.clone()
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in storages
            else value
            for key, value in state.items()
        }

    def _finish(self) -> None:
        """Leave the averaged weights in the module; the training weights stay here for a later ``save_checkpoint``."""
        if self._undo is None:
            return
        self._weights.enter()
        self._weights.store_on_cpu()
        self._evaluated = self._fingerprints()  # what the module holds now, whatever is loaded into it later

    def _warn_of_neighbours(self, trainer: Any, who: str) -> None:
        for other in trainer.callbacks:
            if is_a(other, "WeightAveraging") or is_a(other, "StochasticWeightAveraging"):
                self._say(
                    f"{type(other).__name__} averages too; what it puts into the module replaces {who}'s weights."
                )
            if getattr(other, "save_weights_only", False):
                self._say(
                    f"{type(other).__name__}(save_weights_only=True) saves averaged weights without the training weights: "
                    "good to evaluate and to start from, not to resume from."
                )

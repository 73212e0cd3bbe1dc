"""The strategy behind every preset: Lightning's DDPStrategy, with its levers; one class for each namespace."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lightning_perf.host import DoorClosed, MisconfigurationException, Undo
from lightning_perf.host.fused_sync import FusedSync, fuse_sync
from lightning_perf.host.ragged_epochs import RaggedEpochs
from lightning_perf.host.sigterm_agreement import Question, SigtermAgreement, agree_on_sigterm
from lightning_perf.strategies.alike_buffers import AlikeBuffers, alike_buffers
from lightning_perf.strategies.auto import Choice
from lightning_perf.strategies.auto_decision import become_the_fastest
from lightning_perf.strategies.buffer_sync import BufferSync, defer_buffers
from lightning_perf.strategies.compression_hooks import Int8Hook, add_state, compress, state_in
from lightning_perf.strategies.ddp_arguments import ddp_arguments
from lightning_perf.strategies.exchange import hold_all
from lightning_perf.strategies.local_sgd import LocalPeriod
from lightning_perf.strategies.local_steps import LocalSteps
from lightning_perf.strategies.presets import PLAIN, Preset, pool_called, preset_called
from lightning_perf.strategies.refusals import (
    advise,
    check_arguments,
    check_backend,
    check_local,
    check_module,
    check_optimizers,
)

if TYPE_CHECKING:
    from lightning.pytorch.strategies import DDPStrategy as _DDPStrategy
else:
    _DDPStrategy = object


class PerfDDPMixin(_DDPStrategy):
    """DDP without what it need not pay for; ``Trainer(strategy="perf_ddp")`` and the other names are its presets.

    Takes every argument of Lightning's DDPStrategy, ``start_method`` included. Learning rate and batch size stay yours.

    Args:
        preset: a name of the table in ``docs/guides/ddp.md``.
        agree_every: micro-batches between two agreements on SIGTERM; ``None`` for about one a second.
        average_every: ``perf_local_sgd`` only: optimizer steps between two averages of the weights.
        warmup_steps: ``perf_local_sgd`` only: optimizer steps at the start that are exchanged as in ddp.
        local_rate: ``perf_local_sgd`` only: factor on the learning rates in local steps; the square root of the number of
            processes suits Adam (``docs/guides/local_sgd.md``).
        average_momentum: ``perf_local_sgd`` only: whether momentum is averaged with the weights, sent in a byte a number.
        allow: ``perf_ddp_auto`` only: the promise that what it picks must keep, ``"exact"`` or ``"near"``.

    Raises:
        MisconfigurationException: if the preset is unknown, or cannot run with what it is given.

    Example::

        >>> import lightning_perf as lp
        >>> lp.PerfDDP(preset="perf_ddp", find_unused_parameters=True).preset.promise
        'exact'
    """

    def __init__(
        self,
        *args: Any,
        preset: str = "perf_ddp",
        agree_every: int | None = None,
        average_every: int = 8,
        warmup_steps: int = 100,
        local_rate: float = 1.0,
        average_momentum: bool = True,
        allow: str = "exact",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.preset = preset_called(preset)
        check_arguments(
            self.preset,
            self._ddp_comm_hook,
            self._model_averaging_period,
            allow,
            agree_every=agree_every,
            average_every=average_every,
            warmup_steps=warmup_steps,
        )
        check_local(self.preset, local_rate, average_momentum)
        self.messages: list[str] = []
        #: The preset whose levers run, and how ``perf_ddp_auto`` came to it.
        self.acting: Preset = PLAIN if self.preset.tries else self.preset
        self.choice: Choice | None = None
        self._pool, self._undecided, self._chosen_before = pool_called(allow), False, None
        self._agree_every = agree_every
        self._period = LocalPeriod(average_every, warmup_steps) if self.preset.local else None
        self._local_rate, self._average_momentum = local_rate, average_momentum
        self._given_kwargs = dict(self._ddp_kwargs)
        self._undo_run = Undo()
        self._sync: FusedSync | None = None
        self._kept_sync: FusedSync | None = None
        self._agreement: SigtermAgreement | None = None
        self._buffers: BufferSync | None = None
        #: Which buffers all processes have, since the module was wrapped.
        self.alike: AlikeBuffers | None = None
        self._ragged: RaggedEpochs | None = None
        self._int8: Int8Hook | None = None
        self._residuals: dict[str, Tensor] | None = None
        self._local: LocalSteps | None = None
        self._starts = False

    def say(self, text: str) -> None:
        """One line on rank zero, kept in ``messages`` as well."""
        line = f"{self.preset.name}: {text}"
        self.messages.append(line)
        rank_zero_info(line)

    def _configure_launcher(self) -> None:
        """Lightning's hook, called when the Trainer is made: a notebook cannot be started a second time as a script."""
        if hasattr(sys, "ps1") and self._start_method == "popen":
            raise MisconfigurationException(
                f"strategy={self.preset.name!r} starts the script again for every process, which a notebook cannot; use "
                f"strategy=PerfDDP(preset={self.preset.name!r}, start_method='fork') there."
            )
        super()._configure_launcher()

    def setup_distributed(self) -> None:
        """Lightning's hook: check the backend before processes wait for each other."""
        self.set_world_ranks()
        check_backend(self._get_process_group_backend(), self.root_device, self.world_size)
        super().setup_distributed()

    def setup(self, trainer: Any) -> None:
        """Lightning's hook: stand at the doors, then set up as DDPStrategy does."""
        self._undo_run.run()
        self._ddp_kwargs = dict(self._given_kwargs)
        fitting = trainer.state.fn == "fit"
        if fitting:
            check_module(self.preset, trainer.lightning_module, self.precision_plugin)
            if self.preset.tries:
                self.acting, self.choice = PLAIN, None
        if self.world_size < 2:
            self.say("one process: nothing to exchange.")
        else:
            for lever in (self._fuse_logging, self._agree, self._end_together, self._step_alone):
                try:
                    lever(trainer)
                except DoorClosed as closed:
                    self.say(f"one lever less: {closed}")
            if fitting:
                self._ddp_kwargs = ddp_arguments(self.acting, self._given_kwargs, trainer, self.root_device, self.say)
        super().setup(trainer)
        if not self.preset.tries:
            self._residuals = None
        if fitting:
            check_optimizers(self.preset, self.optimizers)
            if self._local is not None:
                self._local.scale(self.optimizers, self._undo_run)

    def _fuse_logging(self, trainer: Any) -> None:
        # Lightning compares the function that reduces a value with that of the run before: it has to be the same one.
        self._kept_sync = self._kept_sync or FusedSync(self.root_device, self.reduce)
        fuse_sync(trainer, self._kept_sync, self._undo_run)
        self._kept_sync.fuses = not self.acting.plain
        self._sync = self._kept_sync
        self._undo_run.push(setattr, self, "_sync", None)

    def _agree(self, trainer: Any) -> None:
        questions = [Question(self._ask_buffers, self._answer_buffers)]
        self._agreement = agree_on_sigterm(trainer, self.root_device, self._agree_every, questions, self._undo_run)
        self._undo_run.push(setattr, self, "_agreement", None)

    def _end_together(self, trainer: Any) -> None:
        ragged = RaggedEpochs(trainer, self.root_device)
        ragged.stand(self._undo_run)
        self._ragged = ragged
        self._undo_run.push(setattr, self, "_ragged", None)

    def _step_alone(self, trainer: Any) -> None:
        if self._period is None:
            return
        local = LocalSteps(trainer, self._period, self._local_rate, momentum=self._average_momentum)
        local.stand(self._undo_run)  # without these doors every step stays synchronous
        self._local = local
        self._undo_run.push(setattr, self, "_local", None)

    def _ask_buffers(self) -> bool:
        return self._buffers is not None and self._buffers.ask()

    def _answer_buffers(self, anywhere: bool) -> None:
        if self._buffers is not None:
            self._buffers.answer(anywhere)

    def _setup_model(self, model: Any) -> DistributedDataParallel:
        """DDP on the current stream: a side stream makes autograd synchronise two streams in every backward."""
        if self.acting.plain:
            return super()._setup_model(model)
        if self.world_size < 2:
            return self._wrapped(model)
        self.alike = alike_buffers(model, self.root_device, self.say)
        with self.alike.hidden():
            wrapper = self._wrapped(model)
        self._buffers = defer_buffers(wrapper, model, self.alike)
        self._undo_run.push(setattr, self, "_buffers", None)
        return wrapper

    def _wrapped(self, model: Any) -> DistributedDataParallel:
        return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)

    def _register_ddp_hooks(self) -> None:
        """Communication hooks on every backend: Lightning's own method drops them off CUDA without a word."""
        wrapper: Any = self.model
        if self.acting.compression and self.world_size > 1:
            self._int8 = compress(wrapper, self.acting.compression, self._residuals, self.say)
            self._undo_run.push(setattr, self, "_int8", None)
            if self._int8 is not None:
                self._undo_run.push(self._int8.release)
        elif self._ddp_comm_hook is not None:
            hook = self._ddp_comm_wrapper(self._ddp_comm_hook) if self._ddp_comm_wrapper else self._ddp_comm_hook
            wrapper.register_comm_hook(state=self._ddp_comm_state, hook=hook)

    def on_train_start(self) -> None:
        """Lightning's hook, after a restore: local SGD goes on where the checkpoint was written."""
        if self._local is not None:
            self._local.resume()
        self._starts = True
        untried = self.choice is None or not self.choice.steps  # a tuner's short loops before the run are not tried in
        self._undecided = self.preset.tries and self.world_size > 1 and untried
        super().on_train_start()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Lightning's hook: what changes by epoch is looked at anew at each one's start, or where a run is resumed."""
        super().on_train_batch_start(batch, batch_idx)
        first, self._starts = batch_idx == 0 or self._starts, False
        if self._ragged is not None:
            uneven = self._ragged.start_epoch() if first else None
            if uneven:
                self.say(f"processes have {uneven[0]} to {uneven[1]} batches; every epoch ends after {uneven[0]}.")
            self._ragged.start_batch()
        if self._undecided:
            self._undecided = False
            self.choice = become_the_fastest(self, self._pool, batch, self._chosen_before)
            self._residuals = self._chosen_before = None
        if first and self._buffers is not None:
            self._buffers.watch()
        if self._local is not None:
            self._local.start_batch()

    def on_train_end(self) -> None:
        """Lightning's hook: no answer is left under way."""
        if self._agreement is not None:
            self._agreement.rest()
        super().on_train_end()

    def engage_levers(self, on: bool) -> None:
        """Whether SIGTERM and logging go the short way; ``perf_ddp_auto`` runs without until it has chosen."""
        if self._agreement is not None:
            self._agreement.engaged = on
        if self._kept_sync is not None:
            self._kept_sync.fuses = on

    def answer_sigterm(self) -> None:
        """End the run on all processes if one was told to; collective.

        Raises:
            SIGTERMException: if so.
        """
        if self._agreement is not None:
            self._agreement.agree_now()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Lightning's step, and then one all-reduce for what it logged."""
        self._stay_local()
        watching = self._buffers.forward() if self._buffers is not None else nullcontext()
        with self._logging(), watching:
            return super().training_step(*args, **kwargs)

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Lightning's hook; under manual optimization its forward has switched the exchange on again."""
        self._stay_local()
        super().pre_backward(closure_loss)

    def _stay_local(self) -> None:
        if self._local is not None:
            self._local.before_backward(self.model)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Lightning's hook, on every process of a save that holds optimizers."""
        if self._local is not None and not self._local.adopt_state():
            self.say("processes hold optimizer state of different parameters; a run resumed from here is not this one.")
        return super().optimizer_state(optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Lightning's hook, on every process: what every process still owes the others travels along."""
        chosen = self.acting.name if self.preset.tries and self.acting.promise != "exact" else None
        add_state(checkpoint, self._int8, chosen)
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Lightning's hook: keep this process's part for the hook that is made later."""
        checkpoint = super().load_checkpoint(checkpoint_path, *args, **kwargs)
        state, self._chosen_before = state_in(checkpoint)
        int8 = (self._chosen_before if self.preset.tries else self.preset.name) == "perf_ddp_int8"
        self._residuals = state[self.global_rank] if int8 and len(state) == self.world_size else None
        if int8 and state and self._residuals is None:
            self.say(f"the checkpoint was written by {len(state)} processes; error feedback starts from zero.")
        return checkpoint

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Lightning's step, and then one all-reduce for what it logged."""
        with self._logging():
            return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Lightning's step, and then one all-reduce for what it logged."""
        with self._logging():
            return super().test_step(*args, **kwargs)

    def _logging(self) -> AbstractContextManager[None]:
        return self._sync.step() if self._sync is not None else nullcontext()

    def on_exception(self, exception: BaseException) -> None:
        """Lightning's hook: say what a message of torch means, and put everything back."""
        super().on_exception(exception)
        hold_all()
        advise(exception, self.acting)
        self._undo_run.run()

    def teardown(self) -> None:
        """Lightning's hook: put everything back; what this run has loaded is not the next one's."""
        self._undo_run.run()
        self._residuals = self._chosen_before = None
        super().teardown()

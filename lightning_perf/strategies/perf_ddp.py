"""The strategy behind every preset: Lightning's DDPStrategy, with its levers; one class for each namespace."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_info  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _BufferCommHookLocation

from lightning_perf.host import DoorClosed, Undo
from lightning_perf.host.fused_sync import FusedSync, fuse_sync
from lightning_perf.host.sigterm_agreement import Question, agree_on_sigterm
from lightning_perf.strategies.buffer_sync import BufferSync, any_rank
from lightning_perf.strategies.presets import PRESETS, preset_called

if TYPE_CHECKING:
    from lightning.pytorch.strategies import DDPStrategy as _DDPStrategy
else:
    _DDPStrategy = object

_BUFFER_BYTES = 250 * 1024 * 1024


class PerfDDPMixin(_DDPStrategy):
    """What a preset adds to the DDPStrategy of either namespace."""

    def __init__(self, *args: Any, preset: str = "perf_ddp", agree_every: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.preset = preset_called(preset)
        self.messages: list[str] = []
        self._agree_every = agree_every
        self._undo_run = Undo()
        self._sync: FusedSync | None = None
        self._buffers: BufferSync | None = None

    def say(self, text: str) -> None:
        """One line on rank zero, kept in ``messages`` as well."""
        line = f"{self.preset.name}: {text}"
        self.messages.append(line)
        rank_zero_info(line)

    def setup(self, trainer: Any) -> None:
        """Lightning's hook: stand at the doors, then set up as DDPStrategy does."""
        self._undo_run.run()
        try:
            self._engage(trainer)
        except DoorClosed as closed:
            self._undo_run.run()
            self._sync = None
            self.say(f"runs as plain ddp here: {closed}")
        super().setup(trainer)

    def _engage(self, trainer: Any) -> None:
        if self.world_size < 2:
            self.say("one process: nothing to exchange.")
            return
        self._sync = FusedSync(self.root_device, self.reduce)
        self._undo_run.push(setattr, self, "_sync", None)
        fuse_sync(trainer, self._sync, self._undo_run)
        questions = [Question(self._ask_buffers, self._answer_buffers)]
        agree_on_sigterm(trainer, self.root_device, self._agree_every, questions, self._undo_run)

    def _ask_buffers(self) -> bool:
        return self._buffers is not None and self._buffers.ask()

    def _answer_buffers(self, anywhere: bool) -> None:
        if self._buffers is not None:
            self._buffers.answer(anywhere)

    def _setup_model(self, model: Any) -> DistributedDataParallel:
        """DDP on the current stream: a side stream makes autograd synchronise two streams in every backward."""
        wrapper = DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)
        if self.world_size > 1:
            self._defer_buffers(wrapper, model)
        return wrapper

    def _defer_buffers(self, wrapper: Any, model: Any) -> None:
        def broadcast(tensors: list[Tensor]) -> None:
            dist._broadcast_coalesced(wrapper.process_group, tensors, _BUFFER_BYTES, 0)  # pyright: ignore

        self._buffers = BufferSync(model, broadcast, any_rank(self.root_device))
        self._undo_run.push(setattr, self, "_buffers", None)
        wrapper._register_buffer_comm_hook(None, self._buffers, _BufferCommHookLocation.PRE_FORWARD)

    def _register_ddp_hooks(self) -> None:
        """Communication hooks on every backend: Lightning's own method drops them off CUDA without a word."""
        if self._ddp_comm_hook is None or self.model is None:
            return
        hook = self._ddp_comm_wrapper(self._ddp_comm_hook) if self._ddp_comm_wrapper else self._ddp_comm_hook
        self.model.register_comm_hook(state=self._ddp_comm_state, hook=hook)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Lightning's hook: what changes by epoch is looked at anew at each one's start."""
        if batch_idx == 0 and self._buffers is not None:
            self._buffers.watch()
        super().on_train_batch_start(batch, batch_idx)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Lightning's step, and then one all-reduce for what it logged."""
        watching = self._buffers.forward() if self._buffers is not None else nullcontext()
        with self._logging(), watching:
            return super().training_step(*args, **kwargs)

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
        """Lightning's hook: put everything back."""
        super().on_exception(exception)
        self._undo_run.run()

    def teardown(self) -> None:
        """Lightning's hook: put everything back."""
        self._undo_run.run()
        super().teardown()


def strategy_class(namespace: ModuleType, home: str) -> Any:
    """The strategy for one namespace, importable as ``home.PerfDDP``; its names are registered there.

    Args:
        namespace: ``lightning.pytorch`` or ``pytorch_lightning``.
        home: the module that will hold the class, which pickles look it up in.
    """
    body = {"__module__": home, "__qualname__": "PerfDDP", "__doc__": _DOC}
    built = type("PerfDDP", (PerfDDPMixin, namespace.strategies.DDPStrategy), body)
    for row in PRESETS.values():
        registry = namespace.strategies.StrategyRegistry
        registry.register(row.name, built, description=row.description, override=True, preset=row.name)
    return built


_DOC = """DDP without what it need not pay for; ``Trainer(strategy="perf_ddp")`` and the other names are its presets.

Takes every argument of Lightning's DDPStrategy, ``start_method`` included. Learning rate and batch size stay yours.

Args:
    preset: a name of the table in ``docs/guides/ddp.md``.
    agree_every: micro-batches between two agreements on SIGTERM; ``None`` for about one a second.

Raises:
    MisconfigurationException: if the preset is unknown.

Example::

    >>> import lightning_perf as lp
    >>> lp.PerfDDP(preset="perf_ddp", find_unused_parameters=True).preset.promise
    'exact'
"""

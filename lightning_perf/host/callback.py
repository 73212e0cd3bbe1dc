"""What every callback of the house shares: both namespaces, undo, one-line messages, a state key with its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import lightning.pytorch
import pytorch_lightning
from lightning.pytorch.utilities.rank_zero import rank_zero_info  # pyright: ignore[reportPrivateImportUsage]

from lightning_perf.host.doors import Undo, stand_at
from lightning_perf.host.namespaces import DoorClosed

#: Hooks that Lightning calls at every batch, one microsecond or two for each callback that has them.
_BATCH_HOOKS = (
    "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
    *(f"on_{stage}_batch_{end}" for stage in ("train", "validation", "test", "predict") for end in ("start", "end")),
)  # fmt: skip


class PerfCallback(lightning.pytorch.Callback, pytorch_lightning.Callback):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Base of the callbacks; accepted by both Trainers, alone or in a list, and by both LightningCLIs.

    A subclass passes its constructor arguments to ``super().__init__(**arguments)`` and overrides :meth:`engage`, which is
    called in Lightning's ``setup``. Whatever it changes is put back by functions pushed onto ``self.undo(trainer)``: they
    run on teardown and on an exception, where Lightning calls no ``teardown``.
    """

    #: What to do when a door into Lightning is closed: False says so and leaves the run as it is, True raises.
    essential = False
    #: Attributes that belong to a run and do not travel with a pickled callback.
    _of_the_run: tuple[str, ...] = ()

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._state_key = self._generate_state_key(**arguments)  # Lightning asks for it at every hook
        self.messages: list[str] = []
        self._undo: WeakKeyDictionary[Any, Undo] = WeakKeyDictionary()

    def engage(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Make this callback's changes to the run; ``stage`` is fit, validate, test or predict."""

    def undo(self, trainer: Any) -> Undo:
        """The functions that put back what this callback changed in this Trainer."""
        return self._undo.setdefault(trainer, Undo())

    def say(self, text: str) -> None:
        """One line on rank zero, kept in ``messages`` as well."""
        line = f"{type(self).__name__}: {text}"
        self.messages.append(line)
        rank_zero_info(line)

    @property
    def state_key(self) -> str:
        """Class and arguments, so that two instances with different arguments keep apart in one checkpoint."""
        return self._state_key

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lightning's hook: undo what an interrupted run left behind, then :meth:`engage`."""
        self.undo(trainer).run()
        first = next((callback for callback in trainer.callbacks if same_callback(callback, self)), self)
        if first is not self:
            self.say("given twice with the same arguments; this one does nothing.")
            return
        self._stand_aside(trainer)
        # While the learning-rate finder trains, the Trainer has other callbacks, and an exception reaches the strategy only.
        strategy_exception = stand_at(trainer.strategy, "on_exception", lambda: self.undo(trainer).run(), _serve)
        self.undo(trainer).push(strategy_exception)
        try:
            self.engage(trainer, pl_module, str(getattr(stage, "value", stage)))
        except DoorClosed as closed:
            self.undo(trainer).run()
            if self.essential:
                raise
            self.say(f"does nothing: {closed}")

    def _stand_aside(self, trainer: Any) -> None:
        """For the time of the run, take away the hooks of a batch that this class leaves empty: Lightning skips those."""
        idle = [name for name in _BATCH_HOOKS if getattr(type(self), name) is getattr(lightning.pytorch.Callback, name)]
        for name in idle:
            self.__dict__[name] = None
            self.undo(trainer).push(self.__dict__.pop, name, None)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lightning's hook: put everything back."""
        self.undo(trainer).run()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Lightning's hook: put everything back, since no teardown will follow."""
        self.undo(trainer).run()

    def __getstate__(self) -> dict[str, Any]:
        # Lightning hangs the module's bound ``log`` and ``log_dict`` on every callback.
        left_out = ("_undo", "log", "log_dict", *_BATCH_HOOKS, *self._of_the_run)
        return {key: value for key, value in self.__dict__.items() if key not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _undo=WeakKeyDictionary())
        for name in self._of_the_run:
            self.__dict__[name] = []

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self._arguments.items())
        return f"{type(self).__name__}({arguments})"


def _serve(guests: list[Any], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    for guest in guests:
        guest()
    return original(*args, **kwargs)


def same_callback(callback: Any, other: PerfCallback) -> bool:
    """Whether two callbacks are of one class with equal arguments."""
    return type(callback) is type(other) and callback.state_key == other.state_key

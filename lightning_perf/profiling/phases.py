"""Where the time goes: every action of the training loop belongs to one phase, and every second to one action.

Actions nest (the optimizer's step holds forward and backward, a callback holds a checkpoint). A second is charged to the
innermost action that is open at that moment, so phases exclude each other and add up to the whole.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lightning_perf.profiling.hot_clock import hot_functions

SETUP = "setup"
LOADERS = "making loaders"
DATA_WAIT = "data wait"
WORKER_START = "worker start-up"
TRANSFER = "host to device"
FORWARD = "forward"
BACKWARD = "backward"
EXCHANGE = "exchange"
OPTIMIZER = "optimizer"
LOGGING = "logging: metrics"
LOGGERS = "logging: loggers"
HOOKS = "module hooks"
VALIDATION = "validation"
CHECKPOINT = "checkpoint"
LOOP = "loop"
REST = "rest (unnamed)"
CALLBACK = "callback: "

#: What does not belong to a training step: it happens now and then, and is not part of a step's time.
BETWEEN_STEPS = (LOADERS, WORKER_START, VALIDATION, CHECKPOINT)

_BY_HOOK = {
    TRANSFER: ("batch_to_device", "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"),
    FORWARD: ("training_step",),
    BACKWARD: ("backward", "on_before_backward", "on_after_backward"),
    EXCHANGE: ("exchange",),
    OPTIMIZER: (
        "optimizer_step", "optimizer_zero_grad", "on_before_zero_grad", "on_before_optimizer_step",
        "configure_gradient_clipping", "lr_scheduler_step",
    ),
    SETUP: ("setup", "prepare_data", "configure_model", "configure_optimizers", "configure_callbacks"),
    LOADERS: ("train_dataloader",),
}  # fmt: skip
_PHASE_OF_HOOK = {hook: phase for phase, hooks in _BY_HOOK.items() for hook in hooks}
_WHOLE_ACTIONS = {
    "save_checkpoint": CHECKPOINT,
    "run_training_batch": LOOP,
    "run_training_epoch": REST,
    "optimizer_step": OPTIMIZER,
}
_ACTION = re.compile(r"\[(?P<kind>\w+)\](?P<owner>.*?)\.(?P<hook>\w+)$", re.DOTALL)


def phase_of(action: str) -> str:
    """The phase that an action of Lightning's loops belongs to; a name that is already a phase stays.

    Example::

        >>> phase_of("[Strategy]SingleDeviceStrategy.training_step"), phase_of("[Callback]Timer.on_train_batch_end")
        ('forward', 'callback: Timer')
    """
    if action in _WHOLE_ACTIONS:
        return _WHOLE_ACTIONS[action]
    found = _ACTION.match(action)
    if found is None:
        return REST if action.startswith("[") else action
    kind, owner, hook = found["kind"], found["owner"], found["hook"]
    if hook.endswith("dataloader_next"):
        return DATA_WAIT
    if kind == "Callback":
        return CALLBACK + owner.partition("{")[0].rpartition(".")[2]
    if hook in _PHASE_OF_HOOK:
        return _PHASE_OF_HOOK[hook]
    return LOOP if kind == "Strategy" else HOOKS


@dataclass(frozen=True)
class Span:
    """One action as it happened: seconds from the first recorded event, and how deep it was nested."""

    action: str
    phase: str
    start: float
    stop: float
    depth: int


class PhaseClock:
    """Charges every second to the phase of the innermost open action. A listener of the timing door.

    Inside validation all actions are validation: they are charged to ``validation`` and, one by one, to
    ``validation/PHASE``, so that neither mixes with training.

    Args:
        clock: seconds; injected by tests.
        mark: called with the index of a phase at every change of phase, to mark it on a device's own timeline.

    Example::

        >>> ticks = iter([0.0, 1.0, 3.0, 4.0, 6.0, 6.0])
        >>> clock = PhaseClock(clock=lambda: next(ticks))
        >>> clock.start("run_training_batch"); clock.start("[Strategy]S.training_step")
        >>> clock.stop("[Strategy]S.training_step"); clock.stop("run_training_batch")
        >>> {name: seconds for name, seconds in clock.seconds().items() if seconds}
        {'setup': 1.0, 'loop': 4.0, 'forward': 1.0}
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, mark: Callable[[int], None] | None = None
    ) -> None:
        self.names: list[str] = []
        self.totals: list[float] = []
        #: Seconds spent between steps so far: in validation, checkpoints, the start of workers, and all within them.
        self.away = 0.0
        #: Called whenever the training loop asks for its next batch: where one step ends and the next begins.
        self.at_next_batch: Callable[[], None] | None = None
        self._left: list[tuple[float, dict[str, int]]] = []
        self._index: dict[str, int] = {}
        self._requests: dict[str, int] = {}
        self._training: dict[str, int] = {}
        self._evaluating: dict[str, int] = {}
        self._table = self._training
        self._events: list[tuple[float, int, str | None]] | None = None
        for name in (SETUP, *BETWEEN_STEPS):
            self.index_of(name)
        self._hot = hot_functions(clock, self.totals, self._learn)
        self.start, self.stop, self.span = self._hot.start, self._hot.stop, self._hot.span
        self._hot.turn(self._table)
        self.mark = mark

    def index_of(self, phase: str) -> int:
        """The index of a phase in ``names`` and ``totals``."""
        if phase not in self._index:
            self._index[phase] = len(self.names)
            self.names.append(phase)
            self.totals.append(0.0)
        return self._index[phase]

    def now(self) -> float:
        """Charge the seconds up to this moment and return it."""
        return self._hot.charge()

    @property
    def current(self) -> str:
        """The phase that is being charged."""
        return self.names[self._hot.where()[0]]

    @property
    def depth(self) -> int:
        """Number of open actions."""
        return self._hot.where()[1]

    @property
    def mark(self) -> Callable[[int], None] | None:
        """Called with the index of a phase at every change of phase."""
        return self._mark

    @mark.setter
    def mark(self, mark: Callable[[int], None] | None) -> None:
        self._mark = mark
        self._watch()

    def leave_steps(self, action: str, evaluate: bool = False) -> None:
        """Something begins that belongs to no step; with ``evaluate``, actions are validation's until it ends."""
        self.start(action)
        self._left.append((self.now(), self._table))
        if evaluate:
            self._turn(self._evaluating)

    def return_to_steps(self, action: str) -> None:
        """What :meth:`leave_steps` began has ended."""
        since, table = self._left.pop()
        self._turn(table)
        self.stop(action)
        if not self._left:
            self.away += self.now() - since

    def unwind(self, depth: int) -> None:
        """Close what an exception left open above ``depth``."""
        while self.depth > depth:
            self.stop("")

    def reset(self, ground: str = SETUP) -> None:
        """Forget all seconds; what is open stays open. From here on ``ground`` is the phase outside of all actions."""
        self.now()
        self.totals[:] = [0.0] * len(self.totals)
        self._hot.ground(self.index_of(ground))

    def seconds(self) -> dict[str, float]:
        """Seconds of every phase so far, the open one included; those of validation's parts as ``validation/...``."""
        self.now()
        return dict(zip(self.names, self.totals, strict=True))

    def record(self) -> None:
        """Begin to keep every single action, for a timeline; a few steps' worth."""
        self._events = []
        self._watch()

    def recorded(self) -> list[Span]:
        """The actions since :meth:`record`, and stop keeping them."""
        events, self._events = self._events or [], None
        self._watch()
        return list(_spans(events, self.names))

    def _turn(self, table: dict[str, int]) -> None:
        self._table = table
        self._hot.turn(table)

    def _watch(self) -> None:
        self._hot.watch(None if self._mark is None and self._events is None else self._tell)

    def _tell(self, now: float, phase: int, action: str | None) -> None:
        if self._mark is not None:
            self._mark(phase)
        if self._events is not None:
            self._events.append((now, phase, action))

    def _learn(self, action: str) -> int:
        """The phase of an action that is not in the table: a new one, or the training loop's request for a batch."""
        if action in self._requests:
            if self.at_next_batch is not None:
                self.at_next_batch()
            return self._requests[action]
        phase = phase_of(action)
        inside = self._table is self._evaluating
        if phase == DATA_WAIT and not inside:
            self._requests[action] = self.index_of(phase)
            return self._learn(action)
        name = f"{VALIDATION}/{phase}" if inside and phase not in BETWEEN_STEPS else phase
        index = self.index_of(name)
        self._table[action] = index
        return index


def _spans(events: list[tuple[float, int, str | None]], names: list[str]) -> Iterator[Span]:
    """Pair beginnings with ends; an end without a beginning, or a beginning without an end, is left out."""
    stack: list[tuple[float, int, str]] = []
    origin = events[0][0] if events else 0.0
    found: list[Span] = []
    for at, phase, action in events:
        if action is not None:
            stack.append((at, phase, action))
        elif stack:
            start, index, name = stack.pop()
            found.append(Span(name, names[index], start - origin, at - origin, len(stack)))
    yield from sorted(found, key=lambda span: (span.start, span.depth))


def by_phase(seconds: dict[str, float]) -> dict[str, float]:
    """Validation's parts added to ``validation``; every other phase as it is, empty ones left out.

    Example::

        >>> by_phase({"forward": 2.0, "validation": 0.5, "validation/forward": 1.5, "setup": 0.0})
        {'forward': 2.0, 'validation': 2.0}
    """
    merged: dict[str, float] = {}
    for name, value in seconds.items():
        whole = VALIDATION if name.startswith(f"{VALIDATION}/") else name
        merged[whole] = merged.get(whole, 0.0) + value
    return {name: value for name, value in merged.items() if value > 0.0}

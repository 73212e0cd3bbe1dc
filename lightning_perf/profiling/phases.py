"""Where the time goes: every action of the training loop belongs to one phase, and every second to one action.

Actions nest (the optimizer's step holds forward and backward, a callback holds a checkpoint). A second is charged to the
innermost action that is open at that moment, so phases exclude each other and add up to the whole.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SETUP = "setup"
DATA_WAIT = "data wait"
WORKER_START = "worker start-up"
TRANSFER = "host to device"
FORWARD = "forward"
BACKWARD = "backward"
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
BETWEEN_STEPS = (WORKER_START, VALIDATION, CHECKPOINT)

_BY_HOOK = {
    TRANSFER: ("batch_to_device", "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"),
    FORWARD: ("training_step",),
    BACKWARD: ("backward", "on_before_backward", "on_after_backward"),
    OPTIMIZER: (
        "optimizer_step", "optimizer_zero_grad", "on_before_zero_grad", "on_before_optimizer_step",
        "configure_gradient_clipping", "lr_scheduler_step",
    ),
    SETUP: ("setup", "prepare_data", "configure_model", "configure_optimizers", "configure_callbacks", "train_dataloader"),
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

        >>> ticks = iter([0.0, 1.0, 3.0, 4.0, 6.0])
        >>> clock = PhaseClock(clock=lambda: next(ticks))
        >>> clock.start("run_training_batch"); clock.start("[Strategy]S.training_step")
        >>> clock.stop("[Strategy]S.training_step"); clock.stop("run_training_batch")
        >>> {name: seconds for name, seconds in clock.seconds().items() if seconds}
        {'setup': 1.0, 'forward': 1.0, 'loop': 4.0}
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, mark: Callable[[int], None] | None = None
    ) -> None:
        self._clock = clock
        self.mark = mark
        self.names: list[str] = []
        self.totals: list[float] = []
        self.calls: list[int] = []
        self._index: dict[str, int] = {}
        self._training: dict[str, int] = {}
        self._evaluating: dict[str, int] = {}
        self._table = self._training
        self._stack: list[int] = []
        self._events: list[tuple[float, int, str | None]] | None = None
        self._current = self.index_of(SETUP)
        for name in BETWEEN_STEPS:
            self.index_of(name)
        self._since = clock()

    def index_of(self, phase: str) -> int:
        """The index of a phase in ``names``, ``totals`` and ``calls``."""
        if phase not in self._index:
            self._index[phase] = len(self.names)
            self.names.append(phase)
            self.totals.append(0.0)
            self.calls.append(0)
        return self._index[phase]

    def start(self, action: str) -> None:
        """An action begins: seconds up to now belong to what was open before."""
        now = self._clock()
        phase = self._table.get(action)
        if phase is None:
            phase = self._learn(action)
        self.totals[self._current] += now - self._since
        self._since = now
        self._stack.append(self._current)
        self._current = phase
        self.calls[phase] += 1
        if self.mark is not None:
            self.mark(phase)
        if self._events is not None:
            self._events.append((now, phase, action))

    def stop(self, action: str) -> None:
        """The innermost action ends."""
        now = self._clock()
        self.totals[self._current] += now - self._since
        self._since = now
        if self._stack:
            self._current = self._stack.pop()
        if self.mark is not None:
            self.mark(self._current)
        if self._events is not None:
            self._events.append((now, -1, None))

    def evaluate(self, inside: bool) -> None:
        """Enter or leave validation: from now on actions belong to it, or to training again."""
        self._table = self._evaluating if inside else self._training

    def now(self) -> float:
        """Charge the seconds up to this moment and return it."""
        now = self._clock()
        self.totals[self._current] += now - self._since
        self._since = now
        return now

    @property
    def current(self) -> str:
        """The phase that is being charged."""
        return self.names[self._current]

    @property
    def depth(self) -> int:
        """Number of open actions."""
        return len(self._stack)

    def unwind(self, depth: int) -> None:
        """Close what an exception left open above ``depth``."""
        while len(self._stack) > depth:
            self.stop("")

    def reset(self) -> None:
        """Forget all seconds; what is open stays open."""
        self.now()
        self.totals[:] = [0.0] * len(self.totals)
        self.calls[:] = [0] * len(self.calls)

    def seconds(self) -> dict[str, float]:
        """Seconds of every phase so far, the open one included; those of validation's parts as ``validation/...``."""
        self.now()
        return dict(zip(self.names, self.totals, strict=True))

    def record(self) -> None:
        """Begin to keep every single action, for a timeline; a few steps' worth."""
        self._events = []

    def recorded(self) -> list[Span]:
        """The actions since :meth:`record`, and stop keeping them."""
        events, self._events = self._events or [], None
        return list(_spans(events, self.names))

    def _learn(self, action: str) -> int:
        phase = phase_of(action)
        inside = self._table is self._evaluating
        name = f"{VALIDATION}/{phase}" if inside and phase != VALIDATION else phase
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

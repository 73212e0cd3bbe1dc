"""SIGTERM agreed between processes now and then, in place of Lightning's blocking broadcast before every micro-batch.

Both halves of Lightning's scheme are replaced: the broadcast in the loop and its partner inside the signal handler, which
without the other would wait for ever. Nobody waits for an answer either: an all-reduce starts before one micro-batch and
is read before the next one, so that a round trip of the link lies beside a step and not between two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from lightning_perf.host.doors import Undo, require, wrap_at
from lightning_perf.host.namespaces import namespace_of
from lightning_perf.host.timing_door import exchanging

#: Without ``every``, the processes agree about this often, so that a SIGTERM is answered soon in a run of slow steps too.
_SECONDS = 1.0
_MOST_STEPS = 100
#: Steps that take longer are too few for an answer to come one step later: it is waited for.
LONG_STEP = 2.0


class Question(NamedTuple):
    """Something else to agree on at the same moment: ``ask`` on every process, ``answer(any of them)`` on every one."""

    ask: Callable[[], bool]
    answer: Callable[[bool], None]


def steps_until_next(seconds_per_step: float) -> int:
    """After how many steps to agree again; every process computes it from the same agreed number."""
    if seconds_per_step <= 0:
        return 1
    return max(1, min(_MOST_STEPS, int(_SECONDS / seconds_per_step)))


class SigtermAgreement:
    """Asks now and then whether a process was told to end, and ends all of them before the same batch.

    Args:
        trainer: the Trainer that fits.
        device: where a tensor must be to be reduced.
        every: number of micro-batches between two agreements; ``None`` for about one a second.
        questions: what else is agreed on, in the same all-reduce.
    """

    def __init__(self, trainer: Any, device: torch.device, every: int | None, questions: list[Question]) -> None:
        self._trainer, self._device, self._every, self._questions = trainer, device, every, questions
        #: False: both halves are Lightning's own again.
        self.engaged = True
        self._pending = False
        self._left, self._taken, self._since = 1, 0, time.perf_counter()
        self._slowest = 0.0
        self._flight: tuple[Any, torch.Tensor] | None = None

    def notice(self, signum: int, frame: Any) -> None:
        """Signal handler: remember, and tell the processes that this one started; no collective runs in here."""
        if self._pending:
            return
        self._pending = True
        launcher = self._trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signum)
        if self._trainer.state.fn != "fit":  # nobody agrees on anything there; the loop looks at its own flag
            self._trainer._signal_connector.received_sigterm = True

    def agree(self) -> None:
        """Stands in for Lightning's broadcast before every micro-batch: read what was asked before, and ask if it is time.

        Raises:
            SIGTERMException: on every process, if one of them has been told to end.
        """
        if self._flight is not None:
            self._land()
        self._left -= 1
        if self._left > 0:
            self._taken += 1
            return
        self._launch()
        if self._slowest > LONG_STEP:
            self._land()

    def _launch(self) -> None:
        """Start the all-reduce of what this process has to say."""
        now = time.perf_counter()
        seconds = (now - self._since) / self._taken if self._taken else 0.0
        self._taken, self._since = 1, now
        votes = [float(self._pending), seconds, *(float(question.ask()) for question in self._questions)]
        told = torch.tensor(votes, dtype=torch.float32, device=self._device)
        self._flight = dist.all_reduce(told, op=dist.ReduceOp.MAX, async_op=True), told

    def _arrived(self) -> list[float] | None:
        """What all processes said, if they were asked."""
        if self._flight is None:
            return None
        (work, told), self._flight = self._flight, None
        with exchanging(self._trainer):
            work.wait()
        return told.tolist()

    def _land(self) -> None:
        """Do what all processes said, if they were asked."""
        said = self._arrived()
        if said is None:
            return
        ended, self._slowest, *answers = said
        self._left = self._every or steps_until_next(self._slowest)
        for question, answer in zip(self._questions, answers, strict=True):
            question.answer(bool(answer))
        if ended:
            self._trainer._signal_connector.received_sigterm = True
            raise namespace_of(self._trainer).utilities.exceptions.SIGTERMException()

    def agree_now(self) -> None:
        """Agree and wait for it, whether it is time or not; to be called on all processes.

        Raises:
            SIGTERMException: as :meth:`agree`.
        """
        self._land()
        self._taken = 0  # no steps alone lie behind this moment
        self._launch()
        self._land()

    def rest(self) -> None:
        """Leave nothing under way at the end of a fit; to be called on all processes."""
        self._arrived()

    def close(self) -> None:
        """A signal that came after the last agreement is left for whoever asks ``trainer.received_sigterm``."""
        if self._pending:
            self._trainer._signal_connector.received_sigterm = True


def agree_on_sigterm(
    trainer: Any, device: torch.device, every: int | None, questions: list[Question], undo: Undo
) -> SigtermAgreement:
    """Put an agreement in the place of both halves of Lightning's; call it before Lightning registers its handlers.

    Raises:
        DoorClosed: if this release of Lightning handles SIGTERM in another way.
    """
    loop = require(require(trainer, "fit_loop"), "epoch_loop")
    connector = require(trainer, "_signal_connector")
    require(connector, "received_sigterm")
    require(connector, "_sigterm_notifier_fn", parameters=("signum", "_"))
    agreement = SigtermAgreement(trainer, device, every, questions)

    def instead(ours: Callable[..., None], inner: Callable[..., None]) -> Callable[..., None]:
        return lambda *args: (ours if agreement.engaged else inner)(*args)

    undo.push(wrap_at(loop, "_broadcast_sigterm_tensor", lambda inner: instead(agreement.agree, inner)))
    undo.push(wrap_at(connector, "_sigterm_notifier_fn", lambda inner: instead(agreement.notice, inner)))
    undo.push(agreement.close)
    return agreement

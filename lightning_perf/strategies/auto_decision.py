"""When ``perf_ddp_auto`` tries its candidates, and how the strategy becomes the one that was chosen."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

from lightning_perf.host import DoorClosed, progress_of, takes_iterator, wrap_again
from lightning_perf.host.rehearsal import rehearsal
from lightning_perf.strategies.auto import MOST_STEPS, Choice
from lightning_perf.strategies.auto_trials import Trials, agreed
from lightning_perf.strategies.buffer_sync import is_compiled
from lightning_perf.strategies.ddp_arguments import ddp_arguments
from lightning_perf.strategies.presets import PLAIN, Preset


def become_the_fastest(strategy: Any, pool: Sequence[Preset], batch: Any, before: str | None) -> Choice:
    """Choose, say it, and go on as what was chosen; before the run's own first step, on all processes.

    Args:
        strategy: the strategy of the run, set up as plain ddp.
        pool: the candidates, plain ddp first.
        batch: the first batch of the fit, on its device; it is copied for every step.
        before: what the checkpoint that is resumed was taken with, if that has to stay.
    """
    choice, row, arguments = _choose(strategy, pool, batch, before)
    strategy.say(str(choice))
    strategy.answer_sigterm()  # what came so far was only remembered
    strategy.engage_levers(not row.plain)
    if not row.plain:
        strategy.acting = row
        strategy._ddp_kwargs = {**arguments, "init_sync": False}  # the processes are equal since the first wrap
        wrap_again(strategy.lightning_module.trainer)
    return choice


def _choose(
    strategy: Any, pool: Sequence[Preset], batch: Any, before: str | None
) -> tuple[Choice, Preset, dict[str, Any]]:
    """What to run as, and the arguments of DDP for it. Collective; all processes get the same answer."""
    trainer = strategy.lightning_module.trainer
    rows = {row.name: row for row in pool}
    if before in rows:
        arguments = ddp_arguments(rows[before], strategy._given_kwargs, trainer, strategy.root_device, strategy.say)
        return (
            Choice(before, "the checkpoint is of a run that took it, and a run that rounds goes on so"),
            rows[before],
            arguments,
        )
    reason = agreed(strategy, _reason_not_to_try(strategy, trainer))
    if reason is None:
        try:
            with rehearsal(trainer):
                choice, arguments = Trials(strategy, trainer, pool, batch).run()
            return choice, rows[choice.name], arguments
        except DoorClosed as closed:  # on every process alike: it is a matter of the release
            reason = str(closed)
        finally:
            gc.collect()  # wrappers and the nodes of autograd that they hold on to
    return Choice(PLAIN.name, reason), PLAIN, {}


def _reason_not_to_try(strategy: Any, trainer: Any) -> str | None:
    module = strategy.lightning_module
    progress = progress_of(trainer)
    left = progress.total - progress.step
    if left <= MOST_STEPS:
        return f"nothing was tried, since trials take up to {MOST_STEPS} steps and this run has {left:.0f}"
    if takes_iterator(module):
        return "nothing was tried, since training_step takes its batches from dataloader_iter"
    if is_compiled(module):
        return "nothing was tried, since the module is compiled, and every candidate would compile it again"
    if strategy._ddp_comm_hook is not None:
        return "nothing was tried, since ddp_comm_hook may keep a state that trials would change"
    if strategy._model_averaging_period is not None:
        return "nothing was tried, since with model_averaging_period steps are not alike"
    return None

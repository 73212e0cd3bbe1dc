"""The range test on a Trainer: a trial run before the first step, of which nothing remains but a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from lightning_perf.host import MisconfigurationException, dry_training
from lightning_perf.host.optimizer_door import raw
from lightning_perf.host.run_length import optimizer_steps
from lightning_perf.optim.range_test import growing_rates, has_diverged, suggest


def find_rate(
    trainer: Any, pl_module: Any, peaks: Callable[[float], list[float]], say: Callable[[str], None]
) -> float | None:
    """Train a copy of the module and its optimizer at growing rates, and say what was found.

    Args:
        trainer: its loaders exist, its optimizer has taken no step.
        pl_module: the module.
        peaks: the learning rate of each parameter group, given that of the run.
        say: prints a line.

    Returns:
        The suggestion, or ``None`` where the loss did not fall.

    Raises:
        MisconfigurationException: an optimizer that evaluates a closure many times a step; what ``dry_training`` cannot
            copy.
    """
    optimizer = raw(trainer.strategy.optimizers[0])
    if isinstance(optimizer, torch.optim.LBFGS):
        raise MisconfigurationException(
            "lr='auto' cannot test LBFGS, which evaluates its closure many times a step; pass lr as a number, or leave it "
            "out."
        )
    rates, losses = [], []
    with dry_training(trainer, pl_module, optimizer) as training:
        for rate in growing_rates():
            for group, peak in zip(training.optimizer.param_groups, peaks(rate), strict=True):
                group["lr"] = torch.full_like(group["lr"], peak) if isinstance(group["lr"], torch.Tensor) else peak
            loss = training.step()
            if loss is None:
                continue
            rates.append(rate)
            losses.append(loss)
            if has_diverged(losses):
                break
    steps = f"a range test of {len(losses)} steps{_share(trainer, len(losses))}"
    found = suggest(rates, losses)
    if found is None:
        say(f"{steps} found no learning rate at which the loss falls; the module's or the default one stays.")
        return None
    say(f"learning rate {found:.3g} from {steps}; pass lr={found!r} to have it without the test.")
    return found


def _share(trainer: Any, steps: int) -> str:
    total = optimizer_steps(trainer)
    return f" ({100 * steps / total:.0f} % of this run's)" if 0 < total < math.inf else ""

"""Post-training quantization: calibrate, measure, and keep in float what the metric cannot spare."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from lightning_perf.autopilot.compare import monitored_metric
from lightning_perf.autopilot.direction import (
    Direction,
    Mode,
    check_mode,
    direction_of,
    modes_of_own_trainer,
    monitored_modes,
    own_trainer,
)
from lightning_perf.autopilot.sensitivity import budget_of, grouped, keep_fewest
from lightning_perf.autopilot.stopwatch import pick_metric
from lightning_perf.host import is_a, namespace_of
from lightning_perf.quantization.calibrate import calibrating, forward_all
from lightning_perf.quantization.callback_calibrate import Quantize
from lightning_perf.quantization.layers import Preparation, records
from lightning_perf.quantization.listing import entries, lines
from lightning_perf.quantization.observers import Gather
from lightning_perf.quantization.prepare import load_state, preparation, prepare, state_of, unprepare

M = TypeVar("M", bound=nn.Module)


def quantize(
    module: M,
    loader: Iterable[Any],
    *,
    scheme: str = "int8",
    ignore: Sequence[str] = (),
    trainer: Any = None,
    max_drop: float | str | None = None,
    mode: Mode | None = None,
) -> M:
    """Quantize a trained module without training: the preparation of :class:`QuantizationAwareTraining`, calibrated.

    A LightningModule is calibrated by its own ``validation_step`` through a Trainer, any other module by calls on the
    batches: a mapping as keywords, of a tuple as many entries as ``forward`` requires. The module is prepared in place and
    returned; its weights stay, and :func:`lightning_perf.unprepare` takes everything back.

    With ``max_drop``, the metric that validation logs (the one that a checkpoint or early stopping of ``trainer`` monitors,
    else ``val_acc`` or ``val_loss``) is measured through the Trainer in float and quantized. If it drops by more, groups of
    layers are measured one by one, and the fewest stay in float with which the drop is within the budget.
    ``lightning_perf.quantization.section(module)`` is the account of it, with a plot of the drop by group.

    Args:
        module: a trained module; it need not be traceable.
        loader: batches for calibration and for the metric; some hundred samples are enough for the first.
        scheme: ``int8``, ``int8-dynamic``, ``int8-weight-only``, ``int4`` or ``float8``.
        ignore: qualified names of layers to leave in float, with ``*`` and ``?``.
        trainer: whose ``validate`` runs; default: a quiet one on one device.
        max_drop: largest drop of the metric, in its own units (``0.002``) or as a percentage of its value in float
            (``"0.5%"``).
        mode: ``max`` or ``min``: which direction of the metric is better; by default what monitors it in ``trainer``, or in
            the Trainer that fitted the module, says, else told from its name. A line says which it was.

    With a Trainer on several ranks, every rank calls this; ranges are those of all ranks together and the same on each, and
    so is what stays in float.

    Raises:
        ValueError: an unknown scheme or mode, a pattern that matches no layer, no layer to quantize, calibration that
            reaches no layer or meets values that are not finite, ``max_drop`` without a metric, ``mode`` without it, or a
            strategy that validates in processes of its own. The module is then as it was.

    Example::

        >>> import lightning_perf as lp
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> lp.quantize(net, [torch.randn(16, 4)]) is net
        True
    """
    check_mode(mode)
    if mode is not None and max_drop is None:
        raise ValueError(f"mode={mode!r} is of the metric that max_drop limits; pass max_drop, or leave mode out.")
    prepared_before, before = preparation(module) is not None, state_of(module)
    shared = prepare(module, scheme, ignore=ignore)
    try:
        direction = _direction(module, trainer, mode)
        with _validated_by(module, trainer) as runs:
            _quantize(module, shared, loader, runs, max_drop, direction)
    except BaseException:
        if prepared_before:
            load_state(module, before)
        else:
            unprepare(module)
        raise
    return module


def keep_within(
    module: nn.Module, loader: Any, max_drop: float | str, trainer: Any = None, *, mode: Mode | None = None
) -> None:
    """Keep in float what it takes for the metric to stay within ``max_drop``, with the ranges that the module has.

    Raises:
        ValueError: ``max_drop`` without a metric.
    """
    shared = preparation(module)
    assert shared is not None
    _check_metric(module, max_drop)
    callback, direction = Quantize(module), _direction(module, trainer, mode)
    with _validated_by(module, trainer) as runs:
        shared.quantizing = False
        try:
            in_float = _validate(module, loader, runs, callback)
        finally:
            shared.quantizing = True
        _meet(module, loader, runs, callback, in_float, max_drop, direction)


def _direction(module: nn.Module, trainer: Any, mode: Mode | None) -> Callable[[str], Direction]:
    """Tells the direction of a metric; asked before a validation attaches the module to another Trainer."""
    given = {} if trainer is None else monitored_modes(trainer)
    return partial(direction_of, mode=mode, monitored={**modes_of_own_trainer(module), **given})


@contextlib.contextmanager
def _validated_by(module: nn.Module, trainer: Any) -> Iterator[Any]:
    """``trainer``; without one a quiet one, after which the module is attached to its own again."""
    if trainer is not None or not _validates(module):
        yield trainer
        return
    own = own_trainer(module)
    try:
        yield _quiet_trainer(module)
    finally:
        module.trainer = own


def _quantize(
    module: nn.Module,
    shared: Preparation,
    loader: Any,
    trainer: Any,
    max_drop: float | str | None,
    direction: Callable[[str], Direction],
) -> None:
    if max_drop is not None:
        _check_metric(module, max_drop)
    for _, _, layer in records(module):
        layer.active = layer.reason is None
    shared.sensitivity = {}
    callback = Quantize(module)
    if not _validates(module):
        if trainer is not None and trainer.world_size > 1:
            raise ValueError(
                f"trainer has {trainer.world_size} ranks and {type(module).__name__} has no validation_step for it to run; "
                "pass a LightningModule with validation, or leave trainer out and give every rank the same batches."
            )
        with calibrating(module):
            forward_all(module, loader)
    else:
        with calibrating(module, lambda: _gather(trainer)):
            in_float = _validate(module, loader, trainer, callback)
        if max_drop is not None:
            _meet(module, loader, trainer, callback, in_float, max_drop, direction)
    for line in lines(entries(module)):
        callback.say(line)


def _validate(module: nn.Module, loader: Any, trainer: Any, callback: Quantize) -> dict[str, float]:
    """What the module logs in validation."""
    trainer.callbacks.append(callback)
    try:
        logged = trainer.validate(module, loader, verbose=False)
    finally:
        trainer.callbacks.remove(callback)
    return {name: float(value) for one in logged for name, value in one.items()}


def _meet(
    module: nn.Module,
    loader: Any,
    trainer: Any,
    callback: Quantize,
    in_float: dict[str, float],
    max_drop: float | str,
    direction: Callable[[str], Direction],
) -> None:
    """Keep in float what it takes for the metric to stay within its budget; on all ranks the same."""
    metric = _metric(trainer, in_float, max_drop)
    towards = direction(metric)
    reference, sign = _mean(in_float[metric], trainer), 1.0 if towards.mode == "max" else -1.0
    if not math.isfinite(reference):
        raise ValueError(
            f"max_drop={max_drop!r}: {metric} is {reference} in float, so that no drop of it can be measured; look at the "
            "weights and at the validation data, or leave max_drop out."
        )
    budget = budget_of(max_drop, reference)
    layers = {name: layer for name, _, layer in records(module) if layer.known}
    groups = grouped(list(layers))

    def only(names: Set[str]) -> None:
        for group, members in groups.items():
            for name in members:
                layers[name].active = group in names and layers[name].reason is None

    def drop(names: Set[str]) -> float:
        only(names)
        lost = sign * (reference - _mean(_validate(module, loader, trainer, callback)[metric], trainer))
        return math.inf if math.isnan(lost) else lost

    found = keep_fewest(list(groups), drop, budget)
    only(set(groups) - set(found.kept))
    shared = preparation(module)
    assert shared is not None
    shared.sensitivity = {f"{metric}: drop": dict(found.alone)} if found.alone else {}
    kept = f"with {', '.join(found.kept)} in float" if found.kept else "with all of them quantized"
    callback.say(
        f"{metric} {reference:.6g} in float, drop {found.drop:.3g} {kept} (max_drop={max_drop}, {budget:.3g}; "
        f"{towards})."
    )


def _metric(trainer: Any, logged: dict[str, float], max_drop: float | str) -> str:
    metric = monitored_metric(trainer) or pick_metric(logged)
    if metric not in logged:
        raise ValueError(
            f"max_drop={max_drop!r} needs a metric: {metric!r} is none of what validation logged, {sorted(logged)}; log one "
            "whose name starts with val, or give trainer a ModelCheckpoint that monitors one."
        )
    return metric


def _gather(trainer: Any) -> Gather | None:
    """Stacks a tensor of all ranks of a Trainer that has just validated; None where there is one rank."""
    if trainer.world_size == 1:
        return None
    if not torch.distributed.is_initialized():
        raise ValueError(
            f"strategy {type(trainer.strategy).__name__} validates in {trainer.world_size} processes of its own, and ranges "
            "stay there; use strategy='ddp', or a Trainer with devices=1."
        )
    strategy = trainer.strategy
    return lambda mine: strategy.all_gather(mine.to(strategy.root_device)).to(mine.device)


def _mean(value: float, trainer: Any) -> float:
    """A number that every rank has, as one for all."""
    gather = _gather(trainer)
    return value if gather is None else float(gather(torch.tensor([value], dtype=torch.float64)).mean())


def _check_metric(module: nn.Module, max_drop: float | str) -> None:
    if not _validates(module):
        raise ValueError(
            f"max_drop={max_drop!r} needs a metric, and {type(module).__name__} has no validation_step that logs one; pass "
            "a LightningModule with validation, or leave max_drop out."
        )


def _validates(module: nn.Module) -> bool:
    if not is_a(module, "LightningModule"):
        return False
    return type(module).validation_step is not namespace_of(module).LightningModule.validation_step  # type: ignore


def _quiet_trainer(module: nn.Module) -> Any:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return namespace_of(module).Trainer(devices=1, **quiet)

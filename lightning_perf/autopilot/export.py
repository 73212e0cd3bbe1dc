"""``export``: a module to a folder of runtimes, each proven equal and timed."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lightning_perf.autopilot.compare import quality_of
from lightning_perf.autopilot.direction import Direction, Mode, check_mode, direction_of, modes_of_own_trainer
from lightning_perf.autopilot.export_source import copy_with, source_of, write_child
from lightning_perf.autopilot.stopwatch import pick_metric
from lightning_perf.deploy import parts
from lightning_perf.deploy.artifact import Artifact, check_target
from lightning_perf.deploy.call import copies, describe_call
from lightning_perf.deploy.pipeline import PYTHON, check_precisions, choose_runtimes, write_artifact
from lightning_perf.deploy.source import INT8, PRECISIONS, NotExportable, Source, exported_program
from lightning_perf.deploy.structures import NotPlain
from lightning_perf.deploy.trial import METRIC, eager, under_signature
from lightning_perf.host import arguments_of, batches_of, is_a, namespace_of
from lightning_perf.report import Quantity

_log = logging.getLogger(__name__)

Metric = Callable[[Callable[..., Any]], float]


def export(
    module: nn.Module,
    batch_or_inputs: Any,
    path: str | Path,
    *,
    runtimes: str | Sequence[str] = "auto",
    precisions: Sequence[str] = PRECISIONS,
    method: str = "forward",
    loader: Any = None,
    metric: str | Metric | None = None,
    mode: Mode | None = None,
    max_drop: float | None = None,
    calibration_batches: int = 8,
    batches: Sequence[int] = (1, 32),
    rounds: int = 9,
    tolerance: Mapping[str, float] | None = None,
) -> Artifact:
    """Write a folder that runs ``module`` in other runtimes, and report which of them is right and how fast.

    Every variant is compared with the module over successive calls and several batch sizes, has to leave the module's
    parameters alone, and is timed beside the eager module and all other variants. The module itself is not changed. A module
    that went through `QuantizationAwareTraining` or `quantize` keeps its ranges in int8; for another one they come from the
    inputs that are given here.

    Args:
        module: a LightningModule or any module.
        batch_or_inputs: a loader, one batch as it gives them, or a dictionary of the call's arguments by name. The more
            samples, the better the ranges of int8.
        path: the folder to write; an older artefact there is replaced once the new one is complete.
        runtimes: names among onnxruntime, openvino, inductor, parts, compile and stored; or ``"auto"``: the first three as
            far as they are installed, and where none can take the module, the others in this order, saying what is lost.
        precisions: among fp32, bf16, int8.
        method: the entry point whose call is exported.
        loader: validation batches, to measure the metric through every variant.
        metric: with ``loader``: the name that ``validation_step`` logs (default ``val_acc``, ``val_loss``, ...). Without:
            a function that gets a callable of the module's signature and returns a number.
        mode: ``max`` or ``min``: which direction of the metric is better; by default what monitors it in the Trainer that
            the module was last given to says, else told from its name. The report says which it was.
        max_drop: a variant whose metric is worse by more than this does not pass.
        calibration_batches: batches that are read when a loader is given.
        batches: batch sizes to time.
        rounds: rounds of the timing; 0 times nothing.
        tolerance: accepted relative error of outputs by precision; default 0.001, 0.05 and 0.1.

    Raises:
        ValueError: an unknown name or mode, inputs that fit no call, a path that is taken, NaN in weights or ranges,
            ``mode`` without a metric, ``max_drop`` without one or with a ``validation_step`` that does not call ``method``.
        ImportError: a runtime that was asked for by name is missing.
        NotExportable: no runtime can take the module.

    Example::

        >>> import lightning_perf as lp, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> made = lp.export(net, torch.randn(64, 8), "net.lpx", runtimes="onnxruntime", rounds=0)
        >>> sorted(made.manifest["variants"])
        ['onnxruntime-fp32', 'onnxruntime-int8']
        >>> lp.load_artifact("net.lpx")(torch.randn(3, 8)).shape
        torch.Size([3, 2])
    """
    if max_drop is not None and loader is None and not callable(metric):
        raise ValueError(
            f"max_drop={max_drop!r} needs a metric; pass loader=, the validation batches that it is measured on, or a "
            "function as metric, or leave max_drop out."
        )
    check_mode(mode)
    if mode is not None and loader is None and not callable(metric):
        raise ValueError(f"mode={mode!r} is of a metric and there is none; pass loader= or a function as metric.")
    names, _ = choose_runtimes(runtimes)
    wanted = check_precisions(precisions)
    check_target(Path(path))
    given = batches_of(batch_or_inputs, calibration_batches)
    (args, kwargs), how = arguments_of(module, given[0], method)
    try:
        call = describe_call(module, args, kwargs, method)
    except NotPlain as error:
        children = parts.children_that_take_tensors(module, args, kwargs, method)
        if not children:
            raise
        raise NotPlain(
            f"{error} Or export the parts of {type(module).__name__} that take tensors as they are, each with what it gets "
            f"in a call, such as export(module.{children[0]}, inputs, path): {', '.join(children)}."
        ) from error
    calibration = [call.leaves(*arguments_of(module, batch, method)[0]) for batch in given]
    calibration = [
        copies([tensor.detach().cpu() for tensor in tensors]) for tensors in calibration if call.fits(tensors)
    ]
    source, words, missing = source_of(module, call, calibration, wanted)
    measured, row, direction = _metric(module, source, loader, metric, mode)
    unmeasured = measured.unmeasured if isinstance(measured, _ValidationMetric) else None
    if unmeasured and max_drop is not None:
        raise ValueError(f"max_drop={max_drop!r} needs a metric that runs the artefact: {unmeasured}.")
    write = partial(
        write_artifact,
        path=path,
        builders={parts.NAME: partial(parts.build, write_child=partial(write_child, source))},
        precisions=[precision for precision in wanted if precision not in missing],
        batches=batches,
        rounds=rounds,
        tolerance=tolerance,
        metric=None if unmeasured else measured,
        metric_row=row,
        max_drop=max_drop,
        title=f"{type(module).__name__}.{method}",
        facts={"call": how, "module": f"{type(module).__module__}.{type(module).__qualname__}"},
    )
    left_out = {f"{runtime}-{INT8}": reason for reason in missing.values() for runtime in names}
    notes = [f"The call: {how}.", *words]
    if len(calibration) < len(given):
        notes.append(
            f"{len(given) - len(calibration)} of {len(given)} calibration batches are left out: their sizes differ from "
            "those of the first one, which the graphs are made for; let the loader pad all batches to one size."
        )
    if unmeasured:
        notes.append(f"{row.label} is not measured: {unmeasured}.")
    elif direction is not None:
        notes.append(f"Metric: {row.label}; {direction}.")
    try:
        made = _first_that_works(partial(write, source), runtimes, left_out, notes)
    except NotExportable as error:
        one_size = dataclasses.replace(source, call=call.of_one_size(f"for any size {error}"))
        if runtimes == "auto" or not any(call.batched) or not _traceable(one_size):
            raise
        made = _first_that_works(partial(write, one_size), runtimes, left_out, notes)
    _log.info("export: %s; best for one sample: %s", made.path, made.best)
    return made


def _traceable(source: Source) -> bool:
    try:
        exported_program(source.plain, source.call)
    except NotExportable:
        return False
    return True


def _first_that_works(
    write: Callable[..., Artifact], runtimes: str | Sequence[str], left_out: dict[str, str], notes: Sequence[str]
) -> Artifact:
    """The whole module; else its largest parts; else its weights for torch.compile; else a smaller file of them.

    Runtimes that were asked for by name are not replaced by others.
    """
    steps = [runtimes] if runtimes != "auto" else [runtimes, parts.NAME, *PYTHON]
    reasons: dict[str, str] = {}
    for step in steps:
        try:
            return write(runtimes=step, left_out=left_out | reasons, notes=notes)
        except NotExportable as error:
            reasons["the whole module" if step == "auto" else str(step)] = str(error)
    raise NotExportable("; ".join(reasons.values()))


def _metric(
    module: nn.Module, source: Source, loader: Any, metric: str | Metric | None, mode: Mode | None
) -> tuple[Metric | None, Quantity, Direction | None]:
    """A function that measures a callable, the row it is shown in, and which direction of it is better."""
    if callable(metric):
        label = getattr(metric, "__name__", "metric")
        direction = direction_of(label, mode)
        return metric, dataclasses.replace(METRIC, label=label, better=direction.better), direction
    if loader is None:
        if metric is not None:
            raise ValueError(f"metric={metric!r} needs the validation batches that it is measured on; pass loader=.")
        return None, METRIC, None
    if not is_a(module, "LightningModule"):
        raise ValueError(
            f"loader= needs a LightningModule and this is {type(module).__name__}; pass a function as metric."
        )
    measured = _ValidationMetric(module, source, loader, metric)
    direction = direction_of(measured.name, mode, modes_of_own_trainer(module))
    quality = quality_of(measured.name, direction.mode)
    return measured, dataclasses.replace(quality, key=METRIC.key, label=f"{measured.name}"), direction


class _ValidationMetric:
    """What the module's own ``validation_step`` logs while its entry point is an artefact."""

    def __init__(self, module: nn.Module, source: Source, loader: Any, name: str | None) -> None:
        self.module, self.method, self.loader = module, source.call.method, loader
        self.calls = 0
        # Of a copy in evaluation mode: the batch norms of a module that is in training would take the batches for training.
        # The copy goes through the same flat tensors as artefacts do: what they cannot hold shows before any is built.
        logged = self._validate(under_signature(eager(source), source))
        self.name = name or pick_metric(logged)
        if self.name not in logged:
            raise ValueError(f"metric={self.name!r} is not logged in validation; logged are {sorted(logged)}.")

    @property
    def unmeasured(self) -> str | None:
        """Why the metric says nothing of an artefact; None where validation calls it."""
        if self.calls:
            return None
        return (
            f"validation_step does not call {self.method}(), so no artefact would run; export(..., method=...) the method "
            "that it calls, or call self(...) there"
        )

    def __call__(self, run: Callable[..., Any]) -> float:
        assert self.name is not None
        return float(self._validate(run)[self.name])

    def _validate(self, run: Callable[..., Any]) -> dict[str, float]:
        trainer = namespace_of(self.module).Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return run(*args, **kwargs)

        clone = copy_with(self.module, self.method, counted)
        logged = trainer.validate(clone, dataloaders=self.loader, verbose=False)
        return {name: value for one in logged for name, value in one.items()}

"""FLOPs of a LightningModule's true training step, counted on a copy."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from lightning_perf._quiet import quiet
from lightning_perf.host import PerfCallback, is_a, namespace_of, preserved_rng
from lightning_perf.host.dry_run import iter_is_self
from lightning_perf.host.loader_door import loaders_in
from lightning_perf.profiling.flop_count import FlopCount
from lightning_perf.profiling.flops import FlopCounter

_LOGGERS = ("lightning.pytorch", "pytorch_lightning", "lightning.fabric", "lightning_fabric")
_REPEATS = 1000  # a single batch stands for a training of this many, for schedules that are sized by the run


def measure_flops(module: Any, data: Any = None, *, trainer: Any = None) -> FlopCount:
    """Count the FLOPs of one real training step of a LightningModule: forward, backward and optimizer, by module.

    The step runs in a quiet Trainer on a deep copy, with the module's own hooks, optimizers and (for manual optimization)
    backward passes. The module, its optimizer, the loader's position and all random numbers stay as they are. Callbacks
    and loggers take no part. A copy of the module must fit into memory, and of the datamodule or iterable dataset if one
    is given; a map-style dataset is not copied but asked for the samples of one batch.

    Args:
        module: the LightningModule of either namespace, fitted or not, attached to a Trainer or not.
        data: a DataLoader (or dict or list of them), a LightningDataModule, or one batch as a loader gives it (a list or
            tuple without loaders is a batch); None: the module's own ``train_dataloader``.
        trainer: take device, precision, accumulation, clipping and length of the training from this one; default: the
            module's device, 32 bit.

    Returns:
        The count; ``print(count.table())`` shows it.

    Raises:
        TypeError: the module or the data cannot be copied, or ``module`` is no LightningModule.
        ValueError: the data can be read only once, or holds no batch.

    Deviation: Lightning's ``measure_flops`` counts a function that the user writes, forward and ``loss.backward()``, and
    counts attention and recurrent layers on the CPU as 0.

    Example::

        >>> import lightning.pytorch as pl
        >>> class Net(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(8, 2)
        ...     def training_step(self, batch, batch_idx):
        ...         return self.layer(batch).sum()
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> count = measure_flops(Net(), torch.randn(4, 8))
        >>> count.forward, count.backward, count.by_module["layer"].model
        (128, 128, 256)
    """
    module = getattr(module, "_orig_mod", module)  # what torch.compile made of it
    if not is_a(module, "LightningModule"):
        raise TypeError(f"module={type(module).__qualname__} is no LightningModule; for other modules use FlopCounter.")
    namespace = namespace_of(module)
    clone = _copied(module, "measure_flops runs the step on a copy; count inside the training with ThroughputProfiler.")
    vars(clone)["configure_callbacks"] = list
    step = _OneStep()
    with (
        preserved_rng(),
        torch.inference_mode(False),
        torch.enable_grad(),
        quiet(*_LOGGERS),
        tempfile.TemporaryDirectory() as folder,
    ):
        runner = _trainer_like(namespace, trainer, clone, folder, step)
        with suppress(_Counted):
            runner.fit(clone, **_feed(data))
    if step.counter is None:
        raise ValueError(
            f"{type(data).__name__} gave no batch, so there was no training step; pass data that holds one."
        )
    return step.counter.count


def count_macs(module: Any, batch: Any) -> int:
    """Multiply-accumulates of one forward pass over ``batch``, the measure of most papers: half of its FLOPs.

    A LightningModule runs the forward pass of its own ``training_step``, on a copy (see :func:`measure_flops`); any other
    module is called on the batch, or on its members if the batch is a tuple or list.

    Args:
        module: a module; it is not changed.
        batch: as a loader gives it.

    Example::

        >>> count_macs(torch.nn.Linear(8, 4), torch.ones(2, 8))
        64
    """
    if is_a(getattr(module, "_orig_mod", module), "LightningModule"):
        return measure_flops(module, batch).forward // 2
    clone = _copied(module, "count_macs calls a copy, so that running statistics stay.")
    with preserved_rng(), torch.no_grad(), FlopCounter() as counter:
        clone(*batch) if isinstance(batch, list | tuple) else clone(batch)
    return counter.count.forward // 2


class _Counted(Exception):
    """The step was counted; nothing of what follows it in a training is wanted."""


class _OneStep(PerfCallback):
    """Counts the first training step and ends the run."""

    def __init__(self) -> None:
        super().__init__()
        self.counter: FlopCounter | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's hook: the batch is on its device, the step is next."""
        self.counter = FlopCounter(pl_module)
        self.undo(trainer).push(self.counter.__exit__, None, None, None)
        self.counter.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Lightning's hook: the step is over."""
        assert self.counter is not None
        self.counter.__exit__(None, None, None)
        raise _Counted


class _Repeat:
    """A loader that gives one batch again and again."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[Any]:
        return iter([self._batch] * _REPEATS)

    def __len__(self) -> int:
        return _REPEATS


def _trainer_like(namespace: ModuleType, like: Any, module: Any, folder: str, callback: Any) -> Any:
    """A Trainer of this namespace that writes nothing, on one device, otherwise like the user's."""
    device = like.strategy.root_device if like is not None else module.device
    arguments: dict[str, Any] = {"max_epochs": 1}
    if like is not None:
        arguments = {
            name: getattr(like, name)
            for name in (
                "max_epochs",
                "max_steps",
                "accumulate_grad_batches",
                "gradient_clip_val",
                "limit_train_batches",
            )
        }
        arguments["gradient_clip_algorithm"] = like.gradient_clip_algorithm
        plugin = like.precision_plugin
        if type(plugin).__module__.startswith(namespace.__name__):
            arguments["precision"] = like.precision
        else:  # one of the user's own
            arguments["plugins"] = [copy.deepcopy(plugin)]
    return namespace.Trainer(
        accelerator=device.type,
        devices=1 if device.index is None or device.type in ("cpu", "mps") else [device.index],
        callbacks=[callback],
        # Some modules need a logger to be there.
        logger=namespace.loggers.logger.DummyLogger(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **arguments,
    )


def _feed(data: Any) -> dict[str, Any]:
    """The arguments of ``fit`` that give the data without disturbing what the user has."""
    if data is None:
        return {}
    fix = "pass one of its batches instead."
    if is_a(data, "LightningDataModule"):
        return {"datamodule": _copied(data, fix, {id(data.trainer): None} if data.trainer is not None else {})}
    if not _is_loader(data):
        return {"train_dataloaders": _Repeat(copy.deepcopy(data))}
    loaders = list(loaders_in(data))
    for loader in loaders:
        if iter_is_self(loader):
            raise ValueError(
                f"{type(loader).__name__} can be read only once, so a step would lose its first batch; {fix}"
            )
    keep: dict[int, Any] = {}
    for loader in loaders:
        dataset = getattr(loader, "dataset", None)
        if dataset is not None and not isinstance(dataset, IterableDataset):
            keep[id(dataset)] = dataset
        if getattr(loader, "_iterator", None) is not None:  # persistent workers stay with the original
            keep[id(loader._iterator)] = None
    return {"train_dataloaders": _copied(data, fix, keep)}


def _is_loader(data: Any) -> bool:
    """Whether ``data`` gives batches: it is a loader or holds some; lists, mappings, arrays and graphs are batches."""
    if isinstance(data, DataLoader) or is_a(data, "CombinedLoader"):
        return True
    if isinstance(data, Mapping | list | tuple):
        return any(isinstance(loader, DataLoader) for loader in loaders_in(data))
    is_batch = hasattr(data, "shape") or hasattr(data, "to") or dataclasses.is_dataclass(data) or isinstance(data, str)
    return not is_batch and (hasattr(data, "__iter__") or hasattr(data, "__next__"))


def _copied(value: Any, fix: str, memo: Mapping[int, Any] | None = None) -> Any:
    """A deep copy, except for what ``memo`` maps from its id to what stands in its place.

    Raises:
        TypeError: it cannot be copied; the message names the attribute.
    """
    try:
        return copy.deepcopy(value, dict(memo or {}))
    except Exception as error:
        culprit = _culprit(value, memo or {})
        what = f"{type(value).__name__}.{culprit}" if culprit else type(value).__name__
        raise TypeError(
            f"{what} cannot be copied ({type(error).__name__}: {error}), as open files, locks, generators and tensors "
            f"with history cannot; {fix}"
        ) from error


def _culprit(value: Any, memo: Mapping[int, Any]) -> str | None:
    """The first attribute that cannot be copied."""
    attributes = {**getattr(value, "__dict__", {}), **getattr(value, "_modules", {}), **getattr(value, "_buffers", {})}
    for name, attribute in attributes.items():
        if name in ("_modules", "_buffers", "_trainer", "trainer"):
            continue
        try:
            copy.deepcopy(attribute, dict(memo))
        except Exception:
            return name
    return None

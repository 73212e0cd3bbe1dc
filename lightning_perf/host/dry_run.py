"""Run a real ``training_step`` that leaves no trace: no log, no random draw, no change of module, optimizer or loader."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from lightning_perf._copying import deep_copy
from lightning_perf.host.loader_door import generators_of, loaders_in, without_workers
from lightning_perf.host.rng import preserved_rng


class IdleOptimizer:
    """Stands in for an optimizer that a step under manual optimization would use; steps nothing.

    It is an instance of the optimizer's class, since some modules check that.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self._optimizer)

    def step(self, closure: Callable[[], Any] | None = None, **_: Any) -> Any:
        """Evaluate the closure, as an optimizer would, and update nothing."""
        return closure() if closure is not None else None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing to clear: gradients belong to the copy."""

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Nothing to toggle."""
        yield

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_optimizer":
            raise AttributeError(name)
        return getattr(self._optimizer, name)


def _silent(*args: Any, **kwargs: Any) -> None:
    return None


def silent_copy(pl_module: Any, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy of the module that logs nothing, steps no optimizer and knows its Trainer.

    Metrics, buffers and whatever else the step changes belong to the copy. Memory for a second module is needed. With the
    same ``memo``, an optimizer can be copied along, onto the parameters of the copy.
    """
    clone = deep_copy(pl_module, memo)
    clone._trainer = pl_module._trainer
    names = vars(clone)
    names.update(log=_silent, log_dict=_silent, print=_silent)
    if not isinstance(getattr(type(pl_module), "optimizers", None), property):  # some modules hold raw optimizers
        own = [IdleOptimizer(optimizer) for optimizer in pl_module.trainer.strategy.optimizers]
        names["optimizers"] = lambda use_pl_optimizer=True: own[0] if len(own) == 1 else own
        names["lr_schedulers"] = _silent
        names.update(toggle_optimizer=_silent, untoggle_optimizer=_silent)
        names["manual_backward"] = lambda loss, *args, **kwargs: loss.backward(*args, **kwargs)
    return clone


def call_step(step: Callable[..., Any], batch: Any, index: int = 0) -> Any:
    """Call a step of a module on a batch, with the arguments that it has and Lightning would give it.

    The index of the batch is optional and may have any name; a step for several loaders is told that it is the first.

    Example::

        >>> call_step(lambda batch: batch, "b"), call_step(lambda batch, i: (batch, i), "b", 3)
        ('b', ('b', 3))
        >>> call_step(lambda batch, batch_idx, dataloader_idx: (batch, batch_idx, dataloader_idx), "b", 3)
        ('b', 3, 0)
    """
    parameters = inspect.signature(step).parameters.values()
    named = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if len(named) < 2 and all(one.kind is not one.VAR_POSITIONAL for one in parameters):
        return step(batch)
    return step(batch, index, *(0 for one in named[2:] if one.default is one.empty))


def takes_iterator(pl_module: Any) -> bool:
    """Whether ``training_step`` draws its batches itself, from ``dataloader_iter``: hooks of a batch then see none."""
    return "dataloader_iter" in inspect.signature(pl_module.training_step).parameters


def dry_step(
    pl_module: Any, batch: Any, *, step: str = "training_step", watch: Callable[[Any], Any] | None = None
) -> Any:
    """Run ``module.training_step`` on a silent copy, on the module's device, and return its output.

    Args:
        pl_module: the module, attached to a Trainer.
        batch: a batch as the loader gives it; it is moved to the module's device by the module's own hooks.
        step: ``training_step``, ``validation_step``, ...
        watch: called with the silent copy before the step, to place hooks on it.
    """
    with preserved_rng(), torch.enable_grad() if step == "training_step" else torch.no_grad():
        clone = silent_copy(pl_module)
        if watch is not None:
            watch(clone)
        batch = copy.deepcopy(batch)
        batch = clone._apply_batch_transfer_handler(batch, device=clone.device, dataloader_idx=0)
        with clone.trainer.precision_plugin.forward_context():
            return call_step(getattr(clone, step), batch)


def peek(loader: Any) -> Any:
    """The first batch of ``loader``, without costing a random draw or a sample.

    Raises:
        ValueError: for a single-pass loader (``iter(loader) is loader``), whose first sample would be lost.
    """
    if iter_is_self(loader):
        raise ValueError(
            f"{type(loader).__name__} can be read only once, so looking at its first batch would lose it; "
            "pass a loader that can be iterated again, such as a DataLoader."
        )
    generators = generators_of(loader)
    states = [generator.get_state() for generator in generators]
    try:
        with preserved_rng():
            return next(iter(loader))
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def validation_batch(trainer: Any, clone: Any) -> list[Any]:
    """The first batch for validation, on the device of a silent copy; none where a look at it would cost something."""
    loader = next(loaders_in(trainer.val_dataloaders), None)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return []
    try:
        batch = trainer.precision_plugin.convert_input(peek(without_workers(loader)))
    except Exception:  # of the user's data: the run will raise it again, where it belongs
        return []
    return [clone._apply_batch_transfer_handler(batch, device=clone.device, dataloader_idx=0)]


def iter_is_self(loader: Any) -> bool:
    """Whether ``loader`` is its own iterator: a generator, or a loader that can be read only once."""
    return hasattr(loader, "__next__")

"""The loader door: the moments around the creation of the training loader's iterator, where the shuffle is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightning_perf.host.doors import Undo, require, stand_at


def at_loader_door(
    trainer: Any,
    undo: Undo,
    *,
    before_iterator: Callable[[], None],
    after_iterator: Callable[[], None],
    on_start: Callable[[], None],
) -> None:
    """Call three functions in a fit, until ``undo`` runs.

    Args:
        trainer: the Trainer.
        undo: takes the functions away again.
        before_iterator: the loaders exist, the iterator that draws the order of samples does not.
        after_iterator: the iterator was made. ``trainer.estimated_stepping_batches`` in ``configure_optimizers`` makes
            it long before training starts.
        on_start: after every ``on_train_start`` hook, the module's own included.

    Raises:
        DoorClosed: if this release of Lightning makes its loaders elsewhere.
    """

    def before(guests: list[Any], original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        for guest in guests:
            guest()
        return result

    loop = trainer.fit_loop
    require(loop, "_combined_loader")
    undo.push(stand_at(loop, "_load_combined_loader_states", before_iterator, before, parameters=()))
    undo.push(stand_at(loop, "setup_data", after_iterator, before, parameters=()))
    undo.push(stand_at(trainer.strategy, "on_train_start", on_start, before, parameters=()))


def loader_generators(trainer: Any) -> list[torch.Generator]:
    """Generators that the training loaders and their samplers own, each once, in a fixed order."""
    combined = trainer.fit_loop._combined_loader
    return generators_of(*(combined.flattened if combined is not None else ()))


def generators_of(*loaders: Any) -> list[torch.Generator]:
    """Generators that ``loaders``, their samplers and their batch samplers own, each once, in a fixed order."""
    found: dict[int, torch.Generator] = {}
    for loader in loaders:
        batch_sampler = getattr(loader, "batch_sampler", None)
        for owner in (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                found[id(generator)] = generator
    return list(found.values())

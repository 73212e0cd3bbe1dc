"""The loader door: the moments around the creation of the training loader's iterator, where the shuffle is drawn."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from lightning_perf.host.doors import Undo, require, stand_at
from lightning_perf.host.namespaces import is_a


def at_loader_door(
    trainer: Any,
    undo: Undo,
    *,
    before_iterator: Callable[[], None] | None = None,
    after_iterator: Callable[[], None] | None = None,
    on_start: Callable[[], None] | None = None,
) -> None:
    """Call up to three functions in a fit, until ``undo`` runs.

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
    for owner, name, guest in (
        (loop, "_load_combined_loader_states", before_iterator),
        (loop, "setup_data", after_iterator),
        (trainer.strategy, "on_train_start", on_start),
    ):
        if guest is not None:
            undo.push(stand_at(owner, name, guest, before, parameters=()))


def loaders_exist(trainer: Any) -> bool:
    """Whether the training loaders of a fit have been made."""
    return trainer.fit_loop._combined_loader is not None


def fresh_batches(trainer: Any) -> Iterator[Any]:
    """Batches of the training loaders without end, as the loop would get them, from iterators of their own.

    The order and position of the run's own iterator stay, persistent workers too; random draws are the caller's to
    preserve (``preserved_rng`` and :func:`preserved_generators`). ``limit_train_batches`` is respected.

    Raises:
        ValueError: for a loader that can be read only once (``iter(loader) is loader``).
    """
    combined = trainer.fit_loop._combined_loader
    for loader in combined.flattened:
        if hasattr(loader, "__next__"):
            raise ValueError(
                f"{type(loader).__name__} can be read only once, so looking at its batches would lose them; pass a loader "
                "that can be iterated again, such as a DataLoader."
            )
    twin = copy.copy(combined)
    twin._iterator = None
    twin.flattened = [_twin(loader) for loader in combined.flattened]
    limit = trainer.num_training_batches
    while True:
        empty = True
        for batch, _, _ in itertools.islice(twin, int(limit) if math.isfinite(limit) else None):
            empty = False
            yield batch
        if empty:
            return


def _twin(loader: Any) -> Any:
    """A loader over the same data whose iterators and sampler positions are its own."""
    if not isinstance(loader, DataLoader):
        return loader
    twin = copy.copy(loader)
    sampler, batch_sampler = copy.copy(loader.sampler), copy.copy(loader.batch_sampler)
    if batch_sampler is not None and getattr(batch_sampler, "sampler", None) is loader.sampler:
        vars(batch_sampler)["sampler"] = sampler
    vars(twin).update(sampler=sampler, batch_sampler=batch_sampler, _iterator=None)
    return twin


def without_workers(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader of the same batches that loads them here, and leaves the iterator and the workers of the other alone."""
    twin = _twin(loader)
    vars(twin).update(num_workers=0, timeout=0, prefetch_factor=None, persistent_workers=False)
    return twin


@contextmanager
def preserved_generators(trainer: Any) -> Iterator[None]:
    """Whatever the generators of the training loaders draw inside leaves no trace outside."""
    generators = loader_generators(trainer)
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


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


def loaders_in(data: Any) -> Iterator[Any]:
    """The loaders in a collection of them, such as a dictionary of lists; ``data`` itself where it is none."""
    if is_a(data, "CombinedLoader"):
        yield from data.flattened
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from loaders_in(value)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from loaders_in(value)
    else:
        yield data

"""Copies of the weights that are kept beside the module, such as moving averages.

Whoever changes weights for good (a mask that prunes them) changes these as well: an average of a weight that is zero from
now on must not keep what the weight was. Callbacks of the house offer theirs; Lightning's averages are known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor

from lightning_perf.host.doors import require
from lightning_perf.host.namespaces import is_a

Shadows: TypeAlias = Callable[[], Iterable[tuple[Tensor, Tensor]]]

_offered: WeakKeyDictionary[Any, list[Shadows]] = WeakKeyDictionary()


def offer_shadows(trainer: Any, shadows: Shadows) -> Callable[[], None]:
    """Let others reach copies of weights; returns the function that takes the offer back.

    Args:
        trainer: the Trainer in whose fit the copies are kept.
        shadows: yields parameters with their copies, the tensors themselves, to be changed in place.
    """
    here = _offered.setdefault(trainer, [])
    here.append(shadows)
    return lambda: here.remove(shadows) if shadows in here else None


def shadows_of(trainer: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Every parameter of the module in training with every copy that is known of it."""
    yield from offered_shadows(trainer)
    for average in averaged_modules(trainer):
        copies = dict(average.named_parameters())
        for name, parameter in trainer.lightning_module.named_parameters():
            if name in copies:
                yield parameter, copies[name]


def offered_shadows(trainer: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Those that callbacks of the house keep, tensor by tensor."""
    for shadows in list(_offered.get(trainer, ())):
        yield from shadows()


def averaged_modules(trainer: Any) -> Iterator[Any]:
    """The whole modules that Lightning's averaging callbacks keep."""
    for callback in trainer.callbacks:
        if is_a(callback, "WeightAveraging") or is_a(callback, "StochasticWeightAveraging"):
            average = require(callback, "_average_model")
            if average is not None:
                yield getattr(average, "module", average)

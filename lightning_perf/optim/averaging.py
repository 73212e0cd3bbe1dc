"""Weights to evaluate with that are not the ones in training: how they are averaged, put in place and taken out again.

An optimizer whose training point is not what should be evaluated (schedule-free ones) has a method
``evaluation_weights()`` that yields, for every parameter it has stepped, the averaged weights. :class:`Ema` gives every
other optimizer the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

_WARM_UP = 8


@runtime_checkable
class Averages(Protocol):
    """Whatever knows the weights to evaluate with."""

    def evaluation_weights(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each parameter stepped so far with its averaged weights, and change nothing."""
        ...


class EvaluationWeights:
    """Exchange the weights in training for averaged ones, and put them back exactly.

    Values are copied in place, so that identity, storage, strides and gradients of every parameter stay.

    Args:
        averages: called at every :meth:`enter`; yields parameters and the weights to evaluate them with.

    Example::
        >>> weight = torch.nn.Parameter(torch.tensor([3.0]))
        >>> exchange = EvaluationWeights(lambda: [(weight, torch.tensor([2.0]))])
        >>> with exchange.in_place():
        ...     weight.item()
        2.0
        >>> weight.item()
        3.0
    """

    def __init__(self, averages: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        self._averages = averages
        self._aside: dict[Tensor, Tensor] | None = None

    @property
    def entered(self) -> bool:
        """Whether the averaged weights are in place."""
        return self._aside is not None

    @torch.no_grad()
    def enter(self) -> None:
        """Put the training weights aside and the averaged ones in place; nothing if they are there already.

        A parameter that comes twice keeps what came first. If computing an average raises, all is as before.
        """
        if self._aside is not None:
            return
        self._aside = {}
        try:
            for parameter, weights in self._averages():
                if parameter not in self._aside:
                    self._aside[parameter] = parameter.detach().clone()
                    parameter.data.copy_(weights)
        except BaseException:
            self.leave()
            raise

    @torch.no_grad()
    def leave(self) -> None:
        """Put the training weights back, bit for bit; nothing if they are there already."""
        for parameter, weights in (self._aside or {}).items():
            parameter.data.copy_(weights)
        self._aside = None

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averaged weights for the time of a block; inside another such block it does nothing."""
        if self.entered:
            yield
            return
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def training_weights(self) -> dict[Tensor, Tensor]:
        """What lies aside: parameters and their training weights. Empty where the training weights are in place."""
        return dict(self._aside or {})

    def store_on_cpu(self) -> None:
        """Move what lies aside to main memory, for when it may never be needed again."""
        self._aside = {parameter: weights.cpu() for parameter, weights in (self._aside or {}).items()}


class Ema:
    """Exponential moving average of the weights, right from the first update on.

    Update k of a parameter has weight ``max(1 - decay, 9 / (k + 8))``: the first one is the weights themselves, so that
    nothing of the initialization or of a zero enters; while the run is short, the average covers about its last tenth;
    and once ``9 / (k + 8)`` falls to ``1 - decay`` it is the plain exponential average. Before the first update nothing
    is averaged, and the weights are evaluated as they are. Averages of float16 and bfloat16 weights are kept in float32,
    where a weight of 0.001 is not rounded away.

    Every parameter has a count of its own: several optimizers may step at different rates, and a parameter that is thawed
    late starts then. Frozen parameters are left out.

    Source: the warm-up is the polynomial-decay averaging of Shamir and Zhang, https://arxiv.org/abs/1212.1824, with
    eta = 8. Deviation: it is cut off at ``decay``, which makes the rest of the run an exponential average.

    Args:
        decay: of the exponential average, such as 0.999, between 0 and 1.

    Raises:
        ValueError: a decay outside of (0, 1).

    Example::
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> ema = Ema(0.999)
        >>> ema.update([weight])
        >>> weight.data.fill_(11.0)
        tensor([11.])
        >>> ema.update([weight])
        >>> [round(average.item(), 4) for _, average in ema.evaluation_weights()]
        [10.0]
    """

    def __init__(self, decay: float = 0.999) -> None:
        if isinstance(decay, bool) or not isinstance(decay, float) or not 0 < decay < 1:
            raise ValueError(f"ema={decay!r} must be a decay between 0 and 1, such as 0.999.")
        self.decay = decay
        self._averages: dict[Tensor, Tensor] = {}
        self._updates: dict[Tensor, int] = {}

    def follow(self, optimizer: Optimizer) -> RemovableHandle:
        """Update after every step of ``optimizer``, whoever calls it, until ``remove()`` of the handle."""

        def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self.update(parameter for group in optimizer.param_groups for parameter in group["params"])

        return optimizer.register_step_post_hook(after_step)

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor]) -> None:
        """Take the present values of ``parameters`` into the average."""
        alike: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        for parameter in parameters:
            if not parameter.requires_grad:
                continue
            count = self._updates[parameter] = self._updates.get(parameter, 0) + 1
            value = parameter.detach()
            if count == 1:
                self._averages[parameter] = value.to(_wide(value.dtype), copy=True)
                continue
            averages, values = alike.setdefault(count, ([], []))
            averages.append(self._averages[parameter])
            values.append(value.to(_wide(value.dtype)))
        for count, (averages, values) in alike.items():
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                averages, values, max(1 - self.decay, (1 + _WARM_UP) / (count + _WARM_UP))
            )

    def evaluation_weights(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every parameter updated so far with its average, in the parameter's own type."""
        for parameter, average in self._averages.items():
            yield parameter, average.to(parameter.dtype)

    def averages(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every parameter updated so far with its average itself, to be changed in place."""
        yield from self._averages.items()

    def state_dict(self, names: Mapping[Tensor, str]) -> dict[str, Any]:
        """Averages and counts by name, as tensors and plain containers; what has no name is left out."""
        named = [(names[parameter], parameter) for parameter in self._averages if parameter in names]
        return {
            "averages": {name: self._averages[parameter] for name, parameter in named},
            "updates": {name: self._updates[parameter] for name, parameter in named},
        }

    def load_state_dict(self, state: Mapping[str, Any], names: Mapping[Tensor, str]) -> None:
        """Take up what :meth:`state_dict` returned, and forget everything else."""
        self._averages, self._updates = {}, {}
        for parameter, name in names.items():
            if name in state["averages"]:
                average = state["averages"][name].to(parameter.device, _wide(parameter.dtype), copy=True)
                self._averages[parameter] = average
                self._updates[parameter] = int(state["updates"][name])


def fingerprint(tensor: Tensor) -> int:
    """A number that changes with every value of ``tensor``: its values in float64, their bits added up as integers.

    Independent of device, strides, number of threads and a wider type, unlike a sum of floats.

    Example::
        >>> halves = torch.tensor([0.5, 0.25], dtype=torch.bfloat16)
        >>> fingerprint(halves) == fingerprint(halves.float()) != fingerprint(halves + 1)
        True
    """
    values = tensor.detach()
    values = torch.view_as_real(values) if values.is_complex() else values
    return int(values.double().view(torch.int64).sum())


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype

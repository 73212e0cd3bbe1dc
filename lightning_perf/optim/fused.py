"""Torch's fused step for an optimizer that already exists, switched on in place and switched off again.

Torch never picks its fused kernels by itself, although on CPU and CUDA they are the cheapest step it has. Two of their
properties make a bare ``group["fused"] = True`` unsafe, and are taken care of here before every step:

- The CPU kernels walk through parameter, gradient and state as flat memory. Where a gradient or a state tensor lies
  in another order than its parameter (``torch.autograd.grad``, an expanded gradient, a channels-last parameter whose
  state was saved as contiguous) they compute wrong numbers without a word; the CUDA kernels refuse such tensors.
- SGD with momentum dies when a parameter gets its first gradient later than the others of its group.

The learning rate, the state and the schedulers of the optimizer stay what they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_perf.optim.fusable import class_reason, group_reason


def sparse_gradient_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of ``module`` that get sparse gradients: the weights of embeddings built with ``sparse=True``.

    Example::
        >>> [tuple(p.shape) for p in sparse_gradient_parameters(nn.Embedding(4, 2, sparse=True))]
        [(4, 2)]
    """
    found: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        if isinstance(owner, nn.Embedding | nn.EmbeddingBag) and owner.sparse:
            assert isinstance(owner.weight, nn.Parameter)
            found[id(owner.weight)] = owner.weight
    return list(found.values())


def why_not_fused(optimizer: Optimizer, *, sparse: Collection[Tensor] = ()) -> str | None:
    """Why no parameter group of ``optimizer`` can take a fused step; None when at least one can.

    Args:
        optimizer: A torch optimizer (the inner one, where a framework wraps it).
        sparse: Parameters known to get sparse gradients, see :func:`sparse_gradient_parameters`.

    Example::
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> why_not_fused(torch.optim.AdamW([weight]))
        >>> why_not_fused(torch.optim.RMSprop([weight]))
        'RMSprop: torch has a fused step for Adam, AdamW, SGD and Adagrad only'
    """
    reason = class_reason(optimizer)
    if reason is not None:
        return reason
    reasons = [group_reason(optimizer, group, sparse) for group in optimizer.param_groups]
    return None if None in reasons else _join(reasons)


def make_fused(optimizer: Optimizer, *, sparse: Collection[Tensor] = ()) -> Fused:
    """Make ``optimizer`` take torch's fused step from now on, in place, until ``undo()`` is called on the result.

    Every eligible group is switched, groups added later included; a group that cannot take it (or that says
    ``fused=False``) is left alone, and ``reason`` tells why. Trajectories equal the unfused ones within rounding. What
    ``state_dict()`` returns holds the user's own flags, so that a checkpoint is the same with and without this; after
    ``load_state_dict`` the switch is applied again. Unlike ``AdamW(fused=True)`` it does not mark the optimizer as one
    that unscales gradients itself, so gradient clipping under mixed precision keeps working. A deepcopy or an
    unpickled copy is an ordinary torch optimizer with ``fused=True`` in its groups.

    Args:
        optimizer: A torch optimizer (the inner one, where a framework wraps it).
        sparse: Parameters known to get sparse gradients, see :func:`sparse_gradient_parameters`.

    Returns:
        A handle with ``changed``, ``reason`` and ``undo()``.

    Example::
        >>> optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2))])
        >>> handle = make_fused(optimizer)
        >>> handle.changed, optimizer.param_groups[0]["fused"]
        (True, True)
        >>> handle.undo()
        >>> optimizer.param_groups[0]["fused"] is None
        True
    """
    return Fused(optimizer, sparse, why_not_fused(optimizer, sparse=sparse))


@dataclass(eq=False)
class _Row:
    """One parameter group.

    ``own`` is the user's (fused, foreach), None where the group is left alone; ``device`` and ``strides`` are those the
    state was last prepared for; ``waiting`` are the parameters of SGD that have no momentum yet.
    """

    group: dict[str, Any]
    own: tuple[bool | None, bool | None] | None
    device: torch.device | None = None
    strides: list[tuple[int, ...]] | None = None
    waiting: tuple[Tensor, ...] = ()


class Fused:
    """What :func:`make_fused` did to one optimizer, and the way back.

    Attributes:
        changed: Whether at least one group was switched to the fused step.
        reason: Why nothing, or not everything, was switched; None when every group was.
    """

    def __init__(self, optimizer: Optimizer, sparse: Collection[Tensor], refused: str | None) -> None:
        self.changed = refused is None
        self.reason = refused
        self._optimizer = optimizer
        self._sparse = tuple(sparse)
        self._rows: list[_Row] = []
        self._lent: list[tuple[Tensor, Tensor]] = []
        self._handles: list[Any] = []
        if not self.changed:
            return
        self._defaults = (optimizer.defaults.get("fused"), optimizer.defaults.get("foreach"))
        self._adopt()
        self.reason = _join(group_reason(optimizer, row.group, sparse) for row in self._rows if row.own is None)
        optimizer.defaults.update(fused=True, foreach=False)
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_post_hook(self._own_flags_only),
            optimizer.register_load_state_dict_pre_hook(self._before_load),
            optimizer.register_load_state_dict_post_hook(self._after_load),
        ]

    def undo(self) -> None:
        """Give the optimizer its own flags back and take the hooks off; calling it again does nothing."""
        if not self._handles:
            return
        self._adopt()
        for row in self._rows:
            self._release(row)
        self._after_step(self._optimizer, (), {})
        self._optimizer.defaults.update(zip(("fused", "foreach"), self._defaults, strict=True))
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _adopt(self) -> None:
        """Bring the rows in line with the optimizer's groups, judging those that are new."""
        groups = self._optimizer.param_groups
        if len(groups) == len(self._rows) and all(
            row.group is group for row, group in zip(self._rows, groups, strict=True)
        ):
            return
        known = {id(row.group): row for row in self._rows}
        self._rows = [known.get(id(group)) or self._judged(group) for group in groups]

    def _judged(self, group: dict[str, Any]) -> _Row:
        own = (group.get("fused"), group.get("foreach"))
        if self._handles and own == (True, False):
            # The group took our flags from optimizer.defaults, or is a rebuilt copy of a switched one.
            own = self._defaults
            group["fused"], group["foreach"] = own
        reason = group_reason(self._optimizer, group, self._sparse)
        if reason is not None:
            if self._handles:
                self.reason = _join((self.reason, reason))
            return _Row(group, None)
        group["fused"], group["foreach"] = True, False
        return _Row(group, own)

    def _release(self, row: _Row, reason: str | None = None) -> None:
        """Hand a group back to the unfused step, with the state it expects."""
        if row.own is None:
            return
        row.group["fused"], row.group["foreach"] = row.own
        row.own = None
        for parameter in row.group["params"]:
            state = self._optimizer.state.get(parameter, {})
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].cpu()
        if reason is not None:
            self.reason = _join((self.reason, reason))
            warnings.warn(f"The fused step was switched off for a parameter group: {reason}.", stacklevel=2)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        positional = len(args) > 1
        closure: Callable[[], Any] | None = args[1] if positional else kwargs.get("closure")
        if closure is None:
            self._prepare()
            return None

        def prepared() -> Any:
            # A closure computes the gradients inside the step, so this is the first moment they can be looked at.
            loss = closure()
            self._prepare()
            return loss

        if positional:
            return (args[0], prepared, *args[2:]), kwargs
        return args, {**kwargs, "closure": prepared}

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for parameter, gradient in self._lent:
            parameter.grad = gradient
        self._lent.clear()

    @torch.no_grad()
    def _prepare(self) -> None:
        """Make gradients and state lie in memory as their parameters do."""
        self._lent.clear()  # what a step that raised has left behind
        self._adopt()
        for row in self._rows:
            if row.own is not None:
                self._prepare_row(row)

    def _prepare_row(self, row: _Row) -> None:
        parameters: list[Tensor] = row.group["params"]
        strides = [parameter.stride() for parameter in parameters]
        device = parameters[0].device if parameters else None
        if strides != row.strides or device != row.device:
            reason = group_reason(self._optimizer, row.group, self._sparse, switched=True)
            if reason is not None:
                self._release(row, reason)
                return
            for parameter in parameters:
                self._prepare_state(parameter)
            row.device, row.strides = device, strides
            row.waiting = tuple(
                p for p in parameters if self._optimizer.state.get(p, {}).get("momentum_buffer") is None
            )
        for parameter, stride in zip(parameters, strides, strict=True):
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout is not torch.strided:
                self._release(row, f"{type(self._optimizer).__name__}: a gradient is sparse")
                return
            if gradient.stride() != stride:
                self._lent.append((parameter, gradient))
                parameter.grad = _laid_out_like(gradient, parameter)
        if row.waiting and row.group.get("momentum"):
            for parameter in row.waiting:
                if parameter.grad is not None:
                    # From zero the first update is the gradient itself, as in the unfused step.
                    self._optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            row.waiting = tuple(parameter for parameter in row.waiting if parameter.grad is None)

    def _prepare_state(self, parameter: Tensor) -> None:
        state = self._optimizer.state.get(parameter, {})
        for key, value in state.items():
            if key == "step":
                state[key] = torch.as_tensor(value, dtype=torch.float32, device=parameter.device)
            elif isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = _laid_out_like(value, parameter)

    def _own_flags_only(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        self._adopt()
        for row, packed in zip(self._rows, state_dict["param_groups"], strict=True):
            if row.own is None:
                continue
            packed["fused"], packed["foreach"] = row.own
            for index in packed["params"]:
                state = state_dict["state"].get(index, {})
                if isinstance(state.get("step"), Tensor) and not state["step"].is_cpu:
                    state_dict["state"][index] = {**state, "step": state["step"].cpu()}

    def _before_load(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        self._adopt()

    def _after_load(self, optimizer: Optimizer) -> None:
        for row, group in zip(self._rows, optimizer.param_groups, strict=True):
            row.group, row.strides = group, None
            if row.own is not None:
                row.own = (group.get("fused"), group.get("foreach"))
                group["fused"], group["foreach"] = True, False


def _laid_out_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """``tensor`` with the strides of ``parameter``: a view where only dimensions of size 1 differ, else a copy."""
    differs = (
        a != b for a, b, size in zip(tensor.stride(), parameter.stride(), tensor.shape, strict=True) if size != 1
    )
    if not any(differs):
        return tensor.as_strided(tensor.shape, parameter.stride())
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def _join(reasons: Iterable[str | None]) -> str | None:
    return "; ".join(dict.fromkeys(reason for reason in reasons if reason is not None)) or None

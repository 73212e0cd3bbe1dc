"""Which buffers rank 0 gives to the others before a forward, and which need not travel.

Plain DDP sends every buffer before every training forward. Two kinds need not go: buffers that no process ever changes
(masks, tables of positions), and the running statistics of batch norms, which a training forward writes and does not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel.distributed import _BufferCommHookLocation

from lightning_perf.strategies.alike_buffers import AlikeBuffers

_STATISTICS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
#: Forwards at the start of an epoch in which all buffers travel and are watched for changes.
_WATCHED = 2
_BYTES_AT_ONCE = 250 * 1024 * 1024

Broadcast: TypeAlias = Callable[[list[Tensor]], None]


def deferrable(module: nn.Module) -> dict[str, nn.Module]:
    """The norm layers whose statistics only their evaluation reads, by name.

    Exactly torch's own classes, since a subclass may read its statistics while it trains, as the fused convolutions of
    torch.ao do with those of the norm they hold.
    """
    found = {}
    for name, child in module.named_modules():
        parent = module.get_submodule(name.rpartition(".")[0])
        readers = type(parent).__module__.startswith("torch.ao")
        if type(child) in _STATISTICS and child.track_running_stats and not readers:  # pyright: ignore
            found[name] = child
    return found


def is_compiled(module: nn.Module) -> bool:
    """Whether a part of the module runs compiled, where hooks on its layers would compile it anew."""
    if getattr(module, "_compiler_ctx", None) is not None:
        return True
    return any(
        child._compiled_call_impl is not None or type(child).__name__ == "OptimizedModule" for child in module.modules()
    )


class BufferSync:
    """DDP's hook for buffers: decides before a forward what rank 0 sends.

    DDP calls it exactly where it would send all buffers itself. In the first forwards of every epoch everything is sent,
    as plain DDP does, and watched; what changed on any process is sent before every forward from then on. A buffer that
    starts to change later is noticed at the next agreement (:meth:`ask`) and joins. Statistics are sent before a forward
    in which their layer evaluates; a module that evaluates one in the middle of a training step gets them every time.

    Layouts are agreed on whenever everything is sent. One that changes later is noticed like any other change, and agreed on
    from then on, to the end of the epoch, before every forward that sends something.

    Args:
        module: the module inside DDP.
        broadcast: sends tensors from rank 0.
        alike: which buffers all processes have.
    """

    def __init__(self, module: nn.Module, broadcast: Broadcast, alike: AlikeBuffers) -> None:
        self._module, self._broadcast, self._alike = module, broadcast, alike
        self._layers = {} if is_compiled(module) else deferrable(module)
        self._layer_of = {
            f"{name}.{buffer}" if name else buffer: name
            for name, layer in self._layers.items()
            for buffer, _ in layer.named_buffers(recurse=False)
        }
        self._stale: set[str] = set()
        self._changing: set[str] = set()
        self._seen: dict[str, tuple[Tensor, int]] = {}
        self._evaluates_inside = False
        self._watched = 0
        self._active = self._growing = False

    @property
    def deferred(self) -> int:
        """How many layers keep their statistics to themselves while they train."""
        return 0 if self._evaluates_inside else len(self._layers)

    def watch(self) -> None:
        """Send and watch everything in the next forwards; called at the start of every epoch, on all processes."""
        self._watched, self._active, self._growing, self._seen = _WATCHED, False, False, {}

    def __call__(self, state: Any, buffers: Mapping[str, Tensor]) -> None:
        """Send what this forward reads."""
        training = {name for name, layer in self._layers.items() if layer.training}
        if not self._module.training:
            self._send_all()
        elif self._watched:
            if self._watched == _WATCHED:  # before sending: DDP takes back the version counts that sending adds
                self._remember(buffers)
            self._send_all()
            self._growing = self._alike.moved and self._watched < _WATCHED
            self._watched -= 1
        else:
            if not self._active:
                self._settle(buffers)
            elif self._growing and self._due(training):
                self._alike.agree()
            self._send(self._due(training))
        self._stale |= training

    def ask(self) -> bool:
        """Whether a buffer that was taken for constant, or the layout of any, has changed in this process."""
        return self._active and (not self._alike.holds() or any(self._changed(self._buffers()).values()))

    def answer(self, anywhere: bool) -> None:
        """What any process said, before the epoch that it was asked in is over; then all learn which buffers it was."""
        if anywhere and self._active:
            self._settle(self._buffers())

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around a training step: while everything is watched, notice a layer that evaluates in the midst of training."""
        if not self._watched or not self._layers:
            yield
            return
        handles = [layer.register_forward_pre_hook(self._look) for layer in self._layers.values() if layer.training]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _look(self, layer: nn.Module, inputs: Any) -> None:
        if not layer.training:
            self._evaluates_inside = True

    def _due(self, training: set[str]) -> list[str]:
        due = set(self._layers) if self._evaluates_inside else self._stale - training
        return [name for name in self._alike.names if name in self._changing or self._layer_of.get(name) in due]

    def _send_all(self) -> None:
        self._alike.agree()
        self._send(self._alike.names)

    def _send(self, names: list[str]) -> None:
        if names:
            self._broadcast(self._alike.parcel(names))
            self._stale -= {self._layer_of[name] for name in names if name in self._layer_of}

    def _settle(self, buffers: Mapping[str, Tensor]) -> None:
        """Agree on what changes: a collective, at a moment that is the same on all processes."""
        changed = self._changed(buffers)
        some, evaluates = self._alike.agree(any(changed.values()), self._evaluates_inside)
        if some:
            names = [name for name in self._alike.names if self._taken_for_constant(name)]
            found = self._alike.largest([changed[name] for name in names])
            self._changing |= {name for name, flag in zip(names, found, strict=True) if flag}
        self._growing |= self._alike.moved
        self._evaluates_inside = bool(evaluates)
        self._remember(buffers)
        self._active = True

    def _taken_for_constant(self, name: str) -> bool:
        return name not in self._layer_of and name not in self._changing and name not in self._alike.own

    def _changed(self, buffers: Mapping[str, Tensor]) -> dict[str, bool]:
        """For every buffer that is taken for constant, whether it was written or replaced since it was remembered."""
        flags = {}
        for name, buffer in buffers.items():
            if self._taken_for_constant(name):
                seen = self._seen.get(name)
                flags[name] = seen is None or seen[0] is not buffer or seen[1] != buffer._version
        return flags

    def _remember(self, buffers: Mapping[str, Tensor]) -> None:
        self._seen = {name: (buffer, buffer._version) for name, buffer in buffers.items() if name not in self._layer_of}

    def _buffers(self) -> dict[str, Tensor]:
        return {name: buffer for name, buffer in self._module.named_buffers() if name not in self._alike.own}


def defer_buffers(wrapper: Any, module: nn.Module, alike: AlikeBuffers) -> BufferSync:
    """Have DDP's ``wrapper`` around ``module`` ask a :class:`BufferSync` which buffers to send."""

    def broadcast(tensors: list[Tensor]) -> None:
        torch.distributed._broadcast_coalesced(wrapper.process_group, tensors, _BYTES_AT_ONCE, 0)  # pyright: ignore

    buffers = BufferSync(module, broadcast, alike)
    wrapper._register_buffer_comm_hook(None, buffers, _BufferCommHookLocation.PRE_FORWARD)
    return buffers

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

_STATISTICS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
#: Forwards at the start of an epoch in which all buffers travel and are watched for changes.
_WATCHED = 2
_BYTES_AT_ONCE = 250 * 1024 * 1024

Broadcast: TypeAlias = Callable[[list[Tensor]], None]
AnyRank: TypeAlias = Callable[[list[bool]], list[bool]]


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

    Args:
        module: the module inside DDP.
        broadcast: sends tensors from rank 0.
        any_rank: for every entry, whether it holds on any process.
    """

    def __init__(self, module: nn.Module, broadcast: Broadcast, any_rank: AnyRank) -> None:
        self._module, self._broadcast, self._any_rank = module, broadcast, any_rank
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
        self._active = False

    @property
    def deferred(self) -> int:
        """How many layers keep their statistics to themselves while they train."""
        return 0 if self._evaluates_inside else len(self._layers)

    def watch(self) -> None:
        """Send and watch everything in the next forwards; called at the start of every epoch, on all processes."""
        self._watched, self._active, self._seen = _WATCHED, False, {}

    def __call__(self, state: Any, buffers: Mapping[str, Tensor]) -> None:
        """Send what this forward reads."""
        training = {name for name, layer in self._layers.items() if layer.training}
        if not self._module.training:
            self._send(list(buffers), buffers)
        elif self._watched:
            self._watched -= 1
            if not self._seen:  # before sending: DDP takes back the version counts that sending adds
                self._remember(buffers)
            self._send(list(buffers), buffers)
        else:
            if not self._active:
                self._settle(buffers)
            due = set(self._layers) if self._evaluates_inside else self._stale - training
            read = [name for name in buffers if name in self._changing or self._layer_of.get(name) in due]
            self._send(read, buffers)
        self._stale |= training

    def ask(self) -> bool:
        """Whether a buffer that was taken for constant has changed in this process."""
        return self._active and any(self._changed(self._buffers()).values())

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

    def _send(self, names: list[str], buffers: Mapping[str, Tensor]) -> None:
        if names:
            self._broadcast([buffers[name] for name in names])
            self._stale -= {self._layer_of[name] for name in names if name in self._layer_of}

    def _settle(self, buffers: Mapping[str, Tensor]) -> None:
        """Agree on what changes: a collective, at a moment that is the same on all processes."""
        changed = self._changed(buffers)
        *found, evaluates = self._any_rank([*changed.values(), self._evaluates_inside])
        self._changing |= {name for name, flag in zip(changed, found, strict=True) if flag}
        self._evaluates_inside = evaluates
        self._remember(buffers)
        self._active = True

    def _changed(self, buffers: Mapping[str, Tensor]) -> dict[str, bool]:
        """For every buffer that is taken for constant, whether it was written or replaced since it was remembered."""
        flags = {}
        for name, buffer in buffers.items():
            if name not in self._layer_of and name not in self._changing:
                seen = self._seen.get(name)
                flags[name] = seen is None or seen[0] is not buffer or seen[1] != buffer._version
        return flags

    def _remember(self, buffers: Mapping[str, Tensor]) -> None:
        self._seen = {name: (buffer, buffer._version) for name, buffer in buffers.items() if name not in self._layer_of}

    def _buffers(self) -> dict[str, Tensor]:
        ignored = getattr(self._module, "_ddp_params_and_buffers_to_ignore", ())
        return {name: buffer for name, buffer in self._module.named_buffers() if name not in ignored}


def defer_buffers(wrapper: Any, module: nn.Module, device: torch.device) -> BufferSync:
    """Have DDP's ``wrapper`` around ``module`` ask a :class:`BufferSync` which buffers to send."""

    def broadcast(tensors: list[Tensor]) -> None:
        torch.distributed._broadcast_coalesced(wrapper.process_group, tensors, _BYTES_AT_ONCE, 0)  # pyright: ignore

    buffers = BufferSync(module, broadcast, any_rank(device))
    wrapper._register_buffer_comm_hook(None, buffers, _BufferCommHookLocation.PRE_FORWARD)
    return buffers


def any_rank(device: torch.device) -> AnyRank:
    """The question to all processes, as one all-reduce."""

    def ask(flags: list[bool]) -> list[bool]:
        votes = torch.tensor(flags, dtype=torch.int32, device=device)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
        return [bool(vote) for vote in votes.tolist()]

    return ask

"""DDP communication hooks that send gradients in fewer bytes; one exchange a bucket, on every backend.

No hook starts a collective when another one ends: on gloo the order of such chains differs between processes, which hangs
them or mixes their data (seen with PowerSGD on two buckets).
"""
# DDP compares the hooks' annotations with classes, so they must not be turned into strings.

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # pyright: ignore[reportPrivateImportUsage]

from lightning_perf.strategies.compression import (
    MOST_INT8,
    mean_of_payloads,
    padded,
    quantize_with_feedback,
    swaps,
    travels_as,
)
from lightning_perf.strategies.exchange import Exchange, Result

_HALF = (torch.bfloat16, torch.float16)
_STATE = "lightning_perf_ddp"


def _reduced(tensor: Tensor, group: Any) -> Result:
    work: Any = dist.all_reduce(tensor, group=group, async_op=True)
    return work.get_future()


class Bfloat16Hook:
    """Gradients travel as bfloat16. Two processes swap theirs and add in float32; more add in bfloat16 on the way."""

    def __init__(self, group: Any, exchange: Exchange) -> None:
        self._group, self._exchange = group, exchange

    def reduce(self, state: Any, bucket: GradBucket) -> Result:
        """DDP's hook."""
        buffer, size = bucket.buffer(), dist.get_world_size(self._group)
        half = buffer.dtype in _HALF
        if size > 2:
            small = buffer.div_(size) if half else (buffer / size).to(torch.bfloat16)
            return _reduced(small, self._group).then(lambda future: buffer.copy_(future.value()[0]))
        wide = torch.float32 if half else buffer.dtype

        def add(both: list[Tensor]) -> Tensor:
            return torch.add(both[0].to(wide).div_(2), both[1].to(wide), alpha=0.5, out=buffer)

        # Buckets that are half as wide already go the same way: the exchange waits in the last one, whichever that is.
        return self._exchange.start(bucket, buffer if half else buffer.to(torch.bfloat16), add)


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateImportUsage]


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _gradients(bucket: GradBucket) -> list[Tensor]:
    """Views of the bucket, as ``bucket.gradients()`` gives them, which leaves half out of those of complex parameters."""
    parameters = bucket.parameters()
    if not any(parameter.is_complex() for parameter in parameters):
        return bucket.gradients()
    shapes = [_real(parameter.detach()).shape for parameter in parameters]
    parts = bucket.buffer().split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class _Staging:
    """One bucket's gradients, every parameter padded to whole blocks, so that blocks do not depend on the buckets."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.keys = [id(parameter) for parameter in parameters]
        parameters = [_real(parameter.detach()) for parameter in parameters]
        lengths = [padded(parameter.numel()) for parameter in parameters]
        self.gradients, self.residual = torch.zeros(2, sum(lengths), device=parameters[0].device)
        self.views = self._views(self.gradients, parameters, lengths)
        self.residuals = dict(zip(self.keys, self._views(self.residual, parameters, lengths), strict=True))

    @staticmethod
    def _views(flat: Tensor, parameters: list[Tensor], lengths: list[int]) -> list[Tensor]:
        parts = flat.split(lengths)
        return [part[: one.numel()].view(one.shape) for part, one in zip(parts, parameters, strict=True)]


class Int8Hook:
    """Gradients travel as int8 with a scale for every 256; what the rounding loses is sent with the next step's.

    What arrives for parameters that no process has used since the last exchange DDP drops, as of one network in the backward
    of another. So what is owed of a parameter that this process has not used waits until it uses it again.

    Args:
        exchange: how messages go to the other processes.
        module: the module inside DDP, whose names the state is saved under.
        some_unused: whether a backward may leave parameters unused (``find_unused_parameters``), which it is then asked.
    """

    def __init__(self, exchange: Exchange, module: nn.Module, *, some_unused: bool = False) -> None:
        self._exchange = exchange
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._buckets: dict[int, _Staging] = {}
        self._kept: dict[int, Tensor] = {}
        self._used: set[int] = set()
        self._handles = self._listen(module) if some_unused else []

    def _listen(self, module: nn.Module) -> list[Any]:
        """Note which parameters get a gradient; autograd calls this before DDP counts the parameter as ready."""
        used = self._used

        def note(parameter: Tensor) -> None:
            used.add(id(parameter))

        return [one.register_post_accumulate_grad_hook(note) for one in module.parameters() if one.requires_grad]

    def release(self) -> None:
        """Leave the parameters without hooks."""
        for handle in self._handles:
            handle.remove()

    def reduce(self, state: Any, bucket: GradBucket) -> Result:
        """DDP's hook."""
        buffer, staging = bucket.buffer(), self._staging(bucket)
        gradients = _gradients(bucket)
        _copy_all(staging.views, gradients)

        def decode(payloads: list[Tensor]) -> Tensor:
            staging.gradients.copy_(mean_of_payloads(payloads))
            _copy_all(gradients, staging.views)
            return buffer

        return self._exchange.start(bucket, self._message(staging), decode)

    def _message(self, staging: _Staging) -> Tensor:
        """What goes to the others, with what was owed of the parameters that were used."""
        waiting = [staging.residuals[key] for key in staging.keys if self._handles and key not in self._used]
        self._used.difference_update(staging.keys)
        if not waiting:
            return quantize_with_feedback(staging.gradients, staging.residual)
        owed = [residual.clone() for residual in waiting]
        torch._foreach_zero_(waiting)  # pyright: ignore[reportPrivateImportUsage]
        message = quantize_with_feedback(staging.gradients, staging.residual)
        _copy_all(waiting, owed)
        return message

    def _staging(self, bucket: GradBucket) -> _Staging:
        """The staging of a bucket; DDP rebuilds its buckets after the first backward, the residuals move along."""
        parameters = bucket.parameters()
        staging = self._buckets.get(bucket.index())
        if staging is not None and staging.keys != [id(parameter) for parameter in parameters]:
            self._unload()
            staging = None
        if staging is None:
            staging = self._buckets[bucket.index()] = _Staging(parameters)
        for key in staging.residuals.keys() & self._kept.keys():
            staging.residuals[key].copy_(self._kept.pop(key))
        return staging

    def _unload(self) -> None:
        for staging in self._buckets.values():
            self._kept |= {key: residual.clone() for key, residual in staging.residuals.items()}
        self._buckets = {}

    def state_dict(self) -> dict[str, Tensor]:
        """The residual of every parameter that has one, by name."""
        state = {self._names[key]: residual for key, residual in self._kept.items()}
        for staging in self._buckets.values():
            state |= {self._names[key]: residual.clone() for key, residual in staging.residuals.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take residuals that :meth:`state_dict` gave; names that are not there start from zero."""
        self._buckets = {}
        keys = {name: key for key, name in self._names.items()}
        self._kept = {keys[name]: residual for name, residual in state.items() if name in keys}


def compress(
    wrapper: Any, compression: str, residuals: Mapping[str, Tensor] | None, say: Callable[[str], None]
) -> Int8Hook | None:
    """Have DDP's ``wrapper`` send its gradients compressed; returns what then has state, starting from ``residuals``."""
    group, size = wrapper.process_group, dist.get_world_size(wrapper.process_group)
    on_cpu = next(wrapper.module.parameters()).device.type == "cpu"
    skips = wrapper.skip_all_reduce_unused_params
    exchange = Exchange(group, swaps=swaps(compression, size, on_cpu=on_cpu, skips_unused=skips))
    if travels_as(compression, size) == "int8":
        hook = Int8Hook(exchange, wrapper.module, some_unused=wrapper.find_unused_parameters)
        if residuals is not None:
            hook.load_state_dict(residuals)
        wrapper.register_comm_hook(None, hook.reduce)
        return hook
    if compression == "int8":
        say(
            f"{size} processes: above {MOST_INT8}, int8 for each of them is more than bfloat16 added on the way; gradients "
            "travel as bfloat16."
        )
    wrapper.register_comm_hook(None, Bfloat16Hook(group, exchange).reduce)
    return None


def add_state(checkpoint: dict[str, Any], hook: Int8Hook | None, chosen: str | None) -> None:
    """Put what every process still owes the others, and the preset that was ``chosen``, into a checkpoint. Collective."""
    if "optimizer_states" not in checkpoint:
        return
    residuals = gathered_on_zero(hook.state_dict()) if hook is not None else None
    state = {"residuals": residuals, "chosen": chosen}
    state = {name: value for name, value in state.items() if value is not None}
    if state:
        checkpoint[_STATE] = state


def state_in(checkpoint: Mapping[str, Any]) -> tuple[list[dict[str, Tensor]], str | None]:
    """What :func:`add_state` put there: residuals of every process (none: an empty list), and the chosen preset."""
    state = checkpoint.get(_STATE, {})
    return state.get("residuals", []), state.get("chosen")


def gathered_on_zero(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]] | None:
    """On rank 0 the state of every process, in the order of ranks; None elsewhere. Collective.

    All processes must hold the same names, as they do after the same number of steps.
    """
    shapes = [(name, tensor.shape) for name, tensor in sorted(state.items())]
    if not shapes:
        return None
    mine = torch.cat([state[name].reshape(-1) for name, _ in shapes])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
    dist.gather(mine, everyone, dst=0)
    if everyone is None:
        return None
    sizes = [shape.numel() for _, shape in shapes]
    return [
        {name: part.view(shape).cpu().clone() for (name, shape), part in zip(shapes, flat.split(sizes), strict=True)}
        for flat in everyone
    ]

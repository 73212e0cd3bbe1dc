"""Which optimizers can take torch's fused step: every condition under which torch raises, or computes wrong numbers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Optimizer
from torch.utils import _foreach_utils

_KERNELS: dict[type[Optimizer], str] = {Adam: "_fused_adam_", SGD: "_fused_sgd_", Adagrad: "_fused_adagrad_"}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HALF = (torch.float16, torch.bfloat16)
_NO_KERNEL = "torch has a fused step for Adam, AdamW, SGD and Adagrad only"


def class_reason(optimizer: Optimizer) -> str | None:
    """Why the class of ``optimizer`` has no fused step of torch's own; None when it has."""
    name = type(optimizer).__name__
    if type(optimizer).__module__.startswith(f"{__package__}."):
        return f"{name}: it has a step of its own, which needs no fused kernel"
    family = _family(optimizer)
    if family is None:
        return f"{name}: {_NO_KERNEL}"
    for method in ("step", "_init_group"):
        if _unhooked(type(optimizer), method) is not _unhooked(family, method):
            return f"{name} overrides {method} of {family.__name__}; {_NO_KERNEL}"
    return None


def _family(optimizer: Optimizer) -> type[Optimizer] | None:
    return next((family for family in _KERNELS if isinstance(optimizer, family)), None)


def _unhooked(cls: type[Optimizer], method: str) -> object:
    """The method as written: torch lays its step hooks over the class, and Dynamo a wrapper of its own."""
    function = getattr(cls, method)
    while True:
        if getattr(function, "hooked", False):
            function = function.__wrapped__
        elif hasattr(function, "_torchdynamo_orig_callable"):
            function = function._torchdynamo_orig_callable
        else:
            return function


def group_reason(
    optimizer: Optimizer, group: dict[str, Any], sparse: Collection[Tensor], *, switched: bool = False
) -> str | None:
    """Why one group of an optimizer that passed :func:`class_reason` cannot take the fused step; None when it can.

    Args:
        optimizer: The optimizer.
        group: One of its parameter groups.
        sparse: Parameters known to get sparse gradients.
        switched: Whether the group's ``fused=True`` is ours.
    """
    name = type(optimizer).__name__
    if group.get("fused") and not switched:
        return "already fused"
    if group.get("fused") is False:
        return f"{name}: fused=False was asked for"
    for flag in ("differentiable", "capturable"):
        if group.get(flag):
            return f"{name}: {flag}=True does not go with the fused step"
    if group.get("momentum") and group.get("dampening"):
        return f"{name}: dampening={group['dampening']} does not go with the fused step"
    for key, value in group.items():
        if key != "lr" and any(isinstance(item, Tensor) for item in (value if isinstance(value, tuple) else (value,))):
            return f"{name}: {key} is a tensor"
    if len({id(parameter) for parameter in group["params"]}) < len(group["params"]):
        return f"{name}: a parameter is in its group twice"
    family = _family(optimizer)
    assert family is not None
    sparse_ids = {id(parameter) for parameter in sparse}
    for index, parameter in enumerate(group["params"]):
        reason = "gets sparse gradients" if id(parameter) in sparse_ids else _parameter_reason(parameter, family)
        if reason is not None:
            names = group.get("param_names") or group.get("names")
            label = f"parameter {names[index]!r}" if names else f"a parameter of shape {_shape(parameter)}"
            return f"{name}: {label} {reason}"
    return None


def _parameter_reason(parameter: Tensor, family: type[Optimizer]) -> str | None:
    if type(parameter) not in (Tensor, nn.Parameter):
        return f"is a {type(parameter).__name__}"
    if parameter.layout is not torch.strided:
        return f"has layout {parameter.layout}"
    if parameter.dtype not in _DTYPES:
        return f"has dtype {parameter.dtype}, not one of {', '.join(map(str, _DTYPES))}"
    if family is SGD and parameter.device.type == "cpu" and parameter.dtype in _HALF:
        # torch 2.13 leaves the parameter as it is: pytorch/pytorch#191763, mended upstream by #192545
        return f"has dtype {parameter.dtype}, in which torch's fused SGD is wrong on CPUs (pytorch#191763)"
    if getattr(parameter, "grad_dtype", parameter.dtype) != parameter.dtype:
        return f"has dtype {parameter.dtype}, but gradients of another"
    if not device_has_kernel(parameter.device.type, _KERNELS[family]):
        return f"is on device {parameter.device}, for which torch has no {_KERNELS[family].strip('_')}"
    if torch.empty_like(parameter, device="meta").stride() != parameter.stride():
        return f"does not fill its memory without gaps (strides {parameter.stride()})"
    return None


def device_has_kernel(device: str, kernel: str) -> bool:
    """Whether torch has this fused kernel on this type of device."""
    # Private names of torch, asked because the answer differs by class and build; without them, the two devices that
    # torch documents for all of these classes.
    listed = getattr(_foreach_utils, "_get_fused_kernels_supported_devices", None)
    dispatch_key = getattr(torch._C, "_dispatch_key_for_device", None)
    has_kernel = getattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", None)
    if listed is None or dispatch_key is None or has_kernel is None:
        return device in ("cpu", "cuda")
    return device in listed() and has_kernel(f"aten::{kernel}", dispatch_key(device))


def _shape(parameter: Tensor) -> str:
    # A lazy parameter has no shape to tell.
    return str(tuple(parameter.shape)) if type(parameter) in (Tensor, nn.Parameter) else "unknown"

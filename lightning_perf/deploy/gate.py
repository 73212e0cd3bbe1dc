"""Does an artefact compute what the module computes, call after call, and leave the module alone?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_perf.deploy.call import Call, FlatModule, copies
from lightning_perf.deploy.variant import Run

TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2, "int8": 1e-1}
"""Largest accepted relative error of an output (norm of the difference by norm of the reference), per precision."""
CALLS = 3


@dataclass(frozen=True)
class Verdict:
    """Whether an artefact may be used: its largest error, and the reason where it may not."""

    error: float
    sizes: tuple[int, ...]
    reason: str | None = None

    @property
    def passed(self) -> bool:
        """No reason against it."""
        return self.reason is None


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference by norm of the reference; for whole numbers the share of entries that differ.

    Infinite where the shapes differ or a value is not finite that should be. A complex number counts as two.

    Example::

        >>> relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
        0.1
    """
    if found.shape != wanted.shape or found.is_complex() != wanted.is_complex():
        return float("inf")
    if wanted.is_complex():
        found, wanted = torch.view_as_real(found.resolve_conj()), torch.view_as_real(wanted.resolve_conj())
    if not wanted.is_floating_point():
        return float((found != wanted).float().mean()) if wanted.numel() else 0.0
    found, wanted = found.double(), wanted.double()
    finite = wanted.isfinite()
    if not torch.equal(found[~finite].nan_to_num(), wanted[~finite].nan_to_num()) or not found[finite].isfinite().all():
        return float("inf")
    size = float(wanted[finite].norm())
    gap = float((found[finite] - wanted[finite]).norm())
    return gap / size if size else gap


def check(
    run: Run,
    reference: nn.Module,
    call: Call,
    *,
    tolerance: float,
    watched: Mapping[str, Tensor] | None = None,
    inputs: Iterable[Sequence[Tensor]] = (),
    sizes: Sequence[int] = (1, 2, 5),
    calls: int = CALLS,
) -> Verdict:
    """Compare an artefact with the module on ``calls`` successive calls at several batch sizes.

    Successive calls matter: Inductor has had a fusion that added every call's output into a parameter, right on the first
    call and wrong from the second on.

    Args:
        run: the artefact.
        reference: the module whose outputs count.
        call: entry point and example.
        tolerance: largest accepted relative error.
        watched: tensors that have to stay as they are, such as the parameters that the artefact may share memory with.
        inputs: further flat inputs beside the example.
        sizes: batch sizes, where the batch may vary.
        calls: successive calls per input.
    """
    flat = FlatModule(reference, call)
    watched = watched or {}
    before = {name: tensor.detach().clone() for name, tensor in watched.items()}
    own = call.batch_size
    tried = sorted({*sizes, own}) if own is not None else []
    feeds = [(f"batch {size}", call.at(size)) for size in tried] or [("the example", list(call.tensors))]
    feeds += [(f"calibration batch {index}", list(tensors)) for index, tensors in enumerate(inputs)]
    worst = 0.0
    for label, tensors in feeds:
        with torch.no_grad():
            wanted = copies(flat(*copies(tensors)))
            again = flat(*copies(tensors))
        wobble = max(relative_error(a, b) for a, b in zip(again, wanted, strict=True))
        own_state = [name for name, tensor in watched.items() if not torch.equal(tensor, before[name])]
        if wobble > tolerance:
            because = f", since it changes its {', '.join(own_state)}" if own_state else ""
            reason = f"the module itself answers differently from call to call ({wobble:.2g}){because}"
            return Verdict(wobble, tuple(tried), reason)
        before.update({name: watched[name].detach().clone() for name in own_state})  # what a forward counts, say
        for index in range(calls):
            with torch.no_grad():
                found = run(copies(tensors))
            if len(found) != len(wanted):
                return Verdict(worst, tuple(tried), f"{len(found)} outputs instead of {len(wanted)}")
            error = max(relative_error(a, b) for a, b in zip(found, wanted, strict=True))
            worst = max(worst, error)
            if not error <= tolerance:
                shapes = [(tuple(a.shape), tuple(b.shape)) for a, b in zip(found, wanted, strict=True)]
                other = next((f" (shape {a} instead of {b})" for a, b in shapes if a != b), "")
                reason = f"call {index + 1} at {label} is off by {error:.2g}, more than {tolerance:g}{other}"
                return Verdict(worst, tuple(tried), reason)
            for name, tensor in watched.items():
                if not torch.equal(tensor, before[name]):
                    return Verdict(worst, tuple(tried), f"call {index + 1} at {label} changed {name} of the module")
    return Verdict(worst, tuple(tried))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}

"""Ranges of activations: what was seen of them, averaged over batches or clipped where rounding loses least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_perf.quantization.rounding import HIGH, activation_parameters, extent
from lightning_perf.quantization.transforms import outside, transformed

#: Largest value over all ranks, element by element.
Maximum = Callable[[Tensor], Tensor]
#: A tensor of every rank, stacked.
Gather = Callable[[Tensor], Tensor]

_KEPT = 2**15  # values of a slot that clipping looks at
_CANDIDATES = 40


class Ranges:
    """Ranges of many activations, one slot each, in stacked tensors: a step updates all of them at once.

    A slot is unknown until its first batch has been taken in. Within a batch its range is the union over all calls; over
    batches ends move by an average: of equal weights for the first ``1 / averaging`` batches, exponential after. Batches
    with values that are not finite are counted and left out.

    Args:
        names: of the slots.
        averaging: weight of the newest batch in the long run.

    Example::

        >>> ranges = Ranges(["layer"])
        >>> ranges.observe(0, torch.tensor([-1.0, 3.0]))
        >>> ranges.take_in()
        >>> ranges.span("layer")
        (-1.0, 3.0)
    """

    def __init__(self, names: Sequence[str], averaging: float = 0.01) -> None:
        self.names = list(names)
        self.averaging = averaging
        self.low, self.high = torch.zeros(len(names)), torch.zeros(len(names))
        self.batches = torch.zeros(len(names), dtype=torch.int64)
        self.broken = torch.zeros(len(names), dtype=torch.int64)
        self.known = [False] * len(names)
        self.samples: dict[int, Samples] | None = None
        self._batch: dict[int, tuple[Tensor, Tensor]] = {}
        self._numbers: tuple[list[float], list[int]] = ([], [])
        self._views: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ())
        self._refresh()

    def observe(self, slot: int, x: Tensor) -> None:
        """Note the range of ``x``; it counts from :meth:`take_in` on."""
        if transformed():
            with outside(x) as values:
                self.observe(slot, values)
            return
        if not x.numel():
            return
        low, high = (end.float() for end in extent(x))
        if slot in self._batch:
            before = self._batch[slot]
            low, high = torch.minimum(before[0], low), torch.maximum(before[1], high)
        self._batch[slot] = low, high
        if self.samples is not None:
            self.samples.setdefault(slot, Samples()).add(x)

    def reset(self) -> None:
        """Make every slot unknown."""
        self.forget_batch()
        self.batches.zero_()
        self.broken.zero_()
        self.known = [False] * len(self.names)
        self._refresh()

    def forget_batch(self) -> None:
        """Drop what was observed since :meth:`take_in`."""
        self._batch = {}

    @torch.no_grad()
    def take_in(self, maximum: Maximum | None = None) -> None:
        """Move the ranges by what was observed since the last call; with ``maximum``, on any rank."""
        if not self._batch and maximum is None:
            return
        if self._batch:
            self.move_to(next(iter(self._batch.values()))[0].device)
        never = self.low.new_full((), torch.inf), self.low.new_full((), -torch.inf)
        rows = [self._batch.get(slot, never) for slot in range(len(self.names))]
        self._batch = {}
        ends = torch.stack([torch.stack([-low, high]) for low, high in rows], 1) if rows else self.low.new_empty(2, 0)
        ends = ends.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        if maximum is not None:
            ends = maximum(ends)
        low, high = -ends[0], ends[1]
        called = high >= low
        finite = called & low.isfinite() & high.isfinite()
        self.broken += (called & ~finite).long()
        self.batches += finite.long()
        weight = (1.0 / self.batches.clamp(min=1)).clamp(min=self.averaging)
        self.low = torch.where(finite, torch.lerp(self.low, low, weight), self.low)
        self.high = torch.where(finite, torch.lerp(self.high, high, weight), self.high)
        self._refresh()

    @torch.no_grad()
    def clip_to_samples(self, gather: Gather | None = None) -> None:
        """Narrow the known ranges to where rounding loses least on the values that were kept (mean squared error).

        With ``gather``, on the values that all ranks kept.
        """
        kept = {slot: samples.values() for slot, samples in (self.samples or {}).items()}
        if gather is not None:
            kept = _of_all_ranks(kept, len(self.names), gather)
        for slot, values in kept.items():
            if self.known[slot]:
                self.low[slot], self.high[slot] = best_clip(values, self.low[slot], self.high[slot])
        self.samples = None
        self._refresh()

    def parameters(self, slot: int, device: torch.device) -> tuple[float | Tensor, int | Tensor]:
        """Scale and zero point of a known slot: numbers on a CPU, tensors elsewhere and while compiling."""
        if self.low.device != device:
            self.move_to(device)
        if device.type == "cpu" and not torch.compiler.is_compiling():
            return self._numbers[0][slot], self._numbers[1][slot]
        return self._views[0][slot], self._views[1][slot]

    def span(self, name: str) -> tuple[float, float] | None:
        """The range of a slot, widened to hold zero; None while it is unknown."""
        slot = self.names.index(name)
        if not self.known[slot]:
            return None
        return min(float(self.low[slot]), 0.0), max(float(self.high[slot]), 0.0)

    def state(self) -> dict[str, Any]:
        """Everything that is known, as tensors and plain containers."""
        fields = ("low", "high", "batches", "broken")
        return {"names": list(self.names), **{field: getattr(self, field).cpu().clone() for field in fields}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned, slot by slot; slots that it does not hold stay as they are."""
        theirs = {name: index for index, name in enumerate(state["names"])}
        pairs = [(slot, theirs[name]) for slot, name in enumerate(self.names) if name in theirs]
        for field in ("low", "high", "batches", "broken"):
            mine = getattr(self, field)
            for slot, other in pairs:
                mine[slot] = state[field][other]
        self.known = [False] * len(self.names)  # a state of an earlier step may know less
        self._refresh()

    def move_to(self, device: torch.device) -> None:
        """Keep the tensors on ``device`` from now on."""
        if self.low.device == device:
            return
        for field in ("low", "high", "batches", "broken"):
            setattr(self, field, getattr(self, field).to(device))
        self._refresh()

    def _refresh(self) -> None:
        scale, zero = activation_parameters(self.low, self.high)
        if not _waits(self.low.device):
            self._numbers = scale.tolist(), zero.tolist()
            self.known = (self.batches > 0).tolist()
        elif not all(self.known):  # the only wait for the device, and only until every slot has been seen
            self.known = (self.batches > 0).tolist()
        self._views = scale.unbind(), zero.unbind()


def _waits(device: torch.device) -> bool:
    """Whether numbers are read from there only once all that was asked of it is done."""
    return device.type != "cpu"


class Samples:
    """A bounded choice of the values of an activation, of early and late batches alike; deterministic.

    Positions are drawn: at a fixed distance they would keep step with the sizes of ``x`` and meet a few channels only.
    """

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []
        self._thinning = 1
        self._draws = torch.Generator().manual_seed(0)

    def add(self, x: Tensor) -> None:
        """Take some values of ``x``."""
        flat = x.detach().reshape(-1)
        wanted = -(-min(flat.numel(), _KEPT // 16) // self._thinning)
        positions = torch.randint(flat.numel(), (wanted,), generator=self._draws)
        self._chunks.append(flat[positions.to(flat.device)].float().cpu())
        while sum(chunk.numel() for chunk in self._chunks) > _KEPT:
            self._chunks = [chunk[::2] for chunk in self._chunks]
            self._thinning *= 2

    def values(self) -> Tensor:
        """What was kept."""
        return torch.cat(self._chunks)


def _of_all_ranks(kept: Mapping[int, Tensor], slots: int, gather: Gather) -> dict[int, Tensor]:
    """The values of every slot from all ranks, in the same order on each."""
    counts = torch.tensor([kept[slot].numel() if slot in kept else 0 for slot in range(slots)])
    counts = gather(counts)
    mine = torch.zeros(slots, max(1, int(counts.max())) if slots else 1)
    for slot, values in kept.items():
        mine[slot, : values.numel()] = values
    stacked = gather(mine)
    found = {}
    for slot in range(slots):
        if counts[:, slot].any():
            found[slot] = torch.cat([row[slot, :count] for row, count in zip(stacked, counts[:, slot], strict=True)])
    return found


def best_clip(values: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The ends, shrunk by one factor, with the smallest mean squared error of rounding ``values`` to 256 steps.

    Source: the search over candidates of OCS and TensorRT's entropy calibration, with the squared error in place of the
    divergence. Ties go to the wider range.

    Example::

        >>> values = torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([100.0])])
        >>> low, high = best_clip(values, torch.tensor(-1.0), torch.tensor(100.0))
        >>> bool(high == 100.0)  # a single large value costs more when it is clipped than all others gain
        True
    """
    low, high = low.cpu().clamp(max=0.0), high.cpu().clamp(min=0.0)
    best, ends = torch.inf, (low, high)
    for step in range(_CANDIDATES):
        factor = 1.0 - 0.8 * step / _CANDIDATES
        scale, zero = activation_parameters(low * factor, high * factor)
        rounded = ((values / scale).round() + zero).clamp(0, HIGH).sub(zero).mul(scale)
        error = float((rounded - values).square().mean())
        if error < best:
            best, ends = error, (low * factor, high * factor)
    return ends

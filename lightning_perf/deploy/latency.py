"""How long each variant takes for one call: interleaved, so that what slows the machine slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_perf.deploy.variant import Run
from lightning_perf.measuring import interleave

_SAMPLE_SECONDS = 0.01
_MOST_CALLS = 50


@dataclass(frozen=True)
class Target:
    """A way of serving: so many samples a call, on so many threads.

    Example::

        >>> Target(32, 1).key, Target(32, 1).label
        ('seconds_b32_t1', 'latency, batch 32, 1 thread')
    """

    batch: int
    threads: int

    @property
    def key(self) -> str:
        """Name of its quantity in a report."""
        return f"seconds_b{self.batch}_t{self.threads}"

    @property
    def label(self) -> str:
        """Its row in a table."""
        return f"latency, batch {self.batch}, {self.threads} thread{'s' * (self.threads != 1)}"


def targets(batches: Sequence[int] = (1, 32), threads: Sequence[int] | None = None) -> list[Target]:
    """Every batch size at one thread and at all of this process's."""
    counts = sorted({1, torch.get_num_threads()}) if threads is None else list(threads)
    return [Target(batch, count) for count in counts for batch in batches]


def measure(
    runs: Mapping[str, Run],
    tensors: Sequence[Tensor],
    *,
    rounds: int = 9,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Seconds per call of each variant in each round; equal indices are a pair.

    Short calls are repeated until a sample takes about 10 ms. The caller sets the threads of torch.
    """
    repeats = {name: _repeats(run, tensors, clock) for name, run in runs.items()}

    def timed(run: Run, count: int) -> Callable[[], None]:
        def body() -> None:
            for _ in range(count):
                run(tensors)

        return body

    with torch.inference_mode():
        seconds = interleave(
            {name: timed(run, repeats[name]) for name, run in runs.items()}, rounds=rounds, clock=clock, seed=seed
        )
    return {name: [value / repeats[name] for value in values] for name, values in seconds.items()}


def _repeats(run: Run, tensors: Sequence[Tensor], clock: Callable[[], float]) -> int:
    """Calls per sample, after two calls that warm the variant up."""
    with torch.inference_mode():
        run(tensors)
        run(tensors)
        start = clock()
        run(tensors)
        once = clock() - start
    return max(1, min(_MOST_CALLS, round(_SAMPLE_SECONDS / once))) if once > 0 else _MOST_CALLS

"""What a link between processes costs: a round trip and bytes a second, and the bucket size that suits them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist

_SMALL, _LARGE = 1024, 4 * 1024 * 1024
_MIB = 1024 * 1024
#: Bucket sizes to choose from; 25 is DDP's own.
BUCKETS_MIB = (1, 2, 5, 10, 25)
#: A bucket should take this many latencies to send, so that latency is a fifth of the time.
_LATENCIES = 4
#: Buckets of a swap: the first one is under way after a sixteenth of backward.
_SWAPPED = 16
_LEAST_SWAPPED_MIB = 0.25


@dataclass(frozen=True)
class Link:
    """``latency``: seconds of an all-reduce of nothing. ``bandwidth``: bytes a second of one that is large."""

    latency: float
    bandwidth: float


def fit_link(small_seconds: float, large_seconds: float, small: int = _SMALL, large: int = _LARGE) -> Link:
    """The line through two measured all-reduces of ``small`` and ``large`` bytes.

    Example::

        >>> fit_link(0.002, 0.003, small=0, large=1_000_000)
        Link(latency=0.002, bandwidth=1000000000.0)
    """
    slope = max((large_seconds - small_seconds) / (large - small), 1e-12)
    return Link(max(small_seconds - slope * small, 1e-9), round(1 / slope, 3))


def bucket_mib(link: Link, gradient_bytes: int) -> int:
    """The smallest bucket for which latency is a minor cost; small buckets start to travel while backward still runs.

    Args:
        link: what was measured.
        gradient_bytes: size of all gradients; no bucket larger than that is of use.

    Example::

        >>> bucket_mib(Link(latency=0.002, bandwidth=1e8), 2**30), bucket_mib(Link(latency=0.02, bandwidth=1e8), 2**30)
        (1, 10)
    """
    wanted = min(_LATENCIES * link.latency * link.bandwidth, gradient_bytes) / _MIB
    return next((size for size in BUCKETS_MIB if size >= wanted), BUCKETS_MIB[-1])


def exchange_mib(gradient_bytes: int) -> float:
    """The bucket for gradients that are swapped: their latencies overlap, so only the work of each bucket sets a limit.

    Example::

        >>> [exchange_mib(mib * 2**20) for mib in (1, 8, 80, 1000)]
        [0.25, 0.5, 5.0, 25.0]
    """
    return float(min(max(gradient_bytes / (_SWAPPED * _MIB), _LEAST_SWAPPED_MIB), BUCKETS_MIB[-1]))


def probe_link(device: torch.device, *, rounds: int = 5, clock: Callable[[], float] = time.perf_counter) -> Link:
    """Measure the link by all-reduces; collective, and all processes get the numbers of the slowest one."""
    seconds = []
    for size in (_SMALL, _LARGE):
        tensor = torch.zeros(size // 4, device=device)
        times = []
        for _ in range(rounds + 1):
            _wait(device)
            start = clock()
            dist.all_reduce(tensor)
            _wait(device)
            times.append(clock() - start)
        seconds.append(median(times[1:]))  # the first one opens connections
    slowest = torch.tensor(seconds, device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return fit_link(*slowest.tolist())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

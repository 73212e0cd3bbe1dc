"""How long an optimizer step should take under each preset, on paper: measured compute, bytes, and what a message costs.

Pure arithmetic, from 2 to thousands of processes. What it assumes is said in ``docs/scaling.md``, and ``benchmarks/ddp.py``
sets it beside steps that were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lightning_perf.host import MisconfigurationException
from lightning_perf.host.sigterm_agreement import LONG_STEP
from lightning_perf.strategies.compression import bytes_on_the_wire, swaps, travels_as
from lightning_perf.strategies.link import Link, bucket_mib, exchange_mib
from lightning_perf.strategies.presets import PRESETS

_MIB = 1024 * 1024
#: DDP's own: a small first bucket, so that something travels early, and the size of the others.
_FIRST_MIB, _CAP_MIB = 1, 25
#: What can be predicted beside the presets: Lightning's own strategy, and processes that exchange nothing at all.
OTHERS = ("ddp", "nothing")


@dataclass(frozen=True)
class Work:
    """What one process does for one optimizer step: measured seconds, and what it has to exchange.

    Args:
        forward: seconds of the forward of one micro-batch.
        backward: seconds of the backward of one micro-batch.
        sizes: elements of every trained parameter, in the order of the module.
        rest: seconds a step takes beside them: optimizer, loader, callbacks.
        accumulate: micro-batches of a step.
        buffer_bytes: bytes of all buffers, which plain DDP sends before a forward.
        synced: values that a micro-batch logs with ``sync_dist=True``.
        coding: seconds to encode and decode all gradients, by the name of the compression.
        asked: whether Lightning waits for a broadcast before every micro-batch.
        skips_unused: whether DDP leaves out buckets that nobody used, so that gradients are not swapped.
        momentum: whether the optimizers keep momentum, which ``perf_local_sgd`` averages with the weights.
    """

    forward: float
    backward: float
    sizes: Sequence[int]
    rest: float = 0.0
    accumulate: int = 1
    buffer_bytes: int = 0
    synced: int = 0
    coding: Mapping[str, float] = field(default_factory=dict)
    asked: bool = True
    skips_unused: bool = False
    momentum: bool = True

    @property
    def compute(self) -> float:
        """Seconds of a step that exchanges nothing."""
        return self.accumulate * (self.forward + self.backward) + self.rest


@dataclass(frozen=True)
class Wire:
    """What a message to another process costs: ``alpha`` seconds and ``beta`` seconds a byte.

    ``lanes`` collectives wait for their messages at a time (2 on gloo, 1 on NCCL), while their bytes share the wire. With
    more than one lane processes are taken to swap compressed gradients, as on the CPU, for which no lane is needed.
    ``algorithm`` of an all-reduce: a ring of 2 (W - 1) messages after each other, or halving and doubling in
    2 log2 W. Both carry 2 (W - 1) / W times the tensor.

    Source: Thakur, Rabenseifner and Gropp, Optimization of Collective Communication Operations in MPICH (2005),
    sections 4.1 and 4.5; Patarasuk and Yuan, Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations (2009).

    Example::

        >>> Wire(alpha=0.01, beta=1e-6).all_reduce(1000, world_size=4)
        0.0615
    """

    alpha: float
    beta: float
    lanes: int = 1
    algorithm: Literal["ring", "halving"] = "ring"

    @classmethod
    def of(cls, link: Link, world_size: int, lanes: int = 2) -> Wire:
        """What the messages of a ring must have cost where :func:`~lightning_perf.strategies.link.probe_link` measured.

        Example::

            >>> Wire.of(Link(latency=0.02, bandwidth=12.5e6), world_size=2)
            Wire(alpha=0.01, beta=8e-08, lanes=2, algorithm='ring')
        """
        messages = 2 * (world_size - 1)
        return cls(link.latency / messages, world_size / (messages * link.bandwidth), lanes)

    def rounds(self, world_size: int) -> int:
        """Messages of an all-reduce that wait for each other."""
        return 2 * (_log2(world_size) if self.algorithm == "halving" else world_size - 1)

    def all_reduce(self, size: float, world_size: int) -> float:
        """Seconds of an all-reduce of so many bytes."""
        return self.rounds(world_size) * self.alpha + 2 * (world_size - 1) / world_size * size * self.beta

    def one_value(self, world_size: int) -> float:
        """Seconds of an all-reduce of one element, which cannot be split.

        On gloo each message waits for its receiver's notice, half of ``alpha``; here those notices are there already
        (measured: 21 ms at 10 ms one way, where 1 KB takes 41).
        """
        return self.rounds(world_size) * self.alpha / 2 + 4 * self.beta

    def broadcast(self, size: float, world_size: int) -> float:
        """Seconds of a broadcast of so many bytes, along a binomial tree; of 0 bytes, those of a barrier."""
        return _log2(world_size) * (self.alpha + size * self.beta)

    def link(self, world_size: int) -> Link:
        """The line that :func:`~lightning_perf.strategies.link.probe_link` would measure among so many processes."""
        slope = 2 * (world_size - 1) / world_size * self.beta
        return Link(self.rounds(world_size) * self.alpha, 1 / slope)


@dataclass(frozen=True)
class Prediction:
    """Seconds of an optimizer step: what is computed, what waits for gradients, what waits for anything else."""

    compute: float
    gradients: float = 0.0
    waits: float = 0.0
    #: Bytes of gradients or weights that a process sends in a step.
    sent: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute + self.gradients + self.waits


def predict(
    preset: str,
    work: Work,
    wire: Wire,
    world_size: int,
    *,
    average_every: int = 8,
    bucket_cap_mb: float | None = None,
) -> Prediction:
    """The step of one preset, of plain ``"ddp"``, or of ``"nothing"``, the bound that no exchange can beat.

    Args:
        preset: a name of the table in ``docs/guides/ddp.md``, or one of :data:`OTHERS`.
        work: what one process does.
        wire: what a message costs.
        world_size: number of processes.
        average_every: ``perf_local_sgd`` only.
        bucket_cap_mb: what DDP is told; None: what it does by itself, or the preset sets.

    Raises:
        MisconfigurationException: if the preset is unknown, or there is less than one process.

    Example::

        >>> work = Work(forward=0.01, backward=0.02, sizes=[1_000_000])
        >>> slow = Wire(alpha=0.01, beta=8e-8, lanes=2)
        >>> [round(predict(name, work, slow, 2).seconds, 3) for name in ("ddp", "perf_ddp_int8", "nothing")]
        [0.38, 0.121, 0.03]
    """
    if preset not in PRESETS and preset not in OTHERS:
        known = ", ".join([*PRESETS, *OTHERS])
        raise MisconfigurationException(f"preset={preset!r} is unknown; there are predictions for {known}.")
    if world_size < 1:
        raise MisconfigurationException(f"world_size={world_size} must be at least 1.")
    if preset == "nothing" or world_size == 1:
        return Prediction(work.compute)
    if preset == "ddp":
        return _plain(work, wire, world_size, _limits(preset, work, wire, world_size, bucket_cap_mb))
    row = PRESETS[preset]
    if row.local:
        sent, coding = bytes_on_the_wire(None, work.sizes, world_size), 0.0
        average = wire.all_reduce(4 * sum(work.sizes) + work.buffer_bytes, world_size)
        if work.momentum:  # is on its way when the weights start
            small = travels_as("int8", world_size)
            momentum, coding = bytes_on_the_wire(small, work.sizes, world_size), work.coding.get(small or "", 0.0)
            sent, average = sent + momentum, average + momentum * wire.beta + coding
        sent, average = sent / average_every, average / average_every
        waits = work.accumulate * _fused_wait(work, wire, world_size)
        return _asked(Prediction(work.compute, average, waits, sent), work, wire, world_size)
    compression = travels_as(row.compression, world_size)
    limits = _limits(preset, work, wire, world_size, bucket_cap_mb)
    fused = [(work.forward, wire.rounds(world_size), 8.0 * work.synced)] if work.synced else []
    exposed = _exposed(work, wire, world_size, compression, limits, fused)
    sent = bytes_on_the_wire(compression, work.sizes, world_size)
    waits = (work.accumulate - 1) * _fused_wait(work, wire, world_size)
    return _asked(Prediction(work.compute, exposed, waits, sent), work, wire, world_size)


def _limits(preset: str, work: Work, wire: Wire, world_size: int, cap: float | None) -> tuple[float, ...]:
    """Bytes of the first and the later buckets: a cap that is given holds for all of them."""
    row = PRESETS.get(preset)
    if cap is None and row is not None and row.probes_buckets:
        cap = bucket_mib(wire.link(world_size), 4 * sum(work.sizes))
    elif cap is None and row is not None and _swaps(row.compression, work, wire, world_size):
        cap = exchange_mib(4 * sum(work.sizes))
    return (_FIRST_MIB * _MIB, _CAP_MIB * _MIB) if cap is None else (cap * _MIB,)


def _swaps(compression: str | None, work: Work, wire: Wire, world_size: int) -> bool:
    return swaps(compression, world_size, on_cpu=wire.lanes > 1, skips_unused=work.skips_unused)


def _plain(work: Work, wire: Wire, world_size: int, limits: Sequence[float]) -> Prediction:
    """Lightning's ddp: a broadcast before every micro-batch, a barrier and an all-reduce for every value, all buffers."""
    question = wire.broadcast(8, world_size) if work.asked else 0.0
    values = work.synced * (wire.broadcast(0, world_size) + wire.one_value(world_size))
    buffers = wire.broadcast(work.buffer_bytes, world_size) if work.buffer_bytes else 0.0
    gradients = _exposed(work, wire, world_size, None, limits, [])
    waits = work.accumulate * (question + values) + buffers  # after a local micro-batch DDP sends no buffers
    return Prediction(work.compute, gradients, waits, bytes_on_the_wire(None, work.sizes, world_size))


def _fused_wait(work: Work, wire: Wire, world_size: int) -> float:
    """What a local backward leaves uncovered of the one all-reduce for logged values."""
    return max(wire.all_reduce(8 * work.synced, world_size) - work.backward, 0.0) if work.synced else 0.0


def _asked(prediction: Prediction, work: Work, wire: Wire, world_size: int) -> Prediction:
    """Add the agreement on SIGTERM: a small all-reduce about once a second, at most once a micro-batch, and beside one."""
    share, beside = min(prediction.seconds, work.accumulate), prediction.seconds / work.accumulate
    question = wire.all_reduce(8, world_size)
    if beside <= LONG_STEP:
        question = max(question - beside, 0.0)
    return Prediction(prediction.compute, prediction.gradients, prediction.waits + share * question, prediction.sent)


def buckets(sizes: Sequence[int], limits: Sequence[float]) -> list[list[int]]:
    """DDP's buckets of float32 gradients: from the last parameter to the first, each closed when it reaches its limit.

    Args:
        sizes: elements of every parameter, in the order of the module.
        limits: bytes of the first, the second, ... bucket; the last one holds for all that follow.

    Example::

        >>> buckets([100, 10, 20, 30], limits=[80, 240])
        [[30], [20, 10, 100]]
    """
    found: list[list[int]] = [[]]
    for size in reversed(sizes):
        found[-1].append(size)
        if 4 * sum(found[-1]) >= limits[min(len(found), len(limits)) - 1]:
            found.append([])
    return [bucket for bucket in found if bucket]


def _exposed(
    work: Work,
    wire: Wire,
    world_size: int,
    compression: str | None,
    limits: Sequence[float],
    before: list[tuple[float, int, float]],
) -> float:
    """Seconds from the end of the last backward until its gradients are there.

    A bucket starts when backward has reached it, taking gradients to appear evenly in bytes, and a lane is free; its bytes
    follow those of the bucket before. ``before`` holds (start, messages, bytes) of what is under way already. What it takes
    to encode and decode is added at the end.
    """
    if compression and _swaps(compression, work, wire, world_size):
        return _swapped(work, wire, world_size, compression, limits, before)
    gathers = compression == "int8" or (compression == "bf16" and world_size == 2)
    rounds = world_size - 1 if gathers else wire.rounds(world_size)
    total, done, jobs = sum(work.sizes), 0, list(before)
    for bucket in buckets(work.sizes, limits):
        done += sum(bucket)
        ready = work.forward + work.backward * done / total
        jobs.append((ready, rounds, bytes_on_the_wire(compression, bucket, world_size)))
    lanes, sent = [0.0] * wire.lanes, 0.0
    for ready, messages, size in jobs:
        lane = lanes.index(min(lanes))
        start = max(ready, lanes[lane])
        sent = lanes[lane] = max(start + messages * wire.alpha, sent) + size * wire.beta
    return max(sent - work.forward - work.backward, 0.0) + work.coding.get(compression or "", 0.0)


def _swapped(
    work: Work,
    wire: Wire,
    world_size: int,
    compression: str,
    limits: Sequence[float],
    before: list[tuple[float, int, float]],
) -> float:
    """The same where messages start as soon as they are encoded, to all others together, and need no lane.

    Half of the coding makes backward longer, and the other half decodes buckets in turn once backward is over.
    """
    coding, total, done = work.coding.get(compression, 0.0), sum(work.sizes), 0
    backward = work.backward + coding / 2
    logged = max((start + messages * wire.alpha + size * wire.beta for start, messages, size in before), default=0.0)
    sent, decoded = 0.0, work.forward + backward
    for bucket in buckets(work.sizes, limits):
        done += sum(bucket)
        ready = work.forward + backward * done / total
        sent = max(ready + wire.alpha, sent) + bytes_on_the_wire(compression, bucket, world_size) * wire.beta
        decoded = max(decoded, sent) + coding / 2 * sum(bucket) / total
    return max(decoded, logged) - work.forward - work.backward


def _log2(world_size: int) -> int:
    return (world_size - 1).bit_length()

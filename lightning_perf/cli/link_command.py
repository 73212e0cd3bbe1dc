"""``lightning-perf link``: what the link between processes costs, and what follows for DDP."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.multiprocessing import spawn  # pyright: ignore[reportPrivateImportUsage]

from lightning_perf.strategies.compression import bytes_on_the_wire
from lightning_perf.strategies.link import Link, bucket_mib, probe_link

_MB = 1_000_000


def run(args: Sequence[str]) -> int:
    """Measure between the processes that torchrun started, or between some that are started here; print on rank 0."""
    parser = argparse.ArgumentParser(
        prog="lightning-perf link",
        description="Measure an all-reduce between processes. Start it with torchrun on the machines that will train, or "
        "alone for processes of this machine.",
    )
    parser.add_argument("--processes", type=int, default=2, help="without torchrun: how many to start here (default 2)")
    parser.add_argument("--backend", default=None, help="gloo or nccl; default: nccl where there are GPUs enough")
    parser.add_argument("--megabytes", type=float, default=100.0, help="size of float32 gradients to predict for")
    options = parser.parse_args(args)
    if options.processes < 2:
        parser.error(f"--processes {options.processes}: a link has two ends; give 2 or more.")
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        _measure(int(os.environ.get("LOCAL_RANK", 0)), options.backend, options.megabytes)
        return 0
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()), WORLD_SIZE=str(options.processes))
    try:
        spawn(_start, (options.backend, options.megabytes), nprocs=options.processes)
    finally:
        for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
            del os.environ[name]
    return 0


def describe(link: Link, megabytes: float, world_size: int) -> str:
    """The link in words, with the exchange of so many megabytes of float32 gradients by each preset.

    Example::

        >>> print(describe(Link(0.002, 1e8), 8.0, 2))
        an all-reduce of nothing takes 2.000 ms; 100 MB a second
        buckets for perf_ddp_overlap: 1 MiB
        exchange of 8 MB without overlap: float32 82.0 ms, bf16 42.0 ms, int8 22.3 ms
    """
    elements = int(megabytes * _MB / 4)
    plain = bytes_on_the_wire(None, [elements], world_size)

    def milliseconds(compression: str | None) -> float:
        # The bandwidth is that of an all-reduce, per byte of the tensor.
        share = bytes_on_the_wire(compression, [elements], world_size) / plain
        return (link.latency + share * megabytes * _MB / link.bandwidth) * 1e3

    return (
        f"an all-reduce of nothing takes {link.latency * 1e3:.3f} ms; {link.bandwidth / _MB:.0f} MB a second\n"
        f"buckets for perf_ddp_overlap: {bucket_mib(link, int(megabytes * _MB))} MiB\n"
        f"exchange of {megabytes:g} MB without overlap: float32 {milliseconds(None):.1f} ms, "
        f"bf16 {milliseconds('bf16'):.1f} ms, int8 {milliseconds('int8'):.1f} ms"
    )


def _start(rank: int, backend: str | None, megabytes: float) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    _measure(rank, backend, megabytes)


def _measure(local_rank: int, backend: str | None, megabytes: float) -> None:
    on_gpus = torch.cuda.is_available() and local_rank < torch.cuda.device_count() and dist.is_nccl_available()
    backend = backend or ("nccl" if on_gpus else "gloo")
    device = torch.device("cuda", local_rank) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend)
    try:
        link = probe_link(device, rounds=20)
        if dist.get_rank() == 0:
            print(f"{dist.get_world_size()} processes, {backend}")
            print(describe(link, megabytes, dist.get_world_size()), flush=True)
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

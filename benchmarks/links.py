"""Two hosts on one machine: network namespaces joined by a link of a chosen rate and delay.

    with hosts(rate=100e6, delay=0.01) as pair:
        torchrun(pair, "benchmarks.ddp", "rank", ...)

Each namespace holds one end of a TUN device, whose queue lets packets out at the rate (tc's tbf: as behind a network card,
little of a socket is in it at a time, and the rest waits in the socket). A relay process carries them to the other end, each
after the delay. No netem, no kernel module; Linux and root. The relay outlives nobody: its standard input is a pipe from
the process that asked for the link, and when that closes, for whatever reason, it ends everything that runs in the
namespaces and removes them.

    python -m benchmarks.links [--rate 100e6] [--delay 0.01]

measures such a link with ``lightning-perf link``. No packet is lost, frames have 9000 bytes, and TCP keeps its window over a
pause (``tcp_slow_start_after_idle=0``), as hosts that train together are set.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_TUN = Path("/dev/net/tun")
_FILES = Path("/etc/netns")  # what `ip netns exec NAME` shows as /etc
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_ADDRESSES = ("10.77.0.1", "10.77.0.2")
_DEVICE, _FRAME, _PORT = "link0", 9000, 29500
_QUEUE_BYTES = 16 * 1024 * 1024
_COUNT = itertools.count()


@dataclass(frozen=True)
class Hosts:
    """Two namespaces that reach each other, and nothing else, through device ``link0``; none: this machine's loopback."""

    names: tuple[str, ...] = ()

    def inside(self, host: int, words: Sequence[str]) -> list[str]:
        """The command that runs ``words`` on a host."""
        return ["ip", "netns", "exec", self.names[host], *words] if self.names else list(words)


LOOPBACK = Hosts()


def why_not() -> str | None:
    """Why no link can be made here; None if one can."""
    if not sys.platform.startswith("linux"):
        return f"network namespaces are Linux's, and this is {sys.platform}"
    if os.geteuid() != 0:
        return "network namespaces and TUN devices need root"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "the commands ip and tc are not installed (package iproute2)"
    if not _TUN.exists():
        return f"there is no {_TUN}"
    made = subprocess.run(["ip", "netns", "add", name := f"lp{os.getpid()}try"], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


@contextmanager
def hosts(rate: float | None = None, delay: float = 0.0) -> Iterator[Hosts]:
    """Two hosts joined by a link of ``rate`` bits a second (None: what the relay can do) and ``delay`` seconds one way.

    Raises:
        RuntimeError: no link can be made here; the message says why.
        ValueError: a rate that is not positive, or a negative delay.
    """
    if (rate is not None and rate <= 0) or delay < 0:
        raise ValueError(f"rate={rate!r} must be positive or None, and delay={delay!r} at least 0.")
    reason = why_not()
    if reason is not None:
        raise RuntimeError(f"no link between two hosts can be made here: {reason}.")
    stem = f"lp{os.getpid()}n{next(_COUNT)}"
    names = (f"{stem}a", f"{stem}b")
    ends: list[int] = []
    try:
        ends += [_open_device(name) for name in names]
        words = [
            sys.executable,
            "-m",
            "benchmarks.links",
            "relay",
            *names,
            *map(str, ends),
            repr(delay),
        ]
        relay = subprocess.Popen(
            words, stdin=subprocess.PIPE, pass_fds=ends, start_new_session=True, cwd=Path(__file__).parents[1]
        )
    finally:
        for end in ends:
            os.close(end)
    try:
        for name, address in zip(names, _ADDRESSES, strict=True):
            _join(name, address, rate)
        yield Hosts(names)
    finally:
        assert relay.stdin is not None
        relay.stdin.close()
        if relay.wait():
            raise RuntimeError(f"the relay of the link ended with {relay.returncode}; its output is above.")


def _open_device(name: str) -> int:
    import fcntl  # POSIX only, and this file is read on every system

    end = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return end


def _join(name: str, address: str, rate: float | None) -> None:
    """Move a device into a namespace of its own, with its address and its rate; no name server can be asked from there."""
    (_FILES / name).mkdir(parents=True)
    table = [f"{prefix}{one} host{index}" for index, one in enumerate(_ADDRESSES) for prefix in ("", "::ffff:")]
    (_FILES / name / "hosts").write_text("\n".join([f"127.0.0.1 localhost {socket.gethostname()}", *table, ""]))
    (_FILES / name / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    _ip("netns", "add", name)
    _ip("link", "set", name, "netns", name, "name", _DEVICE)
    _ip("-n", name, "link", "set", _DEVICE, "mtu", str(_FRAME), "txqueuelen", "10000", "up")
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", name, "address", "add", f"{address}/30", "dev", _DEVICE)
    if rate is not None:  # 2 ms at a time: the clock of the queue is not finer
        burst = max(2 * _FRAME, int(rate / 8 * 0.002))
        shape = ["root", "tbf", "rate", f"{rate:.0f}bit", "burst", str(burst), "limit", str(_QUEUE_BYTES)]
        _run("tc", "-n", name, "qdisc", "add", "dev", _DEVICE, *shape)
    keep = "echo 0 > /proc/sys/net/ipv4/tcp_slow_start_after_idle"
    subprocess.run(["ip", "netns", "exec", name, "sh", "-c", keep], check=True)


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed: {done.stderr.strip()}")
    return done.stdout


def carry(ends: tuple[int, int], owner: int, delay: float) -> None:
    """Carry packets between two devices, each for so long, until ``owner`` can be read: when its writer is gone."""
    on_the_way: tuple[deque[tuple[float, bytes]], ...] = (deque(), deque())
    while True:
        due = min((queue[0][0] for queue in on_the_way if queue), default=None)
        wait = None if due is None else max(due - time.monotonic(), 0.0)
        ready = select.select([*ends, owner], [], [], wait)[0]
        if owner in ready:
            return
        for side, end in enumerate(ends):
            if end in ready:
                _take(end, on_the_way[side], delay)
        now = time.monotonic()
        for side, queue in enumerate(on_the_way):
            while queue and queue[0][0] <= now:
                _give(ends[1 - side], queue.popleft()[1])


def _take(end: int, queue: deque[tuple[float, bytes]], delay: float) -> None:
    for _ in range(32):  # then look at the other end
        try:
            packet = os.read(end, 65536)
        except BlockingIOError:
            return
        queue.append((time.monotonic() + delay, packet))


def _give(end: int, packet: bytes) -> None:
    try:
        os.write(end, packet)
    except OSError as error:
        if error.errno != errno.EIO:  # the device is not up yet: nobody is there to take it
            raise


def _relay(names: Sequence[str], ends: tuple[int, int], delay: float) -> None:
    """The relay process: carry, then leave nothing behind."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # its clock must not wait for the ranks
    try:
        carry(ends, sys.stdin.fileno(), delay)
    finally:
        known = {line.split()[0] for line in _ip("netns", "list").splitlines() if line}
        for name in known.intersection(names):
            for pid in map(int, _ip("netns", "pids", name).split()):
                with suppress(ProcessLookupError):  # it has ended by itself
                    os.kill(pid, signal.SIGKILL)
            _ip("netns", "del", name)
        for name in names:
            shutil.rmtree(_FILES / name, ignore_errors=True)


def torchrun(pair: Hosts, module: str, *words: str, seconds: float = 300) -> str:
    """``torchrun -m module words...``, one process a host (on loopback: two processes), each on one core.

    Returns:
        What the first host printed.

    Raises:
        RuntimeError: a host failed or did not end in time; the message holds the end of its output.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", f"--master-port={_PORT}"]
    launch += (
        [f"--nnodes={len(pair.names)}", "--nproc-per-node=1", f"--master-addr={_ADDRESSES[0]}"]
        if pair.names
        else ["--nnodes=1", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": _DEVICE if pair.names else "lo"}
    agents = [
        subprocess.Popen(
            pair.inside(host, [*launch, f"--node-rank={host}", "-m", module, *words]),
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )
        for host in range(len(pair.names) or 1)
    ]  # fmt: skip
    try:
        texts = [agent.communicate(timeout=seconds)[0] for agent in agents]
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"torchrun -m {module} {' '.join(words)} did not end within {seconds} s.") from late
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
                agent.wait()
    for host, (agent, text) in enumerate(zip(agents, texts, strict=True)):
        if agent.returncode:
            raise RuntimeError(f"torchrun -m {module} failed on host {host} with {agent.returncode}:\n{text[-4000:]}")
    return texts[0]


def main(words: Sequence[str]) -> None:
    """Measure a link; or, started by :func:`hosts`, be its relay."""
    if words[:1] == ["relay"]:
        first, second, *numbers = words[1:]
        _relay((first, second), (int(numbers[0]), int(numbers[1])), float(numbers[2]))
        return
    parser = argparse.ArgumentParser("python -m benchmarks.links")
    parser.add_argument("--rate", type=float, help="bits a second; default: no limit, which shows what the relay costs")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds one way (default 0)")
    known = parser.parse_args(words)
    with hosts(known.rate, known.delay) as pair:
        print(torchrun(pair, "lightning_perf", "link", "--megabytes", "5.6"))


if __name__ == "__main__":
    main(sys.argv[1:])

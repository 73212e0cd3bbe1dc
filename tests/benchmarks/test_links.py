"""Two hosts on one machine: what their link does to packets, and that nothing of them is left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import links

REASON = links.why_not()
needs_root = pytest.mark.skipif(REASON is not None, reason=str(REASON))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def carried() -> Iterator[Callable[[float], tuple[socket.socket, socket.socket]]]:
    """Starts a relay between two datagram sockets; the test holds the outer ends."""
    stops = []

    def start(delay: float) -> tuple[socket.socket, socket.socket]:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        owner, stop = os.pipe()
        for _, inner in pairs:
            inner.setblocking(False)
        ends = (pairs[0][1].fileno(), pairs[1][1].fileno())
        thread = threading.Thread(target=links.carry, args=(ends, owner, delay))
        thread.start()
        stops.append((thread, stop, owner, pairs))
        for outer, _ in pairs:
            outer.settimeout(5)
        return pairs[0][0], pairs[1][0]

    yield start
    for thread, stop, owner, pairs in stops:
        os.close(stop)
        thread.join(5)
        assert not thread.is_alive()
        os.close(owner)
        for pair in pairs:
            for end in pair:
                end.close()


def test_packets_arrive_whole_in_order_and_both_ways(
    carried: Callable[[float], tuple[socket.socket, socket.socket]],
) -> None:
    left, right = carried(0.01)
    sent = [bytes([index]) * (index + 1) for index in range(50)]
    for packet in sent:
        left.send(packet)
        right.send(packet[::-1] + b"!")
    assert [right.recv(100) for _ in sent] == sent
    assert [left.recv(100) for _ in sent] == [packet[::-1] + b"!" for packet in sent]


def test_a_packet_is_due_after_the_delay() -> None:
    outer, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    inner.setblocking(False)
    sent = [b"one", b"two"]
    for packet in sent:
        outer.send(packet)
    queue: links.deque[tuple[float, bytes]] = links.deque()
    begin = time.monotonic()
    links._take(inner.fileno(), queue, 100.0)
    assert [packet for _, packet in queue] == sent
    assert all(begin + 100 <= due <= time.monotonic() + 100 for due, _ in queue)


@pytest.mark.parametrize(("rate", "delay"), [(0.0, 0.0), (1e6, -0.1)])
def test_links_that_cannot_be(rate: float, delay: float) -> None:
    with pytest.raises(ValueError, match="must be positive or None"), links.hosts(rate, delay):
        pass


def test_without_root_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links.sys, "platform", "linux")
    monkeypatch.setattr(links.os, "geteuid", lambda: 1000, raising=False)
    with pytest.raises(RuntimeError, match=r"no link between two hosts .* need root"), links.hosts():
        pass


def left_of(names: tuple[str, ...]) -> list[str]:
    """What of these hosts is still there: namespaces, devices, files."""
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    devices = subprocess.run(["ip", "link"], capture_output=True, text=True).stdout
    files = [str(path) for path in links._FILES.glob("*")]
    return [name for name in names if name in spaces or name in devices or any(name in file for file in files)]


ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 5000))
print("ready", flush=True)
connection, peer = server.accept()
connection.sendall(connection.recv(100)[::-1])
print(peer[0], connection.getsockname()[0])
"""
CALL = """
import socket, sys
with socket.create_connection((sys.argv[1], 5000), timeout=10) as connection:
    connection.sendall(b"olleh")
    print(connection.recv(100).decode(), socket.getnameinfo((sys.argv[1], 0), 0)[0])
"""


@needs_root
def test_two_hosts_reach_each_other_and_nothing_is_left() -> None:
    with links.hosts(rate=1e8, delay=0.002) as pair:
        server = subprocess.Popen(
            pair.inside(0, [sys.executable, "-c", ECHO, links._ADDRESSES[0]]), stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        call = pair.inside(1, [sys.executable, "-c", CALL, links._ADDRESSES[0]])
        assert subprocess.run(call, capture_output=True, text=True).stdout == "hello host0\n"
        assert server.communicate()[0].split() == list(links._ADDRESSES)[::-1]
    assert left_of(pair.names) == []


@needs_root
def test_after_an_exception_nothing_is_left() -> None:
    seen: list[str] = []

    def fail() -> None:
        with links.hosts() as pair:
            seen.extend(pair.names)
            assert left_of(pair.names) == seen
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert left_of(tuple(seen)) == []


OWNER = """
import subprocess, sys, time
from benchmarks import links
with links.hosts() as pair:
    sleeper = subprocess.Popen(pair.inside(1, ["sleep", "600"]))
    time.sleep(0.5)
    print(*pair.names, sleeper.pid, flush=True)
    time.sleep(600)
"""


@needs_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_owner_leaves_nothing(number: signal.Signals) -> None:
    """Neither the namespaces nor what ran in them."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert owner.stdout is not None
    *names, pid = owner.stdout.readline().split()
    assert left_of(tuple(names)) == names
    owner.send_signal(number)
    owner.wait()
    for _ in range(100):
        if not left_of(tuple(names)):
            break
        time.sleep(0.1)
    assert left_of(tuple(names)) == []
    status = Path(f"/proc/{pid}/status")
    assert not status.exists() or "zombie" in status.read_text()


def probed(pair: links.Hosts) -> tuple[float, float]:
    """Seconds of an all-reduce of nothing, and of each megabyte of a large one, by ``lightning-perf link``."""
    text = links.torchrun(pair, "lightning_perf", "link", "--megabytes", "100")
    nothing, large = (re.search(words, text) for words in (r"nothing takes ([\d.]+) ms", r"float32 ([\d.]+) ms"))
    assert nothing, text
    assert large, text
    return float(nothing[1]) / 1e3, (float(large[1]) - float(nothing[1])) / 1e5


@needs_root
@pytest.mark.slow
def test_rate_and_delay_hold() -> None:
    """Within 10 %, once what the relay and gloo take themselves is known; gloo waits for four delays in an all-reduce."""
    with links.hosts() as pair:
        own, own_megabyte = probed(pair)
    assert own < 0.005
    assert own_megabyte < 0.02
    with links.hosts(rate=100e6, delay=0.01) as pair:
        nothing, megabyte = probed(pair)
    assert (nothing - own) / 4 == pytest.approx(0.01, rel=0.1)
    assert 1 / megabyte == pytest.approx(12.5, rel=0.1)

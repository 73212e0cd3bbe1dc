"""Every process gives a bucket's message to every other one, while backward goes on; for communication hooks of DDP."""
# DDP compares the hooks' annotations with classes, so they must not be turned into strings.

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import GradBucket  # pyright: ignore[reportPrivateImportUsage]

Result = torch.futures.Future[torch.Tensor]
#: Messages are told apart from those of the user's own code, and from those of exchanges that are no more, by tags of 31
#: bits: a one, 14 for the exchange and 16 for the bucket.
_NUMBERS, _MARK = count(), 1 << 30
#: What was on its way when an exception ended a backward. gloo stalls a link for good once a process lets go of a message
#: that the other one still sends or awaits, and a later fit in these processes uses the same link.
_HELD: list[tuple[Tensor, Any]] = []
#: Those whose messages :func:`hold_all` holds.
_LIVING: WeakSet[Any] = WeakSet()


def hold_all() -> None:
    """Keep what all exchanges await for as long as this process lives: an exception has ended a fit."""
    for one in list(_LIVING):
        one.hold()


class _Expected(NamedTuple):
    """A bucket's messages of all others, which may arrive any time: where they will be, and what waits for them."""

    received: dict[int, Tensor]
    works: list[Any]

    def fits(self, message: Tensor) -> bool:
        return all(one.shape == message.shape and one.dtype == message.dtype for one in self.received.values())


class _Pending(NamedTuple):
    """A bucket whose messages are on their way."""

    bucket: int
    message: Tensor
    expected: _Expected
    sends: list[Any]
    finish: Callable[[list[Tensor]], Tensor]
    future: Result


class Exchange:
    """Exchanges of one process group; making one is collective.

    Swapped messages go from process to process, and every receiver is ready since the step before. An all-gather of gloo
    sends first and says afterwards, behind its own message, that it can receive: whenever one process is later than the
    other, the two directions of the link take turns.

    Args:
        group: the process group of DDP.
        swaps: whether to swap, or to gather as the backend does. To swap needs messages on the CPU, and a DDP that calls its
            hook for every bucket in every backward.
    """

    def __init__(self, group: Any, *, swaps: bool) -> None:
        self._pending: list[_Pending] = []
        self._expected: dict[int, _Expected] = {}
        self._group, self._rank, self._size = group, dist.get_rank(group), dist.get_world_size(group)
        self._swaps = swaps
        self._others = [(self._rank + step) % self._size for step in range(1, self._size)]
        self._tags: dict[tuple[Any, ...], int] = {}
        self._first_tag = _MARK | self._agreed(next(_NUMBERS)) % (1 << 14) << 16 if swaps else 0
        _LIVING.add(self)

    def __del__(self) -> None:
        if self._pending:
            self.hold()

    def hold(self) -> None:
        """Keep every message that is on its way or awaited for as long as this process lives."""
        for one in self._pending:
            _HELD.extend((one.message, work) for work in one.sends)
        for expected in (*self._expected.values(), *(one.expected for one in self._pending)):
            _HELD.extend(zip(expected.received.values(), expected.works, strict=True))

    def start(self, bucket: GradBucket, message: Tensor, finish: Callable[[list[Tensor]], Tensor]) -> Result:
        """Send ``message``; ``finish`` gets those of all processes, in the order of their ranks, and gives the result.

        Raises:
            RuntimeError: a process is gone, or sent nothing within the timeout of the group.
        """
        if not self._swaps:
            return self._gather(message, finish)
        index = bucket.index()
        expected = self._expected.pop(index, None)
        if expected is None or not expected.fits(message):
            expected = self._expect(index, {peer: torch.empty_like(message) for peer in self._others})
        sends = [self._send(message, peer, self._tag(index, message)) for peer in self._others]
        self._pending.append(_Pending(index, message, expected, sends, finish, torch.futures.Future()))
        future = self._pending[-1].future
        if bucket.is_last():  # DDP calls hooks in order: all gradients are there, and nothing is left to compute
            self._settle()
        return future

    def _gather(self, message: Tensor, finish: Callable[[list[Tensor]], Tensor]) -> Result:
        rows = torch.empty(self._size * message.numel(), dtype=message.dtype, device=message.device)
        work: Any = dist.all_gather_single(rows, message, group=self._group, async_op=True)

        def then(future: Any) -> Tensor:
            future.value()
            return finish(list(rows.view(self._size, -1)))

        return work.get_future().then(then)

    def _settle(self) -> None:
        """Wait for every bucket and finish it; what follows is expected at once, so that nobody waits for our notice."""
        for one in self._pending:
            for work in (*one.expected.works, *one.sends):
                work.wait()
            received = one.expected.received
            messages = [one.message if rank == self._rank else received[rank] for rank in range(self._size)]
            one.future.set_result(one.finish(messages))
            self._expected[one.bucket] = self._expect(one.bucket, received)
        self._pending = []

    def _expect(self, index: int, received: dict[int, Tensor]) -> _Expected:
        works = [self._receive(one, peer, self._tag(index, one)) for peer, one in received.items()]
        return _Expected(received, works)

    def _tag(self, index: int, message: Tensor) -> int:
        """Of its own for every size: once DDP has built its buckets anew, what was expected of the old ones never comes."""
        return self._tags.setdefault((index, message.numel(), message.dtype), self._first_tag + len(self._tags))

    def _send(self, message: Tensor, peer: int, tag: int) -> Any:
        return dist.isend(message, self._global(peer), group=self._group, tag=tag)

    def _receive(self, message: Tensor, peer: int, tag: int) -> Any:
        return dist.irecv(message, self._global(peer), group=self._group, tag=tag)

    def _global(self, peer: int) -> int:
        return dist.get_global_rank(self._group or dist.group.WORLD, peer)  # pyright: ignore[reportArgumentType]

    def _agreed(self, number: int) -> int:
        """Rank 0's: processes need not have made as many exchanges before."""
        told = torch.tensor([number])
        dist.broadcast(told, self._global(0), group=self._group)
        return int(told)

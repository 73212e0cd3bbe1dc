"""Predicted steps, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_perf.host import MisconfigurationException
from lightning_perf.strategies.compression import bytes_on_the_wire
from lightning_perf.strategies.link import Link
from lightning_perf.strategies.prediction import OTHERS, Prediction, Wire, Work, buckets, predict
from lightning_perf.strategies.presets import PRESETS

MIB_ELEMENTS = 262_144
SMALL = Work(forward=1.0, backward=2.0, sizes=[100], rest=0.5, accumulate=2, buffer_bytes=8, synced=3)
WIRE = Wire(alpha=0.1, beta=0.001)
TWO_BUCKETS = Work(forward=1.0, backward=3.0, sizes=[2 * MIB_ELEMENTS, MIB_ELEMENTS])


@pytest.mark.parametrize(
    ("algorithm", "world_size", "seconds"),
    [
        ("ring", 2, 2 * 1 + 8 * 0.5),
        ("ring", 4, 6 * 1 + 1.5 * 8 * 0.5),
        ("halving", 4, 4 * 1 + 1.5 * 8 * 0.5),
        ("halving", 1024, 20 * 1 + 2 * 1023 / 1024 * 8 * 0.5),
    ],
)
def test_all_reduce(algorithm: str, world_size: int, seconds: float) -> None:
    assert Wire(1.0, 0.5, algorithm=algorithm).all_reduce(8, world_size) == pytest.approx(seconds)  # pyright: ignore


@pytest.mark.parametrize(("world_size", "levels"), [(2, 1), (3, 2), (4, 2), (5, 3), (4096, 12)])
def test_broadcast(world_size: int, levels: int) -> None:
    assert Wire(1.0, 0.5).broadcast(8, world_size) == levels * 5.0


@pytest.mark.parametrize("world_size", [2, 3, 64])
def test_a_measured_link_and_back(world_size: int) -> None:
    """What the probe measured among so many processes is what the wire predicts for them."""
    wire = Wire.of(Link(latency=0.006, bandwidth=1e8), world_size)
    assert wire.all_reduce(0, world_size) == pytest.approx(0.006)
    assert wire.all_reduce(1e8, world_size) == pytest.approx(1.006)
    back = wire.link(world_size)
    assert (back.latency, back.bandwidth) == pytest.approx((0.006, 1e8))


def test_plain_ddp() -> None:
    """Two micro-batches with a question (0.1 + 8 bytes) and three values (a barrier, one element) each; buffers once."""
    found = predict("ddp", SMALL, WIRE, 2)
    assert found.compute == pytest.approx(2 * 3 + 0.5)
    assert found.gradients == pytest.approx(2 * 0.1 + 400 * 0.001)
    assert found.waits == pytest.approx(2 * (0.108 + 3 * (0.1 + 0.104)) + 0.108)
    assert found.seconds == pytest.approx(6.5 + 0.6 + 1.548)
    assert found.sent == 400


def test_a_lightning_that_does_not_ask() -> None:
    found = predict("ddp", replace(SMALL, asked=False), WIRE, 2)
    assert found.waits == pytest.approx(2 * 3 * (0.1 + 0.104) + 0.108)


@pytest.mark.parametrize("preset", ["ddp", "perf_ddp", "perf_ddp_overlap", "perf_ddp_bf16"])
def test_a_cap_that_is_given_holds_for_all_buckets(preset: str) -> None:
    """One bucket of 3 MiB, ready at the end of backward."""
    found = predict(preset, TWO_BUCKETS, Wire(0.1, 1e-6), 2, bucket_cap_mb=100)
    size = 3 * MIB_ELEMENTS * 4
    assert found.gradients == pytest.approx(0.1 + size / 2 * 1e-6 if "bf16" in preset else 0.2 + size * 1e-6)


def test_perf_ddp_waits_for_its_gradients_and_two_agreements() -> None:
    """Logged values travel behind backward, buffers stay at home; at most one agreement a micro-batch, of 8 bytes."""
    found = predict("perf_ddp", SMALL, WIRE, 2)
    assert found.gradients == pytest.approx(0.6)
    assert found.waits == pytest.approx(2 * 0.208)


def test_logged_values_longer_than_a_local_backward() -> None:
    """24 bytes take 2 * 1.5 + 0.024; a backward of 2 leaves 1.024 of that, in the first of two micro-batches."""
    found = predict("perf_ddp", SMALL, Wire(1.5, 0.001, lanes=2), 2)
    assert found.waits == pytest.approx(1.024 + 2 * 3.008)


@pytest.mark.parametrize(
    ("beta", "lanes", "exposed"),
    [
        # 1 MiB is ready at 2 and takes 0.2 + 1.048576; 2 MiB are ready at 4, the end of backward
        (1e-6, 1, 0.2 + 2.097152),
        # the first ends at 2.2 + 4.194304, and the second follows: with a lane of its own its delays are over by then
        (4e-6, 1, 2.394304 + 0.2 + 8.388608),
        (4e-6, 2, 2.394304 + 8.388608),
    ],
)
def test_buckets_travel_behind_backward(beta: float, lanes: int, exposed: float) -> None:
    found = predict("ddp", TWO_BUCKETS, Wire(0.1, beta, lanes), 2)
    assert found.gradients == pytest.approx(exposed)


def test_buckets_close_when_they_are_full() -> None:
    assert buckets([1, 2, 3, 4], limits=[20, 8]) == [[4, 3], [2], [1]]
    assert buckets([5], limits=[10**9]) == [[5]]


def test_overlap_has_the_buckets_that_suit_the_link() -> None:
    """The link wants one bucket of 3 MiB (at most 5): everything starts at the end of backward."""
    found = predict("perf_ddp_overlap", TWO_BUCKETS, Wire(1.0, 1e-6, lanes=2), 2)
    assert found.gradients == pytest.approx(2.0 + 3 * 1.048576)


@pytest.mark.parametrize(
    ("preset", "world_size", "rounds", "sent"),
    [
        ("perf_ddp_bf16", 2, 1, 2 * 1024),
        ("perf_ddp_bf16", 4, 6, 1.5 * 2 * 1024),
        ("perf_ddp_int8", 2, 1, 1040),
        ("perf_ddp_int8", 4, 3, 3 * 1040),
        ("perf_ddp_int8", 5, 8, 1.6 * 2 * 1024),  # bfloat16 from here on
    ],
)
def test_compressed_gradients(preset: str, world_size: int, rounds: int, sent: float) -> None:
    work = Work(1.0, 1.0, [1024], coding={"bf16": 0.5, "int8": 0.25})
    found = predict(preset, work, WIRE, world_size)
    coding = 0.25 if preset == "perf_ddp_int8" and world_size < 5 else 0.5
    assert found.gradients == pytest.approx(rounds * 0.1 + sent * 0.001 + coding)
    assert found.sent == pytest.approx(sent)


@pytest.mark.parametrize(("preset", "world_size"), [("perf_ddp_bf16", 2), ("perf_ddp_int8", 2), ("perf_ddp_int8", 4)])
def test_swapped_gradients_wait_for_no_lane(preset: str, world_size: int) -> None:
    """Three buckets of 1 MiB, ready at 2, 3 and 4, the end of backward: each message starts then, and bytes queue.

    With an alpha of 5 the first arrives at 7 plus its bytes, which the others' delays overlap.
    """
    work = Work(forward=1.0, backward=3.0, sizes=[MIB_ELEMENTS] * 3)
    part = 260 * 1024 * (world_size - 1) if preset == "perf_ddp_int8" else 2 * MIB_ELEMENTS
    slow = predict(preset, work, Wire(5.0, 1e-5, lanes=2), world_size)  # bytes last longer than the second between two
    assert slow.gradients == pytest.approx(2.0 + 5.0 + 3 * part * 1e-5 - 4.0)
    quick = predict(preset, work, Wire(5.0, 1e-9, lanes=2), world_size)
    assert quick.gradients == pytest.approx(4.0 + 5.0 + part * 1e-9 - 4.0)


@pytest.mark.parametrize(
    ("preset", "world_size", "skips"),
    [("perf_ddp_bf16", 3, False), ("perf_ddp_int8", 5, False), ("perf_ddp_bf16", 2, True), ("perf_ddp_int8", 2, True)],
)
def test_what_is_not_swapped_has_ddps_own_buckets(preset: str, world_size: int, skips: bool) -> None:
    """Two buckets: the first closes at 1 MiB, the other holds the rest of 16 MiB and starts at the end of backward."""
    work = Work(forward=1.0, backward=3.0, sizes=[MIB_ELEMENTS] * 16, skips_unused=skips)
    found = predict(preset, work, Wire(5.0, 1e-8, lanes=2), world_size)
    rounds = 1 if world_size == 2 else 2 * (world_size - 1)  # gathered, or in a ring
    sent = bytes_on_the_wire(
        "int8" if (preset, world_size) == ("perf_ddp_int8", 2) else "bf16", work.sizes[1:], world_size
    )
    assert found.gradients == pytest.approx(5.0 * rounds + 1e-8 * sent)


@pytest.mark.parametrize(
    ("beta", "exposed"),
    [
        (0.0, 0.6),  # 0.3 of encoding make backward end at 4.3; then 0.1 of decoding for each bucket
        (10 / 266_240, 28.2),  # ready at 2.1, sent at 12.1, 22.1 and 32.1: only the last one's decoding is waited for
    ],
)
def test_swapped_gradients_are_decoded_while_others_travel(beta: float, exposed: float) -> None:
    work = Work(forward=1.0, backward=3.0, sizes=[MIB_ELEMENTS] * 3, coding={"int8": 0.6})
    found = predict("perf_ddp_int8", work, Wire(0.0, beta, lanes=2), 2)
    assert found.gradients == pytest.approx(exposed)


def test_logged_values_travel_beside_what_is_swapped() -> None:
    """Ready at 1, two messages of 5 each and 24 bytes: at 11.024, where gradients are there at 4 + 5."""
    work = Work(forward=1.0, backward=3.0, sizes=[100], synced=3)
    found = predict("perf_ddp_bf16", work, Wire(5.0, 0.001, lanes=2), 2)
    assert found.gradients == pytest.approx(11.024 - 4.0)


def test_local_sgd_shares_an_average_among_its_steps() -> None:
    """Momentum of 100 numbers is a block of 256 bytes with its scale, or two bytes a number among many processes."""
    found = predict("perf_local_sgd", SMALL, WIRE, 2, average_every=4)
    assert found.gradients == pytest.approx((0.2 + (408 + 260) * 0.001) / 4)
    assert found.sent == (400 + 260) / 4
    found = predict("perf_local_sgd", replace(SMALL, momentum=False), WIRE, 2, average_every=4)
    assert found.gradients == pytest.approx((0.2 + 408 * 0.001) / 4)
    assert found.sent == 100
    found = predict("perf_local_sgd", SMALL, WIRE, 8, average_every=4)
    assert found.sent == pytest.approx((400 + 200) * 2 * 7 / 8 / 4)


@pytest.mark.parametrize(
    ("forward", "alpha", "waits"),
    [
        (0.5, 0.001, 0.0),  # beside the step
        (0.5, 0.4, 0.5 * (0.8 - 0.5)),  # every second step asks, and the answer outlasts it
        (5.0, 0.001, 0.002),  # every step asks and waits
    ],
)
def test_agreements_come_once_a_second(forward: float, alpha: float, waits: float) -> None:
    found = predict("perf_local_sgd", Work(forward, 0.0, [1]), Wire(alpha, 0.0), 2, average_every=10**9)
    assert found.waits == pytest.approx(waits)


@pytest.mark.parametrize("preset", [*PRESETS, *OTHERS])
def test_more_processes_are_never_faster_and_nothing_is_the_bound(preset: str) -> None:
    work = Work(0.01, 0.02, [1_000_000, 500, 2_000_000], rest=0.005, buffer_bytes=400, synced=2)
    found = [predict(preset, work, Wire(1e-4, 1e-9), 2**power) for power in range(13)]
    seconds = [one.seconds for one in found]
    assert found[0] == Prediction(work.compute)
    assert all(one >= work.compute for one in seconds)
    if preset != "perf_ddp_int8":  # which changes to bfloat16 above four
        assert seconds == sorted(seconds)
    assert (preset == "nothing") == (seconds[-1] == seconds[0])


def test_what_cannot_be_predicted() -> None:
    with pytest.raises(MisconfigurationException, match=r"'perf_dpd' is unknown; .* perf_ddp, .* ddp, nothing"):
        predict("perf_dpd", SMALL, WIRE, 2)
    with pytest.raises(MisconfigurationException, match="world_size=0 must be at least 1"):
        predict("ddp", SMALL, WIRE, 0)

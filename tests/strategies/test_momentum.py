"""Momentum averaged with the weights of local SGD."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_perf.strategies import momentum
from lightning_perf.strategies.momentum import Momenta, from_bytes, keeps_momentum, to_bytes
from tests.ranks import run
from tests.strategies.test_ranks import of


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks found."""
    return run("tests.strategies.momentum_worker", tmp_path_factory.mktemp("two") / "results.json", 2, seconds=100)


@pytest.mark.ddp
@pytest.mark.parametrize("averages", [True, False])
def test_a_fit_is_the_loop_by_hand(averages: bool, two: dict[str, Any]) -> None:
    result = of(two, f"fit-{averages}")
    assert result["steps"] == 6
    assert result["apart"] < 1e-6
    assert result["other"] > 1e-3


@pytest.mark.ddp
def test_rounding_is_kept_where_it_was_made(two: dict[str, Any]) -> None:
    """A process's numbers are a sixteenth off at most, and off no more as a mean; second moments, and state that is not
    there, are left alone."""
    result = of(two, "adam")
    assert 0.3 < result["apart"] < 1
    assert result["bias"] < 1e-6
    assert result["second"]
    assert result["stepped"] == 2


@pytest.mark.ddp
def test_nothing_is_sent_without_momentum(two: dict[str, Any]) -> None:
    result = of(two, "silent")
    assert result["sent"] == {"plain": 0, "rotated": 1}
    assert result["kept"]


def test_more_processes_add_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five processes: one all-reduce of bfloat16 for a chunk, here two chunks; the other four have no momentum."""
    sent = []

    class Done:
        def wait(self) -> None:
            pass

    def all_reduce(flat: torch.Tensor, async_op: bool) -> Done:
        sent.append((flat.dtype, flat.numel(), async_op))
        return Done()

    monkeypatch.setattr(dist, "get_world_size", lambda: 5)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(momentum, "_MOST_NUMBERS", 300)
    weights = [torch.nn.Parameter(torch.zeros(size)) for size in (256, 100)]
    optimizer = torch.optim.Adam(weights)
    for weight in weights:
        optimizer.state[weight] = {"exp_avg": torch.full_like(weight, 5.0), "exp_avg_sq": torch.ones_like(weight)}
    momenta = Momenta([optimizer], torch.device("cpu"))
    momenta.send()
    momenta.receive()
    assert sent == [(torch.bfloat16, 256, True)] * 2  # 100 are padded to a block
    for weight in weights:
        assert torch.equal(optimizer.state[weight]["exp_avg"], torch.ones_like(weight))


def test_momentum_stays_within_what_the_second_moment_admits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers whose gradient this process has never seen, or of 0.01 at most, beside large ones of four others: Adam divides
    by its own second moment, and 0.1 / sqrt(0.001) / sqrt(1 - 0.81 / 0.999) = 7.2703 is the most that it gives by itself.
    """

    class Done:
        def wait(self) -> None:
            pass

    def all_reduce(flat: torch.Tensor, async_op: bool) -> Done:
        flat += 2.0
        return Done()

    monkeypatch.setattr(dist, "get_world_size", lambda: 5)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    found = []
    for name in ("exp_avg_sq", "exp_inf"):
        weight = torch.nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.Adam([weight])
        optimizer.state[weight] = {"exp_avg": torch.zeros(3), name: torch.tensor([0.0, 1e-4, 1e4])}
        momenta = Momenta([optimizer], torch.device("cpu"))
        momenta.send()
        momenta.receive()
        found.append(optimizer.state[weight]["exp_avg"].tolist())
    assert found[0] == pytest.approx([0.0, 0.072703, 2.0], rel=1e-4)
    assert found[1] == pytest.approx([0.0, 1e-4 * 0.1 / (1 - 0.9 / 0.999), 2.0], rel=1e-4)


def test_small_numbers_beside_large_ones_keep_their_size() -> None:
    """Powers of two down to 2^-14 of the largest, of either sign, beside two blocks of zeros and of something infinite."""
    powers = torch.tensor([448.0 * 2.0**-power * (-1) ** power for power in range(15)])
    numbers = torch.zeros(3, 256)
    numbers[0, :15] = powers
    numbers[2, 7] = float("inf")
    message = to_bytes(numbers.view(-1))
    assert message.numel() == 3 * 260
    found = from_bytes(message).view(3, 256)
    assert torch.equal(found[:2], numbers[:2])
    assert not found[2].isfinite().all()


@pytest.mark.parametrize(
    ("group", "keeps"),
    [
        ({"momentum": 0.9}, True),
        ({"momentum": 0}, False),
        ({"betas": (0.9, 0.99)}, True),
        ({"betas": (0.0, 0.99)}, False),
        ({"betas": ()}, False),
        ({"lr": 0.1}, False),
    ],
)
def test_options_tell_who_keeps_momentum(group: dict[str, Any], keeps: bool) -> None:
    assert keeps_momentum(group) is keeps

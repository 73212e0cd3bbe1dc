"""The rule and the table of ``perf_ddp_auto``: pure functions, and what needs no second process."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest
import torch

import lightning_perf as lp
from lightning_perf.host import MisconfigurationException
from lightning_perf.host.rehearsal import copied, copied_on_shared_weights
from lightning_perf.measuring import Interval
from lightning_perf.strategies.auto import (
    BOUND_ROUNDS,
    DECIDING_ROUNDS,
    MOST_STEPS,
    WARM_UP,
    Budget,
    Choice,
    Trial,
    decide,
    nothing_to_gain,
    rounds_left,
)
from lightning_perf.strategies.auto_trials import _Entry, _Paper
from lightning_perf.strategies.prediction import Wire, Work, predict
from lightning_perf.strategies.presets import POOLS
from tests.strategies.modules import make, rows

STEADY = [1.0, 1.02, 0.99, 1.01, 1.0, 0.98, 1.0, 1.01]


def times(factor: float) -> list[float]:
    """Seconds of a candidate that takes ``factor`` times as long as ddp in every round."""
    return [factor * one for one in STEADY]


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({}, "ddp"),
        ({"perf_ddp": times(0.97)}, "ddp"),  # 3 %
        ({"perf_ddp": times(1.3)}, "ddp"),
        ({"perf_ddp": times(0.9)}, "perf_ddp"),
        ({"perf_ddp": times(0.9), "perf_ddp_overlap": times(0.88)}, "perf_ddp"),  # 2 % more
        ({"perf_ddp": times(0.9), "perf_ddp_overlap": times(0.7)}, "perf_ddp_overlap"),
        ({"perf_ddp": times(0.98), "perf_ddp_static": times(0.94)}, "perf_ddp_static"),
        ({"perf_ddp": times(0.9), "perf_ddp_bf16": times(0.6), "perf_ddp_int8": times(0.59)}, "perf_ddp_bf16"),
    ],
)
def test_the_rule(seconds: dict[str, list[float]], chosen: str) -> None:
    """The least change that is within 5 % of the fastest, and ddp unless there is a gain of 5 %."""
    name, verdicts, _ = decide({"ddp": STEADY, **seconds}, again=STEADY)
    assert name == chosen
    assert [one for one, verdict in verdicts.items() if verdict == "chosen"] == [chosen]


def test_a_gain_within_the_noise_is_none() -> None:
    """Ten per cent, where ddp differs from itself by up to 30."""
    loud = [1.3 * one if index % 2 else one for index, one in enumerate(STEADY)]
    name, verdicts, noise = decide({"ddp": STEADY, "perf_ddp": times(0.9)}, again=loud)
    assert name == "ddp"
    assert noise > 0.2
    assert verdicts["perf_ddp"] == "gains no more than the noise"


def test_a_gain_that_pairs_do_not_agree_on_is_none() -> None:
    """A median of 1.11x from pairs of 0.5x to 2x, while ddp is as steady as can be."""
    wild = [one * factor for one, factor in zip(STEADY, (0.5, 2.0, 0.9, 0.9, 2.0, 0.9, 1.8, 0.5), strict=True)]
    name, verdicts, _ = decide({"ddp": STEADY, "perf_ddp": wild}, again=STEADY)
    assert (name, verdicts["perf_ddp"]) == ("ddp", "gains no more than the noise")


def test_whether_there_is_anything_to_gain() -> None:
    assert nothing_to_gain(STEADY, times(0.98)) is not None
    assert nothing_to_gain(STEADY, times(0.9)) is None
    spread = [one * factor for one, factor in zip(STEADY, (0.9, 1.0, 0.9, 1.0) * 2, strict=True)]
    assert nothing_to_gain(STEADY, spread) is None  # perhaps there is


@pytest.mark.parametrize("others", range(1, 6))
def test_trials_fit_into_sixty_steps(others: int) -> None:
    rounds = rounds_left(others)
    taken = 2 * (WARM_UP + BOUND_ROUNDS) + WARM_UP * others + rounds * (others + 2)
    assert rounds >= 5
    if rounds == 5:
        assert taken <= MOST_STEPS
    else:
        assert MOST_STEPS - 4 - (others + 2) < taken <= MOST_STEPS - 4


class Clock:
    """Seconds that pass when something says how long it took."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def take(self, seconds: float) -> float:
        self.now += seconds
        return seconds


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("others", [3, 5])
@pytest.mark.parametrize(("probe", "slower", "noise"), [(4, 1.0, 0.0), (9, 1.15, 0.3), (2, 1.6, 0.1), (30, 1.0, 0.3)])
def test_trials_end_within_the_time_of_sixty_steps(
    probe: float, slower: float, noise: float, others: int, seed: int
) -> None:
    """Of 0.6 s; a probe of ``probe`` steps, ``slower`` candidates, single steps up to ``noise`` longer."""
    clock, draw = Clock(), random.Random(seed)
    budget = Budget(clock)

    def step(factor: float) -> float:
        return clock.take(0.6 * factor * (1 + noise * draw.random()))

    clock.take(0.6 * probe)
    taken = [step(1.0) for _ in range(WARM_UP + BOUND_ROUNDS)]
    budget.step_takes(taken[WARM_UP:])
    rounds, warm = 0, [step(slower) for _ in range(WARM_UP * others)]
    for index in budget.rounds(rounds_left(others), 2 * budget.step + sum(warm[::2]), lambda over: over):
        assert index == rounds
        rounds += 1
        for factor in (1.0, 1.0, *[slower] * others):
            step(factor)
    assert clock.now - 100 <= (MOST_STEPS - 3 * (1 - noise)) * budget.step
    assert rounds == rounds_left(others) or not budget.has((others + 2) * 0.6 * slower * (1 + noise) + 1e-9)
    if (probe, others) == (4, 3):
        assert rounds >= DECIDING_ROUNDS


def test_short_steps_have_two_seconds() -> None:
    clock = Clock()
    budget = Budget(clock)
    budget.step_takes([0.01])
    assert budget.has(2.0)
    assert not budget.has(2.01)


def test_one_process_without_time_ends_the_rounds_of_all() -> None:
    clock = Clock()
    budget = Budget(clock)
    budget.step_takes([1.0])
    answers = iter([False, False, True])
    assert list(budget.rounds(7, 1.0, lambda over: next(answers) or over)) == [0, 1]
    assert clock.now == 100


def test_predictions_are_those_on_paper() -> None:
    """With the bucket size that the candidate tells DDP."""
    work, wire = Work(0.1, 0.2, [3_000_000] * 4, synced=2), Wire(0.01, 1e-8, lanes=2)
    paper = _Paper(work, wire, 2)
    for row in POOLS["near"]:
        for arguments in ({}, {"bucket_cap_mb": 5}):
            expected = predict(row.name, work, wire, 2, bucket_cap_mb=arguments.get("bucket_cap_mb")).seconds
            assert paper.seconds(_Entry(row, arguments)) == expected


def test_the_table() -> None:
    trials = (
        Trial("ddp", "the reference", 0.1),
        Trial("perf_ddp", "chosen", 0.08, Interval(1.25, 1.2, 1.3, pairs=8)),
        Trial("perf_ddp_static", "unsupported here because static_graph=True is given"),
    )
    text = str(Choice("perf_ddp", "1.25x as fast as ddp", trials, steps=58, noise=0.02)).splitlines()
    assert text == [
        "perf_ddp is used: 1.25x as fast as ddp.",
        "  candidate        predicted  measured against ddp  verdict",
        "  ddp              100 ms     -                     the reference",
        "  perf_ddp         80 ms      1.25x [1.20, 1.30]    chosen",
        "  perf_ddp_static  -          -                     unsupported here because static_graph=True is given",
        "  58 steps on the first batch, of which nothing remains; ddp against itself shows 2% of noise",
    ]
    assert str(Choice("ddp", "nothing was tried")) == "ddp is used: nothing was tried."


def test_pools() -> None:
    assert [row.name for row in POOLS["exact"]] == ["ddp", "perf_ddp", "perf_ddp_static", "perf_ddp_overlap"]
    assert [row.name for row in POOLS["near"][4:]] == ["perf_ddp_bf16", "perf_ddp_int8"]


def test_allow_lists_the_known() -> None:
    with pytest.raises(MisconfigurationException, match="allow='fast' is unknown; use one of 'exact', 'near'"):
        lp.PerfDDP(preset="perf_ddp_auto", allow="fast")


def test_allow_beside_a_preset_that_tries_none() -> None:
    with pytest.raises(
        MisconfigurationException, match=r"allow='near' widens.*preset='perf_ddp' tries none; leave it out"
    ):
        lp.PerfDDP(allow="near")


def test_one_process_says_so_and_tries_nothing(ns: ModuleType, quiet: dict[str, Any]) -> None:
    trainer = ns.Trainer(**quiet, strategy="perf_ddp_auto", max_epochs=11)
    trainer.fit(make("Plain", ns), rows())
    assert trainer.strategy.messages == ["perf_ddp_auto: one process: nothing to exchange."]
    assert trainer.strategy.choice is None


def test_copies_share_weights_and_state_with_each_other_alone(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Two optimizers' worth of candidates on one set of weights; those of the run are left alone."""
    module = make("Tied", ns)
    optimizer = module.configure_optimizers()
    trainer = ns.Trainer(**quiet)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    first = copied(trainer, module, [optimizer], [])
    torch.stack([parameter.sum() for parameter in first.module.parameters()]).sum().backward()
    first.optimizers[0].step()
    second = copied_on_shared_weights(trainer, module, first)
    assert second.module.second.weight is second.module.first.weight
    for one, other in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert one is not other
        assert one.data_ptr() == other.data_ptr()
        states = first.optimizers[0].state[one], second.optimizers[0].state[other]
        assert states[0]["exp_avg"] is states[1]["exp_avg"]
    second.module.first.weight.sum().backward()
    assert second.module.first.weight.grad is not None
    assert first.module.second.bias.grad is not None
    second.optimizers[0].step()
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    assert not optimizer.state

"""Advice follows from numbers: what carries it is said, what does not is not, and levers already on are not advised."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lightning_perf.profiling import phases
from lightning_perf.profiling.advice import Advice, Evidence, advise, expected_gain

QUIET = {phases.FORWARD: 0.5, phases.BACKWARD: 0.5}


def levers(per_step: dict[str, float], **facts: Any) -> list[str]:
    return [advice.lever for advice in advise(Evidence({**QUIET, **per_step}, **facts))]


def test_two_workers_hide_a_wait_or_halve_it() -> None:
    """Half of the step hides behind the other half; of nine tenths, two workers still take 0.45 of the step."""
    for wait, expected in ((1.0, 2.0), (9.0, 1 / 0.45)):
        (advice,) = advise(Evidence({**QUIET, phases.DATA_WAIT: wait}, workers=0))
        assert advice.expected == pytest.approx(expected)


def test_only_later_starts_of_workers_can_be_saved() -> None:
    assert levers({phases.WORKER_START: 0.5}, workers=2, first_start=0.5) == []
    (advice,) = advise(Evidence({**QUIET, phases.WORKER_START: 1.0}, workers=2, first_start=0.5))
    assert advice.expected == pytest.approx(1 / (1 - 0.25 * 0.9))


def test_nothing_is_advised_without_a_number() -> None:
    assert levers({}) == []


@pytest.mark.parametrize(
    ("per_step", "facts", "lever"),
    [
        ({phases.LOGGING: 0.5}, {}, "add lightning_perf.FastLogging()"),
        ({phases.OPTIMIZER: 0.5}, {"unfused": ("AdamW",)}, "add lightning_perf.OptimizerFactory()"),
        ({phases.DATA_WAIT: 0.5}, {"workers": 0}, "DataLoader(num_workers=2)"),
        ({phases.DATA_WAIT: 0.5}, {"workers": 4}, "DataLoader(num_workers=8)"),
        ({phases.WORKER_START: 0.5}, {"workers": 2}, "DataLoader(persistent_workers=True)"),
        ({phases.TRANSFER: 0.5}, {"device": "cuda"}, "DataLoader(pin_memory=True)"),
        ({phases.LOGGERS: 0.5}, {"log_every_n_steps": 1}, "Trainer(log_every_n_steps=50)"),
        (
            {"callback: TQDMProgressBar": 0.5},
            {"progress_bar": "TQDMProgressBar"},
            "TQDMProgressBar(refresh_rate=20)",
        ),
        ({}, {"kernel_seconds": 0.3, "page_faults": 1e4}, "add lightning_perf.MallocTuning()"),
        ({}, {"convolution_share": 0.9}, "add lightning_perf.ChannelsLast()"),
        ({}, {"bfloat16_speed": 2.0, "utilization": 0.5}, "add lightning_perf.AutoMixedPrecision()"),
        ({phases.CHECKPOINT: 0.5}, {}, "save less often, or Trainer(plugins=[AsyncCheckpointIO()])"),
        (
            {phases.VALIDATION: 1.0},
            {},
            "validate half as often (val_check_interval, check_val_every_n_epoch)",
        ),
        ({phases.LOOP: 0.5}, {}, "a larger batch, if the training allows it"),
    ],
)
def test_a_share_calls_for_its_lever(per_step: dict[str, float], facts: dict[str, Any], lever: str) -> None:
    assert levers(per_step, **facts) == [lever]


@pytest.mark.parametrize(
    ("per_step", "facts"),
    [
        ({phases.LOGGING: 0.5}, {"callbacks": frozenset({"FastLogging"})}),
        ({phases.OPTIMIZER: 0.5}, {"unfused": ("AdamW",), "callbacks": frozenset({"OptimizerFactory"})}),
        ({phases.OPTIMIZER: 0.5}, {"unfused": ()}),
        ({phases.DATA_WAIT: 0.5}, {"workers": None}),
        ({phases.WORKER_START: 0.5}, {"workers": 2, "persistent": True}),
        ({phases.TRANSFER: 0.5}, {"device": "cpu"}),
        ({phases.TRANSFER: 0.5}, {"device": "cuda", "pinned": True}),
        ({phases.LOGGERS: 0.5}, {"log_every_n_steps": 50}),
        ({}, {"kernel_seconds": 0.3, "page_faults": 10.0}),
        ({}, {"kernel_seconds": 0.3, "page_faults": 1e4, "callbacks": frozenset({"MallocTuning"})}),
        ({}, {"convolution_share": 0.9, "callbacks": frozenset({"ChannelsLast"})}),
        ({}, {"bfloat16_speed": 0.1, "utilization": 0.5}),
        ({}, {"bfloat16_speed": 2.0}),
        ({}, {"bfloat16_speed": 2.0, "utilization": 0.02}),
        ({}, {"bfloat16_speed": 2.0, "utilization": 0.5, "precision": "bf16-mixed"}),
        ({phases.HOOKS: 0.5}, {}),  # the module's own code, no matter of small steps
    ],
)
def test_a_lever_that_is_on_or_has_no_ground_is_not_advised(per_step: dict[str, float], facts: dict[str, Any]) -> None:
    assert levers(per_step, **facts) == []


def test_no_more_than_forward_and_backward_can_gain_from_bfloat16() -> None:
    """Products are said to fill 90 % of the step, but forward and backward are a quarter of it: 1 / (1 - 0.25 / 2)."""
    per_step = {phases.FORWARD: 1.0, phases.OPTIMIZER: 3.0}
    (advice,) = advise(Evidence(per_step, bfloat16_speed=2.0, utilization=0.9))
    assert advice.expected == pytest.approx(8 / 7)


def test_the_expectation_is_amdahls_law() -> None:
    """Logging is half of two seconds; 93 % of it go: 2 / (2 - 0.93)."""
    (advice,) = advise(Evidence({phases.FORWARD: 1.0, phases.LOGGING: 1.0}))
    assert advice.expected == pytest.approx(2 / 1.07)
    assert advice.sentence() == "self.log is 50% of the step: add lightning_perf.FastLogging(); expected 1.87x"
    assert expected_gain(0.0) == 1.0


def test_the_largest_gain_comes_first_and_crumbs_are_left_out() -> None:
    evidence = Evidence({**QUIET, phases.LOGGING: 2.0, phases.DATA_WAIT: 0.2, phases.LOGGERS: 0.01}, workers=0)
    found = advise(dataclasses.replace(evidence, log_every_n_steps=1))
    assert [advice.lever for advice in found] == ["add lightning_perf.FastLogging()", "DataLoader(num_workers=2)"]
    assert all(isinstance(advice, Advice) and advice.expected >= 1.03 for advice in found)

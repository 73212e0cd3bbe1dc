"""``lossless()`` and every callback on modules that other people wrote: what works on a tutorial's module works there."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_perf as lp
from tests.contract.rows import Row
from tests.wild.cases import CASES, Case
from tests.wild.runs import EPOCHS, EVERY_ROW, SEEDS, TRAIN_BATCHES, Run, Runs, fit, noise, refuses, score

pytestmark = pytest.mark.filterwarnings("ignore")

PAIRS = [(row, case) for case in CASES for row in EVERY_ROW]
#: What rounds, and otherwise trains as the plain run does.
NEAR = ("AutoMixedPrecision", "QuantizationAwareTraining")
ACCEPTED = [(row, case) for row, case in PAIRS if not refuses(row, case)]


def over(pairs: list[tuple[Row, Case]]) -> pytest.MarkDecorator:
    """One test per pair of a row and a case."""
    return pytest.mark.parametrize(("row", "case"), pairs, ids=[f"{row.name}-{case.name}" for row, case in pairs])


@pytest.fixture(autouse=True)
def _installed(case: Case) -> None:
    if reason := case.missing():
        pytest.skip(reason)


def assert_close(left: dict[str, Any], right: dict[str, Any], rounding: bool, scale: float = 1.0) -> None:
    """Equal bit for bit, or within the rounding of float32 kernels (times ``scale``)."""
    assert list(left) == list(right)
    rtol, atol = (1e-3 * scale, 1e-4 * scale) if rounding else (0.0, 0.0)
    for key, value in left.items():
        ours, plain = torch.as_tensor(value), torch.as_tensor(right[key])
        assert torch.allclose(ours, plain, rtol=rtol, atol=atol, equal_nan=True), f"{key}: {ours} is not {plain}"


def assert_same_result(ours: Run, plain: Run, case: Case, rounding: bool, scale: float = 1.0) -> None:
    """Losses, every logged line, metrics and final weights are those of the plain run."""
    assert plain.weights is not None
    assert ours.weights is not None
    assert list(ours.weights) == list(plain.weights)
    seen = [key for key in plain.weights if not (rounding and re.fullmatch(case.noise, key))]
    left, right = ({key: run.weights[key] for key in seen} for run in (ours, plain) if run.weights)
    assert_close(left, right, rounding, scale)
    assert_close({"losses": ours.losses}, {"losses": plain.losses}, rounding, scale)
    assert_close(ours.metrics or {}, plain.metrics or {}, rounding, scale)
    assert len(ours.logged) == len(plain.logged)
    for our_line, plain_line in zip(ours.logged, plain.logged, strict=True):
        assert_close(our_line, plain_line, rounding, scale)


@over(PAIRS)
def test_fits_or_refuses_in_words(case: Case, row: Row, runs: Runs) -> None:
    """Every step is taken, to finite weights, with a line about what was done; or the message names the fix."""
    run = runs.ours(case, row)
    if refuses(row, case):
        assert re.search(r"use |pass ", str(run.refusal), re.IGNORECASE)
        return
    assert run.refusal is None
    assert run.steps == EPOCHS * TRAIN_BATCHES
    assert run.weights is not None
    assert all(torch.isfinite(value).all() for value in run.weights.values())
    for callback in run.callbacks:
        assert callback.messages
        assert all(line.startswith(f"{type(callback).__name__}: ") for line in callback.messages)


@over([(row, case) for row, case in ACCEPTED if row.lossless])
def test_lossless_changes_no_result(case: Case, row: Row, runs: Runs) -> None:
    """A lossless lever gives the plain run's results: bit for bit, or within the rounding that its row admits."""
    assert_same_result(runs.ours(case, row), runs.plain(case), case, row.lossless == "rounding")


@over([(row, case) for row, case in ACCEPTED if row.name in NEAR])
def test_rounding_stays_within_seed_noise(case: Case, row: Row, runs: Runs) -> None:
    """The loss is nearer to the plain run's than three seeds of the plain run are to each other."""
    plain = [score(runs.plain(case, seed)) for seed in range(SEEDS)]
    assert abs(score(runs.ours(case, row)) - plain[0]) < noise(plain)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_lossless_in_another_precision(case: Case, precision: Any, tmp_path: Path) -> None:
    """``lossless()`` under mixed and under double precision, where the module can be trained in them at all."""
    if precision == "64-true" and "float32 only" in case.traps:
        pytest.skip(f"{case.name} makes float32 tensors of its own and cannot be trained in {precision}")
    try:
        plain = fit(case, [], tmp_path / "plain", precision=precision)
    except RuntimeError as error:
        if "could not create a primitive descriptor for the LSTM" not in str(error):
            raise
        pytest.skip(f"oneDNN has no LSTM in {precision} for this processor: the plain run fails too")
    ours = fit(case, lp.lossless(), tmp_path / "ours", precision=precision)
    # bfloat16 rounds 65,536 times as coarsely
    assert_same_result(ours, plain, case, rounding=True, scale=100.0 if precision == "bf16-mixed" else 1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_plain_run_trains_and_is_seen(case: Case, runs: Runs) -> None:
    """What the comparison above compares is there: losses, changed weights, logged lines where the module logs."""
    plain, before = runs.plain(case), case.make().module.state_dict()
    assert plain.refusal is None
    assert len(plain.losses) == EPOCHS * TRAIN_BATCHES
    assert plain.weights is not None
    assert any(not torch.equal(value, before[key]) for key, value in plain.weights.items())
    assert bool(plain.metrics) == bool(plain.logged)
    assert bool(plain.logged) != ("logs nothing" in case.traps)


@over(ACCEPTED)
def test_leaves_no_trace(case: Case, row: Row, runs: Runs) -> None:
    """Module, strategy and loop have the attributes of the plain run again, and no other."""
    assert runs.ours(case, row).attributes == runs.plain(case).attributes


@over(ACCEPTED)
def test_checkpoint_is_the_modules_own(case: Case, row: Row, runs: Runs) -> None:
    """Its keys and optimizer flags are the plain run's, it loads strictly, and our state in it needs no class of ours."""
    ours, plain = runs.ours(case, row), runs.plain(case)
    assert ours.first_epoch is not None
    assert plain.first_epoch is not None
    checkpoint = torch.load(ours.first_epoch, weights_only=False)
    stock = torch.load(plain.first_epoch, weights_only=False)
    assert list(checkpoint["state_dict"]) == list(stock["state_dict"])
    assert set(checkpoint) == set(stock)
    if row.lossless:
        for one, other in zip(checkpoint["optimizer_states"], stock["optimizer_states"], strict=True):
            assert one["param_groups"] == other["param_groups"]
    if row.reshapes:
        small = lp.load_pruned(case.make().module, checkpoint)
        assert all(torch.equal(value, small.state_dict()[key]) for key, value in checkpoint["state_dict"].items())
    else:
        case.make().module.load_state_dict(checkpoint["state_dict"], strict=True)
    keys = [callback.state_key for callback in ours.callbacks]
    states = {key: state for key, state in checkpoint["callbacks"].items() if key in keys}
    assert states  # of ExactResume at least
    path = ours.first_epoch.with_suffix(".states")
    torch.save(states, path)
    assert torch.load(path, weights_only=True).keys() == states.keys()


@over(ACCEPTED)
def test_resume_repeats_the_run(case: Case, row: Row, runs: Runs, tmp_path: Path) -> None:
    """From the checkpoint of the first epoch to the weights of the uninterrupted run, bit for bit."""
    whole = runs.ours(case, row)
    again = [pickle.loads(pickle.dumps(callback)) for callback in whole.callbacks]
    resumed = fit(case, again, tmp_path, resume=whole.first_epoch)
    assert resumed.steps == EPOCHS * TRAIN_BATCHES
    assert len(resumed.losses) == TRAIN_BATCHES
    assert whole.weights is not None
    assert resumed.weights is not None
    assert resumed.losses == whole.losses[TRAIN_BATCHES:]
    assert_close(resumed.weights, whole.weights, rounding=False)


@over([(row, case) for row, case in ACCEPTED if row.reshapes])
def test_channels_are_gone(case: Case, row: Row, runs: Runs) -> None:
    """What is left computes with four fifths of the products, and the message lists every layer that stays whole."""
    ours, plain = runs.ours(case, row), runs.plain(case)
    assert ours.weights is not None
    assert plain.weights is not None
    smaller = [key for key, value in ours.weights.items() if value.numel() < plain.weights[key].numel()]
    assert smaller
    words = next(line for line in ours.callbacks[0].messages if "macs cut from 1 to" in line)
    reached = re.search(r"cut from 1 to ([0-9.]+) of the whole \(target 0\.8\)", words)
    assert reached is not None
    assert 0.6 < float(reached[1]) <= 0.8


@over(PAIRS)
def test_pickles(case: Case, row: Row, runs: Runs) -> None:
    """The callbacks pickle and copy after a run, or after a refusal, with their arguments."""
    for callback in runs.ours(case, row).callbacks:
        for again in (pickle.loads(pickle.dumps(callback)), copy.deepcopy(callback)):
            assert repr(again) == repr(callback)
            assert again.state_key == callback.state_key

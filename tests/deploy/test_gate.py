"""The gate: wrong, drifting, random and damaging artefacts are caught, right ones pass."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_perf.deploy.call import FlatModule, describe_call
from lightning_perf.deploy.gate import check, relative_error, state_of
from lightning_perf.deploy.source import Source
from lightning_perf.deploy.trial import gate
from lightning_perf.deploy.variant import Run, Variant


class Positional(nn.Module):
    """A linear layer whose output is added to a parameter: what Inductor's int8 fusion damages at batch 1."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.position = nn.Parameter(torch.randn(1, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 4) to the same."""
        return self.inner(x) + self.position


def planted_bug(module: Positional) -> Run:
    """The fusion's fault, by hand: at batch 1 the sum is written into the parameter itself."""

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        (x,) = tensors
        if x.size(0) == 1:
            return [module.position.data.add_(module.inner(x))]
        return [module(x)]

    return run


@pytest.fixture
def module() -> Positional:
    torch.manual_seed(0)
    return Positional().eval()


def test_the_fusion_that_writes_into_a_parameter_is_caught(module: Positional) -> None:
    call = describe_call(module, (torch.randn(4, 3, 4),))
    watched = state_of(module)
    verdict = check(planted_bug(module), module, call, tolerance=0.1, watched=watched)
    assert verdict.reason == "call 1 at batch 1 changed position of the module"


def test_the_same_fault_on_a_copy_shows_in_the_second_call(module: Positional) -> None:
    """An ahead-of-time package shares no memory with the module: only its own answers drift."""
    call = describe_call(module, (torch.randn(4, 3, 4),))
    verdict = check(planted_bug(copy.deepcopy(module)), module, call, tolerance=0.1, watched=state_of(module))
    assert verdict.reason is not None
    assert verdict.reason.startswith("call 2 at batch 1 is off by")
    alone = describe_call(module, (torch.randn(1, 3, 4),))
    assert check(planted_bug(copy.deepcopy(module)), module, alone, tolerance=0.1, calls=1, sizes=(1,)).passed


def test_a_right_artefact_passes_with_its_error(module: Positional) -> None:
    call = describe_call(module, (torch.randn(4, 3, 4),))
    verdict = check(lambda tensors: [FlatModule(module, call)(*tensors)[0] * 1.01], module, call, tolerance=0.1)
    assert verdict.passed
    assert verdict.error == pytest.approx(0.01, rel=1e-3)
    assert verdict.sizes == (1, 2, 4, 5)


def test_wrong_counts_shapes_and_nan_fail(module: Positional) -> None:
    call = describe_call(module, (torch.randn(4, 3, 4),))
    for run, words in (
        (lambda tensors: [], "0 outputs instead of 1"),
        (lambda tensors: [module(*tensors)[:, :2]], "off by inf, more than 0.1 (shape (1, 2, 4) instead of (1, 3, 4))"),
        (lambda tensors: [module(*tensors) * float("nan")], "off by inf"),
    ):
        reason = check(run, module, call, tolerance=0.1).reason
        assert reason is not None
        assert words in reason


def test_a_random_module_cannot_be_checked() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    call = describe_call(Noisy(), (torch.randn(4, 3),))
    verdict = check(lambda tensors: list(tensors), Noisy(), call, tolerance=0.1)
    assert "answers differently from call to call" in (verdict.reason or "")


class Counting(nn.Module):
    """Counts its calls, in a buffer that its answer depends on or not."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.calls = share, nn.Buffer(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.share * self.calls


def test_what_a_forward_counts_is_no_fault_of_the_artefact() -> None:
    module = Counting(0.0)
    call = describe_call(module, (torch.randn(4, 3),))
    assert check(list, module, call, tolerance=0.1, watched=state_of(module)).passed
    module = Counting(1.0)
    verdict = check(list, module, call, tolerance=0.1, watched=state_of(module))
    assert (verdict.reason or "").endswith("since it changes its calls")


def test_an_artefact_that_raises_fails_with_its_words(module: Positional, tmp_path: Path) -> None:
    def broken(threads: int | None) -> Run:
        raise RuntimeError("illegal instruction")

    call = describe_call(module, (torch.randn(4, 3, 4),))
    trial = gate(Source(call, module), Variant("x", "x", "fp32", "x", (), broken), tmp_path)
    assert trial.verdict.reason == "it raises RuntimeError: illegal instruction"


def test_relative_error_by_hand() -> None:
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)
    assert relative_error(torch.tensor([1, 2, 3, 5]), torch.tensor([1, 2, 3, 4])) == 0.25
    inf = float("inf")
    assert relative_error(torch.tensor([-inf, 1.0]), torch.tensor([-inf, 1.0])) == 0.0
    assert relative_error(torch.tensor([inf, 1.0]), torch.tensor([-inf, 1.0])) == inf


def test_relative_error_of_complex_numbers() -> None:
    wanted = torch.tensor([3 + 4j, 0j])
    assert relative_error(wanted * 1.01, wanted) == pytest.approx(0.01, rel=1e-3)
    assert relative_error(wanted.conj(), wanted) == pytest.approx(1.6)
    assert relative_error(wanted.real, wanted) == float("inf")


def test_a_batch_that_cannot_vary_is_found_and_said() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(4, 2, -1).sum(1)

    call = describe_call(Fixed(), (torch.randn(4, 6),))
    assert call.describe()["tensors"][0]["shape"] == [4, 6]
    assert call.notes[0].startswith("the batch size is fixed at 4: with 1 the module raises RuntimeError")

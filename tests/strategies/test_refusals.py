"""What a preset cannot run with, asked without a second process: said before the first step, with what to use instead."""

from __future__ import annotations

from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from lightning_perf.host import MisconfigurationException
from lightning_perf.optim.schedule_free import ScheduleFreeAdamW
from lightning_perf.strategies.presets import PRESETS
from lightning_perf.strategies.refusals import advise, check_backend, check_module, check_optimizers
from tests.strategies.modules import make, rows

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("backend", "device", "words"),
    [
        ("nccl", CPU, "cannot reduce tensors on the CPU; use process_group_backend='gloo'"),
        ("nccl", GPU, "this build of torch has no NCCL; use process_group_backend='gloo'"),
    ],
)
def test_a_backend_that_is_not_there_or_does_not_reach(backend: str, device: torch.device, words: str) -> None:
    with (
        mock.patch.object(dist, "is_nccl_available", return_value=False),
        pytest.raises(MisconfigurationException, match=words),
    ):
        check_backend(backend, device, 2)


def test_a_build_without_torch_distributed() -> None:
    with (
        mock.patch.object(dist, "is_available", return_value=False),
        pytest.raises(MisconfigurationException, match=r"no torch\.distributed; use strategy='auto', devices=1"),
    ):
        check_backend("gloo", CPU, 2)


@pytest.mark.parametrize(
    ("size", "backend", "words"),
    [
        (4, "gloo", r"4 processes is initialised already, and the Trainer expects 2; set devices and num_nodes"),
        (2, "nccl", "initialised already uses nccl, which cannot reduce tensors on the CPU; initialise it with 'gloo'"),
    ],
)
def test_a_process_group_of_somebody_else(size: int, backend: str, words: str) -> None:
    with (
        mock.patch.object(dist, "is_initialized", return_value=True),
        mock.patch.object(dist, "get_world_size", return_value=size),
        mock.patch.object(dist, "get_backend", return_value=backend),
        pytest.raises(MisconfigurationException, match=words),
    ):
        check_backend("gloo", CPU, 2)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_process_group_that_fits_is_used(preset: str, ns: ModuleType, quiet: dict[str, Any], tmp_path: Any) -> None:
    """Initialised by the script, as notebooks and clusters do: trained in, and left alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    group = dist.group.WORLD
    ns.Trainer(**quiet, strategy=preset, max_epochs=1).fit(make("Plain", ns), rows())
    assert dist.group.WORLD is group
    assert dist.get_world_size() == 1


def scaled(ns: ModuleType) -> Any:
    """The plugin of ``precision="16-mixed"``, which Lightning itself replaces on the CPU."""
    return ns.plugins.MixedPrecision("16-mixed", "cuda", scaler=torch.amp.GradScaler("cuda", enabled=False))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_scaled_loss(preset: str, ns: ModuleType) -> None:
    """int8 and local SGD keep something that a change of scale falsifies; the others do not."""
    module = make("Plain", ns)
    if preset in ("perf_ddp_int8", "perf_local_sgd"):
        with pytest.raises(
            MisconfigurationException, match=f"{preset} keeps.*precision='bf16-mixed', or strategy='perf_"
        ):
            check_module(PRESETS[preset], module, scaled(ns))
    else:
        check_module(PRESETS[preset], module, scaled(ns))
    check_module(PRESETS[preset], module, ns.plugins.MixedPrecision("bf16-mixed", "cpu"))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_module_without_parameters(preset: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    class Empty(ns.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> None: ...

    with pytest.raises(MisconfigurationException, match=r"Empty has no parameter.*strategy='auto' and devices=1"):
        ns.Trainer(**quiet, strategy=preset, max_epochs=1).fit(Empty(), rows())


class Switched(torch.optim.SGD):
    """As schedule-free optimizers of others: switched between two copies of the weights."""

    def eval(self) -> None: ...


#: Torch's own needs a process group; over ranks test_ranks.py meets it.
Zero = type("ZeroRedundancyOptimizer", (torch.optim.SGD,), {})
_OPTIMIZERS: dict[str, Any] = {
    "LBFGS": torch.optim.LBFGS,
    "ZeroRedundancyOptimizer": lambda parameters: Zero(parameters, lr=0.1),
    "Switched": lambda parameters: Switched(parameters, lr=0.1),
    "ScheduleFreeAdamW": lambda parameters: ScheduleFreeAdamW(parameters, lr=0.1),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
}
_COMPRESSES = {"perf_ddp_bf16": {"LBFGS"}, "perf_ddp_int8": {"LBFGS"}}
_REFUSED = {**_COMPRESSES, "perf_local_sgd": {"LBFGS", "ZeroRedundancyOptimizer", "Switched", "ScheduleFreeAdamW"}}


@pytest.mark.parametrize("optimizer", _OPTIMIZERS)
@pytest.mark.parametrize("preset", PRESETS)
def test_optimizers(preset: str, optimizer: str) -> None:
    made = _OPTIMIZERS[optimizer]([torch.nn.Parameter(torch.ones(2))])
    if optimizer in _REFUSED.get(preset, ()):
        words = rf"^{optimizer} .*: {preset} cannot run it; use strategy='perf_ddp'\.$"
        with pytest.raises(MisconfigurationException, match=words):
            check_optimizers(PRESETS[preset], [made])
    else:
        check_optimizers(PRESETS[preset], [made])


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Connection closed by peer [127.0.0.1]:1", "another process of this job has ended"),
        ("Timed out waiting 6000ms for recv operation", r"hangs or is much slower; PerfDDP\(timeout=...\)"),
        (
            "Your training graph has changed in this iteration",
            "needs a graph that never changes; use strategy='perf_ddp'",
        ),
    ],
)
def test_messages_of_torch_are_explained(said: str, advice: str) -> None:
    error = RuntimeError(said)
    advise(error, PRESETS["perf_ddp_static"])
    with pytest.raises(RuntimeError, match=rf"^{said[:20]}[\s\S]*\nperf_ddp_static: .*{advice}"):
        raise error


def test_other_messages_stay() -> None:
    error = ValueError("a shape")
    advise(error, PRESETS["perf_ddp"])
    assert error.args == ("a shape",)

"""Names, arguments and refusals, in one process."""

from __future__ import annotations

import pickle
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lightning.pytorch
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from pytorch_lightning.cli import LightningCLI as StandaloneCLI

import lightning_perf as lp
from lightning_perf.host import MisconfigurationException
from lightning_perf.host.sigterm_agreement import steps_until_next
from lightning_perf.strategies.ddp_arguments import ddp_arguments
from lightning_perf.strategies.link import Link, bucket_mib, exchange_mib, fit_link
from lightning_perf.strategies.local_sgd import LocalPeriod
from lightning_perf.strategies.presets import PRESETS
from tests.strategies.modules import make, rows

CLASSES = {"lightning.pytorch": lp.PerfDDP, "pytorch_lightning": lp.pl.PerfDDP}

_SKIPS = "skip_all_reduce_unused_params"


@pytest.mark.parametrize("name", PRESETS)
def test_names_are_known_in_both_namespaces(name: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    strategy = ns.Trainer(strategy=name, **quiet).strategy
    assert type(strategy) is CLASSES[ns.__name__]
    assert isinstance(strategy, ns.strategies.DDPStrategy)
    assert strategy.preset.name == name


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(
        MisconfigurationException, match="'perf_dpd' is unknown; the presets are perf_ddp, perf_ddp_static"
    ):
        lp.PerfDDP(preset="perf_dpd")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"preset": "perf_ddp_int8", "ddp_comm_hook": print}, "leave the hook out, or use preset='perf_ddp'"),
        ({"preset": "perf_local_sgd", "model_averaging_period": 4}, "model_averaging_period=4.*average_every"),
        ({"agree_every": 0}, "agree_every=0 must be at least 1"),
        ({"average_every": 0}, "average_every=0 must be at least 1"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be at least 0"),
        ({"preset": "perf_local_sgd", "local_rate": 0.0}, "local_rate=0.0 must be positive"),
        ({"average_momentum": False}, "average_momentum=False is for averages of weights, and preset='perf_ddp' takes"),
        ({"local_rate": 1.4}, "local_rate=1.4 is for local steps, and preset='perf_ddp' takes none"),
    ],
)
def test_arguments_that_contradict(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(MisconfigurationException, match=words):
        lp.PerfDDP(**arguments)


def test_a_notebook_is_told_what_to_use(monkeypatch: pytest.MonkeyPatch, quiet: dict[str, Any]) -> None:
    import lightning.pytorch as ns

    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(MisconfigurationException, match="PerfDDP\\(preset='perf_ddp', start_method='fork'\\)"):
        ns.Trainer(strategy="perf_ddp", **{**quiet, "devices": 2})


def test_strategies_pickle_and_take_ddps_arguments() -> None:
    for cls in CLASSES.values():
        strategy = cls(start_method="spawn", find_unused_parameters=True, preset="perf_ddp_bf16")
        again = pickle.loads(pickle.dumps(strategy))
        assert type(again) is cls
        assert again._ddp_kwargs == {"find_unused_parameters": True}
        assert again._start_method == "spawn"


@pytest.mark.parametrize(
    ("cli", "ns_name"), [(LightningCLI, "lightning.pytorch"), (StandaloneCLI, "pytorch_lightning")]
)
@pytest.mark.parametrize("spelling", ["name", "class"])
def test_both_clis_take_them(cli: Any, ns_name: str, spelling: str, tmp_path: Path) -> None:
    """By name, and by class path with DDP's own arguments, which jsonargparse then passes all of."""
    home = "lightning_perf.PerfDDP" if ns_name == "lightning.pytorch" else "lightning_perf.pl.PerfDDP"
    text = "perf_ddp_int8"
    if spelling == "class":
        text = f"{{class_path: {home}, init_args: {{preset: perf_ddp_int8, gradient_as_bucket_view: true}}}}"
    config = tmp_path / "config.yaml"
    config.write_text(f"trainer: {{accelerator: cpu, devices: 1, logger: false, strategy: {text}}}")
    model = import_module(f"{ns_name}.demos.boring_classes").BoringModel
    built = cli(model, args=["--config", str(config)], run=False, save_config_callback=None)
    assert type(built.trainer.strategy) is CLASSES[ns_name]
    assert built.trainer.strategy.preset.name == "perf_ddp_int8"


def test_one_process_is_plain_training(ns: ModuleType, quiet: dict[str, Any]) -> None:
    """Every preset ends where ddp with one process does, and says that there is nothing to exchange."""
    weights = {}
    for strategy in ("ddp", *PRESETS):
        module = make("Plain", ns)
        torch.manual_seed(1)
        trainer = ns.Trainer(**quiet, strategy=strategy, max_epochs=1)
        trainer.fit(module, rows())
        weights[strategy] = torch.cat([value.flatten() for value in module.state_dict().values()])
        if strategy != "ddp":
            assert "one process" in trainer.strategy.messages[0]
    assert all(torch.equal(weights["ddp"], other) for other in weights.values())


def test_what_an_evaluation_loads_is_not_the_next_fits(tmp_path: Path, quiet: dict[str, Any]) -> None:
    """Neither the preset that a checkpoint was taken with, nor its error feedback."""
    path = tmp_path / "run.ckpt"
    strategy: Any = lp.PerfDDP(preset="perf_ddp_auto", allow="near")
    trainer = lightning.pytorch.Trainer(strategy=strategy, **{**quiet, "max_epochs": 1})
    trainer.fit(make("Plain", lightning.pytorch), rows(4))
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["lightning_perf_ddp"] = {"chosen": "perf_ddp_int8", "residuals": [{"net.0.weight": torch.ones(8, 6)}]}
    torch.save(checkpoint, path)
    seen: list[str | None] = []
    module = make("Plain", lightning.pytorch)
    module.on_test_start = lambda: seen.append(strategy._chosen_before)
    trainer.test(module, rows(4), ckpt_path=str(path), verbose=False)
    assert seen == ["perf_ddp_int8"]
    assert strategy._chosen_before is None
    assert strategy._residuals is None


def test_agreements_come_about_once_a_second() -> None:
    found = [steps_until_next(seconds) for seconds in (0.0, 1e-4, 0.02, 0.3, 5.0)]
    assert found == [1, 100, 50, 3, 1]


def test_local_periods() -> None:
    """Two synchronous steps, then an average every third, in a resumed run too."""
    period = LocalPeriod(every=3, warmup=2)
    found = [(period.local, period.due(taken)) for taken in range(1, 9)]
    assert [local for local, _ in found] == [False, False, *[True] * 6]
    assert [taken for taken, (_, due) in enumerate(found, 1) if due] == [5, 8]
    for start in range(9):
        period.resume(start)
        assert [taken for taken in range(start + 1, 12) if period.due(taken)] == [
            one for one in (5, 8, 11) if one > start
        ]


def test_buckets_suit_the_link() -> None:
    assert fit_link(0.01, 0.03, small=0, large=2_000_000) == Link(0.01, 1e8)
    slow = Link(latency=0.02, bandwidth=1e8)  # 2 MB on the way at any moment
    assert bucket_mib(slow, 10**9) == 10
    assert bucket_mib(slow, 1_000_000) == 1  # all gradients fit one bucket
    assert bucket_mib(Link(1.0, 1e10), 10**9) == 25


def test_buckets_that_are_swapped() -> None:
    """A sixteenth of the gradients, from 0.25 to 25 MiB."""
    mib = 2**20
    assert [exchange_mib(size * mib) for size in (0, 4, 24, 400, 4000)] == [0.25, 0.25, 1.5, 25.0, 25.0]


@pytest.mark.parametrize(
    ("preset", "device", "world_size", "given", "expected"),
    [
        ("perf_ddp_bf16", "cpu", 2, {}, {"bucket_cap_mb": 0.5}),
        ("perf_ddp_bf16", "cpu", 3, {}, {}),  # added on the way by an all-reduce
        ("perf_ddp_int8", "cpu", 2, {"bucket_cap_mb": None}, {"bucket_cap_mb": 0.5}),
        ("perf_ddp_int8", "cpu", 2, {"bucket_cap_mb": 3}, {"bucket_cap_mb": 3}),
        ("perf_ddp_int8", "cpu", 4, {}, {"bucket_cap_mb": 0.5}),
        ("perf_ddp_int8", "cpu", 5, {}, {}),  # bfloat16 from here on
        *(
            (f"perf_ddp_{compression}", "cpu", 2, {_SKIPS: skips}, {_SKIPS: skips} if skips else {"bucket_cap_mb": 0.5})
            for compression in ("bf16", "int8")
            for skips in (True, None)
        ),
        ("perf_ddp_int8", "cuda", 2, {}, {}),
        ("perf_ddp", "cpu", 2, {}, {}),
        ("perf_local_sgd", "cpu", 2, {"static_graph": True}, {"static_graph": True}),
    ],
)
def test_what_ddp_is_told(
    preset: str, device: str, world_size: int, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    """8 MiB of gradients; what the user said holds, and None is what LightningCLI passes where nobody said anything."""
    module = torch.nn.Linear(2048, 1024, bias=False)
    trainer = SimpleNamespace(lightning_module=module, callbacks=[], accumulate_grad_batches=1, world_size=world_size)
    assert ddp_arguments(PRESETS[preset], given, trainer, torch.device(device), print) == expected

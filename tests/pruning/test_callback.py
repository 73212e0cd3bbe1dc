"""MagnitudePruning in fits: schedules by step, exact zeros everywhere, resume, movement, rewinding, refusals."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader

import lightning_perf as lp
from lightning_perf.host import MisconfigurationException, progress_of
from lightning_perf.pruning.pruner import Pruner
from tests.contract.modules import images, make

TOTAL = 8 * 9 + 8 * 8 * 9 + 3 * 8 * 16  # weights of the plain module


class Recorder:
    """Builds a callback that calls a function at the end of every batch, of either namespace."""

    def __new__(cls, ns: ModuleType, look: Callable[[Any, Any], None]) -> Any:
        class Each(ns.Callback):
            def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
                look(trainer, pl_module)

        return Each()


def weights(module: Any) -> list[nn.Parameter]:
    return [module.net[0].weight, module.net[4].weight, module.net[7].weight]


def zeros(module: Any) -> int:
    return sum(int((weight == 0).sum()) for weight in weights(module))


def fit(ns: ModuleType, quiet: dict[str, Any], callbacks: list[Any], kind: str = "plain", **arguments: Any) -> Any:
    module = arguments.pop("module", None) or make(kind, ns)
    ckpt_path = arguments.pop("ckpt_path", None)
    saves = any("Checkpoint" in type(callback).__name__ for callback in callbacks)
    torch.manual_seed(11)
    settings = {"max_epochs": 2, **quiet, "enable_checkpointing": saves, **arguments}
    trainer = ns.Trainer(**settings, callbacks=callbacks)
    trainer.fit(module, images(), images(8, shuffle=False), ckpt_path=ckpt_path)
    return trainer, module


@pytest.fixture
def pl() -> ModuleType:
    import lightning.pytorch

    return lightning.pytorch


@pytest.mark.parametrize("kind", ["plain", "manual", "two_optimizers", "raw_step"])
def test_the_schedule_by_step(kind: str, pl: ModuleType, quiet: dict[str, Any]) -> None:
    """Twelve batches, a ramp over the first six, computed by hand; also where global_step counts two or none a batch."""
    counts: list[int] = []
    pruning = lp.MagnitudePruning(0.8, start=0.0, end=0.5)
    fit(pl, quiet, [pruning, Recorder(pl, lambda trainer, module: counts.append(zeros(module)))], kind)
    ramp = [0.8 * (1 - (1 - int(batch / 12 / 0.5 * 100) / 100) ** 3) for batch in range(1, 6)]
    assert counts == [round(sparsity * TOTAL) for sparsity in ramp] + [round(0.8 * TOTAL)] * 7
    assert pruning.result.total == pytest.approx(0.8, abs=1 / TOTAL)


def test_a_limit_of_steps_is_the_run(pl: ModuleType, quiet: dict[str, Any]) -> None:
    counts: list[int] = []
    callbacks = [
        lp.MagnitudePruning(0.5, schedule="one_shot", start=0.6),
        Recorder(pl, lambda trainer, module: counts.append(zeros(module))),
    ]
    fit(pl, quiet, callbacks, max_epochs=9, max_steps=5)
    assert counts == [0, 0, *[TOTAL // 2] * 3]
    counts.clear()
    fit(pl, quiet, callbacks, "two_optimizers", max_epochs=-1, max_steps=9)  # two, one, two, ... steps a batch
    assert counts == [0, 0, 0, *[TOTAL // 2] * 3]


def test_accumulation_prunes_between_steps_only(pl: ModuleType, quiet: dict[str, Any]) -> None:
    seen: list[tuple[int, int]] = []
    pruning = lp.MagnitudePruning(0.5, start=0.0, end=0.6)
    look = Recorder(pl, lambda trainer, module: seen.append((trainer.global_step, zeros(module))))
    fit(pl, quiet, [pruning, look], accumulate_grad_batches=3)
    assert [step for step, _ in seen] == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    by_step: dict[int, set[int]] = {}
    for step, count in seen:
        by_step.setdefault(step, set()).add(count)
    assert by_step[0] == {0}
    assert all(len(counts) == 1 for counts in by_step.values())


def test_progress(pl: ModuleType, quiet: dict[str, Any]) -> None:
    seen: list[Any] = []
    look = Recorder(pl, lambda trainer, module: seen.append(progress_of(trainer)))
    fit(pl, quiet, [look], accumulate_grad_batches=4, max_epochs=1)
    assert [tuple(one) for one in seen] == [(int(b >= 4) + int(b == 6), 2, b / 6) for b in range(1, 7)]


class Growing(LightningDataModule):
    """Epochs of 2, 8, 3, ... batches."""

    lengths = (2, 8, 3)

    def train_dataloader(self) -> Any:
        return images(4 * self.lengths[self.trainer.current_epoch])


def test_progress_over_epochs_of_other_lengths(pl: ModuleType, quiet: dict[str, Any]) -> None:
    """Each is a third of the run; the fraction never falls, and the masks reach their sparsity."""
    seen: list[float] = []
    pruning = lp.MagnitudePruning(0.5, start=0.1, end=0.7)
    look = Recorder(pl, lambda trainer, module: seen.append(progress_of(trainer).fraction))
    trainer = pl.Trainer(**quiet, max_epochs=3, reload_dataloaders_every_n_epochs=1, callbacks=[pruning, look])
    module = make("plain", pl)
    trainer.fit(module, datamodule=Growing())
    expected = [(epoch + batch / n) / 3 for epoch, n in enumerate(Growing.lengths) for batch in range(1, n + 1)]
    assert seen == pytest.approx(expected)
    assert seen == sorted(seen)
    assert zeros(module) == TOTAL // 2


@pytest.mark.parametrize("every", ["epoch", "batch"])
def test_progress_over_equal_epochs_is_that_of_batches(
    every: str, pl: ModuleType, quiet: dict[str, Any], tmp_path: Path
) -> None:
    """To the last bit, from the start on, and in runs resumed at every epoch and every batch."""
    seen: list[tuple[float, int]] = []

    class Look(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append((progress_of(trainer, starting=True).fraction, trainer.fit_loop.total_batch_idx + 1))

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            seen.append((progress_of(trainer).fraction, trainer.fit_loop.total_batch_idx + 1))

    often = {"every_n_train_steps": 1} if every == "batch" else {"save_on_train_epoch_end": True}
    saver = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **often)
    fit(pl, quiet, [Look(), saver], max_epochs=3)
    for path in sorted(tmp_path.glob("*.ckpt")):
        fit(pl, quiet, [Look()], max_epochs=3, ckpt_path=str(path))
    assert len(seen) == 19 + (sum(19 - step for step in range(1, 19)) if every == "batch" else 13 + 7)
    assert [fraction for fraction, _ in seen] == [batches / 18 for _, batches in seen]


@pytest.mark.parametrize("kind", ["plain", "manual", "two_optimizers", "raw_step"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_masks_and_state_hold_after_every_step(
    kind: str, precision: str, ns: ModuleType, quiet: dict[str, Any]
) -> None:
    """Pruned weights, and every tensor of the optimizer that is shaped like them, are zero whoever steps."""
    held = []

    def look(trainer: Any, module: Any) -> None:
        for optimizer in trainer.strategy.optimizers:
            for weight in weights(module):
                states = [v for v in optimizer.state.get(weight, {}).values() if isinstance(v, Tensor)]
                for value in states:
                    if value.shape == weight.shape:
                        held.append(bool((value[weight == 0] == 0).all()))
        assert zeros(module) == TOTAL // 2

    pruning = lp.MagnitudePruning(0.5, schedule="one_shot", start=0.0)
    _, module = fit(ns, quiet, [pruning, Recorder(ns, look)], kind, precision=precision)
    assert all(held)
    assert len(held) == {"plain": 72, "manual": 72, "two_optimizers": 59, "raw_step": 0}[kind]
    assert not any(bool(torch.signbit(weight[weight == 0]).any()) for weight in weights(module))
    assert zeros(module) == TOTAL // 2


def test_an_optimizer_that_lightning_never_sees(pl: ModuleType, quiet: dict[str, Any]) -> None:
    base = type(make("raw_step", pl))

    class Hidden(base):  # type: ignore[misc, valid-type]
        def configure_optimizers(self) -> None:
            return None

    torch.manual_seed(3)
    _, module = fit(pl, quiet, [lp.MagnitudePruning(0.5, schedule="one_shot", start=0.0)], module=Hidden())
    assert zeros(module) == TOTAL // 2


def pruned_weights(state: dict[str, Tensor]) -> int:
    return sum(int((state[f"net.{index}.weight"] == 0).sum()) for index in (0, 4, 7))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("average", ["ema", "auto", "lightning", "swa"])
def test_saved_averages_are_exactly_zero(
    average: str, first: bool, pl: ModuleType, quiet: dict[str, Any], tmp_path: Path
) -> None:
    """Each average has seen the weights before they were pruned, and must forget them."""
    if average == "lightning" and not hasattr(pl.callbacks, "EMAWeightAveraging"):
        pytest.skip("this release of Lightning has no EMAWeightAveraging")
    other = {
        "ema": lambda: lp.OptimizerFactory(ema=0.9),
        "auto": lambda: lp.OptimizerFactory("auto", warmup=2),
        "lightning": lambda: pl.callbacks.EMAWeightAveraging(decay=0.9),
        "swa": lambda: pl.callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1),
    }[average]()
    pruning = lp.MagnitudePruning(0.5, start=0.2, end=0.7)
    saver = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    _, module = fit(pl, quiet, [pruning, other, saver] if first else [other, pruning, saver], max_epochs=3)
    assert zeros(module) == TOTAL // 2
    state = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)["state_dict"]
    assert pruned_weights(state) == TOTAL // 2
    middle = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    packed = middle["callbacks"][pruning.state_key]["pruner"]["masks"].values()
    ones = sum(bin(byte).count("1") for bits in packed for byte in bits.tolist())
    assert pruned_weights(middle["state_dict"]) == TOTAL - ones > 0


@pytest.mark.parametrize("average", [False, True])
def test_what_a_module_writes_itself_is_zero_in_checkpoints(
    average: bool, ns: ModuleType, quiet: dict[str, Any], tmp_path: Path
) -> None:
    """After its optimizer's step, and after every callback has heard of the batch; saved in the middle and at the end."""
    base = type(make("plain", ns))

    class Writing(base):  # type: ignore[misc, valid-type]
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)
            self.net[4].weight.data.add_(0.01)

        def on_train_batch_end(self, *_: Any) -> None:
            self.net[7].weight.data.mul_(0.99).add_(1e-4)

    pruning = lp.MagnitudePruning(0.5, schedule="one_shot", start=0.0)
    savers = [
        ns.callbacks.ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2),
        ns.callbacks.ModelCheckpoint(tmp_path, "epoch-{epoch}", save_top_k=-1, save_weights_only=True),
    ]
    torch.manual_seed(3)
    averages = [lp.OptimizerFactory(ema=0.9)] if average else []
    fit(ns, quiet, [*averages, pruning, *savers], module=Writing())
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert len(paths) == 8
    for path in paths:
        assert pruned_weights(torch.load(path, weights_only=True)["state_dict"]) == TOTAL // 2, path.name


@pytest.mark.parametrize("criterion", ["magnitude", "movement", "random"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_resume_in_the_middle_of_an_epoch_and_of_the_schedule(
    criterion: str, pattern: str, ns: ModuleType, quiet: dict[str, Any], tmp_path: Path
) -> None:
    """From a checkpoint of step 4 of 12 the run goes on bit for bit; every batch is the same, for Lightning starts anew."""
    loader = DataLoader(ConcatDataset([images(4).dataset] * 6), batch_size=4)

    def run(where: str, ckpt_path: str | None = None) -> tuple[list[Any], Any, Any]:
        pruning = lp.MagnitudePruning(pattern=pattern, criterion=criterion, start=0.0, end=0.8)
        saver = ns.callbacks.ModelCheckpoint(tmp_path / where, "{step}", save_top_k=-1, every_n_train_steps=4)
        module, seen = make("plain", ns), []
        module.net[3].p = 0.0
        torch.manual_seed(5 if ckpt_path is None else 6)
        settings = {**quiet, "enable_checkpointing": True, "max_epochs": 2}
        look = Recorder(ns, lambda trainer, module: seen.append(zeros(module)))
        trainer = ns.Trainer(**settings, callbacks=[pruning, look, saver])
        trainer.fit(module, loader, ckpt_path=ckpt_path)
        return seen, module, trainer.optimizers[0].state_dict()

    seen, whole, state = run("a")
    assert 0 < seen[3] < seen[-1]
    again, resumed, resumed_state = run("b", str(tmp_path / "a" / "step=4.ckpt"))
    assert again == seen[4:]
    for left, right in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(left, right)
    for number, values in state["state"].items():
        for key, value in values.items():
            assert torch.equal(value, resumed_state["state"][number][key]), key


def test_after_a_resume_final_masks_are_not_decided_again(
    pl: ModuleType, quiet: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How far the schedule had come travels in the checkpoint, and what was reached there is not short of a lower end."""
    trainer, _ = fit(pl, quiet, [lp.MagnitudePruning(0.5, start=0.0, end=0.5)])
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    decided: list[float] = []
    decide = Pruner.decide
    monkeypatch.setattr(Pruner, "decide", lambda self, sparsity: decided.append(sparsity) or decide(self, sparsity))
    lower = lp.MagnitudePruning(0.25, start=0.0, end=0.5)
    for pruning in (lp.MagnitudePruning(0.5, start=0.0, end=0.5), lower):
        _, resumed = fit(pl, quiet, [pruning], max_epochs=4, ckpt_path=tmp_path / "c.ckpt")
        assert zeros(resumed) == TOTAL // 2
    assert decided == []
    assert "50.00% of 1,032 weights are zero, from " in lower.messages[-1]


def test_other_arguments_take_over_the_masks(pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    trainer, module = fit(pl, quiet, [lp.MagnitudePruning(0.5, schedule="one_shot", start=0.0)], max_epochs=1)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    gone = [weight == 0 for weight in weights(module)]
    further = lp.MagnitudePruning(0.75, start=0.5, end=0.9)
    _, resumed = fit(pl, quiet, [further], ckpt_path=tmp_path / "c.ckpt")
    assert zeros(resumed) == round(0.75 * TOTAL)
    assert all(bool((weight[mask] == 0).all()) for weight, mask in zip(weights(resumed), gone, strict=True))


def test_a_checkpoint_without_masks(pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    trainer, _ = fit(pl, quiet, [], max_epochs=1)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    pruning = lp.MagnitudePruning(0.5)
    _, module = fit(pl, quiet, [pruning], ckpt_path=tmp_path / "c.ckpt")
    assert any("holds no masks" in line for line in pruning.messages)
    assert zeros(module) == TOTAL // 2


def test_a_second_fit_of_one_module_keeps_its_masks(pl: ModuleType, quiet: dict[str, Any]) -> None:
    pruning, counts = lp.MagnitudePruning(0.5, start=0.2, end=0.7), []
    _, module = fit(pl, quiet, [pruning], max_epochs=1)
    gone = [weight == 0 for weight in weights(module)]
    again = pl.Trainer(
        **quiet, max_epochs=1, callbacks=[pruning, Recorder(pl, lambda trainer, module: counts.append(zeros(module)))]
    )
    again.fit(module, images())
    assert counts == [TOTAL // 2] * 6
    assert all(torch.equal(weight == 0, mask) for weight, mask in zip(weights(module), gone, strict=True))
    fit(pl, quiet, [pruning, Recorder(pl, lambda trainer, module: counts.append(zeros(module)))], max_epochs=1)
    assert counts[6] < TOTAL // 4  # another module starts dense


def test_movement_scores_by_hand(pl: ModuleType, quiet: dict[str, Any]) -> None:
    """Plain SGD, one shot after four steps: what goes is the lowest sum of -weight * gradient, and nothing else."""
    base = type(make("plain", pl))

    class Sgd(base):  # type: ignore[misc, valid-type]
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    scores: dict[int, list[Tensor]] = {}

    def count(trainer: Any, module: Any) -> None:
        if trainer.global_step <= 4:
            for number, weight in enumerate(weights(module)):
                scores.setdefault(number, []).append(-weight.detach().double() * weight.grad.double())

    torch.manual_seed(3)
    pruning = lp.MagnitudePruning(0.5, criterion="movement", schedule="one_shot", start=4 / 6)
    _, module = fit(pl, quiet, [Recorder(pl, count), pruning], max_epochs=1, module=Sgd())
    total = torch.cat([torch.stack(parts).sum(0).flatten() for parts in scores.values()])
    lowest = set(total.argsort()[: TOTAL // 2].tolist())
    gone = torch.cat([(weight == 0).flatten() for weight in weights(module)]).nonzero().flatten().tolist()
    assert len(lowest & set(gone)) >= TOTAL // 2 - 1  # the sums here are in float64: one tie may fall the other way


@pytest.mark.parametrize("rewind_to", [0, 3, 0.25])
@pytest.mark.parametrize("resumes", [False, True])
def test_rewinding(rewind_to: float, resumes: bool, pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """At the end of the schedule every surviving weight, bias and statistic is that of the early step."""
    at: dict[int, dict[str, Tensor]] = {0: {k: v.clone() for k, v in make("plain", pl).state_dict().items()}}
    states: list[int] = []

    def look(trainer: Any, module: Any) -> None:
        at[trainer.global_step] = {key: value.clone() for key, value in module.state_dict().items()}
        states.append(len(trainer.optimizers[0].state))

    def callbacks() -> list[Any]:
        pruning = lp.MagnitudePruning(0.5, start=0.3, end=0.75, rewind_to=rewind_to)
        saver = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=5)
        return [pruning, Recorder(pl, look), lp.OptimizerFactory(ema=0.9), saver]

    mine = callbacks()
    _, module = fit(pl, quiet, mine)
    if resumes:
        mine = callbacks()
        _, module = fit(pl, quiet, mine, ckpt_path=tmp_path / "step=5.ckpt")
    step = rewind_to if isinstance(rewind_to, int) else 3
    for key, value in at[9].items():
        survives = value != 0 if key in ("net.0.weight", "net.4.weight", "net.7.weight") else torch.ones_like(value) > 0
        assert torch.equal(value[survives], at[step][key][survives]), key
    assert states[8] == 0 < states[7]
    assert states[9] > 0
    assert zeros(module) == TOTAL // 2
    assert sum(f"weights are back at step {rewind_to}" in line for line in mine[0].messages) == 1


def test_a_buffer_called_mask_and_keys(pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """Lightning's ModelPruning takes a buffer called x_mask for its own and fails to save; here it is just a buffer."""
    base = type(make("plain", pl))

    class Masked(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("x_mask", torch.ones(3))

    module = Masked()
    keys, parameters = list(module.state_dict()), list(module.parameters())
    trainer, _ = fit(pl, quiet, [lp.MagnitudePruning(0.5)], module=module)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    assert list(torch.load(tmp_path / "c.ckpt", weights_only=True)["state_dict"]) == keys
    assert all(left is right for left, right in zip(parameters, module.parameters(), strict=True))


def test_two_prunings(pl: ModuleType, quiet: dict[str, Any]) -> None:
    """Of different weights they work side by side; of the same weights they are refused."""
    convolutions, head = lp.MagnitudePruning(0.8, ignore=["net.7"]), lp.MagnitudePruning(0.25, ignore=["net.[04]"])
    _, module = fit(pl, quiet, [convolutions, head])
    assert [int((w == 0).sum()) for w in weights(module)][2] == 96
    assert sum(int((w == 0).sum()) for w in weights(module)[:2]) == round(0.8 * 648)
    with pytest.raises(MisconfigurationException, match=r"both prune net\.4\.weight; keep one of the two"):
        fit(pl, quiet, [lp.MagnitudePruning(0.8, ignore=["net.7"]), lp.MagnitudePruning(0.5, ignore=["net.0"])])
    with pytest.raises(MisconfigurationException, match="ModelPruning of Lightning"):
        fit(pl, quiet, [lp.MagnitudePruning(), pl.callbacks.ModelPruning("l1_unstructured", amount=0.5)])


def test_two_of_four(pl: ModuleType, quiet: dict[str, Any]) -> None:
    pruning = lp.MagnitudePruning(pattern="2:4")
    _, module = fit(pl, quiet, [pruning])
    assert pruning.sparsity == 0.5
    assert int((module.net[0].weight == 0).sum()) == 0
    assert "no multiple of 4 inputs (net.0.weight)" in pruning.messages[0]
    for weight in (module.net[4].weight.flatten(2).movedim(1, -1), module.net[7].weight):
        assert (weight.reshape(-1, 4) != 0).sum(1).tolist() == [2] * (weight.numel() // 4)


def test_compiled(pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    """Masks are applied outside of what is compiled, and their names do not depend on it."""

    def module() -> Any:
        made = make("plain", pl)
        made.net = torch.compile(made.net, backend="eager")
        return made

    trainer, compiled = fit(pl, quiet, [lp.MagnitudePruning(0.5)], module=module())
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    masks = next(iter(torch.load(tmp_path / "c.ckpt")["callbacks"].values()))["pruner"]["masks"]
    assert list(masks) == ["net.0.weight", "net.4.weight", "net.7.weight"]
    assert lp.sparsity(compiled).zeros == TOTAL // 2


def test_sparsity_is_logged_and_shown(pl: ModuleType, quiet: dict[str, Any], tmp_path: Path) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    pruning = lp.MagnitudePruning(0.5)
    _, module = fit(pl, {**quiet, "logger": logger}, [pruning])
    found = lp.sparsity(module)
    rows = csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines())
    logged = [float(row["sparsity"]) for row in rows if row["sparsity"]]
    assert len(logged) == 2
    assert logged[0] < logged[1] == found.total == 0.5
    assert pruning.messages[-1].startswith("MagnitudePruning: 50.00% of 1,032 weights are zero, from ")
    assert "on a CPU it gives no speed" in pruning.messages[-1]
    section = pruning.result.section()
    assert section.rows[0][:3] == ("net.0.weight", "72", str(int((module.net[0].weight == 0).sum())))
    assert "Left out, normalization: net.1.weight." in section.sentences


def test_a_fit_that_ends_early_says_so(pl: ModuleType, quiet: dict[str, Any]) -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 4

    pruning = lp.MagnitudePruning(0.9)
    fit(pl, quiet, [pruning, Stop()])
    assert "(not 0.9: the fit ended before its schedule)" in pruning.messages[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity=1.0 must be a share of zeros in \[0, 1\)"),
        ({"sparsity": -0.1}, r"sparsity=-0.1 must be"),
        ({"sparsity": True}, r"sparsity=True must be"),
        ({"sparsity": 0.9, "pattern": "2:4"}, r"sparsity=0.9 is not that of pattern='2:4', 0.5; leave sparsity out"),
        ({"pattern": "4:2"}, "pattern='4:2' is neither"),
        ({"scope": "net"}, "scope='net' is unknown; pass one of 'global', 'layer'"),
        ({"criterion": "l2"}, "criterion='l2' is unknown; pass one of 'magnitude', 'movement', 'random'"),
        ({"schedule": "linear"}, "schedule='linear' is unknown; pass one of 'cubic', 'one_shot'"),
        ({"end": 1.2}, r"end=1.2 is no part of the run.*a schedule longer than the run"),
        ({"start": 500}, "start=500 is no part of the run"),
        ({"start": 0.7, "end": 0.7}, "start=0.7 must come before end=0.7"),
        ({"schedule": "one_shot", "end": 0.9}, "end=0.9 means nothing to schedule='one_shot'"),
        ({"rewind_to": -1}, "rewind_to=-1 is neither a step"),
        ({"rewind_to": 0.5}, "rewind_to=0.5 comes after pruning has begun"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lp.MagnitudePruning(**arguments)


def test_bad_runs(pl: ModuleType, quiet: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ignore='head' matches no parameter and no module of Plain"):
        fit(pl, quiet, [lp.MagnitudePruning(ignore=["head"])])
    with pytest.raises(ValueError, match="Plain has no weight to prune; left out: ignored by 'net'"):
        fit(pl, quiet, [lp.MagnitudePruning(ignore=["net"])])
    with pytest.raises(ValueError, match="rewind_to=9 comes after pruning has begun, at 10% of 12 steps"):
        fit(pl, quiet, [lp.MagnitudePruning(rewind_to=9)])
    with pytest.raises(ValueError, match="the run has no end"):
        fit(pl, quiet, [lp.MagnitudePruning()], max_epochs=-1)
    with pytest.raises(RuntimeError, match="has no result yet"):
        _ = lp.MagnitudePruning().result

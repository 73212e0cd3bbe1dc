"""The image classification recipe: networks, module, and the YAML files as text. The data is tested next door."""

from __future__ import annotations

import ast
import copy
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from recipes import image_classification
from recipes.image_classification.module import ImageClassifier
from recipes.image_classification.networks import BasicBlock, PadShortcut, build
from tests.recipes.idx_files import small_data, write_files

FOLDER = Path(image_classification.__file__).parent


# --- networks ---------------------------------------------------------------------------------------------------------


def conv_parameters(in_channels: int, out_channels: int, kernel: int = 3) -> int:
    return in_channels * out_channels * kernel * kernel + 2 * out_channels  # the two of batch normalisation


@pytest.mark.parametrize(("in_channels", "expected"), [(3, 269_722), (1, 269_722 - 2 * 9 * 16)])
def test_resnet20_has_the_size_of_the_paper(in_channels: int, expected: int) -> None:
    net = build("resnet20", in_channels, 10)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == expected
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == 20


def test_resnet18_is_counted_by_hand() -> None:
    expected = conv_parameters(1, 64) + 512 * 10 + 10
    channels = 64
    for width in (64, 128, 256, 512):
        expected += conv_parameters(channels, width) + 3 * conv_parameters(width, width)
        if width != channels:
            expected += conv_parameters(channels, width, kernel=1)
        channels = width
    net = build("resnet18", 1, 10)
    assert sum(p.numel() for p in net.parameters()) == expected
    projections = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(projections) == 3
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) - len(projections) == 18


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "vit"])
@pytest.mark.parametrize("size", [28, 32])
def test_network_shapes(name: str, size: int) -> None:
    net = build(name, 3, 7).eval()
    assert net(torch.randn(2, 3, size, size)).shape == (2, 7)


def naive_pad_shortcut(x: Tensor, out_channels: int, stride: int) -> Tensor:
    batch, channels, height, width = x.shape
    out = torch.zeros(batch, out_channels, -(-height // stride), -(-width // stride))
    for b in range(batch):
        for c in range(channels):
            for i in range(out.shape[2]):
                for j in range(out.shape[3]):
                    out[b, c, i, j] = x[b, c, stride * i, stride * j]
    return out


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 5)])
def test_option_a_shortcut_equals_naive_loops(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width)
    assert torch.equal(PadShortcut(3, 8, 2)(x), naive_pad_shortcut(x, 8, 2))


def test_block_adds_its_shortcut_before_the_last_relu() -> None:
    block = BasicBlock(4, 8, 2, PadShortcut).eval()
    x = torch.randn(2, 4, 7, 7)
    inner = F.conv2d(x, block.conv1.weight, stride=2, padding=1) / (1 + block.bn1.eps) ** 0.5
    inner = F.conv2d(inner.clamp(min=0), block.conv2.weight, padding=1) / (1 + block.bn2.eps) ** 0.5
    expected = (inner + naive_pad_shortcut(x, 8, 2)).clamp(min=0)
    torch.testing.assert_close(block(x), expected)


def test_convolutions_start_as_he_et_al_draw_them() -> None:
    torch.manual_seed(0)
    weight = build("resnet18", 1, 10).get_parameter("blocks.6.conv1.weight")  # 256 to 512 channels: fan out
    assert weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)


def test_unknown_network_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"network='resnet21' .* resnet18, resnet20"):
        ImageClassifier("resnet21")


# --- module -----------------------------------------------------------------------------------------------------------


class Recorder(pl.Callback):
    """Keeps the logits and labels that training saw."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            if module.training:
                self.logits.append(output.detach().clone())

        pl_module.get_submodule("net").register_forward_hook(keep)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.labels.append(batch[1].clone())


def small_trainer(**kwargs: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet, **kwargs)


def naive_macro(logits: Tensor, labels: Tensor, classes: int) -> tuple[float, float]:
    """Macro F1 and precision over the classes that occur in labels or predictions."""
    predicted = logits.argmax(1).tolist()
    pairs = list(zip(predicted, labels.tolist(), strict=True))
    f1, precision = [], []
    for c in range(classes):
        hits = sum(p == c and t == c for p, t in pairs)
        said = sum(p == c for p, _ in pairs)
        true = sum(t == c for _, t in pairs)
        if said + true:
            f1.append(2 * hits / (said + true))
            precision.append(hits / said if said else 0.0)
    return sum(f1) / len(f1), sum(precision) / len(precision)


def test_two_training_batches_log_what_a_naive_count_gives(synthetic: Path) -> None:
    torch.manual_seed(0)
    recorder = Recorder()
    trainer = small_trainer(limit_train_batches=2, limit_val_batches=0, callbacks=[recorder])
    model = ImageClassifier()
    trainer.fit(model, small_data(synthetic))

    logits, labels = torch.cat(recorder.logits), torch.cat(recorder.labels)
    assert logits.shape == (32, 10)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    top3 = [label in row.topk(3).indices for row, label in zip(logits, labels, strict=True)]
    last_f1, _ = naive_macro(recorder.logits[1], recorder.labels[1], 10)
    _, precision = naive_macro(logits, labels, 10)
    assert logged == pytest.approx(
        {
            "train_loss": F.cross_entropy(logits, labels).item(),
            "train_loss_step": F.cross_entropy(recorder.logits[1], recorder.labels[1]).item(),
            "train_loss_epoch": F.cross_entropy(logits, labels).item(),
            "train_acc": (logits.argmax(1) == labels).float().mean().item(),
            "train_acc_step": (recorder.logits[1].argmax(1) == recorder.labels[1]).float().mean().item(),
            "train_acc_epoch": (logits.argmax(1) == labels).float().mean().item(),
            "train_top3": sum(top3) / 32,
            "train_f1": last_f1,
            "train_precision": precision,
        }
    )


@pytest.mark.parametrize("stage", ["val", "test"])
def test_evaluation_weighs_the_shorter_last_batch(nowhere: Path, stage: str) -> None:
    write_files(nowhere / "root", test=23)
    torch.manual_seed(0)
    model, data = ImageClassifier(), small_data(nowhere / "root", val_size=25)
    with torch.no_grad():
        model.get_parameter("net.head.bias")[1] = 100  # always class 1: right for more or less than one class in ten
    trainer = small_trainer()
    (result,) = (trainer.validate if stage == "val" else trainer.test)(model, data, verbose=False)
    loader = data.val_dataloader() if stage == "val" else data.test_dataloader()
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    with torch.no_grad():
        logits = model.eval()(images)
    assert len(labels) % data.eval_batch_size != 0
    assert (labels == 1).float().mean() not in (0, 0.1)
    assert result == pytest.approx(
        {
            f"{stage}_loss": F.cross_entropy(logits, labels).item(),
            f"{stage}_acc": (logits.argmax(1) == labels).float().mean().item(),
        }
    )


def test_predict_gives_probabilities_of_every_test_image(synthetic: Path) -> None:
    model, data = ImageClassifier(), small_data(synthetic)
    predictions = small_trainer().predict(model, data)
    assert predictions is not None
    probabilities = torch.cat([p for p in predictions if isinstance(p, Tensor)])
    assert probabilities.shape == (20, 10)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(20))
    assert probabilities.min() >= 0


def test_optimizer_is_plain_adamw_over_all_parameters() -> None:
    model = ImageClassifier(lr=0.002, weight_decay=0.03)
    optimizer = model.configure_optimizers()
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    plain = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.002, weight_decay=0.03).param_groups[0]
    assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in plain.items() if k != "params"}


def test_two_classes_need_no_third() -> None:
    model = ImageClassifier(num_classes=2)
    dataset = TensorDataset(torch.randn(4, 1, 28, 28), torch.tensor([0, 1, 1, 0]))
    trainer = small_trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(model, DataLoader(dataset, batch_size=4))
    assert trainer.callback_metrics["train_top3"] == 1


def test_module_survives_copies_and_a_checkpoint(tmp_path: Path, synthetic: Path) -> None:
    model = ImageClassifier(in_channels=1, num_classes=10, lr=0.01)
    trainer = small_trainer(limit_train_batches=2, limit_val_batches=1)
    trainer.fit(model, small_data(synthetic))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt", map_location="cpu").eval()
    assert loaded.lr == 0.01
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(loaded(x), copy.deepcopy(model).eval()(x))


# --- the recipe as files ----------------------------------------------------------------------------------------------


def test_recipe_imports_nothing_of_the_library() -> None:
    sources = sorted(FOLDER.glob("*.py"))
    assert len(sources) >= 3
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            for name in imported:
                assert name.split(".")[0] not in ("lightning_perf", "recipes", "lightning_perf_recipes"), source.name


def test_configs_differ_in_callbacks_only() -> None:
    names = ("baseline", "lossless", "fast", "qat", "pruned", "channels")
    configs = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in names}
    callbacks = {name: config["trainer"].pop("callbacks") for name, config in configs.items()}
    assert all(config == configs["baseline"] for config in configs.values())
    assert callbacks["baseline"] == []
    assert [c["class_path"].split(".")[-1] for c in callbacks["lossless"]] == [
        "OptimizerFactory",
        "FastLogging",
        "ChannelsLast",
        "MallocTuning",
        "ExactResume",
    ]
    assert callbacks["fast"][:-1] == callbacks["lossless"]
    assert callbacks["fast"][-1] == {
        "class_path": "lightning_perf.AutoMixedPrecision",
        "init_args": {"precision": "bf16-mixed"},
    }
    assert callbacks["qat"][:-1] == callbacks["lossless"]
    assert callbacks["qat"][-1] == {
        "class_path": "lightning_perf.QuantizationAwareTraining",
        "init_args": {"scheme": "int8"},
    }
    assert callbacks["pruned"] == [
        *callbacks["lossless"],
        {"class_path": "lightning_perf.MagnitudePruning", "init_args": {"sparsity": 0.9}},
    ]
    assert callbacks["channels"] == [
        *callbacks["lossless"],
        {"class_path": "lightning_perf.ChannelPruning", "init_args": {"target": 0.5, "round_to": 4}},
    ]


def test_baseline_is_frozen() -> None:
    config = yaml.safe_load((FOLDER / "baseline.yaml").read_text())
    assert config["trainer"]["precision"] == "32-true"
    assert config["model"]["init_args"] == {
        "network": "resnet20",
        "num_classes": 10,
        "in_channels": 1,
        "lr": 1e-3,
        "weight_decay": 1e-2,
    }
    assert config["data"]["init_args"]["batch_size"] == 128


@pytest.mark.parametrize("name", ["baseline", "qat"])
def test_configs_run_in_a_plain_lightning_cli(name: str, synthetic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.chdir(synthetic.parent)
    monkeypatch.setattr(sys, "argv", ["fit"])  # Lightning warns about other arguments beside args=
    arguments = ["fit", "--config", str(FOLDER / f"{name}.yaml"), "--trainer.fast_dev_run=2"]
    arguments += [f"--data.init_args.root={synthetic}", "--data.init_args.val_size=10"]
    arguments += ["--data.init_args.batch_size=16", "--trainer.accelerator=cpu"]
    cli = LightningCLI(args=arguments, save_config_callback=None)
    config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert f"{type(cli.model).__module__}.{type(cli.model).__name__}" == config["model"]["class_path"]
    assert cli.trainer.global_step == 2

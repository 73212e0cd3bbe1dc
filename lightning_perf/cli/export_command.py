"""``lightning-perf export``: the module of a config and a checkpoint, as a folder that runs in other runtimes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from lightning_perf.autopilot.compare import check_outputs
from lightning_perf.autopilot.export import export
from lightning_perf.cli.outputs import show
from lightning_perf.cli.restored_cli import RestoredCLI
from lightning_perf.cli.trainer_cli import trainer_command
from lightning_perf.deploy.artifact import Artifact, check_target
from lightning_perf.deploy.pipeline import check_precisions, choose_runtimes
from lightning_perf.deploy.source import PRECISIONS
from lightning_perf.quantization.callback import QuantizationAwareTraining


def export_config(
    config: str | Path, ckpt_path: str | Path | None, path: str | Path, *, overrides: Sequence[str] = (), **options: Any
) -> Artifact:
    """Export the module of a LightningCLI config with the weights of a checkpoint, and measure its metric in every runtime.

    The config's Trainer validates one batch first: that is how weights, and what callbacks keep in the checkpoint (such as
    the ranges of quantization-aware training), come back. int8 is calibrated on training batches.

    Args:
        config: path of a YAML file that ``lightning-perf fit --config`` accepts.
        ckpt_path: a checkpoint of that config; None takes the config's own ``ckpt_path``, and without one exports the
            weights as they are initialised.
        path: the folder to write.
        overrides: further arguments of ``fit``.
        options: as for :func:`lightning_perf.export`.

    Raises:
        ValueError: a config or checkpoint that does not exist, a checkpoint with ranges for whose callback the config has no
            place, and as :func:`lightning_perf.export`.
    """
    check_target(Path(path))
    module, training, validation = restored(config, ckpt_path, overrides)
    return export(module, training, path, loader=validation, **options)


def restored(config: str | Path, ckpt_path: str | Path | None, overrides: Sequence[str]) -> tuple[Any, Any, Any]:
    """The module of a config with everything that a checkpoint holds, its training loader and its validation loader.

    All of it happens in this process, on one device, whatever number of them the config trains on.

    Raises:
        ValueError: a config or checkpoint that does not exist, or a checkpoint with the ranges of quantization-aware
            training while the config has no such callback to take them up.
    """
    for label, given in (("config", config), ("ckpt_path", ckpt_path)):
        if given is not None and not Path(given).is_file():
            raise ValueError(f"{label} {str(given)!r} does not exist; give the path of a file.")
    settings = ["--config", str(config), "--trainer.logger=false", "--trainer.limit_val_batches=1", *overrides]
    cli: Any = trainer_command(settings, run=False, cli_class=RestoredCLI, save_config_callback=None)
    cli.trainer.callbacks.append(_RangesHaveAPlace())
    weights = {"ckpt_path": ckpt_path, "weights_only": None} if ckpt_path is not None else cli.weights(config)
    weights = {name: value for name, value in weights.items() if value is not None}
    cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False, **weights)
    source = cli.datamodule or cli.model
    if cli.datamodule is not None:
        source.setup("fit")
    return cli.model, source.train_dataloader(), source.val_dataloader()


class _RangesHaveAPlace(Callback):
    """Looks into the checkpoint for ranges that no callback of the config takes up, which would be lost without a word."""

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        name = QuantizationAwareTraining.__name__
        if any(isinstance(callback, QuantizationAwareTraining) for callback in trainer.callbacks):
            return
        states = checkpoint.get("callbacks", {})
        if any(key.startswith(name) and "ranges" in state for key, state in states.items()):
            raise ValueError(
                f"ckpt_path holds the ranges of {name}, and the config has no such callback to take them up; give the "
                "config that the run was trained with."
            )


def run(args: Sequence[str]) -> int:
    """The command: parse ``args``, export, print the table, write the files that were asked for."""
    parser = argparse.ArgumentParser("lightning-perf export", description=export_config.__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--config", required=True, help="a YAML file that `lightning-perf fit` accepts")
    parser.add_argument("--ckpt_path", help="a checkpoint of that config")
    parser.add_argument("--output", default="model.lpx", help="the folder to write (default model.lpx)")
    parser.add_argument("--runtimes", nargs="+", help="among onnxruntime, openvino, inductor (default: all installed)")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), help="among fp32, bf16, int8")
    parser.add_argument("--method", default="forward", help="the entry point to export")
    parser.add_argument("--metric", help="name that the module logs in validation")
    parser.add_argument("--mode", choices=("max", "min"), help="which direction of the metric is better")
    parser.add_argument(
        "--max_drop", type=float, help="a variant whose metric is worse by more than this does not pass"
    )
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the timing; 0 times nothing")
    parser.add_argument("--html", help="write a self-contained page here")
    parser.add_argument("--json", help="write the report with raw samples here")
    known, overrides = parser.parse_known_args(args)
    try:
        check_outputs(known.html, known.json)
        choose_runtimes(known.runtimes or "auto")
        check_precisions(known.precisions)
        made = export_config(
            known.config,
            known.ckpt_path,
            known.output,
            overrides=overrides,
            runtimes=known.runtimes or "auto",
            precisions=known.precisions,
            method=known.method,
            metric=known.metric,
            mode=known.mode,
            max_drop=known.max_drop,
            rounds=known.rounds,
        )
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        parser.error(str(error))
    assert made.report is not None
    show(made.report, json=known.json, html=known.html)
    return tell_best(made)


def tell_best(made: Artifact) -> int:
    """Print which variant to use; the exit status is 1 where none passed."""
    if made.best is None:
        reasons = [f"{name}: {entry['reason']}" for name, entry in made.manifest["variants"].items()]
        print(f"{made.path}: no variant passed its checks ({'; '.join(reasons)})", file=sys.stderr)
        return 1
    print(f"{made.path}: the fastest that passed for one sample is {made.best}")
    return 0

"""``lightning-perf quantize``: post-training quantization of a config's module and a checkpoint, as an int8 folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_perf.autopilot.direction import Mode
from lightning_perf.autopilot.export import export
from lightning_perf.autopilot.quantize import keep_within, quantize
from lightning_perf.cli.export_command import restored, tell_best
from lightning_perf.cli.outputs import show
from lightning_perf.deploy.artifact import Artifact, check_target
from lightning_perf.deploy.pipeline import choose_runtimes
from lightning_perf.quantization.prepare import has_ranges


def quantize_config(
    config: str | Path,
    ckpt_path: str | Path | None,
    path: str | Path,
    *,
    ignore: Sequence[str] = (),
    max_drop: str | None = None,
    mode: Mode | None = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Artifact:
    """Quantize the module of a LightningCLI config with the weights of a checkpoint, and export it in int8.

    Ranges and ``max_drop`` are measured on the validation batches. Ranges that quantization-aware training left in the
    checkpoint are kept, and only ``max_drop`` is measured.

    Args:
        config: path of a YAML file that ``lightning-perf fit --config`` accepts.
        ckpt_path: a checkpoint of that config; None takes the config's own ``ckpt_path``, and without one quantizes the
            weights as they are initialised.
        path: the folder to write.
        ignore: layers to leave in float.
        max_drop: largest drop of the validation metric, such as ``0.5%`` or ``0.002``.
        mode: ``max`` or ``min``: which direction of the metric is better.
        overrides: further arguments of ``fit``.
        options: as for :func:`lightning_perf.export`.

    Raises:
        ValueError: a config or checkpoint that does not exist, ``ignore`` with trained ranges, and as
            :func:`lightning_perf.quantize` and ``export``.
    """
    check_target(Path(path))
    module, _, validation = restored(config, ckpt_path, overrides)
    drop = float(max_drop) if max_drop is not None and not max_drop.endswith("%") else max_drop
    if not has_ranges(module):
        quantize(module, validation, ignore=ignore, max_drop=drop, mode=None if drop is None else mode)
    elif ignore:
        raise ValueError(
            f"ignore={list(ignore)}: ckpt_path {str(ckpt_path)!r} holds trained ranges, and what stays in float was decided "
            "in training; set ignore of QuantizationAwareTraining in the config, or leave --ignore out."
        )
    elif drop is not None:
        keep_within(module, validation, drop, mode=mode)
    return export(module, validation, path, loader=validation, precisions=["fp32", "int8"], mode=mode, **options)


def run(args: Sequence[str]) -> int:
    """The command: parse ``args``, quantize, export, print the table."""
    parser = argparse.ArgumentParser("lightning-perf quantize", description=quantize_config.__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--config", required=True, help="a YAML file that `lightning-perf fit` accepts")
    parser.add_argument("--ckpt_path", help="a checkpoint of that config")
    parser.add_argument("--output", default="model.lpx", help="the folder to write (default model.lpx)")
    parser.add_argument("--max_drop", help="largest drop of the validation metric: 0.5%% of it, or 0.002")
    parser.add_argument("--mode", choices=("max", "min"), help="which direction of the metric is better")
    parser.add_argument("--ignore", nargs="+", default=[], help="layers to leave in float, with * and ?")
    parser.add_argument("--runtimes", nargs="+", help="among onnxruntime, openvino, inductor (default: all installed)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the timing; 0 times nothing")
    known, overrides = parser.parse_known_args(args)
    try:
        choose_runtimes(known.runtimes or "auto")
        made = quantize_config(
            known.config,
            known.ckpt_path,
            known.output,
            ignore=known.ignore,
            max_drop=known.max_drop,
            mode=known.mode,
            overrides=overrides,
            runtimes=known.runtimes or "auto",
            rounds=known.rounds,
        )
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        parser.error(str(error))
    assert made.report is not None
    show(made.report, json=None, html=None)
    return tell_best(made)

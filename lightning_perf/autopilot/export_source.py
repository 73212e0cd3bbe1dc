"""The forms of a user's module that runtimes need: float weights, weights on their integer grid, Q/DQ, ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_perf._copying import deep_copy
from lightning_perf.deploy import inductor, onnx_runtime, openvino
from lightning_perf.deploy.call import Call, FlatModule, copies, frozen_copy
from lightning_perf.deploy.pipeline import write_artifact
from lightning_perf.deploy.quantized_graph import LayerRanges
from lightning_perf.deploy.source import FP32, INT8, NotExportable, Source
from lightning_perf.quantization.calibrate import calibrating
from lightning_perf.quantization.convert import LayerRange, folded_float, ranges, to_qdq
from lightning_perf.quantization.listing import entries
from lightning_perf.quantization.prepare import preparation, prepare, unprepare
from lightning_perf.quantization.watch import Watch

STATIC = "int8"


def source_of(
    module: nn.Module, call: Call, calibration: Sequence[Sequence[Tensor]], precisions: Sequence[str]
) -> tuple[Source, list[str], dict[str, str]]:
    """The forms of ``module``, what a reader has to know of them, and the precisions that there are not, with reasons.

    A module that was prepared (`QuantizationAwareTraining`, `quantize`) keeps its ranges. Another one is prepared here, on
    a copy, and its ranges are those of the calibration batches.

    Raises:
        ValueError: weights or ranges that are not finite.
    """
    plain = unprepare(frozen_copy(module))
    source = Source(call, plain, calibration=calibration)
    if INT8 not in precisions:
        return source, [], {}
    shared = preparation(module)
    notes = []
    if shared is None:
        prepared = frozen_copy(module)
        try:
            shared = prepare(prepared, STATIC)
        except ValueError as error:
            return source, [], {INT8: str(error)}
        calibrate(prepared, call, calibration)
        count = sum(_batch(tensors, call) for tensors in calibration)
        notes.append(
            f"int8: the module was not prepared, so its ranges are those of {count} samples of the given inputs. For better "
            "ones pass a loader, or use lightning_perf.quantize or QuantizationAwareTraining first."
        )
    else:
        prepared = frozen_copy(module)
        with torch.no_grad(), Watch(prepared, "evaluation") as watch:  # the norms that follow their layers in this call
            watch.returned(FlatModule(prepared, call)(*copies(call.tensors)))
    if shared.scheme.name != STATIC:
        why = f"runtimes need static ranges and the module is prepared as {shared.scheme.name}; prepare it as 'int8'"
        return replace(source, prepared=prepared), notes, {INT8: why}
    left = [entry for entry in entries(prepared) if not entry.quantized and not entry.name.startswith("(")]
    notes += [f"left in float: {entry.name}, because {entry.note}" for entry in left]
    made = replace(
        source,
        prepared=prepared,
        on_grid=folded_float(prepared),
        integer=to_qdq(prepared),
        ranges=_plain_ranges(ranges(prepared)),
    )
    return made, notes, {}


def calibrate(prepared: nn.Module, call: Call, calibration: Sequence[Sequence[Tensor]]) -> None:
    """Let a prepared module see the calibration batches; the first one also shows which batch norm follows which layer.

    Raises:
        ValueError: values that are not finite.
    """
    flat = FlatModule(prepared, call)
    with calibrating(prepared), torch.no_grad():
        for index, tensors in enumerate(calibration):
            with nullcontext() if index else Watch(prepared, "evaluation") as watch:
                outputs = flat(*copies(tensors))
                if watch is not None:
                    watch.returned(outputs)


def _plain_ranges(found: Mapping[str, LayerRange]) -> dict[str, LayerRanges]:
    """Ranges by layer; by the batch norm behind a computed weight, too: where it is folded only its name is left."""
    norms = {item.followed_by: name for name, item in found.items() if item.computed is not None and item.followed_by}
    made = {name: _plain_numbers(name, item) for name, item in found.items()}
    return {norm: made[name] for norm, name in norms.items()} | made


def _plain_numbers(name: str, item: LayerRange) -> LayerRanges:
    scale = item.weight_scale.detach().cpu().numpy() if item.computed is None else None
    return LayerRanges(scale, item.input, item.output, item.computed, name)


def _batch(tensors: Sequence[Tensor], call: Call) -> int:
    return next((t.size(0) for t, has in zip(tensors, call.batched, strict=True) if has), 1)


def write_child(
    source: Source, name: str, call: Call, calibration: Sequence[Sequence[Tensor]], precision: str, folder: Path
) -> None:
    """The artefact of one part of a module: of its prepared form, where there is one.

    A part that has nothing to quantize, such as a norm between quantized parts, stays in float in int8 too.

    Raises:
        NotExportable: no runtime can take it at this precision.
    """
    parent = source.prepared if precision == INT8 and source.prepared is not None else source.plain
    made, notes, missing = source_of(parent.get_submodule(name), call, calibration, [precision])
    if precision in missing and precision == INT8:
        notes = [*notes, f"left in float, because {missing[precision]}"]
        precision, missing = FP32, {}
        made = source_of(source.plain.get_submodule(name), call, calibration, [FP32])[0]
    if missing:
        raise NotExportable(f"{name}: {missing[precision]}")
    light = [runtime for runtime in (onnx_runtime.NAME, openvino.NAME) if find_spec(runtime) is not None]
    write_artifact(
        made,
        folder,
        runtimes=light or [inductor.NAME],  # Inductor compiles for minutes, and a module may have many parts
        precisions=[precision],
        rounds=3,
        batches=[call.batch_size or 1],
        notes=notes,
    )


def copy_with(module: nn.Module, method: str, run: Any) -> Any:
    """A copy of the user's module in which ``method`` is an artefact."""
    clone = deep_copy(module).eval()
    vars(clone)[method] = run
    return clone

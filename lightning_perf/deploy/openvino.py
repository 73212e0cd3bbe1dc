"""Variants for OpenVINO on the CPU: fp32, bf16 and int8, the last one with its float rest in float32 or bfloat16."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning_perf._optional import require
from lightning_perf.deploy.call import first_line
from lightning_perf.deploy.onnx_export import graph_for
from lightning_perf.deploy.onnx_graph import save
from lightning_perf.deploy.onnx_runtime import opener
from lightning_perf.deploy.serve import open_openvino
from lightning_perf.deploy.source import BF16, FP32, INT8, NotExportable, Source
from lightning_perf.deploy.variant import Variant
from lightning_perf.hardware import bfloat16_is_native

NAME = "openvino"
_HINT = "INFERENCE_PRECISION_HINT"
_SMALL = 256  # bytes


def build(source: Source, precision: str, folder: Path) -> list[Variant]:
    """Write ``openvino-PRECISION/model.xml`` and ``.bin`` below ``folder``.

    Raises:
        ImportError: OpenVINO is missing.
        NotExportable: bf16 on a processor without it, a module that has no ONNX form, or an operator OpenVINO lacks.
    """
    runtime = require("openvino", extra="deploy", purpose="exporting to OpenVINO")
    if precision == BF16 and not bfloat16_is_native():
        raise NotExportable("this processor has no bfloat16 arithmetic; bf16 would be slower than fp32")
    model, notes = graph_for(source, precision, fused_sum=True)
    name = f"{NAME}-{precision}"
    (folder / name).mkdir()
    path = folder / name / "model.xml"
    # bfloat16 keeps 8 bits of a weight and float16 11: halving the file loses nothing that bf16 would have kept.
    read = _read(runtime, model, folder / name)
    share_constants(read)
    runtime.save_model(read, str(path), compress_to_fp16=precision == BF16)
    # The graph is written with an indentation that outweighs the weights of a small network.
    path.write_text(re.sub(r">\s+<", "><", path.read_text(encoding="utf-8")), encoding="utf-8")
    hints = {FP32: ["f32"], BF16: ["bf16"], INT8: ["f32", "bf16"] if bfloat16_is_native() else ["f32"]}[precision]
    files = (f"{name}/model.xml", f"{name}/model.bin")
    made = []
    for hint in hints:
        rest = precision == INT8 and hint == "bf16"
        options = {_HINT: hint}
        words = (*notes, "what is not int8 runs in bfloat16") if rest else notes
        label = f"{name}-bf16" if rest else name
        made.append(
            Variant(label, NAME, precision, files[0], files, opener(open_openvino, path, options), options, words)
        )
    return made


def _read(runtime: Any, model: Any, folder: Path) -> Any:
    """OpenVINO's graph of an ONNX model; its reader wants a file, which is deleted again."""
    path = folder / "model.onnx"
    save(model, path)
    try:
        return runtime.convert_model(str(path))
    except Exception as error:  # OpenVINO's errors have no class in common but this one
        operators = re.search("Conversion is failed for: (.+)", str(error))  # at the end of many lines
        words = first_line(error) if operators is None else f"no conversion of {operators[1]}"
        raise NotExportable(f"OpenVINO cannot take it ({words})") from error
    finally:
        path.unlink()


def share_constants(model: Any) -> int:
    """Let equal small constants of an OpenVINO graph be one: every range is written four times otherwise.

    Returns:
        How many were dropped.
    """
    seen: dict[tuple[str, tuple[int, ...], bytes], Any] = {}
    dropped = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_byte_size() > _SMALL:
            continue
        first = seen.setdefault((str(node.get_element_type()), tuple(node.shape), node.data.tobytes()), node)
        if first is not node:
            dropped += 1
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(first.output(0))
    return dropped

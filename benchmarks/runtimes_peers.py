"""Other people's quantizers and runtimes, each used as its documentation says, for `benchmarks.runtimes`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
import openvino
import torch
from torch import Tensor, nn

Runner: TypeAlias = Callable[[Sequence[Tensor]], list[Any]]
Made: TypeAlias = tuple[Runner, float]


def float_onnx(module: nn.Module, samples: Tensor, path: Path) -> Path:
    """The module in ONNX, batch free."""
    path.mkdir(parents=True, exist_ok=True)
    made = torch.onnx.export(
        module,
        (samples[:2],),
        dynamo=True,
        input_names=["x"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert made is not None
    made.save(str(path / "float.onnx"))
    return path / "float.onnx"


def session(path: Path, threads: int) -> Runner:
    """ONNX Runtime with its defaults on so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    made = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda tensors: list(made.run(None, {"x": tensors[0].numpy()}))


class Reader:
    """Calibration samples, as ONNX Runtime wants them."""

    def __init__(self, samples: Tensor) -> None:
        self.batches = iter(samples.split(8))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None."""
        batch = next(self.batches, None)
        return None if batch is None else {"x": batch.numpy()}


def ort_static(module: nn.Module, samples: Tensor, folder: Path, threads: int) -> Made:
    """Preprocessing, then QDQ, uint8 activations, int8 weights per channel."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source = float_onnx(module, samples, folder)
    quant_pre_process(str(source), str(folder / "pre.onnx"))
    quantize_static(
        str(folder / "pre.onnx"),
        str(folder / "int8.onnx"),
        Reader(samples),  # type: ignore[arg-type]
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )
    return session(folder / "int8.onnx", threads), float((folder / "int8.onnx").stat().st_size)


def ort_dynamic(module: nn.Module, samples: Tensor, folder: Path, threads: int) -> Made:
    """Weights in int8 per channel, activations quantized in every call; linear layers only."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = float_onnx(module, samples, folder)
    quantize_dynamic(
        str(source),
        str(folder / "int8.onnx"),
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm"],
    )
    return session(folder / "int8.onnx", threads), float((folder / "int8.onnx").stat().st_size)


def nncf_openvino(module: nn.Module, samples: Tensor, folder: Path, threads: int, transformer: bool = False) -> Made:
    """``nncf.quantize`` on the OpenVINO model, mixed preset."""
    import nncf  # pyright: ignore[reportMissingImports]

    model = openvino.convert_model(str(float_onnx(module, samples, folder)))
    kind: dict[str, Any] = {"model_type": nncf.ModelType.TRANSFORMER} if transformer else {}
    batches = [batch.numpy() for batch in samples.split(8)]
    made = nncf.quantize(model, nncf.Dataset(batches), preset=nncf.QuantizationPreset.MIXED, **kind)
    openvino.save_model(made, str(folder / "int8.xml"), compress_to_fp16=False)
    size = sum((folder / f"int8.{suffix}").stat().st_size for suffix in ("xml", "bin"))
    return compiled_openvino(folder / "int8.xml", threads), float(size)


def nncf_transformer(module: nn.Module, samples: Tensor, folder: Path, threads: int) -> Made:
    """The same with NNCF's scheme for transformers."""
    return nncf_openvino(module, samples, folder, threads, transformer=True)


def compiled_openvino(path: Path, threads: int) -> Runner:
    """OpenVINO on the CPU for latency, on so many threads."""
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda tensors: [np.array(request.infer([tensors[0].numpy()], share_inputs=True)[0])]


def pt2e_inductor(module: nn.Module, samples: Tensor, folder: Path, threads: int) -> Made:
    """pt2e with the x86 quantizer, compiled with freezing; strict export, as its recipes do. One graph per batch size."""
    import torch._inductor.config as inductor
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86  # pyright: ignore[reportMissingImports]
    from torchao.quantization.pt2e.quantize_pt2e import (  # pyright: ignore[reportMissingImports]
        convert_pt2e,
        prepare_pt2e,
    )

    compiled: dict[int, Any] = {}
    for size in (1, len(samples)):
        program = torch.export.export(module, (samples[:size],), strict=True).module()
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(program, quantizer)
        for batch in samples.split(size):
            prepared(batch)
        converted = convert_pt2e(prepared)
        with torch.no_grad(), inductor.patch(freezing=True):
            compiled[size] = torch.compile(converted)
            compiled[size](samples[:size])

    def run(tensors: Sequence[Tensor]) -> list[Any]:
        with torch.no_grad():
            return [compiled[tensors[0].size(0)](tensors[0])]

    return run, float("nan")


PEERS: dict[str, Callable[[nn.Module, Tensor, Path, int], Made]] = {
    "ORT static int8": ort_static,
    "ORT dynamic int8": ort_dynamic,
    "NNCF OpenVINO int8": nncf_openvino,
    "NNCF transformer OpenVINO int8": nncf_transformer,
    "pt2e Inductor int8": pt2e_inductor,
}

"""What is exported: one module in the forms that the runtimes need, and its export to a graph."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_perf import _quiet
from lightning_perf.deploy.call import BATCH, Call, FlatModule, first_line
from lightning_perf.deploy.quantized_graph import LayerRanges

FP32, BF16, INT8 = "fp32", "bf16", "int8"
PRECISIONS = (FP32, BF16, INT8)


@dataclass(frozen=True)
class Source:
    """A module in the forms that runtimes need; each form is a copy in evaluation mode.

    ``plain`` has the float weights (fp32 and bf16 are made of it), ``prepared`` computes what int8 is to compute (a
    module with fake quantization; without one ``plain``), ``on_grid`` has the weights of ``prepared`` as floats on their
    integer grid, and ``integer`` holds Q/DQ operators, for Inductor. ``ranges`` are those of ``prepared`` by layer, and
    ``calibration`` are batches of flat tensors for what ``ranges`` does not know.
    """

    call: Call
    plain: nn.Module
    prepared: nn.Module | None = None
    on_grid: nn.Module | None = None
    integer: nn.Module | None = None
    ranges: Mapping[str, LayerRanges] | None = None
    calibration: Sequence[Sequence[Tensor]] = field(default=())

    def float_form(self, precision: str) -> nn.Module:
        """The float module that a graph of this precision is made from."""
        return self.on_grid if precision == INT8 and self.on_grid is not None else self.plain

    def reference(self, precision: str) -> nn.Module:
        """The module that an artefact of this precision is compared with."""
        return self.prepared if precision == INT8 and self.prepared is not None else self.plain


class NotExportable(RuntimeError):
    """A module or a part of it that a runtime cannot take; the message says why."""


def exported_program(module: nn.Module, call: Call) -> torch.export.ExportedProgram:
    """The graph of one call of ``module``, for any batch size where the call allows it.

    Raises:
        NotExportable: neither way of tracing works; the message holds the reasons of both.
    """
    flat = FlatModule(module, call)
    # A size of 1 would be taken as a constant; 2 or more stays free.
    tensors = tuple(call.at(max(call.batch_size or 1, 2)) if any(call.batched) else call.tensors)
    batch = torch.export.Dim(BATCH, min=1)
    shapes = (tuple({0: batch} if has else {} for has in call.batched),)
    reasons = []
    for strict in (False, True):
        try:
            with quiet(), _without_graphs(), torch.no_grad():
                return torch.export.export(flat, tensors, dynamic_shapes=shapes, strict=strict)
        except Exception as error:
            reasons.append(f"{'strict' if strict else 'non-strict'}: {first_line(error)}")
    raise NotExportable(f"torch.export cannot trace {type(module).__name__}.{call.method} ({'; '.join(reasons)})")


@contextmanager
def _without_graphs() -> Iterator[None]:
    """torch.export writes half-made graphs and the guards that failed to stderr; the error says what of it matters."""
    with _quiet.at_level(logging.CRITICAL, "torch._guards"), redirect_stderr(io.StringIO()):
        yield


def quiet() -> AbstractContextManager[None]:
    """Exporters warn and log about their own insides; what matters comes back as an error or in the report."""
    return _quiet.quiet("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")

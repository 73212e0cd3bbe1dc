"""Hardware facts from recorded files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_perf import hardware
from lightning_perf.hardware import system

ZEN4 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9R14
flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni
"""
HASWELL = "model name\t: Intel(R) Core(TM) i7-4770\nflags\t\t: fpu sse2 avx2 fma\n"
GRAVITON3 = "processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\n"


@pytest.fixture
def cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str | None], None]:
    def use(content: str | None) -> None:
        path = tmp_path / "cpuinfo"
        if content is not None:
            path.write_text(content)
        monkeypatch.setattr(system, "_CPUINFO", path)

    return use


@pytest.mark.parametrize(("content", "native"), [(ZEN4, True), (GRAVITON3, True), (HASWELL, False), (None, None)])
def test_bfloat16_by_the_flags_of_the_processor(
    cpuinfo: Callable[[str | None], None], content: str | None, native: bool | None
) -> None:
    cpuinfo(content)
    assert hardware.bfloat16_is_native("cpu") is native


def test_flags_and_model_are_read_from_cpuinfo(cpuinfo: Callable[[str | None], None]) -> None:
    cpuinfo(ZEN4)
    assert hardware.cpu_flags() == {"fpu", "avx2", "avx512f", "avx512_bf16", "avx512_vnni"}
    assert hardware.machine()["cpu"] == "AMD EPYC 9R14"
    cpuinfo(GRAVITON3)
    assert hardware.cpu_flags() == {"fp", "asimd", "sve", "bf16", "i8mm"}


def test_bfloat16_on_a_device_we_know_nothing_about() -> None:
    assert hardware.bfloat16_is_native("mps") is None


def test_versions_name_what_decides_a_result() -> None:
    found = hardware.versions()
    assert found["torch"] == torch.__version__
    assert {"python", "lightning-perf", "lightning", "torchmetrics"} <= found.keys()


@pytest.mark.parametrize(
    ("models", "count", "expected"),
    [
        (["NVIDIA H200"], 1, "NVIDIA H200"),
        (["NVIDIA H200", "NVIDIA H200"], 2, "2 x NVIDIA H200"),
    ],
)
def test_gpu_names_come_from_the_driver_without_a_context(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: list[str], count: int, expected: str
) -> None:
    for index, model in enumerate(models):
        (tmp_path / f"0000:0{index}").mkdir()
        (tmp_path / f"0000:0{index}" / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 7\n")
    monkeypatch.setattr(system, "_NVIDIA", tmp_path)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: pytest.fail("this makes a CUDA context"))
    assert hardware.machine()["gpu"] == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_machine_is_described_without_initialising_cuda() -> None:
    script = (
        "import torch; from lightning_perf import hardware; "
        "assert hardware.machine()['gpu']; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

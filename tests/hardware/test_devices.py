"""The table of devices: exact names, dense numbers, a source for each."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
import torch

from lightning_perf.hardware import DEVICES, find_device, kind_of, tf32_is_on, vendor_peak
from lightning_perf.hardware.devices import NUMBERS

VENDORS = ("nvidia.com", "amd.com", "awsstatic.com")  # the A10G exists at AWS only


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.names[0])
def test_every_row(device) -> None:
    for name in device.names:
        assert find_device(name) is device
    given = [number for number in NUMBERS if getattr(device, number) is not None]
    assert given, "a row without a number"
    for number in given:
        source = urlsplit(device.source_of(number))
        assert source.scheme == "https"
        assert source.hostname.endswith(VENDORS)
        assert getattr(device, number) > 0
    assert device.bandwidth is None or 100 < device.bandwidth < 10_000, "GB/s"
    # Fewer bits are never slower, except that TF32 on GeForce only equals FP32.
    ladder = [device.fp32, device.tf32, device.bf16, device.fp8]
    rates = [rate for rate in ladder if rate is not None]
    assert rates == sorted(rates)
    assert device.bf16 in (None, device.fp16)


def test_names_are_unique() -> None:
    names = [name for device in DEVICES for name in device.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "kind", "sparse"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 624),
        ("NVIDIA H100 80GB HBM3", "bf16", 1979),
        ("NVIDIA H100 80GB HBM3", "fp8", 3958),
        ("NVIDIA H100 NVL", "bf16", 1671),
        ("NVIDIA H200", "tf32", 989),
        ("NVIDIA H200", "int8", 3958),
        ("NVIDIA GH200 480GB", "bf16", 1979),
        ("NVIDIA B200", "bf16", 4500),
        ("NVIDIA L4", "bf16", 242),
        ("NVIDIA L40", "bf16", 362.1),
        ("NVIDIA L40S", "bf16", 733),
        ("NVIDIA A40", "bf16", 299.4),
        ("NVIDIA A10G", "bf16", 140),
        ("NVIDIA GeForce RTX 4090", "bf16", 330.4),
        ("NVIDIA GeForce RTX 5080", "fp8", 450.2),
        ("AMD Instinct MI300X", "fp16", 2614.9),
    ],
)
def test_dense_is_half_of_sparse(name: str, kind: str, sparse: float) -> None:
    """Within the rounding of the documents (NVIDIA prints 362.05 beside 733)."""
    device = find_device(name)
    assert device is not None
    assert getattr(device, kind) == pytest.approx(sparse / 2, rel=0.015)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("NVIDIA L40S", "NVIDIA L4"),
        ("NVIDIA L40", "NVIDIA L4"),
        ("NVIDIA L40", "NVIDIA L40S"),
        ("NVIDIA A10G", "NVIDIA A10"),
        ("NVIDIA H100 NVL", "NVIDIA H100 80GB HBM3"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3"),
        ("NVIDIA H200 NVL", "NVIDIA H200"),
        ("NVIDIA GeForce RTX 5070", "NVIDIA GeForce RTX 5070 Ti"),
    ],
)
def test_names_that_contain_each_other_are_different_devices(one: str, other: str) -> None:
    first, second = find_device(one), find_device(other)
    assert first is not None
    assert second is not None
    assert [getattr(first, number) for number in NUMBERS] != [getattr(second, number) for number in NUMBERS]


@pytest.mark.parametrize(
    "name",
    ["", "cpu", "NVIDIA L4S", "nvidia l4", "NVIDIA H100", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "Apple MPS", "TPU v4"],
)
def test_an_unknown_name_is_not_guessed(name: str) -> None:
    assert find_device(name) is None
    assert vendor_peak(name, torch.float32) == (None, f"{name!r} is not in the table of devices")


def test_a_number_that_no_document_states() -> None:
    peak, reason = vendor_peak("Tesla V100-SXM2-16GB", torch.bfloat16)
    assert peak is None
    assert reason == "no document states a bf16 rate of Tesla V100-SXM2-16GB"
    assert vendor_peak("NVIDIA H200", torch.float64) == (None, "vendors state no rate for float64")


def test_peaks_and_their_source() -> None:
    assert vendor_peak("NVIDIA L40S", torch.float16) == (362.05e12, "https://www.nvidia.com/en-us/data-center/l40s/")
    assert vendor_peak("NVIDIA A100-SXM4-40GB", torch.float32)[0] == 19.5e12
    assert vendor_peak("NVIDIA A100-SXM4-40GB", torch.float32, tf32=True)[0] == 156e12
    assert vendor_peak("NVIDIA A100-SXM4-40GB", torch.bfloat16, tf32=True)[0] == 312e12
    assert kind_of(torch.float8_e4m3fn) == "fp8"


def test_half_rate_with_32_bit_accumulation_is_noted_on_geforce() -> None:
    geforce = [device for device in DEVICES if "GeForce" in device.names[0] and device.fp16 is not None]
    assert len(geforce) >= 6
    for device in geforce:
        assert "32-bit accumulation" in device.note
        assert device.fp16 == pytest.approx(2 * device.fp32, rel=0.01)


def test_tf32_follows_torchs_setting() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert tf32_is_on()
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert not tf32_is_on()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_no_row_looks_like_a_tpu() -> None:
    assert not any(re.search("tpu", name, re.IGNORECASE) for device in DEVICES for name in device.names)

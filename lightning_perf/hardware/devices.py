"""What vendors say their accelerators can do: dense peaks and memory bandwidth, one row per device, each with its source.

Rows are found by the exact name that ``torch.cuda.get_device_name()`` returns. A name is never matched in part ("NVIDIA
L40S" is no L4), and a number that no vendor's document states is None. Sparse numbers are halved. Where a document gives
tensor-core rates for both, those with 32-bit accumulation are taken, for that is how torch multiplies; on GeForce they
are half of the advertised ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch

Kind: TypeAlias = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "int8"]

_KINDS: Mapping[torch.dtype, Kind] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8",
    torch.float8_e5m2: "fp8",
    torch.float8_e4m3fnuz: "fp8",
    torch.float8_e5m2fnuz: "fp8",
    torch.int8: "int8",
}


@dataclass(frozen=True)
class Device:
    """One device: dense tera-operations per second by kind of number, and gigabytes per second.

    Args:
        names: what ``torch.cuda.get_device_name()`` returns.
        bandwidth: of the device's memory, in GB/s.
        fp32: 32-bit floating point without tensor cores (AMD: matrix cores, which keep 32 bits).
        tf32: 32-bit products on tensor cores with 10 bits of mantissa.
        bf16: bfloat16.
        fp16: 16-bit floating point.
        fp8: 8-bit floating point.
        int8: 8-bit integers.
        source: the vendor's document behind the numbers.
        sources: another document for some of them, by field.
        note: what a reader should know.
    """

    names: tuple[str, ...]
    bandwidth: float | None
    fp32: float | None
    tf32: float | None
    bf16: float | None
    fp16: float | None
    fp8: float | None
    int8: float | None
    source: str
    sources: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def peak(self, kind: Kind) -> float | None:
        """Operations per second, or None where no document states them."""
        tera = getattr(self, kind)
        return None if tera is None else tera * 1e12

    def source_of(self, name: str) -> str | None:
        """The document that states one number; None if there is no number."""
        return None if getattr(self, name) is None else self.sources.get(name, self.source)


NUMBERS = ("bandwidth", "fp32", "tf32", "bf16", "fp16", "fp8", "int8")


def find_device(name: str) -> Device | None:
    """The row of the device of exactly this name, or None.

    Example::

        >>> find_device("NVIDIA L40S").bf16, find_device("NVIDIA L4").bf16, find_device("NVIDIA L5")
        (362.05, 121.0, None)
    """
    return _BY_NAME.get(name)


def kind_of(dtype: torch.dtype, *, tf32: bool = False) -> Kind | None:
    """The column of the table for products of a dtype; None: vendors state no rate for it.

    Args:
        dtype: the dtype of the operands.
        tf32: whether 32-bit products may run in TF32, see :func:`tf32_is_on`.

    Example::

        >>> kind_of(torch.bfloat16), kind_of(torch.float32), kind_of(torch.float32, tf32=True)
        ('bf16', 'fp32', 'tf32')
    """
    kind = _KINDS.get(dtype)
    return "tf32" if kind == "fp32" and tf32 else kind


def tf32_is_on() -> bool:
    """Whether torch's settings let CUDA compute 32-bit matrix products in TF32.

    Convolutions have a switch of their own, on by default, which is not asked here.
    """
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def vendor_peak(name: str, dtype: torch.dtype, *, tf32: bool = False) -> tuple[float | None, str]:
    """Dense operations per second of a device for a dtype, and where that is from, or None and why not.

    Example::

        >>> vendor_peak("NVIDIA A100-SXM4-80GB", torch.bfloat16)[0]
        312000000000000.0
        >>> vendor_peak("Tesla T4", torch.bfloat16)
        (None, 'no document states a bf16 rate of Tesla T4')
    """
    device, kind = find_device(name), kind_of(dtype, tf32=tf32)
    if device is None:
        return None, f"{name!r} is not in the table of devices"
    if kind is None:
        return None, f"vendors state no rate for {str(dtype).removeprefix('torch.')}"
    peak = device.peak(kind)
    if peak is None:
        return None, f"no document states a {kind} rate of {name}"
    return peak, str(device.source_of(kind))


_NVIDIA = "https://www.nvidia.com/content/dam/en-zz/Solutions"
_IMAGES = "https://images.nvidia.com"
_A100 = f"{_NVIDIA}/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
_HOPPER = "https://resources.nvidia.com/en-us-tensor-core/gtc22-whitepaper-hopper"
_H100 = "https://www.nvidia.com/en-us/data-center/h100/"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/"
_GH200 = (
    "https://resources.nvidia.com/en-us-data-center-overview-mc/en-us-data-center-overview/"
    "grace-hopper-superchip-datasheet-partner"
)
_BLACKWELL = "https://resources.nvidia.com/en-us-blackwell-architecture/datasheet"
_GB200 = "https://www.nvidia.com/en-us/data-center/gb200-nvl72/"
_VOLTA = f"{_IMAGES}/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf"
_T4 = f"{_NVIDIA}/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf"
_AMPERE_RTX = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
_ADA_RTX = f"{_IMAGES}/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_BLACKWELL_RTX = f"{_IMAGES}/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
_RTX_40 = "https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/rtx-4070-4070ti/"
_RTX_6000_ADA = "https://www.nvidia.com/en-us/products/workstations/rtx-6000/"
_L4 = "https://www.nvidia.com/en-us/data-center/l4/"
_L40 = "https://www.nvidia.com/en-us/data-center/l40/"
_L40S = "https://www.nvidia.com/en-us/data-center/l40s/"
_A10 = f"{_NVIDIA}/Data-Center/a10/pdf/a10-datasheet.pdf"
_A10G = "https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf"
_A30 = f"{_NVIDIA}/data-center/products/a30-gpu/pdf/a30-datasheet.pdf"
_A40 = f"{_IMAGES}/content/Solutions/data-center/a40/nvidia-a40-datasheet.pdf"
_AMD = "https://www.amd.com/content/dam/amd/en/documents/instinct-tech-docs/data-sheets"
_MI300X = f"{_AMD}/amd-instinct-mi300x-data-sheet.pdf"
_MI300A = f"{_AMD}/amd-instinct-mi300a-data-sheet.pdf"
_MI325X = "https://www.amd.com/en/products/accelerators/instinct/mi300/mi325x.html"
_MI250X = "https://www.amd.com/en/products/accelerators/instinct/mi200/mi250x.html"
_MI250 = "https://www.amd.com/en/products/accelerators/instinct/mi200/mi250.html"
_MI210 = "https://www.amd.com/en/products/accelerators/instinct/mi200/mi210.html"
_DIE = "torch sees each of the two dies as a device, so these are half of the card's numbers"
_HALF_RATE = "with 32-bit accumulation; the advertised rates accumulate in 16 bits"

# fmt: off
# names, GB/s, then dense tera-operations per second: fp32, tf32, bf16, fp16, fp8, int8; source
DEVICES: tuple[Device, ...] = (
    Device(("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"), 1555, 19.5, 156, 312, 312, None, 624, _A100),
    Device(("NVIDIA A100-PCIE-40GB", "A100-PCIE-40GB"), 1555, 19.5, 156, 312, 312, None, 624, _A100),
    Device(("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"), 2039, 19.5, 156, 312, 312, None, 624, _A100),
    Device(("NVIDIA A100 80GB PCIe",), 1935, 19.5, 156, 312, 312, None, 624, _A100),
    Device(("NVIDIA H100 80GB HBM3",), 3352, 66.9, 494.7, 989.4, 989.4, 1978.9, 1978.9, _HOPPER),
    Device(("NVIDIA H100 PCIe",), 2039, 51.2, 378, 756, 756, 1513, 1513, _HOPPER),
    Device(("NVIDIA H100 NVL",), 3900, 60, 835 / 2, 1671 / 2, 1671 / 2, 3341 / 2, 3341 / 2, _H100),
    Device(("NVIDIA H200",), 4800, 67, 989 / 2, 1979 / 2, 1979 / 2, 3958 / 2, 3958 / 2, _H200),
    Device(("NVIDIA H200 NVL",), 4800, 60, 835 / 2, 1671 / 2, 1671 / 2, 3341 / 2, 3341 / 2, _H200),
    Device(("NVIDIA GH200 480GB", "NVIDIA GH200 120GB"), 4000, 67, 494, 990, 990, 1979, 1979, _GH200),
    Device(("NVIDIA GH200 144G HBM3e",), 4900, 67, 494, 990, 990, 1979, 1979, _GH200),
    Device(("NVIDIA B200",), 7700, 75, 2200 / 2, 4500 / 2, 4500 / 2, 9000 / 2, 9000 / 2, _BLACKWELL),
    Device(("NVIDIA GB200",), 8000, 80, 2500 / 2, 5000 / 2, 5000 / 2, 10000 / 2, 10000 / 2, _GB200),
    Device(("NVIDIA L4",), 300, 30.3, 120 / 2, 242 / 2, 242 / 2, 485 / 2, 485 / 2, _L4),
    Device(("NVIDIA L40",), 864, 90.5, 90.5, 181.05, 181.05, 362, 362, _L40),
    Device(("NVIDIA L40S",), 864, 91.6, 183, 362.05, 362.05, 733, 733, _L40S),
    Device(("NVIDIA A10",), 600, 31.2, 62.5, 125, 125, None, 250, _A10),
    Device(("NVIDIA A10G",), 600, 35, 35, 70, 70, None, 140, _A10G),
    Device(("NVIDIA A30",), 933, 10.3, 82, 165, 165, None, 330, _A30),
    Device(("NVIDIA A40",), 696, 37.4, 74.8, 149.7, 149.7, None, 299.3, _A40),
    Device(("NVIDIA RTX A6000",), 768, 38.7, 77.4, 154.8, 154.8, None, 309.7, _AMPERE_RTX),
    Device(("NVIDIA RTX 6000 Ada Generation",), 960, 91.1, None, None, None, 1457 / 2, None, _RTX_6000_ADA),
    Device(("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB"), 900, 15.7, None, None, 125, None, None, _VOLTA),
    Device(("Tesla V100-PCIE-16GB", "Tesla V100-PCIE-32GB"), 900, 14, None, None, 112, None, None, _VOLTA),
    Device(("Tesla V100S-PCIE-32GB",), 1134, 16.4, None, None, 130, None, None, _VOLTA),
    Device(("Tesla T4",), 320, 8.1, None, None, 65, None, 130, _T4),
    Device(("NVIDIA GeForce RTX 3080",), 760, 29.8, 29.8, 59.5, 59.5, None, 238, _AMPERE_RTX, note=_HALF_RATE),
    Device(("NVIDIA GeForce RTX 3090",), 936, 35.6, 35.6, 71, 71, None, 284, _AMPERE_RTX, note=_HALF_RATE),
    Device(("NVIDIA GeForce RTX 4070 Ti SUPER",), None, 44, None, None, None, None, None, _RTX_40),
    Device(("NVIDIA GeForce RTX 4070 Ti",), None, 40.1, 40.1, 80.2, 80.2, None, None, _ADA_RTX, note=_HALF_RATE),
    Device(("NVIDIA GeForce RTX 4080",), 716.8, 48.7, 48.7, 97.5, 97.5, 194.9, 389.9, _ADA_RTX, note=_HALF_RATE),
    Device(("NVIDIA GeForce RTX 4090",), 1008, 82.6, 82.6, 165.2, 165.2, 330.3, 660.6, _ADA_RTX, note=_HALF_RATE),
    Device(("NVIDIA GeForce RTX 5070",), 672, 30.9, None, None, None, None, None, _BLACKWELL_RTX, note=_HALF_RATE),
    Device(("NVIDIA GeForce RTX 5070 Ti",), 896, 43.9, 43.9, 87.9, 87.9, None, None, _BLACKWELL_RTX, note=_HALF_RATE),
    Device(("NVIDIA GeForce RTX 5080",), 960, 56.3, 56.3, 112.6, 112.6, 225.1, None, _BLACKWELL_RTX, note=_HALF_RATE),
    Device(("NVIDIA GeForce RTX 5090",), 1792, 104.8, 104.8, 209.5, 209.5, 419, 838, _BLACKWELL_RTX, note=_HALF_RATE),
    Device(("AMD Instinct MI300X", "AMD Instinct MI300X OAM"), 5300, 163.4, 653.7, 1307.4, 1307.4, 2614.9, 2614.9, _MI300X),
    Device(("AMD Instinct MI300A",), 5300, 122.6, 490.3, 980.6, 980.6, 1961.2, 1961.2, _MI300A),
    Device(("AMD Instinct MI325X",), 6000, 163.4, 653.7, 1307.4, 1307.4, 2614.9, 2614.9, _MI325X),
    Device(("AMD Instinct MI250X",), 3276.8 / 2, 95.7 / 2, None, 383 / 2, 383 / 2, None, 383 / 2, _MI250X, note=_DIE),
    Device(("AMD Instinct MI250",), 3276.8 / 2, 90.5 / 2, None, 362.1 / 2, 362.1 / 2, None, 362.1 / 2, _MI250, note=_DIE),
    Device(("AMD Instinct MI210",), 1638.4, 45.3, None, 181, 181, None, 181, _MI210),
)
# fmt: on
_BY_NAME: Mapping[str, Device] = {name: device for device in DEVICES for name in device.names}

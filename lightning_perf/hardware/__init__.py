"""What this machine is and can do, what vendors say about devices, and short probes that measure it."""

from lightning_perf.hardware.devices import DEVICES as DEVICES
from lightning_perf.hardware.devices import Device as Device
from lightning_perf.hardware.devices import find_device as find_device
from lightning_perf.hardware.devices import kind_of as kind_of
from lightning_perf.hardware.devices import tf32_is_on as tf32_is_on
from lightning_perf.hardware.devices import vendor_peak as vendor_peak
from lightning_perf.hardware.probes import Rate as Rate
from lightning_perf.hardware.probes import dispatch_seconds as dispatch_seconds
from lightning_perf.hardware.probes import matmul_rate as matmul_rate
from lightning_perf.hardware.probes import measure_bandwidth as measure_bandwidth
from lightning_perf.hardware.probes import measure_matmul as measure_matmul
from lightning_perf.hardware.quota import cpu_quota as cpu_quota
from lightning_perf.hardware.quota import memory_limit as memory_limit
from lightning_perf.hardware.system import bfloat16_is_native as bfloat16_is_native
from lightning_perf.hardware.system import cpu_flags as cpu_flags
from lightning_perf.hardware.system import machine as machine
from lightning_perf.hardware.system import versions as versions
from lightning_perf.hardware.threads import torch_threads as torch_threads

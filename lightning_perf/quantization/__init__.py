"""Quantization: schemes, fake quantization of unchanged modules, and what runtimes take from them."""

from lightning_perf.quantization.convert import LayerRange as LayerRange
from lightning_perf.quantization.convert import folded_float as folded_float
from lightning_perf.quantization.convert import ranges as ranges
from lightning_perf.quantization.convert import to_qdq as to_qdq
from lightning_perf.quantization.listing import entries as entries
from lightning_perf.quantization.listing import section as section
from lightning_perf.quantization.prepare import preparation as preparation
from lightning_perf.quantization.prepare import prepare as prepare
from lightning_perf.quantization.prepare import unprepare as unprepare
from lightning_perf.quantization.schemes import SCHEMES as SCHEMES
from lightning_perf.quantization.schemes import get_scheme as get_scheme

"""Measuring on noisy machines: pairs and intervals, contention, peak memory. Pure, on injected clocks and readers."""

from lightning_perf.measuring.contention import Contention as Contention
from lightning_perf.measuring.contention import watch_contention as watch_contention
from lightning_perf.measuring.memory import peak_rss_bytes as peak_rss_bytes
from lightning_perf.measuring.memory import reset_peak_rss as reset_peak_rss
from lightning_perf.measuring.memory import rss_bytes as rss_bytes
from lightning_perf.measuring.pairs import Interval as Interval
from lightning_perf.measuring.pairs import interleave as interleave
from lightning_perf.measuring.pairs import outliers as outliers
from lightning_perf.measuring.pairs import paired_difference as paired_difference
from lightning_perf.measuring.pairs import paired_ratio as paired_ratio
from lightning_perf.measuring.pairs import resolution as resolution
from lightning_perf.measuring.pairs import schedule as schedule

"""The one result type and its renderers: terminal, JSON, HTML with plots, notebook, YAML."""

from lightning_perf.report.files import UnwritableReportError as UnwritableReportError
from lightning_perf.report.files import check_writable as check_writable
from lightning_perf.report.quantities import FINAL_ACCURACY as FINAL_ACCURACY
from lightning_perf.report.quantities import FINAL_METRIC as FINAL_METRIC
from lightning_perf.report.quantities import PEAK_MEMORY as PEAK_MEMORY
from lightning_perf.report.quantities import SAMPLES_PER_SECOND as SAMPLES_PER_SECOND
from lightning_perf.report.quantities import SECONDS_TO_TARGET as SECONDS_TO_TARGET
from lightning_perf.report.quantities import TRAIN_SECONDS as TRAIN_SECONDS
from lightning_perf.report.quantities import Quantity as Quantity
from lightning_perf.report.result import Report as Report
from lightning_perf.report.result import Run as Run
from lightning_perf.report.sections import Plot as Plot
from lightning_perf.report.sections import Section as Section
from lightning_perf.report.sections import Series as Series

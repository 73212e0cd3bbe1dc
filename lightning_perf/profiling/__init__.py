"""Where the time of a training goes: phases, steps, FLOPs, the machine's roofline, and advice from the numbers."""

from lightning_perf.profiling.advice import Advice as Advice
from lightning_perf.profiling.advice import Evidence as Evidence
from lightning_perf.profiling.advice import advise as advise
from lightning_perf.profiling.phases import PhaseClock as PhaseClock
from lightning_perf.profiling.phases import phase_of as phase_of
from lightning_perf.profiling.profile_report import ProfileReport as ProfileReport

"""Contention on injected readers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lightning_perf.measuring import Contention, watch_contention


def test_differences_between_the_two_ends_are_recorded() -> None:
    clock, cpu = iter([100.0, 110.0]), iter([5.0, 14.0])
    load, ticks, switches = iter([0.5, 3.0]), iter([(10, 1000), (60, 2000)]), iter([7, 27])
    with watch_contention(
        clock=lambda: next(clock),
        cpu_clock=lambda: next(cpu),
        load_average=lambda: next(load),
        processor_ticks=lambda: next(ticks),
        involuntary_switches=lambda: next(switches),
        cores=4,
    ) as watch:
        pass
    assert watch.result == Contention(10.0, 9.0, 4, load_average=3.0, steal_share=0.05, involuntary_switches=20)


def test_a_system_that_tells_nothing_is_unknown_not_quiet() -> None:
    with watch_contention(
        load_average=lambda: None, processor_ticks=lambda: None, involuntary_switches=lambda: None
    ) as watch:
        pass
    assert (watch.result.load_average, watch.result.steal_share, watch.result.involuntary_switches) == (
        None,
        None,
        None,
    )
    assert watch.result.sentence() == "This system does not tell whether the machine was busy."


def test_the_result_is_there_after_an_exception_and_not_before() -> None:
    watch = watch_contention()
    with pytest.raises(RuntimeError, match="after the with block"):
        _ = watch.result

    def fail_inside() -> None:
        with watch:
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail_inside()
    assert watch.result.wall_seconds >= 0


@pytest.mark.parametrize(
    ("contention", "words"),
    [
        (Contention(10.0, 20.0, 2, load_average=2.9, steal_share=0.0, involuntary_switches=100), "was quiet"),
        (
            Contention(10.0, 10.0, 2, load_average=2.9),
            "load average 2.9 of which this process explains 1.0, on 2 cores",
        ),
        (Contention(10.0, 10.0, 2, steal_share=0.12), "12% of the processor time stolen"),
        (Contention(10.0, 10.0, 2, involuntary_switches=3000), "interrupted 300 times per second"),
        (Contention(0.0, 0.0, 2, load_average=0.5, involuntary_switches=0), "was quiet"),
    ],
)
def test_the_sentence_names_what_disturbed(contention: Contention, words: str) -> None:
    assert words in contention.sentence()
    assert ("was busy" in contention.sentence()) is (words != "was quiet")


def test_the_processor_time_of_ended_children_is_our_own() -> None:
    script = "import time\nwhile time.process_time() < 0.3: pass"
    with watch_contention() as watch:
        subprocess.run([sys.executable, "-c", script], check=True)
    # The system counts children in ticks, so the sum may be short by a few of them.
    assert watch.result.cpu_seconds >= 0.2

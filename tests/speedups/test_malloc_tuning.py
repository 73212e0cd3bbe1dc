"""MallocTuning: page faults counted in a process of its own, memory given back, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

import lightning_perf as lp
from lightning_perf.speedups import malloc_tuning
from tests.contract.modules import images, make

COUNT = """
import resource, sys, torch
from lightning_perf.measuring import rss_bytes
from lightning_perf.speedups.malloc_tuning import release_heap, retain_heap

def faults(rounds=20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        blocks = [torch.ones(2 ** 21) for _ in range(8)]
        del blocks
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // rounds

stock = faults()
retain_heap(1)
retain_heap(2)
faults(2)
kept = faults()
held = rss_bytes()
release_heap(1)
still = faults()
release_heap(2)
print(stock, kept, still, held - rss_bytes())
"""


@pytest.mark.skipif(malloc_tuning.why_not({}) is not None, reason="this system's allocator is not glibc's")
def test_faults_disappear_and_memory_comes_back() -> None:
    """64 MB a round: 16,384 faults of one page in stock malloc, fewer where the kernel maps several pages at once."""
    out = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    stock, kept, still, returned = map(int, out.stdout.split())
    assert stock > 200, f"stock malloc keeps the blocks by itself here: {stock} faults a round, nothing to compare with"
    assert kept < stock / 20
    assert still < stock / 20
    assert returned > 32 * 2**20


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"LD_PRELOAD": "libjemalloc.so.2"}, "libjemalloc"),
        ({"MALLOC_TRIM_THRESHOLD_": "1"}, "MALLOC_TRIM_THRESHOLD_ is set by the user"),
        ({"GLIBC_TUNABLES": "glibc.malloc.top_pad=1"}, "GLIBC_TUNABLES is set by the user"),
    ],
)
def test_the_users_settings_are_left_alone(
    environment: dict[str, str], words: str, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning.pytorch as ns

    for name, value in environment.items():
        monkeypatch.setitem(malloc_tuning.os.environ, name, value)
    monkeypatch.setattr(malloc_tuning, "retain_heap", lambda holder: pytest.fail("tuned all the same"))
    callback = lp.MallocTuning()
    ns.Trainer(**quiet, max_epochs=1, callbacks=[callback]).fit(make("plain", ns), images())
    assert words in callback.messages[0]


def test_other_systems_and_devices(quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning.pytorch as ns

    monkeypatch.setattr(malloc_tuning, "_glibc", lambda: None)
    callback = lp.MallocTuning()
    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[callback])
    trainer.fit(make("plain", ns), images())
    assert callback.messages == ["MallocTuning: this system's allocator is not glibc's; nothing was changed."]
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("meta"))
    callback.engage(trainer, None, "fit")
    assert "runs on meta" in callback.messages[-1]

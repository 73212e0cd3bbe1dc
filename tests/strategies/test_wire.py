"""What the kernel counts on the link between two hosts, beside the formula."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import links
from lightning_perf.strategies.compression import bytes_on_the_wire
from tests.strategies.wire_worker import PERIOD, STRATEGIES

REASON = links.why_not()
pytestmark = [
    pytest.mark.ddp,
    pytest.mark.slow,  # ten seconds of processes: make test-all
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]
SIZES = (512 * 512, 512)


def test_bytes_that_leave_a_host_are_those_of_the_formula(tmp_path: Path) -> None:
    """Beside them travel headers (66 of 9,000), notices, the barriers of the count, and questions about SIGTERM."""
    out = tmp_path / "out.json"
    with links.hosts() as pair:
        links.torchrun(pair, "tests.strategies.wire_worker", str(out), seconds=150)
    found = json.loads(out.read_text())
    expected = {name: bytes_on_the_wire(None, SIZES, 2) for name in STRATEGIES}
    expected |= {f"perf_ddp_{name}": bytes_on_the_wire(name, SIZES, 2) for name in ("bf16", "int8")}
    expected["perf_local_sgd"] = (expected["ddp"] + expected["perf_ddp_int8"]) / PERIOD  # momentum takes a byte too
    for name in STRATEGIES:
        assert 0 < found[name] / expected[name] - 1 < 0.02, (name, found, expected)

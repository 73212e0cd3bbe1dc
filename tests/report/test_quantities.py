"""How quantities are written."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lightning_perf.report import (
    FINAL_ACCURACY,
    FINAL_METRIC,
    PEAK_MEMORY,
    SAMPLES_PER_SECOND,
    SECONDS_TO_TARGET,
    Quantity,
)


@pytest.mark.parametrize(
    ("quantity", "value", "text"),
    [
        (SAMPLES_PER_SECOND, 12345.6, "12,346 samples/s"),
        (SECONDS_TO_TARGET, 12.34, "12.3 s"),
        (PEAK_MEMORY, 123_456_789.0, "123 MB"),
        (FINAL_ACCURACY, 0.93456, "93.46%"),
        (dataclasses.replace(FINAL_METRIC, label="val_f1"), 0.93456, "0.9346"),
    ],
)
def test_text(quantity: Quantity, value: float, text: str) -> None:
    assert quantity.text(value) == text


@pytest.mark.parametrize("wrong", [{"better": "more"}, {"compare": "quotient"}, {"kind": "time"}])
def test_unknown_words_are_refused_with_the_known_ones(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        Quantity("k", "label", "s", **wrong)

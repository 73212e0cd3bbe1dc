"""A report as strict JSON and back, without losing a bit."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_perf.report.result import Report

_FORMAT = "lightning-perf report 1"
# JSON has no NaN and no infinity; they travel as {"$float": "nan"}, so that other readers can parse the file too.
_TAG = "$float"


def dumps(value: Any, indent: int | None = None) -> str:
    """Plain containers as strict JSON; numbers that are not finite travel tagged.

    Example::

        >>> loads(dumps([1.5, float("inf")]))
        [1.5, inf]
    """
    return json.dumps(_tagged(value), allow_nan=False, ensure_ascii=False, indent=indent)


def loads(text: str) -> Any:
    """What :func:`dumps` wrote.

    Raises:
        ValueError: not JSON.
    """
    return json.loads(text, object_hook=lambda item: float(item[_TAG]) if item.keys() == {_TAG} else item)


def encode(report: Report) -> str:
    """The report as JSON text: one line per field, and one per run."""

    fields = {"format": _FORMAT, **asdict(report)}
    runs = ",\n".join(f"  {dumps(run)}" for run in fields.pop("runs"))
    lines = [f" {dumps(name)}: {dumps(value)}" for name, value in fields.items()]
    return "{\n" + ",\n".join([*lines, f' "runs": [\n{runs}\n ]']) + "\n}\n"


def decode(text: str) -> dict[str, Any]:
    """The fields of a report, as plain containers.

    Raises:
        ValueError: not JSON, or another format.
    """
    data = loads(text)
    if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
        raise ValueError(f"this is no report: it must be a JSON object whose 'format' is {_FORMAT!r}")
    return data


def _tagged(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tagged(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tagged(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_TAG: str(value)}
    return value

"""The table of presets: what each name of a strategy switches on, and what it promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from lightning_perf.host import MisconfigurationException

Compression: TypeAlias = Literal["bf16", "int8"]


@dataclass(frozen=True)
class Preset:
    """One named strategy.

    ``promise``: ``"exact"`` ends bit for bit where ``strategy="ddp"`` ends (with more than two processes
    ``perf_ddp_overlap`` adds the same gradients in another order), ``"near"`` rounds gradients on their way, and
    ``"changes"`` is another way of training. ``plain``: none of the levers. ``tries``: picks one of the others by trials.
    """

    name: str
    promise: Literal["exact", "near", "changes"]
    description: str
    static_graph: bool = False
    probes_buckets: bool = False
    compression: Compression | None = None
    local: bool = False
    plain: bool = False
    tries: bool = False


_ROWS = (
    Preset("perf_ddp", "exact", "DDP without the collectives that change nothing"),
    Preset("perf_ddp_static", "exact", "perf_ddp for a graph that never changes", static_graph=True),
    Preset("perf_ddp_overlap", "exact", "perf_ddp with bucket sizes that suit the link", probes_buckets=True),
    Preset("perf_ddp_bf16", "near", "perf_ddp with gradients sent as bfloat16", compression="bf16"),
    Preset("perf_ddp_int8", "near", "perf_ddp with gradients sent as int8 with error feedback", compression="int8"),
    Preset(
        "perf_local_sgd", "changes", "every process trains by itself; weights are averaged now and then", local=True
    ),
    Preset("perf_ddp_auto", "exact", "ddp, or the preset that trials at the start show to be faster", tries=True),
)

PRESETS = {row.name: row for row in _ROWS}
#: What ``perf_ddp_auto`` stays with unless a preset is faster; not a name of its own, since Lightning has it.
PLAIN = Preset("ddp", "exact", "Lightning's own DDP", plain=True)
#: The candidates of ``perf_ddp_auto``, from the one that changes least to the one that changes most.
POOLS = {
    "exact": (PLAIN, *(row for row in _ROWS if row.promise == "exact" and not row.tries)),
    "near": (PLAIN, *(row for row in _ROWS if row.promise in ("exact", "near") and not row.tries)),
}


def preset_called(name: str) -> Preset:
    """The preset of that name.

    Raises:
        MisconfigurationException: if there is none.
    """
    if name not in PRESETS:
        raise MisconfigurationException(f"preset={name!r} is unknown; the presets are {', '.join(PRESETS)}.")
    return PRESETS[name]


def pool_called(allow: str) -> tuple[Preset, ...]:
    """The candidates that ``allow`` admits.

    Raises:
        MisconfigurationException: if there is no such pool.
    """
    if allow not in POOLS:
        raise MisconfigurationException(
            f"allow={allow!r} is unknown; use one of {', '.join(map(repr, POOLS))}. What changes training is never tried."
        )
    return POOLS[allow]

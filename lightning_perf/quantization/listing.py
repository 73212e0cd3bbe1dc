"""The account of a prepared module: every layer with what became of it, and the share of the work that is quantized."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightning_perf.quantization.layers import Layer, Preparation, records
from lightning_perf.quantization.prepare import preparation
from lightning_perf.report import Plot, Section, Series


@dataclass(frozen=True)
class Entry:
    """One layer, or one operation outside of all layers, whose name then stands in parentheses.

    ``quantized`` says whether it computes with rounded weights, ``note`` how or why not, ``macs`` its multiplications and
    additions in the first step (None before that).
    """

    name: str
    quantized: bool
    note: str
    macs: int | None


def entries(module: nn.Module) -> list[Entry]:
    """Every layer of a prepared module, quantized or not, and every costly operation outside of layers.

    Example::

        >>> from lightning_perf.quantization.prepare import prepare
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> _ = prepare(net, "int8-weight-only", ignore=["1"])
        >>> [(entry.name, entry.quantized, entry.note) for entry in entries(net)]
        [('0', True, 'int8-weight-only'), ('1', False, 'it is ignored')]
    """
    shared = preparation(module)
    if shared is None:
        return []
    seen = any(shared.watched.values())
    found = [_entry(name, layer, shared, seen) for name, _, layer in records(module)]
    found += [
        Entry(name, False, reason, shared.macs.get(name, 0) if seen else None) for name, reason in shared.left.items()
    ]
    found += [
        Entry(name, False, "it is computed outside of layers", macs)
        for name, macs in shared.macs.items()
        if name.startswith("(")
    ]
    return found


def _entry(name: str, layer: Layer, shared: Preparation, seen: bool) -> Entry:
    macs = shared.macs.get(name, 0) if seen else None
    if not layer.active:
        return Entry(name, False, layer.reason or "the metric needs it in float", macs)
    if seen and not layer.known and not shared.observing:
        return Entry(name, False, _why_unknown(layer, macs), macs)
    note = layer.scheme.name
    if layer.kind.name == "recurrent":
        note += ", weights only"
    elif layer.kind.name == "attention" and layer.scheme.activations != "none":
        note += ", of the output projection only the weight"
    if layer.norm is not None:
        note += ", its batch norm folded"
    elif layer.unfolded:
        note += f", its batch norm not folded because {layer.unfolded}"
    return Entry(name, True, note, macs)


def _why_unknown(layer: Layer, macs: int | None) -> str:
    if any(int(layer.shared.ranges.broken[slot]) for slot in layer.slots.values()):
        return "its inputs were not finite"
    if macs:
        return f"its forward was not given {', '.join(layer.slots)} first, as tensors of floating-point numbers"
    return "no batch has reached it"


def share_quantized(found: list[Entry]) -> float | None:
    """Share of all multiplications and additions that quantized layers do; None where none were counted."""
    total = sum(entry.macs or 0 for entry in found)
    return sum(entry.macs or 0 for entry in found if entry.quantized) / total if total else None


def lines(found: list[Entry]) -> list[str]:
    """What a user wants to be told: how much is quantized, and what is not, by reason."""
    quantized = [entry for entry in found if entry.quantized]
    share = share_quantized(found)
    of_work = "" if share is None else f", {share:.1%} of the multiplications of the first step"
    folded = sum("its batch norm folded" in entry.note for entry in quantized)
    told = [f"{len(quantized)} layers quantized{of_work}" + (f"; {folded} batch norms folded." if folded else ".")]
    reasons: dict[str, list[str]] = {}
    for entry in found:
        if not entry.quantized:
            reasons.setdefault(entry.note, []).append(entry.name)
    return told + [f"left in float, because {reason}: {', '.join(names)}." for reason, names in reasons.items()]


def section(module: nn.Module) -> Section:
    """The account as a part of a report."""
    found = entries(module)
    total = sum(entry.macs or 0 for entry in found) or 1
    rows = [
        (
            entry.name,
            "yes" if entry.quantized else "no",
            "" if entry.macs is None else f"{entry.macs / total:.1%}",
            entry.note if entry.quantized else f"left in float, because {entry.note}",
        )
        for entry in found
    ]
    shared = preparation(module)
    plots = [
        Plot(
            "How much worse the metric is with only one group of layers quantized",
            [Series(name, [(0.0, value)], kind="bar") for name, value in groups.items()],
            x=label,
        )
        for label, groups in (shared.sensitivity if shared else {}).items()
    ]
    headers = ("layer", "quantized", "share of the work", "how, or why not")
    return Section("Quantized layers", lines(found)[:1], headers, rows, plots)

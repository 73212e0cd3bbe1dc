"""Which layers must stay in float for a metric to stay within its budget: a search over groups of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

_MOST = 24  # groups that are measured one by one

#: How much worse the metric is than in float while exactly these groups are quantized.
Drop = Callable[[Set[str]], float]


@dataclass(frozen=True)
class Found:
    """What a search found: the groups to keep in float, the drop that is left, and the drop of each group alone."""

    kept: tuple[str, ...]
    drop: float
    alone: dict[str, float]


def keep_fewest(groups: Sequence[str], drop: Drop, budget: float) -> Found:
    """The fewest groups in float with a drop of at most ``budget``, by the order of what each costs alone.

    If everything quantized is within the budget, nothing else is measured. Otherwise each group is quantized alone, those
    that cost most are kept in float, as many as it takes (by bisection), and of these each is then tried once more, the
    cheapest first.

    Example::

        >>> costs = {"stem": 3.0, "body": 0.1, "head": 0.5}
        >>> found = keep_fewest(list(costs), lambda groups: sum(costs[name] for name in groups), budget=0.7)
        >>> found.kept, round(found.drop, 6)
        (('stem',), 0.6)
    """
    everything = drop(set(groups))
    if everything <= budget:
        return Found((), everything, {})
    alone = {name: drop({name}) for name in groups}
    order = sorted(groups, key=lambda name: -alone[name])
    measured: dict[frozenset[str], float] = {frozenset(): everything, frozenset(groups): 0.0}

    def left(kept: Set[str]) -> float:
        key = frozenset(kept)
        if key not in measured:
            measured[key] = drop(set(groups) - key)
        return measured[key]

    low, high = 0, len(order)  # keeping `low` does not do, keeping `high` does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if left(set(order[:middle])) <= budget else (middle, high)
    kept = set(order[:high])
    for name in reversed(order[: high - 1]):
        if left(kept - {name}) <= budget:
            kept.remove(name)
    return Found(tuple(name for name in groups if name in kept), left(kept), alone)


def grouped(layers: Sequence[str], most: int = _MOST) -> dict[str, tuple[str, ...]]:
    """Layers in at most ``most`` groups: each alone if there are few, otherwise by what contains them, or by neighbourhood.

    Example::

        >>> grouped(["a.0", "a.1", "b"], most=2)
        {'a': ('a.0', 'a.1'), 'b': ('b',)}
    """
    depth = max(name.count(".") for name in layers) + 1
    for kept in range(depth, 0, -1):
        groups: dict[str, list[str]] = {}
        for name in layers:
            groups.setdefault(".".join(name.split(".")[:kept]), []).append(name)
        if len(groups) <= most and (kept == depth or len(groups) > most // 4):
            return {name: tuple(members) for name, members in groups.items()}
    size = -(-len(layers) // most)
    chunks = [tuple(layers[start : start + size]) for start in range(0, len(layers), size)]
    return {chunk[0] if len(chunk) == 1 else f"{chunk[0]} to {chunk[-1]}": chunk for chunk in chunks}


def budget_of(max_drop: float | str, reference: float) -> float:
    """The largest drop, in units of the metric.

    Raises:
        ValueError: neither a number of 0 or more nor a percentage such as ``"0.5%"``.

    Example::

        >>> budget_of("0.5%", 200.0), budget_of(0.002, 0.9)
        (1.0, 0.002)
    """
    text = max_drop.strip() if isinstance(max_drop, str) else max_drop
    relative = isinstance(text, str) and text.endswith("%")
    try:
        number = float(text[:-1] if isinstance(text, str) and relative else text)
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise ValueError(
            f"max_drop={max_drop!r} must be a drop of the metric in its own units, such as 0.002, or a percentage of its "
            "value in float, such as '0.5%'."
        )
    return number / 100 * abs(reference) if relative else number

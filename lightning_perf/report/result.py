"""The one result type: what was run, what was measured, and how the variants compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lightning_perf import hardware
from lightning_perf.measuring import Interval, paired_difference, paired_ratio
from lightning_perf.report import html, json_text, terminal
from lightning_perf.report.files import check_writable
from lightning_perf.report.quantities import Quantity
from lightning_perf.report.sections import Section

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Run:
    """One run of one variant: its quantities, its curves over seconds, and raw samples.

    ``position`` is its place in the order in which the runs took place. A quantity that is None, absent or not finite
    was not measured; ``missing`` says why, and so does ``error`` for a run that failed. Curves are ``(seconds, value)``.
    Runs of two variants with the same seed form a pair. ``phases`` are seconds per step, where a profiler was beside.
    ``monitored`` are metrics that the Trainer's checkpoint, early stopping or scheduler watched: ``min`` or ``max`` by name.

    Example::

        >>> Run("fast", seed=0, quantities={"train_seconds": 12}).quantities["train_seconds"]
        12.0
    """

    variant: str
    seed: int
    position: int = 0
    quantities: Mapping[str, float | None] = field(default_factory=dict)
    curves: Mapping[str, Points] = field(default_factory=dict)
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    monitored: Mapping[str, Literal["min", "max"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        quantities = {key: None if value is None else float(value) for key, value in self.quantities.items()}
        curves = {key: tuple((float(x), float(y)) for x, y in points) for key, points in self.curves.items()}
        samples = {key: tuple(float(value) for value in values) for key, values in self.samples.items()}
        for name, value in (
            ("quantities", quantities),
            ("curves", curves),
            ("samples", samples),
            ("notes", tuple(self.notes)),
            ("missing", dict(self.missing)),
            ("phases", dict(self.phases)),
            ("monitored", dict(self.monitored)),
        ):
            object.__setattr__(self, name, value)

    def value(self, key: str) -> float | None:
        """The measured value in base units; None where it was not measured or is not finite."""
        value = self.quantities.get(key)
        return value if value is not None and math.isfinite(value) else None

    def why_missing(self, key: str) -> str:
        """The reason that `value` is None."""
        if key in self.missing:
            return self.missing[key]
        if self.error is not None:
            return f"the run failed: {(self.error.strip().splitlines() or ['no reason known'])[0]}"
        value = self.quantities.get(key)
        return "this run did not record it" if value is None else f"its value is {value}"


@dataclass(frozen=True)
class Report:
    """Runs of several variants beside a named baseline; renders as text, JSON, HTML, in a notebook, and as YAML.

    ``configs`` maps a variant to the path of the configuration that reproduces it, ``resolution`` is what a comparison
    of equals showed, ``sections`` are further tables and plots below. ``machine``, ``versions`` and ``created`` describe
    this process unless given.

    Raises:
        ValueError: no runs, an unknown baseline, two runs of one variant with one seed, or a repeated quantity.

    Example::

        >>> speed = Quantity("speed", "speed", "samples/s", better="higher", digits=0)
        >>> runs = [Run(name, seed, quantities={"speed": value}) for name, seed, value in
        ...         [("plain", 0, 100), ("fast", 0, 200), ("plain", 1, 110), ("fast", 1, 220), ("fast", 2, 210),
        ...          ("plain", 2, 105)]]
        >>> print(Report("demo", "plain", runs, [speed]).ratio("speed", "fast"))
        2.00x [2.00, 2.00]
    """

    title: str
    baseline: str
    runs: Sequence[Run]
    quantities: Sequence[Quantity]
    machine: Mapping[str, str | int | float | None] = field(default_factory=hardware.machine)
    versions: Mapping[str, str] = field(default_factory=hardware.versions)
    configs: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    resolution: Interval | None = None
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    sections: Sequence[Section] = ()

    def __post_init__(self) -> None:
        for name in ("runs", "quantities", "notes", "sections"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("machine", "versions", "configs"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        self._check()

    def _check(self) -> None:
        if self.baseline not in self.variants:
            raise ValueError(f"baseline {self.baseline!r} has no run; the variants are {list(self.variants)}")
        seen: set[tuple[str, int]] = set()
        for run in self.runs:
            if (run.variant, run.seed) in seen:
                raise ValueError(
                    f"two runs of variant {run.variant!r} with seed {run.seed}: runs are paired by seed, so give each "
                    "repetition a seed of its own"
                )
            seen.add((run.variant, run.seed))
        keys = [quantity.key for quantity in self.quantities]
        if len(set(keys)) != len(keys):
            raise ValueError(f"a quantity is listed twice: {keys}")

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the variants, the baseline first, the others in the order of their runs."""
        names = dict.fromkeys(run.variant for run in self.runs)
        first = [self.baseline] if self.baseline in names else []
        return (*first, *(name for name in names if name != self.baseline))

    def quantity(self, key: str) -> Quantity:
        """The quantity of that key.

        Raises:
            ValueError: unknown key; the message lists the known ones.
        """
        for quantity in self.quantities:
            if quantity.key == key:
                return quantity
        raise ValueError(f"unknown quantity {key!r}; this report has {[quantity.key for quantity in self.quantities]}")

    def runs_of(self, variant: str) -> tuple[Run, ...]:
        """The runs of one variant, in the order of their seeds.

        Raises:
            ValueError: unknown variant; the message lists the known ones.
        """
        if variant not in self.variants:
            raise ValueError(f"unknown variant {variant!r}; this report has {list(self.variants)}")
        return tuple(sorted((run for run in self.runs if run.variant == variant), key=lambda run: run.seed))

    def values(self, key: str, variant: str) -> tuple[float | None, ...]:
        """Values of one quantity in base units, one per run in the order of seeds; None where not measured."""
        self.quantity(key)
        return tuple(run.value(key) for run in self.runs_of(variant))

    def left_out(self, key: str, variant: str) -> dict[int, str]:
        """Seeds that form no pair between the variant and the baseline, each with the reason."""
        return self._pairing(key, variant, positive=self.quantity(key).compare == "ratio")[1]

    def ratio(self, key: str, variant: str) -> Interval | None:
        """How many times better than the baseline, over pairs of equal seed; None without a pair.

        Above 1 the variant is better: where lower is better, this is baseline over variant. What is neither better
        higher nor lower is variant over baseline.
        """
        pairs = list(self._pairing(key, variant, positive=True)[0].values())
        if not pairs or variant == self.baseline:
            return None
        mine, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        lower = self.quantity(key).better == "lower"
        return paired_ratio(theirs, mine) if lower else paired_ratio(mine, theirs)

    def difference(self, key: str, variant: str) -> Interval | None:
        """Variant minus baseline in base units, over pairs of equal seed; None without a pair."""
        pairs = list(self._pairing(key, variant, positive=False)[0].values())
        if not pairs or variant == self.baseline:
            return None
        return paired_difference([pair[0] for pair in pairs], [pair[1] for pair in pairs])

    def comparison(self, key: str, variant: str) -> Interval | None:
        """`ratio` or `difference`, as the quantity asks."""
        by_ratio = self.quantity(key).compare == "ratio"
        return self.ratio(key, variant) if by_ratio else self.difference(key, variant)

    def _pairing(self, key: str, variant: str, positive: bool) -> tuple[dict[int, tuple[float, float]], dict[int, str]]:
        """Pairs (variant, baseline) by seed, and the reasons of the seeds without one."""
        self.quantity(key)
        sides = [{run.seed: run for run in self.runs_of(name)} for name in (variant, self.baseline)]
        pairs: dict[int, tuple[float, float]] = {}
        reasons: dict[int, str] = {}
        for seed in sorted(sides[0].keys() | sides[1].keys()):
            found: list[float] = []
            for name, side in zip((variant, self.baseline), sides, strict=True):
                value = side[seed].value(key) if seed in side else None
                if value is None:
                    why = side[seed].why_missing(key) if seed in side else "there is no run with this seed"
                    reasons.setdefault(seed, f"{name}: {why}")
                elif positive and value <= 0:
                    reasons.setdefault(seed, f"{name}: {value} has no ratio")
                else:
                    found.append(value)
            if len(found) == 2:
                pairs[seed] = (found[0], found[1])
        return pairs, reasons

    def table(self, width: int | None = None) -> str:
        """The report as text: one row per quantity, each variant beside the baseline."""
        return terminal.text(self, width)

    def __str__(self) -> str:
        return self.table()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from terminal.renderables(self)

    def to_json(self, path: str | Path | None = None) -> str:
        """The whole report as JSON, raw samples included; also written to ``path`` if given.

        Raises:
            UnwritableReportError: the file cannot be written; nothing has been rendered then.
        """
        target = None if path is None else check_writable(path)
        content = json_text.encode(self)
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8")
        return content

    @classmethod
    def from_json(cls, source: str | Path) -> Report:
        """Read back what `to_json` wrote, from a path or from the text itself.

        Raises:
            ValueError: the text is no report of this format.
        """
        is_text = isinstance(source, str) and source.lstrip().startswith("{")
        data = json_text.decode(str(source) if is_text else Path(source).read_text(encoding="utf-8"))
        runs = [Run(**run) for run in data.pop("runs")]
        quantities = [Quantity(**quantity) for quantity in data.pop("quantities")]
        interval = data.pop("resolution")
        sections = [Section(**section) for section in data.pop("sections", ())]
        return cls(
            runs=runs,
            quantities=quantities,
            resolution=None if interval is None else Interval(**interval),
            sections=sections,
            **data,
        )

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page, with plots where matplotlib is installed; returns its path.

        Raises:
            UnwritableReportError: the file cannot be written; nothing has been rendered then.
        """
        target = check_writable(path)
        content = html.page(self)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        return html.fragment(self)

    def to_yaml(self, path: str | Path, variant: str) -> Path:
        """Copy the configuration that reproduces a variant; returns its new path.

        Raises:
            ValueError: no configuration is known for this variant; the message lists those that have one.
            UnwritableReportError: the file cannot be written.
        """
        if variant not in self.configs:
            raise ValueError(f"no configuration is known for {variant!r}; known are those of {sorted(self.configs)}")
        target = check_writable(path)
        content = Path(self.configs[variant]).read_text(encoding="utf-8")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
        return target

"""What races: arguments of :class:`OptimizerFactory` as data, and the config in which each of them is one line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_perf.optim.callback import OptimizerFactory
from lightning_perf.optim.registry import get_optimizer, list_optimizers

BASELINE = "own optimizer"
_CLASS_PATH = "lightning_perf.OptimizerFactory"
_ONE_CYCLE = {"schedule": "one_cycle", "warmup": 0.3, "options": {"nesterov": True}}
#: In the order of their claim on a small budget: different kinds first, then neighbours in learning rate and schedule.
_DEFAULTS: tuple[dict[str, Any], ...] = (
    {"optimizer": "auto"},
    {"optimizer": "adamw", "lr": 3e-3, "schedule": "warmup_linear"},
    {"optimizer": "sgd", "lr": 0.1, **_ONE_CYCLE},
    {"optimizer": "adamw", "lr": 1e-3, "schedule": "warmup_linear"},
    {"optimizer": "muon", "lr": 3e-3, "schedule": "warmup_linear"},
    {"optimizer": "adamw", "lr": 1e-3, "schedule": "constant"},
    {"optimizer": "nadamw", "lr": 1.9e-3, "schedule": "warmup_cosine"},
    {"optimizer": "lion", "lr": 3e-4, "schedule": "warmup_linear"},
    {"optimizer": "schedule_free_adamw", "lr": 1.5e-2},
    {"optimizer": "adamw", "lr": 1e-2, "schedule": "warmup_linear"},
    {"optimizer": "adamw", "lr": 3e-4, "schedule": "warmup_linear"},
    {"optimizer": "sgd", "lr": 0.03, **_ONE_CYCLE},
    {"optimizer": "schedule_free_adamw", "lr": 1.5e-3},
    {"optimizer": "muon", "lr": 1e-2, "schedule": "warmup_linear"},
    {"optimizer": "adamw", "lr": 3e-3, "schedule": "warmup_cosine"},
    {"optimizer": "adamw", "lr": 3e-3, "schedule": "constant"},
    {"optimizer": "nadamw", "lr": 6e-3, "schedule": "warmup_cosine"},
    {"optimizer": "lion", "lr": 1e-3, "schedule": "warmup_linear"},
)
#: A module whose own learning rate is this part of the usual one, or less, fine-tunes: the defaults are scaled down to it.
_FINE_TUNING = 0.1
# The name of a candidate shows the value alone for these, ``name=value`` for the others.
_PLAIN = ("optimizer", "schedule")


@dataclass(frozen=True)
class Candidate:
    """One entry of a race: its name in the report, and the arguments of its factory (None: the module's own optimizer)."""

    name: str
    arguments: Mapping[str, Any] | None

    def factory(self) -> OptimizerFactory | None:
        """A new callback."""
        return None if self.arguments is None else OptimizerFactory(**self.arguments)

    @property
    def slug(self) -> str:
        """The name as part of a file's."""
        return re.sub(r"[^\w.-]+", "-", self.name).strip("-")


OWN = Candidate(BASELINE, None)


def default_candidates(lr_share: float | None = None) -> list[Candidate]:
    """The entries that race where the user names none, of the optimizers that are registered.

    Args:
        lr_share: the module's own learning rate as a part of what is usual for its optimizer; if it is a tenth or less,
            the module fine-tunes, and every learning rate here is scaled down alike.

    Example::

        >>> [candidate.name for candidate in default_candidates()][1:3]
        ['adamw lr=0.003 warmup_linear', 'sgd lr=0.1 one_cycle warmup=0.3 nesterov']
    """
    known = {row.name for row in list_optimizers()}
    known |= {"auto"} & {"auto" for name in known if name == "schedule_free_adamw"}
    chosen = [dict(arguments) for arguments in _DEFAULTS if arguments["optimizer"] in known]
    if lr_share is not None and 0 < lr_share <= _FINE_TUNING:
        for arguments in chosen:
            arguments["lr"] = float(f"{_usual_lr(arguments) * lr_share:.3g}")
    return _named(chosen)


def _usual_lr(arguments: Mapping[str, Any]) -> float:
    name = "schedule_free_adamw" if arguments["optimizer"] == "auto" else arguments["optimizer"]
    return float(arguments.get("lr") or get_optimizer(name).defaults["lr"])  # type: ignore[arg-type]


def given_candidates(optimizers: Sequence[str | Mapping[str, Any]]) -> list[Candidate]:
    """The entries that the user names: a name stands for its defaults, a mapping for the arguments of a factory.

    Lists under ``lr``, ``schedule``, ``weight_decay`` and ``warmup`` are a grid.

    Raises:
        ValueError: no entries, two equal ones, or arguments that :class:`OptimizerFactory` refuses.

    Example::

        >>> [one.name for one in given_candidates(["muon", {"optimizer": "adamw", "lr": [1e-3, 3e-3], "schedule": "wsd"}])]
        ['muon lr=0.003 warmup_linear', 'muon lr=0.01 warmup_linear', 'adamw lr=0.001 wsd', 'adamw lr=0.003 wsd']
    """
    expanded: list[dict[str, Any]] = []
    for entry in [optimizers] if isinstance(optimizers, (str, Mapping)) else optimizers:
        if isinstance(entry, str):
            rows = [dict(arguments) for arguments in _DEFAULTS if arguments["optimizer"] == entry]
            schedule = {} if entry.startswith("schedule_free") else {"schedule": "warmup_linear"}
            expanded += rows or [{"optimizer": entry, **schedule}]
        else:
            expanded += _grid(entry)
    if not expanded:
        raise ValueError(f"optimizers={optimizers!r} names no candidate; leave it out for the defaults.")
    found = _named(expanded)
    for candidate in found:
        try:
            candidate.factory()
        except TypeError as error:
            raise ValueError(f"{candidate.arguments!r} are no arguments of OptimizerFactory: {error}") from error
    names = [candidate.name for candidate in found]
    if len(set(names)) < len(names):
        raise ValueError(f"optimizers holds equal candidates: {names}; name each once.")
    return found


def _grid(entry: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    keys = [key for key in ("lr", "schedule", "weight_decay", "warmup") if isinstance(entry.get(key), (list, tuple))]
    for values in itertools.product(*(entry[key] for key in keys)):
        yield {**entry, **dict(zip(keys, values, strict=True))}


def _named(rows: Iterable[Mapping[str, Any]]) -> list[Candidate]:
    return [Candidate(_name(arguments), dict(arguments)) for arguments in rows]


def _name(arguments: Mapping[str, Any]) -> str:
    words = []
    for key, value in arguments.items():
        if key == "options":
            words += [option if value[option] is True else f"{option}={value[option]}" for option in value]
        elif key in _PLAIN:
            words.append(str(value))
        elif value is not None:
            words.append(f"{key}={value:g}" if isinstance(value, (int, float)) else f"{key}={value}")
    return " ".join(words)


def python_line(candidate: Candidate) -> str:
    """The callback as one writes it.

    Example::

        >>> python_line(given_candidates([{"optimizer": "adamw", "lr": 1e-3}])[0])
        "lp.OptimizerFactory('adamw', lr=0.001)"
    """
    if candidate.arguments is None:
        return "no callback"
    name, *rest = (f"{value!r}" if key == "optimizer" else f"{key}={value!r}" for key, value in _ordered(candidate))
    return f"lp.OptimizerFactory({', '.join([name, *rest])})"


def _ordered(candidate: Candidate) -> list[tuple[str, Any]]:
    arguments = candidate.arguments or {}
    return sorted(arguments.items(), key=lambda item: item[0] != "optimizer")


def config_with(config: str | Path, candidate: Candidate) -> str:
    """The user's LightningCLI config with the candidate's callback in it, in place of any ``OptimizerFactory``.

    Comments are not kept. Sections that the config keeps in files of their own are written out, since such paths are
    relative to the config.

    Raises:
        ValueError: the file is no config of ``lightning-perf fit``.
    """
    path = Path(config)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"config {str(path)!r} holds no mapping; give a YAML file that `lightning-perf fit` accepts.")
    for section, other in _elsewhere(path, content).items():
        content[section] = yaml.safe_load(other.read_text(encoding="utf-8"))
    if candidate.arguments is None:
        return yaml.safe_dump(content, sort_keys=False)
    trainer = content.setdefault("trainer", {}) or {}
    callbacks = trainer.get("callbacks") or []
    others = [one for one in (callbacks if isinstance(callbacks, list) else [callbacks]) if not _is_factory(one)]
    line = {"class_path": _CLASS_PATH, "init_args": dict(candidate.arguments)}
    content["trainer"] = {**trainer, "callbacks": [*others, line]}
    return yaml.safe_dump(content, sort_keys=False)


def holds_paths(config: str | Path) -> bool:
    """Whether the config keeps sections in files of their own, so that a copy of it elsewhere would not find them."""
    return bool(_elsewhere(Path(config), yaml.safe_load(Path(config).read_text(encoding="utf-8"))))


def _elsewhere(path: Path, content: Mapping[str, Any]) -> dict[str, Path]:
    """The files of those sections."""
    named = {section: content.get(section) for section in ("trainer", "model", "data")}
    files = {section: path.parent / other for section, other in named.items() if isinstance(other, str)}
    return {section: file for section, file in files.items() if file.is_file()}


def _is_factory(callback: Any) -> bool:
    path = callback.get("class_path", "") if isinstance(callback, Mapping) else callback
    return str(path).rpartition(".")[2] == OptimizerFactory.__name__

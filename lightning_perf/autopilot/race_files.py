"""What a race keeps on disk: its settings, one file per run, one config per candidate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_perf.autopilot.candidates import Candidate
from lightning_perf.report import Run, json_text

_FORMAT = "lightning-perf race 1"
_STATE = "race.json"


class RaceFiles:
    """The folder of one race, or nothing at all where there is none.

    Everything else about a race follows from what is kept here, so that a race that was interrupted goes on with the first
    run that has no file.

    Args:
        folder: where; None keeps nothing.
        settings: what the race was asked for.
        resume: go on with the race in this folder.

    Raises:
        ValueError: the folder holds a race and ``resume`` is False, or it holds a race with other settings.
    """

    def __init__(self, folder: str | Path | None, settings: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        path = self.folder / _STATE
        state = json_text.loads(json_text.dumps({"format": _FORMAT, "settings": dict(settings)}))
        if not path.exists():
            _write(path, json_text.dumps(state, indent=1))
        elif resume:
            self._check(json_text.loads(path.read_text(encoding="utf-8")), state["settings"])
        else:
            raise ValueError(f"folder {str(self.folder)!r} holds a race; go on with it (resume), or name another.")

    def _check(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        if found.get("format") != _FORMAT:
            raise ValueError(f"{str(self.folder)!r} is of another version ({found.get('format')}); use a new folder.")
        was = found["settings"]
        other = sorted(key for key in wanted.keys() | was.keys() if wanted.get(key) != was.get(key))
        if other:
            changes = ", ".join(f"{key}: {_short(was.get(key))} then, {_short(wanted.get(key))} now" for key in other)
            raise ValueError(f"the race in {str(self.folder)!r} has other settings ({changes}); use a new folder.")

    def run(self, rung: str, candidate: Candidate, seed: int) -> Run | None:
        """The run that was kept, if any."""
        path = self._run_path(rung, candidate, seed)
        if path is None or not path.exists():
            return None
        return Run(**json_text.loads(path.read_text(encoding="utf-8")))

    def keep_run(self, rung: str, candidate: Candidate, run: Run) -> None:
        """Write a run's file."""
        path = self._run_path(rung, candidate, run.seed)
        if path is not None:
            _write(path, json_text.dumps(asdict(run)))

    def keep_config(self, candidate: Candidate, text: str) -> Path:
        """Write a candidate's config; returns its path."""
        assert self.folder is not None, "a race of configs has a folder"
        path = self.folder / "configs" / f"{candidate.slug}.yaml"
        _write(path, text)
        return path

    def _run_path(self, rung: str, candidate: Candidate, seed: int) -> Path | None:
        return None if self.folder is None else self.folder / "runs" / f"{rung}_{candidate.slug}_seed{seed}.json"


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

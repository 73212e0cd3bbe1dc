"""What ``lightning-perf run`` adds to the Trainers of a script, and what it says about it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import lightning_perf
from lightning_perf.cli.short_names import CallbackSpec
from lightning_perf.host.trainer_door import at_every_trainer
from lightning_perf.strategies.replacement import replacement

#: Read by libraries when torch is imported, which a script can no longer precede.
_READ_AT_IMPORT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "KMP_AFFINITY", "OMP_PROC_BIND")


class Additions:
    """Callbacks and a strategy for every Trainer; every line about them is said once.

    Args:
        specs: callbacks, built anew for each Trainer.
        lossless: also those of :func:`lightning_perf.lossless`, but for classes among ``specs``.
        strategy: the preset to put in the place of ddp.
        words: the options of the command as they were given, for the ranks that a Trainer starts.
        say: what prints a line.
    """

    def __init__(
        self,
        specs: Sequence[CallbackSpec] = (),
        *,
        lossless: bool = False,
        strategy: str | None = None,
        words: Sequence[str] = (),
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.specs, self.lossless, self.strategy, self.words = tuple(specs), lossless, strategy, tuple(words)
        self.trainers = 0
        self.said: list[str] = []
        self._print = say or _to_stderr
        self._environment = read_at_import(os.environ)

    def install(self) -> Callable[[], None]:
        """From now on, add to every Trainer that is made; returns the function that ends it."""
        return at_every_trainer(self.callbacks, self.strategy_for, self.relaunch)

    def fresh(self) -> list[tuple[Any, str]]:
        """New callbacks, each with its words for a reader."""
        made: list[tuple[Any, str]] = [(spec.build(), str(spec)) for spec in self.specs]
        if self.lossless:
            named = {type(callback) for callback, _ in made}
            others = [callback for callback in lightning_perf.lossless() if type(callback) not in named]
            made += [(callback, f"{type(callback).__name__}()") for callback in others]
        return made

    def callbacks(self, namespace: ModuleType, given: list[Any]) -> list[Any]:
        """The callbacks of one Trainer: ours in front of those it was given, no class twice."""
        self._compare_environment()
        self.trainers += 1
        ours = self.fresh()
        doubled = [text for one, text in ours if any(isinstance(theirs, type(one)) for theirs in given)]
        added = [(one, text) for one, text in ours if text not in doubled]
        where = f"Trainer of {namespace.__name__}"
        if added:
            self.say(f"{where}: added {', '.join(text for _, text in added)}")
        if doubled:
            self.say(f"{where}: left out {', '.join(doubled)}, whose class the script gives it already")
        return [*(one for one, _ in added), *given]

    def strategy_for(self, namespace: ModuleType, asked: Any) -> Any:
        """The strategy of one Trainer."""
        if self.strategy is None:
            return asked
        used, words = replacement(namespace, asked, self.strategy)
        self.say(f"Trainer of {namespace.__name__}: {words}")
        return used

    def relaunch(self, command: Sequence[str]) -> list[str]:
        """Start a further rank through ``run`` as well: Lightning would start the bare script again.

        Example::

            >>> Additions(words=["--lossless"]).relaunch(["python", "train.py", "--lr", "1"])[1:]
            ['-m', 'lightning_perf', 'run', '--lossless', 'train.py', '--lr', '1']
        """
        interpreter, *rest = command
        return [interpreter, "-m", "lightning_perf", "run", *self.words, *rest]

    def finish(self) -> None:
        """Say so if nothing was added to anything."""
        if not self.trainers:
            self.say(
                "the script made no Trainer of lightning.pytorch or pytorch_lightning (Fabric makes none, and takes none of "
                "these callbacks); nothing was added."
            )

    def say(self, text: str) -> None:
        """One line, once."""
        if text not in self.said:
            self.said.append(text)
            self._print(f"lightning-perf run: {text}")

    def _compare_environment(self) -> None:
        if self.trainers:
            return  # Lightning itself sets some of them when it starts ranks
        changed = [name for name, value in read_at_import(os.environ).items() if self._environment[name] != value]
        if changed:
            self.say(
                f"the script sets {', '.join(changed)}, which is read when torch is imported; that was before the script. "
                "Set it in the shell."
            )


def read_at_import(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Variables that are read once, when torch is imported."""
    return {name: environment.get(name) for name in _READ_AT_IMPORT}


def _to_stderr(line: str) -> None:
    """On rank zero, beside Lightning's own lines; the script's standard output stays its own."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only  # pyright: ignore[reportPrivateImportUsage]

    if not getattr(rank_zero_only, "rank", 0):
        print(line, file=sys.stderr, flush=True)

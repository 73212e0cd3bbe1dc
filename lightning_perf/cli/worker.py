"""One run of a comparison in a process of its own; its result travels as a JSON file."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning_perf.autopilot.bystanders import keep_apart
from lightning_perf.autopilot.compare import stopwatch_for
from lightning_perf.autopilot.halving import Pace
from lightning_perf.autopilot.pacer import STAY_OUT, Pacer
from lightning_perf.cli.trainer_cli import PerfCLI, trainer_command
from lightning_perf.profiling.callback import ThroughputProfiler


class MeasuredCLI(PerfCLI):
    """``lightning-perf fit`` with a stopwatch beside the config's own callbacks."""

    job: dict[str, Any]

    def before_fit(self) -> None:
        """LightningCLI's hook: start measuring."""
        trainer: Any = self.trainer
        self.stopwatch = stopwatch_for(trainer, self.job["metric"], self.job["mode"], self.job["target"])
        self.profiler = ThroughputProfiler(flops=False, roofline=False) if self.job.get("phases") else None
        self.pacer = Pacer(Pace(**self.job["pace"])) if self.job.get("pace") else None
        keep_apart(trainer, Path(self.job["out"]).parent, () if self.pacer is None else STAY_OUT)
        ours = (self.stopwatch, self.pacer, self.profiler)
        trainer.callbacks[:0] = [one for one in ours if one is not None]

    def after_fit(self) -> None:
        """LightningCLI's hook: write the run and what the callbacks said."""
        trainer: Any = self.trainer
        measured = self.stopwatch.run(self.job["variant"], self.job["seed"], self.job["position"])
        others = [callback for callback in trainer.callbacks if callback is not self.profiler]
        said = tuple(line for callback in others for line in getattr(callback, "messages", ()))
        measured = replace(measured, notes=said)
        run = asdict(measured if self.pacer is None else self.pacer.finished(measured))
        if self.profiler is not None and self.profiler.has_report:
            run["phases"] = self.profiler.report.per_step()
        if trainer.is_global_zero:
            Path(self.job["out"]).write_text(json.dumps(run), encoding="utf-8")


def main(argument: str) -> None:
    """``argument`` is JSON: args, variant, seed, position, metric, mode, target, out; also phases and pace."""
    MeasuredCLI.job = json.loads(argument)
    arguments = ["fit", *MeasuredCLI.job["args"], f"--seed_everything={MeasuredCLI.job['seed']}"]
    trainer_command(arguments, cli_class=MeasuredCLI, save_config_callback=None)


if __name__ == "__main__":
    main(sys.argv[1])

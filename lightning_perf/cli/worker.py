"""One run of a comparison in a process of its own; its result travels as a JSON file."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_perf.autopilot.compare import monitored_metric
from lightning_perf.autopilot.stopwatch import Stopwatch


def main(argument: str) -> None:
    """``argument`` is JSON: args, variant, seed, position, metric, mode, target, out."""
    from lightning_perf.cli.main import trainer_command

    job = json.loads(argument)
    cli = trainer_command(["--seed_everything", str(job["seed"]), *job["args"]], run=False)
    trainer: Any = cli.trainer
    stopwatch = Stopwatch(job["metric"] or monitored_metric(trainer), job["mode"], job["target"])
    trainer.callbacks.insert(0, stopwatch)
    trainer.fit(cli.model, datamodule=cli.datamodule)
    said = [line for callback in trainer.callbacks for line in getattr(callback, "messages", ())]
    run = asdict(stopwatch.run(job["variant"], job["seed"], job["position"]))
    run["notes"] = said
    if trainer.is_global_zero:
        Path(job["out"]).write_text(json.dumps(run), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

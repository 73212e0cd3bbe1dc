"""The command ``lightning-perf`` and the LightningCLI behind its subcommands."""

from lightning_perf.cli.main import main as main
from lightning_perf.cli.trainer_cli import PerfCLI as PerfCLI

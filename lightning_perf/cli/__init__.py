"""The command ``lightning-perf`` and the LightningCLI behind its subcommands."""

from lightning_perf.cli.main import PerfCLI as PerfCLI
from lightning_perf.cli.main import main as main

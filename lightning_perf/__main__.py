"""``python -m lightning_perf``: the same commands as ``lightning-perf``."""

from lightning_perf.cli import main

if __name__ == "__main__":
    main()

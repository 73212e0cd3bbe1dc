"""One script per published number: ``python -m benchmarks.NAME``; results are files in ``benchmarks/results``."""

"""From a module to a folder that runs without it: runtimes, parity gate, latency, artefact."""

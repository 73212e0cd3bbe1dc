"""Every random number generator a training run draws from, captured and put back.

The state is made of tensors and plain containers, so that a checkpoint that holds it loads with ``weights_only=True``.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def capture_rng() -> dict[str, Any]:
    """State of torch (CPU; the current CUDA device if CUDA is in use), Python and, if imported, numpy."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, position, has_gauss, cached = numpy.random.get_state()
        state["numpy"] = (
            str(name),
            torch.from_numpy(keys.astype("int64")),
            int(position),
            int(has_gauss),
            float(cached),
        )
    return state


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put back what :func:`capture_rng` returned; a generator that is not in ``state`` is left alone."""
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    numpy = sys.modules.get("numpy")
    if "numpy" in state and numpy is not None:
        name, keys, position, has_gauss, cached = state["numpy"]
        numpy.random.set_state((name, keys.cpu().numpy().astype("uint32"), position, has_gauss, cached))


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Whatever is drawn inside leaves no trace outside."""
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)

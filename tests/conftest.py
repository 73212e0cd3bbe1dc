"""Shared by all tests: quiet Lightning, one thread, both namespaces."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch

NAMESPACES = {"lightning": lightning.pytorch, "pytorch_lightning": pytorch_lightning}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small modules are fastest on one thread, and sums then round the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_process_group() -> Iterator[None]:
    """A strategy that was tried with one process leaves its process group behind, which the next test must not meet."""
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """Keep Lightning's device lines out of the output; our own lines are read from ``callback.messages``."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)


@pytest.fixture(params=sorted(NAMESPACES))
def ns(request: pytest.FixtureRequest) -> ModuleType:
    """Both import paths of Lightning."""
    return NAMESPACES[request.param]


@pytest.fixture
def quiet(tmp_path: Any) -> dict[str, Any]:
    """Trainer arguments that write nothing but where told."""
    return {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests with a reason where there is no GPU."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch sees none here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)

"""The runs of the wild modules are shared by all tests of a session."""

from __future__ import annotations

import pytest

from tests.wild.runs import Runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every case plain and under every row, fitted when first asked for."""
    return Runs(tmp_path_factory.mktemp("wild"))

"""Silence for other people's lines and warnings, for the time of a block."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_level(level: int, *loggers: str) -> Iterator[None]:
    """From these loggers nothing below ``level``.

    Example::

        >>> with at_level(logging.ERROR, "chatty"):
        ...     logging.getLogger("chatty").isEnabledFor(logging.WARNING)
        False
    """
    named = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in named]
    for logger in named:
        logger.setLevel(max(level, logger.level))
    try:
        yield
    finally:
        for logger, before in zip(named, levels, strict=True):
            logger.setLevel(before)


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """No warnings, and from these loggers nothing below an error."""
    with at_level(logging.ERROR, *loggers), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

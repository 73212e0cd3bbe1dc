"""The two import paths of Lightning, and which of them a Trainer belongs to."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import lightning.pytorch
from lightning.fabric.utilities.exceptions import MisconfigurationException as _UnifiedMisconfiguration
from lightning_utilities.core import rank_zero

# Importing pytorch_lightning points the shared rank-zero logger at itself; a user of lightning.pytorch keeps theirs.
_logger, _was_imported = rank_zero.log, "pytorch_lightning" in sys.modules
import pytorch_lightning  # noqa: E402
from lightning_fabric.utilities.exceptions import MisconfigurationException as _StandaloneMisconfiguration  # noqa: E402

if not _was_imported:
    rank_zero.log = _logger

_NAMESPACES: dict[str, ModuleType] = {"lightning": lightning.pytorch, "pytorch_lightning": pytorch_lightning}


class MisconfigurationException(_UnifiedMisconfiguration, _StandaloneMisconfiguration):
    """A user's settings cannot work together; caught by the exception of either namespace."""


class DoorClosed(MisconfigurationException):
    """A door into Lightning cannot be reached: an unsupported strategy, or a Lightning without the name it needs."""


def namespace_of(trainer: Any) -> ModuleType:
    """``lightning.pytorch`` or ``pytorch_lightning``, by the classes that ``trainer`` (or any Lightning object) inherits.

    Packages subclass Trainer in modules of their own, so the whole ``__mro__`` is looked at.

    Raises:
        TypeError: if the object inherits from neither.
    """
    for cls in type(trainer).__mro__:
        top = cls.__module__.partition(".")[0]
        if top in _NAMESPACES:
            return _NAMESPACES[top]
    raise TypeError(
        f"{type(trainer).__qualname__} inherits from neither lightning.pytorch nor pytorch_lightning; "
        "pass an object of one of the two."
    )


def is_a(value: Any, name: str) -> bool:
    """Whether ``value`` is an instance of the Lightning class called ``name``, whichever namespace it comes from."""
    return any(cls.__name__ == name and cls.__module__.partition(".")[0] in _NAMESPACES for cls in type(value).__mro__)

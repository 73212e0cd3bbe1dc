"""Optimizers by name: looking rows up, and building an optimizer from one."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_perf.optim import long_tail
from lightning_perf.optim.checks import check_number
from lightning_perf.optim.rows import ROWS
from lightning_perf.optim.rows import OptimizerRow as OptimizerRow

_GROUP_KEYS = {"params", "name", "names", "param_names"}
_SCHEDULER_KEYS = {"initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"}


# The first row of a class is the one its own name stands for.
_BY_CLASS = {row.class_name: row for row in reversed(ROWS.values())}


def list_optimizers(pattern: str = "*") -> list[OptimizerRow]:
    """The known optimizers whose name matches a shell-style ``pattern``, sorted by name.

    Raises:
        ValueError: the pattern matches nothing; lists the known names.

    Example::
        >>> [row.name for row in list_optimizers("*adamw")]
        ['adamw', 'nadamw', 'schedule_free_adamw']
    """
    rows = [row for row in ROWS.values() if any(fnmatch.fnmatchcase(n, pattern) for n in (row.name, row.class_name))]
    if not rows:
        raise ValueError(f"No optimizer matches {pattern!r}; known are {', '.join(sorted(ROWS))}.")
    return sorted(rows, key=lambda row: row.name)


def get_optimizer(name: str) -> OptimizerRow:
    """The optimizer called ``name``, which may also be the name of its class (``AdamW``).

    A name that is not ours is looked up in the optional library pytorch_optimizer, where that is installed.

    Raises:
        ValueError: unknown name; lists the known ones and names the closest.

    Example::
        >>> get_optimizer("AdamW").name
        'adamw'
    """
    row = ROWS.get(name) or _BY_CLASS.get(name)
    if row is not None:
        return row
    more = ""
    try:
        row = long_tail.find(str(name))
    except ImportError as error:
        more = f" For the names of another library: {error}."
    if row is None:
        close = difflib.get_close_matches(str(name).lower(), ROWS, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown optimizer {name!r}; known are {', '.join(sorted(ROWS))}.{hint}{more}")
    return row


def build(
    name: str,
    groups: Iterable[Tensor] | Iterable[Mapping[str, Any]],
    *,
    lr: float | None = None,
    weight_decay: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Optimizer:
    """Build the optimizer called ``name`` over parameters or over groups such as ``infer_groups`` returns.

    What a group says wins over the arguments, and these win over the row's defaults. ``param_names`` of a group is
    stored under ``names``: torch wants the former in every group or in none, and a finetuning callback adds groups
    without.

    Args:
        name: See :func:`list_optimizers`.
        groups: Parameters, or group dictionaries with ``params``.
        lr: Learning rate; default: the row's.
        weight_decay: Default: the row's.
        options: Further arguments of the class.

    Raises:
        ValueError: unknown name or option; a learning rate that is not a finite number above zero; a negative weight
            decay, or one for a class that has none.

    Example::
        >>> import torch
        >>> optimizer = build("sgd", [torch.nn.Parameter(torch.zeros(2))], lr=0.1, options={"nesterov": True})
        >>> optimizer.defaults["lr"], optimizer.defaults["momentum"]
        (0.1, 0.9)
    """
    row = get_optimizer(name)
    cls = row.load()
    arguments = {**row.defaults, **_checked_options(row, cls, options or {})}
    if lr is not None:
        check_number("lr", lr, above_zero=True)
        arguments["lr"] = lr
    decays = "weight_decay" in _arguments_of(cls)
    if weight_decay is not None:
        _check_decay(row, weight_decay, decays, "weight_decay")
        if decays:
            arguments["weight_decay"] = weight_decay
    ready: list[Any] = []
    for index, group in enumerate(groups):
        ready.append(_checked_group(row, cls, group, index, decays) if isinstance(group, Mapping) else group)
    if not ready:
        raise ValueError(f"{row.name} got no parameters; at least one with requires_grad=True is needed.")
    return cls(ready, **arguments)


def _arguments_of(cls: type[Optimizer]) -> list[str]:
    parameters = inspect.signature(cls).parameters.values()
    return [each.name for each in parameters if each.name != "params" and each.kind is not each.VAR_KEYWORD]


def _checked_options(row: OptimizerRow, cls: type[Optimizer], options: Mapping[str, Any]) -> dict[str, Any]:
    allowed = [name for name in _arguments_of(cls) if name not in ("lr", "weight_decay")]
    for key in options:
        if key in ("lr", "weight_decay"):
            raise ValueError(f"options={{{key!r}: ...}} of {row.name}: {key} is an argument of its own, not an option.")
        if key not in allowed:
            raise ValueError(f"Unknown option {key!r} of {row.name}; {cls.__name__} has {', '.join(allowed)}.")
    # YAML has no tuples, and torch compares and saves betas as one.
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def _checked_group(
    row: OptimizerRow, cls: type[Optimizer], group: Mapping[str, Any], index: int, decays: bool
) -> dict[str, Any]:
    where = f"group {group.get('name', index)!r}"
    checked = dict(group)
    if "weight_decay" in checked:
        _check_decay(row, checked["weight_decay"], decays, f"weight_decay of {where}")
        if not decays:
            del checked["weight_decay"]
    if "lr" in checked and not isinstance(checked["lr"], Tensor):
        # A scheduler that has been moved here may stand at zero.
        check_number(f"lr of {where}", checked["lr"])
    unknown = set(checked) - set(_arguments_of(cls)) - _GROUP_KEYS - _SCHEDULER_KEYS
    if unknown:
        raise ValueError(
            f"Unknown option {min(unknown)!r} in {where} of {row.name}; "
            f"{cls.__name__} has {', '.join(_arguments_of(cls))}."
        )
    if "param_names" in checked:
        checked["names"] = checked.pop("param_names")
    return checked


def _check_decay(row: OptimizerRow, value: Any, decays: bool, what: str) -> None:
    check_number(what, value)
    if value != 0 and not decays:
        raise ValueError(
            f"{what}={value!r}: {row.class_name} has no weight decay; leave it out or use another optimizer."
        )

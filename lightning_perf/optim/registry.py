"""Optimizers by name: one row of data per optimizer, and the constructor that uses it.

Every class of ``torch.optim`` that works with one ordinary call of ``step`` per batch is here, but two. LBFGS evaluates
its closure many times per step, which gradient accumulation, mixed precision and logging inside the step do not survive.
Muon takes matrices only and needs a second optimizer for the rest, which has to look like one. Variants of an
algorithm (momentum, Nesterov, AMSGrad, decoupled decay) are options of its row, not rows.

The update of ``sgd``, for gradient g with decay λ added to it, momentum μ and dampening τ, is::

    b = g                     at the first step of a parameter,  b = μ b + (1 - τ) g  afterwards
    θ = θ - lr b              with nesterov=True:  θ = θ - lr (g + μ b)

so the learning rate scales the whole sum and may change from step to step without touching the momentum (Sutskever
et al. put it inside).
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

_GROUP_KEYS = {"params", "name", "names", "param_names"}
_SCHEDULER_KEYS = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum"}


@dataclass(frozen=True)
class OptimizerRow:
    """One optimizer.

    Attributes:
        name: What the user writes.
        path: Import path of the class.
        description: One line.
        source: Paper or upstream page.
        defaults: Arguments that transfer between tasks, ``lr`` always among them; they replace those of the class.
        state_bytes: Bytes of state per parameter in float32, with these defaults.
        fused: Whether torch has a fused step for it.
        lr_free: Whether it finds its learning rate by itself.
        needs: What it needs from the run, in words.
    """

    name: str
    path: str
    description: str
    source: str
    defaults: Mapping[str, object]
    state_bytes: float
    fused: bool = False
    lr_free: bool = False
    needs: tuple[str, ...] = ()

    @property
    def class_name(self) -> str:
        """The name of the class, such as ``AdamW``."""
        return self.path.rpartition(".")[2]

    def load(self) -> type[Optimizer]:
        """The class itself.

        Example::
            >>> get_optimizer("adamw").load().__name__
            'AdamW'
        """
        module, _, name = self.path.rpartition(".")
        return getattr(importlib.import_module(module), name)


_ROWS = {
    row.name: row
    for row in (
        OptimizerRow(
            "adadelta",
            "torch.optim.Adadelta",
            "steps scaled by the running size of earlier steps; little to tune",
            "https://arxiv.org/abs/1212.5701",
            {"lr": 1.0, "weight_decay": 0.0, "rho": 0.9},
            state_bytes=8,
        ),
        OptimizerRow(
            "adafactor",
            "torch.optim.Adafactor",
            "second moment of matrices kept as a row and a column; for memory, not speed (state depends on the shapes)",
            "https://arxiv.org/abs/1804.04235",
            {"lr": 1e-2, "weight_decay": 0.0},
            state_bytes=0.36,
        ),
        OptimizerRow(
            "adagrad",
            "torch.optim.Adagrad",
            "steps shrink with the sum of squared gradients; for sparse features",
            "https://jmlr.org/papers/v12/duchi11a.html",
            {"lr": 1e-2, "weight_decay": 0.0},
            state_bytes=4,
            fused=True,
        ),
        OptimizerRow(
            "adam",
            "torch.optim.Adam",
            "first and second moment of the gradient; its weight decay is an L2 penalty",
            "https://arxiv.org/abs/1412.6980",
            {"lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.999)},
            state_bytes=8,
            fused=True,
        ),
        OptimizerRow(
            "adamax",
            "torch.optim.Adamax",
            "Adam with the largest recent gradient in place of the second moment",
            "https://arxiv.org/abs/1412.6980",
            {"lr": 2e-3, "weight_decay": 0.0, "betas": (0.9, 0.999)},
            state_bytes=8,
        ),
        OptimizerRow(
            "adamw",
            "torch.optim.AdamW",
            "Adam with decoupled weight decay; the usual choice",
            "https://arxiv.org/abs/1711.05101",
            {"lr": 1e-3, "weight_decay": 1e-2, "betas": (0.9, 0.999)},
            state_bytes=8,
            fused=True,
        ),
        OptimizerRow(
            "asgd",
            "torch.optim.ASGD",
            "SGD that also keeps the average of the weights in its state (the module keeps the last ones)",
            "https://doi.org/10.1137/0330046",
            {"lr": 1e-2, "weight_decay": 0.0},
            state_bytes=4,
        ),
        OptimizerRow(
            "nadam",
            "torch.optim.NAdam",
            "Adam with Nesterov momentum",
            "https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
            {"lr": 2e-3, "weight_decay": 0.0, "betas": (0.9, 0.999)},
            state_bytes=8,
        ),
        OptimizerRow(
            "nadamw",
            "torch.optim.NAdam",
            "NAdam with decoupled weight decay, at the settings of the AlgoPerf baseline; wants warmup_cosine",
            "https://arxiv.org/abs/2306.07179",
            {"lr": 1.9e-3, "weight_decay": 0.081, "betas": (0.909, 0.9989), "decoupled_weight_decay": True},
            state_bytes=8,
        ),
        OptimizerRow(
            "radam",
            "torch.optim.RAdam",
            "Adam that warms itself up by rectifying its early steps",
            "https://arxiv.org/abs/1908.03265",
            {"lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.999)},
            state_bytes=8,
        ),
        OptimizerRow(
            "rmsprop",
            "torch.optim.RMSprop",
            "gradient over the root of its mean square; for recurrent networks and reinforcement learning",
            "https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
            {"lr": 1e-3, "weight_decay": 0.0, "alpha": 0.99},
            state_bytes=4,
        ),
        OptimizerRow(
            "rprop",
            "torch.optim.Rprop",
            "step sizes from the sign of the gradient alone",
            "https://doi.org/10.1109/ICNN.1993.298623",
            {"lr": 1e-2},
            state_bytes=8,
            needs=("gradients of the full data set in every step",),
        ),
        OptimizerRow(
            "sgd",
            "torch.optim.SGD",
            "gradient descent with momentum; options nesterov, dampening",
            "https://proceedings.mlr.press/v28/sutskever13.html",
            {"lr": 5e-2, "weight_decay": 5e-4, "momentum": 0.9},
            state_bytes=4,
            fused=True,
        ),
        OptimizerRow(
            "sparse_adam",
            "torch.optim.SparseAdam",
            "Adam that updates only the rows which got a gradient",
            "https://docs.pytorch.org/docs/stable/generated/torch.optim.SparseAdam.html",
            {"lr": 1e-3, "betas": (0.9, 0.999)},
            state_bytes=8,
            needs=("sparse gradients on every parameter, such as those of nn.Embedding(sparse=True)",),
        ),
    )
}
# The first row of a class is the one its own name stands for.
_BY_CLASS = {row.class_name: row for row in reversed(_ROWS.values())}


def list_optimizers(pattern: str = "*") -> list[OptimizerRow]:
    """The known optimizers whose name matches a shell-style ``pattern``, sorted by name.

    Raises:
        ValueError: the pattern matches nothing; lists the known names.

    Example::
        >>> [row.name for row in list_optimizers("*adamw")]
        ['adamw', 'nadamw']
    """
    rows = [row for row in _ROWS.values() if any(fnmatch.fnmatchcase(n, pattern) for n in (row.name, row.class_name))]
    if not rows:
        raise ValueError(f"No optimizer matches {pattern!r}; known are {', '.join(sorted(_ROWS))}.")
    return sorted(rows, key=lambda row: row.name)


def get_optimizer(name: str) -> OptimizerRow:
    """The optimizer called ``name``, which may also be the name of its class (``AdamW``).

    Raises:
        ValueError: unknown name; lists the known ones and names the closest.

    Example::
        >>> get_optimizer("AdamW").name
        'adamw'
    """
    row = _ROWS.get(name) or _BY_CLASS.get(name)
    if row is None:
        close = difflib.get_close_matches(str(name).lower(), _ROWS, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown optimizer {name!r}; known are {', '.join(sorted(_ROWS))}.{hint}")
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
        _check_number("lr", lr, above_zero=True)
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
    return [name for name in inspect.signature(cls).parameters if name != "params"]


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
        _check_number(f"lr of {where}", checked["lr"], above_zero=False)
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
    _check_number(what, value, above_zero=False)
    if value != 0 and not decays:
        raise ValueError(
            f"{what}={value!r}: {row.class_name} has no weight decay; leave it out or use another optimizer."
        )


def _check_number(what: str, value: Any, *, above_zero: bool) -> None:
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or value < 0 or (above_zero and value == 0):
        rule, example = ("above 0", "1e-3") if above_zero else ("of at least 0", "0.01")
        raise ValueError(f"{what}={value!r} must be a finite number {rule}; give one, such as {example}.")

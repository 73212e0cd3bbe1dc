"""The optimizers of the optional library pytorch_optimizer, by the names that it gives them."""

from __future__ import annotations

import inspect

from lightning_perf._optional import require
from lightning_perf.optim.rows import OptimizerRow

_SWITCHES = "must be switched between train() and eval() by hand; use schedule_free_adamw or schedule_free_sgd"
_GRADIENT_GRAPH = "needs backward(create_graph=True), which a training loop of somebody else does not call"
_OWN_LOOP = "takes the place of backward and step, so a training loop of somebody else cannot drive it"
_ROUTED = "wants groups that say use_muon; use muon, whose groups are found from the module"
_UNFIT = {
    "adago": _ROUTED,
    "adahessian": _GRADIENT_GRAPH,
    "adalomo": _OWN_LOOP,
    "adammini": "wants the module in place of parameters",
    "adamuon": _ROUTED,
    "alig": "needs a closure that returns the loss, evaluated by itself",
    "demo": "does its own communication between ranks",
    "distributedmuon": "does its own communication between ranks; use muon",
    "lbfgs": "evaluates its closure many times per step",
    "lomo": _OWN_LOOP,
    "muonclip": _ROUTED,
    "normuon": _ROUTED,
    "schedulefreeadamw": _SWITCHES,
    "schedulefreeradam": _SWITCHES,
    "schedulefreesgd": _SWITCHES,
    "sophiah": _GRADIENT_GRAPH,
    "splus": _SWITCHES,
}


def find(name: str) -> OptimizerRow | None:
    """A row for the optimizer that pytorch_optimizer calls ``name``; None where it knows none of this name.

    Such a row carries the library's own defaults, and what it needs and holds is not known.

    Raises:
        ImportError: the library is not installed.
        ValueError: an optimizer that does not work with one ordinary call of ``step`` per batch.
    """
    library = require("pytorch_optimizer", extra="optimizers", purpose=f"the optimizer {name!r}")
    key = name.lower()
    if key not in library.get_supported_optimizers():
        return None
    if key in _UNFIT:
        raise ValueError(f"Optimizer {name!r} of pytorch_optimizer {_UNFIT[key]}.")
    cls = library.load_optimizer(key)
    arguments = inspect.signature(cls).parameters
    if "lr" not in arguments:
        raise ValueError(f"Optimizer {name!r} of pytorch_optimizer takes no lr, so no schedule or group can set one.")
    lr = arguments["lr"].default
    return OptimizerRow(
        key,
        f"{cls.__module__}.{cls.__qualname__}",
        "from pytorch_optimizer, with its own defaults",
        "https://pytorch-optimizers.readthedocs.io",
        {"lr": lr if isinstance(lr, float) else 1e-3},
        state_bytes=None,
    )

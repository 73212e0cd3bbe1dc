"""The table of optimizers: one row of data each.

Every class of ``torch.optim`` that works with one ordinary call of ``step`` per batch is here, but two: LBFGS evaluates
its closure many times per step, which gradient accumulation, mixed precision and logging inside the step do not survive;
and torch's Muon takes matrices only, so ours stands here, which takes everything. Variants of an algorithm (momentum,
Nesterov, AMSGrad, decoupled decay, the cautious mask) are options of its row, not rows.

The updates of torch's oldest three, with g the gradient, to which λ θ has been added as an L2 penalty (AdamW instead
shrinks θ by lr λ before its step). ``sgd``, with momentum μ and dampening τ::

    b = g                     at the first step of a parameter,  b = μ b + (1 - τ) g  afterwards
    θ = θ - lr b              with nesterov=True:  θ = θ - lr (g + μ b)

Torch: the learning rate scales the whole sum and may change from step to step without touching the momentum (Sutskever
et al. put it inside); the first b is undampened.

``rmsprop``::

    v = α v + (1 - α) g²      with centered=True also  a = α a + (1 - α) g
    θ = θ - lr g / (√v + ε)   centered: √(v - a²);  with momentum:  b = μ b + g / (...),  θ = θ - lr b

Torch: v starts at zero without a bias correction, so the first step is 1 / √(1 - α) = 10 times lr; ε stands outside the
root (TensorFlow's stands inside, and its v starts at one).

``adam``::

    m = β1 m + (1 - β1) g;  v = β2 v + (1 - β2) g²
    θ = θ - lr · m / (1 - β1^t) / (√(v / (1 - β2^t)) + ε)

Torch: ε is added to the root of the corrected v, as in the paper's Algorithm 1 and unlike its faster form (and
TensorFlow's), where the same ε weighs 1 / √(1 - β2^t) times as much; t counts the steps of each parameter.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from lightning_perf.optim.muon_groups import muon_groups


@dataclass(frozen=True)
class OptimizerRow:
    """One optimizer.

    Attributes:
        name: What the user writes.
        path: Import path of the class.
        description: One line.
        source: Paper or upstream page.
        defaults: Arguments that transfer between tasks, ``lr`` always among them; they replace those of the class.
        state_bytes: Bytes of state per parameter in float32, with these defaults; None where it is not known.
        fused: Whether torch has a fused step for it.
        lr_free: Whether it finds its learning rate by itself; lr is then a factor of that, best left at 1.
        needs: What it needs from the run, in words.
        grouping: What adds to parameter groups the settings that only the module can tell; called with the module, the
            groups and ``split``, whether groups may be split.
    """

    name: str
    path: str
    description: str
    source: str
    defaults: Mapping[str, object]
    state_bytes: float | None
    fused: bool = False
    lr_free: bool = False
    needs: tuple[str, ...] = ()
    grouping: Callable[..., list[dict[str, Any]]] | None = None

    @property
    def class_name(self) -> str:
        """The name of the class, such as ``AdamW``."""
        return self.path.rpartition(".")[2]

    def load(self) -> type[Optimizer]:
        """The class itself.

        Example::
            >>> ROWS["adamw"].load().__name__
            'AdamW'
        """
        module, _, name = self.path.rpartition(".")
        return getattr(importlib.import_module(module), name)


ROWS = {
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
            "ademamix",
            "lightning_perf.optim.ademamix.AdEMAMix",
            "Adam with a second, much slower average of the gradient; for long runs",
            "https://arxiv.org/abs/2409.03137",
            {"lr": 2e-3, "weight_decay": 0.1, "betas": (0.8, 0.995, 0.9995)},
            state_bytes=12,
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
            "lion",
            "lightning_perf.optim.lion.Lion",
            "the sign of an average: half of Adam's memory, lr 3 to 10 times smaller, decay as much larger",
            "https://arxiv.org/abs/2302.06675",
            {"lr": 3e-4, "weight_decay": 0.1, "betas": (0.95, 0.98)},
            state_bytes=4,
        ),
        OptimizerRow(
            "muon",
            "lightning_perf.optim.muon.Muon",
            "hidden matrices move by orthogonalized momentum, the rest by AdamW at the same lr; few steps, each dearer",
            "https://arxiv.org/abs/2502.16982",
            {"lr": 3e-3, "weight_decay": 1e-2, "momentum": 0.95, "betas": (0.9, 0.95)},
            state_bytes=4,
            needs=("hidden matrices; many samples or positions per step, or its own work shows",),
            grouping=muon_groups,
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
            "prodigy",
            "lightning_perf.optim.prodigy.Prodigy",
            "Adam that finds its own learning rate; leave lr at 1, and let warmup_cosine bring it down",
            "https://arxiv.org/abs/2306.06101",
            {"lr": 1.0, "weight_decay": 1e-2, "betas": (0.9, 0.999), "bias_correction": True, "safeguard_warmup": True},
            state_bytes=16,
            lr_free=True,
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
            "schedule_free_adamw",
            "lightning_perf.optim.schedule_free.ScheduleFreeAdamW",
            "AdamW without a schedule or a horizon, evaluated at averaged weights",
            "https://arxiv.org/abs/2405.15682",
            {"lr": 5e-3, "weight_decay": 1e-2, "betas": (0.9, 0.999)},
            state_bytes=8,
            needs=("evaluation at the averaged weights",),
        ),
        OptimizerRow(
            "schedule_free_sgd",
            "lightning_perf.optim.schedule_free.ScheduleFreeSGD",
            "SGD without a schedule or a horizon, evaluated at averaged weights; lr 10 to 50 times that of sgd",
            "https://arxiv.org/abs/2405.15682",
            {"lr": 1.0, "weight_decay": 5e-4, "momentum": 0.9},
            state_bytes=4,
            needs=("evaluation at the averaged weights",),
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
            "soap",
            "lightning_perf.optim.soap.SOAP",
            "Adam in the eigenbasis of Shampoo; fewest steps, each far dearer (8 bytes, and 8 (m² + n²) per m x n matrix)",
            "https://arxiv.org/abs/2409.11321",
            {"lr": 3e-3, "weight_decay": 1e-2, "betas": (0.95, 0.95), "frequency": 10},
            state_bytes=8,
            needs=("matrices; many samples or positions per step, or its own work shows",),
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

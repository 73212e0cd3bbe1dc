"""The other ways into a module beside the step that is traced: a second batch, update hooks, evaluation, prediction."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from lightning_perf.host import IdleOptimizer, call_step, namespace_of, preserved_rng, validation_batch
from lightning_perf.pruning.callback_step import few_of

Call = Callable[[], Any]


class Entries:
    """Enters copies of a module as a fit, an evaluation and a prediction would, as far as that leaves no trace.

    Tried are ``training_step`` on the batch as the first and the second of an epoch, with the hooks that the module has
    around it and at the end of the epoch, where it updates teachers and averages of its own; then the other steps that it
    has, on the same batch, and ``validation_step`` on one of its own loader. Nothing goes backward, no optimizer steps.

    Args:
        trainer: of the fit.
        pl_module: the module.
        batch: of the fit, on its device.
    """

    def __init__(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        self._trainer, self._module, self._batch = trainer, pl_module, batch
        self._base = namespace_of(trainer).LightningModule
        self._of_validation: list[Any] | None = None

    def __call__(self, clone: Any) -> dict[str, list[Tensor] | Exception]:
        """What each way into a silent copy gives, by its name: tensors that matter outside, or the exception it raises."""
        optimizers = [IdleOptimizer(self._twin(one, clone)) for one in self._trainer.strategy.optimizers]
        if "optimizers" in vars(clone):
            vars(clone)["optimizers"] = lambda use_pl_optimizer=True: optimizers if optimizers[1:] else optimizers[0]
        found: dict[str, list[Tensor] | Exception] = {}
        for name, hook, call in self._ways(clone, optimizers):
            if hook in vars(self._module) or getattr(type(clone), hook, None) is not getattr(self._base, hook, None):
                found[name] = self._entered(hook, call)
        return found

    def _entered(self, hook: str, call: Call) -> list[Tensor] | Exception:
        grad = hook == "training_step"  # some take gradients of their own
        with preserved_rng(), torch.set_grad_enabled(grad), self._trainer.precision_plugin.forward_context():
            torch.manual_seed(0)
            try:
                given = [one.detach() for one in tree_leaves(call()) if isinstance(one, Tensor)]
            except Exception as error:  # whatever the module raises
                return error
        # What else steps return may be features, of fewer channels for good reason.
        return given if hook == "predict_step" else [one for one in given if one.numel() == 1]

    def _ways(self, clone: Any, optimizers: list[Any]) -> Iterator[tuple[str, str, Call]]:
        for index in (0, 1):
            for hook, call in self._training(clone, optimizers, index):
                yield f"{hook} of batch {index}", hook, call
        yield "on_train_epoch_end", "on_train_epoch_end", clone.on_train_epoch_end
        for step in ("validation_step", "test_step", "predict_step"):
            yield step, step, lambda: self._stepped(clone, step, self._batch)  # noqa: B023
        if self._of_validation is None:
            self._of_validation = [few_of(one) for one in validation_batch(self._trainer, clone)]
        for batch in self._of_validation:
            yield (
                "validation_step of its own batch",
                "validation_step",
                lambda: self._stepped(
                    clone,
                    "validation_step",
                    batch,  # noqa: B023
                ),
            )

    def _stepped(self, clone: Any, step: str, batch: Any) -> Any:
        return call_step(getattr(clone, step), copy.deepcopy(batch))

    def _training(self, clone: Any, optimizers: list[Any], index: int) -> Iterator[tuple[str, Call]]:
        """A batch of a fit, in Lightning's order."""
        batch, epoch, outputs = copy.deepcopy(self._batch), self._trainer.current_epoch, {}

        def step() -> Any:
            given = call_step(clone.training_step, batch, index)
            outputs.update(given if isinstance(given, dict) else {"loss": given})
            return given

        yield "on_train_batch_start", lambda: clone.on_train_batch_start(batch, index)
        yield "training_step", step
        yield "on_before_backward", lambda: clone.on_before_backward(outputs["loss"])
        yield "on_after_backward", lambda: clone.on_after_backward()
        for one in optimizers:
            yield "on_before_zero_grad", lambda: clone.on_before_zero_grad(one)  # noqa: B023
            yield "on_before_optimizer_step", lambda: clone.on_before_optimizer_step(one)  # noqa: B023
            if clone.automatic_optimization:
                yield "optimizer_step", lambda: clone.optimizer_step(epoch, index, one, lambda: None)  # noqa: B023
        given = {key: one.detach() if isinstance(one, Tensor) else one for key, one in outputs.items()}
        yield "on_train_batch_end", lambda: clone.on_train_batch_end(given, batch, index)

    def _twin(self, optimizer: Any, clone: Any) -> Any:
        """The same optimizer on the parameters of the copy, with groups of its own and no state."""
        names = {id(parameter): name for name, parameter in self._module.named_parameters()}
        groups = [
            {**group, "params": [clone.get_parameter(names[id(one)]) for one in group["params"] if id(one) in names]}
            for group in optimizer.param_groups
        ]
        twin: Optimizer = object.__new__(type(optimizer))
        vars(twin).update(vars(optimizer), param_groups=groups, state=defaultdict(dict))
        return twin

"""Layers under torch.func: values and gradients are those without a transform, ranges those of all that was mapped over."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from lightning_perf.quantization.prepare import prepare
from lightning_perf.quantization.rounding import round_activation, round_to_own_range, round_weight
from lightning_perf.quantization.schemes import SCHEMES

ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "activation": lambda x: round_activation(x, 0.02, 100),
    "activation on an accelerator": lambda x: round_activation(x, torch.tensor(0.02), torch.tensor(100)),
    "int8": lambda x: round_weight(x, SCHEMES["int8"]),
    "int4": lambda x: round_weight(x, SCHEMES["int4"]),
    "float8": lambda x: round_weight(x, SCHEMES["float8"]),
    "int8-dynamic": lambda x: round_to_own_range(x, SCHEMES["int8-dynamic"]),
    "float8, dynamic": lambda x: round_to_own_range(x, SCHEMES["float8"]),
}


@pytest.mark.parametrize("name", ROUNDINGS)
def test_values_and_gradients(name: str) -> None:
    """To the last bit, also of values outside of the range; mapped over, each as if it were alone."""
    rounded = ROUNDINGS[name]
    x = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(0)) * 2
    weight = torch.arange(1.0, 257.0).view(4, 64)
    leaves = [one.clone().requires_grad_() for one in x]
    alone = [torch.autograd.grad((rounded(one) * weight).sum(), one)[0] for one in leaves]
    assert torch.equal(vmap(rounded)(x), torch.stack([rounded(one) for one in x]))
    gradient = grad(lambda one: (rounded(one) * weight).sum())
    assert torch.equal(gradient(x[0]), alone[0])
    assert torch.equal(vmap(gradient)(x), torch.stack(alone))
    forward = jvp(rounded, (x[0],), (weight,))
    assert torch.equal(forward[0], rounded(x[0]))
    assert torch.equal(forward[1], alone[0])  # each number passes or does not: forward as backward


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int8-weight-only", "float8"])
def test_a_layer_with_other_weights(scheme: str) -> None:
    """Two sets of weights at once are rounded as one after the other is."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(16, 8)
    shared = prepare(net, scheme)
    shared.observing = True
    net(x)
    shared.ranges.take_in()
    sets = [{name: p.detach() + shift for name, p in net.named_parameters()} for shift in (0.0, 0.1)]
    stacked = {name: torch.stack([one[name] for one in sets]) for name in sets[0]}
    together = vmap(lambda weights: functional_call(net, weights, (x,)))(stacked)
    for output, weights in zip(together, sets, strict=True):
        torch.testing.assert_close(output, functional_call(net, weights, (x,)))
    gradients = grad(lambda weights: functional_call(net, weights, (x,)).square().sum())(sets[1])
    leaves = {name: p.clone().requires_grad_() for name, p in sets[1].items()}
    functional_call(net, leaves, (x,)).square().sum().backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(gradients[name], leaf.grad)


def module_of(ns: ModuleType, kind: str) -> Any:
    class Functional(ns.LightningModule):
        """Steps of modules that compute gradients themselves: inner loops, gradients by sample, ensembles, penalties."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            weights = dict(self.net.named_parameters())

            def loss(weights: Any, x: Tensor, y: Tensor) -> Tensor:
                return nn.functional.cross_entropy(functional_call(self.net, weights, (x,)), y)

            if kind == "inner loop":
                gradients = grad(loss)(weights, x, y)
                return loss({name: p - 0.1 * gradients[name] for name, p in weights.items()}, x, y)
            if kind == "by sample":
                fixed = {name: p.detach() for name, p in weights.items()}
                gradients = vmap(grad(lambda w, x, y: loss(w, x[None], y[None])), (None, 0, 0))(fixed, x, y)
                self.log("norm", sum(g.flatten(1).norm(dim=1).mean() for g in gradients.values()))
            if kind == "ensemble":
                stacked = {name: torch.stack([p, p * 1.01]) for name, p in weights.items()}
                outputs = vmap(lambda w: functional_call(self.net, w, (x,)))(stacked)
                return nn.functional.cross_entropy(outputs.mean(0), y)
            if kind == "mapped":
                return nn.functional.cross_entropy(vmap(self.net)(x), y)
            penalty = vmap(jacrev(self.net))(x).square().mean() if kind == "penalty" else 0.0
            return loss(weights, x, y) + 0.01 * penalty

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    return Functional()


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic"])
@pytest.mark.parametrize("kind", ["inner loop", "by sample", "ensemble", "mapped", "penalty"])
def test_steps_that_transform(kind: str, scheme: str, ns: ModuleType, quiet: dict[str, Any]) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(32, 8), torch.randint(3, (32,))
    module, qat = module_of(ns, kind), lp.QuantizationAwareTraining(scheme)
    trainer = ns.Trainer(**quiet, max_epochs=2, callbacks=[qat])
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=32))
    assert "2 layers quantized, 100.0% of the multiplications" in qat.messages[0]
    assert all(bool(p.isfinite().all()) for p in module.parameters())
    if scheme == "int8":
        assert qat._shared.ranges.span("net.0<input") == pytest.approx((x.min().item(), x.max().item()))

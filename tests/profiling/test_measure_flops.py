"""FLOPs of real training steps of LightningModules, and that counting them leaves no trace."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import lightning.pytorch
import numpy
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_perf.profiling.callback_flops import count_macs, measure_flops
from lightning_perf.profiling.flops import FlopCounter
from tests.contract.modules import KINDS, images, make

FIRST, SECOND, HEAD = 2 * 4 * 64 * 8 * 9, 2 * 4 * 16 * 8 * 8 * 9, 2 * 4 * 128 * 3
FORWARD = FIRST + SECOND + HEAD
BACKWARD = FIRST + 2 * SECOND + 2 * HEAD  # the images need no gradient


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_module(ns: ModuleType, kind: str) -> None:
    module = make(kind, ns)
    count = measure_flops(module, images())
    assert (count.forward, count.backward) == (FORWARD, BACKWARD)
    assert count.by_module["net.4"].forward == SECOND
    assert count.by_module["net.7"].model == 3 * HEAD
    assert not count.uncounted
    assert module._trainer is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_inside_a_running_training(ns: ModuleType, kind: str, quiet: dict[str, Any]) -> None:
    """The way of the profiler: a counter entered and left by a callback, around one step of the training."""
    kept: list[FlopCounter] = []

    class Profiler(ns.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                kept.append(FlopCounter(pl_module).__enter__())

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                kept[0].__exit__(None, None, None)

    plain, profiled = make(kind, ns), make(kind, ns)
    torch.manual_seed(1)
    ns.Trainer(max_epochs=1, **quiet).fit(plain, images())
    torch.manual_seed(1)
    ns.Trainer(max_epochs=1, callbacks=[Profiler()], **quiet).fit(profiled, images())
    assert (kept[0].count.forward, kept[0].count.backward) == (FORWARD, BACKWARD)
    assert profiled.losses == plain.losses
    for mine, theirs in zip(profiled.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def flat(value: Any) -> Iterator[Any]:
    """The leaves of nested dicts and lists."""
    if isinstance(value, dict | list):
        for element in value.values() if isinstance(value, dict) else value:
            yield from flat(element)
    else:
        yield value


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_behind(ns: ModuleType, kind: str, quiet: dict[str, Any]) -> None:
    """Two fits with a measurement before each end like two fits without, bit for bit."""

    def fit_twice(measured: bool) -> list[Any]:
        torch.manual_seed(1)
        random.seed(1)
        numpy.random.seed(1)
        module, loader = make(kind, ns), images(shuffle=True)
        loader.generator = loader.sampler.generator = torch.Generator().manual_seed(5)
        ends: list[Any] = []
        for _ in range(2):
            if measured:
                module.eval()
                attributes = set(vars(module))
                measure_flops(module, loader, trainer=module._trainer)
                assert not module.training
                assert set(vars(module)) == attributes
                module.train()
            trainer = ns.Trainer(max_epochs=2, **quiet)
            trainer.fit(module, loader)
            ends += [optimizer.state_dict() for optimizer in trainer.optimizers]
            ends += [random.random(), float(numpy.random.rand()), torch.rand(1), loader.generator.get_state()]
        return [*ends, dict(module.state_dict()), module.losses]

    for one, two in zip(flat(fit_twice(False)), flat(fit_twice(True)), strict=True):
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def test_random_numbers_stay_where_they_are(ns: ModuleType) -> None:
    module = make("plain", ns)
    torch.manual_seed(0)
    numpy.random.seed(0)
    random.seed(0)
    expected = torch.rand(3), numpy.random.rand(), random.random()
    torch.manual_seed(0)
    numpy.random.seed(0)
    random.seed(0)
    measure_flops(module, images())
    assert torch.equal(torch.rand(3), expected[0])
    assert (numpy.random.rand(), random.random()) == expected[1:]


def test_mixed_precision_of_the_users_trainer(ns: ModuleType, quiet: dict[str, Any]) -> None:
    trainer = ns.Trainer(precision="bf16-mixed", accumulate_grad_batches=2, **quiet)
    count = measure_flops(make("plain", ns), images(), trainer=trainer)
    assert (count.forward, count.backward) == (FORWARD, BACKWARD)
    assert count.by_dtype == {"bfloat16": FORWARD + BACKWARD}
    assert measure_flops(make("plain", ns), images()).by_dtype == {"float32": FORWARD + BACKWARD}


def linear(ns: ModuleType, step: Any = None) -> Any:
    """A module around one Linear(8, 2); ``step(module, batch)`` returns the loss."""

    class Linear(ns.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 2)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return step(self, batch) if step is not None else self.layer(batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Linear()


class Named(NamedTuple):
    x: torch.Tensor
    names: list[str]


class Graph:
    """A batch with its own way to a device, like a graph library's."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def to(self, *args: Any, **kwargs: Any) -> Graph:
        return Graph(self.x.to(*args, **kwargs))

    def __iter__(self) -> Iterator[Any]:
        return iter([("x", self.x)])


X = torch.randn(4, 8)


@pytest.mark.parametrize(
    ("batch", "read"),
    [
        (X, lambda batch: batch),
        ([X, [], "name"], lambda batch: batch[0]),
        (({"x": X}, (X, None)), lambda batch: batch[0]["x"]),
        (Named(X, ["a"]), lambda batch: batch.x),
        (Graph(X), lambda batch: batch.x),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_batch_of_any_form(ns: ModuleType, batch: Any, read: Any) -> None:
    def step(module: Any, batch: Any) -> Any:
        read(batch).mul_(1)  # in place, on a copy
        return module.layer(read(batch)).sum()

    before = X.clone()
    assert measure_flops(linear(ns, step), batch).model == 2 * 2 * 4 * 8 * 2
    assert torch.equal(X, before)


def loaders() -> dict[str, Any]:
    return {"a": DataLoader(X, batch_size=4), "b": [DataLoader(X, batch_size=2)]}


def test_a_collection_of_loaders(ns: ModuleType) -> None:
    def step(module: Any, batch: Any) -> Any:
        return module.layer(torch.cat([batch["a"], batch["b"][0]])).sum()

    assert measure_flops(linear(ns, step), loaders()).forward == 2 * 6 * 8 * 2
    combined = ns.utilities.combined_loader.CombinedLoader(loaders(), "min_size")
    assert measure_flops(linear(ns, step), combined).forward == 2 * 6 * 8 * 2


def test_a_datamodule_is_copied(ns: ModuleType) -> None:
    class Data(ns.LightningDataModule):
        def setup(self, stage: str) -> None:
            self.x = X

        def train_dataloader(self) -> Any:
            return DataLoader(self.x, batch_size=4)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[:3]

    data = Data()
    assert measure_flops(linear(ns), data).forward == 2 * 3 * 8 * 2
    assert not hasattr(data, "x")
    assert data.trainer is None


def test_the_modules_own_loader(ns: ModuleType) -> None:
    module = linear(ns)
    type(module).train_dataloader = lambda self: DataLoader(X, batch_size=2)
    assert measure_flops(module).forward == 2 * 2 * 8 * 2


class Stateful(IterableDataset):
    """Remembers where it is, and cannot start again."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            self.position += 1
            yield torch.full((8,), float(self.position))


def test_a_stateful_dataset_keeps_its_position(ns: ModuleType) -> None:
    data = Stateful()
    assert measure_flops(linear(ns), DataLoader(data, batch_size=4)).forward == 2 * 4 * 8 * 2
    assert data.position == 0


def test_a_loader_being_read_and_its_workers_are_not_disturbed(ns: ModuleType) -> None:
    loader = DataLoader(TensorDataset(torch.randn(12, 8)), batch_size=4, num_workers=1, persistent_workers=True)
    step = lambda module, batch: module.layer(batch[0]).sum()  # noqa: E731
    batches = iter(loader)
    first = next(batches)[0]
    iterator = loader._iterator
    assert measure_flops(linear(ns, step), loader).forward == 2 * 4 * 8 * 2
    assert loader._iterator is iterator
    rest = [batch[0] for batch in batches]
    assert torch.equal(torch.cat([first, *rest]), loader.dataset.tensors[0])


def test_a_big_dataset_is_not_copied(ns: ModuleType) -> None:
    class Big(Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.ones(8)

        def __deepcopy__(self, memo: Any) -> Any:
            pytest.fail("copied")

    assert measure_flops(linear(ns), DataLoader(Big(), batch_size=4, shuffle=True)).forward == 2 * 4 * 8 * 2


def test_data_that_can_be_read_only_once_is_refused(ns: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"generator can be read only once.*pass one of its batches"):
        measure_flops(linear(ns), (batch for batch in [X]))


def test_no_batch(ns: ModuleType) -> None:
    with pytest.raises(ValueError, match="DataLoader gave no batch"):
        measure_flops(linear(ns), DataLoader(TensorDataset(torch.empty(0, 8)), batch_size=4))


def test_a_module_that_cannot_be_copied_says_which_attribute(ns: ModuleType) -> None:
    module = linear(ns)
    module.guard = threading.Lock()
    with pytest.raises(TypeError, match=r"Linear\.guard cannot be copied .*ThroughputProfiler"):
        measure_flops(module, X)


def test_other_modules_are_pointed_to_the_counter() -> None:
    with pytest.raises(TypeError, match="module=Linear is no LightningModule; for other modules use FlopCounter"):
        measure_flops(nn.Linear(2, 2), X)


def test_a_failing_step_raises_and_leaves_nothing(ns: ModuleType) -> None:
    def step(module: Any, batch: Any) -> Any:
        raise ArithmeticError("as the user wrote it")

    with pytest.raises(ArithmeticError, match="as the user wrote it"):
        measure_flops(linear(ns, step), X)
    assert not nn.modules.module._global_forward_hooks
    assert torch.is_grad_enabled()


def test_schedules_sized_by_the_run_and_by_metrics_never_logged(ns: ModuleType, quiet: dict[str, Any]) -> None:
    module = linear(ns)
    seen: list[float] = []

    def configure(self: Any) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        seen.append(self.trainer.estimated_stepping_batches)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    type(module).configure_optimizers = configure
    trainer = ns.Trainer(max_epochs=3, accumulate_grad_batches=2, **quiet)
    assert measure_flops(module, DataLoader(X.repeat(4, 1), batch_size=4), trainer=trainer).backward == 2 * 4 * 8 * 2
    assert seen == [6]


def test_checkpointing_inside_a_training_step(ns: ModuleType) -> None:
    def step(module: Any, batch: Any) -> Any:
        return checkpoint(lambda x: module.layer(x).tanh(), batch, use_reentrant=False).sum()

    one = 2 * 4 * 8 * 2
    count = measure_flops(linear(ns, step), X)
    assert (count.forward, count.backward, count.recompute) == (one, one, one)
    assert count.by_module["layer"].recompute == one


def test_a_compiled_module_and_a_compiled_submodule(ns: ModuleType) -> None:
    torch._dynamo.reset()
    module = linear(ns)
    module.layer = torch.compile(module.layer, backend="eager")
    assert measure_flops(module, X).model == 2 * 2 * 4 * 8 * 2
    assert measure_flops(torch.compile(linear(ns), backend="eager"), X).model == 2 * 2 * 4 * 8 * 2


def test_a_module_attached_to_a_trainer(ns: ModuleType, quiet: dict[str, Any]) -> None:
    module = make("plain", ns)
    trainer = ns.Trainer(max_epochs=1, **quiet)
    trainer.fit(module, images())
    logged = dict(trainer.callback_metrics)
    state = copy.deepcopy(trainer.optimizers[0].state_dict()["state"])
    assert measure_flops(module, images(), trainer=trainer).forward == FORWARD
    assert module.trainer is trainer
    assert dict(trainer.callback_metrics) == logged
    for index, kept in trainer.optimizers[0].state_dict()["state"].items():
        assert all(torch.equal(value, state[index][key]) for key, value in kept.items())


def test_macs_by_hand() -> None:
    """A convolution and a linear layer: outputs times inputs of each; batch norm and activations have no products."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 7))
    statistics = net[1].running_mean.clone()
    assert count_macs(net, torch.randn(2, 3, 5, 5)) == 2 * (25 * 4 * 27 + 100 * 7)
    assert torch.equal(net[1].running_mean, statistics)
    module = make("plain", lightning.pytorch)
    assert count_macs(module, next(iter(images()))) == 4 * (64 * 8 * 9 + 16 * 8 * 72 + 128 * 3)

"""``lp.export``: calls found in batches, prepared and plain modules, the metric through every variant."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_perf as lp
from lightning_perf.autopilot.export_source import calibrate
from lightning_perf.deploy.call import describe_call
from lightning_perf.host import arguments_of, batches_of
from lightning_perf.quantization.prepare import prepare

ORT: dict[str, Any] = {"runtimes": "onnxruntime", "rounds": 0}


def classifier(ns: ModuleType) -> Any:
    """A LightningModule whose forward takes a keyword, and whose batch holds names beside the tensors."""

    class Classifier(ns.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))

        def forward(self, x: Tensor, temperature: float = 1.0) -> Tensor:
            return self.net(x) / temperature

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            y = batch["label"]
            logits = self(batch["x"], temperature=2.0)
            self.log("val_acc", (logits.argmax(-1) == y).float().mean())

    torch.manual_seed(0)
    return Classifier()


class Items(torch.utils.data.Dataset[dict[str, Tensor]]):
    """96 samples as dictionaries; the label is what the largest of three sums says."""

    def __init__(self) -> None:
        self.x = torch.randn(96, 8, generator=torch.Generator().manual_seed(3))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "label": self.x[index, :3].argmax()}


@pytest.fixture(scope="module")
def loader() -> DataLoader[Any]:
    return DataLoader(Items(), batch_size=32)


def test_a_lightning_module_from_its_loader(ns: ModuleType, loader: DataLoader[Any], tmp_path: Path) -> None:
    module = classifier(ns)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    made = lp.export(module, loader, tmp_path / "m.lpx", loader=loader, **ORT)
    assert made.manifest["call"] == "forward() as validation_step calls it"
    labels, logits = torch.stack([item["label"] for item in Items()]), module(Items().x, 2.0)  # type: ignore[attr-defined]
    wanted = float((logits.argmax(-1) == labels).float().mean())
    assert made.manifest["metric"] == pytest.approx(wanted)
    assert made.manifest["variants"]["onnxruntime-fp32"]["metric"] == pytest.approx(wanted)
    assert abs(made.manifest["variants"]["onnxruntime-int8"]["metric"] - wanted) < 0.1
    torch.testing.assert_close(
        lp.load_artifact(made.path, "onnxruntime-fp32")(Items().x, temperature=2.0),
        logits.detach(),
        atol=1e-5,
        rtol=1e-5,
    )
    assert any("ranges are those of 96 samples" in note for note in made.manifest["notes"])
    assert type(module.net[0]) is nn.Linear
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_the_metric_of_a_module_in_training_moves_no_batch_norm(
    ns: ModuleType, loader: DataLoader[Any], tmp_path: Path
) -> None:
    module = classifier(ns)
    module.net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Linear(32, 3))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    made = lp.export(module, loader, tmp_path / "m.lpx", loader=loader, precisions=["fp32"], **ORT)
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    module.eval()
    labels, logits = torch.stack([item["label"] for item in Items()]), module(Items().x, 2.0)  # type: ignore[attr-defined]
    wanted = float((logits.argmax(-1) == labels).float().mean())
    assert made.manifest["variants"]["onnxruntime-fp32"]["metric"] == pytest.approx(wanted)


def test_a_prepared_module_keeps_its_ranges(tmp_path: Path) -> None:
    """Ranges that clip at 1 show in the artefact; inputs up to 3 would have given others."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 16), nn.Hardtanh(), nn.Linear(16, 4)).eval()
    narrow, wide = torch.rand(64, 4), 3 * torch.rand(64, 4)
    call = describe_call(module, (narrow,))
    prepare(module)
    calibrate(module, call, [[narrow]])
    made = lp.export(module, wide, tmp_path / "m.lpx", precisions=["fp32", "int8"], **ORT)
    entry = made.manifest["variants"]["onnxruntime-int8"]
    assert entry["passed"], entry["reason"]
    wanted = module(wide).detach()
    plain = lp.load_artifact(made.path, "onnxruntime-fp32")(wide)
    found = lp.load_artifact(made.path, "onnxruntime-int8")(wide)
    assert float((plain - wanted).norm() / wanted.norm()) > 0.3
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_an_input_that_the_module_writes_into(tmp_path: Path) -> None:
    """Images as bytes, normalised in place: the user's batch stays, and ranges are those of a first call, not of a third."""

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

        def forward(self, pixels: Tensor) -> Tensor:
            return self.net(pixels.sub_(127).div_(64))

    torch.manual_seed(0)
    module, pixels = Normalised().eval(), 255 * torch.rand(64, 8)
    before = pixels.clone()
    made = lp.export(module, pixels, tmp_path / "m.lpx", precisions=["fp32", "int8"], **ORT)
    assert torch.equal(pixels, before)
    wanted = module(before.clone()).detach()
    found = lp.load_artifact(made.path, "onnxruntime-int8")(before)
    assert float((found - wanted).norm() / wanted.norm()) < 0.03


@pytest.mark.parametrize("prepared", [False, True])
def test_features_before_a_batch_norm_leave_the_artefact_as_they_are(prepared: bool, tmp_path: Path) -> None:
    """Asked for in the exported call alone; in the call without them the norm is folded."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.norm, self.head = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

        def forward(self, x: Tensor, features: bool = False) -> Any:
            y = self.body(x)
            out = self.head(self.norm(y).relu())
            return (out, y) if features else out

    torch.manual_seed(0)
    module, x = Net().eval(), torch.randn(64, 8)
    module.norm.running_mean = torch.full((16,), 3.0)  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        wanted = module(x, features=True)[1]
    if prepared:
        call = describe_call(module, (x,))
        prepare(module)
        calibrate(module, call, [[x]])
    for inputs in ({"x": x, "features": True}, {"x": x}):
        made = lp.export(module, inputs, tmp_path / f"{len(inputs)}.lpx", precisions=["int8"], **ORT)
        entry = made.manifest["variants"]["onnxruntime-int8"]
        assert entry["passed"], entry["reason"]
        if "features" in inputs:
            found = lp.load_artifact(made.path, "onnxruntime-int8")(**inputs)[1]
            assert float((found - wanted).norm() / wanted.norm()) < 0.03


def test_weights_of_a_prepared_module_arrive_to_the_integer(tmp_path: Path) -> None:
    import onnx

    from lightning_perf.quantization.convert import to_qdq

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    module[1].running_var.uniform_(0.5, 2)
    prepare(module)
    x = torch.randn(4, 3, 8, 8)
    calibrate(module, describe_call(module, (x,)), [[x]])
    made = lp.export(module, x, tmp_path / "m.lpx", precisions=["int8"], **ORT)
    graph = onnx.load(made.path / "onnxruntime-int8" / "model.onnx").graph
    stored = [onnx.numpy_helper.to_array(item) for item in graph.initializer if item.name.endswith("weight_q")]
    wanted = to_qdq(module).state_dict()
    assert len(stored) == 2
    for mine, name in zip(stored, ("0.weight_int8", "3.weight_int8"), strict=True):
        assert torch.equal(torch.from_numpy(mine.copy()), wanted[name])


def test_max_drop_rejects_a_variant(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(8, 2))
    scores = iter([0.9, 0.85, 0.9])
    made = lp.export(
        module,
        torch.randn(8, 8),
        tmp_path / "m.lpx",
        metric=lambda run: next(scores),
        max_drop=0.01,
        precisions=["fp32", "int8"],
        **ORT,
    )
    variants = made.manifest["variants"]
    assert "worse by more than 0.01" in variants["onnxruntime-fp32"]["reason"]
    assert made.manifest["ranking"] == ["onnxruntime-int8"]


def test_named_methods_and_kwargs(tmp_path: Path) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def encode(self, ids: Tensor, mask: Tensor | None = None, *, scale: Tensor) -> Tensor:
            return self.inner(ids) * scale

    module, x = Encoder(), torch.randn(6, 4)
    made = lp.export(
        module, {"ids": x, "scale": torch.tensor(2.0)}, tmp_path / "m.lpx", method="encode", precisions=["fp32"], **ORT
    )
    run = lp.load_artifact(made.path)
    torch.testing.assert_close(run(x[:2], scale=torch.tensor(3.0)), module.encode(x[:2], scale=torch.tensor(3.0)))


def test_calls_are_found_by_shape_where_no_step_tells() -> None:
    two = nn.Bilinear(3, 3, 2)
    (args, _), how = arguments_of(two, [torch.ones(2, 3), torch.ones(2, 3)])
    assert (len(args), how) == (2, "forward(*batch)")
    (args, _), how = arguments_of(nn.Linear(3, 2), [torch.ones(2, 3), torch.zeros(2)])
    assert (len(args), how) == (1, "forward(batch[0])")
    with pytest.raises(ValueError, match=r"no call of Linear\.forward.*Pass a dictionary of its arguments by name"):
        arguments_of(nn.Linear(3, 2), [torch.ones(2, 5)])
    with pytest.raises(ValueError, match="has no method of that name"):
        arguments_of(nn.Linear(3, 2), torch.ones(1, 3), "encode")


class Masked(nn.Module):
    """Takes a mask, which may be left out."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3, device=device)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.inner(x) if mask is None else self.inner(x) * mask


def test_labels_are_not_taken_for_an_optional_argument() -> None:
    x, labels = torch.ones(2, 3), torch.zeros(2, 1)
    (args, _), how = arguments_of(Masked(), [x, labels])
    assert (len(args), how) == (1, "forward(batch[0])")
    (args, _), how = arguments_of(nn.Bilinear(3, 3, 2), [x, x, labels])
    assert (len(args), how) == (2, "forward(*batch[:2])")


def test_the_batch_of_a_loader_fits_a_module_on_another_device() -> None:
    (args, _), how = arguments_of(Masked("meta"), [torch.ones(2, 3), torch.zeros(2)])
    assert (args[0].device.type, how) == ("cpu", "forward(batch[0])")


def test_a_step_that_catches_everything_still_tells_its_call() -> None:
    class Caught(nn.Module):
        def forward(self, x: Tensor, flag: Tensor) -> Tensor:
            return x * flag

        def validation_step(self, batch: Any, index: int) -> Any:
            try:
                return self(batch[1], flag=batch[0])
            except Exception:
                return None

    first, second = torch.ones(2), torch.zeros(2)
    (args, kwargs), words = arguments_of(Caught(), [first, second], "forward")
    assert args[0].tolist() == second.tolist()
    assert kwargs["flag"].tolist() == first.tolist()
    assert words == "forward() as validation_step calls it"


def test_the_default_predict_step_is_not_asked(ns: ModuleType) -> None:
    """It would hand a whole batch, labels and all, to ``forward``."""

    class Sequence(ns.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            return self.inner(source) * target

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            source, target = batch
            return self(target, source).sum()

    x, y = torch.ones(2, 4), torch.zeros(2, 4)
    (args, kwargs), how = arguments_of(Sequence(), [x, y])
    assert how == "forward() as training_step calls it"
    assert [bool(one.any()) for one in args] == [False, True]
    assert kwargs == {}


def test_reading_a_loader_costs_no_random_number() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10.0)), batch_size=2, shuffle=True)
    state = torch.get_rng_state()
    assert len(batches_of(loader, 3)) == 3
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="can be read only once"):
        batches_of(iter(loader), 1)


def test_several_loaders_give_batches_in_turn() -> None:
    short, long = (DataLoader(TensorDataset(torch.arange(start, end))) for start, end in ((0, 2), (10, 15)))
    for loaders in ([short, long], {"a": short, "b": [long]}):
        assert [int(batch) for (batch,) in batches_of(loaders, 6)] == [0, 10, 1, 11, 12, 13]
    pair = [torch.ones(2), torch.zeros(2)]
    assert batches_of(pair, 6) == [pair]
    with pytest.raises(ValueError, match="can be read only once"):
        batches_of([short, iter(long)], 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"runtimes": "tensorrt"},
            r"unknown \['tensorrt'\]; choose among \['onnxruntime', 'openvino', 'inductor', 'parts', ",
        ),
        ({"precisions": ["fp8"]}, r"unknown \['fp8'\]; choose among"),
        ({"method": "encode"}, "has no method of that name"),
        ({"metric": "val_acc"}, "pass loader="),
        ({"loader": [1]}, "needs a LightningModule"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        lp.export(nn.Linear(2, 2), torch.ones(2, 2), tmp_path / "m.lpx", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    nn.init.constant_(module[0].bias, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="infinite or NaN values in calibration: the input of 1;"):
        lp.export(module, torch.ones(2, 2), tmp_path / "m.lpx", **ORT)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_quantize_is_said(tmp_path: Path) -> None:
    made = lp.export(nn.Softmax(-1), torch.ones(2, 2), tmp_path / "m.lpx", **ORT)
    assert sorted(made.manifest["variants"]) == ["onnxruntime-fp32"]
    assert "no layer that" in made.manifest["left_out"]["onnxruntime-int8"]

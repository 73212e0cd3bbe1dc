"""Fashion-MNIST from idx files: items, split, loaders, search order, bad files."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recipes.image_classification import data as data_module
from recipes.image_classification import files
from recipes.image_classification.data import FASHION_MNIST, FashionMNISTData
from tests.recipes.idx_files import NAMES, idx, ready, rows, small_data, write_files


@pytest.mark.parametrize("compress", [True, False])
def test_items_are_normalised_images_with_their_labels(nowhere: Path, compress: bool) -> None:
    arrays = write_files(nowhere / "root", compress=compress)
    data = ready(small_data(nowhere / "root"), "test")
    assert data.test_set is not None
    image, label = data.test_set[13]
    assert image.shape == (1, 28, 28)
    assert image.dtype == torch.float32
    assert label == 3
    expected = (arrays["t10k-images-idx3-ubyte"][13] / 255 - 0.2860) / 0.3530
    torch.testing.assert_close(image[0], expected)


def test_loaders_give_whole_training_batches_and_every_evaluation_image(synthetic: Path) -> None:
    data = ready(small_data(synthetic), "fit", "test")
    train = list(data.train_dataloader())
    assert [tuple(images.shape) for images, _ in train] == [(16, 1, 28, 28)] * 3  # 50 images: 2 are dropped
    assert [len(images) for images, _ in data.val_dataloader()] == [10]
    assert [len(images) for images, _ in data.test_dataloader()] == [16, 4]
    assert train[0][1].dtype == torch.int64


@pytest.mark.parametrize(
    ("loader", "stage"), [("train", "fit"), ("val", "validate"), ("test", "test"), ("predict", "test")]
)
def test_loader_before_setup_says_what_to_call(synthetic: Path, loader: str, stage: str) -> None:
    with pytest.raises(ValueError, match=rf"setup\('{stage}'\) first"):
        getattr(small_data(synthetic), f"{loader}_dataloader")()


def test_training_is_shuffled_and_evaluation_is_not(synthetic: Path) -> None:
    data = ready(small_data(synthetic), "fit", "test")
    torch.manual_seed(0)
    first, second = (torch.cat([labels for _, labels in data.train_dataloader()]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat([labels for _, labels in data.test_dataloader()]), torch.arange(20) % 10)


def test_split_is_a_partition(synthetic: Path) -> None:
    data = ready(small_data(synthetic))
    train, val = rows(data.train_set), rows(data.val_set)
    images = torch.unbind(files.read(synthetic, "train")[0])
    assert (len(train), len(val)) == (50, 10)
    assert sorted(train + val) == sorted(image.numpy().tobytes() for image in images)


def test_split_follows_its_own_seed_only(synthetic: Path) -> None:
    torch.manual_seed(1)
    one = rows(ready(small_data(synthetic)).val_set)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    same = rows(ready(small_data(synthetic)).val_set)
    assert torch.equal(torch.get_rng_state(), state)
    other = rows(ready(small_data(synthetic, seed=1)).val_set)
    assert one == same
    assert one != other


def test_train_limit_takes_training_images_only(synthetic: Path) -> None:
    data = ready(small_data(synthetic, train_limit=20))
    train = rows(data.train_set)
    assert len(train) == 20
    assert train == rows(ready(small_data(synthetic)).train_set)[:20]
    assert not set(train) & set(rows(data.val_set))
    assert len(rows(ready(small_data(synthetic, train_limit=1000)).train_set)) == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_size": 0}, "val_size=0"),
        ({"val_size": 60}, "val_size=60 is too much for 60 training images"),
        ({"val_size": 50}, r"10 training images \(val_size=50, train_limit=None\) .* lower batch_size=16"),
        ({"train_limit": 15}, r"15 training images \(val_size=10, train_limit=15\)"),
        ({"train_limit": 0}, r"0 training images"),
    ],
)
def test_sizes_that_leave_nothing_are_refused(synthetic: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(small_data(synthetic, **arguments))


def damage_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def damage_magic(path: Path) -> None:
    path.write_bytes(gzip.compress(b"\x00\x00\x0d" + gzip.decompress(path.read_bytes())[3:]))


def damage_length(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"\x00"))


def damage_to_text(path: Path) -> None:
    path.write_text("<html>404</html>")


def damage_to_nothing(path: Path) -> None:
    path.write_bytes(gzip.compress(b""))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_end, "is damaged"),
        (damage_to_text, "is damaged"),
        (damage_magic, r"not an idx file of bytes in 3 dimension"),
        (damage_to_nothing, r"not an idx file"),
        (damage_length, "announces 60 x 28 x 28 bytes but holds 47041"),
    ],
)
def test_damaged_file_is_named(synthetic: Path, damage: Callable[[Path], None], message: str) -> None:
    path = synthetic / "train-images-idx3-ubyte.gz"
    damage(path)
    with pytest.raises(ValueError, match=rf"{path}.*{message}.*delete it or replace it"):
        ready(small_data(synthetic))


def test_images_and_labels_must_belong_together(synthetic: Path) -> None:
    (synthetic / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(torch.arange(19) % 10)))
    with pytest.raises(ValueError, match="20 test images but 19 labels"):
        ready(small_data(synthetic), "test")
    (synthetic / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(torch.arange(20))))
    with pytest.raises(ValueError, match="test label 19"):
        ready(small_data(synthetic), "test")


def test_folders_are_searched_in_order(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(data_module, "rank_zero_info", lines.append)
    write_files(nowhere / "cache" / "fashion-mnist", train=40)
    write_files(nowhere / "debian", train=50)
    root = nowhere / "root"
    write_files(root, train=60)
    assert len(rows(ready(small_data(root, batch_size=8)).train_set)) == 50
    assert len(rows(ready(small_data(None, batch_size=8)).train_set)) == 40
    (root / f"{NAMES[0]}.gz").unlink()  # an incomplete folder does not count
    assert len(rows(ready(small_data(root, batch_size=8)).train_set)) == 40
    (nowhere / "debian" / f"{NAMES[3]}.gz").unlink()
    assert len(rows(ready(small_data(root, batch_size=8)).train_set)) == 30
    folders = [root, nowhere / "debian", nowhere / "debian", nowhere / "cache" / "fashion-mnist"]
    assert lines == [f"Fashion-MNIST: reading {folder}" for folder in folders]


@pytest.mark.skipif(files.find([files.DEBIAN]) is None, reason=f"no Fashion-MNIST in {files.DEBIAN}")
def test_debian_package_holds_the_published_data() -> None:
    for name, expected in files.SHA256.items():
        with gzip.open(files.DEBIAN / f"{name}.gz") as stream:
            assert hashlib.sha256(stream.read()).hexdigest() == expected, name
    data = ready(FashionMNISTData(download=False), "fit", "test")
    sizes = [len(loader.dataset) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]  # type: ignore[arg-type]
    assert sizes == [55_000, 5_000, 10_000]
    images, labels = files.read(files.DEBIAN, "train")
    assert torch.bincount(labels).tolist() == [6000] * 10
    counts = torch.bincount(images.flatten(), minlength=256).double()
    grey = torch.arange(256).double() / 255
    mean = (counts * grey).sum() / counts.sum()
    std = ((counts * (grey - mean) ** 2).sum() / counts.sum()).sqrt()
    assert (mean.item(), std.item()) == pytest.approx(FASHION_MNIST, abs=5e-5)

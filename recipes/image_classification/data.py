"""Fashion-MNIST as an ordinary LightningDataModule."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, random_split

from . import files

# Mean and standard deviation of the pixels, scaled to [0, 1], of the images that are not for testing.
FASHION_MNIST = (0.2860, 0.3530)
DIGITS = (0.2244, 0.3488)
DIGITS_VAL_SIZE = 180


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Grey images (N, H, W) uint8 with labels (N,); an item is a normalised float image (1, H, W) and its label."""

    def __init__(self, images: Tensor, labels: Tensor, mean: float, std: float) -> None:
        self.images = images
        self.labels = labels
        self.mean = mean
        self.std = std

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index].unsqueeze(0).float() / 255
        return (image - self.mean) / self.std, int(self.labels[index])


class FashionMNISTData(L.LightningDataModule):
    """Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747): 10 classes of clothing, 28 x 28 grey pixels.

    The four files (`train-images-idx3-ubyte.gz` and so on, compressed or not) are looked for in `root`, in the folder
    of Debian's package `dataset-fashion-mnist` and in the user's cache folder; else they are downloaded into `root`,
    or the cache folder where `root` is None. Where that is not possible either, the data module says so and serves
    scikit-learn's 1797 handwritten digits in the same shape, with at most 180 images for validation.

    Args:
        root: folder with the files, and for the download.
        batch_size: images per training batch; an incomplete last batch is dropped.
        eval_batch_size: images per batch in validation, test and prediction (which reads the test images).
        num_workers: worker processes per loader.
        val_size: training images set aside for validation, the same ones for every run with the same `seed`.
        train_limit: use only so many of the remaining training images.
        seed: of the split into training and validation images, and of nothing else.
        download: allow the download.

    Raises:
        ValueError: `val_size` or `train_limit` leaves no validation image or no training batch; a file is damaged.
        RuntimeError: the download delivered something else than the published files.
        ModuleNotFoundError: no files, no network, no scikit-learn.

    Example::

        >>> data = FashionMNISTData(batch_size=32, train_limit=320)
        >>> data.prepare_data()
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, images.dtype, labels.shape
        (torch.Size([32, 1, 28, 28]), torch.float32, torch.Size([32]))
    """

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        num_workers: int = 0,
        val_size: int = 5000,
        train_limit: int | None = None,
        seed: int = 0,
        download: bool = True,
    ) -> None:
        super().__init__()
        if val_size < 1:
            raise ValueError(f"val_size={val_size} leaves nothing to validate on: set aside at least 1 image.")
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.val_size = val_size
        self.train_limit = train_limit
        self.seed = seed
        self.download = download

        self.download_folder = Path(root).expanduser() if root else files.cache_folder()
        self.folders = [*([self.download_folder] if root else []), files.DEBIAN, files.cache_folder()]
        self.train_set: Dataset[tuple[Tensor, int]] | None = None
        self.val_set: Dataset[tuple[Tensor, int]] | None = None
        self.test_set: Dataset[tuple[Tensor, int]] | None = None
        self._decided = False
        self._folder: Path | None = None
        self._no_download = "download=False" if not download else "prepare_data() was not called"

    def prepare_data(self) -> None:
        if self.download and files.find(self.folders) is None:
            try:
                files.download(self.download_folder)
            except files.Unreachable as error:
                self._no_download = str(error)

    def setup(self, stage: str) -> None:
        if stage in ("fit", "validate") and self.train_set is None:
            dataset = self._load("train")
            self.train_set, self.val_set = self._split(dataset)
        if stage in ("test", "predict") and self.test_set is None:
            self.test_set = self._load("test")

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        dataset = _loaded(self.train_set, "fit")
        return DataLoader(
            dataset, batch_size=self.batch_size, shuffle=True, drop_last=True, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        dataset = _loaded(self.val_set, "validate")
        return DataLoader(dataset, batch_size=self.eval_batch_size, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        dataset = _loaded(self.test_set, "test")
        return DataLoader(dataset, batch_size=self.eval_batch_size, num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        return self.test_dataloader()

    def _load(self, part: str) -> ImageDataset:
        if not self._decided:
            self._folder = files.find(self.folders)
            self._announce()
            self._decided = True
        if self._folder is None:
            return ImageDataset(*files.digits(part), *DIGITS)
        return ImageDataset(*files.read(self._folder, part), *FASHION_MNIST)

    def _announce(self) -> None:
        if self._folder is not None:
            rank_zero_info(f"Fashion-MNIST: reading {self._folder}")
            return
        searched = ", ".join(map(str, self.folders))
        missing = f"Fashion-MNIST is in none of {searched}, and was not downloaded ({self._no_download})."
        if not files.has_digits():
            raise ModuleNotFoundError(
                f"{missing} Any one of these helps: put the four idx files into a folder and pass it as root; install "
                "Debian's package dataset-fashion-mnist; allow the download (download=True, with network); or "
                "`pip install scikit-learn` to run on its bundled digits instead."
            )
        rank_zero_warn(
            f"{missing} Running on scikit-learn's handwritten digits instead: 1437 training and 360 test images, so "
            "no number of this run compares with Fashion-MNIST."
        )

    def _split(self, dataset: ImageDataset) -> tuple[Dataset[tuple[Tensor, int]], Dataset[tuple[Tensor, int]]]:
        val_size = self.val_size if self._folder is not None else min(self.val_size, DIGITS_VAL_SIZE)
        rest = len(dataset) - val_size
        if rest < 1:
            raise ValueError(
                f"val_size={val_size} is too much for {len(dataset)} training images: lower it so that at least one "
                f"batch of {self.batch_size} is left."
            )
        generator = torch.Generator().manual_seed(self.seed)
        train, val = random_split(dataset, [rest, val_size], generator=generator)
        if self.train_limit is not None and self.train_limit < rest:
            rest = self.train_limit
            train = Subset(dataset, train.indices[:rest])
        if rest < self.batch_size:
            raise ValueError(
                f"{rest} training images (val_size={val_size}, train_limit={self.train_limit}) do not fill one batch: "
                f"lower batch_size={self.batch_size}."
            )
        return train, val


def _loaded(dataset: Dataset[tuple[Tensor, int]] | None, stage: str) -> Dataset[tuple[Tensor, int]]:
    if dataset is None:
        raise ValueError(f"the images for {stage!r} are not loaded: call prepare_data() and setup({stage!r}) first.")
    return dataset

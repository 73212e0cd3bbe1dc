"""An ordinary text-to-mel synthesiser, as one would write it from the documentation of Lightning."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from .networks import TextToMel

Batch = tuple[Tensor, Tensor, Tensor]


class MeanSpectrum(nn.Module):
    """The mean of all frames it has seen, (mels,); what the naive synthesiser says at any text and time."""

    mean: Tensor
    frames: Tensor

    def __init__(self, mels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(mels))
        self.register_buffer("frames", torch.zeros(()))

    def update(self, levels: Tensor, inside: Tensor) -> None:
        """Take in the frames of (B, mels, T) where (B, 1, T) is True."""
        self.frames += inside.sum()
        self.mean += ((levels - self.mean.unsqueeze(1)) * inside).sum(dim=(0, 2)) / self.frames


class MelSynthesiser(L.LightningModule):
    """A text-to-mel network, mean absolute error and AdamW.

    Batches are (letters (B, N) int64, 0 for no letter; levels (B, mels, T) in dB; frames (B,) int64). Logs with the prefixes
    `train_`, `val_` and `test_`: `loss`, `distance` (mean absolute difference of the levels, in dB; the true number of
    frames is given, so that frame can be compared with frame) and `length_error` (mean absolute error of that number, in
    percent, where the network says it); and, with the latter two, `naive_distance`: the distance of the mean spectrum of
    training from the same clips.

    Args:
        letters: different letters of the data.
        mels: bands of the data.
        width: channels of every layer.
        layers: convolutions over letters, and as many over frames.
        kernel: letters or frames that a convolution sees; odd.
        dropout: in training.
        softness: frames over which neighbouring letters mix.
        mean: middle of the levels, in dB; the network starts from it.
        scale: about the deviation of the levels, in dB.
        lr: learning rate.
        weight_decay: of AdamW.

    Raises:
        ValueError: `kernel` is even; a batch with another number of mel bands, or with a letter beyond `letters`.

    Example::

        >>> import torch
        >>> module = MelSynthesiser(letters=27)
        >>> module(torch.tensor([[3, 1, 20]]), frames=torch.tensor([30])).shape
        torch.Size([1, 40, 30])
    """

    def __init__(
        self,
        letters: int = 27,
        mels: int = 40,
        width: int = 96,
        layers: int = 3,
        kernel: int = 5,
        dropout: float = 0.1,
        softness: float = 3.0,
        mean: float = -50.0,
        scale: float = 20.0,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} is even and has no middle: choose {kernel + 1}.")
        self.save_hyperparameters()
        self.letters = letters
        self.mels = mels
        self.mean = mean
        self.scale = scale
        self.lr = lr
        self.weight_decay = weight_decay
        self.net = TextToMel(letters, mels, width, layers, kernel, dropout, softness)
        self.mean_spectrum = MeanSpectrum(mels)

    def forward(self, letters: Tensor, frames: Tensor | None = None) -> Tensor:
        """Levels (B, mels, T) in dB of encoded texts (B, N); as long as `frames` (B,) says, or as the network finds."""
        return self.net(letters, frames)[1] * self.scale + self.mean

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, levels, inside = self._step(batch, "train")
        self.mean_spectrum.update(levels, inside)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Levels (B, mels, T) in dB of the texts, as long as the network finds; the clips are not looked at."""
        self._check_letters(batch[0])
        return self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def _evaluate(self, batch: Batch, part: str) -> None:
        _, levels, inside = self._step(batch, part)
        naive = distance(self.mean_spectrum.mean.unsqueeze(1), levels, inside)
        self.log(f"{part}_naive_distance", naive, batch_size=self._weight(inside), sync_dist=True)

    def _step(self, batch: Batch, part: str) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, and levels with the mask of their frames (B, 1, T)."""
        letters, levels, frames = batch
        if levels.shape[1] != self.mels:
            raise ValueError(
                f"spectra of {levels.shape[1]} bands do not fit mels={self.mels}: give model and data the same "
                f"(on the command line --model.init_args.mels={levels.shape[1]})."
            )
        self._check_letters(letters)
        lengths, said = self.net(letters, frames)
        inside = (torch.arange(levels.shape[2], device=frames.device) < frames.unsqueeze(1)).unsqueeze(1)
        away = distance(said * self.scale + self.mean, levels, inside)
        length_error = (lengths.sum(dim=1) / frames - 1).abs().mean()
        loss = away / self.scale + length_error
        # Distances are means over frames, so that frames weigh the batches of an epoch; lengths are by clip. What training
        # shows at every step is that of its own process, since an exchange at every step would take time.
        clips, steps = len(frames), part == "train"
        whole: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True}
        loss_of: dict[str, Any] = whole | {"on_step": steps, "sync_dist": not steps}
        self.log(f"{part}_loss", loss, prog_bar=True, batch_size=clips, **loss_of)
        self.log(f"{part}_distance", away, prog_bar=True, batch_size=self._weight(inside), **whole)
        self.log(f"{part}_length_error", 100 * length_error, batch_size=clips, **whole)
        return loss, levels, inside

    def _weight(self, inside: Tensor) -> int:
        # Lightning divides the sum of the weights by the number of processes and drops the fraction: here there is none.
        return int(inside.sum()) * self.trainer.world_size

    def _check_letters(self, letters: Tensor) -> None:
        # Only where looking does not wait for a device; a GPU ends with an assertion of its own.
        highest = int(letters.max()) if letters.device.type == "cpu" else 0
        if highest > self.letters:
            raise ValueError(
                f"letter {highest} does not fit letters={self.letters}: give the model as many letters as the "
                f"alphabet of the data has (on the command line --model.init_args.letters={highest}, or more)."
            )


def distance(said: Tensor, levels: Tensor, inside: Tensor) -> Tensor:
    """Mean absolute difference of (B, mels, T) over the frames where (B, 1, T) is True.

    Example::

        >>> levels, inside = torch.zeros(1, 2, 3), torch.tensor([[[True, True, False]]])
        >>> distance(torch.tensor([[[1.0, 2.0, 9.0], [3.0, 4.0, 9.0]]]), levels, inside).item()
        2.5
    """
    return ((said - levels).abs() * inside).sum() / (inside.sum() * levels.shape[1])

"""An ordinary regressor of molecules, as one would write it from the documentation of Lightning."""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError

from .graphs import Graphs
from .networks import MessagePassingNetwork


class PropertyRegressor(L.LightningModule):
    """Message passing, squared error and AdamW; batches are `Graphs` of B molecules.

    The network predicts how many deviations (`scale`) a target lies above `mean`; the loss is the mean of the squares
    of that difference. Logs `loss`, and in the unit of the target `mae` and `rmse`, with the prefix `train_`, `val_` or
    `test_`; training logs `train_loss` and `train_mae`.

    Raises:
        ValueError: `scale` is not above 0.

    Example::

        >>> bonds = torch.tensor([[0, 1], [1, 0]])  # of a molecule with two atoms; beside it one of a single atom
        >>> batch = Graphs(torch.zeros(3, 26), bonds, torch.zeros(2, 6), torch.tensor([0, 0, 1]), torch.zeros(2))
        >>> PropertyRegressor(mean=-3.8, scale=3.8)(batch).shape
        torch.Size([2])
    """

    def __init__(
        self,
        width: int = 64,
        layers: int = 3,
        mean: float = 0.0,
        scale: float = 1.0,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"scale={scale} is not above 0: pass the deviation of the targets, or 1.")
        self.save_hyperparameters()
        self.mean = mean
        self.scale = scale
        self.lr = lr
        self.weight_decay = weight_decay
        self.net = MessagePassingNetwork(width, layers)
        self.train_mae = MeanAbsoluteError()
        self.val_mae = MeanAbsoluteError()
        self.val_rmse = MeanSquaredError(squared=False)
        self.test_mae = MeanAbsoluteError()
        self.test_rmse = MeanSquaredError(squared=False)

    def forward(self, batch: Graphs) -> Tensor:
        """Predictions (B,) in the unit of the targets."""
        return self.mean + self.scale * self.net(batch).float()

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error in deviations."""
        return F.mse_loss(predictions / self.scale, targets / self.scale)

    def training_step(self, batch: Graphs, batch_idx: int) -> Tensor:
        predictions = self(batch)
        loss = self.loss(predictions, batch.targets)
        size = batch.num_graphs  # no tensor of the batch but the targets has a row per molecule
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=size)
        self.train_mae(predictions, batch.targets)
        self.log("train_mae", self.train_mae, on_step=False, on_epoch=True, batch_size=size)
        return loss

    def validation_step(self, batch: Graphs, batch_idx: int) -> None:
        self._evaluate("val", batch, self.val_mae, self.val_rmse)

    def test_step(self, batch: Graphs, batch_idx: int) -> None:
        self._evaluate("test", batch, self.test_mae, self.test_rmse)

    def predict_step(self, batch: Graphs, batch_idx: int) -> Tensor:
        """Predictions (B,); the targets of the batch are not looked at."""
        return self(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def _evaluate(self, prefix: str, batch: Graphs, mae: MeanAbsoluteError, rmse: MeanSquaredError) -> None:
        predictions, size = self(batch), batch.num_graphs
        loss = self.loss(predictions, batch.targets)
        self.log(f"{prefix}_loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        mae(predictions, batch.targets)
        self.log(f"{prefix}_mae", mae, prog_bar=True, batch_size=size)
        rmse(predictions, batch.targets)
        self.log(f"{prefix}_rmse", rmse, batch_size=size)

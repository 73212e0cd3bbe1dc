"""Message passing over atoms and bonds, after Gilmer et al. 2017, https://arxiv.org/abs/1704.01212."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .graphs import ATOM_FEATURES, BOND_FEATURES, Graphs


class MessagePassing(nn.Module):
    """Every atom sums messages of its neighbours and changes its state by what they and it say.

    Shapes: states (A, width), bonds (2, E), bond features (E, BOND_FEATURES) to (A, width). Deviation from the paper: a
    message is one linear layer with a ReLU over the neighbour's state and the bond, and the update is one over the
    state and the sum, added to the state, in the place of a gated recurrent unit.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.message = nn.Linear(width + BOND_FEATURES, width)
        self.update = nn.Linear(2 * width, width)

    def forward(self, states: Tensor, bonds: Tensor, bond_features: Tensor) -> Tensor:
        source, target = bonds
        messages = F.relu(self.message(torch.cat([states[source], bond_features], dim=1)))
        summed = messages.new_zeros(len(states), messages.shape[1]).index_add(0, target, messages)
        return states + F.relu(self.update(torch.cat([states, summed], dim=1)))


class MessagePassingNetwork(nn.Module):
    """States of atoms, `layers` rounds of messages, the mean over each molecule's atoms, one hidden layer, one number.

    Shapes: graphs of B molecules to (B,).

    Example::

        >>> sum(p.numel() for p in MessagePassingNetwork(64, 3).parameters())
        44353
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.atoms = nn.Linear(ATOM_FEATURES, width)
        self.rounds = nn.ModuleList(MessagePassing(width) for _ in range(layers))
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, 1)

    def forward(self, batch: Graphs) -> Tensor:
        states = F.relu(self.atoms(batch.atoms))
        for passing in self.rounds:
            states = passing(states, batch.bonds, batch.bond_features)
        summed = states.new_zeros(batch.num_graphs, states.shape[1]).index_add(0, batch.owner, states)
        counts = torch.bincount(batch.owner, minlength=batch.num_graphs).unsqueeze(1)
        return self.head(F.relu(self.hidden(summed / counts))).squeeze(1)

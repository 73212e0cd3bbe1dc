"""How many weights of a module are zero, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lightning_perf.pruning.targets import Targets, find_targets
from lightning_perf.report import Section


@dataclass(frozen=True)
class Sparsity:
    """Zeros and weights by name of the layer's weight, and what was left out by reason."""

    layers: Mapping[str, tuple[int, int]]
    left_out: Mapping[str, list[str]]

    @property
    def zeros(self) -> int:
        """Weights that are zero."""
        return sum(zeros for zeros, _ in self.layers.values())

    @property
    def weights(self) -> int:
        """Weights that could be pruned."""
        return sum(count for _, count in self.layers.values())

    @property
    def total(self) -> float:
        """Share of zeros over all of them."""
        return self.zeros / self.weights

    def of(self, name: str) -> float:
        """Share of zeros in one weight."""
        zeros, count = self.layers[name]
        return zeros / count

    def section(self) -> Section:
        """A table of the layers for a report, with what was left out in words."""
        sentences = [f"{self.total:.2%} of {self.weights:,} weights are zero."]
        sentences += [f"Left out, {reason}: {', '.join(names)}." for reason, names in self.left_out.items()]
        rows = [
            (name, f"{count:,}", f"{zeros:,}", f"{zeros / count:.2%}") for name, (zeros, count) in self.layers.items()
        ]
        return Section("Sparsity", sentences, ("weight", "entries", "zeros", "sparsity"), rows)

    def table(self) -> str:
        """The section as text."""
        section = self.section()
        rows = [section.headers, *section.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(section.headers))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *section.sentences])


def sparsity(module: nn.Module) -> Sparsity:
    """Count the zeros in the weights of convolutions, linear layers, attention projections and recurrent layers.

    Biases, norms, embeddings and what is tied to one are not counted: they are listed in ``left_out`` by reason.

    Args:
        module: any module, trained with or without :class:`lightning_perf.MagnitudePruning`.

    Raises:
        ValueError: the module has no such layer.

    Example::

        >>> layer = nn.Linear(4, 2)
        >>> _ = nn.init.zeros_(layer.weight[0])
        >>> found = sparsity(layer)
        >>> found.total, found.layers, found.left_out
        (0.5, {'weight': (4, 8)}, {'biases': ['bias']})
    """
    return sparsity_of(find_targets(module, trainable=False))


def sparsity_of(targets: Targets) -> Sparsity:
    """The zeros in weights that have been found already."""
    counts = {name: (int((target.weight == 0).sum()), target.weight.numel()) for name, target in targets.found.items()}
    return Sparsity(counts, targets.left_out)

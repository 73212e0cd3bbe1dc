"""How the goals of pruning stand while only a part of the runs is there."""

from __future__ import annotations

from benchmarks import channel_accuracy, channel_perplexity, pruning_accuracy
from lightning_perf.report import Run


def runs_of(key: str, ends: dict[str, dict[int, float]]) -> list[Run]:
    return [Run(name, seed, quantities={key: value}) for name, one in ends.items() for seed, value in one.items()]


def test_accuracies_are_compared_seed_by_seed() -> None:
    """The seed that only one side has would turn every verdict round."""
    runs = runs_of(
        "final_metric",
        {
            "dense": {0: 0.90, 1: 0.80, 2: 0.50},
            "ours 2": {0: 0.899, 1: 0.799},
            "small 2": {1: 0.79, 3: 1.0},
            "narrow 2": {0: 0.91, 4: 0.1},
            "ours 4": {2: 0.48, 3: 0.99},
            "torch-pruning 4": {0: 0.1},
        },
    )
    assert channel_accuracy.verdicts(runs) == [
        "GOAL MACs/2, 2 seeds: drop <= 0.3 points: 0.10: met",
        "GOAL MACs/2, 1 seeds: not below small: +0.90 points: met",
        "GOAL MACs/2, 1 seeds: not below narrow: -1.10 points: NOT met",
        "GOAL MACs/4, 1 seeds: drop <= 1.0 points: 2.00: NOT met",
    ]


def test_perplexities_are_compared_seed_by_seed() -> None:
    runs = runs_of("perplexity", {"dense": {0: 4.0, 1: 8.0}, "ours": {0: 4.2, 2: 1.0}})
    assert channel_perplexity.verdicts(runs) == [
        "GOAL blocks' MACs/1.5, 1 seeds: perplexity <= 1.03x: 1.0500x: NOT met"
    ]
    assert channel_perplexity.verdicts(runs[1:]) == []


def test_zeros_are_compared_seed_by_seed() -> None:
    runs = runs_of(
        "final_metric",
        {
            "dense": {0: 0.90, 1: 0.80, 2: 0.10},
            "ours 0.8": {0: 0.90, 1: 0.799},
            "lightning once 0.8": {0: 0.90},
            "lightning gradual 0.8": {1: 0.79, 2: 0.99},
            "lightning once 0.9": {0: 0.5},
        },
    )
    assert pruning_accuracy.verdicts(runs) == [
        "GOAL 80%, 2 seeds: drop <= 0.1 points: 0.05: met",
        "GOAL 80%, 1 seeds: above lightning once: +0.00 points: NOT met",
        "GOAL 80%, 1 seeds: above lightning gradual: +0.90 points: met",
    ]

"""Selection, N:M groups, schedules and packed bits, against naive references."""

from __future__ import annotations

import itertools
import math
import struct

import pytest
import torch
from torch import Tensor, nn

from lightning_perf.pruning.criteria import add_movement_, magnitude, random_score
from lightning_perf.pruning.hold import Holder
from lightning_perf.pruning.masks import keep_highest, keep_n_of_m, keep_towards_n_of_m, pack, parse_pattern, unpack
from lightning_perf.pruning.pruner import Pruner
from lightning_perf.pruning.schedule import UPDATES, sparsity_at
from lightning_perf.pruning.targets import find_targets


def pruned_by_sorting(values: list[float], gone: set[int], count: int) -> set[int]:
    """Indices of the ``count`` lowest, those already gone first, of equal values the first."""
    order = sorted(range(len(values)), key=lambda i: (i not in gone, values[i], i))
    return set(order[:count])


@pytest.mark.parametrize("levels", [3, 1000], ids=["ties", "distinct"])
def test_keep_highest_is_the_sorted_selection(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    scores = {
        "a": torch.randint(levels, (4, 5), generator=generator).float(),
        "b": torch.randint(levels, (3, 2, 2), generator=generator).float(),
    }
    kept = {name: torch.rand(score.shape, generator=generator) > 0.2 for name, score in scores.items()}
    values = torch.cat([score.flatten() for score in scores.values()]).tolist()
    gone = {i for i, mask in enumerate(torch.cat([mask.flatten() for mask in kept.values()])) if not mask}
    for count in range(len(gone), len(values)):
        masks = keep_highest(scores, kept, count)
        assert [mask.shape for mask in masks.values()] == [(4, 5), (3, 2, 2)]
        flat = torch.cat([mask.flatten() for mask in masks.values()])
        assert set((~flat).nonzero().flatten().tolist()) == pruned_by_sorting(values, gone, count)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 8)])
def test_n_of_m_by_brute_force(n: int, m: int) -> None:
    """Of all choices of n in every group, the one with the largest sum of scores."""
    score = torch.rand(3, 2 * m, 2, generator=torch.Generator().manual_seed(0))
    kept = keep_n_of_m(score, n, m, 1)
    for row, group, column in itertools.product(range(3), range(2), range(2)):
        part = slice(group * m, (group + 1) * m)
        values = score[row, part, column].tolist()
        best = max(itertools.combinations(range(m), n), key=lambda choice: sum(values[i] for i in choice))
        assert kept[row, part, column].nonzero().flatten().tolist() == list(best)


def test_on_the_way_to_n_of_m_nothing_comes_back_and_no_group_loses_more() -> None:
    score = {"w": torch.rand(8, 8, generator=torch.Generator().manual_seed(1))}
    kept = {"w": torch.ones(8, 8, dtype=torch.bool)}
    for share in (0.3, 0.7, 1.0):
        before = kept
        kept = keep_towards_n_of_m(score, kept, {"w": 1}, 2, 4, share)
        assert int((~kept["w"]).sum()) == round(share * 32)
        assert not bool((kept["w"] & ~before["w"]).any())
        assert int(kept["w"].view(8, 2, 4).sum(-1).min()) >= 2
    assert torch.equal(kept["w"], keep_n_of_m(score["w"], 2, 4, 1))


def test_cubic_is_the_formula_of_the_paper() -> None:
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 with t_0 = 100, n dt = 600 and s_i = 0."""
    for t in range(100, 701, 6):
        expected = 0.9 + (0.0 - 0.9) * (1 - (t - 100) / 600) ** 3
        found = sparsity_at(t / 1000, final=0.9, schedule="cubic", start=0.1, end=0.7)
        one_earlier = (
            0.9 + (0.0 - 0.9) * (1 - (t - 106) / 600) ** 3
        )  # where t / 1000 falls short of its step by a rounding
        assert found == pytest.approx(expected) or found == pytest.approx(one_earlier)
    ramp = [sparsity_at(t / 5000, final=0.9, schedule="cubic", start=0.1, end=0.7) for t in range(5001)]
    assert ramp == sorted(ramp)
    assert len(set(ramp)) == UPDATES + 1


def test_one_shot() -> None:
    at = {"final": 0.5, "schedule": "one_shot", "start": 0.3, "end": 0.3}
    assert [sparsity_at(fraction, **at) for fraction in (0.0, 0.29, 0.3, 1.0)] == [0.0, 0.0, 0.5, 0.5]


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5), (2, 3, 7)])
def test_packed_bits_come_back(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == math.ceil(mask.numel() / 8)
    assert torch.equal(unpack(packed, shape), mask)
    for index, entry in enumerate(mask.flatten().tolist()):
        assert bool(packed[index // 8] >> index % 8 & 1) == entry


@pytest.mark.parametrize("pattern", ["2/4", "4:2", "0:4", "4:4", "2:", "", "x:y"])
def test_unknown_patterns(pattern: str) -> None:
    with pytest.raises(ValueError, match="neither 'unstructured' nor N:M"):
        parse_pattern(pattern)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_held_zeros_are_positive_whatever_stood_there(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.tensor([-1.5, float("nan"), float("-inf"), 2.5], dtype=dtype))
    holder = Holder({weight: torch.tensor([False, False, False, True])})
    holder.hold([(weight, weight)])
    assert weight.tolist() == [0.0, 0.0, 0.0, 2.5]
    assert struct.pack("3d", *weight[:3].tolist()) == bytes(24)  # a minus sign would be a bit


def test_hold_keeps_every_other_bit_and_the_layout() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    before, mask = weight.detach().clone(), torch.rand(4, 3, 2, 2) > 0.5
    Holder({weight: mask}).hold([(weight, weight)])
    assert torch.equal(weight.detach(), torch.where(mask, before, torch.zeros(())))
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_held_after_tensors_were_replaced_behind_its_back() -> None:
    """A relayout moves memory, a restore replaces tensors, a late parameter brings new ones."""
    torch.manual_seed(0)
    first, late = nn.Parameter(torch.randn(4, 3, 2, 2)), nn.Parameter(torch.randn(3, 3))
    optimizer = torch.optim.AdamW([first, late], lr=0.1)
    masks = {p: torch.rand(p.shape) > 0.5 for p in (first, late)}
    holder = Holder(masks)

    def step_and_check(*parameters: nn.Parameter) -> None:
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        holder.hold_step(optimizer)
        for parameter in parameters:
            values = [parameter, optimizer.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg_sq"]]
            assert all(bool((value[~masks[parameter]] == 0).all()) for value in values)
            assert all(bool((value[masks[parameter]] != 0).all()) for value in values)

    step_and_check(first)
    step_and_check(first, late)
    first.data = first.data.contiguous(memory_format=torch.channels_last)
    step_and_check(first, late)
    optimizer.load_state_dict(optimizer.state_dict())
    step_and_check(first, late)
    optimizer.state[late]["exp_avg"] = torch.randn(3, 3)
    step_and_check(first, late)


def test_state_in_other_coordinates_is_left_alone() -> None:
    """SOAP's second moment lives in a rotated basis: a zero there would make a step of the size 1 / eps."""
    from lightning_perf.optim.soap import SOAP

    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 6))
    optimizer = SOAP([weight], lr=0.01)
    holder = Holder({weight: torch.rand(4, 6) > 0.5})
    for _ in range(5):
        weight.grad = torch.randn(4, 6)
        optimizer.step()
        holder.hold_step(optimizer)
    assert bool((optimizer.state[weight]["exp_avg_sq"] > 0).all())
    assert float(weight.detach().abs().max()) < 10
    assert int((weight == 0).sum()) == int((~holder._masks[weight]).sum())


def test_scores() -> None:
    assert magnitude(torch.tensor([-2.0, 1.0], dtype=torch.bfloat16)).dtype == torch.float32
    score = torch.tensor([1.0, 1.0])
    add_movement_(score, torch.tensor([2.0, -2.0]), torch.tensor([3.0, 0.5]))
    assert score.tolist() == [1.0 - 6.0, 1.0 + 1.0]
    weight, state = torch.zeros(50), torch.random.get_rng_state()
    draws = [random_score(name, weight, seed) for name, seed in (("a", 0), ("b", 0), ("a", 1))]
    assert all(not torch.equal(x, y) for x, y in itertools.combinations(draws, 2))
    assert torch.equal(torch.random.get_rng_state(), state)


class Odd(nn.Module):
    """Everything that is not to be pruned, beside a few weights that are."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.rnn = nn.LSTM(8, 4, proj_size=2)
        self.cell = nn.GRUCell(2, 2)
        self.norm = nn.LayerNorm(8)
        self.shared = self.again = nn.Linear(8, 8)
        self.up = nn.ConvTranspose1d(4, 2, 3)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.weighted = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
        self.scale = nn.Parameter(torch.ones(3, 3))
        self.head = nn.Linear(8, 7)
        self.head.weight = self.embedding.weight


def test_targets() -> None:
    targets = find_targets(Odd())
    assert list(targets.found) == [
        "attention.in_proj_weight", "attention.out_proj.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.weight_hr_l0",
        "cell.weight_ih", "cell.weight_hh", "shared.weight", "up.weight",
    ]  # fmt: skip
    assert targets.left_out == {
        "not a weight of a layer, but 'scale' of Odd": ["scale"],
        "embeddings": ["embedding.weight"],
        "biases": [
            "attention.in_proj_bias", "attention.out_proj.bias", "rnn.bias_ih_l0", "rnn.bias_hh_l0", "cell.bias_ih",
            "cell.bias_hh", "norm.bias", "shared.bias", "up.bias", "frozen.bias", "weighted.bias", "head.bias",
        ],
        "normalization": ["norm.weight"],
        "frozen": ["frozen.weight"],
        "parametrized, so computed from other tensors": [
            "weighted.parametrizations.weight.original0", "weighted.parametrizations.weight.original1",
        ],
    }  # fmt: skip


def test_a_head_that_comes_before_its_embedding_is_an_embedding() -> None:
    net = nn.ModuleDict({"head": nn.Linear(4, 6, bias=False), "embedding": nn.Embedding(6, 4), "body": nn.Linear(4, 4)})
    net["head"].weight = net["embedding"].weight
    targets = find_targets(net)
    assert list(targets.found) == ["body.weight"]
    assert targets.left_out["tied to the embedding embedding.weight"] == ["head.weight"]


def test_ignore_takes_modules_and_every_name_of_a_weight() -> None:
    found = find_targets(Odd(), ["attention", "*.weight_hh*", "again"]).found
    assert list(found) == ["rnn.weight_ih_l0", "rnn.weight_hr_l0", "cell.weight_ih", "up.weight"]
    with pytest.raises(ValueError, match=r"ignore='heads' matches no parameter and no module of Odd"):
        find_targets(Odd(), ["heads"])
    with pytest.raises(ValueError, match="must be a list of patterns"):
        find_targets(Odd(), "head")


def test_groups_need_multiples() -> None:
    targets = find_targets(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ConvTranspose2d(8, 3, 3), nn.Linear(6, 4)), group=4)
    assert list(targets.found) == ["1.weight"]
    assert targets.left_out["no multiple of 4 inputs"] == ["0.weight", "2.weight"]


def test_nothing_to_prune() -> None:
    with pytest.raises(
        ValueError, match=r"LayerNorm has no weight to prune; left out: normalization \(weight\), biases"
    ):
        find_targets(nn.LayerNorm(3))


def masks_of(pruner: Pruner) -> dict[str, Tensor]:
    return {name: target.weight != 0 for name, target in pruner.targets.items()}


def two_layers() -> nn.Sequential:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    net[1].weight.data.mul_(10.0)
    return net


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_scope(scope: str) -> None:
    """Globally the layer of small weights loses nearly all; layer by layer both lose half."""
    net = two_layers()
    pruner = Pruner(find_targets(net).found, scope=scope)
    pruner.adopt(pruner.decide(0.5))
    zeros = [int((layer.weight == 0).sum()) for layer in net]
    assert zeros == ([24, 12] if scope == "layer" else [36, 0])


def test_pruned_stays_pruned_even_if_it_grew() -> None:
    net = two_layers()
    pruner = Pruner(find_targets(net).found)
    pruner.adopt(pruner.decide(0.3))
    gone = {name: ~mask for name, mask in masks_of(pruner).items()}
    for target in pruner.targets.values():
        target.weight.data[target.weight == 0] = 1e6
    pruner.adopt(pruner.decide(0.6))
    assert all(bool((pruner.targets[name].weight[mask] == 0).all()) for name, mask in gone.items())
    assert pruner.pruned == round(0.6 * 72)


def test_a_state_of_other_weights_is_refused() -> None:
    pruner = Pruner(find_targets(two_layers()).found)
    pruner.adopt(pruner.decide(0.5))
    other = Pruner(find_targets(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5))).found)
    with pytest.raises(ValueError, match=r"1.weight is of shape \(4, 6\) there and of shape \(5, 6\) here"):
        other.load_state_dict(pruner.state_dict())
    fewer = Pruner(find_targets(two_layers(), ["1"]).found)
    with pytest.raises(ValueError, match=r"1.weight is of shape \(4, 6\) there and not pruned here"):
        fewer.load_state_dict(pruner.state_dict())

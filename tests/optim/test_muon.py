"""Newton-Schulz in batches, Muon against torch's own, and which parameters of a module are Muon's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_perf.optim import newton_schulz as ns
from lightning_perf.optim.cost import Costly, cost_share, muon_flops, soap_flops, tokens_for_share
from lightning_perf.optim.muon import Muon, as_stack
from lightning_perf.optim.muon_groups import hidden_matrices, muon_groups
from lightning_perf.optim.newton_schulz import newton_schulz, orthogonalize, work_dtype
from lightning_perf.optim.param_groups import describe_groups, infer_groups
from lightning_perf.optim.registry import build
from lightning_perf.optim.soap import SOAP
from tests.optim.references import zeroth_power


def rand(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("limit", [1, 100, 1 << 20])
@pytest.mark.parametrize("alone", [1.0, 2.5e7])
def test_batches_equal_the_literal_iteration(limit: int, alone: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the stacks are gathered; tall and wide ones share a product, and every result lands in its place."""
    monkeypatch.setattr(ns, "_BATCH_ELEMENTS", limit)
    monkeypatch.setattr(ns, "_ALONE_FROM", alone)
    shapes = [(1, 4, 6), (2, 6, 4), (3, 5, 5), (1, 6, 4), (1, 5, 5), (1, 1, 3)]
    stacks = [rand(*shape, dtype=torch.float64, seed=index) for index, shape in enumerate(shapes)]
    for stack, found in zip(stacks, orthogonalize(stacks), strict=True):
        expected = torch.stack([zeroth_power(matrix) for matrix in stack])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_singular_values_come_near_one() -> None:
    values = torch.linalg.svdvals(newton_schulz(rand(16, 48)))
    assert 0.6 < values.min() < values.max() < 1.3


@pytest.mark.parametrize("work", [torch.float32, torch.bfloat16])
def test_in_the_precision_that_is_chosen(work: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 from a certain amount of work on, where the CPU computes it; results in the dtype of the matrices."""
    monkeypatch.setattr(ns, "_cpu_multiplies_bf16", lambda: work == torch.bfloat16)
    matrix = rand(32, 32)
    assert work_dtype(matrix, 200) == work
    assert work_dtype(matrix, 1) == torch.float32
    assert work_dtype(matrix.double(), 200) == torch.float64
    stacks = [rand(1, 32, 32, seed=seed) for seed in range(200)]
    found = orthogonalize(stacks)
    expected = newton_schulz(stacks[7][0].to(work)).float()
    assert found[7].dtype == torch.float32
    torch.testing.assert_close(found[7][0], expected, rtol=0.0, atol=0.1 if work == torch.bfloat16 else 1e-5)


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert torch.equal(newton_schulz(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_as_torch_does_on_matrices(adjust: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.optim.Muon computes in bfloat16; with that forced on ours, twenty steps are the same."""
    monkeypatch.setattr(ns, "work_dtype", lambda *_: torch.bfloat16)
    left, right = ([nn.Parameter(rand(8, 12)), nn.Parameter(rand(12, 5, seed=1))] for _ in range(2))
    settings: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": adjust}
    ours, theirs = Muon(left, **settings), torch.optim.Muon(right, **settings)
    for step in range(20):
        for a, b in zip(left, right, strict=True):
            a.grad, b.grad = rand(*a.shape, seed=step), rand(*a.shape, seed=step)
        ours.step()
        theirs.step()
    for a, b, first in zip(left, right, (rand(8, 12), rand(12, 5, seed=1)), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=5e-3)
        assert (a - first).abs().max() > 0.1


def test_blocks_of_a_packed_projection_do_not_mix() -> None:
    """Scaling the gradient of the keys alone changes nothing: each block is orthogonalized by itself."""
    start = rand(12, 4)
    packed, scaled, whole = (nn.Parameter(start.clone()) for _ in range(3))
    gradient = rand(12, 4, seed=1)
    other = gradient.clone()
    other[4:8] *= 100
    for parameter, g, count in ((packed, gradient, 3), (scaled, other, 3), (whole, other, 1)):
        parameter.grad = g
        Muon([{"params": [parameter], "matrices": count}], lr=0.1).step()
    torch.testing.assert_close(packed, scaled)
    assert (packed - whole).abs().max() > 1e-3


def test_updates_are_as_large_as_those_of_adamw() -> None:
    parameter = nn.Parameter(torch.zeros(64, 256))
    parameter.grad = rand(64, 256)
    Muon([parameter], lr=1.0).step()
    assert 0.1 < parameter.detach().square().mean().sqrt() < 0.3  # AdamW's are 0.2 to 0.4 in training


def test_one_learning_rate_drives_both_kinds() -> None:
    """A scheduler reaches the matrices and the rest, before and after a restore: there is no inner optimizer."""
    matrix, vector = nn.Parameter(rand(6, 6)), nn.Parameter(rand(6))
    optimizer = Muon([matrix, vector], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)

    def moves() -> tuple[bool, bool]:
        before = matrix.detach().clone(), vector.detach().clone()
        matrix.grad, vector.grad = rand(6, 6, seed=1), rand(6, seed=1)
        optimizer.step()
        return not torch.equal(matrix, before[0]), not torch.equal(vector, before[1])

    assert moves() == (True, True)
    optimizer.load_state_dict(optimizer.state_dict())
    assert moves() == (True, True)
    scheduler.step()
    assert moves() == (False, False)


@pytest.mark.parametrize(
    ("shape", "matrices", "words"),
    [
        ((4,), 1, r"matrices=1 does not fit a torch.float32 parameter of shape \(4,\): 0 gives it to AdamW"),
        ((4, 4), 3, r"matrices=3 does not divide the 4 rows of a parameter of shape \(4, 4\); use 1, or 0"),
        ((4, 4), -1, "matrices=-1 does not fit"),
        ((4, 4), [1, 1], r"matrices=\[1, 1\] has 2 numbers for the 1 parameters"),
    ],
)
def test_wrong_matrices(shape: tuple[int, ...], matrices: Any, words: str) -> None:
    optimizer = Muon([nn.Parameter(torch.zeros(2, 2))])
    with pytest.raises(ValueError, match=words):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(shape))], "matrices": matrices})
    assert len(optimizer.param_groups) == 1


class Everything(nn.Module):
    """One of each kind of layer, between a first and a last one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.conv = nn.Conv2d(16, 16, 3)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, groups=2)
        self.up = nn.ConvTranspose2d(16, 8, 2)
        self.batch_norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
        self.lstm = nn.LSTM(8, 8, proj_size=4)
        self.gru = nn.GRU(4, 8, num_layers=2)
        self.tokens = nn.Parameter(torch.zeros(8, 8))
        self.embed = nn.Embedding(9, 8)
        self.tied = nn.Linear(8, 9, bias=False)
        self.tied.weight = self.embed.weight
        self.aux_head = nn.Linear(8, 8)
        self.low_rank = nn.Linear(8, 2)
        self.long = nn.Linear(2000, 8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.hidden = nn.Linear(8, 8)
        self.last = nn.Linear(8, 8)


def routed(module: nn.Module, **options: Any) -> dict[str, int]:
    found = hidden_matrices(module, options.get("parameters", list(module.parameters())))
    return {name: found[id(p)] for name, p in module.named_parameters() if id(p) in found}


def test_kinds_and_positions() -> None:
    assert routed(Everything()) == {
        "conv.weight": 1,
        "grouped.weight": 2,
        "up.weight": 1,
        "attention.in_proj_weight": 3,
        "attention.out_proj.weight": 1,
        "cross.q_proj_weight": 1,
        "cross.k_proj_weight": 1,
        "cross.v_proj_weight": 1,
        "cross.out_proj.weight": 1,
        "lstm.weight_ih_l0": 4,
        "lstm.weight_hh_l0": 4,
        "lstm.weight_hr_l0": 1,
        "gru.weight_ih_l0": 3,
        "gru.weight_hh_l0": 3,
        "gru.weight_ih_l1": 3,
        "gru.weight_hh_l1": 3,
        "hidden.weight": 1,
    }


def test_first_and_last_layers() -> None:
    mlp = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])
    assert list(routed(mlp)) == ["1.weight", "2.weight"]
    # Behind an embedding no layer faces the input; without the last one trained, the one before faces the output.
    language = nn.Sequential(nn.Embedding(9, 8), *[nn.Linear(8, 8) for _ in range(3)])
    assert list(routed(language)) == ["1.weight", "2.weight"]
    assert list(routed(language, parameters=language[:3].parameters())) == ["1.weight"]
    recurrent = nn.Sequential(nn.LSTM(8, 8, bidirectional=True), nn.Linear(16, 8))
    assert list(routed(recurrent)) == ["0.weight_hh_l0", "0.weight_hh_l0_reverse"]
    assert routed(nn.Linear(8, 8)) == {}
    assert routed(nn.ReLU()) == {}


@pytest.mark.parametrize("name", ["head", "lm_head", "cls_head", "classifier", "output_proj", "fc_out"])
def test_names_of_heads(name: str) -> None:
    module = nn.ModuleDict({"a": nn.Linear(8, 8), name: nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 8)})
    assert list(routed(module)) == ["b.weight"]
    for harmless in (f"{name}er", "multi_head", "heads"):
        module = nn.ModuleDict({"a": nn.Linear(8, 8), harmless: nn.Linear(8, 8), "c": nn.Linear(8, 8)})
        assert list(routed(module)) == [f"{harmless}.weight"]


def test_every_parameter_once_and_users_settings_stay() -> None:
    module = Everything()
    groups = infer_groups(module, weight_decay=0.1, groups={"conv.*": {"lr": 1e-4, "matrices": 0}, "l*": {"lr": 1e-5}})
    done = muon_groups(module, groups)
    placed = [id(p) for group in done for p in group["params"]]
    assert sorted(placed) == sorted(id(p) for p in module.parameters())
    table = [(g["name"], g["weight_decay"], g.get("lr"), sorted(set(g["matrices"]))) for g in done]
    assert table == [
        ("conv.* (decay)", 0.1, 1e-4, [0]),
        ("conv.* (no_decay)", 0.0, 1e-4, [0]),
        ("l* (decay) (muon)", 0.1, 1e-5, [1, 4]),
        ("l* (decay)", 0.1, 1e-5, [0]),
        ("l* (no_decay)", 0.0, 1e-5, [0]),
        ("decay (muon)", 0.1, None, [1, 2, 3]),
        ("decay", 0.1, None, [0]),
        ("no_decay", 0.0, None, [0]),
    ]
    assert all(len(g["params"]) == len(g["param_names"]) == len(g["matrices"]) for g in done)
    assert all("matrices" not in group or group["matrices"] == 0 for group in groups)  # the caller's are untouched
    optimizer = build("muon", done, lr=1e-3)
    assert "decay (muon)" in describe_groups(optimizer.param_groups)


def test_groups_that_schedulers_are_bound_to_stay_whole() -> None:
    module = nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)])
    (group,) = muon_groups(module, [{"params": list(module.parameters()), "lr": 0.1}], split=False)
    assert group["matrices"] == [0, 0, 1, 0, 0, 0]
    assert build("muon", [group]).param_groups[0]["matrices"] == [0, 0, 1, 0, 0, 0]


def test_experts_are_a_stack_already() -> None:
    experts = rand(5, 8, 6)
    parameter = nn.Parameter(torch.zeros(5, 8, 6))
    parameter.grad = experts.clone()
    Muon([{"params": [parameter], "matrices": 5}], lr=1.0, nesterov=False).step()
    expected = -0.2 * 8**0.5 * torch.stack([zeroth_power(each) for each in experts])
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(as_stack(experts, 5), experts)


def counted(shapes: list[tuple[int, int]], steps: int) -> int:
    """Operations of the literal iteration, product by product."""
    total = 0
    for rows, columns in shapes:
        m, n = sorted((rows, columns))
        for _ in range(steps):
            for a, b, c in ((m, n, m), (m, m, m), (m, m, n)):
                total += 2 * a * b * c
    return total


def test_what_muon_and_soap_cost() -> None:
    shapes = [(16, 144), (64, 64), (100, 10)]
    assert muon_flops(shapes) == counted(shapes, 5)
    assert cost_share(1200.0, [(10, 10)], tokens=4) == 0.5
    tokens = tokens_for_share(muon_flops(shapes), shapes)
    assert cost_share(muon_flops(shapes), shapes, tokens) == pytest.approx(0.1, rel=1e-2)
    assert soap_flops([(10, 4000)], max_dim=100) == 8 * 100 * 4000 + (2 + 8 / 3) * 1000 / 10


def test_the_cost_is_said_in_words() -> None:
    module = nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)])
    muon = build("muon", muon_groups(module, infer_groups(module, weight_decay=0.0)))
    assert isinstance(muon, Costly)
    assert muon.cost_note() == (
        "Newton-Schulz on 2 matrices costs over 10 % of forward and backward through them where a step sees fewer than "
        "3,200 samples x positions."
    )
    soap = SOAP(module.parameters(), frequency=1)
    assert "SOAP on 4 matrices" in soap.cost_note()
    assert Muon([nn.Parameter(torch.zeros(3))]).cost_note() == (
        "no matrix for Newton-Schulz: every parameter is stepped by AdamW."
    )

"""Which parameter lands in which group, on modules written for each rule."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_perf.optim import param_groups
from lightning_perf.optim.param_groups import describe_groups, infer_groups
from lightning_perf.optim.registry import build


class Decoder(nn.Module):
    """A small decoder with a tied head, learned positions, a token and norms of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.pos_embed = nn.Parameter(torch.zeros(7, 4))
        self.grid = nn.Parameter(torch.zeros(1, 3, 4))
        self.cls_token = nn.Parameter(torch.zeros(4, 4))
        self.mixing = nn.Parameter(torch.zeros(4, 4))
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.conv = nn.Conv1d(4, 1, 3)
        self.rnn = nn.LSTM(4, 4)
        self.norm = nn.LayerNorm((7, 4))
        self.scale = ScaleNorm()
        self.batch = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight


class ScaleNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4, 4))


class Standardize(nn.LayerNorm):
    """A norm by kind, though not by name."""


class Spared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3, 3))
        self.layer = nn.Linear(3, 3)

    def no_weight_decay(self) -> set[str]:
        return {"table", "layer.w*", "not_there"}


def names(groups: list[dict], name: str) -> list[str]:
    return next((group["param_names"] for group in groups if group["name"] == name), [])


def test_examples() -> None:
    assert doctest.testmod(param_groups).failed == 0


def test_rules() -> None:
    groups = infer_groups(Decoder(), weight_decay=0.1)
    assert [(group["name"], group["weight_decay"]) for group in groups] == [("decay", 0.1), ("no_decay", 0.0)]
    assert names(groups, "decay") == [
        "mixing",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "conv.weight",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
    ]
    assert names(groups, "no_decay") == [
        "pos_embed",
        "grid",
        "cls_token",
        "embed.weight",
        "attention.in_proj_bias",
        "attention.bias_k",
        "attention.bias_v",
        "attention.out_proj.bias",
        "conv.bias",
        "rnn.bias_ih_l0",
        "rnn.bias_hh_l0",
        "norm.weight",
        "norm.bias",
        "scale.gain",
        "batch.weight",
        "batch.bias",
    ]


@pytest.mark.parametrize("name", ["compose", "proposal", "transposed", "token_mixer", "exposure"])
def test_words_that_only_sound_like_a_position(name: str) -> None:
    module = nn.Module()
    module.register_parameter(name, nn.Parameter(torch.zeros(3, 3)))
    assert names(infer_groups(module, weight_decay=0.1), "decay") == [name]


@pytest.mark.parametrize("name", ["pos", "abs_pos_embed", "position_embeddings", "mask_token", "register_tokens"])
def test_words_of_positions_and_tokens(name: str) -> None:
    module = nn.Module()
    module.register_parameter(name, nn.Parameter(torch.zeros(3, 3)))
    assert names(infer_groups(module, weight_decay=0.1), "no_decay") == [name]


def test_a_norm_by_kind() -> None:
    groups = infer_groups(Standardize((7, 4)), weight_decay=0.1)
    assert [group["name"] for group in groups] == ["no_decay"]


def test_no_weight_decay_of_a_submodule() -> None:
    groups = infer_groups(nn.ModuleDict({"net": Spared(), "last": nn.Linear(3, 3)}), weight_decay=0.1)
    assert names(groups, "no_decay") == ["net.table", "net.layer.weight", "net.layer.bias", "last.bias"]
    assert names(groups, "decay") == ["last.weight"]


def test_parametrized_layers_are_seen_through() -> None:
    module = nn.ModuleDict({"embed": nn.Embedding(5, 3), "layer": nn.Linear(3, 3)})
    parametrizations.weight_norm(module["embed"])
    parametrizations.weight_norm(module["layer"])
    parametrizations.weight_norm(module["layer"], name="bias")
    groups = infer_groups(module, weight_decay=0.1)
    weight = "layer.parametrizations.weight.original"
    assert names(groups, "decay") == [f"{weight}0", f"{weight}1"]
    assert len(names(groups, "no_decay")) == 4


def test_a_tied_weight_and_an_alias_count_once() -> None:
    module = Decoder()
    module.alias = module.attention
    placed = [parameter for group in infer_groups(module, weight_decay=0.1) for parameter in group["params"]]
    assert [id(parameter) for parameter in placed].count(id(module.embed.weight)) == 1
    assert {id(parameter) for parameter in placed} == {id(parameter) for parameter in module.parameters()}
    assert len(placed) == len(list(module.parameters()))
    by_alias = infer_groups(module, weight_decay=0.1, groups={"alias.in_proj_weight": {"lr": 1.0}})
    assert by_alias[0]["param_names"] == ["attention.in_proj_weight"]


def test_user_patterns_come_first_and_the_first_match_wins() -> None:
    patterns = {"head.*": {"lr": 1e-4}, "rnn.*": {"lr": 2e-4, "weight_decay": 0.7}, "*.weight*": {"lr": 3e-4}}
    groups = infer_groups(Decoder(), weight_decay=0.1, groups=patterns)
    table = [(group["name"], group["weight_decay"], group.get("lr"), len(group["params"])) for group in groups]
    assert table == [
        ("head.* (no_decay)", 0.0, 1e-4, 1),  # found by the second name of the tied weight
        ("rnn.*", 0.7, 2e-4, 4),
        ("*.weight* (decay)", 0.1, 3e-4, 2),
        ("*.weight* (no_decay)", 0.0, 3e-4, 2),
        ("decay", 0.1, None, 2),
        ("no_decay", 0.0, None, 11),
    ]


def test_other_overrides_reach_the_optimizer() -> None:
    groups = infer_groups(nn.Linear(2, 2), weight_decay=0.1, groups={"bias": {"betas": (0.5, 0.6)}})
    assert [group["betas"] for group in build("adamw", groups).param_groups] == [(0.5, 0.6), (0.9, 0.999)]


def test_patterns_that_get_nothing() -> None:
    with pytest.raises(ValueError, match=r"'haed\.\*'\] gets no parameter: names look like 'pos_embed', 'grid'"):
        infer_groups(Decoder(), weight_decay=0.1, groups={"haed.*": {"lr": 1e-4}})
    with pytest.raises(ValueError, match=r"such as 'norm\.weight', went to an earlier pattern"):
        infer_groups(Decoder(), weight_decay=0.1, groups={"*": {"lr": 1e-4}, "norm.*": {"lr": 1e-3}})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (0.1, r"groups\['\*'\]=0.1 must map settings"),
        ({"params": []}, "sets 'params'"),
        ({"lr": 0}, "lr=0; it must be a finite number above 0"),
        ({"lr": float("nan")}, "lr=nan"),
    ],
)
def test_wrong_overrides(overrides: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        infer_groups(Decoder(), weight_decay=0.1, groups={"*": overrides})  # type: ignore[dict-item]


@pytest.mark.parametrize("decay", [-1.0, float("nan"), float("inf")])
def test_wrong_decay(decay: float) -> None:
    with pytest.raises(ValueError, match=f"weight_decay={decay!r} must be a finite number"):
        infer_groups(Decoder(), weight_decay=decay)


def test_frozen_parameters() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    groups = infer_groups(module, weight_decay=0.1)
    assert names(groups, "decay") + names(groups, "no_decay") == ["1.weight", "1.bias"]
    # Selected by the user's own configure_optimizers, a frozen parameter stays: it may be thawed later.
    chosen = infer_groups(module, weight_decay=0.1, parameters=module.parameters())
    assert names(chosen, "decay") == ["0.weight", "1.weight"]
    with pytest.raises(ValueError, match="Sequential has no parameter to optimize"):
        infer_groups(module, weight_decay=0.1, parameters=module[0].parameters())


def test_only_the_selected_parameters() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = infer_groups(module, weight_decay=0.1, parameters=[module[1].bias, module[0].weight])
    assert [group["param_names"] for group in groups] == [["0.weight"], ["1.bias"]]
    with pytest.raises(ValueError, match=r"gets no parameter: what it matches, such as '0\.bias'.*not trained"):
        infer_groups(module, weight_decay=0.1, parameters=[module[0].weight], groups={"0.bias": {"lr": 1.0}})


def test_parameters_outside_the_module_are_not_lost() -> None:
    matrix, vector = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
    module = nn.Linear(2, 2)
    groups = infer_groups(module, weight_decay=0.1, parameters=[module.weight, matrix, vector])
    assert names(groups, "decay") == ["weight", "outside_module.0"]
    assert names(groups, "no_decay") == ["outside_module.1"]


def test_lazy_parameters() -> None:
    with pytest.raises(ValueError, match=r"'0.weight' belongs to a lazy module.*run one batch"):
        infer_groups(nn.Sequential(nn.LazyLinear(3)), weight_decay=0.1)


def test_no_parameters_at_all() -> None:
    with pytest.raises(ValueError, match="ReLU has no parameter to optimize"):
        infer_groups(nn.ReLU(), weight_decay=0.1)


def test_table() -> None:
    module = nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 2), nn.BatchNorm1d(2))
    optimizer = build("adamw", infer_groups(module, weight_decay=0.05), lr=2e-3)
    assert describe_groups(optimizer.param_groups).splitlines() == [
        "group     tensors  parameters  weight decay  lr     first names",
        "decay     2        2,080       0.05          0.002  0.weight, 1.weight",
        "no_decay  4        46          0             0.002  0.bias, 1.bias, 2.weight, ...",
    ]
    plain = describe_groups(torch.optim.SGD(module.parameters(), lr=0.1).param_groups).splitlines()
    assert plain[1] == "0      6        2,126       0             0.1"

"""Copies for inference: CSR on a CPU, 2:4 on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_perf.pruning import csr_copy, semi_structured_copy
from lightning_perf.pruning.sparse_inference import CsrLinear


def pruned_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16, bias=False), nn.Linear(16, 4))
    with torch.no_grad():
        net[0].weight[torch.rand(48, 32) < 0.95] = 0
        net[2].weight[torch.rand(16, 48) < 0.95] = 0
    return net


@pytest.mark.parametrize("shape", [(5, 32), (32,), (2, 3, 32)])
def test_csr_computes_the_same(shape: tuple[int, ...]) -> None:
    net, x = pruned_net(), torch.randn(shape)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    clone = csr_copy(net)
    assert [type(layer) for layer in clone] == [CsrLinear, nn.ReLU, CsrLinear, nn.Linear]
    torch.testing.assert_close(clone(x), net(x))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    stored = sum(layer.weight.values().numel() for layer in clone if isinstance(layer, CsrLinear))
    assert stored == sum(int((net[index].weight != 0).sum()) for index in (0, 2))


def test_csr_needs_zeros() -> None:
    with pytest.raises(ValueError, match="no linear layer with at least 90% zeros"):
        csr_copy(nn.Sequential(nn.Linear(4, 4)))


def test_attention_keeps_its_own_layer() -> None:
    """MultiheadAttention reads out_proj.weight itself, where a sparse tensor would not do."""
    net = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    for weight in (net.linear1.weight, net.self_attn.out_proj.weight):
        weight.data[torch.rand(weight.shape) < 0.96] = 0
    clone, x = csr_copy(net), torch.randn(2, 3, 16)
    assert isinstance(clone.linear1, CsrLinear)
    torch.testing.assert_close(clone(x), net(x))


def test_two_of_four_is_refused_on_a_cpu() -> None:
    with pytest.raises(RuntimeError, match="no CPU has an instruction for it"):
        semi_structured_copy(nn.Linear(64, 64))


@pytest.mark.gpu
def test_two_of_four_on_a_gpu() -> None:
    net = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128)).cuda().half()
    with pytest.raises(ValueError, match="no linear layer in float16"):
        semi_structured_copy(net)
    net[0].weight.data.view(-1, 4)[:, :2] = 0
    x = torch.randn(64, 128, device="cuda", dtype=torch.half)
    torch.testing.assert_close(semi_structured_copy(net)(x), net(x), rtol=1e-2, atol=1e-2)

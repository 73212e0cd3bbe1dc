"""FLOPs by hand: every expected number is written as the product that it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from lightning_perf.profiling.flop_count import FlopCount, ModuleFlops
from lightning_perf.profiling.flops import FlopCounter


def count(net: nn.Module | None, run: Callable[[], Any], *, backward: bool = True) -> FlopCount:
    """Run, sum what comes out, and go backward, inside a counter."""
    with FlopCounter(net) as counter:
        out = run()
        if backward:
            (out[0] if isinstance(out, tuple) else out).sum().backward()
    return counter.count


def passes(counted: FlopCount) -> tuple[int, int, int]:
    return counted.forward, counted.backward, counted.recompute


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("wants_grad", [True, False])
def test_linear(bias: bool, wants_grad: bool) -> None:
    """A first layer has no gradient of its input to compute; a bias is no product."""
    net, x = nn.Linear(5, 3, bias=bias), torch.randn(7, 5, requires_grad=wants_grad)
    one = 2 * 7 * 5 * 3
    assert passes(count(net, lambda: net(x))) == (one, one * (1 + wants_grad), 0)


def test_frozen_weights_cost_only_the_gradient_of_the_input() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).requires_grad_(False)
    net[0].weight.requires_grad_(True)
    first, second = 2 * 3 * 4 * 6, 2 * 3 * 6 * 2
    counted = count(net, lambda: net(torch.randn(3, 4)))
    assert counted.by_module["0"].backward == first
    assert counted.by_module["1"].backward == second


@pytest.mark.parametrize(
    ("layer", "shape", "positions"),
    [
        (nn.Conv2d(4, 6, 3), (2, 4, 8, 8), 6 * 6),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8), 4 * 4),
        (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8), 6 * 6),
        (nn.Conv2d(4, 4, 3, groups=4, dilation=2), (2, 4, 8, 8), 4 * 4),
        (nn.Conv1d(4, 6, 3), (2, 4, 9), 7),
        (nn.Conv3d(2, 3, (1, 2, 3)), (2, 2, 4, 4, 4), 4 * 3 * 2),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5), 5 * 5),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1), (2, 4, 5, 5), 5 * 5),
        (nn.ConvTranspose1d(4, 6, 3), (2, 4, 5), 5),
    ],
    ids=str,
)
def test_convolution(layer: nn.Module, shape: tuple[int, ...], positions: int) -> None:
    """Every weight meets every position of the output (of the input when transposed); both gradients cost the same."""
    one = 2 * shape[0] * positions * layer.weight.numel()
    x = torch.randn(shape)
    assert passes(count(layer, lambda: layer(x))) == (one, one, 0)
    assert passes(count(layer, lambda: layer(x.requires_grad_()))) == (one, 2 * one, 0)


def test_an_unbatched_image() -> None:
    layer = nn.Conv2d(4, 6, 3)
    assert count(layer, lambda: layer(torch.randn(4, 8, 8))).forward == 2 * 36 * layer.weight.numel()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_scaled_dot_product_attention(fused: bool, causal: bool) -> None:
    """Two products forward, four backward; the fused kernel computes the scores once more, which is no model FLOP."""
    b, h, q, k, d = 2, 3, 5, 7, 4
    query, key, value = (torch.randn(b, h, length, d, requires_grad=True) for length in (q, k, k))
    product = 2 * b * h * q * k * d
    backend = nn.attention.SDPBackend.FLASH_ATTENTION if fused else nn.attention.SDPBackend.MATH
    with nn.attention.sdpa_kernel(backend):
        counted = count(None, lambda: F.scaled_dot_product_attention(query, key, value, is_causal=causal))
    assert passes(counted) == (2 * product, 4 * product, product if fused else 0)
    assert ("aten::_scaled_dot_product_flash_attention_for_cpu" in counted.by_operator) == fused


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_in_training(need_weights: bool) -> None:
    n, t, e = 2, 5, 8
    net, x = nn.MultiheadAttention(e, 2, batch_first=True), torch.randn(n, t, e, requires_grad=True)
    projections, product = 2 * n * t * (3 * e * e + e * e), 2 * n * t * t * e
    counted = count(net, lambda: net(x, x, x, need_weights=need_weights))
    assert passes(counted) == (projections + 2 * product, 2 * projections + 4 * product, 0 if need_weights else product)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_the_fast_path_of_attention(guard: Callable[[], Any]) -> None:
    n, t, e = 2, 5, 8
    net, x = nn.MultiheadAttention(e, 2, batch_first=True).eval(), torch.randn(n, t, e)
    with guard():
        counted = count(net, lambda: net(x, x, x), backward=False)
    assert set(counted.by_operator) == {"aten::_native_multi_head_attention"}
    assert counted.forward == 2 * n * t * 4 * e * e + 2 * 2 * n * t * t * e


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_the_fast_path_of_an_encoder_layer(guard: Callable[[], Any]) -> None:
    n, t, e, f = 2, 5, 8, 16
    net, x = nn.TransformerEncoderLayer(e, 2, f, batch_first=True).eval(), torch.randn(n, t, e)
    with guard():
        counted = count(net, lambda: net(x), backward=False)
    assert set(counted.by_operator) == {"aten::_transformer_encoder_layer_fwd"}
    assert counted.forward == 2 * n * t * (4 * e * e + 2 * e * f) + 4 * n * t * t * e
    # Trained, the same layer costs the same and comes in parts.
    assert count(net.train(), lambda: net(x)).forward == counted.forward


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_fast_path_with_padding_counts_no_padding() -> None:
    e, f = 8, 16
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(e, 2, f, batch_first=True), 1).eval()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        counted = count(net, lambda: net(torch.randn(2, 5, e), src_key_padding_mask=padding), backward=False)
    assert counted.forward == 2 * (5 + 3) * (4 * e * e + 2 * e * f) + 4 * (5 * 5 + 3 * 3) * e


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm(layers: int, bidirectional: bool) -> None:
    """Four gates of input and hidden weights per step, layer and direction; oneDNN computes both gradients always."""
    t, n, i, h = 6, 2, 5, 3
    net, x = nn.LSTM(i, h, layers, bidirectional=bidirectional), torch.randn(t, n, i)
    directions = 1 + bidirectional
    inputs = [i] + [directions * h] * (layers - 1)
    forward = sum(directions * 2 * t * n * 4 * h * (size + h) for size in inputs)
    counted = count(net, lambda: net(x))
    assert passes(counted) == (forward, 2 * forward, 0)
    assert set(counted.by_operator) == {"aten::mkldnn_rnn_layer", "aten::mkldnn_rnn_layer_backward"}
    with torch.inference_mode():
        assert count(net, lambda: net(x), backward=False).forward == forward


def test_lstm_of_packed_sequences() -> None:
    i, h, lengths = 5, 3, [6, 4, 1]
    net = nn.LSTM(i, h)
    packed = pack_padded_sequence(torch.randn(6, 3, i), torch.tensor(lengths))
    assert count(net, lambda: net(packed)[0].data).forward == 2 * sum(lengths) * 4 * h * (i + h)


@pytest.mark.parametrize(("network", "gates"), [(nn.GRU, 3), (nn.RNN, 1)])
def test_gru_and_rnn(network: type[nn.RNNBase], gates: int) -> None:
    """Made of matrix products; the input's part has no gradient of the input to compute."""
    t, n, i, h = 6, 2, 5, 3
    net = network(i, h)
    own, hidden = 2 * t * n * gates * h * i, 2 * t * n * gates * h * h
    # At the first step the hidden state is a constant, so its gradient is not computed.
    first = 2 * n * gates * h * h
    assert passes(count(net, lambda: net(torch.randn(t, n, i)))) == (own + hidden, own + 2 * hidden - first, 0)


@pytest.mark.parametrize(
    ("run", "flops"),
    [
        (lambda a, v: a.mv(v), 2 * 4 * 5),
        (lambda a, v: a @ v, 2 * 4 * 5),
        (lambda a, v: torch.addmv(v[:4], a, v), 2 * 4 * 5),
        (lambda a, v: torch.zeros(4).addmv_(a, v), 2 * 4 * 5),
        (lambda a, v: v.dot(v), 2 * 5),
        (lambda a, v: torch.vdot(v, v), 2 * 5),
        (lambda a, v: a @ a.T, 2 * 4 * 5 * 4),
        (lambda a, v: torch.mm(a, a.T, out=torch.empty(4, 4)), 2 * 4 * 5 * 4),
        (lambda a, v: torch.einsum("ij,kj->ik", a, a), 2 * 4 * 5 * 4),
        (lambda a, v: torch.zeros(4, 4).addmm_(a, a.T), 2 * 4 * 5 * 4),
        (lambda a, v: a.expand(3, 4, 5) @ a.T, 2 * 3 * 4 * 5 * 4),
        (lambda a, v: torch.baddbmm(torch.zeros(3, 4, 4), a.expand(3, 4, 5), a.T.expand(3, 5, 4)), 2 * 3 * 4 * 5 * 4),
        (lambda a, v: torch.addbmm(torch.zeros(4, 4), a.expand(3, 4, 5), a.T.expand(3, 5, 4)), 2 * 3 * 4 * 5 * 4),
        (lambda a, v: a.relu().tanh() * a + a, 0),
    ],
)
def test_products(run: Callable[..., Any], flops: int) -> None:
    counted = count(None, lambda: run(torch.randn(4, 5), torch.randn(5)), backward=False)
    assert counted.forward == flops
    assert not counted.uncounted


def test_operators_that_arrive_whole_in_inference_mode() -> None:
    """They are taken apart once, and counted by their parts."""
    linear, conv, x = nn.Linear(8, 4), nn.Conv1d(2, 3, 3), torch.randn(2, 5, 8)

    def run() -> Any:
        linear(x), conv(x[:, :2]), torch.einsum("nij,nkj->nik", x, x)
        return F.scaled_dot_product_attention(x[None], x[None], x[None])

    with torch.no_grad():
        expected = count(None, run, backward=False)
    with torch.inference_mode():
        counted = count(None, run, backward=False)
    assert counted.forward == 2 * (10 * 8 * 4 + 2 * 6 * 18 + 3 * 2 * 25 * 8)
    assert (counted.forward, counted.bytes) == (expected.forward, expected.bytes)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr"])
def test_a_sparse_matrix_costs_what_it_stores(layout: str) -> None:
    dense = torch.eye(6)
    dense[0, 5] = 1.0
    sparse = getattr(dense, layout)()
    assert count(None, lambda: sparse @ torch.randn(6, 3), backward=False).forward == 2 * 7 * 3


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_work_of_the_hardware_not_of_the_model(reentrant: bool) -> None:
    net, x = mlp(), torch.randn(5, 6, requires_grad=True)
    first, second = 2 * 5 * 6 * 8, 2 * 5 * 8 * 4
    plain = count(net, lambda: net(x))
    counted = count(net, lambda: checkpoint(net, x, use_reentrant=reentrant))
    # Torch stops a recomputation once it has what the gradients need, unless it is reentrant.
    again = first + second if reentrant else first
    assert passes(counted) == (first + second, 2 * (first + second), again)
    assert counted.model == plain.model
    assert counted.total == plain.total + again
    assert counted.by_module["0"] == ModuleFlops(
        first, 2 * first, first, counted.by_module["0"].bytes, counted.by_module["0"].ops
    )


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_of_a_function_that_is_no_module(reentrant: bool) -> None:
    w = torch.randn(6, 6, requires_grad=True)
    x = torch.randn(5, 6, requires_grad=True)
    one = 2 * 5 * 6 * 6
    counted = count(None, lambda: checkpoint(lambda a: (a @ w).tanh() @ w, x, use_reentrant=reentrant))
    assert passes(counted) == (2 * one, 4 * one, 2 * one if reentrant else one)


class OwnCheckpoint(torch.autograd.Function):
    """Recomputes by hand, as other libraries do."""

    @staticmethod
    def forward(ctx: Any, net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        ctx.net = net
        ctx.save_for_backward(x)
        with torch.no_grad():
            return net(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.net(x)
        torch.autograd.backward(out, grad)
        return None, x.grad


def test_recomputation_by_another_librarys_checkpoint() -> None:
    net, x = mlp(), torch.randn(5, 6, requires_grad=True)
    forward = 2 * 5 * (6 * 8 + 8 * 4)
    assert passes(count(net, lambda: OwnCheckpoint.apply(net, x))) == (forward, 2 * forward, forward)


def test_gradients_of_gradients_belong_to_their_module() -> None:
    """A gradient penalty: the second backward goes through the first one's products too."""
    net, x = mlp(), torch.randn(5, 6, requires_grad=True)
    first, second = 2 * 5 * 6 * 8, 2 * 5 * 8 * 4
    with FlopCounter(net) as counter:
        (grad,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        grad.pow(2).sum().backward()
    counted = counter.count
    assert (counted.forward, counted.recompute) == (first + second, 0)
    # One product each for the gradient of the input. Then the gradients of those products' factors: both of the first
    # layer's and the weight of the second's, whose other factor is constant. Through the ReLU the second backward also
    # reaches the first layer's own product, with its two gradients.
    assert counted.by_module["0"].backward == first + 2 * first + 2 * first
    assert counted.by_module["2"].backward == second + second
    assert sum(part.backward for name, part in counted.by_module.items() if name) == counted.backward


class Block(nn.Module):
    """A module that computes something itself, calls its parts from a list, and one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
        self.alias = self.layers[0]
        self.mix = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        return {"out": [self.alias(self.layers[1](self.layers[0](x)) @ self.mix)]}


def test_attribution_by_qualified_name() -> None:
    net, one = nn.Sequential(Block(), nn.Identity()), 2 * 3 * 4 * 4
    net.add_module("again", net[0])
    counted = count(net, lambda: net[0](torch.randn(3, 4))["out"][0])
    parts = {name: (part.forward, part.backward) for name, part in counted.by_module.items()}
    assert parts == {
        "": (4 * one, 7 * one),
        "0": (4 * one, 7 * one),
        "0.layers": (3 * one, 5 * one),
        "0.layers.0": (2 * one, 3 * one),
        "0.layers.1": (one, 2 * one),
    }
    assert sum(part.bytes for name, part in counted.by_module.items() if name == "") == counted.bytes


def test_tied_weights_count_where_they_are_used() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
    net["head"].weight = net["embed"].weight
    counted = count(net, lambda: net["head"](net["embed"](torch.tensor([1, 2, 3]))))
    one = 2 * 3 * 4 * 10
    assert passes(counted) == (one, 2 * one, 0)
    assert counted.by_module["head"].model == 3 * one
    assert counted.by_module["embed"].model == 0


def test_compiled_modules_count_the_same_and_stay_compiled() -> None:
    """A dispatch mode alone makes Dynamo give up on the module for good."""
    compiled, ran = [], []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)

        def run(*args: Any) -> Any:
            ran.append(1)
            return graph.forward(*args)

        return run

    torch._dynamo.reset()
    net, x = mlp(), torch.randn(5, 6)
    eager = count(net, lambda: net(x))
    optimized = torch.compile(net, backend=backend)
    before = count(optimized, lambda: optimized(x))
    assert compiled == []
    optimized(x)
    after = count(optimized, lambda: optimized(x))
    optimized(x)
    assert (len(compiled), len(ran)) == (1, 2)
    assert passes(before) == passes(after) == passes(eager)
    assert before.by_module["_orig_mod.0"].model == eager.by_module["0"].model


def test_bfloat16_is_told_from_float32() -> None:
    net, x = mlp(), torch.randn(5, 6)
    plain = count(net, lambda: net(x))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = count(net, lambda: net(x).float())
    assert passes(mixed) == passes(plain)
    assert mixed.by_dtype == {"bfloat16": plain.model}
    assert plain.by_dtype == {"float32": plain.model}


def test_an_optimizers_products_are_not_the_models() -> None:
    w = nn.Parameter(torch.randn(4, 4))
    optimizer = torch.optim.Muon([w])

    def closure() -> torch.Tensor:
        loss = (w @ w).sum()
        loss.backward()
        return loss

    with FlopCounter() as counter, torch.enable_grad():
        optimizer.step(closure)
    one = 2 * 4 * 4 * 4
    counted = counter.count
    assert passes(counted) == (one, 2 * one, 0)
    assert counted.optimizer == 5 * 3 * one  # five iterations of three products
    assert counted.total == 18 * one


def test_bytes_and_operators() -> None:
    a = torch.randn(8, 4)
    counted = count(None, lambda: (a @ a.T).relu_(), backward=False)
    product = 4 * (2 * 8 * 4 + 8 * 8)
    relu = 4 * (8 * 8 + 8 * 8)
    assert counted.bytes == product + relu
    assert counted.ops == 3  # the transpose is dispatched and moves nothing
    assert counted.intensity == pytest.approx(counted.total / counted.bytes)


def test_adding_up_gradients_goes_with_the_module_that_computed_them() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(3, 4)
    first = count(net, lambda: net(x)).by_module
    second = count(net, lambda: net(x)).by_module
    assert second["1"] == first["1"]
    assert second["0"].bytes - first["0"].bytes == 3 * 4 * (4 * 4 + 4)


def test_bytes_of_a_look_up_and_of_an_expanded_tensor() -> None:
    table, index = torch.randn(1000, 4), torch.tensor([3, 5])
    assert count(None, lambda: F.embedding(index, table), backward=False).bytes == 2 * 4 * (2 * 4) + 8 * 2
    one, many = torch.randn(1, 4), torch.randn(100, 4)
    assert count(None, lambda: one.expand(100, 4) * many, backward=False).bytes == 4 * (4 + 400 + 400)


def test_what_has_no_formula_is_named() -> None:
    a = torch.eye(4) * 2
    counted = count(None, lambda: torch.linalg.cholesky(a) @ torch.cdist(a, a), backward=False)
    assert counted.forward == 2 * 4**3
    assert set(counted.uncounted) == {"aten::linalg_cholesky_ex", "aten::_cdist_forward"}
    assert "lower bound" in counted.table()


def test_a_formula_registered_with_torch_holds() -> None:
    @torch.library.custom_op("lightning_perf_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    x = torch.randn(3)
    assert count(None, lambda: twice(x), backward=False).uncounted == {"lightning_perf_test::twice": 1}
    formulas = torch.utils.flop_counter.flop_registry
    try:
        torch.utils.flop_counter.register_flop_formula(torch.ops.lightning_perf_test.twice)(lambda shape, **_: shape[0])
        counted = count(None, lambda: twice(x), backward=False)
    finally:
        formulas.pop(torch.ops.lightning_perf_test.twice)
    assert (counted.forward, counted.uncounted) == (3, {})


def test_counting_changes_nothing() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(mlp(), nn.Dropout(0.5)), torch.randn(5, 6)
    state = torch.get_rng_state()
    net(x).sum().backward()
    expected = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    torch.set_rng_state(state)
    count(net, lambda: net(x))
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), expected, strict=True))
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
    assert torch._C._is_multithreading_enabled()


def test_an_exception_leaves_nothing_behind_and_the_next_count_is_right() -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError

    net = nn.Sequential(nn.Linear(4, 4), Fails())
    counter = FlopCounter(net)
    with counter, pytest.raises(ArithmeticError):
        net(torch.randn(2, 4))
    with pytest.raises(ZeroDivisionError), counter:
        raise ZeroDivisionError
    with counter:
        net[0](torch.randn(2, 4))
    assert counter.count.by_module["0"].forward == 2 * (2 * 2 * 4 * 4)
    assert not nn.modules.module._global_forward_hooks
    with counter, pytest.raises(RuntimeError, match="already counting"):
        counter.__enter__()


def test_the_table() -> None:
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2)))
    lines = count(net, lambda: net(torch.randn(16, 8))).table(depth=1).splitlines()
    assert lines[0].split() == ["module", "forward", "backward", "recompute", "share"]
    assert lines[1].split() == ["(root)", "1.28", "k", "1.536", "k", "0", "100.0%"]
    assert [line.split()[0] for line in lines[2:4]] == ["0", "2"]
    assert lines[4].startswith("model 2.816 k FLOPs a step, executed 2.816 k, ")
    assert "no formula" not in lines[-1]

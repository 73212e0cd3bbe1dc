"""What only a real step shows: which batch norm follows which layer, where residual additions are, what everything costs.

Pairs are found by the identity of tensors, so that neither tracing nor naming conventions are needed.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from lightning_perf.quantization.kinds import NORMS
from lightning_perf.quantization.layers import Layer, records
from lightning_perf.quantization.prepare import fold, preparation
from lightning_perf.quantization.swapping import float_class

_ADDITIONS = {torch.ops.aten.add, torch.ops.aten.add_}
_PLAIN_FORWARDS = {
    nn.Linear.forward,
    *(getattr(nn, f"Conv{kind}{dim}d").forward for kind in ("", "Transpose") for dim in (1, 2, 3)),
}
_PLAIN_NORMS = {NORMS.forward, nn.SyncBatchNorm.forward}
_PROJECTIONS = {"mm", "addmm"}  # of an attention; its other products are between activations
_OUTSIDE_OF_BACKWARD = -1


class Watch:
    """Context manager around one real step of a prepared module; at its end the pairs are folded and the costs noted.

    The first step decides, of ``mode`` training or evaluation (by default that of the module); the first step of the other
    kind confirms.

    Example::

        >>> from lightning_perf.quantization.prepare import prepare
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> shared = prepare(net)
        >>> with Watch(net):
        ...     _ = net(torch.zeros(1, 1, 5, 5))
        >>> shared.macs
        {'0': 162}
    """

    def __init__(self, module: nn.Module, mode: str | None = None) -> None:
        shared = preparation(module)
        assert shared is not None
        self._module, self._shared = module, shared
        self._mode = mode or ("training" if module.training else "evaluation")
        self._running: list[str] = []
        self._families = {name: layer.kind.family for name, _, layer in records(module)}
        self._norms: list[nn.Module] = []
        self._outputs: dict[int, tuple[weakref.ref[Tensor], Layer, nn.Module]] = {}
        self._results: dict[int, tuple[weakref.ref[Tensor], Layer]] = {}
        self._calls: Counter[Any] = Counter()
        self._pairs: Counter[tuple[nn.Module, nn.Module]] = Counter()
        self._others: dict[nn.Module, str] = {}
        self._macs: Counter[str] = Counter()
        self._head = ""
        self._exit = ExitStack()

    def __enter__(self) -> Watch:
        names = {child: name for name, child in self._module.named_modules()}
        with ExitStack() as stack:
            for name, child, layer in records(self._module):
                self._hook_layer(stack, name, child, layer)
            for name in self._shared.left:
                self._hook_costs(stack, name, self._module.get_submodule(name))
            for child in names:
                if isinstance(child, NORMS):
                    self._hook_norm(stack, child)
            if "torch._dynamo" in sys.modules:  # Dynamo would give up on a module for good under a dispatch mode
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(_Operators(self._operator))
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._exit.close()
        if exception[0] is None:
            self._conclude()

    def returned(self, outputs: Sequence[Tensor]) -> None:
        """Tell what the step returned: a layer whose own output is among it is not folded with the norm behind it."""
        for value in outputs:
            reference, _, child = self._outputs.get(id(value), (None, None, None))
            if reference is not None and child is not None and reference() is value:
                self._others[child] = "the results"

    def _hook_costs(self, stack: ExitStack, name: str, child: nn.Module) -> None:
        def enter(*_: Any) -> None:
            self._running.append(name)

        def leave(*_: Any) -> None:
            self._running.pop()
            self._head = name

        stack.callback(child.register_forward_pre_hook(enter).remove)
        stack.callback(child.register_forward_hook(leave, always_call=True).remove)

    def _hook_layer(self, stack: ExitStack, name: str, child: nn.Module, layer: Layer) -> None:
        self._hook_costs(stack, name, child)

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._calls[child] += 1
            if isinstance(output, Tensor):
                self._outputs[id(output)] = weakref.ref(output), layer, child
                self._results[id(output)] = weakref.ref(output), layer
            if layer.kind.name == "recurrent":
                rows = _rows(args[0] if args else kwargs.get("input"))
                self._macs[name] += rows * sum(weight.numel() for weight in child.parameters() if weight.dim() > 1)

        stack.callback(child.register_forward_hook(leave, with_kwargs=True).remove)

    def _hook_norm(self, stack: ExitStack, norm: nn.Module) -> None:
        def enter(module: nn.Module, args: Any) -> None:
            self._calls[norm] += 1
            self._norms.append(norm)
            reference, _, child = self._outputs.get(id(args[0]), (None, None, None)) if args else (None, None, None)
            if reference is not None and child is not None and reference() is args[0]:
                self._pairs[child, norm] += 1

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._norms.pop()
            reference, layer, _ = self._outputs.get(id(args[0]), (None, None, None)) if args else (None, None, None)
            if layer is not None and reference is not None and reference() is args[0] and isinstance(output, Tensor):
                self._results[id(output)] = weakref.ref(output), layer

        stack.callback(norm.register_forward_pre_hook(enter).remove)
        stack.callback(norm.register_forward_hook(leave, always_call=True).remove)

    def _operator(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        packet = func._overloadpacket
        formula = flop_registry.get(packet)
        owner = self._owner(packet.__name__) if formula is not None else None
        if formula is not None and owner is not None:
            self._macs[owner] += formula(*args, **kwargs, out_val=out) // 2
        for value in tree_iter((args, kwargs)):
            if not isinstance(value, Tensor):
                continue
            reference, _, child = self._outputs.get(id(value), (None, None, None))
            if reference is not None and child is not None and reference() is value and not self._norms:
                self._others[child] = packet.__name__
            known = self._results.get(id(value))
            if known is not None and known[0]() is value and packet in _ADDITIONS and _adds_tensors(args):
                known[1].feeds_addition = True

    def _owner(self, operator: str) -> str | None:
        """What an operator's work counts for: a layer, itself where it is outside of layers, or nothing."""
        family = self._families.get(self._running[-1]) if self._running else None
        if family == "recurrent":  # counted by its weights, since it may be one operator without a formula
            return None
        outside = family is None and not self._running
        inside_attention = family == "attention" and operator not in _PROJECTIONS
        return f"({operator})" if outside or inside_attention else self._running[-1]

    def _conclude(self) -> None:
        first = not any(self._shared.watched.values())
        self._shared.watched[self._mode] = True
        if first:
            self._shared.macs, self._shared.head = dict(self._macs), self._head
        partners = {child: (norm, times) for (child, norm), times in self._pairs.items()}
        names = {child: name for name, child in self._module.named_modules()}
        for _, child, layer in records(self._module):
            if child in partners:
                norm, times = partners[child]
                reason = self._reason_against(child, norm, times)
                layer.followed_by = names[norm]
                if reason is not None:
                    layer.part(reason)
                elif first:
                    fold(layer, norm)
                layer.confirmed = layer.norm is norm and self._mode == "evaluation" and not norm.training
            elif layer.norm is not None and self._calls[child]:
                layer.part(f"its batch norm does not follow it in {self._mode}")

    def _reason_against(self, child: nn.Module, norm: nn.Module, times: int) -> str | None:
        if not times == self._calls[child] == self._calls[norm]:
            return (
                f"it was called {self._calls[child]} times and its batch norm {self._calls[norm]} times, not in pairs"
            )
        if child in self._others:
            return f"its output goes into {self._others[child]} too"
        if float_class(child).forward not in _PLAIN_FORWARDS or float_class(norm).forward not in _PLAIN_NORMS:
            return "its class or that of its batch norm has a forward of its own"
        if child._forward_hooks or norm._forward_hooks or norm._forward_pre_hooks:
            return "a hook stands between it and its batch norm"
        if getattr(norm, "running_mean", None) is None:
            return "its batch norm keeps no running statistics"
        return None


class _Operators(TorchDispatchMode):
    """Calls ``see(operator, args, kwargs, out)`` for everything outside of backward passes."""

    def __init__(self, see: Any) -> None:
        super().__init__()
        self._see = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:  # in inference mode composite operators arrive whole
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if torch._C._current_graph_task_id() == _OUTSIDE_OF_BACKWARD:
            self._see(func, args, kwargs, out)
        return out


def _adds_tensors(args: Any) -> bool:
    return len(args) > 1 and all(isinstance(one, Tensor) and one.dim() > 1 for one in args[:2])


def _rows(x: Any) -> int:
    """Vectors in the input of a recurrent layer: positions times batch."""
    x = getattr(x, "data", x) if isinstance(x, nn.utils.rnn.PackedSequence) else x
    return x.numel() // x.shape[-1] if isinstance(x, Tensor) and x.numel() else 0

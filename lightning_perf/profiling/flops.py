"""Counting FLOPs of whatever runs: forward, backward, recomputation and optimizer, each by module."""

from __future__ import annotations

import inspect
import sys
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from functools import cache
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch._C._autograd import _get_sequence_nr
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_perf.profiling.flop_count import FlopCount, ModuleFlops
from lightning_perf.profiling.flop_formulas import has_formula, looks_costly, name_of, work_of
from lightning_perf.profiling.traffic import bytes_moved, tensors_in

_CHECKPOINT, _ENGINE = inspect.getsourcefile(checkpoint), inspect.getsourcefile(torch.autograd.graph)
_OUTSIDE = -1  # the graph task of code that no backward pass runs


class _Pass(Enum):
    FORWARD = "forward"
    BACKWARD = "backward"
    RECOMPUTE = "recompute"
    OPTIMIZER = "optimizer"


class FlopCounter:
    """Context manager that counts the FLOPs of everything inside it, without changing what is computed.

    Autograd numbers the nodes of its graph as the forward pass makes them. The counter notes from which number on which
    module was running, so an operator of the backward pass belongs to the module whose node runs it: exactly, for
    inputs without gradient, in-place operators and outputs of any type too.

    Compiled modules run eagerly inside (their FLOPs are the same) and stay compiled afterwards. Backward runs on the
    calling thread. Counting costs about 20 us per operator, so time one step and count another.
    The results of several entries add up.

    Args:
        root: names in the result are those of this module's submodules; None: only totals.

    Raises:
        RuntimeError: entered twice at once.

    Example::

        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with FlopCounter(net) as counter:
        ...     net(torch.randn(16, 8)).sum().backward()
        >>> counter.count.forward, counter.count.backward
        (1280, 1536)
        >>> counter.count.by_module["0"].backward
        1024
    """

    def __init__(self, root: nn.Module | None = None) -> None:
        self._root = root
        self._names: dict[int, str] = {}
        self._exit: ExitStack | None = None
        self._running: list[tuple[str, bool]] = []  # module names, and whether each was entered during backward
        self._log: list[tuple[int, str]] = [(0, "")]  # from this autograd number on, this module was running
        self._number = 0
        self._optimizers = 0
        self._flops: Counter[tuple[str, _Pass]] = Counter()
        self._bytes: Counter[str] = Counter()
        self._ops: Counter[str] = Counter()
        self._operators: Counter[str] = Counter()
        self._dtypes: Counter[str] = Counter()
        self._uncounted: Counter[str] = Counter()

    def __enter__(self) -> FlopCounter:
        if self._exit is not None:
            raise RuntimeError("this FlopCounter is already counting; leave it before entering again, or make another")
        if self._root is not None:
            # Names by identity: a module registered twice keeps the first; lazily made ones are seen at every entry.
            self._names = {id(module): name for name, module in self._root.named_modules()}
        self._running, self._optimizers, self._number = [], 0, _next_number()
        self._log.append((self._number, ""))
        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(self._enter_module).remove)
            # A checkpoint stops its recomputation by an exception as soon as it has what it needs.
            stack.callback(register_module_forward_hook(self._leave_module, always_call=True).remove)
            stack.callback(register_optimizer_step_pre_hook(self._enter_optimizer).remove)
            stack.callback(register_optimizer_step_post_hook(self._leave_optimizer).remove)
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            if "torch._dynamo" in sys.modules:
                # A dispatch mode would make Dynamo give up on the module for good, even if it was compiled before.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", "Using `torch.compile.*global hooks on modules", UserWarning)
            stack.enter_context(_Mode(self._call))
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        stack, self._exit = self._exit, None
        if stack is not None:
            stack.close()

    @property
    def count(self) -> FlopCount:
        """What was counted so far."""
        passes: Counter[_Pass] = Counter()
        for (_, kind), flops in self._flops.items():
            passes[kind] += flops
        return FlopCount(
            forward=passes[_Pass.FORWARD],
            backward=passes[_Pass.BACKWARD],
            recompute=passes[_Pass.RECOMPUTE],
            optimizer=passes[_Pass.OPTIMIZER],
            bytes=self._bytes.total(),
            ops=self._ops.total(),
            by_module=self._by_module(),
            by_operator=dict(self._operators.most_common()),
            by_dtype=dict(self._dtypes.most_common()),
            uncounted=dict(self._uncounted.most_common()),
        )

    def _by_module(self) -> dict[str, ModuleFlops]:
        """Own parts added up along the qualified names, in the order of ``named_modules``."""
        own = {name for name, _ in self._flops} | set(self._ops)
        sums: dict[str, Counter[str]] = {}
        for name in own:
            part = Counter({kind.value: self._flops[name, kind] for kind in _Pass})
            part["bytes"], part["ops"] = self._bytes[name], self._ops[name]
            for ancestor in _lineage(name):
                sums.setdefault(ancestor, Counter()).update(part)
        order = {name: index for index, name in enumerate(self._names.values())}
        return {
            name: ModuleFlops(**{key: sums[name][key] for key in ("forward", "backward", "recompute", "bytes", "ops")})
            for name in sorted(sums, key=lambda name: order.get(name, -1))
        }

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        name = self._names.get(id(module))
        if name is not None:
            self._running.append((name, _graph_task() != _OUTSIDE))
            self._note(_next_number())

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running and self._names.get(id(module)) == self._running[-1][0]:
            self._running.pop()
            self._note(_next_number())

    def _enter_optimizer(self, *_: Any) -> None:
        self._optimizers += 1

    def _leave_optimizer(self, *_: Any) -> None:
        self._optimizers -= 1

    def _note(self, number: int) -> None:
        """From ``number`` on, nodes belong to the module that is running."""
        owner = self._running[-1][0] if self._running else ""
        self._number = number
        if self._log[-1][1] != owner:
            self._log.append((number, owner))

    def _where(self) -> tuple[str, _Pass]:
        """The module and the pass that an operator dispatched now belongs to."""
        running, inside_backward = self._running[-1] if self._running else ("", False)
        if _graph_task() == _OUTSIDE:
            stepping = self._optimizers and not self._running and not torch.is_grad_enabled()
            return running, _Pass.OPTIMIZER if stepping else _Pass.FORWARD
        if inside_backward:
            return running, _Pass.RECOMPUTE
        node = torch._C._current_autograd_node()
        owner = self._owner(node._sequence_nr()) if node is not None else running
        return owner, _Pass.RECOMPUTE if _is_recomputing(sys._getframe(1)) else _Pass.BACKWARD

    def _owner(self, number: int) -> str:
        """The module that ran when autograd made the node of this number.

        What adds up a gradient has the highest number of all: it runs right after the node that computed the gradient,
        and the last entry is that node's module.
        """
        return self._log[bisect_right(self._log, number, key=lambda entry: entry[0]) - 1][1]

    def _call(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        owner, kind = self._where()
        if self._log[-1][1] != owner:  # a backward pass that makes nodes itself, or the code after it
            self._log.append((self._number, owner))
        out = operator(*args, **kwargs)
        self._number = _next_number()
        self._count(owner, kind, operator, args, kwargs, out)
        return out

    def _count(
        self, owner: str, kind: _Pass, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        name = name_of(operator)
        self._ops[owner] += 1
        self._bytes[owner] += bytes_moved(operator, name, args, kwargs, out)
        work = work_of(operator, args, kwargs, out)
        if work is None:
            if looks_costly(operator):
                self._uncounted[name] += 1
            return
        self._flops[owner, kind] += work.model
        self._flops[owner, _Pass.RECOMPUTE] += work.recomputed
        self._operators[name] += sum(work)
        if kind in (_Pass.FORWARD, _Pass.BACKWARD):
            self._dtypes[_dtype(args)] += work.model


class _Mode(TorchDispatchMode):
    """Hands every operator that reaches the dispatcher to a function."""

    supports_higher_order_operators = True

    def __init__(self, call: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self._call = call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func) and not has_formula(func):
            with self:
                return func.decompose(*args, **kwargs)
        return self._call(func, args, kwargs)


@cache
def _is_composite(operator: Any) -> bool:
    """Whether an operator is made of others; only in inference mode do they arrive whole."""
    if not isinstance(operator, torch._ops.OpOverload):
        return False
    return operator.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _next_number() -> int:
    """The number that autograd will give to the next node of this thread."""
    return _get_sequence_nr()


def _graph_task() -> int:
    """The backward pass that this thread is in, or -1."""
    return torch._C._current_graph_task_id()


def _is_recomputing(frame: FrameType | None) -> bool:
    """Whether torch's checkpoint stands between the running operator and the autograd engine that called it."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file == _ENGINE:
            return False
        if file == _CHECKPOINT:
            return True
        frame = frame.f_back
    return False


def _lineage(name: str) -> list[str]:
    """A qualified name and those of everything it is part of, the root's "" included."""
    parts = name.split(".") if name else []
    return [".".join(parts[:length]) for length in range(len(parts) + 1)]


def _dtype(args: tuple[Any, ...]) -> str:
    """The dtype of a product, told by its first tensor."""
    first = next(tensors_in(args), None)
    return str(first.dtype).removeprefix("torch.") if first is not None else "unknown"

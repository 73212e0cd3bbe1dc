"""A short path for ``self.log``: a call that the stock method has already judged is not judged again."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_perf.host.doors import Undo, require
from lightning_perf.host.fast_results import LARGEST_BATCH, Row, is_fast, row_of, speed_up_results
from lightning_perf.host.log_door import innermost_log
from lightning_perf.host.namespaces import namespace_of

_PARAMETERS = (
    "name", "value", "prog_bar", "logger", "on_step", "on_epoch", "reduce_fx", "enable_graph", "sync_dist",
    "sync_dist_group", "add_dataloader_idx", "batch_size", "metric_attribute", "rank_zero_only",
)  # fmt: skip
_FULL = (torch.float32, torch.float64)
_REAL = {
    *_FULL,
    torch.float16,
    torch.bfloat16,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
}


class FastLog:
    """Stands in front of ``LightningModule.log`` on one module.

    The stock method sees every call first. Once it has accepted one, calls that differ from it in the value (and the
    batch size) alone go straight to the row of the result metric. Copies and pickles of the module get the stock method.
    """

    def __init__(self, module: Any, trainer: Any) -> None:
        self._module, self._trainer = module, trainer
        self._connector = trainer._logger_connector
        self._stock = MethodType(type(module).log, module)
        # Dynamo must not trace what follows; it stops here, where the stock method would stop a little later.
        self._untraced: Any = torch.compiler.disable(self._stock)
        self._scene: tuple[Any, Any] = (None, None)
        self._results: Any = None
        self._rows: dict[Any, Row] = {}
        self._rows_of: dict[int, dict[Any, Row]] = {}

    def __call__(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """See the stock ``log``."""
        arguments = (
            name, value, prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph, sync_dist, sync_dist_group,
            add_dataloader_idx, batch_size, metric_attribute, rank_zero_only,
        )  # fmt: skip
        if torch.compiler.is_compiling():
            return self._untraced(*arguments)
        module, state = self._module, self._trainer.state
        if module._trainer is not self._trainer or module._fabric is not None:
            return self._stock(*arguments)
        if state.stage is not self._scene[0] or state.fn is not self._scene[1]:
            self._enter(state)
        results = self._results
        if results is None:
            return self._stock(*arguments)
        fx = module._current_fx_name
        call = (
            fx, results.dataloader_idx, name, value.__class__, prog_bar, logger, on_step, on_epoch, reduce_fx, enable_graph,
            sync_dist, sync_dist_group, add_dataloader_idx, batch_size is None, metric_attribute, rank_zero_only,
        )  # fmt: skip
        try:
            row = self._rows.get(call)
        except TypeError:  # an argument that cannot be hashed is for the stock method to judge
            return self._stock(*arguments)
        if (
            row is None
            or self._connector.should_reset_tensors(fx)
            or not (self._record(row, value, batch_size) if row.plain else row.record_metric(value))
        ):
            return self._learn(call, arguments)
        self._connector._current_fx = fx
        return None

    def _enter(self, state: Any) -> None:
        """Look up the result collection of another stage."""
        results = self._trainer._results
        self._scene = (state.stage, state.fn)
        self._results = results if is_fast(results) else None
        self._rows = self._rows_of.setdefault(id(results), {})

    def _learn(self, call: tuple[Any, ...], arguments: tuple[Any, ...]) -> None:
        """Let the stock method do it, and remember the call if the short path can repeat it."""
        results, rows = self._results, self._rows
        self._stock(*arguments)
        fx, index, name, kind = call[:4]
        key = f"{fx}.{name}" if index is None or not arguments[10] else f"{fx}.{name}.{index}"
        row = row_of(results, key)
        value = arguments[1]
        if row is None or row.metric.meta.sync.should or row.metric.meta.enable_graph:
            return
        if row.plain and kind is Tensor and value.dtype in _REAL:
            row.known.add(value.dtype)
            rows[call] = row
        elif kind in (float, int, bool) if row.plain else isinstance(value, Metric):
            rows[call] = row

    def _record(self, row: Row, value: Any, batch_size: int | None) -> bool:
        """Give a scalar to its row; False: this one is for the stock method."""
        if isinstance(value, Tensor):
            if value.dtype not in row.known or value.numel() != 1:
                return False
            value = value.detach()
            if value.ndim:
                value = value.squeeze()
            if value.dtype not in _FULL:
                value = value.to(_default_dtype())
        else:
            value = torch.tensor(value, device=self._module.device, dtype=_default_dtype())
        if not row.takes(value):
            return False
        weight = 1
        if row.averages and row.on_epoch:
            weight = self._results._extract_batch_size(row.metric, batch_size, row.metric.meta)
            if type(weight) is not int or not 0 <= weight <= LARGEST_BATCH:
                return False
        row.record(value, weight)
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        module = memo.get(id(self._module), self._module)
        return MethodType(type(module).log, module)

    def __reduce__(self) -> Any:
        return getattr, (self._module, "log")


def speed_up_log(trainer: Any, module: Any, undo: Undo) -> bool:
    """Make logging cheap in this Trainer and on this module, until ``undo`` runs.

    Returns:
        False if the module has a ``log`` of its own, which is then left in place (its ``super().log`` still gains).

    Raises:
        DoorClosed: if this release of Lightning logs in another way.
    """
    require(require(trainer, "_logger_connector"), "should_reset_tensors", parameters=("fx",))
    require(trainer._logger_connector, "_current_fx")
    for name in ("_trainer", "_fabric", "_current_fx_name"):
        require(module, name)
    stock = namespace_of(module).LightningModule.log
    overridden = type(module).log is not stock
    if not overridden:
        require(type(module), "log", parameters=("self", *_PARAMETERS))
    speed_up_results(trainer, undo)
    slot, key = innermost_log(module)
    held = slot.get(key)
    if isinstance(held, FastLog):  # left behind by a run that ended without a word to its callbacks
        _put_back(module, slot, key, None)
        held = None
    if overridden or not (held is None or (isinstance(held, MethodType) and held.__func__ is stock)):
        return False
    slot[key] = fast = FastLog(module, trainer)
    undo.push(_take_off, module, fast, held)
    return True


def _take_off(module: Any, fast: FastLog, held: Any) -> None:
    slot, key = innermost_log(module)
    if slot.get(key) is fast:
        _put_back(module, slot, key, held)


def _put_back(module: Any, slot: dict[str, Any], key: str, held: Any) -> None:
    if held is None and slot is vars(module):
        del slot[key]
    else:
        slot[key] = held


def _default_dtype() -> torch.dtype:
    """The type in which Lightning keeps what is not float32 or float64."""
    dtype = torch.get_default_dtype()
    return dtype if dtype in _FULL else torch.float32

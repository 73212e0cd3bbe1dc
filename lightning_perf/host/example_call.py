"""From what a user has at hand, a loader or a batch, to the arguments of the call that is exported or timed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_perf._copying import deep_copy
from lightning_perf.deploy.call import first_line
from lightning_perf.host.dry_run import call_step, iter_is_self, peek, silent_copy
from lightning_perf.host.loader_door import loaders_in
from lightning_perf.host.namespaces import is_a
from lightning_perf.host.rng import preserved_rng

_STEPS = ("validation_step", "test_step", "predict_step", "training_step")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _Seen(Exception):
    """Ends a step as soon as the call was seen; private, so that no other exception is taken for it."""


def batches_of(batch_or_inputs: Any, count: int) -> list[Any]:
    """The first ``count`` batches of a loader; a list of one for anything else.

    Several loaders, in a list or a dictionary, give a batch each in turn.

    Raises:
        ValueError: a loader that can be read only once, or one that is empty.
    """
    loaders = list(loaders_in(batch_or_inputs))
    several = isinstance(batch_or_inputs, Mapping | list | tuple)
    if several and not any(isinstance(loader, DataLoader) for loader in loaders):
        return [batch_or_inputs]
    if isinstance(batch_or_inputs, Tensor) or not all(hasattr(loader, "__iter__") for loader in loaders):
        return [batch_or_inputs]
    for loader in loaders:
        if iter_is_self(loader):
            peek(loader)  # says what is wrong with it
    with preserved_rng():
        found = list(islice(_in_turn(loaders), count))
    if not found:
        raise ValueError(f"{type(batch_or_inputs).__name__} has no batch; export needs one as an example.")
    return found


def _in_turn(loaders: Iterable[Any]) -> Iterator[Any]:
    """A batch of each until all have ended."""
    left = [iter(loader) for loader in loaders]
    while left:
        for batches in tuple(left):
            try:
                yield next(batches)
            except StopIteration:
                left.remove(batches)


def arguments_of(module: nn.Module, batch: Any, method: str = "forward") -> tuple[Arguments, str]:
    """Arguments of ``module.method`` in ``batch``, and one sentence on how they were found.

    A dictionary whose keys are parameters of the method is taken as its arguments; a tensor as its only one. For other
    batches the module's own steps are asked: a silent copy runs ``validation_step`` (else test, predict, training) until it
    makes the call. Last comes the shape of the batch: as many items as the method requires (what is behind them may be
    labels, and no optional mask), all of them, its first item, or the batch as it is.

    Raises:
        ValueError: nothing fits; the message says what was tried.
    """
    entry = getattr(module, method, None)
    if not callable(entry):
        raise ValueError(f"method={method!r}: {type(module).__name__} has no method of that name.")
    signature = inspect.signature(entry)
    if isinstance(batch, Tensor):
        return ((batch,), {}), f"{method}(batch)"
    if isinstance(batch, Mapping) and batch.keys() <= signature.parameters.keys() and _binds(signature, (), batch):
        return ((), dict(batch)), f"{method}() with the batch's entries as arguments"
    tried = []
    for step in _STEPS:
        if _defines(module, step):
            found = _recorded(module, step, batch, method)
            if isinstance(found, tuple) and _binds(signature, *found):
                return found, f"{method}() as {step} calls it"
            tried.append(f"{step}: {found if isinstance(found, str) else 'its call does not fit the signature'}")
    for arguments, words in _shapes(batch, method, signature):
        refusal = _refusal(module, method, signature, arguments)
        if refusal is None:
            return (arguments, {}), words
        tried.append(f"{words}: {refusal}")
    raise ValueError(
        f"no call of {type(module).__name__}.{method}{signature} could be made of a {type(batch).__name__} (tried "
        f"{'; '.join(tried)}). Pass a dictionary of its arguments by name."
    )


def _defines(module: nn.Module, step: str) -> bool:
    """Whether the step is the module's own; LightningModule's ``predict_step`` would pass on a batch, labels and all."""
    if not callable(getattr(module, step, None)):
        return False
    owner = next((cls for cls in type(module).__mro__ if step in vars(cls)), None)
    return not (is_a(module, "LightningModule") and owner is not None and owner.__name__ == "LightningModule")


def _binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _shapes(batch: Any, method: str, signature: inspect.Signature) -> Iterator[tuple[tuple[Any, ...], str]]:
    if isinstance(batch, list | tuple) and batch:
        required = sum(one.kind in _POSITIONAL and one.default is one.empty for one in signature.parameters.values())
        if 1 < required < len(batch):
            yield tuple(batch[:required]), f"{method}(*batch[:{required}])"
        if required == 1:
            yield (batch[0],), f"{method}(batch[0])"
        yield tuple(batch), f"{method}(*batch)"
        if required != 1:
            yield (batch[0],), f"{method}(batch[0])"
    yield (batch,), f"{method}(batch)"


def _refusal(module: nn.Module, method: str, signature: inspect.Signature, arguments: tuple[Any, ...]) -> str | None:
    """What a copy of the module says against the arguments: any error it raises; ``None`` if it takes them.

    They are moved to the module's device, since a loader gives what lies in main memory.
    """
    if not _binds(signature, arguments, {}):
        return f"{len(arguments)} arguments do not fit the signature"
    clone = deep_copy(module).eval()
    device = next((tensor.device for tensor in (*clone.parameters(), *clone.buffers())), None)
    try:
        with preserved_rng(), torch.no_grad():
            getattr(clone, method)(*(arguments if device is None else move_data_to_device(arguments, device)))
    except Exception as error:
        return first_line(error)
    return None


def _recorded(module: nn.Module, step: str, batch: Any, method: str) -> Arguments | str:
    """What ``step`` calls the method with, or why it did not come to that."""
    attached = getattr(module, "_trainer", None) is not None
    clone: Any = (silent_copy(module) if attached else deep_copy(module)).eval()
    seen: list[Arguments] = []

    def record(*args: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs))
        raise _Seen

    vars(clone).update({name: lambda *args, **kwargs: None for name in ("log", "log_dict", "print")})
    vars(clone)[method] = record
    try:
        with preserved_rng(), torch.no_grad():
            call_step(getattr(clone, step), copy.deepcopy(batch))
    except _Seen:
        reason = ""
    except Exception as error:  # a step that needs a Trainer, say; the next way is tried, and this is in the message
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    else:
        reason = f"it does not call {method}"
    return seen[0] if seen else reason  # a step may catch what ends it

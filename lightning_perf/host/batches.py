"""What a batch holds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import seed_everything as _seed_everything

_Path = tuple[Callable[[Any], Any], ...]
_INTEGERS = {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8}
_CHANNELS = (1, 3, 4)
_DEEPEST = 8
_PLAIN = (bool, int, float, str, bytes)


class BatchMeter:
    """Counts the samples and the tokens of batches of one loader.

    Graph batches say their size themselves (``num_graphs``, or a length beside a ``batch`` or ``ptr`` vector); otherwise
    it is the leading size that most members of the batch share, ``hint`` (the loader's ``batch_size``) first. Members are
    found in tensors, mappings, sequences, NamedTuples and dataclasses, nested or not; a list of tensors of different
    shapes, of mappings or of sequences counts its items. Tokens are the elements of the first integer tensor of two
    dimensions, (B, T).

    Where the numbers stand is looked up once and then read directly, so that a step pays a microsecond; a batch of another
    structure is looked through anew.

    Example::

        >>> BatchMeter()({"ids": torch.zeros(4, 16, dtype=torch.long), "label": torch.zeros(4)})
        (4, 64)
    """

    def __init__(self, hint: int | None = None) -> None:
        self.hint = hint
        self._size: Callable[[Any], int] | None = None
        self._ids: Callable[[Any], Any] | None = None
        self._kind: type | None = None

    def __call__(self, batch: Any) -> tuple[int | None, int | None]:
        """Number of samples and of tokens in ``batch``; ``None`` where it cannot be told."""
        if self._kind is type(batch) and self._size is not None:
            try:
                tokens = None if self._ids is None else int(self._ids(batch).numel())
                return self._size(batch), tokens
            except (KeyError, IndexError, AttributeError, TypeError):  # another structure than the batch before
                self._kind = None
        return self._look(batch)

    def _look(self, batch: Any) -> tuple[int | None, int | None]:
        found = list(_leaves(batch, (), 0))
        sizes = Counter(size for size, _, _ in found)
        if not sizes:
            return None, None
        said = [size for size, _, said in found if said]
        chosen = said[0] if said else self.hint if self.hint in sizes else sizes.most_common(1)[0][0]
        reader = next(reader for size, reader, is_said in found if size == chosen and (is_said or not said))
        tensors = _tensors(batch, (), 0)
        ids = next((path for value, path in tensors if value.ndim == 2 and value.dtype in _INTEGERS), None)
        self._kind, self._size = type(batch), reader
        self._ids = None if ids is None else _reader(ids)
        return chosen, None if self._ids is None else int(self._ids(batch).numel())


def batch_size_of(batch: Any) -> int | None:
    """Number of samples in ``batch``, or ``None`` where it cannot be told; see :class:`BatchMeter`."""
    return BatchMeter()(batch)[0]


def few_samples(batch: Any, count: int) -> Any | None:
    """The first ``count`` samples of a batch; ``None`` where it has no more, or is not sure to part into samples.

    It is sure where every tensor in a nest of dictionaries, lists and tuples has an entry a sample in its first dimension.

    Example::

        >>> few_samples({"x": torch.zeros(4, 16), "names": ["a", "b", "c", "d"], "scale": 2.0}, 1)["names"]
        ['a']
        >>> few_samples((torch.zeros(4, 16), torch.zeros(16)), 1) is None
        True
    """
    size = batch_size_of(batch)
    if size is None or size <= count:
        return None
    try:
        return _few(batch, size, count)
    except _Whole:
        return None


class _Whole(Exception):
    """Something in a batch does not part into samples."""


def _few(value: Any, size: int, count: int) -> Any:
    if isinstance(value, torch.Tensor) and value.ndim:
        if value.size(0) != size:
            raise _Whole
        return value[:count]
    if type(value) is dict:
        return {key: _few(child, size, count) for key, child in value.items()}
    if type(value) in (list, tuple):
        if len(value) == size and (_is_list_of_samples(list(value)) or all(isinstance(one, _PLAIN) for one in value)):
            return value[:count]
        return type(value)(_few(child, size, count) for child in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_few(child, size, count) for child in value))
    if value is None or isinstance(value, (*_PLAIN, torch.Tensor)):
        return value
    raise _Whole


def _leaves(value: Any, path: _Path, depth: int) -> Iterator[tuple[int, Callable[[Any], int], bool]]:
    """Candidates for a batch's size: (size, how to read it from a batch, whether the member says it itself)."""
    if depth > _DEEPEST:
        return
    if isinstance(value, torch.Tensor):
        if value.ndim:
            yield value.size(0), _reader((*path, _leading)), False
        return
    said = _said(value)
    if said is not None:
        yield said(value), _reader((*path, said)), True
        return
    if isinstance(value, list) and _is_list_of_samples(value):
        yield len(value), _reader((*path, len)), False
        return
    for child, step in _children(value):
        yield from _leaves(child, (*path, step), depth + 1)


def _tensors(value: Any, path: _Path, depth: int) -> Iterator[tuple[torch.Tensor, _Path]]:
    if isinstance(value, torch.Tensor):
        yield value, path
    elif depth <= _DEEPEST:
        for child, step in _children(value):
            yield from _tensors(child, (*path, step), depth + 1)


def _children(value: Any) -> Iterator[tuple[Any, Callable[[Any], Any]]]:
    """The members of a container, each with the step that leads to it."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield child, _item(key)
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield child, _item(index)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield getattr(value, field.name), _attribute(field.name)


def _said(value: Any) -> Callable[[Any], int] | None:
    """How a graph batch tells its number of graphs, or ``None`` for everything else."""
    if isinstance(value, Mapping | list | tuple | str | bytes):
        return None
    if isinstance(getattr(value, "num_graphs", None), int):
        return _attribute("num_graphs")
    if hasattr(value, "__len__") and any(
        isinstance(getattr(value, name, None), torch.Tensor) for name in ("batch", "ptr")
    ):
        return len
    return None


def _is_list_of_samples(values: list[Any]) -> bool:
    """Whether a list holds one item per sample (detection, ragged sequences), not one item per field of a sample."""
    if len(values) < 2:
        return False
    if all(isinstance(value, torch.Tensor) and value.ndim for value in values):
        leading = {value.size(0) for value in values}
        images = all(value.ndim >= 3 and value.size(0) in _CHANNELS for value in values)
        ragged = len({value.ndim for value in values}) == 1 and len({value.shape for value in values}) > 1
        return ragged and (len(leading) > 1 or images)
    return all(isinstance(value, Mapping) for value in values)


def _leading(value: Any) -> int:
    return value.size(0)


def _item(key: Any) -> Callable[[Any], Any]:
    return lambda value: value[key]


def _attribute(name: str) -> Callable[[Any], Any]:
    return lambda value: getattr(value, name)


def _reader(path: _Path) -> Callable[[Any], Any]:
    if len(path) == 1:
        return path[0]
    if len(path) == 2:
        first, second = path
        return lambda value: second(first(value))

    def read(value: Any) -> Any:
        for step in path:
            value = step(value)
        return value

    return read


def seed_everything(seed: int) -> None:
    """Lightning's seeding of torch, numpy and Python, without a line about it."""
    _seed_everything(seed, workers=True, verbose=False)

"""Structures around tensors, as plain data and back: lists, tuples, dictionaries, named tuples, dataclasses."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from lightning_perf.deploy.serve import rebuild

_CONSTANTS = (bool, int, float, str, type(None))


class NotPlain(ValueError):
    """Something among inputs or outputs that is no structure of tensors."""


def take_apart(value: Any, leaves: list[Tensor], where: str) -> Any:
    """The structure of ``value`` as plain data; its tensors are appended to ``leaves``.

    Raises:
        NotPlain: something that is neither a tensor nor a list, tuple, dict, dataclass or constant.
    """
    if isinstance(value, Tensor):
        leaves.append(value)
        return {"tensor": len(leaves) - 1}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise NotPlain(f"{where} has the key {key!r}; only strings can be kept, rename it in a wrapper method.")
        return {"dict": {key: take_apart(item, leaves, f"{where}[{key!r}]") for key, item in value.items()}}
    if isinstance(value, list | tuple):
        items = [take_apart(item, leaves, f"{where}[{index}]") for index, item in enumerate(value)]
        names = getattr(value, "_fields", None)
        if names is not None:
            return {"named": [list(pair) for pair in zip(names, items, strict=True)]}
        return {"list" if isinstance(value, list) else "tuple": items}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {one.name: getattr(value, one.name) for one in fields(value)}
        return {"object": take_apart(parts, leaves, where)["dict"]}
    if isinstance(value, _CONSTANTS):
        return {"const": value}
    raise NotPlain(
        f"{where} is a {type(value).__name__}; tensors, lists, tuples, dicts, dataclasses and plain constants can be "
        "exported. Write a method that takes and returns those, and export it with method='its_name'."
    )


class Attributes(dict[str, Any]):
    """A dictionary whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the output has no {name!r}, only {sorted(self)}.") from None


def in_form_of(example: Any, value: Any) -> Any:
    """``value``, plain data of the same structure, in the classes of ``example``.

    They are named tuples, dataclasses, and mappings with attributes.

    Example::

        >>> from collections import namedtuple
        >>> in_form_of(namedtuple("Out", "loss logits")(1, [2]), (3, [4]))
        Out(loss=3, logits=[4])
    """
    if isinstance(example, Mapping):
        items = {key: in_form_of(example[key], item) for key, item in value.items()}
        if type(example) is dict:
            return items
        return type(example)(**items) if is_dataclass(example) else Attributes(items)
    if isinstance(example, list | tuple):
        parts = [in_form_of(one, item) for one, item in zip(example, value, strict=True)]
        if isinstance(example, list):
            return parts
        return type(example)(*parts) if hasattr(example, "_fields") else tuple(parts)
    if is_dataclass(example) and not isinstance(example, type):
        made = copy.copy(example)  # its constructor may want what it is made of, not what it holds
        for one in fields(example):
            object.__setattr__(made, one.name, in_form_of(getattr(example, one.name), value[one.name]))
        return made
    return value


def as_given(spec: Any, leaves: Sequence[Any], example: Any) -> Any:
    """The value of a structure from its tensors, as code of the module's wants it: in the classes of ``example``.

    Without an example, stand-ins have the attributes of dataclasses and named tuples.

    Example::

        >>> as_given({"named": [["x", {"tensor": 0}], ["n", {"const": 3}]]}, [10], None).x
        10
    """
    if example is not None:
        return in_form_of(example, rebuild(spec, leaves))
    kind, content = next(iter(spec.items()))
    if kind in {"dict", "object"}:
        items = {key: as_given(inner, leaves, None) for key, inner in content.items()}
        return items if kind == "dict" else Attributes(items)
    if kind == "named":
        values = [as_given(inner, leaves, None) for _, inner in content]
        return namedtuple("Given", [name for name, _ in content])(*values)
    if kind in {"list", "tuple"}:
        values = [as_given(inner, leaves, None) for inner in content]
        return values if kind == "list" else tuple(values)
    return rebuild(spec, leaves)

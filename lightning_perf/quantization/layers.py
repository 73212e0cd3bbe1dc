"""Layers that round their weights and inputs: the class of the instance is swapped, everything else stays.

A prepared layer is an instance of a subclass of its own class, so that its ``forward`` (the user's, too), hooks,
parameters, ``state_dict`` and ``isinstance`` checks are as before. What it needs to know lies in one plain object in its
``__dict__``, which deep copies and pickles take along; no parameter and no buffer is added.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_perf.quantization.kinds import Kind, owner_of, weight_of
from lightning_perf.quantization.observers import Ranges
from lightning_perf.quantization.rounding import round_activation, round_to_own_range, round_weight
from lightning_perf.quantization.schemes import Scheme
from lightning_perf.quantization.swapping import Role, float_class, register, role_of, swap, swap_back
from lightning_perf.quantization.transforms import transformed
from lightning_perf.quantization.written import Written

RECORD = "_lightning_perf_quantized"


@dataclass
class Preparation:
    """What all layers of one prepared module share: ranges, switches, and the account of what was left in float.

    ``observing`` and ``quantizing`` are switched by whoever drives training or calibration. ``macs`` are multiplications of
    the first step by layer, quantized or not, and by operation outside of layers, as ``(name)``; ``head`` is the layer that
    came last in it; ``sensitivity`` is, by what was measured, how much each group of layers costs alone.
    """

    scheme: Scheme
    ranges: Ranges
    left: dict[str, str] = field(default_factory=dict)
    observing: bool = False
    observing_outputs: bool = False
    quantizing: bool = True
    watched: dict[str, bool] = field(default_factory=lambda: {"training": False, "evaluation": False})
    macs: dict[str, int] = field(default_factory=dict)
    head: str = ""
    sensitivity: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class Layer:
    """The record of one prepared layer."""

    name: str
    kind: Kind
    scheme: Scheme
    shared: Preparation
    slots: dict[str, int] = field(default_factory=dict)  # input -> slot of its range
    output: int | None = None
    active: bool = True
    norm: nn.Module | None = None
    unfolded: str | None = None  # why a batch norm that follows is not folded
    followed_by: str | None = None  # name of the batch norm that was seen to follow, folded or not
    feeds_addition: bool = False
    last: Any = None  # weak reference to the last output, for the batch norm behind it
    confirmed: bool = False  # whether the pair was seen in an evaluation step too
    reason: str | None = None  # why it is not active, where its own forward forbids it
    checked: bool = False  # whether a forward of the user's own is known to leave its weights alone

    @property
    def known(self) -> bool:
        """Whether the ranges of all inputs are known."""
        return all(self.shared.ranges.known[slot] for slot in self.slots.values())

    @property
    def rounds(self) -> bool:
        """Whether the layer computes with rounded values now."""
        return self.shared.quantizing and self.active and self.known

    def input(self, name: str, x: Any) -> Any:
        """An input as the layer shall see it."""
        if isinstance(x, PackedSequence):
            return x._replace(data=self.input(name, x.data))
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        if self.scheme.activations == "dynamic":
            return round_to_own_range(x, self.scheme) if self.rounds else x
        self.observe(name, x)
        return round_activation(x, *self.shared.ranges.parameters(self.slots[name], x.device)) if self.rounds else x

    def observe(self, name: str, x: Any) -> None:
        """Note the range of an input, where ranges are being noted."""
        if self.shared.observing and name in self.slots and isinstance(x, Tensor) and x.is_floating_point():
            self.shared.ranges.observe(self.slots[name], x)

    def part(self, reason: str) -> None:
        """Give up on folding the batch norm that follows."""
        self.norm, self.output, self.unfolded = None, None, reason

    def retire(self, reason: str) -> None:
        """Compute in float from now on."""
        self.active, self.reason = False, reason
        warnings.warn(f"layer {self.name!r} is left in float from now on, because {reason}.", stacklevel=3)

    def saw(self, output: Any) -> None:
        """Take note of an output: where a batch norm is behind it, of whose input it shall be."""
        if self.norm is not None:
            self.last = weakref.ref(output) if isinstance(output, Tensor) else None
        else:
            self.observe_output(output)

    def observe_output(self, output: Any) -> None:
        """Note the range of an output, for runtimes that want it."""
        if not (self.shared.observing_outputs and self.active and isinstance(output, Tensor)):
            return
        if self.output is not None:
            self.shared.ranges.observe(self.output, output)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "last": None}


def _layer_forward(own: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The layer's own forward, on rounded inputs and with rounded weights in the place of its parameters."""
    layer: Layer | None = module.__dict__.get(RECORD)
    if layer is None:  # made from the class of a prepared layer, as type(layer)(...) does
        return own(module, *args, **kwargs)
    if layer.scheme.activations != "none" and layer.active:
        args, kwargs = rounded_inputs(layer.kind.inputs, layer.input, args, kwargs, layer.observe)
    if layer.rounds:
        layer.checked = layer.checked or own.__module__.startswith("torch.")
        with weights_in_place(module, layer), fused_attention_off(layer.kind.family == "attention"):
            output = own(module, *args, **kwargs)
    else:
        output = own(module, *args, **kwargs)
    layer.saw(output)
    return output


def _block_forward(own: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A transformer layer's or encoder's own forward, but not its one-kernel path, which reads weights past the layers."""
    with fused_attention_off(True):
        return own(module, *args, **kwargs)


def _norm_forward(own: Callable[..., Any], module: nn.Module, input: Tensor) -> Tensor:
    """A batch norm's own forward; where its input is not the output of the layer before, the two are parted for good.

    It is folded in export only: here its layer's own output may be what somebody else reads.
    """
    layer: Layer | None = module.__dict__.get(RECORD)
    if layer is None:
        return own(module, input)
    if layer.norm is module and (layer.last is None or layer.last() is not input):
        layer.part("its batch norm had another input in a later step")
    output = own(module, input)
    layer.observe_output(output)
    return output


LAYER = register(Role("layer", _layer_forward))
BLOCK = register(Role("block", _block_forward))
NORM = register(Role("norm", _norm_forward))


def make(module: nn.Module, role: Role, record: Layer | None) -> None:
    """Have a module play a role, with the record that it needs for it."""
    if record is not None:
        module.__dict__[RECORD] = record
    swap(module, role)


def has_torchs_forward(module: nn.Module) -> bool:
    """Whether a layer computes as torch wrote it; a forward of the user's own may do anything with its weights.

    Example::

        >>> has_torchs_forward(nn.Linear(2, 2))
        True
    """
    return float_class(module).forward.__module__.startswith("torch.")


def unmake(module: nn.Module) -> None:
    """Give a module its own class back and forget its record."""
    module.__dict__.pop(RECORD, None)
    swap_back(module)


def records(module: nn.Module) -> Iterator[tuple[str, nn.Module, Layer]]:
    """Every prepared layer of a module, with its qualified name and its record."""
    for name, child in module.named_modules():
        if role_of(child) == LAYER.name and RECORD in child.__dict__:
            yield name, child, child.__dict__[RECORD]


def prepared(module: nn.Module) -> list[nn.Module]:
    """Every module that plays a role."""
    return [child for child in module.modules() if role_of(child) is not None]


@contextmanager
def weights_in_place(module: nn.Module, layer: Layer) -> Iterator[None]:
    """Rounded weights where the layer's forward looks for its parameters, which stay registered meanwhile.

    An entry of the instance hides what ``nn.Module`` finds among its parameters.
    """
    shadows: list[tuple[dict[str, Any], str, Any]] = []
    for name in layer.kind.weights(module):
        owner, attribute = owner_of(module, name)
        rounded = round_weight(weight_of(module, name), layer.scheme, layer.kind.axis)
        shadows.append((owner.__dict__, attribute, rounded))
    if isinstance(module, nn.RNNBase):
        shadows = [(module.__dict__, "_flat_weights", _flat_weights(module, {name: r for _, name, r in shadows}))]
    before = [(names, key, names.get(key, shadows)) for names, key, _ in shadows]
    unseen = torch.compiler.is_compiling() or transformed()  # tensors there have no place in memory to look at
    watched = [] if layer.checked or unseen else [Written(*shadow) for shadow in shadows]
    try:
        for names, key, value in shadows:
            names[key] = value
        yield
        if any(one.happened() for one in watched):
            layer.retire("its forward writes to its weights")
        layer.checked = layer.checked or bool(watched)
    finally:
        for names, key, value in before:
            if value is shadows:
                names.pop(key, None)
            else:
                names[key] = value


def _flat_weights(module: nn.RNNBase, rounded: dict[str, Tensor]) -> list[Any]:
    return [rounded.get(name, getattr(module, name)) for name in module._flat_weights_names]


def rounded_inputs(
    names: tuple[str, ...],
    rounded: Callable[[str, Any], Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    repeated: Callable[[str, Any], None] = lambda name, x: None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The named inputs rounded, wherever the caller put them; one tensor given twice stays one, and is ``repeated``."""
    positional, named = list(args), dict(kwargs)
    done: list[tuple[Any, Any]] = []
    for position, name in enumerate(names):
        place: Any = positional if position < len(positional) else named
        key: Any = position if position < len(positional) else _key_of(name, named)
        if key is None:
            continue
        value = place[key]
        known = next((result for given, result in done if given is value), None)
        if known is not None:
            repeated(name, value)
        place[key] = rounded(name, value) if known is None else known
        done.append((value, place[key]))
    return tuple(positional), named


def _key_of(name: str, named: dict[str, Any]) -> str | None:
    """The keyword of an input: the name that torch gives it, or the first keyword of a forward of the user's own."""
    if name in named:
        return name
    return next((key for key, value in named.items() if isinstance(value, Tensor)), None) if name == "input" else None


@contextmanager
def fused_attention_off(off: bool) -> Iterator[None]:
    """Attention's one-kernel path, which reads weights past the layers, off for the time of a block if ``off``."""
    before = torch.backends.mha.get_fastpath_enabled()
    if not off or not before:
        yield
        return
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)

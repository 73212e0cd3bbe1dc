"""What a call of the user's module looks like: its signature, its tensors, and a flat module that exporters can trace."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_perf._copying import deep_copy
from lightning_perf.deploy.serve import gather
from lightning_perf.deploy.structures import as_given, take_apart

BATCH = "batch"


@dataclass(frozen=True)
class Call:
    """One entry point of a module with example inputs.

    ``parameters`` are the parameters that the example gave, ``inputs`` the structure of each, ``tensors`` the example's
    tensors in order, ``names`` theirs. ``batched`` says which tensors have the batch in their first dimension (none:
    the batch size is fixed), ``outputs`` is the structure of the result. ``examples`` are the parameters' own values, for
    the classes of named tuples and dataclasses in them; what they do not hold, stand-ins with the same attributes take.
    """

    method: str
    parameters: tuple[tuple[str, str], ...]
    inputs: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    outputs: Any
    output_count: int
    batched: tuple[bool, ...]
    notes: tuple[str, ...] = field(default=())
    examples: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def batch_size(self) -> int | None:
        """Batch size of the example; None where no tensor has a batch."""
        return next((t.size(0) for t, has in zip(self.tensors, self.batched, strict=True) if has), None)

    def at(self, size: int, tensors: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Copies of the example's tensors (or ``tensors``), cut or repeated to a batch of ``size``."""
        source = self.tensors if tensors is None else tensors
        return [
            tensor[torch.arange(size) % tensor.size(0)].contiguous() if has else tensor.clone()
            for tensor, has in zip(source, self.batched, strict=True)
        ]

    def of_one_size(self, reason: str) -> Call:
        """The same call for the example's batch size alone."""
        note = f"the batch size is fixed at {self.batch_size}: {reason}" if self.batch_size is not None else reason
        return _replace(self, batched=(False,) * len(self.tensors), notes=(*self.notes, note))

    @property
    def signature(self) -> inspect.Signature:
        """The parameters that the example gave."""
        return inspect.Signature(
            [inspect.Parameter(name, getattr(inspect.Parameter, kind)) for name, kind in self.parameters]
        )

    def make(self, module: nn.Module, tensors: Sequence[Tensor]) -> Any:
        """Make the call on a module, with these tensors in the places of the example's."""
        values: Any = {name: as_given(spec, tensors, self.examples.get(name)) for name, spec in self.inputs.items()}
        arguments = inspect.BoundArguments(self.signature, values)
        entry = module if self.method == "forward" else getattr(module, self.method)
        return entry(*arguments.args, **arguments.kwargs)

    def leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors of another call of the same structure."""
        bound = self.signature.bind(*args, **kwargs).arguments
        found: list[Any] = [None] * len(self.tensors)
        for name, spec in self.inputs.items():
            gather(spec, bound[name], found, name)
        return found

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether tensors have the example's sizes, but for the batch: a graph of the call takes no others."""
        return all(
            tensor.ndim == own.ndim and tensor.shape[has:] == own.shape[has:]
            for tensor, own, has in zip(tensors, self.tensors, self.batched, strict=True)
        )

    def describe(self) -> dict[str, Any]:
        """The signature as the manifest keeps it."""
        return {
            "method": self.method,
            "parameters": [{"name": name, "kind": kind} for name, kind in self.parameters],
            "inputs": dict(self.inputs),
            "tensors": [
                {
                    "name": name,
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "shape": [BATCH if has and not index else size for index, size in enumerate(tensor.shape)],
                }
                for name, tensor, has in zip(self.names, self.tensors, self.batched, strict=True)
            ],
            "outputs": self.outputs,
        }


class FlatModule(nn.Module):
    """A module whose call takes the tensors one by one and returns a tuple of tensors."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__()
        self.module = module
        self._call = call

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Rebuild the user's call, make it, and take the result apart."""
        leaves: list[Tensor] = []
        take_apart(self._call.make(self.module, tensors), leaves, "the output")
        return tuple(leaves)


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors for a call that may write into them, as one that normalises its input in place does."""
    return [tensor.clone() for tensor in tensors]


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode, on the CPU, that needs no gradients; the user's module is not touched.

    Weights that a parametrization of torch computes are plain weights there.

    Raises:
        ValueError: weights are inside of TorchScript, or the module holds something that cannot be copied.
    """
    for child in module.modules():
        if isinstance(child, torch.jit.ScriptModule) and next(child.parameters(), None) is not None:
            raise ValueError(
                f"{type(module).__name__} holds a {type(child).__name__} with weights, which nothing here can take apart; "
                "give the module that it was scripted or traced from."
            )
    try:
        made = deep_copy(module).eval().cpu()
    except (TypeError, NotImplementedError) as error:
        raise ValueError(
            f"{type(module).__name__} cannot be copied ({first_line(error)}), and it is a copy that is worked on; take what "
            "cannot be copied off the module before, or give its class a __deepcopy__."
        ) from error
    _fix_parametrized(made)
    return made.requires_grad_(False)


def _fix_parametrized(module: nn.Module) -> None:
    """Store what parametrizations compute, unless it is another value each time.

    A parametrized module has a class of its own that its copies share: torch's own removal would take the properties out of
    that class, and so out of the module that was copied.
    """
    for child in list(module.modules()):
        base = type(child).__bases__[0]
        if not parametrize.is_parametrized(child) or type(child).__name__ != f"Parametrized{base.__name__}":
            continue
        names = list(child.get_submodule("parametrizations")._modules)
        with torch.no_grad():
            values, again = ([getattr(child, name).clone() for name in names] for _ in range(2))
        if all(map(torch.equal, values, again)):
            del child._modules["parametrizations"]
            object.__setattr__(child, "__class__", base)
            for name, value in zip(names, values, strict=True):
                child.register_parameter(name, nn.Parameter(value, requires_grad=False))


def describe_call(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, method: str = "forward"
) -> Call:
    """Run ``module`` on the example and note what goes in and what comes out.

    A tensor whose first dimension is the batch (the most common first dimension of the inputs) may have any batch size if
    the module agrees: it is tried on another size.

    Raises:
        ValueError: no such method, no tensor among the inputs or outputs, or a structure that cannot be kept.
    """
    entry = getattr(module, method, None)
    if not callable(entry):
        raise ValueError(f"method={method!r}: {type(module).__name__} has no method of that name.")
    bound = inspect.signature(entry).bind(*args, **(kwargs or {}))
    tensors: list[Tensor] = []
    inputs = {name: take_apart(value, tensors, name) for name, value in bound.arguments.items()}
    parameters = _kinds(bound)
    tensors = [tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for tensor in tensors]
    if not tensors:
        raise ValueError(f"the example inputs hold no tensor, only {sorted(inputs)}; pass what forward takes.")
    for name, tensor in zip(_names(inputs, len(tensors)), tensors, strict=True):
        if not tensor.numel():
            raise ValueError(
                f"the example's {name} has the shape {list(tensor.shape)} and no value, so that nothing can be compared or "
                "calibrated; pass a batch of one sample or more."
            )
    names, examples = _names(inputs, len(tensors)), dict(bound.arguments)
    rough = Call(method, parameters, inputs, tuple(tensors), names, None, 0, _batched(tensors), examples=examples)
    copied = frozen_copy(module)
    leaves: list[Tensor] = []
    with torch.no_grad():
        outputs = take_apart(rough.make(copied, copies(tensors)), leaves, "the output")
    if not leaves:
        raise ValueError(f"{method}() returned no tensor; export a method that returns its result.")
    made = _replace(rough, outputs=outputs, output_count=len(leaves))
    reason = _fixed_batch(FlatModule(copied, made), made, leaves)
    return made if reason is None else made.of_one_size(reason)


def _kinds(bound: inspect.BoundArguments) -> tuple[tuple[str, str], ...]:
    """Name and kind of each given parameter; behind one that was left out, only the name can say which it is."""
    found, gap = [], False
    for name, parameter in bound.signature.parameters.items():
        if name not in bound.arguments:
            gap = True
            continue
        by_name = gap and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        found.append((name, "KEYWORD_ONLY" if by_name else parameter.kind.name))
    return tuple(found)


def _replace(call: Call, **changes: Any) -> Call:
    return Call(**(vars(call) | changes))


def _batched(tensors: Sequence[Tensor]) -> tuple[bool, ...]:
    sizes = Counter(tensor.size(0) for tensor in tensors if tensor.ndim)
    size = sizes.most_common(1)[0][0] if sizes else None
    return tuple(bool(tensor.ndim) and tensor.size(0) == size for tensor in tensors)


def _names(inputs: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """A readable, unique name per tensor: the parameter's, with a path behind it where it holds several."""
    found: list[str] = [""] * count

    def visit(spec: Any, name: str) -> None:
        kind, content = next(iter(spec.items()))
        if kind == "tensor":
            found[content] = name
        elif kind in {"dict", "object", "named"}:
            for key, inner in content if kind == "named" else content.items():
                visit(inner, f"{name}_{key}")
        elif kind in {"list", "tuple"}:
            for index, inner in enumerate(content):
                visit(inner, f"{name}_{index}")

    for name, spec in inputs.items():
        visit(spec, name)
    clashes = {name for name, number in Counter(found).items() if number > 1}
    return tuple(f"{name}_{index}" if name in clashes else name for index, name in enumerate(found))


def _fixed_batch(flat: FlatModule, call: Call, outputs: Sequence[Tensor]) -> str | None:
    """Why the batch size cannot vary; None where a smaller and a larger batch work and the outputs follow."""
    size = call.batch_size
    if size is None:
        return "no input has a batch dimension"
    for other in (1, size + 1):
        try:
            with torch.no_grad():
                made = flat(*call.at(other))
        except Exception as error:
            return f"with {other} the module raises {first_line(error)}"
        for index, (one, example) in enumerate(zip(made, outputs, strict=True)):
            if example.ndim and example.size(0) == size and one.size(0) != other:
                return f"with {other} output {index} has the leading size {one.size(0)}"
    return None


def first_line(error: BaseException) -> str:
    """Class and first line of an error, for one line of a report."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__

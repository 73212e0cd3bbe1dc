"""How long a module takes for one call on this machine: eager, and in the runtimes that are installed and can take it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from lightning_perf.deploy import onnx_runtime, openvino
from lightning_perf.deploy.call import Call, describe_call, frozen_copy
from lightning_perf.deploy.latency import measure
from lightning_perf.deploy.pipeline import Builder
from lightning_perf.deploy.source import FP32, NotExportable, Source
from lightning_perf.deploy.trial import gate
from lightning_perf.deploy.variant import Run
from lightning_perf.measuring import paired_ratio
from lightning_perf.quantization.prepare import unprepare

EAGER = "eager"
#: What is built anew for every candidate. Inductor is not here: it would compile each for minutes.
RUNTIMES: Mapping[str, Builder] = {onnx_runtime.NAME: onnx_runtime.build, openvino.NAME: openvino.build}

Eager = Callable[[nn.Module], object]


class Latency:
    """Times a module against smaller ones in what serves the whole module fastest: eager, or a runtime.

    A runtime counts if it is installed and its outputs are the module's. Calls of both modules alternate, and the median
    of the ratios of pairs counts, so that what slows the machine slows both.

    Args:
        whole: the module before the cut; kept, and called.
        arguments: of the call, by position and by name; None if only ``eager`` knows how to call it.
        eager: makes the call on a module.
        builders: runtimes by name.
        rounds: pairs behind a ratio.
        clock: seconds.

    Attributes:
        seconds: median of a call of the whole module by way, fastest first.
        left_out: why a runtime is not among them.

    Example::

        >>> x = torch.ones(32, 512)
        >>> whole, half = (nn.Sequential(nn.Linear(512, n), nn.ReLU(), nn.Linear(n, 1)) for n in (2048, 1024))
        >>> latency = Latency(whole, ((x,), {}), lambda net: net(x), builders={})
        >>> list(latency.seconds), 0 < latency.share_of(half)
        (['eager'], True)
    """

    def __init__(
        self,
        whole: nn.Module,
        arguments: tuple[tuple[Any, ...], Mapping[str, Any]] | None,
        eager: Eager,
        *,
        builders: Mapping[str, Builder] = RUNTIMES,
        rounds: int = 9,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._eager, self._builders, self._rounds, self._clock = eager, builders, rounds, clock
        self.left_out: dict[str, str] = {}
        self._call = self._described(whole, arguments)
        self._folder = TemporaryDirectory()
        runs = {EAGER: self._called(whole)}
        for name in builders if self._call is not None else ():
            try:
                runs[name] = self._built(name, whole, self._folder.name)
            except (NotExportable, ImportError) as error:
                self.left_out[name] = str(error)
        samples = measure(runs, [] if self._call is None else self._call.tensors, rounds=rounds, clock=clock)
        medians = {name: median(values) for name, values in samples.items()}
        self.seconds = {name: medians[name] for name in sorted(medians, key=medians.__getitem__)}
        self._runs = {name: runs[name] for name in self.seconds}

    @property
    def way(self) -> str:
        """What :meth:`share_of` measures in: the fastest for the whole module."""
        return next(iter(self._runs))

    def share_of(self, smaller: nn.Module) -> float:
        """Latency of a smaller module over that of the whole one, where the whole one is fastest.

        Whatever else would serve the smaller one faster makes the share only smaller. A runtime that cannot take the
        smaller module is left out from here on, and the next way is taken.
        """
        with TemporaryDirectory() as folder:
            while True:
                name = self.way
                try:
                    run = self._called(smaller) if name == EAGER else self._built(name, smaller, folder)
                    break
                except NotExportable as error:
                    self.left_out[name] = f"it takes the whole module, but not a smaller one: {error}"
                    del self._runs[name]
            tensors = [] if self._call is None else self._call.tensors
            pairs = {"whole": self._runs[name], "smaller": run}
            samples = measure(pairs, tensors, rounds=self._rounds, clock=self._clock)
        return paired_ratio(samples["smaller"], samples["whole"]).estimate

    def sentence(self) -> str:
        """What was measured, and what was not.

        Example::

            >>> net = nn.Linear(2, 2)
            >>> ticks = iter(range(1000))
            >>> clock = lambda: 1e-3 * next(ticks)
            >>> Latency(net, None, lambda net: net(torch.ones(1, 2)), builders={}, clock=clock).sentence()
            'a call takes eager 0.1 ms'
        """
        measured = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in self.seconds.items())
        others = "".join(f"; not {name}: {reason}" for name, reason in self.left_out.items())
        choice = f"; cuts are measured in {self.way}" if len(self._runs) > 1 else ""
        return f"a call takes {measured}{choice}{others}"

    def _described(self, whole: nn.Module, arguments: tuple[tuple[Any, ...], Mapping[str, Any]] | None) -> Call | None:
        """The call as runtimes need it; None, with the reason for each of them, if there is no such thing."""
        if arguments is None:
            reason = "no call of forward() is known that could be exported"
        elif (device := _device(whole)).type != "cpu":
            reason = f"it computes on the CPU and the module is on {device}"
        else:
            try:
                return describe_call(whole, *arguments)
            except ValueError as error:
                reason = str(error)
        self.left_out.update(dict.fromkeys(self._builders, reason))
        return None

    def _called(self, module: nn.Module) -> Run:
        module.eval()
        device = _device(module)

        def run(_: Any) -> list[torch.Tensor]:
            self._eager(module)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return []

        return run

    def _built(self, name: str, module: nn.Module, folder: str) -> Run:
        """What a runtime makes of a module.

        Raises:
            NotExportable: it cannot take the module, or computes something else.
            ImportError: it is not installed.
        """
        assert self._call is not None
        if name in RUNTIMES and find_spec(name) is None:
            raise ImportError("it is not installed")
        source = Source(self._call, unprepare(frozen_copy(module)))
        try:
            variant = self._builders[name](source, FP32, Path(folder))[0]
        except ValueError as error:
            raise NotExportable(str(error)) from error
        verdict = gate(source, variant, Path(folder)).verdict
        if verdict.reason is not None:
            raise NotExportable(f"its outputs are not those of the module ({verdict.reason})")
        return variant.open(torch.get_num_threads())


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

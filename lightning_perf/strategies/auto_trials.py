"""The trials of ``perf_ddp_auto``: on the first batch of a fit, by understudies, before the run's own first step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from lightning_perf.host import MisconfigurationException
from lightning_perf.host.rehearsal import Copies, copied, copied_on_shared_weights
from lightning_perf.measuring import paired_ratio, schedule
from lightning_perf.strategies.alike_buffers import any_rank
from lightning_perf.strategies.auto import (
    BOUND_ROUNDS,
    DECIDING_ROUNDS,
    MOST_STEPS,
    NO_EXCHANGE,
    WARM_UP,
    Budget,
    Choice,
    Trial,
    decide,
    nothing_to_gain,
    rounds_left,
)
from lightning_perf.strategies.auto_understudy import Understudy
from lightning_perf.strategies.compression import MOST_INT8
from lightning_perf.strategies.ddp_arguments import accumulates, ddp_arguments
from lightning_perf.strategies.link import Link, probe_link
from lightning_perf.strategies.prediction import Wire, Work, predict
from lightning_perf.strategies.presets import PLAIN, Preset
from lightning_perf.strategies.refusals import check_module, check_optimizers

_AGAIN = "ddp again"
#: Of the link's probe, which counts as a few steps on a slow link.
_PROBE_ROUNDS = 2
#: Part of a step without exchange that is taken to be backward, which hides exchange.
_BACKWARD = 2 / 3
_LOCAL = Preset(NO_EXCHANGE, "exact", "a step of one process alone", plain=True)


class _Entry(NamedTuple):
    """A candidate that can run here, with what it tells DDP."""

    row: Preset
    arguments: dict[str, Any]


class _Paper(NamedTuple):
    """What predictions stand on."""

    work: Work
    wire: Wire
    world_size: int

    def seconds(self, entry: _Entry) -> float:
        """Those of a step, as far as arithmetic tells: what it takes to round gradients is not in it."""
        cap = entry.arguments.get("bucket_cap_mb")
        return predict(entry.row.name, self.work, self.wire, self.world_size, bucket_cap_mb=cap).seconds


def agreed(strategy: Any, reason: str | None) -> str | None:
    """The reason not to try; another process's where this one has none. Collective."""
    if any_rank(strategy.root_device)([reason is not None])[0]:
        return reason or "another process cannot try the presets"
    return None


def why_not(row: Preset, strategy: Any, trainer: Any) -> str | None:
    """Why a candidate cannot run here, or may not be taken on the evidence of one batch."""
    given = {name: value for name, value in strategy._given_kwargs.items() if value is not None}
    if row.static_graph:
        if given.get("static_graph"):
            return "static_graph=True is given, so that ddp has it too"
        if accumulates(trainer):
            return "torch fails in the first backward with accumulated gradients (pytorch#187732)"
        if given.get("find_unused_parameters"):
            return (
                "find_unused_parameters=True says that the graph may change, and one batch cannot show that it does not"
            )
        if not trainer.lightning_module.automatic_optimization:
            return "under manual optimization another batch may have another graph"
    if row.probes_buckets and given.get("bucket_cap_mb") is not None:
        return f"bucket_cap_mb={given['bucket_cap_mb']} is given"
    if row.compression == "int8" and strategy.world_size > MOST_INT8:
        return f"with more than {MOST_INT8} processes it sends what perf_ddp_bf16 does"
    try:
        check_module(row, trainer.lightning_module, strategy.precision_plugin)
        check_optimizers(row, strategy.optimizers)
    except MisconfigurationException as refusal:
        return str(refusal)
    return None


class Trials:
    """One run of the trials, inside a rehearsal."""

    def __init__(self, strategy: Any, trainer: Any, pool: Sequence[Preset], batch: Any) -> None:
        self._strategy, self._trainer, self._pool, self._batch = strategy, trainer, pool, batch
        self._steps = self._index = 0
        self._left_out: dict[str, str] = {}
        self._budget = Budget()
        self._warm: dict[str, float] = {}  # seconds of the last step before a candidate is timed

    def run(self) -> tuple[Choice, dict[str, Any]]:
        """Everything, in order; all processes take the same way through it."""
        local, problem = self._first_local_step()
        problem = agreed(self._strategy, problem)
        if local is None or problem is not None:
            return Choice(PLAIN.name, problem or "nothing was tried", steps=self._steps), {}
        assert local.logged is not None
        logged, copies = local.logged.count, local.copies
        link = probe_link(self._strategy.root_device, rounds=_PROBE_ROUNDS)
        entries = self._entries(link)
        reference = entries.pop(0)
        plain = self._understudy(reference, copies)
        if isinstance(plain, str):
            return Choice(PLAIN.name, f"a step of ddp itself failed in a trial: {plain}", steps=self._steps), {}
        self._take(local)
        seconds = self._timed({PLAIN.name: plain, NO_EXCHANGE: local}, range(BOUND_ROUNDS))
        self._budget.step_takes(seconds[PLAIN.name])
        bound = paired_ratio(seconds[PLAIN.name], seconds[NO_EXCHANGE])
        compute = min(seconds[NO_EXCHANGE])
        paper = _Paper(self._work(compute, logged), self._wire(link), self._strategy.world_size)
        none = nothing_to_gain(seconds[PLAIN.name], seconds[NO_EXCHANGE])
        lines = [Trial(NO_EXCHANGE, "the most that there is to gain", compute, bound)]
        if none is not None:
            lines = [Trial(PLAIN.name, "chosen", paper.seconds(reference)), *lines]
            lines += [Trial(entry.row.name, "not tried", paper.seconds(entry)) for entry in entries]
            lines += self._lines_left_out()
            reason = f"a step without any exchange would be {none} as fast, so that no preset could gain 5 %"
            return Choice(PLAIN.name, reason, tuple(lines), self._steps), {}
        lines.insert(0, Trial(PLAIN.name, "the reference", paper.seconds(reference)))
        return self._among(plain, entries, copies, paper, lines)

    def _among(
        self, plain: Understudy, entries: list[_Entry], copies: Copies, paper: _Paper, lines: list[Trial]
    ) -> tuple[Choice, dict[str, Any]]:
        actors = {PLAIN.name: plain}
        running = []
        step = self._budget.step
        for entry in entries:
            if self._anywhere(not self._budget.has((WARM_UP + DECIDING_ROUNDS * (len(actors) + 2)) * step)):
                self._left_out[entry.row.name] = "not tried, for want of time"
                continue
            actor = self._understudy(entry, copies)
            if isinstance(actor, str):
                self._left_out[entry.row.name] = f"failed in a trial: {actor}"
            else:
                actors[entry.row.name] = actor
                running.append(entry)
        first = sum(self._warm[name] for name in actors) + step
        rounds = self._budget.rounds(rounds_left(len(entries)), first, self._anywhere)
        seconds = self._timed({**actors, _AGAIN: plain}, rounds)
        again = seconds.pop(_AGAIN)
        if len(again) < DECIDING_ROUNDS:
            lines += [Trial(entry.row.name, "not tried often enough", paper.seconds(entry)) for entry in running]
            table = (replace(lines[0], verdict="chosen"), *lines[1:], *self._lines_left_out())
            reason = (
                f"{len(again)} rounds of trials fit into the time of {MOST_STEPS} steps, and it takes {DECIDING_ROUNDS}"
            )
            return Choice(PLAIN.name, reason, table, self._steps), {}
        name, verdicts, noise = decide(seconds, again)
        name = self._strategy.broadcast(
            name
        )  # the numbers are equal; processors that round differently are not ruled out
        table = [replace(lines[0], verdict=verdicts[PLAIN.name]), *lines[1:]]
        for entry in running:
            ratio = paired_ratio(seconds[PLAIN.name], seconds[entry.row.name])
            table.append(Trial(entry.row.name, verdicts[entry.row.name], paper.seconds(entry), ratio))
        table += self._lines_left_out()
        reason = "nothing else is faster by 5 % and by more than the noise"
        if name != PLAIN.name:
            reason = f"{next(one.ratio for one in table if one.name == name)} as fast as ddp"
        arguments = next((entry.arguments for entry in running if entry.row.name == name), {})
        return Choice(name, reason, tuple(table), self._steps, noise), arguments

    def _first_local_step(self) -> tuple[Understudy | None, str | None]:
        """A step without exchange, so that what fails in one process does not leave the others waiting."""
        strategy, trainer = self._strategy, self._trainer
        try:
            optimizers, schedulers = strategy.optimizers, strategy.lr_scheduler_configs
            copies = copied(trainer, strategy.lightning_module, optimizers, schedulers)
            local = Understudy(strategy, _LOCAL, copies, None)
            self._take(local)
            return local, self._memory_problem()
        except Exception as error:  # whatever it is, it is said; if it is the module's, the run's first step raises it
            return (
                None,
                f"nothing was tried, since a step on copies failed ({type(error).__name__}: {_first_line(error)})",
            )

    def _memory_problem(self) -> str | None:
        """Whether there is no room for the buckets of all candidates beside what a step needs."""
        device = self._strategy.root_device
        if device.type != "cuda":
            return None
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        needed = torch.cuda.max_memory_allocated(device) + self._gradient_bytes() * (len(self._pool) + 1)
        if needed < free:
            return None
        need, have = (f"{size / 2**30:.1f} GiB" for size in (needed, free))
        return f"nothing was tried, since trials would need {need} and the device has {have}"

    def _gradient_bytes(self) -> int:
        trained = [one for one in self._strategy.lightning_module.parameters() if one.requires_grad]
        return sum(one.numel() * one.element_size() for one in trained)

    def _entries(self, link: Link) -> list[_Entry]:
        strategy, trainer, entries = self._strategy, self._trainer, []
        for row in self._pool:
            reason = why_not(row, strategy, trainer)
            if reason is not None:
                self._left_out[row.name] = f"unsupported here because {reason}"
                continue
            given = strategy._given_kwargs
            arguments = ddp_arguments(row, given, trainer, strategy.root_device, _unsaid, link)
            entries.append(_Entry(row, arguments))
        return entries

    def _understudy(self, entry: _Entry, copies: Copies) -> Understudy | str:
        """A warm understudy, or what it died of, in any process."""
        actor, problem = None, None
        try:
            shared = copied_on_shared_weights(self._trainer, self._strategy.lightning_module, copies)
            actor = Understudy(self._strategy, entry.row, shared, entry.arguments)
            for _ in range(WARM_UP):
                self._warm[entry.row.name] = self._take(actor)
        except Exception as error:  # mostly of torch's DDP; it is said in the table
            problem = _first_line(error)
        problem = agreed(self._strategy, problem)
        return actor if actor is not None and problem is None else str(problem)

    def _take(self, actor: Understudy) -> float:
        self._steps += 1
        return actor.step(self._batch, self._index)

    def _anywhere(self, flag: bool) -> bool:
        return any_rank(self._strategy.root_device)([flag])[0]

    def _timed(self, actors: dict[str, Understudy], rounds: Iterable[int]) -> dict[str, list[float]]:
        """Seconds of every actor in every round, on the slowest process, in an order that is the same everywhere."""
        seconds: dict[str, list[float]] = {name: [] for name in actors}
        orders = schedule(actors, MOST_STEPS)
        for index in rounds:
            order = orders[index]
            self._index += 1
            for name in order:
                seconds[name].append(self._take(actors[name]))
            self._strategy.answer_sigterm()
        table = torch.tensor(list(seconds.values()), dtype=torch.float64, device=self._strategy.root_device)
        dist.all_reduce(table, op=dist.ReduceOp.MAX)
        return dict(zip(seconds, table.tolist(), strict=True))

    def _work(self, compute: float, logged: int) -> Work:
        """What a step does: ``compute`` seconds without exchange, ``logged`` values that are reduced."""
        trainer, module = self._trainer, self._trainer.lightning_module
        batches = trainer.accumulate_grad_batches if module.automatic_optimization else 1
        given = self._strategy._given_kwargs
        sends = given.get("forward_sync_buffers", True) is not False
        return Work(
            (1 - _BACKWARD) * compute / batches,
            _BACKWARD * compute / batches,
            [one.numel() for one in module.parameters() if one.requires_grad],
            accumulate=batches,
            buffer_bytes=sum(one.numel() * one.element_size() for one in module.buffers()) if sends else 0,
            synced=-(-logged // batches),
            asked=hasattr(type(trainer.fit_loop.epoch_loop), "_broadcast_sigterm_tensor"),
            skips_unused=bool(given.get("skip_all_reduce_unused_params")),
        )

    def _wire(self, link: Link) -> Wire:
        gloo = self._strategy.root_device.type == "cpu"
        return Wire.of(link, self._strategy.world_size, lanes=2 if gloo else 1)

    def _lines_left_out(self) -> list[Trial]:
        return [Trial(name, reason) for name, reason in self._left_out.items()]


def _unsaid(text: str) -> None:
    return None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")

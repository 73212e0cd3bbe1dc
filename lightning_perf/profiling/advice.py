"""Advice from measured numbers: what to switch on, which number says so, and what to expect of it.

Every rule looks at seconds that were measured in this run, and is silent where they do not carry it. What a lever saves
of the seconds it touches is a constant below, with the benchmark it comes from; the expectation is Amdahl's law.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lightning_perf.profiling import phases

#: The smallest expected gain that is worth a line.
WORTH = 1.03
#: What a lever saves of the seconds it touches, and where that was measured.
FAST_LOGGING_SAVES = 0.93  # benchmarks/self_log.py: 0.95 to 0.97 of the cost of self.log, at few logs less
FUSED_SAVES = 0.65  # benchmarks/optimizer_step.py: 0.68 in 200 tensors, 0.79 in 6
RETAINED_HEAP_SAVES = 0.8  # share of the kernel's time that page faults of activations make up
CHANNELS_LAST_SAVES = 0.2  # benchmarks/image_recipe.py, of forward and backward of convolutions on a CPU
_FAULTS = 500.0


@dataclass(frozen=True)
class Advice:
    """One thing to change: the number behind it, the lever, and the expected speed of a step, as a ratio to now."""

    finding: str
    lever: str
    expected: float
    changes_numerics: bool = False

    def sentence(self) -> str:
        """As a reader sees it: finding, lever, expectation."""
        numerics = " (changes numerics)" if self.changes_numerics else ""
        return f"{self.finding}: {self.lever}; expected {self.expected:.2f}x{numerics}"


@dataclass(frozen=True)
class Evidence:
    """What a profile measured, as the rules need it.

    Attributes:
        per_step: seconds per step of every phase, those between steps spread over all steps.
        callbacks: class names of the Trainer's callbacks.
        device: type of the device: ``cpu``, ``cuda``, ...
        precision: the Trainer's precision, such as ``32-true``.
        unfused: classes of optimizers that step without torch's fused kernel and could have it.
        kernel_seconds: processor seconds per step spent in the operating system's kernel, per thread; None: unknown.
        page_faults: minor page faults per step; None: unknown.
        convolution_share: part of the FLOPs in 2-D and 3-D convolutions of contiguous layout; None: not counted.
        bfloat16_speed: rate of bfloat16 matrix products over that of float32 ones; None: not native, or not measured.
        utilization: part of the step that its FLOPs would take at the measured peak (MFU); None: not measured.
        workers: processes of the training loader; None: no DataLoader.
        persistent: whether they outlive an epoch.
        first_start: seconds per step of their first start, which no lever saves.
        progress_bar: class of the progress bar; None: none.
    """

    per_step: Mapping[str, float]
    callbacks: frozenset[str] = frozenset()
    device: str = "cpu"
    precision: str = "32-true"
    unfused: tuple[str, ...] = ()
    kernel_seconds: float | None = None
    page_faults: float | None = None
    convolution_share: float | None = None
    bfloat16_speed: float | None = None
    utilization: float | None = None
    workers: int | None = None
    persistent: bool = False
    first_start: float = 0.0
    pinned: bool = False
    log_every_n_steps: int = 50
    progress_bar: str | None = None
    whole: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "whole", sum(self.per_step.values()))

    def share(self, *names: str) -> float:
        """The part of the whole that these phases make up."""
        return sum(self.per_step.get(name, 0.0) for name in names) / self.whole if self.whole > 0 else 0.0


Rule = Callable[[Evidence], Advice | None]


def expected_gain(saved: float) -> float:
    """The speed after ``saved`` (a share below 1) of the time is gone: Amdahl's law.

    Example::

        >>> expected_gain(0.5)
        2.0
    """
    return 1.0 / (1.0 - min(saved, 0.99))


def _logging(evidence: Evidence) -> Advice | None:
    share = evidence.share(phases.LOGGING)
    if "FastLogging" in evidence.callbacks:
        return None
    gain = expected_gain(share * FAST_LOGGING_SAVES)
    return Advice(f"self.log is {share:.0%} of the step", "add lightning_perf.FastLogging()", gain)


def _loggers(evidence: Evidence) -> Advice | None:
    share = evidence.share(phases.LOGGERS)
    every = evidence.log_every_n_steps
    if every >= 50:
        return None
    gain = expected_gain(share * (1 - every / 50))
    return Advice(
        f"writing to loggers is {share:.0%} of the step, at log_every_n_steps={every}",
        "Trainer(log_every_n_steps=50)",
        gain,
    )


def _optimizer(evidence: Evidence) -> Advice | None:
    share = evidence.share(phases.OPTIMIZER)
    if "OptimizerFactory" in evidence.callbacks or not evidence.unfused:
        return None
    name = ", ".join(evidence.unfused)
    gain = expected_gain(share * FUSED_SAVES)
    return Advice(f"the step of {name} is {share:.0%} and not fused", "add lightning_perf.OptimizerFactory()", gain)


def _data(evidence: Evidence) -> Advice | None:
    share = evidence.share(phases.DATA_WAIT)
    if evidence.workers is None:
        return None
    if evidence.workers == 0:
        # Two workers hide the wait behind the rest of the step, or halve it where there is not so much to hide it behind.
        gain = expected_gain(1 - max(1 - share, share / 2))
        return Advice(
            f"waiting for data is {share:.0%}, in the training process itself", "DataLoader(num_workers=2)", gain
        )
    more = 2 * evidence.workers
    gain = expected_gain(share / 2)
    return Advice(
        f"waiting for data is {share:.0%} with {evidence.workers} workers", f"DataLoader(num_workers={more})", gain
    )


def _workers(evidence: Evidence) -> Advice | None:
    if not evidence.workers or evidence.persistent or evidence.whole <= 0:
        return None
    share = max(evidence.per_step.get(phases.WORKER_START, 0.0) - evidence.first_start, 0.0) / evidence.whole
    gain = expected_gain(share * 0.9)
    return Advice(f"starting data workers anew each epoch is {share:.0%}", "DataLoader(persistent_workers=True)", gain)


def _transfer(evidence: Evidence) -> Advice | None:
    share = evidence.share(phases.TRANSFER)
    if evidence.device == "cpu" or evidence.pinned:
        return None
    return Advice(
        f"moving batches to the device is {share:.0%}", "DataLoader(pin_memory=True)", expected_gain(share * 0.7)
    )


def _heap(evidence: Evidence) -> Advice | None:
    if evidence.device != "cpu" or "MallocTuning" in evidence.callbacks:
        return None
    if evidence.kernel_seconds is None or evidence.page_faults is None or evidence.page_faults < _FAULTS:
        return None
    share = min(evidence.kernel_seconds / evidence.whole, 0.9) if evidence.whole > 0 else 0.0
    finding = f"{evidence.page_faults:,.0f} page faults a step keep the kernel busy for {share:.0%} of it"
    return Advice(finding, "add lightning_perf.MallocTuning()", expected_gain(share * RETAINED_HEAP_SAVES))


def _channels_last(evidence: Evidence) -> Advice | None:
    if evidence.convolution_share is None or "ChannelsLast" in evidence.callbacks:
        return None
    share = evidence.share(phases.FORWARD, phases.BACKWARD) * evidence.convolution_share
    if evidence.device != "cpu" and evidence.precision.startswith("32"):
        return None
    finding = f"convolutions hold {evidence.convolution_share:.0%} of the FLOPs, in contiguous layout"
    return Advice(finding, "add lightning_perf.ChannelsLast()", expected_gain(share * CHANNELS_LAST_SAVES))


def _bfloat16(evidence: Evidence) -> Advice | None:
    """Only the time of the products themselves shrinks for certain; casts cost what thinner activations save."""
    speed, share = evidence.bfloat16_speed, evidence.utilization
    if speed is None or share is None or not evidence.precision.startswith("32"):
        return None
    if speed <= 1 or "AutoMixedPrecision" in evidence.callbacks:
        return None
    share = min(share, evidence.share(phases.FORWARD, phases.BACKWARD))
    saved = share * (1 - 1 / speed)
    finding = f"products in float32 fill {share:.0%} of the step, and in bfloat16 they are {speed:.1f}x as fast here"
    return Advice(finding, "add lightning_perf.AutoMixedPrecision()", expected_gain(saved), changes_numerics=True)


def _progress_bar(evidence: Evidence) -> Advice | None:
    if evidence.progress_bar is None:
        return None
    share = evidence.share(phases.CALLBACK + evidence.progress_bar)
    lever = f"{evidence.progress_bar}(refresh_rate=20)"
    return Advice(f"the progress bar is {share:.0%}", lever, expected_gain(share * 0.9))


def _checkpoints(evidence: Evidence) -> Advice | None:
    share = evidence.share(phases.CHECKPOINT)
    lever = "save less often, or Trainer(plugins=[AsyncCheckpointIO()])"
    return Advice(f"saving checkpoints is {share:.0%}", lever, expected_gain(share * 0.8))


def _validation(evidence: Evidence) -> Advice | None:
    share = evidence.share(phases.VALIDATION)
    if share < 0.25:
        return None
    lever = "validate half as often (val_check_interval, check_val_every_n_epoch)"
    return Advice(f"validation is {share:.0%} of the training", lever, expected_gain(share / 2))


def _small_steps(evidence: Evidence) -> Advice | None:
    share = evidence.share(phases.LOOP, phases.REST)
    if share < 0.2:
        return None
    finding = f"Lightning's loop is {share:.0%}: a step holds little work"
    return Advice(finding, "a larger batch, if the training allows it", expected_gain(share / 2), changes_numerics=True)


RULES: tuple[Rule, ...] = (
    _data, _workers, _transfer, _logging, _loggers, _progress_bar, _optimizer, _heap, _channels_last, _bfloat16,
    _checkpoints, _validation, _small_steps,
)  # fmt: skip


def advise(evidence: Evidence) -> list[Advice]:
    """What the numbers carry, the largest expected gain first; nothing below 1.03x.

    Example::

        >>> evidence = Evidence({"forward": 5e-3, "logging: metrics": 5e-3})
        >>> [advice.sentence() for advice in advise(evidence)]
        ['self.log is 50% of the step: add lightning_perf.FastLogging(); expected 1.87x']
    """
    found = [advice for rule in RULES if (advice := rule(evidence)) is not None and advice.expected >= WORTH]
    return sorted(found, key=lambda advice: -advice.expected)

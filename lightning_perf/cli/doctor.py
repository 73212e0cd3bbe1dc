"""The judgement of ``lightning-perf doctor``: facts in, findings out; nothing here looks at the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from lightning_perf.cli.doctor_rows import (
    FEATURES,
    IMPORTED_WHEN_PRESENT,
    INSTRUCTIONS,
    KNOWN_BAD,
    PACKAGES,
    Feature,
    Level,
)

_OWN = "lightning-perf"


@dataclass(frozen=True)
class Facts:
    """What was found on a machine.

    Args:
        versions: of installed distributions, by the name that pip knows.
        modules: modules that are installed: None if it imports, or what went wrong.
        requirements: of this distribution, as its metadata states them; empty if it is not installed.
        python: the version.
        cpu: the processor's name.
        flags: its features.
        cores: that this process may use.
        quota: cores' worth of time that the container may use; None: all.
        memory: bytes.
        gpus: names.
        bfloat16: whether it is native on the GPU if there is one, else on the processor; None: unknown.
        compiler: the path of the C++ compiler that torch would use.
        compiler_problem: why it cannot be used; None: it compiled a line.
        compiler_fix: what to do about that.
        headers: whether Python.h is there.
        malloc: why malloc cannot be tuned; None: it can.
        backends: of torch.distributed.
        espeak: whether the command espeak-ng is there.
        system: the operating system.
    """

    versions: Mapping[str, str]
    modules: Mapping[str, str | None]
    requirements: tuple[str, ...] = ()
    python: str = "3.11.0"
    cpu: str | None = None
    flags: frozenset[str] = frozenset()
    cores: int = 1
    quota: float | None = None
    memory: int | None = None
    gpus: tuple[str, ...] = ()
    bfloat16: bool | None = None
    compiler: str | None = None
    compiler_problem: str | None = None
    compiler_fix: str = ""
    headers: bool = True
    malloc: str | None = None
    backends: tuple[str, ...] = ()
    espeak: bool = False
    system: str = ""


@dataclass(frozen=True)
class Finding:
    """Something wrong, or good to know, with what to do about it."""

    level: Level
    text: str
    fix: str


@dataclass(frozen=True)
class State:
    """Whether a feature works here; ``lacks`` says what it needs, ``fix`` how to get that."""

    feature: str
    works: bool
    lacks: tuple[str, ...] = ()
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that the doctor says."""

    machine: Mapping[str, str]
    findings: tuple[Finding, ...]
    features: tuple[State, ...]
    broken: bool = field(default=False)


#: What is no package: the name a row uses -> what is wrong, or None.
CONDITIONS: Mapping[str, Callable[[Facts], str | None]] = {
    "C++ compiler": lambda facts: facts.compiler_problem or (None if facts.compiler else "no C++ compiler"),
    "Python headers": lambda facts: None if facts.headers else "no Python.h (python3-dev)",
    "GPU": lambda facts: None if facts.gpus else "no GPU that torch sees",
    "NCCL": lambda facts: None if "nccl" in facts.backends else "this build of torch has no NCCL",
    "triton": lambda facts: _import_problem("triton", facts),
    "torch.distributed": lambda facts: None if facts.backends else "this build of torch has no torch.distributed",
    "bfloat16": lambda facts: None if facts.bfloat16 else "no native bfloat16; it changes nothing here",
    "glibc malloc": lambda facts: facts.malloc,
    "espeak-ng": lambda facts: None if facts.espeak else "no espeak-ng (sudo apt-get install espeak-ng)",
    "int8 instructions": lambda facts: _no_int8(facts),
}


def diagnose(facts: Facts) -> Diagnosis:
    """Compare a machine with the tables.

    Example::

        >>> bare = diagnose(Facts(versions={"torch": "2.13.0"}, modules={}))
        >>> next(state for state in bare.features if state.feature == "ChannelPruning").fix
        "pip install 'lightning-perf[prune]'"
    """
    findings = (*_required(facts), *_known_bad(facts), *_pairs(facts), *_imports(facts))
    states = tuple(_state(feature, facts) for feature in FEATURES)
    broken = any(finding.level == "error" for finding in findings)
    order = ("error", "warning", "note")
    return Diagnosis(
        describe(facts), tuple(sorted(findings, key=lambda one: order.index(one.level))), states, broken=broken
    )


def describe(facts: Facts) -> dict[str, str]:
    """The machine and the installation in words, a line each."""
    shown = ("torch", "lightning", "pytorch-lightning", "torchmetrics", "jsonargparse")
    gigabytes = "unknown" if facts.memory is None else f"{facts.memory / 1e9:.1f} GB"
    quota = "" if facts.quota is None else f", {facts.quota:g} cores' worth of time for this container"
    present = [name for name, flags in INSTRUCTIONS if facts.flags & set(flags)]
    versions = [f"{name} {facts.versions[name]}" for name in shown if name in facts.versions]
    optional = [f"{name} {facts.versions[name]}" for name in PACKAGES if name in facts.versions]
    return {
        "python": f"{facts.python} on {facts.system or 'an unknown system'}",
        "versions": ", ".join(versions),
        "optional": ", ".join(optional) or "none",
        "cpu": facts.cpu or "unknown",
        "instructions": ", ".join(present) if facts.flags else "unknown",
        "cores": f"{facts.cores}{quota}",
        "memory": gigabytes,
        "gpu": ", ".join(facts.gpus) or "none that torch sees",
        "compiler": "none"
        if facts.compiler is None
        else f"{facts.compiler}{', not usable' if facts.compiler_problem else ''}",
        "distributed": ", ".join(facts.backends) or "not in this build of torch",
    }


def _required(facts: Facts) -> list[Finding]:
    if not facts.requirements:
        text = f"{_OWN} is not installed as a package, so that no version could be compared with what it needs"
        return [Finding("note", text, "pip install lightning-perf")]
    found = []
    for requirement in map(Requirement, facts.requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = facts.versions.get(canonicalize_name(requirement.name))
        if version is None:
            found.append(Finding("error", f"{requirement.name} is not installed", f"pip install '{requirement}'"))
        elif not requirement.specifier.contains(version, prereleases=True):
            text = f"{requirement.name} {version} is outside of what is supported: {requirement.specifier}"
            found.append(Finding("error", text, f"pip install '{requirement}'"))
    return found


def _known_bad(facts: Facts) -> list[Finding]:
    return [
        Finding(row.level, f"{row.package} {facts.versions[row.package]}: {row.text}", row.fix)
        for row in KNOWN_BAD
        if _has(facts, row.package, row.versions) and (row.beside is None or _has(facts, *row.beside))
    ]


def _has(facts: Facts, package: str, versions: str) -> bool:
    found = facts.versions.get(package)
    return found is not None and SpecifierSet(versions).contains(found.partition("+")[0], prereleases=True)


def _pairs(facts: Facts) -> list[Finding]:
    one, other = facts.versions.get("lightning"), facts.versions.get("pytorch-lightning")
    if one is None or other is None or one == other:
        return []
    text = f"lightning {one} beside pytorch-lightning {other}: two releases of the same code in one process"
    return [Finding("warning", text, f"pip install pytorch-lightning=={one}")]


def _imports(facts: Facts) -> list[Finding]:
    found = []
    for module, problem in facts.modules.items():
        if problem is not None:
            text = f"{module} is installed and does not import: {problem}"
            own = module in IMPORTED_WHEN_PRESENT
            fix = f"install a build of {module} that fits torch {facts.versions.get('torch', '')}, or uninstall it"
            found.append(Finding("warning", text, fix if own else f"reinstall {module}"))
    return found


def _state(feature: Feature, facts: Facts) -> State:
    lacks, extras = [], []
    for need in feature.needs:
        problem = _package_problem(need, facts) if need in PACKAGES else CONDITIONS[need](facts)
        if problem is not None:
            lacks.append(problem)
            extras += [PACKAGES[need][1]] if need in PACKAGES else []
    fixes = [f"pip install '{_OWN}[{','.join(dict.fromkeys(extras))}]'"] if extras else []
    if "C++ compiler" in feature.needs and facts.compiler_problem:
        fixes.append(facts.compiler_fix)
    return State(feature.name, not lacks, tuple(lacks), "; ".join(fixes))


def _package_problem(package: str, facts: Facts) -> str | None:
    module, extra = PACKAGES[package]
    problem = _import_problem(module, facts)
    if problem is not None:
        return problem
    version = facts.versions.get(package)  # a module may come from another distribution, such as onnxruntime-gpu
    for requirement in map(Requirement, facts.requirements):
        named = canonicalize_name(requirement.name) == package and requirement.marker is not None
        if not named or not requirement.marker.evaluate({"extra": extra}):  # pyright: ignore[reportOptionalMemberAccess]
            continue
        if version is not None and not requirement.specifier.contains(version, prereleases=True):
            return f"{package} {version} is installed, and {requirement.specifier} is needed"
    return None


def _import_problem(module: str, facts: Facts) -> str | None:
    if module not in facts.modules:
        return f"{module} is not installed"
    problem = facts.modules[module]
    return None if problem is None else f"{module} does not import: {problem}"


def _no_int8(facts: Facts) -> str | None:
    if not facts.flags:
        return "the processor's features are unknown"
    known: dict[str, Any] = dict(INSTRUCTIONS)
    wanted = {*known["VNNI (int8)"], *known["AMX (int8 tiles)"]}
    return None if facts.flags & wanted else "no VNNI, AMX or dot-product instructions: int8 is small here, not fast"

"""``lightning-perf doctor``: fake machines and installations, judged by the tables."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import lightning_perf as lp
from lightning_perf.cli import doctor_command, doctor_compiler, main
from lightning_perf.cli.doctor import CONDITIONS, Facts, diagnose
from lightning_perf.cli.doctor_command import import_each, installed_versions, look, text
from lightning_perf.cli.doctor_compiler import Compiler, try_compiler
from lightning_perf.cli.doctor_rows import FEATURES, KNOWN_BAD, PACKAGES
from lightning_perf.hardware import cpu_quota, memory_limit
from tests.test_architecture import FLOORS

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the compiler is only looked for")
REQUIRES = (
    "torch<2.14,>=2.13",
    "lightning!=2.6.2,!=2.6.3,<2.7,>=2.5.5",
    "torch_pruning<2,>=1.6.1; extra == 'prune'",
    "never-here; python_version < '3'",
)
GOOD = Facts(
    versions={"torch": "2.13.0+cpu", "lightning": "2.6.6", "pytorch-lightning": "2.6.6", "torch-pruning": "1.6.1"},
    modules={module: None for module, _ in PACKAGES.values()},
    requirements=REQUIRES,
    cpu="AMD EPYC",
    flags=frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}),
    bfloat16=True,
    compiler="/usr/bin/c++",
    backends=("gloo",),
    espeak=True,
)


def changed(**fields: Any) -> Facts:
    return dataclasses.replace(GOOD, **fields)


def missing(facts: Facts) -> dict[str, tuple[tuple[str, ...], str]]:
    return {state.feature: (state.lacks, state.fix) for state in diagnose(facts).features if not state.works}


def problems(facts: Facts) -> list[tuple[str, str]]:
    return [(one.level, one.text) for one in diagnose(facts).findings if one.level != "note"]


def test_a_good_machine() -> None:
    """Only what needs a GPU is missing, and nothing is wrong."""
    assert set(missing(GOOD)) == {"torch.compile on the GPU", "perf_ddp on GPUs"}
    assert problems(GOOD) == []
    assert not diagnose(GOOD).broken
    on_gpus = changed(gpus=("NVIDIA H200",), modules={**GOOD.modules, "triton": None}, backends=("gloo", "nccl"))
    assert missing(on_gpus) == {}


def test_a_bare_machine_is_told_the_extras() -> None:
    bare = changed(
        modules={},
        compiler=None,
        compiler_problem="no C++ compiler",
        compiler_fix="set CXX",
        headers=False,
        flags=frozenset({"avx2"}),
        bfloat16=False,
        malloc="is musl's",
    )
    found = missing(bare)
    assert found["ChannelPruning"] == (("torch_pruning is not installed",), "pip install 'lightning-perf[prune]'")
    assert found["plots in HTML reports"][1] == "pip install 'lightning-perf[report]'"
    assert found["export to OpenVINO"][0][0] == "openvino is not installed"
    assert found["export to OpenVINO"][1] == "pip install 'lightning-perf[deploy]'"
    lacks, fix = found["export with AOTInductor, torch.compile on the CPU"]
    assert lacks == ("no C++ compiler", "no Python.h (python3-dev)")
    assert fix == "set CXX"
    assert found["AutoMixedPrecision"][0] == ("no native bfloat16; it changes nothing here",)
    assert found["MallocTuning"][0] == ("is musl's",)
    assert "fast int8 on the CPU" in found
    assert not {"FastLogging, ChannelsLast, ExactResume", "MagnitudePruning", "compare, run"} & set(found)
    assert not diagnose(bare).broken


@pytest.mark.parametrize(
    ("versions", "level", "words"),
    [
        ({"torch": "2.14.1"}, "error", "torch 2.14.1 is outside of what is supported: <2.14,>=2.13"),
        ({"lightning": "2.5.4"}, "error", "lightning 2.5.4 is outside"),
        ({"lightning": "2.6.3", "pytorch-lightning": "2.6.3"}, "error", "is a malicious upload"),
        ({"pytorch-lightning": "2.5.5"}, "warning", "lightning 2.6.6 beside pytorch-lightning 2.5.5"),
    ],
)
def test_versions_that_cannot_stay(versions: dict[str, str], level: str, words: str) -> None:
    facts = changed(versions={**GOOD.versions, **versions})
    assert any(one == level and words in said for one, said in problems(facts))
    assert diagnose(facts).broken is (level == "error")
    assert diagnose(facts).findings[0].level == level  # the worst comes first


def test_what_is_required_and_not_there() -> None:
    facts = changed(versions={"torch": "2.13.0"})
    assert ("error", "lightning is not installed") in problems(facts)
    assert not any("never-here" in said for _, said in problems(facts))
    assert problems(changed(requirements=())) == []


def test_notes_come_with_the_versions_they_are_about() -> None:
    def notes(**versions: str) -> str:
        return " ".join(one.text for one in diagnose(changed(versions={**GOOD.versions, **versions})).findings)

    assert "lightning#21836" in notes()
    assert "lightning#21836" not in notes(torch="2.11.0")
    assert "lightning#21836" not in notes(lightning="2.7.0")
    assert "torchao" in notes(torchao="0.18.0")
    assert "torchao" not in notes()


def test_an_installed_package_that_does_not_work() -> None:
    """One that fails to import, one that is too old, and one that another distribution provides."""
    broken = {**GOOD.modules, "torchvision": "RuntimeError: operator torchvision::nms does not exist"}
    [(level, said)] = problems(changed(modules=broken))
    assert (level, "torchvision is installed and does not import" in said) == ("warning", True)
    dead = changed(modules={**GOOD.modules, "openvino": "the process ended with status -11"})
    assert missing(dead)["export to OpenVINO"][0] == ("openvino does not import: the process ended with status -11",)
    old = changed(versions={**GOOD.versions, "torch-pruning": "1.5.2"})
    assert missing(old)["ChannelPruning"][0] == ("torch-pruning 1.5.2 is installed, and <2,>=1.6.1 is needed",)
    assert "export to ONNX Runtime" not in missing(GOOD)  # the module is there, whoever brought it


def test_imports_are_tried_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that raises, one that takes the process down, one that prints: the others are still tried."""
    (tmp_path / "raises.py").write_text("raise ImportError('two\\nlines')")
    (tmp_path / "dies.py").write_text("import os; os._exit(3)")
    (tmp_path / "prints.py").write_text("print('begin', 'nonsense'); print('hello')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert import_each(["raises", "dies", "prints", "json"]) == {
        "raises": "ImportError: two lines",
        "dies": "the process ended with status 3",
        "prints": None,
        "json": None,
    }


def test_limits_of_a_container(tmp_path: Path) -> None:
    assert (cpu_quota(tmp_path), memory_limit(tmp_path)) == (None, None)
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("2147483648\n")
    assert (cpu_quota(tmp_path), memory_limit(tmp_path)) == (1.5, 2**31)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert (cpu_quota(tmp_path), memory_limit(tmp_path)) == (None, None)


def test_limits_of_an_older_container(tmp_path: Path) -> None:
    for name, value in (("cpu/cpu.cfs_quota_us", "50000"), ("cpu/cpu.cfs_period_us", "100000")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(value)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    assert (cpu_quota(tmp_path), memory_limit(tmp_path)) == (0.5, None)
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    assert cpu_quota(tmp_path) is None


def test_every_public_name_and_command_has_a_row() -> None:
    from lightning.pytorch.cli import LightningCLI

    from lightning_perf.cli.main import _COMMANDS

    covered = {name for feature in FEATURES for name in feature.covers}
    public = {name for name in vars(lp) if not name.startswith("_")} - (set(FLOORS) - {"pl"})
    assert public | set(_COMMANDS) | set(LightningCLI.subcommands()) <= covered
    assert {need for feature in FEATURES for need in feature.needs} <= {*PACKAGES, *CONDITIONS}
    assert all(row.text and row.fix for row in KNOWN_BAD)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Text, JSON and the exit status, on a made-up machine."""
    monkeypatch.setattr(doctor_command, "look", lambda: changed(quota=1.5, memory=8_000_000_000))
    assert doctor_command.run([]) == 0
    shown = capsys.readouterr().out
    assert "1, 1.5 cores' worth of time for this container" in shown
    assert "AVX2, AVX-512, VNNI (int8), bfloat16" in shown
    assert "works    ChannelPruning\n" in shown
    assert shown.endswith("Nothing that is required is broken.\n")
    monkeypatch.setattr(doctor_command, "look", lambda: changed(versions={"torch": "2.12.0"}))
    with pytest.raises(SystemExit) as done:
        main(["doctor", "--json"])
    assert done.value.code == 1
    read = json.loads(capsys.readouterr().out)
    assert read["broken"] is True
    assert read["findings"][0]["level"] == "error"


def fake(folder: Path, body: str, name: str = "g++") -> dict[str, str]:
    """An environment whose compiler is a script."""
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:/bin:/usr/bin"}


@linux
@pytest.mark.parametrize(
    ("body", "problem", "fix"),
    [
        (
            "echo 'In file x:' >&2; echo 'fatal error: omp.h: no such file' >&2; exit 1",
            "fatal error: omp.h",
            "libgomp1",
        ),
        (
            "echo \"cannot execute 'cc1plus'\" >&2; exit 1",
            "does not compile a line of C++: cannot exec",
            "install it whole",
        ),
        ("exit 3", "status 3, and no word", "set CXX to a compiler that works"),
        ("exec sleep 30", "not done within 0.5 s", "set CXX to a compiler that works"),
        ("exit 0", "writes no library", "set CXX to a compiler that works"),
        ("echo no library > answer.so", "cannot be loaded from", "set TMPDIR"),
    ],
)
def test_a_compiler_that_does_not_compile(body: str, problem: str, fix: str, tmp_path: Path) -> None:
    seconds = 0.5 if "sleep" in body else 30.0
    found = try_compiler(fake(tmp_path, body), seconds=seconds)
    assert found.path == str(tmp_path / "g++")
    assert problem in str(found.problem)
    assert fix in found.fix
    facts = changed(compiler=found.path, compiler_problem=found.problem, compiler_fix=found.fix)
    assert missing(facts)["export with AOTInductor, torch.compile on the CPU"] == ((found.problem,), found.fix)
    assert "not usable" in text(diagnose(facts))


@linux
def test_a_compiler_that_torch_does_not_find(tmp_path: Path) -> None:
    """torch asks for one name; another compiler does not help until it is named."""
    nothing = try_compiler({"PATH": str(tmp_path)})
    assert (nothing.path, nothing.problem) == (None, "no C++ compiler: torch looks for g++")
    fake(tmp_path, "exit 0", "clang++")
    other = try_compiler({"PATH": str(tmp_path)})
    assert other == Compiler(None, "torch looks for g++, and there is only clang++", "set CXX=clang++")
    assert "names no program" in str(try_compiler({"PATH": str(tmp_path), "CXX": "icpx"}).problem)


@linux
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_compiler_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """It compiles, links, and what it made gives the answer; a wrong one would be seen."""
    environment = {**os.environ, "CXX": "g++"}
    assert try_compiler(environment) == Compiler(shutil.which("g++"))
    monkeypatch.setattr(doctor_compiler, "_ANSWER", 41)
    assert "another answer" in str(try_compiler(environment).problem)


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real facts fit the tables; the slow imports are left out."""
    monkeypatch.setattr(doctor_command, "import_each", lambda modules: dict.fromkeys(modules))
    facts = look()
    assert facts.versions["torch"].startswith("2.")
    assert facts.versions == installed_versions()
    assert facts.cores >= 1
    assert "works" in text(diagnose(facts))

"""The house rules that a machine can hold: imports run downwards, no optional dependency at import, no device."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_perf"
HOST_LIBRARIES = {"lightning", "pytorch_lightning", "lightning_fabric"}
OPTIONAL = {
    *("matplotlib", "sklearn", "pytorch_optimizer", "torch_pruning", "torchao", "nncf"),
    *("openvino", "onnx", "onnxruntime", "onnxscript"),
}
FLOORS = {
    "_copying": 0,
    "_optional": 0,
    "_quiet": 0,
    "_version": 0,
    "hardware": 0,
    "measuring": 0,
    "report": 0,
    "optim": 1,
    "profiling": 1,
    "deploy": 1,
    "quantization": 1,
    "pruning": 1,
    "host": 2,
    "speedups": 2,
    "strategies": 2,
}
FLOORS.update({"pl": 3})
FLOORS.update({"autopilot": 3, "cli": 4, "__main__": 5})
SHARED_SIBLINGS = {"host"}  # every room of floor 2 may use the doors


def room_of(parts: tuple[str, ...]) -> str:
    return Path(parts[0]).stem


def floor_of(parts: tuple[str, ...]) -> int:
    """The floor of a module inside the package; a room's ``callback.py`` and ``callback_*.py`` stand on floor 2."""
    floor = FLOORS[room_of(parts)]
    return max(floor, 2) if Path(parts[-1]).stem.partition("_")[0] == "callback" else floor


def imports_of(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the floor"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def violations(path: Path, source: str) -> list[str]:
    parts = path.parts
    room, floor = room_of(parts), floor_of(parts)
    problems = []
    for name in imports_of(source):
        top, *inner = name.split(".")
        if floor <= 1 and top in HOST_LIBRARIES:
            problems.append(f"{path}: floor {floor} imports {name}")
        if top in {"recipes", "lightning_perf_recipes", "benchmarks", "tests"}:
            problems.append(f"{path}: the library imports {name}")
        if top != "lightning_perf" or not inner or inner[0] not in FLOORS:
            continue
        other = inner[0]
        target = PACKAGE.joinpath(*inner).with_suffix(".py")
        target = target if target.exists() else PACKAGE.joinpath(*inner[:-1]).with_suffix(".py")
        other_floor = floor_of(target.relative_to(PACKAGE).parts) if target.exists() else FLOORS[other]
        if other_floor > floor:
            problems.append(f"{path}: floor {floor} imports {name} of floor {other_floor}")
        if other_floor == floor and other != room and other not in SHARED_SIBLINGS and floor > 0:
            problems.append(f"{path}: {room} imports its sibling {name}")
    return problems


MODULES = sorted(p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_run_downwards(path: Path) -> None:
    assert violations(path, (PACKAGE / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("optim/schedules.py", "import lightning.pytorch"),
        ("report/html.py", "from lightning_perf.optim import build"),
        ("profiling/phases.py", "from lightning_perf.profiling.callback_watch import listen"),
        ("profiling/phases.py", "from lightning_perf.optim.fusable import class_reason"),
        ("optim/registry.py", "from lightning_perf.host import PerfCallback"),
        ("speedups/channels_last.py", "from lightning_perf.optim.callback import OptimizerFactory"),
        ("host/doors.py", "from lightning_perf.autopilot.compare import compare"),
        ("cli/main.py", "from recipes.image_classification import module"),
    ],
)
def test_the_rule_catches(path: str, line: str) -> None:
    assert len(violations(Path(path), line)) == 1


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; import torch; print(torch.cuda.is_initialized()); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    initialised, modules = out.splitlines()[-2:]
    assert initialised == "False"
    return {name.split(".")[0] for name in modules.split()}


def test_lean_import() -> None:
    """``import lightning_perf`` loads no optional dependency beyond what Lightning itself loads."""
    ours = loaded_by("import lightning_perf") - loaded_by("import lightning.pytorch, pytorch_lightning")
    assert ours & OPTIONAL == set()
    assert "lightning_perf" in ours


def test_the_lean_import_check_catches() -> None:
    assert "sklearn" in loaded_by("import lightning_perf, sklearn")


def test_public_names() -> None:
    """The promise to users: these names and no others, each documented with an example."""
    import lightning_perf as lp

    names = {name for name in vars(lp) if not name.startswith("_")} - set(FLOORS)
    assert names == {
        "AutoMixedPrecision",
        "ChannelPruning",
        "ChannelsLast",
        "ExactResume",
        "FastLogging",
        "MagnitudePruning",
        "MallocTuning",
        "OptimizerFactory",
        "QuantizationAwareTraining",
        "PerfDDP",
        "Report",
        "ThroughputProfiler",
        "compare",
        "count_macs",
        "export",
        "list_optimizers",
        "load_artifact",
        "load_pruned",
        "lossless",
        "measure_flops",
        "quantize",
        "race",
        "unprepare",
        "sparsity",
    }
    for name in names:
        assert ">>>" in (getattr(lp, name).__doc__ or ""), f"{name} has no example"

"""The tables of ``lightning-perf doctor``: what the house can do and what each thing needs, and versions known to be bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Level: TypeAlias = Literal["error", "warning", "note"]

#: Optional packages: what pip calls them, the module to import, and the extra that installs them.
PACKAGES = {
    "matplotlib": ("matplotlib", "report"),
    "scikit-learn": ("sklearn", "recipes"),
    "pytorch-optimizer": ("pytorch_optimizer", "optimizers"),
    "onnx": ("onnx", "deploy"),
    "onnxscript": ("onnxscript", "deploy"),
    "onnxruntime": ("onnxruntime", "deploy"),
    "openvino": ("openvino", "deploy"),
    "torch-pruning": ("torch_pruning", "prune"),
    "rdkit": ("rdkit", "molecules"),
    "django": ("django", "translation"),
}
#: Modules that Lightning, torchmetrics or torch import when they are there: a broken one breaks training.
IMPORTED_WHEN_PRESENT = ("torchvision", "tensorboard", "triton")

#: Instruction sets worth a line: what they are called, and any flag of /proc/cpuinfo that says so.
INSTRUCTIONS = (
    ("AVX2", ("avx2",)),
    ("AVX-512", ("avx512f",)),
    ("VNNI (int8)", ("avx512_vnni", "avx_vnni", "asimddp")),
    ("AMX (int8 tiles)", ("amx_int8",)),
    ("bfloat16", ("avx512_bf16", "amx_bf16", "bf16")),
)


@dataclass(frozen=True)
class Feature:
    """A row: something a user can ask for.

    Args:
        name: as the user calls it.
        needs: packages of :data:`PACKAGES` and conditions of ``doctor.CONDITIONS``; all of them.
        covers: public names and commands that the row speaks for.
    """

    name: str
    needs: tuple[str, ...] = ()
    covers: tuple[str, ...] = ()


FEATURES = (
    Feature("OptimizerFactory, race", (), ("OptimizerFactory", "list_optimizers", "race")),
    Feature("OptimizerFactory: the long tail of optimizers", ("pytorch-optimizer",)),
    Feature("FastLogging, ChannelsLast, ExactResume", (), ("FastLogging", "ChannelsLast", "ExactResume", "lossless")),
    Feature("MallocTuning", ("glibc malloc",), ("MallocTuning",)),
    Feature("AutoMixedPrecision", ("bfloat16",), ("AutoMixedPrecision",)),
    Feature("ThroughputProfiler, profile", (), ("ThroughputProfiler", "measure_flops", "count_macs", "profile")),
    Feature(
        "compare, run", (), ("compare", "run", "fit", "validate", "test", "predict", "doctor", "completion", "Report")
    ),
    Feature("plots in HTML reports", ("matplotlib",)),
    Feature("MagnitudePruning", (), ("MagnitudePruning", "sparsity")),
    Feature("ChannelPruning", ("torch-pruning",), ("ChannelPruning", "load_pruned")),
    Feature("QuantizationAwareTraining", (), ("QuantizationAwareTraining", "unprepare")),
    Feature("quantize", ("onnxruntime", "onnx", "onnxscript"), ("quantize",)),
    Feature("export to ONNX Runtime", ("onnxruntime", "onnx", "onnxscript"), ("export", "load_artifact")),
    Feature("export to OpenVINO", ("openvino", "onnx", "onnxscript")),
    Feature("export with AOTInductor, torch.compile on the CPU", ("C++ compiler", "Python headers")),
    Feature("torch.compile on the GPU", ("GPU", "triton")),
    Feature("fast int8 on the CPU", ("int8 instructions",)),
    Feature("perf_ddp and its presets", ("torch.distributed",), ("PerfDDP", "pl", "link")),
    Feature("perf_ddp on GPUs", ("GPU", "NCCL")),
    Feature("recipes on bundled data", ("scikit-learn",), ("recipes",)),
    Feature("recipe molecules on bundled data", ("rdkit",)),
    Feature("recipe translation on bundled data", ("django",)),
    Feature("recipe speech without a folder of recordings", ("espeak-ng",)),
)


@dataclass(frozen=True)
class KnownBad:
    """A row: versions of a package that are known for a defect.

    Args:
        package: what pip calls it.
        versions: a version specifier; empty for any.
        level: an error must be mended, a warning can cost a run, a note is good to know.
        text: what happens.
        fix: what to do.
        beside: another package, with its versions, that must be there too.
    """

    package: str
    versions: str
    level: Level
    text: str
    fix: str
    beside: tuple[str, str] | None = None


_MALICIOUS = "is a malicious upload that steals credentials (lightning#21691, GHSA-w37p-236h-pfx3)"
_RENEW = "install another version, and renew every credential this machine could read"
KNOWN_BAD = (
    KnownBad("lightning", "==2.6.2", "error", _MALICIOUS, _RENEW),
    KnownBad("lightning", "==2.6.3", "error", _MALICIOUS, _RENEW),
    KnownBad("pytorch-lightning", "==2.6.2", "error", _MALICIOUS, _RENEW),
    KnownBad("pytorch-lightning", "==2.6.3", "error", _MALICIOUS, _RENEW),
    KnownBad(
        "lightning",
        "<=2.6.6",
        "note",
        "a whole LightningModule under torch.compile fails at self.log (lightning#21836)",
        "compile a submodule's forward instead",
        ("torch", ">=2.12"),
    ),
    KnownBad(
        "lightning",
        ">=2.5.5,<=2.6.6",
        "note",
        "mixed precision casts weights anew at every use, slow where a module is called repeatedly (lightning#21611)",
        "measure bf16-mixed before you keep it: lightning-perf compare",
    ),
    KnownBad(
        "lightning",
        "<=2.6.6",
        "note",
        "a fused optimizer fails under bf16-mixed with gradient clipping (lightning#21435)",
        "leave fusing to OptimizerFactory, whose fused step works there",
    ),
    KnownBad(
        "torch",
        ">=2.13,<2.14",
        "note",
        "DDP with static_graph fails in the first backward under accumulation (pytorch#187732)",
        "strategy='perf_ddp_static' leaves it off there",
    ),
    KnownBad(
        "torchao",
        "",
        "note",
        "Lightning cannot load a checkpoint that holds torchao's quantized tensors (a callable map_location)",
        "load it with torch.load(path, map_location='cpu')",
        ("lightning", "<=2.6.6"),
    ),
)

"""AutoMixedPrecision: bfloat16 only where it is native, by a faked machine."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

import lightning_perf as lp
from lightning_perf import hardware
from tests.contract.modules import images, make


def fit(ns: ModuleType, quiet: dict[str, Any], **arguments: Any) -> tuple[Any, Any, list[torch.dtype]]:
    callback = lp.AutoMixedPrecision()
    dtypes: list[torch.dtype] = []
    module = make("plain", ns)
    module.net[0].register_forward_hook(lambda m, i, output: dtypes.append(output.dtype))
    trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[callback], **arguments)
    trainer.fit(module, images(), images(8, shuffle=False))
    return trainer, callback, dtypes


def test_native(ns: ModuleType, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps compute in bfloat16 under autocast, weights stay float32, the plugin is put back."""
    monkeypatch.setattr(hardware, "bfloat16_is_native", lambda device: True)
    trainer, callback, dtypes = fit(ns, quiet)
    assert set(dtypes) == {torch.bfloat16}
    assert callback.messages == ["AutoMixedPrecision: precision 32-true -> bf16-mixed on cpu."]
    assert trainer.precision == "32-true"
    assert all(p.dtype is torch.float32 for p in trainer.lightning_module.parameters())


@pytest.mark.parametrize(("native", "words"), [(False, "emulates"), (None, "does not say whether it computes")])
def test_emulated_or_unknown(
    native: bool | None, words: str, ns: ModuleType, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "bfloat16_is_native", lambda device: native)
    _, callback, dtypes = fit(ns, quiet)
    assert set(dtypes) == {torch.float32}
    assert words in callback.messages[0]


def test_a_precision_of_the_users_is_kept(
    ns: ModuleType, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "bfloat16_is_native", lambda device: True)
    trainer, callback, _ = fit(ns, quiet, precision="64-true")
    assert trainer.precision == "64-true"
    assert "'64-true', chosen by the user" in callback.messages[0]


def test_clipping_with_the_users_fused_optimizer(
    ns: ModuleType, quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning refuses ``AdamW(fused=True)`` with clipping under bf16-mixed (#21435); the user did not ask for bf16."""
    monkeypatch.setattr(hardware, "bfloat16_is_native", lambda device: True)
    module = make("plain", ns)
    type(module).configure_optimizers, stock = (
        lambda self: torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True),
        type(module).configure_optimizers,
    )
    try:
        trainer = ns.Trainer(**quiet, max_epochs=1, callbacks=[lp.AutoMixedPrecision()], gradient_clip_val=0.1)
        trainer.fit(module, images())
    finally:
        type(module).configure_optimizers = stock
    assert trainer.optimizers[0]._step_supports_amp_scaling


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match=r"'16-mixed' is not known.*'bf16-mixed'"):
        lp.AutoMixedPrecision("16-mixed")  # type: ignore[arg-type]

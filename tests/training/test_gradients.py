"""Every weight in training has a gradient in every step, whatever is drawn: processes that average wait for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ltxkit.ltx_core.training.config import load_config
from ltxkit.ltx_core.training.distributed import World
from ltxkit.ltx_core.training.optimize import Updater
from ltxkit.ltx_core.training.run import make_task

ONE = World(0, 1, torch.device("cpu"))
DIGITS = [
    "data.kind=digits",
    "data.sizes=[[9,32,32]]",
    "data.glyph_size=24",
    "optimization.batch_size=2",
    "optimization.precision=fp32",
]
VAE = [
    *("model.encoder_base_channels=8", "model.decoder_base_channels=8", "unlock_psnr=null"),
    *("adversary.width=8", "adversary.start=0", "adversary.ramp=0"),
]
TRANSFORMER = [
    *("vae=ltxkit-digits", "cache_clips=2", "validation_samples=1", "prompts=[]", "model.num_layers=2"),
    *("model.num_attention_heads=2", "model.attention_head_dim=16", "model.cross_attention_dim=32"),
]
LORA = ["cache_clips=2", "validation_samples=1", "prompts=[]"]
CASES = {
    "vae": ("moving-mnist-vae", VAE),
    "vae, of pictures": ("moving-mnist-vae", [*VAE, "images_until_psnr=60"]),
    "decoder": ("moving-mnist-vae", [*VAE, "freeze_encoder=true"]),
    "upscaler": ("digits-upscaler", ["vae=ltxkit-digits", "model.mid_channels=32", "cache_clips=2"]),
    "transformer": ("moving-mnist", [*TRANSFORMER, "text_dropout=0", "first_frame=1"]),
    "transformer, without a prompt": ("moving-mnist", [*TRANSFORMER, "text_dropout=1"]),
    "lora, without a prompt": ("lora-digits", [*LORA, "text_dropout=1", "first_frame=1"]),
    "lora, after conditions": (
        "lora-digits",
        [*LORA, "text_dropout=0", "conditions.prefix=1", "conditions.keyframes=1"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_weight_has_a_gradient(case: str, tmp_path: Path) -> None:
    preset, changes = CASES[case]
    task: Any = make_task(load_config(preset, [*DIGITS, *changes, f"output={tmp_path}/run"]), ONE, lambda _: None)
    seen = {"objective": watched(task.objective, task.updater)}
    if getattr(task, "adversary", None) is not None:
        seen["discriminator"] = watched(task.adversary, task.judge_updater)
    task.update(0)
    assert bool(seen["objective"])
    assert bool(seen.get("discriminator")) == (case in ("vae", "decoder"))  # pictures are not for it to judge
    for name, gradients in seen.items():
        assert [key for key, there in gradients.items() if not there] == [], name


def watched(module: nn.Module, updater: Updater) -> dict[str, bool]:
    """Filled when the step is applied: for each weight in training, whether it has a gradient."""
    apply, found = updater.apply, dict[str, bool]()

    def applied(step: int) -> dict[str, float]:
        found.update({name: p.grad is not None for name, p in module.named_parameters() if p.requires_grad})
        return apply(step)

    updater.apply = applied  # type: ignore[method-assign]
    return found

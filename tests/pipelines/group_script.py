"""One process of a group: makes clips with every group that it is in, and writes the latents of the first process.

    group_script.py FOLDER LORA PICTURE OUT

`test_group.py` starts four of these, and calls `made` itself for one process alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

import ltxkit
from ltxkit.ltx_core.errors import ConfigError

SIZE = {"width": 96, "height": 64, "frames": 17, "fps": 8, "steps": 2, "crf": 0}
GUIDED = {"guidance_scale": 3, "stg_scale": 1, "stg_blocks": [14], "negative_prompt": "grey"}


def made(folder: Path, lora: Path, picture: Path, group: Any = None) -> dict[str, Tensor]:
    """Latents by what is special about them."""
    files = (folder / "checkpoints/ltxv-tiny.safetensors", folder / "text_encoders/t5-tiny")
    usual = {"device": "cpu", "dtype": torch.float32, "group": group, "progress": False}
    upscaler = folder / "latent_upscale_models/ltxv-tiny-spatial-upscaler.safetensors"
    ltx = ltxkit.load(*files, loras=ltxkit.LoRA(lora, 0.7), lora_mode="merged", **usual)
    streamed = ltxkit.load(*files, loras=ltxkit.LoRA(lora, 0.7), lora_mode="beside", resident_blocks=5, **usual)
    two = ltxkit.load(*files, upscaler=upscaler, **usual)
    shown = [ltxkit.Condition(picture), ltxkit.Condition(picture, frame=16, strength=0.6)]
    clips = {
        "conditions, guidance, merged LoRA": ltx.generate("a red ship", conditions=shown, **SIZE, **GUIDED),
        "streamed, guidance, LoRA beside": streamed.generate("a red ship", seed=3, **SIZE, **GUIDED),
        # At half of this size, the groups of the upscaler's norms are of two values, which multiply rounding by 10,000.
        "two passes": two.generate("a red ship", seed=4, **SIZE | {"width": 192, "height": 128, "frames": 9}),
    }
    drawn = ltx.generate("a red ship", seed=None, **SIZE | {"steps": 1, "frames": 1})
    again = ltx.generate("a red ship", seed=drawn.settings["seed"], **SIZE | {"steps": 1, "frames": 1})
    assert torch.equal(drawn.latent, again.latent)
    if group is not None:
        check_frames(clips, group)
    return {name: clip.latent for name, clip in clips.items()}


def check_frames(clips: dict[str, Any], group: Any) -> None:
    """That what all decode together is what each of them decodes alone."""
    for name, clip in clips.items():
        together, alone = clip.together().to_tensor(), clip.to_tensor()
        assert len(together) == (len(alone) if dist.get_rank(group) == 0 else 0), name
        assert not len(together) or (together - alone).abs().max() <= 1e-5, name


def refused(folder: Path, group: Any) -> str:
    """What is said where the processes ask for different clips."""
    files = (folder / "checkpoints/ltxv-tiny.safetensors", folder / "text_encoders/t5-tiny")
    ltx = ltxkit.load(*files, device="cpu", group=group, progress=False)
    try:
        ltx.generate("a red ship", seed=dist.get_rank(group), **SIZE)
    except ConfigError as error:
        return str(error)
    return ""


def main(folder: Path, lora: Path, picture: Path, out: Path) -> None:
    dist.init_process_group("gloo")
    pair, _ = dist.new_subgroups(2)
    for size, group in ((4, dist.group.WORLD), (2, pair)):
        latents = made(folder, lora, picture, group)
        for name, latent in latents.items():
            everywhere = [torch.empty_like(latent) for _ in range(size)]
            dist.all_gather(everywhere, latent.contiguous(), group=group)
            assert all(torch.equal(latent, other) for other in everywhere), name
        if dist.get_rank() == 0:
            save_file({name: latent.contiguous() for name, latent in latents.items()}, out / f"{size}.safetensors")
    said = refused(folder, pair)
    (out / f"said-{dist.get_rank()}").write_text(said)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

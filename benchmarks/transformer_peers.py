"""The transformer of other projects with the weights of ours, for `transformer_cpu.py`: each computes what ours does.

diffusers always; LTX_VIDEO_PATH: a checkout of Lightricks/LTX-Video. COMFYUI_PATH: one of ComfyUI. Without them, these
are left out. Prompts are padded and masked, as their pipelines do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.measuring.peers import Asked, open_peer
from ltxkit.ltx_core.models.transformer import LTXTransformer

PADDED, POSITIVE, NEGATIVE = 256, 60, 20  # text tokens
FRAME_RATE = 25
LEVEL = 0.5  # of noise: in bfloat16, too, it is 500 thousandths, as all models write it
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Inputs:
    """Of one step. x (1 n c), sigma (1 1 1) or (1 n 1), padded texts (2 l c), the negative one first, masks (2 l)."""

    grid: tuple[int, int, int]
    positions: Tensor
    x: Tensor
    sigma: Tensor
    padded: Tensor
    masks: Tensor

    @classmethod
    def of(cls, grid: tuple[int, int, int], config: TransformerConfig, *, conditioned: bool) -> Inputs:
        """conditioned: on the first frame, whose tokens have no noise."""
        torch.manual_seed(1)
        cells = torch.stack(torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")).reshape(1, 3, -1)
        tokens = cells.shape[2]
        sigma = torch.full((1, 1, 1), LEVEL)
        if conditioned:
            sigma = torch.where(torch.arange(tokens) < grid[1] * grid[2], 0.0, LEVEL)[None, :, None]
        return cls(
            grid,
            cells * torch.tensor([8 / FRAME_RATE, 32, 32])[None, :, None],
            torch.randn(1, tokens, config.in_channels),
            sigma,
            torch.randn(2, PADDED, config.caption_channels),
            torch.arange(PADDED) < torch.tensor([[NEGATIVE], [POSITIVE]]),
        )


class ValuesProcessor:
    """attention_values for diffusers: attention returns V and computes nothing else."""

    def __call__(self, attn: Any, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return attn.to_out[0](attn.to_v(hidden_states))


Step = Callable[[], Tensor]
"""-> velocities (1 n c); with guidance (3 n c): negative, positive, and positive without attention in one block."""


def diffusers(model: Any, given: Inputs, dtype: torch.dtype, skipped: int | None) -> Step:
    """Guidance as its pipelines have it: one forward each. skipped: the block of guidance; None: the positive one."""
    from diffusers.models.transformers.transformer_ltx import LTXVideoAttnProcessor

    def forward(row: int) -> Tensor:
        text, mask = given.padded[row : row + 1].to(dtype), given.masks[row : row + 1].to(dtype)
        timestep = (given.sigma * 1000).squeeze(-1)
        return model(given.x.to(dtype), text, timestep, mask, video_coords=given.positions, return_dict=False)[0]

    def step() -> Tensor:
        if skipped is None:
            return forward(1)
        attention = model.transformer_blocks[skipped].attn1
        plain = [forward(0), forward(1)]
        attention.set_processor(ValuesProcessor())
        perturbed = forward(1)
        attention.set_processor(LTXVideoAttnProcessor())
        return torch.cat([*plain, perturbed])

    return step


def official(model: Any, given: Inputs, dtype: torch.dtype, skipped: int | None) -> Step:
    """Guidance as its pipeline has it: one batch of three."""
    from ltx_video.utils.skip_layer_strategy import SkipLayerStrategy  # pyright: ignore

    rows = [1] if skipped is None else [0, 1, 1]
    batch = len(rows)

    def step() -> Tensor:
        perturbed: dict[str, Any] = {}
        if skipped is not None:
            perturbed["skip_layer_mask"] = model.create_skip_layer_mask(1, batch, batch - 1, [skipped])
            perturbed["skip_layer_strategy"] = SkipLayerStrategy.AttentionValues
        return model(
            given.x.to(dtype).expand(batch, -1, -1),
            indices_grid=given.positions.expand(batch, -1, -1),
            encoder_hidden_states=given.padded[rows].to(dtype),
            encoder_attention_mask=given.masks[rows].to(dtype),
            timestep=given.sigma.squeeze(-1).expand(batch, -1),
            return_dict=False,
            **perturbed,
        )[0]

    return step


def comfyui(model: Any, given: Inputs, dtype: torch.dtype, skipped: int | None) -> Step:
    """Guidance as its sampler has it: a batch of two, and one more forward with the block patched."""
    cells = given.x.to(dtype).unflatten(1, given.grid).permute(0, 4, 1, 2, 3).contiguous()
    sigma = given.sigma.to(dtype).squeeze(-1)
    sigma = sigma[0] if sigma.shape[1] == 1 else sigma

    def forward(rows: list[int], options: dict[str, Any]) -> Tensor:
        batch = len(rows)
        at = sigma.expand(batch, *sigma.shape[1:])
        text, mask = given.padded[rows].to(dtype), given.masks[rows].long()
        x = cells.expand(batch, -1, -1, -1, -1).contiguous()
        velocity = model(x, at, text, mask, frame_rate=FRAME_RATE, transformer_options=options)
        return velocity.permute(0, 2, 3, 4, 1).flatten(1, 3)

    def without_attention(args: dict[str, Any], extra: dict[str, Any]) -> Any:
        options = {**args.get("transformer_options", {}), "stg_skip_self_attn": True}
        return extra["original_block"]({**args, "transformer_options": options})

    def step() -> Tensor:
        if skipped is None:
            return forward([1], {})
        patched = {"patches_replace": {"dit": {("double_block", skipped): without_attention}}}
        return torch.cat([forward([0, 1], {}), forward([1], patched)])

    return step


_STEPS = {"diffusers": diffusers, "official": official, "comfyui": comfyui}


def on_path(variable: str) -> Path | None:
    """The checkout that an environment variable names, from which Python then imports."""
    folder = os.environ.get(variable)
    if folder and folder not in sys.path:
        sys.path.append(folder)
    return Path(folder) if folder else None


def peers(ours: LTXTransformer, dtype: torch.dtype) -> Callable[[Inputs, int | None], Mapping[str, Step]]:
    """Everybody who is here, with the weights of ours: a step of each by its title."""
    checkouts = {"official": on_path("LTX_VIDEO_PATH"), "comfyui": on_path("COMFYUI_PATH")}
    asked = [Asked("diffusers"), *(Asked(name, path) for name, path in checkouts.items() if path is not None)]
    models = {}
    for each in asked:
        peer = open_peer(each, _CPU)
        models[peer.title] = _STEPS[each.name], peer.transformer(ours)

    def steps(given: Inputs, skipped: int | None) -> Mapping[str, Step]:
        return {title: step(model, given, dtype, skipped) for title, (step, model) in models.items()}

    return steps

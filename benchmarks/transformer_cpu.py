"""How much less CPU time one denoising step of the transformer takes than with diffusers.

Four blocks of the 2B width, 384 latent tokens (192 with guidance, whose step takes three times as long), and a prompt
of 60 tokens, which diffusers gets padded to 256 with a mask, the length that its pipeline pads to. One thread, CPU
time. The clock excludes LTXKit's preparations, done once per prompt and clip (text projection, keys, values; rotary
table), as a real run shares them between steps; diffusers has no place to keep them.

python benchmarks/transformer_cpu.py [--tiny]
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx import LTXVideoAttnProcessor, LTXVideoTransformer3DModel
from protocol import Row, arguments, compare, publish
from torch import Tensor

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer

LAYERS, SKIPPED = 4, 3
HEIGHT, WIDTH = 8, 12  # latent cells
PADDED, POSITIVE, NEGATIVE = 256, 60, 20  # text tokens
# bfloat16: as in vae_cpu.py; the shallower model and its residual sums leave a third of that.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}

CONFIG = TransformerConfig.of_size(layers=LAYERS, heads=32, head_dim=64, channels=128, captions=4096)
TINY = TransformerConfig.of_size(layers=LAYERS, heads=2, head_dim=16, channels=128, captions=64)


class ValuesProcessor:
    """attention_values for diffusers: attention returns V and computes nothing else."""

    def __call__(self, attn: Any, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return attn.to_out[0](attn.to_v(hidden_states))


def build(config: TransformerConfig, dtype: torch.dtype) -> tuple[LTXTransformer, Any]:
    """Ours, and diffusers' with the same random weights."""
    torch.manual_seed(0)
    ours = LTXTransformer(config)
    theirs: Any = LTXVideoTransformer3DModel(
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        attention_head_dim=config.attention_head_dim,
        cross_attention_dim=config.cross_attention_dim,
        caption_channels=config.caption_channels,
    )
    names = {"patchify_proj": "proj_in", "adaln_single": "time_embed", "q_norm": "norm_q", "k_norm": "norm_k"}
    state: dict[str, Tensor] = {}
    for key, value in ours.state_dict().items():
        for our_name, their_name in names.items():
            key = key.replace(our_name, their_name)
        state[key] = value
    theirs.load_state_dict(state, strict=True)
    return ours.to(dtype).eval(), theirs.to(dtype).eval()


def measure(case: str, dtype: torch.dtype, *, guided: bool = False, conditioned: bool = False, tiny: bool) -> list[Row]:
    config = TINY if tiny else CONFIG
    ours, theirs = build(config, dtype)
    frames = 2 if guided else 4
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (frames, HEIGHT, WIDTH)), indexing="ij"))
    positions = grid.reshape(1, 3, -1) * torch.tensor([8 / 25, 32, 32])[None, :, None]
    tokens = positions.shape[2]
    x = torch.randn(1, tokens, config.in_channels)
    sigma = torch.full((1, 1, 1), 0.725)
    if conditioned:  # on the first frame
        sigma = torch.where(torch.arange(tokens) < HEIGHT * WIDTH, 0.0, 0.725)[None, :, None]
    padded = torch.randn(2, PADDED, config.caption_channels)
    masks = (torch.arange(PADDED) < torch.tensor([[NEGATIVE], [POSITIVE]])).to(dtype)

    with torch.inference_mode():
        rotary = ours.prepare_positions(positions)
        negative, positive = (ours.prepare_text([padded[i, :n]]) for i, n in enumerate((NEGATIVE, POSITIVE)))
    branches = (Branch(positive),)
    if guided:
        branches = (Branch(negative), Branch(positive), Branch(positive, frozenset({SKIPPED})))

    def step() -> Tensor:
        return torch.cat(ours(x, sigma, rotary, branches))

    def forward(row: int) -> Tensor:
        text, mask = padded[row : row + 1].to(dtype), masks[row : row + 1]
        timestep = (sigma * 1000).squeeze(-1)
        (velocity,) = theirs(x.to(dtype), text, timestep, mask, video_coords=positions, return_dict=False)
        return velocity

    def three_forwards() -> Tensor:
        attention = theirs.transformer_blocks[SKIPPED].attn1
        plain = [forward(0), forward(1)]
        attention.set_processor(ValuesProcessor())
        perturbed = forward(1)
        attention.set_processor(LTXVideoAttnProcessor())
        return torch.cat([*plain, perturbed])

    peer = {"diffusers, 3 forwards": three_forwards} if guided else {"diffusers": lambda: forward(1)}
    # The comparison of the outputs was the warm-up: a call takes seconds.
    case = f"{case}, {tokens} tokens, {str(dtype).removeprefix('torch.')}"
    note = (
        "" if ours.compute_dtype == dtype else "this CPU has no bfloat16: LTXKit computes in float32, weights as stored"
    )
    return compare(case, step, peer, tolerance=TOLERANCE[dtype], warmup=0, note=note, tiny=tiny)


def main() -> None:
    tiny = arguments(__doc__).parse_args().tiny
    torch.set_num_threads(1)
    cases = [
        measure("CFG 1", torch.bfloat16, tiny=tiny),
        measure(f"CFG + STG, block {SKIPPED} of {LAYERS} skipped", torch.bfloat16, guided=True, tiny=tiny),
        measure("CFG 1", torch.float32, tiny=tiny),
        measure("CFG 1, conditioned on the first frame", torch.float32, conditioned=True, tiny=tiny),
        measure(f"CFG + STG, block {SKIPPED} of {LAYERS} skipped", torch.float32, guided=True, tiny=tiny),
    ]
    publish(
        "transformer_cpu",
        f"How much less CPU time does a denoising step take? ({LAYERS} blocks of the 2B width)",
        list(itertools.chain.from_iterable(cases)),
        tiny=tiny,
    )


if __name__ == "__main__":
    main()

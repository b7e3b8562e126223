"""Records the results of the official transformer for perturbed branches; see README.md in this folder.

python record.py PATH_TO_LTX_VIDEO
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, sys.argv[1])
from ltx_video.models.transformers.transformer3d import Transformer3DModel
from ltx_video.utils.skip_layer_strategy import SkipLayerStrategy

MODES = {
    "attention_values": SkipLayerStrategy.AttentionValues,
    "attention_skip": SkipLayerStrategy.AttentionSkip,
    "transformer_block": SkipLayerStrategy.TransformerBlock,
}
SKIP_LISTS = ((1,), (3,), (0, 2), (1, 2))

torch.manual_seed(0)
model = Transformer3DModel(
    num_attention_heads=2,
    attention_head_dim=8,  # 16 % 6 = 4: two channel pairs do not rotate, as in the 13B model
    in_channels=6,
    num_layers=4,
    cross_attention_dim=16,
    attention_bias=True,
    activation_fn="gelu-approximate",
    num_embeds_ada_norm=1000,
    standardization_norm="rms_norm",
    norm_elementwise_affine=False,
    norm_eps=1e-6,
    caption_channels=10,
    qk_norm="rms_norm",
    positional_embedding_theta=10000.0,
    positional_embedding_max_pos=[20, 2048, 2048],
    timestep_scale_multiplier=1000,
).eval()
for name, parameter in model.named_parameters():  # norms of 1 and biases near 0 would hide errors
    if parameter.ndim == 1:
        parameter.data = torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in name else 0.0)

tokens, lengths = 12, (3, 7)  # of text: negative, positive
x = torch.randn(1, tokens, 6)
positions = torch.rand(1, 3, tokens) * torch.tensor([4.0, 512.0, 768.0])[None, :, None]
sigma = torch.where(torch.arange(tokens) < 3, 0.0, 0.85)[None, :, None]
context = torch.randn(2, 9, 10)
mask = torch.stack([torch.arange(9) < length for length in lengths]).long()
rows = torch.tensor([0, 1, 1])  # negative, positive, perturbed

recorded = {f"weights.{key}": value for key, value in model.state_dict().items()}
recorded |= {"x": x, "positions": positions, "sigma": sigma}
recorded |= {"negative": context[0, : lengths[0]].clone(), "positive": context[1, : lengths[1]].clone()}
with torch.no_grad():
    for mode, strategy in MODES.items():
        for blocks in SKIP_LISTS:
            (velocity,) = model(
                x.expand(3, -1, -1),
                positions.expand(3, -1, -1),
                encoder_hidden_states=context[rows],
                encoder_attention_mask=mask[rows],
                timestep=sigma.expand(3, -1, -1).squeeze(-1),
                skip_layer_mask=model.create_skip_layer_mask(1, 3, 2, list(blocks)),
                skip_layer_strategy=strategy,
                return_dict=False,
            )
            recorded[f"velocity.{mode}.{'_'.join(map(str, blocks))}"] = velocity
save_file(recorded, Path(__file__).with_name("stg.safetensors"))

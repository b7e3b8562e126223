"""Files that several kinds of targets start from."""

from __future__ import annotations

from pathlib import Path

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.weights import tiny


def small_checkpoint(path: Path) -> Path:
    """Two layers: what is read per layer is read twice, in a tenth of the time of a released number of them."""
    config = TransformerConfig.of_size(layers=2, heads=2, head_dim=8, channels=16, captions=16, causal=True)
    vae = tiny._vae_config("0.9.5", "16x4", 16)
    tiny._write_checkpoint(path, config, vae, tiny._scheduler_config("2b", "0.9.5"), 0)
    return path

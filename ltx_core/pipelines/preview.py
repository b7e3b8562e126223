"""A linear decoder for previews: what a VAE makes of a latent cell, to first order.

Tables of colours per latent channel (as ComfyUI's for its latent formats) fit one VAE and give a pixel per cell. The
least-squares fit below takes a single decode of noise, and gives a patch of pixels per cell in the colours of the VAE
that is loaded: of the bundled model's digits the shape is visible.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd

import torch
from einops import rearrange, reduce

from ..host import Host
from ..models.video_vae import VideoVAE
from ..progress import silent
from ..sampling.noise import stream
from ..sampling.preview import LinearPreview
from .decode import decode
from .settings import Decoding

PATCH = 8  # pixels per cell and side, where the VAE's scale allows it
_CELLS = 16  # per side of the fit: twice as many samples as the released VAEs have channels
_RIDGE = 1e-2  # of the variance of the noise, which is 1
_DECODING = Decoding(0.05, 0.0)  # the level of the recipes; no noise of its own


def fit_preview(vae: VideoVAE, host: Host) -> LinearPreview:
    """Least squares from latent cells (standard normal noise, one frame) to the pixels of their decode.

    host: where the decoder runs; its progress is not told.
    """
    scale = vae.config.scale_factors
    rows, columns = gcd(PATCH, scale.height), gcd(PATCH, scale.width)
    shape = (1, vae.config.latent_channels, 1, _CELLS, _CELLS)
    latent = torch.randn(shape, generator=stream(0, "preview"))
    frames = decode(vae, latent, _DECODING, seed=0, host=replace(host, progress=silent))
    pixels = reduce(
        frames,
        "1 1 (h r sh) (w q sw) c -> (h w) (r q c)",
        "mean",
        h=_CELLS,
        w=_CELLS,
        r=rows,
        q=columns,
    )
    cells = rearrange(latent, "1 c 1 h w -> (h w) c")
    cells = torch.cat([cells, cells.new_ones(len(cells), 1)], dim=1)
    ridge = _RIDGE * len(cells) * torch.eye(cells.shape[1])
    weight = torch.linalg.solve(cells.T @ cells + ridge, cells.T @ pixels)
    return LinearPreview(weight[:-1], weight[-1], (rows, columns))

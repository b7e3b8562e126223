"""How many bytes of activations the VAE needs, from its config alone: what tiling and the memory plan go by.

Counted are the tensors that live at once in `vae_layers` and `video_vae`: the frames that convolutions keep,
the finished pieces that wait between stages, and what the busiest stage works with. Weights on the device are not
counted, except for the copies of one weight that a convolution may bring into other memory formats.
"""

from __future__ import annotations

import math

from ..config import VideoVAEConfig
from ..shapes import LatentShape
from .video_vae import STREAM_FRAMES

KERNEL = 27  # cells of a 3x3x3 convolution
UNCOUNTED = 1.06  # measured: small tensors that the count below leaves out are up to 5.7 % of the peak (test models)
WEIGHT_COPIES = 2  # measured with oneDNN, which turns a weight into channels-last memory and that into its own blocks


class _Walk:
    """Adds up elements while it goes through the stages; `frames`, `cells` (h w) and `width` are those of the level."""

    def __init__(self, frames: int, cells: int, width: int, limit: int | None) -> None:
        self.frames, self.cells, self.width, self.limit = frames, cells, width, limit
        self.kept = self.waiting = self.work = 0

    @property
    def piece(self) -> int:
        """Frames that a stage of this level works on at once."""
        return self.frames if self.limit is None else min(self.limit, self.frames)

    @property
    def streams(self) -> bool:
        return self.piece < self.frames

    def convolve(self, out: int, *, alive: int, inflated: int = 1) -> None:
        """A convolution to `out` channels beside `alive` tensors of its input; its output exists `inflated` times."""
        padded = (self.piece + 2) * self.width
        inputs, outputs = alive * self.piece * self.width, inflated * self.piece * out
        weight = KERNEL * self.width * out
        self.work = max(self.work, (inputs + padded + outputs) * self.cells + WEIGHT_COPIES * weight)
        if self.streams:
            self.kept += 2 * self.width * self.cells

    def res_block(self, out: int) -> None:
        self.convolve(out, alive=3)  # the input, which the shortcut needs, and two steps of norm and modulation
        width, self.width = self.width, out
        self.convolve(out, alive=3)
        if self.streams:
            self.kept += 2 * width * self.cells  # the shortcut waits for two convolutions that look ahead

    def elements(self) -> int:
        return int(UNCOUNTED * (self.kept + self.waiting + self.work))


def decode_bytes(
    config: VideoVAEConfig, shape: LatentShape, *, itemsize: int, limit: int | None = STREAM_FRAMES
) -> int:
    """Peak bytes of activations of decoding one clip of `shape` cells, without the frames that have left.

    itemsize: bytes per number; 4 where `compute_dtype` is float32. limit: as of `stream_decode`; None for `decode`.
    """
    blocks = tuple(reversed(config.decoder_blocks))
    width = config.decoder_base_channels * math.prod(block.multiplier for block in blocks)
    walk = _Walk(shape.frames, shape.height * shape.width, config.latent_channels, limit)
    walk.convolve(width, alive=1)
    walk.width = width
    for block in blocks:
        out = walk.width // block.multiplier
        if block.kind == "res_x":
            for _ in range(block.num_layers):
                walk.res_block(walk.width)
        elif block.kind == "res_x_y":
            walk.res_block(out)
        else:
            time, *space = block.stride
            fold = time * math.prod(space)
            walk.convolve(out * fold, alive=1, inflated=2)
            if walk.streams:
                walk.kept += walk.width * walk.cells
                walk.waiting += walk.piece * out * fold * walk.cells
            walk.frames, walk.cells, walk.width = walk.frames * time - (time - 1), walk.cells * math.prod(space), out
    walk.convolve(config.out_channels * config.patch_size**2, alive=2, inflated=2)
    return walk.elements() * itemsize


def encode_bytes(
    config: VideoVAEConfig, shape: LatentShape, *, itemsize: int, limit: int | None = STREAM_FRAMES
) -> int:
    """Peak bytes of activations of encoding one clip to `shape` cells, without the pixels themselves.

    itemsize, limit: as of `decode_bytes`, for `stream_encode` and `encode`.
    """
    scale = config.scale_factors
    pixels = shape.pixels(scale)
    cells = pixels.height * pixels.width // config.patch_size**2
    walk = _Walk(pixels.frames, cells, config.in_channels * config.patch_size**2, limit)
    walk.convolve(config.encoder_base_channels, alive=2)
    walk.width = config.encoder_base_channels
    for block in config.encoder_blocks:
        out = walk.width * block.multiplier
        time, *space = block.stride
        fold = time * math.prod(space)
        if block.kind == "res_x":
            for _ in range(block.num_layers):
                walk.res_block(walk.width)
        elif block.kind == "res_x_y":
            walk.res_block(out)
        elif block.kind.endswith("_res"):
            walk.convolve(out // fold, alive=3, inflated=2)
        else:
            walk.convolve(walk.width, alive=1)
        if block.kind.startswith("compress"):
            out = out if block.kind.endswith("_res") else walk.width
            walk.frames, walk.cells, walk.width = (walk.frames - 1) // time + 1, walk.cells // math.prod(space), out
    walk.convolve(config.latent_channels + 1, alive=2, inflated=2)
    return walk.elements() * itemsize

"""The video VAE of LTX-Video: a causal encoder, and a decoder that also removes the last noise.

All three generations (0.9.0; 0.9.1 with timestep conditioning and injected noise; 0.9.5 and later) are block lists of
one architecture (Lightricks/LTX-Video, models/autoencoders/causal_video_autoencoder.py). Attribute names are the
released checkpoint's keys after the prefix `vae.`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import PaddingMode, VAEBlock, VideoVAEConfig
from ..errors import ConfigError, ShapeError
from ..shapes import PixelShape
from .convolution import Conv3d
from .dtypes import compute_dtype
from .embeddings import TimeEmbedder, scale_shift_table
from .rows import RowShare
from .vae_layers import (
    CausalConv3d,
    DepthToSpaceUpsample,
    Layer,
    Norm,
    ResnetBlock3D,
    SpaceToDepthDownsample,
    Stage,
    Stream,
    UNetMidBlock3D,
    embed_timestep,
    run_stages,
    split_modulation,
)

LOGVAR_RANGE = (-30.0, 20.0)  # DiagonalGaussianDistribution, as the official and the diffusers VAE clamp it
STREAM_FRAMES = 4  # that one stage works on at once; fewer frames save little, as layers keep two each in any case


@dataclass(frozen=True, eq=False)
class Posterior:
    """A diagonal Gaussian over raw latents. mean, logvar: (b, c, f, h, w); the VAE has one logvar for all channels."""

    mean: Tensor
    logvar: Tensor

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: torch.Generator) -> Tensor:
        """A draw, (b, c, f, h, w). The noise is drawn in float32 on the generator's device, in that order."""
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        return self.mean + (0.5 * self.logvar.clamp(*LOGVAR_RANGE)).exp() * noise.to(self.mean)


# `decoder.timestep_scale_multiplier` of every release.
TIMESTEP_SCALE_MULTIPLIER = 1000.0


class PerChannelStatistics(nn.Module):
    """Mean and standard deviation that normalise latents, named as in the file; its three other tensors are unused."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean-of-means", torch.zeros(channels))
        self.register_buffer("std-of-means", torch.ones(channels))

    @property
    def mean(self) -> Tensor:
        return self.get_buffer("mean-of-means")

    @property
    def std(self) -> Tensor:
        return self.get_buffer("std-of-means")


class Encoder(nn.Module):
    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        padding = config.spatial_padding_mode
        width = config.encoder_base_channels
        self.patch_size = config.patch_size
        self.conv_in = CausalConv3d(config.in_channels * config.patch_size**2, width, causal=True, padding=padding)
        self.down_blocks = nn.ModuleList()
        for block in config.encoder_blocks:
            layer, width = _encoder_block(block, width, config)
            self.down_blocks.append(layer)
        # One more channel than latents: the log-variance that all of them share (latent_log_var "uniform").
        self.conv_out = CausalConv3d(width, config.latent_channels + 1, causal=True, padding=padding)

    def forward(self, pieces: Iterable[tuple[Tensor, bool]], limit: int | None) -> Iterator[Posterior]:
        """pieces: (pixels (b, 3, f, h, w), whether they are the last of the clip); see `run_stages`."""
        stages: list[Stage] = [self.conv_in, *self.down_blocks, self._finish]
        conv = self.conv_in.conv
        dtype = compute_dtype(conv.weight, conv.active.kernels.convolutions)
        for moments in run_stages(stages, ((self._patchify(x.to(dtype)), last) for x, last in pieces), limit):
            moments = rearrange(moments, "b f h w c -> b c f h w")
            mean, logvar = moments[:, :-1], moments[:, -1:]
            yield Posterior(mean, logvar.expand_as(mean))

    def _patchify(self, x: Tensor) -> Tensor:
        # Within a patch the offset along the width is the slower one (causal_video_autoencoder.py, patchify).
        p = self.patch_size
        return rearrange(x, "b c f (h q) (w r) -> b f h w (c r q)", q=p, r=p)

    def _finish(self, x: Tensor, stream: Stream) -> Tensor:
        return self.conv_out(x, stream, Norm())


class Decoder(nn.Module):
    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        padding, causal = config.spatial_padding_mode, config.causal_decoder
        blocks = tuple(reversed(config.decoder_blocks))
        width = config.decoder_base_channels
        for block in blocks:
            width *= block.multiplier
        self.patch_size = config.patch_size
        self.conv_in = CausalConv3d(config.latent_channels, width, causal=causal, padding=padding)
        self.up_blocks = nn.ModuleList()
        for block in blocks:
            layer, width = _decoder_block(block, width, config)
            self.up_blocks.append(layer)
        self.conv_out = CausalConv3d(width, config.out_channels * config.patch_size**2, causal=causal, padding=padding)
        if config.timestep_conditioning:
            self.timestep_scale_multiplier = nn.Parameter(torch.tensor(TIMESTEP_SCALE_MULTIPLIER))
            self.last_time_embedder = TimeEmbedder(width * 2)
            self.last_scale_shift_table = scale_shift_table(2, width)

    def forward(
        self,
        pieces: Iterable[tuple[Tensor, bool]],
        timestep: Tensor | None,
        noise: tuple[Tensor, ...],
        limit: int | None,
        rows: RowShare | None = None,
    ) -> Iterator[Tensor]:
        """pieces: (raw latents (b, c, f, h, w), whether they are the last of the clip); see `run_stages`.

        timestep: (b,). noise: a map (h, w) per convolution that injects it, from `VideoVAE.draw_noise`. rows: see
        `stream_decode`.
        Yields pixels (b, 3, f, h, w).
        """
        if timestep is not None:
            timestep = timestep.float() * self.timestep_scale_multiplier
        weight = self.conv_in.conv.weight
        dtype = compute_dtype(weight, self.conv_in.conv.active.kernels.convolutions)
        noise = tuple(noise_map.to(weight.device, dtype) for noise_map in noise)
        latents = ((rearrange(x.to(dtype), "b c f h w -> b f h w c"), last) for x, last in pieces)
        stages: list[Stage] = [self.conv_in, *self._up_stages(timestep, noise), self._last_stage(timestep)]
        for frames in run_stages(stages, latents, limit, rows):
            yield rearrange(frames, "b f h w c -> b c f h w")

    def noise_scales(self) -> list[tuple[int, int]]:
        """For each noise map, in the order of use: its cells per latent cell along (height, width)."""
        scales: list[tuple[int, int]] = []
        height = width = 1
        for layer in self._layers():
            height, width = height * layer.magnification[0], width * layer.magnification[1]
            scales += [(height, width)] * layer.noise_maps
        return scales

    def _layers(self) -> list[Layer]:
        return [cast(Layer, layer) for layer in self.up_blocks]

    def _up_stages(self, timestep: Tensor | None, noise: tuple[Tensor, ...]) -> list[Stage]:
        """timestep: scaled. noise: the maps of all layers, in the order of use."""
        layers = self._layers()
        ends = accumulate(layer.noise_maps for layer in layers)
        return [
            layer.stage(timestep, noise[end - layer.noise_maps : end]) for layer, end in zip(layers, ends, strict=True)
        ]

    def _last_stage(self, timestep: Tensor | None) -> Stage:
        if timestep is None:
            return partial(self._finish, norm=Norm())
        chosen = self.conv_out.conv.active.kernels.convolutions
        embedding = embed_timestep(self.last_time_embedder, timestep, chosen)
        shift, scale = split_modulation(self.last_scale_shift_table, embedding)
        return partial(self._finish, norm=Norm((1 + scale, shift)))

    def _finish(self, x: Tensor, stream: Stream, norm: Norm) -> Tensor:
        x = self.conv_out(x, stream, norm)
        p = self.patch_size
        return rearrange(x, "b f h w (c r q) -> b f (h q) (w r) c", q=p, r=p)


class VideoVAE(nn.Module):
    """Pixels in [-1, 1] to raw latents and back; `normalize` turns these into the latents of the transformer."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)

    def called_parts(self) -> list[tuple[nn.Module, list[str]]]:
        """The convolutions, which hold nearly all weights and use them in `forward` alone; as in the transformer."""
        return [(part, []) for part in self.modules() if isinstance(part, CausalConv3d)]

    def pad_encoder(self, mode: PaddingMode) -> None:
        """From now on the encoder pads in this way, and the decoder as the config says.

        Both do the same in the official code; ComfyUI's defaults differ between the two (causal_video_autoencoder.py).
        """
        for part in self.encoder.modules():
            if isinstance(part, Conv3d):
                part.padding_mode = mode

    def encode(self, pixels: Tensor) -> Posterior:
        """Encode a whole clip.

        pixels: (b, 3, f, h, w) in [-1, 1], any float dtype. Returns raw latents in the `compute_dtype` of the weights.

        Raises:
            ShapeError: channels, frames or a size that the VAE cannot encode.
        """
        _check_channels(pixels, self.config.in_channels, "pixels")
        PixelShape(*pixels.shape[2:]).latent(self.config.scale_factors)
        (posterior,) = self.encoder([(pixels, True)], None)
        return posterior

    def stream_encode(self, chunks: Iterable[Tensor], *, limit: int = STREAM_FRAMES) -> Iterator[Posterior]:
        """Encode a clip that arrives in pieces (b, 3, any f, h, w): exactly `encode` of their concatenation.

        Yields posteriors of one or more latent frames as soon as they are known.
        limit: the most frames that one stage works on at once.

        Raises:
            ShapeError: as `encode`; a wrong number of frames shows only at the end.
        """
        frames = 0

        def pieces() -> Iterator[tuple[Tensor, bool]]:
            nonlocal frames
            for chunk in chunks:
                _check_channels(chunk, self.config.in_channels, "pixels")
                PixelShape(1, *chunk.shape[3:]).latent(self.config.scale_factors)
                frames += chunk.shape[2]
                for part in chunk.split(limit, dim=2):
                    yield part, False  # the encoder never looks ahead: there is nothing to flush

        size = None
        for posterior in self.encoder(pieces(), limit):
            size = posterior.mean.shape
            yield posterior
        if size is not None:
            scale = self.config.scale_factors
            PixelShape(frames, size[3] * scale.height, size[4] * scale.width).latent(scale)

    def decode(
        self, latent: Tensor, timestep: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Decode a whole clip.

        latent: raw (b, c, f, h, w).
        timestep: (b,) in [0, 1], how much noise the latent contains; required by a VAE with timestep conditioning,
            refused by others.
        generator: required by a VAE that injects noise (0.9.1).
        Returns pixels (b, 3, f', h', w') of about [-1, 1], in the `compute_dtype` of the weights.
        """
        noise = self.draw_noise(latent.shape[-2], latent.shape[-1], generator)
        (pixels,) = self._decode([(latent, True)], latent, timestep, noise, None)
        return pixels

    def stream_decode(
        self,
        latent: Tensor,
        timestep: Tensor | None = None,
        *,
        noise: tuple[Tensor, ...] = (),
        limit: int = STREAM_FRAMES,
        rows: RowShare | None = None,
    ) -> Iterator[Tensor]:
        """Exactly `decode`, but frames leave as they are finished, and memory does not grow with the clip.

        noise: from `draw_noise`. limit: the most frames that one stage works on at once.
        rows: how the rows of the picture are divided among processes, which all decode the same clip with one limit;
            latent and noise are then those of this process's rows, and so are the pixels. None: not divided.
        Yields pixels (b, 3, f, h', w'), f >= 1.

        Raises:
            UnsupportedError: another process has ended.
        """
        parts = latent.split(limit, dim=2)
        pieces = ((part, i == len(parts) - 1) for i, part in enumerate(parts))
        return self._decode(pieces, latent, timestep, noise, limit, rows)

    def _decode(
        self,
        pieces: Iterable[tuple[Tensor, bool]],
        latent: Tensor,
        timestep: Tensor | None,
        noise: tuple[Tensor, ...],
        limit: int | None,
        rows: RowShare | None = None,
    ) -> Iterator[Tensor]:
        _check_channels(latent, self.config.latent_channels, "latent")
        if self.config.timestep_conditioning != (timestep is not None):
            raise ConfigError(
                f"got {'no ' if timestep is None else 'a '}decode timestep; expected one exactly for a VAE with "
                f"timestep conditioning; {'pass' if timestep is None else 'leave out'} timestep"
            )
        expected = [(latent.shape[-2] * y, latent.shape[-1] * x) for y, x in self.decoder.noise_scales()]
        if [tuple(noise_map.shape) for noise_map in noise] != expected:
            raise ShapeError(
                f"got {len(noise)} noise maps; expected {len(expected)} for {latent.shape[-1]}x{latent.shape[-2]} "
                "cells; draw them with draw_noise for this size"
            )
        return self.decoder(pieces, timestep, noise, limit, rows)

    def draw_noise(self, height: int, width: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """The noise that the decoder injects into a clip of `height` x `width` latent cells, () if it injects none.

        One float32 map (h, w) per convolution that takes one, in the order of use, shared by samples, channels and
        frames. Drawn once for the whole picture: pieces and tiles see the same noise.

        Raises:
            ConfigError: no generator for a VAE that injects noise.
        """
        scales = self.decoder.noise_scales()
        if scales and generator is None:
            raise ConfigError("got no generator; expected one for a VAE that injects noise; pass generator")
        return tuple(
            torch.randn(height * y, width * x, generator=generator, device=generator.device if generator else None)
            for y, x in scales
        )

    def normalize(self, latent: Tensor) -> Tensor:
        """Raw latents (b, c, f, h, w) -> the latents of the transformer, in the dtype of `latent`."""
        mean, std = (s.to(latent)[:, None, None, None] for s in self._statistics())
        return (latent - mean).div_(std)

    def un_normalize(self, latent: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        mean, std = (s.to(latent)[:, None, None, None] for s in self._statistics())
        return (latent * std).add_(mean)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        return self.per_channel_statistics.mean, self.per_channel_statistics.std


def _check_channels(x: Tensor, channels: int, what: str) -> None:
    if x.ndim != 5 or x.shape[1] != channels or 0 in x.shape:
        raise ShapeError(
            f"got {what} of shape {tuple(x.shape)}; expected (batch, {channels}, frames, height, width), nothing "
            f"empty; give {what} made for this VAE"
        )


def _encoder_block(block: VAEBlock, width: int, config: VideoVAEConfig) -> tuple[nn.Module, int]:
    """The module of one entry of `encoder_blocks`, and the width of its output."""
    padding, out = config.spatial_padding_mode, width * block.multiplier
    match block.kind:
        case "res_x":
            return UNetMidBlock3D(width, block.num_layers, causal=True, padding=padding), width
        case "res_x_y":
            return ResnetBlock3D(width, out, causal=True, padding=padding), out
        case "compress_all" | "compress_space" | "compress_time":
            return CausalConv3d(width, width, causal=True, padding=padding, stride=block.stride), width
        case "compress_all_res" | "compress_space_res" | "compress_time_res":
            return SpaceToDepthDownsample(width, out, block.stride, padding=padding), out


def _decoder_block(block: VAEBlock, width: int, config: VideoVAEConfig) -> tuple[Layer, int]:
    """The module of one entry of `decoder_blocks`, and the width of its output."""
    padding, causal = config.spatial_padding_mode, config.causal_decoder
    out = width // block.multiplier
    match block.kind:
        case "res_x":
            layer = UNetMidBlock3D(
                width,
                block.num_layers,
                causal=causal,
                padding=padding,
                inject_noise=block.inject_noise,
                timestep_conditioning=config.timestep_conditioning,
            )
        case "res_x_y":
            layer = ResnetBlock3D(width, out, causal=causal, padding=padding, inject_noise=block.inject_noise)
        case "compress_all" | "compress_space" | "compress_time":
            layer = DepthToSpaceUpsample(
                width, out, block.stride, residual=block.residual, causal=causal, padding=padding
            )
        case _:
            raise ConfigError(
                f"got {block.kind!r} among decoder_blocks; expected res_x, res_x_y or compress_*; mend the config"
            )
    return layer, out

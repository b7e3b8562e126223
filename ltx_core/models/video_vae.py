"""The video VAE of LTX-Video: a causal encoder, and a decoder that also removes the last noise.

All three generations (0.9.0; 0.9.1 with timestep conditioning and injected noise; 0.9.5 and later) are block lists of
one architecture (Lightricks/LTX-Video, models/autoencoders/causal_video_autoencoder.py). Attribute names are the
released checkpoint's keys after the prefix `vae.`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import VAEBlock, VideoVAEConfig
from ..errors import ConfigError, ShapeError
from ..shapes import PixelShape
from .convolution import compute_dtype
from .vae_layers import (
    CausalConv3d,
    DepthToSpaceUpsample,
    Modulation,
    ResnetBlock3D,
    SpaceToDepthDownsample,
    Stage,
    Stream,
    TimeEmbedder,
    UNetMidBlock3D,
    norm_silu,
    run_stages,
    split_modulation,
)

LOGVAR_RANGE = (-30.0, 20.0)  # DiagonalGaussianDistribution, as the official and the diffusers VAE clamp it
STREAM_FRAMES = 4  # frames that one stage works on at once; fewer saves little, as layers keep two frames each anyway


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


class PerChannelStatistics(nn.Module):
    """What normalises latents. The names are the file's; its three further tensors are not used by anybody."""

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
        """pieces: (pixels (b, 3, f, h, w), whether they are the clip's last); see `run_stages`."""
        stages: list[Stage] = [self.conv_in, *self.down_blocks, self._finish]
        dtype = compute_dtype(self.conv_in.conv.weight)
        for moments in run_stages(stages, ((self._patchify(x.to(dtype)), last) for x, last in pieces), limit):
            moments = rearrange(moments, "b f h w c -> b c f h w")
            mean, logvar = moments[:, :-1], moments[:, -1:]
            yield Posterior(mean, logvar.expand_as(mean))

    def _patchify(self, x: Tensor) -> Tensor:
        # Within a patch the offset along the width is the slower one (causal_video_autoencoder.py, patchify).
        p = self.patch_size
        return rearrange(x, "b c f (h q) (w r) -> b f h w (c r q)", q=p, r=p)

    def _finish(self, x: Tensor, stream: Stream) -> Tensor:
        return self.conv_out(norm_silu(x, None), stream)


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
            self.timestep_scale_multiplier = nn.Parameter(torch.tensor(1000.0))
            self.last_time_embedder = TimeEmbedder(width * 2)
            self.last_scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(
        self,
        pieces: Iterable[tuple[Tensor, bool]],
        timestep: Tensor | None,
        noise: tuple[Tensor, ...],
        limit: int | None,
    ) -> Iterator[Tensor]:
        """pieces: (raw latents (b, c, f, h, w), whether they are the clip's last); see `run_stages`.

        timestep: (b,). noise: a map (h, w) per convolution that injects it, from `VideoVAE.draw_noise`.
        Yields pixels (b, 3, f, h, w).
        """
        scaled = None if timestep is None else timestep.float() * self.timestep_scale_multiplier
        dtype = compute_dtype(self.conv_in.conv.weight)
        maps = iter([noise_map.to(self.conv_in.conv.weight.device, dtype) for noise_map in noise])
        stages: list[Stage] = [self.conv_in]
        for block in self.up_blocks:
            if isinstance(block, UNetMidBlock3D):
                modulations = None if scaled is None else block.modulations(scaled)
                pairs = [(next(maps), next(maps)) for _ in block.res_blocks] if block.inject_noise else None
                stages.append(partial(block, modulations=modulations, noise=pairs))
            elif isinstance(block, ResnetBlock3D) and block.inject_noise:
                stages.append(partial(block, noise=(next(maps), next(maps))))
            else:
                stages.append(block)
        modulation = None if scaled is None else self._last_modulation(scaled)
        stages.append(partial(self._finish, modulation=modulation))
        inputs = ((rearrange(x.to(dtype), "b c f h w -> b f h w c"), last) for x, last in pieces)
        for frames in run_stages(stages, inputs, limit):
            yield rearrange(frames, "b f h w c -> b c f h w")

    def noise_scales(self) -> list[tuple[int, int]]:
        """For each noise map, in the order in which they are used: its cells per latent cell along (height, width)."""
        scales: list[tuple[int, int]] = []
        height = width = 1
        for block in self.up_blocks:
            if isinstance(block, DepthToSpaceUpsample):
                height, width = height * block.stride[1], width * block.stride[2]
            elif isinstance(block, UNetMidBlock3D) and block.inject_noise:
                scales += [(height, width)] * 2 * len(block.res_blocks)
            elif isinstance(block, ResnetBlock3D) and block.inject_noise:
                scales += [(height, width)] * 2
        return scales

    def _last_modulation(self, scaled_timestep: Tensor) -> Modulation:
        shift, scale = split_modulation(self.last_scale_shift_table, self.last_time_embedder(scaled_timestep))
        return 1 + scale, shift

    def _finish(self, x: Tensor, stream: Stream, modulation: Modulation | None) -> Tensor:
        x = self.conv_out(norm_silu(x, modulation), stream)
        p = self.patch_size
        return rearrange(x, "b f h w (c r q) -> b f (h q) (w r) c", q=p, r=p)


class VideoVAE(nn.Module):
    """Pixels in [-1, 1] to raw latents and back; `normalize` makes of these what the transformer works on."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)

    def encode(self, pixels: Tensor) -> Posterior:
        """Encode a whole clip.

        pixels: (b, 3, f, h, w) in [-1, 1], any float dtype. Returns raw latents in the `compute_dtype` of the weights.

        Raises:
            ShapeError: channels, frames or size that the VAE cannot have.
        """
        _check_channels(pixels, self.config.in_channels, "pixels")
        PixelShape(*pixels.shape[2:]).latent(self.config.scale_factors)
        (posterior,) = self.encoder([(pixels, True)], None)
        return posterior

    def stream_encode(self, chunks: Iterable[Tensor], *, limit: int = STREAM_FRAMES) -> Iterator[Posterior]:
        """Encode a clip that arrives in pieces (b, 3, any f, h, w): exactly `encode` of their concatenation.

        Yields posteriors of one or more latent frames as soon as they are known. limit: frames that one stage works on
        at once.

        Raises:
            ShapeError: as `encode`; a wrong number of frames is known only at the end.
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
        timestep: (b,) in [0, 1], how much noise the latent holds; given exactly to a VAE with timestep conditioning.
        generator: needed by a VAE that injects noise (0.9.1).
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
    ) -> Iterator[Tensor]:
        """`decode`, exactly, with frames leaving as they are finished and memory that does not grow with the clip.

        noise: from `draw_noise`. limit: frames that one stage works on at once.
        Yields pixels (b, 3, f, h', w'), f >= 1.
        """
        parts = latent.split(limit, dim=2)
        pieces = ((part, i == len(parts) - 1) for i, part in enumerate(parts))
        return self._decode(pieces, latent, timestep, noise, limit)

    def _decode(
        self,
        pieces: Iterable[tuple[Tensor, bool]],
        latent: Tensor,
        timestep: Tensor | None,
        noise: tuple[Tensor, ...],
        limit: int | None,
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
        return self.decoder(pieces, timestep, noise, limit)

    def draw_noise(self, height: int, width: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """The noise that the decoder injects into a clip of `height` x `width` latent cells, () if it injects none.

        One float32 map (h, w) per convolution that takes one, in order of use, shared by samples, channels and frames.
        Drawn once for the whole picture, so that pieces and tiles see the same noise.
        """
        scales = self.decoder.noise_scales()
        if scales and generator is None:
            raise ConfigError("got no generator; expected one for a VAE that injects noise; pass generator")
        return tuple(
            torch.randn(height * y, width * x, generator=generator, device=generator.device if generator else None)
            for y, x in scales
        )

    def normalize(self, latent: Tensor) -> Tensor:
        """Raw latents (b, c, f, h, w) -> what the transformer works on, in the dtype of `latent`."""
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
    """The module of one entry of `encoder_blocks` and the width of what leaves it."""
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


def _decoder_block(block: VAEBlock, width: int, config: VideoVAEConfig) -> tuple[nn.Module, int]:
    """The module of one entry of `decoder_blocks` and the width of what leaves it."""
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

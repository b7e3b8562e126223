"""Clips from trained models: `ltxkit sample`, `extend`, `reconstruct`, and the validations of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ShapeError
from ..models.text_encoder import TextEncoder
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import VideoVAE
from ..pipelines.condition import Conditions
from ..pipelines.passes import Pass
from ..pipelines.recipe import UNKNOWN
from ..pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ..pipelines.settings import ADAIN, Overrides, PassSettings, Settings
from ..pipelines.two_stage import Upscaling, upscale_latent
from ..placing.placement import DevicePlacement, host_on
from ..progress import Progress, silent
from ..sampling.conditioning import LatentCondition
from ..sampling.guidance import Guidance
from ..sampling.noise import SeededNoise, stream
from ..sampling.schedules import uniform
from ..shapes import PixelShape
from ..weights.build import load_transformer, load_upsampler, load_vae
from ..weights.bundled import find_run
from ..weights.text_encoder import load_text_encoder
from .checkpoints import find_export
from .losses import psnr, ssim
from .text import FrozenText, encode

DECODE_TIMESTEP = 0.05  # the noise level that the decoder is told; it removes noise up to 0.2


@dataclass(frozen=True, eq=False)
class Models:
    """The models that generate a clip. upscaler: for two stages."""

    transformer: LTXTransformer
    vae: VideoVAE
    text: TextEncoder | FrozenText
    upscaler: LatentUpsampler | None = None


def load_models(run: Path, upscaler: Path | None = None) -> Models:
    """The models of a training run, or of a folder with model.safetensors and text_encoder/.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    run = find_run(run)
    checkpoint = find_export(run, "model.safetensors")
    text = checkpoint.parent / "text_encoder"
    if not text.is_dir():
        raise CheckpointError(
            f"got {run} without text_encoder/; expected the one trained with the model; check the folder"
        )
    return Models(
        load_transformer(checkpoint, dtype=torch.float32)[0],
        load_vae(checkpoint, dtype=torch.float32),
        load_text_encoder(text, dtype=torch.float32),
        None
        if upscaler is None
        else load_upsampler(find_export(find_run(upscaler), "upscaler.safetensors"), dtype=torch.float32),
    )


class ClipGenerator:
    """Generates batches of clips with one set of models. All results are (b 3 f h w) float32 in [-1, 1] on the CPU."""

    def __init__(self, models: Models, fps: float, batch_size: int = 20) -> None:
        self.models, self.fps, self.batch_size = models, fps, batch_size
        self.device = next(models.transformer.parameters()).device
        self.scale = models.vae.config.scale_factors

    @torch.no_grad()
    def clips(
        self,
        prompts: Sequence[str],
        size: PixelShape,
        *,
        steps: int,
        guidance_scale: float,
        seed: int,
        given: Tensor | None = None,
        progress: Progress = silent,
    ) -> Tensor:
        """One clip per prompt; clip i has seed + i. given: first frames to keep, (b 3 f h w) with f = t*k + 1."""
        clips: list[Tensor] = []
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            first = None if given is None else given[part]
            latent = self.latents(
                prompts[part],
                size,
                steps=steps,
                guidance_scale=guidance_scale,
                seed=seed + start,
                given=first,
                progress=progress,
            )
            clips.append(self.decode(latent))
        return torch.cat(clips)

    @torch.no_grad()
    def latents(
        self,
        prompts: Sequence[str],
        size: PixelShape,
        *,
        steps: int,
        guidance_scale: float,
        seed: int,
        given: Tensor | None = None,
        start: tuple[Tensor, float] | None = None,
        progress: Progress = silent,
    ) -> Tensor:
        """Normalised latents (b c f h w). start: latents to start from, and the noise level they are raised to."""
        shape = (len(prompts), self.models.vae.config.latent_channels, *size.latent(self.scale))
        sigmas = uniform(steps)
        initial = torch.zeros(shape)
        if start is not None:
            initial, level = start
            sigmas = sigmas * level
        conditions = [] if given is None else [LatentCondition(self.encode(given), 0, 1.0)]
        said = PassSettings(sigmas=tuple(sigmas.tolist()), guidance=Guidance(scale=(guidance_scale,)))
        settings = Settings(UNKNOWN, Overrides(first=said))
        return sample(
            Pass.of(self.models.transformer, settings, "one", size.latent(self.scale).tokens),
            LatentClip(initial, self.scale, self.fps),
            Prompts(self._text(prompts), self._text([""]) if guidance_scale > 1 else None),
            noise=SeededNoise(seed),
            host=host_on(DevicePlacement(self.device), progress),
            conditions=Conditions(conditions),
        )

    def _text(self, prompts: Sequence[str]) -> EncodedPrompt:
        texts = encode(self.models.text, prompts, self.device)
        embeddings = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        mask = torch.zeros(embeddings.shape[:2], dtype=torch.long)
        for row, text in zip(mask, texts, strict=True):
            row[: len(text)] = 1
        return EncodedPrompt(embeddings, mask)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Clips -> normalised latents, posterior means."""
        vae = self.models.vae
        return vae.normalize(vae.encode(pixels.to(self.device)).mode().float()).cpu()

    @torch.no_grad()
    def decode(self, latent: Tensor, timestep: float = DECODE_TIMESTEP) -> Tensor:
        """Normalised latents -> clips."""
        vae = self.models.vae
        level = torch.full((len(latent),), timestep, device=self.device) if vae.config.timestep_conditioning else None
        rng = stream(0, "decode")  # for a VAE that injects noise
        raw = vae.un_normalize(latent.to(self.device))
        return vae.decode(raw, level, generator=rng).float().clamp(-1, 1).cpu()

    @torch.no_grad()
    def two_stage(
        self,
        prompts: Sequence[str],
        size: PixelShape,
        *,
        steps: int,
        guidance_scale: float,
        seed: int,
        refine_steps: int,
        refine_level: float,
    ) -> tuple[Tensor, Tensor]:
        """Clips of the first stage, and those of the second: upscaled to twice the height and width, and refined."""
        if self.models.upscaler is None:
            raise CheckpointError("got no upscaler; expected one for two stages; pass the upscaler's run")
        small, large = [], []
        larger = PixelShape(size.frames, size.height * 2, size.width * 2)
        for start in range(0, len(prompts), self.batch_size):
            part = prompts[start : start + self.batch_size]
            latent = self.latents(part, size, steps=steps, guidance_scale=guidance_scale, seed=seed + start)
            small.append(self.decode(latent))
            upscaling = Upscaling(self.models.upscaler, self.models.vae, ADAIN)
            up = upscale_latent(upscaling, latent, host=host_on(DevicePlacement(self.device)))
            refined = self.latents(
                part, larger, steps=refine_steps, guidance_scale=1.0, seed=seed + start, start=(up, refine_level)
            )
            large.append(self.decode(refined))
        return torch.cat(small), torch.cat(large)

    def extend(
        self, clip: Tensor, prompt: str, frames: int, *, overlap: int, steps: int, guidance_scale: float, seed: int
    ) -> Tensor:
        """A clip (3 f h w) and `frames` more, in windows that start with the last `overlap` (t*k + 1) frames so far."""
        rate = self.scale.frames
        if (overlap - 1) % rate or not 0 < overlap <= clip.shape[1]:
            raise ShapeError(
                f"got an overlap of {overlap} frames with a clip of {clip.shape[1]}; expected {rate}k+1, at most the "
                f"clip; use {max(1, (min(overlap, clip.shape[1]) - 1) // rate * rate + 1)}"
            )
        wanted = clip.shape[1] + frames
        window = clip.shape[1] if (clip.shape[1] - 1) % rate == 0 and clip.shape[1] > overlap else overlap + 2 * rate
        number = 0
        while clip.shape[1] < wanted:
            size = PixelShape(window, *clip.shape[2:])
            (window_clip,) = self.clips(
                [prompt],
                size,
                steps=steps,
                guidance_scale=guidance_scale,
                seed=seed + number,
                given=clip[None, :, -overlap:],
            )
            clip = torch.cat([clip, window_clip[:, overlap:]], dim=1)
            number += 1
        return clip[:, :wanted]


@dataclass(frozen=True, eq=False)
class Reconstructions:
    """Clips after the VAE, or after noising and denoising. psnr (dB) and ssim: per clip."""

    pixels: Tensor
    psnr: Tensor
    ssim: Tensor


@torch.no_grad()
def reconstruct(
    generator: ClipGenerator, pixels: Tensor, *, sigma: float, steps: int, prompts: Sequence[str], seed: int
) -> Reconstructions:
    """Clips (b 3 f h w) through the VAE, and for sigma > 0 through noise of that level (SDEdit, arXiv 2108.01073)."""
    latent = generator.encode(pixels)
    if sigma > 0:
        size = PixelShape(*pixels.shape[2:])
        latent = generator.latents(prompts, size, steps=steps, guidance_scale=1.0, seed=seed, start=(latent, sigma))
    output = generator.decode(latent, DECODE_TIMESTEP if sigma > 0 else 0.0)
    return Reconstructions(output, psnr(output, pixels), ssim(output, pixels))

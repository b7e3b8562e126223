"""Clips in batches, from a run or from models in training: `ltxkit sample`, `extend`, `reconstruct`, and validations.

The stages are those of `pipelines`; batches, and the text encoder of a run in training, are what is added here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import SchedulerConfig
from ..errors import CheckpointError, ConfigError
from ..host import Host
from ..models.text_encoder import TextEncoder
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import VideoVAE
from ..pipelines.condition import Condition, ConditioningItem, Conditions, Reference, crop_to
from ..pipelines.decode import decode
from ..pipelines.encode import encode_frames
from ..pipelines.long_video import LongSettings, plan_windows, sample_windows
from ..pipelines.passes import Pass, tokens_of_passes
from ..pipelines.recipe import UNKNOWN, recipe_for
from ..pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ..pipelines.settings import NO_OVERRIDES, Decoding, Overrides, PassSettings, Settings
from ..pipelines.text import encode_prompts
from ..pipelines.two_stage import Upscaling, generate_two_stage
from ..placing.devices import best_device
from ..progress import ProgressEvent, silent
from ..releases import Recipe
from ..sampling.conditioning import LatentItem, LatentReference
from ..sampling.guidance import Guidance
from ..sampling.noise import SeededNoise
from ..shapes import LatentShape, PixelShape
from ..values import check_frame_rate, check_number, check_seed, check_whole
from ..weights.build import load_upsampler, load_vae, open_models
from ..weights.bundled import find_run
from ..weights.lora import WeightedLoRA, load_lora
from ..weights.text_encoder import load_text_encoder
from .checkpoints import find_export
from .lora_run import LoRARun, find_lora_run
from .losses import psnr, ssim
from .models import SCHEDULER
from .text import FrozenText

VAE_ALONE = Decoding(timestep=0.0, noise_scale=0.0)  # of a latent without noise, to which none is added


class TrainedReference(LatentReference):
    """A reference for a model whose LoRA is in training, of which a pass knows nothing: it need not ask for one."""

    needs_lora: ClassVar[bool] = False


@dataclass(frozen=True, eq=False)
class Models:
    """The models that make a clip. upscaler: makes two passes.

    recipe, scheduler: of the checkpoint that the transformer comes from; the defaults are those of a new model. loras:
    that it has in every pass.
    """

    transformer: LTXTransformer
    vae: VideoVAE
    text: TextEncoder | FrozenText
    upscaler: LatentUpsampler | None = None
    recipe: Recipe = UNKNOWN
    scheduler: SchedulerConfig | None = SCHEDULER
    loras: tuple[WeightedLoRA, ...] = ()

    def passes(self, overrides: Overrides, size: PixelShape) -> list[Pass]:
        """The only pass at `size`, or the first and the second of two, the first at `size`."""
        grid = size.latent(self.vae.config.scale_factors)
        stages = tokens_of_passes(grid, two=self.upscaler is not None)
        settings = Settings(self.recipe, overrides)
        return [
            Pass.of(self.transformer, settings, which, count, loras=self.loras, scheduler=self.scheduler)
            for which, count in stages
        ]


@dataclass(frozen=True)
class ClipSettings:
    """What the clips of one call have in common.

    size: of the only pass, or of the first of two; the second has twice the height and width. fps: frames per second.
    seed: of the first clip; clip i has seed + i. overrides: of the recipe. batch_size: clips that are made at once.
    shown: the first frame of every clip, (1, h, w, 3) in [0, 1]. follows: the reference of every clip, for an IC-LoRA;
    references: one of its own for each, as normalised latents (clips c f h w). autocast: sample in bfloat16 on float32
    weights, as they are trained.
    """

    size: PixelShape
    fps: float
    seed: int = 0
    overrides: Overrides = NO_OVERRIDES
    batch_size: int = 20
    shown: Tensor | None = None
    follows: Reference | None = None
    references: Tensor | None = None
    autocast: bool = False

    def __post_init__(self) -> None:
        check_frame_rate("fps", self.fps)
        check_seed(self.seed)
        check_whole("batch_size", self.batch_size, 1, advice="pass the number of clips that are made at once")


def load_models(run: Path, upscaler: Path | None = None, *, host: Host) -> Models:
    """The models of a training run, or of a folder with model.safetensors and text_encoder/, float32. Of the run of a
    LoRA: its base as it is stored, with the LoRA.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    run = find_run(run)
    trained = find_lora_run(run)
    if trained is not None:
        if upscaler is not None:
            raise ConfigError("got an upscaler with the run of a LoRA; expected one pass; leave it out")
        return _with_lora(trained, host)
    checkpoint = find_export(run, "model.safetensors")
    folder = checkpoint.parent / "text_encoder"
    if not folder.is_dir():
        raise CheckpointError(
            f"got {run} without text_encoder/; expected the one trained with the model; check the folder"
        )
    large = None if upscaler is None else find_export(find_run(upscaler), "upscaler.safetensors")
    opened = open_models(checkpoint)
    transformer, info = opened.transformer(dtype=torch.float32, progress=host.progress)
    vae = opened.vae(dtype=torch.float32, progress=host.progress)
    text = load_text_encoder(folder, dtype=torch.float32, progress=host.progress)
    upsampler = None if large is None else load_upsampler(large, dtype=torch.float32, progress=host.progress)
    for note in info.notes:
        host.say(note)
    return Models(transformer, vae, text, upsampler, recipe_for(info.versions)[0], info.scheduler)


def _with_lora(run: LoRARun, host: Host) -> Models:
    checkpoint = run.initial if run.initial.is_file() else find_export(run.initial, "model.safetensors")
    opened = open_models(checkpoint, version=run.version)
    transformer, info = opened.transformer(progress=host.progress)
    vae_file = run.vae if run.vae.is_file() else find_export(run.vae, "vae.safetensors")
    vae = load_vae(vae_file, dtype=torch.float32, version=run.version)
    places = [] if run.tokenizer is None else [run.tokenizer]
    dtype = torch.float32 if best_device().type == "cpu" else None
    text = load_text_encoder(run.text_encoder, dtype=dtype, host_tokenizers=places, progress=host.progress)
    for note in info.notes:
        host.say(note)
    lora = WeightedLoRA(load_lora(run.lora), 1.0)
    return Models(transformer, vae, text, None, recipe_for(info.versions)[0], info.scheduler, (lora,))


@torch.no_grad()
def generate_clips(models: Models, prompts: Sequence[str], settings: ClipSettings, *, host: Host) -> Tensor:
    """One clip for each prompt, in two passes where there is an upscaler.

    Returns:
        (b 3 f h w) float32 in [-1, 1] on the CPU.

    Raises:
        ShapeError, ConfigError: a size or setting that cannot work.
    """
    decoding = Settings(models.recipe, settings.overrides).decoding("one" if models.upscaler is None else "second")
    clips: list[Tensor] = []
    for start in range(0, len(prompts), settings.batch_size):
        part = prompts[start : start + settings.batch_size]
        own = None if settings.references is None else settings.references[start : start + len(part)]
        portion = replace(settings, seed=settings.seed + start, references=own)
        with torch.autocast(_device_type(models), torch.bfloat16, enabled=settings.autocast):
            latent = _sample(models, part, portion, host)
        clips.append(_decode(models.vae, latent, decoding, portion.seed, host))
    return torch.cat(clips)


def _sample(models: Models, prompts: Sequence[str], settings: ClipSettings, host: Host) -> Tensor:
    """Normalised latents (b c f h w) of the last pass."""
    passes = models.passes(settings.overrides, settings.size)
    empty = LatentClip.empty(models.vae, settings.size, settings.fps)
    clip = replace(empty, latent=empty.latent.repeat(len(prompts), 1, 1, 1, 1))
    told = _prompts(models, prompts, guided=any(each.is_guided for each in passes), host=host)
    noise = SeededNoise(settings.seed)
    if models.upscaler is None:
        conditions = Conditions(_items(settings), models.vae)
        return sample(passes[0], clip, told, noise=noise, host=host, conditions=conditions)
    adain = Settings(models.recipe, settings.overrides).adain_factor
    upscaling = Upscaling(models.upscaler, models.vae, adain)
    return generate_two_stage(passes, clip, told, upscaling, noise=(noise, noise), host=host)


def _items(settings: ClipSettings) -> list[ConditioningItem | LatentItem]:
    items: list[ConditioningItem | LatentItem] = [] if settings.shown is None else [Condition(settings.shown)]
    if settings.follows is not None:
        items.append(settings.follows)
    if settings.references is not None:
        items.append(TrainedReference(settings.references))
    return items


def _device_type(models: Models) -> str:
    return next(models.transformer.parameters()).device.type


def _prompts(models: Models, prompts: Sequence[str], *, guided: bool, host: Host) -> Prompts:
    negative = _encoded(models.text, [models.recipe.negative_prompt], host) if guided else None
    return Prompts(_encoded(models.text, prompts, host), negative)


def _encoded(text: TextEncoder | FrozenText, prompts: Sequence[str], host: Host) -> EncodedPrompt:
    """The prompts as one batch, padded; each distinct one is encoded once."""
    if isinstance(text, FrozenText):
        rows = [embedding.float() for embedding in text.embeddings(prompts)]
    else:
        distinct = list(dict.fromkeys(prompts))
        encoded = dict(zip(distinct, encode_prompts(text, distinct, host=host), strict=True))
        rows = [encoded[prompt].embeddings[0] for prompt in prompts]
    lengths = torch.tensor([len(row) for row in rows])
    embeddings = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return EncodedPrompt(embeddings, torch.arange(embeddings.shape[1]) < lengths[:, None])


def _decode(vae: VideoVAE, latent: Tensor, decoding: Decoding, seed: int, host: Host) -> Tensor:
    """Latents (b c f h w) as clips (b 3 f h w) in [-1, 1]; progress counts clips."""
    host.progress(ProgressEvent("decode", 0, len(latent)))
    frames = decode(vae, latent, decoding, seed=seed, host=replace(host, progress=silent))
    host.progress(ProgressEvent("decode", len(latent), len(latent)))
    return rearrange(frames * 2 - 1, "b f h w c -> b c f h w")


@torch.no_grad()
def extend(
    models: Models, clip: Tensor, prompt: str, settings: ClipSettings, *, frames: int, overlap: int, host: Host
) -> Tensor:
    """A clip (f h w 3) in [0, 1], of any size, and `frames` more, as a long video that begins with the end of the clip.

    settings: size.frames is the length of a window. overlap: frames that each window repeats from the one before,
        t*k + 1.

    Returns:
        (f + frames, h, w, 3) float32 in [0, 1] on the CPU.

    Raises:
        ConfigError: an overlap that the VAE cannot have, or that is longer than the clip.
    """
    check_whole("frames", frames, 1, advice="pass the number of frames to add")
    if overlap > len(clip):
        raise ConfigError(
            f"got an overlap of {overlap} frames with a clip of {len(clip)}; expected at most the clip; "
            "shorten the overlap"
        )
    vae, scale = models.vae, models.vae.config.scale_factors
    shown = Condition(clip[-overlap:], resize="stretch", crf=0)
    asked = PixelShape(overlap + frames, *clip.shape[1:3])
    size = asked.padded(scale)
    long = LongSettings(size, settings.fps, settings.seed, settings.size.frames, overlap)
    plan_windows(long, scale.frames)
    window = PixelShape(settings.size.frames, size.height, size.width)
    (run_pass,) = replace(models, upscaler=None).passes(settings.overrides, window)
    decoding = Settings(models.recipe, settings.overrides).decoding("one")

    def decoded(latent: Tensor) -> Tensor:
        return decode(vae, latent, decoding, seed=settings.seed, host=host)[0]

    told = _prompts(models, [prompt], guided=run_pass.is_guided, host=host).by_name
    items = [shown.on_canvas(asked, size, host.say)]
    negative = told["negative"][0] if "negative" in told else None
    parts = sample_windows(run_pass, vae, told["positive"], negative, long, decode=decoded, host=host, items=items)
    longer = crop_to(decoded(torch.cat(list(parts), dim=2)), asked)
    return torch.cat([clip, longer[overlap:]])


def window_frames(clip: int, overlap: int, frames_per_latent: int) -> int:
    """Frames of a window that extends a clip: those of the clip, which the model was made for, where the VAE can have
    them and they are more than the overlap; otherwise two latent frames more than the overlap."""
    fits = clip % frames_per_latent == 1 % frames_per_latent and clip > overlap
    return clip if fits else overlap + 2 * frames_per_latent


@dataclass(frozen=True, eq=False)
class Reconstructions:
    """Clips (b 3 f h w) after the VAE, or after noising and denoising. psnr (dB) and ssim: per clip."""

    pixels: Tensor
    psnr: Tensor
    ssim: Tensor


@torch.no_grad()
def reconstruct(
    models: Models, pixels: Tensor, prompts: Sequence[str], settings: ClipSettings, *, sigma: float, host: Host
) -> Reconstructions:
    """Clips (b 3 f h w) through the VAE, and for sigma > 0 through noise of that level (SDEdit, arXiv 2108.01073).

    The noise is removed without guidance, by as many steps as a whole clip takes, with their levels times sigma.
    """
    check_number("sigma", sigma, 0, 1, advice="0 is the VAE alone")
    vae, scale = models.vae, models.vae.config.scale_factors
    quiet = replace(host, progress=silent)
    frames = rearrange((pixels + 1) / 2, "b c f h w -> b f h w c")
    latent = torch.cat([encode_frames(vae, clip, host=quiet) for clip in frames])
    decoding = VAE_ALONE
    if sigma > 0:
        plain = PassSettings(steps=settings.overrides.first.steps, guidance=Guidance())
        overrides = replace(settings.overrides, first=plain)
        (run_pass,) = replace(models, upscaler=None).passes(overrides, LatentShape(*latent.shape[2:]).pixels(scale))
        latent = sample(
            replace(run_pass, sigmas=run_pass.sigmas * sigma),
            LatentClip(latent, scale, settings.fps),
            Prompts(_encoded(models.text, prompts, host)),
            noise=SeededNoise(settings.seed),
            host=host,
        )
        decoding = Settings(models.recipe, overrides).decoding("one")
    output = _decode(vae, latent, decoding, settings.seed, host)
    return Reconstructions(output, psnr(output, pixels), ssim(output, pixels))

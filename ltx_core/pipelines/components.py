"""All of LTX-Video in one object: files in, clips out.

    ltx = Components.load("ltxv-2b-0.9.8-distilled.safetensors", "t5xxl_fp16.safetensors")
    ltx.generate("A lighthouse in a storm", width=768, height=512, frames=121, fps=24, seed=1).save("lighthouse.mp4")

Sampling follows the recipe of the recognised checkpoint (`presets`). Who wants more than a recipe calls the functions
that are called here: `text.encode_prompts`, `generate.sample`, `two_stage.generate_two_stage`, `decode`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import media
from ..errors import ConfigError
from ..memory.balanced import BalancedPlacement
from ..memory.placement import DevicePlacement
from ..models.text_encoder import TextEncoder
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import VideoVAE
from ..presets import PRESETS, Preset
from ..progress import Notes, Progress, log_note, silent
from ..sampling.noise import Noise, SeededNoise
from ..shapes import PixelShape
from ..weights.build import CheckpointInfo, load_transformer, load_upsampler, load_vae
from ..weights.bundled import find_model
from ..weights.lora import WeightedLoRA, match_lora
from ..weights.text_encoder import load_text_encoder
from .canvas import crop_chunks, on_canvas
from .condition import Condition, Reference, fit_frames
from .decode import decode_frames
from .generate import EncodedPrompt, sample
from .recipe import guidance_for, passes_for, recipe_for, sampler_for, sigmas_for, versions_with
from .text import encode_prompts
from .tiling import Tiling
from .two_stage import PassSettings, first_pass_size, generate_two_stage

SHEET_FRAMES = 8

Path_ = Path | str


@dataclass(frozen=True, eq=False)
class Components:
    """The models of one checkpoint, loaded and checked to belong together.

    recipe: the settings it was meant to be used with. sources: what each part was loaded from, by name.
    tiling: how clips are decoded; None: as the memory asks for. loras: applied to the transformer while it samples.
    """

    transformer: LTXTransformer
    vae: VideoVAE
    text_encoder: TextEncoder
    upscaler: LatentUpsampler | None
    info: CheckpointInfo
    recipe: Preset
    placement: DevicePlacement | BalancedPlacement
    sources: Mapping[str, str]
    tiling: Tiling | None = None
    loras: tuple[WeightedLoRA, ...] = ()

    @classmethod
    def load(
        cls,
        model: Path_,
        text_encoder: Path_,
        *,
        vae: Path_ | None = None,
        upscaler: Path_ | None = None,
        tokenizer: Path_ | None = None,
        version: str | None = None,
        dtype: torch.dtype | None = None,
        quantization: str | None = None,
        text_quantization: str | None = None,
        fp8_matmul: bool = False,
        loras: Sequence[WeightedLoRA] = (),
        settings: str | None = None,
        device: str | torch.device | Sequence[str | torch.device] | None = None,
        resident_blocks: int | None = None,
        tile: int | None = None,
        progress: Progress = silent,
        notes: Notes = log_note,
    ) -> Components:
        """Load from files or folders, or by its name the model that comes with the pack, "ltxkit-digits".

        model: transformer and VAE, or the transformer alone with `vae`. upscaler: makes two passes.
        tokenizer: `spiece.model` or `tokenizer.json`, where it is not found by itself.
        version: the released version, such as "13b-0.9.8-dev", where the file does not say.
        dtype: of all weights; None keeps the stored ones. device: where they run; None: the best there is;
            several: blocks of the transformer and the text encoder are divided among them, the rest is on the first.
        quantization, text_quantization, fp8_matmul: of transformer and text encoder, see `load_transformer`.
        loras: for the transformer. settings: the released version whose recipe is used. None: the model's, or the
            distilled one of a dev model with the distilled LoRA.
        resident_blocks: how many blocks of a transformer or text encoder stay there, the others being streamed; tile:
            latent cells of a side of the tiles to decode in. None: as `planning.plan` chooses.

        Raises:
            CheckpointError: a file is damaged, incomplete, or of another kind (named as what it is), or a LoRA is for
                another model.
            ConfigError: `version` has to be given, the parts do not belong together, or an argument cannot be.
        """
        model, text_encoder = find_model(model, "checkpoints"), find_model(text_encoder, "text_encoders")
        upscaler = find_model(upscaler, "latent_upscale_models") if upscaler else None
        vae = find_model(vae, "checkpoints") if vae else None
        if settings is not None and settings not in PRESETS:
            raise ConfigError(f"got settings {settings!r}; expected one of {', '.join(PRESETS)}")
        transformer, info = load_transformer(
            model, dtype=dtype, version=version, quantization=quantization, fp8_matmul=fp8_matmul, progress=progress
        )
        loaded_vae = load_vae(vae or model, dtype=dtype, version=version, progress=progress)
        loaded_upscaler = load_upsampler(upscaler, dtype=dtype, progress=progress) if upscaler else None
        encoder = load_text_encoder(
            text_encoder, dtype=dtype, quantization=text_quantization, tokenizer=tokenizer, progress=progress
        )
        _check_widths(transformer, loaded_vae, encoder, loaded_upscaler)
        matched = [
            f"{one.lora.path.name}: {match_lora(one.lora, transformer, allow_partial=one.allow_partial)}."
            for one in loras
        ]
        versions, distilled = versions_with(info.versions, loras) if settings is None else ((settings,), "")
        recipe, origin = recipe_for(versions)
        for note in filter(None, (*info.notes, *matched, distilled, origin)):
            notes(note)
        files = {"model": model, "vae": vae, "text_encoder": text_encoder, "upscaler": upscaler}
        return cls(
            transformer,
            loaded_vae,
            encoder,
            loaded_upscaler,
            info,
            recipe,
            BalancedPlacement(device)
            if isinstance(device, Sequence) and not isinstance(device, str)
            else DevicePlacement(device, resident_blocks=resident_blocks),
            {name: Path(path).name for name, path in files.items() if path},
            Tiling.square(tile),
            tuple(loras),
        )

    def generate(
        self,
        prompt: str,
        *,
        width: int,
        height: int,
        frames: int,
        fps: Fraction | float | None = None,
        negative_prompt: str | None = None,
        seed: int = 0,
        conditions: Sequence[Condition] = (),
        crf: int = 29,
        steps: int | None = None,
        guidance_scale: float | None = None,
        progress: Progress = silent,
        notes: Notes = log_note,
    ) -> Clip:
        """Make a clip, in two passes where there is an upscaler; decoded only when its frames are asked for.

        width, height, frames: of the result, any; what the VAE cannot have is padded and cut off again.
        fps, negative_prompt, steps, guidance_scale: None takes the recipe's; the last two are those of the first pass.
        conditions: pictures and clips to show, references to follow. crf: H.264 compression of the pictures and clips
            that say none, see `media.compress`.

        Raises:
            ShapeError, ConfigError: a size or setting that cannot work.
        """
        scale = self.vae.config.scale_factors
        asked = PixelShape(frames, height, width)
        rate = _rate(self.recipe.frame_rate if fps is None else fps)
        two = self.upscaler is not None
        size = first_pass_size(asked, scale) if two else asked.padded(scale)
        if not two and size != asked:
            notes(
                f"Made with {size.frames} frames of {size.width}x{size.height} pixels, and cut to the size asked for."
            )
        entries = passes_for(self.recipe, two=two, steps=steps, guidance_scale=guidance_scale)
        passes = [
            PassSettings(
                self.transformer,
                sigmas_for(entry, self.info.scheduler, size.latent(scale).tokens * 4**number),
                guidance_for(entry, self.recipe),
                sampler_for(self.recipe),
                self.loras,
            )
            for number, entry in enumerate(entries)
        ]
        if self.recipe.distilled and guidance_scale is not None and guidance_scale > 1:
            notes("The checkpoint is distilled: it was made to run at guidance scale 1, and anything above spoils it.")
        if any(scale > 1 for one in passes for scale in one.guidance.scale):
            negative_prompt = self.recipe.negative_prompt if negative_prompt is None else negative_prompt
        elif negative_prompt is not None:
            notes("The negative prompt has no effect: this recipe does not use guidance.")
            negative_prompt = None

        prompts = [prompt] if negative_prompt is None else [prompt, negative_prompt]
        encoded = encode_prompts(self.text_encoder, prompts, placement=self.placement, progress=progress, notes=notes)
        canvas = PixelShape(size.frames, asked.height, asked.width) if two else size
        latent = self._sample(
            passes,
            encoded[0],
            encoded[1] if len(encoded) > 1 else None,
            [on_canvas(_prepared(condition, crf), asked, canvas, notes) for condition in conditions],
            size=size,
            fps=float(rate),
            noise=SeededNoise(seed),
            progress=progress,
            notes=notes,
        )
        settings = {
            **self.sources,
            "loras": [{"file": one.lora.path.name, "strength": one.strength} for one in self.loras],
            "versions": list(self.info.versions),
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "width": width,
            "height": height,
            "frames": frames,
            "fps": str(rate),
            "seed": seed,
            "conditions": [
                {
                    "kind": type(one).__name__.lower(),
                    "frame": one.frame,
                    "frames": len(one.frames),
                    "strength": one.strength,
                }
                for one in conditions
            ],
            "crf": crf,
            "passes": [{"sigmas": one.sigmas.tolist(), "guidance": asdict(one.guidance)} for one in passes],
            "tone_map_compression_ratio": entries[-1].tone_map_compression_ratio,
            "decode_timestep": self.recipe.decode_timestep,
            "decode_noise_scale": self.recipe.decode_noise_scale,
        }
        return Clip(latent, asked, rate, settings, self, seed)

    def _sample(
        self,
        passes: Sequence[PassSettings],
        positive: EncodedPrompt,
        negative: EncodedPrompt | None,
        conditions: Sequence[Condition],
        *,
        size: PixelShape,
        fps: float,
        noise: Noise,
        progress: Progress,
        notes: Notes,
    ) -> Tensor:
        """One pass at `size`, or two of which the first is."""
        if self.upscaler is not None:
            return generate_two_stage(
                passes[0],
                passes[1],
                self.upscaler,
                self.vae,
                positive,
                negative,
                size=size,
                fps=fps,
                noise=(noise, noise),
                placement=self.placement,
                conditions=conditions,
                progress=progress,
                notes=notes,
            )
        scale = self.vae.config.scale_factors
        return sample(
            self.transformer,
            torch.zeros(1, self.vae.config.latent_channels, *size.latent(scale)),
            positive,
            negative,
            sigmas=passes[0].sigmas,
            noise=noise,
            fps=fps,
            scale=scale,
            placement=self.placement,
            guidance=passes[0].guidance,
            settings=passes[0].sampler,
            loras=passes[0].loras,
            conditions=conditions,
            vae=self.vae,
            progress=progress,
            notes=notes,
        )


@dataclass(frozen=True, eq=False)
class Clip:
    """A finished latent, and how to make frames of it.

    latent: (1 c f h w) float32 on the CPU, normalised.
    size, fps: what was asked for; frames come out in exactly this size.
    settings: everything that the clip was made with, as JSON values; goes into the metadata of the file.
    """

    latent: Tensor
    size: PixelShape
    fps: Fraction
    settings: Mapping[str, Any]
    components: Components
    seed: int

    def frames(self, progress: Progress = silent) -> Iterator[Tensor]:
        """Decoded frames (f h w 3) float32 in [0, 1] on the CPU, a few at a time; the same ones at every call."""
        made_by = self.components
        decoded = decode_frames(
            made_by.vae,
            self.latent,
            decode_timestep=made_by.recipe.decode_timestep,
            decode_noise_scale=made_by.recipe.decode_noise_scale,
            seed=self.seed,
            placement=made_by.placement,
            tone_map_compression_ratio=self.settings["tone_map_compression_ratio"],
            tiling=made_by.tiling,
            memory=made_by.placement.spare_memory(made_by.vae.decoder),
            progress=progress,
        )
        if made_by.upscaler is not None:  # the second pass has a size of its own
            decoded = (fit_frames(frames, self.size.height, self.size.width, "stretch") for frames in decoded)
        return crop_chunks(decoded, self.size)

    def save(self, path: Path_, *, contact_sheet: Path_ | None = None, progress: Progress = silent) -> None:
        """Decode into an mp4, frame by frame. contact_sheet: also some frames as one picture.

        Raises:
            OSError: the disk is full or the folder cannot be written; nothing is left then.
        """
        shown = {round(i * (self.size.frames - 1) / (SHEET_FRAMES - 1)) for i in range(SHEET_FRAMES)}
        kept: list[Tensor] = []

        def chunks() -> Iterator[Tensor]:
            count = 0
            for chunk in self.frames(progress):
                kept.extend(frame for index, frame in enumerate(chunk, count) if index in shown)
                count += len(chunk)
                yield chunk

        media.write_video(Path(path), chunks(), fps=self.fps, metadata={"ltxkit": self.settings})
        if contact_sheet is not None:
            media.write_image(Path(contact_sheet), media.contact_sheet(torch.stack(kept)), {"ltxkit": self.settings})

    def save_latent(self, path: Path_) -> None:
        """The latent as a safetensors file that ComfyUI's Load Latent reads. Raises OSError as `save`."""
        from safetensors.torch import save_file

        tensors = {"latent_tensor": self.latent, "latent_format_version_0": torch.tensor([])}
        with media.replacing(Path(path)) as temporary:
            save_file(tensors, temporary, {"ltxkit": json.dumps(self.settings)})


def _prepared(condition: Condition, crf: int) -> Condition:
    """The condition with three channels, and with a compression: its own if it has one; a reference has none."""
    crf = 0 if isinstance(condition, Reference) else condition.crf or crf
    return replace(condition, frames=media.rgb_frames(condition.frames), crf=crf)


def _rate(fps: Fraction | float) -> Fraction:
    rate = Fraction(fps).limit_denominator(1001)
    if rate <= 0:
        raise ConfigError(f"got {fps} frames per second; expected a positive rate; 24, 25 and 30 are usual")
    return rate


def _check_widths(
    transformer: LTXTransformer, vae: VideoVAE, encoder: TextEncoder, upscaler: LatentUpsampler | None
) -> None:
    caption, latent = transformer.config.caption_channels, transformer.config.in_channels
    if encoder.config.d_model != caption:
        raise ConfigError(
            f"got a text encoder of width {encoder.config.d_model}; expected {caption}, which the transformer reads; "
            "use T5 v1.1 XXL, the text encoder of LTX-Video"
        )
    if vae.config.latent_channels != latent:
        raise ConfigError(
            f"got a VAE with {vae.config.latent_channels} latent channels; expected {latent}, as the transformer has; "
            "use the VAE of the same checkpoint"
        )
    if upscaler is not None and upscaler.config.in_channels != latent:
        raise ConfigError(
            f"got an upscaler for {upscaler.config.in_channels} latent channels; expected {latent}; "
            "use the upscaler of this model family"
        )
    if upscaler is not None and not upscaler.config.spatial_upsample:
        raise ConfigError(
            "got a temporal upscaler; expected a spatial one for two passes; "
            "use a file such as ltxv-spatial-upscaler-0.9.8.safetensors"
        )

"""All of LTX-Video in one object: files in, clips out.

    ltx = Components.load("ltxv-2b-0.9.8-distilled.safetensors", "t5xxl_fp16.safetensors")
    ltx.generate("A lighthouse in a storm", width=768, height=512, frames=121, fps=24, seed=1).save("lighthouse.mp4")

Sampling follows the recipe of the recognised checkpoint (`releases`). For more than a recipe, call the functions that
this module calls: `text.encode_prompts`, `sample.sample`, `two_stage.generate_two_stage`, `decode`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import media
from ..budget.tiling import Tiling
from ..cache import cache_folder
from ..errors import ConfigError
from ..files import PICTURES, VIDEOS, check_output, whole
from ..kernels.choice import parse_kernels
from ..kernels.here import kernels_here
from ..models.text_encoder import TextEncoder
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import VideoVAE
from ..placing.balanced import BalancedPlacement
from ..placing.devices import chosen_device, clear_of_memory
from ..placing.placement import DevicePlacement, host_on
from ..placing.readahead import ReadAhead
from ..progress import Notes, Progress, doubt, log_note, silent
from ..quant.registry import QUANTIZATION_NAMES
from ..releases import RELEASES, Recipe
from ..sampling.noise import SeededNoise
from ..shapes import PixelShape
from ..values import check_choice, check_crf, check_frame_rate, check_kind, check_seed, check_text, shown
from ..weights.build import CheckpointInfo, OpenFiles, mixed_generations, open_files
from ..weights.bundled import find_model
from ..weights.lora import WeightedLoRA, match_lora
from ..weights.text_encoder import text_encoder_from
from .condition import ConditioningItem, Conditions, crop_chunks
from .decode import decode_frames
from .dry_run import Outline, check_fits
from .overlap import used_beside
from .passes import Pass, tokens_of_passes
from .prompt_cache import PromptCache, prompts_of
from .recipe import check_recipe, recipe_for, versions_with
from .sample import LatentClip, Prompts, sample
from .settings import NO_OVERRIDES, Decoding, Overrides, Settings
from .text import encode_prompts
from .two_stage import Upscaling, check_upscalable, first_pass_size, generate_two_stage

SHEET_FRAMES = 8
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
DEFAULT_CRF = 29  # Lightricks/LTX-Video, inference.py

Path_ = Path | str


@dataclass(frozen=True, eq=False)
class Components:
    """The models of one checkpoint, loaded and checked to belong together.

    recipe: the settings that the checkpoint was made for. sources: the name of each part's file.
    tiling: how clips are decoded; None: chosen to fit the memory. loras: applied to the transformer while it samples.
    prompts: those that are encoded already; None: each is encoded every time.
    """

    transformer: LTXTransformer
    vae: VideoVAE
    text_encoder: TextEncoder
    upscaler: LatentUpsampler | None
    info: CheckpointInfo
    recipe: Recipe
    placement: DevicePlacement | BalancedPlacement
    sources: Mapping[str, str]
    tiling: Tiling | None = None
    loras: tuple[WeightedLoRA, ...] = ()
    prompts: PromptCache | None = None

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
        kernels: str | None = None,
        keep: bool | None = None,
        cache: bool | None = None,
        opened: OpenFiles | None = None,
        progress: Progress = silent,
        notes: Notes = log_note,
    ) -> Components:
        """Load from files or folders, or by its name, "ltxkit-digits", the model that comes with the pack.

        model: transformer and VAE, or the transformer alone with `vae`. upscaler: makes two passes.
        tokenizer: `spiece.model` or `tokenizer.json`, if it is in none of the usual places.
        version: the released version, such as "13b-0.9.8-dev", if the file does not state it.
        dtype: of all weights; None: the stored dtypes. device: where they run; None: the best available;
            several: blocks of the transformer and the text encoder are divided among them, the rest is on the first.
        quantization, text_quantization, fp8_matmul: of transformer and text encoder, see `load_transformer`.
        loras: for the transformer. settings: the released version whose recipe is used. None: the model's, or for a dev
            model with the distilled LoRA that of the distilled model.
        resident_blocks: how many blocks of a transformer or text encoder stay on the device; the others are streamed.
            tile: side of the decoder's tiles in latent cells. None: as `dry_run.plan` chooses.
        kernels: by which a CPU computes, as `kernels.choice.parse_kernels`. None: what was measured on this machine, or
            what LTXKIT_KERNELS says.
        keep: models stay on the device between stages and clips. None: those that fit beside what runs. False: none.
            True: all that are not streamed, and what no longer fits beside them is streamed. See `release`.
        cache: encoded prompts are kept, in memory and in the user's cache folder, so that the text encoder is read only
            for a new one; bit-equal to encoding them. None: unless the environment has LTXKIT_CACHE=off.
        opened: the same files, by `open_files`, if they are open already.

        The text encoder's file is checked now and read when a prompt needs it.

        Raises:
            CheckpointError: a file is damaged, incomplete, or of another kind (which the message names), or a LoRA is
                for another model.
            ConfigError: `version` is required, the parts do not belong together, or an argument is not valid.
        """
        placement = _placement(device, resident_blocks, keep, kernels, notes)
        tiling = Tiling.square(tile)
        _check_choices(dtype, (quantization, text_quantization), version, settings)
        if cache is not None:
            check_kind("cache", cache, bool)
        model, text_encoder = find_model(model, "checkpoints"), find_model(text_encoder, "text_encoders")
        upscaler = find_model(upscaler, "latent_upscale_models") if upscaler else None
        vae = find_model(vae, "checkpoints") if vae else None
        files = opened or open_files(model, text_encoder, vae=vae, upscaler=upscaler, version=version)
        transformer, info = files.model.transformer(
            dtype=dtype, quantization=quantization, fp8_matmul=fp8_matmul, progress=progress
        )
        loaded_vae = files.vae.vae(dtype=dtype, progress=progress)
        loaded_upscaler = files.upscaler.upscaler(dtype=dtype, progress=progress) if files.upscaler else None
        if files.text_encoder is None:
            raise ConfigError(
                "got no text encoder; expected its file or folder, such as t5xxl_fp16.safetensors; pass it"
            )
        encoder = text_encoder_from(
            files.text_encoder, dtype=dtype, quantization=text_quantization, tokenizer=tokenizer, when_needed=True
        )
        _check_widths(transformer, loaded_vae, encoder, loaded_upscaler)
        matched = [
            f"{item.lora.path.name}: {match_lora(item.lora, transformer, allow_partial=item.allow_partial)}."
            for item in loras
        ]
        chosen, option = (version, "version") if settings is None else (settings, "settings")
        if chosen is not None:
            check_recipe(chosen, transformer.config.num_layers, option)
        versions, distilled = versions_with(info.versions, loras) if settings is None else ((settings,), "")
        recipe, origin = recipe_for(versions)
        for note in filter(None, (*matched, distilled, origin if len(versions) == 1 else "")):
            notes(note)
        mixed = mixed_generations(files.model, files.vae)
        for note in filter(None, (*info.notes, *encoder.notes, mixed, origin if len(versions) != 1 else "")):
            doubt(note, notes)
        prompts = None
        if cache or (cache is None and cache_folder() is not None):
            prompts = prompts_of(
                files.text_encoder,
                encoder.config,
                dtype=dtype,
                quantization=text_quantization,
                device=placement.device,
                kernels=placement.kernels_of(encoder.outline),
            )
        named = {"model": model, "vae": vae, "text_encoder": text_encoder, "upscaler": upscaler}
        return cls(
            transformer,
            loaded_vae,
            encoder,
            loaded_upscaler,
            info,
            recipe,
            placement,
            {name: Path(path).name for name, path in named.items() if path},
            tiling,
            tuple(loras),
            prompts,
        )

    def release(self) -> None:
        """Take every model off the device; the next clip puts there what it needs."""
        self.placement.release_all()

    @clear_of_memory("this clip")
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
        conditions: Sequence[ConditioningItem] = (),
        crf: int = DEFAULT_CRF,
        steps: int | None = None,
        guidance_scale: float | None = None,
        settings: Overrides = NO_OVERRIDES,
        progress: Progress = silent,
        notes: Notes = log_note,
    ) -> Clip:
        """Make a clip, in two passes if there is an upscaler. It is decoded only when its frames are read.

        width, height, frames: of the result, any; a size that the VAE cannot have is padded, and cropped again.
        fps, negative_prompt, steps, guidance_scale: None: the recipe's. The last two are short forms of the first
            pass's settings. settings: every override of the recipe.
        conditions: pictures and clips to show, references to follow. crf: H.264 compression of pictures and clips
            without a value of their own, see `media.compress`.

        Raises:
            ShapeError, ConfigError: a size or setting that cannot work.
        """
        host = host_on(self.placement, progress, notes)
        check_text("prompt", prompt)
        if negative_prompt is not None:
            check_text("negative_prompt", negative_prompt)
        check_seed(seed)
        check_crf(crf)
        for item in conditions:
            check_kind("conditions", item, ConditioningItem)
        check_kind("settings", settings, Overrides)
        settings = _with_short_forms(settings, steps, guidance_scale)
        asked = PixelShape.asked(frames, height, width)
        rate = _rate(self.recipe.frame_rate if fps is None else fps)
        size = self._size(asked, notes)
        all_settings = Settings(self.recipe, settings)
        passes = self._passes(all_settings, size)
        for run_pass in passes:
            for remark in run_pass.remarks(self.recipe):
                notes(remark)
        if isinstance(self.placement, DevicePlacement):
            encoder = (self.text_encoder.outline, self.text_encoder.config)
            kernels = self.placement.kernels
            models = Outline(self.transformer, self.vae, self.info, encoder, self.upscaler, kernels=kernels)
            check_fits(models, asked, self.placement.device)
        negative_prompt = self._negative(passes, negative_prompt, notes)

        texts = [prompt] if negative_prompt is None else [prompt, negative_prompt]
        canvas = size if self.upscaler is None else PixelShape(size.frames, asked.height, asked.width)
        said: list[str] = []

        def prepare() -> tuple[list[ConditioningItem], list[ConditioningItem]]:
            prepared = [item.prepared(crf) for item in conditions]
            return prepared, [item.on_canvas(asked, canvas, said.append) for item in prepared]

        # The transformer comes from the disk, and pictures are compressed and resized, while the text is encoded.
        with ReadAhead([self.transformer, self.vae]), ThreadPoolExecutor(1, "ltxkit conditions") as beside:
            preparing = beside.submit(prepare)
            prompts = Prompts(*encode_prompts(self.text_encoder, texts, host=host, kept=self.prompts))
            prepared, on_canvas = preparing.result()
        for note in said:
            notes(note)
        placed = Conditions(on_canvas, self.vae)
        clip, noise = LatentClip.empty(self.vae, size, float(rate)), SeededNoise(seed)
        if self.upscaler is None:
            latent = sample(passes[0], clip, prompts, noise=noise, host=host, conditions=placed)
        else:
            upscaling = Upscaling(self.upscaler, self.vae, all_settings.adain_factor)
            latent = generate_two_stage(
                passes, clip, prompts, upscaling, noise=(noise, noise), host=host, conditions=placed
            )
        decoding = all_settings.decoding("one" if self.upscaler is None else "second")
        record = {
            **self._record(passes, decoding),
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "width": width,
            "height": height,
            "frames": frames,
            "fps": str(rate),
            "seed": seed,
            "conditions": [item.describe() for item in prepared],
            "crf": crf,
            "settings": settings.to_json(),
        }
        return Clip(latent, asked, rate, record, self._decoder(decoding, asked, seed))

    def _record(self, passes: Sequence[Pass], decoding: Decoding) -> dict[str, Any]:
        """The models and the passes of a run, as JSON values."""
        return {
            **self.sources,
            **self._computing(),
            "loras": [{"file": item.lora.path.name, "strength": item.strength} for item in self.loras],
            "versions": list(self.info.versions),
            "passes": [{"sigmas": each.sigmas.tolist(), "guidance": asdict(each.guidance)} for each in passes],
            "tone_map_compression_ratio": decoding.tone_map,
            "decode_timestep": decoding.timestep,
            "decode_noise_scale": decoding.noise_scale,
        }

    def _computing(self) -> dict[str, Any]:
        """By which kernels a CPU makes the clip; nothing on other devices, and where nothing was chosen."""
        kernels = self.placement.kernels
        return {} if kernels is None or not kernels.origin else {"kernels": kernels.to_json()}

    def _size(self, asked: PixelShape, notes: Notes) -> PixelShape:
        """The size of the first pass, or of the only one."""
        scale = self.vae.config.scale_factors
        if self.upscaler is not None:
            size = first_pass_size(asked, scale)
            check_upscalable(self.upscaler, size.latent(scale))
            return size
        size = asked.padded(scale)
        if size != asked:
            notes(f"Made with {size.frames} frames of {size.width}x{size.height} pixels, then cropped to your size.")
        return size

    def _passes(self, settings: Settings, size: PixelShape) -> list[Pass]:
        grid = size.latent(self.vae.config.scale_factors)
        stages = tokens_of_passes(grid, two=self.upscaler is not None)
        return [
            Pass.of(self.transformer, settings, which, count, scheduler=self.info.scheduler, loras=self.loras)
            for which, count in stages
        ]

    def _negative(self, passes: Sequence[Pass], asked: str | None, notes: Notes) -> str | None:
        """The negative prompt, if a pass needs one."""
        if any(each.is_guided for each in passes):
            return self.recipe.negative_prompt if asked is None else asked
        if asked is not None:
            notes("The negative prompt has no effect: this recipe does not use guidance.")
        return None

    def _decoder(self, decoding: Decoding, asked: PixelShape, seed: int) -> Decoder:
        def decoded(latent: Tensor, progress: Progress) -> Iterator[Tensor]:
            frames = decode_frames(
                self.vae,
                latent,
                decoding,
                seed=seed,
                host=host_on(self.placement, progress),
                tiling=self.tiling,
            )
            if self.upscaler is not None:  # the second pass has a size of its own
                frames = (media.resize(chunk, asked.height, asked.width, "stretch") for chunk in frames)
            return crop_chunks(frames, asked)

        return decoded


Decoder = Callable[[Tensor, Progress], Iterator[Tensor]]
"""(latent (1 c f h w), progress) -> frames (f h w 3) float32 in [0, 1] on the CPU, a few at a time."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A finished latent, and its decoder.

    latent: (1 c f h w) float32 on the CPU, normalised.
    size, fps: as requested; frames have exactly this size.
    settings: everything that the clip was made with, as JSON values, for the metadata of the file.
    """

    latent: Tensor
    size: PixelShape
    fps: Fraction
    settings: Mapping[str, Any]
    decoder: Decoder

    def frames(self, progress: Progress = silent) -> Iterator[Tensor]:
        """Decoded frames (f h w 3) float32 in [0, 1] on the CPU, a few at a time; equal at every call."""
        return self.decoder(self.latent, progress)

    @clear_of_memory("decoding this clip")
    def save(
        self,
        path: Path_,
        *,
        contact_sheet: Path_ | None = None,
        sound: media.Sound | Path_ | None = None,
        sound_codec: str = "aac",
        progress: Progress = silent,
    ) -> None:
        """Decode into an mp4, frame by frame. contact_sheet: where to save some of the frames as one picture.

        sound: heard from the first frame on, cut to the clip or followed by silence: a `media.Sound`, or the video
            whose sound it is. sound_codec: one of `media.SOUND_CODECS`.

        Raises:
            ConfigError: a name that cannot be written, or a sound that cannot be read, before anything is decoded.
            OSError: the disk is full; no partial file remains.
        """
        check_output(path, VIDEOS)
        check_choice("sound_codec", sound_codec, media.SOUND_CODECS)
        if isinstance(sound, str | Path):
            sound = media.read_sound(Path(sound), seconds=self.size.frames / self.fps)
        elif sound is not None:
            check_kind("sound", sound, media.Sound)
        if contact_sheet is not None:
            check_output(contact_sheet, PICTURES)
        sheet_numbers = {round(i * (self.size.frames - 1) / (SHEET_FRAMES - 1)) for i in range(SHEET_FRAMES)}
        sheet_frames: list[Tensor] = []

        def chunks() -> Iterator[Tensor]:
            count = 0
            for chunk in self.frames(progress):
                sheet_frames.extend(frame for index, frame in enumerate(chunk, count) if index in sheet_numbers)
                count += len(chunk)
                yield chunk

        def write(frames: Iterator[Tensor]) -> None:
            media.write_video(
                Path(path),
                frames,
                fps=self.fps,
                metadata={"ltxkit": self.settings},
                sound=sound,
                sound_codec=sound_codec,
            )

        used_beside(chunks(), write)
        if contact_sheet is not None:
            sheet = media.contact_sheet(torch.stack(sheet_frames))
            media.write_image(Path(contact_sheet), sheet, {"ltxkit": self.settings})

    def save_latent(self, path: Path_) -> None:
        """The latent as a safetensors file that ComfyUI's Load Latent reads. Raises as `save` does."""
        from safetensors.torch import save_file

        check_output(path)
        tensors = {"latent_tensor": self.latent, "latent_format_version_0": torch.tensor([])}
        with whole(Path(path)) as temporary:
            save_file(tensors, temporary, {"ltxkit": json.dumps(self.settings)})


def _with_short_forms(settings: Overrides, steps: int | None, guidance_scale: float | None) -> Overrides:
    first = settings.first
    if steps is not None:
        first = replace(first, steps=steps)
    if guidance_scale is not None:
        first = replace(first, guidance_scale=guidance_scale)
    return replace(settings, first=first)


def _rate(fps: Fraction | float) -> Fraction:
    check_frame_rate("fps", fps)
    rate = Fraction(fps).limit_denominator(1001)
    check_frame_rate("fps", rate)  # which the rounding may have made 0
    return rate


def _placement(
    device: Any, resident_blocks: int | None, keep: bool | None, kernels: str | None, notes: Notes
) -> DevicePlacement | BalancedPlacement:
    """Raises ConfigError: a device that this machine does not have, a number of blocks below 0, or no such kernels."""
    if keep is not None:
        check_kind("keep", keep, bool)
    if kernels is not None:
        parse_kernels(kernels, "asked for")  # whatever the device is
    if isinstance(device, Sequence) and not isinstance(device, str):
        return BalancedPlacement([chosen_device(each) for each in device], keep=keep)
    chosen = chosen_device(device)
    if chosen.type != "cpu":
        return DevicePlacement(chosen, resident_blocks=resident_blocks, keep=keep)
    chosen_kernels = kernels_here(kernels, notes)
    if chosen_kernels.origin:
        notes(f"On the CPU: {chosen_kernels.in_words()} ({chosen_kernels.origin}).")
    return DevicePlacement(chosen, resident_blocks=resident_blocks, keep=keep, kernels=chosen_kernels)


def _check_choices(dtype: Any, quantizations: Sequence[str | None], version: str | None, settings: str | None) -> None:
    """Raises ConfigError: a name that does not exist, or a type in which no model works."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(
            f"got dtype {shown(dtype)}; expected {', '.join(map(str, DTYPES))} or None; for fewer bits use quantization"
        )
    for name in quantizations:
        if name is not None:
            check_choice("quantization", name, QUANTIZATION_NAMES)
    for option, name in (("version", version), ("settings", settings)):
        if name is not None:
            check_choice(option, name, RELEASES)


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

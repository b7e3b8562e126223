"""The transformer's training: one step of `ltxkit train`, for whole models and for LoRA.

Source: LTX-Video paper (arXiv 2501.00103), sections 2.2 to 2.4 (rectified flow, shifted logit-normal levels, first
frames as conditions with their own timestep).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import SchedulerConfig
from ..errors import ConfigError
from ..main_memory import swap_memory
from ..media import as_frames, read_image, resize, rgb_frames
from ..models.text_encoder import TextEncoder
from ..models.transformer import LTXTransformer
from ..models.video_vae import VideoVAE
from ..pipelines.recipe import UNKNOWN, recipe_for
from ..pipelines.settings import Overrides, PassSettings
from ..placing.compiling import compile_blocks
from ..placing.placement import DevicePlacement, host_on
from ..placing.swapping import SwappedBlocks
from ..progress import Notes, doubt, log_note
from ..releases import Recipe
from ..sampling.noise import initialised, stream
from ..sampling.patchify import Coordinates, patchify
from ..shapes import PixelShape
from ..weights.build import Opened, open_models
from ..weights.header_config import RELEASE_KEY
from ..weights.text_encoder import load_text_encoder
from .agreement import check_clips
from .checkpoints import checkpoint_file, latest_checkpoint
from .conditions import ClipConditions, Drawn, Tokens, companion_paths
from .config import HoldOut, TransformerTraining
from .data import Source
from .datasets.precomputed import LatentFormat
from .distributed import World, gathered, is_sharded, sharded_after, synchronised
from .encoded_cache import EncodedCache
from .encoding import ClipEncoder
from .export_metadata import export_metadata
from .flow import Draws, Flow, draw
from .folder import VideoFolder
from .forecast import card_of, check_training_fits, fitting_plan
from .generate import ClipSettings, Models, generate_clips
from .latents import EncodedClips, LatentCache, Latents
from .loop import log_values
from .lora import LoRALayers, save_lora
from .models import (
    SCHEDULER,
    Base,
    copied,
    load_tensors,
    open_vae,
    restart,
    save_checkpoint_file,
    tensors_of,
    transformer_config,
)
from .offload import offloaded
from .optimize import Updater, autocast
from .pictures import save_clips
from .sources import open_sources
from .stored_latents import check_stored_latents
from .text import TOKENIZER, FrozenText, encode, make_text_encoder, save_text_encoder


class TransformerTask:
    """A transformer with a text encoder, trained too or frozen; or LoRA layers on a frozen transformer."""

    def __init__(self, config: TransformerTraining, world: World, notes: Notes = log_note) -> None:
        self.config, self.world = config, world
        world.share(config.optimization.batch_size, config.optimization.accumulation)
        resident = config.optimization.resident_blocks
        if resident is not None and world.size > 1:
            raise ConfigError(
                f"got resident_blocks {resident} in {world.size} processes; expected one, which holds all "
                "weights; leave resident_blocks out, or use one process"
            )
        # Before anything but headers is read.
        self.plan = fitting_plan(config, card_of(world.device), processes=world.size, device=world.device)
        for line in self.plan.lines():
            notes(line)
        check_training_fits(self.plan, swap_memory() if world.device.type == "cpu" else 0)
        self.vae = self._open_vae()
        self.encoder = ClipEncoder(self.vae, world.device)
        self.base_metadata: dict[str, str] = {}
        self.base_versions: tuple[str, ...] = ()
        self.transformer, self.recipe, self.scheduler = self._start(notes)
        if self.transformer.config.in_channels != self.vae.config.latent_channels:
            raise ConfigError(
                f"got a transformer of {self.transformer.config.in_channels} channels; expected "
                f"{self.vae.config.latent_channels}, as the VAE's latents have; change model, or pass its own VAE"
            )
        self.transformer.gradient_checkpointing = config.optimization.gradient_checkpointing
        self.transformer.sharing = world.sharing
        stored = LatentFormat(self.vae.config.latent_channels, self.vae.config.scale_factors)
        aside = companion_paths(config)
        self.source, validation = open_sources(
            config.data, config.seed, notes, config.validation, latents=stored, leave_out=aside
        )
        check_clips([self.source, validation], world)
        self.conditions = self._conditions([self.source, validation])
        held_out = config.data.kind != "folder" or config.validation != HoldOut()
        self.loss_name = "validation_loss" if held_out else "seen_clips_loss"
        self.shown = self._first_frame()
        self.followed, self.preview_size = self._followed(validation, notes)
        if world.first:
            config.output.mkdir(parents=True, exist_ok=True)
        self.text = self._text()
        if config.prompts:  # what cannot work is refused before training, not at the first validation
            models, settings = self._sampling()
            models.passes(settings.overrides, settings.size)
        folder, first = config.output, world.first
        self.shared = EncodedCache.of_user(notes)
        cache = LatentCache(folder, config.cache_clips, first, shared=self.shared)
        samples = config.validation_samples
        fixed = LatentCache(folder / "validation", samples, first, share_sizes=False, shared=self.shared)
        self.latents = self._latents(self.source, cache, notes)
        self.validation = self._latents(validation, fixed, notes)
        self._encode_all(notes)
        self.lora = None
        if config.lora is not None:
            self.transformer.requires_grad_(False)
            with initialised(config.seed, "new lora"):
                self.lora = LoRALayers(self.transformer, config.lora).to(world.device)
        self.swapped = self._place()
        trained: list[nn.Module] = [self.lora if self.lora is not None else self.transformer]
        if isinstance(self.text, TextEncoder):
            trained.append(self.text.model)
        flow = Flow(self.transformer, self.text if isinstance(self.text, TextEncoder) else None, self.lora)
        self.objective = self._spread(flow)
        if config.optimization.compile:
            compile_blocks(self.transformer, world.device, notes)
        self.updater = Updater(trained, config.optimization)
        self.needs = self.plan.step
        notes(str(self.needs))

    # ----------------------------------------------------------------------------------------------------- beginning

    def _latents(self, source: Source, cache: LatentCache, notes: Notes) -> Latents:
        data, seed = self.config.data, self.config.seed
        encoder, extras = self.encoder, self.conditions
        return Latents(source, self.vae, data, seed, cache=cache, notes=notes, extras=extras, encoder=encoder)

    def _conditions(self, sources: Sequence[Source]) -> ClipConditions | None:
        """What clips are conditioned on apart from their first frame; None: nothing."""
        config = self.config
        if config.reference is None and config.preview.reference is not None:
            raise ConfigError("got preview.reference without reference; expected a training with one; leave it out")
        if config.reference is None and not config.conditions.any:
            return None
        return ClipConditions(config, sources, self.vae.config.scale_factors)

    def _open_vae(self) -> VideoVAE:
        if self.config.vae is None:
            raise ConfigError("got no vae; expected the run of train-vae, or a checkpoint with a VAE; pass --vae")
        return open_vae(checkpoint_file(self.config.vae, "vae.safetensors"), self.config.version, dtype=None)

    def _place(self) -> SwappedBlocks | None:
        """The transformer on the device: whole, or without the blocks that come and go."""
        optimization, device = self.config.optimization, self.world.device
        resident = optimization.resident_blocks
        if resident is None or resident >= len(self.transformer.blocks().blocks):
            self.transformer.to(device)
            if self.config.lora is None and optimization.weights == "bf16":
                self.transformer.to(torch.bfloat16)
            return None
        return SwappedBlocks(self.transformer, device, resident)

    def _start(self, notes: Notes) -> tuple[LTXTransformer, Recipe, SchedulerConfig | None]:
        """The transformer, and how its checkpoint is sampled."""
        config = self.config
        if config.initial is not None:
            opened = open_models(checkpoint_file(config.initial, "model.safetensors"), version=config.version)
            quantization = config.quantization if config.lora else None
            model, info = opened.transformer(dtype=None if config.lora else torch.float32, quantization=quantization)
            self.base_metadata = _metadata_of(opened)
            self.base_versions = tuple(opened.description.versions)
            if config.model is not None and model.config != transformer_config(config.model):
                raise ConfigError(
                    f"got initial {config.initial} of another architecture than model; expected the same; change one"
                )
            model = model if config.lora else copied(model).requires_grad_(True)
            recipe, origin = recipe_for(info.versions)
            if config.preview.negative_prompt is not None:
                recipe = replace(recipe, negative_prompt=config.preview.negative_prompt)
            for note in (*info.notes, *([origin] if len(info.versions) > 1 else [])):
                doubt(note, notes)
            return model, recipe, info.scheduler
        if config.model is None or config.lora is not None:
            raise ConfigError("got no initial checkpoint; expected one for a LoRA, or without model; set initial")
        with initialised(config.seed, "new transformer"):
            model = LTXTransformer(transformer_config(config.model))
            restart(model)
        said = config.preview.negative_prompt
        return model, UNKNOWN if said is None else replace(UNKNOWN, negative_prompt=said), SCHEDULER

    def _first_frame(self) -> Tensor | None:
        """The picture that previews begin with, (1, h, w, 3) in [0, 1]."""
        image = self.config.preview.image
        if image is None:
            return None
        if not image.is_file():
            raise ConfigError(f"got preview.image {image}; expected a picture; check the path")
        return read_image(image)[:1]

    def _followed(self, validation: Source, notes: Notes) -> tuple[Tensor | None, PixelShape]:
        """The video (f h w 3) that all previews follow, and their size; None: there is no reference, or each follows
        that of a clip of the validation."""
        config, preview = self.config, self.config.preview
        size = PixelShape(*(preview.size or config.data.sizes[0]))
        if config.reference is None or not config.prompts:
            return None, size
        if preview.reference is not None:
            rate = Fraction(config.data.fps).limit_denominator(1001)
            frames = rgb_frames(as_frames(preview.reference, limit=size.frames, fps=rate, notes=notes))
            if len(frames) < size.frames:
                raise ConfigError(
                    f"got preview.reference {preview.reference} with {len(frames)} frames; expected {size.frames}, as "
                    "the previews have; use a longer one, or set preview.size"
                )
            return resize(frames, size.height, size.width, "crop", kernel="bicubic").clamp(0, 1), size
        sizes = validation.sizes()
        if preview.size is not None and size not in sizes:
            raise ConfigError(
                f"got preview.size {list(preview.size)}, of which no clip is there whose reference previews could "
                f"follow; expected one of {[list(each) for each in sizes]}; change it, or set preview.reference"
            )
        return None, size if size in sizes else sizes[0]

    def _references(self) -> Tensor | None:
        """Latents of the references that previews follow, one for each; None: they follow none."""
        prompts = self.config.prompts
        if self.config.reference is None:
            return None
        if self.followed is None:
            return self.validation.clips(range(len(prompts)), self.preview_size).extras["reference"]
        latent = self.encoder.encode(rearrange(self.followed * 2 - 1, "f h w c -> 1 c f h w"))
        return latent.expand(len(prompts), -1, -1, -1, -1)

    def _text(self) -> TextEncoder | FrozenText:
        config, channels = self.config, self.transformer.config.caption_channels
        beside = None
        if config.initial is not None:
            beside = checkpoint_file(config.initial, "model.safetensors").parent / "text_encoder"
        place = config.text.encoder or (beside if beside is not None and beside.is_dir() else None)
        if config.text.encoder is not None or config.lora is not None:
            if place is None:
                raise ConfigError(
                    f"got no text.encoder for a LoRA on {config.initial}; expected the T5 that it was trained with; "
                    "set text.encoder to its folder"
                )
            return FrozenText(
                place, config.text.tokenizer, channels, self.world.device, quantization=config.text.quantization
            )
        if place is not None:
            text = load_text_encoder(place, dtype=torch.float32)
            copied(text.model).requires_grad_(True)
        else:
            text = self._new_text(channels)
        nn.Module.to(text.model, self.world.device)
        return text

    def _new_text(self, channels: int) -> TextEncoder:
        """The first process builds the tokenizer, and keeps it in the run's folder, which others may not see."""
        config, world = self.config, self.world
        folder = config.output / "tokenizer"
        if world.first and latest_checkpoint(config.output) is None:
            shutil.rmtree(folder, ignore_errors=True)  # of a run without a checkpoint, perhaps with other captions
        with TemporaryDirectory() as own, initialised(config.seed, "new text encoder"):
            if not world.first:
                folder = Path(own)
                (folder / TOKENIZER).write_bytes(world.values(None)[0])
            text = make_text_encoder(config.text, channels, self.source.captions(), folder)
            if world.first:
                world.values((folder / TOKENIZER).read_bytes())
        return text

    def _encode_all(self, notes: Notes) -> None:
        """Fill the caches before the transformer needs the memory."""
        config, world = self.config, self.world
        check_stored_latents([self.source, self.validation.source], self.encoder)
        self._know_stored_text()
        if isinstance(self.text, FrozenText):
            known = [*self.source.captions(), *self.validation.source.captions(), "", *config.prompts]
            known += [self.recipe.negative_prompt] if config.prompts else []
            self.text.prepare(known, config.output / "text.pt", notes, writes=world.first, shared=self.shared)
        for size in self.validation.source.sizes():
            self.validation.prepare(size)
        if config.cache_clips:
            drawn = {self.source.size(step) for step in range(min(1000, config.optimization.steps))}
            for size in sorted({*drawn, *self.source.sizes()}, key=math.prod):
                self.latents.prepare(size)
        self._rest_vae()

    def _know_stored_text(self) -> None:
        """Take the embeddings that the data has instead of encoding its captions.

        Raises:
            ConfigError: the text encoder is in training, or they are of another one.
        """
        sources = [each for each in (self.source, self.validation.source) if isinstance(each, VideoFolder)]
        known = {caption: tokens for source in sources for caption, tokens in source.embeddings().items()}
        if not known:
            return
        if not isinstance(self.text, FrozenText):
            raise ConfigError(
                "got data with embeddings, and a text encoder that is trained; expected captions; set text.encoder to "
                "the T5 that made the embeddings, or data.precomputed=false"
            )
        self.text.know(known)

    def _rest_vae(self) -> None:
        """Take the encoder off the device if no clip needs it any more."""
        if self.latents.complete():
            self.encoder.rest()

    def _spread(self, flow: Flow) -> nn.Module:
        """The objective over all processes: copied or sharded."""
        return self.world.spread(flow, self.config.optimization, self.transformer.called_parts())

    # ----------------------------------------------------------------------------------------------------- one step

    def update(self, step: int) -> dict[str, float]:
        optimization = self.config.optimization
        size = self.source.size(step)
        totals: dict[str, Tensor] = {}
        whole = self._draws("flow", step, optimization.batch_size, size)
        shown = self._drawn("conditions", step, optimization.batch_size, size)
        first = self.source.start(step, optimization.batch_size)
        for piece in self.world.pieces(step, optimization.batch_size, optimization.accumulation):
            clips = self.latents.clips(range(first + piece.rows.start, first + piece.rows.stop), size)
            draws = whole.rows(piece.rows)
            with synchronised(self.objective, piece.last), autocast(optimization, self.world.device):
                part = None if shown is None else shown.rows(piece.rows)
                with offloaded(self.world.device, optimization.offload_activations):
                    losses, sigma = self._losses(clips, draws, size, part)
                loss = losses.mean()
                (loss / optimization.accumulation).backward()
            totals["loss"] = totals.get("loss", 0) + loss.detach() / optimization.accumulation
            # Per-level losses are compared with 1, the loss of predicting nothing about the data.
            for name, low, high in (
                ("loss_low", 0.0, 1 / 3),
                ("loss_middle", 1 / 3, 2 / 3),
                ("loss_high", 2 / 3, 1.01),
            ):
                inside = (sigma >= low) & (sigma < high)
                totals[f"{name}_sum"] = totals.get(f"{name}_sum", 0) + (losses.detach() * inside).sum()
                totals[f"{name}_count"] = totals.get(f"{name}_count", 0) + inside.sum().float()
        numbers = log_values(totals, self.world)
        for name in ("loss_low", "loss_middle", "loss_high"):
            total, seen = numbers.pop(f"{name}_sum"), numbers.pop(f"{name}_count")
            if seen:
                numbers[name] = total / seen
        if not math.isfinite(numbers["loss"]):
            return numbers  # the weights stay as they are; the loop stops
        return numbers | self.updater.apply(step)

    def _draws(self, name: Literal["flow", "flow validation"], number: int, count: int, size: PixelShape) -> Draws:
        frames, height, width = size.latent(self.vae.config.scale_factors)
        noise_name = "flow noise" if name == "flow" else "flow validation noise"
        return draw(
            stream(self.config.seed, name, number),
            stream(self.config.seed, noise_name, number, self.world.device),
            (count, frames * height * width, self.vae.config.latent_channels),
            self.config.noising,
            text_dropout=self.config.text_dropout,
            first_frame=self.config.first_frame if frames > 1 else 0.0,
        )

    def _drawn(
        self, name: Literal["conditions", "validation conditions"], number: int, count: int, size: PixelShape
    ) -> Drawn | None:
        """The conditions of a whole batch."""
        rng = stream(self.config.seed, name, number)
        return None if self.conditions is None else self.conditions.draw(rng, count, size)

    def _losses(
        self, clips: EncodedClips, draws: Draws, size: PixelShape, shown: Drawn | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and noise level per sample, (b,) each."""
        device = self.world.device
        scale = self.vae.config.scale_factors
        coordinates = Coordinates(scale, self.config.data.fps, self.transformer.config.causal_temporal_positioning)
        if self.conditions is not None and shown is not None:
            tokens = self.conditions.tokens(clips, draws, shown, coordinates, size)
        else:
            tokens = self._plain(clips, draws, coordinates.positions(size.latent(scale)))
        captions = ["" if empty else text for text, empty in zip(clips.captions, draws.empty_prompt, strict=True)]
        prompts = encode(self.text, captions, device) if isinstance(self.text, FrozenText) else captions
        return self.objective(*tokens, prompts), draws.sigma.to(device)

    def _plain(self, clips: EncodedClips, draws: Draws, positions: Tensor) -> Tokens:
        """A batch with no condition but first frames."""
        device = self.world.device
        x0, sigma = patchify(clips.latents).to(device), draws.sigma[:, None, None]
        if bool(draws.first_frame.any()):  # otherwise one level per sample is enough, and less work
            height, width = clips.latents.shape[-2:]
            sigma = sigma.repeat(1, x0.shape[1], 1)
            sigma[:, : height * width][draws.first_frame] = 0
        return Tokens(x0, draws.noise, sigma.to(device), positions.to(device))

    # ----------------------------------------------------------------------------------------------------- validation

    @torch.no_grad()
    def validate(self, step: int, folder: Path | None) -> dict[str, float]:  # noqa: ARG002
        """Loss on fixed clips with fixed noise, and clips of the configured prompts.

        "validation_loss", or "seen_clips_loss" where no clip is held out: it then falls by learning by heart, too.
        """
        config, optimization = self.config, self.config.optimization
        with self.updater.averaged(), sharded_after(self.objective):
            total, counted = torch.zeros((), device=self.world.device), 0
            for number, (size, count) in enumerate(self._validated()):
                whole = self._draws("flow validation", number, count, size)
                shown = self._drawn("validation conditions", number, count, size)
                for indices in self.world.portions(count, optimization.batch_size, optimization.accumulation):
                    clips = self.validation.clips(indices, size)
                    rows = slice(indices.start, indices.stop)
                    part = None if shown is None else shown.rows(rows)
                    with autocast(optimization, self.world.device):
                        total += self._losses(clips, whole.rows(rows), size, part)[0].sum()
                counted += count
            if config.prompts:
                with gathered(self.objective):
                    self._sample(folder)
        return {self.loss_name: float(total) / counted}

    def _validated(self) -> list[tuple[PixelShape, int]]:
        """The sizes of the validation's clips, with the number of samples of each."""
        source, count = self.validation.source, self.config.validation_samples
        clips = {size: source.distinct(size) for size in source.sizes()}
        total = sum(number or 1 for number in clips.values())
        return [(size, max(1, round(count * (number or 1) / total))) for size, number in clips.items()]

    @torch.no_grad()
    def preview(self, folder: Path | None) -> None:
        """Clips of the configured prompts before the first step."""
        if self.config.prompts and self.config.preview.at_start:
            with self.updater.averaged():
                if is_sharded(self.objective):  # it can be gathered once all of it has run
                    (size, _), *_ = self._validated()
                    draws = self._draws("flow validation", 0, 1, size)
                    with autocast(self.config.optimization, self.world.device):
                        self._losses(self.validation.clips(range(1), size), draws, size)
                with gathered(self.objective):
                    self._sample(folder)

    def _sampling(self) -> tuple[Models, ClipSettings]:
        """What clips of the configured prompts are made with: the base's recipe, and what the config changes in it."""
        config, optimization, preview = self.config, self.config.optimization, self.config.preview
        new = (None, None) if config.initial is not None else (20, 3.0)
        steps, guidance = config.sample_steps, config.guidance_scale
        said = PassSettings(
            steps=new[0] if steps is None else steps, guidance_scale=new[1] if guidance is None else guidance
        )
        # In batches of a training step's size, for which the device has room.
        at_once = self.world.share(optimization.batch_size, optimization.accumulation)
        settings = ClipSettings(
            self.preview_size,
            config.data.fps,
            config.seed if preview.seed is None else preview.seed,
            Overrides(first=said),
            at_once,
            shown=self.shown,
            autocast=optimization.precision == "bf16",
        )
        models = Models(self.transformer, self.vae, self.text, recipe=self.recipe, scheduler=self.scheduler)
        return models, settings

    def _sample(self, folder: Path | None) -> None:
        config = self.config
        models, settings = self._sampling()
        settings = replace(settings, references=self._references())
        self._rest_vae()
        placement = DevicePlacement(
            self.world.device, resident_blocks=None if self.swapped is None else self.swapped.resident
        )
        with nullcontext() if self.swapped is None else self.swapped.paused():
            pixels = generate_clips(models, config.prompts, settings, host=host_on(placement))
        if folder is not None:
            save_clips(folder, pixels, config.prompts, config.data.fps)

    # ----------------------------------------------------------------------------------------------------- files

    def state(self) -> dict[str, Any]:
        trained = self.transformer if self.lora is None else self.lora
        return {
            "weights": tensors_of(trained),
            "text": tensors_of(self.text.model) if isinstance(self.text, TextEncoder) else None,
            "updater": self.updater.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        trained = self.transformer if self.lora is None else self.lora
        load_tensors(trained, state["weights"])
        if isinstance(self.text, TextEncoder) and state["text"] is not None:
            load_tensors(self.text.model, state["text"])
        self.updater.load(state["updater"])

    @torch.no_grad()
    def export(self, folder: Path | None, *, final: bool = True) -> None:  # noqa: ARG002
        """model.safetensors (transformer and VAE) and text_encoder/, or the LoRA in both key styles."""
        with self.updater.averaged():
            weights = tensors_of(self.transformer if self.lora is None else self.lora)
            text = tensors_of(self.text.model) if isinstance(self.text, TextEncoder) else None
        if folder is None:
            return
        said = export_metadata(self.config, versions=self.base_versions, base=self.base_metadata)
        if self.lora is not None:
            for style in ("diffusers", "comfyui"):
                file = folder / f"lora_{style}.safetensors"
                save_lora(file, self.lora, weights, style, dtype=torch.bfloat16, metadata=said)
            return
        base = Base(self.scheduler, said)
        save_checkpoint_file(folder / "model.safetensors", weights, self.transformer.config, self.vae, base)
        if isinstance(self.text, TextEncoder) and text is not None:
            save_text_encoder(self.text, text, folder / "text_encoder")


def _metadata_of(opened: Opened) -> dict[str, str]:
    """What a base's file says of itself apart from its models, and its release, where the user or the name of the file
    has told it: the new file's content leaves what the base's leaves."""
    metadata, description = opened.checkpoint.metadata, opened.description
    kept = {key: text for key, text in metadata.items() if key.startswith("modelspec.") or key.lower() == "license"}
    told = len(description.versions) == 1 or description.versions != description.possible
    return kept | ({RELEASE_KEY: description.versions[0]} if description.versions and told else {})

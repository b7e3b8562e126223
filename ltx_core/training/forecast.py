"""The memory of a whole run, phase by phase, from its config and the headers of its files.

Nothing is read but headers and captions. Models are on meta; a step of training is counted on tensors without data
(`footprint`), the other phases by the sums that inference uses (`budget`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import stages
from ..budget.packing import packed_bytes, room_for_packing
from ..budget.plan import Card, Stage, stage_lines
from ..budget.weights import Weights, resident_blocks, room_for_weights, room_for_work
from ..config import SchedulerConfig, TextEncoderConfig
from ..errors import ConfigError, LTXKitError, UnsupportedError
from ..kernels.choice import PLAIN
from ..kernels.here import kernels_here
from ..media import CLIP_SUFFIXES, PICTURE_SUFFIXES
from ..models.sharing import Counted
from ..models.teams import Division
from ..models.text_encoder import TextEncoder, build_t5
from ..models.tokenizer import SENTINELS, TokenizedPrompt, Tokenizer
from ..models.transformer import LTXTransformer
from ..models.video_vae import VideoVAE
from ..pipelines.passes import Pass
from ..pipelines.recipe import UNKNOWN, recipe_for
from ..pipelines.settings import Overrides, PassSettings, Settings
from ..placing.devices import memory
from ..releases import Recipe
from ..shapes import PixelShape
from ..weights.build import open_models
from ..weights.text_encoder import find_tokenizer, text_encoder_on_meta
from .captions import caption_beside, is_hidden, listed_captions
from .checkpoints import checkpoint_file
from .conditions import extra_tokens
from .config import LoRASettings, Optimization, TransformerTraining
from .distributed import check_divides, gathered_bytes
from .encoding import PIXEL_BYTES, EncodingNeeds, encoding_needs
from .flow import Flow
from .footprint import Footprint, beyond_gradients, kept_share, step_bytes
from .lora import LoRALayers
from .lora_start import of_fewer_blocks
from .models import SCHEDULER, transformer_config
from .offload import SMALLEST
from .optimize import autocast
from .optimizers import optimizer_bytes
from .text import architecture_of

TYPICAL_TEXT = 128  # tokens of the longest caption, where captions cannot be counted before the start
DRAWN_TEXT = 12  # tokens of a caption of drawn digits
COUNTED_BLOCKS = 2, 3  # of a long stack: the others take as much as those between the two
COUNTED_CAPTIONS = 2000


@dataclass(frozen=True)
class TrainingPlan:
    """The memory that a training needs. stages: its phases, in their order. step: what is on the device during a
    step. changes: settings with which it fits, where it does not and they are known."""

    card: Card
    stages: tuple[Stage, ...]
    step: Footprint
    changes: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return max(stage.peak for stage in self.stages)

    @property
    def fits(self) -> bool:
        return self.peak <= self.card.available

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def lines(self) -> list[str]:
        """The plan as lines of text."""
        there = f"{self.card.available / 1e9:.2f} GB of {self.card.name}"
        said = [*stage_lines(self.stages), f"Peak {self.peak / 1e9:.2f} GB of the {there}: {self._verdict()}."]
        if self.changes:
            said.append(f"It fits with {', '.join(self.changes)}.")
        return said

    def _verdict(self) -> str:
        return "it fits" if self.fits else "it does not fit"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values: all fields, and the properties."""
        phases = [{**asdict(stage), "peak": stage.peak, "placing": stage.placing} for stage in self.stages]
        return {**asdict(self), "stages": phases, "peak": self.peak, "fits": self.fits}


# --- what a config describes ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Outline:
    """The models of a transformer's training, on meta.

    vae: as stored; wide: with an encoder in float32. base: with as many blocks as it has. recipe, scheduler: how clips
    are sampled. text: the frozen encoder; None: one is trained. tokens: of the longest caption.
    """

    vae: VideoVAE
    wide: VideoVAE
    base: LTXTransformer
    recipe: Recipe
    scheduler: SchedulerConfig | None
    text: tuple[nn.Module, TextEncoderConfig] | None
    trained_text: TextEncoder | None
    tokens: int
    clips: int | None

    def largest(self, config: TransformerTraining) -> PixelShape:
        return max(_sizes(config), key=math.prod)


def _sizes(config: TransformerTraining) -> list[PixelShape]:
    """The sizes of clips, those that are drawn larger included."""
    sizes = [PixelShape(*size) for size in config.data.sizes]
    if not sizes:
        raise ConfigError("got no data.sizes; expected one or more [frames, height, width]; add one")
    larger = [PixelShape(f, 2 * h, 2 * w) for f, h, w in sizes] if config.data.enlarged else []
    return [*sizes, *larger]


def _outline(config: TransformerTraining, on_cpu: bool) -> _Outline:
    if config.vae is None:
        raise ConfigError("got no vae; expected the run of train-vae, or a checkpoint with a VAE; pass --vae")
    vae_file = open_models(checkpoint_file(config.vae, "vae.safetensors"), version=config.version, data=False)
    vae, wide = vae_file.vae(), vae_file.vae(dtype=torch.float32)
    for size in (*_sizes(config), *([PixelShape(*config.preview.size)] if config.preview.size else [])):
        size.latent(vae.config.scale_factors)  # refuses what the VAE cannot have
    recipe, scheduler = UNKNOWN, SCHEDULER
    beside: Path | None = None
    if config.initial is not None:
        place = checkpoint_file(config.initial, "model.safetensors")
        opened = open_models(place, version=config.version, data=False)
        base, info = opened.transformer(
            dtype=None if config.lora else torch.float32, quantization=config.quantization if config.lora else None
        )
        recipe, scheduler = recipe_for(info.versions)[0], info.scheduler
        beside = place.parent / "text_encoder"
    elif config.model is None or config.lora is not None:
        raise ConfigError("got no initial checkpoint; expected one for a LoRA, or without model; set initial")
    else:
        with torch.device("meta"):
            base = LTXTransformer(transformer_config(config.model))
    if _is_half(config):
        base.to(torch.bfloat16)
    place = config.text.encoder or (beside if beside is not None and beside.is_dir() else None)
    frozen = config.text.encoder is not None or config.lora is not None
    if frozen and place is None:
        raise ConfigError(
            f"got no text.encoder for a LoRA on {config.initial}; expected the T5 that it was trained with; set "
            "text.encoder to its folder"
        )
    text, tokenizer = None, None
    trained: TextEncoder | None = None
    if place is not None:
        opened = open_models(place, data=False)
        dtype = torch.float32 if on_cpu or not frozen else None
        text = text_encoder_on_meta(opened, dtype=dtype, quantization=config.text.quantization if frozen else None)
        given = [] if config.text.tokenizer is None else [config.text.tokenizer]
        tokenizer = Tokenizer.from_file(
            find_tokenizer(opened.checkpoint.path, None, given, vocabulary=text[1].vocab_size), text[1].vocab_size
        )
    captions, clips = _captions(config)
    tokens = TYPICAL_TEXT if config.data.kind == "folder" else DRAWN_TEXT
    if tokenizer is not None and captions:
        tokens = max(len(tokenizer.encode(caption).ids) for caption in (*captions, *config.prompts, ""))
    if not frozen:
        model, architecture = text if text is not None else _new_text(config)
        trained = TextEncoder(model, _Tokens(tokens), architecture)  # pyright: ignore[reportArgumentType]
        text = None
    return _Outline(vae, wide, base, recipe, scheduler, text, trained, tokens, clips)


def _is_half(config: TransformerTraining) -> bool:
    """Whether what is trained has weights in bfloat16."""
    return config.lora is None and config.optimization.weights == "bf16"


class _Tokens:
    """A tokenizer for prompts of one length, whose words do not matter."""

    def __init__(self, count: int) -> None:
        self.count = count

    def encode(self, prompt: str) -> TokenizedPrompt:  # noqa: ARG002 - as the real one has it
        return TokenizedPrompt(ids=(1,) * self.count, total=self.count, cut_off="")


def _new_text(config: TransformerTraining) -> tuple[nn.Module, TextEncoderConfig]:
    architecture = architecture_of(config.text, config.text.vocabulary + SENTINELS)
    return build_t5(architecture), architecture


def _captions(config: TransformerTraining) -> tuple[list[str], int | None]:
    """Captions of a folder, and its number of clips; None where clips are drawn. Faults are the reader's to say."""
    folder = config.data.path
    if config.data.kind != "folder" or folder is None or not folder.is_dir():
        return [], None
    suffixes = CLIP_SUFFIXES | PICTURE_SUFFIXES
    files = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes and not is_hidden(path, folder)]
    captions: list[str] = []
    try:
        captions += listed_captions(folder, files, lambda _: None, []).texts.values()
        captions += [caption_beside(path) or "" for path in files[:COUNTED_CAPTIONS]]
    except (LTXKitError, OSError):
        pass
    return captions[:COUNTED_CAPTIONS], len(files)


# --- one step ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """What one step takes. peak: bytes of activations and of gradients, or of their shards; None: not known. trained:
    numbers in what is trained. gathered, shown: bytes of whole weights and gradients that a process holds beyond its
    shards, in a step and in a forward pass."""

    peak: int | None
    trained: int
    gathered: int = 0
    shown: int = 0


def _step(config: TransformerTraining, outline: _Outline, device: torch.device, clips: int, processes: int) -> _Step:
    """processes: that hold a share of the weights each.

    Of a long stack two short ones are counted: every further block takes as much as the others.
    """
    base = outline.base
    count = len(base.blocks().blocks)
    tried = [count] if count <= COUNTED_BLOCKS[1] else [*COUNTED_BLOCKS]
    kept = kept_share(config.optimization.accumulation, processes)
    every = None if config.lora is None else _lora_numbers(config.lora, base)
    peaks: list[int | None] = []
    trained: list[int] = []
    whole = 0, 0
    for blocks in tried:
        flow = _flow(config, outline, blocks)
        peaks.append(_count(config, outline, flow, device, clips, kept))
        trained.append(sum(p.numel() for p in flow.parameters() if p.requires_grad))
        if processes > 1:  # further blocks are not gathered at the same time
            parts = flow.transformer.called_parts()
            whole = gathered_bytes(flow, parts, processes), gathered_bytes(flow, parts, processes, backward=False)
    if len(tried) == 1:
        return _Step(peaks[0], trained[0], *whole)
    further = (count - tried[1]) / (tried[1] - tried[0])
    numbers = round(trained[1] + further * (trained[1] - trained[0])) if every is None else every
    if peaks[0] is None or peaks[1] is None:
        return _Step(None, numbers, *whole)
    at_end = peaks[1] + round(4 * kept * (numbers - trained[1]))  # where all gradients are there
    return _Step(max(round(peaks[1] + further * (peaks[1] - peaks[0])), at_end), numbers, *whole)


def _flow(config: TransformerTraining, outline: _Outline, blocks: int) -> Flow:
    """The objective on a model with the first `blocks` blocks of the base, whose weights it shares."""
    base = outline.base
    with torch.device("meta"):
        model = LTXTransformer(replace(base.config, num_layers=0))
    for name, child in base.named_children():
        setattr(model, name, child)
    model.scale_shift_table = base.scale_shift_table
    model.blocks().replace(nn.ModuleList(_unhooked(block) for block in list(base.blocks().blocks)[:blocks]))
    model.config = replace(base.config, num_layers=blocks)
    model.gradient_checkpointing = config.optimization.gradient_checkpointing
    together = config.optimization.sequence_parallel
    model.sharing = Counted(count=together) if together > 1 else None
    lora = None
    if config.lora is not None:
        model.requires_grad_(False)
        with torch.device("meta"):
            lora = LoRALayers(model, of_fewer_blocks(config.lora, model))
    else:
        model.requires_grad_(True)
    text = outline.trained_text
    if text is not None:
        text.model.requires_grad_(True)
    return Flow(model, text, lora)


def _lora_numbers(config: LoRASettings, base: LTXTransformer) -> int:
    """How many numbers a LoRA on all blocks has.

    Raises:
        ConfigError, CheckpointError: its targets, patterns or the file that it goes on from do not suit the base.
    """
    with torch.device("meta"):
        layers = LoRALayers(base, config)
    _unhooked(base)
    return sum(p.numel() for p in layers.parameters())


def _unhooked(module: nn.Module) -> nn.Module:
    """A block, or a model, without the hooks of the LoRA that was counted before."""
    for part in module.modules():
        part._forward_hooks.clear()  # pyright: ignore[reportPrivateUsage]
        part._forward_pre_hooks.clear()  # pyright: ignore[reportPrivateUsage]
    return module


def _count(
    config: TransformerTraining, outline: _Outline, flow: Flow, device: torch.device, clips: int, kept: float
) -> int | None:
    size = outline.largest(config)
    scale, architecture = outline.vae.config.scale_factors, flow.transformer.config
    tokens = size.latent(scale).tokens + extra_tokens(config, size, scale)

    def loss(run: Callable[..., Tensor]) -> Tensor:
        x0, noise = torch.empty(2, clips, tokens, architecture.in_channels, device=device)
        sigma = torch.empty(clips, 1, 1, device=device)  # levels by token need numbers, and take hardly more
        prompts: list[Any] = [f"caption {number}" for number in range(clips)]
        if flow.text is None:
            prompts = [torch.empty(outline.tokens, architecture.caption_channels, device=device)] * clips
        with autocast(config.optimization, device), left_behind(config.optimization.offload_activations):
            return run(x0, noise, sigma, torch.empty(1, 3, tokens, device=device), prompts).mean()

    return step_bytes(loss, [flow], levels=clips + 1, device=device, kept=kept)


def left_behind(wanted: bool) -> AbstractContextManager[Any]:
    """Inside, what is kept for the backward pass is not on the device until it is needed, as in `offload`."""

    def leave(tensor: Tensor) -> Tensor | tuple[torch.Size, torch.dtype, torch.device]:
        stays = tensor.nbytes < SMALLEST or isinstance(tensor, nn.Parameter)
        return tensor if stays else (tensor.shape, tensor.dtype, tensor.device)

    def back(kept: Tensor | tuple[torch.Size, torch.dtype, torch.device]) -> Tensor:
        return kept if isinstance(kept, Tensor) else torch.empty(kept[0], dtype=kept[1], device=kept[2])

    return torch.autograd.graph.saved_tensors_hooks(leave, back) if wanted else nullcontext()


# --- the phases -------------------------------------------------------------------------------------------------------


def plan_transformer(
    config: TransformerTraining, card: Card, *, processes: int = 1, device: torch.device | None = None
) -> TrainingPlan:
    """The phases of a transformer's or a LoRA's training.

    processes: that share a batch. device: on which a step is counted; None: as on a CPU, which counts the same tensors.

    Raises:
        ConfigError, CheckpointError, ShapeError: as training itself, before anything but headers is read.
    """
    phases = _Phases(config, _outline(config, card.is_main_memory), card, processes, device or torch.device("cpu"))
    return phases.plan()


class _Phases:
    def __init__(
        self, config: TransformerTraining, outline: _Outline, card: Card, processes: int, device: torch.device
    ) -> None:
        self.config, self.outline, self.card, self.device = config, outline, card, device
        optimization = config.optimization
        _check_divided(optimization.sequence_parallel, processes, outline.base)
        pieces = processes // optimization.sequence_parallel * optimization.accumulation
        self.at_once = max(1, optimization.batch_size // pieces)
        self.base = Weights.of(outline.base)
        # What main memory holds from the beginning: weights that are not used as they lie in their file.
        own = config.lora is None or config.quantization is not None
        self.resting = self.base.total if card.is_main_memory and own else 0
        split = processes if optimization.sharding == "fsdp" else 1
        counted = _step(config, outline, device, self.at_once, split)
        self.shown = counted.shown
        self.step = self._footprint(counted, split)

    def plan(self) -> TrainingPlan:
        phases = [self._text(*self.outline.text)] if self.outline.text is not None else []
        phases += [self._encoding(), self._training()]
        phases += [self._validation()] if self.config.prompts else []
        phases.append(self._export())
        return TrainingPlan(self.card, tuple(phases), self.step)

    def _half(self) -> bool:
        return _is_half(self.config)

    def _footprint(self, counted: _Step, split: int) -> Footprint:
        """split: the processes that hold a share of the weights each. Packed weights are buffers, which stay whole."""
        optimization, outline, trained = self.config.optimization, self.outline, counted.trained
        text = outline.trained_text
        weights = self.base.on_device(optimization.resident_blocks)
        weights += 0 if text is None else Weights.of(text.model).total
        gradients = (2 if self._half() else 4) * trained
        if self.config.lora is not None:
            weights += gradients
        optimizer = optimizer_bytes(optimization.optimizer, trained) + (gradients if optimization.ema_decay else 0)
        whole = 0 if split == 1 else sum(buffer.nbytes for buffer in outline.base.buffers())
        beside = beyond_gradients(counted.peak, gradients // split, optimization.accumulation)
        return Footprint(
            trained,
            (weights - whole) // split + whole,
            gradients // split,
            optimizer // split,
            None if beside is None else beside + counted.gathered,
        )

    def _text(self, model: nn.Module, architecture: TextEncoderConfig) -> Stage:
        on_cpu = self.card.is_main_memory
        work = stages.encoding_text(model, architecture, self.outline.tokens, on_cpu=on_cpu, kernels=PLAIN)
        weights, resident = Weights.of(model), None
        if not on_cpu:
            resident = resident_blocks(weights, room_for_weights(self.card.available, self.card.total, work))
        held = weights.on_device(resident) + self.resting
        return Stage("encode text", "text encoder", weights.total, held, len(weights.blocks), resident, work)

    def _encoding(self) -> Stage:
        encoder = Weights.of(self.outline.wide.encoder).total
        needs = self._encoding_needs(0)
        cached = 2 * self._latent_bytes() if self.card.is_main_memory else 0  # parts, and all of them joined
        held = encoder + self.resting + cached
        return Stage("encode clips", "VAE encoder", encoder, held, 0, None, needs.work, _in_words(needs))

    def _encoding_needs(self, beside: int) -> EncodingNeeds:
        """Of the size that takes most. beside: bytes that are on the device already."""
        outline, card = self.outline, self.card
        encoder = Weights.of(outline.wide.encoder).total
        room = None if card.is_main_memory else room_for_work(card.available - beside, card.total, encoder)
        count = self._cached() or self.at_once
        every = [
            encoding_needs(outline.wide, size, count, room, on_cpu=card.is_main_memory) for size in _sizes(self.config)
        ]
        return max(every, key=lambda needs: needs.work)

    def _cached(self) -> int:
        clips, limit = self.outline.clips, self.config.cache_clips
        return limit if clips is None else min(limit, clips)

    def _encodes_later(self) -> bool:
        """Whether clips are encoded between the steps, so that the encoder stays."""
        clips = self.outline.clips
        windows = self.config.data.windows != "head" and clips is not None
        return not self.config.cache_clips or windows or (clips is not None and clips > self.config.cache_clips)

    def _latent_bytes(self) -> int:
        """Of the cached clips, in main memory."""
        size, vae = self.outline.largest(self.config), self.outline.vae.config
        tokens = size.latent(vae.scale_factors).tokens + extra_tokens(self.config, size, vae.scale_factors)
        one = 4 * vae.latent_channels * tokens
        return one * (self._cached() + min(self.config.validation_samples, self.outline.clips or 2**62))

    def _beside_step(self) -> int:
        """Bytes that stay between steps: weights, the optimizer's numbers, the encoder, cached latents."""
        kept = self._latent_bytes() if self.card.is_main_memory else 0
        if self._encodes_later():
            kept += Weights.of(self.outline.wide.encoder).total
        return self.step.weights + self.step.optimizer + kept

    def _training(self) -> Stage:
        step = self.step
        work = step.gradients + (step.activations or 0)
        words = [f"{step.trained / 1e6:,.1f} million numbers trained", *self._choices(self.config.optimization)]
        if self._encodes_later():
            words.append("clips are encoded between the steps")
            work = max(work, self._encoding_needs(self._beside_step()).work)
        if step.activations is None:
            words.append("activations could not be counted")
        blocks = len(self.base.blocks)
        resident = self.config.optimization.resident_blocks
        resident = None if resident is None or resident >= blocks else resident
        held = self._beside_step()
        return Stage("train", "transformer", self.base.total, held, blocks, resident, work, "; ".join(words))

    @staticmethod
    def _choices(optimization: Optimization) -> list[str]:
        said = {
            f"each clip divided among {optimization.sequence_parallel}": optimization.sequence_parallel > 1,
            "blocks are recomputed": optimization.gradient_checkpointing,
            "activations wait in main memory": optimization.offload_activations,
        }
        return [word for word, chosen in said.items() if chosen]

    def _validation(self) -> Stage:
        config, outline, card = self.config, self.outline, self.card
        on_cpu, held = card.is_main_memory, self._beside_step()
        size = PixelShape(*(config.preview.size or config.data.sizes[0]))
        grid = size.latent(outline.vae.config.scale_factors)
        kernels = kernels_here() if on_cpu else PLAIN
        tokens = grid.tokens * (1 if config.reference is None else 2)
        run_pass = Pass.of(outline.base, self._settings(), "one", grid.tokens, scheduler=outline.scheduler)
        samples, together = min(self.at_once, len(config.prompts)), config.optimization.sequence_parallel
        sampling = stages.sampling(
            outline.base,
            tokens=tokens,
            branches=run_pass.branches,
            text_tokens=[outline.tokens] * min(run_pass.branches, 2),
            samples=samples,
            on_cpu=on_cpu,
            kernels=kernels,
            divisions=[Division(run_pass.branches, together)],
        )
        if config.lora is None and config.optimization.precision == "bf16":
            sampling += self.base.total // 2  # autocast keeps the weights in bfloat16
        decoder = Weights.of(outline.vae.decoder).total
        room = None if on_cpu else room_for_work(card.available - held, card.total, decoder)
        tiling, decoding = stages.decoding(outline.vae, grid, None, room, on_cpu=on_cpu, kernels=kernels)
        pixels = 0
        if on_cpu:
            packing = room_for_packing(card.available, card.total, sampling)
            sampling += packed_bytes(outline.base, kernels, packing)
            decoding += packed_bytes(outline.vae.decoder, kernels, packing)
            # The clips of all prompts, and twice those of the batch that is decoded.
            pixels = math.prod(size) * PIXEL_BYTES * (len(config.prompts) + samples)
        work = max(sampling + self.shown, decoder + decoding) + pixels
        count = len(tiling.tiles(grid.height, grid.width))
        words = f"{size.width}x{size.height}, {size.frames} frames; VAE decoder beside the transformer"
        words += f" in {count} tiles" if count > 1 else ""
        return Stage("validate", "transformer", self.base.total, held, 0, None, work, words)

    def _settings(self) -> Settings:
        config = self.config
        new = (None, None) if config.initial is not None else (20, 3.0)
        steps = new[0] if config.sample_steps is None else config.sample_steps
        guidance = new[1] if config.guidance_scale is None else config.guidance_scale
        return Settings(self.outline.recipe, Overrides(first=PassSettings(steps=steps, guidance_scale=guidance)))

    def _export(self) -> Stage:
        """Copies in main memory of what is trained, for the checkpoint and for the files of other programs."""
        own = 4 * self.step.trained
        vae = 0 if self.config.lora is not None else Weights.of(self.outline.vae).total
        copies = 2 * own + vae
        if self.card.is_main_memory:
            work, words = copies, "copies of the weights"
        else:
            copies += self.step.optimizer
            work, words = 0, f"and {copies / 1e9:.2f} GB in main memory"
        return Stage("export", "transformer", self.base.total, self._beside_step(), 0, None, work, words)


def _check_divided(together: int, processes: int, base: LTXTransformer) -> None:
    """Raises ConfigError: clips cannot be divided among so many processes."""
    check_divides(together, processes)
    heads = base.config.num_attention_heads
    if together > heads:
        raise ConfigError(
            f"got optimization.sequence_parallel {together} for a model with {heads} heads of attention, of which each "
            f"process takes one at least; expected at most {heads}; lower it"
        )


def _in_words(needs: EncodingNeeds) -> str:
    if needs.tiling is None:
        return f"{needs.at_once} at once" if needs.at_once > 1 else ""
    tiled = needs.tiling.height is not None or needs.tiling.width is not None
    return f"one by one, {needs.tiling.frames} frames at once{', in tiles' if tiled else ''}"


# --- what fits --------------------------------------------------------------------------------------------------------


def card_of(device: torch.device) -> Card:
    """The memory of a device now; without end where the system does not report it."""
    here = memory(device)
    is_cpu = device.type == "cpu"
    name = "main memory" if is_cpu else str(device)
    if here is None:
        return Card(name, 2**62, 2**62, is_main_memory=is_cpu)
    return Card(name, here.free, here.total, is_main_memory=is_cpu)


def check_training_fits(plan: TrainingPlan, spare: int = 0) -> None:
    """Refuse a run of which a phase takes more than all the memory that there is.

    What is more than the free memory alone may still go well, and is left to the run. spare: bytes by which a disk
    extends main memory.

    Raises:
        UnsupportedError: it does not fit; the message names the phase and what to change.
    """
    there = plan.card.total + spare
    if plan.peak > there:
        stage = max(plan.stages, key=lambda stage: stage.peak)
        changes = ", ".join(plan.changes) or "data.sizes of fewer frames or pixels, or a quantized base"
        raise UnsupportedError(
            f"got a training whose phase '{stage.name}' takes {stage.peak / 1e9:.2f} GB; expected at most the "
            f"{there / 1e9:.2f} GB of {plan.card.name}; change it: {changes}; `ltxkit plan --train` lists every phase"
        )


def fitting_plan(
    config: TransformerTraining, card: Card, *, processes: int = 1, device: torch.device | None = None
) -> TrainingPlan:
    """The plan of a config; where it does not fit, with the settings that make it fit, tried in the order in which
    they cost least. Arguments and errors as `plan_transformer`."""
    first = plan_transformer(config, card, processes=processes, device=device)
    if first.fits:
        return first
    said: list[str] = []
    for text, changed in _changes(config, first, processes):
        candidate = changed(config)
        if candidate is None:
            continue
        config = candidate
        said.append(text)
        tried = plan_transformer(config, card, processes=processes)
        if tried.fits:
            return replace(first, changes=tuple(said))
    resident = _resident_that_fits(config, card, processes)
    if resident is not None:
        return replace(first, changes=(*said, f"optimization.resident_blocks={resident}"))
    return first


_Change = tuple[str, Callable[[TransformerTraining], "TransformerTraining | None"]]


def _changes(config: TransformerTraining, plan: TrainingPlan, processes: int) -> Sequence[_Change]:
    """Settings that save memory, each with the config that it gives, or None where it changes nothing."""
    optimization = config.optimization
    one_by_one = max(1, optimization.batch_size // (processes // optimization.sequence_parallel))

    def with_optimization(name: str, value: Any) -> Callable[[TransformerTraining], TransformerTraining | None]:
        def changed(given: TransformerTraining) -> TransformerTraining | None:
            new = replace(given.optimization, **{name: value})
            return None if new == given.optimization else replace(given, optimization=new)

        return changed

    def quantized(name: str) -> Callable[[TransformerTraining], TransformerTraining | None]:
        def changed(given: TransformerTraining) -> TransformerTraining | None:
            return None if given.lora is None or given.quantization == name else replace(given, quantization=name)

        return changed

    changes: list[_Change] = [
        ("optimization.gradient_checkpointing=true", with_optimization("gradient_checkpointing", True)),
        (
            f"optimization.accumulation={one_by_one}",
            with_optimization("accumulation", one_by_one),
        ),
    ]
    worst = max(plan.stages, key=lambda stage: stage.peak).name
    if worst == "validate":
        changes.append(("prompts=[]", lambda given: replace(given, prompts=())))
    if config.lora is None:
        changes.append(("optimization.optimizer=adafactor", with_optimization("optimizer", "adafactor")))
    if (
        config.lora is not None
        and config.initial is not None
        and config.quantization is None
        and _is_plain(config.initial, config.version)
    ):
        changes.append(("quantization=int8", quantized("int8")))
    if not plan.card.is_main_memory:
        changes.append(("optimization.offload_activations=true", with_optimization("offload_activations", True)))
    return changes


def _is_plain(initial: Path, version: str | None) -> bool:
    """Whether the base is not quantized in its file."""
    opened = open_models(checkpoint_file(initial, "model.safetensors"), version=version, data=False)
    return opened.transformer()[1].quantization is None


def _resident_that_fits(config: TransformerTraining, card: Card, processes: int) -> int | None:
    """How many blocks of a LoRA's base can stay on the card; None: not even none."""
    if config.lora is None or card.is_main_memory:
        return None
    config = replace(config, optimization=replace(config.optimization, gradient_checkpointing=True, resident_blocks=0))
    least = plan_transformer(config, card, processes=processes)
    if not least.fits:
        return None
    blocks = _outline(config, card.is_main_memory).base
    each = max(Weights.of(blocks).blocks, default=1)
    room = card.available - max(least.stage(name).peak for name in ("train", "validate", "export") if _has(least, name))
    return max(0, min(len(blocks.blocks().blocks) - 1, room // each))


def _has(plan: TrainingPlan, name: str) -> bool:
    return any(stage.name == name for stage in plan.stages)

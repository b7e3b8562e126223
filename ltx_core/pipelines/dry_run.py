"""The memory plan of a run, from the headers of its files: which stages it has, at which sizes, in which tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..budget import stages
from ..budget.packing import packed_bytes, room_for_packing
from ..budget.plan import Card, Plan, Stage
from ..budget.tiling import Tiling
from ..budget.unpacked import room_for_unpacked, unpacked_blocks, unpacked_bytes, unpacked_dtype
from ..budget.weights import Weights, resident_blocks, room_for_weights, room_for_work
from ..config import TextEncoderConfig
from ..errors import ConfigError, UnsupportedError
from ..kernels.choice import PLAIN, WITHOUT_BFLOAT16, Kernels
from ..kernels.here import kernels_here
from ..main_memory import swap_memory
from ..models.sharing import check_heads
from ..models.tokenizer import MAX_TOKENS
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import VideoVAE
from ..placing.devices import chosen_device, memory
from ..placing.lora import LoRAMode, check_mode, copied_bytes, device_bytes, merging_work
from ..shapes import LatentShape, PixelShape
from ..values import check_whole
from ..weights.build import CheckpointInfo, Opened, OpenFiles, open_files
from ..weights.containers import DTYPE_NAMES
from ..weights.layouts import PartName
from ..weights.lora import WeightedLoRA
from ..weights.text_encoder import text_encoder_on_meta
from .division import divisions_of, usual_divisions
from .passes import Pass
from .recipe import check_recipe, recipe_for
from .settings import Settings, Which
from .two_stage import first_pass_size


@dataclass(frozen=True, eq=False)
class Outline:
    """The models of a run, on meta or loaded: the plan reads only configs, shapes and dtypes.

    text_encoder: the model and its config. converted: bytes that loading allocates in addition to the mapped files.
    kernels: by which a CPU computes; None: those of this machine. bfloat16: whether the card computes in it.
    """

    transformer: LTXTransformer
    vae: VideoVAE
    info: CheckpointInfo
    text_encoder: tuple[nn.Module, TextEncoderConfig] | None = None
    upscaler: LatentUpsampler | None = None
    converted: int = 0
    kernels: Kernels | None = None
    bfloat16: bool = True

    @cached_property
    def weights(self) -> Mapping[str, Weights]:
        """Bytes of every model, by its name in a plan."""
        parts: dict[str, nn.Module | None] = {
            "text encoder": self.text_encoder[0] if self.text_encoder else None,
            "transformer": self.transformer,
            "VAE encoder": self.vae.encoder,
            "VAE decoder": self.vae.decoder,
            "upscaler": self.upscaler,
        }
        return {name: Weights.of(part) for name, part in parts.items() if part is not None}


def outline(
    model: Path | str | OpenFiles,
    text_encoder: Path | str | None = None,
    *,
    vae: Path | str | None = None,
    upscaler: Path | str | None = None,
    version: str | None = None,
    dtype: torch.dtype | None = None,
    quantization: str | None = None,
    text_quantization: str | None = None,
) -> Outline:
    """The models in these files, from their headers; no weight is read. Arguments and errors as `Components.load`.

    model: or all of the files, if they are open already.
    """
    if not isinstance(model, OpenFiles):
        model = open_files(model, text_encoder, vae=vae, upscaler=upscaler, version=version)
    opened, vae_opened, text_opened, upscaler_opened = model.without_data()
    transformer, info = opened.transformer(dtype=dtype, quantization=quantization)
    if version is not None:
        check_recipe(version, transformer.config.num_layers, "version")
    loaded_vae = vae_opened.vae(dtype=dtype)
    loaded_upscaler = upscaler_opened.upscaler(dtype=dtype) if upscaler_opened else None
    encoder = text_encoder_on_meta(text_opened, dtype=dtype, quantization=text_quantization) if text_opened else None
    parts: list[tuple[Opened | None, PartName, nn.Module | None]] = [
        (opened, "transformer", transformer),
        (vae_opened, "vae", loaded_vae),
        (upscaler_opened, "upscaler", loaded_upscaler),
        (text_opened, "text_encoder", encoder[0] if encoder else None),
    ]
    converted = sum(_converted_bytes(file, name, part) for file, name, part in parts if file and part is not None)
    return Outline(transformer, loaded_vae, info, encoder, loaded_upscaler, converted)


def _converted_bytes(opened: Opened, name: PartName, model: nn.Module) -> int:
    """Bytes of a model (on meta) that differ from its file, and for which loading therefore allocates memory; all of
    them where weights are copied."""
    stored = opened.stored(name)
    converted = 0
    seen: set[int] = set()
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        origin = stored.get(key) or stored.get(f"{key.removesuffix('packed')}weight")
        packed = origin is not None and origin.dtype not in DTYPE_NAMES.values()
        same = origin is not None and origin.nbytes == tensor.nbytes
        is_as_stored = same and (packed or origin is None or DTYPE_NAMES[tensor.dtype] == origin.dtype)
        if (opened.copied or not is_as_stored) and id(tensor) not in seen:
            seen.add(id(tensor))
            converted += tensor.nbytes
    return converted


# --- cards ------------------------------------------------------------------------------------------------------------


def card_here(device: str | torch.device | None = None) -> Card:
    """The device that a run would use, `device` or the best available, with its free memory now.

    Raises:
        ConfigError: no such device, or the system does not report how much memory it has.
    """
    chosen = chosen_device(device)
    available = memory(chosen)
    if available is None:
        raise ConfigError(
            f"got {chosen}, whose memory this system does not report; expected a size; set the number of GiB"
        )
    is_cpu = chosen.type == "cpu"
    return Card("main memory" if is_cpu else str(chosen), available.free, available.total, is_main_memory=is_cpu)


def check_fits(models: Outline, size: PixelShape, device: torch.device, processes: int = 1) -> None:
    """Refuse a clip whose work is more than all the memory that there is, in words rather than an allocator's.

    What is more than the free memory alone may still go well, and is left to the run. processes: that make the clip
    together.

    Raises:
        UnsupportedError: it does not fit.
    """
    there = memory(device)
    if there is None:
        return
    is_cpu = device.type == "cpu"
    total = there.total + (swap_memory() if is_cpu else 0)
    card = Card("main memory" if is_cpu else str(device), there.total, there.total, is_main_memory=is_cpu)
    needed = _plan(models, size, card, Choices(processes=processes))
    if needed.peak > total:
        stage = max(needed.stages, key=lambda stage: stage.peak)
        raise UnsupportedError(
            f"got {size.frames} frames of {size.width}x{size.height} pixels, for which the stage '{stage.name}' takes "
            f"{needed.peak / 1e9:.1f} GB; expected at most the {total / 1e9:.1f} GB of {card.name}; make the clip "
            "smaller or shorter: `ltxkit plan` names a size that fits"
        )


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choices:
    """What the user chooses instead of the planner.

    branches: of a step of the (first) pass; None: as in the recipe. resident: blocks of the transformer that stay on
    the card. tiling: of the decoder. text_tokens: length of a prompt. shows_picture: whether a picture is a condition.
    follows_reference: whether there is the reference video of an IC-LoRA, which has as many tokens as the clip.
    processes: among which each forward of the transformer and the decoding are divided. loras: applied to the
    transformer, in the way that lora_mode says. cuda_graphs: whether blocks are recorded on a card.
    """

    branches: int | None = None
    resident: int | None = None
    tiling: Tiling | None = None
    text_tokens: int = MAX_TOKENS
    shows_picture: bool = False
    follows_reference: bool = False
    processes: int = 1
    loras: tuple[WeightedLoRA, ...] = ()
    lora_mode: LoRAMode = "auto"
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.branches is not None:
            check_whole("branches", self.branches, 1, 3, advice="1 is plain, 2 with guidance, 3 with STG")
        if self.resident is not None:
            check_whole("resident_blocks", self.resident, 0, advice="leave it out for as many as fit")
        check_whole("text_tokens", self.text_tokens, 1, advice="pass the length of a prompt")
        check_whole("processes", self.processes, 1, advice="leave it out for one")


AUTO = Choices()


def plan(models: Outline, size: PixelShape, card: Card, choices: Choices = AUTO) -> Plan:
    """The memory of a run at `size` (of the result, any) on `card`, in two passes if there is an upscaler.

    If the run does not fit, the plan names the nearest sizes that do: the same length and shape but smaller, and the
    same size but shorter.

    Raises:
        ConfigError: not even the smallest clip fits, more processes than heads of attention, or a mode of LoRAs that
            cannot be. CheckpointError: a LoRA that is not for the model.
        ShapeError: a size that two passes cannot have.
    """
    check_heads(choices.processes, models.transformer.config.num_attention_heads)
    check_mode(choices.lora_mode, choices.loras, models.transformer)
    full = _plan(models, size, card, choices)
    if full.fits:
        return full

    def first(sizes: Iterator[PixelShape]) -> PixelShape | None:
        return next((size for size in sizes if _plan(models, size, card, choices).fits), None)

    smaller, shorter = first(_smaller(models, size)), first(_shorter(models, size))
    if smaller is None and shorter is None:
        least = _least(models, card, choices)
        if not least.fits:
            stage = max(least.stages, key=lambda stage: stage.peak)
            raise ConfigError(
                f"got {card.name}, {card.available / 1e9:.2f} GB of it to use; expected at least "
                f"{least.peak / 1e9:.2f} GB, which the stage '{stage.name}' takes for the smallest clip; use a "
                "quantized file (GGUF, fp8) or another device"
            )
    return replace(full, smaller=smaller, shorter=shorter)


def _least(models: Outline, card: Card, choices: Choices) -> Plan:
    """The plan of the smallest possible clip."""
    scale = models.vae.config.scale_factors
    side = 2 if models.upscaler is not None else 1
    return _plan(models, PixelShape(1, side * scale.height, side * scale.width), card, choices)


def _smaller(models: Outline, size: PixelShape) -> Iterator[PixelShape]:
    """Ever smaller sizes of about the same shape, by one row or column of cells at a time."""
    scale = models.vae.config.scale_factors
    rows, columns = math.ceil(size.height / scale.height), math.ceil(size.width / scale.width)
    least = 2 if models.upscaler is not None else 1  # two thirds of 2, rounded down, are the first pass's one cell
    longer = max(rows, columns)
    for cells in range(longer - 1, 0, -1):
        height, width = (max(round(side * cells / longer), 1) for side in (rows, columns))
        if min(height, width) >= least:
            yield PixelShape(size.frames, height * scale.height, width * scale.width)


def _shorter(models: Outline, size: PixelShape) -> Iterator[PixelShape]:
    step = models.vae.config.scale_factors.frames
    for frames in range((size.frames - 2) // step * step + 1, 0, -step):
        yield PixelShape(frames, size.height, size.width)


def _plan(models: Outline, size: PixelShape, card: Card, choices: Choices) -> Plan:
    if card.is_main_memory:  # in which all processes of a machine have what the one would have
        choices = replace(choices, processes=1)
    scale = models.vae.config.scale_factors
    two = models.upscaler is not None
    small = (first_pass_size(size, scale) if two else size.padded(scale)).latent(scale)
    large = LatentShape(small.frames, 2 * small.height, 2 * small.width)
    grids: dict[Which, LatentShape] = {"first": small, "second": large} if two else {"one": small}
    passes = {which: _pass(models, which, grid) for which, grid in grids.items()}
    branches = {which: passes[which].branches for which in grids}
    first, last = next(iter(grids)), next(reversed(grids))
    if choices.branches is not None:
        branches[first] = choices.branches

    run_stages: list[Stage] = []
    if models.text_encoder is not None:
        run_stages.append(_text_stage(models, models.text_encoder, card, choices))
    if choices.shows_picture or choices.follows_reference:
        frames = grids[last].frames if choices.follows_reference else 1
        grid_of_frames = LatentShape(frames, grids[last].height, grids[last].width)
        run_stages.append(_vae_stage("encode", models, grid_of_frames, card, AUTO))
    kept: dict[str, int] = {}  # by pass
    for which, grid in grids.items():
        if which == "second" and models.upscaler is not None:
            run_stages.append(_upscale_stage(models, models.upscaler, small, card))
        stage, kept[passes[which].stage] = _transformer_stage(
            passes[which], models, grid, branches[which], card, choices
        )
        run_stages.append(stage)
    run_stages.append(_vae_stage("decode", models, grids[last], card, choices))
    run_stages = _with_recorded(run_stages, kept)
    weights = {name: part.total for name, part in models.weights.items()}
    blocks = models.weights["transformer"].blocks
    weights |= {
        "transformer, outside the blocks": models.weights["transformer"].outside,
        f"transformer, each of {len(blocks)} blocks": max(blocks, default=0),
    }
    most = max(branches.values())
    return Plan(card, size, most, dict(sorted(weights.items())), models.converted, tuple(run_stages))


def _pass(models: Outline, which: Which, grid: LatentShape) -> Pass:
    """A pass by the recipe of the model."""
    recipe, _ = recipe_for(models.info.versions)
    return Pass.of(models.transformer, Settings(recipe), which, grid.tokens, scheduler=models.info.scheduler)


def _kernels(models: Outline, card: Card) -> Kernels:
    """By which the models compute: what was chosen for main memory, or a card's dtypes."""
    if not card.is_main_memory:
        return PLAIN if models.bfloat16 else WITHOUT_BFLOAT16
    return kernels_here() if models.kernels is None else models.kernels


def _held(weights: Weights, resident: int | None, card: Card) -> int:
    return 0 if card.is_main_memory else weights.on_device(resident)


def _packed(module: nn.Module, models: Outline, work: int, card: Card, copies: int = 0) -> int:
    """Bytes of packed weights beside those in the file, for a model that stays whole. copies: that LoRAs take there."""
    if not card.is_main_memory:
        return 0
    return packed_bytes(module, _kernels(models, card), max(0, _room_beside(models, work, card) - copies))


def _room_beside(models: Outline, work: int, card: Card) -> int:
    """Bytes of main memory for what is made of weights in files."""
    return room_for_packing(card.available - models.converted, card.total, work)


def _copies(models: Outline, work: int, card: Card, choices: Choices) -> int:
    """Bytes of the copies into which LoRAs are merged in main memory; 0 where there is no room for all of them. A card
    has copies anyway."""
    if not card.is_main_memory or not choices.loras:
        return 0
    wanted = copied_bytes(models.transformer, choices.loras, choices.lora_mode)
    return wanted if choices.lora_mode == "merged" or wanted <= _room_beside(models, work, card) else 0


def _stack_stage(
    name: str,
    model: str,
    module: nn.Module,
    models: Outline,
    work: int,
    card: Card,
    choices: Choices = AUTO,
) -> Stage:
    """A stage with a model that can be streamed. model: its name in the plan. choices: for this model."""
    asked = choices.resident
    weights = models.weights[model]
    resident = asked if asked is not None and asked < len(weights.blocks) else None
    if asked is None and not card.is_main_memory:
        resident = resident_blocks(weights, room_for_weights(card.available, card.total, work))
    copies = _copies(models, work, card, choices)
    packed = _packed(module, models, work, card, copies) if resident is None else 0
    held = _held(weights, resident, card)
    stage = Stage(name, model, weights.total, held, len(weights.blocks), resident, work, packed=packed, copies=copies)
    return stage if card.is_main_memory or resident is not None else _unpacked(stage, module, models, card)


def _unpacked(stage: Stage, module: nn.Module, models: Outline, card: Card) -> Stage:
    """The stage with as many blocks unpacked as a card has room for."""
    if not isinstance(module, LTXTransformer):
        return stage
    dtype = unpacked_dtype(module, _kernels(models, card))
    count = unpacked_blocks(module, dtype, room_for_unpacked(card.available, card.total, stage.activations, module))
    return replace(stage, unpacked=count, unpacked_bytes=sum(unpacked_bytes(module, dtype)[:count]))


def _text_stage(models: Outline, encoder: tuple[nn.Module, TextEncoderConfig], card: Card, choices: Choices) -> Stage:
    work = stages.encoding_text(
        *encoder, choices.text_tokens, on_cpu=card.is_main_memory, kernels=_kernels(models, card)
    )
    return _stack_stage("encode text", "text encoder", encoder[0], models, work, card)


def _transformer_stage(
    run_pass: Pass, models: Outline, grid: LatentShape, branches: int, card: Card, choices: Choices
) -> tuple[Stage, int]:
    """The stage, and the bytes that CUDA graphs keep after it."""
    same = branches == run_pass.branches
    divisions = (
        divisions_of(run_pass, choices.processes) if same else usual_divisions(run_pass, branches, choices.processes)
    )
    sizes: dict[str, Any] = {
        "tokens": grid.tokens * (2 if choices.follows_reference else 1),
        "branches": branches,
        "text_tokens": [choices.text_tokens] * min(branches, 2),
        "kernels": _kernels(models, card),
    }
    work = stages.sampling(models.transformer, **sizes, on_cpu=card.is_main_memory, divisions=divisions)
    records = choices.cuda_graphs and not card.is_main_memory
    copies, kept = stages.recording(models.transformer, **sizes) if records else (0, 0)
    work += copies
    work += device_bytes(choices.loras, models.transformer.dtype.itemsize)
    work += merging_work(models.transformer, choices.loras, choices.lora_mode)
    return _stack_stage(run_pass.stage, "transformer", models.transformer, models, work, card, choices), kept


def _with_recorded(run_stages: Sequence[Stage], kept: Mapping[str, int]) -> list[Stage]:
    """The stages with what CUDA graphs of passes before keep. All passes share one pool, as large as the largest."""
    found: list[Stage] = []
    pool = 0
    for stage in run_stages:
        own = kept.get(stage.name, 0)  # in its work already
        found.append(replace(stage, recorded=max(0, pool - own)))
        pool = max(pool, own)
    return found


def _upscale_stage(models: Outline, upscaler: LatentUpsampler, grid: LatentShape, card: Card) -> Stage:
    weights = models.weights["upscaler"]
    work = stages.upscaling(upscaler, grid, on_cpu=card.is_main_memory, kernels=_kernels(models, card))
    packed = _packed(upscaler, models, work, card)
    return Stage("upscale", "upscaler", weights.total, _held(weights, None, card), 0, None, work, packed=packed)


def _vae_stage(name: str, models: Outline, grid: LatentShape, card: Card, choices: Choices) -> Stage:
    """Decoding or encoding, with the tiling of `decode_frames` and `encode_posterior`."""
    part = f"VAE {'decoder' if name == 'decode' else 'encoder'}"
    weights = models.weights[part].total
    room = None if card.is_main_memory else room_for_work(card.available, card.total, weights)
    work_of = partial(stages.decoding, processes=choices.processes) if name == "decode" else stages.encoding
    tiling, work = work_of(
        models.vae, grid, choices.tiling, room, on_cpu=card.is_main_memory, kernels=_kernels(models, card)
    )
    half = models.vae.decoder if name == "decode" else models.vae.encoder
    held, packed = _held(models.weights[part], None, card), _packed(half, models, work, card)
    return Stage(name, part, weights, held, 0, None, work, _in_words(tiling, grid), packed)


def _in_words(tiling: Tiling, grid: LatentShape) -> str:
    count = len(tiling.tiles(grid.height, grid.width))
    frames = f"{tiling.frames} {'frame' if tiling.frames == 1 else 'frames'} at once"
    return frames if count == 1 else f"{count} tiles, {frames}"

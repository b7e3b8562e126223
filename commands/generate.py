"""`ltxkit generate`: clips from prompts, and from pictures and videos where there are any."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ltx_core.errors import ConfigError, LTXKitError
from ..ltx_core.locks import Claims
from ..ltx_core.shapes import PixelShape
from ..ltx_core.weights.bundled import BUNDLED, BUNDLED_SIZE, find_model, is_bundled
from . import again, arguments, formats, names, settings
from .command import DONE, Command
from .console import Console
from .distributed import Processes
from .jobs import Job, check_results, jobs_of, prompts_of
from .options import EXAMPLES, declare
from .places import MODEL, TEXT_ENCODER, UPSCALER, VAE, Places
from .starts import Source, check_inputs, check_places, conditions_of, inputs_of, sound_of, source_of, started

if TYPE_CHECKING:
    import torch

    from ..ltx_core.models.sharing import Sharing
    from ..ltx_core.pipelines.clip import Clip
    from ..ltx_core.pipelines.condition import ConditioningItem
    from ..ltx_core.pipelines.dry_run import Outline
    from ..ltx_core.pipelines.library import Components
    from ..ltx_core.pipelines.long_clip import LongRequest
    from ..ltx_core.pipelines.recipe_file import RecipeFile
    from ..ltx_core.pipelines.settings import Overrides
    from ..ltx_core.releases import Recipe
    from ..ltx_core.weights.build import OpenFiles
    from ..ltx_core.weights.lora import WeightedLoRA

# ---------------------------------------------------------------------------------------------------------- one command


@dataclass(frozen=True, eq=False)
class _Request:
    """A command whose every value is settled and checked; nothing is loaded.

    models, loras: headers, and models on meta. said: over the recipe of the checkpoint. size: (width, height).
    sharing: the processes that make the clip together.
    """

    files: OpenFiles
    found: dict[str, Path | None]
    loras: Sequence[WeightedLoRA]
    said: Overrides
    size: tuple[int, int]
    frames: int
    fps: Fraction | None
    conditions: Sequence[ConditioningItem]
    source: Source | None
    negative: str | None
    long: LongRequest | None = None
    sharing: Sharing | None = None


def _generate(options: argparse.Namespace, console: Console) -> int:
    with Processes(options.device, compile=options.compile or options.cuda_graphs) as processes, Claims() as claims:
        return _make(options, processes.console(console), claims, processes)


def _make(options: argparse.Namespace, console: Console, claims: Claims, processes: Processes) -> int:
    prompts = prompts_of(options)
    check_inputs(options)
    jobs = processes.first(lambda: jobs_of(options, prompts, claims))
    processes.write_into(path.parent for job in jobs for path in job.results)
    formats.check_formats(options, [job.output for job in jobs])
    check_results(jobs, inputs_of(options))
    request = _settled(options, jobs, console, processes)
    ltx = _load(options, request, console, processes)
    made: list[dict[str, Any]] = []
    for number, job in enumerate(jobs, 1):
        if len(jobs) > 1:
            console.note(f"clip {number} of {len(jobs)}: {job.output}, seed {job.seed}")
        started = time.monotonic() if made else console.started
        clip = _clip(ltx, options, request, job, console)
        clip = clip if processes.sharing is None else clip.together()
        if not processes.is_first:
            output = formats.output_of(options, job.output, clip.size)
            clip.save(output, contact_sheet=job.contact_sheet, progress=False)  # the first process writes
            continue
        _save(clip, options, request, job, console)
        made.append(_report(clip, job, time.monotonic() - started, console))
        if not options.json:
            for path in job.results:
                console.told(str(path))
        console.note(_closing(made[-1]))
    if options.json and processes.is_first:
        console.told(json.dumps({"clips": made, "seconds": round(time.monotonic() - console.started, 3)}, indent=2))
    return DONE


def _settled(options: argparse.Namespace, jobs: Sequence[Job], console: Console, processes: Processes) -> _Request:
    """Everything that the run needs, checked from options, headers and inputs.

    Raises:
        LTXKitError: what cannot be, before a model is loaded.
    """
    from ..ltx_core.pipelines.preflight import recipe_of
    from ..ltx_core.placing.devices import chosen_device, spare_main_memory
    from ..ltx_core.weights.text_encoder import find_tokenizer

    spare_main_memory()
    recipe = _recipe_file(options)
    said = settings.overrides(options, recipe.overrides if recipe else None)
    names_of_devices = processes.device or _device(options)
    listed = names_of_devices if isinstance(names_of_devices, list) else [names_of_devices]
    devices = [chosen_device(name) for name in listed]
    found = _found(options, recipe, console)
    check_results(jobs, [path for path in found.values() if path is not None])
    loras = _loras(options)
    files = _open_files(options, found)
    models = _outline(options, files)
    if models.text_encoder is not None and found["text_encoder"] is not None:
        encoder = find_model(found["text_encoder"], "text_encoders")
        find_tokenizer(encoder, options.tokenizer, vocabulary=models.text_encoder[1].vocab_size)
    own = recipe_of(models, loras, options.settings)
    if recipe is not None and recipe.passes == 2 and found["upscaler"] is None:
        raise ConfigError(
            f"got {options.recipe}, a recipe of two passes, without an upscaler; expected one; add --upscaler "
            f"{recipe.upscaler or 'FILE'} (`ltxkit fetch {UPSCALER.fetch}` brings one)"
        )
    source = source_of(options, console)
    said = started(said, source, options)
    size, frames = _size(options, recipe, own, source, found)
    check_places(options, frames)
    for job in jobs:
        formats.output_of(options, job.output, PixelShape.asked(frames, size[1], size[0]))
    rate = options.fps or (source.fps if source is not None else None)
    conditions, rate = conditions_of(options, frames, rate, console)
    if rate is None and recipe is not None and recipe.fps is not None:
        rate = Fraction(recipe.fps).limit_denominator(1001)
    negative = options.negative if options.negative is not None or recipe is None else recipe.negative_prompt
    request = _Request(
        files, found, loras, said, size, frames, rate, conditions, source, negative, sharing=processes.sharing
    )
    if options.long is not None:
        request = replace(request, long=_long(options, request, own, jobs[0].seed))
    device = devices[0] if len(devices) == 1 else None
    _check_request(options, models, request, device, len(jobs[0].prompts), console)
    return request


def _recipe_file(options: argparse.Namespace) -> RecipeFile | None:
    if options.recipe is None:
        return None
    from ..ltx_core.pipelines.recipe_file import read_recipe

    return read_recipe(options.recipe)


def _found(options: argparse.Namespace, recipe: RecipeFile | None, console: Console) -> dict[str, Path | None]:
    """The files of the models, by the names of their options; what was searched for is told."""
    from ..ltx_core.weights.listing import holds

    places = Places(options.models)
    named = places.named(MODEL, recipe.model) if recipe is not None and options.model is None else None
    model = places.need(MODEL, options.model or named)
    found: dict[str, Path | None] = {"model": model.path, "text_encoder": options.text_encoder, "vae": options.vae}
    told = [(MODEL, model)]
    file = find_model(model.path, "checkpoints")
    if options.text_encoder is None and is_bundled(file):
        found["text_encoder"] = Path(BUNDLED)
    elif options.text_encoder is None and file.is_dir() and holds(file, "text_encoder"):
        found["text_encoder"] = file
    else:
        encoder = places.need(TEXT_ENCODER, options.text_encoder, beside=file)
        found["text_encoder"] = encoder.path
        told.append((TEXT_ENCODER, encoder))
    if options.vae is not None or not holds(file, "vae"):
        vae = places.find(VAE, options.vae)
        found["vae"] = vae.path if vae is not None else None
        told += [(VAE, vae)] if vae is not None else []
    wanted = options.upscaler or (places.named(UPSCALER, recipe.upscaler) if recipe is not None else None)
    upscaler = places.find(UPSCALER, wanted) if wanted is not None else None
    found["upscaler"] = upscaler.path if upscaler is not None else None
    for role, one in told:
        if one.place != role.option:
            console.note(f"{role.what}: {one.path}, from {one.place}")
    return found


def _loras(options: argparse.Namespace) -> list[WeightedLoRA]:
    from ..ltx_core.weights.lora import WeightedLoRA, load_lora

    return [
        WeightedLoRA(load_lora(path, copy=options.copy), strength, options.allow_partial)
        for path, strength in options.lora
    ]


def _device(options: argparse.Namespace) -> str | list[str] | None:
    """The value of --device: one name or several."""
    return options.device.split(",") if options.device and "," in options.device else options.device


def _open_files(options: argparse.Namespace, found: dict[str, Path | None]) -> OpenFiles:
    from ..ltx_core.weights.build import open_files

    assert found["model"] is not None
    return open_files(
        found["model"],
        found["text_encoder"],
        vae=found["vae"],
        upscaler=found["upscaler"],
        version=options.version,
        copy=options.copy,
    )


def _outline(options: argparse.Namespace, files: OpenFiles) -> Outline:
    from ..ltx_core.pipelines.dry_run import outline

    return outline(
        files,
        version=options.version,
        dtype=arguments.torch_dtype(options.dtype),
        quantization=options.quantization,
        text_quantization=options.text_quantization,
    )


def _size(
    options: argparse.Namespace,
    recipe: RecipeFile | None,
    own: Recipe,
    source: Source | None,
    found: dict[str, Path | None],
) -> tuple[tuple[int, int], int]:
    """(width, height) and length of the result: as asked, of the video that is made anew, or of the recipe."""
    width, height, frames = own.width, own.height, own.num_frames
    if _is_bundled(found):
        frames, height, width = BUNDLED_SIZE
        if found["upscaler"] is not None:
            height, width = 2 * height, 2 * width
    if recipe is not None:
        width, height, frames = recipe.width or width, recipe.height or height, recipe.frames or frames
    if source is not None:
        frames, height, width = source.frames.shape[:3]
    return options.size or (width, height), options.long or options.frames or frames


def _long(options: argparse.Namespace, request: _Request, own: Recipe, seed: int) -> LongRequest:
    """The long clip that the options ask for."""
    from ..ltx_core.pipelines.long_clip import LongRequest

    width, height = request.size
    return LongRequest(
        asked=PixelShape.asked(request.frames, height, width),
        fps=request.fps or Fraction(own.frame_rate),
        seed=seed,
        window=options.window or (BUNDLED_SIZE[0] if _is_bundled(request.found) else own.num_frames),
        overlap=options.overlap,
        conditions=request.conditions,
        crf=options.crf,
        negative_prompt=request.negative,
        settings=request.said,
        keep=options.keep_windows,
        force=options.force,
    )


def _is_bundled(found: dict[str, Path | None]) -> bool:
    model = found["model"]
    return model is not None and is_bundled(find_model(model, "checkpoints"))


def _check_request(
    options: argparse.Namespace,
    models: Outline,
    request: _Request,
    device: torch.device | None,
    prompts: int,
    console: Console,
) -> None:
    """Refuse from the headers of the files what the models would refuse, once they are loaded."""
    from ..ltx_core.pipelines.preflight import check_request
    from ..ltx_core.placing.lora import check_mode

    width, height = request.size
    asked, scale = PixelShape.asked(request.frames, height, width), models.vae.config.scale_factors
    if request.long is not None:
        request.long.windows(prompts, scale)
    passes = check_request(
        models,
        asked if request.long is None else request.long.window_size(scale),
        request.said,
        settings=options.settings,
        loras=request.loras,
        device=None if options.force else device,
        sharing=request.sharing,
    )
    check_mode(options.lora_mode, request.loras, models.transformer)
    if request.source is not None:
        request.source.start.check(passes[0], asked, request.said.first.denoise_strength)
    for item in request.conditions:
        item.check_place(request.frames, scale.frames)
    if not models.info.versions and options.settings is None:
        for run_pass in passes:
            console.note(f"{run_pass.stage}: {run_pass.describe()}")


def _load(options: argparse.Namespace, request: _Request, console: Console, processes: Processes) -> Components:
    from ..ltx_core.pipelines.library import Components

    found = request.found
    assert found["model"] is not None
    assert found["text_encoder"] is not None
    return Components.load(
        found["model"],
        found["text_encoder"],
        vae=found["vae"],
        upscaler=found["upscaler"],
        tokenizer=options.tokenizer,
        version=options.version,
        dtype=arguments.torch_dtype(options.dtype),
        quantization=options.quantization,
        text_quantization=options.text_quantization,
        fp8_matmul=options.fp8_matmul,
        loras=request.loras,
        lora_mode=options.lora_mode,
        settings=options.settings,
        device=processes.device or _device(options),
        resident_blocks=options.resident_blocks,
        tile=options.tile,
        kernels=options.kernels,
        compile=options.compile,
        cuda_graphs=options.cuda_graphs,
        keep=None if options.upscaler or _makes_several(options) else False,
        cache=False if options.no_cache else None,
        copy=options.copy,
        group=processes.group,
        opened=request.files,
        progress=console.progress,
        notes=console.note,
    )


def _makes_several(options: argparse.Namespace) -> bool:
    return options.count > 1 or options.prompts is not None or len(options.prompt) > 1


def _clip(ltx: Components, options: argparse.Namespace, request: _Request, job: Job, console: Console) -> Clip:
    if request.long is not None:
        return ltx.generate_long(job.prompts, request.long, progress=console.progress, notes=console.note)
    width, height = request.size
    return ltx.generate(
        job.prompts[0],
        negative_prompt=request.negative,
        width=width,
        height=height,
        frames=request.frames,
        fps=request.fps,
        seed=job.seed,
        conditions=request.conditions,
        crf=options.crf,
        start=None if request.source is None else request.source.frames,
        mask=None if request.source is None else request.source.mask,
        settings=request.said,
        force=options.force,
        progress=console.progress,
        notes=console.note,
    )


def _save(clip: Clip, options: argparse.Namespace, request: _Request, job: Job, console: Console) -> None:
    """Write the results; the latent goes to the folder for temporary files where they cannot be."""
    try:
        clip = again.with_options(clip, options, request.found, job.prompts)
        sound = sound_of(options, request.frames / clip.fps, console)
        output = formats.output_of(options, job.output, clip.size)
        for remark in output.remarks(clip.size, has_sound=sound is not None):
            console.note(remark)
        if job.save_latent:
            clip.save_latent(job.save_latent)
        clip.save(
            output,
            contact_sheet=job.contact_sheet,
            sound=sound,
            metadata=not options.no_metadata,
            progress=console.progress,
        )
    except (LTXKitError, OSError) as error:
        place = _rescued(clip, job)
        if place is None:
            raise
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        kept = f"{reason}; the latent is kept in {place}: `ltxkit run` and ComfyUI read it with Load Latent"
        raise type(error)(*([error.errno] if isinstance(error, OSError) else []), kept) from error


def _rescued(clip: Clip, job: Job) -> Path | None:
    """Where the latent of a clip was kept that could not be written; None: nowhere."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="ltxkit-"))
    except OSError:
        return None
    try:
        place = folder / f"{names.slug(job.prompts[0])}-{job.seed}.latent"
        clip.save_latent(place)
    except (LTXKitError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return place


def _report(clip: Clip, job: Job, seconds: float, console: Console) -> dict[str, Any]:
    """What became of a job, as JSON values."""
    return {
        "file": str(job.output),
        "prompts": list(job.prompts),
        "seed": job.seed,
        "width": clip.size.width,
        "height": clip.size.height,
        "frames": clip.size.frames,
        "fps": str(clip.fps),
        **{name: str(path) for name in ("save_latent", "contact_sheet") if (path := getattr(job, name)) is not None},
        "seconds": round(seconds, 3),
        "stages": {stage: round(value, 3) for stage, value in console.times().items()},
    }


def _closing(made: dict[str, Any]) -> str:
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in made["stages"].items() if seconds >= 0.05)
    return (
        f"{made['file']}: {made['frames']} frames of {made['width']}x{made['height']}, seed {made['seed']}, in "
        f"{made['seconds']:.1f} s" + (f" ({stages})" if stages else "")
    )


COMMANDS = (
    Command(
        "generate",
        "Make clips from prompts, and from pictures and videos if there are any.",
        declare,
        _generate,
        EXAMPLES,
    ),
)

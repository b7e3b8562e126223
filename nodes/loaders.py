"""Nodes that load: model and VAE, text encoder, latent upscaler, LoRA."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..ltx_core.errors import ConfigError
from ..ltx_core.filenames import stays_inside
from ..ltx_core.models.upsampler import LatentUpsampler
from ..ltx_core.models.video_vae import VideoVAE
from ..ltx_core.pipelines.preview import fit_preview
from ..ltx_core.pipelines.recipe import versions_with
from ..ltx_core.placing.compiling import compile_where_placed
from ..ltx_core.quant.registry import QUANTIZATION_NAMES, stored_quantization
from ..ltx_core.releases import RELEASES
from ..ltx_core.values import shown
from ..ltx_core.weights.build import Opened, mixed_generations, open_models
from ..ltx_core.weights.bundled import bundled_files, bundled_name
from ..ltx_core.weights.layouts import PartName
from ..ltx_core.weights.listing import SUFFIXES, Listing, holds, listed
from ..ltx_core.weights.lora import WeightedLoRA, load_lora, match_lora
from ..ltx_core.weights.text_encoder import text_encoder_from
from . import sockets
from .host import host
from .launch import Storage
from .widgets import FileChoices, advanced, choice, decimal, integer, link, switch

DTYPES = {"auto": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
RESIDENT_BLOCKS = integer(
    -1,
    -1,
    1000,
    "How many of its blocks stay on the graphics card; the others are streamed from main memory in every step, which "
    "gives the same result. -1: as many as fit.",
)
KEEP_ON_DEVICE = switch(False, "Off: the weights leave the graphics card as soon as the prompts are encoded.")
COMPILE = switch(
    False,
    "On: torch.compile makes kernels for the transformer's blocks, once for any size, length and prompt. The first "
    "clip waits for it, a minute or more; they are kept for later sessions. Needs Triton on a graphics card and a C++ "
    "compiler on a CPU; without it Sample says so and runs as before. Not together with streamed blocks.",
)
CUDA_GRAPHS = switch(
    False,
    "On: as compile, and each block is recorded as a CUDA graph, which pays for small clips. NVIDIA cards alone; "
    "elsewhere Sample says so and runs compiled without. The graphs keep the memory of their work.",
)
SAME_FILE = "in the model file"
FROM_FILE = "from the file"
AUTOMATIC, OF_MODEL = "automatic", "those of the model"
OF_LINK = "that of the link"
NAMED = (*SUFFIXES, ".index.json")  # what a widget may name that the list does not have

MODEL_KINDS = ("checkpoints", "diffusion_models")
VAE_KINDS = ("vae", "checkpoints")
TEXT_ENCODER_KINDS = ("text_encoders",)
UPSCALER_KINDS = ("latent_upscale_models", "upscale_models")
LORA_KINDS = ("loras",)
# A file with several parts is a choice of each part's loader, whichever folder it lies in.
_PARTS: Mapping[tuple[str, ...], PartName] = {
    MODEL_KINDS: "transformer",
    VAE_KINDS: "vae",
    TEXT_ENCODER_KINDS: "text_encoder",
}

AS_STORED = "as stored"
QUANTIZATION_TOOLTIP = (
    "How to hold the large weights. as stored: what the file has (GGUF, fp8 and ComfyUI's quantized files stay as they "
    "are). fp8, int8: half of a bf16 file's memory. mxfp8, int8_convrot: half as well, a little more precise; nvfp4: a "
    "quarter; cards multiply these three as they are (fp8_matmul). "
    "nf4: a quarter of it."
)
FP8_MATMUL_TOOLTIP = (
    "On: multiply fp8 weights in fp8, on cards that can (RTX 40, H100 and later): faster than computing from the same "
    "weights in bf16 (1.2 to 1.5 times on an H200), a little less precise. Needs an fp8 file, or quantization fp8. "
    "Weights in ComfyUI's other formats (int8_tensorwise, mxfp8, nvfp4 and so on) are multiplied as they are too, if "
    "the package comfy-kitchen is there, as in every current ComfyUI. Elsewhere Sample says that it has no effect."
)
DTYPE = choice(
    DTYPES,
    "Type of the weights. auto: as ComfyUI's launch flags say (--bf16-unet, --fp32-vae and so on), or else as stored, "
    "which takes the least memory. bf16, fp16, fp32: converted to that type, whatever the flags; fp16 overflows in "
    "these models now and then.",
)
VERSION = choice(
    [FROM_FILE, *RELEASES],
    "Which release it is; it decides the recommended settings. from the file: what its content shows, and where that "
    "leaves several, what its name says. Choose a release where the node says that it is in doubt.",
)
QUANTIZATION = choice([AS_STORED, *QUANTIZATION_NAMES], QUANTIZATION_TOOLTIP)


# ------------------------------------------------------------------------------------------------ files


def model_files(kinds: Sequence[str]) -> dict[str, Path]:
    """The choices of a loader: weights files, folders in the Hugging Face layout as one entry each, files from the
    folders of the other loaders that hold this one's part as well, and the model that comes with the pack.

    Returns:
        path by name, which is relative to its folder; of equal names, the later one contains its folder's name.
    """
    paths: dict[str, Path] = {}
    for folder, listing in _listings(kinds):
        _add(paths, listing.models, folder)
    part = _PARTS.get(tuple(kinds))
    if part is not None:
        others = [kind for group in _PARTS for kind in group if kind not in kinds]
        for folder, listing in _listings(list(dict.fromkeys(others))):
            _add(paths, {name: path for name, path in listing.models.items() if holds(path, part)}, folder)
    for kind in kinds:
        for name, path in bundled_files(kind).items():
            paths.setdefault(name, path)
    return paths


def _listings(kinds: Sequence[str]) -> Iterator[tuple[Path, Listing]]:
    """Folders of these kinds, each once: several kinds may share one."""
    seen: set[Path] = set()
    for folder in (folder for kind in kinds for folder in host().model_folders(kind)):
        if folder.resolve() not in seen:
            seen.add(folder.resolve())
            yield folder, listed(folder)


def _add(paths: dict[str, Path], models: Mapping[str, Path], folder: Path) -> None:
    for name, path in models.items():
        if paths.get(name) != path:
            paths.setdefault(name if name not in paths else f"{name} [{folder.name}]", path)


def _named(name: str, kinds: Sequence[str]) -> Path | None:
    """The model of this name: one of the list, or a file or folder that is there and not listed by itself, such as a
    shard, or a component of a pipeline.

    A graph from Windows has `\\` between folders.
    """
    files = model_files(kinds)
    for spelling in (name, name.replace("\\", "/")):
        if spelling in files:
            return files[spelling]
        if not stays_inside(spelling):
            continue
        for folder in (folder for kind in kinds for folder in host().model_folders(kind)):
            path = folder / spelling
            if (path.is_file() and spelling.lower().endswith(NAMED)) or (path / "config.json").is_file():
                return path
    return None


def model_path(name: str, kinds: Sequence[str]) -> Path:
    """The file that a loader's widget names. Raises ConfigError, with the available files and their folders."""
    path = _named(name, kinds)
    if path is None:
        raise ConfigError(_missing(name, kinds))
    return path


def file_choices(kinds: Sequence[str], first: str | None = None, last: str | None = None) -> FileChoices:
    """The choices of a widget for a file. first, last: choices that are no file; what comes with the pack follows
    even the last: a saved graph's default stays the default."""
    others = [other for other in (first, last) if other is not None]

    def problem(name: object) -> str | None:
        return None if name in others or (last and name == "") else missing_file(name, kinds)

    files = model_files(kinds)
    bundled = [name for name, path in files.items() if bundled_name(path) is not None]
    own = [name for name in files if name not in bundled]
    return FileChoices((*((first,) if first else ()), *own, *((last,) if last else ()), *bundled), problem)


def missing_file(name: object, kinds: Sequence[str]) -> str | None:
    """Why there is no such file; None if it exists."""
    if not isinstance(name, str):
        return f"got {shown(name)}; expected the name of a file"
    return _missing(name, kinds) if _named(name, kinds) is None else None


def _missing(name: str, kinds: Sequence[str]) -> str:
    bundled = [path for kind in kinds for path in bundled_files(kind).values()]
    folders = [str(folder) for kind in kinds for folder in host().model_folders(kind)] or [f"models/{kinds[0]}"]
    own = (file for file, path in model_files(kinds).items() if path not in bundled)
    available = ", ".join(own) or "no model"
    expected = f"{available} in {', '.join(folders)}"
    return f"got {name!r}, which does not exist; expected {expected}; put it into one of these folders"


def _stamp(*paths: Path) -> str:
    """A text that changes when a file is replaced."""
    return " ".join(f"{stat.st_mtime_ns}:{stat.st_size}" for stat in (path.stat() for path in paths))


def resident_blocks_of(widget: int) -> int | None:
    """The value of the widget `resident_blocks`; None: the host chooses."""
    return None if widget < 0 else widget


def quantization_of(widget: str) -> str | None:
    """The core's name for the choice of a quantization widget; None: as stored."""
    return None if widget == AS_STORED else widget


def opened_for(part: PartName, path: Path, version: str | None = None) -> Opened:
    """A file, mapped or copied as the host was launched. Errors as `open_models`."""
    return open_models(path, version=version, copy=host().launched_with(part).copy)


def held_as(part: PartName, opened: Opened, dtype: str, quantization: str = AS_STORED) -> Storage:
    """What the widgets of a loader say. Where `dtype` is auto, the host's launch flags decide; its quantization is for
    plain weights alone."""
    chosen = Storage(DTYPES[dtype], quantization_of(quantization))
    if dtype != "auto":
        return chosen
    launched = host().launched_with(part)
    if chosen.quantization is None and launched.quantization is not None and _is_plain(part, opened):
        return launched
    return Storage(launched.dtype, chosen.quantization)


def _is_plain(part: PartName, opened: Opened) -> bool:
    return stored_quantization(opened.stored(part), opened.checkpoint.path) is None


# ------------------------------------------------------------------------------------------------ nodes


class LoadModel(sockets.Node):
    CATEGORY = "LTXKit/loaders"
    DESCRIPTION = (
        "Loads an LTX-Video transformer and its VAE, from one file or from two. What the file is (version, layout, "
        "precision) is read from its content, and every weight is checked. Its name decides only between releases that "
        "the content cannot tell apart, and the node says so."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "load checkpoint", "unet loader", "diffusion model", "13b", "2b"]
    RETURN_TYPES = (sockets.MODEL, sockets.VAE)
    RETURN_NAMES = ("model", "vae")
    OUTPUT_TOOLTIPS = ("The transformer, for Sample.", "The video VAE, for Encode, Decode and Sample.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model_name": choice(
                    file_choices(MODEL_KINDS),
                    "A file or folder in models/checkpoints or models/diffusion_models, or a file with several parts "
                    "in another loader's folder.",
                ),
                "vae_name": choice(
                    file_choices(VAE_KINDS, SAME_FILE),
                    "Where the VAE is, if the model file has none: in models/vae or models/checkpoints, or in a file "
                    "with several parts in another loader's folder.",
                ),
                "dtype": advanced(DTYPE),
                "version": advanced(VERSION),
            },
            "optional": {
                "quantization": QUANTIZATION,
                "fp8_matmul": advanced(switch(False, FP8_MATMUL_TOOLTIP)),
                "resident_blocks": advanced(RESIDENT_BLOCKS),
                "compile": advanced(COMPILE),
                "cuda_graphs": advanced(CUDA_GRAPHS),
            },
        }

    @classmethod
    def IS_CHANGED(cls, model_name: str, vae_name: str, **_: Any) -> str:
        vae_path = [] if vae_name == SAME_FILE else [model_path(vae_name, VAE_KINDS)]
        return _stamp(model_path(model_name, MODEL_KINDS), *vae_path)

    def run(
        self,
        model_name: str,
        vae_name: str,
        dtype: str,
        version: str,
        quantization: str = AS_STORED,
        fp8_matmul: bool = False,
        resident_blocks: int = -1,
        compile: bool = False,
        cuda_graphs: bool = False,
    ) -> tuple[sockets.Model, VideoVAE]:
        asked = "cuda_graphs" if cuda_graphs else "compile"
        compile = compile or cuda_graphs
        if compile and resident_blocks >= 0:
            raise ConfigError(
                f"got {asked} and resident_blocks {resident_blocks}; expected one of them: what is streamed is not "
                f"compiled; turn {asked} off, or set resident_blocks to -1"
            )
        path = model_path(model_name, MODEL_KINDS)
        vae_path = path if vae_name == SAME_FILE else model_path(vae_name, VAE_KINDS)
        release = None if version == FROM_FILE else version
        progress = host().progress()
        opened = opened_for("transformer", path, release)
        storage = held_as("transformer", opened, dtype, quantization)
        transformer, info = opened.transformer(
            dtype=storage.dtype,
            quantization=storage.quantization,
            fp8_matmul=fp8_matmul,
            progress=progress,
        )
        vae_opened = opened if vae_path == path else opened_for("vae", vae_path, release)
        vae = vae_opened.vae(dtype=held_as("vae", vae_opened, dtype).dtype, progress=progress)
        for note in filter(None, (*info.notes, mixed_generations(opened, vae_opened))):
            host().say(note)
        for module in (transformer, vae) if compile else ():
            compile_where_placed(module, cuda_graphs=cuda_graphs)
        model = sockets.Model(
            transformer,
            info,
            vae.config.scale_factors,
            resident_blocks=resident_blocks_of(resident_blocks),
            preview=functools.cache(lambda: fit_preview(vae, sockets.stage_host())),
        )
        return model, vae


class LoadTextEncoder(sockets.Node):
    CATEGORY = "LTXKit/loaders"
    DESCRIPTION = (
        "Loads T5 v1.1 XXL, the text encoder of every LTX-Video, from a single file (t5xxl_fp16.safetensors) or a "
        "Hugging Face folder. There is no type to choose: anything else is refused by name."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "t5", "t5xxl", "clip loader", "load clip"]
    RETURN_TYPES = (sockets.TEXT_ENCODER,)
    RETURN_NAMES = ("text_encoder",)
    OUTPUT_TOOLTIPS = ("The text encoder, for Encode Prompt.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "text_encoder_name": choice(
                    file_choices(TEXT_ENCODER_KINDS),
                    "A file or folder in models/text_encoders or models/clip, or a checkpoint or diffusers folder that "
                    "holds a text encoder too.",
                ),
                "dtype": advanced(DTYPE),
                "keep_on_device": advanced(KEEP_ON_DEVICE),
            },
            "optional": {
                "quantization": QUANTIZATION,
                "resident_blocks": advanced(RESIDENT_BLOCKS),
            },
        }

    @classmethod
    def IS_CHANGED(cls, text_encoder_name: str, **_: Any) -> str:
        return _stamp(model_path(text_encoder_name, TEXT_ENCODER_KINDS))

    def run(
        self,
        text_encoder_name: str,
        dtype: str,
        keep_on_device: bool,
        quantization: str = AS_STORED,
        resident_blocks: int = -1,
    ) -> tuple[sockets.Encoder]:
        path = model_path(text_encoder_name, TEXT_ENCODER_KINDS)
        opened = opened_for("text_encoder", path)
        storage = held_as("text_encoder", opened, dtype, quantization)
        encoder = text_encoder_from(
            opened,
            dtype=storage.dtype,
            quantization=storage.quantization,
            host_tokenizers=host().tokenizers(),
            progress=host().progress(),
        )
        for note in encoder.notes:
            host().say(note)
        return (sockets.Encoder(encoder, keep_on_device, resident_blocks_of(resident_blocks)),)


class LoadUpscaler(sockets.Node):
    CATEGORY = "LTXKit/loaders"
    DESCRIPTION = (
        "Loads an LTX-Video latent upscaler, which doubles the size of a latent between two passes of sampling (or, "
        "the temporal one, its frame rate)."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "latent upscale model", "spatial upscaler", "temporal upscaler"]
    RETURN_TYPES = (sockets.UPSCALER,)
    RETURN_NAMES = ("upscaler",)
    OUTPUT_TOOLTIPS = ("The latent upscaler, for Upscale Latent and Two-Stage.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "upscaler_name": choice(
                    file_choices(UPSCALER_KINDS),
                    "A file or folder in models/latent_upscale_models or models/upscale_models.",
                ),
                "dtype": advanced(DTYPE),
            }
        }

    @classmethod
    def IS_CHANGED(cls, upscaler_name: str, **_: Any) -> str:
        return _stamp(model_path(upscaler_name, UPSCALER_KINDS))

    def run(self, upscaler_name: str, dtype: str) -> tuple[LatentUpsampler]:
        path = model_path(upscaler_name, UPSCALER_KINDS)
        opened = opened_for("upscaler", path)
        return (opened.upscaler(dtype=held_as("upscaler", opened, dtype).dtype, progress=host().progress()),)


class ApplyLoRA(sockets.Node):
    CATEGORY = "LTXKit/loaders"
    DESCRIPTION = (
        "Adds a LoRA to a model, next to its weights and never into them; chain nodes for several. Reads the key "
        "styles of diffusers, peft, Lightricks' trainer, ComfyUI, Kohya and finetrainers; DoRA, LoHa, LoKr, GLoRA, OFT "
        "and full differences too. What cannot be applied is refused by its name."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "lora loader", "load lora", "dora", "lokr", "distilled", "LoraLoaderModelOnly"]
    RETURN_TYPES = (sockets.MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The model with the LoRA, for Sample or another LoRA.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": link(sockets.MODEL, "From Load Model."),
                "lora_name": choice(
                    file_choices(LORA_KINDS, last=OF_LINK), "A file in models/loras; not needed if `lora` is connected."
                ),
                "strength": decimal(1.0, -10.0, 10.0, 0.01, "0 leaves the model as it is."),
                "allow_partial": advanced(
                    switch(
                        False,
                        "On: leave out what of the LoRA cannot be applied to this model, and say so. Off: refuse such "
                        "a LoRA.",
                    )
                ),
                "settings": advanced(
                    choice(
                        [AUTOMATIC, OF_MODEL, *RELEASES],
                        "Whose recommended settings Sample uses. automatic: those of the model, or, with a LoRA of "
                        "rank 128 that is called distilled, those of the distilled model. those of the model: also "
                        "with such a LoRA. A release: its own.",
                    )
                ),
            },
            "optional": {
                "lora": link(sockets.LORA, "From Train LoRA: the LoRA that it has trained, instead of lora_name."),
            },
        }

    @classmethod
    def IS_CHANGED(cls, lora_name: str, **_: Any) -> str:
        path = _named(lora_name, LORA_KINDS)  # not needed if `lora` is connected
        return "" if path is None else _stamp(path)

    def run(
        self,
        model: sockets.Model,
        lora_name: str,
        strength: float,
        allow_partial: bool,
        settings: str,
        lora: Path | None = None,
    ) -> tuple[sockets.Model]:
        handle: sockets.Model = sockets.received(sockets.MODEL, model, "model")
        trained: Path | None = None if lora is None else sockets.received(sockets.LORA, lora, "lora")
        if trained is None and lora_name in ("", OF_LINK):
            raise ConfigError("got no LoRA; expected a file; choose lora_name, or connect Train LoRA (LTXKit)")
        path = trained or model_path(lora_name, LORA_KINDS)
        loaded = load_lora(path, copy=host().launched_with("transformer").copy)
        report = match_lora(loaded, handle.transformer, allow_partial=allow_partial)
        host().say(f"{lora_name if trained is None else trained.name}: {report}.")
        added = WeightedLoRA(loaded, strength, allow_partial)
        versions = handle.info.versions if settings in (AUTOMATIC, OF_MODEL) else (settings,)
        if settings == AUTOMATIC:
            versions, distilled = versions_with(versions, [added])
            if distilled:
                host().say(distilled)
        return (replace(handle, info=replace(handle.info, versions=versions), loras=(*handle.loras, added)),)

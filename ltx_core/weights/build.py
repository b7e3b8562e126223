"""From a file to a module that is complete, or to an error: the five steps of loading.

Open the container; name what it holds; settle the config; build the module on `meta`, where a quantization may swap its
Linears; assign the stored tensors and verify that nothing is missing, left over or of another shape (`assign`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..config import SchedulerConfig
from ..errors import CheckpointError, LTXKitError, printable
from ..kernels.active import keep_dtype
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import TIMESTEP_SCALE_MULTIPLIER, VideoVAE
from ..progress import Progress, silent
from ..quant.fp8 import FP8_DTYPES, use_fp8_matmul
from ..quant.linear import ScaledLinear, linear_weights, unpack_linears
from ..releases import RELEASES
from .assign import assign, preparation_for, stored_tensors
from .bundled import find_model
from .containers import DTYPE_NAMES, Checkpoint, Container, TensorInfo, checkpoint_in_memory, copied, open_checkpoint
from .infer import Description, Origin, describe, part_or_error
from .layouts import Layout, Naming, Part, PartName, detect_layout
from .mapping import watch

logger = logging.getLogger(__name__)

_MULTIPLIER = "decoder.timestep_scale_multiplier"

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class CheckpointInfo:
    """What is known about the file that a transformer came from.

    versions: released versions that the file can be, most likely first; empty when it is none of them.
    scheduler: None where neither the file nor its version has one.
    quantization: name of the quantization that the weights are held in, or None.
    notes: sentences that the user should see.
    """

    path: Path
    container: Container
    layout: Naming
    versions: tuple[str, ...]
    quantization: str | None
    scheduler: SchedulerConfig | None
    notes: tuple[str, ...]

    @property
    def version(self) -> str | tuple[str, ...]:
        """The released version, or all that the file can be."""
        return self.versions[0] if len(self.versions) == 1 else self.versions


@dataclass(frozen=True, eq=False)
class Opened:
    """A file or folder whose header was read, once for all the models in it.

    version: the released version, where the user knows it and the file does not say. copied: weights are read into
    memory, and not mapped.
    """

    checkpoint: Checkpoint
    layout: Layout
    version: str | None = None
    copied: bool = False

    @cached_property
    def description(self) -> Description:
        """The configs of its models. Raises as `describe`."""
        return describe(self.checkpoint, self.layout, self.version)

    def without_data(self) -> Opened:
        """The same file, whose models are on meta: nothing is read for them."""
        return replace(self, checkpoint=_without_data(self.checkpoint))

    def part(self, name: PartName) -> Part:
        """Raises CheckpointError: the file does not hold this part; the message says what it is instead."""
        return part_or_error(self.checkpoint, self.layout, name)

    def stored(self, name: PartName) -> dict[str, TensorInfo]:
        """What is stored of a part, by the module's names. Raises as `part`."""
        return self.checkpoint.stored(self.part(name).keys)

    def transformer(
        self,
        *,
        dtype: torch.dtype | None = None,
        quantization: str | None = None,
        fp8_matmul: bool = False,
        progress: Progress = silent,
    ) -> tuple[LTXTransformer, CheckpointInfo]:
        """Arguments and errors as `load_transformer`."""
        model, stored_as = self._model(
            "transformer",
            lambda description: LTXTransformer(description.transformer()),
            dtype=dtype,
            quantization=quantization,
            progress=progress,
        )
        if fp8_matmul:
            use_fp8_matmul(model)
        info = CheckpointInfo(
            path=self.checkpoint.path,
            container=self.checkpoint.container,
            layout=self.part("transformer").naming,
            versions=self.description.versions,
            quantization=stored_as,
            scheduler=self.description.scheduler(),
            notes=tuple(_notes(model, self.description)),
        )
        return model, info

    def vae(self, *, dtype: torch.dtype | None = None, progress: Progress = silent) -> VideoVAE:
        """Arguments and errors as `load_vae`."""
        return self._model("vae", lambda description: VideoVAE(description.vae()), dtype=dtype, progress=progress)[0]

    def upscaler(self, *, dtype: torch.dtype | None = None, progress: Progress = silent) -> LatentUpsampler:
        """Arguments and errors as `load_upsampler`."""
        model, _ = self._model(
            "upscaler", lambda description: LatentUpsampler(description.upscaler()), dtype=dtype, progress=progress
        )
        return model

    def _model(
        self,
        name: PartName,
        build: Callable[[Description], _Module],
        *,
        dtype: torch.dtype | None,
        progress: Progress,
        quantization: str | None = None,
    ) -> tuple[_Module, str | None]:
        """The module, and the name of its quantization."""
        part, path = self.part(name), self.checkpoint.path
        # First of all: the sizes of weights in a format that is not read would only give a misleading message.
        preparation = preparation_for(self.stored(name), path, quantization, only=LTXTransformer.BLOCK_PREFIX)
        self._log_unknown(name)
        model = on_meta(build, self.description, name)
        plain = linear_weights(model)
        tensors = stored_tensors(
            model, self.checkpoint, part.keys, preparation, dtype, stage=f"load {name}", progress=progress
        )
        if name == "vae" and _MULTIPLIER in tensors and self.stored(name)[_MULTIPLIER].dtype in FP8_DTYPES:
            # 448 is the greatest number of float8_e4m3fn, so a cast of the whole file has lost this one.
            tensors[_MULTIPLIER] = torch.full_like(tensors[_MULTIPLIER], TIMESTEP_SCALE_MULTIPLIER)
        versions = " or ".join(self.description.versions) or "not a released version"
        assign(model, tensors, source=path, what=f"{name}, layout {part.naming}, {versions}")
        if name != "transformer":  # convolutions are plain numbers by now, and what few Linears there are gain nothing
            unpack_linears(model, plain, dtype or torch.bfloat16)
        watch(model, self.checkpoint.files)
        if dtype is not None:
            keep_dtype(model)
        return model.eval().requires_grad_(False), preparation.name if preparation is not None else None

    def _log_unknown(self, name: PartName) -> None:
        """The metadata keys of this part that LTXKit does not read. Those of no part count to the file's first."""
        others = tuple(f"{part}." for part in self.layout.parts if part != name)
        is_first = next(iter(self.layout.parts)) == name
        unknown = [
            key
            for key in self.description.unknown
            if key.startswith(f"{name}.") or (is_first and not key.startswith(others))
        ]
        if unknown:
            names = printable(", ".join(unknown))
            logger.info("%s has metadata that LTXKit does not read: %s", self.checkpoint.path, names)


def on_meta(build: Callable[[Description], _Module], description: Description, name: str) -> _Module:
    """A module without its data.

    Raises:
        CheckpointError: the file's config has sizes that no such module can have.
    """
    try:
        with torch.device("meta"):
            return build(description)
    except LTXKitError:
        raise
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:  # torch's words for sizes it cannot make
        raise CheckpointError(
            f"got {description.path}, from whose config and shapes no {name} can be built ({error}); expected those of "
            "a complete model; download it again"
        ) from error


def open_models(path: Path | str, *, version: str | None = None, data: bool = True, copy: bool = False) -> Opened:
    """Open a file or folder to load its models from; its header is read once.

    Args:
        version: a released version, where the file cannot say ("13b-0.9.8-dev").
        data: False reads the header only: models are on meta, with the shapes and dtypes that loading gives.
        copy: weights are read into memory, so that nothing that happens to the file later matters; False: they are
            mapped, and the system reads what is used.

    Raises:
        CheckpointError, UnsupportedError: as `open_checkpoint`.
    """
    checkpoint = open_checkpoint(path)
    opened = Opened(copied(checkpoint) if copy else checkpoint, layout_of(checkpoint), version, copy)
    return opened if data else opened.without_data()


class OpenFiles(NamedTuple):
    """The files of a clip's models, each opened once. vae: the same as `model` where that holds it."""

    model: Opened
    vae: Opened
    text_encoder: Opened | None
    upscaler: Opened | None

    def without_data(self) -> OpenFiles:
        """As `Opened.without_data`, of each."""
        model = self.model.without_data()
        return OpenFiles(
            model,
            model if self.vae is self.model else self.vae.without_data(),
            self.text_encoder.without_data() if self.text_encoder else None,
            self.upscaler.without_data() if self.upscaler else None,
        )


def open_files(
    model: Path | str,
    text_encoder: Path | str | None = None,
    *,
    vae: Path | str | None = None,
    upscaler: Path | str | None = None,
    version: str | None = None,
    copy: bool = False,
) -> OpenFiles:
    """Open the files of a clip's models; "ltxkit-digits" names the bundled model.

    Arguments as `Components.load`, errors as `open_models`.
    """
    model = find_model(model, "checkpoints")
    opened = open_models(model, version=version, copy=copy)
    vae = find_model(vae, "checkpoints") if vae else model
    return OpenFiles(
        opened,
        opened if vae == model else open_models(vae, version=version, copy=copy),
        open_models(find_model(text_encoder, "text_encoders"), copy=copy) if text_encoder else None,
        open_models(find_model(upscaler, "latent_upscale_models"), copy=copy) if upscaler else None,
    )


def layout_of(checkpoint: Checkpoint) -> Layout:
    """What a container holds, by its names, shapes and header; by its own name only where these leave two models."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    return detect_layout(checkpoint.tensors, shapes, checkpoint.metadata, checkpoint.path.name)


def mixed_generations(transformer: Opened, vae: Opened) -> str | None:
    """A sentence for the user where a VAE is of another generation than the released versions of a transformer."""
    versions, generation = transformer.description.versions, vae.description.generation
    own = sorted({RELEASES[version].vae for version in versions})
    if not own or generation is None or generation in own:
        return None
    return (
        f"The VAE in {vae.checkpoint.path} is of the generation {generation}, and {transformer.checkpoint.path} "
        f"({' or '.join(versions)}) was trained with the VAE of {' or '.join(own)}: their latents have nothing in "
        "common, so clips are noise unless you have trained the two together. Use the VAE of the same release."
    )


def open_tensors(
    name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, version: str | None = None
) -> Opened:
    """As `open_models`, of a model that another program has loaded: our modules get these tensors, not copies.

    name, tensors, metadata: as `checkpoint_in_memory`, which also says what is raised.
    """
    checkpoint = checkpoint_in_memory(name, tensors, metadata)
    return Opened(checkpoint, layout_of(checkpoint), version)


def load_transformer(
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    version: str | None = None,
    quantization: str | None = None,
    fp8_matmul: bool = False,
    data: bool = True,
    progress: Progress = silent,
) -> tuple[LTXTransformer, CheckpointInfo]:
    """A transformer in eval mode on the CPU, from a checkpoint, a transformer file or a diffusers folder.

    Args:
        dtype: of the weights that are not quantized; None keeps the stored one, or takes bfloat16 where others are
            quantized.
        version, data: as `open_models`.
        quantization: what to make of the plain Linears in the blocks while they load, one of `QUANTIZATION_NAMES`.
        fp8_matmul: multiply float8 weights in float8, and weights in ComfyUI's formats as they are stored (by the
            package comfy-kitchen), on devices that can: faster, a little less precise.

    Raises:
        CheckpointError: the file is damaged, incomplete or of another kind; the message names what it is.
        ConfigError: the model needs something that LTXKit does not implement, `version` has to be given, the weights
            are quantized already, or `fp8_matmul` is given without weights for which there is such a product.
        UnsupportedError: weights stored in a way that LTXKit does not read.
    """
    opened = open_models(path, version=version, data=data)
    return opened.transformer(dtype=dtype, quantization=quantization, fp8_matmul=fp8_matmul, progress=progress)


def load_vae(
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    version: str | None = None,
    data: bool = True,
    progress: Progress = silent,
) -> VideoVAE:
    """A video VAE in eval mode on the CPU, from a checkpoint, a VAE file or a diffusers folder.

    Arguments and errors as `load_transformer`.
    """
    return open_models(path, version=version, data=data).vae(dtype=dtype, progress=progress)


def load_upsampler(
    path: Path | str, *, dtype: torch.dtype | None = None, data: bool = True, progress: Progress = silent
) -> LatentUpsampler:
    """A latent upscaler in eval mode on the CPU, from its file or diffusers folder.

    Arguments and errors as `load_transformer`.
    """
    return open_models(path, data=data).upscaler(dtype=dtype, progress=progress)


def _without_data(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint whose tensors are on meta: they have a shape and a dtype, and nothing is read for them."""
    dtypes = {name: dtype for dtype, name in DTYPE_NAMES.items()}

    def read(key: str) -> Tensor:
        info = checkpoint.tensors[key]
        if "quant_state" in key:  # of bitsandbytes: a few bytes that describe another tensor
            return checkpoint.read(key)
        if info.dtype in dtypes:
            return torch.empty(info.shape, dtype=dtypes[info.dtype], device="meta")
        return torch.empty(info.nbytes, dtype=torch.uint8, device="meta")

    return replace(checkpoint, files=(), read=read)


# Origins of config values that the user is told about, and the model whose values were taken.
_TAKEN_FROM: Mapping[Origin, str] = {
    "given": "the given version",
    "version default": "the released versions that it can be",
    "file name": "the released version that its name says",
    "official default": "Lightricks' scheduler where nothing is set",
}


def _notes(model: LTXTransformer, description: Description) -> Iterator[str]:
    named = description.release_note()
    if named is not None:
        yield named
    taken: dict[Origin, list[str]] = {}
    for name, item in description.values.items():
        if item.origin in _TAKEN_FROM and (name.startswith("transformer.") or item.origin == "official default"):
            taken.setdefault(item.origin, []).append(f"{name} = {item.value}")
    for origin, values in taken.items():
        yield f"The file does not say these, so they are as in {_TAKEN_FROM[origin]}: {', '.join(values)}."
    plain_fp8 = any(isinstance(part, ScaledLinear) and part.scale_weight is None for part in model.modules())
    if plain_fp8 and any(version.startswith("13b-0.9.7") for version in description.versions):
        # Lightricks/LTX-Video-Q8-Kernels before 75c5c42 took weights that were rotated beforehand, and no key says so.
        yield (
            "The weights are plain float8. If videos are pure noise, the file is probably the first upload of "
            "ltxv-13b-0.9.7-dev-fp8 (May 2025), whose weights are rotated and which looks like any other: download it "
            "again."
        )

"""From a file to a module that is complete, or to an error: the five steps of loading.

Open the container; name what it holds; settle the config; build the module on `meta`, where a quantization may swap its
Linears; assign the stored tensors and verify that nothing is missing, left over or of another shape.

Weights whose dtype is not changed stay memory-mapped: loading them takes no memory of its own.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ..config import SchedulerConfig
from ..errors import CheckpointError, ConfigError
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import VideoVAE
from ..progress import Progress, ProgressEvent, silent
from ..quant.bitsandbytes import BitsAndBytes
from ..quant.fp8 import StoredFP8, use_fp8_matmul
from ..quant.gguf import GGUF
from ..quant.linear import STORED_BUFFERS, Quantization, ScaledLinear, StoredTensor
from ..quant.on_load import quantization_by_name
from .containers import DTYPE_NAMES, Checkpoint, Container, TensorInfo, open_checkpoint
from .infer import Description, describe, part_or_error
from .layouts import UNUSED_TENSORS, Layout, Naming, Part, detect_layout
from .mapping import watch

logger = logging.getLogger(__name__)

# What a file may be stored as; the first that claims it takes it.
QUANTIZATIONS: tuple[Quantization, ...] = (StoredFP8(), GGUF(), BitsAndBytes())

# Kept as precise as they are stored: 16-bit statistics would shift every latent.
_KEPT_DTYPE = ("per_channel_statistics.",)

_PLAIN_DTYPES: Mapping[str, torch.dtype] = {
    name: dtype for dtype, name in DTYPE_NAMES.items() if dtype.is_floating_point and dtype.itemsize > 1
}

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class CheckpointInfo:
    """What is known about the file that a transformer came from.

    versions: released versions that it can be, most likely first; empty when it is none of them.
    scheduler: None where neither the file nor its version tells.
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
        dtype: of the weights that are not quantized; None keeps the stored one, or takes bfloat16 where others are.
        version: a released version, where the file cannot say ("13b-0.9.8-dev").
        quantization: "fp8", "int8" or "nf4": what to make of the plain Linears in the blocks while they load.
        fp8_matmul: multiply float8 weights in float8, on devices that can: faster, a little less precise.
        data: False reads the header only: a model on meta, whose tensors have the shapes and dtypes that loading gives.

    Raises:
        CheckpointError: the file is damaged, incomplete or of another kind; the message names what it is.
        ConfigError: it needs something that LTXKit does not implement, `version` has to be given, the weights are
            quantized already, or `fp8_matmul` is given without float8 weights.
        UnsupportedError: weights stored in a way that LTXKit does not read.
    """
    opened = _open(path, "transformer", version, data)
    model, used = _load(LTXTransformer, opened.description.transformer(), opened, dtype, quantization, progress)
    if fp8_matmul:
        use_fp8_matmul(model)
    info = CheckpointInfo(
        path=opened.checkpoint.path,
        container=opened.checkpoint.container,
        layout=opened.part.naming,
        versions=opened.description.versions,
        quantization=used,
        scheduler=opened.description.scheduler(),
        notes=tuple(_notes(model, opened)),
    )
    return model, info


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
    opened = _open(path, "vae", version, data)
    return _load(VideoVAE, opened.description.vae(), opened, dtype, None, progress)[0]


def load_upsampler(
    path: Path | str, *, dtype: torch.dtype | None = None, data: bool = True, progress: Progress = silent
) -> LatentUpsampler:
    """A latent upscaler in eval mode on the CPU, from its file or diffusers folder.

    Arguments and errors as `load_transformer`.
    """
    opened = _open(path, "upscaler", None, data)
    return _load(LatentUpsampler, opened.description.upscaler(), opened, dtype, None, progress)[0]


# --- the five steps ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    checkpoint: Checkpoint
    layout: Layout
    part: Part
    description: Description

    @property
    def stored(self) -> dict[str, TensorInfo]:
        """What is stored, by the module's names."""
        return {ours: self.checkpoint.tensors[theirs] for ours, theirs in self.part.keys.items()}

    def __str__(self) -> str:
        versions = " or ".join(self.description.versions) or "no released version"
        return f"{self.part.name}, layout {self.part.naming}, {versions}"


def _open(
    path: Path | str, name: Literal["transformer", "vae", "upscaler"], version: str | None, data: bool
) -> _Opened:
    checkpoint = open_checkpoint(path) if data else without_data(open_checkpoint(path))
    layout = detect_layout(checkpoint.tensors)
    part = part_or_error(checkpoint, layout, name)
    description = describe(checkpoint, layout, version)
    # What belongs to no part (the scheduler's keys, the header's) is reported with the first one that the file holds.
    others = tuple(f"{part}." for part in layout.parts if part != name)
    first = next(iter(layout.parts)) == name
    unknown = [
        key for key in description.unknown if key.startswith(f"{name}.") or (first and not key.startswith(others))
    ]
    if unknown:
        logger.info("%s has metadata that LTXKit does not read: %s", checkpoint.path, ", ".join(unknown))
    return _Opened(checkpoint, layout, part, description)


def without_data(checkpoint: Checkpoint) -> Checkpoint:
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


def _load(
    build: Callable[..., _Module],
    config: object,
    opened: _Opened,
    dtype: torch.dtype | None,
    quantization: str | None,
    progress: Progress,
) -> tuple[_Module, str | None]:
    with torch.device("meta"):
        model = build(config)
    chosen = quantization_of(opened.checkpoint.path, opened.stored, quantization, only=LTXTransformer.BLOCK_PREFIX)
    tensors = stored_tensors(
        model, opened.checkpoint, opened.part.keys, chosen, dtype, stage=f"load {opened.part.name}", progress=progress
    )
    assign(model, tensors, source=opened.checkpoint.path, what=str(opened))
    watch(model, opened.checkpoint.files)
    return model.eval().requires_grad_(False), chosen.name if chosen is not None else None


def quantization_of(
    path: Path, stored: Mapping[str, StoredTensor], asked: str | None, only: str
) -> Quantization | None:
    """How the weights are stored, or else what they are to become.

    stored: by the module's names. asked, only: as `quantization_by_name`.

    Raises ConfigError: they are stored in one quantization and another one is asked for.
    """
    found = next((known for known in QUANTIZATIONS if known.claims(stored)), None)
    if asked is None:
        return found
    wanted = quantization_by_name(asked, only)
    if found is not None:
        raise ConfigError(
            f"got quantization {asked!r} for {path}, whose weights are quantized already ({found.name}); expected "
            "plain weights; leave it out, or use the bf16 file"
        )
    return wanted


def stored_tensors(
    model: nn.Module,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    quantization: Quantization | None,
    dtype: torch.dtype | None,
    *,
    stage: str,
    progress: Progress,
) -> dict[str, Tensor]:
    """What `model` (on meta, where the quantization swaps its Linears) gets from the checkpoint, by its names.

    keys: the model's name -> the checkpoint's. dtype: as `load_transformer`.
    """
    stored = {ours: checkpoint.tensors[theirs] for ours, theirs in keys.items()}
    if quantization is None:
        compute_dtype = dtype or _dominant_dtype(stored.values())
        pack = _as_stored
    else:
        compute_dtype = dtype or torch.bfloat16
        pack = quantization.prepare(model, stored, compute_dtype)
    tensors: dict[str, Tensor] = {}
    for step, (ours, theirs) in enumerate(keys.items()):
        progress(ProgressEvent(stage, step, len(keys)))
        for name, tensor in pack(ours, checkpoint.tensor(theirs)).items():
            tensors[name] = _converted(name, tensor, compute_dtype)
    progress(ProgressEvent(stage, len(keys), len(keys)))
    _return_freed_memory()
    return tensors


def _return_freed_memory() -> None:
    """What converting weights leaves free between them goes back to the system. glibc's aligned blocks are rarely used
    again (measured: 0 to 280 MB left by quantizing 0.1 GB); other C libraries have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _as_stored(key: str, tensor: Tensor) -> Mapping[str, Tensor]:
    return {key: tensor}


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    fixed = not tensor.is_floating_point() or name.startswith(_KEPT_DTYPE) or name.rpartition(".")[2] in STORED_BUFFERS
    return tensor if fixed else tensor.to(dtype)


def _dominant_dtype(stored: Iterable[TensorInfo]) -> torch.dtype:
    """The unquantized dtype that most parameters have: one forward needs one dtype."""
    counts: Counter[str] = Counter()
    for info in stored:
        if info.dtype in _PLAIN_DTYPES:
            counts[info.dtype] += info.parameters
    return _PLAIN_DTYPES[counts.most_common(1)[0][0]] if counts else torch.bfloat16


def assign(model: nn.Module, tensors: Mapping[str, Tensor], *, source: Path | str, what: str = "") -> None:
    """Give `model` these tensors, after checking that they are exactly what it needs.

    Args:
        tensors: by the model's own names. Statistics tensors that nothing uses may be among them.
        source, what: where they come from and what that was taken for, for the message.

    Raises:
        CheckpointError: tensors are missing, left over, or of another shape, or the model keeps parameters or buffers
            without a value; one message with all of it.
    """
    expected = model.state_dict()
    problems = differences(
        {name: tuple(tensor.shape) for name, tensor in expected.items()},
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
    )
    if not problems:
        model.load_state_dict({name: tensors[name] for name in expected}, assign=True)
        # A buffer that is not in the state dict would stay on meta and fail, or worse, later on.
        left = [
            name
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if tensor.is_meta and name not in expected
        ]
        problems = _listed({"without a value": left})
    if problems:
        raise CheckpointError(
            f"got {source}{f' ({what})' if what else ''}, whose tensors are not those of this model: {problems}; "
            "expected a complete file of one model; download it again, or pass version= if it was taken for another"
        )


def differences(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> str:
    """What is wrong with tensors of these shapes for a model that needs those, in words; "" if nothing is."""
    both = [name for name in expected if name in given and given[name] != expected[name]]
    return _listed(
        {
            "missing": [name for name in expected if name not in given],
            "unexpected": [name for name in given if name not in expected and name not in UNUSED_TENSORS],
            "of another shape": [f"{name} {list(given[name])} instead of {list(expected[name])}" for name in both],
        }
    )


def _listed(problems: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{len(names)} {problem}: {_some(names)}" for problem, names in problems.items() if names)


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _notes(model: LTXTransformer, opened: _Opened) -> Iterator[str]:
    taken: dict[str, list[str]] = {}
    for name, item in opened.description.values.items():
        if name.startswith("transformer.") and item.origin in ("version default", "given"):
            taken.setdefault(item.origin, []).append(f"{name} = {item.value}")
    for origin, values in taken.items():
        source = "the given version" if origin == "given" else "the released versions that it can be"
        yield f"The file does not say these, so they are as in {source}: {', '.join(values)}."
    plain_fp8 = any(isinstance(part, ScaledLinear) and part.scale_weight is None for part in model.modules())
    if plain_fp8 and any(version.startswith("13b-0.9.7") for version in opened.description.versions):
        # Lightricks/LTX-Video-Q8-Kernels before 75c5c42 took weights that were rotated beforehand, and no key says so.
        yield (
            "The weights are plain float8. If videos are pure noise, the file is probably the first upload of "
            "ltxv-13b-0.9.7-dev-fp8 (May 2025), whose weights are rotated and which looks like any other: download it "
            "again."
        )

"""From a file to a module that is complete, or to an error: the five steps of loading.

Open the container; name what it holds; settle the config; build the module on `meta`, where a quantization may swap its
Linears; assign the stored tensors and verify that nothing is missing, left over or of another shape.

Weights whose dtype is not changed stay memory-mapped: loading them takes no memory of its own.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ..config import SchedulerConfig
from ..errors import CheckpointError
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import VideoVAE
from ..progress import Progress, ProgressEvent, silent
from ..quant.fp8 import StoredFP8
from ..quant.gguf import GGUF
from ..quant.linear import STORED_BUFFERS, Pack, Quantization
from .containers import DTYPE_NAMES, Checkpoint, Container, TensorInfo, open_checkpoint
from .infer import Description, describe, part_or_error
from .layouts import UNUSED_TENSORS, Layout, Naming, Part, detect_layout

logger = logging.getLogger(__name__)

# What a file may be stored as; the first that claims it takes it.
QUANTIZATIONS: tuple[Quantization, ...] = (StoredFP8(), GGUF())

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
    quantization: name of the quantization of the stored weights, or None.
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
    quantization: Quantization | None = None,
    progress: Progress = silent,
) -> tuple[LTXTransformer, CheckpointInfo]:
    """A transformer in eval mode on the CPU, from a checkpoint, a transformer file or a diffusers folder.

    Args:
        dtype: of the weights that are not quantized; None keeps the stored one.
        version: a released version, where the file cannot say ("13b-0.9.8-dev").
        quantization: how to hold the Linears; None: as they are stored.

    Raises:
        CheckpointError: the file is damaged, incomplete or of another kind; the message names what it is.
        ConfigError: it needs something that LTXKit does not implement, or `version` has to be given.
    """
    opened = _open(path, "transformer", version)
    model, used = _load(LTXTransformer, opened.description.transformer(), opened, dtype, quantization, progress)
    info = CheckpointInfo(
        path=opened.checkpoint.path,
        container=opened.checkpoint.container,
        layout=opened.part.naming,
        versions=opened.description.versions,
        quantization=used,
        scheduler=opened.description.scheduler(),
        notes=tuple(_notes(opened.description)),
    )
    return model, info


def load_vae(
    path: Path | str, *, dtype: torch.dtype | None = None, version: str | None = None, progress: Progress = silent
) -> VideoVAE:
    """A video VAE in eval mode on the CPU, from a checkpoint, a VAE file or a diffusers folder.

    Arguments and errors as `load_transformer`.
    """
    opened = _open(path, "vae", version)
    return _load(VideoVAE, opened.description.vae(), opened, dtype, None, progress)[0]


def load_upsampler(
    path: Path | str, *, dtype: torch.dtype | None = None, progress: Progress = silent
) -> LatentUpsampler:
    """A latent upscaler in eval mode on the CPU, from its file or diffusers folder.

    Arguments and errors as `load_transformer`.
    """
    opened = _open(path, "upscaler", None)
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


def _open(path: Path | str, name: Literal["transformer", "vae", "upscaler"], version: str | None) -> _Opened:
    checkpoint = open_checkpoint(path)
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


def _load(
    build: Callable[..., _Module],
    config: object,
    opened: _Opened,
    dtype: torch.dtype | None,
    quantization: Quantization | None,
    progress: Progress,
) -> tuple[_Module, str | None]:
    stored = opened.stored
    compute_dtype = dtype or _dominant_dtype(stored.values())
    with torch.device("meta"):
        model = build(config)
    chosen = quantization or next((known for known in QUANTIZATIONS if known.claims(stored)), None)
    pack = chosen.prepare(model, stored, compute_dtype) if chosen is not None else _as_stored
    tensors = dict(_tensors(opened, pack, compute_dtype, progress))
    assign(model, tensors, source=opened.checkpoint.path, what=str(opened))
    return model.eval().requires_grad_(False), chosen.name if chosen is not None else None


def _as_stored(key: str, tensor: Tensor) -> Mapping[str, Tensor]:
    return {key: tensor}


def _tensors(opened: _Opened, pack: Pack, dtype: torch.dtype, progress: Progress) -> Iterator[tuple[str, Tensor]]:
    stage, total = f"load {opened.part.name}", len(opened.part.keys)
    for step, (ours, theirs) in enumerate(opened.part.keys.items()):
        progress(ProgressEvent(stage, step, total))
        for name, tensor in pack(ours, opened.checkpoint.tensor(theirs)).items():
            yield name, _converted(name, tensor, dtype)
    progress(ProgressEvent(stage, total, total))


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
        left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
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


def _notes(description: Description) -> Iterator[str]:
    values = description.values.items()
    defaults = {
        name: item.value for name, item in values if item.origin == "version default" and "transformer." in name
    }
    listed = ", ".join(f"{name} = {value}" for name, value in defaults.items())
    if listed:
        yield f"The file does not say these, so they are as in the released versions that it can be: {listed}."

"""The last two steps of loading: the stored tensors for a module on meta, and their strict assignment.

Weights whose dtype is not changed stay memory-mapped: loading them takes no memory of its own.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError, UnsupportedError
from ..progress import Progress, ProgressEvent
from ..quant.linear import Preparation, StoredTensor, stored_buffers
from ..quant.registry import QUANTIZATIONS, quantization_by_name, stored_quantization
from .containers import DTYPE_NAMES, Checkpoint, TensorInfo
from .layouts import UNUSED_TENSORS

# Kept as precise as they are stored: 16-bit statistics would shift every latent.
_KEPT_DTYPE = ("per_channel_statistics.",)

_PLAIN_DTYPES: Mapping[str, torch.dtype] = {
    name: dtype for dtype, name in DTYPE_NAMES.items() if dtype.is_floating_point and dtype.itemsize > 1
}


def preparation_for(
    stored: Mapping[str, StoredTensor], source: Path, asked: str | None, only: str
) -> Preparation | None:
    """The quantization of the stored weights, or the one that is asked for, or None: it swaps the model's Linears.

    stored: by the module's names. asked: a name as `quantization_by_name` takes, or None; only: likewise.

    Raises:
        ConfigError: a quantization is asked for and the weights are quantized already, or there is none of that name.
        CheckpointError, UnsupportedError: as `stored_quantization`.
    """
    quantization = stored_quantization(stored, source)
    if asked is None:
        return quantization
    wanted = quantization_by_name(asked, only)
    if quantization is not None:
        raise ConfigError(
            f"got quantization {asked!r} for {source}, whose weights are quantized already ({quantization.name}); "
            "expected plain weights; leave it out, or use the bf16 file"
        )
    return wanted


def stored_tensors(
    model: nn.Module,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    preparation: Preparation | None,
    dtype: torch.dtype | None,
    *,
    stage: str,
    progress: Progress,
) -> dict[str, Tensor]:
    """The tensors of the checkpoint for `model` (on meta, where the preparation swaps its Linears), by its names.

    keys: the model's name -> the checkpoint's. dtype: as `load_transformer`.

    Raises:
        UnsupportedError: numbers of the model are stored as integers that no quantization explains.
    """
    stored = checkpoint.stored(keys)
    if preparation is None:
        compute_dtype = dtype or _dominant_dtype(stored.values())
        pack = _as_stored
    else:
        compute_dtype = dtype or torch.bfloat16
        pack = preparation.prepare(model, stored, compute_dtype)
    fixed = stored_buffers(model)
    tensors: dict[str, Tensor] = {}
    for step, (ours, theirs) in enumerate(keys.items()):
        progress(ProgressEvent(stage, step, len(keys)))
        for name, tensor in pack(ours, checkpoint.tensor(theirs)).items():
            is_fixed = name in fixed or name.startswith(_KEPT_DTYPE) or not tensor.is_floating_point()
            tensors[name] = tensor if is_fixed else tensor.to(compute_dtype)
    _check_numbers(model, {name: tensor for name, tensor in tensors.items() if name not in fixed}, checkpoint.path)
    progress(ProgressEvent(stage, len(keys), len(keys)))
    _return_freed_memory()
    return tensors


def _return_freed_memory() -> None:
    """Give the memory that converting weights has left free back to the system: glibc rarely reuses its aligned blocks
    (measured: 0 to 280 MB left by quantizing 0.1 GB). Other C libraries have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _as_stored(key: str, tensor: Tensor) -> Mapping[str, Tensor]:
    return {key: tensor}


def _check_numbers(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    integers = [
        name
        for name, expected in model.state_dict().items()
        if expected.is_floating_point() and name in tensors and not tensors[name].is_floating_point()
    ]
    if integers:
        name, known_names = integers[0], ", ".join(known.name for known in QUANTIZATIONS)
        raise UnsupportedError(
            f"got {source} with {name} (and {len(integers) - 1} more) stored as {DTYPE_NAMES[tensors[name].dtype]}, a "
            f"quantization that LTXKit does not know; expected plain weights or one of {known_names}; use the bf16 file"
        )


def _dominant_dtype(stored: Iterable[TensorInfo]) -> torch.dtype:
    """The unquantized dtype of most parameters: one forward needs one dtype."""
    counts: Counter[str] = Counter()
    for info in stored:
        if info.dtype in _PLAIN_DTYPES:
            counts[info.dtype] += info.parameters
    return _PLAIN_DTYPES[counts.most_common(1)[0][0]] if counts else torch.bfloat16


def assign(model: nn.Module, tensors: Mapping[str, Tensor], *, source: Path | str, what: str = "") -> None:
    """Give `model` these tensors, after checking that they are exactly what it needs.

    Args:
        tensors: by the model's own names. Statistics tensors that nothing uses may be among them.
        source, what: where the tensors come from and what that was taken for, for the message.

    Raises:
        CheckpointError: tensors are missing, left over, or of another shape, or parameters or buffers of the model keep
            no value; one message lists them all.
    """
    expected = model.state_dict()
    problems = differences(
        {name: tuple(tensor.shape) for name, tensor in expected.items()},
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
    )
    if not problems:
        model.load_state_dict({name: tensors[name] for name in expected}, assign=True)
        # A buffer that is not in the state dict would stay on meta, and fail later or give garbage.
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
    """How the shapes `given` differ from those that a model expects, in words; "" where they do not."""
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


_LONGEST_NAME = 200  # in a message


def _some(names: list[str], limit: int = 5) -> str:
    # A name in a file can be as long as the file.
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..." for name in names[:limit]]
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")

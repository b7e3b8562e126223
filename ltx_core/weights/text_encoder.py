"""From a file or folder to a T5 encoder with its tokenizer.

Read are Hugging Face folders (sharded too, or as `text_encoder/` of a pipeline folder) and single files such as the
`t5xxl_fp16.safetensors` of ComfyUI users. Their keys are transformers' own; the architecture follows from the shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import TextEncoderConfig
from ..errors import CheckpointError, UnsupportedError
from ..models.text_encoder import TextEncoder, Tokenizer, build_t5
from ..progress import Progress, ProgressEvent, silent
from .build import assign
from .containers import Checkpoint, open_checkpoint
from .infer import part_or_error
from .layouts import Layout, Part, block_groups, detect_layout

STAGE = "load text encoder"

# T5 has them under both names, and both name one tensor; files hold the first, the second or both.
EMBEDDING = "shared.weight"
EMBEDDING_AGAIN = "encoder.embed_tokens.weight"

# The same in every T5 that was ever published, and seen in no shape (huggingface/transformers configuration_t5.py).
MAX_DISTANCE = 128
LAYER_NORM_EPSILON = 1e-6
EOS_ID = 1

# Endings of keys that belong to packed weights: ComfyUI's scaled fp8, bitsandbytes, ComfyUI's own quantization.
PACKED = ("scaled_fp8", ".scale_weight", ".absmax", ".comfy_quant")

TOKENIZER_FILES = ("spiece.model", "tokenizer.json")
# Repositories whose tokenizer is that of T5 v1.1 XXL, looked for in the local cache of the Hugging Face hub.
HUB_TOKENIZERS = (
    ("google/t5-v1_1-xxl", ""),
    ("Lightricks/LTX-Video", "tokenizer/"),
    ("Lightricks/LTX-Video-0.9.7-dev", "tokenizer/"),
    ("Lightricks/LTX-Video-0.9.7-distilled", "tokenizer/"),
    ("PixArt-alpha/PixArt-XL-2-1024-MS", "tokenizer/"),
    ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "tokenizer/"),
)


def load_text_encoder(
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    tokenizer: Path | str | None = None,
    host_tokenizers: Sequence[Path] = (),
    progress: Progress = silent,
) -> TextEncoder:
    """A T5 v1.1 encoder, memory-mapped on the CPU where `dtype` is what is stored.

    dtype: of the weights; None keeps the stored one, or bfloat16 for fp8. In float16 the last layer of every
        feed-forward is float32: its inputs overflow float16 (transformers' `T5PreTrainedModel._keep_in_fp32_modules`).
    tokenizer: `spiece.model` or `tokenizer.json` of T5 v1.1, or a folder with one of them. None: searched for, see
        `find_tokenizer`.
    host_tokenizers: such files or folders that the host program brings.

    Raises:
        CheckpointError: damaged, incomplete or another kind of file; no tokenizer, or one that does not belong to it.
        UnsupportedError: packed weights that cannot be unpacked here.
    """
    path = Path(path)
    checkpoint = open_checkpoint(path)
    layout = detect_layout(checkpoint.tensors)
    part = _text_encoder_part(checkpoint, layout)
    keys = _encoder_keys(part)
    shapes = {name: checkpoint.tensors[key].shape for name, key in keys.items()}
    config = text_encoder_config(shapes, checkpoint.configs.get(part.prefix.rstrip("/"), {}), path)
    found = find_tokenizer(path, tokenizer, host_tokenizers)
    loaded_tokenizer = Tokenizer.from_file(found)
    if loaded_tokenizer.vocab_size > config.vocab_size or loaded_tokenizer.eos_id != EOS_ID:
        raise CheckpointError(
            f"got the tokenizer {found} with {loaded_tokenizer.vocab_size} pieces and end of sequence "
            f"{loaded_tokenizer.eos_id}; expected at most {config.vocab_size} pieces and {EOS_ID}, as {path} has; "
            "pass the tokenizer that belongs to this text encoder"
        )
    model = build_t5(config)
    assign(model, _tensors(checkpoint, keys, dtype, progress), source=path)
    return TextEncoder(model, loaded_tokenizer, config)


def find_tokenizer(weights: Path, given: Path | str | None = None, host: Sequence[Path] = ()) -> Path:
    """The tokenizer file to use. Nothing is downloaded.

    The given one; else one beside the weights (also in `tokenizer/` there or one folder up); else what the host brings;
    else one in the local cache of the Hugging Face hub.

    Raises:
        CheckpointError: none of these exists; the message says where to put one.
    """
    if given is not None:
        found = _tokenizer_in(Path(given))
        if found is None:
            raise CheckpointError(
                f"got the tokenizer {given}; expected spiece.model or tokenizer.json of T5 v1.1, or a folder with one "
                "of them; check the path"
            )
        return found
    folder = weights if weights.is_dir() else weights.parent
    beside = (folder, folder / "tokenizer", folder.parent / "tokenizer")
    for place in (*beside, *host):
        found = _tokenizer_in(Path(place))
        if found is not None:
            return found
    for cached in _hub_tokenizers():
        return cached
    raise CheckpointError(
        f"got the text encoder {weights} without a tokenizer; expected spiece.model or tokenizer.json; "
        f"put spiece.model of google/t5-v1_1-xxl (792 kB) into {folder}, or pass its path as the tokenizer. Looked in "
        + ", ".join(str(place) for place in (*beside, *host))
        + " and the local Hugging Face cache"
    )


def text_encoder_config(
    shapes: Mapping[str, tuple[int, ...]], hf_config: Mapping[str, Any], path: Path
) -> TextEncoderConfig:
    """Architecture of a T5 v1.1 encoder from the shapes of its tensors (transformers' names).

    hf_config: its config.json, or empty; only what no shape shows is taken from it.

    Raises:
        CheckpointError: a tensor is missing.
    """
    block = "encoder.block.0.layer"
    try:
        vocab_size, d_model = shapes[EMBEDDING]
        buckets, num_heads = shapes[f"{block}.0.SelfAttention.relative_attention_bias.weight"]
        inner, _ = shapes[f"{block}.0.SelfAttention.q.weight"]
        d_ff, _ = shapes[f"{block}.1.DenseReluDense.wi_0.weight"]
    except KeyError as error:
        raise CheckpointError(
            f"got {path} without the tensor {error.args[0]}; expected a complete T5 v1.1 encoder; download it again"
        ) from error
    return TextEncoderConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=inner // num_heads,
        d_ff=d_ff,
        num_layers=len(block_groups(shapes, "encoder.block.")),
        num_heads=num_heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=int(hf_config.get("relative_attention_max_distance", MAX_DISTANCE)),
        layer_norm_epsilon=float(hf_config.get("layer_norm_epsilon", LAYER_NORM_EPSILON)),
    )


def _text_encoder_part(checkpoint: Checkpoint, layout: Layout) -> Part:
    """The encoder's tensors, if they are those of a whole T5 v1.1 whose weights are plain numbers."""
    path, part = checkpoint.path, part_or_error(checkpoint, layout, "text_encoder")
    if "encoder.block.0.layer.1.DenseReluDense.wi.weight" in part.keys:
        raise CheckpointError(
            f"got {path}, which is a T5 1.0; expected T5 v1.1, whose feed-forward layers are gated; "
            "use t5xxl (google/t5-v1_1-xxl)"
        )
    if "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in part.keys:
        raise CheckpointError(
            f"got {path}, which is a UMT5 (the encoder of Wan); expected T5 v1.1; use t5xxl (google/t5-v1_1-xxl)"
        )
    packed = [key for key in checkpoint.tensors if key.endswith(PACKED)]
    if packed:
        raise UnsupportedError(
            f"got {path} with packed weights ({packed[0]}); expected plain ones; "
            "use t5xxl_fp16.safetensors, or t5xxl_fp8_e4m3fn.safetensors (not the scaled one)"
        )
    return part


def _encoder_keys(part: Part) -> dict[str, str]:
    """Name in the module -> name in the file, the embedding under its first name only; a decoder is left aside."""
    keys = {name: key for name, key in part.keys.items() if not name.startswith(("decoder.", "lm_head."))}
    again = keys.pop(EMBEDDING_AGAIN, None)
    if again is not None:
        keys.setdefault(EMBEDDING, again)
    return keys


def _tensors(
    checkpoint: Checkpoint, keys: Mapping[str, str], dtype: torch.dtype | None, progress: Progress
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for step, (name, key) in enumerate(keys.items()):
        progress(ProgressEvent(STAGE, step, len(keys)))
        stored = checkpoint.tensor(key)
        wanted = dtype or (stored.dtype if stored.dtype.itemsize > 1 else torch.bfloat16)
        overflows = wanted == torch.float16 and name.endswith(".wo.weight")
        tensors[name] = stored.to(torch.float32 if overflows else wanted)
    tensors[EMBEDDING_AGAIN] = tensors[EMBEDDING]
    progress(ProgressEvent(STAGE, len(keys), len(keys)))
    return tensors


def _tokenizer_in(place: Path) -> Path | None:
    if place.is_file():
        return place
    return next((place / name for name in TOKENIZER_FILES if (place / name).is_file()), None)


def _hub_tokenizers() -> Iterator[Path]:
    from huggingface_hub import try_to_load_from_cache

    for repository, folder in HUB_TOKENIZERS:
        for name in TOKENIZER_FILES:
            cached = try_to_load_from_cache(repository, folder + name)
            if isinstance(cached, str):
                yield Path(cached)

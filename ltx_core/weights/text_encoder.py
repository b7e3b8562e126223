"""From a file or folder to a T5 encoder with its tokenizer.

It reads Hugging Face folders (sharded ones too, or the `text_encoder/` of a pipeline folder), single files such as the
`t5xxl_fp16.safetensors` of ComfyUI users, and GGUF. The architecture follows from the shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TextEncoderConfig
from ..errors import CheckpointError
from ..kernels.active import keep_dtype
from ..models.text_encoder import T5EncoderModel, TextEncoder, build_t5
from ..models.tokenizer import Tokenizer
from ..progress import Progress, silent
from ..quant.linear import Preparation, QuantizedLinear
from .assign import assign, preparation_for, stored_tensors
from .build import Opened, open_models
from .bundled import T5_TOKENIZER
from .containers import Checkpoint, TensorInfo
from .counts import FEW, PER_TEXT_ENCODER_BLOCK
from .layouts import Part, block_groups
from .mapping import watch

STAGE = "load text encoder"

# T5 has one embedding under both names; files hold the first, the second or both. Whole models share it with
# the decoder.
EMBEDDING = "shared.weight"
EMBEDDING_AGAIN = "encoder.embed_tokens.weight"
_EMBEDDING_AGAIN = ("encoder.embed_tokens.", "decoder.embed_tokens.")

# The same in every published T5, and visible in no shape (huggingface/transformers configuration_t5.py).
MAX_DISTANCE = 128
LAYER_NORM_EPSILON = 1e-6
_LARGEST_STATED = 2**24  # of any number in config.json
EOS_ID = 1
T5_VOCABULARY = 32128  # embeddings of every T5 v1.1; its tokenizer has 32,000 pieces

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
    quantization: str | None = None,
    tokenizer: Path | str | None = None,
    host_tokenizers: Sequence[Path] = (),
    progress: Progress = silent,
) -> TextEncoder:
    """A T5 v1.1 encoder, memory-mapped on the CPU where `dtype` is what is stored.

    dtype: of the weights that are not quantized; None keeps the stored one, or takes bfloat16 where others are
        quantized. In float16 the last layer of every feed-forward computes in float32, because its inputs overflow
        float16 (transformers' `T5PreTrainedModel._keep_in_fp32_modules`).
    quantization: what to make of the plain Linears while they load, one of `QUANTIZATION_NAMES`.
    tokenizer: `spiece.model` or `tokenizer.json` of T5 v1.1, or a folder with one of them. None: searched for, see
        `find_tokenizer`.
    host_tokenizers: such files or folders that the host program brings.

    Raises:
        CheckpointError: the file is damaged, incomplete or of another kind; there is no tokenizer, or it does not
            belong to the encoder.
        ConfigError: `quantization` is unknown, or the weights are quantized already.
        UnsupportedError: weights stored in a way that LTXKit does not read.
    """
    opened = open_models(path)
    return text_encoder_from(
        opened,
        dtype=dtype,
        quantization=quantization,
        tokenizer=tokenizer,
        host_tokenizers=host_tokenizers,
        progress=progress,
    )


def text_encoder_from(
    opened: Opened,
    *,
    dtype: torch.dtype | None = None,
    quantization: str | None = None,
    tokenizer: Path | str | None = None,
    host_tokenizers: Sequence[Path] = (),
    progress: Progress = silent,
    when_needed: bool = False,
) -> TextEncoder:
    """As `load_text_encoder`, of a container that is open.

    when_needed: everything is checked now, by the header, and the weights are read when the model is first used.
    """
    path = opened.checkpoint.path
    keys, preparation, config = _prepared(opened, quantization)
    tokenizer_file = find_tokenizer(path, tokenizer, host_tokenizers, vocabulary=config.vocab_size)
    loaded_tokenizer = Tokenizer.from_file(tokenizer_file, config.vocab_size)
    if loaded_tokenizer.vocab_size > config.vocab_size or loaded_tokenizer.eos_id != EOS_ID:
        raise CheckpointError(
            f"got the tokenizer {tokenizer_file} with {loaded_tokenizer.vocab_size} pieces and end of sequence "
            f"{loaded_tokenizer.eos_id}; expected at most {config.vocab_size} pieces and {EOS_ID}, as {path} has; "
            "pass the tokenizer that belongs to this text encoder"
        )
    notes = tuple(encoder_notes(opened))
    if not when_needed:
        model = _load(opened.checkpoint, keys, preparation, config, dtype, progress)
        return TextEncoder(model, loaded_tokenizer, config, notes)
    outline, _ = text_encoder_on_meta(opened.without_data(), dtype=dtype, quantization=quantization)

    def load(progress: Progress) -> T5EncoderModel:
        # A preparation is for one model: what it swaps in the outline, it would not find in another.
        keys, preparation, config = _prepared(opened, quantization)
        return _load(opened.checkpoint, keys, preparation, config, dtype, progress)

    return TextEncoder(load, loaded_tokenizer, config, notes, outline)


def text_encoder_on_meta(
    opened: Opened, *, dtype: torch.dtype | None = None, quantization: str | None = None
) -> tuple[T5EncoderModel, TextEncoderConfig]:
    """The encoder without its data and its tokenizer. Otherwise as `load_text_encoder`.

    opened: by `open_models` with data=False.
    """
    keys, preparation, config = _prepared(opened, quantization)
    return _load(opened.checkpoint, keys, preparation, config, dtype, silent), config


def _prepared(opened: Opened, quantization: str | None) -> tuple[dict[str, str], Preparation | None, TextEncoderConfig]:
    """Name in the module -> name in the file, what becomes of the Linears, and the architecture."""
    checkpoint, part = opened.checkpoint, _t5_part(opened)
    keys = _encoder_keys(part)
    stored = checkpoint.stored(keys)
    preparation = preparation_for(stored, checkpoint.path, quantization, only=T5EncoderModel.BLOCK_PREFIX)
    component = part.prefix.partition("/")[0] if "/" in part.prefix else "text_encoder"
    hf_config = checkpoint.configs.get(component, {})
    return keys, preparation, text_encoder_config(stored, hf_config, checkpoint.path)


def _load(
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    preparation: Preparation | None,
    config: TextEncoderConfig,
    dtype: torch.dtype | None,
    progress: Progress,
) -> T5EncoderModel:
    model = build_t5(config)
    tensors = stored_tensors(model, checkpoint, keys, preparation, dtype, stage=STAGE, progress=progress)
    tensors[EMBEDDING_AGAIN] = tensors[EMBEDDING]
    _keep_from_overflow(model, tensors, share=checkpoint.container == "memory")
    assign(model, tensors, source=checkpoint.path)
    watch(model, checkpoint.files)
    if dtype is not None:
        keep_dtype(model)
    return model


def find_tokenizer(
    weights: Path, given: Path | str | None = None, host: Sequence[Path] = (), *, vocabulary: int
) -> Path:
    """The tokenizer file to use. Nothing is downloaded.

    The given file; else one next to the weights (also in `tokenizer/` there or one folder up); else one that the host
    brings; else one in the local cache of the Hugging Face hub; else, for an encoder with T5's vocabulary, the one that
    comes with the pack.

    vocabulary: how many embeddings the encoder has.

    Raises:
        CheckpointError: there is no tokenizer in any of these; the message says where to put one.
    """
    if given is not None:
        tokenizer = _tokenizer_in(Path(given))
        if tokenizer is None:
            raise CheckpointError(
                f"got the tokenizer {given}; expected spiece.model or tokenizer.json of T5 v1.1, or a folder with one "
                "of them; check the path"
            )
        return tokenizer
    folder = weights if weights.is_dir() else weights.parent
    beside = (folder, folder / "tokenizer", folder.parent / "tokenizer")
    for place in (*beside, *host):
        tokenizer = _tokenizer_in(Path(place))
        if tokenizer is not None:
            return tokenizer
    for cached in _hub_tokenizers():
        return cached
    if vocabulary == T5_VOCABULARY:
        return T5_TOKENIZER
    raise CheckpointError(
        f"got the text encoder {weights} without a tokenizer; expected spiece.model or tokenizer.json, as its "
        f"vocabulary of {vocabulary} is not that of T5 v1.1 ({T5_VOCABULARY}), whose tokenizer comes with LTXKit; "
        f"put its own into {folder}, or pass its path as the tokenizer. Looked in "
        + ", ".join(str(place) for place in (*beside, *host))
        + " and the local Hugging Face cache"
    )


def text_encoder_config(
    stored: Mapping[str, TensorInfo], hf_config: Mapping[str, Any], path: Path
) -> TextEncoderConfig:
    """Architecture of a T5 v1.1 encoder from the shapes of its tensors (transformers' names).

    hf_config: its config.json, or empty; only what no shape shows is taken from it.

    Raises:
        CheckpointError: a tensor is missing.
    """
    block = f"{T5EncoderModel.BLOCK_PREFIX}0.layer"
    vocab_size, d_model = _matrix(stored, EMBEDDING, path)
    buckets, num_heads = _matrix(stored, f"{block}.0.SelfAttention.relative_attention_bias.weight", path)
    inner = _rows(stored, f"{block}.0.SelfAttention.q.weight", _stated(hf_config, "d_kv", 0, path) * num_heads, path)
    d_ff = _rows(stored, f"{block}.1.DenseReluDense.wi_0.weight", _stated(hf_config, "d_ff", 0, path), path)
    num_layers = len(block_groups(stored, T5EncoderModel.BLOCK_PREFIX))
    if num_layers > FEW and num_layers * PER_TEXT_ENCODER_BLOCK > len(stored):
        raise CheckpointError(
            f"got {path}, whose names speak of {num_layers} layers, with {len(stored)} tensors; expected at least "
            f"{num_layers * PER_TEXT_ENCODER_BLOCK} tensors; the file is damaged, download it again"
        )
    return TextEncoderConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=inner // num_heads,
        d_ff=d_ff,
        num_layers=num_layers,
        num_heads=num_heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=_stated(hf_config, "relative_attention_max_distance", MAX_DISTANCE, path),
        layer_norm_epsilon=_stated(hf_config, "layer_norm_epsilon", LAYER_NORM_EPSILON, path),
    )


def hugging_face_config(config: TextEncoderConfig) -> dict[str, Any]:
    """The `config.json` with which transformers reads a float32 encoder of this architecture."""
    return asdict(config) | {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "is_gated_act": True,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.0,
        "is_encoder_decoder": False,
        "tie_word_embeddings": False,
        "use_cache": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }


_Number = TypeVar("_Number", int, float)


def _stated(config: Mapping[str, Any], name: str, otherwise: _Number, path: Path) -> _Number:
    """A positive number of config.json, of the type of `otherwise`, which is taken where there is none."""
    value = config.get(name, otherwise)
    if value == otherwise:
        return otherwise
    kinds = int if isinstance(otherwise, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= _LARGEST_STATED:
        raise CheckpointError(
            f"got {path}, whose config.json has {name} = {str(value)[:80]}; expected a positive number, and a whole "
            "one for sizes; use the config.json that belongs to these weights"
        )
    return type(otherwise)(value)


def _matrix(stored: Mapping[str, TensorInfo], name: str, path: Path) -> tuple[int, int]:
    """The two sizes of a tensor. Raises CheckpointError: it is missing or no matrix."""
    info = _need(stored, name, path)
    if len(info.shape) != 2 or 0 in info.shape:
        raise CheckpointError(
            f"got {path} with {name} of shape {list(info.shape)}; expected two sizes of at least 1; the file is "
            "damaged, download it again"
        )
    return info.shape[0], info.shape[1]


def _need(stored: Mapping[str, TensorInfo], name: str, path: Path) -> TensorInfo:
    if name not in stored:
        raise CheckpointError(
            f"got {path} without the tensor {name}; expected a complete T5 v1.1 encoder; download it again"
        )
    return stored[name]


def _rows(stored: Mapping[str, TensorInfo], name: str, otherwise: int, path: Path) -> int:
    """First size of a weight; of one that is packed into one row of bytes only config.json tells.

    Formats that keep the rows may pad them with rows of zeros, which change no result.
    """
    info = _need(stored, name, path)
    if info.dtype != "U8" or (not otherwise and len(info.shape) == 2 and info.shape[1] > 1):
        return _matrix(stored, name, path)[0]
    if not otherwise:
        raise CheckpointError(
            f"got {path}, whose 4-bit weights do not show its sizes; expected its config.json next to it; "
            "use the folder that transformers wrote"
        )
    return otherwise


def holds_encoder(opened: Opened) -> bool:
    """Whether a T5 v1.1 encoder is in a file, by names and shapes alone."""
    try:
        _t5_part(opened)
        text_encoder_config(opened.stored("text_encoder"), {}, opened.checkpoint.path)
    except CheckpointError:
        return False
    return True


def _t5_part(opened: Opened) -> Part:
    """The encoder's tensors.

    Raises:
        CheckpointError: there are none, or they are those of another T5 than v1.1.
    """
    path, part = opened.checkpoint.path, opened.part("text_encoder")
    if f"{T5EncoderModel.BLOCK_PREFIX}0.layer.1.DenseReluDense.wi.weight" in part.keys:
        raise CheckpointError(
            f"got {path}, which is a T5 1.0; expected T5 v1.1, whose feed-forward layers are gated; "
            "use t5xxl (google/t5-v1_1-xxl)"
        )
    if f"{T5EncoderModel.BLOCK_PREFIX}1.layer.0.SelfAttention.relative_attention_bias.weight" in part.keys:
        raise CheckpointError(
            f"got {path}, which is a UMT5 (the encoder of Wan); expected T5 v1.1; use t5xxl (google/t5-v1_1-xxl)"
        )
    return part


# Everything that an encoder reads has a name in one of these, or marks how its weights are stored.
_OF_ENCODER = ("encoder.", "shared.")
# What else is in files of whole models, and in those that ComfyUI saves (comfy/sd1_clip.py); no encoder reads it.
_OTHERS: Mapping[str, str] = {
    "decoder.": "the decoder",
    "lm_head.": "the head of the language model (lm_head)",
    "logit_scale": "logit_scale",
    "text_projection": "text_projection",
    "spiece_model": "the tokenizer (spiece_model)",
    "tokenizer": "the tokenizer",
    "position_ids": "position_ids",
    "embeddings_position_ids": "position_ids",
}


def _is_of_encoder(name: str) -> bool:
    return name.startswith(_OF_ENCODER) or not name.startswith(tuple(_OTHERS))


def encoder_notes(opened: Opened) -> Iterator[str]:
    """What the file holds beside the encoder, as a sentence for the user. Raises as `Opened.part`."""
    left = [name for name in opened.part("text_encoder").keys if not _is_of_encoder(name)]
    if left:
        count = f"{len(left)} tensor{'s' if left[1:] else ''}"
        whats = {what: None for start, what in _OTHERS.items() if any(name.startswith(start) for name in left)}
        yield (
            f"{opened.checkpoint.path} holds more than a text encoder: {', '.join(whats)} ({count}) "
            f"{'is' if len(whats) == 1 else 'are'} not used."
        )


def _encoder_keys(part: Part) -> dict[str, str]:
    """Name in the module -> name in the file, the embedding (with its scales, where it is quantized) under its first
    name only; without what is not used."""
    keys = {name: key for name, key in part.keys.items() if _is_of_encoder(name)}
    for again in _EMBEDDING_AGAIN:
        keys = {name: key for name, key in keys.items() if not name.startswith(again)}
        if EMBEDDING not in keys:
            first = EMBEDDING.removesuffix("weight")
            keys |= {first + n.removeprefix(again): key for n, key in part.keys.items() if n.startswith(again)}
    return keys


def _keep_from_overflow(model: nn.Module, tensors: dict[str, Tensor], *, share: bool) -> None:
    """Float32 for the layers that overflow float16; transformers casts their inputs where the weight is plain.

    share: keep their weights as they are, which are another program's as well, and cast them for every product.
    """
    if tensors[EMBEDDING].dtype != torch.float16:
        return
    for name, module in list(model.named_modules()):
        if name.endswith(".wo"):
            if isinstance(module, QuantizedLinear):
                module.register_forward_pre_hook(_in_float32)
            elif share and isinstance(module, nn.Linear):
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, _Float32Linear.like(module))
            else:
                tensors[f"{name}.weight"] = tensors[f"{name}.weight"].float()


class _Float32Linear(nn.Linear):
    """A Linear without bias that multiplies in float32, whatever its weights are."""

    @classmethod
    def like(cls, linear: nn.Linear) -> _Float32Linear:
        return cls(linear.in_features, linear.out_features, bias=False, device="meta").requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.float(), self.weight.float())


def _in_float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # noqa: ARG001
    return tuple(tensor.float() for tensor in inputs)


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

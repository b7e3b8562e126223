"""Files of random weights with the key names and the sizes of released ones, written as fast as the disk allows.

The values repeat every few megabytes: they do not matter, as long as a forward pass stays finite.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from ..config import BlockKind, CheckpointConfig, TextEncoderConfig, TransformerConfig, VAEBlock, VideoVAEConfig
from ..errors import UnsupportedError
from ..models.text_encoder import build_t5
from ..models.transformer import LTXTransformer
from ..models.video_vae import VideoVAE
from ..progress import Progress, ProgressEvent, silent
from ..releases import FAMILY_OF_LAYERS, T5_XXL, Family
from ..weights.metadata import format_config
from ..weights.save import TRANSFORMER_PREFIX, VAE_PREFIX
from ..weights.text_encoder import EMBEDDING_AGAIN, LAYER_NORM_EPSILON, MAX_DISTANCE, T5_VOCABULARY

PATTERN = 1 << 22  # values before they repeat
SPREAD = 0.02
STAGE = "write random weights"

MODEL, TEXT_ENCODER = "ltxv-random-{}.safetensors", "t5xxl-random.safetensors"
_WIDTHS: Mapping[Family, int] = {"2b": 2048, "13b": 4096}
_HEADS = 32
_VAE_WIDTH = 128

Shapes = Mapping[str, list[int]]


def transformer_config(family: Family) -> TransformerConfig:
    """Of the released size."""
    layers = next(layers for layers, name in FAMILY_OF_LAYERS.items() if name == family)
    return TransformerConfig.of_size(
        layers=layers, heads=_HEADS, head_dim=_WIDTHS[family] // _HEADS, channels=128, captions=T5_XXL[0]
    )


def vae_config() -> VideoVAEConfig:
    """Of 0.9.5 and later, at the released width."""

    def block(kind: BlockKind, layers: int = 1, multiplier: int = 1, *, residual: bool = False) -> VAEBlock:
        return VAEBlock(kind=kind, num_layers=layers, multiplier=multiplier, residual=residual, inject_noise=False)

    encoder = [block("res_x", 4)]
    down: tuple[BlockKind, ...] = ("compress_space_res", "compress_time_res", "compress_all_res", "compress_all_res")
    for kind, layers in zip(down, (6, 6, 2, 2), strict=True):
        encoder += [block(kind, multiplier=2), block("res_x", layers)]
    decoder = (
        *(block("res_x", 5), block("compress_all", multiplier=2, residual=True)) * 3,
        block("res_x", 5),
    )
    return VideoVAEConfig(
        in_channels=3,
        out_channels=3,
        latent_channels=128,
        patch_size=4,
        encoder_base_channels=_VAE_WIDTH,
        decoder_base_channels=_VAE_WIDTH,
        encoder_blocks=tuple(encoder),
        decoder_blocks=decoder,
        timestep_conditioning=True,
        causal_decoder=False,
        spatial_padding_mode="zeros",
    )


def t5_config() -> TextEncoderConfig:
    """Of T5 v1.1 XXL."""
    width, hidden, layers = T5_XXL
    return TextEncoderConfig(
        vocab_size=T5_VOCABULARY,
        d_model=width,
        d_kv=64,
        d_ff=hidden,
        num_layers=layers,
        num_heads=64,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=MAX_DISTANCE,
        layer_norm_epsilon=LAYER_NORM_EPSILON,
    )


def checkpoint_shapes(family: Family) -> dict[str, list[int]]:
    """Transformer and VAE in one file."""
    with torch.device("meta"):
        parts = {
            TRANSFORMER_PREFIX: LTXTransformer(transformer_config(family)).state_dict(),
            VAE_PREFIX: VideoVAE(vae_config()).state_dict(),
        }
    return {prefix + name: list(tensor.shape) for prefix, part in parts.items() for name, tensor in part.items()}


def t5_shapes() -> dict[str, list[int]]:
    with torch.device("meta"):
        tensors = build_t5(t5_config()).state_dict()
    return {name: list(tensor.shape) for name, tensor in tensors.items() if name != EMBEDDING_AGAIN}


def random_sizes(family: Family, *, text_encoder: bool) -> int:
    """Bytes that `write_random` writes."""
    shapes = [checkpoint_shapes(family), *([t5_shapes()] if text_encoder else [])]
    return sum(2 * math.prod(shape) for part in shapes for shape in part.values())


def write_random(
    folder: Path, family: Family, *, text_encoder: bool, progress: Progress = silent
) -> tuple[Path, Path | None]:
    """Write a checkpoint in bfloat16, and T5 XXL in float16 as most people have it; their paths.

    Raises:
        UnsupportedError: the disk has no room for them.
    """
    config = CheckpointConfig(transformer=transformer_config(family), vae=vae_config(), scheduler=None)
    metadata = {"config": format_config(config)}
    needed, free = random_sizes(family, text_encoder=text_encoder), shutil.disk_usage(folder).free
    if needed > free:
        raise UnsupportedError(
            f"got {free / 1e9:.1f} GB of free disk in {folder}; expected {needed / 1e9:.1f} GB for random weights of "
            "the true size; name another folder with --folder, or a file of yours with --model"
        )
    files = [(folder / MODEL.format(family), checkpoint_shapes(family), "BF16", metadata)]
    if text_encoder:
        files.append((folder / TEXT_ENCODER, t5_shapes(), "F16", {"format": "pt"}))
    for step, (path, shapes, dtype, described) in enumerate(files):
        progress(ProgressEvent(STAGE, step, len(files)))
        write_safetensors(path, shapes, dtype, described)
    progress(ProgressEvent(STAGE, len(files), len(files)))
    return files[0][0], files[1][0] if text_encoder else None


def write_safetensors(
    path: Path,
    shapes: Shapes,
    dtype: str = "BF16",
    metadata: Mapping[str, str] | None = None,
    *,
    holes: bool = False,
) -> None:
    """Everything in BF16 or F16; with "F8_E4M3", the layers that official files have in float8, and the rest in BF16.

    The weights of norms are 1: others would shrink what attention compares.
    holes: a sparse file of the same size, all zeros.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    whole = dtype if dtype == "F16" else "BF16"
    sizes, offset = [], 0
    for name, shape in shapes.items():
        in_block = len(shape) == 2 and ("attn" in name or ".ff." in name)
        kind = dtype if in_block else whole
        size = math.prod(shape) * (1 if kind.startswith("F8") else 2)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
        sizes.append(((kind, name.endswith("norm.weight")), size))
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as safetensors writes it
    patterns = {each: pattern(*each) for each in {each for each, _ in sizes} if not holes}
    with path.open("wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if holes:
            file.truncate(file.tell() + offset)
            return
        for each, size in sizes:
            write_repeated(file, patterns[each], size)


def pattern(kind: str, ones: bool = False) -> bytes:
    """Random numbers around 0, stored as `kind`. ones: 1 in their place."""
    values = torch.randn(PATTERN, generator=torch.Generator().manual_seed(0)) * SPREAD
    values = torch.ones(PATTERN) if ones else values
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
    return values.to(dtypes[kind]).view(torch.uint8).numpy().tobytes()


def write_repeated(file: BinaryIO, data: bytes, count: int) -> None:
    """The first `count` bytes of endless repetitions of `data`."""
    view = memoryview(data)
    while count:
        count -= file.write(view[: min(count, len(view))])

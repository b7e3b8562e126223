"""The config of a model as far as the shapes of its tensors show it."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import cast

from ..config import (
    BlockKind,
    VAEBlock,
)
from ..errors import CheckpointError
from ..models.transformer import LTXTransformer
from ..quant.foreign import has_a_weight_per_number
from .containers import Checkpoint
from .counts import Indices
from .layouts import CROSS_ATTENTION, Part

_PACKED = frozenset({"U8", "I32", "U32"})


class Shapes:
    """Shapes of one part by the module's names. Weights that a quantization packs (several in a number) or pads (those
    with block scales of one byte) do not count.
    """

    def __init__(self, checkpoint: Checkpoint, part: Part) -> None:
        self.path = checkpoint.path
        self._indices = Indices(part.keys, str(checkpoint.path))
        stored = checkpoint.stored(part.keys)
        self._shapes = {
            name: info.shape
            for name, info in stored.items()
            if info.dtype not in _PACKED and (info.dtype != "I8" or has_a_weight_per_number(stored, name))
            if not (f"{name}_scale" in stored and stored[f"{name}_scale"].dtype in ("U8", "F8_E8M0"))
        }

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def size(self, name: str, axis: int) -> int | None:
        shape = self._shapes.get(name)
        if shape is None or len(shape) <= axis:
            return None
        if not shape[axis]:
            raise CheckpointError(
                f"got {self.path} with {name} of shape {list(shape)}; expected a size of 1 or more on each axis; the "
                "file is damaged, download it again"
            )
        return shape[axis]

    def need(self, name: str, axis: int) -> int:
        size = self.size(name, axis)
        if size is None:
            raise CheckpointError(
                f"got {self.path} without {name}, or with too few axes of it; expected a complete model; download it "
                "again"
            )
        return size

    def count(self, prefix: str) -> int:
        """As `Indices.count`."""
        return self._indices.count(prefix)


def _known(**sizes: object) -> dict[str, object]:
    return {name.replace("__", "."): size for name, size in sizes.items() if size is not None}


def _transformer_shapes(shapes: Shapes) -> dict[str, object]:
    text_keys = f"{LTXTransformer.BLOCK_PREFIX}0.{CROSS_ATTENTION}.to_k.weight"
    return _known(
        transformer__in_channels=shapes.size("patchify_proj.weight", 1),
        transformer__out_channels=shapes.size("proj_out.bias", 0),
        transformer__num_layers=shapes.count(LTXTransformer.BLOCK_PREFIX),
        transformer__hidden_size=shapes.size("patchify_proj.bias", 0),
        transformer__cross_attention_dim=shapes.size(text_keys, 1),
        transformer__caption_channels=shapes.size("caption_projection.linear_1.weight", 1),
    )


def _vae_shapes(shapes: Shapes) -> dict[str, object]:
    pixels = 3  # RGB; one patch of it is what the first convolution sees
    patched = shapes.need("encoder.conv_in.conv.weight", 1)
    decoder = _decoder_blocks(shapes)
    return _known(
        vae__in_channels=pixels,
        vae__out_channels=pixels,
        vae__latent_channels=shapes.size("decoder.conv_in.conv.weight", 1),
        vae__patch_size=isqrt(patched // pixels),
        vae__encoder_base_channels=shapes.size("encoder.conv_in.conv.weight", 0),
        vae__decoder_base_channels=shapes.size("decoder.conv_out.conv.weight", 1),
        vae__encoder_blocks=_encoder_blocks(shapes, decoder),
        vae__decoder_blocks=decoder,
        vae__timestep_conditioning="decoder.last_scale_shift_table" in shapes,
    )


_COMPRESS: Mapping[int, BlockKind] = {8: "compress_all", 4: "compress_space", 2: "compress_time"}


def _vae_block(kind: BlockKind, *, num_layers: int = 1, multiplier: int = 1, inject_noise: bool = False) -> VAEBlock:
    return VAEBlock(kind=kind, num_layers=num_layers, multiplier=multiplier, residual=False, inject_noise=inject_noise)


def _block_input(shapes: Shapes, half: str, prefix: str, index: int) -> int:
    """Width that block `index` reads; after the last block, the width of the final convolution."""
    start = f"{half}.{prefix}.{index}"
    for name in ("res_blocks.0.conv1.conv", "conv1.conv", "conv.conv", "conv"):
        size = shapes.size(f"{start}.{name}.weight", 1)
        if size is not None:
            return size
    return shapes.need(f"{half}.conv_out.conv.weight", 1)


def _encoder_blocks(shapes: Shapes, decoder: tuple[VAEBlock, ...] | None) -> tuple[VAEBlock, ...] | None:
    # A strided convolution looks the same whatever its stride; the decoder undoes it by a depth-to-space that shows it.
    mirrored: list[BlockKind] = [block.kind for block in decoder or () if block.kind.startswith("compress")]
    blocks: list[VAEBlock] = []
    for index in range(shapes.count("encoder.down_blocks.")):
        start = f"encoder.down_blocks.{index}"
        width, following = (_block_input(shapes, "encoder", "down_blocks", i) for i in (index, index + 1))
        if shapes.count(f"{start}.res_blocks."):
            blocks.append(_vae_block("res_x", num_layers=shapes.count(f"{start}.res_blocks.")))
        elif f"{start}.conv1.conv.weight" in shapes:
            blocks.append(_vae_block("res_x_y", multiplier=following // width))
        elif f"{start}.conv.conv.weight" in shapes:
            kind = _COMPRESS.get(following // shapes.need(f"{start}.conv.conv.weight", 0))
            if kind is None:
                return None
            blocks.append(_vae_block(cast(BlockKind, f"{kind}_res"), multiplier=following // width))
        elif mirrored:
            blocks.append(_vae_block(mirrored.pop(0)))
        else:
            return None
    return tuple(blocks)


def _decoder_blocks(shapes: Shapes) -> tuple[VAEBlock, ...] | None:
    """In stored order, which is the reverse of the running order."""
    blocks: list[VAEBlock] = []
    for index in range(shapes.count("decoder.up_blocks.")):
        start = f"decoder.up_blocks.{index}"
        width, following = (_block_input(shapes, "decoder", "up_blocks", i) for i in (index, index + 1))
        layers = shapes.count(f"{start}.res_blocks.")
        if layers:
            noise = f"{start}.res_blocks.0.per_channel_scale1" in shapes
            blocks.append(_vae_block("res_x", num_layers=layers, inject_noise=noise))
        elif f"{start}.conv1.conv.weight" in shapes:
            blocks.append(_vae_block("res_x_y", multiplier=width // following))
        else:
            kind = _COMPRESS.get(shapes.need(f"{start}.conv.conv.weight", 0) // following)
            if kind is None:
                return None
            blocks.append(_vae_block(kind, multiplier=width // following))
    return tuple(reversed(blocks))


def _upscaler_shapes(shapes: Shapes) -> dict[str, object]:
    middle = shapes.need("initial_conv.weight", 0)
    growth = shapes.need("upsampler.0.weight", 0) // middle  # 4 in space, 2 in time, 8 in both
    return _known(
        upscaler__in_channels=shapes.size("initial_conv.weight", 1),
        upscaler__mid_channels=middle,
        upscaler__num_blocks_per_stage=shapes.count("res_blocks."),
        upscaler__dims=3 if shapes.size("initial_conv.weight", 4) else 2,
        upscaler__spatial_upsample=growth in (4, 8),
        upscaler__temporal_upsample=growth in (2, 8),
    )


SHAPE_READERS = {
    "transformer": _transformer_shapes,
    "vae": _vae_shapes,
    "upscaler": _upscaler_shapes,
}

"""How many bytes of activations the VAE needs, from its config alone: the basis of tiling and of the memory plan.

The classes here mirror the layers of `vae_layers` with numbers of frames in the place of tensors: each allocates and
frees as many elements as the real layer, in the same order. The count therefore follows from the code, not from a
measurement, and a test compares it with the allocations of the real layers. Weights on the device are not counted,
except for the copies in other memory formats that a convolution makes of its weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial

from ..config import VAEBlock, VideoVAEConfig
from ..models.video_vae import STREAM_FRAMES
from ..shapes import LatentShape, ScaleFactors

KERNEL = 27  # cells of a 3x3x3 convolution
NORM_TENSORS = 4  # one channel each, while a norm is computed: float32 in a half-precision model, and its last form
LONGEST = 48
"""The most latent frames of a streamed clip that are simulated. The first frame puts the stages out of step, an effect
that fades slowly: the released decoders need 0 to 4 % more for 48 frames than for 33. Encoders settle after three."""

CARD_COPIES, CPU_COPIES = 1, 2
"""Copies that a convolution makes of its weight. On a card one: channels last, like its input. On the CPU two, measured
with oneDNN, which converts a weight to channels-last memory and then to its own blocked format."""

PACKING_COPIES = 1
"""The same where weights are packed once, beside the packed ones: of the weight that is being packed."""


def decode_bytes(
    config: VideoVAEConfig,
    shape: LatentShape,
    *,
    itemsize: int,
    limit: int | None = STREAM_FRAMES,
    copies: int = CARD_COPIES,
    holds_frames: bool = False,
    processes: int = 1,
) -> int:
    """Peak bytes of activations of decoding one clip of `shape` cells.

    itemsize: bytes per number; 4 where `compute_dtype` is float32. limit: the one of `stream_decode`; None: `decode`.
    copies: of its weight that a convolution makes while it runs. holds_frames: finished frames, in float32, stay on
    this device until the next ones are finished; otherwise they leave at once. processes: among which the rows are
    divided; the bytes are those of the first one, which receives the frames.
    """
    rows = math.ceil(shape.height / processes)
    cells = rows * shape.width
    latent = 4 * config.latent_channels * shape.frames * cells  # float32, whole
    frames = shape.frames if limit is None else min(shape.frames, LONGEST)
    divided = (rows, shape.height) if processes > 1 and shape.height > 1 else None
    moments = _decoding(config, frames, limit, 4 / itemsize, holds_frames, divided)
    return latent + _most(moments, cells, copies) * itemsize


def encode_bytes(
    config: VideoVAEConfig,
    shape: LatentShape,
    *,
    itemsize: int,
    limit: int | None = STREAM_FRAMES,
    copies: int = CARD_COPIES,
) -> int:
    """Peak bytes of activations of encoding one clip to `shape` cells, without the pixels themselves.

    itemsize, limit, copies: as in `decode_bytes`, for `stream_encode` and `encode`.
    """
    scale = config.scale_factors
    frames = shape.frames if limit is None else min(shape.frames, LONGEST)
    cells = shape.height * shape.width
    pixels = shape.pixels(scale)
    # The piece that goes in, float32 whatever the dtype of the weights.
    piece = 0 if limit is None else 4 * config.in_channels * min(limit, pixels.frames) * pixels.height * pixels.width
    return piece + _most(_encoding(config, frames, limit), cells, copies) * itemsize


def _most(moments: Mapping[int, float], cells: int, copies: int) -> int:
    return math.ceil(max(per_cell * cells + weight * copies for weight, per_cell in moments.items()))


# --- live elements ----------------------------------------------------------------------------------------------------


@dataclass
class _Ledger:
    """Live elements per latent cell, and their maximum.

    moments: elements of the weight in use -> the most elements per latent cell that were alive with it.
    """

    now: float = 0.0
    moments: dict[int, float] = field(default_factory=dict[int, float])

    def take(self, elements: float, weight: int = 0) -> float:
        self.now += elements
        self.moments[weight] = max(self.moments.get(weight, 0.0), self.now)
        return elements

    def drop(self, elements: float) -> None:
        self.now -= elements


_Piece = tuple[int, float, bool]
"""Frames, elements per latent cell of the memory that holds them, whether they are the clip's last."""

_Layer = Callable[[int, bool], tuple[int, float]]
"""(input frames, whether they are the last) -> output frames, and the elements that they take."""


def _run_stages(
    ledger: _Ledger,
    layers: Iterable[_Layer],
    pieces: Iterator[_Piece],
    limit: int | None,
    *,
    copied: float = 0.0,
    holds: bool = False,
    gathered: float = 0.0,
) -> None:
    """`vae_layers.run_stages`. copied: elements that the receiver allocates per element that it receives. holds: it
    keeps its copy until it has made the next one. gathered: elements per element of the copy, while the frames of
    several processes are brought together."""
    for layer in layers:
        pieces = _run_stage(ledger, layer, pieces, limit)
    before = copy = 0.0
    for _, elements, _ in pieces:  # an output piece lives until the next one comes
        ledger.drop(before)
        before = elements
        new_copy = ledger.take(copied * elements)
        ledger.drop(ledger.take(gathered * new_copy))
        ledger.drop(copy if holds else new_copy)
        copy = new_copy


def _run_stage(ledger: _Ledger, layer: _Layer, pieces: Iterator[_Piece], limit: int | None) -> Iterator[_Piece]:
    for frames, elements, last in pieces:
        parts = [min(limit, frames - start) for start in range(0, frames, limit)] if limit and frames else [frames]
        for number, part in enumerate(parts):
            is_last = last and number == len(parts) - 1
            result = *layer(part, is_last), is_last
            if number == len(parts) - 1:  # parts are views: the last one frees the memory of all
                ledger.drop(elements)
            yield result


# --- layers -----------------------------------------------------------------------------------------------------------


class _Convolution:
    """`CausalConv3d`. cells: of its input, per latent cell. rows: of its input, if they are only this process's."""

    def __init__(
        self,
        ledger: _Ledger,
        width: int,
        out: int,
        cells: float,
        *,
        causal: bool,
        pads: bool,
        stride: tuple[int, ...] = (1, 1, 1),
        rows: int | None = None,
    ) -> None:
        self.ledger, self.width, self.out, self.cells = ledger, width, out, cells
        self.causal, self.pads, self.rows = causal, pads, rows
        self.time, self.space = stride[0], math.prod(stride[1:])
        self.carried: int | None = None

    def __call__(self, frames: int, last: bool, *, normed: bool = False) -> tuple[int, float]:
        """normed: the frames pass through `Norm` into the input of the kernel."""
        ledger, unit = self.ledger, self.width * self.cells
        earlier = self.carried
        if earlier is None:
            earlier = (2 if self.causal else 1) if frames else 0
        total = frames + earlier + (1 if last and not self.causal else 0)
        joined = ledger.take(total * unit)
        if normed:
            ledger.drop(ledger.take(NORM_TENSORS * frames * self.cells))
        ledger.drop((self.carried or 0) * unit)
        count = max((total - 3) // self.time + 1, 0)
        self.carried = None if last or total == 0 else total - count * self.time
        ledger.take((self.carried or 0) * unit)
        if self.rows is not None and count:
            joined = self._bordered(joined, joined / self.rows)
        padded = ledger.take(joined) if self.pads else 0.0
        output = ledger.take(count * self.out * self.cells / self.space, KERNEL * self.width * self.out)
        ledger.drop(joined + padded)
        return count, output

    def _bordered(self, joined: float, row: float) -> float:
        """`RowShare.bordered`: rows are copied, put together and exchanged, then all are joined."""
        self.ledger.take(6 * row)
        self.ledger.drop(4 * row)
        bordered = self.ledger.take(joined + 2 * row)
        self.ledger.drop(joined + 2 * row)
        return bordered


class _Delay:
    """`Stream.delay`. Returns the number of elements that it allocates."""

    def __init__(self, ledger: _Ledger, unit: float) -> None:
        self.ledger, self.unit, self.carried = ledger, unit, 0

    def __call__(self, frames: int, count: int, last: bool) -> float:
        joined = self.ledger.take((self.carried + frames) * self.unit) if self.carried else 0.0
        self.ledger.drop(self.carried * self.unit)
        self.carried = 0 if last else self.carried + frames - count
        self.ledger.take(self.carried * self.unit)
        return joined


class _Residual:
    """`ResnetBlock3D`"""

    def __init__(self, make: Callable[..., _Convolution], width: int, out: int, cells: float, *, noisy: bool) -> None:
        self.first, self.second = make(width, out, cells), make(out, out, cells)
        self.ledger = self.first.ledger
        self.unit, self.output = width * cells, out * cells
        self.noisy, self.projects = noisy, width != out
        self.delay = _Delay(self.ledger, self.unit)

    def __call__(self, frames: int, last: bool) -> tuple[int, float]:
        ledger = self.ledger
        count, output = self._convolved(self.first, frames, last)
        before, (count, output) = output, self._convolved(self.second, count, last)
        ledger.drop(before)
        joined = self.delay(frames, count, last)
        shortcut = 0.0
        if self.projects:
            norm = ledger.take(count * self.unit)
            shortcut = ledger.take(count * self.output)
            ledger.drop(norm)
        ledger.drop(joined + shortcut)
        return count, output

    def _convolved(self, convolution: _Convolution, frames: int, last: bool) -> tuple[int, float]:
        count, output = convolution(frames, last, normed=True)
        if self.noisy:
            self.ledger.take(output)
            self.ledger.drop(output)
        return count, output


class _Chain:
    """`UNetMidBlock3D`: its input lives until it returns."""

    def __init__(self, blocks: list[_Residual]) -> None:
        self.blocks = blocks

    def __call__(self, frames: int, last: bool) -> tuple[int, float]:
        output = 0.0
        for block in self.blocks:
            before, (frames, output) = output, block(frames, last)
            block.ledger.drop(before)
        return frames, output


class _Unfold:
    """`DepthToSpaceUpsample`"""

    def __init__(self, convolution: _Convolution, time: int, *, residual: bool) -> None:
        self.convolution, self.time, self.ledger = convolution, time, convolution.ledger
        self.delay = _Delay(self.ledger, convolution.width * convolution.cells) if residual else None
        self.started = False

    def __call__(self, frames: int, last: bool) -> tuple[int, float]:
        ledger = self.ledger
        count, output = self.convolution(frames, last)
        joined = 0.0
        if self.delay is not None:
            joined = self.delay(frames, count, last)
        output = ledger.take(output)
        ledger.drop(output + joined)
        dropped = self.time > 1 and count > 0 and not self.started
        self.started = self.started or count > 0
        return count * self.time - dropped, output


class _Fold:
    """`SpaceToDepthDownsample`"""

    def __init__(self, convolution: _Convolution, stride: tuple[int, ...], out: int) -> None:
        self.convolution, self.ledger = convolution, convolution.ledger
        self.time, self.output = stride[0], out * convolution.cells / math.prod(stride[1:])
        self.unit = convolution.width * convolution.cells
        self.carried: int | None = None

    def __call__(self, frames: int, last: bool) -> tuple[int, float]:
        ledger, joined = self.ledger, 0.0
        if self.time > 1:
            earlier = 1 if self.carried is None else self.carried
            total = earlier + frames
            joined = ledger.take(total * self.unit) if earlier else 0.0
            ledger.drop((self.carried or 0) * self.unit)
            frames = total // self.time * self.time
            self.carried = 0 if last else total - frames
            ledger.take(self.carried * self.unit)
        folded = ledger.take(frames * self.unit)
        means = ledger.take(frames // self.time * self.output)
        ledger.drop(folded)
        count, output = self.convolution(frames, last)
        folded = ledger.take(output)
        ledger.drop(output + means + joined)
        return count // self.time, folded


class _Finish:
    """The last norm and convolution; the decoder then rearranges patches into pixels, which is a copy."""

    def __init__(self, convolution: _Convolution, *, rearranges: bool) -> None:
        self.convolution, self.rearranges = convolution, rearranges

    def __call__(self, frames: int, last: bool) -> tuple[int, float]:
        ledger = self.convolution.ledger
        count, output = self.convolution(frames, last, normed=True)
        if self.rearranges:
            ledger.take(output)
            ledger.drop(output)
        return count, output


# --- the two halves ---------------------------------------------------------------------------------------------------


def _pieces(ledger: _Ledger, frames: int, limit: int | None, unit: float, *, flushes: bool) -> Iterator[_Piece]:
    """The input, piece by piece: `unit` elements per frame and latent cell."""
    step = limit or frames
    for start in range(0, frames, step):
        count = min(step, frames - start)
        yield count, ledger.take(count * unit), flushes and start + count == frames


def _maker(ledger: _Ledger, config: VideoVAEConfig, causal: bool) -> Callable[..., _Convolution]:
    return partial(_Convolution, ledger, causal=causal, pads=config.spatial_padding_mode != "zeros")


def _residuals(make: Callable[..., _Convolution], block: VAEBlock, width: int, cells: float) -> _Layer:
    return _Chain([_Residual(make, width, width, cells, noisy=block.inject_noise) for _ in range(block.num_layers)])


@cache
def _decoding(
    config: VideoVAEConfig,
    frames: int,
    limit: int | None,
    copied: float,
    holds: bool,
    divided: tuple[int, int] | None,
) -> Mapping[int, float]:
    """The ledger's moments of decoding `frames` latent frames to pixels, which are then copied. divided: rows of the
    latent in this process and in all of them; None: there is one process."""
    ledger = _Ledger()
    own, rows = divided or (None, 0)
    whole = _maker(ledger, config, config.causal_decoder)
    make = partial(whole, rows=own)
    blocks = tuple(reversed(config.decoder_blocks))
    width, cells = config.decoder_base_channels * math.prod(block.multiplier for block in blocks), 1.0
    layers: list[_Layer] = [make(config.latent_channels, width, cells)]
    for block in blocks:
        out = width // block.multiplier
        if block.kind == "res_x":
            layers.append(_residuals(make, block, width, cells))
        elif block.kind == "res_x_y":
            layers.append(_Residual(make, width, out, cells, noisy=block.inject_noise))
            width = out
        else:
            fold = math.prod(block.stride)
            layers.append(_Unfold(make(width, out * fold, cells), block.stride[0], residual=block.residual))
            width, cells = out, cells * math.prod(block.stride[1:])
            own = None if own is None else own * block.stride[1]
            make = partial(whole, rows=own)
    last = make(width, config.out_channels * config.patch_size**2, cells)
    layers.append(_Finish(last, rearranges=True))
    pieces = _pieces(ledger, frames, limit, config.latent_channels, flushes=True)
    # What is sent is a copy, and what is received are the rows of all.
    gathered = 0.0 if divided is None else 1 + rows / divided[0]
    _run_stages(ledger, layers, pieces, limit, copied=copied, holds=holds, gathered=gathered)
    return ledger.moments


@cache
def _encoding(config: VideoVAEConfig, frames: int, limit: int | None) -> Mapping[int, float]:
    """The ledger's moments of encoding a clip to `frames` latent frames."""
    ledger = _Ledger()
    make = _maker(ledger, config, causal=True)
    scale: ScaleFactors = config.scale_factors
    cells = scale.height * scale.width / config.patch_size**2
    channels, width = config.in_channels * config.patch_size**2, config.encoder_base_channels
    layers: list[_Layer] = [make(channels, width, cells)]
    for block in config.encoder_blocks:
        out = width * block.multiplier
        area = math.prod(block.stride[1:])
        if block.kind == "res_x":
            layers.append(_residuals(make, block, width, cells))
        elif block.kind == "res_x_y":
            layers.append(_Residual(make, width, out, cells, noisy=False))
            width = out
        elif block.kind.endswith("_res"):
            layers.append(_Fold(make(width, out // math.prod(block.stride), cells), block.stride, out))
            width, cells = out, cells / area
        else:
            layers.append(make(width, width, cells, stride=block.stride))
            cells /= area
    layers.append(_Finish(make(width, config.latent_channels + 1, cells), rearranges=False))
    pixels = (frames - 1) * scale.frames + 1
    unit = channels * scale.height * scale.width / config.patch_size**2
    pieces = _pieces(ledger, pixels, limit, unit, flushes=limit is None)
    _run_stages(ledger, layers, pieces, limit)
    return ledger.moments

"""Layers of the video VAE (Lightricks/LTX-Video, models/autoencoders/causal_video_autoencoder.py, causal_conv3d.py).

Tensors inside the VAE are (b, f, h, w, c): the norms work over channels, time is cut and joined, and convolutions are
fastest with channels last. Only `CausalConv3d` permutes them, for the call of its kernel.

Every layer accepts a clip in pieces, one after the other; what it must remember of earlier pieces lives in a `Stream`.
The result is exactly that of the whole clip, which is the case of one piece.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from ..config import PaddingMode
from ..kernels.activation import norm_activation
from ..kernels.active import Active
from ..kernels.choice import Operation
from .convolution import Conv3d
from .dtypes import compute_dtype
from .embeddings import TimeEmbedder, scale_shift_table
from .rows import RowShare

PIXEL_NORM_EPS = 1e-8  # LTX-Video pixel_norm.py
SHORTCUT_NORM_EPS = 1e-6  # causal_video_autoencoder.py, UNetMidBlock3D / ResnetBlock3D

Stride = tuple[int, int, int]
ScaleShift = tuple[Tensor, Tensor]  # (1 + scale, shift), each (b, 1, 1, 1, c)


class Stream:
    """What the layers of one stage remember between the pieces of a clip.

    last: whether the present piece is the last one; then nothing is kept. rows: how the rows of the picture are divided
    among processes, of which the pieces have this one's; None: not at all.
    """

    def __init__(self, rows: RowShare | None = None) -> None:
        self.last = True
        self.rows = rows
        self._kept: dict[nn.Module, Tensor] = {}
        self._started: set[nn.Module] = set()

    def first(self, owner: nn.Module) -> bool:
        """True once per owner."""
        first = owner not in self._started
        self._started.add(owner)
        return first

    def recall(self, owner: nn.Module) -> Tensor | None:
        """The frames (b, f, h, w, c) that `owner` kept, or None if it kept none."""
        return self._kept.pop(owner, None)

    def keep(self, owner: nn.Module, frames: Tensor) -> None:
        if not self.last and frames.shape[1]:
            self._kept[owner] = frames.clone()  # a view would keep the whole piece alive

    def delay(self, owner: nn.Module, x: Tensor, count: int) -> Tensor:
        """The next `count` frames of all pieces so far: holds `x` back for a path parallel to convolutions that lag."""
        earlier = self.recall(owner)
        if earlier is not None:
            x = torch.cat([earlier, x], dim=1)
        if x.shape[1] == count:
            return x
        self.keep(owner, x[:, count:])
        return x[:, :count]


Stage = Callable[[Tensor, Stream], Tensor]
"""One step of the way through a half of the VAE: frames (b, f, h, w, c) and what the stage remembers -> frames."""


def run_stages(
    stages: Iterable[Stage],
    pieces: Iterable[tuple[Tensor, bool]],
    limit: int | None,
    rows: RowShare | None = None,
) -> Iterator[Tensor]:
    """Send a clip through `stages`, piece by piece.

    pieces: (frames (b, f, h, w, c), whether they are the last of the clip).
    limit: the most frames that one stage works on at once; None for no limit. rows: see `Stream`.
    Yields finished frames (b, f, h', w', c'), f >= 1, in order.
    """
    for stage in stages:
        pieces = _run_stage(stage, pieces, limit, rows)
    for x, _ in pieces:
        if x.shape[1]:
            yield x


def _run_stage(
    stage: Stage, pieces: Iterable[tuple[Tensor, bool]], limit: int | None, rows: RowShare | None
) -> Iterator[tuple[Tensor, bool]]:
    stream = Stream(rows)
    for x, last in pieces:
        parts = deque(x.split(limit, dim=1) if limit else [x])
        del x  # while this generator waits, it must not hold what later stages no longer need
        while parts:
            stream.last = last and len(parts) == 1
            yield stage(parts.popleft(), stream), stream.last


def pixel_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean over channels of x^2 + eps), the mean in float32. x: (..., c)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return x * (norm.square() / x.shape[-1] + PIXEL_NORM_EPS).rsqrt().to(x.dtype)


@dataclass(frozen=True, eq=False)
class Norm:
    """SiLU(pixel_norm(x) * (1 + scale) + shift), what every convolution of a residual block follows."""

    modulation: ScaleShift | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x: (b, f, h, w, c)."""
        x = pixel_norm(x)
        if self.modulation is not None:
            scale, shift = self.modulation
            x = torch.addcmul(shift, x, scale)
        return F.silu(x, inplace=True)

    def into(self, output: Tensor, x: Tensor, active: Active) -> None:
        """The same numbers, written into `output` (b, f, h, w, c). Without autograd."""
        for i, (sample, target) in enumerate(zip(x, output, strict=True)):
            pair = None
            if self.modulation is not None:
                scale, shift = (part[min(i, len(part) - 1)] for part in self.modulation)
                pair = scale, shift
            norm_activation(sample, pair, PIXEL_NORM_EPS, target, active)


def split_modulation(table: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
    """table (n, c) + timestep embedding (b, n c) -> n of (b, 1, 1, 1, c)."""
    values = table.to(embedding.dtype) + rearrange(embedding, "b (n c) -> b n c", n=len(table))
    return values[:, None, None, None].unbind(dim=-2)


def space_to_depth(x: Tensor, stride: Stride) -> Tensor:
    p1, p2, p3 = stride
    return rearrange(x, "b (f p1) (h p2) (w p3) c -> b f h w (c p1 p2 p3)", p1=p1, p2=p2, p3=p3)


def depth_to_space(x: Tensor, stride: Stride) -> Tensor:
    p1, p2, p3 = stride
    return rearrange(x, "b f h w (c p1 p2 p3) -> b (f p1) (h p2) (w p3) c", p1=p1, p2=p2, p3=p3)


class Layer(nn.Module):
    """A layer of the decoder, some of which take a timestep and noise besides the frames.

    noise_maps: how many noise maps (h, w) it takes, each at the size of its output.
    magnification: cells of its output per cell of its input along (height, width).
    """

    noise_maps: int = 0
    magnification: tuple[int, int] = (1, 1)

    def stage(self, timestep: Tensor | None, noise: Sequence[Tensor]) -> Stage:
        """The layer for one clip. timestep (b,), already scaled, or None without timestep conditioning. noise: as many
        maps (h, w) as it takes."""
        del timestep, noise
        return self


class CausalConv3d(nn.Module):
    """3x3x3 convolution; time is padded with copies of frames, two in front (causal) or one at either end.

    Not causal, it looks one frame ahead: on a clip in pieces, its output lags one frame until the last piece.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, causal: bool, padding: PaddingMode, stride: Stride = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.causal = causal
        self.conv = Conv3d(in_channels, out_channels, 3, stride, padding=(0, 1, 1), padding_mode=padding)

    def forward(self, x: Tensor, stream: Stream, norm: Norm | None = None) -> Tensor:
        """norm: what the frames pass through first."""
        stride, stride_h, stride_w = self.conv.stride
        x = self._with_neighbours(x, stream, norm)
        b, f, h, w, _ = x.shape
        count = max((f - 3) // stride + 1, 0)
        stream.keep(self, x[:, count * stride :])
        if count == 0:
            return x.new_empty(b, 0, (h - 1) // stride_h + 1, (w - 1) // stride_w + 1, self.conv.out_channels)
        if stream.rows is None:
            return self.conv(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        x = stream.rows.bordered(x, cast(PaddingMode, self.conv.padding_mode))
        return self.conv(x.permute(0, 4, 1, 2, 3), bordered=True).permute(0, 2, 3, 4, 1)

    def _with_neighbours(self, x: Tensor, stream: Stream, norm: Norm | None) -> Tensor:
        """x behind the frames kept earlier, or behind copies of the first frame; at the end of the clip, its last frame
        once more."""
        earlier, frames = stream.recall(self), x.shape[1]
        in_front = earlier.shape[1] if earlier is not None else (2 if self.causal else 1) * (frames > 0)
        behind = int(stream.last and not self.causal and in_front > 0)
        if norm is not None and torch.is_grad_enabled():
            x, norm = norm(x), None
        if not in_front:
            return x  # nothing has arrived yet
        if torch.is_grad_enabled():
            first = x[:, :1].expand(-1, in_front, -1, -1, -1) if earlier is None else earlier
            last = (x if frames else first)[:, -1:]
            return torch.cat([first, x, *[last] * behind], dim=1)
        joined = x.new_empty(len(x), in_front + frames + behind, *x.shape[2:])
        middle = joined[:, in_front : in_front + frames]
        if norm is None:
            middle.copy_(x)
        else:
            norm.into(middle, x, self.conv.active)
        joined[:, :in_front] = middle[:, :1] if earlier is None else earlier
        if behind:
            joined[:, -1:] = joined[:, -2:-1]
        return joined


class ChannelLayerNorm(nn.Module):
    """LayerNorm over channels; the extra level is in the released key names (`norm3.norm`)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=SHORTCUT_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.norm.weight.to(x.dtype), self.norm.bias.to(x.dtype)
        return F.layer_norm(x, weight.shape, weight, bias, self.norm.eps)


class ResnetBlock3D(Layer):
    """Two convolutions with a shortcut, each after PixelNorm, optional modulation by the timestep, and SiLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        causal: bool,
        padding: PaddingMode,
        inject_noise: bool = False,
        timestep_conditioning: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(in_channels, out_channels, causal=causal, padding=padding)
        self.conv2 = CausalConv3d(out_channels, out_channels, causal=causal, padding=padding)
        self.noise_maps = 2 if inject_noise else 0
        if inject_noise:
            self.per_channel_scale1 = nn.Parameter(torch.zeros(out_channels, 1, 1))
            self.per_channel_scale2 = nn.Parameter(torch.zeros(out_channels, 1, 1))
        if timestep_conditioning:
            self.scale_shift_table = scale_shift_table(4, in_channels)
        if in_channels != out_channels:
            self.norm3 = ChannelLayerNorm(in_channels)
            self.conv_shortcut = nn.Conv3d(in_channels, out_channels, 1)  # applied as a linear layer
        else:
            self.norm3 = self.conv_shortcut = None

    def stage(self, timestep: Tensor | None, noise: Sequence[Tensor]) -> Stage:
        """As in `Layer`, but without a timestep: on its own, the block is never conditioned on one."""
        del timestep
        return partial(self, noise=tuple(noise)) if noise else self

    def modulation(self, embedding: Tensor) -> tuple[ScaleShift, ScaleShift]:
        """Of either half, from the timestep embedding of the block (b, 4c)."""
        shift1, scale1, shift2, scale2 = split_modulation(self.scale_shift_table, embedding)
        return (1 + scale1, shift1), (1 + scale2, shift2)

    def forward(
        self,
        x: Tensor,
        stream: Stream,
        modulation: tuple[ScaleShift, ScaleShift] | tuple[None, None] = (None, None),
        noise: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x (b, f, h, w, c). noise: a map (h, w) for either convolution of a block that injects noise."""
        residual = self.conv1(x, stream, Norm(modulation[0]))
        if noise is not None:
            residual = residual + _noise_term(noise[0], self.per_channel_scale1)
        residual = self.conv2(residual, stream, Norm(modulation[1]))
        if noise is not None:
            residual = residual + _noise_term(noise[1], self.per_channel_scale2)
        shortcut = stream.delay(self, x, residual.shape[1])
        if self.conv_shortcut is not None and self.norm3 is not None:
            weight, bias = self.conv_shortcut.weight.flatten(1), cast(Tensor, self.conv_shortcut.bias)
            shortcut = F.linear(self.norm3(shortcut), weight.to(x.dtype), bias.to(x.dtype))
        return added(residual, shortcut)


def added(x: Tensor, y: Tensor) -> Tensor:
    """x + y, of one dtype; in the memory of x unless autograd needs it."""
    return x + y if torch.is_grad_enabled() else x.add_(y)


def _noise_term(noise: Tensor, per_channel_scale: Tensor) -> Tensor:
    """(h, w) and (c, 1, 1) -> (h, w, c), the same for all frames and samples."""
    return noise[..., None] * per_channel_scale.flatten()


def embed_timestep(embedder: TimeEmbedder, timestep: Tensor, convolutions: Operation) -> Tensor:
    """timestep (b,), already scaled -> (b, channels), computed in the dtype of the biases: weights may be quantized.

    convolutions: how those that use it compute, in whose dtype it is.
    """
    bias = embedder.timestep_embedder.linear_1.bias
    return embedder(timestep, bias.dtype).to(compute_dtype(bias, convolutions))


class UNetMidBlock3D(Layer):
    """`res_x`: n residual blocks of one width, which share an embedder of the timestep if conditioned on it."""

    def __init__(
        self,
        channels: int,
        num_layers: int,
        *,
        causal: bool,
        padding: PaddingMode,
        inject_noise: bool = False,
        timestep_conditioning: bool = False,
    ) -> None:
        super().__init__()
        self.noise_maps = 2 * num_layers if inject_noise else 0
        if timestep_conditioning:
            self.time_embedder = TimeEmbedder(channels * 4)
        self.res_blocks = nn.ModuleList(
            ResnetBlock3D(
                channels,
                channels,
                causal=causal,
                padding=padding,
                inject_noise=inject_noise,
                timestep_conditioning=timestep_conditioning,
            )
            for _ in range(num_layers)
        )

    def stage(self, timestep: Tensor | None, noise: Sequence[Tensor]) -> Stage:
        modulations = None if timestep is None else self._modulations(timestep)
        pairs = list(zip(noise[::2], noise[1::2], strict=True))  # a map for either convolution of each block
        return partial(self, modulations=modulations, noise=pairs)

    def _modulations(self, timestep: Tensor) -> list[tuple[ScaleShift, ScaleShift]]:
        """One entry per residual block."""
        blocks = [cast(ResnetBlock3D, block) for block in self.res_blocks]
        chosen = blocks[0].conv1.conv.active.kernels.convolutions
        embedding = embed_timestep(self.time_embedder, timestep, chosen)
        return [block.modulation(embedding) for block in blocks]

    def forward(
        self,
        x: Tensor,
        stream: Stream,
        modulations: Sequence[tuple[ScaleShift, ScaleShift]] | None = None,
        noise: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Tensor:
        """modulations, noise: one entry per residual block, or none at all."""
        for i, block in enumerate(self.res_blocks):
            x = block(x, stream, (None, None) if modulations is None else modulations[i], noise[i] if noise else None)
        return x


class SpaceToDepthDownsample(nn.Module):
    """`compress_*_res`: a convolution with its cells folded into channels, plus means of groups of the folded input.

    Where time is halved, the first frame of the clip is doubled: 2f - 1 frames become f.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Stride, *, padding: PaddingMode) -> None:
        super().__init__()
        self.stride = stride
        self.group = in_channels * math.prod(stride) // out_channels
        self.conv = CausalConv3d(in_channels, out_channels // math.prod(stride), causal=True, padding=padding)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        time = self.stride[0]
        if time > 1:
            earlier = x[:, :1] if stream.first(self) else stream.recall(self)
            if earlier is not None:
                x = torch.cat([earlier, x], dim=1)
            whole = x.shape[1] // time * time
            stream.keep(self, x[:, whole:])
            x = x[:, :whole]
        means = reduce(space_to_depth(x, self.stride), "b f h w (c g) -> b f h w c", "mean", g=self.group)
        return added(space_to_depth(self.conv(x, stream), self.stride), means)


class DepthToSpaceUpsample(Layer):
    """Decoder `compress_*`: a convolution whose channels are unfolded into cells; if residual, plus the unfolded input.

    Where time is doubled, the first frame of the clip is dropped: f frames become 2f - 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Stride,
        *,
        residual: bool,
        causal: bool,
        padding: PaddingMode,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.magnification = stride[1:]
        self.residual = residual
        self.conv = CausalConv3d(in_channels, out_channels * math.prod(stride), causal=causal, padding=padding)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        y = self.conv(x, stream)
        if self.residual:
            x = stream.delay(self, x, y.shape[1])
            # the input's channels, repeated to fill y's
            y = added(y.unflatten(-1, (-1, x.shape[-1])), x.unsqueeze(-2)).flatten(-2)
        y = depth_to_space(y, self.stride)
        if self.stride[0] > 1 and y.shape[1] and stream.first(self):
            y = y[:, 1:]
        return y

"""Clips to latents for training: the VAE's encoder alone, in float32, streamed in time and tiled as in inference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..budget import stages
from ..budget.tiling import Tiling
from ..budget.vae import CARD_COPIES, CPU_COPIES, encode_bytes
from ..budget.weights import weight_bytes
from ..host import Host
from ..kernels.choice import PLAIN
from ..models.video_vae import VideoVAE
from ..pipelines.encode import encode_posterior
from ..placing.copies import Copies
from ..placing.placement import DevicePlacement, host_on
from ..shapes import LatentShape, PixelShape

ENCODED_PIXELS = 2**24  # per batch of the encoder
WHOLE_PIXELS = 2**20  # of a clip: longer or larger ones are encoded one by one, in pieces
PIXEL_BYTES = 3 * 4  # float32


@dataclass(frozen=True)
class EncodingNeeds:
    """How clips of one size are encoded. at_once: clips in a batch. tiling: of a clip alone; None: a batch, whole.
    work: bytes on the device beside the encoder's weights."""

    at_once: int
    tiling: Tiling | None
    work: int


def encoding_needs(
    vae: VideoVAE, size: PixelShape, count: int, room: int | None, *, on_cpu: bool = False
) -> EncodingNeeds:
    """How `count` clips of `size` are encoded in `room` bytes; None: no limit.

    vae: with an encoder in float32, perhaps on meta.
    """
    shape = size.latent(vae.config.scale_factors)
    at_once = max(1, min(count, ENCODED_PIXELS // math.prod(size)))
    while math.prod(size) <= WHOLE_PIXELS:
        cells = LatentShape(shape.frames, shape.height * at_once, shape.width)
        copies = CPU_COPIES if on_cpu else CARD_COPIES
        work = encode_bytes(vae.config, cells, itemsize=4, limit=None, copies=copies)
        work += at_once * math.prod(size) * PIXEL_BYTES
        if room is None or work <= room:
            return EncodingNeeds(at_once, None, work)
        if at_once == 1:
            break
        at_once //= 2
    tiling, work = stages.encoding(vae, shape, None, room, on_cpu=on_cpu, kernels=PLAIN)
    return EncodingNeeds(1, tiling, work)


def plain_host(device: torch.device, *, keep: bool = False) -> tuple[DevicePlacement, Host]:
    """Where a frozen model works before and during training: on a card by the best kernels, on a CPU plainly."""
    placement = DevicePlacement(device, keep=keep, kernels=PLAIN if device.type == "cpu" else None)
    return placement, host_on(placement)


class ClipEncoder:
    """The encoder of a VAE that stays in its file: widened to float32 and on the device from the first clip until
    `rest`."""

    def __init__(self, vae: VideoVAE, device: torch.device) -> None:
        self.vae, self.device = vae, device
        self._placement, self._host = plain_host(device, keep=True)
        self._widened: Copies | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the encoder's weights on the device now."""
        return 0 if self._widened is None else weight_bytes(self.vae.encoder)

    def needs(self, size: PixelShape, count: int) -> EncodingNeeds:
        """How `count` clips of a size are encoded with the memory that the device has now."""
        self._widen()
        room = self._host.room(self.vae.encoder)
        return encoding_needs(self.vae, size, count, room, on_cpu=self.device.type == "cpu")

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Clips (b 3 f h w) in [-1, 1], anywhere -> normalised posterior means (b c f h w), float32, on the CPU."""
        needs = self.needs(PixelShape(*pixels.shape[2:]), len(pixels))
        with torch.autocast(self.device.type, enabled=False):
            parts = [self._part(part, needs) for part in pixels.split(needs.at_once)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _part(self, pixels: Tensor, needs: EncodingNeeds) -> Tensor:
        if needs.tiling is None:
            with self._host.place(self.vae.encoder, memory_required=needs.work) as device:
                mean = self.vae.encode(pixels.to(device)).mode().float().cpu()
        else:
            frames = pixels[0].movedim(0, -1).add(1).div_(2)
            mean = encode_posterior(self.vae, frames, host=self._host, tiling=needs.tiling).mode()
        return self.vae.normalize(mean)

    def rest(self) -> None:
        """Take the encoder off the device, and free its float32 weights."""
        self._placement.release(self.vae.encoder)
        if self._widened is not None:
            self._widened.drop()
            self._widened = None

    def _widen(self) -> None:
        if self._widened is None:
            self._widened = Copies(self.vae.encoder, _float32)


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor

"""Sizes in pixels and in latent cells, and the rule between them. Order is always (frames, height, width).

A video VAE with scale factors (t, s, s) maps t*k + 1 pixel frames to k + 1 latent frames (the first frame stands alone)
and s x s pixels to one latent cell (LTX-Video paper, arXiv 2501.00103, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ShapeError
from .values import is_whole, shown

LONGEST_SIDE = 16384  # pixels: ComfyUI's MAX_RESOLUTION (nodes.py), of every widget for a size
MOST_FRAMES = 100_000  # of one clip: over an hour at 25 frames per second


@dataclass(frozen=True)
class ScaleFactors:
    """Pixels per latent cell along (frames, height, width); (8, 32, 32) for every released checkpoint."""

    frames: int
    height: int
    width: int

    def __iter__(self):
        return iter((self.frames, self.height, self.width))


@dataclass(frozen=True)
class LatentShape:
    """A latent grid, in cells."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Number of transformer tokens (the patch size is 1)."""
        return self.frames * self.height * self.width

    def __iter__(self):
        return iter((self.frames, self.height, self.width))

    def pixels(self, scale: ScaleFactors) -> PixelShape:
        """The pixel size that decodes from this grid."""
        return PixelShape((self.frames - 1) * scale.frames + 1, self.height * scale.height, self.width * scale.width)


@dataclass(frozen=True)
class PixelShape:
    """A clip's size: frames, and height and width in pixels."""

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        frames, height, width = (shown(value) for value in self)
        if not all(is_whole(value) and not isinstance(value, float) for value in self):
            raise ShapeError(
                f"got {frames} frames of {width}x{height} pixels; expected whole numbers; round the width, the height "
                "and the length"
            )
        if min(self) < 1:
            raise ShapeError(
                f"got {frames} frames of {width}x{height} pixels; expected at least one frame and one pixel each way; "
                "give a positive width, height and length"
            )

    @classmethod
    def asked(cls, frames: int, height: int, width: int) -> PixelShape:
        """The size that a user asks for. Raises ShapeError also for one beyond every model and memory."""
        size = cls(frames, height, width)
        if max(height, width) > LONGEST_SIDE or frames > MOST_FRAMES:
            raise ShapeError(
                f"got {shown(frames)} frames of {shown(width)}x{shown(height)} pixels; expected at most {MOST_FRAMES} "
                f"frames of {LONGEST_SIDE}x{LONGEST_SIDE}; make the clip smaller or shorter"
            )
        return size

    def __iter__(self):
        return iter((self.frames, self.height, self.width))

    def padded(self, scale: ScaleFactors) -> PixelShape:
        """The smallest size that the VAE can have and that contains this one: t*k + 1 frames, multiples of s pixels."""
        return PixelShape(
            -(-(self.frames - 1) // scale.frames) * scale.frames + 1,
            -(-self.height // scale.height) * scale.height,
            -(-self.width // scale.width) * scale.width,
        )

    def latent(self, scale: ScaleFactors) -> LatentShape:
        """The latent grid of this size.

        Raises:
            ShapeError: the VAE cannot have this size; `padded` is the next one that it can have.
        """
        fit = self.padded(scale)
        if fit != self:
            raise ShapeError(
                f"got {self.frames} frames of {self.width}x{self.height} pixels; expected {scale.frames}k+1 frames and "
                f"multiples of {scale.width}x{scale.height} pixels; use {fit.frames} frames of {fit.width}x{fit.height}"
            )
        return LatentShape(
            (self.frames - 1) // scale.frames + 1, self.height // scale.height, self.width // scale.width
        )

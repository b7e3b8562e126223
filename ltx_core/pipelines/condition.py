"""Pictures and clips as a user gives them, turned into latent conditions of the size of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..progress import Notes, log_note
from ..sampling.conditioning import LatentCondition
from ..sampling.noise import Noise
from ..shapes import PixelShape

if TYPE_CHECKING:
    from ..memory.placement import Placement
    from ..models.video_vae import VideoVAE

ResizePolicy = Literal["crop", "stretch", "pad", "fit"]


@dataclass(frozen=True, eq=False)
class Condition:
    """A picture or clip that the result must show.

    frames: (f h w 3) float, 0 to 1, of any size. frame: where it starts in the result; negative counts from the end, -1 is
    the last frame. strength: 0 to 1. resize: how it gets the size of the result, see `fit_frames`.
    """

    frames: Tensor
    frame: int = 0
    strength: float = 1.0
    resize: ResizePolicy = "crop"

"""Edges of a clip, the control signal that needs no model: white on black, by OpenCV's Canny.

Source: J. Canny, "A Computational Approach to Edge Detection", 1986; thresholds as in Lightricks/LTX-Video-Trainer
scripts/compute_condition.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UnsupportedError

LOW, HIGH = 100.0, 200.0
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV's grey


def check_edges() -> None:
    """Raises UnsupportedError: OpenCV is not installed."""
    _opencv()


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UnsupportedError(
            "got no OpenCV; expected it for the edges of clips; do pip install opencv-python-headless, or bring "
            "references of your own with reference.kind=files"
        ) from error
    return cv2


def edges(frames: Tensor, low: float = LOW, high: float = HIGH) -> Tensor:
    """Frames (f h w 3) in [0, 1] -> their edges, of the same shape, 0 or 1. low, high: thresholds, 0 to 255.

    Raises:
        UnsupportedError: OpenCV is not installed.
    """
    cv2 = _opencv()
    grey = (frames.float().cpu() @ torch.tensor(LUMA)).clamp(0, 1)
    pictures = (grey * 255).round().to(torch.uint8).numpy()
    found = np.stack([cv2.Canny(np.ascontiguousarray(picture), low, high) for picture in pictures])
    white = torch.from_numpy(found).float() / 255
    return white[..., None].expand(*white.shape, 3).contiguous()

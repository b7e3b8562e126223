"""Measures of a finished clip, taken from its frames as they arrive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .condition import Condition, ConditioningItem


class ClipStatistics:
    """Motion, seams and colour drift of a clip. Add its frames in order, any number at a time.

    seams: the first frame of every later window, see `long_video.seam_frames`.
    """

    def __init__(self, seams: Sequence[int] = ()) -> None:
        self._seams = frozenset(seams)
        self._last: Tensor | None = None
        self._differences: list[float] = []  # between each frame and the one before it
        self._contrasts: list[float] = []
        self._colours: list[Tensor] = []

    def add(self, frames: Tensor) -> None:
        """frames: (f h w 3) float in [0, 1]."""
        for frame in frames.float():
            if self._last is not None:
                self._differences.append(float((frame - self._last).abs().mean()))
            self._contrasts.append(float(frame.std()))
            self._colours.append(frame.mean(dim=(0, 1)).cpu())
            self._last = frame

    def watch(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """The frames of a clip, added as they pass through."""
        for frames in chunks:
            self.add(frames)
            yield frames

    @property
    def motion(self) -> float:
        """Mean difference between neighbouring frames, relative to the contrast of a frame; 0 for a still."""
        return _mean(self._differences) / max(_mean(self._contrasts), 1e-6)

    @property
    def seam_ratio(self) -> float | None:
        """Change at the seams relative to the change inside the windows: 1 for invisible seams, None without seams."""
        inside = [value for frame, value in enumerate(self._differences, 1) if frame not in self._seams]
        over = [value for frame, value in enumerate(self._differences, 1) if frame in self._seams]
        return _mean(over) / max(_mean(inside), 1e-6) if over else None

    @property
    def drift(self) -> float:
        """Change of the mean colour from the first tenth of the clip to the last, in 1/255."""
        part = max(len(self._colours) // 10, 1)
        start, end = (torch.stack(colours).mean(dim=0) for colours in (self._colours[:part], self._colours[-part:]))
        return float((end - start).abs().max()) * 255

    def describe(self, settings: str = "") -> str:
        """A sentence for the user. settings: of the conditions, see `motion_settings`."""
        text = f"Motion {self.motion:.3f} (mean difference of frames over contrast)"
        if self.seam_ratio is not None:
            text += (
                f"; seams change {self.seam_ratio:.2f} times as much as other frames; mean colour drifts by "
                f"{self.drift:.1f} of 255 from start to end"
            )
        if settings:
            text += f", with {settings}: a lower strength, a higher CRF or more condition noise gives more motion"
        return f"{text}."


def motion_settings(conditions: Sequence[ConditioningItem], condition_noise: float) -> str:
    """The settings that govern how much a clip with conditions moves, in words; empty without conditions."""
    pictures = [item for item in conditions if isinstance(item, Condition)]
    if not pictures:
        return ""
    strengths, crfs = (
        ", ".join(f"{value:g}" for value in sorted(set(values)))
        for values in ([item.strength for item in pictures], [item.crf or 0 for item in pictures])
    )
    return f"condition strength {strengths}, CRF {crfs}, condition noise {condition_noise:g}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0

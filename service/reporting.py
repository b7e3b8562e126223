"""How far a job is, for its queue, while a clip is made: in a worker of the server, or on a machine of a cluster."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..ltx_core.progress import ProgressEvent

if TYPE_CHECKING:
    from torch import Tensor

    from ..ltx_core.sampling.preview import LinearPreview

REPORTS = 0.25  # seconds between two reports of one job
PREVIEWS = 1.0  # seconds between two pictures


class Stopped(BaseException):
    """The job is not wanted any more, or the server has ended."""


@dataclass
class Reporter:
    """Receives the progress of a clip.

    check: called at every step. tell: of the share that is done, 0 to 1, and the stage, a few times a second. Both
    raise `Stopped` where the job is not wanted. show: receives a JPEG of the clip on the way.
    """

    check: Callable[[], None]
    tell: Callable[[float, str], None]
    show: Callable[[bytes], None]
    preview: LinearPreview | None = None
    passes: int = 1
    notes: list[str] = field(default_factory=list)
    _pass: int = -1
    _done: float = 0.0
    _reported: float = 0.0
    _drawn: float = 0.0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def __call__(self, event: ProgressEvent) -> None:
        self.check()
        self._done = max(self._done, self._share(event))
        now = time.monotonic()
        if now - self._reported >= REPORTS or event.step == event.total:
            self._reported = now
            self.tell(self._done, event.stage)
        if event.denoised is not None and self.preview is not None and now - self._drawn >= PREVIEWS:
            self._drawn = now
            self.show(_picture(self.preview, event.denoised))

    def _share(self, event: ProgressEvent) -> float:
        """How much of the job is done: loading and text up to 5 %, sampling to 90 %, decoding the rest."""
        part = event.step / max(event.total, 1)
        if event.stage in ("sample", "refine"):
            if event.step == 0:
                self._pass = min(self._pass + 1, self.passes - 1)
            return 0.05 + 0.85 * (max(self._pass, 0) + part) / self.passes
        if event.stage == "decode":
            return 0.9 + 0.099 * part
        return self._done


def _picture(preview: LinearPreview, denoised: Tensor) -> bytes:
    from PIL import Image

    frames, file = preview(denoised), io.BytesIO()
    Image.fromarray(frames[len(frames) // 2].numpy()).save(file, "jpeg")
    return file.getvalue()

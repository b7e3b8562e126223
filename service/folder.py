"""The folder of a service: its queue, uploads, previews and videos. Files of a job have its id as their name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..ltx_core.files import remove_leftovers

UPLOADS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mp4", ".mov", ".mkv", ".webm", ".avi")
"""Suffixes of the pictures and clips that clients may upload."""

VIDEO, SHEET, THUMBNAIL, PREVIEW = ".mp4", ".png", ".jpg", ".jpg"


@dataclass(frozen=True)
class Folder:
    """Where a service keeps its files."""

    path: Path

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    @property
    def uploads(self) -> Path:
        return self.path / "uploads"

    @property
    def previews(self) -> Path:
        return self.path / "previews"

    @property
    def input(self) -> Path:
        """What loading nodes of graphs read."""
        return self.path / "input"

    @property
    def output(self) -> Path:
        """What saving nodes of graphs write."""
        return self.path / "output"

    def make(self) -> None:
        """Make the folders that are missing, and remove what killed processes have left in them."""
        for each in (self.videos, self.uploads, self.previews, self.input, self.output):
            each.mkdir(parents=True, exist_ok=True)
        for each in (self.videos, self.uploads):
            remove_leftovers(each)

    def video(self, job_id: str) -> Path:
        return self.videos / f"{job_id}{VIDEO}"

    def sheet(self, job_id: str) -> Path:
        return self.videos / f"{job_id}{SHEET}"

    def thumbnail(self, job_id: str) -> Path:
        return self.videos / f"{job_id}{THUMBNAIL}"

    def preview(self, job_id: str) -> Path:
        return self.previews / f"{job_id}{PREVIEW}"

    def upload(self, job_id: str) -> Path | None:
        """The uploaded picture or clip of a job."""
        return next(iter(sorted(self.uploads.glob(f"{job_id}.*"))), None)

    def forget(self, job_id: str) -> None:
        """Remove all files of a job."""
        for folder in (self.videos, self.uploads, self.previews):
            for path in folder.glob(f"{job_id}.*"):
                path.unlink(missing_ok=True)

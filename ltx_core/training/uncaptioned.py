"""The clips of a folder that have no caption yet, and the frames by which they can be described."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import ConfigError
from ..media import is_clip, read_image, stream_video
from .captions import caption_beside, listed_captions
from .datasets.sets import DataSet
from .survey import media_of


@dataclass(frozen=True)
class Uncaptioned:
    """files: without a caption, in order. captioned: number of the others. doubled: names without suffix that several
    files of one folder have. folders: of all of them."""

    files: list[Path]
    captioned: int
    doubled: frozenset[Path]
    folders: frozenset[Path]

    def target(self, path: Path) -> Path:
        """Where the caption of a file belongs: clip.txt, or clip.mp4.txt where clip.mov is there too."""
        stem = path.with_suffix("")
        return path.with_name(f"{path.name if stem in self.doubled else path.stem}.txt")


def uncaptioned(folder: Path) -> Uncaptioned:
    """Look through a folder.

    Raises:
        ConfigError: it does not exist, or has captions that cannot be read, which are listed.
    """
    if not folder.is_dir():
        raise ConfigError(f"got {folder}; expected a folder of clips; check the path")
    files, _ = media_of(DataSet(folder))
    faults: list[str] = []
    listed = listed_captions(folder, files, lambda _: None, faults).texts
    without: list[Path] = []
    for path in files:
        try:
            text = listed.get(path.resolve()) or caption_beside(path)
        except ConfigError as error:
            faults.append(str(error))
            continue
        if not text:
            without.append(path)
    if faults:
        raise ConfigError(f"got captions in {folder} that cannot be read: {'; '.join(faults)}; correct them")
    stems = Counter(path.with_suffix("") for path in files)
    doubled = frozenset(stem for stem, count in stems.items() if count > 1)
    return Uncaptioned(without, len(files) - len(without), doubled, frozenset(path.parent for path in files))


def frames_of(path: Path, count: int) -> list[Tensor]:
    """Frames (h w 3) of a clip in [0, 1], evenly spread over it; of a picture, it alone.

    Raises:
        ConfigError: it cannot be read.
    """
    if not is_clip(path):
        return [read_image(path, lambda _: None)[0]]
    length = sum(1 for _ in stream_video(path, notes=lambda _: None))
    wanted = {round(number * (length - 1) / max(count - 1, 1)) for number in range(count)}
    frames = enumerate(stream_video(path, limit=max(wanted) + 1, notes=lambda _: None))
    return [frame for number, frame in frames if number in wanted]

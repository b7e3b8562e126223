"""Files that go with the clips of a folder: their reference videos and their masks, found by name and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, LTXKitError, reason_of
from ..media import CLIP_SUFFIXES, PICTURE_SUFFIXES, is_clip, read_image, resize, stream_video
from ..shapes import PixelShape
from .captions import MASK_COLUMNS, REFERENCE_COLUMNS, is_hidden, listed_companions
from .data import file_identity

WHITE = 0.5  # of a mask, from which on a pixel is made


@dataclass(frozen=True)
class Window:
    """What is seen of a clip: its file, the first frame, and the size it is trained at. companion: the file that the
    data has for it; None: none."""

    path: Path
    start: int
    size: PixelShape
    companion: Path | None = None


@dataclass(frozen=True)
class Kind:
    """name: of the setting, for messages. noun: of a file. columns: of tables that name it. masks: of which a picture
    serves a whole clip, and that show white somewhere."""

    name: str
    noun: str
    columns: tuple[str, ...]
    masks: bool = False

    @property
    def ending(self) -> str:
        """What a file may have behind the name of its clip."""
        return f"_{self.noun}"


REFERENCES = Kind("reference.path", "reference", REFERENCE_COLUMNS)
MASKS = Kind("conditions.masks", "mask", MASK_COLUMNS, masks=True)


class Companions:
    """One file for each clip: the one that the data has for it (`Window.companion`), or else one in `folder`, which a
    table there names, or which has the same name, in the same folder below, whatever its suffix.

    folder: None: the data has all of them. roots: the folders that the clips come from. fps: the rate of the data, at
    which lengths are counted.

    Raises:
        ConfigError: files are missing, ambiguous, unreadable, or of another length or size than their clips; masks
            without white. All are named, by file.
    """

    def __init__(
        self, folder: Path | None, kind: Kind, windows: Sequence[Window], roots: Sequence[Path], fps: float
    ) -> None:
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"got {kind.name} {folder}; expected a folder; check the path")
        self.folder, self.kind, self.fps = folder, kind, Fraction(fps).limit_denominator(1001)
        self.files: dict[Path, Path] = {}
        by_name = {} if folder is None else _by_name(folder)
        self._listed = {} if folder is None else listed_companions(folder, kind.columns)
        faults: list[str] = []
        seen: dict[Path, list[Window]] = {}
        for window in windows:
            seen.setdefault(window.path, []).append(window)
        for path, parts in seen.items():
            given = list(dict.fromkeys(window.companion for window in parts))
            if len(given) > 1:
                fault = f"two {kind.noun}s, {' and '.join(str(each or 'none') for each in given)}"
            else:
                fault = self._pair(path, by_name, roots, given[0]) or self._fault(path, parts)
            if fault:
                faults.append(f"{path}: {fault.rstrip('.')}")
        if faults:
            raise ConfigError(
                f"got {f'{kind.noun}s of the data' if folder is None else f'{kind.name} {folder}'} that does not suit "
                f"the clips: {'; '.join(faults)}; expected one file for each clip, of its name, size and length; "
                "correct these"
            )

    def _pair(
        self, path: Path, by_name: dict[str, list[Path]], roots: Sequence[Path], companion: Path | None
    ) -> str | None:
        """Find the file of a clip; what is wrong otherwise."""
        if companion is not None:
            self.files[path] = companion
            return None
        if self.folder is None:
            return f"the data has no {self.kind.noun} for it"
        listed = self._listed.get(path.resolve())
        if listed is not None:
            self.files[path] = listed
            outside = not listed.is_relative_to(self.folder.resolve())
            return f"{listed} is outside {self.folder}" if outside else None
        relative = _relative(path, roots)
        name = (relative.parent / (relative.name if path.is_dir() else relative.stem)).as_posix()
        found = [each for ending in ("", self.kind.ending) for each in by_name.get(f"{name}{ending}".casefold(), [])]
        found = [each for each in dict.fromkeys(found) if each.resolve() != path.resolve()]
        found = [each for each in found if each.is_file()] or found  # a folder may hold those of clips below
        if not found:
            return f"no {self.folder / name}.*"
        if len(found) > 1:
            return f"{len(found)} files, {', '.join(each.name for each in found)}"
        self.files[path] = found[0]
        return None

    def _fault(self, path: Path, windows: Sequence[Window]) -> str | None:
        """What is wrong with the file of a clip."""
        other = self.files[path]
        try:
            shape, length, _ = self._measured(path)
            other_shape, other_length, white = self._measured(other)
        except (LTXKitError, OSError) as error:
            return f"{other}: {reason_of(error)}"
        still = self.kind.masks and other_length == 1
        if other_length != length and not still:
            return f"{other} has {other_length} frames, the clip {length} (at {float(self.fps):g} per second)"
        if other_shape != shape:
            (h, w), (height, width) = other_shape, shape
            return f"{other} has {w}x{h} pixels, the clip {width}x{height}"
        if self.kind.masks:
            for window in windows:
                seen = white if still else white[window.start : window.start + window.size.frames]
                if not any(seen):
                    where = f" in frames {window.start} to {window.start + window.size.frames - 1}"
                    return f"{other} has no white{'' if still else where}, which marks what is made"
        return None

    def _measured(self, path: Path) -> tuple[tuple[int, int], int, list[bool]]:
        """Height and width, number of frames, and which of them have white."""
        frames = stream_video(path, fps=self.fps, notes=silent_notes) if is_clip(path) else iter(read_image(path))
        shape, white = (0, 0), list[bool]()
        for frame in frames:
            shape = (frame.shape[0], frame.shape[1])
            white.append(self.kind.masks and bool((frame.mean(dim=-1) >= WHITE).any()))
        return shape, len(white), white

    def frames(self, window: Window) -> Tensor:
        """The frames (f h w 3) in [0, 1] that belong to a window, at its size, cropped as the clip is."""
        other, size = self.files[window.path], window.size
        if is_clip(other):
            found = stream_video(other, fps=self.fps, start=window.start, limit=size.frames, notes=silent_notes)
            frames = torch.stack(list(found))
        else:
            frames = read_image(other)
        if self.kind.masks and len(frames) == 1:
            frames = frames.expand(size.frames, -1, -1, -1)
        if len(frames) != size.frames:
            raise ConfigError(
                f"got {other} with {window.start + len(frames)} frames; expected {window.start + size.frames}, as at "
                "the start; begin anew"
            )
        return resize(frames, size.height, size.width, "crop", kernel="bicubic").clamp(0, 1)

    def identity(self) -> list[str]:
        return [f"{path} {file_identity(other)}" for path, other in sorted(self.files.items())]


def silent_notes(_: str) -> None:
    """What files say was said when the folder of clips was read."""


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """Clips, pictures and folders below, by their path without suffix, in lower case."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if is_hidden(path, folder):
            continue
        relative = path.relative_to(folder)
        if path.is_dir():
            name = relative.as_posix()
        elif path.suffix.lower() in CLIP_SUFFIXES | PICTURE_SUFFIXES:
            name = relative.with_suffix("").as_posix()
        else:
            continue
        found.setdefault(name.casefold(), []).append(path)
    return found


def _relative(path: Path, roots: Sequence[Path]) -> Path:
    for root in roots:
        if path.resolve().is_relative_to(root.resolve()):
            return path.resolve().relative_to(root.resolve())
    return Path(path.name)

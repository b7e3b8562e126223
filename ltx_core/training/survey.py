"""What the clips of a run are, by looking at every file once: sizes, lengths, captions, and what cannot be used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import ConfigError, LTXKitError, reason_of
from ..media import CLIP_SUFFIXES, PICTURE_SUFFIXES, is_clip, read_image, stream_video, video_fps
from ..progress import Notes
from ..sampling.noise import seed_sequence
from ..shapes import PixelShape
from .captions import (
    FILE_LISTS,
    TABLES,
    TEXT_LISTS,
    USUAL_TABLES,
    Captions,
    Tables,
    caption_beside,
    captions_without_clip,
    is_hidden,
    listed_captions,
)
from .datasets.precomputed import (
    FOLDER,
    LatentFormat,
    Stored,
    pixel_size,
    precomputed_root,
    read_embedding,
    read_latents,
    stored_clips,
)
from .datasets.sets import DataSet

LISTED = 20  # of the skipped files, and of the remarks about others, this many are named
_CAPTION_SUFFIXES = (".txt", ".caption")
WHITE = 0.5  # of a mask, from which on a pixel counts


@dataclass(frozen=True)
class Reading:
    """How a folder is read; see `config.Data` and `config.HoldOut`. latents: of the VAE; None: stored ones cannot be
    used. whole_length: count all frames of each clip, whatever the windows see. leave_out: folders and files that go
    with clips."""

    windows: Literal["head", "random", "slide", "all"] = "head"
    random_windows: int = 4
    short_videos_as_pictures: bool = False
    allow_empty_captions: bool = True
    share: float = 0.0
    held_out: Path | None = None
    tables: Tables = USUAL_TABLES
    latents: LatentFormat | None = None
    precomputed: bool = True
    whole_length: bool = False
    leave_out: tuple[Path, ...] = ()


PLAIN = Reading()


@dataclass(frozen=True)
class Media:
    """A usable file: what it shows, the size it is trained at, and its number of frames at the frame rate of the data
    (with windows "head" only up to one more than the longest size has).

    part: number of the set that it belongs to. reference, mask: that its set has for it. stored: it is a file of
    latents, with this embedding; None: it is pixels. caption: of stored latents, what names the embedding.
    """

    path: Path
    caption: str
    size: PixelShape
    frames: int
    part: int = 0
    reference: Path | None = None
    mask: Path | None = None
    stored: Stored | None = None


@dataclass
class Survey:
    """What was found. usable: in order. skipped: reasons, by file. faults: that refuse the run. remarks: about files
    that are used. left_out: numbers of files that were not looked at, by reason. resampled: of other frame rates.
    uncaptioned: with an empty prompt. files: number of clips and pictures that were looked at. original: frames,
    height, width of files as they are."""

    usable: list[Media] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    resampled: int = 0
    uncaptioned: int = 0
    files: int = 0
    original: dict[Path, tuple[int, int, int]] = field(default_factory=dict)


def survey(sets: Sequence[DataSet], sizes: Sequence[PixelShape], rate: float, notes: Notes, reading: Reading) -> Survey:
    """Look at every file of these sets; nothing is refused here."""
    found = Survey()
    fps = Fraction(rate).limit_denominator(1001)
    for number, part in enumerate(sets):
        root = precomputed_root(part.path) if reading.precomputed and part.table is None else None
        if root is not None and (reading.latents is not None or root == part.path):
            if root != part.path:
                notes(f"{root} is used, as LTX-Video-Trainer uses it; data.precomputed=false takes the clips beside it")
            _survey_stored(root, part, number, sizes, fps, notes, reading, found)
        else:
            _survey_files(part, number, sizes, fps, notes, reading, found)
    return found


# --- clips and pictures -----------------------------------------------------------------------------------------------


def _survey_files(
    part: DataSet,
    number: int,
    sizes: Sequence[PixelShape],
    fps: Fraction,
    notes: Notes,
    reading: Reading,
    found: Survey,
) -> None:
    folder = part.path
    files, left_out = media_of(part, reading.leave_out)
    columns = reading.tables
    tables = Tables(part.table, columns.file_column, columns.caption_column, part.outside, part.nested)
    captions = listed_captions(folder, files, notes, found.faults, tables)
    named = {*captions.texts, *captions.references, *captions.masks}
    aside = {*captions.references.values(), *captions.masks.values()} - named
    own = [path for path in files if not aside & {path.resolve(), *path.resolve().parents}]
    left_out += Counter({"a reference or mask": len(files) - len(own)})
    files = own
    frames = {path for path in named if path.is_dir()}
    files = sorted([*(path for path in files if not frames & set(path.resolve().parents)), *frames])
    if part.table is not None:  # its clips alone, wherever they are
        unnamed = sum(path.resolve() not in named for path in files)
        left_out += Counter({f"not named by {part.table.name}": unnamed} if unnamed else {})
        files = sorted(path for path in named if path.exists())
    missing = {str(name): "named by the captions, but missing" for name in named if not name.exists()}
    found.skipped |= missing
    if not reading.allow_empty_captions:
        found.faults += [f"{name}: {why}" for name, why in missing.items()]
    companions = _companions(part, files, captions, found)
    uncaptioned = 0
    for path in files:
        found.files += 1
        try:
            size, count, other_rate, original = _examine(path, sizes, fps, reading, found.remarks.append)
        except (LTXKitError, OSError) as error:
            found.skipped[str(path)] = reason_of(error)
            continue
        caption, fault = _caption_of(path, captions.texts.get(path.resolve()), part.caption_suffix)
        if fault is not None:
            found.faults.append(f"{path}: {fault}")
        elif not caption:
            uncaptioned += 1
            if not reading.allow_empty_captions:
                found.faults.append(f"{path}: {'no caption' if caption is None else 'an empty caption'}")
        reference, mask = (each.get(path.resolve()) for each in companions)
        found.faults += _companion_faults(path, count, reference, mask, fps, limit=_limit(sizes, reading))
        found.resampled += other_rate
        found.original[path] = original
        text = part.prefix + caption if caption else ""
        found.usable.append(Media(path, text, size, count, number, reference, mask))
    found.uncaptioned += uncaptioned
    alone = captions_without_clip(folder, files) if part.nested and part.table is None else []
    if uncaptioned and not reading.allow_empty_captions:
        found.faults += [f"{path}: a caption, but no clip of this name" for path in alone]
    elif alone:
        left_out["a text that is no clip's caption"] += len(alone)
    found.left_out += left_out


def media_of(part: DataSet, companions: Sequence[Path] = ()) -> tuple[list[Path], Counter[str]]:
    """The clips and pictures of a set by their names, in order; and how many other files are not looked at, by
    reason."""
    folder, files, left_out = part.path, list[Path](), Counter[str]()
    apart = [*part.leave_out, *((each, "a reference or mask") for each in (part.references, part.masks) if each)]
    # Where the tool looks at the folder alone, one level below is looked at to say so.
    for path in sorted(folder.rglob("*") if part.nested else (*folder.glob("*"), *folder.glob("*/*"))):
        if path.is_dir():
            continue
        suffix = path.suffix.lower()
        media = suffix in CLIP_SUFFIXES | PICTURE_SUFFIXES
        elsewhere = next((why for place, why in apart if place != folder and path.is_relative_to(place)), None)
        if is_hidden(path, folder):
            if media:
                left_out["hidden, or in a hidden folder"] += 1
        elif _goes_with_a_clip(path, folder, companions):
            left_out["a reference or mask"] += media
        elif elsewhere is not None:
            left_out[elsewhere] += media
        elif not part.nested and path.parent != folder:
            left_out["in a folder below, where the tool of this configuration does not look"] += media
        elif suffix in part.suffixes:
            files.append(path)
        elif media:
            left_out[f"no {part.kinds.removesuffix('s')}"] += 1
        elif not _is_text(path, suffix):
            left_out[f"neither clip, picture nor caption ({suffix or 'no suffix'})"] += 1
    return files, +left_out


def _goes_with_a_clip(path: Path, folder: Path, companions: Sequence[Path]) -> bool:
    """Whether a file is the reference or the mask of another: in a folder of them, or beside the clips by its name."""
    if not companions:
        return False
    whole, root = path.resolve(), folder.resolve()
    inside = [each.resolve() for each in companions if each.resolve().is_relative_to(root)]
    named = path.stem.endswith(("_reference", "_mask"))
    return any(named if each == root else whole.is_relative_to(each) for each in inside)


def _is_text(path: Path, suffix: str) -> bool:
    known = suffix in (*_CAPTION_SUFFIXES, *TABLES)
    return known or path.name in (*TEXT_LISTS, *FILE_LISTS)


def _caption_of(path: Path, listed: str | None, suffix: str | None) -> tuple[str | None, str | None]:
    """The caption of a file, and what is wrong with it. listed: the one that a table has."""
    try:
        beside = caption_beside(path, suffix)
    except ConfigError as error:
        return None, str(error)
    if listed and beside and listed != beside:
        return None, f"two captions, {listed[:60]!r} in a table and {beside[:60]!r} beside it"
    return (listed or beside) if listed or beside else (listed if beside is None else beside), None


def _limit(sizes: Sequence[PixelShape], reading: Reading) -> int | None:
    """Frames that are counted of a clip; None: all."""
    head = reading.windows == "head" and not reading.whole_length
    return max(size.frames for size in sizes) + 1 if head else None


def _examine(
    path: Path, sizes: Sequence[PixelShape], fps: Fraction, reading: Reading, remark: Notes
) -> tuple[PixelShape, int, bool, tuple[int, int, int]]:
    """The size that suits a file, its number of frames, whether it has another frame rate, and its own size."""
    moving = is_clip(path)
    if not moving:
        first, count, other_rate = read_image(path, remark)[0], 1, False
    else:
        frames = stream_video(path, fps=fps, limit=_limit(sizes, reading), notes=remark)
        first = next(frames)
        count = 1 + sum(1 for _ in frames)
        rate = fps if path.is_dir() else video_fps(path)
        other_rate = abs(float(rate) - float(fps)) > 0.01 * float(fps)
    height, width = first.shape[:2]
    # A video is no picture, unless pictures are all that is asked for.
    pictures = not moving or reading.short_videos_as_pictures or all(size.frames == 1 for size in sizes)
    served = [size for size in sizes if pictures or size.frames > 1]
    fitting = [size for size in served if size.frames <= count]
    if not fitting:
        shortest = min(size.frames for size in served)
        hint = "add a shorter size to data.sizes, or set data.short_videos_as_pictures=true"
        raise ConfigError(
            f"got {count} frames at {float(fps):g} per second; expected {shortest} or more"
            + (f"; {hint}" if moving and len(served) < len(sizes) else "")
        )
    most = max(size.frames for size in fitting)
    ratio = math.log(width / height)
    size = min(
        (size for size in fitting if size.frames == most),
        key=lambda size: (abs(math.log(size.width / size.height) - ratio), -size.height),
    )
    return size, count, other_rate, (count, height, width)


# --- references and masks ---------------------------------------------------------------------------------------------


def _companions(
    part: DataSet, files: Sequence[Path], captions: Captions, found: Survey
) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """References and masks by clip (resolved): those of tables, and those of the set's folders by name."""
    both = (dict(captions.references), dict(captions.masks))
    for known, folder, what in ((both[0], part.references, "reference"), (both[1], part.masks, "mask")):
        if folder is None:
            continue
        if not folder.is_dir():
            found.faults.append(f"{folder}: no folder of {what}s")
            continue
        by_name: dict[str, list[Path]] = {}
        for each in sorted(folder.rglob("*")):
            if each.suffix.lower() in CLIP_SUFFIXES | PICTURE_SUFFIXES and not is_hidden(each, folder):
                by_name.setdefault(each.relative_to(folder).with_suffix("").as_posix().casefold(), []).append(each)
        for path in files:
            start = part.path if path.is_relative_to(part.path) else path.parent
            name = path.relative_to(start).with_suffix("").as_posix()
            alike = [each for end in ("", f"_{what}", "_0") for each in by_name.get(f"{name}{end}".casefold(), [])]
            if len(alike) == 1:
                known.setdefault(path.resolve(), alike[0])
            elif path.resolve() not in known:
                found.faults.append(f"{path}: {len(alike) or 'no'} {what}{'s' if len(alike) > 1 else ''} in {folder}")
    return both


def _companion_faults(
    path: Path, count: int, reference: Path | None, mask: Path | None, fps: Fraction, limit: int | None
) -> Iterator[str]:
    """What is wrong with the reference and the mask of a clip of `count` frames."""
    for other, what in ((reference, "reference"), (mask, "mask")):
        if other is None or not other.exists():  # which has been said
            continue
        try:
            frames = stream_video(other, fps=fps, limit=limit) if is_clip(other) else iter(read_image(other))
            seen, white = 0, False
            for frame in frames:
                seen += 1
                white = white or (what == "mask" and bool((frame.mean(dim=-1) >= WHITE).any()))
        except (LTXKitError, OSError) as error:
            yield f"{path}: its {what} {other} cannot be read ({reason_of(error).rstrip('.')})"
            continue
        if seen != count and not (what == "mask" and seen == 1):
            yield f"{path}: its {what} {other} has {seen} frames, the clip {count} (at {float(fps):g} per second)"
        if what == "mask" and not white:
            yield f"{path}: its mask {other} has no white, which marks what is trained"


# --- latents ----------------------------------------------------------------------------------------------------------


def _survey_stored(
    root: Path,
    part: DataSet,
    number: int,
    sizes: Sequence[PixelShape],
    fps: Fraction,
    notes: Notes,
    reading: Reading,
    found: Survey,
) -> None:
    """Latents and embeddings; the captions are those of the tables beside them, to show."""
    if reading.latents is None:
        found.faults.append(f"{root}: latents, on which only a transformer can be trained; expected clips")
        return
    texts = _texts_of_stored(root, notes, found.faults)
    widths: set[int] = set()
    rates: Counter[float] = Counter()
    for each in stored_clips(root):
        found.files += 1
        name = each.name.as_posix()
        try:
            latents = read_latents(each.latents)
            size = pixel_size(latents.latents, reading.latents)
            if each.conditions is not None:
                widths.add(read_embedding(each.conditions).shape[1])
        except ConfigError as error:
            found.faults.append(f"{each.latents}: {error}")
            continue
        if size not in sizes:
            wanted = ", ".join(f"{s.frames}x{s.height}x{s.width}" for s in sizes)
            found.faults.append(
                f"{each.latents}: latents of {size.frames}x{size.height}x{size.width}, expected one of data.sizes "
                f"({wanted}); if that is not their size, they are of another VAE"
            )
            continue
        found.faults += _reference_faults(each, latents.latents.shape)
        if latents.fps is not None and size.frames > 1:
            rates[latents.fps] += abs(latents.fps - float(fps)) > 0.01 * float(fps)
        text = texts.get(name, "")
        if each.conditions is None and not text:
            found.uncaptioned += 1
            if not reading.allow_empty_captions:
                found.faults.append(f"{each.latents}: no conditions, and no caption in a table beside it")
        caption = f"{root}/{name}" if each.conditions is not None else f"{part.prefix}{text}" if text else ""
        found.original[each.latents] = (size.frames, size.height, size.width)
        found.usable.append(Media(each.latents, caption, size, size.frames, number, stored=each))
    if len(widths) > 1:
        found.faults.append(f"{root}/conditions: embeddings of the widths {sorted(widths)}; expected one encoder's")
    for rate, count in (+rates).items():
        found.remarks.append(
            f"{count} clips of latents stand for {rate:g} frames per second and are trained at data.fps={float(fps):g}"
        )


def _texts_of_stored(root: Path, notes: Notes, faults: list[str]) -> dict[str, str]:
    """Captions by the name of a clip below the data's folder, without suffix."""
    folder = root.parent if root.name == FOLDER else root
    listed = listed_captions(folder, [], notes, faults, Tables(outside=True)).texts
    start = folder.resolve()
    return {
        path.relative_to(start).with_suffix("").as_posix(): text
        for path, text in listed.items()
        if path.is_relative_to(start)
    }


def _reference_faults(each: Stored, shape: Sequence[int]) -> Iterator[str]:
    if each.reference is None:
        return
    if not each.reference.is_file():
        yield f"{each.latents}: no reference {each.reference}"
        return
    try:
        reference = read_latents(each.reference).latents
    except ConfigError as error:
        yield f"{each.latents}: its reference: {error}"
        return
    if tuple(reference.shape) != tuple(shape):
        yield f"{each.latents}: its reference has {tuple(reference.shape)} latents, the clip {tuple(shape)}"


# --- how often --------------------------------------------------------------------------------------------------------


def repeated(media: Sequence[Media], sets: Sequence[DataSet], seed: int) -> list[Media]:
    """Each clip as often as its set repeats it, in order; of a fraction, a random part of the set once more."""
    counts = Counter(each.part for each in media)
    often = _repeats(counts, sets)
    result: list[Media] = []
    for part, count in sorted(counts.items()):
        own = [each for each in media if each.part == part]
        full, rest = divmod(often[part], 1)
        order = np.random.default_rng(seed_sequence(seed, "hold-out", 1 + part)).permutation(count)
        more = set(order[: round(rest * count)].tolist())
        for position, each in enumerate(own):
            result += [each] * max(1, int(full) + (position in more))
    return result


def _repeats(counts: Mapping[int, int], sets: Sequence[DataSet]) -> dict[int, float]:
    """How often the clips of each set count: so that the shares are those of the weights and none counts less than its
    set repeats it."""
    often = {part: sets[part].repeats for part in counts}
    weights = {part: sets[part].weight for part in counts}
    if any(weight is None for weight in weights.values()):
        return often
    scale = max(counts[part] * often[part] / (weight or 1) for part, weight in weights.items())
    return {part: scale * (weight or 1) / counts[part] for part, weight in weights.items()}


def some(texts: Sequence[str]) -> str:
    """The first of many sentences, and how many more there are."""
    more = f"; and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    return "; ".join(text.rstrip(".") for text in texts[:LISTED]) + more

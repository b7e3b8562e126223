"""What a run would train on, looked at before it: the summary and the page of `ltxkit data check`."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from ..errors import ConfigError, LTXKitError
from ..media import is_clip, read_image, stream_video
from ..progress import Notes, ProgressEvent
from ..shapes import PixelShape, ScaleFactors
from ..weights.build import open_models
from .checkpoints import find_export
from .conditions import ClipConditions, companion_paths
from .config import Data, HoldOut, TransformerTraining
from .data_page import Row, Table, page
from .datasets.precomputed import LatentFormat
from .datasets.sets import DataSet, sets_of
from .folder import VideoFolder, refuse
from .pictures import as_data_url
from .sources import reading_of
from .survey import Media, Reading, Survey, repeated, survey

THUMBNAIL = (90, 160)  # pixels, height and width at most
SHOWN = 500  # clips with a thumbnail on the page
_BLOCK = 2**20
ENLARGED = 1.5  # from this factor on a clip is named as smaller than its size
RELEASED = LatentFormat(128, ScaleFactors(8, 32, 32))


@dataclass(frozen=True)
class Check:
    """What was found. sets: that were read. refused: the message with which a training would stop; None: it would
    start. duplicates: files of the same content. samples: of an epoch, by set."""

    name: str
    config: Data
    sets: list[DataSet]
    found: Survey
    notes: list[str]
    refused: str | None
    duplicates: list[list[Path]]
    samples: list[int]

    @property
    def sizes(self) -> list[PixelShape]:
        return [PixelShape(*size) for size in self.config.sizes]

    def windows(self) -> dict[PixelShape, tuple[int, int]]:
        """Number of clips and of windows at each size."""
        reading = reading_of(self.config)
        source = VideoFolder.of(
            self.found.usable, self.sizes, split="train", fps=self.config.fps, seed=0, reading=reading
        )
        clips = Counter(media.size for media in self.found.usable)
        return {size: (clips[size], len(source.groups[size]) // source.variants) for size in self.sizes}

    def enlarged(self) -> list[str]:
        """Clips that are much smaller than the size that they are trained at."""
        lines: list[str] = []
        for media in self.found.usable:
            _, height, width = self.found.original[media.path]
            factor = max(media.size.height / height, media.size.width / width)
            if factor >= ENLARGED:
                lines.append(f"{media.path}: {width}x{height}, enlarged {factor:.1f} times")
        return lines

    def lines(self) -> list[str]:
        """The summary, in sentences."""
        found = self.found
        lines = [f"{self.name}: {len(found.usable)} of {found.files} files can be used, {len(found.skipped)} skipped"]
        lines += [
            f"{size.frames} frames of {size.width}x{size.height}: {clips} clips, {windows} windows"
            for size, (clips, windows) in self.windows().items()
        ]
        if len(self.sets) > 1 or sum(self.samples) != len(found.usable):
            each = zip(self.sets, self.samples, strict=True)
            lines += [f"{part.table or part.path}: {count} samples of an epoch" for part, count in each]
        captions = [media.caption for media in found.usable if media.caption and media.stored is None]
        if captions:
            words = sorted(len(caption.split()) for caption in captions)
            lines.append(
                f"captions: {len(set(captions))} different ones of {len(captions)}, {words[0]} to {words[-1]} words"
            )
        lines += [f"skipped: {path}: {why}" for path, why in found.skipped.items()]
        lines += [f"not looked at: {count} {why}" for why, count in sorted(found.left_out.items())]
        lines += [f"the same file: {', '.join(map(str, group))}" for group in self.duplicates]
        lines += [f"small: {line}" for line in self.enlarged()]
        lines += [f"remark: {remark}" for remark in found.remarks]
        lines += [f"note: {note}" for note in self.notes]
        if self.refused is None:
            return [*lines, "a training on this data would start"]
        return [*lines, "a training on this data would be refused:", *(f"- {fault}" for fault in self.faults())]

    def faults(self) -> list[str]:
        """Why a training would be refused."""
        return [] if self.refused is None else self.found.faults or [self.refused]

    def to_json(self) -> dict[str, object]:
        """The summary for programs. faults: none where a training would start."""
        found = self.found
        return {
            "name": self.name,
            "files": found.files,
            "usable": len(found.usable),
            "skipped": found.skipped,
            "left_out": dict(sorted(found.left_out.items())),
            "faults": self.faults(),
            "lines": self.lines(),
        }


def check_data(
    config: Data,
    *,
    hold_out: HoldOut = HoldOut(),
    latents: LatentFormat | None = None,
    training: TransformerTraining | None = None,
    notes: Notes = lambda _: None,
) -> Check:
    """Look at the clips of a config as a training does; nothing is encoded.

    latents: of the VAE that will train; None: that of every released checkpoint, 128 channels of 8x32x32 pixels.
    training: whose references and conditions are looked at too.

    Raises:
        ConfigError: the config names no data.
    """
    said: list[str] = []

    def note(text: str) -> None:
        said.append(text)
        notes(text)

    aside = () if training is None else companion_paths(training)
    reading = replace(reading_of(config, hold_out, latents=latents, leave_out=aside), whole_length=True)
    sizes, faults = [PixelShape(*size) for size in config.sizes], list[str]()
    try:
        sets = sets_of(config, note, faults)
    except LTXKitError as error:
        if config.path is None and not config.parts:
            raise
        sets, faults = list[DataSet](), [str(error)]
    found = survey(sets, sizes, config.fps, note, reading)
    found.faults[:0] = faults
    if training is not None and found.usable and not found.faults:
        found.faults += _condition_faults(training, found.usable, reading, (latents or RELEASED).scale)
    name = " and ".join(dict.fromkeys(str(each.table or each.path) for each in sets)) or str(config.path)
    try:
        refuse(name, found)
        refused = None
    except ConfigError as error:
        refused = str(error)
    samples = Counter(media.part for media in repeated(found.usable, sets, 0)) if found.usable else Counter[int]()
    counts = [samples[number] for number in range(len(sets))]
    return Check(name, config, sets, found, said, refused, _duplicates([m.path for m in found.usable]), counts)


def _condition_faults(
    training: TransformerTraining, media: list[Media], reading: Reading, scale: ScaleFactors
) -> list[str]:
    """Why references and conditions would refuse a training."""
    if training.reference is None and not training.conditions.any:
        return []
    sizes, fps = [PixelShape(*size) for size in training.data.sizes], training.data.fps
    try:
        ClipConditions(
            training,
            [VideoFolder.of(media, sizes, split="train", fps=fps, seed=training.seed, reading=reading)],
            scale,
        )
    except LTXKitError as error:
        return [str(error)]
    return []


def latent_format(vae: Path | None, version: str | None = None) -> LatentFormat:
    """What latents of a VAE look like, by its header; None: those of every released checkpoint.

    Raises:
        CheckpointError: there is no VAE in the file.
    """
    if vae is None:
        return RELEASED
    whole = vae.is_file() or (vae / "config.json").is_file()
    file = vae if whole else find_export(vae, "vae.safetensors")
    config = open_models(file, version=version, data=False).description.vae()
    return LatentFormat(config.latent_channels, config.scale_factors)


def _duplicates(paths: Sequence[Path]) -> list[list[Path]]:
    """Files of the same content; only those of the same length are read."""
    by_length: dict[int, list[Path]] = {}
    for path in dict.fromkeys(paths):
        if path.is_file():
            by_length.setdefault(path.stat().st_size, []).append(path)
    by_content: dict[str, list[Path]] = {}
    for group in by_length.values():
        for path in group if len(group) > 1 else []:
            by_content.setdefault(_content(path), []).append(path)
    return [group for group in by_content.values() if len(group) > 1]


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


# --- the page ---------------------------------------------------------------------------------------------------------


def html_report(check: Check, progress: Callable[[ProgressEvent], None] = lambda _: None) -> str:
    """The page: one file with everything in it, thumbnails too."""
    found, fps = check.found, Fraction(check.config.fps).limit_denominator(1001)
    rows: list[Row] = []
    doubled = {path for group in check.duplicates for path in group}
    shown = list(dict.fromkeys(found.usable))
    for number, media in enumerate(shown[:SHOWN]):
        progress(ProgressEvent("look", number, min(len(shown), SHOWN)))
        frames, height, width = found.original[media.path]
        size = media.size
        rows.append(
            Row(
                str(media.path),
                media.caption if media.stored is None else "(an embedding)" if media.stored.conditions else "",
                f"{frames} frames ({frames / float(fps):.1f} s), {width}x{height}",
                f"{size.frames} frames of {size.width}x{size.height}",
                [*(["the same as another file"] if media.path in doubled else [])],
                [as_data_url(frame, THUMBNAIL) for frame in shown_frames(media, fps)],
            )
        )
    tables = [
        Table(
            "Sizes",
            ("frames", "pixels", "clips", "windows"),
            [(s.frames, f"{s.width}x{s.height}", clips, many) for s, (clips, many) in check.windows().items()],
        ),
        Table("Lengths", ("frames", "clips"), _lengths(found)),
        Table(
            "Sets",
            ("place", "repeats", "weight", "samples of an epoch"),
            [
                (part.table or part.path, f"{part.repeats:g}", "" if part.weight is None else f"{part.weight:g}", count)
                for part, count in zip(check.sets, check.samples, strict=True)
            ],
        ),
        Table("Skipped", ("file", "why"), list(found.skipped.items())),
        Table("Not looked at", ("files", "why"), [(count, why) for why, count in sorted(found.left_out.items())]),
        Table("The same file", ("files",), [(", ".join(map(str, group)),) for group in check.duplicates]),
        Table("Captions of several clips", ("clips", "caption"), _repeated_captions(found.usable)),
        Table("Smaller than they are trained at", ("file",), [(line,) for line in check.enlarged()]),
        Table("Remarks", ("",), [(text,) for text in (*found.remarks, *check.notes)]),
    ]
    verdict = "A training on this data would be refused" if check.refused else "A training on this data would start"
    more = f"{len(shown) - SHOWN} more clips are not shown." if len(shown) > SHOWN else ""
    return page(check.name, verdict, check.faults(), tables, rows, more)


def _lengths(found: Survey) -> list[tuple[object, ...]]:
    """How many clips have which length, in at most twelve classes."""
    lengths = sorted(frames for frames, _, _ in found.original.values())
    if not lengths:
        return []
    step = max(1, math.ceil((lengths[-1] - lengths[0] + 1) / 12))
    classes = Counter((length - lengths[0]) // step for length in lengths)
    starts = {number: lengths[0] + number * step for number in sorted(classes)}
    return [
        (start if step == 1 else f"{start} to {start + step - 1}", classes[number]) for number, start in starts.items()
    ]


def _repeated_captions(media: Sequence[Media]) -> list[tuple[object, ...]]:
    counts = Counter(each.caption for each in dict.fromkeys(media) if each.stored is None)
    return [(count, caption or "(none)") for caption, count in counts.most_common(20) if count > 1]


def shown_frames(media: Media, fps: Fraction) -> list[Tensor]:
    """The first, the middle and the last frame (h, w, 3) in [0, 1] that is trained on; none of stored latents."""
    if media.stored is not None:
        return []
    count = media.size.frames
    wanted = sorted({0, count // 2, count - 1})
    try:
        if not is_clip(media.path):
            return [read_image(media.path, lambda _: None)[0]]
        frames = enumerate(stream_video(media.path, fps=fps, limit=count, notes=lambda _: None))
        return [frame for number, frame in frames if number in wanted]
    except (LTXKitError, OSError):  # it has been read before
        return []

"""Whether a model follows its prompts: `ltxkit eval-digits`.

A classifier of digits, trained on real training glyphs alone, reads the middle frame of generated clips. The motion is
measured from the centre of the ink.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...errors import UnsupportedError
from ...files import whole
from ...host import Host
from ...media import write_image
from ...pipelines.settings import PassSettings
from ...progress import ProgressEvent, silent
from ..data import HOLD_OUT, to_pixels
from ..generate import ClipSettings, Models, generate_clips, reconstruct
from ..pictures import sheet
from .clips import DIRECTIONS, WORDS, DigitClip, MovingDigits, sklearn_digits, upscale

READER_SIZE = 16  # side of the picture that the reader sees
SECOND_PASS = PassSettings(sigmas=(0.5, 0.375, 0.25, 0.125, 0.0), guidance_scale=1.0)
INK = 0.1  # grey above which a pixel is ink


@dataclass(frozen=True, kw_only=True)
class Bar:
    """The least that a model must reach. Shares are fractions of 1."""

    reader: float = 0.97
    digits: float = 0.90
    weak_digit: float = 0.80
    weak_digits: int = 2
    direction: float = 0.95
    jerk: float = 0.25
    psnr: float = 26.0


@dataclass(frozen=True, kw_only=True)
class Score:
    """The measurements.

    reader: share of unseen real glyphs, drawn into clips, that the classifier reads. digits: share of generated clips
    that show the digit of their prompt, by digit in `by_digit`, None for digits without a clip. direction: share of
    clips that move as their prompt says. jerk: mean second difference of the centre of the ink, in pixels per frame
    squared. psnr: of the VAE on unseen glyphs, in dB. two_stage_digits: as `digits`, after the upscaler at twice the
    size; None without an upscaler.
    """

    reader: float
    digits: float
    by_digit: tuple[float | None, ...]
    direction: float
    jerk: float
    psnr: float
    two_stage_digits: float | None

    def lines(self) -> list[str]:
        """For the user."""
        by_word = zip(WORDS, self.by_digit, strict=True)
        each = ", ".join(f"{word} {share:.0%}" for word, share in by_word if share is not None)
        two = "not measured" if self.two_stage_digits is None else f"{self.two_stage_digits:.1%}"
        return [
            f"reader on real glyphs: {self.reader:.1%}",
            f"right digits: {self.digits:.1%} ({each})",
            f"right direction: {self.direction:.1%}",
            f"jerk: {self.jerk:.3f} px",
            f"VAE on unseen glyphs: {self.psnr:.2f} dB",
            f"right digits after two stages: {two}",
        ]

    def failures(self, bar: Bar) -> list[str]:
        """The measurements below the bar, in words."""
        weak = [WORDS[k] for k, share in enumerate(self.by_digit) if share is not None and share < bar.weak_digit]
        failures: list[str] = []
        if self.reader < bar.reader:
            failures.append(f"the reader reads {self.reader:.1%} of real glyphs; needed {bar.reader:.0%}")
        if self.digits < bar.digits:
            failures.append(f"{self.digits:.1%} of the digits are right; needed {bar.digits:.0%}")
        if len(weak) > bar.weak_digits:
            failures.append(f"{', '.join(weak)} are below {bar.weak_digit:.0%}; allowed are {bar.weak_digits} digits")
        if self.direction < bar.direction:
            failures.append(f"{self.direction:.1%} move the named way; needed {bar.direction:.0%}")
        if self.jerk >= bar.jerk:
            failures.append(f"the motion jerks by {self.jerk:.3f} px; needed less than {bar.jerk}")
        if self.psnr < bar.psnr:
            failures.append(f"the VAE reconstructs with {self.psnr:.2f} dB; needed {bar.psnr:.0f}")
        if self.two_stage_digits is not None and self.two_stage_digits < self.digits:
            failures.append(
                f"two stages give {self.two_stage_digits:.1%} right digits; needed {self.digits:.1%}, as one stage"
            )
        return failures


def save_score(folder: Path, score: Score, clips: Tensor) -> None:
    """score.json, and sheet.png with one clip per digit and direction."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "score.json") as part:
        part.write_text(json.dumps(asdict(score), indent=2) + "\n", encoding="utf-8")
    write_image(folder / "sheet.png", sheet(clips[: len(WORDS) * len(DIRECTIONS)]))


class Reader:
    """A support vector machine on 16x16 pictures, trained on real training glyphs alone."""

    def __init__(self, images: NDArray[np.float32], labels: NDArray[np.int64], glyph_size: int) -> None:
        try:
            from sklearn.svm import SVC
        except ImportError as error:
            raise UnsupportedError(
                "got no scikit-learn; expected it for the digit reader; do pip install scikit-learn"
            ) from error
        training = np.flatnonzero(np.arange(len(images)) % HOLD_OUT != 0)
        glyphs = torch.from_numpy(upscale(images[training], glyph_size))
        rng = np.random.default_rng(0)
        views: list[NDArray[np.float32]] = []
        for _ in range(3):  # at sub-pixel offsets, as moving clips have them
            offsets = torch.from_numpy(rng.uniform(0, 1, (len(training), 2)).astype(np.float32))
            views.append(_features(_shifted(glyphs, offsets)))
        self._machine: Any = SVC(C=10, gamma="scale").fit(np.concatenate(views), np.tile(labels[training], 3))

    def read(self, frames: Tensor) -> list[int]:
        """The digits in grey frames (n, h, w) in [0, 1]."""
        return [int(label) for label in self._machine.predict(_features(frames))]


def _shifted(glyphs: Tensor, offsets: Tensor) -> Tensor:
    """(n, s, s) moved down and right by a fraction of a pixel, in a frame of s + 1."""
    padded = F.pad(glyphs, (1, 1, 1, 1))
    dy, dx = offsets[:, 0, None, None], offsets[:, 1, None, None]
    rows = (1 - dy) * padded[:, 1:] + dy * padded[:, :-1]
    return (1 - dx) * rows[:, :, 1:] + dx * rows[:, :, :-1]


def _features(frames: Tensor) -> NDArray[np.float32]:
    """(n, h, w) -> (n, 256): the box around the ink, padded to a square and scaled to 16x16, as a unit vector."""
    features: list[Tensor] = []
    for frame in frames:
        ink = frame.clamp(0, 1)
        inked = ink > 0.3 * ink.max().clamp(min=INK)
        rows, columns = inked.any(dim=1).nonzero(), inked.any(dim=0).nonzero()
        if not len(rows):
            features.append(torch.zeros(READER_SIZE**2))
            continue
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        left, right = int(columns[0]), int(columns[-1]) + 1
        side = max(bottom - top, right - left)
        box = ink[top:bottom, left:right]
        across, down = side - box.shape[1], side - box.shape[0]
        box = F.pad(box, (across // 2, across - across // 2, down // 2, down - down // 2))
        small = F.interpolate(box[None, None], size=(READER_SIZE, READER_SIZE), mode="area").flatten()
        features.append(small / small.norm().clamp(min=1e-6))
    return torch.stack(features).numpy()


def centres(clips: Tensor) -> Tensor:
    """Centre of the ink of grey clips (b, f, h, w) in [0, 1]: (b, f, 2) in pixels, (down, right)."""
    ink = torch.where(clips > INK, clips, torch.zeros_like(clips))
    total = ink.sum(dim=(2, 3)).clamp(min=1e-6)
    rows, columns = torch.arange(clips.shape[2]).float(), torch.arange(clips.shape[3]).float()
    down = (ink.sum(dim=3) * rows).sum(dim=2) / total
    right = (ink.sum(dim=2) * columns).sum(dim=2) / total
    return torch.stack([down, right], dim=2)


def direction(path: Tensor) -> str:
    """The direction of a path of centres (f, 2), from its start to its end."""
    dy, dx = (path[-1] - path[0]).tolist()
    return max(DIRECTIONS, key=lambda name: DIRECTIONS[name][0] * dy + DIRECTIONS[name][1] * dx)


def jerk(paths: Tensor) -> float:
    """Mean length of the second difference of centres (b, f, 2), in pixels."""
    return float((paths[:, 2:] - 2 * paths[:, 1:-1] + paths[:, :-2]).norm(dim=2).mean())


def grey(clips: Tensor) -> Tensor:
    """(b 3 f h w) in [-1, 1] -> (b f h w) in [0, 1]."""
    return ((clips.mean(dim=1) + 1) / 2).clamp(0, 1)


def prompts(count: int) -> tuple[list[str], list[tuple[int, str]]]:
    """`count` prompts, over all digits and directions in turn, and their (digit, direction)."""
    pairs = [(digit, way) for digit in range(len(WORDS)) for way in DIRECTIONS]
    named = [pairs[i % len(pairs)] for i in range(count)]
    return [f"the digit {WORDS[digit]} moving {way}" for digit, way in named], named


def evaluate_digits(
    models: Models, settings: ClipSettings, glyph_size: int, *, clips: int = 200, host: Host
) -> tuple[Score, Tensor]:
    """Measure a model on `clips` clips of fixed seeds. Returns the score and the clips of one pass (b 3 f h w).

    glyph_size: of the digits in the training clips, in pixels.
    """
    size, seed = settings.size, settings.seed
    images, labels = sklearn_digits()
    reader = Reader(images, labels, glyph_size)
    real = MovingDigits(
        (images, labels),
        frames=size.frames,
        height=size.height,
        width=size.width,
        glyph_size=glyph_size,
        spread=1.0,
        split="validation",
        seed=seed,
    )
    described = [real.describe(i) for i in range(len(real.members))]
    # Each unseen glyph once, rather than drawn with repetitions.
    described = [_with_glyph(clip, int(glyph), labels) for clip, glyph in zip(described, real.members, strict=True)]
    drawn = real.draw(described)[:, size.frames // 2]
    read_real = reader.read(drawn)
    reader_share = sum(a == clip.label for a, clip in zip(read_real, described, strict=True)) / len(described)

    pixels = to_pixels(real.draw(described[::9]))
    one_pass, quiet = replace(models, upscaler=None), replace(host, progress=silent)
    restored = reconstruct(models, pixels, [], settings, sigma=0.0, host=quiet)

    texts, named = prompts(clips)
    two_passes = replace(settings.overrides, second=SECOND_PASS)
    generated: list[Tensor] = []
    enlarged: list[Tensor] = []
    for start in range(0, clips, settings.batch_size):
        host.progress(ProgressEvent("sample", start, clips))
        part = texts[start : start + settings.batch_size]
        portion = replace(settings, seed=seed + start)
        generated.append(generate_clips(one_pass, part, portion, host=quiet))
        if models.upscaler is not None:
            enlarged.append(generate_clips(models, part, replace(portion, overrides=two_passes), host=quiet))
    host.progress(ProgressEvent("sample", clips, clips))
    result = torch.cat(generated)
    right = _read_right(reader, result, named)
    paths = centres(grey(result))
    score = Score(
        reader=reader_share,
        digits=float(np.mean(right)),
        by_digit=tuple(
            _share([ok for ok, (digit, _) in zip(right, named, strict=True) if digit == k]) for k in range(len(WORDS))
        ),
        direction=float(np.mean([direction(path) == way for path, (_, way) in zip(paths, named, strict=True)])),
        jerk=jerk(paths),
        psnr=float(restored.psnr.mean()),
        two_stage_digits=float(np.mean(_read_right(reader, torch.cat(enlarged), named))) if enlarged else None,
    )
    return score, result


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def _read_right(reader: Reader, clips: Tensor, named: Sequence[tuple[int, str]]) -> list[bool]:
    middle = grey(clips)[:, clips.shape[2] // 2]
    return [read == digit for read, (digit, _) in zip(reader.read(middle), named, strict=True)]


def _with_glyph(clip: DigitClip, glyph: int, labels: NDArray[np.int64]) -> DigitClip:
    return replace(clip, glyph=glyph, label=int(labels[glyph]))

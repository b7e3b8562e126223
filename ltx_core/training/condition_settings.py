"""The settings of what a clip is conditioned on in training: a reference video, keyframes, ends, masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..errors import ConfigError
from .settings_file import Range, Section

Share = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(1)]
Threshold = Annotated[float, Range(0, 255)]


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings(Section):
    """The reference video beside each clip: what an IC-LoRA learns to follow.

    kind: "edges" computes it from the clip (Canny's edges by OpenCV); "files" reads depth, poses or any other video
        from `path`, where each clip has one of the same size and length: a table there names it in a column
        `reference_path`, or it has the clip's name (`walk.mp4`, `walk.png` or `walk_reference.mp4` for `walk.mp4`, in
        the same folder below). path None: those that the data has (tables, control folders of TOML, `data.parts`,
        reference_latents of LTX-Video-Trainer), or else those in the folder of the clips.
    probability: share of the steps whose clips have their reference.
    low, high: thresholds of the edges, 0 to 255; those of Lightricks/LTX-Video-Trainer scripts/compute_condition.py.
    """

    kind: Literal["edges", "files"] = "edges"
    path: Path | None = None
    probability: Annotated[float, Range(above=0, high=1)] = 1.0
    low: Threshold = 100.0
    high: Threshold = 200.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != "files" and self.path is not None:
            raise ConfigError(
                f"got reference.path with reference.kind {self.kind}; expected kind files, which reads them; set "
                "reference.kind=files, or leave the path out"
            )
        if self.low > self.high:
            raise ConfigError(
                f"got reference.low {self.low:g} above reference.high {self.high:g}; expected it at most as high; "
                "lower it"
            )


@dataclass(frozen=True, kw_only=True)
class ConditionSettings(Section):
    """What else a clip shows from the start, each with its probability; `first_frame` of the training is one more.

    Of each sample, at most one of: prefix: the first frames, `prefix_frames` of them, or a random number. inpaint: all
    but a random box, or the black of `masks`; its white is made. outpaint: a random box around the middle.
    Of the samples of one step, together: suffix: the last `suffix_frames` frames, as a clip that the result must end
    with. keyframes: 1 to `most_keyframes` single frames, of `keyframe_places` that are spread over the clip.
    masks: a folder with a picture or video for each clip, named as in `ReferenceSettings` (`walk_mask.png` too). None:
        those that the data has, if it has any.
    """

    prefix: Share = 0.0
    prefix_frames: Count | None = None
    suffix: Share = 0.0
    suffix_frames: Count = 9
    keyframes: Share = 0.0
    most_keyframes: Count = 3
    keyframe_places: Count = 8
    inpaint: Share = 0.0
    outpaint: Share = 0.0
    masks: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        total = self.prefix + self.inpaint + self.outpaint
        if total > 1 + 1e-9:
            raise ConfigError(
                f"got conditions.prefix, inpaint and outpaint of {total:g} together; expected 1 at most: a sample has "
                "one of them; lower one"
            )
        if self.masks is not None and not self.inpaint:
            raise ConfigError(
                "got conditions.masks without conditions.inpaint; expected the share of samples that they are for; "
                "set conditions.inpaint"
            )
        if self.most_keyframes > self.keyframe_places:
            raise ConfigError(
                f"got conditions.most_keyframes {self.most_keyframes} of {self.keyframe_places} keyframe_places; "
                "expected as many at most; lower it"
            )

    @property
    def any(self) -> bool:
        return bool(self.prefix or self.suffix or self.keyframes or self.inpaint or self.outpaint)

"""Nodes for the pictures and clips that the result must show, and for the video that it follows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..ltx_core.media import rgb_frames
from ..ltx_core.pipelines.condition import Condition, ConditioningItem, Reference
from . import sockets
from .widgets import advanced, choice, decimal, integer, link


class AddCondition(sockets.Node):
    CATEGORY = "LTXKit/conditioning"
    DESCRIPTION = (
        "A picture or a clip that the video must show, at a frame of your choice: the first frame, the last one, "
        "anything between; a clip to continue from or to end in. Chain several of these. Nothing is encoded here: "
        "Sample does that, at the size of each pass."
    )
    SEARCH_ALIASES = [
        "ltx",
        "ltxv",
        "image to video",
        "i2v",
        "keyframe",
        "guide",
        "first frame",
        "last frame",
        "add guide",
    ]
    RETURN_TYPES = (sockets.CONDITION,)
    RETURN_NAMES = ("conditions",)
    OUTPUT_TOOLTIPS = ("The connected conditions and this one, for Sample, Two-Stage or the next Condition.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": link("IMAGE", "One picture, or the frames of a clip, which is trimmed to 8k+1: 21 become 17."),
                "frame": integer(
                    0,
                    -100000,
                    100000,
                    "Frame of the result where it starts: 0 is the first, -1 the last; a multiple of 8 for a clip.",
                ),
                "strength": decimal(
                    1.0,
                    0.0,
                    1.0,
                    0.01,
                    "1 keeps it as it is; less lets the model change it, which often gives more motion.",
                ),
                "resize": choice(
                    ["crop", "pad", "fit", "stretch"],
                    "How it gets the video's shape: crop what exceeds it, pad with grey, fit with continued edges, or "
                    "stretch.",
                ),
            },
            "optional": {
                "conditions": link(sockets.CONDITION, "Conditions that come before this one."),
                "crf": advanced(
                    integer(
                        29,
                        0,
                        63,
                        "H.264 compression of every frame, with a slight blur: pictures that look like video frames "
                        "move more. Lightricks use 29. 0: off. 51 is the strongest.",
                    )
                ),
                "take": integer(
                    0,
                    -100000,
                    100000,
                    "Frames of a clip to use. 0: all; 25: the first 25; -25: the last 25, for going on from its end.",
                ),
            },
        }

    def run(
        self,
        image: Tensor,
        frame: int,
        strength: float,
        resize: Any,
        conditions: tuple[ConditioningItem, ...] = (),
        crf: int = 29,
        take: int = 0,
    ) -> tuple[tuple[ConditioningItem, ...]]:
        before = sockets.received(sockets.CONDITION, conditions, "conditions")
        frames = rgb_frames(image).cpu()
        frames = frames[:take] if take > 0 else frames[take:]
        return ((*before, Condition(frames, frame, strength, resize, crf)),)


class AddReference(sockets.Node):
    CATEGORY = "LTXKit/conditioning"
    DESCRIPTION = (
        "The video that an IC-LoRA follows from the first frame on: a depth map, poses or edges made from a clip, or a "
        "clip to add detail to. The model needs the LoRA of that kind. Nothing is encoded here: Sample does that, at "
        "the size of each pass, and reports every change."
    )
    SEARCH_ALIASES = [
        "ltx",
        "ltxv",
        "ic-lora",
        "in-context lora",
        "control video",
        "controlnet",
        "depth",
        "pose",
        "canny",
        "detailer",
        "LTXVInContextSampler",
    ]
    RETURN_TYPES = (sockets.CONDITION,)
    RETURN_NAMES = ("conditions",)
    OUTPUT_TOOLTIPS = ("The connected conditions and this reference, for Sample, Two-Stage, Long Video or Condition.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": link("IMAGE", "The frames of the control video, as long as the result."),
                "frame_rate": decimal(
                    0.0,
                    0.0,
                    240.0,
                    0.01,
                    "Of the control video, from Get Video Components; where the result has another one, the frames "
                    "nearest in time are taken. 0: the same as the result.",
                ),
                "strength": decimal(1.0, 0.0, 1.0, 0.01, "IC-LoRAs are made for 1; less loosens the control."),
                "resize": choice(
                    ["crop", "pad", "fit", "stretch"],
                    "How it gets the video's shape: crop what exceeds it, pad with grey, fit with continued edges, or "
                    "stretch.",
                ),
            },
            "optional": {"conditions": link(sockets.CONDITION, "Conditions that come before this one.")},
        }

    def run(
        self,
        image: Tensor,
        frame_rate: float,
        strength: float,
        resize: Any,
        conditions: tuple[ConditioningItem, ...] = (),
    ) -> tuple[tuple[ConditioningItem, ...]]:
        before = sockets.received(sockets.CONDITION, conditions, "conditions")
        frames = rgb_frames(image).cpu()
        return ((*before, Reference(frames, strength=strength, resize=resize, fps=frame_rate or None)),)

"""Stand-ins for ComfyUI's nodes for clips: inputs, outputs and meaning are those of core 0.33, which take what every
older core's do (comfy_extras/nodes_video.py).

Sound begins with the first frame, also in a file whose video starts later than its sound; where it ends before the
frames do, silence follows.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from ..ltx_core import media
from .dynamic import DYNAMIC
from .encoding import COLOUR_SPACES, Clip, Encoding, copy_streams, write_clip
from .folders import NumberedFiles, check_file, check_prefix, input_files, named_file, said_in_files, say
from .video import Audio, VideoComponents, VideoInFile, VideoInMemory

Video = VideoInFile | VideoInMemory
Declared = tuple[str, dict[str, Any]]


class LoadVideo:
    CATEGORY = "image/video"
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"file": ("COMBO", {"options": input_files(media.CLIP_SUFFIXES), "video_upload": True})}}

    @classmethod
    def IS_CHANGED(cls, file: str) -> float:
        return named_file(file).stat().st_mtime

    @classmethod
    def VALIDATE_INPUTS(cls, file: str) -> bool | str:
        return check_file(file)

    def load(self, file: str) -> tuple[VideoInFile]:
        return (VideoInFile(named_file(file), say),)


class GetVideoComponents:
    CATEGORY = "image/video"
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT", "INT", "COMBO")
    RETURN_NAMES = ("images", "audio", "fps", "bit_depth", "color_space")
    FUNCTION = "split"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"video": ("VIDEO",)}}

    def split(self, video: Video) -> tuple[Tensor, Audio | None, float, int, str]:
        parts = video.get_components()
        return parts.images, parts.audio, float(parts.frame_rate), video.depth, video.colour_space


class CreateVideo:
    CATEGORY = "image/video"
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "create"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        fps = ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0})
        depth = ("INT", {"default": 8, "min": 8, "max": 10, "step": 2})
        return {
            "required": {"images": ("IMAGE",), "fps": fps},
            "optional": {"audio": ("AUDIO",), "bit_depth": depth},
        }

    def create(
        self, images: Tensor, fps: float, audio: Audio | None = None, bit_depth: int = 8
    ) -> tuple[VideoInMemory]:
        return (VideoInMemory(VideoComponents(images, Fraction(fps), audio), bit_depth),)


# ------------------------------------------------------------------------------------------------ saving


def _dynamic(options: list[dict[str, Any]]) -> Declared:
    return DYNAMIC, {"options": options}


def _option(key: str, required: dict[str, Any] | None = None, optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"key": key, "inputs": {"required": required or {}, **({"optional": optional} if optional else {})}}


def _encoded(codec: str, crf: float, worst: float) -> dict[str, Any]:
    """A codec, with the settings of encoding anew."""
    settings = {
        "crf": ("FLOAT", {"default": crf, "min": 0.0, "max": worst, "step": 1.0}),
        "color_space": ("COMBO", {"options": ["auto", *COLOUR_SPACES], "default": "auto"}),
    }
    return _option(codec, optional={"encoding": _dynamic([_option("auto"), _option("re-encode", settings)])})


_AUTO, _H264, _AV1 = _option("auto"), _encoded("h264", 23.0, 51.0), _encoded("av1", 30.0, 63.0)
_CODECS = {
    "auto": [_AUTO, _H264, _AV1],
    "mp4": [_AUTO, _H264, _AV1],
    "mkv": [_AUTO, _H264, _AV1],
    "webm": [_AUTO, _AV1],
}


class SaveVideo:
    CATEGORY = "image/video"
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "video": ("VIDEO",),
                "filename_prefix": ("STRING", {"default": "video/ComfyUI"}),
                "format": _dynamic([_option(name, {"codec": _dynamic(codecs)}) for name, codecs in _CODECS.items()]),
            },
            "optional": {"codec": _dynamic(_CODECS["auto"])},  # where older cores have it
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str) -> bool | str:
        return check_prefix("output", filename_prefix)

    def save(
        self,
        video: Video,
        filename_prefix: str,
        format: dict[str, Any],
        codec: dict[str, Any] | None = None,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        chosen: dict[str, Any] = format.get("codec") or codec or {"codec": "auto"}
        encoding = _encoding(format["format"], chosen, video)
        metadata = said_in_files(prompt, extra_pnginfo)
        frames = video.frames()
        first = next(frames)
        names = NumberedFiles.under("output", filename_prefix, first.shape[2], first.shape[1])
        rate = Fraction(round(video.rate * 1000), 1000)

        sound = video.sound()
        stored = _kept(video, format["format"], chosen)

        def write(path: Path) -> None:
            if stored is None or not copy_streams(stored, path, metadata):
                write_clip(path, Clip(itertools.chain([first], frames), rate, sound), encoding, metadata)

        entry = names.save(encoding.suffix, write)
        return {"ui": {"images": [entry], "animated": [True]}, "result": (video,)}


def _encoding(container: str, chosen: dict[str, Any], video: Video) -> Encoding:
    settings = chosen.get("encoding") or {}
    name = "mp4" if container == "auto" else container
    codec = chosen["codec"]
    if codec == "auto":
        codec = "av1" if name == "webm" else "h264"
    space = settings.get("color_space", "auto")
    space = video.colour_space if space == "auto" else space
    return Encoding(name, codec, settings.get("crf"), video.depth, space)


def _kept(video: Video, container: str, chosen: dict[str, Any]) -> Path | None:
    """The file of a clip that is stored as it is: nothing else was asked for."""
    if not isinstance(video, VideoInFile) or (chosen.get("encoding") or {}).get("crf") is not None:
        return None
    return video.path if video.is_stored_as(container, chosen["codec"]) else None

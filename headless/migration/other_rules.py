"""What becomes of the nodes of other packs that graphs for LTX-Video are full of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...nodes.old_guidance import numbers
from .core_rules import picture, save_video, scaled
from .graph import Blocked, Call, Rule
from .sampling import of_list, picture_link
from .values import Levels, Link, Picture


def _float_list(call: Call) -> tuple[Any, ...]:
    try:
        return (Levels(numbers(call.text("string"))),)
    except ValueError as error:
        raise Blocked(f"its text is {call.text('string')!r}; expected numbers; correct it") from error


def _float_sigmas(call: Call) -> tuple[Any, ...]:
    levels: Levels = call.needed("float_list", Levels, "StringToFloatList")
    return (of_list(levels.values),)


def _resize(call: Call) -> tuple[Any, ...]:
    """KJNodes' and essentials' resizing, as far as ImageScale does the same."""
    source = picture(call, "image")
    width, height = (_side(call, name) for name in ("width", "height"))
    other = call.get("get_image_size")
    if isinstance(other, Picture) and other.width is not None:
        width, height = other.width, other.height
    keeps = call.get("keep_proportion", False)
    method = call.text("method", str(keeps) if isinstance(keeps, str) else "stretch")
    crop = call.text("crop", call.text("crop_position", "disabled"))
    crops = "crop" in method or (crop == "center" and not isinstance(keeps, str) and "method" not in call.inputs)
    step = max(call.whole("divisible_by", call.whole("multiple_of", 1)), 1)
    if keeps is True or method in ("keep proportion", "resize", "pad"):
        width, height = _fitted(call, source, width, height)
    width, height = (side // step * step if isinstance(side, int) else side for side in (width, height))
    how = call.text("upscale_method", call.text("interpolation", "bilinear"))
    how = how if how in ("nearest-exact", "bilinear", "area", "bicubic", "lanczos") else "bilinear"
    if (width, height) == (0, 0):
        return source, source.width, source.height
    result = scaled(call, source, width, height, how, "center" if crops else "disabled")
    return result, width, height


def _side(call: Call, name: str) -> Any:
    linked = f"{name}_input"
    value = call.get(linked, call.get(name, 0))
    return value if isinstance(value, Link) else call.whole(linked if linked in call.inputs else name) if value else 0


def _fitted(call: Call, source: Picture, width: Any, height: Any) -> tuple[Any, Any]:
    """The largest size of the source's proportions inside a box."""
    sides = (source.width, source.height, width, height)
    if all(isinstance(side, int) and side > 0 for side in sides):
        factor = min(width / source.width, height / source.height)  # type: ignore[operator]
        return round(source.width * factor), round(source.height * factor)  # type: ignore[operator]
    call.note("it keeps the proportions of a picture whose size is not known here; the width decides")
    return (width, 0) if width else (0, height)


def _size(call: Call) -> tuple[Any, ...]:
    source = picture(call, "image")
    known = (source.width, source.height, source.count)
    if None not in known:
        return (source, *known)
    link = call.add("GetImageSize", {"image": source.link})
    return (source, *(Link(link.node, index) if side is None else side for index, side in enumerate(known)))


def _core_size(call: Call) -> tuple[Any, ...]:
    return _size(call)[1:]


def _stitch(call: Call) -> tuple[Any, ...]:
    said = {
        "image1": picture_link(call, picture(call, "image1")),
        "image2": picture_link(call, picture(call, "image2")),
        "direction": call.text("direction", "right"),
        "match_image_size": call.switch("match_image_size", True),
        "spacing_width": call.get("spacing_width", 0),
        "spacing_color": call.get("spacing_color", "white"),
    }
    return (Picture(call.add("ImageStitch", said), count=picture(call, "image1").count),)


def _switch(call: Call) -> tuple[Any, ...]:
    chosen = call.whole("select", 1)
    value = call.get(f"input{chosen}")
    if value is None:
        raise Blocked(f"it selects input {chosen}, which nothing is connected to; select another")
    call.note(f"the input that it selects, {chosen}")
    return value, f"input{chosen}", chosen


def _blur(call: Call) -> tuple[Any, ...]:
    call.note("the blur is left out: Condition's compression blurs slightly, as Lightricks' script does")
    return (call.get("images"),)


def _load_video(call: Call) -> tuple[Any, ...]:
    video = call.add("LoadVideo", {"file": call.text("video")})
    parts = call.add("GetVideoComponents", {"video": video}, title="")
    frames = Picture(parts)
    most, first = call.whole("frame_load_cap"), call.whole("skip_first_frames")
    if call.whole("select_every_nth", 1) > 1 or call.number("force_rate") > 0:
        call.note("all frames are loaded, at the clip's own rate")
    if most or first:
        said = {"image": parts, "batch_index": first, "length": most or 4096}
        frames = Picture(call.add("ImageFromBatch", said, title=""), count=most or None)
    width, height = call.whole("custom_width"), call.whole("custom_height")
    if (width or height) and call.text("force_size", "Custom") != "Disabled":
        frames = scaled(call, frames, width, height, "bilinear", "center")
    return frames, frames.count, Link(parts.node, 1), None


def _select_images(call: Call) -> tuple[Any, ...]:
    """Single frames, the first, the last ones, or all but the last."""
    source, text = picture(call, "image"), call.text("indexes", "0").strip()
    single, part = re.fullmatch(r"\d{1,9}", text), re.fullmatch(r"(-?\d{1,9}|):(-?\d{1,9}|)", text)
    if single:
        return (_cut(call, source, int(text), 1),)
    if part is None:
        raise Blocked(f"it selects {text!r}; expected one range; use ImageFromBatch")
    start, end = (int(side) if side else None for side in part.groups())
    if start is not None and start < 0 and end is None:
        return (replace(source, take=start),)
    if end is not None and end < 0:
        if source.count is None:
            raise Blocked(f"it selects {text!r} of a clip of unknown length; set frame_load_cap of the loader")
        end += source.count
    if start is not None and start < 0:
        raise Blocked(f"it selects {text!r}; expected a range that starts or ends at a border; use ImageFromBatch")
    length = (end if end is not None else source.count or 4096) - (start or 0)
    return (_cut(call, source, start or 0, length),)


def _cut(call: Call, source: Picture, start: int, length: int) -> Picture:
    if length < 1:
        raise Blocked(f"it selects {length} frames; expected at least one; correct its indexes")
    link = call.add("ImageFromBatch", {"image": picture_link(call, source), "batch_index": start, "length": length})
    count = length if length < 4096 else None
    return Picture(link, source.crf, count=count, width=source.width, height=source.height)


def _combine(call: Call) -> tuple[Any, ...]:
    frames = call.get("images")
    prefix = call.text("filename_prefix", "video")
    form = call.text("format", "video/h264-mp4")
    if not form.startswith("video/h264"):
        call.note(f"{form} became the format of Save Video")
    if call.switch("pingpong"):
        call.note("the way back (pingpong) is left out")
    audio = call.get("audio")
    save_video(call, frames, call.get("frame_rate", 8.0), prefix, audio if isinstance(audio, Link) else None)
    return (None,)


RULES: Mapping[str, Rule] = {
    "StringToFloatList": _float_list,
    "FloatToSigmas": _float_sigmas,
    "ImageResizeKJ": _resize,
    "ImageResizeKJv2": _resize,
    "ImageResize+": _resize,
    "GetImageSizeAndCount": _size,
    "GetImageSize": _core_size,
    "ImageConcanate": _stitch,
    "ImageStitch": _stitch,
    "PrintSigmas": lambda call: (call.get("sigmas"),),
    "ImpactSwitch": _switch,
    "BlurImageFast": _blur,
    "VHS_LoadVideo": _load_video,
    "VHS_SelectImages": _select_images,
    "VHS_VideoCombine": _combine,
}

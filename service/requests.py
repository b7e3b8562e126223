"""What a client asks for, as the library takes it: OpenAI's fields and those that other servers of videos have added.

A request is checked here as far as it can be without weights: names, ranges, the size, the memory that it takes. What
comes out is made of JSON values, is stored in the queue, and names no file of the server.
"""

from __future__ import annotations

import difflib
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..ltx_core.errors import ConfigError, LTXKitError, UnsupportedError
from ..ltx_core.values import LARGEST_STRENGTH, check_frame_rate, check_number, check_seed, check_text, is_number, shown
from .bodies import read_json
from .catalog import Catalog, Model, outline_of, own_size

SEED_BITS = 32  # of a seed that is drawn, as the library draws it
LONGEST_PROMPT = 20_000  # characters: far beyond the text encoder's limit, which is said by the run
MOST_LORAS = 16
ELSEWHERE = "elsewhere"  # in the place of a device: of another machine


class TooLargeError(UnsupportedError):
    """A clip, or an upload, beyond the limits of this server."""


class FieldError(ConfigError):
    """A field of a request is wrong. name: which."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Field:
    """A field of a request.

    schema: its JSON schema, for the OpenAPI page. read: makes a value of JSON or of a form's text; raises ConfigError.
    """

    help: str
    schema: Mapping[str, Any]
    read: Callable[[Any], Any]


def _text(value: Any) -> str:
    check_text("it", value)
    if len(value) > LONGEST_PROMPT:
        raise ConfigError(f"got {len(value)} characters; expected at most {LONGEST_PROMPT}; shorten it")
    return value


def _prompt(value: Any) -> str:
    if not _text(value).strip():
        raise ConfigError("got an empty prompt; expected what the clip shows; write one")
    return value


def _number(value: Any) -> float | int:
    if isinstance(value, str):
        try:
            value = read_json(value)
        except ValueError:
            raise ConfigError(f"got {shown(value)}; expected a number; write it in digits") from None
    if not is_number(value):
        raise ConfigError(f"got {shown(value)}; expected a number; write it in digits")
    return value


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ConfigError(f"got {shown(value)}; expected a whole number; round it")
    return int(number)


def _seed(value: Any) -> int:
    seed = _whole(value)
    check_seed(seed)
    return seed


def _rate(value: Any) -> float:
    rate = _number(value)
    check_frame_rate("fps", rate)
    return rate


def _size(value: Any) -> tuple[int, int]:
    """Width and height."""
    parts = value.lower().replace("*", "x").split("x") if isinstance(value, str) else []
    if len(parts) != 2 or not all(re.fullmatch(" *[0-9]{1,9} *", part) for part in parts):
        raise ConfigError(f'got {shown(value)}; expected WIDTHxHEIGHT in pixels, such as "768x512"; write it so')
    width, height = (int(part) for part in parts)
    return width, height


def _object(value: Any) -> Any:
    """JSON, which a form sends as text."""
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except ValueError:
        raise ConfigError(f"got {shown(value)}; expected JSON; check it") from None


def _loras(value: Any) -> list[dict[str, Any]]:
    """A name, {"name", "scale"}, or a list of these."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        value = _object(value)
    items = value if isinstance(value, list) else [value]
    if len(items) > MOST_LORAS:
        raise ConfigError(f"got {len(items)} LoRAs; expected at most {MOST_LORAS}; leave some out")
    loras: list[dict[str, Any]] = []
    for item in items:
        said = {"name": item} if isinstance(item, str) else item
        if not isinstance(said, Mapping) or not isinstance(said.get("name"), str) or set(said) - {"name", "scale"}:
            raise ConfigError(f'got {shown(item)}; expected a name, or {{"name": NAME, "scale": NUMBER}}; write it so')
        scale = said.get("scale", 1.0)
        check_number("scale", scale, -LARGEST_STRENGTH, LARGEST_STRENGTH, advice="1 is what a LoRA is made for")
        loras.append({"name": said["name"], "scale": float(scale)})
    return loras


def _knobs(value: Any) -> dict[str, Any]:
    """Keywords of `ltx.generate`, checked by the recipe that they make."""
    from ..ltx_core.pipelines.presets import Recipe

    knobs = _object(value)
    if not isinstance(knobs, Mapping):
        raise ConfigError(f"got {shown(value)}; expected a JSON object of settings; write one")
    Recipe(**dict(knobs))
    return dict(knobs)


_TEXT, _NUMBER, _WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}

FIELDS: dict[str, Field] = {
    "prompt": Field("What the clip shows.", _TEXT, _prompt),
    "model": Field("A name that GET /v1/models lists; the first of them by default.", _TEXT, _text),
    "size": Field("WIDTHxHEIGHT in pixels, any; the recipe's by default.", _TEXT, _size),
    "seconds": Field("The length of the clip; `num_frames` says it in frames.", _NUMBER, _number),
    "num_frames": Field("Frames of the clip, any number; the recipe's by default.", _WHOLE, _whole),
    "fps": Field("Frames per second; the recipe's by default.", _NUMBER, _rate),
    "num_inference_steps": Field("Denoising steps; the recipe's by default.", _WHOLE, _whole),
    "guidance_scale": Field("Classifier-free guidance, 1 is off; the recipe's by default.", _NUMBER, _number),
    "seed": Field("One seed is one clip; drawn and returned by default.", _WHOLE, _seed),
    "negative_prompt": Field("What the clip must not show; the recipe's by default.", _TEXT, _text),
    "lora": Field('The name of a LoRA, {"name", "scale"}, or a list of these.', {}, _loras),
    "extra_params": Field("Further keywords of ltx.generate, see docs/api.md.", {"type": "object"}, _knobs),
}
UPLOAD = "input_reference"


@dataclass(frozen=True)
class Limits:
    """What a server takes. waiting: jobs in the queue; pixels: width x height x frames of a clip; upload: bytes."""

    waiting: int = 100
    pixels: int = 300_000_000
    upload: int = 64 * 2**20


def read_request(said: Mapping[str, Any], catalog: Catalog, limits: Limits, device: str | None) -> dict[str, Any]:
    """A request for a clip as JSON values: model, prompt, width, height, frames, fps, seed, and what is said besides.

    said: fields of `FIELDS`, from JSON or from a form. device: on which the clip must fit; `ELSEWHERE`: the machine
        that makes it looks for itself.

    Raises:
        FieldError: a field is wrong, missing or unknown. NotOfferedError: a model or LoRA that is not offered.
        TooLargeError, UnsupportedError: the clip is beyond the limits, or does not fit the memory.
    """
    values = _read(said)
    if "prompt" not in values:
        raise FieldError("prompt", "got no prompt; expected what the clip shows; add the field prompt")
    model = catalog.model(values.pop("model", None))
    loras = values.pop("lora", [])
    for each in loras:
        catalog.lora(each["name"])
    size, rate = _measure(values, model)
    frames, height, width = size
    if frames * height * width > limits.pixels:
        raise TooLargeError(
            f"got {frames} frames of {width}x{height}; expected at most {limits.pixels:,} width x height x frames; "
            "make the clip smaller or shorter"
        )
    _check_fits(model, (frames, height, width), device)
    knobs = values.pop("extra_params", {})
    for name, knob in (("num_inference_steps", "steps"), ("guidance_scale", "guidance_scale")):
        if name in values:
            if knob in knobs:
                raise FieldError(name, f"got {name}, and {knob} in extra_params; expected one of them; leave one out")
            knobs[knob] = values.pop(name)
    try:
        _knobs(knobs)
    except LTXKitError as error:
        raise FieldError("extra_params", str(error)) from error
    return {
        "model": model.name,
        "prompt": values["prompt"],
        "negative_prompt": values.get("negative_prompt"),
        "width": width,
        "height": height,
        "frames": frames,
        "fps": rate,
        "seed": values["seed"] if "seed" in values else secrets.randbits(SEED_BITS),
        "loras": loras,
        "knobs": knobs,
    }


def measure(said: Mapping[str, Any], model: Model) -> tuple[tuple[int, int, int], float]:
    """Frames, height and width, and the rate, of the fields that say them; the recipe's where they do not.

    Raises:
        FieldError: a field is wrong.
    """
    return _measure(_read(said), model)


def _read(said: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in said.items():
        if name not in FIELDS:
            raise FieldError(name, _unknown(name))
        if value is None or (value == "" and name != "prompt"):
            continue  # as clients send what the user left out
        try:
            values[name] = FIELDS[name].read(value)
        except LTXKitError as error:
            raise FieldError(name, f"{name}: {error}") from error
    return values


def _unknown(name: str) -> str:
    known = (*FIELDS, UPLOAD)
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else "settings of LTXKit go into extra_params"
    return f"got the field {shown(name)}; expected one of {', '.join(known)}; {hint}"


def _measure(values: dict[str, Any], model: Model) -> tuple[tuple[int, int, int], float]:
    """Frames, height and width, and the rate: those of the request, or the recipe's."""
    from ..ltx_core.shapes import PixelShape

    own, own_rate = own_size(model)
    said = set(values)
    rate = values.pop("fps", own_rate)
    width, height = values.pop("size", (own.width, own.height))
    frames = values.pop("num_frames", own.frames)
    name = "num_frames"
    if "seconds" in values and "num_frames" in said:
        raise FieldError("seconds", "got seconds and num_frames; expected one of them; leave the other out")
    if "seconds" in values:
        name, seconds = "seconds", values.pop("seconds")
        if not 0 < seconds < 1e6:
            raise FieldError(name, f"got seconds={shown(seconds)}; expected a positive number; change it")
        frames = max(round(seconds * rate), 1)
    try:
        return (*PixelShape.asked(frames, height, width),), rate  # pyright: ignore[reportReturnType]
    except LTXKitError as error:
        raise FieldError("size" if min(width, height) < 1 else name, str(error)) from error


def _check_fits(model: Model, size: tuple[int, int, int], device: str | None) -> None:
    if device == ELSEWHERE:
        return
    from ..ltx_core.pipelines.dry_run import check_fits
    from ..ltx_core.placing.devices import chosen_device
    from ..ltx_core.shapes import PixelShape

    check_fits(outline_of(model), PixelShape(*size), chosen_device(device))

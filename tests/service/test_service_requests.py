"""What a client may ask for: OpenAI's fields and the usual ones beside them, checked before a job exists."""

from __future__ import annotations

from typing import Any

import pytest

from ltxkit.ltx_core.errors import LTXKitError, UnsupportedError
from ltxkit.service.catalog import Catalog, Model, NotOfferedError
from ltxkit.service.requests import FIELDS, FieldError, Limits, TooLargeError, measure, read_request

CATALOG = Catalog(
    {"digits": Model("digits", "ltxkit-digits"), "other": Model("other", "ltxkit-digits")},
    {"style": "style.safetensors"},
)


def read(**said: Any) -> dict[str, Any]:
    return read_request({"prompt": "a 7"} | said, CATALOG, Limits(pixels=10_000_000), "cpu")


def test_what_is_not_said_is_the_recipes() -> None:
    made = read()
    assert {name: made[name] for name in ("model", "width", "height", "frames", "fps", "loras", "knobs")} == {
        "model": "digits",
        "width": 64,
        "height": 64,
        "frames": 25,
        "fps": 25.0,
        "loras": [],
        "knobs": {},
    }
    assert made["negative_prompt"] is None
    assert made["seed"] != read()["seed"]  # drawn


def test_the_texts_of_a_form_are_the_values_of_json() -> None:
    form = read(
        model="other",
        size="48x32",
        num_frames="9",
        fps="12.5",
        num_inference_steps="4",
        guidance_scale="2.5",
        seed="7",
        negative_prompt="",
        lora='[{"name": "style", "scale": 0.5}, "style"]',
        extra_params='{"stg_scale": 0}',
    )
    json = read(
        model="other",
        size="48X32",
        num_frames=9,
        fps=12.5,
        num_inference_steps=4,
        guidance_scale=2.5,
        seed=7,
        negative_prompt=None,
        lora=[{"name": "style", "scale": 0.5}, "style"],
        extra_params={"stg_scale": 0},
    )
    assert form == json
    assert json["loras"] == [{"name": "style", "scale": 0.5}, {"name": "style", "scale": 1.0}]
    assert json["knobs"] == {"stg_scale": 0, "steps": 4, "guidance_scale": 2.5}


@pytest.mark.parametrize(("seconds", "frames"), [("4", 100), (0.5, 12), (0.01, 1)])
def test_seconds(seconds: object, frames: int) -> None:
    assert read(seconds=seconds)["frames"] == frames


def test_the_plan_takes_the_fields_of_a_size() -> None:
    assert measure({"size": "32x48", "seconds": "2"}, CATALOG.model(None)) == ((50, 48, 32), 25.0)


WRONG = [
    ({"prompt": "  "}, "prompt", "empty"),
    ({"prompt": 5}, "prompt", "expected str"),
    ({"prompt": "x" * 30_000}, "prompt", "at most 20000"),
    ({"size": "64"}, "size", "WIDTHxHEIGHT"),
    ({"size": "-64x64"}, "size", "WIDTHxHEIGHT"),
    ({"size": "64x64x64"}, "size", "WIDTHxHEIGHT"),
    ({"size": "٦٤x64"}, "size", "WIDTHxHEIGHT"),
    ({"size": [64, 64]}, "size", "WIDTHxHEIGHT"),
    ({"size": "0x64"}, "size", "at least one"),
    ({"num_frames": 0}, "num_frames", "at least one"),
    ({"num_frames": "nine"}, "num_frames", "a number"),
    ({"num_frames": 9.5}, "num_frames", "whole"),
    ({"num_frames": True}, "num_frames", "a number"),
    ({"seconds": "NaN"}, "seconds", "a number"),
    ({"seconds": -1}, "seconds", "positive"),
    ({"seconds": 1e300}, "seconds", "positive"),
    ({"seconds": 1, "num_frames": 9}, "seconds", "one of them"),
    ({"fps": 0}, "fps", "positive rate"),
    ({"seed": -1}, "seed", "whole number"),
    ({"seed": 2**64}, "seed", "whole number"),
    ({"guidance_scale": "Infinity"}, "guidance_scale", "a number"),
    ({"guidance_scale": 1e6}, "extra_params", "expected 0 to 100"),
    ({"num_inference_steps": 0}, "extra_params", "whole number from 1"),
    ({"lora": {"path": "a"}}, "lora", "a name"),
    ({"lora": {"name": "style", "scale": "1"}}, "lora", "-100 to 100"),
    ({"lora": ["style"] * 17}, "lora", "at most 16"),
    ({"extra_params": "[1]"}, "extra_params", "JSON object"),
    ({"extra_params": "{"}, "extra_params", "expected JSON"),
    ({"extra_params": {"path": "a"}}, "extra_params", "path"),
    ({"extra_params": {"steps": 3}, "num_inference_steps": 4}, "num_inference_steps", "one of them"),
    ({"stesp": 3}, "stesp", "extra_params"),
    ({"num_frame": 3}, "num_frame", "did you mean num_frames"),
    ({"output": "a.mp4"}, "output", "expected one of"),
]


@pytest.mark.parametrize(("said", "name", "message"), WRONG, ids=[str(said)[:40] for said, *_ in WRONG])
def test_a_wrong_field_is_named(said: dict[str, Any], name: str, message: str) -> None:
    with pytest.raises(FieldError, match=message) as caught:
        read(**said)
    assert caught.value.name == name


def test_what_is_not_offered() -> None:
    with pytest.raises(NotOfferedError, match="digits, other"):
        read(model="sora-2")
    with pytest.raises(NotOfferedError, match="got the LoRA"):
        read(lora="../style.safetensors")
    with pytest.raises(FieldError, match="no prompt"):
        read_request({}, CATALOG, Limits(), "cpu")


def test_sizes_beyond_the_limits_and_the_memory() -> None:
    with pytest.raises(TooLargeError, match="at most 10,000,000"):
        read(size="1024x1024", num_frames=10)
    with pytest.raises(UnsupportedError, match="GB; expected at most"):
        read_request(
            {"prompt": "a", "size": "16384x16384", "num_frames": 90_000}, CATALOG, Limits(pixels=10**15), "cpu"
        )


def test_every_field_is_described() -> None:
    for name, field in FIELDS.items():
        assert field.help.endswith("."), name
        with pytest.raises(LTXKitError):
            field.read(object())

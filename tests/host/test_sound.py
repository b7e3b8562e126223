"""Sound goes through the shipped graphs in ComfyUI 0.33."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from comfy_client import Server

from ltxkit.ltx_core import media

pytestmark = [pytest.mark.comfy_next, pytest.mark.slow]

Check = Callable[[media.Sound, media.Clip, list[tuple[int, int]]], None]


@pytest.mark.parametrize(
    "name",
    [
        "extend-2b",
        "ic-lora-13b",
        "inpaint-2b",
        "interpolate-2b",
        "two-stage-13b-dev",
        "two-stage-13b-distilled",
        "video-to-video-2b",
    ],
)
def test_the_sound_of_the_clip_is_in_the_result(
    server_newest: Server,
    workflow: Callable[[str], dict[str, Any]],
    heard_frames: dict[str, list[tuple[int, int]]],
    check_sound: Check,
    name: str,
):
    events = server_newest.run(workflow(name))
    assert events.error == ""
    (file,) = server_newest.files(events)
    sound = media.read_sound(file)
    assert sound is not None
    check_sound(sound, media.read_video(file), heard_frames[name])


def test_a_long_video_takes_a_sound(
    server_newest: Server, workflow: Callable[[str], dict[str, Any]], check_sound: Check
):
    """The clip has 21 frames, the video 41; both 24 per second."""
    prompt = workflow("long-2b")
    (long,) = (node for node in prompt.values() if node["class_type"] == "LTXKitGenerateLongVideo")
    prompt["clip"] = {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}}
    prompt["parts"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["clip", 0]}}
    long["inputs"]["audio"] = ["parts", 1]
    events = server_newest.run(prompt)
    assert events.error == ""
    (file,) = server_newest.files(events)
    sound = media.read_sound(file)
    assert sound is not None
    check_sound(sound, media.read_video(file), [(0, 21)])


def test_a_clip_without_sound_is_no_error(server_newest: Server, workflow: Callable[[str], dict[str, Any]]):
    prompt = workflow("extend-2b")
    (clip,) = (node for node in prompt.values() if node["class_type"] == "LTXKitLoadExample")
    clip["inputs"]["example"] = "silent.mp4"
    silent = server_newest.base / "input/silent.mp4"
    whole = media.read_video(server_newest.base / "input/clip.mp4")
    media.write_video(silent, [whole.frames], fps=whole.fps)
    events = server_newest.run(prompt)
    assert events.error == ""
    (file,) = server_newest.files(events)
    assert media.read_sound(file) is None

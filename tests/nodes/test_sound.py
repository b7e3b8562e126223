"""The sound of a clip, where its frames stand in the video."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.nodes.sound import KeepSound, received_sound

RATE = 240  # samples per second: ten for each frame at 24 per second


def audio(samples: int, channels: int = 1, rate: int = RATE) -> dict[str, Any]:
    """A sound whose samples are numbered from 1."""
    numbers = torch.arange(1, samples + 1).float().expand(1, channels, -1)
    return {"waveform": numbers, "sample_rate": rate}


def frames(count: int) -> Tensor:
    return torch.zeros(count, 2, 2, 3)


def kept(sound: object, take: int = 0, frame: int = 0, rate: float = 24.0, **inputs: Any) -> list[float]:
    (result,) = KeepSound().run(sound, take, frame, rate, **inputs)
    assert result is not None
    assert result["waveform"].shape[:2] == (1, 1)
    return result["waveform"][0, 0].tolist()


def numbers(first: int, last: int) -> list[float]:
    return [float(number) for number in range(first, last + 1)]


def silence(samples: int) -> list[float]:
    return [0.0] * samples


@pytest.mark.parametrize(
    ("take", "frame", "expected"),
    [
        (0, 0, numbers(1, 50) + silence(30)),
        (2, 0, numbers(1, 20) + silence(60)),
        (-2, 0, numbers(31, 50) + silence(60)),  # the clip has five frames
        (-9, 0, numbers(1, 50) + silence(30)),
        (0, 6, silence(60) + numbers(1, 20)),
        (2, -2, silence(60) + numbers(1, 20)),
        (2, -1, silence(70) + numbers(1, 10)),
        (-2, -4, silence(40) + numbers(31, 50) + silence(20)),
    ],
)
def test_it_stands_where_the_frames_of_the_condition_stand(take: int, frame: int, expected: list[float]):
    assert kept(audio(50), take, frame, images=frames(8), clip=frames(5)) == expected


def test_it_is_cut_to_the_video_and_what_lasts_longer_than_the_clip_is_heard():
    assert kept(audio(500), images=frames(8)) == numbers(1, 80)
    assert kept(audio(60), -2, images=frames(8), clip=frames(5)) == numbers(31, 60) + silence(50)
    assert kept(audio(20), -2, images=frames(8), clip=frames(5)) == silence(80)  # it ends before them


def test_another_frame_rate_stretches_nothing():
    """The clip has 12 frames per second: twenty samples each."""
    assert kept(audio(100), images=frames(8), clip_rate=12.0) == numbers(1, 80)
    assert kept(audio(100), -2, images=frames(8), clip=frames(5), clip_rate=12.0) == numbers(61, 100) + silence(40)
    assert kept(audio(100), 2, 4, images=frames(8), clip_rate=12.0) == silence(40) + numbers(1, 40)


def test_without_the_frames_of_the_video_it_ends_with_the_clip():
    assert kept(audio(50)) == numbers(1, 50)
    assert kept(audio(50), 2, 1) == silence(10) + numbers(1, 20)
    with pytest.raises(ConfigError, match="got frame -1 without `images`"):
        KeepSound().run(audio(50), 0, -1, 24.0)


def test_two_clips_are_heard_in_one_video():
    first = KeepSound().run(audio(50), -2, 0, 24.0, images=frames(8), clip=frames(5))[0]
    both = kept(audio(90), 2, -2, images=frames(8), before=first)
    assert both == numbers(31, 50) + silence(40) + numbers(1, 20)
    at_once = kept(audio(80), images=frames(8), before=audio(80))
    assert at_once == [2 * number for number in numbers(1, 80)]


def test_of_two_sounds_the_first_has_rate_and_channels():
    first = {"waveform": torch.zeros(1, 2, 8000), "sample_rate": 8000}
    (result,) = KeepSound().run(audio(240), 0, 0, 24.0, before=first, images=frames(24))
    assert result is not None
    assert result["sample_rate"] == 8000
    assert result["waveform"].shape == (1, 2, 8000)
    assert result["waveform"].any()


def test_no_sound_is_no_error():
    assert KeepSound().run(None, -2, 3, 24.0, images=frames(8), clip=frames(5)) == (None,)
    empty = {"waveform": torch.zeros(1, 2, 0), "sample_rate": 8000}
    assert KeepSound().run(empty, 0, 0, 24.0) == (None,)
    assert kept(None, before=audio(50), images=frames(8)) == numbers(1, 50) + silence(30)
    assert kept(audio(50), before=None, images=frames(8)) == numbers(1, 50) + silence(30)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"take": -2}, "got take -2 without `clip`"),
        ({"frame": 8, "images": frames(8)}, "got sound at frame 8; expected -8 to 7"),
        ({"frame": -9, "images": frames(8)}, "got sound at frame -9; expected -8 to 7"),
        ({"audio": torch.zeros(1, 1, 8)}, "got Tensor on `audio`; expected AUDIO"),
        ({"audio": {"waveform": torch.zeros(1, 8), "sample_rate": 8}}, "got dict on `audio`; expected AUDIO"),
        ({"audio": {"waveform": torch.zeros(2, 1, 8), "sample_rate": 8}}, "got 2 sounds on `audio`"),
    ],
)
def test_what_cannot_be_is_refused(inputs: dict[str, Any], message: str):
    given = {"audio": audio(50), "take": 0, "frame": 0, "frame_rate": 24.0, **inputs}
    with pytest.raises(ConfigError, match=message):
        KeepSound().run(**given)


def test_other_packs_mappings_are_taken():
    """VideoHelperSuite reads the sound of a file only when it is asked for."""
    from collections.abc import Iterator, Mapping

    class Lazy(Mapping[str, Any]):
        def __getitem__(self, key: str) -> Any:
            return audio(3)[key]

        def __iter__(self) -> Iterator[str]:
            return iter(audio(3))

        def __len__(self) -> int:
            return 2

    sound = received_sound(Lazy(), "audio")
    assert sound is not None
    assert sound.waveform.tolist() == [[1, 2, 3]]

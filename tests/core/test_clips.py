"""Every kind of clip looks as a player shows it, on each version of PyAV, or is named in one sentence.

Stored colours are made here from the equations of ITU-R BT.601, BT.709, BT.2020 and BT.2100, without FFmpeg.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import ConfigError

LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""Weights of red and blue by matrix, as ITU-T H.273 numbers them."""


def levels(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    return [np.full((height, width, 3), 20 * number, np.uint8) for number in range(count)]


def encode(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    layout: str = "yuv420p",
    rate: int = 24,
    times: Sequence[int] | None = None,
    container: str | None = None,
    prepare: Callable[[Any], None] = lambda context: None,
    rewrite: Callable[[int, Any], None] = lambda number, packet: None,
) -> Path:
    """A clip of RGB or RGBA frames. times: of the frames, in frames of the rate. prepare, rewrite: change the encoder
    before, and the packets after encoding."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = layout
        stream.codec_context.time_base = Fraction(1, rate)
        prepare(stream.codec_context)
        packets = []
        for number, frame in enumerate(frames):
            stored = av.VideoFrame.from_ndarray(frame, format="rgba" if frame.shape[-1] == 4 else "rgb24")
            stored = stored.reformat(format=layout)
            stored.pts, stored.time_base = times[number] if times else number, Fraction(1, rate)
            packets += stream.encode(stored)
        for number, packet in enumerate([*packets, *stream.encode()]):
            rewrite(number, packet)
            file.mux(packet)
    return path


def plain(
    path: Path, colour: Sequence[float], matrix: int, *, full: bool, layout: str = "yuv420p", tags: dict[str, int]
) -> Path:
    """A lossless clip of one colour, given as R'G'B', in planes that are computed here."""
    red, blue = LUMA[matrix]
    r, g, b = colour
    y = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - y) / 2 / (1 - blue), (r - y) / 2 / (1 - red)
    ten = layout.endswith("10le")
    unit = 4 if ten else 1
    if full:
        top = 1023 if ten else 255
        values = [y * top, u * top + 128 * unit, v * top + 128 * unit]
    else:
        values = [(16 + 219 * y) * unit, (128 + 224 * u) * unit, (128 + 224 * v) * unit]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=24, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, layout
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for number in range(2):
            frame = av.VideoFrame(64, 48, layout)
            for plane, value in zip(frame.planes, values, strict=True):
                plane.update(
                    np.full(plane.buffer_size // (1 + ten), round(value), np.uint16 if ten else np.uint8).tobytes()
                )
            for name in ("colorspace", "color_range"):
                if name in tags:
                    setattr(frame, name, tags[name])
            frame.pts, frame.time_base = number, Fraction(1, 24)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def colour_of(path: Path, notes: list[str] | None = None) -> torch.Tensor:
    frames = media.read_video(path, notes=(notes if notes is not None else []).append).frames
    assert (frames - frames[0, 0, 0]).abs().max() < 0.01
    return frames[0, 0, 0]


def shown(clip: media.Clip) -> list[int]:
    """The number in `levels` of each frame."""
    return (clip.frames.mean((1, 2, 3)) * 255 / 20).round().int().tolist()


def read(path: Path, **options: Any) -> tuple[media.Clip, list[str]]:
    notes: list[str] = []
    clip = media.read_video(path, notes=notes.append, **options)
    return clip, [note.removeprefix(f"{path} ") for note in notes]


# ---------------------------------------------------------------------------------------------------------- colours


@pytest.mark.parametrize("layout", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("full", [False, True], ids=["studio", "full"])
@pytest.mark.parametrize("matrix", LUMA)
def test_matrix_and_range_are_those_of_the_file(tmp_path: Path, matrix: int, full: bool, layout: str) -> None:
    colour = (0.9, 0.1, 0.15)
    tags = {"colorspace": matrix, "color_range": 2 if full else 1}
    path = plain(tmp_path / "c.mp4", colour, matrix, full=full, layout=layout, tags=tags)
    assert (colour_of(path) - torch.tensor(colour)).abs().max() < 0.012


@pytest.mark.parametrize("colour", [(0.9, 0.1, 0.1), (0.1, 0.9, 0.1), (0.1, 0.1, 0.9), (1, 1, 1), (0, 0, 0)])
@pytest.mark.parametrize("width", [64, 50, 38])
def test_what_we_write_is_bt709_in_studio_range(tmp_path: Path, colour: tuple[float, float, float], width: int) -> None:
    media.write_video(tmp_path / "c.mp4", [torch.tensor(colour).expand(2, 34, width, 3)], fps=Fraction(24), crf=4)
    with av.open(str(tmp_path / "c.mp4")) as file:
        stored = next(file.decode(video=0)).to_ndarray()  # yuv420p, as it is
    y = sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), colour, strict=True))
    expected = (16 + 219 * y, 128 + 224 * (colour[2] - y) / 1.8556, 128 + 224 * (colour[0] - y) / 1.5748)
    planes = stored.reshape(-1)
    size = 34 * width
    for part, value in zip(
        (planes[:size], planes[size : size * 5 // 4], planes[size * 5 // 4 :]), expected, strict=True
    ):
        assert np.abs(part.astype(float) - value).max() < 2.5


def test_without_a_matrix_large_clips_are_bt709(tmp_path: Path) -> None:
    colour = (0.9, 0.1, 0.15)
    small = plain(tmp_path / "small.mp4", colour, 5, full=False, tags={})
    assert (colour_of(small) - torch.tensor(colour)).abs().max() < 0.012
    frames = [np.full((720, 1280, 3), (230, 26, 38), np.uint8)]
    large = encode(tmp_path / "large.mp4", frames)  # PyAV makes it by BT.601, and says nothing
    by_601 = torch.tensor([230, 26, 38]) / 255
    assert (colour_of(large) - by_601).abs().max() > 0.05


def test_display_p3_and_bt2020_are_mapped_to_srgb(tmp_path: Path) -> None:
    """A grey stays; a colour that sRGB has too becomes more saturated in its numbers."""
    for primaries in (9, 12):
        tags = {"colorspace": 1, "color_range": 1, "color_primaries": primaries, "color_trc": 1}
        grey = plain(tmp_path / "grey.mp4", (0.5, 0.5, 0.5), 1, full=False, tags=tags)
        assert (colour_of(grey) - 0.5).abs().max() < 0.01
        red = plain(tmp_path / "red.mp4", (0.7, 0.4, 0.4), 1, full=False, tags=tags)
        notes: list[str] = []
        seen = colour_of(red, notes)
        assert seen[0] > 0.72
        assert seen[1] < 0.4
        assert "mapped to sRGB" in notes[0]


def pq(light: float) -> float:
    """SMPTE ST 2084 of light in cd/m2."""
    power = (light / 10000) ** (1305 / 8192)
    return ((107 / 128 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


HDR_TAGS = {"colorspace": 9, "color_range": 1, "color_primaries": 9}


def test_pq_becomes_sdr(tmp_path: Path) -> None:
    """Up to 80 cd/m2 as it is, with white at 203; above, ever less contrast, and 1000 is white."""
    seen = []
    for light in (0.0, 5.0, 20.0, 80.0, 203.0, 500.0, 1000.0, 4000.0):
        notes: list[str] = []
        path = plain(
            tmp_path / "hdr.mp4",
            (pq(light),) * 3,
            9,
            full=False,
            layout="yuv420p10le",
            tags={**HDR_TAGS, "color_trc": 16},
        )
        value = float(colour_of(path, notes).mean())
        assert notes == [f"{path} is HDR (PQ), which is mapped to SDR."]
        if 0 < light <= 80:
            linear = light / 203
            assert value == pytest.approx(1.055 * linear ** (1 / 2.4) - 0.055, abs=0.02)
        seen.append(value)
    assert seen[0] < 0.01
    assert seen == sorted(seen)
    assert seen[4] > 0.85
    assert seen[-2] == pytest.approx(1, abs=0.01)


def test_hlg_becomes_sdr(tmp_path: Path) -> None:
    """75% of HLG is the diffuse white of 203 cd/m2 (ITU-R BT.2408): the same as in PQ."""
    tags = {**HDR_TAGS, "color_trc": 18}
    values = []
    for level in (0.25, 0.5, 0.75, 1.0):
        path = plain(tmp_path / "hlg.mp4", (level,) * 3, 9, full=False, layout="yuv420p10le", tags=tags)
        values.append(float(colour_of(path).mean()))
    white = plain(
        tmp_path / "pq.mp4", (pq(203),) * 3, 9, full=False, layout="yuv420p10le", tags={**HDR_TAGS, "color_trc": 16}
    )
    assert values == sorted(values)
    assert values[2] == pytest.approx(float(colour_of(white).mean()), abs=0.01)
    assert values[3] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("name", "codec", "layout"),
    [
        ("a.mov", "png", "rgba"),
        ("a.mov", "qtrle", "argb"),
        ("a.mkv", "ffv1", "bgra"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a.mov", "prores_ks", "yuva444p10le"),
    ],
)
def test_transparent_clips_are_over_black(tmp_path: Path, name: str, codec: str, layout: str) -> None:
    rgba = np.full((32, 48, 4), 200, np.uint8)
    rgba[..., 3] = 128
    clip, notes = read(encode(tmp_path / name, [rgba] * 2, codec=codec, layout=layout))
    assert (clip.frames - 200 / 255 * 128 / 255).abs().max() < 0.01
    assert notes == ["is transparent in parts, which are shown on black."]


# --------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize(
    ("aspect", "size"), [(Fraction(2), (48, 128)), (Fraction(1, 2), (96, 64)), (Fraction(16, 15), (48, 68))]
)
def test_pixels_become_square(tmp_path: Path, aspect: Fraction, size: tuple[int, int]) -> None:
    def prepare(context: Any) -> None:
        context.sample_aspect_ratio = aspect

    path = encode(tmp_path / "wide.mp4", levels(3, 48, 64), prepare=prepare)
    assert read(path)[0].frames.shape == (3, *size, 3)
    first = next(iter(media.stream_video(path)))
    assert first.shape == (*size, 3)


ONE = 1 << 16
MATRICES: dict[str, tuple[tuple[int, int, int, int], Callable[[torch.Tensor], torch.Tensor]]] = {
    "clockwise": ((0, ONE, -ONE, 0), lambda x: x.rot90(-1, (1, 2))),
    "counter-clockwise": ((0, -ONE, ONE, 0), lambda x: x.rot90(1, (1, 2))),
    "upside down": ((-ONE, 0, 0, -ONE), lambda x: x.rot90(2, (1, 2))),
    "mirrored": ((-ONE, 0, 0, ONE), lambda x: x.flip(2)),
    "mirrored and turned": ((0, ONE, ONE, 0), lambda x: x.transpose(1, 2)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_display_matrix_is_applied(tmp_path: Path, name: str) -> None:
    (a, b, c, d), turned = MATRICES[name]
    red = torch.linspace(0, 1, 64).expand(32, 64)
    green = torch.linspace(0, 1, 32)[:, None].expand(32, 64)
    media.write_video(tmp_path / "a.mp4", [torch.stack([red, green, red * 0], -1)[None]], fps=Fraction(24))
    upright = struct.pack(">9i", ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    data = (tmp_path / "a.mp4").read_bytes()
    at = data.index(upright, data.index(b"tkhd"))
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "b.mp4").write_bytes(data[:at] + matrix + data[at + len(matrix) :])
    expected = turned(media.read_video(tmp_path / "a.mp4").frames)
    assert torch.equal(media.read_video(tmp_path / "b.mp4").frames, expected)


def test_a_clip_that_changes_its_size_is_refused_with_frame_and_sizes(tmp_path: Path) -> None:
    pieces = [encode(tmp_path / f"{side}.ts", levels(4, side, side), container="mpegts") for side in (32, 64)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    with pytest.raises(ConfigError, match=r"joined\.ts, whose frames change from 32x32 to 64x64 pixels at frame 4;"):
        media.read_video(joined)
    assert len(list(media.stream_video(joined, limit=4))) == 4


# ------------------------------------------------------------------------------------------------------------ times


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_variable_rate_keeps_its_times(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"v.{suffix}", levels(6), times=[0, 1, 2, 6, 7, 8])
    clip, notes = read(path)
    assert clip.fps == 24
    assert shown(clip) in ([0, 1, 2, 2, 3, 3, 3, 4, 5], [0, 1, 2, 2, 2, 3, 3, 4, 5])  # a tie may go either way
    assert notes == ["has a variable frame rate: its frames are shown at their times, at 24 per second."]
    assert shown(read(path, fps=Fraction(24))[0]) == shown(clip)
    assert len(list(media.stream_video(path))) == 6


def test_a_fast_variable_rate_is_read_to_the_limit(tmp_path: Path) -> None:
    """At 240 frames per second, 60 of the result need four times as many of the file."""
    times = [number for number in range(400) if number % 50 not in (10, 11, 12)]
    frames = [np.full((16, 16, 3), time * 255 // 400, np.uint8) for time in times]
    path = encode(tmp_path / "fast.mp4", frames, rate=240, times=times)
    clip, _ = read(path, limit=60)
    assert clip.fps == 60
    seen = clip.frames.mean((1, 2, 3)) * 400
    assert (seen - torch.arange(60) * 4).abs().max() < 8


def out_of_order(number: int, packet: Any) -> None:
    packet.pts = [0, 3, 1, 2, 4, 6, 5, 7][number]
    packet.dts = number - 3


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "nut"])
def test_times_out_of_order_give_way_to_the_order(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"o.{suffix}", levels(8), codec="mjpeg", layout="yuvj420p", rewrite=out_of_order)
    for fps in (None, Fraction(24)):
        clip, notes = read(path, fps=fps)
        assert shown(clip) == list(range(8))
        assert clip.fps == 24
        assert notes == [
            "has frames whose times are out of order: its frames are taken in their order, at 24 per second."
        ]


def test_a_stream_without_times_goes_by_its_order_and_rate(tmp_path: Path) -> None:
    path = encode(tmp_path / "raw.h264", levels(8), container="h264")
    clip, notes = read(path)
    assert shown(clip) == list(range(8))
    assert clip.fps == media.video_fps(path) == 25  # FFmpeg's rate for a stream that states none
    assert notes == ["has frames without times: its frames are taken in their order, at 25 per second."]
    assert shown(read(path, fps=Fraction(25, 2))[0]) == [0, 2, 4, 6]


def test_a_recording_that_starts_anew_goes_on(tmp_path: Path) -> None:
    """Two transport streams, one after the other: the times of the second begin again."""
    piece = encode(tmp_path / "a.ts", levels(8), container="mpegts").read_bytes()
    (tmp_path / "two.ts").write_bytes(piece + piece)
    for fps in (None, Fraction(24)):
        clip, notes = read(tmp_path / "two.ts", fps=fps)
        assert shown(clip) == [*range(8), *range(8)]
        assert "out of order" in notes[0]


def test_a_late_fault_in_the_times_does_not_stop_a_stream(tmp_path: Path) -> None:
    piece = encode(tmp_path / "a.ts", levels(10) * 4, container="mpegts").read_bytes()
    (tmp_path / "two.ts").write_bytes(piece + piece)
    notes: list[str] = []
    frames = list(media.stream_video(tmp_path / "two.ts", fps=Fraction(24), notes=notes.append))
    assert len(frames) == 80
    assert "no usable times from frame 40 on" in notes[0]


def test_a_gap_of_days_makes_no_frames(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "gap.mkv", levels(4), codec="mjpeg", layout="yuvj420p", times=[0, 1, 24 * 86400, 24 * 86400 + 1]
    )
    clip, notes = read(path, fps=Fraction(24))
    assert shown(clip) == [0, 1, 2, 3]
    assert "has a gap in its times" in notes[0]


@pytest.mark.parametrize("suffix", ["avi", "mkv", "ts", "flv", "mpg", "webm", "y4m"])
def test_containers_of_a_constant_rate(tmp_path: Path, suffix: str) -> None:
    codec = {"mpg": "mpeg2video", "webm": "libvpx-vp9", "y4m": "wrapped_avframe"}.get(suffix, "libx264")
    clip, notes = read(encode(tmp_path / f"c.{suffix}", levels(10), codec=codec))
    assert shown(clip) == list(range(10))
    assert (clip.fps, notes) == (24, [])


# ------------------------------------------------------------------------------------------------ pictures as clips


ANIMATIONS = ["webp", "gif", "png", *(["avif"] if ".avif" in Image.registered_extensions() else [])]  # Pillow 11.3


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_an_animated_picture_is_a_clip(tmp_path: Path, kind: str) -> None:
    pictures = [Image.fromarray(frame) for frame in levels(5)]
    pictures[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=pictures[1:], duration=100)
    clip, notes = read(tmp_path / f"a.{kind}")
    assert shown(clip) == list(range(5))
    assert (clip.fps, notes) == (10, [])
    assert media.is_clip(tmp_path / f"a.{kind}")
    assert media.video_fps(tmp_path / f"a.{kind}") == 10
    assert shown(read(tmp_path / f"a.{kind}", fps=Fraction(20), limit=4)[0]) == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_an_animation_keeps_its_times(tmp_path: Path, kind: str) -> None:
    pictures = [Image.fromarray(frame) for frame in levels(3)]
    options: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "duration": [100, 300, 200]}
    pictures[0].save(tmp_path / f"a.{kind}", **options)
    clip, notes = read(tmp_path / f"a.{kind}")
    assert clip.fps == 10
    assert len(clip.frames) == 6
    assert shown(clip)[0] == 0
    assert shown(clip)[-1] == 2
    assert "variable frame rate" in notes[0]


def test_an_unset_time_is_a_tenth_of_a_second_as_in_browsers(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in levels(3)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=0)
    assert read(tmp_path / "a.gif")[0].fps == 10


def test_a_picture_for_viewers_without_animation_is_no_part_of_it(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in levels(4)]
    options: dict[str, Any] = {"save_all": True, "default_image": True, "append_images": pictures[1:], "duration": 50}
    pictures[0].save(tmp_path / "a.png", **options)
    clip, _ = read(tmp_path / "a.png")
    assert (shown(clip), clip.fps) == ([1, 2, 3], 20)
    pictures[0].save(tmp_path / "b.png", **{**options, "append_images": pictures[1:2]})
    assert not media.is_animated(tmp_path / "b.png")


def test_transparent_animations_are_over_black(tmp_path: Path) -> None:
    pictures = [Image.new("RGBA", (16, 16), (200, 200, 200, alpha)) for alpha in (255, 128)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=40, lossless=True)
    clip, _ = read(tmp_path / "a.webp")
    assert clip.frames[0].mean() == pytest.approx(200 / 255)
    assert clip.frames[1].mean() == pytest.approx(200 / 255 * 128 / 255)


def test_numbered_frames_are_a_clip(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in zip((1, 2, 10), levels(3), strict=True):
        Image.fromarray(frame).save(folder / f"shot2_{number}.png")
    (folder / "notes.txt").write_text("not a picture")
    clip, notes = read(folder, fps=Fraction(12))
    assert (shown(clip), clip.fps) == ([0, 1, 2], 12)
    assert read(folder)[0].fps == 24
    assert notes == ["has frames without times: its frames are taken in their order, at 12 per second."]
    Image.new("RGB", (8, 8)).save(folder / "shot2_11.png")
    with pytest.raises(ConfigError, match=r"change from 48x32 to 8x8 pixels at shot2_11\.png"):
        media.read_video(folder)
    Image.new("RGB", (48, 32)).save(folder / "other_1.png")
    with pytest.raises(ConfigError, match="several series"):
        media.read_video(folder)
    with pytest.raises(ConfigError, match="without pictures"):
        media.read_video(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "cover.png")
    with pytest.raises(ConfigError, match=r"with cover\.png; expected pictures with a number"):
        media.read_video(tmp_path)


def test_a_picture_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(levels(4)[3]).save(tmp_path / "a.png")
    clip, notes = read(tmp_path / "a.png", fps=Fraction(24))
    assert shown(clip) == [3]
    assert notes == ["is a picture: it is taken as a clip of one frame."]
    assert not media.is_clip(tmp_path / "a.png")


# ----------------------------------------------------------------------------------------------------- broken files


def sound(path: Path, cover: bool = False) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le" if path.suffix == ".wav" else "flac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4608), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)


@pytest.mark.parametrize("name", ["a.wav", "a.mkv"])
def test_sound_alone_is_named(tmp_path: Path, name: str) -> None:
    sound(tmp_path / name)
    with pytest.raises(ConfigError, match="contains sound alone; expected a file such as mp4"):
        media.read_video(tmp_path / name)


def test_a_video_without_frames_is_named(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "none.avi"), "w") as file:
        stream = file.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        file.start_encoding()
    for reader in (media.read_video, lambda path: list(media.stream_video(path))):
        with pytest.raises(ConfigError, match=r"none\.avi, which has no frames; expected a clip"):
            reader(tmp_path / "none.avi")


def test_tags_that_are_not_utf8_do_not_matter(tmp_path: Path) -> None:
    media.write_video(tmp_path / "a.mp4", [torch.zeros(2, 16, 16, 3)], fps=Fraction(24), metadata={"title": "XXXXXX"})
    data = (tmp_path / "a.mp4").read_bytes().replace(b"XXXXXX", "Straße".encode("latin-1"))
    (tmp_path / "a.mp4").write_bytes(data)
    assert len(read(tmp_path / "a.mp4")[0].frames) == 2
    assert "Stra" in media.read_metadata(tmp_path / "a.mp4")["title"]


def test_a_damaged_packet_is_left_out_and_said(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mov", levels(6), codec="png", layout="rgb24")
    data = bytearray(path.read_bytes())
    starts = [at for at in range(len(data)) if data[at : at + 4] == b"\x89PNG"]
    data[starts[2] : starts[2] + 60] = bytes(60)
    path.write_bytes(data)
    clip, notes = read(path)
    assert shown(clip)[:2] == [0, 1]
    assert shown(clip)[-1] == 5
    assert any("is damaged: 1 of its packets" in note for note in notes)


@pytest.mark.slow
def test_any_byte_may_be_damaged(tmp_path: Path) -> None:
    """One hundred mutations of each container: a clip, or one ConfigError that names the file."""
    rng = np.random.default_rng(0)
    for suffix in ("mp4", "mkv", "avi", "ts"):
        path = encode(tmp_path / f"a.{suffix}", levels(4))
        content, messages = path.read_bytes(), []
        for _ in range(100):
            damaged = bytearray(content)
            for at in rng.integers(0, len(damaged), 4):
                damaged[at] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                frames = list(media.stream_video(path, fps=Fraction(24), limit=16, notes=lambda _: None))
            except ConfigError as error:
                messages.append(str(error))
            else:
                assert all(frame.shape[-1] == 3 for frame in frames)
        assert all(path.name in message for message in messages)

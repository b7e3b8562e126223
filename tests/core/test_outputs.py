"""Every format in which a clip is saved: the same frames and the same sound again, and what cannot be is refused."""

from __future__ import annotations

import os
import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from PIL import Image

from ltxkit.ltx_core import media, outputs
from ltxkit.ltx_core.errors import ConfigError, LTXKitError, UnsupportedError
from ltxkit.ltx_core.media.exr import encode_exr
from ltxkit.ltx_core.outputs import CODECS, FORMATS, check_output
from ltxkit.ltx_core.shapes import PixelShape

FRAMES = 6
RATE = Fraction(24)
SAID = {"ltxkit": {"prompt": 'Ünïcode ☃ "<&>" \n', "numbers": [1, 2.5, None]}, "prompt": {"1": {"inputs": {}}}}

LOSSLESS: list[tuple[str, dict[str, Any]]] = [
    ("a.mp4", {"quality": 100}),
    ("a.mp4", {"codec": "hevc", "quality": 100}),
    ("a.webm", {"quality": 100}),
    ("a.mkv", {"codec": "ffv1"}),
    ("a.mkv", {"codec": "vp9", "quality": "100"}),
    ("a.webp", {"quality": 100}),
    ("a/", {}),
    ("a", {"codec": "exr"}),
    ("a/shot_%05d.EXR", {}),
    ("a/###.png", {}),
]
LOSSY: list[tuple[str, dict[str, Any]]] = [
    ("a.mp4", {}),
    ("a.MP4", {"codec": "h265"}),
    ("a.mp4", {"codec": "av1"}),
    ("a.mp4", {"codec": "vp9"}),
    ("a.webm", {}),
    ("a.webm", {"codec": "av1", "quality": "crf20"}),
    ("a.mkv", {}),
    ("a.mkv", {"codec": "prores"}),
    ("a.mov", {}),
    ("a.mov", {"quality": 96}),
    ("a.mov", {"codec": "hevc", "sound_codec": "alac"}),
    ("a.gif", {}),
    ("a.webp", {}),
]


@pytest.fixture(autouse=True)
def quiet_av1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "0")


def clip(height: int = 66, width: int = 97) -> torch.Tensor:
    """A moving gradient of 8 bits: smooth, so that 4:2:0 keeps it, and with few enough colours for a GIF."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width)[None].expand(height, width)
    frames = [torch.stack([x, 0.5 + 0.3 * x, 0.4 * y + 0.05 * i], -1) for i in range(FRAMES)]
    return (torch.stack(frames) * 255).round() / 255


def sound() -> media.Sound:
    """Samples of 24 bits, which floats and FLAC hold exactly."""
    whole = torch.randint(-(2**23), 2**23, (2, 20_000), generator=torch.Generator().manual_seed(0))
    return media.Sound(whole.float() / 2**23, 48_000)


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(-10 * torch.log10(((one - other) ** 2).mean().clamp(min=1e-12)))


def written(tmp_path: Path, name: str, form: dict[str, Any], frames: torch.Tensor) -> tuple[outputs.Output, list[str]]:
    """The frames under a name, in two pieces, with sound and metadata; and what was said."""
    said: list[str] = []
    output = check_output(f"{tmp_path}/{name}", size=PixelShape(*frames.shape[:3]), **form)
    pieces = frames.split([2, len(frames) - 2])
    media.write_clip(output, pieces, fps=RATE, sound=sound(), metadata=SAID, notes=said.append)
    assert [path.name for path in tmp_path.iterdir()] == [output.path.name]  # nothing temporary is left
    return output, said


@pytest.mark.parametrize(("name", "form"), LOSSLESS)
def test_lossless_formats_give_the_same_frames_of_any_size(tmp_path: Path, name: str, form: dict[str, Any]) -> None:
    frames = clip()
    output, said = written(tmp_path, name, form, frames)
    assert output.is_exact
    back = media.read_video(output.path, notes=lambda _: None)
    assert torch.equal((back.frames * 255).round(), (frames * 255).round())
    assert media.read_metadata(output.path).items() >= SAID.items()
    assert bool(said) == (output.sound_codec is None)


@pytest.mark.parametrize(("name", "form"), LOSSY)
def test_other_formats_give_frames_that_look_the_same(tmp_path: Path, name: str, form: dict[str, Any]) -> None:
    frames = clip()
    output, said = written(tmp_path, name, form, frames)
    back = media.read_video(output.path, notes=lambda _: None)
    height, width = back.frames.shape[1:3]
    assert len(back.frames) == FRAMES
    assert (height - 66, width - 97) in ((0, 0), (0, 1))  # as asked, or the next even number, and that is said
    assert any("98x66" in each for each in said) == (width == 98)
    assert psnr(back.frames[:, :66, :97], frames) >= 38
    assert media.read_metadata(output.path).items() >= SAID.items()


@pytest.mark.parametrize(("name", "form"), [*LOSSLESS, *LOSSY])
def test_the_sound_is_kept_and_sample_for_sample_where_its_codec_is_lossless(
    tmp_path: Path, name: str, form: dict[str, Any]
) -> None:
    output, _ = written(tmp_path, name, form, clip(64, 64))  # the least that SVT-AV1 of av 14.2 takes
    back = media.read_sound(output.path)
    if output.sound_codec is None:
        assert back is None
        return
    assert back is not None
    assert back.waveform.shape == (2, 12_000)  # a quarter of a second, as the frames
    if output.sound_codec in outputs.LOSSLESS_SOUND:
        assert torch.equal(back.waveform, sound().waveform[:, :12_000])


@pytest.mark.parametrize(
    ("name", "container", "codec", "layout"),
    [
        ("a.mp4", "mov", "h264", "yuv420p"),
        ("a.mov", "mov", "prores", "yuv422p10le"),
        ("a.webm", "matroska", "vp9", "yuv420p"),
        ("a.mkv", "matroska", "h264", "yuv420p"),
    ],
)
def test_players_find_what_the_suffix_promises(
    tmp_path: Path, name: str, container: str, codec: str, layout: str
) -> None:
    output, _ = written(tmp_path, name, {}, clip(32, 48))
    with av.open(str(output.path)) as file:
        stream = file.streams.video[0]
        assert container in file.format.name
        assert (stream.codec_context.name, stream.codec_context.format.name) == (codec, layout)
        assert stream.average_rate == 24
        assert int(stream.codec_context.colorspace) == 1  # BT.709


def test_pillow_plays_animations_at_the_rate_asked_for(tmp_path: Path) -> None:
    for name in ("a.gif", "a.webp"):
        output = check_output(tmp_path / name)
        media.write_clip(output, [clip(16, 24)], fps=RATE)
        times: list[float] = []
        with Image.open(output.path) as file:
            assert (file.n_frames, file.size, file.info["loop"]) == (FRAMES, (24, 16), 0)
            for number in range(FRAMES):
                file.seek(number)
                file.load()
                times.append(file.info["duration"])
        assert abs(sum(times) - 1000 * FRAMES / 24) <= 5  # no error of rounding adds up


def test_exr_holds_half_floats_of_linear_light(tmp_path: Path) -> None:
    """Read by our own few lines, independently of FFmpeg: the header, and by OpenEXR where it is installed."""
    frame = clip(33, 17)[0]
    path = tmp_path / "a.exr"
    path.write_bytes(encode_exr(frame, {"ltxkit": "x" * 70_000}))
    data = path.read_bytes()
    assert struct.unpack_from("<i", data) == (20000630,)
    for name in ("R", "G", "B"):
        kind = data.index(f"{name}\0".encode(), data.index(b"chlist\0")) + 2
        assert struct.unpack_from("<i", data, kind) == (1,)  # HALF
    openexr = pytest.importorskip("OpenEXR")
    file = openexr.File(str(path))
    assert file.header()["ltxkit"] == "x" * 70_000
    linear = torch.from_numpy(file.channels()["RGB"].pixels.astype("float32"))
    expected = torch.where(frame <= 0.04045, frame / 12.92, ((frame + 0.055) / 1.055) ** 2.4)
    assert torch.allclose(linear, expected, atol=2**-11)


def test_one_frame_is_a_picture_where_the_name_is_one(tmp_path: Path) -> None:
    for name in ("a.png", "a.exr"):
        output = check_output(tmp_path / name, size=PixelShape(1, 66, 97))
        media.write_clip(output, [clip()[:1]], fps=RATE, metadata=SAID)
        assert torch.equal((media.read_image(tmp_path / name) * 255).round(), (clip()[:1] * 255).round())
        assert media.read_metadata(tmp_path / name).items() >= SAID.items()
        with pytest.raises(ConfigError, match=rf"one picture, for a clip.*write .*a/%04d.{name[-3:]}, or ask for one"):
            check_output(tmp_path / name, size=PixelShape(2, 66, 97))


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".mov", ".gif", ".webp", "/"])
def test_without_metadata_nothing_of_it_is_in_the_file(tmp_path: Path, suffix: str) -> None:
    output = check_output(f"{tmp_path}/a{suffix}")
    media.write_clip(output, [clip(16, 16)], fps=RATE)
    assert "ltxkit" not in media.read_metadata(output.path)


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("name", "form", "sentence"),
    [
        (
            "a.avi",
            {},
            "expected a name that ends in .mp4, .webm, .mkv, .mov, .gif or .webp, or a folder",
        ),
        ("a", {}, "expected a name that ends in .*for pictures, .*a/ or"),
        ("a.mp4", {"codec": "h266"}, "got codec 'h266'; expected one of h264, hevc, av1, vp9, prores"),
        ("a.webm", {"codec": "h264"}, "got the codec h264 for a.webm; expected vp9 or av1 in WebM"),
        ("a.mov", {"codec": "av1"}, "expected prores, h264 or hevc in QuickTime"),
        ("a.mp4", {"quality": 101}, "got quality 101; expected 0 to 100, or a number of the codec's own scale"),
        ("a.mp4", {"quality": "high"}, "got quality 'high'; expected 0 to 100"),
        ("a.mp4", {"quality": True}, "got quality True; expected 0 to 100"),
        ("a.mp4", {"quality": float("nan")}, "got quality nan; expected 0 to 100"),
        ("a.mp4", {"quality": "crf52"}, "got quality 'crf52' for h264; expected crf0 to crf51"),
        ("a.gif", {"quality": "crf18"}, "it has no CRF"),
        ("a.mp4", {"sound_codec": "pcm"}, "got the sound codec pcm for a.mp4; expected aac, flac or opus"),
        ("a.gif", {"sound_codec": "aac"}, "expected none: it has no sound"),
        ("a/", {"codec": "h264"}, "got the codec h264 for the output .*, a folder of pictures; expected png or exr"),
        ("a/%04d.png", {"codec": "exr"}, "got the codec exr .*; expected png"),
        ("a/%04d_left.png", {}, "with the number at the end of the name"),
        ("", {}, "expected the name of a file or folder"),
        ("a.mkv", {"codec": "hevc", "size": PixelShape(1, 1, 1)}, "got frames of 1x1 pixels for hevc, which does not"),
        ("a.webp", {"size": PixelShape(1, 16384, 8)}, "has at most 16383 pixels a side"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    tmp_path: Path, name: str, form: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(LTXKitError, match=sentence):
        check_output(f"{tmp_path}/{name}" if name else name, **form)
    assert not list(tmp_path.iterdir())


PROFILES = (
    *((None, "apch"), (0, "apco"), (19, "apco"), (20, "apcs"), (40, "apcn"), (70, "apch"), (94, "apch")),
    *((95, "ap4h"), (99, "ap4h"), (100, "ap4x")),
)


@pytest.mark.parametrize(("quality", "tag"), PROFILES)
def test_the_quality_of_prores_is_its_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quality: float | None, tag: str
) -> None:
    """The FFmpeg of av 14.2 knows only those that it takes by itself: others are refused there, never replaced."""
    if outputs._chooses_prores_profiles():
        written(tmp_path, "a.mov", {"quality": quality}, clip(32, 48))
        with av.open(str(tmp_path / "a.mov")) as container:
            assert container.streams.video[0].codec_context.codec_tag == tag
        (tmp_path / "a.mov").unlink()
    monkeypatch.setattr(outputs, "_chooses_prores_profiles", lambda: False)
    if tag in ("apch", "ap4h"):
        written(tmp_path, "b.mov", {"quality": quality}, clip(32, 48))
        with av.open(str(tmp_path / "b.mov")) as container:
            assert container.streams.video[0].codec_context.codec_tag == tag
    else:
        with pytest.raises(UnsupportedError, match="cannot choose the profile of ProRes; expected 70 to 99"):
            check_output(tmp_path / "b.mov", quality=quality)


def test_an_encoder_that_this_pyav_lacks_is_refused_with_those_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = outputs.Encoder.is_available.fget
    assert there is not None
    lacks = property(lambda self: self.name not in ("libx265", "libx264rgb") and there(self))
    monkeypatch.setattr(outputs.Encoder, "is_available", lacks)
    with pytest.raises(UnsupportedError, match=r"got the codec hevc, .* no encoder; expected h264, av1 or"):
        check_output(tmp_path / "a.mp4", codec="hevc")
    with pytest.raises(UnsupportedError, match="lacks libx264rgb; expected less than 100"):
        check_output(tmp_path / "a.mp4", quality=100)


def test_every_codec_of_every_format_exists() -> None:
    for form in (*FORMATS.values(), outputs.FOLDER):
        assert set(form.codecs) <= set(CODECS)
        assert set(form.sounds) <= set(outputs.SOUND_CODECS)


def test_a_folder_with_other_things_in_it_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    output = check_output(folder)  # an empty one will do
    media.write_clip(output, [clip(16, 16)], fps=RATE, sound=sound())
    media.write_clip(check_output(folder), [clip(16, 16)[:2]], fps=RATE)  # and one of pictures
    assert sorted(path.name for path in folder.iterdir()) == ["0001.png", "0002.png"]
    with pytest.raises(ConfigError, match="which exists; expected a new name"):
        check_output(folder, overwrite=False)
    (folder / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"has other things in it \('notes.txt'\)"):
        check_output(folder)


@pytest.mark.parametrize(("name", "form"), [("a.mov", {}), ("a.gif", {}), ("a/", {}), ("a", {"codec": "exr"})])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, name: str, form: dict[str, Any]) -> None:
    def pieces() -> Any:
        yield clip(16, 16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        media.write_clip(check_output(f"{tmp_path}/{name}", **form), pieces(), fps=RATE, sound=sound())
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ metadata of strangers


def test_metadata_of_strangers_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mkv"
    deep = "[" * 5000 + "]" * 5000
    media.write_clip(check_output(path), [clip(16, 16)], fps=RATE, metadata={"ltxkit": {"a": 1}})
    with av.open(str(path)) as file, av.open(str(tmp_path / "b.mkv"), "w") as copy:
        stream = copy.add_stream_from_template(file.streams.video[0])
        copy.metadata["ltxkit"], copy.metadata["other"] = deep, "no JSON"
        for packet in file.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    found = media.read_metadata(tmp_path / "b.mkv")
    assert (found["ltxkit"], found["other"]) == (deep, "no JSON")  # as text: not nested values
    monkeypatch.setattr("ltxkit.ltx_core.media.tags.MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match="whose metadata has more than 1000 characters"):
        media.read_metadata(tmp_path / "b.mkv")


def test_a_damaged_exr_header_is_refused(tmp_path: Path) -> None:
    data = encode_exr(clip(16, 16)[0], {"ltxkit": '{"a": 1}'})
    for length in (4, 9, 60, 200):
        (tmp_path / "a.exr").write_bytes(data[:length])
        with pytest.raises(ConfigError, match="header is damaged"):
            media.read_metadata(tmp_path / "a.exr")


def test_the_check_needs_no_torch() -> None:
    import subprocess

    code = (
        "import sys; from ltxkit.ltx_core.outputs import check_output\n"
        "check_output('a.mp4', codec='hevc'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0

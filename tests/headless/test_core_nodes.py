"""The stand-ins for ComfyUI's loading nodes: what they give is what the nodes of core 0.33 give."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ltxkit.headless.core_nodes import (
    CreateVideo,
    GetVideoComponents,
    LoadImage,
    LoadImageMask,
    LoadLatent,
    LoadVideo,
    SaveVideo,
)
from ltxkit.headless.encoding import Clip, Encoding, write_clip
from ltxkit.headless.host import PlainHost
from ltxkit.headless.runner import Runner, all_nodes
from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import CheckpointError, ConfigError, UnsupportedError
from ltxkit.nodes.host import use_host

RGBA = np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def inputs(tmp_path: Path, notes: list[str]) -> Iterator[Path]:
    """The input folder of a process that runs graphs."""
    (tmp_path / "in").mkdir()
    with use_host(PlainHost(tmp_path, tmp_path / "in", tmp_path / "out", notes=notes.append)):
        yield tmp_path / "in"


def clip(path: Path, times: list[int] | None = None) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 24)
        for number, time in enumerate(times or range(6)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 20 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 24)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def test_colours_of_transparent_pixels_stay_and_the_mask_is_their_transparency(inputs: Path) -> None:
    Image.fromarray(RGBA).save(inputs / "a.png")
    image, mask = LoadImage().load_image("a.png")
    assert torch.equal(image, torch.from_numpy(RGBA[None, ..., :3]) / 255)
    assert torch.equal(mask, 1 - torch.from_numpy(RGBA[None, ..., 3]) / 255)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "I;16"])
def test_an_opaque_picture_has_an_empty_mask(inputs: Path, mode: str) -> None:
    picture = Image.fromarray(RGBA[..., :3])
    deep = Image.fromarray(RGBA[..., 0].astype(np.uint16) * 257)
    (deep if mode == "I;16" else picture.convert(mode)).save(inputs / "a.png")
    image, mask = LoadImage().load_image("a.png")
    shown = RGBA[..., :1] if mode == "I;16" else np.array(picture.convert(mode).convert("RGB"))
    expected = (torch.from_numpy(shown) / 255).expand(20, 30, 3)
    assert torch.equal(image[0], expected) if mode in ("RGB", "P") else torch.allclose(image[0], expected, atol=4e-3)
    assert torch.equal(mask, torch.zeros(1, 20, 30) if mode == "P" else torch.zeros(1, 64, 64))


def test_a_palette_with_a_transparent_colour(inputs: Path) -> None:
    palette = Image.fromarray(RGBA[..., :3]).quantize(16)
    palette.save(inputs / "a.png", transparency=3)
    image, mask = LoadImage().load_image("a.png")
    assert torch.equal(image[0], torch.from_numpy(np.array(palette.convert("RGB"))) / 255)
    assert torch.equal(mask[0], torch.from_numpy(np.asarray(palette) == 3).float())


def test_an_animation_is_a_batch(inputs: Path) -> None:
    pictures = [Image.new("RGBA", (8, 8), (shade, 0, 0, 255 - shade)) for shade in (0, 100, 200)]
    pictures[0].save(inputs / "a.webp", save_all=True, append_images=pictures[1:], duration=40, lossless=True)
    image, mask = LoadImage().load_image("a.webp")
    assert image.shape == (3, 8, 8, 3)
    assert (image[:, 0, 0, 0] * 255).round().tolist() == [0, 100, 200]
    assert (mask[:, 0, 0] * 255).round().tolist() == [0, 100, 200]


@pytest.mark.parametrize(("channel", "index"), [("red", 0), ("green", 1), ("blue", 2), ("alpha", 3)])
def test_a_channel_is_a_mask(inputs: Path, channel: str, index: int) -> None:
    Image.fromarray(RGBA).save(inputs / "a.png")
    values = torch.from_numpy(RGBA[None, ..., index]) / 255
    (mask,) = LoadImageMask().load_image_mask("a.png", channel)
    assert torch.equal(mask, 1 - values if channel == "alpha" else values)
    assert LoadImageMask.IS_CHANGED("a.png", channel) == LoadImage.IS_CHANGED("a.png")


def test_a_clip_has_each_stored_frame_once_at_its_average_rate(inputs: Path) -> None:
    clip(inputs / "a.mp4", times=[0, 1, 2, 6, 7, 8])
    (video,) = LoadVideo().load("a.mp4")
    images, sound, fps, depth, space = GetVideoComponents().split(video)
    assert images.shape == (6, 32, 48, 3)
    assert (images.mean((1, 2, 3)) * 255 / 20).round().tolist() == [0, 1, 2, 3, 4, 5]
    with av.open(str(inputs / "a.mp4")) as file:
        assert fps == float(file.streams.video[0].average_rate)
    assert (sound, depth, space) == (None, 8, "sRGB")


@pytest.mark.parametrize("name", ["a.webp", "a.gif", "a.ts"])
def test_other_clips_are_saved_again(inputs: Path, tmp_path: Path, name: str) -> None:
    if name == "a.ts":
        clip(inputs / name)
    else:
        pictures = [Image.new("RGB", (48, 32), (20 * number,) * 3) for number in range(6)]
        pictures[0].save(inputs / name, save_all=True, append_images=pictures[1:], duration=40)
    SaveVideo().save(LoadVideo().load(name)[0], "clip", {"format": "auto"})
    saved = media.read_video(tmp_path / "out" / "clip_00001_.mp4")
    assert (saved.frames.mean((1, 2, 3)) * 255 / 20).round().tolist() == [0, 1, 2, 3, 4, 5]
    assert saved.fps == (24 if name == "a.ts" else 25)


@pytest.mark.parametrize(("rate", "channels"), [(44100, 1), (48000, 2), (48000, 6)])
def test_the_sound_of_a_clip_is_an_audio_and_is_saved_again(
    inputs: Path, tmp_path: Path, rate: int, channels: int
) -> None:
    tone = (torch.arange(rate // 4) * 0.2).sin().mul(2**14).round() / 2**15
    sound = media.Sound(tone.expand(channels, -1), rate)  # a quarter of a second: six frames
    media.write_video(inputs / "a.mp4", [torch.zeros(6, 32, 48, 3)], fps=Fraction(24), sound=sound, sound_codec="flac")
    (video,) = LoadVideo().load("a.mp4")
    images, audio, fps, *_ = GetVideoComponents().split(video)
    assert audio is not None
    assert set(audio) == {"waveform", "sample_rate"}
    assert audio["sample_rate"] == rate
    assert torch.equal(audio["waveform"], sound.waveform[None])
    same, longer, shorter = images, images.repeat(2, 1, 1, 1), images[:3]
    for number, frames in enumerate((same, longer, shorter), 1):
        SaveVideo().save(CreateVideo().create(frames, fps, audio)[0], "clip", {"format": "auto"})
        saved = media.read_sound(tmp_path / "out" / f"clip_0000{number}_.mp4")
        assert saved is not None
        assert (saved.rate, saved.channels) == (rate, channels)
        assert abs(saved.waveform.shape[1] - len(frames) / 24 * rate) < 1
        inside = saved.waveform[:1, 1000 : min(len(frames), 6) * rate // 24 - 1000]
        assert (inside - sound.waveform[:1, 1000 : 1000 + inside.shape[1]]).abs().max() < 0.05
    SaveVideo().save(video, "clip", {"format": "auto"})  # read from its file and written, without a node in between
    saved = media.read_sound(tmp_path / "out" / "clip_00004_.mp4")
    assert saved is not None
    assert saved.waveform.shape[1] == rate // 4


def test_a_clip_without_sound_is_saved_without_a_track(inputs: Path, tmp_path: Path) -> None:
    clip(inputs / "a.mp4")
    images, audio, fps, *_ = GetVideoComponents().split(LoadVideo().load("a.mp4")[0])
    assert audio is None
    empty: Any = {"waveform": torch.zeros(1, 2, 0), "sample_rate": 48000}
    for number, none in enumerate((None, audio, empty), 1):
        SaveVideo().save(CreateVideo().create(images, fps, none)[0], "clip", {"format": "auto"})
        assert media.read_sound(tmp_path / "out" / f"clip_0000{number}_.mp4") is None


def graph(loader: dict[str, Any]) -> dict[str, Any]:
    second = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    return {"1": {**loader, "_meta": {"title": "My picture"}}, "2": second}


@pytest.mark.parametrize("content", [b"text", b"", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_a_broken_picture_is_named_with_file_and_node(inputs: Path, tmp_path: Path, content: bytes) -> None:
    (inputs / "bad.png").write_bytes(content)
    host = PlainHost(tmp_path, inputs, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"My picture.*bad\.png, which .*; expected "):
        Runner(host, all_nodes()).run(graph({"class_type": "LoadImage", "inputs": {"image": "bad.png"}}))


def test_what_is_changed_in_a_picture_is_said_at_its_node(inputs: Path, tmp_path: Path, notes: list[str]) -> None:
    Image.fromarray(np.linspace(0, 9, 64, dtype=np.float32).reshape(8, 8)).save(inputs / "depth.tif")
    host = PlainHost(tmp_path, inputs, tmp_path / "out", notes=notes.append)
    Runner(host, all_nodes()).run(graph({"class_type": "LoadImage", "inputs": {"image": "depth.tif"}}))
    assert "My picture" in notes[0]
    assert "has values from 0 to 9, which are spread over black to white" in notes[0]


def test_grey_of_sixteen_bits_is_the_same_to_the_last_bit(inputs: Path) -> None:
    """For the library as for a graph: in bfloat16 a last bit makes another clip."""
    every = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(every).save(inputs / "grey.png")
    shown = LoadImage().load_image("grey.png")[0]
    assert torch.equal(shown, media.read_image(inputs / "grey.png"))
    assert shown.unique().numel() == 2**16
    assert (shown.min(), shown.max()) == (0, 1)


def test_a_file_that_is_no_latent_is_named(inputs: Path) -> None:
    (inputs / "bad.latent").write_bytes(b"text")
    with pytest.raises(CheckpointError, match=r"bad\.latent, which is not a latent"):
        LoadLatent().load("bad.latent")


@pytest.mark.parametrize(
    ("dtype", "size"), [("C64", 8), ("F4", 0.5), ("F6_E2M3", 0.75), ("F8_E8M0", 1), ("BOOL", 1), ("U8", 1), ("I64", 8)]
)
def test_a_latent_of_no_numbers_with_a_fraction_is_named(inputs: Path, dtype: str, size: float) -> None:
    """Each would have been read as some numbers, or ended in an error of torch."""
    entry = {"dtype": dtype, "shape": [1, 16, 2, 2, 2], "data_offsets": [0, int(128 * size)]}
    header = json.dumps({"latent_tensor": entry}).encode()
    (inputs / "odd.latent").write_bytes(len(header).to_bytes(8, "little") + header + bytes(int(128 * size)))
    with pytest.raises(CheckpointError, match=r"odd\.latent, which is not a latent"):
        LoadLatent().load("odd.latent")


# ------------------------------------------------------------------------------------------------ formats


def stored(path: Path) -> dict[str, Any]:
    with av.open(str(path)) as file:
        video = file.streams.video[0]
        context: Any = video.codec_context
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video)]
        return {
            "container": file.format.name.split(",")[0],
            "codec": video.codec.canonical_name,
            "layout": context.pix_fmt,
            "colours": (context.color_primaries, int(context.color_trc), int(context.colorspace)),
            "frames": np.stack(frames).astype(np.float32),
            "sound": [(track.codec.canonical_name, track.rate) for track in file.streams.audio],
            "prompt": {key.lower(): value for key, value in file.metadata.items()}.get("prompt"),
        }


SDR, HLG, PQ = (1, 13, 1), (9, 18, 9), (9, 16, 9)  # as core marks them


@pytest.mark.parametrize(
    ("format", "codec", "settings", "made"),
    [
        ("auto", "auto", None, ("mov", "h264", "yuv420p", SDR)),
        ("mp4", "h264", {"crf": 30.0, "color_space": "auto"}, ("mov", "h264", "yuv420p", SDR)),
        ("mp4", "av1", None, ("mov", "av1", "yuv420p", SDR)),
        ("mkv", "auto", None, ("matroska", "h264", "yuv420p", SDR)),
        ("mkv", "h264", {"crf": 20.0, "color_space": "HDR"}, ("matroska", "h264", "yuv420p10le", HLG)),
        ("webm", "auto", None, ("matroska", "av1", "yuv420p", SDR)),
        ("webm", "av1", {"crf": 40.0, "color_space": "HDR PQ"}, ("matroska", "av1", "yuv420p10le", PQ)),
    ],
)
def test_a_clip_is_saved_in_every_format_of_the_core(
    inputs: Path, tmp_path: Path, format: str, codec: str, settings: dict[str, Any] | None, made: tuple[Any, ...]
) -> None:
    frames = torch.linspace(0, 1, 96)[None, None, :, None].expand(3, 64, 96, 3).contiguous()
    audio: Any = {"waveform": torch.zeros(1, 2, 6000), "sample_rate": 44100}
    (video,) = CreateVideo().create(frames, 24.0, audio)
    chosen: dict[str, Any] = {"codec": codec}
    if settings:
        chosen["encoding"] = {"encoding": "re-encode", **settings}
    said = SaveVideo().save(video, "clip", {"format": format, "codec": chosen}, prompt={"1": {}})
    assert said["result"] == (video,)
    suffix = "mp4" if format == "auto" else format
    assert said["ui"]["images"][0]["filename"] == f"clip_00001_.{suffix}"
    file = stored(tmp_path / f"out/clip_00001_.{suffix}")
    assert (file["container"], file["codec"], file["layout"], file["colours"]) == made
    assert np.abs(file["frames"] / 255 - frames.numpy()).mean() < 0.03
    assert file["sound"] == [("opus", 48000) if format == "webm" else ("aac", 44100)]
    assert file["prompt"] == '{"1": {}}'


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system does not tell how threads are scheduled")
def test_av1_leaves_the_scheduling_of_threads_alone(tmp_path: Path) -> None:
    """As root, SVT-AV1 would put this process and its children under SCHED_FIFO at priority 99."""
    before, seen = os.sched_getscheduler(0), set[int]()

    def pieces() -> Iterator[torch.Tensor]:
        for _ in range(3):
            yield torch.rand(2, 64, 64, 3)
            seen.update(os.sched_getscheduler(int(thread.name)) for thread in Path("/proc/self/task").iterdir())

    write_clip(tmp_path / "clip.webm", Clip(pieces(), Fraction(24)), Encoding("webm", "av1"), {})
    assert seen == {before}
    assert os.sched_getscheduler(0) == before


def test_ten_bits_keep_what_eight_lose(inputs: Path, tmp_path: Path) -> None:
    frames = torch.linspace(0.5, 0.52, 96)[None, None, :, None].expand(2, 64, 96, 3).contiguous()
    for number, depth in enumerate((8, 10), 1):
        (video,) = CreateVideo().create(frames, 24.0, None, depth)
        assert GetVideoComponents().split(video)[3:] == (depth, "sRGB")
        best = {"codec": "h264", "encoding": {"encoding": "re-encode", "crf": 1.0, "color_space": "sRGB"}}
        SaveVideo().save(video, "clip", {"format": "mkv", "codec": best})
        (again,) = LoadVideo().load(f"clip_0000{number}_.mkv [output]")
        images, _, _, found, space = GetVideoComponents().split(again)
        assert (found, space) == (depth, "sRGB")
        assert len(images[0, 32, :, 0].unique()) > (12 if depth == 10 else 3)


def test_a_clip_from_a_file_is_stored_as_it_is_unless_something_else_is_asked_for(inputs: Path, tmp_path: Path) -> None:
    clip(inputs / "a.mp4")
    (video,) = LoadVideo().load("a.mp4")
    before = stored(inputs / "a.mp4")["frames"]
    SaveVideo().save(video, "clip", {"format": "auto", "codec": {"codec": "auto"}}, prompt={"1": {}})
    SaveVideo().save(video, "clip", {"format": "mp4", "codec": {"codec": "h264"}})
    for number in (1, 2):
        assert np.array_equal(stored(tmp_path / f"out/clip_0000{number}_.mp4")["frames"], before)
    assert stored(tmp_path / "out/clip_00001_.mp4")["prompt"] == '{"1": {}}'
    SaveVideo().save(video, "clip", {"format": "mkv", "codec": {"codec": "auto"}})
    assert stored(tmp_path / "out/clip_00003_.mkv")["codec"] == "h264"


def test_a_size_that_the_codec_does_not_take_is_one_sentence(inputs: Path) -> None:
    (video,) = CreateVideo().create(torch.zeros(2, 32, 48, 3), 24.0)
    with pytest.raises(UnsupportedError, match="got frames of 48x32 pixels for the codec av1"):
        SaveVideo().save(video, "clip", {"format": "webm"})


def test_older_prompts_name_the_codec_beside_the_format(inputs: Path, tmp_path: Path) -> None:
    Image.fromarray(RGBA[..., :3]).save(inputs / "a.png")
    graph: dict[str, Any] = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 24}},
        "3": {"class_type": "SaveVideo", "inputs": {"video": ["2", 0], "filename_prefix": "x"}},
    }
    for number, names in enumerate(
        ({"format": "mp4", "codec": "h264"}, {"format": "auto", "format.codec": "auto", "codec": "auto"}), 1
    ):
        graph["3"]["inputs"] |= names
        Runner(PlainHost(tmp_path, inputs, tmp_path / "out"), all_nodes()).run(graph)
        assert stored(tmp_path / f"out/x_0000{number}_.mp4")["codec"] == "h264"


# ------------------------------------------------------------------------------------------------ values


def test_nodes_that_hold_or_show_a_value(inputs: Path, tmp_path: Path, notes: list[str]) -> None:
    graph: dict[str, Any] = {}
    values = {"Int": 7, "Float": 0.5, "String": "a", "StringMultiline": "a\nb", "Boolean": True}
    for name, value in values.items():
        graph[name] = {"class_type": f"Primitive{name}", "inputs": {"value": value}}
        graph[f"show {name}"] = {"class_type": "PreviewAny", "inputs": {"source": [name, 0]}}
    host = PlainHost(tmp_path, inputs, tmp_path / "out", notes=notes.append)
    shown = Runner(host, all_nodes()).run(graph).ui
    assert [shown[f"show {name}"]["text"] for name in values] == [("7",), ("0.5",), ("a",), ("a\nb",), ("True",)]
    assert [note.rpartition(": ")[2] for note in notes] == ["7", "0.5", "a", "a\nb", "True"]


def test_a_picture_is_saved_as_core_cuts_it(inputs: Path, tmp_path: Path) -> None:
    from ltxkit.headless.core_nodes import SaveImage

    images = torch.tensor([0.9999, 0.5, 1.5, -1.0]).reshape(1, 1, 4, 1).expand(1, 1, 4, 3)
    SaveImage().save_images(images, "x")
    assert np.array(Image.open(tmp_path / "out/x_00001_.png"))[0, :, 0].tolist() == [254, 127, 255, 0]


@pytest.mark.parametrize(("index", "length", "kept"), [(0, 2, [0, 1]), (-2, 5, [3, 4]), (9, 1, [4]), (-9, 1, [0])])
def test_a_picture_of_a_batch_is_counted_from_either_end(index: int, length: int, kept: list[int]) -> None:
    from ltxkit.headless.core_nodes import ImageFromBatch

    images = torch.arange(5.0).reshape(5, 1, 1, 1)
    assert ImageFromBatch().frombatch(images, index, length)[0].flatten().tolist() == kept

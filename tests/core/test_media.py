"""Pictures and clips: reading gives what was written, and no partial file is ever visible."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import ConfigError, ShapeError

FILM = Fraction(24000, 1001)


def ramp(frames: int, height: int, width: int) -> torch.Tensor:
    """Red rises to the right, green downwards, blue with time, which distinguishes every frame and direction."""
    red = torch.linspace(0, 1, width).expand(frames, height, width)
    green = torch.linspace(0, 1, height)[:, None].expand(frames, height, width)
    blue = torch.arange(frames)[:, None, None].expand(frames, height, width) / 20
    return torch.stack([red, green, blue], -1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    media.write_video(path, [ramp(20, 64, 96)], fps=FILM)
    return path


# ------------------------------------------------------------------------------------------------------------ video


def test_video_round_trip_keeps_size_rate_colours_and_count(clip: Path) -> None:
    back = media.read_video(clip)
    assert back.fps == FILM
    assert back.frames.shape == (20, 64, 96, 3)
    assert (back.frames - ramp(20, 64, 96)).abs().mean() < 0.01


def test_chunks_of_any_length_make_the_same_file(clip: Path, tmp_path: Path) -> None:
    frames = ramp(20, 64, 96)
    written = media.write_video(tmp_path / "b.mp4", (part for part in frames.split([1, 8, 8, 3])), fps=FILM)
    assert tuple(written) == (20, 64, 96)
    assert (tmp_path / "b.mp4").read_bytes() == clip.read_bytes()


@pytest.mark.parametrize("width", [96, 256, 336])
def test_the_same_frames_make_the_same_file_whatever_was_in_memory(tmp_path: Path, width: int) -> None:
    """Memory that is freed between the runs holds other bytes, which an encoder might read by mistake."""
    files = set()
    for run in range(8):
        waste = [torch.full((size,), 0.37 * run) for size in (1_000, 10_000, 100_000, 400_000)]
        del waste
        media.write_video(tmp_path / "clip.mp4", [ramp(20, 64, width)], fps=FILM)
        files.add((tmp_path / "clip.mp4").read_bytes())
    assert len(files) == 1


def test_colours_are_tagged_with_the_matrix_they_were_made_with(clip: Path) -> None:
    with av.open(str(clip)) as container:
        frame = next(container.decode(video=0))
        assert (frame.format.name, frame.colorspace, frame.color_range) == ("yuv420p", 1, 1)  # BT.709, studio range


@pytest.mark.parametrize("colour", [(0.9, 0.1, 0.1), (0.1, 0.9, 0.1), (0.1, 0.1, 0.9), (0.5, 0.5, 0.5)])
def test_saturated_colours_come_back(tmp_path: Path, colour: tuple[float, float, float]) -> None:
    """If writing and reading used different matrices, green would be off by 0.1."""
    frames = torch.tensor(colour).expand(2, 32, 32, 3)
    media.write_video(tmp_path / "c.mp4", [frames], fps=Fraction(24))
    assert (media.read_video(tmp_path / "c.mp4").frames - frames).abs().max() < 0.02


def test_odd_sizes_repeat_the_last_row_and_column(tmp_path: Path) -> None:
    frames = ramp(2, 33, 47)
    assert tuple(media.write_video(tmp_path / "odd.mp4", [frames], fps=Fraction(25))) == (2, 34, 48)
    back = media.read_video(tmp_path / "odd.mp4").frames
    assert back.shape == (2, 34, 48, 3)
    assert (back[:, :33, :47] - frames).abs().mean() < 0.015  # colour has half the resolution


def test_metadata_is_json_under_its_own_key(tmp_path: Path) -> None:
    tags = {"prompt": {"3": {"class_type": "LTXKitSample", "text": "naïve 日本"}}, "workflow": [1, 2], "ltxkit": "text"}
    media.write_video(tmp_path / "m.mp4", [ramp(1, 16, 16)], fps=Fraction(24), metadata=tags)
    assert tags.items() <= media.read_metadata(tmp_path / "m.mp4").items()
    with av.open(str(tmp_path / "m.mp4")) as container:  # as ComfyUI reads it back
        assert json.loads(container.metadata["prompt"]) == tags["prompt"]


def test_reading_starts_and_stops_where_asked(clip: Path) -> None:
    part = media.read_video(clip, start=3, limit=4).frames
    assert torch.equal(part, media.read_video(clip).frames[3:7])
    with pytest.raises(ConfigError, match="no frame number 20"):
        media.read_video(clip, start=20)


def test_a_long_clip_is_not_read_beyond_the_limit(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = media.stream_video(clip)
    next(frames)
    frames.close()
    assert len(list(media.stream_video(clip, limit=2))) == 2


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (FILM / 2, range(0, 20, 2)),
        (FILM, range(20)),
        (Fraction(24), range(20)),  # off by a thousandth: such a short clip must not lose or repeat a frame
        (FILM * 2, [i // 2 for i in range(40)]),
    ],
)
def test_resampling_takes_the_nearest_frame(clip: Path, fps: Fraction, expected: range | list[int]) -> None:
    back = media.read_video(clip, fps=fps)
    assert back.fps == fps
    shown = (back.frames[:, 32, 48, 2] * 20).round().int().tolist()
    if fps == FILM * 2:  # ties may go either way
        assert len(shown) == 40
        assert all(abs(a - b) <= 1 for a, b in zip(shown, expected, strict=True))
    else:
        assert shown == list(expected)


def test_a_clip_filmed_upright_is_turned(clip: Path, tmp_path: Path) -> None:
    """A phone stores the sensor's picture and a matrix; the test patches a quarter turn clockwise into the header."""
    one = 1 << 16
    identity = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    data = clip.read_bytes()
    track = data.index(b"tkhd")
    at = data.index(identity, track)
    (tmp_path / "phone.mp4").write_bytes(data[:at] + clockwise + data[at + len(identity) :])
    with av.open(str(tmp_path / "phone.mp4")) as container:
        if not hasattr(next(container.decode(video=0)), "rotation"):
            pytest.skip("this av does not tell the rotation")
    turned = media.read_video(tmp_path / "phone.mp4", limit=1).frames
    assert turned.shape == (1, 96, 64, 3)
    assert torch.equal(turned, media.read_video(clip, limit=1).frames.rot90(-1, (1, 2)))


def test_no_frames_and_mixed_sizes_are_refused_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="got no frames"):
        media.write_video(tmp_path / "x.mp4", [], fps=Fraction(24))
    with pytest.raises(ShapeError, match="after frames of 16x16"):
        media.write_video(tmp_path / "x.mp4", [ramp(2, 16, 16), ramp(1, 16, 32)], fps=Fraction(24))
    with pytest.raises(ConfigError, match="positive rate"):
        media.write_video(tmp_path / "x.mp4", [ramp(2, 16, 16)], fps=Fraction(0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no video" * 100, None], ids=["empty", "text", "missing"])
def test_a_file_that_is_no_video_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.mp4, which cannot be read"):
        media.read_video(path)


# -------------------------------------------------------------------------------------------------------- atomicity


class Stop(BaseException):
    """The exception with which a host stops a run; KeyboardInterrupt is another."""


@pytest.mark.parametrize("old", [None, b"an older clip"])
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, ValueError])
def test_an_interrupt_leaves_no_file_and_no_change(
    tmp_path: Path, error: type[BaseException], old: bytes | None
) -> None:
    path = tmp_path / "out.mp4"
    if old:
        path.write_bytes(old)

    def chunks():
        yield ramp(20, 64, 96)
        raise error

    with pytest.raises(error):
        media.write_video(path, chunks(), fps=FILM)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({"out.mp4": old} if old else {})
    media.write_video(path, [ramp(2, 64, 96)], fps=FILM)  # the next run works
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


FULL_DISK = """
import resource, signal, sys, torch
from fractions import Fraction
from pathlib import Path
from ltxkit.ltx_core import media
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
chunks = [torch.rand(8, 64, 64, 3, generator=torch.Generator().manual_seed(i)) for i in range(8)]
for room in sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), resource.RLIM_INFINITY))
    try:
        media.write_video(Path(sys.argv[1]), chunks, fps=Fraction(24))
    except OSError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits the file size as POSIX can")
def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "out" / "full.mp4"
    command = [sys.executable, "-c", FULL_DISK, path, "100", "30000", "150000"]  # header, body, end
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, check=True)
    messages = run.stdout.splitlines()
    assert len(messages) == 3
    for message in messages:
        assert f"cannot write {path}" in message
        assert "nothing is left of it" in message
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot write .*out\.png"):
        media.write_image(tmp_path / "file" / "out.png", torch.zeros(1, 4, 4, 3))


# ----------------------------------------------------------------------------------------------------------- images


def test_image_round_trip_is_exact_and_carries_metadata(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (1, 5, 7, 3), generator=torch.Generator().manual_seed(0)) / 255
    media.write_image(tmp_path / "a.png", image, {"prompt": {"1": 2}})
    assert torch.equal(media.read_image(tmp_path / "a.png"), image)
    assert json.loads(Image.open(tmp_path / "a.png").info["prompt"]) == {"1": 2}


def test_alpha_is_over_black_and_grey_repeated(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (4, 6, 4), np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    notes: list[str] = []
    over_black = rgba[..., :3] / 255 * (rgba[..., 3:] / 255)
    assert torch.allclose(
        media.read_image(tmp_path / "rgba.png", notes.append)[0], torch.from_numpy(over_black).float()
    )
    assert notes == [f"{tmp_path / 'rgba.png'} is transparent in parts, which are shown on black."]
    Image.fromarray(rgba[..., 0]).save(tmp_path / "grey.png")
    grey = media.read_image(tmp_path / "grey.png")
    assert grey.shape == (1, 4, 6, 3)
    assert np.array_equal(grey[0, ..., 2].numpy() * 255, rgba[..., 0].astype(np.float32))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8, 0] = 255  # left half red as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is on the right side of the stored picture: turn clockwise
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    image = media.read_image(tmp_path / "phone.png")
    assert image.shape == (1, 16, 8, 3)
    assert torch.equal(image[0], torch.from_numpy(pixels).rot90(-1, (0, 1)) / 255)


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(ConfigError, match=r"a\.png, which is not a picture"):
        media.read_image(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"missing\.png, which cannot be read \(No such file"):
        media.read_image(tmp_path / "missing.png")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.full((1, 4, 4, 3), 200.0), "values from 200 to 200; expected 0 to 1; divide bytes by 255"),
        (torch.full((1, 4, 4, 3), 200), "divide bytes by 255"),
        (torch.full((2, 4, 4, 3), torch.nan), "NaN or infinity; expected 0 to 1"),
        (torch.rand(3, 4, 4, 3).index_put((torch.tensor(2), torch.tensor(3)), torch.tensor(torch.nan)), "NaN"),
        (torch.rand(3, 4, 4, 3).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(torch.nan)), "NaN"),
        (torch.full((1, 4, 4, 3), torch.inf), "infinity"),
        (torch.full((1, 4, 4, 3), -torch.inf), "infinity"),
        (torch.linspace(-1, 1, 48).view(1, 4, 4, 3), r"take \(frames \+ 1\) / 2"),
    ],
)
def test_values_of_another_range_are_refused(frames: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        media.rgb_frames(frames)


def test_bytes_are_divided_and_rounding_is_clipped() -> None:
    stored = torch.arange(48, dtype=torch.uint8).view(1, 4, 4, 3) * 5
    assert torch.equal(media.rgb_frames(stored), stored / 255)
    overshot = torch.tensor([-0.1, 0.5, 1.2]).expand(2, 4, 4, 3)
    assert torch.equal(media.rgb_frames(overshot), overshot.clamp(0, 1))
    assert torch.equal(media.rgb_frames(overshot[..., 1:2]), torch.full((2, 4, 4, 3), 0.5))


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (8, 8, 3), (1, 8, 8, 2), (1, 0, 8, 3)])
def test_empty_batches_and_strange_channels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected \\(frames, height, width, channels\\)"):
        media.rgb_frames(torch.zeros(shape))


def test_gif_plays_every_frame_for_ever(tmp_path: Path) -> None:
    media.write_gif(tmp_path / "a.gif", ramp(5, 16, 24), Fraction(25))
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"], gif.info["loop"]) == (5, (24, 16), 40, 0)


def test_contact_sheet_shows_frames_row_by_row() -> None:
    frames = torch.stack([torch.full((90, 160, 3), i / 10) for i in range(5)])
    sheet = media.contact_sheet(frames, columns=3, cell=(90, 160))
    assert sheet.shape == (1, 2 * 94 - 4, 3 * 164 - 4, 3)
    for i in range(5):
        assert torch.allclose(sheet[0, i // 3 * 94 + 45, i % 3 * 164 + 80], torch.tensor(i / 10))
    assert sheet[0, 140, 480].max() == 0  # the empty sixth cell


# ----------------------------------------------------------------------------------------------- resize and compress


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(64, 96), (40, 100), (100, 40), (33, 31)])
def test_resize_policies(size: tuple[int, int], kernel: media.ResizeKernel) -> None:
    h, w = size
    frames = ramp(2, 64, 96)
    policies = ("crop", "pad", "fit", "stretch")
    cropped, padded, fitted, stretched = (media.resize(frames, h, w, policy, kernel=kernel) for policy in policies)
    assert {resized.shape for resized in (cropped, padded, fitted, stretched)} == {(2, h, w, 3)}
    # Both show the whole picture in the middle: one on grey, one with its edges extended.
    scale = min(h / 64, w / 96)
    inner_h, inner_w = round(64 * scale), round(96 * scale)
    top, left = (h - inner_h) // 2, (w - inner_w) // 2
    whole = media.resize(frames, inner_h, inner_w, "stretch", kernel=kernel)
    for resized in (padded, fitted):
        assert torch.equal(resized[:, top : top + inner_h, left : left + inner_w], whole)
    if top:
        assert (padded[:, 0] == 0.5).all()
    assert torch.equal(fitted[:, :, left : left + inner_w][:, 0], whole[:, 0])
    assert torch.equal(fitted[:, :, left : left + inner_w][:, -1], whole[:, -1])
    assert torch.equal(fitted[:, top : top + inner_h][:, :, 0], whole[:, :, 0])
    assert torch.equal(fitted[:, top : top + inner_h][:, :, -1], whole[:, :, -1])
    # A crop keeps the middle and the scale; a stretch keeps the corners.
    assert (cropped[0, h // 2, w // 2, :2] - 0.5).abs().max() < 0.03
    cover = max(h / 64, w / 96)
    assert cropped[0, 0, -1, 0] - cropped[0, 0, 0, 0] == pytest.approx(w / (96 * cover), abs=0.05)
    assert stretched[0, 0, 0, :2].max() < 0.03
    assert stretched[0, -1, -1, :2].min() > 0.97


def test_resize_keeps_what_is_in_the_picture() -> None:
    wide = torch.zeros(1, 10, 40, 3)
    wide[:, :, 20:] = 1.0
    for policy in ("stretch", "crop", "pad", "fit"):
        assert media.resize(wide, 20, 20, policy).shape == (1, 20, 20, 3)
    assert torch.equal(media.resize(wide, 10, 40, "crop"), wide)
    assert media.resize(wide, 20, 20, "pad")[0, 0, 0].tolist() == [0.5] * 3  # mid grey above
    assert media.resize(wide, 20, 20, "fit")[0, 0, [0, -1], 0].tolist() == [0.0, 1.0]  # the edge is extended
    cropped = media.resize(wide, 20, 20, "crop")[0, :, :, 0]
    assert cropped[:, :9].max() == 0
    assert cropped[:, 11:].min() == 1


def test_resize_equals_the_official_bilinear() -> None:
    frames = torch.rand(2, 50, 70, 3, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.interpolate(
        frames.movedim(-1, 1), size=(64, 96), mode="bilinear", align_corners=False
    )
    assert torch.equal(media.resize(frames, 64, 96, "stretch"), expected.movedim(1, -1))


def test_stretch_equals_pillow() -> None:
    pixels = np.random.default_rng(1).integers(80, 176, (40, 60, 3), np.uint8)  # Pillow clips between its two passes
    ours = media.resize(torch.from_numpy(pixels)[None] / 255, 24, 32, "stretch", kernel="bicubic")[0] * 255
    theirs = np.asarray(Image.fromarray(pixels).resize((32, 24), Image.Resampling.BICUBIC), np.float32)
    assert np.abs(ours.numpy() - theirs).max() <= 1.5


def official_compress(image: np.ndarray, crf: int, folder: Path) -> np.ndarray:
    """The official steps, with Pillow-free arithmetic: blur by hand, then a file on disk through the same codec."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    weight = np.exp(-0.5 * np.array([-1.0, 0.0, 1.0]) ** 2)
    weight /= weight.sum()
    h, w, _ = image.shape
    blurred = sum(weight[i] * weight[j] * padded[i : i + h, j : j + w] for i in range(3) for j in range(3))
    path = folder / "frame.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = w, h, "yuv420p"
        pixels = (blurred.astype(np.float32) * 255).astype(np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


@pytest.mark.parametrize("crf", [1, 29, 45])
def test_compress_equals_the_official_steps(tmp_path: Path, crf: int) -> None:
    frames = torch.rand(2, 48, 64, 3, generator=torch.Generator().manual_seed(3)) * 0.3 + ramp(2, 48, 64) * 0.7
    ours = media.compress(frames, crf)
    for frame, result in zip(frames, ours, strict=True):
        expected = official_compress(frame.numpy(), crf, tmp_path)
        assert np.abs((result * 255).round().numpy() - expected).max() <= 2


def test_compress_edges() -> None:
    frames = ramp(1, 33, 47)
    assert media.compress(frames, 0) is frames
    assert media.compress(frames, 29).shape == frames.shape
    weak, strong = (float((media.compress(frames, crf) - frames).abs().mean()) for crf in (10, 45))
    assert weak < strong
    with pytest.raises(ConfigError, match="got crf 64"):
        media.compress(frames, 64)


@pytest.mark.parametrize(("height", "width"), [(1, 64), (64, 1), (1, 1), (2, 3)])
def test_a_line_of_pixels_is_compressed_too(height: int, width: int) -> None:
    grey = torch.full((1, height, width, 3), 0.5)
    assert (media.compress(grey, 10) - grey).abs().max() < 0.02


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (80, 48), (63, 100)])
def test_a_crop_comes_first_in_the_pictures_own_pixels(height: int, width: int):
    """As in inference.py of Lightricks/LTX-Video before blur and compression: every position stays in place.

    The picture is a ramp of column (row) numbers: after cropping and resizing, every pixel shows the centre of its
    source cell, up to the rounding of a crop to whole pixels.
    """
    h, w = 90, 130
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    ramp = torch.stack([columns / w, rows / h, columns * 0], dim=-1).float()[None]
    shown = media.resize(ramp, height, width, "crop")[0]
    aspect = width / height
    crop_h, crop_w = (h, int(h * aspect)) if w / h > aspect else (int(w / aspect), w)
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    for size, crop, start, whole, values in (
        (width, crop_w, left, w, shown[height // 2, :, 0]),
        (height, crop_h, top, h, shown[:, width // 2, 1]),
    ):
        centres = (torch.arange(size) + 0.5) * crop / size - 0.5 + start
        inside = slice(2, -2)  # bilinear clamps at the borders
        assert (values[inside] * whole - centres[inside]).abs().max() < 1e-3


def test_an_unknown_policy_is_refused_by_name():
    with pytest.raises(ConfigError, match="got resize policy 'squash'; expected one of crop, pad, fit, stretch"):
        media.resize(torch.zeros(1, 4, 4, 3), 2, 2, "squash")  # type: ignore[arg-type]

"""Every kind of picture looks as a viewer shows it, or is named in one sentence."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import ConfigError

HEIGHT, WIDTH = 40, 60
RAMP = np.linspace(0, 1, WIDTH)[None].repeat(HEIGHT, 0)
COLOURS = np.stack([RAMP, np.linspace(0, 1, HEIGHT)[:, None].repeat(WIDTH, 1), np.full((HEIGHT, WIDTH), 0.3)], -1)
BYTES = (COLOURS * 255).round().astype(np.uint8)
GREY = RAMP[..., None].repeat(3, -1)


def differs(path: Path, expected: np.ndarray, notes: list[str] | None = None) -> float:
    """By how much a picture differs from the values that it should show, at the most."""
    seen = media.read_image(path, (notes if notes is not None else []).append)[0].numpy()
    assert seen.shape == expected.shape
    assert seen.dtype == np.float32
    return float(np.abs(seen - expected).max())


def png(path: Path, samples: np.ndarray, colour_type: int) -> None:
    """A PNG of 16 bits, which Pillow does not write in colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.tobytes() for row in (samples * 65535).round().astype(">u2"))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, colour_type, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def sixteen(order: str) -> Callable[[Path], None]:
    stored = (RAMP * 65535).round().astype(f"{order}u2")
    mode = "I;16B" if order == ">" else "I;16"
    return lambda path: Image.frombytes(mode, (WIDTH, HEIGHT), stored.tobytes()).save(path)


DEEP: dict[str, Callable[[Path], None]] = {
    "little.tif": sixteen("<"),
    "big.tif": sixteen(">"),
    "grey.png": sixteen("<"),
    "float.tif": lambda path: Image.fromarray(RAMP.astype(np.float32)).save(path),
    "bytes-in-float.tif": lambda path: Image.fromarray((RAMP * 255).round().astype(np.float32)).save(path),
    "bytes-in-int.tif": lambda path: Image.fromarray((RAMP * 255).round().astype(np.int32)).save(path),
    "metres.tif": lambda path: Image.fromarray((RAMP * 7.3 + 0.5).astype(np.float32)).save(path),
    "millions.tif": lambda path: Image.fromarray((RAMP * 1e6).astype(np.int32)).save(path),
    "below-zero.tif": lambda path: Image.fromarray((RAMP * 2 - 1).astype(np.float32)).save(path),
    "12-bit.pgm": lambda path: path.write_bytes(
        b"P5 %d %d 4095\n" % (WIDTH, HEIGHT) + (RAMP * 4095).round().astype(">u2").tobytes()
    ),
    "float.pfm": lambda path: path.write_bytes(
        b"Pf\n%d %d\n-1.0\n" % (WIDTH, HEIGHT) + RAMP.astype("<f4")[::-1].tobytes()
    ),
}


def skip_unless_pillow_reads(path: Path) -> None:
    """Pillow 9.5, the oldest that we take, has no PFM, and does not read the YCbCr that it writes."""
    try:
        Image.open(path).load()
    except OSError as error:
        pytest.skip(f"this Pillow does not read it: {error}")


@pytest.mark.parametrize("name", DEEP)
def test_grey_of_many_bits_and_floats_have_their_own_range(tmp_path: Path, name: str) -> None:
    DEEP[name](tmp_path / name)
    if name == "float.pfm":
        skip_unless_pillow_reads(tmp_path / name)
    assert differs(tmp_path / name, GREY) < 0.003


def test_a_spread_range_and_values_that_are_no_numbers_are_said(tmp_path: Path) -> None:
    depth = (RAMP * 8).astype(np.float32)
    depth[0, 0], depth[1, 1] = np.inf, np.nan
    Image.fromarray(depth).save(tmp_path / "depth.tif")
    notes: list[str] = []
    seen = media.read_image(tmp_path / "depth.tif", notes.append)[0]
    assert (float(seen[0, 0, 0]), float(seen[1, 1, 0])) == (1.0, 0.0)
    assert [note.partition("depth.tif ")[2] for note in notes] == [
        "has values that are not finite: they are shown as its least and greatest.",
        "has values from 0 to 8, which are spread over black to white.",
    ]


def test_constant_floats_are_no_division_by_zero(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 7.5, np.float32)).save(tmp_path / "flat.tif")
    assert media.read_image(tmp_path / "flat.tif").isfinite().all()


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4), (4, 2)], ids=["rgb", "rgba", "grey and alpha"])
def test_sixteen_bits_of_colour(tmp_path: Path, colour_type: int, channels: int) -> None:
    colours = COLOURS if channels > 2 else RAMP[..., None]
    opacity = [np.full((HEIGHT, WIDTH, 1), 0.5)] if channels in (2, 4) else []
    png(tmp_path / "deep.png", np.concatenate([colours, *opacity], -1), colour_type)
    shown = (COLOURS if channels > 2 else GREY) * (0.5 if opacity else 1)
    assert differs(tmp_path / "deep.png", shown) < 0.006  # Pillow keeps the upper 8 bits


SAME: dict[str, Callable[[Path], None]] = {
    "cmyk.tif": lambda path: Image.fromarray(BYTES).convert("CMYK").save(path),
    "cmyk.jpg": lambda path: Image.fromarray(BYTES).convert("CMYK").save(path, quality=100, subsampling=0),
    "ycbcr.tif": lambda path: Image.fromarray(BYTES).convert("YCbCr").save(path),
    "bmp.bmp": lambda path: Image.fromarray(BYTES).save(path),
    "webp.webp": lambda path: Image.fromarray(BYTES).save(path, lossless=True),
    "opaque.png": lambda path: Image.fromarray(BYTES).convert("RGBA").save(path),
    "srgb.png": lambda path: Image.fromarray(BYTES).save(path, icc_profile=profile()),
    "broken-profile.png": lambda path: Image.fromarray(BYTES).save(path, icc_profile=b"no profile"),
    "rgb-profile-on-cmyk.tif": lambda path: Image.fromarray(BYTES).convert("CMYK").save(path, icc_profile=wide()),
    "dpx.dpx": lambda path: ffmpeg(path, "dpx", BYTES, "rgb24"),
}


def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def wide() -> bytes:
    """sRGB's profile with red and green exchanged, and another name: which no viewer can overlook."""
    content = bytearray(profile().replace(b"sRGB", b"GRBs").replace(b"s\0R\0G\0B", b"G\0R\0B\0s"))
    content = bytearray(bytes(content).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")))
    at = {bytes(content[i : i + 4]): i for i in range(132, 132 + 12 * struct.unpack(">I", content[128:132])[0], 12)}
    red, green = at[b"rXYZ"], at[b"gXYZ"]
    content[red : red + 4], content[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(content)


def ffmpeg(path: Path, codec: str, pixels: np.ndarray, layout: str) -> None:
    """A picture in a format that Pillow does not know."""
    context = av.CodecContext.create(codec, "w")
    context.height, context.width = pixels.shape[:2]
    context.pix_fmt, context.time_base = layout, Fraction(1, 24)
    if layout == "gbrpf32le":  # `from_ndarray` mixes up the planes before PyAV 16
        frame = av.VideoFrame(context.width, context.height, layout)
        for plane, channel in zip(frame.planes, (1, 2, 0), strict=True):
            rows = np.zeros((context.height, plane.line_size // 4), np.float32)
            rows[:, : context.width] = pixels[..., channel]
            plane.update(rows.tobytes())
    else:
        frame = av.VideoFrame.from_ndarray(pixels, format=layout)
    frame.pts = 0
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))


@pytest.mark.parametrize("name", SAME)
def test_other_kinds_of_colour_are_srgb(tmp_path: Path, name: str) -> None:
    SAME[name](tmp_path / name)
    if name == "ycbcr.tif":
        skip_unless_pillow_reads(tmp_path / name)
    assert differs(tmp_path / name, BYTES / 255) < (0.06 if "jpg" in name else 0.015)


def test_lab_is_srgb_as_lcms_converts_it(tmp_path: Path) -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    stored = ImageCms.profileToProfile(Image.fromarray(BYTES), srgb, lab, outputMode="LAB")
    shown = ImageCms.profileToProfile(stored, lab, srgb, outputMode="RGB")
    stored.save(tmp_path / "lab.tif")
    assert differs(tmp_path / "lab.tif", np.asarray(shown) / 255) < 0.015


def test_an_icc_profile_decides_the_colours(tmp_path: Path) -> None:
    Image.fromarray(BYTES).save(tmp_path / "swapped.png", icc_profile=wide())
    assert differs(tmp_path / "swapped.png", BYTES[..., [1, 0, 2]] / 255) < 0.02
    rgba = np.dstack([BYTES, np.full((HEIGHT, WIDTH), 128, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "half.png", icc_profile=wide())
    assert differs(tmp_path / "half.png", BYTES[..., [1, 0, 2]] / 255 * (128 / 255)) < 0.02


def test_linear_light_becomes_srgb(tmp_path: Path) -> None:
    light = COLOURS.astype(np.float32)
    ffmpeg(tmp_path / "light.exr", "exr", light * 1.5, "gbrpf32le")
    bright = np.clip(light * 1.5, 0, 1)
    srgb = np.where(bright <= 0.0031308, bright * 12.92, 1.055 * bright ** (1 / 2.4) - 0.055)
    notes: list[str] = []
    assert differs(tmp_path / "light.exr", srgb, notes) < 0.002
    assert "linear light" in notes[0]
    ffmpeg(tmp_path / "depth.exr", "exr", (RAMP * 30).astype(np.float32), "grayf32le")
    assert differs(tmp_path / "depth.exr", GREY) < 0.002


def test_palettes_and_bilevel(tmp_path: Path) -> None:
    palette = Image.fromarray(BYTES).quantize(32)
    expected = np.asarray(palette.convert("RGB")) / 255
    palette.save(tmp_path / "p.png")
    palette.save(tmp_path / "p.gif")
    assert differs(tmp_path / "p.png", expected) == differs(tmp_path / "p.gif", expected) < 1e-6
    hidden = palette.getpixel((0, 0))
    palette.save(tmp_path / "hidden.png", transparency=hidden)
    expected[np.asarray(palette) == hidden] = 0
    assert differs(tmp_path / "hidden.png", expected) < 1e-6
    bilevel = Image.fromarray(BYTES).convert("1")
    bilevel.save(tmp_path / "one.png")
    assert differs(tmp_path / "one.png", np.asarray(bilevel.convert("RGB")) / 255) < 1e-6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["deep.png", "photo.webp"])
def test_every_exif_orientation(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    deep = name == "deep.png"
    stored = (RAMP * 65535).astype(np.uint16) if deep else BYTES
    options = {} if deep else {"lossless": True}
    Image.fromarray(stored).save(tmp_path / name, exif=exif, **options)
    values = (GREY if deep else BYTES / 255).transpose(1, 0, 2) if orientation > 4 else GREY if deep else BYTES / 255
    flips = {1: (), 2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}[orientation]
    assert differs(tmp_path / name, np.flip(values, flips)) < 0.003


def test_damaged_exif_is_no_reason_to_refuse(tmp_path: Path) -> None:
    Image.fromarray(BYTES).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert differs(tmp_path / "a.png", BYTES / 255) < 1e-6


@pytest.mark.slow
def test_a_picture_beyond_the_limit_is_one_sentence(tmp_path: Path) -> None:
    Image.new("1", (16000, 11500)).save(tmp_path / "scan.png")
    with pytest.raises(ConfigError, match=r"scan\.png, which is too large \(Image size \(184000000 pixels\)"):
        media.read_image(tmp_path / "scan.png")


def test_half_the_limit_is_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    Image.fromarray(BYTES).save(tmp_path / "a.png")
    assert differs(tmp_path / "a.png", BYTES / 255) < 1e-6
    assert not recwarn.list


FAULTS: dict[str, Callable[[Path], object]] = {
    "cut.png": lambda path: path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2]),
    "text.png": lambda path: path.write_bytes(b"text"),
    "empty.png": lambda path: path.write_bytes(b""),
    "drawing.eps": lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "movie.png": lambda path: path.write_bytes(b"\0\0\1\xba" + bytes(100)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_picture_is_named(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / name, format="PNG")
    FAULTS[name](tmp_path / name)
    with pytest.raises(ConfigError, match=rf"{name}.*; expected .*; "):
        media.read_image(tmp_path / name)


@pytest.mark.slow
def test_any_byte_may_be_damaged(tmp_path: Path) -> None:
    """One hundred mutations of each format: a picture, or one ConfigError that names the file."""
    rng = np.random.default_rng(0)
    palette = Image.fromarray(BYTES).quantize(16)
    for name in ("a.png", "a.gif", "a.tif", "a.bmp", "a.jpg", "a.webp", "a.ico", "a.tga", "a.qoi", "a.ppm", "a.dds"):
        whole = tmp_path / name
        (palette if name == "a.gif" else Image.fromarray(BYTES)).save(whole)
        content, messages = whole.read_bytes(), []
        for _ in range(100):
            damaged = bytearray(content)
            for at in rng.integers(0, min(len(damaged), 400), 3):
                damaged[at] = rng.integers(256)
            whole.write_bytes(damaged)
            try:
                seen = media.read_image(whole)
            except ConfigError as error:
                messages.append(str(error))
            else:
                assert seen.shape[-1] == 3
        assert all(name in message for message in messages)


def test_of_an_animation_the_first_picture_is_taken_and_that_is_said(tmp_path: Path) -> None:
    Image.fromarray(BYTES).save(
        tmp_path / "a.webp", save_all=True, append_images=[Image.fromarray(BYTES[::-1])], lossless=True
    )
    notes: list[str] = []
    assert differs(tmp_path / "a.webp", BYTES / 255, notes) < 1e-6
    assert notes == [f"{tmp_path / 'a.webp'} is animated: the first of its 2 pictures is taken."]


def test_transparency_is_a_layer_where_there_is_a_place_for_it(tmp_path: Path) -> None:
    rgba = np.dstack([BYTES, (RAMP * 255).astype(np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    picture = media.read_picture(tmp_path / "a.png")
    assert picture.alpha is not None
    assert torch.equal(picture.pixels, torch.from_numpy(BYTES) / 255)
    assert torch.equal(picture.alpha, torch.from_numpy(rgba[..., 3]) / 255)
    Image.fromarray(BYTES).save(tmp_path / "b.png")
    assert media.read_picture(tmp_path / "b.png").alpha is None

"""Pictures, clips and sound."""

from __future__ import annotations

import contextlib
import wave
from fractions import Fraction
from pathlib import Path

import mutate
import numpy as np
import torch
from target import QUIET, Target


def _pictures(folder: Path) -> list[Path]:
    from PIL import Image

    from ltxkit.ltx_core.media.exr import encode_exr

    pixels = np.linspace(0, 255, 24 * 16 * 3).astype(np.uint8).reshape(24, 16, 3)
    rgb, grey = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    exif = rgb.getexif()
    exif[0x0112] = 6
    rgb.save(folder / "a.png")
    rgb.save(folder / "b.jpg", exif=exif)
    rgb.save(folder / "c.webp")
    rgb.save(folder / "d.webp", save_all=True, append_images=[rgb.rotate(90, expand=False)], duration=100)
    rgb.save(folder / "e.gif", save_all=True, append_images=[rgb.rotate(180)], duration=50)
    rgb.save(folder / "f.png", save_all=True, append_images=[rgb.rotate(180)], duration=50)
    rgb.save(folder / "g.bmp")
    grey.save(folder / "h.tiff", compression="tiff_lzw")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(folder / "i.png")
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(folder / "j.tiff")
    rgb.convert("P").save(folder / "k.png", transparency=3)
    rgb.convert("CMYK").save(folder / "l.jpg")
    for name, options in (("m.avif", {}), ("n.jp2", {}), ("o.tga", {}), ("p.ico", {}), ("q.ppm", {}), ("r.dds", {})):
        try:
            rgb.resize((16, 16)).save(folder / name, **options)
        except (KeyError, OSError, ValueError):  # a Pillow without this writer
            (folder / name).unlink(missing_ok=True)
    (folder / "s.exr").write_bytes(encode_exr(torch.from_numpy(pixels).float() / 255, {"ltxkit": '{"seed": 1}'}))
    return sorted(folder.iterdir())


def _picture(path: Path) -> object:
    from ltxkit.ltx_core.errors import LTXKitError
    from ltxkit.ltx_core.media import as_frames, is_animated, read_image, read_metadata, read_pictures

    with contextlib.suppress(LTXKitError):
        read_metadata(path)
    is_animated(path)
    if _is_huge(
        path
    ):  # it is shown: what it takes is in proportion to the pixels, of which Pillow's limit admits 179 M
        return None
    read_image(path, QUIET)
    list(read_pictures(path, QUIET))
    return as_frames(path, limit=3, notes=QUIET)


def _is_huge(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return 10_000_000 < picture.width * picture.height < 178_956_970
    except Exception:
        return False


def _clips(folder: Path) -> list[Path]:
    import av

    from ltxkit.ltx_core.media import Sound, write_video

    frames = torch.rand(5, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    sound = Sound(torch.sin(torch.arange(8000) / 20)[None].repeat(2, 1), 16000)
    write_video(folder / "a.mp4", [frames], fps=Fraction(10), sound=sound, metadata={"ltxkit_settings": {"seed": 3}})
    for name, codec in (
        ("b.webm", "libvpx-vp9"),
        ("c.mkv", "ffv1"),
        ("d.avi", "mpeg4"),
        ("e.mov", "mjpeg"),
        ("f.ts", "mpeg2video"),
        ("g.mp4", "libx264"),
    ):
        try:
            with av.open(str(folder / name), "w") as container:
                stream = container.add_stream(codec, rate=25 if name == "f.ts" else 10)
                stream.width, stream.height = 48, 32
                stream.pix_fmt = {"mjpeg": "yuvj420p"}.get(codec, "yuv420p")
                for frame in frames:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray((frame * 255).byte().numpy())))
                container.mux(stream.encode())
        except (av.error.FFmpegError, ValueError):  # a PyAV without this encoder
            (folder / name).unlink(missing_ok=True)
    with wave.open(str(folder / "h.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(4000))
    return sorted(folder.iterdir())


def _clip(path: Path) -> object:
    from ltxkit.ltx_core.errors import LTXKitError
    from ltxkit.ltx_core.media import read_metadata, read_sound, read_video, stream_video, video_fps

    for other in (read_metadata, video_fps, read_sound):
        with contextlib.suppress(LTXKitError):
            other(path)
    list(stream_video(path, notes=QUIET))
    return read_video(path, limit=4, notes=QUIET)


def _sounds(folder: Path) -> list[Path]:
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (16, 16)).save(folder / f"frame_{number:03}.png")
    from ltxkit.ltx_core.media.sound import SOUND_FILE, Sound, write_sound

    write_sound(folder / SOUND_FILE, Sound(torch.sin(torch.arange(4000) / 20)[None], 8000), "pcm")
    return [folder / SOUND_FILE]


def _sound(path: Path) -> object:
    from ltxkit.ltx_core.media import read_sound

    return read_sound(path.parent, notes=QUIET)


TARGETS = {
    "pictures": Target(_pictures, _picture, mutate.media),
    "clips": Target(_clips, _clip, mutate.media, heavy=True),
    "sounds": Target(_sounds, _sound, mutate.media),
}

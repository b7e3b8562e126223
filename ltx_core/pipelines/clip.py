"""A finished clip: its latent, what it was made with, and a decoder for its frames."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import media, outputs
from ..budget.tiling import Tiling
from ..errors import CheckpointError, ConfigError
from ..files import PICTURES, check_output, whole
from ..models.sharing import Sharing
from ..models.video_vae import VideoVAE
from ..outputs import Output
from ..placing.devices import clear_of_memory
from ..placing.placement import DevicePlacement, SpareMemory, host_on
from ..progress import Progress, doubt, log_note, silent
from ..shapes import PixelShape
from ..values import check_frame_rate, check_kind
from ..weights.build import open_models
from .bar import Shown, progress_shown
from .cancel import Runs
from .condition import crop_chunks
from .decode import decode_frames
from .decode_together import decode_together
from .hints import CLIP, wrong_name
from .overlap import used_beside
from .settings import Decoding

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

SHEET_FRAMES = 8
_SHOWN_SIDE, _SHOWN_FRAMES = 384, 64  # of a clip in a notebook

Decoder = Callable[[Tensor, Progress], Iterator[Tensor]]
"""(latent (1 c f h w), progress) -> frames (f h w 3) float32 in [0, 1] on the CPU, a few at a time."""


@dataclass(frozen=True)
class VAEFile:
    """Where the VAE of a clip was read. version: a released one that the user named; dtype: None for the stored one."""

    path: Path
    version: str | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True, eq=False)
class ClipDecoder:
    """Decodes the clips of one run.

    asked: the size of the result. resized: whether decoded frames are resized to it, as after two passes; they are
    cropped otherwise. runs: of the models, so that decoding can be cancelled. sharing: the processes that made the clip
    together. together: whether all of them decode it together, see `Clip.together`.
    """

    vae: VideoVAE
    decoding: Decoding
    asked: PixelShape
    seed: int
    placement: SpareMemory
    tiling: Tiling | None = None
    resized: bool = False
    runs: Runs | None = None
    sharing: Sharing | None = None
    together: bool = False

    @property
    def follows(self) -> bool:
        """Whether the frames go to another process."""
        return self.together and self.sharing is not None and self.sharing.rank > 0

    def __call__(self, latent: Tensor, progress: Progress, dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
        """dtype: uint8 for a file of eight bits; frames that are resized stay float32, and are rounded afterwards."""
        dtype = torch.float32 if self.resized else dtype
        with (self.runs or Runs()).watched(progress) as watched:
            host = host_on(self.placement, watched)
            sharing = self.sharing if self.together else None
            decode = decode_frames if sharing is None else partial(decode_together, sharing=sharing)
            frames = decode(self.vae, latent, self.decoding, seed=self.seed, host=host, tiling=self.tiling, dtype=dtype)
            if self.resized:
                frames = (media.resize(chunk, self.asked.height, self.asked.width, "stretch") for chunk in frames)
            yield from crop_chunks(frames, self.asked)


@dataclass(frozen=True, eq=False, repr=False)
class Clip:
    """A clip as a value. It is decoded only when its frames are read, a few at a time, and equally at every call.

    It can be pickled: as its latent, its settings and the name of the VAE's file, without weights. In another process
    it reads the VAE from there, or from where `with_vae` says.

    Args:
        latent: (1 c f h w) float32 on the CPU, normalised.
        size: frames, height and width as requested; frames have exactly this size.
        fps: frames per second.
        settings: everything that the clip was made with, as JSON values, for the metadata of the file.
        decoder: makes frames of the latent. vae_file: where its VAE was read.
    """

    latent: Tensor
    size: PixelShape
    fps: Fraction
    settings: Mapping[str, Any]
    decoder: Decoder
    vae_file: VAEFile | None = None

    def __repr__(self) -> str:
        seconds, prompt = float(self.size.frames / self.fps), str(self.settings.get("prompt") or "")
        short = prompt if len(prompt) <= 40 else f"{prompt[:37]}..."
        size = f"{self.size.frames} frames of {self.size.width}x{self.size.height}"
        return (
            f"<Clip: {size}, {seconds:.3g} s at {float(self.fps):g} fps, {short!r}, seed {self.settings.get('seed')}>"
        )

    def _repr_html_(self) -> str:
        """The clip as an animation, for notebooks."""
        side = max(self.size.height, self.size.width)
        step = -(-self.size.frames // _SHOWN_FRAMES)
        scale = min(_SHOWN_SIDE / side, 1)
        height, width = (max(round(length * scale), 1) for length in (self.size.height, self.size.width))
        pictures: list[Image] = []
        for number, frame in enumerate(self):
            if number % step == 0:
                pictures.append(_image(media.resize(frame[None], height, width, "stretch", kernel="bicubic")[0]))
        file, milliseconds = io.BytesIO(), round(1000 * step / self.fps)
        kind = "webp" if _has_webp() else "gif"
        pictures[0].save(file, kind, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
        data = base64.b64encode(file.getvalue()).decode()
        return (
            f'<img src="data:image/{kind};base64,{data}" width="{width}" height="{height}" alt="clip"/>'
            f"<div>{self.size.frames} frames of {self.size.width}x{self.size.height}, {float(self.fps):g} fps, "
            f"seed {html.escape(str(self.settings.get('seed')))}</div>"
        )

    def __len__(self) -> int:
        """The number of frames."""
        return self.size.frames

    def __iter__(self) -> Iterator[Tensor]:
        """Frames (h w 3) float32 in [0, 1], one by one, as they are decoded."""
        for chunk in self.frames():
            yield from chunk

    def together(self) -> Clip:
        """The same clip, which all processes that made it decode together: every one of them reads or saves it, in
        equal calls, and the first one of the group gets the frames and writes the file. In the others there are no
        frames.

        Raises:
            ConfigError: it was not made by a group of processes, or it was pickled.
        """
        if not isinstance(self.decoder, ClipDecoder) or self.decoder.sharing is None:
            raise ConfigError(
                "got a clip of one process; expected one that a group of processes has made here; load the models with "
                "a group, or decode without together()"
            )
        return replace(self, decoder=replace(self.decoder, together=True))

    @property
    def _follows(self) -> bool:
        """Whether another process gets the frames."""
        return isinstance(self.decoder, ClipDecoder) and self.decoder.follows

    def frames(self, progress: Progress = silent) -> Iterator[Tensor]:
        """Decoded frames (f h w 3) float32 in [0, 1] on the CPU, a few at a time; equal at every call."""
        return self.decoder(self.latent, progress)

    def _pieces(self, progress: Progress, *, in_bytes: bool) -> Iterator[Tensor]:
        """`frames`. in_bytes: as uint8 where the decoder can, a quarter of the memory."""
        if in_bytes and isinstance(self.decoder, ClipDecoder | _Elsewhere):
            return self.decoder(self.latent, progress, torch.uint8)
        return self.frames(progress)

    def to_tensor(self) -> Tensor:
        """All frames, (f h w 3) float32 in [0, 1]."""
        return torch.cat([torch.empty(0, self.size.height, self.size.width, 3), *self.frames()])

    def to_numpy(self) -> np.ndarray:
        """All frames as an array (f h w 3) of uint8."""
        import numpy as np

        none = np.empty((0, self.size.height, self.size.width, 3), np.uint8)  # see `together`
        return np.concatenate([none, *(_bytes(chunk).numpy() for chunk in self._pieces(silent, in_bytes=True))])

    def to_pil(self) -> list[Image]:
        """All frames as Pillow images."""
        return [_image(frame) for frame in self]

    @clear_of_memory("decoding this clip")
    def save(
        self,
        path: Path | str | Output,
        *,
        fps: Fraction | float | None = None,
        contact_sheet: Path | str | None = None,
        sound: media.Sound | Path | str | None = None,
        codec: str | None = None,
        quality: float | str | None = None,
        metadata: bool = True,
        progress: Shown = None,
    ) -> None:
        """Decode into a file or a folder, frame by frame, in the format that its suffix names.

        Args:
            path: ends in .mp4, .webm, .mkv, .mov, .gif or .webp; or a folder of pictures, which is a name with / at its
                end, or that of the pictures, such as frames/%04d.png or .exr. Missing folders are made. Or an `Output`,
                what `outputs.check_output` makes of these.
            fps: frames per second of the file; None: those that the clip was made for.
            contact_sheet: where to save some of the frames as one picture.
            sound: heard from the first frame on, cut to the clip or followed by silence: a `media.Sound`, or the video
                whose sound it is. What a format cannot keep is logged as a warning.
            codec, quality: as `outputs.check_output` has them, such as "hevc" or, with that of the sound, "h264+flac",
                and 90; None: the usual ones of the format.
            metadata: whether the file says what the clip was made with, for `ltxkit generate --like`.
            progress: receives every step; None: a bar where somebody sees it; False: nothing.

        Raises:
            ConfigError: a name, codec or quality that cannot be, or a sound that cannot be read, before anything is
                decoded.
            OSError: the disk is full; no partial file remains.
        """
        is_told = isinstance(path, Output)
        output = (
            path
            if isinstance(path, Output)
            else outputs.check_output(path, codec=codec, quality=quality, size=self.size)
        )
        rate = self.fps if fps is None else as_rate(fps)
        if isinstance(sound, str | Path):
            sound = media.read_sound(Path(sound), seconds=self.size.frames / rate)
        elif sound is not None:
            check_kind("sound", sound, media.Sound)
        if contact_sheet is not None:
            check_output(contact_sheet, PICTURES)
        sheet_numbers = {round(i * (self.size.frames - 1) / (SHEET_FRAMES - 1)) for i in range(SHEET_FRAMES)}
        sheet_frames: list[Tensor] = []
        in_bytes = output.has_bytes and contact_sheet is None  # a sheet is made smaller, and rounded afterwards

        def chunks(report: Progress) -> Iterator[Tensor]:
            count = 0
            for chunk in self._pieces(report, in_bytes=in_bytes):
                sheet_frames.extend(frame for index, frame in enumerate(chunk, count) if index in sheet_numbers)
                count += len(chunk)
                yield chunk

        with progress_shown(progress) as report:
            said = {"ltxkit": self.settings} if metadata else {}
            remarks = _told if is_told else _warn

            def write(frames: Iterator[Tensor]) -> None:
                media.write_clip(output, frames, fps=rate, sound=sound, metadata=said, notes=remarks)

            if self._follows:
                for _ in chunks(report):
                    pass
                return
            used_beside(chunks(report), write)  # the next frames are decoded while these are compressed
        if contact_sheet is not None:
            sheet = media.contact_sheet(torch.stack(sheet_frames))
            media.write_image(Path(contact_sheet), sheet, said)

    def save_latent(self, path: Path | str) -> None:
        """The latent as a safetensors file that ComfyUI's Load Latent reads. Raises as `save` does."""
        from safetensors.torch import save_file

        check_output(path)
        tensors = {"latent_tensor": self.latent.contiguous(), "latent_format_version_0": torch.tensor([])}
        with whole(Path(path)) as temporary:
            save_file(tensors, temporary, {"ltxkit": json.dumps(self.settings)})

    def with_vae(self, path: Path | str) -> Clip:
        """The clip with its VAE read from another place, for a clip that was pickled on another machine.

        path: the file that the clip's `settings` name as "vae", or else as "model".
        """
        known = self.vae_file or VAEFile(Path(path))
        return _unpickled(self.latent, self.size, self.fps, self.settings, replace(known, path=Path(path)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.latent.clone(), self.size, self.fps, dict(self.settings), self.vae_file)

    def __getattr__(self, name: str) -> Any:
        if name in CLIP:
            raise wrong_name("attribute", name, "a clip", CLIP, ())
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _warn(text: str) -> None:
    doubt(text, log_note)


def _told(_: str) -> None:
    """Whoever has the `Output` has said its remarks."""


# --- without the models -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Elsewhere:
    """The decoder of a clip that came without its models: it reads the VAE when it is asked for frames."""

    file: VAEFile | None
    size: PixelShape
    settings: Mapping[str, Any]

    def __call__(self, latent: Tensor, progress: Progress, dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
        settings = self.settings
        decoding = Decoding(
            settings["decode_timestep"], settings["decode_noise_scale"], settings["tone_map_compression_ratio"]
        )
        decoder = ClipDecoder(
            self.vae,
            decoding,
            self.size,
            settings["seed"],
            DevicePlacement(),
            resized=len(settings["passes"]) > 1,
        )
        return decoder(latent, progress, dtype)

    @cached_property
    def vae(self) -> VideoVAE:
        file = self._found()
        return open_models(file.path, version=file.version).vae(dtype=file.dtype)

    def _found(self) -> VAEFile:
        if self.file is not None:
            for path in (self.file.path, Path(self.file.path.name)):
                if path.exists():
                    return replace(self.file, path=path.resolve())
        name = self.settings.get("vae") or self.settings.get("model") if self.file is None else self.file.path
        raise CheckpointError(
            f"got a clip whose VAE is in {name}, which is not here; expected that file; say where it is: "
            "clip.with_vae(path).save(...)"
        )


def _unpickled(
    latent: Tensor, size: PixelShape, fps: Fraction, settings: Mapping[str, Any], file: VAEFile | None
) -> Clip:
    return Clip(latent, size, fps, settings, _Elsewhere(file, size, settings), file)


def as_rate(fps: Fraction | float) -> Fraction:
    """A rate as a fraction. Raises ConfigError: it is no rate."""
    check_frame_rate("fps", fps)
    rate = Fraction(fps).limit_denominator(1001)
    check_frame_rate("fps", rate)  # which the rounding may have made 0
    return rate


# --- pixels -----------------------------------------------------------------------------------------------------------


def _bytes(frames: Tensor) -> Tensor:
    return frames if frames.dtype == torch.uint8 else (frames * 255).round().byte()


def _image(frame: Tensor) -> Image:
    from PIL import Image

    return Image.fromarray(_bytes(frame).numpy())


def _has_webp() -> bool:
    from PIL import features

    return bool(features.check("webp"))

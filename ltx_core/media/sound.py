"""The sound of a clip: read beside its frames, cut or followed by silence to fit others, and written with them.

Samples are never stretched: a clip that is shown at another rate of frames keeps its sound as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, reason_of
from ..outputs import SOUND_FILE
from ..progress import Notes, log_note
from .decoding import decoded_frames, open_video
from .pictures import is_animated, is_still

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream
    from av.audio.resampler import AudioResampler
    from av.container import InputContainer, OutputContainer
    from av.video.stream import VideoStream

SOUND_CODECS = ("aac", "flac")
"""What mp4 takes: AAC plays everywhere; FLAC keeps every sample of 24 bits."""

ENCODERS = {
    "aac": "aac", "flac": "flac", "opus": "libopus", "pcm": "pcm_f32le", "alac": "alac",
}  # fmt: skip
"""FFmpeg's encoders by the names of `outputs.SOUND_CODECS`."""

_LOSSLESS = {"flac": "s32", "alac": "s32p", "pcm_f32le": "flt"}
"""Formats of samples. FLAC and ALAC keep 24 bits of them, PCM all."""

LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""FFmpeg's own layout for a number of channels."""

_BITS_PER_CHANNEL = 128_000  # per second of AAC
_AAC = {"aac_coder": "fast"}
"""FFmpeg's default, `twoloop`, loses what lies between two attacks: 250 samples of a tone that starts at once, at 128
kbit/s. `fast` keeps a tone to 0.6 % of its amplitude there and to 0.2 % elsewhere."""

_JITTER = Fraction(1, 20)  # seconds that the times of packets may be off: rounding, or one packet that is lost
_ROUNDING = Fraction(2, 1000)  # seconds; containers such as Matroska and FLV count in milliseconds
_LONGEST_PAUSE = 600  # seconds; a longer one is damage


@dataclass(frozen=True, eq=False)
class Sound:
    """Sound in memory: waveform (channels, samples) float32, full scale from -1 to 1, and its samples per second."""

    waveform: Tensor
    rate: int

    def __post_init__(self) -> None:
        if self.waveform.ndim != 2 or not self.waveform.shape[0] or self.rate <= 0:
            raise ConfigError(
                f"got sound of shape {tuple(self.waveform.shape)} at {self.rate} samples per second; expected "
                "(channels, samples) at a positive rate; check what makes it"
            )

    @property
    def channels(self) -> int:
        return self.waveform.shape[0]

    def samples_in(self, seconds: Fraction | float) -> int:
        return round(Fraction(seconds) * self.rate)

    def part(self, start: int, stop: int) -> Tensor:
        """The samples `start` to `stop`, (channels, stop - start); silence where the sound has none."""
        length = self.waveform.shape[1]
        first, last = min(max(start, 0), length), min(max(stop, 0), length)
        inside = self.waveform[:, first:last]
        before = min(max(-start, 0), stop - start)
        return F.pad(inside, (before, stop - start - before - inside.shape[1]))

    def lasting(self, seconds: Fraction | float) -> Sound:
        """The sound cut after `seconds`, or followed by silence up to there."""
        return Sound(self.part(0, self.samples_in(seconds)), self.rate)

    def overlaid(self, other: Sound) -> Sound:
        """Both at once, as long as this one, with its rate and channels."""
        matched = other.converted(self.rate, self.channels)
        return Sound(self.waveform + matched.part(0, self.waveform.shape[1]), self.rate)

    def converted(self, rate: int, channels: int) -> Sound:
        """The same sound at another rate of samples, as it sounds through other speakers."""
        if (rate, channels) == (self.rate, self.channels):
            return self
        from av.audio.resampler import AudioResampler

        source = _of_few_channels(self)
        resampler = AudioResampler(format="flt", layout=LAYOUTS[channels], rate=rate)
        frames = [*resampler.resample(_frame(source.waveform, source.rate)), *resampler.resample(None)]
        waveform = torch.cat([_samples(frame) for frame in frames], 1)
        return Sound(waveform, rate).lasting(Fraction(self.waveform.shape[1], self.rate))


def read_sound(path: Path, *, seconds: Fraction | float | None = None, notes: Notes = log_note) -> Sound | None:
    """The sound of a clip from its first frame on; None: it has none, which is no error.

    Of several tracks it is the one that a player plays: the default one, else the first. Pauses in its times are
    silence. seconds: where to stop reading.

    Raises:
        ConfigError: the file is missing, or is not a video.
    """
    path = Path(path)
    if path.is_dir():
        return _sound_beside(path, seconds)
    if is_animated(path) or is_still(path):
        return None

    def say(text: str) -> None:
        notes(f"{path} {text}.")

    with open_video(path) as (container, video):
        track = _heard_stream(container, say)
        if track is None:
            return None
        start, coarse = _start_of(container, video, path)
        index = track.index
    with open_video(path) as (container, _):
        stream: Any = container.streams[index]
        return _read(container, stream, _Clock(start, coarse, seconds), say)


def _sound_beside(folder: Path, seconds: Fraction | float | None) -> Sound | None:
    """The sound that `write_clip` puts beside the pictures of a folder; None: there is none."""
    import av
    from av.error import FFmpegError

    path = folder / SOUND_FILE
    if not path.is_file():
        return None
    try:
        with av.open(str(path), format="wav") as container:
            clock = _Clock(Fraction(0), Fraction(0), seconds)
            return _read(container, container.streams.audio[0], clock, lambda _: None)
    except (FFmpegError, OSError, ValueError, LookupError) as error:
        raise ConfigError(f"got {path}, which cannot be read ({reason_of(error)}); expected WAV; remove it") from error


def _heard_stream(container: InputContainer, say: Notes) -> AudioStream | None:
    from av.stream import Disposition

    tracks = list(container.streams.audio)
    known = [track for track in tracks if _has_decoder(track)]
    if len(known) < len(tracks):
        say("has sound that this installation of PyAV cannot decode: it is left out")
    if not known:
        return None
    heard = next((track for track in known if track.disposition & Disposition.default), known[0])
    if len(known) > 1:
        say(f"has {len(known)} sound tracks: number {known.index(heard) + 1} is used")
    return heard


def _has_decoder(track: Any) -> bool:
    """PyAV's stubs leave out that a stream may have no context."""
    return track.codec_context is not None


def _start_of(container: InputContainer, video: VideoStream, path: Path) -> tuple[Fraction, Fraction]:
    """When the first frame is shown, and how exactly the file states it, both in seconds."""
    frame = next(decoded_frames(container, video, path, lambda _: None))
    base = frame.time_base or video.time_base
    # AVI has no times of presentation: those of its first frames are late by the decoder's delay.
    time = video.start_time if container.format.name == "avi" else frame.pts
    if time is None or base is None:
        return Fraction(0), Fraction(0)
    return time * base, Fraction(base)


@dataclass(frozen=True)
class _Clock:
    """start: the time of the first frame; coarse: how exactly it is known; seconds: how much is asked for."""

    start: Fraction
    coarse: Fraction
    seconds: Fraction | float | None


def _read(container: InputContainer, stream: AudioStream, clock: _Clock, say: Notes) -> Sound | None:
    """Everything from the time `clock.start` on, at the times that the file states."""
    pieces: list[Tensor] = []
    rate = position = shift = 0
    limit: int | None = None
    for number, frame in enumerate(_decoded(container, stream, say)):
        samples = _samples(frame)
        base = frame.time_base or stream.time_base
        if number == 0:
            rate = frame.sample_rate
            limit = None if clock.seconds is None else round(Fraction(clock.seconds) * rate)
        stated = None if frame.pts is None or base is None else frame.pts * base - clock.start
        if stated is not None:
            if number == 0 and abs(stated) <= min(max(Fraction(base or 0), clock.coarse), _ROUNDING):
                stated = Fraction(0)
            gap = round(stated * rate) + shift - position
            if number == 0:
                position += gap
                pieces.append(samples.new_zeros(samples.shape[0], max(gap, 0)))
            elif _JITTER * rate < gap <= _LONGEST_PAUSE * rate:
                pieces.append(samples.new_zeros(samples.shape[0], max(position + gap, 0) - max(position, 0)))
                position += gap
            elif abs(gap) > _JITTER * rate:  # times that go back, or far ahead, are damage: the sound goes on
                shift -= gap
        pieces.append(samples[:, max(-position, 0) :])
        position += samples.shape[1]
        if limit is not None and position >= limit:
            break
    if not pieces:
        return None
    stated_end = _end(stream, clock, rate)
    ends = [end for end in (limit, stated_end) if end is not None]
    return Sound(torch.cat(pieces, 1)[:, : min(ends, default=None)], rate)


def _end(stream: AudioStream, clock: _Clock, rate: int) -> int | None:
    """Number of samples up to the end that an mp4 states: the last packet of AAC holds more. None: unknown."""
    exact = stream.time_base is not None and stream.time_base.denominator == stream.codec_context.sample_rate
    if not exact or stream.duration is None or stream.codec_context.name != "aac":
        return None
    end = round(((stream.start_time or 0) + stream.duration) * Fraction(stream.time_base or 0) * rate)
    return max(end - round(clock.start * rate), 0)


def _decoded(container: InputContainer, stream: AudioStream, say: Notes) -> Iterator[AudioFrame]:
    """Frames of packed float32, all with the rate and channels of the first. Packets that do not decode are said."""
    from av.audio.resampler import AudioResampler
    from av.error import FFmpegError

    resampler: AudioResampler | None = None
    form: tuple[str, str, int] | None = None
    first: tuple[str, int] | None = None
    damaged = 0
    for packet in container.demux(stream):
        try:
            frames: list[Any] = list(packet.decode())
        except EOFError:
            break
        except FFmpegError:
            damaged += 1
            continue
        for frame in frames:
            look = (frame.format.name, frame.layout.name, frame.sample_rate)
            first = first or look[1:]
            if look != form or resampler is None:
                if resampler is not None:
                    yield from resampler.resample(None)
                resampler, form = AudioResampler("flt", *first), look
            yield from resampler.resample(frame)
    if resampler is not None:
        yield from resampler.resample(None)
    if damaged:
        say(f"has damaged sound: {damaged} of its packets cannot be decoded and are silent")


# --- written ----------------------------------------------------------------------------------------------------------


class SoundTrack:
    """The sound track of a file that is being written; it grows with the frames.

    Raises:
        ConfigError: an unknown codec.
    """

    def __init__(self, container: OutputContainer, sound: Sound, codec: str) -> None:
        if codec not in ENCODERS:
            raise ConfigError(f"got sound codec {codec!r}; expected one of {', '.join(ENCODERS)}; choose one")
        codec = ENCODERS[codec]
        self.sound = _of_few_channels(sound)
        self.container = container
        rate = _codec_rate(codec, sound.rate)
        self.stream: Any = container.add_stream(codec, rate=rate, options=_AAC if codec == "aac" else {})
        self.stream.layout = LAYOUTS[self.sound.channels]
        if codec in _LOSSLESS:
            self.stream.format = _LOSSLESS[codec]
        else:
            self.stream.bit_rate = _BITS_PER_CHANNEL * self.sound.channels
        self._written = 0

    def write_until(self, seconds: Fraction) -> None:
        """Write what is heard up to a time; silence after the end of the sound."""
        stop = self.sound.samples_in(seconds)
        if stop > self._written:
            frame = _frame(self.sound.part(self._written, stop), self.sound.rate)
            frame.pts, frame.time_base = self._written, Fraction(1, self.sound.rate)
            self.container.mux(self.stream.encode(frame))
            self._written = stop

    def close(self) -> None:
        self.container.mux(self.stream.encode(None))


def write_sound(path: Path, sound: Sound, codec: str) -> None:
    """Sound alone, as WAV."""
    import av

    with av.open(str(path), "w", format="wav") as container:
        track = SoundTrack(container, sound, codec)
        track.write_until(Fraction(sound.waveform.shape[1], sound.rate))
        track.close()


def _codec_rate(codec: str, rate: int) -> int:
    """The rate itself, where a codec has it; else its next higher one."""
    from av.codec import Codec

    known: Any = Codec(codec, "w").audio_rates
    if not known or rate in known:
        return rate
    return min((each for each in known if each > rate), default=max(known))


def _of_few_channels(sound: Sound) -> Sound:
    """A sound for which there is a layout: more than eight channels become their mean."""
    if sound.channels in LAYOUTS:
        return sound
    return Sound(sound.waveform.mean(0, keepdim=True), sound.rate)


def _samples(frame: AudioFrame) -> Tensor:
    """(channels, samples) of a frame of packed float32: of eight channels in planes, PyAV 18 reads past the end."""
    packed = torch.from_numpy(frame.to_ndarray().copy())
    return packed.reshape(-1, frame.layout.nb_channels).T


def _frame(samples: Tensor, rate: int) -> AudioFrame:
    """(channels, samples) as a frame of packed float32; what is not finite would make AAC fail, and becomes silence."""
    import av

    finite = samples.float().nan_to_num(0.0, 0.0, 0.0).cpu()
    packed = finite.T.reshape(1, -1).contiguous().numpy()
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=LAYOUTS[len(samples)])
    frame.sample_rate = rate
    return frame

"""What `ltxkit bench` measures: steps, decoding and encoding beside other implementations, and whole clips."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..budget.weights import weight_bytes
from ..errors import ConfigError
from ..files import check_output, temporary
from ..models.dtypes import compute_dtype
from ..models.transformer import LTXTransformer
from ..models.video_vae import VideoVAE
from ..placing.devices import chosen_device, clear_of_memory, spare_main_memory
from ..placing.placement import DevicePlacement
from ..progress import Notes, Progress, ProgressEvent, silent
from ..releases import Family
from ..shapes import LatentShape, PixelShape
from ..weights.build import open_files
from ..weights.tiny import CHECKPOINT, TEXT_ENCODER, make_tiny
from .first import PARTS, ClipFiles, FirstClip, measure_first
from .inputs import DECODE_TIMESTEP, PROMPT, StepInputs
from .limits import convolution_limit, device_limit, step_limit
from .machine import cores, describe_machine, peak_bytes, processor_name
from .peers import Asked, Peer, PeerMissingError, open_peer
from .protocol import Rounds, Row, Run, equal_peers, threads, timed
from .random_files import write_random

OURS = "LTXKit"
WHAT = ("step", "decode", "encode", "clip")
ALL_CORES = 0
QUESTION = "What LTXKit does on this machine, seconds as a user waits"

# The latents of 384 and 2,688 tokens that the project's tables have, as clips: (frames, height, width).
SIZES = (PixelShape(25, 256, 384), PixelShape(49, 512, 768))
TINY_SIZES = (PixelShape(9, 64, 64),)

# Of a step with four blocks; every rounding of a deeper model adds to it, as a root of the blocks. The VAE has some 165
# roundings in a row: in 16 bits 4 % rms, and the largest error is half as much again (benchmarks/vae_cpu.py).
_STEP_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 1e-2}
_STEP_BLOCKS = 4
_VAE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 3e-2}


@dataclass(frozen=True)
class Choices:
    """What is measured, and on what.

    Args:
        model, text_encoder, vae, version: files of the user's; model: None: random weights of the released size of
            `family`. A clip of a user's model is made only with its text encoder.
        tiny: random weights of a few megabytes, to rehearse.
        dtype: of all weights; None: as stored. settings: the release whose recipe a clip uses.
        sizes: of steps, decoding and encoding. clip: of the clip; None: the first size on a CPU, else the last.
        threads: counts of the CPU's threads for steps, decoding and encoding; ALL_CORES for all.
            The clip has the most of them.
        only: some of WHAT. against: peers. folder: where random files go, which are removed afterwards.
    """

    model: str | None = None
    text_encoder: str | None = None
    vae: str | None = None
    version: str | None = None
    family: Family = "2b"
    tiny: bool = False
    dtype: torch.dtype | None = None
    device: str | None = None
    settings: str | None = None
    sizes: tuple[PixelShape, ...] = SIZES
    clip: PixelShape | None = None
    threads: tuple[int, ...] = (1, ALL_CORES)
    rounds: int = 3
    only: frozenset[str] = frozenset(WHAT)
    against: tuple[Asked, ...] = ()
    folder: Path | None = None

    def check(self) -> None:
        """Raises ConfigError: choices that cannot go together, or a device that is not here; nothing is loaded."""
        if self.model is None and (self.text_encoder or self.vae or self.version):
            given = "a text encoder" if self.text_encoder else "a VAE" if self.vae else "a version"
            raise ConfigError(f"got {given} without a model; expected the model's file; add --model")
        if self.model is not None and self.tiny:
            raise ConfigError("got a model and --tiny; expected one of them; leave --tiny out")
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(f"got the folder {self.folder}; expected one that exists; create it")
        if self.model is not None and "clip" in self.only and self.text_encoder is None and list(self.only) == ["clip"]:
            raise ConfigError("got a clip of a model without a text encoder; expected its file; add --text-encoder")
        most = max(self.threads)
        if most > cores():
            raise ConfigError(
                f"got {most} threads; expected at most {cores()}, the cores of this machine; ask for fewer"
            )
        chosen_device(self.device)


@dataclass(frozen=True, eq=False)
class _Case:
    """A workload: our run, those of the peers, and what is known of it.

    model: ours, whose weights count as memory. limit: seconds of the device's limit, with the threads of the moment.
    """

    name: str
    model: nn.Module
    ours: Run
    peers: Mapping[str, Run]
    tolerance: float
    limit: Callable[[], float | None]
    note: str = ""


def bench(choices: Choices, progress: Progress = silent, say: Notes = lambda _: None) -> dict[str, Any]:
    """Measure, and return "question", "machine", "rows" and "left_out", as JSON values.

    say: receives what is left out, and why.

    Raises:
        ConfigError, CheckpointError, ShapeError: what cannot be measured, before anything is. UnsupportedError: too
            little memory or disk.
    """
    choices.check()
    spare_main_memory()
    # After a kill, gigabytes of it: the next run that writes there removes what was left.
    place = Path(choices.folder or tempfile.gettempdir())
    check_output(place, folder=True)
    with temporary(place) as folder:
        folder.mkdir()
        files = _files(choices, folder, progress)
        with clear_of_memory("these models"):
            return _Bench(choices, files, progress, say).result()


def _files(choices: Choices, folder: Path, progress: Progress) -> ClipFiles | _NoText:
    how: dict[str, Any] = {"dtype": choices.dtype, "device": choices.device, "version": choices.version}
    if choices.model is not None:
        files = open_files(choices.model, choices.text_encoder, vae=choices.vae, version=choices.version)
        vae = None if files.vae is files.model else files.vae.checkpoint.path
        model, encoder = files.model.checkpoint.path, files.text_encoder
        if encoder is None:
            return _NoText(model, vae)
        return ClipFiles(model, encoder.checkpoint.path, vae, settings=choices.settings, **how)
    settings = choices.settings or f"{choices.family}-0.9.8-distilled"
    if choices.tiny:
        make_tiny(folder, family=choices.family)
        return ClipFiles(folder / CHECKPOINT, folder / TEXT_ENCODER, settings=settings, **how)
    wanted = "clip" in choices.only
    model, encoder = write_random(folder, choices.family, text_encoder=wanted, progress=progress)
    return _NoText(model) if encoder is None else ClipFiles(model, encoder, settings=settings, **how)


@dataclass(frozen=True)
class _NoText:
    """The files of a model without a text encoder."""

    model: Path
    vae: Path | None = None


class _Bench:
    """One run: the models are loaded once, and peers are built of them once."""

    def __init__(self, choices: Choices, files: ClipFiles | _NoText, progress: Progress, say: Notes) -> None:
        self.choices, self.files, self._progress = choices, files, progress
        self.device = chosen_device(choices.device)
        self.processor = processor_name(self.device)
        self.rows: list[Row] = []
        self.left_out: list[str] = []
        self._say = say
        counts = choices.threads if self.device.type == "cpu" else (ALL_CORES,)
        self.threads = tuple(dict.fromkeys(count or cores() for count in counts))

    def result(self) -> dict[str, Any]:
        measured = self.choices.only - {"clip"}
        if measured:
            self._parts()
        if "clip" in self.choices.only:
            self._clip()
        return {
            "question": QUESTION,
            "machine": describe_machine(),
            "rows": [asdict(row) for row in self.rows],
            "left_out": self.left_out,
        }

    def _leave_out(self, what: str) -> None:
        if what not in self.left_out:
            self.left_out.append(what)
            self._say(f"Left out: {what}.")

    # -------------------------------------------------------------------------------- side by side

    def _parts(self) -> None:
        only, choices = self.choices.only, self.choices
        opened = open_files(self.files.model, vae=self.files.vae, version=choices.version)
        transformer = vae = None
        if "step" in only:
            transformer, _ = opened.model.transformer(dtype=choices.dtype, progress=self._progress)
        if only & {"decode", "encode"}:
            vae = opened.vae.vae(dtype=choices.dtype, progress=self._progress)
        scale = (vae.config if vae is not None else opened.vae.description.vae()).scale_factors
        sizes = [size.padded(scale) for size in choices.sizes]
        peers = list(self._peers())
        placement = DevicePlacement(self.device)
        if transformer is not None:
            with placement(transformer):
                for size in sizes:
                    self._measure(self._step(transformer, size.latent(scale), peers))
        if vae is not None and "decode" in only:
            with placement(vae.decoder):
                for size in sizes:
                    self._measure(self._decoding(vae, size, peers))
        if vae is not None and "encode" in only:
            with placement(vae.encoder):
                for size in sizes:
                    self._measure(self._encoding(vae, size, peers))

    def _peers(self) -> Iterator[Peer]:
        for asked in self.choices.against:
            try:
                yield open_peer(asked, self.device)
            except PeerMissingError as error:
                self._leave_out(f"{asked.name}: {error}")

    def _runs(self, what: str, peers: Sequence[Peer], make: Callable[[Peer], Run]) -> dict[str, Run]:
        runs: dict[str, Run] = {}
        for peer in peers:
            try:
                runs[peer.title] = make(peer)
            except PeerMissingError as error:
                self._leave_out(f"{peer.title}, {what}: {error}")
        return runs

    def _step(self, model: LTXTransformer, grid: LatentShape, peers: Sequence[Peer]) -> _Case:
        config, dtype = model.config, model.dtype
        given = StepInputs.random(config, grid, self.device)
        ours, computed = given.step_of(model), model.compute_dtype
        name = f"step, {grid.tokens:,} tokens, {_name(dtype)}"
        deeper = max(config.num_layers / _STEP_BLOCKS, 1) ** 0.5
        on_cpu = partial(step_limit, config, grid.tokens, PROMPT, computed)
        elsewhere = partial(device_limit, ours, self.device, computed)
        return _Case(
            name,
            model,
            ours,
            self._runs("step", peers, lambda peer: peer.step(model, given)),
            _STEP_TOLERANCE.get(dtype, _STEP_TOLERANCE[torch.bfloat16]) * deeper,
            on_cpu if self.device.type == "cpu" else elsewhere,
            "" if computed == dtype else f"computed in {_name(computed)}",
        )

    def _decoding(self, vae: VideoVAE, size: PixelShape, peers: Sequence[Peer]) -> _Case:
        made = torch.Generator().manual_seed(2)
        grid = size.latent(vae.config.scale_factors)
        latent = torch.randn(1, vae.config.latent_channels, *grid, generator=made).to(self.device)
        timestep = torch.tensor([DECODE_TIMESTEP], device=self.device) if vae.config.timestep_conditioning else None
        noise = tuple(each.to(self.device) for each in vae.draw_noise(grid.height, grid.width, made))

        def ours() -> Tensor:
            return torch.cat(list(vae.stream_decode(latent, timestep, noise=noise)), dim=2)

        runs = self._runs("decode", peers, lambda peer: peer.decode(vae, latent, timestep))
        return self._of_vae("decode", vae.decoder, size, (ours, runs))

    def _encoding(self, vae: VideoVAE, size: PixelShape, peers: Sequence[Peer]) -> _Case:
        made = torch.Generator().manual_seed(3)
        pixels = (torch.rand(1, 3, *size, generator=made) * 2 - 1).to(self.device)

        def ours() -> Tensor:
            return torch.cat([each.mean for each in vae.stream_encode([pixels])], dim=2)

        runs = self._runs("encode", peers, lambda peer: peer.encode(vae, pixels))
        return self._of_vae("encode", vae.encoder, size, (ours, runs))

    def _of_vae(self, what: str, part: nn.Module, size: PixelShape, runs: tuple[Run, Mapping[str, Run]]) -> _Case:
        weight = next(part.parameters())
        dtype, computed = weight.dtype, compute_dtype(torch.empty(0, dtype=weight.dtype, device=self.device))
        ours, peers = runs
        on_cpu = partial(convolution_limit, ours, computed)
        elsewhere = partial(device_limit, ours, self.device, computed)
        return _Case(
            f"{what}, {_size(size)}, {_name(dtype)}",
            part,
            ours,
            peers,
            _VAE_TOLERANCE.get(dtype, _VAE_TOLERANCE[torch.bfloat16]),
            on_cpu if self.device.type == "cpu" else elsewhere,
            "" if computed == dtype else f"computed in {_name(computed)}",
        )

    def _measure(self, case: _Case) -> None:
        """The rows of a case, for every count of threads. Memory does not depend on it."""
        total = 3 + len(self.threads)

        def done(step: int) -> None:
            self._progress(ProgressEvent(case.name, step, total))

        done(0)
        with threads(self.threads[-1]):
            differences, _ = equal_peers(
                case.ours,
                case.peers,
                case.tolerance,
                lambda name, why: self._leave_out(f"{name}, {case.name}: {why}"),
            )
            done(1)
            contestants = {OURS: case.ours, **{name: case.peers[name] for name in differences}}
            work = {name: peak_bytes(run, self.device) for name, run in contestants.items()}
        done(2)
        held = weight_bytes(case.model)
        memory = {name: None if peak is None else peak + held for name, peak in work.items()}
        for number, count in enumerate(self.threads):
            with threads(count):
                how = Rounds(case.tolerance, self.choices.rounds, warmup=1, clock="wall")
                times = timed(contestants, how, self.device)
                limit = case.limit()
            ours = times.median(OURS)
            row = Row(
                case=case.name,
                unit="s",
                ours=ours,
                floor=None if limit is None else limit / ours,
                note=case.note,
                memory=memory[OURS],
                threads=count if self.device.type == "cpu" else None,
                processor=self.processor,
            )
            self.rows += [
                replace(
                    row,
                    peer_name=name,
                    peer=times.median(name),
                    speedup=times.speedup(OURS, name),
                    difference=difference,
                    peer_memory=memory[name],
                )
                for name, difference in differences.items()
            ] or [row]
            done(3 + number)
        done(total)

    # -------------------------------------------------------------------------------- clips

    def _clip(self) -> None:
        if isinstance(self.files, _NoText):
            self._leave_out("the clip: there is no text encoder (--text-encoder)")
            return
        sizes = self.choices.sizes
        size = self.choices.clip or (sizes[0] if self.device.type == "cpu" else sizes[-1])
        made = measure_first(self.files, size, max(self.threads), self._progress)
        self.rows += self._rows_of(made, size)

    def _rows_of(self, made: FirstClip, size: PixelShape) -> Iterator[Row]:
        memory = made.memory if self.device.type == "cpu" else made.device_memory
        common = Row(
            case="",
            unit="s",
            ours=0.0,
            memory=memory,
            threads=max(self.threads) if self.device.type == "cpu" else None,
            processor=self.processor,
        )
        name = f"clip, {_size(size)}, {made.steps} steps"
        cold = "files read from the disk" if made.cold else "files may have been in the system's cache"
        yield replace(common, case=f"{name}: first, from the start of Python", ours=made.total, note=cold)
        for part in PARTS:
            yield replace(common, case=f"{name}: first, {part}", ours=made.seconds[part])
        yield replace(common, case=f"{name}: second", ours=made.again, note="the same prompt, another seed")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size(size: PixelShape) -> str:
    return f"{size.width}x{size.height}, {size.frames} frames"

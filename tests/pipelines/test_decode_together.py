"""A clip that several processes decode together is the clip of one. Here threads play the processes, each with a VAE of
its own; `test_group.py` has real ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltxkit.ltx_core import media
from ltxkit.ltx_core.budget.tiling import Tiling
from ltxkit.ltx_core.config import PaddingMode, VideoVAEConfig
from ltxkit.ltx_core.errors import ConfigError, UnsupportedError
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.models.rows import RowShare
from ltxkit.ltx_core.models.sharing import Sharing
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.pipelines.clip import Clip, ClipDecoder
from ltxkit.ltx_core.pipelines.decode import decode_frames
from ltxkit.ltx_core.pipelines.decode_together import decode_together
from ltxkit.ltx_core.pipelines.settings import Decoding
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.ltx_core.shapes import PixelShape

GENERATIONS = ("0.9.0", "0.9.1", "0.9.5", "16x4")
DECODING = Decoding(0.05, 0.025, tone_map=0.6)
CPU = Host(DevicePlacement("cpu"))
Processes = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def vaes(random_vae: Callable[..., VideoVAE]) -> dict[str, VideoVAE]:
    return {generation: random_vae(generation).requires_grad_(False) for generation in GENERATIONS}


def latents(frames: int = 3, height: int = 5, width: int = 3) -> Tensor:
    return torch.randn(1, 16, frames, height, width, generator=torch.Generator().manual_seed(5))


def alone(vae: VideoVAE, latent: Tensor, **options: Any) -> Tensor:
    return torch.cat(list(decode_frames(vae, latent, DECODING, **({"seed": 11, "host": CPU} | options))))


def decoding(
    vae: VideoVAE, latent: Tensor, how: Decoding = DECODING, **options: Any
) -> Callable[[Sharing], list[Tensor]]:
    """What each process does."""

    def work(sharing: Sharing) -> list[Tensor]:
        mine = copy.deepcopy(vae)
        return list(decode_together(mine, latent, how, sharing, **({"seed": 11, "host": CPU} | options)))

    return work


@pytest.mark.slow
@pytest.mark.parametrize(
    ("generation", "size", "height"),
    [
        *((generation, 3, 5) for generation in GENERATIONS),
        *(("0.9.1", *each) for each in [(2, 2), (2, 5), (4, 7), (4, 2), (3, 1)]),
    ],
)
def test_rows_of_several_processes_are_the_picture_of_one(
    vaes: dict[str, VideoVAE], in_processes: Processes, generation: str, size: int, height: int
) -> None:
    """As many rows for each, more for some, more processes than rows, and a single row."""
    vae, latent = vaes[generation], latents(2, height, 3)
    first, *others = in_processes(size, decoding(vae, latent))
    torch.testing.assert_close(torch.cat(first), alone(vae, latent), atol=1e-5, rtol=0)
    assert others == [[]] * (size - 1)


@pytest.mark.parametrize("limit", [1, 4])
def test_a_clip_in_pieces(vaes: dict[str, VideoVAE], in_processes: Processes, limit: int) -> None:
    vae, latent, tiling = vaes["0.9.5"], latents(4, 3, 2), Tiling(frames=limit)
    pieces = list(decode_frames(vae, latent, DECODING, seed=11, host=CPU, tiling=tiling))
    first, *_ = in_processes(2, decoding(vae, latent, tiling=tiling))
    assert [len(piece) for piece in first] == [len(piece) for piece in pieces]
    torch.testing.assert_close(torch.cat(first), torch.cat(pieces), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tiling", [Tiling(height=3, halo=1), Tiling(height=4, width=2, halo=2, frames=2), Tiling(height=1, halo=0)]
)
def test_a_clip_in_tiles(vaes: dict[str, VideoVAE], in_processes: Processes, tiling: Tiling) -> None:
    """With halos that are all that a process has, and tiles of one row."""
    vae, latent = vaes["0.9.1"], latents(2, 7, 3)
    first, *_ = in_processes(3, decoding(vae, latent, tiling=tiling))
    torch.testing.assert_close(torch.cat(first), alone(vae, latent, tiling=tiling), atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", ["zeros", "reflect", "replicate"])
def test_every_kind_of_padding(
    vae_config: Callable[..., VideoVAEConfig], in_processes: Processes, padding: PaddingMode
) -> None:
    """At the borders of the picture, with one row for each process."""
    torch.manual_seed(0)
    vae = VideoVAE(replace(vae_config("0.9.5"), spatial_padding_mode=padding)).eval().requires_grad_(False)
    latent = latents(1, 2, 2)
    first, *_ = in_processes(2, decoding(vae, latent))
    torch.testing.assert_close(torch.cat(first), alone(vae, latent), atol=1e-5, rtol=0)


def test_bytes_are_those_of_one_process(vaes: dict[str, VideoVAE], in_processes: Processes) -> None:
    vae, latent = vaes["0.9.5"], latents(2, 3, 2)
    first, *_ = in_processes(2, decoding(vae, latent, dtype=torch.uint8))
    whole = alone(vae, latent, dtype=torch.uint8)
    assert first[0].dtype == torch.uint8
    assert (torch.cat(first).int() - whole.int()).abs().max() <= 1  # of a value on the edge between two


def test_each_process_computes_its_own_rows(vaes: dict[str, VideoVAE], in_processes: Processes) -> None:
    def work(sharing: Sharing) -> set[int]:
        mine, rows = copy.deepcopy(vaes["0.9.5"]), set[int]()
        mine.decoder.conv_in.register_forward_hook(lambda _, __, y: rows.add(y.shape[2]))
        list(decode_together(mine, latents(2, 5, 2), DECODING, sharing, seed=0, host=CPU))
        return rows

    assert in_processes(3, work) == [{1}, {2}, {2}]


def test_neighbours_of_more_processes_than_rows(in_processes: Processes) -> None:
    x = torch.arange(3.0).view(1, 1, 3, 1, 1)

    def work(sharing: Sharing) -> list[float]:
        share = RowShare(sharing, 3)
        own = share.span(share.part)
        return share.bordered(x[:, :, own.start : own.stop], "zeros").flatten().tolist()

    assert in_processes(5, work) == [[0, 0, 1], [0, 1, 2], *[[1, 2, 0]] * 3]


# One tiling for all


def test_the_process_with_the_least_room_decides(vaes: dict[str, VideoVAE], in_processes: Processes) -> None:
    """Whose tiles are the larger ones that the divided memory allows."""
    vae, latent, asked = vaes["0.9.5"], latents(2, 4, 60), dict[int, int]()

    def work(sharing: Sharing, room: int | None) -> list[Tensor]:
        place = DevicePlacement("cpu")

        def placed(module: nn.Module, *, memory_required: int = 0):
            asked[sharing.rank] = memory_required
            return place(module)

        host = Host(placed, room=lambda module: room if sharing.rank == 1 else None)
        return list(decode_together(copy.deepcopy(vae), latent, DECODING, sharing, seed=11, host=host))

    whole, *_ = in_processes(2, lambda sharing: work(sharing, None))
    bytes_of_all = asked[0]
    tiled, *_ = in_processes(2, lambda sharing: work(sharing, bytes_of_all // 2))
    assert asked[0] == asked[1] <= bytes_of_all // 2
    assert (torch.cat(tiled) - torch.cat(whole)).square().mean() < 10**-5.5  # as tests/pipelines/test_decode_encode.py


# What goes wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda rank: {"seed": rank}, "got seed 0 in process 0 and 1 in process 1; expected the same"),
        (lambda rank: {"dtype": (torch.float32, torch.uint8)[rank]}, "got dtype 'torch.float32' in process 0"),
        (lambda rank: {"tiling": Tiling(height=2 + rank)}, "got tiling"),
        (lambda rank: {"latent": latents(1, 2, 2) * (1 + rank)}, "got latent"),
    ],
)
def test_unequal_calls_are_refused(
    vaes: dict[str, VideoVAE], in_processes: Processes, options: Callable[[int], dict[str, Any]], message: str
) -> None:
    def work(sharing: Sharing) -> None:
        said = {"latent": latents(1, 2, 2), "seed": 0, "host": CPU} | options(sharing.rank)
        decode_together(vaes["0.9.5"], said.pop("latent"), DECODING, sharing, **said)

    with pytest.raises(ConfigError, match=message):
        in_processes(2, work)


def test_numbers_that_are_not_finite(vaes: dict[str, VideoVAE], in_processes: Processes) -> None:
    """Of the last process: the first one says so, and the others do not wait."""
    latent = latents(3, 4, 2)
    latent[:, :, :, 3] *= 1e38
    said: list[str] = []

    def work(sharing: Sharing) -> None:
        with pytest.raises(UnsupportedError) as error:
            decoding(vaes["0.9.5"], latent, replace(DECODING, tone_map=0.0))(sharing)
        said.append(f"{sharing.rank}: {error.value}")

    in_processes(2, work)
    first, second = sorted(said)
    assert first.startswith("0: got numbers that are not finite from the VAE")
    assert second.startswith("1: got no further frames: process 0 of this run has ended")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_between_two_pieces(vaes: dict[str, VideoVAE], in_processes: Processes, rank: int) -> None:
    """A full disk in the first one, or whatever a progress report raises."""

    def work(sharing: Sharing) -> str:
        def report(event: ProgressEvent) -> None:
            if event.step > 0 and sharing.rank == rank:
                raise OSError("full")

        try:
            decoding(vaes["0.9.5"], latents(3, 2, 2), host=replace(CPU, progress=report))(sharing)
        except (OSError, UnsupportedError) as error:
            return str(error)
        return ""

    said = in_processes(3, work)
    assert said.pop(rank) == "full"
    assert len(said) == 2
    assert all(text.startswith(f"got no further frames: process {rank} of this run") for text in said)


def test_who_leaves_early_leaves_nobody_waiting(vaes: dict[str, VideoVAE], in_processes: Processes) -> None:
    def work(sharing: Sharing) -> int:
        frames = decode_together(
            copy.deepcopy(vaes["0.9.5"]), latents(4, 2, 2), DECODING, sharing, seed=0, host=CPU, tiling=Tiling(frames=1)
        )
        if sharing.rank > 0:
            return len(list(frames))
        assert isinstance(frames, Iterator)
        found = len(next(frames))
        frames.close()  # pyright: ignore[reportAttributeAccessIssue] - a generator
        return found

    assert in_processes(3, work) == [1, 0, 0]


# As a clip


def clip_of(vae: VideoVAE, sharing: Sharing | None, *, asked: PixelShape, resized: bool = False) -> Clip:
    decoder = ClipDecoder(vae, DECODING, asked, 11, DevicePlacement("cpu"), None, resized, None, sharing)
    return Clip(latents(3, 3, 3), asked, Fraction(8), {"seed": 11}, decoder)


@pytest.mark.parametrize("resized", [False, True])
def test_the_first_process_has_the_frames_and_writes(
    vaes: dict[str, VideoVAE], in_processes: Processes, tmp_path: Path, resized: bool
) -> None:
    """Of a clip that is shorter and smaller than what is decoded; both as files and as arrays."""
    vae, asked = vaes["0.9.5"], PixelShape(9, 90, 80)
    whole = clip_of(vae, None, asked=asked, resized=resized).to_tensor()

    def work(sharing: Sharing) -> tuple[Tensor, int]:
        clip = clip_of(copy.deepcopy(vae), sharing, asked=asked, resized=resized).together()
        clip.save(
            tmp_path / f"{sharing.rank}.mkv",
            codec="ffv1",
            contact_sheet=tmp_path / f"{sharing.rank}.png",
            progress=False,
        )
        return clip.to_tensor(), len(clip.to_numpy())

    (frames, count), other = in_processes(2, work)
    torch.testing.assert_close(frames, whole, atol=1e-5, rtol=0)
    assert count == len(frames) == 9
    assert (tuple(other[0].shape), other[1]) == ((0, 90, 80, 3), 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mkv", "0.png"]
    assert (media.read_video(tmp_path / "0.mkv").frames - whole).abs().max() < 1 / 255  # of the file's bytes


def test_a_clip_of_one_process_is_not_decoded_together(vaes: dict[str, VideoVAE], in_processes: Processes) -> None:
    clip = clip_of(vaes["0.9.5"], None, asked=PixelShape(9, 64, 64))
    with pytest.raises(ConfigError, match="got a clip of one process; expected one that a group"):
        clip.together()

"""Long clips in windows, and the statistics printed about a clip."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.pipelines.clip_statistics import ClipStatistics, motion_settings
from ltxkit.ltx_core.pipelines.condition import Condition
from ltxkit.ltx_core.pipelines.long_video import LongSettings, plan_windows, sample_windows, seam_frames
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt
from ltxkit.ltx_core.placing.placement import DevicePlacement, host_on
from ltxkit.ltx_core.progress import log_note, silent
from ltxkit.ltx_core.sampling.guidance import NO_GUIDANCE
from ltxkit.ltx_core.sampling.samplers import EULER
from ltxkit.ltx_core.sampling.schedules import explicit
from ltxkit.ltx_core.shapes import PixelShape

CHANNELS, TEXT = 16, 24
SETTINGS = LongSettings(PixelShape(57, 32, 32), 25.0, seed=3, window_frames=25, overlap_frames=9)


@pytest.fixture(scope="module")
def models(vae_config):
    config = TransformerConfig.of_size(layers=1, heads=2, head_dim=16, channels=CHANNELS, captions=TEXT)
    torch.manual_seed(0)
    return LTXTransformer(config).eval(), VideoVAE(vae_config("0.9.5", latent_channels=CHANNELS)).eval()


def prompt(seed: int) -> EncodedPrompt:
    return EncodedPrompt(torch.randn(1, 3, TEXT, generator=torch.Generator().manual_seed(seed)))


def picture(seed: int, frames: int = 1) -> torch.Tensor:
    return torch.rand(frames, 32, 32, 3, generator=torch.Generator().manual_seed(seed))


def of_length(frames: int, settings: LongSettings = SETTINGS) -> LongSettings:
    return replace(settings, size=PixelShape(frames, 32, 32))


def windows(
    models, frames: int, settings: LongSettings = SETTINGS, *, prompts=None, items=(), progress=silent, say=log_note
):
    transformer, vae = models

    def decode(latent: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            pixels = vae.decode(vae.un_normalize(latent), torch.tensor([0.05]))
        return (pixels[0].movedim(0, -1) / 2 + 0.5).clamp(0, 1)

    return sample_windows(
        Pass(transformer, explicit([1.0, 0.5]), NO_GUIDANCE, EULER),
        vae,
        prompts or [prompt(1)],
        None,
        of_length(frames, settings),
        decode=decode,
        host=host_on(DevicePlacement("cpu"), progress, say),
        items=items,
    )


def test_the_plan_covers_the_clip_once():
    plan = plan_windows(of_length(73), 8)  # 10 latent frames: 0-3, 2-5, 4-7, 6-9
    assert [(window.start, window.length, window.overlap) for window in plan] == [
        (0, 4, 0),
        (2, 4, 2),
        (4, 4, 2),
        (6, 4, 2),
    ]
    assert seam_frames(plan, 8) == (25, 41, 57)
    short_end = plan_windows(of_length(65), 8)
    assert [window.length for window in short_end] == [4, 4, 4, 3]
    assert sum(window.length - window.overlap for window in short_end) == 9
    assert len(plan_windows(of_length(25), 8)) == 1
    assert plan_windows(of_length(9), 8)[0].length == 2


def test_a_window_begins_with_the_end_of_the_one_before(models):
    """The overlap is a hard condition: the second window's first latent frames encode the last frames of the first."""
    parts = list(windows(models, 41))
    assert [part.shape[2] for part in parts] == [4, 2]
    alone = list(windows(models, 25))
    assert torch.equal(parts[0], alone[0])
    changed = list(windows(models, 41, replace(SETTINGS, strength=0.2)))
    assert torch.equal(changed[0], parts[0])
    assert not torch.allclose(changed[1], parts[1], atol=1e-3)


@pytest.mark.slow
def test_each_window_has_its_prompt_and_its_conditions(models):
    prompts = [prompt(1), prompt(2), prompt(3)]
    plain = list(windows(models, 57, prompts=prompts))
    other = list(windows(models, 57, prompts=[prompt(1), prompt(2), prompt(9)]))
    assert torch.equal(plain[1], other[1])
    assert not torch.allclose(plain[2], other[2], atol=1e-3)
    # Frame 45 is in the last window (frames 32 to 56) only; -17 is frame 40, which is in the second (16 to 40) too.
    late = list(windows(models, 57, prompts=prompts, items=[Condition(picture(4), 45)]))
    assert torch.equal(late[1], plain[1])
    assert not torch.allclose(late[2], plain[2], atol=1e-3)
    middle = list(windows(models, 57, prompts=prompts, items=[Condition(picture(4), -17)]))
    assert torch.equal(middle[0], plain[0])
    assert not torch.allclose(middle[1], plain[1], atol=1e-3)


def test_adain_keeps_the_statistics_of_the_first_window(models):
    first, second = list(windows(models, 41, replace(SETTINGS, adain_factor=1.0, overlap_frames=1)))
    free = list(windows(models, 41, replace(SETTINGS, overlap_frames=1)))[1]
    wanted = first.std(dim=(2, 3, 4))
    assert float((second.std(dim=(2, 3, 4)) - wanted).abs().mean()) < float(
        (free.std(dim=(2, 3, 4)) - wanted).abs().mean()
    )


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_bytes(models, tmp_path):
    class StopError(Exception):
        pass

    def stop(event):
        if event.stage == "window 6 of 10" and event.step == 1:
            raise StopError

    made, notes = [], []
    frames = 8 * (4 + 9 * 2 - 1) + 1
    whole = torch.cat(list(windows(models, frames, replace(SETTINGS, folder=tmp_path / "whole"))), dim=2)
    settings = replace(SETTINGS, folder=tmp_path / "broken")
    with pytest.raises(StopError):
        list(windows(models, frames, settings, progress=stop))
    assert len(list((tmp_path / "broken").iterdir())) == 5
    again = windows(models, frames, settings, progress=lambda event: made.append(event.stage), say=notes.append)
    assert torch.equal(torch.cat(list(again), dim=2), whole)
    assert {stage for stage in made if stage != "encode"} == {f"window {i} of 10" for i in range(6, 11)}
    assert notes == ["Windows 1 to 5 of 10 are reused from an earlier run."]


def test_a_changed_prompt_redoes_its_window_and_later_ones(models, tmp_path):
    settings = replace(SETTINGS, folder=tmp_path)
    list(windows(models, 57, settings, prompts=[prompt(1), prompt(2), prompt(3)]))
    made = []
    changed = [prompt(1), prompt(8), prompt(3)]
    result = list(windows(models, 57, settings, prompts=changed, progress=lambda event: made.append(event.stage)))
    assert {stage for stage in made if stage != "encode"} == {"window 2 of 3", "window 3 of 3"}
    assert all(torch.equal(a, b) for a, b in zip(result, windows(models, 57, prompts=changed), strict=True))
    made.clear()
    list(
        windows(
            models, 57, replace(settings, fingerprint="another model"), progress=lambda event: made.append(event.stage)
        )
    )
    assert {stage for stage in made if stage != "encode"} == {"window 1 of 3", "window 2 of 3", "window 3 of 3"}


def test_a_kept_window_that_cannot_be_read_is_made_again(models, tmp_path):
    settings = replace(SETTINGS, folder=tmp_path)
    first = list(windows(models, 41, settings))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert all(torch.equal(a, b) for a, b in zip(first, windows(models, 41, settings), strict=True))


def tensor_bytes() -> int:
    """Bytes in the storages of all live tensors; those that a compiler has left behind have none."""
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_windows(models):
    """At every step of 2 windows and of 10; yielded frames are released."""

    def peak(count: int) -> int:
        gc.collect()
        before, seen = tensor_bytes(), []
        frames = 8 * (4 + (count - 1) * 2 - 1) + 1
        for _ in windows(models, frames, progress=lambda event: seen.append(tensor_bytes())):
            pass
        return max(seen) - before

    assert peak(10) <= peak(2) * 1.05


@pytest.mark.parametrize(
    ("settings", "changed", "message"),
    [
        ({"window_frames": 20}, {}, "got windows of 20 frames; expected 8k\\+1; use 17"),
        ({"overlap_frames": 8}, {}, "got overlaps of 8 frames; expected 8k\\+1; use 9"),
        ({"overlap_frames": 25}, {}, "got an overlap of 25 frames in windows of 25"),
        ({}, {"prompts": [prompt(1), prompt(2)]}, "got 2 prompts for 3 windows of 25 frames; expected 1 or 3"),
        ({}, {"items": [Condition(picture(1), 57)]}, "got a condition at frame 57; expected -57 to 56"),
    ],
)
def test_what_cannot_work_is_refused(models, settings, changed, message):
    with pytest.raises(ConfigError, match=message):
        list(windows(models, 57, replace(SETTINGS, **settings), **changed))


def test_statistics_of_a_still_and_of_a_moving_clip():
    still, moving = ClipStatistics(), ClipStatistics()
    frame = picture(1)
    still.add(frame.expand(6, -1, -1, -1))
    for shift in range(6):
        moving.add(frame.roll(shift, dims=2))
    assert still.motion == 0
    expected = float((frame - frame.roll(1, dims=2)).abs().mean() / frame.std())
    assert moving.motion == pytest.approx(expected, rel=0.05)
    assert moving.seam_ratio is None
    assert moving.describe() == f"Motion {moving.motion:.3f} (mean difference of frames over contrast)."
    shown = [Condition(frame, strength=0.9, crf=29), Condition(frame, -1, strength=1.0, crf=29)]
    assert moving.describe(motion_settings(shown, 0.15)).endswith(
        "with condition strength 0.9, 1, CRF 29, condition noise 0.15: a lower strength, a higher CRF or more "
        "condition noise gives more motion."
    )
    assert motion_settings([], 0.15) == ""


def test_statistics_of_seams_and_drift():
    """Brightness rises by 0.01 per frame and by 0.05, five times as much, at the seam: 0.14 from first to last."""
    levels = [0.2 + 0.01 * i + (0.04 if i >= 5 else 0.0) for i in range(11)]
    statistics = ClipStatistics(seams=(5,))
    frames = torch.tensor(levels)[:, None, None, None].expand(-1, 4, 4, 3)
    assert torch.equal(torch.cat(list(statistics.watch(frames.split(3)))), frames)
    assert statistics.seam_ratio == pytest.approx(5.0, rel=1e-3)
    assert statistics.drift == pytest.approx(0.14 * 255, rel=1e-3)
    assert "seams change 5.00 times as much" in statistics.describe()

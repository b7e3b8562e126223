"""Conditions of training: what a model is given is what sampling gives it, draws have their shares, and files that do
not suit the clips are refused by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ltxkit.ltx_core.errors import ConfigError, UnsupportedError
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.media import write_image, write_video
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.pipelines.condition import Conditions
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.sampling.conditioning import LatentCondition, LatentItem, LatentReference
from ltxkit.ltx_core.sampling.guidance import Guidance
from ltxkit.ltx_core.sampling.patchify import Coordinates, patchify
from ltxkit.ltx_core.sampling.samplers import SamplerSettings
from ltxkit.ltx_core.shapes import PixelShape, ScaleFactors
from ltxkit.ltx_core.training.companions import MASKS, REFERENCES, Companions, Kind, Window
from ltxkit.ltx_core.training.condition_settings import ConditionSettings, ReferenceSettings
from ltxkit.ltx_core.training.conditions import ClipConditions, Drawn, companion_paths, extra_tokens
from ltxkit.ltx_core.training.config import Data, Optimization, TransformerTraining
from ltxkit.ltx_core.training.edges import edges
from ltxkit.ltx_core.training.flow import Draws, Flow
from ltxkit.ltx_core.training.folder import Reading, read_folder
from ltxkit.ltx_core.training.latents import EncodedClips
from ltxkit.ltx_core.training.models import restart, transformer_config
from ltxkit.ltx_core.training.sources import open_sources

SCALE = ScaleFactors(8, 32, 32)
SIZE = PixelShape(25, 64, 96)  # 4 x 2 x 3 cells
CHANNELS, FPS, LEVEL = 8, 25.0, 0.6
MODEL = {
    "in_channels": CHANNELS, "out_channels": CHANNELS, "num_layers": 2, "num_attention_heads": 2,
    "attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 16, "norm_eps": 1e-6,
    "positional_embedding_theta": 10000.0, "positional_embedding_max_pos": [20, 2048, 2048],
    "timestep_scale_multiplier": 1000.0, "causal_temporal_positioning": True,
}  # fmt: skip


def settings(**changes: Any) -> TransformerTraining:
    data = Data(kind="digits", sizes=(tuple(SIZE),), fps=FPS)
    optimization = Optimization(steps=1, batch_size=2, learning_rate=1e-3)
    plain = TransformerTraining(output=Path("run"), data=data, optimization=optimization)
    return replace(plain, **changes)


def conditions(reference: ReferenceSettings | None = None, **changes: Any) -> ClipConditions:
    return ClipConditions(settings(reference=reference, conditions=ConditionSettings(**changes)), [], SCALE)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------ as in sampling

GRID = SIZE.latent(SCALE)
CLIP, NOISE = random(1, CHANNELS, *GRID, seed=0), random(1, CHANNELS, *GRID, seed=1)
REFERENCE, SUFFIX = random(1, CHANNELS, *GRID, seed=2), random(1, CHANNELS, 3, GRID.height, GRID.width, seed=3)
KEYFRAMES, WORDS = random(1, CHANNELS, 8, GRID.height, GRID.width, seed=4), random(1, 5, 16, seed=5)
HOLE = torch.zeros(1, 1, *GRID)
HOLE[:, :, 1:, :, 1:] = 1


@pytest.fixture(scope="module")
def model() -> LTXTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = LTXTransformer(transformer_config(MODEL))
        restart(made)
        for parameter in made.parameters():  # `restart` makes blocks that change nothing
            torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def velocities(model: LTXTransformer, run: Callable[[], object]) -> list[Tensor]:
    """What the model says while `run` goes on."""
    said: list[Tensor] = []
    handle = model.register_forward_hook(lambda _, __, output: said.append(output[0]))
    try:
        run()
    finally:
        handle.remove()
    return said


def in_sampling(model: LTXTransformer, items: list[LatentItem], mask: Tensor | None) -> Tensor:
    def noise(shape: Any) -> Tensor:
        return NOISE if tuple(shape) == tuple(NOISE.shape) else torch.zeros(tuple(shape))

    run_pass = Pass(model, torch.tensor([LEVEL, 0.0]), Guidance(), SamplerSettings())
    clip = LatentClip(CLIP, SCALE, FPS, mask)
    prompts, host = Prompts(EncodedPrompt(WORDS)), Host(DevicePlacement("cpu"))
    shown = Conditions(items)
    return velocities(model, lambda: sample(run_pass, clip, prompts, noise=noise, host=host, conditions=shown))[0]


def in_training(model: LTXTransformer, drawn: Drawn, first_frame: bool, **changes: Any) -> Tensor:
    reference = ReferenceSettings() if drawn.reference else None
    extras = {"reference": REFERENCE, "suffix": SUFFIX, "keyframes": KEYFRAMES, "mask": HOLE}
    clips = EncodedClips(CLIP, ["a clip"], extras)
    draws = Draws(patchify(NOISE), torch.tensor([LEVEL]), [False], torch.tensor([first_frame]))
    coordinates = Coordinates(SCALE, FPS, causal=True)
    tokens = conditions(reference, suffix_frames=17, **changes).tokens(clips, draws, drawn, coordinates, SIZE)
    flow = Flow(model, None)
    with torch.no_grad():
        return velocities(model, lambda: flow(*tokens, [WORDS[0]]))[0]


def drawn(**changes: Any) -> Drawn:
    return Drawn(torch.zeros(1, GRID.tokens, dtype=torch.bool), torch.tensor([changes.pop("masked", False)]), **changes)


def prefix(frames: int) -> Tensor:
    kept = torch.zeros(1, *GRID, dtype=torch.bool)
    kept[:, :frames] = True
    return kept.flatten(1)


@pytest.mark.parametrize(
    ("given", "first", "items", "mask"),
    [
        (drawn(reference=True), False, [LatentReference(REFERENCE)], None),
        (
            drawn(reference=True),
            True,
            [LatentReference(REFERENCE), LatentCondition(CLIP[:, :, :1], 0)],
            None,
        ),
        (
            drawn(keyframes=(1, 7)),
            False,
            [LatentCondition(KEYFRAMES[:, :, 1:2], 6), LatentCondition(KEYFRAMES[:, :, 7:8], 24)],
            None,
        ),
        (drawn(suffix=True), False, [LatentCondition(SUFFIX, 8)], None),
        (replace(drawn(), kept=prefix(2)), False, [LatentCondition(CLIP[:, :, :2], 0)], None),
        (drawn(masked=True), False, [], HOLE),
        (
            replace(drawn(reference=True, suffix=True, keyframes=(1,)), kept=prefix(1)),
            False,
            [
                LatentReference(REFERENCE),
                LatentCondition(SUFFIX, 8),
                LatentCondition(KEYFRAMES[:, :, 1:2], 6),
                LatentCondition(CLIP[:, :, :1], 0),
            ],
            None,
        ),
    ],
    ids=["reference", "reference and first frame", "keyframes", "suffix", "prefix", "mask", "all"],
)
def test_a_model_in_training_sees_what_it_sees_in_sampling(
    model: LTXTransformer, given: Drawn, first: bool, items: list[LatentItem], mask: Tensor | None
) -> None:
    wanted = in_sampling(model, items, mask)
    found = in_training(model, given, first)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)
    plain = in_sampling(model, [], None)
    assert float((wanted[:, -GRID.tokens :] - plain).abs().max()) > 1e-3  # the condition has an effect


def test_the_loss_leaves_conditions_out(model: LTXTransformer) -> None:
    """A reference changes the loss through attention alone, and noise on what is given changes nothing."""
    coordinates = Coordinates(SCALE, FPS, causal=True)
    task, shown = conditions(ReferenceSettings()), replace(drawn(reference=True), kept=prefix(1))
    clips = EncodedClips(CLIP, ["a clip"], {"reference": REFERENCE})

    def loss(noise: Tensor) -> float:
        draws = Draws(patchify(noise), torch.tensor([LEVEL]), [False], torch.tensor([False]))
        tokens = task.tokens(clips, draws, shown, coordinates, SIZE)
        with torch.no_grad():
            return float(Flow(model, None)(*tokens, [WORDS[0]]))

    other = NOISE.clone()
    other[:, :, :1] += 100
    assert loss(other) == loss(NOISE)
    assert loss(NOISE + 0.1) != loss(NOISE)


# --------------------------------------------------------------------------------------------------------------- draws


def draws(task: ClipConditions, count: int, seed: int = 0, size: PixelShape = SIZE) -> Drawn:
    return task.draw(torch.Generator().manual_seed(seed), count, size)


@pytest.mark.parametrize("name", ["prefix", "inpaint", "outpaint"])
def test_samples_have_their_conditions_with_the_probability(name: str) -> None:
    found = draws(conditions(**{name: 0.25}), 1000)
    assert float(found.kept.any(dim=1).float().mean()) == pytest.approx(0.25, abs=0.06)
    assert (found.reference, found.suffix, found.keyframes) == (False, False, ())
    assert not bool(draws(conditions(**{name: 0.0}, keyframes=0.5), 100).kept.any())


def test_steps_have_their_conditions_with_the_probability() -> None:
    task = conditions(ReferenceSettings(probability=0.5), suffix=0.25, keyframes=0.75)
    steps = [draws(task, 1, seed) for seed in range(400)]
    for wanted, having in ((0.5, "reference"), (0.25, "suffix"), (0.75, "keyframes")):
        assert sum(bool(getattr(step, having)) for step in steps) / 400 == pytest.approx(wanted, abs=0.08)
    assert {len(step.keyframes) for step in steps if step.keyframes} == {1, 2, 3}
    assert {number for step in steps for number in step.keyframes} == set(range(8))
    for step in steps:
        if step.suffix:  # no frame is given twice
            assert all(task.places(SIZE)[number] < 16 for number in step.keyframes)


def test_shapes_of_what_is_kept() -> None:
    kept = draws(conditions(prefix=1.0), 300).kept.view(-1, *GRID)
    assert {int(frames) for frames in kept[:, :, 0, 0].sum(dim=1)} == {1, 2, 3}  # never all four
    fixed = draws(conditions(prefix=1.0, prefix_frames=9), 10).kept.view(-1, *GRID)
    assert (fixed[:, :2].all(), fixed[:, 2:].any()) == (True, False)
    outside = draws(conditions(outpaint=1.0), 300).kept.view(-1, *GRID)
    assert bool((outside == outside[:, :1]).all())  # over the whole clip
    inside = draws(conditions(inpaint=1.0), 300).kept.view(-1, *GRID)
    lengths = {int(frames) for frames in (~inside).flatten(2).any(dim=2).sum(dim=1)}
    assert lengths == {1, 2, 3, 4}


@pytest.mark.parametrize("seed", range(20))
def test_something_is_left_to_make(seed: int) -> None:
    size = PixelShape(17, 32, 32)  # three cells, of which the suffix takes the last
    task = conditions(prefix=0.3, inpaint=0.4, outpaint=0.3, suffix=1.0, suffix_frames=9)
    grid = size.latent(SCALE)
    found = task.draw(torch.Generator().manual_seed(seed), 8, size)
    noise = torch.zeros(8, grid.tokens, CHANNELS)
    draws = Draws(noise, torch.full((8,), LEVEL), [False] * 8, torch.ones(8, dtype=torch.bool))
    extras = {"suffix": torch.zeros(8, CHANNELS, 2, 1, 1)}
    clips = EncodedClips(torch.zeros(8, CHANNELS, *grid), [""] * 8, extras)
    tokens = task.tokens(clips, draws, found, Coordinates(SCALE, FPS, causal=True), size)
    assert bool((tokens.sigma > 0).expand(-1, tokens.x0.shape[1], -1).any(dim=1).all())


def test_single_frames_have_no_conditions_in_time() -> None:
    task = conditions(prefix=1.0, suffix=1.0, keyframes=1.0)
    found = draws(task, 4, size=PixelShape(1, 64, 96))
    assert (bool(found.kept.any()), found.suffix, found.keyframes) == (False, False, ())
    given = ConditionSettings(suffix=0.1, keyframes=0.1)
    assert extra_tokens(settings(conditions=given), PixelShape(1, 64, 96), SCALE) == 0
    assert extra_tokens(settings(reference=ReferenceSettings(), conditions=given), SIZE, SCALE) == (4 + 2 + 3) * 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix": 0.5, "inpaint": 0.4, "outpaint": 0.2}, r"of 1\.1 together; expected 1 at most"),
        ({"masks": Path("masks")}, "conditions.masks without conditions.inpaint"),
        ({"most_keyframes": 9}, "most_keyframes 9 of 8 keyframe_places"),
        ({"prefix": 1.5}, "got prefix: 1.5"),
        ({"suffix": 0.5, "suffix_frames": 10}, r"suffix_frames 10 for clips of 25 frames; expected 8k\+1.* use 9"),
        ({"suffix": 0.5, "suffix_frames": 25}, "suffix_frames 25 for clips of 25 frames.* use 17"),
    ],
)
def test_conditions_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        conditions(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": Path("depth")}, r"reference\.path with reference\.kind edges"),
        ({"low": 201.0}, r"reference\.low 201 above reference\.high 200"),
        ({"probability": 0.0}, "got probability: 0"),
    ],
)
def test_references_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReferenceSettings(**changes)


# --------------------------------------------------------------------------------------------------------------- edges


def test_edges_are_opencv_s() -> None:
    cv2 = pytest.importorskip("cv2")
    frames = torch.zeros(2, 32, 48, 3)
    frames[0, 8:24, 10:30] = torch.tensor([0.9, 0.5, 0.1])
    frames[1, 4:12, 30:44] = 1.0
    found = edges(frames)
    assert found.shape == frames.shape
    for picture, white in zip(frames, found, strict=True):
        colours = (picture * 255).round().byte().numpy()
        wanted = torch.from_numpy(cv2.Canny(cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY), 100, 200)).float() / 255
        torch.testing.assert_close(white, wanted[..., None].expand(-1, -1, 3))
        assert 0.02 < float(white.mean()) < 0.2
    assert not bool(edges(frames, 254.0, 255.0)[0].any()) or bool(edges(frames, 10.0, 20.0)[0].any())


def test_edges_without_opencv_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UnsupportedError, match=r"got no OpenCV.* pip install opencv-python-headless"):
        conditions(ReferenceSettings())


# --------------------------------------------------------------------------------------------------------------- files

SMALL = PixelShape(9, 32, 32)


def movie(path: Path, frames: int = 9, height: int = 32, width: int = 32, grey: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, [torch.full((frames, height, width, 3), grey)], fps=Fraction(25))
    return path


def windows(folder: Path, *names: str, start: int = 0) -> list[Window]:
    return [Window(folder / name, start, SMALL) for name in names]


def test_files_are_found_by_the_names_of_their_clips(tmp_path: Path) -> None:
    clips, depth = tmp_path / "clips", tmp_path / "depth"
    names = ["a.mp4", "b.MOV", "sub/c.mp4", "d.mp4", "e.v2.mp4"]
    for name in names:
        movie(clips / name)
    for name in ["a.mp4", "B.mp4", "sub/c_reference.mp4", "c.mp4", "e.v2.mp4"]:
        movie(depth / name)
    (depth / "d").mkdir()
    for number in range(1, 10):
        write_image(depth / "d" / f"{number:04d}.png", torch.zeros(1, 32, 32, 3))
    found = Companions(depth, REFERENCES, windows(clips, *names), [clips], 25.0)
    shown = {str(clip.relative_to(clips)): str(other.relative_to(depth)) for clip, other in found.files.items()}
    assert shown == {
        "a.mp4": "a.mp4", "b.MOV": "B.mp4", "sub/c.mp4": "sub/c_reference.mp4", "d.mp4": "d", "e.v2.mp4": "e.v2.mp4",
    }  # fmt: skip
    assert found.frames(Window(clips / "a.mp4", 0, PixelShape(9, 16, 24))).shape == (9, 16, 24, 3)


def test_all_files_that_do_not_suit_are_named_at_once(tmp_path: Path) -> None:
    clips, depth = tmp_path / "clips", tmp_path / "depth"
    names = ["good.mp4", "missing.mp4", "long.mp4", "wide.mp4", "twice.mp4", "broken.mp4"]
    for name in names:
        movie(clips / name)
    movie(depth / "good.mp4")
    movie(depth / "long.mp4", frames=12)
    movie(depth / "wide.mp4", width=64)
    movie(depth / "twice.mp4"), movie(depth / "twice_reference.mp4")
    (depth / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(ConfigError) as raised:
        Companions(depth, REFERENCES, windows(clips, *names), [clips], 25.0)
    message = str(raised.value)
    assert "good.mp4" not in message
    assert f"{clips / 'missing.mp4'}: no {depth / 'missing'}.*" in message
    assert f"{depth / 'long.mp4'} has 12 frames, the clip 9 (at 25 per second)" in message
    assert f"{depth / 'wide.mp4'} has 64x32 pixels, the clip 32x32" in message
    assert "2 files, twice.mp4, twice_reference.mp4" in message
    assert f"{clips / 'broken.mp4'}: {depth / 'broken.mp4'}: got" in message


def test_tables_name_references_as_in_ltx_video_trainer(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "a_reference.mp4", "sub/control.mp4"):
        movie(tmp_path / name)
    rows = [{"media_path": "a.mp4", "caption": "a", "reference_path": "sub/control.mp4"}]
    rows += [{"media_path": "b.mp4", "caption": "b", "reference_path": "../b.mp4"}]
    (tmp_path / "dataset.json").write_text(json.dumps(rows[:1]))
    clips = windows(tmp_path, "a.mp4")
    found = Companions(tmp_path, REFERENCES, clips, [tmp_path], 25.0)
    assert found.files == {tmp_path / "a.mp4": tmp_path / "sub/control.mp4"}
    data = Data(kind="folder", path=tmp_path, sizes=((9, 32, 32),))
    config = settings(data=data, reference=ReferenceSettings(kind="files"))
    assert set(companion_paths(config)) == {tmp_path, tmp_path / "sub/control.mp4"}
    (tmp_path / "dataset.json").write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match=r"b.mp4: .*b.mp4 is outside"):
        Companions(tmp_path, REFERENCES, windows(tmp_path, "a.mp4", "b.mp4"), [tmp_path], 25.0)


@pytest.mark.parametrize("kind", [REFERENCES, MASKS])
def test_a_folder_that_is_not_there_is_refused(kind: Kind, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"got {kind.name} .*nowhere; expected a folder"):
        Companions(tmp_path / "nowhere", kind, [], [], 25.0)


def test_masks_without_white_are_refused(tmp_path: Path) -> None:
    clips, masks = tmp_path / "clips", tmp_path / "masks"
    for name in ("black", "still", "late"):
        movie(clips / f"{name}.mp4", frames=18 if name == "late" else 9)
    movie(masks / "black.mp4", grey=0.0)
    white = torch.zeros(1, 32, 32, 3)
    white[:, 3:5, 3:5] = 1
    write_image(masks / "still_mask.png", white)
    write_video(
        masks / "late.mp4", [torch.cat([torch.zeros(9, 32, 32, 3), torch.ones(9, 32, 32, 3)])], fps=Fraction(25)
    )
    good = [*windows(clips, "still.mp4"), *windows(clips, "late.mp4", start=9)]
    found = Companions(masks, MASKS, good, [clips], 25.0)
    assert found.frames(good[0]).shape == (9, 32, 32, 3)  # a picture serves the whole clip
    assert float(found.frames(good[1]).min()) > 0.9
    with pytest.raises(ConfigError) as raised:
        Companions(masks, MASKS, [*good, *windows(clips, "black.mp4", "late.mp4")], [clips], 25.0)
    assert f"{masks / 'black.mp4'} has no white in frames 0 to 8" in str(raised.value)
    assert f"{masks / 'late.mp4'} has no white in frames 0 to 8" in str(raised.value)
    assert "still" not in str(raised.value)


def test_a_single_white_pixel_of_a_mask_is_made(tmp_path: Path) -> None:
    clips, masks = tmp_path / "clips", tmp_path / "masks"
    movie(clips / "a.mp4", frames=9, height=64, width=96)
    (clips / "a.txt").write_text("a clip")
    dot = torch.zeros(1, 64, 96, 3)
    dot[:, 40, 70] = 1
    masks.mkdir()
    write_image(masks / "a.png", dot)
    data = Data(kind="folder", path=clips, sizes=((9, 64, 96),))
    config = settings(data=data, conditions=ConditionSettings(inpaint=1.0, masks=masks))
    sources = open_sources(data, 0, lambda _: None)
    task = ClipConditions(config, sources, SCALE)
    size = PixelShape(9, 64, 96)
    mask = task.encode(None, sources[0], [0], size, torch.zeros(1, 3, *size))["mask"]  # type: ignore[arg-type]
    wanted = torch.zeros(1, 1, 2, 2, 3)
    wanted[..., 1, 2] = 1
    assert torch.equal(mask, wanted)
    found = task.draw(torch.Generator().manual_seed(0), 3, size)
    assert (found.masked.tolist(), bool(found.kept.any())) == ([True] * 3, False)


def test_clips_that_are_no_files_have_no_files(tmp_path: Path) -> None:
    data = Data(kind="digits", sizes=((9, 32, 32),), glyph_size=16)
    (tmp_path / "depth").mkdir()
    config = settings(data=data, reference=ReferenceSettings(kind="files", path=tmp_path / "depth"))
    with pytest.raises(
        ConfigError, match=r"got reference\.path with clips that are no files; expected data.kind folder"
    ):
        ClipConditions(config, open_sources(data, 0, lambda _: None), SCALE)


def test_references_among_the_clips_are_no_clips(tmp_path: Path) -> None:
    for name in ("a.mp4", "depth/a.mp4", "b.mp4", "b_reference.mp4"):
        movie(tmp_path / name)
    sizes = [SMALL]

    def used(*leave_out: Path) -> list[str]:
        reading = Reading(leave_out=leave_out)
        found = read_folder(tmp_path, sizes, fps=25, seed=0, notes=lambda _: None, reading=reading)
        return [media.path.relative_to(tmp_path).as_posix() for media in found.train]

    assert used() == ["a.mp4", "b.mp4", "b_reference.mp4", "depth/a.mp4"]
    assert used(tmp_path / "depth") == ["a.mp4", "b.mp4", "b_reference.mp4"]
    assert used(tmp_path) == ["a.mp4", "b.mp4", "depth/a.mp4"]
    assert used(tmp_path.parent) == used()  # a folder above the clips is not theirs


def test_latents_of_other_conditions_are_made_again(tmp_path: Path) -> None:
    kinds = [
        conditions(ReferenceSettings()),
        conditions(ReferenceSettings(low=50.0)),
        conditions(suffix=0.1),
        conditions(suffix=0.1, suffix_frames=17),
        conditions(keyframes=0.1),
        conditions(keyframes=0.1, keyframe_places=4),
    ]
    assert len({tuple(each.identity()) for each in kinds}) == len(kinds)
    assert conditions(keyframes=0.1).identity() == conditions(keyframes=0.9).identity()

"""Latents and embeddings that LTX-Video-Trainer has computed: the same training as from the clips."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.media import read_image, write_video
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.run_log import read_log
from ltxkit.ltx_core.sampling.noise import initialised
from ltxkit.ltx_core.shapes import PixelShape, ScaleFactors
from ltxkit.ltx_core.training import logs, loop
from ltxkit.ltx_core.training.condition_settings import ConditionSettings, ReferenceSettings
from ltxkit.ltx_core.training.conditions import ClipConditions
from ltxkit.ltx_core.training.config import Data, DataPart, Optimization, TransformerTraining, load_config
from ltxkit.ltx_core.training.datasets.precomputed import LatentFormat, read_embedding, read_latents
from ltxkit.ltx_core.training.encoding import ClipEncoder
from ltxkit.ltx_core.training.folder import VideoFolder
from ltxkit.ltx_core.training.latents import EncodedClips, LatentCache, Latents
from ltxkit.ltx_core.training.models import open_vae, save_checkpoint_file
from ltxkit.ltx_core.training.run import run_training
from ltxkit.ltx_core.training.sources import open_sources
from ltxkit.ltx_core.training.stored_latents import check_stored_latents
from ltxkit.ltx_core.training.text import FrozenText, encode
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER

SIZE = PixelShape(9, 64, 64)
CPU = torch.device("cpu")
CAPTIONS = {"a": "a cat", "b": "a dog, running", "nested/c": "a bird"}
TOKENS = 256  # to which LTX-Video-Trainer pads every caption


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number, (name, text) in enumerate(CAPTIONS.items()):
        frames = torch.rand(9, 64, 64, 3, generator=torch.Generator().manual_seed(number))
        write_video(folder / f"{name}.mp4", [frames], fps=Fraction(25))
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def models(tiny_models: Callable[..., Path]) -> Path:
    return tiny_models()


@pytest.fixture(scope="module")
def base(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Settings of a LoRA on a transformer of two blocks, with the tiny VAE and text encoder."""
    file = tmp_path_factory.mktemp("base") / "model.safetensors"
    config = TransformerConfig.of_size(layers=2, heads=2, head_dim=16, channels=128, captions=32)
    with initialised(0, "base of a LoRA"):
        model = LTXTransformer(config)
    save_checkpoint_file(file, model.state_dict(), config, None)
    return {"initial": file, "vae": models / CHECKPOINT, "text.encoder": models / TEXT_ENCODER}


@pytest.fixture(autouse=True)
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "draw_curves", lambda *_: None)
    monkeypatch.setattr(loop, "draw_rate", lambda *_: None)


def sources(path: Path | None, notes: list[str] | None = None, **changes: object) -> VideoFolder:
    data = Data(**{"kind": "folder", "path": path, "sizes": (tuple(SIZE),), **changes})  # type: ignore[arg-type]
    form = LatentFormat(128, ScaleFactors(8, 32, 32))
    source = open_sources(data, 0, (notes if notes is not None else []).append, latents=form)[0]
    assert isinstance(source, VideoFolder)
    return source


def latents_of(source: VideoFolder, models: Path, folder: Path) -> dict[str, Tensor]:
    vae = open_vae(models / CHECKPOINT)
    data = Data(kind="folder", sizes=(tuple(SIZE),))
    cache = LatentCache(folder, 0, writes=False)
    clips = Latents(source, vae, data, 0, cache=cache, notes=lambda _: None).clips(range(3), SIZE)
    return dict(zip(clips.captions, clips.latents, strict=True))


def pack(latents: Tensor) -> Tensor:
    """LTX-Video-Trainer, ltxv_utils.pack_latents, for patches of one cell: (1 c f h w) -> (1 n c)."""
    b, c, f, h, w = latents.shape
    return latents.reshape(b, c, f * h * w).permute(0, 2, 1)


def precompute(latents: dict[str, Tensor], models: Path, root: Path, old_names: bool = False) -> Path:
    """As scripts/process_videos.py and process_captions.py write one file for each clip."""
    encoder = load_text_encoder(models / TEXT_ENCODER, dtype=torch.float32)
    for name, text in CAPTIONS.items():
        clip = latents[text]
        stem = Path(name)
        names = [stem.with_name(f"{kind}_{stem.name}" if old_names else stem.name) for kind in ("latent", "condition")]
        for kind in ("latents", "conditions"):
            (root / kind / stem).parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "latents": pack(clip[None])[0].contiguous(),
                "num_frames": clip.shape[1],
                "height": clip.shape[2],
                "width": clip.shape[3],
                "fps": 25.0,
            },
            root / "latents" / f"{names[0]}.pt",
        )
        with torch.no_grad():
            (tokens,) = encode(encoder, [text], CPU)
        padded = torch.nn.functional.pad(tokens, (0, 0, 0, TOKENS - len(tokens)), value=3.0)
        mask = torch.arange(TOKENS) < len(tokens)
        torch.save(
            {"prompt_embeds": padded.clone(), "prompt_attention_mask": mask}, root / "conditions" / f"{names[1]}.pt"
        )
    return root


@pytest.fixture(scope="module")
def wanted(clips: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return latents_of(sources(clips), models, tmp_path_factory.mktemp("wanted"))


@pytest.fixture(scope="module")
def computed(wanted: dict[str, Tensor], models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `.precomputed`."""
    return precompute(wanted, models, tmp_path_factory.mktemp("computed") / ".precomputed")


@pytest.fixture
def copy(computed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(computed, tmp_path / "data" / ".precomputed"))


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("above", [False, True])
def test_latents_and_text_are_those_of_the_clips(
    old_names: bool, above: bool, wanted: dict[str, Tensor], computed: Path, models: Path, tmp_path: Path
) -> None:
    root = precompute(wanted, models, tmp_path / ".precomputed", True) if old_names else computed
    notes: list[str] = []
    source = sources(root.parent if above else root, notes)
    assert any("as LTX-Video-Trainer uses it" in note for note in notes) == above
    text = FrozenText(models / TEXT_ENCODER, None, source.embeddings()[source.media[0].caption].shape[1], CPU)
    text.know(source.embeddings())
    text._open = None  # type: ignore[method-assign,assignment] - the encoder is not needed
    found = latents_of(source, models, tmp_path)
    plain = FrozenText(models / TEXT_ENCODER, None, text.channels, CPU)
    for media in source.media:
        name = media.stored.name.as_posix() if media.stored is not None else ""
        caption = CAPTIONS[name.replace("latent_", "")]
        torch.testing.assert_close(found[media.caption], wanted[caption], atol=0, rtol=0)
        torch.testing.assert_close(text.embeddings([media.caption])[0], plain.embeddings([caption])[0], atol=0, rtol=0)


@pytest.mark.slow
def test_a_run_on_them_has_the_losses_of_a_run_on_the_clips(
    clips: Path, computed: Path, base: dict[str, Path], tmp_path: Path
) -> None:
    values = {
        **base,
        "data.sizes": "[[9, 64, 64]]",
        "optimization.steps": 2,
        "optimization.precision": "fp32",
        "optimization.learning_rate": 2e-2,
        "optimization.warmup_steps": 0,
        "logging.log_every": 1,
        "logging.validate_every": 100,
        "validation_samples": 1,
        "lora.rank": 2,
    }
    losses: list[list[float]] = []
    for number, path in enumerate((clips, computed)):
        said = {**values, "data.path": path, "output": tmp_path / str(number)}
        steps: list[float] = []
        run_training(
            load_config("lora-2b", [f"{key}={value}" for key, value in said.items()]),
            report=lambda report, steps=steps: steps.append(report.metrics["loss"]),
        )
        losses.append(steps)
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


# Of a run that is stopped, goes on, shows clips and is exported.
IC_LORA = {
    "data.sizes": "[[9, 64, 64]]",
    "optimization.precision": "fp32",
    "optimization.learning_rate": 2e-2,
    "optimization.warmup": 0,
    "optimization.schedule": "constant",
    "logging.log_every": 1,
    "logging.validate_every": 2,
    "logging.checkpoint_every": 1,
    "validation_samples": 1,
    "reference.kind": "files",
    "lora.rank": 2,
    "prompts": "[a cat]",
    "sample_steps": 1,
}


@pytest.mark.slow
def test_an_ic_lora_on_them_is_that_of_the_clips(
    copy: Path, clips: Path, references: Path, models: Path, base: dict[str, Path], tmp_path: Path
) -> None:
    """Losses, previews and what is exported; the run on latents is stopped and goes on, that on clips is not."""
    with_references(copy, encoded(sources(clips), models, tmp_path, reference=replace(FILES, path=references)))

    def run(name: str, steps: int, resume: bool = False, **changes: object) -> Path:
        values = {**base, **IC_LORA, "optimization.steps": steps, "output": tmp_path / name, **changes}
        config = load_config("ic-lora-2b", [f"{key}={value}" for key, value in values.items()])
        assert run_training(config, resume=resume, notes=lambda _: None) is not None
        return tmp_path / name

    wanted = run("clips", 2, **{"data.path": clips, "reference.path": references})
    run("latents", 1, **{"data.path": copy})
    found = run("latents", 2, resume=True, **{"data.path": copy})
    logs = [
        {entry["step"]: value for entry in read_log(each / "log.jsonl") for key, value in entry.items() if key == kind}
        for kind in ("loss", "seen_clips_loss")
        for each in (wanted, found)
    ]
    assert logs[0].keys() == logs[1].keys() == {1, 2}
    assert logs[1] == pytest.approx(logs[0], rel=1e-4, abs=1e-5)
    assert logs[3][2] == pytest.approx(logs[2][2], rel=1e-4, abs=1e-5)
    for name in ("lora_comfyui.safetensors", "lora_diffusers.safetensors"):
        whole, other = (load_file(each / "final" / name) for each in (wanted, found))
        assert whole.keys() == other.keys()
        for key, tensor in whole.items():
            torch.testing.assert_close(other[key], tensor, atol=1e-4, rtol=2**-7)  # a step of bfloat16
    shown = sorted(wanted.glob("validation/*/*.png"))
    assert len(shown) == 2  # before the first step, and after the last one
    for picture in shown:
        other = read_image(found / picture.relative_to(wanted))
        torch.testing.assert_close(other, read_image(picture), atol=3 / 255, rtol=0)


# -------------------------------------------------------------------------------------------------------------- refused


def refused(root: Path, **changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        sources(root, **changes)
    return str(caught.value)


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (open, ("evil-was-here", "w"))  # type: ignore[return-value]


def test_every_damaged_file_is_in_one_message(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = torch.load(copy / "latents" / "a.pt", weights_only=True)
    torch.save({**good, "latents": good["latents"][:, :64]}, copy / "latents" / "a.pt")
    with (copy / "latents" / "b.pt").open("wb") as opened:
        pickle.dump({"latents": Evil()}, opened)
    nested = copy / "latents" / "nested" / "c.pt"
    nested.write_bytes(nested.read_bytes()[:200])
    torch.save({**good, "num_frames": 7}, copy / "latents" / "d.pt")
    torch.save({**good, "latents": good["latents"] * float("nan")}, copy / "latents" / "e.pt")
    torch.save({"latents": Evil()}, copy / "latents" / "f.pt")
    cells = torch.zeros(3 * 2 * 2, 128)
    torch.save({"latents": cells, "num_frames": 3, "height": 2, "width": 2}, copy / "latents" / "g.pt")
    torch.save([1, 2], copy / "latents" / "h.pt")
    message = refused(copy)
    for words in (
        "a.pt: got latents of 64 channels; expected 128",
        "b.pt, which is not loaded (it has pickled objects",
        "c.pt, which is not loaded",
        "d.pt with 8 tokens of 7 x 2 x 2 cells",
        "e.pt with latents that are not finite",
        "f.pt, which is not loaded (it has pickled objects",
        "g.pt: latents of 17x64x64, expected one of data.sizes (9x64x64); if that is not their size, they are of",
        "h.pt with list",
    ):
        assert words in message
    assert not (tmp_path / "evil-was-here").exists()


def test_embeddings_are_checked_too(copy: Path, models: Path) -> None:
    good = torch.load(copy / "conditions" / "a.pt", weights_only=True)
    torch.save({"prompt_embeds": good["prompt_embeds"]}, copy / "conditions" / "a.pt")
    assert read_embedding(copy / "conditions" / "a.pt").shape[0] == TOKENS  # without a mask all tokens count
    torch.save({**good, "prompt_attention_mask": torch.zeros(TOKENS, dtype=torch.bool)}, copy / "conditions" / "a.pt")
    (copy / "conditions" / "b.pt").unlink()
    torch.save({"other": good["prompt_embeds"]}, copy / "conditions" / "nested" / "c.pt")
    message = refused(copy)
    assert "a.pt with a mask" in message
    assert "b.pt: no conditions, and no caption in a table" in message
    assert "c.pt with other; expected prompt_embeds" in message
    text = FrozenText(models / TEXT_ENCODER, None, good["prompt_embeds"].shape[1] + 1, CPU)
    with pytest.raises(ConfigError, match=r"expected .* caption_channels"):
        text.know({"a": good["prompt_embeds"]})


def test_captions_of_a_table_take_the_place_of_missing_conditions(copy: Path) -> None:
    shutil.rmtree(copy / "conditions")
    rows = [{"caption": text, "media_path": f"{name}.mp4"} for name, text in CAPTIONS.items()]
    (copy.parent / "dataset.json").write_text(json.dumps(rows))
    source = sources(copy.parent)
    assert sorted(media.caption for media in source.media) == sorted(CAPTIONS.values())
    assert source.embeddings() == {}
    assert sources(copy.parent, trigger_word="x").captions() == sorted(f"x {text}" for text in CAPTIONS.values())


def test_references_have_the_shape_of_their_clips(copy: Path) -> None:
    shutil.copytree(copy / "latents", copy / "reference_latents")
    assert all(media.stored is not None and media.stored.reference for media in sources(copy).media)
    (copy / "reference_latents" / "b.pt").unlink()
    cells = torch.zeros(2 * 2, 128)
    torch.save({"latents": cells, "num_frames": 1, "height": 2, "width": 2}, copy / "reference_latents" / "a.pt")
    message = refused(copy)
    assert "a.pt: its reference has (128, 1, 2, 2) latents, the clip (128, 2, 2, 2)" in message
    assert "b.pt: no reference" in message


def encoded(source: VideoFolder, models: Path, folder: Path, **changes: object) -> EncodedClips:
    """All clips of a source with what their conditions need."""
    config, vae = settings(**changes), open_vae(models / CHECKPOINT)
    place = source.media[0].path.parent  # of the first clip, which is at the top
    config = replace(config, data=replace(config.data, path=place))
    extras = ClipConditions(config, [source], vae.config.scale_factors)
    cache = LatentCache(folder, 0, writes=False)
    latents = Latents(source, vae, config.data, 0, cache=cache, notes=lambda _: None, extras=extras)
    return latents.clips(range(len(source.media)), SIZE)


def settings(**changes: object) -> TransformerTraining:
    data = Data(kind="folder", sizes=(tuple(SIZE),))  # type: ignore[arg-type]
    plain = TransformerTraining(
        output=Path("run"), data=data, optimization=Optimization(steps=1, batch_size=1, learning_rate=1e-3)
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


FILES = ReferenceSettings(kind="files")


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("references")
    for number, name in enumerate(CAPTIONS):
        frames = torch.rand(9, 64, 64, 3, generator=torch.Generator().manual_seed(10 + number))
        write_video(folder / f"{name}.mp4", [frames], fps=Fraction(25))
    return folder


def with_references(root: Path, wanted: EncodedClips) -> None:
    """As scripts/process_videos.py writes them with --reference-column."""
    for name, text in CAPTIONS.items():
        latents = wanted.extras["reference"][wanted.captions.index(text)]
        file = root / "reference_latents" / f"{name}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        _, frames, height, width = latents.shape
        content = {"latents": pack(latents[None])[0].contiguous(), "num_frames": frames, "height": height}
        torch.save({**content, "width": width, "fps": 25.0}, file)


def test_reference_latents_are_those_of_the_references(
    copy: Path, clips: Path, references: Path, models: Path, tmp_path: Path
) -> None:
    wanted = encoded(sources(clips), models, tmp_path, reference=replace(FILES, path=references))
    with_references(copy, wanted)
    source = sources(copy)
    found = encoded(source, models, tmp_path, reference=FILES)
    for media in source.media:
        assert media.stored is not None
        row = found.captions.index(media.caption)
        place = wanted.captions.index(CAPTIONS[media.stored.name.as_posix()])
        assert torch.equal(found.latents[row], wanted.latents[place])
        assert torch.equal(found.extras["reference"][row], wanted.extras["reference"][place])


def test_stored_clips_and_others_may_be_mixed(
    copy: Path, clips: Path, references: Path, models: Path, tmp_path: Path
) -> None:
    wanted = encoded(sources(clips), models, tmp_path, reference=replace(FILES, path=references))
    with_references(copy, wanted)
    parts = (DataPart(path=copy), DataPart(path=clips, references=references))
    found = encoded(sources(None, parts=parts), models, tmp_path, reference=FILES)
    assert found.extras["reference"].shape == (6, *wanted.extras["reference"].shape[1:])
    for row, caption in enumerate(found.captions):  # of latents, it names the embedding
        text = CAPTIONS.get(caption.removeprefix(f"{copy}/"), caption)
        assert torch.equal(found.extras["reference"][row], wanted.extras["reference"][wanted.captions.index(text)])


def test_a_changed_reference_is_another_cache(
    copy: Path, clips: Path, references: Path, models: Path, tmp_path: Path
) -> None:
    with_references(copy, encoded(sources(clips), models, tmp_path, reference=replace(FILES, path=references)))
    before = ClipConditions(settings(reference=FILES), [sources(copy)], ScaleFactors(8, 32, 32)).identity()
    file = copy / "reference_latents" / "a.pt"
    content = torch.load(file, weights_only=True)
    torch.save({**content, "latents": content["latents"] + 1, "more": "x" * 100}, file)
    after = ClipConditions(settings(reference=FILES), [sources(copy)], ScaleFactors(8, 32, 32)).identity()
    assert before != after


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"reference": ReferenceSettings(kind="edges")}, "reference.kind edges"),
        ({"reference": replace(FILES, path=Path("elsewhere"))}, "reference.path"),
        ({"conditions": ConditionSettings(suffix=0.5, suffix_frames=1)}, "conditions.suffix"),
        ({"conditions": ConditionSettings(keyframes=0.5)}, "conditions.keyframes"),
        ({"conditions": ConditionSettings(inpaint=0.5, masks=Path("masks"))}, "masks"),
    ],
)
def test_what_is_made_of_pixels_is_refused_for_latents(copy: Path, changes: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"stored as latents, with {re.escape(name)}; expected clips"):
        ClipConditions(settings(**changes), [sources(copy)], ScaleFactors(8, 32, 32))


def test_references_that_latents_lack_are_named(copy: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.pt.*without those of a reference; expected reference_latents"):
        ClipConditions(settings(reference=FILES), [sources(copy)], ScaleFactors(8, 32, 32))


def test_conditions_of_the_latents_themselves_need_no_pixels(copy: Path, models: Path, tmp_path: Path) -> None:
    shown = ConditionSettings(prefix=0.3, inpaint=0.3, outpaint=0.3)
    assert encoded(sources(copy), models, tmp_path, conditions=shown).extras == {}


def test_another_frame_rate_is_said(copy: Path) -> None:
    for path in (copy / "latents").rglob("*.pt"):
        torch.save({**torch.load(path, weights_only=True), "fps": 24.0}, path)
    notes: list[str] = []
    sources(copy, notes)
    assert any("3 clips of latents stand for 24 frames per second and are trained at data.fps=25" in n for n in notes)


def test_earlier_files_without_packing_are_read(copy: Path) -> None:
    packed = read_latents(copy / "latents" / "a.pt").latents
    torch.save({"latents": packed}, copy / "latents" / "a.pt")
    assert torch.equal(read_latents(copy / "latents" / "a.pt").latents, packed)


def test_a_vae_is_not_trained_on_latents(copy: Path, clips: Path) -> None:
    data = Data(kind="folder", path=copy, sizes=(tuple(SIZE),))
    with pytest.raises(ConfigError, match="on which only a transformer can be trained"):
        open_sources(data, 0, lambda _: None)
    shutil.copytree(clips, copy.parent, dirs_exist_ok=True)
    beside = Data(kind="folder", path=copy.parent, sizes=(tuple(SIZE),))
    assert len(open_sources(beside, 0, lambda _: None)[0].identity()) == 3  # the clips


def test_the_clips_may_be_chosen(copy: Path, clips: Path) -> None:
    shutil.copytree(clips, copy.parent, dirs_exist_ok=True)
    assert {media.path.suffix for media in sources(copy.parent).media} == {".pt"}
    assert {media.path.suffix for media in sources(copy.parent, precomputed=False).media} == {".mp4"}


def test_latents_of_another_vae_are_told_by_a_clip_beside_them(copy: Path, clips: Path, models: Path) -> None:
    vae = open_vae(models / CHECKPOINT)
    check_stored_latents(
        [sources(copy.parent)], ClipEncoder(vae, CPU)
    )  # without clips there is nothing to compare with
    shutil.copytree(clips, copy.parent, dirs_exist_ok=True)
    check_stored_latents([sources(copy.parent)], ClipEncoder(vae, CPU))
    for path in (copy / "latents").rglob("*.pt"):
        content = torch.load(path, weights_only=True)
        drawn = torch.randn(content["latents"].shape, generator=torch.Generator().manual_seed(1))
        torch.save({**content, "latents": content["latents"] + 0.1 * content["latents"].std() * drawn}, path)
    check_stored_latents([sources(copy.parent)], ClipEncoder(vae, CPU))  # a draw from the posterior
    for path in (copy / "latents").rglob("*.pt"):
        content = torch.load(path, weights_only=True)
        mixed = content["latents"].roll(1, dims=1) * -1.3
        torch.save({**content, "latents": mixed}, path)
    with pytest.raises(ConfigError, match=r"a\.pt, whose latents are not those of .*a\.mp4 \(correlation"):
        check_stored_latents([sources(copy.parent)], ClipEncoder(vae, CPU))

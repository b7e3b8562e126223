"""Which release a file is: what it says, else what its content leaves, and among those the name of the file."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ltxkit.cli import main
from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.pipelines.recipe import recipe_for
from ltxkit.ltx_core.releases import RELEASES, Family, releases_named
from ltxkit.ltx_core.weights.build import load_transformer, load_vae, mixed_generations, open_models
from ltxkit.ltx_core.weights.containers import open_checkpoint
from ltxkit.ltx_core.weights.convert import convert
from ltxkit.ltx_core.weights.report import format_report, inspect
from ltxkit.ltx_core.weights.save import TRANSFORMER_PREFIX
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER
from ltxkit.nodes.host import use_host
from ltxkit.nodes.loaders import LoadModel

TinyModels = Callable[..., Path]


@pytest.fixture(scope="module")
def bare(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """bare("13b", "name.safetensors"): the transformer alone, without metadata, as GGUF and most fp8 files are."""

    def make(family: Family, name: str, folder: Path | None = None) -> Path:
        path = (folder or tmp_path_factory.mktemp("bare")) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = load_file(tiny_models(family) / CHECKPOINT)
        own = {
            key.removeprefix(TRANSFORMER_PREFIX): tensor
            for key, tensor in tensors.items()
            if key.startswith(TRANSFORMER_PREFIX)
        }
        save_file(own, path)
        return path

    return make


def of_family(family: Family) -> list[str]:
    return [release.name for release in RELEASES.values() if release.family == family]


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        ("13b", "ltxv-13b-0.9.8-distilled-Q4_K_M.gguf", "13b-0.9.8-distilled"),
        ("13b", "ltxv-13b-0.9.7-dev-fp8_e4m3fn.safetensors", "13b-0.9.7-dev"),
        ("13b", "LTXV_13B_098_Distilled", "13b-0.9.8-distilled"),
        ("13b", "LTX-Video-0.9.8-13B-distilled", "13b-0.9.8-distilled"),
        ("13b", "ltxv13b_v0_9_7_distill_int8", "13b-0.9.7-distilled"),
        ("13b", "ltxv-13b-distilled", "13b-0.9.7-distilled 13b-0.9.8-distilled"),
        ("13b", "my-0.9.9-distilled", "13b-0.9.7-distilled 13b-0.9.8-distilled"),
        ("13b", "ltxv-13b-0.9.7-00001-of-00009", "13b-0.9.7-dev 13b-0.9.7-distilled"),
        ("13b", "0.9.7-dev-merged-with-distilled-lora", "13b-0.9.7-dev 13b-0.9.7-distilled"),
        ("13b", "ltxv-13b-0.9.8-undistilled", "13b-0.9.8-dev"),
        ("13b", "0.9.8-non-distilled", "13b-0.9.8-dev"),
        ("2b", "ltx-video-2b-v0.9.safetensors", "2b-0.9.0"),
        ("2b", "ltx-video-2b-v0.9-Q8_0.gguf", "2b-0.9.0"),
        ("2b", "ltx-video-2b-v0.9.1-F16.gguf", "2b-0.9.1"),
        ("2b", "ltx-video-2b-v0.9.5.safetensors", "2b-0.9.5"),
        ("2b", "ltxv-2b-0.9.6-dev-04-25.safetensors", "2b-0.9.6-dev"),
        ("2b", "ltxv-2b-0.9.6-distilled-04-25.safetensors", "2b-0.9.6-distilled"),
        ("2b", "ltxv-2b-0.9.8-distilled-fp8.safetensors", "2b-0.9.8-distilled"),
        ("2b", "ltxv098.gguf", "2b-0.9.8-distilled"),
        ("2b", "v096.gguf", "2b-0.9.6-dev 2b-0.9.6-distilled"),
    ],
)
def test_names_that_circulate(family: Family, name: str, expected: str) -> None:
    candidates = [RELEASES[release] for release in of_family(family)]
    assert " ".join(release.name for release in releases_named(name, candidates)) == expected


@pytest.mark.parametrize("name", ["model.safetensors", "device.gguf", "2025-09-08", "step_000980", "1.0.9.8", "x0981"])
def test_names_that_say_nothing(name: str) -> None:
    candidates = list(RELEASES.values())
    assert releases_named(name, candidates) == candidates


def test_what_no_candidate_is_does_not_count() -> None:
    """The name says 0.9.8 dev, which is no 2B; the content has decided for one of these."""
    candidates = [RELEASES[name] for name in ("2b-0.9.5", "2b-0.9.6-dev")]
    assert releases_named("ltxv-13b-0.9.8-distilled", candidates) == candidates


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_distilled_file_without_metadata_is_distilled(bare: Callable[..., Path]) -> None:
    file = bare("13b", "ltxv-13b-0.9.8-distilled.safetensors")
    model, info = load_transformer(file)
    assert info.versions == ("13b-0.9.8-distilled",)
    assert recipe_for(info.versions)[0].distilled
    assert info.scheduler is not None
    assert info.scheduler.allowed_inference_steps == RELEASES["13b-0.9.8-distilled"].recipe.allowed_inference_steps
    assert model.config.causal_temporal_positioning
    note = info.notes[0]
    assert note.startswith(f"{file} does not say which release it is: it can be 13b-0.9.7-dev, 13b-0.9.8-dev")
    for words in ("By its name it is taken for 13b-0.9.8-distilled.", "--version", "version= in Python", "widget"):
        assert words in note
    assert any("the released version that its name says: " not in text for text in info.notes)


@pytest.mark.slow
def test_the_user_and_the_content_go_before_the_name(bare: Callable[..., Path], tiny_models: TinyModels) -> None:
    file = bare("13b", "ltxv-13b-0.9.8-distilled.safetensors")
    info = load_transformer(file, version="13b-0.9.7-dev")[1]
    assert (info.versions, [note for note in info.notes if "its name" in note]) == (("13b-0.9.7-dev",), [])
    file = bare("2b", "ltxv-13b-0.9.8-distilled.safetensors")  # 28 layers: no 13B, whatever it is called
    assert load_transformer(file)[1].versions == ("2b-0.9.8-distilled",)
    early = tiny_models(vae="0.9.1") / CHECKPOINT
    named = early.parent / "ltxv-2b-0.9.8-distilled.safetensors"
    shutil.copy(early, named)
    try:
        assert load_transformer(named)[1].versions == ("2b-0.9.1",)  # its VAE and its metadata say so
    finally:
        named.unlink()


def test_a_2b_without_metadata_needs_the_name_or_the_version(bare: Callable[..., Path]) -> None:
    """Positions differ between the generations, and no tensor shows which one it is."""
    with pytest.raises(ConfigError, match=r"causal_temporal_positioning.*pass version="):
        load_transformer(bare("2b", "ltx.safetensors"))
    for name, causal in (("ltx-video-2b-v0.9.1.safetensors", False), ("ltxv-2b-0.9.6-dev.safetensors", True)):
        opened = open_models(bare("2b", name))
        model, info = opened.transformer()
        assert model.config.causal_temporal_positioning is causal
        assert opened.description.values["transformer.causal_temporal_positioning"].origin == "file name"
        assert any("the released version that its name says" in note for note in info.notes)


@pytest.mark.parametrize(
    "place",
    [
        "LTX-Video-0.9.8-13B-distilled/transformer",
        "models--Lightricks--LTX-Video-0.9.8-13B-distilled/snapshots/0123abc/transformer",
    ],
)
def test_in_a_folder_the_name_is_that_of_the_repository(place: str, bare: Callable[..., Path], tmp_path: Path) -> None:
    file = bare("13b", "diffusion_pytorch_model.safetensors", tmp_path / "dev" / place)
    (file.parent / "config.json").write_text('{"_class_name": "LTXVideoTransformer3DModel"}')
    for path in (file.parent.parent, file.parent, file):
        assert open_models(path).description.versions == ("13b-0.9.8-distilled",)


def test_the_name_of_a_file_goes_before_that_of_its_repository(bare: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "LTX-Video-0.9.8-13B-distilled" / "transformer"
    file = bare("13b", "ltxv-13b-0.9.7-dev.safetensors", folder)
    (folder / "config.json").write_text('{"_class_name": "LTXVideoTransformer3DModel"}')
    assert open_models(file).description.versions == ("13b-0.9.7-dev",)
    file = bare("13b", "diffusion_pytorch_model.bf16.safetensors", tmp_path / "ltxv-13b-0.9.8-distilled")
    assert open_models(file).description.versions == ("13b-0.9.8-distilled",)


def test_folders_around_a_file_do_not_count(bare: Callable[..., Path], tmp_path: Path) -> None:
    file = bare("13b", "x.safetensors", tmp_path / "ltxv-13b-0.9.8-distilled")
    assert len(open_models(file).description.versions) == 4


@pytest.mark.slow
@pytest.mark.parametrize("to", ["single-file", "diffusers", "fp8", "gguf-q8_0"])
def test_convert_writes_the_release_that_it_is_told(to: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    source = tiny_models("13b") / CHECKPOINT
    assert len(open_models(source).description.versions) == 4
    target = tmp_path / ("folder" if to == "diffusers" else "x.gguf" if "gguf" in to else "x.safetensors")
    convert(source, target, to, version="13b-0.9.8-distilled")
    description = open_models(target).description
    assert description.versions == ("13b-0.9.8-distilled",)
    assert description.release_note() is None
    assert description.scheduler() == open_models(source, version="13b-0.9.8-distilled").description.scheduler()
    assert description.transformer() == open_models(source).description.transformer()
    config = json.loads(open_checkpoint(target).metadata["config"])
    assert config["allowed_inference_steps"] == list(
        RELEASES["13b-0.9.8-distilled"].recipe.allowed_inference_steps or ()
    )
    assert open_models(target, version="13b-0.9.7-dev").description.versions == ("13b-0.9.7-dev",)


def test_a_release_of_a_later_ltxkit_is_only_listed(bare: Callable[..., Path]) -> None:
    file = bare("13b", "ltxv-13b-0.9.8-dev.safetensors")
    save_file(load_file(file), file, {"ltxkit_version": "13b-0.9.9"})
    description = open_models(file).description
    assert (description.versions, description.unknown) == (("13b-0.9.8-dev",), ("ltxkit_version",))


# --- it is said -------------------------------------------------------------------------------------------------------


def test_inspect_says_it(bare: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    file = bare("13b", "ltxv-13b-0.9.8-distilled.safetensors")
    report = inspect(file)
    assert report["version"] == "13b-0.9.8-distilled"
    assert "By its name" in report["notes"][0]
    assert "By its name" in format_report(report)
    assert main(["inspect", str(file)]) == 0
    assert "By its name it is taken for 13b-0.9.8-distilled" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ltxv-13b-0.9.8-distilled.safetensors", "By its name it is taken for 13b-0.9.8-distilled."),
        ("x.safetensors", "sampling as 13b-0.9.7-dev; it may also be 13b-0.9.8-dev, 13b-0.9.7-distilled, "),
    ],
)
def test_the_library_is_not_silent(name: str, words: str, bare: Callable[..., Path], tiny_models: TinyModels) -> None:
    folder = tiny_models("13b")
    heard: list[str] = []
    for listening in ({"notes": heard.append}, {}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Components.load(bare("13b", name), folder / TEXT_ENCODER, vae=folder / CHECKPOINT, **listening)
        warned = [warning for warning in caught if words in str(warning.message)]
        assert [warning.filename for warning in warned] == ([] if listening else [__file__])
    (said,) = [text for text in heard if words in text]
    assert "--version of the commands, version= in Python, the widget version of Load Model" in said


@pytest.mark.slow
def test_a_vae_of_another_generation_is_said(
    tiny_models: TinyModels, bare: Callable[..., Path], tmp_path: Path
) -> None:
    late, early = tiny_models("13b") / CHECKPOINT, tiny_models(vae="0.9.0") / CHECKPOINT
    note = mixed_generations(open_models(late), open_models(early))
    assert note is not None
    assert f"The VAE in {early} is of the generation 0.9.0" in note
    assert "trained with the VAE of 0.9.5" in note
    assert mixed_generations(open_models(late), open_models(tiny_models() / CHECKPOINT)) is None
    assert mixed_generations(open_models(bare("2b", "x.safetensors")), open_models(early)) is None  # it can be any
    models = tmp_path / "checkpoints"
    models.mkdir()
    for name, path in (("13b.safetensors", late), ("old.safetensors", early)):
        (models / name).symlink_to(path)
    said: list[str] = []
    with use_host(PlainHost(tmp_path, tmp_path, tmp_path, notes=said.append)):
        LoadModel().run("13b.safetensors", "old.safetensors", "auto", "from the file")
    assert any("latents have nothing in common" in text for text in said)
    assert load_vae(early, data=False).config.latent_channels == 128  # each alone loads

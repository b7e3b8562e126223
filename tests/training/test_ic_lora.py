"""IC-LoRAs and conditions through whole runs, and the runs of LoRAs as models, on small models and the bundled one."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from ltxkit.cli import main
from ltxkit.ltx_core.errors import CheckpointError, ConfigError
from ltxkit.ltx_core.media import read_video, write_image, write_video
from ltxkit.ltx_core.placing.placement import DevicePlacement, host_on
from ltxkit.ltx_core.run_log import read_log
from ltxkit.ltx_core.training import run as run_module
from ltxkit.ltx_core.training import text
from ltxkit.ltx_core.training.config import load_config
from ltxkit.ltx_core.training.data_choice import data_settings, fitting_frames
from ltxkit.ltx_core.training.edges import edges
from ltxkit.ltx_core.training.generate import load_models
from ltxkit.ltx_core.training.lora_run import find_lora_run
from ltxkit.ltx_core.training.run import run_training as run_config
from ltxkit.ltx_core.weights.bundled import BUNDLED

pytestmark = pytest.mark.slow  # they load and train the bundled model

HOST = host_on(DevicePlacement("cpu"))
SMALL = [
    *("optimization.steps=2", "optimization.batch_size=2", "cache_clips=4", "validation_samples=2", "prompts=[]"),
    *("logging.log_every=1", "logging.checkpoint_every=1", "logging.validate_every=2", "lora.rank=2", "sample_steps=1"),
]


def run_training(preset: str, overrides: list[str], resume: bool = False) -> Path:
    final = run_config(load_config(preset, [*SMALL, *overrides]), resume=resume, notes=lambda _: None)
    assert final is not None
    return final


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_log(run / "log.jsonl") if "loss" in row]


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an IC-LoRA on the bundled model."""
    run = tmp_path_factory.mktemp("ic") / "run"
    prompts = "prompts=[the digit three moving left, a 7 moving up]"
    run_training("ic-lora-digits", [f"output={run}", prompts, "conditions.keyframes=0.5", "conditions.prefix=0.3"])
    return run


def test_an_ic_lora_is_trained_and_previewed(lora: Path) -> None:
    assert {path.name for path in (lora / "final").iterdir()} == {
        "lora_comfyui.safetensors",
        "lora_diffusers.safetensors",
    }
    assert (lora / "validation/step_000000/sheet.png").is_file()
    saved = torch.load(lora / "latents_25x64x64.pt", weights_only=True)
    assert {name: tuple(each.shape) for name, each in saved["extras"].items()} == {
        "reference": (8, 128, 4, 2, 2),
        "keyframes": (8, 128, 8, 2, 2),
    }


def test_a_resumed_run_ends_as_one_that_was_not_stopped(lora: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(lora, run)
    for name in ("checkpoints/step_000002", "final"):
        shutil.rmtree(run / name)
    settings = [f"output={run}", "conditions.keyframes=0.5", "conditions.prefix=0.3"]
    run_training("ic-lora-digits", settings, resume=True)
    wanted, found = (load_file(each / "final/lora_comfyui.safetensors") for each in (lora, run))
    assert all(torch.equal(tensor, found[key]) for key, tensor in wanted.items())
    with pytest.raises(ConfigError, match=r"reference\.low was 100\.0, is 50\.0"):
        run_training("ic-lora-digits", [*settings, "reference.low=50"], resume=True)


def test_pieces_of_a_batch_have_the_conditions_of_the_whole(tmp_path: Path) -> None:
    conditions = ["conditions.inpaint=0.4", "conditions.outpaint=0.3", "conditions.suffix=0.5", "lora.rank=1"]
    runs = []
    for pieces in (1, 2):
        runs.append(tmp_path / str(pieces))
        accumulation = f"optimization.accumulation={pieces}"
        few = ["optimization.steps=1", "cache_clips=2", "validation_samples=1"]
        run_training("ic-lora-digits", [f"output={runs[-1]}", accumulation, *conditions, *few])
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-4)


def test_files_that_do_not_suit_are_refused_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", [torch.rand(25, 64, 64, 3)], fps=Fraction(25))
        (tmp_path / f"{name}.txt").write_text("a digit")
    depth = tmp_path / "depth"
    depth.mkdir()
    write_video(depth / "a.mp4", [torch.rand(17, 64, 64, 3)], fps=Fraction(25))
    settings = [f'data={{kind: folder, path: "{tmp_path}", sizes: [[25, 64, 64]]}}', f'output="{tmp_path}/run"']
    settings += [f'reference={{kind: files, path: "{depth}"}}']
    monkeypatch.setattr(text, "load_text_encoder", None)
    with pytest.raises(ConfigError) as raised:
        run_training("ic-lora-digits", settings)
    assert "a.mp4 has 17 frames, the clip 25" in str(raised.value)
    assert f"{tmp_path / 'b.mp4'}: no {depth / 'b'}.*" in str(raised.value)
    assert not list((tmp_path / "run").glob("*.pt"))


def test_a_reference_from_files_is_that_of_its_clip(tmp_path: Path) -> None:
    """Files with the clips' own edges train as computed edges do."""
    clips = torch.zeros(2, 25, 64, 64, 3)
    for frame in range(25):
        clips[0, frame, 10:40, frame : frame + 20] = 1.0
        clips[1, frame, 20 + frame : 30 + frame, 30:60] = 0.8
    (tmp_path / "edges").mkdir()
    for number, clip in enumerate(clips):
        write_video(tmp_path / f"{number}.mp4", [clip], fps=Fraction(25))
        (tmp_path / f"{number}.txt").write_text("a digit")
        shown = edges(read_video(tmp_path / f"{number}.mp4").frames)
        folder = tmp_path / "edges" / str(number)
        folder.mkdir()
        for frame, picture in enumerate(shown):
            write_image(folder / f"{frame:03d}.png", picture[None])
    data = f'data={{kind: folder, path: "{tmp_path}", sizes: [[25, 64, 64]]}}'
    computed, read = tmp_path / "run1", tmp_path / "run2"
    few = ["optimization.steps=1", "validation_samples=1"]
    run_training("ic-lora-digits", [data, *few, f'output="{computed}"'])
    run_training(
        "ic-lora-digits", [data, *few, f'output="{read}"', f'reference={{kind: files, path: "{tmp_path}/edges"}}']
    )
    one, two = (torch.load(run / "latents_25x64x64.pt", weights_only=True) for run in (computed, read))
    torch.testing.assert_close(one["extras"]["reference"], two["extras"]["reference"], atol=1e-4, rtol=1e-4)
    assert one["extras"]["reference"].std() > 0.1
    assert losses(computed) == pytest.approx(losses(read), rel=1e-3)


def test_a_preview_without_a_reference_to_follow_is_refused(tmp_path: Path) -> None:
    def refused(*overrides: str, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            run_training("ic-lora-digits", [f"output={tmp_path}/run", "prompts=[left]", *overrides])

    refused("preview.size=[17, 64, 64]", match=r"got preview\.size \[17, 64, 64\], of which no clip is there")
    refused("preview.reference=nowhere.mp4", match=r"got nowhere\.mp4, which does not exist")
    write_video(tmp_path / "short.mp4", [torch.rand(9, 64, 64, 3)], fps=Fraction(25))
    refused(f'preview.reference="{tmp_path}/short.mp4"', match=r"short\.mp4 with 9 frames; expected 25")
    refused("reference=null", "preview.reference=nowhere.mp4", match=r"got preview\.reference without reference")


# ---------------------------------------------------------------------------------------------- the run of a LoRA: F21


def test_the_run_of_a_lora_is_sampled(lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--prompt", "the digit three moving left", "--steps", "2", "--frames", "25"]
    assert main(["sample", "--model", str(lora), *common, "-o", str(tmp_path / "plain")]) == 0
    clip = tmp_path / "plain/000.mp4"
    assert len(read_video(clip).frames) == 25
    for folder, option in (("edges", "--edges-of"), ("reference", "--reference")):
        assert main(["sample", "--model", str(lora), *common, option, str(clip), "-o", str(tmp_path / folder)]) == 0
    frames = [read_video(tmp_path / name / "000.mp4").frames for name in ("plain", "edges", "reference")]
    assert not torch.allclose(frames[0], frames[1], atol=0.05)
    assert not torch.allclose(frames[1], frames[2], atol=0.05)
    assert main(["sample", "--model", str(lora), *common, "--reference", "a", "--edges-of", "b", "-o", "x"]) == 2
    assert "got --reference and --edges-of; expected one of them" in capsys.readouterr().err


def test_the_lora_is_that_of_the_run(lora: Path) -> None:
    models = load_models(lora, host=HOST)
    assert [item.lora.path for item in models.loras] == [lora / "final/lora_comfyui.safetensors"]
    for place in (lora / "final", lora / "checkpoints/step_000001"):
        found = find_lora_run(place)
        assert found is not None
        assert found.lora == place / "lora_comfyui.safetensors"
    assert find_lora_run(Path(BUNDLED)) is None
    with pytest.raises(ConfigError, match="got an upscaler with the run of a LoRA"):
        load_models(lora, Path(BUNDLED), host=HOST)


def test_a_base_that_went_away_is_named(lora: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(lora, run)
    tree = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    found = tree["initial"]
    (run / "config.yaml").write_text(yaml.safe_dump(tree | {"initial": "gone.safetensors"}), encoding="utf-8")
    again = find_lora_run(run)  # the newest checkpoint knows the whole path
    assert again is not None
    assert again.initial == Path(found)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match=r"whose initial gone\.safetensors is not there any more"):
        find_lora_run(run)
    (run / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"without the config\.yaml of its run.*ltxkit generate --model BASE"):
        find_lora_run(run)


# ------------------------------------------------------------------------------------------------ the bundled model


def test_training_takes_the_name_of_the_bundled_model(tmp_path: Path) -> None:
    plain = load_config("lora-digits")
    set_by_hand = load_config(
        "lora-2b", [f"initial={BUNDLED}", f"vae={BUNDLED}", f"text.encoder={BUNDLED}", "data.path=videos"]
    )
    for config in (plain, set_by_hand):
        assert config.initial == config.vae
        assert config.initial.is_file()
        assert config.text.encoder.is_dir()
    assert main(["train", "--config", "lora-digits", "--set", "initial=ltxkit-digit", "--output", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("digits", {"kind": "digits", "path": None}),
        ("clips", {"kind": "folder", "path": "clips"}),
        ("idx", {"kind": "mnist", "path": "idx"}),
        ("zipped", {"kind": "mnist", "path": "zipped"}),
        ("torchvision", {"kind": "mnist", "path": "torchvision/MNIST/raw"}),
        ("xdiffusion", {"kind": "moving_mnist", "path": "xdiffusion/videos_data.npz"}),
        ("mnist.npy", {"kind": "moving_mnist", "path": "mnist.npy"}),
        ("videos_data.NPZ", {"kind": "moving_mnist", "path": "videos_data.NPZ"}),
    ],
)
def test_data_is_known_by_its_content(
    name: str, wanted: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("clips", "idx", "zipped", "torchvision/MNIST/raw", "xdiffusion"):
        Path(folder).mkdir(parents=True)
    Path("torchvision/MNIST/raw/train-images-idx3-ubyte").touch()
    Path("xdiffusion/videos_data.npz").touch()
    Path("idx/train-images-idx3-ubyte").touch()
    Path("zipped/train-images-idx3-ubyte.gz").touch()
    for file in ("mnist.npy", "videos_data.NPZ"):
        Path(file).touch()
    assert data_settings(name) == wanted


@pytest.mark.parametrize("name", ["nowhere", "mnist.txt"])
def test_data_that_is_none_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mnist.txt").touch()
    with pytest.raises(ConfigError, match=f"got data {name}; expected a folder of videos"):
        data_settings(name)


@pytest.mark.parametrize(("frames", "wanted"), [(20, 17), (25, 25), (40, 25), (8, 1), (9, 9)])
def test_clips_are_as_long_as_the_published_file_has_them(frames: int, wanted: int, tmp_path: Path) -> None:
    np.save(tmp_path / "mnist.npy", np.zeros((frames, 30, 64, 64), np.uint8))
    assert fitting_frames(str(tmp_path / "mnist.npy"), 25) == wanted


def test_the_published_file_trains_both_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--data mnist.npy`, (20 frames, clips, 64, 64) bytes, without another word about it."""
    seen: list[object] = []
    monkeypatch.setattr(run_module, "run_training", lambda config, **_: seen.append(config) or tmp_path)
    file = tmp_path / "mnist.npy"
    np.save(file, np.zeros((20, 30, 64, 64), np.uint8))
    for command, preset in (("train-vae", "moving-mnist-vae"), ("train", "moving-mnist")):
        assert main([command, "--config", preset, "--data", str(file), "--output", str(tmp_path / command)]) == 0
    for config in seen:
        data = config.data  # type: ignore[attr-defined]
        assert (data.kind, data.path, data.sizes) == ("moving_mnist", file, ((17, 64, 64),))
    assert "has shorter clips than 25 frames; 17 of them are trained on" in capsys.readouterr().err

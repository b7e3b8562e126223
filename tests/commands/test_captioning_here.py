"""`ltxkit caption` by a model of transformers on this machine: tiny ones with random weights, as transformers saves
them. Their words mean nothing; they must be those that transformers' own steps give."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ltxkit.cli import main
from ltxkit.commands.captioning import PROMPT
from ltxkit.ltx_core import files
from ltxkit.ltx_core.errors import CheckpointError, ConfigError
from ltxkit.ltx_core.media import write_image, write_video
from ltxkit.ltx_core.training import vision_model
from ltxkit.ltx_core.training.pictures import as_picture
from ltxkit.ltx_core.training.uncaptioned import frames_of
from ltxkit.ltx_core.training.vision_model import VisionModel

CPU = torch.device("cpu")
pytestmark = pytest.mark.slow  # transformers' import alone takes as long as torch's, twice


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision_model, "LONGEST", 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    clips = tmp_path / "clips"
    clips.mkdir()
    noise = torch.rand(9, 32, 48, 3, generator=torch.Generator().manual_seed(1))
    write_video(clips / "a.mp4", [noise], fps=Fraction(25))
    write_image(clips / "b.png", noise[:1])
    write_image(clips / "c.png", noise[:1])
    (clips / "c.txt").write_text("has one")
    return clips


def by_hand(model: Path, frames: list[torch.Tensor]) -> str:
    """As the documentation of transformers has it, by the classes of the model."""
    import transformers as hf

    pictures = [as_picture(frame, (512, 512)) for frame in frames]
    if model.name.startswith("blip"):
        given = hf.BlipProcessor.from_pretrained(model)(images=pictures[len(pictures) // 2], return_tensors="pt")
        made = hf.BlipForConditionalGeneration.from_pretrained(model).generate(**given, max_new_tokens=6)
        return hf.AutoTokenizer.from_pretrained(model).decode(made[0], skip_special_tokens=True)
    text = f"{'<image> ' * len(pictures)}{PROMPT} answer"
    given = hf.LlavaProcessor.from_pretrained(model)(text=text, images=pictures, return_tensors="pt")
    made = hf.LlavaForConditionalGeneration.from_pretrained(model).generate(**given, max_new_tokens=6, do_sample=False)
    new = made[0, given["input_ids"].shape[1] :]
    return hf.AutoTokenizer.from_pretrained(model).decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["llava", "blip"])
def test_clips_get_the_captions_that_transformers_gives(
    kind: str, vision_models: dict[str, Path], folder: Path
) -> None:
    assert main(["caption", str(folder), "--model", str(vision_models[kind]), "--pictures", "2"]) == 0
    written = {path.name: path.read_text().strip() for path in folder.glob("*.txt")}
    expected = {"a.txt": by_hand(vision_models[kind], frames_of(folder / "a.mp4", 2)), "c.txt": "has one"}
    expected["b.txt"] = by_hand(vision_models[kind], frames_of(folder / "b.png", 2))
    assert written == expected
    assert all(text.split() for text in written.values())


def test_the_command_again_goes_on(
    vision_models: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say, said = VisionModel.caption, []

    def once(self: VisionModel, frames: list[torch.Tensor]) -> str:
        said.append(len(frames))
        if len(said) == 2:
            raise KeyboardInterrupt
        return say(self, frames)

    monkeypatch.setattr(VisionModel, "caption", once)
    command = ["caption", str(folder), "--model", str(vision_models["blip"])]
    assert main(command) == 130
    assert sorted(path.name for path in folder.glob("*.txt")) == ["a.txt", "c.txt"]
    assert main(command) == 0
    assert sorted(path.name for path in folder.glob("*.txt")) == ["a.txt", "b.txt", "c.txt"]
    monkeypatch.setattr(VisionModel, "_open", lambda _: pytest.fail("opened with nothing to caption"))
    assert main(command) == 0


def test_a_folder_that_takes_no_captions_is_said_before_a_model_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(_: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files, "_try", read_only)
    assert main(["caption", str(folder), "--model", str(folder / "no model")]) == 2
    assert re.search(r"ltxkit: got the output .*[ab]\.txt, which cannot be written", capsys.readouterr().err)


def changed(vision_models: dict[str, Path], tmp_path: Path, change: Callable[[Path], None]) -> str:
    folder = tmp_path / "changed"
    shutil.copytree(vision_models["blip"], folder)
    change(folder)
    return str(folder)


def remote(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def pickled(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def torn(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["vision_model.post_layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:200])


def with_values(file: str, **values: object) -> Callable[[Path], None]:
    """A change of values in one of a folder's files of JSON."""

    def change(folder: Path) -> None:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))

    return change


def with_inside(section: str, **values: object) -> Callable[[Path], None]:
    """The same in a section of the config."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config[section] |= values
        (folder / "config.json").write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remote, "does not open"),
        (pickled, "in safetensors"),
        (torn, r"lacks 1 weights \(vision_model.post_layernorm.weight\)"),
        (cut, "which is truncated: 200 bytes"),
        (lambda folder: (folder / "config.json").unlink(), "without a config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "does not open"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "does not open"),
        (with_values("config.json", text_config={"hidden_size": "many"}), "does not open"),
        (with_values("config.json", text_config=[1]), "does not open"),
        (with_inside("text_config", num_hidden_layers=10**6), "asks for 1000000 layers"),
        (with_inside("vision_config", num_hidden_layers=10**6), "asks for 1000000 layers"),
        (with_inside("text_config", vocab_size=10**9), "layers or weights"),
        (with_inside("vision_config", hidden_size=2**20), "layers or weights"),
        (with_values("config.json", vision_config={"num_attention_heads": 0}), "does not open"),
        (with_values("config.json", model_type=["blip"]), "does not open"),
        (
            with_values("tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
            "not open",
        ),
        (with_values("tokenizer.json", model={"type": "WordLevel"}), "does not open"),
        (lambda folder: (folder / "config.json").write_text("[" * 20_000), "does not open"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{"), "does not open"),
    ],
)
def test_folders_that_are_no_such_model_are_refused(
    change: Callable[[Path], None], said: str, vision_models: dict[str, Path], tmp_path: Path
) -> None:
    place = changed(vision_models, tmp_path, change)
    with pytest.raises((ConfigError, CheckpointError), match=said):
        VisionModel(place, PROMPT, CPU, 64)
    assert not (Path(place) / "ran").exists()


def test_a_name_is_looked_up_on_this_disk_alone(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(folder), "--model", "nobody/has-this"]) == 2
    assert "`hf download nobody/has-this` has fetched" in capsys.readouterr().err


@pytest.mark.parametrize(
    "template", ["{% if", "{{ messages.a.b }}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}", "{{ [[]] | sum }}"]
)
def test_a_template_of_a_chat_that_fails_is_a_sentence(
    template: str, vision_models: dict[str, Path], tmp_path: Path
) -> None:
    place = tmp_path / "changed"
    shutil.copytree(vision_models["llava"], place)
    (place / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match=r"does not open|1 pictures that .* does not caption"):
        VisionModel(str(place), PROMPT, CPU, 64).caption([torch.rand(16, 16, 3)])


@pytest.mark.parametrize("place", ["", "a\0b", "x" * 5000, "\ud800", "..", "a/b/c", "https://example.com/x"])
def test_names_that_no_model_has_are_a_sentence(place: str) -> None:
    with pytest.raises(ConfigError, match=r"got --model|without a config\.json"):
        VisionModel(place, PROMPT, CPU, 64)


def test_a_key_goes_to_an_address(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(folder), "--model", "x", "--key-variable", "KEY"]) == 2
    assert "got --key-variable without --url" in capsys.readouterr().err

"""The commands of docs/training-tour.md and docs/from-xdiffusion.md run one after the other, as a reader types them.

Every command of the blocks is carried out as it stands there, in an empty folder, with what `SHORTER` adds to its
end: fewer steps, clips and prompts, and a narrow model where the page trains a large one. Nothing is left out, and no
word is taken away or changed.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from ltxkit.cli import main
from ltxkit.ltx_core.media import read_video

pytestmark = pytest.mark.slow

ONE_STEP = [
    "optimization.steps=1",
    "optimization.batch_size=2",
    "validation_samples=1",
    "sample_steps=1",
    "cache_clips=2",
]
NARROW_VAE = [
    *("optimization.steps=1", "optimization.batch_size=1", "statistics_clips=2", "data.validation_clips=2"),
    *("model.encoder_base_channels=8", "model.decoder_base_channels=8", "optimization.precision=fp32"),
]
NARROW = [
    *(*ONE_STEP, "model.num_layers=2", "model.num_attention_heads=2", "model.attention_head_dim=16"),
    *("model.cross_attention_dim=32", "optimization.precision=fp32"),
]
SHORTER = {
    "train --config lora-digits": [f"--set={each}" for each in ONE_STEP],
    "train --config ic-lora-digits": [f"--set={each}" for each in ONE_STEP],
    "train --config moving-mnist": [f"--set={each}" for each in NARROW],
    "train-vae --config moving-mnist-vae": [f"--set={each}" for each in NARROW_VAE],
    "sample --model": ["--steps", "2"],
    "generate --model": ["--steps", "2"],
}


def commands(page: Path) -> list[list[str]]:
    """Of the blocks, without those of the example itself (`> python ...`) and of many processes (torchrun)."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("ltxkit ")]


def carried_out(page: Path) -> None:
    for command in commands(page):
        (added,) = (more for start, more in SHORTER.items() if shlex.join(command[:3]).startswith(start))
        assert main([*command, *added]) == 0, shlex.join(command)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTXKIT_CACHE", str(tmp_path / "cache"))


def test_the_tour(repository: Path) -> None:
    page = repository / "docs/training-tour.md"
    carried_out(page)
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:before|after|follows|runs)/[\w./-]+)`", text)
    assert {"before/sheet.png", "runs/lora-digits/validation/step_000000/sheet.png"} <= set(named)
    made = ["after/sheet.png", "follows/000.mp4", "runs/darker/final/lora_diffusers.safetensors"]
    assert [name for name in (*named, *made) if not Path(name).exists()] == []
    assert read_video("grey.mp4").frames.shape == (25, 64, 64, 3)


def test_the_page_of_the_example(repository: Path) -> None:
    """With files of the layout that its data set has."""
    videos = np.random.default_rng(0).integers(0, 256, (20, 30, 64, 64), np.uint8)
    Path("MovingMNIST").mkdir()
    np.savez("MovingMNIST/videos_data.npz", videos)
    np.savez("MovingMNIST/labels_data.npz", np.arange(40).reshape(20, 2) % 10)
    carried_out(repository / "docs/from-xdiffusion.md")
    for name in ("runs/moving-mnist-vae/final/vae.safetensors", "runs/moving-mnist/final/model.safetensors"):
        assert Path(name).is_file()
    assert {"000.mp4", "001.mp4", "sheet.png"} <= {path.name for path in Path("out").iterdir()}

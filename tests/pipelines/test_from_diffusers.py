"""The blocks of docs/from-diffusers.md run, on a small model, and are no longer than diffusers' own."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import ltxkit
from ltxkit.ltx_core import media

# Lines without blanks and comments of the blocks on diffusers' LTX-Video page (docs/source/en/api/pipelines/
# ltx_video.md, July 2025), in its order. Ours for the whole single file stands in two forms.
ORIGINAL = {
    "LTX-Video 0.9.7 (dev), in two passes": (65,),
    "LTX-Video 0.9.7 (distilled)": (60,),
    "Single files, in parts or whole": (13, 10),
    "GGUF": (28,),
    "LTX-Video 0.9.1": (18,),
    "Quantization, on several cards": (28,),
}
# The numbers of the page that each block must have, besides its sizes.
NUMBERS = {
    "LTX-Video 0.9.7 (dev), in two passes": "0.4 10 30 0.05 0.025 0.0 5.0 0.7 21 161 1152 768 24 0",
    "LTX-Video 0.9.7 (distilled)": "1000 993 987 981 975 909 725 0.03 421 0.999 1.0 0.7 0.05 0.025 161 1152 768 24 0",
    "GGUF": "704 480 161 50 24",
    "LTX-Video 0.9.1": "768 512 161 50 0.03 0.025 24",
    "Quantization, on several cards": "161 50 24",
}


@pytest.fixture(scope="module")
def blocks(repository: Path) -> dict[str, list[str]]:
    page = (repository / "docs/from-diffusers.md").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for section in page.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if code:
            found[title] = code
    return found


@pytest.fixture(scope="module")
def files(tiny_models: Callable[..., Path], released_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files under the names that the page uses."""
    tiny, folder = tiny_models(), tmp_path_factory.mktemp("page")
    checkpoint = tiny / "checkpoints/ltxv-tiny.safetensors"
    for name in ("ltxv-13b-0.9.7-dev", "ltxv-13b-0.9.7-distilled", "ltx-video-2b-v0.9", "ltx-video-2b-v0.9.1"):
        (folder / f"{name}.safetensors").symlink_to(checkpoint)
    upscaler = tiny / "latent_upscale_models/ltxv-tiny-spatial-upscaler.safetensors"
    (folder / "ltxv-spatial-upscaler-0.9.7.safetensors").symlink_to(upscaler)
    (folder / "t5xxl_fp16.safetensors").symlink_to(released_t5)
    ltxkit.convert(checkpoint, folder / "LTX-Video", "diffusers")
    (folder / "LTX-Video/text_encoder").symlink_to(tiny / "text_encoders/t5-tiny")
    frames = torch.rand(24, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    media.write_video(folder / "cosmos-video2world-input-vid.mp4", [frames], fps=Fraction(24))
    return folder


def code_lines(code: str) -> list[str]:
    return [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]


def smaller(code: str) -> str:
    """The block with other sizes, and nothing else."""
    small = re.sub(r"width=\d+", "width=96", re.sub(r"height=\d+", "height=96", code))
    if "width=" in small:
        return re.sub(r"frames=161", "frames=9", small)
    return re.sub(r"frames=161", "frames=9, width=96, height=96", small)


def test_every_block_is_there_and_no_longer_than_the_original(blocks: dict[str, list[str]]) -> None:
    assert {title: len(code) for title, code in blocks.items()} == {title: len(n) for title, n in ORIGINAL.items()}
    for title, own in blocks.items():
        for code, lines in zip(own, ORIGINAL[title], strict=True):
            assert len(code_lines(code)) <= lines, title
            assert sum(line.startswith(("import ", "from ")) for line in code_lines(code)) <= 2, title
            compile(code, title, "exec")


def test_the_numbers_are_those_of_the_page(blocks: dict[str, list[str]]) -> None:
    for title, numbers in NUMBERS.items():
        said = re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", blocks[title][0])
        assert set(numbers.split()) - set(said) == set(), title


@pytest.mark.slow
@pytest.mark.parametrize("title", [title for title in ORIGINAL if title != "GGUF"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_block_runs(title: str, blocks: dict[str, list[str]], files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    for code in blocks[title]:
        for made in files.glob("*.mp4"):
            if made.name != "cosmos-video2world-input-vid.mp4":
                made.unlink()
        names: dict[str, Any] = {}
        exec(smaller(code), names)  # noqa: S102
        saved = re.findall(r'save\("(.*?)"', code)
        for name in saved:
            video = media.read_video(files / name)
            assert video.frames.shape == (9, 96, 96, 3)
            assert video.fps == 24
        if title.endswith("in two passes"):
            _check_two_passes(names["clip"])
        if not saved:
            assert names["ltx"].transformer.dtype == torch.bfloat16
            made = names["ltx"].generate("fox", width=64, height=64, frames=1, steps=1)
            assert made.to_tensor().shape == (1, 64, 64, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_block_of_gguf_runs(
    blocks: dict[str, list[str]], files: Path, monkeypatch: pytest.MonkeyPatch, tiny_models: Callable[..., Path]
) -> None:
    pytest.importorskip("gguf")
    target = files / "ltx-video-2b-v0.9-Q3_K_S.gguf"
    ltxkit.convert(tiny_models() / "checkpoints/ltxv-tiny.safetensors", target, "gguf-q8_0")
    monkeypatch.chdir(files)
    exec(smaller(blocks["GGUF"][0]), {})  # noqa: S102
    assert media.read_video(files / "output_gguf_ltx.mp4").frames.shape == (9, 96, 96, 3)


def _check_two_passes(clip: ltxkit.Clip) -> None:
    settings = clip.settings
    assert [len(each["sigmas"]) - 1 for each in settings["passes"]] == [30, 4]
    assert {each["guidance"]["scale"] for each in settings["passes"]} == {(5.0,)}
    assert {each["guidance"]["guidance_rescale"] for each in settings["passes"]} == {0.7}
    assert (settings["decode_timestep"], settings["decode_noise_scale"]) == (0.05, 0.025)
    assert clip.latent.shape[-2:] == (4, 4)  # 96 * 2 / 3 = 64, doubled

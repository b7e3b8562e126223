"""What was decided while a clip was made goes from Sample through its LATENT into the file that a Save node writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ltxkit.headless.clip_nodes import CreateVideo, SaveVideo
from ltxkit.headless.host import PlainHost
from ltxkit.headless.runner import Runner
from ltxkit.ltx_core import media
from ltxkit.nodes import ran, sockets
from ltxkit.nodes.latent import DecodeVideo, EmptyLatent, UpscaleLatent
from ltxkit.nodes.loaders import ApplyLoRA, LoadUpscaler
from ltxkit.nodes.sample import GenerateTwoStage, SampleVideo

SHORT = torch.tensor([1.0, 0.5, 0.0])
pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture(scope="module")
def models(models: Path, lora_pair: Callable[..., dict[str, Tensor]]) -> Path:
    torch.manual_seed(0)
    save_file(lora_pair(3), models / "loras/fits.safetensors")
    return models


@pytest.fixture(scope="module")
def with_lora(loaded: tuple[Any, Any]) -> sockets.Model:
    return ApplyLoRA().run(loaded[0], "fits.safetensors", 1.0, False, "those of the model")[0]


def sampled(model: sockets.Model, prompts: tuple[Any, Any], latent: dict[str, Any] | None = None) -> dict[str, Any]:
    latent = latent or EmptyLatent().run(64, 32, 1, 0.0, 24.0, 1)[0]
    return SampleVideo().run(model, *prompts, latent, 1, "preset", 0.15, schedule=SHORT)[0]


@pytest.fixture(scope="module")
def latent(with_lora: sockets.Model, prompts: tuple[Any, Any]) -> dict[str, Any]:
    return sampled(with_lora, prompts)


def decoded(latent: dict[str, Any], vae: Any, texts: Any) -> Tensor:
    """By the node as a program runs it."""
    made = DecodeVideo().execute(
        latent=latent, vae=vae, decode_timestep=0.05, decode_noise_scale=0.025, seed=0, extra_pnginfo=texts
    )
    return (made["result"] if isinstance(made, dict) else made)[0]


def test_how_loras_were_applied_is_in_the_file(latent: dict[str, Any], loaded: Any, host: PlainHost) -> None:
    """Also when Sample does not run again for the next prompt, whose texts are others."""
    mode = latent[ran.RAN]["lora_mode"]
    assert mode in ("merged", "beside")
    for prompt in ({"workflow": {"id": "a"}}, {}):
        texts: dict[str, Any] = dict(prompt)
        (video,) = CreateVideo().create(decoded(latent, loaded[1], texts), 24.0)
        (entry,) = SaveVideo().save(video, "ran", {"format": "auto"}, extra_pnginfo=texts)["ui"]["images"]
        stored = media.read_metadata(host.output_folder / entry["subfolder"] / entry["filename"])
        assert stored[ran.RAN] == {"lora_mode": mode}
        assert texts == {**prompt, ran.RAN: {"lora_mode": mode}}


def test_without_anything_to_note_nothing_is_there(loaded: Any, prompts: tuple[Any, Any]) -> None:
    plain, texts = sampled(loaded[0], prompts), {"workflow": {}}
    assert ran.RAN not in plain
    decoded(plain, loaded[1], texts)
    assert texts == {"workflow": {}}


@pytest.mark.parametrize("texts", [None, [], "text"])
def test_a_client_that_sends_no_texts_gets_its_clip(latent: dict[str, Any], loaded: Any, texts: Any) -> None:
    assert decoded(latent, loaded[1], texts).shape[-1] == 3


def test_a_second_pass_goes_on_with_what_the_first_noted(
    latent: dict[str, Any], loaded: Any, prompts: tuple[Any, Any]
) -> None:
    """Native nodes and Upscale copy a LATENT; the pass itself has no LoRA."""
    first = {**latent, ran.RAN: {**latent[ran.RAN], "unpacked_blocks, one": "3 of 4"}}
    upscaler = LoadUpscaler().run("ltxv-tiny-spatial-upscaler.safetensors", "auto")[0]
    larger, _ = UpscaleLatent().run(first, upscaler, loaded[1], 1.0)
    assert sampled(loaded[0], prompts, larger)[ran.RAN] == first[ran.RAN]
    assert first["samples"] is latent["samples"]
    assert "unpacked_blocks, one" not in latent[ran.RAN]


@pytest.mark.slow
def test_two_stage_notes_both_passes(with_lora: sockets.Model, loaded: Any, prompts: tuple[Any, Any]) -> None:
    upscaler, texts = LoadUpscaler().run("ltxv-tiny-spatial-upscaler.safetensors", "auto")[0], dict[str, Any]()
    arguments = (loaded[1], upscaler, *prompts, 96, 96, 9, 1, 1.0, 0.15)
    _, latent = GenerateTwoStage().run(with_lora, *arguments, extra_pnginfo=texts)
    assert texts == {ran.RAN: latent[ran.RAN]}
    assert set(latent[ran.RAN]) == {"lora_mode"}


def test_passes_that_differ_are_all_there() -> None:
    noted: dict[str, str] = {}
    for value in ("merged", "beside", "merged"):
        ran.note(noted, "lora_mode", value)
    assert noted == {"lora_mode": "merged, beside"}
    texts: dict[str, Any] = {}
    ran.into_file(texts, {"lora_mode": "beside"})
    ran.into_file(texts, noted)
    assert texts == {ran.RAN: {"lora_mode": "beside, merged"}}
    assert noted == {"lora_mode": "merged, beside"}


def test_what_is_no_note_is_not_taken_for_one() -> None:
    assert ran.ran_before({ran.RAN: "merged"}) == {}
    assert ran.ran_before({}) == {}


class Notes:
    RETURN_TYPES, RETURN_NAMES, FUNCTION, CATEGORY = ("INT",), ("number",), "run", ""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"number": ("INT", {})}, "hidden": ran.FILE_TEXTS}

    def run(self, number: int, extra_pnginfo: Any) -> tuple[int]:
        ran.into_file(extra_pnginfo, {"number": str(number)})
        return (number,)


class Saves(Notes):
    OUTPUT_NODE = True
    seen: list[dict[str, Any]] = []

    def run(self, number: int, extra_pnginfo: Any) -> tuple[int]:
        self.seen.append(dict(extra_pnginfo))
        return (number,)


def test_the_nodes_of_a_prompt_share_their_texts_and_those_of_two_prompts_do_not(host: PlainHost) -> None:
    runner = Runner(host, {"Notes": Notes, "Saves": Saves})
    for number in (1, 2):
        runner.run(
            {
                "a": {"class_type": "Notes", "inputs": {"number": number}},
                "b": {"class_type": "Saves", "inputs": {"number": ["a", 0]}},
            }
        )
    assert Saves.seen == [{ran.RAN: {"number": "1"}}, {ran.RAN: {"number": "2"}}]

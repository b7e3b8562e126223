"""The bridges in ComfyUI's own process: our models in its samplers, its models in our nodes, with shared weights."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comfy_client import ComfyUI

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("bridge_script.py")
CHECKS = (
    *("ours_in_native", "easycache", "native_lora", "hooks", "torch_compile", "attention_patches", "native_schedule"),
    *("context_windows", "other_models", "small_types", "native_in_ours", "refused_models", "other_classes"),
    *("text_encoders", "refused_text_encoders", "vaes", "mixed_precision", "fake_card"),
)
CLOSE = 1e-5  # relative, in float32
CORES = ("comfyui", "comfyui_next", "comfyui_newest")
COMPILED = {"comfyui_newest": "torch_compile_with_inductor"}  # and elsewhere without the C++ of inductor

Findings = dict[str, dict[str, Any]]
Run = Callable[..., Findings]


@pytest.fixture(scope="module")
def run(repository: Path, models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """run(core, *checks): what the checks of the script find."""

    def get(core: ComfyUI, *checks: str) -> Findings:
        scratch = tmp_path_factory.mktemp("bridges")
        done = subprocess.run(
            [str(core.python), str(SCRIPT), *map(str, (core.root, repository, models_folder, scratch)), *checks],
            env=core.environment(),
            cwd=scratch,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return get


@pytest.fixture(scope="module", params=CORES)
def found(request: pytest.FixtureRequest, run: Run) -> Findings:
    """All findings in one process of each core."""
    checks = [COMPILED.get(request.param, each) if each == "torch_compile" else each for each in CHECKS]
    return {"core": {"name": request.param}, **run(request.getfixturevalue(request.param), *checks)}


def test_ksampler_makes_of_our_model_what_sample_makes(found: Findings):
    result = found["ours_in_native"]
    assert result["ksampler"] <= CLOSE
    assert result["unpatched"] == 0  # the same as from ComfyUI's own loader
    assert result["shared"]
    assert result["one model"]


def test_easycache_runs_on_our_model(found: Findings):
    result = found["easycache"]
    assert result["apart"] <= CLOSE
    assert result["steps"] == 4
    assert result["steps when skipping"] < 4
    assert result["skipping"] > 0.01


@pytest.mark.parametrize("file", ["factors", "dora", "differences"])
def test_a_lora_of_either_side_is_the_same(found: Findings, file: str):
    result = found["native_lora"][f"{file}.safetensors"]
    assert result["effect"] > 0.05
    assert result["our LoRA carried over"] <= CLOSE
    assert result["taken back"] <= CLOSE
    assert result["patches"] >= 30
    if file == "dora":  # ComfyUI divides by other lengths, as the help page says
        assert 1e-3 < result["native node"] < result["effect"]
    else:
        assert result["native node"] <= CLOSE


def test_loras_leave_our_weights_alone(found: Findings):
    assert found["native_lora"]["afterwards"] <= CLOSE
    assert found["native_lora"]["shared"]
    hooks = found["hooks"]
    assert hooks["apart"] <= CLOSE
    assert hooks["afterwards"] <= CLOSE
    assert hooks["unchanged"]


def test_our_model_is_compiled(found: Findings):
    result = found[COMPILED.get(found["core"]["name"], "torch_compile")]
    assert result["apart"] <= CLOSE
    assert result["graphs"] > 0


def test_patches_of_attention_and_blocks_are_called(found: Findings):
    result = found["attention_patches"]
    assert result["apart"] <= CLOSE
    assert result["attention"] == 4 * 28 * 2  # steps, blocks, self and cross; both prompts are one batch
    assert result["block"] == 4
    assert result["skipped block"] > 0.01


def test_schedules_of_comfyui_take_our_model(found: Findings):
    result = found["native_schedule"]
    assert result["apart"] <= CLOSE
    assert result["levels"][0] == 1
    assert result["shift"] > 0.01


def test_context_windows_take_our_model(found: Findings):
    assert found["context_windows"]["windows"] > 4
    assert found["context_windows"]["apart"] > 1e-3  # two windows are not the whole clip


def test_models_of_all_kinds_are_native(found: Findings):
    result = found["other_models"]
    assert result["bf16"] == 0
    assert result["bf16 shared"]
    assert result["bf16 type"] == "torch.bfloat16"
    assert result["13b"] <= CLOSE
    assert result["scale"] == [4, 16, 16]
    assert result["channels"] == 16


def test_sample_makes_of_a_native_model_what_ksampler_makes(found: Findings):
    result = found["native_in_ours"]
    assert result["sample"] <= CLOSE
    assert result["shared"]
    assert result["causal"]
    assert "2b-0.9.5" in result["versions"]
    assert result["there and back"] == 0
    assert result["there and back shared"]


def test_positions_that_the_file_does_not_say_stay_those_of_comfyui(found: Findings):
    result = found["native_in_ours"]
    assert result["without metadata"] <= CLOSE
    assert not result["without metadata, causal"]
    assert {"2b-0.9.1", "2b-0.9.8-distilled"} <= set(result["without metadata, versions"])
    (sentence,) = result["without metadata, said"]
    assert "causal_temporal_positioning" in sentence
    assert "2b-0.9.8-distilled" in sentence


def test_weights_of_small_types_are_shared(found: Findings):
    result = found["small_types"]
    assert result["fp8 shared"] == 1
    assert result["fp8"] < 0.1  # core computes in float32 here, we in bfloat16
    for dtype in ("torch.float16", "torch.bfloat16"):
        assert result[f"{dtype} shared"]
        assert result[dtype] < 0.02


@pytest.mark.parametrize(
    ("patch", "name"),
    [
        ("easycache", "easycache"),
        ("compile", "torch.compile"),
        ("sampling", "model_sampling"),
        ("windows", "context_handler"),
        ("cfg function", "sampler_cfg_function"),
        ("post cfg", "sampler_post_cfg_function"),
        ("unet wrapper", "model_function_wrapper"),
        ("mask function", "denoise_mask_function"),
        ("attention", "attn1_patch"),
        ("block", "patches_replace"),
        ("object", "diffusion_model.proj_out"),
        ("weight wrapper", "diffusion_model.proj_out.weight"),
        ("injection", "injections (adapter)"),
        ("additional", "additional models (control)"),
        ("hooks", "hooks"),
        ("callback", "callbacks"),
    ],
)
def test_patches_that_are_not_of_weights_are_refused_by_name(found: Findings, patch: str, name: str):
    answer = found["refused_models"][patch]
    assert answer.startswith("UnsupportedError: got a MODEL with ")
    assert name in answer


def test_a_model_without_patches_is_taken(found: Findings):
    assert found["refused_models"]["nothing"] == "accepted"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("none", "NoneType"),
        ("another family", "HunyuanVideo"),
        ("another pack's class", "PatchedLTXVModel"),
        ("another pack's tensor", "GGMLTensor"),
        ("our int8", "quantized"),
        ("wrong type", "ModelPatcher on `model`"),
        ("our other VAE", "16 channels"),
        ("another VAE", "Conv2d"),
        ("our norm_eps", "norm_eps = 1e-05"),
        ("our out_channels", "out_channels = 64"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(found: Findings, case: str, words: str):
    answer = found["other_classes"][case]
    assert words in answer
    assert "expected" in answer


def test_the_t5_of_a_clip_is_ours(found: Findings):
    result = found["text_encoders"]
    for kind in ("ltxv", "flux"):
        assert result[f"{kind} shared"]
        assert result[f"{kind} equal"]
    assert result["native encoding"] <= CLOSE
    assert result["patched"] <= CLOSE
    assert result["said"] == ["1 patched weights of the CLIP merged into copies (0.00 GB)."]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("layer", "CLIP Set Last Layer"),
        ("tokenizer options", "options of the tokenizer"),
        ("hooks", "hooks"),
        ("forced hooks", "hooks"),
        ("no T5", "0 T5 encoders (SD1CheckpointClipModel)"),
        ("not a CLIP", "ModelPatcher; expected a CLIP"),
        ("umt5", "UMT5"),
        ("wrong width", "width 32; expected 4096"),
    ],
)
def test_other_text_encoders_are_refused_by_name(found: Findings, case: str, words: str):
    assert words in found["refused_text_encoders"][case]


def test_the_t5_of_the_right_width_is_taken(found: Findings):
    assert found["refused_text_encoders"]["fitting width"] == "accepted"


@pytest.mark.parametrize(
    ("case", "padding"), [("stated", "zeros"), ("not stated", "reflect"), ("replicate", "replicate")]
)
def test_a_native_vae_is_ours_and_pads_as_before(found: Findings, case: str, padding: str):
    result = found["vaes"][case]
    assert result["padding"] == padding
    assert result["decode"] <= CLOSE
    assert result["encode"] <= CLOSE
    assert result["shared"]
    assert (result["from the file"] <= CLOSE) == (case == "stated")  # the case can tell the paddings apart


def test_our_vae_is_native_and_pads_as_before(found: Findings):
    result = found["vaes"]["ours in native"]
    assert result["decode"] <= CLOSE
    assert result["encode"] <= CLOSE
    assert result["shared"]


def test_vaes_of_later_releases_have_the_same_weights(found: Findings):
    assert found["vaes"]["ltxv-tiny.safetensors"] == 0
    assert found["vaes"]["ltxv-2b-0.9.8-distilled.safetensors"] == 0


def test_other_vaes_are_refused_by_name(found: Findings):
    assert "decoder.conv_out" in found["vaes"]["patched"]
    if found["core"]["name"] != "comfyui_newest":  # which builds any width
        assert "VAE is not as this node needs it" in found["vaes"]["width"]


def test_quantized_weights_of_the_core_are_refused_by_name(found: Findings):
    result = found["mixed_precision"]
    if found["core"]["name"] == "comfyui_newest":
        assert result["core"] == "reads it"
        assert "which ComfyUI holds in its quantized format" in result["refused"]


def test_weights_are_in_main_memory_once_after_unloading(found: Findings):
    result = found["fake_card"]
    assert result["loaded"] == "cpu:0"
    assert result["native"] <= CLOSE
    assert result["theirs"] <= CLOSE
    assert result["ours again"] == 0
    assert result["converted while on the card"]
    assert result["shared after unloading"]
    assert result["theirs taken while on the card"]
    assert result["theirs shared after unloading"]

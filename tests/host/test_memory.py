"""ComfyUI's memory management and ours, on a fake card: two models on a device that holds one, which is empty
afterwards, and our models beside those of other packs."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_client import ComfyUI

pytestmark = pytest.mark.slow

GB = 10**9
ANSWER = "found: "  # before each answer of sharing_script


def command(comfyui: ComfyUI, repository: Path, models: Path, script: str) -> list[str]:
    return [str(comfyui.python), *map(str, (Path(__file__).with_name(script), comfyui.root, repository, models))]


def findings(comfyui: ComfyUI, repository: Path, models: Path, *modes: str) -> list[Any]:
    done = subprocess.run(
        [*command(comfyui, repository, models, "memory_script.py"), *modes],
        env=comfyui.environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()[-len(modes) :]]


def check(found: dict[str, Any], *, streamed: bool) -> None:
    assert found["equal"] == [True] * 5  # text, two models and the first again, decoding
    after_first, after_second, after_first_again, at_the_end = found["away"]
    if streamed:  # blocks arrive one by one, and none remain after a run
        assert after_first == after_second == after_first_again == [True, True]
    else:  # the card holds one model: the other has left completely
        assert after_first == after_first_again == [False, True]
        assert after_second == [True, False]
    assert at_the_end == [True, True]
    assert found["loaded"][-1] == []
    assert abs(found["left behind"]) < 0.01 * sum(found["sizes"])
    assert found["known after deletion"] == 0


@pytest.mark.comfy
def test_two_models_do_not_pile_up(comfyui: ComfyUI, repository: Path, models_folder: Path):
    modes = ("NORMAL_VRAM", "LOW_VRAM", "NO_VRAM", "NORMAL_VRAM/0.2", "NORMAL_VRAM/1.2/1")
    for mode, found in zip(modes, findings(comfyui, repository, models_folder, *modes), strict=True):
        check(found, streamed=mode in ("NO_VRAM", "NORMAL_VRAM/0.2", "NORMAL_VRAM/1.2/1"))


@pytest.mark.comfy_next
def test_two_models_do_not_pile_up_in_a_later_comfyui(comfyui_next: ComfyUI, repository: Path, models_folder: Path):
    (found,) = findings(comfyui_next, repository, models_folder, "NORMAL_VRAM")
    check(found, streamed=False)


@pytest.fixture(scope="module")
def sharing(
    repository: Path, models_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[ComfyUI, str], Any]]:
    """sharing(core, scenario): what a scenario of `sharing_script` finds, in a fork of one process of the core."""
    processes: dict[ComfyUI, subprocess.Popen[str]] = {}
    log = tmp_path_factory.mktemp("sharing") / "log"

    def found(core: ComfyUI, scenario: str) -> Any:
        if core not in processes:
            with log.open("a") as said:
                processes[core] = subprocess.Popen(
                    command(core, repository, models_folder, "sharing_script.py"),
                    env=core.environment(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    text=True,
                )
        process = processes[core]
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Timer(900, process.kill)
        late.start()
        try:
            print(scenario, file=process.stdin, flush=True)
            answer = next((line for line in process.stdout if line.startswith(ANSWER)), "")
        finally:
            late.cancel()
        result = json.loads(answer.removeprefix(ANSWER) or "null")
        assert result is not None, log.read_text()[-3000:]
        return result

    yield found
    for process in processes.values():
        process.communicate()


def check_equal_runs(found: dict[str, Any]) -> None:
    """Latents, frames and memory as in the first of ten runs."""
    assert found["latents"] == found["frames"] == [True] * 10
    assert set(found["bytes"]) == {found["bytes"][0]}
    assert found["loaded"] == [found["loaded"][0]] * 10


def check_nothing_left(found: dict[str, Any]) -> None:
    """13B, decoder and a native model fit: each is loaded once. The text encoder is released after each use."""
    check_equal_runs(found)
    assert found["left"] == []
    assert found["loaded"][0] == [0, 1 * GB, 4 * GB, 13 * GB]
    assert found["loads"][0] == ["Decoder", "LTXTransformer", "T5EncoderModel"]
    assert found["loads"][1:] == [["T5EncoderModel"]] * 9
    assert set(found["names"]) >= {"LTXKitTransformer", "LTXKitVAEDecoder", "LTXKitTextEncoder"}  # in core's log


@pytest.mark.comfy
def test_what_fits_stays(comfyui: ComfyUI, sharing: Callable[[ComfyUI, str], Any]):
    check_nothing_left(sharing(comfyui, "everything_fits"))


@pytest.mark.comfy_next
@pytest.mark.parametrize("scenario", ["everything_fits", "everything_fits_beside_a_dynamic_model"])
def test_what_fits_stays_in_the_newest_comfyui(
    comfyui_newest: ComfyUI, sharing: Callable[[ComfyUI, str], Any], scenario: str
):
    check_nothing_left(sharing(comfyui_newest, scenario))


@pytest.mark.comfy_next
def test_streaming_a_model_larger_than_the_card_leaves_a_dynamic_model_there(
    comfyui_newest: ComfyUI, sharing: Callable[[ComfyUI, str], Any]
):
    found = sharing(comfyui_newest, "a_few_blocks_beside_a_dynamic_model")
    check_equal_runs(found)
    assert found["left"] == []


@pytest.mark.comfy_next
@pytest.mark.parametrize("scenario", ["too_much_with_a_dynamic_model", "too_much_with_another_model"])
def test_models_that_do_not_fit_together_take_turns(
    comfyui_newest: ComfyUI, sharing: Callable[[ComfyUI, str], Any], scenario: str
):
    found = sharing(comfyui_newest, scenario)
    check_equal_runs(found)
    assert 0 < sum(found["left"]) / 10 <= 4 * GB  # per run
    assert all("LTXTransformer" in loads for loads in found["loads"])  # ours gave way as well
    assert max(map(sum, found["loaded"])) <= 18 * GB


@pytest.mark.comfy
def test_cancel_leaves_no_damage(comfyui: ComfyUI, sharing: Callable[[ComfyUI, str], Any]):
    check_cancelled(sharing(comfyui, "interrupted"))


@pytest.mark.comfy_next
def test_cancel_leaves_no_damage_where_it_is_no_exception(
    comfyui_newest: ComfyUI, sharing: Callable[[ComfyUI, str], Any]
):
    check_cancelled(sharing(comfyui_newest, "interrupted"))


def check_cancelled(found: dict[str, Any]) -> None:
    assert len(found) == 7
    expected = {"raised": "InterruptProcessingException", "clean": True, "equal": True}
    assert all(one == expected for one in found.values()), found


@pytest.mark.comfy_next
def test_unloading_everything_during_a_run_waits_for_its_end(
    comfyui_newest: ComfyUI, sharing: Callable[[ComfyUI, str], Any]
):
    found = sharing(comfyui_newest, "unloaded_in_the_middle")
    assert found == dict.fromkeys(("equal", "left", "again", "loaded again"), True) | {"loaded": []}


@pytest.mark.comfy_next
def test_models_follow_the_default_device(comfyui_newest: ComfyUI, sharing: Callable[[ComfyUI, str], Any]):
    found = sharing(comfyui_newest, "two_cards")
    assert found == {"devices": [["cpu:1"], ["cpu:0"]], "left": [], "equal": True}


@pytest.mark.comfy_next
def test_highvram_keeps_the_text_encoder(comfyui_newest: ComfyUI, sharing: Callable[[ComfyUI, str], Any]):
    found = sharing(comfyui_newest, "kept_on_request")
    assert found == {"NORMAL_VRAM": 14 * GB, "HIGH_VRAM": 18 * GB}


@pytest.mark.comfy_next
def test_the_ram_cache_recognises_our_models(comfyui_newest: ComfyUI, sharing: Callable[[ComfyUI, str], Any]):
    assert sharing(comfyui_newest, "recognised") == [True, True, True]


@pytest.mark.comfy_next
def test_auto_follows_the_launch_flags_and_a_choice_wins(
    comfyui_newest: ComfyUI, sharing: Callable[[ComfyUI, str], Any]
):
    found = sharing(comfyui_newest, "flags")
    assert found.pop("unknown") == []
    stored, plain = found["none"][0]
    assert plain == [False, False]
    expected = {
        "force_fp32": (["float32"] * 3, plain),
        "bf16_unet": (["bfloat16", *stored[1:]], plain),
        "fp16_unet": (["float16", *stored[1:]], plain),
        "fp8_e4m3fn_unet": (stored, [True, False]),
        "bf16_vae": ([stored[0], "bfloat16", stored[2]], plain),
        "fp16_vae": ([stored[0], "float16", stored[2]], plain),
        "fp32_vae": ([stored[0], "float32", stored[2]], plain),
        "fp8_e4m3fn_text_enc": ([*stored[:2], "bfloat16"], [False, True]),  # as always beside quantized weights
        "fp32_text_enc": ([*stored[:2], "float32"], plain),
        "use_sage_attention": (stored, plain),
    }
    for flag, (types, quantized) in expected.items():
        assert found[flag][0] == [types, quantized], flag
        assert found[flag][1] == [["float32"] * 3, plain], flag  # the widget says fp32


@pytest.mark.comfy_next
def test_what_leaves_a_node_has_comfyuis_intermediate_type(
    comfyui_newest: ComfyUI, sharing: Callable[[ComfyUI, str], Any]
):
    assert sharing(comfyui_newest, "intermediates") == ["torch.float16"] * 4

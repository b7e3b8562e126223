"""`ltxkit migrate`: graphs of the structure of ComfyUI-LTXVideo's of July 2025 and of native ones, into ours."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxkit.cli import main
from ltxkit.headless.host import PlainHost
from ltxkit.headless.migration.convert import RULES, Migrated, convert
from ltxkit.headless.migration.file import migrate_file
from ltxkit.headless.migration.known import OF_OLD_PACK
from ltxkit.headless.runner import run_workflow
from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.locks import claimed
from ltxkit.ltx_core.sampling.guidance import Guidance
from ltxkit.nodes.host import use_host
from ltxkit.nodes.old_guidance import PRESETS, at_level, entries_of
from ltxkit.nodes.steps import CreateStepGuidance

Prompt = dict[str, dict[str, Any]]
LEVELS = "1.0000, 0.9937, 0.9094, 0.4219, 0.0"
LISTS = {
    "sigmas": "1.0, 0.95, 0.5",
    "cfg_values": "3, 2, 1",
    "stg_scale_values": "1, 1, 0",
    "stg_rescale_values": "1, 0, 0.5",
    "stg_layers_indices": "[3], [4, 5], [6]",
}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": class_type}}


def loaders() -> Prompt:
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="ltxv-tiny.safetensors"),
        "2": node("CLIPLoader", clip_name="t5-tiny", type="ltxv"),
        "3": node("CLIPTextEncode", clip=["2", 0], text="a cat"),
        "4": node("CLIPTextEncode", clip=["2", 0], text="blurry"),
        "5": node("LTXVConditioning", positive=["3", 0], negative=["4", 0], frame_rate=24.000000000000004),
        "6": node("RandomNoise", noise_seed=7),
        "7": node("KSamplerSelect", sampler_name="euler"),
        "8": node("StringToFloatList", string=LEVELS),
        "9": node("FloatToSigmas", float_list=["8", 0]),
        "10": node("LoadImage", image="a.png"),
        "11": node(
            "STGGuiderAdvanced",
            model=["1", 0],
            positive=["5", 0],
            negative=["5", 1],
            skip_steps_sigma_threshold=0.997,
            cfg_star_rescale=True,
            **LISTS,
        ),
    }


def parts(**more: Any) -> dict[str, Any]:
    return {"guider": ["11", 0], "sampler": ["7", 0], "sigmas": ["9", 0], "noise": ["6", 0], "vae": ["1", 2], **more}


def base(**more: Any) -> Prompt:
    size = {"width": 64, "height": 64, "num_frames": 17}
    shown = {"optional_cond_images": ["10", 0], "optional_cond_indices": "0", "strength": 0.8, "crop": "center"}
    sampler = node("LTXVBaseSampler", model=["1", 0], **parts(), **size, **shown, crf=30, blur=0)
    return {**loaders(), "20": sampler, **more}


def saved(source: list[Any], **more: Any) -> Prompt:
    return {
        "90": node("Set VAE Decoder Noise", vae=["1", 2], timestep=0.05, scale=0.025, seed=42),
        "91": node("VAEDecode", samples=source, vae=["90", 0]),
        "92": node("VHS_VideoCombine", images=["91", 0], frame_rate=24, filename_prefix="old", format="video/h264-mp4"),
        **more,
    }


def only(migrated: Migrated, class_type: str) -> dict[str, Any]:
    (found,) = [each["inputs"] for each in migrated.prompt.values() if each["class_type"] == class_type]
    return found


GRAPHS: dict[str, Callable[[], Prompt]] = {
    "new clip": lambda: {**base(), **saved(["20", 0])},
    "extended": lambda: {
        **base(),
        "21": node(
            "LTXVExtendSampler",
            model=["1", 0],
            **parts(latents=["20", 0]),
            num_new_frames=16,
            frame_overlap=8,
            strength=1,
        ),
        **saved(["21", 0]),
    },
    "in two passes": lambda: {
        **base(),
        "21": node("LTXVLatentUpsamplerModelLoader", upscale_model="ltxv-tiny-spatial-upscaler.safetensors"),
        "22": node("LTXVLatentUpsampler", samples=["20", 0], upscale_model=["21", 0], vae=["1", 2]),
        "23": node("LTXVAdainLatent", latents=["22", 0], reference=["20", 0], factor=0.25),
        "24": node("SplitSigmas", sigmas=["9", 0], step=2),
        "25": node("LTXVTiledSampler", model=["1", 0], **parts(latents=["23", 0], sigmas=["24", 1])),
        **saved(["25", 1]),
        "93": node("LTXVFilmGrain", images=["91", 0], grain_intensity=0.01, saturation=0.5),
        "94": node("SaveImage", images=["93", 0], filename_prefix="grain"),
    },
    "following a video": lambda: {
        **base(),
        "21": node("VAEEncode", pixels=["10", 0], vae=["1", 2]),
        "22": node("LTXVInContextSampler", **parts(guiding_latents=["20", 0]), num_frames=-1),
        **saved(["22", 0]),
    },
    "long": lambda: {
        **loaders(),
        "19": node("EmptyLTXVLatentVideo", width=64, height=64, length=41, batch_size=1),
        "20": node("MultiPromptProvider", prompts="a cat |\na dog", clip=["2", 0]),
        "21": node(
            "LTXVLoopingSampler",
            model=["1", 0],
            **parts(latents=["19", 0], optional_positive_conditionings=["20", 0]),
            temporal_tile_size=24,
            temporal_overlap=16,
            temporal_overlap_cond_strength=0.5,
            adain_factor=0.25,
        ),
        **saved(["21", 0]),
    },
    "native": lambda: {
        **loaders(),
        "19": node("EmptyLTXVLatentVideo", width=64, height=64, length=17, batch_size=1),
        "20": node("LTXVPreprocess", image=["10", 0], img_compression=35),
        "21": node(
            "LTXVAddGuide",
            positive=["3", 0],
            negative=["4", 0],
            vae=["1", 2],
            latent=["19", 0],
            image=["20", 0],
            frame_idx=8,
            strength=1.0,
        ),
        "22": node("LTXVConditioning", positive=["21", 0], negative=["21", 1], frame_rate=25),
        "23": node(
            "LTXVScheduler", steps=3, max_shift=2.05, base_shift=0.95, stretch=True, terminal=0.1, latent=["21", 2]
        ),
        "24": node("CFGGuider", model=["1", 0], positive=["22", 0], negative=["22", 1], cfg=3.0),
        "25": node(
            "SamplerCustomAdvanced",
            noise=["6", 0],
            guider=["24", 0],
            sampler=["7", 0],
            sigmas=["23", 0],
            latent_image=["21", 2],
        ),
        "26": node("LTXVCropGuides", positive=["22", 0], negative=["22", 1], latent=["25", 0]),
        **saved(["26", 2]),
    },
    "KSampler": lambda: {
        **loaders(),
        "20": node(
            "LTXVImgToVideo",
            positive=["5", 0],
            negative=["5", 1],
            vae=["1", 2],
            image=["10", 0],
            width=64,
            height=64,
            length=9,
            batch_size=1,
            strength=0.9,
        ),
        "21": node(
            "KSampler",
            model=["1", 0],
            positive=["20", 0],
            negative=["20", 1],
            latent_image=["20", 2],
            seed=1,
            steps=3,
            cfg=2.5,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        **saved(["21", 0]),
    },
}
FRAMES = {"extended": 33, "long": 41, "KSampler": 9}


def test_a_name_that_another_command_is_writing_is_refused(tmp_path: Path):
    old = tmp_path / "old.json"
    old.write_text(json.dumps(next(iter(GRAPHS.values()))()))
    with claimed(tmp_path / "new.json"), pytest.raises(ConfigError, match="which another command is writing"):
        migrate_file(old, tmp_path / "new.json", form="api")
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_a_migrated_graph_runs(name: str, tiny_models: Callable[..., Path], tmp_path: Path):
    (tmp_path / "input").mkdir()
    media.write_image(tmp_path / "input/a.png", torch.rand(64, 64, 3), {})
    old = tmp_path / "old.json"
    old.write_text(json.dumps(GRAPHS[name]()))
    done = migrate_file(old, form="api")
    assert {line.fate for line in done.migrated.report} == {"converted"}
    assert done.migrated.missing == {}
    folders = {"input_folder": tmp_path / "input", "output_folder": tmp_path / "out"}
    files = run_workflow(done.path, models=tiny_models("13b"), **folders)
    (clip,) = [file for file in files if file.suffix == ".mp4"]
    assert len(media.read_video(clip).frames) == FRAMES.get(name, 17)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_editor_gets_the_same_graph_as_the_server(name: str, tmp_path: Path):
    old = tmp_path / "old.json"
    old.write_text(json.dumps(GRAPHS[name]()))
    prompt = json.loads(migrate_file(old, tmp_path / "api.json", form="api").path.read_text())
    graph = migrate_file(old, tmp_path / "ui.json", form="ui").path
    assert len(json.loads(graph.read_text())["nodes"]) == len(prompt)
    again = json.loads(migrate_file(graph, tmp_path / "again.json", form="api").path.read_text())
    assert sorted(each["class_type"] for each in again.values()) == sorted(
        each["class_type"] for each in prompt.values()
    )


def test_values_arrive():
    migrated = convert(GRAPHS["new clip"]())
    condition, sample = only(migrated, "LTXKitAddCondition"), only(migrated, "LTXKitSampleVideo")
    assert (condition["frame"], condition["strength"], condition["resize"], condition["crf"]) == (0, 0.8, "crop", 30)
    assert (sample["seed"], sample["sampler"], sample["condition_noise"]) == (7, "euler", 0)
    prompt = only(migrated, "LTXKitEncodePrompt")
    assert (prompt["positive"], prompt["negative"], prompt["frame_rate"]) == ("a cat", "blurry", 24)
    # The guider skips levels above 0.997: the first of the list.
    assert only(migrated, "LTXKitCreateSchedule")["levels"] == "0.9937, 0.9094, 0.4219, 0"
    decode = only(migrated, "LTXKitDecodeVideo")
    assert (decode["decode_timestep"], decode["decode_noise_scale"], decode["seed"]) == (0.05, 0.025, 42)


def test_adain_grain_and_the_second_schedule_arrive():
    migrated = convert(GRAPHS["in two passes"]())
    assert only(migrated, "LTXKitUpscaleLatent")["adain"] == 0.25
    decodes = [each["inputs"] for each in migrated.prompt.values() if each["class_type"] == "LTXKitDecodeVideo"]
    assert sorted(decode["film_grain"] for decode in decodes) == [0, 0.01]
    levels = {each["inputs"]["levels"] for each in migrated.prompt.values() if "levels" in each["inputs"]}
    assert "0.9094, 0.4219, 0" in levels


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_guidance_is_that_of_the_old_node_at_every_level(preset: str | None, tmp_path: Path):
    prompt = GRAPHS["new clip"]()
    if preset:
        prompt["12"] = node("STGAdvancedPresets", preset=preset)
        prompt["11"]["inputs"]["preset"] = ["12", 0]
    said = only(convert(prompt), "LTXKitCreateStepGuidance")
    said = {name: value for name, value in said.items() if not isinstance(value, list)}
    guidance: Guidance
    with use_host(PlainHost(tmp_path, tmp_path, tmp_path)):
        (guidance,) = CreateStepGuidance().run(**said)
    own = ([1.0, 0.95, 0.5], [3, 2, 1], [1, 1, 0], [1, 0, 0.5], [[3], [4, 5], [6]])
    entries = entries_of(PRESETS[preset][1] if preset else own)
    for step in range(1, 1001):
        old, ours = at_level(entries, step / 1000), guidance.at(step / 1000)
        assert (ours.scale, ours.stg_scale) == (old.cfg, old.stg), step / 1000
        if old.stg:
            assert ours.skip_blocks == frozenset(old.blocks)
            assert ours.rescaling_scale == pytest.approx(old.rescale or 1, abs=2e-4)  # ours is off at 1, not at 0
            assert (ours.rescaling_scale == 1) == (old.rescale == 0)


def test_prompts_of_a_long_clip_are_one_for_each_window():
    said = only(convert(GRAPHS["long"]()), "LTXKitGenerateLongVideo")
    assert said["prompts"] == "a cat\na dog\na dog"
    assert (said["window_frames"], said["overlap_frames"], said["adain"]) == (25, 17, 0.25)


@pytest.mark.parametrize("name", OF_OLD_PACK)
def test_every_node_of_the_old_pack_has_a_rule(name: str):
    assert name in RULES


def test_what_cannot_be_converted_is_named_with_the_remedy():
    prompt = GRAPHS["native"]()
    prompt["7"] = node("LTXFlowEditSampler", skip_steps=3, refine_steps=6, seed=0)
    prompt["95"] = node("PreviewImage", images=["10", 0])
    report = {line.node_id: line for line in convert(prompt).report}
    assert report["7"].fate == "refused"
    assert "denoise_strength" in report["7"].text
    assert report["92"].fate == "left out"
    assert "LTXFlowEditSampler (7)" in report["92"].text


def test_nodes_of_other_packs_stay_and_their_pack_is_named():
    prompt = GRAPHS["new clip"]()
    prompt["30"] = {**node("SomeFilter", image=["91", 0]), "_meta": {"title": "x", "cnr_id": "some-pack"}}
    prompt["92"]["inputs"]["images"] = ["30", 0]
    migrated = convert(prompt)
    assert migrated.missing == {"some-pack": ("SomeFilter",)}
    assert only(migrated, "CreateVideo")["images"][0] in migrated.prompt


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"92": node("PreviewAny", source=["92", 0])}, "circle"),
        ({"92": {"inputs": {}}}, "class_type"),
        ({"92": node("Note")}, "nothing remains"),
        ({"9": node("FloatToSigmas", float_list=["77", 0])}, "node 77, which is not in the graph"),
        ({"8": node("StringToFloatList", string="one, two")}, "expected numbers"),
        ({"8": node("StringToFloatList", string="0.5, 0.9, 0")}, "expected descending"),
    ],
)
def test_broken_graphs_are_refused_with_the_reason(change: Prompt, words: str):
    with pytest.raises(ConfigError, match=words):
        convert({**GRAPHS["new clip"](), **change})


def test_the_old_file_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    old = tmp_path / "old.json"
    old.write_text(json.dumps(GRAPHS["native"]()))
    before = old.read_bytes()
    assert main(["migrate", str(old), "-o", str(old)]) == 2
    assert old.read_bytes() == before
    assert main(["migrate", str(old)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "old-ltxkit.json")
    assert "LTXVScheduler: converted" in said.err
    assert main(["migrate", str(old)]) == 2  # the new file exists now
    assert main(["migrate", str(old), "--overwrite", "--format", "ui"]) == 0
    assert "nodes" in json.loads((tmp_path / "old-ltxkit.json").read_text())
    assert main(["migrate", str(tmp_path / "none.json")]) == 2


@pytest.mark.parametrize("name", ["native", "KSampler"])
def test_no_number_in_a_widget_breaks_the_migration(name: str):
    """Every number of a graph in turn becomes one that cannot be computed with: a node is refused, or the graph."""
    numbers = [
        (node, key)
        for node, inputs in ((node, GRAPHS[name]()[node]["inputs"]) for node in GRAPHS[name]())
        for key, value in inputs.items()
        if isinstance(value, int | float)
    ]
    assert numbers
    for (node, key), value in itertools.product(numbers, (math.inf, math.nan, 1e308, 10**400, 1e-300, "²", "9" * 5000)):
        graph = GRAPHS[name]()
        graph[node]["inputs"][key] = value
        with contextlib.suppress(ConfigError):
            json.dumps(convert(graph).prompt)

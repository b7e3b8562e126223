"""The pack in a real ComfyUI 0.3.64: it loads, its graphs run, progress and Cancel work, bad prompts are answered."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comfy_client import ComfyUI, Server
from PIL import Image

from ltxkit.nodes import NODE_CLASS_MAPPINGS
from ltxkit.nodes.templates import TEMPLATES, template

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

WORKFLOWS = sorted(path.stem for path in (Path(__file__).parents[2] / "workflows/api").glob("*.json"))
Graph = dict[str, dict[str, Any]]


# ------------------------------------------------------------------------------------------------ loading


def test_it_loads_without_a_word(server: Server):
    log = server.log.read_text()
    assert "Import times for custom nodes" in log
    ours = [line for line in log.split("Starting server")[0].splitlines() if re.search("ltxkit", line, re.IGNORECASE)]
    assert [re.sub(r".*?([\d.]+) seconds: .*/", "", line) for line in ours] == ["ltxkit"], ours  # its import time


def test_importing_it_imports_nothing_heavy(comfyui: ComfyUI, repository: Path):
    # Like ComfyUI's load_custom_node, in a process that has imported only torch.
    done = comfyui.run(f"""
import importlib.util, torch, folder_paths
path = {str(repository)!r}
spec = importlib.util.spec_from_file_location(path, path + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[path] = module
spec.loader.exec_module(module)
for node in module.NODE_CLASS_MAPPINGS.values():
    node.INPUT_TYPES()
heavy = {{"transformers", "diffusers", "av", "comfy.model_management", "nodes"}} & set(sys.modules)
print(len(module.NODE_CLASS_MAPPINGS), sorted(heavy))
print(*sys.modules[path + ".nodes.host"].host().tokenizers())
""")
    frozen = json.loads((repository / "tests/data/nodes.json").read_text())
    summary, tokenizers = done.stdout.splitlines()
    assert summary == f"{len(frozen)} []", done.stdout + done.stderr
    # ComfyUI includes a tokenizer for T5, so t5xxl_fp16.safetensors needs no other file.
    assert tokenizers.split()[0] == str(comfyui.root / "comfy/text_encoders/t5_tokenizer/tokenizer.json")


def test_its_requirements_move_nothing(comfyui: ComfyUI, repository: Path):
    command = [str(comfyui.python), "-m", "pip", "install", "--dry-run", "-r", str(repository / "requirements.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert "Would install" not in done.stdout


def test_the_server_describes_our_nodes_as_we_do(
    server: Server, repository: Path, models_folder: Path, fill_inputs: Callable[[Path], None]
):
    from object_info import object_info

    from ltxkit.headless.host import PlainHost
    from ltxkit.headless.runner import all_nodes
    from ltxkit.nodes.host import use_host

    only_there = r', "from-elsewhere\.safetensors"'  # in the server's extra folder
    theirs = json.loads(re.sub(only_there, "", json.dumps(server.get("/object_info"))))
    with use_host(PlainHost(models_folder, server.base / "input", server.base / "output")):
        ours = object_info(all_nodes())
    frozen = json.loads((repository / "tests/data/nodes.json").read_text())
    assert {name for name in theirs if name.startswith("LTXKit")} == set(frozen)
    for name in frozen:
        assert theirs[name]["python_module"] == "custom_nodes.ltxkit"
        assert {**theirs[name], "python_module": "nodes"} == ours[name]


def test_templates_and_help_pages_are_served(server: Server):
    import requests

    assert sorted(server.get("/workflow_templates")["ltxkit"]) == WORKFLOWS
    for name in WORKFLOWS:
        assert requests.get(f"{server.address}/api/workflow_templates/ltxkit/{name}.jpg", timeout=120).ok
    for node in NODE_CLASS_MAPPINGS:  # of the package that the registry serves
        page = requests.get(f"{server.address}/extensions/ltxkit/docs/{node}.md", timeout=120)
        assert page.text.startswith("# "), node
    assert "/extensions/ltxkit/ltxkit.js" in server.get("/extensions")


def test_the_gallery_has_its_files_and_old_links_lead_to_them(server: Server):
    import requests

    for short, name in TEMPLATES.items():
        for suffix in ("json", "jpg"):
            now = requests.get(f"{server.address}/api/workflow_templates/ltxkit/{name}.{suffix}", timeout=120)
            before = requests.get(f"{server.address}/api/workflow_templates/ltxkit/{short}.{suffix}", timeout=120)
            assert now.status_code == 200, name
            assert now.content == before.content, short


def test_nodes_have_names_in_other_languages(server: Server):
    translations = server.get("/i18n")
    names = {"zh": "加载模型 (LTXKit)", "ja": "モデルを読み込む (LTXKit)", "en": "Load Model (LTXKit)"}
    for language, name in names.items():
        assert translations[language]["nodeDefs"]["LTXKitLoadModel"]["display_name"] == name


def test_our_code_in_the_browser_receives_the_animation_and_the_text(server: Server, workflow: Callable[[str], Graph]):
    prompt = workflow("t2v-2b")
    (encode,) = (node for node in prompt.values() if node["class_type"] == "LTXKitEncodePrompt")
    encode["inputs"]["positive"] += " again"
    shown = server.run(prompt, our_browser=True)
    assert shown.error == ""
    assert shown.previews == []
    (first, *_) = shown.of("ltxkit.preview")
    assert prompt[first["node"]]["class_type"] == "LTXKitSampleVideo"
    picture = Image.open(io.BytesIO(base64.b64decode(first["image"].partition(",")[2])))
    assert (picture.format, picture.n_frames) == ("WEBP", 3)  # latent frames of 17
    assert picture.size == (8 * 2, 8 * 2)  # cells of 60x64 pixels
    assert shown.texts == []
    assert any("Sampling as 2b-0.9.8-distilled." in data["text"] for data in shown.of("ltxkit.said"))


def test_what_a_node_says_is_in_the_history(server: Server, workflow: Callable[[str], Graph]):
    events = server.run(workflow("t2v-2b"))
    said = {node: output["text"] for node, output in server.history(events)["outputs"].items() if "text" in output}
    assert any("Sampling as 2b-0.9.8-distilled." in lines for lines in said.values())


def test_inputs_of_a_later_version_are_named_on_their_node(server: Server, workflow: Callable[[str], Graph]):
    prompt = workflow("t2v-2b")
    (node,) = (node for node in prompt if prompt[node]["class_type"] == "LTXKitEmptyLatent")
    prompt[node]["inputs"]["of_tomorrow"] = 3
    events = server.run(prompt)
    assert events.error == ""
    (named, *_) = server.history(events)["outputs"][node]["text"]
    assert named.startswith("This graph sets of_tomorrow, which this version of LTXKit does not know")
    said = [text for where, text in server.run(workflow("t2v-2b")).texts if where == node]
    assert not any("of_tomorrow" in text for text in said)


def test_models_in_extra_folders_are_listed(server: Server):
    names, _ = server.get("/object_info/LTXKitLoadModel")["LTXKitLoadModel"]["input"]["required"]["model_name"]
    assert "from-elsewhere.safetensors" in names


def test_the_bundled_model_is_listed_without_being_copied(server: Server, models_folder: Path):
    assert not list(models_folder.rglob("ltxkit-digits*"))
    lists = {"LTXKitLoadModel": "model_name", "LTXKitLoadTextEncoder": "text_encoder_name"}
    for node, widget in {**lists, "LTXKitLoadUpscaler": "upscaler_name"}.items():
        names, _ = server.get(f"/object_info/{node}")[node]["input"]["required"][widget]
        assert names.count("ltxkit-digits") == 1


# ------------------------------------------------------------------------------------------------ running


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_workflow_runs(
    server: Server, workflow: Callable[[str], Graph], made_size: Callable[[str], tuple[int, int, int]], name: str
):
    from ltxkit.ltx_core import media

    prompt = workflow(name)
    events = server.run(prompt)
    assert events.error == ""
    (file,) = server.files(events)
    assert file.suffix == ".mp4"
    stored = media.read_metadata(file)["prompt"]
    assert {node: {**stored[node], "is_changed": None} for node in stored} == {
        node: {**prompt[node], "is_changed": None} for node in prompt
    }
    assert media.read_video(file).frames.shape[:3] == made_size(name)

    samplers = [node for node in prompt if prompt[node]["class_type"] in SAMPLERS]
    assert {data["node"] for data in events.of("progress")} >= set(samplers)
    assert events.previews
    assert all(preview.startswith(b"\xff\xd8") for preview in events.previews)

    again = server.run(prompt)
    fresh = {node for node in prompt if prompt[node]["class_type"] == "LTXKitPlanMemory"}  # memory changes by itself
    assert set(again.executed) == fresh
    assert set(again.cached) == set(prompt) - fresh


@pytest.mark.parametrize("name", ["demo-text", "demo-first-frame", "demo-two-stage", "demo-edges"])
def test_a_demo_graph_makes_what_it_says(server: Server, repository: Path, name: str):
    """As shipped, with its own size and steps, on the bundled model: a three that moves to the left."""
    import torch

    from ltxkit.ltx_core import media
    from ltxkit.ltx_core.training.digits.clips import sklearn_digits
    from ltxkit.ltx_core.training.digits.evaluate import Reader, centres, direction, grey

    shutil.copyfile(repository / "assets/examples/three.png", server.base / "input/three.png")
    events = server.run(json.loads(template(name).read_text()))
    assert events.error == ""
    (file,) = server.files(events)
    frames = media.read_video(file).frames
    assert frames.shape == (25, 256, 256, 3)
    small = torch.nn.functional.avg_pool2d(frames.permute(3, 0, 1, 2), 4)[None]
    clip = grey(2 * small - 1)
    assert direction(centres(clip)[0]) == "left"
    assert Reader(*sklearn_digits(), 40).read(clip[0, 12:13]) == [3]


SAMPLERS = ("LTXKitSampleVideo", "LTXKitGenerateTwoStage", "LTXKitGenerateLongVideo")


def test_a_model_with_another_latent_grid_runs_and_has_a_preview(server: Server, workflow: Callable[[str], Graph]):
    from ltxkit.ltx_core import media

    prompt = workflow("t2v-2b")
    node = {prompt[node]["class_type"]: node for node in prompt}
    loader = prompt[node["LTXKitLoadModel"]]["inputs"]
    loader.update(model_name="ltxv-tiny-16x4.safetensors", version="from the file")
    prompt[node["LTXKitEmptyLatent"]]["inputs"].update(model=[node["LTXKitLoadModel"], 0], width=64, frames=9)
    events = server.run(prompt)
    assert events.error == ""
    assert events.previews  # ComfyUI has no colours for its 16 channels
    (file,) = server.files(events)
    assert media.read_video(file).frames.shape == (9, 64, 64, 3)


def test_what_a_node_has_to_say_stands_on_it(server: Server, workflow: Callable[[str], Graph]):
    prompt = workflow("i2v-2b")
    node = {prompt[node]["class_type"]: node for node in prompt}
    prompt[node["LTXKitEmptyLatent"]]["inputs"]["frames"] = 10
    said = dict(server.run(prompt).texts)
    assert "60x64, 10 frames: made as 64x64, 17 frames" in said[node["LTXKitEmptyLatent"]]
    lines = said[node["LTXKitSampleVideo"]].splitlines()  # its last text, which holds all its messages
    assert lines.count("Sampling as 2b-0.9.8-distilled.") == 1
    assert len(lines) == len(set(lines)) > 1


def test_cancel_works_while_sampling_and_the_next_run_too(server: Server, workflow: Callable[[str], Graph]):
    prompt = workflow("t2v-2b")
    node = {prompt[node]["class_type"]: node for node in prompt}
    sampler = prompt[node["LTXKitSampleVideo"]]["inputs"]
    prompt["many"] = {
        "class_type": "LTXKitCreateSchedule",
        "inputs": {"kind": "linear-quadratic", "steps": 500, "levels": "", "denoise_strength": 1.0},
    }
    sampler["schedule"] = ["many", 0]
    sampler["seed"] = 99
    events = server.run(prompt, interrupt_at=3)
    (interrupted,) = events.of("execution_interrupted")
    assert interrupted["node_id"] == node["LTXKitSampleVideo"]
    assert max(data["value"] for data in events.of("progress") if data["max"] == 500) < 100
    assert node["LTXKitDecodeVideo"] not in events.executed

    del prompt["many"], sampler["schedule"]
    assert server.run(prompt).error == ""


# ------------------------------------------------------------------------------------------------ bad prompts


def test_a_native_model_by_api_is_told_which_loader_to_use(server: Server, workflow: Callable[[str], Graph]):
    prompt = workflow("t2v-2b")
    prompt["native"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "ltxv-tiny.safetensors"}}
    sampler = next(node for node in prompt.values() if node["class_type"] == "LTXKitSampleVideo")
    sampler["inputs"]["model"] = ["native", 0]
    (error,) = errors(server, prompt)
    assert error["type"] == "return_type_mismatch"
    assert error["extra_info"]["input_name"] == "model"
    remedy = "; connect the node 'Load Model (LTXKit)', or a MODEL through 'Model from ComfyUI (LTXKit)'"
    expected = f"received_type(MODEL) mismatch input_type(LTXKIT_MODEL{remedy})"
    assert error["details"] == f"model, {expected}"


def errors(server: Server, prompt: Graph) -> list[dict[str, Any]]:
    status, answer = server.submit(prompt)
    assert status == 400
    return [error for node in answer["node_errors"].values() for error in node["errors"]]


def test_a_missing_file_is_one_error_in_comfyuis_own_form(server: Server, workflow: Callable[[str], Graph]):
    """Front ends gather these under "Missing models"."""
    prompt = workflow("ic-lora-13b")
    names = {
        "LTXKitLoadModel": "model_name",
        "LTXKitLoadTextEncoder": "text_encoder_name",
        "LTXKitApplyLoRA": "lora_name",
    }
    for node in prompt.values():
        if node["class_type"] in names:
            node["inputs"][names[node["class_type"]]] = "gone.safetensors"
    found = errors(server, prompt)
    assert {error["type"] for error in found} == {"value_not_in_list"}
    assert sorted(error["extra_info"]["input_name"] for error in found) == sorted(names.values())
    assert all("gone.safetensors" in error["details"] for error in found)


@pytest.mark.parametrize(
    ("node", "name", "value", "kind"),
    [
        ("LTXKitSampleVideo", "condition_noise", "nan", "value_smaller_than_min"),
        ("LTXKitDecodeVideo", "decode_timestep", "inf", "value_bigger_than_max"),
        ("LTXKitDecodeVideo", "decode_noise_scale", -1.0, "value_smaller_than_min"),
        ("LTXKitSampleVideo", "sampler", "guess", "value_not_in_list"),
    ],
)
def test_a_bad_widget_is_one_error_on_itself(
    server: Server, workflow: Callable[[str], Graph], node: str, name: str, value: Any, kind: str
):
    prompt = workflow("t2v-2b")
    next(each for each in prompt.values() if each["class_type"] == node)["inputs"][name] = value
    assert [(error["type"], error["extra_info"]["input_name"]) for error in errors(server, prompt)] == [(kind, name)]


def test_conditions_without_a_vae_are_one_error(server: Server, workflow: Callable[[str], Graph]):
    prompt = workflow("i2v-2b")
    del next(each for each in prompt.values() if each["class_type"] == "LTXKitSampleVideo")["inputs"]["vae"]
    (error,) = errors(server, prompt)
    assert error["extra_info"]["input_name"] == "conditions"
    assert "got conditions without a VAE; expected one" in error["details"]


def test_another_object_on_our_sockets_is_refused_when_it_arrives(server: Server, workflow: Callable[[str], Graph]):
    prompt = workflow("t2v-2b")
    sampler = next(node for node in prompt.values() if node["class_type"] == "LTXKitSampleVideo")
    sampler["inputs"]["model"] = "a constant, by hand"
    events = server.run(prompt)
    assert "got str on `model`; expected LTXKIT_MODEL; connect the node 'Load Model (LTXKit)'" in events.error
    prompt["any"] = {"class_type": "TestAnything", "inputs": {}}
    sampler["inputs"]["model"] = ["any", 0]
    assert "got str on `model`; expected LTXKIT_MODEL" in server.run(prompt).error


# ------------------------------------------------------------------------------------------------ a broken module


def test_a_broken_module_shows_its_traceback_and_harms_nobody(comfyui: ComfyUI, repository: Path, tmp_path: Path):
    packs = tmp_path / "custom_nodes"
    ours = packs / "ltxkit"
    shutil.copytree(repository / "nodes", ours / "nodes", ignore=shutil.ignore_patterns("__pycache__"))
    (ours / "ltx_core").symlink_to(repository / "ltx_core")
    shutil.copy(repository / "__init__.py", ours)
    # ComfyUI would read an AttributeError as "this pack has no nodes".
    with (ours / "nodes/text.py").open("a") as source:
        source.write("\nimport math\nmath.this_was_removed\n")
    (packs / "other").mkdir()
    (packs / "other/__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\nprint('the other pack lives')\n")
    command = [str(comfyui.python), "main.py", "--cpu", "--quick-test-for-ci", "--base-directory", str(tmp_path)]
    command += ["--disable-api-nodes", "--database-url", f"sqlite:///{tmp_path}/comfyui.db"]
    done = subprocess.run(
        command, cwd=comfyui.root, env=comfyui.environment(), capture_output=True, text=True, timeout=600, check=False
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    assert "Traceback (most recent call last)" in log
    assert "math.this_was_removed" in log
    assert re.search(r"\(IMPORT FAILED\): .*/ltxkit", log)
    assert "the other pack lives" in log
    assert re.search(r"seconds: .*/other", log)
    assert not re.search(r"IMPORT FAILED\): .*/other", log)


# ------------------------------------------------------------------------------------------------ without ComfyUI


def test_the_server_and_ltxkit_run_make_the_same_latent(
    server: Server,
    comfyui: ComfyUI,
    repository: Path,
    models_folder: Path,
    workflow: Callable[[str], Graph],
    tmp_path: Path,
):
    from safetensors.torch import load_file

    prompt = workflow("two-stage-13b-distilled")
    titles = {node["_meta"]["title"]: node_id for node_id, node in prompt.items()}
    # Without its clip, which this core decodes in another way than the newest and `ltxkit run` (docs/run.md).
    for title in ("First pass", "Second pass"):
        del prompt[titles[title]]["inputs"]["conditions"]
    for title in ("Clip", "Frames", "First frames", "Condition", "Sound"):
        del prompt[titles[title]]
    for title in ("Decode", "Scale", "Create video", "Save video"):
        del prompt[titles[title]]
    prompt["save"] = {
        "class_type": "SaveLatent",
        "inputs": {"samples": [titles["Second pass"], 0], "filename_prefix": "same"},
    }
    events = server.run(prompt)
    assert events.error == ""
    (theirs,) = server.files(events)

    (tmp_path / "prompt.json").write_text(json.dumps(prompt))
    command = [
        str(comfyui.python),
        str(repository),
        "run",
        str(tmp_path / "prompt.json"),
        "--models",
        str(models_folder),
    ]
    command += ["--input", str(server.base / "input"), "--output", str(tmp_path)]
    done = subprocess.run(
        command, env=comfyui.environment(), cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    ours = Path(done.stdout.strip())
    assert ours == tmp_path / "same_00001_.latent"
    mine, other = (load_file(path)["latent_tensor"] for path in (ours, theirs))
    assert mine.numpy().tobytes() == other.numpy().tobytes()

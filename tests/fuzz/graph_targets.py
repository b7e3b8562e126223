"""Graphs of the editor and of the API, files that carry one, old graphs."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import mutate
import torch
from checkpoints import small_checkpoint
from target import QUIET, ROOT, Target


def _api_graphs(folder: Path) -> list[Path]:
    chosen = sorted((ROOT / "workflows" / "api").glob("*.json"))
    return [Path(shutil.copy(path, folder / f"{number}.json")) for number, path in enumerate(chosen)]


def _ui_graphs(folder: Path) -> list[Path]:
    chosen = [*sorted((ROOT / "workflows").glob("*.json")), *sorted((ROOT / "subgraphs").glob("*.json"))]
    return [Path(shutil.copy(path, folder / f"{number}.json")) for number, path in enumerate(chosen)]


@cache
def _classes() -> Any:
    from ltxkit.headless.runner import all_nodes, known_kinds

    classes = all_nodes()
    return classes, known_kinds(classes)


def _graph(path: Path) -> object:
    """Read, its inputs set, its names filled in, checked: what comes before the first node."""
    from ltxkit.headless.exports import read_export
    from ltxkit.headless.host import PlainHost
    from ltxkit.headless.prompt import check, set_inputs
    from ltxkit.headless.texts import fill_prefixes
    from ltxkit.nodes.host import use_host

    classes, kinds = _classes()
    with use_host(PlainHost(path.parent, path.parent, path.parent, notes=QUIET)):
        export = read_export(path, kinds)
        prompt = fill_prefixes(set_inputs(export.prompt, [], classes), export.named)
        check(prompt, classes)
    return prompt


def _old_graphs(folder: Path) -> list[Path]:
    stored = json.loads((ROOT / "tests" / "data" / "first_graphs.json").read_text())
    made: list[Path] = []
    for name, graph in stored.items() if isinstance(stored, dict) else enumerate(stored):
        path = folder / f"{len(made)}.json"
        if isinstance(graph, dict):
            path.write_text(json.dumps(graph))
            made.append(path)
        del name
    native = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "ltxv-2b.safetensors"}},
        "2": {"class_type": "CLIPLoader", "inputs": {"clip_name": "t5.safetensors", "type": "ltxv"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["2", 0]}},
        "4": {
            "class_type": "LTXVConditioning",
            "inputs": {"positive": ["3", 0], "negative": ["3", 0], "frame_rate": 25},
        },
        "5": {
            "class_type": "EmptyLTXVLatentVideo",
            "inputs": {"width": 64, "height": 64, "length": 9, "batch_size": 1},
        },
        "6": {
            "class_type": "LTXVScheduler",
            "inputs": {
                "steps": 2,
                "max_shift": 2.05,
                "base_shift": 0.95,
                "stretch": True,
                "terminal": 0.1,
                "latent": ["5", 0],
            },
        },
        "7": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "8": {
            "class_type": "SamplerCustom",
            "inputs": {
                "add_noise": True,
                "noise_seed": 1,
                "cfg": 3,
                "model": ["1", 0],
                "positive": ["4", 0],
                "negative": ["4", 1],
                "sampler": ["7", 0],
                "sigmas": ["6", 0],
                "latent_image": ["5", 0],
            },
        },
        "9": {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": ["1", 2]}},
        "10": {
            "class_type": "SaveAnimatedWEBP",
            "inputs": {
                "images": ["9", 0],
                "filename_prefix": "a",
                "fps": 24,
                "lossless": False,
                "quality": 80,
                "method": "default",
            },
        },
    }
    path = folder / "native.json"
    path.write_text(json.dumps(native))
    return [*made, path]


def _migrate(path: Path) -> object:
    from ltxkit.headless.migration.file import migrate_file

    return migrate_file(path, path.with_name("out") / "new.json", overwrite=True)


def _with_graph(folder: Path) -> list[Path]:
    """A graph of core's nodes that needs no weights, in every form that carries one."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo
    from safetensors.torch import save_file

    from ltxkit.ltx_core.media import write_video

    prompt = json.dumps(_small_graph())
    chunks = PngInfo()
    chunks.add_text("prompt", prompt)
    picture = Image.new("RGB", (16, 16), "teal")
    picture.save(folder / "a.png", pnginfo=chunks)
    exif = picture.getexif()
    exif[0x0110] = f"prompt:{prompt}"
    picture.save(folder / "b.webp", exif=exif)
    picture.save(folder / "c.jpg", exif=exif)
    save_file({"latent_tensor": torch.zeros(1)}, folder / "d.latent", {"prompt": prompt})
    write_video(folder / "e.mp4", [torch.rand(2, 16, 16, 3)], fps=Fraction(8), metadata={"prompt": json.loads(prompt)})
    made = sorted(folder.iterdir())
    _inputs(folder)
    return made


def _small_graph() -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "small.png"}},
        "2": {
            "class_type": "ImageScale",
            "inputs": {"image": ["1", 0], "upscale_method": "bilinear", "width": 48, "height": 32, "crop": "center"},
        },
        "3": {
            "class_type": "LTXKitCreateSchedule",
            "inputs": {"schedule": "linear", "steps": 4, "shift_by_size": False},
        },
        "4": {"class_type": "CreateVideo", "inputs": {"images": ["2", 0], "fps": 8.0}, "_meta": {"title": "Video"}},
        "5": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["4", 0], "filename_prefix": "clip", "format": "auto", "codec": "auto"},
        },
        "6": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "picture"}},
        "7": {"class_type": "LoadVideo", "inputs": {"file": "small.mp4"}},
        "8": {"class_type": "GetVideoComponents", "inputs": {"video": ["7", 0]}},
        "9": {"class_type": "ImageFromBatch", "inputs": {"image": ["8", 0], "batch_index": 0, "length": 1}},
        "10": {"class_type": "ImageBatch", "inputs": {"image1": ["9", 0], "image2": ["2", 0]}},
        "11": {"class_type": "PreviewImage", "inputs": {"images": ["10", 0]}},
        "12": {"class_type": "LoadLatent", "inputs": {"latent": "small.latent"}},
        "13": {"class_type": "SaveLatent", "inputs": {"samples": ["12", 0], "filename_prefix": "latent"}},
        "14": {"class_type": "LoadImageMask", "inputs": {"image": "small.png", "channel": "red"}},
        "15": {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["12", 0], "mask": ["14", 0]}},
        "16": {"class_type": "SaveLatent", "inputs": {"samples": ["15", 0], "filename_prefix": "masked"}},
    }


def _inputs(inputs: Path) -> None:
    """What the small graph reads."""
    from PIL import Image
    from safetensors.torch import save_file

    from ltxkit.ltx_core.media import write_video

    Image.new("RGB", (16, 16), "teal").save(inputs / "small.png")
    write_video(inputs / "small.mp4", [torch.rand(3, 16, 16, 3)], fps=Fraction(8))
    save_file(
        {"latent_tensor": torch.zeros(1, 16, 2, 2, 2), "latent_format_version_0": torch.tensor([])},
        inputs / "small.latent",
    )


def _runs(folder: Path) -> list[Path]:
    (folder / "input").mkdir()
    _inputs(folder / "input")
    (folder / "graph.json").write_text(json.dumps(_small_graph()))
    return [folder / "graph.json"]


def _run_graph(path: Path) -> object:
    from ltxkit.headless.runner import run_workflow

    folder = path.parent
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    return run_workflow(
        path, models=folder / "models", input_folder=folder / "input", output_folder=output, notes=QUIET
    )


def _latents(folder: Path) -> list[Path]:
    """As Save Latent writes them, of an early version without its mark, and of half the bits."""
    from safetensors.torch import save_file

    small_checkpoint(folder.with_name("vae.safetensors"))
    mark = {"latent_format_version_0": torch.tensor([])}
    video = torch.linspace(-1, 1, 16 * 2 * 2 * 2).view(1, 16, 2, 2, 2)
    for name, tensors in (
        ("a", {"latent_tensor": video, **mark}),
        ("b", {"latent_tensor": video}),
        ("c", {"latent_tensor": video.bfloat16(), **mark}),
    ):
        save_file(tensors, folder / f"{name}.latent", {"prompt": "{}", "workflow": "{}"})
    return sorted(folder.iterdir())


@cache
def _vae(path: Path) -> Any:
    from ltxkit.ltx_core.weights.build import load_vae

    return load_vae(path)


def _latent(path: Path) -> object:
    """Loaded as Load Latent does, and decoded."""
    from ltxkit.headless.core_nodes import LoadLatent
    from ltxkit.headless.host import PlainHost
    from ltxkit.nodes.host import use_host
    from ltxkit.nodes.latent import DecodeVideo

    with use_host(PlainHost(path.parent, path.parent, path.parent, notes=QUIET)), torch.inference_mode():
        (latent,) = LoadLatent().load(path.name)
        return DecodeVideo().run(latent, _vae(path.parent.with_name("vae.safetensors")), 0.05, 0.025, 0)


TARGETS = {
    "api-graphs": Target(_api_graphs, _graph, mutate.json_file),
    "ui-graphs": Target(_ui_graphs, _graph, mutate.json_file),
    "embedded-graphs": Target(_with_graph, _graph, mutate.media),
    "migration": Target(_old_graphs, _migrate, mutate.json_file),
    "runs": Target(_runs, _run_graph, mutate.json_file, heavy=True),
    "latents": Target(_latents, _latent, mutate.safetensors),
}

"""Configs, recipes, places, records of clips; tables of captions, data sets and what a training run leaves."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from pathlib import Path

import mutate
import numpy as np
import torch
from target import QUIET, ROOT, Target


def _configs(folder: Path) -> list[Path]:
    chosen = sorted((ROOT / "assets" / "training").glob("*.yaml"))
    return [Path(shutil.copy(path, folder / path.name)) for path in chosen]


def _config(path: Path) -> object:
    from ltxkit.ltx_core.training.config import load_config

    return load_config(path)


THEIRS = """pipeline_type: multi-scale
checkpoint_path: "ltxv-13b.safetensors"
downscale_factor: 0.6666666
spatial_upscaler_model_path: "upscaler.safetensors"
stg_mode: "attention_values" # options: "attention_values", "attention_skip"
decode_timestep: 0.05
decode_noise_scale: 0.025
text_encoder_model_name_or_path: "PixArt-alpha/PixArt-XL-2-1024-MS"
precision: "bfloat16"
sampler: "from_checkpoint"
prompt_enhancement_words_threshold: 120
stochastic_sampling: false
first_pass:
  guidance_scale: [1, 1, 6, 8, 6, 1, 1]
  stg_scale: [0, 0, 4, 4, 4, 2, 1]
  rescaling_scale: [1, 1, 0.5, 0.5, 1, 1, 1]
  guidance_timesteps: [1.0, 0.996, 0.9933, 0.9850, 0.9767, 0.9008, 0.6180]
  skip_block_list: [[], [11, 25, 35, 39], [22, 35, 39], [28], [28], [28], [28]]
  num_inference_steps: 30
  skip_final_inference_steps: 3
  cfg_star_rescale: true
second_pass:
  guidance_scale: [1]
  stg_scale: [1]
  rescaling_scale: [1]
  guidance_timesteps: [1.0]
  skip_block_list: [27]
  num_inference_steps: 30
  skip_initial_inference_steps: 17
  cfg_star_rescale: true
"""


def _recipes(folder: Path) -> list[Path]:
    (folder / "theirs.yaml").write_text(THEIRS)
    records = json.loads((ROOT / "tests" / "data" / "official_recipes.json").read_text())
    (folder / "theirs.json").write_text(json.dumps(next(iter(records.values()))["settings"]))
    return [folder / "theirs.yaml", folder / "theirs.json"]


def _recipe(path: Path) -> object:
    from ltxkit.ltx_core.pipelines.recipe_file import read_recipe

    return read_recipe(path)


def _places(folder: Path) -> list[Path]:
    (folder / "config.ini").write_text("[ltxkit]\nmodel = models/a.safetensors\ncomfyui = ComfyUI\n")
    place = folder / "ComfyUI"
    (place / "models" / "checkpoints").mkdir(parents=True)
    (place / "extra_model_paths.yaml").write_text(
        "comfyui:\n    base_path: ./more\n    checkpoints: |\n        a\n        b\n    text_encoders: t\n"
    )
    return [folder / "config.ini", place / "extra_model_paths.yaml"]


def _find_places(path: Path) -> object:
    from ltxkit.commands import places

    if path.suffix == ".ini":
        return places.read_config(path)
    return list(places._folders_of(path.parent / "models", ("checkpoints", "text_encoders")))


def _kernels(folder: Path) -> list[Path]:
    from ltxkit.ltx_core.kernels.choice import parse_kernels

    plain = parse_kernels("plain", "said")
    kernels = plain.to_json() if plain is not None else {}
    (folder / "kernels.json").write_text(json.dumps({"cpu": "x", "kernels": kernels}))
    return [folder / "kernels.json"]


def _kernels_kept(path: Path) -> object:
    from ltxkit.ltx_core.errors import ConfigError
    from ltxkit.ltx_core.kernels import here

    try:
        return here._read(path, {"cpu": "x"})
    except ValueError as error:  # what its caller turns into a note, and a new measurement
        raise ConfigError(f"got {error}; expected it whole") from error


def _records(folder: Path) -> list[Path]:
    """What `generate` writes into a clip, beside a clip to write it into."""
    from PIL import Image
    from safetensors.torch import save_file

    from ltxkit.commands.again import KEY
    from ltxkit.ltx_core.weights.identity import named_identity

    Image.new("RGB", (16, 16)).save(folder / "small.png")
    save_file({"a": torch.zeros(3)}, folder / "a.safetensors")
    model, picture = (named_identity(folder / name).to_json() for name in ("a.safetensors", "small.png"))
    cli = [
        *(["--seed", "7"], ["--size", "64x64"], ["--frames", "9"], ["--steps", "2"], ["--fps", "8"], ["--no-cfg-star"]),
        *(["--prompt", "a cat"], ["--negative", "bad"], ["--guidance", "3"], ["--stg-blocks", "1,2"]),
        *(["--lora", ["", model, "=0.5"]], ["--model", ["", model, ""]], ["--image", ["", picture, ""]]),
    ]
    common = {
        "prompt": "a cat",
        "negative_prompt": "bad",
        "width": 64,
        "height": 64,
        "frames": 9,
        "fps": 8.0,
        "seed": 7,
        "made_with": {"ltxkit": "0.1.0", "torch": "2.5", "av": "14"},
        "files": {"model": model},
        "load": {"dtype": "torch.bfloat16"},
        "settings": {"first": {"steps": 2, "guidance_scale": 3.0, "stg_blocks": [1, 2]}, "decode_timestep": 0.05},
        "loras": [{**model, "strength": 0.5}],
    }
    (folder / "conditions.json").write_text(json.dumps({**common, "conditions": [{"frame": 0, "strength": 1.0}]}))
    (folder / "generate.json").write_text(json.dumps({**common, KEY: cli}))
    (folder / "no-files.json").write_text(json.dumps({**common, KEY: cli[:10], "files": {}}))
    (folder / "library.json").write_text(json.dumps(common))
    return sorted(folder.glob("*.json"))


def _record(path: Path) -> object:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from ltxkit.commands import again

    chunks = PngInfo()
    chunks.add_text(again.SETTINGS, path.read_bytes().decode("utf-8", "replace"))
    clip = path.with_name("clip.png")
    Image.new("RGB", (16, 16)).save(clip, pnginfo=chunks)
    again.format_report(again.made_with(clip))
    words = again.expanded(
        ["generate", "--quiet", "--like", str(clip), "--models", str(path.parent), "--input", str(path.parent)]
    )
    return again.options_like(
        clip, models=path.parent, inputs=path.parent, output_folder=path.parent, assignments=[]
    ), words


def _caption_tables(folder: Path) -> list[Path]:
    from PIL import Image

    place = folder / "clips"
    (place / "below").mkdir(parents=True)
    for name in ("a.png", "b.png", "below/c.png"):
        Image.new("RGB", (32, 32), "navy").save(place / name)
    rows = [{"file_name": "a.png", "text": 'one, "two"'}, {"file_name": "b.png", "text": "three"}]
    files = {
        "captions.csv": 'file_name,caption\na.png,"one, two"\nb.png,three\nc.png,four\n',
        "captions.tsv": "file_name\tcaption\na.png\tone\nb.png\tthree\n",
        "captions.json": json.dumps(rows),
        "metadata.jsonl": "\n".join(map(json.dumps, rows)),
        "prompts.txt": "one\ntwo\n",
        "videos.txt": "a.png\nb.png\n",
        "a.txt": "one\n",
        "a.json": json.dumps({"caption": "one"}),
    }
    aside = folder / "tables"
    aside.mkdir()
    for name, text in files.items():
        (aside / name).write_text(text)
    return [aside / name for name in files]


def _captions(path: Path) -> object:
    """One table at a time beside the clips; the pair of lists needs both."""
    from ltxkit.ltx_core.shapes import PixelShape
    from ltxkit.ltx_core.training.folder import Reading, read_folder

    clips = path.parent.parent / "clips"
    beside = {"prompts.txt": "videos.txt", "videos.txt": "prompts.txt"}.get(path.name)
    placed = [path, *([path.with_name(beside)] if beside else [])]
    try:
        for each in placed:
            shutil.copy(each, clips / each.name)
        sizes = [PixelShape(1, 32, 32)]
        return read_folder(
            clips, sizes, fps=8, seed=0, notes=QUIET, reading=Reading(allow_empty_captions=path.stem == "a")
        )
    finally:
        for each in placed:
            (clips / each.name).unlink(missing_ok=True)


def _data_files(folder: Path) -> list[Path]:
    videos = np.arange(4 * 3 * 8 * 8, dtype=np.uint8).reshape(4, 3, 8, 8)
    np.savez_compressed(folder / "mm.npz", videos=videos, labels=np.zeros((4, 2), np.int64))
    np.save(folder / "mm.npy", videos.transpose(1, 0, 2, 3))
    pictures = struct.pack(">IIII", 0x803, 3, 28, 28) + bytes(3 * 784)
    labels = struct.pack(">II", 0x801, 3) + bytes(3)
    digits = folder / "digits"
    digits.mkdir()
    (digits / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(pictures, mtime=0))
    (digits / "train-labels-idx1-ubyte").write_bytes(labels)
    return [folder / "mm.npz", folder / "mm.npy", *digits.iterdir()]


def _data(path: Path) -> object:
    from ltxkit.ltx_core.shapes import PixelShape
    from ltxkit.ltx_core.training.digits.clips import mnist_digits
    from ltxkit.ltx_core.training.moving_mnist import MovingMNIST

    if path.parent.name == "digits":
        return mnist_digits(path.parent)
    source = MovingMNIST(path, PixelShape(2, 8, 8), "train", 0)
    return source.samples([0, 1], PixelShape(2, 8, 8), torch.device("cpu")), source.identity()


def _run_folders(folder: Path) -> list[Path]:
    from ltxkit.ltx_core.training.checkpoints import write_state

    place = folder / "run" / "checkpoints" / "step_2"
    place.mkdir(parents=True)
    write_state(place, {"step": 2, "config": {}, "task": "vae", "optimizer": {"a": torch.zeros(3)}})
    (place / "state.sha256").unlink()  # earlier versions have none: with it every change is seen
    log = folder / "run" / "log.jsonl"
    log.write_text("".join(json.dumps({"step": step, "loss": 0.5, "lr": 1e-4}) + "\n" for step in range(5)))
    return [log, place / "state.pt"]


def _run_folder(path: Path) -> object:
    from ltxkit.ltx_core.run_log import read_log
    from ltxkit.ltx_core.training.checkpoints import newest_intact, saved_cache
    from ltxkit.ltx_core.training.logs import draw_curves

    if path.suffix == ".jsonl":
        draw_curves(path, path.with_name("curves.png"))
        return read_log(path)
    return saved_cache(path, ("step",), QUIET), newest_intact(path.parents[2], QUIET)


TARGETS = {
    "training-yaml": Target(_configs, _config, mutate.lines),
    "recipes": Target(_recipes, _recipe, mutate.json_or(mutate.lines)),
    "places": Target(_places, _find_places, mutate.lines),
    "kernels": Target(_kernels, _kernels_kept, mutate.json_file),
    "records": Target(_records, _record, mutate.json_file),
    "captions": Target(_caption_tables, _captions, mutate.json_or(mutate.lines)),
    "data-files": Target(_data_files, _data, mutate.noise),
    "run-folders": Target(_run_folders, _run_folder, mutate.noise, heavy=True),
}

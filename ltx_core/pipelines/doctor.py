"""Whether this installation can work: versions, devices, back ends, model folders, and what is missing.

Nothing heavy is imported at the top, so that an installation without torch is examined as well.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib
import importlib.metadata
import json
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LTXKitError, reason_of
from ..weights.bundled import BUNDLED, BUNDLED_LORA, bundled_files

ROOT = Path(__file__).parents[2]  # of the pack: with its assets and workflows
DISTRIBUTION = "ltxkit"

# What importing a distribution needs where the names differ.
_MODULES = {"pillow": "PIL", "scikit-learn": "sklearn", "pyyaml": "yaml", "comfy-kitchen": "comfy_kitchen"}
# What LTXKit uses where it is installed.
_OPTIONAL = {
    "huggingface_hub": "ltxkit fetch",
    "gguf": "convert --to gguf-...",
    "scikit-learn": "training of the digit model",
    "pyyaml": "training",
    "matplotlib": "training",
    "comfy-kitchen": "ComfyUI's quantized files",
}
_DEMO_FILES = (  # what `make demo` and the demo of the IC-LoRA read, beside the bundled models
    "workflows/api/01 Demo - a digit from a prompt.json",
    "workflows/api/03 Demo - two stages.json",
    "workflows/api/18 Demo - a digit follows edges.json",
    "assets/examples/three.png",
    "assets/examples/three-edges.mp4",
    "assets/t5/spiece.model",
)
VIDEO_CODEC = "libx264"  # media.write_video
_PYTHON = (3, 10)
_DISK_FOR_A_DEMO = 50e6  # bytes


@dataclass(frozen=True)
class ModelFile:
    """A file that the loaders offer. kind: the name of ComfyUI's folder for it; name: as the loader shows it."""

    kind: str
    name: str
    path: Path


def version() -> str:
    """The version of this pack: of the folder where it is used as it is, else of the installation."""
    found = re.search(r'^version = "(.+)"$', _pyproject(), re.MULTILINE)
    return found[1] if found else _installed(DISTRIBUTION) or "unknown"


def examine(models: Path, files: Iterable[ModelFile] = ()) -> dict[str, Any]:
    """The state of this installation, JSON-ready.

    models: a folder laid out like ComfyUI's `models`. files: what the loaders find in it.

    Returns:
        `ltxkit`, `python`, `system`: versions; `packages`: version, or None, by name, and `optional` likewise;
        `devices`, `kernels`: sentences; `folders`: number of files by name; `files`: folder, name, kind, what it is,
        release and problems of each; `missing`: what released models need and is not there, with the remedy;
        `problems`: why `make demo` cannot run; empty if it can.
    """
    problems: list[str] = []
    packages = dict(_packages(problems))
    with_torch = "torch" in packages and packages["torch"] is not None and _imports("torch", problems)
    examined = [_examined(file) for file in files] if with_torch else []
    if sys.version_info < _PYTHON:
        problems.append(f"got Python {platform.python_version()}; expected 3.10 or later; use another one")
    problems += _demo_problems(with_torch)
    return {
        "ltxkit": version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": packages,
        "optional": {name: _installed(name) for name in _OPTIONAL},
        "devices": _devices(problems) if with_torch else [],
        "kernels": _kernels() if with_torch else [],
        "models": str(models),
        "folders": _folders(models),
        "files": examined,
        "missing": list(_missing(models, examined)),
        "problems": problems,
    }


# --- packages ---------------------------------------------------------------------------------------------------------


def _pyproject() -> str:
    path = ROOT / "pyproject.toml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _requirements() -> dict[str, str]:
    """Least version by name, from where `version` is."""
    block = _pyproject().partition("\ndependencies = [")[2].partition("\n]")[0]
    lines = re.findall(r'"(.+?)"', block)
    if not lines:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            lines = importlib.metadata.requires(DISTRIBUTION) or []
    pairs = (re.fullmatch(r"([\w.-]+)>=([\w.]+)", line) for line in lines if ";" not in line)
    return {pair[1]: pair[2] for pair in pairs if pair}


def _packages(problems: list[str]) -> Iterator[tuple[str, str | None]]:
    for name, least in _requirements().items():
        installed = _installed(name)
        yield name, installed
        if installed is None:
            problems.append(f"got no {name}; expected {least} or later; run: pip install '{name}>={least}'")
        elif _numbers(installed) < _numbers(least):
            problems.append(
                f"got {name} {installed}; expected {least} or later; run: pip install --upgrade '{name}>={least}'"
            )
        elif name != "torch":
            _imports(name, problems)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """2.13.0+cpu -> (2, 13, 0)"""
    leading = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


def _imports(name: str, problems: list[str]) -> bool:
    """Whether it can be imported: a package that is listed may still lack a library of the system."""
    try:
        importlib.import_module(_MODULES.get(name, name))
    except Exception as error:  # a broken package raises anything while it is imported
        problems.append(f"got {name}, which cannot be imported ({error}); expected it to work; install it again")
        return False
    return True


# --- the machine ------------------------------------------------------------------------------------------------------


def _devices(problems: list[str]) -> list[str]:
    from ..placing.devices import describe_devices, failing_device

    failure = failing_device()
    if failure:
        problems.append(failure)
    return describe_devices()


def _kernels() -> list[str]:
    """What multiplies, and in which precision."""
    import torch

    from ..kernels.here import kernels_here
    from ..models.dtypes import compute_dtype
    from ..placing.devices import best_device
    from ..quant.fp8 import multiplies_fp8

    device = best_device()
    lines = ["attention: torch's scaled_dot_product_attention"]
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        native = compute_dtype(torch.empty(0, dtype=dtype)) == dtype
        lines.append(f"{name} on the CPU: {'yes' if native else 'no, computed in float32'}")
    lines.append(f"on the CPU: {kernels_here().in_words()}")
    products = "yes" if multiplies_fp8(device) else "no, weights are widened first"
    return [*lines, f"fp8 products on {device.type}: {products}"]


# --- models -----------------------------------------------------------------------------------------------------------


def _folders(models: Path) -> dict[str, int]:
    """How many files lie in each of ComfyUI's folders that LTXKit reads."""
    names = ("checkpoints", "diffusion_models", "unet", "vae", "text_encoders", "clip", "latent_upscale_models")
    folders = {name: models / name for name in (*names, "upscale_models", "loras")}
    return {
        name: sum(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*"))
        for name, folder in folders.items()
        if folder.is_dir()
    }


def _examined(file: ModelFile) -> dict[str, Any]:
    from ..weights.report import inspect

    try:
        report = inspect(file.path)
    except (LTXKitError, OSError) as error:
        report = {"kind": "unknown", "what": "not readable", "version": [], "problems": [reason_of(error)]}
    said = {name: report[name] for name in ("kind", "what", "version", "problems")}
    return {"folder": file.kind, "name": file.name, **said}


def _missing(models: Path, examined: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What a clip of a released model needs and is not there. The model that comes with the pack does not count."""
    usable = {file["kind"] for file in examined if file["name"] != BUNDLED and not file["problems"]}
    if not models.is_dir():
        yield f"the folder {models}: pass --models DIR, or run `ltxkit fetch`, which makes it"
    if not usable & {"checkpoint", "transformer"}:
        yield "a released model: ltxkit fetch 2b-0.9.8-distilled"
    if "text_encoder" not in usable:
        yield "the text encoder of released models: ltxkit fetch t5xxl-fp16, or t5xxl-fp8"


# --- make demo --------------------------------------------------------------------------------------------------------


def _demo_problems(with_torch: bool) -> Iterator[str]:
    for name in _DEMO_FILES:
        path = ROOT / name
        if not path.is_file():
            yield f"got no {name}; expected it in the pack; install LTXKit again"
        elif path.suffix == ".json":
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                yield f"got {name}, which cannot be read ({reason_of(error)}); expected a workflow; install it again"
    if with_torch:
        yield from _bundled_problems()
    yield from _video_problems()
    free = shutil.disk_usage(Path.cwd()).free
    if free < _DISK_FOR_A_DEMO:
        yield f"got {free / 1e6:.0f} MB free here; expected {_DISK_FOR_A_DEMO / 1e6:.0f} MB for clips; free some space"
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()):
            pass
    except OSError as error:
        yield f"got a working folder that cannot be written ({error.strerror}); expected one; change to another folder"


def _bundled_problems() -> Iterator[str]:
    from ..weights.report import inspect

    of_the_model = ("checkpoints", "text_encoders", "latent_upscale_models")
    for name, kind in [*((BUNDLED, kind) for kind in of_the_model), (BUNDLED_LORA, "loras")]:
        path = bundled_files(kind).get(name)
        if path is None:
            yield f"got no {name} for {kind}; expected the model that comes with the pack; install LTXKit again"
            continue
        try:
            problems = inspect(path)["problems"]
        except (LTXKitError, OSError) as error:
            problems = [reason_of(error)]
        for problem in problems:
            yield f"{name}: {problem}"


def _video_problems() -> Iterator[str]:
    try:
        import av.codec

        av.codec.Codec(VIDEO_CODEC, "w")
    except ImportError:
        return  # said already
    except ValueError:  # av's UnknownCodecError
        yield (
            f"got an av without the encoder {VIDEO_CODEC}, which writes mp4; expected one with it; "
            "run: pip install --force-reinstall av"
        )


# --- for people -------------------------------------------------------------------------------------------------------


def _lines(examination: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "ltxkit", examination["ltxkit"]
    yield "python", examination["python"]
    yield "system", examination["system"]
    for name, installed in examination["packages"].items():
        yield name, installed or "not installed"
    for name, installed in examination["optional"].items():
        yield name, installed or f"not installed (for {_OPTIONAL[name]})"
    for device in examination["devices"]:
        yield "device", device
    for kernel in examination["kernels"]:
        yield "kernel", kernel
    for name, count in examination["folders"].items():
        yield "folder", f"{examination['models']}/{name}: {count} file{'' if count == 1 else 's'}"
    for file in examination["files"]:
        names = file["version"] if isinstance(file["version"], str) else " or ".join(file["version"])
        yield "file", f"{file['folder']}/{file['name']}: {file['what']}{f', {names}' if names else ''}"
        for problem in file["problems"]:
            yield "  problem", problem
    for missing in examination["missing"]:
        yield "missing", missing
    for problem in examination["problems"]:
        yield "problem", problem
    yield "make demo", "cannot run" if examination["problems"] else "can run"


def format_examination(examination: Mapping[str, Any]) -> str:
    """The result of `examine` as lines of text."""
    lines = list(_lines(examination))
    width = max(len(title) for title, _ in lines)
    return "\n".join(f"{title:<{width}}  {_one_line(text)}" for title, text in lines)


def format_issue(examination: Mapping[str, Any]) -> str:
    """The same as a Markdown table to paste into an issue: without folders outside the models folder, and without the
    name of the user."""
    hide = _private(str(examination["models"]))
    rows = (f"| {title.strip()} | {hide(_one_line(text)).replace('|', '/')} |" for title, text in _lines(examination))
    return "\n".join(("| ltxkit doctor | |", "|---|---|", *rows))


def _private(models: str) -> Callable[[str], str]:
    """What takes the names of folders and of the user out of a text."""
    replacements = [(str(Path(models).absolute()), "models"), (models, "models"), (str(ROOT), "<ltxkit>")]
    replacements += [(prefix, "<python>") for prefix in {sys.prefix, sys.base_prefix}]
    replacements += [(str(Path.cwd()), "."), (tempfile.gettempdir(), "<temp>")]
    with contextlib.suppress(RuntimeError):  # no home
        replacements.append((str(Path.home()), "~"))
    replacements = [(text, name) for text, name in replacements if len(text) > 1]
    replacements.sort(key=lambda pair: len(pair[0]), reverse=True)
    user = ""
    with contextlib.suppress(KeyError, OSError, ImportError):
        user = getpass.getuser()

    def hide(text: str) -> str:
        for folder, name in replacements:
            text = text.replace(folder, name)
        return re.sub(rf"(?<=[\\/]){re.escape(user)}(?=[\\/]|$)", "<user>", text) if user else text

    return hide


def _one_line(text: str) -> str:
    return " ".join(text.split())

"""The small models that come with the pack: a name in place of a path.

`ltxkit-digits` is a folder like those that training writes: model.safetensors (transformer and VAE),
upscaler.safetensors and text_encoder/. `ltxkit-digits-edges` is an IC-LoRA on it. The model card in each folder says
what it is and how it was trained.

Beside it lies T5's own tokenizer, which the single files of the released text encoder do without.
"""

from __future__ import annotations

from pathlib import Path

from ..files import is_there

BUNDLED = "ltxkit-digits"
BUNDLED_LORA = "ltxkit-digits-edges"

BUNDLED_SIZE = (25, 64, 64)
"""Frames, height and width of the clips that it makes in one pass; in two, both sides are twice as long."""

_ASSETS = Path(__file__).parents[2] / "assets"
T5_TOKENIZER = _ASSETS / "t5" / "spiece.model"

_MODELS = _ASSETS / "models"
_FOLDER = _MODELS / BUNDLED
_FILES = {  # of each folder, by the name of ComfyUI's folder for models of that kind
    BUNDLED: {
        "checkpoints": "model.safetensors",
        "text_encoders": "text_encoder",
        "latent_upscale_models": "upscaler.safetensors",
    },
    BUNDLED_LORA: {"loras": f"{BUNDLED_LORA}.safetensors"},
}


def bundled_files(kind: str) -> dict[str, Path]:
    """The bundled files of this kind, as a listing of models: path by name; empty where there is none.

    kind: the name of ComfyUI's folder for such models.
    """
    paths = {name: _MODELS / name / files[kind] for name, files in _FILES.items() if kind in files}
    return {name: path for name, path in paths.items() if path.exists()}


def bundled_named(name: str) -> list[Path]:
    """The files of one bundled model; none for any other name."""
    paths = (_MODELS / name / file for file in _FILES.get(name, {}).values())
    return [path for path in paths if path.exists()]


def bundled_name(path: Path) -> str | None:
    """The name of the bundled model that a file belongs to; None: of none."""
    return next((name for name in _FILES if path in bundled_named(name)), None)


def find_model(path: Path | str, kind: str) -> Path:
    """`path`, or a bundled model's file of that kind where `path` is its name and does not exist as a path."""
    path = Path(path)
    return path if is_there(path) else bundled_files(kind).get(str(path), path)


def is_bundled(path: Path | str) -> bool:
    """Whether a path is a file of the bundled model."""
    return Path(path).resolve().parent == _FOLDER.resolve()


def find_run(path: Path | str) -> Path:
    """`path`, or the bundled model's folder, likewise, in place of the folder of a training run."""
    path = Path(path)
    return _FOLDER if str(path) == BUNDLED and not is_there(path) else path

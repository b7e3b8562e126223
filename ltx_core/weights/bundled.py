"""The small model that comes with the pack: a name in place of a path.

`ltxkit-digits` is a folder like those that training writes: model.safetensors (transformer and VAE),
upscaler.safetensors and text_encoder/. The model card in it says what it is and how it was trained.

Beside it lies T5's own tokenizer, which the single files of the released text encoder do without.
"""

from __future__ import annotations

from pathlib import Path

BUNDLED = "ltxkit-digits"

BUNDLED_SIZE = (25, 64, 64)
"""Frames, height and width of the clips that it makes in one pass; in two, both sides are twice as long."""

_ASSETS = Path(__file__).parents[2] / "assets"
T5_TOKENIZER = _ASSETS / "t5" / "spiece.model"

_FOLDER = _ASSETS / "models" / BUNDLED
_FILES = {  # by the name of ComfyUI's folder for models of that kind
    "checkpoints": "model.safetensors",
    "text_encoders": "text_encoder",
    "latent_upscale_models": "upscaler.safetensors",
}


def bundled_files(kind: str) -> dict[str, Path]:
    """The bundled model's file of this kind, as a listing of models: path by name; empty where there is none.

    kind: the name of ComfyUI's folder for such models.
    """
    path = _FOLDER / _FILES.get(kind, "")
    return {BUNDLED: path} if kind in _FILES and path.exists() else {}


def find_model(path: Path | str, kind: str) -> Path:
    """`path`, or the bundled model's file of that kind where `path` is its name and does not exist as a path."""
    path = Path(path)
    return path if path.exists() else bundled_files(kind).get(str(path), path)


def is_bundled(path: Path | str) -> bool:
    """Whether a path is a file of the bundled model."""
    return Path(path).resolve().parent == _FOLDER.resolve()


def find_run(path: Path | str) -> Path:
    """`path`, or the bundled model's folder, likewise, in place of the folder of a training run."""
    path = Path(path)
    return _FOLDER if str(path) == BUNDLED and not path.exists() else path

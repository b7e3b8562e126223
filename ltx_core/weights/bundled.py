"""The small model that comes with the pack: a name in place of a path.

`ltxkit-digits` is a folder as training leaves one: model.safetensors (transformer and VAE), upscaler.safetensors and
text_encoder/. What it is, and how it was made, stands in its model card beside it.
"""

from __future__ import annotations

from pathlib import Path

BUNDLED = "ltxkit-digits"

_FOLDER = Path(__file__).parents[2] / "assets" / "models" / BUNDLED
_FILES = {  # by the name of ComfyUI's folder for models of that kind
    "checkpoints": "model.safetensors",
    "text_encoders": "text_encoder",
    "latent_upscale_models": "upscaler.safetensors",
}


def bundled_files(kind: str) -> dict[str, Path]:
    """The bundled model as a folder of models has it: path by name. kind: of models, as ComfyUI names its folders."""
    path = _FOLDER / _FILES.get(kind, "")
    return {BUNDLED: path} if kind in _FILES and path.exists() else {}


def find_model(path: Path | str, kind: str) -> Path:
    """`path`, or the bundled model's file of that kind where `path` is its name and there is nothing of that name."""
    path = Path(path)
    return path if path.exists() else bundled_files(kind).get(str(path), path)


def find_run(path: Path | str) -> Path:
    """Likewise a folder that training left."""
    path = Path(path)
    return _FOLDER if str(path) == BUNDLED and not path.exists() else path

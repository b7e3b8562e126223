"""Where the files of a clip's models are, if the user names a folder or a release in place of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError, ConfigError
from ..published import PUBLISHED, T5_NAMES, PublishedFile, nearest
from ..values import check_kind, shown
from ..weights.build import open_models
from ..weights.bundled import BUNDLED, find_model
from ..weights.layouts import FileKind

PACK = Path(__file__).resolve().parents[2]
MODELS = "LTXKIT_MODELS"  # environment variable: a folder laid out like ComfyUI's models folder

_WEIGHTS = (".safetensors", ".gguf")
_MODEL: tuple[FileKind, ...] = ("checkpoint", "transformer")
_FOLDERS = ("", "checkpoints", "diffusion_models", "unet", "text_encoders", "clip", "text_encoder")


def model_folders() -> list[Path]:
    """Where `ltxkit fetch` puts files: $LTXKIT_MODELS, ComfyUI's models folder if the pack is in its custom_nodes, and
    `models` here; those that exist."""
    named = os.environ.get(MODELS)
    comfyui = PACK.parent.parent / "models" if PACK.parent.name == "custom_nodes" else None
    folders = [Path(named) if named else None, comfyui, Path("models")]
    return [folder for folder in folders if folder is not None and folder.is_dir()]


def find_models(model: Path | str, text_encoder: Path | str | None) -> tuple[Path, Path | None]:
    """The files of transformer and text encoder.

    model: a file; a folder that holds both; the name of a release that `ltxkit fetch` brought; or "ltxkit-digits".
    text_encoder: a file or folder, or a name; None: that of the folder or of the release.

    Raises:
        ConfigError: a folder with several models, or a release that is not here.
    """
    _check_name("model", model)
    if text_encoder is not None:
        _check_name("text_encoder", text_encoder)
        return find_file(model, "checkpoints"), find_file(text_encoder, "text_encoders")
    path = Path(model)
    if not path.exists():
        if str(model) == BUNDLED:
            return find_model(model, "checkpoints"), find_model(BUNDLED, "text_encoders")
        if str(model) in PUBLISHED:
            return find_file(model, "checkpoints"), _text_encoder_beside(str(model))
    if path.is_dir():
        return _in_folder(path)
    found = find_file(model, "checkpoints")
    if not found.exists():  # which comes before the question for what goes with it
        raise CheckpointError(f"got {shown(str(found))}; expected a file or a folder that exists; check the path")
    return found, None


def _check_name(name: str, value: object) -> None:
    """Raises ConfigError for what is no text or path, or names nothing that a disk can have."""
    check_kind(name, value, (str, Path))
    if value == "":
        raise ConfigError(f"got an empty {name}; expected a file, a folder or the name of a release; pass one")
    try:
        Path(str(value)).stat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            return  # whoever opens it says so
        raise ConfigError(
            f"got {name}={shown(str(value))}; expected one that a file can have; check the path"
        ) from error


def find_file(path: Path | str, kind: str) -> Path:
    """A path, or the file that a name stands for: of the bundled model, of a release that `ltxkit fetch` brought, or
    the file's own name, if it lies where `fetch` puts such files.

    kind: the name of ComfyUI's folder for such models. Raises ConfigError: a release that is not here.
    """
    if Path(path).exists() or str(path) not in PUBLISHED:
        found = find_model(_lying_there(str(path), kind) or path, kind)
        near = [] if found.exists() or found.suffix in _WEIGHTS or len(found.parts) > 1 else nearest(str(path))
        if near:
            raise ConfigError(
                f"got {path}, which is neither a file nor a folder nor the name of a release; expected one of them; "
                f"did you mean {' or '.join(near)}?"
            )
        return found
    found = _fetched(PUBLISHED[str(path)][0])
    if found is None:
        raise _not_here(str(path), PUBLISHED[str(path)][0])
    return found


def _lying_there(name: str, kind: str) -> Path | None:
    """The file or folder of this name among the models of a kind, or of a transformer alone."""
    if not name or Path(name).name != name or Path(name).exists():
        return None  # a path: it means one place
    kinds = (kind, "diffusion_models", "unet") if kind == "checkpoints" else (kind,)
    places = (folder / each / name for folder in model_folders() for each in kinds)
    return next((place for place in places if place.exists()), None)


def no_text_encoder() -> ConfigError:
    """The error where none is given or found."""
    return ConfigError("got no text encoder; expected its file or folder, such as t5xxl_fp16.safetensors; pass it")


def _fetched(file: PublishedFile) -> Path | None:
    places = (folder / file.folder / file.name for folder in model_folders())
    return next((place for place in places if place.exists()), None)


def _text_encoder_beside(release: str) -> Path:
    """The T5 that `ltxkit fetch` brings with a release, or another published one that is here."""
    files = [each for name in T5_NAMES for each in PUBLISHED[name]]
    found = next(filter(None, map(_fetched, files)), None)
    if found is None:
        raise _not_here(release, files[0])
    return found


def _not_here(name: str, file: PublishedFile) -> ConfigError:
    folders = ", ".join(str(folder / file.folder) for folder in model_folders()) or f"models/{file.folder}"
    return ConfigError(
        f"got {name}, whose file {file.name} is not in {folders}; expected it there; run `ltxkit fetch {name}`, name "
        f"its folder in {MODELS}, or pass the path of the file"
    )


def _in_folder(folder: Path) -> tuple[Path, Path | None]:
    """The two models in a folder: one of diffusers or of a training run, files side by side, or ComfyUI's folders."""
    if (folder / "model_index.json").exists() or (folder / "transformer").is_dir():
        return folder, folder
    kinds = {path: _kind(path) for path in _weights_in(folder)}
    models = [path for path, kind in kinds.items() if kind in _MODEL]
    encoders = [path for path, kind in kinds.items() if kind == "text_encoder"]
    if not models:
        return folder, None  # whose error names what is in it
    for what, paths in (("models", models), ("text encoders", encoders)):
        if len(paths) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in paths)
            raise ConfigError(f"got {folder} with several {what}: {names}; expected one; pass the path of the file")
    return models[0], encoders[0] if encoders else None


def _weights_in(folder: Path) -> Iterator[Path]:
    for name in _FOLDERS:
        place = folder / name
        if not place.is_dir():
            continue
        if name and (place / "config.json").exists():  # a folder of transformers
            yield place
            continue
        for path in sorted(place.iterdir()):
            if path.suffix.lower() in _WEIGHTS or (name and path.is_dir() and (path / "config.json").exists()):
                yield path


def _kind(path: Path) -> FileKind:
    try:
        return open_models(path).layout.kind
    except CheckpointError:
        return "unknown"

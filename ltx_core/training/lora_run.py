"""A run that trained a LoRA, as a model to sample: its base with the LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..weights.bundled import find_model
from .checkpoints import complete_checkpoints, find_export, newest_intact
from .config import TransformerTraining, load_config

FILE = "lora_comfyui.safetensors"


@dataclass(frozen=True)
class LoRARun:
    """lora: its file. initial, vae, text_encoder, tokenizer: what it was trained on. version: of `initial`."""

    lora: Path
    initial: Path
    vae: Path
    text_encoder: Path
    tokenizer: Path | None
    version: str | None


def find_lora_run(run: Path) -> LoRARun | None:
    """The run whose folder, or whose final/ or one of whose checkpoints, this is; None: it trained no LoRA.

    Raises:
        CheckpointError: the base that it was trained on is not where it was.
        ConfigError: its config.yaml is damaged.
    """
    if not run.is_dir():
        return None
    try:
        lora = find_export(run, FILE)
    except CheckpointError:
        return None
    folder = next((each for each in (run, *run.resolve().parents[:2]) if (each / "config.yaml").is_file()), None)
    if folder is None:
        raise CheckpointError(
            f"got {lora} without the config.yaml of its run, which names the base; expected the folder of the run; "
            "pass that, or give base and LoRA to ltxkit generate --model BASE --lora FILE"
        )
    config = load_config(folder / "config.yaml")
    if not isinstance(config, TransformerTraining) or config.initial is None or config.vae is None:
        raise CheckpointError(f"got {folder / 'config.yaml'} of no LoRA's training; expected one; check the folder")
    places = _Places(folder)
    initial = places.found("initial", config.initial, "checkpoints")
    beside = initial if initial.is_dir() else initial.parent
    text = config.text.encoder
    return LoRARun(
        lora=lora,
        initial=initial,
        vae=places.found("vae", config.vae, "checkpoints"),
        text_encoder=beside / "text_encoder" if text is None else places.found("text.encoder", text, "text_encoders"),
        tokenizer=None if config.text.tokenizer is None else places.found("text.tokenizer", config.text.tokenizer, ""),
        version=config.version,
    )


class _Places:
    """Where the files of a run were, if its config has paths from another folder."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._known: dict[str, str] | None = None

    def found(self, key: str, path: Path, kind: str) -> Path:
        path = find_model(path, kind)
        if path.exists():
            return path
        if self._known is None:
            saved = newest_intact(self.run, lambda _: None)[1] if complete_checkpoints(self.run) else {}
            self._known = dict(saved.get("places", {}))
        other = Path(self._known.get(key, str(path)))
        if not other.exists():
            raise CheckpointError(
                f"got the run {self.run}, whose {key} {path} is not there any more; expected it where the training "
                "found it; put it back, or give base and LoRA to ltxkit generate"
            )
        return other

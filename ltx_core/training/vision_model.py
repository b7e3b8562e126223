"""A vision-language model of transformers on this machine: frames of a clip in, a caption out.

Nothing is downloaded, no code from a model's folder runs, and weights are read from safetensors alone.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, foreign_errors, printable
from ..files import is_there
from ..weights.containers import read_header
from .pictures import as_picture

LONGEST = 400  # tokens of a caption
_COUNT = re.compile(r"(layers?|depths?)$")  # names of numbers of layers in configs of transformers
_PACKED = 32  # weights that a number in a file may stand for, in any quantization, and copies of tied ones


def _refusing(what: str, expected: str) -> AbstractContextManager[None]:
    """Whatever transformers raises, as a ConfigError about the folder: what its parts raise, of which each has its own,
    such as Jinja of a chat's template, tokenizers, and huggingface_hub of a config's types."""

    def refused(error: BaseException) -> ConfigError:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        return ConfigError(f"got {what} ({printable(reason)}); expected {expected}")

    return foreign_errors(refused)


@contextmanager
def _without_bars() -> Generator[None]:
    """Without transformers' own bars: our caller reports progress, and a stream that takes no bar costs no model."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


def _layers(config: Any, name: str = "") -> Iterator[int]:
    """The numbers of layers in a config, and in those inside of it."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _layers(value, str(key))
    elif isinstance(config, list):
        for value in config:
            yield from _layers(value, name)
    elif isinstance(config, int) and _COUNT.search(name):
        yield config


class VisionModel:
    """place: a folder, or the name of a model in Hugging Face's cache. side: of the frames that it sees, in pixels, at
    most. Weights are float32 on a CPU, else as stored.

    Raises:
        ConfigError: transformers cannot open it, or its weights are not those of its config.
        CheckpointError: a file of its weights is damaged.
    """

    def __init__(self, place: str, prompt: str, device: torch.device, side: int) -> None:
        self.place, self.prompt, self.device, self.side = place, prompt, device, side
        self.processor, self.model = self._open()

    def _open(self) -> tuple[Any, Any]:
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

        if is_there(Path(self.place)) and not (Path(self.place) / "config.json").is_file():
            raise ConfigError(
                f"got {self.place} without a config.json; expected the folder of a vision-language model; check --model"
            )
        said: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        dtype = torch.float32 if self.device.type == "cpu" else "auto"
        expected = (
            "a folder with a vision-language model in safetensors, which needs no code of its own, or the name of one "
            f"that `hf download {self.place}` has fetched; check it, or ask a server with --url"
        )
        with _without_bars(), _refusing(f"--model {self.place}, which transformers does not open", expected):
            config = AutoConfig.from_pretrained(self.place, **said)
            self._check_size(config, AutoModelForImageTextToText, said)
            processor = AutoProcessor.from_pretrained(self.place, **said)
            said["dtype" if hasattr(config, "dtype") else "torch_dtype"] = dtype  # its name before transformers 4.56
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                self.place, use_safetensors=True, output_loading_info=True, **said
            )
            model, found = loaded
        wrong = sorted({*found["missing_keys"], *(str(key) for key in found["mismatched_keys"])})
        if wrong:
            raise ConfigError(
                f"got --model {self.place}, whose file lacks {len(wrong)} weights ({', '.join(wrong[:3])}); expected "
                "those of its config.json; download it again"
            )
        return processor, model.to(self.device).eval()

    def _check_size(self, config: Any, kind: Any, said: dict[str, Any]) -> None:
        """Refuse a config of more layers or weights than its files could hold: transformers would make all of them.

        Raises:
            ConfigError: with both figures.
            CheckpointError: a file of weights is damaged.
        """
        from transformers.utils.hub import cached_file

        folder = Path(str(cached_file(self.place, "config.json", local_files_only=said["local_files_only"]))).parent
        stored = [info for file in folder.glob("*.safetensors") for info in read_header(file)[0].values()]
        if not stored:  # which transformers refuses
            return
        most = max([0, *_layers(config.to_dict())])
        if most <= len(stored):
            with torch.device("meta"):
                most = sum(parameter.numel() for parameter in kind.from_config(config).parameters())
            if most <= _PACKED * sum(info.parameters for info in stored):
                return
        raise ConfigError(
            f"got --model {self.place}, whose config.json asks for {most} layers or weights, where {len(stored)} "
            "tensors are in its files; expected the config of these files; download it again"
        )

    @torch.no_grad()
    def caption(self, frames: Sequence[Tensor]) -> str:
        """What the model says of these frames (h w 3) in [0, 1], in one line. One that knows no chats, such as BLIP,
        sees the middle frame, and is asked nothing.

        Raises:
            ConfigError: it says nothing, or cannot take the frames.
        """
        pictures = [as_picture(frame, (self.side, self.side)) for frame in frames]
        what = f"{len(pictures)} pictures that {self.place} does not caption"
        expected = "a model that describes several pictures in a chat; try another, or --pictures 1"
        with _refusing(what, expected):
            given = self._inputs(pictures).to(self.device, self.model.dtype)
            made = self.model.generate(**given, max_new_tokens=LONGEST, do_sample=False)
            asked = given.get("input_ids")
            if asked is not None and torch.equal(made[:, : asked.shape[1]], asked):
                made = made[:, asked.shape[1] :]
            (said,) = self.processor.batch_decode(made, skip_special_tokens=True)
        line = " ".join(printable(said).split())
        if not line:
            raise ConfigError(f"got an empty caption from {self.place}; expected text; try another model")
        return line

    def _inputs(self, pictures: Sequence[Any]) -> Any:
        if not getattr(self.processor, "chat_template", None):
            return self.processor(images=pictures[len(pictures) // 2], return_tensors="pt")
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": self.prompt}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return self.processor(text=[text], images=[list(pictures)], return_tensors="pt")

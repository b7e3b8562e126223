"""What a prompt takes of main memory at least, by its constants alone: refused before its first node runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..ltx_core.errors import UnsupportedError
from ..ltx_core.shapes import PixelShape
from ..nodes.room import check_frames, check_pictures
from .prompt import Prompt, is_link, needed_nodes, node_label

Values = Mapping[str, Any]

_LATENT, _DECODING = "LTXKitEmptyLatent", "LTXKitDecodeVideo"
_HELD = ("PrimitiveInt", "PrimitiveFloat", "PrimitiveBoolean")


def check_room(prompt: Prompt, order: Sequence[str]) -> None:
    """Refuse a prompt with a node whose result cannot be in main memory, before models are loaded for it.

    order: the nodes that run. What a node takes beyond its result, and what its constants do not say, it checks itself.

    Raises:
        UnsupportedError: names the node, with figures.
    """
    decoded = _decoded_canvases(prompt, order)
    for node_id in order:
        check = _CHECKS.get(prompt[node_id]["class_type"])
        if check is None or (check is _check_canvas and node_id not in decoded):
            continue
        try:
            check(_Constants(prompt, node_id))
        except KeyError:  # a size that a node computes
            continue
        except UnsupportedError as error:
            raise UnsupportedError(f"{node_label(prompt, node_id)}: {error}") from error


def _decoded_canvases(prompt: Prompt, order: Sequence[str]) -> set[str]:
    """The empty latents whose frames a node of the prompt holds in memory."""
    decoders = [node_id for node_id in order if prompt[node_id]["class_type"] == _DECODING]
    return {each for each in needed_nodes(prompt, decoders) if prompt[each]["class_type"] == _LATENT}


class _Constants(Mapping[str, Any]):
    """The inputs of a node that are known before anything runs. A link is known where it leads to a primitive."""

    def __init__(self, prompt: Prompt, node_id: str) -> None:
        self._prompt, self._inputs = prompt, prompt[node_id]["inputs"]

    def __getitem__(self, name: str) -> Any:
        value = self._inputs[name]
        if not is_link(value):
            return value
        source = self._prompt[value[0]]
        if source["class_type"] not in _HELD or is_link(source["inputs"].get("value")):
            raise KeyError(name)
        return source["inputs"]["value"]

    def __iter__(self) -> Any:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)


def _check_canvas(values: Values) -> None:
    seconds = values["seconds"]
    frames = max(round(seconds * values["frame_rate"]), 1) if seconds else values["frames"]
    check_frames(PixelShape(frames, values["height"], values["width"]), values["batch_size"])


def _check_two_stage(values: Values) -> None:
    check_frames(PixelShape(values["frames"], values["height"], values["width"]))


def _check_scaled(values: Values) -> None:
    check_pictures(1, values["height"], values["width"])


_CHECKS: Mapping[str, Callable[[Values], None]] = {
    _LATENT: _check_canvas,
    "LTXKitGenerateTwoStage": _check_two_stage,
    "ImageScale": _check_scaled,
}

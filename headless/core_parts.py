"""More stand-ins for ComfyUI's own nodes: those that put clips, pictures and levels together or apart.

As in `core_nodes.py`, ids, inputs, outputs and meaning are the core's (Comfy-Org/ComfyUI 0.3.64: nodes.py,
comfy_extras/nodes_images.py, nodes_latent.py, nodes_custom_sampler.py); the code is ours. Graphs that `ltxkit migrate`
writes use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ltx_core.errors import ShapeError
from ..nodes.room import check_pictures

MAX_RESOLUTION = 16384  # nodes.py
COLOURS = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
}


def _check_alike(what: str, one: Tensor, other: Tensor, axes: Sequence[int]) -> None:
    """Raises ShapeError where two tensors differ in one of these axes."""
    if one.ndim == other.ndim and all(one.shape[axis] == other.shape[axis] for axis in axes):
        return
    raise ShapeError(
        f"got {what} of the shapes {tuple(one.shape)} and {tuple(other.shape)}; expected shapes that fit each other; "
        "change one of them"
    )


def _fitted(image: Tensor, height: int, width: int) -> Tensor:
    """Frames (f, h, w, c) of another size, cut in the middle to its proportions first."""
    _, old_height, old_width, _ = image.shape
    cut_x = round(max(old_width - old_height * width / height, 0) / 2)
    cut_y = round(max(old_height - old_width * height / width, 0) / 2)
    image = image[:, cut_y : old_height - cut_y, cut_x : old_width - cut_x]
    check_pictures(len(image), height, width, image.shape[3])
    return F.interpolate(image.movedim(-1, 1), (height, width), mode="bilinear").movedim(1, -1)


class ImageBatch:
    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "batch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image1": ("IMAGE",), "image2": ("IMAGE",)}}

    def batch(self, image1: Tensor, image2: Tensor) -> tuple[Tensor]:
        """The second gets the size of the first. Raises ShapeError: they have different channels."""
        _check_alike("images", image1, image2, (3,))
        if image1.shape[1:3] != image2.shape[1:3]:
            image2 = _fitted(image2, *image1.shape[1:3])
        return (torch.cat((image1, image2)),)


class GetImageSize:
    CATEGORY = "image"
    RETURN_TYPES = ("INT", "INT", "INT")
    RETURN_NAMES = ("width", "height", "batch_size")
    FUNCTION = "get_size"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",)}}

    def get_size(self, image: Tensor) -> tuple[int, int, int]:
        return image.shape[2], image.shape[1], image.shape[0]


class ImageStitch:
    CATEGORY = "image/transform"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "stitch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image1": ("IMAGE",),
                "direction": (["right", "down", "left", "up"], {"default": "right"}),
                "match_image_size": ("BOOLEAN", {"default": True}),
                "spacing_width": ("INT", {"default": 0, "min": 0, "max": 1024, "step": 2}),
                "spacing_color": (list(COLOURS), {"default": "white"}),
            },
            "optional": {"image2": ("IMAGE",)},
        }

    def stitch(
        self,
        image1: Tensor,
        direction: str,
        match_image_size: bool,
        spacing_width: int,
        spacing_color: str,
        image2: Tensor | None = None,
    ) -> tuple[Tensor]:
        """Two clips side by side; the shorter one holds its last frame, the smaller one is padded with black.

        Raises ShapeError: they have different channels, or a size at which nothing is left of one.
        """
        if image2 is None:
            return (image1,)
        _check_alike("images", image1, image2, (3,))
        beside = direction in ("left", "right")
        frames = max(len(image1), len(image2))
        first, second = (
            torch.cat((each, each[-1:].expand(frames - len(each), -1, -1, -1))) for each in (image1, image2)
        )
        if match_image_size:
            height, width = first.shape[1:3]
            _, old_height, old_width, _ = second.shape
            size = (
                (height, int(height * old_width / old_height))
                if beside
                else (int(width * old_height / old_width), width)
            )
            if 0 in size:
                raise ShapeError(
                    f"got pictures of {width}x{height} and {old_width}x{old_height} pixels; expected shapes of which a "
                    "pixel remains at the same size; switch match_image_size off"
                )
            check_pictures(frames, *size, second.shape[3])
            second = F.interpolate(second.movedim(-1, 1), size, mode="bilinear").movedim(1, -1)
        axis = 1 if beside else 2
        longest = max(first.shape[axis], second.shape[axis])
        parts = [_centred(each, axis, longest) for each in (first, second)]
        if direction in ("left", "up"):
            parts.reverse()
        spacing_width += spacing_width % 2
        if spacing_width:
            shape = list(parts[0].shape)
            shape[3 - axis] = spacing_width
            parts.insert(1, torch.tensor(COLOURS[spacing_color]).expand(*shape[:3], 3))
        return (torch.cat(parts, dim=3 - axis),)


def _centred(image: Tensor, axis: int, length: int) -> Tensor:
    missing = length - image.shape[axis]
    before, after = missing // 2, missing - missing // 2
    return F.pad(image, (0, 0, 0, 0, before, after) if axis == 1 else (0, 0, before, after))


class LatentConcat:
    CATEGORY = "latent/advanced"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "concat"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        sides = ("COMBO", {"options": ["x", "-x", "y", "-y", "t", "-t"]})
        return {"required": {"samples1": ("LATENT",), "samples2": ("LATENT",), "dim": sides}}

    def concat(self, samples1: dict[str, Any], samples2: dict[str, Any], dim: str) -> tuple[dict[str, Any]]:
        """A minus puts the second before the first. Raises ShapeError: other sides differ, or there is no such one."""
        one, other = samples1["samples"], samples2["samples"]
        joined = one.ndim + _AXES[dim[-1]] if one.ndim > -_AXES[dim[-1]] else -1
        if joined < 0:
            raise ShapeError(f"got latents of {one.ndim} axes; expected one with {dim[-1]}; use latents of a video")
        _check_alike("latents", one, other, [axis for axis in range(1, one.ndim) if axis != joined])
        times = -(-len(one) // len(other))
        other = other.repeat(times, *[1] * (other.ndim - 1))[: len(one)]
        parts = (other, one) if dim.startswith("-") else (one, other)
        return ({**samples1, "samples": torch.cat(parts, dim=_AXES[dim[-1]])},)


class LatentCut:
    CATEGORY = "latent/advanced"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "cut"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        place = {"default": 0, "min": -MAX_RESOLUTION, "max": MAX_RESOLUTION, "step": 1}
        amount = {"default": 1, "min": 1, "max": MAX_RESOLUTION, "step": 1}
        sides = ("COMBO", {"options": ["x", "y", "t"]})
        inputs = {"samples": ("LATENT",), "dim": sides, "index": ("INT", place), "amount": ("INT", amount)}
        return {"required": inputs}

    def cut(self, samples: dict[str, Any], dim: str, index: int, amount: int) -> tuple[dict[str, Any]]:
        """A negative index counts from the end; what lies outside is not there."""
        tensor = samples["samples"]
        length = tensor.shape[_AXES[dim]]
        start = min(index, length - 1) if index >= 0 else max(length + index, 0)
        return ({**samples, "samples": tensor.narrow(_AXES[dim], start, min(amount, length - start))},)


_AXES = {"x": -1, "y": -2, "t": -3}


class SplitSigmas:
    CATEGORY = "sampling/custom_sampling/sigmas"
    RETURN_TYPES = ("SIGMAS", "SIGMAS")
    RETURN_NAMES = ("high_sigmas", "low_sigmas")
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"sigmas": ("SIGMAS",), "step": ("INT", {"default": 0, "min": 0, "max": 10000})}}

    def get_sigmas(self, sigmas: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return sigmas[: step + 1], sigmas[step:]


CORE_PARTS: dict[str, type] = {
    "GetImageSize": GetImageSize,
    "ImageBatch": ImageBatch,
    "ImageStitch": ImageStitch,
    "LatentConcat": LatentConcat,
    "LatentCut": LatentCut,
    "SplitSigmas": SplitSigmas,
}

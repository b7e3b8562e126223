"""Stand-ins for the few ComfyUI core nodes that our workflows use without ComfyUI.

Ids, inputs, outputs and meaning are those of core 0.33, which take what every older core's do (nodes.py,
comfy_extras/nodes_images.py); the code is ours.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ltx_core import media
from ..ltx_core.errors import CheckpointError, ConfigError, reason_of
from ..ltx_core.files import whole
from ..nodes.room import check_pictures
from .clip_nodes import CreateVideo, GetVideoComponents, LoadVideo, SaveVideo
from .decoding import decoded_or_none
from .folders import (
    NumberedFiles,
    check_file,
    check_prefix,
    file_digest,
    input_files,
    named_file,
    said_in_files,
    say,
)
from .primitive_nodes import PRIMITIVE_NODES, PRIMITIVE_TITLES
from .sampling_nodes import SAMPLING_NODES

MAX_RESOLUTION = 16384  # nodes.py
_LATENT_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # numbers; others would be read as such

SaveHidden = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


# ------------------------------------------------------------------------------------------------ pictures


class LoadImage:
    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": (input_files(media.PICTURE_SUFFIXES), {"image_upload": True})}}

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:
        return file_digest(image)

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        return check_file(image)

    def load_image(self, image: str) -> tuple[Tensor, Tensor]:
        """Frames (f, h, w, 3) of the size of the first, others dropped, with the colours of transparent pixels; mask
        (f, h, w), 1 for transparent pixels, or (f, 64, 64) of zeros where nothing is transparent.

        Raises ConfigError, which names the file, for one that is not a picture or damaged.
        """
        path = named_file(image)
        frames = decoded_or_none(path, say)
        pictures = _pictures(path) if frames is None else [media.Picture(*frame) for frame in frames]
        same = [picture for picture in pictures if picture.pixels.shape == pictures[0].pixels.shape]
        if len(same) < len(pictures):
            say(f"{path} has {len(pictures) - len(same)} pictures of another size than its first: they are left out.")
        images = torch.stack([picture.pixels for picture in same])
        if all(picture.alpha is None for picture in same):
            return images, torch.zeros(len(same), 64, 64)
        opaque = torch.ones(images.shape[1:3])
        return images, 1 - torch.stack([opaque if picture.alpha is None else picture.alpha for picture in same])


def _pictures(path: Path) -> list[media.Picture]:
    """What only Pillow opens (an animated WebP), or what is beyond 0 to 1: all pictures of an animation, or one."""
    if media.is_animated(path):
        return [timed.picture for timed in media.read_pictures(path, say)]
    return [media.read_picture(path, say)]


class LoadImageMask(LoadImage):
    RETURN_TYPES = ("MASK",)
    FUNCTION = "load_image_mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {**super().INPUT_TYPES()["required"], "channel": (["alpha", "red", "green", "blue"],)}}

    @classmethod
    def IS_CHANGED(cls, image: str, channel: str = "") -> str:  # noqa: ARG003 - a change of it is seen anyway
        return super().IS_CHANGED(image)

    def load_image_mask(self, image: str, channel: str) -> tuple[Tensor]:
        """(f, h, w): a colour as it is, or 1 for transparent pixels."""
        images, mask = self.load_image(image)
        return (mask if channel == "alpha" else images[..., ["red", "green", "blue"].index(channel)],)


class SaveImage:
    CATEGORY = "image"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    KIND = "output"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        prefix = ("STRING", {"default": "ComfyUI"})
        return {"required": {"images": ("IMAGE",), "filename_prefix": prefix}, "hidden": SaveHidden}

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str = "ComfyUI") -> bool | str:
        return check_prefix(cls.KIND, filename_prefix)

    def save_images(
        self, images: Tensor, filename_prefix: str = "ComfyUI", prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        names = NumberedFiles.under(self.KIND, filename_prefix, images.shape[2], images.shape[1])
        metadata = said_in_files(prompt, extra_pnginfo)
        entries = [names.save(".png", partial(_write_image, image, metadata)) for image in images]
        return {"ui": {"images": entries}, "result": (images,)}


def _write_image(image: Tensor, metadata: dict[str, Any], path: Path) -> None:
    bytes_kept = (255.0 * image).clamp(0, 255).byte().float() / 255  # core cuts digits off, and does not round
    media.write_image(path, bytes_kept, metadata)


class PreviewImage(SaveImage):
    KIND = "temp"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}, "hidden": SaveHidden}


class ImageScale:
    CATEGORY = "image/upscaling"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = ("INT", {"default": 512, "min": 0, "max": MAX_RESOLUTION, "step": 1})
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (["nearest-exact", "bilinear", "area", "bicubic", "lanczos"],),
                "width": side,
                "height": side,
                "crop": (["disabled", "center"],),
            }
        }

    def upscale(self, image: Tensor, upscale_method: str, width: int, height: int, crop: str) -> tuple[Tensor]:
        """A side of 0 follows from the other side; two zeros leave the image unchanged."""
        if width == 0 and height == 0:
            return (image,)
        _, old_height, old_width, _ = image.shape
        width = width or max(1, round(old_width * height / old_height))
        height = height or max(1, round(old_height * width / old_width))
        if crop == "center":
            old, new = old_width / old_height, width / height  # in core's order of arithmetic
            cut_x = round((old_width - old_width * (new / old)) / 2) if old > new else 0
            cut_y = round((old_height - old_height * (old / new)) / 2) if old < new else 0
            image = image[:, cut_y : old_height - cut_y, cut_x : old_width - cut_x]
        if 0 in image.shape:  # as in core, a middle that is thinner than a pixel leaves nothing
            raise ConfigError(
                f"got a picture of {old_width}x{old_height} pixels to cut to the shape of {width}x{height}; expected "
                "one of which a pixel remains; choose another size, or crop disabled"
            )
        check_pictures(len(image), height, width, image.shape[3])
        if upscale_method == "lanczos":
            return (_lanczos(image, width, height),)
        scaled = F.interpolate(image.movedim(-1, 1), (height, width), mode=upscale_method)
        return (scaled.movedim(1, -1),)


def _lanczos(images: Tensor, width: int, height: int) -> Tensor:
    import numpy as np
    from PIL import Image

    scaled = []
    for image in images:
        pixels = (image.clamp(0, 1) * 255).byte().cpu().numpy()  # the core truncates here, and does not round
        picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        scaled.append(torch.from_numpy(np.asarray(picture, np.float32) / 255))
    return torch.stack(scaled).to(images)


class ImageFromBatch:
    CATEGORY = "image/batch"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "frombatch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "batch_index": ("INT", {"default": 0, "min": -MAX_RESOLUTION, "max": MAX_RESOLUTION}),
                "length": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def frombatch(self, image: Tensor, batch_index: int, length: int) -> tuple[Tensor]:
        """A negative number counts from the end."""
        start = batch_index + image.shape[0] if batch_index < 0 else batch_index
        start = max(0, min(start, image.shape[0] - 1))
        return (image[start : start + length].clone(),)


# ------------------------------------------------------------------------------------------------ latents


class SaveLatent:
    CATEGORY = "_for_testing"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("samples",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        prefix = ("STRING", {"default": "latents/ComfyUI"})
        return {"required": {"samples": ("LATENT",), "filename_prefix": prefix}, "hidden": SaveHidden}

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str) -> bool | str:
        return check_prefix("output", filename_prefix)

    def save(
        self, samples: dict[str, Any], filename_prefix: str = "ComfyUI", prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        import json

        from safetensors.torch import save_file

        names = NumberedFiles.under("output", filename_prefix)
        tensors = {"latent_tensor": samples["samples"].contiguous(), "latent_format_version_0": torch.tensor([])}
        metadata = {key: json.dumps(value) for key, value in said_in_files(prompt, extra_pnginfo).items()}

        def write(path: Path) -> None:
            with whole(path) as temporary:
                save_file(tensors, temporary, metadata)

        return {"ui": {"latents": [names.save(".latent", write)]}, "result": (samples,)}


class LoadLatent:
    CATEGORY = "_for_testing"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"latent": (input_files(frozenset({".latent"})),)}}

    @classmethod
    def IS_CHANGED(cls, latent: str) -> str:
        return file_digest(latent)

    @classmethod
    def VALIDATE_INPUTS(cls, latent: str) -> bool | str:
        return check_file(latent)

    def load(self, latent: str) -> tuple[dict[str, Tensor]]:
        from safetensors import SafetensorError, safe_open

        from ..ltx_core.weights.containers import read_header

        path = named_file(latent)
        try:
            stored, _ = read_header(path)
            if stored["latent_tensor"].dtype not in _LATENT_DTYPES:
                raise ValueError(f"its tensor is of {stored['latent_tensor'].dtype}")
            with safe_open(path, "pt") as file:
                samples = file.get_tensor("latent_tensor").float()
        except (SafetensorError, CheckpointError, KeyError, ValueError, OSError) as error:
            raise CheckpointError(
                f"got {path}, which is not a latent ({reason_of(error)}); expected one of Save Latent; choose another"
            ) from error
        scale = 1.0 if "latent_format_version_0" in stored else 1 / 0.18215  # files older than the version mark
        return ({"samples": samples * scale},)


class SetLatentNoiseMask:
    CATEGORY = "latent/inpaint"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "set_mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",), "mask": ("MASK",)}}

    def set_mask(self, samples: dict[str, Any], mask: Tensor) -> tuple[dict[str, Any]]:
        return ({**samples, "noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])},)


CORE_NODES: dict[str, type] = {
    "CreateVideo": CreateVideo,
    "GetVideoComponents": GetVideoComponents,
    "ImageFromBatch": ImageFromBatch,
    "ImageScale": ImageScale,
    "LoadImage": LoadImage,
    "LoadImageMask": LoadImageMask,
    "LoadLatent": LoadLatent,
    "LoadVideo": LoadVideo,
    "PreviewImage": PreviewImage,
    "SaveImage": SaveImage,
    "SaveLatent": SaveLatent,
    "SaveVideo": SaveVideo,
    "SetLatentNoiseMask": SetLatentNoiseMask,
    **SAMPLING_NODES,
    **PRIMITIVE_NODES,
}


CORE_TITLES = {
    "ConditioningCombine": "Conditioning (Combine)",
    "ConditioningSetTimestepRange": "ConditioningSetTimestepRange",
    "CreateVideo": "Create Video",
    "GetVideoComponents": "Get Video Components",
    "ImageFromBatch": "Get Image from Batch",
    "ImageScale": "Upscale Image",
    "LoadImage": "Load Image",
    "LoadImageMask": "Load Image (as Mask)",
    "LoadLatent": "Load Latent",
    "LoadVideo": "Load Video",
    "PreviewImage": "Preview Image",
    "SaveImage": "Save Image",
    "SaveLatent": "Save Latent",
    "SaveVideo": "Save Video",
    "SetLatentNoiseMask": "Set Latent Noise Mask",
    "SplitSigmas": "SplitSigmas",
    **PRIMITIVE_TITLES,
}
"""Titles in the newest core; older ones show some nodes under their ids."""

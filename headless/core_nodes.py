"""Stand-ins for the few ComfyUI core nodes that our workflows use without ComfyUI.

Ids, inputs, outputs and meaning are the core's (Comfy-Org/ComfyUI 0.3.64: nodes.py, comfy_extras/nodes_video.py,
comfy_extras/nodes_images.py); the code is ours. There is no sound: `GetVideoComponents` returns None for it.
"""

from __future__ import annotations

import itertools
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ltx_core import media
from ..ltx_core.errors import CheckpointError
from ..ltx_core.files import whole
from .folders import NumberedFiles, check_file, check_prefix, file_digest, input_files, named_file, say
from .video import VideoComponents, VideoInFile, VideoInMemory

MAX_RESOLUTION = 16384  # nodes.py

SaveHidden = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


def _metadata(prompt: Any, extra_pnginfo: Any) -> dict[str, Any]:
    return {**(extra_pnginfo or {}), **({"prompt": prompt} if prompt else {})}


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
        pictures = _pictures(path)
        same = [picture for picture in pictures if picture.pixels.shape == pictures[0].pixels.shape]
        if len(same) < len(pictures):
            say(f"{path} has {len(pictures) - len(same)} pictures of another size than its first: they are left out.")
        images = torch.stack([picture.pixels for picture in same])
        if all(picture.alpha is None for picture in same):
            return images, torch.zeros(len(same), 64, 64)
        opaque = torch.ones(images.shape[1:3])
        return images, 1 - torch.stack([opaque if picture.alpha is None else picture.alpha for picture in same])


def _pictures(path: Path) -> list[media.Picture]:
    """All pictures of an animation, or one."""
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
    RETURN_TYPES = ()
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
        metadata = _metadata(prompt, extra_pnginfo)
        entries = [names.save(".png", partial(_write_image, image, metadata)) for image in images]
        return {"ui": {"images": entries}}


def _write_image(image: Tensor, metadata: dict[str, Any], path: Path) -> None:
    media.write_image(path, image, metadata)


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
            cut_x = round(max(old_width - old_height * width / height, 0) / 2)
            cut_y = round(max(old_height - old_width * height / width, 0) / 2)
            image = image[:, cut_y : old_height - cut_y, cut_x : old_width - cut_x]
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
                "batch_index": ("INT", {"default": 0, "min": 0, "max": 4095}),
                "length": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def frombatch(self, image: Tensor, batch_index: int, length: int) -> tuple[Tensor]:
        start = min(batch_index, image.shape[0] - 1)
        return (image[start : start + length].clone(),)


# ------------------------------------------------------------------------------------------------ clips


class LoadVideo:
    CATEGORY = "image/video"
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"file": ("COMBO", {"options": input_files(media.CLIP_SUFFIXES), "video_upload": True})}}

    @classmethod
    def IS_CHANGED(cls, file: str) -> float:
        return named_file(file).stat().st_mtime

    @classmethod
    def VALIDATE_INPUTS(cls, file: str) -> bool | str:
        return check_file(file)

    def load(self, file: str) -> tuple[VideoInFile]:
        return (VideoInFile(named_file(file), say),)


class GetVideoComponents:
    CATEGORY = "image/video"
    RETURN_TYPES = ("IMAGE", "AUDIO", "FLOAT")
    RETURN_NAMES = ("images", "audio", "fps")
    FUNCTION = "split"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"video": ("VIDEO",)}}

    def split(self, video: VideoInFile | VideoInMemory) -> tuple[Tensor, None, float]:
        parts = video.get_components()
        return parts.images, None, float(parts.frame_rate)


class CreateVideo:
    CATEGORY = "image/video"
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "create"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        fps = ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0})
        return {"required": {"images": ("IMAGE",), "fps": fps}, "optional": {"audio": ("AUDIO",)}}

    def create(self, images: Tensor, fps: float, audio: None = None) -> tuple[VideoInMemory]:
        return (VideoInMemory(VideoComponents(images, Fraction(fps), audio)),)


class SaveVideo:
    CATEGORY = "image/video"
    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "video": ("VIDEO",),
                "filename_prefix": ("STRING", {"default": "video/ComfyUI"}),
                "format": ("COMBO", {"options": ["auto", "mp4"], "default": "auto"}),
                "codec": ("COMBO", {"options": ["auto", "h264"], "default": "auto"}),
            },
            "hidden": SaveHidden,
        }

    @classmethod
    def VALIDATE_INPUTS(cls, filename_prefix: str) -> bool | str:
        return check_prefix("output", filename_prefix)

    def save(
        self,
        video: VideoInFile | VideoInMemory,
        filename_prefix: str,
        format: str,  # noqa: ARG002
        codec: str,  # noqa: ARG002
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        frames = video.frames()
        first = next(frames)
        names = NumberedFiles.under("output", filename_prefix, first.shape[2], first.shape[1])
        rate = Fraction(round(video.rate * 1000), 1000)
        pieces, metadata = itertools.chain([first], frames), _metadata(prompt, extra_pnginfo)
        entry = names.save(".mp4", lambda path: media.write_video(path, pieces, fps=rate, metadata=metadata))
        return {"ui": {"images": [entry], "animated": [True]}}


# ------------------------------------------------------------------------------------------------ latents


class SaveLatent:
    CATEGORY = "_for_testing"
    RETURN_TYPES = ()
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
        metadata = {key: json.dumps(value) for key, value in _metadata(prompt, extra_pnginfo).items()}

        def write(path: Path) -> None:
            with whole(path) as temporary:
                save_file(tensors, temporary, metadata)

        return {"ui": {"latents": [names.save(".latent", write)]}}


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
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = named_file(latent)
        try:
            tensors = load_file(path)
            samples = tensors["latent_tensor"].float()
        except (SafetensorError, KeyError, OSError) as error:
            raise CheckpointError(
                f"got {path}, which is not a latent ({error}); expected a file of Save Latent; choose another"
            ) from error
        scale = 1.0 if "latent_format_version_0" in tensors else 1 / 0.18215  # files older than the version mark
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


class PrimitiveFloat:
    CATEGORY = "utils/primitive"
    RETURN_TYPES = ("FLOAT",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("FLOAT", {"min": -sys.maxsize, "max": sys.maxsize})}}

    def execute(self, value: float) -> tuple[float]:
        return (value,)


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
    "PrimitiveFloat": PrimitiveFloat,
    "SaveImage": SaveImage,
    "SaveLatent": SaveLatent,
    "SaveVideo": SaveVideo,
    "SetLatentNoiseMask": SetLatentNoiseMask,
}

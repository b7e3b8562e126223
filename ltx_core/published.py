"""Where the released files are published: repository and file on the Hugging Face hub, folder, licence.

Names of repositories and files: the README files of Lightricks/LTX-Video and Lightricks/ComfyUI-LTXVideo (news of 0.9.0
to 0.9.8), and the addresses in ComfyUI's own workflows for T5. Sizes and hashes are the hub's and stand in no table.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import ConfigError

HUB = "https://huggingface.co"
LTX_VIDEO = "Lightricks/LTX-Video"


@dataclass(frozen=True)
class Licence:
    """Under which terms weights are published. address: where the text stands."""

    name: str
    address: str


def _ltx_licence(name: str, file: str) -> Licence:
    return Licence(name, f"{HUB}/{LTX_VIDEO}/blob/main/{file}")


RAIL = _ltx_licence("RAIL-M, for research", "ltx-video-2b-v0.9.license.txt")
RAIL_091 = _ltx_licence("RAIL-M, for research", "ltx-video-2b-v0.9.1.license.txt")
OPEN_RAIL = _ltx_licence("OpenRAIL-M", "ltx-video-2b-v0.9.5.license.txt")
OPEN_WEIGHTS = _ltx_licence(
    "LTXV Open Weights; companies above a revenue that it names need another one",
    "LTX-Video-Open-Weights-License-0.X.txt",
)
APACHE = Licence("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")


@dataclass(frozen=True)
class PublishedFile:
    """One file on the hub. folder: ComfyUI's name for the folder of such models."""

    repository: str
    name: str
    folder: str
    licence: Licence

    @property
    def address(self) -> str:
        return f"{HUB}/{self.repository}/resolve/main/{self.name}"


def _checkpoint(name: str, licence: Licence = OPEN_WEIGHTS) -> PublishedFile:
    return PublishedFile(LTX_VIDEO, f"{name}.safetensors", "checkpoints", licence)


def _upscaler(name: str) -> PublishedFile:
    return PublishedFile(LTX_VIDEO, f"ltxv-{name}.safetensors", "latent_upscale_models", OPEN_WEIGHTS)


def _t5(name: str) -> PublishedFile:
    return PublishedFile("comfyanonymous/flux_text_encoders", f"{name}.safetensors", "text_encoders", APACHE)


def _ic_lora(repository: str, name: str) -> PublishedFile:
    return PublishedFile(f"Lightricks/{repository}", f"{name}.safetensors", "loras", OPEN_WEIGHTS)


_T5 = _t5("t5xxl_fp16")
_UPSCALER_097, _UPSCALER_098 = _upscaler("spatial-upscaler-0.9.7"), _upscaler("spatial-upscaler-0.9.8")


# What a name stands for: the file itself first, then what a clip needs beside it. The first names are those of
# `releases.RELEASES`; checkpoints with a recipe of two passes come with the upscaler of their generation.
PUBLISHED: Mapping[str, tuple[PublishedFile, ...]] = {
    "2b-0.9.0": (_checkpoint("ltx-video-2b-v0.9", RAIL), _T5),
    "2b-0.9.1": (_checkpoint("ltx-video-2b-v0.9.1", RAIL_091), _T5),
    "2b-0.9.5": (_checkpoint("ltx-video-2b-v0.9.5", OPEN_RAIL), _T5),
    "2b-0.9.6-dev": (_checkpoint("ltxv-2b-0.9.6-dev-04-25"), _T5),
    "2b-0.9.6-distilled": (_checkpoint("ltxv-2b-0.9.6-distilled-04-25"), _T5),
    "2b-0.9.8-distilled": (_checkpoint("ltxv-2b-0.9.8-distilled"), _T5, _UPSCALER_098),
    "13b-0.9.7-dev": (_checkpoint("ltxv-13b-0.9.7-dev"), _T5, _UPSCALER_097),
    "13b-0.9.7-distilled": (_checkpoint("ltxv-13b-0.9.7-distilled"), _T5, _UPSCALER_097),
    "13b-0.9.8-dev": (_checkpoint("ltxv-13b-0.9.8-dev"), _T5, _UPSCALER_098),
    "13b-0.9.8-distilled": (_checkpoint("ltxv-13b-0.9.8-distilled"), _T5, _UPSCALER_098),
    "2b-0.9.8-distilled-fp8": (_checkpoint("ltxv-2b-0.9.8-distilled-fp8"), _T5, _UPSCALER_098),
    "13b-0.9.7-dev-fp8": (_checkpoint("ltxv-13b-0.9.7-dev-fp8"), _T5, _UPSCALER_097),
    "13b-0.9.7-distilled-fp8": (_checkpoint("ltxv-13b-0.9.7-distilled-fp8"), _T5, _UPSCALER_097),
    "13b-0.9.8-dev-fp8": (_checkpoint("ltxv-13b-0.9.8-dev-fp8"), _T5, _UPSCALER_098),
    "13b-0.9.8-distilled-fp8": (_checkpoint("ltxv-13b-0.9.8-distilled-fp8"), _T5, _UPSCALER_098),
    "t5xxl-fp16": (_T5,),
    "t5xxl-fp8": (_t5("t5xxl_fp8_e4m3fn"),),
    "t5xxl-fp8-scaled": (_t5("t5xxl_fp8_e4m3fn_scaled"),),
    "spatial-0.9.7": (_UPSCALER_097,),
    "spatial-0.9.8": (_UPSCALER_098,),
    "temporal-0.9.7": (_upscaler("temporal-upscaler-0.9.7"),),
    "lora-13b-0.9.7-distilled": (
        PublishedFile(LTX_VIDEO, "ltxv-13b-0.9.7-distilled-lora128.safetensors", "loras", OPEN_WEIGHTS),
    ),
    "ic-lora-canny": (_ic_lora("LTX-Video-ICLoRA-canny-13b-0.9.7", "ltxv-097-ic-lora-canny-control-comfyui"),),
    "ic-lora-depth": (_ic_lora("LTX-Video-ICLoRA-depth-13b-0.9.7", "ltxv-097-ic-lora-depth-control-comfyui"),),
    "ic-lora-pose": (_ic_lora("LTX-Video-ICLoRA-pose-13b-0.9.7", "ltxv-097-ic-lora-pose-control-comfyui"),),
    "ic-lora-detailer": (_ic_lora("LTX-Video-ICLoRA-detailer-13b-0.9.8", "ltxv-098-ic-lora-detailer-comfyui"),),
}

T5_NAMES = ("t5xxl-fp16", "t5xxl-fp8-scaled", "t5xxl-fp8")
"""The published text encoders, the most precise first."""


def published_files(names: Sequence[str], *, alone: bool = False) -> tuple[PublishedFile, ...]:
    """The files that the names stand for, each once. A name is one of PUBLISHED, or that of a file in it.

    alone: without what a clip needs beside the file.

    Raises:
        ConfigError: a name is unknown; the message has the nearest ones.
    """
    by_file = {files[0].name: files for files in PUBLISHED.values()}
    by_file |= {file.removesuffix(".safetensors"): files for file, files in by_file.items()}
    known = {**by_file, **PUBLISHED}
    found: dict[PublishedFile, None] = {}
    for name in names:
        files = known.get(name.strip().lower().removeprefix("ltxkit-"), known.get(name))
        if files is None:
            near = nearest(name)
            raise ConfigError(
                f"got {name!r}; expected the name of a release or of its file; "
                + (f"the nearest are {', '.join(near)}" if near else "`ltxkit fetch` lists them")
            )
        found |= dict.fromkeys(files[:1] if alone else files)
    return tuple(found)


def nearest(name: str) -> list[str]:
    """Up to three names of PUBLISHED that may be meant: those that share the most parts of the name, then letters."""
    wanted = name.lower().replace("_", "-").replace(".safetensors", "").replace("ltxv-", "").replace("v0", "0")
    parts = [part for part in wanted.split("-") if part]

    def likeness(known: str) -> tuple[int, float]:
        shared = sum(any(own.startswith(part) for own in known.split("-")) for part in parts)
        return shared, difflib.SequenceMatcher(None, wanted, known).ratio()

    ranked = sorted(PUBLISHED, key=likeness, reverse=True)
    return [known for known in ranked if likeness(known)[0] or likeness(known)[1] >= 0.5][:3]

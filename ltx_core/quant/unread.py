"""Formats of quantized weights that LTXKit recognises by the names of their tensors, and refuses by their own name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .linear import StoredTensor

_INSTEAD = "use the bf16 file (with quantization int8 or nf4 it takes as little memory), or a GGUF or fp8 file"


@dataclass(frozen=True)
class Unread:
    """A format, by the names and types of tensors that all of its files have.

    signs: regular expressions for whole names; each is found in the file. dtype: of the tensor that the first is for.
    """

    name: str
    signs: tuple[str, ...]
    dtype: str = ""
    instead: str = _INSTEAD

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:
        first, *others = [re.compile(sign) for sign in self.signs]
        return any(first.fullmatch(key) and self.dtype in ("", info.dtype) for key, info in stored.items()) and all(
            any(sign.fullmatch(key) for key in stored) for sign in others
        )

    def describe(self, stored: Mapping[str, StoredTensor]) -> str:  # noqa: ARG002 - as the other unread formats
        return self.name


# Sources: Lightricks/LTX-Video-Q8-Kernels q8_kernels/modules/linear.py; ModelCloud/GPTQModel; casper-hansen/AutoAWQ;
# nunchaku-tech/nunchaku; mobiusml/hqq; vllm-project/compressed-tensors; huggingface/optimum-quanto tensor/weights;
# pytorch/ao quantization/quantize_/workflows; Disty0/sdnq; NVIDIA/TensorRT-Model-Optimizer; ml-explore/mlx.
FORMATS: tuple[Unread, ...] = (
    Unread(
        "int8 of the Q8 kernels, whose weights are rotated for a compiled extension",
        (r"(.*\.)?weight", r".*\.scales"),
        dtype="I8",
        instead="use the official fp8 file (such as ltxv-13b-0.9.7-dev-fp8.safetensors), the bf16 file with "
        "quantization int8, or a GGUF file",
    ),
    Unread("SVDQuant of nunchaku", (r".*\.wscales",)),
    Unread("GPTQ or AWQ", (r".*\.qzeros",)),
    Unread("HQQ", (r"(.*\.)?weight", r".*\.zero", r".*\.scale", r".*\.(nbits|group_size|axis|shape)")),
    Unread("compressed-tensors of four bits", (r".*\.weight_shape",)),
    Unread("quanto of two or four bits", (r".*\.weight\._shift",)),
    *(
        Unread("torchao of four bits", (r"(.*\.)?weight", r".*\._weight_(scale|scale_and_zero)"), dtype=dtype)
        for dtype in ("I32", "U8")
    ),
    Unread("SDNQ", (r".*\.(svd_up|svd_down)",)),
    Unread("SDNQ", (r"(.*\.)?weight", r".*\.scale", r".*\.zero_point"), dtype="U8"),
    Unread("SDNQ", (r"(.*\.)?weight", r".*\.scale"), dtype="I8"),
    Unread("NVIDIA ModelOpt", (r".*\.weight_quantizer\._.*",)),
    Unread("MLX", (r"(.*\.)?weight", r".*\.scales"), dtype="U32"),
)

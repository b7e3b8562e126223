"""Eight-bit weights as other libraries save them, each with names of its own for the scales.

Only weights are taken over: where the library quantizes activations as well, products here are computed in the dtype of
the activations.
"""

from __future__ import annotations

from collections.abc import Mapping

from .fp8 import COMFY_MARKER
from .linear import StoredTensor
from .scaled import Scaled, Spelling

# optimum-quanto: `weight._data` (which the layout takes for `weight`) and `weight._scale`; the scales of activations
# are 1 where these are not quantized. Source: huggingface/optimum-quanto tensor/qbytes.py, nn/qmodule.py.
QUANTO = Scaled("quanto", Spelling("weight._scale", unused=("input_scale", "output_scale")))

# torchao, as its safetensors support flattens `Int8Tensor`, `IntxUnpackedToInt8Tensor` and `Float8Tensor`, and as
# diffusers and transformers save it. Source: pytorch/ao torchao/prototype/safetensors/safetensors_support.py.
TORCHAO = Scaled(
    "torchao",
    Spelling(
        "_weight_scale",
        zero_point="_weight_zero_point",
        unused=("_weight_act_quant_scale", "_weight_act_quant_zero_point"),
    ),
)

# DeepSeek's blocks of 128 x 128 weights; the name means the inverse of what weights were multiplied by. Source:
# deepseek-ai/DeepSeek-V3 inference/kernel.py, huggingface/transformers integrations/finegrained_fp8.py.
BLOCK_FP8 = Scaled("block-wise fp8", Spelling("weight_scale_inv", unused=("input_scale",), cut_by_powers_of_two=True))


class CompressedTensors(Scaled):
    """vllm-project/compressed-tensors and others: `weight_scale` for each row or group of a row.

    One scale for a whole weight, and those in eight bits, are ComfyUI's: see `comfy_quant`.
    """

    def __init__(self) -> None:
        unused = ("input_scale", "input_zero_point", "output_scale", "input_scale_ub")
        super().__init__("compressed-tensors", Spelling("weight_scale", zero_point="weight_zero_point", unused=unused))

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:
        return has_scales_of_rows(stored)


def has_scales_of_rows(stored: Mapping[str, StoredTensor]) -> bool:
    """Whether a file with `weight_scale` is another library's, and not ComfyUI's."""
    if any(key.endswith((".comfy_quant", ".weight_scale_2", ".pre_quant_scale")) for key in stored):
        return False
    scales = [info for key, info in stored.items() if key.endswith(".weight_scale")]
    return any(info.dtype in ("F32", "BF16", "F16") and any(size > 1 for size in info.shape) for info in scales)


FOREIGN: tuple[Scaled, ...] = (QUANTO, TORCHAO, BLOCK_FP8, CompressedTensors())

# Names of scales beside int8 tensors that hold one weight in each number.
_OF_WHOLE_NUMBERS = ("SCB", "scale_weight", *(known.spelling.scale for known in FOREIGN))


def has_a_weight_per_number(stored: Mapping[str, StoredTensor], key: str) -> bool:
    """Whether the int8 tensor of this state-dict key has the shape of the weight: kernels of convolutions always have;
    matrices of ComfyUI's formats can hold two weights in a number."""
    stem = key.removesuffix("weight")
    if len(stored[key].shape) > 2:
        return True
    return f"{stem}{COMFY_MARKER}" not in stored and any(stem + name in stored for name in _OF_WHOLE_NUMBERS)

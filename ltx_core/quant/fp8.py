"""Files with eight-bit floating point weights: plain casts and scaled ones.

Three kinds of file circulate for LTX-Video:
* the official ones: block Linears cast to float8_e4m3fn, no scales (Lightricks/LTX-Video-Q8-Kernels
  scripts/convert_weights.py);
* ComfyUI's scaled form: a tensor `scaled_fp8`, and `scale_weight` (sometimes `scale_input`) beside every weight
  (Comfy-Org/ComfyUI comfy/ops.py);
* casts of everything, biases and norms included, to e4m3 or e5m2.

The products are computed in the dtype of the activations: `scale_input`, which calibrates a product in float8, has no
part in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .linear import Pack, ScaledLinear, StoredTensor, linear_weights, replace_linear

FP8_DTYPES: Mapping[str, torch.dtype] = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}

# Present in ComfyUI's scaled files; its dtype says which of the two formats is meant, its value nothing.
SCALED_MARKER = "scaled_fp8"


class StoredFP8:
    """A file whose weights are float8 already, scaled or not."""

    name = "fp8"

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:
        return SCALED_MARKER in stored or any(tensor.dtype in FP8_DTYPES for tensor in stored.values())

    def prepare(self, model: nn.Module, stored: Mapping[str, StoredTensor], compute_dtype: torch.dtype) -> Pack:
        """Raises CheckpointError: the file is marked as scaled and the scale of a weight is missing."""
        linears = linear_weights(model)
        packed = {key for key, tensor in stored.items() if tensor.dtype in FP8_DTYPES and key in linears}
        scales = {key: f"{key.removesuffix('weight')}scale_weight" for key in packed}
        missing = sorted(scale for scale in scales.values() if scale not in stored)
        if SCALED_MARKER in stored and missing:
            raise CheckpointError(
                f"got a scaled fp8 file without {missing[0]} (and {len(missing) - 1} more); expected a scale beside "
                "every float8 weight; download the file again"
            )
        for key in packed:
            scale = stored.get(scales[key])
            count = None if scale is None else prod(scale.shape)
            replace_linear(model, key, ScaledLinear(linears[key], FP8_DTYPES[stored[key].dtype], count))

        def pack(key: str, tensor: Tensor) -> Mapping[str, Tensor]:
            if key == SCALED_MARKER or key.endswith(".scale_input"):
                return {}
            if key in packed:
                return {f"{key.removesuffix('weight')}packed": tensor}
            if key.endswith(".scale_weight"):
                return {key: tensor.float().flatten()}
            return {key: tensor.to(compute_dtype) if tensor.dtype in FP8_DTYPES.values() else tensor}

        return pack

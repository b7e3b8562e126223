"""Stand-ins for ComfyUI core nodes between our own: parts of schedules, prompts for parts of them.

As in `core_nodes`: ids, inputs, outputs and meaning are the core's (nodes.py, comfy_extras/nodes_custom_sampler.py).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


class SplitSigmas:
    CATEGORY = "sampling/custom_sampling/sigmas"
    RETURN_TYPES = ("SIGMAS", "SIGMAS")
    RETURN_NAMES = ("high_sigmas", "low_sigmas")
    FUNCTION = "split"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"sigmas": ("SIGMAS",), "step": ("INT", {"default": 0, "min": 0, "max": 10000})}}

    def split(self, sigmas: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return sigmas[: step + 1], sigmas[step:]


class ConditioningSetTimestepRange:
    CATEGORY = "advanced/conditioning"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "set_range"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        share = {"min": 0.0, "max": 1.0, "step": 0.001}
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "start": ("FLOAT", {"default": 0.0, **share}),
                "end": ("FLOAT", {"default": 1.0, **share}),
            }
        }

    def set_range(self, conditioning: list[list[Any]], start: float, end: float) -> tuple[list[list[Any]]]:
        values = {"start_percent": start, "end_percent": end}
        return ([[embeddings, {**before, **values}] for embeddings, before in conditioning],)


class ConditioningCombine:
    CATEGORY = "conditioning"
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "combine"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning_1": ("CONDITIONING",), "conditioning_2": ("CONDITIONING",)}}

    def combine(self, conditioning_1: list[list[Any]], conditioning_2: list[list[Any]]) -> tuple[list[list[Any]]]:
        return (conditioning_1 + conditioning_2,)


SAMPLING_NODES: dict[str, type] = {
    "ConditioningCombine": ConditioningCombine,
    "ConditioningSetTimestepRange": ConditioningSetTimestepRange,
    "SplitSigmas": SplitSigmas,
}

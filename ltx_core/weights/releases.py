"""What each released version has that its tensors do not show.

Source: the configs in Lightricks/LTX-Video at 5260738 and its published inference files. For 0.9.5 and later
`causal_temporal_positioning` and the scheduler are deduced (the metadata of the real files has not been seen): the flag
entered the official code two days before 0.9.5, and the published timestep lists are points of the linear-quadratic
schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Family = Literal["2b", "13b"]
VAEGeneration = Literal["0.9.0", "0.9.1", "0.9.5"]

# linear_quadratic(8), rounded to four decimals: the steps that distilled checkpoints were trained for.
_DISTILLED_STEPS = (1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219)


@dataclass(frozen=True)
class Release:
    """One released version. `vae` is the generation of its VAE: each is a latent space of its own."""

    name: str
    family: Family
    vae: VAEGeneration
    distilled: bool = False

    @property
    def causal_temporal_positioning(self) -> bool:
        return self.vae == "0.9.5"

    def values(self) -> Mapping[str, object]:
        """What this version has where a file does not say, by config field."""
        first_two = self.vae != "0.9.5"
        return {
            "transformer.num_attention_heads": 32,
            "transformer.norm_eps": 1e-6,
            "transformer.positional_embedding_theta": 10000.0,
            "transformer.positional_embedding_max_pos": (20, 2048, 2048),
            "transformer.timestep_scale_multiplier": 1000.0,
            "transformer.causal_temporal_positioning": self.causal_temporal_positioning,
            "scheduler.num_train_timesteps": 1000,
            "scheduler.sampler": "Uniform" if first_two else "LinearQuadratic",
            "scheduler.shifting": "SD3" if first_two else None,
            "scheduler.target_shift_terminal": 0.1 if first_two else None,
            "scheduler.allowed_inference_steps": _DISTILLED_STEPS if self.distilled else None,
        }


RELEASES: Mapping[str, Release] = {
    release.name: release
    for release in (
        Release("2b-0.9.0", "2b", "0.9.0"),
        Release("2b-0.9.1", "2b", "0.9.1"),
        Release("2b-0.9.5", "2b", "0.9.5"),
        Release("2b-0.9.6-dev", "2b", "0.9.5"),
        Release("2b-0.9.6-distilled", "2b", "0.9.5", distilled=True),
        Release("2b-0.9.8-distilled", "2b", "0.9.5", distilled=True),
        Release("13b-0.9.7-dev", "13b", "0.9.5"),
        Release("13b-0.9.7-distilled", "13b", "0.9.5", distilled=True),
        Release("13b-0.9.8-dev", "13b", "0.9.5"),
        Release("13b-0.9.8-distilled", "13b", "0.9.5", distilled=True),
    )
}
FAMILY_OF_LAYERS: Mapping[int, Family] = {28: "2b", 48: "13b"}

# Latent upscalers by what they double, (space, time). Files of one kind look the same.
UPSCALERS: Mapping[tuple[bool, bool], tuple[str, ...]] = {
    (True, False): ("spatial-0.9.7", "spatial-0.9.8"),
    (False, True): ("temporal-0.9.7",),
}

T5_XXL = (4096, 10240, 24)  # width, feed-forward width and layers of the encoder that all releases use

# The same in every released version, so known without knowing the version.
VAE_DEFAULTS: Mapping[str, object] = {"vae.causal_decoder": False, "vae.spatial_padding_mode": "zeros"}

"""Record the noise levels and the losses of Lightricks' trainers: python record.py LTX-Video-Trainer LTX-2.

Runs their own classes; see README.md.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch

TOKENS = (64, 1024, 2688, 4096, 6144)
DRAWS = (-4.5, -3.2, -2.6, -2.5, -1.0, 0.0, 0.3, 1.7, 2.9, 3.05, 3.2, 4.5)


def module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def levels(sampler: Any) -> dict[str, list[float]]:
    """The levels of the normal numbers DRAWS; 2 as a uniform number never takes the uniform branch."""
    draws = torch.tensor(DRAWS, dtype=torch.float64)
    randn, rand = torch.randn, torch.rand
    torch.randn = lambda *_, **__: draws  # type: ignore[assignment]
    torch.rand = lambda *_, **__: torch.full_like(draws, 2.0)  # type: ignore[assignment]
    try:
        return {str(tokens): sampler.sample(len(DRAWS), tokens).tolist() for tokens in TOKENS}
    finally:
        torch.randn, torch.rand = randn, rand


def losses(root: Path) -> list[dict[str, Any]]:
    """Of `compute_loss`, for random predictions, with and without a given first frame."""
    package = types.ModuleType("ltxv_trainer")
    package.logger = None  # type: ignore[attr-defined]
    package.__path__ = [str(root / "src/ltxv_trainer")]
    sys.modules["ltxv_trainer"] = package
    config = types.ModuleType("ltxv_trainer.config")  # the loss reads nothing of it
    config.ConditioningConfig = Any  # type: ignore[attr-defined]
    sys.modules["ltxv_trainer.config"] = config
    coordinates = types.ModuleType("ltxv_trainer.ltxv_utils")
    coordinates.get_rope_scale_factors = coordinates.prepare_video_coordinates = None  # type: ignore[attr-defined]
    sys.modules["ltxv_trainer.ltxv_utils"] = coordinates
    from ltxv_trainer.training_strategies import StandardTrainingStrategy  # type: ignore

    cases: list[dict[str, Any]] = []
    for given in (0, 4):
        rng = torch.Generator().manual_seed(given)
        predicted, x0, noise = torch.randn(3, 2, 12, 3, generator=rng, dtype=torch.float64)
        mask = (torch.arange(12) < given).expand(2, 12)
        batch = types.SimpleNamespace(targets=noise - x0, conditioning_mask=mask)
        strategy = StandardTrainingStrategy(types.SimpleNamespace(first_frame_conditioning_p=0))
        loss = strategy.compute_loss(predicted, batch)
        cases.append(
            {
                "given": given,
                "predicted": predicted.tolist(),
                "x0": x0.tolist(),
                "noise": noise.tolist(),
                "loss": float(loss),
            }
        )
    return cases


def main() -> None:
    video, later = Path(sys.argv[1]), Path(sys.argv[2])
    plain = module(video / "src/ltxv_trainer/timestep_samplers.py").ShiftedLogitNormalTimestepSampler()
    stretched = module(
        later / "packages/ltx-trainer/src/ltx_trainer/timestep_samplers.py"
    ).ShiftedLogitNormalTimestepSampler()
    record = {
        "draws": DRAWS,
        "LTX-Video-Trainer": levels(plain),
        "LTX-2": levels(stretched),
        "losses": losses(video),
    }
    place = Path(__file__).with_name("trainer.json")
    place.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

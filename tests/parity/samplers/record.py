"""Run the samplers of k-diffusion and ComfyUI on a small flow and record where they end. See README.md."""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import scipy.integrate  # noqa: F401 - both import it, and numpy below it cannot be imported twice
import torch
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent
# Their modules import these, but the samplers that run here do not use them.
UNUSED = ("torchsde", "torchdiffeq", "torchvision", "torchvision.transforms", "comfy.model_patcher")
SCHEDULES = {
    "from_one": [1.0, 0.99, 0.97, 0.9, 0.72, 0.42, 0.2, 0.05, 0.0],
    "from_below_one": [0.9, 0.61, 0.33, 0.1, 0.0],
}
# Our name: the names in k-diffusion and in ComfyUI, None if missing.
NAMES = {
    "euler": ("sample_euler", "sample_euler"),
    "stochastic": (None, "sample_lcm"),
    "heun": ("sample_heun", "sample_heun"),
    "dpmpp_2m": ("sample_dpmpp_2m", "sample_dpmpp_2m"),
    "gradient_estimation": (None, "sample_gradient_estimation"),
}


class FlowModel:
    """The flow in the form of a denoiser: (x, sigma) -> x0. `inner_model` leads to ComfyUI's noising of flow models."""

    def __init__(self, weight: Tensor, noising: object) -> None:
        self.weight, self.model_sampling = weight, noising

    @property
    def inner_model(self) -> FlowModel:
        return self

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma[:, None, None]
        return x - sigma * torch.tanh(x @ self.weight + 2 * sigma)


def sampling(checkout: Path, package: str) -> types.ModuleType:
    """`sampling.py` of a package in a checkout, without running the package's own __init__."""
    stubs = {name: mock.MagicMock() for name in UNUSED}
    path = checkout.joinpath(*package.split("."))
    stubs[package] = types.ModuleType(package)
    stubs[package].__path__ = [str(path)]
    with mock.patch.dict(sys.modules, stubs), mock.patch.object(sys, "path", [str(checkout), *sys.path]):
        return importlib.import_module(f"{package}.sampling")


def runs(module: types.ModuleType, column: int, model: FlowModel, x: Tensor, fresh: Tensor) -> Iterator[tuple]:
    """(our name of the sampler, schedule, x at the end, x0 of every step)."""
    for ours, names in NAMES.items():
        if names[column] is None:
            continue
        sampler: Callable[..., Tensor] = getattr(module, names[column])
        for schedule, levels in SCHEDULES.items():
            draws = iter(fresh)
            options = {"noise_sampler": lambda *_, draws=draws: next(draws)} if ours == "stochastic" else {}
            estimates: list[Tensor] = []
            end = sampler(
                model,
                x,
                torch.tensor(levels, dtype=torch.float64),
                callback=lambda values, estimates=estimates: estimates.append(values["denoised"]),
                disable=True,
                **options,
            )
            yield ours, schedule, end, torch.stack(estimates)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("k_diffusion", type=Path)
    parser.add_argument("comfyui", type=Path)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    steps = max(map(len, SCHEDULES.values())) - 1
    x, weight, fresh = (
        torch.randn(shape, generator=generator).double() for shape in ((2, 5, 4), (4, 4), (steps, 2, 5, 4))
    )
    recorded = {"x": x, "weight": weight, "fresh": fresh}
    recorded |= {f"sigmas.{name}": torch.tensor(levels, dtype=torch.float64) for name, levels in SCHEDULES.items()}
    theirs = {
        "k_diffusion": (arguments.k_diffusion, "k_diffusion"),
        "comfyui": (arguments.comfyui, "comfy.k_diffusion"),
    }
    for column, (name, (checkout, package)) in enumerate(theirs.items()):
        module = sampling(checkout.resolve(), package)
        noising = module.comfy.model_sampling.CONST() if name == "comfyui" else None
        for ours, schedule, end, estimates in runs(module, column, FlowModel(weight, noising), x, fresh):
            recorded[f"{name}.{ours}.{schedule}.end"] = end
            recorded[f"{name}.{ours}.{schedule}.x0"] = estimates
    save_file({key: value.contiguous() for key, value in recorded.items()}, HERE / "samplers.safetensors")


if __name__ == "__main__":
    main()

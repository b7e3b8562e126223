"""The widget of every sampling node that leaves the model out of steps, and what refuses it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import LatentClip, Prompts, sample
from ltxkit.ltx_core.sampling.guidance import Guidance
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.samplers import EULER
from ltxkit.ltx_core.sampling.schedules import uniform
from ltxkit.nodes import NODE_CLASS_MAPPINGS, sockets
from ltxkit.nodes.latent import EmptyLatent
from ltxkit.nodes.loaders import LoadModel, LoadTextEncoder, LoadUpscaler
from ltxkit.nodes.long import GenerateLongVideo
from ltxkit.nodes.sample import GenerateTwoStage, SampleVideo
from ltxkit.nodes.widgets import declared_inputs

pytestmark = pytest.mark.usefixtures("host")
GUIDANCE = Guidance((3.0,), (1.0,), (0.7,), ((1,),))


@pytest.fixture(scope="module")
def dev(host: Any) -> tuple[Any, Any]:
    """Model and VAE, loaded as a release that takes many steps."""
    return LoadModel().run("ltxv-tiny.safetensors", "in the model file", "fp32", "2b-0.9.5")


def sampled(model: Any, prompts: Any, **said: Any) -> torch.Tensor:
    latent = EmptyLatent().run(64, 64, 9, 0.0, 24.0, 1)[0]
    inputs = {"seed": 1, "sampler": "preset", "condition_noise": 0.0, "schedule": uniform(16), "guidance": GUIDANCE}
    return SampleVideo().run(model, *prompts, latent, **{**inputs, **said})[0]["samples"]


def test_it_is_the_last_widget_of_every_node_that_samples() -> None:
    having = {name for name, node in NODE_CLASS_MAPPINGS.items() if "step_cache" in declared_inputs(node)}
    assert having == {"LTXKitSampleVideo", "LTXKitGenerateTwoStage", "LTXKitGenerateLongVideo"}
    for name in having:
        *_, last = declared_inputs(NODE_CLASS_MAPPINGS[name])
        assert last == "step_cache"
        assert declared_inputs(NODE_CLASS_MAPPINGS[name])[last].options["default"] == "off"


def test_a_node_makes_the_clip_of_the_core(dev: Any, prompts: Any, said: list[str]) -> None:
    model = dev[0]
    texts = [sockets.from_conditioning(each, "positive")[0] for each in prompts]

    def of_core(threshold: float) -> torch.Tensor:
        run_pass = Pass(model.transformer, uniform(16), GUIDANCE, EULER, step_cache=threshold)
        clip = LatentClip(torch.zeros(1, 128, 2, 2, 2), model.scale, 24.0)
        host = sockets.stage_host(model)
        return sample(run_pass, clip, Prompts(*texts), noise=SeededNoise(1), host=host)

    assert torch.equal(sampled(model, prompts), of_core(0))
    assert torch.equal(sampled(model, prompts, step_cache="off"), of_core(0))
    said.clear()
    cached = sampled(model, prompts, step_cache="0.2")
    assert torch.equal(cached, of_core(0.2))
    assert any("The step cache leaves out" in line for line in said)
    assert any("Step cache: the model was left out of" in line for line in said)


def test_a_distilled_checkpoint_refuses_it_in_every_node(loaded: Any, prompts: Any) -> None:
    model, vae = loaded
    refused = pytest.raises(ConfigError, match="got a step cache for a distilled checkpoint")
    with refused:
        sampled(model, prompts, step_cache="careful")
    (upscaler,) = LoadUpscaler().run("ltxv-tiny-spatial-upscaler.safetensors", "auto")
    for name in ("step_cache", "second_step_cache"):
        with refused:
            GenerateTwoStage().run(model, vae, upscaler, *prompts, 64, 64, 9, 1, 1.0, 0.0, **{name: "fast"})
    (encoder,) = LoadTextEncoder().run("t5-tiny", "fp32", False)
    with refused:
        values = "a", "", 64, 64, 9, 24.0, 9, 1, 1.0, 0.2, 1, 0.0, 0.05, 0.025
        GenerateLongVideo().run(model, vae, encoder, *values, step_cache="fast")


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"schedule": uniform(11)}, "got a step cache for 11 steps"),
        ({"sampler": "heun"}, "got a step cache for the sampler heun"),
        ({"step_cache": "quick"}, "got step_cache='quick'; expected off, careful, fast, or a number from 0 to 1"),
    ],
)
def test_what_cannot_have_one_says_so(dev: Any, prompts: Any, inputs: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        sampled(dev[0], prompts, **{"step_cache": "careful", **inputs})

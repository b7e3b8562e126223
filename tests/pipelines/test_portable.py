"""No operation that Apple's or Intel's accelerators lack reaches one: no float64, no convolution above 65536 channels.

The device is meta, so the test can use models of the released sizes and see every operation with its real shapes. The
host may compute in float64 (schedules, frame rates) as long as no float64 tensor reaches the device.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.models.text_encoder import TextEncoder
from ltxkit.ltx_core.models.tokenizer import TokenizedPrompt
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.pipelines.condition import Conditions
from ltxkit.ltx_core.pipelines.decode import decode_frames
from ltxkit.ltx_core.pipelines.encode import encode_frames
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ltxkit.ltx_core.pipelines.settings import Decoding
from ltxkit.ltx_core.pipelines.text import encode_prompts
from ltxkit.ltx_core.pipelines.two_stage import Upscaling, upscale_latent
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.sampling.conditioning import LatentCondition
from ltxkit.ltx_core.sampling.guidance import Guidance
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.samplers import SamplerSettings
from ltxkit.ltx_core.shapes import LatentShape
from ltxkit.ltx_core.weights.build import load_transformer, load_upsampler, load_vae, open_models
from ltxkit.ltx_core.weights.text_encoder import text_encoder_on_meta

Files = Callable[[str], Path]
META = Host(DevicePlacement("meta"))
GRID = LatentShape(3, 22, 38)
LARGEST = 65536  # "Output channels > 65536 not supported at the MPS device" (pytorch, aten/src/ATen/native/mps)
RELEASED = ("2b-0.9.0", "2b-0.9.1", "13b-0.9.8-dev")

# Every kind of guidance: none, CFG, CFG* with rescaling, STG in its modes with lists per step.
KINDS = {
    "none": Guidance(),
    "cfg": Guidance(scale=(3.0,)),
    "star": Guidance(scale=(3.0,), cfg_star=True, guidance_rescale=0.7),
    **{
        mode: Guidance(
            scale=(3.0, 2.0),
            stg_scale=(1.0, 0.5),
            rescaling_scale=(0.7, 1.0),
            skip_blocks=((14,), (3, 19)),
            guidance_timesteps=(1.0, 0.6),
            stg_mode=mode,  # type: ignore[arg-type]
        )
        for mode in ("attention_values", "attention_skip", "transformer_block")
    },
}


class Watcher:
    """Inspects every operation on the device."""

    def __init__(self) -> None:
        self.operations = self.convolutions = 0

    def __call__(self, func: Any, tensors: list[Tensor]) -> None:
        name = func.overloadpacket.__name__
        there = [tensor for tensor in tensors if tensor.is_meta]
        wide = [tuple(tensor.shape) for tensor in there if tensor.dtype in (torch.float64, torch.complex128)]
        assert not wide, f"{name} in float64, shape {wide}"
        self.operations += 1
        if "convolution" in name:
            self.convolutions += 1
            beyond = [tuple(tensor.shape) for tensor in there if max(tensor.shape, default=0) > LARGEST]
            assert not beyond, f"{name} beyond {LARGEST}: {beyond}"


def run(meta_device: Any, work: Callable[[], object], *models: nn.Module) -> Watcher:
    watcher = Watcher()
    with meta_device(*models, look=watcher):
        work()
    return watcher


def vae_of(path: Path) -> VideoVAE:
    vae = load_vae(path, data=False)
    for name in vae.per_channel_statistics._buffers:  # these run on the host
        vae.per_channel_statistics._buffers[name] = torch.ones(vae.config.latent_channels)
    return vae


def denoise(
    transformer: LTXTransformer, vae: VideoVAE, guidance: Guidance, sampler: SamplerSettings, condition: bool
) -> None:
    text = torch.zeros(1, 128, transformer.config.caption_channels)
    conditions = [LatentCondition(torch.zeros(1, 128, 1, GRID.height, GRID.width), 0, 0.9)] if condition else []
    sample(
        Pass(transformer, torch.tensor([1.0, 0.0]), guidance, sampler),
        LatentClip(torch.zeros(1, 128, *GRID), vae.config.scale_factors, fps=24),
        Prompts(EncodedPrompt(text, torch.ones(1, 128, dtype=torch.int64)), EncodedPrompt(text[:, :5])),
        noise=SeededNoise(0),
        host=META,
        conditions=Conditions(conditions),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_guidance(true_size: Files, meta_device: Any, kind: str) -> None:
    file = true_size("2b-0.9.8-distilled")
    transformer, vae = load_transformer(file, data=False)[0], vae_of(file)
    settings = SamplerSettings("stochastic" if kind == "cfg" else "euler", condition_noise=0.15)
    seen = run(meta_device, lambda: denoise(transformer, vae, KINDS[kind], settings, True), transformer)
    assert seen.operations > 28 * 20


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_every_released_size(true_size: Files, meta_device: Any, name: str) -> None:
    file = true_size(name)
    transformer, vae = load_transformer(file, data=False)[0], vae_of(file)
    run(meta_device, lambda: denoise(transformer, vae, KINDS["cfg"], SamplerSettings(), False), transformer)
    pixels = torch.zeros(*LatentShape(2, 22, 38).pixels(vae.config.scale_factors), 3)
    seen = run(meta_device, lambda: encode_frames(vae, pixels, host=META), vae)
    assert seen.convolutions > 10

    def decode() -> None:
        latent = torch.zeros(1, 128, *GRID)
        for _ in decode_frames(vae, latent, Decoding(0.05, 0.025, tone_map=0.6), seed=0, host=META):
            pass

    assert run(meta_device, decode, vae).convolutions > 10


@pytest.mark.parametrize("name", ["spatial-0.9.8", "temporal-0.9.7"])
def test_upscalers(true_size: Files, meta_device: Any, name: str) -> None:
    upscaler, vae = load_upsampler(true_size(name), data=False), vae_of(true_size("2b-0.9.8-distilled"))
    latent = torch.zeros(1, 128, *GRID)
    work = lambda: upscale_latent(Upscaling(upscaler, vae, adain_factor=1.0), latent, host=META)  # noqa: E731
    assert run(meta_device, work, upscaler, vae).convolutions > 5


def test_text(true_size: Files, meta_device: Any) -> None:
    class Words:
        def encode(self, prompt: str) -> TokenizedPrompt:
            return TokenizedPrompt(tuple(range(1, 200)), 199, "")

    model, config = text_encoder_on_meta(open_models(true_size("t5xxl"), data=False))
    encoder = TextEncoder(model, Words(), config)  # type: ignore[arg-type]
    seen = run(meta_device, lambda: encode_prompts(encoder, ["a", "b"], host=META), model)
    assert seen.operations > 24 * 20


def test_it_would_be_noticed(meta_device: Any) -> None:
    with pytest.raises(AssertionError, match="in float64"):
        run(meta_device, lambda: torch.empty(3, device="meta", dtype=torch.float64) + 1)
    with pytest.raises(AssertionError, match="beyond 65536"):
        run(meta_device, lambda: nn.Conv1d(1, 70000, 1, device="meta")(torch.empty(1, 1, 4, device="meta")))

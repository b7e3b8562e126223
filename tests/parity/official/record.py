"""Run Lightricks/LTX-Video itself on tiny random models and record its results. See README.md for the command."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import shared
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent


def official(checkout: Path):
    """The modules of the official code that this script runs."""
    sys.path.insert(0, str(checkout))
    from ltx_video.models.autoencoders import causal_video_autoencoder, latent_upsampler
    from ltx_video.models.transformers import symmetric_patchifier, transformer3d
    from ltx_video.pipelines import pipeline_ltx_video
    from ltx_video.schedulers import rf
    from ltx_video.utils import skip_layer_strategy

    return argparse.Namespace(
        vae=causal_video_autoencoder,
        upsampler=latent_upsampler,
        patchifier=symmetric_patchifier,
        transformer=transformer3d,
        pipeline=pipeline_ltx_video,
        rf=rf,
        strategies=skip_layer_strategy.SkipLayerStrategy,
    )


def manifest(lv) -> dict:
    """Keys and shapes of the official modules, with their single-file names, and the configs."""
    transformer = lv.transformer.Transformer3DModel.from_config(shared.TRANSFORMER)
    vae = lv.vae.CausalVideoAutoencoder.from_config(dict(shared.VAE))
    config = {key: value for key, value in shared.UPSAMPLER.items() if key != "_class_name"}
    upsampler = lv.upsampler.LatentUpsampler(**config)
    tensors = {f"model.diffusion_model.{key}": list(value.shape) for key, value in transformer.state_dict().items()}
    tensors |= {f"vae.{key}": list(value.shape) for key, value in vae.state_dict().items()}
    for name in ("mean-of-means", "std-of-means"):
        tensors[f"vae.per_channel_statistics.{name}"] = [shared.CHANNELS]
    return {
        "checkpoint": {
            "config": {"transformer": shared.TRANSFORMER, "vae": shared.VAE, "scheduler": shared.SCHEDULER},
            "tensors": tensors,
        },
        "upscaler": {
            "config": shared.UPSAMPLER,
            "tensors": {key: list(value.shape) for key, value in upsampler.state_dict().items()},
        },
    }


def build(lv, made: dict):
    """The official pipeline and upsampler, which the official loaders load from the checkpoint of `made`."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, upscaler = shared.write_checkpoint(made, Path(folder))
        vae = lv.vae.CausalVideoAutoencoder.from_pretrained(checkpoint).eval()
        transformer = lv.transformer.Transformer3DModel.from_pretrained(checkpoint).eval()
        scheduler = lv.rf.RectifiedFlowScheduler.from_pretrained(checkpoint)
        upsampler = lv.upsampler.LatentUpsampler.from_pretrained(upscaler).eval()
    pipeline = lv.pipeline.LTXVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
        patchifier=lv.patchifier.SymmetricPatchifier(patch_size=1),
        prompt_enhancer_image_caption_model=None,
        prompt_enhancer_image_caption_processor=None,
        prompt_enhancer_llm_model=None,
        prompt_enhancer_llm_tokenizer=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, upsampler


@contextmanager
def taped(lv):
    """Take every random draw of the official code from our tapes; yields the list of the steps' guided velocities."""
    noise, posterior = shared.Tape(shared.NOISE_SEED), shared.Tape(shared.POSTERIOR_SEED)
    decode = shared.Tape(shared.DECODE_SEED)
    velocities: list[torch.Tensor] = []
    step = lv.pipeline.LTXVideoPipeline.denoising_step

    def drawn(shape, **_):
        return noise.tokens(shape) if len(shape) == 3 else noise(shape)

    def drawn_like(tensor):
        return noise.tokens(tensor.shape) if tensor.ndim == 3 else decode(tensor.shape)

    def recorded(self, latents, noise_pred, *args, **kwargs):
        velocities.append(noise_pred.clone())
        return step(self, latents, noise_pred, *args, **kwargs)

    with (
        mock.patch.object(lv.pipeline, "randn_tensor", drawn),
        mock.patch("diffusers.models.autoencoders.vae.randn_tensor", lambda shape, **_: posterior(shape)),
        mock.patch.object(torch, "randn_like", drawn_like),
        mock.patch.object(lv.pipeline.LTXVideoPipeline, "denoising_step", recorded),
    ):
        yield velocities


def arguments(lv, settings: dict) -> dict:
    """Our description of a run, as arguments of the official pipeline."""
    settings = {**shared.STANDARD, **settings}
    strategies = {
        "attention_values": lv.strategies.AttentionValues,
        "attention_skip": lv.strategies.AttentionSkip,
        "transformer_block": lv.strategies.TransformerBlock,
    }
    items = [
        lv.pipeline.ConditioningItem(shared.media(kind), frame, strength)
        for kind, frame, strength in shared.CONDITIONS[settings.pop("conditions", "none")]
    ]
    given = settings.pop("media", None)
    texts = shared.prompts()
    return {
        "height": shared.HEIGHT,
        "width": shared.WIDTH,
        "num_frames": shared.FRAMES,
        "frame_rate": shared.FPS,
        "negative_prompt": None,
        "prompt_embeds": texts["positive"][0],
        "prompt_attention_mask": texts["positive"][1],
        "negative_prompt_embeds": texts["negative"][0],
        "negative_prompt_attention_mask": texts["negative"][1],
        "conditioning_items": items or None,
        "media_items": None if given is None else shared.media(given),
        "skip_layer_strategy": strategies[settings.pop("stg_mode", "attention_values")],
        "is_video": True,
        "vae_per_channel_normalize": True,
        "output_type": "latent",
        **settings,
    }


def decode(lv, pipeline, latent: torch.Tensor, compression: float = 0.0) -> torch.Tensor:
    """The steps of the official pipeline after its loop: (1, 3, f, h, w) in [0, 1]."""
    from ltx_video.models.autoencoders.vae_encode import vae_decode

    noise = shared.Tape(shared.DECODE_SEED)(latent.shape)
    scale = shared.DECODE_NOISE_SCALE
    latent = latent * (1 - scale) + noise * scale
    latent = pipeline.tone_map_latents(latent, compression)
    with torch.no_grad():
        timestep = torch.tensor([shared.DECODE_TIMESTEP])
        image = vae_decode(latent, pipeline.vae, True, vae_per_channel_normalize=True, timestep=timestep)
    return pipeline.image_processor.postprocess(image, output_type="pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="a working tree of Lightricks/LTX-Video")
    lv = official(parser.parse_args().checkout)
    torch.set_num_threads(1)

    made = manifest(lv)
    (HERE / "manifest.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    pipeline, upsampler = build(lv, made)

    steps: dict[str, torch.Tensor] = {}
    for guidance, settings in shared.GUIDANCE.items():
        for conditions in shared.CONDITIONS:
            with taped(lv) as velocities:
                pipeline(
                    **arguments(
                        lv, {**settings, "conditions": conditions, "timesteps": [1.0, 0.9], "num_inference_steps": None}
                    )
                )
            steps[f"{guidance}/{conditions}"] = velocities[1]

    latents: dict[str, torch.Tensor] = {}
    frames: dict[str, torch.Tensor] = {}
    for name, settings in shared.RUNS.items():
        with taped(lv):
            latents[name] = pipeline(**arguments(lv, settings)).images
        frames[name] = decode(lv, pipeline, latents[name])[:, :, shared.SHOWN_FRAMES].half()

    two_stage = lv.pipeline.LTXMultiScalePipeline(pipeline, upsampler)
    settings = arguments(lv, {key: value for key, value in shared.TWO_STAGE.items() if key != "second_pass"})
    settings["second_pass"] = dict(shared.TWO_STAGE["second_pass"])
    settings |= {"decode_timestep": shared.DECODE_TIMESTEP, "decode_noise_scale": shared.DECODE_NOISE_SCALE}
    with taped(lv), torch.no_grad():
        latents["two_stage"] = two_stage(**settings).images
    with taped(lv), torch.no_grad():
        frames["two_stage"] = (
            two_stage(**{**settings, "output_type": "pt"}).images[:, :, shared.SHOWN_FRAMES[:2]].half()
        )
    for file, tensors in (("velocities", steps), ("latents", latents), ("frames", frames)):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, HERE / f"{file}.safetensors")

    levels = []
    for settings, count, grid in shared.SCHEDULES:
        scheduler = lv.rf.RectifiedFlowScheduler(**settings)
        scheduler.set_timesteps(count, samples_shape=(1, shared.CHANNELS, *grid))
        levels.append(scheduler.timesteps.tolist())
    (HERE / "schedules.json").write_text(json.dumps(levels, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

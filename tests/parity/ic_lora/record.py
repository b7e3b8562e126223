"""Run the pipeline of Lightricks/LTX-Video-Trainer with reference videos and record its results. See README.md."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import types
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import diffusers
import torch
import transformers
from safetensors.torch import save_file

from ltxkit.ltx_core.weights.convert import convert

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "official"))
import shared  # noqa: E402

# (kind of the reference, conditions, noise on the tokens at level 0)
RUNS = {
    "reference": ("clip33", "none", 0.0),
    "reference_with_noise": ("clip33", "none", 0.15),
    "short_reference": ("clip17", "none", 0.0),
    "odd_length": ("clip30", "none", 0.0),
    "first_frame": ("clip33", "first_frame", 0.15),
    "keyframe_and_clip": ("clip33", "two", 0.0),
}


def trainer(checkout: Path):
    """The trainer's pipeline. It does not need torchvision: references already have the size of the clip."""

    def same_size(frames, size, **_):
        assert list(frames.shape[2:]) == list(size)
        return frames

    # Modules that check for torchvision have to be imported before its stand-in exists.
    _ = diffusers.LTXPipeline, diffusers.loaders.FromSingleFileMixin, transformers.T5EncoderModel
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    stubs = {name: types.ModuleType(name) for name in names}
    stubs[names[-1]].resize = stubs[names[-1]].center_crop = same_size
    spec = importlib.util.spec_from_file_location("trainer", checkout / "src/ltxv_trainer/ltxv_pipeline.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["trainer"] = module
    with mock.patch.dict(sys.modules, stubs):
        spec.loader.exec_module(module)
    return module


@contextmanager
def taped(module):
    """Take every random draw of the pipeline from our tapes."""
    noise, posterior = shared.Tape(shared.NOISE_SEED), shared.Tape(shared.POSTERIOR_SEED)

    def drawn(shape, **_):
        return noise.tokens(shape) if len(shape) == 3 else noise(shape)

    with (
        mock.patch.object(module, "randn_tensor", drawn),
        mock.patch("diffusers.models.autoencoders.vae.randn_tensor", lambda shape, **_: posterior(shape)),
    ):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="a working tree of Lightricks/LTX-Video-Trainer")
    module = trainer(parser.parse_args().checkout)
    torch.set_num_threads(1)

    manifest = json.loads((HERE.parent / "official/manifest.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, _ = shared.write_checkpoint(manifest, Path(folder))
        convert(checkpoint, Path(folder) / "diffusers", "diffusers")
        parts = diffusers.LTXPipeline.from_pretrained(Path(folder) / "diffusers", text_encoder=None, tokenizer=None)
        pipeline = module.LTXConditionPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=parts.vae.eval(),
            text_encoder=None,
            tokenizer=None,
            transformer=parts.transformer.eval(),
        )
        pipeline.set_progress_bar_config(disable=True)
        texts = shared.prompts()
        latents: dict[str, torch.Tensor] = {}
        for name, (kind, conditions, condition_noise) in RUNS.items():
            items = [
                module.LTXVideoCondition(
                    image=shared.media(what)[:, :, 0] / 2 + 0.5 if what == "image" else None,
                    video=list(shared.media(what)[0].movedim(1, 0) / 2 + 0.5) if what != "image" else None,
                    frame_index=frame,
                    strength=strength,
                )
                for what, frame, strength in shared.CONDITIONS[conditions]
            ]
            with taped(module), torch.no_grad():
                latents[name] = pipeline(
                    conditions=items or None,
                    reference_video=shared.media(kind)[0].movedim(1, 0) / 2 + 0.5,
                    height=shared.HEIGHT,
                    width=shared.WIDTH,
                    num_frames=shared.FRAMES,
                    frame_rate=shared.FPS,
                    num_inference_steps=4,
                    guidance_scale=3.0,
                    image_cond_noise_scale=condition_noise,
                    prompt_embeds=texts["positive"][0],
                    prompt_attention_mask=texts["positive"][1],
                    negative_prompt_embeds=texts["negative"][0],
                    negative_prompt_attention_mask=texts["negative"][1],
                    output_type="latent",
                ).frames.contiguous()
    save_file(latents, HERE / "latents.safetensors")


if __name__ == "__main__":
    main()

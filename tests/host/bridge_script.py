"""Runs in a single process of ComfyUI's interpreter: our models in ComfyUI's own samplers, and its models in our nodes.

Each function below is one check and returns its findings; the script prints all as one line of JSON, by name. What
raises an LTXKitError is reported with its message. Arguments: ComfyUI's folder, the pack, the models folder, the checks.
"""

# ruff: noqa: E402, T201

import gc
import importlib.util
import json
import sys
import types
from pathlib import Path

comfy_root, pack, models, *checks = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, comfy_root)

from comfy.cli_args import args

args.cpu = True  # otherwise the next import would look for a driver

import comfy.ldm.lightricks.vae.causal_video_autoencoder as native_vae_module
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.text_encoders.lt
import comfy.utils
import folder_paths
import torch
from comfy import model_management as mm

folder_paths.models_dir = models
for kind, (folders, _) in list(folder_paths.folder_names_and_paths.items()):
    folders[:] = [str(Path(models) / kind)]

spec = importlib.util.spec_from_file_location("ltxkit", f"{pack}/__init__.py", submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules["ltxkit"] = module
spec.loader.exec_module(module)
nodes = module.NODE_CLASS_MAPPINGS
from ltxkit.ltx_core.errors import LTXKitError
from ltxkit.ltx_core.weights.lora import load_lora
from ltxkit.nodes.host import ComfyUIHost

said = []
ComfyUIHost.say = lambda self, text: said.append(text)  # there is no server here
CHECKPOINT = "ltxv-tiny.safetensors"
CPU, DEVICE = torch.device("cpu"), torch.device("cpu", 0)


# ------------------------------------------------------------------------------------------------ models


def load(name=CHECKPOINT, dtype="fp32", **options):
    return nodes["LTXKitLoadModel"]().run(name, "in the model file", dtype, "from the file", **options)


def to_native(handle):
    return nodes["LTXKitConvertModelToNative"]().run(handle)[0]


def from_native(model, version="from the file"):
    return nodes["LTXKitConvertModelFromNative"]().run(model, version)[0]


def native_model(name=CHECKPOINT, dtype=torch.float32, metadata=True):
    """ComfyUI's own MODEL of a file."""
    state, header = comfy.utils.load_torch_file(str(Path(models) / "checkpoints" / name), return_metadata=True)
    prefix = "model.diffusion_model."
    state = {key.removeprefix(prefix): value.to(dtype) for key, value in state.items() if key.startswith(prefix)}
    return comfy.sd.load_diffusion_model_state_dict(
        state, model_options={"dtype": dtype}, metadata=header if metadata else None
    )


def native_vae(name="ltxv-tiny-0.9.0.safetensors", **config):
    """ComfyUI's own VAE of a file. Some cores build one width only, so set it here. config: replaces metadata; None: as
    if the file did not say it."""
    state, header = comfy.utils.load_torch_file(str(Path(models) / "checkpoints" / name), return_metadata=True)
    state = {key.removeprefix("vae."): value.float() for key, value in state.items() if key.startswith("vae.")}
    stated = json.loads(header["config"])["vae"]
    width = {half: stated[f"{half}_base_channels"] for half in ("encoder", "decoder")}
    stated = {key: value for key, value in {**stated, **config}.items() if value is not None}
    with narrow(width["encoder"], width["decoder"]):
        return comfy.sd.VAE(sd=state, metadata={"config": json.dumps({"vae": stated})}, dtype=torch.float32)


class narrow:
    """Inside, core's VAE has these widths."""

    def __init__(self, encoder, decoder):
        self.widths = encoder, decoder

    def __enter__(self):
        import functools

        self.classes = native_vae_module.Encoder, native_vae_module.Decoder
        encoder, decoder = self.classes
        native_vae_module.Encoder = functools.partial(encoder, base_channels=self.widths[0])
        native_vae_module.Decoder = functools.partial(decoder, base_channels=self.widths[1])
        if "encoder_base_channels" in Path(native_vae_module.__file__).read_text():  # this core reads it from the file
            self.__exit__()

    def __exit__(self, *_):
        native_vae_module.Encoder, native_vae_module.Decoder = self.classes


# ------------------------------------------------------------------------------------------------ sampling

SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])
SEED = 7


def prompts():
    encoder = nodes["LTXKitLoadTextEncoder"]().run("t5-tiny", "fp32", False)[0]
    return nodes["LTXKitEncodePrompt"]().run(encoder, "a red ball", "blurry", 24.0)


def empty():
    return nodes["LTXKitEmptyLatent"]().run(64, 96, 17, 0.0, 24.0, 1)[0]


def ours(handle):
    (guidance,) = nodes["LTXKitCreateGuidance"]().run(3.0, 0.0, 0.0, "", "attention_values", 1.0, False)[:1]
    positive, negative = PROMPTS
    (result,) = nodes["LTXKitSampleVideo"]().run(
        handle, positive, negative, empty(), SEED, "euler", 0.0, schedule=SIGMAS, guidance=guidance
    )
    return result["samples"]


def native(model, sigmas=SIGMAS):
    """What the node KSampler does with the sampler euler."""
    latent = torch.zeros_like(empty()["samples"])
    noise = comfy.sample.prepare_noise(latent, SEED)
    positive, negative = PROMPTS
    return comfy.sample.sample(
        model, noise, len(sigmas) - 1, 3.0, "euler", "simple", positive, negative, latent,
        sigmas=sigmas, seed=SEED, disable_pbar=True,
    )  # fmt: skip


def apart(result, expected):
    """The largest difference, relative to the largest value."""
    assert result.shape == expected.shape
    assert expected.std() > 0.1
    return float((result - expected).abs().max() / expected.abs().max())


def pointers(part):
    return {name: tensor.data_ptr() for name, tensor in part.state_dict().items()}


# ------------------------------------------------------------------------------------------------ checks


def ours_in_native():
    handle, _ = load()
    before = pointers(handle.transformer)
    model = to_native(handle)
    found = {"ksampler": apart(native(model), ours(handle))}
    found["shared"] = pointers(model.model.diffusion_model) == before == pointers(handle.transformer)
    found["unpatched"] = apart(native(model), native(native_model()))
    again = to_native(handle)
    found["one model"] = again is not model and again.is_clone(model)
    return found


if __name__ == "__main__":
    with torch.inference_mode():
        PROMPTS = prompts()
        results = {}
        for name in checks:
            try:
                results[name] = globals()[name]()
            except LTXKitError as error:
                results[name] = {"refused": str(error)}
            gc.collect()
        print(json.dumps(results))

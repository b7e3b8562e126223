"""Runs in a single process of ComfyUI's interpreter: two models on a device that holds one, in several VRAM modes.

The second device is a fake, `cpu:0`: it is not equal to `cpu`, so everything moves, without a graphics card. The script
prints its findings as one line of JSON per mode. Arguments: ComfyUI's folder, the pack, the models folder, the modes,
each as NAME, NAME/share of a model that fits, or NAME/share/number of blocks requested to stay.
"""

# ruff: noqa: E402, T201

import gc
import importlib.util
import json
import sys
from pathlib import Path

comfy_root, pack, models, *modes = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, comfy_root)

from comfy.cli_args import args

args.cpu = True  # otherwise the next import would look for a driver

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
from ltxkit.ltx_core.budget.weights import weight_bytes
from ltxkit.nodes.host import ComfyUIHost

ComfyUIHost.say = lambda self, text: None  # there is no server here

CPU, DEVICE = torch.device("cpu"), torch.device("cpu", 0)


def live_bytes():
    """Bytes of all live tensors, by storage."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and not thing.is_meta:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def load(name, blocks=-1):
    return nodes["LTXKitLoadModel"]().run(name, "in the model file", "auto", "from the file", resident_blocks=blocks)


def load_text_encoder(blocks=-1):
    return nodes["LTXKitLoadTextEncoder"]().run("t5-tiny", "auto", False, resident_blocks=blocks)[0]


def sample(model, prompts, seed):
    latent, _ = nodes["LTXKitEmptyLatent"]().run(64, 64, 9, 0.0, 24.0, 1)
    (result,) = nodes["LTXKitSampleVideo"]().run(
        model, *prompts, latent, seed, "preset", 0.0, schedule=torch.tensor([1.0, 0.7, 0.3, 0.0])
    )
    return result["samples"]


def pointers(module):
    return [tensor.data_ptr() for tensor in module.parameters()]


def fake_card(capacity):
    """From here on the fake card has this many bytes."""

    def free(device=None, torch_free_too=False):
        loaded = sum(one.model_loaded_memory() for one in mm.current_loaded_models if one.device == DEVICE)
        left = capacity - loaded if device == DEVICE else 2**40
        return (left, 0) if torch_free_too else left

    mm.get_free_memory = free
    mm.get_torch_device = mm.vae_device = mm.text_encoder_device = lambda: DEVICE
    mm.is_device_cpu = lambda device: device == CPU
    mm.soft_empty_cache = lambda force=False: None
    mm.lowvram_available = True


def findings(mode, share, blocks, expected, expected_frames, expected_text):
    """share: the part of the larger model that fits on the card in addition to the working memory."""
    encoder = load_text_encoder(blocks)
    models, vae = [], None
    for name in NAMES:
        model, vae = load(name, blocks)
        models.append(model)
    parts = [model.transformer for model in models]
    originals = [pointers(part) for part in parts]
    fake_card(int(mm.minimum_inference_memory() + share * max(map(weight_bytes, parts)) + 2**20))
    mm.vram_state = mm.VRAMState[mode]
    before = live_bytes()
    found = {"equal": [], "away": [], "loaded": []}

    def look():
        found["away"].append([pointers(part) == own for part, own in zip(parts, originals, strict=True)])
        found["loaded"].append(sorted(one.model_loaded_memory() for one in mm.current_loaded_models))

    prompts = nodes["LTXKitEncodePrompt"]().run(encoder, "a red ball", "blurry", 24.0)
    found["equal"].append(torch.equal(prompts[0][0][0], expected_text))
    for index in (0, 1, 0):
        found["equal"].append(torch.equal(sample(models[index], prompts, 1), expected[index]))
        look()
    frames = nodes["LTXKitDecodeVideo"]().run({"samples": expected[0]}, vae, 0.05, 0.025, 0)[0]
    found["equal"].append(torch.equal(frames, expected_frames))
    del frames, prompts

    mm.unload_all_models()
    look()
    found["left behind"] = live_bytes() - before
    found["sizes"] = [weight_bytes(part) for part in parts]
    return found


NAMES = ("ltxv-tiny.safetensors", "ltxv-13b-0.9.7-dev.safetensors")

with torch.inference_mode():
    encoder = load_text_encoder()
    prompts = nodes["LTXKitEncodePrompt"]().run(encoder, "a red ball", "blurry", 24.0)
    expected = []
    for name in NAMES:
        model, vae = load(name)
        expected.append(sample(model, prompts, 1))
    expected_frames = nodes["LTXKitDecodeVideo"]().run({"samples": expected[0]}, vae, 0.05, 0.025, 0)[0]
    expected_text = prompts[0][0][0]
    del encoder, prompts, model, vae

    for mode in modes:
        given = mode.split("/")
        vram, share, blocks = given + ["NORMAL_VRAM", "1.2", "-1"][len(given) :]
        found = findings(vram, float(share), int(blocks), expected, expected_frames, expected_text)
        gc.collect()
        mm.cleanup_models()
        print(json.dumps({**found, "known after deletion": len(mm.current_loaded_models)}))

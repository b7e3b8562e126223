"""ComfyUI's modules in this process, our pack, and a fake card: what the memory scripts share.

The card is `cpu:0`: it is not equal to `cpu`, so everything moves, without a graphics card. Arguments of a script:
ComfyUI's folder, the pack, the models folder, and its own, which are `arguments` here.
"""

# ruff: noqa: E402

import gc
import importlib.util
import sys
from pathlib import Path

comfy_root, pack, models, *arguments = sys.argv[1:]
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
from ltxkit.nodes.host import ComfyUIHost

ComfyUIHost.say = lambda self, text: None  # there is no server here

CPU, DEVICE = torch.device("cpu"), torch.device("cpu", 0)
NAMES = ("ltxv-tiny.safetensors", "ltxv-13b-0.9.7-dev.safetensors")


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


gc.collect()
gc.freeze()  # what has been imported: `live_bytes` need not go through it each time

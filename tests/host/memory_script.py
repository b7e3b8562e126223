"""Runs in a single process of ComfyUI's interpreter: two models on a device that holds one, in several VRAM modes.

The script prints its findings as one line of JSON per mode. Its arguments after those of `fake_card` are the modes,
each as NAME, NAME/share of a model that fits, or NAME/share/number of blocks requested to stay.
"""

# ruff: noqa: T201

import gc
import json

import torch
from fake_card import NAMES, arguments, fake_card, live_bytes, load, load_text_encoder, mm, nodes, pointers, sample

from ltxkit.ltx_core.budget.weights import weight_bytes


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

    for mode in arguments:
        given = mode.split("/")
        vram, share, blocks = given + ["NORMAL_VRAM", "1.2", "-1"][len(given) :]
        found = findings(vram, float(share), int(blocks), expected, expected_frames, expected_text)
        gc.collect()
        mm.cleanup_models()
        print(json.dumps({**found, "known after deletion": len(mm.current_loaded_models)}))

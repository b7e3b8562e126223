"""Runs in a single process of ComfyUI's interpreter: our models beside other packs' on one card, through core's real
`load_models_gpu`. The tiny models report the bytes of the released ones.

It reads names of scenarios, the functions below, from stdin, a line each. Each runs in a fork of this process, so that
it finds nothing of another; the answer is "found: " and JSON: what it finds, or null after an error, which is on
stderr.
"""

# ruff: noqa: T201

import gc
import json
import os
import sys
import traceback
from contextlib import contextmanager

import fake_card
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.model_patcher import ModelPatcher
from fake_card import CPU, DEVICE, NAMES, live_bytes, load, load_text_encoder, mm, nodes, pointers, sample

import ltxkit.nodes.patcher as ours
from ltxkit.ltx_core.budget import weights
from ltxkit.ltx_core.placing import streaming
from ltxkit.nodes import launch

GB = 10**9
THE_13B, T5, VAE, NATIVE = 13 * GB, 4 * GB, 2 * GB, 4 * GB  # in float8, and a native model
args.preview_method = LatentPreviewMethod.Latent2RGB  # previews are fitted at the first run

counted = weights.weight_bytes
factors = {}


def report(module, size):
    """From here on the module weighs `size` bytes."""
    factor = size / counted(module)
    factors.update((id(part), factor) for part in module.modules())


weights.weight_bytes = ours.weight_bytes = lambda module: int(counted(module) * factors.get(id(module), 1))


class Native(ModelPatcher):
    """Another pack's model, which counts bytes instead of moving them. Core asks it to leave in the same way as its
    own, and `left` records the bytes that it gave up."""

    dynamic = False

    def __init__(self, size):
        super().__init__(torch.nn.Module(), DEVICE, CPU, size)
        self.model.dynamic_pins = {DEVICE: {"active": False, "current_prompt": False}}
        self.left = []

    def partially_load(self, device, extra_memory=0, **_):
        most = self.loaded_size() + min(mm.get_free_memory(device), 1e32 if self.dynamic else extra_memory)
        self.model.model_loaded_weight_memory = int(min(self.size, most))
        self.model.device = device
        return 0

    def partially_unload(self, device, memory_to_free=0, **_):
        freed = int(min(memory_to_free, self.loaded_size()))
        self.model.model_loaded_weight_memory -= freed
        self.left.append(freed)
        return freed

    def detach(self, unpatch_all=True):
        if unpatch_all:
            self.left.append(self.loaded_size())
            self.model.model_loaded_weight_memory = 0
            self.model.device = self.offload_device
        return self.model

    def partially_unload_ram(self, *_, **__):
        return 0

    unregister_inactive_pins = partially_unload_ram

    def loaded_ram_size(self):
        return 0


class Dynamic(Native):
    """One whose weights come on demand (comfy-aimdo)."""

    dynamic = True

    def is_dynamic(self):
        return True


def models(blocks=-1, size=THE_13B):
    encoder = load_text_encoder()
    model, vae = load(NAMES[0], blocks)
    report(encoder.module, T5)
    report(model.transformer, size)
    for part in (vae.encoder, vae.decoder):
        report(part, VAE / 2)
    return encoder, model, vae


def run(encoder, model, vae, native):
    """A graph with our nodes after another pack's sampler."""
    mm.load_models_gpu([native], memory_required=GB)
    prompts = nodes["LTXKitEncodePrompt"]().run(encoder, "a red ball", "blurry", 24.0)
    latent = sample(model, prompts, 1)
    frames = nodes["LTXKitDecodeVideo"]().run({"samples": latent}, vae, 0.05, 0.025, 0)[0]
    return latent, frames


def ten_runs(native, card, **options):
    parts = models(**options)
    fake_card.fake_card(card)
    found = {"latents": [], "frames": [], "bytes": [], "loaded": [], "loads": []}
    loads = []
    load_one = ours.DeviceCopies
    ours.DeviceCopies = lambda module, device: loads.append(type(module).__name__) or load_one(module, device)
    first = None
    for _ in range(10):
        loads.clear()
        results = run(*parts, native)
        first = first or results
        for name, value, expected in zip(("latents", "frames"), results, first, strict=True):
            found[name].append(torch.equal(value, expected))
        del results, value, expected
        found["bytes"].append(live_bytes())
        found["loaded"].append(sorted(one.model_loaded_memory() for one in mm.current_loaded_models))
        found["loads"].append(sorted(loads))
    ours.DeviceCopies = load_one
    found |= {"native": native.loaded_size(), "left": native.left, "names": names()}
    return found


def names():
    return sorted(type(one.model.model).__name__ for one in mm.current_loaded_models)


def everything_fits():
    return ten_runs(Native(NATIVE), 24 * GB)


def everything_fits_beside_a_dynamic_model():
    return ten_runs(Dynamic(NATIVE), 24 * GB)


def a_few_blocks_beside_a_dynamic_model():
    return ten_runs(Dynamic(NATIVE), 16 * GB, blocks=5, size=2 * THE_13B)


def too_much_with_a_dynamic_model():
    return ten_runs(Dynamic(NATIVE), 18 * GB)


def too_much_with_another_model():
    return ten_runs(Native(NATIVE), 18 * GB)


def interrupted():
    """Cancel inside a block, a transfer of a block and a decode: nothing stays behind, and the next run is equal."""
    found = {}
    for where, size in (("whole", THE_13B), ("streamed", 2 * THE_13B)):
        encoder, model, vae = parts = models(size=size)
        native = Dynamic(NATIVE)
        fake_card.fake_card(24 * GB)
        expected = run(*parts, native)
        mm.unload_all_models()
        placed = (model.transformer, vae.decoder, encoder.module)
        before = [pointers(module) for module in placed], hooks(placed)
        blocks = len(model.transformer.transformer_blocks)
        layers = [part for part in vae.decoder.modules() if not list(part.children())]
        places = {
            "block": when_entered(model.transformer.transformer_blocks[blocks // 2]),
            "text block": when_entered(encoder.module.blocks().blocks[1]),
            "decode": when_entered(layers[-1]),
        }
        if where == "streamed":
            places["transfer"] = half_way_through_a_transfer
        for what, interrupting in places.items():
            with interrupting():
                raised = exception_of(run, *parts, native)
            mm.interrupt_current_processing(False)
            mm.unload_all_models()
            clean = ([pointers(module) for module in placed], hooks(placed)) == before
            equal = all(torch.equal(*pair) for pair in zip(run(*parts, native), expected, strict=True))
            mm.unload_all_models()
            found[f"{where}: {what}"] = {"raised": raised, "clean": clean, "equal": equal}
    return found


def exception_of(work, *inputs):
    try:
        work(*inputs)
    except BaseException as error:
        return type(error).__name__
    return None


def when_entered(part):
    """Cancel is pressed when a part of a model begins its work."""

    @contextmanager
    def interrupting():
        handle = part.register_forward_pre_hook(lambda *_: mm.interrupt_current_processing(True), prepend=True)
        yield
        handle.remove()

    return interrupting


@contextmanager
def half_way_through_a_transfer():
    """The exception comes while the fourth streamed block is copied, after three of its tensors."""
    copies, move = streaming.DeviceCopies, torch.Tensor.to
    blocks, tensors = [], []

    def to(tensor, *rest, **more):
        tensors.append(tensor)
        if len(blocks) == 4 and len(tensors) > 3:
            raise mm.InterruptProcessingException
        return move(tensor, *rest, **more)

    def started(module, device, **options):
        blocks.append(module)
        tensors.clear()
        torch.Tensor.to = to
        try:
            return copies(module, device, **options)
        finally:
            torch.Tensor.to = move

    streaming.DeviceCopies = started
    yield
    streaming.DeviceCopies = copies


def hooks(placed):
    return sum(len(part._forward_pre_hooks) for module in placed for part in module.modules())


def unloaded_in_the_middle():
    """Another pack's route unloads everything while we sample: the run ends well, and then the card is empty."""
    encoder, model, _ = parts = models()
    originals = pointers(model.transformer)
    native = Dynamic(NATIVE)
    fake_card.fake_card(24 * GB)
    expected = run(*parts, native)
    block = model.transformer.transformer_blocks[1]
    handle = block.register_forward_pre_hook(lambda *_: mm.unload_all_models())
    prompts = nodes["LTXKitEncodePrompt"]().run(encoder, "a red ball", "blurry", 24.0)
    latent = sample(model, prompts, 1)
    handle.remove()
    left = pointers(model.transformer) == originals
    equal = torch.equal(latent, expected[0])
    again = run(*parts, native)
    loaded_again = pointers(model.transformer) != originals
    mm.unload_all_models()
    return {
        "equal": equal,
        "left": left,
        "again": all(torch.equal(*pair) for pair in zip(again, expected, strict=True)),
        "loaded again": loaded_again,
        "loaded": [one.model_loaded_memory() for one in mm.current_loaded_models],
    }


def two_cards():
    """`--default-device`: everything goes to the card that core names, and follows when it names another."""
    second = torch.device("cpu", 1)
    parts = models()
    fake_card.fake_card(24 * GB)
    native = Native(20 * GB)
    mm.load_models_gpu([native])
    mm.get_torch_device = mm.vae_device = mm.text_encoder_device = lambda: second
    idle = mm.get_free_memory
    mm.get_free_memory = lambda device=None, torch_free_too=False: (
        ((24 * GB, 0) if torch_free_too else 24 * GB) if device == second else idle(device, torch_free_too)
    )
    found = {"devices": [], "left": native.left}
    expected = run_ours(*parts)
    found["devices"].append(sorted({str(one.device) for one in mm.current_loaded_models if one.model is not native}))
    mm.load_models_gpu([native])
    native.left.clear()
    fake_card.fake_card(48 * GB)
    equal = all(torch.equal(*pair) for pair in zip(run_ours(*parts), expected, strict=True))
    gc.collect()
    found["devices"].append(sorted({str(one.device) for one in mm.current_loaded_models if one.model is not native}))
    return {**found, "equal": equal}


def run_ours(encoder, model, vae):
    prompts = nodes["LTXKitEncodePrompt"]().run(encoder, "a red ball", "blurry", 24.0)
    latent = sample(model, prompts, 1)
    return latent, nodes["LTXKitDecodeVideo"]().run({"samples": latent}, vae, 0.05, 0.025, 0)[0]


def kept_on_request():
    """`--highvram`: what is done stays on the card."""
    found = {}
    for state in ("NORMAL_VRAM", "HIGH_VRAM"):
        parts = models()
        fake_card.fake_card(48 * GB)
        mm.vram_state = mm.VRAMState[state]
        run_ours(*parts)
        found[state] = sum(one.model_loaded_memory() for one in mm.current_loaded_models)
        mm.unload_all_models()
    return found


def recognised():
    """Core's RAM cache knows our handles as models."""
    from comfy.model_patcher import is_model_patcher_output

    inputs = {"dtype": "auto", "version": "from the file", "vae_name": "in the model file", "model_name": NAMES[0]}
    outputs = [*nodes["LTXKitLoadModel"]().execute(**inputs)]
    outputs += nodes["LTXKitLoadTextEncoder"]().execute(text_encoder_name="t5-tiny", dtype="auto", keep_on_device=False)
    return [is_model_patcher_output(output) for output in outputs]


def flags():
    """The types of transformer, VAE and text encoder under each launch flag, where the widget says auto and fp32."""
    found = {"unknown": [name for name in options() if not hasattr(args, name)]}
    for name in ("", *FLAGS):
        if name:
            setattr(args, name, True)
        found[name or "none"] = [dtypes("auto"), dtypes("fp32")]
        if name:
            setattr(args, name, False)
    return found


FLAGS = ("force_fp32", "bf16_unet", "fp16_unet", "fp8_e4m3fn_unet", "bf16_vae", "fp16_vae", "fp32_vae")
FLAGS += ("fp8_e4m3fn_text_enc", "fp32_text_enc", "use_sage_attention")


def options():
    own = (launch._DTYPES, launch._QUANTIZATIONS)
    return [*launch._WITHOUT_EFFECT, *(name for table in own for names in table.values() for name in names)]


def dtypes(widget):
    model, vae = nodes["LTXKitLoadModel"]().run(NAMES[0], "in the model file", widget, "from the file")
    (encoder,) = nodes["LTXKitLoadTextEncoder"]().run("t5-tiny", widget, False)
    quantized = [any("Float8" in type(part).__name__ for part in m.modules()) for m in (model.module, encoder.module)]
    first = [next(module.parameters()).dtype for module in (model.module, vae, encoder.module)]
    return [str(dtype).removeprefix("torch.") for dtype in first], quantized


def intermediates():
    """`--fp16-intermediates`: what leaves our nodes, and that it may come back."""
    args.fp16_intermediates = True
    parts = models()
    fake_card.fake_card(24 * GB)
    prompts = nodes["LTXKitEncodePrompt"]().run(parts[0], "a red ball", "blurry", 24.0)
    latent, frames = run_ours(*parts)
    encoded = nodes["LTXKitEncodeVideo"]().run(frames, parts[2], 24.0)[0]["samples"]
    args.fp16_intermediates = False
    return [str(tensor.dtype) for tensor in (prompts[0][0][0], latent, frames, encoded)]


def answer(scenario):
    """In a child: the answer to stdout, and the end of the process."""
    status = 1
    mm.vram_state = mm.VRAMState.NORMAL_VRAM
    try:
        with torch.inference_mode():
            print(f"found: {json.dumps(globals()[scenario]())}", flush=True)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


# What every scenario would import, or go through with the garbage collector at each of its runs, once for all of them.
load(NAMES[0])
load_text_encoder()
gc.collect()
gc.freeze()
sys.stdout.flush()  # what core has printed
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        answer(line.strip())
    if os.waitpid(child, 0)[1]:
        print("found: null", flush=True)

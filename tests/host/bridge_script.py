"""Runs in a single process of ComfyUI's interpreter: our models in ComfyUI's own samplers, and its models in our nodes.

Each function below is one check and returns its findings; the script prints all as one line of JSON, by name. What
raises an LTXKitError is reported with its message. Arguments: ComfyUI's folder, the pack, the models folder, a folder
for the LoRAs that are made here, the checks.
"""

# ruff: noqa: E402, T201

import gc
import importlib.util
import json
import sys
import types
from pathlib import Path

comfy_root, pack, models, scratch, *checks = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, comfy_root)

from comfy.cli_args import args

args.cpu = True  # otherwise the next import would look for a driver

import utils.install_util  # noqa: F401  # as main.py does: later another package puts its own `utils` first
import comfy.ldm.lightricks.vae.causal_video_autoencoder as native_vae_module
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.text_encoders.lt
import comfy.utils
import comfy_extras.nodes_easycache
import comfy_extras.nodes_torch_compile
import folder_paths
import torch
from comfy import model_management as mm

folder_paths.models_dir = models
for kind, (folders, _) in list(folder_paths.folder_names_and_paths.items()):
    folders[:] = [scratch if kind == "loras" else str(Path(models) / kind)]

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


def native_model(name=CHECKPOINT, dtype=torch.float32, without=()):
    """ComfyUI's own MODEL of a file. without: what its metadata do not say."""
    state, header = comfy.utils.load_torch_file(str(Path(models) / "checkpoints" / name), return_metadata=True)
    state = {key: value.to(dtype) for key, value in state.items() if key.startswith("model.diffusion_model.")}
    config = json.loads(header["config"])
    config["transformer"] = {key: value for key, value in config["transformer"].items() if key not in without}
    return comfy.sd.load_state_dict_guess_config(
        state,
        output_vae=False,
        output_clip=False,
        model_options={"dtype": dtype},
        metadata={"config": json.dumps(config)},
    )[0]


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


def easycache():
    """EasyCache at threshold 0 changes nothing, and has run in every step; at a high one it skips steps."""
    handle, _ = load()
    node = comfy_extras.nodes_easycache.EasyCacheNode
    steps = []
    kept = comfy_extras.nodes_easycache.EasyCacheHolder.update_cache_diff

    def counted(holder, *inputs):
        steps.append(holder)
        return kept(holder, *inputs)

    comfy_extras.nodes_easycache.EasyCacheHolder.update_cache_diff = counted
    cached = native(node.execute(to_native(handle), 0.0, 0.0, 1.0, False)[0])
    found = {"apart": apart(cached, ours(handle)), "steps": len(steps)}
    steps.clear()
    found["skipping"] = apart(native(node.execute(to_native(handle), 3.0, 0.0, 1.0, False)[0]), cached)
    return {**found, "steps when skipping": len(steps)}


def write_loras():
    """A file of factors with alpha, one of DoRA, one of whole differences of weights and biases."""
    width, layers, rank = 64, 28, 4
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return 0.1 * torch.randn(*shape, generator=generator)

    kinds = {"factors": {}, "dora": {}, "differences": {}}
    for layer in range(0, layers, 3):
        for name in ("attn1.to_q", "attn2.to_v", "attn1.to_out.0"):
            stem = f"diffusion_model.transformer_blocks.{layer}.{name}"
            for kind in ("factors", "dora"):
                kinds[kind][f"{stem}.lora_A.weight"] = draw(rank, width)
                kinds[kind][f"{stem}.lora_B.weight"] = draw(width, rank)
            kinds["factors"][f"{stem}.alpha"] = torch.tensor(2.0 * rank)
            kinds["dora"][f"{stem}.dora_scale"] = 1 + draw(width, 1)
            kinds["differences"][f"{stem}.diff"] = draw(width, width)
            kinds["differences"][f"{stem}.diff_b"] = draw(width)
        kinds["differences"][f"diffusion_model.transformer_blocks.{layer}.attn1.q_norm.diff"] = draw(width)
    for kind, tensors in kinds.items():
        path = Path(scratch) / f"{kind}.safetensors"
        comfy.utils.save_torch_file(tensors, str(path))
        yield path


def native_lora():
    """LoraLoaderModelOnly on our model is our LoRA node on it; with a file of factors, of DoRA, of differences."""
    from nodes import LoraLoaderModelOnly

    found = {}
    handle, _ = load()
    plain = ours(handle)
    for name in sorted(path.name for path in write_loras()):
        (mine,) = nodes["LTXKitApplyLoRA"]().run(handle, name, 0.8, False, "automatic")
        expected = ours(mine)
        loaded = LoraLoaderModelOnly().load_lora_model_only(to_native(handle), name, 0.8)[0]
        found[name] = {
            "effect": apart(expected, plain),
            "native node": apart(native(loaded), expected),
            "patches": len(loaded.patches),
            "our LoRA carried over": apart(native(to_native(mine)), expected),
            "taken back": apart(ours(from_native(loaded)), expected),
        }
    found["afterwards"] = apart(native(to_native(handle)), plain)
    found["shared"] = pointers(to_native(handle).model.diffusion_model) == pointers(handle.transformer)
    return found


def torch_compile():
    """TorchCompileModel compiles our blocks' native modules and gives the same."""
    import torch._dynamo.utils as dynamo

    handle, _ = load()
    model = comfy_extras.nodes_torch_compile.TorchCompileModel.execute(to_native(handle), "inductor")[0]
    result = native(model)
    return {"apart": apart(result, ours(handle)), "graphs": dynamo.counters["stats"]["unique_graphs"]}


def attention_patches():
    """An attention override (as SageAttention nodes set it) and a replaced block (as STG nodes set it) are called."""
    handle, _ = load()
    calls = {"attention": 0, "block": 0}
    model = to_native(handle).clone()

    def attention(function, *inputs, **options):
        calls["attention"] += 1
        return function(*inputs, **options)

    def block(inputs, extra):
        calls["block"] += 1
        return extra["original_block"](inputs)

    model.model_options["transformer_options"]["optimized_attention_override"] = attention
    model.set_model_patch_replace(block, "dit", "double_block", 3)
    found = {"apart": apart(native(model), ours(handle)), **calls}
    model.set_model_patch_replace(lambda inputs, extra: {"img": inputs["img"]}, "dit", "double_block", 3)
    return {**found, "skipped block": apart(native(model), ours(handle))}


def native_schedule():
    """Levels of LTXVScheduler, of a scheduler that reads the model, and of ModelSamplingLTXV."""
    from comfy_extras.nodes_lt import LTXVScheduler, ModelSamplingLTXV

    global SIGMAS
    handle, _ = load()
    levels = LTXVScheduler.execute(4, 2.05, 0.95, True, 0.1, empty())[0]
    kept, SIGMAS = SIGMAS, levels
    found = {"apart": apart(native(to_native(handle), levels), ours(handle)), "levels": levels.tolist()}
    SIGMAS = kept
    shifted = ModelSamplingLTXV.execute(to_native(handle), 2.05, 0.95, empty())[0]
    plain, moved = (comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
                    for model in (to_native(handle), shifted))  # fmt: skip
    found["shift"] = float((plain - moved).abs().max())
    return found


def context_windows():
    """Core's context windows are asked for by the model."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    node = getattr(__import__("comfy_extras.nodes_context_windows", fromlist=["x"]), "LTXVContextWindowsNode", None)
    handle, _ = load()
    whole = native(to_native(handle))
    windows = []
    import comfy.context_windows

    kept = comfy.context_windows.IndexListContextHandler.evaluate_context_windows

    def counted(*inputs, **options):
        windows.append(1)
        return kept(*inputs, **options)

    comfy.context_windows.IndexListContextHandler.evaluate_context_windows = counted
    del node
    model = ContextWindowsManualNode.execute(
        to_native(handle), context_length=2, context_overlap=1, context_schedule="standard_static", context_stride=1,
        closed_loop=False, fuse_method="pyramid", dim=2, freenoise=False,
    )[0]  # fmt: skip
    return {"apart": apart(native(model), whole), "windows": len(windows)}


def other_models():
    """bf16 weights, 13B, another scale of the VAE: computed natively as by us."""
    found = {}
    handle, _ = load(dtype="auto")
    model = to_native(handle)
    found["bf16"] = apart(native(model), ours(handle))
    found["bf16 shared"] = pointers(model.model.diffusion_model) == pointers(handle.transformer)
    found["bf16 type"] = str(model.model.diffusion_model.dtype)
    handle, _ = load("ltxv-13b-0.9.7-dev.safetensors")
    found["13b"] = apart(native(to_native(handle)), ours(handle))
    handle, _ = load("ltxv-tiny-16x4.safetensors")
    native_part = to_native(handle).model.diffusion_model
    found["scale"] = list(native_part.vae_scale_factors)
    found["channels"] = native_part.patchify_proj.in_features
    return found


def native_in_ours():
    """ComfyUI's model in our Sample: its weights, and what its own KSampler makes."""
    model = native_model()
    before = pointers(model.model.diffusion_model)
    handle = from_native(model)
    found = {"sample": apart(ours(handle), native(model))}
    found["shared"] = pointers(handle.transformer) == before == pointers(model.model.diffusion_model)
    found["versions"] = list(handle.info.versions)
    found["causal"] = handle.transformer.config.causal_temporal_positioning
    found["said"] = list(said)
    said.clear()
    model = native_model(without=("causal_temporal_positioning",))  # whose positions core then computes in its own way
    handle = from_native(model)
    found["without metadata"] = apart(ours(handle), native(model))
    found["without metadata, causal"] = handle.transformer.config.causal_temporal_positioning
    found["without metadata, said"] = list(said)
    back = to_native(from_native(model))
    found["there and back"] = apart(native(back), native(model))
    found["there and back shared"] = pointers(back.model.diffusion_model) == pointers(model.model.diffusion_model)
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

"""Runs in a single process of ComfyUI's interpreter: our models in ComfyUI's own samplers, and its models in our nodes.

Each function below is one check and returns its findings; the script prints all as one line of JSON, by name. What
raises an LTXKitError is reported with its message. Arguments: ComfyUI's folder, the pack, the models folder, a folder
for the LoRAs that are made here, the checks.
"""

# ruff: noqa: E402, T201

import functools
import gc
import importlib.util
import inspect
import json
import sys
import types
from dataclasses import replace
from pathlib import Path

comfy_root, pack, models, scratch, *checks = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, comfy_root)

from comfy.cli_args import args

args.cpu = True  # otherwise the next import would look for a driver

import comfy.ldm.lightricks.vae.causal_video_autoencoder as native_vae_module
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.flux
import comfy.text_encoders.lt
import comfy.text_encoders.t5
import comfy.utils
import comfy_extras.nodes_easycache
import comfy_extras.nodes_torch_compile
import folder_paths
import torch
import utils.install_util  # noqa: F401  # as main.py does: later another package puts its own `utils` first
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
    with NarrowVAEs(width["encoder"], width["decoder"]):
        return comfy.sd.VAE(sd=state, metadata={"config": json.dumps({"vae": stated})}, dtype=torch.float32)


class NarrowVAEs:
    """Inside, core's VAE has these widths."""

    def __init__(self, encoder, decoder):
        self.widths = encoder, decoder

    def __enter__(self):
        self.classes = native_vae_module.Encoder, native_vae_module.Decoder
        encoder, decoder = self.classes
        native_vae_module.Encoder = functools.partial(encoder, base_channels=self.widths[0])
        native_vae_module.Decoder = functools.partial(decoder, base_channels=self.widths[1])
        if "encoder_base_channels" in Path(native_vae_module.__file__).read_text(
            encoding="utf-8"
        ):  # this core reads it from the file
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
            "taken back": apart(ours(from_native(loaded)), native(loaded)),
        }
    found["afterwards"] = apart(native(to_native(handle)), plain)
    found["shared"] = pointers(to_native(handle).model.diffusion_model) == pointers(handle.transformer)
    return found


def first_blocks(handle, count=3):
    """The compiler takes as long for every block, and they are alike."""
    del handle.transformer.transformer_blocks[count:]
    handle.transformer.config = replace(handle.transformer.config, num_layers=count)
    return handle


def torch_compile(inductor=False):
    """TorchCompileModel compiles the native modules over our weights, with the same result."""
    import torch._dynamo.utils as dynamo
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1  # or it would start processes, which import torch
    handle = first_blocks(load()[0])
    backend = "inductor" if inductor else "aot_eager"
    model = comfy_extras.nodes_torch_compile.TorchCompileModel.execute(to_native(handle), backend)[0]
    result = native(model)
    return {"apart": apart(result, ours(handle)), "graphs": dynamo.counters["stats"]["unique_graphs"]}


def torch_compile_with_inductor():
    return torch_compile(inductor=True)


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
    """Core's context windows take the model for itself."""
    import comfy.context_windows

    handle, _ = load()
    whole = native(to_native(handle))
    windows = []
    kept = comfy.context_windows.IndexListContextHandler.evaluate_context_windows

    def counted(*inputs, **options):
        windows.append(1)
        return kept(*inputs, **options)

    comfy.context_windows.IndexListContextHandler.evaluate_context_windows = counted
    (model,) = with_windows(to_native(handle))
    return {"apart": apart(native(model), whole), "windows": len(windows)}


def with_windows(model):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    options = {
        "context_length": 2, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1,
        "closed_loop": False, "fuse_method": "pyramid", "dim": 2, "freenoise": False,
    }  # fmt: skip
    taken = inspect.signature(ContextWindowsManualNode.execute).parameters  # older cores have fewer
    node = ContextWindowsManualNode.execute(model, **{name: value for name, value in options.items() if name in taken})
    return (node[0],)


def other_models():
    """bf16 weights, 13B, another scale of the VAE: computed natively as by us."""
    found = {}
    handle, _ = load(dtype="auto")
    model = to_native(handle)
    found["bf16"] = apart(native(model), native(native_model(dtype=torch.bfloat16)))
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
    said.clear()
    model = native_model(without=("causal_temporal_positioning",))  # whose positions core then computes in its own way
    handle = from_native(model)
    found["without metadata, versions"] = list(handle.info.versions)
    found["without metadata, said"] = list(said)
    found["without metadata"] = apart(ours(handle), native(model))
    found["without metadata, causal"] = handle.transformer.config.causal_temporal_positioning
    back = to_native(from_native(model))
    found["there and back"] = apart(native(back), native(model))
    found["there and back shared"] = pointers(back.model.diffusion_model) == pointers(model.model.diffusion_model)
    return found


def refusal(convert, *inputs):
    try:
        convert(*inputs)
    except LTXKitError as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def refused_models():
    """What a MODEL cannot bring along, by what it says."""
    from comfy_extras.nodes_lt import ModelSamplingLTXV

    found = {}

    def patched(name, patch, *inputs, **options):
        model = native_model_once().clone()
        result = patch(model, *inputs, **options)
        found[name] = refusal(from_native, model if result is None else result)

    patched("easycache", lambda m: comfy_extras.nodes_easycache.EasyCacheNode.execute(m, 0.2, 0.15, 0.95, False)[0])
    patched("compile", lambda m: comfy_extras.nodes_torch_compile.TorchCompileModel.execute(m, "inductor")[0])
    patched("sampling", lambda m: ModelSamplingLTXV.execute(m, 2.05, 0.95)[0])
    patched("windows", lambda m: with_windows(m)[0])
    patched("cfg function", lambda m: m.set_model_sampler_cfg_function(lambda inputs: inputs["cond"]))
    patched("post cfg", lambda m: m.set_model_sampler_post_cfg_function(lambda inputs: inputs["denoised"]))
    patched("unet wrapper", lambda m: m.set_model_unet_function_wrapper(lambda apply, inputs: None))
    patched("mask function", lambda m: m.set_model_denoise_mask_function(lambda *inputs: None))
    patched("attention", lambda m: m.set_model_attn1_patch(lambda *inputs: None))
    patched("block", lambda m: m.set_model_patch_replace(lambda *inputs: None, "dit", "double_block", 3))
    patched("object", lambda m: m.add_object_patch("diffusion_model.proj_out", torch.nn.Identity()))
    patched("weight wrapper", lambda m: m.add_weight_wrapper("diffusion_model.proj_out.weight", lambda weight: weight))
    patched("injection", lambda m: m.set_injections("adapter", [types.SimpleNamespace()]))
    patched("additional", lambda m: m.set_additional_models("control", [native_model_once().clone()]))
    patched("hooks", lambda m: m.hook_patches.update({"ref": {"diffusion_model.proj_out.weight": [1]}}))
    patched("callback", lambda m: m.add_callback("on_load_after", print))
    found["nothing"] = refusal(from_native, native_model_once().clone())
    return found


def native_model_once(made={}):  # noqa: B006
    if not made:
        made[0] = native_model()
    return made[0]


def other_classes():
    """MODELs of other classes, VAEs of other kinds, weights that are no plain tensors, quantized ones of ours."""
    found = {"none": refusal(from_native, None)}
    import comfy.model_base

    model = native_model()
    model.model.__class__ = comfy.model_base.HunyuanVideo
    found["another family"] = refusal(from_native, model)
    model = native_model()
    model.model.diffusion_model.__class__ = type("PatchedLTXVModel", (type(model.model.diffusion_model),), {})
    found["another pack's class"] = refusal(from_native, model)

    class GGMLTensor(torch.nn.Parameter):
        pass

    model = native_model()
    part = model.model.diffusion_model.proj_out
    part.weight = GGMLTensor(part.weight.data, requires_grad=False)
    found["another pack's tensor"] = refusal(from_native, model)
    handle, _ = load(quantization="int8")
    found["our int8"] = refusal(to_native, handle)
    found["wrong type"] = refusal(to_native, native_model())
    _, other = load("ltxv-tiny-16x4.safetensors")
    found["our other VAE"] = refusal(nodes["LTXKitConvertVAEToNative"]().run, other)
    taesd = types.SimpleNamespace(first_stage_model=torch.nn.Conv2d(3, 3, 1), patcher=None)
    found["another VAE"] = refusal(nodes["LTXKitConvertVAEFromNative"]().run, taesd)
    config = handle.transformer.config
    for name, value in (("norm_eps", 1e-5), ("out_channels", 64)):
        handle, _ = load()
        handle.transformer.config = replace(config, **{name: value})
        found[f"our {name}"] = refusal(to_native, handle)
    return found


def native_clip(kind="ltxv", family=None):
    """ComfyUI's CLIP with the tiny T5, whose vocabulary is that of the real one, and the file of that T5."""
    folder = Path(models) / "text_encoders" / "t5-tiny"
    state = comfy.utils.load_torch_file(str(folder / "model.safetensors"))
    state = {key: value.float() for key, value in state.items()}
    generator = torch.Generator().manual_seed(1)
    state["shared.weight"] = torch.randn(32128, state["shared.weight"].shape[1], generator=generator)
    state.pop("encoder.embed_tokens.weight", None)
    path = Path(scratch) / "t5-tiny-32128.safetensors"
    if not path.exists():
        comfy.utils.save_torch_file(state, str(path))
    config = json.loads((folder / "config.json").read_text())
    sizes = {name: config[name] for name in ("d_model", "d_kv", "d_ff", "num_layers", "num_heads")}
    options = {"dtype": torch.float32, "t5xxl_model_config": sizes}
    if kind == "ltxv":
        clip, tokenizer = comfy.text_encoders.lt.ltxv_te(), comfy.text_encoders.lt.LTXVT5Tokenizer
    elif kind == "flux":
        clip, tokenizer = comfy.text_encoders.flux.flux_clip(), comfy.text_encoders.flux.FluxTokenizer
    else:
        clip, tokenizer = comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer
    target = types.SimpleNamespace(params={}, clip=clip, tokenizer=tokenizer)
    clip = comfy.sd.CLIP(target, model_options=options)
    for part in clip.cond_stage_model.modules():
        if isinstance(part, comfy.text_encoders.t5.T5):
            part.load_state_dict(state, strict=False)
    return clip, path


def from_clip(clip, **options):
    return nodes["LTXKitConvertTextEncoderFromNative"]().run(clip, False, **options)[0]


def the_t5(clip):
    return next(part for part in clip.cond_stage_model.modules() if isinstance(part, comfy.text_encoders.t5.T5))


def text_encoders():
    """The T5 of a native CLIP, of two families: shared, and with the text of our own loader."""
    from ltxkit.ltx_core.weights.text_encoder import load_text_encoder

    text = "a red ball rolls"
    found = {}
    for kind in ("ltxv", "flux"):
        clip, path = native_clip(kind)
        handle = from_clip(clip)
        theirs, own = pointers(the_t5(clip)), pointers(handle.encoder.model)
        found[f"{kind} shared"] = all(own[name] == pointer for name, pointer in theirs.items() if name in own)
        found[f"{kind} weights"] = len(own)
        encoded = nodes["LTXKitEncodePrompt"]().run(handle, text, "blurry", 24.0)
        loaded = types.SimpleNamespace(encoder=load_text_encoder(path, host_tokenizers=ComfyUIHost().tokenizers()))
        mine = module.nodes.sockets.Encoder(loaded.encoder, False)
        expected = nodes["LTXKitEncodePrompt"]().run(mine, text, "blurry", 24.0)
        found[f"{kind} equal"] = torch.equal(encoded[0][0][0], expected[0][0][0])
        if kind == "ltxv":
            ((cond, values),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
            mask = values["attention_mask"].bool()
            found["native encoding"] = apart(encoded[0][0][0][:, : cond.shape[1]][mask], cond[mask])
    clip, _ = native_clip()
    key = next(key for key in clip.patcher.model_state_dict() if key.endswith("0.SelfAttention.q.weight"))
    clip = clip.clone()
    clip.add_patches({key: ("diff", (torch.ones_like(clip.patcher.model_state_dict()[key]),))}, 0.5)
    said.clear()
    patched = from_clip(clip)
    name = key[key.index("encoder.block") :]
    found["patched"] = apart(patched.encoder.model.get_parameter(name) - 0.5, the_t5(clip).get_parameter(name))
    found["said"] = list(said)
    return found


def refused_text_encoders():
    found = {}
    clip, _ = native_clip()
    layered = clip.clone()
    layered.clip_layer(-2)
    found["layer"] = refusal(from_clip, layered)
    optioned = clip.clone()
    optioned.tokenizer_options["t5xxl_min_length"] = 300
    found["tokenizer options"] = refusal(from_clip, optioned)
    hooked = clip.clone()
    hooked.apply_hooks_to_conds = object()
    found["hooks"] = refusal(from_clip, hooked)
    forced = clip.clone()
    forced.patcher.forced_hooks = types.SimpleNamespace(clone=lambda: None)
    found["forced hooks"] = refusal(from_clip, forced)
    found["no T5"] = refusal(from_clip, native_clip("sd1")[0])
    found["not a CLIP"] = refusal(from_clip, native_model())
    umt5, _ = native_clip()
    block = the_t5(umt5).encoder.block[1].layer[0].SelfAttention
    block.relative_attention_bias = the_t5(umt5).encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    found["umt5"] = refusal(from_clip, umt5)
    handle, _ = load("ltxv-13b-0.9.7-dev.safetensors")
    found["fitting width"] = refusal(lambda: from_clip(clip, model=handle))
    handle.transformer.config = replace(handle.transformer.config, caption_channels=4096)
    found["wrong width"] = refusal(lambda: from_clip(clip, model=handle))
    return found


def decoded(vae, latent):
    return nodes["LTXKitDecodeVideo"]().run({"samples": latent}, vae, 0.05, 0.025, 0)[0]


def vaes():
    """ComfyUI's VAE as ours and ours as ComfyUI's: each pads as its owner does."""
    generator = torch.Generator().manual_seed(2)
    latent = torch.randn(1, 128, 3, 3, 2, generator=generator)
    name = "ltxv-tiny-0.9.0.safetensors"
    _, mine = load(name)
    plain = decoded(mine, latent)
    found = {}
    for case, config in {
        "stated": {},
        "not stated": {"spatial_padding_mode": None},
        "replicate": {"spatial_padding_mode": "replicate"},
    }.items():
        native = native_vae(name, **config)
        (vae,) = nodes["LTXKitConvertVAEFromNative"]().run(native)
        frames = native.decode(latent)[0]
        encoded = native.encode(plain)
        own = nodes["LTXKitEncodeVideo"]().run(plain, vae, 24.0)[0]["samples"]
        theirs = {name: parameter.data_ptr() for name, parameter in native.first_stage_model.named_parameters()}
        found[case] = {
            "decode": apart(decoded(vae, latent), frames),
            "encode": apart(own, encoded),
            "shared": all(pointers(vae)[key] == pointer for key, pointer in theirs.items()),
            "padding": vae.config.spatial_padding_mode,
            "from the file": apart(frames, plain),
        }
    with NarrowVAEs(mine.config.encoder_base_channels, mine.config.decoder_base_channels):
        (back,) = nodes["LTXKitConvertVAEToNative"]().run(mine)
    parameters = {name: parameter.data_ptr() for name, parameter in back.first_stage_model.named_parameters()}
    found["ours in native"] = {
        "decode": apart(back.decode(latent)[0], plain),
        "encode": apart(back.encode(plain), nodes["LTXKitEncodeVideo"]().run(plain, mine, 24.0)[0]["samples"]),
        "shared": all(pointers(mine)[name] == pointer for name, pointer in parameters.items()),
    }
    for generation in ("ltxv-tiny.safetensors", "ltxv-2b-0.9.8-distilled.safetensors"):  # draws noise: weights alone
        (vae,) = nodes["LTXKitConvertVAEFromNative"]().run(native_vae(generation))
        _, own = load(generation)
        found[generation] = apart(decoded(vae, latent), decoded(own, latent))
    patched = native_vae(name)
    patched.patcher.add_object_patch("decoder.conv_out", torch.nn.Identity())
    found["patched"] = refusal(nodes["LTXKitConvertVAEFromNative"]().run, patched)
    _, mine = load(name)
    found["width"] = refusal(nodes["LTXKitConvertVAEToNative"]().run, mine)
    return found


def fake_card():
    """On a card with its own memory, weights are in main memory once after unloading, on both sides."""
    handle, _ = load()
    free = 2**40
    mm.get_free_memory = lambda device=None, torch_free_too=False: (free, free) if torch_free_too else free
    mm.get_torch_device = mm.vae_device = mm.text_encoder_device = lambda: DEVICE
    mm.unet_offload_device = mm.vae_offload_device = lambda: CPU
    mm.is_device_cpu = lambda device: device == CPU
    mm.soft_empty_cache = lambda force=False: None
    before = pointers(handle.transformer)
    expected = ours(handle)
    model = to_native(handle)
    found = {"converted while on the card": pointers(model.model.diffusion_model) == before}
    found["native"] = apart(native(model), expected)
    found["loaded"] = str(model.current_loaded_device())
    found["ours again"] = apart(ours(handle), expected)
    mm.unload_all_models()
    found["shared after unloading"] = pointers(model.model.diffusion_model) == before == pointers(handle.transformer)
    other = native_model()
    native(other)
    taken = from_native(other)
    found["theirs taken while on the card"] = pointers(taken.transformer) == pointers(other.model.diffusion_model)
    own = pointers(taken.transformer)
    found["theirs"] = apart(ours(taken), expected)
    native(other)
    mm.unload_all_models()
    found["theirs shared after unloading"] = pointers(other.model.diffusion_model) == own == pointers(taken.transformer)
    return found


def mixed_precision():
    """A model that core has loaded in its own fp8 format."""
    state, header = comfy.utils.load_torch_file(str(Path(models) / "checkpoints" / CHECKPOINT), return_metadata=True)
    prefix = "model.diffusion_model."
    state = {key: value for key, value in state.items() if key.startswith(prefix)}
    for key in [key for key in state if ".attn1.to_q.weight" in key]:
        state[key] = state[key].to(torch.float8_e4m3fn)
        state[f"{key}_scale"] = torch.tensor(1.0)
        text = json.dumps({"format": "float8_e4m3fn"}).encode()
        state[key.replace(".weight", ".comfy_quant")] = torch.tensor(list(text), dtype=torch.uint8)
    try:
        model = comfy.sd.load_state_dict_guess_config(state, output_vae=False, output_clip=False, metadata=header)[0]
    except Exception as error:  # this core does not read the format
        return {"core": type(error).__name__}
    return {"refused": refusal(from_native, model), "core": "reads it"}


def hooks():
    """A LoRA as a hook on the prompts: core changes weights while it samples, and ours are as before afterwards."""
    import comfy.hooks

    global PROMPTS
    handle, _ = load()
    before = {name: tensor.clone() for name, tensor in handle.transformer.state_dict().items()}
    path = next(path for path in write_loras() if path.stem == "factors")
    (mine,) = nodes["LTXKitApplyLoRA"]().run(handle, path.name, 0.8, False, "automatic")
    expected = ours(mine)
    hook = comfy.hooks.create_hook_lora(comfy.utils.load_torch_file(str(path)), 0.8, 0.0)
    kept = PROMPTS
    PROMPTS = [comfy.hooks.set_hooks_for_conditioning(prompt, hook) for prompt in kept]
    try:
        result = native(to_native(handle))
    finally:
        PROMPTS = kept
    after = handle.transformer.state_dict()
    return {
        "apart": apart(result, expected),
        "unchanged": all(torch.equal(after[name], tensor) for name, tensor in before.items()),
        "afterwards": apart(native(to_native(handle)), ours(handle)),
    }


def small_types():
    """Weights in fp8 and T5 in 16 bits: shared as they are."""
    model = native_model(dtype=torch.float8_e4m3fn)
    handle = from_native(model)
    theirs = set(pointers(model.model.diffusion_model).values())
    tensors = handle.transformer.state_dict().items()
    large = {tensor.data_ptr() for name, tensor in tensors if tensor.ndim == 2 and "table" not in name}
    found = {"fp8": apart(ours(handle), native(model)), "fp8 shared": len(theirs & large) / len(large)}
    for dtype in (torch.float16, torch.bfloat16):
        clip, _ = native_clip()
        the_t5(clip).to(dtype)
        encoder = from_clip(clip).encoder.model
        own = pointers(encoder)
        found[f"{dtype} shared"] = all(own[name] == pointer for name, pointer in pointers(the_t5(clip)).items())
        reference, _ = native_clip()
        expected = nodes["LTXKitEncodePrompt"]().run(from_clip(reference), "a red ball", "", 24.0)[0][0][0]
        result = nodes["LTXKitEncodePrompt"]().run(from_clip(clip), "a red ball", "", 24.0)[0][0][0]
        found[f"{dtype}"] = apart(result, expected)
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

"""VAEs whose weights are quantized: alone, in a whole checkpoint, in every container. They load as plain numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.quant.linear import QuantizedLinear
from ltxkit.ltx_core.weights.build import load_transformer, load_vae, open_models
from ltxkit.ltx_core.weights.convert import convert
from ltxkit.ltx_core.weights.layouts import vae_from_diffusers
from ltxkit.ltx_core.weights.report import inspect
from ltxkit.ltx_core.weights.tiny import CHECKPOINT

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
State = dict[str, Tensor]
MULTIPLIER = "decoder.timestep_scale_multiplier"


def is_weight(key: str, tensor: Tensor) -> bool:
    return key.endswith(".weight") and tensor.ndim in (2, 5)


def cast(dtype: torch.dtype, *, weights_only: bool = False) -> Callable[[State], tuple[State, State]]:
    def store(state: State) -> tuple[State, State]:
        stored = {k: t if weights_only and not is_weight(k, t) else t.to(dtype) for k, t in state.items()}
        return stored, {key: tensor.float() for key, tensor in stored.items()}

    return store


def scaled(dtype: torch.dtype, shape: str) -> Callable[[State], tuple[State, State]]:
    """ComfyUI's form of 2025 on convolutions, too; shape of the scales: "()", "(n,)", "(n, 1, ...)"."""

    def store(state: State) -> tuple[State, State]:
        stored, weights = {"scaled_fp8": torch.empty(0, dtype=E4M3)}, {}
        for key, tensor in state.items():
            stored[key] = weights[key] = tensor.float()
            if is_weight(key, tensor):
                axes = () if shape == "()" else tuple(range(1, tensor.ndim))
                largest = tensor.float().abs().amax(axes, keepdim=True) if axes else tensor.float().abs().amax()
                scale = largest / (127 if dtype == torch.int8 else torch.finfo(dtype).max)
                stored[key] = (tensor.float() / scale).to(dtype)
                stored[f"{key.removesuffix('weight')}scale_weight"] = scale.flatten() if shape == "(n,)" else scale
                weights[key] = stored[key].float() * scale
        return stored, weights

    return store


def quanto(state: State) -> tuple[State, State]:
    """optimum-quanto quantizes Linears, and convolutions in two dimensions."""
    stored, weights = {}, {}
    for key, tensor in state.items():
        stored[key] = weights[key] = tensor.float()
        if tensor.ndim == 2 and key.endswith(".weight"):
            scale = tensor.float().abs().amax(1, keepdim=True) / 127
            del stored[key]
            stored[f"{key}._data"], stored[f"{key}._scale"] = (tensor.float() / scale).round().to(torch.int8), scale
            weights[key] = stored[f"{key}._data"].float() * scale
    return stored, weights


STORAGES: dict[str, tuple[str, Callable[[State], tuple[State, State]]]] = {
    "e4m3": ("fp8", cast(E4M3)),
    "e5m2": ("fp8", cast(E5M2)),
    "weights in e4m3": ("fp8", cast(E4M3, weights_only=True)),
    "scaled by tensor": ("fp8", scaled(E4M3, "()")),
    "scaled by row": ("fp8", scaled(E4M3, "(n, 1, ...)")),
    "scaled int8": ("fp8", scaled(torch.int8, "(n,)")),
    "quanto": ("quanto", quanto),
}


@pytest.fixture(scope="module")
def source(tiny_models: Callable[..., Path]) -> Path:
    return tiny_models() / CHECKPOINT


def vae_state(source: Path) -> State:
    unused = ("mean-of-stds", "mean-of-stds_over_std-of-means", "channel")
    return {
        key.removeprefix("vae."): tensor
        for key, tensor in load_file(source).items()
        if key.startswith("vae.") and not key.endswith(unused)
    }


def config_of(source: Path, *parts: str) -> dict[str, str]:
    with safe_open(source, "pt") as file:
        config = json.loads(file.metadata()["config"])
    return {"config": json.dumps({part: config[part] for part in parts})}


def decoded(vae: VideoVAE) -> Tensor:
    latent = torch.randn(1, 128, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([0.05]) if vae.config.timestep_conditioning else None
    with torch.no_grad():
        return vae.decode(latent, timestep, generator=torch.Generator().manual_seed(1)).float()


def with_weights(source: Path, weights: State) -> VideoVAE:
    vae = load_vae(source, dtype=torch.float32)
    missing = vae.load_state_dict(weights, strict=True)
    assert not missing.missing_keys
    return vae


def check(path: Path, source: Path, weights: State, quantization: str | None) -> None:
    exact = with_weights(source, weights | {MULTIPLIER: torch.tensor(1000.0)})
    vae = load_vae(path, dtype=torch.float32, version="2b-0.9.5")
    assert inspect(path)["quantization"] == quantization
    assert not any(isinstance(module, QuantizedLinear) for module in vae.modules())
    for key, tensor in vae.state_dict().items():
        assert (tensor - exact.state_dict()[key]).abs().max() <= 1e-6 * (1 + exact.state_dict()[key].abs().max()), key
    assert (decoded(vae) - decoded(exact)).abs().max() <= 1e-5
    default = load_vae(path, version="2b-0.9.5")  # in the dtype of a plain file
    assert torch.isfinite(decoded(default)).all()
    shapes = open_models(path, version="2b-0.9.5", data=False).vae()
    assert {key: t.dtype for key, t in shapes.state_dict().items()} == {
        key: t.dtype for key, t in default.state_dict().items()
    }


@pytest.mark.parametrize("place", ["file", "diffusers file", "folder", "checkpoint"])
@pytest.mark.parametrize("storage", STORAGES)
def test_vae(storage: str, place: str, source: Path, tmp_path: Path) -> None:
    name, store = STORAGES[storage]
    state = vae_state(source)
    stored, weights = store(state)
    names = vae_from_diffusers(state).inverse()
    if place == "folder":
        convert(source, tmp_path / "model", "diffusers")
        for file in (tmp_path / "model/vae").glob("*.safetensors"):
            file.unlink()
        file = tmp_path / "model/vae/diffusion_pytorch_model.safetensors"
        save_file({names.rename(key) or key: t.contiguous() for key, t in stored.items()}, file)
        check(tmp_path / "model/vae", source, weights, name)
        return
    path = tmp_path / "vae.safetensors"
    if place == "checkpoint":  # whose transformer is plain
        whole = {key: tensor for key, tensor in load_file(source).items() if not key.startswith("vae.")}
        stored = whole | {f"vae.{key}": tensor for key, tensor in stored.items()}
    elif place == "diffusers file":
        stored = {names.rename(key) or key: tensor for key, tensor in stored.items()}
    parts = ("transformer", "vae", "scheduler") if place == "checkpoint" else ("vae",)
    save_file({key: tensor.contiguous() for key, tensor in stored.items()}, path, config_of(source, *parts))
    check(path, source, weights, name)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("generation", ["0.9.0", "0.9.1", "0.9.5"])
def test_a_checkpoint_cast_as_a_whole(
    generation: str,
    dtype: torch.dtype,
    tiny_models: Callable[..., Path],
    tmp_path: Path,
    velocity: Callable[..., Tensor],
) -> None:
    source = tiny_models(vae=generation) / CHECKPOINT
    cast_down = {key: tensor.to(dtype) for key, tensor in load_file(source).items()}
    save_file(cast_down, tmp_path / "fp8.safetensors", config_of(source, "transformer", "vae", "scheduler"))
    save_file({k: t.float() for k, t in cast_down.items()}, tmp_path / "fp32.safetensors",
              config_of(source, "transformer", "vae", "scheduler"))  # fmt: skip
    model, info = load_transformer(tmp_path / "fp8.safetensors", dtype=torch.float32)
    assert info.quantization == "fp8"
    expected = velocity(load_transformer(tmp_path / "fp32.safetensors")[0])
    assert (velocity(model) - expected).abs().max() <= 1e-5
    vae, plain = load_vae(tmp_path / "fp8.safetensors", dtype=torch.float32), load_vae(tmp_path / "fp32.safetensors")
    if generation != "0.9.0":  # float8 cannot hold it: 448 is the greatest number
        assert float(vae.decoder.timestep_scale_multiplier) == 1000.0
        plain.decoder.timestep_scale_multiplier = nn.Parameter(torch.tensor(1000.0))
    # MKL adds in another order where a matrix begins at another offset from 64 bytes, as in a mapped file.
    plain.load_state_dict({key: tensor.clone() for key, tensor in plain.state_dict().items()}, assign=True)
    assert torch.equal(decoded(vae), decoded(plain))
    statistics = [tensor for key, tensor in vae.state_dict().items() if "per_channel" in key]
    assert {tensor.dtype for tensor in statistics} == {torch.float32}


@pytest.mark.parametrize("layout", ["single file", "diffusers"])
@pytest.mark.parametrize(("kind", "quantization"), [("F16", None), ("Q8_0", "gguf"), ("BF16", None)])
def test_vae_in_gguf(
    kind: str, quantization: str | None, layout: str, source: Path, tmp_path: Path, write_gguf: Callable[..., Path]
) -> None:
    """Convolutions have five dimensions: as they are where ggml has no blocks, else folded, with their shape beside."""
    state = vae_state(source)
    names = vae_from_diffusers(state).inverse()
    type_ = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "vae", "pig")
    weights: State = {}
    for key, tensor in state.items():
        theirs = (names.rename(key) or key) if layout == "diffusers" else key
        array = tensor.float().numpy()
        if not is_weight(key, tensor) or array.size % 256 or (tensor.ndim == 2 and array.shape[-1] % 32):
            writer.add_tensor(theirs, array)
            weights[key] = tensor.float()
            continue
        shape = array.shape
        if kind == "Q8_0":
            array = array.reshape(-1, 256 if len(shape) > 2 else shape[-1])
            writer.add_array(f"comfy.gguf.orig_shape.{theirs}", list(shape))
        packed = gguf.quants.quantize(array, type_)
        writer.add_tensor(theirs, packed if kind != "F16" else array.astype(np.float16), raw_dtype=type_)
        weights[key] = torch.from_numpy(gguf.quants.dequantize(packed, type_).copy()).reshape(shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check(tmp_path / "vae", source, weights, quantization)

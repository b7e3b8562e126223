"""Runs in ComfyUI 0.33's own process: `python quantized_script.py FOLDER`, on the CPU.

It loads every `FOLDER/ours/*.safetensors` as UNETLoader does and writes to `FOLDER/theirs` what it has: the weights as
it unpacks them, in float32, and velocities. Then it quantizes a model by its own layouts, in each of its formats, and
saves it by its own `save_checkpoint`. Likewise T5.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd()))

from comfy.cli_args import args

args.cpu = True

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.text_encoders.t5
import comfy.utils
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from safetensors.torch import load_file, save_file

OPTIONS: dict[str, dict[str, Any]] = {
    "float8_e4m3fn": {"scale": "recalculate"},
    "float8_e5m2": {"scale": "recalculate"},
    "int8_tensorwise": {},
    "int8_tensorwise by row": {"per_channel": True},
    "int8_tensorwise rotated": {"per_channel": True, "convrot": True, "convrot_groupsize": 64},
    "mxfp8": {},
    "nvfp4": {},
    "convrot_w4a4": {"convrot_groupsize": 64},
    "asym_w4a8_int8": {"convrot_groupsize": 64},
    "asym_w4a8_int8 without table": {"convrot_groupsize": 64, "codebook": False},
}


def unpacked(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights in float32 by the names of the model; of the quantized ones, as the layouts unpack them in float32."""
    weights: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, QuantizedTensor):
            params = dataclasses.replace(weight._params, orig_dtype=torch.float32)
            weights[f"{name}.weight"] = QuantizedTensor(weight._qdata, weight._layout_cls, params).dequantize()
        elif isinstance(weight, torch.Tensor):
            weights[f"{name}.weight"] = weight.float()
    return {name: weight.detach().clone().contiguous() for name, weight in weights.items()}


@torch.no_grad()
def velocities(model: torch.nn.Module, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    latent, context = inputs["latent"].to(dtype), inputs["context"].to(dtype)
    sigma = torch.tensor([0.7], dtype=dtype)
    return model(latent, sigma, context, None, frame_rate=25.0, transformer_options={}).float().contiguous()


def quantize(model: torch.nn.Module, kind: str) -> None:
    name = kind.split(" ")[0]
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, QuantizedTensor):
            params = dataclasses.replace(weight._params, orig_dtype=torch.float32)
            plain = QuantizedTensor(weight._qdata, weight._layout_cls, params).dequantize()
            layout = QUANT_ALGOS[name]["comfy_tensor_layout"]
            made = QuantizedTensor.from_float(plain, layout, **OPTIONS[kind])
            module.weight = torch.nn.Parameter(made, requires_grad=False)
            module.quant_format, module.layout_type = name, layout


def t5(folder: Path) -> None:
    """The encoder's class with a tiny config: ComfyUI recognises the XXL size alone."""
    config = json.loads((folder / "t5.json").read_text())
    operations = comfy.ops.mixed_precision_ops({"mixed_ops": True}, torch.float32, full_precision_mm=True)
    ids = torch.arange(3, 20)[None]
    for path in sorted((folder / "ours_t5").glob("*.safetensors")):
        model = comfy.text_encoders.t5.T5(config, torch.float32, "cpu", operations)
        stored, _ = comfy.utils.convert_old_quants(load_file(path), "", {})
        missing, unexpected = model.load_state_dict(stored, strict=False)
        assert not missing, missing
        assert not unexpected, unexpected
        with torch.no_grad():
            hidden = model(ids, None)[0]
        save_file({"hidden": hidden.float().contiguous(), **unpacked(model)}, folder / "theirs_t5" / path.name)
    for kind in OPTIONS:
        quantize(model.encoder, kind)
        state = {key: tensor.clone().contiguous() for key, tensor in model.state_dict().items()}
        save_file(state, folder / "saved_t5" / f"{kind}.safetensors")
        save_file(unpacked(model), folder / "saved_t5" / f"{kind}.weights.safetensors")


def main() -> None:
    folder = Path(sys.argv[1])
    t5(folder)
    inputs = load_file(folder / "inputs.safetensors")
    for path in sorted((folder / "ours").glob("*.safetensors")):
        for dtype in (torch.float32, torch.bfloat16):
            patcher = comfy.sd.load_diffusion_model(str(path), {"dtype": dtype})
            model = patcher.model.diffusion_model
            written = {"velocity": velocities(model, inputs, dtype), **unpacked(model)}
            save_file(written, folder / "theirs" / f"{path.stem}.{str(dtype).split('.')[1]}.safetensors")
    metadata = {"config": (folder / "config.json").read_text()}
    for kind in OPTIONS:
        patcher = comfy.sd.load_diffusion_model(str(folder / "ours/comfy-fp8.safetensors"), {"dtype": torch.bfloat16})
        model = patcher.model.diffusion_model
        quantize(model, kind)
        comfy.sd.save_checkpoint(str(folder / "saved" / f"{kind}.safetensors"), patcher, metadata=dict(metadata))
        written = {"velocity": velocities(model, inputs, torch.bfloat16), **unpacked(model)}
        save_file(written, folder / "saved" / f"{kind}.weights.safetensors")


if __name__ == "__main__":
    main()

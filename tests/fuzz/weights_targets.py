"""Weights, LoRAs, their configs and indexes, tokenizers."""

from __future__ import annotations

import contextlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import mutate
import torch
from checkpoints import small_checkpoint
from target import PROMPT, Target

from ltxkit.ltx_core.weights import tiny


@cache
def _tensors(seed: int = 0) -> Any:
    return torch.Generator().manual_seed(seed)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_tensors())


def _text_encoder(folder: Path) -> Path:
    tiny._write_text_encoder(folder, 0)
    return folder


def _upscaler(path: Path) -> Path:
    tiny._write_upscaler(path, 16, 0)
    return path


def _converted(source: Path, target: Path, to: str) -> Path:
    from ltxkit.ltx_core.weights.convert import convert

    convert(source, target, to)
    return target


def _quantized(folder: Path, *kinds: str) -> list[Path]:
    source = small_checkpoint(folder / "source.safetensors")
    made = [
        _converted(source, folder / f"{kind}.{'gguf' if kind.startswith('gguf') else 'safetensors'}", kind)
        for kind in kinds
    ]
    source.unlink()
    return made


def _gguf_files(folder: Path) -> list[Path]:
    return _quantized(folder, "gguf-q8_0", "gguf-q4_0")


def _bitsandbytes(path: Path) -> Path:
    """A Linear in bitsandbytes' nf4, as diffusers saves it."""
    from bitsandbytes.functional import quantize_4bit
    from safetensors.torch import load_file, save_file

    tensors = load_file(small_checkpoint(path.with_name("plain.safetensors")))
    path.with_name("plain.safetensors").unlink()
    name = "model.diffusion_model.transformer_blocks.0.attn1.to_q.weight"
    tensors[name], state = quantize_4bit(tensors[name].float(), quant_type="nf4")
    tensors |= {f"{name}.{key}": tensor for key, tensor in state.as_dict(packed=True).items()}
    save_file(tensors, path)
    return path


def _safetensors_files(folder: Path) -> list[Path]:
    encoder = _text_encoder(folder / "t5")
    return [
        small_checkpoint(folder / "small.safetensors"),
        _upscaler(folder / "upscaler.safetensors"),
        encoder / "model.safetensors",
        *_quantized(folder, "fp8-scaled", "comfy-fp8", "comfy-nvfp4"),
        _bitsandbytes(folder / "nf4.safetensors"),
    ]


def _inspect(path: Path) -> object:
    from ltxkit.ltx_core.weights.report import format_report, inspect

    return format_report(inspect(path))


def _load_all(path: Path) -> object:
    """As a user who names the file for every part; a refusal of one does not spare the others."""
    from ltxkit.ltx_core.errors import LTXKitError
    from ltxkit.ltx_core.weights.build import load_transformer, load_upsampler, load_vae
    from ltxkit.ltx_core.weights.text_encoder import load_text_encoder

    refusals: list[LTXKitError] = []
    for load in (load_transformer, load_vae, load_upsampler, load_text_encoder):
        try:
            load(path)
        except LTXKitError as error:
            refusals.append(error)
    if len(refusals) == 4:
        raise refusals[0]
    return refusals


def _listed(path: Path) -> object:
    from ltxkit.ltx_core.weights.listing import holds, models_in

    return [
        holds(found, part) for found in models_in(path.parent) if found.is_file() for part in ("transformer", "vae")
    ]


def _safetensors(path: Path) -> object:
    _listed(path)
    return _inspect(path)


def _shards(folder: Path) -> list[Path]:
    from safetensors.torch import load_file, save_file

    tensors = load_file(small_checkpoint(folder / "whole.safetensors"))
    (folder / "whole.safetensors").unlink()
    place = folder / "set" / "transformer"
    place.mkdir(parents=True)
    names = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    keys = sorted(tensors)
    weights = {key: names[number % 2] for number, key in enumerate(keys)}
    for name in names:
        save_file({key: tensors[key] for key in keys if weights[key] == name}, place / name)
    index = place / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weights}))
    return [index]


def _index(path: Path) -> object:
    _inspect_quietly(path)
    return _inspect(path.parent.parent)


def _inspect_quietly(path: Path) -> None:
    from ltxkit.ltx_core.errors import LTXKitError

    with contextlib.suppress(LTXKitError):
        _inspect(path)


def _diffusers(folder: Path) -> list[Path]:
    pipeline = _converted(small_checkpoint(folder / "small.safetensors"), folder / "pipeline", "diffusers")
    _text_encoder(pipeline / "text_encoder")
    return sorted(pipeline.rglob("*config.json"))


def _pipeline_of(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.name == "pipeline")


def _pipeline(path: Path) -> object:
    _inspect_quietly(path.parent)
    _listed(_pipeline_of(path))
    return _inspect(_pipeline_of(path))


def _load_pipeline(path: Path) -> object:
    return _load_all(_pipeline_of(path))


def _lora_files(folder: Path) -> list[Path]:
    from safetensors.torch import save_file

    stem, block = "diffusion_model.transformer_blocks.0", "transformer.transformer_blocks.1"
    pair = {"lora_A.weight": _random(2, 16), "lora_B.weight": _random(16, 2)}
    plain = {f"{stem}.attn1.to_q.{role}": tensor for role, tensor in pair.items()} | {
        f"{stem}.attn1.to_q.alpha": torch.tensor(1.0),
        f"{stem}.attn1.to_q.dora_scale": _random(16, 1),
        f"{stem}.attn2.to_k.diff": _random(16, 16),
        f"{stem}.attn2.to_k.diff_b": _random(16),
        f"{stem}.scale_shift_table": _random(6, 16),
    }
    lycoris = {
        f"{stem}.attn1.to_v.lokr_w1": _random(4, 4),
        f"{stem}.attn1.to_v.lokr_w2": _random(4, 4),
        f"{stem}.attn1.to_k.hada_w1_a": _random(16, 2),
        f"{stem}.attn1.to_k.hada_w1_b": _random(2, 16),
        f"{stem}.attn1.to_k.hada_w2_a": _random(16, 2),
        f"{stem}.attn1.to_k.hada_w2_b": _random(2, 16),
        f"{stem}.attn1.to_out.0.oft_blocks": _random(4, 4, 4) * 0.01,
        "lora_unet_transformer_blocks_0_ff_net_0_proj.lora_down.weight": _random(2, 16),
        "lora_unet_transformer_blocks_0_ff_net_0_proj.lora_up.weight": _random(64, 2),
    }
    settings = {
        "r": 2,
        "lora_alpha": 4,
        "alpha_pattern": {"to_q": 8, ".*attn2.*": 2},
        "rank_pattern": {},
        "use_rslora": False,
    }
    peft = {f"{block}.attn1.to_q.{role}": tensor for role, tensor in pair.items()}
    folder.joinpath("peft").mkdir()
    beside = folder / "peft" / "adapter_config.json"
    beside.write_text(json.dumps({**settings, "peft_type": "LORA", "target_modules": ["to_q"], "bias": "none"}))
    save_file(
        {f"base_model.model.{key}": tensor for key, tensor in peft.items()},
        beside.with_name("adapter_model.safetensors"),
    )
    save_file(plain, folder / "plain.safetensors")
    save_file(lycoris, folder / "lycoris.safetensors", {"ss_network_args": '{"algo": "lokr"}', "ss_network_dim": "2"})
    inner = {f"transformer.{key}": value for key, value in settings.items()}
    save_file(peft, folder / "peft.safetensors", {"lora_adapter_metadata": json.dumps(inner)})
    return [beside, *sorted(folder.glob("*.safetensors"))]


@cache
def _model_for_loras() -> torch.nn.Module:
    import tempfile

    from ltxkit.ltx_core.weights.build import load_transformer

    with tempfile.TemporaryDirectory() as folder:
        return load_transformer(small_checkpoint(Path(folder) / "small.safetensors"), data=False)[0]


def _lora(path: Path) -> object:
    from ltxkit.ltx_core.weights.lora import load_lora, match_lora

    lora = load_lora(path.parent if path.suffix == ".json" else path)
    return str(match_lora(lora, _model_for_loras(), allow_partial=True))


def _spiece(folder: Path) -> list[Path]:
    _text_encoder(folder / "made")
    return [folder / "made" / "spiece.model"]


def _tokenizer_json(folder: Path) -> list[Path]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz,"),
    ]
    made = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(["</s>", "<pad>", "<unk>"])
    made.save(str(folder / "tokenizer.json"))
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAAAAAAA"}
    folder.joinpath("precompiled").mkdir()
    (folder / "precompiled" / "tokenizer.json").write_text(json.dumps(tree))
    return [folder / "tokenizer.json", folder / "precompiled" / "tokenizer.json"]


def _tokenize(path: Path) -> object:
    from ltxkit.ltx_core.models.tokenizer import Tokenizer

    return Tokenizer.from_file(path, 32128).encode(PROMPT)


def _prompts_file(folder: Path) -> list[Path]:
    (folder / "prompts.txt").write_text("# two\na lighthouse in a storm\n\nthe sea\n")
    return [folder / "prompts.txt"]


def _prompts(path: Path) -> object:
    from ltxkit.commands.jobs import prompt_lines

    return list(prompt_lines(path))


TARGETS = {
    "safetensors": Target(_safetensors_files, _safetensors, mutate.safetensors),
    "gguf": Target(_gguf_files, _inspect, mutate.gguf),
    "index": Target(_shards, _index, mutate.json_file),
    "configs": Target(_diffusers, _pipeline, mutate.json_file),
    "config-loads": Target(_diffusers, _load_pipeline, mutate.json_file, heavy=True),
    "lora": Target(_lora_files, _lora, mutate.json_or(mutate.safetensors)),
    "loads": Target(_safetensors_files, _load_all, mutate.safetensors, heavy=True),
    "gguf-loads": Target(_gguf_files, _load_all, mutate.gguf, heavy=True),
    "spiece": Target(_spiece, _tokenize, mutate.protobuf),
    "tokenizer-json": Target(_tokenizer_json, _tokenize, mutate.json_file),
    "prompts": Target(_prompts_file, _prompts, mutate.lines),
}

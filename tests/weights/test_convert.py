"""Conversions: identical bits both ways, close values after quantization, and no partial files."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from ltxkit.cli import main
from ltxkit.ltx_core.config import CheckpointConfig, TransformerConfig
from ltxkit.ltx_core.errors import CheckpointError, ConfigError, UnsupportedError
from ltxkit.ltx_core.locks import claimed
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.ltx_core.quant.linear import QuantizedLinear
from ltxkit.ltx_core.releases import RELEASES
from ltxkit.ltx_core.weights.build import load_transformer, load_vae
from ltxkit.ltx_core.weights.containers import open_checkpoint
from ltxkit.ltx_core.weights.convert import FORMATS, convert
from ltxkit.ltx_core.weights.diffusers_config import scheduler_entries, transformer_entries, vae_entries
from ltxkit.ltx_core.weights.infer import describe
from ltxkit.ltx_core.weights.layouts import TRANSFORMER_FROM_DIFFUSERS, UNUSED_TENSORS, detect_layout
from ltxkit.ltx_core.weights.metadata import format_config
from ltxkit.ltx_core.weights.report import inspect
from ltxkit.ltx_core.weights.save import write_safetensors
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER

TinyModels = Callable[..., Path]
MANIFESTS = Path(__file__).parents[1] / "data" / "manifests"
_STORED: dict[str, Any] = json.loads((MANIFESTS / "variants.json").read_text(encoding="utf-8"))
VARIANTS: dict[str, dict[str, Any]] = {
    name: _STORED[entry] if isinstance(entry, str) else entry for name, entry in _STORED.items()
}
PREFIX = "model.diffusion_model."


def same_file(first: Path, second: Path) -> bool:
    """Tensors, their bits and the metadata."""
    a, b = load_file(first), load_file(second)
    assert set(a) == set(b)
    assert all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
    return open_checkpoint(first).metadata == open_checkpoint(second).metadata


@pytest.mark.parametrize(
    ("name", "to"), [("new.safetensors", "single-file"), ("new", "diffusers"), ("new.gguf", "gguf-q8_0")]
)
def test_a_name_that_another_command_is_writing_is_refused(
    name: str, to: str, tiny_models: TinyModels, tmp_path: Path
) -> None:
    """It has claimed the name, and there is no file yet: the one that comes later would replace the other's result."""
    with claimed(tmp_path / name), pytest.raises(ConfigError, match="which another command is writing"):
        convert(tiny_models() / CHECKPOINT, tmp_path / name, to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("vae", ["0.9.0", "0.9.1", "0.9.5"])
def test_single_file_to_diffusers_and_back(vae: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    source = tiny_models(vae=vae) / CHECKPOINT
    assert convert(source, tmp_path / "folder", "diffusers") == ()
    assert convert(tmp_path / "folder", tmp_path / "back.safetensors", "single-file") == ()
    assert same_file(source, tmp_path / "back.safetensors")
    # The folder alone is enough, too.
    assert load_transformer(tmp_path / "folder")[0].config == load_transformer(source)[0].config
    assert load_vae(tmp_path / "folder").config == load_vae(source).config


@pytest.mark.slow
def test_diffusers_reads_the_folder(tiny_models: TinyModels, tmp_path: Path) -> None:
    for vae in ("0.9.0", "0.9.1", "0.9.5"):
        source, folder = tiny_models(vae=vae) / CHECKPOINT, tmp_path / vae
        convert(source, folder, "diffusers")
        pipeline = diffusers.LTXPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
        stored = load_file(source)
        assert type(pipeline.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
        assert pipeline.scheduler.config.use_dynamic_shifting == (vae != "0.9.5")
        assert torch.equal(
            pipeline.transformer.state_dict()["proj_in.weight"], stored[f"{PREFIX}patchify_proj.weight"].float()
        )
        assert len(pipeline.transformer.state_dict()) + len(pipeline.vae.state_dict()) == len(stored) - len(
            UNUSED_TENSORS
        )
        # a folder written by diffusers' save_pretrained comes back unchanged, too
        pipeline.vae.save_pretrained(tmp_path / "again" / vae / "vae")
        again, ours = load_vae(tmp_path / "again" / vae), load_vae(source, dtype=torch.float32)
        assert all(torch.equal(again.state_dict()[name].float(), t.float()) for name, t in ours.state_dict().items())


def test_a_folder_of_diffusers_becomes_a_single_file_and_comes_back(tiny_models: TinyModels, tmp_path: Path) -> None:
    """A folder with no config in its headers, and no unused statistics."""
    convert(tiny_models() / CHECKPOINT, tmp_path / "ours", "diffusers")
    for part in ("transformer", "vae"):
        weights = tmp_path / "ours" / part / "diffusion_pytorch_model.safetensors"
        theirs = tmp_path / "theirs" / part
        theirs.mkdir(parents=True)
        save_file(load_file(weights), theirs / weights.name, {"format": "pt"})
        (theirs / "config.json").write_text((weights.parent / "config.json").read_text())
    convert(tmp_path / "theirs", tmp_path / "single.safetensors", "single-file", version="2b-0.9.6-dev")
    convert(tmp_path / "single.safetensors", tmp_path / "back", "diffusers")
    for part in ("transformer", "vae"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        a, b = load_file(tmp_path / "theirs" / name), load_file(tmp_path / "back" / name)
        assert set(a) == set(b)
        assert all(torch.equal(a[key], b[key]) for key in a)
        configs = [json.loads((tmp_path / side / part / "config.json").read_text()) for side in ("theirs", "back")]
        assert configs[0] == configs[1]


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name in RELEASES])
def test_folder_configs_are_those_of_the_released_folders(variant: str, tmp_path: Path) -> None:
    shapes: dict[str, list[int]] = {}
    for part in VARIANTS[variant]["parts"]:
        shapes |= json.loads((MANIFESTS / f"{part}.single_file.json").read_text(encoding="utf-8"))
    source = sparse(tmp_path / "released.safetensors", shapes, json.dumps(VARIANTS[variant]["config"]))
    checkpoint = open_checkpoint(source)
    description = describe(checkpoint, detect_layout(checkpoint.tensors))
    scheduler = description.scheduler()
    assert scheduler is not None
    found = {
        "transformer": transformer_entries(description.transformer()),
        "vae": vae_entries(description.vae()),
        "scheduler": scheduler_entries(scheduler),
    }
    for part, expected in VARIANTS[variant]["diffusers"].items():
        assert {key: found[part][key] for key in expected} == expected


def sparse(path: Path, shapes: Mapping[str, list[int]], config: str) -> Path:
    """A file of these tensors without their data, which must never be read."""
    header: dict[str, Any] = {"__metadata__": {"config": config}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


# --- quantized --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 transformer, wide enough to quantize well."""
    torch.manual_seed(0)
    config = TransformerConfig.of_size(layers=3, heads=4, head_dim=64, channels=64, captions=128)
    path = tmp_path_factory.mktemp("wide") / "wide.safetensors"
    text = format_config(CheckpointConfig(transformer=config, vae=None, scheduler=None))
    tensors = {f"{PREFIX}{name}": t.to(torch.bfloat16) for name, t in LTXTransformer(config).state_dict().items()}
    write_safetensors(path, tensors, {"config": text, "author": "x"})
    return path


@torch.no_grad()
def velocity(path: Path, **options: Any) -> torch.Tensor:
    model, _ = load_transformer(path, dtype=torch.float32, **options)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 16, 64, generator=generator)
    positions = torch.rand(1, 3, 16, generator=generator) * 10
    branch = Branch(model.prepare_text([torch.randn(9, 128, generator=generator)]))
    return model(x, torch.full((1, 1, 1), 0.7), model.prepare_positions(positions), (branch,))[0]


@pytest.mark.parametrize(
    ("to", "least", "bits"),
    [
        ("fp8", 0.99, 8.0),
        ("fp8-scaled", 0.999, 8.0),
        ("gguf-bf16", 1.0 - 1e-6, 16.0),
        ("gguf-q8_0", 0.9999, 8.5),
        ("gguf-q5_1", 0.99, 6.0),
        ("gguf-q5_0", 0.99, 5.5),
        ("gguf-q4_1", 0.98, 5.0),
        ("gguf-q4_0", 0.98, 4.5),
    ],
)
def test_close_to_the_original(to: str, least: float, bits: float, wide: Path, tmp_path: Path) -> None:
    target = tmp_path / "converted"
    events: list[ProgressEvent] = []
    assert convert(wide, target, to, progress=events.append) == ()
    exact, got = velocity(wide), velocity(target)
    assert float(torch.cosine_similarity(got.flatten(), exact.flatten(), dim=0)) >= least
    assert torch.equal(got, exact) == (to == "gguf-bf16")
    assert (events[0].step, events[-1].step) == (0, events[-1].total)
    blocks = 3 * (8 * 256 * 256 + 2 * 4 * 256 * 256)
    saved = sum(info.nbytes for info in open_checkpoint(wide).tensors.values())
    saved -= sum(info.nbytes for info in open_checkpoint(target).tensors.values())
    assert abs(saved - blocks * (16 - bits) / 8) < 0.01 * 2 * blocks  # vectors may be stored in a wider dtype


def test_fp8_casts_what_the_official_files_have_cast(tiny_models: TinyModels, tmp_path: Path) -> None:
    source = tiny_models() / CHECKPOINT
    convert(source, tmp_path / "fp8.safetensors", "fp8")
    before, after = load_file(source), load_file(tmp_path / "fp8.safetensors")
    assert set(after) == set(before)
    for name, tensor in before.items():
        cast = name.startswith(f"{PREFIX}transformer_blocks.") and tensor.ndim == 2 and "table" not in name
        assert torch.equal(after[name].float(), tensor.to(torch.float8_e4m3fn if cast else tensor.dtype).float())
        assert after[name].dtype == (torch.float8_e4m3fn if cast else tensor.dtype)
    assert open_checkpoint(tmp_path / "fp8.safetensors").metadata == open_checkpoint(source).metadata
    load_vae(tmp_path / "fp8.safetensors")


def test_gguf_keeps_what_the_official_tools_keep(wide: Path, tmp_path: Path) -> None:
    import gguf

    convert(wide, tmp_path / "q4.gguf", "gguf-q4_0")
    reader = gguf.GGUFReader(tmp_path / "q4.gguf")
    stored = load_file(wide)
    for tensor in reader.tensors:
        original = stored[PREFIX + tensor.name]
        if tensor.name.startswith(("adaln_single.", "caption_projection.", "patchify_proj.", "proj_out.")):
            expected = "F32" if original.ndim == 1 else "BF16"
        else:
            expected = "F32" if original.ndim == 1 or "table" in tensor.name else "Q4_0"
        assert tensor.tensor_type.name == expected, tensor.name
        assert tuple(reversed(tensor.shape.tolist())) == tuple(original.shape)
    architecture = reader.fields["general.architecture"]  # of which gguf 0.10 has no `contents`
    assert bytes(architecture.parts[architecture.data[0]]).decode() == "ltxv"
    assert inspect(tmp_path / "q4.gguf")["missing"] == inspect(wide)["missing"]  # the config is kept


@pytest.mark.slow
@pytest.mark.parametrize("to", ["fp8", *(to for to in FORMATS if to.startswith("gguf-"))])
@pytest.mark.filterwarnings("ignore")
def test_diffusers_and_gguf_read_what_we_convert(to: str, wide: Path, tmp_path: Path) -> None:
    """Other readers get the same weights from the file as we do."""
    import gguf
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

    path = tmp_path / ("converted.gguf" if to.startswith("gguf") else "converted.safetensors")
    convert(wide, path, to)
    ours, _ = load_transformer(path, dtype=torch.float32)
    weights = {key: tensor for key, tensor in ours.state_dict().items() if not key.endswith(".packed")}
    weights |= {
        f"{name}.weight": module.dequantized(torch.float32)
        for name, module in ours.named_modules()
        if isinstance(module, QuantizedLinear)
    }
    convert(wide, tmp_path / "folder", "diffusers")
    quantization = (
        {"quantization_config": diffusers.GGUFQuantizationConfig(torch.float32)} if path.suffix == ".gguf" else {}
    )
    theirs = diffusers.LTXVideoTransformer3DModel.from_single_file(
        str(path), config=str(tmp_path / "folder"), subfolder="transformer", torch_dtype=torch.float32, **quantization
    )
    parameters = dict(theirs.named_parameters())
    assert len(parameters) == len(weights)
    for name, parameter in parameters.items():
        weight = weights[TRANSFORMER_FROM_DIFFUSERS.rename(name)]
        if isinstance(parameter, GGUFParameter):  # unpacked in float16
            torch.testing.assert_close(
                dequantize_gguf_tensor(parameter).float(), weight, rtol=2e-3, atol=1e-4, msg=name
            )
        else:
            assert torch.equal(parameter.float(), weight), name
    if path.suffix == ".gguf":
        tensors = gguf.GGUFReader(path).tensors
        assert len(tensors) == len(weights)
        for tensor in tensors:
            unpacked = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
            assert torch.equal(unpacked.view(weights[tensor.name].shape), weights[tensor.name]), tensor.name


def test_comfyui_scales_are_scalars(wide: Path, tmp_path: Path) -> None:
    """The weight in scaled_fp8_ops of comfy/ops.py: weight * scale_weight, marked by `scaled_fp8`."""
    convert(wide, tmp_path / "scaled.safetensors", "fp8-scaled")
    before, after = load_file(wide), load_file(tmp_path / "scaled.safetensors")
    assert after[f"{PREFIX}scaled_fp8"].dtype == torch.float8_e4m3fn
    scaled = [name.removesuffix("scale_weight") for name in after if name.endswith("scale_weight")]
    assert len(scaled) == 30
    for stem in scaled:
        weight, scale = after[f"{stem}weight"], after[f"{stem}scale_weight"]
        assert (weight.dtype, scale.dtype, scale.shape) == (torch.float8_e4m3fn, torch.float32, ())
        original = before[f"{stem}weight"].float()
        # e4m3 has four significant bits, and steps of 2^-9 near zero
        error = (weight.float() * scale - original).abs()
        assert (error <= original.abs() * 2**-4 + scale * 2**-10).all()
    rest = set(after) - {f"{stem}{name}" for stem in scaled for name in ("weight", "scale_weight")}
    assert rest - {f"{PREFIX}scaled_fp8"} == set(before) - {f"{stem}weight" for stem in scaled}
    assert all(torch.equal(after[name], before[name]) for name in rest - {f"{PREFIX}scaled_fp8"})


def test_a_checkpoints_vae_is_named_as_left_out(tiny_models: TinyModels, tmp_path: Path) -> None:
    left = convert(tiny_models() / CHECKPOINT, tmp_path / "x.gguf", "gguf-q8_0")
    assert left
    assert all(key.startswith("vae.") for key in left)


# --- nothing half-written ---------------------------------------------------------------------------------------------


@contextmanager
def full_disk(limit: int) -> Generator[None]:
    """Writing a file beyond `limit` bytes fails, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_leaves_nothing(to: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    source = tiny_models() / CHECKPOINT
    with full_disk(500_000), pytest.raises(OSError):  # noqa: PT011 - the message is the system's
        convert(source, tmp_path / "out", to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["single-file", "diffusers", "gguf-q8_0"])
def test_an_interrupt_leaves_nothing(to: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    def interrupt(event: ProgressEvent) -> None:
        if event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny_models() / CHECKPOINT, tmp_path / "out", to, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_refusals(tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_models() / CHECKPOINT
    with pytest.raises(ConfigError, match="got the format 'q4'; expected one of single-file, diffusers, fp8"):
        convert(source, tmp_path / "x", "q4")
    (tmp_path / "there").touch()
    with pytest.raises(ConfigError, match="which exists"):
        convert(source, tmp_path / "there", "fp8")
    with pytest.raises(CheckpointError, match="a T5 text encoder; expected an LTX-Video checkpoint"):
        convert(tiny_models() / TEXT_ENCODER, tmp_path / "x", "fp8")
    convert(source, tmp_path / "fp8.safetensors", "fp8")
    with pytest.raises(CheckpointError, match=r"quantized already \(fp8\)"):
        convert(tmp_path / "fp8.safetensors", tmp_path / "x", "gguf-q8_0")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UnsupportedError, match="pip install gguf") as caught:
        convert(source, tmp_path / "x", "gguf-q8_0")
    assert "\n" not in str(caught.value)


def test_command(tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tiny_models() / CHECKPOINT, tmp_path / "q8.gguf"
    assert main(["convert", str(source), str(target), "--to", "gguf-q8_0"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(target)
    assert "tensors have no place in this format: vae." in err
    assert main(["convert", str(source), str(target), "--to", "fp8"]) == 2
    assert "which exists" in capsys.readouterr().err

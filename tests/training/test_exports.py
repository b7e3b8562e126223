"""Other readers understand the files of a run: diffusers, peft, ComfyUI's key style, our own loaders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ltxkit.cli import main
from ltxkit.ltx_core.errors import CheckpointError, ConfigError
from ltxkit.ltx_core.locks import claimed
from ltxkit.ltx_core.media import read_video
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.pipelines.settings import Overrides, PassSettings
from ltxkit.ltx_core.placing.lora import applied
from ltxkit.ltx_core.placing.placement import DevicePlacement, host_on
from ltxkit.ltx_core.sampling.patchify import Coordinates
from ltxkit.ltx_core.shapes import LatentShape, PixelShape, ScaleFactors
from ltxkit.ltx_core.training.config import LoRASettings, Text
from ltxkit.ltx_core.training.digits.bundle import bundle
from ltxkit.ltx_core.training.digits.evaluate import Bar, Score, evaluate_digits
from ltxkit.ltx_core.training.generate import (
    ClipSettings,
    extend,
    generate_clips,
    load_models,
    reconstruct,
    window_frames,
)
from ltxkit.ltx_core.training.lora import LoRALayers, save_lora
from ltxkit.ltx_core.training.models import (
    open_vae,
    restart,
    save_checkpoint_file,
    save_vae,
    tensors_of,
    transformer_config,
    vae_config,
)
from ltxkit.ltx_core.training.pictures import to_frames
from ltxkit.ltx_core.training.text import make_text_encoder, save_text_encoder
from ltxkit.ltx_core.weights.build import load_transformer
from ltxkit.ltx_core.weights.layouts import TRANSFORMER_FROM_DIFFUSERS, vae_from_diffusers
from ltxkit.ltx_core.weights.lora import WeightedLoRA, load_lora

VAE_MODEL = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "patch_size": 4,
    "encoder_base_channels": 8,
    "decoder_base_channels": 8,
    "encoder_blocks": [
        ["res_x", 1],
        ["compress_space_res", {"multiplier": 2}],
        ["res_x", 1],
        ["compress_time_res", {"multiplier": 2}],
        ["res_x", 1],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", 1],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", 1],
    ],
    "decoder_blocks": [
        ["res_x", 1],
        *[["compress_all", {"multiplier": 2, "residual": True}], ["res_x", 1]] * 3,
    ],
    "timestep_conditioning": True,
    "causal_decoder": False,
    "spatial_padding_mode": "zeros",
}
TRANSFORMER_MODEL = {
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 16,
    "norm_eps": 1e-6,
    "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "timestep_scale_multiplier": 1000.0,
    "causal_temporal_positioning": False,
}
GRID = LatentShape(3, 2, 2)


def transformer() -> LTXTransformer:
    """A new transformer whose zero-initialised outputs have been moved, as by training."""
    torch.manual_seed(0)
    model = LTXTransformer(transformer_config(TRANSFORMER_MODEL))
    restart(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def new_vae() -> VideoVAE:
    torch.manual_seed(0)
    vae = VideoVAE(vae_config(VAE_MODEL)).eval()
    vae.per_channel_statistics.mean.uniform_(-0.5, 0.5)
    vae.per_channel_statistics.std.uniform_(0.5, 2)
    return vae


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, GRID.tokens, 8, generator=generator)
    text = torch.randn(5, 16, generator=generator)
    positions = Coordinates(ScaleFactors(8, 32, 32), 25.0, causal=False).positions(GRID)
    return x, torch.full((1, 1, 1), 0.7), text, positions


@torch.no_grad()
def velocity(model: LTXTransformer) -> torch.Tensor:
    x, sigma, text, positions = inputs()
    branch = Branch(model.prepare_text([text]))
    return model(x, sigma, model.prepare_positions(positions), (branch,))[0]


def in_diffusers(tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    import diffusers

    theirs = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        num_layers=2, caption_channels=16,
    ).eval()  # fmt: skip
    rename = TRANSFORMER_FROM_DIFFUSERS.inverse().rename
    theirs.load_state_dict({rename(key): tensor for key, tensor in tensors.items()})
    return theirs


@torch.no_grad()
def their_velocity(theirs: torch.nn.Module) -> torch.Tensor:
    x, sigma, text, positions = inputs()
    return theirs(
        hidden_states=x,
        encoder_hidden_states=text[None],
        timestep=sigma[:, :, 0] * 1000,
        encoder_attention_mask=torch.ones(1, 5),
        num_frames=GRID.frames,
        height=GRID.height,
        width=GRID.width,
        video_coords=positions,
    ).sample


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as a finished run leaves it."""
    final = tmp_path / "run" / "final"
    model = transformer()
    save_checkpoint_file(final / "model.safetensors", tensors_of(model), model.config, new_vae())
    text = make_text_encoder(
        Text(width=16, layers=1, heads=2, vocabulary=64), 16, ["the digit three moving left"], tmp_path
    )
    save_text_encoder(text, tensors_of(text.model), final / "text_encoder")
    return tmp_path / "run"


def test_transformer_runs_in_diffusers(run: Path) -> None:
    ours, info = load_transformer(run / "final/model.safetensors")
    assert not info.notes  # no value was guessed
    theirs = in_diffusers(tensors_of(ours))
    torch.testing.assert_close(velocity(ours), their_velocity(theirs), atol=1e-4, rtol=0)


@torch.no_grad()
def test_vae_runs_in_diffusers(tmp_path: Path) -> None:
    import diffusers

    vae = new_vae()
    save_vae(tmp_path / "vae.safetensors", tensors_of(vae), vae.config)
    ours = open_vae(tmp_path / "vae.safetensors")
    theirs = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 16, 32, 64, 128), down_block_types=("LTXVideo095DownBlock3D",) * 4,
        layers_per_block=(1,) * 5, spatio_temporal_scaling=(True,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        decoder_block_out_channels=(16, 32, 64), decoder_layers_per_block=(1,) * 4,
        decoder_spatio_temporal_scaling=(True,) * 3, decoder_inject_noise=(False,) * 4, upsample_residual=(True,) * 3,
        upsample_factor=(2,) * 3, timestep_conditioning=True,
    ).eval()  # fmt: skip
    tensors = tensors_of(ours)
    rename = vae_from_diffusers(tensors).inverse().rename
    theirs.load_state_dict({rename(key): tensor for key, tensor in tensors.items()})
    pixels = torch.rand(1, 3, 9, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(ours.encode(pixels).mode(), theirs.encode(pixels).latent_dist.mode(), atol=1e-4, rtol=0)
    latent, level = torch.randn(1, 8, 2, 1, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.05])
    torch.testing.assert_close(ours.decode(latent, level), theirs.decode(latent, level).sample, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        ours.normalize(latent),
        (latent - theirs.latents_mean.view(1, -1, 1, 1, 1)) / theirs.latents_std.view(1, -1, 1, 1, 1),
    )


# ---------------------------------------------------------------------------------------------------------------- LoRA


def trained(model: LTXTransformer) -> LoRALayers:
    layers = LoRALayers(model, LoRASettings(rank=3, alpha=6.0, targets=("to_q", "to_out.0", "ff.net.0.proj")))
    with torch.no_grad():
        for name, parameter in layers.named_parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(len(name))).mul_(0.2)
    return layers


@pytest.mark.parametrize("style", ["diffusers", "comfyui"])
def test_lora_does_the_same_in_our_loader(style: str, tmp_path: Path) -> None:
    base = transformer()
    plain = velocity(base)
    model = transformer()
    layers = trained(model)
    wanted = velocity(model)
    assert float((wanted - plain).abs().max()) > 1e-2
    save_lora(tmp_path / "lora.safetensors", layers, tensors_of(layers), style)  # type: ignore[arg-type]
    with applied(base, [WeightedLoRA(load_lora(tmp_path / "lora.safetensors"), 1.0)]) as (report,):
        got = velocity(base)
    assert len(report.matched) == 2 * (2 + 2 + 1)
    torch.testing.assert_close(got, wanted, atol=1e-3, rtol=0)


def test_lora_does_the_same_in_diffusers(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = transformer()
    tensors = tensors_of(model)
    layers = trained(model)
    wanted = velocity(model)
    save_lora(tmp_path / "lora.safetensors", layers, tensors_of(layers), "diffusers")
    theirs = in_diffusers(tensors)
    theirs.load_lora_adapter(tmp_path / "lora.safetensors", prefix="transformer")
    torch.testing.assert_close(their_velocity(theirs), wanted, atol=1e-3, rtol=0)


def test_lora_in_comfyui_style_is_the_added_product(tmp_path: Path) -> None:
    """As ComfyUI reads the keys (comfy/lora.py): weight += lora_B @ lora_A; without an alpha the factor is 1."""
    model = transformer()
    tensors = tensors_of(model)
    layers = trained(model)
    wanted = velocity(model)
    save_lora(tmp_path / "lora.safetensors", layers, tensors_of(layers), "comfyui")
    stored = load_file(tmp_path / "lora.safetensors")
    for key in [key for key in stored if key.endswith("lora_A.weight")]:
        name = key.removeprefix("diffusion_model.").replace("lora_A.weight", "weight")
        tensors[name] += stored[key.replace("lora_A", "lora_B")] @ stored[key]
    merged = transformer()
    merged.load_state_dict(tensors)
    torch.testing.assert_close(velocity(merged), wanted, atol=1e-3, rtol=0)


def test_a_new_lora_changes_nothing_and_trains_its_factors_alone() -> None:
    model = transformer()
    plain = velocity(model)
    model.requires_grad_(False)
    layers = LoRALayers(model, LoRASettings(rank=2))
    assert torch.equal(velocity(model), plain)
    x, sigma, text, positions = inputs()
    (out,) = model(x, sigma, model.prepare_positions(positions), (Branch(model.prepare_text([text])),))
    out.square().mean().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in layers.up.parameters())
    with pytest.raises(ConfigError, match="which name no Linear of a block"):
        LoRALayers(model, LoRASettings(targets=("to_x",)))


# ------------------------------------------------------------------------------------------------------------ sampling


@pytest.mark.slow
def test_sample_extend_reconstruct(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", str(run), "--steps", "2", "--seed", "3"]
    size = ["--size", "64x32", "--frames", "9"]
    out = tmp_path / "out"
    assert main(["sample", *common, *size, "--prompt", "the digit three", "--prompt", "left", "-o", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {
        "sheet.png", "grid.mp4", "prompts.txt", "first_frames.png", "000.mp4", "000.gif", "001.mp4", "001.gif",
    }  # fmt: skip
    assert (out / "prompts.txt").read_text() == "the digit three\nleft\n"
    clip = read_video(out / "000.mp4").frames
    assert len(clip) == 9

    longer = tmp_path / "longer.mp4"
    assert (
        main(
            ["extend", *common, "--video", str(out / "000.mp4"), "--frames", "10", "--overlap", "9", "-o", str(longer)]
        )
        == 0
    )
    assert len(read_video(longer).frames) == 19

    back = tmp_path / "back.mp4"
    video = ["--video", str(out / "000.mp4"), "-o", str(back)]
    for sigma in ("0", "0.5"):
        assert main(["reconstruct", *common, *size, *video, "--sigma", sigma]) == 0
        assert "PSNR" in capsys.readouterr().out
    assert main(["sample", *common, *size, "-o", str(out)]) == 2
    assert "got no prompt" in capsys.readouterr().err


HOST = host_on(DevicePlacement("cpu"))
SETTINGS = ClipSettings(PixelShape(9, 32, 32), 25.0, overrides=Overrides(first=PassSettings(steps=2)))


def test_seeds_count_up_and_batches_change_nothing(run: Path) -> None:
    models = load_models(run, host=HOST)
    prompts = ["left", "the digit three", "left"]
    clips = generate_clips(models, prompts, replace(SETTINGS, seed=4, batch_size=2), host=HOST)
    assert clips.shape == (3, 3, 9, 32, 32)
    for number, prompt in enumerate(prompts):
        alone = generate_clips(models, [prompt], replace(SETTINGS, seed=4 + number), host=HOST)
        torch.testing.assert_close(clips[number : number + 1], alone, atol=1e-4, rtol=1e-4)


def test_a_run_is_sampled_as_its_checkpoint_is_in_the_library(run: Path) -> None:
    """A prompt through `ltxkit sample` and through the library: the same recipe, schedule, noise and decoding."""
    final = run / "final"
    ltx = Components.load(final / "model.safetensors", final / "text_encoder", dtype=torch.float32, device="cpu")
    wanted = torch.cat(
        list(ltx.generate("left", width=32, height=32, frames=9, fps=25, seed=7, settings=SETTINGS.overrides).frames())
    )
    (clip,) = generate_clips(load_models(run, host=HOST), ["left"], replace(SETTINGS, seed=7), host=HOST)
    torch.testing.assert_close(to_frames(clip), wanted, atol=1e-5, rtol=0)


def test_an_extended_clip_begins_with_the_clip(run: Path) -> None:
    """For any size and length; windows after the first continue from generated frames."""
    models = load_models(run, host=HOST)
    clip = torch.rand(12, 40, 36, 3)
    assert window_frames(25, 9, 8) == 25
    assert [window_frames(frames, 9, 8) for frames in (9, 12)] == [25, 25]
    said: list[str] = []
    host = host_on(DevicePlacement("cpu"), say=said.append)
    longer = extend(models, clip, "left", SETTINGS, frames=11, overlap=1, host=host)
    assert longer.shape == (23, 40, 36, 3)
    assert torch.equal(longer[:12], clip)
    assert longer.isfinite().all()
    other = extend(models, 1 - clip, "left", SETTINGS, frames=11, overlap=1, host=host)
    assert not torch.allclose(longer[12:], other[12:], atol=1e-3)  # the overlap has an effect
    assert said == []
    with pytest.raises(ConfigError, match=r"got overlaps of 3 frames; expected 8k\+1; use 1"):
        extend(models, clip, "left", SETTINGS, frames=8, overlap=3, host=HOST)
    with pytest.raises(ConfigError, match="overlap of 17 frames with a clip of 12; expected at most the clip"):
        extend(models, clip, "left", SETTINGS, frames=8, overlap=17, host=HOST)


def test_noise_of_level_0_is_none(run: Path) -> None:
    models = load_models(run, host=HOST)
    pixels = torch.rand(2, 3, 9, 32, 32) * 2 - 1
    through_the_vae = reconstruct(models, pixels, [], SETTINGS, sigma=0.0, host=HOST)
    latent = models.vae.encode(pixels).mode()
    wanted = models.vae.decode(latent, torch.zeros(2))
    torch.testing.assert_close(through_the_vae.pixels, wanted.clamp(-1, 1), atol=1e-4, rtol=0)
    assert through_the_vae.psnr.shape == through_the_vae.ssim.shape == (2,)
    and_back = reconstruct(models, pixels, ["left", "left"], SETTINGS, sigma=0.5, host=HOST)
    assert not torch.allclose(and_back.pixels, through_the_vae.pixels, atol=1e-2)


@pytest.mark.slow
def test_eval_digits_measures_and_refuses_noise(run: Path) -> None:
    settings = replace(SETTINGS, seed=1000, overrides=Overrides(first=PassSettings(steps=1, guidance_scale=1.0)))
    score, clips = evaluate_digits(load_models(run, host=HOST), settings, 20, clips=10, host=HOST)
    assert clips.shape == (10, 3, 9, 32, 32)
    assert score.reader >= 0.97  # the reader works, however bad the model
    assert score.digits < 0.5
    assert [share is None for share in score.by_digit] == [False] * 3 + [True] * 7  # ten clips name no other digits
    assert "nan" not in "".join(score.lines())
    assert any("of the digits are right" in failure for failure in score.failures(Bar()))
    perfect = Score(
        reader=1.0, digits=0.95, by_digit=(0.95,) * 10, direction=1.0, jerk=0.1, psnr=30.0, two_stage_digits=0.95
    )
    assert perfect.failures(Bar()) == []


# -------------------------------------------------------------------------------------------------------------- bundle


def test_a_bundle_holds_half_the_bytes_and_loads(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "shipped/digits"
    assert main(["bundle", "--model", str(run), "-o", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    text = {f"text_encoder/{name}" for name in ("config.json", "model.safetensors", "spiece.model")}
    assert files == {"model.safetensors", *text}

    whole, half = (load_file(path / "model.safetensors") for path in (run / "final", folder))
    assert set(half) == set(whole)
    statistics = {name for name in whole if "per_channel_statistics" in name}
    assert statistics
    for name, tensor in half.items():
        assert tensor.dtype == (torch.float32 if name in statistics else torch.bfloat16), name
        assert torch.equal(tensor, whole[name].to(tensor.dtype)), name
    size, before = ((path / "model.safetensors").stat().st_size for path in (folder, run / "final"))
    assert size < 0.55 * before

    loaded, trained_ = (load_models(path, host=HOST) for path in (folder, run))
    # Both compute in float32; the weights of each layer were rounded once, by 2^-8 / sqrt(3) rms, independently.
    layers = sum(isinstance(module, torch.nn.Linear) for module in loaded.transformer.modules())
    got, wanted = velocity(loaded.transformer), velocity(trained_.transformer)
    assert (got - wanted).norm() <= 2**-8 * (layers / 3) ** 0.5 * wanted.norm()
    _, info = load_transformer(folder / "model.safetensors")
    assert not info.notes  # the config is included
    assert generate_clips(loaded, ["left"], SETTINGS, host=HOST).isfinite().all()


def test_a_bundle_is_whole_or_not_there(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shipped/digits"
    bundle(run, None, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="which exists already; expected a new folder"):
        bundle(run, None, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

    with claimed(tmp_path / "other/digits"), pytest.raises(ConfigError, match="which another command is writing"):
        bundle(run, None, tmp_path / "other/digits")
    with pytest.raises(CheckpointError, match="expected a training run or a folder with upscaler"):
        bundle(run, tmp_path / "no-such-run", tmp_path / "other/digits")
    (run / "final/text_encoder/spiece.model").unlink()
    with pytest.raises(FileNotFoundError, match=r"spiece\.model"):
        bundle(run, None, tmp_path / "other/digits")
    assert not list((tmp_path / "other").glob("*"))

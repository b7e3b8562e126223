"""Each node alone, with a host that records requests and messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltxkit.ltx_core.errors import ConfigError, LTXKitError, ShapeError, UnsupportedError
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt
from ltxkit.ltx_core.progress import Progress, ProgressEvent
from ltxkit.ltx_core.sampling.guidance import Guidance
from ltxkit.ltx_core.shapes import LatentShape, PixelShape
from ltxkit.nodes import sockets
from ltxkit.nodes.condition import AddCondition
from ltxkit.nodes.host import use_host
from ltxkit.nodes.latent import DecodeVideo, EmptyLatent, EncodeVideo, UpscaleLatent
from ltxkit.nodes.launch import Storage
from ltxkit.nodes.loaders import LoadModel, LoadTextEncoder, LoadUpscaler, model_files
from ltxkit.nodes.sample import GenerateTwoStage, SampleVideo
from ltxkit.nodes.steps import CreateGuidance, CreateSchedule
from ltxkit.nodes.text import EncodePrompt
from ltxkit.nodes.widgets import declared_inputs, problem_with

VERSION = "2b-0.9.8-distilled"


class FakeHost:
    bfloat16 = True

    """A host with nothing beyond the protocol."""

    output_device = torch.device("cpu")
    output_dtype = torch.float32

    def __init__(self, models: Path) -> None:
        self.models = models
        self.said: list[str] = []
        self.events: list[ProgressEvent] = []
        self.placed: list[nn.Module] = []
        self.resident: list[tuple[nn.Module, int | None]] = []
        self.released: list[nn.Module] = []
        self.launched: dict[str, Storage] = {}

    def model_folders(self, kind: str) -> list[Path]:
        return [path for path in (self.models / kind,) if path.is_dir()]

    def tokenizers(self) -> list[Path]:
        return []

    def progress(self, preview: object = None) -> Progress:
        return self.events.append

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def place(
        self, module: nn.Module, *, memory_required: int = 0, resident_blocks: int | None = None
    ) -> Iterator[torch.device]:
        self.placed.append(module)
        self.resident.append((module, resident_blocks))
        yield torch.device("cpu")

    def release(self, module: nn.Module) -> None:
        self.released.append(module)

    def spare_memory(self, module: nn.Module) -> int | None:
        return None

    def recognise(self, outputs: tuple[Any, ...]) -> None:
        pass

    def launched_with(self, part: str) -> Storage:
        return self.launched.get(part, Storage())


@pytest.fixture(scope="module")
def host(tiny_models: Callable[..., Path]) -> Iterator[FakeHost]:
    fake = FakeHost(tiny_models())
    with use_host(fake), torch.inference_mode():
        yield fake


@pytest.fixture(autouse=True)
def forget(host: FakeHost) -> None:
    for remembered in (host.said, host.events, host.placed, host.resident, host.released, host.launched):
        remembered.clear()


def sampled(loaded: Any, prompts: Any, latent: Any = None, **more: Any) -> Tensor:
    inputs = {"seed": 1, "sampler": "preset", "condition_noise": 0.0, "schedule": torch.tensor([1.0, 0.5, 0.0])}
    latent = EmptyLatent().run(64, 64, 9, 0, 24.0, 1)[0] if latent is None else latent
    (result,) = SampleVideo().run(loaded[0], *prompts, latent, **{**inputs, **more})
    return result["samples"]


# ------------------------------------------------------------------------------------------------ loaders


def test_lists_show_files_and_folders_as_one_entry_each(tmp_path: Path):
    for name in (
        "checkpoints/a.safetensors",
        "checkpoints/sub/b.sft",
        "checkpoints/old.ckpt",
        "checkpoints/pipe/model_index.json",
        "checkpoints/pipe/transformer/config.json",
        "checkpoints/pipe/transformer/diffusion_pytorch_model.safetensors",
        "diffusion_models/a.safetensors",
        "diffusion_models/c.gguf",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with use_host(FakeHost(tmp_path)):
        files = model_files(("checkpoints", "diffusion_models"))
    own = ["a.safetensors", "pipe", "sub/b.sft", "a.safetensors [diffusion_models]", "c.gguf"]
    assert list(files) == [*own, "ltxkit-digits"]  # the bundled model last
    assert files["a.safetensors [diffusion_models]"] == tmp_path / "diffusion_models/a.safetensors"


def test_a_missing_file_says_what_there_is_and_where(host: FakeHost):
    declared = declared_inputs(LoadModel)
    assert problem_with("model_name", "gone.safetensors", declared["model_name"]) == (
        f"model_name: got 'gone.safetensors', which does not exist; expected ltxv-tiny.safetensors in "
        f"{host.models}/checkpoints; put it into one of these folders"
    )
    for name, file in (("model_name", "ltxv-tiny.safetensors"), ("vae_name", "ltxv-tiny.safetensors")):
        assert problem_with(name, file, declared[name]) is None
    assert problem_with("vae_name", "in the model file", declared["vae_name"]) is None
    assert "t5-tiny" in declared_inputs(LoadTextEncoder)["text_encoder_name"].choices
    with pytest.raises(ConfigError, match="gone"):
        LoadUpscaler().run("gone.safetensors", "auto")


def test_a_replaced_file_is_loaded_again(host: FakeHost, tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/a.safetensors").write_bytes(b"1")
    with use_host(FakeHost(tmp_path)):
        before = LoadModel.IS_CHANGED("a.safetensors", "in the model file", dtype="auto", version="from the file")
        (tmp_path / "checkpoints/a.safetensors").write_bytes(b"12")
        after = LoadModel.IS_CHANGED("a.safetensors", "in the model file", dtype="auto", version="from the file")
    assert before != after


def test_the_wrong_kind_of_file_is_named_as_what_it_is(host: FakeHost):
    names = host.models / "checkpoints/upscaler.safetensors"
    names.symlink_to(host.models / "latent_upscale_models/ltxv-tiny-spatial-upscaler.safetensors")
    try:
        with pytest.raises(LTXKitError, match="upscaler"):
            LoadModel().run(names.name, "in the model file", "auto", "from the file")
    finally:
        names.unlink()


# ------------------------------------------------------------------------------------------------ text


def test_conditioning_has_the_form_of_comfyuis_own(prompts: tuple[Any, Any]):
    for ((embeddings, values),) in prompts:
        assert embeddings.shape == (1, 128, 32)
        assert embeddings.dtype == torch.float32
        mask = values["attention_mask"]
        assert mask.shape == (1, 128)
        assert mask.dtype == torch.int64
        length = int(mask.sum())
        assert mask[0, :length].all()  # padding is on the right
        assert not embeddings[0, length:].any()
        assert values["frame_rate"] == 24.0


def test_the_text_encoder_leaves_the_device_unless_it_is_kept(host: FakeHost):
    for keep in (False, True):
        (encoder,) = LoadTextEncoder().run("t5-tiny", "fp32", keep)
        host.released.clear()
        EncodePrompt().run(encoder, "a", "b", 25.0)
        assert host.released == ([] if keep else [encoder.encoder.model])


def test_an_overlong_prompt_says_which_words_were_cut_off(host: FakeHost):
    (encoder,) = LoadTextEncoder().run("t5-tiny", "fp32", False)
    EncodePrompt().run(encoder, "word " * 300 + "lastword", "", 25.0)
    assert any("lastword" in text for text in host.said)


def test_the_node_shows_what_of_a_prompt_is_not_read(host: FakeHost):
    (encoder,) = LoadTextEncoder().run("t5-tiny", "fp32", False)
    host.said.clear()
    EncodePrompt().run(encoder, "一只猫 in the snow", "\x07blurry", 25.0)
    unknown, dropped = host.said
    assert 'does not know these characters of the prompt: 一 只 猫 (in "一只猫")' in unknown
    assert dropped.endswith("left out: U+0007")


# ------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("asked", "grid", "said"),
    [((64, 64, 9), (2, 2, 2), False), ((60, 64, 9), (2, 2, 2), True), ((64, 65, 10), (3, 3, 2), True)],
)
def test_an_empty_latent_is_large_enough_and_says_so(host: FakeHost, asked: Any, grid: Any, said: bool):
    width, height, frames = asked
    latent, rate = EmptyLatent().run(width, height, frames, 0.0, 24.0, 2)
    assert latent["samples"].shape == (2, 128, *grid)
    assert latent["ltxkit_canvas"] == sockets.Canvas(PixelShape(frames, height, width), 24.0, LatentShape(*grid))
    assert rate == 24.0
    (text,) = host.said
    assert ("made as" in text) == said
    assert text.endswith(f"Latent grid: {grid[2]}x{grid[1]}, {grid[0]} frames.")


def test_seconds_count_instead_of_frames(host: FakeHost):
    latent, _ = EmptyLatent().run(64, 64, 1000, 2.0, 24.0, 1)
    assert latent["ltxkit_canvas"].size.frames == 48


def test_another_latent_grid_comes_from_the_model(tiny_models: Callable[..., Path]):
    with use_host(FakeHost(tiny_models(compression="16x4"))):
        model, _ = LoadModel().run("ltxv-tiny.safetensors", "in the model file", "auto", "from the file")
        latent, _ = EmptyLatent().run(64, 64, 9, 0.0, 24.0, 1, model)
    assert latent["samples"].shape == (1, 16, 3, 4, 4)


def test_what_comes_out_has_exactly_the_size_that_was_asked_for(loaded: Any, prompts: Any):
    latent, _ = EmptyLatent().run(50, 70, 6, 0.0, 24.0, 2)
    result = {**latent, "samples": sampled(loaded, prompts, latent)}
    (images,) = DecodeVideo().run(result, loaded[1], 0.05, 0.025, 1)
    assert images.shape == (2 * 6, 70, 50, 3)  # clips of a batch follow each other, as in ComfyUI


def test_a_canvas_that_no_longer_belongs_to_the_latent_is_ignored(loaded: Any):
    latent, _ = EmptyLatent().run(50, 70, 6, 0.0, 24.0, 1)
    larger = {**latent, "samples": torch.zeros(1, 128, 2, 4, 2)}  # as a native node sets it
    (images,) = DecodeVideo().run(larger, loaded[1], 0.05, 0.025, 1)
    assert images.shape == (9, 128, 64, 3)


def test_encoding_pads_and_decoding_crops_it_off_again(host: FakeHost, loaded: Any):
    images = torch.rand(10, 50, 70, 3)
    (latent,) = EncodeVideo().run(images, loaded[1], 24.0)
    assert latent["samples"].shape == (1, 128, 3, 2, 3)
    assert "70x50, 10 frames: made as 96x64, 17 frames" in host.said[0]
    (back,) = DecodeVideo().run(latent, loaded[1], 0.0, 0.0, 0)
    assert back.shape == images.shape


def test_upscaling_doubles_the_canvas_and_drops_the_mask(host: FakeHost, loaded: Any):
    (upscaler,) = LoadUpscaler().run("ltxv-tiny-spatial-upscaler.safetensors", "auto")
    latent, _ = EmptyLatent().run(50, 70, 9, 0.0, 24.0, 1)
    latent = {**latent, "samples": torch.randn(1, 128, 2, 3, 2), "noise_mask": torch.ones(1, 1, 2, 3, 2), "mine": 7}
    upscaled, rate = UpscaleLatent().run(latent, upscaler, loaded[1], 1.0)
    assert rate == 24.0
    assert upscaled["samples"].shape == (1, 128, 2, 6, 4)
    assert upscaled["ltxkit_canvas"] == sockets.Canvas(PixelShape(9, 140, 100), 24.0, LatentShape(2, 6, 4))
    assert "noise_mask" not in upscaled
    assert upscaled["mine"] == 7


# ------------------------------------------------------------------------------------------------ sampling


def test_sample_alone_takes_the_presets_of_the_checkpoint(host: FakeHost, loaded: Any, prompts: Any):
    sampled(loaded, prompts, schedule=None)
    assert f"Sampling as {VERSION}." in host.said
    assert max(event.total for event in host.events if event.stage == "sample") == 8


def test_inputs_are_not_changed(loaded: Any, prompts: Any):
    latent, _ = EmptyLatent().run(64, 64, 9, 0.0, 24.0, 1)
    before = latent["samples"].clone()
    result = sampled(loaded, prompts, latent)
    assert torch.equal(latent["samples"], before)
    assert not torch.equal(result, before)


def test_a_condition_of_full_strength_is_what_it_shows(host: FakeHost, loaded: Any, prompts: Any):
    picture = torch.rand(1, 64, 64, 3)
    (conditions,) = AddCondition().run(picture, 0, 1.0, "crop")
    (conditions,) = AddCondition().run(torch.rand(1, 64, 64, 3), -1, 0.5, "crop", conditions)
    assert [one.frame for one in conditions] == [0, -1]
    result = sampled(loaded, prompts, vae=loaded[1], conditions=conditions)
    free = sampled(loaded, prompts)
    again = sampled(loaded, prompts, vae=loaded[1], conditions=conditions, schedule=torch.tensor([1.0, 0.9, 0.0]))
    assert torch.equal(result[:, :, 0], again[:, :, 0])  # kept, whatever the steps
    assert not torch.equal(result[:, :, 0], free[:, :, 0])
    assert host.placed[0] is not loaded[0].transformer  # the VAE's encoder, for the conditions


def test_the_frame_rate_comes_with_the_prompt_then_with_the_canvas():
    canvas = sockets.Canvas(PixelShape(9, 64, 64), 30.0, LatentShape(2, 2, 2))
    assert sockets.frame_rate({"frame_rate": 24}, canvas) == 24.0
    assert sockets.frame_rate({}, canvas) == 30.0
    assert sockets.frame_rate({}, None) == 25.0


@pytest.mark.parametrize(
    ("inputs", "levels"),
    [
        (("list", 30, "1000, 909, 725, 421, 0", 0.999), [0.909, 0.725, 0.421, 0.0]),
        (("list", 30, "[1.0 0.5]", 1.0), [1.0, 0.5, 0.0]),
        (("linear-quadratic", 2, "", 1.0), [1.0, 0.9750, 0.0]),
        (("linear-quadratic", 10, "", 0.4), [0.9320, 0.8130, 0.6180, 0.3470, 0.0]),
    ],
)
def test_schedules(host: FakeHost, inputs: Any, levels: list[float]):
    (sigmas,) = CreateSchedule().run(*inputs)
    assert sigmas.tolist() == pytest.approx(levels, abs=1e-4)
    assert host.said[0].startswith(f"{len(levels) - 1} step")


def test_preset_schedules_ask_for_the_model_and_shifted_ones_for_the_latent(loaded: Any):
    with pytest.raises(ConfigError, match=r"expected one for the schedule 'preset'; connect Load Model \(LTXKit\)"):
        CreateSchedule().run("preset", 30, "", 1.0)
    with pytest.raises(ConfigError, match="connect the latent"):
        CreateSchedule().run("shifted", 30, "", 1.0)
    (sigmas,) = CreateSchedule().run("preset, second pass", 30, "", 1.0, loaded[0])
    assert sigmas.tolist() == pytest.approx([0.9094, 0.725, 0.4219, 0.0], abs=1e-4)
    with pytest.raises(ConfigError, match="got '1, x' as levels"):
        CreateSchedule().run("list", 30, "1, x", 1.0)


def test_guidance_reads_its_blocks():
    (guidance,) = CreateGuidance().run(3.0, 0.7, 1.0, "11, 25 35", "attention_skip", 0.7, True)
    assert guidance == Guidance(
        scale=(3.0,),
        stg_scale=(1.0,),
        rescaling_scale=(0.7,),
        skip_blocks=((11, 25, 35),),
        stg_mode="attention_skip",
        cfg_star=True,
        guidance_rescale=0.7,
    )
    with pytest.raises(ConfigError, match="got 'x' as stg_blocks"):
        CreateGuidance().run(3.0, 0.7, 1.0, "x", "attention_skip", 0.7, True)


def test_guidance_on_a_distilled_checkpoint_is_warned_of(host: FakeHost, loaded: Any, prompts: Any):
    sampled(loaded, prompts, guidance=Guidance(scale=(3.0,)))
    assert any("use 1" in text for text in host.said)


def test_two_stage_makes_exactly_what_was_asked_for(host: FakeHost, loaded: Any, prompts: Any):
    (upscaler,) = LoadUpscaler().run("ltxv-tiny-spatial-upscaler.safetensors", "auto")
    (conditions,) = AddCondition().run(torch.rand(1, 30, 40, 3), 0, 1.0, "crop")
    images, latent = GenerateTwoStage().run(
        *loaded, upscaler, *prompts, 100, 70, 6, seed=1, adain=1.0, condition_noise=0.0, conditions=conditions
    )
    assert images.shape == (6, 70, 100, 3)
    assert latent["samples"].shape == (1, 128, 2, 2, 4)  # 64x32, twice
    stages = {event.stage for event in host.events}
    assert {"sample", "upscale", "refine", "decode"} <= stages


@pytest.mark.slow
def test_the_two_passes_keep_as_many_blocks_as_their_loaders_asked_for(host: FakeHost, prompts: Any):
    name = ("ltxv-tiny.safetensors", "in the model file", "fp32", VERSION)
    (first, vae), (second, _) = (LoadModel().run(*name, resident_blocks=blocks) for blocks in (2, -1))
    (upscaler,) = LoadUpscaler().run("ltxv-tiny-spatial-upscaler.safetensors", "auto")
    sizes = {"width": 96, "height": 96, "frames": 9, "seed": 1, "adain": 1.0, "condition_noise": 0.0}
    GenerateTwoStage().run(first, vae, upscaler, *prompts, **sizes, second_model=second)
    assert [blocks for module, blocks in host.resident if module is first.transformer] == [2]
    assert {blocks for module, blocks in host.resident if module is not first.transformer} == {None}


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("wrong", ["a string", 3, {}, torch.zeros(1), object()])
def test_another_object_on_our_sockets_is_refused(wrong: Any, loaded: Any, prompts: Any):
    latent, _ = EmptyLatent().run(64, 64, 9, 0.0, 24.0, 1)
    with pytest.raises(ConfigError, match=r"on `model`; expected LTXKIT_MODEL; .*'Load Model \(LTXKit\)'"):
        SampleVideo().run(wrong, *prompts, latent, 0, "preset", 0.0)
    with pytest.raises(ConfigError, match=r"on `vae`; expected LTXKIT_VAE"):
        DecodeVideo().run(latent, wrong, 0.05, 0.025, 0)
    with pytest.raises(ConfigError, match=r"on `text_encoder`; expected LTXKIT_TEXT_ENCODER"):
        EncodePrompt().run(wrong, "", "", 25.0)
    with pytest.raises(ConfigError, match=r"on `conditions`; expected LTXKIT_CONDITION"):
        AddCondition().run(torch.rand(1, 8, 8, 3), 0, 1.0, "crop", wrong)


@pytest.mark.parametrize("wrong", ["text", {}, {"latent": 1}])
def test_something_else_than_a_latent_or_a_prompt_is_refused(wrong: Any, loaded: Any, prompts: Any):
    with pytest.raises(ConfigError, match="expected LATENT"):
        DecodeVideo().run(wrong, loaded[1], 0.05, 0.025, 0)
    latent, _ = EmptyLatent().run(64, 64, 9, 0.0, 24.0, 1)
    with pytest.raises(ConfigError, match="on `positive`; expected CONDITIONING"):
        SampleVideo().run(loaded[0], wrong, wrong, latent, 0, "preset", 0.0)


def test_a_native_model_by_api_is_told_which_loader_to_use():
    """ComfyUI formats the type of the input into its sentence, which it puts on the input."""
    kind = SampleVideo.INPUT_TYPES()["required"]["model"][0]
    assert kind == "LTXKIT_MODEL"
    assert json.dumps(kind) == '"LTXKIT_MODEL"'
    assert f"input_type({kind})" == (
        "input_type(LTXKIT_MODEL; connect the node 'Load Model (LTXKit)', or a MODEL through 'Model from ComfyUI "
        "(LTXKit)')"
    )
    assert f"{SampleVideo.INPUT_TYPES()['required']['latent'][0]}" == "LATENT"
    assert f"{LoadModel.RETURN_TYPES[0]}" == "LTXKIT_MODEL"


def test_conditions_without_a_vae_are_refused_before_anything_runs():
    """ComfyUI passes None for what is connected."""
    assert "got conditions without a VAE" in str(SampleVideo.VALIDATE_INPUTS(conditions=None))
    assert SampleVideo.VALIDATE_INPUTS(conditions=None, vae=None) is True
    assert SampleVideo.VALIDATE_INPUTS(vae=None) is True


def test_text_of_another_encoder_is_refused(loaded: Any):
    other = [[torch.zeros(1, 77, 768), {"pooled_output": torch.zeros(1, 768)}]]
    with pytest.raises(ShapeError, match=r"positive prompt of shape \(1, 77, 768\); expected \(1, tokens, 32\); .*T5"):
        sampled(loaded, (other, other))


def test_a_latent_with_sound_or_of_a_picture_is_refused(loaded: Any, prompts: Any):
    with pytest.raises(UnsupportedError, match="LTX-2"):
        sampled(loaded, prompts, {"samples": object()})
    with pytest.raises(ShapeError, match=r"expected \(batch, channels, frames, height, width\)"):
        sampled(loaded, prompts, {"samples": torch.zeros(1, 4, 8, 8)})
    with pytest.raises(ShapeError, match="128"):
        sampled(loaded, prompts, {"samples": torch.zeros(1, 16, 2, 2, 2)})


def test_guides_that_native_nodes_have_appended_come_back_for_them_to_crop(loaded: Any, prompts: Any):
    guide = torch.randn(1, 128, 1, 2, 2)
    latent = {"samples": torch.cat([torch.zeros(1, 128, 2, 2, 2), guide], dim=2)}
    latent["noise_mask"] = torch.tensor([1.0, 1.0, 0.0]).view(1, 1, 3, 1, 1)
    corners = torch.tensor([[0, 0, 0, 0], [0, 0, 32, 32], [0, 32, 0, 32]])[None]
    guided = tuple([[cond[0][0], {**cond[0][1], "keyframe_idxs": corners}]] for cond in prompts)
    result = sampled(loaded, guided, latent)
    assert result.shape == (1, 128, 3, 2, 2)
    assert torch.equal(result[:, :, 2:], guide)
    assert not torch.equal(result[:, :, :2], sampled(loaded, prompts))


def test_conditions_without_a_vae_ask_for_it(loaded: Any, prompts: Any):
    (conditions,) = AddCondition().run(torch.rand(1, 64, 64, 3), 0, 1.0, "crop")
    with pytest.raises(ConfigError, match="VAE"):
        sampled(loaded, prompts, conditions=conditions)


def test_a_schedule_that_is_none_is_refused(loaded: Any, prompts: Any):
    with pytest.raises(ConfigError, match="on `schedule`; expected SIGMAS"):
        sampled(loaded, prompts, schedule="1, 0.5, 0")
    with pytest.raises(ConfigError, match="lower than the one before"):
        sampled(loaded, prompts, schedule=torch.tensor([0.5, 1.0, 0.0]))


def test_prompts_survive_the_way_through_conditioning():
    embeddings = torch.randn(1, 5, 8)
    conditioning = sockets.to_conditioning(EncodedPrompt(embeddings, torch.ones(1, 5)), 24.0, torch.device("cpu"))
    (prompt,), values = sockets.from_conditioning(conditioning, "positive")
    assert torch.equal(prompt.embeddings[:, :5], embeddings)
    assert prompt.mask is not None
    assert prompt.mask.sum() == 5
    assert values["frame_rate"] == 24.0

"""The plugin for vLLM-Omni, called as its server calls one, with stand-ins of the recorded signatures."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omni import RECORD, AbortedError, Omni
from PIL import Image

import ltxkit
from ltxkit.ltx_core.errors import ConfigError, LTXKitError
from ltxkit.service import vllm_omni as plugin

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SMALL = {"width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 2, "seed": 3}


@pytest.fixture
def omni(monkeypatch: pytest.MonkeyPatch) -> Omni:
    omni = Omni()
    for name, module in omni.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return omni


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that names the bundled model."""
    write_index(tmp_path)
    return tmp_path


def write_index(folder: Path) -> None:
    index = {"_class_name": "LTXKitPipeline", "ltxkit": {"model": "ltxkit-digits"}}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Omni, Any]]:
    """A pipeline as vLLM-Omni's loader makes one: inside a device, and with its dtype as the default."""
    omni, folder = Omni(), tmp_path_factory.mktemp("model")
    write_index(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in omni.modules.items():
            patch.setitem(sys.modules, name, module)
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("meta"):
                made = plugin.LTXKitPipeline(od_config=omni.config(folder))
            assert torch.get_default_dtype() is torch.bfloat16
            assert made.load_weights(iter(())) == set()
        finally:
            torch.set_default_dtype(torch.float32)
        yield omni, made


def forward(pipeline: Any, batch: Any) -> Any:
    with torch.inference_mode():
        return pipeline.forward(batch)


def test_the_entry_point_is_where_vllm_omni_looks(repository: Path) -> None:
    group = RECORD["modules"]["vllm_omni.plugins"]["constants"]["OMNI_DEFAULT_PLUGINS_GROUP"]
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    point = importlib.metadata.EntryPoint("ltxkit", project["entry-points"][group]["ltxkit"], group)
    assert point.load() is plugin.register
    assert "vllm_omni" not in sys.modules  # which nothing has asked for yet


def test_it_registers_what_nobody_else_makes(omni: Omni) -> None:
    omni.built_in["LTXPipeline"] = {}
    plugin.register()
    plugin.register()  # each of its processes may do so several times
    assert set(omni.registered) == {"LTXKitPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"}
    for said in omni.registered.values():
        module = sys.modules[said["module_name"]]
        assert getattr(module, said["class_name"]) is plugin.LTXKitPipeline
        assert getattr(module, said["post_process_func_name"])(None)
        assert said["pre_process_func_name"] is None
    assert omni.metadata["LTXKitPipeline"].final_output_type == "video"


def test_the_pipeline_has_the_form_of_one() -> None:
    assert issubclass(plugin.LTXKitPipeline, torch.nn.Module)
    parameters = inspect.signature(plugin.LTXKitPipeline).parameters
    assert parameters["od_config"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["prefix"].default == ""
    assert not hasattr(plugin.LTXKitPipeline, "denoise_step")  # steps are not its scheduler's


@pytest.mark.slow
def test_a_clip_is_the_librarys(loaded: tuple[Omni, Any]) -> None:
    omni, pipeline = loaded
    output = forward(pipeline, omni.batch_of(omni.request(fps=12.5, **SMALL)))
    ltx = ltxkit.load("ltxkit-digits", device="cpu")
    mine = ltx.generate("a 7 moving up", width=64, height=64, frames=9, steps=2, seed=3, fps=12.5).to_numpy()
    made = plugin.post_process_func(None)(output.output)
    assert made["metadata"] == {"video": {"fps": 12.5}}
    assert made["payload"]["video"].dtype == np.uint8
    assert (made["payload"]["video"] == mine[None]).all()
    assert torch.get_default_dtype() is torch.float32
    picture = Image.new("RGB", (64, 64), "white")
    said = {"prompt": "a 7", "negative_prompt": "a 3", "multi_modal_data": {"image": [picture]}}
    begun = forward(pipeline, omni.batch_of(omni.request(said, **SMALL))).output["payload"]["video"]
    assert begun[0, 0].float().mean() > 2 * mine[0].mean()  # digits are white on black
    dummy = omni.request({"prompt": "dummy run"}, name="dummy_req_id", extra_args={"cfg_text_scale": 1.0}, **SMALL)
    assert forward(pipeline, omni.batch_of(dummy)).output["payload"]["video"].shape == (1, 9, 64, 64, 3)
    omni.cancelled = True
    with pytest.raises(AbortedError):
        forward(pipeline, omni.batch_of(omni.request(**SMALL)))
    omni.cancelled = False


@pytest.mark.slow
def test_a_wrong_request_is_the_clients_fault(loaded: tuple[Omni, Any]) -> None:
    omni, pipeline = loaded
    error = omni.modules["vllm_omni.errors"].__dict__["OmniClientError"]
    for asked, message in (
        ({"sigmas": [1.0, 0.0]}, "got sigmas"),
        ({"num_outputs_per_prompt": 2}, "num_outputs_per_prompt"),
        ({"strength": 0.0}, "strength"),
        ({"latents": torch.zeros(1)}, "latents"),
        ({"guidance_scale_2": 2.0}, "guidance_scale_2"),
        ({"lora_request": object()}, "lora_request"),
        ({"output_type": "latent"}, "output_type"),
        ({"extra_step_kwargs": {"a": 1}}, "extra_step_kwargs"),
        ({"width": None}, "both or none"),
        ({"extra_args": {"flow_shift": 3}}, "flow_shift"),
        ({"extra_args": {"lora": "style"}}, "style"),
        ({"num_inference_steps": 0}, "whole number from 1"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(error, match=message) as caught:
            forward(pipeline, omni.batch_of(omni.request(**SMALL | asked)))
        assert caught.value.status_code == 400
    picture = Image.new("RGB", (8, 8))
    for data in ({"image": [picture] * 2}, {"image": picture, "video": [picture]}, {"audio": "a.wav"}):
        with pytest.raises(error, match="as references"):
            forward(pipeline, omni.batch_of(omni.request({"prompt": "a 7", "multi_modal_data": data}, **SMALL)))
    with pytest.raises(error, match="empty prompt"):
        forward(pipeline, omni.batch_of(omni.request({"prompt": " "}, **SMALL)))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {}),  # one frame is the default of image models
        ({"num_frames": 33}, {"num_frames": 33}),
        ({"num_frames": 48, "extra_args": {"duration": 2.0}}, {"seconds": 2.0}),  # the server's, at 24 per second
        ({"num_frames": 20, "fps": 10, "extra_args": {"duration": 2.0}}, {"seconds": 2.0, "fps": 10.0}),
        ({"num_frames": 33, "extra_args": {"duration": 2.0}}, {"num_frames": 33}),
        ({"extra_args": {"duration": 2.0}}, {"seconds": 2.0}),
        ({"fps": 8, "frame_rate": 9.5}, {"fps": 9.5}),
        ({"guidance_scale": 0.0}, {"guidance_scale": 0.0}),
        ({"extra_args": {"lora": "a", "stg_scale": 1}}, {"lora": "a", "extra_params": {"stg_scale": 1}}),
        ({"extra_args": {"video_codec_options": {}}}, {}),
        ({"seed": None, "generator": torch.Generator().manual_seed(9)}, {"seed": 9}),
        ({"seed": 2, "generator": torch.Generator().manual_seed(9)}, {"seed": 2}),
        ({"num_outputs_per_prompt": 1, "eta": 0.0, "output_type": "np"}, {}),
    ],
)
def test_fields_of_a_request(omni: Omni, asked: dict[str, Any], expected: dict[str, Any]) -> None:
    said = plugin.said_of(omni.request(**{"seed": 5} | asked))
    full = {"prompt": "a 7 moving up", "seed": 5, "extra_params": {}, **expected}
    assert {name: value for name, value in said.items() if value is not None} == full


def test_every_recorded_field_of_a_request_is_known() -> None:
    """Names that are refused exist; a later version that renames one must be looked at."""
    rows = RECORD["modules"]["vllm_omni.inputs.data"]["dataclasses"]["OmniDiffusionSamplingParams"]
    fields = {row.partition("=")[0] for row in rows}
    used = {"width", "height", "num_frames", "num_inference_steps", "seed", "generator", "extra_args", "output_type"}
    assert set(plugin._NOT_TAKEN) | used <= fields  # pyright: ignore[reportPrivateUsage]
    data = RECORD["modules"]["vllm_omni.diffusion.data"]["dataclasses"]
    whole, parallel = (
        {row.partition("=")[0] for row in data[name]} for name in ("OmniDiffusionConfig", "DiffusionParallelConfig")
    )
    assert set(plugin._OFF) <= whole | parallel  # pyright: ignore[reportPrivateUsage]
    assert set(plugin._ONE) <= parallel  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    "option",
    [
        {"tensor_parallel_size": 2},
        {"ulysses_degree": 2},
        {"data_parallel_size": 2},
        {"use_hsdp": True},
        {"enable_cpu_offload": True},
        {"quantization_config": "fp8"},
        {"cache_backend": "tea_cache"},
        {"step_execution": True},
        {"lora_path": "a.safetensors"},
        {"diffusion_offload_config": {"dit": True}},
    ],
    ids=str,
)
def test_options_that_ltxkit_decides_itself(omni: Omni, folder: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        plugin.LTXKitPipeline(od_config=omni.config(folder, **option))


def test_what_a_folder_offers(folder: Path) -> None:
    def catalog(said: object) -> Any:
        (folder / "model_index.json").write_text(json.dumps(said), encoding="utf-8")
        return plugin.catalog_of(folder)

    (folder / "t5").mkdir()
    (folder / "style.safetensors").touch()
    said = {"model": "13b-0.9.8-dev", "text_encoder": "t5", "quantization": "fp8", "loras": {"s": "style.safetensors"}}
    offered = catalog({"ltxkit": said})
    assert offered.model(None).files() == {
        "model": "13b-0.9.8-dev",  # the name of a release
        "text_encoder": str(folder / "t5"),
        "quantization": "fp8",
    }
    assert offered.lora("s") == str(folder / "style.safetensors")
    diffusers = catalog({"_class_name": "LTXPipeline", "vae": ["diffusers", "AutoencoderKLLTXVideo"]})
    assert diffusers.model(None).files() == {"model": str(folder)}
    for wrong, message in (
        ([], "a JSON object"),
        ({"ltxkit": []}, "a JSON object"),
        ({"ltxkit": {"quantisation": "fp8"}}, "did you mean quantization"),
        ({"ltxkit": {"model": 5}}, "expected text"),
        ({"ltxkit": {"loras": ["a"]}}, "names and files"),
        ({"ltxkit": {"loras": {"a": 5}}}, "names and files"),
    ):
        with pytest.raises(ConfigError, match=message):
            catalog(wrong)
    (folder / "model_index.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        plugin.catalog_of(folder)
    with pytest.raises(ConfigError, match="download the model"):
        plugin.catalog_of(Path("Lightricks/LTX-Video"))


def test_a_folder_without_a_model(omni: Omni, folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "LTXPipeline"}', encoding="utf-8")
    with pytest.raises(LTXKitError):
        plugin.LTXKitPipeline(od_config=omni.config(folder))

"""By which kernels a clip is made on a CPU: said, stored with it, and overruled."""

import pytest
import torch

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.kernels import here, private
from ltxkit.ltx_core.kernels.choice import PLAIN, parse_kernels
from ltxkit.ltx_core.kernels.here import kernels_here
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.pipelines.prompt_cache import prompts_of
from ltxkit.ltx_core.placing.balanced import BalancedPlacement
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.weights.build import open_models

CHECKPOINT, T5 = "checkpoints/ltxv-tiny.safetensors", "text_encoders/t5-tiny"
CLIP = {"width": 64, "height": 32, "frames": 9, "fps": 8, "steps": 2, "seed": 3}
FORMS = "products=packed,attention=products"
pytestmark = [
    pytest.mark.skipif(not private.works("products", torch.float32), reason="this torch has no oneDNN products"),
    pytest.mark.usefixtures("ample_memory"),
]


@pytest.fixture(scope="module")
def load(tiny_models):
    folder = tiny_models()

    def loaded(**options):
        said = []
        components = Components.load(folder / CHECKPOINT, folder / T5, device="cpu", notes=said.append, **options)
        return components, said

    loaded.folder = folder
    return loaded


def made(components, **options):
    return components.generate("fox", **CLIP, **options)


def test_a_clip_by_other_kernels_says_so_and_is_the_same_within_rounding(load):
    plain, said = load(kernels="plain", dtype=torch.float32)
    assert not any("On the CPU" in sentence for sentence in said)
    expected = made(plain)
    assert "kernels" not in expected.settings

    other, said = load(kernels=FORMS, dtype=torch.float32)
    (sentence,) = (sentence for sentence in said if sentence.startswith("On the CPU: "))
    assert "packed in float32" in sentence
    clip = made(other)
    assert clip.settings["kernels"] == kernels_here(FORMS).to_json()
    assert clip.settings["kernels"]["products"]["forms"]["float32"] == "packed"
    assert (clip.latent - expected.latent).abs().max() <= 1e-4 * expected.latent.abs().max()
    assert torch.equal(made(other).latent, clip.latent), "a seed stays one clip"


def test_the_variable_is_overruled_by_the_option(load, monkeypatch):
    monkeypatch.setenv("LTXKIT_KERNELS", FORMS)
    by_variable, _ = load()
    assert made(by_variable).settings["kernels"] == kernels_here(FORMS).to_json()
    assert "kernels" not in made(load(kernels="plain")[0]).settings


def test_a_prompt_is_kept_by_the_kernels_that_encoded_it(load):
    """What one choice has encoded is not taken for another's."""
    components, _ = load()
    encoder, ids = components.text_encoder, (5, 1)

    def kept(text):
        chosen = None if text is None else parse_kernels(text, "asked for")
        said = {"dtype": None, "quantization": None, "device": torch.device("cpu"), "kernels": chosen}
        return prompts_of(open_models(load.folder / T5), encoder.config, **said)

    texts = ("plain", "products=packed", "products=onednn", "norms=pieces", "products=plain", "dtype=float32")
    for number, text in enumerate(texts):
        assert kept(text).get(ids) is None
        kept(text).put(ids, torch.full((1, 2, 4), float(number)))
    assert [kept(text).get(ids)[0, 0, 0] for text in texts] == list(range(len(texts)))
    assert kept("dtype=file").get(ids)[0, 0, 0] == kept(None).get(ids)[0, 0, 0] == 0, "both are plain"
    chosen = parse_kernels("products=packed", "asked for")
    assert DevicePlacement("cpu", kernels=chosen).kernels_of(encoder.outline) == chosen
    assert BalancedPlacement(["cpu"]).kernels_of(encoder.outline) == PLAIN
    assert BalancedPlacement(["cpu", "cpu"]).kernels_of(encoder.outline) is None, "divided ones compute plainly"


@pytest.mark.slow
def test_a_clip_is_decoded_by_the_kernels_of_its_placement(load, monkeypatch):
    packings = []
    pack = private.pack_convolution
    monkeypatch.setattr(private, "pack_convolution", lambda *values, **at: packings.append(1) or pack(*values, **at))
    components, _ = load(kernels="convolutions=packed")
    clip = made(components)
    packings.clear()
    frames = torch.cat(list(clip.frames()))
    assert packings
    plain, _ = load(kernels="plain")
    assert torch.equal(frames, torch.cat(list(made(plain).frames())))
    packings.clear()
    list(clip.frames())
    assert not packings, "they stay with the decoder"
    components.release()
    list(clip.frames())
    assert packings


def test_what_was_measured_is_used_without_being_asked_for(load, monkeypatch, tmp_path):
    monkeypatch.delenv("LTXKIT_KERNELS")
    monkeypatch.setenv("LTXKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(here, "measure", lambda: parse_kernels("products=packed", "measured"))
    components, said = load()
    assert any(sentence.startswith("Measured what is fastest") for sentence in said)
    assert made(components).settings["kernels"] == parse_kernels("products=packed", "").to_json()
    _, said = load()
    assert not any(sentence.startswith("Measured") for sentence in said)


def test_an_asked_for_dtype_goes_before_the_choice(load):
    asked, _ = load(kernels="dtype=float32", dtype=torch.bfloat16)
    free, _ = load(kernels="dtype=float32")
    with asked.placement(asked.transformer), free.placement(free.transformer):
        assert asked.transformer.compute_dtype == parse_kernels("dtype=file", "").products.dtype(torch.bfloat16)
        assert free.transformer.compute_dtype == torch.float32


@pytest.mark.parametrize("kernels", ["fast", "products=mkl", "dtype=bfloat16"])
def test_kernels_that_do_not_exist_are_refused_before_a_file_is_opened(kernels, tmp_path):
    for device in ("cpu", ["cpu", "cpu"]):
        with pytest.raises(ConfigError, match="got the kernels"):
            Components.load(tmp_path / "none", tmp_path / "none", kernels=kernels, device=device)

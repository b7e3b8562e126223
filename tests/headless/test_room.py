"""A graph that main memory cannot hold is one sentence with figures: the system would end the process, with no word."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ltxkit.headless.core_nodes import GetVideoComponents, ImageScale, LoadImage, LoadVideo
from ltxkit.headless.core_parts import ImageBatch, ImageStitch, LatentConcat
from ltxkit.headless.host import PlainHost
from ltxkit.headless.runner import Runner, all_nodes
from ltxkit.ltx_core import main_memory, media
from ltxkit.ltx_core.errors import ConfigError, ShapeError, UnsupportedError
from ltxkit.ltx_core.main_memory import Memory
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.nodes import latent as latent_nodes
from ltxkit.nodes import loaders
from ltxkit.nodes.host import use_host
from ltxkit.nodes.latent import EmptyLatent

FIGURES = r"takes [\d.]+ GB of main memory; expected at most the [\d.]+ GB that are free; make it smaller or shorter"


@pytest.fixture
def host(tmp_path: Path) -> PlainHost:
    for name in ("models", "in", "out"):
        (tmp_path / name).mkdir()
    cpu = torch.device("cpu")
    return PlainHost(tmp_path / "models", tmp_path / "in", tmp_path / "out", device=cpu, notes=lambda text: None)


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Main memory of so many MB, all free, and no swap; questions are asked after every MB of frames."""

    def set_to(megabytes: float) -> None:
        there = int(megabytes * 1e6)
        monkeypatch.setattr(main_memory, "main_memory", lambda: Memory(there, there))
        monkeypatch.setattr(main_memory, "swap_memory", lambda: 0)
        monkeypatch.setattr(main_memory, "ASKED_EVERY", 10**5)

    return set_to


def graph(**canvas: Any) -> dict[str, Any]:
    canvas = {"width": 64, "height": 64, "frames": 9, "seconds": 0, "frame_rate": 24, "batch_size": 1} | canvas
    return {
        "1": {"class_type": "LTXKitLoadModel", "inputs": {"model_name": "ltxkit-digits", "dtype": "auto",
              "vae_name": "in the model file", "version": "from the file"}},
        "2": {"class_type": "LTXKitLoadTextEncoder", "inputs": {"text_encoder_name": "ltxkit-digits", "dtype": "auto",
              "keep_on_device": False}},
        "3": {"class_type": "LTXKitEmptyLatent", "inputs": canvas, "_meta": {"title": "My canvas"}},
        "4": {"class_type": "LTXKitEncodePrompt", "inputs": {"positive": "a 7", "negative": "", "frame_rate": 24,
              "text_encoder": ["2", 0]}},
        "5": {"class_type": "LTXKitSampleVideo", "inputs": {"seed": 0, "sampler": "preset", "condition_noise": 0.15,
              "levels": "own", "model": ["1", 0], "positive": ["4", 0], "negative": ["4", 1], "latent": ["3", 0]},
              "_meta": {"title": "My sampler"}},
        "6": {"class_type": "LTXKitDecodeVideo", "inputs": {"decode_timestep": 0.05, "decode_noise_scale": 0.025,
              "seed": 0, "latent": ["5", 0], "vae": ["1", 1]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "seen", "images": ["6", 0]}},
    }  # fmt: skip


@pytest.mark.parametrize(
    "canvas",
    [
        {"width": 8192, "height": 8192, "frames": 1000},
        {"width": 16384, "height": 16384, "frames": 10**5, "batch_size": 64},
        {"width": 4096, "height": 4096, "seconds": 3600.0},
        {"width": 4096, "height": 4096, "seconds": 3600.0, "frame_rate": ["7", 0]},
    ],
)
def test_a_canvas_beyond_memory_is_refused_before_a_model_is_loaded(
    host: PlainHost, canvas: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loaders, "open_models", lambda *_, **__: pytest.fail("a model was opened"))
    prompt = graph(**canvas) | {"7": {"class_type": "PrimitiveFloat", "inputs": {"value": 24.0}}}
    with pytest.raises(
        UnsupportedError, match=rf'^"My canvas" \(LTXKitEmptyLatent, 3\): got .* frames of .* {FIGURES}$'
    ):
        Runner(host, all_nodes()).run(prompt)


def of_a_picture(host: PlainHost, size: tuple[int, int], frames: int, **canvas: Any) -> dict[str, Any]:
    """A canvas, decoded as it is, of a size that only a node knows: Get Image Size of a picture."""
    Image.new("RGB", size).save(host.input_folder / "a.png")
    prompt = graph(width=["8", 0], height=["8", 1], frames=frames, **canvas)
    prompt["6"]["inputs"]["latent"] = ["3", 0]
    prompt["7"] = {"class_type": "LoadImage", "inputs": {"image": "a.png"}}
    prompt["8"] = {"class_type": "GetImageSize", "inputs": {"image": ["7", 0]}}
    return prompt


@pytest.mark.slow
def test_a_canvas_of_another_node_is_refused_where_it_is_made(host: PlainHost, little: Callable[[float], None]):
    prompt = of_a_picture(host, (1600, 1600), 121)
    little(60)  # more than the picture takes
    with pytest.raises(UnsupportedError, match=rf'^"My canvas" .*got a latent of shape .*{FIGURES}$'):
        Runner(host, all_nodes()).run(prompt)


def test_the_nodes_of_a_clip_ask_under_every_host(host: PlainHost, little: Callable[[float], None]):
    little(0.01)
    with use_host(host), pytest.raises(UnsupportedError, match=FIGURES):
        EmptyLatent().run(768, 512, 121, 0.0, 24.0, 1)
    with pytest.raises(UnsupportedError, match="the work of this node, which " + FIGURES):
        host.place(torch.nn.Linear(2, 2), memory_required=10**6)


@pytest.mark.slow
def test_decoding_asks_for_the_frames(host: PlainHost, little: Callable[[float], None]):
    prompt = of_a_picture(host, (64, 64), 97, model=["1", 0])
    taken = 2 * 97 * 64 * 64 * 3 * 4
    little(taken / 1e6 * 0.99)
    with pytest.raises(UnsupportedError, match=rf"got 97 frames of 64x64 pixels, which {FIGURES}"):
        Runner(host, all_nodes()).run(prompt)
    little(taken / 1e6 * 1.01)
    latent_nodes.check_frames(PixelShape(97, 64, 64))


# --------------------------------------------------------------------------------------------- stand-ins for core nodes

PICTURE = torch.rand(1, 8, 8, 3)


@pytest.mark.parametrize(
    "work",
    [
        lambda: ImageScale().upscale(PICTURE, "bilinear", 500, 500, "disabled"),
        lambda: ImageScale().upscale(PICTURE, "lanczos", 500, 500, "disabled"),
        lambda: ImageBatch().batch(PICTURE.expand(1, 8, 8, 3), torch.rand(500, 1, 1, 3).expand(500, 40, 40, 3)),
        lambda: ImageStitch().stitch(torch.rand(1, 900, 1, 3), "right", True, 0, "white", torch.rand(1, 1, 900, 3)),
    ],
)
def test_a_picture_beyond_memory(work: Callable[[], Any], little: Callable[[float], None]):
    little(0.3)
    with pytest.raises(UnsupportedError, match=FIGURES):
        work()


@pytest.mark.slow
def test_a_clip_is_read_as_long_as_memory_holds_it(host: PlainHost, little: Callable[[float], None]):
    """One colour for a long time is a small file and large frames."""
    path = host.input_folder / "long.mp4"
    media.write_video(path, [torch.zeros(40, 64, 64, 3)], fps=Fraction(24))
    whole = 40 * 64 * 64 * 24
    for megabytes, fits in ((whole * 2 / 1e6, True), (whole * 0.4 / 1e6, False)):
        little(megabytes)
        with use_host(host):
            for read in (
                lambda: GetVideoComponents().split(LoadVideo().load("long.mp4")[0])[0],
                lambda: LoadImage().load_image("long.mp4")[0],
                lambda: media.read_video(path).frames,
            ):
                if fits:
                    assert read().shape == (40, 64, 64, 3)
                    continue
                with pytest.raises(
                    UnsupportedError, match=rf"the clip .*long.mp4, of which \d+ frames are read, .*{FIGURES}"
                ):
                    read()
    assert media.read_video(path, limit=5).frames.shape[0] == 5  # as many as fit are read all the same


def test_what_does_not_fit_together_is_one_sentence():
    with pytest.raises(ShapeError, match="images of the shapes"):
        ImageBatch().batch(PICTURE, torch.rand(1, 8, 8, 4))
    with pytest.raises(ShapeError, match="images of the shapes"):
        ImageStitch().stitch(PICTURE, "right", True, 0, "white", torch.rand(1, 8, 8, 4))
    with pytest.raises(ShapeError, match="a pixel remains"):
        ImageStitch().stitch(torch.rand(1, 8, 1, 3), "down", True, 0, "white", torch.rand(1, 1, 80, 3))
    with pytest.raises(ShapeError, match="latents of the shapes"):
        LatentConcat().concat({"samples": torch.rand(1, 4, 2, 2, 2)}, {"samples": torch.rand(1, 4, 2, 3, 2)}, "t")
    with pytest.raises(ShapeError, match="axes"):
        LatentConcat().concat({"samples": torch.rand(1, 4)}, {"samples": torch.rand(1, 4)}, "t")
    with pytest.raises(ConfigError, match="of which a pixel remains"):
        ImageScale().upscale(torch.rand(1, 1, 4000, 3), "area", 1, 16384, "center")

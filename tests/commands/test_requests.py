"""Random requests through four doors: the library, nodes, a graph without ComfyUI, and the command.

Each gives exactly the clip that was asked for, or refuses it in one sentence; all four give the same
frames, or all refuse.
What the core refuses, they say with the same sentence. What a door refuses of its own (a widget's range, an option's
value), it says of its own name for it, with the value that it got.

    LTXKIT_REQUESTS=1000 .venv/bin/pytest -n0 tests/commands/test_requests.py        # a thousand of them
    LTXKIT_REQUESTS=400-1000 .venv/bin/pytest -n0 tests/commands/test_requests.py    # from the 400th on
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ltxkit import cli
from ltxkit.headless.host import PlainHost
from ltxkit.headless.runner import Runner, all_nodes
from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import LTXKitError
from ltxkit.ltx_core.pipelines.condition import Condition
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER
from ltxkit.nodes.condition import AddCondition
from ltxkit.nodes.host import use_host
from ltxkit.nodes.latent import DecodeVideo, EmptyLatent
from ltxkit.nodes.loaders import LoadModel, LoadTextEncoder
from ltxkit.nodes.sample import SampleVideo
from ltxkit.nodes.steps import CreateGuidance, CreateSchedule
from ltxkit.nodes.text import EncodePrompt

IN_TESTS = 50
FOUND = (949,)  # what the thousand have found since
NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Request:
    """fault: the field that no door can take; None: the clip can be made."""

    width: int
    height: int
    frames: int
    fps: float
    seed: int
    levels: tuple[float, ...]
    guidance: float
    prompt: str
    picture: str | None
    at: int
    strength: float
    crf: int
    resize: str
    fault: str | None = None


FAULTS: dict[str, tuple[Any, ...]] = {
    "width": (0, -64, 20_000, 10**30),
    "height": (0, -1, 16_385),
    "frames": (0, -9, 100_001),
    "fps": (0.0, -24.0, 1e300, NAN, INF),
    "seed": (-1, 2**64),
    "levels": ((), (0.5, 0.9), (1.0, NAN), (INF, 0.5), (-0.5,)),
    "guidance": (NAN, INF, -1.0, 1e9),
    "strength": (NAN, -0.1, 1.1, INF),
    "crf": (-1, 64),
    "picture": ("broken.png", "text.png", "not-there.png", "a\0b.png", "x" * 300 + ".png"),
    "at": (10**6, -(10**6), 99, -99),
}
# No JPEG and no alpha: Load Image reads as ComfyUI's does, by FFmpeg and without transparency; the others by Pillow.
PICTURES = ("small.png", "tall.png", "wide.png", "dot.png", "grey.png", "deep.png", None, None)


def request_of(number: int) -> Request:
    rng = random.Random(number)
    frames = rng.choice([1, 1, 2, 5, 8, 9, 9, 10])
    request = Request(
        width=rng.choice([16, 17, 31, 32, 32, 33, 47, 64]),
        height=rng.choice([16, 18, 32, 32, 40]),
        frames=frames,
        fps=rng.choice([1.0, 12.0, 23.976, 24.0, 25.0, 60.0]),
        seed=rng.choice([0, 1, 7, 2**32, 2**64 - 1]),
        levels=rng.choice([(1.0,), (1.0, 0.5), (1.0, 0.975)]),  # below 1, a node starts from the latent that it gets
        guidance=rng.choice([1.0, 1.0, 3.0]),
        prompt=rng.choice(["a fox", "", "A  Fox,\nin the snow", "狐狸", "é" * 400, "\ufffd"]),
        picture=rng.choice(PICTURES),
        at=rng.choice([0, 0, -1, frames - 1]),
        strength=rng.choice([1.0, 0.5, 0.0]),
        crf=rng.choice([0, 0, 29]),
        resize="crop",  # the command's only one
    )
    if rng.random() < 0.5:
        return request
    fault = rng.choice(list(FAULTS))
    request = replace(request, fault=fault, **{fault: rng.choice(FAULTS[fault])})
    return replace(request, picture="small.png") if fault in ("strength", "crf", "at") else request


# ----------------------------------------------------------------------------------------------------------- four doors


class Keep:
    """An output node that holds the frames that it gets."""

    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "keep", True, "test"
    kept: Tensor | None = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"images": ("IMAGE",)}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:  # noqa: N802
        return NAN  # it runs every time

    def keep(self, images: Tensor) -> dict[str, Any]:
        type(self).kept = images
        return {}


class Doors:
    """The tiny model behind every door, loaded once where a door can."""

    def __init__(self, models: Path, folder: Path) -> None:
        self.models, self.folder = models, folder
        self.input = folder / "in"
        self.input.mkdir(parents=True)
        pictures(self.input)
        self.out = folder / "out"
        os.environ["LTXKIT_KERNELS"] = "plain"  # for the host of the nodes, which takes none
        given: dict[str, Any] = {"device": "cpu", "cache": False}
        self.ltx = Components.load(models / CHECKPOINT, models / TEXT_ENCODER, notes=_silent, **given)
        self.recipe = self.ltx.recipe
        self.host = PlainHost(models, self.input, self.out, device=torch.device("cpu"), notes=_silent)
        self.runner = Runner(self.host, {**all_nodes(), "Keep": Keep})
        with self.inside():
            self.model, self.vae = LoadModel().run(*MODEL.values())
            (self.encoder,) = LoadTextEncoder().run(*ENCODER.values())

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        with use_host(self.host), torch.inference_mode():
            yield

    def library(self, request: Request) -> Tensor:
        conditions = []
        if request.picture is not None:
            shown = media.read_image(self.input / request.picture, _silent)
            conditions = [Condition(shown, request.at, request.strength, request.resize, request.crf)]  # pyright: ignore[reportArgumentType]
        return self.ltx.generate(
            request.prompt,
            negative_prompt="" if request.guidance != 1 else None,
            width=request.width,
            height=request.height,
            frames=request.frames,
            fps=request.fps,
            seed=request.seed,
            conditions=conditions,
            sigmas=request.levels,
            guidance_scale=request.guidance,
            stg_scale=0,
            guidance_rescale=0,
            cfg_star=False,
            progress=False,
            notes=_silent,
        ).to_tensor()

    def nodes(self, request: Request) -> Tensor:
        values = self.values(request)
        with self.inside():
            latent, rate = EmptyLatent().run(**values["3"], model=self.model)
            positive, negative = EncodePrompt().run(**values["4"], text_encoder=self.encoder, frame_rate=rate)
            (schedule,) = CreateSchedule().run(**values["5"])
            (guidance,) = CreateGuidance().run(**values["6"])
            more = {}
            if request.picture is not None:
                node_class: Any = all_nodes()["LoadImage"]
                problem = node_class.VALIDATE_INPUTS(image=request.picture)
                if problem is not True:
                    raise RefusedError(problem)
                image = node_class().load_image(request.picture)[0]
                more = {"conditions": AddCondition().run(image, **values["2"])[0], "vae": self.vae}
            (sampled,) = SampleVideo().run(
                self.model,
                positive,
                negative,
                latent,
                **values["7"],
                schedule=schedule,
                guidance=guidance,
                **more,
            )
            return DecodeVideo().run(sampled, self.vae, **values["8"])[0]

    def headless(self, request: Request) -> Tensor:
        values = self.values(request)
        links: dict[str, dict[str, Any]] = {
            "3": {"model": ["0", 0]},
            "4": {"text_encoder": ["10", 0], "frame_rate": ["3", 1]},
            "7": {"model": ["0", 0], "positive": ["4", 0], "negative": ["4", 1], "latent": ["3", 0],
                  "schedule": ["5", 0], "guidance": ["6", 0]},
            "8": {"latent": ["7", 0], "vae": ["0", 1]},
        }  # fmt: skip
        classes = {"3": "LTXKitEmptyLatent", "4": "LTXKitEncodePrompt", "5": "LTXKitCreateSchedule",
                   "6": "LTXKitCreateGuidance", "7": "LTXKitSampleVideo", "8": "LTXKitDecodeVideo"}  # fmt: skip
        prompt = {
            "0": {"class_type": "LTXKitLoadModel", "inputs": MODEL},
            "10": {"class_type": "LTXKitLoadTextEncoder", "inputs": ENCODER},
            "9": {"class_type": "Keep", "inputs": {"images": ["8", 0]}},
            **{i: {"class_type": name, "inputs": {**values[i], **links.get(i, {})}} for i, name in classes.items()},
        }
        if request.picture is not None:
            prompt["1"] = {"class_type": "LoadImage", "inputs": {"image": request.picture}}
            prompt["2"] = {"class_type": "LTXKitAddCondition", "inputs": {"image": ["1", 0], **values["2"]}}
            prompt["7"]["inputs"] |= {"conditions": ["2", 0], "vae": ["0", 1]}
        Keep.kept = None
        self.runner.run(json.loads(json.dumps(prompt)))
        assert Keep.kept is not None
        return Keep.kept

    def values(self, request: Request) -> dict[str, dict[str, Any]]:
        """The widgets of the nodes, by their ids in the graph."""
        condition = {"frame": request.at, "strength": request.strength, "resize": request.resize, "crf": request.crf}
        return {
            "2": condition,
            "3": {"width": request.width, "height": request.height, "frames": request.frames, "seconds": 0.0,
                  "frame_rate": request.fps, "batch_size": 1},
            "4": {"positive": request.prompt, "negative": ""},
            "5": {"kind": "list", "steps": 1, "levels": ", ".join(map(str, request.levels)), "denoise_strength": 1.0},
            "6": {"guidance_scale": request.guidance, "guidance_rescale": 0.0, "stg_scale": 0.0, "stg_blocks": "",
                  "stg_mode": "attention_values", "stg_rescale": 1.0, "cfg_star": False},
            "7": {"seed": request.seed, "sampler": "preset", "condition_noise": self.recipe.image_cond_noise_scale,
                  "levels": "own"},
            "8": {"decode_timestep": self.recipe.decode_timestep, "decode_noise_scale": self.recipe.decode_noise_scale,
                  "seed": request.seed},
        }  # fmt: skip

    def command(self, request: Request) -> Tensor:
        """Frames of eight bits."""
        folder = self.out / "frames"
        arguments = ["generate", "--prompt", request.prompt, "-o", f"{folder}/", "--overwrite", "-q"]
        arguments += ["--model", self.models / CHECKPOINT, "--text-encoder", self.models / TEXT_ENCODER]
        arguments += ["--device", "cpu", "--no-cache"]
        arguments += [f"--size={request.width}x{request.height}", f"--frames={request.frames}", f"--fps={request.fps}"]
        arguments += [f"--seed={request.seed}", f"--sigmas={','.join(map(str, request.levels))}"]
        arguments += [f"--guidance={request.guidance}", "--stg-scale=0", "--guidance-rescale=0", "--no-cfg-star"]
        arguments += ["--negative="] if request.guidance != 1 else []
        if request.picture is not None:
            arguments += [f"--at={request.at}={self.input / request.picture}", f"--strength={request.strength}"]
            arguments += [f"--crf={request.crf}"]
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                status = cli.main([str(argument) for argument in arguments])
            except SystemExit as exit:  # argparse
                status = exit.code
        if status != 0:
            assert status == 2, (status, said.getvalue())
            raise RefusedError(said.getvalue().strip().removeprefix("ltxkit: "))
        files = sorted(folder.iterdir())
        return torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])


class RefusedError(Exception):
    """A door's refusal that is no exception of ours."""


def _silent(_: str) -> None: ...


MODEL = {"model_name": CHECKPOINT.name, "vae_name": "in the model file", "dtype": "auto", "version": "from the file"}
ENCODER = {"text_encoder_name": TEXT_ENCODER.name, "dtype": "auto", "keep_on_device": False}


def pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> Any:
        return rng.integers(0, 256, shape, np.uint8)

    for name, shape in (("small", (20, 24, 3)), ("tall", (50, 1, 3)), ("wide", (1, 50, 3)), ("dot", (1, 1, 3)),
                        ("grey", (9, 9)),):  # fmt: skip
        Image.fromarray(noise(*shape)).save(folder / f"{name}.png")
    Image.fromarray(noise(16, 16).astype(np.uint16) * 257).save(folder / "deep.png")
    (folder / "broken.png").write_bytes((folder / "small.png").read_bytes()[:200])
    (folder / "text.png").write_text("a picture")


# ---------------------------------------------------------------------------------------------------------- the verdict

DOORS: tuple[str, ...] = ("library", "nodes", "headless", "command")


def outcome(door: Callable[[Request], Tensor], request: Request) -> Tensor | str:
    try:
        return door(request)
    except (LTXKitError, RefusedError) as error:
        return str(error)


def judged(doors: Doors, request: Request) -> list[str]:
    """What is wrong with the four outcomes of a request."""
    outcomes = {name: outcome(getattr(doors, name), request) for name in DOORS}
    said = {name: text for name, text in outcomes.items() if isinstance(text, str)}
    if request.fault is None:
        wrong = [f"{name} refuses: {text}" for name, text in said.items()]
        library = outcomes["library"]
        shape = (request.frames, request.height, request.width, 3)
        for name, frames in outcomes.items():
            if isinstance(frames, Tensor) and frames.shape != shape:
                wrong.append(f"{name} gives {tuple(frames.shape)}, not {shape}")
            elif isinstance(frames, Tensor) and isinstance(library, Tensor):
                same = (library * 255).round().byte() if name == "command" else library
                if not torch.equal(frames, same):
                    wrong.append(f"{name} gives other frames than the library: {float((frames - same).abs().max())}")
        return wrong
    wrong = [f"{name} takes it" for name in DOORS if name not in said]
    for name, text in said.items():
        if not is_sentence(text):
            wrong.append(f"{name} says no sentence: {text}")
    core = {name: core_of(text) for name, text in said.items()}
    if core.get("nodes") != core.get("headless"):
        wrong.append(f"nodes and headless differ: {core.get('nodes')!r}, {core.get('headless')!r}")
    if request.picture in ("broken.png", "text.png") and len(set(core.values())) > 1:
        wrong.append(f"sentences differ: {core}")
    if request.fault == "at" and abs(request.at) == 99:
        ranges = {name: re.search(r"(-?\d+ to -?\d+)", text) for name, text in core.items()}
        if len({found and found[1] for found in ranges.values()}) > 1 or core["library"] != core["nodes"]:
            wrong.append(f"sentences differ: {core}")
    return wrong


def is_sentence(text: str) -> bool:
    return "Traceback" not in text and "got " in text and "expected " in text


def core_of(text: str) -> str:
    """A sentence without what a door puts around it."""
    text = text.splitlines()[-1].strip().removeprefix("- ")
    text = re.sub(r'^"[^"]*" \([^)]*\): ', "", text)
    text = re.sub(r"; change the widget, or what is linked to it$", "", text)
    return re.sub(r"^(\w+): got ", r"got \1 ", text)


# ---------------------------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def doors(tiny_models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTXKIT_KERNELS", "plain")
        yield Doors(tiny_models(), tmp_path_factory.mktemp("requests"))


@pytest.mark.slow
def test_four_doors_agree(doors: Doors):
    first, _, end = os.environ.get("LTXKIT_REQUESTS", str(IN_TESTS)).rpartition("-")
    numbers = {*range(int(first or 0), int(end)), *FOUND}
    wrong = [
        f"{number}, {request_of(number)}: {each}"
        for number in sorted(numbers)
        for each in judged(doors, request_of(number))
    ]
    assert not wrong, "\n".join(wrong)

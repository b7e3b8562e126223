"""What a folder of models offers: by names, and by the parts that a file holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltxkit.ltx_core.weights import listing
from ltxkit.ltx_core.weights.convert import convert
from ltxkit.ltx_core.weights.listing import holds, models_in
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER, UPSCALER

LINKS = pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links on this system")
FIRST, SECOND = (f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2))


def make(root: Path, names: Iterable[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def offered(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in models_in(root))


REPOSITORY = [
    "README.md",
    "model_index.json",
    "ltx-video-2b-v0.9.1.safetensors",
    "ltxv-13b-0.9.8-dev.safetensors",
    "ltxv-spatial-upscaler-0.9.8.safetensors",
    "loras/ltxv-lora.safetensors",
    "media/trailer.gif",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "tokenizer/spiece.model",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    ".git/lfs/objects/x.safetensors",
    ".cache/huggingface/download/ltxv.safetensors.incomplete",
    ".cache/huggingface/download/y.safetensors",
]
CHOICES = [
    "",
    "/ltx-video-2b-v0.9.1.safetensors",
    "/loras/ltxv-lora.safetensors",
    "/ltxv-13b-0.9.8-dev.safetensors",
    "/ltxv-spatial-upscaler-0.9.8.safetensors",
]


def test_a_cloned_repository_offers_its_folder_and_its_files(tmp_path: Path) -> None:
    make(tmp_path / "LTX-Video", REPOSITORY)
    assert offered(tmp_path) == sorted(f"LTX-Video{name}" for name in CHOICES)


@LINKS
def test_a_cache_of_the_hugging_face_hub(tmp_path: Path) -> None:
    cache = tmp_path / "models--Lightricks--LTX-Video"
    snapshot = cache / "snapshots" / "0123abc"
    for number, name in enumerate(REPOSITORY):
        make(cache / "blobs", [f"{number:064x}"])
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(cache / "blobs" / f"{number:064x}", (snapshot / name).parent))
    make(cache, ["refs/main", "blobs/x.safetensors", ".no_exist/0123abc/y.safetensors"])
    here = snapshot.relative_to(tmp_path).as_posix()
    assert offered(tmp_path) == sorted(f"{here}{name}" for name in CHOICES)
    (cache / "blobs" / f"{REPOSITORY.index('ltxv-13b-0.9.8-dev.safetensors'):064x}").unlink()  # not downloaded yet
    assert f"{here}/ltxv-13b-0.9.8-dev.safetensors" not in offered(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # a component or text encoder by itself, in each of its names
        (["t5/config.json", "t5/model.safetensors"], ["t5"]),
        (["t5/config.json", "t5/model.fp16.safetensors", "t5/model.safetensors"], ["t5"]),
        (["t5/config.json", "t5/model-00001-of-00002.safetensors", "t5/model-00002-of-00002.safetensors"], ["t5"]),
        (["v/config.json", "v/any name.safetensors"], ["v"]),
        ([f"v/{FIRST}", f"v/{SECOND}", "v/x.safetensors.index.json"], ["v"]),
        (["old/config.json", "old/pytorch_model.bin"], ["old"]),  # loading it says what to do
        # files of their own beside it
        (["q/config.json", "q/ltxv-Q4_0.gguf", "q/ltxv-Q8_0.gguf"], ["q/ltxv-Q4_0.gguf", "q/ltxv-Q8_0.gguf"]),
        (["q/config.json", "q/a.safetensors", "q/b.safetensors"], ["q/a.safetensors", "q/b.safetensors"]),
        (["q/config.json", "q/model.safetensors", "q/b.safetensors"], ["q", "q/b.safetensors"]),
        (["q/config.json", "q/README.md"], []),
        # a repository without weights in the components
        (["r/model_index.json", "r/transformer/config.json", "r/a.safetensors"], ["r/a.safetensors"]),
        # sets once, the first of what is there
        ([FIRST, SECOND], [FIRST]),
        ([SECOND], [SECOND]),
        (["a/x-00001-of-00002.gguf", "a/x-00002-of-00002.gguf"], ["a/x-00001-of-00002.gguf"]),
        (["x-00001-of-00002.gguf", "x-00001-of-00003.gguf"], ["x-00001-of-00002.gguf", "x-00001-of-00003.gguf"]),
        # no names of people's own folders
        (["ltx/vae/a.safetensors", "ltx/transformer/b.gguf"], ["ltx/transformer/b.gguf", "ltx/vae/a.safetensors"]),
        (["config.json", "model.safetensors"], ["model.safetensors"]),  # the folder of the kind is no model
        (["A.SAFETENSORS", "b.Gguf", "c.sft"], ["A.SAFETENSORS", "b.Gguf", "c.sft"]),
        (["a.ckpt", "a.pt", "a.bin", "._a.safetensors", ".hidden.gguf"], []),
        # downloads in progress, under the final name too
        (["a.safetensors.part", "b.crdownload", "c.safetensors.incomplete", "d.safetensors.aria2"], []),
        (["a.safetensors", "a.safetensors.aria2", "b.gguf", "b.gguf.part", "c.sft"], ["c.sft"]),
        (["a.safetensors", "a.safetensors.crdownload", "b.gguf", "b.gguf.incomplete"], []),
    ],
)  # fmt: skip
def test_what_is_offered(names: list[str], expected: list[str], tmp_path: Path) -> None:
    make(tmp_path, names)
    assert offered(tmp_path) == expected


@LINKS
def test_links_to_nothing_and_pipes_are_not_offered(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").symlink_to(tmp_path / "gone.safetensors")
    (tmp_path / "folder").symlink_to(tmp_path / "gone")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "b.safetensors")
    assert offered(tmp_path) == []


@LINKS
def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """Every folder has links to all of them: following each path takes ten factorial steps."""
    folders = [tmp_path / f"{number:02}" for number in range(10)]
    for folder in folders:
        make(folder, ["x.safetensors"])
        (folder / "here").symlink_to(folder)
        (folder / "up").symlink_to(tmp_path)
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    assert offered(tmp_path) == [f"{number:02}/x.safetensors" for number in range(10)]


@LINKS
def test_a_link_leads_to_other_places_once(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "models", tmp_path / "disk"
    make(elsewhere, ["sub/x.safetensors"])
    make(root, ["own/y.safetensors"])
    for name, target in (("a", elsewhere), ("b", elsewhere / "sub"), ("c", root / "own"), ("d", elsewhere)):
        (root / name).symlink_to(target)
    assert offered(root) == ["a/sub/x.safetensors", "own/y.safetensors"]
    (root / "z.safetensors").symlink_to(elsewhere / "sub" / "x.safetensors")
    assert "z.safetensors" in offered(root)


def test_no_file_is_opened_for_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "LTX-Video", REPOSITORY)
    monkeypatch.setattr(listing, "_head", lambda path: pytest.fail(f"read {path}"))
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"read {path}"))
    monkeypatch.setattr(Path, "read_text", lambda path, **_: pytest.fail(f"read {path}"))
    assert len(offered(tmp_path)) == len(CHOICES)


# --- parts ------------------------------------------------------------------------------------------------------------


def all_in_one(tiny: Path, target: Path) -> Path:
    """As ComfyUI's Save Checkpoint writes it."""
    tensors = load_file(tiny / CHECKPOINT)
    for name, tensor in load_file(tiny / TEXT_ENCODER / "model.safetensors").items():
        tensors[f"text_encoders.t5xxl.transformer.{name}"] = tensor
    tensors["text_encoders.t5xxl.logit_scale"] = torch.tensor(4.6)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target)
    return target


def test_the_parts_of_a_file(tiny_models: Callable[..., Path], tmp_path: Path) -> None:
    tiny = tiny_models()
    parts = ("transformer", "vae", "text_encoder", "upscaler")

    def held(path: Path) -> list[str]:
        return [part for part in parts if holds(path, part)]

    assert held(tiny / CHECKPOINT) == ["transformer", "vae"]
    assert held(tiny / UPSCALER) == ["upscaler"]
    assert held(tiny / TEXT_ENCODER / "model.safetensors") == ["text_encoder"]
    assert held(all_in_one(tiny, tmp_path / "all.safetensors")) == ["transformer", "vae", "text_encoder"]
    convert(tiny / CHECKPOINT, tmp_path / "folder", "diffusers")
    assert held(tmp_path / "folder") == ["transformer", "vae"]
    for name, content in (("empty", b""), ("short", b"abc"), ("web", b"<!DOCTYPE html>" * 9), ("huge", b"\xff" * 64)):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        assert held(tmp_path / f"{name}.safetensors") == []
    assert held(tmp_path / "gone.safetensors") == []


@pytest.mark.slow
def test_the_parts_of_a_gguf(tiny_models: Callable[..., Path], tmp_path: Path) -> None:
    convert(tiny_models() / CHECKPOINT, tmp_path / "x.gguf", "gguf-q8_0")
    assert holds(tmp_path / "x.gguf", "transformer")
    assert not holds(tmp_path / "x.gguf", "text_encoder")


def test_a_header_is_read_once_until_the_file_changes(
    tiny_models: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    head = listing._head

    def counted(path: str) -> bytes:
        read.append(path)
        return head(path)

    monkeypatch.setattr(listing, "_head", counted)
    file = tmp_path / "x.safetensors"
    file.write_bytes((tiny_models() / UPSCALER).read_bytes())
    assert [holds(file, "vae") for _ in range(3)] == [False] * 3
    assert len(read) == 1
    file.write_bytes((tiny_models() / CHECKPOINT).read_bytes())
    assert holds(file, "vae")
    assert len(read) == 2

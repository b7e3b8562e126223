"""Models in several files: numbers, variants and indexes in the names that diffusers and transformers write."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltxkit.ltx_core.errors import CheckpointError
from ltxkit.ltx_core.weights.build import load_transformer
from ltxkit.ltx_core.weights.containers import Checkpoint, open_checkpoint
from ltxkit.ltx_core.weights.convert import convert
from ltxkit.ltx_core.weights.shards import folder_files, weight_files
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER

FIRST, SECOND = {"a": torch.ones(1)}, {"b": torch.full((2,), 2.0)}


def write(folder: Path, first: str, second: str, index: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in ((first, FIRST), (second, SECOND)):
        save_file(tensors, folder / name)
    if index is not None:
        weight_map = {"a": first, "b": second}
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def whole(checkpoint: Checkpoint) -> bool:
    values = {name.rpartition("/")[2]: checkpoint.tensor(name) for name in checkpoint.tensors}
    return (
        values.keys() == {"a", "b"} and torch.equal(values["a"], FIRST["a"]) and torch.equal(values["b"], SECOND["b"])
    )


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.startswith("got ")
    assert "; expected " in message
    return message


NAMES = [
    ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    ("model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"),
    ("model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors"),
    (
        "diffusion_pytorch_model.bf16-00001-of-00002.safetensors",
        "diffusion_pytorch_model.bf16-00002-of-00002.safetensors",
    ),
    ("my-t5-00001-of-00002.sft", "my-t5-00002-of-00002.sft"),
]
INDEXES = [None, "model.safetensors.index.json", "model.safetensors.index.fp16.json", "index.json", "shards (1).json"]


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("names", NAMES)
def test_a_set_is_read_whole_whatever_it_is_called(names: tuple[str, str], index: str | None, tmp_path: Path) -> None:
    folder = write(tmp_path, *names, index)
    assert whole(open_checkpoint(folder))
    for name in names:
        assert whole(open_checkpoint(folder / name))
    if index is not None:
        assert whole(open_checkpoint(folder / index))


def test_an_index_may_name_shards_without_numbers(tmp_path: Path) -> None:
    folder = write(tmp_path, "attention.safetensors", "rest.safetensors", "t5.safetensors.index.json")
    assert whole(open_checkpoint(folder))
    assert whole(open_checkpoint(folder / "rest.safetensors"))


@pytest.mark.parametrize("index", [None, "model.safetensors.index.json"])
def test_a_missing_shard_is_named(index: str | None, tmp_path: Path) -> None:
    first, second = NAMES[0]
    folder = write(tmp_path, first, second, index)
    (folder / second).unlink()
    for path in (folder, folder / first):
        assert f"without the shard {second}" in refused(path)


def test_many_missing_shards_are_counted(tmp_path: Path) -> None:
    save_file(FIRST, tmp_path / "model-00001-of-00900.safetensors")
    message = refused(tmp_path)
    assert "model-00002-of-00900.safetensors, " in message
    assert "and 894 more" in message


def test_an_index_of_other_names_does_not_hide_a_complete_set(tmp_path: Path) -> None:
    """A variant was downloaded with the index of the plain files."""
    folder = write(tmp_path, *NAMES[1])
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": NAMES[0][0], "b": NAMES[0][1]}})
    )
    assert whole(open_checkpoint(folder))


def test_the_plain_file_goes_before_variants_and_bf16_before_fp16(tmp_path: Path) -> None:
    for name in ("model.fp16.safetensors", "model.bf16.safetensors", "other.safetensors"):
        save_file(FIRST, tmp_path / name)
    assert [file.name for file in weight_files(tmp_path)] == ["model.bf16.safetensors"]
    save_file(FIRST, tmp_path / "model.safetensors")
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]


def test_an_index_of_pickles_is_none_of_ours(tmp_path: Path) -> None:
    save_file(FIRST, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}')
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]


OUTSIDE = [
    "../x.safetensors",
    "/etc/x.safetensors",
    "a/../../x.safetensors",
    "C:\\x.safetensors",
    "..\\x.safetensors",
    "\\\\host\\x.safetensors",
    7,
    None,
    "",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_shards_stay_inside_the_folder(name: object, tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    folder.mkdir()
    save_file(FIRST, tmp_path / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    message = refused(folder)
    assert "beside the index" in message
    assert repr(name) in message


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in NAMES[0]:
        save_file(FIRST, tmp_path / name)
    assert "'a', which model-00001-of-00002.safetensors has too" in refused(tmp_path)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links on this system")
def test_the_cache_of_the_hugging_face_hub(tmp_path: Path) -> None:
    """Files there are links to blobs outside the snapshot's folder."""
    repository = tmp_path / "models--Lightricks--LTX-Video"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "abc"
    write(blobs, *NAMES[0], "model.safetensors.index.json")
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(blobs.iterdir())):
        blob = file.rename(blobs / f"{number:040x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    (repository / "snapshots" / "old").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for path in (snapshot, repository, snapshot / NAMES[0][1]):
        assert whole(open_checkpoint(path))
    (blobs / f"{0:040x}").unlink()
    assert f"without the shard {NAMES[0][0]}" in refused(repository)
    assert "a link to" in refused(snapshot / NAMES[0][0])


def test_an_unfinished_download_is_said(tmp_path: Path) -> None:
    """aria2 reserves the whole size at once: the file looks complete."""
    save_file(FIRST, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors.aria2").touch()
    for path in (tmp_path / "x.safetensors", tmp_path):
        assert "download is not finished, as x.safetensors.aria2 beside it shows" in refused(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    assert "neither a file nor a folder" in refused(tmp_path / "x.safetensors")


def test_what_a_folder_stands_for_by_names_alone() -> None:
    own = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.fp16.safetensors"}
    assert folder_files([*own, "ltxv-13b.safetensors", "q4.gguf"]) == own
    assert folder_files(["t5xxl.safetensors", "q4.gguf"]) == {"t5xxl.safetensors"}
    assert folder_files(["a.safetensors", "b.safetensors"]) == set()


# --- as the libraries write them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_text_encoder_sharded_by_transformers(
    variant: str | None, tiny_models: Callable[..., Path], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    source = tiny_models() / TEXT_ENCODER
    model = transformers.T5EncoderModel.from_pretrained(source)
    model.save_pretrained(tmp_path, max_shard_size="60KB", variant=variant, safe_serialization=True)
    shards = sorted(tmp_path.glob("*-of-*.safetensors"))
    assert len(shards) > 2
    (tmp_path / "spiece.model").write_bytes((source / "spiece.model").read_bytes())
    expected = load_text_encoder(source).model.state_dict()
    index = next(tmp_path.glob("*.index*.json"))
    for there in (True, False):
        if not there:
            index.unlink()
        for path in (tmp_path, shards[1]):
            got = load_text_encoder(path).model.state_dict()
            assert got.keys() == expected.keys()
            assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("variant", [None, "bf16"])
def test_a_transformer_sharded_by_diffusers(
    variant: str | None, tiny_models: Callable[..., Path], tmp_path: Path
) -> None:
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path / "ltx"
    convert(tiny_models() / CHECKPOINT, folder, "diffusers")
    model = diffusers.LTXVideoTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    model.save_pretrained(folder / "transformer", max_shard_size="1MB", variant=variant)
    shards = sorted((folder / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    expected = load_transformer(tiny_models() / CHECKPOINT)[0].state_dict()
    for path in (folder, folder / "transformer", shards[-1]):
        got = load_transformer(path, version="2b-0.9.5")[0].state_dict()
        assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_a_checkpoint_in_official_names_cut_into_shards(tiny_models: Callable[..., Path], tmp_path: Path) -> None:
    """No config.json beside it: names and metadata are those of the single file."""
    source = tiny_models() / CHECKPOINT
    tensors, metadata = load_file(source), dict(open_checkpoint(source).metadata)
    names = sorted(tensors)
    for number in range(2):
        part = {name: tensors[name] for name in names[number::2]}
        save_file(part, tmp_path / f"ltxv-{number + 1:05}-of-00002.safetensors", metadata)
    model, info = load_transformer(tmp_path / "ltxv-00002-of-00002.safetensors")
    expected, of_file = load_transformer(source)
    assert (info.versions, info.scheduler) == (of_file.versions, of_file.scheduler)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())

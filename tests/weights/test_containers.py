"""Containers: which files can be opened, and the errors for those that cannot."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ltxkit.ltx_core.errors import CheckpointError, LTXKitError
from ltxkit.ltx_core.weights.containers import open_checkpoint

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.bfloat16).view(3, 4),
    "a.scale": torch.tensor(2.0),
    "b.weight": torch.arange(6, dtype=torch.float32).to(torch.float8_e4m3fn),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", {"config": "{}"})
    return tmp_path / "model.safetensors"


def refused(path: Path, error: type[LTXKitError] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.startswith("got ")
    assert "; expected " in message
    return message


def raw(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_a_file_gives_its_header_and_mapped_tensors(file: Path) -> None:
    checkpoint = open_checkpoint(file)
    assert (checkpoint.container, checkpoint.metadata) == ("safetensors", {"config": "{}"})
    assert {name: (info.shape, info.dtype) for name, info in checkpoint.tensors.items()} == {
        "a.weight": ((3, 4), "BF16"),
        "a.scale": ((), "F32"),
        "b.weight": ((6,), "F8_E4M3"),
    }
    for name, tensor in TENSORS.items():
        assert torch.equal(checkpoint.tensor(name).float(), tensor.float())
        assert checkpoint.tensor(name).dtype == tensor.dtype
    maps = Path("/proc/self/maps")
    if maps.exists():
        address = checkpoint.tensor("a.weight").data_ptr()
        ranges = [
            line.split(maxsplit=1)[0].split("-")
            for line in maps.read_text(encoding="utf-8").splitlines()
            if line.endswith(str(file))
        ]
        assert any(int(start, 16) <= address < int(stop, 16) for start, stop in ranges)
    with pytest.raises(CheckpointError, match=r"'c'.*model\.safetensors"):
        checkpoint.tensor("c")


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_data_may_start_anywhere_and_stays_mapped(tmp_path: Path, padding: int) -> None:
    """Some writers do not pad the header."""
    values = torch.randn(64, 48)
    header = json.dumps({"w": {"dtype": "F32", "shape": [64, 48], "data_offsets": [0, values.nbytes]}}).encode()
    header += b" " * (-len(header) % 8 + padding)
    path = raw(tmp_path / "x.safetensors", header, values.numpy().tobytes())
    stored = open_checkpoint(path).tensor("w")
    assert stored.data_ptr() % 4 == padding % 4
    assert torch.equal(stored, values)
    torch.testing.assert_close(stored @ stored.T, values @ values.T)
    torch.testing.assert_close(stored.to(torch.bfloat16), values.to(torch.bfloat16))


def test_a_file_beyond_memory_and_swap_opens(tmp_path: Path) -> None:
    size = 1 << 42
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path = raw(tmp_path / "x.safetensors", header)
    try:
        with path.open("r+b") as file:
            file.truncate(8 + len(header) + size)
    except OSError:
        pytest.skip("no sparse files of four terabytes here")
    assert int(open_checkpoint(path).tensor("w")[-1]) == 0


def test_opening_reads_the_header_only(file: Path) -> None:
    """The data may hold any bytes, but must be complete."""
    header = file.read_bytes()[: 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]]
    size = file.stat().st_size
    with file.open("wb") as sparse:
        sparse.write(header)
        sparse.truncate(size)
    assert len(open_checkpoint(file).tensors) == 3


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.01])
def test_truncated(file: Path, kept: float) -> None:
    content = file.read_bytes()
    length = max(9, int(len(content) * kept))
    file.write_bytes(content[:length])
    message = refused(file)
    assert "truncated" in message
    assert "download or copy it again" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not start like"),
        (b"abc", "does not start like"),
        (b"just some text, longer than eight bytes", "does not start like"),
        (b"PK\x03\x04" + bytes(60), "PyTorch pickle or zip"),
        (b"\x80\x02}q\x00" + bytes(60), "PyTorch pickle"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (struct.pack("<Q", 20) + b"{not json, not json}", "not readable JSON"),
        (struct.pack("<Q", 2) + b"{}junk", "bytes follow the last tensor"),
    ],
)
def test_not_a_safetensors_file(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert words in refused(path)


def test_damaged_headers(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]}
    path = raw(tmp_path / "x.safetensors", json.dumps({"w": entry}).encode(), bytes(12))
    assert "'w' has 12 bytes for F32 of shape [2, 2]" in refused(path)
    path = raw(tmp_path / "x.safetensors", json.dumps({"w": {"dtype": "F32"}}).encode())
    assert "'w' has no shape and no data_offsets" in refused(path)


def test_nothing_there(tmp_path: Path) -> None:
    assert "check the path" in refused(tmp_path / "absent.safetensors")


# --- folders ----------------------------------------------------------------------------------------------------------


def component(folder: Path, config: dict[str, object] | None = None, **tensors: torch.Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


def test_a_pipeline_folder_is_one_checkpoint(tmp_path: Path) -> None:
    component(tmp_path / "transformer", {"_class_name": "LTXVideoTransformer3DModel"}, w=torch.ones(2))
    component(tmp_path / "vae", {"_class_name": "AutoencoderKLLTXVideo"}, w=torch.zeros(3))
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"shift": 1.0}')
    (tmp_path / "model_index.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.container == "folder"
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {"transformer/w": (2,), "vae/w": (3,)}
    assert torch.equal(checkpoint.tensor("vae/w"), torch.zeros(3))
    assert set(checkpoint.configs) == {"transformer", "vae", "scheduler"}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"_class_name": "AutoencoderKLLTXVideo"}, "vae/w"),
        ({"architectures": ["T5EncoderModel"]}, "text_encoder/w"),
        ({"_class_name": "SomethingElse"}, "model/w"),
        (None, "model/w"),
    ],
)
def test_a_component_folder_says_in_its_config_what_it_is(tmp_path: Path, config: dict[str, object], name: str) -> None:
    component(tmp_path / "any name", config, w=torch.ones(2))
    assert list(open_checkpoint(tmp_path / "any name").tensors) == [name]


def shards(folder: Path) -> dict[str, str]:
    save_file({"a": torch.ones(1)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(2)}, folder / "model-00002-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return names


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    names = shards(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert {key: tuple(checkpoint.tensor(key).shape) for key in checkpoint.tensors} == {
        "model/a": (1,),
        "model/b": (2,),
    }
    (tmp_path / names["b"]).unlink()
    assert "without the shard model-00002-of-00002.safetensors" in refused(tmp_path)


@pytest.mark.parametrize("missing", [1, 60])
def test_a_truncated_shard_is_named(missing: int, tmp_path: Path) -> None:
    """Once in the last byte of the data, and once in the header."""
    shard = tmp_path / shards(tmp_path)["b"]
    shard.write_bytes(shard.read_bytes()[:-missing])
    assert f"got {shard}, which is truncated" in refused(tmp_path)


def test_a_shard_of_another_folder_is_noticed(tmp_path: Path) -> None:
    names = shards(tmp_path)
    save_file({"c": torch.ones(2)}, tmp_path / names["b"])
    assert "without the tensor 'b'" in refused(tmp_path)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    assert "holds no safetensors" in refused(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"PK")
    assert "pickles are not read" in refused(tmp_path)
    for name in ("x.fp16.safetensors", "y.safetensors"):
        save_file({"a": torch.ones(1)}, tmp_path / name)
    assert "several weight files (x.fp16.safetensors, y.safetensors)" in refused(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json, which is not readable JSON" in refused(tmp_path)

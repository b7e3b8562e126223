"""Headers of strangers: what the newest safetensors and gguf packages refuse is refused; no count is believed."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file

from ltxkit.ltx_core.errors import CheckpointError, ConfigError, LTXKitError, UnsupportedError
from ltxkit.ltx_core.measuring.machine import peak_of_process
from ltxkit.ltx_core.weights.build import load_transformer, load_vae, open_models
from ltxkit.ltx_core.weights.containers import open_checkpoint, read_header
from ltxkit.ltx_core.weights.counts import FEW, Indices
from ltxkit.ltx_core.weights.gguf import read_gguf_header
from ltxkit.ltx_core.weights.headers import DTYPE_BITS, parse_json, parse_safetensors, read_json_object
from ltxkit.ltx_core.weights.lora import load_lora
from ltxkit.ltx_core.weights.report import inspect
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER

# --- safetensors ------------------------------------------------------------------------------------------------------


def entry(dtype: str = "U8", shape: Any = (8,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def write(path: Path, header: Any, data: int = 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(data)))
    return path


def around(middle: str) -> bytes:
    return f'{{"a":{{"dtype":"U8","shape":[8],"data_offsets":[0,8]{middle}}}}}'.encode()


HUGE = 2**63 - 1
# Name -> header and bytes of data. The package decides which of them are right.
HEADERS: dict[str, tuple[Any, int]] = {
    "right": ({"a": entry()}, 8),
    "two": ({"a": entry(), "b": entry(offsets=[8, 16])}, 16),
    "in another order": ({"a": entry(offsets=[8, 16]), "b": entry()}, 16),
    "empty": ({}, 0),
    "a scalar": ({"a": entry("F64", [])}, 8),
    "nothing in it": ({"a": entry(shape=[0], offsets=[0, 0])}, 0),
    "nothing, at the end": ({"a": entry(), "b": entry(shape=[0], offsets=[8, 8])}, 8),
    "nothing, in the middle of another": ({"a": entry(), "b": entry(shape=[0], offsets=[4, 4])}, 8),
    "nothing, of a huge size": ({"a": entry(), "b": entry(shape=[HUGE, 0], offsets=[8, 8])}, 8),
    "nothing, of a size beyond 64 bits": ({"a": entry(), "b": entry(shape=[2**64, 0], offsets=[8, 8])}, 8),
    "a product beyond 64 bits": ({"a": entry(shape=[2**62, 8])}, 8),
    "a product beyond 64 bits, times 0": ({"a": entry(), "b": entry(shape=[HUGE, 3, 0], offsets=[8, 8])}, 8),
    "a field that nobody knows": ({"a": entry(more=1)}, 8),
    "a negative size": ({"a": entry(shape=[-8])}, 8),
    "two negative sizes": ({"a": entry(shape=[-2, -4])}, 8),
    "a negative offset": ({"a": entry(offsets=[-8, 0]), "b": entry()}, 8),
    "offsets the wrong way round": ({"a": entry(offsets=[8, 0])}, 8),
    "a decimal size": ({"a": entry(shape=[8.0])}, 8),
    "a true size": ({"a": entry(shape=[True, 8])}, 8),
    "text for a size": ({"a": entry(shape=["8"])}, 8),
    "text for a shape": ({"a": entry(shape="8")}, 8),
    "no shape": ({"a": {"dtype": "U8", "data_offsets": [0, 8]}}, 8),
    "null for a shape": ({"a": entry(shape=None)}, 8),
    "an object for a shape": ({"a": entry(shape={"0": 8})}, 8),
    "text for offsets": ({"a": entry(offsets=["0", "8"])}, 8),
    "three offsets": ({"a": entry(offsets=[0, 8, 8])}, 8),
    "one offset": ({"a": entry(offsets=[8])}, 8),
    "offsets beyond the file": ({"a": entry(shape=[16], offsets=[0, 16])}, 8),
    "overlapping": ({"a": entry(), "b": entry()}, 8),
    "partly overlapping": ({"a": entry(), "b": entry(offsets=[4, 12])}, 12),
    "a hole": ({"a": entry(), "b": entry(offsets=[9, 17])}, 17),
    "a hole in front": ({"a": entry(offsets=[1, 9])}, 9),
    "bytes after the last": ({"a": entry()}, 9),
    "bytes of none": ({}, 5),
    "too few bytes": ({"a": entry()}, 7),
    "another number of bytes": ({"a": entry("F32", [2, 2])}, 8),
    "a type of GGUF": ({"a": entry("Q4_0")}, 8),
    "a type in small letters": ({"a": entry("u8")}, 8),
    "a number for a type": ({"a": entry(dtype=5)}, 8),  # type: ignore[reportArgumentType]
    "half a byte": ({"a": entry("F4", [15])}, 8),
    "null for a tensor": ({"a": None}, 0),
    "a number for a tensor": ({"a": 5}, 0),
    "a list for the header": (b"[]", 0),
    "metadata": ({"__metadata__": {"a": "b"}, "a": entry()}, 8),
    "null for the metadata": ({"__metadata__": None, "a": entry()}, 8),
    "a list for the metadata": ({"__metadata__": [1], "a": entry()}, 8),
    "text for the metadata": ({"__metadata__": "a", "a": entry()}, 8),
    "one name twice": (b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
                       b'"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}', 8),
    "one field twice": (around(',"dtype":"U8"'), 8),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{},' + around("")[1:], 8),
    "NaN": (around("").replace(b"[8]", b"[NaN]"), 8),
    "infinity": (around("").replace(b"[8]", b"[1e400]"), 8),
    "a negative zero": (around("").replace(b"[0,", b"[-0,"), 8),
    "a leading zero": (around("").replace(b"[8]", b"[08]"), 8),
    "digits without end": (around("").replace(b"[8]", b"[" + b"9" * 5000 + b"]"), 8),
    "ninety deep": (around(',"x":' + "[" * 90 + "]" * 90), 8),
    "two hundred deep": (around(',"x":' + "[" * 200 + "]" * 200), 8),
    "very deep": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 0),
    "not closed": (around("")[:-1], 8),
    "a comma too many": (around("").replace(b"[8]", b"[8,]"), 8),
    "something behind it": (around("") + b"x", 8),
    "zeros behind it": (around("") + b"\0\0", 8),
    "spaces behind it": (around("") + b"   ", 8),
    "a control character": (around("").replace(b'"a"', b'"a\x01"'), 8),
    "not UTF-8": (around("").replace(b'"a"', b'"\xe9"'), 8),
    "UTF-16": (around("").decode().encode("utf-16-le"), 8),
    "with a byte order mark": (b"\xef\xbb\xbf" + around(""), 8),
    "half of a character": (around("").replace(b'"a"', b'"\\ud800"'), 8),
    "a character in two halves": (around("").replace(b'"a"', b'"\\ud83d\\ude00"'), 8),
    "an empty name": ({"": entry()}, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_what_the_safetensors_package_refuses_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "x.safetensors", *HEADERS[name])
    try:
        with safetensors.safe_open(path, "pt") as file:
            expected = set(file.keys())
    except safetensors.SafetensorError:
        with pytest.raises(CheckpointError) as caught:
            read_header(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 1000
    else:
        assert set(read_header(path)[0]) == expected


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_types_of_the_package_are_ours(tmp_path: Path, dtype: str) -> None:
    """An older package that does not know a type refuses the file; we need not."""
    path = write(tmp_path / "x.safetensors", {"a": entry(dtype, [8], [0, DTYPE_BITS[dtype]])}, DTYPE_BITS[dtype])
    assert read_header(path)[0]["a"].nbytes == DTYPE_BITS[dtype]
    with safetensors.safe_open(path, "pt") as file:
        assert list(file.keys()) == ["a"]


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ({"a.b": entry(shape=[-8])}, "'a.b': shape has -8"),
        ({"a.b": entry(offsets=["0", "8"])}, "'a.b': data_offsets has '0'"),
        ({"a.b": entry(dtype="Q4_0")}, "'a.b' has the dtype 'Q4_0'"),
        ({"a": entry(), "b": entry()}, "'b' starts at 0 and overlaps 'a'"),
        ({"a": entry(), "b": entry(offsets=[9, 17])}, "'b' starts at 9 and follows a hole of 1 bytes"),
        ({"__metadata__": 5, "a": entry()}, "__metadata__ is a number"),
        (b'{"a":1,"a":2}', "the name 'a' twice"),
    ],
)
def test_the_message_names_the_field(tmp_path: Path, header: Any, field: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_header(write(tmp_path / "x.safetensors", header))
    assert field in str(caught.value)


def test_values_of_the_metadata_that_are_no_text_become_text(tmp_path: Path) -> None:
    """The one leniency: the package refuses them, and programs that write the header by hand put objects there."""
    values = {"config": {"vae": {"dims": 3}}, "steps": 5, "nothing": None, "text": "as it is"}
    _, metadata = read_header(write(tmp_path / "x.safetensors", {"__metadata__": values, "a": entry()}))
    assert metadata == {"config": '{"vae": {"dims": 3}}', "steps": "5", "text": "as it is"}


def test_a_tensor_of_many_axes_is_not_multiplied_out(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'a' has 200000 axes"):
        read_header(write(tmp_path / "x.safetensors", {"a": entry(shape=[2] * 200_000)}))


def test_a_header_longer_than_the_format_allows(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 100_000_001) + b"{" + b" " * 10)
    with pytest.raises(CheckpointError, match="does not start like one"):
        read_header(path)


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"a": NaN}', b'{"a": 1e999}', b'{"a": 1, "a": 2}', b"\xff", b"", b"1" * 9999]
)
def test_json_of_a_folder(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json_object(file)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def test_json_that_people_write() -> None:
    assert parse_json(b'{"a": [1, 2.5e3, -3, true, null, "\\u00e9"]}', "x") == {"a": [1, 2500.0, -3, True, None, "é"]}
    with pytest.raises(CheckpointError, match="x, which is not readable JSON"):
        parse_json("{", "x")


@pytest.mark.parametrize(
    "config", [{"_class_name": []}, {"_class_name": {}}, {"architectures": [[1]]}, {"architectures": 5}]
)
def test_a_config_of_other_types_says_nothing(tmp_path: Path, config: Mapping[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    assert list(open_checkpoint(tmp_path).tensors) == ["model/w"]


@pytest.mark.parametrize("name", [5, None, ["a"], {"a": 1}])
def test_an_index_with_something_else_than_file_names(tmp_path: Path, name: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


# --- GGUF -------------------------------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value(key: str | bytes, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


LTXV = value("general.architecture", 8, text("ltxv"))
Tensor = tuple[str | bytes, tuple[int, ...], int, int]
WEIGHT: Tensor = ("w", (2, 2), 0, 0)


def gguf_file(path: Path, values: tuple[bytes, ...] = (LTXV,), tensors: tuple[Tensor, ...] = (WEIGHT,)) -> Path:
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)) + b"".join(values)
    for name, dimensions, kind, offset in tensors:
        header += text(name) + struct.pack("<I", len(dimensions))
        header += b"".join(struct.pack("<Q", size) for size in dimensions) + struct.pack("<IQ", kind, offset)
    path.write_bytes(header + bytes(-len(header) % 32) + bytes(4096))
    return path


ALIGNMENT = "general.alignment"
ORIGINAL = "comfy.gguf.orig_shape.w"
GGUFS: dict[str, dict[str, Any]] = {
    "right": {},
    "alignment of 64": {"values": (LTXV, value(ALIGNMENT, 4, struct.pack("<I", 64)))},
    "two": {"tensors": (WEIGHT, ("b", (2, 2), 0, 32))},
    "alignment as text": {"values": (LTXV, value(ALIGNMENT, 8, text("x")))},
    "alignment as an array": {"values": (LTXV, value(ALIGNMENT, 9, struct.pack("<IQI", 4, 1, 32)))},
    "alignment NaN": {"values": (LTXV, value(ALIGNMENT, 6, struct.pack("<f", float("nan"))))},
    "alignment of 64 bits": {"values": (LTXV, value(ALIGNMENT, 10, struct.pack("<Q", 2**63)))},
    "alignment 0": {"values": (LTXV, value(ALIGNMENT, 4, struct.pack("<I", 0)))},
    "alignment 3": {"values": (LTXV, value(ALIGNMENT, 4, struct.pack("<I", 3)))},
    "one key twice": {"values": (LTXV, LTXV)},
    "one tensor twice": {"tensors": (WEIGHT, ("w", (2, 2), 0, 32))},
    "a type that nobody has": {"tensors": (("w", (2, 2), 99, 0),)},
    "a value's type that nobody has": {"values": (LTXV, value("a", 99, b""))},
    "an array's type that nobody has": {"values": (LTXV, value("a", 9, struct.pack("<IQ", 99, 1)))},
    "a name that is no text": {"tensors": ((b"\xff\xfe", (2, 2), 0, 0),)},
    "a key that is no text": {"values": (LTXV, value(b"\xff", 4, bytes(4)))},
    "beyond the file": {"tensors": (("w", (64, 64), 0, 0),)},
    "an offset beyond the file": {"tensors": (("w", (2, 2), 0, 2**40),)},
    "blocks that are not whole": {"tensors": (("w", (31, 2), 2, 0),)},
}
# Refused although the package takes them: it checks no places, and flattens what it reads.
STRICTER: dict[str, dict[str, Any]] = {
    "overlapping": {"tensors": (("w", (4, 4), 0, 0), ("b", (4, 4), 0, 32))},
    "not aligned": {"tensors": (("w", (2, 2), 0, 4),)},
    "blocks without dimensions": {"tensors": (("w", (), 2, 0),)},
    "sizes beyond 64 bits, times 0": {"tensors": (("w", (0, 2**63), 0, 0),)},
    "five thousand arrays in each other": {
        "values": (LTXV, value("a", 9, struct.pack("<IQ", 9, 1) * 5000 + struct.pack("<IQ", 4, 0)))
    },
    "split.count as text": {"values": (LTXV, value("split.count", 8, text("x")))},
    "split.count NaN": {"values": (LTXV, value("split.count", 6, struct.pack("<f", float("nan"))))},
    "an architecture that is a number": {"values": (value("general.architecture", 4, bytes(4)),)},
    "a shape that is a number": {"values": (LTXV, value(ORIGINAL, 4, struct.pack("<I", 4)))},
    "a shape that is text": {"values": (LTXV, value(ORIGINAL, 8, text("4")))},
    "a negative shape": {"values": (LTXV, value(ORIGINAL, 9, struct.pack("<IQii", 5, 2, -2, -2)))},
    "a shape with NaN": {"values": (LTXV, value(ORIGINAL, 9, struct.pack("<IQf", 6, 1, float("nan"))))},
    "a key of a megabyte": {"values": (LTXV, value("k" * 10**6, 4, bytes(4)))},
}


@pytest.mark.parametrize("name", GGUFS)
def test_what_the_gguf_package_refuses_is_refused(tmp_path: Path, name: str) -> None:
    path = gguf_file(tmp_path / "x.gguf", **GGUFS[name])
    try:
        expected = {tensor.name: tuple(tensor.shape.tolist()[::-1]) for tensor in gguf.GGUFReader(path).tensors}
    except (ValueError, KeyError, IndexError):
        with pytest.raises((CheckpointError, UnsupportedError)) as caught:
            read_gguf_header(path)
        assert str(path) in str(caught.value)
    else:
        assert {key: tensor.shape for key, tensor in read_gguf_header(path).tensors.items()} == expected


@pytest.mark.parametrize("name", STRICTER)
def test_gguf_headers_that_no_program_writes(tmp_path: Path, name: str) -> None:
    path = gguf_file(tmp_path / "x.gguf", **STRICTER[name])
    with pytest.raises(CheckpointError) as caught:
        read_gguf_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "counts",
    [(2**63, 0), (0, 2**63), (10**6, 10**6)],
)
def test_gguf_counts_are_not_believed(tmp_path: Path, counts: tuple[int, int]) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + bytes(4096))
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_gguf_header(path)


@pytest.mark.parametrize("kind", [4, 8, 9])
def test_gguf_arrays_are_no_longer_than_the_file(tmp_path: Path, kind: int) -> None:
    array = value("a", 9, struct.pack("<IQ", kind, 10**12))
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_gguf_header(gguf_file(tmp_path / "x.gguf", (LTXV, array)))


def test_what_the_gguf_package_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "ltxv")
    writer.add_custom_alignment(64)
    writer.add_array("list", ["a", "b"])
    for name, tensor in {"a": np.ones((3, 5), np.float32), "b": np.ones(7, np.float16)}.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensor("a").numel() in (15, 60)
    assert set(checkpoint.tensors) == {"a", "b"}


# --- counts -----------------------------------------------------------------------------------------------------------


def changed(source: Path, path: Path, change: Callable[[dict[str, Any]], None], config: bool = True) -> Path:
    """A copy of a safetensors file with another header. `change` gets the config too, parsed, as "config"."""
    content = source.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    if config:
        header["config"] = json.loads(header["__metadata__"]["config"])
    change(header)
    if config:
        header["__metadata__"]["config"] = json.dumps(header.pop("config"))
    data = content[8 + length :]
    for name in [name for name, info in header.items() if info == "empty"]:
        header[name] = {"dtype": "U8", "shape": [0], "data_offsets": [len(data), len(data)]}
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def prefix_of_blocks(header: Mapping[str, Any]) -> str:
    return next(name for name in header if "transformer_blocks.0." in name).partition("transformer_blocks.")[0]


def block(number: str, *, stated: bool) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[f"{prefix_of_blocks(header)}transformer_blocks.{number}.x"] = "empty"
        if not stated:
            del header["config"]["transformer"]["num_layers"]

    return change


def config(part: str, key: str, wrong: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["config"][part].__setitem__(key, wrong)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], Callable[[Path], object]]] = {
    "a block far away": (block("300000", stated=False), load_transformer),
    "a block very far away": (block("999999999", stated=False), load_transformer),
    "a number that no list has": (block("9" * 5000, stated=False), load_transformer),
    "a digit of another script": (block("²", stated=False), load_transformer),
    "many layers in the config": (config("transformer", "num_layers", 300_000), load_transformer),
    "many heads in the config": (config("transformer", "num_attention_heads", 2**23), load_transformer),
    "a wide head in the config": (config("transformer", "attention_head_dim", 2**23), load_transformer),
    "no layers": (config("transformer", "num_layers", 0), load_transformer),
    "negative channels": (config("transformer", "in_channels", -1), load_transformer),
    "many layers in the decoder": (config("vae", "decoder_blocks", [["res_x", 300_000]]), load_vae),
    "10**9 layers in the encoder": (config("vae", "encoder_blocks", [["res_x", {"num_layers": 10**9}]]), load_vae),
    "many blocks": (config("vae", "decoder_blocks", [["compress_all", {"multiplier": 1}]] * 100_000), load_vae),
    "a width that doubles": (config("vae", "decoder_blocks", [["compress_all", {"multiplier": 2}]] * 90), load_vae),
    "a patch of nothing": (config("vae", "patch_size", 0), load_vae),
    "a list for a kind": (config("vae", "decoder_blocks", [[["res_x"], 1]]), load_vae),
    "text for blocks": (config("vae", "decoder_blocks", "res_x"), load_vae),
    "null in a list": (config("vae", "decoder_blocks", [None]), load_vae),
    "text for a number": (config("transformer", "norm_eps", "x"), load_transformer),
    "a list for a number": (config("transformer", "num_layers", []), load_transformer),
    "a number of many digits": (config("transformer", "norm_eps", 10**19), load_transformer),
}


@pytest.mark.parametrize("name", CHANGES)
def test_no_count_or_value_is_believed(tmp_path: Path, tiny_models: Callable[..., Path], name: str) -> None:
    change, load = CHANGES[name]
    path = changed(tiny_models() / CHECKPOINT, tmp_path / "x.safetensors", change)
    if name == "a number of many digits":
        load(path)
        return
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert inspect(path)["problems"] + inspect(path)["unknown_tensors"] != []


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"transformer": {"num_layers": NaN}}', '{"transformer": {"norm_eps": Infinity}}', "[]", "5", "x",
     '{"transformer": {"norm_eps": 1' + "0" * 400 + "}}"],
)  # fmt: skip
def test_a_config_that_is_none(tmp_path: Path, tiny_models: Callable[..., Path], text: str) -> None:
    source = tiny_models() / CHECKPOINT
    path = changed(
        source, tmp_path / "x.safetensors", lambda header: header.update(__metadata__={"config": text}), False
    )
    with pytest.raises(CheckpointError, match="config") as caught:
        load_transformer(path)
    assert str(path) in str(caught.value)


T5_CONFIG = [
    ("relative_attention_max_distance", "x"),
    ("relative_attention_max_distance", None),
    ("relative_attention_max_distance", 10**19),
    ("relative_attention_max_distance", -1),
    ("layer_norm_epsilon", "x"),
    ("layer_norm_epsilon", []),
    ("layer_norm_epsilon", -1),
    ("d_kv", "x"),
    ("d_kv", None),
    ("d_ff", []),
]


@pytest.mark.parametrize(("key", "wrong"), T5_CONFIG)
def test_the_config_of_a_text_encoder(
    tmp_path: Path, tiny_models: Callable[..., Path], key: str, wrong: object
) -> None:
    source = tiny_models() / TEXT_ENCODER
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    stated = json.loads((source / "config.json").read_text()) if (source / "config.json").is_file() else {}
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["T5EncoderModel"], **stated, key: wrong}))
    with pytest.raises(CheckpointError, match=rf"config\.json has {key}"):
        load_text_encoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("shared.weight", lambda sizes: [sizes[0] * sizes[1]]),
        ("shared.weight", lambda sizes: [*sizes, 1]),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", lambda sizes: [sizes[0] * sizes[1]]),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", lambda sizes: [sizes[0] * sizes[1]]),
    ],
)
def test_tensors_of_a_text_encoder_with_other_axes(
    tmp_path: Path, tiny_models: Callable[..., Path], name: str, shape: Callable[[list[int]], list[int]]
) -> None:
    source = tiny_models() / TEXT_ENCODER
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())

    def change(header: dict[str, Any]) -> None:
        header[name]["shape"] = shape(header[name]["shape"])

    changed(source / "model.safetensors", tmp_path / "model.safetensors", change, False)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_text_encoder(tmp_path)


def test_gaps_of_a_few_show_as_missing_tensors() -> None:
    indices = Indices(["a.0.x", "a.2.x", "b.c.5.0.y", "3.z", "a.²."], "x")
    assert [indices.count(prefix) for prefix in ("a.", "b.c.", "b.c.5.", "", "none.")] == [3, 6, 1, 4, 0]
    assert Indices([f"a.{FEW - 1}.x"], "x").count("a.") == FEW
    with pytest.raises(CheckpointError, match=f"a.{FEW}"):
        Indices([f"a.{FEW}.x"], "x").count("a.")


# --- how much a header may cost ---------------------------------------------------------------------------------------


def names_of_a_megabyte() -> Iterator[tuple[str, list[str]]]:
    transformer = ["patchify_proj.weight", "transformer_blocks.0.attn1.to_q.weight"]
    vae = ["decoder.conv_in.conv.weight", "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight"]
    diffusers = ["decoder.conv_in.conv.weight", "decoder.mid_block.resnets.0.conv1.conv.weight"]
    encoder = ["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"]
    yield "short", [str(number) for number in range(16_000)]
    yield "one tensor a block", transformer + [f"transformer_blocks.{number}.x" for number in range(12_000)]
    yield "many numbers in a name", transformer + [f"transformer_blocks.{'0.' * 200}{n}" for n in range(1500)]
    yield "one tensor a VAE block", vae + [f"decoder.up_blocks.{number}.x" for number in range(12_000)]
    yield "one tensor a residual block", vae + [f"decoder.up_blocks.0.res_blocks.{n}.x" for n in range(10_000)]
    yield "diffusers' names", diffusers + [f"decoder.up_blocks.{number}.resnets.0.x" for number in range(10_000)]
    yield "one tensor an encoder block", encoder + [f"encoder.block.{number}.x" for number in range(12_000)]
    yield "a LoRA", [f"lora_unet_blocks_{number}.lora_down.weight" for number in range(10_000)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "names"), list(names_of_a_megabyte()))
def test_a_header_of_a_megabyte_takes_little_memory(tmp_path: Path, kind: str, names: list[str]) -> None:
    """At most 100 MB more than before, whoever opens it; `kind` says what the names would have built."""
    header = {name: {"dtype": "BF16", "shape": [0, 1], "data_offsets": [0, 0]} for name in names}
    path = write(tmp_path / "x.safetensors", json.dumps(header, separators=(",", ":")).encode(), 0)
    assert 600_000 < path.stat().st_size < 1_100_000, kind
    before = peak_of_process()
    if before is None:
        pytest.skip("this system does not say how much memory a process has held")
    for load in (inspect, load_transformer, load_vae, load_text_encoder, load_lora):
        with contextlib.suppress(LTXKitError):
            load(path)
    assert (peak_of_process() or 0) - before < 100_000_000


def test_layouts_of_many_names_are_looked_at_once() -> None:
    """Not once for every block: the number of look-ups grows with the names, not with their square."""
    names = [f"decoder.up_blocks.{number}.x" for number in range(5000)]
    indices = Indices(names, "x")
    assert indices.count("decoder.up_blocks.") == 5000
    header = json.dumps({name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    assert len(parse_safetensors(header, Path("x"), 0)[0]) == 5000
    assert open_models  # the same way for every loader

"""Files that a few lines describe: what reviews found, and neighbours of it.

Those that `run` found lie in tests/data/fuzz as they are, under the number of their case. Here and there a file is
TARGET/NAME@FILE: it takes the place of FILE among the valid files of its target.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import math
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FOUND = Path(__file__).resolve().parents[1] / "data" / "fuzz"
DEMO = Path(__file__).resolve().parents[2] / "workflows" / "api" / "01 Demo - a digit from a prompt.json"
DEEP = b"[" * 20_000
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
TAGS = ("!!bool x", "!!int ''", "!!timestamp x", "!!binary x", "!!python/name:os.system", "2024-13-45", "!!float ''")


def safetensors(header: Any, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(metadata: Any = None, name: str = "patchify_proj.weight", **entry: Any) -> bytes:
    """One tensor of 2x2 BF16, with other fields."""
    header = {} if metadata is None else {"__metadata__": metadata}
    return safetensors({**header, name: {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8], **entry}})


def headers() -> Iterator[tuple[str, bytes]]:
    """Headers of safetensors that lie."""
    yield "negative-offsets", one(data_offsets=[-8, 0])
    yield "offsets-beyond", one(data_offsets=[0, 2**63])
    yield "offsets-text", one(data_offsets=["0", "8"])
    yield "offsets-fraction", one(data_offsets=[0.0, 8.0])
    yield "offsets-three", one(data_offsets=[0, 4, 8])
    yield "shape-negative", one(shape=[-2, -2])
    yield "shape-huge", one(shape=[2**62, 4])
    yield "shape-zero-and-huge", one(shape=[0, 2**64], data_offsets=[0, 0])
    yield "shape-text", one(shape="22")
    yield "shape-infinite", one(shape=[float("inf"), 2])
    yield "dtype-of-gguf", one(dtype="Q4_0")
    yield "dtype-list", one(dtype=["BF16"])
    yield "twice", safetensors(b'{"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},' * 2 + b'"b": 1}')
    yield (
        "same-name",
        safetensors(
            b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'
        ),
    )
    entry = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}
    yield "overlap", safetensors({"a": entry, "b": entry})
    yield "hole", safetensors({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}})
    yield "deep", safetensors(b'{"a": ' + DEEP)
    yield "no-object", safetensors(b"[]")
    yield "metadata-list", one(metadata=[1])
    yield "config-list", one(metadata={"config": "[1]"})
    yield "config-deep", one(metadata={"config": DEEP.decode()})
    yield "config-infinite", one(metadata={"config": '{"transformer": {"num_layers": Infinity}}'})
    blocks = {
        "vae": {"encoder_blocks": [["res_x", 10**9]], "decoder_blocks": [["res_x", 10**9]], "latent_channels": 16}
    }
    yield "blocks-huge", one(metadata={"config": json.dumps(blocks)})
    yield "blocks-nested", one(metadata={"config": json.dumps({"vae": {"encoder_blocks": [[[["res_x"]]], None, 1]}})})
    yield "layers-huge", one(name="transformer_blocks.300000.attn1.to_q.weight")
    yield "layers-superscript", one(name="transformer_blocks.²².attn1.to_q.weight")
    yield "layers-long", one(name=f"transformer_blocks.{'9' * 5000}.attn1.to_q.weight")
    yield "name-escapes", one(name="\x1b[2J\x1b]0;owned\x07", metadata={"\x1b[2J": "\x1b[31m"})
    yield "name-surrogate", safetensors(b'{"\\ud800": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}')
    yield "header-length-huge", struct.pack("<Q", 2**63) + b"{}"
    yield "header-length-beyond", struct.pack("<Q", 10**8) + b"{}"
    yield "empty", b""
    yield "pickle", b"\x80\x02}q\x00."


def loras() -> Iterator[tuple[str, bytes]]:
    """Settings of a LoRA that are patterns or no settings."""
    stem, header = "transformer_blocks.0.attn1.to_q", {}
    for role, shape, start in (("lora_A", [2, 16], 0), ("lora_B", [16, 2], 64)):
        header[f"{stem}.{role}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, start + 64]}

    def settings(value: Any) -> bytes:
        text = value if isinstance(value, str) else json.dumps(value)
        return safetensors({"__metadata__": {"lora_adapter_metadata": text}, **header}, bytes(128))

    yield "pattern-exponential", settings({"r": 2, "lora_alpha": 2, "alpha_pattern": {"(.*)*(.*)*(.*)*b": 3}})
    yield "pattern-broken", settings({"r": 2, "lora_alpha": 2, "alpha_pattern": {"(": 3}})
    yield "pattern-list", settings({"r": 2, "lora_alpha": 2, "alpha_pattern": [1]})
    yield "alpha-text", settings({"r": 2, "lora_alpha": "4"})
    yield "alpha-nan", settings('{"r": 2, "lora_alpha": NaN}')
    yield "settings-list", settings([1])
    yield "settings-deep", settings(DEEP.decode())


def gguf(values: bytes, count: int, tensors: bytes = b"", tensor_count: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensor_count, count) + values + tensors + bytes(64)


def named(name: str) -> bytes:
    return struct.pack("<Q", len(name.encode())) + name.encode()


def ggufs() -> Iterator[tuple[str, bytes]]:
    """Values, arrays and sizes of GGUF headers that lie."""
    yield "alignment-text", gguf(named("general.alignment") + struct.pack("<I", 8) + named("x"), 1)
    yield "alignment-zero", gguf(named("general.alignment") + struct.pack("<II", 4, 0), 1)
    yield "array-deep", gguf(named("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000, 1)
    yield "array-huge", gguf(named("a") + struct.pack("<IIQ", 9, 8, 2**60), 1)
    yield "text-huge", gguf(named("a") + struct.pack("<IQ", 8, 2**63), 1)
    yield "values-huge", gguf(b"", 2**63)
    yield "tensors-huge", gguf(b"", 0, b"", 2**63)
    yield "split-nan", gguf(named("split.count") + struct.pack("<If", 6, float("nan")), 1)
    tensor = named("a") + struct.pack("<IQQIQ", 2, 0, 2**63, 0, 0)
    yield "dimensions", gguf(b"", 0, tensor, 1)
    yield "many-axes", gguf(b"", 0, named("a") + struct.pack("<I", 2**31), 1)
    shape = named("comfy.gguf.orig_shape.a") + struct.pack("<If", 6, float("nan"))
    yield "original-shape", gguf(shape, 1)
    yield "version", b"GGUF" + struct.pack("<IQQ", 99, 0, 0)


def graphs() -> Iterator[tuple[str, Any]]:
    """Entries of a prompt that are no nodes, and nodes that are none."""
    node = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}}
    for name, value in (("null", None), ("text", "x"), ("list", [1]), ("deep", {"inputs": {"a": [[[[]]]]}})):
        yield f"node-{name}", {"1": value, "2": node}
    for name, value in (("list", ["x"]), ("object", {"a": 1}), ("number", 3), ("surrogate", "\ud800")):
        yield f"class-{name}", {"1": {"class_type": value, "inputs": {}}, "2": node}
    for name, value in (("list", []), ("null", None), ("text", "x")):
        yield f"inputs-{name}", {"1": {"class_type": "LoadImage", "inputs": value}, "2": node}
    for name, prefix in (
        ("up", "../x"),
        ("nul", "a\0b"),
        ("surrogate", "\ud800"),
        ("empty", ""),
        ("dot", "."),
        ("long", "x" * 5000),
    ):
        yield (
            f"prefix-{name}",
            {"2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}}},
        )
    loop = {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["1", 0]}}
    yield "circle", {"1": loop, "2": node}
    yield (
        "output-huge",
        {"1": {"class_type": "Unknown", "inputs": {}}, "2": {**node, "inputs": {"images": ["1", 2**29]}}},
    )


def editor_graphs() -> Iterator[tuple[str, Any]]:
    """Lists of the editor's files that are none."""
    node = {"id": 1, "type": "SaveImage", "inputs": [], "outputs": [], "widgets_values": ["a"]}
    for key in ("inputs", "outputs", "widgets_values", "type", "mode", "properties", "title", "id"):
        for name, value in (("number", 5), ("text", "x"), ("list", [1]), ("object", {"a": 1})):
            yield f"{key}-{name}", {"nodes": [{**node, key: value}], "links": []}
    for name, value in (("number", 5), ("text", "xyz"), ("object", {"a": 1})):
        yield f"links-{name}", {"nodes": [node], "links": value}
        yield f"definitions-{name}", {"nodes": [node], "links": [], "definitions": {"subgraphs": value}}
    inner = {"id": "s", "nodes": [{"id": 2, "type": "s"}], "inputs": 3, "links": []}
    yield "subgraph-in-itself", {"nodes": [{"id": 1, "type": "s"}], "links": [], "definitions": {"subgraphs": [inner]}}
    wrong = {"id": "s", "nodes": [node], "inputs": [None, {"name": "a", "linkIds": 4}], "links": []}
    yield "subgraph-inputs", {"nodes": [{"id": 1, "type": "s"}], "links": [], "definitions": {"subgraphs": [wrong]}}


def png(width: int, height: int, chunks: bytes = b"") -> bytes:
    """A PNG of this size whose pixels are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunks
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def data_sets() -> Iterator[tuple[str, bytes]]:
    """(NAME@FILE, content) of what other tools write, with names and counts that lie."""
    for name, path in (("home", "~nobody-is-called-so/x"), ("long", "x" * 5000), ("deep", "x/" * 3000)):
        yield f"path-{name}@pipe.toml", f"[[directory]]\npath = '{path}'\n".encode()
        yield f"place-{name}@musubi.toml", f"[[datasets]]\nimage_jsonl_file = '{path}'\n".encode()
    numbers = ", ".join(map(str, range(30_000)))
    sizes = f"resolutions = [{numbers}]\nframe_buckets = [{numbers}]\n[[directory]]\npath = 'clips'\n"
    yield "sizes@pipe.toml", sizes.encode()
    for name, filename in (("long", "x" * 5000), ("nul", "a\0"), ("surrogate", "\ud800"), ("empty", ""), ("list", [])):
        yield f"file-{name}@state.json", json.dumps({"_data_files": [{"filename": filename}]}).encode()
    yield "deep-files@state.json", b'{"_data_files": ' + DEEP
    for name, other in (("long", "x" * 5000), ("nul", "a\0"), ("surrogate", "\ud800"), ("deep", "x/" * 3000)):
        for column in ("file_name", "reference_path", "mask_path"):
            row = {"file_name": "a.png", "caption": "one", "reference_path": "a.png", column: other}
            yield f"{column}-{name}@rows.json", json.dumps([row]).encode()
    for name, members in (
        ("long", ["x" * 300 + ".txt", "x" * 300 + "/a.png"]),
        ("file-and-folder", ["a.png", "a.png/b.png"]),
        ("folder-and-file", ["a.txt/b.txt", "a.txt"]),
        ("outside", ["../a.png", "/a.png"]),
    ):
        yield f"names-{name}@set.tar", archive(members)
    sparse = tarfile.TarInfo("a.png")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 0)  # one piece without bytes
    header[483:495] = b"%011o\0" % (2**33 - 1)  # of a file of 8 GB
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    yield "sparse@set.tar", bytes(header) + bytes(1024)
    stream = archive(["a.png"] * 50)
    yield "goes-on@set.tar.gz", gzip.compress(stream[:600], mtime=0) + b"\x1f\x8b\x09" + bytes(50)
    yield "goes-on@set.tar.bz2", bz2.compress(stream[:600]) + b"BZh9" + bytes(50)
    yield "cut@set.tar.xz", lzma.compress(stream)[:-30]


def archive(names: Sequence[str]) -> bytes:
    """A tar of files with these names."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as opened:
        for name in names:
            opened.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


def requests() -> Iterator[tuple[str, bytes]]:
    """(NAME@FILE, content) of what clients send to a server, and of tables of requests."""
    picture = "data:image/png;base64,"
    for name, said in (
        ("prompt-surrogate", {"prompt": "\ud800 a 7"}),
        ("field-surrogate", {"prompt": "a", "\ud800": 1}),
        ("number-deep", {"prompt": "a", "seconds": "[" * 3000}),
        ("number-object", {"prompt": "a", "seed": "{}"}),
        ("number-long", {"prompt": "a", "seed": "9" * 5000}),
        ("knobs-deep", {"prompt": "a", "extra_params": {"sigmas": json.loads("[" * 300 + "]" * 300)}}),
        ("knobs-of-python", {"prompt": "a", "extra_params": {"self": 1}}),
        ("second-of-python", {"prompt": "a", "extra_params": {"second": {"self": 1, "\ud800": 2}}}),
        ("lora-deep", {"prompt": "a", "lora": "[" * 3000}),
        ("reference-letters", {"prompt": "a", "input_reference": f"{picture}é"}),
        ("reference-deep", {"prompt": "a", "input_reference": '{"image_url": ' * 3000}),
        ("reference-surrogate", {"prompt": "a", "input_reference": {"\ud800": 1}}),
        (
            "reference-bomb",
            {"prompt": "a", "input_reference": picture + base64.b64encode(png(60_000, 60_000)).decode()},
        ),
    ):
        yield f"requests/{name}@video.json", json.dumps(said).encode()
        yield f"batch/{name}@row.jsonl", json.dumps(said).encode()
    for name, path in (("nul", "a\0.png"), ("long", "x" * 5000), ("surrogate", "\ud800.png"), ("folder", ".")):
        yield f"batch/reference-{name}@row.jsonl", json.dumps({"prompt": "a", "input_reference": path}).encode()
    demo = json.loads(DEMO.read_text(encoding="utf-8"))
    for name, more in (
        ("nan", {"_meta": {"title": float("nan"), "more": [float("inf")]}, "is_changed": [float("nan")]}),
        ("surrogate", {"_meta": {"title": "\ud800"}, "\udfff": {}}),
        ("deep", {"_meta": json.loads("[" * 900 + "]" * 900)}),
    ):
        for kind in ("LTXKitCreateSchedule", "SaveImage"):
            graph = {"1": {"class_type": kind, "inputs": {}, **more}}
            yield f"requests/{name}-{kind}@graph.json", json.dumps({"prompt": graph}).encode()
        graph = json.loads(json.dumps(demo))
        next(iter(graph.values())).update(more)
        yield f"requests/{name}-accepted@graph.json", json.dumps({"prompt": graph}).encode()
    yield "requests/client-surrogate@graph.json", json.dumps({"prompt": demo, "client_id": "\ud800"}).encode()
    yield "requests/identity-list@graph.json", json.dumps({"prompt": demo, "prompt_id": [1]}).encode()
    yield "requests/delete@change.json", json.dumps({"delete": ["\ud800", None, [], {}, 1, "x" * 5000]}).encode()
    yield "requests/clear@change.json", json.dumps({"delete": {"a": 1}, "clear": [1]}).encode()
    for name, field in (
        ("nul", "a\0"),
        ("long", "x" * 5000),
        ("brackets", "lora[" * 50),
        ("list", "extra_params[a][]"),
    ):
        form = f'--x\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n[1\r\n--x--\r\n'
        yield f"requests/field-{name}@form.txt", form.encode()
    yield "requests/no-end@form.txt", b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na'
    yield "requests/no-name@form.txt", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n"


def files() -> Iterator[tuple[str, bytes]]:
    """(TARGET/NAME@FILE, content) of every file."""
    for name, data in headers():
        yield f"safetensors/{name}@small.safetensors", data
        yield f"lora/{name}@plain.safetensors", data
        yield f"latents/{name}@a.latent", data
    for name, data in loras():
        yield f"lora/{name}@peft.safetensors", data
    for name, data in ggufs():
        yield f"gguf/{name}@gguf-q8_0.gguf", data
    for name, graph in graphs():
        yield f"api-graphs/{name}@0.json", json.dumps(graph).encode()
        yield f"migration/{name}@native.json", json.dumps(graph).encode()
    for name, graph in editor_graphs():
        yield f"ui-graphs/{name}@0.json", json.dumps(graph).encode()
    for target, file in (
        ("training-yaml", "digits-vae.yaml"),
        ("recipes", "theirs.yaml"),
        ("places", "extra_model_paths.yaml"),
    ):
        yield f"{target}/aliases@{file}", ALIASES.encode()
        yield f"{target}/deep@{file}", b"a: " + DEEP[:3000]
        yield f"{target}/latin@{file}", b"task: \xe9\n"
        for number, tag in enumerate(TAGS):
            yield f"{target}/tag-{number}@{file}", f"task: {tag}\n".encode()
    for target, file in (
        ("index", "diffusion_pytorch_model.safetensors.index.json"),
        ("configs", "config.json"),
        ("kernels", "kernels.json"),
        ("tokenizer-json", "tokenizer.json"),
        ("records", "library.json"),
        ("api-graphs", "1.json"),
        ("ui-graphs", "1.json"),
        ("migration", "0.json"),
        ("recipes", "theirs.json"),
        ("captions", "captions.json"),
        ("runs", "graph.json"),
        ("requests", "video.json"),
        ("requests", "graph.json"),
        ("requests", "change.json"),
        ("batch", "row.jsonl"),
        ("answers", "answer.json"),
        ("data-sets", "musubi.json"),
        ("data-sets", "rows.json"),
        ("data-sets", "state.json"),
    ):
        yield f"{target}/deep@{file}", b'{"a": ' + DEEP
        yield f"{target}/list@{file}", b"[1, 2]"
        yield f"{target}/surrogate@{file}", b'{"\\ud800": "\\udfff"}'
        yield f"{target}/infinity@{file}", b'{"a": Infinity, "b": 1e999, "c": -0}'
        yield f"{target}/digits@{file}", b'{"a": ' + b"9" * 5000 + b"}"
    for name in (
        "../../outside.safetensors",
        "/etc/passwd",
        "C:\\x.safetensors",
        "a\\..\\..\\b.safetensors",
        "\x00",
        "",
    ):
        number = len(name)
        index = json.dumps({"weight_map": {"transformer.patchify_proj.weight": name}}).encode()
        yield f"index/outside-{number}@diffusion_pytorch_model.safetensors.index.json", index
    yield "pictures/bomb@a.png", png(2**31 - 1, 2**31 - 1)
    yield "pictures/no-pixels@a.png", png(16, 16)
    yield "pictures/no-size@a.png", png(0, 0)
    yield "embedded-graphs/bomb@a.png", png(60_000, 60_000)
    text = zlib.compress(b"x" * 5_000_000)
    chunk = b"zTXtprompt\0\0" + text
    bomb = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    yield "embedded-graphs/text-bomb@a.png", png(16, 16, bomb)
    yield "embedded-graphs/deep@d.latent", safetensors(b'{"a": ' + DEEP)
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "/////////w=="}
    yield "tokenizer-json/charsmap@tokenizer.json", json.dumps({"model": {}, "normalizer": charsmap}).encode()
    yield "captions/long-name@captions.json", json.dumps([{"file": "x/" * 3000, "text": "a"}]).encode()
    yield "captions/long-name@videos.txt", b"x/" * 3000 + b"\nb.png\n"
    yield "captions/nul@videos.txt", b"a\0.png\nb.png\n"
    yield "data-sets/entries@pipe.toml", b"[[directory]]\npath = {a = 1}\nnum_repeats = nan\ncaption_prefix = []\n"
    yield (
        "data-sets/sets@musubi.toml",
        b"datasets = [1, {}, {video_directory = 3, resolution = 'x', target_frames = 1}]\n",
    )
    yield "data-sets/general@musubi.toml", b"general = 7\ndatasets = []\n"
    yield "data-sets/pickle@a.pt", b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03."
    yield "data-sets/empty@set.tar", b""
    for name, data in data_sets():
        yield f"data-sets/{name}", data
    yield from requests()
    yield "data-files/no-elements@train-labels-idx1-ubyte", struct.pack(">IIII", 0x803, 0, 2**32 - 1, 2**32 - 1)
    yield "data-files/dimensions@train-labels-idx1-ubyte", b"\0\0\x08\xff"
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (3, 4, 8, 8)), }".ljust(117) + b"\n"
    yield "data-files/header@mm.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(768)
    yield (
        "run-folders/entries@log.jsonl",
        b'[1]\n{"step": "x"}\n{"step": 1, "loss": {}}\n{"step": NaN}\nnull\n\xff\n' + DEEP,
    )
    yield "run-folders/pickle@state.pt", b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03."
    shapes = {"axes": [2], "image": [1, 4, 1, 1], "empty": [1, 16, 0, 2, 2], "huge": [1, 16, 2**31, 0, 2]}
    for name, shape in shapes.items():
        count = 4 * math.prod(shape)
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, count]}
        yield f"latents/shape-{name}@a.latent", safetensors({"latent_tensor": entry}, bytes(count))
    for dtype, size in (("F4", 0.5), ("F6_E2M3", 0.75), ("F8_E8M0", 1), ("C64", 8), ("BOOL", 1), ("U64", 8)):
        entry = {"dtype": dtype, "shape": [1, 16, 2, 2, 2], "data_offsets": [0, int(128 * size)]}
        yield f"latents/dtype-{dtype}@a.latent", safetensors({"latent_tensor": entry}, bytes(int(128 * size)))
    for name, message in (("parts", [{"type": "text", "text": "a cat"}]), ("escapes", "\x1b[2J a\u202e\ud800")):
        yield f"answers/{name}@answer.json", json.dumps({"choices": [{"message": {"content": message}}]}).encode()
    yield "spiece/empty@spiece.model", b""
    yield "spiece/text@spiece.model", b"\n" * 500


def write(folder: Path) -> list[Path]:
    """Everything: the files above, written into a folder, and those that were found."""
    made: list[Path] = []
    for name, data in files():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        made.append(path)
    return sorted([*made, *FOUND.glob("*/*@*")], key=lambda path: (path.parent.name, path.name))

"""Data sets whose names, counts and types lie, or are of kinds that no clip needs: one sentence, or the clips."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import math
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from ltxkit.ltx_core import main_memory
from ltxkit.ltx_core.errors import ConfigError, UnsupportedError
from ltxkit.ltx_core.media import write_image
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.ltx_core.training.captions import listed_captions
from ltxkit.ltx_core.training.config import Data
from ltxkit.ltx_core.training.data_choice import fitting_frames
from ltxkit.ltx_core.training.datasets.precomputed import read_embedding, read_latents
from ltxkit.ltx_core.training.datasets.sets import DataSet, open_data
from ltxkit.ltx_core.training.folder import Reading, read_folder
from ltxkit.ltx_core.training.sources import open_source

LONG = "x" * 5000


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("picture") / "a.png"
    write_image(path, torch.zeros(8, 8, 3))
    return path.read_bytes()


def unpacked(path: Path) -> dict[str, str]:
    """The captions of the one set at a path, by the names of its files."""
    (found,) = open_data(path, lambda _: None)
    rows = [json.loads(line) for line in (found.path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["file_name"]: row["caption"] for row in rows}


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        open_data(path, lambda _: None)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- columns of databases


def test_columns_that_nobody_reads_may_be_of_any_type(tmp_path: Path, picture: bytes) -> None:
    """Times in nanoseconds, and times beyond Python's, cannot become values of Python; they stand in many tables."""
    stored = {
        "image": [{"bytes": picture, "path": "a.png"}],
        "caption": ["one"],
        "made": arrow.array([2**62 + 1], arrow.timestamp("ns")),
        "later": arrow.array([2**62], arrow.timestamp("s")),
        "lasts": arrow.array([2**62], arrow.duration("s")),
    }
    parquet.write_table(
        arrow.table({"image": stored["image"], "caption": stored["caption"]}), tmp_path / "plain.parquet"
    )
    table = arrow.table(stored)
    with (tmp_path / "x.arrow").open("wb") as opened, arrow.ipc.new_stream(opened, table.schema) as writer:
        writer.write_table(table)
    assert unpacked(tmp_path / "x.arrow") == unpacked(tmp_path / "plain.parquet") == {"000000.png": "one"}


def test_a_caption_that_python_cannot_have_is_refused(tmp_path: Path, picture: bytes) -> None:
    table = arrow.table({"image": [picture], "caption": arrow.array([2**62], arrow.timestamp("us"))})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert "which cannot be read" in refused(tmp_path / "x.parquet")


def test_a_type_of_a_column_that_is_not_there(tmp_path: Path, picture: bytes) -> None:
    table = arrow.table({"image": [picture], "caption": ["one"]})
    said = {"info": {"features": {"gone": {"_type": "Video"}, "image": {"_type": "Image"}}}}
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(said)}), tmp_path / "x.parquet")
    assert unpacked(tmp_path / "x.parquet") == {"000000.png": "one"}
    deep = table.replace_schema_metadata({"huggingface": "[" * 20_000})
    parquet.write_table(deep, tmp_path / "deep.parquet")
    assert unpacked(tmp_path / "deep.parquet") == {"000000.png": "one"}


@pytest.mark.parametrize(
    "column", [[{"bytes": "text", "path": "a.png"}], [{"bytes": b"", "path": 5}], [7], [[1, 2]], [{"a": 1}], [None]]
)
def test_fields_of_other_types(column: list[Any], tmp_path: Path) -> None:
    parquet.write_table(arrow.table({"image": column, "caption": ["one"]}), tmp_path / "x.parquet")
    if column == [{"bytes": "text", "path": "a.png"}]:  # a path stays one
        (found,) = open_data(tmp_path / "x.parquet", lambda _: None)
        assert found.table is not None
        assert json.loads(found.table.read_text(encoding="utf-8"))["file_name"] == "a.png"
        return
    assert "got row 0 of" in refused(tmp_path / "x.parquet")


def test_tables_of_different_columns(tmp_path: Path, picture: bytes) -> None:
    parquet.write_table(arrow.table({"image": [picture], "caption": ["one"]}), tmp_path / "train-0-of-2.parquet")
    parquet.write_table(arrow.table({"video": [picture], "caption": ["two"]}), tmp_path / "train-1-of-2.parquet")
    assert "got row 1 of" in refused(tmp_path)
    twice = arrow.Table.from_arrays([arrow.array([picture])] * 2, names=["image", "image"])
    with (tmp_path / "x.arrow").open("wb") as opened, arrow.ipc.new_stream(opened, twice.schema) as writer:
        writer.write_table(twice)
    assert "which cannot be read" in refused(tmp_path / "x.arrow")


@pytest.mark.parametrize("name", [LONG, "a\0", "\ud800", "", 5, None, [], datetime.MAXYEAR])
def test_names_that_a_saved_set_gives_its_files(name: object, tmp_path: Path) -> None:
    (tmp_path / "data.arrow").write_bytes(b"")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    assert "which state.json names; copy it whole" in refused(tmp_path)
    (tmp_path / "state.json").write_text('{"_data_files": ' + "[" * 20_000)
    assert "which cannot be read" in refused(tmp_path)


# ------------------------------------------------------------------------------------------------------------- archives


def archive(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as opened:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    "names",
    [("x" * 256 + ".png",), ("x" * 300 + "/a.png",), ("a.txt", "a.txt/b.png"), ("a.txt/b.png", "a.txt")],
    ids=["long name", "long folder", "file and folder", "folder and file"],
)
def test_names_of_members_that_no_disk_can_have(names: tuple[str, ...], tmp_path: Path, picture: bytes) -> None:
    message = refused(archive(tmp_path / "x.tar", [(name, picture) for name in names]))
    assert "which cannot be read" in message or "lead outside" in message


def test_a_sparse_member_does_not_fill_the_disk(tmp_path: Path, picture: bytes) -> None:
    archive(tmp_path / "x.tar", [("a.png", picture)])
    sparse = tarfile.TarInfo("b.png")
    sparse.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0" % 0 * 2
    header[483:495] = b"%011o\0" % (2**33 - 1)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "y.tar").write_bytes(bytes(header) + (tmp_path / "x.tar").read_bytes())
    notes: list[str] = []
    (found,) = open_data(tmp_path / "y.tar", notes.append)
    assert [path.name for path in found.path.glob("*.png")] == ["a.png"]
    assert any("1 members not used: a sparse file" in note for note in notes)


def test_streams_of_packed_tars_that_go_on_as_something_else(tmp_path: Path, picture: bytes) -> None:
    data = archive(tmp_path / "x.tar", [(f"{number}.png", picture) for number in range(3)]).read_bytes()
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(data[:600]) + b"\x1f\x8b\x09" + bytes(50))
    (tmp_path / "x.tar.bz2").write_bytes(bz2.compress(data[:600]) + b"BZh9" + bytes(50))
    for suffix in ("gz", "bz2"):
        assert "which cannot be read" in refused(tmp_path / f"x.tar.{suffix}")


# --------------------------------------------------------------------------------------------- other trainers' settings


@pytest.mark.parametrize("name", ["~nobody-is-called-so/x", LONG, "x/" * 3000, "~"])
def test_places_that_cannot_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f"[[datasets]]\nimage_jsonl_file = '{name}'\n", encoding="utf-8")
    assert "which is missing; expected a file" in refused(tmp_path / "x.toml")
    if name != "~":  # a folder that is there
        (tmp_path / "y.toml").write_text(f"[[directory]]\npath = '{name}'\n", encoding="utf-8")
        assert "which is missing; expected a folder" in refused(tmp_path / "y.toml")


def test_lists_of_sizes_are_not_multiplied(tmp_path: Path) -> None:
    numbers = list(range(20_000))
    text = f"resolutions = {numbers}\nframe_buckets = {numbers}\n[[directory]]\npath = '.'\n"
    (tmp_path / "x.toml").write_text(text, encoding="utf-8")
    notes: list[str] = []
    assert [found.path for found in open_data(tmp_path / "x.toml", notes.append)] == [tmp_path]
    assert len("".join(notes)) < 10_000
    small = "resolutions = [512, 512]\nframe_buckets = [1, 33, 1]\n[[directory]]\npath = '.'\n"
    (tmp_path / "x.toml").write_text(small, encoding="utf-8")
    open_data(tmp_path / "x.toml", notes.append)
    assert "data.sizes=[[1, 512, 512], [33, 512, 512]];" in notes[-1]


@pytest.mark.parametrize("column", ["reference_path", "mask_path"])
@pytest.mark.parametrize("name", [LONG, "a\0b", "\ud800", "x/" * 3000])
def test_names_of_references_and_masks(column: str, name: str, tmp_path: Path, picture: bytes) -> None:
    (tmp_path / "a.png").write_bytes(picture)
    (tmp_path / "rows.json").write_text(json.dumps([{"file_name": "a.png", "text": "one", column: name}]))
    faults: list[str] = []
    found = listed_captions(tmp_path, [tmp_path / "a.png"], print, faults)
    assert [*found.texts.values()] == ["one"]
    (fault,) = faults
    assert "is no name that a file can have" in fault
    assert len(fault) < 500


@pytest.mark.parametrize("name", ["/", "//", "/..", "\\", "../" * 60, "root"])
@pytest.mark.parametrize("column", ["file_name", "reference_path", "mask_path"])
def test_the_root_of_a_disk_is_no_clip(column: str, name: str, tmp_path: Path, picture: bytes) -> None:
    """It has no name of its own, beside which a caption could lie."""
    (tmp_path / "a.png").write_bytes(picture)
    if name == "root":
        (tmp_path / "root").symlink_to("/")
    row = {"file_name": "a.png", "text": "one", column: name}
    (tmp_path / "rows.json").write_text(json.dumps([row]), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a name that a file can have|is no name that a file can have"):
        read_folder(tmp_path, [PixelShape(1, 8, 8)], fps=8, seed=0, notes=lambda _: None, reading=Reading())


@pytest.mark.parametrize("name", [".", "..", "below", "../..", "below/.."])
def test_folders_in_the_place_of_clips_are_a_sentence(name: str, tmp_path: Path, picture: bytes) -> None:
    (tmp_path / "set" / "below").mkdir(parents=True)
    (tmp_path / "set" / "a.png").write_bytes(picture)
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": name, "text": "two"}]
    (tmp_path / "set" / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    notes: list[str] = []
    try:
        read_folder(tmp_path / "set", [PixelShape(1, 8, 8)], fps=8, seed=0, notes=notes.append, reading=Reading())
    except ConfigError as error:
        notes.append(str(error))
    assert str((tmp_path / "set" / name).resolve()) in "".join(notes)


def test_headers_that_numpy_reads_as_python(tmp_path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (3, 4, 8, 8)), }".ljust(117) + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert fitting_frames(str(tmp_path / "x.npy"), 25) == 25


# -------------------------------------------------------------------------------------------------------------- latents

GOOD: Mapping[str, Any] = {"latents": torch.zeros(6, 4), "num_frames": 1, "height": 2, "width": 3, "fps": 8.0}
TENSORS: Mapping[str, Callable[[], Tensor]] = {
    "without bytes": lambda: torch.zeros(6, 4, device="meta"),
    "sparse": lambda: torch.zeros(6, 4).to_sparse(),
    "compressed": lambda: torch.eye(6, 4).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(6, 4), 0.1, 0, torch.qint8),
    "repeated": lambda: torch.zeros(1, 1).expand(2**30, 2**20),
    "whole numbers": lambda: torch.zeros(6, 4, dtype=torch.int64),
    "complex": lambda: torch.zeros(6, 4, dtype=torch.complex64),
    "infinite": lambda: torch.full((6, 4), math.inf),
    "none": lambda: torch.zeros(0, 4),
    "three axes": lambda: torch.zeros(6, 4, 1),
}


@pytest.mark.filterwarnings("ignore")  # of torch, about kinds that it will give up
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_other_kinds_are_refused(kind: str, tmp_path: Path) -> None:
    torch.save({**GOOD, "latents": TENSORS[kind]()}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=r"got .*a\.pt"):
        read_latents(tmp_path / "a.pt")
    if kind != "none":
        torch.save({"prompt_embeds": TENSORS[kind]()}, tmp_path / "b.pt")
        with pytest.raises(ConfigError, match=r"got .*b\.pt"):
            read_embedding(tmp_path / "b.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_tensors_of_other_types_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save({**GOOD, "latents": torch.ones(6, 4).to(dtype)}, tmp_path / "a.pt")
    assert torch.equal(read_latents(tmp_path / "a.pt").latents, torch.ones(4, 1, 2, 3))
    torch.save({"prompt_embeds": torch.ones(6, 4).to(dtype)}, tmp_path / "b.pt")
    assert torch.equal(read_embedding(tmp_path / "b.pt").float(), torch.ones(6, 4))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 0, 1.5, "1", None, True, 2**70, torch.tensor(math.nan)])
def test_counts_that_are_none(value: object, tmp_path: Path) -> None:
    for changes in ({"num_frames": value}, {"num_frames": value, "height": -2}):
        torch.save({**GOOD, **changes}, tmp_path / "a.pt")
        with pytest.raises(ConfigError, match="with 6 tokens"):
            read_latents(tmp_path / "a.pt")


@pytest.mark.parametrize("fps", [math.nan, math.inf, -1.0, 0, "8", True])
def test_rates_that_are_none_are_not_said(fps: object, tmp_path: Path) -> None:
    torch.save({**GOOD, "fps": fps}, tmp_path / "a.pt")
    assert read_latents(tmp_path / "a.pt").fps is None


@pytest.mark.parametrize("how", ["packed", "one in another"])
def test_stored_latents_that_claim_more_bytes_than_they_have(how: str, tmp_path: Path) -> None:
    """A few bytes that would become as many as they like: `torch.save` packs nothing."""
    torch.save({**GOOD, "latents": torch.zeros(6, 2**16)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "a.pt", "w") as made:
        for member in whole.infolist():
            kind = zipfile.ZIP_DEFLATED if how == "packed" else zipfile.ZIP_STORED
            made.writestr(member.filename, whole.read(member), kind)
        if how != "packed":
            made.filelist.extend([max(made.filelist, key=lambda each: each.file_size)] * 2)
    with pytest.raises(ConfigError, match="claims more bytes than it has"):
        read_latents(tmp_path / "a.pt")
    if how == "packed":
        assert (tmp_path / "a.pt").stat().st_size < 10_000
    assert read_latents(tmp_path / "whole.pt").latents.shape == (2**16, 1, 2, 3)


def test_packed_arrays_that_memory_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "videos.npz"
    np.savez_compressed(path, videos=np.zeros((40, 25, 32, 32), np.uint8))
    assert path.stat().st_size < 10_000
    config = Data(kind="moving_mnist", path=path, sizes=((9, 32, 32),))
    open_source(config, "train", 0)
    monkeypatch.setattr(main_memory, "main_memory", lambda: main_memory.Memory(10**6, 10**9))
    monkeypatch.setattr(main_memory, "swap_memory", lambda: 0)
    with pytest.raises(UnsupportedError, match=r"packed in .*videos\.npz, which takes 0\.0 GB"):
        open_source(config, "train", 0)


def test_the_set_of_a_picture_is_its_folder(tmp_path: Path, picture: bytes) -> None:
    """What the tests above damage is read as it is."""
    (tmp_path / "a.png").write_bytes(picture)
    assert open_data(tmp_path, lambda _: None) == [DataSet(tmp_path)]

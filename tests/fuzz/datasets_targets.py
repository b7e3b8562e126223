"""Data sets as other tools write them: tars, Arrow, Parquet, TOML, and latents with embeddings."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
from pathlib import Path

import mutate
import torch
from target import QUIET, Target

PIPE = """resolutions = [512]
frame_buckets = [1, 33]
[[directory]]
path = 'clips'
num_repeats = 2
caption_prefix = 'x, '
"""
MUSUBI = """[general]
resolution = [960, 544]
caption_extension = ".txt"
[[datasets]]
image_directory = "clips"
num_repeats = 1
target_frames = [1, 25]
[[datasets]]
image_jsonl_file = "clips/list.jsonl"
"""


def _picture(colour: str = "navy") -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(stream, "PNG")
    return stream.getvalue()


def _sets(folder: Path) -> list[Path]:
    import pyarrow as arrow
    from pyarrow import parquet

    picture, clips = _picture(), folder / "clips"
    clips.mkdir()
    (clips / "a.png").write_bytes(picture)
    (clips / "a.txt").write_text("one")
    (clips / "list.jsonl").write_text('{"image_path": "a.png", "caption": "one"}\n')
    (folder / "pipe.toml").write_text(PIPE)
    (folder / "musubi.toml").write_text(MUSUBI)
    for kind in ("", ".gz", ".bz2", ".xz"):
        with tarfile.open(folder / f"set.tar{kind}", f"w:{kind[1:]}", format=tarfile.USTAR_FORMAT) as archive:
            for name, content in (("a.png", picture), ("a.txt", b"one"), ("a.mask.png", picture)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    rows = arrow.Table.from_pylist([{"image": {"bytes": picture, "path": "a.png"}, "caption": "one"}] * 2)
    with (folder / "set.arrow").open("wb") as opened, arrow.ipc.new_stream(opened, rows.schema) as writer:
        writer.write_table(rows)
    parquet.write_table(rows, folder / "set.parquet")
    (folder / "saved").mkdir()
    shutil.copy(folder / "set.arrow", folder / "saved" / "data-00000.arrow")
    (folder / "saved" / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000.arrow"}], "_indices_data_files": None, "_split": "train"})
    )
    (folder / "table").mkdir()
    (folder / "table" / "a.png").write_bytes(picture)
    (folder / "table" / "white.png").write_bytes(_picture("white"))
    row = {"file_name": "a.png", "caption": "one", "reference_path": "a.png", "mask_path": "white.png"}
    (folder / "table" / "rows.json").write_text(json.dumps([row]))
    (folder / "musubi.json").write_text(
        json.dumps({"general": {"resolution": 512}, "datasets": [{"image_directory": "clips", "num_repeats": 2}]})
    )
    for name in ("latents", "conditions"):
        (folder / "stored" / name).mkdir(parents=True)
    latents = {"latents": torch.zeros(1, 8), "num_frames": 1, "height": 1, "width": 1, "fps": 8.0}
    torch.save(latents, folder / "stored" / "latents" / "a.pt")
    text = {"prompt_embeds": torch.zeros(4, 8), "prompt_attention_mask": torch.ones(4, dtype=torch.bool)}
    torch.save(text, folder / "stored" / "conditions" / "a.pt")
    return [
        *(folder / name for name in ("pipe.toml", "musubi.toml", "musubi.json", "set.arrow", "set.parquet")),
        *(folder / f"set.tar{kind}" for kind in ("", ".gz", ".bz2", ".xz")),
        *(folder / name for name in ("saved/state.json", "table/rows.json")),
        *(folder / "stored" / name / "a.pt" for name in ("latents", "conditions")),
    ]


def _opened(path: Path) -> object:
    from ltxkit.ltx_core.shapes import PixelShape, ScaleFactors
    from ltxkit.ltx_core.training.config import Data
    from ltxkit.ltx_core.training.datasets.precomputed import LatentFormat
    from ltxkit.ltx_core.training.folder import read_folder
    from ltxkit.ltx_core.training.sources import reading_of

    place = path.parents[1] if path.suffix == ".pt" else path.parent if path.name == "state.json" else path
    config = Data(kind="folder", path=place, sizes=((1, 32, 32),))
    reading = reading_of(config, latents=LatentFormat(8, ScaleFactors(8, 32, 32)))
    cache = path.parent / "cache"
    before = os.environ.get("LTXKIT_CACHE")
    os.environ["LTXKIT_CACHE"] = str(cache)
    try:
        return read_folder(config, [PixelShape(1, 32, 32)], fps=8, seed=0, notes=QUIET, reading=reading)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        if before is None:
            del os.environ["LTXKIT_CACHE"]
        else:
            os.environ["LTXKIT_CACHE"] = before


def _damage(data: bytes, rng: random.Random) -> bytes:
    return mutate.json_or(mutate.noise if b"\0" in data else mutate.lines)(data, rng)


TARGETS = {
    "data-sets": Target(_sets, _opened, _damage),
}

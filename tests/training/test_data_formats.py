"""Data sets as other tools write them give the pixels, captions and conditions of the plain folder."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pyarrow as arrow
import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.media import write_image, write_video
from ltxkit.ltx_core.shapes import ScaleFactors
from ltxkit.ltx_core.training.condition_settings import ConditionSettings, ReferenceSettings
from ltxkit.ltx_core.training.conditions import ClipConditions
from ltxkit.ltx_core.training.config import Data, DataPart, Optimization, TransformerTraining
from ltxkit.ltx_core.training.folder import VideoFolder
from ltxkit.ltx_core.training.sources import open_sources

CPU = torch.device("cpu")
CAPTIONS = {"a": "a cat", "b": "a dog, running", "c": "ein Vogel über dem Fluß"}
SIZE = (9, 32, 32)


@dataclass
class Set:
    """What a form of a data set is opened with, and what it gives."""

    path: Path
    changes: dict[str, object] = field(default_factory=dict)
    prefix: str = ""
    referenced: bool = False


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """videos/a.mp4 and others with their references below references/; the same bytes in every form."""
    folder = tmp_path_factory.mktemp("clips")
    for number, name in enumerate(CAPTIONS):
        frames = torch.rand(9, 32, 32, 3, generator=torch.Generator().manual_seed(number))
        write_video(folder / "videos" / f"{name}.mp4", [frames], fps=Fraction(25))
        write_video(folder / "references" / f"{name}.mp4", [1 - frames], fps=Fraction(25))
    return folder


@pytest.fixture(scope="module")
def plain(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The pixels of the plain folder, by caption."""
    folder = tmp_path_factory.mktemp("plain")
    for name, text in CAPTIONS.items():
        shutil.copy(clips / "videos" / f"{name}.mp4", folder)
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return pixels(opened(folder))


def opened(path: Path, notes: list[str] | None = None, /, **changes: object) -> VideoFolder:
    data = Data(**{"kind": "folder", "path": path, "sizes": (SIZE,), **changes})  # type: ignore[arg-type]
    source = open_sources(data, 0, (notes if notes is not None else []).append)[0]
    assert isinstance(source, VideoFolder)
    return source


def pixels(source: VideoFolder) -> dict[str, Tensor]:
    (size,) = source.sizes()
    samples = source.entries(range(source.distinct(size)), size, CPU)
    return dict(zip(samples.captions, samples.pixels, strict=True))


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def videos(clips: Path, to: Path, *names: str) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for name in names or CAPTIONS:
        shutil.copy(clips / "videos" / f"{name}.mp4", to)


def beside(folder: Path, suffix: str = ".txt") -> None:
    for name, caption in CAPTIONS.items():
        if (folder / f"{name}.mp4").is_file():
            text(folder / f"{name}{suffix}", caption)


# ------------------------------------------------------------------------------------------------- the tools' own forms


def trainer_json(clips: Path, to: Path, suffix: str = ".json") -> Set:
    """LTX-Video-Trainer: scripts/caption_videos.py and docs/dataset-preparation.md."""
    shutil.copytree(clips, to, dirs_exist_ok=True)
    rows = [
        {"caption": caption, "media_path": f"videos/{name}.mp4", "reference_path": f"references/{name}.mp4"}
        for name, caption in CAPTIONS.items()
    ]
    if suffix == ".csv":
        lines = [f'"{row["caption"]}",{row["media_path"]},{row["reference_path"]}\n' for row in rows]
        text(to / "dataset.csv", "caption,media_path,reference_path\n" + "".join(lines))
    else:
        content = json.dumps(rows, indent=2) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        text(to / f"dataset{suffix}", content)
    return Set(to / f"dataset{suffix}", referenced=True)


def finetrainers(clips: Path, to: Path) -> Set:
    """finetrainers: docs/dataset/README.md, "two file format"."""
    videos(clips, to / "videos")
    text(to / "prompt.txt", "".join(f"{caption}\n" for caption in CAPTIONS.values()))
    text(to / "videos.txt", "".join(f"videos/{name}.mp4\n" for name in CAPTIONS))
    return Set(to)


def diffusion_pipe(clips: Path, to: Path) -> Set:
    """diffusion-pipe: examples/dataset.toml."""
    videos(clips, to / "one", "a", "b")
    videos(clips, to / "two", "c")
    beside(to / "one")
    beside(to / "two")
    videos(clips, to / "one" / "masks", "c")  # below the folder, where diffusion-pipe does not look
    shutil.copytree(clips / "references", to / "control")
    text(
        to / "dataset.toml",
        f"resolutions = [512]\nenable_ar_bucket = true\nframe_buckets = [1, 33]\n"
        f"[[directory]]\npath = '{to / 'one'}'\nnum_repeats = 2\ncaption_prefix = 'mything, '\n"
        f"control_path = '{to / 'control'}'\n"
        f"[[directory]]\npath = 'two'\ncaption_prefix = 'mything, '\ncontrol_path = 'control'\n",
    )
    return Set(to / "dataset.toml", prefix="mything, ", referenced=True)


def musubi(clips: Path, to: Path) -> Set:
    """musubi-tuner: docs/dataset_config.md."""
    videos(clips, to / "one", "a", "b")
    beside(to / "one", ".caption")
    text(to / "one" / "a.txt", "tags, that are not the caption")
    shutil.copytree(clips / "references", to / "control")
    videos(clips, to / "elsewhere", "c")
    row = {
        "video_path": str(to / "elsewhere" / "c.mp4"),
        "caption": CAPTIONS["c"],
        "control_path": str(to / "control" / "c.mp4"),
    }
    text(to / "list" / "metadata.jsonl", json.dumps(row) + "\n")
    text(
        to / "musubi.toml",
        f'[general]\nresolution = [960, 544]\ncaption_extension = ".caption"\nbatch_size = 1\nenable_bucket = true\n'
        f'[[datasets]]\nvideo_directory = "{to / "one"}"\ncache_directory = "{to / "cache"}"\n'
        f'target_frames = [1, 25, 45]\nframe_extraction = "head"\ncontrol_directory = "{to / "control"}"\n'
        f'[[datasets]]\nvideo_jsonl_file = "list/metadata.jsonl"\ntarget_frames = [25]\nnum_repeats = 3\n',
    )
    return Set(to / "musubi.toml", referenced=True)


def metadata(clips: Path, to: Path, suffix: str) -> Set:
    """datasets: "videofolder" with metadata; only the split `train` is for training."""
    videos(clips, to / "train")
    videos(clips, to / "test", "a")
    rows = [{"file_name": f"{name}.mp4", "text": caption} for name, caption in CAPTIONS.items()]
    if suffix == ".csv":
        lines = [f'{row["file_name"]},"{row["text"]}"\n' for row in rows]
        text(to / "train" / "metadata.csv", "file_name,text\n" + "".join(lines))
    else:
        text(to / "train" / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    text(to / "test" / "metadata.csv", "file_name,text\na.mp4,another caption\n")
    return Set(to)


def table(clips: Path, media: str = "video") -> arrow.Table:
    """Rows as `datasets` keeps them: its features stand in the metadata of the schema."""
    rows = [
        {
            media: {"bytes": (clips / "videos" / f"{name}.mp4").read_bytes(), "path": f"{name}.mp4"},
            "caption": caption,
            "score": 0.5,
        }
        for name, caption in CAPTIONS.items()
    ]
    features = {media: {"_type": "Video"}, "caption": {"dtype": "string", "_type": "Value"}}
    stored = arrow.Table.from_pylist(rows)
    return stored.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_stream(table: arrow.Table, path: Path) -> None:
    with path.open("wb") as opened, arrow.ipc.new_stream(opened, table.schema) as writer:
        writer.write_table(table)


def saved_to_disk(clips: Path, to: Path) -> Set:
    """datasets: Dataset.save_to_disk, in two shards."""
    to.mkdir(parents=True, exist_ok=True)
    rows, names = table(clips), [f"data-{number:05}-of-00002.arrow" for number in range(2)]
    write_stream(rows.slice(0, 2), to / names[0])
    write_stream(rows.slice(2), to / names[1])
    text(to / "state.json", json.dumps({"_data_files": [{"filename": name} for name in names], "_split": "train"}))
    text(to / "dataset_info.json", "{}")
    return Set(to)


def saved_splits(clips: Path, to: Path) -> Set:
    """datasets: DatasetDict.save_to_disk."""
    saved_to_disk(clips, to / "train")
    saved_to_disk(clips, to / "validation")
    text(to / "dataset_dict.json", json.dumps({"splits": ["train", "validation"]}))
    return Set(to)


def saved_paths(clips: Path, to: Path) -> Set:
    """datasets: rows that name files of the same folder."""
    videos(clips, to / "videos")
    rows = [{"file_name": f"videos/{name}.mp4", "text": caption} for name, caption in CAPTIONS.items()]
    write_stream(arrow.Table.from_pylist(rows), to / "data-00000-of-00001.arrow")
    text(to / "state.json", json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return Set(to)


def hub_parquet(clips: Path, to: Path) -> Set:
    """datasets: push_to_hub, as it lies in a copy of the repository."""
    (to / "data").mkdir(parents=True)
    parquet.write_table(table(clips, "mp4"), to / "data" / "train-00000-of-00001.parquet")
    parquet.write_table(table(clips, "mp4"), to / "data" / "test-00000-of-00001.parquet")
    text(to / "README.md", "# A data set")
    return Set(to)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def webdataset(clips: Path, to: Path, suffix: str = ".tar", texts: str = "txt") -> Set:
    """webdataset: TarWriter, in shards; `__key__` is the name up to its first dot."""
    to.mkdir(parents=True, exist_ok=True)
    for shard, names in enumerate((["a", "b"], ["c"])):
        mode = "w:gz" if suffix.endswith("gz") else "w"
        with tarfile.open(to / f"shard-{shard:06}{suffix}", mode) as archive:
            for name in names:
                content = CAPTIONS[name] if texts == "txt" else json.dumps({"caption": CAPTIONS[name], "fps": 25})
                add(archive, f"part/{name}.{texts}", content.encode())
                add(archive, f"part/{name}.MP4", (clips / "videos" / f"{name}.mp4").read_bytes())
                add(archive, f"part/{name}.reference.mp4", (clips / "references" / f"{name}.mp4").read_bytes())
                add(archive, f"part/{name}.cls", b"3")
    return Set(to, referenced=True)


def several(clips: Path, to: Path) -> Set:
    """Several folders of this configuration, with a trigger word."""
    for number, name in enumerate(CAPTIONS):
        videos(clips, to / str(number), name)
        beside(to / str(number))
    parts = tuple(DataPart(path=to / str(number)) for number in range(3))
    return Set(to, {"path": None, "parts": parts, "trigger_word": "mything"}, prefix="mything ")


def other_headers(clips: Path, to: Path) -> Set:
    videos(clips, to)
    lines = [f"{name}.mp4|{caption}\n" for name, caption in CAPTIONS.items()]
    text(to / "liste.csv", "Datei|Beschreibung\n" + "".join(lines))
    return Set(to, {"file_column": "Datei", "caption_column": "Beschreibung"})


def upper_case(clips: Path, to: Path) -> Set:
    for name, caption in CAPTIONS.items():
        place = to / "Nested" / "Deeper" / f"{name}.MP4"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clips / "videos" / f"{name}.mp4", place)
        text(place.with_name(f"{name}.MP4.TXT"), caption)
    return Set(to)


FORMS: dict[str, Callable[[Path, Path], Set]] = {
    "LTX-Video-Trainer json": trainer_json,
    "LTX-Video-Trainer jsonl": lambda clips, to: trainer_json(clips, to, ".jsonl"),
    "LTX-Video-Trainer csv": lambda clips, to: trainer_json(clips, to, ".csv"),
    "finetrainers": finetrainers,
    "diffusion-pipe": diffusion_pipe,
    "musubi-tuner": musubi,
    "metadata.csv": lambda clips, to: metadata(clips, to, ".csv"),
    "metadata.jsonl": lambda clips, to: metadata(clips, to, ".jsonl"),
    "saved to disk": saved_to_disk,
    "saved splits": saved_splits,
    "saved paths": saved_paths,
    "Parquet": hub_parquet,
    "webdataset": webdataset,
    "webdataset, compressed, captions in json": lambda clips, to: webdataset(clips, to, ".tar.gz", "json"),
    "several folders": several,
    "other headers": other_headers,
    "upper case, nested": upper_case,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_plain_folder(form: str, clips: Path, plain: dict[str, Tensor], tmp_path: Path) -> None:
    made = FORMS[form](clips, tmp_path / "set")
    source = opened(made.path, **made.changes)
    seen = pixels(source)
    assert set(seen) == {made.prefix + caption for caption in plain}
    for caption, wanted in plain.items():
        assert torch.equal(seen[made.prefix + caption], wanted)
    if made.referenced:
        for media in source.media:
            name = next(n for n, caption in CAPTIONS.items() if media.caption == made.prefix + caption)
            assert media.reference is not None
            assert media.reference.read_bytes() == (clips / "references" / f"{name}.mp4").read_bytes()
    else:
        assert all(media.reference is None for media in source.media)


# ------------------------------------------------------------------------------------------------------------ how often


def counts(source: VideoFolder) -> Counter[str]:
    return Counter(media.caption for media in source.media)


def test_repeats_of_sets(clips: Path, tmp_path: Path) -> None:
    made = diffusion_pipe(clips, tmp_path)
    expected = {"mything, a cat": 2, "mything, a dog, running": 2, f"mything, {CAPTIONS['c']}": 1}
    assert counts(opened(made.path)) == expected
    made = musubi(clips, tmp_path / "musubi")
    assert counts(opened(made.path)) == {CAPTIONS["a"]: 1, CAPTIONS["b"]: 1, CAPTIONS["c"]: 3}


@pytest.mark.parametrize(("repeats", "total"), [(1.5, 3), (1.0, 2), (0.5, 2), (2.0, 4)])
def test_repeats_may_be_fractions_and_no_clip_is_lost(clips: Path, tmp_path: Path, repeats: float, total: int) -> None:
    videos(clips, tmp_path, "a", "b")
    beside(tmp_path)
    source = opened(tmp_path, path=None, parts=(DataPart(path=tmp_path, repeats=repeats),))
    assert counts(source).total() == total
    assert set(counts(source)) == {CAPTIONS["a"], CAPTIONS["b"]}


def test_weights_are_shares_of_an_epoch(clips: Path, tmp_path: Path) -> None:
    for name, of in (("one", ("a", "b")), ("two", ("c",))):
        videos(clips, tmp_path / name, *of)
        beside(tmp_path / name)
    notes: list[str] = []
    parts = (
        DataPart(path=tmp_path / "one", weight=1, trigger_word="first"),
        DataPart(path=tmp_path / "two", weight=3),
    )
    found = counts(opened(tmp_path, notes, path=None, parts=parts, trigger_word="other"))
    assert found == {"first a cat": 1, "first a dog, running": 1, f"other {CAPTIONS['c']}": 6}
    assert any("an epoch has 8 samples: 2 of" in note for note in notes)
    with pytest.raises(ConfigError, match="some have a weight and others none"):
        opened(tmp_path, path=None, parts=(parts[0], DataPart(path=tmp_path / "two")))


# -------------------------------------------------------------------------------------------------------- what is said


def test_what_a_foreign_configuration_says_besides_is_named(clips: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    opened(musubi(clips, tmp_path).path, notes)
    said = " ".join(notes)
    assert "not used, since the training config decides: batch_size, cache_directory, enable_bucket" in said
    assert "data.sizes=[[1, 544, 960], [25, 544, 960], [45, 544, 960]]" in said


def test_files_that_are_not_looked_at_are_counted_by_reason(clips: Path, tmp_path: Path) -> None:
    videos(clips, tmp_path)
    beside(tmp_path)
    videos(clips, tmp_path / ".cache", "a")
    videos(clips, tmp_path / ".ipynb_checkpoints", "a", "b")
    (tmp_path / "x.zip").write_bytes(b"PK")
    (tmp_path / "x.safetensors").write_bytes(b"")
    text(tmp_path / "README.txt", "about the clips")
    notes: list[str] = []
    opened(tmp_path, notes)
    said = next(note for note in notes if "not looked at" in note)
    assert "3 hidden, or in a hidden folder" in said
    assert "1 neither clip, picture nor caption (.zip)" in said
    assert "1 neither clip, picture nor caption (.safetensors)" in said
    assert "1 a text that is no clip's caption" in said
    notes.clear()
    opened(diffusion_pipe(clips, tmp_path / "pipe").path, notes)
    assert any("1 in a folder below, where the tool of this configuration does not look" in note for note in notes)
    notes.clear()
    opened(webdataset(clips, tmp_path / "web").path, notes)
    assert any("shard-000000.tar: 2 members not used: neither clip, picture nor caption (cls)" in n for n in notes)


def test_archives_are_unpacked_once(clips: Path, tmp_path: Path) -> None:
    made, notes = webdataset(clips, tmp_path), list[str]()
    first = [media.path for media in opened(made.path, notes).media]
    assert sum("unpacking" in note for note in notes) == 2
    notes.clear()
    assert [media.path for media in opened(made.path, notes).media] == first
    assert not any("unpacking" in note for note in notes)


# -------------------------------------------------------------------------------------------------------------- refused


def refused(path: Path, /, **changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        opened(path, **changes)
    return str(caught.value)


def test_everything_that_refuses_is_in_one_message(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    videos(clips, folder)
    outside = tmp_path / "outside.mp4"
    shutil.copy(clips / "videos" / "a.mp4", outside)
    frames = torch.rand(7, 32, 32, 3)
    write_video(folder / "references" / "a.mp4", [frames], fps=Fraction(25))
    write_image(folder / "black.png", torch.zeros(1, 32, 32, 3))
    rows = [
        {"file": "a.mp4", "caption": "a", "reference": "references/a.mp4"},
        {"file": "b.mp4", "caption": "b", "mask": "black.png"},
        {"file": "c.mp4", "caption": "c", "reference": "references/gone.mp4"},
        {"file": "../outside.mp4", "caption": "outside"},
        {"file": "d.mp4", "caption": "missing"},
    ]
    text(folder / "captions.json", json.dumps(rows))
    message = refused(folder / "captions.json")
    for words in (
        "a.mp4 has 7 frames, the clip 9",
        "black.png has no white",
        "gone.mp4 is missing",
        "outside.mp4: outside the folder",
        "d.mp4: named by the captions, but missing",
    ):
        assert words in message


@pytest.mark.parametrize("name", ["../evil.mp4", "/tmp/evil.mp4", "a/../../evil.mp4"])
def test_a_tar_that_leads_outside_is_refused(clips: Path, tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, name, (clips / "videos" / "a.mp4").read_bytes())
    assert "members that lead outside" in refused(tmp_path / "x.tar")
    assert not (tmp_path.parent / "evil.mp4").exists()


def test_links_in_a_tar_are_left_out(clips: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "a.mp4", (clips / "videos" / "a.mp4").read_bytes())
        add(archive, "a.txt", b"a cat")
        link = tarfile.TarInfo("b.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    notes: list[str] = []
    assert [media.caption for media in opened(tmp_path / "x.tar", notes).media] == ["a cat"]
    assert any("1 members not used: a link or no file" in note for note in notes)


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "cut tar": ("x.tar", b"a.mp4" + bytes(300), "which cannot be read"),
    "cut gzip": ("x.tar.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\3abc", "which cannot be read"),
    "cut arrow": ("x.arrow", b"\xff\xff\xff\xff\x10\0\0\0", "which cannot be read"),
    "cut parquet": ("x.parquet", b"PAR1abc", "which cannot be read"),
    "no toml": ("x.toml", b"[[", "expected TOML"),
    "another toml": ("x.toml", b"[project]\nname = 'x'\n", "[[datasets]] of musubi-tuner or [[directory]]"),
    "missing folders": (
        "x.toml",
        b"[[directory]]\npath = 'gone'\nnum_repeats = 0\n[[directory]]\npath = 7\n",
        "path gone, which is missing; expected a folder; gone: num_repeats 0; expected a number above 0; path 7",
    ),
    "two places": (
        "x.toml",
        b"[[datasets]]\nvideo_directory = '.'\nimage_directory = '.'\n",
        "video_directory and image_directory",
    ),
    "unknown": ("x.bin", b"", "expected a folder, a table"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    name, content, words = BROKEN[kind]
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert words in message
    assert name in message


def test_rows_without_clips_or_captions(clips: Path, tmp_path: Path) -> None:
    write_stream(arrow.Table.from_pylist([{"x": 1, "y": "z"}]), tmp_path / "x.arrow")
    assert "expected one of clips" in refused(tmp_path / "x.arrow")
    write_stream(table(clips).drop_columns(["caption"]), tmp_path / "y.arrow")
    assert "an empty caption" in refused(tmp_path / "y.arrow")


def test_a_packed_set_needs_a_cache(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = webdataset(clips, tmp_path)
    monkeypatch.setenv("LTXKIT_CACHE", "off")
    assert "no cache to unpack it to" in refused(made.path)


# --------------------------------------------------------------------------------------------------- references, masks


def conditions(source: VideoFolder, data: Data, **changes: object) -> dict[str, dict[str, Tensor]]:
    """What the conditions of each clip are encoded from, by caption: an encoder that changes nothing."""
    config = TransformerTraining(
        **{  # type: ignore[arg-type]
            "output": Path("run"),
            "data": data,
            "optimization": Optimization(steps=1, batch_size=1, learning_rate=1e-3),
            "conditions": ConditionSettings(),
            **changes,
        }
    )
    task = ClipConditions(config, [source], ScaleFactors(8, 32, 32))
    (size,) = source.sizes()
    found = {}
    for entry in range(source.distinct(size)):
        samples = source.entries([entry], size, CPU)
        found[samples.captions[0]] = task.encode(lambda frames: frames, source, [entry], size, samples.pixels)
    return found


def of_set(made: Set, **changes: object) -> dict[str, dict[str, Tensor]]:
    data = Data(**{"kind": "folder", "path": made.path, "sizes": (SIZE,), **made.changes})  # type: ignore[arg-type]
    source = opened(made.path, **made.changes)
    return {caption[len(made.prefix) :]: each for caption, each in conditions(source, data, **changes).items()}


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture for each clip, with another half white."""
    folder = tmp_path_factory.mktemp("masks")
    for number, name in enumerate(CAPTIONS):
        picture = torch.zeros(1, 32, 32, 3)
        picture[:, :, 8 * number : 8 * number + 16] = 1
        write_image(folder / f"{name}.png", picture)
    return folder


@pytest.fixture(scope="module")
def plain_conditions(
    clips: Path, masks: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Tensor]]:
    """Those of the plain folder with reference.path and conditions.masks."""
    folder = tmp_path_factory.mktemp("plain_conditions")
    videos(clips, folder)
    beside(folder)
    return of_set(
        Set(folder),
        reference=ReferenceSettings(kind="files", path=clips / "references"),
        conditions=ConditionSettings(inpaint=0.5, masks=masks),
    )


def as_folder(clips: Path, to: Path) -> Set:
    """LTX-Video-Trainer's table as the only one of a folder: references lie below it, and are no clips."""
    return Set(trainer_json(clips, to).path.parent)


def part_of_several(clips: Path, to: Path) -> Set:
    made = as_folder(clips, to)
    return Set(to, {"path": None, "parts": (DataPart(path=made.path),)})


def part_with_references(clips: Path, to: Path) -> Set:
    videos(clips, to)
    beside(to)
    return Set(to, {"path": None, "parts": (DataPart(path=to, references=clips / "references"),)})


def conditioning_image(clips: Path, to: Path) -> Set:
    """The header of many sets for ControlNets."""
    shutil.copytree(clips, to, dirs_exist_ok=True)
    lines = [f'videos/{name}.mp4,"{caption}",references/{name}.mp4\n' for name, caption in CAPTIONS.items()]
    text(to / "metadata.csv", "file_name,text,conditioning_image\n" + "".join(lines))
    return Set(to)


REFERENCED: dict[str, Callable[[Path, Path], Set]] = {
    **{name: FORMS[name] for name in ("LTX-Video-Trainer json", "LTX-Video-Trainer csv", "diffusion-pipe")},
    **{name: FORMS[name] for name in ("musubi-tuner", "webdataset")},
    "a folder with a table": as_folder,
    "a part with a table": part_of_several,
    "a part with references": part_with_references,
    "a table with conditioning_image": conditioning_image,
}


@pytest.mark.parametrize("form", REFERENCED)
def test_references_that_the_data_names_are_those_of_the_plain_folder(
    form: str, clips: Path, plain_conditions: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    found = of_set(REFERENCED[form](clips, tmp_path / "set"), reference=ReferenceSettings(kind="files"))
    assert set(found) == set(plain_conditions)
    for caption, wanted in plain_conditions.items():
        assert torch.equal(found[caption]["reference"], wanted["reference"])


def masked_table(clips: Path, masks: Path, to: Path) -> Set:
    videos(clips, to)
    shutil.copytree(masks, to / "masks")
    lines = [f'{name}.mp4,"{caption}",masks/{name}.png\n' for name, caption in CAPTIONS.items()]
    text(to / "captions.csv", "file,caption,mask_path\n" + "".join(lines))
    return Set(to)


def masked_pipe(clips: Path, masks: Path, to: Path) -> Set:
    videos(clips, to / "one")
    beside(to / "one")
    text(to / "dataset.toml", f"[[directory]]\npath = 'one'\nmask_path = '{masks}'\n")
    return Set(to / "dataset.toml")


def masked_part(clips: Path, masks: Path, to: Path) -> Set:
    videos(clips, to)
    beside(to)
    return Set(to, {"path": None, "parts": (DataPart(path=to, masks=masks),)})


def masked_tar(clips: Path, masks: Path, to: Path) -> Set:
    to.mkdir(parents=True, exist_ok=True)
    with tarfile.open(to / "shard-000000.tar", "w") as archive:
        for name, caption in CAPTIONS.items():
            add(archive, f"{name}.txt", caption.encode())
            add(archive, f"{name}.mp4", (clips / "videos" / f"{name}.mp4").read_bytes())
            add(archive, f"{name}.mask.png", (masks / f"{name}.png").read_bytes())
    return Set(to)


MASKED: dict[str, Callable[[Path, Path, Path], Set]] = {
    "a table": masked_table,
    "diffusion-pipe": masked_pipe,
    "a part": masked_part,
    "webdataset": masked_tar,
}


@pytest.mark.parametrize("form", MASKED)
def test_masks_that_the_data_names_are_those_of_the_plain_folder(
    form: str, clips: Path, masks: Path, plain_conditions: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    made = MASKED[form](clips, masks, tmp_path / "set")
    found = of_set(made, conditions=ConditionSettings(inpaint=0.5))
    assert set(found) == set(plain_conditions)
    for caption, wanted in plain_conditions.items():
        assert torch.equal(found[caption]["mask"], wanted["mask"])
    assert all("mask" not in each for each in of_set(made, conditions=ConditionSettings(outpaint=0.5)).values())


def test_a_setting_comes_before_what_the_data_names(clips: Path, masks: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name in CAPTIONS:
        write_video(other / f"{name}.mp4", [torch.zeros(9, 32, 32, 3)], fps=Fraction(25))
        write_image(other / "masks" / f"{name}.png", torch.ones(1, 32, 32, 3))
    references = ReferenceSettings(kind="files", path=other)
    found = of_set(trainer_json(clips, tmp_path / "set"), reference=references)
    assert all(float(each["reference"].max()) < -0.9 for each in found.values())
    settings = ConditionSettings(inpaint=0.5, masks=other / "masks")
    assert all(
        bool((each["mask"] == 1).all())
        for each in of_set(masked_table(clips, masks, tmp_path / "masked"), conditions=settings).values()
    )


def test_clips_whose_references_or_masks_the_data_lacks_are_named(clips: Path, masks: Path, tmp_path: Path) -> None:
    wanted = ReferenceSettings(kind="files")
    with pytest.raises(ConfigError, match=r"without reference\.path, and data that names no references"):
        of_set(several(clips, tmp_path / "none"), reference=wanted)
    made = trainer_json(clips, tmp_path / "some")
    rows = json.loads(made.path.read_text(encoding="utf-8"))
    del rows[1]["reference_path"]
    made.path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"got references of the data .*b\.mp4: the data has no reference") as raised:
        of_set(made, reference=wanted)
    assert "a.mp4:" not in str(raised.value)
    videos(clips, tmp_path / "more")
    beside(tmp_path / "more")
    parts = (DataPart(path=made.path), DataPart(path=tmp_path / "more", masks=masks))
    with pytest.raises(ConfigError, match=r"got masks of the data .*a\.mp4: the data has no mask for it"):
        of_set(Set(made.path, {"path": None, "parts": parts}), conditions=ConditionSettings(inpaint=0.5))


def test_two_references_of_one_clip_are_refused(clips: Path, tmp_path: Path) -> None:
    videos(clips, tmp_path / "videos")
    beside(tmp_path / "videos")
    shutil.copytree(clips / "references", tmp_path / "others")
    parts = tuple(
        DataPart(path=tmp_path / "videos", references=place) for place in (clips / "references", tmp_path / "others")
    )
    with pytest.raises(ConfigError, match=r"a\.mp4: two references, .*references.a\.mp4 and .*others.a\.mp4"):
        of_set(Set(tmp_path, {"path": None, "parts": parts}), reference=ReferenceSettings(kind="files"))


@pytest.mark.parametrize("form", ["LTX-Video-Trainer json", "diffusion-pipe", "musubi-tuner", "webdataset"])
def test_references_of_another_length_are_refused_by_file(form: str, clips: Path, tmp_path: Path) -> None:
    changed = tmp_path / "clips"
    shutil.copytree(clips, changed)
    write_video(changed / "references" / "a.mp4", [torch.rand(7, 32, 32, 3)], fps=Fraction(25))
    made = FORMS[form](changed, tmp_path / "set")
    message = refused(made.path, **made.changes)
    assert "has 7 frames, the clip 9" in message
    assert message.count("frames, the clip") == 1


def test_masks_without_white_are_refused_by_file(clips: Path, masks: Path, tmp_path: Path) -> None:
    black = tmp_path / "masks"
    shutil.copytree(masks, black)
    write_image(black / "b.png", torch.zeros(1, 32, 32, 3))
    for form, make in MASKED.items():
        made = make(clips, black, tmp_path / form)
        message = refused(made.path, **made.changes)
        assert message.count("has no white, which marks what is trained") == 1, form


def test_files_that_go_with_clips_are_none(clips: Path, tmp_path: Path) -> None:
    shutil.copytree(clips, tmp_path, dirs_exist_ok=True)
    beside(tmp_path / "videos")
    shutil.copy(clips / "references" / "a.mp4", tmp_path / "videos" / "a_reference.mp4")
    data, notes = Data(kind="folder", path=tmp_path, sizes=(SIZE,)), list[str]()
    apart = (tmp_path / "references", tmp_path / "videos" / "a_reference.mp4")
    assert len(open_sources(data, 0, notes.append, leave_out=apart)[0].identity()) == 3
    assert any("4 a reference or mask" in note for note in notes)

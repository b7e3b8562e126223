"""`ltxkit batch`: whole files and reasons, whatever dies meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from load import batch

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.service.batch import FAILED, MOST_DEATHS, Maker, make, read_table
from ltxkit.service.catalog import Catalog, Model

CATALOG = Catalog({"digits": Model("digits", "ltxkit-digits")}, {})
ROW = {"prompt": "a 7 moving up", "size": "64x64", "num_frames": 9, "num_inference_steps": 2}


def table(path: Path, *lines: object) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def test_rows_have_names_and_seeds_that_stay(tmp_path: Path) -> None:
    path = table(tmp_path / "jobs.jsonl", ROW, "", ROW, ROW | {"id": "fox"}, ROW | {"id": 7, "seed": 5})
    first, second = (read_table(path, CATALOG, "cpu") for _ in range(2))
    assert first == second
    assert [row.number for row in first.rows] == [1, 3, 4, 5]
    names = [row.name for row in first.rows]
    assert names[2:] == ["fox", "7"]
    assert names[0].startswith("000001-")
    assert names[0][7:] == names[1][7:]  # alike, and yet two files
    assert first.rows[3].request["seed"] == 5
    assert first.failed == []


def test_wrong_rows_are_named_by_line(tmp_path: Path) -> None:
    wrong = [
        ("no json", "no JSON"),
        ("[1]", "JSON object"),
        ({"prompt": ""}, "empty prompt"),
        ({}, "no prompt"),
        (ROW | {"id": "a"}, None),
        (ROW | {"id": "A"}, "a second time"),
        (ROW | {"id": "../a"}, "a name for a file"),
        (ROW | {"id": "con"}, "a name for a file"),
        (ROW | {"id": ""}, "a name for a file"),
        (ROW | {"id": None}, "a name for a file"),
        (ROW | {"id": 1.5}, "a name for a file"),
        (ROW | {"model": "sora"}, "offered here"),
        (ROW | {"input_reference": "missing.png"}, "missing.png"),
        (ROW | {"input_reference": 5}, "the path of a picture"),
        (ROW | {"nun_frames": 5}, "did you mean num_frames"),
    ]
    path = table(tmp_path / "jobs.jsonl", *(line for line, _ in wrong))
    batch = read_table(path, CATALOG, "cpu")
    assert [row.name for row in batch.rows] == ["a"]
    expected = {number: text for number, (_, text) in enumerate(wrong, 1) if text}
    assert [each["row"] for each in batch.failed] == list(expected)
    for each in batch.failed:
        assert expected[each["row"]] in each["error"]


def test_tables_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "jobs.parquet").write_bytes(b"none")
    for name in ("missing.jsonl", "jobs.parquet", "."):
        with pytest.raises(ConfigError, match="expected"):
            read_table(tmp_path / name, CATALOG, "cpu")


def test_parquet_is_the_same_table(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [ROW | {"id": "a"}, ROW | {"id": "b", "seed": 3}]
    parquet.write_table(arrow.Table.from_pylist([{"seed": None} | row for row in rows]), tmp_path / "jobs.parquet")
    lines = read_table(table(tmp_path / "jobs.jsonl", *rows), CATALOG, "cpu")
    assert read_table(tmp_path / "jobs.parquet", CATALOG, "cpu") == lines


@pytest.mark.slow
def test_a_row_that_kills_its_actors_is_given_up() -> None:
    said = json.dumps({"name": "a", "number": 1, "request": {}, "reference": None})
    maker = Maker(CATALOG.to_json(), "cpu", lambda _: MOST_DEATHS + 1)
    assert "died 2 times" in maker({"said": [said]})["error"][0]


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    batch = read_table(table(tmp_path / "jobs.jsonl", ROW | {"id": "a"}, "no json"), CATALOG, "cpu")
    (tmp_path / "a.mp4").write_bytes(b"made")
    notes: list[str] = []
    made = make(batch, tmp_path, CATALOG, workers=1, progress=lambda _: None, notes=notes.append)
    assert made == []
    assert notes == ["1 of 1 clips are there already."]
    assert json.loads((tmp_path / FAILED).read_text())["row"] == 2


@pytest.mark.slow
def test_a_killed_actor_costs_its_clip_only(tmp_path: Path) -> None:
    """Two alike, three bad, one actor killed with -9; a second start has nothing to do."""
    pytest.importorskip("ray")
    assert batch(tmp_path, rows=14)["files"] == 11

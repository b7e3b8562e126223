"""What a client writes ends neither in an error of the server nor in the answers that others get."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltxkit.service.app import application
from ltxkit.service.batch import read_table
from ltxkit.service.bodies import DEEPEST, read_json
from ltxkit.service.catalog import Catalog, Model
from ltxkit.service.folder import Folder
from ltxkit.service.service import Service

CATALOG = Catalog({"digits": Model("digits", "ltxkit-digits")}, {})
Ask = Callable[..., tuple[int, Any]]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """ask(method, path, said, ...): status and JSON of an answer of the application, without a server between."""
    app = application(Service(Folder(tmp_path / "service"), CATALOG, devices=("cpu",)))

    def answer(method: str, path: str, said: Any = b"", query: str = "", **headers: str) -> tuple[int, Any]:
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        known = {"host": "127.0.0.1", "content-type": "application/json"} | headers
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in known.items()],
        }
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        asyncio.run(app(scope, receive, send))  # pyright: ignore[reportArgumentType]
        content = b"".join(each.get("body", b"") for each in sent)
        return sent[0]["status"], json.loads(content, parse_constant=_fail) if content else None

    return answer


def _fail(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def graph(repository: Path, **more: Any) -> dict[str, Any]:
    path = repository / "workflows" / "api" / "01 Demo - a digit from a prompt.json"
    made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    next(iter(made.values())).update(more)
    return made


def test_a_prompt_with_half_a_surrogate_pair_is_listed(ask: Ask) -> None:
    status, made = ask("POST", "/v1/videos", {"prompt": "\ud800 seven"})
    assert (status, made["prompt"]) == (200, "\ud800 seven")
    status, listed = ask("GET", "/v1/videos")
    assert (status, [each["prompt"] for each in listed["data"]]) == (200, ["\ud800 seven"])


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({"_meta": {"a": math.nan, "b": [-math.inf]}}, {"a": None, "b": [None]}),
        ({"_meta": {"a": "\ud800"}}, {"a": "\ud800"}),
    ],
    ids=["numbers", "letters"],
)
def test_a_graph_with_what_json_does_not_have_is_listed(ask: Ask, repository: Path, more: Any, kept: Any) -> None:
    status, made = ask("POST", "/prompt", {"prompt": graph(repository, **more)})
    assert status == 200, made
    status, listed = ask("GET", "/queue")
    (entry,) = listed["queue_pending"]
    assert (status, next(iter(entry[2].values()))["_meta"]) == (200, kept)


DEEP = "[" * 3000
REFUSED = {
    "a field's name": {"\ud800": 1},
    "a deep number": {"seconds": DEEP},
    "a long number": {"seed": "9" * 5000},
    "a deep list": {"lora": DEEP},
    "a deep object": {"extra_params": '{"a":' * 3000},
    "deep values": {"extra_params": {"sigmas": json.loads("[" * 300 + "]" * 300)}},
    "a name of Python's": {"extra_params": {"self": 1}},
    "a pass with one": {"extra_params": {"second": {"self": 1, "\ud800": 2}}},
    "letters that are no base64": {"input_reference": "data:image/png;base64,é"},
    "a deep reference": {"input_reference": '{"image_url": ' * 3000},
    "a reference's name": {"input_reference": {"\ud800": 1}},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bodies_that_are_refused(ask: Ask, kind: str) -> None:
    status, said = ask("POST", "/v1/videos", {"prompt": "a 7", **REFUSED[kind]})
    assert status == 400
    assert "got " in said["error"]["message"]
    assert ask("GET", "/v1/videos")[1]["data"] == []


@pytest.mark.parametrize("path", ["/v1/videos", "/prompt", "/queue"])
@pytest.mark.parametrize("body", [DEEP.encode(), b"[" * 300 + b"]" * 300, b"\xff", b"9" * 5000, b"", b"null", b"[1]"])
def test_bodies_that_are_none(ask: Ask, path: str, body: bytes) -> None:
    assert ask("POST", path, body)[0] == 400


def test_depth() -> None:
    assert read_json("[" * DEEPEST + "]" * DEEPEST)
    for levels in (DEEPEST + 1, 100_000):
        with pytest.raises(ValueError, match="nested deeper"):
            read_json("[" * levels + "]" * levels)


def test_ids_that_are_none_delete_nothing(ask: Ask, repository: Path) -> None:
    assert ask("POST", "/prompt", {"prompt": graph(repository), "prompt_id": "one"})[0] == 200
    assert ask("POST", "/queue", {"delete": ["\ud800", None, [], {}, 1, "x" * 5000]})[0] == 200
    assert len(ask("GET", "/queue")[1]["queue_pending"]) == 1
    assert ask("POST", "/queue", {"delete": ["one"]})[0] == 200
    assert ask("GET", "/queue")[1]["queue_pending"] == []


@pytest.mark.parametrize("name", ["a%00.png", "x" * 300, "x/" * 3000, "%ED%A0%80", "../queue.sqlite", "."])
def test_files_that_are_none(ask: Ask, name: str) -> None:
    assert ask("GET", "/view", query=f"filename={name}")[0] == 404
    assert ask("GET", "/view", query=f"filename=a.png&subfolder={name}&type=input")[0] == 404


@pytest.mark.parametrize("name", ["x" * 250 + ".png", "a\0.png"])
def test_names_of_uploads(ask: Ask, name: str) -> None:
    head = f'--x\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert ask("POST", "/upload/image", head.encode() + b"a\r\n--x--\r\n", **kind)[0] == 400
    good = head.replace(name, "a.png").encode() + b"a\r\n--x--\r\n"
    assert ask("POST", "/upload/image", good, **kind) == (200, {"name": "a.png", "subfolder": "", "type": "input"})


def test_an_origin_that_is_no_address(ask: Ask) -> None:
    assert ask("GET", "/v1/models", origin="http://[")[0] == 403
    assert ask("GET", "/v1/models")[0] == 200


@pytest.mark.parametrize("path", ["a\0.png", "x" * 5000, "\ud800.png", ".", "../"])
def test_references_in_a_table(tmp_path: Path, path: str) -> None:
    rows = [{"prompt": "a 7", "input_reference": path}, {"prompt": "an 8"}]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows), encoding="utf-8")
    batch = read_table(tmp_path / "rows.jsonl", CATALOG, "cpu")
    assert [row.request["prompt"] for row in batch.rows] == ["an 8"]
    assert "got " in batch.failed[0]["error"]


def test_rows_that_nest_and_values_that_python_cannot_have(tmp_path: Path) -> None:
    deep = '{"prompt": ' + "[" * 500 + "]" * 500 + "}"
    (tmp_path / "rows.jsonl").write_text(f'{deep}\n{{"prompt": "a 7"}}\n', encoding="utf-8")
    batch = read_table(tmp_path / "rows.jsonl", CATALOG, "cpu")
    assert (len(batch.rows), "nested deeper" in batch.failed[0]["error"]) == (1, True)
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    from ltxkit.ltx_core.errors import ConfigError

    table = arrow.table({"prompt": ["a"], "made": arrow.array([2**62], arrow.timestamp("us"))})
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(ConfigError, match="no Parquet file"):
        read_table(tmp_path / "rows.parquet", CATALOG, "cpu")

"""Requests of clients to `ltxkit serve`, tables of `ltxkit batch`, and what a vision model answers `ltxkit caption`."""

from __future__ import annotations

import asyncio
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import mutate
from target import PROMPT, ROOT, Target

VIDEO = {
    "prompt": PROMPT,
    "model": "digits",
    "size": "32x48",
    "seconds": "1",
    "fps": 8,
    "num_inference_steps": 3,
    "guidance_scale": 2.5,
    "seed": 7,
    "negative_prompt": "blurred",
    "lora": [{"name": "style", "scale": 0.5}],
    "extra_params": {
        "stg_scale": [0, 1.0],
        "guidance_timesteps": [1.0, 0.5],
        "stg_blocks": [[3], [4]],
        "stg_rescale": 1,
        "guidance_rescale": 0.5,
        "stg_mode": "attention_values",
        "cfg_star": True,
        "step_cache": "off",
        "sampler": "euler",
        "levels": "own",
        "tone_map": 0,
        "decode_timestep": 0.05,
        "second": {"timesteps": [900, 500, 0], "stg_blocks": [2]},
    },
    "input_reference": {"image_url": "data:image/png;base64,"},
}
PLACES = {"video.json": "/v1/videos", "graph.json": "/prompt", "change.json": "/queue", "form.txt": "/v1/videos"}
LISTS = ("/v1/videos", "/queue", "/history")


def _catalog() -> Any:
    from ltxkit.service.catalog import Catalog, Model

    return Catalog({"digits": Model("digits", "ltxkit-digits")}, {"style": "style.safetensors"})


@cache
def _service() -> Any:
    from ltxkit.service.app import application
    from ltxkit.service.folder import Folder
    from ltxkit.service.service import Service

    made = Service(Folder(Path(tempfile.mkdtemp()) / "service"), _catalog(), devices=("cpu",))
    return made, application(made)


def _answer(method: str, path: str, body: bytes = b"", kind: str = "application/json") -> tuple[int, bytes]:
    """Of the application itself, without a server between."""
    headers = [(b"host", b"127.0.0.1"), (b"content-type", kind.encode())]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""}
    scope |= {"method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    asyncio.run(_service()[1](scope, receive, send))
    return said[0]["status"], b"".join(each.get("body", b"") for each in said)


def _bodies(folder: Path) -> list[Path]:
    from PIL import Image

    Image.new("RGB", (16, 16), "navy").save(folder / "a.png")
    import base64

    picture = base64.b64encode((folder / "a.png").read_bytes()).decode()
    video = VIDEO | {"input_reference": {"image_url": f"data:image/png;base64,{picture}"}}
    (folder / "video.json").write_text(json.dumps(video))
    graph = json.loads((ROOT / "workflows" / "api" / "01 Demo - a digit from a prompt.json").read_text())
    (folder / "graph.json").write_text(json.dumps({"prompt": graph, "client_id": "me", "prompt_id": "one"}))
    (folder / "change.json").write_text(json.dumps({"delete": ["one", "two"], "clear": False}))
    fields = {"prompt": "a 7", "size": "32x32", "extra_params[steps]": "3", "lora[][name]": "style", "seconds": "1"}
    parts = [f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    file = '--x\r\nContent-Disposition: form-data; name="input_reference"; filename="a.png"\r\n\r\n'
    form = "".join([*parts, file]).encode() + (folder / "a.png").read_bytes() + b"\r\n--x--\r\n"
    (folder / "form.txt").write_bytes(form)
    return [folder / name for name in PLACES]


def _asked(path: Path) -> object:
    """A request; then everybody else's answers must be as they were."""
    from ltxkit.ltx_core.errors import ConfigError

    kind = "multipart/form-data; boundary=x" if path.name == "form.txt" else "application/json"
    status, said = _answer("POST", PLACES[path.name], path.read_bytes(), kind)
    try:
        for each in LISTS:
            listed, body = _answer("GET", each)
            if listed != 200:
                raise RuntimeError(f"{each} answers {listed}")
            json.loads(body, parse_constant=_no_constant)
    finally:
        made, _ = _service()
        for job in [*made.queue.jobs("video"), *made.queue.jobs("graph")]:
            made.delete(job.id)
    if status >= 500:
        raise RuntimeError(f"status {status}: {said[:500]!r}")
    if status >= 400:
        raise ConfigError(json.loads(said)["error"]["message"])
    return said


def _no_constant(text: str) -> None:
    raise RuntimeError(f"{text} in an answer is no JSON")


def _tables(folder: Path) -> list[Path]:
    import pyarrow as arrow
    from PIL import Image
    from pyarrow import parquet

    Image.new("RGB", (16, 16), "navy").save(folder / "a.png")
    row = {name: value for name, value in VIDEO.items() if name not in ("input_reference", "seconds")}
    rows = [row | {"id": "one", "num_frames": 9, "input_reference": "a.png"}, row | {"prompt": "two"}]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    (folder / "row.jsonl").write_text(json.dumps(rows[0]))
    flat = [{"id": "one", "prompt": "a 7", "size": "32x32", "num_frames": 9}, {"id": "two", "prompt": "an 8"}]
    parquet.write_table(arrow.Table.from_pylist(flat), folder / "rows.parquet")
    return [folder / "rows.jsonl", folder / "row.jsonl", folder / "rows.parquet"]


def _batch(path: Path) -> object:
    from ltxkit.ltx_core.errors import ConfigError
    from ltxkit.service.batch import _write_failed, read_table

    batch = read_table(path, _catalog(), "cpu")
    _write_failed(batch, path.parent)
    if batch.failed and not batch.rows:
        raise ConfigError(batch.failed[0]["error"])
    return batch.rows


def _answers(folder: Path) -> list[Path]:
    """Of a vision model, as servers of OpenAI's chat completions send them."""
    message = {"role": "assistant", "content": "A cat sits on a mat.", "refusal": None}
    answer = {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message}], "usage": {}}
    (folder / "answer.json").write_text(json.dumps(answer))
    return [folder / "answer.json"]


def _caption(path: Path) -> str:
    """What would be written beside the clip."""
    from ltxkit.commands.captioner import Captioner

    class Answering(Captioner):
        def _post(self, body: bytes, say: object) -> bytes:
            del body, say
            return path.read_bytes()

    text = Answering("http://localhost/v1", "eyes", "?").caption(["data:"])
    text.encode()
    if "\x1b" in text or "\u202e" in text:
        raise RuntimeError(f"a caption that no text file should hold: {text!r}")
    return text


TARGETS = {
    "requests": Target(_bodies, _asked, mutate.json_or(mutate.noise)),
    "batch": Target(_tables, _batch, mutate.json_or(mutate.noise)),
    "answers": Target(_answers, _caption, mutate.json_file),
}

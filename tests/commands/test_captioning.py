"""`ltxkit caption` against a server of this test: what is sent, what is written, and how it goes on."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Generator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ltxkit.cli import main
from ltxkit.commands.captioner import Captioner
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.media import write_image, write_video

Answer = Callable[[int], tuple[int, dict[str, str], bytes]]


def said(text: object) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


class Served:
    """A server that answers request number n with `answer(n)`."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.answer: Answer = lambda number: (200, {}, said(f"  caption\nnumber {number} "))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                status, headers, content = outer.answer(len(outer.requests))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Generator[Served, None, None]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = Served()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    frames = torch.linspace(0, 1, 9).view(9, 1, 1, 1).expand(9, 96, 160, 3)
    write_video(path, [frames], fps=Fraction(25))
    return path.read_bytes()


@pytest.fixture
def folder(video: bytes, tmp_path: Path) -> Path:
    clips = tmp_path / "clips"
    (clips / "below").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "below/c.MP4"):
        (clips / name).write_bytes(video)
    (clips / "a.txt").write_text("has one")
    write_image(clips / "still.png", torch.rand(1, 96, 160, 3))
    return clips


def run(folder: Path, served: Served, *options: str) -> int:
    return main(["caption", str(folder), "--url", served.url, "--model", "eyes", *options])


def test_clips_without_a_caption_get_one(folder: Path, served: Served) -> None:
    assert run(folder, served, "--pictures", "3", "--longest-side", "80") == 0
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.rglob("*.txt")}
    assert texts == {
        "a.txt": "has one",
        "b.txt": "caption number 1\n",
        "c.txt": "caption number 2\n",
        "still.txt": "caption number 3\n",
    }
    path, headers, body = served.requests[0]
    assert path == "/v1/chat/completions"
    assert "authorization" not in headers
    assert body["model"] == "eyes"
    (message,) = body["messages"]
    pictures = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    assert [part["type"] for part in message["content"]] == ["text", *["image_url"] * 3]
    shown = [
        Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/jpeg;base64,"))))
        for picture in pictures
    ]
    assert [each.size for each in shown] == [(80, 48)] * 3
    levels = [sum(each.convert("L").tobytes()) / (80 * 48 * 255) for each in shown]
    assert levels == pytest.approx([0, 0.5, 1], abs=0.06)  # the first, the middle and the last frame
    assert len(served.requests[2][2]["messages"][0]["content"]) == 2  # a picture is one


def test_the_command_again_goes_on(folder: Path, served: Served) -> None:
    served.answer = lambda number: (200, {}, said("good")) if number == 1 else (401, {}, b'{"error": "no key"}')
    assert run(folder, served) == 2
    assert (folder / "b.txt").read_text() == "good\n"
    assert not (folder / "below" / "c.txt").exists()
    served.answer = lambda number: (200, {}, said("later"))
    assert run(folder, served) == 0
    assert (folder / "b.txt").read_text() == "good\n"
    assert (folder / "below" / "c.txt").read_text() == "later\n"
    assert run(folder, served) == 0
    assert len(served.requests) == 4


def test_two_clips_of_one_name_have_captions_of_their_own(folder: Path, served: Served, video: bytes) -> None:
    (folder / "b.mov").write_bytes(video)
    assert run(folder, served) == 0
    assert (folder / "b.mp4.txt").is_file()
    assert (folder / "b.mov.txt").is_file()
    assert not (folder / "b.txt").exists()


def test_a_key_goes_to_the_address_alone(folder: Path, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    served.answer = lambda _: (302, {"Location": f"{served.url}/elsewhere"}, b"")
    assert run(folder, served, "--key-variable", "MY_KEY") == 2
    assert [path for path, _, _ in served.requests] == ["/v1/chat/completions"]
    assert served.requests[0][1]["authorization"] == "Bearer secret"


def test_a_busy_server_is_asked_again(served: Served) -> None:
    served.answer = lambda number: (503, {}, b"busy") if number < 3 else (200, {}, said("at last"))
    heard: list[str] = []
    assert Captioner(served.url, "eyes", prompt="?", pause=0).caption(["data:"], heard.append) == "at last"
    assert len(heard) == 2
    assert "503" in heard[0]
    served.answer = lambda _: (429, {}, b"")
    with pytest.raises(ConfigError, match=r"no answer from .* in 5 tries \(429"):
        Captioner(served.url, "eyes", prompt="?", pause=0).caption(["data:"])


@pytest.mark.parametrize("content", [b"no json", b"[]", b"{}", said(None), said("  \n"), said(["a"])])
def test_answers_that_are_no_caption_are_refused(served: Served, content: bytes) -> None:
    served.answer = lambda _: (200, {}, content)
    with pytest.raises(ConfigError, match=r"without choices|empty caption"):
        Captioner(served.url, "eyes", prompt="?", pause=0).caption(["data:"])


def test_characters_that_no_caption_has_are_escaped(served: Served) -> None:
    served.answer = lambda _: (200, {}, said("a\x1b[2Jb\u202ec"))
    text = Captioner(served.url, "eyes", prompt="?").caption(["data:"])
    assert text.isprintable()


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://x/v1", "localhost:8000", "file:///etc/passwd", "http://", "", "http:///v1", "HTTP//x", "http://["),
        *("http://[::1", "http://[x]/v1", "http://x:port/v1", "http://x:99999/v1", "http://x:-1/v1", "http://a b/v1"),
        *("http://x/v 1", "http://x/v1\n", "http://x/\0", "http://ä.de/v1", "http://x/é", "http://x/\ud800"),
        *("http://me:word@x/v1", "http://x/v1?version=2", "http://x/v1#top", "http:\\\\x\\v1"),
    ],
)
def test_only_addresses_of_the_web(url: str) -> None:
    with pytest.raises(ConfigError, match="expected one such as"):
        Captioner(url, "eyes", prompt="?")


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/v1", "https://api.example/v1/", "http://[::1]:8000/v1", "HTTP://X"]
)
def test_addresses_that_can_be_asked(url: str) -> None:
    assert Captioner(url, "eyes", prompt="?").url == url


def test_a_name_that_no_host_has_is_a_sentence(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="no connection can be made"):
        Captioner(f"http://{'a' * 64}.example/v1", "eyes", prompt="?", pause=0).caption(["data:"])
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", "http:/proxy")
    with pytest.raises(ConfigError, match="http_proxy"):
        Captioner(served.url, "eyes", prompt="?", pause=0).caption(["data:"])


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel", "\udcff", "a\x7f"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(
    folder: Path, served: Served, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", key)
    assert run(folder, served, "--key-variable", "MY_KEY") == 2
    said = capsys.readouterr().err
    assert f"got a key of {len(key)} characters" in said
    assert key.splitlines()[0] not in said
    assert served.requests == []


def test_a_key_may_end_in_a_line(folder: Path, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", " secret\n")
    assert run(folder, served, "--key-variable", "MY_KEY") == 0
    assert served.requests[0][1]["authorization"] == "Bearer secret"


def test_a_refusal_that_breaks_off_is_a_sentence(served: Served) -> None:
    """Its body is in chunks, of which the first is damaged."""
    served.answer = lambda _: (400, {"Transfer-Encoding": "chunked"}, b"zz\r\n")
    with pytest.raises(ConfigError, match="got 400"):
        Captioner(served.url, "eyes", prompt="?", pause=0).caption(["data:"])


def test_what_cannot_be_read_is_named(folder: Path, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.mp4").write_bytes(b"x")
    assert run(folder, served) == 1
    assert "broken.mp4" in capsys.readouterr().err
    assert (folder / "still.txt").is_file()
    (folder / "b.txt").write_bytes("Straße".encode("latin-1"))
    assert run(folder, served) == 2

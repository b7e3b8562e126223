"""The stage on which commands meet their faults: a warm process, and a folder for each command."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PAGE = 4096  # bytes, in which a tmpfs counts
PATIENCE = 240.0  # seconds for one command, of which it needs about one
LEFTOVER = ".ltxkit-"
# As the commands import them; without matplotlib, whose pictures are accessories, and huggingface_hub, which reads its
# settings when it is imported.
CORE = ("torch", "numpy", "safetensors.torch", "einops", "tqdm", "filelock", "psutil", "yaml", "ltxkit.cli")
MODULES = (
    *(*CORE, "av", "PIL.Image", "transformers", "sentencepiece", "sklearn.svm", "sklearn.cluster"),
    *("ltxkit.headless.runner", "ltxkit.ltx_core.training.run", "ltxkit.ltx_core.pipelines.library"),
    *("torch._dynamo", "sklearn.datasets", "scipy.io"),
    # What transformers imports for a model takes longer than anything that `caption` does with it.
    *("transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto"),
    *(f"transformers.models.blip.{name}_blip" for name in ("modeling", "processing", "image_processing")),
)


class Warm:
    """A process that forks commands; see warm.py."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "warm.py"), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def start(self, request: dict[str, Any]) -> int:
        return self._ask({"start": request})

    def wait(self, number: int) -> int:
        status = self._ask({"wait": number, "seconds": PATIENCE})
        assert status is not None, f"no end after {PATIENCE} s"
        return status

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@dataclass
class Ended:
    """status: as `subprocess` has it, negative after a signal. seen: the moments that it passed. elsewhere: what it
    wrote outside of its folders, and its connections; both are empty where it could not tell."""

    status: int
    out: str
    said: str
    seen: list[str] = field(repr=False)
    elsewhere: list[str]

    @property
    def sentence(self) -> str:
        """What the command said last."""
        return ([line for line in self.said.splitlines() if line.strip()] or [""])[-1]


@dataclass
class Stage:
    """Where one command runs: `disk`, its working folder, with everything that it writes; `temp`; its streams beside.

    inputs: seen from `disk` as ../in.
    """

    folder: Path
    inputs: Path
    warm: Callable[[str], Warm]
    environment: dict[str, str | None] = field(default_factory=dict)
    mounted: bool = False

    def __post_init__(self) -> None:
        for path in (self.disk, self.temp):
            path.mkdir(parents=True)
        (self.folder / "in").symlink_to(self.inputs)

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    @property
    def temp(self) -> Path:
        return self.folder / "temp"

    def start(self, line: str, **start: Any) -> tuple[int, Path]:
        """The number of a new process, and the folder of its streams."""
        streams = self.folder / f"streams-{len(list(self.folder.glob('streams-*')))}"
        streams.mkdir()
        usual: dict[str, str | None] = {
            "TMPDIR": str(self.temp),
            "LTXKIT_CACHE": str(self.disk / "cache"),
            "HOME": str(self.folder / "home"),
        }
        request = {
            "folder": str(self.disk),
            "watched": str(self.disk),
            "arguments": _words(line),
            "faults": [],
            "stdin": "/dev/null",
            "stdout": str(streams / "out"),
            "stderr": str(streams / "said"),
            "moments": str(streams / "moments"),
        } | start
        request["environment"] = usual | self.environment | start.get("environment", {})
        return self.warm(line.split()[0]).start(request), streams

    def end(self, line: str, started: tuple[int, Path]) -> Ended:
        number, streams = started
        status = self.warm(line.split()[0]).wait(number)
        moments = streams / "moments"
        texts = [
            path.read_text("utf-8", "replace") if path.is_file() else "" for path in (streams / "out", streams / "said")
        ]
        told = json.loads(moments.read_text()) if moments.is_file() else {"seen": [], "elsewhere": []}
        return Ended(status, *texts, **told)

    def run(self, line: str, **start: Any) -> Ended:
        return self.end(line, self.start(line, **start))

    def tree(self) -> dict[str, str]:
        """Every file of the disk under its final name, with a digest of what it holds; without the caches."""
        files = [path for path in sorted(self.disk.rglob("*")) if path.is_file() or path.is_symlink()]
        names = {path.relative_to(self.disk).as_posix(): path for path in files}
        hidden = (LEFTOVER, "filler", "cache/")
        return {name: digest(path) for name, path in names.items() if not any(part in name for part in hidden)}

    def leftovers(self) -> list[str]:
        """Unfinished files, and locks."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob(f"{LEFTOVER}*"))

    def mount(self, size: int) -> None:
        """The disk has room for `size` bytes, of which `fill` leaves some. Skips where this user may not mount."""
        mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.disk))
        self.mounted = True

    def remount(self, how: str) -> None:
        mount("-o", f"remount,{how}", str(self.disk))

    def fill(self, room: int) -> None:
        """Leave room for so many bytes."""
        with (self.disk / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(self.disk).free - room - PAGE))

    def empty(self) -> None:
        (self.disk / "filler").unlink()

    def unmount(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.disk)], check=True)
            self.mounted = False


def mount(*words: str) -> None:
    """Skips where this user may not mount."""
    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this user may not mount ({done.stderr.strip()})")


def _words(line: str) -> list[str]:
    """A command line; `_` in a word of several is a space, so that tables need no quotes."""
    return [word.replace("~", " ") for word in line.split()]


def digest(path: Path) -> str:
    """Of a file's content, apart from what differs between equal runs: times, and the folder that they ran in."""
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if path.name == "state.sha256":
        return "of state.pt"
    data = path.read_bytes()
    if path.name == "run.html":  # which says how fast the run was
        return "a page" if data.rstrip().endswith(b"</html>") else "half a page"
    if path.name == "log.jsonl":
        entries = [json.loads(line) for line in data.splitlines()]
        for entry in entries:
            for key in ("steps_per_second", "samples_per_second", "seconds_left"):
                entry.pop(key, None)
        data = json.dumps(entries).encode()
    if path.suffix == ".pt":  # an archive that has its own name inside
        import torch

        saved = torch.load(io.BytesIO(data), weights_only=True)
        saved.pop("places", None)
        return hashlib.sha256(_flat(saved)).hexdigest()
    return hashlib.sha256(data).hexdigest()


def _flat(value: Any) -> bytes:
    import torch

    if isinstance(value, torch.Tensor):
        return (
            f"{value.dtype}{tuple(value.shape)}".encode()
            + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    if isinstance(value, dict):
        return b"".join(str(key).encode() + _flat(value[key]) for key in sorted(value, key=str))
    if isinstance(value, (list, tuple)):
        return b"".join(map(_flat, value))
    return repr(value).encode()


@pytest.fixture(scope="session")
def stopped() -> Callable[[int], bool]:
    """stopped(number): wait until a process has stopped itself. False: it has ended without."""
    return _stopped


def _stopped(number: int) -> bool:
    import psutil

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            status = psutil.Process(number).status()
        except psutil.NoSuchProcess:
            return False
        if status == psutil.STATUS_STOPPED:
            return True
        if status == psutil.STATUS_ZOMBIE:
            return False
        time.sleep(0.01)
    os.killpg(number, signal.SIGKILL)
    pytest.fail("neither stopped nor ended")


@pytest.fixture(scope="session")
def warm() -> Iterator[Callable[[str], Warm]]:
    """warm(command): the process that forks it."""
    processes: dict[tuple[str, ...], Warm] = {}

    def get(command: str) -> Warm:
        modules = CORE if command == "fetch" else MODULES
        if modules not in processes:
            processes[modules] = Warm(modules)
        return processes[modules]

    yield get
    for process in processes.values():
        process.close()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read; tests fill it."""
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture(scope="session")
def stage_at(
    warm: Callable[[str], Warm], inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Stage]:
    """stage_at(name): a new stage."""
    return lambda name: Stage(tmp_path_factory.mktemp(f"{len(name)}") / "stage", inputs, warm)


# ------------------------------------------------------------------------------------------ the whole matrix, in parts

LOG = os.environ.get("LTXKIT_FAULTS_LOG")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what the log says has passed before."""
    if LOG is None or not Path(LOG).is_file():
        return
    lines = [json.loads(line) for line in Path(LOG).read_text(encoding="utf-8").splitlines()]
    passed = {line["id"] for line in lines if line["outcome"] == "passed"}
    items[:] = [item for item in items if item.nodeid not in passed]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what has ended. One process alone hears of all reports, also where several workers make them."""
    ends = report.when == "call" or report.outcome != "passed"
    if LOG is not None and ends and "PYTEST_XDIST_WORKER" not in os.environ and "tests/faults" in report.nodeid:
        with Path(LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"id": report.nodeid, "outcome": report.outcome, "seconds": report.duration}) + "\n")

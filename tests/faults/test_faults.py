"""Every writing command meets every fault, and keeps its promises: the right result, or one sentence and the documented
status; nothing lost, nothing left; the next run works, and its result is that of an undisturbed one.

`make faults` runs the whole matrix. Otherwise each fault meets one command, and each command at least one fault.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="sends signals, and forks")]

WHOLE = os.environ.get("LTXKIT_FAULTS") == "all"
PRECIOUS = {"precious.txt": "of somebody", "out/precious.mp4": "likewise", "run/precious.txt": "likewise"}
PRECIOUS |= {f"{name}/precious.txt": "likewise" for name in ("made", "clips", "score", "kept", "models")}
HUGE = 2**33  # bytes of a disk that is large enough
SPARE = 2**16  # bytes that folders and empty files take


@dataclass(frozen=True)
class Fault:
    """name: of its kind. start: what the process is started with, by what an undisturbed run did. statuses: beside that
    of an undisturbed run, which must have its result. kills: the process cannot clean up. room: of the disk, as a share
    of what the results take. meets: the command that meets it in `make test`."""

    name: str
    meets: str
    statuses: tuple[int, ...] = ()
    start: Callable[[Reference], dict[str, Any]] = lambda _: {}
    kills: bool = False
    room: float | None = None
    read_only: bool = False
    environment: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run did. tree: its files. size: their bytes, with those of the caches. seen: its moments."""

    status: int
    tree: Mapping[str, str]
    size: int
    largest: int
    seen: tuple[str, ...]

    def moment(self, share: float, *, reports: bool = False) -> int:
        """The number of a moment: of those at which it touched a file, or reported a step."""
        chosen = [n for n, what in enumerate(self.seen) if what.startswith(("progress", "step")) is reports]
        chosen = chosen or list(range(len(self.seen)))
        return chosen[round(share * (len(chosen) - 1))]


def at(number: int, share: float, *then: int, reports: bool = False) -> Callable[[Reference], dict[str, Any]]:
    """A signal at a moment. then: further ones, each so many moments after the first."""

    def start(reference: Reference) -> dict[str, Any]:
        first = reference.moment(share, reports=reports)
        return {"faults": [(first, number), *((first + later, number) for later in then)]}

    return start


INT, TERM, HUP, KILL = (
    (int(signal.Signals[f"SIG{name}"]) for name in ("INT", "TERM", "HUP", "KILL")) if os.name == "posix" else (0,) * 4
)
FAULTS = (
    *(Fault(f"killed at {share:.2f}", meets, (-9,), at(KILL, share), kills=True) for share, meets in (
        (0.0, "generate"), (0.15, "convert"), (0.3, "train-lora"), (0.5, "make-tiny"), (0.7, "train"), (0.85, "sample"),
        (0.95, "bundle"), (1.0, "run"),
    )),
    Fault("killed while it computes", "train-upscaler", (-9,), at(KILL, 0.5, reports=True), kills=True),
    Fault("killed within a write", "convert-gguf", (-25,), lambda all_: {"largest_file": all_.largest // 2, "dies_at_limit": True},
          kills=True),
    *(Fault(f"SIGINT at {share:.2f}", meets, (130,), at(INT, share)) for share, meets in (
        (0.1, "generate-named"), (0.5, "train-vae"), (0.8, "convert-folder"), (0.97, "generate-pictures"),
    )),
    Fault("SIGINT while it computes", "extend", (130,), at(INT, 0.6, reports=True)),
    *(Fault(f"SIGINT twice at {share:.2f}", meets, (130,), at(INT, share, later)) for share, later, meets in (
        (0.3, 1, "train"), (0.6, 2, "generate-long"), (0.9, 1, "make-tiny"),
    )),
    Fault("SIGTERM at 0.50", "reconstruct", (143,), at(TERM, 0.5)),
    Fault("SIGTERM while it computes", "train", (143,), at(TERM, 0.5, reports=True)),
    Fault("SIGTERM twice", "run-clip", (143,), at(TERM, 0.8, 1)),
    Fault("SIGHUP at 0.70", "migrate", (129,), at(HUP, 0.7)),
    *(Fault(f"disk with {room:.0%} of the room", meets, (1, 2), room=room) for room, meets in (
        (0.0, "migrate"), (0.3, "train-vae"), (0.6, "generate-long"), (0.9, "bundle"),
    )),
    Fault("files of limited size", "convert", (1,), lambda all_: {"largest_file": all_.largest // 2}),
    Fault("read-only disk", "eval-digits", (1, 2), read_only=True),
    Fault("stdin closed", "generate", start=lambda _: {"stdin": "closed"}),
    Fault("stdout closed", "convert", start=lambda _: {"stdout": "closed"}),
    Fault("stderr closed", "generate-pictures", start=lambda _: {"stderr": "closed"}),
    Fault("all streams closed", "sample", start=lambda _: dict.fromkeys(("stdin", "stdout", "stderr"), "closed")),
    Fault("stdout full", "bundle", start=lambda _: {"stdout": "full"}),
    Fault("stdout broken", "reconstruct", start=lambda _: {"stdout": "broken"}),
    Fault("stderr full", "train-upscaler", start=lambda _: {"stderr": "full"}),
    Fault("stderr broken", "run", start=lambda _: {"stderr": "broken"}),
    Fault("no home", "generate", start=lambda _: {"nobody": True},
          environment=dict.fromkeys(("HOME", "LTXKIT_CACHE", "XDG_CACHE_HOME"))),
    Fault("a home that cannot be written", "run", environment={"HOME": "/proc/nowhere", "LTXKIT_CACHE": None}),
    Fault("clock set back", "train-lora", start=lambda _: {"clock": -1e9}),
)  # fmt: skip


@pytest.fixture(scope="session")
def table() -> Any:
    """tests/faults/table.py: no folder of tests is on sys.path."""
    return TABLE


def _load_table() -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location("ltxkit_faults_table", Path(__file__).with_name("table.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TABLE = _load_table()
NAMED = {writer.name: writer for writer in TABLE.WRITERS}


def cells() -> Iterator[Any]:
    for fault in FAULTS:
        for writer in TABLE.WRITERS:
            if WHOLE or fault.meets == writer.name:
                yield pytest.param(writer, fault, id=f"{writer.name}-{fault.name.replace(' ', '-')}")


@pytest.fixture(scope="session")
def make_input(stage_at: Callable[..., Any], inputs: Path, repository: Path) -> Callable[[str], None]:
    """make_input(line): the inputs that a command line names."""

    def make(line: str) -> None:
        for name in re.findall(r"\.\./in/([\w.-]+)", line):
            target = inputs / name
            if target.exists():
                continue
            if name == "original.json":
                shutil.copy(repository / "workflows" / "04 Text to video - 2B.json", target)
            elif name == "clips":
                make("../in/clip.mp4")
                target.mkdir()
                for number in range(2):
                    shutil.copy(inputs / "clip.mp4", target / f"{number}.mp4")
                    (target / f"{number}.txt").write_text("a test")
            else:
                line_of_it, result = TABLE.INPUTS[name]
                make(line_of_it)
                stage = stage_at(f"input-{name}")
                ended = stage.run(line_of_it)
                assert ended.status == 0, ended.said
                shutil.move(stage.disk / result, target)

    return make


@pytest.fixture(scope="session")
def reference(stage_at: Callable[..., Any], make_input: Callable[[str], None]) -> Callable[[Any], Reference]:
    """reference(writer): what it does undisturbed."""
    known: dict[str, Reference] = {}

    def get(writer: Any) -> Reference:
        if writer.name not in known:
            make_input(writer.line)
            stage = prepared(stage_at(f"reference-{writer.name}"))
            ended = stage.run(writer.line)
            assert ended.status == writer.status, ended.said
            assert stage.leftovers() == []
            assert has_precious(stage)
            sizes = [path.stat().st_size for path in stage.disk.rglob("*") if path.is_file()]
            results = {name: digest for name, digest in stage.tree().items() if name not in PRECIOUS}
            largest = max((stage.disk / name).stat().st_size for name in results) if results else 4096
            known[writer.name] = Reference(ended.status, results, sum(sizes), largest, tuple(ended.seen))
        return known[writer.name]

    return get


@pytest.fixture
def stage(stage_at: Callable[..., Any], request: pytest.FixtureRequest) -> Iterator[Any]:
    made = stage_at(request.node.name)
    yield made
    made.unmount()
    shutil.rmtree(made.folder)


def prepared(stage: Any) -> Any:
    """With files of somebody in every folder that a command writes to."""
    for name, text in PRECIOUS.items():
        (stage.disk / name).parent.mkdir(parents=True, exist_ok=True)
        (stage.disk / name).write_text(text)
    return stage


def has_precious(stage: Any) -> bool:
    return all((stage.disk / name).read_text() == text for name, text in PRECIOUS.items())


def results(stage: Any) -> dict[str, str]:
    return {name: digest for name, digest in stage.tree().items() if name not in PRECIOUS}


# ------------------------------------------------------------------------------------------------------------- the matrix


@pytest.mark.parametrize(("writer", "fault"), cells())
def test_a_disturbed_command(
    writer: Any, fault: Fault, stage: Any, reference: Callable[[Any], Reference], request: pytest.FixtureRequest
) -> None:
    usual = reference(writer)
    if writer.command == "fetch":
        stage.environment = request.getfixturevalue("hub_environment")
    with disk_of(stage, fault, usual):
        ended = stage.run(writer.line, environment=dict(fault.environment), **fault.start(usual))
        check(stage, writer, fault, usual, ended)
    again(stage, writer, usual)


class disk_of:  # noqa: N801 - a context
    """The stage, with its disk as the fault has it; on leaving, the disk is as it should be."""

    def __init__(self, stage: Any, fault: Fault, usual: Reference) -> None:
        self.stage, self.fault, self.usual = stage, fault, usual

    def __enter__(self) -> None:
        if self.fault.room is None and not self.fault.read_only:
            prepared(self.stage)
            return
        self.stage.mount(2 * self.usual.size + 2**22)
        prepared(self.stage)
        if self.fault.read_only:
            self.stage.remount("ro")
        else:
            self.stage.fill(round(self.fault.room * self.usual.size))

    def __exit__(self, *_: object) -> None:
        if self.fault.read_only:
            self.stage.remount("rw")
        elif self.fault.room is not None:
            self.stage.empty()


def check(stage: Any, writer: Any, fault: Fault, usual: Reference, ended: Any) -> None:
    allowed = (usual.status, *fault.statuses)
    assert ended.status in allowed, f"status {ended.status}: {ended.said}"
    assert not re.search(r"Traceback|Exception ignored|Fatal Python error|\[Errno", ended.said), ended.said
    found = results(stage)
    if ended.status == usual.status == 0:
        assert found == usual.tree, ended.said
    for name, digest in found.items():  # under its final name everything is whole; a log grows
        assert digest == usual.tree.get(name) or name.endswith("log.jsonl"), f"{name} is another: {ended.said}"
    assert has_precious(stage)
    if not fault.kills and not fault.read_only:
        assert stage.leftovers() == [], ended.said
    if ended.status in (1, 2) and ended.status != usual.status:
        assert ended.sentence.startswith("ltxkit: "), ended.said
        assert names_a_file(ended.sentence, stage, usual), ended.sentence


def names_a_file(sentence: str, stage: Any, usual: Reference) -> bool:
    """Whether a sentence says which file or folder could not be written."""
    words = {part for name in usual.tree for part in Path(name).parts}
    return any(word in sentence for word in words) or str(stage.temp) in sentence


def again(stage: Any, writer: Any, usual: Reference) -> None:
    """The next run works, removes what was left, and has the result of an undisturbed one."""
    there = results(stage) == usual.tree
    line = f"{writer.line} {writer.again}"
    if writer.resumes and any((stage.disk / "run/checkpoints").glob("step_*/state.pt")):
        line += " --resume"
    if writer.own and there:
        return
    ended = stage.run(line)
    if not (there and ended.status == 2 and "exist" in ended.sentence):
        assert ended.status == usual.status, ended.said
    assert "Traceback" not in ended.said
    assert results(stage) == usual.tree
    assert stage.leftovers() == []
    assert has_precious(stage)

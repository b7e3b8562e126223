"""Every writing command meets every fault, and keeps its promises: the right result, or one sentence and the documented
status; nothing lost, nothing left; the next run works, and its result is that of an undisturbed one.

`make faults` runs the whole matrix. Otherwise each fault meets one command, and each command at least one fault.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ltxkit import cli
from ltxkit.ltx_core.published import published_files

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="sends signals, and forks")]

WHOLE = os.environ.get("LTXKIT_FAULTS") == "all"
PRECIOUS = {"precious.txt": b"of somebody", "out/precious.mp4": b"likewise", "run/precious.txt": b"likewise"}
PRECIOUS |= {f"{name}/precious.txt": b"likewise" for name in ("made", "clips", "score", "kept", "models")}
PICTURE = Path(__file__).parents[2] / "assets" / "examples" / "three.png"
PRECIOUS |= {f"pictures/{number}.png": PICTURE.read_bytes() for number in range(2)}  # which `caption` describes
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


INT, TERM, HUP, KILL, STOP = (int(getattr(signal, f"SIG{name}", 0)) for name in ("INT", "TERM", "HUP", "KILL", "STOP"))
FAULTS = (
    *(Fault(f"killed at {share:.2f}", meets, (-9,), at(KILL, share), kills=True) for share, meets in (
        (0.0, "generate"), (0.15, "convert"), (0.3, "extend"), (0.4, "split"), (0.5, "make-tiny"), (0.7, "train"),
        (0.85, "sample"), (0.95, "bundle"), (1.0, "run"),
    )),
    Fault("killed while it computes", "fetch", (-9,), at(KILL, 0.5, reports=True), kills=True),
    Fault("killed within a write", "convert-gguf", (-25,),
          lambda usual: {"largest_file": usual.largest // 2, "dies_at_limit": True}, kills=True),
    *(Fault(f"SIGINT at {share:.2f}", meets, (130,), at(INT, share)) for share, meets in (
        (0.1, "generate-named"), (0.5, "train-vae"), (0.6, "data"), (0.8, "bench"), (0.97, "generate-pictures"),
    )),
    Fault("SIGINT while it computes", "caption", (130,), at(INT, 0.6, reports=True)),
    *(Fault(f"SIGINT twice at {share:.2f}", meets, (130,), at(INT, share, later)) for share, later, meets in (
        (0.3, 1, "reconstruct"), (0.6, 2, "generate-long"), (0.9, 1, "make-tiny"),
    )),
    Fault("SIGTERM at 0.50", "reconstruct", (143,), at(TERM, 0.5)),
    Fault("SIGTERM while it computes", "train", (143,), at(TERM, 0.5, reports=True)),
    Fault("SIGTERM twice", "run-clip", (143,), at(TERM, 0.8, 1)),
    Fault("SIGHUP at 0.70", "migrate", (129,), at(HUP, 0.7)),
    *(Fault(f"disk with {room:.0%} of the room", meets, (1, 2), room=room) for room, meets in (
        (0.0, "migrate"), (0.3, "train-vae"), (0.6, "generate-long"), (0.9, "bundle"),
    )),
    Fault("files of limited size", "convert", (1,), lambda usual: {"largest_file": usual.largest // 2}),
    Fault("read-only disk", "eval-digits", (1, 2), read_only=True),
    Fault("stdin closed", "generate", start=lambda _: {"stdin": "closed"}),
    Fault("stdout closed", "convert", start=lambda _: {"stdout": "closed"}),
    Fault("stderr closed", "generate-pictures", start=lambda _: {"stderr": "closed"}),
    Fault("all streams closed", "sample", start=lambda _: dict.fromkeys(("stdin", "stdout", "stderr"), "closed")),
    Fault("stdout full", "bundle", start=lambda _: {"stdout": "full"}),
    Fault("stdout broken", "reconstruct", start=lambda _: {"stdout": "broken"}),
    Fault("stderr full", "convert", start=lambda _: {"stderr": "full"}),
    Fault("stderr broken", "run", start=lambda _: {"stderr": "broken"}),
    Fault("no home", "generate", start=lambda _: {"nobody": True},
          environment=dict.fromkeys(("HOME", "LTXKIT_CACHE", "XDG_CACHE_HOME"))),
    Fault("a home that cannot be written", "run", environment={"HOME": "/proc/nowhere", "LTXKIT_CACHE": None}),
    Fault("clock set back", "sample", start=lambda _: {"clock": -1e9}),
)  # fmt: skip


def _load_table() -> Any:
    """tests/faults/table.py: no folder of tests is on sys.path."""
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


def cells() -> list[Any]:
    """Each writer with each fault, by diagonals: a run that does not reach its end has tried something of every one."""
    pairs = [
        (writer, FAULTS[(number + shift) % len(FAULTS)])
        for shift in range(len(FAULTS))
        for number, writer in enumerate(TABLE.WRITERS)
    ]
    return [
        pytest.param(writer, fault, id=f"{writer.name}-{fault.name.replace(' ', '-')}")
        for writer, fault in pairs
        if WHOLE or fault.meets == writer.name
    ]


@pytest.fixture(scope="session")
def make_input(
    stage_at: Callable[..., Any], inputs: Path, repository: Path, request: pytest.FixtureRequest
) -> Callable[[str], None]:
    """make_input(line): the inputs that a command line names."""

    def make(line: str) -> None:
        for name in re.findall(r"\.\./in/([\w.-]+)", line):
            target = inputs / name
            if target.exists():
                continue
            if name == "original.json":
                shutil.copy(repository / "workflows" / "04 Text to video - 2B.json", target)
            elif name == "vision":
                shutil.copytree(request.getfixturevalue("vision_models")["blip"], target)
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
def reference(stage_at: Callable[..., Any], make_input: Callable[[str], None]) -> Callable[..., Reference]:
    """reference(writer, environment): what it does undisturbed."""
    known: dict[str, Reference] = {}

    def get(writer: Any, environment: dict[str, str | None]) -> Reference:
        if writer.name not in known:
            make_input(writer.line)
            stage = prepared(stage_at(f"reference-{writer.name}"))
            ended = stage.run(writer.line, environment=environment)
            assert ended.status == writer.status, ended.said
            assert stays(writer, ended), ended.elsewhere
            assert stage.leftovers() == []
            assert has_precious(stage)
            given = {stage.disk / name for name in PRECIOUS}
            sizes = [path.stat().st_size for path in {*stage.disk.rglob("*")} - given if path.is_file()]
            results = {name: digest for name, digest in stage.tree().items() if name not in PRECIOUS}
            largest = max((stage.disk / name).stat().st_size for name in results) if results else 4096
            known[writer.name] = Reference(
                ended.status, results, sum(sizes) + writer.passing, largest, tuple(ended.seen)
            )
        return known[writer.name]

    return get


@pytest.fixture
def stage(stage_at: Callable[..., Any], writer: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Of the test's writer; with a hub for the one that fetches."""
    made = stage_at(request.node.name)
    if writer.command == "fetch":
        hub = request.getfixturevalue("loopback_hub")
        (file,) = published_files([writer.line.split()[1]], alone=True)
        hub.files = {file.repository: {file.name: random.Random(0).randbytes(3_000_000)}}
        made.environment = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": None}
    yield made
    made.unmount()
    shutil.rmtree(made.folder)


def prepared(stage: Any) -> Any:
    """With files of somebody in every folder that a command writes to."""
    for name, content in PRECIOUS.items():
        (stage.disk / name).parent.mkdir(parents=True, exist_ok=True)
        (stage.disk / name).write_bytes(content)
    return stage


def has_precious(stage: Any) -> bool:
    return all((stage.disk / name).read_bytes() == content for name, content in PRECIOUS.items())


def results(stage: Any) -> dict[str, str]:
    return {name: digest for name, digest in stage.tree().items() if name not in PRECIOUS}


# ----------------------------------------------------------------------------------------------------------- the matrix


@pytest.mark.parametrize(("writer", "fault"), cells())
def test_a_disturbed_command(writer: Any, fault: Fault, stage: Any, reference: Callable[..., Reference]) -> None:
    usual = reference(writer, stage.environment)
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
    lost = {"stdout full": 1, "stdout broken": 141}.get(fault.name) if writer.prints else None
    allowed = (usual.status, *fault.statuses) if lost is None else (lost,)
    assert ended.status in allowed, f"status {ended.status}: {ended.said}"
    assert not re.search(r"Traceback|Exception ignored|Fatal Python error|\[Errno", ended.said), ended.said
    assert stays(writer, ended), ended.elsewhere
    found = results(stage)
    if ended.status == usual.status == 0:
        assert found == usual.tree, ended.said
    for name, digest in found.items():  # under its final name everything is whole; a log grows
        assert digest == usual.tree.get(name) or name.endswith("log.jsonl"), f"{name} is another: {ended.said}"
    assert has_precious(stage)
    if not fault.kills and not fault.read_only:
        assert [name for name in stage.leftovers() if not is_download(name)] == [], ended.said
        # A latent that could not be saved beside the clip is kept there, which is said; torch makes a folder, too.
        names = [path.name for path in stage.temp.iterdir()]
        assert [name for name in names if name not in ended.said and "torchinductor" not in name] == []
    if ended.status in (1, 2) and ended.status != usual.status:
        assert ended.sentence.startswith("ltxkit: "), ended.said
        assert "stdout" in ended.sentence if lost else names_a_file(ended.sentence, stage, usual), ended.sentence


def stays(writer: Any, ended: Any) -> bool:
    """Whether a command wrote to its folders alone, and spoke with nobody, unless it is there to fetch."""
    return all(writer.command == "fetch" and what.startswith("socket.") for what in ended.elsewhere)


def is_download(name: str) -> bool:
    """What has arrived of a file, from which the next fetch goes on."""
    return name.startswith("disk/models/") and name.endswith(".part")


def names_a_file(sentence: str, stage: Any, usual: Reference) -> bool:
    """Whether a sentence says which file or folder could not be written."""
    words = {part for name in usual.tree for part in Path(name).parts} or {"ltxv-tiny.safetensors", "the output ."}
    places = (stage.temp, stage.disk)  # of a latent beside a clip, and of what is encoded once
    return any(word in sentence for word in (*words, *map(str, places)))


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


# ----------------------------------------------------------------------------------------------- two at once, and names


def few(*names: str) -> list[Any]:
    """These writers in `make test`, and all in the whole matrix."""
    return [pytest.param(writer, id=writer.name) for writer in TABLE.WRITERS if WHOLE or writer.name in names]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95] if WHOLE else [0.6])
@pytest.mark.parametrize("writer", few("generate-named", "generate-long", "convert", "run"))
def test_a_twin_that_runs_while_the_first_one_rests(
    writer: Any, share: float, stage: Any, reference: Callable[..., Reference], stopped: Callable[[int], bool]
) -> None:
    usual = reference(writer, stage.environment)
    prepared(stage)
    first = stage.start(writer.line, faults=[(usual.moment(share), STOP)])
    assert stopped(first[0])
    try:
        second = stage.run(writer.line)
    finally:
        os.kill(first[0], signal.SIGCONT)
    ends = [stage.end(writer.line, first), second]
    done = [ended for ended in ends if ended.status == usual.status]
    assert done, [ended.said for ended in ends]
    for ended in ends:
        assert "Traceback" not in ended.said, ended.said
        if ended.status != usual.status:
            assert ended.status == 2, ended.said
            assert re.search(r"ltxkit: .*(another|exist|holds a run)", ended.sentence), ended.said
    found = results(stage)
    if writer.own:
        assert len(found) == len(done) * len(usual.tree)
        assert set(found.values()) == set(usual.tree.values())
    else:
        assert found == usual.tree
    assert stage.leftovers() == []
    assert has_precious(stage)


@pytest.mark.parametrize("writer", few("generate", "make-tiny", "bundle"))
def test_results_that_are_there_are_made_again_or_refused(
    writer: Any, stage: Any, reference: Callable[..., Reference]
) -> None:
    usual = reference(writer, stage.environment)
    prepared(stage)
    stage.run(writer.line)
    ended = stage.run(writer.line)
    assert ended.status == (writer.after or usual.status), ended.said
    if ended.status == 2:
        assert re.search(r"ltxkit: got .*(exist|holds a run)", ended.sentence), ended.said
    found = results(stage)
    assert set(found.values()) == set(usual.tree.values()) if writer.own else found == usual.tree
    assert stage.leftovers() == []
    assert has_precious(stage)


@pytest.mark.parametrize("kind", ["other", "link"])
@pytest.mark.parametrize("writer", few("generate", "sample"))
def test_names_that_something_else_has(writer: Any, kind: str, stage: Any, reference: Callable[..., Reference]) -> None:
    """A folder in the place of a file, a file in the place of a folder, links that lead nowhere."""
    usual = reference(writer, stage.environment)
    inside = {name.split("/")[0]: "/" in name for name in usual.tree}
    for name, is_folder in inside.items():
        path = stage.disk / name
        if kind == "link":
            path.symlink_to("../nowhere/to/be/found")
        elif is_folder:
            path.write_text("of somebody")
        else:
            path.mkdir()
            (path / "inner.txt").write_text("of somebody")
    ended = stage.run(f"{writer.line} {writer.again}")
    assert "Traceback" not in ended.said, ended.said
    free = writer.own or kind == "link"  # it takes the next name, or that of what a link leads to
    assert ended.status in ((usual.status, 1, 2) if free and inside else (1, 2) if inside else (0,)), ended.said
    if ended.status in (1, 2) and ended.status != usual.status:
        assert ended.sentence.startswith("ltxkit: "), ended.said
        assert names_a_file(ended.sentence, stage, usual), ended.said
    for name, is_folder in inside.items():
        path = stage.disk / name
        if kind == "other":
            assert (path if is_folder else path / "inner.txt").read_text() == "of somebody"
    assert stage.leftovers() == []


@pytest.mark.parametrize("writer", few("generate-pictures", "sample"))
def test_leftovers_whose_lock_nobody_holds_are_removed(
    writer: Any, stage: Any, reference: Callable[..., Reference]
) -> None:
    """As of a container that was stopped, whose numbers of processes are those of the next one. What another program
    downloads stays."""
    if writer.command == "fetch":
        pytest.skip("it writes no file of this kind: it goes on from what has arrived")
    usual = reference(writer, stage.environment)
    prepared(stage)
    folders = {
        (stage.disk / name).parent for name in usual.tree if not name.startswith(("new/", "bundled/", "frames/"))
    }
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (".ltxkit-00c0ffee.mp4", ".ltxkit-lock-00c0ffee", ".ltxkit-lock-0badf00d"):
            (folder / name).write_text("1")
    assert stage.run(writer.line).status == usual.status
    assert results(stage) == usual.tree
    assert stage.leftovers() == []


# ------------------------------------------------------------------------------------------------------ who only speaks

STREAMS = {
    ("stdout", "closed"): 0,
    ("stdout", "full"): 1,
    ("stdout", "broken"): 141,
    ("stderr", "closed"): 0,
    ("stderr", "full"): 0,
    ("stderr", "broken"): 0,
}


@pytest.mark.parametrize(("stream", "state"), STREAMS)
@pytest.mark.parametrize(
    "writer",
    [TABLE.Writer(line, line) for line in TABLE.READERS if WHOLE or line.startswith(("inspect ltxkit", "generate"))],
    ids=lambda writer: writer.name.replace(" ", "-"),
)
def test_commands_that_only_speak(
    writer: Any, stream: str, state: str, stage_at: Callable[..., Any], make_input: Callable[[str], None]
) -> None:
    make_input(writer.line)
    stage = stage_at(writer.name)
    ended = stage.run(writer.line, **{stream: state})
    expected = STREAMS[stream, state]
    assert ended.status in ((0, 1) if writer.name == "doctor" and expected == 0 else (expected,)), ended.said
    assert not re.search("Traceback|Exception ignored", ended.said), ended.said
    if (stream, state) == ("stdout", "full"):
        assert ended.sentence == "ltxkit: stdout takes nothing (No space left on device)"
    assert ended.elsewhere == []
    assert stage.leftovers() == []


def test_every_command_is_in_the_tables() -> None:
    words = {line.split()[0] for line in TABLE.READERS} | {writer.command for writer in TABLE.WRITERS}
    by_itself = {"serve", "batch"}  # tests/service kills them
    assert words - {"--version"} == {command.name for command in cli.COMMANDS} - by_itself


def test_every_writer_meets_a_fault_in_the_usual_tests() -> None:
    assert {fault.meets for fault in FAULTS} <= {writer.name for writer in TABLE.WRITERS}
    assert {writer.command for writer in TABLE.WRITERS} <= {NAMED[fault.meets].command for fault in FAULTS}

"""Damage valid files and see what their parsers do: `make fuzz ARGS="lora --count 10000"`.

Each parser works in a child process, which may crash. A case ends well when the parser accepts the file or raises one
of LTXKit's errors with one sentence. Anything else is a finding: another exception, the end of the process, more than
SECONDS of processor time, more than MEGABYTES of memory beyond the start. The file of a finding is kept.

A case is a target, a seed and a number: the same three make the same file again. With --guided, atheris looks which
lines of LTXKit each case reaches, and goes on from those that reach new ones: such a case is its kept file alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

SECONDS = 10.0  # of processor time for one case: no load of the machine counts
WAITING = 120.0  # of the clock, for a case that waits without working
MEGABYTES = 512

HERE = Path(__file__).resolve().parent


# --- in the child -----------------------------------------------------------------------------------------------------


def _limit(megabytes: int) -> None:
    """Of address space, beyond what is mapped now: an allocation that a file asks for fails, and the machine lives."""
    try:
        import resource
    except ImportError:  # Windows: the limit of time remains
        return
    pages = Path("/proc/self/statm")
    if pages.exists():
        size = int(pages.read_text(encoding="utf-8").split()[0]) * os.sysconf("SC_PAGE_SIZE") + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _peak() -> int:
    """Megabytes of memory at the most, until now. Linux' own line, since `ru_maxrss` begins with the parent's there."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _verdict(error: BaseException, megabytes: int) -> str | None:
    """What is wrong with the end of a case; None: nothing."""
    from ltxkit.ltx_core.errors import LTXKitError

    if megabytes > MEGABYTES:
        return f"takes {megabytes} MB"
    if not isinstance(error, LTXKitError):
        return "".join(traceback.format_exception(type(error), error, error.__traceback__, limit=-6))
    text = str(error)
    if not re.search("got |; |problems? in", text):
        return f"no sentence that says what is wrong and what to do: {type(error).__name__}: {text[:500]}"
    return None


class _AcceptedError(Exception):
    """In the place of an error."""


def _child(folder: Path, keep: Path, plan: Sequence[tuple[str, int, Sequence[int] | str]], guided: bool) -> None:
    """plan: targets, with a seed and the numbers of its cases, or the file of one. guided: the plan is one target."""
    import faulthandler
    import logging

    if guided:
        import atheris

        # For as long as the process lives: parsers import what they need when they need it.
        atheris.instrument_imports(include=["ltxkit", *(path.stem for path in HERE.glob("*_targets.py"))]).__enter__()
    import targets
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    faulthandler.enable()  # a crash says where
    if hasattr(signal, "SIGPROF"):  # as does what takes too long, before it ends the process
        faulthandler.register(signal.SIGPROF, chain=True)
    prepared: dict[str, dict[Path, bytes]] = {}
    _limit(3 * 1024)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a parser prints is no answer

    def attempt(name: str, seed: int, case: int | str, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        answers.write(json.dumps({"at": [name, seed, case]}) + "\n")
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
        before, started = _peak(), time.process_time()
        ended: BaseException = _AcceptedError()
        try:
            targets.TARGETS[name].read(path)
        except BaseException as error:
            ended = error
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        grown = _peak() - before
        wrong = None if isinstance(ended, _AcceptedError) and grown <= MEGABYTES else _verdict(ended, grown)
        if wrong is not None:
            kept = _kept(keep, name, case, path, content)
            answers.write(json.dumps({"case": [name, seed, case], "wrong": wrong, "file": kept}) + "\n")
        answer = {
            "done": "accepted" if isinstance(ended, _AcceptedError) else "refused",
            "took": time.process_time() - started,
        }
        answers.write(json.dumps(answer) + "\n")
        path.write_bytes(prepared[name][path])

    for name, seed, cases in plan:
        target = targets.TARGETS[name]
        if name not in prepared:
            (folder / name).mkdir()
            prepared[name] = {path: path.read_bytes() for path in target.prepare(folder / name)}
        originals = prepared[name]
        if guided and not isinstance(cases, str):
            _guided(partial(attempt, name, seed), originals, target.damage, f"{name} {seed}", cases, folder / "guided")
        for case in [cases] if isinstance(cases, str) else range(*cases):
            attempt(name, seed, case, *_damaged(name, seed, case, originals, target.damage))


def _guided(
    attempt: Callable[[int, Path, bytes], None],
    originals: dict[Path, bytes],
    damage: Callable[[bytes, random.Random], bytes],
    seed: str,
    cases: Sequence[int],
    folder: Path,
) -> NoReturn:
    """Cases that grow out of each other: libFuzzer keeps whatever reaches lines that nothing before it has reached, and
    damages it further, in our own way. The first byte of its inputs is the number of the file that they stand for.
    Ends the process.
    """
    import atheris

    first, end = cases
    paths, numbers = list(originals), iter(range(first, end))
    folder.mkdir()
    for number, path in enumerate(paths):
        (folder / str(number)).write_bytes(bytes([number]) + originals[path])
    longest = 2 * max(map(len, originals.values())) + 2**16

    def damaged(data: bytes, at_most: int, chosen: int) -> bytes:
        return (data[:1] + damage(data[1:], random.Random(chosen)))[:at_most]

    def read(data: bytes) -> None:
        case = next(numbers, None)
        if case is not None:
            path = paths[data[0] % len(paths)] if data else paths[0]
            attempt(case, path, data[1:])

    flags = {
        "runs": end - first,
        "seed": random.Random(f"{seed} {first}").randrange(1, 2**31),
        "max_len": longest,
        "rss_limit_mb": 0,  # `_limit` has one
        "timeout": 10**6,  # seconds: `attempt` has a limit of its own
        "reduce_inputs": 0,  # a file that ends early reaches little
        "detect_leaks": 0,
        "artifact_prefix": f"{folder.parent}{os.sep}",
        "verbosity": 0,
        **dict.fromkeys(
            ("handle_segv", "handle_bus", "handle_abrt", "handle_ill", "handle_fpe"), 0
        ),  # faulthandler does
    }
    atheris.Setup([sys.argv[0], *(f"-{name}={value}" for name, value in flags.items()), str(folder)], read,
                  custom_mutator=damaged)  # fmt: skip
    atheris.Fuzz()
    os._exit(0)


def _damaged(name: str, seed: int, case: int | str, originals: dict[Path, bytes], damage) -> tuple[Path, bytes]:
    """Where a case lies, and what it holds. A file of the corpus is called TARGET/NUMBER@NAME, after the file that it
    takes the place of."""
    if isinstance(case, str):
        name = Path(case).name.partition("@")[2]
        return next(path for path in originals if path.name == name), Path(case).read_bytes()
    rng = random.Random(f"{name} {seed} {case}")
    path = rng.choice(list(originals))
    return path, damage(originals[path], rng)


def _kept(keep: Path, name: str, case: int | str, path: Path, content: bytes) -> str:
    if isinstance(case, str):
        return case
    (keep / name).mkdir(parents=True, exist_ok=True)
    kept = keep / name / f"{case}@{path.name}"
    kept.write_bytes(content)
    return str(kept)


# --- in the parent ----------------------------------------------------------------------------------------------------

Plan = list[tuple[str, int, "list[int] | str"]]


def findings(
    plan: Plan, keep: Path, counts: dict[str, dict[str, float]], *, guided: bool = False
) -> Iterator[tuple[str, int, object, str]]:
    """(target, seed, case, what is wrong) of every finding. A child that ends is replaced, from the next case on.

    counts: of each target, how many cases were accepted and refused; filled while this runs. guided: by atheris, whose
    processes work on one target each.
    """
    rest = list(plan)
    while rest:
        with (
            tempfile.TemporaryDirectory(prefix="ltxkit-fuzz-") as folder,
            tempfile.TemporaryFile("w+", encoding="utf-8") as words,
        ):
            # A session of its own: nothing that it starts outlives it. No cache, no hub, no measurement.
            environment = os.environ | {
                "LTXKIT_CACHE": folder,
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "LTXKIT_KERNELS": "plain",
                "MPLBACKEND": "agg",
                "TOKENIZERS_PARALLELISM": "false",
            }
            child = subprocess.Popen(
                [sys.executable, str(Path(__file__)), "--child", folder, str(keep), *(["--guided"] if guided else [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                env=environment,
            )
            try:
                last, found = yield from _watched(child, rest[:1] if guided else rest, counts)
            finally:
                child.kill()
                child.wait()
            if last is None and child.returncode == 0:
                rest = rest[1:] if guided else []
                continue
            words.seek(0)
            said = words.read()[-3000:]
            if found is None:
                raise RuntimeError(f"the child process ended before the first case:\n{said}")
            name, seed, case = found
            yield name, seed, case, f"{last or f'the process ended with {child.returncode}'}\n{said}"
            rest = _after(rest, found)


def _watched(child: subprocess.Popen[str], plan: Plan, counts: dict[str, dict[str, float]]):
    """Yields findings; returns what stopped the child (None: its own end) and the case that it was at."""
    import queue
    import threading

    assert child.stdin is not None
    child.stdin.write(json.dumps(plan))
    child.stdin.close()
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=listen, daemon=True).start()
    at = None
    while True:
        try:
            line = lines.get(timeout=WAITING)
        except queue.Empty:
            if _has_work(child.pid):  # the machine is busy with other things
                continue
            return f"waits for more than {WAITING} s", at
        if not line:
            child.wait()
            if hasattr(signal, "SIGPROF") and child.returncode == -signal.SIGPROF:
                return f"takes more than {SECONDS} s of processor time", at
            return None, at
        answer = json.loads(line)
        if "at" in answer:
            at = answer["at"]
        elif "done" in answer:
            count = counts.setdefault(at[0], {"accepted": 0, "refused": 0, "seconds": 0.0})
            count[answer["done"]] += 1
            count["seconds"] += answer["took"]
        else:
            name, seed, case = answer["case"]
            yield name, seed, case, answer["wrong"]


def _has_work(number: int) -> bool:
    """Whether a process would run if it was let (it lacks a processor, or is stopped), on systems that say so."""
    state = Path(f"/proc/{number}/stat")
    return state.exists() and state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "RDTt"


def _after(plan: Plan, at: tuple[str, int, object]) -> Plan:
    """The plan from the case after this one on."""
    for number, (name, seed, cases) in enumerate(plan):
        if name == at[0] and seed == at[1]:
            if isinstance(cases, str):
                if cases == at[2]:
                    return plan[number + 1 :]
            elif isinstance(at[2], int) and cases[0] <= at[2] < cases[1]:
                left = [(name, seed, [at[2] + 1, cases[1]])] if at[2] + 1 < cases[1] else []
                return [*left, *plan[number + 1 :]]
    raise LookupError(f"{at} is not in the plan")


def known() -> dict[str, bool]:
    """The targets, and whether each is slow; read from their sources, since importing them takes seconds."""
    found: dict[str, bool] = {}
    for path in sorted(HERE.glob("*_targets.py")):
        table = path.read_text(encoding="utf-8").partition("\nTARGETS")[2]
        found |= {name: "heavy=True" in line for name, line in re.findall(r'(?m)^    "([\w-]+)": (.+)$', table)}
    return found


def corpus(folder: Path) -> Plan:
    """Every file that was ever found. folder: where those go that are made anew."""
    spec = importlib.util.spec_from_file_location("ltxkit_fuzz_corpus", HERE / "corpus.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [(path.parent.name, 0, str(path)) for path in module.write(folder)]


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        _child(Path(sys.argv[2]), Path(sys.argv[3]), json.load(sys.stdin), "--guided" in sys.argv[4:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="parsers, by their names in targets.py; none: all of them")
    parser.add_argument("--count", type=int, default=100, help="mutations of each; of the slow ones a tenth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="folder for the files of findings")
    parser.add_argument("--corpus", action="store_true", help="every file that was ever found, in place of mutations")
    parser.add_argument("--file", help="one file in place of mutations, named NUMBER@NAME as findings are")
    parser.add_argument("--guided", action="store_true", help="by atheris: towards lines that no case has reached yet")
    options = parser.parse_args()
    if options.guided and importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed; install it (pip install atheris), or leave out --guided")
    slow = known()
    unknown = sorted(set(options.targets) - set(slow))
    if unknown:
        parser.error(f"got {', '.join(unknown)}; expected some of {', '.join(slow)}")
    names = options.targets or list(slow)
    plan: Plan = [
        (name, options.seed, [options.start, options.start + max(1, options.count // (10 if slow[name] else 1))])
        for name in names
    ]
    if options.corpus:
        plan = [entry for entry in corpus(options.keep.resolve() / "corpus") if entry[0] in names]
    if options.file:
        plan = [(names[0], 0, options.file)]
    counts: dict[str, dict[str, float]] = {}
    started, total = time.monotonic(), 0
    with suppress(KeyboardInterrupt):  # then what was done so far is told
        for name, seed, case, wrong in findings(plan, options.keep.resolve(), counts, guided=options.guided):
            total += 1
            print(f"--- {name}, seed {seed}, case {case}\n{wrong}", flush=True)
    for name, count in counts.items():
        print(f"{name:16} {count['accepted']:6} accepted {count['refused']:6} refused {count['seconds']:8.1f} s")
    print(f"{total} findings in {time.monotonic() - started:.0f} s")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())

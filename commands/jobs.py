"""Which clips one command makes: the prompt, the seed and the names of the results of each."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..ltx_core.errors import ConfigError
from ..ltx_core.filenames import same_file_key
from ..ltx_core.files import VIDEOS, check_output
from ..ltx_core.locks import Claims
from ..ltx_core.outputs import folder_or_file
from ..ltx_core.values import LARGEST_SEED, shown
from . import names

RESULTS = ("output", "save_latent", "contact_sheet")  # options that name one


@dataclass(frozen=True)
class Job:
    """One clip. prompts: one, or one for each window of a long clip."""

    prompts: tuple[str, ...]
    seed: int
    output: Path
    save_latent: Path | None = None
    contact_sheet: Path | None = None

    @property
    def results(self) -> tuple[Path, ...]:
        """What it writes, the clip last."""
        paths = (self.save_latent, self.contact_sheet, folder_or_file(self.output))
        return tuple(path for path in paths if path is not None)


def prompts_of(options: argparse.Namespace) -> tuple[str, ...]:
    """The prompts, from one of the three ways to say them.

    Raises:
        ConfigError: none, or several ways at once.
    """
    ways = {"PROMPT": options.words, "--prompt": options.prompt, "--prompts": options.prompts}
    said = [way for way, value in ways.items() if value]
    if len(said) > 1:
        raise ConfigError(f"got {' and '.join(said)}; expected the prompt in one way; leave one of them out")
    if len(options.words) > 1 and options.long is None:
        words = " ".join(options.words)
        raise ConfigError(
            f"got {len(options.words)} words or prompts; expected one prompt in quotes, such as {shown(words)}; put "
            "several prompts into a file, one a line: --prompts FILE"
        )
    prompts = tuple(options.words or options.prompt or prompt_lines(options.prompts))
    if not prompts:
        raise ConfigError('got no prompt; expected what the clip shows, such as "a lighthouse in a storm"; add it')
    return prompts


def prompt_lines(path: Path | None) -> Iterator[str]:
    """The prompts of a file: its lines without empty ones and those that start with #."""
    if path is None:
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:  # UnicodeDecodeError is one, and what a name with NUL raises
        raise ConfigError(
            f"got {path}, which cannot be read ({getattr(error, 'strerror', None) or error}); expected a text file "
            "with one prompt a line; check the path"
        ) from error
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise ConfigError(f"got {path} without a prompt; expected one a line; add one")
    yield from prompts


def jobs_of(options: argparse.Namespace, prompts: Sequence[str], claims: Claims | None = None) -> tuple[Job, ...]:
    """The clips of a command, in their order: of each prompt --count, with seeds that count on.

    Without --seed the first seed is 0; where the names are made, the first for which the name is free. claims: gets
    the names of the clips; None: they are only looked at.

    Raises:
        ConfigError: two clips under one name, a name that exists or that another run is about to write, or one that
            cannot be written.
    """
    groups = [tuple(prompts)] if options.long is not None else [(prompt,) for prompt in prompts]
    count = len(groups) * options.count
    if options.seed is not None and options.seed + options.count - 1 > LARGEST_SEED:
        raise ConfigError(
            f"got --seed {options.seed} and --count {options.count}; expected seeds below 2^64; lower one"
        )
    jobs: list[Job] = []
    for group in groups:
        seeds = _seeds(options, group[0], {same_file_key(job.output) for job in jobs}, claims)
        for seed, made in (next(seeds) for _ in range(options.count)):
            values = names.values_of(group[0], seed, len(jobs) + 1)
            paths = {
                option: names.filled(template, values)
                for option in RESULTS
                if (template := getattr(options, option)) is not None
            }
            jobs.append(Job(group, seed, **{"output": made, **paths}))  # pyright: ignore[reportArgumentType]
    _check_names(options, jobs, count)
    for path in (job.output for job in jobs if options.output is not None):
        if claims is not None and not claims.take(folder_or_file(path)):
            raise ConfigError(
                f"got the output {path}, which another run is about to write; expected a name of its own; name another"
            )
    return tuple(jobs)


def _seeds(
    options: argparse.Namespace, prompt: str, taken: set[str], claims: Claims | None
) -> Iterator[tuple[int, Path]]:
    """Seeds that count on, and the made name of each."""
    seed = options.seed or 0
    while True:
        made = Path(f"{names.slug(prompt)}-{seed}{VIDEOS[0]}")
        if options.output is None and options.seed is not None:
            made = names.free(made, taken, claims)
        if options.output is not None or options.seed is not None or names.is_free(made, taken, claims):
            taken.add(same_file_key(made))
            yield seed, made
        seed += 1


def _check_names(options: argparse.Namespace, jobs: Sequence[Job], count: int) -> None:
    for option in RESULTS:
        template = getattr(options, option)
        paths = [getattr(job, option) for job in jobs if getattr(job, option) is not None]
        if len(set(map(same_file_key, paths))) < len(paths):
            raise ConfigError(
                f"got {count} clips for the one name {template}; expected a name of its own for each; put {{seed}}, "
                "{number} or {prompt} into it" + (", or leave -o out" if option == "output" else "")
            )
        for path in paths:
            if option != "output":  # whose form `formats` checks
                check_output(path)
            if template is not None and exists(path) and not options.overwrite:
                raise ConfigError(
                    f"got the output {path}, which exists; expected a new name; name another, or add --overwrite"
                )


def exists(path: Path) -> bool:
    """Whether a result is there already; of pictures, whether their folder has any."""
    place = folder_or_file(path)
    try:
        return any(place.iterdir()) if place.is_dir() else place.is_file()
    except OSError:  # no name that a file can have, which the check of the name says
        return False


def check_results(jobs: Sequence[Job], read: Iterable[Path]) -> None:
    """Raises ConfigError: two results under one name, or one that would replace what the run reads."""
    read, written = list(read), set[str]()
    for path in (path for job in jobs for path in job.results):
        there = path.absolute()
        replaced = any(there == other.absolute() or (path.exists() and _is_same(path, other)) for other in read)
        if same_file_key(path) in written or replaced:
            role = "a file that the run reads" if replaced else "another result"
            raise ConfigError(f"got the output {path}, which is {role}; expected a name of its own; name another")
        written.add(same_file_key(path))


def _is_same(path: Path, other: Path) -> bool:
    return other.exists() and path.samefile(other)

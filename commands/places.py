"""Where `ltxkit` finds models that no option names: `$LTXKIT_MODEL`, the config file, ComfyUI's folders, the cache of
the Hugging Face hub, in this order. The first place that has one decides; of several in it the user chooses.
"""

from __future__ import annotations

import configparser
import difflib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..ltx_core.cache import home_folder, in_home
from ..ltx_core.errors import CheckpointError, ConfigError, LTXKitError, reason_of
from ..ltx_core.files import is_folder, is_there, parse_yaml
from ..ltx_core.pipelines.doctor import ROOT
from ..ltx_core.published import PUBLISHED, nearest
from ..ltx_core.values import shown, shown_path
from ..ltx_core.weights.bundled import BUNDLED

if TYPE_CHECKING:
    from ..ltx_core.weights.layouts import PartName

FETCHED = "2b-0.9.8-distilled"  # what a newcomer is told to fetch: small, fast, and needs no guidance


@dataclass(frozen=True)
class Role:
    """A file that a clip needs. option: which names it; variable, key: of the environment and of the config file.

    part: what it must hold. folders: ComfyUI's names of the folders for such files. fetch: what brings one.
    """

    option: str
    what: str
    part: PartName
    folders: tuple[str, ...]
    fetch: str

    @property
    def key(self) -> str:
        return self.option.removeprefix("--").replace("-", "_")

    @property
    def variable(self) -> str:
        return f"LTXKIT_{self.key.upper()}"


MODEL = Role("--model", "model", "transformer", ("checkpoints", "diffusion_models", "unet"), FETCHED)
TEXT_ENCODER = Role("--text-encoder", "text encoder", "text_encoder", ("text_encoders", "clip"), "t5xxl-fp16")
VAE = Role("--vae", "VAE", "vae", ("vae", "checkpoints"), FETCHED)
UPSCALER = Role(
    "--upscaler", "latent upscaler", "upscaler", ("latent_upscale_models", "upscale_models"), "spatial-0.9.8"
)
ROLES = (MODEL, TEXT_ENCODER, VAE, UPSCALER)
COMFYUI = "comfyui"  # the key of the config file that names ComfyUI's folder
_SECTION = "models"


class Found(NamedTuple):
    """A file, and in words where its name comes from."""

    path: Path
    place: str


# ------------------------------------------------------------------------------------------------------ the config file


def config_file(environment: Mapping[str, str] = os.environ) -> Path:
    """The user's own: `ltxkit/config.ini` in `$XDG_CONFIG_HOME` (~/.config), in %APPDATA% on Windows, and in
    ~/Library/Application Support on macOS. It may not exist."""
    home = home_folder()
    if sys.platform == "win32":
        folder = Path(environment.get("APPDATA") or home / "AppData" / "Roaming")
    elif environment.get("XDG_CONFIG_HOME"):
        folder = Path(environment["XDG_CONFIG_HOME"])
    else:
        folder = home / "Library/Application Support" if sys.platform == "darwin" else home / ".config"
    return folder / "ltxkit" / "config.ini"


def read_config(path: Path) -> dict[str, str]:
    """The values of the config file by their keys; relative paths count from its folder.

    Raises:
        ConfigError: it is no such file, or has a section or key that does not exist.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        reason = " ".join(reason_of(error).split())
        raise ConfigError(f"got {path}, which cannot be read ({reason}); expected an INI file; correct it") from error
    known = (*(role.key for role in ROLES), COMFYUI)
    values: dict[str, str] = {}
    for section in parser.sections():
        if section != _SECTION:
            raise ConfigError(f"got the section [{section}] in {path}; expected [{_SECTION}]; rename it")
        for key, value in parser.items(section):
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
                raise ConfigError(
                    f"got the key {shown(key)} in {path}; expected one of {', '.join(known)}; did you mean {near}?"
                )
            if value.strip():
                values[key] = value.strip()
    return values


# ------------------------------------------------------------------------------------------------------------ searching


class Places:
    """The places of one run."""

    def __init__(self, models: Path | None = None, environment: Mapping[str, str] = os.environ) -> None:
        """models: the value of --models, which takes the place of ComfyUI's folders and of the cache."""
        self._models, self._environment = models, environment
        self._file = config_file(environment)
        self._config = read_config(self._file)

    def find(self, role: Role, said: Path | str | None, *, beside: Path | None = None) -> Found | None:
        """The file of a role: the one that is `said`, or the first place's.

        beside: a file in whose folder to look before the folders that are searched.

        Raises:
            ConfigError: several; the message lists them. CheckpointError: a name that is in no place.
        """
        for text, place in (
            (said, role.option),
            (self._environment.get(role.variable), f"${role.variable}"),
            (self._config.get(role.key), str(self._file)),
        ):
            if text:
                start = self._file.parent if place == str(self._file) else Path()
                return Found(self._named(role, str(text), start, "" if text is said else f" in {place}"), place)
        searched = [("the folder of the model", [beside.parent])] if beside is not None else []
        for place, folders in (*searched, *self._searched(role)):
            there = list(dict.fromkeys(_candidates(folders, role)))
            if len(there) > 1:
                raise ConfigError(
                    f"got {len(there)} files with a {role.what} in {place}; expected one; choose it with "
                    f"{role.option} NAME, for good with ${role.variable} or in {self._file}:\n"
                    + "\n".join(f"  {path.name}  ({path})" for path in there)
                )
            if there:
                return Found(there[0], place)
        return None

    def folders(self) -> tuple[Path, ...]:
        """Every folder that may be searched, for files of all kinds."""
        roles = ROLES
        searched = [folder for role in roles for _, there in self._searched(role) for folder in there]
        named = [
            self._file.parent / in_home(text)
            for role in roles
            for text in (self._environment.get(role.variable), self._config.get(role.key))
            if text and self._models is None
        ]
        of_named = [path if path.is_dir() else path.parent for path in named if path.exists()]
        return tuple(dict.fromkeys([*self._roots(), *searched, *of_named]))

    def need(self, role: Role, said: Path | str | None, *, beside: Path | None = None) -> Found:
        """As `find`. Raises ConfigError also where there is none, with what brings one."""
        found = self.find(role, said, beside=beside)
        if found is not None:
            return found
        looked = ", ".join(str(folder) for folder in self._roots()) or "no folder of ComfyUI"
        small = f", or make clips of moving digits with --model {BUNDLED}" if role is MODEL else ""
        raise ConfigError(
            f"got no {role.what}; expected {role.option} FILE, ${role.variable}, a line in {self._file}, or a file in "
            f"ComfyUI's folders ({looked}) or the Hugging Face cache; bring one with `ltxkit fetch {role.fetch}`{small}"
        )

    def named(self, role: Role, text: str | None) -> Path | None:
        """The file that a recipe names, if it is in a place."""
        try:
            return None if text is None else self._named(role, text, Path(), "")
        except CheckpointError:
            return None

    def _named(self, role: Role, text: str, start: Path, where: str) -> Path:
        """The file that a text names: a path, the bundled model, a release, or the name of a file in a place."""
        path = start / in_home(text)
        if is_there(path) or text == BUNDLED:
            return path if is_there(path) else Path(text)
        published = PUBLISHED.get(text.lower())
        names = {text, Path(text).name} if published is None else {published[0].name}
        if "/" not in text.rstrip("/") or published is not None:
            for _, folders in self._searched(role):
                for there in _listed(folders):
                    if there.name in names or there.stem in names:
                        return there
        raise CheckpointError(
            f"got {shown_path(text)}{where}, which is not there; expected a file or a folder that exists, or the "
            f"name of one in ComfyUI's folders; {_advice(role, text)}"
        )

    def _searched(self, role: Role) -> Iterator[tuple[str, list[Path]]]:
        """(place in words, its folders)."""
        yield "ComfyUI's folders", [folder for root in self._roots() for folder in _folders_of(root, role.folders)]
        if self._models is None:
            yield "the Hugging Face cache", list(_cached(self._environment))

    def _roots(self) -> list[Path]:
        """Folders laid out like ComfyUI's `models`, each once."""
        if self._models is not None:
            return [self._models]
        models = self._environment.get("LTXKIT_MODELS")
        if models:
            return [in_home(models)]
        comfyui = [self._environment.get("COMFYUI_PATH"), self._config.get(COMFYUI)]
        named = [self._file.parent / in_home(text) for text in comfyui if text]
        home = home_folder()
        usual = [home / "ComfyUI", home / "comfy" / "ComfyUI", home / "Documents" / "ComfyUI"]
        pack = [ROOT.parent.parent] if ROOT.parent.name == "custom_nodes" else []
        roots = [Path("models"), *(folder / "models" for folder in (*pack, *named, Path("ComfyUI"), *usual))]
        roots += [folder for folder in named if any((folder / name).is_dir() for name in MODEL.folders)]
        there = {folder.resolve(): folder for folder in reversed(roots) if folder.is_dir()}
        return list(reversed(there.values()))


def _folders_of(root: Path, names: Iterable[str]) -> Iterator[Path]:
    """The folders of these names, under a `models` folder and where ComfyUI's extra_model_paths.yaml says."""
    names = tuple(names)
    yield from (root / name for name in names if (root / name).is_dir())
    extra = root.parent / "extra_model_paths.yaml"
    if not extra.is_file():
        return
    try:
        sections = parse_yaml(extra.read_text(encoding="utf-8-sig"))
    except (ImportError, OSError, ValueError):
        return  # ComfyUI's own file: it says what is wrong with it
    for section in sections.values() if isinstance(sections, dict) else ():
        if isinstance(section, dict):
            base = extra.parent / in_home(str(section.get("base_path", "")))
            for name in names:
                for line in str(section.get(name) or "").splitlines():
                    if line.strip() and is_folder(base / line.strip()):
                        yield base / line.strip()


def _cached(environment: Mapping[str, str]) -> Iterator[Path]:
    """The newest snapshot of every repository in the cache of the Hugging Face hub."""
    home = environment.get("HF_HOME") or str(
        Path(environment.get("XDG_CACHE_HOME") or home_folder() / ".cache") / "huggingface"
    )
    hub = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE") or str(Path(home) / "hub")
    for repository in sorted(in_home(hub).glob("models--*")):
        snapshots = [folder for folder in (repository / "snapshots").glob("*") if folder.is_dir()]
        if snapshots:
            yield max(snapshots, key=lambda folder: folder.stat().st_mtime)


def _listed(folders: Iterable[Path]) -> Iterator[Path]:
    from ..ltx_core.weights.listing import models_in

    seen: set[Path] = set()
    for folder in folders:
        whole = [folder] if (folder / "model_index.json").is_file() else []  # which `models_in` sees from outside
        listed: list[Path] = sorted(models_in(folder))
        for path in (*whole, *listed):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                yield path


def _candidates(folders: Iterable[Path], role: Role) -> Iterator[Path]:
    """The files that hold what a role needs, by their headers; of a pipeline folder, the folder itself."""
    from ..ltx_core.weights.build import open_models
    from ..ltx_core.weights.listing import holds
    from ..ltx_core.weights.text_encoder import holds_encoder

    for path in _listed(folders):
        if path.is_file() and not holds(path, role.part):  # a search of its header, which spares opening it
            continue
        try:
            opened = open_models(path)
            opened.part(role.part)
            if role is TEXT_ENCODER and not holds_encoder(opened):
                continue
        except (LTXKitError, OSError):
            continue  # of another model, or damaged: whoever names it is told
        yield path


def _advice(role: Role, text: str) -> str:
    """What to do about a name that is not there."""
    if text.lower() in PUBLISHED:
        return f"`ltxkit fetch {text.lower()}` brings it"
    if re.match(r"https?:/", text) or re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        near = nearest(text.rsplit("/", 1)[-1])
        return f"files of the Hugging Face hub come with `ltxkit fetch {near[0] if near else role.fetch}`"
    return f"check the name, or bring a {role.what} with `ltxkit fetch {role.fetch}`"

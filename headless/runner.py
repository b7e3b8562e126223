"""Runs workflows without ComfyUI."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..ltx_core.errors import ConfigError, LTXKitError, reason_of
from ..ltx_core.files import check_output
from ..ltx_core.placing.devices import clear_of_memory
from ..ltx_core.progress import Notes, Progress, log_note, silent
from ..nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ..nodes.host import use_host
from ..nodes.widgets import problem_with
from .core_nodes import CORE_NODES, CORE_TITLES
from .core_parts import CORE_PARTS
from .dynamic import as_received, live_inputs
from .exports import read_export
from .host import PlainHost
from .prompt import (
    Classes,
    Prompt,
    check,
    is_link,
    needed_nodes,
    node_label,
    node_title,
    output_nodes,
    set_inputs,
)
from .room import check_room
from .stored_graph import Kinds
from .texts import fill_prefixes

UI = dict[str, Any]


@dataclass(frozen=True)
class RunResult:
    """The outcome of a prompt: `ui` of its output nodes, and the nodes that ran or were reused from the last prompt."""

    ui: dict[str, UI]
    executed: tuple[str, ...]
    cached: tuple[str, ...]


class Runner:
    """Executes prompts in turn; a node whose inputs have not changed since the previous prompt does not run again."""

    def __init__(self, host: PlainHost, classes: Classes) -> None:
        self.host = host
        self.classes = classes
        self._results: dict[str, tuple[tuple[Any, ...], UI]] = {}  # by input signature
        self._texts: dict[str, Any] = {}  # for saved files, from all nodes of a prompt

    def run(self, prompt: Prompt) -> RunResult:
        """Check a prompt and execute what its output nodes need.

        Raises:
            PromptError: it cannot run.
            LTXKitError: a node refused its input; the message names the node.
        """
        with use_host(self.host), torch.inference_mode():
            check(prompt, self.classes)
            order = needed_nodes(prompt, output_nodes(prompt, self.classes, set()))
            check_room(prompt, order)
            signatures = self._signatures(prompt, order)
            # As in ComfyUI, results that this prompt does not use are dropped before new ones need the memory.
            self._results = {key: value for key, value in self._results.items() if key in signatures.values()}
            cached = tuple(node_id for node_id in order if signatures[node_id] in self._results)
            executed = tuple(node_id for node_id in order if node_id not in cached)
            self._texts = {}
            for node_id in executed:
                self._results[signatures[node_id]] = self._execute(prompt, node_id, signatures)
        ui = {node_id: self._results[signatures[node_id]][1] for node_id in order}
        return RunResult({node_id: outcome for node_id, outcome in ui.items() if outcome}, executed, cached)

    def _signatures(self, prompt: Prompt, order: Sequence[str]) -> dict[str, str]:
        """For every node, a hash of its class, its constants and, through its links, everything upstream."""
        signatures: dict[str, str] = {}
        for node_id in order:
            node = prompt[node_id]
            inputs = {
                name: [signatures[value[0]], value[1]] if is_link(value) else {"constant": value}
                for name, value in sorted(self._declared(node).items())
            }
            with _naming(node_label(prompt, node_id)):
                changed = self._changed(node)
            text = json.dumps([node["class_type"], inputs, changed], sort_keys=True)
            signatures[node_id] = hashlib.sha256(text.encode()).hexdigest()
        return signatures

    def _changed(self, node: dict[str, Any]) -> Any:
        """IS_CHANGED of a node; a NaN, which requests a run every time, becomes a value that never recurs."""
        is_changed = getattr(self.classes[node["class_type"]], "IS_CHANGED", None)
        if is_changed is None:
            return None
        given = self._declared(node)
        constants = {name: None if is_link(value) else value for name, value in given.items()}
        value = is_changed(**as_received(self.classes[node["class_type"]], constants))
        return uuid.uuid4().hex if value != value else value

    def _declared(self, node: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a node that its class has, by dotted name. As in ComfyUI the others are dropped: front ends
        export, for example, the button of Load Image as `upload` and the player of Load Video as `video-preview`."""
        declared = live_inputs(self.classes[node["class_type"]], node["inputs"])
        return {name: value for name, value in node["inputs"].items() if name in declared}

    def _execute(self, prompt: Prompt, node_id: str, signatures: dict[str, str]) -> tuple[tuple[Any, ...], UI]:
        node = prompt[node_id]
        node_class: Any = self.classes[node["class_type"]]
        inputs = {
            name: self._results[signatures[value[0]]][0][value[1]] if is_link(value) else value
            for name, value in self._declared(node).items()
        }
        label = node_label(prompt, node_id)
        _check_received(node, node_class, inputs, label)
        inputs = as_received(node_class, inputs)
        hidden = {"PROMPT": prompt, "UNIQUE_ID": node_id, "EXTRA_PNGINFO": self._texts}
        inputs.update({name: hidden.get(kind) for name, kind in node_class.INPUT_TYPES().get("hidden", {}).items()})
        self.host.running = node_title(prompt, node_id)
        with _naming(label), clear_of_memory("this node"):
            returned = getattr(node_class(), node_class.FUNCTION)(**inputs)
        if isinstance(returned, dict):
            return tuple(returned.get("result", ())), returned.get("ui", {})
        return tuple(returned), {}


def _check_received(node: dict[str, Any], node_class: Any, inputs: dict[str, Any], label: str) -> None:
    """Raises ConfigError for a value that has come through a link and that the input could not have as a constant."""
    for name, spec in live_inputs(node_class, node["inputs"]).items():
        if name in inputs and is_link(node["inputs"][name]) and spec.type != "COMBO":
            problem = problem_with(name, inputs[name], spec)
            if problem:
                raise ConfigError(f"{label}: {problem}; change the node that it is linked to")


class NodeError(RuntimeError):
    """A node failed in a way that has no sentence; the message names the node and what it raised."""


@contextmanager
def _naming(label: str) -> Generator[None]:
    """Inside, every error gets the name of the node in which it arises."""
    try:
        yield
    except LTXKitError as error:
        raise type(error)(f"{label}: {error}") from error
    except OSError as error:
        if error.errno is None:  # not the disk: Pillow says so of a damaged picture
            raise ConfigError(
                f"{label}: got a file that cannot be read ({reason_of(error)}); expected another; check it"
            ) from error
        named = f": {error.filename}" if error.filename is not None else ""
        raise OSError(error.errno, f"{label}: {error.strerror}{named}") from error
    except Exception as error:
        raise NodeError(f"{label}: {type(error).__name__}: {error}") from error


def run_workflow(
    workflow: Path,
    *,
    models: Path,
    input_folder: Path,
    output_folder: Path,
    assignments: Sequence[str] = (),
    copy: bool = False,
    progress: Progress = silent,
    notes: Notes = log_note,
) -> list[Path]:
    """Execute a workflow in any form in which ComfyUI saves or exports it, and return the files that it saved.

    Args:
        workflow: a file (see `read_export`), or the name of a bundled workflow.
        models: a folder laid out like ComfyUI's `models`.
        input_folder, output_folder: where loading nodes read, and saving nodes write; paths outside are refused.
        assignments: see `set_inputs`.
        copy: weights are read into memory, and not mapped from their files.

    Raises:
        LTXKitError: the file has no workflow, it has problems (the message names all), or a node refused its input.
    """
    check_output(output_folder, folder=True)
    host = PlainHost(models, input_folder, output_folder, copy=copy, progress=progress, notes=notes)
    classes = all_nodes()
    with use_host(host):
        export = read_export(workflow, known_kinds(classes))
        prompt = fill_prefixes(set_inputs(export.prompt, assignments, classes), export.named)
    if export.left_out and not _saves(prompt, classes):
        titles = ", ".join(f'"{title}"' for title in export.left_out)
        raise ConfigError(
            f"got {workflow}, of which nothing that saves or shows remains without the muted and bypassed nodes "
            f"({titles}); expected a node such as Save Video; unmute it in ComfyUI"
        )
    result = Runner(host, classes).run(prompt)
    entries = [entry for ui in result.ui.values() for files_of_kind in ui.values() for entry in files_of_kind]
    files = [entry for entry in entries if isinstance(entry, dict)]
    return [host.folder(entry["type"]) / entry["subfolder"] / entry["filename"] for entry in files]


def _saves(prompt: Prompt, classes: Classes) -> bool:
    """Whether a node is left that saves or shows something, or is unknown."""
    found = [classes.get(node["class_type"]) for node in prompt.values()]
    return any(each is None or getattr(each, "OUTPUT_NODE", False) for each in found)


def all_nodes() -> dict[str, type]:
    """Every class that a prompt may name here: the stand-ins for core nodes, and ours."""
    return {**CORE_NODES, **CORE_PARTS, **NODE_CLASS_MAPPINGS}


def known_kinds(classes: Classes) -> Kinds:
    """What the editor knows of these classes."""
    return Kinds(classes, {**CORE_TITLES, **NODE_DISPLAY_NAME_MAPPINGS})

"""What nodes need from the program around them: model folders, progress, a device to run on, text on the node.

`NodeHost` is the protocol and `ComfyUIHost` its implementation for ComfyUI; `ltxkit run` has its own
(`headless/host.py`). Beside it, `patcher.py` has our part of ComfyUI's memory management, and `launch.py` reads its
launch flags. No other file of LTXKit knows ComfyUI, whose modules are imported only inside functions.
"""

# Type checks run where ComfyUI's modules are not installed.
# pyright: reportMissingImports=false

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..ltx_core.errors import UnsupportedError, printable
from ..ltx_core.kernels.cards import Capabilities
from ..ltx_core.progress import Progress, ProgressEvent, log_note
from ..ltx_core.sampling.preview import LinearPreview, principal_preview
from ..ltx_core.weights.layouts import PartName
from .launch import Storage, storage_of
from .pictures import Pace, animation
from .templates import ROOT, TEMPLATES

if TYPE_CHECKING:
    from PIL.Image import Image

    _CorePreview = tuple[str, Image, int]  # format, picture, longest side


class NodeHost(Protocol):
    """The services that a node may request from the program that runs it."""

    def model_folders(self, kind: str) -> list[Path]:
        """Folders with models of a kind, by ComfyUI's names ("checkpoints", "loras"), in search order."""
        ...

    def tokenizers(self) -> list[Path]:
        """T5 tokenizer files that come with the host."""
        ...

    def progress(self, preview: Callable[[], LinearPreview] | None = None) -> Progress:
        """A callback for one run of one node; it also raises the host's own exception when the user has cancelled.

        preview: makes the pictures of the latent; called once, if the host shows any.
        """
        ...

    def say(self, text: str) -> None:
        """Show a line on the node that is running."""
        ...

    def listening(self) -> AbstractContextManager[list[str]]:
        """Inside, what is said gathers in the yielded list; it stays empty if the host has already printed it."""
        ...

    def place(
        self, module: nn.Module, *, memory_required: int = 0, resident_blocks: int | None = None
    ) -> AbstractContextManager[torch.device]:
        """Make a module usable on the yielded device.

        memory_required: bytes that the work needs in addition to the module's weights.
        resident_blocks: how many of its blocks stay on the device while the others are streamed; None: the host
            chooses. A module without blocks is placed whole.
        """
        ...

    def release(self, module: nn.Module) -> None:
        """Take a module's weights off the device now, even if nothing else needs the memory."""
        ...

    def make_room(self) -> None:
        """Take everything off the devices, for another process."""
        ...

    def spare_memory(self, module: nn.Module) -> int | None:
        """Bytes that work with `module` may take on its device in addition to the weights; None: not limited."""
        ...

    @property
    def bfloat16(self) -> bool:
        """Whether models compute in bfloat16 where they are placed."""
        ...

    @property
    def input_folder(self) -> Path:
        """The folder of files that nodes load."""
        ...

    @property
    def output_folder(self) -> Path:
        """The folder of results, and of files that must survive a restart."""
        ...

    def video(self, path: Path) -> Any:
        """A VIDEO whose file is read only when its frames are needed."""
        ...

    @property
    def output_device(self) -> torch.device:
        """The device for tensors that leave a node."""
        ...

    @property
    def output_dtype(self) -> torch.dtype:
        """The type of pictures, latents and prompts that leave a node."""
        ...

    def recognise(self, outputs: tuple[Any, ...]) -> None:
        """Let the program's caches know the models among the outputs of a node."""
        ...

    def launched_with(self, part: PartName) -> Storage:
        """How the program was told to hold the weights of a part; what a widget says comes first."""
        ...


_chosen: ContextVar[NodeHost | None] = ContextVar("ltxkit_host", default=None)


def host() -> NodeHost:
    """The host of the node that is running: the chosen one, otherwise the ComfyUI that has loaded this pack."""
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    if "folder_paths" in sys.modules:
        return _comfyui()
    raise UnsupportedError("got a node outside ComfyUI; expected a host; use `ltxkit run`, or `with use_host(...)`")


@functools.cache
def _comfyui() -> ComfyUIHost:
    return ComfyUIHost()


@contextmanager
def use_host(chosen: NodeHost) -> Generator[None]:
    """Inside, `chosen` is the host of the nodes."""
    token = _chosen.set(chosen)
    try:
        yield
    finally:
        _chosen.reset(token)


class ComfyUIHost:
    """The ComfyUI process that has loaded this pack."""

    def __init__(self) -> None:
        self._said: list[str] = []  # by the node that is running

    def model_folders(self, kind: str) -> list[Path]:
        import folder_paths

        if kind in folder_paths.folder_names_and_paths:
            folders = [Path(folder) for folder in folder_paths.get_folder_paths(kind)]
        else:  # some supported versions of ComfyUI do not have `latent_upscale_models`
            folders = [Path(folder_paths.models_dir) / kind]
        return [folder for folder in folders if folder.is_dir()]

    def tokenizers(self) -> list[Path]:
        import folder_paths

        core = Path(str(folder_paths.__file__)).parent
        shipped = core / "comfy/text_encoders/t5_tokenizer/tokenizer.json"
        return [shipped] if shipped.is_file() else []

    def progress(self, preview: Callable[[], LinearPreview] | None = None) -> Progress:
        import comfy.utils
        from comfy import model_management

        bar: Any = None
        pictures = _comfy_pictures(preview)

        def report(event: ProgressEvent) -> None:
            nonlocal bar
            model_management.throw_exception_if_processing_interrupted()
            if bar is None:
                bar = comfy.utils.ProgressBar(event.total)
            picture = None if event.denoised is None else pictures(event.denoised, event.step == event.total)
            if event.picture is not None:
                picture = _shown(event.picture)
            bar.update_absolute(event.step, event.total, picture)

        return report

    def say(self, text: str) -> None:
        log_note(text)
        text = printable(text)
        server = _server()
        self._said.append(text)
        node = getattr(server, "last_node_id", None)
        if server is None or node is None:
            return
        so_far = "\n".join(self._said)  # a node shows one text: a new one replaces the last
        if server.client_id in _our_browsers:
            server.send_sync("ltxkit.said", {"node": node, "text": so_far}, server.client_id)
        elif hasattr(server, "send_progress_text"):  # which later front ends clear when the job ends
            # Older front ends, 1.27 of ComfyUI 0.3.64 among them, put this text into the page as HTML, later ones as
            # text: names from files must be markup in none.
            server.send_progress_text(so_far.replace("<", "‹").replace(">", "›"), node)

    @contextmanager
    def listening(self) -> Generator[list[str]]:
        self._said = said = []
        unknown = _unknown_inputs.get(getattr(_server(), "last_node_id", None) or "")
        if unknown:
            self.say(unknown)
        try:
            yield said
        finally:
            self._said = []

    @contextmanager
    def place(
        self, module: nn.Module, *, memory_required: int = 0, resident_blocks: int | None = None
    ) -> Generator[torch.device]:
        from .patcher import placed

        with placed(module, memory_required, resident_blocks, self.say) as device:
            yield device

    def release(self, module: nn.Module) -> None:
        from .patcher import release

        release(module)

    def make_room(self) -> None:
        from comfy import model_management

        model_management.unload_all_models()
        model_management.soft_empty_cache()

    def spare_memory(self, module: nn.Module) -> int | None:
        from .patcher import spare_memory

        return spare_memory(module)

    @property
    def bfloat16(self) -> bool:
        from comfy import model_management

        return Capabilities.of(model_management.get_torch_device()).bfloat16

    @property
    def input_folder(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_input_directory())

    @property
    def output_folder(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_output_directory())

    def video(self, path: Path) -> Any:
        from comfy_api.input_impl import VideoFromFile

        return VideoFromFile(str(path))

    @property
    def output_device(self) -> torch.device:
        from comfy import model_management

        return model_management.intermediate_device()

    @property
    def output_dtype(self) -> torch.dtype:
        from comfy import model_management

        # `--fp16-intermediates`; earlier versions of ComfyUI do not have it
        return getattr(model_management, "intermediate_dtype", lambda: torch.float32)()

    def recognise(self, outputs: tuple[Any, ...]) -> None:
        from .patcher import patcher_of

        for output in outputs:
            module = getattr(output, "module", output)
            if isinstance(module, nn.Module):
                patcher_of(module)

    def launched_with(self, part: PartName) -> Storage:
        return storage_of(part)


def _comfy_pictures(preview: Callable[[], LinearPreview] | None) -> Callable[[Tensor, bool], _CorePreview | None]:
    """What sends the pictures of a latent: all frames as an animation to our code in the browser, or else the first
    frame in the form of ComfyUI's ProgressBar."""
    from comfy.cli_args import LatentPreviewMethod, args

    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return lambda denoised, last: None  # noqa: ARG005
    picture = None if preview is None else preview()
    pace = Pace()

    def show(denoised: Tensor, last: bool) -> _CorePreview | None:
        if not (last or pace.due()):
            return None
        with pace.work():
            return _shown(principal_preview(denoised)[None] if picture is None else picture(denoised))

    return show


def _shown(frames: Tensor) -> _CorePreview | None:
    """Frames (f, h, w, 3) uint8 as an animation for our code in the browser; or the first one in ComfyUI's form."""
    import latent_preview
    from PIL import Image

    server = _server()
    client = getattr(server, "client_id", None)
    if server is None or client not in _our_browsers:
        return "JPEG", Image.fromarray(frames[0].numpy()), latent_preview.MAX_PREVIEW_RESOLUTION
    message = {"node": server.last_node_id, "image": animation(frames)}
    server.send_sync("ltxkit.preview", message, client)
    return None


def _server() -> Any:
    """The running PromptServer; None where ComfyUI's modules are used without it."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


# The browsers in which our front-end code runs, by ComfyUI's client id.
_our_browsers: set[str] = set()


# What a node of the last prompt has to say of inputs that it does not have, by its id.
_unknown_inputs: dict[str, str] = {}


def _note_unknown_inputs(request: dict[str, Any]) -> dict[str, Any]:
    """Remember inputs of our nodes in a prompt that this version does not have; ComfyUI drops them without a word."""
    _unknown_inputs.clear()
    prompt = request.get("prompt")
    registered = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    for node_id, node in prompt.items() if isinstance(prompt, dict) else ():
        unknown = _unknown_names(node, registered) if isinstance(node, dict) else []
        if unknown:
            _unknown_inputs[node_id] = (
                f"This graph sets {', '.join(unknown)}, which this version of LTXKit does not know: without effect. "
                "It may come from a later version; update LTXKit."
            )
    return request


def _unknown_names(node: dict[str, Any], registered: dict[str, Any]) -> list[str]:
    kind, inputs = node.get("class_type"), node.get("inputs")
    run: Callable[..., Any] | None = getattr(registered.get(str(kind)), "run", None)
    if run is None or not str(kind).startswith("LTXKit") or not isinstance(inputs, dict):
        return []
    return [name for name in inputs if name not in signature(run).parameters]


def add_routes() -> None:
    """Let our front-end code say that it is there, read prompts for what is not known here, and let links to templates
    by their names of before work. Without ComfyUI's server this has nothing to do."""
    server = _server()
    if server is None:
        return
    from aiohttp import web

    server.add_on_prompt_handler(_note_unknown_inputs)

    @server.routes.post("/ltxkit/browsers")
    async def is_there(request: Any) -> Any:
        _our_browsers.add(str((await request.json()).get("client_id")))
        return web.Response()

    def leads_to(name: str) -> Any:
        async def redirect(request: Any) -> Any:
            raise web.HTTPFound(f"{request.path.rpartition('/')[0]}/{name.replace(' ', '%20')}")

        return redirect

    for short, name in TEMPLATES.items():
        for suffix in ("json", "jpg"):
            path = f"/workflow_templates/{ROOT.name}/{short}.{suffix}"
            server.routes.get(path)(leads_to(f"{name}.{suffix}"))


def has_core_node(node_id: str) -> bool:
    """Whether ComfyUI, or a pack in it, has a node of this id."""
    return node_id in getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})


def core_node(node_id: str, **inputs: Any) -> tuple[Any, ...]:
    """The outputs of one of ComfyUI's own nodes. Raises UnsupportedError where there is none of this id."""
    if not has_core_node(node_id):
        raise UnsupportedError(
            f"got a node that needs ComfyUI's {node_id}, which is not here; expected a ComfyUI that has it; run the "
            "graph there, or migrate it (`ltxkit migrate`)"
        )
    node_class: Any = sys.modules["nodes"].NODE_CLASS_MAPPINGS[node_id]
    if hasattr(node_class, "define_schema"):
        return tuple(node_class.execute(**inputs).result)
    return tuple(getattr(node_class(), node_class.FUNCTION)(**inputs))


def register_replacements(replacements: Sequence[Any]) -> None:
    """Tell ComfyUI what to put in the place of old node ids: from core 0.33 on, older ones have nothing like it.

    A prompt may lack optional inputs, which core's own replacing does not expect: they are added first.
    """
    server: Any = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    manager = getattr(server, "node_replace_manager", None)
    if manager is None:
        return
    try:
        from comfy_api.latest import io
    except ImportError:
        return
    if not hasattr(io, "NodeReplace"):
        return
    for each in replacements:
        names = {"new_node_id": each.new, "old_node_id": each.old, "old_widget_ids": list(each.widgets)}
        manager.register(io.NodeReplace(**names, input_mapping=each.input_mapping()))
    by_old = {each.old: each for each in replacements}

    def complete(body: dict[str, Any]) -> dict[str, Any]:
        prompt = body.get("prompt")
        for node in prompt.values() if isinstance(prompt, dict) else ():
            old = by_old.get(node.get("class_type", "")) if isinstance(node, dict) else None
            if old is not None and not has_core_node(old.old) and isinstance(node.get("inputs"), dict):
                node.setdefault("_meta", {})
                for name, default in old.optional.items():
                    node["inputs"].setdefault(name, default)
        return body

    server.add_on_prompt_handler(complete)

"""What nodes need from the program around them: model folders, progress, a device to run on, text on the node.

`NodeHost` is the protocol and `ComfyUIHost` its implementation for ComfyUI; `ltxkit run` has its own
(`headless/host.py`). No other file of LTXKit knows ComfyUI, whose modules are imported only in the functions below.
"""

# Type checks run where ComfyUI's modules are not installed.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..ltx_core.budget.weights import Weights, resident_blocks, weight_bytes
from ..ltx_core.errors import UnsupportedError
from ..ltx_core.models.text_encoder import StackedT5
from ..ltx_core.models.video_vae import Decoder, Encoder, VideoVAE
from ..ltx_core.placing.copies import DeviceCopies
from ..ltx_core.placing.streaming import streamed
from ..ltx_core.progress import Progress, ProgressEvent, log_note
from ..ltx_core.sampling.preview import LinearPreview, principal_preview
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
        import comfy

        shipped = [Path(root) / "text_encoders" / "t5_tokenizer" / "tokenizer.json" for root in comfy.__path__]
        return [path for path in shipped if path.is_file()]

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
            bar.update_absolute(event.step, event.total, picture)

        return report

    def say(self, text: str) -> None:
        from server import PromptServer

        log_note(text)
        server = getattr(PromptServer, "instance", None)
        self._said.append(text)
        node = getattr(server, "last_node_id", None)
        if server is None or node is None:
            return
        so_far = "\n".join(self._said)  # a node shows one text: a new one replaces the last
        if server.client_id in _our_browsers:
            server.send_sync("ltxkit.said", {"node": node, "text": so_far}, server.client_id)
        elif hasattr(server, "send_progress_text"):  # which later front ends clear when the job ends
            server.send_progress_text(so_far, node)

    @contextmanager
    def listening(self) -> Generator[list[str]]:
        self._said = said = []
        try:
            yield said
        finally:
            self._said = []

    @contextmanager
    def place(
        self, module: nn.Module, *, memory_required: int = 0, resident_blocks: int | None = None
    ) -> Generator[torch.device]:
        from comfy import model_management

        device = _comfy_device(module)
        resident = _comfy_resident_blocks(module, memory_required, resident_blocks)
        if resident is None:
            model_management.load_models_gpu([_comfy_patcher(module)], memory_required=memory_required)
            yield device
            return
        # Streamed weights are ours, and gone when the `with` block ends; core only frees memory for them.
        self.release(module)
        model_management.free_memory(weight_bytes(module) + memory_required, device)
        with streamed(module, device, resident):
            yield device

    def release(self, module: nn.Module) -> None:
        from comfy import model_management

        _comfy_patcher(module).detach()
        model_management.soft_empty_cache()

    def make_room(self) -> None:
        from comfy import model_management

        model_management.unload_all_models()
        model_management.soft_empty_cache()

    def spare_memory(self, module: nn.Module) -> int | None:
        available = _comfy_memory(_comfy_device(module))
        return None if available is None else max(available - weight_bytes(module), 1)

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


def _comfy_pictures(preview: Callable[[], LinearPreview] | None) -> Callable[[Tensor, bool], _CorePreview | None]:
    """What sends the pictures of a latent: all frames as an animation to our code in the browser, or else the first
    frame in the form of ComfyUI's ProgressBar."""
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args
    from PIL import Image
    from server import PromptServer

    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return lambda denoised, last: None  # noqa: ARG005
    picture = None if preview is None else preview()
    pace = Pace()

    def show(denoised: Tensor, last: bool) -> _CorePreview | None:
        if not (last or pace.due()):
            return None
        with pace.work():
            frames = principal_preview(denoised)[None] if picture is None else picture(denoised)
            server = getattr(PromptServer, "instance", None)
            client = getattr(server, "client_id", None)
            if server is None or client not in _our_browsers:
                return "JPEG", Image.fromarray(frames[0].numpy()), latent_preview.MAX_PREVIEW_RESOLUTION
            message = {"node": server.last_node_id, "image": animation(frames)}
            server.send_sync("ltxkit.preview", message, client)
            return None

    return show


# The browsers in which our front-end code runs, by ComfyUI's client id.
_our_browsers: set[str] = set()


def add_routes() -> None:
    """Let our front-end code say that it is there, and let links to templates by their names of before work. Without
    ComfyUI's server this has nothing to do."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is None:
        return
    from aiohttp import web

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


class _Handle(nn.Module):
    """ComfyUI's "model": it carries core's bookkeeping, and has no tensors that core could move."""


def _handle(module: nn.Module) -> _Handle:
    """Core's log names the class of what it loads: "Requested to load LTXKitVideoVAE"."""
    return type(f"LTXKit{type(module).__name__}", (_Handle,), {})()


def _comfy_patcher(module: nn.Module) -> Any:
    """The ModelPatcher through which ComfyUI counts, loads and unloads `module`; created once and stored on the module.

    The patcher has a weak reference to the module: both are freed when the graph drops the model.
    """
    patcher = module.__dict__.get("_ltxkit_patcher")
    if patcher is None:
        patcher = _whole_model_patcher()(
            _handle(module), _comfy_device(module), torch.device("cpu"), weight_bytes(module) or 1
        )
        patcher.module = weakref.ref(module)
        module.__dict__["_ltxkit_patcher"] = patcher
    return patcher


def _comfy_device(module: nn.Module) -> torch.device:
    from comfy import model_management

    if isinstance(module, VideoVAE | Encoder | Decoder):
        return model_management.vae_device()
    if isinstance(module, StackedT5):
        return model_management.text_encoder_device()
    return model_management.get_torch_device()


def _comfy_memory(device: torch.device) -> int | None:
    """Bytes that one model and its work may take on a device; None for main memory, which is not counted."""
    from comfy import model_management

    if device == torch.device("cpu"):
        return None
    # Core unloads its models when the memory is requested.
    models = [model for model in model_management.current_loaded_models if model.device == device]
    free = model_management.get_free_memory(device) + sum(model.model_loaded_memory() for model in models)
    return int(free - model_management.extra_reserved_memory())


def _comfy_resident_blocks(module: nn.Module, memory_required: int, chosen: int | None) -> int | None:
    """How many blocks stay on the device while the others are streamed; None: core loads the whole module."""
    from comfy import model_management

    weights = Weights.of(module)
    if chosen is not None:
        return chosen if chosen < len(weights.blocks) else None
    available = _comfy_memory(_comfy_device(module))
    if available is None:
        return None
    if model_management.vram_state == model_management.VRAMState.NO_VRAM:
        return 0 if weights.blocks else None
    reserved = model_management.extra_reserved_memory()  # already subtracted from `available`
    work = max(memory_required, int(model_management.minimum_inference_memory() - reserved))
    return resident_blocks(weights, available - work)


@functools.cache
def _whole_model_patcher() -> type:
    """A ModelPatcher that loads all of a module or nothing.

    Core's own loads layer by layer and relies on layers of `comfy.ops`, which fetch missing weights; with plain modules
    it would leave part of the weights behind. A request to free a part frees nothing, and core then detaches the whole.
    """
    from comfy.model_patcher import ModelPatcher

    class WholeModelPatcher(ModelPatcher):
        module: weakref.ref[nn.Module]
        copies: DeviceCopies | None = None

        def partially_load(self, device_to: torch.device, *_: Any, **__: Any) -> int:
            module = self.module()
            if self.copies is not None or module is None:
                return 0
            self.copies = DeviceCopies(module, device_to)
            self.model.device = device_to
            self.model.model_loaded_weight_memory = self.size
            return self.size

        def partially_unload(self, *_: Any, **__: Any) -> int:
            return 0

        def detach(self, unpatch_all: bool = True) -> Any:
            if unpatch_all and self.copies is not None:
                self.copies.drop()
                self.copies = None
                self.model.device = self.offload_device
                self.model.model_loaded_weight_memory = 0
            return self.model

    return WholeModelPatcher

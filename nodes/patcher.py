"""Our models in ComfyUI's memory management: what `ComfyUIHost` places goes through this file.

Core moves whole models for our loaders: it counts them, makes room for them, and takes them off the device when another
model needs the memory. Blocks that are streamed are ours, and core only makes room for them.
"""

# Type checks run where ComfyUI's modules are not installed.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

import functools
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..ltx_core.budget.unpacked import room_for_unpacked, unpackable, unpacked_blocks, unpacked_bytes, unpacked_dtype
from ..ltx_core.budget.weights import Weights, resident_blocks, weight_bytes
from ..ltx_core.kernels.cards import card_kernels
from ..ltx_core.main_memory import check_main_memory
from ..ltx_core.models.blocks import block_stack
from ..ltx_core.models.text_encoder import T5EncoderModel
from ..ltx_core.models.transformer import LTXTransformer
from ..ltx_core.models.upsampler import LatentUpsampler
from ..ltx_core.models.video_vae import Decoder, Encoder, VideoVAE
from ..ltx_core.placing.compiling import (
    check_streaming,
    compiled,
    compiles,
    is_to_be_compiled,
    is_to_be_recorded,
    no_compiler,
)
from ..ltx_core.placing.computing import computing_on
from ..ltx_core.placing.copies import DeviceCopies
from ..ltx_core.placing.devices import pooled
from ..ltx_core.placing.streaming import DirectTransfers, streamed
from ..ltx_core.placing.unpacking import kept_unpacked
from ..ltx_core.progress import Notes, log_note
from . import launch

# What a model is called in core's log ("Requested to load ...").
NAMES: dict[type, str] = {
    LTXTransformer: "LTXKitTransformer",
    T5EncoderModel: "LTXKitTextEncoder",
    VideoVAE: "LTXKitVAE",
    Encoder: "LTXKitVAEEncoder",
    Decoder: "LTXKitVAEDecoder",
    LatentUpsampler: "LTXKitUpscaler",
}


@contextmanager
def placed(
    module: nn.Module, memory_required: int, chosen: int | None, say: Notes = log_note
) -> Generator[torch.device]:
    """A module on the device that ComfyUI gives its kind: whole, through core, or with streamed blocks.

    Inside, core's Cancel is heard at every block, and a request to unload is honoured at the end of the `with` block: a
    model cannot leave the device in the middle of its work.

    memory_required: bytes of the work in addition to the weights. chosen: how many blocks stay on the device; None:
    as many as fit. say: hears why a model that is to be compiled is not.
    """
    from comfy import model_management

    device = device_for(module)
    if device.type == "cpu":
        check_main_memory(memory_required, "the work of this node")
    resident = _resident(module, memory_required, chosen)
    asked = is_to_be_compiled(module)
    if asked:
        check_streaming(module, resident)
    patcher = patcher_of(module)
    can_compile = asked and no_compiler(device) is None
    at_work = computing_on(device, module, memory_required=memory_required, resident=resident, compiles=can_compile)
    records = is_to_be_recorded(module)
    in_blocks = compiled(module, device, say, cuda_graphs=records) if asked else nullcontext()
    if not (records and compiles(module)):  # work of other models is not in there; core takes it for free memory
        memory_required += pooled(device)
    with _cancellable(module), at_work, in_blocks:
        if resident is None:
            count, dtype = _unpacked(module, memory_required)
            beside = sum(unpacked_bytes(module, dtype)[:count])
            model_management.load_models_gpu([patcher], memory_required=memory_required + beside)
            with patcher.at_work(), kept_unpacked(module, count, dtype):
                yield device
            return
        take_off(module)
        # Exactly what streaming takes: models beside it stay where they are.
        needed = Weights.of(module).on_device(resident) + memory_required + model_management.extra_reserved_memory()
        model_management.free_memory(needed, device)
        transfers = None if launch.streams_beside() else DirectTransfers(device)
        with streamed(module, device, resident, transfers=transfers, pin=launch.may_pin()):
            yield device


def release(module: nn.Module) -> None:
    """Take a module off its device, unless ComfyUI was told to keep models there (`--highvram`, `--gpu-only`)."""
    from comfy import model_management

    if model_management.vram_state != model_management.VRAMState.HIGH_VRAM:
        take_off(module)


def take_off(module: nn.Module) -> None:
    """Take a module off its device."""
    from comfy import model_management

    patcher = patcher_of(module)
    if patcher.loaded_size():
        patcher.detach()
        model_management.soft_empty_cache()


def spare_memory(module: nn.Module) -> int | None:
    """Bytes that work with `module` may take on its device in addition to the weights; None: not limited."""
    available = _memory(device_for(module))
    return None if available is None else max(available - weight_bytes(module), 1)


def device_for(module: nn.Module) -> torch.device:
    """The device that ComfyUI gives a module of this kind."""
    from comfy import model_management

    if isinstance(module, VideoVAE | Encoder | Decoder):
        return model_management.vae_device()
    if isinstance(module, T5EncoderModel):
        return model_management.text_encoder_device()
    return model_management.get_torch_device()


def patcher_of(module: nn.Module) -> Any:
    """The ModelPatcher through which ComfyUI counts, loads and unloads `module`; created once per device.

    It is the module's attribute `patcher`, by which core's RAM cache recognises models among the outputs of nodes. The
    patcher has a weak reference to the module: both are freed when the graph drops the model.
    """
    patcher = module.__dict__.get("patcher")
    device = device_for(module)
    if patcher is not None and patcher.load_device != device:  # another default device since
        patcher.detach()
        patcher = None
    if patcher is None:
        handle = _handle_class(_name(module))()
        patcher = _whole_model_patcher()(handle, device, torch.device("cpu"), weight_bytes(module) or 1)
        patcher.module = weakref.ref(module)
        module.__dict__["patcher"] = patcher
    return patcher


def _memory(device: torch.device) -> int | None:
    """Bytes that one model and its work may take on a device; None for main memory, which is not counted."""
    from comfy import model_management

    if device == torch.device("cpu"):
        return None
    # Core unloads its models when the memory is requested.
    models = [model for model in model_management.current_loaded_models if model.device == device]
    free = model_management.get_free_memory(device) + sum(model.model_loaded_memory() for model in models)
    return int(free - model_management.extra_reserved_memory())


def _resident(module: nn.Module, memory_required: int, chosen: int | None) -> int | None:
    """How many blocks stay on the device while the others are streamed; None: core loads the whole module."""
    from comfy import model_management

    weights = Weights.of(module)
    if chosen is not None:
        return chosen if chosen < len(weights.blocks) else None
    available = _memory(device_for(module))
    if available is None:
        return None
    if model_management.vram_state == model_management.VRAMState.NO_VRAM:
        return 0 if weights.blocks else None
    reserved = model_management.extra_reserved_memory()  # already subtracted from `available`
    work = max(memory_required, int(model_management.minimum_inference_memory() - reserved))
    return resident_blocks(weights, available - work)


def _unpacked(module: nn.Module, memory_required: int) -> tuple[int, torch.dtype]:
    """How many blocks of quantized weights stay unpacked during the work, and their dtype: for no model beside it that
    would have to leave."""
    from comfy import model_management

    device = device_for(module)
    if device.type == "cpu" or not any(unpackable(module)):
        return 0, torch.float32
    if model_management.vram_state in (model_management.VRAMState.NO_VRAM, model_management.VRAMState.LOW_VRAM):
        return 0, torch.float32
    total = model_management.get_total_memory(device)
    free = model_management.get_free_memory(device) + patcher_of(module).loaded_size()
    dtype = unpacked_dtype(module, card_kernels(device).kernels)
    required = max(memory_required, int(model_management.minimum_inference_memory()))
    return unpacked_blocks(module, dtype, room_for_unpacked(int(free), int(total), required, module)), dtype


@contextmanager
def _cancellable(module: nn.Module) -> Generator[None]:
    """Inside, core's exception for Cancel is raised before the next block or layer, not only after the next step."""
    from comfy import model_management

    def check(*_: object) -> None:
        model_management.throw_exception_if_processing_interrupted()

    hooks = [part.register_forward_pre_hook(check) for part in _entered(module)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _entered(module: nn.Module) -> Iterator[nn.Module]:
    """The parts that a module's work enters one after the other."""
    stack = block_stack(module)
    if stack is not None:
        for block in stack.blocks:
            yield from stack.entries(block)
        return
    for part in module.modules():
        if next(part.children(), None) is None:
            yield part


def _name(module: nn.Module) -> str:
    return next((name for kind, name in NAMES.items() if isinstance(module, kind)), f"LTXKit{type(module).__name__}")


class _Handle(nn.Module):
    """ComfyUI's "model": it carries core's bookkeeping, and has no tensors that core could move."""


@functools.cache
def _handle_class(name: str) -> type[_Handle]:
    return type(name, (_Handle,), {})


@functools.cache
def _whole_model_patcher() -> type:
    """A ModelPatcher that loads all of a module or nothing.

    Core's own loads layer by layer and relies on layers of `comfy.ops`, which fetch missing weights; with plain modules
    it would leave part of the weights behind. A request to free a part frees nothing, and core then detaches the whole.
    Core's dynamic patchers (`is_dynamic`) are asked for what ours lacks, and give that much of their weights.
    """
    from comfy.model_patcher import ModelPatcher

    class WholeModelPatcher(ModelPatcher):
        module: weakref.ref[nn.Module]
        copies: DeviceCopies | None = None
        working = 0  # `with` blocks that use the module
        wanted_away = False  # core took it off the device in the meantime

        def partially_load(self, device_to: torch.device, *_: Any, **__: Any) -> int:
            module = self.module()
            self.wanted_away = False
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
                self.wanted_away = self.working > 0
                if not self.wanted_away:
                    self.copies.drop()
                    self.copies = None
                    self.model.device = self.offload_device
                    self.model.model_loaded_weight_memory = 0
            return self.model

        @contextmanager
        def at_work(self) -> Generator[None]:
            self.working += 1
            try:
                yield
            finally:
                self.working -= 1
                if self.wanted_away:
                    self.detach()

    return WholeModelPatcher

"""Other implementations with the weights of ours, to be measured beside it: the only module of the package that imports
them, and only when a user asks for one by name.

Each gets the weights that are loaded already, as the same tensors where the device is the CPU, and computes what ours
does: without a second copy of a checkpoint, and with outputs that can be compared. Sources of the arguments:
huggingface/diffusers scripts/convert_ltx_to_diffusers.py, Lightricks/LTX-Video transformer3d.py and
causal_video_autoencoder.py, ComfyUI comfy/ldm/lightricks.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..cache import in_home
from ..config import CheckpointConfig
from ..errors import ConfigError, LTXKitError
from ..models.transformer import LTXTransformer
from ..models.video_vae import VideoVAE
from ..values import shown
from ..weights.diffusers_config import transformer_entries, vae_entries
from ..weights.layouts import TRANSFORMER_FROM_DIFFUSERS, vae_from_diffusers
from ..weights.metadata import format_config
from .inputs import StepInputs
from .protocol import FOREIGN_ERRORS, Run, first_line

TRANSFORMER = "transformer"


class PeerMissingError(Exception):
    """A peer cannot take part; the message says why."""


@dataclass(frozen=True)
class Asked:
    """A peer that the user asks for. path: a checkout of it; None: what is installed."""

    name: str
    path: Path | None = None


class Peer(Protocol):
    """Another implementation. Each method builds its model with the weights of ours, once, and returns what to time.

    Raises PeerMissingError.
    """

    title: str

    def transformer(self, ours: LTXTransformer) -> Any: ...

    def step(self, ours: LTXTransformer, given: StepInputs) -> Run: ...

    def decode(self, ours: VideoVAE, latent: Tensor, timestep: Tensor | None) -> Run: ...

    def encode(self, ours: VideoVAE, pixels: Tensor) -> Run: ...


def parse_peers(text: str) -> list[Asked]:
    """ "diffusers,official=PATH" as the peers that it names.

    Raises:
        ConfigError: a name that is none, twice the same, a folder that does not exist, or one that has no such code.
    """
    asked: list[Asked] = []
    for word in text.split(","):
        name, equals, folder = (part.strip() for part in word.partition("="))
        if name not in PEERS:
            raise ConfigError(
                f"got the peer {shown(name)}; expected some of {', '.join(PEERS)}, with commas between them; "
                "name a checkout as official=FOLDER"
            )
        if name in (each.name for each in asked):
            raise ConfigError(f"got the peer {name} twice; expected it once; remove one")
        path = in_home(folder) if equals else None
        package = _PACKAGES[name]
        if path is not None and not (path / package).is_dir() and not (path / "src" / package).is_dir():
            raise ConfigError(
                f"got {name}={shown(folder)}, which has no folder {package}; expected a checkout of {_SOURCES[name]}; "
                "name its top folder"
            )
        asked.append(Asked(name, path))
    return asked


def open_peer(asked: Asked, device: torch.device) -> Peer:
    """Import a peer.

    Raises:
        PeerMissingError: it is not installed, or cannot be imported.
    """
    if asked.path is not None:
        inside = asked.path / "src"
        folder = str((inside if (inside / _PACKAGES[asked.name]).is_dir() else asked.path).resolve())
        if folder not in sys.path:
            sys.path.append(folder)  # behind all others, and to stay: such code imports more while it works
    elif importlib.util.find_spec(_PACKAGES[asked.name]) is None:
        hint = f"; name a checkout of {_SOURCES[asked.name]}: {asked.name}=FOLDER" if asked.name != "diffusers" else ""
        raise PeerMissingError(f"it is not installed{hint}")
    try:
        return PEERS[asked.name](device)
    except (*FOREIGN_ERRORS, SystemExit) as error:
        raise PeerMissingError(f"it cannot be imported: {first_line(error)}") from error


def _built(build: Callable[[], Any], state: Mapping[str, Tensor], device: torch.device) -> Any:
    """A model of a peer with these weights, without a copy of them on the CPU.

    Raises:
        PeerMissingError: it cannot be built for this config, or has other weights.
    """
    try:
        with torch.device("meta"):
            model: nn.Module = build()
        nn.Module.load_state_dict(model, state, strict=True, assign=True)  # some override it with less
    except LTXKitError:
        raise
    except FOREIGN_ERRORS as error:
        raise PeerMissingError(f"its model does not take these weights: {first_line(error)}") from error
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise PeerMissingError(f"its model has weights that ours lacks: {', '.join(left[:3])}")
    return model.to(device).eval().requires_grad_(False)


def plain_state(model: nn.Module, like: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """The weights of a model, on the CPU or where they are. like: builds the same model without quantization.

    Raises:
        PeerMissingError: some are quantized.
    """
    state = model.state_dict()
    with torch.device("meta"):
        expected = like().state_dict()
    if state.keys() != expected.keys() or any(state[key].shape != expected[key].shape for key in expected):
        raise PeerMissingError("it takes plain weights, and these are quantized")
    return state


def _transformer_state(ours: LTXTransformer) -> dict[str, Tensor]:
    return plain_state(ours, lambda: LTXTransformer(ours.config))


def _vae_config(ours: VideoVAE) -> dict[str, Any]:
    config = CheckpointConfig(transformer=None, vae=ours.config, scheduler=None)
    return json.loads(format_config(config))["vae"]


class _Models:
    """The models that were built, by the part of ours that they are made of: one each, however many sizes are timed."""

    def __init__(self) -> None:
        self._built: dict[int, tuple[nn.Module, Any]] = {}

    def of(self, ours: nn.Module, build: Callable[[], Any]) -> Any:
        if id(ours) not in self._built:
            self._built[id(ours)] = ours, build()
        return self._built[id(ours)][1]


# ----------------------------------------------------------------------------------------------------------- diffusers


class Diffusers:
    """huggingface/diffusers."""

    def __init__(self, device: torch.device) -> None:
        import diffusers
        from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo
        from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel

        self.title = f"diffusers {diffusers.__version__}"
        self._device, self._models = device, _Models()
        self._transformer: Any = LTXVideoTransformer3DModel
        self._vae: Any = AutoencoderKLLTXVideo

    def transformer(self, ours: LTXTransformer) -> Any:
        def build() -> Any:
            entries, names = transformer_entries(ours.config), TRANSFORMER_FROM_DIFFUSERS.inverse()
            state = {names.rename(key) or key: tensor for key, tensor in _transformer_state(ours).items()}
            return _built(lambda: self._transformer.from_config(entries), state, self._device)

        return self._models.of(ours, build)

    def step(self, ours: LTXTransformer, given: StepInputs) -> Run:
        model = self.transformer(ours)
        text, mask = given.padded.to(ours.dtype), given.mask.to(ours.dtype)
        x, timestep = given.x.to(ours.dtype), (given.sigma * 1000).squeeze(-1)

        def run() -> Tensor:
            return model(x, text, timestep, mask, video_coords=given.positions, return_dict=False)[0]

        return run

    def decode(self, ours: VideoVAE, latent: Tensor, timestep: Tensor | None) -> Run:
        model, dtype = self._of_vae(ours), _dtype(ours)
        return lambda: model.decode(latent.to(dtype), timestep, return_dict=False)[0]

    def encode(self, ours: VideoVAE, pixels: Tensor) -> Run:
        model, dtype = self._of_vae(ours), _dtype(ours)
        return lambda: model.encode(pixels.to(dtype)).latent_dist.mode()

    def _of_vae(self, ours: VideoVAE) -> Any:
        def build() -> Any:
            state = plain_state(ours, lambda: VideoVAE(ours.config))
            names, entries = vae_from_diffusers(state).inverse(), vae_entries(ours.config)
            renamed = {names.rename(key) or key: tensor for key, tensor in state.items()}
            return _built(lambda: self._vae.from_config(entries), renamed, self._device)

        return self._models.of(ours, build)


def _dtype(model: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------------ official


class Official:
    """Lightricks/LTX-Video."""

    def __init__(self, device: torch.device) -> None:
        # Others look for the packages that are there: they must have looked before the stand-in below.
        if importlib.util.find_spec("diffusers") is not None:
            importlib.import_module("diffusers.utils")
        stands_in = "imageio" not in sys.modules and importlib.util.find_spec("imageio") is None
        if stands_in:  # it imports imageio, and needs it only to write files
            sys.modules["imageio"] = types.ModuleType("imageio")
        try:
            vae = importlib.import_module("ltx_video.models.autoencoders.causal_video_autoencoder")
            transformer = importlib.import_module("ltx_video.models.transformers.transformer3d")
        finally:
            if stands_in:
                del sys.modules["imageio"]
        self.title = "Lightricks' code"
        self._device, self._models = device, _Models()
        self._transformer: Any = transformer.Transformer3DModel
        self._vae: Any = vae.CausalVideoAutoencoder

    def transformer(self, ours: LTXTransformer) -> Any:
        config = json.loads(format_config(CheckpointConfig(transformer=ours.config, vae=None, scheduler=None)))
        build = lambda: self._transformer.from_config(config[TRANSFORMER])  # noqa: E731
        return self._models.of(ours, lambda: _built(build, _transformer_state(ours), self._device))

    def step(self, ours: LTXTransformer, given: StepInputs) -> Run:
        model = self.transformer(ours)
        text, x, timestep = given.padded.to(ours.dtype), given.x.to(ours.dtype), given.sigma.squeeze(-1)

        def run() -> Tensor:
            return model(
                x,
                indices_grid=given.positions,
                encoder_hidden_states=text,
                encoder_attention_mask=given.mask,
                timestep=timestep,
                return_dict=False,
            )[0]

        return run

    def decode(self, ours: VideoVAE, latent: Tensor, timestep: Tensor | None) -> Run:
        model, dtype, scale = self._of_vae(ours), _dtype(ours), ours.config.scale_factors
        b, _, f, h, w = latent.shape
        shape = (b, 3, (f - 1) * scale.frames + 1, h * scale.height, w * scale.width)
        at = None if timestep is None else timestep.to(dtype)
        return lambda: model.decode(latent.to(dtype), return_dict=False, target_shape=shape, timestep=at)[0]

    def encode(self, ours: VideoVAE, pixels: Tensor) -> Run:
        model, dtype = self._of_vae(ours), _dtype(ours)
        return lambda: model.encode(pixels.to(dtype)).latent_dist.mode()

    def _of_vae(self, ours: VideoVAE) -> Any:
        return self._models.of(
            ours, lambda: _with_statistics(lambda: self._vae.from_config(_vae_config(ours)), ours, self._device)
        )


def _with_statistics(build: Callable[[], Any], ours: VideoVAE, device: torch.device) -> Any:
    """A VAE under our keys. The statistics of latents have other names in some, and are not used: latents are raw."""
    try:
        with torch.device("meta"):
            names = [name for name, _ in build().state_dict().items() if "per_channel_statistics" in name]
    except FOREIGN_ERRORS as error:
        raise PeerMissingError(f"its VAE cannot be built: {first_line(error)}") from error
    state = plain_state(ours, lambda: VideoVAE(ours.config))
    plain = {name: tensor for name, tensor in state.items() if "per_channel_statistics" not in name}
    channels = torch.ones(ours.config.latent_channels, dtype=_dtype(ours))
    return _built(build, {**plain, **dict.fromkeys(names, channels)}, device)


# ------------------------------------------------------------------------------------------------------------- ComfyUI


class ComfyUI:
    """The core of ComfyUI, which pads its decoder by reflection unless it is told what the others do."""

    def __init__(self, device: torch.device) -> None:
        options: Any = importlib.import_module("comfy.cli_args")
        if device.type == "cpu":
            options.args.cpu = True  # it looks for a card when it is imported
        self._operations: Any = importlib.import_module("comfy.ops").disable_weight_init
        self._transformer: Any = importlib.import_module("comfy.ldm.lightricks.model").LTXVModel
        vae: Any = importlib.import_module("comfy.ldm.lightricks.vae.causal_video_autoencoder")
        self._vae: Any = vae.VideoVAE
        version: Any = importlib.import_module("comfyui_version")
        self.title = f"ComfyUI {version.__version__}"
        self._device, self._models = device, _Models()

    def transformer(self, ours: LTXTransformer) -> Any:
        config = ours.config

        def build() -> Any:
            return self._transformer(
                in_channels=config.in_channels,
                cross_attention_dim=config.cross_attention_dim,
                attention_head_dim=config.attention_head_dim,
                num_attention_heads=config.num_attention_heads,
                caption_channels=config.caption_channels,
                num_layers=config.num_layers,
                dtype=ours.dtype,
                device="meta",
                operations=self._operations,
            )

        return self._models.of(ours, lambda: _built(build, _transformer_state(ours), self._device))

    def step(self, ours: LTXTransformer, given: StepInputs) -> Run:
        model = self.transformer(ours)
        frames, height, width = given.grid
        x = given.x.to(ours.dtype).unflatten(1, (frames, height, width)).permute(0, 4, 1, 2, 3).contiguous()
        text, mask, sigma = given.padded.to(ours.dtype), given.mask.long(), given.sigma.to(ours.dtype).flatten()

        def run() -> Tensor:
            velocity = model(x, sigma, text, mask, frame_rate=given.FRAME_RATE, transformer_options={})
            return velocity.permute(0, 2, 3, 4, 1).flatten(1, 3)

        return run

    def decode(self, ours: VideoVAE, latent: Tensor, timestep: Tensor | None) -> Run:
        model, dtype = self._of_vae(ours), _dtype(ours)
        at = None if timestep is None else timestep.to(dtype)
        return lambda: model.decoder(latent.to(dtype), timestep=at)

    def encode(self, ours: VideoVAE, pixels: Tensor) -> Run:
        model, dtype = self._of_vae(ours), _dtype(ours)
        return lambda: torch.chunk(model.encoder(pixels.to(dtype)), 2, dim=1)[0]

    def _of_vae(self, ours: VideoVAE) -> Any:
        padding = {"spatial_padding_mode": "zeros", "decoder_spatial_padding_mode": "zeros"}
        config = _vae_config(ours) | padding
        return self._models.of(ours, lambda: _with_statistics(lambda: self._vae(config=config), ours, self._device))


PEERS: Mapping[str, Callable[[torch.device], Peer]] = {
    "diffusers": Diffusers,
    "official": Official,
    "comfyui": ComfyUI,
}
_PACKAGES = {"diffusers": "diffusers", "official": "ltx_video", "comfyui": "comfy"}
_SOURCES = {
    "diffusers": "huggingface/diffusers",
    "official": "Lightricks/LTX-Video",
    "comfyui": "comfyanonymous/ComfyUI",
}

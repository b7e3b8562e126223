"""How much less time a card takes than with others: steps at true size with random weights, and the VAE.

It takes eight minutes, in the order of what matters: a step of 13B and of 2B at 768x512x121 against ComfyUI's core and
diffusers; with guidance and STG; compiled; decoding; conditioned on a picture; 1216x704x121; against Lightricks' code;
a whole clip in two passes, from noise to frames; a small clip's step as CUDA graphs.
Outputs are compared before anything is timed. No case starts once --seconds are over. The share of the limit is that of
the multiplications at the rate of one large product.

With guidance and STG a peer computes three forwards of one branch each. Compiled, diffusers' step is compiled by
torch.compile as a whole. Name checkouts of ComfyUI in COMFYUI_PATH and of Lightricks/LTX-Video in LTX_VIDEO_PATH.

python benchmarks/card.py [--seconds 480] [--tiny]
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from protocol import Row, arguments, publish
from torch import Tensor, nn

from ltxkit.ltx_core.config import TransformerConfig, UpsamplerConfig, VideoVAEConfig
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.kernels.cards import card_kernels
from ltxkit.ltx_core.measuring.inputs import DECODE_TIMESTEP, PROMPT, StepInputs
from ltxkit.ltx_core.measuring.limits import device_limit
from ltxkit.ltx_core.measuring.machine import peak_bytes
from ltxkit.ltx_core.measuring.peers import Asked, Peer, PeerMissingError, open_peer
from ltxkit.ltx_core.measuring.protocol import Rounds, Run, equal_peers, timed
from ltxkit.ltx_core.measuring.random_files import transformer_config, vae_config
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.models.upsampler import LatentUpsampler
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.pipelines.decode import decode
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts
from ltxkit.ltx_core.pipelines.settings import Settings
from ltxkit.ltx_core.pipelines.two_stage import Upscaling, first_pass_size, generate_two_stage
from ltxkit.ltx_core.placing.compiling import compiled
from ltxkit.ltx_core.placing.computing import active_on, using
from ltxkit.ltx_core.releases import release
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.shapes import LatentShape, PixelShape

SECONDS = 480
MARGIN = 30  # seconds that the last case may take
SMALL, LARGE = LatentShape(16, 16, 24), LatentShape(16, 22, 38)  # 768x512x121 and 1216x704x121
SHORT = LatentShape(4, 8, 8)  # 256x256x25, which a card starts more slowly than it computes
TINY_GRID = LatentShape(2, 3, 4)
CLIP, TINY_CLIP, FPS = PixelShape(121, 768, 1152), PixelShape(9, 192, 288), 24.0  # of the two passes together
UPSCALER = UpsamplerConfig(
    in_channels=128, mid_channels=512, num_blocks_per_stage=4, dims=3, spatial_upsample=True, temporal_upsample=False
)
TINY_UPSCALER = replace(UPSCALER, mid_channels=32, num_blocks_per_stage=1)
STEP_TOLERANCE = 5e-2  # bfloat16, 28 to 48 blocks: rms 2 % as in vae_cpu.py, and half as much again for the largest
VAE_TOLERANCE = 6e-2
SKIPPED = 1 / 2  # of the blocks, before the one that STG skips
ROUNDS = 5
PEERS = ("comfyui", "diffusers")
COMPILED = ("compiled", "graphs")  # ways in which the peers' steps are compiled too
CHECKOUTS = {"comfyui": "COMFYUI_PATH", "official": "LTX_VIDEO_PATH"}
QUESTION = "How much less time does a card take? (random weights of the released sizes, bfloat16)"


@dataclass(frozen=True)
class Case:
    """One workload. model: "13b", "2b" or "vae". way: "plain", "guided", "conditioned", "whole", or one of COMPILED."""

    name: str
    model: str
    grid: LatentShape = SMALL
    way: str = "plain"
    peers: tuple[str, ...] = PEERS


CASES = (
    Case("13B step, 768x512x121", "13b"),
    Case("2B step, 768x512x121", "2b"),
    Case("13B step, 768x512x121, CFG + STG", "13b", way="guided"),
    Case("2B step, 768x512x121, CFG + STG", "2b", way="guided"),
    Case("2B step, 768x512x121, compiled", "2b", way="compiled", peers=("diffusers",)),
    Case("VAE decode, 768x512x121", "vae", peers=("comfyui", "diffusers")),
    Case("2B step, 768x512x121, conditioned", "2b", way="conditioned", peers=("diffusers",)),
    Case("2B step, 1216x704x121", "2b", grid=LARGE),
    Case("13B step, 1216x704x121", "13b", grid=LARGE),
    Case("2B step, 768x512x121, Lightricks' code", "2b", peers=("official",)),
    Case("2B clip in two passes, 1152x768x121, distilled", "2b", way="whole", peers=()),
    Case("2B step, 256x256x25, compiled, CUDA graphs", "2b", grid=SHORT, way="graphs", peers=("diffusers",)),
)


class Bench:
    """What the cases share: one model at a time on the device, and the peers that are here."""

    def __init__(self, device: torch.device, *, tiny: bool) -> None:
        self.device, self.tiny = device, tiny
        self._peers: dict[str, Peer | str] = {}
        self._model: tuple[str, nn.Module] | None = None

    def rows(self, case: Case) -> list[Row]:
        """Measured; a peer that cannot take part is a sentence in the note."""
        model = self.model(case.model)
        grid = TINY_GRID if self.tiny else case.grid
        said: list[str] = []
        with ExitStack() as stack:
            if self.device.type != "cpu":
                stack.enter_context(using(model, active_on(card_kernels(self.device), model)))
            if case.way == "whole":
                ours, make = self._clip(cast(LTXTransformer, model), stack), refuse_peer
                said.append("its parts are compared with others above")
            else:
                ours, make = self._decode(model, grid) if case.model == "vae" else self._step(model, grid, case.way)
            if case.way in COMPILED:
                records = case.way == "graphs"
                stack.enter_context(
                    compiled(model, self.device, said.append, cuda_graphs=records, backend=self.backend)
                )
                said.append(f"first call {self.first(ours):.1f} s")
            runs: dict[str, Run] = {}
            for name in case.peers:
                peer = self.peer(name)
                if isinstance(peer, str):
                    said.append(f"{name}: {peer}")
                    continue
                try:
                    runs[peer.title] = make(peer)
                except PeerMissingError as error:
                    said.append(f"{peer.title}: {error}")
            tolerance = VAE_TOLERANCE if case.model == "vae" else STEP_TOLERANCE
            differences, device = equal_peers(ours, runs, tolerance, lambda name, why: said.append(f"{name}: {why}"))
            equal: Mapping[str, Run] = {name: run for name, run in runs.items() if name in differences}
            how = Rounds(tolerance, 1 if self.tiny else ROUNDS, 0 if self.tiny else 2)
            times = timed({"ltxkit": ours, **equal}, how, device)
            memory = {name: peak_bytes(run, device) for name, run in {"ltxkit": ours, **equal}.items()}
            share = None if self.tiny else (device_limit(ours, device, torch.bfloat16) or 0.0) / times.median("ltxkit")
        row = Row(case.name, "s", times.median("ltxkit"), floor=share, note="; ".join(said), memory=memory["ltxkit"])
        if not equal:
            return [row]
        return [
            replace(
                row,
                peer_name=name,
                peer=times.median(name),
                speedup=times.speedup("ltxkit", name),
                difference=differences[name],
                peer_memory=memory[name],
            )
            for name in equal
        ]

    def first(self, run: Run) -> float:
        """Seconds of the first call, in which kernels are compiled."""
        start = time.monotonic()
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic() - start

    @property
    def backend(self) -> Any:
        return "eager" if self.tiny else "inductor"

    def peer(self, name: str) -> Peer | str:
        """A peer, or why it is not here."""
        if name not in self._peers:
            folder = os.environ.get(CHECKOUTS.get(name, ""))
            try:
                self._peers[name] = open_peer(Asked(name, Path(folder) if folder else None), self.device)
            except PeerMissingError as error:
                self._peers[name] = str(error)
        return self._peers[name]

    def model(self, name: str) -> nn.Module:
        """Random weights on the device; the model of another case leaves."""
        if self._model is None or self._model[0] != name:
            self._model = None
            for peer in self._peers.values():  # each holds the weights of what it was made of
                if not isinstance(peer, str):
                    cast(Any, peer)._models.__init__()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            config = tiny_config(name) if self.tiny else vae_config() if name == "vae" else transformer_config(name)  # pyright: ignore[reportArgumentType]
            self._model = name, random_model(config, self.device)
        return self._model[1]

    def _step(self, model: nn.Module, grid: LatentShape, way: str) -> tuple[Run, Callable[[Peer], Run]]:
        ours = cast(LTXTransformer, model)
        given = StepInputs.random(ours.config, grid, self.device)
        if way == "conditioned":
            levels = torch.full((grid.tokens,), given.sigma.item(), device=self.device)
            levels[: grid.height * grid.width] = 0
            given = replace(given, sigma=levels[None, :, None])
        one = given.step_of(ours)

        def theirs(peer: Peer) -> Run:
            run = peer.step(ours, given)
            if way == "guided":
                return partial(three, run)
            return cast(Any, torch.compile)(run, backend=self.backend) if way in COMPILED else run

        if way != "guided":
            return one, theirs
        with torch.inference_mode():
            rotary = ours.prepare_positions(given.positions)
            positive, negative = (ours.prepare_text([given.padded[0, :length]]) for length in (PROMPT, PROMPT // 3))
        skipped = frozenset({int(ours.config.num_layers * SKIPPED)})
        branches = (Branch(positive), Branch(negative), Branch(positive, skipped))
        return lambda: ours(given.x, given.sigma, rotary, branches)[0], theirs

    def _decode(self, model: nn.Module, grid: LatentShape) -> tuple[Run, Callable[[Peer], Run]]:
        vae = cast(VideoVAE, model)
        made = torch.Generator().manual_seed(2)
        latent = torch.randn(1, vae.config.latent_channels, *grid, generator=made).to(self.device)
        timestep = torch.tensor([DECODE_TIMESTEP], device=self.device)

        def ours() -> Tensor:
            return torch.cat(list(vae.stream_decode(latent, timestep)), dim=2)

        return ours, lambda peer: peer.decode(vae, latent, timestep)

    def _clip(self, model: LTXTransformer, stack: ExitStack) -> Run:
        """Both passes, the upscaler between them and decoding, with everything on the device."""
        others: list[nn.Module] = [
            random_model(tiny_config("vae") if self.tiny else vae_config(), self.device),
            random_model(TINY_UPSCALER if self.tiny else UPSCALER, self.device),
        ]
        vae, upscaler = cast(VideoVAE, others[0]), cast(LatentUpsampler, others[1])
        if self.device.type != "cpu":
            for each in others:
                stack.enter_context(using(each, active_on(card_kernels(self.device), each)))
        asked = TINY_CLIP if self.tiny else CLIP
        clip = LatentClip.empty(vae, first_pass_size(asked, vae.config.scale_factors), FPS)
        settings = Settings(release("2b-0.9.8-distilled").recipe)
        tokens = clip.grid.tokens
        first, second = Pass.of(model, settings, "first", tokens), Pass.of(model, settings, "second", 4 * tokens)
        made = torch.Generator().manual_seed(3)
        text = torch.randn(1, PROMPT, model.config.caption_channels, generator=made).bfloat16()

        def place(module: nn.Module, *, memory_required: int = 0) -> AbstractContextManager[torch.device]:  # noqa: ARG001
            return nullcontext(self.device)

        host = Host(place, say=lambda _: None)

        def run() -> Tensor:
            noise, upscaling = SeededNoise(0), Upscaling(upscaler, vae, settings.adain_factor)
            prompts = Prompts(EncodedPrompt(text))
            latent = generate_two_stage((first, second), clip, prompts, upscaling, noise=(noise, noise), host=host)
            return decode(vae, latent, settings.decoding("second"), seed=0, host=host)

        return run


def refuse_peer(_: Peer) -> Run:
    raise PeerMissingError("it has no clip of these weights")


def three(run: Run) -> Tensor:
    """Three forwards; the output of the last."""
    run()
    run()
    return run()


def tiny_config(name: str) -> TransformerConfig | VideoVAEConfig:
    if name == "vae":
        return replace(vae_config(), encoder_base_channels=4, decoder_base_channels=4)
    return TransformerConfig.of_size(layers=2, heads=2, head_dim=32, channels=128, captions=64)


def random_model(config: TransformerConfig | VideoVAEConfig | UpsamplerConfig, device: torch.device) -> nn.Module:
    """In bfloat16, without a copy in another dtype."""
    with torch.device("meta"):
        if isinstance(config, UpsamplerConfig):
            model = LatentUpsampler(config)
        else:
            model = VideoVAE(config) if isinstance(config, VideoVAEConfig) else LTXTransformer(config)
    model = model.bfloat16().to_empty(device=device).eval().requires_grad_(False)
    made = torch.Generator(device=device).manual_seed(0)
    for name, tensor in model.state_dict().items():
        spread = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.02
        tensor.normal_(1.0 if "norm" in name and tensor.ndim == 1 else 0.0, spread, generator=made)
        if "std" in name:
            tensor.fill_(1)
    return model


def measured(seconds: float, *, tiny: bool) -> Iterator[Row]:
    """The rows of every case; those without a card, or without time, say so."""
    has_card = torch.cuda.is_available()
    if not has_card and not tiny:
        yield from (Row(case.name, "s", None, note="no GPU here") for case in CASES)
        return
    bench = Bench(torch.device("cpu" if tiny else "cuda"), tiny=tiny)
    ends = time.monotonic() + seconds - MARGIN
    for case in CASES:
        if time.monotonic() > ends:
            yield Row(case.name, "s", None, note="no time left")
            continue
        yield from bench.rows(case)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="no case starts after them")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.tiny else torch.get_num_threads())
    publish("card", QUESTION, list(measured(options.seconds, tiny=options.tiny)), tiny=options.tiny)


if __name__ == "__main__":
    main()

"""Modules that are called by themselves compute by what was chosen for the machine, and keep nothing that is stale."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ltxkit.ltx_core.config import TransformerConfig, VideoVAEConfig
from ltxkit.ltx_core.kernels import directly, private
from ltxkit.ltx_core.kernels.active import PLAINLY, keep_dtype
from ltxkit.ltx_core.kernels.choice import PLAIN, Kernels, parse_kernels
from ltxkit.ltx_core.main_memory import Memory
from ltxkit.ltx_core.models.convolution import Conv3d
from ltxkit.ltx_core.models.linear import Linear
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.placing.computing import using
from ltxkit.ltx_core.placing.placement import DevicePlacement

pytestmark = pytest.mark.skipif(
    not all(private.works(kind, torch.float32) for kind in ("products", "convolutions")), reason="no oneDNN here"
)


def kernels(text: str = "products=packed,attention=products,convolutions=packed,norms=pieces") -> Kernels:
    chosen = parse_kernels(text, "asked for")
    assert chosen is not None
    return chosen


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which everything but plain torch was chosen, with memory to spare."""
    everything = kernels()
    monkeypatch.setattr(directly, "_kernels", lambda: everything)
    monkeypatch.setattr(directly, "main_memory", lambda: Memory(1 << 40, 1 << 40))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each of oneDNN's operators was called."""
    for kind in ("products", "convolutions"):
        private.works(kind, torch.float32)  # its own calls, once per process, are not counted
    counts: dict[str, int] = dict.fromkeys(("linear", "pack_linear", "convolution", "pack_convolution"), 0)
    for name in counts:

        def counted(*args: object, name: str = name, do: Callable[..., Tensor] = getattr(private, name), **at: object):
            counts[name] += 1
            return do(*args, **at)

        monkeypatch.setattr(private, name, counted)
    return counts


@pytest.fixture
def vae(vae_config: Callable[..., VideoVAEConfig]) -> VideoVAE:
    torch.manual_seed(0)
    return VideoVAE(vae_config("16x4")).eval().requires_grad_(False)


def decoded(vae: VideoVAE) -> Tensor:
    latent = torch.randn(1, vae.config.latent_channels, 2, 2, 3, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([0.05]) if vae.config.timestep_conditioning else None
    with torch.inference_mode():
        return vae.decode(latent, timestep)


def plainly(vae: VideoVAE) -> Tensor:
    with using(vae, PLAINLY):
        return decoded(vae)


def test_a_vae_packs_its_weights_once_and_computes_the_same(vae: VideoVAE, calls: dict[str, int]) -> None:
    plain = plainly(vae)
    assert not any(calls.values())
    first = decoded(vae)
    packings = calls["pack_convolution"]
    assert packings == sum(isinstance(part, Conv3d) for part in vae.decoder.modules())
    assert torch.equal(decoded(vae), first)
    assert calls["pack_convolution"] == packings
    assert torch.allclose(first, plain, atol=1e-5)
    with DevicePlacement("cpu", kernels=kernels())(vae.decoder):
        assert torch.equal(decoded(vae), first)


def test_a_transformer_computes_by_the_chosen_forms_without_packing(calls: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = LTXTransformer(TransformerConfig.of_size(layers=2, heads=2, head_dim=16, channels=8, captions=16)).eval()
    cells = torch.stack(torch.meshgrid(*(torch.arange(size) for size in (2, 8, 8)), indexing="ij")).reshape(1, 3, -1)
    x, sigma = torch.randn(1, 128, 8), torch.full((1, 1, 1), 0.5)

    def step() -> Tensor:
        branch = Branch(model.prepare_text([torch.randn(20, 16, generator=torch.Generator().manual_seed(1))]))
        return model(x, sigma, model.prepare_positions(cells.float()), (branch,))[0]

    trained = step()
    assert not any(calls.values()), "with autograd, plain torch"
    with torch.no_grad():
        result = step()
    assert calls["linear"] > 2 * 10
    assert not calls["pack_linear"]
    assert torch.allclose(result, trained, atol=1e-5)
    with torch.no_grad(), DevicePlacement("cpu", kernels=kernels())(model):
        assert torch.allclose(step(), result, atol=1e-5)


@pytest.mark.parametrize("change", ["in place", "data", "replaced"])
def test_a_weight_that_changes_is_packed_anew(vae: VideoVAE, change: str) -> None:
    decoded(vae)
    with torch.no_grad():
        before = vae.decoder.conv_in.conv.active.packed_bytes
    weight = vae.decoder.conv_in.conv.weight
    if change == "in place":
        weight.mul_(2)
    elif change == "data":
        weight.data.mul_(2)
    else:
        vae.decoder.conv_in.conv.weight = torch.nn.Parameter(weight * 2, requires_grad=False)
    assert torch.allclose(decoded(vae), plainly(vae), atol=1e-5)
    with torch.no_grad():
        assert vae.decoder.conv_in.conv.active.packed_bytes == before > 0, "the former form goes"


def test_packed_weights_go_with_the_model(vae: VideoVAE) -> None:
    twin = copy.deepcopy(vae)
    decoded(twin)
    with torch.no_grad():
        own = twin.decoder.conv_in.conv.active
    assert own.packed_bytes > 0
    seen = weakref.ref(own)
    del own, twin
    gc.collect()
    assert seen() is None


def test_without_ample_room_nothing_is_packed(
    vae: VideoVAE, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for memory in (None, Memory(1 << 28, 1 << 30)):
        monkeypatch.setattr(directly, "main_memory", lambda memory=memory: memory)
        assert torch.equal(decoded(vae), plainly(vae))
    assert not calls["pack_convolution"]


def test_what_is_not_on_a_cpu_or_not_chosen_computes_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(4, 4)
    with torch.no_grad():
        assert layer.active.kernels == kernels()
        assert layer.to("meta").active is PLAINLY
        kept = Linear(4, 4)
        with using(kept, None):
            assert kept.active is PLAINLY
        monkeypatch.setattr(directly, "_kernels", lambda: PLAIN)
        assert Linear(4, 4).active is PLAINLY
    assert Linear.active is PLAINLY


def test_an_asked_for_dtype_is_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directly, "_kernels", lambda: kernels("products=onednn,dtype=float32"))
    layer = Linear(4, 4).bfloat16()
    with torch.no_grad():
        assert layer.active.kernels.products.dtype(torch.bfloat16) == torch.float32
        keep_dtype(layer)
        assert not layer.active.kernels.products.computed


def test_a_placement_inside_another_gives_back_what_was_there(vae: VideoVAE) -> None:
    part = vae.decoder.conv_in.conv
    with DevicePlacement("cpu", kernels=kernels())(vae.decoder):
        outer = part.active
        with DevicePlacement("cpu", kernels=PLAIN)(vae.decoder):
            assert part.active is not outer
        assert part.active is outer
    assert "active" not in part.__dict__


def test_copies_pack_their_own(vae: VideoVAE) -> None:
    decoded(vae)
    twin = copy.deepcopy(vae)
    assert torch.equal(decoded(twin), decoded(vae))
    with torch.no_grad():
        assert twin.decoder.conv_in.conv.active is not vae.decoder.conv_in.conv.active

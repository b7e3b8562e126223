"""Weights move to a device and leave it again: the numbers and the originals stay the same."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ltxkit.ltx_core.budget.weights import weight_bytes
from ltxkit.ltx_core.config import TextEncoderConfig, TransformerConfig
from ltxkit.ltx_core.errors import UnsupportedError
from ltxkit.ltx_core.models.text_encoder import build_t5
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.placing import devices, placement
from ltxkit.ltx_core.placing.copies import Copies
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.placing.streaming import streamed

CPU, META = torch.device("cpu"), torch.device("meta")
LAYERS = 5

TRANSFORMER = TransformerConfig.of_size(layers=LAYERS, heads=2, head_dim=16, channels=6, captions=10)
TEXT_ENCODER = TextEncoderConfig(
    vocab_size=50,
    d_model=16,
    d_kv=8,
    d_ff=32,
    num_layers=LAYERS,
    num_heads=2,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
)


def transformer() -> LTXTransformer:
    torch.manual_seed(0)
    return LTXTransformer(TRANSFORMER).eval().requires_grad_(False)


def text_encoder() -> nn.Module:
    torch.manual_seed(0)
    model = build_t5(TEXT_ENCODER).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def denoise(model: LTXTransformer) -> list[Tensor]:
    """Two guided steps; the second reuses the text keys and values of the first."""
    generator = torch.Generator().manual_seed(1)
    x, positions = torch.randn(1, 9, 6, generator=generator), torch.rand(1, 3, 9, generator=generator) * 100
    negative, positive = (model.prepare_text([torch.randn(n, 10, generator=generator)]) for n in (3, 7))
    branches = (Branch(negative), Branch(positive), Branch(positive, frozenset({2})))
    rotary = model.prepare_positions(positions)
    return [v for sigma in (1.0, 0.5) for v in model(x, torch.full((1, 1, 1), sigma), rotary, branches)]


@torch.no_grad()
def encode(model: nn.Module) -> list[Tensor]:
    return [model(input_ids=torch.tensor([[5, 17, 3, 1]])).last_hidden_state]


MODELS = {"transformer": (transformer, denoise), "text encoder": (text_encoder, encode)}


def tensors_of(model: nn.Module) -> dict[str, tuple[int, int]]:
    """The identity and address of the tensor under each name."""
    return {key: (id(value), value.data_ptr()) for key, value in (*model.named_parameters(), *model.named_buffers())}


class PoisonedTransfers:
    """A second "device" on the CPU: blocks are copied to fresh memory, which is overwritten as soon as it is freed."""

    def __init__(self) -> None:
        self.there: dict[nn.Module, tuple[Copies, list[Tensor]]] = {}
        self.log: list[tuple[str, nn.Module]] = []
        self.most = 0

    def start(self, block: nn.Module) -> None:
        if block not in self.there:
            self.log.append(("start", block))
            made: list[Tensor] = []

            def copy(tensor: Tensor) -> Tensor:
                made.append(tensor.clone())
                return made[-1]

            self.there[block] = Copies(block, copy), made
            self.most = max(self.most, len(self.there))

    def finish(self, block: nn.Module) -> None:
        self.log.append(("finish", block))
        assert block in self.there

    def drop(self, block: nn.Module) -> None:
        if block in self.there:
            self.log.append(("drop", block))
            installed, made = self.there.pop(block)
            installed.drop()
            for tensor in made:
                tensor.fill_(float("nan"))


# Streaming


@pytest.mark.parametrize("resident", [0, 1, LAYERS - 1])
@pytest.mark.parametrize("kind", MODELS)
def test_streamed_equals_resident_to_the_last_bit(kind: str, resident: int) -> None:
    build, run = MODELS[kind]
    model = build()
    expected, before = run(model), tensors_of(model)
    transfers = PoisonedTransfers()
    with streamed(model, CPU, resident, transfers=transfers):
        found = run(model)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert tensors_of(model) == before
    assert transfers.most == min(2, LAYERS - resident)
    passes = 1 if kind == "text encoder" else 2
    assert len(transfers.log) == 3 * passes * (LAYERS - resident)
    assert all(torch.equal(a, b) for a, b in zip(run(model), expected, strict=True))


def test_the_next_block_starts_as_soon_as_one_has_been_given_to_compute() -> None:
    model = transformer()
    transfers = PoisonedTransfers()
    computed: list[tuple[str, nn.Module]] = transfers.log
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda module, *_: computed.append(("compute", module)))
    with streamed(model, CPU, 3, transfers=transfers):
        denoise(model)
    number = {block: i for i, block in enumerate(model.transformer_blocks)}
    one_pass = [
        *(("compute", 0), ("start", 3), ("compute", 1), ("compute", 2)),
        *(("finish", 3), ("compute", 3), ("start", 4), ("drop", 3)),
        *(("finish", 4), ("compute", 4), ("drop", 4)),
    ]
    assert [(what, number[block]) for what, block in computed] == one_pass * 2


def test_streaming_to_where_the_weights_are_copies_nothing() -> None:
    model = transformer()
    before, seen = tensors_of(model), []
    with streamed(model, CPU, 1):
        for _ in model.transformer_blocks:
            seen.append(tensors_of(model))
    assert seen == [before] * LAYERS


def test_only_streamed_blocks_that_are_needed_leave_their_place() -> None:
    """Meta stands in for the device: the copies are on meta, all other tensors stay mapped."""
    model = transformer()
    with streamed(model, META, 2):
        assert model.patchify_proj.weight.is_meta
        for number, block in enumerate(model.transformer_blocks):
            there = [model.get_submodule(f"transformer_blocks.{i}.ff.net.2").weight.is_meta for i in range(LAYERS)]
            assert there == [i < 2 or i == number for i in range(LAYERS)]
            assert all(parameter.is_meta for parameter in block.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_an_interrupt_leaves_the_model_as_it_was() -> None:
    model = transformer()
    expected, before = denoise(model), tensors_of(model)
    transfers = PoisonedTransfers()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.transformer_blocks[3].attn2.register_forward_hook(interrupt)
    with streamed(model, CPU, 1, transfers=transfers):
        with pytest.raises(KeyboardInterrupt) as held:  # which keeps the frames of the forward alive
            denoise(model)
        assert transfers.there
        handle.remove()
        again = denoise(model)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    assert tensors_of(model) == before
    assert not transfers.there
    assert held.value is not None


def test_hooks_and_names_of_streamed_blocks_stay() -> None:
    """LoRA depends on both."""
    model = transformer()
    names, called = [name for name, _ in model.named_modules()], []
    model.get_submodule("transformer_blocks.4.attn1.to_q").register_forward_hook(lambda *_: called.append(1))
    with streamed(model, CPU, 0, transfers=PoisonedTransfers()):
        assert [name for name, _ in model.named_modules()] == names
        denoise(model)
    assert len(called) == 2


def test_what_has_no_blocks_cannot_be_streamed() -> None:
    with pytest.raises(UnsupportedError, match="got Linear to stream"), streamed(nn.Linear(2, 2), CPU, 0):
        pass


# Placement


@pytest.mark.usefixtures("ample_memory")
@pytest.mark.parametrize("kind", MODELS)
def test_placement_brings_copies_and_takes_them_away(kind: str) -> None:
    model = MODELS[kind][0]()
    before = tensors_of(model)
    with DevicePlacement("meta")(model) as device:
        assert device == META
        assert all(parameter.is_meta for parameter in model.parameters())
        if kind == "text encoder":
            assert model.shared.weight is model.encoder.embed_tokens.weight
    assert tensors_of(model) == before


def test_placement_on_the_cpu_changes_nothing() -> None:
    model = transformer()
    before = tensors_of(model)
    with DevicePlacement("cpu")(model) as device:
        assert device == CPU
        assert tensors_of(model) == before


@pytest.mark.usefixtures("ample_memory")
def test_placement_can_keep_a_module_until_it_is_released() -> None:
    model = transformer()
    before, place = tensors_of(model), DevicePlacement("meta", keep=True)
    with place(model):
        kept = tensors_of(model)
    assert all(parameter.is_meta for parameter in model.parameters())
    with place(model):
        assert tensors_of(model) == kept
    place.release(model)
    assert tensors_of(model) == before
    place.release(model)


def test_an_error_half_way_leaves_nothing_behind() -> None:
    model = transformer()
    before = tensors_of(model)
    left = 7

    def copy(tensor: Tensor) -> Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise torch.OutOfMemoryError("no more")
        return tensor.clone()

    with pytest.raises(torch.OutOfMemoryError):
        Copies(model, copy)
    assert tensors_of(model) == before


@pytest.mark.parametrize(
    ("room", "resident"), [(-1, 0), (1, 0), (2, 0), (3, 1), (LAYERS - 1, LAYERS - 3), (LAYERS, None)]
)
def test_as_many_blocks_stay_as_fit(monkeypatch: pytest.MonkeyPatch, room: int, resident: int | None) -> None:
    """Two slots are for the block that computes and the block that arrives; half the working memory is added for space
    that the allocator cannot use."""
    model = transformer()
    block = weight_bytes(model.transformer_blocks[0])
    outside = weight_bytes(model) - LAYERS * block
    required = 10_000_000
    free = required * 3 // 2 + outside + room * block
    monkeypatch.setattr(placement, "memory", lambda device: devices.Memory(free, free))
    chosen: list[int] = []

    @contextmanager
    def record(module: nn.Module, device: torch.device, resident: int):
        chosen.append(resident)
        yield

    monkeypatch.setattr(placement, "streamed", record)
    with DevicePlacement("meta")(model, memory_required=required):
        pass
    assert chosen == ([] if resident is None else [resident])


@pytest.mark.parametrize("kind", MODELS)
def test_a_number_of_resident_blocks_can_be_asked_for(kind: str) -> None:
    model = MODELS[kind][0]()
    with DevicePlacement("meta", resident_blocks=2)(model):
        there = [block for block in model.modules() if type(block).__name__ in ("TransformerBlock", "T5Block")]
        assert [all(p.is_meta for p in block.parameters()) for block in there] == [True, True, False, False, False]


# Devices


def test_main_memory_is_known() -> None:
    known = devices.memory(CPU)
    assert known is None or 0 < known.free <= known.total


def test_accelerators_are_named_in_one_file(repository: Path) -> None:
    folder = repository / "ltx_core"
    named = [
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if any(word in path.read_text() for word in ("torch.cuda", "torch.xpu", "torch.mps", ".backends.mps"))
    ]
    # kernels/cards.py: what a card can compute; training/distributed.py: one process per GPU.
    allowed = {"placing/devices.py", "kernels/cards.py", "training/distributed.py"}
    assert set(named) <= allowed


FREES = """
import torch
from ltxkit.ltx_core.placing.devices import spare_main_memory

if SPARES:
    spare_main_memory()
torch.ones(1 << 21)  # 8 MB, freed at once: glibc then takes what is smaller from its heap, if it may
blocks = [torch.ones(3 << 18) for _ in range(64)]  # 3 MB each
del blocks[::2]
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    """Free every second of 64 blocks, which keeps a heap from shrinking."""

    def left(spares: bool, **environment: str) -> int:
        """MB that the process holds at the end."""
        command = [sys.executable, "-c", FREES.replace("SPARES", str(spares))]
        ours = {name: value for name, value in os.environ.items() if name != "MALLOC_MMAP_THRESHOLD_"}
        return int(subprocess.check_output(command, env=ours | environment))

    spared, kept = left(True), left(False)
    assert kept - spared == pytest.approx(96, abs=24)
    assert left(True, MALLOC_MMAP_THRESHOLD_=str(1 << 25)) - spared == pytest.approx(96, abs=24)  # the user's choice

"""LoRAs in the copies of weights: equal to LoRAs beside them, undone to the last bit, merged anew only where needed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.kernels import private
from ltxkit.ltx_core.kernels.active import Active
from ltxkit.ltx_core.kernels.choice import PLAIN, parse_kernels
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.placing import balanced, merging
from ltxkit.ltx_core.placing.balanced import BalancedPlacement
from ltxkit.ltx_core.placing.computing import using
from ltxkit.ltx_core.placing.copies import CopiedParameter, Copies
from ltxkit.ltx_core.placing.devices import Memory
from ltxkit.ltx_core.placing.lora import Application, applied, check_mode, device_bytes, merging_work
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.placing.streaming import streamed
from ltxkit.ltx_core.quant.registry import quantization_by_name
from ltxkit.ltx_core.weights.lora import WeightedLoRA, load_lora

STEM = "diffusion_model.transformer_blocks"
GENEROUS = Memory(64 * 2**30, 64 * 2**30)


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "memory", lambda _: GENEROUS)


def made(dtype: torch.dtype = torch.float32) -> LTXTransformer:
    torch.manual_seed(0)
    config = TransformerConfig.of_size(layers=4, heads=2, head_dim=16, channels=8, captions=24, causal=False)
    return LTXTransformer(config).eval().requires_grad_(False).to(dtype)


@pytest.fixture(scope="module")
def model() -> LTXTransformer:
    return made()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.2


def pair(block: int, name: str, rows: int = 32, columns: int = 32, rank: int = 3) -> dict[str, Tensor]:
    target = f"{STEM}.{block}.{name}"
    return {
        f"{target}.lora_A.weight": noise(rank, columns, seed=block),
        f"{target}.lora_B.weight": noise(rows, rank, seed=block + 7),
    }


def every_linear(model: LTXTransformer, rank: int = 3) -> dict[str, Tensor]:
    return {
        key: tensor
        for name, linear in model.named_modules()
        if isinstance(linear, nn.Linear)
        for key, tensor in {
            f"diffusion_model.{name}.lora_A.weight": noise(rank, linear.in_features),
            f"diffusion_model.{name}.lora_B.weight": noise(linear.out_features, rank, seed=3),
        }.items()
    }


KINDS: dict[str, dict[str, Tensor]] = {
    "lora": pair(0, "attn1.to_q") | pair(1, "ff.net.0.proj", rows=128) | pair(3, "attn2.to_v"),
    "dora": pair(0, "attn1.to_q") | {f"{STEM}.0.attn1.to_q.dora_scale": 1 + noise(32, 1)},
    "loha": {f"{STEM}.2.attn1.to_k.hada_w{n}_{h}": noise(*((32, 2), (2, 32))[h == "b"]) for n in (1, 2) for h in "ab"},
    "lokr": {f"{STEM}.1.attn2.to_k.lokr_w1": noise(4, 4), f"{STEM}.1.attn2.to_k.lokr_w2": noise(8, 8)},
    "oft": {f"{STEM}.0.attn1.to_v.oft_blocks": noise(8, 4, 4)},
    "glora": {f"{STEM}.3.attn1.to_v.{h}{n}.weight": noise(*((32, 2), (2, 32))[n - 1]) for h in "ab" for n in (1, 2)},
    "whole": {f"{STEM}.0.attn1.to_k.set_weight": noise(32, 32), f"{STEM}.0.attn1.to_k.diff_b": noise(32)},
    "diff": {f"{STEM}.1.attn1.to_q.diff": noise(32, 32), f"{STEM}.1.attn1.to_q.diff_b": noise(32)},
    "norms": {f"{STEM}.1.attn1.q_norm.w_norm": noise(32), f"{STEM}.1.scale_shift_table.diff": noise(6, 32)},
}


@pytest.fixture
def lora(tmp_path: Path) -> Callable[..., WeightedLoRA]:
    """lora(tensors, strength): a file of its own."""
    names = iter(range(100))

    def write(tensors: dict[str, Tensor], strength: float = 1.0) -> WeightedLoRA:
        path = tmp_path / f"{next(names)}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        return WeightedLoRA(load_lora(path), strength)

    return write


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def state(model: nn.Module) -> dict[str, tuple[int, Tensor]]:
    return {key: (id(value), value.clone()) for key, value in model.named_parameters()}


def same(model: nn.Module, before: dict[str, tuple[int, Tensor]]) -> bool:
    there = dict(model.named_parameters())
    return there.keys() == before.keys() and all(
        id(there[key]) == identity and torch.equal(there[key], tensor) for key, (identity, tensor) in before.items()
    )


def on_a_device(model: nn.Module) -> Copies:
    """Copies as on a card, in main memory."""
    return Copies(model, torch.clone)


# --- the same as beside, and undone -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_what_beside_is(
    kind: str, model: LTXTransformer, lora: Callable[..., WeightedLoRA], velocity: Callable[..., Tensor]
) -> None:
    items = [lora(KINDS[kind], 0.8), lora(KINDS["lora"], -0.5), lora(KINDS["dora"], 0.3)]
    before, base = state(model), velocity(model)
    with applied(model, items, "beside"):
        expected = velocity(model)
    for order in (items, items[::-1]):
        with applied(model, order, "merged"):
            assert not any(module._forward_hooks for module in model.modules())
            assert distance(velocity(model), expected) < 1e-5
        assert same(model, before)
    assert distance(expected, base) > 1e-3
    assert torch.equal(velocity(model), base)


def test_in_bfloat16_a_weight_is_rounded_once(
    lora: Callable[..., WeightedLoRA], velocity: Callable[..., Tensor]
) -> None:
    half = made(torch.bfloat16)
    name = "transformer_blocks.0.attn1.to_q"
    first, second = lora(KINDS["lora"], 0.8), lora(KINDS["lora"] | KINDS["loha"], 0.1)
    own = half.get_parameter(f"{name}.weight").clone()
    with applied(half, [first, second], "beside"):
        expected = velocity(half)
    with applied(half, [first, second], "merged"):
        merged = half.get_parameter(f"{name}.weight")
        down, up = (KINDS["lora"][f"{STEM}.0.attn1.to_q.lora_{half_}.weight"].double() for half_ in "AB")
        exact = own.double() + 0.9 * up @ down
        assert merged.dtype == torch.bfloat16
        assert ((merged.double() - exact).abs() <= exact.abs() * 2.0**-8).all()  # half a last place
        assert distance(velocity(half), expected) < 1e-2
    assert half.get_parameter(f"{name}.weight").equal(own)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_of_weights(
    dtype: torch.dtype, lora: Callable[..., WeightedLoRA], velocity: Callable[..., Tensor]
) -> None:
    other, item = made(dtype), lora(KINDS["lora"])
    with applied(other, [item], "beside"):
        expected = velocity(other)
    with applied(other, [item], "merged"):
        assert distance(velocity(other), expected) < {torch.float16: 5e-3, torch.float64: 1e-6}[dtype]


def test_a_wide_weight_is_merged_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from ltxkit.ltx_core.weights import adapters

    monkeypatch.setattr(adapters, "MERGED_AT_ONCE_ON_CPU", 100)
    weight, down, up = noise(37, 33), noise(5, 33), noise(37, 5)
    into = torch.empty_like(weight)
    adapters.merge(weight, [(adapters.Change(parts=(adapters.Factors(down, up, 0.5),)), 0.4)], into)
    torch.testing.assert_close(into, weight + 0.2 * up @ down)


# --- copies that stay -------------------------------------------------------------------------------------------------


class Counter:
    """Counts weights that are merged into or restored."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.merged = self.restored = 0
        merge, restore = merging.merge, merging._restore

        def counted(*args: Any) -> None:
            self.merged += 1
            merge(*args)

        def counted_restore(*args: Any) -> None:
            self.restored += 1
            restore(*args)

        monkeypatch.setattr(merging, "merge", counted)
        monkeypatch.setattr(merging, "_restore", counted_restore)

    def since(self) -> tuple[int, int]:
        counts, self.merged, self.restored = (self.merged, self.restored), 0, 0
        return counts


def test_a_changed_strength_merges_anew_only_what_it_touches(
    model: LTXTransformer,
    lora: Callable[..., WeightedLoRA],
    velocity: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, base = state(model), velocity(model)
    wide, narrow = lora(every_linear(model), 0.5), lora(KINDS["lora"], 1.0)
    linears = sum(isinstance(module, nn.Linear) for module in model.modules())
    weaker = WeightedLoRA(narrow.lora, 0.2)
    expected: dict[str, Tensor] = {}
    for name, items in {"both": [wide, narrow], "weaker": [wide, weaker], "wide": [wide]}.items():
        with applied(model, items, "beside"):
            expected[name] = velocity(model)
    counter, copies = Counter(monkeypatch), on_a_device(model)
    data = {key: value.data_ptr() for key, value in model.named_parameters()}

    def run(name: str, *items: WeightedLoRA) -> tuple[int, int]:
        with applied(model, items):
            assert distance(velocity(model), expected[name]) < 1e-5
        return counter.since()

    assert run("both", wide, narrow) == (linears, 0)
    assert run("both", wide, narrow) == (0, 0)
    assert run("weaker", wide, weaker) == (3, 0)
    assert run("wide", wide) == (3, 0)
    assert run("both", wide, WeightedLoRA(narrow.lora, 1.0)) == (3, 0)
    assert {key: value.data_ptr() for key, value in model.named_parameters()} == data  # no memory of its own
    with applied(model, ()):
        assert torch.equal(velocity(model), base)
    assert counter.since() == (0, linears)
    assert run("wide", wide) == (linears, 0)
    copies.drop()
    assert same(model, before)
    assert torch.equal(velocity(model), base)


def test_who_calls_the_model_outside_gets_its_own_weights(
    model: LTXTransformer, lora: Callable[..., WeightedLoRA], velocity: Callable[..., Tensor]
) -> None:
    base, item, copies = velocity(model), lora(every_linear(model)), on_a_device(model)
    with applied(model, [item]):
        velocity(model)
    assert torch.equal(velocity(model), base)
    assert not any(module._forward_pre_hooks for module in model.modules())
    with applied(model, [item]):
        velocity(model)
    merging.unmerged(model)  # for those who read the weights
    assert all(torch.equal(value, value.original) for value in model.parameters() if isinstance(value, CopiedParameter))
    copies.drop()
    assert torch.equal(velocity(model), base)


def test_beside_after_merged_on_copies_that_stay(
    model: LTXTransformer, lora: Callable[..., WeightedLoRA], velocity: Callable[..., Tensor]
) -> None:
    item, copies = lora(KINDS["lora"] | KINDS["loha"]), on_a_device(model)
    with applied(model, [item], "merged"):
        merged = velocity(model)
    with applied(model, [item], "beside"):
        assert distance(velocity(model), merged) < 1e-5
    copies.drop()


def test_an_interrupted_merge_is_undone(
    model: LTXTransformer,
    lora: Callable[..., WeightedLoRA],
    velocity: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, before, item, copies = velocity(model), state(model), lora(every_linear(model)), on_a_device(model)
    merge, calls = merging.merge, iter(range(100))

    def interrupted(weight: Tensor, changes: Any, into: Tensor) -> None:
        merge(weight, changes, into)
        if next(calls) == 5:
            into.fill_(7.0)
            raise KeyboardInterrupt

    monkeypatch.setattr(merging, "merge", interrupted)
    with pytest.raises(KeyboardInterrupt), applied(model, [item]):
        pass
    monkeypatch.setattr(merging, "merge", merge)
    assert torch.equal(velocity(model), base)
    with applied(model, [item], "beside"):
        expected = velocity(model)
    with applied(model, [item]):
        assert distance(velocity(model), expected) < 1e-5
    copies.drop()
    assert same(model, before)


@pytest.mark.parametrize("keep", [False, None, True])
def test_a_placement_on_a_cpu(
    keep: bool | None,
    model: LTXTransformer,
    lora: Callable[..., WeightedLoRA],
    velocity: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ltxkit.ltx_core.placing.computing.memory", lambda _: GENEROUS)
    base, before, item = velocity(model), state(model), lora(every_linear(model))
    with applied(model, [item], "beside"):
        expected = velocity(model)
    place, counter = DevicePlacement("cpu", keep=keep, kernels=PLAIN), Counter(monkeypatch)
    for number in range(2):
        with place(model):
            room = model.active.room
            with applied(model, [item]):
                assert distance(velocity(model), expected) < 1e-5
                merged = sum(value.nbytes for value in model.parameters() if isinstance(value, CopiedParameter))
                assert room - model.active.room == (merged if keep is False or number == 0 else 0)
        assert (counter.since()[0] > 0) == (keep is False or number == 0)
        assert keep is not False or same(model, before)
    with place(model):
        assert torch.equal(velocity(model), base)
    place.release_all()
    assert same(model, before)


@pytest.mark.skipif(not private.works("products", torch.float32), reason="this torch has no oneDNN products")
def test_packed_weights_are_the_merged_ones(
    model: LTXTransformer, lora: Callable[..., WeightedLoRA], velocity: Callable[..., Tensor]
) -> None:
    tokens = 64  # enough for the products to take the packed form

    def step() -> Tensor:
        from ltxkit.ltx_core.models.transformer import Branch

        rotary = model.prepare_positions(noise(1, 3, tokens).abs())
        text = model.prepare_text([noise(20, 24)])
        with torch.inference_mode():
            return model(noise(1, tokens, 8), torch.full((1, 1, 1), 0.7), rotary, (Branch(text),))[0].clone()

    first, second = lora(every_linear(model)), lora(KINDS["lora"], 0.5)
    expected: list[Tensor] = []
    cases = [[first], [first, second], [second], []]
    for items in cases:
        with applied(model, items, "beside"):
            expected.append(step())
    active = Active(parse_kernels("products=packed", "asked for"), room=2**30)
    copies = on_a_device(model)
    packed: list[int] = []
    with using(model, active):
        for items, right in zip(cases, expected, strict=True):
            with applied(model, items):
                assert distance(step(), right) < 1e-5
            packed.append(active.packed_bytes)
        assert distance(step(), expected[-1]) < 1e-5
    copies.drop()
    assert packed[0] > 0
    assert len(set(packed)) == 1  # nothing that is not used any more is held


def test_merged_copies_are_freed(model: LTXTransformer, lora: Callable[..., WeightedLoRA]) -> None:
    with applied(model, [lora(KINDS["lora"])], "merged"):
        copied = weakref.ref(model.get_parameter("transformer_blocks.0.attn1.to_q.weight"))
        assert isinstance(copied(), CopiedParameter)
    assert copied() is None


# --- streamed and divided ---------------------------------------------------------------------------------------------


class Arriving:
    """A second device in main memory: blocks come as copies, which are spoiled when they leave."""

    def __init__(self) -> None:
        self.there: dict[nn.Module, tuple[Copies, list[Tensor]]] = {}

    def start(self, block: nn.Module) -> None:
        if block not in self.there:
            made: list[Tensor] = []

            def copy(tensor: Tensor) -> Tensor:
                made.append(tensor.clone())
                return made[-1]

            self.there[block] = Copies(block, copy), made

    def finish(self, block: nn.Module) -> None:
        assert block in self.there

    def drop(self, block: nn.Module) -> None:
        if block in self.there:
            copies, made = self.there.pop(block)
            copies.drop()
            for tensor in made:
                tensor.fill_(float("nan"))


@pytest.mark.parametrize("resident", [0, 2, 3])
@pytest.mark.parametrize("held", [False, True])
def test_streamed_blocks_are_merged_as_they_arrive(
    resident: int,
    held: bool,
    model: LTXTransformer,
    lora: Callable[..., WeightedLoRA],
    velocity: Callable[..., Tensor],
) -> None:
    """held: in pinned memory meanwhile."""
    everything = {key: tensor for kind in KINDS.values() for key, tensor in kind.items()}
    items = [lora(every_linear(model), 0.5), lora(everything, 0.7)]
    base, before = velocity(model), state(model)
    with applied(model, items, "merged"):
        expected = velocity(model)
    with ExitStack() as stack:
        if held:
            for block in list(model.transformer_blocks)[resident:]:
                stack.callback(Copies(block, torch.clone).drop)
        with streamed(model, torch.device("cpu"), resident, transfers=Arriving()):
            with applied(model, items):
                assert torch.equal(velocity(model), expected)
                assert torch.equal(velocity(model), expected)
                originals = [
                    value
                    for block in list(nn.ModuleList.__iter__(model.transformer_blocks))[resident:]
                    for value in block.parameters()
                    if isinstance(value, CopiedParameter) and value.holds
                ]
                assert not originals  # no copy of a block that is away
            assert torch.equal(velocity(model), base)
    assert same(model, before)


def test_streamed_where_nothing_is_copied(
    model: LTXTransformer, lora: Callable[..., WeightedLoRA], velocity: Callable[..., Tensor]
) -> None:
    items, before = [lora(every_linear(model), 0.5)], state(model)
    with applied(model, items, "merged"):
        expected = velocity(model)
    for keep in (False, None):
        place = DevicePlacement("cpu", keep=keep, resident_blocks=1, kernels=PLAIN)
        for _ in range(2):
            with place(model), applied(model, items, "merged"):
                assert torch.equal(velocity(model), expected)
        place.release_all()
        assert same(model, before)


def test_divided_among_devices(
    model: LTXTransformer,
    lora: Callable[..., WeightedLoRA],
    velocity: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Second(Copies):
        def __init__(self, module: nn.Module, _: torch.device, *, leave: Any = ()) -> None:
            super().__init__(module, torch.clone, leave=leave)

    monkeypatch.setattr(balanced, "DeviceCopies", Second)
    items, before, base = [lora(every_linear(model), 0.5)], state(model), velocity(model)
    with applied(model, items, "merged"):
        expected = velocity(model)
    counter, place = Counter(monkeypatch), BalancedPlacement(["cpu", "cpu"], keep=None)
    for number in range(2):
        with place(model), applied(model, items):
            assert torch.equal(velocity(model), expected)
        assert (counter.since()[0] > 0) == (number == 0)
    with place(model):
        assert torch.equal(velocity(model), base)
    place.release_all()
    assert same(model, before)


# --- which of the two -------------------------------------------------------------------------------------------------


@pytest.fixture
def noted() -> list[Application]:
    return []


def test_a_cpu_without_room_for_copies_has_them_beside(
    model: LTXTransformer,
    lora: Callable[..., WeightedLoRA],
    noted: list[Application],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    item = lora(KINDS["lora"] | KINDS["norms"])
    nbytes = (2 * 32 * 32 + 32 * 128) * 4
    for room, merged in ((nbytes, 3), (nbytes - 1, 0)):
        with using(model, Active(PLAIN, room)), applied(model, [item], note=noted.append):
            assert sum(bool(module._forward_hooks) for module in model.modules()) == 3 - merged
        assert noted.pop() == Application(merged, 3 - merged, no_room=not merged)
    with using(model, Active(PLAIN, 0)), applied(model, [item], "merged", noted.append):  # asked for is asked for
        assert noted.pop() == Application(3, 0)
    monkeypatch.setattr(merging, "memory", lambda _: None)  # unknown
    with applied(model, [item], note=noted.append):
        assert noted.pop().mode == "beside"
    copies = on_a_device(model)  # which have room of their own
    with using(model, Active(PLAIN, 0)), applied(model, [item], note=noted.append):
        assert noted.pop() == Application(3, 0)
    copies.drop()


def test_on_quantized_weights_they_are_beside(
    model: LTXTransformer,
    lora: Callable[..., WeightedLoRA],
    noted: list[Application],
    velocity: Callable[..., Tensor],
) -> None:
    quantized = LTXTransformer(model.config).eval().requires_grad_(False)
    pack = quantization_by_name("int8", "transformer_blocks.").prepare(quantized, {}, torch.float32)
    packed = {name: value for key, each in model.state_dict().items() for name, value in pack(key, each).items()}
    quantized.load_state_dict(packed, assign=True)
    linears = sum(isinstance(module, nn.Linear) for module in model.modules())
    inside, outside = lora(KINDS["lora"]), lora(every_linear(model))
    with applied(quantized, [outside], note=noted.append):
        assert noted == [Application(linears - 40, 40)]
        assert str(noted[0]) == f"LoRAs are merged into {linears - 40} weights, added beside 40 quantized ones."
        got = velocity(quantized)
    with applied(quantized, [outside], "beside"):
        assert distance(got, velocity(quantized)) < 1e-5
    with applied(quantized, [inside], note=noted.append):
        assert str(noted[-1]) == "LoRAs are added beside 3 Linears."
    message = r"merged for LoRAs that change quantized weights alone.*use auto or beside"
    with pytest.raises(ConfigError, match=message), applied(quantized, [inside], "merged"):
        pass
    with pytest.raises(ConfigError, match="quantized weights alone"):
        check_mode("merged", [inside], quantized)
    check_mode("merged", [outside], quantized)


def test_weights_in_training_are_left_alone(
    lora: Callable[..., WeightedLoRA], noted: list[Application], velocity: Callable[..., Tensor]
) -> None:
    trained = made().requires_grad_(True)
    with applied(trained, [lora(KINDS["lora"])], note=noted.append):
        assert noted == [Application(0, 3)]


def test_all_beside_are_one_pair_of_factors(
    model: LTXTransformer, lora: Callable[..., WeightedLoRA], velocity: Callable[..., Tensor]
) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func.__name__.startswith(("mm", "addmm", "bmm", "baddbmm"))
            return func(*args, **(kwargs or {}))

    def products(items: list[WeightedLoRA]) -> int:
        with applied(model, items, "beside"):
            velocity(model)
            with Products() as mode:
                velocity(model)
        return mode.count

    items = [lora(every_linear(model, rank), strength) for rank, strength in ((2, 0.5), (3, -0.2), (4, 0.1))]
    none, one, three = products([]), products(items[:1]), products(items)
    linears = sum(isinstance(module, nn.Linear) for module in model.modules())
    assert one - none == three - none == 2 * linears


@pytest.mark.parametrize("quantization", ["int8", "nf4", "fp8"])
@pytest.mark.parametrize("rows", [16, 17])
def test_many_tokens_change_the_weight_that_is_unpacked_anyway(
    rows: int, quantization: str, model: LTXTransformer, lora: Callable[..., WeightedLoRA]
) -> None:
    """32x32 weights: from 17 tokens on that is less work than two more products."""
    quantized = LTXTransformer(model.config).eval().requires_grad_(False)
    pack = quantization_by_name(quantization, "transformer_blocks.").prepare(quantized, {}, torch.float32)
    packed = {name: value for key, each in model.state_dict().items() for name, value in pack(key, each).items()}
    quantized.load_state_dict(packed, assign=True)
    linear: Any = quantized.get_submodule("transformer_blocks.0.attn1.to_q")
    x = noise(rows, 32)
    down, up = (KINDS["lora"][f"{STEM}.0.attn1.to_q.lora_{half}.weight"] for half in "AB")
    with torch.no_grad():
        own = linear(x)
        with applied(quantized, [lora(KINDS["lora"], 0.5), lora(KINDS["lora"], 0.3)]):
            changes: list[bool] = []
            unpack = type(linear).dequantized

            def seen(this: Any, dtype: torch.dtype) -> Tensor:
                changes.append(this.change is not None)
                return unpack(this, dtype)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(linear), "dequantized", seen)
                got = linear(x)
        assert any(changes) == (rows > 16)
        torch.testing.assert_close(got, own + 0.8 * x @ down.T @ up.T, rtol=1e-4, atol=1e-5)
        assert linear.change is None
        assert torch.equal(linear(x), own)


def test_what_merging_takes_is_counted(model: LTXTransformer, lora: Callable[..., WeightedLoRA]) -> None:
    item = lora(KINDS["lora"])
    assert merging_work(model, [item], "auto") == 4 * 32 * 128
    assert merging_work(model, [item, lora(KINDS["dora"])], "auto") == 24 * 32 * 32
    assert merging_work(model, [item], "beside") == 0
    assert device_bytes([item], 4) > 0

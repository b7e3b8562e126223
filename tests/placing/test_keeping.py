"""Models that stay on a device: nothing that fits is copied twice, and nothing stays in the way.

Meta stands in for the device, and a number for its memory.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ltxkit.ltx_core.budget.keeping import leaving
from ltxkit.ltx_core.budget.weights import MARGIN, weight_bytes
from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.placing import balanced, devices, placement
from ltxkit.ltx_core.placing.balanced import BalancedPlacement
from ltxkit.ltx_core.placing.copies import Copies
from ltxkit.ltx_core.placing.placement import DevicePlacement

TOTAL = 8_000_000
MARGIN_BYTES = int(MARGIN * TOTAL)


class Card:
    """A device of `TOTAL` bytes: what is on it takes its place. copies: bytes that were copied to it, one by one."""

    def __init__(self) -> None:
        self.copies: list[int] = []
        self.models: list[nn.Module] = []

    def model(self, nbytes: int) -> nn.Module:
        """A module of so many bytes, in one weight."""
        made = nn.Module()
        made.weight = nn.Parameter(torch.zeros(nbytes, dtype=torch.uint8), requires_grad=False)
        return self.watched(made)

    def watched(self, model: nn.Module) -> nn.Module:
        self.models.append(model)
        return model

    def memory(self, device: torch.device) -> devices.Memory:
        there = sum(tensor.nbytes for model in self.models for tensor in model.parameters() if tensor.is_meta)
        return devices.Memory(TOTAL - there, TOTAL)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    made = Card()
    to = torch.Tensor.to

    def counted(tensor: torch.Tensor, *args: object, **named: object) -> torch.Tensor:
        result = to(tensor, *args, **named)
        if result.is_meta and not tensor.is_meta:
            made.copies.append(tensor.nbytes)
        return result

    monkeypatch.setattr(torch.Tensor, "to", counted)
    monkeypatch.setattr(placement, "memory", made.memory)
    monkeypatch.setattr(balanced, "memory", made.memory)
    return made


def on_device(model: nn.Module) -> bool:
    return next(model.parameters()).is_meta


# ----------------------------------------------------------------------------------------------------- the planner


@pytest.mark.parametrize(
    ("kept", "lacking", "expected"),
    [
        ({"a": 5, "b": 3}, 0, set()),
        ({"a": 5, "b": 3}, -4, set()),
        ({"a": 5, "b": 3}, 1, {"b"}),
        ({"a": 5, "b": 3}, 4, {"a"}),
        ({"a": 5, "b": 3}, 6, {"a", "b"}),
        ({"a": 5, "b": 3}, 100, {"a", "b"}),
        ({"a": 10, "b": 4, "c": 3}, 6, {"b", "c"}),
        ({}, 3, set()),
        ({str(number): number for number in range(1, 12)}, 12, {"11", "10"}),
    ],
)
def test_those_leave_that_are_the_cheapest_to_copy_again(
    kept: dict[str, int], lacking: int, expected: set[str]
) -> None:
    assert set(leaving(kept, lacking)) == expected


# --------------------------------------------------------------------------------------------------- one device


def test_what_fits_is_copied_once(card: Card) -> None:
    place, models = DevicePlacement("meta", keep=None), [card.model(size) for size in (3_000_000, 2_000_000, 500_000)]
    for _ in range(10):
        for model in models:
            with place(model, memory_required=100_000):
                assert on_device(model)
    assert card.copies == [3_000_000, 2_000_000, 500_000]
    place.release_all()
    assert not any(map(on_device, models))


def test_without_keeping_every_call_copies(card: Card) -> None:
    place, model = DevicePlacement("meta", keep=False), card.model(1000)
    for _ in range(3):
        with place(model):
            pass
        assert not on_device(model)
    assert card.copies == [1000] * 3


def test_what_is_in_the_way_leaves(card: Card) -> None:
    place = DevicePlacement("meta", keep=None)
    text, transformer, vae = (card.model(size) for size in (4_000_000, 5_000_000, 500_000))
    for model in (text, vae, transformer):
        with place(model):
            pass
    assert [on_device(model) for model in (text, vae, transformer)] == [False, True, True]
    with place(transformer):
        pass
    assert card.copies == [4_000_000, 500_000, 5_000_000]


def test_work_needs_room_too(card: Card) -> None:
    """A model that is there already makes others leave when its work grows."""
    place, first, second = DevicePlacement("meta", keep=None), card.model(3_000_000), card.model(2_000_000)
    for model in (first, second):
        with place(model):
            pass
    with place(first, memory_required=1_500_000):  # half is added for what the allocator cannot use
        assert on_device(second)
    with place(first, memory_required=2_500_000):
        assert on_device(first)
        assert not on_device(second)


def test_work_has_as_much_room_as_if_nothing_was_kept(card: Card) -> None:
    """Otherwise the second clip would be cut into other tiles than the first."""
    keeping, plain = DevicePlacement("meta", keep=None), DevicePlacement("meta")
    text, vae = card.model(4_000_000), card.model(1_000_000)
    expected = TOTAL - 1_000_000 - MARGIN_BYTES
    assert plain.spare_memory(vae) == keeping.spare_memory(vae) == expected
    for model in (text, vae):
        with keeping(model):
            pass
        assert keeping.spare_memory(vae) == expected


def test_told_to_keep_it_keeps_and_streams_the_rest(card: Card) -> None:
    transformer = card.watched(blocks())
    block = weight_bytes(transformer.transformer_blocks[0])
    other = card.model(TOTAL - MARGIN_BYTES - weight_bytes(transformer) + block)
    place = DevicePlacement("meta", keep=True)
    with place(other):
        pass
    with place(transformer):
        assert on_device(other)
        assert not on_device(transformer.transformer_blocks[-1])
    planned = DevicePlacement("meta", keep=None)
    place.release_all()
    for model in (other, transformer):
        with planned(model):
            pass
    assert not on_device(other)
    assert on_device(transformer.transformer_blocks[-1])


def test_the_resident_part_of_a_streamed_model_is_copied_once(card: Card) -> None:
    model = card.watched(blocks())
    before = [(name, id(tensor)) for name, tensor in model.named_parameters()]
    place, copied = DevicePlacement("meta", keep=None), []
    for _ in range(3):
        with place(model, resident_blocks=2):
            assert on_device(model.transformer_blocks[1])
            assert not on_device(model.transformer_blocks[2])
            for _ in model.transformer_blocks:  # a forward
                pass
        copied.append(sum(card.copies))
        card.copies.clear()
    away = sum(weight_bytes(each) for each in list(model.transformer_blocks)[2:])
    assert copied == [weight_bytes(model), away, away]
    assert type(model.transformer_blocks) is nn.ModuleList
    with place(model):  # more room: now as a whole
        assert on_device(model.transformer_blocks[-1])
    place.release(model)
    assert [(name, id(tensor)) for name, tensor in model.named_parameters()] == before


def test_running_out_of_memory_leaves_nothing_behind(card: Card) -> None:
    place, models = DevicePlacement("meta", keep=None), [card.model(size) for size in (1000, 2000)]
    with place(models[0]):
        pass
    with pytest.raises(torch.OutOfMemoryError), place(models[1]):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert not any(map(on_device, models))


def test_an_interrupt_keeps_what_is_there(card: Card) -> None:
    place, model = DevicePlacement("meta", keep=None), card.model(1000)
    with pytest.raises(KeyboardInterrupt), place(model):
        raise KeyboardInterrupt
    with place(model):
        pass
    assert card.copies == [1000]
    place.release(model)
    assert not on_device(model)


def test_a_device_with_less_room_than_planned_is_emptied_first(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    place, first, second = DevicePlacement("meta", keep=None), card.model(1000), card.model(2000)
    with place(first):
        pass
    to = torch.Tensor.to

    def short(tensor: torch.Tensor, *args: object, **named: object) -> torch.Tensor:
        if on_device(first) and tensor is second.weight:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return to(tensor, *args, **named)

    monkeypatch.setattr(torch.Tensor, "to", short)
    with place(second):
        assert on_device(second)
        assert not on_device(first)


def test_a_model_that_is_gone_is_not_kept(card: Card) -> None:
    place = DevicePlacement("meta", keep=None)
    with place(card.model(6_000_000)):
        pass
    card.models.clear()
    other = card.model(6_000_000)
    with place(other):
        pass
    assert len(place._kept) == 1


def test_what_another_one_put_in_the_place_of_a_copy_stays() -> None:
    """A LoRA puts a changed norm there and takes it away again, in any order with the copies."""
    layer = nn.LayerNorm(2)
    own, changed = layer.weight, nn.Parameter(torch.zeros(2))
    copies = Copies(layer, torch.clone)
    layer.weight = changed
    copies.drop()
    assert layer.weight is changed
    assert layer.bias is not None
    layer.weight = own
    assert layer.weight is own


# ---------------------------------------------------------------------------------------------- several devices


def test_a_divided_model_is_copied_once_and_leaves_for_another(card: Card) -> None:
    first, second = card.watched(blocks()), card.watched(blocks())
    place = BalancedPlacement(["meta", "meta"], keep=None)
    for _ in range(3):
        with place(first):
            assert on_device(first)
    assert sum(card.copies) == weight_bytes(first)
    crowd = card.model(TOTAL - MARGIN_BYTES - weight_bytes(first) - 1)
    with place(crowd):
        pass
    with place(second):
        pass
    assert not on_device(first)
    place.release_all()
    assert not any(map(on_device, (first, second, crowd)))


def test_only_true_false_or_nothing_is_said_about_keeping() -> None:
    with pytest.raises(ConfigError, match="keep"):
        Components.load("nowhere.safetensors", "nowhere", keep="always")  # type: ignore[arg-type]


def blocks() -> LTXTransformer:
    """A small transformer of five blocks."""
    return LTXTransformer(TransformerConfig.of_size(layers=5, heads=2, head_dim=16, channels=6, captions=10)).eval()

"""A placed model computes by the chosen forms, and plainly again afterwards."""

import pytest
import torch

from ltxkit.ltx_core.budget import packing as budget_packing
from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.kernels import private
from ltxkit.ltx_core.kernels.active import PLAINLY, keep_dtype
from ltxkit.ltx_core.kernels.choice import PLAIN, parse_kernels
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.placing import computing as computing_module
from ltxkit.ltx_core.placing import placement as placement_module
from ltxkit.ltx_core.placing.devices import Memory
from ltxkit.ltx_core.placing.placement import DevicePlacement

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
pytestmark = [
    pytest.mark.skipif(not private.works("products", F32), reason="this torch has no oneDNN products"),
    pytest.mark.usefixtures("ample_memory"),
]
GRID = (3, 7, 8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = LTXTransformer(TransformerConfig.of_size(layers=3, heads=4, head_dim=16, channels=16, captions=32))
    return made.eval().requires_grad_(False)


@pytest.fixture
def in_dtype(model):
    def cast(dtype):
        return model.to(dtype)

    yield cast
    model.to(F32)
    model.__dict__.pop("keeps_dtype", None)


def step(model, guided=False, conditioned=False):
    """Velocities of every branch: with guidance three of them, one of which leaves in the second block."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(size) for size in GRID), indexing="ij")).reshape(1, 3, -1)
    made = torch.Generator().manual_seed(3)
    tokens = grid.shape[2]
    x = torch.randn(1, tokens, 16, generator=made)
    sigma = torch.full((1, 1, 1), 0.7)
    if conditioned:
        sigma = torch.where(torch.arange(tokens) < 56, 0.0, 0.7)[None, :, None]
    with torch.inference_mode():
        rotary = model.prepare_positions(grid.float())
        positive = model.prepare_text([torch.randn(20, 32, generator=made)])
        negative = model.prepare_text([torch.randn(9, 32, generator=made)])
        branches = [Branch(positive)]
        if guided:
            branches = [Branch(negative), Branch(positive), Branch(positive, frozenset({1}))]
        return torch.cat(model(x, sigma, rotary, branches))


def distance(result, expected):
    return ((result.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def kernels(text):
    return parse_kernels(text, "asked for")


FORMS = [
    "products=onednn",
    "products=packed",
    "attention=products",
    "norms=pieces",
    "products=packed,attention=products,norms=pieces",
]


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_step_by_every_form_is_that_of_plain_torch(form, guided, conditioned, model):
    expected = step(model, guided, conditioned)
    with DevicePlacement("cpu", kernels=kernels(form))(model):
        result = step(model, guided, conditioned)
    assert distance(result, expected) <= 1e-5
    assert torch.equal(step(model, guided, conditioned), expected), "plain again"


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_stays_within_its_rounding(form, model, in_dtype):
    reference = step(in_dtype(torch.float64))
    in_dtype(BF16)
    plain = distance(step(model), reference)
    with DevicePlacement("cpu", kernels=kernels(form))(model):
        result = step(model)
    assert distance(result, reference) <= 2 * plain, "as far from float64 as plain bfloat16 is, give or take"


@pytest.mark.parametrize("stored", [BF16, F16])
def test_16_bits_in_float32_are_as_exact_as_float32(stored, model, in_dtype):
    in_dtype(stored)
    wide = LTXTransformer(model.config).eval()
    wide.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    for form in ("dtype=float32", "products=packed,dtype=float32"):
        with DevicePlacement("cpu", kernels=kernels(form))(model):
            assert model.compute_dtype == F32
            assert distance(step(model), step(wide)) <= 1e-5
    assert model.dtype == stored


def test_an_asked_for_dtype_is_computed_in(model, in_dtype):
    in_dtype(BF16)
    keep_dtype(model)
    native = model.compute_dtype
    with DevicePlacement("cpu", kernels=kernels("products=packed,dtype=float32"))(model):
        assert model.compute_dtype == native
        assert model.transformer_blocks[0].ff.net[2].active.kernels.products.packs(BF16)


def packed_bytes(model):
    return {part.active.packed_bytes for part in model.modules() if hasattr(type(part), "active")}


def test_weights_are_packed_beside_the_originals_and_freed(model):
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    with DevicePlacement("cpu", kernels=kernels("products=packed"))(model):
        step(model)
        (size,) = packed_bytes(model)
        own = sum(block.ff.net[2].weight.nbytes for block in model.transformer_blocks)
        assert own < size <= sum(parameter.nbytes for parameter in model.parameters())
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert all(part.active is PLAINLY for part in model.modules() if hasattr(type(part), "active"))


def test_streamed_blocks_are_not_packed(model):
    expected = step(model)
    with DevicePlacement("cpu", kernels=kernels("products=packed"), resident_blocks=1)(model):
        result = step(model)
        first, *others = model.transformer_blocks
        assert first.ff.net[2].active.packed_bytes > 0
        assert {block.ff.net[2].active.packed_bytes for block in others} == {0}
        assert first.ff.net[2].active.packed_bytes < sum(parameter.nbytes for parameter in first.parameters()) * 1.5
    assert distance(result, expected) <= 1e-5


@pytest.mark.parametrize("free", [None, Memory(0, 1 << 30), Memory(1 << 28, 1 << 30)])
def test_without_room_nothing_is_packed_and_the_clip_is_the_same(free, model, monkeypatch):
    with DevicePlacement("cpu", kernels=kernels("products=packed"))(model):
        packed = step(model)
    monkeypatch.setattr(computing_module, "memory", lambda device: free)
    with DevicePlacement("cpu", kernels=kernels("products=packed"))(model):
        assert torch.equal(step(model), packed)
        assert packed_bytes(model) == {0}


def test_work_goes_before_packing(model, monkeypatch):
    monkeypatch.setattr(computing_module, "memory", lambda device: Memory(1 << 30, 1 << 30))
    with DevicePlacement("cpu", kernels=kernels("products=packed"))(model, memory_required=1 << 29):
        step(model)
        assert packed_bytes(model) == {0}


def test_a_kept_model_keeps_what_is_packed_until_it_is_released(model):
    place = DevicePlacement("cpu", keep=True, kernels=kernels("products=packed"))
    with place(model):
        step(model)
        (size,) = packed_bytes(model)
    with place(model):
        assert packed_bytes(model) == {size}
    place.release(model)
    assert packed_bytes(model) == {0}


def test_kept_models_divide_the_room_for_packing(model, monkeypatch):
    """Those leave that are in the way of the next one's packed weights; with keep=True nobody leaves."""
    second = LTXTransformer(model.config).eval().requires_grad_(False)
    wanted, total = budget_packing.packed_bytes(model, kernels("products=packed"), 1 << 40), 1 << 30
    with DevicePlacement("cpu", kernels=kernels("products=packed"))(model):
        step(model)
        (whole,) = packed_bytes(model)
    for keep, room, first_stays in ((None, 2.5, True), (None, 1.5, False), (True, 1.5, True)):
        place = DevicePlacement("cpu", keep=keep, kernels=kernels("products=packed"))

        def memory(device, place=place, room=room):
            kept = sum(kept.packed_bytes for kept in place._kept.values())
            return Memory(total // 4 + int(room * wanted) - kept, total)

        monkeypatch.setattr(computing_module, "memory", memory)
        monkeypatch.setattr(placement_module, "memory", memory)
        for each in (model, second):
            with place(each):
                step(each)
        assert (model in place._kept) == first_stays
        size = place._kept[second].packed_bytes
        assert (size == whole) == (keep is None), "what does not fit beside a kept one stays as it is"
        with place(second):
            step(second)
        assert place._kept[second].packed_bytes == size
        place.release_all()


def test_kept_models_leave_where_work_needs_the_room(model, monkeypatch):
    second = LTXTransformer(model.config).eval().requires_grad_(False)
    place = DevicePlacement("cpu", keep=None, kernels=kernels("products=packed"))
    with place(model):
        step(model)
    monkeypatch.setattr(placement_module, "memory", lambda device: Memory(1 << 29, 1 << 30))
    with place(second, memory_required=1 << 20):
        assert model in place._kept
    with place(second, memory_required=1 << 28):
        assert model not in place._kept


def test_a_kept_model_computes_by_its_kernels_only_where_it_is_placed(model):
    place = DevicePlacement("cpu", keep=None, kernels=kernels("products=packed"))
    with place(model):
        step(model)
    assert all(part.active is PLAINLY for part in model.modules() if hasattr(type(part), "active"))
    assert place._kept[model].packed_bytes > 0


def test_hooks_such_as_those_of_a_lora_see_the_product_before_gelu(model):
    linear = model.transformer_blocks[1].ff.net[0].proj
    handle = linear.register_forward_hook(lambda module, inputs, output: output + 1)
    try:
        expected = step(model)
        with DevicePlacement("cpu", kernels=kernels("products=packed"))(model):
            result = step(model)
    finally:
        handle.remove()
    assert distance(result, expected) <= 1e-5
    assert distance(step(model), expected) > 1e-3


def test_an_exception_leaves_the_model_plain(model):
    with pytest.raises(KeyboardInterrupt), DevicePlacement("cpu", kernels=kernels("products=packed"))(model):
        raise KeyboardInterrupt
    assert packed_bytes(model) == {0}


def test_only_a_cpu_has_a_choice(monkeypatch):
    assert DevicePlacement("cpu").kernels == PLAIN  # what the variable of the tests says
    assert DevicePlacement("meta", kernels=kernels("products=packed")).kernels is None

"""Back ends of cards: which is chosen, what is said; each call has the shapes and gives the numbers of plain torch.

comfy-kitchen computes here by its own plain torch. FlashAttention and SageAttention have no kernels for CPUs: stand-ins
with their signatures check what they are given.
"""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.kernels import cards, fused
from ltxkit.ltx_core.kernels.active import PLAINLY, Active
from ltxkit.ltx_core.kernels.attention import attention
from ltxkit.ltx_core.kernels.cards import PLAIN_CARD, Capabilities, CardKernels, chosen
from ltxkit.ltx_core.kernels.choice import CARD_FORMS, PLAIN, check_device, parse_kernels
from ltxkit.ltx_core.kernels.elementwise import MOST_RUNS, TokenRows, gated_sum, modulation, norm_rotation
from ltxkit.ltx_core.kernels.here import asked_kernels, kernels_here
from ltxkit.ltx_core.kernels.products import product
from ltxkit.ltx_core.kernels.rotation import form_of, rotated, rotation_table, table_size
from ltxkit.ltx_core.placing.placement import DevicePlacement

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
EVERYTHING = frozenset(form for forms in CARD_FORMS.values() for form in forms)
HOPPER = Capabilities("cuda", (9, 0), EVERYTHING)
FUSED = CardKernels(elementwise=fused.KITCHEN)


def right(form):
    return None


def random(*size, dtype=F32, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (HOPPER, ("comfy-kitchen", "flash-attn-4")),
        (Capabilities("cuda", (9, 0), EVERYTHING - {"flash-attn-4"}), ("comfy-kitchen", "flash-attn-3")),
        (Capabilities("cuda", (8, 9), EVERYTHING), ("comfy-kitchen", "plain")),
        (Capabilities("cuda", (7, 5), EVERYTHING), ("comfy-kitchen", "plain")),
        (Capabilities("cuda", (6, 1), EVERYTHING), ("plain", "plain")),
        (Capabilities("cuda", (9, 0)), ("plain", "plain")),
        (Capabilities("rocm", None, EVERYTHING), ("plain", "plain")),
        (Capabilities("mps", None, EVERYTHING), ("plain", "plain")),
        (Capabilities("xpu", None, EVERYTHING), ("plain", "plain")),
    ],
)
def test_the_best_of_what_is_there_is_chosen_and_approximate_ones_never(facts, expected):
    choice = chosen(facts, None, right)
    assert (choice.elementwise, choice.attention) == expected
    assert choice.unpacking == (
        "bitsandbytes" if facts.packages and facts.compute and facts.compute >= (7, 0) else "plain"
    )
    assert ("NF4" in choice.in_words()) == (choice.unpacking != "plain")


def test_a_back_end_that_computes_something_else_is_left_out_and_said():
    choice = chosen(HOPPER, None, lambda form: "its results differ" if form != fused.FLASH_3 else None)
    assert (choice.elementwise, choice.attention) == ("plain", fused.FLASH_3)
    assert choice.why == (
        "comfy-kitchen is left out: its results differ.",
        "flash-attn-4 is left out: its results differ.",
        "bitsandbytes is left out: its results differ.",
    )
    assert choice.in_words() == "elementwise operations by plain torch; attention by flash-attn-3"


def test_what_is_asked_for_overrules():
    asked = dict(parse_kernels("attention=sageattention", "asked for").card)
    choice = chosen(HOPPER, asked, right)
    assert (choice.elementwise, choice.attention) == ("plain", "sageattention")
    assert "approximate" in choice.in_words()
    plain = parse_kernels("plain", "asked for")
    assert chosen(HOPPER, dict(plain.card), right) == PLAIN_CARD


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (Capabilities("cuda", (9, 0)), "is not installed"),
        (Capabilities("cuda", (6, 1), EVERYTHING), "compute capability 6.1"),
        (Capabilities("rocm", None, EVERYTHING), "this is rocm"),
        (Capabilities("mps"), "this is mps"),
    ],
)
@pytest.mark.parametrize(
    "text", ["elementwise=comfy-kitchen", "attention=flash-attn-3", "attention=sageattention", "unpacking=bitsandbytes"]
)
def test_a_back_end_that_is_not_there_is_one_sentence(facts, said, text):
    with pytest.raises(ConfigError, match=rf"got the kernels {text}; expected a back end .*{said}.*; leave it out"):
        chosen(facts, dict(parse_kernels(text, "asked for").card), right)
    with pytest.raises(ConfigError, match="it fails"):
        chosen(HOPPER, dict(parse_kernels(text, "asked for").card), lambda form: "it fails")


def test_a_cpu_computes_by_torch_alone(monkeypatch):
    for text in ("elementwise=comfy-kitchen", "products=packed,attention=flash-attn-3"):
        with pytest.raises(ConfigError, match=r"expected forms of a CPU"):
            kernels_here(text)
        monkeypatch.setenv("LTXKIT_KERNELS", text)
        with pytest.raises(ConfigError, match=r"choose a card as the device"):
            kernels_here()
        check_device(asked_kernels(), torch.device("cuda"))
    assert DevicePlacement("cpu").card is None


def test_packages_are_found_without_importing_them(monkeypatch):
    monkeypatch.setattr(cards.importlib.util, "find_spec", lambda name: object() if name == "sageattention" else None)
    assert cards._installed() == {"sageattention"}


def test_each_device_says_what_it_is(monkeypatch):
    assert Capabilities.of(torch.device("xpu")) == Capabilities("xpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    turing = Capabilities.of(torch.device("cuda:0"))
    assert (turing.kind, turing.compute, turing.bfloat16) == ("cuda", (7, 5), False)
    monkeypatch.setattr(torch.version, "hip", "6.2")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert Capabilities.of(torch.device("cuda:0")) == Capabilities("rocm")


# --- the calls --------------------------------------------------------------------------------------------------------


def test_comfy_kitchen_is_tried_and_computes_what_torch_does():
    assert fused.wrong(fused.KITCHEN, torch.device("cpu")) is None


def test_a_wrong_missing_or_other_version_is_found(monkeypatch):
    kitchen = fused._kitchen()
    monkeypatch.setattr(kitchen, "rms_adaln", lambda x, scale, shift, eps: torch.zeros_like(x))
    assert "differ" in fused.wrong(fused.KITCHEN, torch.device("cpu"))
    monkeypatch.delattr(kitchen, "rms_rope_")
    monkeypatch.setattr(kitchen, "rms_adaln", lambda x, scale, shift, eps: x[:1, :1])
    assert "it fails on this device" in fused.wrong(fused.KITCHEN, torch.device("cpu"))
    assert "ModuleNotFoundError" in fused.wrong(fused.FLASH_3, torch.device("cpu"))


def test_gelu_in_a_product_is_not_taken_where_it_is_the_other_gelu():
    assert not fused.gelu_works(torch.device("cpu"))
    x, weight, bias = random(2, 5, 8), random(4, 8), random(4)
    with torch.inference_mode():
        result = fused.gelu_product(x, weight, bias)  # by erf, on CPUs
        assert torch.allclose(result, F.gelu(F.linear(x, weight, bias)), atol=1e-6)


def test_gelu_in_a_product_is_taken_where_it_is_right(monkeypatch):
    def by_tanh(bias, x, weight, use_gelu):
        assert use_gelu
        return F.gelu(F.linear(x, weight.T, bias), approximate="tanh")

    monkeypatch.setattr(fused, "_gelu_operator", by_tanh)
    assert fused.gelu_works(torch.device("cpu"))
    active = Active(PLAIN, card=CardKernels(gelu_in_product=True))
    x, weight, bias = random(2, 5, 8), random(4, 8), random(4)
    with torch.inference_mode():
        assert torch.equal(product(x, weight, bias, active, gelu=True), product(x, weight, bias, PLAINLY, gelu=True))
        calls = []
        monkeypatch.setattr(fused, "gelu_product", lambda *given: calls.append(given))
        product(x, weight, None, active, gelu=True)
        product(x, weight.bfloat16(), bias, active, gelu=True)  # to be cast
        product(x, weight, bias, active)
    product(x, weight, bias, active, gelu=True)  # with autograd
    assert not calls


def stand_in(calls, *, exact=True, returns_sums=False):
    """A function of flash_attn_interface, flash_attn.cute or sageattention: (b n heads head_dim) in half precision."""

    def attend(q, k, v, **options):
        for part in (q, k, v):
            assert part.dtype in (BF16, F16)
            assert part.ndim == 4
            assert part.stride(-1) == 1
        assert q.shape[2:] == k.shape[2:] == v.shape[2:]
        calls.append((tuple(q.shape), tuple(k.shape), options))
        mean = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v))).transpose(1, 2)
        mean = mean if exact else mean + 0.005 * random(*mean.shape).to(mean)
        return (mean, None) if returns_sums else mean

    return attend


@pytest.mark.parametrize("returns_sums", [False, True])
@pytest.mark.parametrize(
    ("form", "module", "function"),
    [
        ("flash-attn-3", "flash_attn_interface", "flash_attn_func"),
        ("flash-attn-4", "flash_attn.cute", "flash_attn_func"),
        ("sageattention", "sageattention", "sageattn"),
    ],
)
def test_attention_by_other_packages(form, module, function, returns_sums, monkeypatch):
    calls = []
    package = ModuleType(module)
    setattr(package, function, stand_in(calls, returns_sums=returns_sums))
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, module, package)
    active = Active(PLAIN, card=CardKernels(attention=form))
    q, k, v = (random(2, n, 3, 64, dtype=BF16).transpose(1, 2) for n in (7, 5, 5))
    with torch.inference_mode():
        assert torch.equal(attention(q, k, v, active), attention(q, k, v, PLAINLY))
        assert calls[0][:2] == ((2, 7, 3, 64), (2, 5, 3, 64))
        assert calls[0][2] == ({"tensor_layout": "NHD", "is_causal": False} if form == "sageattention" else {})
        attention(q.float(), k.float(), v.float(), active)  # has no kernel in float32
    with torch.enable_grad():
        attention(q, k, v, active)
    assert len(calls) == 1
    assert fused.wrong(form, torch.device("cpu")) is None
    setattr(package, function, stand_in([], exact=False))
    assert (fused.wrong(form, torch.device("cpu")) is None) == (form == "sageattention")  # cosine 0.999


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize(("samples", "tables"), [(1, 1), (2, 1), (2, 2)])
def test_norm_and_rotation_in_one_kernel(dtype, lanes, samples, tables):
    query, key = (random(lanes, samples, 5, 64, dtype=dtype, seed=seed) for seed in (1, 2))
    weights = random(64, seed=3), random(64, seed=4)
    angles = random(tables, 5, 32, seed=5) * 9
    exact = norm_rotation(
        query.double().float(), key.float(), weights, 1e-5, rotation_table(angles, "complex"), PLAINLY
    )
    with torch.inference_mode():
        arguments = (query.clone(), key.clone(), weights, 1e-5, rotation_table(angles, "matrices"))
        result = norm_rotation(*arguments, Active(PLAIN, card=FUSED))
    for mine, theirs in zip(result, exact, strict=True):
        assert (mine.shape, mine.dtype) == (query.shape, dtype)
        assert (mine.float() - theirs).abs().max() <= 4 * torch.finfo(dtype).eps * theirs.abs().max()


# --- rotation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["complex", "planes", "matrices"])
def test_tables_of_each_form_rotate_alike(form):
    angles = random(2, 7, 12) * 9
    table = rotation_table(angles, form)
    assert form_of(table) == form
    assert table_size(table) == (2, 7)
    x = random(3, 2, 7, 24, seed=1)
    pairs = x.double().unflatten(-1, (-1, 2))
    cos, sin = angles.double().cos(), angles.double().sin()
    turned = (pairs[..., 0] * cos - pairs[..., 1] * sin, pairs[..., 0] * sin + pairs[..., 1] * cos)
    exact = torch.stack(turned, -1).flatten(-2)
    with torch.no_grad():
        assert (rotated(x, table) - exact).abs().max() <= 1e-6 * exact.abs().max()
        half = rotated(x.bfloat16(), table)
    assert half.dtype == BF16
    assert (half - exact).abs().max() <= 3 * torch.finfo(BF16).eps * exact.abs().max()
    leaf = x.clone().requires_grad_()
    rotated(leaf, table).sum().backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()


def test_a_cpu_rotates_half_precision_piece_by_piece_with_the_same_bits(monkeypatch):
    x, table = random(2, 1, 37, 48, dtype=BF16), rotation_table(random(1, 37, 24) * 9, "complex")
    with torch.no_grad():
        whole = rotated(x, table)
        monkeypatch.setattr("ltxkit.ltx_core.kernels.rotation.PIECE", 5 * 96)
        assert torch.equal(rotated(x, table), whole)
    assert torch.equal(rotated(x, table), whole)  # with autograd


# --- rows of tokens ---------------------------------------------------------------------------------------------------


def test_neighbours_of_one_level_are_runs():
    index = torch.tensor([[0, 0, 2, 2, 2, 1]])
    assert TokenRows.of(index).runs == ((0, 2, 0), (2, 5, 2), (5, 6, 1))
    assert TokenRows.of(index.expand(3, -1)).runs == TokenRows.of(index).runs
    assert TokenRows.of(torch.tensor([[0, 1], [1, 0]])).runs is None
    assert TokenRows.of(torch.arange(2).repeat(MOST_RUNS)[None]).runs is None


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("index", [[[0, 0, 1, 1, 1, 2, 0]], [[0, 1, 2, 0, 1, 2, 0], [0, 0, 0, 1, 1, 1, 1]]])
def test_modulation_by_runs_has_the_bits_of_a_row_for_each_token(index, dtype):
    index = torch.tensor(index)
    rows, gathered = TokenRows.of(index), TokenRows(index)
    x, y = (random(2, len(index), 7, 48, dtype=dtype, seed=seed) for seed in (1, 2))
    shift, scale, gate = random(3, 3, 48, dtype=dtype, seed=3)
    with torch.no_grad():
        expected = modulation(x.clone(), shift, scale, gathered), gated_sum(x, gate, y.clone(), gathered)
        assert torch.equal(modulation(x.clone(), shift, scale, rows), expected[0])
        assert torch.equal(gated_sum(x.clone(), gate, y.clone(), rows), expected[1])
        wide = modulation(x.clone(), shift.float(), scale.float(), rows)  # as GGUF files store the table
    assert wide.dtype == F32

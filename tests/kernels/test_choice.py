"""What can be chosen on a CPU, and what follows from times."""

import json

import pytest
import torch

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.kernels.choice import PLAIN, Kernels, native_dtype, parse_kernels
from ltxkit.ltx_core.kernels.measure import chosen

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def test_nothing_chosen_is_plain_torch_in_the_dtype_of_the_file():
    assert PLAIN.products.form(F32) == PLAIN.attention.form(BF16) == PLAIN.convolutions.form(F16) == "plain"
    assert [PLAIN.products.dtype(dtype) for dtype in (F32, torch.float64)] == [F32, torch.float64]
    assert PLAIN.products.dtype(BF16) == PLAIN.convolutions.dtype(BF16) == PLAIN.text_dtype(BF16) == native_dtype(BF16)
    assert PLAIN.text_dtype(F16) == native_dtype(F16)
    assert parse_kernels("plain", "asked for") == PLAIN


@pytest.mark.parametrize("text", ["auto", "", " AUTO "])
def test_auto_is_the_measured_choice(text):
    assert parse_kernels(text, "asked for") is None


def test_a_list_names_some_kinds_and_leaves_the_others_plain():
    kernels = parse_kernels("Products=packed, attention=products", "asked for")
    for dtype in (F32, BF16, F16):
        assert kernels.products.packs(dtype)
        assert kernels.attention.form(dtype) == "products"
        assert kernels.convolutions.form(dtype) == "plain"
        assert kernels.products.dtype(dtype) == native_dtype(dtype)
    assert not parse_kernels("products=onednn", "").products.packs(F32)


def test_float32_can_be_asked_for_and_fewer_bits_cannot():
    kernels = parse_kernels("dtype=float32", "asked for")
    assert {kernels.products.dtype(dtype) for dtype in (F32, BF16, F16)} == {F32}
    assert {kernels.convolutions.dtype(dtype) for dtype in (F32, BF16, F16)} == {F32}
    with pytest.raises(ConfigError, match="dtype=bfloat16"):
        parse_kernels("dtype=bfloat16", "asked for")


@pytest.mark.parametrize(
    "text", ["fast", "products", "products=mkl", "convolutions=onednn", "plain,attention=products"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(ConfigError, match=r"got the kernels .*; expected auto, plain, or a list"):
        parse_kernels(text, "asked for")


def test_a_text_encoder_widens_float16_unless_its_dtype_was_asked_for():
    kernels = parse_kernels("products=packed", "asked for")
    assert kernels.text_dtype(F16) == F32
    assert kernels.text_dtype(F32) == F32
    assert kernels.in_stored_dtype().text_dtype(F16) == native_dtype(F16)
    assert kernels.in_stored_dtype().products == kernels.products
    assert parse_kernels("dtype=float32", "").in_stored_dtype().products.dtype(BF16) == native_dtype(BF16)


def times(**seconds):
    """Times by "bfloat16_packed" and the like."""
    names = {"float32": F32, "bfloat16": BF16, "float16": F16}
    return {(names[name.split("_")[0]], name.split("_")[1]): value for name, value in seconds.items()}


def test_another_dtype_has_to_be_1_3_times_as_fast():
    slow = times(float32_plain=1.0, float32_packed=0.5, bfloat16_plain=0.64, bfloat16_packed=0.64)
    assert chosen(slow, {}, {}, {}).products.dtype(BF16) == BF16  # 1.28 times
    slow = times(float32_plain=1.0, float32_packed=0.5, bfloat16_plain=0.66, bfloat16_packed=0.66)
    assert chosen(slow, {}, {}, {}).products.dtype(BF16) == F32  # 1.32 times
    fast = times(float32_plain=1.0, bfloat16_plain=0.1)
    assert chosen(fast, {}, {}, {}).products.dtype(F32) == F32, "fewer bits than the file has are the user's choice"


def test_a_dtype_that_was_too_slow_to_be_measured_computes_in_float32():
    kernels = chosen(times(float32_plain=1.0), {}, times(float32_plain=1.0, bfloat16_plain=0.5), {})
    assert kernels.products.dtype(BF16) == kernels.products.dtype(F16) == F32
    assert kernels.convolutions.dtype(BF16) == BF16, "products and convolutions are apart"
    assert kernels.convolutions.dtype(F16) == F32


def test_another_form_has_to_win_by_more_than_two_measurements_differ():
    kernels = chosen(
        times(float32_plain=1.0, float32_onednn=0.97, float32_packed=0.96, bfloat16_plain=1.0, bfloat16_packed=0.9),
        times(float32_plain=1.0, float32_products=2.0, bfloat16_plain=1.0, bfloat16_products=0.6),
        times(float32_plain=1.0, float32_packed=0.5),
        times(float32_plain=1.0, float32_pieces=1.0, bfloat16_plain=1.0, bfloat16_pieces=0.3),
    )
    assert (kernels.norms.form(F32), kernels.norms.form(BF16)) == ("plain", "pieces")
    assert kernels.products.form(F32) == "plain"
    assert kernels.products.form(BF16) == "packed"
    assert (kernels.attention.form(F32), kernels.attention.form(BF16)) == ("plain", "products")
    assert kernels.convolutions.packs(F32)
    assert not kernels.convolutions.packs(BF16)


def test_a_choice_survives_json_and_says_itself():
    kernels = parse_kernels("products=packed,convolutions=packed,dtype=float32", "asked for")
    again = Kernels.from_json(json.loads(json.dumps(kernels.to_json())), "asked for")
    assert again == kernels
    assert "packed in bfloat16" in kernels.in_words()
    assert "bfloat16 and float16 as float32" in kernels.in_words()
    assert PLAIN.in_words() == "plain torch in the dtype of each file"


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {"products": {}},
        {**PLAIN.to_json(), "products": {"forms": {"float32": "mkl"}, "computed": {}}},
        {**PLAIN.to_json(), "attention": {"forms": {"int8": "plain"}, "computed": {}}},
        {**PLAIN.to_json(), "convolutions": {"forms": [], "computed": {}}},
        {**PLAIN.to_json(), "convolutions": {"forms": {}, "computed": {"bfloat16": ["float32"]}}},
    ],
)
def test_values_that_are_no_choice_are_refused(values):
    with pytest.raises(ValueError, match=r".+"):
        Kernels.from_json(values, "measured")

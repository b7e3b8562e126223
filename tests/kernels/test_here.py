"""Which choice a machine has: what the user says, else one measurement that is kept."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.kernels import here, private
from ltxkit.ltx_core.kernels.choice import PLAIN, parse_kernels
from ltxkit.ltx_core.kernels.here import cache_folder, kernels_here
from ltxkit.ltx_core.kernels.measure import measure

KERNELS = parse_kernels("products=packed", "measured")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A machine on which nothing has been measured; the times it was, in a list."""
    runs = []

    def run():
        runs.append(time.monotonic())
        return KERNELS

    monkeypatch.delenv("LTXKIT_KERNELS", raising=False)
    monkeypatch.setenv("LTXKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(here, "measure", run)
    return runs


def test_it_is_measured_once_and_said_once(measured, tmp_path):
    said = []
    assert kernels_here(say=said.append) == KERNELS
    assert len(said) == 1
    assert "Measured what is fastest" in said[0]
    assert kernels_here(say=said.append) == KERNELS
    assert len(measured) == len(said) == 1
    (file,) = (tmp_path / "cache").iterdir()
    assert json.loads(file.read_text())["processor"] == here.processor()


def test_another_torch_or_processor_is_measured_anew(measured, monkeypatch, tmp_path):
    kernels_here()
    monkeypatch.setattr(here.torch, "__version__", "99.0")
    kernels_here()
    monkeypatch.setattr(here, "processor", lambda: "another")
    kernels_here()
    kernels_here()
    assert len(measured) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_what_the_user_says_goes_before_the_measurement(measured, monkeypatch):
    assert kernels_here("plain") == PLAIN
    monkeypatch.setenv("LTXKIT_KERNELS", "attention=products")
    assert kernels_here().attention.form(here.torch.float32) == "products"
    assert "LTXKIT_KERNELS" in kernels_here().origin
    assert kernels_here("products=onednn").attention.form(here.torch.float32) == "plain"
    assert not measured
    assert kernels_here("auto") == KERNELS
    monkeypatch.setenv("LTXKIT_KERNELS", "fastest")
    with pytest.raises(ConfigError, match="fastest"):
        kernels_here()


def test_a_form_that_this_processor_lacks_in_a_dtype_is_not_said_to_run(monkeypatch):
    monkeypatch.setattr(private, "works", lambda kind, dtype: dtype == torch.float32)
    chosen = kernels_here("products=packed,attention=products,convolutions=packed")
    assert chosen.in_words() == (
        "products packed in float32; attention products in float32; convolutions packed in float32; norms plain"
    )
    assert chosen.products.form(torch.bfloat16) == "plain"
    assert chosen.origin == "asked for"


def unusable(kind: str, folder: Path) -> None:
    if kind == "a file":
        folder.write_text("no folder", encoding="utf-8")
    elif kind == "below a file":
        folder.parent.joinpath("file").write_text("no folder")
        os.environ["LTXKIT_CACHE"] = str(folder.parent / "file" / "cache")
    else:
        folder.mkdir()
        machine = {"processor": here.processor(), "torch": here.torch.__version__, "rules": here._RULES}
        texts = {
            "empty": "",
            "no JSON": "{",
            "other JSON": "[1]",
            "of another": json.dumps({**machine, "processor": "x", "kernels": KERNELS.to_json()}),
            "without a choice": json.dumps(machine),
            "not text": "\udcff",
        }
        file = folder / f"kernels-{here._digest(machine)}.json"
        file.write_bytes(texts[kind].encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    "kind",
    ["a file", "below a file", "empty", "no JSON", "other JSON", "of another", "without a choice", "not text"],
)
def test_where_nothing_can_be_kept_all_stays_plain_and_that_is_said(kind, measured, monkeypatch, tmp_path):
    unusable(kind, tmp_path / "cache")
    monkeypatch.setenv("LTXKIT_CACHE", os.environ["LTXKIT_CACHE"])
    said = []
    assert kernels_here(say=said.append) == PLAIN
    (sentence,) = said
    assert "plain torch" in sentence
    assert "LTXKIT_CACHE" in sentence
    assert not measured, "it is not measured what cannot be kept"


def test_a_user_without_a_home_folder_computes_plainly(measured, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LTXKIT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(here.Path, "home", no_home)
    said = []
    assert kernels_here(say=said.append) == PLAIN
    assert "no cache folder" in said[0]


def test_with_the_cache_off_all_stays_plain_and_that_is_said(measured, monkeypatch):
    monkeypatch.setenv("LTXKIT_CACHE", "off")
    said = []
    assert kernels_here(say=said.append) == PLAIN
    assert "no cache folder" in said[0]
    assert not measured


def test_of_two_processes_that_measure_at_once_both_take_the_first_result(measured, monkeypatch):
    other = parse_kernels("products=onednn", "measured")

    def interrupted():
        monkeypatch.setattr(here, "measure", lambda: other)
        kernels_here()  # another process, which is done first
        return KERNELS

    monkeypatch.setattr(here, "measure", interrupted)
    assert kernels_here() == other
    assert kernels_here() == other


def test_an_interrupted_measurement_leaves_nothing(measured, monkeypatch, tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(here, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kernels_here()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/ltxkit"),
        ("linux", {}, "/me/.cache/ltxkit"),
        ("darwin", {}, "/me/Library/Caches/ltxkit"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/Cache/ltxkit"),
        ("win32", {}, "/me/AppData/Local/Cache/ltxkit"),
        ("linux", {"LTXKIT_CACHE": "/mine", "XDG_CACHE_HOME": "/x"}, "/mine"),
    ],
)
def test_the_folder_is_the_systems_usual_place(platform, variables, expected, monkeypatch):
    for name in ("LTXKIT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(here.Path, "home", lambda: Path("/me"))
    assert cache_folder() == Path(expected)


@pytest.mark.slow
def test_the_measurement_itself_ends_in_a_choice():
    kernels = measure()
    assert kernels.origin == "measured"
    assert set(kernels.products.forms) == set(kernels.attention.forms) == set(kernels.convolutions.forms)
    assert here.torch.float32 in kernels.products.forms
    assert kernels.products.dtype(here.torch.float32) == here.torch.float32

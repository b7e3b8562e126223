"""`locales/`: the nodes in English as the code has them, and in other languages without a gap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from write_locale import ENGLISH, english

from ltxkit.headless.host import PlainHost
from ltxkit.nodes import NODE_CLASS_MAPPINGS
from ltxkit.nodes.host import use_host
from ltxkit.nodes.widgets import declared_inputs

TRANSLATED = ("ja", "zh")


def definitions(language: str) -> dict[str, Any]:
    return json.loads((ENGLISH.parents[1] / language / "nodeDefs.json").read_text(encoding="utf-8"))


def test_there_are_these_languages():
    assert sorted(path.name for path in ENGLISH.parents[1].iterdir()) == sorted(("en", *TRANSLATED))


def test_english_is_what_the_code_says():
    assert definitions("en") == english(), "run .venv/bin/python tests/contract/write_locale.py"


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_translation_has_every_name_and_nothing_else(language: str):
    here, there = definitions(language), english()
    assert list(here) == list(there)
    for name, node in there.items():
        assert here[name]["display_name"].endswith(" (LTXKit)")
        assert here[name]["description"], name
        for kind in ("inputs", "outputs"):
            assert list(here[name][kind]) == list(node[kind]), (name, kind)
            assert all(entry["name"].strip() for entry in here[name][kind].values()), (name, kind)


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_translation_explains_every_input_that_is_shown(language: str, tmp_path: Path):
    here, there = definitions(language), english()
    with use_host(PlainHost(tmp_path, tmp_path, tmp_path)):
        shown = [
            (name, key)
            for name, node_class in NODE_CLASS_MAPPINGS.items()
            for key, spec in declared_inputs(node_class).items()
            if not spec.options.get("advanced")
        ]
    assert len(shown) > 100
    missing = [place for place in shown if not here[place[0]]["inputs"][place[1]].get("tooltip")]
    assert missing == []
    same = [place for place in shown if here[place[0]]["inputs"][place[1]] == there[place[0]]["inputs"][place[1]]]
    assert same == []

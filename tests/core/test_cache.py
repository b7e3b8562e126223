"""The user's folders, for users without any too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ltxkit.commands.places import Places, config_file
from ltxkit.ltx_core import cache


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number of no user."""
    if sys.platform == "win32":
        pytest.skip("every user of Windows has a profile")
    import pwd

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", cache.VARIABLE, "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "LTXKIT_MODELS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_nothing_is_cached_and_places_are_searched() -> None:
    assert cache.cache_folder() is None
    assert cache.home_folder() == Path("/")
    assert config_file() == Path("/.config/ltxkit/config.ini")
    assert isinstance(Places(None).folders(), tuple)


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("text", ["~/clips", "~nobody-of-this-name/clips", "clips/~"])
def test_a_path_of_a_home_that_does_not_exist_stays_as_it_is(text: str) -> None:
    assert cache.in_home(text) == Path(text)


def test_a_path_of_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert cache.in_home("~/clips") == tmp_path / "clips"
    assert cache.home_folder() == tmp_path

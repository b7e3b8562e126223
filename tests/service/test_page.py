"""The page of `ltxkit serve` in a browser, wide and narrow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from serving import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.browser]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    from playwright.sync_api import expect, sync_playwright

    folder = tmp_path_factory.mktemp("page") / "service"
    with Server(folder, "--token", "secret") as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(300_000)
        expect.set_options(timeout=300_000)  # the machine may be busy
        page.goto(server.url)
        yield page
        assert errors == []
        browser.close()


def test_a_clip_is_made_shown_made_again_and_deleted(page: Page, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    page.fill("#token", "secret")
    page.press("#token", "Tab")
    expect(page.locator("[name=width]")).to_have_value("64")
    expect(page.locator("#plan")).to_contain_text("Takes")
    page.fill("[name=prompt]", "a 7 moving up <b>up</b>")
    page.fill("[name=num_frames]", "9")
    page.click("summary")
    page.fill("[name=num_inference_steps]", "6")
    Image.new("RGB", (64, 64), "black").save(tmp_path / "first.png")
    page.set_input_files("[name=input_reference]", tmp_path / "first.png")
    page.click("form > button")
    page.wait_for_selector("article.completed video", timeout=300_000)
    assert page.text_content("article .prompt") == "a 7 moving up <b>up</b>"  # as text
    assert "64x64, 9 frames at 25 per second" in (page.text_content("article .state") or "")
    playing = (
        "document.querySelector('article video').play().then(() => document.querySelector('article video').videoWidth)"
    )
    assert page.evaluate(playing) in (64, 0)  # a Chromium without H.264 has no width

    page.fill("[name=num_frames]", "33")
    page.click("article .again")
    assert page.input_value("[name=num_frames]") == "9"
    assert page.input_value("[name=num_inference_steps]") == "6"
    assert page.input_value("[name=seed]").isdigit()

    page.fill("[name=extra_params]", "{")
    page.click("form > button")
    expect(page.locator("#error")).to_contain_text("expected JSON")
    page.screenshot(path=tmp_path / "wide.png")

    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=tmp_path / "narrow.png", full_page=True)
    page.click("article .delete")
    expect(page.locator("article")).to_have_count(0)


def test_the_description_of_the_interface(page: Page) -> None:
    page.goto(page.url.rstrip("/") + "/docs")
    page.wait_for_selector("dt")
    assert "POST /v1/videos" in (page.text_content("#paths") or "")
    assert "prompt" in (page.text_content("#fields") or "")

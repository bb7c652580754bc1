"""The page in a real browser: Debian's Chromium, without a screen (`make test-root`)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samkv_rag.explain import Explanation, explain
from tests.explain.test_page import ASKED, CHUNKS
from tests.models import tiny_engine

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.enable_socket]
WIDTHS = (360, 1200)


@pytest.fixture(scope="module")
def seen() -> Explanation:
    return explain(tiny_engine(), ASKED, CHUNKS, ["samkv:keep=0.4,recompute=0.5", "full"], max_new_tokens=3)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    if shutil.which("chromium") is None:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"], check=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, seen: Explanation, tmp_path: Path) -> Iterator[Any]:
    page = chromium.new_page(viewport={"width": 1200, "height": 800})
    page.asked_for = []
    page.on("request", lambda request: page.asked_for.append(request.url))
    page.goto(seen.save(tmp_path / "page.html").as_uri())
    yield page
    page.close()


def test_the_blocks_in_the_dom_are_those_of_the_answer(page: Any, seen: Explanation) -> None:
    for number, method in enumerate(seen.methods, start=1):
        inside = page.locator(f"#method-{number}")
        parts = [part for chunk in method.chunks for part in chunk.parts]
        assert inside.locator(".chunk").count() == len(CHUNKS)
        assert inside.locator(".part").count() == len(parts)
        for state in ("anchor", "selected", "kept", "dropped"):
            assert inside.locator(f".part.{state}").count() == sum(part.state == state for part in parts)


@pytest.mark.parametrize("how", ["focus", "hover"])
def test_a_score_is_visible_on_hover_and_on_focus_and_only_then(page: Any, how: str) -> None:
    part = page.locator("#method-1 .part.selected").first
    tip = part.locator(".tip")
    assert "score" in tip.text_content()
    assert not tip.is_visible()
    getattr(part, how)()
    assert tip.is_visible()
    assert sum(t.is_visible() for t in page.locator(".tip").all()) == 1
    assert page.evaluate("e => getComputedStyle(e.parentElement).backgroundColor", tip.element_handle()) != (
        "rgba(0, 0, 0, 0)"
    )


def test_the_tab_key_reaches_the_blocks(page: Any) -> None:
    page.locator("#method-1 summary").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.classList.contains('part')")


def test_no_script_runs_and_nothing_is_asked_for(page: Any) -> None:
    assert page.title() == ASKED
    assert page.evaluate("document.scripts.length") == 0
    assert page.locator("#method-1 b, #method-1 img").count() == 0
    assert [url for url in page.asked_for if not url.startswith("file:")] == []
    assert len(page.asked_for) == 1


def test_a_script_in_the_page_would_not_run_either(chromium: Any, seen: Explanation, tmp_path: Path) -> None:
    """The page forbids scripts; without that (the control) the same script runs."""
    html = seen.html.replace("</body>", "<script>document.title = 'run'</script></body>")
    policy = html[html.index('<meta http-equiv="Content-Security-Policy"') :].partition(">")[0] + ">"
    titles = []
    for name, text in (("held", html), ("free", html.replace(policy, ""))):
        file = tmp_path / f"{name}.html"
        file.write_text(text)
        page = chromium.new_page()
        page.goto(file.as_uri())
        titles.append(page.title())
        page.close()
    assert titles == [ASKED, "run"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_narrow_and_wide_and_follows_the_scheme(page: Any, scheme: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 700})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#method-1 .part").first.focus()
    box = page.locator("#method-1 .part .tip").first.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= 700
    bright = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert bright == (scheme == "light")


def test_print_shows_all_methods_without_tips(page: Any, tmp_path: Path) -> None:
    from pypdf import PdfReader

    page.pdf(path=tmp_path / "page.pdf", print_background=True)
    text = "".join(sheet.extract_text() for sheet in PdfReader(tmp_path / "page.pdf").pages)
    assert text.count("Chunk 1:") == 2 and "tokens 1 to" not in text

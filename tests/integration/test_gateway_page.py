"""The gateway's page, as somebody with a browser meets it: headless Chromium over real parties."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.async_api import Page, Route, async_playwright, expect

from tests.integration.gateways import ANSWER, PASSAGE, gateway

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
KEY = "a-key-of-this-gateway"

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@asynccontextmanager
async def browsed(url: str) -> AsyncIterator[Page]:
    """The page in a browser; it asked nobody but the gateway, and nothing in it failed."""
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        page = await browser.new_page()
        asked: list[str] = []
        failed: list[str] = []
        page.on("request", lambda one: asked.append(urlsplit(one.url).netloc))
        page.on("pageerror", lambda error: failed.append(str(error)))
        await page.goto(f"{url}/")
        yield page
        await browser.close()
        assert set(asked) == {urlsplit(url).netloc}
        assert not failed


async def ask(page: Page, text: str) -> None:
    await page.get_by_label("Message").fill(text)
    await page.keyboard.press("Enter")


async def endless(route: Route) -> None:
    """Have the answer asked for go on until it is stopped."""
    asked = json.loads(route.request.post_data or "")
    await route.continue_(post_data=json.dumps({**asked, "ignore_eos": True, "max_tokens": 1900}))


@needs_browser
async def test_a_chat_streams_and_the_panel_says_what_was_sent_and_what_can_be_read() -> None:
    async with gateway("noise.mode=relative", "noise.scale=0.5") as up, browsed(up.url) as page:
        await ask(page, f"{PASSAGE}Say it again.")
        answers = page.locator(".assistant")
        await expect(answers.nth(0)).to_contain_text("tokens/s", timeout=20_000)
        await expect(answers.nth(0)).to_contain_text("Kewyn is a weaver.")
        # It knows what was said before.
        await ask(page, "Where does Kewyn live?")
        await expect(answers.nth(1).locator("p").first).to_have_text(ANSWER)
        await expect(answers.nth(1)).to_contain_text("first token")
        state = (await up.http.get("/v1/fedsea/state")).json()
        panel = page.locator("#side")
        share = state["privacy"]["recovery"]["share"]
        await expect(page.locator("#recovery")).to_have_text(f"{share:.0%}".replace("%", " %"))
        await expect(page.locator("#warning")).to_contain_text("Noise is not encryption")
        await expect(panel).to_contain_text(f"noise sigma{state['privacy']['sigma']:.3f}")
        sent = f"{state['traffic']['bytes_sent'] / 1000:.1f} kB"
        await expect(panel).to_contain_text(f"noised states sent{sent}")
        await expect(panel).to_contain_text(state["trunk"]["nodes"][0]["name"])
        await page.get_by_role("button", name="New chat").click()
        await expect(answers).to_have_count(0)


@needs_browser
async def test_what_is_stopped_in_the_page_frees_the_trunk_and_text_is_never_markup() -> None:
    async with gateway() as up, browsed(up.url) as page:
        await page.route("**/v1/chat/completions", endless)
        await ask(page, "<img src=x onerror=alert(1)>")
        await expect(page.locator(".user")).to_have_text("<img src=x onerror=alert(1)>")
        await page.get_by_role("button", name="Stop").click()
        await expect(page.locator(".assistant")).to_contain_text("stopped")
        await expect(page.get_by_role("button", name="Stop")).to_be_hidden()
        await expect(page.locator("#nodes")).to_contain_text("0 sessions")
        assert up.trunk.sessions == 0


@needs_browser
async def test_with_keys_the_page_asks_for_one(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text(KEY)
    async with gateway(f"gateway.api_keys={keys}", key=KEY) as up, browsed(up.url) as page:
        await expect(page.locator("#warning")).to_contain_text("a key of this gateway is needed")
        await page.get_by_label("API key").fill(KEY)
        await page.keyboard.press("Tab")
        await expect(page.locator("#cut")).to_contain_text("cut 1+1")
        await expect(page.get_by_label("API key")).to_be_hidden()
        await ask(page, f"{PASSAGE}Where does Kewyn live?")
        await expect(page.locator(".assistant p").first).to_have_text(ANSWER)


async def test_its_files_say_that_nothing_else_may_run_in_it() -> None:
    async with gateway() as up:
        index = await up.http.get("/")
        assert index.headers["content-type"].startswith("text/html")
        assert "default-src 'self'" in index.headers["content-security-policy"]
        for name in ("main.js", "style.css", "icon.svg"):
            assert (await up.http.get(f"/{name}")).status_code == httpx.codes.OK
        assert (await up.http.get("/page_files.py")).status_code == httpx.codes.NOT_FOUND
        assert (await up.http.get("/../page_files.py")).status_code == httpx.codes.NOT_FOUND

"""The page in a real browser: Debian's Chromium, driven by Playwright. Without either, its tests are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dual_lora.report.workspace import Workspace
from tests.unit.page.page_builder import DESKTOP, document

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make install")
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open addresses in tabs; whatever one logs as an error, or asks of a network, fails the test."""
    problems: list[str] = []
    tabs: list[Any] = []

    def opened(address: str, viewport: dict[str, int] = DESKTOP) -> Any:
        context = browser.new_context(viewport=viewport)
        context.set_default_timeout(20_000)
        tab = context.new_page()
        tab.on("console", lambda one: problems.append(one.text) if one.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("request", lambda request: None if request.url.startswith("file:") else problems.append(request.url))
        tabs.append(tab)
        tab.goto(address)
        tab.wait_for_selector("main[data-view]:not([inert])", state="attached")  # its runs are unpacked
        return tab

    yield opened
    stolen = [tab.evaluate("window.stolen") for tab in tabs]
    for tab in tabs:
        tab.context.close()
    assert problems == []
    assert stolen == [None] * len(tabs)


@pytest.fixture
def visit_page_of(visit: Callable[..., Any]) -> Callable[..., Any]:
    """Write the page of a workspace and open a view of it."""

    def opened(space: Workspace, view: str = "", **more: Any) -> Any:
        path = space.root / "report.html"
        path.write_text(document(space), encoding="utf-8")
        return visit(f"{path.as_uri()}#{view}", **more)

    return opened

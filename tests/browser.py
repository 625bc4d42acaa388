"""A page in a headless Chromium, for tests; they skip where there is none.

The browser is the one that CHROMIUM names or that is found on the path (Debian: apt install chromium); what drives it
is `pip install playwright`, which needs no browser of its own.
"""

import os
import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@contextmanager
def chromium():
    """A running browser of playwright's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium on the path, or named by the environment variable CHROMIUM")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, address, **options):
    """A page that is loaded, wide enough for a desktop; it must say nothing in the console and fetch nothing else.

    Args:
        options: of the browser's context, such as color_scheme.
    """
    context = browser.new_context(viewport={"width": 1300, "height": 900}, **options)
    page, said, fetched = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(address)
    yield page
    context.close()
    assert said == [] and {url.split("#")[0] for url in fetched} == {address.split("#")[0]}

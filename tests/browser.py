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
def opened(browser, address, also=(), errors=0, **options):
    """A page that is loaded, wide enough for a desktop; it must say nothing in the console and fetch nothing else.

    Args:
        also: other addresses that it fetches.
        errors: how many answers must be of a status that the browser takes for an error.
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
    failed = [text for text in said if text.startswith("Failed to load resource")]
    assert len(failed) == errors and said == failed
    assert {url.split("#")[0] for url in fetched} == {address.split("#")[0], *also}


# The contrast (WCAG 2.1) of every element that writes, on all that lies behind it, and what it writes.
CONTRASTS = """() => {
  const pixels = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const luminance = (colours) => {
    pixels.clearRect(0, 0, 1, 1);
    for (const colour of colours) pixels.fillStyle = colour, pixels.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pixels.getImageData(0, 0, 1, 1).data].map((part) => linear(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = (element) => getComputedStyle(element);
  const grounds = (element) => element ? [...grounds(element.parentElement), style(element).backgroundColor] : [];
  const writes = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const written = [...document.body.querySelectorAll("*")].filter((element) => element.checkVisibility() &&
    element.namespaceURI.endsWith("xhtml") && writes(element));
  return written.map((element) => {
    const behind = grounds(element), both = [luminance(behind), luminance([...behind, style(element).color])];
    const contrast = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    return [contrast, element.className + " " + element.textContent.slice(0, 30)];
  });
}"""

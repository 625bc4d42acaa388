"""The page of the playground in a browser."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from browser import CONTRASTS, chromium, opened
from helpers import REPOSITORY, run_module
from serving import TEXT, final_texts, page_of, run, running, save_models, tiny_playground


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def playground(folder):
    return tiny_playground(folder)


@pytest.fixture(scope="module")
def port(playground):
    with running(playground, page_of(playground)) as port:
        yield port


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def site(port):
    return SimpleNamespace(address=f"http://127.0.0.1:{port}/", also=[f"http://127.0.0.1:{port}/generate"])


def expect(locator):
    from playwright.sync_api import expect

    return expect(locator)


def fill(page, **options):
    for name, value in options.items():
        page.locator(f"[name={name}]").fill(str(value))


def test_the_page_shows_steps_and_ends_at_the_text(browser, site, playground):
    texts = final_texts(run(playground))
    with opened(browser, site.address, also=site.also) as page:
        fill(page, text=TEXT, steps=6, candidates=3, seed=4)
        page.locator("#generate").click()
        expect(page.locator("#status")).to_have_text("done")
        assert page.locator(".words").all_text_contents() == texts
        assert re.fullmatch(r"6 steps, \d+\.\d s", page.locator("#seconds").text_content())
        chosen = page.locator(".candidate.chosen")
        assert chosen.count() == 1 and "chosen by MBR" in chosen.text_content()
        assert chosen.locator(".words").text_content() == page.locator("#text").text_content()
        scores = run(playground)[-1]["scores"]
        assert page.locator(".candidate header .muted").all_text_contents() == [
            f"score {scores[number]:.2f}".replace("-", "\u2212") for number in range(3)]
        page.locator("#play").focus()
        page.keyboard.press("Home")
        assert page.locator("#where").text_content().startswith("step 1 of 6, t = ")
        page.keyboard.press("ArrowRight")
        assert page.locator("#step").input_value() == "2" and page.locator(".switched").count() > 1


def test_a_prompt_is_kept(browser, site):
    with opened(browser, site.address, also=site.also) as page:
        page.locator("[name=model]").select_option("ddlm.pt")
        assert page.locator("[name=guidance]").is_visible() and page.locator("[name=solver]").input_value() == "euler"
        fill(page, text="w1 w2", steps=5, length=12, candidates=1, guidance=1.5)
        page.keyboard.press("Control+Enter")
        expect(page.locator("#status")).to_have_text("done")
        assert page.locator(".token.given").all_text_contents()[1:3] == ["w1", "w2"]  # after the legend's
        assert page.locator("#result").is_hidden()
        page.locator("[name=model]").select_option("genie.pt")
        assert page.locator("[name=guidance]").is_hidden() and page.locator("[name=length]").is_hidden()


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_stops(browser, site, playground, how):
    with opened(browser, site.address, also=site.also) as page:
        fill(page, text=TEXT, steps=2000, candidates=8)
        page.locator("#generate").click()
        expect(page.locator("#where")).to_contain_text("of 2000")
        assert page.locator("#generate").is_disabled()
        page.locator("#stop").click() if how == "button" else page.keyboard.press("Escape")
        expect(page.locator("#status")).to_have_text("stopped")
        assert page.locator("#generate").is_enabled() and page.locator("#stop").is_disabled()
        assert int(page.locator("#step").input_value()) < 2000 and page.locator(".candidate.chosen").count() == 0
        fill(page, steps=4, candidates=1)
        page.locator("#generate").click()
        expect(page.locator("#status")).to_have_text("done")  # so the other one takes no time any more


def test_errors_are_shown_in_one_line(browser, site):
    with opened(browser, site.address, also=site.also, errors=2) as page:
        page.locator("#generate").click()
        expect(page.locator("#error")).to_have_text("there is no text: type a source")
        fill(page, text=TEXT, steps="")
        page.locator("#generate").click()
        expect(page.locator("#error")).to_have_text("steps must be a whole number, got None")
        fill(page, steps=3)
        page.locator("#generate").click()
        expect(page.locator("#status")).to_have_text("done")
        assert page.locator("#error").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_is_readable_and_fits_a_phone(browser, site, scheme):
    """A contrast of 4.5 at least (WCAG 2.1, AA)."""
    with opened(browser, site.address, also=site.also, errors=1, color_scheme=scheme, reduced_motion="reduce") as page:
        fill(page, text=TEXT, steps=6, candidates=3)
        page.locator("#generate").click()
        expect(page.locator("#status")).to_have_text("done")
        page.locator("#step").fill("1")
        fill(page, steps=0)
        page.locator("#generate").click()
        expect(page.locator("#error")).to_be_visible()
        found = page.evaluate(CONTRASTS)
        assert len(found) > 30 and any(name.startswith("token") for _, name in found)
        assert [(contrast, name) for contrast, name in found if contrast < 4.5] == []
        page.set_viewport_size({"width": 360, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.slow
def test_the_command_serves_what_interactive_writes(browser, folder):
    """The same seed and options: the same text."""
    options = ["--diffusion-steps", "6", "--candidates", "3", "--clamping", "--seed", "4", "--cpu"]
    done = run_module("interactive", folder, "--task", "seq2seq_diffusion", "--path", folder / "genie.pt", *options,
                      stdin=TEXT + "\n")
    expected = re.search(r"^D-0\t(\S+)\t(.*)$", done.stdout, re.M)
    command = [sys.executable, REPOSITORY / "scripts/serve.py", folder, "--path", folder / "genie.pt", "--port", "0"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        address = re.search(r"genie\.pt: (\S+) \(Ctrl-C ends it\)", process.stdout.readline())[1]
        try:
            with opened(browser, address, also=[address + "generate"]) as page:
                fill(page, text=TEXT, steps=6, candidates=3, seed=4)
                page.locator("#generate").click()
                expect(page.locator("#status")).to_have_text("done", timeout=60_000)
                shown = dict(zip(page.locator(".words").all_text_contents(),
                                 page.locator(".candidate header .muted").all_text_contents()))
        finally:
            process.send_signal(2)
            assert process.wait(20) == 0
    nats = float(expected[1]) * 0.6931
    assert shown[expected[2].strip()] == f"score {nats:.2f}".replace("-", "\u2212")

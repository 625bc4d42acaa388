"""Traces of a generation, and the page that shows them."""

import json
import random
import re
import subprocess
import sys
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
from browser import CONTRASTS, chromium, opened
from fairseq.data import Dictionary
from helpers import (
    REPOSITORY,
    make_ddlm,
    make_dictionary,
    make_diffuseq,
    make_diffusion_lm,
    make_genie,
    make_prompts,
    make_sample,
    make_sampling,
    make_task,
    save_model,
)

from diffusion_fairseq.generator import DiffusionGenerator

sys.path.insert(0, str(REPOSITORY / "scripts"))
import _trace_page  # noqa: E402, I001
import _typed  # noqa: E402
import explore  # noqa: E402
from _trace import Trace, TracingGenerator  # noqa: E402

STEPS = 12
HOSTILE = '</script><img src=x onerror="document.title=`broken`">'


def models():
    words, masked = make_dictionary(), make_dictionary()
    masked.add_symbol("<mask>")
    sources, prompts = make_sample(words, [5, 9]), make_prompts(masked, "ab____c_.", "d_____.")
    yield pytest.param(make_genie(words, seed=5), words, sources, id="genie")
    yield pytest.param(make_genie(words, seed=5, length_model="fixed"), words, sources, id="fixed length")
    yield pytest.param(make_diffuseq(words, seed=5), words, sources, id="diffuseq")
    yield pytest.param(make_diffusion_lm(masked, seed=5), masked, prompts, id="diffusion_lm")
    yield pytest.param(make_ddlm(masked, seed=5), masked, prompts, id="ddlm")


def generated(kind, model, dictionary, sample, **options):
    options = {"diffusion_steps": STEPS, "candidates": 3, **options}
    generator = kind(model, dictionary, make_sampling(**options), retain_history=True)
    with torch.inference_mode():
        return [one for group in generator.generate([model], sample) for one in group]


@pytest.mark.parametrize("model, dictionary, sample", list(models()))
def test_a_trace_ends_in_the_text_of_the_plain_generation(model, dictionary, sample):
    traced = generated(TracingGenerator, model, dictionary, sample)
    plain = generated(DiffusionGenerator, model, dictionary, sample)
    switched = 0
    for one, other in zip(traced, plain, strict=True):
        trace = one["trace"]
        assert one["tokens"].tolist() == other["tokens"].tolist() and one["score"] == pytest.approx(other["score"])
        words = [token for token in other["tokens"].tolist() if token != dictionary.eos()]
        assert trace.tokens[-1, : trace.text[-1]].tolist() == words
        for step, count, then in zip(trace.tokens, trace.text, other["history"], strict=True):
            assert step[:count].tolist() == then["tokens"][:count].tolist() and count <= len(then["tokens"])
        assert trace.confidence.shape == trace.tokens.shape
        assert 0 <= trace.confidence.min() and trace.confidence.max() <= 1
        assert len(trace.entropy) == len(trace.norm) == STEPS and trace.entropy.min() > 0 and trace.norm.min() > 0
        assert (trace.tokens == trace.tokens[0])[:, trace.given].all()
        switched += int((trace.tokens[1:] != trace.tokens[:-1]).sum())
        if not model.predicts_tokens:
            kept = len(one["positional_scores"])
            free = ~trace.given[:kept]
            expected = one["positional_scores"][free].exp()
            assert torch.allclose(trace.confidence[-1, :kept][free], expected, atol=1e-5)
    assert switched > 0


@pytest.mark.parametrize("model, dictionary, sample", list(models()))
def test_early_exit_is_marked_where_it_ends(model, dictionary, sample):
    def found(kind, **options):
        return {tuple(one["tokens"].tolist()): one for one in generated(kind, model, dictionary, sample, **options)}

    for options in ({"exit_patience": 2}, {"exit_patience": 2, "exit_entropy": 3.0}):
        traced = generated(TracingGenerator, model, dictionary, sample, **options)
        plain = generated(DiffusionGenerator, model, dictionary, sample, **options)
        left = [(one["trace"].exit or STEPS, one["trace"]) for one in traced]
        assert sorted(step for step, _ in left) == sorted(one["steps"] for one in plain)
        texts = [trace.tokens[step - 1, : trace.text[step - 1]].tolist() for step, trace in left]
        words = [[token for token in one["tokens"].tolist() if token != dictionary.eos()] for one in plain]
        assert sorted(texts) == sorted(words)


def trace_of(steps, given=(), sure=None, leaves=None):
    """A trace made by hand, every token of every step a word of the text."""
    tokens = torch.tensor(steps)
    flags = torch.zeros(tokens.size(1), dtype=torch.bool)
    flags[list(given)] = True
    curve = torch.linspace(3, 0.25, len(tokens))
    confidence = torch.full(tokens.shape, 0.5) if sure is None else torch.tensor(sure)
    return Trace(tokens, [tokens.size(1)] * len(tokens), confidence, flags, curve, 1 + curve, leaves)


def test_a_trace_is_coded_by_what_changes():
    sure = [[1, 0, 1], [1, 0.5, 0.25], [1, 1, 0]]
    trace = trace_of([[7, 8, 9], [7, 5, 9], [7, 5, 6]], given=[0], sure=sure, leaves=2)._replace(text=[3, 2, 3])
    coded = _trace_page.coded(trace, lambda token: token - 5)
    assert coded == {
        "exit": 2, "changes": [[0, 2, 1, 3, 2, 4], [1, 0], [2, 1]], "confidence": ["-0Z", "-u", "-Z0"],
        "entropy": [3.0, 1.62, 0.25], "norm": [4.0, 2.62, 1.25]}


@pytest.mark.parametrize("symbols, pieces, text", [
    (["\u2581the", "\u2581cat", "s"], "\u2581the \u2581cat s", "the cats"),
    (["[CLS]", "the", "cat", "##s"], "[CLS] the cat ##s", "the cats"),
    (["the", "cat@@", "s"], "the cat@@ s", "the cats"),
    (["the", "cats"], "the cats", "the cats"),
])
def test_pieces_are_spelled_as_they_are_read(symbols, pieces, text):
    dictionary = Dictionary()
    tokens = dict(zip(symbols, map(dictionary.add_symbol, symbols)))
    spelling = _trace_page.Spelling(dictionary, [tokens["[CLS]"]] if "[CLS]" in tokens else [])
    assert spelling.text([tokens[piece] for piece in pieces.split()] + [dictionary.pad()]) == text


def test_a_prompt_says_how_much_is_to_be_written():
    dictionary = make_dictionary()
    mask = dictionary.add_symbol("<mask>")
    word = dictionary.index("w1")
    spelling = _trace_page.Spelling(dictionary)
    assert spelling.prompt([mask, word, mask, mask], mask) == "[1 token] w1 [2 tokens]"


def test_masks_of_typed_lines_stay_whole():
    bpe = SimpleNamespace(encode=lambda text: " ".join(text.replace(" ", "")))
    assert _typed.encoded("ab <mask> c<mask>", bpe, "<mask>") == "a b <mask> c <mask>"
    assert _typed.encoded("ab c", bpe, None) == "a b c"


def made_up(numbers, candidates, steps, length, words, seed=0):
    """A page's data, in which every token switches at every step."""
    draw = random.Random(seed)

    def one(number):
        coded = [_trace_page.coded(trace_of([[draw.randrange(words) for _ in range(length)] for _ in range(steps)]),
                                   lambda token: token) for _ in range(candidates)]
        found = [{"score": -0.5 - place, "rouge": [50.0, 20.0, 40.0 - place], **code}
                 for place, code in enumerate(coded)]
        return {"number": number, "source": f"source {number}", "reference": f"reference {number}", "candidates": found}

    return {"settings": ["tiny.pt", "ddpm"], "times": list(range(steps, 0, -1)), "prompts": False,
            "strings": [f" word{word}" for word in range(words)], "sentences": [one(i) for i in numbers]}


def test_the_page_stays_small_where_every_token_switches_always():
    page = _trace_page.page(explore.TEMPLATE, made_up(range(1, 101), 5, 20, 40, 4000))
    assert len(page.encode()) <= 5_000_000


def test_no_text_can_end_the_script_and_nothing_is_fetched():
    data = made_up([1], 1, 2, 3, 5)
    data["sentences"][0]["source"] = HOSTILE
    page = _trace_page.page(explore.TEMPLATE, data)
    held = re.search(r'<script type="application/json" id="trace">(.*?)</script>', page, re.S)[1]
    assert json.loads(held) == data
    assert page.count("</script>") == 2 and "onerror=" not in page.replace(held, "")
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}
    assert _trace_page.CONFIDENCES in page


def test_pages_hold_sources_references_and_scores():
    dictionary = make_dictionary()
    model, sample = make_genie(dictionary, seed=5), make_sample(dictionary, [5, 9])
    task = make_task(dictionary)
    generator = TracingGenerator(model, dictionary, make_sampling(diffusion_steps=4, candidates=2))
    with torch.inference_mode():
        found = generator.generate([model], sample)
    pages = explore.Pages(task, generator)
    source = sample["net_input"]["src_tokens"].tolist()
    shown = pages.sentence(6, source[1], found[0][0]["tokens"].tolist(), found[0])
    assert shown["number"] == 7 and shown["source"] == dictionary.string(source[1])
    assert shown["reference"] == dictionary.string(found[0][0]["tokens"])
    assert shown["candidates"][0]["rouge"] == [100.0, 100.0, 100.0]
    scores = [candidate["score"] for candidate in shown["candidates"]]
    assert scores == sorted(scores, reverse=True)
    assert "reference" not in pages.sentence(0, source[0], None, found[0])
    final = list(accumulate(shown["candidates"][0]["changes"], lambda done, more: {**done, **dict(
        zip(more[::2], more[1::2]))}, initial={}))[-1]
    texts = list(pages.strings.places)
    words = "".join(texts[final[place]] for place in range(len(shown["candidates"][0]["confidence"][-1])))
    assert words.strip() == shown["reference"]


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page of three sentences and four steps: the words of the first are known, the second is hostile."""
    words = ["\u2581in", "\u2581the", "\u2581begin", "ning", "\u2581end"]
    strings = [word.replace("\u2581", " ") for word in words] + [HOSTILE]
    steps = [[4, 4, 4, 4], [0, 4, 4, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    sure = [[1, 0, 0.2, 0.1], [1, 0.5, 0.2, 0.6], [1, 1, 0.9, 0.9], [1, 1, 1, 1]]
    data = made_up([1, 2, 3], 2, 4, 4, 5)
    data["strings"] = strings
    first, second, _ = data["sentences"]
    first["candidates"][0].update(_trace_page.coded(trace_of(steps, sure=sure, leaves=3), lambda token: token))
    first["candidates"][1]["exit"] = 2
    second.update(source=HOSTILE, reference=f"a haystack {HOSTILE}")
    second["candidates"][0]["changes"][-1] = [0, 5, 1, 5, 2, 5, 3, 5]
    file = tmp_path_factory.mktemp("explore") / "explore.html"
    file.write_text(_trace_page.page(explore.TEMPLATE, data), encoding="utf-8")
    return file.as_uri()


def expect(locator):
    """What a locator comes to in some seconds."""
    from playwright.sync_api import expect

    return expect(locator)


def text(page):
    """Of the first candidate."""
    return page.locator(".words").first.text_content()


def test_the_slider_moves_the_text(browser, address):
    with opened(browser, address) as page:
        assert text(page) == "in the beginning" and page.title() == "Denoising \u00b7 tiny.pt"
        page.locator("#step").fill("2")
        assert text(page) == "in end endning" and "step 2 of 4, t = 3" in page.locator("#where").text_content()
        first = page.locator(".candidate").first
        assert first.locator(".switched").all_text_contents() == ["in", "ning"]
        assert first.locator(".curves output").all_text_contents() == ["2.08", "2", "3.08"]
        doubts = first.locator(".token").evaluate_all("all => all.map((one) => one.style.getPropertyValue('--doubt'))")
        assert doubts == ["0%", "51%", "80%", "39%"]  # in 62 letters
        assert "early exit at step 3" in first.text_content()
        page.locator("#step").fill("1")
        assert text(page) == "end end end end" and first.locator(".switched").count() == 0


def test_play_ends_at_the_final_text(browser, address):
    with opened(browser, address) as page:
        page.keyboard.press("Home")
        assert text(page) == "end end end end"
        page.locator("#play").click()
        assert page.locator("#play").text_content() == "Pause"
        expect(page.locator("#play")).to_have_text("Play")
        assert text(page) == "in the beginning" and page.locator("#step").input_value() == "4"


def test_every_step_and_sentence_is_reached_by_keys(browser, address):
    with opened(browser, address) as page:
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert page.locator("#step").input_value() == "2"
        page.locator("#step").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#step").input_value() == "3"  # one step, though the slider hears the key, too
        page.keyboard.press("]")
        assert page.locator("#title").text_content() == "Sentence 2 of 3" and page.url.endswith("#2")
        page.keyboard.press("]")
        page.keyboard.press("]")
        assert page.locator("#title").text_content() == "Sentence 3 of 3"
        page.keyboard.press("[")
        page.keyboard.press("[")
        assert page.locator("#title").text_content() == "Sentence 1 of 3"
        page.keyboard.press("Home")
        page.keyboard.press("Space")
        expect(page.locator("#step")).to_have_value("4")
        page.keyboard.press("/")
        page.keyboard.type("beginning [")
        assert page.locator("#search").input_value() == "beginning ["
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement === document.body")


def test_search_and_order_choose_among_the_sentences(browser, address):
    with opened(browser, address) as page:
        page.locator("#search").fill("HAYSTACK a")
        assert page.locator("#list li").count() == 1
        assert page.locator("#count").text_content() == "1 of 3 sentences"
        page.keyboard.press("Enter")
        assert page.locator("#title").text_content() == "Sentence 2 of 3"
        page.locator("#search").fill("beginning")  # of a candidate
        assert page.locator("#list li").all_text_contents() == ["1source 1"]
        page.locator("#search").fill("")
        page.locator("#order").select_option("late")
        assert page.locator("#list li").last.text_content() == "1source 1"


def test_what_users_write_is_shown_as_they_wrote_it(browser, address):
    with opened(browser, address + "#2") as page:
        page.wait_for_timeout(200)
        assert page.locator("#about dd").first.text_content() == HOSTILE
        assert text(page) == HOSTILE * 4 and page.locator("#list li").nth(1).text_content() == "2" + HOSTILE
        assert page.locator("img").count() == 0 and page.title() == "Denoising \u00b7 tiny.pt"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_readable(browser, address, scheme):
    """A contrast of 4.5 at least (WCAG 2.1, AA), on the least sure tokens, too."""
    with opened(browser, address, color_scheme=scheme, reduced_motion="reduce") as page:
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(20, 22, 26)") == (scheme == "dark")
        page.locator("#step").fill("1")
        found = page.evaluate(CONTRASTS)
        assert len(found) > 30 and any(name.startswith("token") for _, name in found)
        assert [(contrast, name) for contrast, name in found if contrast < 4.5] == []


def test_a_thousand_sentences_are_listed(browser, tmp_path):
    held = _trace_page.page(explore.TEMPLATE, made_up(range(1, 1001), 5, 4, 8, 50))
    (tmp_path / "explore.html").write_text(held, encoding="utf-8")
    with opened(browser, (tmp_path / "explore.html").as_uri(), reduced_motion="reduce") as page:
        assert page.locator("#list li").count() == 1000 and page.locator(".candidate").count() == 5
        page.locator("#search").fill("source 77")
        assert page.locator("#list li").count() == 19


@pytest.mark.slow
def test_the_command_writes_a_page_of_a_split_and_of_typed_lines(tmp_path):
    from test_cli import preprocess, write_pairs

    for split, count in (("train", 30), ("valid", 6)):
        write_pairs(tmp_path, split, count, seed=1)
    preprocess(tmp_path, tmp_path / "bin", "valid")
    words = Dictionary.load(str(tmp_path / "bin" / "dict.src.txt"))
    options = dict(max_source_positions=32, max_target_positions=24)
    save_model(tmp_path / "model.pt", "genie_tiny", make_genie(words), **options)
    (tmp_path / "typed.txt").write_text(f"{words[5]} {words[6]}\n\n{words[7]}\n")
    command = [sys.executable, REPOSITORY / "scripts/explore.py", tmp_path / "bin", "--path", tmp_path / "model.pt",
               "--diffusion-steps", "3", "--candidates", "2", "--output", tmp_path / "explore.html"]

    def written(*more):
        done = subprocess.run([*map(str, command), *map(str, more)], check=True, capture_output=True, text=True)
        page = (tmp_path / "explore.html").read_text(encoding="utf-8")
        held = re.search(r'<script type="application/json" id="trace">(.*?)</script>', page, re.S)[1]
        return done.stdout, json.loads(held)

    said, data = written("--subset", "valid", "--texts", "4")
    assert "4 sentences, 2 candidates, 3 steps" in said
    assert [sentence["number"] for sentence in data["sentences"]] == [1, 2, 3, 4]
    assert all(len(sentence["candidates"]) == 2 and sentence["reference"] for sentence in data["sentences"])
    said, data = written("--input", tmp_path / "typed.txt")
    assert [sentence["source"] for sentence in data["sentences"]] == [f"{words[5]} {words[6]}", words[7]]
    assert not any("reference" in sentence for sentence in data["sentences"])
    (tmp_path / "typed.txt").write_text("nothing of it\n")
    bad = subprocess.run([*map(str, command), "--input", str(tmp_path / "typed.txt")], capture_output=True, text=True)
    assert bad.returncode == 1 and bad.stderr.splitlines()[-1].endswith("lacks: give --bpe-model")

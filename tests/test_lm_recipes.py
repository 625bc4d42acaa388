"""The recipes of language models, from the distributors' layouts to scores, on stand-ins and at other sizes."""

import gzip
import json
import random
import subprocess
import sys

import pytest
from fairseq.data import Dictionary, data_utils
from helpers import REPOSITORY
from test_recipes import recipe

sys.path.insert(0, str(REPOSITORY / "scripts"))
import prepare_lines  # noqa: E402, I001
from _data import DataError  # noqa: E402
from prepare_pairs import layout_of  # noqa: E402

SMALL = ["--arch", "diffusion_lm_tiny", "--batch-size", "16", "--max-update", "6", "--total-num-update", "6",
         "--validate-interval-updates", "3", "--save-interval-updates", "3", "--cpu"]
NAMES, VERBS, THINGS = ("Comissaria Smith", "Mr. Jones", "AT&T"), ("sold", "bought", "denied"), ("cocoa", "oil")
RULES = prepare_lines.Rules(words=True, cased=False, share=1, valid=0.1, test=0.1)


def sentence(rng):
    return (f"{rng.choice(NAMES)} {rng.choice(VERBS)} {rng.randint(2, 999)} tonnes of {rng.choice(THINGS)} in "
            f"{rng.randint(1970, 1999)} for {rng.randint(2, 99)}.{rng.randint(0, 9)} mln dlrs.")


def article(rng):
    return [" ".join(sentence(rng) for _ in range(rng.randint(1, 4))) for _ in range(3)]


def sgml(rng, count):
    """Articles as Reuters-21578 has them: the third of four is of the test split, the fourth has a headline alone."""
    found = []
    for number in range(count):
        split = "TEST" if number % 4 == 2 else "TRAIN"
        body = "\n    ".join(article(rng)).replace("&", "&amp;").replace("oil", "oil &lt;OIL.N>")
        body = "" if number % 4 == 3 else f"<BODY>{body}\n Reuter\n&#3;</BODY>"
        found.append(f'<REUTERS TOPICS="YES" LEWISSPLIT="{split}" OLDID="{number}" NEWID="{number}">\n<TEXT>&#2;\n'
                     f"<TITLE>A HEADLINE</TITLE>\n{body}</TEXT>\n</REUTERS>\n")
    return '<!DOCTYPE lewis SYSTEM "lewis.dtd">\n' + "".join(found)


def stand_in(folder, kind, seed=1, count=120):
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    if kind == "sgml":
        (folder / "reut2-000.sgm").write_text(sgml(rng, count), encoding="latin-1")
    elif kind == "nltk":
        for number in range(count):
            path = folder / ("test" if number % 4 == 2 else "training") / str(number)
            path.parent.mkdir(exist_ok=True)
            body = "\n      ".join(article(rng)).replace("&", "&amp;")
            path.write_text(f"A HEADLINE OF\nTWO LINES\n  {body}\n  \n\n", encoding="latin-1")
    elif kind == "json":
        articles = [json.dumps({"text": "\n".join(article(rng)), "domain": "x"}) for _ in range(count)]
        (folder / "a.jsonl").write_text("\n".join(articles[::2]) + "\n")
        (folder / "b.json.gz").write_bytes(gzip.compress(f"[{', '.join(articles[1::2])}]".encode()))
        (folder / "more").mkdir()
        (folder / "more" / "one.json").write_text(json.dumps({"maintext": None}, indent=1))
        (folder / "more" / "two.json").write_text(json.dumps({"text": None, "maintext": "\ud800"}, indent=1))
    elif kind == "text":
        (folder / "a.txt").write_text("".join(" ".join(article(rng)) + "\n" for _ in range(count)))
    else:
        for split, part in (("train", count), ("valid", 12), ("test", 12)):
            lines = [line for _ in range(part) for line in article(rng)]
            (folder / f"{split}.txt").write_text("".join(line + "\n\n" for line in lines))
    return folder


LAYOUTS = [("reuters", "sgml"), ("reuters", "nltk"), ("cc_news", "json"), ("cc_news", "text"), ("cc_news", "split"),
           ("debian_prose", "split")]


@pytest.mark.parametrize("name, kind", LAYOUTS)
def test_every_layout_gives_its_articles(tmp_path, name, kind):
    folder = stand_in(tmp_path / "raw", kind)
    layout = layout_of(name, folder, prepare_lines.LAYOUTS)
    documents = list(layout.documents(folder))
    splits = {split for split, _ in documents}
    assert splits == {"reuters": {None, "test"}, "debian_prose": {"train", "valid", "test"}}.get(
        name, {"train", "valid", "test"} if kind == "split" else {None})
    if name == "reuters":
        assert sum(split == "test" for split, _ in documents) == 30
        assert len(documents) == (90 if kind == "sgml" else 120)
    lines = [line for _, text in documents for line in prepare_lines.lines_of(text, RULES)[0]]
    words = {word for line in lines for word in line.split()}
    assert {"comissaria", "cocoa", "tonnes", "&", "mr", ".", "mln"} <= words
    assert all(line.endswith(" mln dlrs .") and " tonnes of " in line for line in lines)
    assert not {"headline", "reuter", "<", "n", "lt", ";"} & words


def test_lines_are_cleaned():
    text = ("He said: “It’s the bank's 1,234.5 mln — see http://x.org/y now.” \n12 34 5.6 7 dlrs vs 8 9\nOh no!\n"
            "The year-old U.S. firm didn't pay in 1/4 of the 3rd quarter.")
    lines, left_out = prepare_lines.lines_of(text, RULES)
    assert lines == ["he said : \" it 's the bank 's 1,234.5 mln — see now . \"",
                     "the year - old u . s . firm didn't pay in 1/4 of the 3rd quarter ."]
    assert left_out == 2
    lines, _ = prepare_lines.lines_of(text, RULES._replace(words=False))
    assert lines[1] == "The year-old U.S. firm didn't pay in 1/4 of the 3rd quarter."
    assert prepare_lines.lines_of(text, RULES._replace(cased=True))[0][0].startswith("He said : \" It 's")


def test_a_share_is_drawn_by_the_text_and_splits_do_not_depend_on_it():
    texts = [f"article number {i} of some" for i in range(400)]
    whole = {text: prepare_lines.cleaned((None, text), RULES)[0] for text in texts}
    half = {text: prepare_lines.cleaned((None, text), RULES._replace(share=0.5)) for text in texts}
    kept = {text: found[0] for text, found in half.items() if found}
    assert 150 < len(kept) < 250 and all(whole[text] == split for text, split in kept.items())
    assert set(whole.values()) == {"train", "valid", "test"}
    given = [prepare_lines.cleaned((split, text), RULES._replace(share=0.5)) for text in texts
             for split in ("train", "test")]
    assert [found is not None for found in given[::2]] == [text in kept for text in texts] and all(given[1::2])


@pytest.mark.parametrize("name, content, message", [
    ("reuters", {}, "has no layout of reuters .* lacks reut2-.*sgm"),
    ("reuters", {"training/1": "x"}, "the nearest one lacks test"),
    ("cc_news", {"readme.md": "x"}, r"has no layout of cc_news .* lacks \*.json"),
    ("debian_prose", {"train.txt": "x", "test.txt": "x"}, "lacks valid.txt"),
    ("cc_news", {"a.jsonl": '{"text": "x"}\n{"text": \n'}, "a.jsonl, line 2: no JSON"),
    ("cc_news", {"a.json": '{"text": '}, "a.json: neither JSON lines nor JSON"),
    ("cc_news", {"a.jsonl": '{"title": "x"}\n'}, 'a.jsonl, line 1: no object with the article in "text"'),
    ("cc_news", {"a.jsonl": '{"text": 3}\n'}, 'a.jsonl, line 1: no object with the article in "text"'),
    ("cc_news", {"a.txt": b"\xff"}, "a.txt, line 1: not UTF-8"),
    ("cc_news", {"a.json.gz": b"no"}, "a.json.gz cannot be unpacked"),
])
def test_bad_folders_and_files_are_named(tmp_path, name, content, message):
    for path, text in content.items():
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        list(layout_of(name, tmp_path, prepare_lines.LAYOUTS).documents(tmp_path))


def run_script(*arguments):
    words = [sys.executable, str(REPOSITORY / "scripts/prepare_lines.py"), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=600)


def test_errors_of_the_readers_reach_the_command_in_one_line(tmp_path):
    folder = stand_in(tmp_path / "raw", "json")
    (folder / "z.jsonl").write_text("no\nno\n")
    done = run_script("cc_news", folder, "--out", tmp_path / "out", "--workers", 1)
    assert done.returncode == 1 and not (tmp_path / "out/text/train.txt").exists()
    assert done.stderr.splitlines()[-1].startswith(f"error: {folder}/z.jsonl: neither JSON lines nor JSON")
    assert "Traceback" not in done.stderr


def read(path):
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("name, kind, options", [
    ("reuters", "sgml", []), ("cc_news", "json", ["--share", "1", "--sentencepiece"]), ("debian_prose", "split", []),
])
def test_recipe_runs_from_raw_files_to_scores(tmp_path, name, kind, options):
    raw, work = stand_in(tmp_path / "raw", kind), tmp_path / "work"
    sizes = ["--held-out", 9, "--valid", "0.1", "--test", "0.1", *options]
    done = recipe(name, "prepare", work, raw, "--vocabulary", 90, "--workers", 1, *sizes)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "replaced (by <unk>)" in done.stdout
    texts = {split: read(work / f"text/{split}.txt") for split in ("train", "valid", "test")}
    assert [len(texts[split]) for split in ("valid", "test")] == [9, 9] and len(texts["train"]) > 100
    lines = [line for found in texts.values() for line in found]
    assert len(set(lines)) == len(lines)
    dictionary = Dictionary.load(str(work / "data-bin/dict.txt"))
    assert "<mask>" in dictionary and len(dictionary) <= 104
    first = data_utils.load_indexed_dataset(str(work / "data-bin/test"), dictionary, None)[0]
    assert dictionary.string(first, "sentencepiece" if options else None).split()[-1] in (".", "dlrs.")
    for script, *arguments in (("train", *SMALL), ("generate", "--cpu", "--diffusion-steps", 3)):
        done = recipe(name, script, work, *arguments)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert sum(line.startswith("H-") for line in read(work / "generated.txt")) == 9
    assert {"model", "data"} <= set(json.loads((work / "scores.json").read_text())["systems"])
    assert "n-gram perplexity" in done.stdout
    again = recipe(name, "prepare", work, raw, "--vocabulary", 90, *sizes)
    assert again.returncode == 0 and again.stdout.count("already there") == 2


@pytest.mark.slow
def test_prepare_says_what_is_missing(tmp_path):
    for name in ("reuters", "cc_news", "debian_prose"):
        (tmp_path / name).mkdir()
        done = recipe(name, "prepare", tmp_path / "work", tmp_path / name)
        assert done.returncode == 1 and "lacks" in done.stderr and done.stderr.count("\n") == 1
        done = recipe(name, "prepare", tmp_path / "work")
        assert done.returncode != 0 and f"usage: bash examples/{name}/prepare.sh FOLDER" in done.stderr
    stand_in(tmp_path / "reuters" / "part", "sgml")
    done = recipe("reuters", "prepare", tmp_path / "work", tmp_path / "reuters", "--vocabulary", 90, "--valid", "0.1")
    assert done.returncode == 0 and "not found, left out: reut2-001.sgm, reut2-002.sgm" in done.stderr

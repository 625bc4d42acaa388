"""scripts/evaluate_lm.py: what it reads, refuses and prints."""

import json
import math
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import REPOSITORY
from tiny_scorer import make_scorer, save_scorer

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import diversity, model_based, ngram
from diffusion_fairseq.text.masking import MASKS

sys.path.insert(0, str(REPOSITORY / "scripts"))
import _lm_scorer  # noqa: E402
import evaluate_lm  # noqa: E402
from _generated import Outputs  # noqa: E402
from _lm_evaluation import Rows, Sample  # noqa: E402

TEXTS = ["the cat sat on the mat", "a dog ran", "", "we will go now", "a dog ran"]
DATA = ["the dog sat on a mat", "the cat ran here now"]
TRAIN = ["the cat sat on the mat and we will go", "", "a dog and a cat ran here", "we sat here now", "now we ran"]


def write(path, lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def texts(tmp_path):
    return write(tmp_path / "texts.txt", TEXTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scorer as transformers saves one."""
    return save_scorer(tmp_path_factory.mktemp("models") / "tiny")


def json_of(tmp_path, *arguments):
    evaluate_lm.main([*map(str, arguments), "--json", str(tmp_path / "scores.json")])
    return json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))


def generated(path, candidates, sources=None):
    lines = []
    for i, texts in enumerate(zip(*candidates)):
        lines += [f"S-{i}\t{sources[i]}"] if sources else []
        lines += [line for text in texts for line in (f"H-{i}\t-1\tx", f"D-{i}\t-1\t{text}")]
    return write(path, lines)


def test_measures_that_need_no_model(tmp_path, texts, capsys):
    result = json_of(tmp_path, texts, "--plain", "--name", "ours", "--reference", write(tmp_path / "r", ["", *DATA]))
    ours, data = result["systems"]["ours"], result["systems"]["data"]
    assert ours["texts"] == 5 and data["texts"] == 2, "an empty line of real text is no text"
    assert (ours["words"], ours["empty"], ours["duplicate"]) == (pytest.approx(16 / 5), 20, 20)
    # of as many texts as the smallest row has
    assert "of 2 texts|seed:1" in result["signatures"]["variety"]
    assert data["dist1"] == pytest.approx(100 * diversity.distinct(DATA, 1))
    assert data["self_bleu"] == pytest.approx(diversity.self_bleu_of_corpus(DATA))
    assert data["entropy"] == pytest.approx(diversity.token_entropy(DATA)) and "ar_nll" not in data
    out = capsys.readouterr().out
    assert "self-BLEU" in out and "AR-NLL" not in out and "perplexity" not in out and "\nvariety: " in out


def test_the_draw_of_texts_depends_on_the_seed(tmp_path):
    many = write(tmp_path / "many.txt", [f"w{i} w{i + 1} w{i * i % 7}" for i in range(40)])
    rows = [json_of(tmp_path, many, "--plain", "--at-most", 6, "--seed", seed)["systems"]["model"] for seed in "112"]
    assert rows[0] == rows[1] != rows[2] and rows[0]["texts"] == 40


def test_ngram_model_and_memorised_text(tmp_path, texts):
    train = write(tmp_path / "train.txt", TRAIN)
    copied = write(tmp_path / "copied.txt", [TRAIN[0], "cat sat on the mat and we will never"])
    result = json_of(tmp_path, texts, "--plain", "--system", f"copied={copied}", "--train", train, "--ngram-order", 2)
    corpus = ngram.read_corpus(TRAIN)
    model = ngram.kneser_ney(corpus, 2)
    row, copied = result["systems"]["model"], result["systems"]["copied"]
    assert row["perplexity"] == pytest.approx(ngram.perplexity(ngram.log_probabilities(model, TEXTS)))
    assert row["unknown"] == pytest.approx(100 * ngram.unknown_share(model, TEXTS)) and row["seen"] is None
    assert copied["seen"] == pytest.approx(100 * 4 / 5)
    assert "order:2" in result["signatures"]["n-gram"]


def test_a_model_of_words_is_compared_with_what_it_reads(tmp_path):
    """The real text has words that the model can only write as <unk>."""
    read = ["the <unk> sat here", "a dog ran"]
    model, real, train, words = (write(tmp_path / name, lines) for name, lines in {
        "model": read, "real": ["the lynx sat here", "a dog ran"],
        "train": [*TRAIN, "the lynx and the lynx sat here", "a dog and a heron ran"],
        "dict.txt": [f"{word} 1" for word in sorted({word for line in TRAIN for word in line.split()})]}.items())
    options = [model, "--plain", "--reference", real, "--system", f"other={real}", "--train", train]
    result = json_of(tmp_path, *options, "--words", words)
    rows = result["systems"]
    assert rows["model"] == rows["data"] == rows["other"] and rows["model"]["unknown"] == pytest.approx(100 / 7)
    # two words of --train are <unk> there, each with half of its probability
    known = ngram.kneser_ney(ngram.read_corpus([*TRAIN, "the <unk> and the <unk> sat here", "a dog and a <unk> ran"]))
    log_probs = ngram.log_probabilities(known, read)
    log_probs[0][1] -= math.log(2)
    assert rows["model"]["perplexity"] == pytest.approx(ngram.perplexity(log_probs))
    assert "<unk>/2" in result["signatures"]["n-gram"]
    raw = json_of(tmp_path, *options)["systems"]
    assert raw["model"] != raw["data"] == raw["other"] and raw["data"]["unknown"] == 0
    given = ["--prefixes", write(tmp_path / "p", ["the lynx <mask>", "a <mask>"]), "--words", words]
    assert json_of(tmp_path, *options, *given)["systems"]["data"]["words"] == 2
    with pytest.raises(UserError, match="dictionary of subwords") as caught:
        json_of(tmp_path, *options, "--words", write(tmp_path / "s", ["\u2581the 5", "s 3"]))
    assert "\n" not in str(caught.value)


def test_ar_nll_of_every_row(tmp_path, texts, folder, capsys):
    result = json_of(tmp_path, texts, "--plain", "--scorer", folder, "--reference", write(tmp_path / "r", DATA))
    for name, lines in {"model": TEXTS, "data": DATA}.items():
        expected = model_based.ar_nll(lines, *make_scorer())
        row = result["systems"][name]
        assert row["ar_nll"] == pytest.approx(expected.per_token) and row["tokens"] == expected.counts.sum()
        assert row["ar_nll_text"] == pytest.approx(expected.per_text)
    signature = result["signatures"]["ar-nll"]
    assert "scorer:tiny," in signature and folder not in signature and "tokens:24 at most" in signature
    assert f"{result['systems']['data']['ar_nll']:.3f}" in capsys.readouterr().out
    drawn = json_of(tmp_path, texts, "--plain", "--scorer", folder, "--scored", 2)
    assert drawn["systems"]["model"]["tokens"] < row["tokens"] + 6 and "texts:2" in drawn["signatures"]["ar-nll"]


@pytest.mark.parametrize("mask", MASKS)
def test_prefixes_are_given_and_not_counted(tmp_path, folder, mask):
    prefixes = ["the cat", "a", "", "we will go now", "a"]
    following = [text[len(prefix) :] for text, prefix in zip(TEXTS, prefixes)]
    masked = [f"{prefix}{mask} {mask}" for prefix in prefixes]
    whole, rest = write(tmp_path / "whole", TEXTS), write(tmp_path / "rest", following)
    options = ["--scorer", folder, "--train", write(tmp_path / "t", TRAIN)]
    given = ["--plain", "--prefixes", write(tmp_path / "p", masked), *options]
    row = json_of(tmp_path, whole, *given)["systems"]["model"]
    assert row == json_of(tmp_path, rest, *given, "--continuations")["systems"]["model"]
    output = generated(tmp_path / "g", [TEXTS], masked)
    assert row == json_of(tmp_path, output, "--source-prefixes", *options)["systems"]["model"]
    assert row["ar_nll"] == pytest.approx(model_based.ar_nll(TEXTS, *make_scorer(), prefixes=prefixes).per_token)
    assert row["tokens"] == 4 + 2 + 2 and row["words"] == pytest.approx(8 / 5)
    assert row["dist1"] == pytest.approx(100 * diversity.distinct(following, 1))
    log_probs = ngram.log_probabilities(ngram.kneser_ney(ngram.read_corpus(TRAIN)), TEXTS)
    expected = ngram.perplexity([row[len(p.split()) :] for row, p in zip(log_probs, prefixes)])
    assert row["perplexity"] == pytest.approx(expected)
    cut = json_of(tmp_path, whole, "--plain", "--scorer", folder, "--prefix-tokens", 3)["systems"]["model"]
    assert cut["tokens"] == 3 + 1 and cut["words"] == pytest.approx(16 / 5)


def test_a_given_ending_is_not_counted(tmp_path, folder):
    """Neither its words nor its tokens: what is left is the text up to it."""
    prompts = ["the <mask> <mask> now", "a<mask>", "<mask> <mask> falls <mask> a b", "<mask> x", "<mask> <mask> a b"]
    endings = ["now", "", "a b", "x", "a b"]
    texts = [f"{text} {ending}".strip() for text, ending in zip(TEXTS, endings)]
    options = ["--plain", "--scorer", folder, "--train", write(tmp_path / "t", TRAIN), "--prefixes"]
    row = json_of(tmp_path, write(tmp_path / "whole", texts), *options, write(tmp_path / "p", prompts))
    before = [prompt.partition("<mask>")[0] + "<mask>" for prompt in prompts]
    alone = json_of(tmp_path, write(tmp_path / "texts", TEXTS), *options, write(tmp_path / "b", before))
    assert row["systems"] == alone["systems"]
    blank = Rows(["the  cat"], ["y"], max_words=4)
    blank.add("model", Outputs([["the  cat sat on the mat y"]]))
    assert blank.rows["model"][0][0].written == "sat on"


def test_a_prefix_may_end_within_a_word():
    assert Sample("the elephant ran", "the ele").written == "elephant ran"
    assert Sample("the elephant ran", "the elephant").written == "ran"
    assert Sample("the elephant", "the elephant").written == "" and Sample("a b").written == "a b"
    assert Rows(["a b"], max_words=3).sample("", "a b c d", "a b") == Sample("a b c", "a b")


def test_several_samples_of_a_prompt(tmp_path):
    first, second = ["a b", "c d", "e"], ["a b", "c x", "f"]
    output = generated(tmp_path / "g", [first, second])
    row = json_of(tmp_path, output)["systems"]["model"]
    assert row["texts"] == 6 and row["duplicate"] == pytest.approx(100 / 6)
    assert row["dist1_among"] == pytest.approx(100 * (1 / 2 + 3 / 4 + 1) / 3)
    files = [write(tmp_path / name, lines) for name, lines in (("1", first), ("2", second))]
    assert json_of(tmp_path, *files, "--plain")["systems"]["model"] == row
    system = json_of(tmp_path, files[0], "--plain", "--system", f"both={output}")["systems"]
    assert system["both"]["dist1_among"] == row["dist1_among"] and "dist1_among" not in system["model"]


def test_mauve_against_the_data(tmp_path, folder):
    pytest.importorskip("mauve")
    kinds = [[" ".join(words[(i + j) % len(words)] for j in range(1 + i % 5)) for i in range(30)]
             for words in ("the cat sat on mat".split(), "we will go now here".split())]
    like, unlike = (write(tmp_path / str(i), lines) for i, lines in enumerate(kinds))
    arguments = [like, "--plain", "--system", f"unlike={unlike}", "--reference", like]
    result = json_of(tmp_path, *arguments, "--scorer", folder, "--mauve")
    assert 0 < result["systems"]["unlike"]["mauve"] < 0.9 < result["systems"]["model"]["mauve"] == pytest.approx(1)
    assert "mauve" not in result["systems"]["data"] and "mauve-text:" in result["signatures"]["mauve"]
    other = json_of(tmp_path, *arguments, "--mauve-model", folder)["systems"]
    assert other["unlike"]["mauve"] == result["systems"]["unlike"]["mauve"] and "ar_nll" not in other["model"]
    empty = write(tmp_path / "empty", [""] * 30)
    assert json_of(tmp_path, empty, *arguments[1:], "--mauve-model", folder)["systems"]["model"]["mauve"] is None


def test_formats(tmp_path, texts, folder, capsys):
    arguments = [texts, "--plain", "--system", f"none={write(tmp_path / 'e', ['', ''])}", "--scorer", folder]
    evaluate_lm.main([*arguments, "--format", "markdown"])
    table = capsys.readouterr().out
    assert table.startswith("likelihood\n\n| system ") and "| none   |      - |" in table
    evaluate_lm.main([*arguments, "--format", "json"])
    assert json.loads(capsys.readouterr().out) == json_of(tmp_path, *arguments)


REFUSED = {
    "prefixes of another number": (["--prefixes", "{two}"], "model: 5 texts, but there are 2 prefixes"),
    "another prefix": (["--prefixes", "{data}"], "model, text 1 does not begin with its prefix 'a dog ran'"),
    "no S-": (["--source-prefixes"], "--source-prefixes: .*: no S- lines"),
    "continuations": (["--continuations"], "--continuations of what"),
    "twice": (["--system", "model={two}"], "two systems are called 'model'"),
    "mauve without data": (["--mauve", "--scorer", "x"], "give --reference FILE"),
    "mauve without model": (["--mauve", "--reference", "{two}"], "give --scorer or --mauve-model"),
    "gguf": (["--gguf", "x"], "give --scorer FOLDER"),
    "no file": (["--train", "{tmp}/none.txt"], r"none\.txt: No such file"),
    "no words": (["--train", "{blank}"], "there is no word"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(tmp_path, texts, case):
    options, message = REFUSED[case]
    files = {"two": ["a", "b"], "data": ["a dog ran"] * 5, "blank": [""]}
    paths = {name: write(tmp_path / name, lines) for name, lines in files.items()}
    with pytest.raises(UserError, match=message) as caught:
        evaluate_lm.main([texts, "--plain", *(option.format(tmp=tmp_path, **paths) for option in options)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option, needed", [
    (("--bos",), "--scorer"), (("--device", "cuda"), "--scorer"), (("--max-tokens", "5"), "--scorer"),
    (("--batch-tokens", "5"), "--scorer"), (("--ngram-order", "2"), "--train"),
    (("--words", "dict.txt"), "--reference, --train or --system")])
def test_options_without_what_they_act_on_are_refused(texts, capsys, option, needed):
    with pytest.raises(SystemExit):
        evaluate_lm.main([texts, "--plain", *option])
    assert f"error: {option[0]} acts only with {needed}: give both, or leave it out" in capsys.readouterr().err


def test_models_that_are_not_there(tmp_path, folder, monkeypatch):
    with pytest.raises(UserError, match=r"^--scorer /no/folder: no such folder$"):
        _lm_scorer.load_scorer("--scorer", "/no/folder")
    with pytest.raises(UserError, match="has no file x.gguf"):
        _lm_scorer.load_scorer("--scorer", folder, "x.gguf")
    (tmp_path / "m.gguf").write_bytes(b"")
    with pytest.raises(UserError, match="give --gguf m.gguf"):
        _lm_scorer.load_scorer("--scorer", str(tmp_path))
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged/model.safetensors").write_bytes(bytes(100))
    with pytest.raises(UserError, match="^--scorer [^:]*: Error while deserializing header"):
        _lm_scorer.load_scorer("--scorer", str(tmp_path / "damaged"))
    with pytest.raises(UserError, match="--device nothing: "):
        _lm_scorer.load_scorer("--scorer", folder, device="nothing")

    def unreachable(*args, **options):
        raise OSError("We couldn't connect to the hub.\nCheck your internet connection.")

    hub = SimpleNamespace(AutoModelForCausalLM=SimpleNamespace(from_pretrained=unreachable))
    monkeypatch.setattr(_lm_scorer, "import_transformers", lambda option: hub)
    with pytest.raises(UserError, match="^--scorer gpt2: We couldn't connect .* hub; without network, copy") as caught:
        _lm_scorer.load_scorer("--scorer", "gpt2")
    assert "\n" not in str(caught.value)


def test_missing_packages_are_said_in_one_line(tmp_path, texts, monkeypatch):
    for name, options in {"transformers": ["--scorer", "gpt2"],
                          "mauve": ["--mauve-model", "gpt2", "--reference", texts]}.items():
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=r"needs .*pip install 'diffusion-fairseq\[metrics\]'$") as caught:
            evaluate_lm.main([texts, "--plain", *options])
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_errors_are_one_line_and_status_1(tmp_path):
    command = [sys.executable, str(REPOSITORY / "scripts" / "evaluate_lm.py"), str(tmp_path / "none.txt")]
    paths = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(REPOSITORY)])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().split("\n")[-1].startswith("error: ") and "Traceback" not in done.stderr

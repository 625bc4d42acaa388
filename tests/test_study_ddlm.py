"""scripts/study_ddlm.py and study_lm_sampling.py: what language models write, compared, on tiny models."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import REPOSITORY, make_ddlm, make_dictionary, make_prompts, make_sampling, prompt_tokens, wait_until
from test_study import run_script
from test_study_objectives import make_work
from tiny_scorer import WORDS, make_scorer, save_scorer

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.presets import DDLM
from diffusion_fairseq.text.masking import GivenPositions

sys.path.insert(0, str(REPOSITORY / "scripts"))
import _lm_writing as writing  # noqa: E402, I001
import _study  # noqa: E402
from _lm_scorer import Scorer  # noqa: E402
import study_ddlm as study  # noqa: E402
import study_lm_sampling as sampling  # noqa: E402

DICTIONARY = make_dictionary()
MODEL = make_ddlm(DICTIONARY)
TEXTS = ("abcdefgh", "a.cd.fgh")


def make_given(kind, ends=False):
    """Prompts of a kind from two texts, whose "." is an end of sentence."""
    given = writing.given_positions(kind, 8)
    masked = ["".join("_" if noised else letter for letter, noised in zip(text, GivenPositions(given)(8, None)))
              for text in TEXTS]
    batch = {**make_prompts(DICTIONARY, *masked), "target": torch.tensor([prompt_tokens(DICTIONARY, t) for t in TEXTS])}
    task = SimpleNamespace(target_dictionary=DICTIONARY, mask=MODEL.mask, ends=ends,
                           cfg=SimpleNamespace(tokens_per_sample=8))
    return writing.Prompts(kind, task, None, [batch])


def test_the_papers_tasks_and_what_is_given_in_them():
    assert [writing.given_positions(kind, 64) for kind in writing.KINDS] == ["none", "0:32", "0:16,48:64"]
    assert make_given("unconditional").prefixes == ["", ""]
    assert make_given("prefix").prefixes == ["w2 w3 w4 w5", "w2 w4 w5"]
    assert make_given("inpainting").prefixes == ["w2 w3", "w2"]
    assert [make_given(kind).endings for kind in writing.KINDS] == [["", ""], ["", ""], ["w8 w9", "w8 w9"]]
    assert make_given("prefix").references == ["w2 w3 w4 w5 w6 w7 w8 w9", "w2 w4 w5 w7 w8 w9"]


@pytest.mark.parametrize("kind, ends, words", [("unconditional", False, ""), ("prefix", False, "w2 w3 w4 w5"),
                                               ("inpainting", False, "w2 w3 w8 w9"), ("prefix", True, "w2 w3 w4 w5")])
def test_blocks_are_written_to_their_end_and_texts_to_their_end_of_sentence(monkeypatch, kind, ends, words):
    """A model that predicts ends of sentence alone: in a block what was given behind them stays, and is counted."""
    model = make_ddlm(DICTIONARY).requires_grad_(False)
    model.head.weight.zero_()
    model.head.bias.fill_(-50)[DICTIONARY.eos()] = 50
    prompts = make_given(kind, ends)
    lengths = []
    monkeypatch.setattr(writing.Prompts, "text", lambda self, tokens: lengths.append(len(tokens)) or
                        DICTIONARY.string(tokens))
    found = writing.by_diffusion(prompts, model, make_sampling(diffusion_steps=2, solver="euler", candidates=2))
    assert [column[0] for column in found.candidates] == [words, words] and found.steps == 2 and found.seconds > 0
    assert set(lengths) == ({5} if ends else {8})


@pytest.mark.parametrize("kind", writing.KINDS)
def test_mauve_compares_texts_of_one_extent(monkeypatch, kind):
    """A model that writes the real texts has the real texts' features, those of what ends where something is given."""
    judge = object.__new__(writing.Judge)
    judge.arguments, judge.features = Namespace(ngram_lines=0), {}
    judge.scoring = writing.Scoring(mauve=(None, None, "m"))
    monkeypatch.setattr(writing.model_based, "features", lambda texts, *_, **__: texts)
    monkeypatch.setattr(writing.model_based, "mauve", lambda texts, data: (texts, data))
    monkeypatch.setattr(writing.model_based, "mauve_signature", lambda: "")
    prompts = make_given(kind)
    texts, data = judge.scores("model", prompts, [prompts.references])[0]["mauve"]
    assert texts == data and all(text.endswith("w7") == (kind == "inpainting") for text in data)


@pytest.mark.parametrize("kind, ends", [("unconditional", False), ("prefix", False), ("prefix", True)])
def test_a_causal_model_goes_on_after_each_prefix(kind, ends):
    writer = Scorer(*make_scorer(), "tiny")
    writer.model.generation_config.suppress_tokens = [1]  # of unknown words, which are not spelt
    prompts = make_given(kind, ends)
    found = writing.by_causal(prompts, writer, 3, 1.0, seed=1)
    assert len(found.candidates) == 3 and found.steps is None and found.seconds > 0
    asked = 8 if kind == "unconditional" or ends else 4
    for column in found.candidates:
        for text, prefix in zip(column, prompts.prefixes):
            written = text[len(prefix) :].split()
            assert text.startswith(prefix) and set(written) <= set(WORDS.split())
            assert len(written) == asked or ends and len(written) <= asked
    assert writing.by_causal(prompts, writer, 3, 1.0, seed=1).candidates == found.candidates
    assert writing.by_causal(prompts, writer, 3, 1.0, seed=2).candidates != found.candidates
    surest = writing.by_causal(prompts, writer, 1, 1e-6, seed=1).candidates[0]
    batch, = prompts.batches
    for row, text in enumerate(surest):
        alone = {**batch, "net_input": {"src_tokens": batch["net_input"]["src_tokens"][row : row + 1]}}
        assert writing.by_causal(prompts._replace(batches=[alone]), writer, 1, 1e-6, seed=1).candidates == [[text]]


def test_a_page_of_samples_marks_what_comes_more_than_once():
    page = writing.sample_page(make_given("inpainting"), {
        "data": ["w2 w3 <b> <b> w8 w9", "w2 w4 w8 w9"], "a & b": ["w2 w3 w3 x w8 w9", "w2 x x w8 w9"]})
    first, second = page.split("<h2>")[1:]
    assert first.startswith("w2 w3 … w8 w9</h2>") and second.startswith("w2 … w8 w9</h2>")
    assert "<tr><th>data<td><mark>&lt;b&gt;</mark> <mark>&lt;b&gt;</mark>\n" in first
    assert "<tr><th>a &amp; b<td><mark>w3</mark> x\n" in first and "<td><mark>x</mark> <mark>x</mark>\n" in second
    assert writing.sample_page(make_given("unconditional"), {"data": ["a", "b"]}).count("<h2>nothing given</h2>") == 2


def test_what_decides_of_sampling_is_said():
    options = Namespace(solver="euler", steps=50, warped_grid=False, clamping=False, top_p=1.0)
    assert study.sampled_by(options) == "euler, 50 steps, grid uniform, not clamped; token by token with top-p 1"
    options.warped_grid = options.clamping = True
    assert ", grid warped where a law of t was learned, else uniform, clamped; " in study.sampled_by(options)


def test_writers_have_names_of_their_own():
    found = study.writers_of(Namespace(writer=["models/gpt2", "EleutherAI/gpt-neo-125m"]))
    assert [one.writes("inpainting") for one in found.values()] == [False, False]
    assert list(found) == ["gpt2", "gpt-neo-125m"] and found["gpt2"].options == ["models/gpt2"]
    for places in (["a/gpt2", "b/gpt2"], ["models/data"]):
        with pytest.raises(UserError, match="^--writer .*: two rows would have one name"):
            study.writers_of(Namespace(writer=places))


SIZES = {name: int(size) for name, size in zip(*[iter(study.sizes_of("ddlm_base"))] * 2)}


def test_the_transformer_has_the_layers_and_widths_of_the_ddlm():
    assert SIZES == {"--decoder-input-dim": 256, "--decoder-embed-dim": 1024, "--decoder-output-dim": 1024,
                     "--decoder-ffn-embed-dim": 4096, "--decoder-layers": 8, "--decoder-attention-heads": 8}
    assert all(len(study.sizes_of(arch)) == 12 for arch in DDLM)


def make_row(variant, kind, seed, **scores):
    return {"variant": variant, "task": kind, "seed": seed, "scores": {"perplexity": 20.0, "dist1": 5.0, **scores}}


def test_tables_have_a_line_for_each_variant_and_the_mean_over_seeds(tmp_path):
    variants = {name: study.Variant(name, "", [], t_max, law, "span")
                for name, t_max, law in (("a", 5.0, "uniform"), ("b", 10.0, "uniform"), ("c", 5.0, "time-warp"))}
    variants[study.TRANSFORMER] = study.Variant(study.TRANSFORMER, "", [])
    rows = {f"{name} {kind} {seed}": make_row(name, kind, seed, dist1=10.0 * seed, mauve=None)
            for name in ("data", *variants) for kind in ("unconditional", "prefix") for seed in (1, 2)}
    rows["data prefix 1"]["scores"]["zipf"] = 0.9
    tasks = study.by_task(rows, ["data", study.TRANSFORMER, "a", "b"])
    assert {kind: list(found) for kind, found in tasks.items()} == dict.fromkeys(
        ("unconditional", "prefix"), ["data", study.TRANSFORMER, "a", "b"])
    first, second = study.tables(tasks, {"a": 7.31}).split("\n\nprefix\n\n")
    assert first.startswith("unconditional\n") and "Zipf" not in first and "Zipf" in second and "MAUVE" not in first
    line = next(line for line in first.splitlines() if line.startswith("a "))
    assert "15.0 ± 7.1" in line and line.endswith("7.3") and first.count("15.0 ± 7.1") == 4
    study.plot(study.by_task(rows, ["data", *variants]), variants, rows, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 20000


def test_settings_take_turns_and_are_measured_once(tmp_path):
    def measured(setting, seed):
        calls.append((setting["x"], seed))
        return {"seconds": [1.0, 9.0, 2.0][seed - 1], "y": float(seed), "z": None}

    calls = []
    _study.take_turns({"a": {"x": 1}}, measured, 1, tmp_path / "rows.json", {"of": 1})
    rows = _study.take_turns({"a": {"x": 1}, "b": {"x": 2}}, measured, 3, tmp_path / "rows.json", {"of": 1})
    assert rows["a"]["options"] == {"of": 1}
    assert list(_study.take_turns({"b": {"x": 2}}, measured, 3, tmp_path / "rows.json", {"of": 1})) == ["b"]
    assert calls == [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3)]
    first = _study.take_turns({"b": {"x": 2}}, measured, 1, tmp_path / "rows.json", {"of": 1})
    assert first["b"]["seconds"] == 1 and len(first["b"]["seeds"]) == 1, "as many seeds as were asked for"
    with pytest.raises(UserError, match="measured with other options .of.: name another --output"):
        _study.take_turns({"a": {"x": 1}}, measured, 1, tmp_path / "rows.json", {"of": 2})
    assert {key: rows["a"][key] for key in "xyz"} == {"x": 1, "y": 2.0, "z": None} and rows["b"]["seconds"] == 2
    _study.forget_others(tmp_path / "none.json", {})
    _study.write_rows(tmp_path / "rows.json", {"a": {"options": 1}, "b": {"options": 2}})
    _study.forget_others(tmp_path / "rows.json", 2)
    assert _study.read_rows(tmp_path / "rows.json") == {"b": {"options": 2}}


def test_rows_are_of_what_is_in_the_files_wherever_they_lie(tmp_path):
    def found(folder, model, data):
        (tmp_path / folder / "bin").mkdir(parents=True)
        (tmp_path / folder / "model.pt").write_text(model)
        (tmp_path / folder / "bin/test.idx").write_text(data)
        (tmp_path / folder / "bin/train.idx").write_text(folder)
        arguments = Namespace(path=str(tmp_path / folder / "model.pt"), data=f"{tmp_path / folder / 'bin'}/", steps=3)
        return _study.options_of(arguments, ("path", "data", "steps"), {"data": ["test.*"]})

    rows = [found("a", "1", "2"), found("b", "1", "2"), found("c", "1", "3"), found("d", "2", "2")]
    assert rows[0] == rows[1] and rows[0]["steps"] == 3
    assert [name for name in rows[0] if rows[0][name] != rows[2][name]] == ["data"]
    assert [name for name in rows[0] if rows[0][name] != rows[3][name]] == ["path"]


def test_the_index_stands_for_the_training_text(tmp_path, monkeypatch):
    def found(*, index="i", text="t", valid="v"):
        for name, content in (("train.idx", index), ("train.bin", text), ("test.bin", valid), ("valid.bin", valid)):
            (tmp_path / name).write_text(content)
        monkeypatch.setattr(sys, "argv", ["study", str(tmp_path), "--path", "m.pt"])
        return sampling.options_read(sampling.parse_arguments())

    first = found()
    assert first == found(text="other") and first != found(index="other") and first != found(valid="other")


def test_damaged_rows_are_named(tmp_path):
    (tmp_path / "study.json").write_text('{"a": {"seeds"')
    with pytest.raises(UserError, match="study.json is damaged .*: remove it"):
        _study.read_rows(tmp_path / "study.json")


def test_commands_end_with_the_study_that_is_killed(tmp_path):
    program = ("import sys; sys.path.insert(0, sys.argv[1]); from _commands import run; from pathlib import Path; "
               "run([sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'], "
               "Path(sys.argv[2]))")
    words = [sys.executable, "-c", program, str(REPOSITORY / "scripts"), str(tmp_path / "log")]
    with subprocess.Popen(words) as study:
        child = wait_until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text(), seconds=30)
        study.kill()

    def ended():
        try:
            return "Z" in Path(f"/proc/{int(child)}/stat").read_text()
        except OSError:
            return True

    wait_until(ended, seconds=30)


def test_plain_sampling_takes_as_many_steps_as_early_exit_did():
    setting = {"solver": "euler", "diffusion_steps": 200, "exit_patience": 5, "exit_entropy": 0.1, "clamping": False}
    assert sampling.plain(setting, 41.6) == {**setting, "diffusion_steps": 42, "exit_patience": None,
                                             "exit_entropy": None}


# ---- the commands

TRAIN = ["--optimizer", "adam", "--lr", "1e-2", "--batch-size", "16", "--max-update", "30", "--disable-validation",
         "--store-ema", "--ema-decay", "0.5"]
SMALL = ["--tokens-per-sample", "16", "--texts", "9", "--samples", "2", "--batch-size", "4", "--ngram-lines", "50"]
MODELS = ("transformer_lm-seed1", "t_max-10-uniform-span-seed1")


def run_study(work, output, *options, train=TRAIN, check=True):
    return run_script("study_ddlm.py", work / "data-bin", "--arch", "ddlm_tiny", "--output", output, "--seeds", "1",
                      "--steps", "3", *SMALL, *options, "--", *train, check=check)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("ddlm") / "work")


@pytest.fixture(scope="module")
def first(work, tmp_path_factory):
    """A study of one DDLM and the transformer, and what it has printed."""
    output = tmp_path_factory.mktemp("study")
    return output, run_study(work, output, "--write", "unconditional,prefix").stdout


def rows_of(file):
    return json.loads(file.read_text())


@pytest.mark.slow
def test_study_trains_writes_and_measures(first):
    output, said = first
    rows = rows_of(output / "study.json")
    assert set(rows) == {f"{name}, {kind}" for name in ("data", *MODELS) for kind in ("unconditional", "prefix")}
    assert all(row["scores"]["perplexity"] > 1 for row in rows.values())
    sizes = [row["parameters"] for row in rows_of(output / "trainings.json").values()]
    assert min(sizes) > 0.6 * max(sizes) > 50000, "the time conditions a DDLM, which is little beside larger layers"
    for name in MODELS:
        texts = rows_of(output / name / "prefix.json")
        assert [len(column) for column in texts["candidates"]] == [len(texts["prefixes"])] * 2
        assert all(text.startswith(prefix) and len(prefix.split()) >= 4 and len(text.split()) <= 16
                   for column in texts["candidates"] for text, prefix in zip(column, texts["prefixes"]))
        assert texts["seconds"] > 0 and (texts["steps"] == 3) == (name != MODELS[0])
    assert "\nsampling: euler, 3 steps, grid uniform, not clamped; token by token with top-p 1\n" in said
    page = (output / "samples.html").read_text()
    assert page.count("<h2>") == 8 == page.count(f"<tr><th>{study.TRANSFORMER}<td>") == page.count("<tr><th>data<td>")
    assert said.count("\ntransformer_lm ") == said.count("\nt_max 10, uniform, span ") == 2
    assert said == (output / "study.txt").read_text() + "\n" and (output / "study.png").stat().st_size > 20000


@pytest.mark.slow
def test_study_goes_on(work, first):
    output, _ = first
    kept, trained = rows_of(output / "study.json"), (output / MODELS[1] / "model.pt").stat().st_mtime_ns
    run_study(work, output, "--write", "inpainting", "--laws", "uniform,gumbel", "--masks", "span")
    rows = rows_of(output / "study.json")
    assert all(rows[name] == row for name, row in kept.items())
    assert set(rows) - set(kept) == {f"{name}, inpainting" for name in (
        "data", MODELS[1], "t_max-10-gumbel-span-seed1")}
    again = run_study(work, output, "--write", "unconditional", "--no-transformer", "--samples", "1")
    assert set(rows_of(output / "study.json")) == {"data, unconditional", f"{MODELS[1]}, unconditional"}
    assert "among" not in again.stdout and (output / MODELS[1] / "model.pt").stat().st_mtime_ns == trained
    for options, message in ((["--diffusion-options=--rotary"], "t_max 10, uniform, span"),
                             (["--transformer-options=--lr 1"], "transformer_lm")):
        bad = run_study(work, output, *options, check=False)
        assert bad.returncode == 1 and f"begun with other options ({message})" in bad.stderr.splitlines()[-1]
    bad = run_study(work, output, train=[*TRAIN, "--clip-norm", "1"], check=False)
    assert bad.returncode == 1 and "begun with other options (the options after --)" in bad.stderr.splitlines()[-1]


@pytest.mark.slow
def test_models_of_others_are_further_rows(work, first, tmp_path):
    pytest.importorskip("transformers")
    folder = save_scorer(tmp_path / "gpt")
    said = run_study(work, first[0], "--write", "unconditional,inpainting", "--no-transformer", "--writer",
                     folder).stdout
    rows = rows_of(first[0] / "study.json")
    assert "gpt-seed1, unconditional" in rows and "gpt-seed1, inpainting" not in rows
    assert rows["gpt-seed1, unconditional"]["scores"]["perplexity"] > 1 and said.count("\ngpt ") == 1
    assert "<tr><th>gpt<td>" in (first[0] / "samples.html").read_text()
    bad = run_study(work, first[0], "--writer", tmp_path / "other/gpt", check=False)
    assert bad.returncode == 1 and "begun with other options (gpt)" in bad.stderr.splitlines()[-1]


@pytest.mark.slow
def test_wrong_calls_end_in_one_line(work, tmp_path):
    for options, message in ((["--laws", "magic"], "'magic' is unknown: choose among uniform, time-warp, gumbel"),
                             (["--t-max", "5,5"], "--t-max names a value twice"), (["--top-p", "0"], "--top-p must be"),
                             (["--mauve"], "--mauve takes its features from a model"),
                             (["--diffusion-options", "--lr '1"], "no closing quotation"),
                             (["--writer", "/no/folder"], "--writer ")):
        bad = run_study(work, tmp_path, *options, check=False)
        assert bad.returncode and "Traceback" not in bad.stderr and message in bad.stderr.splitlines()[-1]
    bad = run_study(tmp_path, tmp_path, check=False)
    assert bad.returncode == 1 and bad.stderr.splitlines()[-1].startswith("error: no folder ")


@pytest.mark.slow
def test_sampling_study_sets_plain_sampling_beside_early_exit(work, first, tmp_path):
    def run(*options):
        return run_script("study_lm_sampling.py", work / "data-bin", "--path", first[0] / MODELS[1] / "model.pt",
                          "--output", tmp_path / "study", *SMALL, "--steps", "8", *options).stdout

    run("--noise-scales", "0.8")
    kept = rows_of(tmp_path / "study.json")
    assert set(kept) == {"data", "euler uniform 8 noise 0.8"}
    said = run("--patience", "0,2", "--noise-scales", "0.8,1", "--write", "unconditional")
    rows = rows_of(tmp_path / "study.json")
    assert all(rows[name] == kept[name] for name in kept)
    exits = {name: row for name, row in rows.items() if "patience" in name}
    assert len(exits) == 2 and all(row["steps"] <= 8 and row["exit_patience"] == 2 for row in exits.values())
    for row in exits.values():
        match = rows[sampling.name_of(sampling.plain(row, row["steps"]))]
        assert match["steps"] == match["diffusion_steps"] == round(row["steps"]) and match["exit_patience"] is None
    assert rows["data"]["perplexity"] > 1 and "\neuler uniform 8 patience 2 noise 0.8 " in said
    assert (tmp_path / "study.txt").read_text() in said and (tmp_path / "study.png").stat().st_size > 20000

"""scripts/study_objectives.py: trainings that differ in named options, compared."""

import json
import random
import re
import sys
from argparse import Namespace

import pytest
import torch
from helpers import REPOSITORY, make_dictionary, make_diffusion_lm
from test_cli import WORDS
from test_study import run_script

from diffusion_fairseq.diffusion.schedules import SigmaEqualsT, build_schedule
from diffusion_fairseq.errors import UserError

sys.path.insert(0, str(REPOSITORY / "scripts"))
import _study  # noqa: E402
import study_objectives as study  # noqa: E402, I001
from _study import band  # noqa: E402


def test_the_nearest_trained_time_is_near_or_none():
    for name in study.VARIANTS["schedules"]:
        schedule = build_schedule(name, 2000)
        for wanted in (-4, 0, 3):
            level = schedule.at(study.nearest_time(schedule, wanted))
            assert float(2 * (level.alpha / level.sigma).log()) == pytest.approx(wanted, abs=0.2), name
        assert study.nearest_time(schedule, 40) is None
    assert float(study.nearest_time(SigmaEqualsT(1, 300), -2)) == pytest.approx(2.718281828)
    assert study.nearest_time(SigmaEqualsT(1, 300), 2) is None


DICTIONARY = make_dictionary()
MODEL = make_diffusion_lm(DICTIONARY)
TARGET = torch.randint(4, 44, (6, 9), generator=torch.Generator().manual_seed(1))


def example(rows=slice(None)):
    return {"net_input": {"src_tokens": torch.full_like(TARGET[rows], MODEL.mask)}, "target": TARGET[rows]}


@pytest.mark.parametrize("estimate, error, right", [
    (lambda x0: x0, 0, 1), (lambda x0: x0.mean(dim=(0, 1)).expand(x0.shape), 1, None),
])
def test_errors_at_a_level_are_shares_of_the_variance(monkeypatch, estimate, error, right):
    x0 = MODEL.embed(TARGET)
    monkeypatch.setattr(MODEL, "denoise", lambda *_: estimate(x0))
    found = study.at_level(MODEL, [example()], torch.tensor(1000), study.variance_of(MODEL, [example()]))
    assert found["mse"] == pytest.approx(error, abs=1e-4) and (right is None or found["accuracy"] == right)


def test_a_level_has_the_same_noise_for_all_models():
    parts = [example(slice(0, 3)), example(slice(3, 6))]
    first, again, other = (study.at_level(MODEL, parts, torch.tensor(time), 1.0) for time in (300, 300, 900))
    assert first == again != other


def test_bands_are_over_the_updates_that_all_seeds_have():
    x, mean, least, most = band([[[1, 4.0], [2, 3.0]], [[1, 2.0], [2, 1.0], [3, 9.0]]])
    assert (x, mean, least, most) == ([1, 2], [3, 2], [2, 1], [4, 3])
    assert study.mean_of([1.0, 3.0], 1) == "2.0 ± 1.4" and study.mean_of([0.5], 2) == "0.50"
    assert study.mean_of([], 2) is None


def test_the_title_says_whose_weights_the_other_tables_are_of():
    assert study.whose_weights(["a", "b"], []).endswith("at the last update, whose weights all tables are of")
    assert study.whose_weights(["a", "b"], ["a", "b"]).endswith("other tables are of the averaged ones (--store-ema)")
    assert study.whose_weights(["a", "b"], ["b"]).endswith("of them, too, but of b of the averaged ones (--store-ema)")


@pytest.mark.parametrize("options, interval", [
    ([], "1000"), (["--validate-interval-updates", "500", "--patience", "3"], "1000"),
    (["--validate-interval-updates=150"], "1050"), (["--validate-interval-updates", "2500"], "2500"),
    (["--save-interval-updates", "7"], None), (["--save-interval-updates=7"], None), (["--patience", "3"], None),
])
def test_trainings_are_saved_within_epochs_and_validated_no_more_often(tmp_path, monkeypatch, options, interval):
    ran = []
    monkeypatch.setattr(_study, "run", lambda words, log, mode="w": ran.append(list(map(str, words))))
    _study.train(tmp_path, "diffusion_lm", tmp_path / "folder", 1, options)
    told = ran[0][: -len(options) or None]
    if interval is None:
        assert "--save-interval-updates" not in told and "--keep-interval-updates" not in told
    else:
        assert told[-4:] == ["--save-interval-updates", interval, "--keep-interval-updates", "1"]
    # On several GPUs, too, a batch is what the options say.
    assert told[told.index("--distributed-world-size") + 1] == "1"
    assert ran[0][len(told):] == options and "export_checkpoint.py" in ran[1][1]


def test_texts_are_generated_again_for_other_options_alone(tmp_path, monkeypatch):
    def run(words, log):
        ran.append(words)
        log.write_text(str(len(ran)))

    ran = []
    monkeypatch.setattr(_study, "run", run)
    texts = [_study.generate(tmp_path / data, "diffusion_lm", tmp_path / "model.pt", options).read_text()
             for data, options in (("a", ["--steps", 1]), ("a", ["--steps", 1]), ("a", ["--steps", 2]), ("b", []))]
    assert texts == ["1", "1", "2", "3"]


def test_a_dot_in_the_name_of_a_study_is_part_of_it(tmp_path):
    _study.report(tmp_path / "noise-0.8", {}, "said", lambda rows, file: file.write_text("plot"))
    assert {file.name for file in tmp_path.iterdir()} == {"noise-0.8.txt", "noise-0.8.png"}


def test_trainings_with_other_options_are_not_mixed(tmp_path):
    def keep(train, **variants):
        study.keep_options(tmp_path, {"train": train}, variants)

    keep(["--lr", "1"], a="--seed 1")
    keep(["--lr", "1"], a="--seed 1", b="--seed 2")
    with pytest.raises(UserError, match="begun with other options .the options after --.: name another --output"):
        keep(["--lr", "2"], a="--seed 1")
    with pytest.raises(UserError, match="begun with other options .b.: name another"):
        keep(["--lr", "1"], a="--seed 1", b="--seed 3")


@pytest.mark.parametrize("train, variants, words", [
    (["--lr", "1"], {"a": "", "b": "--lr 2"}, 64), (["--tokens-per-sample=32"], {"a": ""}, 32),
    (["--tokens-per-sample", "32"], {"a": "--tokens-per-sample 16"}, 16),
])
def test_real_texts_are_as_long_as_those_that_every_variant_writes(train, variants, words):
    assert study.tokens_per_sample(Namespace(train=train, variants=variants)) == words
    with pytest.raises(UserError, match=f"({words}, 128|128, {words}).*: give all the same"):
        study.tokens_per_sample(Namespace(train=train, variants={**variants, "c": "--tokens-per-sample 128"}))


def make_work(folder):
    rng = random.Random(1)
    (folder / "text").mkdir(parents=True)
    for split, count in (("train", 120), ("valid", 16), ("test", 12)):
        lines = [" ".join([*rng.choices(WORDS, k=rng.randint(5, 9)), f"rare{i}"]) for i in range(count)]
        (folder / "text" / f"{split}.txt").write_text("".join(line + "\n" for line in lines))
    run_script("binarise.py", folder, "--words", "--vocabulary", str(len(WORDS) + 4), "--workers", "1")
    return folder


@pytest.mark.slow
def test_study_compares_continues_and_takes_more_seeds(tmp_path):
    work = make_work(tmp_path / "work")
    train = ["--arch", "diffusion_lm_tiny", "--criterion", "diffusion_anchor", "--optimizer", "adam", "--lr", "3e-3",
             "--batch-size", "16", "--max-update", "12", "--tokens-per-sample", "16",
             "--validate-interval-updates", "4"]
    command = ["study_objectives.py", work, "--output", tmp_path / "study", "--steps", "3", "--variant",
               "square=--noise-schedule sqrt", "--variant",
               "pw lin=--noise-schedule pw_lin --store-ema --ema-decay 0.5"]
    first = run_script(*command, "--seeds", "1", "--", *train)
    rows = json.loads((tmp_path / "study/study.json").read_text())
    assert set(rows) == {"square-seed1", "pw-lin-seed1"}
    for row in rows.values():
        assert [update for update, _ in row["curves"]["mse"]] == [4, 8, 12]
        for levels in row["levels"].values():
            assert {"-6", "-4", "0", "2"} <= set(levels) and levels["2"]["mse"] < levels["-6"]["mse"]
        assert row["texts"]["perplexity"] > 1 and 0 < row["texts"]["dist-1 %"] <= 100
    assert rows["square-seed1"]["levels"] != rows["pw-lin-seed1"]["levels"]
    assert (tmp_path / "study/study.png").stat().st_size > 20000
    for variant in ("square", "pw lin"):
        assert re.search(f"^{variant} +12 ", first.stdout, re.M)
    # Every line ends with a word that the dictionary does not have, and is read as the variants read it.
    lines = (work / "text/test.txt").read_text().splitlines()
    words = [word for line in lines for word in line.split()]
    share = f"{100 * sum(word.startswith('rare') for word in words) / len(words):.1f}"
    assert re.search(f"^data +[0-9.]+ +{re.escape(share)} ", first.stdout, re.M)
    distinct = f"{100 * len({'rare' if word.startswith('rare') else word for word in words}) / len(words):.1f}"
    assert re.search(f"^data +[0-9.]+ +[0-9.]+ +{re.escape(distinct)} ", first.stdout, re.M)
    for said in ("valid, at the last update", "but of pw lin of the averaged ones", "updates",
                 "mse at log-SNR of the schedule", "accuracy at log-SNR of the emb", "data"):
        assert said in first.stdout and said in (tmp_path / "study/study.txt").read_text()
    again = run_script(*command[:-2], "--seeds", "2", "--", *train)
    found = json.loads((tmp_path / "study/study.json").read_text())
    assert set(found) == {*rows, "square-seed2"} and all(found[name] == rows[name] for name in rows)
    assert " ± " in again.stdout and "pw lin" not in again.stdout
    bad = run_script(*command, "--", *train, "--dropout", "0.3", check=False)
    assert bad.returncode == 1 and "begun with other options" in bad.stderr.splitlines()[-1]


@pytest.mark.slow
def test_wrong_calls_end_in_one_line(tmp_path):
    for words, message in (
        ([], "nothing to compare"), (["--variant", "x"], "is not NAME=OPTIONS"),
        (["--variant", "x=--lr '1"], "no closing quotation"),
        (["--variants", "losses", "--variant", "anchor-and-rounding=--lr 1"], "two variants would have one folder"),
        (["--variants", "losses"], "no .*data-bin.*train.txt.*: make them with scripts/prepare_lines.py, or leave"),
    ):
        done = run_script("study_objectives.py", tmp_path, "--output", tmp_path / "out", *words, "--", "--lr", "1",
                          check=False)
        assert done.returncode and "Traceback" not in done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert re.search(message, last), last

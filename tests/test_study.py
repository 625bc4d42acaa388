"""The studies, on tiny models and made-up candidates."""

import json
import subprocess
import sys
from argparse import Namespace

import pytest
from helpers import REPOSITORY
from test_cli import MODEL, TRAIN, preprocess, run_module, write_pairs

from diffusion_fairseq.errors import UserError

sys.path.insert(0, str(REPOSITORY / "scripts"))
import study_candidates  # noqa: E402, I001
import study_pretraining  # noqa: E402
import study_sampling  # noqa: E402


def run_script(name, *arguments, check=True):
    words = [sys.executable, str(REPOSITORY / "scripts" / name), *map(str, arguments)]
    return subprocess.run(words, check=check, capture_output=True, text=True)


@pytest.mark.slow
def test_study_measures_every_setting_once_and_recommends_one(tmp_path):
    for split, count, seed in (("train", 60, 1), ("valid", 10, 2)):
        write_pairs(tmp_path, split, count, seed)
    preprocess(tmp_path, tmp_path / "bin", "valid")
    run_module("train", tmp_path / "bin", *TRAIN, "--save-dir", tmp_path, "--max-update", "3", "--disable-validation")
    command = ["study_sampling.py", tmp_path / "bin", "--path", tmp_path / "checkpoint_last.pt", "--output",
               tmp_path / "study", "--grids", "uniform", "--clamping", "off", *MODEL[2:], "--solvers"]
    run_script(*command, "ddim,heun", "--steps", "2")
    first = json.loads((tmp_path / "study.json").read_text())
    assert set(first) == {"ddim uniform 2", "heun uniform 1"}
    done = run_script(*command, "ddim,heun", "--steps", "2,4", "--patience", "0,1", "--exit-entropies",
                      "0,1.5")
    rows = json.loads((tmp_path / "study.json").read_text())
    assert {name for name in rows if "entropy" in name} == {
        f"{name} patience 1 entropy 1.5" for name in ("ddim uniform 2", "ddim uniform 4", "heun uniform 1",
                                                      "heun uniform 2")}
    assert len(rows) == 12 and all(rows[name] == first[name] for name in first)
    assert all(0 <= row["rougeL"] <= 100 and row["seconds"] > 0 for row in rows.values())
    assert "recommended: --solver" in done.stdout and (tmp_path / "study.png").stat().st_size > 10000
    run_script(*command, "ddpm", "--steps", "2", "--published-stride")
    assert "ddpm uniform 2 published stride" in json.loads((tmp_path / "study.json").read_text())
    rows = json.loads((tmp_path / "study.json").read_text())
    done = run_script(*command, "ddpm", "--steps", "2", "--candidates", "3", "--oracle", "rouge2", "--ddpm-variance",
                      "beta")
    more = json.loads((tmp_path / "study.json").read_text())
    name = "ddpm uniform 2 variance beta 3 candidates oracle rouge2"
    assert more.keys() - rows.keys() == {name} and all(more[old] == rows[old] for old in rows)
    assert more[name]["oracle rouge2"] >= max(more[name]["mean rouge2"], more[name]["rouge2"])
    for said in ("oracle rouge1", "the highest rouge2", "--diffusion-steps 2 --ddpm-variance beta --candidates 3"):
        assert said in done.stdout
    assert run_script(*command, "ddpm", "--steps", "2", "--candidates", "1", "--ddpm-variance", "posterior")
    again = json.loads((tmp_path / "study.json").read_text())  # both defaults: one more row, named as before
    assert again.keys() - more.keys() == set() and again["ddpm uniform 2"] == rows["ddpm uniform 2"]
    bad = run_script(*command, "ddim", "--steps", "2", "--ddpm-variance", "beta", check=False)
    assert bad.returncode == 1 and "--ddpm-variance acts only with ddpm among --solvers" in bad.stderr
    kept = (tmp_path / "study.json").read_text()
    bad = run_script(*command, "ddim", "--steps", "2", "--batch-size", "4", check=False)
    # Seconds of other batches would not compare.
    assert bad.returncode == 1 and "measured with other options (batch_size): name another --output" in bad.stderr
    assert (tmp_path / "study.json").read_text() == kept
    bad = run_script(*command, "magic", check=False)
    assert bad.returncode == 2 and "'magic' is unknown" in bad.stderr


REFERENCES = ["a b c d", "e f g h"]
IN_ORDER, IN_PAIRS = "a x b y c z d", "c d a b"  # against the first: the higher ROUGE-L, the higher ROUGE-2


@pytest.mark.parametrize("oracle, chosen", [("rougeL", IN_ORDER), ("rouge2", IN_PAIRS)])
def test_the_sampling_study_has_the_mean_and_the_oracle_of_several_candidates(oracle, chosen):
    def alone(text):
        return study_sampling.scores([[text]], REFERENCES[:1], None)

    found = study_sampling.scores([["x", IN_ORDER, IN_PAIRS]], REFERENCES[:1], oracle)
    for name, value in alone(chosen).items():
        assert found[name] == 0 and found[f"oracle {name}"] == pytest.approx(value)
        assert found[f"mean {name}"] == pytest.approx((alone(IN_ORDER)[name] + alone(IN_PAIRS)[name]) / 3)


def test_a_setting_of_the_sampling_study_is_told_by_variance_candidates_and_oracle():
    arguments = Namespace(solvers=["ddim", "ddpm"], grids=["uniform"], clamping="on", steps=[4], patience=[0],
                          exit_entropies=[0], noise_scales=[1], published_stride=True, ddpm_variance="posterior")
    before = study_sampling.settings_of(arguments)
    arguments.ddpm_variance = "beta"
    settings = [study_sampling.among(study_sampling.settings_of(arguments), count, oracle)
                for count, oracle in ((1, "rougeL"), (5, "rougeL"), (5, "rouge2"))]
    names = [study_sampling.name_of(setting) for setting in before + sum(settings, [])]
    assert names[:3] == ["ddim uniform 4 clamped", "ddpm uniform 4 clamped", "ddpm uniform 4 clamped published stride"]
    assert names[3] == names[0] and names[6] == f"{names[0]} 5 candidates"
    assert names[10:] == [f"{name} variance beta 5 candidates oracle rouge2" for name in names[1:3]]
    assert len(set(names)) == len(names) - 1 and study_sampling.curve_of(settings[2][1]) != study_sampling.curve_of(
        settings[1][1])


def test_the_plot_of_the_sampling_study_shows_mean_and_oracle(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    row = {"solver": "ddpm", "sampling_grid": "uniform", "clamping": True, "exit_patience": None,
           "stride_as_published": False, "diffusion_steps": 4, "mean steps": 4, "seconds": 1}
    several = {"candidates": 5, "oracle": "rouge2", "mean rougeL": 2.0, "oracle rougeL": 3.0}
    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *points, **how: drawn.append(how["label"]) or plot(*points, **how))
    study_sampling.plot({"one": {**row, "rougeL": 1.0}, "five": {**row, "rougeL": 1.0, **several}}, tmp_path / "a.png")
    five = "ddpm uniform clamped 5 candidates oracle rouge2"
    assert drawn == 2 * ["ddpm uniform clamped", five, f"{five}: mean", f"{five}: oracle"]


@pytest.mark.parametrize("oracle, chosen", [("rougeL", IN_ORDER), ("rouge2", IN_PAIRS)])
def test_the_pretraining_study_chooses_by_its_oracle(tmp_path, monkeypatch, oracle, chosen):
    (tmp_path / "text").mkdir()
    for side in ("src", "tgt"):
        (tmp_path / "text" / f"test.{side}").write_text(REFERENCES[0] + "\n")
    lines = [f"S-0\t{REFERENCES[0]}", f"T-0\t{REFERENCES[0]}"]
    lines += [f"{kind}-0\t{score}\t{text}" for score, text in ((-1, IN_ORDER), (-2, IN_PAIRS)) for kind in "HD"]
    (tmp_path / "generated.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(study_pretraining, "generate", lambda *_: tmp_path / "generated.txt")
    arguments = Namespace(subset="test", bpe_model=None, steps=2, candidates=2, batch_size=1, oracle=oracle)
    rows = study_pretraining.score(tmp_path, tmp_path / "model.pt", arguments)
    found = rows["model: oracle (chosen with the reference)"]
    for name, value in study_sampling.scores([[chosen]], REFERENCES[:1], None).items():
        assert found[name] == pytest.approx(value)


def test_a_pretraining_study_from_before_the_oracle_could_be_named_goes_on():
    before = {"subset": "test", "bpe_model": None, "steps": 20, "candidates": 10}
    assert study_pretraining.scoring_of(Namespace(**before, oracle="rougeL")) == before
    assert study_pretraining.scoring_of(Namespace(**before, oracle="rouge2")) == {**before, "oracle": "rouge2"}


def test_candidates_are_chosen_by_score_mbr_and_oracle(tmp_path):
    wrong, near = ["x y", "x y"], ["a b c q", "e f g q"]
    outputs = study_candidates.Outputs([wrong, near, near, REFERENCES])
    rows = study_candidates.study(outputs, REFERENCES, [1, 4], draws=3, seed=1)
    assert rows["4 model score"]["rougeL"] == 0 and rows["4 oracle"]["rougeL"] == 100
    assert rows["4 MBR"]["rougeL"] == pytest.approx(75) and rows["4 mean"]["rougeL"] == pytest.approx(62.5)
    assert len({rows[f"1 {kind}"]["rougeL"] for kind in study_candidates.SELECTIONS}) == 1
    study_candidates.plot(rows, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10000


def test_the_model_score_chooses_whatever_was_printed_first():
    texts = [["a b", "e f g h"], ["a b c d", "e"]]
    outputs = study_candidates.Outputs(texts, scores=[[-2.0, -1.0], [-1.0, -2.0]])
    rows = study_candidates.study(outputs, REFERENCES, [2], draws=1, seed=1)
    assert rows["2 model score"]["rougeL"] == 100


def test_a_number_of_candidates_that_was_not_generated_is_refused():
    with pytest.raises(UserError, match=r"--numbers 1,5: the file has 1 candidate"):
        study_candidates.study(study_candidates.Outputs([REFERENCES]), REFERENCES, [1, 5], draws=1, seed=1)


@pytest.mark.slow
def test_pretraining_study_continues_and_scores_every_start(tmp_path):
    (tmp_path / "text").mkdir()
    for split, count, seed in (("train", 60, 1), ("valid", 10, 2), ("test", 8, 3)):
        write_pairs(tmp_path / "text", split, count, seed)
    run_script("binarise.py", tmp_path, "--vocabulary", "30", "--workers", "1")
    train = [*TRAIN[TRAIN.index("--arch"):], "--max-update", "3", "--eval-rouge-steps", "2"]
    command = ["study_pretraining.py", tmp_path, "--seeds", "1", "--steps", "2", "--candidates", "2"]
    run_script(*command, "--output", tmp_path / "first", "--", *train)
    start = tmp_path / "first" / "0-seed1" / "checkpoint_last.pt"
    again = run_script(*command, "--output", tmp_path / "first", "--checkpoint", f"3={start}", "--", *train)
    rows = json.loads((tmp_path / "first" / "study.json").read_text())
    assert set(rows) == {"0-seed1", "3-seed1"}
    logs = [(tmp_path / "first" / name / "train.log").read_text() for name in ("0-seed1", "3-seed1")]
    assert [f"loading pretrained model from {start}" in log for log in logs] == [False, True]
    assert "3 updates: MBR by ROUGE-L" in again.stdout and (tmp_path / "first" / "study.png").stat().st_size > 10000
    done = run_script(*command, "--output", tmp_path / "first", "--oracle", "rouge2", "--", *train)
    rows = json.loads((tmp_path / "first" / "study.json").read_text())
    assert rows["0-seed1"]["options"]["oracle"] == "rouge2" and "the highest rouge2" in done.stdout
    bad = run_script(*command, "--output", tmp_path, "--checkpoint", "3=nowhere.pt", "--", *train, check=False)
    assert bad.returncode == 1 and bad.stderr.strip().endswith("error: no checkpoint nowhere.pt")


@pytest.mark.slow
def test_checkpoint_study_scores_every_checkpoint_once(tmp_path):
    (tmp_path / "text").mkdir()
    for split, count, seed in (("train", 60, 1), ("valid", 10, 2), ("test", 8, 3)):
        write_pairs(tmp_path / "text", split, count, seed)
    run_script("binarise.py", tmp_path, "--vocabulary", "30", "--workers", "1")
    train = [*TRAIN[TRAIN.index("--arch"):], "--task", "seq2seq_diffusion", "--save-interval-updates", "2",
             "--keep-interval-updates", "-1", "--no-epoch-checkpoints", "--disable-validation", "--cpu"]
    run_module("train", tmp_path / "data-bin", *train, "--save-dir", tmp_path / "ck", "--max-update", "4")
    command = ["study_checkpoints.py", tmp_path, "--output", tmp_path / "study", "--steps", "2", "--candidates", "2"]
    first = next((tmp_path / "ck").glob("checkpoint_*_2.pt"))
    run_script(*command, "--system", f"one={first}")
    kept = json.loads((tmp_path / "study" / "study.json").read_text())
    done = run_script(*command, "--system", f"one={tmp_path / 'ck'}")
    rows = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [row["updates"] for row in rows.values()] == [2, 4] and all(rows[name] == kept[name] for name in kept)
    for line in ("one, 2 updates ", "one, 4 updates: MBR by BLEU", "copy of the source", "self-BLEU"):
        assert line in done.stdout
    assert (tmp_path / "study" / "study.png").stat().st_size > 10000
    seeds = run_script(*command, "--system", f"one={tmp_path / 'ck'}", "--system", f"one={first}")
    rows = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [row["seed"] for row in rows.values()] == [1, 1, 2]
    line = next(line for line in seeds.stdout.splitlines() if line.startswith("one, 2 updates  "))
    assert line.count("± 0.00") == line.count("±") > 3  # the same weights
    bad = run_script(*command, "--checkpoints", tmp_path / "text", check=False)
    assert bad.returncode == 1 and "has no checkpoint_EPOCH_UPDATES.pt" in bad.stderr

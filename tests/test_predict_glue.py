"""scripts/predict_glue.py: the files of GLUE's server, from files of the distributors to predictions."""

import json
import random
import sys
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
from fairseq.data import Dictionary
from helpers import REPOSITORY, save_model
from test_glue import WORDS, stand_in, write_lines
from test_recipes import recipe
from test_study import run_script

sys.path.insert(0, str(REPOSITORY / "scripts"))
import predict_glue  # noqa: E402, I001
from diffusion_fairseq.errors import UserError  # noqa: E402
from prepare_glue import read  # noqa: E402
from _glue import TASKS, TESTS  # noqa: E402

TRAINED = ("STS-B", "MNLI")
HEAD = "sentence_classification_head"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two tasks with test sets and one without, a training of the two, and what their texts are encoded with."""
    folder, rng = tmp_path_factory.mktemp("glue"), random.Random(2)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(rng.choices(WORDS, k=8)) for _ in range(200)]), vocab_size=34,
        model_prefix=str(folder / "subwords"), minloglevel=2)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "subwords.model"))
    write_lines(folder / "dict.txt", [*(f"{pieces.id_to_piece(i)} 1" for i in range(3, len(pieces))), "<mask> 0"])
    for name in TRAINED:
        stand_in(folder / "raw", name, test=11)
    stand_in(folder / "raw", "RTE")
    prepare = ("prepare_glue.py", folder / "raw", "--out", folder / "work", "--dictionary", folder / "dict.txt",
               "--sentencepiece-model", folder / "subwords.model", "--workers", 1)
    said = run_script(*prepare).stdout
    assert "MNLI: 48 train, 12 valid, 12 valid1, 11 test, 11 test1" in said and "RTE: 48 train, 12 valid\n" in said
    stand_in(folder / "raw", "RTE", test=11)
    assert "RTE: already there, without its test set: remove it" in run_script(*prepare).stdout
    for name in TRAINED:
        done = recipe("glue", "train", folder / "work", name, "--arch", "ddlm_classifier_tiny", "--max-epoch", 2,
                      "--lr", "1e-3", "--batch-size", 8, "--cpu", "--log-format", "json")
        assert done.returncode == 0, done.stderr[-2000:]
    return folder


def checkpoint_of(work, name):
    return work / "work" / name / "checkpoints/checkpoint_best.pt"


def varied(work, name):
    """A copy of the checkpoint whose classes have the same mean score, so that its labels differ from text to text."""
    file = checkpoint_of(work, name)
    task, model = predict_glue.load(file, name, work / "work")
    task.load_dataset("test")
    texts = task.dataset("test")
    scores = model(**texts.collater([texts[row] for row in range(len(texts))])["net_input"],
                   classification_head_name=HEAD)[0].detach()
    state = torch.load(file, weights_only=True)
    state["model"][f"classification_heads.{HEAD}.4.bias"] -= scores.mean(dim=0)
    torch.save(state, file.with_name("varied.pt"))
    return file.with_name("varied.pt")


def predicted(work, name, file, output, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["predict_glue.py", str(work / "work"), "--checkpoint", f"{name}={file}",
                                      "--output", str(output), *options])
    predict_glue.main()
    return {one.stem: [line.split("\t") for line in one.read_text().splitlines()] for one in output.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_predictions_are_those_of_each_text_alone_in_the_order_of_the_test_set(work, tmp_path, monkeypatch, name):
    file = varied(work, name) if TASKS[name].labels else checkpoint_of(work, name)
    found = predicted(work, name, file, tmp_path / "one", monkeypatch, "--batch-size", "1")
    assert found == predicted(work, name, file, tmp_path / "many", monkeypatch, "--batch-size", "7")
    assert found.keys() == set(predict_glue.SUBMITTED[name])
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(work / "subwords.model"))
    dictionary = Dictionary.load(str(work / "dict.txt"))
    _, model = predict_glue.load(file, name, work / "work")
    for submitted, split in zip(predict_glue.SUBMITTED[name], TESTS):
        header, *rows = found[submitted]
        assert header == ["index", "prediction"] and [index for index, _ in rows] == [str(i) for i in range(11)]
        assert len({said for _, said in rows}) > 1, submitted
        for (_, said), example in zip(rows, read(TASKS[name], work / "raw" / name, split)):
            first, second = (dictionary.encode_line(" ".join(pieces.encode(text, out_type=str)), add_if_not_exist=False)
                             for text in example.texts)
            tokens = torch.cat([first, torch.tensor([dictionary.eos()]), second]).long()[None]
            scores = model(tokens, HEAD)[0]
            if TASKS[name].labels:
                assert said == TASKS[name].labels[scores.argmax()]
            else:
                assert 0 <= float(said) <= 5 and float(said) == pytest.approx(scores.clamp(0, 5).item(), abs=2e-3)


@pytest.mark.slow
def test_what_cannot_be_predicted_ends_in_one_line(work, tmp_path):
    def refused(name, file):
        done = run_script("predict_glue.py", work / "work", "--checkpoint", f"{name}={file}", "--output",
                          tmp_path / "out", check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
        return done.stderr.strip().splitlines()[-1]

    assert "MNLI, not of STS-B: give one that" in refused("STS-B", checkpoint_of(work, "MNLI"))
    assert "RTE has no test set: put test.tsv beside train.tsv" in refused("RTE", checkpoint_of(work, "MNLI"))


@pytest.mark.slow
def test_a_study_trains_the_hosts_own_roberta_and_keeps_what_validation_says_apart(work, tmp_path):
    sizes = [word for option in ("embed-dim", "ffn-embed-dim") for word in (f"--encoder-{option}", 16)]
    done = run_script("study_glue.py", work / "work", "--tasks", ",".join(TRAINED), "--output", tmp_path, "--seeds", 1,
                      "--learning-rates", "1e-3", "--batch-sizes", "8", "--", "--arch", "roberta_base", "--init-token",
                      0, "--max-epoch", 2, *sizes, "--encoder-layers", 1, "--encoder-attention-heads", 2)
    rows = json.loads((tmp_path / "study.json").read_text())
    assert rows.keys() == {f"{name}-from-scratch-lr1e-3-batch8-seed1" for name in TRAINED}
    score, label = (rows[f"{name}-from-scratch-lr1e-3-batch8-seed1"] for name in TRAINED)
    assert score["parts"].keys() == {"Pearson", "Spearman"} and label["parts"].keys() == {"matched", "mismatched"}
    assert label["parts"]["matched"] == label["best"] and "MNLI matched / mismatched" in done.stdout


def test_scores_are_clamped_and_labels_are_words(tmp_path):
    task = SimpleNamespace(cfg=SimpleNamespace(regression_target=True))
    assert predict_glue.spell(task, torch.tensor([[-1.0], [2.34567], [9.0]])) == ["0.000", "2.346", "5.000"]
    write_lines(tmp_path / "dict.txt", [f"{label} 1" for label in TASKS["RTE"].labels])
    task = SimpleNamespace(cfg=SimpleNamespace(regression_target=False),
                           label_dictionary=Dictionary.load(str(tmp_path / "dict.txt")))
    assert predict_glue.spell(task, torch.tensor([[1.0, 2.0], [2.0, 1.0]])) == ["not_entailment", "entailment"]


def test_the_files_are_those_of_the_server():
    assert {file for files in predict_glue.SUBMITTED.values() for file in files} == {
        "CoLA", "SST-2", "MRPC", "QQP", "STS-B", "MNLI-m", "MNLI-mm", "QNLI", "RTE"}


def test_files_and_folders_that_do_not_fit_are_named(tmp_path):
    save_model(tmp_path / "lm.pt", "ddlm_tiny", torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="lm.pt is a checkpoint of --task , not of RTE: give one that examples/"):
        predict_glue.load(tmp_path / "lm.pt", "RTE", tmp_path)
    with pytest.raises(UserError, match="none.pt cannot be read"):
        predict_glue.load(tmp_path / "none.pt", "RTE", tmp_path)
    write_lines(tmp_path / "MNLI/input0/test.idx", [])
    with pytest.raises(UserError, match="MNLI has no test set: put test_matched.tsv and test_mismatched.tsv beside"):
        predict_glue.check_prepared(tmp_path, "MNLI")


@pytest.mark.parametrize("words, message", [
    (["--checkpoint", "RTE"], "'RTE' is not TASK=FILE"),
    (["--checkpoint", "debsection=x"], "'debsection' is no task of the server: choose among CoLA, "),
    (["--checkpoint", "RTE=x", "--checkpoint", "RTE=y"], "two --checkpoint options are of the same task"),
    ([], "required: --checkpoint"),
])
def test_wrong_calls_end_in_one_line(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["predict_glue.py", "work", "--output", "out", *words])
    with pytest.raises(SystemExit):
        predict_glue.parse_arguments()
    assert message in capsys.readouterr().err.splitlines()[-1]

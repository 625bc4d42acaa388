"""GLUE: from the distributors' files to trainings, on a stand-in in their layout."""

import json
import random
import sys
from types import SimpleNamespace

import pytest
from fairseq import options
from fairseq.data import Dictionary, data_utils
from helpers import REPOSITORY, run_module
from test_recipes import recipe
from test_study import run_script

sys.path.insert(0, str(REPOSITORY / "scripts"))
import prepare_glue  # noqa: E402, I001
import study_glue  # noqa: E402
from _data import DataError  # noqa: E402
from _glue import TASKS, TESTS  # noqa: E402

HEADERS = {
    "SST-2": "sentence label", "MRPC": "\ufeffQuality,#1 ID,#2 ID,#1 String,#2 String",
    "QQP": "id qid1 qid2 question1 question2 is_duplicate", "QNLI": "index question sentence label",
    "RTE": "index sentence1 sentence2 label",
    "MNLI": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
            "sentence1 sentence2 label1 gold_label",
    "STS-B": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
}
TEST_HEADERS = {"CoLA": "index sentence", "SST-2": "index sentence", "QQP": "id question1 question2",
                "MRPC": "index,#1 ID,#2 ID,#1 String,#2 String"}
GLUE = [name for name in TASKS if name != "debsection"]
WORDS = [f"{a}{b}" for a in ("ba", "do", "gi", "lu") for b in ("ra", "te", "mo", "nk", "ss")]


def lines_of(name, examples):
    """A file of a task: every column a word, those of texts and label the example's."""
    head = HEADERS.get(name)
    columns = TASKS[name].columns
    names = list(columns.header) if head is None else head.split("," if "," in head else " ")
    rows = [] if head is None else ["\t".join(names)]
    for texts, label in examples:
        cells = {**dict(zip(columns.texts, texts)), columns.label: label}
        rows.append("\t".join(cells.get(column.strip("\ufeff"), "x") for column in names))
    return rows


def lines_without_labels(name, texts):
    """A file of a test set, which has no labels."""
    head = TEST_HEADERS.get(name) or HEADERS[name].rpartition(" ")[0]
    names = head.split("," if "," in head else " ")
    return ["\t".join(names), *("\t".join(dict(zip(TASKS[name].columns.texts, row)).get(column, "x")
                                         for column in names) for row in texts)]


def labels_of(name):
    return TASKS[name].labels or ("0.000", "2.5", "5")


def write_lines(file, lines, end="\n"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("".join(line + end for line in lines).encode())


def stand_in(folder, name, train=48, valid=12, test=0, seed=1):
    """A task in the distributor's layout whose label is that of its first word."""
    rng, task, labels = random.Random(seed), TASKS[name], labels_of(name)
    counts = {"train": train, "valid": valid, "valid1": valid, "test": test, "test1": test}
    for split, count in counts.items():
        for file in task.files(split) if count else ():
            examples = []
            for _ in range(count):
                label = rng.randrange(len(labels))
                texts = [" ".join([WORDS[label], *rng.choices(WORDS, k=rng.randint(2, 6))]) for _ in range(task.inputs)]
                examples.append((texts, labels[label]))
            write_lines(folder / name / file, lines_of(name, examples) if split not in TESTS else
                        lines_without_labels(name, [texts for texts, _ in examples]))
    return folder


def examples_of(name, folder, split="train"):
    return [tuple(one) for one in prepare_glue.read(TASKS[name], folder / name, split)]


@pytest.mark.parametrize("name", GLUE)
def test_every_layout_gives_its_texts_and_labels(tmp_path, name):
    task = TASKS[name]
    texts = ('He said "no', "4' 11\" tall  now")[: task.inputs]
    wanted = [(texts, label) for label in labels_of(name)]
    write_lines(tmp_path / name / "train.tsv", lines_of(name, wanted), end="\r\n")
    clean = tuple(" ".join(text.split()) for text in texts)
    assert examples_of(name, tmp_path) == [(clean, label) for label in labels_of(name)]


@pytest.mark.parametrize("name", GLUE)
def test_a_test_set_has_no_labels_and_loses_no_line(tmp_path, name):
    texts = [("a  b", "c"), ("d", 'e "f')]
    rows = [row[: TASKS[name].inputs] for row in texts]
    for split in TESTS[: len(TASKS[name].valid)]:
        file = tmp_path / name / TASKS[name].files(split)[0]
        assert split not in prepare_glue.splits_of(TASKS[name], tmp_path / name)
        write_lines(file, lines_without_labels(name, rows * 200))
        found = examples_of(name, tmp_path, split)
        assert found == [(tuple(" ".join(text.split()) for text in row), None) for row in rows] * 200
    assert prepare_glue.splits_of(TASKS[name], tmp_path / name)[-1] == split
    write_lines(file, [*lines_without_labels(name, rows * 200), "cut short"])
    with pytest.raises(DataError, match="1 of 401 lines have not the fields of the first one .the first: .*line 402"):
        examples_of(name, tmp_path, split)


def test_scores_are_from_0_to_5(tmp_path):
    for score in ("5.1", "-1", "nan", "x", ""):
        write_lines(tmp_path / "STS-B/train.tsv", lines_of("STS-B", [(("a", "b"), score)]))
        with pytest.raises(DataError, match="1 of 1 lines .* a label other than a number from 0 to 5 "):
            examples_of("STS-B", tmp_path)


def test_broken_lines_are_left_out_and_named(tmp_path, capsys):
    lines = lines_of("QQP", [(("a b", "c d"), "1")] * 600)
    lines[2], lines[7], lines[300], lines[301] = "1\t2\t3\tcut short", lines[7][:-1] + "7", "", "x" + lines[301] + "\t"
    write_lines(tmp_path / "QQP/train.tsv", lines)
    assert len(examples_of("QQP", tmp_path)) == 596
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].rpartition(", ")[2] for line in said[:3]] == ["line 3", "line 8", "line 301"]
    assert "1 more such lines" in said[3] and len(said) == 4


@pytest.mark.parametrize("lines, message", [
    (["index\tsentence1\tlabel", "1\ta\tentailment"], "train.tsv, line 1: no column sentence2"),
    (["index\tsentence1\tsentence2\tlabel", "1\ta\tb\tentailment", "2\tc"], "1 of 2 lines .*the first: .*line 3"),
    (["index\tsentence1\tsentence2\tlabel"], "0 of 0 lines"),
    (["index\tsentence1\tsentence2\tlabel", "1\ta\tb\t1"], "a label other than entailment, not_entailment"),
])
def test_another_file_is_refused_in_one_line(tmp_path, lines, message):
    write_lines(tmp_path / "RTE/train.tsv", lines)
    with pytest.raises(DataError, match=message) as error:
        examples_of("RTE", tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_said(tmp_path, capsys):
    stand_in(tmp_path, "RTE")
    (tmp_path / "MNLI").mkdir()
    assert prepare_glue.present(tmp_path, None) == ["RTE"]
    assert "left out: MNLI lacks train.tsv, dev_matched.tsv, dev_mismatched.tsv" in capsys.readouterr().err
    with pytest.raises(DataError, match="CoLA lacks train.tsv, dev.tsv: fetch the files"):
        prepare_glue.present(tmp_path, ["RTE", "CoLA"])


def sections(folder, train=36, valid=12):
    rng, task = random.Random(3), TASKS["debsection"]
    for split, count in (("train", train), ("valid", valid)):
        labels = [rng.choice([*task.labels[:3], "fonts"]) for _ in range(count)]
        write_lines(folder / f"debsection/{split}.src", [f"{label}ish {rng.choice(WORDS)}" for label in labels])
        write_lines(folder / f"debsection/{split}.id",
                    [f"p{i}\ts\tmain/{label}\tmd5" for i, label in enumerate(labels)])
    return folder


def test_sections_are_the_labels_of_descriptions(tmp_path):
    sections(tmp_path)
    found = examples_of("debsection", tmp_path)
    assert found and all(text.split()[0] == f"{label}ish" and label != "fonts" for (text,), label in found)
    (tmp_path / "debsection/train.id").write_text("p\tmain/net\n" * 36)
    with pytest.raises(DataError, match="36 of 36 lines"):
        examples_of("debsection", tmp_path)
    (tmp_path / "debsection/train.id").write_text("p\tmain/net\n" * 35)
    with pytest.raises(DataError, match="train.src has 36 lines, .*train.id has 35: prepare debsum again"):
        examples_of("debsection", tmp_path)


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    """The folder of a language model: subwords, dictionary, data, and a DDLM of a few updates."""
    work = tmp_path_factory.mktemp("pretraining")
    rng = random.Random(2)
    for split, count in (("train", 200), ("valid", 10), ("test", 10)):
        write_lines(work / f"text/{split}.txt", [" ".join(rng.choices(WORDS, k=8)) for _ in range(count)])
    run_script("binarise.py", work, "--vocabulary", 34, "--workers", 1)
    run_module("train", work / "data-bin", "--task", "diffusion_lm", "--tokens-per-sample", 32, "--arch", "ddlm_tiny",
               "--masking", "span", "--criterion", "score_interpolation", "--optimizer", "adam", "--lr", "1e-3",
               "--batch-size", 16, "--max-update", 4, "--disable-validation", "--cpu", "--save-dir", work,
               "--no-epoch-checkpoints")
    return work


@pytest.mark.slow
def test_recipe_from_the_distributors_files_to_a_training(tmp_path, pretraining):
    raw, work = tmp_path / "raw", tmp_path / "work"
    for name in ("CoLA", "MNLI"):
        stand_in(raw, name)
    done = recipe("glue", "prepare", work, raw, pretraining, "--workers", 1)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "MNLI: 48 train, 12 valid, 12 valid1" in done.stdout and "left out: RTE lacks" in done.stderr
    dictionary = Dictionary.load(str(pretraining / "data-bin/dict.txt"))
    labels = Dictionary.load(str(work / "MNLI/label/dict.txt"))
    assert labels.symbols[labels.nspecial :][:3] == list(TASKS["MNLI"].labels)
    texts = data_utils.load_indexed_dataset(str(work / "MNLI/input1/valid1"), dictionary)
    assert len(texts) == 12 and dictionary.string(texts[0], "sentencepiece").split()[0] in WORDS[:3]
    assert json.loads((work / "CoLA/task.json").read_text())["examples"] == {"train": 48, "valid": 12}
    again = recipe("glue", "prepare", work, raw, pretraining)
    assert again.stdout.count("already there") == 2
    small = ["--arch", "ddlm_classifier_tiny", "--max-epoch", 2, "--lr", "1e-3", "--cpu", "--log-format", "json"]
    for name, more, shown in (("CoLA", (), "valid_mcc"), ("MNLI", ("--valid-subset", "valid,valid1"), "valid1_accu")):
        done = recipe("glue", "train", work, name, *small, *more, "--finetune-from-model",
                      pretraining / "checkpoint_last.pt")
        assert done.returncode == 0, done.stderr[-2000:]
        assert shown in done.stdout + done.stderr
    # Training goes on from what it has saved, the predictions for the metric included.
    done = recipe("glue", "train", work, "CoLA", *small, "--max-epoch", 3)
    assert done.returncode == 0 and "Loaded checkpoint" in done.stdout + done.stderr, done.stderr[-2000:]
    wrong = recipe("glue", "train", work, "CoLA", *small, "--latent-dim", 16, "--save-dir", tmp_path / "wrong",
                   "--finetune-from-model", pretraining / "checkpoint_last.pt")
    last = wrong.stderr.strip().splitlines()[-1]
    assert wrong.returncode and "does not fit this model" in last and "Traceback" not in wrong.stderr
    usage = recipe("glue", "prepare", work, raw)
    assert usage.returncode and "usage: bash examples/glue/prepare.sh FOLDER PRETRAINING" in usage.stderr


@pytest.mark.slow
@pytest.mark.endurance
def test_study_searches_the_grid_and_repeats_the_best(tmp_path, pretraining):
    work = tmp_path / "work"
    run_script("prepare_glue.py", sections(tmp_path / "raw"), "--out", work, "--workers", 1, "--dictionary",
               pretraining / "data-bin/dict.txt", "--sentencepiece-model", pretraining / "sentencepiece.model")
    command = ["study_glue.py", work, "--checkpoint", f"span={pretraining / 'checkpoint_last.pt'}", "--output",
               tmp_path / "study", "--learning-rates", "1e-2", "--batch-sizes", "8", "--times"]
    train = ["--", "--arch", "ddlm_classifier_tiny", "--max-epoch", 2, "--freeze-encoder"]
    run_script(*command, "1", "--seeds", 1, *train)
    first = json.loads((tmp_path / "study/study.json").read_text())
    assert set(first) == {f"debsection-{start}-lr1e-2-batch8-t1-seed1" for start in ("from-scratch", "span")}
    done = run_script(*command, "1,5", "--seeds", 2, *train)
    rows = json.loads((tmp_path / "study/study.json").read_text())
    assert len(rows) == 6 and all(rows[name] == first[name] for name in first)
    for row in rows.values():
        assert len(row["curve"]) == 2 and row["best"] == max(value for _, value in row["curve"]) <= 100
    for said in ("mean over 2 seed(s)", "from scratch", "span", "most frequent label", " ± ", "best setting"):
        assert said in done.stdout and said in (tmp_path / "study/study.txt").read_text()
    assert (tmp_path / "study/study.png").stat().st_size > 10000 and not list((tmp_path / "study").rglob("*.pt"))
    bad = run_script(*command, "1", *train, "--dropout", "0.3", check=False)
    assert bad.returncode == 1 and "begun with other options" in bad.stderr.splitlines()[-1]
    bad = run_script(*command, "1", "--tasks", "RTE", *train, check=False)
    assert bad.returncode == 1 and "lacks RTE: make it with scripts/prepare_glue.py" in bad.stderr


def test_the_best_setting_is_that_of_the_first_seed():
    grid = [study_glue.Setting("1e-4", "16", time) for time in ("1", "5", "10")]
    arguments = SimpleNamespace(tasks=["RTE"], starts={"from scratch": None}, grid=grid)
    cell = ("RTE", "from scratch")
    rows = {study_glue.name_of(cell, setting, 1): {"best": best} for setting, best in zip(grid, (50, 60, 60))}
    rows[study_glue.name_of(cell, grid[0], 2)] = {"best": 99}
    assert study_glue.best_settings(arguments, rows) == {cell: grid[1]}


def options_of(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study_glue.py", "work", "--output", "out", "--seeds", "2", *words])
    return study_glue.parse_arguments()


def prepared(folder, **tasks):
    for name, more in tasks.items():
        write_lines(folder / name / "options.txt", [" ".join(TASKS[name].options())])
        facts = {"examples": {"valid": 1}, study_glue.MAJORITY: 50, **more}
        write_lines(folder / name / "task.json", [json.dumps(facts)])
    return folder


def trained(folder, monkeypatch, task, records, words):
    """The row of a training that says so many records, and the words of its command."""
    told = []

    def train(command, log, mode):
        told.append(list(map(str, command)))
        write_lines(log, map(json.dumps, records))

    monkeypatch.setattr(study_glue, "run", train)
    arguments = options_of(words, monkeypatch)
    arguments.work, arguments.output = folder, folder / "study"
    row = study_glue.fine_tune(arguments, (task, study_glue.SCRATCH), arguments.grid[0], 1)
    return row, told[0]


@pytest.mark.parametrize("arch, times", [
    (["--arch", "ddlm_classifier_tiny"], ["1", "5", "10"]), (["--arch=ddlm_classifier_base"], ["1", "5", "10"]),
    (["--arch", "roberta_base"], [""]), (["-a", "roberta_base"], [""])])
def test_only_models_of_a_time_get_one(tmp_path, monkeypatch, arch, times):
    records = [{"valid_accuracy": 50, "valid_num_updates": 1}]
    row, words = trained(prepared(tmp_path, RTE={"metric": "accuracy"}), monkeypatch, "RTE", records, ["--", *arch])
    assert [setting.time for setting in options_of(["--", *arch], monkeypatch).grid[:3]] == (times * 3)[:3]
    assert ("--classification-time" in words) == (times != [""]) and "--valid-subset" not in words
    folder = words[words.index("--save-dir") + 1]
    assert folder.endswith("RTE-from-scratch-lr3e-4-batch16" + ("-t1-seed1" if times != [""] else "-seed1"))
    # What is left is what the host's own parser takes.
    monkeypatch.setattr(sys, "argv", words)
    parsed = options.parse_args_and_arch(options.get_training_parser(), input_args=[*words[1:], *arch])
    assert parsed.task == "sentence_prediction" and parsed.max_epoch == 20


def test_the_parts_are_those_of_the_best_epoch(tmp_path, monkeypatch):
    folder = prepared(tmp_path, MRPC={"metric": "acc_and_f1"}, RTE={"metric": "accuracy"},
                      MNLI={"metric": "accuracy", "examples": {"valid": 1, "valid1": 1}})
    arch = ["--", "--arch", "ddlm_classifier_tiny"]
    both = [{f"valid_{name}": value + epoch % 2 for name, value in (("acc_and_f1", 75), ("f1", 80), ("accuracy", 70))}
            | {"valid_num_updates": epoch} for epoch in (1, 2, 3)]
    row, words = trained(folder, monkeypatch, "MRPC", both, arch)
    assert row["best"] == 76 and row["parts"] == {"F1": 81, "accuracy": 71} and len(row["curve"]) == 3
    assert list(row["parts"]) == ["F1", "accuracy"] and "--valid-subset" not in words
    sets = [{f"{subset}_accuracy": value, f"{subset}_num_updates": epoch}
            for epoch, values in ((1, (50, 60)), (2, (55, 40))) for subset, value in zip(("valid", "valid1"), values)]
    row, words = trained(folder, monkeypatch, "MNLI", sets, arch)
    assert row["best"] == 55 and row["parts"] == {"matched": 55, "mismatched": 40}
    assert words[words.index("--valid-subset") + 1] == "valid,valid1"
    assert trained(folder, monkeypatch, "RTE", sets, arch)[0]["parts"] == {}


def test_parts_stand_in_a_table_of_their_own_and_earlier_rows_have_none(tmp_path, monkeypatch):
    arguments = options_of(["--checkpoint", "span=x", "--", "--arch", "x"], monkeypatch)
    arguments.work = prepared(tmp_path, MRPC={"metric": "acc_and_f1"}, RTE={"metric": "accuracy"})
    arguments.tasks, setting = ["MRPC", "RTE"], arguments.grid[0]
    chosen = {(task, start): setting for task in arguments.tasks for start in arguments.starts}
    rows = {study_glue.name_of(cell, setting, seed): {"task": cell[0], "start": cell[1], "best": 70 + seed}
            for cell in chosen for seed in (1, 2)}
    before = study_glue.tables(arguments, rows, chosen)
    assert "71.5 ± 0.7" in before and "parts" not in before
    for seed in (1, 2):
        rows[study_glue.name_of(("MRPC", "span"), setting, seed)]["parts"] = {"F1": 80 + seed, "accuracy": 60 + seed}
    table = study_glue.tables(arguments, rows, chosen).split("\n\n")
    parts = table[table.index("its parts: MRPC F1 / accuracy") + 1].splitlines()
    assert parts[0].split() == ["system", "MRPC"] and parts[2].split() == ["from", "scratch", "-"]
    assert parts[3].endswith("81.5 ± 0.7 / 61.5 ± 0.7")
    study_glue.plot(arguments, chosen, {**rows, **{study_glue.name_of(cell, point, 1): {"best": 50}
                    for cell in chosen for point in arguments.grid[1:]}}, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10000


@pytest.mark.parametrize("words, message", [
    (["--checkpoint", "x"], "is not NAME=FILE"), (["--times", "1,x"], "give positive numbers"),
    (["--checkpoint", "a=1", "--checkpoint", "a=2"], "have the same name"),
    (["--checkpoint", "from-scratch=1"], "from-scratch is how trainings from scratch are called"),
])
def test_wrong_calls_of_the_study_end_in_one_line(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["study_glue.py", "work", "--output", "out", *words, "--", "--arch", "x"])
    with pytest.raises(SystemExit):
        study_glue.parse_arguments()
    assert message in capsys.readouterr().err.splitlines()[-1]

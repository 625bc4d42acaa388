import hashlib
import json
import sys

import pytest
from helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
from _data import DataError  # noqa: E402, I001
from prepare_pairs import LAYOUTS, prepare  # noqa: E402

SPLITS = {"train": ["A  first\tTEXT .", "a second one"], "valid": ["b text"], "test": ["c text", "d"]}


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def parallel(folder, layout):
    for split, names in zip(SPLITS, layout):
        for name, side in zip(names, ("src", "tgt")):
            write(folder / name, [f"{side} {text}" for text in SPLITS[split]])


def found(out):
    return {p.name: p.read_text(encoding="utf-8").splitlines() for p in sorted(out.glob("*.???"))}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_parallel_files(tmp_path, name):
    for number, layout in enumerate(layout for layout in LAYOUTS[name] if isinstance(layout, tuple)):
        folder, out = tmp_path / f"raw{number}", tmp_path / f"out{number}"
        parallel(folder, layout)
        prepare(name, folder, out, lowercase=True)
        assert found(out) == {f"{split}.{side}": [f"{side} {' '.join(text.lower().split())}" for text in SPLITS[split]]
                              for split in SPLITS for side in ("src", "tgt")}


def test_the_xsum_archive(tmp_path):
    ids = {"train": ["1", "2"], "validation": ["3"], "test": ["4"]}
    write(tmp_path / "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json", [json.dumps(ids)])
    for number in "1234":
        write(tmp_path / f"bbc-summary-data/{number}.summary", [
            "[SN]URL[SN]", "u", "[SN]TITLE[SN]", "t", "[SN]FIRST-SENTENCE[SN]", f"Summary {number}.",
            "[SN]RESTBODY[SN]", f"Body {number}.", "", "More."])
    prepare("xsum", tmp_path, tmp_path / "out", lowercase=False)
    assert found(tmp_path / "out")["train.tgt"] == ["Summary 1.", "Summary 2."]
    assert found(tmp_path / "out")["test.src"] == ["Body 4. More."]
    (tmp_path / "bbc-summary-data/3.summary").write_bytes(b"[SN]URL[SN]\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"3\.summary, line 2: not UTF-8"):
        prepare("xsum", tmp_path, tmp_path / "latin", lowercase=False)
    (tmp_path / "bbc-summary-data/3.summary").unlink()
    with pytest.raises(DataError, match=r"3\.summary is missing"):
        prepare("xsum", tmp_path, tmp_path / "again", lowercase=False)


def test_cnn_and_dailymail_stories(tmp_path):
    for number, name in enumerate(("train", "val", "test")):
        url = f"http://a/{number}"
        write(tmp_path / f"url_lists/all_{name}.txt", [url])
        digest = hashlib.sha1(url.encode()).hexdigest()
        write(tmp_path / ("cnn" if number else "dailymail") / "stories" / f"{digest}.story",
              [f"Text {number}.", "", "@highlight", "", "one", "", "@highlight", "", "two"])
    (tmp_path / "cnn/stories").mkdir(exist_ok=True)
    prepare("cnndm", tmp_path, tmp_path / "out", lowercase=False)
    assert found(tmp_path / "out")["valid.src"] == ["Text 1."]
    assert found(tmp_path / "out")["valid.tgt"] == ["one . [X_SEP] two ."]


def test_marks_between_sentences_and_empty_sides(tmp_path):
    layout = LAYOUTS["cnndm"][0]
    parallel(tmp_path, layout)
    write(tmp_path / "train.src", ["a [X_SEP]  b", "", "c"])
    write(tmp_path / "train.tgt", ["x [X_SEP] y<S_SEP>z", "w", "<t> v </t>"])
    said = prepare("cnndm", tmp_path, tmp_path / "out", lowercase=False)
    assert "1 with an empty side" in said["train"]
    assert found(tmp_path / "out")["train.src"] == ["a b", "c"]
    assert found(tmp_path / "out")["train.tgt"] == ["x [X_SEP] y [X_SEP] z", "v"]
    prepare("cnndm", tmp_path, tmp_path / "lower", lowercase=True)
    assert found(tmp_path / "lower")["train.tgt"][0] == "x [x_sep] y [x_sep] z"


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        prepare("xsum", tmp_path / "nowhere", tmp_path / "out", lowercase=False)
    parallel(tmp_path, LAYOUTS["xsum"][0])
    (tmp_path / "dev.tgt").unlink()
    with pytest.raises(DataError, match=r"lacks dev\.tgt"):
        prepare("xsum", tmp_path, tmp_path / "out", lowercase=False)
    write(tmp_path / "dev.tgt", ["one", "more"])
    with pytest.raises(DataError, match="has 1 lines, .* has 2"):
        prepare("xsum", tmp_path, tmp_path / "out", lowercase=False)
    (tmp_path / "dev.tgt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"dev\.tgt, line 1: not UTF-8"):
        prepare("xsum", tmp_path, tmp_path / "out", lowercase=False)


def test_diffuseqs_lines_of_json(tmp_path):
    for split, texts in SPLITS.items():
        write(tmp_path / f"{split}.jsonl", [json.dumps({"src": f"src {text}", "trg": text}) for text in texts])
    prepare("qqp", tmp_path, tmp_path / "out", lowercase=True)
    assert found(tmp_path / "out")["train.src"] == ["src a first text .", "src a second one"]
    write(tmp_path / "test.jsonl", ['{"src": "a"}'])
    with pytest.raises(DataError, match=r'test\.jsonl, line 1: not {"src": \.\.\., "trg"'):
        prepare("qqp", tmp_path, tmp_path / "again", lowercase=True)


HEAD = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"


@pytest.mark.parametrize("names", [("quora_duplicate_questions.tsv",), ("train.tsv", "dev.tsv")])
def test_duplicates_of_question_tables_are_split_by_question(tmp_path, names):
    # Questions 10 k and 10 k + 1 are paraphrases of 10 k + 2; every tenth row is none.
    rows = [(f"q {10 * k + i}", f"Q  {10 * k + 2}", "1") for k in range(40) for i in (0, 1)]
    rows += [(f"other {k}", f"another {k}", "0") for k in range(9)]
    for place, name in enumerate(names):
        part = rows[place :: len(names)]
        write(tmp_path / name, [HEAD, *("\t".join(["0", "1", "2", *row]) for row in part)])
    prepare("qqp", tmp_path, tmp_path / "out", lowercase=True)
    files = found(tmp_path / "out")
    pairs = {split: list(zip(files[f"{split}.src"], files[f"{split}.tgt"])) for split in SPLITS}
    assert [len(pairs[split]) for split in ("train", "valid", "test")] == [72, 4, 4]
    assert sorted(sum(pairs.values(), [])) == sorted((a, " ".join(b.lower().split())) for a, b, mark in rows
                                                     if mark == "1")
    asked = [{text for pair in found for text in pair} for found in pairs.values()]
    assert all(one.isdisjoint(other) for one in asked for other in asked if one is not other)


def test_a_quoted_question_may_go_over_lines_and_a_table_needs_its_columns(tmp_path):
    file = tmp_path / "quora_duplicate_questions.tsv"
    rows = [f'0\t1\t2\t"Is ""a {k}""\tb?"\t"Is\nit {k}?"\t1' for k in range(40)]
    write(file, [HEAD, *rows])
    prepare("qqp", tmp_path, tmp_path / "out", lowercase=False)
    files = found(tmp_path / "out")
    assert ('Is "a 3" b?', "Is it 3?") in zip(sum((files[f"{split}.src"] for split in SPLITS), []),
                                              sum((files[f"{split}.tgt"] for split in SPLITS), []))
    write(file, [HEAD, '0\t1\t2\t"Is it?\tIs it so?\t1', *["0\t1\t2\tIs it?\tIs it so?\t1"] * 10000])
    with pytest.raises(DataError, match=r"quora_duplicate_questions.tsv, line \d+: field larger.*: a quotation mark"):
        prepare("qqp", tmp_path, tmp_path / "again", lowercase=False)
    write(file, ["a\tb"])
    with pytest.raises(DataError, match="has no columns question1, question2, is_duplicate"):
        prepare("qqp", tmp_path, tmp_path / "again", lowercase=False)


def test_a_split_that_is_whole_is_not_written_again(tmp_path):
    parallel(tmp_path, LAYOUTS["gigaword"][0])
    out = tmp_path / "out"
    prepare("gigaword", tmp_path, out, lowercase=False)
    whole = found(out)
    (out / "test.tgt").unlink()  # what a kill between the two files leaves
    stamp = (out / "train.tgt").stat().st_mtime_ns
    said = prepare("gigaword", tmp_path, out, lowercase=False)
    assert said["train"] == "already there" and said["test"] == "2 pairs"
    assert found(out) == whole and (out / "train.tgt").stat().st_mtime_ns == stamp


def test_one_folder_does_not_mix_two_ways_to_prepare(tmp_path):
    parallel(tmp_path / "raw", LAYOUTS["gigaword"][0])
    parallel(tmp_path / "other", LAYOUTS["gigaword"][0])
    out = tmp_path / "out"
    prepare("gigaword", tmp_path / "raw", out, lowercase=True)
    (out / "test.tgt").unlink()
    with pytest.raises(DataError, match=r"made with other lowercase \(see prepared.json\): name another folder"):
        prepare("gigaword", tmp_path / "raw", out, lowercase=False)
    with pytest.raises(DataError, match="made with other set and folder"):
        prepare("xsum", tmp_path / "other", out, lowercase=True)
    assert not (out / "test.tgt").exists()


def test_a_failed_start_binds_to_nothing(tmp_path):
    parallel(tmp_path, LAYOUTS["gigaword"][0])
    broken = tmp_path / LAYOUTS["gigaword"][0].train[0]
    whole = broken.read_bytes()
    broken.write_bytes(b"caf\xe9\n" + whole.split(b"\n", 1)[1])
    with pytest.raises(DataError, match="line 1: not UTF-8"):
        prepare("gigaword", tmp_path, tmp_path / "out", lowercase=False)
    broken.write_bytes(whole)
    assert prepare("gigaword", tmp_path, tmp_path / "out", lowercase=True)["train"] == "2 pairs"

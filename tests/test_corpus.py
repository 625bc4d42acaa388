"""What prepare_corpus.py does to a text and to one piece of the corpus: scripts/_corpus.py, scripts/_corpus_data.py."""

import io
import json
import os
import random
import sys

import numpy as np
import pytest
from fairseq.data import data_utils
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))

import _corpus  # noqa: E402
import _corpus_data  # noqa: E402
import _data  # noqa: E402
from _corpus import Documents, Rules, clean, cut, sentences, split_of, tidy  # noqa: E402


def read_documents(raw, **options):
    return list(Documents(_corpus.raw_lines(io.BytesIO(raw)), Rules(**options)))


# ---- text

@pytest.mark.parametrize("text, expected", [
    ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
    ("He met Mr. Hill and J. R. Smith. They left.", ["He met Mr. Hill and J. R. Smith.", "They left."]),
    ("See e.g. Paris, No. 5 of it. No. Never.", ["See e.g. Paris, No. 5 of it.", "No.", "Never."]),
    ("“Stop.” “Why?” he asked.", ["“Stop.”", "“Why?” he asked."]),
    ("It costs 3.50 euros at example.org now. (Or so.) 2 left.",
     ["It costs 3.50 euros at example.org now.", "(Or so.)", "2 left."]),
    ("Wait ... no. Well... Yes.", ["Wait ... no.", "Well...", "Yes."]),
    ("你好。再见！「好。」走", ["你好。", "再见！", "「好。」", "走"]),
    ("It was I. He knew.", ["It was I.", "He knew."]),
    ("", []),
])
def test_sentences(text, expected):
    assert list(sentences(text)) == expected


def test_sentences_lose_nothing_but_spaces():
    draw = random.Random(3)
    for _ in range(300):
        text = clean("".join(draw.choices("aB1 .!?…\"')”(。 」", k=40)))
        assert "".join(sentences(text)).replace(" ", "") == text.replace(" ", "")


def test_clean():
    assert clean("\ufeffcafe\u0301\x00 \t a\u200bb\u2028c\x85d\xa0 e\x7f\xad\r") == "caf\xe9 ab c d e"


def test_cut_ends_at_spaces():
    assert list(cut("aa bb cc ddddddddd e", 5)) == ["aa bb", "cc", "ddddd", "dddd", "e"]
    assert list(cut("aa", 5)) == ["aa"]


@pytest.mark.parametrize("rules, lines, long", [
    (Rules(), ["A b.", "C d", "E f.", "G"], 0),
    (Rules(segment=False, documents="blank"), ["A b. C d", "E f. G"], 0),
    (Rules(segment=False), ["A b. C d E f. G"], 0),
    (Rules(wrapped=True), ["A b.", "C d E f.", "G"], 0),
    (Rules(lowercase=True, wrapped=True), ["a b.", "c d e f.", "g"], 0),
    (Rules(max_line=3), ["A", "b.", "C d", "E", "f.", "G"], 2),
    (Rules(max_line=3, long_lines="drop"), ["C d", "G"], 2),
])
def test_tidy(rules, lines, long):
    assert tidy(["A  b. C d", "", "E f. G"], rules) == (lines, long)


def test_documents_of_lines_and_of_paragraphs():
    raw = b"a\nb\n\n \r\n\nc\nd"
    for kind, expected in {"line": [["a"], ["b"], ["c"], ["d"]], "blank": [["a", "b"], ["c", "d"]]}.items():
        found = [tidy(document, Rules())[0] for document in read_documents(raw, documents=kind)]
        assert [document for document in found if document] == expected


def test_documents_of_json():
    raw = "\n".join(json.dumps(record) for record in ({"t": "a\n\nb", "u": 1}, {"t": "é"})).encode() + b"\n\n"
    assert read_documents(raw, json_field="t") == [["a", "", "b"], ["é"]]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"{}", b'{"t": 1}', b'{"t": "\\ud800"}', b'{"t": "\xff"}', b"[" * 9999])
def test_broken_json_is_named_or_skipped(line):
    raw = b'{"t": "a"}\n' + line + b'\n{"t": "b"}\n'
    with pytest.raises(_corpus.BrokenLine) as caught:
        read_documents(raw, json_field="t")
    assert caught.value.number == 2
    found = Documents(_corpus.raw_lines(io.BytesIO(raw)), Rules(json_field="t", skip_broken=True))
    assert list(found) == [["a"], ["b"]] and found.broken == [2]


def test_a_line_of_any_length_is_read_in_parts_between_characters(monkeypatch):
    monkeypatch.setattr(_corpus, "RAW_LINE", 7)
    text = "aé€😀" * 20
    parts = list(_corpus.raw_lines(io.BytesIO((text + "\nnext\n").encode())))
    assert max(len(part) for _, part in parts) <= 10
    assert "".join(part.decode() for number, part in parts if number == 1) == text + "\n"
    assert parts[-1] == (2, b"next\n")


def test_a_json_object_of_any_length_is_read_whole(monkeypatch):
    monkeypatch.setattr(_corpus, "RAW_LINE", 7)
    assert read_documents(json.dumps({"t": "a long é text"}).encode() + b'\n{"t": "b"}\n', json_field="t") == [
        ["a long é text"], ["b"]]


@pytest.mark.parametrize("at_empty_lines", [True, False])
@pytest.mark.parametrize("piece", [1, 10, 50, 10_000])
def test_pieces_of_a_file_have_its_documents(tmp_path, piece, at_empty_lines):
    draw = random.Random(piece)
    raw = "".join(draw.choice(("word " * draw.randint(1, 9) + "\n", "\n", "é\n")) for _ in range(200)).encode()
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    rules = Rules(documents="blank" if at_empty_lines else "line")
    ends = list(_corpus.piece_ends(path, len(raw), piece, at_empty_lines))
    assert ends == sorted(set(ends)) and ends[-1] == len(raw)
    found = []
    for start, end in zip([0, *ends], ends):
        found += list(Documents(_corpus.read_piece(path, start, end - start), rules))
    whole = list(Documents(_corpus.read_piece(path), rules))
    assert [t for t in (tidy(d, rules)[0] for d in found) if t] == [t for t in (tidy(d, rules)[0] for d in whole) if t]
    assert piece == 10_000 or len(ends) > 5


def test_a_document_without_end_is_cut(monkeypatch):
    monkeypatch.setattr(_corpus, "MAX_DOCUMENT", 100)
    found = read_documents(b"some words\n" * 100, documents="blank")
    assert len(found) > 5 and max(len("".join(d)) for d in found) < 120 and sum(map(len, found)) == 100


def test_splits_have_their_shares_and_depend_on_the_text_alone():
    texts = [str(i).encode() for i in range(4000)]
    found = [split_of(text, 0.1, 0.2) for text in texts]
    assert found == [split_of(text, 0.1, 0.2) for text in texts]
    assert abs(found.count("valid") - 400) < 100 and abs(found.count("test") - 800) < 120
    assert {split_of(text, 0, 0) for text in texts} == {"train"}


# ---- steps

def make_parts(folder, texts, unit):
    """A part of each text, its documents being lines, with its duplicates in three buckets."""
    parts = []
    for i, text in enumerate(texts):
        path = folder / f"{i}.txt"
        path.write_text(text, encoding="utf-8")
        place = folder / f"part{i}"
        place.mkdir()
        result = _corpus_data.clean_piece(place, str(path), 0, None, Rules(), unit)
        parts.append(_corpus_data.Part(index=i, **{**result["parts"][0], "stem": str(place / "0000")}))
    files = []
    for bucket in range(3):
        place = folder / f"bucket{bucket}"
        place.mkdir()
        _corpus_data.find_duplicates(place, parts, bucket, 3)
        files.append(str(place / "codes.npy"))
    return parts, files


@pytest.mark.parametrize("unit, expected", [
    ("lines", [[["One.", "Two."], ["Three."]], [["Four."], ["Five."]]]),
    ("documents", [[["One.", "Two."], ["One.", "Three."]], [["Four.", "Two."], ["Five.", "Five."]]]),
])
def test_the_first_of_equal_units_stays(tmp_path, unit, expected):
    texts = ["One. Two.\nOne. Three.\nOne. Two.\n", "One. Three.\nFour. Two.\nFive. Five.\nFour. Two.\n"]
    parts, files = make_parts(tmp_path, texts, unit)
    found = [[[line.decode() for line in lines]
              for _, lines in _corpus_data.kept_documents(part, unit, files, _corpus_data.Shares(0, 0))]
             for part in parts]
    assert found == expected


def test_duplicates_are_those_a_set_finds(tmp_path):
    draw = random.Random(5)
    texts = ["".join(f"{draw.randint(0, 300)}\n" for _ in range(200)) for _ in range(4)]
    parts, files = make_parts(tmp_path, texts, "lines")
    found = [lines[0].decode() for part in parts
             for _, lines in _corpus_data.kept_documents(part, "lines", files, _corpus_data.Shares(0, 0))]
    assert found == list(dict.fromkeys("".join(texts).split()))


@pytest.mark.parametrize("has_empty_lines", [True, False])
@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_are_what_fairseq_would_merge(tmp_path, shards, has_empty_lines):
    draw = np.random.default_rng(shards)
    pieces, items = [], []
    for i in range(3):
        builder = MMapIndexedDatasetBuilder(str(tmp_path / f"{i}.bin"), dtype=np.uint16)
        piece = []
        for _ in range(40):
            piece.append(draw.integers(4, 99, draw.integers(2, 30)))
            if has_empty_lines and draw.random() < 0.4:
                piece.append(np.array([2]))
        piece += [np.array([2])] if has_empty_lines else []
        for item in piece:
            builder.add_item(_corpus_data.torch.from_numpy(item))
        builder.finalize(str(tmp_path / f"{i}.idx"))
        pieces.append((str(tmp_path / str(i)), len(piece), sum(map(len, piece))))
        items += piece
    plan = _corpus_data.plan_shards(pieces, shards, has_empty_lines)
    found, sizes = [], []
    for i, ranges in enumerate(plan):
        place = tmp_path / f"shard{i}"
        place.mkdir()
        _corpus_data.join(place, "train", ranges)
        shard = data_utils.load_indexed_dataset(str(place / "train"), dataset_impl="mmap")
        found += [shard[j].numpy() for j in range(len(shard))]
        sizes.append(int(shard.sizes.sum()))
        assert not has_empty_lines or len(shard[len(shard) - 1]) == 1
    assert len(found) == len(items) and all(np.array_equal(a, b) for a, b in zip(found, items))
    assert max(sizes) - min(sizes) < 300
    if shards == 1:
        builder = MMapIndexedDatasetBuilder(str(tmp_path / "merged.bin"), dtype=np.uint16)
        for prefix, _, _ in pieces:
            builder.merge_file_(prefix)
        builder.finalize(str(tmp_path / "merged.idx"))
        for ending in ("bin", "idx"):
            assert (tmp_path / f"merged.{ending}").read_bytes() == (tmp_path / f"shard0/train.{ending}").read_bytes()


def test_a_file_that_is_shorter_than_its_index_is_named(tmp_path):
    builder = MMapIndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.uint16)
    builder.add_item(_corpus_data.torch.arange(5))
    builder.finalize(str(tmp_path / "a.idx"))
    os.truncate(tmp_path / "a.bin", 7)
    (tmp_path / "shard0").mkdir()
    with pytest.raises(_data.DataError, match="a.bin is shorter than its index says: delete the folder corpus.work"):
        _corpus_data.join(tmp_path / "shard0", "train", [(str(tmp_path / "a"), 0, 1)])


def test_too_many_shards_are_refused(tmp_path):
    builder = MMapIndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.uint16)
    builder.add_item(_corpus_data.torch.arange(5))
    builder.finalize(str(tmp_path / "a.idx"))
    with pytest.raises(_data.DataError, match="2 shards are too many"):
        _corpus_data.plan_shards([(str(tmp_path / "a"), 1, 5)], 2, False)

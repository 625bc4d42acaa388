"""Continuous paragraph denoising: what is left out, from where, and that it is the same whoever draws it."""

import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from fairseq.data import indexed_dataset
from helpers import make_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_fairseq.data.cpd_dataset import CPDDataset, span_length, split_documents

DICTIONARY = make_dictionary(600)
MASK = DICTIONARY.add_symbol("<mask>")
FIRST = DICTIONARY.nspecial


class Lines(torch.utils.data.Dataset):
    """Binarised text in memory: each line ends in eos."""

    def __init__(self, lines):
        self.lines = [torch.tensor([*line, DICTIONARY.eos()]) for line in lines]
        self.sizes = np.array([len(line) for line in self.lines])

    def __len__(self):
        return len(self.lines)

    def __getitem__(self, index):
        return self.lines[index]


def documents_of(lines, limit, document_break):
    lines = Lines(lines)
    return split_documents(lines, lines.sizes, limit, document_break, DICTIONARY)


def make_examples(lengths, *, seed=1, ratio=0.3, min_tokens=1, **options):
    """Documents that count upwards from the first word, so that a token says where it stood."""
    lines = [[FIRST + i for i in range(n)] for n in lengths]
    return CPDDataset(documents_of(lines, 512, "line"), DICTIONARY, MASK, seed=seed, ratio=ratio,
                      min_tokens=min_tokens, **options)


def start_of(example):
    return example["source"].tolist().index(MASK)


lines_of_words = st.lists(st.lists(st.integers(FIRST, MASK - 1), max_size=25), min_size=1, max_size=15)


@settings(deadline=None)
@given(lines_of_words, st.integers(1, 12))
def test_a_line_is_a_document_and_a_longer_one_is_several(lines, limit):
    documents = documents_of(lines, limit, "line")
    found = [documents[i].tolist() for i in range(len(documents))]
    expected = [line[i : i + limit] for line in lines for i in range(0, max(1, len(line)), limit)]
    assert found == expected and documents.sizes.tolist() == [len(document) for document in expected]


@settings(deadline=None)
@given(lines_of_words.filter(any), st.integers(2, 40))
def test_documents_end_at_empty_lines_and_hold_whole_sentences(lines, limit):
    expected, current = [], []
    for line in lines:
        pieces = [line[i : i + limit] for i in range(0, len(line), limit)] or [[]]
        for piece in pieces:
            if not piece or len(current) + len(piece) > limit:
                expected.append(current)
                current = []
            current = current + piece
    expected = [document for document in [*expected, current] if len(document) > 1]
    if not expected:
        return  # the host packs no document of one word
    documents = documents_of(lines, limit, "blank")
    assert [documents[i].tolist() for i in range(len(documents))] == expected
    assert documents.sizes.tolist() == [len(document) for document in expected]


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(1, 99), st.integers(0, 9), st.integers(1, 9))
def test_the_target_put_in_place_of_the_mask_gives_the_document(lengths, percent, seed, epoch):
    lines = [[FIRST + i % 40 for i in range(n)] for n in lengths]
    examples = CPDDataset(documents_of(lines, 512, "line"), DICTIONARY, MASK, seed=seed, ratio=percent / 100,
                          min_tokens=1)
    examples.set_epoch(epoch)
    spans = [int(Fraction(percent, 100) * n) for n in lengths]
    kept = [i for i in range(len(lengths)) if spans[i]]
    assert len(examples) == len(kept)
    for index, document in enumerate(kept):
        example = examples[index]
        source, target = example["source"].tolist(), example["target"].tolist()
        assert source.count(MASK) == 1 and source.pop() == target.pop() == DICTIONARY.eos()
        assert len(target) == spans[document]
        start = source.index(MASK)
        assert source[:start] + target + source[start + 1 :] == lines[document]
        assert tuple(examples.size(index)) == (len(example["source"]), len(example["target"]))


def test_the_papers_sizes():
    assert span_length(512, 0.3) == 153
    (source, target), = make_examples([512]).sizes
    assert (source, target) == (512 - 153 + 2, 153 + 1)


@pytest.mark.parametrize("ratio", range(1, 100))
def test_the_span_is_not_rounded_off(ratio):
    lengths = np.arange(1, 2001)
    exact = [int(Fraction(ratio, 100) * int(n)) for n in lengths]
    assert span_length(lengths, ratio / 100).tolist() == exact


def test_starts_are_uniform():
    examples = make_examples([10] * 1000)
    counts = Counter()
    for epoch in range(1, 9):
        examples.set_epoch(epoch)
        counts.update(start_of(examples[i]) for i in range(1000))
    assert set(counts) == set(range(8)), "both ends of the document can be left out"
    chi_square = sum((counts[s] - 1000) ** 2 / 1000 for s in range(8))
    assert chi_square < 24.3  # 0.999 of a chi-square of 7 degrees of freedom


def test_fresh_in_each_epoch_and_with_each_seed_and_for_each_document():
    examples = make_examples([200] * 30)
    first = [start_of(examples[i]) for i in range(30)]
    assert len(set(first)) > 15
    examples.set_epoch(2)
    second = [start_of(examples[i]) for i in range(30)]
    other = [start_of(make_examples([200] * 30, seed=2)[i]) for i in range(30)]
    for starts in (second, other):
        assert sum(a == b for a, b in zip(first, starts, strict=True)) < 5
    examples.set_epoch(1)
    assert [start_of(examples[i]) for i in range(30)] == first


def test_an_example_depends_on_nothing_that_was_drawn_before():
    examples, others = make_examples([100] * 20), make_examples([100] * 20)
    np.random.seed(5)
    torch.manual_seed(5)
    backwards = {i: others[i] for i in reversed(range(20))}
    for i in range(20):
        for side in ("source", "target"):
            assert examples[i][side].equal(backwards[i][side])


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_readers_in_other_processes_draw_the_same(workers):
    examples = make_examples([60] * 24)
    examples.set_epoch(3)
    loader = torch.utils.data.DataLoader(examples, batch_size=6, collate_fn=examples.collater, num_workers=workers)
    expected = [examples.collater([examples[i] for i in range(k, k + 6)]) for k in range(0, 24, 6)]
    for batch, same in zip(loader, expected, strict=True):
        assert batch["id"].equal(same["id"]) and batch["target"].equal(same["target"])
        assert batch["net_input"]["src_tokens"].equal(same["net_input"]["src_tokens"])


def test_short_documents_are_counted_and_left_out():
    examples = make_examples([0, 2, 3, 4, 9, 10, 50], min_tokens=4)
    assert (examples.num_documents, examples.num_short, len(examples)) == (6, 2, 4)
    # Of 3 tokens, 0.3 is no token, whatever --min-document-tokens says.
    assert make_examples([3, 4]).num_short == 1
    assert examples.src_sizes.tolist() == [4 - 1 + 2, 9 - 2 + 2, 10 - 3 + 2, 50 - 15 + 2]


def test_batches_have_the_host_s_form_also_in_buckets():
    examples = make_examples([10, 20, 20, 40], left_pad_source=False)
    batch = examples.collater([examples[i] for i in range(4)])
    assert batch["target"].shape == (4, 13) and batch["net_input"]["src_tokens"].shape == (4, 30)
    assert batch["net_input"]["src_lengths"].tolist() == [30, 16, 16, 9] and batch["ntokens"] == 13 + 7 + 7 + 4
    assert "prev_output_tokens" not in batch["net_input"]
    bucketed = make_examples([10, 20, 20, 40], left_pad_source=False, num_buckets=1)
    same = bucketed.collater([bucketed[i] for i in range(4)])
    assert same["net_input"]["src_tokens"].equal(batch["net_input"]["src_tokens"])
    assert bucketed[0]["source"].shape == (30,) and bucketed[0]["target"].shape == (13,)


def anonymous_memory():
    """Bytes of this process that no file backs."""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) * 1024


@pytest.mark.parametrize("document_break", ["line", "blank"])
def test_a_large_file_stays_on_disk(tmp_path, document_break):
    lines, width = 60_000, 513
    with indexed_dataset.MMapIndexedDataset.Index.writer(f"{tmp_path}/train.idx", np.uint16) as index:
        index.write([width] * lines)
    with open(f"{tmp_path}/train.bin", "wb") as data:
        data.truncate(lines * width * 2)
    before = anonymous_memory()
    text = indexed_dataset.MMapIndexedDataset(f"{tmp_path}/train")
    documents = split_documents(text, text.sizes, 512, document_break, DICTIONARY)
    examples = CPDDataset(documents, DICTIONARY, MASK, seed=1, ratio=0.3, min_tokens=30)
    for i in np.random.default_rng(0).integers(lines, size=500):
        assert len(examples[i]["target"]) == 154
    assert len(examples) == lines and anonymous_memory() - before < 0.3 * lines * width * 2


def test_a_copy_for_a_process_that_is_spawned_draws_the_same(tmp_path):
    builder = indexed_dataset.make_builder(f"{tmp_path}/train.bin", "mmap", vocab_size=len(DICTIONARY))
    for n in (40, 50):
        builder.add_item(torch.tensor([*range(FIRST, FIRST + n - 10), DICTIONARY.eos()]))
    builder.finalize(f"{tmp_path}/train.idx")
    text = indexed_dataset.MMapIndexedDataset(f"{tmp_path}/train")
    documents = split_documents(text, text.sizes, 512, "blank", DICTIONARY)
    examples = CPDDataset(documents, DICTIONARY, MASK, seed=1, ratio=0.3, min_tokens=20)
    examples.set_epoch(4)
    copy = pickle.loads(pickle.dumps(examples))
    assert copy[0]["source"].equal(examples[0]["source"])

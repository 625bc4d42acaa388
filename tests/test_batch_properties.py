"""What holds of any masks, lengths and batches, found by hypothesis."""

import re

import numpy as np
import pytest
import torch
from helpers import make_dictionary
from hypothesis import example, given
from hypothesis import strategies as st

from diffusion_fairseq.data.cpd_dataset import CPDDataset
from diffusion_fairseq.data.cut_dataset import CutDataset
from diffusion_fairseq.data.prompt_dataset import PromptDataset, lengthened
from diffusion_fairseq.modules.packing import ALIGNMENT, Packing
from diffusion_fairseq.text.lengths import length_beam, lengths_to_mask
from diffusion_fairseq.text.masking import MASKING, GivenPositions

DICTIONARY = make_dictionary()
MASK = DICTIONARY.add_symbol("<mask>")
PAD, EOS = DICTIONARY.pad(), DICTIONARY.eos()
WORDS = st.integers(DICTIONARY.nspecial, MASK - 1)
TEXTS = st.lists(st.lists(WORDS, max_size=20), min_size=1, max_size=8)
ENDS = st.none() | st.integers(-40, 40)


class Texts(list):
    """Binarised texts in memory, each with its end of sentence; with their sizes."""

    def __init__(self, texts, ends=True):
        super().__init__(torch.tensor([*text, EOS] if ends else text, dtype=torch.long) for text in texts)
        self.sizes = np.array([len(text) for text in self])


@given(st.lists(st.tuples(ENDS, ENDS), min_size=1, max_size=4), st.integers(1, 40))
def test_given_positions_are_slices(slices, length):
    text = ",".join(":".join("" if end is None else str(end) for end in ends) for ends in slices)
    kept = {place for ends in slices for place in range(length)[slice(*ends)]}
    assert set(np.flatnonzero(~GivenPositions(text)(length, np.random.default_rng(0)))) == kept


@given(st.text(st.sampled_from("0123456789:-, noe"), max_size=12))
@example("-:")
@example("1:" + "9" * 5000)
def test_any_positions_are_a_law_or_refused(text):
    try:
        law = GivenPositions(text)
    except ValueError as error:
        assert re.match(f"{re.escape(repr(text))} are no positions", str(error))
        return
    assert law(7, np.random.default_rng(0)).shape == (7,)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.integers(0, 9))
def test_lengths_and_masks_say_the_same(lengths, more):
    mask = lengths_to_mask(torch.tensor(lengths), max(lengths) + more)
    assert mask.sum(dim=1).tolist() == lengths and (mask[:, 1:] <= mask[:, :-1]).all()


@given(st.integers(1, 12).flatmap(lambda n: st.lists(
    st.lists(st.floats(-2**99, 2**99, width=32) | st.just(-np.inf), min_size=n + 1, max_size=n + 1), min_size=1,
    max_size=4)), st.integers(1, 15))
def test_the_beam_holds_the_likeliest_lengths(logits, beam):
    logits = torch.tensor(logits)
    number = min(beam, logits.size(1) - 1)
    lengths = length_beam(logits, beam)
    assert lengths.shape == (len(logits), beam) and lengths.min() >= 1 and lengths.max() < logits.size(1)
    assert all(len(set(row[:number])) == number and set(row[number:]) <= {row[number - 1]} for row in lengths.tolist())
    assert logits.gather(1, lengths)[:, :number].equal(logits[:, 1:].sort(dim=1, descending=True).values[:, :number])


@given(st.integers(1, 6), st.integers(1, 20), st.randoms(use_true_random=False), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_packing_holds_the_real_positions_alone(rows, width, draw, share):
    mask = torch.tensor([[draw.random() < share for _ in range(width)] for _ in range(rows)])
    x = torch.arange(1.0, rows * width * 2 + 1).view(rows, width, 2)
    packing = Packing.of(mask)
    packed = packing.pack(x)
    assert len(packed) % ALIGNMENT == 0 or mask.all()
    assert packing.unpack(packed).equal(x * mask[..., None])
    assert packing.spread(packed)[mask].equal(x[mask])
    full = mask.any(dim=1)
    torch.testing.assert_close(packing.mean(packed)[full], torch.stack([
        row[kept].mean(dim=0) for row, kept in zip(x, mask) if kept.any()]) if full.any() else x.new_zeros(0, 2))
    some = torch.tensor(sorted(draw.sample(range(rows), draw.randint(1, rows))))
    selected = packing.select(some)
    assert selected.unpack(selected.pack(x[some])).equal((x * mask[..., None])[some])


@given(TEXTS, st.integers(1, 9))
def test_what_is_cut_keeps_its_end(texts, longest):
    texts = Texts(texts)
    cut = CutDataset(texts, texts.sizes, longest)
    for i, text in enumerate(texts):
        assert cut[i].tolist() == [*text[:-1][: longest - 1], EOS]
        assert cut.num_tokens(i) == cut.size(i) == cut.sizes[i] == len(cut[i])
    assert cut.num_cut == sum(len(text) > longest for text in texts)


@given(st.lists(WORDS, max_size=12), st.integers(1, 15), st.booleans())
def test_prompts_of_a_length_begin_with_their_text(words, length, ends):
    (text,) = Texts([words], ends)
    prompt = lengthened(text, length, MASK, EOS if ends else None).tolist()
    room = length - ends
    assert prompt == words[:room] + [MASK] * (room - len(words)) + [EOS] * ends


def collated(dataset, rows):
    return dataset.collater([dataset[row] for row in rows])


@given(TEXTS.filter(lambda texts: all(texts)), st.sampled_from(sorted(MASKING)), st.integers(0, 99), st.integers(1, 9),
       st.integers(1, 16) | st.none(), st.booleans(), st.data())
def test_prompts_are_those_of_their_epoch_in_any_batch(texts, law, seed, epoch, length, ends, data):
    texts = Texts(texts, ends)

    def dataset():
        found = PromptDataset(texts, texts.sizes, DICTIONARY, MASK, MASKING[law], seed=seed, length=length, ends=ends,
                              left_pad_source=False, left_pad_target=False)
        found.set_epoch(epoch)
        return found

    once, rows = dataset(), data.draw(st.permutations(range(len(texts))))
    batch = collated(dataset(), rows[: data.draw(st.integers(1, len(rows)))])
    for place, row in enumerate(batch["id"].tolist()):
        prompt, text = once.example(row)
        assert len(prompt) == once.size(row)[0] and (length is None or len(prompt) == length)
        assert ((prompt == text) | (prompt == MASK)).all() and (prompt == MASK).any()
        source = batch["net_input"]["src_tokens"][place]
        assert source[: len(prompt)].equal(prompt) and (source[len(prompt) :] == PAD).all()
        assert batch["net_input"]["src_lengths"][place] == len(prompt)
        if length is None:
            target = batch["target"][place]
            assert target[: len(text)].equal(text) and (target[len(text) :] == PAD).all()


@given(TEXTS.filter(lambda texts: any(len(text) > 1 for text in texts)), st.integers(50, 99), st.integers(1, 30),
       st.integers(1, 5), st.integers(1, 8))
def test_batches_hold_every_example_once_and_no_more_tokens_than_they_may(texts, percent, room, sentences, multiple):
    documents = Texts(texts, ends=False)
    examples = CPDDataset(documents, DICTIONARY, MASK, seed=1, ratio=percent / 100, min_tokens=1)
    longest = int(max(examples.sizes.max(axis=1)))
    batches = examples.batch_by_size(examples.ordered_indices(), max_tokens=longest + room, max_sentences=sentences,
                                     required_batch_size_multiple=multiple)
    assert sorted(int(row) for batch in batches for row in batch) == list(range(len(examples)))
    for rows in batches:
        batch = collated(examples, rows)
        source, target = batch["net_input"]["src_tokens"], batch["target"]
        assert len(rows) <= sentences and len(rows) * max(source.size(1), target.size(1)) <= longest + room
        assert batch["ntokens"] == int((target != PAD).sum()) and ((source == MASK).sum(dim=1) == 1).all()


@pytest.mark.parametrize("name", sorted(MASKING))
@given(length=st.integers(1, 2000), seed=st.integers(0, 2**32))
def test_laws_of_masking_keep_their_shape(name, length, seed):
    noised = MASKING[name](length, np.random.default_rng(seed))
    edges = np.flatnonzero(noised[1:] != noised[:-1])
    assert noised.shape == (length,) and noised.any()
    assert {"full": noised.all(), "prefix": len(edges) <= 1 and noised[-1], "span": len(edges) <= 8}.get(name, True)

"""metrics/model_based.py against sums by hand, with a tiny GPT-2 of random weights."""

import sys

import numpy as np
import pytest
import torch
from tiny_scorer import make_scorer, save_scorer

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import model_based
from diffusion_fairseq.metrics.model_based import (
    TokenNLL,
    ar_nll,
    bert_score,
    bert_score_signature,
    features,
    length_batches,
    load_bert_scorer,
)

TEXTS = ["the cat sat on the mat", "a dog", "", "the cat", "dog", "on the mat a dog sat on a cat"]


@pytest.fixture(scope="module")
def scorer():
    """A causal language model of transformers and its tokenizer, one token a word."""
    return make_scorer()


def by_hand(model, tokenizer, text, given=1, bos=False):
    """The tokens from `given` on, one by one: -ln softmax of the logits before each."""
    ids = [tokenizer.bos_token_id] * bos + tokenizer(text, add_special_tokens=False)["input_ids"]
    values = []
    for place in range(given + bos, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:place]])).logits[0, -1].double()
        values.append(float(torch.logsumexp(logits, 0) - logits[ids[place]]))
    return values


@pytest.mark.parametrize("batch_tokens", [1, 12, 1000])
def test_nll_by_hand_whatever_the_batch(scorer, batch_tokens):
    found = ar_nll(TEXTS, *scorer, batch_tokens=batch_tokens)
    values = [by_hand(*scorer, text) for text in TEXTS]
    assert found.counts.tolist() == [5, 1, 0, 1, 0, 8]
    assert found.sums == pytest.approx([sum(row) for row in values], rel=1e-5)
    assert found.per_token == pytest.approx(sum(map(sum, values)) / 15, rel=1e-5)
    assert found.per_text == pytest.approx(sum(sum(row) / len(row) for row in values if row) / 4, rel=1e-5)


def test_a_beginning_token_lets_the_first_one_count(scorer):
    found = ar_nll(TEXTS, *scorer, bos=True)
    assert found.counts.tolist() == [6, 2, 0, 2, 1, 9]
    assert found.sums == pytest.approx([sum(by_hand(*scorer, text, given=0, bos=True)) for text in TEXTS], rel=1e-5)


def test_a_prompt_is_conditioned_on_and_not_counted(scorer):
    prefixes = ["the cat sat", "", "", "the cat", "dog", "on the mat"]
    found = ar_nll(TEXTS, *scorer, prefixes=prefixes)
    given = [3, 1, 1, 2, 1, 3]
    values = [sum(by_hand(*scorer, text, number)) for text, number in zip(TEXTS, given)]
    assert found.counts.tolist() == [3, 1, 0, 0, 0, 6]
    assert found.sums == pytest.approx(values, rel=1e-5)
    assert ar_nll(TEXTS, *scorer, prefix_tokens=3).counts.tolist() == [3, 0, 0, 0, 0, 6]
    # a token that is in the text but not in the prefix alone, as where a prompt ends within a word
    assert ar_nll(["the cat sat on"], *scorer, prefixes=["the ca"]).counts.tolist() == [3]


def test_long_texts_are_cut(scorer):
    model, tokenizer = scorer
    cut = ar_nll(TEXTS[:1], model, tokenizer, max_tokens=4)
    assert cut.counts.tolist() == [3]
    assert cut.sums[0] == pytest.approx(sum(by_hand(model, tokenizer, "the cat sat on")), rel=1e-5)
    long = " ".join(["dog"] * 100)
    positions = model.config.max_position_embeddings
    assert ar_nll([long], model, tokenizer).counts.tolist() == [positions - 1]
    assert ar_nll([long], model, tokenizer, bos=True).counts.tolist() == [positions - 1]
    with pytest.raises(UserError, match="at least 2"):
        ar_nll(TEXTS, model, tokenizer, max_tokens=1)


def test_texts_without_a_counted_token_have_no_mean(scorer):
    found = ar_nll(["", "dog"], *scorer)
    assert found == TokenNLL(*found) and found.per_token is None and found.per_text is None
    for arguments in ([], None), (TEXTS, ["the"]):
        with pytest.raises(UserError, match="one prefix for each"):
            ar_nll(arguments[0], *scorer, prefixes=arguments[1])


def test_features_are_the_last_hidden_state_of_the_last_token(scorer):
    model, tokenizer = scorer
    found = features(TEXTS, model, tokenizer, batch_tokens=12)
    assert found.shape == (5, model.config.n_embd), "the empty text is left out"
    for row, text in zip(found, filter(None, TEXTS)):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        assert row == pytest.approx(states[-1][0, -1].numpy(), abs=1e-5)
    assert len(features([], model, tokenizer)) == 0


def test_mauve_of_like_and_unlike_features():
    pytest.importorskip("mauve")
    rng = np.random.default_rng(0)
    reference, like = rng.normal(size=(2, 60, 8)).astype(np.float32)
    unlike = like + 20 * np.eye(8, dtype=np.float32)[0]
    assert model_based.mauve(unlike, reference) < 0.1 < 0.6 < model_based.mauve(like, reference) <= 1
    assert model_based.mauve(like, reference) == model_based.mauve(like, reference)
    assert f"seed:{model_based.MAUVE_SEED}" in model_based.mauve_signature()
    with pytest.raises(UserError, match="of 1 texts against 60"):
        model_based.mauve(like[:1], reference)


def test_mauve_is_that_of_mauve_text_from_end_to_end(tmp_path, scorer):
    mauve_text = pytest.importorskip("mauve")
    # mauve-text takes models whose name says gpt2
    folder = save_scorer(tmp_path / "gpt2-tiny")
    words = " ".join(TEXTS).split()
    texts, reference = ([" ".join(words[first:][: 1 + i % 7]) for i in range(40)] for first in (0, 4))
    options = dict(featurize_model_name=folder, batch_size=8, max_text_length=24)
    theirs = mauve_text.compute_mauve(p_text=reference, q_text=texts, **options).mauve
    assert 0.01 < theirs < 0.99
    assert model_based.mauve(*(features(part, *scorer) for part in (texts, reference))) == pytest.approx(theirs)


def test_without_mauve_text_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(UserError, match=r"^MAUVE needs mauve-text .*pip install 'diffusion-fairseq\[metrics\]'$"):
        model_based.check_mauve()


def test_batches_hold_rows_of_like_length():
    lengths = [3, 9, 1, 3, 2, 20]
    assert length_batches(lengths, 10) == [[5], [1], [0, 3, 4], [2]]
    assert length_batches([], 10) == []


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a BERT of random weights that knows a few words."""
    pytest.importorskip("bert_score", exc_type=ImportError)
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert") / "bert-tiny"
    folder.mkdir()
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the a cat dog sat ran on mat".split()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=12, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_bert_score_by_hand(bert):
    transformers = pytest.importorskip("transformers")
    scorer = load_bert_scorer(str(bert), layer=2)
    texts = ["the cat sat on the mat", "a dog", "", "dog " * 40]
    others = ["a dog ran", "a dog", "the cat", "cat " * 40]
    found = bert_score(texts, others, scorer)
    assert found[1] == pytest.approx(1, abs=1e-5) and found[2] == 0 and 0 < found[3] <= 1
    model, tokenizer = (kind.from_pretrained(bert) for kind in (transformers.BertModel, transformers.BertTokenizerFast))

    def states(text):
        with torch.no_grad():
            hidden = model.eval()(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[2][0]
        return torch.nn.functional.normalize(hidden, dim=-1)

    likeness = (states(texts[0]) @ states(others[0]).T)[1:-1, 1:-1]  # neither [CLS] nor [SEP] counts
    precision, recall = likeness.amax(dim=1).mean(), likeness.amax(dim=0).mean()
    assert found[0] == pytest.approx(float(2 * precision * recall / (precision + recall)), rel=1e-4)
    assert bert_score_signature(scorer).startswith("model:bert-tiny|layer:2|idf:no|rescaled:no|bert-score:")


def test_bert_score_says_what_is_missing(bert, monkeypatch):
    with pytest.raises(UserError, match="knows no layer for .*bert-tiny: give one"):
        load_bert_scorer(str(bert))
    with pytest.raises(UserError, match="BERTScore ./nowhere: .*copy config.json"):
        load_bert_scorer("./nowhere", layer=2)
    with pytest.raises(UserError, match="1 hypotheses, but 2 references"):
        bert_score(["a"], ["a", "b"], None)
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(UserError, match="BERTScore needs bert-score"):
        load_bert_scorer(str(bert), layer=2)

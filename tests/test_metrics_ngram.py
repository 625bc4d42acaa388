"""metrics/ngram.py: probabilities by hand, sums to 1, and against a plain dictionary version."""

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics.ngram import (
    FALLBACK_DISCOUNT,
    kneser_ney,
    log_probabilities,
    perplexity,
    read_corpus,
    seen_share,
    unknown_share,
)

TRAIN = ["the cat sat on the mat", "the dog sat on the cat", "a dog ran", "the end", "", "sat on a mat", "dog"]


def trained(texts, order=3, min_count=1):
    return kneser_ney(read_corpus(texts), order, min_count)


def probabilities(model, text):
    return np.exp(log_probabilities(model, [text])[0])


def test_a_bigram_by_hand():
    """Bigrams of "a b a" and "a": (^ a) 2, (a b) 1, (b a) 1; one of them comes once in front for b, two for a."""
    model = trained(["a b a", "a"], order=2)
    vocabulary = 3  # a, b and the unknown class
    # continuation counts: a after ^ and b, b after a: n1 = 1, n2 = 1, D = 1 / 3
    low = {"a": (2 - 1 / 3) / 3 + 2 / 9 / vocabulary, "b": (1 - 1 / 3) / 3 + 2 / 9 / vocabulary,
           "?": 2 / 9 / vocabulary}
    discount = 2 / 4  # two bigrams of count 1, one of count 2
    start = {"a": (2 - discount) / 2 + discount / 2 * low["a"], "b": discount / 2 * low["b"]}
    after_a = {"b": (1 - discount) / 1 + discount * low["b"], "?": discount * low["?"]}
    assert probabilities(model, "a b") == pytest.approx([start["a"], after_a["b"]])
    assert probabilities(model, "b") == pytest.approx([start["b"]])
    # nothing followed an unknown word: the unigrams alone
    assert probabilities(model, "a ? b") == pytest.approx([start["a"], after_a["?"], low["b"]])


def by_dictionaries(texts, order):
    """The same model with counters over tuples, as the formula reads."""
    counts = [Counter() for _ in range(order + 1)]
    for text in texts:
        words = ["^", *text.split()]
        for k in range(1, order + 1):
            counts[k].update(tuple(words[i : i + k]) for i in range(k == 1, len(words) - k + 1))
    for k in range(1, order):
        in_front = Counter(gram[1:] for gram in counts[k + 1])
        counts[k] = Counter({gram: in_front[gram] or count for gram, count in counts[k].items()})
    words = {gram[0] for gram in counts[1]}
    totals, followers = defaultdict(int), defaultdict(int)
    for k in range(1, order + 1):
        for gram, count in counts[k].items():
            totals[gram[:-1]] += count
            followers[gram[:-1]] += 1

    def discount(k):
        n1, n2 = (sum(count == c for count in counts[k].values()) for c in (1, 2))
        return n1 / (n1 + 2 * n2) if n1 and n2 else FALLBACK_DISCOUNT

    discounts = [0, *map(discount, range(1, order + 1))]

    def probability(word, context):
        if not context:
            below, context = 1 / (len(words) + 1), ()
        else:
            below = probability(word, context[1:])
        if context not in totals:
            return below
        d = discounts[len(context) + 1]
        own = max(counts[len(context) + 1][(*context, word)] - d, 0)
        return (own + d * followers[context] * below) / totals[context]

    return probability


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
def test_equal_to_the_formula_with_dictionaries(order):
    model, probability = trained(TRAIN, order), by_dictionaries(TRAIN, order)
    for text in ["the cat sat on a mat", "new dog on the", "dog", "the new the end a", ""]:
        words = ["^", *text.split()]
        expected = [probability(words[i], tuple(words[max(0, i - order + 1) : i])) for i in range(1, len(words))]
        assert probabilities(model, text) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order, min_count", [(1, 1), (2, 1), (3, 1), (3, 2), (5, 2)])
def test_probabilities_sum_to_1_in_every_context(order, min_count):
    model = trained(TRAIN, order, min_count)
    for context in ["", "the", "the cat", "sat on", "new", "on the cat", "mat"]:
        known = log_probabilities(model, [f"{context} {word}" for word in model.vocabulary])
        (unknown,) = log_probabilities(model, [f"{context} unheard-of"])
        total = sum(np.exp(row[-1]) for row in known) + model.unknown_types * np.exp(unknown[-1])
        assert total == pytest.approx(1)


def test_rare_words_are_one_class():
    model = trained(TRAIN, min_count=2)
    assert set(model.vocabulary) == {"the", "cat", "sat", "on", "mat", "dog", "a"}
    assert log_probabilities(model, ["a ran"])[0] == pytest.approx(log_probabilities(model, ["a whatever"])[0])
    assert model.unknown_types == len({"ran", "end"})
    assert perplexity(log_probabilities(model, ["the cat sat"])) < perplexity(log_probabilities(model, ["x y z"]))
    assert unknown_share(model, ["a ran", "the end"]) == 0.5 and unknown_share(model, [""]) is None


def test_text_alone_is_text_among_others_and_empty_texts_have_no_word():
    model = trained(TRAIN)
    together = log_probabilities(model, ["the dog", "", "sat on"])
    assert [len(row) for row in together] == [2, 0, 2]
    assert together[2] == pytest.approx(log_probabilities(model, ["sat on"])[0])
    assert log_probabilities(model, []) == [] and perplexity([]) is None and perplexity(together[1:2]) is None
    mean = sum(row.sum() for row in together) / 4
    assert perplexity(together) == pytest.approx(math.exp(-mean))


def test_text_of_the_same_kind_is_likelier_than_its_words_in_another_order():
    rng = random.Random(1)
    following = {word: rng.choices(range(50), k=3) for word in range(50)}

    def walk(length=40):
        words = [rng.randrange(50)]
        while len(words) < length:
            words.append(rng.choice(following[words[-1]]))
        return [f"w{word}" for word in words]

    model = trained([" ".join(walk()) for _ in range(200)], min_count=2)
    walks = [walk() for _ in range(30)]
    in_order = perplexity(log_probabilities(model, [" ".join(words) for words in walks]))
    shuffled = perplexity(log_probabilities(model, [" ".join(rng.sample(words, len(words))) for words in walks]))
    assert in_order < 5 < 20 < shuffled


def test_what_cannot_be_learnt_is_refused():
    with pytest.raises(UserError, match="there is no word"):
        trained(["", " "])
    with pytest.raises(UserError, match="both must be 1 or more"):
        trained(TRAIN, order=0)


def test_seen_ngrams():
    corpus = read_corpus(["a b c d", "e f", "d e"])
    assert seen_share(["a b c x", "b c d"], corpus, n=3) == pytest.approx(2 / 3)
    assert seen_share(["b c", "d e", "c d e"], corpus, n=2) == 1
    assert seen_share(["d e f", "c d e"], corpus, n=3) == 0, "an n-gram does not reach over the end of a text"
    assert seen_share(["a z"], corpus, n=1) == 0.5
    assert seen_share(["a b", ""], corpus, n=3) is None and seen_share([], corpus) is None
    assert seen_share(["a b c d e"], read_corpus([]), n=2) == 0


def test_seen_ngrams_against_sets():
    rng = random.Random(2)
    train, texts = ([" ".join(rng.choices("abc", k=rng.randrange(12))) for _ in range(40)] for _ in range(2))
    for n in (1, 2, 5, 8):
        def grams(text, n=n):
            words = text.split()
            return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        known = {gram for text in train for gram in grams(text)}
        ours = [gram in known for text in texts for gram in grams(text)]
        assert seen_share(texts, read_corpus(train), n) == pytest.approx(sum(ours) / len(ours))

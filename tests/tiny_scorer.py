"""A causal language model of transformers with random weights, and a tokenizer of whole words: what scores in tests."""

import pytest
import torch

WORDS = "the cat sat on mat a dog ran here we will go now"


def make_scorer():
    """(GPT-2 of 24 positions, its tokenizer); the test is skipped without transformers."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "<unk>", *WORDS.split()]
    backend = Tokenizer(models.WordLevel({word: code for code, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    torch.manual_seed(0)
    sizes = dict(n_positions=24, n_embd=8, n_layer=2, n_head=2, initializer_range=0.5)
    config = transformers.GPT2Config(vocab_size=len(words), bos_token_id=0, eos_token_id=0, **sizes)
    return transformers.GPT2LMHeadModel(config).eval(), tokenizer


def save_scorer(folder) -> str:
    """Both in a folder as transformers saves them; returns its path."""
    for part in make_scorer():
        part.save_pretrained(folder)
    return str(folder)

"""diffusion_fairseq.compat.bert: what --bpe bert lacks is said in one line."""

import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest
from fairseq.data.encoders.hf_bert_bpe import BertBPE

import diffusion_fairseq  # noqa: F401  mends the host
from diffusion_fairseq.errors import UserError


def options(file):
    return Namespace(bpe_cased=False, bpe_vocab_file=file and str(file))


@pytest.fixture
def vocabulary(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("".join(f"{piece}\n" for piece in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "king"]))
    return file


def test_no_transformers(monkeypatch, vocabulary):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="--bpe bert needs .*pip install transformers$"):
        BertBPE(options(vocabulary))


def test_no_vocabulary(tmp_path):
    with pytest.raises(UserError, match=r"--bpe-vocab-file .*nowhere\.txt: no such file; "):
        BertBPE(options(tmp_path / "nowhere.txt"))


@pytest.mark.parametrize("name", ["given", "named by its model"])
def test_otherwise_the_host_builds_its_tokenizer(monkeypatch, vocabulary, name):
    class BertTokenizer:
        def __init__(self, file, do_lower_case):
            self.file, self.do_lower_case = file, do_lower_case

        @classmethod
        def from_pretrained(cls, model):
            return cls(model, True)

    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(BertTokenizer=BertTokenizer))
    tokenizer = BertBPE(options(vocabulary if name == "given" else None)).bert_tokenizer
    assert tokenizer.do_lower_case and tokenizer.file == (str(vocabulary) if name == "given" else "bert-base-uncased")


def test_the_installed_transformers_encodes_and_decodes(vocabulary):
    pytest.importorskip("transformers")
    bpe = BertBPE(options(vocabulary))
    assert bpe.encode("[CLS] The KING") == "[CLS] the king"
    assert bpe.decode("[CLS] the king") == "[CLS] the king"

"""--bpe bert: what it lacks, in one line."""

import os

from fairseq.data.encoders.hf_bert_bpe import BertBPE

from diffusion_fairseq.errors import UserError


def report_bad_bert() -> None:
    """Say in one line that --bpe bert lacks its package or its vocabulary.

    Both hosts: they show a traceback; with transformers >= 5 it does not name the file that is missing.
    """
    stock = BertBPE.__init__

    def __init__(self, cfg):
        file = cfg.bpe_vocab_file
        if file and not os.path.isfile(file):
            raise UserError(f"--bpe-vocab-file {file}: no such file; give the vocab.txt the data was made with")
        try:
            stock(self, cfg)
        except ImportError as error:
            raise UserError("--bpe bert needs the package transformers: pip install transformers") from error

    BertBPE.__init__ = __init__

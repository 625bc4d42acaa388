"""The words that fairseq-preprocess fills a dictionary up with, to a multiple of 8."""

FILLER = "madeupword"


def is_filler(symbol: str) -> bool:
    """Whether a symbol of a dictionary is one that no text has."""
    return symbol.startswith(FILLER)

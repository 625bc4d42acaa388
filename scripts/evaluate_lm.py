#!/usr/bin/env python3
"""Score the text of language models beside real text: likelihood, variety, and what they repeat of their training.

    python scripts/evaluate_lm.py generate-test.txt --reference valid.txt --train train.txt
    python scripts/evaluate_lm.py generate-test.txt --reference test.txt --train train.txt --words data-bin/dict.txt
    python scripts/evaluate_lm.py --plain seed1.txt seed2.txt --reference valid.txt --scorer gpt2-large --mauve
    python scripts/evaluate_lm.py generate-test.txt --source-prefixes --scorer FOLDER --gguf MODEL.gguf

A FILE is what fairseq-generate printed, whose candidates (--nbest) are several samples, or plain text, one sample a
line (--plain); several plain files are several samples of the same prompts. The row "data" is real text (--reference),
what a good model comes near to. Likelihood and entropy depend on the length of texts: --max-words makes them alike.

AR-NLL            -ln p of a token under a causal language model (--scorer), in nats, the mean over all tokens of all
                  texts: tokens are the scorer's, a text's first one is given; "by text" is the mean of the texts' means
MAUVE             likeness to the data, 0 to 1 (mauve-text), from the last hidden state of the scorer or --mauve-model
n-gram perplexity exp of the mean -ln p of a word over all words, by interpolated Kneser-Ney on --train; words that do
                  not come twice there are one class, "unknown %" of the words, which share its probability evenly;
                  <unk> is unknown, too, and has the share of one of the words that it stands for in --train
dist-n            different n-grams over all n-grams of the texts; "among": of the samples of one prompt
                  together, the mean over prompts, as in DDLM's paper (Balagansky and Gavrilov, 2023)
self-BLEU         BLEU-4 of each text against all the others, mean over texts; low is varied
entropy, Zipf     of the words' distribution, and the exponent of its ranks; to be near the data's
seen 8-grams      share of the texts' 8-grams that stand in a line of --train: memorised text
duplicate         texts with the words of an earlier one

Words are what stands between blanks, case kept: texts, --reference and --train must be tokenized and cased alike. A
model of words has a limited number of them, and writes <unk> for the others: with --words all else is read so. dist,
self-BLEU, entropy and Zipf depend on the number of texts and are of as many from every row (--at-most). Prefixes
(--prefixes, --source-prefixes) are conditioned on by the likelihoods and in MAUVE's features, and nowhere counted.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence

import _environment  # noqa: F401  says what this Python lacks
from _generated import Outputs, read_either, read_generated, read_lines, read_plain
from _lm_evaluation import (
    DATA,
    LIKELIHOOD,
    VARIETY,
    WHOLE,
    Rows,
    Scoring,
    as_known,
    evaluate,
    read_ngrams,
    read_words,
)
from _lm_scorer import load_scorer
from _option_types import count, named
from evaluate import TABLES, titled, write_text

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics.model_based import BATCH_TOKENS, MAX_TOKENS, check_mauve
from diffusion_fairseq.text.masking import MASKS

GAP = re.compile("|".join(map(re.escape, MASKS)))  # where a prompt has something to be written
SECTIONS = {"likelihood": LIKELIHOOD, "variety": VARIETY, "all texts": WHOLE}


def read_rows(args: argparse.Namespace, words: frozenset[str] | None) -> Rows:
    """The systems that the options name, their samples with their prefixes; all but the model's own as a model of
    these words reads them."""
    model = (read_plain if args.plain else read_generated)(args.generated)
    rows = Rows(*(read_prompts(args, model, words) or (None, None)), args.continuations, args.max_words)
    rows.add(args.name, model)
    for name, path in args.system:
        rows.add(name, Outputs([[as_known(text, words) for text in texts] for texts in read_either(path).candidates]))
    if args.reference:
        lines = read_lines(args.reference)
        if rows.prefixes is None:
            # files of documents have empty lines between them, which are no texts
            lines = [line for line in lines if line.strip()]
        if not lines:
            raise UserError(f"--reference {args.reference} holds no text: name another file")
        rows.add(DATA, Outputs([[as_known(line, words) for line in lines]]))
    return rows


def read_prompts(args: argparse.Namespace, model: Outputs,
                 words: frozenset[str] | None) -> tuple[list[str], list[str]] | None:
    """What was given before and after what was to be written."""
    if args.source_prefixes and model.sources is None:
        raise UserError(f"--source-prefixes: {', '.join(args.generated)}: no S- lines")
    lines = model.sources if args.source_prefixes else read_lines(args.prefixes) if args.prefixes else None
    if lines is None:
        return None
    parts = [[as_known(part, words) for part in GAP.split(line)] for line in lines]
    return [around[0].strip() for around in parts], [around[-1].strip() if around[1:] else "" for around in parts]


def read_scoring(args: argparse.Namespace) -> Scoring:
    """Load what scores, after cheaper complaints."""
    wanted = args.mauve or args.mauve_model
    if wanted and not args.reference:
        raise UserError("MAUVE compares with real text: give --reference FILE")
    if args.mauve and not (args.scorer or args.mauve_model):
        raise UserError("--mauve takes its features from a model: give --scorer or --mauve-model")
    if wanted:
        check_mauve()
    scorer = load_scorer("--scorer", args.scorer, args.gguf, args.device) if args.scorer else None
    features = scorer if args.mauve else None
    if args.mauve_model:
        features = load_scorer("--mauve-model", args.mauve_model, device=args.device, head=False)
    return Scoring(scorer, args.prefix_tokens, args.max_tokens, args.batch_tokens, args.bos, args.scored, features)


def tables(table: dict[str, dict], style: str) -> str:
    """A table for each section that has a number, its columns those that have one."""
    shown = []
    for section, columns in SECTIONS.items():
        held = [key for key in columns if any(row.get(key) is not None for row in table.values())]
        cells = {name: {key: None if row.get(key) is None else f"{row[key]:.{columns[key][1]}f}" for key in held}
                 for name, row in table.items()}
        if held:
            shown.append(f"{section}\n\n{titled(cells, {key: columns[key][0] for key in held}, style)}")
    return "\n\n".join(shown)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generated", nargs="+", metavar="FILE", help="what fairseq-generate printed")
    parser.add_argument("--plain", action="store_true",
                        help="each FILE is plain text, one sample a line; several are several samples of the same "
                             "prompts")
    parser.add_argument("--name", default="model", help="name of its row (default: %(default)s)")
    parser.add_argument("--system", action="append", default=[], type=named("NAME=FILE", str), metavar="NAME=FILE",
                        help="a further row: plain text or generated output; repeatable")
    parser.add_argument("--reference", metavar="FILE", help="real text, one a line: the row 'data'")
    parser.add_argument("--train", metavar="FILE",
                        help="text, one a line: trains the n-gram model, and is where samples are looked for")
    parser.add_argument("--words", metavar="FILE",
                        help="dict.txt of the model, which is one of words: read --reference, --train, prefixes and "
                             "further rows as it reads them, with <unk> for all other words")
    parser.add_argument("--max-words", type=count(1), metavar="N", help="cut every text to its first N words")
    add_prefixes(parser)
    add_scoring(parser)
    parser.add_argument("--ngram-order", type=count(1), default=3, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--at-most", type=count(1), default=1000, metavar="N",
                        help="texts of each row for dist-n, self-BLEU, entropy and Zipf (default: %(default)s, and no "
                             "more than the smallest row has)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw of texts (default: %(default)s)")
    parser.add_argument("--format", choices=[*TABLES, "json"], default="text", help="of what is printed")
    parser.add_argument("--json", metavar="FILE", help="write the numbers here, with the metrics' signatures")
    found = parser.parse_args(arguments)
    needs = {"bos": found.scorer, "prefix_tokens": found.scorer, "ngram_order": found.train,
             "words": found.reference or found.train or found.system,
             **dict.fromkeys(("scored", "max_tokens", "batch_tokens", "device"), found.scorer or found.mauve_model)}
    for name, needed in needs.items():
        if not needed and getattr(found, name) != parser.get_default(name):
            beside = {"ngram_order": "--train", "words": "--reference, --train or --system"}.get(name, "--scorer")
            parser.error(f"--{name.replace('_', '-')} acts only with {beside}: give both, or leave it out")
    return found


def add_prefixes(parser: argparse.ArgumentParser) -> None:
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--prefixes", metavar="FILE",
                       help=f"how the texts begin, a line for each, read up to its first {' or '.join(MASKS)}: given, "
                            "not counted; nor is what stands after the last one, where a text ends with it")
    given.add_argument("--source-prefixes", action="store_true", help="the same from the S- lines")
    given.add_argument("--prefix-tokens", type=count(0), default=0, metavar="N",
                       help="AR-NLL does not count the first N of the scorer's tokens of every text")
    parser.add_argument("--continuations", action="store_true",
                        help="the texts of all rows are what follows their prefixes and do not repeat them")


def add_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scorer", metavar="MODEL",
                        help="causal language model for AR-NLL: a folder, or a name on the hub of transformers")
    parser.add_argument("--gguf", metavar="FILE", help="the scorer is this GGUF file of its folder")
    parser.add_argument("--mauve", action="store_true", help="MAUVE against --reference, features from the scorer")
    parser.add_argument("--mauve-model", metavar="MODEL", help="MAUVE with features from this model instead")
    parser.add_argument("--scored", type=count(1), metavar="N",
                        help="AR-NLL and MAUVE of N drawn texts of each row (default: all)")
    parser.add_argument("--max-tokens", type=count(2), default=MAX_TOKENS, metavar="N",
                        help="cut texts to so many of the scorer's tokens (default: %(default)s, and no more than the "
                             "model has positions)")
    parser.add_argument("--batch-tokens", type=count(1), default=BATCH_TOKENS, metavar="N",
                        help="tokens that are scored together (default: %(default)s)")
    parser.add_argument("--bos", action="store_true",
                        help="score after the token for the beginning of a text, so that the first token counts")
    parser.add_argument("--device", help="such as cpu (default: a GPU where there is one)")


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    if args.continuations and not (args.prefixes or args.source_prefixes):
        raise UserError("--continuations of what? give --prefixes FILE or --source-prefixes")
    if args.gguf and not args.scorer:
        raise UserError("--gguf names a file of the scorer's folder: give --scorer FOLDER")
    words = read_words(args.words) if args.words else None
    rows = read_rows(args, words)
    scoring = read_scoring(args)
    train = read_ngrams(args.train, args.ngram_order, words) if args.train else None
    table, signatures = evaluate(rows.rows, scoring, train, args.at_most, args.seed)
    result = {"files": args.generated, "seed": args.seed, "signatures": signatures, "systems": table}
    as_json = json.dumps(result, indent=2, ensure_ascii=False)
    if args.format == "json":
        print(as_json)
    else:
        print(tables(table, args.format) + "\n")
        for name, signature in signatures.items():
            print(f"{name}: {signature}")
    if args.json:
        write_text("--json", args.json, as_json)


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")

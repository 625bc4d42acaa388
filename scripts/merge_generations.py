#!/usr/bin/env python3
"""Put the outputs of sharded generation together, and make sure that nothing is missing or there twice.

    for shard in 0 1 2 3; do
        fairseq-generate data-bin --path ck.pt --num-shards 4 --shard-id $shard ... > shard$shard.txt &
    done; wait
    python scripts/merge_generations.py shard?.txt --output generated.txt

Writes the sentences in the order of their ids: the same bytes for any number of shards, and for the output of a single
process. Lines that belong to no sentence, such as the score at a shard's end, are left out: score the whole with
scripts/evaluate.py. Under SLURM the options are --num-shards $SLURM_NTASKS --shard-id $SLURM_PROCID, under torchrun
$WORLD_SIZE and $RANK.
"""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import _environment  # noqa: F401  says what this Python lacks
from _generated import missing_ids, sentence_lines
from _option_types import count

from diffusion_fairseq.errors import UserError

ONCE = "ST"  # kinds of lines that a sentence has at most one of


class Block(NamedTuple):
    """The lines of one sentence and where they begin."""

    where: str
    lines: List[str]

    def kinds(self) -> Counter:
        """How many lines there are of each kind that all sentences have as many of: not E-, one a step."""
        return Counter(line[0] for line in self.lines if line[0] != "E")


def read(paths: List[str]) -> Dict[int, Block]:
    """The sentences of all shards.

    Raises:
        UserError: there is no sentence, or one comes twice.
    """
    blocks: Dict[int, Block] = {}
    for path in paths:
        current = None
        for where, match in sentence_lines(path):
            sentence = int(match[2])
            if sentence != current:
                if sentence in blocks:
                    raise UserError(f"{where}: sentence {sentence} is there twice, first at {blocks[sentence].where}: "
                                    "merge each shard once, all of one run")
                blocks[sentence] = Block(where, [])
                current = sentence
            blocks[sentence].lines.append(match[0])
    if not blocks:
        raise UserError(f"{', '.join(paths)}: no line of a sentence, so not the output of fairseq-generate")
    return blocks


def check(blocks: Dict[int, Block], sentences: int) -> None:
    """Every id from 0 on once, each with as many lines of each kind.

    Raises:
        UserError: naming what is missing and the remedy.
    """
    wanted = sentences or max(blocks) + 1
    if max(blocks) >= wanted:
        raise UserError(f"{blocks[max(blocks)].where}: sentence {max(blocks)} is beyond the {wanted} of --sentences")
    missing = wanted - len(blocks)
    if missing:
        raise UserError(f"{missing} of {wanted} sentences are missing ({missing_ids(blocks, missing)}): run the "
                        "shards that lack them again, or name all files")
    usual = Counter(frozenset(block.kinds().items()) for block in blocks.values()).most_common(1)[0][0]
    for number, block in sorted(blocks.items()):
        kinds = block.kinds()
        if frozenset(kinds.items()) != usual:
            expected = dict(usual)
            kind = next(k for k in sorted({*kinds, *expected}) if kinds[k] != expected.get(k, 0))
            raise UserError(f"{block.where}: sentence {number} has {kinds[kind]} {kind}- lines, most have "
                            f"{expected.get(kind, 0)}: the shard was cut short, or its options differ; run it again")
        for kind in ONCE:
            if kinds[kind] > 1:
                raise UserError(f"{block.where}: sentence {number} has {kinds[kind]} {kind}- lines")
        if kinds["P"] not in (0, kinds["D"]) or kinds["H"] != kinds["D"]:
            raise UserError(f"{block.where}: sentence {number} has unequal numbers of H-, D- and P- lines: run its "
                            "shard again")


def main(given: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+", metavar="FILE", help="what the shards' fairseq-generate printed")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the whole; not one of the shards")
    parser.add_argument("--sentences", type=count(1), default=0, metavar="N",
                        help="how many there must be (default: up to the highest id: the last ones' loss goes unseen)")
    arguments = parser.parse_args(given)
    if any(arguments.output.exists() and os.path.samefile(path, arguments.output) for path in arguments.shards
           if os.path.exists(path)):
        parser.error(f"--output {arguments.output} is one of the shards")
    if arguments.output.is_dir():
        parser.error(f"--output {arguments.output} is a folder: name a file")
    blocks = read(arguments.shards)
    check(blocks, arguments.sentences)
    unfinished = arguments.output.with_name(arguments.output.name + ".partial")
    with unfinished.open("w", encoding="utf-8", newline="\n") as out:
        for _, block in sorted(blocks.items()):
            out.writelines(line + "\n" for line in block.lines)
    unfinished.replace(arguments.output)
    print(f"{arguments.output}: {len(blocks)} sentences of {len(arguments.shards)} file(s)")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")

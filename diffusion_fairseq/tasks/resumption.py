"""Generation that was interrupted: what is written, what is left."""

import os
import re
from typing import List, NamedTuple, Sequence

from diffusion_fairseq.errors import UserError

LINE = re.compile(rb"[A-Z]-(\d{1,18})(?:_\d+)?\t")


class Sentence(NamedTuple):
    """A sentence in the output of generation: its number, and where its lines begin, in bytes."""

    number: int
    offset: int


def written(path: str) -> List[Sentence]:
    """The sentences in a file of what fairseq-generate has printed, in their order."""
    found: List[Sentence] = []
    offset = 0
    with open(path, "rb") as lines:
        for line in lines:
            match = LINE.match(line)
            if match and (not found or found[-1].number != int(match[1])):
                found.append(Sentence(int(match[1]), offset))
            offset += len(line)
    return found


def left_to_generate(batches: Sequence[Sequence[int]], path: str) -> Sequence[Sequence[int]]:
    """The batches from the first one on that the file does not hold whole; the file is cut where that one begins.

    Whole batches are generated again, so that scores are the same to the last digit, and so is the last one written:
    nothing says that the lines of its last sentence are all there.

    Raises:
        UserError: the file cannot be read or written, or was not written with these batches.
    """
    try:
        sentences, place, done = written(path), 0, 0
        for batch in batches:
            part = sentences[place : place + len(batch)]
            if place + len(batch) >= len(sentences) or {sentence.number for sentence in part} != set(batch):
                break
            place, done = place + len(batch), done + 1
        rest = [sentence.number for sentence in sentences[place:]]
        known = set(batches[done]) if done < len(batches) else set()
        if len(rest) > len(known) or not known.issuperset(rest):
            foreign = next((number for number in rest if number not in known), rest[-1])
            raise UserError(f"--resume-generation {path}: sentence {foreign} is not where "
                            "these options generate it: give the data, --batch-size, --max-tokens and --num-shards of "
                            "the run that was interrupted")
        if rest:
            os.truncate(path, sentences[place].offset)
        elif not done:
            end_at_a_line(path)
    except OSError as error:
        raise UserError(f"--resume-generation {path}: {error.strerror}; name the file that the output of the "
                        "interrupted run went to") from error
    return batches[done:]


def end_at_a_line(path: str) -> None:
    """Cut what stands after a file's last line end."""
    with open(path, "rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)

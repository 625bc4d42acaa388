"""What reads generated text, given anything: the right result or one line of UserError, never a wrong one."""

import re
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from itertools import cycle

import pytest
from helpers import REPOSITORY
from hypothesis import assume, given, seed, settings
from hypothesis import strategies as st

from diffusion_fairseq.errors import UserError

sys.path.insert(0, str(REPOSITORY / "scripts"))
import evaluate  # noqa: E402, I001
import evaluate_lm  # noqa: E402
import merge_generations  # noqa: E402
from _generated import Outputs, read_either, read_generated, read_plain  # noqa: E402

MINUTES = 10
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=12)
SCORES = st.floats(allow_nan=False).map(str)
# What else stands in such files; some of it is nearly the line of a sentence.
LOG_LINES = st.sampled_from([
    "", "2026-01-01 10:00:00 | INFO | fairseq_cli.generate | {'S-1': None}", "Generate test with beam=5: BLEU4 = 3.14",
    "S-", "D-x\t-1\tb", " D-0\t-1\tb", "d-0\t-1\tb", "D-0 -1 b", "\ufffd\u2028\x00", "WARNING: D-1\t-1.0\tb",
])
LINE = re.compile(rb"([STHD])-(\d+)(?:\t(.*))?", re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@st.composite
def generations(draw, fewest=1):
    """Sentences as fairseq-generate prints them: the lines of each, in the order of ids."""
    number, candidates = draw(st.integers(fewest, 5)), draw(st.integers(1, 3))
    references, aligned = draw(st.booleans()), draw(st.booleans())
    sentences = []
    for i in range(number):
        lines = [f"S-{i}\t{draw(TEXTS)}"] + ([f"T-{i}\t{draw(TEXTS)}"] if references else [])
        for _ in range(candidates):
            score = draw(SCORES)
            lines += [f"H-{i}\t{score}\t{draw(TEXTS)}", f"D-{i}\t{score}\t{draw(TEXTS)}", f"P-{i}\t{score}"]
            lines += [f"A-{i}\t0-0"] if aligned else []
        sentences.append(lines)
    return sentences


def written(path, sentences, between=()):
    """A file of sentences with log lines before each."""
    lines = [line for i, block in enumerate(sentences) for line in [*between[i : i + 1], *block]]
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return str(path)


def outputs_of(sentences):
    """What must be read from them."""
    def texts(block, kind):
        return [line.split("\t", 2 if kind in "HD" else 1)[-1].removesuffix("\r") for line in block if line[0] == kind]
    references = [text for block in sentences for text in texts(block, "T")]
    columns = zip(*(texts(block, "D") for block in sentences))
    scores = zip(*([float(line.split("\t")[1]) for line in block if line[0] == "D"] for block in sentences))
    return Outputs([list(column) for column in columns], [texts(block, "S")[0] for block in sentences],
                   references or None, [list(column) for column in scores])


def merged(folder, paths, *options):
    """The bytes that merge_generations writes; nothing is left where it refuses."""
    whole = folder / "merged"
    whole.unlink(missing_ok=True)
    try:
        merge_generations.main([*paths, "--output", str(whole), *options])
    except UserError:
        assert not whole.exists() and not (folder / "merged.partial").exists()
        raise
    return whole.read_bytes()


def found(read, *arguments):
    """The result, or None where it is refused in one line."""
    try:
        return read(*arguments)
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return None


@given(generations(), st.lists(LOG_LINES, max_size=5), st.randoms(use_true_random=False))
def test_what_was_written_is_read(folder, sentences, between, draw):
    shuffled = draw.sample(sentences, len(sentences))
    path = written(folder / "whole", shuffled, between)
    assert read_generated([path]) == outputs_of(sentences)
    assert read_either(path) == outputs_of(sentences)


@given(generations(), st.lists(LOG_LINES, max_size=5), st.integers(1, 4), st.randoms(use_true_random=False))
def test_any_shards_give_the_whole(folder, sentences, between, shards, draw):
    parts = [[] for _ in range(shards)]
    for block in draw.sample(sentences, len(sentences)):
        draw.choice(parts).append(block)
    paths = [written(folder / f"shard{i}", part, between) for i, part in enumerate(parts)]
    whole = "".join(line + "\n" for block in sentences for line in block).encode()
    assert merged(folder, paths) == whole == merged(folder, [written(folder / "whole", sentences)])
    assert read_generated(paths) == outputs_of(sentences)


@given(generations(fewest=2), st.data())
def test_a_line_that_is_missing_or_twice_is_noticed(folder, sentences, data):
    i = data.draw(st.integers(0, len(sentences) - 1))
    j = data.draw(st.integers(0, len(sentences[i]) - 1))
    kind = sentences[i][j][0]
    times = data.draw(st.sampled_from([0, 2, 3]))
    sentences[i][j : j + 1] = [sentences[i][j]] * times
    path = written(folder / "whole", sentences)
    with pytest.raises(UserError, match=f"{re.escape(path)}:"):
        merged(folder, [path])
    if kind in "STHD":
        with pytest.raises(UserError, match=f"{re.escape(path)}:"):
            read_generated([path])


@given(generations(fewest=2), st.data())
def test_a_file_that_is_cut_anywhere_is_refused(folder, sentences, data):
    path = folder / "cut"
    whole = "".join(line + "\n" for block in sentences for line in block).encode()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(UserError):
        merged(folder, [str(path)], "--sentences", str(len(sentences)))
    outputs = found(read_generated, [str(path)])  # cannot know how many there should be
    expected = outputs_of(sentences)
    if outputs is not None and len(outputs) > 1:
        assert outputs.sources == expected.sources[: len(outputs)]
        assert outputs.candidates == [column[: len(outputs)] for column in expected.candidates]


@given(generations(), st.data())
def test_a_sentence_of_two_shards_is_refused(folder, sentences, data):
    again = data.draw(st.sampled_from(sentences))
    paths = [written(folder / "0", sentences), written(folder / "1", [again])]
    for read in (read_generated, lambda files: merged(folder, files)):
        with pytest.raises(UserError, match="twice"):
            read(paths)


@st.composite
def mutated(draw):
    """Generated text of which bytes were taken away, put in, moved or doubled."""
    whole = "".join(line + "\n" for block in draw(generations()) for line in block).encode()
    for _ in range(draw(st.integers(1, 3))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
        piece = draw(st.sampled_from(["cut", "twice", "other"]))
        new = {"cut": b"", "twice": whole[start:end] * 2}.get(piece)
        if new is None:
            new = draw(st.binary(max_size=4) | st.sampled_from([
                b"\n", b"\r\n", b"\t", b"D-0\t-1\tx\n", b"-99999999999999999999\t", b"D-" + b"9" * 5000 + b"\t1\tx\n",
                b"\nD-12345678901\t1\tx\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", "D-\u0661\t1\tx\n".encode(),
                b"1_0"]))
            end = max(start, min(end, start + len(new)))
        whole = whole[:start] + new + whole[end:]
    return whole


def plainly_read(whole):
    """{id: {kind: texts}} by the plainest reader that there is."""
    sentences = {}
    for line in whole.removeprefix(b"\xef\xbb\xbf").split(b"\n")[:-1]:
        match = LINE.fullmatch(line.removesuffix(b"\r"))
        if match:
            text = match[3] or b""
            text = text.partition(b"\t")[2] if match[1] in b"HD" else text
            sentences.setdefault(int(match[2]), {}).setdefault(match[1], []).append(text.decode())
    return sentences


@given(mutated() | st.binary(max_size=80))
def test_broken_files_are_refused_or_read_as_they_are(folder, whole):
    path = folder / "broken"
    path.write_bytes(whole)
    outputs = found(read_generated, [str(path)])
    if outputs is not None:
        plain = plainly_read(whole)
        assert sorted(plain) == list(range(len(outputs)))
        for i, sentence in plain.items():
            assert sentence[b"D"] == [column[i] for column in outputs.candidates]
            assert sentence.get(b"S", [None]) == [outputs.sources[i] if outputs.sources else None]
            assert sentence.get(b"T", [None]) == [outputs.references[i] if outputs.references else None]
    found(read_either, str(path))
    result = found(merged, folder, [str(path)])
    if result is not None:
        lines, kept = result.split(b"\n")[:-1], whole.removeprefix(b"\xef\xbb\xbf").split(b"\n")[:-1]
        assert sorted(lines) == sorted(line for line in kept if line in set(lines))


@given(st.lists(st.lists(TEXTS, min_size=1, max_size=4), min_size=1, max_size=3), st.booleans())
def test_plain_text_is_read_line_by_line(folder, columns, ended):
    paths = []
    for i, lines in enumerate(columns):
        assume(ended or lines[-1])
        path = folder / f"plain{i}"
        path.write_bytes("\n".join(lines).encode() + b"\n" * ended)
        paths.append(str(path))
    outputs = found(read_plain, paths)
    if len({len(lines) for lines in columns}) > 1:
        assert outputs is None
    else:
        assert outputs.candidates == [[line.removesuffix("\r") for line in lines] for lines in columns]


def run(main, *arguments):
    """Whether a script takes its arguments; else it says why in one line."""
    try:
        with redirect_stdout(StringIO()):
            main(list(arguments))
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return False
    return True


@given(sentences=generations(), plain=st.lists(TEXTS, min_size=1, max_size=5))
def test_any_text_is_scored(folder, sentences, plain):
    path = written(folder / "whole", sentences)
    lines = folder / "lines"
    lines.write_bytes("".join(line + "\n" for line in plain).encode())
    given_references = ("--references", str(lines), "--sources", str(lines))
    sound = len(plain) == len(sentences)
    assert run(evaluate.main, path, *given_references, "--confidence", "95", "--train-target", str(lines)) == sound


@given(sentences=generations(), plain=st.lists(TEXTS, min_size=1, max_size=5))
def test_any_text_is_scored_as_a_language_models(folder, sentences, plain):
    path = written(folder / "whole", sentences)
    lines = folder / "lines"
    lines.write_bytes("".join(line + "\n" for line in plain).encode())
    run(evaluate_lm.main, path, "--reference", str(lines), "--train", str(lines), "--max-words", "3")
    run(evaluate_lm.main, path, "--source-prefixes")


@pytest.mark.endurance
def test_ten_minutes_of_the_parsers(folder):
    """The properties above in turns, each turn with a seed of its own."""
    end = time.monotonic() + 60 * MINUTES
    properties = [test_what_was_written_is_read, test_any_shards_give_the_whole,
                  test_a_line_that_is_missing_or_twice_is_noticed, test_a_file_that_is_cut_anywhere_is_refused,
                  test_a_sentence_of_two_shards_is_refused, test_broken_files_are_refused_or_read_as_they_are,
                  test_plain_text_is_read_line_by_line]
    for turn, check in enumerate(cycle(properties)):
        if time.monotonic() > end:
            break
        seed(turn)(check)(folder)
    print(f"{turn * settings.default.max_examples} examples")

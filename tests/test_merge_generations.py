"""Sharded generation and scripts/merge_generations.py."""

import sys

import pytest
from helpers import REPOSITORY, run_module
from test_cli import checkpoint, generate, work  # noqa: F401  a fixture

from diffusion_fairseq.errors import UserError

sys.path.insert(0, str(REPOSITORY / "scripts"))
import merge_generations  # noqa: E402, I001

SHARDS = 3


def lines(number, hypotheses=2):
    """As fairseq-generate prints a sentence."""
    found = [f"S-{number}\tsource {number}", f"T-{number}\ttarget\u2028{number}"]
    for _ in range(hypotheses):
        found += [f"H-{number}\t-1.5\ta b", f"D-{number}\t-1.5\ta b", f"P-{number}\t-1.0 -2.0"]
    return found


def write(path, sentences, tail=True, **options):
    text = [line for number in sentences for line in lines(number, **options)]
    path.write_text("\n".join([*text, "Generate test with beam=5: BLEU4 = 3.14"] if tail else text) + "\n")
    return path


def merge(*arguments):
    merge_generations.main(list(map(str, arguments)))


def test_shards_give_the_bytes_of_a_single_output(tmp_path):
    whole = write(tmp_path / "whole.txt", [4, 1, 0, 3, 2, 5])
    parts = [write(tmp_path / f"{i}.txt", part) for i, part in enumerate(([4, 3], [1, 2], [0, 5]))]
    for name, files in (("one", [whole]), ("many", parts), ("other", parts[::-1])):
        merge(*files, "--output", tmp_path / f"{name}.merged", "--sentences", 6)
    merged = [(tmp_path / f"{name}.merged").read_bytes() for name in ("one", "many", "other")]
    assert merged[0] == merged[1] == merged[2]
    assert merged[0].decode().split("\n")[:-1] == [line for number in range(6) for line in lines(number)]


def test_the_steps_of_a_sentence_stay_with_it_however_many_it_took(tmp_path):
    files = [tmp_path / "0.txt", tmp_path / "1.txt"]
    for number, file in enumerate(files):
        steps = [f"E-{number}_{step}\tdraft {step}" for step in range(2 + number)]
        file.write_text("\n".join([*lines(number), *steps]) + "\n")
    merge(*files, "--output", tmp_path / "merged")
    assert (tmp_path / "merged").read_text() == files[0].read_text() + files[1].read_text()


@pytest.mark.parametrize("parts, options, said", [
    (([0, 1], [3]), (), "1 of 4 sentences are missing (2)"),
    (([0, 1], [2]), ("--sentences", 5), "2 of 5 sentences are missing (3, 4)"),
    (([0, 1], [2, 1]), (), "sentence 1 is there twice, first at"),
    (([0, 1], [2]), ("--sentences", 2), "sentence 2 is beyond the 2 of --sentences"),
    (([],), (), "no line of a sentence"),
])
def test_what_is_missing_or_twice_is_named(tmp_path, parts, options, said):
    files = [write(tmp_path / f"{i}.txt", part) for i, part in enumerate(parts)]
    with pytest.raises(UserError) as raised:
        merge(*files, "--output", tmp_path / "merged", *options)
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "merged").exists()


def test_a_shard_that_was_cut_short_is_named_with_its_line(tmp_path):
    first, second = write(tmp_path / "0.txt", [0, 1, 2]), write(tmp_path / "1.txt", [3, 4], tail=False)
    second.write_text("\n".join(second.read_text().split("\n")[:11]) + "\n")
    with pytest.raises(UserError) as raised:
        merge(first, second, "--output", tmp_path / "merged")
    assert f"{second}:9: sentence 4 has 0 D- lines, most have 2" in str(raised.value)


def test_the_output_may_not_be_a_shard(tmp_path, capsys):
    first = write(tmp_path / "0.txt", [0])
    before = first.read_bytes()
    with pytest.raises(SystemExit):
        merge(first, "--output", first)
    assert "is one of the shards" in capsys.readouterr().err and first.read_bytes() == before


@pytest.mark.slow
def test_sharded_generation_is_merged_to_what_one_process_writes(work, tmp_path):  # noqa: F811
    (tmp_path / "whole.txt").write_text(generate(work, "--batch-size", "16").stdout)
    for shard in range(SHARDS):
        done = generate(work, "--batch-size", "16", "--num-shards", SHARDS, "--shard-id", shard)
        (tmp_path / f"{shard}.txt").write_text(done.stdout)
        assert 0 < done.stdout.count("\nH-") < 101
    files = [tmp_path / f"{shard}.txt" for shard in range(SHARDS)]
    merge(tmp_path / "whole.txt", "--output", tmp_path / "one", "--sentences", 101)
    merge(*files, "--output", tmp_path / "many", "--sentences", 101)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()
    wrong = run_module("generate", work / "bin", "--task", "seq2seq_diffusion", "--path", checkpoint(work), "--cpu",
                       "--num-shards", "2", "--shard-id", "2", check=False)
    assert wrong.returncode == 1 and "--shard-id must be from 0 to 1" in wrong.stderr.strip().splitlines()[-1]

"""scripts/split_pairs.py: two files become three splits, the same ones each time, with no source in two of them."""

import re

import pytest
from test_study import run_script

SPLITS = ("train", "valid", "test")


def split(tmp_path, sources, targets, *options, check=True):
    for name, lines in (("a.txt", sources), ("b.txt", targets)):
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    return run_script("split_pairs.py", tmp_path / "a.txt", tmp_path / "b.txt", "--out", tmp_path / "out", *options,
                      check=check)


def written(tmp_path):
    def lines(name, side):
        return (tmp_path / "out" / f"{name}.{side}").read_text().splitlines()

    return {name: list(zip(lines(name, "src"), lines(name, "tgt"))) for name in SPLITS}


def test_every_pair_comes_to_one_split_and_equal_sources_to_the_same_one(tmp_path):
    sources = [f"text {number // 2}" for number in range(200)] + ["", "alone"]
    targets = [f"word {number}" for number in range(200)] + ["nothing", " "]
    said = split(tmp_path, sources, targets).stdout
    found = written(tmp_path)
    assert "train 180, valid 10, test 10; 2 with an empty side left out" in said
    assert sorted(sum(found.values(), [])) == sorted(zip(sources[:200], targets[:200]))
    assert [pair for pair in zip(sources, targets) if pair in set(found["train"])] == found["train"]
    chosen = {name: {source for source, _ in pairs} for name, pairs in found.items()}
    assert not chosen["train"] & (chosen["valid"] | chosen["test"]) and not chosen["valid"] & chosen["test"]
    split(tmp_path, sources, targets)
    assert written(tmp_path) == found
    split(tmp_path, sources, targets, "--valid", "1", "--test", "30")
    assert [len(pairs) for pairs in written(tmp_path).values()] == [168, 2, 30]


def test_a_pair_stays_one_line_of_each_side(tmp_path):
    sources = [f"text {number}" + "\r\u2028 with  ends\x0bof lines" for number in range(40)]
    split(tmp_path, sources, [f"word {number}" for number in range(40)])
    pairs = sum(written(tmp_path).values(), [])
    assert sorted(pairs) == sorted((f"text {i} with ends of lines", f"word {i}") for i in range(40))


@pytest.mark.parametrize("targets, options, message", [
    (["b"] * 3, (), "a.txt has 4 lines, .*b.txt has 3: line n of one must belong to line n of the other"),
    (["b"] * 4, ("--valid", "3"), "4 different sources are too few, train would be empty"),
    (["b"] * 4, ("--test", "0"), "argument --test: must be at least 1, got 0"),
])
def test_what_cannot_be_split_is_named_in_one_line(tmp_path, targets, options, message):
    failed = split(tmp_path, ["a", "b", "c", "d"], targets, *options, check=False)
    assert failed.returncode and not (tmp_path / "out").exists()
    assert re.search(message, failed.stderr.splitlines()[-1])

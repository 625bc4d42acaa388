"""The translation set: pairs of descriptions in two languages on a made index; the real indexes where there is apt."""

import json
import lzma
import shutil
import subprocess
import sys

import pytest
from test_data_debsum import REPOSITORY, column, entry, sentence, write_index

sys.path.insert(0, str(REPOSITORY / "scripts"))
import _translation  # noqa: E402, I001
import prepare_translation  # noqa: E402
from _debsum import Pair, own_paragraphs, runs  # noqa: E402


def german(text):
    """Another word for each word, with a letter that English has not."""
    return " ".join(f"ü{word[::-1]}" if word.isalpha() else word for word in text.split())


def translation(package):
    """(synopsis, extended description) as an index has them."""
    lines = [line if line.strip() == "." else " " + german(line) for line in package.body.split("\n")]
    return german(package.synopsis), "\n".join(lines)


def write_indexes(folder, packages, translated):
    write_index(folder, packages)
    texts = ""
    for package in translated:
        text = "\n".join(translation(package))
        texts += f"Package: {package.name}\nDescription-md5: {package.md5}\nDescription-de: {text}\n\n"
    (folder / "Translation-de.xz").write_bytes(lzma.compress(texts.encode()))
    return folder


def made(count=150):
    """Packages of two paragraphs; of three the first has a sibling of its source, the last a text of the second."""
    packages = []
    for number in range(count):
        name = f"package{chr(97 + number // 26)}{chr(97 + number % 26)}"
        text = sentence(f"{name} first")
        if number % 3 == 2:
            text = " ".join(packages[-1].body.split("\n")[0].split()[:9]) + " " + text
        packages.append(entry(name, body=f"{text}\n\n{sentence(name + ' second', 12)}"))
        if number % 3 == 0:
            packages.append(entry(name + "-dev", source=name, body=f"{sentence(name + ' headers', 10)}"))
    return packages


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(output folder, pairs of each split, packages, index folder) of a made index, of which one in ten is not
    translated."""
    folder, packages = tmp_path_factory.mktemp("translation"), made()
    translated = [package for number, package in enumerate(packages) if number % 10]
    indexes = write_indexes(folder / "indexes", packages, translated)
    sizes = prepare_translation.prepare(folder / "out", indexes)
    return folder / "out", sizes, translated, indexes


def test_synopses_and_paragraphs_are_paired(prepared):
    out, sizes, translated, _ = prepared
    pairs = [(english, other) for split in sizes for english, other in
             zip(column(out, f"{split}.tgt"), column(out, f"{split}.src"), strict=True)]
    assert len(pairs) == sum(sizes.values()) == len(set(pairs))
    assert all(german(english.rstrip(".")) == other.rstrip(".") or german(english) == other
               for english, other in pairs)
    names = [line.split("\t")[0] for split in sizes for line in column(out, f"{split}.id")]
    assert set(names) <= {package.name for package in translated}
    # A synopsis and the paragraphs of nearly all packages; a few training pairs share a run with an evaluation pair.
    assert len(pairs) > 0.85 * sum(1 + len(package.body.split("\n .\n")) for package in translated)


def test_no_source_and_no_run_of_words_is_in_two_splits(prepared):
    out, sizes, _, _ = prepared
    assert sizes["train"] > 5 * max(sizes["valid"], sizes["test"]) and min(sizes.values()) > 0
    sources = {split: {line.split("\t")[1] for line in column(out, f"{split}.id")} for split in sizes}
    assert not sources["train"] & (sources["valid"] | sources["test"]) and not sources["valid"] & sources["test"]
    for side in ("src", "tgt"):
        found = {split: set().union(*(runs(line, 8) for line in column(out, f"{split}.{side}"))) for split in sizes}
        assert not found["train"] & (found["valid"] | found["test"])


def test_sources_with_a_common_text_share_a_split(prepared):
    out, sizes, _, _ = prepared
    split_of = {line.split("\t")[1]: split for split in sizes for line in column(out, f"{split}.id")}
    common = 0
    for number in range(2, 150, 3):
        one, other = (f"package{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in (number, number - 1))
        if one in split_of and other in split_of:
            common += 1
            assert split_of[one] == split_of[other]
    assert common > 30 and set(split_of.values()) == set(sizes)


def test_a_split_depends_on_the_name_of_the_group_alone():
    found = [_translation.split_of(f"source{number}") for number in range(2000)]
    assert found == [_translation.split_of(f"source{number}") for number in range(2000)]
    for name in ("valid", "test"):
        assert 0.03 < found.count(name) / len(found) < 0.07


def test_leaks_of_either_side_are_dropped():
    groups = {name: name for name in (f"s{number}" for number in range(200))}
    split_of = {name: _translation.split_of(name) for name in groups}
    held = next(name for name in groups if split_of[name] == "test")
    valid = next(name for name in groups if split_of[name] == "valid")
    trained = [name for name in groups if split_of[name] == "train"][:4]
    long, other = sentence("long", 20), german(sentence("other", 20))
    pairs = [Pair(held, held, "", "0", long, other), Pair(valid, valid, "", "0", sentence("v"), german(sentence("v")))]
    texts = [(f"{long} and more", "anders"), ("something else", f"{other} mehr"), ("something new", other),
             (sentence("own"), german(sentence("own")))]
    pairs += [Pair(name, name, "", str(number), *text) for number, (name, text) in enumerate(zip(trained, texts))]
    splits = _translation.split(pairs, groups)
    assert [pair.source for pair in splits["train"]] == trained[3:]
    assert splits["train"][0].description == sentence("own") and splits["test"][0].description == long


@pytest.mark.parametrize("keep, good, bad", [
    (_translation.is_translated, ("a tool", "ein Werkzeug"), ("Foo Bar Baz", "Foo Bar Baz")),
    (_translation.has_fit_lengths, ("one two three", "eins zwei drei"), ("one two three", "einszwei drei")),
    (_translation.has_fit_lengths, ("one two three", "eins zwei drei"), ("word " * 101, "Wort " * 100)),
    (_translation.has_like_lengths, ("a" * 10, "b" * 25), ("a" * 10, "b" * 26)),
])
def test_filters(keep, good, bad):
    assert keep in _translation.FILTERS.values()
    assert keep(Pair("", "", "", "", *good)) and not keep(Pair("", "", "", "", *bad))


def test_paragraphs_that_do_not_match_are_left_out():
    ((package, own),), _ = own_paragraphs([entry("one", body="first text here\n\nsecond text here")])
    synopsis, body = translation(package)
    pairs = _translation.text_pairs(package, own, synopsis, body)
    assert [pair.description for pair in pairs][1:] == ["first text here.", "second text here."]
    assert [pair.synopsis for pair in pairs][1:] == [german("first text here") + ".", german("second text here") + "."]
    (only,) = _translation.text_pairs(package, own, synopsis, body.replace("\n .\n", "\n"))
    assert only.description == package.synopsis
    # A paragraph that is boilerplate in English is left out by its number.
    assert [pair.description for pair in _translation.text_pairs(package, {1: own[1]}, synopsis, body)][1:] == [own[1]]


def test_boilerplate_and_repeated_texts_come_once_or_never():
    packages = [entry(name, body=f"{sentence(name)}\n\nThis is a part of the common suite of programs.")
                for name in ("alpha", "beta", "gamma", "delta")]
    twice = [entry("one", body=sentence("twice", 30)), entry("two", body=sentence("twice", 30))]
    everything = packages + twice
    splits, counts = prepare_translation.select(everything, {p.md5: translation(p) for p in everything})
    texts = [pair.description for split in splits.values() for pair in split]
    assert counts["boilerplate paragraphs"] == 4 and counts["translated descriptions"] == 6
    assert not any("common suite" in text for text in texts)
    assert sum(text.endswith(sentence("twice", 30)) for text in texts) == 1


def test_a_second_run_keeps_the_files_until_the_language_changes(prepared, monkeypatch):
    out, sizes, _, indexes = prepared
    monkeypatch.setattr(prepare_translation, "select", lambda *_: pytest.fail("built again"))
    assert prepare_translation.prepare(out, indexes) == sizes
    shutil.copy(indexes / "Translation-de.xz", indexes / "Translation-fr.xz")
    with pytest.raises(pytest.fail.Exception, match="built again"):
        prepare_translation.prepare(out, indexes, "fr")


@pytest.mark.parametrize("options, message", [
    (["--language", "fr_CA"], "holds no Translation-fr_CA.xz; put a mirror's Packages.xz and Translation-en.xz and"),
    (["--language", "en"], "'en' is no language beside English"),
])
def test_errors_are_one_line(tmp_path, options, message):
    indexes = write_indexes(tmp_path / "indexes", made(3), made(3))
    done = subprocess.run([sys.executable, REPOSITORY / "scripts/prepare_translation.py", "--out", tmp_path / "out",
                           "--indexes", indexes, *options], capture_output=True, text=True)
    assert done.returncode and message in done.stderr.splitlines()[-1] and not (tmp_path / "out").exists()


def test_too_few_translations_are_refused(tmp_path):
    packages = made(3)
    indexes = write_indexes(tmp_path / "indexes", packages, packages[:1])
    with pytest.raises(prepare_translation.DataError, match="too few descriptions in de"):
        prepare_translation.prepare(tmp_path / "out", indexes)


@pytest.mark.apt
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get on this machine")
def test_real_indexes(tmp_path):
    done = subprocess.run([sys.executable, REPOSITORY / "scripts/prepare_translation.py", "--out", tmp_path],
                          capture_output=True, text=True)
    if "check the network" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    sizes = json.loads((tmp_path / "translation.json").read_text())["pairs"]
    assert sizes["train"] > 15_000 and min(sizes["valid"], sizes["test"]) > 500
    for side in ("src", "tgt"):
        assert not set(column(tmp_path, f"train.{side}")) & set(column(tmp_path, f"test.{side}"))

"""Package descriptions of Debian's indexes in several languages, for the preparers of texts made of them. Standard
library only."""

import argparse
import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Mapping, NamedTuple

from _apt import Apt
from _data import DataError, progress, read_compressed, sha256, utf8_lines, write_files
from _debsum import Package, Pair

SCRIPTS = Path(__file__).resolve().parent


class Indexes(NamedTuple):
    packages: list[Path]
    translations: dict[str, list[Path]]     # language -> Translation files


# ---- files

def mirror_hint(languages: tuple[str, ...]) -> str:
    """What to do without apt."""
    names = " and ".join(["Packages.xz", *(f"Translation-{language}.xz" for language in languages)])
    return f"put a mirror's {names} into a folder and name it with --indexes"


def fetch_indexes(folder: Path, *languages: str) -> Indexes:
    """Fetch the indexes of apt's sources into folder, with the descriptions in these languages."""
    hint = mirror_hint(languages)
    listed = Apt(folder, ",".join(languages), hint).get(
        "indextargets", "--format", "$(CREATED_BY)|$(CODENAME)|$(LANGUAGE)|$(FILENAME)")
    found = Indexes([], {language: [] for language in languages})
    for kind, codename, language, name in (line.split("|", 3) for line in listed.splitlines()):
        # "bookworm-updates", "bookworm-security" and "-backports" repeat packages of the release.
        if "-" not in codename and kind in ("Packages", "Translations"):
            (found.packages if kind == "Packages" else found.translations[language]).append(Path(name))
    lacking = [language for language, paths in found.translations.items() if not paths]
    if lacking or not found.packages:
        raise DataError(f"apt's sources have no package descriptions in {', '.join(lacking or languages)}; {hint}")
    return found


def find_indexes(folder: Path, *languages: str) -> Indexes:
    """The indexes that a user put into a folder, compressed or not."""
    def present(name: str) -> list[Path]:
        paths = [folder / (name + suffix) for suffix in (".xz", ".bz2", ".gz", "")]
        found = [path for path in paths if path.is_file()]
        if not found:
            raise DataError(f"{folder} holds no {paths[0].name}; {mirror_hint(languages)}")
        return found[:1]

    return Indexes(present("Packages"), {language: present(f"Translation-{language}") for language in languages})


def index_checksum(folder: Path | None, *languages: str) -> str:
    """What stands for the indexes in a report: the checksum of a folder's, or that they are apt's."""
    if folder is None:
        return "apt"
    found = find_indexes(folder, *languages)
    return sha256(*found.packages, *sum(found.translations.values(), []))


@contextmanager
def indexes_of(folder: Path | None, *languages: str) -> Iterator[Indexes]:
    """The indexes of a folder, or those of apt's sources in a temporary one."""
    if folder is not None:
        yield find_indexes(folder, *languages)
        return
    progress("fetching the package indexes of apt's sources")
    with tempfile.TemporaryDirectory(prefix="descriptions-") as fetched:
        yield fetch_indexes(Path(fetched), *languages)


# ---- contents

def stanzas(path: Path, wanted: set[str]) -> Iterator[dict[str, str]]:
    """The wanted fields of each stanza of an index; continued lines are joined by line feeds."""
    fields: dict[str, str] = {}
    field = ""
    for line in utf8_lines(read_compressed(path), str(path)):
        if not line:
            if fields:
                yield fields
            fields, field = {}, ""
        elif line[0] in " \t":
            if field:
                fields[field] += "\n" + line
        else:
            name, _, value = line.partition(":")
            field = name if name in wanted else ""
            if field:
                fields[field] = value.strip()
    if fields:
        yield fields


def read_descriptions(indexes: Indexes, language: str) -> dict[str, tuple[str, str]]:
    """{Description-md5: (synopsis, extended description)} in a language; the MD5 is that of the English text."""
    texts = {}
    for path in indexes.translations[language]:
        for fields in stanzas(path, {"Description-md5", f"Description-{language}"}):
            if len(fields) == 2:
                synopsis, _, body = fields[f"Description-{language}"].partition("\n")
                texts[fields["Description-md5"]] = synopsis, body
    return texts


def read_packages(indexes: Indexes) -> list[Package]:
    """The packages whose English description the indexes hold, each name once."""
    texts, packages = read_descriptions(indexes, "en"), {}
    for path in indexes.packages:
        for fields in stanzas(path, {"Package", "Source", "Section", "Description-md5"}):
            if "Package" in fields and fields.get("Description-md5") in texts:
                name, md5 = fields["Package"], fields["Description-md5"]
                packages[name] = Package(name, fields.get("Source", name).split()[0],
                                         fields.get("Section", "unknown"), md5, *texts[md5])
    if not packages:
        raise DataError(f"{indexes.packages[0]} and {indexes.translations['en'][0]} have no package in common; "
                        "take both from one release")
    return list(packages.values())


# ---- results

def columns(splits: Mapping[str, list[Pair]], source: Callable[[Pair], str],
            target: Callable[[Pair], str]) -> dict[str, list[str]]:
    """{file name: lines} of the aligned files; .id has package, source, section and md5 between tabs."""
    parts = {"src": source, "tgt": target, "id": lambda pair: "\t".join(pair[:4])}
    return {f"{split}.{ending}": [part(pair) for pair in pairs]
            for split, pairs in splits.items() for ending, part in parts.items()}


def add_set_options(parser: argparse.ArgumentParser) -> None:
    """Where a set is made, of which indexes, and whether anew."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder for the files; made when absent, kept when it already holds this set")
    parser.add_argument("--indexes", type=Path, metavar="DIR",
                        help="read Packages and Translation-LANGUAGE (.xz, .bz2, .gz or plain) of DIR, without apt")
    parser.add_argument("--force", action="store_true", help="build again even if DIR holds this set")


def kept_set(out: Path, report: str, inputs: dict[str, str]) -> dict[str, int] | None:
    """{split: pairs}, if out holds, unchanged, what these inputs gave at an earlier run."""
    try:
        found = json.loads((out / report).read_text(encoding="utf-8"))
        same = found["inputs"] == inputs and all(sha256(out / name) == digest
                                                 for name, digest in found["sha256"].items())
        return found["pairs"] if same else None
    except (OSError, ValueError, KeyError):
        return None


def write_set(out: Path, report: str, files: dict[str, list[str]], content: dict) -> None:
    """Write the files and, last, a report of this content and of their checksums."""
    (out / report).unlink(missing_ok=True)
    write_files(out, files)
    content = {**content, "sha256": {name: sha256(out / name) for name in files}}
    write_files(out, {report: json.dumps(content, indent=1).split("\n")})

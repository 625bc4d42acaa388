"""Broken and hostile input: what is prepared, the command, and what its one line must name."""

import shutil
from functools import partial
from pathlib import Path
from typing import Callable, Dict, NamedTuple

import torch
from hostile import pickled_calls, program

MODEL = "--task seq2seq_diffusion --max-source-positions 16 --max-target-positions 12 --cpu"
CHECKPOINT = "--path WORK/ck/checkpoint_last.pt --diffusion-steps 2"
TRAIN = (f"train WORK/bin {MODEL} --arch genie_tiny --criterion diffusion_vlb --optimizer adam --lr 3e-3 "
         "--batch-size 32 --num-workers 0 --disable-validation --max-update 2")
DICTIONARIES = ("dict.src.txt", "dict.tgt.txt")
Prepare = Callable[[Path, Path], None]


class Case(NamedTuple):
    """A command in a folder of its own, HERE, beside what all share, WORK; options may be given again, the last counts.

    Attributes:
        names: pattern of the line of error, or where there is to be none, of the output.
        prepare: writes into HERE.
        text: what is piped in.
    """

    command: str
    names: str
    prepare: Prepare = lambda here, work: None
    text: bytes = b""


def generate(options: str = "", data: str = "WORK/bin") -> str:
    return f"generate {data} {MODEL} {CHECKPOINT} {options}"


def interactive(options: str = "") -> str:
    return f"interactive WORK/bin {MODEL} {CHECKPOINT} {options}"


def train(options: str = "", data: str = "WORK/bin") -> str:
    return f"{TRAIN} --save-dir HERE/ck {options}".replace("WORK/bin", data)


def files(contents: Dict[str, bytes]) -> Prepare:
    def prepare(here: Path, work: Path) -> None:
        for name, content in contents.items():
            path = here / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return prepare


def data(edit: Callable[[Path], None], of: str = "bin") -> Prepare:
    """A copy of WORK's data in HERE/bin, edited."""
    def prepare(here: Path, work: Path) -> None:
        shutil.copytree(work / of, here / "bin")
        edit(here / "bin")

    return prepare


def dictionaries(edit: Callable[[bytes], bytes]) -> Prepare:
    def each(folder: Path) -> None:
        for name in DICTIONARIES:
            (folder / name).write_bytes(edit((folder / name).read_bytes()))

    return data(each)


def cut(folder: Path, names: str, size: int) -> None:
    for path in folder.glob(names):
        path.write_bytes(path.read_bytes()[:size])


def remove(folder: Path, names: str) -> None:
    for path in folder.glob(names):
        path.unlink()


def overwrite(folder: Path, names: str, content: bytes) -> None:
    for path in folder.glob(names):
        path.write_bytes(content)


def uneven(folder: Path) -> None:
    for ending in ("bin", "idx"):
        shutil.copy(folder / f"valid.src-tgt.src.{ending}", folder / f"test.src-tgt.src.{ending}")


def checkpoint(edit: Callable[[dict], object]) -> Prepare:
    """The shared checkpoint, edited, as HERE/ck.pt; what edit returns is saved, if that is not None."""
    def prepare(here: Path, work: Path) -> None:
        state = torch.load(work / "ck" / "checkpoint_last.pt", weights_only=True)
        other = edit(state)
        torch.save(state if other is None else other, here / "ck.pt")

    return prepare


def model_option(state: dict, name: str, value: object) -> None:
    state["cfg"]["model"][name] = value


def payload(kind: str) -> Prepare:
    """A checkpoint that makes HERE/marker where it is loaded as code."""
    def prepare(here: Path, work: Path) -> None:
        def edit(state: dict) -> None:
            if kind == "option":
                state["cfg"]["model"]["noise_schedule"] = program(here / "marker")
            else:
                state["extra_state"]["payload"] = pickled_calls(here / "marker")[kind]

        checkpoint(edit)(here, work)

    return prepare


def head_of_checkpoint(here: Path, work: Path) -> None:
    (here / "ck.pt").write_bytes((work / "ck" / "checkpoint_last.pt").read_bytes()[:5000])


def remove_tensor(state: dict, name: str) -> None:
    del state["model"][name]


def first_tensor(state: dict, change: Callable) -> None:
    state["model"]["norm.weight"] = change(state["model"]["norm.weight"])


OWN = generate("--path HERE/ck.pt")
CHECKPOINTS = {
    **{f"checkpoint with code: {kind}": Case(OWN, "checkpoint HERE/ck.pt refused: it holds .*use a file", payload(kind))
       for kind in ("system", "system in a Namespace", "eval", "exec", "option")},
    "checkpoint with code, in training": Case(train("--restore-file HERE/ck.pt"), "HERE/ck.pt refused.*use a file",
                                              payload("system")),
    "checkpoint with code, in a script": Case(
        "evaluate_bound.py WORK/bin --path HERE/ck.pt", "HERE/ck.pt refused.*use a file", payload("system")),
    "checkpoint with code, exported": Case(
        "export_checkpoint.py --ema HERE/ck.pt --output HERE/o.pt", "HERE/ck.pt refused.*use", payload("system")),
    "checkpoint truncated": Case(OWN, "HERE/ck.pt cannot be read.*truncated.*use a file", head_of_checkpoint),
    "checkpoint truncated, in training": Case(
        train("--finetune-from-model HERE/ck.pt"), "HERE/ck.pt cannot be read.*truncated.*use", head_of_checkpoint),
    "checkpoint empty": Case(OWN, "HERE/ck.pt cannot be read.*truncated.*use a file", files({"ck.pt": b""})),
    "checkpoint of text": Case(OWN, "HERE/ck.pt (cannot be read|refused).*use a file", files({"ck.pt": b"some text"})),
    "checkpoint is a folder": Case(generate("--path HERE"), "HERE cannot be read.*directory.*use a file"),
    "checkpoint missing": Case(OWN, "HERE/ck.pt.*--path takes checkpoint files"),
    "checkpoint without weights": Case(OWN, "HERE/ck.pt.*use a file", checkpoint(lambda state: {"cfg": state["cfg"]})),
    "checkpoint of weights alone": Case(OWN, "HERE/ck.pt.*use a file", checkpoint(lambda state: state["model"])),
    "checkpoint is a list": Case(OWN, "HERE/ck.pt.*use a file", checkpoint(lambda state: [1, 2])),
    "checkpoint of another architecture": Case(
        OWN, "HERE/ck.pt.*architecture 'transformer'.*it takes .*genie",
        checkpoint(lambda state: model_option(state, "_name", "transformer"))),
    "checkpoint of an unknown architecture": Case(
        OWN, "HERE/ck.pt.*architecture 'magic'.*it takes .*genie",
        checkpoint(lambda state: model_option(state, "_name", "magic"))),
    "checkpoint of another version: a schedule": Case(
        OWN, "HERE/ck.pt.*--noise-schedule.*'later'.*sqrt",
        checkpoint(lambda state: model_option(state, "noise_schedule", "later"))),
    "checkpoint lacks a tensor": Case(
        OWN, "HERE/ck.pt.*does not fit.*norm.bias.*use", checkpoint(lambda state: remove_tensor(state, "norm.bias"))),
    "checkpoint has one tensor more": Case(
        OWN, "HERE/ck.pt.*does not fit.*surplus.*use",
        checkpoint(lambda state: state["model"].update(surplus=torch.zeros(3)))),
    "checkpoint of another width": Case(
        OWN, "HERE/ck.pt.*does not fit.*use", checkpoint(lambda state: first_tensor(state, lambda w: w[:3].clone()))),
    "checkpoint not finite": Case(
        OWN, "HERE/ck.pt.*not finite.*norm.weight.*take an earlier",
        checkpoint(lambda state: first_tensor(state, lambda w: w * float("nan")))),
    "checkpoint for another task": Case(
        f"generate WORK/lm --task diffusion_lm --cpu {CHECKPOINT}", "checkpoint_last.pt.*pass --task seq2seq"),
    "checkpoint without --task": Case(
        "generate WORK/bin --cpu --path WORK/ck/checkpoint_last.pt", "checkpoint_last.pt.*pass --task seq2seq"),
    "options without --task": Case(
        f"generate WORK/bin --cpu {CHECKPOINT}", "--diffusion-steps 2: an option of --task .*seq2seq_diffusion"),
    "checkpoint of another classifier": Case(
        generate("--classifier WORK/ck/checkpoint_last.pt --classifier-label good"), "checkpoint_last.pt.*genie_tiny"),
    "resumed with other sizes": Case(
        train("--restore-file WORK/ck/checkpoint_last.pt --ffn-dim 8"),
        "checkpoint_last.pt does not fit.*--ffn-dim 128: give the same"),
    "resumed as another function of the same weights": Case(
        train("--restore-file WORK/ck/checkpoint_last.pt --noise-schedule linear --parameterization noise"),
        "checkpoint_last.pt was trained with --noise-schedule sqrt, --parameterization x0: give the same, or start"),
    "resumed with another criterion": Case(
        train("--restore-file WORK/ck/checkpoint_last.pt --criterion diffusion_anchor"),
        "checkpoint_last.pt was trained with another --criterion .DiffusionVLB.* vs DiffusionAnchor.*: give the same"),
    "resumed in another precision": Case(
        train("--restore-file WORK/ck/checkpoint_last.pt --bf16"),
        "checkpoint_last.pt was trained with another --optimizer and precision .*Adam.* vs FP16Optimizer here.*: give"),
    "resumed from nothing": Case(train("--restore-file HERE/none.pt"), "--restore-file HERE/none.pt: no such.*name"),
    "fine-tuned from nothing": Case(
        train("--finetune-from-model HERE/none.pt"), "--finetune-from-model HERE/none.pt: no such.*name"),
    "resumed and fine-tuned": Case(
        train("--restore-file HERE/a.pt --finetune-from-model HERE/b.pt"), "--restore-file.*leave one out"),
    "checkpoint to start from is of another size": Case(
        train("--arch genie_small --finetune-from-model WORK/ck/checkpoint_last.pt"),
        "checkpoint_last.pt does not fit this model: it was trained with --arch genie_tiny: give the same"),
}

OWN = generate(data="HERE/bin")
DICTIONARY = {
    "dictionary with a word twice": Case(
        OWN, r"HERE/bin/dict.src.txt, line 37: the word 'w1' is there twice, first on line \d+; take",
        dictionaries(lambda text: text + b"w1 3\n")),
    "dictionary with padding": Case(
        OWN, "dict.src.txt, line 1: the word '<pad>'.*by itself; take", dictionaries(lambda text: b"<pad> 1\n" + text)),
    "dictionary without counts": Case(
        OWN, "dict.src.txt, line 1: not 'word count' but 'a'; take", dictionaries(lambda text: b"a\nb\n")),
    "dictionary empty": Case(OWN, "dict.src.txt holds no word: binarise", dictionaries(lambda text: b"")),
    "dictionary not text": Case(
        OWN, "dict.src.txt, line 1: not UTF-8; take", dictionaries(lambda text: bytes(range(128, 256)))),
    "dictionary in Latin-1": Case(
        OWN, "dict.src.txt, line 3: not UTF-8; take", dictionaries(lambda text: b"a 1\nb 1\n\xe9t\xe9 1\n")),
    "dictionary missing": Case(OWN, "no dictionary HERE/bin/dict.tgt.txt: run fairseq-preprocess",
                               data(partial(remove, names="dict.tgt.txt"))),
    "dictionary is a folder": Case(
        OWN, "dict.src.txt", data(lambda folder: ((folder / "dict.src.txt").unlink(),
                                                  (folder / "dict.src.txt").mkdir()))),
    "dictionary of other words": Case(
        OWN, "checkpoint_last.pt.*another (source|target) dictionary.*binarise",
        dictionaries(lambda text: text.replace(b"w", b"v"))),
    "dictionary smaller": Case(
        OWN, "checkpoint_last.pt.*dictionary of 40 types.*has 6.*use", dictionaries(lambda text: b"w1 1\nw2 1\n")),
    "dictionary smaller than the data": Case(
        train(data="HERE/bin"), r"train.src-tgt.src.bin.*another dictionary: its sentence \d+ .*has 6; take",
        dictionaries(lambda text: b"w1 1\nw2 1\n")),
    "dictionary without mask": Case(
        "train HERE/bin --task diffusion_lm --arch diffusion_lm_tiny --criterion diffusion_vlb --optimizer adam "
        "--batch-size 4 --cpu --save-dir HERE/ck", "HERE/bin/dict.txt lacks the word <mask>: append",
        data(lambda folder: overwrite(folder, "dict.txt", b"w1 1\nw2 1\n"), of="lm")),
    "dictionary for preprocessing is none": Case(
        "preprocess --only-source --trainpref WORK/train.src --srcdict HERE/d --destdir HERE/out --workers 1",
        "HERE/d, line 1: not 'word count'", files({"d": b"this is no dictionary\n"})),
}

BINARY = {
    "data folder missing": Case(generate(data="HERE/none"), "no such data folder: HERE/none; make it"),
    "data folder empty": Case(generate(data="HERE"), "HERE holds no pair of languages: give"),
    "data folder one too high": Case(
        generate(data="HERE"), "HERE holds no pair of languages: did you mean HERE/data-bin?",
        lambda here, work: (here / "data-bin").mkdir()),
    "data folder is a file": Case(generate(data="HERE/f"), "no such data folder: HERE/f; make it", files({"f": b"x"})),
    "data without an index": Case(
        OWN, "HERE/bin/test.src-tgt.src.idx is missing.*copy both", data(partial(remove, names="*.src.idx"))),
    "data without the numbers": Case(
        OWN, "HERE/bin/test.src-tgt.tgt.bin is missing.*copy both", data(partial(remove, names="*.tgt.bin"))),
    "data cut in the middle": Case(
        OWN, "HERE/bin/test.src-tgt.src.bin is cut short.*copy it", data(partial(cut, names="test*.bin", size=9))),
    "data empty": Case(OWN, "test.src-tgt.src.bin is cut short.*copy", data(partial(cut, names="test*.bin", size=0))),
    "index cut in the middle": Case(
        OWN, "test.src-tgt.src.idx is cut short.*copy it again", data(partial(cut, names="test*.idx", size=40))),
    "index empty": Case(
        OWN, "test.src-tgt.src.idx is no index.*binarise", data(partial(cut, names="test*.idx", size=0))),
    "index of text": Case(
        OWN, "test.src-tgt.src.idx is no index.*binarise",
        data(partial(overwrite, names="test*.idx", content=b"this is text\n" * 9))),
    "data of fewer sources": Case(OWN, "bin/test.src-tgt: not as many sources.*binarise", data(uneven)),
    "split missing": Case(generate("--gen-subset other"), "WORK/bin holds no other.src-tgt: binarise"),
    "validation split missing": Case(
        train("--valid-subset other --validate-interval-updates 1").replace("--disable-validation", ""),
        "WORK/bin holds no other.src-tgt: binarise"),
    "language missing": Case(
        train(data="HERE/bin"), "HERE/bin holds no targets for train.*binarise",
        data(partial(remove, names="train*.tgt.*"))),
    "language unknown": Case(generate("--source-lang en --target-lang de"), "no dictionary WORK/bin/dict.en.txt: run"),
    "language model's data of pairs": Case(
        f"generate WORK/bin --task diffusion_lm --cpu {CHECKPOINT}", "no dictionary WORK/bin/dict.txt: run"),
    "language model's split missing": Case(
        "train HERE/bin --task diffusion_lm --arch diffusion_lm_tiny --criterion diffusion_vlb --optimizer adam "
        "--batch-size 4 --cpu --save-dir HERE/ck --disable-validation", "HERE/bin holds no train.idx: binarise",
        data(partial(remove, names="train.*"), of="lm")),
    "earlier results, and data cut": Case(
        generate("--results-path HERE/out", "HERE/bin"), "test.src-tgt.src.bin is cut short",
        lambda here, work: (data(partial(cut, names="test*.bin", size=9))(here, work),
                            files({"out/generate-test.txt": b"H-0\t-1\tof days\n"})(here, work))),
}

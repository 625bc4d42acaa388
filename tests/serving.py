"""A playground of tiny models, and its server, for tests; they skip where the packages of the server are missing."""

import sys
import threading
import time
from contextlib import contextmanager

import pytest
from helpers import REPOSITORY, make_ddlm, make_dictionary, make_genie, save_model

pytest.importorskip("starlette", reason="needs starlette: pip install starlette uvicorn")
pytest.importorskip("uvicorn", reason="needs uvicorn: pip install starlette uvicorn")
sys.path.insert(0, str(REPOSITORY / "scripts"))
import _serving  # noqa: E402, I001
import serve  # noqa: E402
from _playground import Limits, Playground, Served  # noqa: E402
from _trace_page import page as filled  # noqa: E402

LIMITS = Limits(steps=2000, candidates=8, seconds=60, waiting=1)
TEXT = "w3 w1 w20 w7"
ASKED = {"model": "genie.pt", "text": TEXT, "steps": 6, "candidates": 3, "seed": 4}
GENIE = dict(max_source_positions=32, max_target_positions=24)
DDLM = dict(max_source_positions=24, max_target_positions=24, condition_dropout=0.1)


def save_models(folder):
    """Two checkpoints, of pairs and of prompts, with their dictionaries."""
    words = make_dictionary()
    for name in ("dict.src.txt", "dict.tgt.txt"):
        words.save(str(folder / name))
    (folder / "test.src-tgt.src.idx").touch()
    save_model(folder / "genie.pt", "genie_tiny", make_genie(words, seed=5), **GENIE)
    words = make_dictionary()
    save_model(folder / "ddlm.pt", "ddlm_tiny", make_ddlm(words, seed=5, condition_dropout=0.1), **DDLM)
    words.save(str(folder / "dict.txt"))
    return folder


def tiny_playground(folder):
    return Playground({name: Served(str(folder / name), str(folder)) for name in ("genie.pt", "ddlm.pt")}, LIMITS)


def page_of(playground):
    return filled(serve.TEMPLATE, playground.about())


def run(playground, **asked):
    events = []
    playground.job({**ASKED, **asked})(events.append)
    return events


def final_texts(events):
    """What the candidates end in, by the changes of all steps."""
    strings, tokens, sure = [], [{} for _ in events[1]["candidates"]], []
    for event in events[1:-1]:
        strings += event["strings"]
        for known, one in zip(tokens, event["candidates"], strict=True):
            known.update(zip(one["changes"][::2], one["changes"][1::2]))
        sure = [one["confidence"] for one in event["candidates"]]
    return ["".join(strings[known[place]] for place in range(len(letters))).strip()
            for known, letters in zip(tokens, sure)]


@contextmanager
def running(playground, page="<p>"):
    """The port at which a playground is served."""
    with serve.listening("127.0.0.1", 0) as made:
        server = _serving.web_server(playground, page, ["127.0.0.1", "localhost"])
        thread = threading.Thread(target=server.run, kwargs={"sockets": [made]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield made.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
